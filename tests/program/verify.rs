//! `zfnet verify` and `zfnet inspect` on sets of shards: whole ones, and ones that are damaged in all
//! the ways that can be thought of. A check that is named here finds what is named beside it.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::common::program::{Place, TRAIN, VAL};
use serde_json::Value;
use xxhash_rust::xxh3::xxh3_64;
use zfnet::data::shard::index::{Entry, Index};
use zfnet::data::verify::verify;

/// A set of several shards.
struct Set {
    place: Place,
    extension: &'static str,
}

impl Set {
    fn new(flags: &str) -> Self {
        let place = Place::new();
        place.run(&format!("pack data set --shard-size 20kB {flags}")).ok();
        let extension = if flags.contains("raw") { "raw" } else { "tar" };
        let set = Set { place, extension };
        assert!(set.shard(2).exists(), "several shards");
        set
    }

    fn file(&self, name: &str) -> PathBuf {
        self.place.path("set").join(name)
    }

    fn shard(&self, number: usize) -> PathBuf {
        self.file(&format!("train-{number:06}.{}", self.extension))
    }

    fn index(&self, number: usize) -> Index {
        Index::parse(&fs::read(self.shard(number).with_extension("idx")).unwrap()).unwrap()
    }

    fn manifest(&self) -> Value {
        serde_json::from_slice(&fs::read(self.file("manifest.json")).unwrap()).unwrap()
    }

    /// Changes bytes of a file, verifies, and puts them back.
    #[track_caller]
    fn with(&self, name: &str, change: impl FnOnce(&mut Vec<u8>), expected: &[[&str; 3]]) {
        let path = self.file(name);
        let good = fs::read(&path).unwrap();
        let mut bad = good.clone();
        change(&mut bad);
        assert_ne!(good, bad);
        fs::write(&path, bad).unwrap();
        self.finds(expected);
        fs::write(&path, good).unwrap();
    }

    /// Changes the manifest as whoever packed the set could have, verifies, and puts it back.
    #[track_caller]
    fn with_manifest(&self, change: impl FnOnce(&mut Value), expected: &[[&str; 3]]) {
        let change = |text: &mut Vec<u8>| {
            let mut manifest: Value = serde_json::from_slice(text).unwrap();
            change(&mut manifest);
            *text = serde_json::to_vec(&manifest).unwrap();
        };
        self.with("manifest.json", change, expected);
    }

    /// Changes the first training shard and its index, and makes all hashes fit, as a program that
    /// packs something wrong would. (The number of images must stay.)
    #[track_caller]
    fn forge(&self, change: impl FnOnce(&mut Vec<u8>, &mut Index), expected: &[[&str; 3]]) {
        let paths = [self.shard(0), self.shard(0).with_extension("idx")];
        let good = paths.clone().map(|path| fs::read(path).unwrap());
        let (mut shard, mut index) = (good[0].clone(), self.index(0));
        change(&mut shard, &mut index);
        (index.shard_bytes, index.shard_xxh3) = (shard.len() as u64, xxh3_64(&shard));
        fs::write(&paths[0], &shard).unwrap();
        fs::write(&paths[1], index.to_bytes()).unwrap();
        let manifest = |manifest: &mut Value| {
            let mark = &mut manifest["train"][0];
            mark["bytes"] = shard.len().into();
            mark["xxh3"] = format!("{:016x}", xxh3_64(&shard)).into();
            mark["index_xxh3"] = format!("{:016x}", xxh3_64(&index.to_bytes())).into();
            manifest["forged"] = true.into();
        };
        self.with_manifest(manifest, expected);
        paths.iter().zip(good).for_each(|(path, good)| fs::write(path, good).unwrap());
    }

    /// Verifies: each problem, and no other, has this file, this key and these words.
    #[track_caller]
    fn finds(&self, expected: &[[&str; 3]]) {
        let ran = self.place.run("verify set --json");
        assert_eq!(ran.code, Some(1), "{}", ran.stderr);
        let report: Value = serde_json::from_str(&ran.stdout).expect(&ran.stderr);
        let problems = report["problems"].as_array().unwrap();
        let fits = problems.iter().zip(expected).all(|(problem, [file, key, what])| {
            problem["file"] == *file
                && problem["key"].as_str().unwrap_or_default() == *key
                && problem["what"].as_str().unwrap().contains(what)
        });
        assert!(fits && problems.len() == expected.len(), "{problems:#?}");
        let text = self.place.run("verify set").stdout;
        assert!(!text.contains('\u{1b}'), "what is in a file drives the terminal");
        assert!(expected.iter().all(|[file, key, what]| {
            let key = key.replace('\u{1b}', "\u{fffd}");
            text.lines().any(|l| l.starts_with(file) && l.contains(&key) && l.contains(what))
        }));
        let advice = match expected.iter().any(|[file, ..]| *file == "manifest.json") {
            true => "remove the whole set and run the same `zfnet pack` again",
            false => "remove the damaged files and run the same `zfnet pack` into this folder",
        };
        assert!(text.contains(advice), "{text}");
    }
}

/// An index with other entries or names.
fn rewrite(index: &mut Index, change: impl Fn(usize, &mut Entry, &mut String)) {
    let old = std::mem::take(index);
    for (place, &entry) in old.entries().iter().enumerate() {
        let (mut entry, mut name) = (entry, old.name(place).to_owned());
        change(place, &mut entry, &mut name);
        index.push(entry, &name);
    }
}

#[test]
fn a_good_set_is_good() {
    for flags in ["", "--resize 16", "--raw --resize 20", "--no-shuffle"] {
        let set = Set::new(flags);
        let ran = set.place.run("verify set --threads 2").ok();
        assert!(ran.stdout.starts_with("80 images in "), "{}", ran.stdout);
        assert!(ran.stdout.trim_end().ends_with(": all good"), "{}", ran.stdout);
        let report = set.place.run("verify set --json").json();
        assert_eq!(report["images"], 10 * (TRAIN + VAL));
        let manifest = set.manifest();
        let shards =
            || ["train", "val"].iter().flat_map(|split| manifest[split].as_array().unwrap());
        assert_eq!(report["shards"], shards().count());
        assert_eq!(report["bytes"], shards().map(|s| s["bytes"].as_u64().unwrap()).sum::<u64>());
        assert_eq!(report["problems"], Value::Array(Vec::new()));
    }
}

#[test]
fn every_flipped_byte_is_found() {
    let set = Set::new("");
    let (shard, index) = ("train-000001.tar", set.index(1));
    let entry = index.entries()[3];
    let (name, at) = (index.name(3), entry.offset as usize);
    let padded = at + (entry.bytes as usize).next_multiple_of(512);
    let hash = [shard, "", "expected xxh3"];
    let flip = |at: usize| move |bytes: &mut Vec<u8>| bytes[at] ^= 1;
    // An image; its header; the padding behind it; the header of its class, and that itself.
    set.with(shard, flip(at + 100), &[hash, [shard, name, "damaged: expected CRC-32C"]]);
    set.with(shard, flip(at - 512), &[hash, [shard, name, "expected a member's header"]]);
    assert!(!entry.bytes.is_multiple_of(512));
    set.with(shard, flip(padded - 1), &[hash]);
    set.with(shard, flip(padded), &[hash, [shard, name, "expected a member's header"]]);
    set.with(shard, flip(padded + 512), &[hash, [shard, name, "in its .cls, found"]]);
    let behind = [shard, "", "and more data at byte"];
    set.with(shard, |bytes| *bytes.last_mut().unwrap() = 1, &[behind, hash]);

    let of_index = ["train-000001.idx", "", "expected xxh3"];
    set.with("train-000001.idx", flip(60), &[of_index]);
    set.with("train-000001.idx", |bytes| bytes.truncate(20), &[of_index]);
    set.with("mean.safetensors", flip(500), &[["mean.safetensors", "", "expected xxh3"]]);

    let raw = Set::new("--raw --resize 20");
    let (shard, index) = ("train-000001.raw", raw.index(1));
    let (name, at) = (index.name(1), index.entries()[1].offset as usize);
    let hash = [shard, "", "expected xxh3"];
    raw.with(shard, flip(at), &[hash, [shard, name, "damaged: expected CRC-32C"]]);
    raw.with(shard, flip(at + 1200), &[hash]);
}

#[test]
fn what_is_lost_or_in_the_wrong_place_is_found() {
    let set = Set::new("");
    let lost = |name: &str, expected: &[[&str; 3]]| {
        let (path, aside) = (set.file(name), set.place.path("aside"));
        fs::rename(&path, &aside).unwrap();
        set.finds(expected);
        // Nor is a folder a file.
        fs::create_dir(&path).unwrap();
        let ran = set.place.run("verify set");
        assert_eq!(ran.code, Some(1));
        assert!(ran.stdout.contains(name), "{}", ran.stdout);
        fs::remove_dir(&path).unwrap();
        fs::rename(&aside, &path).unwrap();
    };
    lost("train-000001.tar", &[["train-000001.tar", "", "is missing"]]);
    lost("val-000000.idx", &[["val-000000.idx", "", "is missing"]]);
    lost("mean.safetensors", &[["mean.safetensors", "", "is missing"]]);
    set.with(
        "train-000000.tar",
        |bytes| bytes.truncate(9000),
        &[["train-000000.tar", "", "bytes, found 9000"]],
    );
    set.with(
        "train-000000.tar",
        |bytes| bytes.push(0),
        &[["train-000000.tar", "", "bytes, found"]],
    );

    let swap = |a: &str, b: &str| {
        let aside = set.place.path("aside");
        fs::rename(set.file(a), &aside).unwrap();
        fs::rename(set.file(b), set.file(a)).unwrap();
        fs::rename(aside, set.file(b)).unwrap();
    };
    for (a, b) in [("train-000000.tar", "train-000001.tar"), ("train-000000.idx", "val-000000.idx")]
    {
        swap(a, b);
        let ran = set.place.run("verify set");
        assert_eq!(ran.code, Some(1));
        for name in [a, b] {
            assert!(ran.stdout.lines().any(|line| line.starts_with(name)), "{}", ran.stdout);
        }
        swap(a, b);
    }
    set.place.run("verify set").ok();

    // What is found can be mended as it says.
    let good = fs::read(set.file("train-000001.tar")).unwrap();
    fs::remove_file(set.file("train-000001.tar")).unwrap();
    set.place.run("pack data set --shard-size 20kB").ok();
    assert_eq!(good, fs::read(set.file("train-000001.tar")).unwrap());
    set.place.run("verify set").ok();
}

#[test]
fn a_manifest_that_does_not_fit_its_shards_is_found() {
    let set = Set::new("");
    let folder =
        |class: usize| set.manifest()["classes"][class]["folder"].as_str().unwrap().to_owned();
    let counts = [5, 3].map(|class| format!("of class {}, found {TRAIN} in", folder(class)));
    set.with_manifest(
        |manifest| {
            manifest["classes"][3]["train"] = (TRAIN + 1).into();
            manifest["classes"][5]["train"] = (TRAIN - 1).into();
        },
        &[["manifest.json", "", &counts[0]], ["manifest.json", "", &counts[1]]],
    );
    set.with_manifest(
        |manifest| {
            let images = manifest["train"][0]["images"].as_u64().unwrap();
            manifest["train"][0]["images"] = (images + 1).into();
            manifest["classes"][3]["train"] = (TRAIN + 1).into();
        },
        &[["train-000000.idx", "", "expected the index of a shard of"]],
    );
    // More than any memory holds.
    set.with_manifest(
        |manifest| {
            let rest: u64 = 10 * TRAIN as u64 - manifest["train"][0]["images"].as_u64().unwrap();
            manifest["train"][0]["images"] = (u64::from(u32::MAX) - rest).into();
            manifest["classes"][3]["train"] = (u32::MAX - 9 * TRAIN as u32).into();
        },
        &[["train-000000.idx", "", "expected the index of a shard of"]],
    );
    set.with_manifest(
        |manifest| manifest["mean"]["side"] = 257.into(),
        &[["mean.safetensors", "", "expected `mean`, f32 [257, 257, 3]"]],
    );
    set.with_manifest(
        |manifest| manifest["val"][0]["xxh3"] = "0".into(),
        &[
            ["val-000000.idx", "", "expected the index of a shard of"],
            ["val-000000.tar", "", "expected xxh3 0"],
        ],
    );

    let path = set.file("manifest.json");
    let good = fs::read(&path).unwrap();
    let refused = |change: &dyn Fn(&mut Value), words: &[&str]| {
        let mut manifest = set.manifest();
        change(&mut manifest);
        fs::write(&path, manifest.to_string()).unwrap();
        set.place.run("verify set").refused(words);
        set.place.run("inspect set").refused(words);
        fs::write(&path, &good).unwrap();
    };
    for file in ["../data/secret", "/etc/passwd", "..", "", "a/b"] {
        let words = &["manifest.json", "expected the name of a file of the set"];
        refused(&|manifest| manifest["train"][0]["file"] = file.into(), words);
        refused(&|manifest| manifest["mean"]["file"] = file.into(), words);
    }
    refused(&|manifest| manifest["train"][0]["images"] = 1.into(), &["as many train images"]);
    refused(&|manifest| manifest["version"] = 2.into(), &["of version 2"]);
    fs::write(&path, &good[..good.len() / 2]).unwrap();
    set.place.run("verify set").refused(&["manifest.json", "expected the manifest"]);
    fs::remove_file(&path).unwrap();
    set.place.run("verify set").refused(&["manifest.json"]);
}

/// Hashes that fit prove nothing but that nothing has changed since.
#[test]
fn what_was_packed_wrong_is_found_though_all_hashes_fit() {
    let set = Set::new("");
    let shard = "train-000000.tar";
    let of_index = "train-000000.idx";
    let index = set.index(0);
    let names: Vec<&str> = (0..index.len()).map(|place| index.name(place)).collect();
    let (at, bytes) = (index.entries()[1].offset as usize, index.entries()[1].bytes as usize);

    // An image that is none, with the right CRC.
    set.forge(
        |shard, index| {
            shard[at..at + bytes].fill(b'x');
            let crc32c = crc32c::crc32c(&shard[at..at + bytes]);
            rewrite(index, |place, entry, _| {
                if place == 1 {
                    entry.crc32c = crc32c;
                }
            });
        },
        &[[shard, names[1], "only JPEG and PNG are read"]],
    );
    // Numbers and classes that are taken or beyond, or of others.
    let entry = |change: &dyn Fn(&mut Entry), expected: &[[&str; 3]]| {
        let change = |_: &mut Vec<u8>, index: &mut Index| {
            rewrite(index, |place, entry, _| {
                if place == 1 {
                    change(entry);
                }
            });
        };
        set.forge(change, expected);
    };
    let numbers = format!("numbers image {} as", names[1]);
    let class = "images of class";
    let lacks = ["manifest.json", "", class];
    let taken = index.entries()[0].number;
    entry(&|entry| entry.number = taken, &[lacks, [of_index, "", &numbers]]);
    entry(&|entry| entry.number = u32::MAX, &[lacks, [of_index, "", &numbers]]);
    let text = "expected class 4294967295 in its .cls";
    entry(
        &|entry| entry.class = u32::MAX,
        &[lacks, [of_index, "", &numbers], [shard, names[1], text]],
    );
    entry(
        &|entry| entry.class = (entry.class + 1) % 10,
        &[lacks, lacks, [shard, names[1], "in its .cls, found"]],
    );
    // Places: within another image, in front of it, of no bytes.
    let before = index.entries()[0].offset;
    let crc = [shard, names[1], "damaged: expected CRC-32C"];
    entry(&|entry| entry.offset += 1, &[crc, [shard, names[1], "has a member"]]);
    entry(
        &|entry| entry.offset = before,
        &[[shard, names[1], "expected it behind"], [shard, names[1], "has a member"]],
    );
    entry(
        &|entry| entry.bytes = 0,
        &[[shard, names[1], "expected 1 to"], [shard, names[1], "has a member"]],
    );
    // Another image's name; a name that would lead elsewhere.
    for other in ["x/y.jpg", "../\u{1b}[2J"] {
        set.forge(
            |_, index| {
                rewrite(index, |place, _, name| {
                    if place == 1 {
                        *name = other.into()
                    }
                })
            },
            &[[shard, other, "has a member"]],
        );
    }
    // Members that the index does not have, and no members at all.
    set.forge(
        |shard, _| {
            let member = shard[at - 512..at + bytes.next_multiple_of(512)].to_vec();
            shard.truncate(shard.len() - 1024);
            shard.extend(member);
            shard.resize(shard.len() + 1024, 0);
        },
        &[[shard, "", "expected no more than the index has"]],
    );
    let third = index.entries()[2].offset as usize - 512;
    set.forge(
        |shard, _| shard[third..third + 512].fill(0),
        &[[shard, names[2], "and more data at byte"]],
    );

    let raw = Set::new("--raw --resize 20");
    let name = raw.index(0).name(0).to_owned();
    let first = |change: &dyn Fn(&mut Entry), what: &str| {
        let change = |_: &mut Vec<u8>, index: &mut Index| {
            rewrite(index, |place, entry, _| {
                if place == 0 {
                    change(entry);
                }
            });
        };
        raw.forge(change, &[["train-000000.raw", &name, what]]);
    };
    first(&|entry| entry.bytes -= 1, "expected 20x20 pixels, found 1199 bytes");
    first(&|entry| entry.offset = 1, "expected it at a multiple of 4096, found it at 1");
}

#[test]
fn it_says_how_far_it_is_and_stops_when_asked() {
    let set = Set::new("");
    let stop = AtomicUsize::new(0);
    let mut steps = Vec::new();
    let report = verify(&set.file(""), &stop, &mut |done, of| steps.push((done, of))).unwrap();
    assert!(report.problems.is_empty());
    assert!(steps.is_sorted() && steps.iter().all(|(_, of)| *of == 80), "{steps:?}");
    assert_eq!(steps.last(), Some(&(80, 80)));

    let after_one = |_, _| stop.store(2, Ordering::Relaxed);
    let report = verify(&set.file(""), &stop, &mut { after_one }).unwrap();
    assert_eq!((report.shards, report.images), (1, set.index(0).len()));
    assert!(report.problems.is_empty(), "what was not looked at is no problem");
}

/// The first problems are enough on a screen.
#[test]
fn many_problems_are_counted() {
    let set = Set::new("--raw --resize 20");
    let mut images = 0;
    for number in 0.. {
        let path = set.shard(number);
        if !path.exists() {
            break;
        }
        let mut bytes = fs::read(&path).unwrap();
        bytes.iter_mut().for_each(|byte| *byte ^= 0x80);
        fs::write(&path, bytes).unwrap();
        images += set.index(number).len() + 1;
    }
    let ran = set.place.run("verify set");
    assert_eq!(ran.code, Some(1));
    let shown = ran.stdout.lines().filter(|line| line.starts_with("train-")).count();
    assert_eq!(shown, 50);
    assert!(ran.stdout.contains(&format!("... and {} more\n", images - 50)), "{}", ran.stdout);
    assert!(ran.stdout.contains("remove the damaged files and run the same `zfnet pack`"));
}

#[test]
fn inspect_shows_what_a_set_holds() {
    for (flags, form) in [
        ("", "images as they were, in tars"),
        ("--resize 16 --quality 80", "JPEG of quality 80, shortest side 16, in tars"),
        ("--raw --resize 20", "raw pixels, 20x20"),
    ] {
        let set = Set::new(flags);
        let manifest = set.manifest();
        assert_eq!(set.place.run("inspect set --json").json(), manifest);
        let shown = set.place.run("inspect set").ok().stdout;
        let line = |words: &[&str]| {
            let found = shown.lines().any(|l| words.iter().all(|word| l.contains(word)));
            assert!(found, "{words:?} in {shown}");
        };
        line(&["set: ", form]);
        line(&["source ", "ImageFolder"]);
        for field in ["decoder", "resizer", "program"] {
            line(&[field, manifest[field].as_str().unwrap()]);
        }
        line(&["rejected", " 0"]);
        line(&["mean ", "mean.safetensors"]);
        line(&["train: ", "shard(s)", " 60"]);
        line(&["val: ", "shard(s)", " 20"]);
        for shard in manifest["train"].as_array().unwrap() {
            line(&[shard["file"].as_str().unwrap(), &shard["bytes"].to_string()]);
        }
        for (class, shows) in [(0, true), (4, true), (5, false), (7, false), (8, true), (9, true)] {
            let folder = manifest["classes"][class]["folder"].as_str().unwrap();
            assert_eq!(shown.contains(&format!("{class:<6} {folder}")), shows, "{shown}");
        }
        line(&["..."]);
    }
}
