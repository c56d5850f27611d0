//! Sets of shards: files of about a gigabyte that hold many images, to be mapped and streamed.

pub(crate) mod bytes;
#[doc(hidden)] // public for tests, benches and fuzzing
pub mod index;
pub mod manifest;
pub(crate) mod set;
#[cfg(unix)]
mod sigbus;

pub use bytes::Io;
pub use set::{ShardSet, Shards};
