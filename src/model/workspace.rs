//! What it takes to run a network: buffers planned for a number of samples and a purpose, the forward
//! pass, and the backward pass by a [`Rule`].
//!
//! The deconvnet is the backward pass with another rule; nothing else here knows of it.

use super::layer::{Backward, Common, Forward, Output};
use super::plan::{Block, Purpose, plan};
use super::rule::Rule;
use super::watch::Watch;
use super::window_buffers::WindowBuffers;
use super::{Network, Params};
use crate::Result;
use crate::backend::{Backend, ReluRule, StepState, Tensor};
use crate::shape::{ConvDims, Shape};

/// Activations, switches and buffers for passes of up to `capacity` samples.
pub struct Workspace<B: Backend> {
    /// The network's input, `[n, rows, columns, channels]`; its `n` says how many samples are in use.
    pub input: Tensor<B>,
    /// What the operations read of the step.
    pub state: B::State,
    pub(super) blocks: Vec<Block>,
    /// For each layer, the block that holds its output.
    pub(super) block_of: Vec<usize>,
    /// Each block's output after a forward pass.
    pub(super) outputs: Vec<Tensor<B>>,
    /// The switches of blocks that pool.
    pub(super) switches: Vec<Option<B::Bytes>>,
    /// What goes back: the current tensor, and the one the next layer writes.
    pub(super) signal: [Tensor<B>; 2],
    /// What projections from single units need besides.
    pub(super) windows: WindowBuffers<B>,
    pub(super) scratch: B::Scratch,
    /// Where the sums go that a filter gradient takes for a bias's, of layers that have none.
    pub(super) no_bias: Tensor<B>,
    /// What makes the moments of a pass, while it is watched.
    pub(crate) watch: Option<Watch<B>>,
    /// Whether the coming passes are watched.
    pub(crate) is_watched: bool,
    /// Whether dropout drops: one that is the first of all layers is run for other purposes too.
    training: bool,
}

/// One backward pass: from where, by which rule, for whom.
pub struct BackwardOptions<'a, B: Backend> {
    /// The layer whose output has been seeded.
    pub from: usize,
    /// The rule.
    pub rule: Rule,
    /// For each backward sample the forward sample it belongs to; its own by default.
    pub images: Option<&'a B::Indices>,
    /// Gradients of the weights to be written, or added to with `accumulate`.
    pub gradients: Option<&'a mut Params<B>>,
    /// Add to `gradients` instead of overwriting.
    pub accumulate: bool,
    /// How far to go.
    pub to: BackwardTo,
}

/// How far a backward pass goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackwardTo {
    /// Until the first layer's gradients are known.
    FirstWeights,
    /// To the network's input: in a workspace for projections, since training has no use for that.
    Pixels,
    /// To the output of this layer, as [`Workspace::output`] has it.
    Output(usize),
}

impl<B: Backend> Workspace<B> {
    /// Plans passes of up to `capacity` samples: decides what is run as one, and makes every buffer
    /// that they will use.
    ///
    /// # Errors
    /// If the backend is out of memory.
    pub fn new(backend: &B, network: &Network, purpose: Purpose, capacity: usize) -> Result<Self> {
        let (blocks, block_of) = plan(backend, network, purpose, capacity);
        let (going_back, units) = match purpose {
            Purpose::Train => (capacity, 0),
            Purpose::Infer => (0, 0),
            Purpose::Project { seeds } => (seeds, seeds),
        };
        let (windows, needs) = WindowBuffers::new(backend, &blocks, units)?;
        let mut outputs = Vec::new();
        let mut switches = Vec::new();
        let mut largest = network.input().len().max(needs.values);
        for (index, block) in blocks.iter().enumerate() {
            largest = largest.max(block.output.len());
            let shape = block.output.with_n(capacity);
            let logits = index + 1 == blocks.len() && network.classes() > 0;
            outputs.push(if logits { backend.zeros(shape) } else { backend.activations(shape) }?);
            let pools = block.step.pooling().is_some();
            switches.push(pools.then(|| backend.bytes(shape.len())).transpose()?);
        }
        let signal = Shape::new(going_back, 1, 1, largest);
        let most = capacity.max(going_back);
        let convolutions = network.convolutions().map(|(_, dims)| dims.with_n(most));
        let convolutions: Vec<ConvDims> = convolutions.chain(needs.convolutions).collect();
        let mut scratch = backend.scratch(&convolutions)?;
        let conv_pools = blocks.iter().filter(|block| block.step.pooling().is_some());
        for dims in conv_pools.filter_map(|block| block.step.convolution()) {
            backend.prepare_conv_pool(&mut scratch, &dims.with_n(capacity))?;
        }
        let without_bias = network.layers.iter().filter(|layer| !layer.has_bias());
        let sums = without_bias.filter_map(|layer| layer.convolution().map(|dims| dims.k)).max();
        Ok(Workspace {
            input: backend.activations(network.input().with_n(capacity))?,
            state: backend.state()?,
            blocks,
            block_of,
            outputs,
            switches,
            signal: [backend.activations(signal)?, backend.activations(signal)?],
            windows,
            scratch,
            no_bias: backend.zeros(Shape::vector(sums.unwrap_or(0) as usize))?,
            watch: None,
            is_watched: false,
            training: purpose == Purpose::Train,
        })
    }

    /// Makes ready to watch passes: see [`Watch`].
    ///
    /// # Errors
    /// If the backend is out of memory.
    pub(crate) fn prepare_watch(&mut self, backend: &B, network: &Network) -> Result<()> {
        self.watch = Some(Watch::new(backend, network, &self.blocks)?);
        Ok(())
    }

    /// The forward pass: from `self.input` to the logits.
    ///
    /// # Errors
    /// If a backend operation fails.
    pub fn forward(&mut self, backend: &B, params: &Params<B>) -> Result<()> {
        let n = self.input.shape().n;
        for (index, block) in self.blocks.iter().enumerate() {
            let (below, above) = self.outputs.split_at_mut(index);
            let (x, y) = (below.last().unwrap_or(&self.input), &mut above[0]);
            y.reshape(block.output.with_n(n));
            block.step.forward(Forward {
                backend,
                y,
                switches: self.switches[index].as_mut(),
                x,
                param: params.layers[block.layer].as_ref(),
                relu: block.relu,
                common: Common {
                    scratch: &mut self.scratch,
                    state: &self.state,
                    layer: block.layer as u32,
                    training: self.training,
                },
            })?;
        }
        match &mut self.watch {
            Some(watch) if self.is_watched => watch.forward(backend, &self.input, &self.outputs),
            _ => Ok(()),
        }
    }

    /// The backward pass: from what [`Workspace::signal`] holds for `options.from`, as far
    /// as `options.to` says.
    ///
    /// Every layer is undone by its transpose; what the rule decides is what a relu, a pool and a
    /// normalisation let through. With [`Rule::GRADIENT`] this is backpropagation.
    ///
    /// # Errors
    /// If a backend operation fails.
    pub fn backward(
        &mut self,
        backend: &B,
        params: &Params<B>,
        options: BackwardOptions<'_, B>,
    ) -> Result<()> {
        self.backward_telling(backend, params, options, |_, _| Ok(()))
    }

    /// The same; `done` is called with each layer whose gradient is there, and all gradients, while the layers below it
    /// are still to come.
    ///
    /// # Errors
    /// As [`Workspace::backward`], or if `done` fails.
    pub(crate) fn backward_telling(
        &mut self,
        backend: &B,
        params: &Params<B>,
        options: BackwardOptions<'_, B>,
        done: impl FnMut(usize, &mut Params<B>) -> Result<()>,
    ) -> Result<()> {
        let from = self.block_of[options.from];
        self.backward_from(backend, params, from, options, done)
    }

    /// The same from the output of block `top` on.
    pub(super) fn backward_from(
        &mut self,
        backend: &B,
        params: &Params<B>,
        top: usize,
        mut options: BackwardOptions<'_, B>,
        mut done: impl FnMut(usize, &mut Params<B>) -> Result<()>,
    ) -> Result<()> {
        let lowest = match options.to {
            BackwardTo::Output(layer) => self.block_of[layer] + 1,
            BackwardTo::FirstWeights | BackwardTo::Pixels => 0,
        };
        for index in (lowest..=top).rev() {
            if self.has_relu_to_undo(index, &options) {
                let (dy, y) = (&mut self.signal[0], &self.outputs[index]);
                backend.relu_backward(dy, y, options.images, options.rule.relu())?;
            }
            if self.is_watched
                && let Some(watch) = &mut self.watch
            {
                watch.backward(backend, index, &self.signal[0])?;
            }
            let block = &self.blocks[index];
            let [dy, dx] = &mut self.signal;
            let gradients = options.gradients.as_mut();
            let output = block.step.backward(Backward {
                backend,
                dx,
                dy,
                x: if index == 0 { &self.input } else { &self.outputs[index - 1] },
                switches: self.switches[index].as_ref(),
                images: options.images,
                rule: options.rule,
                param: params.layers[block.layer].as_ref(),
                gradient: gradients.and_then(|gradients| gradients.layers[block.layer].as_mut()),
                accumulate: options.accumulate,
                to_input: index > 0 || options.to == BackwardTo::Pixels,
                no_bias: &mut self.no_bias,
                common: Common {
                    scratch: &mut self.scratch,
                    state: &self.state,
                    layer: block.layer as u32,
                    training: self.training,
                },
            })?;
            if output == Output::Dx {
                self.signal.swap(0, 1);
            }
            let layer = block.layer;
            if let Some(gradients) = &mut options.gradients
                && gradients.layers[layer].is_some()
            {
                done(layer, gradients)?;
            }
        }
        Ok(())
    }

    /// Whether what arrives at a block's output has to pass a relu. An unpooling under the forward mask
    /// lets nothing through that a relu right below it would stop: its switches keep no such places.
    pub(super) fn has_relu_to_undo(&self, index: usize, options: &BackwardOptions<'_, B>) -> bool {
        let has_run_above = index < self.block_of[options.from];
        let unpooled = has_run_above && self.blocks[index + 1].step.pooling().is_some();
        let only_masked = options.rule.relu() == ReluRule { forward_mask: true, relu_down: false };
        self.blocks[index].relu && !(unpooled && only_masked)
    }

    /// Tells the operations of the coming passes their step.
    ///
    /// # Errors
    /// If a backend operation fails.
    pub fn set_state(&mut self, backend: &B, state: StepState) -> Result<()> {
        backend.set_state(&mut self.state, state)
    }

    /// The output of a layer after a forward pass. A convolutional or fully connected layer's output is
    /// taken after the relu that follows it, as its maps are always shown (a transposed one's before
    /// it); the last layer's is the logits. In training, where a backend pools a first
    /// convolution's output at once, there is none of that layer: it is the pool's.
    pub fn output(&self, layer: usize) -> &Tensor<B> {
        &self.outputs[self.block_of[layer]]
    }

    /// The switches of a pooling layer after a forward pass.
    pub fn switches(&self, layer: usize) -> Option<&B::Bytes> {
        self.switches[self.block_of[layer]].as_ref()
    }

    /// The same, to be written: a backward pass can be given another backend's switches.
    pub fn switches_mut(&mut self, layer: usize) -> Option<&mut B::Bytes> {
        self.switches[self.block_of[layer]].as_mut()
    }

    /// What the backward pass has left, and where the next one starts.
    pub fn signal(&mut self) -> &mut Tensor<B> {
        &mut self.signal[0]
    }

    /// The logits of a forward pass; the last layer's maps, where there are no classes.
    pub fn logits(&self) -> &Tensor<B> {
        self.outputs.last().expect("a network has layers")
    }

    /// Softmax and cross-entropy of a forward pass's logits: the samples' losses, and where the backward pass
    /// starts, the gradient of `scale` times their sum.
    ///
    /// A network without classes has no such loss: its caller writes the gradient of one into
    /// [`Workspace::signal`].
    ///
    /// # Errors
    /// If a backend operation fails.
    pub fn loss(
        &mut self,
        backend: &B,
        losses: &mut Tensor<B>,
        labels: &B::Indices,
        scale: f32,
    ) -> Result<()> {
        let logits = self.outputs.last().expect("a network has layers");
        let dlogits = &mut self.signal[0];
        dlogits.reshape(logits.shape());
        backend.softmax_cross_entropy(losses, dlogits, logits, labels, scale, &mut self.state)
    }
}
