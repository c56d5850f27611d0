//! Updates of the weights: of all tensors in one launch, because a launch for each of them would take
//! longer than most of them do.

use super::device::{Argument, Launch, Memory, launch};
use super::{CudaBackend, check};
use half::bf16;

use crate::Result;
use crate::backend::{SLICE_ALIGNMENT, Tensor, Update};
use crate::shape::Shape;

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
    for Update { w, first, v, g, constants, .. } in updates {
        check(&[(v.shape(), g.shape())]);
        let len = v.shape().len();
        let [w, copy] = from_value(w, *first, len);
        let tensor = |first_block| Sgd {
            w,
            copy,
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

/// Where `len` values of weights begin, and those of their copy (0 if they have none).
fn from_value(weights: &Tensor<CudaBackend>, first: usize, len: usize) -> [u64; 2] {
    assert!(first + len <= weights.shape().len(), "values of {}", weights.shape());
    assert!(first.is_multiple_of(SLICE_ALIGNMENT));
    let copy = match weights.buffer.copy() {
        0 => 0,
        copy => copy + (size_of::<bf16>() * first) as u64,
    };
    [weights.buffer.values() + (size_of::<f32>() * first) as u64, copy]
}

/// See [`crate::backend::Backend::limit_rms`]: of each tensor the filters of this shape from a value on.
pub fn limit_rms<'a>(
    backend: &CudaBackend,
    weights: impl IntoIterator<Item = (&'a Tensor<CudaBackend>, usize, Shape, f32)>,
    state: &Memory,
) -> Result<()> {
    let mut list = List::new();
    let launch = |list: List<Limit>| list.launch(backend, "limit_rms", state);
    for (weight, first, filters, limit) in weights {
        let [w, copy] = from_value(weight, first, filters.len());
        let per_filter = filters.per_image() as u32;
        let tensor = |first_block| Limit { w, copy, per_filter, limit, first_block, unused: 0 };
        list.add(filters.n, tensor, launch)?;
    }
    launch(list)
}
