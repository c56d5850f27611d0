//! Projecting single activations down to pixels: section 2.1 of the paper.
//!
//! Take one unit's activation, set all others of its layer to zero, and run backward by a [`Rule`].
//! Many units, of the same or of different images, share one forward pass.

use std::sync::Arc;

use super::input::InputStage;
use super::{
    BackwardOptions, BackwardTo, Model, Network, Params, Preprocess, Purpose, Rule, Workspace,
};
use crate::backend::{Backend, Crop, Peak, SeedUnit};
use crate::{Error, Result};

/// One unit to be projected.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Seed {
    /// Index of the image among those of the forward pass.
    pub image: u32,
    /// Map, row, column and activation.
    pub unit: SeedUnit,
}

/// A network and its weights, its caller's or held together with others.
enum Held<'a, B: Backend> {
    Borrowed(&'a Network, &'a Params<B>),
    Shared(Arc<Model<B>>),
}

impl<B: Backend> Held<'_, B> {
    fn parts(&self) -> (&Network, &Params<B>) {
        match self {
            Held::Borrowed(network, params) => (network, params),
            Held::Shared(model) => (&model.network, &model.params),
        }
    }
}

/// A network with all that it takes to look at images and project what fires.
pub struct Projector<'a, B: Backend> {
    backend: &'a B,
    model: Held<'a, B>,
    stage: InputStage<B>,
    /// Holds every activation after [`Projector::look`].
    pub workspace: Workspace<B>,
    images: B::Indices,
    seeds: usize,
    host: Vec<f32>,
}

impl<'a, B: Backend> Projector<'a, B> {
    /// Memory for `images` images at a time and `seeds` projections at a time.
    ///
    /// # Errors
    /// If the backend is out of memory.
    pub fn new(
        backend: &'a B,
        network: &'a Network,
        params: &'a Params<B>,
        preprocess: &Preprocess,
        images: usize,
        seeds: usize,
    ) -> Result<Self> {
        let held = Held::Borrowed(network, params);
        Self::with(backend, held, preprocess, images, seeds)
    }

    /// The same, which keeps the model as long as it lives itself.
    ///
    /// # Errors
    /// If the backend is out of memory.
    pub fn shared(
        backend: &'a B,
        model: Arc<Model<B>>,
        images: usize,
        seeds: usize,
    ) -> Result<Self> {
        Self::with(backend, Held::Shared(model.clone()), &model.preprocess, images, seeds)
    }

    fn with(
        backend: &'a B,
        model: Held<'a, B>,
        preprocess: &Preprocess,
        images: usize,
        seeds: usize,
    ) -> Result<Self> {
        let (network, _) = model.parts();
        Ok(Projector {
            backend,
            stage: InputStage::new(backend, preprocess, images, images)?,
            workspace: Workspace::new(backend, network, Purpose::Project { seeds }, images)?,
            images: backend.indices(seeds)?,
            seeds,
            host: vec![0.0; seeds * network.input().len()],
            model,
        })
    }

    /// Runs forward on crops of preprocessed images: `pixels` is u8 `[images, rows, columns, 3]`,
    /// and a crop's `image` counts in it.
    ///
    /// # Errors
    /// If a backend operation fails.
    pub fn look(&mut self, pixels: &[u8], crops: &[Crop]) -> Result<()> {
        self.stage.fill(self.backend, &mut self.workspace.input, pixels, crops)?;
        let (_, params) = self.model.parts();
        self.workspace.forward(self.backend, params)
    }

    /// The strongest unit of every map of a layer in every image, `[image * maps + map]`.
    ///
    /// # Errors
    /// If a backend operation fails.
    pub fn peaks(&self, layer: usize) -> Result<Vec<Peak>> {
        let output = self.workspace.output(layer);
        let count = output.shape().n * output.shape().c;
        let mut peaks = vec![Peak { value: 0.0, position: 0 }; count];
        self.backend.channel_max(&mut peaks, output)?;
        Ok(peaks)
    }

    /// Takes a gradient by the logits, which the workspace's signal holds, down to a layer's output, where the
    /// signal then is.
    ///
    /// # Errors
    /// If a backend operation fails.
    pub fn gradient_at(&mut self, layer: usize) -> Result<()> {
        let (network, params) = self.model.parts();
        let options = BackwardOptions {
            from: network.layers.len() - 1,
            rule: Rule::GRADIENT,
            images: None,
            gradients: None,
            accumulate: false,
            to: BackwardTo::Output(layer),
        };
        self.workspace.backward(self.backend, params, options)
    }

    /// Projects units of a layer and hands each projection (`[rows, columns, channels]`, RGB or
    /// whatever the network sees) to `each` with the index of its seed. A seed's value is its unit's
    /// activation; the rule decides whether the pass starts with it or with 1.
    ///
    /// # Errors
    /// If a unit's activation is not positive (nothing fired), or a backend operation fails.
    pub fn project(
        &mut self,
        layer: usize,
        seeds: &[Seed],
        rule: Rule,
        mut each: impl FnMut(usize, &[f32]) -> Result<()>,
    ) -> Result<()> {
        let (network, params) = self.model.parts();
        if let Some(seed) =
            seeds.iter().find(|seed| seed.unit.value.is_nan() || seed.unit.value <= 0.0)
        {
            return Err(Error::Network(format!(
                "{}:{} at ({}, {}) did not fire (activation {}): there is nothing to project",
                network.layers[layer].name,
                seed.unit.map,
                seed.unit.y,
                seed.unit.x,
                seed.unit.value
            )));
        }
        let backend = self.backend;
        let per_image = network.input().len();
        for (batch, seeds) in seeds.chunks(self.seeds).enumerate() {
            let units: Vec<SeedUnit> = seeds
                .iter()
                .map(|seed| SeedUnit { value: rule.seed_value(seed.unit.value), ..seed.unit })
                .collect();
            let images: Vec<u32> = seeds.iter().map(|seed| seed.image).collect();
            backend.upload_indices(&mut self.images, &images)?;
            let images = &self.images;
            let host = &mut self.host[..seeds.len() * per_image];
            self.workspace.project(backend, params, layer, rule, images, &units, host)?;
            for (i, projection) in host.chunks_exact(per_image).enumerate() {
                each(batch * self.seeds + i, projection)?;
            }
        }
        Ok(())
    }
}

/// The `count` strongest units among one image's peaks of a layer whose maps are `width` wide,
/// strongest first, the lower map of equals; only those that fired.
pub fn strongest(peaks: &[Peak], width: usize, count: usize) -> Vec<SeedUnit> {
    let mut units: Vec<SeedUnit> = peaks
        .iter()
        .enumerate()
        .filter(|(_, peak)| peak.value > 0.0)
        .map(|(map, peak)| peak.unit(map, width))
        .collect();
    units.sort_by(|a, b| b.value.total_cmp(&a.value).then(a.map.cmp(&b.map)));
    units.truncate(count);
    units
}
