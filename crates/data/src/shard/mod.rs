//! Sets of shards: files of about a gigabyte that hold many images, to be mapped and streamed.

pub mod bytes;
pub mod index;
pub mod manifest;
pub mod set;
#[cfg(unix)]
mod sigbus;

pub use bytes::Io;
pub use set::{ShardSet, Shards};
