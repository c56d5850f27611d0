//! What the readers make of files, and the writers files of.

use std::fmt::Display;

use zfnet_core::Error;

use crate::weights::quoted;

/// A tensor's name, shape and values, row-major, as f32.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tensor {
    /// Its name in the file, without what [`Tensors::notes`] says was taken off.
    pub name: String,
    /// Its sizes, in the order of the program that wrote it: OIHW for filters, `[out, in]` where fully connected.
    pub shape: Vec<usize>,
    /// As many as the product of the sizes.
    pub values: Vec<f32>,
}

/// The tensors of a file that does not say what network they belong to: a PyTorch state dict, a bare safetensors
/// file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tensors {
    /// In the file's order.
    pub tensors: Vec<Tensor>,
    /// Whether that is the order in which the network has them (a state dict's), or means nothing (safetensors').
    pub ordered: bool,
    /// What was done to them, a sentence each: "`module.` was taken off 16 names", "122 of 122 tensors read".
    pub notes: Vec<String>,
}

/// A chain of layers, from the input on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chain {
    /// The network's name in the file; may be empty.
    pub name: String,
    /// What the first layer sees.
    pub input: Input,
    /// The layers. What changes nothing (identity, dropout of rate 0, a reshape that leaves the order of values, the
    /// softmax at the end) is not among them; batch normalisation has been folded into the convolution before it.
    pub layers: Vec<Layer>,
    /// How pixels become the input, as far as the file says so.
    pub preprocessing: Option<Preprocessing>,
    /// Names of the classes, if the file has them.
    pub classes: Vec<String>,
    /// Where the file leaves the size of the input open, and which sizes fit is known: a sentence that says them.
    pub fitting: Option<String>,
    /// What was left out, folded or assumed, a sentence each.
    pub notes: Vec<String>,
}

/// What a network is called that is a chain of layers up to the node `until` at most: `reason`, and how far.
pub(crate) fn not_a_chain(reason: impl Display, until: Option<&str>) -> Error {
    let Some(until) = until else {
        return Error::NotAChain { reason: reason.to_string(), until: None };
    };
    let shown = quoted(until);
    Error::NotAChain {
        reason: format!("{reason}; it is a chain up to `{shown}`"),
        // One that cannot be shown cannot be typed either.
        until: (shown == until).then_some(shown),
    }
}

/// What a chain's first layer sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Input {
    /// Channels: 1 or 3 for images.
    pub channels: usize,
    /// Rows and columns; `None` if the file leaves them open.
    pub size: Option<[usize; 2]>,
}

/// A layer and its name in the file.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// The node's or layer's name; its output's, if it has none.
    pub name: String,
    /// What it does.
    pub op: Op,
}

/// What a layer does. Sizes along two axes are rows, columns; pads are top, bottom, left, right.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// Convolution (cross-correlation) with zeros beyond the edge.
    Conv {
        /// OIHW, `[outputs, inputs / groups, rows, columns]`.
        weight: Tensor,
        /// One value an output; zeros if the file has none.
        bias: Vec<f32>,
        /// Steps.
        stride: [usize; 2],
        /// Pads.
        pad: [usize; 4],
        /// Groups.
        groups: usize,
        /// Whether a last window that the input does not fill is kept.
        ceil: bool,
    },
    /// Fully connected. Its inputs are counted channel by channel (C, H, W), as flattening NCHW gives them.
    Fc {
        /// `[outputs, inputs]`.
        weight: Tensor,
        /// One value an output; zeros if the file has none.
        bias: Vec<f32>,
    },
    /// max(x, 0).
    Relu,
    /// Max pooling; what is padded never wins.
    MaxPool {
        /// Rows and columns of a window.
        kernel: [usize; 2],
        /// Steps.
        stride: [usize; 2],
        /// Pads.
        pad: [usize; 4],
        /// Whether a last window that the input does not fill is kept.
        ceil: bool,
    },
    /// Local response normalisation across channels, `x / (k + alpha / size * sum of x^2)^beta`: `alpha` as Caffe,
    /// PyTorch and ONNX have it, divided by `size`.
    Lrn {
        /// Number of channels summed.
        size: usize,
        /// Factor of the mean of squares.
        alpha: f32,
        /// Exponent.
        beta: f32,
        /// Added to it.
        k: f32,
    },
    /// Dropout while training.
    Dropout {
        /// Share of values set to zero.
        rate: f32,
    },
}

/// How bytes of pixels become a network's input: `(pixel * scale - mean) / std`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Preprocessing {
    /// Factor of a pixel's byte.
    pub scale: f32,
    /// One value a channel of the network, after `scale`; or an image, CHW, of the size `mean_size`. Empty if it is in
    /// another file, which a note names.
    pub mean: Vec<f32>,
    /// Rows and columns of a mean image.
    pub mean_size: Option<[usize; 2]>,
    /// One value a channel of the network.
    pub std: Vec<f32>,
    /// Whether channels are blue, green, red.
    pub bgr: bool,
    /// Rows and columns that images are resized to before the crop, if it is said.
    pub resize: Option<Resize>,
    /// Rows and columns of the crop, if it is said.
    pub crop: Option<[usize; 2]>,
    /// How they are resized, as timm and torchvision name it: `nearest`, `bilinear`, `bicubic`, `lanczos`, `box`.
    pub interpolation: Option<String>,
    /// Whether shrinking averages over what a pixel covers; `None` if it is not said.
    pub antialias: Option<bool>,
}

/// What an image is resized to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resize {
    /// Its shortest side becomes so long.
    Shortest(usize),
    /// It becomes so many rows and columns, whatever its shape.
    Squash([usize; 2]),
}
