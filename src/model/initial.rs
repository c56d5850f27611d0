//! How a layer's weights were drawn before training, so that they can be drawn once more.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
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
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        random.set_stream(self.stream);
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
}
