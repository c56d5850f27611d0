//! The program as several processes, started by MPI's launcher: the same files as by one, and what happens when one of
//! them is killed or stopped, or fails.

#[macro_use]
#[path = "common/mod.rs"]
mod common;

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::program::{Place, Ran};
use zfnet::data::synthetic;

const TRAIN: &str =
    "train --arch tiny.toml --data data --accumulate 4 --batch-size 14 --threads 1 --workers 1";

/// A launcher with ranks `0..`, each of which runs a shell's line, in which `exec zfnet` runs the program.
fn launcher(place: &Place, ranks: &[String]) -> Command {
    let mut command = Command::new("mpirun");
    command.current_dir(place.path("")).stdin(Stdio::null());
    // As root, in containers; more ranks than cores.
    command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    command
        .env("OMPI_MCA_rmaps_base_oversubscribe", "1")
        .env("OMPI_MCA_hwloc_base_binding_policy", "none");
    for (rank, line) in ranks.iter().enumerate() {
        if rank > 0 {
            command.arg(":");
        }
        let line = line.replace("exec zfnet ", concat!("exec ", env!("CARGO_BIN_EXE_zfnet"), " "));
        command.args(["-n", "1", "sh", "-c"]).arg(format!("echo $$ > pid-{rank}; {line}"));
    }
    command
}

/// The same command by so many ranks.
fn by_ranks(place: &Place, count: usize, arguments: &str) -> Ran {
    let lines = vec![format!("exec zfnet {arguments}"); count];
    Ran::new(arguments, launcher(place, &lines).output().unwrap())
}

/// Waits for a file, at most a minute: whether it is there.
fn comes(path: &Path) -> bool {
    let begun = Instant::now();
    while !path.exists() && begun.elapsed() < Duration::from_secs(60) {
        sleep(Duration::from_millis(20));
    }
    path.exists()
}

/// A training without end by so many ranks, which has saved some steps.
fn endless(place: &Place, count: usize, out: &str, more: &str) -> Child {
    let line = format!("exec zfnet {TRAIN} --epochs 100000 --save-steps 5 --out {out} {more}");
    let lines = vec![line; count];
    let mut launcher = launcher(place, &lines);
    let mut running = launcher.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    if !comes(&place.path(out).join("step-10")) {
        running.kill().unwrap(); // the launcher ends its ranks
        panic!("no step 10: {}", Ran::new(out, running.wait_with_output().unwrap()).stderr);
    }
    running
}

fn signal(place: &Place, rank: usize, name: &str) {
    let pid = fs::read_to_string(place.path(&format!("pid-{rank}"))).unwrap();
    let sent = Command::new("sh").args(["-c", &format!("kill -{name} {pid}")]).status();
    assert!(sent.unwrap().success());
}

/// The last checkpoint is whole: some steps more by one rank are those of a training that nothing has interrupted.
fn goes_on(place: &Place, out: &str) {
    let newest = fs::read_dir(place.path(out)).unwrap().filter_map(|entry| {
        entry.unwrap().file_name().to_str()?.strip_prefix("step-")?.parse::<u32>().ok()
    });
    let steps = newest.max().unwrap() + 3;
    let rest = format!("--epochs 100000 --save-steps 5 --max-steps {steps}");
    place.run(&format!("{TRAIN} {rest} --out {out} --resume")).ok();
    place.run(&format!("{TRAIN} {rest} --out {out}-whole")).ok();
    assert_eq!(place.results(out), place.results(&format!("{out}-whole")));
}

#[test]
fn ranks_leave_the_same_files() {
    let place = Place::new();
    let rest = "--epochs 3 --save-steps 2";
    place.run(&format!("{TRAIN} {rest} --out 1")).ok();
    for count in [2, 4] {
        let ran = by_ranks(&place, count, &format!("{TRAIN} {rest} --out {count}")).ok();
        assert_eq!(ran.stdout, format!("{count}\n"), "one rank speaks");
        assert_eq!(ran.stderr.matches("epoch 3: train loss").count(), 1, "{}", ran.stderr);
        assert_eq!(place.results("1"), place.results(&count.to_string()), "{count} ranks");
    }
    // Four begin, two go on.
    by_ranks(&place, 4, &format!("{TRAIN} --epochs 3 --max-steps 7 --out moved")).ok();
    by_ranks(&place, 2, &format!("{TRAIN} {rest} --out moved --resume")).ok();
    assert_eq!(place.results("1"), place.results("moved"));
}

#[test]
fn ranks_train_zfnet_mini_to_the_same_files() {
    let place = Place::new();
    synthetic::write_folder(&place.path("mini"), 5, 80, 3, 1, |_| ()).unwrap();
    // The second batch of an epoch has two images.
    let train = "train --arch zfnet-mini --data mini --accumulate 4 --batch-size 28 --threads 1 --max-steps 3";
    place.run(&format!("{train} --out 1")).ok();
    for count in [2, 4] {
        by_ranks(&place, count, &format!("{train} --out {count}")).ok();
        assert_eq!(place.results("1"), place.results(&count.to_string()), "{count} ranks");
    }
}

#[test]
fn a_killed_rank_is_named() {
    let place = Place::new();
    for (rank, out) in [(1, "second"), (0, "first")] {
        let running = endless(&place, 4, out, "");
        signal(&place, rank, "KILL");
        let ran = Ran::new(out, running.wait_with_output().unwrap());
        assert_ne!(ran.code, Some(0), "{}", ran.stderr);
        let named = ran.stderr.matches(&format!("rank {rank} on ")).count();
        assert_eq!(named, 1, "{}", ran.stderr);
        goes_on(&place, out);
    }
}

#[test]
fn a_stopped_rank_is_named() {
    let place = Place::new();
    let running = endless(&place, 2, "run", "--rank-timeout 3");
    signal(&place, 1, "STOP");
    let ran = Ran::new("run", running.wait_with_output().unwrap());
    assert_ne!(ran.code, Some(0), "{}", ran.stderr);
    let words = "has not been heard of for 3 s: it was killed or stopped";
    assert!(ran.stderr.contains("rank 1 on ") && ran.stderr.contains(words), "{}", ran.stderr);
    goes_on(&place, "run");
}

#[test]
fn a_signal_at_one_rank_stops_all_after_the_same_step() {
    let place = Place::new();
    let running = endless(&place, 2, "run", "");
    signal(&place, 1, "TERM");
    let ran = Ran::new("run", running.wait_with_output().unwrap());
    assert_ne!(ran.code, Some(0), "{}", ran.stderr);
    assert!(
        ran.stderr.contains("stopped; go on with the same command and --resume"),
        "{}",
        ran.stderr
    );
    goes_on(&place, "run");
}

/// A disk that is full where rank 0 writes.
#[test]
fn what_fails_at_one_rank_ends_all() {
    let place = Place::new();
    let zfnet = format!("exec zfnet {TRAIN} --epochs 100000 --save-steps 5");
    place.run(&format!("{TRAIN} --epochs 100000 --save-steps 5 --max-steps 5 --out run")).ok();
    let go_on = format!("{zfnet} --out run --resume");
    // Checkpoints fit, and after some thousand lines metrics do not.
    let limited = format!("ulimit -f 200; {go_on}");
    let full = launcher(&place, &[limited, go_on]).output().unwrap();
    let ran = Ran::new("full", full);
    assert_ne!(ran.code, Some(0), "{}", ran.stderr);
    assert!(ran.stderr.contains("cannot write"), "{}", ran.stderr);
    goes_on(&place, "run");
}

/// A rank that the system gives too little memory is named, whether it can still say so or not.
#[test]
fn a_rank_without_memory_is_named() {
    let place = Place::new();
    let zfnet = "exec zfnet train --arch zfnet --data data --accumulate 2 --batch-size 8 --threads 1 --out run";
    let lines = ["", "ulimit -v 1000000; "].map(|limit| format!("{limit}{zfnet}"));
    let ran = Ran::new("run", launcher(&place, &lines).output().unwrap());
    assert_ne!(ran.code, Some(0), "{}", ran.stderr);
    assert!(ran.stderr.contains("rank 1 on "), "{}", ran.stderr);
    assert!(!place.path("run/last").exists());
}

#[test]
fn ranks_that_differ_are_refused() {
    let place = Place::new();
    let zfnet = |more: &str| format!("exec zfnet {TRAIN} --out run {more}");
    for (more, words) in [
        ("--momentum 0.5", "another recipe than rank 0: momentum = 0.9 at rank 0, 0.5 at rank 1"),
        ("--seed 7", "another seed than rank 0: 0 at rank 0, 7 at rank 1"),
        ("--exact", "another device than rank 0"),
    ] {
        let ran = Ran::new(more, launcher(&place, &[zfnet(""), zfnet(more)]).output().unwrap());
        assert_ne!(ran.code, Some(0), "{}", ran.stderr);
        assert!(ran.stderr.contains("rank 1 on ") && ran.stderr.contains(words), "{}", ran.stderr);
        assert!(!place.path("run/last").exists());
    }
    by_ranks(&place, 3, &format!("{TRAIN} --out run")).refused(&["power of two", "found 3"]);
    by_ranks(&place, 2, "inspect tiny.toml").refused(&["only `train`"]);
}
