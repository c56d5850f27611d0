//! The images of a source, and how they are listed and read.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::Split;
use crate::checksum::check_crc32c;
use crate::folder::{MAX_IMAGE_BYTES, read_file};
use crate::open_files::Permit;
use crate::tar::{Archive, Member, ReadAt};
use zfnet_core::{Error, Result};

/// Images or members between two looks at whether to go on listing.
pub(super) const PROGRESS_INTERVAL: usize = 1024;

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
    pub(super) tars: Vec<Tar>,
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
    pub(super) place: Place,
}

/// Where an image's bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
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
    pub(super) fn of_tars(mut self, root: &Path) -> Result<Self> {
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
pub(super) struct Tar {
    path: PathBuf,
    bytes: u64,
    /// Kept open, if the limit on open files allows it.
    file: Option<(Arc<File>, Permit)>,
}

impl Tar {
    /// A tar, and the file that is open for it.
    pub(super) fn open(path: PathBuf) -> Result<(Self, Arc<File>)> {
        // Asked before it is opened: opening a pipe would wait for whoever writes into it.
        let metadata = fs::metadata(&path).map_err(Error::io("read", &path))?;
        if !metadata.is_file() {
            return Err(Error::file(&path, "is no file; expected a tar"));
        }
        let file = Arc::new(File::open(&path).map_err(Error::io("read", &path))?);
        let kept = Permit::new().map(|permit| (file.clone(), permit));
        Ok((Tar { bytes: metadata.len(), file: kept, path }, file))
    }

    fn read(&self, out: &mut [u8], offset: u64) -> Result<()> {
        let read = match &self.file {
            Some((file, _)) => file.read_exact_at(out, offset),
            None => File::open(&self.path).and_then(|file| file.read_exact_at(out, offset)),
        };
        // Cut short since it was listed: no fault of the image, so no `Error::File`.
        read.map_err(Error::io("read", &self.path))
    }
}

/// A listing of tars under way.
pub(super) struct Listing<'a> {
    pub(super) tars: Vec<Tar>,
    members: usize,
    pub(super) found: usize,
    pub(super) observe: &'a mut dyn FnMut(usize) -> Result<()>,
}

impl<'a> Listing<'a> {
    /// `observe` is called now and then with the number of images found, and ends the listing if it fails.
    pub(super) fn new(observe: &'a mut dyn FnMut(usize) -> Result<()>) -> Self {
        Listing { tars: Vec::new(), members: 0, found: 0, observe }
    }

    /// Opens one more tar and shows its members, with what is needed to read and to place them.
    pub(super) fn list(
        &mut self,
        path: &Path,
        visit: &mut dyn FnMut(&mut Self, &Archive, Member) -> Result<()>,
    ) -> Result<()> {
        let (tar, file) = Tar::open(path.into())?;
        let bytes = tar.bytes;
        self.tars.push(tar);
        let archive = Archive { path, inner: "", file: &*file, start: 0, bytes };
        archive.members(&mut |member| {
            self.step()?;
            visit(self, &archive, member)
        })
    }

    /// Counts a member.
    pub(super) fn step(&mut self) -> Result<()> {
        self.members += 1;
        if self.members % PROGRESS_INTERVAL == 1 { (self.observe)(self.found) } else { Ok(()) }
    }

    /// An image of the last tar.
    pub(super) fn item(&mut self, name: String, class: u32, offset: u64, bytes: u64) -> Item {
        self.found += 1;
        let tar = self.tars.len() as u32 - 1;
        Item { name, class, bytes, place: Place::Tar { tar, offset, crc32c: None } }
    }
}
