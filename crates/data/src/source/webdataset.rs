//! Tars of the WebDataset convention: members that follow each other and have the same name up to the
//! first dot are one sample, here an image (.jpg, .jpeg or .png) and the index of its class (.cls).
//!
//! What else a sample has is left alone. Folders are called as the lines of `classes.txt` beside the
//! tars say, or by the class's index.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::listing::{Item, Listing, Source};
use crate::Split;
use crate::tar::{Archive, Member};
use zfnet_core::{Error, Result, text};

const CLASSES: &str = "classes.txt";
/// Far above any set of photographs; every class up to the largest index gets a name.
const MAX_CLASSES: usize = 100_000;

/// Lists these tars of a folder.
pub(super) fn open(root: &Path, tars: Vec<PathBuf>, mut listing: Listing) -> Result<Source> {
    let single = tars.len() == 1;
    let (mut train, mut val) = (Vec::new(), Vec::new());
    for path in &tars {
        let items = match split(path, single)? {
            Split::Train => &mut train,
            Split::Val => &mut val,
        };
        let mut sample = Sample::default();
        let mut keys = HashSet::new();
        listing.list(path, &mut |listing, tar, member| {
            let Some((key, extension)) = key(member.name) else { return Ok(()) };
            if sample.key != key {
                std::mem::take(&mut sample).end(path, listing, items)?;
                sample.key = key.into();
                if !keys.insert(sample.key.clone()) {
                    let reason = "begins a second sample of this key; expected each sample's files side by side, and \
                                  no two samples of one key in a tar";
                    return Err(tar.member_error(member.name, reason));
                }
            }
            sample.add(tar, extension, member)
        })?;
        sample.end(path, &mut listing, items)?;
    }

    let largest = train.iter().chain(&val).map(|item: &Item| item.class as usize).max();
    let classes = class_folders(root, largest.unwrap_or(0))?;
    for items in [&mut train, &mut val] {
        for item in &mut *items {
            item.name = format!("{}/{}", classes[item.class as usize], item.name);
        }
    }
    let names = classes.clone();
    let source = Source { kind: "WebDataset tars", classes, names, train, val, tars: listing.tars };
    // Sorted by `of_tars`; names that are changed need their places.
    let mut source = source.of_tars(root)?;
    let changed = make_unique(&mut source.train) | make_unique(&mut source.val);
    if changed { source.of_tars(root) } else { Ok(source) }
}

/// Which images a tar holds, by its name; a single one that does not say so is for training.
fn split(path: &Path, single: bool) -> Result<Split> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    match (name.contains("train"), ["val", "test"].iter().any(|word| name.contains(word))) {
        (true, false) => Ok(Split::Train),
        (false, true) => Ok(Split::Val),
        (false, false) if single => Ok(Split::Train),
        _ => {
            let reason = "may be for training or not; expected a name with train in it, or else \
                          with val, valid, validation or test";
            Err(Error::file(path, reason))
        }
    }
}

/// Divides a member's name into its sample's key and its extension. What has none, or is hidden, is
/// no part of a sample.
fn key(name: &str) -> Option<(&str, &str)> {
    let file = name.rfind('/').map_or(0, |slash| slash + 1);
    let dot = file + name[file..].find('.')?;
    (dot > file).then(|| (&name[..dot], &name[dot + 1..]))
}

/// What was found of a sample.
#[derive(Default)]
struct Sample {
    key: String,
    class: Option<u32>,
    /// File name, offset and length of the image.
    image: Option<(String, u64, u64)>,
    /// Extensions of its other files.
    others: Vec<String>,
}

impl Sample {
    fn add(&mut self, tar: &Archive, extension: &str, member: Member) -> Result<()> {
        let is = |known: &str| extension.eq_ignore_ascii_case(known);
        let twice = if is("cls") {
            self.class.replace(class(tar, member)?).is_some()
        } else if ["jpg", "jpeg", "png"].into_iter().any(is) {
            let file = member.name.rsplit('/').next().unwrap_or_default().to_owned();
            self.image.replace((file, member.offset, member.bytes)).is_some()
        } else {
            self.others.push(extension.into());
            false
        };
        if twice {
            let reason = "is the second of its kind in its sample; expected one image and one .cls";
            return Err(tar.member_error(member.name, reason));
        }
        Ok(())
    }

    /// Adds the image, not yet with its class's folder, to the others.
    fn end(self, tar: &Path, listing: &mut Listing, items: &mut Vec<Item>) -> Result<()> {
        let lacks = match (self.image, self.class) {
            (Some((name, offset, bytes)), Some(class)) => {
                items.push(listing.item(name, class, offset, bytes));
                return Ok(());
            }
            // Before the first member there is no sample.
            _ if self.key.is_empty() => return Ok(()),
            (Some(_), None) => "class (.cls)",
            (None, Some(_)) => "image (.jpg, .jpeg or .png)",
            (None, None) => "image (.jpg, .jpeg or .png) and no class (.cls)",
        };
        let others = match self.others.as_slice() {
            [] => String::new(),
            others => format!("; it has .{}", others.join(", .")),
        };
        let folder = if self.class.is_none() && self.key.contains('/') {
            "; a tar of a folder with train/CLASS and val/CLASS must be unpacked"
        } else {
            ""
        };
        Err(Error::file(
            tar,
            format!("has a sample {:?} with no {lacks} next to it{others}{folder}", self.key),
        ))
    }
}

/// The index in a `.cls`.
fn class(tar: &Archive, member: Member) -> Result<u32> {
    let mut text = vec![0; member.bytes.min(32) as usize];
    tar.file.read_exact_at(&mut text, member.offset).map_err(Error::io("read", tar.path))?;
    let text = String::from_utf8_lossy(&text);
    let index = text.trim().parse().ok().filter(|&index| (index as usize) < MAX_CLASSES);
    index.ok_or_else(|| {
        let reason = format!("is no class; expected a number below {MAX_CLASSES}, found {text:?}");
        tar.member_error(member.name, &reason)
    })
}

/// The classes' folders, by index.
fn class_folders(root: &Path, largest: usize) -> Result<Vec<String>> {
    let path = root.join(CLASSES);
    if !path.exists() {
        let width = largest.to_string().len();
        return Ok((0..=largest).map(|index| format!("{index:0width$}")).collect());
    }
    let text = text::read(&path)?;
    let mut folders = Vec::new();
    let mut known = HashSet::new();
    for line in text.trim_end().lines().map(str::trim) {
        if matches!(line, "" | "." | "..") || line.contains(['/', '\0']) {
            let number = folders.len() + 1;
            let reason = format!("line {number}: expected the name of a folder, found {line:?}");
            return Err(Error::file(path, reason));
        }
        if !known.insert(line) {
            return Err(Error::file(path, format!("has the class {line:?} twice")));
        }
        folders.push(line.into());
    }
    if folders.len() <= largest || folders.len() > MAX_CLASSES {
        let reason = format!(
            "has {} lines; expected one for each class, but no more than {MAX_CLASSES}: the \
             largest in the tars is {largest}, counted from 0",
            folders.len()
        );
        return Err(Error::file(path, reason));
    }
    Ok(folders)
}

/// Renames images that are called like the one before them, as `KEY~2.EXTENSION` and so on, and says
/// whether there were any. Tars often count their samples from 0 each.
fn make_unique(items: &mut [Item]) -> bool {
    let same = |items: &[Item], i: usize| i > 0 && items[i].name == items[i - 1].name;
    if !(0..items.len()).any(|i| same(items, i)) {
        return false;
    }
    let mut taken: HashSet<String> = items.iter().map(|item| item.name.clone()).collect();
    let (mut called, mut count) = (String::new(), 1);
    for item in items {
        if item.name != called {
            (called, count) = (item.name.clone(), 1);
            continue;
        }
        // A file's name has its dot: it is a key and an extension.
        let (stem, extension) = called.rsplit_once('.').unwrap_or((&called, ""));
        while {
            count += 1;
            item.name = format!("{stem}~{count}.{extension}");
            !taken.insert(item.name.clone())
        } {}
    }
    true
}
