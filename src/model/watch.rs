//! What a watched step of training tells of each layer with weights: how large its activations, what goes back
//! to it, and its last update are.
//!
//! Such a step makes the moments of these tensors besides; its results are the same bits.

use super::plan::Block;
use super::{Network, Params};
use crate::Result;
use crate::backend::{Backend, MapMoments, Tensor};

/// What a watched step tells of one layer with weights.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerSigns {
    /// Index of the layer.
    pub layer: usize,
    /// Mean of its output, over the samples of the step: after the relu that follows it, if there is one, and of a
    /// first convolution that is pooled at once, after the pooling.
    pub activation_mean: f64,
    /// Its standard deviation.
    pub activation_std: f64,
    /// Standard deviation of the gradient of one sample's loss by the output, where the relu lets it through; where
    /// the output is that of the pooling, of all that goes back to it.
    pub gradient_std: f64,
    /// Root mean square of the weights.
    pub weight_rms: f64,
    /// That of the last update of the weights, as a share of it.
    pub update: f64,
    /// For each map (a unit of a fully connected layer) whether it is above zero anywhere. Empty where no relu
    /// follows.
    pub fired: Vec<bool>,
    /// For each map its share of the output's sum of squares. Empty for a fully connected layer.
    pub shares: Vec<f64>,
}

impl LayerSigns {
    /// Whether activations, or what goes back, hold a value that is no number or too large for one.
    pub fn is_finite(&self) -> bool {
        [self.activation_mean, self.activation_std, self.gradient_std].iter().all(|v| v.is_finite())
    }
}

/// What a watched step tells.
#[derive(Clone, Debug, PartialEq)]
pub struct StepSigns {
    /// Samples that it tells of: of a batch in parts, those of the last part.
    pub samples: usize,
    /// Standard deviation of the network's input.
    pub input_std: f64,
    /// Layers with weights, from below.
    pub layers: Vec<LayerSigns>,
}

/// A layer with weights, and where its moments stand.
struct Watched {
    layer: usize,
    block: usize,
    /// Maps of its output, and of its weights.
    maps: usize,
    weight_maps: usize,
    /// Values of its output for one sample.
    values: usize,
    /// Where the moments begin of its output; behind these stand those of what goes back, of the weights and of
    /// their momentum.
    first: usize,
    /// Whether a relu makes its output.
    relu: bool,
}

impl Watched {
    fn gradient(&self) -> usize {
        self.first + self.maps
    }

    fn weight(&self) -> usize {
        self.gradient() + self.maps
    }

    fn momentum(&self) -> usize {
        self.weight() + self.weight_maps
    }

    fn end(&self) -> usize {
        self.momentum() + self.weight_maps
    }
}

/// Makes the moments of a step, and says what they tell.
pub(crate) struct Watch<B: Backend> {
    moments: B::Moments,
    input_maps: usize,
    watched: Vec<Watched>,
    host: Vec<MapMoments>,
}

impl<B: Backend> Watch<B> {
    pub(super) fn new(backend: &B, network: &Network, blocks: &[Block]) -> Result<Self> {
        let input_maps = network.input().c;
        let mut watched = Vec::new();
        let (mut next, mut most) = (input_maps, input_maps);
        for (index, block) in blocks.iter().enumerate() {
            let layer = &network.layers[block.layer];
            let Some(dims) = layer.convolution() else { continue };
            let (maps, weight_maps) = (block.output.c, dims.filter().c);
            let relu = block.relu || block.step.pooling().is_some();
            let values = block.output.len();
            let layer = block.layer;
            let place =
                Watched { layer, block: index, maps, weight_maps, values, first: next, relu };
            (next, most) = (place.end(), most.max(maps).max(weight_maps));
            watched.push(place);
        }
        Ok(Watch {
            moments: backend.moments(next, most)?,
            input_maps,
            watched,
            host: vec![MapMoments { sum: 0.0, squares: 0.0, largest: 0.0 }; next],
        })
    }

    /// Makes the moments of a forward pass.
    pub(super) fn forward(
        &mut self,
        backend: &B,
        input: &Tensor<B>,
        outputs: &[Tensor<B>],
    ) -> Result<()> {
        backend.map_moments(&mut self.moments, 0, input)?;
        for place in &self.watched {
            backend.map_moments(&mut self.moments, place.first, &outputs[place.block])?;
        }
        Ok(())
    }

    /// Makes the moments of what goes back to a block.
    pub(super) fn backward(&mut self, backend: &B, block: usize, dy: &Tensor<B>) -> Result<()> {
        match self.watched.iter().find(|place| place.block == block) {
            Some(place) => backend.map_moments(&mut self.moments, place.gradient(), dy),
            None => Ok(()),
        }
    }

    /// Makes the moments of weights and their momentum, and sends all on their way.
    pub fn update(&mut self, backend: &B, params: &Params<B>, momentum: &Params<B>) -> Result<()> {
        for place in &self.watched {
            let layers = [params, momentum].map(|params| params.layers[place.layer].as_ref());
            let [Some(w), Some(v)] = layers else { continue };
            backend.map_moments(&mut self.moments, place.weight(), &w.weight)?;
            backend.map_moments(&mut self.moments, place.momentum(), &v.weight)?;
        }
        backend.send_moments(&mut self.moments)
    }

    /// The moments of a step that has been waited for.
    pub fn received(&mut self, backend: &B) -> Result<&[MapMoments]> {
        backend.received_moments(&mut self.host, &self.moments)?;
        Ok(&self.host)
    }

    /// What the moments of a step of `samples` samples tell, each of whose losses had `scale` as its factor, with the
    /// learning rate of its update.
    pub fn signs(
        &self,
        network: &Network,
        moments: &[MapMoments],
        samples: usize,
        scale: f64,
        learning_rate: f64,
    ) -> StepSigns {
        let of = |first: usize, maps: usize, values: usize| {
            Spread::of(&moments[first..][..maps], values)
        };
        let layers = self.watched.iter().map(|place| {
            let layer = &network.layers[place.layer];
            let weights = layer.convolution().map_or(0, |dims| dims.filter().len());
            let output = of(place.first, place.maps, samples * place.values);
            let gradient = of(place.gradient(), place.maps, samples * place.values);
            let weight = of(place.weight(), place.weight_maps, weights);
            let momentum = of(place.momentum(), place.weight_maps, weights);
            let maps = &moments[place.first..][..place.maps];
            let squares = output.square * (samples * place.values) as f64;
            let is_map = place.values > place.maps && squares > 0.0;
            let share = |moments: &MapMoments| f64::from(moments.squares) / squares;
            LayerSigns {
                layer: place.layer,
                activation_mean: output.mean,
                activation_std: output.std(),
                gradient_std: gradient.std() / scale,
                weight_rms: weight.square.sqrt(),
                update: learning_rate * (momentum.square / weight.square.max(1e-30)).sqrt(),
                fired: if place.relu {
                    maps.iter().map(|moments| moments.largest > 0.0).collect()
                } else {
                    Vec::new()
                },
                shares: if is_map { maps.iter().map(share).collect() } else { Vec::new() },
            }
        });
        let input = of(0, self.input_maps, samples * network.input().len());
        StepSigns { samples, input_std: input.std(), layers: layers.collect() }
    }
}

/// Mean, and mean of the squares.
struct Spread {
    mean: f64,
    square: f64,
}

impl Spread {
    fn of(moments: &[MapMoments], values: usize) -> Self {
        let sum = |of: fn(&MapMoments) -> f32| {
            moments.iter().map(|moments| f64::from(of(moments))).sum::<f64>() / values.max(1) as f64
        };
        Spread { mean: sum(|moments| moments.sum), square: sum(|moments| moments.squares) }
    }

    fn std(&self) -> f64 {
        let variance = self.square - self.mean * self.mean;
        // Not `max`, which would make a number of a NaN.
        if variance < 0.0 { 0.0 } else { variance.sqrt() }
    }
}
