//! What shards are made from: ImageNet's tars, WebDataset tars and old sets, and what is refused of
//! tars that mean harm.

use std::fs;
use std::io::{Seek, SeekFrom, Write, stderr};
use std::path::Path;
use std::process::Command;

use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};
use proptest::prelude::*;
use tar::{Builder, EntryType, Header};
use tempfile::TempDir;
use zfnet_core::Result;
use zfnet_data::devkit::{Devkit, parse_meta};
use zfnet_data::pack::{Options, Plan};
use zfnet_data::shard::index::{Entry, Index};
use zfnet_data::shard::manifest::{Class, Form, Manifest, ShardMark};
use zfnet_data::source::{Item, Source};
use zfnet_data::tar::{Archive, Member};

// Six synsets with the fields of the real file, by scipy.io.savemat of a struct array of shape (6, 1),
// do_compression=True and False. Ids 1 to 4 are leaves, and do not follow the WordNet ids.
const META: &[u8] = include_bytes!("../data/meta.mat");
const META_PLAIN: &[u8] = include_bytes!("../data/meta-plain.mat");

const TRAIN: &str = "ILSVRC2012_img_train.tar";
const VAL: &str = "ILSVRC2012_img_val.tar";
const DEVKIT: &str = "ILSVRC2012_devkit_t12.tar.gz";

type Files = Vec<(String, Vec<u8>)>;

/// A tar of these files.
fn tar_of(files: &[(impl AsRef<str>, impl AsRef<[u8]>)]) -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = Header::new_gnu();
        header.set_size(bytes.as_ref().len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name.as_ref(), bytes.as_ref()).unwrap();
    }
    tar.into_inner().unwrap()
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut out = GzEncoder::new(Vec::new(), Compression::fast());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

fn folder(files: &[(&str, Vec<u8>)]) -> TempDir {
    let root = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        fs::write(root.path().join(name), bytes).unwrap();
    }
    root
}

fn open(path: &Path) -> Result<Source> {
    Source::open(path, &mut |_| Ok(()))
}

fn open_refused(path: &Path, words: &[&str]) {
    let message = open(path).err().expect("an error").to_string();
    for word in words {
        assert!(message.contains(word), "{word:?} in {message:?}");
    }
}

fn names(items: &[Item]) -> Vec<(&str, u32)> {
    items.iter().map(|item| (item.name.as_str(), item.class)).collect()
}

fn contents(source: &Source, items: &[Item]) -> Vec<String> {
    let mut bytes = b"left over".to_vec();
    let read = items.iter().map(|item| {
        source.read(item, &mut bytes).unwrap();
        String::from_utf8(bytes.clone()).unwrap()
    });
    read.collect()
}

// ImageNet's own tars.

/// The classes in the order of their ids; images are called as their contents.
const WNIDS: [&str; 4] = ["n02119789", "n02100735", "n02110185", "n01440764"];

fn train_files() -> Files {
    let tars = WNIDS.iter().map(|wnid| {
        let images = [10, 9].map(|i| format!("{wnid}_{i}.JPEG"));
        (format!("{wnid}.tar"), tar_of(&images.map(|name| (name.clone(), name))))
    });
    tars.collect()
}

/// Names of validation images.
fn val_files(numbers: &[u32]) -> Files {
    let names = numbers.iter().map(|i| format!("ILSVRC2012_val_{i:08}.JPEG"));
    names.map(|name| (name.clone(), name.into_bytes())).collect()
}

fn devkit(meta: &[u8], ground_truth: &str) -> Vec<u8> {
    gz(&tar_of(&[
        ("ILSVRC2012_devkit_t12/readme.txt", &b"read me"[..]),
        ("ILSVRC2012_devkit_t12/data/meta.mat", meta),
        (
            "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt",
            ground_truth.as_bytes(),
        ),
    ]))
}

fn ilsvrc() -> [(&'static str, Vec<u8>); 3] {
    [
        (TRAIN, tar_of(&train_files())),
        (VAL, tar_of(&val_files(&[5, 1, 2, 3, 4]))),
        (DEVKIT, devkit(META, "1\n2\n4\n3\n4\n")),
    ]
}

/// With some of the three files of `ilsvrc` replaced or, if empty, left out.
fn ilsvrc_but(changes: &[(&str, Vec<u8>)]) -> TempDir {
    let mut files = ilsvrc().to_vec();
    for (name, bytes) in changes {
        files.iter_mut().find(|file| file.0 == *name).unwrap().1 = bytes.clone();
    }
    files.retain(|file| !file.1.is_empty());
    folder(&files)
}

#[test]
fn imagenet_s_tars_are_listed_by_sorted_wnid() {
    let root = ilsvrc_but(&[]);
    let source = open(root.path()).unwrap();
    assert_eq!(source.kind, "ILSVRC2012 tars");
    assert_eq!(source.classes, ["n01440764", "n02100735", "n02110185", "n02119789"]);
    assert_eq!(source.names, ["tench", "English setter", "Siberian husky", "kit fox"]);
    let wanted = [("n01440764/n01440764_10.JPEG", 0), ("n01440764/n01440764_9.JPEG", 0)];
    assert_eq!(names(&source.train)[..2], wanted);
    assert_eq!(source.train.len(), 8);
    // Ids 1, 2, 4, 3, 4 are a kit fox, a setter, a tench, a husky and a tench.
    let val = [
        ("n01440764/ILSVRC2012_val_00000003.JPEG", 0),
        ("n01440764/ILSVRC2012_val_00000005.JPEG", 0),
        ("n02100735/ILSVRC2012_val_00000002.JPEG", 1),
        ("n02110185/ILSVRC2012_val_00000004.JPEG", 2),
        ("n02119789/ILSVRC2012_val_00000001.JPEG", 3),
    ];
    assert_eq!(names(&source.val), val);
    for items in [&source.train, &source.val] {
        let files: Vec<_> = items.iter().map(|item| &item.name[10..]).collect();
        assert_eq!(contents(&source, items), files);
    }
    assert_eq!(source.train[1].bytes, 16);

    let same = open(&root.path().join(TRAIN)).unwrap();
    assert_eq!((same.train, same.val), (source.train, source.val));
}

#[test]
fn each_half_of_imagenet_is_enough() {
    let root = ilsvrc_but(&[(TRAIN, Vec::new())]);
    let val = open(root.path()).unwrap();
    assert_eq!((val.train.len(), val.val.len()), (0, 5));
    assert_eq!(val.classes, ["n01440764", "n02100735", "n02110185", "n02119789"]);
    assert_eq!((val.val[4].class, &val.names[3][..]), (3, "kit fox"));

    let root = ilsvrc_but(&[(VAL, Vec::new()), (DEVKIT, Vec::new())]);
    let train = open(root.path()).unwrap();
    assert_eq!((train.train.len(), train.val.len()), (8, 0));
    assert_eq!(train.names, train.classes);
}

#[test]
fn what_does_not_fit_together_is_refused() {
    let refused = |name: &str, bytes: Vec<u8>, words: &[&str]| {
        open_refused(ilsvrc_but(&[(name, bytes)]).path(), words);
    };
    refused(DEVKIT, Vec::new(), &[VAL, DEVKIT, "image-net.org"]);
    refused(DEVKIT, devkit(META, "1\n2\n4\n3\n"), &[VAL, "00000005", "1 to 4"]);
    refused(DEVKIT, devkit(META, "1\n2\n4\n3\n4\n4\n"), &[VAL, "5 images", "6"]);
    refused(DEVKIT, devkit(META, "1\n2\n4\n3\n5\n"), &[DEVKIT, "line 5", "\"5\""]);
    refused(DEVKIT, devkit(META, "1\nx\n"), &[DEVKIT, "line 2", "\"x\""]);
    refused(DEVKIT, devkit(b"no", "1\n"), &[DEVKIT, "data/meta.mat", "MATLAB 5"]);
    refused(DEVKIT, gz(&tar_of(&[("data/meta.mat", META)])), &[DEVKIT, "has no data/ILSVRC"]);
    refused(DEVKIT, b"no gzip".to_vec(), &[DEVKIT, "unpacked"]);

    refused(VAL, tar_of(&val_files(&[1, 2, 3, 4, 4])), &[VAL, "00000004", "twice"]);
    refused(VAL, tar_of(&val_files(&[0, 2, 3, 4, 5])), &[VAL, "00000000", "1 to 5"]);
    refused(VAL, tar_of(&[("val_1.JPEG", "")]), &[VAL, "val_1.JPEG", "expected ILSVRC2012_val_"]);

    let train = train_files();
    refused(TRAIN, tar_of(&train[..3]), &[VAL, "n01440764/", "n01440764.tar"]);
    refused(TRAIN, tar_of(&[&train[..], &train[..1]].concat()), &[TRAIN, WNIDS[0], "twice"]);
    refused(TRAIN, tar_of(&[("x.tar", "")]), &[TRAIN, "\"x.tar\"", "nXXXXXXXX.tar"]);
    let inner = |files: &[(&str, &str)]| {
        let inner = (format!("{}.tar", WNIDS[0]), tar_of(files));
        tar_of(&[&train[1..], &[inner]].concat())
    };
    refused(TRAIN, inner(&[]), &[TRAIN, "n02119789.tar", "no image"]);
    let twice = [("n02119789_1.JPEG", "x"); 2];
    refused(TRAIN, inner(&twice), &[TRAIN, "n02119789/n02119789_1.JPEG twice"]);
    let other = [("n01440764_1.JPEG", "x")];
    refused(TRAIN, inner(&other), &[TRAIN, "n02119789.tar", "n01440764_1", "n02119789_*.JPEG"]);
    refused(TRAIN, tar_of(&train[..1]), &["n0"]);
    let short = (format!("{}.tar", WNIDS[0]), train[0].1[..1024].to_vec());
    refused(TRAIN, tar_of(&[short]), &[TRAIN, "n02119789.tar", "cut short"]);

    let val = ilsvrc_but(&[]);
    open_refused(&val.path().join(VAL), &["give the folder"]);
}

#[test]
fn listing_can_be_ended() {
    let root = ilsvrc_but(&[]);
    let mut calls = 0;
    let result = Source::open(root.path(), &mut |_| {
        calls += 1;
        Err(zfnet_core::Error::callback("enough"))
    });
    assert!(result.err().unwrap().to_string().contains("enough"));
    assert_eq!(calls, 1);
}

#[test]
fn a_tar_that_shrinks_after_listing_is_an_error() {
    let root = ilsvrc_but(&[]);
    let source = open(root.path()).unwrap();
    let file = fs::OpenOptions::new().write(true).open(root.path().join(TRAIN)).unwrap();
    file.set_len(1000).unwrap();
    let error = source.read(source.train.last().unwrap(), &mut Vec::new()).unwrap_err();
    // Not the image's fault, for which it would be left out.
    assert!(matches!(error, zfnet_core::Error::Io { .. }), "{error}");
    assert!(error.to_string().contains(TRAIN), "{error}");
}

// The devkit.

/// An element of a MATLAB 5 file, small if it can be.
fn element(kind: u32, data: &[u8]) -> Vec<u8> {
    let len = data.len() as u32;
    let mut out = if (1..=4).contains(&len) {
        (kind | len << 16).to_le_bytes().to_vec()
    } else {
        [kind.to_le_bytes(), len.to_le_bytes()].concat()
    };
    out.extend(data);
    out.resize(out.len().next_multiple_of(8), 0);
    out
}

fn array(class: u8, rows: u32, columns: u32, name: &str, rest: &[u8]) -> Vec<u8> {
    let flags = element(6, &[class, 0, 0, 0, 0, 0, 0, 0]);
    let dims = element(5, &[rows.to_le_bytes(), columns.to_le_bytes()].concat());
    element(14, &[&flags, &dims, &element(1, name.as_bytes()), rest].concat())
}

fn mat(elements: &[u8]) -> Vec<u8> {
    [&[b' '; 124][..], b"\0\x01IM", elements].concat()
}

/// Synsets with the fields in another order, and with numbers and texts in these forms.
fn odd_meta(numbers: impl Fn(u8) -> Vec<u8>, texts: impl Fn(&str) -> Vec<u8>) -> Vec<u8> {
    let fields = ["words", "num_children", "more", "ILSVRC2012_ID", "WNID"];
    let mut names = Vec::new();
    for field in fields {
        names.extend(field.as_bytes());
        names.resize(names.len().next_multiple_of(20), 0);
    }
    let mut rest = [element(5, &20u32.to_le_bytes()), element(1, &names)].concat();
    for (id, wnid) in [(2, "n00000001"), (1, "n00000002")] {
        let text = |text: &str| array(4, 1, text.len() as u32, "", &texts(text));
        rest.extend(text("caf\u{e9}, bar"));
        rest.extend(array(9, 1, 1, "", &numbers(0)));
        rest.extend(array(6, 0, 0, "", &element(9, &[])));
        rest.extend(array(6, 1, 1, "", &numbers(id)));
        rest.extend(text(wnid));
    }
    [array(6, 1, 1, "other", &element(2, &[7])), array(2, 2, 1, "synsets", &rest)].concat()
}

#[test]
fn scipy_s_meta_is_read() {
    let synsets = parse_meta(META).unwrap();
    assert_eq!(synsets, parse_meta(META_PLAIN).unwrap());
    let mut ids: Vec<_> = synsets.values().map(|s| (s.id, s.leaf)).collect();
    ids.sort();
    assert_eq!(ids, [(1, true), (2, true), (3, true), (4, true), (5, false), (6, false)]);
    assert_eq!(synsets[&4].wnid, "n01440764");
    assert_eq!(synsets[&5].words, "dog, domestic dog, Canis familiaris");
}

#[test]
fn numbers_and_texts_may_be_stored_in_any_type() {
    let latin = |text: &str| element(1, &text.chars().map(|c| c as u8).collect::<Vec<_>>());
    let utf8 = |text: &str| element(16, text.as_bytes());
    let utf16 = |kind: u32| {
        move |text: &str| {
            element(kind, &text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>())
        }
    };
    let small = |number: u8| element(2, &[number]);
    let check = |elements: &[u8]| {
        let synsets = parse_meta(&mat(elements)).unwrap();
        assert_eq!(synsets.len(), 2);
        assert_eq!((&synsets[&1].wnid[..], &synsets[&1].words[..]), ("n00000002", "café, bar"));
    };
    check(&odd_meta(|n| element(1, &[n]), latin));
    check(&odd_meta(|n| element(3, &u16::from(n).to_le_bytes()), utf8));
    check(&odd_meta(|n| element(4, &u16::from(n).to_le_bytes()), utf16(4)));
    check(&odd_meta(|n| element(5, &u32::from(n).to_le_bytes()), utf16(17)));
    check(&odd_meta(|n| element(6, &u32::from(n).to_le_bytes()), utf8));
    check(&odd_meta(|n| element(7, &f32::from(n).to_le_bytes()), utf8));
    check(&odd_meta(|n| element(9, &f64::from(n).to_le_bytes()), utf8));
    check(&odd_meta(|n| element(13, &u64::from(n).to_le_bytes()), utf8));

    let refused = |elements: &[u8], word: &str| {
        let reason = parse_meta(&mat(elements)).unwrap_err();
        assert!(reason.contains(word), "{word:?} in {reason:?}");
    };
    refused(&odd_meta(|_| element(9, &1.5f64.to_le_bytes()), utf8), "whole number");
    refused(&odd_meta(|_| element(1, &[255]), utf8), "whole number");
    refused(&odd_meta(|_| small(0), utf8), "two synsets");
    refused(&odd_meta(small, |_| utf8("cat")), "WNID \"cat\"");
    refused(&odd_meta(small, |_| element(16, &[0xff])), "no text");
    refused(&[], "no variable");
    refused(
        &array(2, 1, 1, "synsets", &[element(5, &[1, 0, 0, 0]), element(1, b"ab")].concat()),
        "without a field",
    );
    // As many structs as there are numbers, and none of them there.
    refused(&array(2, u32::MAX, u32::MAX, "synsets", &odd_meta(small, utf8)), "");
}

#[test]
fn what_unpacks_to_too_much_is_refused() {
    let zeros = vec![0; 65 << 20];
    let root = ilsvrc_but(&[(DEVKIT, gz(&zeros))]);
    open_refused(root.path(), &[DEVKIT, "at most 67108864 bytes"]);
    let mut zlib = ZlibEncoder::new(Vec::new(), Compression::fast());
    zlib.write_all(&zeros).unwrap();
    let packed = zlib.finish().unwrap();
    let tag = [15u32.to_le_bytes(), (packed.len() as u32).to_le_bytes()].concat();
    let reason = parse_meta(&mat(&[tag, packed].concat())).unwrap_err();
    assert!(reason.contains("at most 67108864 bytes"), "{reason}");
}

// WebDataset tars.

fn samples() -> Vec<(&'static str, &'static str)> {
    vec![
        ("b/0002.cls", "10\n"),
        ("b/0002.json", "{}"),
        ("b/0002.JPG", "two"),
        ("0001.x.txt", "."),
        ("0001.png", "one"),
        ("0001.cls", "2"),
        ("LICENSE", "of no sample"),
        (".hidden.jpg", "neither"),
        ("0003.jpeg", "three"),
        ("0003.seg.png", "no image of the sample"),
        ("0003.cls", " 2 "),
    ]
}

#[test]
fn webdataset_tars_are_listed() {
    let val = tar_of(&[("v.cls", "0"), ("v.jpg", "val")]);
    let root = folder(&[
        ("my-train-1.tar", tar_of(&[("0001.cls", "2"), ("0001.png", "again")])),
        ("my-train-0.tar", tar_of(&samples())),
        ("my-validation-0.tar", val.clone()),
        ("notes.txt", Vec::new()),
    ]);
    let source = open(root.path()).unwrap();
    assert_eq!((source.kind, source.classes.len()), ("WebDataset tars", 11));
    assert_eq!(source.classes[..3], ["00", "01", "02"]);
    let wanted =
        [("02/0001.png", 2), ("02/0001~2.png", 2), ("02/0003.jpeg", 2), ("10/0002.JPG", 10)];
    assert_eq!(names(&source.train), wanted);
    assert_eq!(contents(&source, &source.train), ["one", "again", "three", "two"]);
    assert_eq!(names(&source.val), [("00/v.jpg", 0)]);

    let lines: Vec<_> = (0..11).map(|i| format!("class {}\n", 20 - i)).collect();
    fs::write(root.path().join("classes.txt"), lines.concat()).unwrap();
    let source = open(root.path()).unwrap();
    assert_eq!(source.train[0].name, "class 18/0001.png");
    assert_eq!(source.classes[10], "class 10");

    let single = folder(&[("photographs.tar", tar_of(&samples()))]);
    let single = open(&single.path().join("photographs.tar")).unwrap();
    assert_eq!((single.train.len(), single.val.len()), (3, 0));
}

/// A name that is made may be one that is there.
#[test]
fn names_are_made_unique_for_certain() {
    let sample = |key: &str| [(format!("{key}.cls"), "1"), (format!("{key}.jpg"), "x")];
    let tar = tar_of(&["d/a", "a~2", "a", "e/a", "a~3"].map(sample).concat());
    let root = folder(&[("train.tar", tar)]);
    let source = open(root.path()).unwrap();
    let wanted = ["1/a.jpg", "1/a~2.jpg", "1/a~3.jpg", "1/a~4.jpg", "1/a~5.jpg"];
    assert_eq!(source.train.iter().map(|item| &item.name[..]).collect::<Vec<_>>(), wanted);
}

#[test]
fn awkward_webdataset_tars_are_refused() {
    let refused = |files: &[(&str, &str)], words: &[&str]| {
        let root = folder(&[("train-7.tar", tar_of(files))]);
        open_refused(root.path(), words);
    };
    let good = [("k.cls", "1"), ("k.jpg", "x")];
    let and = |more: &[(&'static str, &'static str)]| [&good[..], more].concat();
    refused(&and(&[("l.jpg", "x")]), &["train-7.tar", "\"l\"", "no class"]);
    refused(&and(&[("l.cls", "1"), ("m.jpg", "")]), &["train-7.tar", "\"l\"", "no image"]);
    refused(&and(&[("l.webp", "x")]), &["\"l\"", "no image", "no class"]);
    refused(&and(&[("k.cls", "1")]), &["train-7.tar", "k.cls", "second"]);
    refused(&and(&[("k.png", "x")]), &["train-7.tar", "k.png", "second"]);
    for class in ["-1", "cat", "", "100000", "4294967296", "11111111111111111111111111111111111"] {
        refused(&[("k.cls", class), good[1]], &["train-7.tar", "k.cls", "no class"]);
    }
    refused(&[("k.cls", "0"), good[1]], &["single class"]);
    refused(&[("README", "")], &["no image"]);

    let two = |a: &str, b: &str| folder(&[a, b].map(|name| (name, tar_of(&good))));
    open_refused(two("train.tar", "other.tar").path(), &["other.tar", "train", "val"]);
    open_refused(two("train.tar", "trainval.tar").path(), &["trainval.tar"]);
    let classes =
        |text: &str| folder(&[("train.tar", tar_of(&good)), ("classes.txt", text.into())]);
    open_refused(classes("a\n").path(), &["classes.txt", "1 lines", "largest"]);
    open_refused(classes("a\na\n").path(), &["classes.txt", "twice"]);
    open_refused(classes("a\n../b\n").path(), &["classes.txt", "line 2"]);
    open_refused(classes("a\n..\n").path(), &["classes.txt", "line 2"]);
    assert_eq!(open(classes("b\r\na\r\n\n").path()).unwrap().classes, ["b", "a"]);
}

#[test]
fn many_tars_are_read() {
    let root = tempfile::tempdir().unwrap();
    for i in 0..300 {
        let (cls, jpg) = (format!("{i}.cls"), format!("{i}.jpg"));
        let tar = tar_of(&[(cls, "1".to_owned()), (jpg, i.to_string())]);
        fs::write(root.path().join(format!("train-{i:03}.tar")), tar).unwrap();
    }
    let source = open(root.path()).unwrap();
    let stems: Vec<_> =
        source.train.iter().map(|item| item.name[2..].trim_end_matches(".jpg")).collect();
    assert_eq!(contents(&source, &source.train), stems);
}

// Sets of our own, and what is none of all these.

/// A set of one training shard with two images, as `pack` lays it out.
fn set(change: impl Fn(&mut Manifest, &mut Index)) -> TempDir {
    let shard =
        tar_of(&[("b/y.jpg", "second"), ("b/y.cls", "1"), ("a/x.jpg", "first"), ("a/x.cls", "0")]);
    let mut index = Index::default();
    (index.shard_bytes, index.shard_xxh3) = (shard.len() as u64, 5);
    let mut push = |offset: usize, bytes: usize, number, name| {
        let crc32c = crc32c::crc32c(&shard[offset..offset + bytes]);
        let (offset, bytes) = (offset as u64, bytes as u32);
        index.push(Entry { offset, bytes, crc32c, class: number, number }, name);
    };
    push(512, 6, 1, "b/y.JPEG");
    push(512 * 5, 5, 0, "a/x.JPEG");
    let mut manifest = Manifest::new(Form::Kept);
    manifest.classes = ["a", "b"]
        .map(|name| Class { folder: name.into(), name: name.to_uppercase(), train: 1, val: 0 })
        .into();
    manifest.train = vec![ShardMark {
        file: "train-000000.tar".into(),
        images: 2,
        bytes: shard.len() as u64,
        xxh3: "0000000000000005".into(),
        index_xxh3: String::new(),
    }];
    change(&mut manifest, &mut index);
    let index_xxh3 = format!("{:016x}", xxhash_rust::xxh3::xxh3_64(&index.to_bytes()));
    manifest.train.iter_mut().for_each(|mark| mark.index_xxh3.clone_from(&index_xxh3));
    folder(&[
        ("train-000000.tar", shard),
        ("train-000000.idx", index.to_bytes()),
        ("manifest.json", manifest.to_json().into_bytes()),
    ])
}

#[test]
fn a_set_can_be_packed_again() {
    let root = set(|_, _| ());
    let source = open(root.path()).unwrap();
    assert_eq!(source.kind, "zfnet shards");
    assert_eq!(
        (&source.classes[..], &source.names[..]),
        (&["a", "b"].map(String::from)[..], &["A", "B"].map(String::from)[..])
    );
    assert_eq!(names(&source.train), [("a/x.JPEG", 0), ("b/y.JPEG", 1)]);
    assert_eq!(contents(&source, &source.train), ["first", "second"]);

    open_refused(set(|m, _| m.form = Form::Raw { side: 256 }).path(), &["cannot be packed again"]);
    open_refused(
        set(|m, _| m.train[0].bytes += 1).path(),
        &["train-000000.idx", "expected the index of a shard"],
    );
    open_refused(
        set(|m, _| m.train[0].xxh3 = "6".into()).path(),
        &["train-000000.idx", "expected the index of a shard"],
    );
    let swapped = set(|m, _| m.classes.swap(0, 1));
    let swapped = open(swapped.path()).unwrap();
    let options = Options { form: Form::Kept, shard_bytes: 1 << 20, shuffle: true, mean_side: 8 };
    let error = Plan::new(&swapped, &options).err().unwrap().to_string();
    assert!(error.contains("of one of the classes") && error.contains(".JPEG"), "{error}");
    let doubled = set(|m, _| {
        m.train.push(m.train[0].clone());
        m.classes.iter_mut().for_each(|class| class.train = 2);
    });
    open_refused(doubled.path(), &["train-000000.tar", "taken or beyond"]);
    // What has changed since it was packed is not packed again as if it were good.
    let damaged = set(|_, _| ());
    let mut shard = fs::read(damaged.path().join("train-000000.tar")).unwrap();
    shard[512] ^= 1;
    fs::write(damaged.path().join("train-000000.tar"), shard).unwrap();
    let source = open(damaged.path()).unwrap();
    let [first, second] = &source.train[..] else { panic!("two images") };
    source.read(first, &mut Vec::new()).unwrap();
    let error = source.read(second, &mut Vec::new()).unwrap_err().to_string();
    assert!(error.contains("b/y.JPEG: damaged: expected CRC-32C"), "{error}");
    let gone = set(|_, _| ());
    fs::remove_file(gone.path().join("train-000000.tar")).unwrap();
    open_refused(gone.path(), &["train-000000.tar"]);
}

#[test]
fn everything_else_is_refused_with_what_would_do() {
    let accepted = ["train/CLASS", "ILSVRC2012_img_train.tar", "WebDataset", "set of shards"];
    let root = folder(&[("a.txt", Vec::new()), ("b.zip", Vec::new())]);
    open_refused(root.path(), &[&accepted[..], &["found a.txt, b.zip"]].concat());
    open_refused(&root.path().join("a.txt"), &[&accepted[..], &["is a file"]].concat());
    open_refused(&root.path().join("none"), &[&accepted[..], &["does not exist"]].concat());
    let root = folder(&[("train.tar", gz(&tar_of(&samples())))]);
    open_refused(root.path(), &["train.tar", "is no tar"]);
}

// Tars that mean harm.

/// A member whose header was changed, before its checksum is made.
fn member(name: &str, data: &[u8], change: impl FnOnce(&mut Header)) -> Vec<u8> {
    let mut header = Header::new_gnu();
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_size(data.len() as u64);
    change(&mut header);
    header.set_cksum();
    let mut out = [header.as_bytes(), data].concat();
    out.resize(out.len().next_multiple_of(512), 0);
    out
}

fn of_kind(kind: EntryType) -> impl FnOnce(&mut Header) {
    move |header| header.set_entry_type(kind)
}

fn pax(records: &[(&str, &str)]) -> Vec<u8> {
    let mut text = String::new();
    for (key, value) in records {
        let rest = format!(" {key}={value}\n");
        let length = (1..).find(|digits| (rest.len() + digits).to_string().len() == *digits);
        text += &format!("{}{rest}", rest.len() + length.unwrap());
    }
    member("pax", text.as_bytes(), of_kind(EntryType::XHeader))
}

fn ended(parts: &[&[u8]]) -> Vec<u8> {
    [&parts.concat()[..], &[0; 1024]].concat()
}

/// What is listed of a tar: name, offset, length.
fn list(tar: &Vec<u8>) -> Result<Vec<(String, u64, u64)>, String> {
    let archive = Archive {
        path: Path::new("t.tar"),
        inner: "",
        file: tar,
        start: 0,
        bytes: tar.len() as u64,
    };
    let mut found = Vec::new();
    let listed = archive.members(&mut |Member { name, offset, bytes }| {
        found.push((name.to_owned(), offset, bytes));
        Ok(())
    });
    listed.map(|()| found).map_err(|error| error.to_string())
}

fn tar_refused(parts: &[&[u8]], words: &[&str]) {
    let message = list(&ended(parts)).unwrap_err();
    assert!(message.starts_with("t.tar: "), "{message}");
    for word in words {
        assert!(message.contains(word), "{word:?} in {message:?}");
    }
}

fn keep(_: &mut Header) {}

#[test]
fn tars_that_mean_harm_are_refused() {
    let good = member("good.jpg", b"abc", keep);
    for (kind, called) in [
        (EntryType::Symlink, "a symbolic link"),
        (EntryType::Link, "a hard link"),
        (EntryType::Char, "a device"),
        (EntryType::Block, "a device"),
        (EntryType::Fifo, "a fifo"),
        (EntryType::GNUSparse, "a sparse file"),
        (EntryType::GNULongLink, "name of a link"),
        (EntryType::new(b'V'), "unknown type 'V'"),
    ] {
        tar_refused(&[&good, &member("evil", b"", of_kind(kind))], &["\"evil\"", called]);
    }
    for (name, word) in [
        ("/etc/passwd", "absolute"),
        ("../up.jpg", "out of its folder"),
        ("a/../../up.jpg", "out of its folder"),
        ("..", "out of its folder"),
        ("./.", "no name"),
        ("", "no name"),
    ] {
        tar_refused(&[&good, &member(name, b"x", keep)], &[&format!("{name:?}"), word]);
    }
    let named =
        |name: &str| member("././@LongLink", name.as_bytes(), of_kind(EntryType::GNULongName));
    tar_refused(&[&named("/a\0"), &good], &["\"/a\"", "absolute"]);
    tar_refused(&[&named("a\0b\0"), &good], &["NUL"]);
    tar_refused(&[&named("\0"), &good], &["no name"]);
    tar_refused(&[&pax(&[("path", "a/../b")]), &good], &["\"a/../b\"", "out of its folder"]);
    tar_refused(&[&pax(&[("path", "")]), &good], &["no name"]);
    tar_refused(
        &[&member("\u{e9}.jpg", b"", |h| h.as_old_mut().name[0] = 0xff), &good],
        &["UTF-8"],
    );
    tar_refused(&[&member("dir/", b"x", keep)], &["\"dir/\"", "folder with a size"]);
    let folder_with_size = |h: &mut Header| {
        h.set_entry_type(EntryType::Directory);
        h.set_size(1);
    };
    tar_refused(&[&member("dir", b"x", folder_with_size)], &["folder with a size"]);

    let huge = |size: u64| member("big.jpg", b"", move |h| h.set_size(size));
    tar_refused(&[&good, &huge(1025)], &["big.jpg", "1025 bytes", "only 1024 follow"]);
    tar_refused(&[&huge(1 << 33)], &["big.jpg", "8589934592 bytes"]);
    tar_refused(&[&huge(u64::MAX)], &["big.jpg", "only"]);
    let negative = |h: &mut Header| h.as_old_mut().size = [0xff; 12];
    tar_refused(&[&member("big.jpg", b"", negative)], &["big.jpg", "impossible size"]);
    let words = |h: &mut Header| h.as_old_mut().size = *b"twelve bytes";
    tar_refused(&[&member("big.jpg", b"", words)], &["big.jpg", "unreadable size"]);
    let binary = |h: &mut Header| h.as_old_mut().size = *b"\x80\0\0\0\0\0\0\0\0\0\0\x03";
    assert_eq!(list(&ended(&[&member("a.jpg", b"abc", binary)])).unwrap()[0].2, 3);

    tar_refused(&[&pax(&[("size", "4")]), &good], &["good.jpg", "disagree"]);
    tar_refused(&[&pax(&[("size", "4")]), &member("good.jpg", b"", |_| ())], &["disagree"]);
    tar_refused(&[&pax(&[("size", "8589934592")]), &member("a.npy", b"", |_| ())], &["only"]);
    tar_refused(&[&pax(&[("size", "-3")]), &good], &["malformed pax"]);
    tar_refused(&[&pax(&[("GNU.sparse.major", "1")]), &good], &["sparse file"]);
    let broken = |text: &[u8]| member("pax", text, of_kind(EntryType::XHeader));
    for text in [
        "8 path=x\n",
        "+10 path=x\n",
        "99 path=x\n",
        "0 a=b\n",
        "7 path=\n",
        "x",
        "5 ab\n",
        "18446744073709551615 a=b\n",
    ] {
        tar_refused(&[&broken(text.as_bytes()), &good], &["malformed pax"]);
    }
    let global = member("g", b"10 path=x\n", of_kind(EntryType::XGlobalHeader));
    tar_refused(&[&global, &good], &["all members"]);
    let long = vec![b'a'; 70_000];
    for kind in [EntryType::GNULongName, EntryType::XHeader, EntryType::XGlobalHeader] {
        tar_refused(&[&member("long", &long, of_kind(kind)), &good], &["70000 bytes", "65536"]);
    }
    tar_refused(&[&named("a"), &pax(&[("path", "b")]), &good], &["says again"]);
    tar_refused(&[&named("a")], &["without a member"]);
    tar_refused(&[b"no tar, but long enough to be one", &[b'x'; 512]], &["is no tar"]);
    tar_refused(&[&good, &[b'x'; 512]], &["damaged", "byte 1024"]);
    assert!(list(&Vec::new()).unwrap_err().contains("is no tar"));
}

#[test]
fn members_beyond_eight_gibibytes_are_passed_over() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("train.tar");
    // Such a size stands in the pax header alone, as Python and GNU tar write it (halostatue/minitar 152,
    // dotnet/runtime 76563, webdataset/webdataset 207).
    let bytes: u64 = 9 << 30;
    let large = member("0.npy", b"", |_| ());
    let head = [pax(&[("size", &bytes.to_string())]), large].concat();
    let rest = tar_of(&[("1.cls", "1"), ("1.jpg", "first")]);
    let mut file = fs::File::create(&path).unwrap();
    file.write_all(&tar_of(&[("0.cls", "0"), ("0.jpg", "zero")])[..2048]).unwrap();
    file.write_all(&head).unwrap();
    file.seek(SeekFrom::Start(2048 + head.len() as u64 + bytes)).unwrap(); // nothing is written there
    file.write_all(&rest).unwrap();
    let source = open(&path).unwrap();
    assert_eq!(contents(&source, &source.train), ["zero", "first"]);
}

/// A download into a file of the full length that was not ended, and tars that were joined: reported of other readers,
/// which see fewer images and say nothing.
#[test]
fn an_end_with_more_behind_it_is_none() {
    let tar =
        |n: usize| tar_of(&[(format!("{n}.cls"), "1".into()), (format!("{n}.jpg"), n.to_string())]);
    let padded = |zeros: usize| [tar(0), vec![0; zeros]].concat();
    for zeros in [0, 512, 9 << 10, 500 << 10] {
        assert_eq!(list(&padded(zeros)).unwrap().len(), 2, "{zeros}");
    }
    assert!(list(&padded(2 << 20)).unwrap_err().contains("zero bytes behind it: it is incomplete"));
    assert!(list(&[tar(0), tar(1)].concat()).unwrap_err().contains("more data at byte"));
    let mut hole = [tar(0), tar(1)].concat();
    hole[2048..4096].fill(0); // headers and all
    assert!(list(&hole).unwrap_err().contains("ends at byte 2048 of"));
}

#[test]
fn tars_that_are_nearly_right() {
    let refuses = |file: &str, bytes: &[u8], words: &[&str]| {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join(file), bytes).unwrap();
        open_refused(root.path(), words);
    };
    refuses(
        "train.tar",
        &[&[0x1f, 0x8b, 8][..], &[0; 512]].concat(),
        &["compressed with gzip", "gunzip"],
    );
    let samples = |image: &str| {
        tar_of(&[("0.cls", "0"), (image, "x"), ("0.txt", "x"), ("1.cls", "1"), ("1.jpg", "x")])
    };
    refuses("train.tar", &samples("0.image.webp"), &["with no image", "it has .image.webp, .txt"]);
    let twice =
        tar_of(&[("0.cls", "0"), ("0.jpg", "a"), ("1.cls", "1"), ("1.jpg", "x"), ("0.jpg", "b")]);
    refuses("train.tar", &twice, &["0.jpg", "second sample of this key"]);
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("TRAIN.TAR"), samples("0.jpg")).unwrap();
    assert_eq!(open(root.path()).unwrap().train.len(), 2);
    assert_eq!(open(&root.path().join("TRAIN.TAR")).unwrap().train.len(), 2);
    refuses("photos.zip", b"PK", &["unpack photos.zip first"]);
}

#[test]
fn long_names_and_folders_are_read() {
    let named =
        |name: &str| member("././@LongLink", name.as_bytes(), of_kind(EntryType::GNULongName));
    let long = "d/".repeat(200) + "x.jpg";
    let good = member("short", b"abc", keep);
    let tar = ended(&[
        &member("./", b"", of_kind(EntryType::Directory)),
        &member("old/", b"", keep),
        &named(&format!("{long}\0")),
        &good,
        &member("g", b"13 comment=x\n", of_kind(EntryType::XGlobalHeader)),
        &pax(&[("mtime", "1.5"), ("SCHILY.acl.access", "a\nb\n"), ("path", &long), ("size", "3")]),
        &good,
        &named("both.jpg"),
        &pax(&[("mtime", "1.5")]),
        &good,
        &member("./a//./b.jpg", b"", keep),
    ]);
    let found = list(&tar).unwrap();
    let names: Vec<_> = found.iter().map(|(name, ..)| name.as_str()).collect();
    assert_eq!(names, [&long, &long, "both.jpg", "a/b.jpg"]);
    for (_, offset, bytes) in &found[..3] {
        assert_eq!(&tar[*offset as usize..][..*bytes as usize], b"abc");
    }
}

/// A tar with members of many kinds, for damage.
fn rich_tar() -> Vec<u8> {
    let long = "d/".repeat(200) + "y.jpg";
    ended(&[
        &tar_of(&samples())[..512 * 22],
        &pax(&[("path", &long)]),
        &member("y", &[7; 600], keep),
    ])
}

#[test]
fn a_tar_cut_anywhere_is_an_error() {
    let tar = rich_tar();
    let end = tar.len() - 1024;
    for cut in (0..end).filter(|at| at % 7 == 0 || at % 512 < 2 || at % 512 == 511) {
        assert!(list(&tar[..cut].to_vec()).is_err(), "cut at {cut}");
    }
    assert_eq!(list(&tar[..end + 512].to_vec()).unwrap(), list(&tar).unwrap());
}

#[test]
fn metas_and_kits_cut_anywhere_are_errors() {
    for cut in 0..META_PLAIN.len() - 8 {
        assert!(parse_meta(&META_PLAIN[..cut]).is_err(), "cut at {cut}");
    }
    for cut in 0..META.len() {
        assert!(parse_meta(&META[..cut]).is_err(), "cut at {cut}");
    }
    let kit = devkit(META, "1\n2\n4\n");
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join(DEVKIT);
    fs::write(&path, &kit).unwrap();
    assert_eq!(Devkit::read(&path).unwrap().ground_truth, [1, 2, 4]);
    for cut in 0..kit.len() {
        fs::write(&path, &kit[..cut]).unwrap();
        assert!(Devkit::read(&path).is_err(), "cut at {cut}");
    }
}

fn damaged(bytes: &[u8], flips: &[(usize, u8)]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for (at, with) in flips {
        let at = at % bytes.len();
        bytes[at] ^= with;
    }
    bytes
}

/// Makes the checksums of headers right again, so that damage gets behind them.
fn signed(mut tar: Vec<u8>) -> Vec<u8> {
    for block in tar.chunks_exact_mut(512).filter(|block| block.iter().any(|&byte| byte != 0)) {
        if Header::from_byte_slice(block).cksum().is_ok() {
            let mut header = Header::from_byte_slice(block).clone();
            header.set_cksum();
            block.copy_from_slice(header.as_bytes());
        }
    }
    tar
}

fn flips() -> impl Strategy<Value = Vec<(usize, u8)>> {
    prop::collection::vec((any::<usize>(), 1u8..), 1..8)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn a_damaged_tar_never_leads_outside(flips in flips(), sign: bool) {
        let tar = damaged(&rich_tar(), &flips);
        let tar = if sign { signed(tar) } else { tar };
        let archive = Archive {
            path: Path::new("t.tar"), inner: "", file: &tar, start: 0, bytes: tar.len() as u64,
        };
        let _ = archive.members(&mut |Member { name, offset, bytes }| {
            assert!(offset + bytes <= tar.len() as u64);
            assert!(!name.is_empty() && !name.starts_with('/') && !name.contains('\0'));
            assert!(name.split('/').all(|part| !matches!(part, "" | "." | "..")));
            Ok(())
        });
    }

    #[test]
    fn damaged_sections_stay_inside(flips in flips(), start in 0u64..9000, len in 0u64..9000) {
        let tar = signed(damaged(&rich_tar(), &flips));
        let (start, len) = (start / 512 * 512, len.min(tar.len() as u64 - start));
        let bytes = len.min(tar.len() as u64 - start);
        let archive = Archive { path: Path::new("t.tar"), inner: "i", file: &tar, start, bytes };
        let _ = archive.members(&mut |member| {
            assert!(member.offset >= start && member.offset + member.bytes <= start + bytes);
            Ok(())
        });
    }

    #[test]
    fn a_damaged_meta_never_panics(flips in flips(), plain: bool) {
        let _ = parse_meta(&damaged(if plain { META_PLAIN } else { META }, &flips));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn damaged_sources_never_panic(flips in flips(), which in 0usize..3) {
        let files = ilsvrc();
        let (name, bytes) = &files[which];
        let root = ilsvrc_but(&[(name, damaged(bytes, &flips))]);
        if let Ok(source) = open(root.path()) {
            let mut bytes = Vec::new();
            for item in source.train.iter().chain(&source.val) {
                source.read(item, &mut bytes).unwrap();
                assert_eq!(bytes.len() as u64, item.bytes);
            }
        }
    }
}

/// GNU tar's formats, with names that take their long ways. Other tools called tar may know fewer.
#[test]
fn tars_by_the_system_s_tar_are_listed() {
    let root = tempfile::tempdir().unwrap();
    let deep = format!("{}/{}.jpg", "d".repeat(90), "e".repeat(90));
    let deeper = format!("{}/{}.jpg", "f".repeat(200), "g".repeat(200));
    let files = [("a.jpg", "short"), (&deep, "long"), (&deeper, "longer")];
    for (name, text) in files {
        let path = root.path().join("in").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    for (format, count) in [("v7", 1), ("ustar", 2), ("oldgnu", 3), ("gnu", 3), ("pax", 3)] {
        let out = root.path().join(format);
        let mut tar = Command::new("tar");
        tar.arg("--format").arg(format).arg("-cf").arg(&out).arg("-C").arg(root.path().join("in"));
        let done = tar.args(files[..count].iter().map(|file| format!("./{}", file.0))).status();
        if !done.is_ok_and(|status| status.success()) {
            // Not `eprintln!`, which nobody sees of a test that passes.
            writeln!(stderr(), "skipped: there is no tar that writes {format}").expect("stderr");
            continue;
        }
        let tar = fs::read(&out).unwrap();
        let listed = list(&tar).unwrap();
        let found: Vec<_> = listed
            .iter()
            .map(|(name, offset, bytes)| {
                (name.as_str(), &tar[*offset as usize..][..*bytes as usize])
            })
            .collect();
        assert_eq!(
            found,
            files[..count].iter().map(|(n, t)| (*n, t.as_bytes())).collect::<Vec<_>>()
        );
    }
}
