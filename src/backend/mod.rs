//! What a network asks of a machine: the [`Backend`] trait, and the tensors it works on.
//!
//! An operation is here only if every backend needs its own code for it *and* the network or the
//! deconvnet calls it (or, for sums over maps, will). Outputs come first and are borrowed, never
//! returned; sizes travel in one struct, checked when a network is planned; what an operation
//! needs beside its tensors it gets as a [`Backend::Scratch`], reserved before the first step.
//!
//! The rules on which backends must agree, value by value:
//!
//! - **Convolution** is cross-correlation, as everywhere in the field; it reads zeros beyond the
//!   edge. Its transpose, [`Backend::conv_backward_data`], *is* the deconvnet's filter step.
//! - **Switch**: one byte, the winner's index in its window counted row by row over all places of
//!   the window; ties go to the first; a NaN wins over everything. [`NOT_POSITIVE`] means that the
//!   winner was not above zero; with [`PoolDims::any_sign`] such a winner's index is kept, too.
//! - **relu** passes NaN on, so that a training gone wrong is seen.
//! - **LRN** is the paper's: `y = x / (k + alpha * sum of x^2)^beta`, the sum *not* divided by the
//!   number of neighbours.
//! - **Storage.** Activations and what goes backward are kept in the backend's [`Precision`]; weights,
//!   biases, momentum, gradients of weights, logits and losses always in f32. A result is rounded to
//!   storage once, from an f32 sum; comparisons (relu, winners of a window) are made after that. Where
//!   bf16 is multiplied in pairs, subnormal numbers may count as zero.
//! - **A loss that is not finite** halts the updates that read the same state: the weights stay as
//!   they were, whenever the host comes to know of it.
//! - **Dropout** keeps a value where [`philox`]'s number for (layer, step, sample, element) is below
//!   a fixed threshold: no thread, no layout and no split of the batch can change a mask.

pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod id;

pub use id::BackendId;
pub use zfnet_core::operation::*;
#[doc(hidden)] // public for tests
pub use zfnet_core::philox;

use crate::Result;
use crate::model::Network;
use crate::ranks::Ranks;
use crate::shape::{ConvDims, PoolDims, Shape, Windows};
use crate::train::Exchange;

/// Values of a shape, on a backend. Contiguous NHWC (filters KRSC): no strides, no views.
pub struct Tensor<B: Backend> {
    shape: Shape,
    capacity: usize,
    /// The backend's own storage, of at least `shape().len()` values.
    pub buffer: B::Buffer,
}

impl<B: Backend> Tensor<B> {
    /// A tensor over storage for `shape.len()` values. For backends; others call
    /// [`Backend::zeros`].
    pub fn new(shape: Shape, buffer: B::Buffer) -> Self {
        Tensor { shape, capacity: shape.len(), buffer }
    }

    /// Its sizes.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Gives the tensor another shape within the storage it has; its values become unspecified.
    ///
    /// # Panics
    /// If the storage is too small: a planning mistake.
    pub fn reshape(&mut self, shape: Shape) {
        assert!(shape.len() <= self.capacity, "{shape} in storage of {} values", self.capacity);
        self.shape = shape;
    }
}

/// Weights and biases of one convolution (or their gradients, or their momentum).
pub struct Param<B: Backend> {
    /// KRSC.
    pub weight: Tensor<B>,
    /// One value a filter.
    pub bias: Tensor<B>,
}

impl<B: Backend> Param<B> {
    /// Zeros for a convolution of these sizes: gradients or momentum.
    ///
    /// # Errors
    /// If the backend is out of memory.
    pub fn zeros(backend: &B, dims: &ConvDims) -> Result<Self> {
        let bias = backend.zeros(Shape::vector(dims.k as usize))?;
        Ok(Param { weight: backend.zeros(dims.filter())?, bias })
    }

    /// The same for weights: what convolutions read.
    ///
    /// # Errors
    /// If the backend is out of memory.
    pub fn weights(backend: &B, dims: &ConvDims) -> Result<Self> {
        let bias = backend.zeros(Shape::vector(dims.k as usize))?;
        Ok(Param { weight: backend.weights(dims.filter())?, bias })
    }
}

/// One batch on its way: what it is made of, and the losses that come back.
pub struct Batch<B: Backend> {
    /// Squares of pixels, u8 `[images, side, side, 3]`.
    pub pixels: B::Bytes,
    /// A crop for each sample.
    pub crops: B::Crops,
    /// A class for each sample.
    pub labels: B::Indices,
    /// A loss for each sample; its shape says how many samples there are.
    pub losses: Tensor<B>,
    /// What the backend needs to move the batch beside its operations.
    pub staging: B::Staging,
}

impl<B: Backend> Batch<B> {
    /// Memory for `bytes` of pixels and for `samples` samples.
    ///
    /// # Errors
    /// If the backend is out of memory.
    pub fn new(backend: &B, bytes: usize, samples: usize) -> Result<Self> {
        Ok(Batch {
            pixels: backend.bytes(bytes)?,
            crops: backend.crops(samples)?,
            labels: backend.indices(samples)?,
            losses: backend.zeros(Shape::vector(samples))?,
            staging: backend.staging(bytes, samples)?,
        })
    }
}

/// A tensor's part of an update: all of its values, or some neighbouring filters of it.
pub struct Update<'a, B: Backend> {
    /// The weights.
    pub w: &'a mut Tensor<B>,
    /// The first of their values that is moved, a multiple of [`SLICE_ALIGNMENT`].
    pub first: usize,
    /// The momentum of the values that are moved, and of no others.
    pub v: &'a mut Tensor<B>,
    /// Their gradient.
    pub g: &'a Tensor<B>,
    /// Constants of [`Backend::sgd_step`].
    pub constants: SgdConstants,
    /// Limit of [`Backend::limit_rms`], if there is one.
    pub rms_limit: Option<f32>,
}

/// Where a part of a tensor may begin: GPUs read so many values at a time.
pub const SLICE_ALIGNMENT: usize = 4;

mod sealed {
    /// Keeps [`Backend`](super::Backend) to this crate, so that it can gain operations.
    pub trait Sealed {}
}

/// A machine that runs the operations of a network: [`cpu::CpuBackend`] or, with the feature `cuda`,
/// `cuda::CudaBackend`. No other crate can implement it, since operations will be added.
///
/// Operations of the backward pass take `images`: for each of the `n` backward samples, the index of
/// the forward image whose switches and values it uses; `None` means its own. So many seeds can
/// share one forward pass. Shapes of operands are checked when a network is planned; an operation
/// may panic on operands that disagree, and returns an error only for what the machine refuses.
pub trait Backend: sealed::Sealed + Send + Sync + Sized + 'static {
    /// Storage of a tensor's values.
    type Buffer: Send + Sync;
    /// Storage of bytes: pixels and switches.
    type Bytes: Send + Sync;
    /// Storage of small integers: labels and image lists.
    type Indices: Send + Sync;
    /// Storage of crop places.
    type Crops: Send + Sync;
    /// Memory that operations use beside their tensors.
    type Scratch: Send;
    /// Where the operations read a [`StepState`], and whether updates are halted.
    type State: Send + Sync;
    /// What it takes to move a [`Batch`] beside running operations.
    type Staging: Send + Sync;
    /// Operations that were recorded to be run again.
    type Recording;
    /// Moments of maps, made by operations, on their way to the host.
    type Moments: Send;

    /// What it is, as far as the bits of its results depend on it.
    fn id(&self) -> BackendId;
    /// What it is, for people: [`Backend::id`], with the number of threads of a CPU.
    fn describe(&self) -> String {
        self.id().to_string()
    }
    /// How activations are stored and products made.
    fn precision(&self) -> Precision;
    /// The kind of device, as benchmark rows have it.
    fn device(&self) -> &'static str;

    // ---- other ranks ----

    /// What sends values straight between the devices of these ranks, if all of them can do that; otherwise values go
    /// through the hosts' memory. All ranks call this at the same time.
    ///
    /// # Errors
    /// If a rank is lost or has failed, or the devices cannot be joined although all could.
    fn exchange(
        &self,
        _network: &Network,
        _ranks: &Ranks,
    ) -> Result<Option<Box<dyn Exchange<Self>>>> {
        Ok(None)
    }

    // ---- memory ----

    /// How much memory is in use, and free.
    fn memory(&self) -> Result<Memory>;
    /// A tensor of zeros in f32: momentum, gradients of weights, biases, logits, losses, means.
    fn zeros(&self, shape: Shape) -> Result<Tensor<Self>>;
    /// A tensor of zeros in the precision of storage: activations, and what goes backward.
    fn activations(&self, shape: Shape) -> Result<Tensor<Self>>;
    /// Weights, zero: f32, beside whatever copy of them convolutions read. [`Backend::upload`],
    /// [`Backend::sgd_step`] and [`Backend::limit_rms`] write both.
    fn weights(&self, shape: Shape) -> Result<Tensor<Self>>;
    /// Memory for `len` bytes.
    fn bytes(&self, len: usize) -> Result<Self::Bytes>;
    /// Memory for `len` indices.
    fn indices(&self, len: usize) -> Result<Self::Indices>;
    /// Memory for `len` crops.
    fn crops(&self, len: usize) -> Result<Self::Crops>;
    /// A step's state.
    fn state(&self) -> Result<Self::State>;
    /// Memory enough for each of these convolutions, in every direction.
    fn scratch(&self, convolutions: &[ConvDims]) -> Result<Self::Scratch>;
    /// Copies values in. `src` has `dst.shape().len()` of them.
    fn upload(&self, dst: &mut Tensor<Self>, src: &[f32]) -> Result<()>;
    /// Copies values out, always as f32. `dst` has `src.shape().len()` of them.
    fn download(&self, dst: &mut [f32], src: &Tensor<Self>) -> Result<()>;
    /// Copies values of a tensor in f32 in, from its value `first` on; of weights, into their copy too.
    fn upload_from(&self, dst: &mut Tensor<Self>, first: usize, src: &[f32]) -> Result<()>;
    /// Copies values of a tensor in f32 out, from its value `first` on.
    fn download_from(&self, dst: &mut [f32], src: &Tensor<Self>, first: usize) -> Result<()>;
    /// The values of a tensor in f32, where they lie in the host's memory and have no copy.
    fn on_host_mut(_tensor: &mut Tensor<Self>) -> Option<&mut [f32]> {
        None
    }
    /// Copies bytes in, from the first on.
    fn upload_bytes(&self, dst: &mut Self::Bytes, src: &[u8]) -> Result<()>;
    /// Copies the first `dst.len()` bytes out.
    fn download_bytes(&self, dst: &mut [u8], src: &Self::Bytes) -> Result<()>;
    /// Copies indices in, from the first on.
    fn upload_indices(&self, dst: &mut Self::Indices, src: &[u32]) -> Result<()>;
    /// Copies crops in, from the first on.
    fn upload_crops(&self, dst: &mut Self::Crops, src: &[Crop]) -> Result<()>;
    /// Sets what the coming operations read; halted updates stay halted.
    fn set_state(&self, dst: &mut Self::State, state: StepState) -> Result<()>;
    /// Whether updates by this state are halted, once all operations so far are done.
    fn is_halted(&self, state: &Self::State) -> Result<bool>;
    /// Halts updates by this state, as a loss that is not finite does.
    fn halt(&self, state: &mut Self::State) -> Result<()>;
    /// Waits until all operations so far are done.
    fn synchronize(&self) -> Result<()>;

    // ---- batches on their way ----

    /// How many batches may be under way at a time: 1 where an operation is done when it returns.
    fn batches_in_flight(&self) -> usize;
    /// For a [`Batch`] of `bytes` of pixels and `samples` samples.
    fn staging(&self, bytes: usize, samples: usize) -> Result<Self::Staging>;
    /// Copies a batch in beside the operations under way; operations from now on see it. Whatever
    /// read these buffers last must have been waited for with [`Backend::losses`].
    fn upload_batch(
        &self,
        batch: &mut Batch<Self>,
        pixels: &[u8],
        crops: &[Crop],
        labels: &[u32],
    ) -> Result<()>;
    /// Memory that [`Backend::upload_batch_from`] need not copy from one place of the host to another.
    fn host_memory(&self, bytes: usize) -> Result<Box<dyn HostMemory>> {
        Ok(Box::new(vec![0; bytes]))
    }
    /// As [`Backend::upload_batch`], of the first `bytes` of `pixels`. What they held is afterwards
    /// no longer there: they may have been exchanged for those of the batch before.
    fn upload_batch_from(
        &self,
        batch: &mut Batch<Self>,
        pixels: &mut dyn HostMemory,
        bytes: usize,
        crops: &[Crop],
        labels: &[u32],
    ) -> Result<()> {
        self.upload_batch(batch, &pixels.bytes()[..bytes], crops, labels)
    }
    /// Says that the operations so far are all that read the batch, and sends its losses on their
    /// way back.
    fn end_batch(&self, batch: &mut Batch<Self>) -> Result<()>;
    /// Waits for the batch's end and copies its first `losses.len()` losses.
    fn losses(&self, losses: &mut [f32], batch: &mut Batch<Self>) -> Result<()>;
    /// Records what `operations` does, to be replayed, *instead* of doing it; or `None` where the
    /// backend does not record, and nothing is done. What a recording reads when it is replayed is
    /// what its tensors and its state then hold.
    fn record(&self, operations: &mut dyn FnMut() -> Result<()>)
    -> Result<Option<Self::Recording>>;
    /// Does what was recorded.
    fn replay(&self, recording: &Self::Recording) -> Result<()>;

    // ---- input ----

    /// `x[n, i, j, c] = (pixels[image, y + i, x + j, order[c]] * scale - mean[y + i, x + j, c]) /
    /// std[c]`, mirrored *after* the mean is taken off (mean first, then crop, then mirror).
    ///
    /// `x` has three channels, or one, which is the pixels' [`luma`] instead.
    /// `pixels` are u8 `[images, rows, columns, 3]`; `mean` is `[1, rows, columns, channels]`, or
    /// `[1, 1, 1, channels]` for one mean a channel; `inverse_std` is `[1, 1, 1, channels]`; crop `n`
    /// makes sample `n`.
    fn input(
        &self,
        x: &mut Tensor<Self>,
        pixels: &Self::Bytes,
        crops: &Self::Crops,
        mean: &Tensor<Self>,
        inverse_std: &Tensor<Self>,
        dims: &InputDims,
    ) -> Result<()>;

    // ---- layers ----

    /// `y = conv(x, w) + bias`, then relu if asked for. Without `bias`, none is added. `y` is an
    /// activation, or f32 (the logits).
    fn conv_forward(
        &self,
        y: &mut Tensor<Self>,
        x: &Tensor<Self>,
        weight: &Tensor<Self>,
        bias: Option<&Tensor<Self>>,
        relu: bool,
        dims: &ConvDims,
        scratch: &mut Self::Scratch,
    ) -> Result<()>;

    /// `dx = conv^T(dy, w)`: the transposed convolution, both the gradient and the deconvnet's
    /// filter step. A zero of `dy` may be left out: whether it makes a NaN of a weight that is not finite
    /// is unspecified.
    fn conv_backward_data(
        &self,
        dx: &mut Tensor<Self>,
        dy: &Tensor<Self>,
        weight: &Tensor<Self>,
        dims: &ConvDims,
        scratch: &mut Self::Scratch,
    ) -> Result<()>;

    /// `dw[k, r, s, c] = sum of dy[n, p, q, k] x[n, .., .., c]` and `db[k] = sum of dy[.., k]`, or
    /// the same added to what is there.
    fn conv_backward_filter(
        &self,
        gradient: &mut Param<Self>,
        dy: &Tensor<Self>,
        x: &Tensor<Self>,
        accumulate: bool,
        dims: &ConvDims,
        scratch: &mut Self::Scratch,
    ) -> Result<()>;

    /// Makes what [`Backend::conv_pool_forward`] and [`Backend::conv_pool_backward_filter`] use of a
    /// scratch beside what other convolutions do, for up to `dims.n` images.
    fn prepare_conv_pool(&self, _scratch: &mut Self::Scratch, _dims: &ConvDims) -> Result<()> {
        Ok(())
    }

    /// Whether [`Backend::conv_pool_forward`] and [`Backend::conv_pool_backward_filter`] do these two.
    fn supports_conv_pool(&self, _dims: &ConvDims, _pool: &PoolDims) -> bool {
        false
    }

    /// Convolution with bias and relu, and max pooling of its output, which is not kept: for a first
    /// layer in training, whose output is larger than all others and read by nothing else.
    fn conv_pool_forward(
        &self,
        _y: &mut Tensor<Self>,
        _switches: &mut Self::Bytes,
        _x: &Tensor<Self>,
        _weight: &Tensor<Self>,
        _bias: &Tensor<Self>,
        _dims: &ConvDims,
        _pool: &PoolDims,
        _scratch: &mut Self::Scratch,
    ) -> Result<()> {
        unreachable!("asked for only where `supports_conv_pool` says so")
    }

    /// [`Backend::conv_backward_filter`] of what [`Backend::maxpool_backward`] makes, under the forward
    /// mask, of the pooled output's gradient `dy`.
    fn conv_pool_backward_filter(
        &self,
        _gradient: &mut Param<Self>,
        _dy: &Tensor<Self>,
        _switches: &Self::Bytes,
        _x: &Tensor<Self>,
        _accumulate: bool,
        _dims: &ConvDims,
        _pool: &PoolDims,
        _scratch: &mut Self::Scratch,
    ) -> Result<()> {
        unreachable!("asked for only where `supports_conv_pool` says so")
    }

    /// `y` = each window's largest value, and where it stood (see the rule of the switch).
    fn maxpool_forward(
        &self,
        y: &mut Tensor<Self>,
        switches: &mut Self::Bytes,
        x: &Tensor<Self>,
        dims: &PoolDims,
    ) -> Result<()>;

    /// Unpooling by switches, and so also max pooling's gradient: every value of `dy` is *added*
    /// where its switch points; overlapping windows may point at the same place. With
    /// `forward_mask` a [`NOT_POSITIVE`] switch lets nothing through.
    fn maxpool_backward(
        &self,
        dx: &mut Tensor<Self>,
        dy: &Tensor<Self>,
        switches: &Self::Bytes,
        images: Option<&Self::Indices>,
        forward_mask: bool,
        dims: &PoolDims,
    ) -> Result<()>;

    /// `y = x` where `x` is not below zero, else 0.
    fn relu_forward(&self, y: &mut Tensor<Self>, x: &Tensor<Self>) -> Result<()>;

    /// Lets `dy` down through a relu whose forward output was `y`, in place.
    fn relu_backward(
        &self,
        dy: &mut Tensor<Self>,
        y: &Tensor<Self>,
        images: Option<&Self::Indices>,
        rule: ReluRule,
    ) -> Result<()>;

    /// Local response normalisation.
    fn lrn_forward(&self, y: &mut Tensor<Self>, x: &Tensor<Self>, lrn: &Lrn) -> Result<()>;

    /// Its derivative at `x`.
    fn lrn_backward(
        &self,
        dx: &mut Tensor<Self>,
        dy: &Tensor<Self>,
        x: &Tensor<Self>,
        images: Option<&Self::Indices>,
        lrn: &Lrn,
    ) -> Result<()>;

    /// `y = mask * x / (1 - rate)`: inverted dropout, forward and (of a gradient) backward alike.
    fn dropout(
        &self,
        y: &mut Tensor<Self>,
        x: &Tensor<Self>,
        dropout: &Dropout,
        state: &Self::State,
    ) -> Result<()>;

    /// Softmax and cross-entropy: `losses[n] = -ln p[n, label]` and
    /// `dlogits = scale * (p - onehot)`, for `[n, 1, 1, classes]`; logits and losses are f32. A loss
    /// that is not finite halts updates by this state from now on.
    fn softmax_cross_entropy(
        &self,
        losses: &mut Tensor<Self>,
        dlogits: &mut Tensor<Self>,
        logits: &Tensor<Self>,
        labels: &Self::Indices,
        scale: f32,
        state: &mut Self::State,
    ) -> Result<()>;

    // ---- looking ----

    /// The strongest value of every map in every image, `peaks[n * maps + map]`: first position of
    /// equals, NaN above all. Ends in the host's memory.
    fn channel_max(&self, peaks: &mut [Peak], x: &Tensor<Self>) -> Result<()>;

    /// The sum of every map in every image, `sums[n * maps + map]`. Ends in the host's memory.
    fn channel_sum(&self, sums: &mut [f32], x: &Tensor<Self>) -> Result<()>;

    /// Memory for the moments of `maps` maps in all, of tensors with up to `most` maps each.
    fn moments(&self, maps: usize, most: usize) -> Result<Self::Moments>;

    /// The moments of every map, over all places and images, into the places from `first` on. Sums are made in
    /// one order, and a NaN makes them NaN; the largest value leaves it out.
    fn map_moments(&self, dst: &mut Self::Moments, first: usize, x: &Tensor<Self>) -> Result<()>;

    /// Sends all moments so far on their way to the host.
    fn send_moments(&self, moments: &mut Self::Moments) -> Result<()>;

    /// Copies out the first `dst.len()` moments of those that were sent last, without waiting: the caller has
    /// waited for an operation that came after ([`Backend::losses`] of a batch that has ended after them).
    fn received_moments(&self, dst: &mut [MapMoments], moments: &Self::Moments) -> Result<()>;

    /// All zeros but one value a sample: sample `n` gets `units[n]`.
    fn scatter_units(&self, dy: &mut Tensor<Self>, units: &[SeedUnit]) -> Result<()>;

    // ---- windows ----
    //
    // `units` holds the row and the column of each backward sample's unit; with [`Windows`] they
    // say where the sample's window lies.

    /// Cuts windows out of maps: `dst[n, i, j] = src[image, y + i, x + j]`, with the window of sample
    /// `n` at (y, x); zero outside the map. `dst` is `[n, size, c]`, `src` `[.., map, c]`, both
    /// activations.
    fn gather_windows(
        &self,
        dst: &mut Tensor<Self>,
        src: &Tensor<Self>,
        images: Option<&Self::Indices>,
        units: &Self::Indices,
        windows: &Windows,
    ) -> Result<()>;

    /// The same of the switches of `dims`, `[.., p, q, c]`, so that they hold in a pooling of windows,
    /// [`PoolDims::windowed`], which has no edge: unless with `forward_mask`, [`NOT_POSITIVE`] of a
    /// window that begins before the image becomes the index of its first place inside.
    /// `dims.n` is that of the backward samples.
    fn gather_switches(
        &self,
        dst: &mut Self::Bytes,
        src: &Self::Bytes,
        images: Option<&Self::Indices>,
        units: &Self::Indices,
        windows: &Windows,
        forward_mask: bool,
        dims: &PoolDims,
    ) -> Result<()>;

    /// Puts zeros wherever a window, `x[n]`, lies outside the map: what a transposed convolution
    /// leaves in the padding is not to go on.
    fn zero_out_of_bounds(
        &self,
        x: &mut Tensor<Self>,
        units: &Self::Indices,
        windows: &Windows,
    ) -> Result<()>;

    // ---- parameters ----

    /// `y += x`, in f32: gradients of parts of a batch.
    fn add(&self, y: &mut Tensor<Self>, x: &Tensor<Self>) -> Result<()>;

    /// `v = momentum v + (g + weight_decay w); w -= learning_rate v`, unless updates by this state
    /// are halted.
    fn sgd_step(
        &self,
        w: &mut Tensor<Self>,
        v: &mut Tensor<Self>,
        g: &Tensor<Self>,
        constants: &SgdConstants,
        state: &Self::State,
    ) -> Result<()>;

    /// [`Backend::sgd_step`] of several tensors or parts of them, then [`Backend::limit_rms`] of those with a limit.
    fn update(&self, updates: &mut [Update<'_, Self>], state: &Self::State) -> Result<()>;

    /// Scales every filter whose root mean square is above `limit` down to it ("feature scale
    /// clipping", section 3 of the paper), unless updates by this state are halted.
    fn limit_rms(&self, weight: &mut Tensor<Self>, limit: f32, state: &Self::State) -> Result<()>;
}
