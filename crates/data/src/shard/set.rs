//! A set of shards, opened: which image lies where, and its bytes, checked.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rayon::prelude::*;
use xxhash_rust::xxh3::xxh3_64;

use super::bytes::{Io, ShardBytes};
use super::index::{Entry, Index};
use super::manifest::{Form, MANIFEST, Manifest, MeanMark, ShardMark};
use crate::Split;
use crate::checksum::check_crc32c;
use crate::classes::Classes;
use crate::folder::MAX_IMAGE_BYTES;
use crate::open_files::Permit;
use zfnet_core::tensors::deserialize;
use zfnet_core::{Error, Result};

/// A set of shards whose manifest has been read.
#[derive(Clone, Debug)]
pub struct ShardSet {
    /// The folder that holds it.
    pub root: PathBuf,
    /// What it says of itself.
    pub manifest: Manifest,
    /// Other classes that it is to have.
    pub(crate) renumbered: Option<Box<Renumbered>>,
}

/// Classes that a set is to have instead of its own.
#[derive(Clone, Debug)]
pub(crate) struct Renumbered {
    /// For each of its own, which of the others it is.
    pub positions: Arc<[u32]>,
    pub classes: Classes,
}

/// The images of one split of a set, by their numbers.
pub struct Shards {
    root: PathBuf,
    split: Split,
    form: Form,
    io: Io,
    shards: Vec<Shard>,
    /// Shard and place in it, by number.
    places: Vec<[u32; 2]>,
    /// See [`ShardSet::renumbered`].
    renumbered: Option<Arc<[u32]>>,
}

pub(crate) struct Shard {
    path: PathBuf,
    index: Index,
    /// Opened when it is first read, and kept open if the limit on open files allows it.
    bytes: OnceLock<(ShardBytes, Permit)>,
}

impl ShardSet {
    /// Whether a folder looks like a set.
    pub fn is_at(root: &Path) -> bool {
        root.join(MANIFEST).is_file()
    }

    /// Reads a set's manifest.
    ///
    /// # Errors
    /// If there is none, or it is not one of ours.
    pub fn open(root: &Path) -> Result<Self> {
        Ok(ShardSet { root: root.into(), manifest: Manifest::read(root)?, renumbered: None })
    }

    /// Opens a split: reads its indices, and looks for its shards. They are read by `io`, or as
    /// suits the file system.
    ///
    /// # Errors
    /// If the split has no image, or an index or a shard is missing or is not what the manifest says.
    pub fn split(&self, split: Split, io: Option<Io>) -> Result<Shards> {
        let marks = self.manifest.shards(split);
        if marks.is_empty() {
            let reason = format!("the set has no {} images", split.name());
            return Err(Error::file(&self.root, reason));
        }
        let shards: Vec<Shard> =
            marks.par_iter().map(|mark| open_shard(&self.root, mark)).collect::<Result<_>>()?;
        shards.iter().try_for_each(|shard| self.check_lengths(shard))?;
        let indices: Vec<_> = shards.iter().map(|shard| (&*shard.path, &shard.index)).collect();
        let places = self.places(split, &indices, &mut Err)?;
        let io = io.unwrap_or_else(|| Io::for_path(&self.root));
        let (root, form) = (self.root.clone(), self.manifest.form);
        let renumbered = self.renumbered.as_ref().map(|other| other.positions.clone());
        Ok(Shards { root, split, form, io, shards, places, renumbered })
    }

    /// Whether images are as long as they can be, and raw ones as they must be.
    fn check_lengths(&self, Shard { path, index, .. }: &Shard) -> Result<()> {
        let fits = |bytes: u64| match self.manifest.form {
            Form::Raw { side } => bytes == 3 * u64::from(side).pow(2),
            _ => bytes <= MAX_IMAGE_BYTES,
        };
        let bad = index.entries().iter().position(|entry| !fits(u64::from(entry.bytes)));
        let Some(place) = bad else { return Ok(()) };
        let (name, bytes) = (index.name(place), index.entries()[place].bytes);
        Err(damaged(path, format!("{name} cannot have {bytes} bytes")))
    }

    /// Where each number lies, by all shards of a split and their indices, which have as many images
    /// as the manifest says. Every number must be there once, and of a class that is: what is not so
    /// goes to `fault`, which says whether to go on.
    pub(crate) fn places(
        &self,
        split: Split,
        indices: &[(&Path, &Index)],
        fault: &mut dyn FnMut(Error) -> Result<()>,
    ) -> Result<Vec<[u32; 2]>> {
        const NOWHERE: [u32; 2] = [u32::MAX; 2];
        let total = self.manifest.images(split);
        let mut places = vec![NOWHERE; total];
        let mut counts = vec![0; self.manifest.classes.len()];
        for (shard, &(path, index)) in (0..).zip(indices) {
            for (place, entry) in (0..).zip(index.entries()) {
                let free = places.get_mut(entry.number as usize).filter(|at| **at == NOWHERE);
                let class = counts.get_mut(entry.class as usize);
                let (Some(free), Some(class)) = (free, class) else {
                    let reason = format!(
                        "its index numbers image {} as {} of {total} and of class {} of {}, which is \
                         taken or beyond",
                        index.name(place as usize),
                        entry.number,
                        entry.class,
                        counts.len()
                    );
                    fault(damaged(path, reason))?;
                    continue;
                };
                *free = [shard, place];
                *class += 1;
            }
        }
        for (class, found) in self.manifest.classes.iter().zip(counts) {
            if class.images(split) != found {
                let reason = format!(
                    "expected {} {} images of class {}, found {found} in the indices",
                    class.images(split),
                    split.name(),
                    class.folder
                );
                fault(damaged(&self.root.join(MANIFEST), reason))?;
            }
        }
        Ok(places)
    }

    /// The mean of the training squares, `[side, side, 3]`, if it is kept for this side.
    ///
    /// # Errors
    /// If its file is missing or is not what the manifest says.
    pub fn mean(&self, side: usize) -> Result<Option<Vec<f32>>> {
        match &self.manifest.mean {
            Some(mark) if mark.side as usize == side => self.read_mean(mark).map(Some),
            _ => Ok(None),
        }
    }

    /// The mean image that a manifest speaks of.
    pub(crate) fn read_mean(&self, mark: &MeanMark) -> Result<Vec<f32>> {
        let path = self.root.join(&mark.file);
        let bytes = read_whole(&path)?;
        check_hash(&path, xxh3_64(&bytes), &mark.xxh3)?;
        let wanted = [mark.side as usize, mark.side as usize, 3];
        let tensors = deserialize(&bytes).map_err(|error| error.in_file(&path))?;
        match tensors.tensor("mean") {
            Ok(mean) if mean.shape() == wanted && mean.dtype() == safetensors::Dtype::F32 => {
                let values = mean.data().chunks_exact(4);
                Ok(values.map(|v| f32::from_le_bytes(v.try_into().expect("four"))).collect())
            }
            _ => Err(damaged(&path, format!("expected `mean`, f32 {wanted:?}"))),
        }
    }
}

/// A shard with its index, if both are what the manifest says. The shard is not read.
pub(crate) fn open_shard(root: &Path, mark: &ShardMark) -> Result<Shard> {
    let index = read_index(root, mark)?;
    check_length(root, mark)?;
    Ok(Shard { path: root.join(&mark.file), index, bytes: OnceLock::new() })
}

/// The index of a shard, if it is what the manifest says.
pub(crate) fn read_index(root: &Path, mark: &ShardMark) -> Result<Index> {
    let path = root.join(mark.index_file());
    let bytes = read_whole(&path)?;
    check_hash(&path, xxh3_64(&bytes), &mark.index_xxh3)?;
    let index = Index::parse(&bytes).map_err(|reason| damaged(&path, reason))?;
    let of_shard = (index.shard_bytes, format!("{:016x}", index.shard_xxh3), index.len());
    let expected = (mark.bytes, mark.xxh3.clone(), mark.images as usize);
    if of_shard != expected {
        let reason = format!(
            "expected the index of a shard of {expected:?} (bytes, xxh3, images), found one of \
             {of_shard:?}"
        );
        return Err(damaged(&path, reason));
    }
    Ok(index)
}

/// Whether a shard is there and as long as the manifest says.
pub(crate) fn check_length(root: &Path, mark: &ShardMark) -> Result<()> {
    let path = root.join(&mark.file);
    let found = std::fs::metadata(&path).map_err(cannot_read(&path))?.len();
    if found != mark.bytes {
        return Err(damaged(&path, format!("expected {} bytes, found {found}", mark.bytes)));
    }
    Ok(())
}

fn damaged(path: &Path, reason: String) -> Error {
    Error::DamagedSet { path: path.into(), reason }
}

fn read_whole(path: &Path) -> Result<Vec<u8>> {
    // Asked for before it is opened, which waits for ever if it is a pipe.
    if !std::fs::metadata(path).map_err(cannot_read(path))?.is_file() {
        return Err(damaged(path, "expected a file, found something else".into()));
    }
    std::fs::read(path).map_err(cannot_read(path))
}

/// For `map_err`: a file of the set that cannot be read.
fn cannot_read(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_owned();
    move |error| match error.kind() {
        ErrorKind::NotFound => damaged(&path, "is missing".into()),
        _ => Error::io("read", path)(error),
    }
}

/// Whether a file of a set, which has this xxh3, is the one that its manifest speaks of.
pub(crate) fn check_hash(path: &Path, xxh3: u64, expected: &str) -> Result<()> {
    let found = format!("{xxh3:016x}");
    if found == expected {
        return Ok(());
    }
    Err(damaged(path, format!("expected xxh3 {expected}, found {found}")))
}

impl Shards {
    /// Number of images.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// How the images lie in the shards.
    pub fn form(&self) -> Form {
        self.form
    }

    /// How they are read.
    pub fn io(&self) -> Io {
        self.io
    }

    /// The class of an image.
    pub fn class(&self, number: usize) -> u32 {
        let own = self.at(number).1.class;
        self.renumbered.as_ref().map_or(own, |positions| positions[own as usize])
    }

    /// Length of an image's bytes.
    pub fn bytes(&self, number: usize) -> usize {
        self.at(number).1.bytes as usize
    }

    /// An image as `CLASS/FILE`.
    pub fn name(&self, number: usize) -> &str {
        let [shard, place] = self.places[number];
        self.shards[shard as usize].index.name(place as usize)
    }

    /// Where an image lay before it was packed, had that been in this folder.
    pub fn path(&self, number: usize) -> PathBuf {
        self.root.join(self.split.name()).join(self.name(number))
    }

    /// The shard of an image.
    pub fn shard(&self, number: usize) -> &Path {
        &self.at(number).0.path
    }

    /// The numbers of the images in each shard, in the order in which they lie there.
    pub fn on_disk(&self) -> impl Iterator<Item = impl Iterator<Item = u32>> {
        self.shards.iter().map(|shard| shard.index.entries().iter().map(|entry| entry.number))
    }

    /// Copies an image's bytes to `out`, which is as long as they are. If they are not those that
    /// were packed, says so in the inner result.
    ///
    /// # Errors
    /// If its shard is missing, or has been cut short since.
    pub fn read(&self, number: usize, out: &mut [u8]) -> Result<Result<(), String>> {
        let (shard, entry) = self.at(number);
        self.with_open(shard, |bytes| bytes.read_at(entry.offset, out))?;
        Ok(check_crc32c(out, entry.crc32c))
    }

    /// Tells the system that an image's bytes will be wanted soon.
    pub(crate) fn advise(&self, number: usize) {
        let (shard, entry) = self.at(number);
        // What cannot be opened will be told when it is read.
        let advise = |bytes: &ShardBytes| {
            bytes.advise(entry.offset, u64::from(entry.bytes));
            Ok(())
        };
        let _ = self.with_open(shard, advise);
    }

    fn at(&self, number: usize) -> (&Shard, Entry) {
        let [shard, place] = self.places[number];
        let shard = &self.shards[shard as usize];
        (shard, shard.index.entries()[place as usize])
    }

    fn with_open(&self, shard: &Shard, mut f: impl FnMut(&ShardBytes) -> Result<()>) -> Result<()> {
        if let Some((bytes, _)) = shard.bytes.get() {
            return f(bytes);
        }
        let open = |io| ShardBytes::open(&shard.path, shard.index.shard_bytes, io);
        match Permit::new() {
            Some(permit) => {
                let bytes = open(self.io)?;
                f(&shard.bytes.get_or_init(|| (bytes, permit)).0) // another thread may have been faster
            }
            None => f(&open(Io::Pread)?), // nothing is gained by mapping it once
        }
    }
}
