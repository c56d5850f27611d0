//! Sets of shards: files of about a gigabyte that hold many images, to be mapped and streamed.

pub mod index;
pub mod manifest;
