//! Networks as other programs write them: PyTorch's files, ONNX, Caffe's, safetensors. What is in a file becomes
//! plain data, a [`Chain`] of layers or a list of [`Tensors`]; what `zfnet` makes of them it decides itself. And, only
//! written, the files of [`tensorboard`]. A part of `zfnet`: use that crate.
//!
//! Files are hostile: what a reader allocates is bounded by the bytes of the file, nothing in a file is executed, no
//! name in it becomes a path outside its folder, and whatever is wrong is an error that says what was expected and
//! what was found.

pub mod caffe;
mod chain;
pub mod kind;
pub mod onnx;
pub mod pytorch;
pub mod safetensors;
pub mod sidecar;
mod source;
pub mod tensorboard;
mod weights;
mod wire;

pub use chain::{Chain, Input, Layer, Op, Preprocessing, Resize, Tensor, Tensors};
pub use kind::Kind;
