//! The first step of a network on a backend: preprocessed images become its input.

use crate::Result;
use crate::backend::{Backend, Crop, InputDims, Tensor};
use crate::shape::Shape;
use zfnet_core::{Canvas, Preprocess};

/// The first step of a network on a backend: what turns pixels into its input.
pub struct Normaliser<B: Backend> {
    dims: InputDims,
    mean: Tensor<B>,
    inverse_std: Tensor<B>,
}

impl<B: Backend> Normaliser<B> {
    /// Puts the mean and the standard deviations where the backend reads them.
    ///
    /// # Errors
    /// If the backend is out of memory.
    pub fn new(backend: &B, preprocess: &Preprocess) -> Result<Self> {
        let (channels, Canvas { rows, columns, .. }) = (preprocess.channels(), preprocess.resize);
        let mean_shape = match preprocess.mean_is_image() {
            true => Shape::new(1, rows, columns, channels),
            false => Shape::vector(channels),
        };
        let mut mean = backend.zeros(mean_shape)?;
        backend.upload(&mut mean, &preprocess.mean)?;
        let mut inverse_std = backend.zeros(Shape::vector(channels))?;
        let inverses: Vec<f32> = preprocess.std.iter().map(|std| 1.0 / std).collect();
        backend.upload(&mut inverse_std, &inverses)?;
        let dims = InputDims {
            rows: rows as u32,
            columns: columns as u32,
            scale: preprocess.scale,
            order: preprocess.order,
        };
        Ok(Normaliser { dims, mean, inverse_std })
    }

    /// Makes the network's input `x` of uploaded images, one sample for each of its crops.
    ///
    /// # Errors
    /// If a backend operation fails.
    pub fn fill(
        &self,
        backend: &B,
        x: &mut Tensor<B>,
        pixels: &B::Bytes,
        crops: &B::Crops,
    ) -> Result<()> {
        backend.input(x, pixels, crops, &self.mean, &self.inverse_std, &self.dims)
    }
}

/// A [`Normaliser`] and memory for the pixels it reads.
pub struct InputStage<B: Backend> {
    normaliser: Normaliser<B>,
    pixels: B::Bytes,
    crops: B::Crops,
}

impl<B: Backend> InputStage<B> {
    /// Memory for `images` preprocessed images and `samples` crops of them.
    ///
    /// # Errors
    /// If the backend is out of memory.
    pub fn new(
        backend: &B,
        preprocess: &Preprocess,
        images: usize,
        samples: usize,
    ) -> Result<Self> {
        Ok(InputStage {
            normaliser: Normaliser::new(backend, preprocess)?,
            pixels: backend.bytes(images * preprocess.bytes())?,
            crops: backend.crops(samples)?,
        })
    }

    /// Makes the network's input `x` of the images in `pixels`, one sample for each crop.
    ///
    /// # Errors
    /// If a backend operation fails.
    pub fn fill(
        &mut self,
        backend: &B,
        x: &mut Tensor<B>,
        pixels: &[u8],
        crops: &[Crop],
    ) -> Result<()> {
        x.reshape(x.shape().with_n(crops.len()));
        backend.upload_bytes(&mut self.pixels, pixels)?;
        backend.upload_crops(&mut self.crops, crops)?;
        self.normaliser.fill(backend, x, &self.pixels, &self.crops)
    }
}
