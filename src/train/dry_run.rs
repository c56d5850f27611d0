//! What a training will need, before it is begun: memory, steps, time.

use std::time::Instant;

use super::evaluate::Classifier;
use super::trainer::{Job, Trainer, validator};
use crate::backend::{Backend, StepState};
use crate::data::loader::{Bad, Loader, Plan};
use crate::data::order::{epoch_order, training_crop};
use crate::human_bytes;
use crate::model::{Architecture, Model, Network, Params, Preprocess};
use crate::{Error, Result};

/// Steps that are timed.
const TRIAL: usize = 20;
/// Samples of the two small trainings by which the need of larger ones is told: the first pair of
/// which both fit.
const SMALL: [[usize; 2]; 3] = [[64, 128], [8, 16], [1, 2]];

/// What a training will need.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Needs {
    /// Weights and biases.
    pub parameters: usize,
    /// Bytes of memory that it takes on its device.
    pub wanted: usize,
    /// Bytes that were free before, if the device says so.
    pub free: Option<usize>,
    /// About how many samples at a time would fit.
    pub largest_batch: Option<usize>,
    /// Updates of an epoch.
    pub steps_per_epoch: usize,
    /// Seconds of a step, data included: the mean of [`Needs::trial_steps`] on the first batches.
    pub seconds_per_step: f64,
    /// Steps that were timed.
    pub trial_steps: usize,
}

/// Plans a training as [`super::train`] would, takes a few steps with weights that are then thrown
/// away, and writes nothing. `observe` hears of steps done, of how many.
///
/// # Errors
/// If the data, the network or the device cannot be used, or there is no room.
pub fn dry_run<B: Backend>(
    backend: &B,
    job: &Job<'_>,
    mut observe: impl FnMut(usize, usize),
) -> Result<Needs> {
    let architecture = Architecture { classes: job.classes.len(), ..job.architecture.clone() };
    let network = Network::new(architecture)?;
    let recipe = network.architecture.recipe.clone();
    let before = backend.memory()?;
    let (mut trainer, _validator) = blank(backend, &network, job.accumulate)
        .map_err(|error| explain(backend, &network, job.accumulate, error))?;
    let wanted = backend.memory()?.handed_out - before.handed_out;
    let steps_per_epoch = job.train.len().div_ceil(recipe.batch_size);

    let order = epoch_order(&job.train, job.shuffle_window, job.seed, 0)?;
    let plan = Plan::new(order, recipe.batch_size, Bad::Replace);
    let memory = |bytes| backend.host_memory(bytes);
    let mut loader = Loader::into_memory(job.train.clone(), plan, job.workers, memory)?;
    let rate = recipe.learning_rate.min(1e-6); // steps that lead nowhere
    // Until every buffer has had its batch and, where steps are recorded, its recording.
    let settling = 3 * backend.batches_in_flight();
    let all = (settling + TRIAL).min(steps_per_epoch);
    let warm_up = settling.min(all / 2);
    let mut start = Instant::now();
    for step in 0..all {
        if step == warm_up {
            trainer.wait()?;
            start = Instant::now();
        }
        let Some(mut batch) = loader.next_batch()? else { break };
        let crops: Vec<_> = (0..batch.labels.len())
            .map(|i| {
                let preprocess = &trainer.model.preprocess;
                training_crop(recipe.crops, preprocess, job.seed, 0, batch.first + i, i as u32)
            })
            .collect();
        let state = StepState { seed: job.seed, step: step as u32, first_sample: 0, rate };
        trainer.enqueue_batch(&mut batch, &crops, state)?;
        loader.recycle(batch);
        observe(step + 1, all);
    }
    trainer.wait()?;
    let trial_steps = all - warm_up;
    let seconds_per_step = start.elapsed().as_secs_f64() / trial_steps as f64;
    drop(trainer);
    Ok(Needs {
        parameters: network.parameters(),
        wanted,
        free: before.free,
        largest_batch: largest_batch(backend, &network, before.free),
        steps_per_epoch,
        seconds_per_step,
        trial_steps,
    })
}

/// Adds to an error for want of memory how much would be needed and which batch would fit.
pub fn explain<B: Backend>(
    backend: &B,
    network: &Network,
    accumulate: usize,
    error: Error,
) -> Error {
    let Error::Memory { .. } = error else { return error };
    let batch = network.architecture.recipe.batch_size;
    let at_a_time = batch.div_ceil(accumulate.max(1));
    let free = backend.memory().ok().and_then(|memory| memory.free);
    let name = &network.architecture.name;
    let Some((fixed, each)) = affine(backend, network) else {
        let weights = human_bytes(4 * network.parameters());
        return Error::Training(format!(
            "{error}. To train {name} not even one sample at a time would fit: its weights alone take \
             three times {weights}, with momentum and gradients"
        ));
    };
    let wanted = human_bytes((fixed + each * at_a_time as f64) as usize);
    let fits = match largest_batch(backend, network, free) {
        Some(0) | None => "no batch at all would fit".into(),
        // The estimate is a little too high.
        Some(largest) if largest >= at_a_time => "a little less would fit".into(),
        Some(largest) => format!(
            "about {largest} would fit: try --batch-size {largest}, or --accumulate {} for the \
             same batch in parts",
            batch.div_ceil(largest)
        ),
    };
    Error::Training(format!(
        "{error}. To train {name} on {at_a_time} samples at a time takes about {wanted}; {fits}"
    ))
}

/// A training of a network with any weights, for a set of pictures that does not matter, and its
/// validation.
fn blank<'a, B: Backend>(
    backend: &'a B,
    network: &Network,
    accumulate: usize,
) -> Result<(Trainer<'a, B>, Classifier<B>)> {
    let input = network.architecture.input;
    let mean = vec![128.0; input.resize * input.resize * 3];
    let preprocess = Preprocess::paper(input.size, input.resize, input.std, mean);
    let params = Params::init(backend, network, 0)?;
    let classes = vec![String::new(); network.classes()];
    let model = Model { network: network.clone(), params, preprocess, classes };
    let momentum = Params::zeros(backend, network)?;
    let trainer = Trainer::new(backend, model, momentum, accumulate)?;
    let validator = validator(backend, &trainer.model, accumulate)?;
    Ok((trainer, validator))
}

/// Bytes that a training takes whatever its batch, and bytes for each sample of it.
fn affine<B: Backend>(backend: &B, network: &Network) -> Option<(f64, f64)> {
    let bytes = |batch| {
        let mut network = network.clone();
        network.architecture.recipe.batch_size = batch;
        let before = backend.memory().ok()?.handed_out;
        blank(backend, &network, 1).ok()?;
        Some((backend.memory().ok()?.handed_out - before) as f64)
    };
    SMALL.iter().find_map(|&[few, more]| {
        let (with_few, with_more) = (bytes(few)?, bytes(more)?);
        let each = (with_more - with_few) / (more - few) as f64;
        Some((with_more - each * more as f64, each))
    })
}

fn largest_batch<B: Backend>(backend: &B, network: &Network, free: Option<usize>) -> Option<usize> {
    let (fixed, each) = affine(backend, network)?;
    // Allocations are rounded up, and the host and the driver need some.
    let room = 0.95 * free? as f64 - fixed;
    Some((room / each).max(0.0) as usize)
}
