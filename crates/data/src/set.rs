//! A data set, whatever holds it: a folder of images or a set of shards.

use std::path::Path;

use super::Split;
use super::classes::Classes;
use super::folder::{ImageFolder, no_split};
use super::images::{Images, ReadOptions};
use super::pack::PLAN;
use super::shard::ShardSet;
use zfnet_core::{Error, Result};

/// Whether a folder holds the beginning of a set of shards.
pub fn is_unfinished(root: &Path) -> bool {
    !ShardSet::is_at(root) && root.join(PLAN).is_file()
}

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
        } else if is_unfinished(root) {
            let reason = "is a set of shards whose packing was not ended".into();
            Err(Error::DamagedSet { path: root.into(), reason })
        } else {
            ImageFolder::open(root).map(DataSet::Folder)
        }
    }

    /// Opens what a network with these classes is tried on: a data set, or a folder with `val/CLASS/*` alone. A set of
    /// some of the classes then has all of them, in the network's order.
    ///
    /// # Errors
    /// If it is neither, or has classes that the network does not have.
    pub fn open_for(root: &Path, classes: &Classes) -> Result<Self> {
        let val_alone =
            root.join(Split::Val.name()).is_dir() && !root.join(Split::Train.name()).is_dir();
        let neither =
            [Split::Train, Split::Val].iter().all(|split| !root.join(split.name()).is_dir());
        if neither && root.is_dir() && !ShardSet::is_at(root) && !is_unfinished(root) {
            return Err(no_split(root, Split::Val));
        }
        let mut set = if val_alone && !ShardSet::is_at(root) {
            ImageFolder::open_val(root, classes).map(DataSet::Folder)
        } else {
            DataSet::open(root)
        }?;
        let found = set.classes();
        let Some(difference) = classes.difference(&found) else { return Ok(set) };
        match classes.positions(&found).filter(|_| found.len() < classes.len()) {
            Some(positions) => {
                tracing::info!(
                    "{}: has {} of the network's {} classes",
                    root.display(),
                    found.len(),
                    classes.len()
                );
                set.renumber(&positions, classes);
                Ok(set)
            }
            None => Err(Error::file(
                root,
                format!("does not have the classes of the checkpoint: {difference}"),
            )),
        }
    }

    /// Gives it these classes instead of its own, of which each becomes the one at its position.
    fn renumber(&mut self, positions: &[u32], classes: &Classes) {
        match self {
            DataSet::Folder(folder) => {
                for sample in folder.train.iter_mut().chain(&mut folder.val) {
                    sample.class = positions[sample.class as usize];
                }
                folder.classes = classes.folders().unwrap_or(&classes.names).to_vec();
                folder.names = classes.names.clone();
            }
            DataSet::Shards(set) => set.renumbered = Some((positions.into(), classes.clone())),
        }
    }

    /// The classes.
    pub fn classes(&self) -> Classes {
        match self {
            DataSet::Folder(folder) => Classes::new(folder.classes.clone(), folder.names.clone()),
            DataSet::Shards(ShardSet { renumbered: Some((_, classes)), .. }) => classes.clone(),
            DataSet::Shards(set) => {
                let classes = set.manifest.classes.iter();
                let (folders, names) =
                    classes.map(|class| (class.folder.clone(), class.name.clone())).unzip();
                Classes::new(folders, names)
            }
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
                if samples.is_empty() {
                    return Err(folder.no_split(split)); // of a set that was opened without it
                }
                Ok(Images::new(samples.clone(), options))
            }
            DataSet::Shards(set) => Images::of_shards(set, split, options),
        }
    }
}
