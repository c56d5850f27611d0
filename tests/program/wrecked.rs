//! Situations that users of such programs report: data, classes and runs that are nearly right, outputs in the wrong
//! place, limits of the system. Each is told what to do, or is put right.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use crate::common::program::Place;
use zfnet::data::synthetic;

const TRAIN: &str = "train --data data --arch tiny.toml";

/// The names of a place's classes.
fn classes(place: &Place) -> Vec<String> {
    let folders = place.images("data/train");
    folders.iter().map(|f| f.file_name().unwrap().to_str().unwrap().to_owned()).collect()
}

/// Gives a class another name in both splits.
fn rename(place: &Place, from: &str, to: &str) {
    for split in ["train", "val"] {
        let folder = place.path("data").join(split);
        fs::rename(folder.join(from), folder.join(to)).unwrap();
    }
}

/// Reported of other trainers: an error rate of classes that are not the network's.
#[test]
fn classes_are_their_folders() {
    let place = Place::new();
    place.run(&format!("{TRAIN} --epochs 1 --out run")).ok();
    place.run("pack data set").ok();
    let eval = |data: &str| place.run(&format!("eval --checkpoint run --data {data} --json"));
    let errors = eval("data").json();
    assert_eq!(eval("set").json(), errors);
    let folders = classes(&place);
    // Readable names that came later, two of them the same: as ImageNet's cranes.
    let table: Vec<String> = folders.iter().map(|folder| format!("{folder}\tbird")).collect();
    fs::write(place.path("data/classes.tsv"), table.join("\n")).unwrap();
    assert_eq!(eval("data").json(), errors);
    place.run(&format!("{TRAIN} --epochs 2 --out run --resume")).ok();
    let image = place.images(&format!("data/val/{}", folders[0])).remove(0);
    let ran = place.run(&format!("classify run/last {}", image.display())).ok();
    assert_eq!(ran.stdout.matches("bird (").count(), 5, "{}", ran.stdout);
    assert!(folders.iter().any(|folder| ran.stdout.contains(&format!("bird ({folder})"))));
    let by_folder = format!("study occlusion --checkpoint run {} --class", image.display());
    place.run(&format!("{by_folder} {} --out page --square 8 --stride 8", folders[3])).ok();

    // Others, which differ in the last only, or in what cannot be seen.
    let last = folders.last().unwrap();
    fs::remove_file(place.path("data/classes.tsv")).unwrap();
    rename(&place, last, "zebra");
    let differ = format!("expected `{last}` as class 9, found `zebra`");
    eval("data").refused(&["data: does not have the classes of the checkpoint", &differ]);
    place
        .run(&format!("{TRAIN} --epochs 3 --out run --resume"))
        .refused(&["was begun with another set of classes", &differ]);
    rename(&place, "zebra", "ze\u{301}bre");
    place.run(&format!("{TRAIN} --epochs 1 --out accents")).ok();
    rename(&place, "ze\u{301}bre", "z\u{e9}bre");
    let ran = place.run("eval --checkpoint accents --data data");
    ran.refused(&["U+007A U+0065 U+0301 U+0062", "U+007A U+00E9 U+0062"]);
    rename(&place, "z\u{e9}bre", last);

    // Classes that are called as a program might call unknown ones.
    for (i, folder) in folders.iter().enumerate() {
        rename(&place, folder, &format!("class {i}"));
    }
    place.run(&format!("{TRAIN} --epochs 1 --out made-up")).ok();
    for (i, folder) in folders.iter().enumerate() {
        rename(&place, &format!("class {i}"), folder);
    }
    place.run("eval --checkpoint made-up --data data").refused(&["expected `class 0` as class 0"]);
}

/// Nothing is trained by an evaluation.
#[test]
fn validation_images_alone_can_be_tried() {
    let place = Place::new();
    place.run(&format!("{TRAIN} --epochs 1 --out run")).ok();
    let errors = place.run("eval --checkpoint run --data data --json").json();
    fs::rename(place.path("data/train"), place.path("train")).unwrap();
    assert_eq!(place.run("eval --checkpoint run --data data --json").json(), errors);
    place.run("study filters --checkpoint run --data data").ok();
    place.run("eval --checkpoint run --data data --split train").refused(&["has no folder train"]);
    place.run(&format!("{TRAIN} --out other")).refused(&["has no folder train"]);
}

/// Reported of other trainers: a run's folder becomes a class.
#[test]
fn nothing_is_written_among_images() {
    let place = Place::new();
    place.run(&format!("{TRAIN} --epochs 1 --out run")).ok();
    place.run("pack data set").ok();
    let class = &classes(&place)[0];
    let image = place.images(&format!("data/val/{class}")).remove(0);
    let project = format!("project run {} --unit conv2:0", image.display());
    for command in [
        "train --data data --arch tiny.toml",
        &project,
        "study filters --checkpoint run",
        "study learnt --checkpoint run --data data",
        "demo --quick",
    ] {
        for out in ["data/train/runs", &format!("data/val/{class}/page"), "data/train"] {
            let words = ["lies among the images of", "choose another folder"];
            place.run(&format!("{command} --out {out}")).refused(&words);
        }
        place.run(&format!("{command} --out set/run")).refused(&["lies in the set of shards"]);
    }
    place
        .run("bench --arch tiny.toml --layer conv1 --op forward --save data/train/x.json")
        .refused(&["lies among the images of"]);
    place
        .run(&format!("{project} --save-arrays data/train/x.safetensors --out page"))
        .refused(&["lies among the images of"]);
    place
        .run(&format!("{TRAIN} --out run/last/inner"))
        .refused(&["lies in the checkpoint", "step-"]);
    for out in ["data", "data/set", "data/train/set"] {
        place.run(&format!("pack data {out}")).refused(&["lies in data"]);
    }
    assert!(!place.path("data/train/runs").exists() && !place.path("set/run").exists());
    place.run(&format!("{TRAIN} --epochs 1 --out data/run")).ok();
    place.run(&format!("{TRAIN} --epochs 1 --out again")).ok();
}

/// Reported of other loaders: three of four images in another format, or a link to a disk that is not there, and
/// less is learnt from than is thought.
#[test]
fn what_is_not_used_is_counted() {
    let place = Place::new();
    let class = place.images("data/train").remove(0);
    let image = place.images(class.to_str().unwrap()).remove(0);
    for name in ["a.bmp", "b.bmp", "c.BMP", "more/d.png", ".hidden.bmp", "Thumbs.db"] {
        fs::create_dir_all(class.join(name).parent().unwrap()).unwrap();
        fs::copy(&image, class.join(name)).unwrap();
    }
    fs::write(place.path("data/val/notes.txt"), "").unwrap();
    let ran = place.run(&format!("{TRAIN} --epochs 1 --out run")).ok();
    assert!(!ran.stderr.contains("val has no image"), "{}", ran.stderr);
    let told = ran.stderr.matches("not used are 3 .bmp, 1 .txt, 1 folder").count();
    assert_eq!(told, 1, "{}", ran.stderr);
    fs::remove_dir_all(place.images("data/val").remove(0)).unwrap();
    let ran = place.run("eval --checkpoint run --data data").ok();
    assert!(ran.stderr.contains("val has no image of 1 class(es)"), "{}", ran.stderr);
    std::os::unix::fs::symlink("gone", place.path("data/train/zebra")).unwrap();
    place.run(&format!("{TRAIN} --out other")).refused(&["zebra", "link that leads nowhere"]);
    place.run("pack data set").refused(&["zebra", "link that leads nowhere"]);
}

#[test]
fn advice_names_flags_that_there_are() {
    let place = Place::new();
    place.run(&format!("{TRAIN} --epochs 1 --out run")).ok();
    place.run("pack data set --shard-size 20kB").ok();
    let ran = place.run("train --data set/train-000000.tar --arch tiny.toml --out other");
    ran.refused(&["tars of images", "zfnet pack set/train-000000.tar SET"]);
    let bad = place.images(place.images("data/val")[0].to_str().unwrap());
    for image in &bad {
        fs::write(image, "").unwrap();
    }
    // `study transfer` and its like have the flag, `classify` has no set.
    let ran =
        place.run("study learnt --checkpoint run --data data --max-bad 0").refused(&["--max-bad"]);
    assert!(!ran.stderr.contains("--resume"), "{}", ran.stderr);
    // Of a small set one image may be bad, unless none may.
    fs::copy(&place.images(place.images("data/val")[1].to_str().unwrap())[0], &bad[0]).unwrap();
    place.run("eval --checkpoint run --data data").ok();
    place.run("eval --checkpoint run --data data --max-bad 0").refused(&["1 of 20 files"]);
    for threads in ["512", "1000"] {
        let most = ["--threads: expected at most", threads];
        place.run(&format!("{TRAIN} --out other --threads {threads}")).refused(&most);
        place.run(&format!("pack data other --threads {threads}")).refused(&most);
    }
}

/// The one value that differs, not all of both.
#[test]
fn a_changed_recipe_is_told_by_what_has_changed() {
    let place = Place::new();
    place.run(&format!("{TRAIN} --epochs 1 --out run")).ok();
    let resume = |flags: &str| place.run(&format!("{TRAIN} --epochs 2 --out run --resume {flags}"));
    let ran = resume("--lr 0.02").refused(&["another recipe: learning_rate = 0.01", "0.02"]);
    assert!(!ran.stderr.contains("momentum"), "{}", ran.stderr);
    resume("--seed 9").refused(&["another seed: 0 then, 9 now; continue with the same --seed"]);
    let toml = fs::read_to_string(place.path("tiny.toml")).unwrap();
    fs::write(place.path("tiny.toml"), toml.replace("channels = 12", "channels = 13")).unwrap();
    resume("").refused(&["another network: in layer 5", "channels = 12 then, 13 now"]);
    fs::write(place.path("tiny.toml"), format!("\u{feff}{}", toml.replace('\n', "\r\n"))).unwrap();
    // Other validation images: the best so far was found on others.
    let image = place.images(place.images("data/val")[0].to_str().unwrap()).remove(0);
    fs::rename(&image, image.with_file_name("other.png")).unwrap();
    let ran = resume("").ok();
    assert!(ran.stderr.contains("other validation images than before"), "{}", ran.stderr);
    let ran = place.run(&format!("{TRAIN} --epochs 3 --out run --resume")).ok();
    assert!(!ran.stderr.contains("other validation images"), "{}", ran.stderr);
}

/// macOS lets a program have 256, and a set has thousands of shards. Reported of other loaders.
#[cfg(target_os = "linux")]
#[test]
fn any_number_of_shards_under_any_limit_on_open_files() {
    let place = Place::new();
    synthetic::write_folder(&place.path("many"), 3, 20, 32, 2, |_| ()).unwrap();
    place.run("pack many set --shard-size 4096").ok();
    let shards = place.images("set").len() / 2;
    assert!(shards > 300, "{shards} shards");
    place.run("train --data many --arch tiny.toml --epochs 2 --out folder").ok();
    let limits = ["ulimit -S -n 64", "ulimit -n 70", "ulimit -n 90"];
    let flags = ["", "", "--io pread"];
    for (i, (limit, flags)) in limits.into_iter().zip(flags).enumerate() {
        let train = format!("train --data set --arch tiny.toml --epochs 2 --out run-{i} {flags}");
        place.run_limited(limit, &train).ok();
        assert_eq!(place.results(&format!("run-{i}")), place.results("folder"), "{limit}");
    }
    // Sources too: as WebDataset's tars, and as shards.
    fs::create_dir(place.path("tars")).unwrap();
    for tar in
        place.images("set").iter().filter(|file| file.extension().is_some_and(|e| e == "tar"))
    {
        fs::copy(tar, place.path("tars").join(tar.file_name().unwrap())).unwrap();
    }
    for source in ["tars", "set"] {
        let out = format!("from-{source}");
        place.run_limited("ulimit -n 90", &format!("pack {source} {out}")).ok();
        place.run(&format!("verify {out}")).ok();
    }
    place
        .run_limited("ulimit -n 30", &format!("{TRAIN} --out few"))
        .refused(&["the limit on open files is 30", "ulimit -n 64"]);
}

/// What a container or `ulimit -v` leaves is what is free, not what the machine has (Comfy-Org/ComfyUI 15927,
/// soda-inria/tabicl 145, scylladb/seastar 413).
#[cfg(target_os = "linux")]
#[test]
fn limits_on_memory_are_known_beforehand() {
    let place = Place::new();
    let ran = place.run_limited("ulimit -v 2000000", &format!("{TRAIN} --out run --dry-run")).ok();
    let free = ran.stdout.split("wanted, ").nth(1).unwrap().split(" free").next().unwrap();
    let gigabytes: f64 = free.strip_suffix(" GB").unwrap().parse().unwrap();
    // The limit is 2.048 GB; how much of it the threads' memory has taken by then is a matter of chance.
    assert!(gigabytes <= 2.05, "{}", ran.stdout);
    assert!(ran.stdout.contains("for images that are kept (--cache-mb)"), "{}", ran.stdout);
}

/// Two studies of one kind in one folder would mix their parts (joblib/joblib 73, facebook/rocksdb 13914).
#[test]
fn two_commands_do_not_write_into_one_folder() {
    let place = Place::new();
    place.run(&format!("{TRAIN} --epochs 1 --out run")).ok();
    let probe = "study probe --checkpoint run --data data --per-class 4 --out page";
    let mut first = place.command(&format!("{probe} --seeds 100"));
    let mut first = first.stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    let patience = std::time::Instant::now();
    while !place.path("page/lock").exists() {
        assert!(patience.elapsed().as_secs() < 60, "no study in a minute");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    place
        .run(&format!("{probe} --seeds 2"))
        .refused(&["page", "another command is writing into it"]);
    first.kill().unwrap();
    first.wait().unwrap();
    place.run(&format!("{probe} --seeds 2")).ok();
}

/// A checkpoint is replaced or removed while it is read (Lightning-AI/pytorch-lightning 1366,
/// PrimeIntellect-ai/prime-rl 1584).
#[test]
fn a_run_is_read_while_it_saves() {
    let place = Place::new();
    let train = format!("{TRAIN} --epochs 100000 --save-steps 1 --keep 1 --out run");
    let mut training = place.command(&train);
    let mut training = training.stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    let patience = std::time::Instant::now();
    while !place.path("run/last").exists() {
        assert!(patience.elapsed().as_secs() < 60, "no checkpoint in a minute");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    for turn in 0..60 {
        let checkpoint = ["run", "run/last", "run/best"][turn % 3];
        place.run(&format!("inspect {checkpoint}")).ok();
    }
    training.kill().unwrap();
    training.wait().unwrap();
}

/// Files and folders are as the user's mask says, none more open (huggingface/safetensors 782,
/// huggingface/huggingface_hub 1215).
#[test]
fn the_file_mask_is_kept_to() {
    use std::os::unix::fs::PermissionsExt;
    fn modes(folder: &Path, found: &mut Vec<u32>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            if metadata.is_symlink() {
                continue;
            }
            found.push(metadata.permissions().mode() & 0o777);
            if metadata.is_dir() {
                modes(&path, found);
            }
        }
    }
    let place = Place::new();
    for (mask, file, folder) in [("077", 0o600, 0o700), ("027", 0o640, 0o750)] {
        for (out, command) in [
            ("run", format!("{TRAIN} --epochs 1 --out run")),
            ("set", "pack data set".to_owned()),
            ("page", "study filters --checkpoint run --out page".to_owned()),
        ] {
            place.run_limited(&format!("umask {mask}"), &command).ok();
            let mut found = Vec::new();
            modes(&place.path(out), &mut found);
            assert!(!found.is_empty());
            assert!(found.iter().all(|mode| [file, folder].contains(mode)), "{out}: {found:?}");
            if out != "run" {
                fs::remove_dir_all(place.path(out)).unwrap();
            }
        }
        fs::remove_dir_all(place.path("run")).unwrap();
    }
}

/// What a page says of paths is what others may read.
#[test]
fn pages_do_not_tell_where_a_user_keeps_data() {
    let place = Place::new();
    place.run(&format!("{TRAIN} --epochs 1 --out run")).ok();
    let [data, run] = ["data", "run"].map(|name| place.path(name).display().to_string());
    let home = place.path("").display().to_string();
    let home = home.trim_end_matches('/');
    for study in ["learnt", "features", "filters"] {
        place.run(&format!("study {study} --checkpoint {run}/last --data {data}")).ok();
    }
    let image = place.images(place.images("data/val")[0].to_str().unwrap()).remove(0);
    let image = image.display();
    for study in ["occlusion", "sanity", "invariance"] {
        place.run(&format!("study {study} --checkpoint {run}/last {image}")).ok();
    }
    let ensemble = format!("study ensemble --checkpoint {run}/last {run}/best --data {data}");
    place.run(&format!("{ensemble} --out run/report/ensemble")).ok();
    place.run(&format!("project {run} {image} --out run/report/projections")).ok();
    place.run(&format!("study report {run}")).ok();
    fn look(folder: &Path, home: &str) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                look(&path, home);
            } else {
                let text = String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned();
                assert!(!text.contains(home), "{}", path.display());
            }
        }
    }
    look(&place.path("run/report"), home);
    let page = fs::read_to_string(place.path("run/report/learnt/index.html")).unwrap();
    assert!(page.contains("run/last") && page.contains("data, val"), "{page}");
}

/// Without it nobody knows whose shards these are: they are no source to be packed again.
#[test]
fn a_set_that_has_lost_its_manifest_is_called_so() {
    let place = Place::new();
    place.run("pack data set").ok();
    fs::remove_file(place.path("set/manifest.json")).unwrap();
    let words = ["manifest.json: is missing", "remove the whole set"];
    place.run("train --data set --arch tiny.toml --out run").refused(&words);
    place.run("pack set other").refused(&words);
}

/// What an interrupted save has left may be what fills the disk.
#[test]
fn leftovers_go_before_anything_is_written() {
    let place = Place::new();
    place.run(&format!("{TRAIN} --epochs 1 --out run")).ok();
    fs::create_dir(place.path("run/step-9.tmp")).unwrap();
    let ran = place.run_limited("ulimit -f 0", &format!("{TRAIN} --epochs 2 --out run --resume"));
    ran.refused(&["cannot write"]);
    assert!(!place.path("run/step-9.tmp").exists());
}

#[test]
fn an_unfinished_packing_is_called_so() {
    let place = Place::new();
    place.run("pack data set").ok();
    fs::rename(place.path("set/manifest.json"), place.path("set/plan.json")).unwrap();
    for command in ["inspect set", "train --data set --arch tiny.toml --out run"] {
        place.run(command).refused(&["packing was not ended", "run the same `zfnet pack`"]);
    }
}
