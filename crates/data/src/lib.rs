//! From files on disk to batches of pixels: folders and shards, decoding, order, and the threads that
//! load.

mod checksum;
pub mod classes;
pub mod decode;
#[doc(hidden)] // ImageNet's own files; public for tests and fuzzing
pub mod devkit;
pub mod folder;
pub mod images;
pub mod loader;
mod open_files;
pub mod order;
pub mod pack;
pub mod set;
pub mod shard;
pub mod source;
pub mod synthetic;
#[doc(hidden)] // public for tests and fuzzing
pub mod tar;
pub mod verify;

/// A part of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// The images to learn from.
    Train,
    /// The images to measure on.
    Val,
}

impl Split {
    /// "train" or "val", as folders and shards are called.
    pub fn name(self) -> &'static str {
        match self {
            Split::Train => "train",
            Split::Val => "val",
        }
    }
}
