//! What a training will need, before it is begun: memory, steps, time.

use std::time::Instant;

use super::job::Job;
use super::memory::{dummy_trainer, largest_batch, with_memory_hint};
use crate::Result;
use crate::backend::{Backend, StepState};
use crate::data::loader::{Bad, BatchPlan, Loader};
use crate::data::order::{epoch_order, training_crop};
use crate::model::{Architecture, Network};

/// Steps that are timed.
const TRIAL: usize = 20;

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
    let (mut trainer, _validator) = dummy_trainer(backend, &network, job.accumulate)
        .map_err(|error| with_memory_hint(backend, &network, job.accumulate, error))?;
    let wanted = backend.memory()?.allocated_total - before.allocated_total;
    let steps_per_epoch = job.train.len().div_ceil(recipe.batch_size);

    let order = epoch_order(&job.train, job.shuffle_window, job.seed, 0)?;
    let plan = BatchPlan::new(order, recipe.batch_size, Bad::Replace);
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
        let state =
            StepState { seed: job.seed, step: step as u32, first_sample: 0, learning_rate: rate };
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
