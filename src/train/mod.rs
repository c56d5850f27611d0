//! Training: the recipe, the loop, what it keeps on disk and what it says.

pub mod checkpoint;
pub mod evaluate;
pub mod log;
mod recipe;
mod schedule;
mod trainer;

pub use recipe::{Crops, Init, Recipe, ScheduleKind};
pub use schedule::Schedule;
pub use trainer::{Event, Job, Outcome, Trainer, train};
