//! How a layer's weights were drawn before training, so that they can be drawn once more.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Weights drawn from N(0, std^2), as a function of these numbers alone. Biases start at zero.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Initial {
    /// Seed of the random numbers.
    pub seed: u64,
    /// Their stream.
    pub stream: u64,
    /// Standard deviation.
    pub std: f64,
}

impl Initial {
    /// The weights, in the order of [`ConvDims::filter`](crate::shape::ConvDims::filter), the same bits every
    /// time (as far as `ln`, `cos` and `sin` are): Box and Muller's method.
    pub fn values(&self, count: usize) -> Vec<f32> {
        self.values_from(0, count)
    }

    /// The weights from number `first` on, which is even.
    fn values_from(&self, first: usize, count: usize) -> Vec<f32> {
        assert!(first.is_multiple_of(2), "values are drawn in pairs");
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        random.set_stream(self.stream);
        // Two numbers of 64 bits make two values.
        random.set_word_pos(2 * first as u128);
        let mut unit = || (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        let mut values = Vec::with_capacity(count + 1);
        while values.len() < count {
            let radius = (-2.0 * (1.0 - unit()).ln()).sqrt() * self.std;
            let angle = std::f64::consts::TAU * unit();
            values.extend([radius * angle.cos(), radius * angle.sin()].map(|v| v as f32));
        }
        values.truncate(count);
        values
    }

    /// The share of a filter's energy that lies along its initial weights, cos²(w, w0), of filters of `per_filter`
    /// weights that are not zero: all of them or, of more than `most`, about so many in even steps.
    pub fn shares(&self, weights: &[f32], per_filter: usize, most: usize) -> Vec<f64> {
        let step = (weights.len() / per_filter).div_ceil(most).max(1);
        let filters: Vec<(usize, &[f32])> =
            weights.chunks_exact(per_filter).enumerate().step_by(step).collect();
        let share = |&(filter, now): &(usize, &[f32])| {
            let first = filter * per_filter;
            let odd = first % 2;
            let then = &self.values_from(first - odd, per_filter + odd)[odd..];
            let size = dot(now, now) * dot(then, then);
            (size > 0.0).then(|| dot(now, then).powi(2) / size)
        };
        filters.par_iter().filter_map(share).collect()
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_the_same_from_wherever_they_are_drawn() {
        let initial = Initial { seed: 3, stream: 1 << 40, std: 0.5 };
        let all = initial.values(101);
        for first in [0, 2, 50, 98] {
            assert_eq!(initial.values_from(first, 3), all[first..first + 3]);
        }
    }

    #[test]
    fn shares_of_some_filters_are_those_of_all() {
        let initial = Initial { seed: 3, stream: 7, std: 0.5 };
        let other = Initial { stream: 8, ..initial };
        let sum = |(a, b): (&f32, &f32)| a + b;
        let weights: Vec<f32> =
            initial.values(20 * 9).iter().zip(&other.values(20 * 9)).map(sum).collect();
        let all = initial.shares(&weights, 9, usize::MAX);
        let every_fourth: Vec<f64> = all.iter().copied().step_by(4).collect();
        assert_eq!(initial.shares(&weights, 9, 5), every_fourth);
        assert!(
            initial.shares(&initial.values(90), 9, 100).iter().all(|s| (s - 1.0).abs() < 1e-12)
        );
    }
}
