//! Sets of shards: files of about a gigabyte that hold many images, to be mapped and streamed.

pub mod bytes;
pub mod index;
pub mod manifest;
pub mod set;
#[cfg(unix)]
mod sigbus;

pub use bytes::Io;
pub use set::{ShardSet, Shards};

/// The CRC-32C of an image's bytes.
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) as u32
}
