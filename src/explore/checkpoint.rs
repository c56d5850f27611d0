//! A checkpoint as it was named, which stands for other weights when its run goes on.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::Serialize;

use crate::Result;
use crate::study::diagnose::{Epoch, Followed, Told};
use crate::train::checkpoint::{State, newest, read_state, states};

/// A training that has written nothing for so long is not at work.
const SILENT: Duration = Duration::from_secs(120);

/// A file, a checkpoint of a run, or a run.
#[derive(Clone)]
pub struct Checkpoint {
    /// As it was named.
    path: PathBuf,
    /// The run's folder, if it is of one.
    run: Option<PathBuf>,
    follows: Follows,
    /// What the run has written down.
    followed: Arc<Mutex<Followed>>,
}

/// Which checkpoint of its run it is.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Follows {
    /// Always the same.
    None,
    /// The newest.
    Newest,
    /// The best.
    Best,
    /// The newest until the run has ended, then the best.
    Run,
}

/// Which weights a checkpoint stands for at a moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Now {
    /// What to read.
    pub path: PathBuf,
    /// Another one for other weights.
    pub version: String,
}

/// What a run shows of its training, for the page.
#[derive(Debug, Default, Serialize)]
pub(super) struct Status {
    version: String,
    training: bool,
    /// Updates and epochs behind the weights that are shown.
    step: Option<u32>,
    epoch: Option<u32>,
    /// Epochs that the recipe has.
    epochs: Option<u32>,
    /// The checkpoints that are there.
    steps: Vec<Step>,
    curve: Vec<Epoch>,
    losses: Vec<(u32, f64)>,
    alarms: Vec<Alarm>,
}

#[derive(Debug, Serialize)]
struct Step {
    step: u32,
    epoch: u32,
}

#[derive(Debug, Serialize)]
struct Alarm {
    step: u32,
    epoch: u32,
    name: String,
    text: String,
}

impl Checkpoint {
    /// One that is named by `path`: `run` is the folder of the run that it is of.
    pub fn new(path: &Path, run: Option<&Path>) -> Self {
        let follows = match (run, path.file_name().and_then(|name| name.to_str())) {
            (Some(run), _) if run == path => Follows::Run,
            (Some(_), Some("last")) => Follows::Newest,
            (Some(_), Some("best")) => Follows::Best,
            _ => Follows::None,
        };
        Checkpoint {
            path: path.into(),
            run: run.map(Into::into),
            follows,
            followed: Arc::default(),
        }
    }

    /// The state of its run's newest checkpoint, and its folder.
    fn newest(&self) -> Option<(PathBuf, State)> {
        let found = newest(self.run.as_deref()?, read_state).ok()??;
        Some((found.folder, found.read))
    }

    /// Which weights it stands for now.
    pub(super) fn now(&self) -> Now {
        let newest = (self.follows != Follows::None).then(|| self.newest()).flatten();
        let Some((folder, state)) = newest else {
            return Now { path: self.path.clone(), version: String::new() };
        };
        let is_best = match self.follows {
            Follows::Run => has_ended(&state),
            follows => follows == Follows::Best,
        };
        match state.best.filter(|_| is_best) {
            Some((_, best)) => Now { path: self.path.clone(), version: format!("step-{best}") },
            None => Now { path: folder, version: format!("step-{}", state.step) },
        }
    }

    /// The run's checkpoint after so many updates, if it is there.
    pub(super) fn at(&self, step: u32) -> Option<Now> {
        let version = format!("step-{step}");
        let path = self.run.as_ref()?.join(&version);
        path.is_dir().then_some(Now { path, version })
    }

    /// How far its run is.
    ///
    /// # Errors
    /// If the run's folder cannot be read.
    pub(super) fn status(&self) -> Result<Status> {
        let now = self.now();
        let version = now.version;
        let Some(run) = &self.run else { return Ok(Status { version, ..Status::default() }) };
        let mut kept = states(run)?;
        kept.reverse();
        let steps = kept.iter().map(|(state, _)| Step { step: state.step, epoch: state.epoch });
        let mut states = kept.iter().map(|(state, _)| state);
        let own = read_state(&self.path).ok().map(|state| state.step);
        let shown = states.rfind(|state| match self.follows {
            Follows::None => own == Some(state.step),
            _ => version == format!("step-{}", state.step),
        });
        let newest = kept.last().map(|(state, _)| state);
        // Before its first epoch has ended a run may have written nothing else yet.
        let followed = self.followed.lock();
        let record = followed.expect("no panic while it is held").record(run).unwrap_or_default();
        let written = fs::metadata(run.join("metrics.jsonl")).and_then(|file| file.modified());
        let is_recent = written.is_ok_and(|time| time.elapsed().is_ok_and(|since| since < SILENT));
        let alarm = |told: &Told| {
            let Told { step, epoch, name, seen, cause, remedy } = told;
            let text = format!("{seen}. Likely: {cause}. Try {remedy}.");
            Alarm { step: *step, epoch: *epoch, name: name.clone(), text }
        };
        Ok(Status {
            training: is_recent && newest.is_none_or(|state| !has_ended(state)),
            step: shown.map(|state| state.step),
            epoch: shown.map(|state| state.epoch),
            epochs: newest.map(|state| state.recipe.epochs),
            steps: steps.collect(),
            curve: record.epochs,
            losses: record.losses.iter().map(|at| (at.step, at.loss)).collect(),
            alarms: record.alarms.iter().map(alarm).collect(),
            version,
        })
    }
}

fn has_ended(state: &State) -> bool {
    state.epoch >= state.recipe.epochs
}
