//! Updates of the weights: of all tensors in one launch, because a launch for each of them would take
//! longer than most of them do.

use super::device::{Argument, Launch, Memory, launch};
use super::{CudaBackend, check};
use crate::Result;
use crate::backend::{Tensor, Update};

/// Tensors of a launch, at most: as `MOST` in `kernels/sgd.cu`, where the fields are explained.
const MOST: usize = 16;
/// Values of a block of `sgd_step`.
const OF_A_BLOCK: usize = 1024;

/// Tensors of one launch. `T` is laid out as in `kernels/sgd.cu`.
#[repr(C)]
struct Tensors<T> {
    of: [T; MOST],
    count: u32,
    unused: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Sgd {
    w: u64,
    copy: u64,
    v: u64,
    g: u64,
    len: u64,
    momentum: f32,
    decay: f32,
    first_block: u32,
    unused: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Limit {
    w: u64,
    copy: u64,
    per_filter: u32,
    limit: f32,
    first_block: u32,
    unused: u32,
}

// SAFETY: `repr(C)`, the same fields as `Updates` there.
unsafe impl Argument for Tensors<Sgd> {}
// SAFETY: `repr(C)`, the same fields as `Limits` there.
unsafe impl Argument for Tensors<Limit> {}

/// A list of tensors with as many blocks each.
struct List<T> {
    tensors: Vec<T>,
    blocks: usize,
}

impl<T: Copy + Default> List<T>
where
    Tensors<T>: Argument,
{
    fn new() -> Self {
        List { tensors: Vec::new(), blocks: 0 }
    }

    /// Adds a tensor, made of the number of its first block, and launches what is a launch's fill.
    fn add(
        &mut self,
        blocks: usize,
        tensor: impl FnOnce(u32) -> T,
        launch: impl FnOnce(Self) -> Result<()>,
    ) -> Result<()> {
        self.tensors.push(tensor(self.blocks as u32));
        self.blocks += blocks;
        if self.tensors.len() < MOST {
            return Ok(());
        }
        launch(std::mem::replace(self, Self::new()))
    }

    fn launch(self, backend: &CudaBackend, kernel: &'static str, state: &Memory) -> Result<()> {
        if self.blocks == 0 {
            return Ok(());
        }
        let mut of = [T::default(); MOST];
        of[..self.tensors.len()].copy_from_slice(&self.tensors);
        let tensors = Tensors { of, count: self.tensors.len() as u32, unused: 0 };
        launch!(backend.device, kernel, Launch::blocks(self.blocks), tensors, state.pointer())
    }
}

/// See [`crate::backend::Backend::sgd_step`].
pub fn sgd_step(
    backend: &CudaBackend,
    updates: &[Update<'_, CudaBackend>],
    state: &Memory,
) -> Result<()> {
    let mut list = List::new();
    let launch = |list: List<Sgd>| list.launch(backend, "sgd_step", state);
    for Update { w, v, g, constants, .. } in updates {
        check(&[(w.shape(), v.shape()), (w.shape(), g.shape())]);
        let len = w.shape().len();
        let tensor = |first_block| Sgd {
            w: w.buffer.values(),
            copy: w.buffer.copy(),
            v: v.buffer.values(),
            g: g.buffer.values(),
            len: len as u64,
            momentum: constants.momentum,
            decay: constants.weight_decay,
            first_block,
            unused: 0,
        };
        list.add(len.div_ceil(OF_A_BLOCK), tensor, launch)?;
    }
    launch(list)
}

/// See [`crate::backend::Backend::limit_rms`].
pub fn limit_rms<'a>(
    backend: &CudaBackend,
    weights: impl IntoIterator<Item = (&'a Tensor<CudaBackend>, f32)>,
    state: &Memory,
) -> Result<()> {
    let mut list = List::new();
    let launch = |list: List<Limit>| list.launch(backend, "limit_rms", state);
    for (weight, limit) in weights {
        let tensor = |first_block| Limit {
            w: weight.buffer.values(),
            copy: weight.buffer.copy(),
            per_filter: weight.shape().per_image() as u32,
            limit,
            first_block,
            unused: 0,
        };
        list.add(weight.shape().n, tensor, launch)?;
    }
    launch(list)
}
