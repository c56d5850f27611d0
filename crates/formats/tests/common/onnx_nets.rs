//! Graphs for tests, built node by node.
#![allow(dead_code)] // each test program uses some of it

use prost::Message;
use zfnet_formats::onnx::proto::{dimension_proto::Value as Dimension, *};

/// A graph from `x` on, built node by node; the last node's output is the graph's.
#[derive(Clone)]
pub struct Net {
    pub graph: GraphProto,
    pub opset: i64,
}

/// A name left out of a list of inputs.
pub const NONE: &str = "";

impl Net {
    /// Of an input of these sizes; 0 is open.
    pub fn new(sizes: &[i64]) -> Self {
        let mut graph = GraphProto { name: "net".into(), ..GraphProto::default() };
        graph.input.push(value("x", 1, sizes));
        Net { graph, opset: 13 }
    }

    pub fn floats(mut self, name: &str, dims: &[i64], values: &[f32]) -> Self {
        let (dims, float_data) = (dims.to_vec(), values.to_vec());
        let tensor =
            TensorProto { name: name.into(), dims, data_type: 1, float_data, ..Default::default() };
        self.graph.initializer.push(tensor);
        self
    }

    /// Values that differ, as many as the sizes say.
    pub fn ramp(self, name: &str, dims: &[i64]) -> Self {
        let values = ramp(dims.iter().product::<i64>() as usize);
        self.floats(name, dims, &values)
    }

    pub fn ints(mut self, name: &str, values: &[i64]) -> Self {
        self.graph.initializer.push(ints_tensor(name, values));
        self
    }

    pub fn node(
        mut self,
        op: &str,
        inputs: &[&str],
        output: &str,
        attributes: &[AttributeProto],
    ) -> Self {
        self.graph.node.push(NodeProto {
            op_type: op.into(),
            input: inputs.iter().map(|input| input.to_string()).collect(),
            output: vec![output.into()],
            attribute: attributes.to_vec(),
            ..Default::default()
        });
        self
    }

    pub fn model(&self) -> ModelProto {
        let mut graph = self.graph.clone();
        let last = graph.node.last().map_or("x".into(), |node| node.output[0].clone());
        graph.output.push(ValueInfoProto { name: last, r#type: None });
        ModelProto {
            ir_version: 8,
            graph: Some(graph),
            opset_import: vec![OperatorSetIdProto { domain: String::new(), version: self.opset }],
            ..Default::default()
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.model().encode_to_vec()
    }
}

pub fn value(name: &str, elem_type: i32, sizes: &[i64]) -> ValueInfoProto {
    let dim = |&size: &i64| DimensionProto {
        value: Some(match size {
            0 => Dimension::DimParam("open".into()),
            _ => Dimension::DimValue(size),
        }),
    };
    let shape = Some(TensorShapeProto { dim: sizes.iter().map(dim).collect() });
    let tensor_type = Some(TensorTypeProto { elem_type, shape });
    ValueInfoProto { name: name.into(), r#type: Some(TypeProto { tensor_type }) }
}

pub fn ints_tensor(name: &str, values: &[i64]) -> TensorProto {
    let (dims, int64_data) = (vec![values.len() as i64], values.to_vec());
    TensorProto { name: name.into(), dims, data_type: 7, int64_data, ..Default::default() }
}

pub fn ramp(count: usize) -> Vec<f32> {
    (0..count).map(|i| (i * 7 % 11) as f32 / 4. - 1.).collect()
}

pub fn int(name: &str, i: i64) -> AttributeProto {
    AttributeProto { name: name.into(), i: Some(i), r#type: 2, ..Default::default() }
}

pub fn ints(name: &str, ints: &[i64]) -> AttributeProto {
    AttributeProto { name: name.into(), ints: ints.to_vec(), r#type: 7, ..Default::default() }
}

pub fn float(name: &str, f: f32) -> AttributeProto {
    AttributeProto { name: name.into(), f: Some(f), r#type: 1, ..Default::default() }
}

pub fn text(name: &str, text: &str) -> AttributeProto {
    AttributeProto { name: name.into(), s: Some(text.into()), r#type: 3, ..Default::default() }
}

pub fn tensor(t: TensorProto) -> AttributeProto {
    AttributeProto { name: "value".into(), t: Some(t), r#type: 4, ..Default::default() }
}

pub fn kernel(side: i64) -> AttributeProto {
    ints("kernel_shape", &[side, side])
}

pub fn strides(step: i64) -> AttributeProto {
    ints("strides", &[step, step])
}

/// A convolution of 2 filters of 3 x 3 over 3 channels, of an input of 3 x 8 x 8.
pub fn small() -> Net {
    Net::new(&[0, 3, 8, 8]).ramp("w", &[2, 3, 3, 3]).ramp("b", &[2])
}

/// Every operator that becomes a layer, or that leaves no trace.
pub fn whole() -> Net {
    small()
        .node("Conv", &["x", "w", "b"], "c", &[ints("pads", &[1, 1, 1, 1]), strides(1), kernel(3)])
        .node("Relu", &["c"], "r", &[])
        .node(
            "LRN",
            &["r"],
            "l",
            &[int("size", 5), float("alpha", 5e-4), float("beta", 0.5), float("bias", 2.)],
        )
        .node("MaxPool", &["l"], "p", &[kernel(3), strides(2), int("ceil_mode", 1)])
        .node("Identity", &["p"], "i", &[])
        .node("Flatten", &["i"], "f", &[])
        .ramp("w1", &[5, 32])
        .ramp("b1", &[5])
        .node("Gemm", &["f", "w1", "b1"], "g", &[int("transB", 1)])
        .node("Relu", &["g"], "r1", &[])
        .node("Dropout", &["r1"], "d", &[float("ratio", 0.25)])
        .ramp("w2", &[5, 2])
        .node("MatMul", &["d", "w2"], "m", &[])
        .ramp("b2", &[2])
        .node("Add", &["m", "b2"], "a", &[])
        .node("Softmax", &["a"], "s", &[int("axis", 1)])
}
