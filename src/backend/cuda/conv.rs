//! Convolutions: what [`super::plan`] chose, launched; fully connected layers by cuBLASLt if that
//! is asked for.

use super::blas::{Blas, Fc, Operands, WORKSPACE};
use super::device::{Launch, Memory, launch};
use super::plan::{
    Arithmetic, Direction, OfGroup, Plan, chunks_of_bias_gradient, flattened, plan, pooled_filter,
};
use super::{CudaBackend, Kernels, Storage, by, hopper};
use crate::backend::{Backend, Precision, Tensor};
use crate::shape::{ConvDims, PoolDims, Shape};
use crate::{Error, Result};

const DIRECTIONS: [Direction; 3] =
    [Direction::Forward, Direction::BackwardData, Direction::BackwardFilter];

/// Partial sums, and what cuBLASLt works in.
pub struct Scratch {
    partial: Memory,
    workspace: Memory,
    /// The output of a convolution that is pooled at once, and on the way back its gradient, unless
    /// [`pooled_filter_gradient`] does without.
    map: Option<Tensor<CudaBackend>>,
}

impl Scratch {
    /// Memory for each of these convolutions, in every direction, for up to as many images.
    pub fn new(backend: &CudaBackend, convolutions: &[ConvDims]) -> Result<Self> {
        if let Some(dims) = convolutions.iter().find(|dims| !fits(dims)) {
            return Err(Error::Backend(format!(
                "a convolution of {} images of {}x{}x{} is more than a kernel counts (2^31 places): \
                 use a smaller batch",
                dims.n, dims.h, dims.w, dims.c
            )));
        }
        let floats = |dims: &ConvDims| {
            let needs = (1..=dims.n).map(|n| floats_of(backend, &dims.with_n(n as usize)));
            needs.max().unwrap_or(0)
        };
        let most = convolutions.iter().map(floats).max().unwrap_or(0);
        let products = convolutions.iter().filter(|dims| dims.is_fully_connected());
        let mut workspace = 0;
        for dims in products {
            for direction in DIRECTIONS {
                // Planned now: while a step is recorded it could not be.
                library(backend, direction, &flattened(dims))?;
            }
            workspace = if backend.blas.is_some() { WORKSPACE } else { 0 };
        }
        let workspace = backend.allocate(workspace)?;
        Ok(Scratch { partial: backend.f32(most)?, workspace, map: None })
    }

    /// Memory for a convolution that is pooled at once.
    pub fn prepare_conv_pool(&mut self, backend: &CudaBackend, dims: &ConvDims) -> Result<()> {
        let map = &mut self.map;
        if map.as_ref().is_none_or(|map| map.shape().len() < dims.output().len()) {
            *map = Some(backend.activations(dims.output())?);
        }
        Ok(())
    }

    /// Lends the memory for a pooled convolution's output.
    pub fn with_map(
        &mut self,
        dims: &ConvDims,
        work: impl FnOnce(&mut Tensor<CudaBackend>, &mut Self) -> Result<()>,
    ) -> Result<()> {
        let mut map = self.map.take().expect("prepared for");
        map.reshape(dims.output());
        let done = work(&mut map, self);
        self.map = Some(map);
        done
    }

    /// Address and size of cuBLASLt's workspace.
    fn workspace(&self) -> (u64, usize) {
        (self.workspace.pointer(), self.workspace.bytes())
    }
}

/// Partial sums of a convolution, whichever direction needs most.
fn floats_of(backend: &CudaBackend, dims: &ConvDims) -> usize {
    let dims = &flattened(dims);
    let planned = |direction| {
        let of = |f32_output| plan(direction, arithmetic(backend), dims, f32_output).partial;
        of(false).max(of(true))
    };
    let pixels = dims.output().len() / dims.k as usize;
    let biases = chunks_of_bias_gradient(pixels) as usize * dims.k as usize;
    // A product by the library is kept in f32 until its bias has been added.
    let product = if dims.is_fully_connected() { dims.output().len() } else { 0 };
    DIRECTIONS.map(planned).into_iter().max().unwrap_or(0).max(biases).max(product)
}

/// What the backend's convolutions are made of.
pub fn arithmetic(backend: &CudaBackend) -> Arithmetic {
    match (backend.kernels, backend.precision) {
        (Kernels::Plain, Precision::Bf16) => Arithmetic::PlainBf16,
        (Kernels::Plain, _) => Arithmetic::Plain,
        (_, Precision::F32) => Arithmetic::Tiled,
        (_, Precision::Tf32) => Arithmetic::Tf32,
        (Kernels::Fast, Precision::Bf16) if backend.device.has_hopper() => Arithmetic::Hopper,
        (_, Precision::Bf16) => Arithmetic::Bf16,
    }
}

/// The library, if this is a product of matrices that it has an algorithm for.
fn library<'a>(
    backend: &'a CudaBackend,
    direction: Direction,
    dims: &ConvDims,
) -> Result<Option<&'a Blas>> {
    backend.device.bind()?;
    let fast = backend.kernels != Kernels::Plain && dims.is_fully_connected();
    match &backend.blas {
        Some(blas) if fast && blas.prepare(direction, sizes(dims), operands(backend))? => {
            backend.device.note("cuBLASLt");
            Ok(Some(blas))
        }
        _ => Ok(None),
    }
}

/// What cuBLASLt multiplies.
pub fn operands(backend: &CudaBackend) -> Operands {
    match backend.precision {
        Precision::F32 => Operands::F32,
        Precision::Tf32 => Operands::Tf32,
        Precision::Bf16 => Operands::Bf16,
    }
}

fn sizes(dims: &ConvDims) -> Fc {
    Fc { n: dims.n as usize, k: dims.k as usize, d: dims.filter().per_image() }
}

/// Storage of what convolutions multiply.
fn storage(backend: &CudaBackend) -> Storage {
    if backend.precision == Precision::Bf16 { Storage::Bf16 } else { Storage::F32 }
}

/// How a plan is launched, once it is sure that its partial sums have room, and the number of stages.
fn launch_of(backend: &CudaBackend, plan: &Plan, scratch: &Scratch) -> (Launch, u32) {
    assert!(
        4 * plan.partial <= scratch.partial.bytes(),
        "{plan:?}: no scratch was reserved for it"
    );
    let stages = stages(plan, backend.device.shared_memory());
    let shared = plan.shared * stages.max(1);
    let mut grid = plan.grid;
    // With a block for each item, an exchange's kernels get multiprocessors between two of them.
    if plan.cut.is_some() && !backend.device.exchanges() {
        grid[0] = grid[0].min(backend.blocks);
    }
    (Launch { grid, block: [plan.block, 1, 1], shared }, stages)
}

/// Stages of a plan's tiles on a GPU with `available` bytes of shared memory a multiprocessor: one less
/// than at most where two blocks run at once only so. Results do not depend on it.
fn stages(plan: &Plan, available: u32) -> u32 {
    const RESERVED: u32 = 1 << 10; // by CUDA, of each block
    let two_fit = |stages: u32| 2 * (plan.shared * stages + RESERVED) <= available;
    let most = plan.most_stages;
    if most > 2 && !two_fit(most) && two_fit(most - 1) { most - 1 } else { most }
}

/// Whether the kernels' 32-bit places reach.
fn fits(dims: &ConvDims) -> bool {
    const MOST: u64 = 1 << 31;
    let [n, k] = [dims.n, dims.k].map(u64::from);
    let inputs = n * u64::from(dims.h) * u64::from(dims.w);
    let outputs = n * u64::from(dims.p) * u64::from(dims.q);
    inputs < MOST && outputs < MOST && k * (dims.filter().per_image() as u64) < MOST
}

/// What `conv_reduce` does with partial sums: adds them up in order, then what is said here.
struct Reduce {
    bias: u64,
    relu: bool,
    accumulate: bool,
    len: usize,
    channels: u32,
    splits: u32,
}

impl Reduce {
    /// Of a sum in so many parts, without bias or relu.
    fn plain(len: usize, channels: u32, splits: u32) -> Self {
        Reduce { bias: 0, relu: false, accumulate: false, len, channels, splits }
    }

    fn run(&self, backend: &CudaBackend, y: u64, storage: Storage, partial: &Memory) -> Result<()> {
        launch!(
            backend.device,
            by(storage, "conv_reduce_f32", "conv_reduce_bf16"),
            Launch::per_value(self.len),
            y,
            partial.pointer(),
            self.bias,
            u32::from(self.relu),
            u32::from(self.accumulate),
            self.len as u64,
            self.channels,
            self.splits,
        )
    }
}

/// See [`crate::backend::Backend::conv_forward`].
pub fn forward(
    backend: &CudaBackend,
    y: &mut Tensor<CudaBackend>,
    x: &Tensor<CudaBackend>,
    weight: &Tensor<CudaBackend>,
    bias: Option<&Tensor<CudaBackend>>,
    relu: bool,
    dims: &ConvDims,
    scratch: &mut Scratch,
) -> Result<()> {
    let dims = &flattened(dims);
    let (y, to) = (y.buffer.values(), y.buffer.storage());
    let (x, w) = (x.buffer.operand(), weight.buffer.operand());
    let bias = bias.map_or(0, |bias| bias.buffer.values());
    let sums = Reduce { bias, relu, ..Reduce::plain(dims.output().len(), dims.k, 1) };
    if let Some(blas) = library(backend, Direction::Forward, dims)? {
        let (stream, out) = (backend.device.stream.cu_stream(), scratch.partial.pointer());
        let (sizes, operands) = (sizes(dims), operands(backend));
        // SAFETY: the tensors are live and of these sizes, and stay so until the stream has been
        // waited for: freeing memory waits.
        unsafe { blas.forward(stream, out, x, w, sizes, operands, scratch.workspace()) }?;
        return sums.run(backend, y, to, &scratch.partial);
    }
    let plan = plan(Direction::Forward, arithmetic(backend), dims, to == Storage::F32);
    let (launch, stages) = launch_of(backend, &plan, scratch);
    let partial = scratch.partial.pointer();
    if let Some(cut) = plan.cut {
        let [x, w] = hopper::forward_maps(x, w, dims)?;
        let sizes = hopper::Sizes::new(dims, cut);
        let relu = u32::from(relu);
        launch!(backend.device, plan.kernel, launch, x, w, y, bias, relu, *dims, sizes, partial)?;
    } else {
        // Kernels without groups' tiles, that do not split their sums, or have no stages, end before these.
        launch!(
            backend.device,
            plan.kernel,
            launch,
            y,
            x,
            w,
            bias,
            u32::from(relu),
            *dims,
            OfGroup::new(dims),
            plan.splits,
            partial,
            stages,
        )?;
    }
    if plan.splits == 1 {
        return Ok(());
    }
    Reduce { splits: plan.splits, ..sums }.run(backend, y, to, &scratch.partial)
}

/// See [`crate::backend::Backend::conv_backward_data`].
pub fn backward_data(
    backend: &CudaBackend,
    dx: &mut Tensor<CudaBackend>,
    dy: &Tensor<CudaBackend>,
    weight: &Tensor<CudaBackend>,
    dims: &ConvDims,
    scratch: &mut Scratch,
) -> Result<()> {
    let dims = &flattened(dims);
    let (dx, to) = (dx.buffer.values(), dx.buffer.storage());
    let (dy, w) = (dy.buffer.operand(), weight.buffer.operand());
    if let Some(blas) = library(backend, Direction::BackwardData, dims)? {
        let stream = backend.device.stream.cu_stream();
        let (sizes, operands) = (sizes(dims), operands(backend));
        // SAFETY: as in `forward`.
        return unsafe {
            blas.backward_data(stream, dx, dy, w, sizes, operands, scratch.workspace())
        };
    }
    let plan = plan(Direction::BackwardData, arithmetic(backend), dims, false);
    let (launch, stages) = launch_of(backend, &plan, scratch);
    let partial = scratch.partial.pointer();
    if let Some(cut) = plan.cut {
        let (classes, w) = hopper::backward_data_maps(dy, w, dims)?;
        launch!(backend.device, plan.kernel, launch, classes, w, dx, *dims, cut, partial)?;
    } else {
        launch!(
            backend.device,
            plan.kernel,
            launch,
            dx,
            dy,
            w,
            *dims,
            OfGroup::new(dims),
            plan.splits,
            partial,
            stages,
        )?;
    }
    if plan.splits == 1 {
        return Ok(());
    }
    let sums = Reduce::plain(dims.input().len(), dims.c, plan.splits);
    sums.run(backend, dx, to, &scratch.partial)
}

/// The gradient of the weights alone: see [`crate::backend::Backend::conv_backward_filter`].
pub fn backward_filter(
    backend: &CudaBackend,
    dw: &mut Tensor<CudaBackend>,
    dy: &Tensor<CudaBackend>,
    x: &Tensor<CudaBackend>,
    accumulate: bool,
    dims: &ConvDims,
    scratch: &mut Scratch,
) -> Result<()> {
    let dims = &flattened(dims);
    let dw = dw.buffer.values();
    let (dy, x) = (dy.buffer.operand(), x.buffer.operand());
    if let Some(blas) = library(backend, Direction::BackwardFilter, dims)? {
        let (stream, workspace) = (backend.device.stream.cu_stream(), scratch.workspace());
        let (sizes, operands) = (sizes(dims), operands(backend));
        // SAFETY: as in `forward`.
        unsafe { blas.backward_filter(stream, dw, dy, x, accumulate, sizes, operands, workspace) }?;
    } else {
        let plan = plan(Direction::BackwardFilter, arithmetic(backend), dims, true);
        let (launch, stages) = launch_of(backend, &plan, scratch);
        let partial = scratch.partial.pointer();
        let add = u32::from(accumulate);
        if let Some(cut) = plan.cut {
            let [x, dy] = hopper::backward_filter_maps(x, dy, dims)?;
            let sizes = hopper::Sizes::new(dims, cut);
            launch!(backend.device, plan.kernel, launch, x, dy, dw, add, *dims, sizes, partial)?;
        } else {
            launch!(
                backend.device,
                plan.kernel,
                launch,
                dw,
                dy,
                x,
                add,
                *dims,
                OfGroup::new(dims),
                plan.splits,
                partial,
                stages,
            )?;
        }
        if plan.splits > 1 {
            let len = dims.filter().len();
            let sums = Reduce { accumulate, ..Reduce::plain(len, dims.k, plan.splits) };
            sums.run(backend, dw, Storage::F32, &scratch.partial)?;
        }
    }
    Ok(())
}

/// [`backward_filter`] of what max pooling with these switches unpools of `dy` under the forward mask, to the
/// same bits, if a kernel does both: else false, and nothing is done.
pub fn pooled_filter_gradient(
    backend: &CudaBackend,
    dw: &mut Tensor<CudaBackend>,
    dy: &Tensor<CudaBackend>,
    switches: &Memory,
    x: &Tensor<CudaBackend>,
    accumulate: bool,
    dims: &ConvDims,
    pool: &PoolDims,
    scratch: &mut Scratch,
) -> Result<bool> {
    let Some(plan) = pooled_filter(arithmetic(backend), dims, pool) else { return Ok(false) };
    let (launch, stages) = launch_of(backend, &plan, scratch);
    let dw = dw.buffer.values();
    launch!(
        backend.device,
        plan.kernel,
        launch,
        dw,
        dy.buffer.operand(),
        x.buffer.operand(),
        u32::from(accumulate),
        *dims,
        OfGroup::new(dims),
        plan.splits,
        scratch.partial.pointer(),
        stages,
        switches.pointer(),
        *pool,
    )?;
    if plan.splits > 1 {
        let sums = Reduce { accumulate, ..Reduce::plain(dims.filter().len(), dims.k, plan.splits) };
        sums.run(backend, dw, Storage::F32, &scratch.partial)?;
    }
    Ok(true)
}

/// The gradient of the biases: sums of `dy` over all pixels; with the switches of a max pooling, of
/// what it would unpool under the forward mask.
pub fn backward_bias(
    backend: &CudaBackend,
    db: &mut Tensor<CudaBackend>,
    dy: &Tensor<CudaBackend>,
    switches: Option<&Memory>,
    accumulate: bool,
    scratch: &mut Scratch,
) -> Result<()> {
    let Shape { n, h, w, c } = dy.shape();
    let (pixels, channels) = (n * h * w, c as u32);
    let chunks = chunks_of_bias_gradient(pixels);
    let even = channels.is_multiple_of(2);
    let grid = [channels.div_ceil(if even { 64 } else { 32 }), chunks, 1];
    let [f32, bf16] = match (even, switches.is_some()) {
        (true, false) => ["bias_gradient_f32", "bias_gradient_bf16"],
        (true, true) => ["bias_gradient_pooled_f32", "bias_gradient_pooled_bf16"],
        (false, false) => ["bias_gradient_any_f32", "bias_gradient_any_bf16"],
        (false, true) => ["bias_gradient_any_pooled_f32", "bias_gradient_any_pooled_bf16"],
    };
    launch!(
        backend.device,
        by(storage(backend), f32, bf16),
        Launch { grid, block: [32, 8, 1], shared: 0 },
        scratch.partial.pointer(),
        dy.buffer.operand(),
        switches.map_or(0, Memory::pointer),
        pixels as u64,
        channels,
        chunks,
    )?;
    let sums = Reduce { accumulate, ..Reduce::plain(c, channels, chunks) };
    sums.run(backend, db.buffer.values(), Storage::F32, &scratch.partial)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_blocks_fit_a_multiprocessor_where_they_can() {
        let dims = ConvDims {
            n: 256,
            h: 13,
            w: 13,
            c: 384,
            k: 384,
            r: 3,
            s: 3,
            p: 13,
            q: 13,
            stride: [1; 2],
            pad: [1; 2],
            groups: 1,
        };
        let plan = plan(Direction::Forward, Arithmetic::Bf16, &dims, false);
        // Of an H100, an A100, and an RTX 3090, where not even two stages fit twice.
        for (kib, expected) in [(228, 3), (164, 2), (100, 3)] {
            assert_eq!(stages(&plan, kib << 10), expected, "{kib} KiB: {plan:?}");
        }
        let plain = super::plan(Direction::Forward, Arithmetic::Plain, &dims, false);
        assert_eq!(stages(&plain, 228 << 10), 0);
    }
}
