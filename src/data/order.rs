//! In which order an epoch goes through the images, and how each is cropped: pure functions of
//! (seed, epoch), whatever threads do, so that training can stop and go on anywhere.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::backend::Crop;
use crate::model::Preprocess;
use crate::train::Crops;

/// Streams of the generator: those below belong to the layers' weights.
const CROP_STREAM: u64 = 1 << 62;
const ORDER_STREAM: u64 = 1 << 63;

/// The images `0 .. len` in the order of an epoch (Fisher and Yates' shuffle).
pub fn permutation(seed: u64, epoch: u32, len: usize) -> Vec<u32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(ORDER_STREAM | u64::from(epoch));
    let mut order: Vec<u32> = (0..len as u32).collect();
    for i in (1..len).rev() {
        order.swap(i, below(&mut random, i + 1));
    }
    order
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
            let places = preprocess.resize - preprocess.size + 1;
            let [y, x] = [(); 2].map(|()| below(&mut random, places) as u32);
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
    fn crops_cover_all_places_and_repeat() {
        let preprocess = Preprocess::named("paper", 8, 10).unwrap();
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
