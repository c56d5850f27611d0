//! A data set, whatever holds it: a folder of images or a set of shards.

use std::path::Path;

use super::Split;
use super::folder::ImageFolder;
use super::images::{Images, ReadOptions};
use super::pack::PLAN;
use super::shard::ShardSet;
use zfnet_core::{Error, Result};

/// A data set of two splits.
#[derive(Clone, Debug)]
pub enum DataSet {
    /// An `ImageFolder` tree.
    Folder(ImageFolder),
    /// What [`pack`](super::pack) makes.
    Shards(ShardSet),
}

impl DataSet {
    /// Opens a folder: a set of shards if it has a manifest, an `ImageFolder` tree otherwise.
    ///
    /// # Errors
    /// If it is neither; what was expected, what was found.
    pub fn open(root: &Path) -> Result<Self> {
        if ShardSet::is_at(root) {
            ShardSet::open(root).map(DataSet::Shards)
        } else if root.join(PLAN).is_file() {
            let reason = "is a set of shards whose packing was not ended".into();
            Err(Error::DamagedSet { path: root.into(), reason })
        } else {
            ImageFolder::open(root).map(DataSet::Folder)
        }
    }

    /// Readable names of the classes, by index.
    pub fn names(&self) -> Vec<String> {
        match self {
            DataSet::Folder(folder) => folder.names.clone(),
            DataSet::Shards(set) => set.manifest.classes.iter().map(|c| c.name.clone()).collect(),
        }
    }

    /// The images of a split.
    ///
    /// # Errors
    /// If a set of shards does not hold together.
    pub fn images(&self, split: Split, options: ReadOptions) -> Result<Images> {
        match self {
            DataSet::Folder(folder) => {
                let samples = match split {
                    Split::Train => &folder.train,
                    Split::Val => &folder.val,
                };
                Ok(Images::new(samples.clone(), options))
            }
            DataSet::Shards(set) => Images::of_shards(set, split, options),
        }
    }
}
