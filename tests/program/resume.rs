//! A run that is interrupted, however and whenever, and continued, is the run that was not.
use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::Random;
use crate::common::program::Place;

const TRAIN: &str = "train --data data --arch tiny.toml";

/// The run named `whole`, never interrupted.
fn whole(place: &Place, flags: &str) -> Duration {
    let begun = Instant::now();
    place.run(&format!("{TRAIN} {flags} --out whole")).ok();
    begun.elapsed()
}

/// Kills until the run ends by itself: some die while they start, some amid a checkpoint (with one
/// a step, much of the time goes into those), some between.
#[test]
fn kills_at_any_moment_change_nothing() {
    let place = Place::new();
    let flags = "--epochs 40 --save-steps 1";
    let time = whole(&place, flags);
    let mut random = Random(11);
    let mut kills = 0;
    loop {
        let mut child = place
            .command(&format!("{TRAIN} {flags} --out killed --resume"))
            .stderr(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        if kills < 60 {
            thread::sleep(time.mul_f64(0.2 * f64::from(random.real().abs())));
            child.kill().unwrap();
        }
        let status = child.wait().unwrap();
        if status.success() {
            break;
        }
        assert_eq!(status.code(), None, "ended by an error, not by a kill");
        kills += 1;
    }
    assert!(kills >= 5, "killed {kills} times only");
    assert_eq!(place.results("killed"), place.results("whole"));
    let left = fs::read_dir(place.path("killed")).unwrap().map(|e| e.unwrap().file_name());
    let left: Vec<_> = left.filter(|name| name.to_string_lossy().contains('.')).collect();
    assert_eq!(left, ["metrics.jsonl"], "left behind");
}

#[test]
fn signals_save_and_say_so() {
    let place = Place::new();
    for (signal, code) in [("INT", 130), ("TERM", 143), ("HUP", 129)] {
        let mut command = place.command(&format!("{TRAIN} --epochs 100000 --out {signal}"));
        // Whoever runs the tests may ignore it, as `nohup` does.
        let reset = || {
            // SAFETY: may be called between fork and exec.
            unsafe { libc::signal(libc::SIGHUP, libc::SIG_DFL) };
            Ok(())
        };
        // SAFETY: `reset` makes one call of the system and allocates nothing.
        unsafe { command.pre_exec(reset) };
        let child = command.stderr(Stdio::piped()).spawn().unwrap();
        let metrics = place.path(signal).join("metrics.jsonl");
        let patience = Instant::now();
        // The file is buffered, so that it holds whole epochs late; the checkpoint tells.
        while !place.path(signal).join("last").join("state.json").exists()
            || fs::metadata(&metrics).unwrap().len() < 1000
        {
            assert!(patience.elapsed() < Duration::from_secs(60), "no step in a minute");
            thread::sleep(Duration::from_millis(20));
        }
        place
            .run(&format!("{TRAIN} --epochs 100000 --out {signal} --resume"))
            .refused(&[signal, "another training is writing"]);
        let kill = format!("kill -{signal} {}", child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(code));
        assert!(String::from_utf8(output.stderr).unwrap().contains("--resume"));

        let last = fs::read_link(place.path(signal).join("last")).unwrap();
        let step: u32 = last.to_str().unwrap().strip_prefix("step-").unwrap().parse().unwrap();
        let flags = format!("--epochs 100000 --max-steps {}", step + 7);
        place.run(&format!("{TRAIN} {flags} --out {signal} --resume")).ok();
        place.run(&format!("{TRAIN} {flags} --out whole-{signal}")).ok();
        assert_eq!(place.results(signal), place.results(&format!("whole-{signal}")));
    }
}

#[test]
fn a_damaged_last_checkpoint_falls_back_to_the_one_before() {
    let place = Place::new();
    whole(&place, "");
    place.run(&format!("{TRAIN} --epochs 3 --out run")).ok();
    let flip = |file: &str| {
        let path = place.path("run").join(file);
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(path, bytes).unwrap();
    };
    flip("last/optimizer.safetensors");
    let resume = "train --data data --out run --resume --epochs 4".to_owned();
    let ran = place.run(&resume).ok();
    assert!(ran.stderr.contains("fell back to") && ran.stderr.contains("optimizer.safetensors"));
    assert_eq!(place.results("run"), place.results("whole"));

    for entry in fs::read_dir(place.path("run")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.starts_with("step-") {
            flip(&format!("{name}/model.safetensors"));
        }
    }
    place.run(&resume).refused(&["model.safetensors", "damaged", "expected", "found"]);
}

/// A newer version's checkpoint, or one that may not be read: nothing is gone on with, nothing is touched.
#[test]
fn what_is_whole_but_cannot_be_read_is_not_passed_over() {
    let place = Place::new();
    place.run(&format!("{TRAIN} --epochs 3 --out run")).ok();
    let state = place.path("run").join("last/state.json");
    let model = place.path("run").join("last/model.safetensors");
    let optimizer = place.path("run").join("last/optimizer.safetensors");
    let text = fs::read_to_string(&state).unwrap();
    let held = || {
        let metrics = fs::read(place.path("run").join("metrics.jsonl")).unwrap();
        (metrics, fs::read_link(place.path("run").join("last")).unwrap())
    };
    let before = held();
    let resume = "train --data data --out run --resume --epochs 4";
    let refused = |words: &[&str]| {
        place.run(resume).refused(words);
        place.run("study report run").refused(words);
        assert_eq!(held(), before);
    };
    fs::write(&state, text.replace("\"version\": 2", "\"version\": 3")).unwrap();
    refused(&["state.json", "expected a state of version 2 at most, found 3"]);
    fs::write(&state, text.replace("\"batch\"", "\"batches\"")).unwrap();
    refused(&["state.json", "use the version that wrote it"]);
    // Metadata of a newer version, under a checksum that is right.
    let bytes = fs::read(&model).unwrap();
    let newer = replaced(&bytes, br#"{\"version\":2,"#, br#"{\"version\":9,"#);
    let xxh3 = |bytes: &[u8]| format!("{:016x}", xxhash_rust::xxh3::xxh3_64(bytes));
    assert!(text.contains(&xxh3(&bytes)));
    fs::write(&model, &newer).unwrap();
    fs::write(&state, text.replace(&xxh3(&bytes), &xxh3(&newer))).unwrap();
    refused(&["model.safetensors", "metadata of version 2 at most", "found 9"]);
    fs::write(&model, &bytes).unwrap();
    // A checkpoint on a disk that is not there, and a run that cannot be read.
    let last = fs::read_link(place.path("run").join("last")).unwrap();
    let (folder, aside) = (place.path("run").join(&last), place.path("aside"));
    fs::rename(&folder, &aside).unwrap();
    std::os::unix::fs::symlink(place.path("elsewhere"), &folder).unwrap();
    refused(&["state.json"]);
    fs::remove_file(&folder).unwrap();
    fs::rename(&aside, &folder).unwrap();
    fs::write(place.path("file"), "").unwrap();
    place.run("study report file").refused(&["file"]);
    fs::remove_file(&state).unwrap();
    fs::create_dir(&state).unwrap(); // cannot be read, also by root
    refused(&["state.json"]);
    fs::remove_dir(&state).unwrap();
    fs::write(&state, &text).unwrap();
    fs::remove_file(&optimizer).unwrap();
    fs::create_dir(&optimizer).unwrap();
    place.run(resume).refused(&["optimizer.safetensors"]);
    assert_eq!(held(), before);
    // What is cut short is.
    fs::write(&state, &text[..text.len() / 2]).unwrap();
    let ran = place.run(resume).ok();
    assert!(ran.stderr.contains("fell back to") && ran.stderr.contains("state.json"));
}

/// `scp -r`, zip and object stores follow symbolic links, drop them, or write down where they lead.
/// Reported of other trainers.
#[test]
fn a_run_that_was_copied_is_a_run() {
    let place = Place::new();
    place.run(&format!("{TRAIN} --epochs 3 --out run")).ok();
    whole(&place, "");
    let errors = |checkpoint: &str| {
        place.run(&format!("eval --checkpoint {checkpoint} --data data --json")).json()
    };
    let [best, last] = ["run/best", "run/last"].map(errors);
    assert_eq!(errors("run"), best);
    let state = fs::read_to_string(place.path("run/last/state.json")).unwrap();
    let step = |link: &str| fs::read_link(place.path("run").join(link)).unwrap();
    assert_ne!(step("best"), step("last"), "or the test says little: {state}");
    let copies = [
        ("followed", "cp -rL run followed"),
        ("dropped", "cp -r run dropped; rm dropped/last dropped/best"),
        (
            "written",
            "cp -r run written; cd written; for l in last best; do \
             t=$(readlink $l); rm $l; echo $t > $l; done",
        ),
        ("alone", "mkdir alone; cp -rL run/last run/best run/metrics.jsonl alone"),
        // No copy of what is there, though it is called like one.
        ("stale", "cp -rL run stale; echo >> stale/last/state.json"),
    ];
    for (copy, how) in copies {
        place.run_in_shell(how).ok();
        assert_eq!(errors(&format!("{copy}/best")), best, "{copy}");
        assert_eq!(errors(copy), best, "{copy}");
        assert_eq!(errors(&format!("{copy}/last")), last, "{copy}");
        for checkpoint in [copy.to_owned(), format!("{copy}/best"), format!("{copy}/last")] {
            place.run(&format!("inspect {checkpoint}")).ok();
        }
        place.run(&format!("{TRAIN} --out {copy}")).refused(&["holds a training already"]);
        let ran = place.run(&format!("{TRAIN} --epochs 4 --out {copy} --resume")).ok();
        let is_kept = matches!(copy, "alone" | "stale");
        assert_eq!(ran.stderr.contains("last: is a folder, where a link should be"), is_kept);
        if is_kept {
            let read = |path: String| fs::read(place.path(&path)).unwrap();
            for file in ["metrics.jsonl", "step-16/model.safetensors"] {
                assert_eq!(read(format!("{copy}/{file}")), read(format!("whole/{file}")), "{copy}");
            }
        } else {
            assert_eq!(place.results(copy), place.results("whole"), "{copy}");
        }
        assert_eq!(errors(&format!("{copy}/last")), errors("whole/last"), "{copy}");
    }
}

/// As on exFAT, or on Windows without the right to make links.
#[test]
fn a_disk_without_links_will_do() {
    let place = Place::new();
    whole(&place, "");
    for taken in ["last.tmp", "best.tmp"] {
        fs::create_dir_all(place.path("run").join(taken)).unwrap(); // no link can be made
    }
    let ran = place.run(&format!("{TRAIN} --epochs 3 --out run")).ok();
    assert_eq!(ran.stderr.matches("no command needs this link").count(), 1, "{}", ran.stderr);
    place.run(&format!("{TRAIN} --epochs 4 --out run --resume")).ok();
    assert!(!place.path("run/last").exists());
    for checkpoint in ["", "/last", "/best"] {
        let errors = |run| {
            place.run(&format!("eval --checkpoint {run}{checkpoint} --data data --json")).json()
        };
        assert_eq!(errors("run"), errors("whole"));
    }
}

/// Bytes with one part of them replaced.
fn replaced(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let at = bytes.windows(from.len()).position(|part| part == from).expect("it is there");
    [&bytes[..at], to, &bytes[at + from.len()..]].concat()
}

/// A kill between the two renames of a checkpoint that is written once more.
#[test]
fn a_checkpoint_caught_while_it_was_replaced_is_found() {
    let place = Place::new();
    whole(&place, "--keep 1");
    place.run(&format!("{TRAIN} --epochs 3 --keep 1 --out run")).ok();
    let folder = |name: &str| place.path("run").join(name);
    fs::rename(folder("step-12"), folder("step-12.old")).unwrap();
    for entry in fs::read_dir(place.path("run")).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if name.starts_with("step-") && name != "step-12.old" {
            fs::remove_dir_all(entry.path()).unwrap(); // the best one, if it is another
        }
    }
    let ran = place.run(&format!("{TRAIN} --keep 1 --out run --resume")).ok();
    assert!(ran.stderr.contains("step 12 of 16"), "{}", ran.stderr);
    assert_eq!(place.results("run"), place.results("whole"));
    assert!(!folder("step-12.old").exists());
}

/// The plateau's memory of the best error is part of the state.
#[test]
fn a_plateau_is_remembered() {
    let place = Place::new();
    let flags = "--schedule plateau --patience 1 --factor 0.5 --epochs 12";
    whole(&place, flags);
    for epochs in [2, 5, 6, 9, 12] {
        let flags = format!("{flags} --max-steps {}", 4 * epochs);
        place.run(&format!("{TRAIN} {flags} --out run --resume")).ok();
    }
    assert_eq!(place.results("run"), place.results("whole"));
    let metrics = fs::read_to_string(place.path("run/metrics.jsonl")).unwrap();
    assert!(metrics.contains("\"rate\":0.005}"), "it has dropped: {metrics}");
}

#[test]
fn threads_do_not_matter() {
    let place = Place::new();
    whole(&place, "--threads 1 --workers 1");
    place.run(&format!("{TRAIN} --out more --threads 3 --workers 4")).ok();
    assert_eq!(place.results("more"), place.results("whole"));
    place.run(&format!("{TRAIN} --out other --seed 1")).ok();
    assert_ne!(place.results("other")[0], place.results("whole")[0]);
}

#[test]
fn parts_of_batches_and_longer_runs_continue() {
    let place = Place::new();
    whole(&place, "--accumulate 3");
    place.run(&format!("{TRAIN} --accumulate 3 --epochs 2 --out run")).ok();
    place.run(&format!("{TRAIN} --accumulate 3 --max-steps 11 --out run --resume")).ok();
    place.run("train --data data --accumulate 3 --out run --resume --epochs 4").ok();
    assert_eq!(place.results("run"), place.results("whole"));
}

#[test]
fn another_run_is_not_continued() {
    let place = Place::new();
    whole(&place, "");
    place.run(&format!("{TRAIN} --out whole")).refused(&["holds a training already", "--resume"]);
    let resume = |flags: &str| place.run(&format!("{TRAIN} --out whole --resume {flags}"));
    resume("--lr 0.5").refused(&["another recipe", "0.5", "--out"]);
    fs::write(place.path("data/train/disc/00000.jpg"), "one more").unwrap();
    resume("").refused(&["another set of training images", "60 files", "61 files"]);
    fs::remove_file(place.path("data/train/disc/00000.jpg")).unwrap();
    resume("--seed 9").refused(&["another seed: 0 then, 9 now"]);
    place.run("train --data data --arch zfnet-mini --out whole --resume").refused(&[
        "another network",
        "then",
        "now",
    ]);
    let class = place.images("data/train").remove(0);
    for split in ["data/train", "data/val"] {
        fs::remove_dir_all(place.path(split).join(class.file_name().unwrap())).unwrap();
    }
    resume("").refused(&["another"]);
}
