//! ONNX: a chain of layers from a graph of operators, and such a graph of a chain.

#[rustfmt::skip] // as prost-build writes it
#[allow(missing_docs)] // onnx.proto has them
pub mod proto;
