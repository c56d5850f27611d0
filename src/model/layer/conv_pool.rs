//! The first convolution, its relu and the max pooling behind it as one operation, in training, where
//! the backend has it: its output, the largest of all and read by nothing else, is never stored.

use super::{Backward, Conv, Forward, Kind, Layer, Operation, Output};
use crate::Result;
use crate::backend::{Backend, Param};
use crate::shape::{ConvDims, PoolDims};

#[derive(Clone, Copy, Debug)]
pub struct ConvPool {
    conv: ConvDims,
    pool: PoolDims,
}

impl ConvPool {
    /// Of the first three layers, if they are these and the backend can for batches of `capacity`.
    pub fn new<B: Backend>(backend: &B, layers: &[Layer], capacity: usize) -> Option<Self> {
        let [first, relu, pool, ..] = layers else { return None };
        match (first.kind, relu.kind, pool.kind) {
            (Kind::Conv(Conv { dims: conv, .. }), Kind::Relu(_), Kind::MaxPool(pool)) => {
                let pool = pool.dims;
                let supports_conv_pool =
                    backend.supports_conv_pool(&conv.with_n(capacity), &pool.with_n(capacity));
                supports_conv_pool.then_some(ConvPool { conv, pool })
            }
            _ => None,
        }
    }
}

impl Operation for ConvPool {
    fn convolution(&self) -> Option<&ConvDims> {
        Some(&self.conv)
    }

    fn pooling(&self) -> Option<&PoolDims> {
        Some(&self.pool)
    }

    fn forward<B: Backend>(&self, pass: Forward<'_, B>) -> Result<()> {
        let Forward { backend, y, switches, x, param, common, .. } = pass;
        let Param { weight, bias } = param.expect("a convolution has weights");
        let switches = switches.expect("planned for pooling");
        let n = x.shape().n;
        let (conv, pool) = (&self.conv.with_n(n), &self.pool.with_n(n));
        backend.conv_pool_forward(y, switches, x, weight, bias, conv, pool, common.scratch)
    }

    /// Only the gradients are wanted of the first of all layers.
    fn backward<B: Backend>(&self, pass: Backward<'_, B>) -> Result<Output> {
        let Backward { backend, dy, x, switches, gradient, accumulate, common, .. } = pass;
        assert!(!pass.to_input, "a workspace for training does not reach the pixels");
        let gradient = gradient.expect("asked for in training");
        let switches = switches.expect("planned for pooling");
        let n = dy.shape().n;
        let (conv, pool) = (&self.conv.with_n(n), &self.pool.with_n(n));
        let scratch = common.scratch;
        backend.conv_pool_backward_filter(
            gradient, dy, switches, x, accumulate, conv, pool, scratch,
        )?;
        Ok(Output::Nothing)
    }
}
