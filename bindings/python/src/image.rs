//! Images as Python has them, on the canvas that a network's crops are cut from.

use std::path::PathBuf;

use numpy::{PyReadonlyArray3, PyUntypedArrayMethods};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use zfnet::data::decode::{prepare, prepare_pixels};
use zfnet::data::images::read_rgb;
use zfnet::model::Canvas;

use crate::errors::{caught, of_library};

/// An image resized to a canvas: u8, `[rows, columns, 3]`.
pub struct Prepared {
    pub canvas: Vec<u8>,
    /// Width and height of the image.
    pub size: [usize; 2],
}

/// Prepares what `zfnet._image` makes of an image: the path of a file, or pixels, u8 `[rows, columns, 3]` in C's order.
/// Pixels are read where they lie, so Python's lock is held that long.
pub fn prepared(py: Python<'_>, image: &Bound<'_, PyAny>, canvas: Canvas) -> PyResult<Prepared> {
    let mut out = vec![0; canvas.bytes()];
    if let Ok(pixels) = image.extract::<PyReadonlyArray3<'_, u8>>() {
        let &[rows, columns, 3] = pixels.shape() else {
            return Err(PyTypeError::new_err("expected pixels of three values"));
        };
        let size = [columns, rows];
        caught(|| prepare_pixels(size, pixels.as_slice().unwrap_or(&[]), canvas, &mut out))?;
        return Ok(Prepared { canvas: out, size });
    }
    let path: PathBuf = image.extract()?;
    let read = py.detach(|| {
        caught(|| {
            let image = read_rgb(&path)?;
            prepare(&image, canvas, &mut out);
            Ok([image.width, image.height])
        })
    })?;
    let size = read.map_err(|error| of_library(py, error, &[]))?;
    Ok(Prepared { canvas: out, size })
}
