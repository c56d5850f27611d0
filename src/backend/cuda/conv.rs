//! Convolutions: what [`super::plan`] chose, launched; fully connected layers by cuBLASLt if that
//! is asked for.

use super::blas::{Blas, Fc, Operands, WORKSPACE};
use super::device::{Launch, Memory, launch};
use super::plan::{Arithmetic, Direction, Plan, chunks_of_bias_gradient, flattened, plan};
use super::{Buffer, CudaBackend, Kernels, Storage, by};
use crate::backend::{Param, Precision, Tensor};
use crate::shape::ConvDims;
use crate::{Error, Result};

const DIRECTIONS: [Direction; 3] =
    [Direction::Forward, Direction::BackwardData, Direction::BackwardFilter];

/// Partial sums, and what cuBLASLt works in.
pub struct Scratch {
    partial: Memory,
    workspace: Memory,
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
        Ok(Scratch { partial: backend.f32(most)?, workspace })
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

fn arithmetic(backend: &CudaBackend) -> Arithmetic {
    match (backend.kernels, backend.precision) {
        (Kernels::Plain, Precision::Bf16) => Arithmetic::PlainBf16,
        (Kernels::Plain, _) => Arithmetic::Plain,
        (Kernels::Fast, Precision::F32) => Arithmetic::Tiled,
        (Kernels::Fast, Precision::Tf32) => Arithmetic::Tf32,
        (Kernels::Fast, Precision::Bf16) => Arithmetic::Bf16,
    }
}

/// The library, if this is a product of matrices that it has an algorithm for.
fn library<'a>(
    backend: &'a CudaBackend,
    direction: Direction,
    dims: &ConvDims,
) -> Result<Option<&'a Blas>> {
    backend.device.bind()?;
    let fast = backend.kernels == Kernels::Fast && dims.is_fully_connected();
    match &backend.blas {
        Some(blas) if fast && blas.prepare(direction, sizes(dims), operands(backend))? => {
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

/// How a plan is launched, once it is sure that its partial sums have room.
fn launch_of(plan: &Plan, scratch: &Scratch) -> Launch {
    assert!(
        4 * plan.partial <= scratch.partial.bytes(),
        "{plan:?}: no scratch was reserved for it"
    );
    Launch { grid: plan.grid, block: [plan.block, 1, 1], shared: plan.shared }
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
    // Kernels that do not split their sums end before the last two arguments.
    launch!(
        backend.device,
        plan.kernel,
        launch_of(&plan, scratch),
        y,
        x,
        w,
        bias,
        u32::from(relu),
        *dims,
        plan.splits,
        scratch.partial.pointer(),
    )?;
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
    launch!(
        backend.device,
        plan.kernel,
        launch_of(&plan, scratch),
        dx,
        dy,
        w,
        *dims,
        plan.splits,
        scratch.partial.pointer(),
    )?;
    if plan.splits == 1 {
        return Ok(());
    }
    let sums = Reduce::plain(dims.input().len(), dims.c, plan.splits);
    sums.run(backend, dx, to, &scratch.partial)
}

/// See [`crate::backend::Backend::conv_backward_filter`].
pub fn backward_filter(
    backend: &CudaBackend,
    gradient: &mut Param<CudaBackend>,
    dy: &Tensor<CudaBackend>,
    x: &Tensor<CudaBackend>,
    accumulate: bool,
    dims: &ConvDims,
    scratch: &mut Scratch,
) -> Result<()> {
    let dims = &flattened(dims);
    let Param { weight: Tensor { buffer: dw, .. }, bias: Tensor { buffer: db, .. } } = gradient;
    let (dw, db): (&Buffer, &Buffer) = (dw, db);
    let (dw, db) = (dw.values(), db.values());
    let (dy, x) = (dy.buffer.operand(), x.buffer.operand());
    if let Some(blas) = library(backend, Direction::BackwardFilter, dims)? {
        let (stream, workspace) = (backend.device.stream.cu_stream(), scratch.workspace());
        let (sizes, operands) = (sizes(dims), operands(backend));
        // SAFETY: as in `forward`.
        unsafe { blas.backward_filter(stream, dw, dy, x, accumulate, sizes, operands, workspace) }?;
    } else {
        let plan = plan(Direction::BackwardFilter, arithmetic(backend), dims, true);
        launch!(
            backend.device,
            plan.kernel,
            launch_of(&plan, scratch),
            dw,
            dy,
            x,
            u32::from(accumulate),
            *dims,
            plan.splits,
            scratch.partial.pointer(),
        )?;
        if plan.splits > 1 {
            let len = dims.filter().len();
            let sums = Reduce { accumulate, ..Reduce::plain(len, dims.k, plan.splits) };
            sums.run(backend, dw, Storage::F32, &scratch.partial)?;
        }
    }
    let pixels = dims.output().len() / dims.k as usize;
    let chunks = chunks_of_bias_gradient(pixels);
    let grid = [dims.k.div_ceil(32), chunks, 1];
    launch!(
        backend.device,
        by(storage(backend), "bias_gradient_f32", "bias_gradient_bf16"),
        Launch { grid, block: [32, 8, 1], shared: 0 },
        scratch.partial.pointer(),
        dy,
        pixels as u64,
        dims.k,
        chunks,
    )?;
    let sums = Reduce { accumulate, ..Reduce::plain(dims.k as usize, dims.k, chunks) };
    sums.run(backend, db, Storage::F32, &scratch.partial)
}
