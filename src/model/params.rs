//! The weights of a network, and how they are drawn.

use super::{Initial, Layer, Network};
use crate::Result;
use crate::backend::{Backend, Param};
use crate::shape::ConvDims;

/// First of the streams of [`Params::untrained`], between those of [`Params::init`], from 1 on, and those of
/// orders and crops in `zfnet_data::order`, from 1 << 62 on.
const UNTRAINED_STREAMS: u64 = 1 << 61;

/// One [`Param`] for each layer that has weights: the weights themselves, their gradients, or
/// their momentum.
pub struct Params<B: Backend> {
    /// As many as the network has layers.
    pub layers: Vec<Option<Param<B>>>,
    /// How each layer's weights were drawn, however long they have been trained since. `None` where that is
    /// not known, or there are no weights.
    pub initial: Vec<Option<Initial>>,
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
        let layers: Vec<_> = network.layers.iter().map(param).collect::<Result<_>>()?;
        Ok(Params { initial: vec![None; layers.len()], layers })
    }

    /// Weights as training begins with, biases zero, the same for one seed. Each layer has a stream of
    /// random numbers of its own, so that a changed layer does not change the others.
    ///
    /// # Errors
    /// If the backend is out of memory.
    pub fn init(backend: &B, network: &Network, seed: u64) -> Result<Self> {
        Self::drawn(backend, network, seed, 1)
    }

    /// Other weights than any that training begins with, whatever the seeds, but drawn likewise: what a
    /// trained network is compared with.
    ///
    /// # Errors
    /// If the backend is out of memory.
    pub fn untrained(backend: &B, network: &Network, seed: u64) -> Result<Self> {
        Self::drawn(backend, network, seed, UNTRAINED_STREAMS)
    }

    fn drawn(backend: &B, network: &Network, seed: u64, first_stream: u64) -> Result<Self> {
        let mut params = Self::weights(backend, network)?;
        for (index, layer) in network.layers.iter().enumerate() {
            let Some(param) = &mut params.layers[index] else { continue };
            let std = layer.init_std(&network.architecture.recipe);
            let initial = Initial { seed, stream: first_stream + index as u64, std };
            let values = initial.values(param.weight.shape().len());
            backend.upload(&mut param.weight, &values)?;
            params.initial[index] = Some(initial);
        }
        Ok(params)
    }
}
