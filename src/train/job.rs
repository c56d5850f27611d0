//! What a run of training is made of, what it tells while it runs, and how it ended.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use super::alarm::Alarm;
use super::checkpoint::State;
use super::evaluate::Evaluation;
use super::log::Metric;
use super::trainer::Division;
use crate::data::classes::Classes;
use crate::data::images::Images;
use crate::import::ExternalConfig;
use crate::model::{Architecture, Network};
use crate::ranks::Ranks;

/// What to train, on what, and where to.
pub struct Job<'a> {
    /// The network, with the recipe to train it by; its number of classes is the data's.
    pub architecture: Architecture,
    /// Training images, resized to `architecture.input.resize`.
    pub train: Arc<Images>,
    /// Validation images, of the same size.
    pub val: Arc<Images>,
    /// The classes.
    pub classes: Classes,
    /// The run's folder.
    pub out: PathBuf,
    /// Seed of initialisation, order, crops and dropout.
    pub seed: u64,
    /// Shuffle only so many neighbouring images of shards at a time: see
    /// [`epoch_order`](crate::data::order::epoch_order).
    pub shuffle_window: Option<usize>,
    /// Parts of a batch, whose gradients are added up; what is resumed has its own, and otherwise it is one for each rank.
    pub accumulate: Option<usize>,
    /// Stop after so many updates in all.
    pub max_steps: Option<u32>,
    /// Go on from the run's last checkpoint, if it has one.
    pub resume: bool,
    /// Start with the weights of this checkpoint instead of random ones.
    pub init: Option<(PathBuf, ExternalConfig)>,
    /// Save a checkpoint after so many steps, besides at the end of each epoch.
    pub save_steps: Option<u32>,
    /// Save a checkpoint when the last one is so old.
    pub save_interval: Duration,
    /// Checkpoints that are kept, besides the best.
    pub keep: usize,
    /// Look for signs that something is wrong, and write down what each layer shows.
    pub watch: bool,
    /// Threads that decode.
    pub workers: usize,
    /// Those who train it together. All have the same job; rank 0 alone writes, and observes.
    pub ranks: Ranks,
    /// Becomes non-zero when the run is to save and stop.
    pub stop: &'a AtomicUsize,
}

impl Job<'_> {
    /// How a run that begins divides its batches.
    pub(super) fn division(&self) -> Division {
        let parts = self.accumulate.unwrap_or(self.ranks.count());
        Division { parts, tree: parts.is_power_of_two(), ranks: self.ranks.clone() }
    }
}

/// What happens while a network is trained, for whoever shows it.
#[non_exhaustive]
pub enum Event<'a> {
    /// The mean image is being worked out: images done, of how many.
    Mean(usize, usize),
    /// The splits are being compared, for images that both have: images done, of how many.
    Compare(usize, usize),
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
    /// A line has been added to `metrics.jsonl`.
    Metric(&'a Metric),
    /// A checkpoint is about to be written; who writes of the steps before it does so before it.
    Save,
    /// Validation images done, of how many.
    Validation(usize, usize),
    /// Something seems to be wrong. Each sign is told once in a run; a loss that is not finite whenever it ends one.
    Alarm(&'a Alarm),
    /// An epoch is over and its checkpoint written.
    Epoch {
        /// Where training stands.
        state: &'a State,
        /// Mean training loss.
        train_loss: f64,
        /// On the validation set, centre crop.
        validation: &'a Evaluation,
        /// Its learning rate.
        learning_rate: f32,
        /// The next epoch's.
        next_learning_rate: f32,
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
