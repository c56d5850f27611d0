//! Trees of class folders: what is listed, in which order, and what is refused with which words.

use std::fs;
use std::path::Path;

use tempfile::TempDir;
use zfnet_data::folder::ImageFolder;

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
    fs::write(&table, "class\tname\nb\tgreat white shark\t12\nunknown\tx\nmalformed\n\t\n")
        .unwrap();
    assert_eq!(ImageFolder::open(root.path()).unwrap().names, ["a", "great white shark"]);
    fs::write(&table, [0xff, 0xfe, 0]).unwrap();
    assert_eq!(ImageFolder::open(root.path()).unwrap().names, ["a", "b"]);
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

#[test]
fn roots_must_be_folders() {
    let message = |path: &Path| ImageFolder::open(path).unwrap_err().to_string();
    let root = tree(&["file"]);
    assert!(message(&root.path().join("missing")).contains("missing: does not exist; expected"));
    assert!(message(&root.path().join("file")).contains("file: is a file; expected"));
}
