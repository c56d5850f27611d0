//! What projections by windows need beside whole maps: see `windows.rs`.

use super::plan::Block;
use super::rule::Rule;
use crate::Result;
use crate::backend::{Backend, SeedUnit, Tensor};
use crate::shape::{ConvDims, Shape, Windows};

impl Block {
    /// The windows of its input that windows of its output are made of; `None` where whole maps are to
    /// take their place: windows no smaller than the map would be more work.
    pub(super) fn input_windows(&self, output: &Windows) -> Option<Windows> {
        let map = [self.input.h as u32, self.input.w as u32];
        if output.cover() { None } else { self.step.input_windows(map, output) }
    }
}

/// Buffers for windows, of as many samples as are projected at a time.
pub(super) struct WindowBuffers<B: Backend> {
    /// Row and column of each sample's unit.
    pub(super) units: B::Indices,
    /// Windows of a layer's input in the forward pass.
    pub(super) input: Tensor<B>,
    /// Windows of a pooling's switches.
    pub(super) switches: B::Bytes,
    /// The same as `units`, on the host.
    places: Vec<u32>,
    /// Windows of pixels, on the host.
    pixels: Vec<f32>,
}

/// What projections from single units ask of the rest of a workspace.
#[derive(Default)]
pub(super) struct WindowNeeds {
    /// Values of one sample's largest window.
    pub values: usize,
    /// Every convolution of windows there is, of as many samples as are projected at a time.
    pub convolutions: Vec<ConvDims>,
}

impl<B: Backend> WindowBuffers<B> {
    /// Plans projections from units of any layer, `samples` at a time; none at all for 0.
    ///
    /// # Errors
    /// If the backend is out of memory.
    pub fn new(backend: &B, blocks: &[Block], samples: usize) -> Result<(Self, WindowNeeds)> {
        let mut needs = WindowNeeds::default();
        let (mut input, mut switches, mut pixels) = (0, 0, 0);
        for from in 0..if samples > 0 { blocks.len() } else { 0 } {
            let mut windows = Windows::units(blocks[from].output);
            for block in blocks[..=from].iter().rev() {
                let Some(below) = block.input_windows(&windows) else { break };
                let step = block.step.of_windows(windows.size);
                needs.convolutions.extend(step.convolution().map(|dims| dims.with_n(samples)));
                let values = below.shape(1, block.input.c).len();
                if step.reads_input(&Rule::GRADIENT) {
                    input = input.max(values);
                }
                if step.pooling().is_some() {
                    switches = switches.max(windows.shape(1, block.output.c).len());
                }
                if block.layer == 0 {
                    pixels = pixels.max(values);
                }
                needs.values = needs.values.max(values);
                windows = below;
            }
        }
        let buffers = WindowBuffers {
            units: backend.indices(2 * samples)?,
            input: backend.activations(Shape::new(samples, 1, 1, input))?,
            switches: backend.bytes(samples * switches)?,
            places: Vec::with_capacity(2 * samples),
            pixels: vec![0.0; samples * pixels],
        };
        Ok((buffers, needs))
    }

    /// Begins a backward pass: each unit a window of one place, `dy`, with its value.
    ///
    /// # Errors
    /// If a backend operation fails.
    pub(super) fn seed(
        &mut self,
        backend: &B,
        dy: &mut Tensor<B>,
        units: &[SeedUnit],
        map: Shape,
    ) -> Result<()> {
        let outside =
            units.iter().find(|unit| unit.y as usize >= map.h || unit.x as usize >= map.w);
        assert!(outside.is_none(), "unit {outside:?} outside [{}, {}, {}]", map.h, map.w, map.c);
        self.places.clear();
        self.places.extend(units.iter().flat_map(|unit| [unit.y, unit.x]));
        backend.upload_indices(&mut self.units, &self.places)?;
        let alone: Vec<SeedUnit> =
            units.iter().map(|unit| SeedUnit { y: 0, x: 0, ..*unit }).collect();
        backend.scatter_units(dy, &alone)
    }

    /// Copies windows of pixels to the host, and each into its picture; the rest is zero.
    ///
    /// # Errors
    /// If a backend operation fails.
    pub(super) fn put_into_pictures(
        &mut self,
        backend: &B,
        pictures: &mut [f32],
        dx: &Tensor<B>,
        windows: &Windows,
    ) -> Result<()> {
        let Shape { n, w: columns, c, .. } = dx.shape();
        let [height, width] = windows.map.map(|v| v as usize);
        assert_eq!(pictures.len(), n * height * width * c, "operands disagree");
        let pixels = &mut self.pixels[..dx.shape().len()];
        backend.download(pixels, dx)?;
        pictures.fill(0.0);
        let samples = pictures.chunks_exact_mut(height * width * c);
        let samples = samples.zip(pixels.chunks_exact(dx.shape().per_image()));
        for ((picture, pixels), unit) in samples.zip(self.places.chunks_exact(2)) {
            let (rows, y) = windows.inside(0, unit[0]);
            let (inside, x) = windows.inside(1, unit[1]);
            for (row, y) in rows.zip(y..) {
                let from = &pixels[(row * columns + inside.start) * c..][..inside.len() * c];
                picture[(y * width + x) * c..][..from.len()].copy_from_slice(from);
            }
        }
        Ok(())
    }
}
