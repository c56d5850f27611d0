//! The checksum of an image in a shard.

/// The CRC-32C of an image's bytes.
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// Whether an image's bytes are those that were packed.
pub(crate) fn check_crc32c(bytes: &[u8], expected: u32) -> Result<(), String> {
    let found = crc32c(bytes);
    if found == expected {
        Ok(())
    } else {
        Err(format!("damaged: expected CRC-32C {expected:08x}, found {found:08x}"))
    }
}
