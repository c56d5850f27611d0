//! Networks as files that other programs run.

mod onnx;
mod pytorch;

use std::path::Path;

use crate::{Error, Result};

pub use onnx::{MEAN_KEY, onnx};
pub use pytorch::pytorch;

/// What a network is written as, which the file's ending says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Format {
    /// ONNX.
    Onnx,
    /// A Python file, and weights as safetensors beside it.
    PyTorch,
}

impl Format {
    /// The format of a file of this name.
    ///
    /// # Errors
    /// If it is none.
    pub fn of(path: &Path) -> Result<Self> {
        match path.extension().and_then(|ending| ending.to_str()) {
            Some("onnx") => Ok(Format::Onnx),
            Some("py") => Ok(Format::PyTorch),
            _ => Err(Error::file(path, "expected a name that ends in .onnx or in .py (PyTorch)")),
        }
    }
}
