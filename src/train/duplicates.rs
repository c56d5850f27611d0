//! Images that two sets share, though their files differ: what a network was trained on must not be
//! among the images it is tested on (section 5.2 of the paper looks for them by normalised correlation).
//!
//! An image becomes a grey thumbnail `t` of 16 x 16 means, shifted to zero mean and scaled to unit norm;
//! the correlation of two is the product `t . u`, from -1 to 1. All pairs are a product of two matrices.

use std::sync::atomic::Ordering;

use ndarray::ArrayView2;
use rayon::prelude::*;
use serde::Serialize;

use super::alarm::{Alarm, Remedy, Sign};
use super::job::{Event, Job};
use crate::data::images::{Images, Scratch};
use crate::{Error, Result};
use zfnet_core::size_text;

/// Correlation from which on two images are one: two photographs of like composition may have 0.96.
const SAME: f32 = 0.99;
/// Images of each split that are compared before a training, at most, in even steps.
const MOST_TRAIN: usize = 20_000;
const MOST_VAL: usize = 2_000;
/// Images whose thumbnails are made between two looks at whether to stop.
const AT_ONCE: usize = 256;
/// Share of the validation images from which on it is worth an alarm that they are among the training images.
const WORTH: f64 = 0.01;

/// Rows and columns of a thumbnail.
const SIDE: usize = 16;
/// Numbers of a thumbnail.
const WIDTH: usize = SIDE * SIDE;
/// Thumbnails of one product: always the same ones together, whatever the threads.
const TILE: usize = 512;

/// Two images that are nearly the same.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Pair {
    /// The image of the first set, as a place in the list that was given.
    pub first: usize,
    /// The one of the second set that is most like it.
    pub second: usize,
    /// Their correlation.
    pub correlation: f32,
    /// Whether the first is that of the second mirrored.
    pub mirrored: bool,
}

/// Thumbnails of the images `wanted`, `[wanted, 256]`; a bad image or one without any contrast is all
/// zero, which is like nothing.
///
/// # Errors
/// If they are smaller than a thumbnail, or images cannot be read.
pub fn thumbnails(images: &Images, wanted: &[u32]) -> Result<Vec<f32>> {
    let size = images.canvas().size();
    if size.iter().any(|side| *side < SIDE) {
        return Err(Error::Data(format!(
            "near-duplicates: expected images of at least {SIDE} pixels a side, found {}",
            size_text(size)
        )));
    }
    let read = |(scratch, square): &mut (Scratch, Vec<u8>), &index: &u32| {
        square.resize(images.bytes_per_image(), 0);
        let read = images.read(index as usize, scratch, square)?;
        Ok(read.map_or_else(|| vec![0.0; WIDTH], |()| thumbnail(square, size)))
    };
    let all: Result<Vec<Vec<f32>>> = wanted.par_iter().map_init(Default::default, read).collect();
    Ok(all?.concat())
}

/// The thumbnail of RGB pixels.
fn thumbnail(square: &[u8], [rows, columns]: [usize; 2]) -> Vec<f32> {
    let bounds = |i: usize, size: usize| i * size / SIDE..(i + 1) * size / SIDE;
    let mean_of = |y: usize, x: usize| {
        let mut sum = 0.0;
        for row in bounds(y, rows) {
            for column in bounds(x, columns) {
                let pixel = &square[(row * columns + column) * 3..][..3];
                let [r, g, b] = [0, 1, 2].map(|c| f64::from(pixel[c]));
                sum += 0.299 * r + 0.587 * g + 0.114 * b;
            }
        }
        sum / (bounds(y, rows).len() * bounds(x, columns).len()) as f64
    };
    let grey: Vec<f64> = (0..WIDTH).map(|i| mean_of(i / SIDE, i % SIDE)).collect();
    let mean = grey.iter().sum::<f64>() / WIDTH as f64;
    let norm = grey.iter().map(|v| (v - mean).powi(2)).sum::<f64>().sqrt();
    // Below a hundredth of a grey level, what is left is rounding.
    let scale = if norm < 0.01 * SIDE as f64 { 0.0 } else { 1.0 / norm };
    grey.iter().map(|v| ((v - mean) * scale) as f32).collect()
}

/// Looks for validation images that a network will be trained on, before it is: an alarm, unless there are hardly
/// any. `None` if it was stopped.
pub(super) fn shared_images(
    job: &Job<'_>,
    observe: &mut impl FnMut(Event<'_>) -> Result<()>,
) -> Result<Option<Option<Alarm>>> {
    if job.train.canvas().size().iter().any(|side| *side < SIDE) {
        return Ok(Some(None));
    }
    let some = |images: &Images, most: usize| -> Vec<u32> {
        (0..images.len() as u32).step_by(images.len().div_ceil(most).max(1)).collect()
    };
    let (train, val) = (some(&job.train, MOST_TRAIN), some(&job.val, MOST_VAL));
    let (mut done, total) = (0, train.len() + val.len());
    let mut of = |images: &Images, wanted: &[u32]| -> Result<Option<Vec<f32>>> {
        let mut all = Vec::with_capacity(wanted.len() * WIDTH);
        for wanted in wanted.chunks(AT_ONCE) {
            if job.stop.load(Ordering::Relaxed) != 0 {
                return Ok(None);
            }
            all.extend(thumbnails(images, wanted)?);
            done += wanted.len();
            observe(Event::Compare(done, total))?;
        }
        Ok(Some(all))
    };
    let Some(of_val) = of(&job.val, &val)? else { return Ok(None) };
    let Some(of_train) = of(&job.train, &train)? else { return Ok(None) };
    let found = pairs(&of_val, &of_train, SAME);
    // Of the training images only so many were looked at.
    let looked_at = train.len() as f64 / job.train.len().max(1) as f64;
    if found.is_empty() || (found.len() as f64) < WORTH * looked_at * val.len() as f64 {
        return Ok(Some(None));
    }
    let named = |pair: &Pair| {
        let (val, train) = (val[pair.first] as usize, train[pair.second] as usize);
        [job.val.name(val), job.train.name(train)]
    };
    Ok(Some(Some(Alarm {
        sign: Sign::SharedImages {
            shared: found.len(),
            pairs: found.iter().map(named).collect(),
            compared: [val.len(), train.len()],
        },
        cause: "the splits were not drawn from different photographs".into(),
        remedy: Remedy::RemoveShared,
    })))
}

fn mirrored(thumbnails: &[f32]) -> Vec<f32> {
    thumbnails.chunks_exact(SIDE).flat_map(|row| row.iter().rev()).copied().collect()
}

/// For each image of the first set the one of the second that is most like it, as it is or mirrored,
/// where their correlation is at least `threshold`; in the order of the first set. Both are
/// [`thumbnails`].
pub fn pairs(first: &[f32], second: &[f32], threshold: f32) -> Vec<Pair> {
    let of_tile = |(tile, first): (usize, &[f32])| {
        let mut best: Vec<Option<Pair>> = vec![None; first.len() / WIDTH];
        for (mirror, first) in [(false, first.to_vec()), (true, mirrored(first))] {
            for (other, second) in second.chunks(TILE * WIDTH).enumerate() {
                let products = matrix(&first).dot(&matrix(second).t());
                for ((i, j), &correlation) in products.indexed_iter() {
                    let is_better = best[i].is_none_or(|pair| correlation > pair.correlation);
                    if correlation >= threshold && is_better {
                        let (first, second) = (tile * TILE + i, other * TILE + j);
                        best[i] = Some(Pair { first, second, correlation, mirrored: mirror });
                    }
                }
            }
        }
        best.into_iter().flatten().collect::<Vec<Pair>>()
    };
    first.par_chunks(TILE * WIDTH).enumerate().flat_map_iter(of_tile).collect()
}

fn matrix(values: &[f32]) -> ArrayView2<'_, f32> {
    ArrayView2::from_shape((values.len() / WIDTH, WIDTH), values).expect("whole thumbnails")
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::{Rng, SeedableRng};

    use super::*;

    /// A square of coarse random blocks, 8 a side: as smooth as a photograph.
    fn blocks(side: usize, seed: u64) -> Vec<u8> {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let blocks: Vec<u8> = (0..8 * 8 * 3).map(|_| (random.next_u32() >> 24) as u8).collect();
        let block = |y: usize, x: usize| &blocks[((y * 8 / side) * 8 + x * 8 / side) * 3..][..3];
        (0..side * side).flat_map(|i| block(i / side, i % side)).copied().collect()
    }

    fn mirror(square: &[u8], side: usize) -> Vec<u8> {
        square.chunks(side * 3).flat_map(|row| row.chunks(3).rev().flatten()).copied().collect()
    }

    #[test]
    fn a_planted_duplicate_is_found_and_others_are_not() {
        let second: Vec<f32> =
            (0..700).flat_map(|seed| thumbnail(&blocks(64, seed), [64; 2])).collect();
        // Image 600 again: larger, darker, noisy and mirrored.
        let mut random = ChaCha8Rng::seed_from_u64(9);
        let changed: Vec<u8> = mirror(&blocks(96, 600), 96)
            .iter()
            .map(|v| (f32::from(*v) * 0.8) as u8 + (random.next_u32() % 20) as u8)
            .collect();
        let first = [
            thumbnail(&blocks(64, 5000), [64; 2]),
            thumbnail(&changed, [96; 2]),
            thumbnail(&blocks(64, 3), [64; 2]),
        ];
        let found = pairs(&first.concat(), &second, 0.95);
        let places: Vec<_> = found.iter().map(|p| (p.first, p.second, p.mirrored)).collect();
        assert_eq!(places, [(1, 600, true), (2, 3, false)]);
        assert!((found[1].correlation - 1.0).abs() < 1e-5);
    }

    #[test]
    fn a_flat_image_is_like_nothing() {
        let flat = thumbnail(&[90; 32 * 32 * 3], [32; 2]);
        assert!(flat.iter().all(|v| *v == 0.0));
        assert!(pairs(&flat, &flat, 0.5).is_empty());
        assert!(pairs(&[], &flat, 0.5).is_empty() && pairs(&flat, &[], 0.5).is_empty());
    }

    #[test]
    fn pairs_do_not_depend_on_threads() {
        let set = |seeds: std::ops::Range<u64>| -> Vec<f32> {
            seeds.flat_map(|seed| thumbnail(&blocks(32, seed), [32; 2])).collect()
        };
        let (first, second) = (set(0..1100), set(500..1200));
        let with = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| pairs(&first, &second, 0.2))
        };
        let one = with(1);
        assert!(one.len() >= 600 && one == with(3));
    }
}
