//! Training: the recipe, the loop, what it keeps on disk and what it says.

pub mod checkpoint;
mod dry_run;
pub mod evaluate;
pub mod log;
mod recipe;
mod schedule;
mod trainer;

pub use dry_run::{Needs, dry_run};
pub use recipe::{Crops, Init, Recipe, ScheduleKind};
pub use schedule::Schedule;
pub use trainer::{Event, Finished, Job, Outcome, Trainer, train};
