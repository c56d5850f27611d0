//! A run of training: epochs of steps, with validation, schedule, checkpoints and metrics around them.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::alarm::Alarm;
use super::begin::begin;
use super::checkpoint::{self, Resumed, State};
use super::confusion::Confusion;
use super::duplicates::shared_images;
use super::evaluate::{Classifier, Evaluation, Member, evaluate_each};
use super::job::{Event, Job, Outcome};
use super::log::{Metric, MetricsLog, quarantine};
use super::memory::{validator, with_memory_hint};
use super::trainer::{Asks, Division, Finished, Trainer};
use super::watcher::{EpochNumbers, Task, WatchState, is_watched};
use crate::backend::{Backend, Param, StepState};
use crate::data::loader::{Bad, BatchPlan, Loader};
use crate::data::order::{epoch_order, training_crop};
use crate::disk::{create_folder, lock};
use crate::model::{Architecture, Initial, Model, Network};
use crate::{Error, Result};
use zfnet_core::Recipe;

/// Trains a network, from the start or from the run's last checkpoint.
///
/// # Errors
/// If the data, the network, the run's folder or a checkpoint cannot be used, the loss is no longer
/// finite, or a backend operation fails. What has been saved stays.
pub fn train<B: Backend>(
    backend: &B,
    job: &Job<'_>,
    observe: impl FnMut(Event<'_>) -> Result<()>,
) -> Result<Outcome> {
    job.ranks.together(|| train_rank(backend, job, observe))
}

fn train_rank<B: Backend>(
    backend: &B,
    job: &Job<'_>,
    mut observe: impl FnMut(Event<'_>) -> Result<()>,
) -> Result<Outcome> {
    let architecture = Architecture { classes: job.classes.len(), ..job.architecture.clone() };
    let network = Network::new(architecture)?; // before anything is made for it
    if job.shuffle_window.is_some() {
        epoch_order(&job.train, job.shuffle_window, job.seed, 0)?; // so is this
    }
    if !job.ranks.is_first() {
        return run(backend, job, network, |_| Ok(()));
    }
    create_folder(&job.out)?;
    let _held_until_the_end = lock(&job.out, "another training")?;
    let outcome = run(backend, job, network, |event| {
        job.ranks.check()?; // what only this rank does may take long
        observe(event)
    });
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
    let begun = begin(backend, job, network, &mut notes, &mut observe)?;
    let Some(Resumed { model, momentum, mut state }) = begun else { return Ok(Outcome::Stopped) };
    let planned = model.network.clone();
    let (parts, tree) = (state.accumulate, state.tree);
    let division = Division { parts, tree, ranks: job.ranks.clone() };
    let hint = |error| with_memory_hint(backend, &planned, &division, error);
    let mut trainer = Trainer::divided(backend, model, momentum, division.clone()).map_err(hint)?;
    if job.ranks.count() > 1
        && let Some(direct) = backend.exchange(&planned, &job.ranks).map_err(hint)?
    {
        trainer.exchange_by(direct);
    }
    // Planned with the rest, so that there is room for it when the first epoch ends.
    let mut classifier = validator(backend, &trainer.model, parts).map(Some).map_err(hint)?;
    let task = task(job, &planned);
    if !state.watch.fits(&planned) {
        state.watch = WatchState::default();
    }
    if job.watch {
        trainer.prepare_watch().map_err(hint)?;
    }
    // The trainer, and what it exchanges by, stays until all have come to the end or know why they do not.
    let around = Around { backend, job, task: &task };
    job.ranks.together(|| {
        epochs(&around, &mut trainer, &mut classifier, &mut state, &notes, &mut observe)
    })
}

/// Trains from where a run stands to its end.
fn epochs<B: Backend>(
    around: &Around<'_, B>,
    trainer: &mut Trainer<'_, B>,
    classifier: &mut Option<Classifier<B>>,
    state: &mut State,
    notes: &[String],
    observe: &mut impl FnMut(Event<'_>) -> Result<()>,
) -> Result<Outcome> {
    let &Around { backend, job, task } = around;
    let recipe = trainer.model.network.architecture.recipe.clone();
    let first = job.ranks.is_first();
    let is_new = state.files.is_empty(); // no checkpoint has been written or read
    let reached = (!is_new).then_some((state.step, state.epoch));
    let mut log = if first { MetricsLog::open(&job.out, reached)? } else { MetricsLog::nowhere() };
    let steps_per_epoch = job.train.len().div_ceil(recipe.batch_size);
    let network = &trainer.model.network;
    observe(Event::Start { network, state, steps_per_epoch, notes })?;
    if first {
        checkpoint::prune(&job.out, job.keep, state)?;
    }
    // Saved first of all, so that a folder that cannot be written is known before the work is done.
    if state.step == 0 {
        let mut stopped = false;
        if is_new && job.watch && first {
            let found = shared_images(job, observe)?;
            stopped = found.is_none();
            if let Some(alarm) = found.flatten().and_then(|alarm| state.watch.tell(alarm)) {
                tell(&mut log, state, &alarm, observe)?;
            }
        }
        if job.ranks.any(stopped)? {
            return Ok(Outcome::Stopped);
        }
        save(backend, job, trainer, &mut log, state, observe)?;
    }

    while state.epoch < recipe.epochs {
        // What rank 0 does between epochs may take longer than a GPU waits for another's part of a step.
        job.ranks.meet()?;
        let mut session = Session::begin(backend, job, &recipe, state, trainer)?;
        let stopped = epoch(around, trainer, &mut log, state, &mut session, observe)?;
        let enough = job.max_steps.is_some_and(|max| state.step >= max);
        if stopped || (enough && state.batch < steps_per_epoch) {
            save(backend, job, trainer, &mut log, state, observe)?;
            return Ok(if stopped { Outcome::Stopped } else { Outcome::Done });
        }
        let mut confusion = Confusion::default();
        let validation =
            match validate(backend, job, &trainer.model, classifier, &mut confusion, observe) {
                Ok(Some(validation)) => validation,
                // Other ranks know of no error of this one yet.
                Err(error) if job.ranks.count() > 1 => return Err(error),
                // The epoch is kept, and validated when the run goes on.
                unfinished => {
                    save(backend, job, trainer, &mut log, state, observe)?;
                    return unfinished.map(|_| Outcome::Stopped);
                }
            };
        let train_loss = state.loss_sum / state.samples as f64;
        let rate = state.schedule.rate(&recipe);
        state.epoch += 1;
        state.batch = 0;
        (state.loss_sum, state.samples) = (0.0, 0);
        let error = validation.top1_error;
        if state.best.is_none_or(|(best, _)| error < best) {
            state.best = Some((error, state.step));
        }
        state.schedule.epoch_ends(&recipe, state.epoch, error);
        let next_rate = state.schedule.rate(&recipe);
        let metric = Metric::Epoch {
            step: state.step,
            epoch: state.epoch,
            train_loss,
            val_loss: validation.loss,
            val_top1_error: error,
            val_top5_error: validation.top5_error,
            rate: next_rate,
        };
        write(&mut log, &metric, observe)?;
        let mut alarms = Vec::new();
        if job.watch && first {
            alarms = log_layers(backend, trainer, &mut log, state, task, rate, observe)?;
            alarms.extend(state.watch.validated(task, state.step, train_loss, &confusion));
        } else {
            state.watch.not_watched();
        }
        for alarm in &alarms {
            let (step, epoch) = (state.step, state.epoch);
            let metric = Metric::Alarm { step, epoch, alarm: alarm.clone() };
            write(&mut log, &metric, observe)?;
        }
        save(backend, job, trainer, &mut log, state, observe)?;
        observe(Event::Epoch {
            state,
            train_loss,
            validation: &validation,
            learning_rate: rate,
            next_learning_rate: next_rate,
            elapsed: session.elapsed,
            waiting: session.loader.waited(),
        })?;
        for alarm in &alarms {
            observe(Event::Alarm(alarm))?;
        }
        if enough {
            break;
        }
    }
    Ok(Outcome::Done)
}

/// What alarms depend on beside what training shows.
fn task<'a>(job: &'a Job<'_>, network: &'a Network) -> Task<'a> {
    let mut counts = vec![0; network.classes()];
    (0..job.train.len()).for_each(|index| counts[job.train.class(index) as usize] += 1);
    Task::new(network, &job.classes.names, counts)
}

/// Writes down what the watched steps of the epoch that has ended show of the layers; alarms that follow from it.
fn log_layers<B: Backend>(
    backend: &B,
    trainer: &Trainer<'_, B>,
    log: &mut MetricsLog,
    state: &mut State,
    task: &Task<'_>,
    rate: f32,
    observe: &mut impl FnMut(Event<'_>) -> Result<()>,
) -> Result<Vec<Alarm>> {
    let shares = initial_shares(backend, &trainer.model)?;
    let Some(EpochNumbers { input_std, images, layers, alarms }) =
        state.watch.end_epoch(task, &shares, rate)
    else {
        return Ok(Vec::new());
    };
    let (step, epoch) = (state.step, state.epoch);
    write(log, &Metric::Layers { step, epoch, images, input_std, layers }, observe)?;
    Ok(alarms)
}

/// For each layer with weights the median share of a filter's energy along its initial weights, over some filters.
fn initial_shares<B: Backend>(backend: &B, model: &Model<B>) -> Result<Vec<Option<f64>>> {
    let layers = model.params.layers.iter().zip(&model.params.initial);
    let share = |(param, initial): (&Option<Param<B>>, &Option<Initial>)| {
        let param = param.as_ref()?;
        Some((|| {
            let Some(initial) = initial else { return Ok(None) };
            let mut weights = vec![0.0; param.weight.shape().len()];
            backend.download(&mut weights, &param.weight)?;
            let mut shares =
                initial.shares(&weights, weights.len() / param.weight.shape().n, FILTERS);
            shares.sort_by(f64::total_cmp);
            Ok(shares.get(shares.len() / 2).copied())
        })())
    };
    layers.filter_map(share).collect()
}

/// Filters of a layer of which the share of their initial weights is worked out at each epoch's end.
const FILTERS: usize = 64;

/// What stays the same while a run is trained.
struct Around<'a, B: Backend> {
    backend: &'a B,
    job: &'a Job<'a>,
    task: &'a Task<'a>,
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
        trainer: &Trainer<'_, B>,
    ) -> Result<Self> {
        let order = epoch_order(&job.train, job.shuffle_window, state.seed, state.epoch)?;
        let plan = BatchPlan::new(order, recipe.batch_size, Bad::Replace);
        let plan = BatchPlan { first_batch: state.batch, rank: trainer.share(), ..plan };
        let memory = |bytes| backend.host_memory(bytes);
        let loader = Loader::into_memory(job.train.clone(), plan, job.workers, memory)?;
        Ok(Session { loader, elapsed: Duration::ZERO })
    }
}

/// Runs what is left of an epoch; says whether it was stopped.
fn epoch<B: Backend>(
    around: &Around<'_, B>,
    trainer: &mut Trainer<'_, B>,
    log: &mut MetricsLog,
    state: &mut State,
    session: &mut Session,
    observe: &mut impl FnMut(Event<'_>) -> Result<()>,
) -> Result<bool> {
    let &Around { backend, job, task } = around;
    let start = Instant::now();
    let steps_per_epoch = job.train.len().div_ceil(task.network.architecture.recipe.batch_size);
    let recipe = trainer.model.network.architecture.recipe.clone();
    let rate = state.schedule.rate(&recipe);
    let mut crops = Vec::with_capacity(recipe.batch_size);
    let mut saved = Instant::now();
    // What has been given to the trainer; `state` counts what has come back.
    let mut begun_steps = state.step;
    let mut begun_batches = state.batch;
    loop {
        let signal = job.stop.load(Ordering::Relaxed);
        // Several ranks stop after the same step, because of any one's signal.
        let signal = if job.ranks.count() > 1 { usize::from(trainer.asked.stop) } else { signal };
        let stopped = signal != 0;
        if stopped {
            job.stop.store(signal, Ordering::Relaxed);
        }
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
            let begins = begun_batches * recipe.batch_size;
            let samples = recipe.batch_size.min(job.train.len() - begins);
            let step = StepState {
                seed: state.seed,
                step: begun_steps,
                first_sample: (batch.first - begins) as u32,
                learning_rate: rate,
            };
            trainer.watches = job.watch && is_watched(begun_steps, steps_per_epoch);
            let stop = job.stop.load(Ordering::Relaxed) as u8;
            let save = job.ranks.is_first() && saved.elapsed() >= job.save_interval;
            trainer.asks = Asks { stop, save };
            begun = trainer.enqueue_batch(&mut batch, &crops, samples, step);
            session.loader.recycle(batch);
            begun_steps += 1;
            begun_batches += 1;
        }
        let due = job.save_steps.is_some_and(|steps| begun_steps.is_multiple_of(steps.max(1)));
        let aged = match job.ranks.count() {
            1 => saved.elapsed() >= job.save_interval,
            _ => trainer.asked.save,
        };
        let due = !over && (due || aged);
        if begun.is_ok() && (over || due) {
            begun = trainer.wait();
        }
        while let Some(Finished { loss_sum, samples, signs, .. }) = trainer.finished() {
            state.step += 1;
            state.batch += 1;
            state.loss_sum += loss_sum;
            state.samples += samples;
            let loss = loss_sum / samples as f64;
            let (step, epoch) = (state.step, state.epoch + 1);
            write(log, &Metric::Step { step, epoch, loss, rate }, observe)?;
            session.elapsed = start.elapsed();
            let (elapsed, waiting) = (session.elapsed, session.loader.waited());
            observe(Event::Step { state, loss, samples, elapsed, waiting })?;
            if let Some(signs) = &signs {
                state.watch.look(task, signs, rate);
            }
            if job.watch
                && job.ranks.is_first()
                && let Some(alarm) = state.watch.step(task, state.step, loss, rate)
            {
                tell(log, state, &alarm, observe)?;
            }
        }
        if let Err(error @ Error::Diverged { .. }) = begun {
            if job.watch
                && let Some(signs) = trainer.examine_failed()?
            {
                let files = files_of_batch(job, state, recipe.batch_size)?;
                let alarm = state.watch.failed(task, &signs, files, rate);
                state.step += 1; // the one that failed: not of any checkpoint, and cut when the run goes on
                tell(log, state, &alarm, observe)?;
                state.epoch += 1; // what was seen of it is all that there will be
                log_layers(backend, trainer, log, state, task, rate, observe)?;
                log.sync()?;
            }
            return Err(error);
        }
        begun?;
        if due {
            saved = Instant::now();
            save(backend, job, trainer, log, state, observe)?;
        }
        if over {
            return Ok(stopped);
        }
    }
}

/// Writes an alarm down, and tells it.
fn tell(
    log: &mut MetricsLog,
    state: &State,
    alarm: &Alarm,
    observe: &mut impl FnMut(Event<'_>) -> Result<()>,
) -> Result<()> {
    let (step, epoch) = (state.step, state.epoch + 1);
    write(log, &Metric::Alarm { step, epoch, alarm: alarm.clone() }, observe)?;
    observe(Event::Alarm(alarm))
}

/// Adds a line to the metrics, and shows it.
fn write(
    log: &mut MetricsLog,
    metric: &Metric,
    observe: &mut impl FnMut(Event<'_>) -> Result<()>,
) -> Result<()> {
    log.write(metric)?;
    observe(Event::Metric(metric))
}

/// The images of the batch that comes next, some of which a bad image's substitute may stand for.
fn files_of_batch(job: &Job<'_>, state: &State, batch_size: usize) -> Result<Vec<String>> {
    let order = epoch_order(&job.train, job.shuffle_window, state.seed, state.epoch)?;
    let batch = order.iter().skip(state.batch * batch_size).take(batch_size);
    Ok(batch.map(|index| job.train.name(*index as usize)).collect())
}

fn save<B: Backend>(
    backend: &B,
    job: &Job<'_>,
    trainer: &mut Trainer<'_, B>,
    log: &mut MetricsLog,
    state: &mut State,
    observe: &mut impl FnMut(Event<'_>) -> Result<()>,
) -> Result<()> {
    observe(Event::Save)?;
    log.sync()?;
    share_bad(job)?;
    trainer.collect_momentum()?;
    if !job.ranks.is_first() {
        return Ok(());
    }
    quarantine(&job.out, &[&job.train, &job.val])?;
    checkpoint::save(backend, &job.out, &trainer.model, trainer.momentum(), state)?;
    checkpoint::prune(&job.out, job.keep, state)
}

/// Tells rank 0 which images the others could not read.
fn share_bad(job: &Job<'_>) -> Result<()> {
    if job.ranks.count() == 1 {
        return Ok(());
    }
    let sets = [&job.train, &job.val];
    let own = serde_json::to_vec(&sets.map(|set| set.bad_indices())).expect("plain data");
    for (rank, bytes) in job.ranks.all_gather(own)?.iter().enumerate().skip(1) {
        let met: [Vec<(usize, String)>; 2] = serde_json::from_slice(bytes)
            .map_err(|error| Error::Ranks(format!("bad images of rank {rank}: {error}")))?;
        for (set, met) in sets.iter().zip(met).filter(|_| job.ranks.is_first()) {
            set.note_bad(met)?;
        }
    }
    Ok(())
}

/// Evaluates with the centre crop.
fn validate<B: Backend>(
    backend: &B,
    job: &Job<'_>,
    model: &Model<B>,
    classifier: &mut Option<Classifier<B>>,
    confusion: &mut Confusion,
    observe: &mut impl FnMut(Event<'_>) -> Result<()>,
) -> Result<Option<Evaluation>> {
    let Model { network, params, .. } = model;
    let images = job.val.clone();
    let lent = classifier.take().expect("given back by the validation before");
    let mut members = [Member { network, params, classifier: lent, images }];
    let (mut done, all) = (0, job.val.len());
    let mut failed = None;
    let progress = |images| {
        done += images;
        if let Err(error) = observe(Event::Validation(done, all)) {
            failed = Some(error);
        }
    };
    let each = |class, predicted| confusion.add(class, predicted);
    let result =
        evaluate_each(backend, &mut members, job.workers, &job.ranks, job.stop, progress, each)?;
    let [Member { classifier: lent, .. }] = members;
    *classifier = Some(lent);
    failed.map_or(Ok(result), Err)
}
