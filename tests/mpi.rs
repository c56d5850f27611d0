//! The program as several processes, started by MPI's launcher: the same files as by one, and what happens when one of
//! them is killed or stopped, or fails.

#[macro_use]
#[path = "common/mod.rs"]
mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::program::{Place, Ran};
use zfnet::data::synthetic;

const TRAIN: &str =
    "train --arch tiny.toml --data data --accumulate 4 --batch-size 14 --threads 1 --workers 1";

/// Images that take a search seconds.
const MANY: usize = 6000;

/// A launcher with ranks `0..`, each of which runs a shell's line, in which `exec zfnet` runs the program.
fn launcher(place: &Place, ranks: &[String]) -> Command {
    let mut command = Command::new("mpirun");
    command.current_dir(place.path("")).stdin(Stdio::null());
    // As root, in containers; more ranks than cores.
    command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    command
        .env("OMPI_MCA_rmaps_base_oversubscribe", "1")
        .env("OMPI_MCA_hwloc_base_binding_policy", "none")
        // Time to say which one has failed, on a machine that is busy.
        .env("OMPI_MCA_odls_base_sigkill_timeout", "3");
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
    by_ranks(&place, 2, "inspect tiny.toml").refused(&["only `train` and `study features`"]);
    by_ranks(&place, 2, "study learnt --checkpoint run --data data").refused(&["only `train`"]);
}

const FEATURES: &str = "study features --checkpoint run --threads 1 --workers 1";

/// All files of a folder, by their paths in it.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(inner) = folders.pop() {
        for entry in fs::read_dir(inner).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap().to_owned();
                files.insert(name, fs::read(path).unwrap());
            }
        }
    }
    files
}

/// A page of features, its pictures and its numbers do not tell how many have made it.
#[test]
fn ranks_make_the_same_page() {
    let place = Place::new();
    place.run(&format!("{TRAIN} --epochs 1 --out run")).ok();
    fs::write(place.images(place.images("data/train")[3].to_str().unwrap()).remove(2), "bad")
        .unwrap();
    let features = format!("{FEATURES} --data data --split train --max-bad 0.1");
    let alone = place.run(&format!("{features} --out 1")).ok();
    assert!(alone.stderr.contains("left out: "), "{}", alone.stderr);
    let whole = files(&place.path("1"));
    assert!(whole.len() >= 6, "{:?}", whole.keys());
    for count in [2, 3] {
        let ran = by_ranks(&place, count, &format!("{features} --out {count}")).ok();
        assert_eq!(ran.stdout, format!("{count}/index.html\n"), "one rank speaks");
        assert_eq!(ran.stderr.matches("left out: ").count(), 1, "{}", ran.stderr);
        assert!(files(&place.path(&count.to_string())) == whole, "{count} ranks");
    }
    let top9 = features.replace("study features", "top9");
    by_ranks(&place, 2, &format!("{top9} --out top9")).ok();
    assert!(files(&place.path("top9")) == whole);
    // More than a share may be bad, and a rank that cannot begin.
    let refused =
        by_ranks(&place, 2, &format!("{FEATURES} --data data --split train --max-bad 0 --out 0"));
    refused.refused(&["cannot be read as images", "--max-bad"]);
    let lines = ["", "-elsewhere"].map(|data| {
        format!("exec zfnet {}", features.replace("--data data", &format!("--data data{data}")))
    });
    let ran = Ran::new("elsewhere", launcher(&place, &lines).output().unwrap());
    assert_ne!(ran.code, Some(0), "{}", ran.stderr);
    assert!(
        ran.stderr.contains("rank 1 on ") && ran.stderr.contains("data-elsewhere"),
        "{}",
        ran.stderr
    );
}

/// A rank that is killed is named, and one that is asked to stop stops all; others go on and end with the same page.
#[test]
fn a_search_that_is_ended_goes_on() {
    let place = Place::new();
    place.run(&format!("{TRAIN} --epochs 1 --out run")).ok();
    fs::create_dir(place.path("many")).unwrap();
    let pictures: Vec<PathBuf> = (place.images("data/train").iter())
        .flat_map(|class| place.images(class.to_str().unwrap()))
        .collect();
    for (number, picture) in pictures.iter().cycle().take(MANY).enumerate() {
        fs::hard_link(picture, place.path(&format!("many/{number:05}.png"))).unwrap();
    }
    let features = format!("{FEATURES} --data many");
    place.run(&format!("{features} --out 1")).ok();
    for (rank, name, words) in [(1, "KILL", "rank 1 on "), (1, "TERM", "stopped by signal 15")] {
        let lines = vec![format!("exec zfnet {features} --out {name}"); 2];
        let mut launcher = launcher(&place, &lines);
        let running = launcher.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let kept = place.path(name).join(".parts/search.json");
        assert!(comes(&kept), "something is found");
        signal(&place, rank, name);
        let ran = Ran::new(name, running.wait_with_output().unwrap());
        assert_ne!(ran.code, Some(0), "{}", ran.stderr);
        assert_eq!(ran.stderr.matches(words).count(), 1, "{}", ran.stderr);
        assert!(!place.path(name).join("index.html").exists());
        assert!(kept.exists(), "what was found is kept");
        by_ranks(&place, 3, &format!("{features} --out {name}")).ok();
        assert!(files(&place.path(name)) == files(&place.path("1")), "{name}");
    }
}
