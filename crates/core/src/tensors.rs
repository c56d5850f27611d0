//! Safetensors files, checked as they are opened.

use safetensors::SafeTensors;

use crate::{Error, Result};

/// Checks and opens the bytes of a safetensors file.
///
/// # Errors
/// If they are none.
pub fn deserialize(bytes: &[u8]) -> Result<SafeTensors<'_>> {
    SafeTensors::deserialize(bytes).map_err(unreadable)
}

/// Says that bytes are no safetensors file.
pub fn unreadable(error: safetensors::SafeTensorError) -> Error {
    Error::NotSafetensors(error.into())
}
