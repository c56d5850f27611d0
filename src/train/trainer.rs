//! Single steps of training: batch, forward pass, loss, backward pass, update.

use std::collections::VecDeque;

use super::exchange::{Exchange, HostExchange, Slices};
use super::gradients::{PartGradients, tree_additions};
use crate::backend::{Backend, Batch, Crop, MapMoments, SgdConstants, StepState, Update};
use crate::data::loader;
use crate::data::order::Rank;
use crate::model::{
    BackwardOptions, BackwardTo, Model, Normaliser, Params, Purpose, Rule, StepSigns, Workspace,
};
use crate::ranks::Ranks;
use crate::shape::Shape;
use crate::{Error, Result};

/// How a batch is divided, and among whom.
#[derive(Clone)]
pub struct Division {
    /// Parts of a whole batch.
    pub parts: usize,
    /// Whether the parts' gradients are added along a binary tree, so that any ranks make the same sum; otherwise one
    /// after the other.
    pub tree: bool,
    /// Those that share the parts.
    pub ranks: Ranks,
}

impl Division {
    /// All parts for one rank.
    pub fn alone(parts: usize) -> Self {
        Division { parts, tree: parts.is_power_of_two(), ranks: Ranks::alone() }
    }

    /// Whether these ranks can share these parts: each takes as many neighbouring ones, which are whole branches of the
    /// tree.
    ///
    /// # Errors
    /// If not: what would do.
    pub fn check(&self) -> Result<()> {
        let (parts, ranks) = (self.parts, self.ranks.count());
        let reason = if ranks == 1 {
            return Ok(());
        } else if !ranks.is_power_of_two() {
            format!("expected a number of them that is a power of two, found {ranks}")
        } else if !self.tree && parts > 1 {
            format!(
                "a batch in {parts} parts whose gradients are added one after the other is for one rank, found {ranks}"
            )
        } else if !parts.is_multiple_of(ranks) {
            format!("expected at most as many as a batch has parts, {parts}, found {ranks}")
        } else {
            return Ok(());
        };
        Err(Error::CannotShare(reason))
    }

    /// How many ranks, the first ones, have a share in a batch of so many samples, in parts of `part` samples.
    fn senders(&self, samples: usize, part: usize) -> usize {
        samples.div_ceil(part).div_ceil(self.parts / self.ranks.count()).max(1)
    }

    /// The sum of what the parts give, in the order in which their gradients are added.
    fn sum(&self, parts: &mut [f64]) -> f64 {
        if !self.tree {
            return parts.iter().sum();
        }
        tree_additions(parts.len()).for_each(|(sum, other)| parts[sum] += parts[other]);
        parts[0]
    }

    /// What one of its ranks takes of each batch.
    pub fn share(&self, batch_size: usize) -> Rank {
        Rank::of_parts(self.ranks.rank(), self.ranks.count(), self.parts, batch_size)
    }
}

/// What ranks ask of each other with every step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Asks {
    /// To stop after it: a signal's number.
    pub stop: u8,
    /// To save a checkpoint after it.
    pub save: bool,
}

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
    /// What this rank asks of the others with the next step, and what any of them has asked with the last.
    pub(super) asks: Asks,
    pub(super) asked: Asks,
    /// The velocities of the weights, or of those that this rank owns.
    momentum: Params<B>,
    division: Division,
    /// What ranks exchange, unless this is the only one.
    exchange: Option<(Slices, Box<dyn Exchange<B>>)>,
    gradients: PartGradients<B>,
    workspace: Workspace<B>,
    normaliser: Normaliser<B>,
    slots: Vec<Slot<B>>,
    /// The slot that the next part of a batch takes.
    next: usize,
    /// Slots under way, the oldest first.
    under_way: VecDeque<usize>,
    /// Losses of the parts of the step whose end is waited for.
    part_losses: Vec<f64>,
    finished: VecDeque<Finished>,
    /// The rank and the slot of a part whose loss was not finite.
    failed: Option<(usize, usize)>,
    /// Samples of the batch in hand, over all ranks.
    samples: usize,
    host_losses: Vec<f32>,
    /// The moments of a watched step.
    host_moments: Vec<MapMoments>,
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
    /// Samples of the batch up to its end.
    samples: usize,
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
    /// Which of this rank's parts of the batch it is.
    index: usize,
    /// Factor of every sample's gradient.
    scale: f32,
    /// Whether it is the last, so that the weights are moved.
    update: bool,
}

impl Part {
    /// A batch in one part.
    fn whole(samples: usize) -> Self {
        Part { index: 0, scale: 1.0 / samples as f32, update: true }
    }
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
        Self::divided(backend, model, momentum, Division::alone(accumulate.max(1)))
    }

    /// Plans steps of `recipe.batch_size` images that are divided. Every rank gives the whole momentum, and keeps what it
    /// owns.
    ///
    /// # Errors
    /// If the ranks cannot share the parts, or the backend is out of memory.
    pub fn divided(
        backend: &'a B,
        model: Model<B>,
        momentum: Params<B>,
        division: Division,
    ) -> Result<Self> {
        division.check()?;
        let network = &model.network;
        network.must_classify()?;
        let Division { parts, tree, ranks } = &division;
        let micro_batch = network.architecture.recipe.batch_size.div_ceil(*parts);
        let waiting = if *tree { parts / ranks.count() } else { 1 };
        let (mut momentum, mut exchange) = (momentum, None);
        if ranks.count() > 1 {
            let slices = Slices::new(network, ranks.rank(), ranks.count());
            momentum = slices.of(backend, &momentum)?;
            let by_host = HostExchange::new(backend, network, ranks.clone())?;
            exchange = Some((slices, Box::new(by_host) as Box<dyn Exchange<B>>));
        }
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
                samples: 0,
                scale: 1.0,
                is_watched: false,
            })
        };
        Ok(Trainer {
            gradients: PartGradients::new(backend, network, waiting)?,
            workspace: Workspace::new(backend, network, Purpose::Train, micro_batch)?,
            normaliser: Normaliser::new(backend, &model.preprocess)?,
            slots: (0..backend.batches_in_flight()).map(slot).collect::<Result<_>>()?,
            next: 0,
            under_way: VecDeque::new(),
            part_losses: Vec::with_capacity(division.parts),
            finished: VecDeque::new(),
            failed: None,
            samples: 0,
            asks: Asks::default(),
            asked: Asks::default(),
            division,
            exchange,
            host_losses: vec![0.0; micro_batch],
            host_moments: Vec::new(),
            host_crops: Vec::with_capacity(micro_batch),
            records: true,
            watches: false,
            backend,
            model,
            momentum,
            micro_batch,
        })
    }

    /// Exchanges values with other ranks in this way from now on, instead of by the host's memory. All ranks do so before
    /// the first step.
    pub fn exchange_by(&mut self, exchange: Box<dyn Exchange<B>>) {
        if let Some((_, by)) = &mut self.exchange {
            *by = exchange;
        }
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
        state: StepState,
    ) -> Result<()> {
        self.enqueue_share(pixels, crops, labels, labels.len(), state)
    }

    /// As [`Trainer::enqueue`], of this rank's share of a batch of `samples` samples, which begins at
    /// `state.first_sample` of them. Every rank does its share of every batch, also if it is nothing, and waits for the
    /// others.
    ///
    /// # Errors
    /// As [`Trainer::enqueue`], also for another rank's loss; or if a rank is lost or has failed.
    pub fn enqueue_share(
        &mut self,
        pixels: &[u8],
        crops: &[Crop],
        labels: &[u32],
        samples: usize,
        mut state: StepState,
    ) -> Result<()> {
        self.samples = samples;
        let (scale, first) = (1.0 / samples as f32, state.first_sample);
        let micro = self.micro_batch;
        let count = labels.len().div_ceil(micro);
        if count == 0 {
            return if self.exchange.is_some() { self.join(state) } else { Ok(()) };
        }
        let bytes = pixels.len() / labels.len();
        let parts = pixels.chunks(micro * bytes).zip(crops.chunks(micro)).zip(labels.chunks(micro));
        for (index, ((pixels, crops), labels)) in parts.enumerate() {
            // Crops count the squares of the share, of which a part is uploaded.
            let begins = (index * micro) as u32;
            state.first_sample = first + begins;
            self.host_crops.clear();
            let of_part = |crop: &Crop| Crop { image: crop.image - begins, ..*crop };
            self.host_crops.extend(crops.iter().map(of_part));
            let batch = &mut self.slots[self.next].batch;
            batch.losses.reshape(Shape::vector(labels.len()));
            self.backend.upload_batch(batch, pixels, &self.host_crops, labels)?;
            self.begin(state, Part { index, scale, update: index + 1 == count })?;
            if index + 1 < count && self.failed.is_some() {
                return self.join(state); // the others are waiting to hear of it
            }
        }
        Ok(())
    }

    /// As [`Trainer::enqueue_share`], of a share that a loader has read. Its pixels are gone afterwards; it
    /// is to be recycled.
    ///
    /// # Errors
    /// As [`Trainer::enqueue_share`].
    pub fn enqueue_batch(
        &mut self,
        read: &mut loader::Batch,
        crops: &[Crop],
        samples: usize,
        state: StepState,
    ) -> Result<()> {
        if read.labels.len() > self.micro_batch || read.labels.is_empty() {
            return self.enqueue_share(read.pixels(), crops, &read.labels, samples, state);
        }
        self.samples = samples;
        let batch = &mut self.slots[self.next].batch;
        batch.losses.reshape(Shape::vector(read.labels.len()));
        let pixels = &mut *read.memory;
        self.backend.upload_batch_from(batch, pixels, read.bytes, crops, &read.labels)?;
        self.begin(state, Part::whole(samples))
    }

    /// Begins one more update from the batch that was enqueued longest ago, without copying it in
    /// again. For measuring: every buffer must have held a whole batch.
    ///
    /// # Errors
    /// As [`Trainer::enqueue`].
    pub fn again(&mut self, state: StepState) -> Result<()> {
        self.samples = self.slots[self.next].batch.losses.shape().len();
        self.begin(state, Part::whole(self.samples))
    }

    /// Begins the work on what is in the next slot, and ends older work until a slot is free.
    fn begin(&mut self, state: StepState, part: Part) -> Result<()> {
        let index = self.next;
        // A workspace holds the moments of one step: those of the last have to be read before they are written over.
        let watches = part.update && self.watches && self.reporter() == self.division.ranks.rank();
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
        // Several ranks end every part before the next: its losses are what they tell each other.
        let most = if self.exchange.is_some() { 0 } else { self.slots.len() - 1 };
        while self.under_way.len() > most {
            self.end_oldest()?;
        }
        Ok(())
    }

    /// Takes part in a step without a share in it, or without the rest of a share.
    fn join(&mut self, state: StepState) -> Result<()> {
        let Trainer { backend, gradients, exchange, .. } = self;
        self.workspace.set_state(backend, state)?;
        self.workspace.is_watched = false;
        let senders = self.division.senders(self.samples, self.micro_batch);
        if let Some((_, exchange)) = exchange {
            for (layer, gradient) in gradients.sum.layers.iter_mut().enumerate().rev() {
                if gradient.is_some() {
                    exchange.begin(backend, layer, gradient, senders)?;
                }
            }
        }
        self.update()?;
        self.end_step(state, None)
    }

    /// The rank with the last part of the batch in hand, of which a watched step tells.
    fn reporter(&self) -> usize {
        self.division.senders(self.samples, self.micro_batch) - 1
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
        let loss = losses.iter().map(|loss| f64::from(*loss)).sum::<f64>();
        let (state, ends_step) = (slot.state, slot.ends_step);
        slot.samples = state.first_sample as usize + n;
        self.part_losses.push(loss);
        if !loss.is_finite() {
            self.failed = Some((self.division.ranks.rank(), index));
            if self.exchange.is_none() {
                return Err(diverged(loss, state));
            }
        }
        if ends_step { self.end_step(state, Some(index)) } else { Ok(()) }
    }

    /// Ends a step whose last part of this rank, if it has one, was in a slot; with all other ranks.
    fn end_step(&mut self, state: StepState, slot: Option<usize>) -> Result<()> {
        let mut losses = std::mem::take(&mut self.part_losses);
        // Alone, a rank may have begun the next step already; several end each before that.
        let (samples, is_watched) = match slot.map(|index| &self.slots[index]) {
            Some(slot) if self.exchange.is_none() => (slot.samples, slot.is_watched),
            _ => (self.samples, self.watches),
        };
        if self.exchange.is_some() {
            (self.asked, losses) = self.agree(&losses)?;
        }
        let bad = losses.iter().copied().find(|loss| !loss.is_finite());
        let loss_sum = self.division.sum(&mut losses);
        self.part_losses = losses;
        self.part_losses.clear();
        if let Some(loss) = bad {
            return Err(diverged(loss, state));
        }
        let signs = if is_watched { self.signs(self.reporter(), slot)? } else { None };
        let state = StepState { first_sample: 0, ..state };
        self.finished.push_back(Finished { state, loss_sum, samples, signs });
        Ok(())
    }

    /// What any rank asks, and the losses of all parts of the batch, in their order.
    fn agree(&mut self, losses: &[f64]) -> Result<(Asks, Vec<f64>)> {
        let Asks { stop, save } = self.asks;
        let own = [&[stop, u8::from(save)], bytemuck::cast_slice::<f64, u8>(losses)].concat();
        let (mut asked, mut all) = (Asks::default(), Vec::with_capacity(self.division.parts));
        let mut failed = None;
        for (rank, bytes) in self.division.ranks.all_gather(own)?.iter().enumerate() {
            let [stop, save, losses @ ..] = &bytes[..] else {
                return Err(Error::Ranks(format!("rank {rank} tells nothing of a step")));
            };
            asked = Asks { stop: asked.stop.max(*stop), save: asked.save || *save != 0 };
            let losses = losses.chunks_exact(size_of::<f64>());
            let losses: Vec<f64> = losses.map(bytemuck::pod_read_unaligned).collect();
            if failed.is_none() && losses.iter().any(|loss| !loss.is_finite()) {
                failed = Some((rank, 0)); // in a slot of that rank
            }
            all.extend(losses);
        }
        // Of several ranks the first is asked for what it shows; it knows the slot.
        if self.failed.map(|(rank, _)| rank) != failed.map(|(rank, _)| rank) {
            self.failed = failed;
        }
        Ok((asked, all))
    }

    /// Makes ready to watch steps.
    ///
    /// # Errors
    /// If the backend is out of memory.
    pub fn prepare_watch(&mut self) -> Result<()> {
        self.workspace.prepare_watch(self.backend, &self.model.network)?;
        let watch = self.workspace.watch.as_mut().expect("just made");
        self.host_moments = watch.received(self.backend)?.to_vec(); // of nothing yet
        Ok(())
    }

    /// At rank 0, what the watched part in a slot of some rank tells, once it has been waited for.
    fn signs(&mut self, at: usize, slot: Option<usize>) -> Result<Option<StepSigns>> {
        let ranks = self.division.ranks.clone();
        let watch = self.workspace.watch.as_mut().expect("a watched step was prepared for");
        let mut told = None;
        if ranks.rank() == at {
            let slot = &self.slots[slot.expect("who tells has a part")];
            let (samples, rate) = (slot.batch.losses.shape().len(), slot.state.learning_rate);
            self.host_moments.copy_from_slice(watch.received(self.backend)?);
            told = Some([samples as f64, f64::from(slot.scale), f64::from(rate)]);
        }
        if at != 0 {
            told = send_to_first(&ranks, at, told, &mut self.host_moments)?;
        }
        let of_network = |[samples, scale, rate]: [f64; 3]| {
            let moments = &self.host_moments;
            watch.signs(&self.model.network, moments, samples as usize, scale, rate)
        };
        Ok(told.filter(|_| ranks.is_first()).map(of_network))
    }

    /// What the step tells whose loss was not finite, with the weights that it had. `None` if there was none, or
    /// nothing was made ready to watch.
    ///
    /// # Errors
    /// If a backend operation fails.
    pub fn examine_failed(&mut self) -> Result<Option<StepSigns>> {
        let Some((rank, index)) = self.failed else { return Ok(None) };
        if self.workspace.watch.is_none() {
            return Ok(None);
        }
        self.backend.synchronize()?;
        if rank == self.division.ranks.rank() {
            let Slot { state, scale, .. } = self.slots[index];
            self.workspace.is_watched = true;
            self.workspace.set_state(self.backend, state)?;
            self.operations(index, Part { index: 0, scale, update: false })?;
        }
        self.send_signs(rank)?;
        self.backend.synchronize()?;
        self.signs(rank, Some(index))
    }

    /// Sends what a watched step tells of one rank on its way to the host.
    fn send_signs(&mut self, at: usize) -> Result<()> {
        let Trainer { backend, model, momentum, gradients, exchange, .. } = self;
        let watch = self.workspace.watch.as_mut().expect("a watched step was prepared for");
        let Some((slices, exchange)) = exchange else {
            return watch.update(*backend, &model.params, momentum);
        };
        // Nobody needs the gradients any more.
        exchange.collect(backend, momentum, &mut gradients.sum, at)?;
        match slices.rank() == at {
            true => watch.update(*backend, &model.params, &gradients.sum),
            false => Ok(()),
        }
    }

    /// Brings the velocities of all weights to rank 0. All ranks take part, between steps.
    ///
    /// # Errors
    /// If a rank is lost or has failed, or a backend operation fails.
    pub(super) fn collect_momentum(&mut self) -> Result<()> {
        let Some((_, exchange)) = &mut self.exchange else { return Ok(()) };
        exchange.collect(self.backend, &self.momentum, &mut self.gradients.sum, 0)
    }

    /// The velocities of all weights, at rank 0 once they have been collected, until the next step.
    pub(super) fn momentum(&self) -> &Params<B> {
        if self.exchange.is_some() { &self.gradients.sum } else { &self.momentum }
    }

    /// What this rank takes of each batch.
    pub(super) fn share(&self) -> Rank {
        self.division.share(self.model.network.architecture.recipe.batch_size)
    }

    /// Runs a part, or replays it where the same was recorded.
    fn run(&mut self, index: usize, part: Part) -> Result<()> {
        let whole = part.update
            && part.index == 0
            && self.exchange.is_none()
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
        let Division { tree, .. } = self.division;
        let senders = self.division.senders(self.samples, self.micro_batch);
        let (gradients, mut sums) = self.gradients.split();
        let options = BackwardOptions {
            from: network.layers.len() - 1,
            rule: Rule::GRADIENT,
            images: None,
            gradients: Some(gradients),
            accumulate: !tree && part.index > 0,
            to: BackwardTo::FirstWeights,
        };
        let exchange = &mut self.exchange;
        self.workspace.backward_telling(backend, params, options, |layer, gradients| {
            let gradient = &mut gradients.layers[layer];
            if tree {
                sums.add(backend, layer, gradient, part.index, part.update)?;
            }
            match exchange {
                Some((_, exchange)) if part.update => {
                    exchange.begin(backend, layer, gradient, senders)
                }
                _ => Ok(()),
            }
        })?;
        if part.update { self.update() } else { Ok(()) }
    }

    /// Moves the weights, and shows what a watched step tells of them.
    fn update(&mut self) -> Result<()> {
        self.move_weights()?;
        let is_watched =
            if self.exchange.is_some() { self.watches } else { self.workspace.is_watched };
        if is_watched { self.send_signs(self.reporter()) } else { Ok(()) }
    }

    fn move_weights(&mut self) -> Result<()> {
        let backend = self.backend;
        let recipe = &self.model.network.architecture.recipe;
        let decaying =
            SgdConstants { momentum: recipe.momentum, weight_decay: recipe.weight_decay };
        let free = SgdConstants { weight_decay: 0.0, ..decaying };
        let of_bias = if recipe.bias_decay { &decaying } else { &free };
        let state = &mut self.workspace.state;
        let (slices, gradients) = match &mut self.exchange {
            None => (None, &self.gradients.sum),
            Some((slices, exchange)) => {
                exchange.halt(backend, state)?;
                (Some(&*slices), exchange.sums(backend, &mut self.gradients.sum)?)
            }
        };
        let layers = self.model.params.layers.iter_mut().zip(&mut self.momentum.layers);
        let layers = layers.zip(&gradients.layers).zip(&self.model.network.layers);
        let mut updates = Vec::new();
        for (index, (((w, v), g), layer)) in layers.enumerate() {
            let (Some(w), Some(v), Some(g)) = (w, v, g) else { continue };
            let limit = layer.rms_limit();
            let [weights, biases] =
                slices.map_or([0, 0], |s| s.values(index, s.rank()).map(|range| range.start));
            updates.push(Update {
                w: &mut w.weight,
                first: weights,
                v: &mut v.weight,
                g: &g.weight,
                constants: decaying,
                rms_limit: (limit > 0.0).then_some(limit),
            });
            updates.push(Update {
                w: &mut w.bias,
                first: biases,
                v: &mut v.bias,
                g: &g.bias,
                constants: *of_bias,
                rms_limit: None,
            });
        }
        backend.update(&mut updates, state)?;
        match &mut self.exchange {
            None => Ok(()),
            Some((_, exchange)) => exchange.gather(backend, &mut self.model.params),
        }
    }
}

fn diverged(loss: f64, state: StepState) -> Error {
    Error::Diverged {
        what: format!("the loss is {loss}"),
        step: state.step + 1,
        learning_rate: state.learning_rate,
    }
}

/// Brings what another rank tells of a watched part to rank 0: its samples, the factor of each one's gradient and the
/// learning rate; and its moments.
fn send_to_first(
    ranks: &Ranks,
    from: usize,
    told: Option<[f64; 3]>,
    moments: &mut [MapMoments],
) -> Result<Option<[f64; 3]>> {
    let bytes = told.map_or(Vec::new(), |numbers| {
        [bytemuck::bytes_of(&numbers), bytemuck::cast_slice::<_, u8>(moments)].concat()
    });
    let all = ranks.all_gather(bytes)?;
    let (numbers, of_rank) = all[from].split_at(size_of::<[f64; 3]>());
    bytemuck::cast_slice_mut::<_, u8>(moments).copy_from_slice(of_rank);
    Ok(Some(bytemuck::pod_read_unaligned(numbers)))
}
