//! In which order an epoch goes through the images, and how each is cropped: pure functions of
//! (seed, epoch), whatever threads do, so that training can stop and go on anywhere.
//!
//! An epoch is a list of positions, each with an image. Update `s` takes the positions from
//! `s * batch_size` on, and of those each of several ranks takes its share; what a sample is and how
//! it is cropped depends on its position alone, so any number of ranks and threads sees the same.

use std::ops::Range;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::images::Images;
use zfnet_core::Crops;
use zfnet_core::Preprocess;
use zfnet_core::operation::Crop;
use zfnet_core::{Error, Result};

/// Streams of the generator: those below belong to weights (`zfnet::model::Params`).
const CROP_STREAM: u64 = 1 << 62;
const ORDER_STREAM: u64 = 1 << 63;

/// The images of an epoch in their order.
///
/// With a window, shards are read one after the other, in an order of their own in each epoch, and
/// only so many neighbouring images are shuffled at a time: for disks that cannot seek.
///
/// # Errors
/// If a window is asked for where there are no shards.
pub fn epoch_order(
    images: &Images,
    window: Option<usize>,
    seed: u64,
    epoch: u32,
) -> Result<Vec<u32>> {
    let Some(window) = window else { return Ok(permutation(seed, epoch, images.len())) };
    let Some(shards) = images.shards() else {
        return Err(Error::NotInShards);
    };
    let shards: Vec<Vec<u32>> = shards.on_disk().map(Iterator::collect).collect();
    Ok(windowed(shards, window, seed, epoch))
}

/// The images `0 .. len` in the order of an epoch.
pub fn permutation(seed: u64, epoch: u32, len: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..len as u32).collect();
    shuffle(&mut generator(seed, epoch), &mut order);
    order
}

/// Shards in a shuffled order, and in them stretches of `window` images shuffled.
fn windowed(mut shards: Vec<Vec<u32>>, window: usize, seed: u64, epoch: u32) -> Vec<u32> {
    let mut random = generator(seed, epoch);
    shuffle(&mut random, &mut shards);
    let mut order = shards.concat();
    for stretch in order.chunks_mut(window.max(1)) {
        shuffle(&mut random, stretch);
    }
    order
}

/// One of several processes that train one network together, each on its share of every batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rank {
    /// Which one, from 0.
    pub rank: usize,
    /// Images of a whole batch that each rank takes, but for the last ones, which may find fewer.
    pub share: usize,
}

impl Rank {
    /// The only one.
    pub const ALONE: Rank = Rank { rank: 0, share: usize::MAX };

    /// One of `ranks` that take `parts / ranks` neighbouring parts each of batches that are cut into `parts`.
    pub fn of_parts(rank: usize, ranks: usize, parts: usize, batch_size: usize) -> Self {
        Rank { rank, share: batch_size.div_ceil(parts) * (parts / ranks) }
    }

    /// The positions of an epoch of `len` images that are this rank's in update `step`. Those of all
    /// ranks together are the batch.
    pub fn positions(self, step: usize, batch_size: usize, len: usize) -> Range<usize> {
        let start = (step * batch_size).min(len);
        let end = (start + batch_size).min(len);
        let bound = |rank: usize| end.min(start.saturating_add(rank.saturating_mul(self.share)));
        bound(self.rank)..bound(self.rank + 1)
    }
}

fn generator(seed: u64, epoch: u32) -> ChaCha8Rng {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(ORDER_STREAM | u64::from(epoch));
    random
}

/// Fisher and Yates' shuffle.
pub fn shuffle<T>(random: &mut ChaCha8Rng, list: &mut [T]) {
    for i in (1..list.len()).rev() {
        list.swap(i, below(random, i + 1));
    }
}

/// The training crop of the sample at `position` of an epoch.
pub fn training_crop(
    crops: Crops,
    preprocess: &Preprocess,
    seed: u64,
    epoch: u32,
    position: usize,
    image: u32,
) -> Crop {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(CROP_STREAM | u64::from(epoch) << 32 | position as u64);
    match crops {
        Crops::Ten => preprocess.ten_crops(image)[below(&mut random, 10)],
        Crops::Random => {
            let [y, x] = preprocess.last_place().map(|last| below(&mut random, last + 1) as u32);
            Crop { image, y, x, mirror: below(&mut random, 2) as u32 }
        }
        Crops::Centre => {
            let [y, x] = preprocess.centre();
            Crop { image, y, x, mirror: 0 }
        }
    }
}

/// A number below `bound`, without bias that matters (bound is far below 2^32).
fn below(random: &mut ChaCha8Rng, bound: usize) -> usize {
    ((u128::from(random.next_u64()) * bound as u128) >> 64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permutations_are_complete_repeatable_and_differ() {
        let one = permutation(1, 0, 1000);
        let mut sorted = one.clone();
        sorted.sort_unstable();
        assert!(sorted.iter().copied().eq(0..1000));
        assert_eq!(one, permutation(1, 0, 1000));
        assert_ne!(one, permutation(1, 1, 1000));
        assert_ne!(one, permutation(2, 0, 1000));
        assert!(permutation(0, 0, 0).is_empty());
    }

    #[test]
    fn a_window_mixes_neighbours_and_shards_but_loses_nothing() {
        let shards = || vec![(0..50).collect(), (50..60).collect(), (60..100).collect()];
        let order = windowed(shards(), 8, 1, 0);
        assert_eq!(order, windowed(shards(), 8, 1, 0));
        assert_ne!(order, windowed(shards(), 8, 1, 1));
        assert_ne!(order, windowed(shards(), 8, 2, 0));
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert!(sorted.into_iter().eq(0..100));
        // The stretches hold what the shards hold there, in whatever order the shards come.
        let by_length = |i: u32| [50, 60, 100].partition_point(|end| *end <= i);
        let mut firsts: Vec<usize> = order.iter().map(|i| by_length(*i)).collect();
        firsts.dedup();
        assert!(firsts.len() < 3 + 2 * 8, "shards are not mixed: {firsts:?}");
        assert!(order.windows(2).filter(|pair| pair[0] + 1 == pair[1]).count() < 30, "shuffled");
        let orders = (0..20).map(|epoch| by_length(windowed(shards(), 1, 1, epoch)[0]));
        assert_eq!(
            orders.collect::<std::collections::BTreeSet<_>>().len(),
            3,
            "any shard is first"
        );
    }

    /// Ranks share every batch among them, and no position is lost or seen twice.
    #[test]
    fn ranks_divide_every_batch() {
        for (batch_size, len) in [(8, 50), (7, 7), (3, 10), (128, 100), (1, 5)] {
            let steps = usize::div_ceil(len, batch_size);
            for (ranks, parts) in [(1, 1), (1, 8), (2, 2), (2, 8), (4, 8), (8, 8), (8, 64)] {
                let part = usize::div_ceil(batch_size, parts);
                let mut next = 0;
                for step in 0..steps {
                    let alone = Rank::ALONE.positions(step, batch_size, len);
                    assert_eq!(alone.start, next);
                    for rank in 0..ranks {
                        let share = Rank::of_parts(rank, ranks, parts, batch_size);
                        let share = share.positions(step, batch_size, len);
                        assert_eq!(share.start, next);
                        // Whole parts, as one rank cuts them, unless the batch ends before.
                        assert!(
                            (share.end - alone.start).is_multiple_of(part)
                                || share.end == alone.end
                        );
                        next = share.end;
                    }
                    assert_eq!(next, alone.end);
                }
                assert_eq!(next, len);
                assert!(Rank::ALONE.positions(steps, batch_size, len).is_empty());
            }
        }
    }

    #[test]
    fn crops_cover_all_places_and_repeat() {
        let preprocess = Preprocess::named("paper", [8; 2], 10).unwrap();
        let crops = |kind| -> std::collections::BTreeSet<_> {
            (0..2000)
                .map(|i| {
                    let crop = training_crop(kind, &preprocess, 3, 1, i, 5);
                    assert_eq!(crop, training_crop(kind, &preprocess, 3, 1, i, 5));
                    (crop.y, crop.x, crop.mirror)
                })
                .collect()
        };
        assert_eq!(crops(Crops::Random).len(), 3 * 3 * 2);
        assert_eq!(crops(Crops::Ten).len(), 10);
        assert_eq!(crops(Crops::Centre).into_iter().collect::<Vec<_>>(), [(1, 1, 0)]);
    }
}
