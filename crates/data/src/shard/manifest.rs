//! `manifest.json`: what a set of shards holds. It is written last, so a set that has one is whole.

use std::io::ErrorKind;
use std::path::{Component, Path};

use serde::{Deserialize, Serialize};

use crate::Split;
use zfnet_core::{Error, Result};

/// The manifest's file name.
pub const MANIFEST: &str = "manifest.json";
/// What `format` must be.
const FORMAT: &str = "zfnet shards";
const VERSION: u32 = 1;
/// Images in raw shards begin at multiples of this: a page, and a block of any disk.
pub const PAGE: u64 = 4096;
/// A manifest larger than this is not read: one of 100,000 shards is smaller.
const MAX_BYTES: u64 = 64 << 20;

/// How images lie in the shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "form")]
pub enum Form {
    /// As the files were, in tar shards.
    Kept,
    /// With the shortest side resized to `side`, as JPEG of this quality, in tar shards.
    Resized {
        /// Pixels of the shortest side.
        side: u32,
        /// From 1 to 100.
        quality: u8,
    },
    /// Centre squares as raw pixels, u8 `[side, side, 3]`, each from a multiple of 4096 bytes on.
    Raw {
        /// Rows and columns.
        side: u32,
    },
}

/// A class.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Class {
    /// Its folder: a WordNet id, for ImageNet.
    pub folder: String,
    /// Its readable name.
    pub name: String,
    /// Training images.
    pub train: u32,
    /// Validation images.
    pub val: u32,
}

/// What a shard must be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardMark {
    /// Its file; the index has the same name and ends in `.idx`.
    pub file: String,
    /// Its images.
    pub images: u32,
    /// Its length.
    pub bytes: u64,
    /// Its xxh3 (64 bits), in hexadecimal.
    pub xxh3: String,
    /// The index's xxh3.
    pub index_xxh3: String,
}

/// The mean of all training squares.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeanMark {
    /// A safetensors file with `mean`, f32 `[side, side, 3]`, RGB from 0 to 255.
    pub file: String,
    /// Rows and columns.
    pub side: u32,
    /// The file's xxh3.
    pub xxh3: String,
}

/// What a set holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// "zfnet shards".
    pub format: String,
    /// Version of this file.
    pub version: u32,
    /// The program that wrote it.
    pub program: String,
    /// What images were read with, when they were checked, resized or made raw.
    pub decoder: String,
    /// What they were resized with.
    pub resizer: String,
    /// Where they came from: the kind of source.
    pub source: String,
    /// Hash of the source's listing and the options: the same makes the same set.
    pub plan: String,
    /// How images lie in the shards.
    #[serde(flatten)]
    pub form: Form,
    /// Files of the source that cannot be read as images and were left out.
    pub rejected: u32,
    /// The classes, by index.
    pub classes: Vec<Class>,
    /// The mean image, if there are training images.
    pub mean: Option<MeanMark>,
    /// Shards of the training images.
    pub train: Vec<ShardMark>,
    /// Shards of the validation images.
    pub val: Vec<ShardMark>,
}

impl Manifest {
    /// A manifest of this version and program, to be filled in.
    pub fn new(form: Form) -> Self {
        Manifest {
            format: FORMAT.into(),
            version: VERSION,
            program: concat!("zfnet ", env!("CARGO_PKG_VERSION")).into(),
            decoder: String::new(),
            resizer: String::new(),
            source: String::new(),
            plan: String::new(),
            form,
            rejected: 0,
            classes: Vec::new(),
            mean: None,
            train: Vec::new(),
            val: Vec::new(),
        }
    }

    /// Reads and checks the manifest of the set in `root`.
    ///
    /// # Errors
    /// If there is none, or it is not one of ours.
    pub fn read(root: &Path) -> Result<Self> {
        let path = root.join(MANIFEST);
        let bytes = std::fs::metadata(&path).map_err(|error| match error.kind() {
            ErrorKind::NotFound => {
                let reason = "is no set of shards: expected a manifest.json in it, which packing \
                              writes last; if it was not ended, pack the same source again";
                Error::file(root, reason)
            }
            _ => Error::io("read", &path)(error),
        })?;
        let bytes = bytes.len();
        if bytes > MAX_BYTES {
            return Err(Error::file(
                &path,
                format!("expected at most {MAX_BYTES} bytes, found {bytes}"),
            ));
        }
        let text = std::fs::read(&path).map_err(Error::io("read", &path))?;
        Self::parse(&text).map_err(|reason| Error::DamagedSet { path, reason })
    }

    /// Checks what stands in a manifest's file.
    ///
    /// # Errors
    /// What was expected and what was found.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let manifest: Manifest = serde_json::from_slice(text)
            .map_err(|error| format!("expected the manifest of a set of shards: {error}"))?;
        if manifest.format != FORMAT || manifest.version != VERSION {
            return Err(format!(
                "expected \"{FORMAT}\" of version {VERSION}, found \"{}\" of version {}",
                manifest.format, manifest.version
            ));
        }
        let side = match manifest.form {
            Form::Kept => 1,
            Form::Resized { side, .. } | Form::Raw { side } => side,
        };
        if !(1..=4096).contains(&side) {
            return Err(format!("expected squares of 1 to 4096 pixels a side, found {side}"));
        }
        let files = manifest.train.iter().chain(&manifest.val).map(|shard| &shard.file);
        for file in files.chain(manifest.mean.iter().map(|mean| &mean.file)) {
            let mut parts = Path::new(file).components();
            let plain = matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None));
            if !plain {
                return Err(format!("expected the name of a file of the set, found {file:?}"));
            }
        }
        for split in [Split::Train, Split::Val] {
            let in_shards: u64 = manifest.shards(split).iter().map(|s| u64::from(s.images)).sum();
            let in_classes: u64 = manifest.classes.iter().map(|c| u64::from(c.images(split))).sum();
            if in_shards != in_classes || in_shards > u64::from(u32::MAX) {
                return Err(format!(
                    "expected as many {} images in shards as in classes, found {in_shards} and \
                     {in_classes}",
                    split.name()
                ));
            }
        }
        Ok(manifest)
    }

    /// The file's text.
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("plain data");
        text.push('\n');
        text
    }

    /// The shards of a split.
    pub fn shards(&self, split: Split) -> &[ShardMark] {
        match split {
            Split::Train => &self.train,
            Split::Val => &self.val,
        }
    }

    /// Number of images of a split.
    pub fn images(&self, split: Split) -> usize {
        self.shards(split).iter().map(|shard| shard.images as usize).sum()
    }
}

impl Class {
    /// Number of its images in a split.
    pub fn images(&self, split: Split) -> u32 {
        match split {
            Split::Train => self.train,
            Split::Val => self.val,
        }
    }
}

impl ShardMark {
    /// The index's file.
    pub fn index_file(&self) -> String {
        Path::new(&self.file).with_extension("idx").to_string_lossy().into_owned()
    }
}
