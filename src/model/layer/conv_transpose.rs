//! Transposed convolution without bias, which enlarges its maps: PyTorch's `ConvTranspose2d`, with
//! `(in - 1) stride - pads + kernel` rows and columns.
//!
//! Its forward pass is the backward pass of a convolution, from its output to its input, and its
//! backward pass is that convolution.

use serde::{Deserialize, Serialize};

use super::conv::conv_dims;
use super::{
    Backward, Forward, Kind, MAX_NUMBER, Operation, Output, Pad, Place, Planned, Spec, one,
};
use crate::Result;
use crate::backend::Backend;
use crate::shape::{ConvDims, Shape, Windows, transposed};

/// A transposed convolution, as a description has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)] // the fields are the field's own terms
pub struct ConvTransposeSpec {
    pub name: String,
    pub channels: usize,
    pub kernel: usize,
    #[serde(default = "one")]
    pub stride: usize,
    #[serde(default)]
    pub pad: Pad,
    #[serde(default = "one")]
    pub groups: usize,
    /// Standard deviation of its initial weights, which are normal, instead of the recipe's initialization.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_std: Option<f32>,
}

/// A transposed convolution.
#[derive(Clone, Copy, Debug)]
pub struct ConvTranspose {
    /// Sizes of the convolution from its output to its input, for one image.
    pub dims: ConvDims,
}

impl Spec for ConvTransposeSpec {
    const PREFIX: &'static str = "conv";
    const HAS_WEIGHTS: bool = true;

    fn name(&self) -> Option<&str> {
        Some(&self.name)
    }

    fn rename(&mut self, name: &str) {
        self.name = name.into();
    }

    fn init_std(&self) -> Option<f32> {
        self.init_std
    }

    fn clear_init_std(&mut self) {
        self.init_std = None;
    }

    fn plan(&self, place: &Place<'_>) -> Result<Planned> {
        let &ConvTransposeSpec { channels, kernel, stride, pad, groups, .. } = self;
        place.check_numbers([channels, kernel, stride, groups])?;
        place.check_groups(channels, groups)?;
        let input = place.input;
        let [rows, columns] = pad.axes();
        let one = |input, (before, after)| {
            let fits = before < kernel && after < kernel;
            let size = fits.then(|| transposed(input, kernel, stride, before, after));
            size.flatten().filter(|size| *size <= MAX_NUMBER)
        };
        let Some((h, w)) = one(input.h, rows).zip(one(input.w, columns)) else {
            return Err(place.error(format!(
                "expected an output, (in - 1) stride - pads + kernel, of 1 to {MAX_NUMBER} rows and \
                 columns, a stride above 0 and a pad below the kernel, found an input of {}x{}, \
                 kernel {kernel}, stride {stride}, pad {pad:?}",
                input.h, input.w
            )));
        };
        let [top, left] = pad.before();
        let field = [(0, top), (1, left)].map(|(axis, pad)| {
            let (field, size) = (place.field[axis], place.size[axis]);
            field.through_transposed(kernel, stride, pad).unwrap_or(field.whole(size))
        });
        let output = Shape::new(1, h, w, channels);
        let dims = conv_dims(output, input, [kernel; 2], stride, [top, left], groups);
        Ok(Planned { kind: Kind::ConvTranspose(ConvTranspose { dims }), output, field })
    }
}

impl Operation for ConvTranspose {
    fn convolution(&self) -> Option<&ConvDims> {
        Some(&self.dims)
    }

    fn fan_in(&self) -> f64 {
        let ConvDims { r, s, k, stride, groups, .. } = self.dims;
        f64::from(r * s) / f64::from(stride[0] * stride[1]) * f64::from(k / groups)
    }

    fn forward<B: Backend>(&self, pass: Forward<'_, B>) -> Result<()> {
        let Forward { backend, y, x, param, common, .. } = pass;
        let weight = &param.expect("a convolution has weights").weight;
        backend.conv_backward_data(y, x, weight, &self.dims.with_n(x.shape().n), common.scratch)
    }

    fn backward<B: Backend>(&self, pass: Backward<'_, B>) -> Result<Output> {
        let Backward { backend, dx, dy, x, param, gradient, accumulate, .. } = pass;
        let (no_bias, scratch) = (pass.no_bias, pass.common.scratch);
        let dims = &self.dims.with_n(dy.shape().n);
        if let Some(gradient) = gradient {
            // The roles are exchanged, so that what is summed as a bias's gradient is the layer's own
            // input: it goes elsewhere, and the gradient stays zero.
            no_bias.reshape(gradient.bias.shape());
            std::mem::swap(&mut gradient.bias, no_bias);
            let done = backend.conv_backward_filter(gradient, x, dy, accumulate, dims, scratch);
            std::mem::swap(&mut gradient.bias, no_bias);
            done?;
        }
        if !pass.to_input {
            return Ok(Output::Nothing);
        }
        let weight = &param.expect("a convolution has weights").weight;
        dx.reshape(dims.output());
        backend.conv_forward(dx, dy, weight, None, false, dims, scratch)?;
        Ok(Output::Dx)
    }

    /// How many units of its input one of its output reaches depends on where it stands.
    fn input_windows(&self, _map: [u32; 2], _output: &Windows) -> Option<Windows> {
        None
    }
}
