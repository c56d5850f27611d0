//! The CPU backend: rayon for threads, products and Winograd transformations in registers, plain loops
//! compiled for AVX2 and AVX-512 besides the portable form, the choice made once when the backend is
//! created.
//!
//! Work is cut by sizes, and by the zeros of an image's own gradient; no float is added in an order that
//! threads decide. So results are bit-identical for any number of threads.

use std::sync::atomic::{AtomicUsize, Ordering};

use bytemuck::Zeroable;
use half::bf16;
use rayon::prelude::*;
pub use zfnet_cpu::Products;
use zfnet_cpu::conv::{self, Arithmetic, Epilogue, ScratchSize};
use zfnet_cpu::isa::Isa;
use zfnet_cpu::memory::Storage;
use zfnet_cpu::values::{Element, Values, ValuesMut};
use zfnet_cpu::{look, lrn, peak, pointwise, pool, softmax, window};

use super::{
    Backend, BackendId, Batch, Crop, Dropout, InputDims, Lrn, MapMoments, Memory, Param, Peak,
    Precision, ReluRule, SeedUnit, SgdConstants, StepState, Tensor, Update,
};
use crate::shape::{ConvDims, PoolDims, Shape, Windows};
use crate::{Error, Result};

/// Runs on the cores of this machine.
pub struct CpuBackend {
    pool: rayon::ThreadPool,
    isa: Isa,
    precision: Precision,
    products: Products,
    exact: bool,
    allocated_total: AtomicUsize,
}

/// Storage of a tensor: f32, bf16, or (for weights in bf16) both.
pub struct Buffer {
    f32: Option<Storage<f32>>,
    bf16: Option<Storage<bf16>>,
}

/// What operations read of the step.
#[derive(Default)]
pub struct State {
    step: StepState,
    halted: bool,
}

/// Moments of maps, and what they are summed in.
pub struct Moments {
    of_maps: Vec<MapMoments>,
    sums: look::MomentSums,
}

impl CpuBackend {
    /// A backend with its own pool of `threads` threads (all cores for `None`) and the best
    /// instructions this machine has.
    ///
    /// # Errors
    /// If the threads cannot be started.
    pub fn new(threads: Option<usize>) -> Result<Self> {
        Self::with(threads, Isa::detect())
    }

    /// A backend that uses no instruction beyond what the program was compiled for: what runs on
    /// machines without AVX2. For tests, which run on it too.
    ///
    /// # Errors
    /// If the threads cannot be started.
    pub fn portable(threads: Option<usize>) -> Result<Self> {
        Self::with(threads, Isa::PORTABLE)
    }

    /// A backend that leaves AVX-512 alone. For tests, as [`CpuBackend::portable`].
    ///
    /// # Errors
    /// If the threads cannot be started.
    pub fn at_most_avx2(threads: Option<usize>) -> Result<Self> {
        Self::with(threads, Isa::at_most_avx2())
    }

    fn with(threads: Option<usize>, isa: Isa) -> Result<Self> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads.unwrap_or(0))
            .thread_name(|i| format!("zfnet-cpu-{i}"))
            .build()
            .map_err(|error| Error::Backend(format!("cannot start threads: {error}")))?;
        Ok(CpuBackend {
            pool,
            isa,
            precision: Precision::F32,
            products: Products::F32,
            exact: false,
            allocated_total: AtomicUsize::new(0),
        })
    }

    /// Leaves Winograd's method alone: convolutions multiply what they are given, and sums of small
    /// integers are exact.
    pub fn exact(self) -> Self {
        CpuBackend { exact: true, ..self }
    }

    /// Keeps activations, and the weights that convolutions read, in bf16, which is half of the memory.
    /// Sums, and weights, their gradients and their momentum, stay in f32. Products are made in the way
    /// that is fastest on this machine: [`CpuBackend::products`].
    pub fn bf16(self) -> Self {
        let products = self.isa.fastest_bf16();
        CpuBackend { precision: Precision::Bf16, products, ..self }
    }

    /// [`CpuBackend::bf16`] with products that are made in a certain way: all ways are tested.
    ///
    /// # Errors
    /// If the machine lacks the instructions.
    pub fn bf16_by(self, products: Products) -> Result<Self> {
        if !self.isa.has(products) {
            return Err(Error::UnsupportedPrecision {
                precision: Precision::Bf16,
                expected: match products {
                    Products::F32 | Products::Bf16Pairs => "AVX512-BF16",
                    Products::Bf16Tiles => "AMX",
                },
                found: format!("a processor of which {} is used", self.instructions()),
            });
        }
        Ok(CpuBackend { precision: Precision::Bf16, products, ..self })
    }

    /// How products are made.
    pub fn products(&self) -> Products {
        self.products
    }

    /// How convolutions multiply.
    fn arithmetic(&self) -> Arithmetic {
        Arithmetic { isa: self.isa, products: self.products, winograd: !self.exact }
    }

    /// Storage of `len` zeros, or an error where there is not enough memory.
    fn allocate<T: Element>(&self, len: usize) -> Result<Storage<T>> {
        let storage = self.pool.install(|| Storage::zeros(len));
        self.count::<T, _>(len, storage)
    }

    /// A list of `len` values, or an error where there is not enough memory.
    fn list<T: Clone>(&self, value: T, len: usize) -> Result<Vec<T>> {
        let mut list = Vec::new();
        let reserved = list.try_reserve_exact(len).ok();
        self.count::<T, _>(len, reserved)?;
        list.resize(len, value);
        Ok(list)
    }

    /// Counts what was allocated for `len` values, or says that there was not enough memory.
    fn count<T, M>(&self, len: usize, memory: Option<M>) -> Result<M> {
        let bytes = len.saturating_mul(size_of::<T>());
        let memory = memory.ok_or_else(|| Error::Memory {
            wanted: bytes,
            free: zfnet_core::memory::available(),
        })?;
        self.allocated_total.fetch_add(bytes, Ordering::Relaxed);
        Ok(memory)
    }

    /// Number of threads.
    pub fn threads(&self) -> usize {
        self.pool.current_num_threads()
    }

    /// The instruction set in use: part of what a bit-identical rerun needs.
    pub fn instructions(&self) -> &'static str {
        match self.products {
            Products::Bf16Pairs => "AVX512-BF16",
            Products::Bf16Tiles => "AMX",
            Products::F32 => self.isa.name(),
        }
    }

    /// Runs `work` on one of the threads, so that all that it divides is divided among them, also what does not ask
    /// the backend: after a fork, say, when no thread of the process is there any more but those of a new backend.
    pub fn install<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.pool.install(work)
    }

    /// Copies on all threads: what memory can do, for [`crate::bench`].
    pub fn copy(&self, to: &mut [f32], from: &[f32]) {
        const CHUNK: usize = 1 << 18;
        self.pool.install(|| {
            let chunks = to.par_chunks_mut(CHUNK).zip(from.par_chunks(CHUNK));
            chunks.for_each(|(to, from)| to.copy_from_slice(from));
        });
    }

    /// Multiplies and adds in registers on all threads, `rounds` times, and says how many
    /// floating-point operations that were: what arithmetic can do, for [`crate::bench`].
    pub fn multiply_adds(&self, rounds: usize) -> f64 {
        let run = match self.products {
            Products::F32 => peak::multiply_adds,
            Products::Bf16Pairs => peak::pair_multiply_adds,
            Products::Bf16Tiles => peak::tile_multiply_adds,
        };
        self.pool.broadcast(|_| run(self.isa, rounds)).iter().sum()
    }
}

/// The values in use of a tensor's storage: those that are the truth, f32 where there are such.
fn values(tensor: &Tensor<CpuBackend>) -> Values<'_> {
    let len = tensor.shape().len();
    match &tensor.buffer {
        Buffer { f32: Some(values), .. } => Values::F32(&values[..len]),
        Buffer { bf16: Some(values), .. } => Values::Bf16(&values[..len]),
        Buffer { f32: None, bf16: None } => unreachable!("a tensor has storage"),
    }
}

/// As [`values`], to be written: not weights, which may have a copy.
fn values_mut(tensor: &mut Tensor<CpuBackend>) -> ValuesMut<'_> {
    let len = tensor.shape().len();
    match &mut tensor.buffer {
        Buffer { f32: Some(values), bf16: None } => ValuesMut::F32(&mut values[..len]),
        Buffer { f32: None, bf16: Some(values) } => ValuesMut::Bf16(&mut values[..len]),
        Buffer { f32: Some(_), bf16: Some(_) } => panic!("weights are written with their copy"),
        Buffer { f32: None, bf16: None } => unreachable!("a tensor has storage"),
    }
}

/// The values that convolutions read: of weights their copy, if they have one.
fn operand(tensor: &Tensor<CpuBackend>) -> Values<'_> {
    match &tensor.buffer.bf16 {
        Some(values) => Values::Bf16(&values[..tensor.shape().len()]),
        None => values(tensor),
    }
}

/// The values of a tensor that is always stored in f32.
#[track_caller]
fn f32s(tensor: &Tensor<CpuBackend>) -> &[f32] {
    match values(tensor) {
        Values::F32(values) => values,
        Values::Bf16(_) => panic!("a tensor of {} is stored in bf16, not in f32", tensor.shape()),
    }
}

/// As [`f32s`], to be written, with their copy in bf16 if they have one.
#[track_caller]
fn weights_mut(tensor: &mut Tensor<CpuBackend>) -> (&mut [f32], Option<&mut [bf16]>) {
    let shape = tensor.shape();
    let Buffer { f32, bf16 } = &mut tensor.buffer;
    let Some(values) = f32 else { panic!("a tensor of {shape} is stored in bf16, not in f32") };
    (&mut values[..shape.len()], bf16.as_mut().map(|copy| &mut copy[..shape.len()]))
}

/// As [`f32s`], to be written: not weights, which may have a copy.
#[track_caller]
fn f32s_mut(tensor: &mut Tensor<CpuBackend>) -> &mut [f32] {
    match weights_mut(tensor) {
        (values, None) => values,
        (_, Some(_)) => panic!("weights are written with their copy"),
    }
}

impl super::sealed::Sealed for CpuBackend {}

impl Backend for CpuBackend {
    type Buffer = Buffer;
    type Bytes = Vec<u8>;
    type Indices = Vec<u32>;
    type Crops = Vec<Crop>;
    type Scratch = conv::Scratch;
    type State = State;
    type Staging = ();
    type Recording = ();
    type Moments = Moments;

    fn id(&self) -> BackendId {
        let instructions = self.instructions().into();
        BackendId::Cpu { instructions, precision: self.precision(), exact: self.exact }
    }

    fn describe(&self) -> String {
        self.id().with_threads(self.threads())
    }

    fn precision(&self) -> Precision {
        self.precision
    }

    fn device(&self) -> &'static str {
        "cpu"
    }

    fn memory(&self) -> Result<Memory> {
        let allocated_total = self.allocated_total.load(Ordering::Relaxed);
        Ok(Memory { allocated_total, free: zfnet_core::memory::available() })
    }

    fn zeros(&self, shape: Shape) -> Result<Tensor<Self>> {
        let f32 = Some(self.allocate(shape.len())?);
        Ok(Tensor::new(shape, Buffer { f32, bf16: None }))
    }

    fn activations(&self, shape: Shape) -> Result<Tensor<Self>> {
        match self.precision() {
            Precision::Bf16 => {
                let bf16 = Some(self.allocate(shape.len())?);
                Ok(Tensor::new(shape, Buffer { f32: None, bf16 }))
            }
            _ => self.zeros(shape),
        }
    }

    fn weights(&self, shape: Shape) -> Result<Tensor<Self>> {
        let mut tensor = self.zeros(shape)?;
        if self.precision() == Precision::Bf16 {
            tensor.buffer.bf16 = Some(self.allocate(shape.len())?);
        }
        Ok(tensor)
    }

    fn bytes(&self, len: usize) -> Result<Vec<u8>> {
        self.list(0, len)
    }

    fn indices(&self, len: usize) -> Result<Vec<u32>> {
        self.list(0, len)
    }

    fn crops(&self, len: usize) -> Result<Vec<Crop>> {
        self.list(Crop { image: 0, y: 0, x: 0, mirror: 0 }, len)
    }

    fn state(&self) -> Result<State> {
        Ok(State::default())
    }

    fn scratch(&self, convolutions: &[ConvDims]) -> Result<conv::Scratch> {
        let ScratchSize { thread, shared } = ScratchSize::of(self.arithmetic(), convolutions);
        let threads = (0..self.threads()).map(|_| self.allocate(thread)).collect::<Result<_>>()?;
        Ok(conv::Scratch::new(threads, self.allocate(shared)?))
    }

    fn upload(&self, dst: &mut Tensor<Self>, src: &[f32]) -> Result<()> {
        let shape = dst.shape();
        assert_eq!(src.len(), shape.len(), "values for {shape}");
        let Buffer { f32, bf16 } = &mut dst.buffer;
        self.pool.install(|| {
            if let Some(values) = f32 {
                pointwise::store(self.isa, ValuesMut::F32(&mut values[..src.len()]), src);
            }
            if let Some(values) = bf16 {
                pointwise::store(self.isa, ValuesMut::Bf16(&mut values[..src.len()]), src);
            }
        });
        Ok(())
    }

    fn download(&self, dst: &mut [f32], src: &Tensor<Self>) -> Result<()> {
        assert_eq!(dst.len(), src.shape().len(), "values of {}", src.shape());
        self.pool.install(|| pointwise::load(self.isa, dst, values(src)));
        Ok(())
    }

    fn upload_from(&self, dst: &mut Tensor<Self>, first: usize, src: &[f32]) -> Result<()> {
        let range = first..first + src.len();
        let (values, copy) = weights_mut(dst);
        let (values, copy) = (&mut values[range.clone()], copy.map(|copy| &mut copy[range]));
        self.pool.install(|| {
            pointwise::store(self.isa, ValuesMut::F32(values), src);
            if let Some(copy) = copy {
                pointwise::store(self.isa, ValuesMut::Bf16(copy), src);
            }
        });
        Ok(())
    }

    fn download_from(&self, dst: &mut [f32], src: &Tensor<Self>, first: usize) -> Result<()> {
        let src = Values::F32(&f32s(src)[first..first + dst.len()]);
        self.pool.install(|| pointwise::load(self.isa, dst, src));
        Ok(())
    }

    fn on_host_mut(tensor: &mut Tensor<Self>) -> Option<&mut [f32]> {
        match weights_mut(tensor) {
            (values, None) => Some(values),
            (_, Some(_)) => None,
        }
    }

    fn upload_bytes(&self, dst: &mut Vec<u8>, src: &[u8]) -> Result<()> {
        dst[..src.len()].copy_from_slice(src);
        Ok(())
    }

    fn download_bytes(&self, dst: &mut [u8], src: &Vec<u8>) -> Result<()> {
        dst.copy_from_slice(&src[..dst.len()]);
        Ok(())
    }

    fn upload_indices(&self, dst: &mut Vec<u32>, src: &[u32]) -> Result<()> {
        dst[..src.len()].copy_from_slice(src);
        Ok(())
    }

    fn upload_crops(&self, dst: &mut Vec<Crop>, src: &[Crop]) -> Result<()> {
        dst[..src.len()].copy_from_slice(src);
        Ok(())
    }

    fn set_state(&self, dst: &mut State, state: StepState) -> Result<()> {
        dst.step = state;
        Ok(())
    }

    fn is_halted(&self, state: &State) -> Result<bool> {
        Ok(state.halted)
    }

    fn halt(&self, state: &mut State) -> Result<()> {
        state.halted = true;
        Ok(())
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn batches_in_flight(&self) -> usize {
        1
    }

    fn staging(&self, _bytes: usize, _samples: usize) -> Result<()> {
        Ok(())
    }

    fn upload_batch(
        &self,
        batch: &mut Batch<Self>,
        pixels: &[u8],
        crops: &[Crop],
        labels: &[u32],
    ) -> Result<()> {
        self.upload_bytes(&mut batch.pixels, pixels)?;
        self.upload_crops(&mut batch.crops, crops)?;
        self.upload_indices(&mut batch.labels, labels)
    }

    fn end_batch(&self, _batch: &mut Batch<Self>) -> Result<()> {
        Ok(())
    }

    fn losses(&self, losses: &mut [f32], batch: &mut Batch<Self>) -> Result<()> {
        losses.copy_from_slice(&f32s(&batch.losses)[..losses.len()]);
        Ok(())
    }

    fn record(&self, _operations: &mut dyn FnMut() -> Result<()>) -> Result<Option<()>> {
        Ok(None)
    }

    fn replay(&self, _recording: &()) -> Result<()> {
        Ok(())
    }

    fn input(
        &self,
        x: &mut Tensor<Self>,
        pixels: &Vec<u8>,
        crops: &Vec<Crop>,
        mean: &Tensor<Self>,
        inverse_std: &Tensor<Self>,
        dims: &InputDims,
    ) -> Result<()> {
        let shape = x.shape();
        let (crops, mean, inverse_std) = (&crops[..shape.n], f32s(mean), f32s(inverse_std));
        self.pool.install(|| {
            let x = values_mut(x);
            pointwise::input(self.isa, x, shape, pixels, crops, mean, inverse_std, dims);
        });
        Ok(())
    }

    fn conv_forward(
        &self,
        y: &mut Tensor<Self>,
        x: &Tensor<Self>,
        weight: &Tensor<Self>,
        bias: Option<&Tensor<Self>>,
        relu: bool,
        dims: &ConvDims,
        scratch: &mut conv::Scratch,
    ) -> Result<()> {
        check(&[(y.shape(), dims.output()), (x.shape(), dims.input())]);
        check(&[(weight.shape(), dims.filter())]);
        let epilogue = &Epilogue { bias: bias.map(f32s), relu };
        let (y, x, weight) = (values_mut(y), values(x), operand(weight));
        self.pool.install(|| {
            conv::forward(self.arithmetic(), y, x, weight, epilogue, dims, scratch);
        });
        Ok(())
    }

    fn conv_backward_data(
        &self,
        dx: &mut Tensor<Self>,
        dy: &Tensor<Self>,
        weight: &Tensor<Self>,
        dims: &ConvDims,
        scratch: &mut conv::Scratch,
    ) -> Result<()> {
        check(&[(dx.shape(), dims.input()), (dy.shape(), dims.output())]);
        check(&[(weight.shape(), dims.filter())]);
        let (dx, dy, weight) = (values_mut(dx), values(dy), operand(weight));
        self.pool.install(|| {
            conv::backward_data(self.arithmetic(), dx, dy, weight, dims, scratch);
        });
        Ok(())
    }

    fn conv_backward_filter(
        &self,
        gradient: &mut Param<Self>,
        dy: &Tensor<Self>,
        x: &Tensor<Self>,
        accumulate: bool,
        dims: &ConvDims,
        scratch: &mut conv::Scratch,
    ) -> Result<()> {
        check(&[(x.shape(), dims.input()), (dy.shape(), dims.output())]);
        check(&[(gradient.weight.shape(), dims.filter())]);
        let (dw, db) = (f32s_mut(&mut gradient.weight), f32s_mut(&mut gradient.bias));
        let (dy, x) = (values(dy), values(x));
        self.pool.install(|| {
            conv::backward_filter(self.arithmetic(), dw, db, dy, x, accumulate, dims, scratch);
        });
        Ok(())
    }

    fn supports_conv_pool(&self, dims: &ConvDims, pool: &PoolDims) -> bool {
        conv::pools(self.arithmetic(), dims, pool)
    }

    fn conv_pool_forward(
        &self,
        y: &mut Tensor<Self>,
        switches: &mut Vec<u8>,
        x: &Tensor<Self>,
        weight: &Tensor<Self>,
        bias: &Tensor<Self>,
        dims: &ConvDims,
        pool: &PoolDims,
        scratch: &mut conv::Scratch,
    ) -> Result<()> {
        check(&[(y.shape(), pool.output()), (x.shape(), dims.input())]);
        check(&[(pool.input(), dims.output()), (weight.shape(), dims.filter())]);
        let epilogue = &Epilogue { bias: Some(f32s(bias)), relu: true };
        let y = (values_mut(y), &mut switches[..pool.output().len()]);
        let (x, weight) = (values(x), operand(weight));
        self.pool.install(|| {
            let sizes = (dims, pool);
            conv::forward_pooled(self.arithmetic(), y, x, weight, epilogue, sizes, scratch);
        });
        Ok(())
    }

    fn conv_pool_backward_filter(
        &self,
        gradient: &mut Param<Self>,
        dy: &Tensor<Self>,
        switches: &Vec<u8>,
        x: &Tensor<Self>,
        accumulate: bool,
        dims: &ConvDims,
        pool: &PoolDims,
        scratch: &mut conv::Scratch,
    ) -> Result<()> {
        check(&[(dy.shape(), pool.output()), (x.shape(), dims.input())]);
        check(&[(pool.input(), dims.output()), (gradient.weight.shape(), dims.filter())]);
        let (dw, db) = (f32s_mut(&mut gradient.weight), f32s_mut(&mut gradient.bias));
        let (dy, x) = ((values(dy), switches.as_slice()), values(x));
        self.pool.install(|| {
            let (arithmetic, sizes) = (self.arithmetic(), (dims, pool));
            conv::backward_filter_pooled(arithmetic, dw, db, dy, x, accumulate, sizes, scratch);
        });
        Ok(())
    }

    fn maxpool_forward(
        &self,
        y: &mut Tensor<Self>,
        switches: &mut Vec<u8>,
        x: &Tensor<Self>,
        dims: &PoolDims,
    ) -> Result<()> {
        check(&[(y.shape(), dims.output()), (x.shape(), dims.input())]);
        let switches = &mut switches[..dims.output().len()];
        let (y, x) = (values_mut(y), values(x));
        self.pool.install(|| pool::forward(self.isa, y, switches, x, dims));
        Ok(())
    }

    fn maxpool_backward(
        &self,
        dx: &mut Tensor<Self>,
        dy: &Tensor<Self>,
        switches: &Vec<u8>,
        images: Option<&Vec<u32>>,
        forward_mask: bool,
        dims: &PoolDims,
    ) -> Result<()> {
        check(&[(dx.shape(), dims.input()), (dy.shape(), dims.output())]);
        let (dy, images) = (values(dy), images.map(Vec::as_slice));
        self.pool.install(|| {
            pool::backward(self.isa, values_mut(dx), dy, switches, images, forward_mask, dims);
        });
        Ok(())
    }

    fn relu_forward(&self, y: &mut Tensor<Self>, x: &Tensor<Self>) -> Result<()> {
        check(&[(y.shape(), x.shape())]);
        let (y, x) = (values_mut(y), values(x));
        self.pool.install(|| pointwise::relu_forward(self.isa, y, x));
        Ok(())
    }

    fn relu_backward(
        &self,
        dy: &mut Tensor<Self>,
        y: &Tensor<Self>,
        images: Option<&Vec<u32>>,
        rule: ReluRule,
    ) -> Result<()> {
        let len = dy.shape().per_image();
        check(&[(dy.shape().with_n(1), y.shape().with_n(1))]);
        let (dy, y, images) = (values_mut(dy), values(y), images.map(Vec::as_slice));
        self.pool.install(|| pointwise::relu_backward(self.isa, dy, y, images, len, rule));
        Ok(())
    }

    fn lrn_forward(&self, y: &mut Tensor<Self>, x: &Tensor<Self>, lrn: &Lrn) -> Result<()> {
        check(&[(y.shape(), x.shape())]);
        let c = x.shape().c;
        self.pool.install(|| lrn::forward(self.isa, values_mut(y), values(x), c, lrn));
        Ok(())
    }

    fn lrn_backward(
        &self,
        dx: &mut Tensor<Self>,
        dy: &Tensor<Self>,
        x: &Tensor<Self>,
        images: Option<&Vec<u32>>,
        lrn: &Lrn,
    ) -> Result<()> {
        check(&[(dx.shape(), dy.shape()), (dy.shape().with_n(1), x.shape().with_n(1))]);
        let (len, c) = (dy.shape().per_image(), dy.shape().c);
        let (dy, x, images) = (values(dy), values(x), images.map(Vec::as_slice));
        self.pool.install(|| lrn::backward(self.isa, values_mut(dx), dy, x, images, len, c, lrn));
        Ok(())
    }

    fn dropout(
        &self,
        y: &mut Tensor<Self>,
        x: &Tensor<Self>,
        dropout: &Dropout,
        state: &State,
    ) -> Result<()> {
        check(&[(y.shape(), x.shape())]);
        let shape = x.shape();
        self.pool.install(|| {
            let (y, x) = (values_mut(y), values(x));
            pointwise::dropout(self.isa, y, x, shape, dropout, &state.step);
        });
        Ok(())
    }

    fn softmax_cross_entropy(
        &self,
        losses: &mut Tensor<Self>,
        dlogits: &mut Tensor<Self>,
        logits: &Tensor<Self>,
        labels: &Vec<u32>,
        scale: f32,
        state: &mut State,
    ) -> Result<()> {
        check(&[(dlogits.shape(), logits.shape())]);
        let (classes, losses) = (logits.shape().c, f32s_mut(losses));
        let (dlogits, logits) = (values_mut(dlogits), f32s(logits));
        let finite = self
            .pool
            .install(|| softmax::cross_entropy(losses, dlogits, logits, labels, scale, classes));
        state.halted |= !finite;
        Ok(())
    }

    fn channel_max(&self, peaks: &mut [Peak], x: &Tensor<Self>) -> Result<()> {
        let shape = x.shape();
        assert_eq!(peaks.len(), shape.n * shape.c);
        self.pool.install(|| look::channel_max(peaks, values(x), shape));
        Ok(())
    }

    fn channel_sum(&self, sums: &mut [f32], x: &Tensor<Self>) -> Result<()> {
        let shape = x.shape();
        assert_eq!(sums.len(), shape.n * shape.c);
        self.pool.install(|| look::channel_sum(self.isa, sums, values(x), shape));
        Ok(())
    }

    fn moments(&self, maps: usize, most: usize) -> Result<Moments> {
        Ok(Moments { of_maps: vec![MapMoments::zeroed(); maps], sums: look::MomentSums::new(most) })
    }

    fn map_moments(&self, dst: &mut Moments, first: usize, x: &Tensor<Self>) -> Result<()> {
        let (shape, Moments { of_maps, sums }) = (x.shape(), dst);
        let of_maps = &mut of_maps[first..][..shape.c];
        self.pool.install(|| look::map_moments(self.isa, of_maps, values(x), shape, sums));
        Ok(())
    }

    fn send_moments(&self, _moments: &mut Moments) -> Result<()> {
        Ok(())
    }

    fn received_moments(&self, dst: &mut [MapMoments], moments: &Moments) -> Result<()> {
        dst.copy_from_slice(&moments.of_maps[..dst.len()]);
        Ok(())
    }

    fn scatter_units(&self, dy: &mut Tensor<Self>, units: &[SeedUnit]) -> Result<()> {
        let shape = dy.shape();
        assert_eq!(units.len(), shape.n);
        look::scatter_units(values_mut(dy), units, shape);
        Ok(())
    }

    fn gather_windows(
        &self,
        dst: &mut Tensor<Self>,
        src: &Tensor<Self>,
        images: Option<&Vec<u32>>,
        units: &Vec<u32>,
        windows: &Windows,
    ) -> Result<()> {
        let Shape { n, c, .. } = dst.shape();
        check(&[(dst.shape(), windows.shape(n, c))]);
        check(&[(src.shape().with_n(1), windows.inverse().shape(1, c))]);
        let (dst, src, images) = (values_mut(dst), values(src), images.map(Vec::as_slice));
        self.pool.install(|| window::gather_windows(dst, src, images, units, windows, c));
        Ok(())
    }

    fn gather_switches(
        &self,
        dst: &mut Vec<u8>,
        src: &Vec<u8>,
        images: Option<&Vec<u32>>,
        units: &Vec<u32>,
        windows: &Windows,
        forward_mask: bool,
        dims: &PoolDims,
    ) -> Result<()> {
        assert_eq!(windows.map, [dims.p, dims.q], "operands disagree");
        let dst = &mut dst[..windows.shape(dims.n as usize, dims.c as usize).len()];
        let images = images.map(Vec::as_slice);
        self.pool.install(|| {
            window::gather_switches(dst, src, images, units, windows, forward_mask, dims);
        });
        Ok(())
    }

    fn zero_out_of_bounds(
        &self,
        x: &mut Tensor<Self>,
        units: &Vec<u32>,
        windows: &Windows,
    ) -> Result<()> {
        let Shape { n, c, .. } = x.shape();
        check(&[(x.shape(), windows.shape(n, c))]);
        let x = values_mut(x);
        self.pool.install(|| window::zero_out_of_bounds(x, units, windows, c));
        Ok(())
    }

    fn add(&self, y: &mut Tensor<Self>, x: &Tensor<Self>) -> Result<()> {
        check(&[(y.shape(), x.shape())]);
        let (y, x) = (f32s_mut(y), f32s(x));
        self.pool.install(|| pointwise::add(self.isa, y, x));
        Ok(())
    }

    fn sgd_step(
        &self,
        w: &mut Tensor<Self>,
        v: &mut Tensor<Self>,
        g: &Tensor<Self>,
        constants: &SgdConstants,
        state: &State,
    ) -> Result<()> {
        check(&[(w.shape(), v.shape())]);
        let constants = *constants;
        self.update(&mut [Update { w, first: 0, v, g, constants, rms_limit: None }], state)
    }

    fn update(&self, updates: &mut [Update<'_, Self>], state: &State) -> Result<()> {
        if state.halted {
            return Ok(());
        }
        let rate = state.step.learning_rate;
        for Update { w, first, v, g, constants, rms_limit } in updates {
            check(&[(v.shape(), g.shape())]);
            let filter = v.shape().per_image();
            let range = *first..*first + v.shape().len();
            let (w, copy) = weights_mut(w);
            let (w, mut copy) = (&mut w[range.clone()], copy.map(|copy| &mut copy[range]));
            let (v, g) = (f32s_mut(v), f32s(g));
            self.pool.install(|| {
                pointwise::sgd_step(self.isa, w, copy.as_deref_mut(), v, g, constants, rate);
                if let Some(limit) = *rms_limit {
                    pointwise::limit_rms(self.isa, w, copy, filter, limit);
                }
            });
        }
        Ok(())
    }

    fn limit_rms(&self, weight: &mut Tensor<Self>, limit: f32, state: &State) -> Result<()> {
        if state.halted {
            return Ok(());
        }
        let len = weight.shape().per_image();
        let (weight, copy) = weights_mut(weight);
        self.pool.install(|| pointwise::limit_rms(self.isa, weight, copy, len, limit));
        Ok(())
    }
}

/// Panics, with the shapes, where operands disagree: a planning mistake.
#[track_caller]
fn check(pairs: &[(Shape, Shape)]) {
    for (found, expected) in pairs {
        assert_eq!(found, expected, "operands disagree");
    }
}
