//! What a set of shards is made from: a listing of images in a fixed order, each to be read alone.
//!
//! This is an [`ImageFolder`] tree, ImageNet's own tars (`source/ilsvrc.rs`), WebDataset tars
//! (`source/webdataset.rs`) or a set that was packed before (`source/shards.rs`). Of tars the headers
//! are read, and an image from its place when it is asked for (`source/listing.rs`).

mod ilsvrc;
mod listing;
mod shards;
mod webdataset;

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

pub use listing::{Item, Source};
use listing::{Listing, PROGRESS_INTERVAL, Place};

use super::Split;
use super::folder::{self, ImageFolder, Sample};
use super::shard::manifest::MANIFEST;
use zfnet_core::{Error, Result};

const ACCEPTED: &str = "expected a folder with train/CLASS/*.JPEG and val/CLASS/*.JPEG, or with \
    ILSVRC2012_img_train.tar or ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz, or with \
    WebDataset tars (train-*.tar, val-*.tar), or a set of shards that was packed before; or one .tar";

impl Source {
    /// Lists a source; nothing is read but names, sizes and the numbers of classes. `observe` is
    /// called now and then with the number of images found so far, and ends the listing if it fails.
    ///
    /// # Errors
    /// If there is no source, or one that cannot be used: what was expected, what was found.
    pub fn open(path: &Path, observe: &mut dyn FnMut(usize) -> Result<()>) -> Result<Self> {
        let listing = Listing::new(observe);
        if path.is_file() {
            let folder = path.parent().unwrap_or(Path::new(""));
            return match path.file_name().and_then(|name| name.to_str()) {
                Some(ilsvrc::TRAIN) => ilsvrc::open(folder, listing),
                Some(ilsvrc::VAL) => {
                    let reason = "holds no classes; give the folder in which it and \
                                  ILSVRC2012_devkit_t12.tar.gz lie";
                    Err(Error::file(path, reason))
                }
                _ if folder::archive(path) == Some("tar") => {
                    webdataset::open(folder, vec![path.into()], listing)
                }
                _ => Err(Error::file(
                    path,
                    match folder::archive(path) {
                        Some(kind) => format!("is a {kind} archive; unpack it first; {ACCEPTED}"),
                        None => format!("is a file; {ACCEPTED}"),
                    },
                )),
            };
        }
        fs::read_dir(path).map_err(|error| match error.kind() {
            ErrorKind::NotFound => Error::file(path, format!("does not exist; {ACCEPTED}")),
            _ => Error::io("read", path)(error),
        })?;
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
        let is_tar = |path: &PathBuf| folder::archive(path) == Some("tar");
        let files = entries.iter().filter(|entry| !entry.is_dir).map(|entry| entry.path.clone());
        let tars: Vec<_> = files.filter(is_tar).collect();
        if let Some(error) = folder::lost_manifest(path, &entries) {
            return Err(error);
        }
        if tars.is_empty() {
            let found = folder::found(&entries);
            let meant = folder::meant(path, Split::Train, &entries);
            let meant = meant.map_or(String::new(), |meant| format!("; {meant}"));
            return Err(Error::file(
                path,
                format!("is no source of images; {ACCEPTED}; {found}{meant}"),
            ));
        }
        webdataset::open(path, tars, listing)
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
        if items.len() % PROGRESS_INTERVAL == 0 {
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
