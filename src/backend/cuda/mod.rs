//! The CUDA backend: our own kernels (`kernels/*.cu`) on an NVIDIA GPU, through CUDA's driver.
//!
//! Every operation checks its operands and launches kernels on one stream, in order; nothing is
//! waited for but where values go to the host. No float is added atomically and work is cut by
//! sizes alone, so reruns are bit-identical.

mod blas;
mod conv;
mod device;
mod exchange;
mod hopper;
mod measure;
mod moments;
mod nccl;
mod plan;
mod update;

use std::any::Any;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex};

use cudarc::driver::{CudaEvent, CudaGraph, sys};
use device::{Device, Divisor, Launch, Memory, Pinned, failed, launch};
use half::bf16;
use rayon::prelude::*;

pub use blas::present as has_cublaslt;
pub use device::{count as devices, driver};
pub use exchange::NcclExchange;
pub use nccl::{Communicator, Group, UniqueId};

/// A number of this build: another where the compiled kernels, what launches them, or the test that
/// compares them has changed.
pub fn build() -> String {
    let mut hasher = DefaultHasher::new();
    device::images().for_each(|image| image.hash(&mut hasher));
    [
        include_str!("blas.rs"),
        include_str!("conv.rs"),
        include_str!("device.rs"),
        include_str!("hopper.rs"),
        include_str!("mod.rs"),
        include_str!("moments.rs"),
        include_str!("plan.rs"),
        include_str!("update.rs"),
        include_str!("../mod.rs"),
        include_str!("../../selftest.rs"),
    ]
    .hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

use super::philox::keep_threshold;
use super::{
    Backend, BackendId, Batch, Crop, Dropout, HostMemory, InputDims, Lrn, MapMoments, Param, Peak,
    Precision, ReluRule, SeedUnit, SgdConstants, StepState, Tensor, Update,
};
use crate::model::Network;
use crate::ranks::Ranks;
use crate::shape::{ConvDims, PoolDims, Shape, Windows};
use crate::train::Exchange;
use crate::{Error, Result};

/// A [`StepState`] and whether updates are halted, as `StepState` of `common.cuh` has them.
const STATE_BYTES: usize = 24;
const _: () =
    assert!(std::mem::offset_of!(StepState, learning_rate) + 2 * size_of::<f32>() == STATE_BYTES);
/// Where in it `halted` is.
const HALTED: usize = STATE_BYTES - size_of::<u32>();

/// Values of a block of `lrn.cu`.
const LRN_TILE: usize = 1024;

/// Batches under way at a time: one is worked on, one is copied, one is made ready.
const IN_FLIGHT: usize = 3;

/// What multiplies the matrices of fully connected layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gemm {
    /// NVIDIA's cuBLASLt, loaded if the machine has it. In TF32 it takes the operands as they are,
    /// and rounds them in its own way.
    CublasLt,
    /// The kernels that do the other convolutions.
    Own,
}

/// How convolutions are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernels {
    /// The fastest of the precision and the GPU: in bf16 on Hopper by its own instructions.
    Fast,
    /// Those of tensor cores that every GPU since Ampere has, also on Hopper.
    Mma,
    /// One thread an output, in f32: slow, and short enough to be checked by reading. For tests.
    Plain,
}

/// What a [`CudaBackend`] is to be.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Number of the GPU.
    pub device: usize,
    /// Precision; the best that the GPU has for `None`: bf16, or f32 before Ampere.
    pub precision: Option<Precision>,
    /// Library for fully connected layers; cuBLASLt where it is there for `None`.
    pub gemm: Option<Gemm>,
    /// Convolutions.
    pub kernels: Kernels,
    /// Blocks, at most, of kernels whose blocks take one item after another; as many as the GPU has multiprocessors for
    /// `None`. While values are exchanged with other GPUs every item has a block. Results do not depend on it: few, so that
    /// small operands are several items for each, are for tests.
    pub blocks: Option<u32>,
}

impl Default for Options {
    fn default() -> Self {
        Options { device: 0, precision: None, gemm: None, kernels: Kernels::Fast, blocks: None }
    }
}

/// Runs on an NVIDIA GPU.
pub struct CudaBackend {
    device: Arc<Device>,
    precision: Precision,
    kernels: Kernels,
    /// See [`Options::blocks`].
    blocks: u32,
    blas: Option<blas::Blas>,
    /// On the GPU: seeds on their way in, peaks and sums on their way out. It grows.
    staging: Mutex<Memory>,
}

/// Storage of a tensor: f32, bf16, or (for weights in bf16) both.
pub struct Buffer {
    f32: Option<Memory>,
    bf16: Option<Memory>,
}

/// How a tensor's values are stored, as the kernels' names tell it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Storage {
    F32,
    Bf16,
}

impl Buffer {
    fn storage(&self) -> Storage {
        if self.f32.is_some() { Storage::F32 } else { Storage::Bf16 }
    }

    /// Address of the values that are the truth: f32 where there are such.
    fn values(&self) -> u64 {
        self.f32.as_ref().or(self.bf16.as_ref()).map_or(0, Memory::pointer)
    }

    /// Address of the values that convolutions read.
    fn operand(&self) -> u64 {
        self.bf16.as_ref().or(self.f32.as_ref()).map_or(0, Memory::pointer)
    }

    /// Address of the bf16 copy of f32 values, or null.
    fn copy(&self) -> u64 {
        match self {
            Buffer { f32: Some(_), bf16: Some(copy) } => copy.pointer(),
            _ => 0,
        }
    }
}

/// Chooses a kernel by storage.
fn by(storage: Storage, f32: &'static str, bf16: &'static str) -> &'static str {
    match storage {
        Storage::F32 => f32,
        Storage::Bf16 => bf16,
    }
}

/// Address of a list of images, or null.
fn list(images: Option<&Memory>) -> u64 {
    images.map_or(0, Memory::pointer)
}

/// Pinned copies of a batch on its way, and the events that order them.
pub struct Staging {
    /// Exchanged for what a batch has been read into, where that is pinned too.
    pixels: Pinned,
    crops: Pinned,
    labels: Pinned,
    losses: Pinned,
    copied: CudaEvent,
    done: CudaEvent,
}

impl CudaBackend {
    /// Opens a GPU.
    ///
    /// # Errors
    /// If there is no driver, no such GPU, or it cannot do what is asked.
    pub fn new(options: Options) -> Result<Self> {
        let device = Arc::new(Device::open(options.device)?);
        let (major, minor) = device.capability();
        let ampere = (major, minor) >= device::TENSOR;
        let best = if ampere { Precision::Bf16 } else { Precision::F32 };
        let precision = options.precision.unwrap_or(best);
        if precision != Precision::F32 && !ampere {
            return Err(Error::UnsupportedPrecision {
                precision,
                expected: "compute capability 8.0 (Ampere) or later",
                found: format!("{major}.{minor} ({})", device.name()),
            });
        }
        let blas = match options.gemm {
            Some(Gemm::Own) => None,
            None if !blas::present() => None,
            Some(Gemm::CublasLt) if !blas::present() => {
                return Err(Error::MissingLibrary { name: "cuBLASLt", file: "libcublasLt.so" });
            }
            _ => Some(blas::Blas::new()?),
        };
        let staging = Mutex::new(device.allocate(1 << 16)?);
        let blocks = options.blocks.unwrap_or(device.multiprocessors()).max(1);
        let kernels = options.kernels;
        Ok(CudaBackend { device, precision, kernels, blocks, blas, staging })
    }

    /// What multiplies the matrices of fully connected layers.
    pub fn gemm(&self) -> Gemm {
        if self.blas.is_some() { Gemm::CublasLt } else { Gemm::Own }
    }

    /// What convolutions are computed by: "wgmma" or "mma.sync", products of tensor cores; "tiles", of f32;
    /// or "plain" loops.
    pub fn convolutions(&self) -> &'static str {
        conv::arithmetic(self).name()
    }

    /// The GPU, for people: its name and compute capability.
    pub fn gpu(&self) -> String {
        let (major, minor) = self.device.capability();
        format!("{} (compute capability {major}.{minor})", self.device.name())
    }

    /// The kernels and libraries that operations have used since the last call of this; the first call
    /// begins the list.
    pub fn kernels_used(&self) -> Vec<&'static str> {
        self.device.noted().into_iter().collect()
    }

    fn allocate(&self, bytes: usize) -> Result<Memory> {
        self.device.allocate(bytes)
    }

    fn f32(&self, len: usize) -> Result<Memory> {
        self.allocate(4 * len)
    }

    /// Works with at least `bytes` of memory between host and GPU.
    fn through<T>(&self, bytes: usize, work: impl FnOnce(&Memory) -> Result<T>) -> Result<T> {
        let mut staging = self.staging.lock().expect("no thread panicked here");
        if staging.bytes() < bytes {
            *staging = self.allocate(bytes)?;
        }
        work(&staging)
    }

    /// A value for each map of each image, by a kernel of `look.cu`.
    fn per_map<T: bytemuck::Pod>(
        &self,
        name: &'static str,
        values: &mut [T],
        x: &Tensor<Self>,
    ) -> Result<()> {
        let Shape { n, h, w, c } = x.shape();
        assert_eq!(values.len(), n * c);
        let grid = [c.div_ceil(32) as u32, n as u32, 1];
        let spread = Launch { grid, block: [32, 8, 1], shared: 0 };
        self.through(size_of_val(values), |memory| {
            let (hw, c) = ((h * w) as u32, c as u32);
            launch!(self.device, name, spread, memory.pointer(), x.buffer.values(), hw, c)?;
            self.device.download(values, memory)
        })
    }
}

impl CudaBackend {
    /// Copies a batch to the GPU, beside the kernels: its first `bytes` of pixels, which are in its
    /// pinned memory, its crops and its labels. The copy before from there has been waited for.
    fn send_batch(
        &self,
        batch: &mut Batch<Self>,
        bytes: usize,
        crops: &[Crop],
        labels: &[u32],
    ) -> Result<()> {
        let Staging { pixels, crops: pinned_crops, labels: pinned_labels, copied, done, .. } =
            &mut batch.staging;
        let Device { stream, copies, .. } = &*self.device;
        // What was copied before has been used.
        copies.wait(done).map_err(failed("order streams"))?;
        pixels.upload(&batch.pixels, bytes, copies)?;
        let small: [(&mut Pinned, &Memory, &[u8]); 2] = [
            (pinned_crops, &batch.crops, bytemuck::cast_slice(crops)),
            (pinned_labels, &batch.labels, bytemuck::cast_slice(labels)),
        ];
        for (pinned, memory, bytes) in small {
            pinned.bytes_mut()[..bytes.len()].copy_from_slice(bytes);
            pinned.upload(memory, bytes.len(), copies)?;
        }
        copied.record(copies).map_err(failed("record an event"))?;
        stream.wait(copied).map_err(failed("order streams"))
    }
}

impl super::sealed::Sealed for CudaBackend {}

impl Backend for CudaBackend {
    type Buffer = Buffer;
    type Bytes = Memory;
    type Indices = Memory;
    type Crops = Memory;
    type Scratch = conv::Scratch;
    type State = Memory;
    type Staging = Staging;
    type Recording = CudaGraph;
    type Moments = moments::Moments;

    fn id(&self) -> BackendId {
        BackendId::Cuda {
            name: self.device.name(),
            capability: self.device.capability(),
            precision: self.precision,
            cublaslt: self.blas.as_ref().map(blas::Blas::version),
            convolutions: self.convolutions().into(),
        }
    }

    fn precision(&self) -> Precision {
        self.precision
    }

    fn device(&self) -> &'static str {
        "cuda"
    }

    fn exchange(
        &self,
        network: &Network,
        ranks: &Ranks,
    ) -> Result<Option<Box<dyn Exchange<Self>>>> {
        Ok(exchange::direct(self, network, ranks)?.map(|exchange| Box::new(exchange) as _))
    }

    fn memory(&self) -> Result<super::Memory> {
        let (allocated_total, free) = self.device.memory()?;
        Ok(super::Memory { allocated_total, free: Some(free) })
    }

    fn zeros(&self, shape: Shape) -> Result<Tensor<Self>> {
        Ok(Tensor::new(shape, Buffer { f32: Some(self.f32(shape.len())?), bf16: None }))
    }

    fn activations(&self, shape: Shape) -> Result<Tensor<Self>> {
        match self.precision {
            Precision::F32 | Precision::Tf32 => self.zeros(shape),
            Precision::Bf16 => {
                let half = self.allocate(2 * shape.len())?;
                Ok(Tensor::new(shape, Buffer { f32: None, bf16: Some(half) }))
            }
        }
    }

    fn weights(&self, shape: Shape) -> Result<Tensor<Self>> {
        let mut weights = self.zeros(shape)?;
        if self.precision == Precision::Bf16 {
            weights.buffer.bf16 = Some(self.allocate(2 * shape.len())?);
        }
        Ok(weights)
    }

    fn bytes(&self, len: usize) -> Result<Memory> {
        self.allocate(len)
    }

    fn indices(&self, len: usize) -> Result<Memory> {
        self.allocate(4 * len)
    }

    fn crops(&self, len: usize) -> Result<Memory> {
        self.allocate(size_of::<Crop>() * len)
    }

    fn state(&self) -> Result<Memory> {
        self.allocate(STATE_BYTES)
    }

    fn scratch(&self, convolutions: &[ConvDims]) -> Result<conv::Scratch> {
        conv::Scratch::new(self, convolutions)
    }

    fn upload(&self, dst: &mut Tensor<Self>, src: &[f32]) -> Result<()> {
        let len = dst.shape().len();
        assert_eq!(src.len(), len);
        let Buffer { f32, bf16: half } = &dst.buffer;
        match (f32, half) {
            (Some(values), copy) => {
                self.device.upload(values, src)?;
                let Some(copy) = copy else { return Ok(()) };
                let (copy, values) = (copy.pointer(), values.pointer());
                let spread = Launch::per_value(len.div_ceil(4));
                launch!(self.device, "to_bf16", spread, copy, values, len as u64)
            }
            (None, Some(half)) => {
                let rounded: Vec<u16> =
                    src.par_iter().map(|v| bf16::from_f32(*v).to_bits()).collect();
                self.device.upload(half, &rounded)
            }
            (None, None) => Ok(()),
        }
    }

    fn download(&self, dst: &mut [f32], src: &Tensor<Self>) -> Result<()> {
        assert_eq!(dst.len(), src.shape().len());
        match (&src.buffer.f32, &src.buffer.bf16) {
            (Some(values), _) => self.device.download(dst, values),
            (None, Some(half)) => {
                let mut bits = vec![0u16; dst.len()];
                self.device.download(&mut bits, half)?;
                dst.iter_mut().zip(bits).for_each(|(v, bits)| *v = bf16::from_bits(bits).to_f32());
                Ok(())
            }
            (None, None) => Ok(()),
        }
    }

    fn upload_from(&self, dst: &mut Tensor<Self>, first: usize, src: &[f32]) -> Result<()> {
        let Buffer { f32: Some(values), bf16: copy } = &dst.buffer else {
            panic!("a tensor of {} is stored in bf16, not in f32", dst.shape())
        };
        self.device.upload_at(values, size_of::<f32>() * first, src)?;
        let Some(copy) = copy else { return Ok(()) };
        let to = copy.pointer() + (size_of::<bf16>() * first) as u64;
        let from = values.pointer() + (size_of::<f32>() * first) as u64;
        let spread = Launch::per_value(src.len().div_ceil(4));
        launch!(self.device, "to_bf16", spread, to, from, src.len() as u64)
    }

    fn download_from(&self, dst: &mut [f32], src: &Tensor<Self>, first: usize) -> Result<()> {
        let Some(values) = &src.buffer.f32 else {
            panic!("a tensor of {} is stored in bf16, not in f32", src.shape())
        };
        self.device.download_at(dst, values, size_of::<f32>() * first)
    }

    fn upload_bytes(&self, dst: &mut Memory, src: &[u8]) -> Result<()> {
        self.device.upload(dst, src)
    }

    fn download_bytes(&self, dst: &mut [u8], src: &Memory) -> Result<()> {
        self.device.download(dst, src)
    }

    fn upload_indices(&self, dst: &mut Memory, src: &[u32]) -> Result<()> {
        self.device.upload(dst, src)
    }

    fn upload_crops(&self, dst: &mut Memory, src: &[Crop]) -> Result<()> {
        self.device.upload(dst, src)
    }

    fn set_state(&self, dst: &mut Memory, state: StepState) -> Result<()> {
        let StepState { seed, step, first_sample, learning_rate: rate } = state;
        let one = Launch { grid: [1; 3], block: [1; 3], shared: 0 };
        launch!(self.device, "set_state", one, dst.pointer(), seed, step, first_sample, rate)
    }

    fn is_halted(&self, state: &Memory) -> Result<bool> {
        let mut halted = [0u32];
        self.device.download_at(&mut halted, state, HALTED)?;
        Ok(halted != [0])
    }

    fn halt(&self, state: &mut Memory) -> Result<()> {
        self.device.upload_at(state, HALTED, &[1u32])
    }

    fn synchronize(&self) -> Result<()> {
        self.device.synchronize()
    }

    fn batches_in_flight(&self) -> usize {
        IN_FLIGHT
    }

    fn staging(&self, bytes: usize, samples: usize) -> Result<Staging> {
        // The buffers of this batch have been zeroed in the order of the kernels' stream: the first
        // copy, on another, is not to come before that.
        let done = self.device.event()?;
        done.record(&self.device.stream).map_err(failed("record an event"))?;
        Ok(Staging {
            pixels: self.device.pinned(bytes)?,
            crops: self.device.pinned(size_of::<Crop>() * samples)?,
            labels: self.device.pinned(4 * samples)?,
            losses: self.device.pinned(4 * samples)?,
            copied: self.device.event()?,
            done,
        })
    }

    fn upload_batch(
        &self,
        batch: &mut Batch<Self>,
        pixels: &[u8],
        crops: &[Crop],
        labels: &[u32],
    ) -> Result<()> {
        // What this memory held last has been copied.
        self.device.wait(&batch.staging.copied, "wait for a copy")?;
        batch.staging.pixels.bytes_mut()[..pixels.len()].copy_from_slice(pixels);
        self.send_batch(batch, pixels.len(), crops, labels)
    }

    fn host_memory(&self, bytes: usize) -> Result<Box<dyn HostMemory>> {
        Ok(Box::new(self.device.pinned(bytes)?))
    }

    fn upload_batch_from(
        &self,
        batch: &mut Batch<Self>,
        pixels: &mut dyn HostMemory,
        bytes: usize,
        crops: &[Crop],
        labels: &[u32],
    ) -> Result<()> {
        let memory: &mut dyn Any = pixels;
        match memory.downcast_mut::<Pinned>() {
            // Of another length, it would not do for the next batch.
            Some(filled) if filled.bytes().len() == batch.staging.pixels.bytes().len() => {
                // The batch before has been copied from what is given in exchange.
                self.device.wait(&batch.staging.copied, "wait for a copy")?;
                std::mem::swap(filled, &mut batch.staging.pixels);
                self.send_batch(batch, bytes, crops, labels)
            }
            _ => self.upload_batch(batch, &pixels.bytes()[..bytes], crops, labels),
        }
    }

    fn end_batch(&self, batch: &mut Batch<Self>) -> Result<()> {
        let Batch { losses, staging, .. } = batch;
        let memory = losses.buffer.f32.as_ref().expect("losses are f32");
        let stream = &self.device.stream;
        staging.losses.download(memory, 4 * losses.shape().len(), stream)?;
        staging.done.record(stream).map_err(failed("record an event"))
    }

    fn losses(&self, losses: &mut [f32], batch: &mut Batch<Self>) -> Result<()> {
        self.device.wait(&batch.staging.done, "run a step")?;
        let bytes = &batch.staging.losses.bytes_mut()[..4 * losses.len()];
        bytemuck::cast_slice_mut(losses).copy_from_slice(bytes);
        Ok(())
    }

    fn record(&self, operations: &mut dyn FnMut() -> Result<()>) -> Result<Option<CudaGraph>> {
        let stream = &self.device.stream;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        stream.begin_capture(mode).map_err(failed("record a step"))?;
        let result = operations();
        let graph = stream.end_capture(sys::CUgraphInstantiate_flags(0));
        result?;
        let graph = graph.map_err(failed("record a step"))?;
        if let Some(graph) = &graph {
            graph.upload().map_err(failed("make a recorded step ready"))?;
        }
        Ok(graph)
    }

    fn replay(&self, recording: &CudaGraph) -> Result<()> {
        recording.launch().map_err(failed("replay a step"))
    }

    fn input(
        &self,
        x: &mut Tensor<Self>,
        pixels: &Memory,
        crops: &Memory,
        mean: &Tensor<Self>,
        inverse_std: &Tensor<Self>,
        dims: &InputDims,
    ) -> Result<()> {
        let Shape { n, h, w, c } = x.shape();
        assert!(matches!(c, 1 | 3), "the input has one channel or three");
        let fits = h <= dims.rows as usize && w <= dims.columns as usize;
        assert!(fits, "crops of {} from {dims:?}", x.shape());
        let per_pixel = u32::from(mean.shape().len() > c);
        let storage = x.buffer.storage();
        launch!(
            self.device,
            match c {
                1 => by(storage, "input_grey_f32", "input_grey_bf16"),
                _ => by(storage, "input_f32", "input_bf16"),
            },
            Launch::per_value(n * h * w),
            x.buffer.values(),
            pixels.pointer(),
            crops.pointer(),
            mean.buffer.values(),
            inverse_std.buffer.values(),
            *dims,
            per_pixel,
            n as u32,
            (h * w) as u32,
            Divisor::new(w as u32),
        )
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
        conv::forward(self, y, x, weight, bias, relu, dims, scratch)
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
        conv::backward_data(self, dx, dy, weight, dims, scratch)
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
        let Param { weight, bias } = gradient;
        conv::backward_filter(self, weight, dy, x, accumulate, dims, scratch)?;
        conv::backward_bias(self, bias, dy, None, accumulate, scratch)
    }

    fn prepare_conv_pool(&self, scratch: &mut conv::Scratch, dims: &ConvDims) -> Result<()> {
        scratch.prepare_conv_pool(self, dims)
    }

    /// Saves memory, and the gradient of the biases is summed before unpooling, over a quarter of the
    /// values.
    fn supports_conv_pool(&self, _dims: &ConvDims, _pool: &PoolDims) -> bool {
        true
    }

    fn conv_pool_forward(
        &self,
        y: &mut Tensor<Self>,
        switches: &mut Memory,
        x: &Tensor<Self>,
        weight: &Tensor<Self>,
        bias: &Tensor<Self>,
        dims: &ConvDims,
        pool: &PoolDims,
        scratch: &mut conv::Scratch,
    ) -> Result<()> {
        scratch.with_map(dims, |map, scratch| {
            self.conv_forward(map, x, weight, Some(bias), true, dims, scratch)?;
            self.maxpool_forward(y, switches, map, pool)
        })
    }

    fn conv_pool_backward_filter(
        &self,
        gradient: &mut Param<Self>,
        dy: &Tensor<Self>,
        switches: &Memory,
        x: &Tensor<Self>,
        accumulate: bool,
        dims: &ConvDims,
        pool: &PoolDims,
        scratch: &mut conv::Scratch,
    ) -> Result<()> {
        check(&[(dy.shape(), pool.output()), (x.shape(), dims.input())]);
        check(&[(pool.input(), dims.output()), (gradient.weight.shape(), dims.filter())]);
        let Param { weight, bias } = gradient;
        let done = conv::pooled_filter_gradient(
            self, weight, dy, switches, x, accumulate, dims, pool, scratch,
        )?;
        if !done {
            scratch.with_map(dims, |map, scratch| {
                self.maxpool_backward(map, dy, switches, None, true, pool)?;
                conv::backward_filter(self, weight, map, x, accumulate, dims, scratch)
            })?;
        }
        conv::backward_bias(self, bias, dy, Some(switches), accumulate, scratch)
    }

    fn maxpool_forward(
        &self,
        y: &mut Tensor<Self>,
        switches: &mut Memory,
        x: &Tensor<Self>,
        dims: &PoolDims,
    ) -> Result<()> {
        check(&[(y.shape(), dims.output()), (x.shape(), dims.input())]);
        let packs = packs(dims.c);
        let [f32, bf16] = if dims.c.is_multiple_of(PACK) {
            ["maxpool_forward_f32", "maxpool_forward_bf16"]
        } else {
            ["maxpool_forward_any_f32", "maxpool_forward_any_bf16"]
        };
        launch!(
            self.device,
            by(y.buffer.storage(), f32, bf16),
            pooling(dims.output(), packs),
            y.buffer.values(),
            switches.pointer(),
            x.buffer.values(),
            *dims,
            Divisor::new(packs),
            Divisor::new(dims.q),
        )
    }

    fn maxpool_backward(
        &self,
        dx: &mut Tensor<Self>,
        dy: &Tensor<Self>,
        switches: &Memory,
        images: Option<&Memory>,
        forward_mask: bool,
        dims: &PoolDims,
    ) -> Result<()> {
        check(&[(dx.shape(), dims.input()), (dy.shape(), dims.output())]);
        let packs = packs(dims.c);
        let squares = (dims.window, dims.stride) == ([3; 2], [2; 2]);
        if forward_mask && squares && dims.c.is_multiple_of(PACK) {
            let [down, right] = [dims.h + dims.pad[0], dims.w + dims.pad[1]].map(|v| v.div_ceil(2));
            let count = down * right * packs;
            return launch!(
                self.device,
                by(dx.buffer.storage(), "maxpool_backward_3_2_f32", "maxpool_backward_3_2_bf16"),
                Launch::per_image(count as usize, dims.n as usize),
                dx.buffer.values(),
                dy.buffer.values(),
                switches.pointer(),
                list(images),
                *dims,
                count,
                Divisor::new(packs),
                Divisor::new(right),
            );
        }
        let [f32, bf16] = match (dims.c.is_multiple_of(PACK), forward_mask) {
            (true, true) => ["maxpool_backward_f32", "maxpool_backward_bf16"],
            (true, false) => ["maxpool_unpool_f32", "maxpool_unpool_bf16"],
            (false, true) => ["maxpool_backward_any_f32", "maxpool_backward_any_bf16"],
            (false, false) => ["maxpool_unpool_any_f32", "maxpool_unpool_any_bf16"],
        };
        launch!(
            self.device,
            by(dx.buffer.storage(), f32, bf16),
            pooling(dims.input(), packs),
            dx.buffer.values(),
            dy.buffer.values(),
            switches.pointer(),
            list(images),
            *dims,
            Divisor::new(packs),
            Divisor::new(dims.w),
            Divisor::new(dims.stride[0]),
            Divisor::new(dims.stride[1]),
        )
    }

    fn relu_forward(&self, y: &mut Tensor<Self>, x: &Tensor<Self>) -> Result<()> {
        check(&[(y.shape(), x.shape())]);
        let len = x.shape().len();
        launch!(
            self.device,
            by(x.buffer.storage(), "relu_forward_f32", "relu_forward_bf16"),
            Launch::per_value(len.div_ceil(4)),
            y.buffer.values(),
            x.buffer.values(),
            len as u64,
        )
    }

    fn relu_backward(
        &self,
        dy: &mut Tensor<Self>,
        y: &Tensor<Self>,
        images: Option<&Memory>,
        rule: ReluRule,
    ) -> Result<()> {
        check(&[(dy.shape().with_n(1), y.shape().with_n(1))]);
        let shape = dy.shape();
        launch!(
            self.device,
            by(dy.buffer.storage(), "relu_backward_f32", "relu_backward_bf16"),
            Launch::per_value(shape.len().div_ceil(4)),
            dy.buffer.values(),
            y.buffer.values(),
            list(images),
            shape.per_image() as u64,
            shape.len() as u64,
            u32::from(rule.forward_mask),
            u32::from(rule.relu_down),
        )
    }

    fn lrn_forward(&self, y: &mut Tensor<Self>, x: &Tensor<Self>, lrn: &Lrn) -> Result<()> {
        check(&[(y.shape(), x.shape())]);
        let Shape { n, h, w, c } = x.shape();
        if let Some(packs) = lrn_packs(x.shape(), lrn) {
            return launch!(
                self.device,
                by(x.buffer.storage(), "lrn_forward_5_f32", "lrn_forward_5_bf16"),
                Launch::per_value(packs as usize),
                y.buffer.values(),
                x.buffer.values(),
                packs,
                Divisor::new(c as u32 / PACK),
                *lrn,
            );
        }
        launch!(
            self.device,
            by(x.buffer.storage(), "lrn_forward_f32", "lrn_forward_bf16"),
            Launch::blocks(x.shape().len().div_ceil(LRN_TILE)),
            y.buffer.values(),
            x.buffer.values(),
            (n * h * w) as u64,
            c as u32,
            *lrn,
        )
    }

    fn lrn_backward(
        &self,
        dx: &mut Tensor<Self>,
        dy: &Tensor<Self>,
        x: &Tensor<Self>,
        images: Option<&Memory>,
        lrn: &Lrn,
    ) -> Result<()> {
        check(&[(dx.shape(), dy.shape()), (dy.shape().with_n(1), x.shape().with_n(1))]);
        let Shape { n, h, w, c } = dy.shape();
        if let Some(packs) = lrn_packs(dy.shape(), lrn) {
            return launch!(
                self.device,
                by(dx.buffer.storage(), "lrn_backward_5_f32", "lrn_backward_5_bf16"),
                Launch::per_value(packs as usize),
                dx.buffer.values(),
                dy.buffer.values(),
                x.buffer.values(),
                list(images),
                packs,
                Divisor::new(c as u32 / PACK),
                Divisor::new(dy.shape().per_image() as u32 / PACK),
                *lrn,
            );
        }
        launch!(
            self.device,
            by(dx.buffer.storage(), "lrn_backward_f32", "lrn_backward_bf16"),
            Launch::blocks(n * dy.shape().per_image().div_ceil(LRN_TILE)),
            dx.buffer.values(),
            dy.buffer.values(),
            x.buffer.values(),
            list(images),
            (h * w) as u64,
            (n * h * w) as u64,
            c as u32,
            *lrn,
        )
    }

    fn dropout(
        &self,
        y: &mut Tensor<Self>,
        x: &Tensor<Self>,
        dropout: &Dropout,
        state: &Memory,
    ) -> Result<()> {
        check(&[(y.shape(), x.shape())]);
        let Shape { n, h, w, c } = x.shape();
        // A vector's values come four from one number's counter.
        let threads = if h * w == 1 { n * c.div_ceil(4) } else { x.shape().len() };
        launch!(
            self.device,
            by(x.buffer.storage(), "dropout_f32", "dropout_bf16"),
            Launch::per_value(threads),
            y.buffer.values(),
            x.buffer.values(),
            n as u32,
            (h * w) as u32,
            c as u32,
            dropout.layer,
            keep_threshold(dropout.rate),
            1.0 / (1.0 - dropout.rate),
            state.pointer(),
        )
    }

    fn softmax_cross_entropy(
        &self,
        losses: &mut Tensor<Self>,
        dlogits: &mut Tensor<Self>,
        logits: &Tensor<Self>,
        labels: &Memory,
        scale: f32,
        state: &mut Memory,
    ) -> Result<()> {
        check(&[(dlogits.shape(), logits.shape())]);
        let Shape { n, c, .. } = logits.shape();
        assert_eq!(losses.shape().len(), n);
        launch!(
            self.device,
            by(dlogits.buffer.storage(), "softmax_cross_entropy_f32", "softmax_cross_entropy_bf16"),
            Launch::blocks(n),
            losses.buffer.values(),
            dlogits.buffer.values(),
            logits.buffer.values(),
            labels.pointer(),
            c as u32,
            scale,
            state.pointer(),
        )
    }

    fn channel_max(&self, peaks: &mut [Peak], x: &Tensor<Self>) -> Result<()> {
        self.per_map(by(x.buffer.storage(), "channel_max_f32", "channel_max_bf16"), peaks, x)
    }

    fn channel_sum(&self, sums: &mut [f32], x: &Tensor<Self>) -> Result<()> {
        self.per_map(by(x.buffer.storage(), "channel_sum_f32", "channel_sum_bf16"), sums, x)
    }

    fn moments(&self, maps: usize, most: usize) -> Result<moments::Moments> {
        moments::allocate(self, maps, most)
    }

    fn map_moments(
        &self,
        dst: &mut moments::Moments,
        first: usize,
        x: &Tensor<Self>,
    ) -> Result<()> {
        moments::make(self, dst, first, x)
    }

    fn send_moments(&self, moments: &mut moments::Moments) -> Result<()> {
        moments::send(self, moments)
    }

    fn received_moments(&self, dst: &mut [MapMoments], moments: &moments::Moments) -> Result<()> {
        moments::received(dst, moments);
        Ok(())
    }

    fn scatter_units(&self, dy: &mut Tensor<Self>, units: &[SeedUnit]) -> Result<()> {
        let Shape { n, h, w, c } = dy.shape();
        assert_eq!(units.len(), n);
        for unit in units {
            let [map, y, x] = [unit.map, unit.y, unit.x].map(|v| v as usize);
            assert!(map < c && y < h && x < w, "unit {unit:?} outside [{h}, {w}, {c}]");
        }
        let storage = dy.buffer.storage();
        let memory = dy.buffer.f32.as_ref().or(dy.buffer.bf16.as_ref()).expect("has storage");
        let bytes = if storage == Storage::F32 { 4 } else { 2 };
        self.device.clear(memory, bytes * dy.shape().len())?;
        self.through(size_of_val(units), |staged| {
            self.device.upload(staged, units)?;
            launch!(
                self.device,
                by(storage, "scatter_units_f32", "scatter_units_bf16"),
                Launch::per_value(n),
                memory.pointer(),
                staged.pointer(),
                n as u32,
                h as u32,
                w as u32,
                c as u32,
            )
        })
    }

    fn gather_windows(
        &self,
        dst: &mut Tensor<Self>,
        src: &Tensor<Self>,
        images: Option<&Memory>,
        units: &Memory,
        windows: &Windows,
    ) -> Result<()> {
        let Shape { n, c, .. } = dst.shape();
        check(&[(dst.shape(), windows.shape(n, c))]);
        check(&[(src.shape().with_n(1), windows.inverse().shape(1, c))]);
        assert!(dst.buffer.storage() == src.buffer.storage(), "both are activations");
        launch!(
            self.device,
            by(dst.buffer.storage(), "gather_windows_f32", "gather_windows_bf16"),
            Launch::per_value(dst.shape().len()),
            dst.buffer.values(),
            src.buffer.values(),
            list(images),
            units.pointer(),
            *windows,
            n as u32,
            c as u32,
        )
    }

    fn gather_switches(
        &self,
        dst: &mut Memory,
        src: &Memory,
        images: Option<&Memory>,
        units: &Memory,
        windows: &Windows,
        forward_mask: bool,
        dims: &PoolDims,
    ) -> Result<()> {
        assert_eq!(windows.map, [dims.p, dims.q], "operands disagree");
        let values = windows.shape(dims.n as usize, dims.c as usize).len();
        assert!(values <= dst.bytes(), "{windows:?} in {} bytes", dst.bytes());
        launch!(
            self.device,
            "gather_switches",
            Launch::per_value(values),
            dst.pointer(),
            src.pointer(),
            list(images),
            units.pointer(),
            *windows,
            u32::from(forward_mask),
            *dims,
        )
    }

    fn zero_out_of_bounds(
        &self,
        x: &mut Tensor<Self>,
        units: &Memory,
        windows: &Windows,
    ) -> Result<()> {
        let Shape { n, c, .. } = x.shape();
        check(&[(x.shape(), windows.shape(n, c))]);
        launch!(
            self.device,
            by(x.buffer.storage(), "zero_out_of_bounds_f32", "zero_out_of_bounds_bf16"),
            Launch::per_value(x.shape().len()),
            x.buffer.values(),
            units.pointer(),
            *windows,
            n as u32,
            c as u32,
        )
    }

    fn add(&self, y: &mut Tensor<Self>, x: &Tensor<Self>) -> Result<()> {
        check(&[(y.shape(), x.shape())]);
        let len = y.shape().len();
        let (to, from) = (y.buffer.values(), x.buffer.values());
        launch!(self.device, "add", Launch::per_value(len.div_ceil(4)), to, from, len as u64)
    }

    fn sgd_step(
        &self,
        w: &mut Tensor<Self>,
        v: &mut Tensor<Self>,
        g: &Tensor<Self>,
        constants: &SgdConstants,
        state: &Memory,
    ) -> Result<()> {
        check(&[(w.shape(), v.shape())]);
        let constants = *constants;
        self.update(&mut [Update { w, first: 0, v, g, constants, rms_limit: None }], state)
    }

    fn limit_rms(&self, weight: &mut Tensor<Self>, limit: f32, state: &Memory) -> Result<()> {
        let filters = weight.shape();
        update::limit_rms(self, [(&*weight, 0, filters, limit)], state)
    }

    fn update(&self, updates: &mut [Update<'_, Self>], state: &Memory) -> Result<()> {
        update::sgd_step(self, updates, state)?;
        let limited = updates.iter().filter_map(|update| {
            Some((&*update.w, update.first, update.v.shape(), update.rms_limit?))
        });
        update::limit_rms(self, limited, state)
    }
}

/// Channels that a thread takes where they divide into such packs.
const PACK: u32 = 8;

/// Packs of a pixel in `pool.cu`, which takes channels one by one where they do not divide.
fn packs(channels: u32) -> u32 {
    if channels.is_multiple_of(PACK) { channels / PACK } else { channels }
}

/// Of maps of this shape, `packs` a pixel.
fn pooling(maps: Shape, packs: u32) -> Launch {
    Launch::per_image(maps.h * maps.w * packs as usize, maps.n)
}

/// Packs of these values, if the kernels for them do: for neighbourhoods of five.
fn lrn_packs(shape: Shape, lrn: &Lrn) -> Option<u32> {
    let fits = lrn.size == 5 && shape.c.is_multiple_of(PACK as usize);
    let packs = u32::try_from(shape.len() / PACK as usize).ok().filter(|packs| *packs < 1 << 31);
    packs.filter(|_| fits)
}

/// Panics, with the shapes, where operands disagree: a planning mistake.
#[track_caller]
fn check(pairs: &[(Shape, Shape)]) {
    for (found, expected) in pairs {
        assert_eq!(found, expected, "operands disagree");
    }
}
