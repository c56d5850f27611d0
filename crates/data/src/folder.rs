//! An `ImageFolder` tree, as torchvision's: `train/CLASS/*.JPEG` and `val/CLASS/*.JPEG`.
//!
//! A class's index is the place of its folder's name among the sorted names (by bytes) of `train`;
//! `val` may lack classes, but not add any. Files named .jpg, .jpeg or .png, in any case, are
//! listed in sorted order; other files, hidden ones and deeper folders are skipped. Symbolic links
//! to files and folders are followed. Nothing is read but names, and `classes.tsv` where there is
//! one: lines of `CLASS<TAB>readable name`, further columns ignored.

use std::ffi::OsString;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use zfnet_core::{Error, Result};

/// An image larger than this is not read: no photograph of a training set comes near it.
pub(crate) const MAX_IMAGE_BYTES: u64 = 256 << 20;

/// The images of a tree, in a fixed order, with the classes they belong to.
#[derive(Clone, Debug)]
pub struct ImageFolder {
    /// As given to `open`; every path begins with it.
    pub root: PathBuf,
    /// Names of the class folders (lossy where not UTF-8), by class index.
    pub classes: Vec<String>,
    /// Readable names from `classes.tsv`, by class index; the folder's name where it has none.
    pub names: Vec<String>,
    /// By class, then by file name.
    pub train: Vec<Sample>,
    /// By class, then by file name.
    pub val: Vec<Sample>,
}

/// One image file and its class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// The file.
    pub path: PathBuf,
    /// Index into `classes`.
    pub class: u32,
}

impl ImageFolder {
    /// Lists the tree; an error says what was expected, what was found and, where it can, what to do.
    pub fn open(root: &Path) -> Result<Self> {
        let tree = "expected a folder with train/CLASS/*.JPEG and val/CLASS/*.JPEG";
        if !root.exists() {
            return Err(Error::file(root, format!("does not exist; {tree}")));
        }
        if !root.is_dir() {
            return Err(Error::file(root, format!("is a file; {tree}")));
        }

        let folders = class_folders(root, "train")?;
        if let [only] = &folders[..] {
            let reason = "is the only class folder; a classifier needs at least two";
            return Err(Error::file(&only.path, reason));
        }
        let mut train = Vec::new();
        for (class, folder) in folders.iter().enumerate() {
            if push_images(&folder.path, class, &mut train)? == 0 {
                let reason = "has no .jpg, .jpeg or .png file, so that its class cannot be \
                              learnt; add images or remove the folder";
                return Err(Error::file(&folder.path, reason));
            }
        }

        let mut val = Vec::new();
        for folder in class_folders(root, "val")? {
            let Ok(class) = folders.binary_search_by(|known| known.name.cmp(&folder.name)) else {
                let reason = "is a class that train does not have; expected the same folder names";
                return Err(Error::file(&folder.path, reason));
            };
            push_images(&folder.path, class, &mut val)?;
        }
        if val.is_empty() {
            let reason = "has no image in any class folder; expected val/CLASS/*.JPEG";
            return Err(Error::file(root.join("val"), reason));
        }

        let lossy = |folder: &Entry| folder.name.to_string_lossy().into_owned();
        let classes: Vec<_> = folders.iter().map(lossy).collect();
        let names = readable_names(root, &classes);
        Ok(Self { root: root.into(), classes, names, train, val })
    }
}

/// The class folders of a split, sorted; at least one.
fn class_folders(root: &Path, split: &str) -> Result<Vec<Entry>> {
    let path = root.join(split);
    if !path.is_dir() {
        let also =
            ["valid", "validation", "test"].into_iter().find(|name| root.join(name).is_dir());
        let advice = match also {
            Some(name) if split == "val" => format!("; is {name}/ meant? Then rename or link it"),
            _ => String::new(),
        };
        let found = found(&entries(root)?);
        let reason =
            format!("has no folder {split}; expected {split}/CLASS/*.JPEG, {found}{advice}");
        return Err(Error::file(root, reason));
    }
    let mut folders = entries(&path)?;
    if !folders.iter().any(|entry| entry.is_dir) {
        let found = found(&folders);
        let reason = format!("has no class folders; expected {split}/CLASS/*.JPEG, {found}");
        return Err(Error::file(path, reason));
    }
    folders.retain(|entry| entry.is_dir);
    Ok(folders)
}

/// Appends the images of one class folder, sorted, and says how many they are.
fn push_images(folder: &Path, class: usize, samples: &mut Vec<Sample>) -> Result<usize> {
    let before = samples.len();
    let images =
        entries(folder)?.into_iter().filter(|entry| !entry.is_dir && is_image(&entry.path));
    samples.extend(images.map(|entry| Sample { path: entry.path, class: class as u32 }));
    Ok(samples.len() - before)
}

fn is_image(path: &Path) -> bool {
    let extension = path.extension().unwrap_or_default();
    ["jpg", "jpeg", "png"].iter().any(|known| extension.eq_ignore_ascii_case(known))
}

pub(super) struct Entry {
    pub(super) name: OsString,
    pub(super) path: PathBuf,
    pub(super) is_dir: bool,
}

/// What a folder holds, sorted by name, without hidden entries; links are followed.
pub(super) fn entries(folder: &Path) -> Result<Vec<Entry>> {
    let cannot_list = |source| Error::io("list", folder)(source);
    let mut entries = Vec::new();
    for entry in fs::read_dir(folder).map_err(cannot_list)? {
        let entry = entry.map_err(cannot_list)?;
        let (name, path) = (entry.file_name(), entry.path());
        if name.as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let kind = entry.file_type().map_err(cannot_list)?;
        // A link that leads nowhere counts as a file: one that cannot be read, later.
        let is_dir = if kind.is_symlink() { path.is_dir() } else { kind.is_dir() };
        entries.push(Entry { name, path, is_dir });
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

/// "found a, b, c and 7 more", for a message.
pub(super) fn found(entries: &[Entry]) -> String {
    let name = |entry: &Entry| entry.name.to_string_lossy().into_owned();
    let first: Vec<_> = entries.iter().take(3).map(name).collect();
    match entries.len() {
        0 => "found nothing".into(),
        n if n > first.len() => format!("found {} and {} more", first.join(", "), n - first.len()),
        _ => format!("found {}", first.join(", ")),
    }
}

fn readable_names(root: &Path, classes: &[String]) -> Vec<String> {
    let mut names = classes.to_vec();
    for line in fs::read_to_string(root.join("classes.tsv")).unwrap_or_default().lines() {
        let mut columns = line.split('\t').map(str::trim);
        if let (Some(class), Some(name)) = (columns.next(), columns.next())
            && !name.is_empty()
            && let Some(index) = classes.iter().position(|known| known == class)
        {
            names[index] = name.into();
        }
    }
    names
}

/// Reads a file whole, if it is one and not too large.
///
/// # Errors
/// If it is no file, too large or cannot be read; names it.
pub(crate) fn read_file(path: &Path, bytes: &mut Vec<u8>) -> Result<()> {
    bytes.clear();
    // Asked before it is opened: opening a pipe would wait for whoever writes into it.
    if !fs::metadata(path).map_err(Error::io("read", path))?.is_file() {
        return Err(Error::file(path, "is no file; expected a JPEG or PNG image"));
    }
    fs::File::open(path)
        .and_then(|file| file.take(MAX_IMAGE_BYTES + 1).read_to_end(bytes))
        .map_err(Error::io("read", path))?;
    if bytes.len() as u64 > MAX_IMAGE_BYTES {
        let reason = format!("expected at most {MAX_IMAGE_BYTES} bytes, found more");
        return Err(Error::file(path, reason));
    }
    Ok(())
}
