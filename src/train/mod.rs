//! Training: the recipe, the loop, what it keeps on disk and what it says.

pub mod alarm;
mod begin;
pub mod checkpoint;
mod confusion;
mod dry_run;
pub(crate) mod duplicates;
pub mod evaluate;
mod exchange;
mod gradients;
mod job;
pub mod log;
mod memory;
mod run;
mod schedule;
mod trainer;
mod watcher;

pub use dry_run::{Needs, dry_run};
pub use exchange::{Exchange, HostExchange, Slices};
#[cfg(feature = "cuda")]
pub(crate) use gradients::tree_additions;
pub use job::{Event, Job, Outcome};
pub use run::train;
pub use schedule::Schedule;
pub use trainer::{Division, Finished, Trainer};
pub use watcher::{LayerOfEpoch, USUAL_UPDATES, WatchState};
pub use zfnet_core::{Crops, Init, Recipe, ScheduleKind};
