//! What a training will need, before it is begun: memory, steps, time, and which of step and input takes it.

use std::time::{Duration, Instant};

use super::job::Job;
use super::memory::{dummy_trainer, largest_batch, with_memory_hint};
use super::trainer::Trainer;
use crate::Result;
use crate::backend::{Backend, StepState};
use crate::data::loader::{Bad, Batch, BatchPlan, Loader};
use crate::data::order::{epoch_order, training_crop};
use crate::model::{Architecture, Network};

/// Steps that are timed.
const TRIAL: usize = 20;
/// Steps without input, and input without steps, are timed for no longer than they need to be compared.
const ENOUGH: Duration = Duration::from_secs(1);
/// Batches of each of the loader's threads that are timed, at most.
const ROUNDS: usize = 16;

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
    /// Samples a second of steps that wait for no image.
    pub step_rate: f64,
    /// Images a second that the loader reads while nothing else is done. They are the last of the first epoch: none
    /// of those kept in memory, unless the set is small.
    pub input_rate: f64,
}

/// Plans a training as [`super::train`] would, takes a few steps with weights that are then thrown
/// away, and writes nothing. `observe` hears of steps done, of how many.
///
/// # Errors
/// If the data, the network or the device cannot be used, or there is not enough memory.
pub fn dry_run<B: Backend>(
    backend: &B,
    job: &Job<'_>,
    mut observe: impl FnMut(usize, usize),
) -> Result<Needs> {
    let architecture = Architecture { classes: job.classes.len(), ..job.architecture.clone() };
    let network = Network::new(architecture)?;
    let recipe = network.architecture.recipe.clone();
    let before = backend.memory()?;
    let division = job.division();
    let (mut trainer, _validator) = dummy_trainer(backend, &network, division.parts)
        .map_err(|error| with_memory_hint(backend, &network, &division, error))?;
    let wanted = backend.memory()?.allocated_total - before.allocated_total;
    let steps_per_epoch = job.train.len().div_ceil(recipe.batch_size);

    let order = epoch_order(&job.train, job.shuffle_window, job.seed, 0)?;
    let plan = BatchPlan::new(order.clone(), recipe.batch_size, Bad::Replace);
    let memory = |bytes| backend.host_memory(bytes);
    let mut loader = Loader::into_memory(job.train.clone(), plan, job.workers, memory)?;
    let rate = recipe.learning_rate.min(1e-6); // steps that lead nowhere
    let mut crops = Vec::with_capacity(recipe.batch_size);
    // Until every buffer has had its batch and, where steps are recorded, its recording.
    let settling = 3 * backend.batches_in_flight();
    let all = (settling + TRIAL).min(steps_per_epoch);
    let warm_up = settling.min(all / 2);
    let mut start = Instant::now();
    let mut enqueue = |trainer: &mut Trainer<'_, B>, batch: &mut Batch, step: usize| {
        let preprocess = &trainer.model.preprocess;
        let crop =
            |i| training_crop(recipe.crops, preprocess, job.seed, 0, batch.first + i, i as u32);
        crops.clear();
        crops.extend((0..batch.labels.len()).map(crop));
        let state =
            StepState { seed: job.seed, step: step as u32, first_sample: 0, learning_rate: rate };
        let samples = batch.labels.len();
        trainer.enqueue_batch(batch, &crops, samples, state)
    };
    let mut kept = None;
    for step in 0..all {
        if step == warm_up {
            trainer.wait()?;
            start = Instant::now();
        }
        let Some(mut batch) = loader.next_batch()? else { break };
        enqueue(&mut trainer, &mut batch, step)?;
        if step == all.saturating_sub(2) {
            kept = Some(batch); // the last may be a small one
        } else {
            loader.recycle(batch);
        }
        observe(step + 1, all);
    }
    trainer.wait()?;
    let trial_steps = all - warm_up;
    let seconds_per_step = start.elapsed().as_secs_f64() / trial_steps as f64;
    drop(loader); // its threads would take cores from the steps

    let mut batch = kept.expect("a set has a batch");
    let start = Instant::now();
    let mut steps = 0;
    while steps < TRIAL && (steps == 0 || start.elapsed() < ENOUGH) {
        enqueue(&mut trainer, &mut batch, all + steps)?;
        steps += 1;
    }
    trainer.wait()?;
    let step_rate = (steps * batch.labels.len()) as f64 / start.elapsed().as_secs_f64();
    drop(trainer);
    let input_rate = input_rate(backend, job, order, recipe.batch_size)?;
    Ok(Needs {
        parameters: network.parameters(),
        wanted,
        free: before.free,
        largest_batch: largest_batch(backend, &network, division.parts, before.free),
        steps_per_epoch,
        seconds_per_step,
        trial_steps,
        step_rate,
        input_rate,
    })
}

/// Images a second that the loader reads into the memory that training reads them into, from the end of an order on.
fn input_rate<B: Backend>(
    backend: &B,
    job: &Job<'_>,
    mut order: Vec<u32>,
    batch_size: usize,
) -> Result<f64> {
    let workers = job.workers.max(1);
    let batch_size = batch_size.min(order.len());
    order.reverse();
    let wanted = (1 + ROUNDS) * workers * batch_size;
    let mut order = order.repeat(wanted.div_ceil(order.len()));
    order.truncate(wanted);
    let plan = BatchPlan::new(order, batch_size, Bad::Replace);
    let memory = |bytes| backend.host_memory(bytes);
    let mut loader = Loader::into_memory(job.train.clone(), plan, workers, memory)?;
    let mut start = Instant::now();
    let mut images = 0;
    for number in 1.. {
        let Some(batch) = loader.next_batch()? else { break };
        images += batch.labels.len();
        loader.recycle(batch);
        if number == workers {
            // Threads that began together hand over together: the first round starts them, and whole ones count.
            (start, images) = (Instant::now(), 0);
        } else if number % workers == 0 && start.elapsed() >= ENOUGH {
            break;
        }
    }
    Ok(images as f64 / start.elapsed().as_secs_f64())
}
