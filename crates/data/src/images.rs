//! One split of a data set as preprocessed images: decoded, resized, kept in memory if they fit.
//!
//! A file that is not an image is named once, counted, and its place taken by the next good image
//! of the list, so that what a run sees depends on the files alone.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};

use rayon::prelude::*;
use xxhash_rust::xxh3::Xxh3;

use super::Split;
use super::decode::{Preparer, Rgb, decode, decode_into};
use super::folder::{Sample, read_file};
use super::shard::manifest::Form;
use super::shard::{Io, ShardSet, Shards};
use zfnet_core::{Canvas, Error, Fit, Result};

/// Bytes of one image that a thread keeps memory for: 5 megapixels.
const KEPT: usize = 16 << 20;

/// Images between two looks at whether to go on with the mean.
const MEAN_STRETCH: usize = 1024;

/// How images are read.
#[derive(Clone, Copy, Debug)]
pub struct ReadOptions {
    /// What images are resized to.
    pub canvas: Canvas,
    /// Share of files that may be bad before reading stops with an error.
    pub max_bad: f64,
    /// Prepared images are kept in memory if all of them take no more bytes than this.
    pub cache_bytes: usize,
    /// How shards are read; as suits their file system, for `None`.
    pub io: Option<Io>,
}

/// The images of one split.
pub struct Images {
    origin: Origin,
    options: ReadOptions,
    /// The mean image, where a set of shards knows it.
    known_mean: Option<Vec<f32>>,
    cache: Vec<OnceLock<Box<[u8]>>>,
    bad: Mutex<BadImages>,
}

/// What was bad so far.
#[derive(Default)]
struct BadImages {
    /// Why, by index: also of those that were read ahead.
    reasons: BTreeMap<usize, String>,
    /// Those that whoever asked for them has been told of.
    counted: BTreeSet<usize>,
}

/// Where images are.
enum Origin {
    Files(Vec<Sample>),
    Shards(Shards),
}

/// Memory that a thread keeps from one image to the next.
#[derive(Default)]
pub struct Scratch {
    bytes: Vec<u8>,
    image: Rgb,
    preparer: Preparer,
}

impl Scratch {
    /// Gives back what a huge image has taken, so that not every thread keeps as much.
    fn trim(&mut self) {
        if self.image.pixels.capacity() > KEPT {
            self.image = Rgb::default();
        }
        if self.bytes.capacity() > KEPT {
            self.bytes = Vec::new();
        }
    }
}

/// A file or a sample of a shard that is no usable image.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BadImage {
    /// The file, or the shard.
    pub file: String,
    /// Which image of the shard, `CLASS/FILE`; empty for a file.
    pub key: String,
    /// What is wrong with it.
    pub reason: String,
}

impl std::fmt::Display for BadImage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let BadImage { file, key, reason } = self;
        match key.as_str() {
            "" => write!(f, "{file}: {reason}"),
            key => write!(f, "{file}: {key}: {reason}"),
        }
    }
}

impl Images {
    /// Image files to be read on demand.
    pub fn new(samples: Vec<Sample>, options: ReadOptions) -> Self {
        Self::from(Origin::Files(samples), options, None)
    }

    /// Images of a set of shards, to be read on demand.
    ///
    /// # Errors
    /// If the set does not hold together, or its raw squares lack what the canvas shows.
    pub(crate) fn of_shards(set: &ShardSet, split: Split, options: ReadOptions) -> Result<Self> {
        let shards = set.split(split, options.io)?;
        check_raw(set, options.canvas)?;
        let mean = match (split, options.canvas.plain_side()) {
            (Split::Train, Some(side)) => set.mean(side)?,
            _ => None,
        };
        tracing::info!(
            "{}: {} {} images in shards, {}",
            set.root.display(),
            shards.len(),
            split.name(),
            match shards.io() {
                Io::Mmap => "mapped",
                Io::Pread => "read with pread",
            }
        );
        Ok(Self::from(Origin::Shards(shards), options, mean))
    }

    fn from(origin: Origin, options: ReadOptions, known_mean: Option<Vec<f32>>) -> Self {
        let bad = Mutex::default();
        let mut images = Images { origin, options, known_mean, cache: Vec::new(), bad };
        let bytes = images.len().saturating_mul(images.bytes_per_image());
        // Raw squares are in the system's cache already.
        if bytes <= options.cache_bytes && !images.are_ready() {
            images.cache.resize_with(images.len(), OnceLock::new);
        }
        images
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        match &self.origin {
            Origin::Files(samples) => samples.len(),
            Origin::Shards(shards) => shards.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many images there are, and a hash of their names and classes: what an order refers to.
    pub fn fingerprint(&self) -> String {
        let mut hash = Xxh3::new();
        for index in 0..self.len() {
            hash.update(&self.class(index).to_le_bytes());
            match &self.origin {
                Origin::Files(samples) => {
                    hash.update(
                        samples[index].path.file_name().unwrap_or_default().as_encoded_bytes(),
                    );
                }
                Origin::Shards(shards) => {
                    let name = shards.name(index);
                    hash.update(name.rsplit_once('/').map_or(name, |(_, file)| file).as_bytes());
                }
            }
        }
        // Whoever packs images as they are has the same images.
        let changed = match &self.origin {
            Origin::Shards(shards) => match shards.form() {
                Form::Kept => String::new(),
                Form::Resized { side, quality } => {
                    format!(", resized to {side}, quality {quality}")
                }
                Form::Raw { side } => format!(", raw {side}x{side}"),
            },
            Origin::Files(_) => String::new(),
        };
        format!("{} files, xxh3 {:016x}{changed}", self.len(), hash.digest())
    }

    /// A hash of the order in which images lie in shards, which a windowed order refers to.
    pub fn layout(&self) -> String {
        let mut hash = Xxh3::new();
        for shard in self.shards().into_iter().flat_map(Shards::on_disk) {
            shard.for_each(|number| hash.update(&number.to_le_bytes()));
            hash.update(&u32::MAX.to_le_bytes());
        }
        format!("{:016x}", hash.digest())
    }

    /// What images are resized to.
    pub fn canvas(&self) -> Canvas {
        self.options.canvas
    }

    /// Bytes of a prepared image.
    pub fn bytes_per_image(&self) -> usize {
        self.options.canvas.bytes()
    }

    /// Bytes that prepared images kept in memory take once all have been read.
    pub fn kept_bytes(&self) -> usize {
        self.cache.len() * self.bytes_per_image()
    }

    /// The class of an image.
    pub fn class(&self, index: usize) -> u32 {
        match &self.origin {
            Origin::Files(samples) => samples[index].class,
            Origin::Shards(shards) => shards.class(index),
        }
    }

    /// The file of an image; of one in a set of shards, where it would lie in a folder of that name.
    pub fn path(&self, index: usize) -> PathBuf {
        match &self.origin {
            Origin::Files(samples) => samples[index].path.clone(),
            Origin::Shards(shards) => shards.path(index),
        }
    }

    /// The image as `CLASS/FILE`, for messages.
    pub fn name(&self, index: usize) -> String {
        let path = self.path(index);
        let mut parts: Vec<_> =
            path.iter().rev().take(2).map(|part| part.to_string_lossy()).collect();
        parts.reverse();
        parts.join("/")
    }

    /// The shards, if the images are in such.
    pub fn shards(&self) -> Option<&Shards> {
        match &self.origin {
            Origin::Files(_) => None,
            Origin::Shards(shards) => Some(shards),
        }
    }

    fn raw_side(&self) -> Option<usize> {
        match self.shards()?.form() {
            Form::Raw { side } => Some(side as usize),
            _ => None,
        }
    }

    /// Whether shards hold what is asked for as raw pixels.
    fn are_ready(&self) -> bool {
        let raw = self.raw_side();
        raw.is_some() && raw == self.options.canvas.plain_side()
    }

    /// The images that could not be used so far, in their order.
    pub fn bad(&self) -> Vec<BadImage> {
        let bad = self.bad.lock().expect("no panic while it is held");
        bad.counted.iter().map(|index| self.named_bad(*index, &bad.reasons[index])).collect()
    }

    /// Indices of the bad images that were met, each with what is wrong with it: for the other ranks.
    pub fn bad_indices(&self) -> Vec<(usize, String)> {
        let bad = self.bad.lock().expect("no panic while it is held");
        bad.counted.iter().map(|index| (*index, bad.reasons[index].clone())).collect()
    }

    /// Takes note of bad images that another rank has met.
    ///
    /// # Errors
    /// If they are more than the options allow.
    pub fn note_bad(&self, met: Vec<(usize, String)>) -> Result<()> {
        let indices: Vec<usize> = met.iter().map(|(index, _)| *index).collect();
        self.bad.lock().expect("no panic while it is held").reasons.extend(met);
        self.count_bad(indices)
    }

    fn named_bad(&self, index: usize, reason: &str) -> BadImage {
        let (file, key) = match &self.origin {
            Origin::Files(samples) => (samples[index].path.as_path(), ""),
            Origin::Shards(shards) => (shards.shard(index), shards.name(index)),
        };
        let reason = reason.to_owned();
        BadImage { file: file.display().to_string(), key: key.to_owned(), reason }
    }

    /// Tells the system which images will be wanted soon.
    pub(crate) fn advise(&self, indices: &[u32]) {
        let Some(shards) = self.shards() else { return };
        for &index in indices {
            if self.cache.get(index as usize).is_none_or(|kept| kept.get().is_none()) {
                shards.advise(index as usize);
            }
        }
    }

    /// Writes image `index` on its canvas, or `None` if it is bad.
    ///
    /// # Errors
    /// If more images are bad than the options allow, or a shard can no longer be read.
    pub fn read(
        &self,
        index: usize,
        scratch: &mut Scratch,
        square: &mut [u8],
    ) -> Result<Option<()>> {
        let read = self.read_ahead(index, scratch, square)?;
        if read.is_none() {
            self.count_bad([index])?;
        }
        Ok(read)
    }

    /// As [`Images::read`], but a bad image is not counted yet: [`Images::count_bad`] does that in the order in which
    /// images are asked for, so that it depends on no thread's speed which of them is one too many. One that was bad
    /// before is not read again.
    ///
    /// # Errors
    /// If a shard can no longer be read.
    pub(crate) fn read_ahead(
        &self,
        index: usize,
        scratch: &mut Scratch,
        square: &mut [u8],
    ) -> Result<Option<()>> {
        if self.bad.lock().expect("no panic while it is held").reasons.contains_key(&index) {
            return Ok(None);
        }
        if let Some(kept) = self.cache.get(index).and_then(OnceLock::get) {
            square.copy_from_slice(kept);
            return Ok(Some(()));
        }
        let read = match self.shards() {
            Some(shards) if self.are_ready() => shards.read(index, square)?,
            _ => self.original(index, scratch)?.map(|(image, preparer)| {
                preparer.prepare(image, self.options.canvas, square);
            }),
        };
        scratch.trim();
        match read {
            Ok(()) => {
                if let Some(place) = self.cache.get(index) {
                    let _ = place.set(square.into()); // another thread may have been faster
                }
                Ok(Some(()))
            }
            Err(reason) => {
                let mut bad = self.bad.lock().expect("no panic while it is held");
                bad.reasons.entry(index).or_insert(reason);
                Ok(None)
            }
        }
    }

    /// Width and height of an image as it is stored.
    ///
    /// # Errors
    /// If it is bad or cannot be read.
    pub fn size(&self, index: usize, scratch: &mut Scratch) -> Result<(usize, usize)> {
        match self.original(index, scratch)? {
            Ok((image, _)) => Ok((image.width, image.height)),
            Err(reason) => Err(Error::file(self.path(index), reason)),
        }
    }

    /// An image as it is stored.
    ///
    /// # Errors
    /// If it is bad or cannot be read.
    pub fn stored(&self, index: usize, scratch: &mut Scratch) -> Result<Rgb> {
        match self.original(index, scratch)? {
            Ok((image, _)) => Ok(image.clone()),
            Err(reason) => Err(Error::file(self.path(index), reason)),
        }
    }

    /// Decodes an image as it is stored; why it is bad, in the inner result.
    fn original<'s>(
        &self,
        index: usize,
        Scratch { bytes, image, preparer }: &'s mut Scratch,
    ) -> Result<Result<(&'s Rgb, &'s mut Preparer), String>> {
        let read = match &self.origin {
            Origin::Files(samples) => {
                let read = read_file(&samples[index].path, bytes);
                read.map_err(|error| error.without_path())
            }
            Origin::Shards(shards) => {
                bytes.resize(shards.bytes(index), 0);
                shards.read(index, bytes)?
            }
        };
        let decoded = match self.raw_side() {
            Some(side) => read.map(|()| {
                (image.width, image.height) = (side, side);
                std::mem::swap(&mut image.pixels, bytes);
            }),
            None => read.and_then(|()| decode_into(bytes, image).map_err(|e| e.to_string())),
        };
        Ok(decoded.map(|()| (&*image, preparer)))
    }

    /// As [`Images::read`], with the next good image in the place of a bad one; returns the index
    /// of the image that was read.
    ///
    /// # Errors
    /// As [`Images::read`], and if no image is good.
    pub fn read_good(
        &self,
        index: usize,
        scratch: &mut Scratch,
        square: &mut [u8],
    ) -> Result<usize> {
        let mut met = Vec::new();
        let read = self.read_good_ahead(index, scratch, square, &mut met);
        self.count_bad(met)?;
        read
    }

    /// As [`Images::read_good`], but the bad images that it meets are added to `met`, to be counted later.
    ///
    /// # Errors
    /// If a shard can no longer be read, or more images are met than may be bad.
    pub(crate) fn read_good_ahead(
        &self,
        index: usize,
        scratch: &mut Scratch,
        square: &mut [u8],
        met: &mut Vec<usize>,
    ) -> Result<usize> {
        let before = met.len();
        for step in 0..self.len() {
            let candidate = (index + step) % self.len();
            if self.read_ahead(candidate, scratch, square)?.is_some() {
                return Ok(candidate);
            }
            met.push(candidate);
            if too_many(met.len() - before, self.len(), self.options.max_bad) {
                break;
            }
        }
        Err(Error::Data("no image of the set can be read".into())) // or too many are bad, as counting tells
    }

    /// Takes note of bad images that were met, and names those that are new.
    ///
    /// # Errors
    /// If they are more than the options allow.
    pub(crate) fn count_bad(&self, met: impl IntoIterator<Item = usize>) -> Result<()> {
        let mut bad = self.bad.lock().expect("no panic while it is held");
        for index in met {
            if !bad.counted.insert(index) {
                continue;
            }
            let named = self.named_bad(index, &bad.reasons[&index]);
            tracing::warn!("left out: {named}");
            if too_many(bad.counted.len(), self.len(), self.options.max_bad) {
                return Err(Error::TooManyBad {
                    files: "files".into(),
                    bad: bad.counted.len(),
                    of: self.len(),
                    allowed: self.options.max_bad,
                    last: named.to_string(),
                });
            }
        }
        Ok(())
    }

    /// The mean of all good images, `[rows, columns, 3]`: the paper's per-pixel mean, which a set of
    /// shards may know. `proceed` is called now and then with the number of images seen; if it says
    /// no, the result is `None`.
    ///
    /// # Errors
    /// If more files are bad than the options allow, or `proceed` fails.
    pub fn mean(&self, mut proceed: impl FnMut(usize) -> Result<bool>) -> Result<Option<Vec<f32>>> {
        if let Some(mean) = &self.known_mean {
            return Ok(Some(mean.clone()));
        }
        // Sums of bytes are exact, so their order does not matter.
        let zero = || (vec![0u64; self.bytes_per_image()], 0u64);
        let add = |(mut a, n): (Vec<u64>, u64), (b, m): (Vec<u64>, u64)| {
            a.iter_mut().zip(&b).for_each(|(a, b)| *a += b);
            Ok((a, n + m))
        };
        let (mut sums, mut count) = zero();
        for first in (0..self.len()).step_by(MEAN_STRETCH) {
            if !proceed(first)? {
                return Ok(None);
            }
            let stretch = first..self.len().min(first + MEAN_STRETCH);
            let (more, images) = stretch
                .clone()
                .into_par_iter()
                .chunks(64)
                .map(|chunk| {
                    let mut square = vec![0; self.bytes_per_image()];
                    let mut scratch = Scratch::default();
                    let (mut sums, mut count) = zero();
                    for index in chunk {
                        if self.read_ahead(index, &mut scratch, &mut square)?.is_some() {
                            count += 1;
                            sums.iter_mut().zip(&square).for_each(|(s, p)| *s += u64::from(*p));
                        }
                    }
                    Ok::<_, Error>((sums, count))
                })
                .try_reduce(zero, add)?;
            let bad: Vec<usize> = {
                let bad = self.bad.lock().expect("no panic while it is held");
                bad.reasons.range(stretch).map(|(index, _)| *index).collect()
            };
            self.count_bad(bad)?;
            (sums, count) = add((sums, count), (more, images))?;
        }
        if count == 0 {
            return Err(Error::Data("no image of the training set can be read".into()));
        }
        Ok(Some(sums.iter().map(|sum| (*sum as f64 / count as f64) as f32).collect()))
    }
}

/// Refuses raw squares, which are the centres of images, where a canvas shows more of these.
fn check_raw(set: &ShardSet, canvas: Canvas) -> Result<()> {
    let Form::Raw { side } = set.manifest.form else { return Ok(()) };
    if canvas.rows == canvas.columns && canvas.fit == Fit::Cover {
        return Ok(());
    }
    let reason = format!(
        "its images are raw squares of {side} pixels a side, cut out of the middle; the network looks at \
         {canvas}: pack the images as they are, or use the folder they come from"
    );
    Err(Error::file(&set.root, reason))
}

/// Whether so many bad files of a set are more than a share of it, of which at least one may be bad unless it is 0.
pub(crate) fn too_many(bad: usize, of: usize, share: f64) -> bool {
    let allowed = (share * of as f64 - 1e-6).ceil(); // 0.07 * 100 is a little more than 7
    bad as f64 > allowed
}

/// Reads and decodes one file.
///
/// # Errors
/// If it cannot be read or is no image; names the file.
pub fn read_rgb(path: &Path) -> Result<Rgb> {
    let mut bytes = Vec::new();
    read_file(path, &mut bytes)?;
    decode(&bytes).map_err(|error| Error::file(path, error.to_string()))
}
