//! Training: the recipe, the loop, what it keeps on disk and what it says.

pub mod checkpoint;
mod dry_run;
pub mod evaluate;
pub mod log;
mod schedule;
mod trainer;

pub use dry_run::{Needs, dry_run};
pub use schedule::Schedule;
pub use trainer::{Event, Finished, Job, Outcome, Trainer, train};
pub use zfnet_core::{Crops, Init, Recipe, ScheduleKind};
