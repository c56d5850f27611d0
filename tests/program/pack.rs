//! `zfnet pack` as a user runs it: what lies in a set, that the same source makes the same bytes
//! however often packing was killed, and what is refused.
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::common::program::{Place, TRAIN, VAL};
use jpeg_encoder::{ColorType, Encoder};
use zfnet::data::Split;
use zfnet::data::decode::{decode, prepare};
use zfnet::data::folder::ImageFolder;
use zfnet::data::images::{Images, ReadOptions};
use zfnet::data::shard::ShardSet;
use zfnet::data::shard::index::{Entry, Index};
use zfnet::data::shard::manifest::Manifest;
use zfnet::model::Canvas;

/// Makes several shards of the images of a [`Place`].
const PACK: &str = "pack data set --shard-size 20kB";

type Files = BTreeMap<String, Vec<u8>>;

/// All files of a folder.
fn files(folder: &Path) -> Files {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    entries.map(|e| (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap())).collect()
}

fn assert_same(a: &Files, b: &Files) {
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    for (name, bytes) in a {
        assert!(*bytes == b[name], "{name} differs");
    }
}

/// The images of a split, as the indices say where they lie: shard, name, entry and bytes.
fn images(set: &Path, split: Split) -> Vec<(String, String, Entry, Vec<u8>)> {
    let mut images = Vec::new();
    for mark in Manifest::read(set).unwrap().shards(split) {
        let index = Index::parse(&fs::read(set.join(mark.index_file())).unwrap()).unwrap();
        let shard = fs::read(set.join(&mark.file)).unwrap();
        assert_eq!((index.len(), index.shard_bytes), (mark.images as usize, shard.len() as u64));
        for (place, entry) in index.entries().iter().enumerate() {
            let start = entry.offset as usize;
            let bytes = shard[start..start + entry.bytes as usize].to_vec();
            assert_eq!(entry.crc32c, crc32c::crc32c(&bytes));
            images.push((mark.file.clone(), index.name(place).to_owned(), *entry, bytes));
        }
    }
    images
}

/// `tar` with arguments, in a folder; what it printed, by lines.
fn tar(folder: &Path, arguments: &[&str]) -> Vec<String> {
    let output = Command::new("tar").args(arguments).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "tar {arguments:?}");
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

fn write_jpeg(path: &Path) {
    let pixels: Vec<u8> = (0..3 * 24 * 22).map(|i| (i * 37 % 251) as u8).collect();
    let mut bytes = Vec::new();
    Encoder::new(&mut bytes, 90).encode(&pixels, 24, 22, ColorType::Rgb).unwrap();
    fs::write(path, bytes).unwrap();
}

#[test]
fn tools_that_read_tars_find_the_source_files() {
    let place = Place::new();
    let class = place.images("data/train").remove(3);
    let first = place.images(class.to_str().unwrap()).remove(0);
    // Dots, names that differ by their endings or in what dots become, endings that lie.
    for name in ["a.b.JPEG", "a.b.png", "a_b.png", "a_b-2.png", "x.jpg"] {
        fs::copy(&first, class.join(name)).unwrap();
    }
    for name in ["photo.JPEG", "y.png"] {
        write_jpeg(&class.join(name));
    }
    place.run(PACK).ok();
    let set = place.path("set");
    let classes: Vec<_> = place
        .images("data/train")
        .iter()
        .map(|class| class.file_name().unwrap().to_str().unwrap().to_owned())
        .collect();

    for (split, count) in [(Split::Train, 10 * TRAIN + 7), (Split::Val, 10 * VAL)] {
        let packed = images(&set, split);
        assert_eq!(packed.len(), count);
        let shards: BTreeSet<_> = packed.iter().map(|(shard, ..)| shard).collect();
        assert!(shards.len() >= 3, "{} shards", shards.len());
        let mut members = Vec::new();
        let (out, source) = (place.path(split.name()), place.path("data").join(split.name()));
        fs::create_dir(&out).unwrap();
        for shard in shards {
            let path = set.join(shard);
            assert!(fs::metadata(&path).unwrap().len() <= 20_000);
            members.extend(tar(&out, &["tf", path.to_str().unwrap()]));
            tar(&out, &["xf", path.to_str().unwrap()]);
        }
        assert_eq!(members.len(), 2 * count);
        let different: BTreeSet<_> = members.iter().collect();
        assert_eq!(different.len(), members.len(), "two samples with one key");
        for (pair, (_, name, entry, bytes)) in members.chunks(2).zip(&packed) {
            let original = fs::read(source.join(name)).unwrap();
            assert_eq!(fs::read(out.join(&pair[0])).unwrap(), original, "{name}");
            assert_eq!(*bytes, original, "{name}");
            let folder = name.split('/').next().unwrap();
            assert_eq!(classes[entry.class as usize], folder);
            assert_eq!(fs::read_to_string(out.join(&pair[1])).unwrap(), entry.class.to_string());
            let extension = if original.starts_with(b"\x89PNG") { "png" } else { "jpg" };
            let key = pair[0].strip_suffix(&format!(".{extension}")).expect(&pair[0]);
            assert_eq!(pair[1], format!("{key}.cls"));
            assert!(key.starts_with(&format!("{folder}/")) && !key.contains('.'), "{key}");
        }
        // Numbered as the folder lists them; not lying in that order.
        let mut numbers: Vec<_> = packed.iter().map(|(_, name, e, _)| (e.number, name)).collect();
        assert!(!numbers.is_sorted(), "shuffled");
        numbers.sort_unstable();
        assert!(numbers.iter().map(|(number, _)| *number).eq(0..count as u32));
        let folder = ImageFolder::open(&place.path("data")).unwrap();
        let listed = if split == Split::Train { folder.train } else { folder.val };
        for ((_, name), sample) in numbers.iter().zip(listed) {
            assert_eq!(source.join(name), sample.path);
        }
    }

    place.run("pack data plain --no-shuffle").ok();
    assert!(images(&place.path("plain"), Split::Train).is_sorted_by_key(|(.., e, _)| e.number));
}

#[test]
fn the_same_source_makes_the_same_bytes() {
    let place = Place::new();
    // Elsewhere and at another time, it is the same source.
    let [data, copy] = ["data", "copy"].map(|name| place.path(name));
    assert!(Command::new("cp").arg("-r").args([data, copy]).status().unwrap().success());
    for flags in ["", "--resize 16 --quality 80", "--raw --resize 20"] {
        let pack = |data: &str, out: &str, threads: u32| {
            let command = format!("pack {data} {out} --shard-size 20kB --threads {threads}");
            place.run(&format!("{command} {flags}")).ok();
            let files = files(&place.path(out));
            fs::remove_dir_all(place.path(out)).unwrap();
            files
        };
        let one = pack("data", "one", 1);
        assert!(one.len() >= 8, "several shards: {:?}", one.keys());
        let text = String::from_utf8_lossy(&one["manifest.json"]);
        assert!(!text.contains(place.path("").to_str().unwrap()), "{text}");
        assert_same(&one, &pack("data", "four", 4));
        assert_same(&one, &pack("copy", "again", 3));
    }
}

#[test]
fn raw_squares_and_means_are_those_of_training() {
    let place = Place::new();
    let folder = ImageFolder::open(&place.path("data")).unwrap();
    for (flags, side) in [("", 256), ("--resize 16 --quality 80", 16), ("--raw --resize 14", 14)] {
        let ran = place.run(&format!("pack data set --shard-size 30kB {flags}")).ok();
        let set = place.path("set");
        let size = |text: &str| -> u64 {
            let bytes = text.split_once(" bytes)").expect(text).0;
            bytes.rsplit('(').next().unwrap().parse().unwrap()
        };
        let told = size(ran.stderr.lines().find(|line| line.starts_with("writing")).unwrap());
        let shards = files(&set);
        let shards =
            shards.iter().filter(|(name, _)| name.ends_with("tar") || name.ends_with("raw"));
        let written: u64 = shards.map(|(_, bytes)| bytes.len() as u64).sum();
        let resized = flags.contains("quality");
        assert_eq!(ran.stderr.contains("writing about"), resized);
        assert!(if resized { told.abs_diff(written) < written / 5 } else { told == written });

        let mut sums = vec![0_u64; 3 * side * side];
        let mut square = vec![0; 3 * side * side];
        let packed = images(&set, Split::Train);
        for (shard, name, entry, bytes) in &packed {
            let original = fs::read(place.path("data/train").join(name)).unwrap();
            prepare(&decode(&original).unwrap(), side, &mut square);
            if shard.ends_with(".raw") {
                assert_eq!(entry.offset % 4096, 0);
                assert_eq!(*bytes, square, "{name}");
            } else if resized {
                let image = decode(bytes).unwrap();
                assert_eq!((image.width, image.height), (16, 16));
                let mut twice = vec![0; square.len()];
                prepare(&image, side, &mut twice);
                let off: u32 =
                    square.iter().zip(&twice).map(|(a, b)| u32::from(a.abs_diff(*b))).sum();
                assert!((off as usize) < 24 * square.len(), "{name} is another picture");
                square = twice;
            }
            sums.iter_mut().zip(&square).for_each(|(sum, pixel)| *sum += u64::from(*pixel));
        }
        let wanted: Vec<f32> =
            sums.iter().map(|sum| (*sum as f64 / packed.len() as f64) as f32).collect();
        let mean = ShardSet::open(&set).unwrap().mean(side).unwrap().expect("of this side");
        assert!(mean == wanted);
        if !resized {
            let options = ReadOptions {
                canvas: Canvas::square(side),
                max_bad: 0.0,
                cache_bytes: 0,
                io: None,
            };
            let images = Images::new(folder.train.clone(), options);
            assert!(mean == images.mean(|_| Ok(true)).unwrap().unwrap());
        }
        fs::remove_dir_all(set).unwrap();
    }
}

#[test]
fn unusable_files_are_left_out_and_named() {
    let place = Place::new();
    let classes = place.images("data/train");
    write_jpeg(&classes[2].join("short.jpg"));
    let bytes = fs::read(classes[2].join("short.jpg")).unwrap();
    fs::write(classes[2].join("short.jpg"), &bytes[..bytes.len() / 2]).unwrap();
    fs::write(classes[5].join("empty.png"), "").unwrap();
    let val = place.images("data/val").remove(7);
    fs::write(val.join("text.jpeg"), "some words").unwrap();

    let ran = place.run(PACK).refused(&["2 of 62 train files", "0.01", "--max-bad"]);
    let before = ran.stderr;
    let last = before.rsplit("the last one: ").next().unwrap();
    assert!(last.contains("short.jpg") || last.contains("empty.png"), "{last}");

    let ran = place.run(&format!("{PACK} --max-bad 0.1")).ok();
    let set = place.path("set");
    let text = fs::read_to_string(set.join("rejected.tsv")).unwrap();
    let lines: Vec<Vec<_>> = text.lines().map(|line| line.split('\t').collect()).collect();
    let name = |class: &Path, file: &str| {
        format!("{}/{file}", class.file_name().unwrap().to_str().unwrap())
    };
    let wanted = [
        ("train", name(&classes[2], "short.jpg"), "cut short"),
        ("train", name(&classes[5], "empty.png"), "empty file"),
        ("val", name(&val, "text.jpeg"), "only JPEG and PNG"),
    ];
    assert_eq!(lines.len(), 3, "{text}");
    for (line, (split, name, reason)) in lines.iter().zip(&wanted) {
        assert!(line[..2] == [*split, name] && line[2].contains(reason), "{text}");
        let told = format!("{before}{}", ran.stderr); // a shard that is there is not made again
        assert!(told.contains(&format!("left out: {split}/{name}: ")), "{told}");
    }
    let manifest = Manifest::read(&set).unwrap();
    assert_eq!(manifest.rejected, 3);
    let counts = manifest.classes.iter().map(|class| (class.train, class.val));
    assert!(counts.eq([(TRAIN as u32, VAL as u32); 10]));
    assert_eq!((manifest.images(Split::Train), manifest.images(Split::Val)), (60, 20));
    let mut numbers: Vec<_> =
        images(&set, Split::Train).iter().map(|(_, _, entry, _)| entry.number).collect();
    numbers.sort_unstable();
    assert!(numbers.into_iter().eq(0..60), "no gaps");

    for image in place.images(classes[4].to_str().unwrap()) {
        fs::write(image, "some words").unwrap();
    }
    let lost = classes[4].file_name().unwrap().to_str().unwrap();
    place
        .run("pack data lost --max-bad 0.5 --shard-size 8kB")
        .refused(&["none of the training images", lost]);
    assert!(!place.path("lost/manifest.json").exists());
}

#[test]
fn what_cannot_be_packed_is_refused() {
    let place = Place::new();
    place.run("pack nowhere set").refused(&["nowhere", "does not exist", "train/CLASS"]);
    fs::create_dir(place.path("empty")).unwrap();
    place.run("pack empty set").refused(&["empty", "no source of images", "found nothing"]);
    place.run("pack tiny.toml set").refused(&["tiny.toml", "is a file"]);
    for out in ["data", "data/train/set", "data/train", "./data/val/../val/x", "data/."] {
        place.run(&format!("pack data {out}")).refused(&[
            out,
            "lies in data",
            "choose a folder outside",
        ]);
    }
    for (flags, words) in [
        ("--shard-size 0", ["4096", "found 0"]),
        ("--resize 0", ["expected a side", "found 0"]),
        ("--resize 100000", ["expected a side", "found 100000"]),
        ("--raw --resize 100000", ["expected a side", "found 100000"]),
        ("--resize 9 --quality 0", ["expected a quality", "found 0"]),
        ("--max-bad 2", ["--max-bad", "found 2"]),
    ] {
        place.run(&format!("pack data set {flags}")).refused(&words);
    }
    for (flags, word) in [
        ("--shard-size 1XB", "found \"XB\""),
        ("--quality 80", "--resize"),
        ("--raw --resize 9 --quality 80", "--quality"),
        ("--threads 0", "--threads"),
    ] {
        let ran = place.run(&format!("pack data set {flags}"));
        assert!(ran.code == Some(2) && ran.stderr.contains(word), "{flags}: {}", ran.stderr);
    }
    assert!(!place.path("set").exists(), "nothing is made for what cannot be packed");

    fs::create_dir(place.path("mine")).unwrap();
    fs::write(place.path("mine/letter.txt"), "dear").unwrap();
    let refusal = &["mine", "letter.txt", "expected an empty folder"];
    place.run("pack data mine").refused(refusal);
    let left = files(&place.path("mine"));
    assert_eq!(left.keys().collect::<Vec<_>>(), ["letter.txt"]);
    place.run("pack data tiny.toml").refused(&["tiny.toml"]);

    // A finished set, and a beginning, of other options.
    place.run(PACK).ok();
    let before = files(&place.path("set"));
    place.run(&format!("{PACK} --no-shuffle")).refused(&["set", "a finished set", "other options"]);
    assert_same(&before, &files(&place.path("set")));
    fs::remove_file(place.path("data/train").join(&images(&place.path("set"), Split::Train)[0].1))
        .unwrap();
    place.run(PACK).refused(&["set", "a finished set", "another source"]);
    assert_same(&before, &files(&place.path("set")));
}

/// A disk that is full after 8 KiB of a file.
#[test]
fn full_disks_and_other_beginnings() {
    let place = Place::new();
    place.run("pack data whole --shard-size 20kB").ok();
    let full = "ulimit -f 8";
    place.run_limited(full, PACK).refused(&["cannot write", "train-000000.tar"]);
    let begun = files(&place.path("set"));
    place.run("pack data set --shard-size 30kB").refused(&[
        "set",
        "the beginning of one",
        "other options",
        "another folder",
    ]);
    let lock = String::from("lock");
    assert!(files(&place.path("set")).keys().chain([&lock]).all(|name| begun.contains_key(name)));
    place.run(PACK).ok();
    assert_same(&files(&place.path("set")), &files(&place.path("whole")));
    // Room for a shard, not for the sums beside it.
    let ran = place.run_limited("ulimit -f 400", "pack data late --shard-size 20kB");
    ran.refused(&["cannot write", "late", "train-000000.part"]);
    place.run("pack data late --shard-size 20kB").ok();
    assert_same(&files(&place.path("late")), &files(&place.path("whole")));
}

mod interrupted {
    use std::os::unix::fs::MetadataExt;
    use std::process::{Child, Stdio};
    use std::thread;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::common::Random;

    /// A set packed without disturbance, and the time it took.
    fn whole(place: &Place) -> (Files, Duration) {
        let begun = Instant::now();
        place.run("pack data whole --shard-size 20kB").ok();
        let time = begun.elapsed();
        let whole = files(&place.path("whole"));
        for name in whole.keys() {
            let ending = name.rsplit('.').next().unwrap();
            assert!(["tar", "idx", "safetensors", "json"].contains(&ending), "{name} is left");
        }
        assert!(!whole.contains_key("plan.json"));
        (whole, time)
    }

    fn start(place: &Place) -> Child {
        let mut command = place.command(PACK);
        command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Waits until a file is there or the program has ended; says whether the file came first.
    fn wait_for(path: &Path, child: &mut Child) -> bool {
        let patience = Instant::now();
        loop {
            if path.exists() {
                return true;
            }
            if child.try_wait().unwrap().is_some() {
                return false;
            }
            assert!(patience.elapsed() < Duration::from_secs(60), "no {}", path.display());
            thread::yield_now();
        }
    }

    fn signal(child: &Child, name: &str) {
        let kill = format!("kill -{name} {}", child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    #[test]
    fn kills_at_any_moment_change_nothing() {
        let place = Place::new();
        let (whole, time) = whole(&place);
        let mut random = Random(5);
        let mut kills = 0;
        loop {
            let mut child = start(&place);
            if kills < 25 {
                thread::sleep(time.mul_f64(0.3 * f64::from(random.real().abs())));
                child.kill().unwrap();
            }
            let output = child.wait_with_output().unwrap();
            if output.status.success() {
                break;
            }
            let error = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), None, "ended by an error, not by a kill: {error}");
            kills += 1;
        }
        assert!(kills >= 5, "killed {kills} times only");
        assert_same(&files(&place.path("set")), &whole);
    }

    /// At the moments that matter: each kind of file has just come to be.
    #[test]
    fn kills_when_a_file_appears_change_nothing() {
        let place = Place::new();
        let (whole, _) = whole(&place);
        let last = whole.keys().rfind(|name| name.ends_with(".tar")).unwrap();
        let set = place.path("set");
        let mut caught = 0;
        let moments = [
            "plan.json",
            "train-000000.tar.tmp",
            "train-000000.tar",
            "train-000000.part.tmp",
            "train-000000.part",
            last,
            "train-000000.idx",
            "mean.safetensors.tmp",
            "mean.safetensors",
            "manifest.json.tmp",
            "manifest.json",
        ];
        for moment in moments {
            let mut child = start(&place);
            let seen = wait_for(&set.join(moment), &mut child);
            let _ = child.kill();
            let killed = child.wait_with_output().unwrap().status.code().is_none();
            caught += u32::from(seen && killed);
            // What was done is not done again.
            let inode = || fs::metadata(set.join("train-000000.tar")).map(|file| file.ino());
            let before = if set.join("train-000000.part").exists() { inode().ok() } else { None };
            place.run(PACK).ok();
            assert!(before.is_none() || before == inode().ok(), "{moment}: packed once more");
            assert_same(&files(&set), &whole);
            fs::remove_dir_all(&set).unwrap();
        }
        // Some files last a moment only.
        assert!(caught >= 6, "caught {caught} of {}", moments.len());
    }

    #[test]
    fn a_signal_stops_and_the_same_command_goes_on() {
        let place = Place::new();
        let (whole, _) = whole(&place);
        for (name, code) in [("INT", 130), ("TERM", 143)] {
            let mut seen = false;
            for _ in 0..10 {
                let mut child = start(&place);
                wait_for(&place.path("set/train-000000.part"), &mut child);
                signal(&child, name);
                let output = child.wait_with_output().unwrap();
                let text = String::from_utf8(output.stderr).unwrap();
                if output.status.code() == Some(code) {
                    seen = true;
                    assert!(text.contains("the same command goes on"), "{text}");
                    assert!(!place.path("set/manifest.json").exists());
                } else {
                    assert_eq!(output.status.code(), Some(0), "{text}"); // it was too late
                }
                place.run(PACK).ok();
                assert_same(&files(&place.path("set")), &whole);
                fs::remove_dir_all(place.path("set")).unwrap();
                if seen {
                    break;
                }
            }
            assert!(seen, "ten times too late");
        }
    }

    #[test]
    fn a_second_packer_keeps_out() {
        let place = Place::new();
        let (whole, _) = whole(&place);
        let mut child = start(&place);
        assert!(wait_for(&place.path("set/plan.json"), &mut child));
        signal(&child, "STOP"); // so that it is at work for as long as the second one lives
        let ran = place.run(PACK);
        signal(&child, "CONT");
        ran.refused(&["set", "another packing", "wait for its end"]);
        assert!(child.wait().unwrap().success());
        assert_same(&files(&place.path("set")), &whole);
    }
}
