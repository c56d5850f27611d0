//! Output that cannot be shown: a full disk behind it, a reader that has left, a terminal that was closed.

use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::program::*;

const TRAIN: &str = "train --data data --arch tiny.toml --seed 3";

/// One command of each kind, after `run` and `set` were made.
const COMMANDS: [&str; 9] = [
    "train --data data --arch tiny.toml --out other --max-steps 1",
    "train --data data --arch tiny.toml --out other --dry-run",
    "eval --checkpoint run --data data",
    "inspect run",
    "inspect set --json",
    "verify set",
    "pack data other-set",
    "study filters --checkpoint run --out filters",
    "bench --arch tiny.toml --layer conv1 --op forward",
];

/// Reported of other trainers: a log file's disk fills, and the training ends.
#[test]
fn messages_that_cannot_be_written_end_no_work() {
    let place = Place::new();
    place.run(&format!("{TRAIN} --epochs 2 --out whole")).ok();
    place.run("pack data set --shard-size 20kB").ok();
    let silent = |redirection: &str, out: &str| {
        let ran =
            place.run_in_shell(&format!("zfnet {TRAIN} --epochs 2 --out {out} {redirection}"));
        assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{redirection}");
        assert_eq!(place.results(out), place.results("whole"), "{redirection}");
    };
    silent("2> /dev/full", "full");
    silent("2>&-", "closed");
    // The shell gives the status of what is left of the pipe.
    silent("2>&1 >/dev/null | true; exit ${PIPESTATUS[0]}", "left");
    for command in ["verify set", "eval --checkpoint whole --data data", "classify whole no.jpg"] {
        let ran = place.run_in_shell(&format!("zfnet {command} 2> /dev/full"));
        assert_eq!(ran.code, Some(i32::from(command.contains("no.jpg"))), "{command}");
    }
}

#[test]
fn results_that_cannot_be_written_are_an_error() {
    let place = Place::new();
    place.run(&format!("{TRAIN} --epochs 2 --out run")).ok();
    place.run("pack data set --shard-size 20kB").ok();
    let image = place.images(place.images("data/val")[0].to_str().unwrap()).remove(0);
    let classify = format!("classify run {}", image.display());
    let project = format!("project run {} --unit conv2:0", image.display());
    for command in COMMANDS.into_iter().chain([&*classify, &*project, "study report run"]) {
        let ran = place.run_in_shell(&format!("zfnet {command} > /dev/full"));
        ran.refused(&["cannot write to standard output", "No space left"]);
        let ran = place.run_in_shell(&format!("zfnet {command} > /dev/full 2>&1"));
        assert_eq!((ran.code, ran.stderr.as_str()), (Some(1), ""), "{command}");
    }
    // The result was all that could not be written.
    for made in ["other/metrics.jsonl", "other-set/manifest.json", "filters/index.html"] {
        assert!(place.path(made).is_file(), "{made}");
    }
}

#[test]
fn a_reader_that_has_left_ends_a_command_quietly() {
    let place = Place::new();
    place.run(&format!("{TRAIN} --epochs 2 --out run")).ok();
    for command in ["inspect run", "inspect run --json", "bench --arch tiny.toml", "--help"] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader); // before the program begins, or it may be done before its reader leaves
        let ran = Ran::new(command, place.command(command).stdout(writer).output().unwrap());
        assert!(!ran.stderr.contains("error"), "{command}: {}", ran.stderr);
        let expected = if command == "--help" { 0 } else { 141 };
        assert_eq!(ran.code, Some(expected), "{command}: {}", ran.stderr);
    }
}

/// `nohup` and its like: the terminal goes, the training does not.
#[test]
fn a_hang_up_that_is_ignored_stays_ignored() {
    let place = Place::new();
    let mut child = Command::new("bash")
        .args(["-c", &format!("trap '' HUP; exec \"$0\" {TRAIN} --epochs 40 --out run")])
        .arg(env!("CARGO_BIN_EXE_zfnet"))
        .current_dir(place.path(""))
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let patience = Instant::now();
    while !place.path("run/metrics.jsonl").exists() {
        assert!(patience.elapsed() < Duration::from_secs(60), "no checkpoint in a minute");
        thread::sleep(Duration::from_millis(5));
    }
    let kill = format!("kill -HUP {}", child.id());
    assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let metrics = std::fs::read_to_string(place.path("run/metrics.jsonl")).unwrap();
    let last = metrics.lines().filter(|line| line.contains("\"epoch\":40"));
    let steps = last.filter(|line| line.starts_with("{\"kind\":\"step\""));
    assert_eq!(steps.count(), 4, "all steps of the last epoch");
}
