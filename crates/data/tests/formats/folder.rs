//! Trees of class folders: what is listed, in which order, and what is refused with which words.

use std::fs;
use std::path::Path;

use tempfile::TempDir;
use zfnet_core::Canvas;
use zfnet_data::Split;
use zfnet_data::classes::Classes;
use zfnet_data::folder::{ImageFolder, check_output};
use zfnet_data::images::{Images, ReadOptions, Scratch};
use zfnet_data::set::DataSet;

/// A tree of empty files; names that end in / are folders.
fn tree(names: &[&str]) -> TempDir {
    let root = tempfile::tempdir().unwrap();
    for name in names {
        let path = root.path().join(name);
        fs::create_dir_all(if name.ends_with('/') { &path } else { path.parent().unwrap() })
            .unwrap();
        if !name.ends_with('/') {
            fs::write(path, "").unwrap();
        }
    }
    root
}

fn refused(names: &[&str], words: &[&str]) {
    let root = tree(names);
    let message = ImageFolder::open(root.path()).expect_err("an error").to_string();
    for word in words {
        assert!(message.contains(word), "{word:?} in {message:?}");
    }
}

const GOOD: [&str; 4] = ["train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg", "val/b/1.jpg"];

fn good_and(more: &[&'static str]) -> Vec<&'static str> {
    [&GOOD[..], more].concat()
}

#[test]
fn lists_images_in_order() {
    let root = tree(&[
        "train/b/2.JPEG",
        "train/b/10.jpg",
        "train/b/1.Png",
        "train/b/Thumbs.db",
        "train/b/.h.jpg",
        "train/b/deeper/3.jpg",
        "train/B/x.jpg",
        "train/a/y.jpeg",
        "train/.hidden/z.jpg",
        "train/readme.jpg",
        "val/b/v.jpg",
        "test/c/t.jpg",
    ]);
    let folder = ImageFolder::open(root.path()).unwrap();
    assert_eq!(folder.classes, ["B", "a", "b"]);
    assert_eq!(folder.names, folder.classes);
    let listed: Vec<_> = folder.train.iter().map(|s| (s.path.clone(), s.class)).collect();
    let wanted =
        [("B/x.jpg", 0), ("a/y.jpeg", 1), ("b/1.Png", 2), ("b/10.jpg", 2), ("b/2.JPEG", 2)];
    assert_eq!(listed, wanted.map(|(name, class)| (root.path().join("train").join(name), class)));
    assert_eq!(folder.val.len(), 1);
    assert_eq!(folder.val[0].class, 2);
}

#[test]
fn readable_names_are_optional() {
    let root = tree(&GOOD);
    let table = root.path().join("classes.tsv");
    fs::write(&table, "class\tname\nb\tgreat white shark\t12\nunknown\tx\n\n").unwrap();
    assert_eq!(ImageFolder::open(root.path()).unwrap().names, ["a", "great white shark"]);
    fs::remove_file(&table).unwrap();
    assert_eq!(ImageFolder::open(root.path()).unwrap().names, ["a", "b"]);
}

/// Reported of other loaders: a byte-order mark in the first class's name, and files that are ignored.
#[test]
fn tables_of_names_are_read_as_editors_save_them_or_refused() {
    let root = tree(&GOOD);
    let table = root.path().join("classes.tsv");
    let text = "a\tant\r\nb\tbee\r\n";
    let utf16 = |unit: fn(u16) -> [u8; 2]| -> Vec<u8> {
        "\u{feff}".encode_utf16().chain(text.encode_utf16()).flat_map(unit).collect()
    };
    let marked = format!("\u{feff}{text}").into_bytes();
    for bytes in [text.into(), marked, utf16(u16::to_le_bytes), utf16(u16::to_be_bytes)] {
        fs::write(&table, &bytes).unwrap();
        assert_eq!(ImageFolder::open(root.path()).unwrap().names, ["ant", "bee"], "{bytes:?}");
    }
    for (bytes, words) in [
        (&b"a\tant\nb\tb\xe9e\n"[..], ["line 2", "expected UTF-8, found the byte 0xe9"]),
        (b"a ant\n", ["line 1", "found \"a ant\" without a tab"]),
        (b"\na\tant\nb\n", ["line 3", "without a tab"]),
        (b"a\tant\nb\t\n", ["line 2", "a tab and its name"]),
        (b"a\tant\nb\tbee\na\tape\n", ["line 3", "names a again, after line 1"]),
        (b"0\tant\n1\tbee\n", ["2 line(s) of classes that are not there", "line 1: `0`"]),
    ] {
        fs::write(&table, bytes).unwrap();
        let message = ImageFolder::open(root.path()).unwrap_err().to_string();
        assert!(message.contains("classes.tsv: "), "{message}");
        for word in words {
            assert!(message.contains(word), "{word:?} in {message:?}");
        }
    }
    fs::remove_file(&table).unwrap();
    fs::create_dir(&table).unwrap();
    assert!(ImageFolder::open(root.path()).unwrap_err().to_string().contains("classes.tsv"));
}

#[cfg(unix)]
#[test]
fn links_are_followed() {
    let root = tree(&GOOD);
    let link = |to: &str, from: &str| {
        std::os::unix::fs::symlink(root.path().join(to), root.path().join(from)).unwrap();
    };
    link("train/a/1.jpg", "train/b/2.jpg");
    link("train/a", "train/c");
    let folder = ImageFolder::open(root.path()).unwrap();
    assert_eq!(folder.classes, ["a", "b", "c"]);
    assert_eq!(folder.train.len(), 4);
    link("nowhere", "train/a/3.jpg");
    assert_eq!(ImageFolder::open(root.path()).unwrap().train.len(), 6, "to be named when read");
}

#[test]
fn unusable_trees_say_why() {
    refused(&[], &["no folder train", "expected train/CLASS/*.JPEG", "found nothing"]);
    refused(&["cats/1.jpg", "dogs/1.jpg"], &["no folder train", "found cats, dogs"]);
    refused(&["train/"], &["train: has no class folders", "found nothing"]);
    let flat = ["train/1.jpg", "train/2.jpg", "train/3.jpg", "train/4.jpg"];
    refused(&flat, &["has no class folders", "found 1.jpg, 2.jpg, 3.jpg and 1 more"]);
    refused(&["train/a/1.jpg", "val/a/1.jpg"], &["train", "only class folder", "at least two"]);
    refused(&good_and(&["train/c/"]), &["c: has no .jpg", "remove the folder"]);
    refused(&GOOD[..2], &["no folder val", "expected val/CLASS/*.JPEG", "found train"]);
    refused(&["train/a/1.jpg", "train/b/1.jpg", "test/a/1.jpg"], &["is test/ meant?"]);
    refused(&["train/a/1.jpg", "train/b/1.jpg", "val/1.jpg"], &["val: has no class folders"]);
    refused(&["train/a/1.jpg", "train/b/1.jpg", "val/a/"], &["val: has no image"]);
    refused(&good_and(&["val/c/1.jpg"]), &["c: is a class that train does not have"]);
}

/// What is nearly right is told the way out.
#[test]
fn trees_that_are_nearly_right() {
    refused(&["d/train/a/1.jpg", "d/val/a/1.jpg"], &["has no folder train", "d meant?"]);
    for other in ["Train", "training"] {
        let image = format!("{other}/a/1.jpg");
        refused(
            &[&image],
            &[&format!("is {other}/ meant?"), &format!("ln -s {other} /"), "/train)"],
        );
    }
    for other in ["Val", "valid", "validation", "test", "dev"] {
        let image = format!("{other}/a/1.jpg");
        let words = [&*format!("is {other}/ meant?"), &format!("ln -s {other} /"), "/val)"];
        refused(&["train/a/1.jpg", "train/b/1.jpg", &image], &words);
    }
    refused(&["cats/1.jpg", "dogs/1.jpg"], &["move them to train/", "cats to train/cats"]);
    refused(&["train/a/1.jpg", "train/b/1.jpg"], &["has no folder val"]);
    refused(&["imagenette.tgz"], &["unpack imagenette.tgz first"]);
    refused(&["train/1.jpg", "val/a/1.jpg"], &["move each image into the folder of its class"]);
    let webp = ["train/a/1.webp", "train/a/2.webp", "train/a/n.txt", "train/b/1.jpg"];
    refused(&webp, &["a: has no .jpg", "only 1 .txt, 2 .webp", "convert them"]);
    refused(
        &["train/a/x/1.jpg", "train/b/1.jpg"],
        &["a: has no .jpg", "only 1 folder", "move the images"],
    );
    refused(
        &["train/train/a/1.jpg", "train/train/b/1.jpg", "val/a/1.jpg"],
        &["only class folder", "move them one level up"],
    );
    refused(
        &good_and(&["val/val/a/1.jpg"]),
        &["val/val: is a class that", "move them one level up"],
    );
    refused(
        &["train/a/1.jpg", "train/b/1.jpg"],
        &["move of each class some images", "to val/CLASS"],
    );
    let root = tree(&good_and(&["photos.zip", "photos.tar", "tars/train-0.tar"]));
    let message = |name: &str| ImageFolder::open(&root.path().join(name)).unwrap_err().to_string();
    assert!(message("photos.zip").contains("is a zip archive; unpack it"));
    for tars in ["photos.tar", "tars"] {
        assert!(message(tars).contains("tars of images"), "{}", message(tars));
    }
    for deep in ["train", "train/a"] {
        let meant = format!("is {} meant?", root.path().display());
        assert!(message(deep).contains(&meant), "{}", message(deep));
    }
}

/// Between the listing and the reading (pytorch/vision 138, pytorch/pytorch 7238, open-mmlab/mmcv 2894).
#[cfg(unix)]
#[test]
fn files_that_change_after_they_were_listed_are_bad_images() {
    let root = tree(&GOOD);
    let class = root.path().join("train/a");
    let picture = image::RgbImage::from_pixel(9, 9, image::Rgb([9, 8, 7]));
    for name in ["2.png", "3.png", "4.png", "5.png", "6.png", "7.png"] {
        picture.save(class.join(name)).unwrap();
    }
    let folder = ImageFolder::open(root.path()).unwrap();
    let options = ReadOptions { canvas: Canvas::square(8), max_bad: 1.0, cache_bytes: 0, io: None };
    let images = Images::new(folder.train, options);
    let png = fs::read(class.join("2.png")).unwrap();
    fs::remove_file(class.join("2.png")).unwrap();
    fs::write(class.join("3.png"), &png[..png.len() - 20]).unwrap();
    fs::write(class.join("4.png"), "").unwrap();
    fs::write(class.join("5.png"), [&png[..], &[7; 1000]].concat()).unwrap(); // grown: still an image
    fs::remove_file(class.join("6.png")).unwrap();
    fs::create_dir(class.join("6.png")).unwrap();
    fs::remove_file(class.join("7.png")).unwrap();
    let made = std::process::Command::new("mkfifo").arg(class.join("7.png")).status().unwrap();
    assert!(made.success());
    let mut square = vec![0; 8 * 8 * 3];
    let good: Vec<bool> = (1..7)
        .map(|i| images.read(i, &mut Scratch::default(), &mut square).unwrap().is_some())
        .collect();
    assert_eq!(good, [false, false, false, true, false, false]);
    let reasons: Vec<String> = images.bad().into_iter().map(|bad| bad.reason).collect();
    let words = ["No such file", "PNG", "empty file", "is no file", "is no file"];
    assert_eq!(reasons.len(), words.len());
    for (reason, word) in reasons.iter().zip(words) {
        assert!(reason.contains(word), "{word:?} in {reason:?}");
    }
}

#[cfg(unix)]
#[test]
fn a_class_that_is_lost_is_no_smaller_set() {
    let root = tree(&GOOD);
    std::os::unix::fs::symlink("nowhere", root.path().join("train/c")).unwrap();
    let message = ImageFolder::open(root.path()).unwrap_err().to_string();
    assert!(message.contains("c: is a link that leads nowhere"), "{message}");
}

#[test]
fn outputs_do_not_lie_among_images() {
    let root = tree(&good_and(&["train/runs/page/1.png", "out/train/x", "manifest/manifest.json"]));
    let check = |place: &str| check_output(&root.path().join(place)).map_err(|e| e.to_string());
    for place in
        ["train", "train/runs", "train/new/deep", "train/a", "train/a/x", "val/x", "train/../val"]
    {
        let message = check(place).unwrap_err();
        assert!(message.contains("lies among the images of"), "{place}: {message}");
    }
    assert!(check("manifest/run").unwrap_err().contains("lies in the set of shards"));
    for place in ["", "run", "out", "out/train", "out/train/x", "../train-2"] {
        check(place).unwrap();
    }
    assert!(check_output(Path::new("")).is_ok());
}

/// Where nothing is trained.
#[test]
fn validation_images_alone_are_tried_on_a_network_that_knows_their_classes() {
    let root = tree(&["val/c/1.jpg", "val/a/1.jpg", "val/a/2.jpg"]);
    let strings = |names: [&str; 3]| names.map(str::to_owned).to_vec();
    let classes = Classes::new(strings(["a", "b", "c"]), strings(["ant", "bee", "cat"]));
    let open = |classes: &Classes| DataSet::open_for(root.path(), classes);
    let set = open(&classes).unwrap();
    assert_eq!(set.classes(), classes);
    let options = ReadOptions { canvas: Canvas::square(8), max_bad: 0.0, cache_bytes: 0, io: None };
    let images = set.images(Split::Val, options).unwrap();
    assert_eq!([0, 1, 2].map(|i| images.class(i)), [0, 0, 2]);
    let train = set.images(Split::Train, options).err().unwrap().to_string();
    assert!(train.contains("has no folder train"), "{train}");
    let message = |classes: &Classes| open(classes).unwrap_err().to_string();
    let other = Classes::new(strings(["a", "b", "x"]), strings(["a", "b", "x"]));
    assert!(message(&other).contains("c: is a class that the network does not have"));
    assert!(message(&Classes::unknown(3)).contains("does not name its classes"));
    // By the names that a checkpoint of an earlier version has.
    fs::write(root.path().join("classes.tsv"), "c\tcat\na\tant\n").unwrap();
    open(&Classes::named(strings(["ant", "bee", "cat"]))).unwrap();
}

/// A set of a few of a network's classes, as of one that tells a thousand apart.
#[test]
fn a_set_of_some_classes_is_tried_on_a_network_that_has_more() {
    let root = tree(&["train/c/1.jpg", "train/a/1.jpg", "val/c/2.jpg", "val/a/2.jpg"]);
    let strings = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let names = strings(&["a", "b", "c"]);
    let classes = Classes::new(names.clone(), names.clone());
    let set = DataSet::open_for(root.path(), &classes).unwrap();
    assert_eq!(set.classes(), classes);
    let options = ReadOptions { canvas: Canvas::square(8), max_bad: 0.0, cache_bytes: 0, io: None };
    for split in [Split::Train, Split::Val] {
        let images = set.images(split, options).unwrap();
        assert_eq!([0, 1].map(|i| images.class(i)), [0, 2]);
    }
    let known = Classes::new(strings(&["c", "d", "a"]), strings(&["c", "d", "a"]));
    let images = DataSet::open_for(root.path(), &known).unwrap().images(Split::Val, options);
    assert_eq!([0, 1].map(|i| images.as_ref().unwrap().class(i)), [2, 0]);
    let other = Classes::new(strings(&["a", "b", "d"]), strings(&["a", "b", "d"]));
    let message = DataSet::open_for(root.path(), &other).unwrap_err().to_string();
    assert!(message.contains("does not have the classes of the checkpoint"), "{message}");
    assert!(DataSet::open_for(root.path(), &Classes::unknown(3)).is_err());
}

#[test]
fn roots_must_be_folders() {
    let message = |path: &Path| ImageFolder::open(path).unwrap_err().to_string();
    let root = tree(&["file"]);
    assert!(message(&root.path().join("missing")).contains("missing: does not exist; expected"));
    assert!(message(&root.path().join("file")).contains("file: is a file; expected"));
}
