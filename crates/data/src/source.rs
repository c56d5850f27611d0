//! What a set of shards is made from: a listing of images in a fixed order, each to be read alone.
//!
//! This is an [`ImageFolder`] tree, ImageNet's own tars (`source/ilsvrc.rs`), WebDataset tars
//! (`source/webdataset.rs`) or a set that was packed before (`source/shards.rs`). Of tars the headers
//! are read, and an image from its place when it is asked for.

mod ilsvrc;
mod shards;
mod webdataset;

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Split;
use super::folder::{self, ImageFolder, Sample};
use super::shard::manifest::MANIFEST;
use super::shard::set::check_crc32c;
use super::tar::{Archive, Member, ReadAt};
use zfnet_core::{Error, Result};

/// An image larger than this is not read: no photograph of a training set comes near it.
pub const MAX_IMAGE_BYTES: u64 = 256 << 20;
/// Images or members between two looks at whether to go on listing.
const STRETCH: usize = 1024;
/// Tars beyond these are opened for each image, so that any number of them fits a process's limit on
/// open files.
const KEPT_OPEN: usize = 256;
const ACCEPTED: &str = "expected a folder with train/CLASS/*.JPEG and val/CLASS/*.JPEG, or with \
    ILSVRC2012_img_train.tar or ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz, or with \
    WebDataset tars (train-*.tar, val-*.tar), or a set made by `zfnet pack`; or one .tar";

/// The images of a source, in a fixed order, with the classes they belong to.
pub struct Source {
    /// "ImageFolder", "ILSVRC2012 tars", "WebDataset tars" or "zfnet shards".
    pub kind: &'static str,
    /// Names of the classes' folders (WordNet ids, for ImageNet), by class index.
    pub classes: Vec<String>,
    /// Readable names, by class index.
    pub names: Vec<String>,
    /// By class, then by file name (bytes).
    pub train: Vec<Item>,
    /// By class, then by file name. This one or `train` may be empty, but for an ImageFolder.
    pub val: Vec<Item>,
    tars: Vec<Tar>,
}

/// One image of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// `CLASS/FILE`, the only one so called in its split.
    pub name: String,
    /// Index into the classes.
    pub class: u32,
    /// Length of the image file.
    pub bytes: u64,
    place: Place,
}

/// Where an image's bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    File(PathBuf),
    /// From `offset` on in one of the source's tars.
    Tar {
        tar: u32,
        offset: u64,
        /// What its CRC-32C must be, where that is known.
        crc32c: Option<u32>,
    },
}

impl Source {
    /// Lists a source; nothing is read but names, sizes and the numbers of classes. `observe` is
    /// called now and then with the number of images found so far, and ends the listing if it fails.
    ///
    /// # Errors
    /// If there is no source, or one that cannot be used: what was expected, what was found.
    pub fn open(path: &Path, observe: &mut dyn FnMut(usize) -> Result<()>) -> Result<Self> {
        let listing = Listing { tars: Vec::new(), members: 0, found: 0, observe };
        if path.is_file() {
            let folder = path.parent().unwrap_or(Path::new(""));
            let is_tar = path.extension().is_some_and(|extension| extension == "tar");
            return match path.file_name().and_then(|name| name.to_str()) {
                Some(ilsvrc::TRAIN) => ilsvrc::open(folder, listing),
                Some(ilsvrc::VAL) => {
                    let reason = "holds no classes; give the folder in which it and \
                                  ILSVRC2012_devkit_t12.tar.gz lie";
                    Err(Error::file(path, reason))
                }
                _ if is_tar => webdataset::open(folder, vec![path.into()], listing),
                _ => Err(Error::file(path, format!("is a file; {ACCEPTED}"))),
            };
        }
        if !path.is_dir() {
            return Err(Error::file(path, format!("does not exist; {ACCEPTED}")));
        }
        if path.join("train").is_dir() {
            let ImageFolder { classes, names, train, val, .. } = ImageFolder::open(path)?;
            let train = folder_items(train, &classes, listing.observe)?;
            let val = folder_items(val, &classes, listing.observe)?;
            return Ok(Source {
                kind: "ImageFolder",
                classes,
                names,
                train,
                val,
                tars: Vec::new(),
            });
        }
        if path.join(MANIFEST).is_file() {
            return shards::open(path, listing);
        }
        if [ilsvrc::TRAIN, ilsvrc::VAL].iter().any(|name| path.join(name).is_file()) {
            return ilsvrc::open(path, listing);
        }
        let entries = folder::entries(path)?;
        let is_tar = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "tar");
        let files = entries.iter().filter(|entry| !entry.is_dir).map(|entry| entry.path.clone());
        let tars: Vec<_> = files.filter(is_tar).collect();
        if tars.is_empty() {
            let found = folder::found(&entries);
            return Err(Error::file(path, format!("is no source of images; {ACCEPTED}; {found}")));
        }
        webdataset::open(path, tars, listing)
    }

    /// The images of a split.
    pub fn items(&self, split: Split) -> &[Item] {
        match split {
            Split::Train => &self.train,
            Split::Val => &self.val,
        }
    }

    /// Reads an image's file into `bytes`.
    ///
    /// # Errors
    /// If it cannot be read, is too large or, in a set, is not what was packed; names it.
    pub fn read(&self, item: &Item, bytes: &mut Vec<u8>) -> Result<()> {
        let (tar, offset, expected) = match &item.place {
            Place::File(path) => return read_file(path, bytes),
            Place::Tar { tar, offset, crc32c } => (&self.tars[*tar as usize], *offset, *crc32c),
        };
        bytes.clear();
        if item.bytes > MAX_IMAGE_BYTES {
            let Item { name, bytes, .. } = item;
            let reason = format!("{name}: expected at most {MAX_IMAGE_BYTES} bytes, found {bytes}");
            return Err(Error::file(&tar.path, reason));
        }
        bytes.resize(item.bytes as usize, 0);
        tar.read(bytes, offset)?;
        match expected.map(|expected| check_crc32c(bytes, expected)) {
            Some(Err(reason)) => Err(Error::file(&tar.path, format!("{}: {reason}", item.name))),
            _ => Ok(()),
        }
    }

    /// A source of tars, with its items in order.
    ///
    /// # Errors
    /// If it has no image or a single class.
    fn of_tars(mut self, root: &Path) -> Result<Self> {
        for items in [&mut self.train, &mut self.val] {
            // Within a class all names begin with its folder, so this is by file name.
            items.sort_by(|a, b| (a.class, &a.name).cmp(&(b.class, &b.name)));
        }
        if self.train.is_empty() && self.val.is_empty() {
            return Err(Error::file(root, format!("holds no image in {}", self.kind)));
        }
        if self.classes.len() < 2 {
            return Err(Error::file(root, "holds a single class; a classifier needs at least two"));
        }
        Ok(self)
    }
}

/// A tar or shard that images are read from.
struct Tar {
    path: PathBuf,
    bytes: u64,
    /// Open, if it is one of the first [`KEPT_OPEN`].
    file: Option<Arc<File>>,
}

impl Tar {
    fn open(path: PathBuf) -> Result<Self> {
        // Asked before it is opened: opening a pipe would wait for whoever writes into it.
        let metadata = fs::metadata(&path).map_err(Error::io("read", &path))?;
        if !metadata.is_file() {
            return Err(Error::file(&path, "is no file; expected a tar"));
        }
        let file = File::open(&path).map_err(Error::io("read", &path))?;
        Ok(Tar { bytes: metadata.len(), file: Some(Arc::new(file)), path })
    }

    fn read(&self, out: &mut [u8], offset: u64) -> Result<()> {
        let read = match &self.file {
            Some(file) => file.read_exact_at(out, offset),
            None => File::open(&self.path).and_then(|file| file.read_exact_at(out, offset)),
        };
        // Cut short since it was listed: no fault of the image, so no `Error::File`.
        read.map_err(Error::io("read", &self.path))
    }
}

/// A listing of tars under way.
struct Listing<'a> {
    tars: Vec<Tar>,
    members: usize,
    found: usize,
    observe: &'a mut dyn FnMut(usize) -> Result<()>,
}

impl Listing<'_> {
    /// Opens one more tar and shows its members, with what is needed to read and to place them.
    fn list(
        &mut self,
        path: &Path,
        visit: &mut dyn FnMut(&mut Self, &Archive, Member) -> Result<()>,
    ) -> Result<()> {
        let tar = Tar::open(path.into())?;
        let (bytes, file) = (tar.bytes, tar.file.clone().expect("just opened"));
        self.push(tar);
        let archive = Archive { path, inner: "", file: &*file, start: 0, bytes };
        archive.members(&mut |member| {
            self.step()?;
            visit(self, &archive, member)
        })
    }

    /// Adds a tar, to which the items that follow belong.
    fn push(&mut self, mut tar: Tar) {
        if self.tars.len() >= KEPT_OPEN {
            tar.file = None;
        }
        self.tars.push(tar);
    }

    /// Counts a member.
    fn step(&mut self) -> Result<()> {
        self.members += 1;
        if self.members % STRETCH == 1 { (self.observe)(self.found) } else { Ok(()) }
    }

    /// An image of the last tar.
    fn item(&mut self, name: String, class: u32, offset: u64, bytes: u64) -> Item {
        self.found += 1;
        let tar = self.tars.len() as u32 - 1;
        Item { name, class, bytes, place: Place::Tar { tar, offset, crc32c: None } }
    }
}

/// The images of a folder with their sizes.
fn folder_items(
    samples: Vec<Sample>,
    classes: &[String],
    observe: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<Vec<Item>> {
    let mut items = Vec::with_capacity(samples.len());
    for Sample { path, class } in samples {
        if items.len() % STRETCH == 0 {
            observe(items.len())?;
        }
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        let name = format!("{}/{file}", classes[class as usize]);
        // What cannot even be asked for its size is told when it is read.
        let bytes = fs::metadata(&path).map_or(0, |metadata| metadata.len());
        items.push(Item { name, class, bytes, place: Place::File(path) });
    }
    Ok(items)
}

/// Reads a file whole, if it is one and not too large.
///
/// # Errors
/// If it is no file, too large or cannot be read; names it.
pub fn read_file(path: &Path, bytes: &mut Vec<u8>) -> Result<()> {
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
