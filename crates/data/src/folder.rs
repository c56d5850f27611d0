//! An `ImageFolder` tree, as torchvision's: `train/CLASS/*.JPEG` and `val/CLASS/*.JPEG`.
//!
//! A class's index is the place of its folder's name among the sorted names (by bytes) of `train`;
//! `val` may lack classes, but not add any. Files named .jpg, .jpeg or .png, in any case, are
//! listed in sorted order. Hidden files and those that systems leave everywhere are skipped; whatever else is not
//! used is counted and told in the log. Symbolic links to files and folders are followed. Nothing is read but names,
//! and `classes.tsv` where there is one ([`read_names`]).

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsString;
use std::fs;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use super::Split;
use super::classes::{Classes, read_names};
use super::shard::ShardSet;
use super::shard::index::MAGIC;
use super::shard::manifest::MANIFEST;
use zfnet_core::{Error, Result};

/// An image larger than this is not read: no photograph of a training set comes near it.
pub(crate) const MAX_IMAGE_BYTES: u64 = 256 << 20;

/// Readable names of a tree's classes.
const NAMES: &str = "classes.tsv";
/// What systems leave in folders.
const SYSTEM_FILES: [&str; 6] =
    ["Thumbs.db", "desktop.ini", "Icon\r", "__MACOSX", "@eaDir", "lost+found"];
/// What people call the folder of a split.
const TRAIN_NAMES: [&str; 4] = ["train", "training", "train_images", "trainset"];
const VAL_NAMES: [&str; 9] =
    ["val", "valid", "validation", "validate", "test", "testing", "dev", "eval", "testset"];

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
        let found = fs::metadata(root).map_err(|error| match error.kind() {
            ErrorKind::NotFound => Error::file(root, format!("does not exist; {tree}")),
            _ => Error::io("read", root)(error),
        })?;
        if !found.is_dir() {
            return Err(match archive(root) {
                Some("tar") => Error::NotPacked { path: root.into() },
                Some(kind) => Error::file(
                    root,
                    format!("is a {kind} archive; unpack it and give the folder; {tree}"),
                ),
                None => Error::file(root, format!("is a file; {tree}")),
            });
        }

        let mut unused = Unused::default();
        let folders = class_folders(root, Split::Train, &mut unused)?;
        if let [only] = &folders[..] {
            let reason = "is the only class folder; a classifier needs at least two";
            return Err(Error::file(&only.path, format!("{reason}{}", doubled(only))));
        }
        let mut train = Vec::new();
        for (class, folder) in folders.iter().enumerate() {
            push_some_images(&folder.path, class, &mut train, &mut unused)?;
        }

        let mut val = Vec::new();
        for folder in class_folders(root, Split::Val, &mut unused)? {
            let Ok(class) = folders.binary_search_by(|known| known.name.cmp(&folder.name)) else {
                let reason = "is a class that train does not have; expected the same folder names";
                return Err(Error::file(&folder.path, format!("{reason}{}", doubled(&folder))));
            };
            push_images(&folder.path, class, &mut val, &mut unused)?;
        }
        check_val(root, &val, &unused)?;
        tell_without_val(root, &folders, &val);
        let classes: Vec<_> = folders.iter().map(Entry::lossy_name).collect();
        let mut known = HashSet::new();
        if let Some((_, folder)) =
            classes.iter().zip(&folders).find(|(name, _)| !known.insert(*name))
        {
            let reason = "has a name that is no UTF-8, like that of another class; rename it";
            return Err(Error::file(&folder.path, reason));
        }
        let names = names_at(root, &classes)?;
        unused.tell(root, IN_CLASSES);
        Ok(Self { root: root.into(), classes, names, train, val })
    }

    /// What there is where the folder of a split should be.
    pub(super) fn no_split(&self, split: Split) -> Error {
        no_split(&self.root, split)
    }

    /// Lists `val` alone, for a network that has these classes: where nothing is trained, no training images are
    /// needed.
    ///
    /// # Errors
    /// If `val` cannot be used, or has a class that the network does not have.
    pub fn open_val(root: &Path, known: &Classes) -> Result<Self> {
        let mut unused = Unused::default();
        let mut val = Vec::new();
        let folders = class_folders(root, Split::Val, &mut unused)?;
        let own: Vec<_> = folders.iter().map(Entry::lossy_name).collect();
        let names = names_at(root, &own)?;
        for ((folder, own), name) in folders.iter().zip(&own).zip(names) {
            let class = known.position(own).or_else(|| known.position(&name));
            let Some(class) = class.filter(|_| known.are_known()) else {
                let reason = if known.are_known() {
                    "is a class that the network does not have"
                } else {
                    "which class of the network it is is not known without train: the network's file does not \
                     name its classes"
                };
                return Err(Error::file(&folder.path, reason));
            };
            push_images(&folder.path, class, &mut val, &mut unused)?;
        }
        check_val(root, &val, &unused)?;
        unused.tell(root, IN_CLASSES);
        val.sort_by(|a, b| (a.class, &a.path).cmp(&(b.class, &b.path)));
        let classes = known.folders().unwrap_or(&known.names).to_vec();
        Ok(Self { root: root.into(), classes, names: known.names.clone(), train: Vec::new(), val })
    }

    /// Lists one split alone, with the classes that it has itself: where nothing is trained or measured.
    ///
    /// # Errors
    /// If it cannot be used or has no image.
    pub(super) fn open_alone(root: &Path, split: Split) -> Result<Self> {
        let mut unused = Unused::default();
        let folders = class_folders(root, split, &mut unused)?;
        let classes: Vec<_> = folders.iter().map(Entry::lossy_name).collect();
        let names = names_at(root, &classes)?;
        let mut samples = Vec::new();
        for (class, folder) in folders.iter().enumerate() {
            push_images(&folder.path, class, &mut samples, &mut unused)?;
        }
        if samples.is_empty() {
            return Err(no_image(&root.join(split.name()), &unused));
        }
        unused.tell(root, IN_CLASSES);
        let (train, val) = match split {
            Split::Train => (samples, Vec::new()),
            Split::Val => (Vec::new(), samples),
        };
        Ok(Self { root: root.into(), classes, names, train, val })
    }
}

/// All images of a folder and the folders in it, by path, as of class 0. A folder that links lead to from several
/// places is listed at the first: so that links in a circle end, too.
///
/// # Errors
/// If there are none, or a folder cannot be listed.
pub(super) fn all_images(root: &Path) -> Result<Vec<Sample>> {
    let mut unused = Unused::default();
    let mut samples = Vec::new();
    let real = |folder: &Path| folder.canonicalize().map_err(Error::io("list", folder));
    let mut listed = HashSet::from([real(root)?]);
    let mut left = entries(root)?; // the next one last
    left.reverse();
    while let Some(entry) = left.pop() {
        if entry.is_dir {
            if listed.insert(real(&entry.path)?) {
                left.extend(entries(&entry.path)?.into_iter().rev());
            } else {
                tracing::warn!("{}: left out: is listed elsewhere", entry.path.display());
            }
        } else if is_image(&entry.path) {
            samples.push(Sample { path: entry.path, class: 0 });
        } else {
            unused.add(&entry);
        }
    }
    if samples.is_empty() {
        // Tars of images, or shards that have lost their manifest: what to do about these is known there.
        let tars = unused.by_kind.contains_key(".tar");
        return Err(if tars { no_split(root, Split::Val) } else { no_image(root, &unused) });
    }
    unused.tell(root, "");
    Ok(samples)
}

/// A folder without images: what it has instead.
fn no_image(folder: &Path, unused: &Unused) -> Error {
    let advice = if unused.are_images() { format!("; {CONVERT}") } else { String::new() };
    let found = match unused.kinds() {
        kinds if kinds.is_empty() => "nothing".into(),
        kinds => format!("only {kinds}"),
    };
    Error::file(folder, format!("expected .jpg, .jpeg or .png files, found {found}{advice}"))
}

/// What to do about a folder in the place of a class that is a split's: `train/train`, as archives are unpacked.
fn doubled(folder: &Entry) -> &'static str {
    let name = folder.lossy_name().to_lowercase();
    let is_split = TRAIN_NAMES.iter().chain(&VAL_NAMES).any(|known| *known == name);
    let has_folders =
        || entries(&folder.path).is_ok_and(|inside| inside.iter().any(|entry| entry.is_dir));
    if is_split && has_folders() {
        "; its folders seem to be the classes: move them one level up"
    } else {
        ""
    }
}

/// The readable names of classes, if there is a file of them.
fn names_at(root: &Path, classes: &[String]) -> Result<Vec<String>> {
    let path = root.join(NAMES);
    // Also a link that leads nowhere is there.
    if fs::symlink_metadata(&path).is_ok() {
        read_names(&path, classes)
    } else {
        Ok(classes.to_vec())
    }
}

/// Tells of classes that will be learnt and never measured.
fn tell_without_val(root: &Path, folders: &[Entry], val: &[Sample]) {
    let measured: HashSet<u32> = val.iter().map(|sample| sample.class).collect();
    let mut without = (0..).zip(folders).filter(|(class, _)| !measured.contains(class));
    if let Some((_, first)) = without.next() {
        tracing::warn!(
            "{}: val has no image of {} class(es), as {}",
            root.display(),
            1 + without.count(),
            first.lossy_name()
        );
    }
}

fn check_val(root: &Path, val: &[Sample], unused: &Unused) -> Result<()> {
    if val.is_empty() {
        let mut reason = "has no image in any class folder; expected val/CLASS/*.JPEG".to_owned();
        if unused.are_images() {
            reason += &format!(", found only {}; {CONVERT}", unused.kinds());
        }
        return Err(Error::file(root.join("val"), reason));
    }
    Ok(())
}

/// The class folders of a split, sorted; at least one.
fn class_folders(root: &Path, split: Split, unused: &mut Unused) -> Result<Vec<Entry>> {
    let name = split.name();
    let path = root.join(name);
    if !path.is_dir() {
        return Err(no_split(root, split));
    }
    let mut folders = entries(&path)?;
    if let Some(lost) = folders.iter().find(|entry| entry.leads_nowhere && !is_image(&entry.path)) {
        let reason = "is a link that leads nowhere; mend or remove it, or a class may be missing";
        return Err(Error::file(&lost.path, reason));
    }
    if !folders.iter().any(|entry| entry.is_dir) {
        let found = found(&folders);
        let images = folders.iter().any(|entry| is_image(&entry.path));
        let advice = if images { "; move each image into the folder of its class" } else { "" };
        let reason = format!("has no class folders; expected {name}/CLASS/*.JPEG, {found}{advice}");
        return Err(Error::file(path, reason));
    }
    folders.retain(|entry| {
        if !entry.is_dir {
            unused.add(entry);
        }
        entry.is_dir
    });
    Ok(folders)
}

/// A folder without one of a split: what it has, and what may be meant.
pub(super) fn no_split(root: &Path, split: Split) -> Error {
    let name = split.name();
    let found_entries = match entries(root) {
        Ok(entries) => entries,
        Err(error) => return error,
    };
    if let Some(error) = lost_manifest(root, &found_entries) {
        return error;
    }
    let is_tar = |entry: &Entry| !entry.is_dir && archive(&entry.path) == Some("tar");
    let has_split = |split: Split| root.join(split.name()).is_dir();
    if found_entries.iter().any(is_tar) && !has_split(Split::Train) && !has_split(Split::Val) {
        return Error::NotPacked { path: root.into() };
    }
    let found = found(&found_entries);
    let reason = format!("has no folder {name}; expected {name}/CLASS/*.JPEG, {found}");
    let advice =
        meant(root, split, &found_entries).map_or(String::new(), |advice| format!("; {advice}"));
    Error::file(root, reason + &advice)
}

/// A set of shards that has lost its manifest, which says whose they are.
pub(super) fn lost_manifest(root: &Path, found: &[Entry]) -> Option<Error> {
    // Others write files of this name beside WebDataset's tars.
    let is_index = |entry: &Entry| {
        let mut magic = [0; MAGIC.len()];
        entry.path.extension().is_some_and(|extension| extension == "idx")
            && entry.path.is_file()
            && fs::File::open(&entry.path).and_then(|mut file| file.read_exact(&mut magic)).is_ok()
            && magic == *MAGIC
    };
    found.iter().find(|entry| is_index(entry)).map(|_| Error::DamagedSet {
        path: root.join(MANIFEST),
        reason: "is missing: these are shards of a set that can no longer be told what they hold"
            .into(),
    })
}

/// What to do about a folder without one of this split, if that can be guessed.
pub(super) fn meant(root: &Path, split: Split, found: &[Entry]) -> Option<String> {
    let name = split.name();
    let folders = || found.iter().filter(|entry| entry.is_dir);
    let names = match split {
        Split::Train => &TRAIN_NAMES[..],
        Split::Val => &VAL_NAMES[..],
    };
    let called =
        |known: &&str| folders().map(Entry::lossy_name).find(|name| name.to_lowercase() == **known);
    if let Some(other) = names.iter().find_map(called) {
        let link = root.join(name);
        return Some(format!(
            "is {other}/ meant? Then rename or link it (ln -s {other} {})",
            link.display()
        ));
    }
    let has_split = |folder: &Path| folder.join(name).is_dir();
    if let Some(inner) = folders().find(|entry| has_split(&entry.path)) {
        return Some(format!("is {} meant?", inner.path.display()));
    }
    let absolute = std::path::absolute(root).ok()?;
    if let Some(outer) = absolute.ancestors().skip(1).take(2).find(|outer| has_split(outer)) {
        return Some(format!("is {} meant?", outer.display()));
    }
    if let Some(packed) = found.iter().find_map(|entry| Some((entry, archive(&entry.path)?))) {
        return Some(format!("unpack {} first", packed.0.lossy_name()));
    }
    let holds_images = |entry: &&Entry| {
        entries(&entry.path).is_ok_and(|inside| inside.iter().any(|file| is_image(&file.path)))
    };
    let class = folders().find(holds_images).map(Entry::lossy_name);
    Some(match (split, class) {
        (Split::Train, None) => return None,
        (Split::Val, None) => "move of each class some images from train/CLASS to val/CLASS".into(),
        (Split::Train, Some(class)) => format!(
            "its folders hold images: move them to train/ ({class} to train/{class}), and of each class some \
             images to val/"
        ),
        (Split::Val, Some(class)) => {
            format!("move of each class some images to val/ (to val/{class}, say)")
        }
    })
}

/// Whether something may be written at `out`, which need not be there yet.
///
/// # Errors
/// If that lies in the `train` or `val` of a tree of images, where it would be taken for a class or for images of one,
/// or in a set of shards.
pub fn check_output(out: &Path) -> Result<()> {
    let place = resolve(out);
    let is_checkpoint = |folder: &&Path| {
        folder.file_name().is_some_and(|name| name.to_string_lossy().starts_with("step-"))
            && folder.join("state.json").is_file()
    };
    if let Some(checkpoint) = place.ancestors().find(is_checkpoint) {
        let reason = format!(
            "lies in the checkpoint {}, which may be removed; choose another folder",
            checkpoint.display()
        );
        return Err(Error::file(out, reason));
    }
    outside_of_shards(out, &place)?;
    outside_of_images(out, &place)
}

/// Refuses the resolved `place` of an output if a set of shards is there.
pub(super) fn outside_of_shards(out: &Path, place: &Path) -> Result<()> {
    match place.ancestors().find(|folder| ShardSet::is_at(folder)) {
        None => Ok(()),
        Some(set) => {
            let reason =
                format!("lies in the set of shards {}; choose another folder", set.display());
            Err(Error::file(out, reason))
        }
    }
}

/// Refuses the resolved `place` of an output if it lies among a tree's images.
pub(super) fn outside_of_images(out: &Path, place: &Path) -> Result<()> {
    let holds_images = |folder: &Entry| {
        entries(&folder.path).is_ok_and(|all| all.iter().any(|e| is_image(&e.path)))
    };
    for folder in place.ancestors() {
        let is_split = |split: Split| folder.file_name().is_some_and(|name| name == split.name());
        let other = match () {
            () if is_split(Split::Train) => Split::Val,
            () if is_split(Split::Val) => Split::Train,
            () => continue,
        };
        // Neither what is to be written there, nor what an earlier version has written, makes it a tree of images.
        let beside =
            |entry: &Entry| entry.is_dir && (folder == place || !place.starts_with(&entry.path));
        let is_tree = folder.with_file_name(other.name()).is_dir()
            && entries(folder).is_ok_and(|all| all.iter().filter(|e| beside(e)).any(holds_images));
        if is_tree {
            let reason =
                format!("lies among the images of {}; choose another folder", folder.display());
            return Err(Error::file(out, reason));
        }
    }
    Ok(())
}

/// A path without links, of which the last parts need not exist yet.
pub(crate) fn resolve(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    for known in path.ancestors() {
        if let Ok(real) = known.canonicalize() {
            let rest = path.strip_prefix(known).expect("an ancestor");
            return if rest.as_os_str().is_empty() { real } else { real.join(rest) };
        }
    }
    path
}

/// The kind of archive that a file's name says it is.
pub(super) fn archive(path: &Path) -> Option<&'static str> {
    let name = path.file_name()?.to_string_lossy().to_lowercase();
    let kinds = [
        (".tar.gz", "tar.gz"),
        (".tgz", "tar.gz"),
        (".tar.bz2", "tar.bz2"),
        (".tar.xz", "tar.xz"),
        (".tar.zst", "tar.zst"),
        (".tar", "tar"),
        (".zip", "zip"),
        (".7z", "7z"),
        (".rar", "rar"),
    ];
    kinds.into_iter().find(|(ending, _)| name.ends_with(ending)).map(|(_, kind)| kind)
}

/// Appends the images of one class folder, sorted; there must be some.
fn push_some_images(
    folder: &Path,
    class: usize,
    samples: &mut Vec<Sample>,
    unused: &mut Unused,
) -> Result<()> {
    let before = samples.len();
    let mut others = Unused::default();
    push_images(folder, class, samples, &mut others)?;
    if samples.len() > before {
        unused.append(others);
        return Ok(());
    }
    if folder.join("metrics.jsonl").is_file() {
        let reason = "is a run of training, not a class: move it out of the images";
        return Err(Error::file(folder, reason));
    }
    let found = match others.kinds() {
        kinds if kinds.is_empty() => String::new(),
        kinds => format!(", only {kinds}"),
    };
    let advice = if others.are_images() {
        CONVERT
    } else if others.by_kind.contains_key(FOLDER) {
        "move the images into it, or the folders to where classes are"
    } else {
        "add images or remove the folder"
    };
    let reason = format!(
        "has no .jpg, .jpeg or .png file{found}, so that its class cannot be learnt; {advice}"
    );
    Err(Error::file(folder, reason))
}

/// Appends the images of one class folder, sorted, if it has any.
fn push_images(
    folder: &Path,
    class: usize,
    samples: &mut Vec<Sample>,
    unused: &mut Unused,
) -> Result<()> {
    for entry in entries(folder)? {
        if !entry.is_dir && is_image(&entry.path) {
            samples.push(Sample { path: entry.path, class: class as u32 });
        } else {
            unused.add(&entry);
        }
    }
    Ok(())
}

pub(super) fn is_image(path: &Path) -> bool {
    let extension = path.extension().unwrap_or_default();
    ["jpg", "jpeg", "png"].iter().any(|known| extension.eq_ignore_ascii_case(known))
}

/// What a folder holds that is not used, though it may have been meant to be.
#[derive(Default)]
struct Unused {
    /// How many of each kind (an extension, or a word), and the first of them.
    by_kind: BTreeMap<String, (usize, PathBuf)>,
}

const FOLDER: &str = "folder";
/// Where a tree's images are.
const IN_CLASSES: &str = " in the folders of classes";
/// What to do about images of other kinds.
const CONVERT: &str = "convert them, as `mogrify -format jpg` of ImageMagick does";

impl Unused {
    fn add(&mut self, entry: &Entry) {
        let extension = entry.path.extension().map(|e| e.to_string_lossy().to_lowercase());
        let kind = match extension {
            _ if entry.is_dir => FOLDER.to_owned(),
            Some(extension) => format!(".{extension}"),
            None => "file without an extension".to_owned(),
        };
        let (count, _) = self.by_kind.entry(kind).or_insert_with(|| (0, entry.path.clone()));
        *count += 1;
    }

    fn append(&mut self, more: Unused) {
        for (kind, (more, first)) in more.by_kind {
            self.by_kind.entry(kind).or_insert((0, first)).0 += more;
        }
    }

    /// Whether there are images of other kinds.
    fn are_images(&self) -> bool {
        const IMAGES: [&str; 12] = [
            ".webp", ".bmp", ".gif", ".tif", ".tiff", ".heic", ".heif", ".avif", ".jp2", ".ppm",
            ".jfif", ".jxl",
        ];
        IMAGES.iter().any(|kind| self.by_kind.contains_key(*kind))
    }

    /// "12 .webp, 1 folder".
    fn kinds(&self) -> String {
        let kind = |(kind, (count, _)): (&String, &(usize, PathBuf))| format!("{count} {kind}");
        self.by_kind.iter().map(kind).collect::<Vec<_>>().join(", ")
    }

    /// Names them; `place` says where images are expected.
    fn tell(&self, root: &Path, place: &str) {
        if let Some((_, first)) = self.by_kind.values().next() {
            tracing::warn!(
                "{}: not used are {}, as {}: expected .jpg, .jpeg or .png files{}",
                root.display(),
                self.kinds(),
                first.display(),
                place
            );
        }
    }
}

pub(super) struct Entry {
    pub(super) name: OsString,
    pub(super) path: PathBuf,
    pub(super) is_dir: bool,
    /// Whether it is a symbolic link to what is not there.
    leads_nowhere: bool,
}

impl Entry {
    fn lossy_name(&self) -> String {
        self.name.to_string_lossy().into_owned()
    }
}

/// What a folder holds, sorted by name, without hidden entries and what systems leave there; links are followed.
pub(super) fn entries(folder: &Path) -> Result<Vec<Entry>> {
    let cannot_list = |source| Error::io("list", folder)(source);
    let mut entries = Vec::new();
    for entry in fs::read_dir(folder).map_err(cannot_list)? {
        let entry = entry.map_err(cannot_list)?;
        let (name, path) = (entry.file_name(), entry.path());
        if name.as_encoded_bytes().starts_with(b".")
            || SYSTEM_FILES.iter().any(|known| name == *known)
        {
            continue;
        }
        let kind = entry.file_type().map_err(cannot_list)?;
        // A link that leads nowhere counts as a file: one that cannot be read, later.
        let is_dir = if kind.is_symlink() { path.is_dir() } else { kind.is_dir() };
        let leads_nowhere = kind.is_symlink() && !path.exists();
        entries.push(Entry { name, path, is_dir, leads_nowhere });
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

/// "found a, b, c and 7 more", for a message.
pub(super) fn found(entries: &[Entry]) -> String {
    let first: Vec<_> = entries.iter().take(3).map(Entry::lossy_name).collect();
    match entries.len() {
        0 => "found nothing".into(),
        n if n > first.len() => format!("found {} and {} more", first.join(", "), n - first.len()),
        _ => format!("found {}", first.join(", ")),
    }
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
