//! ONNX: a chain of layers from a graph of operators, and such a graph of a chain.
//!
//! Layers are Conv, Relu, MaxPool, LRN (also in the single steps that PyTorch writes), Gemm, MatMul and Dropout. What
//! stands around them in files of exporters becomes a part of them or leaves no trace: BatchNormalization, Add, Sub,
//! Mul and Div of constants behind a Conv, Gemm or MatMul, Pad before a Conv or MaxPool, Flatten, Reshape, Squeeze and
//! Transpose as far as they flatten or move channels to the end and back, Identity, Cast, Clip at 0, Softmax at the
//! end. Arithmetic of pixels before the first layer is preprocessing. Nodes of constants, and of sizes, are computed.

mod fold;
mod graph;
mod pixels;
#[rustfmt::skip] // as prost-build writes it
#[allow(missing_docs)] // onnx.proto has them
pub mod proto;
mod response;
mod tensor;
mod walk;
mod window;
mod wire;
mod write;

use std::collections::HashMap;
use std::mem;
use std::path::Path;

use zfnet_core::{Error, Result};

use crate::Chain;
pub use write::{Options, Pixels, write};

use graph::Graph;
use tensor::{Budget, Files};

/// Bytes that [`read`] allows for values that nodes make, and for copies of values that several take.
const MAX_MADE: usize = 1 << 31;

/// The chain of layers in a file: up to its output, or up to the node `until` (its name, or that of its output).
/// Values may lie in other files inside `folder`. Nodes that compute constants are computed; nodes that the output
/// does not need are not looked at.
pub fn read(bytes: &[u8], folder: Option<&Path>, until: Option<&str>) -> Result<Chain> {
    read_within(bytes, folder, until, MAX_MADE)
}

/// [`read`] with `max_made` bytes in place of the two GiB that it allows for values that are not in the file.
#[doc(hidden)] // for tests and fuzzing
pub fn read_within(
    bytes: &[u8],
    folder: Option<&Path>,
    until: Option<&str>,
    max_made: usize,
) -> Result<Chain> {
    let model = wire::model(bytes)?;
    let opset = model.opset_import.iter().find(|opset| is_onnx(&opset.domain));
    let opset = opset.map(|opset| opset.version);
    let mut graph = model.graph.ok_or_else(|| {
        Error::Network(
            "expected an ONNX file with a graph, found none: it is damaged or another kind of file"
                .into(),
        )
    })?;
    let names: Vec<String> =
        graph.initializer.iter_mut().map(|tensor| mem::take(&mut tensor.name)).collect();
    let tensors = mem::take(&mut graph.initializer);
    let known = Graph::new(&graph.node, &names, &graph.input, &graph.output)?;
    let (end, order) = known.path_to(until)?;
    let tensors: HashMap<&str, _> = names.iter().map(String::as_str).zip(tensors).collect();
    let (files, budget) = (Files::new(folder), Budget(max_made));
    let mut chain = walk::Walk::new(&known, &order, tensors, files, budget).to(end)?;
    chain.name = graph.name;
    if let Some(opset) = opset.filter(|&opset| opset > NEWEST_OPSET) {
        chain.notes.push(format!(
            "operators are those of version {opset}, and of {NEWEST_OPSET} at most they are known to be read rightly"
        ));
    }
    Ok(chain)
}

/// The newest version of ONNX's operators that has been looked at.
const NEWEST_OPSET: i64 = 25;

/// What the file says of itself beside the network (`metadata_props`), in its order.
pub fn metadata(bytes: &[u8]) -> Result<Vec<(String, String)>> {
    wire::metadata(bytes)
}

fn is_onnx(domain: &str) -> bool {
    domain.is_empty() || domain == "ai.onnx"
}
