//! The weights of a network, and how they are drawn.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::{Layer, Network};
use crate::Result;
use crate::backend::{Backend, Param};
use crate::shape::ConvDims;
use zfnet_core::Init;

/// One [`Param`] for each layer that has weights: the weights themselves, their gradients, or
/// their momentum.
pub struct Params<B: Backend> {
    /// As many as the network has layers.
    pub layers: Vec<Option<Param<B>>>,
}

impl<B: Backend> Params<B> {
    /// All zero: gradients or momentum.
    ///
    /// # Errors
    /// If the backend is out of memory.
    pub fn zeros(backend: &B, network: &Network) -> Result<Self> {
        Self::of(network, |dims| Param::zeros(backend, dims))
    }

    /// All zero: weights, to be given values.
    ///
    /// # Errors
    /// If the backend is out of memory.
    pub fn weights(backend: &B, network: &Network) -> Result<Self> {
        Self::of(network, |dims| Param::weights(backend, dims))
    }

    fn of(network: &Network, allocate: impl Fn(&ConvDims) -> Result<Param<B>>) -> Result<Self> {
        let param = |layer: &Layer| layer.convolution().map(&allocate).transpose();
        Ok(Params { layers: network.layers.iter().map(param).collect::<Result<_>>()? })
    }

    /// Freshly drawn weights, biases zero, the same for one seed (as far as `ln`, `cos` and `sin`
    /// are). Each layer has a stream of its own, so that a changed layer does not change the
    /// others.
    ///
    /// # Errors
    /// If the backend is out of memory.
    pub fn init(backend: &B, network: &Network, seed: u64) -> Result<Self> {
        let mut params = Self::weights(backend, network)?;
        for (index, layer) in network.layers.iter().enumerate() {
            params.init_layer(backend, network, index, layer, seed)?;
        }
        Ok(params)
    }

    fn init_layer(
        &mut self,
        backend: &B,
        network: &Network,
        index: usize,
        layer: &Layer,
        seed: u64,
    ) -> Result<()> {
        let (Some(param), Some(dims)) = (&mut self.layers[index], layer.convolution()) else {
            return Ok(());
        };
        let recipe = &network.architecture.recipe;
        let deviation = match recipe.init {
            Init::Normal => f64::from(recipe.init_std),
            Init::He => (2.0 / layer.fan_in()).sqrt(),
        };
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(index as u64 + 1);
        let values = normals(&mut random, dims.filter().len(), deviation);
        backend.upload(&mut param.weight, &values)
    }
}

/// Normal numbers with mean 0 (Box and Muller's method).
fn normals(random: &mut ChaCha8Rng, count: usize, deviation: f64) -> Vec<f32> {
    let mut unit = || (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
    let mut values = Vec::with_capacity(count + 1);
    while values.len() < count {
        let radius = (-2.0 * (1.0 - unit()).ln()).sqrt() * deviation;
        let angle = std::f64::consts::TAU * unit();
        values.extend([radius * angle.cos(), radius * angle.sin()].map(|v| v as f32));
    }
    values.truncate(count);
    values
}
