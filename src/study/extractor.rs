//! What the layers of a network make of images: the forward pass that studies share.

use crate::Result;
use crate::backend::{Backend, Crop, Peak, Tensor};
use crate::model::{InputStage, Model, Purpose, Workspace};
use crate::shape::Shape;
use crate::train::evaluate::TestCrops;

/// Runs a network forward on batches of images, and gives what its layers made of the last one. Layers are
/// named by their indices; the output of one with weights is that after its relu.
pub struct FeatureExtractor<'a, B: Backend> {
    backend: &'a B,
    model: &'a Model<B>,
    stage: InputStage<B>,
    workspace: Workspace<B>,
}

impl<'a, B: Backend> FeatureExtractor<'a, B> {
    /// Memory for `batch` images at a time.
    ///
    /// # Errors
    /// If the backend is out of memory.
    pub fn new(backend: &'a B, model: &'a Model<B>, batch: usize) -> Result<Self> {
        Ok(FeatureExtractor {
            backend,
            model,
            stage: InputStage::new(backend, &model.preprocess, batch, batch)?,
            workspace: Workspace::new(backend, &model.network, Purpose::Infer, batch)?,
        })
    }

    /// Runs forward on the centre crops of preprocessed images, `[images, rows, columns, 3]`, at
    /// most as many as were planned for. How a sum is rounded may depend on their number: features
    /// that are compared must come from batches of one size.
    ///
    /// # Errors
    /// If a backend operation fails.
    pub fn forward(&mut self, pixels: &[u8]) -> Result<()> {
        let preprocess = &self.model.preprocess;
        let images = (pixels.len() / preprocess.bytes()) as u32;
        let crops: Vec<_> =
            (0..images).flat_map(|image| TestCrops::One.of(preprocess, image)).collect();
        self.forward_crops(pixels, &crops)
    }

    /// The same on these crops of the images; there may be several of one image. Neither images nor crops may
    /// be more than were planned for.
    ///
    /// # Errors
    /// If a backend operation fails.
    pub fn forward_crops(&mut self, pixels: &[u8], crops: &[Crop]) -> Result<()> {
        self.stage.fill(self.backend, &mut self.workspace.input, pixels, crops)?;
        self.workspace.forward(self.backend, &self.model.params)
    }

    /// A layer's output, `[images, rows, columns, maps]`.
    ///
    /// # Errors
    /// If a backend operation fails.
    pub fn output(&self, layer: usize) -> Result<Vec<f32>> {
        self.values(self.workspace.output(layer))
    }

    /// The same at the end of `values`.
    ///
    /// # Errors
    /// If a backend operation fails.
    pub fn append_output(&self, layer: usize, values: &mut Vec<f32>) -> Result<()> {
        let (output, from) = (self.workspace.output(layer), values.len());
        values.resize(from + output.shape().len(), 0.0);
        self.backend.download(&mut values[from..], output)
    }

    /// The logits, `[images, classes]`.
    ///
    /// # Errors
    /// If a backend operation fails.
    pub fn logits(&self) -> Result<Vec<f32>> {
        self.values(self.workspace.logits())
    }

    /// The sum of every map of a layer, `[images, maps]`.
    ///
    /// # Errors
    /// If a backend operation fails.
    pub fn sums(&self, layer: usize) -> Result<Vec<f32>> {
        let output = self.workspace.output(layer);
        let Shape { n, c, .. } = output.shape();
        let mut sums = vec![0.0; n * c];
        self.backend.channel_sum(&mut sums, output)?;
        Ok(sums)
    }

    /// The strongest value of every map of a layer, `[images, maps]`.
    ///
    /// # Errors
    /// If a backend operation fails.
    pub fn peaks(&self, layer: usize) -> Result<Vec<Peak>> {
        let output = self.workspace.output(layer);
        let Shape { n, c, .. } = output.shape();
        let mut peaks = vec![Peak { value: 0.0, position: 0 }; n * c];
        self.backend.channel_max(&mut peaks, output)?;
        Ok(peaks)
    }

    fn values(&self, tensor: &Tensor<B>) -> Result<Vec<f32>> {
        let mut values = vec![0.0; tensor.shape().len()];
        self.backend.download(&mut values, tensor)?;
        Ok(values)
    }
}
