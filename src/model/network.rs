//! The chain and its two walks: up from pixels to logits, and down by a [`Rule`].
//!
//! [`Network`] is what a network is; [`Params`] its weights, shared; [`Workspace`] what one walk
//! needs besides: activations, switches and room, planned for a number of samples and a purpose.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::architecture::{Architecture, Kind, Layer, build_layers};
use super::windows::{Room, below, ends, seen};
use crate::backend::{Backend, Dropout, Param, ReluRule, SeedUnit, StepState, Tensor};
use crate::shape::{ConvDims, Shape, Windows};
use crate::{Error, Result};
use zfnet_core::Init;

/// A chain of layers whose sizes fit. Immutable.
#[derive(Clone, Debug)]
pub struct Network {
    /// The description it was built from.
    pub architecture: Architecture,
    /// Its layers, from pixels to logits.
    pub layers: Vec<Layer>,
}

impl Network {
    /// Checks a description and works out every layer's sizes.
    ///
    /// # Errors
    /// If a layer does not fit: its name, what was expected, what was found.
    pub fn new(architecture: Architecture) -> Result<Self> {
        let layers = build_layers(&architecture)?;
        Ok(Network { architecture, layers })
    }

    /// Number of classes; 0 if it gives maps.
    pub fn classes(&self) -> usize {
        self.architecture.classes
    }

    /// Refuses a network that gives maps, where classes are needed.
    ///
    /// # Errors
    /// If it does.
    pub fn must_classify(&self) -> Result<()> {
        if self.classes() > 0 {
            return Ok(());
        }
        Err(Error::Network(format!(
            "network {}: expected one that tells classes apart, found 0 classes: it gives maps, and \
             is trained and run by a program of its own (see examples/super_resolution.rs)",
            self.architecture.name
        )))
    }

    /// The index of the layer of this name.
    ///
    /// # Errors
    /// If there is none; the message lists the names.
    pub fn layer(&self, name: &str) -> Result<usize> {
        self.layers.iter().position(|layer| layer.name == name).ok_or_else(|| {
            let known = self.layers.iter().map(|layer| layer.name.clone()).collect();
            Error::UnknownLayer { name: name.into(), known }
        })
    }

    /// Indices of the spatial convolutions, from below.
    pub fn spatial(&self) -> Vec<usize> {
        let spatial = |&i: &usize| matches!(self.layers[i].kind, Kind::Conv { .. });
        (0..self.layers.len()).filter(spatial).collect()
    }

    /// The last fully connected layer below the logits, if there is one.
    pub fn last_hidden(&self) -> Option<usize> {
        let full = |&i: &usize| matches!(self.layers[i].kind, Kind::FullyConnected { .. });
        (0..self.layers.len()).rev().filter(full).nth(1)
    }

    /// The layers with weights and their convolutions' sizes.
    pub fn convolutions(&self) -> impl Iterator<Item = (&Layer, &ConvDims)> {
        self.layers.iter().filter_map(|layer| layer.convolution().map(|dims| (layer, dims)))
    }

    /// Number of weights and biases.
    pub fn parameters(&self) -> usize {
        self.layers.iter().map(Layer::parameters).sum()
    }

    /// Multiply-adds for one image, forward.
    pub fn multiply_adds(&self) -> u64 {
        self.layers.iter().map(Layer::multiply_adds).sum()
    }

    /// Shape of one input.
    pub fn input(&self) -> Shape {
        self.layers[0].input
    }
}

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
    /// If the backend has no room.
    pub fn zeros(backend: &B, network: &Network) -> Result<Self> {
        Self::of(network, |dims| Param::zeros(backend, dims))
    }

    /// All zero: weights, to be given values.
    ///
    /// # Errors
    /// If the backend has no room.
    pub fn weights(backend: &B, network: &Network) -> Result<Self> {
        Self::of(network, |dims| Param::weights(backend, dims))
    }

    fn of(network: &Network, room: impl Fn(&ConvDims) -> Result<Param<B>>) -> Result<Self> {
        let param = |layer: &Layer| layer.convolution().map(&room).transpose();
        Ok(Params { layers: network.layers.iter().map(param).collect::<Result<_>>()? })
    }

    /// Freshly drawn weights, biases zero, the same for one seed (as far as `ln`, `cos` and `sin` are). Each layer has a
    /// stream of its own, so that a changed layer does not change the others.
    ///
    /// # Errors
    /// If the backend has no room.
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

/// What a workspace is for, and so what it keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Walks up with dropout, and down with gradients of the weights.
    Train,
    /// Walks up only.
    Infer,
    /// Walks up, then down from so many seeds at a time.
    Project {
        /// Descending samples at a time.
        seeds: usize,
    },
}

/// How contrast normalisation is passed on the way down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LrnDown {
    /// Unchanged, as the paper does.
    Identity,
    /// By its derivative.
    Derivative,
}

/// The rule of the walk down: the one thing in which the deconvnet differs from the gradient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Stop what descends where the forward activation was not positive.
    pub forward_mask: bool,
    /// Stop what is negative itself (the paper's relu on the reconstruction, relu*).
    pub relu_down: bool,
    /// What normalisation does.
    pub lrn_down: LrnDown,
}

impl Rule {
    /// Zeiler and Fergus, section 2.1.
    pub const DECONVNET: Rule =
        Rule { forward_mask: false, relu_down: true, lrn_down: LrnDown::Identity };
    /// The true gradient: training, and saliency (Simonyan et al. 2013).
    pub const GRADIENT: Rule =
        Rule { forward_mask: true, relu_down: false, lrn_down: LrnDown::Derivative };
    /// Guided backpropagation (Springenberg et al. 2014).
    pub const GUIDED: Rule =
        Rule { forward_mask: true, relu_down: true, lrn_down: LrnDown::Derivative };

    /// By name.
    ///
    /// # Errors
    /// If there is no such rule.
    pub fn named(name: &str) -> Result<Self> {
        match name {
            "deconvnet" => Ok(Rule::DECONVNET),
            "gradient" => Ok(Rule::GRADIENT),
            "guided" => Ok(Rule::GUIDED),
            other => Err(Error::Network(format!(
                "no rule `{other}`: expected deconvnet, gradient or guided"
            ))),
        }
    }

    /// The value a walk down starts with, for a unit whose activation is `activation`: 1 for the
    /// gradient, the activation itself for the others.
    pub fn seed_value(&self, activation: f32) -> f32 {
        if *self == Rule::GRADIENT { 1.0 } else { activation }
    }

    fn relu(&self) -> ReluRule {
        ReluRule { forward_mask: self.forward_mask, relu_down: self.relu_down }
    }
}

/// Neighbouring layers that are run, and kept, as one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    /// Index of its first layer.
    pub layer: usize,
    /// Whether the relu that follows is part of it.
    pub relu: bool,
    /// The max pooling after that, if it is part of it too.
    pub pool: Option<usize>,
}

/// Activations, switches and room for walks of up to `capacity` samples.
pub struct Workspace<B: Backend> {
    /// The network's input, `[n, size, size, 3]`; its `n` says how many samples are in use.
    pub input: Tensor<B>,
    /// What the operations read of the step.
    pub state: B::State,
    /// Each block's output after a walk up.
    outputs: Vec<Tensor<B>>,
    /// The switches of blocks that pool.
    switches: Vec<Option<B::Bytes>>,
    blocks: Vec<Block>,
    /// For each layer, the block that holds its output.
    block_of: Vec<usize>,
    /// What descends: the current tensor, and the one the next layer writes.
    descending: [Tensor<B>; 2],
    /// What walks down from single units need besides.
    room: Room<B>,
    scratch: B::Scratch,
    /// Where the sums go that a filter gradient takes for a bias's, of layers that have none.
    no_bias: Tensor<B>,
    /// Whether dropout drops: one that is the first of all layers is run for other purposes too.
    training: bool,
}

/// One walk down: from where, by which rule, for whom.
pub struct Descent<'a, B: Backend> {
    /// The layer whose output has been seeded.
    pub from: usize,
    /// The rule.
    pub rule: Rule,
    /// For each descending sample the forward sample it belongs to; its own by default.
    pub images: Option<&'a B::Indices>,
    /// Gradients of the weights to be written, or added to with `accumulate`.
    pub gradients: Option<&'a mut Params<B>>,
    /// Add to `gradients` instead of overwriting.
    pub accumulate: bool,
    /// Whether to go all the way to the pixels: in a workspace for projections, since training has no
    /// use for that.
    pub to_pixels: bool,
}

impl<B: Backend> Workspace<B> {
    /// Plans walks of up to `capacity` samples: decides what is run as one, and makes every
    /// buffer that walks will use.
    ///
    /// # Errors
    /// If the backend has no room.
    pub fn new(backend: &B, network: &Network, purpose: Purpose, capacity: usize) -> Result<Self> {
        let mut blocks: Vec<Block> = Vec::new();
        let mut block_of = Vec::new();
        for (index, layer) in network.layers.iter().enumerate() {
            let skipped = matches!(layer.kind, Kind::Dropout { .. }) && purpose != Purpose::Train;
            match blocks.last_mut() {
                Some(block)
                    if matches!(layer.kind, Kind::Relu)
                        && block.layer + 1 == index
                        && network.layers[block.layer].has_bias() =>
                {
                    block.relu = true;
                }
                Some(_) if skipped => {}
                _ => blocks.push(Block { layer: index, relu: false, pool: None }),
            }
            block_of.push(blocks.len() - 1);
        }

        if purpose == Purpose::Train && fuses(backend, network, &blocks, capacity) {
            blocks[0].pool = Some(blocks.remove(1).layer);
            for block in &mut block_of {
                *block = block.saturating_sub(1);
            }
        }

        let (descending_samples, seeds) = match purpose {
            Purpose::Train => (capacity, 0),
            Purpose::Infer => (0, 0),
            Purpose::Project { seeds } => (seeds, seeds),
        };
        let (windows, room) = Room::new(backend, network, &blocks, seeds)?;
        let mut outputs = Vec::new();
        let mut switches = Vec::new();
        let mut largest = network.input().len().max(windows.descending);
        for block in &blocks {
            let layer = &network.layers[block.pool.unwrap_or(block.layer)];
            largest = largest.max(layer.output.len());
            let shape = layer.output.with_n(capacity);
            let logits = outputs.len() + 1 == blocks.len() && network.classes() > 0;
            outputs.push(if logits { backend.zeros(shape) } else { backend.activations(shape) }?);
            switches.push(match layer.kind {
                Kind::MaxPool { .. } => Some(backend.bytes(capacity * layer.output.len())?),
                _ => None,
            });
        }
        let descending = Shape::new(descending_samples, 1, 1, largest);
        let most = capacity.max(descending_samples);
        let mut convolutions: Vec<ConvDims> =
            network.convolutions().map(|(_, dims)| dims.with_n(most)).collect();
        convolutions.extend(windows.convolutions);
        let without_bias = network.layers.iter().filter(|layer| !layer.has_bias());
        let sums = without_bias.filter_map(|layer| layer.convolution().map(|dims| dims.k)).max();
        Ok(Workspace {
            input: backend.activations(network.input().with_n(capacity))?,
            state: backend.state()?,
            outputs,
            switches,
            blocks,
            block_of,
            descending: [backend.activations(descending)?, backend.activations(descending)?],
            room,
            scratch: backend.scratch(&convolutions)?,
            no_bias: backend.zeros(Shape::vector(sums.unwrap_or(0) as usize))?,
            training: purpose == Purpose::Train,
        })
    }

    /// Tells the operations of the coming walks their step.
    ///
    /// # Errors
    /// If the backend refuses.
    pub fn set_state(&mut self, backend: &B, state: StepState) -> Result<()> {
        backend.set_state(&mut self.state, state)
    }

    /// The output of a layer after a walk up. A convolutional or fully connected layer's output is
    /// taken after the relu that follows it, as its maps are always shown (a transposed one's before
    /// it); the last layer's is the logits. In training, where a backend pools a first convolution's output at once, there is none
    /// of that layer: it is the pool's.
    pub fn output(&self, layer: usize) -> &Tensor<B> {
        &self.outputs[self.block_of[layer]]
    }

    /// The switches of a pooling layer after a walk up.
    pub fn switches(&self, layer: usize) -> Option<&B::Bytes> {
        self.switches[self.block_of[layer]].as_ref()
    }

    /// The same, to be written: a walk down can be given another backend's switches.
    pub fn switches_mut(&mut self, layer: usize) -> Option<&mut B::Bytes> {
        self.switches[self.block_of[layer]].as_mut()
    }

    /// What has descended, and where the next walk down is seeded.
    pub fn descending(&mut self) -> &mut Tensor<B> {
        &mut self.descending[0]
    }

    /// The logits of a walk up; the last layer's maps, where there are no classes.
    pub fn logits(&self) -> &Tensor<B> {
        self.outputs.last().expect("a network has layers")
    }

    /// Softmax and cross-entropy of a walk up's logits: the samples' losses, and where the walk down
    /// starts, the gradient of `scale` times their sum.
    ///
    /// A network without classes has no such loss: its caller writes the gradient of one into
    /// [`Workspace::descending`].
    ///
    /// # Errors
    /// If the backend refuses.
    pub fn loss(
        &mut self,
        backend: &B,
        losses: &mut Tensor<B>,
        labels: &B::Indices,
        scale: f32,
    ) -> Result<()> {
        let logits = self.outputs.last().expect("a network has layers");
        let dlogits = &mut self.descending[0];
        dlogits.reshape(logits.shape());
        backend.softmax_cross_entropy(losses, dlogits, logits, labels, scale, &mut self.state)
    }

    /// Walks up: from `self.input` to the logits.
    ///
    /// # Errors
    /// If the backend refuses an operation.
    pub fn up(&mut self, backend: &B, network: &Network, params: &Params<B>) -> Result<()> {
        let n = self.input.shape().n;
        for (index, block) in self.blocks.iter().enumerate() {
            let layer = &network.layers[block.layer];
            let (below, above) = self.outputs.split_at_mut(index);
            let x = below.last().unwrap_or(&self.input);
            let y = &mut above[0];
            y.reshape(network.layers[block.pool.unwrap_or(block.layer)].output.with_n(n));
            match &layer.kind {
                Kind::Conv { dims, .. } | Kind::FullyConnected { dims, .. } => {
                    let Param { weight, bias } = weights(params, block.layer);
                    let (dims, scratch) = (&dims.with_n(n), &mut self.scratch);
                    match block.pool.and_then(|pool| network.layers[pool].pooling()) {
                        None => {
                            let (bias, relu) = (Some(bias), block.relu);
                            backend.conv_forward(y, x, weight, bias, relu, dims, scratch)?;
                        }
                        Some(pool) => {
                            let switches = self.switches[index].as_mut().expect("planned for it");
                            let pool = &pool.with_n(n);
                            backend.conv_pool_forward(
                                y, switches, x, weight, bias, dims, pool, scratch,
                            )?;
                        }
                    }
                }
                Kind::ConvTranspose { dims } => {
                    let weight = &weights(params, block.layer).weight;
                    backend.conv_backward_data(y, x, weight, &dims.with_n(n), &mut self.scratch)?;
                }
                Kind::Relu => backend.relu_forward(y, x)?,
                Kind::MaxPool { dims } => {
                    let switches = self.switches[index].as_mut().expect("planned for pooling");
                    backend.maxpool_forward(y, switches, x, &dims.with_n(n))?;
                }
                Kind::Lrn(lrn) => backend.lrn_forward(y, x, lrn)?,
                Kind::Dropout { rate } => {
                    let rate = if self.training { *rate } else { 0.0 };
                    let dropout = Dropout { rate, layer: block.layer as u32 };
                    backend.dropout(y, x, &dropout, &self.state)?;
                }
            }
        }
        Ok(())
    }

    /// Walks down from what [`Workspace::descending`] holds for `descent.from`, to the pixels or,
    /// without `to_pixels`, until the first layer's gradients are known.
    ///
    /// Every layer is undone by its transpose; what the rule decides is what a relu, a pool and a
    /// normalisation let through. With [`Rule::GRADIENT`] this is backpropagation.
    ///
    /// # Errors
    /// If the backend refuses an operation.
    pub fn down(
        &mut self,
        backend: &B,
        network: &Network,
        params: &Params<B>,
        descent: Descent<'_, B>,
    ) -> Result<()> {
        self.walk_down(backend, network, params, descent, None).map(drop)
    }

    /// Walks down from single units of a layer, one a sample, which begin with their `value`, to
    /// `pictures`, `[n, size, size, 3]` on the host. Sample `n` belongs to the forward image
    /// `images[n]`.
    ///
    /// The same as [`Workspace::down`] from zeros but for these units, except that only what they
    /// can reach is computed: the growing windows of their receptive fields.
    ///
    /// # Errors
    /// If the backend refuses an operation.
    pub fn project(
        &mut self,
        backend: &B,
        network: &Network,
        params: &Params<B>,
        layer: usize,
        rule: Rule,
        images: &B::Indices,
        units: &[SeedUnit],
        pictures: &mut [f32],
    ) -> Result<()> {
        let map = network.layers[layer].output;
        let windows = Windows::units(map);
        let descending = &mut self.descending[0];
        descending.reshape(windows.shape(units.len(), map.c));
        self.room.seed(backend, descending, units, map)?;
        let descent = Descent {
            from: layer,
            rule,
            images: Some(images),
            gradients: None,
            accumulate: false,
            to_pixels: true,
        };
        match self.walk_down(backend, network, params, descent, Some(windows))? {
            None => backend.download(pictures, &self.descending[0]),
            Some(windows) => {
                self.room.put_into_pictures(backend, pictures, &self.descending[0], &windows)
            }
        }
    }

    /// See [`Workspace::down`]. With `windows`, what descends is no more than these of its layer, and
    /// `images` must be given; returns those of the pixels, unless they are whole by then.
    fn walk_down(
        &mut self,
        backend: &B,
        network: &Network,
        params: &Params<B>,
        mut descent: Descent<'_, B>,
        mut windows: Option<Windows>,
    ) -> Result<Option<Windows>> {
        let Descent { rule, images, .. } = descent;
        let n = self.descending[0].shape().n;
        // An unpooling under the forward mask lets nothing through that a relu right below it would stop.
        let mut unpooled = false;
        for index in (0..=self.block_of[descent.from]).rev() {
            let Block { layer: number, relu, pool } = self.blocks[index];
            let layer = &network.layers[number];
            if let Some(pool) = pool.and_then(|pool| network.layers[pool].pooling()) {
                // The first of all layers, in training: only its gradients are wanted.
                assert!(!descent.to_pixels, "a workspace for training does not reach the pixels");
                let dims = layer.convolution().expect("planned for a convolution");
                let (dims, pool) = (&dims.with_n(n), &pool.with_n(n));
                let gradients = descent.gradients.as_mut().expect("asked for in training");
                let gradient = gradients.layers[number].as_mut().expect("has weights");
                let (dy, x) = (&self.descending[0], &self.input);
                let switches = self.switches[index].as_ref().expect("planned for pooling");
                let (add, scratch) = (descent.accumulate, &mut self.scratch);
                backend.conv_pool_backward_filter(
                    gradient, dy, switches, x, add, dims, pool, scratch,
                )?;
                return Ok(None);
            }
            if let Some(covering) = windows.take_if(|windows| ends(layer, windows)) {
                let [from, to] = &mut self.descending;
                to.reshape(layer.output.with_n(n));
                backend.cut(to, from, None, &self.room.units, &covering.inverse())?;
                self.descending.swap(0, 1);
            }
            let below = windows.map(|windows| below(layer, &windows));
            let y = &self.outputs[index];
            let x = if index == 0 { &self.input } else { &self.outputs[index - 1] };
            let [dy, dx] = &mut self.descending;
            let Room { units, cut, switches: cut_switches, .. } = &mut self.room;
            let masked = std::mem::take(&mut unpooled);
            let rectified = relu || matches!(layer.kind, Kind::Relu);
            if rectified && !masked {
                let asked = rule.forward_mask;
                let (y, images) = seen(backend, y, images, &windows, units, asked, dx, n)?;
                backend.relu_backward(dy, y, images, rule.relu())?;
            }
            match &layer.kind {
                Kind::Conv { dims, .. } | Kind::FullyConnected { dims, .. } => {
                    let dims = dims.with_n(n);
                    let dims = &windows.map_or(dims, |windows| dims.windowed(windows.size));
                    if let Some(gradients) = &mut descent.gradients {
                        let gradient = gradients.layers[number].as_mut().expect("has weights");
                        let accumulate = descent.accumulate;
                        let scratch = &mut self.scratch;
                        backend.conv_backward_filter(gradient, dy, x, accumulate, dims, scratch)?;
                    }
                    if index == 0 && !descent.to_pixels {
                        return Ok(None);
                    }
                    dx.reshape(dims.input());
                    let weight = &weights(params, number).weight;
                    backend.conv_backward_data(dx, dy, weight, dims, &mut self.scratch)?;
                    if let Some(below) = &below {
                        backend.clear_outside(dx, units, below)?;
                    }
                }
                Kind::ConvTranspose { dims } => {
                    let dims = &dims.with_n(n);
                    if let Some(gradients) = &mut descent.gradients {
                        // The roles are exchanged, so that what is summed as a bias's gradient is
                        // the layer's own input: it goes elsewhere, and the gradient stays zero.
                        let gradient = gradients.layers[number].as_mut().expect("has weights");
                        let (add, scratch) = (descent.accumulate, &mut self.scratch);
                        self.no_bias.reshape(gradient.bias.shape());
                        std::mem::swap(&mut gradient.bias, &mut self.no_bias);
                        let done =
                            backend.conv_backward_filter(gradient, x, dy, add, dims, scratch);
                        std::mem::swap(&mut gradient.bias, &mut self.no_bias);
                        done?;
                    }
                    if index == 0 && !descent.to_pixels {
                        return Ok(None);
                    }
                    dx.reshape(dims.output());
                    let weight = &weights(params, number).weight;
                    backend.conv_forward(dx, dy, weight, None, false, dims, &mut self.scratch)?;
                }
                Kind::Relu => continue, // done
                Kind::MaxPool { dims } => {
                    let switches = self.switches[index].as_ref().expect("planned for pooling");
                    let (mask, dims) = (rule.forward_mask, dims.with_n(n));
                    let (switches, images, dims) = match &windows {
                        None => (switches, images, dims),
                        Some(windows) => {
                            let (to, from) = (&mut *cut_switches, switches);
                            backend.cut_switches(to, from, images, units, windows, mask, &dims)?;
                            (&*cut_switches, None, dims.windowed(windows.size))
                        }
                    };
                    dx.reshape(dims.input());
                    backend.maxpool_backward(dx, dy, switches, images, mask, &dims)?;
                    unpooled = rule.relu() == ReluRule { forward_mask: true, relu_down: false };
                }
                Kind::Lrn(lrn) => match rule.lrn_down {
                    LrnDown::Identity => continue,
                    LrnDown::Derivative => {
                        let (x, images) = seen(backend, x, images, &windows, units, true, cut, n)?;
                        dx.reshape(dy.shape());
                        backend.lrn_backward(dx, dy, x, images, lrn)?;
                    }
                },
                Kind::Dropout { rate } => {
                    dx.reshape(dy.shape());
                    let rate = if self.training { *rate } else { 0.0 };
                    let dropout = Dropout { rate, layer: number as u32 };
                    backend.dropout(dx, dy, &dropout, &self.state)?;
                }
            }
            self.descending.swap(0, 1);
            windows = below;
        }
        Ok(windows)
    }
}

/// Whether the first convolution, its relu and the max pooling behind it are one operation: then the
/// largest of all outputs, which nothing else reads in training, is never stored.
fn fuses<B: Backend>(backend: &B, network: &Network, blocks: &[Block], capacity: usize) -> bool {
    let [Block { layer: first, relu: true, .. }, Block { layer: second, .. }, ..] = blocks else {
        return false;
    };
    let dims = network.layers[*first].convolution();
    match (dims, network.layers[*second].pooling()) {
        (Some(dims), Some(pool)) => backend.fuses(&dims.with_n(capacity), &pool.with_n(capacity)),
        _ => false,
    }
}

fn weights<B: Backend>(params: &Params<B>, layer: usize) -> &Param<B> {
    params.layers[layer].as_ref().expect("a convolution has weights")
}
