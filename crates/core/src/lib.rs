//! What every crate of `zfnet` agrees on: errors, the arithmetic of sizes, what operations take beside
//! tensors, and a network's recipe and preprocessing as plain data. A part of `zfnet`: use that crate.

mod canvas;
pub mod disk;
mod error;
pub mod memory;
pub mod operation;
pub mod philox;
mod preprocess;
mod recipe;
pub mod shape;
pub mod tensors;
pub mod text;

pub use canvas::{Canvas, Fit, Interpolation, MAX_CANVAS, size, size_text};
pub use error::{BoxError, Error, Result, human_bytes};
pub use preprocess::Preprocess;
pub use recipe::{Crops, Init, Recipe, ScheduleKind};
