//! Convolution with bias: `y[n, p, q, k] = bias[k] + sum over r, s, c of w[k, r, s, c] x[n, p stride + r -
//! pad, q stride + s - pad, c]`.

use serde::{Deserialize, Serialize};

use super::{Backward, Common, Forward, Kind, Operation, Output, Pad, Place, Planned, Spec, one};
use crate::Result;
use crate::backend::{Backend, Param};
use crate::shape::{ConvDims, Rounding, Shape, Windows};

/// Convolution with bias, as a description has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)] // the fields are the field's own terms
pub struct ConvSpec {
    pub name: String,
    pub channels: usize,
    pub kernel: usize,
    #[serde(default = "one")]
    pub stride: usize,
    #[serde(default)]
    pub pad: Pad,
    #[serde(default)]
    pub rounding: Rounding,
    #[serde(default = "one")]
    pub groups: usize,
    /// Limit of each filter's RMS instead of the recipe's; 0 for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rms_limit: Option<f32>,
    /// Standard deviation of its initial weights, which are normal, instead of the recipe's initialization.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_std: Option<f32>,
}

/// Convolution with bias; a fully connected layer is one too.
#[derive(Clone, Copy, Debug)]
pub struct Conv {
    /// Its sizes, for one image.
    pub dims: ConvDims,
    /// Limit of each filter's RMS; 0 for none.
    pub rms_limit: f32,
}

impl Spec for ConvSpec {
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
        let &ConvSpec { channels, kernel, stride, pad, rounding, groups, .. } = self;
        place.check_numbers([channels, kernel, stride, groups])?;
        let (p, q) = place.windows(kernel, stride, pad, rounding)?;
        place.check_groups(channels, groups)?;
        let output = Shape::new(1, p, q, channels);
        let dims = conv_dims(place.input, output, [kernel; 2], stride, pad.before(), groups);
        let rms_limit = self.rms_limit.unwrap_or(place.recipe.rms_limit);
        let field = place.field_of_windows(kernel, stride, pad);
        Ok(Planned { kind: Kind::Conv(Conv { dims, rms_limit }), output, field })
    }
}

impl Operation for Conv {
    fn convolution(&self) -> Option<&ConvDims> {
        Some(&self.dims)
    }

    fn has_bias(&self) -> bool {
        true
    }

    fn rms_limit(&self) -> f32 {
        self.rms_limit
    }

    fn forward<B: Backend>(&self, pass: Forward<'_, B>) -> Result<()> {
        let Forward { backend, y, x, param, relu, common: Common { scratch, .. }, .. } = pass;
        let Param { weight, bias } = param.expect("a convolution has weights");
        backend.conv_forward(
            y,
            x,
            weight,
            Some(bias),
            relu,
            &self.dims.with_n(x.shape().n),
            scratch,
        )
    }

    fn backward<B: Backend>(&self, pass: Backward<'_, B>) -> Result<Output> {
        let Backward { backend, dx, dy, x, param, gradient, accumulate, to_input, common, .. } =
            pass;
        let dims = &self.dims.with_n(dy.shape().n);
        if let Some(gradient) = gradient {
            backend.conv_backward_filter(gradient, dy, x, accumulate, dims, common.scratch)?;
        }
        if !to_input {
            return Ok(Output::Nothing);
        }
        let weight = &param.expect("a convolution has weights").weight;
        dx.reshape(dims.input());
        backend.conv_backward_data(dx, dy, weight, dims, common.scratch)?;
        Ok(Output::Dx)
    }

    fn input_windows(&self, map: [u32; 2], output: &Windows) -> Option<Windows> {
        let ConvDims { r, s, stride, pad, .. } = self.dims;
        Some(output.below(map, [r, s], stride, pad))
    }

    fn shrink_to_windows(&mut self, size: [u32; 2]) {
        self.dims = self.dims.windowed(size);
    }
}

/// Sizes of a convolution of one image.
pub(super) fn conv_dims(
    input: Shape,
    output: Shape,
    kernel: [usize; 2],
    stride: usize,
    pad: [usize; 2],
    groups: usize,
) -> ConvDims {
    ConvDims {
        n: 1,
        h: input.h as u32,
        w: input.w as u32,
        c: input.c as u32,
        k: output.c as u32,
        r: kernel[0] as u32,
        s: kernel[1] as u32,
        p: output.h as u32,
        q: output.w as u32,
        stride: [stride as u32; 2],
        pad: pad.map(|v| v as u32),
        groups: groups as u32,
    }
}
