//! A chain as ONNX: operators of opset 17, any number of images at a time.

use std::borrow::Cow;
use std::collections::HashSet;
use std::io::{self, Write};

use prost::Message;
use prost::encoding::{encode_varint, encoded_len_varint};
use zfnet_core::shape::{Rounding, windows};
use zfnet_core::{Error, Result};

use super::proto::{
    AttributeProto, DimensionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto,
    StringStringEntryProto, TensorProto, TensorShapeProto, TensorTypeProto, TypeProto,
    ValueInfoProto, dimension_proto::Value as Dimension,
};
use crate::{Chain, Layer, Op, Preprocessing};

const OPSET: i64 = 17;
const IR_VERSION: i64 = 8;

/// What the network in the file takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pixels {
    /// What the first layer takes; pixels are prepared outside.
    #[default]
    Prepared,
    /// Red, green, blue as bytes, channels first. The graph prepares them.
    Bytes,
}

/// How a chain is written.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options<'a> {
    /// What the network takes. Otherwise than [`Pixels::Prepared`] the chain must have preprocessing.
    pub pixels: Pixels,
    /// Keys and values that the file says beside the network, as [`metadata`](super::metadata) gives them back.
    pub metadata: &'a [(String, String)],
}

/// Writes a chain. Nodes, and the values that they make, have the layers' names; a last window that its input does not
/// fill becomes one that explicit pads fill, since programs differ about `ceil_mode`.
///
/// A file of more than 2 GiB cannot be written, as protobuf is.
pub fn write(chain: &Chain, options: &Options<'_>, to: &mut impl Write) -> Result<()> {
    let mut graph = Builder::default();
    graph.network(chain, options)?;
    let Builder { nodes, tensors, input, output, .. } = graph;
    let name = if chain.name.is_empty() { "zfnet" } else { &chain.name };
    let graph = GraphProto {
        node: nodes,
        name: name.into(),
        input: input.into_iter().collect(),
        output: output.into_iter().collect(),
        ..GraphProto::default()
    };
    let entry = |(key, value): &(String, String)| StringStringEntryProto {
        key: key.clone(),
        value: value.clone(),
    };
    let model = ModelProto {
        ir_version: IR_VERSION,
        producer_name: "zfnet".into(),
        producer_version: env!("CARGO_PKG_VERSION").into(),
        graph: None,
        opset_import: vec![OperatorSetIdProto { domain: String::new(), version: OPSET }],
        metadata_props: options.metadata.iter().map(entry).collect(),
    };
    // Messages begin with their lengths, and what is written of one may stand in pieces, one behind the other.
    let of_tensor = |(tensor, values): &(TensorProto, Cow<'_, [f32]>)| {
        let raw = values.len() as u64 * 4;
        tensor.encoded_len() as u64 + if raw > 0 { field_len(raw) } else { 0 }
    };
    let tensors_len: u64 = tensors.iter().map(|tensor| field_len(of_tensor(tensor))).sum();
    let graph_len = graph.encoded_len() as u64 + tensors_len;
    let file_len = model.encoded_len() as u64 + field_len(graph_len);
    if file_len > MAX_FILE {
        return Err(Error::Network(format!(
            "expected a network of at most {MAX_FILE} bytes, the most that an ONNX file can have, found one of {file_len}"
        )));
    }
    let mut write = || -> io::Result<()> {
        to.write_all(&model.encode_to_vec())?;
        field(to, 7, graph_len)?;
        to.write_all(&graph.encode_to_vec())?;
        let mut bytes = Vec::with_capacity(4 * CHUNK);
        for tensor in &tensors {
            field(to, 5, of_tensor(tensor))?;
            let (tensor, values) = tensor;
            to.write_all(&tensor.encode_to_vec())?;
            if !values.is_empty() {
                field(to, 9, values.len() as u64 * 4)?;
            }
            for values in values.chunks(CHUNK) {
                bytes.clear();
                values.iter().for_each(|value| bytes.extend_from_slice(&value.to_le_bytes()));
                to.write_all(&bytes)?;
            }
        }
        to.flush()
    };
    write().map_err(Error::callback)
}

/// Readers of protobuf keep lengths in signed 32 bits.
const MAX_FILE: u64 = i32::MAX as u64;

/// Values that are turned into bytes at once.
const CHUNK: usize = 1 << 14;

/// Bytes of a field with its number, below 16, and length.
fn field_len(len: u64) -> u64 {
    1 + encoded_len_varint(len) as u64 + len
}

/// Begins a field of `len` bytes.
fn field(to: &mut impl Write, number: u8, len: u64) -> io::Result<()> {
    let mut start = vec![number << 3 | 2];
    encode_varint(len, &mut start);
    to.write_all(&start)
}

fn int(name: &str, i: i64) -> AttributeProto {
    AttributeProto { name: name.into(), i: Some(i), r#type: 2, ..AttributeProto::default() }
}

fn ints(name: &str, of: &[usize]) -> AttributeProto {
    let ints = of.iter().map(|&one| one as i64).collect();
    AttributeProto { name: name.into(), ints, r#type: 7, ..AttributeProto::default() }
}

fn float(name: &str, f: f32) -> AttributeProto {
    AttributeProto { name: name.into(), f: Some(f), r#type: 1, ..AttributeProto::default() }
}

/// A value's name, ONNX's number of its type, and sizes: known ones, or names of those left open.
fn value(name: &str, elem_type: i32, sizes: Vec<Dimension>) -> ValueInfoProto {
    let dim = sizes.into_iter().map(|size| DimensionProto { value: Some(size) }).collect();
    let shape = Some(TensorShapeProto { dim });
    let tensor_type = Some(TensorTypeProto { elem_type, shape });
    ValueInfoProto { name: name.into(), r#type: Some(TypeProto { tensor_type }) }
}

#[derive(Default)]
struct Builder<'a> {
    nodes: Vec<NodeProto>,
    /// Without their values.
    tensors: Vec<(TensorProto, Cow<'a, [f32]>)>,
    input: Option<ValueInfoProto>,
    output: Option<ValueInfoProto>,
    names: HashSet<String>,
    /// The value that the next node takes.
    at: String,
}

impl<'a> Builder<'a> {
    /// A name that nothing has yet.
    fn unused(&mut self, wanted: &str) -> String {
        let mut name = if wanted.is_empty() { "layer".into() } else { wanted.to_string() };
        while !self.names.insert(name.clone()) {
            name.push('_');
        }
        name
    }

    /// A node that takes what the last one made, and constants.
    fn node(
        &mut self,
        name: &str,
        operator: &str,
        constants: Vec<String>,
        attribute: Vec<AttributeProto>,
    ) {
        let name = self.unused(name);
        let mut input = vec![std::mem::replace(&mut self.at, name.clone())];
        input.extend(constants);
        let output = vec![name.clone()];
        let op_type = operator.into();
        self.nodes.push(NodeProto {
            input,
            output,
            name,
            op_type,
            attribute,
            domain: String::new(),
        });
    }

    fn tensor(&mut self, name: &str, shape: &[usize], values: impl Into<Cow<'a, [f32]>>) -> String {
        let name = self.unused(name);
        let dims = shape.iter().map(|&size| size as i64).collect();
        let tensor =
            TensorProto { dims, data_type: 1, name: name.clone(), ..TensorProto::default() };
        self.tensors.push((tensor, values.into()));
        name
    }

    /// Integers along one axis.
    fn ints(&mut self, name: &str, ints: &[i64]) -> String {
        let name = self.unused(name);
        let tensor = TensorProto {
            dims: vec![ints.len() as i64],
            data_type: 7,
            int64_data: ints.to_vec(),
            name: name.clone(),
            ..TensorProto::default()
        };
        self.tensors.push((tensor, Cow::Borrowed(&[])));
        name
    }

    fn network(&mut self, chain: &'a Chain, options: &Options<'_>) -> Result<()> {
        let dim = |size: usize| Dimension::DimValue(size as i64);
        let open = |name: &str| Dimension::DimParam(name.into());
        let mut size = chain.input.size;
        let mut channels = chain.input.channels;
        let sizes = |size: Option<[usize; 2]>| match size {
            Some([rows, columns]) => [dim(rows), dim(columns)],
            None => [open("height"), open("width")],
        };
        let [rows, columns] = sizes(size);
        let pixels = options.pixels;
        self.at = self.unused(if pixels == Pixels::Prepared { "input" } else { "pixels" });
        let kind = if pixels == Pixels::Bytes { 2 } else { 1 };
        self.input = Some(value(&self.at, kind, vec![open("N"), dim(channels), rows, columns]));
        if pixels != Pixels::Prepared {
            let preprocessing = chain.preprocessing.as_ref().ok_or_else(|| {
                Error::Network("expected a network with preprocessing to be written into the graph, found none".into())
            })?;
            self.preprocess(preprocessing, chain)?;
        }
        let mut flat = false;
        for layer in &chain.layers {
            match (&layer.op, flat) {
                (Op::Fc { .. }, false) => {
                    self.node("flatten", "Flatten", vec![], vec![int("axis", 1)]);
                    flat = true;
                }
                (Op::Conv { .. } | Op::MaxPool { .. } | Op::Lrn { .. }, true) => {
                    // A fully connected layer makes channels of one place each.
                    let sizes = self.ints("unflatten.sizes", &[0, channels as i64, 1, 1]);
                    self.node("unflatten", "Reshape", vec![sizes], vec![]);
                    flat = false;
                }
                _ => {}
            }
            self.layer(layer, &mut size, &mut channels)?;
        }
        let mut output = vec![open("N"), dim(channels)];
        if !flat {
            output.extend(match size {
                Some(_) => sizes(size),
                None => [open("rows"), open("columns")],
            });
        }
        self.output = Some(value(&self.at, 1, output));
        Ok(())
    }

    fn layer(
        &mut self,
        layer: &'a Layer,
        size: &mut Option<[usize; 2]>,
        channels: &mut usize,
    ) -> Result<()> {
        let name = &*layer.name;
        match &layer.op {
            Op::Conv { weight, bias, stride, pad, groups, ceil } => {
                let &[outputs, _, rows, columns] = &*weight.shape else {
                    return Err(Error::Network(format!(
                        "layer `{name}`: expected filters of 4 axes, found {:?}",
                        weight.shape
                    )));
                };
                let kernel = [rows, columns];
                let pad = filled(name, size, kernel, *stride, *pad, *ceil)?;
                let weight = self.tensor(&format!("{name}.weight"), &weight.shape, &*weight.values);
                let bias = self.tensor(&format!("{name}.bias"), &[bias.len()], &**bias);
                let mut attributes = windows_of(kernel, *stride, pad);
                attributes.push(int("group", *groups as i64));
                self.node(name, "Conv", vec![weight, bias], attributes);
                *channels = outputs;
            }
            Op::MaxPool { kernel, stride, pad, ceil } => {
                let pad = filled(name, size, *kernel, *stride, *pad, *ceil)?;
                self.node(name, "MaxPool", vec![], windows_of(*kernel, *stride, pad));
            }
            Op::Fc { weight, bias } => {
                (*channels, *size) = (bias.len(), Some([1, 1]));
                let weight = self.tensor(&format!("{name}.weight"), &weight.shape, &*weight.values);
                let bias = self.tensor(&format!("{name}.bias"), &[bias.len()], &**bias);
                self.node(name, "Gemm", vec![weight, bias], vec![int("transB", 1)]);
            }
            Op::Relu => self.node(name, "Relu", vec![], vec![]),
            Op::Lrn { size, alpha, beta, k } => {
                let attributes = vec![
                    int("size", *size as i64),
                    float("alpha", *alpha),
                    float("beta", *beta),
                    float("bias", *k),
                ];
                self.node(name, "LRN", vec![], attributes);
            }
            Op::Dropout { rate } => {
                let rate = self.tensor(&format!("{name}.ratio"), &[], vec![*rate]);
                self.node(name, "Dropout", vec![rate], vec![]);
            }
        }
        Ok(())
    }

    /// From red, green, blue to what the first layer takes, in the order in which it is defined.
    fn preprocess(&mut self, of: &'a Preprocessing, chain: &Chain) -> Result<()> {
        let channels = chain.input.channels;
        self.node("as_floats", "Cast", vec![], vec![int("to", 1)]);
        if of.bgr {
            let order = self.ints("bgr.order", &[2, 1, 0]);
            self.node("bgr", "Gather", vec![order], vec![int("axis", 1)]);
        }
        if of.scale != 1. {
            let scale = self.tensor("scale.factor", &[], vec![of.scale]);
            self.node("scale", "Mul", vec![scale], vec![]);
        }
        let a_channel = [1, channels, 1, 1];
        let (shape, mean) = match of.mean_size {
            None => (a_channel, Cow::Borrowed(&*of.mean)),
            Some(size) => mean_image(&of.mean, channels, size, chain.input.size)?,
        };
        if mean.iter().any(|&mean| mean != 0.) {
            check(mean.len(), shape.iter().product(), "mean")?;
            let mean = self.tensor("mean.values", &shape, mean);
            self.node("mean", "Sub", vec![mean], vec![]);
        }
        if of.std.iter().any(|&std| std != 1.) {
            check(of.std.len(), channels, "standard deviation")?;
            let std = self.tensor("std.values", &a_channel, &*of.std);
            self.node("std", "Div", vec![std], vec![]);
        }
        Ok(())
    }
}

fn check(found: usize, expected: usize, what: &str) -> Result<()> {
    match found == expected {
        true => Ok(()),
        false => Err(Error::Network(format!(
            "preprocessing: expected {expected} values of the {what}, found {found}"
        ))),
    }
}

/// The middle of a mean image, as large as the network's input.
fn mean_image<'a>(
    mean: &'a [f32],
    channels: usize,
    size: [usize; 2],
    input: Option<[usize; 2]>,
) -> Result<([usize; 4], Cow<'a, [f32]>)> {
    let [rows, columns] = size;
    check(mean.len(), channels * rows * columns, "mean image")?;
    let Some([height, width]) = input.filter(|input| input[0] <= rows && input[1] <= columns)
    else {
        return Err(Error::Network(format!(
            "preprocessing: expected a network whose input is no larger than the mean image of {rows}x{columns}"
        )));
    };
    let shape = [1, channels, height, width];
    if input == Some(size) {
        return Ok((shape, Cow::Borrowed(mean)));
    }
    let (top, left) = ((rows - height) / 2, (columns - width) / 2);
    let mut middle = Vec::with_capacity(channels * height * width);
    for channel in 0..channels {
        for row in top..top + height {
            let start = (channel * rows + row) * columns + left;
            middle.extend_from_slice(&mean[start..start + width]);
        }
    }
    Ok((shape, Cow::Owned(middle)))
}

fn windows_of(kernel: [usize; 2], stride: [usize; 2], pad: [usize; 4]) -> Vec<AttributeProto> {
    let [top, bottom, left, right] = pad;
    vec![
        ints("kernel_shape", &kernel),
        ints("strides", &stride),
        ints("pads", &[top, left, bottom, right]),
    ]
}

/// Pads with which windows counted by rounding down are those of the layer; `size` becomes that of its output.
fn filled(
    name: &str,
    size: &mut Option<[usize; 2]>,
    kernel: [usize; 2],
    stride: [usize; 2],
    mut pad: [usize; 4],
    ceil: bool,
) -> Result<[usize; 4]> {
    let Some(size) = size else {
        return match ceil {
            false => Ok(pad),
            true => Err(Error::Network(format!(
                "layer `{name}`: expected a network of a known size of input, on which its last windows depend, found \
                 one that leaves it open"
            ))),
        };
    };
    let rounding = if ceil { Rounding::Ceil } else { Rounding::Floor };
    for axis in 0..2 {
        let (before, after) = (pad[2 * axis], pad[2 * axis + 1]);
        let count = windows(size[axis], kernel[axis], stride[axis], before, after, rounding);
        let count = count.ok_or_else(|| {
            Error::Network(format!(
                "layer `{name}`: expected an input that holds a window of {}, found one of {}",
                kernel[axis], size[axis]
            ))
        })?;
        let reached = (count - 1) * stride[axis] + kernel[axis];
        pad[2 * axis + 1] = after.max(reached.saturating_sub(size[axis] + before));
        size[axis] = count;
    }
    Ok(pad)
}
