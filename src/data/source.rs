//! What a set of shards is made from: a listing of images in a fixed order, each to be read alone.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::Split;
use super::folder::{ImageFolder, Sample};
use crate::{Error, Result};

/// An image larger than this is not read: no photograph of a training set comes near it.
pub const MAX_IMAGE_BYTES: u64 = 256 << 20;
/// Images between two looks at whether to go on listing.
const STRETCH: usize = 1024;

/// The images of a source, in a fixed order, with the classes they belong to.
pub struct Source {
    /// What it is.
    pub kind: &'static str,
    /// Names of the classes' folders (WordNet ids, for ImageNet), by class index.
    pub classes: Vec<String>,
    /// Readable names, by class index.
    pub names: Vec<String>,
    /// By class, then by file name (bytes).
    pub train: Vec<Item>,
    /// By class, then by file name.
    pub val: Vec<Item>,
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
}

impl Source {
    /// Lists a source; nothing is read but names and sizes. `observe` is called now and then with
    /// the number of images found so far, and ends the listing if it fails.
    ///
    /// # Errors
    /// If there is no source, or one that cannot be used: what was expected, what was found.
    pub fn open(path: &Path, observe: &mut dyn FnMut(usize) -> Result<()>) -> Result<Self> {
        let ImageFolder { classes, names, train, val, .. } = ImageFolder::open(path)?;
        let train = folder_items(train, &classes, observe)?;
        let val = folder_items(val, &classes, observe)?;
        Ok(Source { kind: "ImageFolder", classes, names, train, val })
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
    /// If it cannot be read or is too large; names it.
    pub fn read(&self, item: &Item, bytes: &mut Vec<u8>) -> Result<()> {
        match &item.place {
            Place::File(path) => read_file(path, bytes),
        }
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
