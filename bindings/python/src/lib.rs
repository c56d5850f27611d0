//! The Python package's compiled part: networks, training and pages as Python's objects. What is a convenience (Pillow,
//! tqdm, frames for notebooks) is in `python/zfnet`, which is what users import.
//!
//! Python's lock is given back while anything is computed. A process that was forked has none of its parent's threads:
//! there, one thread of a new backend goes on with the same weights ([`device`]).

mod device;
mod errors;
mod image;
mod log;
mod network;
mod torch;
mod work;

use std::ffi::OsString;

use pyo3::prelude::*;

/// See the package `zfnet`.
#[pymodule]
mod _zfnet {
    use super::*;

    #[pymodule_export]
    use super::errors::Error;
    #[pymodule_export]
    use super::network::{Network, load};
    #[pymodule_export]
    use super::torch::from_chain;
    #[pymodule_export]
    use super::work::{top9, train};

    /// Runs the program `zfnet` with these arguments, its name first, and gives its exit code.
    #[pyfunction]
    fn main(py: Python<'_>, args: Vec<OsString>) -> PyResult<u8> {
        py.detach(|| errors::caught(|| zfnet::cli::main(args).0))
    }

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        device::remember_process();
        zfnet::cli::python::begin();
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
