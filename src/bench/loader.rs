//! How fast images on disk become batches: reading, decoding, resizing, cropping, without a network.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Instant;

use serde::Serialize;

use super::Spread;
use crate::backend::Crop;
use crate::data::Split;
use crate::data::images::{Images, ReadOptions, Scratch};
use crate::data::loader::{Bad, BatchPlan, Loader};
use crate::data::order::{permutation, training_crop};
use crate::data::pack::{Options, Plan as PackPlan, default_mean_side, pack};
use crate::data::set::DataSet;
use crate::data::shard::Io;
use crate::data::shard::manifest::Form;
use crate::data::source::Source;
use crate::data::synthetic::textured;
use crate::disk::write_atomic;
use crate::model::{Canvas, Preprocess};
use crate::train::Crops;
use crate::{Error, Result};

/// What a row does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// One thread reads squares into memory.
    Square,
    /// The loader's threads read batches as training does. What training does with them then, crops and
    /// mean, is the backend's work and part of a step; but see [`Settings::size`].
    Batch,
}

/// How it is measured.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Rows and columns of the squares.
    pub side: usize,
    /// Rows and columns of crops that whoever takes the batches cuts and mirrors into a batch of their own, u8
    /// `[n, size, size, 3]`, as loaders of other programs do; none are cut for `None`.
    pub size: Option<usize>,
    /// Images of a batch.
    pub batch: usize,
    /// Threads of the loader.
    pub workers: usize,
    /// How shards are read; as suits their file system, for `None`.
    pub io: Option<Io>,
    /// Whether the files are dropped from the system's cache before each pass.
    pub cold: bool,
    /// Passes over the images are made until this has passed, at least five.
    pub seconds: f64,
}

/// A row.
#[derive(Clone, Debug, Serialize)]
pub struct LoaderRow {
    /// `loader/NAME/square` or `loader/NAME/batch/WORKERS`, with `/cold` where it is.
    pub id: String,
    /// Threads of the loader, of a row of batches.
    pub workers: Option<usize>,
    /// Images of a pass that are counted.
    pub images: usize,
    /// Images a second: of a thread, or of all of them together.
    pub images_per_second: f64,
    /// From the first quarter of the passes to the last, as a share of the median.
    pub spread: f64,
    /// Bytes of squares a second, in GB.
    pub gbytes: f64,
    /// Share that those are of what one thread copies in memory: what raw squares are measured by.
    pub share: f64,
    /// Of a row of batches: its rate as a share of what as many threads would read at the rate that one has in the
    /// row of the same data with the fewest.
    pub linear: Option<f64>,
}

/// Batches of a pass that are counted, at least.
const BATCHES: usize = 4;
/// And at least so many of each thread.
const ROUNDS: usize = 4;

/// Bytes a second that one thread copies from one large piece of memory to another, in GB.
pub fn copy_gbytes() -> f64 {
    const BYTES: usize = 256 << 20;
    let (from, mut to) = (vec![1u8; BYTES], vec![0u8; BYTES]);
    let times = (0..6).map(|_| {
        let start = Instant::now();
        std::hint::black_box(&mut to).copy_from_slice(std::hint::black_box(&from));
        start.elapsed().as_secs_f64()
    });
    BYTES as f64 / 1e9 / Spread::of(times.skip(1).collect()).median
}

/// Measures one row on the training images of a data set; `copy` is [`copy_gbytes`].
///
/// # Errors
/// If the data cannot be read.
pub fn measure(
    name: &str,
    data: &Path,
    what: What,
    settings: &Settings,
    copy: f64,
) -> Result<LoaderRow> {
    let set = DataSet::open(data)?;
    let open = || {
        let Settings { side, io, .. } = *settings;
        let canvas = Canvas::square(side);
        let options = ReadOptions { canvas, max_bad: 0.01, cache_bytes: 0, io };
        set.images(Split::Train, options).map(Arc::new)
    };
    let mut images = open()?;
    let mut times = Vec::new();
    let begun = Instant::now();
    let (mut pass, mut seen) = (0, 0);
    // The first is not counted: it warms what is to be warm.
    while pass <= 5 || begun.elapsed().as_secs_f64() < settings.seconds {
        if settings.cold {
            drop(images); // what is mapped stays in the cache
            let files = open()?;
            forget(&files)?;
            drop(files);
            images = open()?;
        }
        let order = permutation(1, pass, images.len());
        let (counted, seconds) = match what {
            What::Square => squares(&images, order, settings)?,
            What::Batch => batches(&images, order, settings)?,
        };
        seen = counted;
        times.push(seconds / counted as f64);
        pass += 1;
    }
    let spread = Spread::of(times.split_off(1));
    let rate = 1.0 / spread.median;
    let gbytes = rate * images.bytes_per_image() as f64 / 1e9;
    let (kind, workers) = match what {
        What::Square => (String::from("square"), None),
        What::Batch => (format!("batch/{}", settings.workers), Some(settings.workers)),
    };
    Ok(LoaderRow {
        id: format!("loader/{name}/{kind}{}", if settings.cold { "/cold" } else { "" }),
        workers,
        images: seen,
        images_per_second: rate,
        spread: spread.quartiles,
        gbytes,
        share: gbytes / copy,
        linear: None,
    })
}

impl LoaderRow {
    /// Images a second of one thread of a row of batches.
    pub fn rate_of_one(&self) -> Option<f64> {
        self.workers.map(|workers| self.images_per_second / workers as f64)
    }

    /// Sets [`LoaderRow::linear`], beside the row of the fewest threads.
    pub fn compare_with(&mut self, fewest: &LoaderRow) {
        self.linear = self.rate_of_one().zip(fewest.rate_of_one()).map(|(one, base)| one / base);
    }
}

/// Squares that are kept at a time, as in a batch, so that they do not stay in the nearest cache.
const PLACES: usize = 128;

fn squares(images: &Images, mut order: Vec<u32>, settings: &Settings) -> Result<(usize, f64)> {
    let mut scratch = Scratch::default();
    let len = images.bytes_per_image();
    let mut places = vec![0; PLACES * len];
    order.truncate(BATCHES * settings.batch);
    let start = Instant::now();
    for (i, &index) in order.iter().enumerate() {
        let square = &mut places[i % PLACES * len..][..len];
        images.read_good(index as usize, &mut scratch, square)?;
    }
    Ok((order.len(), start.elapsed().as_secs_f64()))
}

/// Images that were counted, and the seconds that they took.
fn batches(images: &Arc<Images>, order: Vec<u32>, settings: &Settings) -> Result<(usize, f64)> {
    let Settings { batch: batch_size, workers, .. } = *settings;
    // The start is not counted, when all threads begin at once and the ring's memory is touched first. What is
    // counted are whole rounds, since threads that began together hand over together.
    let skipped = if settings.cold { 0 } else { (2 * workers).max(workers + 2) };
    let counted = BATCHES.max(ROUNDS * workers).next_multiple_of(workers);
    let wanted = (skipped + counted) * batch_size;
    let mut order = order.repeat(wanted.div_ceil(order.len()));
    order.truncate(wanted);

    let crops = match settings.size {
        Some(size) => Some(Preprocess::named("paper", [size; 2], settings.side)?),
        None => None,
    };
    crops.iter().try_for_each(Preprocess::check)?;
    let mut out = vec![0; settings.size.map_or(0, |size| batch_size * size * size * 3)];
    let plan = BatchPlan::new(order, batch_size, Bad::Replace);
    let mut start = Instant::now();
    let mut loader = Loader::new(images.clone(), plan, workers);
    for number in 1.. {
        let Some(batch) = loader.next_batch()? else { break };
        if let Some(preprocess) = &crops {
            let (size, side) = (preprocess.size[0], settings.side);
            let squares = batch.pixels().chunks_exact(side * side * 3);
            for (i, (square, out)) in squares.zip(out.chunks_exact_mut(size * size * 3)).enumerate()
            {
                let crop = training_crop(Crops::Random, preprocess, 0, 0, batch.first + i, 0);
                cut(square, side, crop, size, out);
            }
            std::hint::black_box(&mut out);
        }
        std::hint::black_box(batch.pixels());
        loader.recycle(batch);
        if number == skipped {
            start = Instant::now();
        }
    }
    Ok((counted * batch_size, start.elapsed().as_secs_f64()))
}

/// Cuts a crop out of a square, mirrored if it says so.
fn cut(square: &[u8], side: usize, crop: Crop, size: usize, out: &mut [u8]) {
    for (y, row) in out.chunks_exact_mut(size * 3).enumerate() {
        let from = ((crop.y as usize + y) * side + crop.x as usize) * 3;
        let from = &square[from..from + size * 3];
        if crop.mirror == 0 {
            row.copy_from_slice(from);
        } else {
            for (to, from) in row.chunks_exact_mut(3).zip(from.rchunks_exact(3)) {
                to.copy_from_slice(from);
            }
        }
    }
}

/// Drops the files of a set from the system's cache, where it can be asked to.
fn forget(images: &Images) -> Result<()> {
    let mut files: Vec<PathBuf> = (0..images.len())
        .map(|i| images.shards().map_or_else(|| images.path(i), |shards| shards.shard(i).into()))
        .collect();
    files.sort_unstable();
    files.dedup();
    for path in files {
        let file = File::open(&path).map_err(Error::io("read", &path))?;
        #[cfg(target_os = "linux")]
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)
            .map_err(|error| Error::io("drop from the cache", &path)(error.into()))?;
        #[cfg(not(target_os = "linux"))]
        let _ = file;
    }
    Ok(())
}

/// Makes data to measure on in an empty folder: photographs' like of 500x375 pixels and 50 kB, as
/// files, in shards, in shards with the shortest side at 256, and raw. Gives each a name.
///
/// # Errors
/// If the folder cannot be written.
pub fn example(root: &Path, images: usize) -> Result<Vec<(String, PathBuf)>> {
    let folder = root.join("folder");
    for i in 0..images {
        let (split, class) = (if i < 2 { "val" } else { "train" }, ["a", "b"][i % 2]);
        let path = folder.join(split).join(class).join(format!("{i:05}.jpg"));
        write_atomic(&path, &textured(i as u64, 500, 375)).map_err(Error::io("write", &path))?;
    }
    let mut sets = vec![(String::from("files-500x375"), folder.clone())];
    for (name, form) in [
        ("shards-500x375", Form::Kept),
        ("shards-256", Form::Resized { side: 256, quality: 90 }),
        ("shards-raw-256", Form::Raw { side: 256 }),
    ] {
        let out = root.join(name);
        let source = Source::open(&folder, &mut |_| Ok(()))?;
        let mean_side = default_mean_side(form);
        let options = Options { form, shard_bytes: 1 << 30, shuffle: true, mean_side };
        let plan = PackPlan::new(&source, &options)?;
        pack(&source, &plan, &out, 0.0, &AtomicUsize::new(0), &mut |_| ())?;
        sets.push((name.into(), out));
    }
    Ok(sets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crops_are_cut_and_mirrored() {
        let square: Vec<u8> = (0..4 * 4 * 3).collect();
        let mut out = [0; 2 * 2 * 3];
        let crop = Crop { image: 0, y: 1, x: 2, mirror: 0 };
        cut(&square, 4, crop, 2, &mut out);
        assert_eq!(out, [18, 19, 20, 21, 22, 23, 30, 31, 32, 33, 34, 35]);
        cut(&square, 4, Crop { mirror: 1, ..crop }, 2, &mut out);
        assert_eq!(out, [21, 22, 23, 18, 19, 20, 33, 34, 35, 30, 31, 32]);
    }
}
