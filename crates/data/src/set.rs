//! A data set, whatever holds it: a folder of images or a set of shards.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Split;
use super::classes::Classes;
use super::folder::{ImageFolder, all_images, no_split};
use super::images::{Images, ReadOptions};
use super::pack::PLAN;
use super::shard::ShardSet;
use super::shard::set::Renumbered;
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
    /// some of the classes, or in another order, then has all of them in the network's order.
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
        match classes.positions(&found) {
            Some(positions) => {
                tracing::info!(
                    "{}: has {} of the network's {} classes{}",
                    root.display(),
                    found.len(),
                    classes.len(),
                    if found.len() == classes.len() { ", in another order" } else { "" }
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
            DataSet::Shards(set) => {
                let renumbered =
                    Renumbered { positions: positions.into(), classes: classes.clone() };
                set.renumbered = Some(renumbered.into());
            }
        }
    }

    /// The classes.
    pub fn classes(&self) -> Classes {
        match self {
            DataSet::Folder(folder) => Classes::new(folder.classes.clone(), folder.names.clone()),
            DataSet::Shards(ShardSet { renumbered: Some(other), .. }) => other.classes.clone(),
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

/// Images and what identifies each, for what looks at images of whatever classes.
pub struct KeyedImages {
    /// The images.
    pub images: Arc<Images>,
    /// Their classes; those of a folder without splits have none, and say that they are of class 0.
    pub classes: Option<Classes>,
    /// The folder that keys of single files begin in.
    base: PathBuf,
}

impl KeyedImages {
    /// Opens a split (`val`, for `None`) of a data set, which need not have the other one; or, of a folder with neither,
    /// all images at any depth.
    ///
    /// # Errors
    /// If there is no such split, no image, or one that has no key: a name that is no UTF-8 or has a line break or a tab
    /// in it.
    pub fn open(root: &Path, split: Option<Split>, options: ReadOptions) -> Result<Self> {
        let has = |split: Split| root.join(split.name()).is_dir();
        let is_set = ShardSet::is_at(root) || is_unfinished(root);
        let is_plain = root.is_dir() && !is_set && !has(Split::Train) && !has(Split::Val);
        let keyed = if is_plain && split.is_none() {
            let images = Images::new(all_images(root)?, options);
            KeyedImages { images: images.into(), classes: None, base: root.into() }
        } else {
            let split = split.unwrap_or(Split::Val);
            let other = if split == Split::Val { Split::Train } else { Split::Val };
            let set = if is_plain {
                return Err(no_split(root, split));
            } else if is_set || !root.is_dir() || has(other) && has(split) {
                DataSet::open(root)?
            } else {
                DataSet::Folder(ImageFolder::open_alone(root, split)?)
            };
            let images = set.images(split, options)?.into();
            KeyedImages { images, classes: Some(set.classes()), base: root.join(split.name()) }
        };
        for index in 0..keyed.images.len() {
            keyed.written_key(index)?;
        }
        Ok(keyed)
    }

    /// The class of an image, if it has one.
    pub fn class(&self, index: usize) -> Option<u32> {
        self.classes.as_ref().map(|_| self.images.class(index))
    }

    /// What identifies an image: `CLASS/FILE`, or its path in a folder without splits, with `/` on every system.
    pub fn key(&self, index: usize) -> Cow<'_, str> {
        self.written_key(index).expect("all have been asked for theirs")
    }

    fn written_key(&self, index: usize) -> Result<Cow<'_, str>> {
        let key = match self.images.shards() {
            Some(shards) => Some(Cow::Borrowed(shards.name(index))),
            None => {
                let path = self.images.path(index);
                let inside = path.strip_prefix(&self.base).unwrap_or(&path);
                let parts: Option<Vec<_>> = inside.iter().map(|part| part.to_str()).collect();
                parts.map(|parts| parts.join("/").into())
            }
        };
        key.filter(|key: &Cow<'_, str>| !key.contains(['\n', '\r', '\t'])).ok_or_else(|| {
            let reason =
                "has a name that is no UTF-8, or has a line break or a tab in it; rename it";
            Error::file(self.images.path(index), reason)
        })
    }
}
