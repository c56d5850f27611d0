//! `train --gpus`: several GPUs leave the files of one.

use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::common::program::{Place, Ran};

const TRAIN: &str = "train --arch tiny.toml --data data --accumulate 4 --batch-size 14 --workers 1";

/// The program where it sees GPUs, whose kernels other tests have compared.
fn command(place: &Place, arguments: &str) -> Command {
    let mut command = place.command(arguments);
    command.env_remove("CUDA_VISIBLE_DEVICES").env("ZFNET_SELFTEST", "0");
    command
}

fn run(place: &Place, arguments: &str) -> Ran {
    Ran::new(arguments, command(place, arguments).output().unwrap())
}

#[test]
#[ignore = "needs four NVIDIA GPUs and NCCL"]
fn gpus_leave_the_files_of_one() {
    let place = Place::new();
    for precision in ["f32", "bf16"] {
        let train = format!("{TRAIN} --precision {precision} --epochs 2 --save-steps 2");
        let one = format!("{precision}-1");
        run(&place, &format!("{train} --gpus 1 --out {one}")).ok();
        for count in [2, 4] {
            let out = format!("{precision}-{count}");
            let ran = run(&place, &format!("{train} --gpus {count} --out {out}")).ok();
            assert_eq!(ran.stdout, format!("{out}\n"), "one rank speaks");
            assert_eq!(ran.stderr.matches("epoch 2: train loss").count(), 1, "{}", ran.stderr);
            assert!(ran.stderr.contains("GPUs exchange values by NCCL"), "{}", ran.stderr);
            assert_eq!(place.results(&one), place.results(&out), "{out}");
        }
        // Four begin, two go on, and one ends.
        let moved = format!("{train} --out {precision}-moved");
        run(&place, &format!("{moved} --gpus 4 --max-steps 3")).ok();
        run(&place, &format!("{moved} --gpus 2 --resume --max-steps 7")).ok();
        run(&place, &format!("{moved} --device cuda:1 --resume")).ok();
        assert_eq!(place.results(&one), place.results(&format!("{precision}-moved")));
    }
}

#[test]
#[ignore = "needs two NVIDIA GPUs and NCCL"]
fn without_nccl_they_exchange_through_the_hosts_memory() {
    let place = Place::new();
    let train = format!("{TRAIN} --precision f32 --epochs 1");
    run(&place, &format!("{train} --gpus 2 --out by-nccl")).ok();
    let path = std::env::var("LD_LIBRARY_PATH").unwrap_or_default();
    let without: Vec<&str> = path.split(':').filter(|folder| !folder.ends_with("nccl")).collect();
    let mut command = command(&place, &format!("{train} --gpus 2 --out by-host"));
    let ran = Ran::new("", command.env("LD_LIBRARY_PATH", without.join(":")).output().unwrap());
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let words = ["through the hosts' memory, which is slow: ", "libnccl.so.2"];
    assert!(words.iter().all(|words| ran.stderr.contains(words)), "{}", ran.stderr);
    assert_eq!(place.results("by-nccl"), place.results("by-host"));
}

#[test]
#[ignore = "needs two NVIDIA GPUs and NCCL"]
fn a_signal_stops_all_after_the_same_step() {
    let place = Place::new();
    let train = format!("{TRAIN} --epochs 100000 --save-steps 5 --out run");
    let mut command = command(&place, &format!("{train} --gpus 2"));
    let running = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let begun = Instant::now();
    while !place.path("run/step-10").exists() && begun.elapsed() < Duration::from_secs(60) {
        sleep(Duration::from_millis(20));
    }
    Command::new("kill").arg(running.id().to_string()).status().unwrap();
    let ran = Ran::new("run", running.wait_with_output().unwrap());
    assert_eq!(ran.code, Some(128 + 15), "{}", ran.stderr);
    let words = "stopped; go on with the same command and --resume";
    assert_eq!(ran.stderr.matches(words).count(), 1, "{}", ran.stderr);
    let last = std::fs::read_link(place.path("run/last")).unwrap();
    let steps: u32 = last.to_str().unwrap().strip_prefix("step-").unwrap().parse().unwrap();
    let rest = format!("--max-steps {}", steps + 3);
    run(&place, &format!("{train} {rest} --resume --gpus 1")).ok();
    run(&place, &format!("{train} {rest} --gpus 1").replace("--out run", "--out whole")).ok();
    assert_eq!(place.results("run"), place.results("whole"));
}

#[test]
#[ignore = "needs the stand-in for eight GPUs"]
fn what_cannot_be_is_refused() {
    let place = Place::new();
    let train = |more: &str| run(&place, &format!("{TRAIN} --out run {more}"));
    train("--gpus 3").refused(&["--gpus: expected a power of two, found 3"]);
    train("--gpus 8").refused(&["as many as a batch has parts, 4, found 8"]);
    train("--gpus 256").refused(&["--gpus 256", "found 8"]);
    assert_eq!(train("--gpus 2 --device cuda:1").code, Some(2));
    // At all of them, which say it once.
    let ran = train("--gpus 2 --learning-rate 1e30");
    assert_eq!(ran.stderr.matches("error: ").count(), 1, "{}", ran.stderr);
    ran.refused(&["the loss is", "at step"]);
    // At one of them.
    for device in 0..3 {
        let mut command = command(&place, &format!("{TRAIN} --out none --gpus 4"));
        command.env("ZFNET_STANDIN_MEMORY", format!("100000@{device}"));
        let ran = Ran::new("", command.output().unwrap());
        assert_eq!(ran.stderr.matches("error: ").count(), 1, "{}", ran.stderr);
        let rank = if device == 0 { "error: " } else { &format!("error: rank {device}: ") };
        assert!(ran.stderr.contains(rank), "{}", ran.stderr);
        ran.refused(&["out of memory"]);
    }
}
