//! A checkpoint as it was named, which stands for other weights when its run goes on.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use serde::Serialize;

use crate::Result;
use crate::disk::is_locked;
use crate::study::diagnose::{Epoch, Followed, Told};
use crate::train::checkpoint::{MODEL, State, folder_of, newest, read_state, states};

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
#[derive(Clone, Copy, PartialEq)]
enum Follows {
    /// Always the same.
    None,
    /// The newest.
    Newest,
    /// The best.
    Best,
    /// The newest while the run is trained, else the best.
    Run,
}

/// Which weights a checkpoint stands for at a moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Now {
    /// What to read.
    pub path: PathBuf,
    /// Another one for other weights; none where they never change.
    pub version: Option<u64>,
}

/// What a run shows of its training, for the page.
#[derive(Debug, Default, Serialize)]
pub(super) struct Status {
    version: String,
    training: bool,
    /// Which of the run's weights are shown: the newest, the best, or always the same.
    follows: &'static str,
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
        let (path, run) = (path.into(), run.map(Into::into));
        Checkpoint { path, run, follows, followed: Arc::default() }
    }

    /// The same with the weights that it stands for now, whatever becomes of its run.
    pub fn fixed(self) -> Self {
        Checkpoint { path: self.now().path, follows: Follows::None, ..self }
    }

    /// As it was named, which is read with what a damaged checkpoint falls back to.
    pub(super) fn named(&self) -> &Path {
        &self.path
    }

    /// Whether its run is being trained.
    pub(super) fn is_in_training(&self) -> bool {
        self.run.as_deref().is_some_and(is_locked)
    }

    /// The folder and state of the checkpoint that it stands for now, if that may change.
    fn standing(&self) -> Option<(PathBuf, State)> {
        let run = self.run.as_deref().filter(|_| self.follows != Follows::None)?;
        let newest = newest(run, read_state).ok()??;
        let is_best = match self.follows {
            Follows::Run => !is_locked(run),
            follows => follows == Follows::Best,
        };
        let best = newest.read.best.filter(|_| is_best).and_then(|(_, step)| {
            let folder = folder_of(run, step)?;
            let state = read_state(&folder).ok()?;
            Some((folder, state))
        });
        Some(best.unwrap_or((newest.folder, newest.read)))
    }

    /// Which weights it stands for now.
    pub(super) fn now(&self) -> Now {
        match self.standing() {
            Some((path, state)) => Now { path, version: version(&state) },
            None => Now { path: self.path.clone(), version: None },
        }
    }

    /// The run's checkpoint after so many updates, if it is there.
    pub(super) fn at(&self, step: u32) -> Option<Now> {
        let path = folder_of(self.run.as_ref()?, step)?;
        let state = read_state(&path).ok()?;
        Some(Now { path, version: version(&state) })
    }

    /// How far its run is.
    ///
    /// # Errors
    /// If the run's folder cannot be read.
    pub(super) fn status(&self) -> Result<Status> {
        let standing = self.standing().map(|(_, state)| state);
        let text = |version: u64| format!("{version:016x}");
        let version = standing.as_ref().and_then(version).map(text).unwrap_or_default();
        let Some(run) = &self.run else { return Ok(Status { version, ..Status::default() }) };
        let shown = standing.or_else(|| read_state(&self.path).ok());
        let mut kept = states(run)?;
        kept.reverse();
        let steps = kept.iter().map(|(state, _)| Step { step: state.step, epoch: state.epoch });
        // Before its first epoch has ended a run may have written nothing else yet.
        let followed = self.followed.lock();
        let record = followed.expect("no panic while it is held").record(run).unwrap_or_default();
        let alarm = |told: &Told| {
            let Told { step, epoch, name, seen, cause, remedy } = told;
            let text = format!("{seen}. Likely: {cause}. Try {remedy}.");
            Alarm { step: *step, epoch: *epoch, name: name.clone(), text }
        };
        let training = is_locked(run);
        Ok(Status {
            training,
            follows: match self.follows {
                Follows::None => "none",
                Follows::Newest => "newest",
                Follows::Run if training => "newest",
                Follows::Best | Follows::Run => "best",
            },
            step: shown.as_ref().map(|state| state.step),
            epoch: shown.as_ref().map(|state| state.epoch),
            epochs: kept.last().map(|(state, _)| state.recipe.epochs),
            steps: steps.collect(),
            losses: record.losses.iter().map(|at| (at.step, at.loss)).collect(),
            alarms: record.alarms.iter().map(alarm).collect(),
            curve: record.epochs,
            version,
        })
    }
}

/// The checksum of its weights.
fn version(state: &State) -> Option<u64> {
    u64::from_str_radix(&state.files.get(MODEL)?.xxh3, 16).ok()
}
