//! One split of a data set as squares of pixels: decoded, resized, kept in memory if they fit.
//!
//! A file that is not an image is named once, counted, and its place taken by the next good image
//! of the list, so that what a run sees depends on the files alone.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};

use rayon::prelude::*;
use xxhash_rust::xxh3::Xxh3;

use super::decode::{Rgb, decode, prepare};
use super::folder::Sample;
use super::source::read_file;
use crate::{Error, Result};

/// Images between two looks at whether to go on with the mean.
const MEAN_STRETCH: usize = 1024;

/// How images are read.
#[derive(Clone, Copy, Debug)]
pub struct ReadOptions {
    /// Rows and columns of the squares.
    pub side: usize,
    /// Share of files that may be bad before reading stops with an error.
    pub max_bad: f64,
    /// Squares are kept in memory if all of them take no more bytes than this.
    pub cache_bytes: usize,
}

/// The images of one split.
pub struct Images {
    samples: Vec<Sample>,
    options: ReadOptions,
    cache: Vec<OnceLock<Box<[u8]>>>,
    bad: Mutex<BTreeMap<usize, String>>,
}

impl Images {
    /// Images to be read on demand.
    pub fn new(samples: Vec<Sample>, options: ReadOptions) -> Self {
        let bytes = samples.len().saturating_mul(options.side * options.side * 3);
        let cached = if bytes <= options.cache_bytes { samples.len() } else { 0 };
        Images {
            cache: (0..cached).map(|_| OnceLock::new()).collect(),
            samples,
            options,
            bad: Mutex::default(),
        }
    }

    /// Number of files.
    pub fn len(&self) -> usize {
        self.samples.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }

    /// How many files there are, and a hash of their names and classes: what an order refers to.
    pub fn fingerprint(&self) -> String {
        let mut hash = Xxh3::new();
        for sample in &self.samples {
            hash.update(&sample.class.to_le_bytes());
            hash.update(sample.path.file_name().unwrap_or_default().as_encoded_bytes());
        }
        format!("{} files, xxh3 {:016x}", self.len(), hash.digest())
    }

    /// Rows and columns of a square.
    pub fn side(&self) -> usize {
        self.options.side
    }

    /// Bytes of a square.
    pub fn bytes_per_image(&self) -> usize {
        self.options.side * self.options.side * 3
    }

    /// The class of an image.
    pub fn class(&self, index: usize) -> u32 {
        self.samples[index].class
    }

    /// The file of an image.
    pub fn path(&self, index: usize) -> &Path {
        &self.samples[index].path
    }

    /// The files that could not be used so far, and why.
    pub fn bad(&self) -> Vec<(PathBuf, String)> {
        let bad = self.bad.lock().expect("no panic while it is held");
        bad.iter().map(|(i, reason)| (self.path(*i).to_owned(), reason.clone())).collect()
    }

    /// Writes the square of image `index`, or `None` if its file is bad.
    ///
    /// # Errors
    /// If more files are bad than the options allow.
    pub fn read(&self, index: usize, square: &mut [u8]) -> Result<Option<()>> {
        if let Some(kept) = self.cache.get(index).and_then(OnceLock::get) {
            square.copy_from_slice(kept);
            return Ok(Some(()));
        }
        match read_rgb(self.path(index)) {
            Ok(image) => {
                prepare(&image, self.options.side, square);
                if let Some(place) = self.cache.get(index) {
                    let _ = place.set(square.into()); // another thread may have been faster
                }
                Ok(Some(()))
            }
            Err(error) => self.is_bad(index, error.to_string()).map(|()| None),
        }
    }

    /// As [`Images::read`], with the next good image in the place of a bad one; returns the index
    /// of the image that was read.
    ///
    /// # Errors
    /// If more files are bad than the options allow.
    pub fn read_good(&self, index: usize, square: &mut [u8]) -> Result<usize> {
        for step in 0..self.len() {
            let candidate = (index + step) % self.len();
            if self.read(candidate, square)?.is_some() {
                return Ok(candidate);
            }
        }
        Err(Error::Data("no image of the set can be read".into()))
    }

    /// Takes note of a bad file.
    fn is_bad(&self, index: usize, reason: String) -> Result<()> {
        let mut bad = self.bad.lock().expect("no panic while it is held");
        if bad.contains_key(&index) {
            return Ok(());
        }
        tracing::warn!("left out: {reason}");
        bad.insert(index, reason.clone());
        if bad.len() as f64 > self.options.max_bad * self.len() as f64 {
            return Err(Error::Data(format!(
                "{} of {} files are no usable images, more than the allowed share of {}; the last \
                 one: {reason}. Mend or remove them, or raise --max-bad",
                bad.len(),
                self.len(),
                self.options.max_bad
            )));
        }
        Ok(())
    }

    /// The mean of all good images, `[side, side, 3]`: the paper's per-pixel mean. `proceed` is
    /// called now and then with the number of images seen; if it says no, the result is `None`.
    ///
    /// # Errors
    /// If more files are bad than the options allow, or `proceed` fails.
    pub fn mean(&self, mut proceed: impl FnMut(usize) -> Result<bool>) -> Result<Option<Vec<f32>>> {
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
                .into_par_iter()
                .chunks(64)
                .map(|chunk| {
                    let mut square = vec![0; self.bytes_per_image()];
                    let (mut sums, mut count) = zero();
                    for index in chunk {
                        if self.read(index, &mut square)?.is_some() {
                            count += 1;
                            sums.iter_mut().zip(&square).for_each(|(s, p)| *s += u64::from(*p));
                        }
                    }
                    Ok::<_, Error>((sums, count))
                })
                .try_reduce(zero, add)?;
            (sums, count) = add((sums, count), (more, images))?;
        }
        if count == 0 {
            return Err(Error::Data("no image of the training set can be read".into()));
        }
        Ok(Some(sums.iter().map(|sum| (*sum as f64 / count as f64) as f32).collect()))
    }
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
