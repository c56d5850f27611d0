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
use super::window_buffers::WindowBuffers;
use super::workspace::{BackwardOptions, BackwardTo, Workspace};
use crate::Result;
use crate::backend::{Backend, SeedUnit};
use crate::shape::Windows;

impl<B: Backend> Workspace<B> {
    /// The backward pass from single units of a layer, one a sample, which begin with their `value`, to
    /// `pictures`, `[n, rows, columns, channels]` on the host. Sample `n` belongs to the forward image
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
            to: BackwardTo::Pixels,
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
                self.backward_from(backend, params, index, options, |_, _| Ok(()))?;
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
