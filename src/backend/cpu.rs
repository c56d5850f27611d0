//! The CPU backend: rayon for threads, products and Winograd transformations in registers, plain loops
//! compiled for AVX2 and AVX-512 besides the portable form, the choice made once when the backend is
//! created.
//!
//! All work is cut by sizes alone and no float is added in an order that threads decide, so
//! results are bit-identical for any number of threads.

use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;
use zfnet_cpu::conv::{self, Arithmetic, Epilogue, ScratchSize};
use zfnet_cpu::isa::Isa;
use zfnet_cpu::memory::Storage;
use zfnet_cpu::{Words, lrn, peak, pointwise, pool, window};

use super::{
    Backend, BackendId, Batch, Crop, Dropout, InputDims, Lrn, Memory, Param, Peak, Precision,
    ReluRule, SeedUnit, SgdConstants, StepState, Tensor,
};
use crate::shape::{ConvDims, PoolDims, Shape, Windows};
use crate::{Error, Result};

/// Runs on the cores of this machine.
pub struct CpuBackend {
    pool: rayon::ThreadPool,
    isa: Isa,
    words: Words,
    exact: bool,
    allocated_total: AtomicUsize,
}

/// A tensor's values.
pub struct Buffer {
    values: Storage<f32>,
    /// Whether they are rounded to bf16, each in the space of an f32.
    bf16: bool,
}

/// What operations read of the step.
#[derive(Default)]
pub struct State {
    step: StepState,
    halted: bool,
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
            words: Words::F32,
            exact: false,
            allocated_total: AtomicUsize::new(0),
        })
    }

    /// Leaves Winograd's method alone: convolutions multiply what they are given, and sums of small
    /// integers are exact.
    pub fn exact(self) -> Self {
        CpuBackend { exact: true, ..self }
    }

    /// Keeps activations in bf16 and multiplies pairs of them: sums, weights and their gradients stay
    /// in f32.
    ///
    /// # Errors
    /// If the machine has no instructions for it (AVX512-BF16).
    pub fn bf16(self) -> Result<Self> {
        if !self.isa.has_bf16() {
            return Err(Error::UnsupportedPrecision {
                precision: Precision::Bf16,
                expected: "AVX512-BF16",
                found: format!("a processor of which {} is used", self.instructions()),
            });
        }
        Ok(CpuBackend { words: Words::Bf16Pairs, ..self })
    }

    /// Rounds an operation's result to what its tensor stores.
    fn round(&self, tensor: &mut Tensor<Self>) {
        const CHUNK: usize = 1 << 14;
        if tensor.buffer.bf16 {
            let chunks = values_mut(tensor).par_chunks_mut(CHUNK);
            self.pool.install(|| chunks.for_each(|values| pointwise::round(self.isa, values)));
        }
    }

    /// How convolutions multiply.
    fn arithmetic(&self) -> Arithmetic {
        Arithmetic { isa: self.isa, words: self.words, winograd: !self.exact }
    }

    /// Storage of `len` zeros, or an error where there is not enough memory.
    fn allocate(&self, len: usize) -> Result<Storage<f32>> {
        let storage = self.pool.install(|| Storage::zeros(len));
        self.count::<f32, _>(len, storage)
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
        self.isa.name()
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
        self.pool.broadcast(|_| peak::multiply_adds(self.isa, rounds)).iter().sum()
    }
}

/// The values in use of a tensor's storage.
fn values(tensor: &Tensor<CpuBackend>) -> &[f32] {
    &tensor.buffer.values[..tensor.shape().len()]
}

/// As [`values`], to be written.
fn values_mut(tensor: &mut Tensor<CpuBackend>) -> &mut [f32] {
    let len = tensor.shape().len();
    &mut tensor.buffer.values[..len]
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

    fn id(&self) -> BackendId {
        let instructions = self.instructions().into();
        BackendId::Cpu { instructions, precision: self.precision(), exact: self.exact }
    }

    fn describe(&self) -> String {
        self.id().with_threads(self.threads())
    }

    fn precision(&self) -> Precision {
        match self.words {
            Words::F32 => Precision::F32,
            Words::Bf16Pairs => Precision::Bf16,
        }
    }

    fn device(&self) -> &'static str {
        "cpu"
    }

    fn memory(&self) -> Result<Memory> {
        let allocated_total = self.allocated_total.load(Ordering::Relaxed);
        Ok(Memory { allocated_total, free: zfnet_core::memory::available() })
    }

    fn zeros(&self, shape: Shape) -> Result<Tensor<Self>> {
        Ok(Tensor::new(shape, Buffer { values: self.allocate(shape.len())?, bf16: false }))
    }

    fn activations(&self, shape: Shape) -> Result<Tensor<Self>> {
        let bf16 = self.words == Words::Bf16Pairs;
        Ok(Tensor::new(shape, Buffer { values: self.allocate(shape.len())?, bf16 }))
    }

    fn weights(&self, shape: Shape) -> Result<Tensor<Self>> {
        self.zeros(shape)
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
        values_mut(dst).copy_from_slice(src);
        self.round(dst);
        Ok(())
    }

    fn download(&self, dst: &mut [f32], src: &Tensor<Self>) -> Result<()> {
        dst.copy_from_slice(values(src));
        Ok(())
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
        losses.copy_from_slice(&batch.losses.buffer.values[..losses.len()]);
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
        let (crops, mean, inverse_std) = (&crops[..shape.n], values(mean), values(inverse_std));
        self.pool.install(|| {
            let x = values_mut(x);
            pointwise::input(self.isa, x, shape, pixels, crops, mean, inverse_std, dims);
        });
        self.round(x);
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
        let epilogue = &Epilogue { bias: bias.map(values), relu, round: y.buffer.bf16 };
        let (y, x, weight) = (values_mut(y), values(x), values(weight));
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
        let epilogue = &Epilogue { round: dx.buffer.bf16, ..Epilogue::default() };
        let (dx, dy, weight) = (values_mut(dx), values(dy), values(weight));
        self.pool.install(|| {
            conv::backward_data(self.arithmetic(), dx, dy, weight, epilogue, dims, scratch);
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
        let (dw, db) = (values_mut(&mut gradient.weight), values_mut(&mut gradient.bias));
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
        let epilogue = &Epilogue { bias: Some(values(bias)), relu: true, round: y.buffer.bf16 };
        let y = (values_mut(y), &mut switches[..pool.output().len()]);
        let (x, weight) = (values(x), values(weight));
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
        let (dw, db) = (values_mut(&mut gradient.weight), values_mut(&mut gradient.bias));
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
        self.round(dx);
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
        self.round(y);
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
        self.round(dx);
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
        self.round(y);
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
        let classes = logits.shape().c;
        let rows = values_mut(dlogits).chunks_exact_mut(classes).zip(values_mut(losses));
        let rows = rows.zip(values(logits).chunks_exact(classes)).zip(labels);
        for (((gradient, loss), logits), &label) in rows {
            let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let mut sum = 0.0f64;
            for (g, logit) in gradient.iter_mut().zip(logits) {
                *g = (logit - max).exp();
                sum += f64::from(*g);
            }
            *loss = (sum.ln() - f64::from(logits[label as usize] - max)) as f32;
            state.halted |= !loss.is_finite();
            let factor = (1.0 / sum) as f32;
            for (class, g) in gradient.iter_mut().enumerate() {
                let target = if class == label as usize { 1.0 } else { 0.0 };
                *g = (*g * factor - target) * scale;
            }
        }
        self.round(dlogits);
        Ok(())
    }

    fn channel_max(&self, peaks: &mut [Peak], x: &Tensor<Self>) -> Result<()> {
        let shape = x.shape();
        assert_eq!(peaks.len(), shape.n * shape.c);
        let x = values(x);
        self.pool.install(|| {
            let images = peaks.par_chunks_mut(shape.c).zip(x.par_chunks(shape.per_image()));
            images.for_each(|(peaks, x)| {
                for (position, x) in (0u32..).zip(x.chunks_exact(shape.c)) {
                    for (peak, &value) in peaks.iter_mut().zip(x) {
                        let larger = value > peak.value || value.is_nan();
                        if position == 0 || larger && !peak.value.is_nan() {
                            *peak = Peak { value, position };
                        }
                    }
                }
            });
        });
        Ok(())
    }

    fn channel_sum(&self, sums: &mut [f32], x: &Tensor<Self>) -> Result<()> {
        let shape = x.shape();
        assert_eq!(sums.len(), shape.n * shape.c);
        let x = values(x);
        self.pool.install(|| {
            let images = sums.par_chunks_mut(shape.c).zip(x.par_chunks(shape.per_image()));
            images.for_each(|(sums, x)| {
                sums.fill(0.0);
                for x in x.chunks_exact(shape.c) {
                    for (sum, value) in sums.iter_mut().zip(x) {
                        *sum += value;
                    }
                }
            });
        });
        Ok(())
    }

    fn scatter_units(&self, dy: &mut Tensor<Self>, units: &[SeedUnit]) -> Result<()> {
        let Shape { h, w, c, .. } = dy.shape();
        assert_eq!(units.len(), dy.shape().n);
        values_mut(dy).fill(0.0);
        for (dy, unit) in values_mut(dy).chunks_exact_mut(h * w * c).zip(units) {
            let [map, y, x] = [unit.map, unit.y, unit.x].map(|v| v as usize);
            assert!(map < c && y < h && x < w, "unit {unit:?} outside [{h}, {w}, {c}]");
            dy[(y * w + x) * c + map] = unit.value;
        }
        self.round(dy);
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

    fn sgd_step(
        &self,
        w: &mut Tensor<Self>,
        v: &mut Tensor<Self>,
        g: &Tensor<Self>,
        constants: &SgdConstants,
        state: &State,
    ) -> Result<()> {
        check(&[(w.shape(), v.shape()), (w.shape(), g.shape())]);
        if state.halted {
            return Ok(());
        }
        let (w, v, g) = (values_mut(w), values_mut(v), values(g));
        let rate = state.step.learning_rate;
        self.pool.install(|| pointwise::sgd_step(self.isa, w, v, g, constants, rate));
        Ok(())
    }

    fn limit_rms(&self, weight: &mut Tensor<Self>, limit: f32, state: &State) -> Result<()> {
        if state.halted {
            return Ok(());
        }
        let len = weight.shape().per_image();
        let weight = values_mut(weight);
        self.pool.install(|| pointwise::limit_rms(weight, len, limit));
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
