//! What operations take beside tensors: settings, places and states, as CPU loops, kernels of GPUs and
//! the loader of images agree on them.

use std::any::Any;

use serde::{Deserialize, Serialize};

/// The switch of a window whose winner is not positive, of a pooling without
/// [`any_sign`](crate::shape::PoolDims::any_sign).
///
/// Unpooling puts its value at the window's first place inside the image for the deconvnet, and
/// nowhere under a forward mask (where relu would stop it in any case).
pub const NOT_POSITIVE: u8 = 255;

/// How values are stored, and how products are made of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// f32 throughout.
    F32,
    /// Stored as f32; convolutions round their operands to TF32 (10 bits of fraction) first.
    Tf32,
    /// Activations, and the weights that convolutions read, are bfloat16 (7 bits of fraction);
    /// sums are f32.
    Bf16,
}

impl Precision {
    /// As flags and benchmark rows have it.
    pub fn name(self) -> &'static str {
        match self {
            Precision::F32 => "f32",
            Precision::Tf32 => "tf32",
            Precision::Bf16 => "bf16",
        }
    }

    /// Bytes of a stored activation.
    pub fn bytes(self) -> usize {
        match self {
            Precision::F32 | Precision::Tf32 => 4,
            Precision::Bf16 => 2,
        }
    }
}

/// Local response normalisation across channels; see the module's rules for the convention.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Lrn {
    /// Number of neighbouring channels summed, the channel itself in the middle.
    pub size: u32,
    /// Added to the sum.
    pub k: f32,
    /// Factor of the sum (not divided by `size`).
    pub alpha: f32,
    /// Exponent.
    pub beta: f32,
}

/// Largest [`Lrn::size`] of a description.
pub const MAX_LRN_SIZE: usize = 33;

/// Which dropout mask is meant, beside what [`StepState`] says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// Share of values set to zero; the others are scaled by `1 / (1 - rate)`.
    pub rate: f32,
    /// Number of the layer in its network.
    pub layer: u32,
}

/// One non-zero value of a seed tensor: where a backward pass begins.
#[repr(C)]
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    bytemuck::Pod,
    bytemuck::Zeroable,
    serde::Serialize,
    serde::Deserialize,
)]
pub struct SeedUnit {
    /// Channel.
    pub map: u32,
    /// Row.
    pub y: u32,
    /// Column.
    pub x: u32,
    /// The value.
    pub value: f32,
}

/// Where one sample of a batch is cut out of which uploaded image.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Crop {
    /// Index of the image among the uploaded ones.
    pub image: u32,
    /// First row of the crop.
    pub y: u32,
    /// First column of the crop.
    pub x: u32,
    /// 1 to mirror left and right, else 0.
    pub mirror: u32,
}

/// Constants of `Backend::input`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct InputDims {
    /// Rows of an uploaded image.
    pub rows: u32,
    /// Its columns.
    pub columns: u32,
    /// Factor of a pixel's byte.
    pub scale: f32,
    /// Which channel of the pixels each channel of the input is; not asked for where it has only one.
    pub order: [u32; 3],
}

/// The one channel that a grey input has of a pixel: luma, ITU-R BT.601, as Pillow's mode `L` rounds it; that
/// of a grey pixel is its own value.
pub fn luma([r, g, b]: [u8; 3]) -> u8 {
    ((19595 * u32::from(r) + 38470 * u32::from(g) + 7471 * u32::from(b) + 32768) >> 16) as u8
}

/// The strongest value of one map in one image.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Peak {
    /// The value; NaN if the map holds one.
    pub value: f32,
    /// Its first position in row-major order, `y * width + x`.
    pub position: u32,
}

/// What is summed of the values of one map, over all places and images.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct MapMoments {
    /// Their sum.
    pub sum: f32,
    /// The sum of their squares.
    pub squares: f32,
    /// The largest that is a number.
    pub largest: f32,
}

impl Peak {
    /// The unit of map `map` that it is, in a layer whose maps are `width` wide.
    pub fn unit(self, map: usize, width: usize) -> SeedUnit {
        let (Peak { value, position }, width) = (self, width as u32);
        SeedUnit { map: map as u32, y: position / width, x: position % width, value }
    }
}

/// What changes from step to step. Kept where the backend's operations can read it, so that a
/// recorded step can be replayed.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepState {
    /// Seed of the dropout masks.
    pub seed: u64,
    /// Number of the step (counted in updates of the weights).
    pub step: u32,
    /// Place of the first sample in the step's whole batch.
    pub first_sample: u32,
    /// Learning rate.
    pub learning_rate: f32,
}

/// Memory of the host that pixels are read into, on their way to a device.
pub trait HostMemory: Any + Send {
    /// Its bytes.
    fn bytes(&self) -> &[u8];
    /// Its bytes, to be written.
    fn bytes_mut(&mut self) -> &mut [u8];
}

impl HostMemory for Vec<u8> {
    fn bytes(&self) -> &[u8] {
        self
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        self
    }
}

/// How much memory a backend's tensors take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Bytes that this backend has allocated since it was created, returned or not.
    pub allocated_total: usize,
    /// Bytes that are free now, if the machine says so.
    pub free: Option<usize>,
}

/// Constants of the update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SgdConstants {
    /// Momentum.
    pub momentum: f32,
    /// Weight decay, added to the gradient as `weight_decay * w`.
    pub weight_decay: f32,
}

/// How values on their way back meet a relu: the two bits that tell the deconvnet, the gradient and
/// guided backpropagation apart (with `Rule` in `model` saying which is which).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReluRule {
    /// Stop what goes backward where the forward value was not positive.
    pub forward_mask: bool,
    /// Stop what is negative itself (relu*).
    pub relu_down: bool,
}
