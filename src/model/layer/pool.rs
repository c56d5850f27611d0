//! Max pooling with switches: each window's largest value, and where it stood. Going back, a value is put
//! where its switch points (unpooling, and max pooling's gradient).

use serde::{Deserialize, Serialize};

use super::{Backward, Forward, Kind, Operation, Output, Pad, Place, Planned, Spec};
use crate::Result;
use crate::backend::Backend;
use crate::shape::{PoolDims, Rounding, Shape, Windows};

/// Max pooling, as a description has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)] // the fields are the field's own terms
pub struct MaxPoolSpec {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    pub kernel: usize,
    pub stride: usize,
    #[serde(default)]
    pub pad: Pad,
    #[serde(default)]
    pub rounding: Rounding,
}

/// Max pooling.
#[derive(Clone, Copy, Debug)]
pub struct MaxPool {
    /// Its sizes, for one image.
    pub dims: PoolDims,
}

impl Spec for MaxPoolSpec {
    const PREFIX: &'static str = "pool";

    fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    fn rename(&mut self, name: &str) {
        self.name = Some(name.into());
    }

    fn plan(&self, place: &Place<'_>) -> Result<Planned> {
        let &MaxPoolSpec { kernel, stride, pad, rounding, .. } = self;
        place.check_numbers([kernel, stride])?;
        let (p, q) = place.windows(kernel, stride, pad, rounding)?;
        if kernel * kernel > 255 {
            return Err(place.error(format!(
                "expected a window of at most 255 values (a switch is one byte), found \
                 {kernel}x{kernel}"
            )));
        }
        let Shape { h, w, c, .. } = place.input;
        let dims = PoolDims {
            n: 1,
            h: h as u32,
            w: w as u32,
            c: c as u32,
            p: p as u32,
            q: q as u32,
            window: [kernel as u32; 2],
            stride: [stride as u32; 2],
            pad: pad.before().map(|v| v as u32),
            any_sign: 0, // until the layers beside it are known
        };
        let field = place.field_of_windows(kernel, stride, pad);
        Ok(Planned { kind: Kind::MaxPool(MaxPool { dims }), output: dims.output(), field })
    }
}

impl Operation for MaxPool {
    fn pooling(&self) -> Option<&PoolDims> {
        Some(&self.dims)
    }

    fn forward<B: Backend>(&self, pass: Forward<'_, B>) -> Result<()> {
        let Forward { backend, y, switches, x, .. } = pass;
        let switches = switches.expect("planned for pooling");
        backend.maxpool_forward(y, switches, x, &self.dims.with_n(x.shape().n))
    }

    fn backward<B: Backend>(&self, pass: Backward<'_, B>) -> Result<Output> {
        let Backward { backend, dx, dy, switches, images, rule, .. } = pass;
        let switches = switches.expect("planned for pooling");
        let dims = &self.dims.with_n(dy.shape().n);
        dx.reshape(dims.input());
        backend.maxpool_backward(dx, dy, switches, images, rule.forward_mask, dims)?;
        Ok(Output::Dx)
    }

    fn input_windows(&self, map: [u32; 2], output: &Windows) -> Option<Windows> {
        let PoolDims { window, stride, pad, .. } = self.dims;
        Some(output.below(map, window, stride, pad))
    }

    fn shrink_to_windows(&mut self, size: [u32; 2]) {
        self.dims = self.dims.windowed(size);
    }
}
