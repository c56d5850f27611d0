//! Projections from single units, computed in no more than the units' receptive fields. Whoever does
//! not care how they are made fast need not read this: the result is that of [`Workspace::backward`] from
//! maps that are zero but for these units.
//!
//! A unit's receptive field grows on the way back, by
//! `size' = (size - 1) stride + kernel`, `start' = start stride - pad`; outside it all is zero. So
//! what goes back is held in windows of that size, each sample's at a place of its own ([`Windows`]),
//! and runs through the same operations as whole maps, only without padding. What they read of the
//! forward pass is cut out of the whole maps first. A window no smaller than its map is put back into
//! a whole map, and the rest is [`Workspace::backward`].

use super::Params;
use super::layer::{Backward, Common, Output};
use super::rule::Rule;
use super::workspace::{BackwardOptions, Block, Workspace};
use crate::Result;
use crate::backend::{Backend, SeedUnit, Tensor};
use crate::shape::{ConvDims, Shape, Windows};

impl<B: Backend> Workspace<B> {
    /// The backward pass from single units of a layer, one a sample, which begin with their `value`, to
    /// `pictures`, `[n, size, size, 3]` on the host. Sample `n` belongs to the forward image
    /// `images[n]`.
    ///
    /// # Errors
    /// If a backend operation fails.
    pub fn project(
        &mut self,
        backend: &B,
        params: &Params<B>,
        layer: usize,
        rule: Rule,
        images: &B::Indices,
        units: &[SeedUnit],
        pictures: &mut [f32],
    ) -> Result<()> {
        let options = BackwardOptions {
            from: layer,
            rule,
            images: Some(images),
            gradients: None,
            accumulate: false,
            to_pixels: true,
        };
        let (top, n) = (self.block_of[layer], units.len());
        let map = self.blocks[top].output;
        let mut windows = Windows::units(map);
        let dy = &mut self.signal[0];
        dy.reshape(windows.shape(n, map.c));
        self.windows.seed(backend, dy, units, map)?;
        for index in (0..=top).rev() {
            let Some(below) = self.blocks[index].input_windows(&windows) else {
                let [from, to] = &mut self.signal;
                to.reshape(self.blocks[index].output.with_n(n));
                backend.gather_windows(to, from, None, &self.windows.units, &windows.inverse())?;
                self.signal.swap(0, 1);
                self.backward_from(backend, params, index, options)?;
                return backend.download(pictures, &self.signal[0]);
            };
            self.undo_in_windows(backend, params, index, &options, &windows, &below)?;
            windows = below;
        }
        self.windows.put_into_pictures(backend, pictures, &self.signal[0], &windows)
    }

    /// Takes windows of a block's output through the block, to those `below` of its input.
    fn undo_in_windows(
        &mut self,
        backend: &B,
        params: &Params<B>,
        index: usize,
        options: &BackwardOptions<'_, B>,
        windows: &Windows,
        below: &Windows,
    ) -> Result<()> {
        let &BackwardOptions { rule, images, .. } = options;
        let relu = self.has_relu_to_undo(index, options);
        let block = &self.blocks[index];
        let [dy, dx] = &mut self.signal;
        let n = dy.shape().n;
        let WindowBuffers { units, input, switches, .. } = &mut self.windows;
        if relu {
            // Until the layer itself is undone, `dx` is free.
            let y = &mut *dx;
            y.reshape(dy.shape());
            if rule.forward_mask {
                backend.gather_windows(y, &self.outputs[index], images, units, windows)?;
            }
            backend.relu_backward(dy, y, None, rule.relu())?;
        }
        if block.step.reads_input(&rule) {
            let x = if index == 0 { &self.input } else { &self.outputs[index - 1] };
            input.reshape(below.shape(n, block.input.c));
            backend.gather_windows(input, x, images, units, below)?;
        }
        if let (Some(dims), Some(whole)) = (block.step.pooling(), &self.switches[index]) {
            let (mask, dims) = (rule.forward_mask, &dims.with_n(n));
            backend.gather_switches(switches, whole, images, units, windows, mask, dims)?;
        }
        let output = block.step.of_windows(windows.size).backward(Backward {
            backend,
            dx,
            dy,
            x: input,
            switches: Some(switches),
            images: None,
            rule,
            param: params.layers[block.layer].as_ref(),
            gradient: None,
            accumulate: false,
            to_input: true,
            no_bias: &mut self.no_bias,
            common: Common {
                scratch: &mut self.scratch,
                state: &self.state,
                layer: block.layer as u32,
                training: false,
            },
        })?;
        if output == Output::Dx {
            if block.step.convolution().is_some() {
                // What a transposed convolution leaves in the padding must not go on.
                backend.zero_out_of_bounds(dx, units, below)?;
            }
            self.signal.swap(0, 1);
        }
        Ok(())
    }
}

impl Block {
    /// The windows of its input that windows of its output are made of; `None` where whole maps are to
    /// take their place: windows no smaller than the map would be more work.
    fn input_windows(&self, output: &Windows) -> Option<Windows> {
        let map = [self.input.h as u32, self.input.w as u32];
        if output.cover() { None } else { self.step.input_windows(map, output) }
    }
}

/// Buffers for windows, of as many samples as are projected at a time.
pub(super) struct WindowBuffers<B: Backend> {
    /// Row and column of each sample's unit.
    units: B::Indices,
    /// Windows of a layer's input in the forward pass.
    input: Tensor<B>,
    /// Windows of a pooling's switches.
    switches: B::Bytes,
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
    fn seed(
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
    fn put_into_pictures(
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
