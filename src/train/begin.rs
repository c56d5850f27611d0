//! Where a run of training begins: at random weights, at those of another checkpoint, or where the run was
//! interrupted.

use std::fmt::Display;
use std::path::Path;
use std::sync::atomic::Ordering;

use serde::Serialize;

use super::checkpoint::{self, Newest, Resumed, State};
use super::job::{Event, Job};
use super::memory::with_memory_hint;
use crate::backend::Backend;
use crate::model::{Architecture, Model, Network, Params, Preprocess};
use crate::ranks::agreement::{self, difference, value};
use crate::{Error, Result};
use zfnet_core::Recipe;

/// The run's last checkpoint, if it is to be resumed and has one, or a fresh start. `notes` is for what
/// the user should know of it. `None` if it was stopped.
pub(super) fn begin<B: Backend>(
    backend: &B,
    job: &Job<'_>,
    network: Network,
    notes: &mut Vec<String>,
    observe: &mut impl FnMut(Event<'_>) -> Result<()>,
) -> Result<Option<Resumed<B>>> {
    must_agree(backend, job, &network)?;
    let mut begun = None;
    if job.ranks.is_first() {
        begun = last_checkpoint(backend, job, &network, notes)?;
        if begun.is_none() {
            begun = start(backend, job, &network, notes, observe)
                .map_err(|error| with_memory_hint(backend, &network, &job.division(), error))?;
        }
    }
    checkpoint::share(backend, &job.ranks, begun)
}

/// All ranks must do the same, by the same program, in the same way: what makes bits, or decides how often they meet.
fn must_agree<B: Backend>(backend: &B, job: &Job<'_>, network: &Network) -> Result<()> {
    let ranks = &job.ranks;
    if ranks.count() == 1 {
        return Ok(());
    }
    if !job.resume {
        job.division().check()?; // before long work
    }
    let architecture = &network.architecture;
    let without_recipe = Architecture { recipe: Recipe::default(), ..architecture.clone() };
    let own = [
        ("device", value(&backend.id())),
        ("network", value(&without_recipe)),
        ("recipe", value(&architecture.recipe)),
        ("seed", value(&job.seed)),
        ("number of parts of a batch", value(&job.accumulate)),
        ("shuffle window", value(&job.shuffle_window)),
        ("set of training images", value(&data_of(job))),
        ("set of validation images", value(&job.val.fingerprint())),
        ("set of classes", value(&(job.classes.folders(), &job.classes.names))),
        ("number of steps", value(&job.max_steps)),
        ("number of steps between checkpoints", value(&job.save_steps)),
        ("choice of what is watched", value(&job.watch)),
    ];
    agreement::must_agree(ranks, own)
}

/// A fresh start: the mean image, and weights drawn or taken from another checkpoint. `None` if it
/// was stopped.
fn start<B: Backend>(
    backend: &B,
    job: &Job<'_>,
    network: &Network,
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
    let mut preprocess = input.preprocess(mean);
    let mut params = Params::init(backend, network, job.seed)?;
    if let Some((path, bare)) = &job.init {
        notes.push(format!(
            "begins with the weights of {}, without its momentum; epochs and learning rate begin anew",
            path.display()
        ));
        let from = checkpoint::load_model(backend, path, bare)?;
        copy_fitting(network, &mut params, from, &mut preprocess, notes, path)?;
    }
    let momentum = Params::zeros(backend, network)?;
    let recipe = network.architecture.recipe.clone();
    let data = data_of(job);
    let mut state = State::new(recipe, job.seed, job.division().parts, backend.id(), data);
    state.shuffle_window = job.shuffle_window;
    state.val = Some(job.val.fingerprint());
    let model =
        Model { network: network.clone(), params, preprocess, classes: job.classes.clone() };
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
    let initial = from.params.initial;
    let places = params.layers.iter_mut().zip(&mut params.initial);
    for (layer, (param, own_initial)) in network.layers.iter().zip(places) {
        let Some(param) = param else { continue };
        let fitting = from.network.layer(&layer.name).ok().and_then(|i| {
            let fits = old[i].as_ref().is_some_and(|o| o.weight.shape() == param.weight.shape());
            if fits { Some((old[i].take()?, initial[i])) } else { None }
        });
        match fitting {
            Some((fitting, initial)) => {
                (*param, *own_initial) = (fitting, initial);
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
    if from.preprocess.channels() != preprocess.channels() {
        notes.push("it sees other channels, so the data's own mean is used".into());
    } else if same_size || !from.preprocess.mean_is_image() {
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
    if job.resume {
        checkpoint::remove_leftovers(&job.out)?; // which may be what fills the disk
    }
    if !job.resume {
        return match checkpoint::exists(&job.out)? {
            false => Ok(None),
            true => Err(Error::RunExists { path: job.out.clone() }),
        };
    }
    let newest = checkpoint::newest(&job.out, |folder| checkpoint::load(backend, folder))?;
    let Some(Newest { folder, read: mut resumed, damage }) = newest else {
        notes.push(format!("{} has no checkpoint yet: starting", job.out.display()));
        return Ok(None);
    };
    if let Some(error) = damage {
        notes.push(format!("fell back to {}: {error:#}", folder.display()));
    }
    check_resume(backend, job, network, &mut resumed, &folder, notes)?;
    checkpoint::relink(&job.out, &resumed.state);
    Ok(Some(resumed))
}

/// The settings that differ, each with its two values.
fn settings(then: &impl Serialize, now: &impl Serialize) -> String {
    difference(&value(then), &value(now), ["then", "now"])
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
fn check_resume<B: Backend>(
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
    let differs = |what, difference: String| {
        Err(Error::ResumeMismatch { path: folder.into(), what, difference })
    };
    let values = |then: &dyn Display, now: &dyn Display| format!("{then} then, {now} now");
    if let Some(difference) = model.classes.difference(&job.classes) {
        return differs("set of classes", difference);
    }
    let then_but_recipe = Architecture { recipe: now.recipe.clone(), ..then.clone() };
    if then_but_recipe != now {
        let (before, after) = (then.layers.len(), now.layers.len());
        let layers = then.layers.iter().zip(&now.layers);
        let layer = layers.zip(1..).find(|((then, now), _)| then != now);
        return match layer {
            Some(((then, now), number)) => {
                differs("network", format!("in layer {number} {}", settings(then, now)))
            }
            None if before != after => differs("network", values(&before, &after) + " layers"),
            None => differs("network", settings(&then_but_recipe, &now)),
        };
    }
    if then.recipe != now.recipe {
        return differs("recipe", settings(&then.recipe, &now.recipe));
    }
    model.classes = job.classes.clone(); // readable names may have been added since
    if state.seed != job.seed {
        return differs("seed", values(&state.seed, &job.seed));
    }
    if let Some(accumulate) = job.accumulate.filter(|accumulate| *accumulate != state.accumulate) {
        return differs("number of parts of a batch", values(&state.accumulate, &accumulate));
    }
    if state.accumulate > 1 && state.accumulate.is_power_of_two() && !state.tree {
        notes.push(
            "begun by an earlier version: gradients of a batch's parts are added one after the other, as they were, and \
             not along a tree; only one rank can do that"
                .into(),
        );
    }
    if state.shuffle_window != job.shuffle_window {
        let window =
            |window: Option<usize>| window.map_or("none".into(), |images| images.to_string());
        let (then, now) = (window(state.shuffle_window), window(job.shuffle_window));
        return differs("shuffle window", values(&then, &now));
    }
    if state.data != data_of(job) {
        return differs("set of training images", values(&state.data, &data_of(job)));
    }
    let val = job.val.fingerprint();
    if let (Some(then), Some((best, step))) = (&state.val, state.best)
        && *then != val
    {
        notes.push(format!(
            "other validation images than before ({then} then, {val} now): the best error so far, {:.2} % at step \
             {step}, is of those, and the best checkpoint stays that one until an error is lower",
            100.0 * best
        ));
    }
    state.val = Some(val);
    let (then, now) = (&state.backend, backend.id());
    if !then.computes_as(&now) {
        notes.push(format!("begun on {then}, continued on {now}: not bit for bit"));
    }
    Ok(())
}
