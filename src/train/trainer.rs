//! The loop: batch, walk up, loss, walk down, update; validation, schedule and checkpoints around.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::checkpoint::{self, Resumed, State};
use super::dry_run::explain;
use super::evaluate::{Classifier, Evaluation, Member, TestCrops, evaluate};
use super::log::{Metric, MetricsLog, quarantine};
use crate::backend::{Backend, Batch, Crop, Param, SgdConstants, StepState};
use crate::data::images::Images;
use crate::data::loader::{self, Bad, Loader, Plan};
use crate::data::order::{epoch_order, training_crop};
use crate::disk::lock;
use crate::model::{
    Architecture, Bare, Descent, Model, Network, Normaliser, Params, Preprocess, Purpose, Rule,
    Workspace,
};
use crate::shape::Shape;
use crate::{Error, Result};
use zfnet_core::Recipe;

/// What to train, on what, and where to.
pub struct Job<'a> {
    /// The network and its recipe, flags included; its number of classes is the data's.
    pub architecture: Architecture,
    /// Training images, squares of `architecture.input.resize`.
    pub train: Arc<Images>,
    /// Validation images, of the same size.
    pub val: Arc<Images>,
    /// Name of each class.
    pub classes: Vec<String>,
    /// The run's folder.
    pub out: PathBuf,
    /// Seed of initialisation, order, crops and dropout.
    pub seed: u64,
    /// Shuffle only so many neighbouring images of shards at a time: see [`epoch_order`].
    pub shuffle_window: Option<usize>,
    /// Micro-batches of an update, whose gradients are summed in order.
    pub accumulate: usize,
    /// Stop after so many updates in all.
    pub max_steps: Option<u32>,
    /// Go on from the run's last checkpoint, if it has one.
    pub resume: bool,
    /// Start with the weights of this checkpoint instead of random ones.
    pub init: Option<(PathBuf, Bare)>,
    /// Save a checkpoint after so many steps, besides at the end of each epoch.
    pub save_steps: Option<u32>,
    /// Save a checkpoint when the last one is so old.
    pub save_interval: Duration,
    /// Checkpoints that are kept, besides the best.
    pub keep: usize,
    /// Threads that decode.
    pub workers: usize,
    /// Becomes non-zero when the run is to save and stop.
    pub stop: &'a AtomicUsize,
}

/// What happens while a network is trained, for whoever shows it.
pub enum Event<'a> {
    /// The mean image is being worked out: images done, of how many.
    Mean(usize, usize),
    /// All is ready; training starts or goes on at this state.
    Start {
        /// The network.
        network: &'a Network,
        /// Where it stands.
        state: &'a State,
        /// Updates of an epoch.
        steps_per_epoch: usize,
        /// A note for the user, say on what a checkpoint did not fit.
        notes: &'a [String],
    },
    /// An update is done.
    Step {
        /// Where training stands.
        state: &'a State,
        /// Mean loss of the batch.
        loss: f64,
        /// Samples of the batch.
        samples: usize,
        /// Time since the epoch (or the run) began.
        elapsed: Duration,
        /// Share of it spent waiting for data.
        waiting: Duration,
    },
    /// Validation images done, of how many.
    Validation(usize, usize),
    /// An epoch is over and its checkpoint written.
    Epoch {
        /// Where training stands.
        state: &'a State,
        /// Mean training loss.
        train_loss: f64,
        /// On the validation set, centre crop.
        validation: &'a Evaluation,
        /// Its learning rate.
        rate: f32,
        /// The next epoch's.
        next_rate: f32,
        /// Training time of the epoch in this session.
        elapsed: Duration,
        /// Share of it spent waiting for data.
        waiting: Duration,
    },
}

/// How training ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All epochs, or as many steps as were asked for.
    Done,
    /// `stop` was set; what had been trained has been saved.
    Stopped,
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
    momentum: Params<B>,
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
}

/// A step whose losses are known.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Finished {
    /// What was told of the step.
    pub state: StepState,
    /// Sum of its samples' losses.
    pub loss_sum: f64,
    /// Number of samples.
    pub samples: usize,
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
    /// If the backend has no room.
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
            Ok(Slot { batch, recording: None, whole_batches: 0, state, ends_step: false })
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
            host_losses: vec![0.0; micro_batch],
            host_crops: Vec::with_capacity(micro_batch),
            records: true,
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
    /// that step), or the backend refuses.
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
        let slot = &mut self.slots[index];
        (slot.state, slot.ends_step) = (state, part.update);
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
            return Err(Error::Training(format!(
                "the loss is {loss_sum} at step {}: the weights have run away. Try a lower \
                 --learning-rate (now {}) with another --out, there perhaps with --init from \
                 a checkpoint of this run",
                state.step + 1,
                state.rate
            )));
        }
        if slot.ends_step {
            let samples = state.first_sample as usize + n;
            let state = StepState { first_sample: 0, ..state };
            self.finished.push_back(Finished { state, loss_sum, samples });
            self.loss_sum = 0.0;
        }
        Ok(())
    }

    /// Runs a part, or replays it where the same was recorded.
    fn run(&mut self, index: usize, part: Part) -> Result<()> {
        let whole = part.update
            && !part.accumulate
            && self.slots[index].batch.losses.shape().len() == self.micro_batch;
        self.slots[index].whole_batches += usize::from(whole);
        if !whole || !self.records || self.slots[index].whole_batches == 1 {
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

    /// What a part of a batch does: input, walk up, loss, walk down and, at the end, the update.
    fn operations(&mut self, index: usize, part: Part) -> Result<()> {
        let backend = self.backend;
        let Model { network, params, .. } = &self.model;
        let Batch { pixels, crops, labels, losses, .. } = &mut self.slots[index].batch;
        let input = &mut self.workspace.input;
        input.reshape(input.shape().with_n(losses.shape().len()));
        self.normaliser.fill(backend, input, pixels, crops)?;
        self.workspace.up(backend, params)?;
        self.workspace.loss(backend, losses, labels, part.scale)?;
        let descent = Descent {
            from: network.layers.len() - 1,
            rule: Rule::GRADIENT,
            images: None,
            gradients: Some(&mut self.gradients),
            accumulate: part.accumulate,
            to_pixels: false,
        };
        self.workspace.down(backend, params, descent)?;
        if part.update { self.update() } else { Ok(()) }
    }

    /// Moves the weights. Several ranks would exchange their gradients first, here.
    fn update(&mut self) -> Result<()> {
        let backend = self.backend;
        let recipe = &self.model.network.architecture.recipe;
        let decaying = SgdConstants { momentum: recipe.momentum, decay: recipe.weight_decay };
        let free = SgdConstants { decay: 0.0, ..decaying };
        let of_bias = if recipe.bias_decay { &decaying } else { &free };
        let state = &self.workspace.state;
        let layers = self.model.params.layers.iter_mut().zip(&mut self.momentum.layers);
        let layers = layers.zip(&self.gradients.layers).zip(&self.model.network.layers);
        for (((w, v), g), layer) in layers {
            let (Some(w), Some(v), Some(g)) = (w, v, g) else { continue };
            let Param { weight, bias } = w;
            backend.sgd_step(weight, &mut v.weight, &g.weight, &decaying, state)?;
            backend.sgd_step(bias, &mut v.bias, &g.bias, of_bias, state)?;
            if layer.rms_limit() > 0.0 {
                backend.limit_rms(weight, layer.rms_limit(), state)?;
            }
        }
        Ok(())
    }
}

/// Trains a network, from the start or from the run's last checkpoint.
///
/// # Errors
/// If the data, the network, the run's folder or a checkpoint cannot be used, the loss is no longer
/// finite, or the backend refuses. What has been saved stays.
pub fn train<B: Backend>(
    backend: &B,
    job: &Job<'_>,
    observe: impl FnMut(Event<'_>) -> Result<()>,
) -> Result<Outcome> {
    let architecture = Architecture { classes: job.classes.len(), ..job.architecture.clone() };
    let network = Network::new(architecture)?; // before anything is made for it
    if job.shuffle_window.is_some() {
        epoch_order(&job.train, job.shuffle_window, job.seed, 0)?; // so is this
    }
    fs::create_dir_all(&job.out).map_err(Error::io("create", &job.out))?;
    let _held_until_the_end = lock(&job.out, "another training")?;
    let outcome = run(backend, job, network, observe);
    let listed = quarantine(&job.out, &[&job.train, &job.val]); // however it ended
    outcome.and_then(|outcome| listed.map(|()| outcome))
}

fn run<B: Backend>(
    backend: &B,
    job: &Job<'_>,
    network: Network,
    mut observe: impl FnMut(Event<'_>) -> Result<()>,
) -> Result<Outcome> {
    let mut notes = Vec::new();
    let begun = match last_checkpoint(backend, job, &network, &mut notes)? {
        None => {
            let planned = network.clone();
            start(backend, job, network, &mut notes, &mut observe)
                .map_err(|error| explain(backend, &planned, job.accumulate, error))?
        }
        resumed => resumed,
    };
    let Some(Resumed { model, momentum, mut state }) = begun else { return Ok(Outcome::Stopped) };
    let recipe = model.network.architecture.recipe.clone();
    let planned = model.network.clone();
    let mut trainer = Trainer::new(backend, model, momentum, job.accumulate)
        .map_err(|error| explain(backend, &planned, job.accumulate, error))?;
    // Planned with the rest, so that there is room for it when the first epoch ends.
    let mut classifier = validator(backend, &trainer.model, job.accumulate)
        .map(Some)
        .map_err(|error| explain(backend, &planned, job.accumulate, error))?;
    let mut log = MetricsLog::open(&job.out, state.step, state.epoch)?;
    let steps_per_epoch = job.train.len().div_ceil(recipe.batch_size);
    let network = &trainer.model.network;
    observe(Event::Start { network, state: &state, steps_per_epoch, notes: &notes })?;
    checkpoint::prune(&job.out, job.keep)?;
    // Saved first of all, so that a folder that cannot be written is known before the work is done.
    if state.step == 0 {
        save(backend, job, &trainer, &mut log, &mut state, false)?;
    }

    while state.epoch < recipe.epochs {
        let mut session = Session::begin(backend, job, &recipe, &state)?;
        let stopped = epoch(job, &mut trainer, &mut log, &mut state, &mut session, &mut observe)?;
        let enough = job.max_steps.is_some_and(|max| state.step >= max);
        if stopped || (enough && state.batch < steps_per_epoch) {
            save(backend, job, &trainer, &mut log, &mut state, false)?;
            return Ok(if stopped { Outcome::Stopped } else { Outcome::Done });
        }
        let validation = match validate(backend, job, &trainer.model, &mut classifier, &mut observe)
        {
            Ok(Some(validation)) => validation,
            // The epoch is kept, and validated when the run goes on.
            unfinished => {
                save(backend, job, &trainer, &mut log, &mut state, false)?;
                return unfinished.map(|_| Outcome::Stopped);
            }
        };
        let train_loss = state.loss_sum / state.samples as f64;
        let rate = state.schedule.rate(&recipe);
        state.epoch += 1;
        state.batch = 0;
        (state.loss_sum, state.samples) = (0.0, 0);
        let error = validation.top1_error;
        let is_best = state.best.is_none_or(|(best, _)| error < best);
        if is_best {
            state.best = Some((error, state.step));
        }
        state.schedule.epoch_ends(&recipe, state.epoch, error);
        let next_rate = state.schedule.rate(&recipe);
        log.write(&Metric::Epoch {
            step: state.step,
            epoch: state.epoch,
            train_loss,
            val_loss: validation.loss,
            val_top1_error: error,
            val_top5_error: validation.top5_error,
            rate: next_rate,
        })?;
        save(backend, job, &trainer, &mut log, &mut state, is_best)?;
        observe(Event::Epoch {
            state: &state,
            train_loss,
            validation: &validation,
            rate,
            next_rate,
            elapsed: session.elapsed,
            waiting: session.loader.waited(),
        })?;
        if enough {
            break;
        }
    }
    Ok(Outcome::Done)
}

/// What one epoch needs while it runs.
struct Session {
    loader: Loader,
    elapsed: Duration,
}

impl Session {
    fn begin<B: Backend>(
        backend: &B,
        job: &Job<'_>,
        recipe: &Recipe,
        state: &State,
    ) -> Result<Self> {
        let order = epoch_order(&job.train, job.shuffle_window, state.seed, state.epoch)?;
        let plan = Plan::new(order, recipe.batch_size, Bad::Replace);
        let plan = Plan { first_batch: state.batch, ..plan };
        let memory = |bytes| backend.host_memory(bytes);
        let loader = Loader::into_memory(job.train.clone(), plan, job.workers, memory)?;
        Ok(Session { loader, elapsed: Duration::ZERO })
    }
}

/// Runs what is left of an epoch; says whether it was stopped.
fn epoch<B: Backend>(
    job: &Job<'_>,
    trainer: &mut Trainer<'_, B>,
    log: &mut MetricsLog,
    state: &mut State,
    session: &mut Session,
    observe: &mut impl FnMut(Event<'_>) -> Result<()>,
) -> Result<bool> {
    let start = Instant::now();
    let recipe = trainer.model.network.architecture.recipe.clone();
    let rate = state.schedule.rate(&recipe);
    let mut crops = Vec::with_capacity(recipe.batch_size);
    let mut saved = Instant::now();
    // What has been given to the trainer; `state` counts what has come back.
    let mut begun_steps = state.step;
    loop {
        let stopped = job.stop.load(Ordering::Relaxed) != 0;
        let enough = job.max_steps.is_some_and(|max| begun_steps >= max);
        let batch = if stopped || enough { None } else { session.loader.next_batch()? };
        let over = batch.is_none();
        // An error is told after those steps that have ended well.
        let mut begun = Ok(());
        if let Some(mut batch) = batch {
            crops.clear();
            crops.extend((0..batch.labels.len()).map(|i| {
                let preprocess = &trainer.model.preprocess;
                let (seed, epoch) = (state.seed, state.epoch);
                training_crop(recipe.crops, preprocess, seed, epoch, batch.first + i, i as u32)
            }));
            let step = StepState { seed: state.seed, step: begun_steps, first_sample: 0, rate };
            begun = trainer.enqueue_batch(&mut batch, &crops, step);
            session.loader.recycle(batch);
            begun_steps += 1;
        }
        let due = job.save_steps.is_some_and(|steps| begun_steps.is_multiple_of(steps.max(1)));
        let due = !over && (due || saved.elapsed() >= job.save_interval);
        if begun.is_ok() && (over || due) {
            begun = trainer.wait();
        }
        while let Some(Finished { loss_sum, samples, .. }) = trainer.finished() {
            state.step += 1;
            state.batch += 1;
            state.loss_sum += loss_sum;
            state.samples += samples;
            let loss = loss_sum / samples as f64;
            log.write(&Metric::Step { step: state.step, epoch: state.epoch + 1, loss, rate })?;
            session.elapsed = start.elapsed();
            let (elapsed, waiting) = (session.elapsed, session.loader.waited());
            observe(Event::Step { state, loss, samples, elapsed, waiting })?;
        }
        begun?;
        if due {
            saved = Instant::now();
            save(trainer.backend, job, trainer, log, state, false)?;
        }
        if over {
            return Ok(stopped);
        }
    }
}

fn save<B: Backend>(
    backend: &B,
    job: &Job<'_>,
    trainer: &Trainer<'_, B>,
    log: &mut MetricsLog,
    state: &mut State,
    is_best: bool,
) -> Result<()> {
    log.sync()?;
    quarantine(&job.out, &[&job.train, &job.val])?;
    checkpoint::save(backend, &job.out, &trainer.model, &trainer.momentum, state, is_best)?;
    checkpoint::prune(&job.out, job.keep)
}

/// Evaluates with the centre crop.
fn validate<B: Backend>(
    backend: &B,
    job: &Job<'_>,
    model: &Model<B>,
    classifier: &mut Option<Classifier<B>>,
    observe: &mut impl FnMut(Event<'_>) -> Result<()>,
) -> Result<Option<Evaluation>> {
    let Model { network, params, .. } = model;
    let images = job.val.clone();
    let lent = classifier.take().expect("given back by the validation before");
    let mut members = [Member { network, params, classifier: lent, images }];
    let (mut done, all) = (0, job.val.len());
    let mut failed = None;
    let result = evaluate(backend, &mut members, job.workers, job.stop, |images| {
        done += images;
        if let Err(error) = observe(Event::Validation(done, all)) {
            failed = Some(error);
        }
    })?;
    let [Member { classifier: lent, .. }] = members;
    *classifier = Some(lent);
    failed.map_or(Ok(result), Err)
}

/// What validation needs: no more samples at a time than training has.
pub(super) fn validator<B: Backend>(
    backend: &B,
    model: &Model<B>,
    accumulate: usize,
) -> Result<Classifier<B>> {
    let Model { network, preprocess, .. } = model;
    let at_a_time = network.architecture.recipe.batch_size.div_ceil(accumulate.max(1));
    let images = TestCrops::One.batch().min(at_a_time);
    Classifier::new(backend, network, preprocess, TestCrops::One, images)
}

/// A fresh start: the mean image, and weights drawn or taken from another checkpoint. `None` if it
/// was stopped.
fn start<B: Backend>(
    backend: &B,
    job: &Job<'_>,
    network: Network,
    notes: &mut Vec<String>,
    observe: &mut impl FnMut(Event<'_>) -> Result<()>,
) -> Result<Option<Resumed<B>>> {
    let total = job.train.len();
    let mean = job.train.mean(|done| {
        observe(Event::Mean(done, total))?;
        Ok(job.stop.load(Ordering::Relaxed) == 0)
    })?;
    let Some(mean) = mean else { return Ok(None) };
    observe(Event::Mean(total, total))?;
    let input = network.architecture.input;
    let mut preprocess = Preprocess::paper(input.size, input.resize, input.std, mean);
    let mut params = Params::init(backend, &network, job.seed)?;
    if let Some((path, bare)) = &job.init {
        let from = checkpoint::load_model(backend, path, bare)?;
        copy_fitting(&network, &mut params, from, &mut preprocess, notes, path)?;
    }
    let momentum = Params::zeros(backend, &network)?;
    let recipe = network.architecture.recipe.clone();
    let data = data_of(job);
    let mut state = State::new(recipe, job.seed, job.accumulate, backend.describe(), data);
    state.shuffle_window = job.shuffle_window;
    let model = Model { network, params, preprocess, classes: job.classes.clone() };
    Ok(Some(Resumed { model, momentum, state }))
}

/// Takes over the weights of all layers that have the same name and shape, and the preprocessing
/// they were trained with.
fn copy_fitting<B: Backend>(
    network: &Network,
    params: &mut Params<B>,
    from: Model<B>,
    preprocess: &mut Preprocess,
    notes: &mut Vec<String>,
    path: &Path,
) -> Result<()> {
    let mut fresh = Vec::new();
    let mut taken = 0;
    let mut old = from.params.layers;
    for (layer, param) in network.layers.iter().zip(&mut params.layers) {
        let Some(param) = param else { continue };
        let fitting = from.network.layer(&layer.name).ok().and_then(|i| {
            let fits = old[i].as_ref().is_some_and(|o| o.weight.shape() == param.weight.shape());
            if fits { old[i].take() } else { None }
        });
        match fitting {
            Some(fitting) => {
                *param = fitting;
                taken += 1;
            }
            None => fresh.push(layer.name.as_str()),
        }
    }
    if taken == 0 {
        return Err(Error::file(path, "no layer has the name and shape of one of this network"));
    }
    if !fresh.is_empty() {
        notes.push(format!("not in {}, so freshly drawn: {}", path.display(), fresh.join(", ")));
    }
    let same_size =
        (from.preprocess.size, from.preprocess.resize) == (preprocess.size, preprocess.resize);
    if same_size || from.preprocess.mean.len() == 3 {
        let (size, resize) = (preprocess.size, preprocess.resize);
        *preprocess = Preprocess { size, resize, ..from.preprocess };
    } else {
        notes.push("the mean image is of another size, so the data's own is used".into());
    }
    Ok(())
}

/// The newest whole checkpoint of the run, if it is to be resumed and has one.
fn last_checkpoint<B: Backend>(
    backend: &B,
    job: &Job<'_>,
    network: &Network,
    notes: &mut Vec<String>,
) -> Result<Option<Resumed<B>>> {
    checkpoint::recover(&job.out)?;
    let candidates = checkpoint::candidates(&job.out);
    if !job.resume {
        return if candidates.is_empty() {
            Ok(None)
        } else {
            let hint = "holds a training already: go on with --resume, or choose another --out";
            Err(Error::file(&job.out, hint))
        };
    }
    let mut first_error = None;
    for folder in &candidates {
        match checkpoint::load(backend, folder) {
            Ok(mut resumed) => {
                if let Some(error) = first_error {
                    notes.push(format!("fell back to {}: {error}", folder.display()));
                }
                agree(backend, job, network, &mut resumed, folder, notes)?;
                checkpoint::relink(&job.out, folder, &resumed.state)?;
                return Ok(Some(resumed));
            }
            Err(error) => {
                first_error.get_or_insert(error);
            }
        }
    }
    match first_error {
        Some(error) => Err(error),
        None => {
            notes.push(format!("{} has no checkpoint yet: starting", job.out.display()));
            Ok(None)
        }
    }
}

/// The images that a run sees and, if it sees them as they lie in shards, how they lie.
fn data_of(job: &Job<'_>) -> String {
    let images = job.train.fingerprint();
    match job.shuffle_window {
        Some(_) => format!("{images}, in shards as {}", job.train.layout()),
        None => images,
    }
}

/// A continued run must be the run that was begun; only its length may change.
fn agree<B: Backend>(
    backend: &B,
    job: &Job<'_>,
    network: &Network,
    resumed: &mut Resumed<B>,
    folder: &Path,
    notes: &mut Vec<String>,
) -> Result<()> {
    let Resumed { model, state, .. } = resumed;
    let then = &mut model.network.architecture;
    let mut now = network.architecture.clone();
    then.recipe.epochs = now.recipe.epochs;
    state.recipe.epochs = now.recipe.epochs;
    now.description.clone_from(&then.description);
    let differs = |what: &str, then: &dyn std::fmt::Debug, now: &dyn std::fmt::Debug| {
        Err(Error::file(
            folder,
            format!(
                "was begun with another {what}: expected {then:?}, found {now:?}; continue with the same flags, or choose another --out"
            ),
        ))
    };
    if then.recipe != now.recipe {
        return differs("recipe", &then.recipe, &now.recipe);
    }
    if *then != now {
        let layer = then.layers.iter().zip(&now.layers).find(|(then, now)| then != now);
        return match layer {
            Some((then, now)) => differs("layer", then, now),
            None => differs("network", &(&then.name, then.input), &(&now.name, now.input)),
        };
    }
    if model.classes != job.classes {
        return differs("set of classes", &model.classes, &job.classes);
    }
    if (state.seed, state.accumulate) != (job.seed, job.accumulate) {
        let (then, now) = ((state.seed, state.accumulate), (job.seed, job.accumulate));
        return differs("seed or --accumulate", &then, &now);
    }
    if state.shuffle_window != job.shuffle_window {
        return differs("--shuffle-window", &state.shuffle_window, &job.shuffle_window);
    }
    if state.data != data_of(job) {
        return differs("set of training images", &state.data, &data_of(job));
    }
    // Threads do not matter, instructions do.
    let kind = |description: &str| description.rsplit(", ").next().map(str::to_owned);
    if kind(&state.backend) != kind(&backend.describe()) {
        notes.push(format!(
            "begun on {}, continued on {}: not bit for bit",
            state.backend,
            backend.describe()
        ));
    }
    Ok(())
}
