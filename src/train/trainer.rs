//! Single steps of training: batch, forward pass, loss, backward pass, update.

use std::collections::VecDeque;

use crate::backend::{Backend, Batch, Crop, SgdConstants, StepState, Update};
use crate::data::loader;
use crate::model::{
    BackwardOptions, BackwardTo, Model, Normaliser, Params, Purpose, Rule, StepSigns, Workspace,
};
use crate::shape::Shape;
use crate::{Error, Result};

/// A training that stands ready: weights, momentum, and what a step needs.
///
/// Where the backend runs beside the host ([`Backend::batches_in_flight`]), so many batches are
/// under way at a time: while one is worked on, the next is copied in and another made ready. A
/// step of one part that has all its samples is recorded the second time that its buffers hold one,
/// and from then on replayed.
pub struct Trainer<'a, B: Backend> {
    backend: &'a B,
    /// The network and its weights.
    pub model: Model<B>,
    /// Whether steps are recorded, where the backend can.
    pub records: bool,
    /// Whether the coming steps are watched: [`Trainer::prepare_watch`] comes first.
    pub watches: bool,
    /// The velocities of the weights.
    pub(super) momentum: Params<B>,
    gradients: Params<B>,
    workspace: Workspace<B>,
    normaliser: Normaliser<B>,
    slots: Vec<Slot<B>>,
    /// The slot that the next part of a batch takes.
    next: usize,
    /// Slots under way, the oldest first.
    under_way: VecDeque<usize>,
    /// Losses of the parts of the step whose end is waited for.
    loss_sum: f64,
    finished: VecDeque<Finished>,
    /// The slot of a step whose loss was not finite.
    failed: Option<usize>,
    host_losses: Vec<f32>,
    host_crops: Vec<Crop>,
    micro_batch: usize,
}

/// A batch's buffers, and what is known of the part of a batch that is in them.
struct Slot<B: Backend> {
    batch: Batch<B>,
    recording: Option<B::Recording>,
    whole_batches: usize,
    state: StepState,
    ends_step: bool,
    /// Factor of every sample's gradient.
    scale: f32,
    is_watched: bool,
}

/// A step whose losses are known.
#[derive(Clone, Debug, PartialEq)]
pub struct Finished {
    /// What was told of the step.
    pub state: StepState,
    /// Sum of its samples' losses.
    pub loss_sum: f64,
    /// Number of samples.
    pub samples: usize,
    /// What it tells, if it was watched; of a batch in parts, what the last part tells.
    pub signs: Option<StepSigns>,
}

/// What is done with a part of a batch beside adding up its gradients.
#[derive(Clone, Copy)]
struct Part {
    /// Factor of every sample's gradient.
    scale: f32,
    /// Whether its gradients are added to those of the parts before.
    accumulate: bool,
    /// Whether it is the last, so that the weights are moved.
    update: bool,
}

impl<'a, B: Backend> Trainer<'a, B> {
    /// Plans steps of `recipe.batch_size` images in `accumulate` parts.
    ///
    /// # Errors
    /// If the backend is out of memory.
    pub fn new(
        backend: &'a B,
        model: Model<B>,
        momentum: Params<B>,
        accumulate: usize,
    ) -> Result<Self> {
        let network = &model.network;
        network.must_classify()?;
        let micro_batch = network.architecture.recipe.batch_size.div_ceil(accumulate.max(1));
        let bytes = micro_batch * model.preprocess.bytes();
        let slot = |_| {
            let batch = Batch::new(backend, bytes, micro_batch)?;
            let state = StepState::default();
            Ok(Slot {
                batch,
                recording: None,
                whole_batches: 0,
                state,
                ends_step: false,
                scale: 1.0,
                is_watched: false,
            })
        };
        Ok(Trainer {
            gradients: Params::zeros(backend, network)?,
            workspace: Workspace::new(backend, network, Purpose::Train, micro_batch)?,
            normaliser: Normaliser::new(backend, &model.preprocess)?,
            slots: (0..backend.batches_in_flight()).map(slot).collect::<Result<_>>()?,
            next: 0,
            under_way: VecDeque::new(),
            loss_sum: 0.0,
            finished: VecDeque::new(),
            failed: None,
            host_losses: vec![0.0; micro_batch],
            host_crops: Vec::with_capacity(micro_batch),
            records: true,
            watches: false,
            backend,
            model,
            momentum,
            micro_batch,
        })
    }

    /// One update of the weights from a batch; waits for it and returns the sum of its samples'
    /// losses. See [`Trainer::enqueue`].
    ///
    /// # Errors
    /// As [`Trainer::enqueue`] and [`Trainer::wait`].
    pub fn step(
        &mut self,
        pixels: &[u8],
        crops: &[Crop],
        labels: &[u32],
        state: StepState,
    ) -> Result<f64> {
        self.enqueue(pixels, crops, labels, state)?;
        self.wait()?;
        let mut last = None;
        while let Some(finished) = self.finished() {
            last = Some(finished.loss_sum);
        }
        Ok(last.expect("this step is over"))
    }

    /// Begins one update of the weights from a batch, and returns when the batch is on its way.
    /// `crops` has one crop for each square of `pixels`, in the same order.
    ///
    /// # Errors
    /// If the loss of this step or of one under way is not finite (the weights are then as before
    /// that step), or a backend operation fails.
    pub fn enqueue(
        &mut self,
        pixels: &[u8],
        crops: &[Crop],
        labels: &[u32],
        mut state: StepState,
    ) -> Result<()> {
        let scale = 1.0 / labels.len() as f32;
        let bytes = pixels.len() / labels.len();
        let micro = self.micro_batch;
        let count = labels.len().div_ceil(micro);
        let parts = pixels.chunks(micro * bytes).zip(crops.chunks(micro)).zip(labels.chunks(micro));
        for (index, ((pixels, crops), labels)) in parts.enumerate() {
            state.first_sample = (index * micro) as u32;
            // Crops count the squares of the whole batch, of which a part is uploaded.
            self.host_crops.clear();
            let of_part = |crop: &Crop| Crop { image: crop.image - state.first_sample, ..*crop };
            self.host_crops.extend(crops.iter().map(of_part));
            let batch = &mut self.slots[self.next].batch;
            batch.losses.reshape(Shape::vector(labels.len()));
            self.backend.upload_batch(batch, pixels, &self.host_crops, labels)?;
            self.begin(state, Part { scale, accumulate: index > 0, update: index + 1 == count })?;
        }
        Ok(())
    }

    /// As [`Trainer::enqueue`], of a batch that a loader has read. Its pixels are gone afterwards; it
    /// is to be recycled.
    ///
    /// # Errors
    /// As [`Trainer::enqueue`].
    pub fn enqueue_batch(
        &mut self,
        read: &mut loader::Batch,
        crops: &[Crop],
        state: StepState,
    ) -> Result<()> {
        let samples = read.labels.len();
        if samples > self.micro_batch {
            return self.enqueue(read.pixels(), crops, &read.labels, state);
        }
        let batch = &mut self.slots[self.next].batch;
        batch.losses.reshape(Shape::vector(samples));
        let pixels = &mut *read.memory;
        self.backend.upload_batch_from(batch, pixels, read.bytes, crops, &read.labels)?;
        let scale = 1.0 / samples as f32;
        self.begin(state, Part { scale, accumulate: false, update: true })
    }

    /// Begins one more update from the batch that was enqueued longest ago, without copying it in
    /// again. For measuring: every buffer must have held a whole batch.
    ///
    /// # Errors
    /// As [`Trainer::enqueue`].
    pub fn again(&mut self, state: StepState) -> Result<()> {
        let scale = 1.0 / self.slots[self.next].batch.losses.shape().len() as f32;
        self.begin(state, Part { scale, accumulate: false, update: true })
    }

    /// Begins the work on what is in the next slot, and ends older work until a slot is free.
    fn begin(&mut self, state: StepState, part: Part) -> Result<()> {
        let index = self.next;
        // A workspace holds the moments of one step: those of the last have to be read before they are written over.
        let watches = part.update && self.watches;
        while watches && self.under_way.iter().any(|other| self.slots[*other].is_watched) {
            self.end_oldest()?;
        }
        let slot = &mut self.slots[index];
        (slot.state, slot.ends_step) = (state, part.update);
        (slot.scale, slot.is_watched) = (part.scale, watches);
        self.workspace.is_watched = slot.is_watched;
        self.workspace.set_state(self.backend, state)?;
        self.run(index, part)?;
        self.backend.end_batch(&mut self.slots[index].batch)?;
        self.under_way.push_back(index);
        self.next = (index + 1) % self.slots.len();
        while self.under_way.len() >= self.slots.len() {
            self.end_oldest()?;
        }
        Ok(())
    }

    /// Waits for all steps under way.
    ///
    /// # Errors
    /// As [`Trainer::enqueue`].
    pub fn wait(&mut self) -> Result<()> {
        while !self.under_way.is_empty() {
            self.end_oldest()?;
        }
        Ok(())
    }

    /// The next step, in order, whose losses are known.
    pub fn finished(&mut self) -> Option<Finished> {
        self.finished.pop_front()
    }

    /// Waits for the oldest part under way.
    fn end_oldest(&mut self) -> Result<()> {
        let Some(index) = self.under_way.pop_front() else { return Ok(()) };
        let slot = &mut self.slots[index];
        let n = slot.batch.losses.shape().len();
        let losses = &mut self.host_losses[..n];
        self.backend.losses(losses, &mut slot.batch)?;
        self.loss_sum += losses.iter().map(|loss| f64::from(*loss)).sum::<f64>();
        let (state, loss_sum) = (slot.state, self.loss_sum);
        if !loss_sum.is_finite() {
            self.failed = Some(index);
            return Err(Error::Diverged {
                what: format!("the loss is {loss_sum}"),
                step: state.step + 1,
                learning_rate: state.learning_rate,
            });
        }
        if slot.ends_step {
            let samples = state.first_sample as usize + n;
            let state = StepState { first_sample: 0, ..state };
            let signs = if self.slots[index].is_watched { Some(self.signs(index)?) } else { None };
            self.finished.push_back(Finished { state, loss_sum, samples, signs });
            self.loss_sum = 0.0;
        }
        Ok(())
    }

    /// Makes ready to watch steps.
    ///
    /// # Errors
    /// If the backend is out of memory.
    pub fn prepare_watch(&mut self) -> Result<()> {
        self.workspace.prepare_watch(self.backend, &self.model.network)
    }

    /// What the watched part in a slot tells, once it has been waited for.
    fn signs(&mut self, index: usize) -> Result<StepSigns> {
        let Slot { batch, scale, state, .. } = &self.slots[index];
        let (samples, rate) = (batch.losses.shape().len(), f64::from(state.learning_rate));
        let watch = self.workspace.watch.as_mut().expect("a watched step was prepared for");
        watch.signs(self.backend, &self.model.network, samples, f64::from(*scale), rate)
    }

    /// What the step tells whose loss was not finite, with the weights that it had. `None` if there was none, or
    /// nothing was made ready to watch.
    ///
    /// # Errors
    /// If a backend operation fails.
    pub fn examine_failed(&mut self) -> Result<Option<StepSigns>> {
        let Some(index) = self.failed else { return Ok(None) };
        if self.workspace.watch.is_none() {
            return Ok(None);
        }
        self.backend.synchronize()?;
        let Slot { state, scale, .. } = self.slots[index];
        self.workspace.is_watched = true;
        self.workspace.set_state(self.backend, state)?;
        self.operations(index, Part { scale, accumulate: false, update: false })?;
        self.send_signs()?;
        self.backend.synchronize()?;
        self.signs(index).map(Some)
    }

    fn send_signs(&mut self) -> Result<()> {
        let watch = self.workspace.watch.as_mut().expect("a watched step was prepared for");
        watch.update(self.backend, &self.model.params, &self.momentum)
    }

    /// Runs a part, or replays it where the same was recorded.
    fn run(&mut self, index: usize, part: Part) -> Result<()> {
        let whole = part.update
            && !part.accumulate
            && self.slots[index].batch.losses.shape().len() == self.micro_batch;
        self.slots[index].whole_batches += usize::from(whole);
        let is_recorded = self.records && !self.slots[index].is_watched;
        if !whole || !is_recorded || self.slots[index].whole_batches == 1 {
            return self.operations(index, part);
        }
        let backend = self.backend;
        if self.slots[index].recording.is_none() {
            let recording = backend.record(&mut || self.operations(index, part))?;
            self.slots[index].recording = recording;
        }
        match &self.slots[index].recording {
            Some(recording) => backend.replay(recording),
            None => self.operations(index, part),
        }
    }

    /// What a part of a batch does: input, forward pass, loss, backward pass and, at the end, the update.
    fn operations(&mut self, index: usize, part: Part) -> Result<()> {
        let backend = self.backend;
        let Model { network, params, .. } = &self.model;
        let Batch { pixels, crops, labels, losses, .. } = &mut self.slots[index].batch;
        let input = &mut self.workspace.input;
        input.reshape(input.shape().with_n(losses.shape().len()));
        self.normaliser.fill(backend, input, pixels, crops)?;
        self.workspace.forward(backend, params)?;
        self.workspace.loss(backend, losses, labels, part.scale)?;
        let options = BackwardOptions {
            from: network.layers.len() - 1,
            rule: Rule::GRADIENT,
            images: None,
            gradients: Some(&mut self.gradients),
            accumulate: part.accumulate,
            to: BackwardTo::FirstWeights,
        };
        self.workspace.backward(backend, params, options)?;
        if part.update {
            self.update()?;
            if self.workspace.is_watched {
                self.send_signs()?;
            }
        }
        Ok(())
    }

    /// Moves the weights. Several ranks would exchange their gradients first, here.
    fn update(&mut self) -> Result<()> {
        let backend = self.backend;
        let recipe = &self.model.network.architecture.recipe;
        let decaying =
            SgdConstants { momentum: recipe.momentum, weight_decay: recipe.weight_decay };
        let free = SgdConstants { weight_decay: 0.0, ..decaying };
        let of_bias = if recipe.bias_decay { &decaying } else { &free };
        let state = &self.workspace.state;
        let layers = self.model.params.layers.iter_mut().zip(&mut self.momentum.layers);
        let layers = layers.zip(&self.gradients.layers).zip(&self.model.network.layers);
        let mut updates = Vec::new();
        for (((w, v), g), layer) in layers {
            let (Some(w), Some(v), Some(g)) = (w, v, g) else { continue };
            let limit = layer.rms_limit();
            updates.push(Update {
                w: &mut w.weight,
                v: &mut v.weight,
                g: &g.weight,
                constants: decaying,
                rms_limit: (limit > 0.0).then_some(limit),
            });
            updates.push(Update {
                w: &mut w.bias,
                v: &mut v.bias,
                g: &g.bias,
                constants: *of_bias,
                rms_limit: None,
            });
        }
        backend.update(&mut updates, state)
    }
}
