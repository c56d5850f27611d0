//! ONNX files that somebody else made, or that a disk changed: good ones, cut and mutated, and what fuzzing has found.
//! See `fuzz/README.md`.
//!
//! A test program of its own: the allocator counts what each test's own thread has at its peak.

#[path = "common/allocated.rs"]
mod allocated;
#[path = "common/onnx.rs"]
mod onnx;
#[path = "common/onnx_nets.rs"]
mod onnx_nets;

use std::fs;
use std::path::{Path, PathBuf};

use onnx_nets::*;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index as At, select};
use proptest::test_runner::{Config, TestRunner};
use prost::Message;
use zfnet_formats::onnx::proto::*;
use zfnet_formats::onnx::{Options, Pixels, read, write};

/// Most memory for a file of some length: an attribute of two bytes takes hundreds, and nodes may make values.
fn allowed(bytes: usize) -> usize {
    500 * bytes + 4 * onnx::MADE + (1 << 20)
}

fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let axis = [int("axis", 0)];
    let computed = small()
        .node("Pad", &["x"], "p", &[ints("pads", &[0, 0, 1, 1, 0, 0, 1, 1])])
        .node("Conv", &["p", "w"], "c", &[text("auto_pad", "SAME_UPPER"), strides(2)])
        .node("Shape", &["c"], "s", &[])
        .ints("zero", &[0])
        .node("Gather", &["s", "zero"], "n", &axis)
        .ints("rest", &[-1])
        .node("Concat", &["n", "rest"], "to", &axis)
        .node("Reshape", &["c", "to"], "f", &[])
        .ints("sizes", &[50, 3])
        .node("ConstantOfShape", &["sizes"], "m", &[])
        .node("MatMul", &["f", "m"], "y", &[]);
    let last = Net::new(&[0, 4, 4, 3])
        .floats("mean", &[3], &[100., 110., 120.])
        .node("Sub", &["x", "mean"], "less", &[])
        .node("Transpose", &["less"], "t", &[ints("perm", &[0, 3, 1, 2])])
        .ramp("hwio", &[1, 1, 3, 2])
        .node("Transpose", &["hwio"], "w", &[ints("perm", &[3, 2, 0, 1])])
        .node("Conv", &["t", "w"], "c", &[])
        .ramp("k", &[2])
        .node("BatchNormalization", &["c", "k", "k", "k", "v"], "b", &[])
        .floats("v", &[2], &[1., 2.])
        .node("Transpose", &["b"], "l", &[ints("perm", &[0, 2, 3, 1])])
        .node("Flatten", &["l"], "f", &[])
        .ramp("m", &[32, 2])
        .node("Gemm", &["f", "m"], "y", &[float("alpha", 0.5)]);
    let response = small()
        .node("Mul", &["x", "x"], "square", &[])
        .ints("five", &[0, 1, 3, 8, 8])
        .node("Reshape", &["square", "five"], "as5", &[])
        .node("Pad", &["as5"], "pad", &[ints("pads", &[0, 0, 1, 0, 0, 0, 0, 1, 0, 0])])
        .node("AveragePool", &["pad"], "mean", &[ints("kernel_shape", &[3, 1, 1])])
        .node("Squeeze", &["mean"], "as4", &[ints("axes", &[1])])
        .floats("a", &[], &[0.5])
        .node("Mul", &["as4", "a"], "scaled", &[])
        .node("Add", &["scaled", "a"], "sum", &[])
        .node("Pow", &["sum", "a"], "power", &[])
        .node("Div", &["x", "power"], "n", &[]);
    let unflattened = small()
        .node("Flatten", &["x"], "f", &[])
        .ramp("m", &[2, 192])
        .node("Gemm", &["f", "m"], "g", &[int("transB", 1)])
        .ints("to", &[0, 2, 1, 1])
        .node("Reshape", &["g", "to"], "r", &[])
        .ramp("k", &[3, 2, 1, 1])
        .node("Conv", &["r", "k"], "y", &[]);
    let mut ours = Vec::new();
    let chain = read(&last.bytes(), None, None).unwrap();
    write(&chain, &Options { pixels: Pixels::Bytes, ..Options::default() }, &mut ours).unwrap();
    vec![
        ("layers", whole().bytes()),
        ("computed", computed.bytes()),
        ("channels-last", last.bytes()),
        ("response", response.bytes()),
        ("unflattened", unflattened.bytes()),
        ("ours", ours),
    ]
}

#[test]
fn the_good_files_are_good() {
    for (name, file) in seeds() {
        let chain = read(&file, None, None).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(!chain.layers.is_empty(), "{name}");
    }
}

/// Runs the check, and the measure of its memory.
fn holds(bytes: &[u8]) -> Result<(), TestCaseError> {
    let (peak, allowed) = (allocated::peak(|| onnx::onnx(bytes)), allowed(bytes.len()));
    prop_assert!(peak <= allowed, "{peak} bytes of memory for {}, {allowed} allowed", bytes.len());
    Ok(())
}

#[test]
fn what_fuzzing_has_found_holds() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/onnx");
    let mut files: Vec<PathBuf> =
        fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= seeds().len(), "{files:?}");
    for file in files {
        let bytes = fs::read(&file).unwrap();
        holds(&bytes).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    }
}

/// One change to a file's bytes.
#[derive(Clone, Debug)]
enum Edit {
    Flip(At, u8),
    Cut(At),
    /// A piece, from one place over another or in between.
    Splice(At, At, usize, bool),
}

#[test]
fn bytes_that_change_are_read_or_refused() {
    let at = any::<At>;
    let edit = prop_oneof![
        4 => (at(), 1u8..).prop_map(|(place, bits)| Edit::Flip(place, bits)),
        1 => at().prop_map(Edit::Cut),
        3 => (at(), at(), 1usize..200, any::<bool>())
            .prop_map(|(from, to, len, over)| Edit::Splice(from, to, len, over)),
    ];
    let seeds = seeds();
    let config = Config { cases: 20_000, failure_persistence: None, ..Config::default() };
    let outcome = TestRunner::new(config).run(&(at(), vec(edit, 1..6)), |(seed, edits)| {
        let mut bytes = seeds[seed.index(seeds.len())].1.clone();
        for edit in edits {
            let len = bytes.len();
            match edit {
                _ if len == 0 => {}
                Edit::Flip(at, bits) => bytes[at.index(len)] ^= bits,
                Edit::Cut(at) => bytes.truncate(at.index(len)),
                Edit::Splice(from, to, piece, over) => {
                    let (from, to) = (from.index(len), to.index(len));
                    let piece = bytes[from..len.min(from + piece)].to_vec();
                    let end = if over { len.min(to + piece.len()) } else { to };
                    bytes.splice(to..end, piece);
                }
            }
        }
        holds(&bytes)
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
}

/// One change to a graph, after which the file is still well formed.
#[derive(Clone, Debug)]
enum Change {
    Operator(At, &'static str),
    /// An input of a node becomes another value.
    Wire(At, At, At),
    /// A number among an attribute's.
    Attribute(At, At, At, i64),
    Name(At, At, &'static str),
    /// A size, or a number, of a constant.
    Size(At, At, i64),
    Int(At, At, i64),
    Type(At, i32),
    InputSize(At, i64),
    Drop(At),
    /// A node once more.
    Again(At, At),
}

const OPERATORS: [&str; 34] = [
    "Conv",
    "Relu",
    "MaxPool",
    "LRN",
    "Gemm",
    "MatMul",
    "Flatten",
    "Reshape",
    "Dropout",
    "Softmax",
    "Identity",
    "BatchNormalization",
    "Constant",
    "ConstantOfShape",
    "Shape",
    "Gather",
    "Unsqueeze",
    "Squeeze",
    "Concat",
    "Slice",
    "Cast",
    "Transpose",
    "Mul",
    "Add",
    "Sub",
    "Div",
    "Pad",
    "Clip",
    "AveragePool",
    "Size",
    "Pow",
    "If",
    "Equal",
    "",
];
const NAMES: [&str; 22] = [
    "pads",
    "strides",
    "kernel_shape",
    "group",
    "axis",
    "axes",
    "perm",
    "shape",
    "alpha",
    "ratio",
    "value",
    "auto_pad",
    "ceil_mode",
    "transB",
    "start",
    "end",
    "starts",
    "ends",
    "steps",
    "value_ints",
    "broadcast",
    "epsilon",
];

#[test]
fn graphs_that_change_are_read_or_refused() {
    let at = any::<At>;
    let number = || prop_oneof![4 => -6i64..9, 1 => select(&[255, 65_535, 65_536, 1 << 31, 1 << 40, i64::MAX, i64::MIN][..])];
    let change = prop_oneof![
        (at(), select(&OPERATORS[..]))
            .prop_map(|(node, operator)| Change::Operator(node, operator)),
        (at(), at(), at()).prop_map(|(node, slot, from)| Change::Wire(node, slot, from)),
        (at(), at(), at(), number())
            .prop_map(|(node, one, place, to)| Change::Attribute(node, one, place, to)),
        (at(), at(), select(&NAMES[..]))
            .prop_map(|(node, one, name)| Change::Name(node, one, name)),
        (at(), at(), number()).prop_map(|(tensor, axis, to)| Change::Size(tensor, axis, to)),
        (at(), at(), number()).prop_map(|(tensor, place, to)| Change::Int(tensor, place, to)),
        (at(), 0i32..18).prop_map(|(tensor, kind)| Change::Type(tensor, kind)),
        (at(), number()).prop_map(|(axis, to)| Change::InputSize(axis, to)),
        at().prop_map(Change::Drop),
        (at(), at()).prop_map(|(node, to)| Change::Again(node, to)),
    ];
    let seeds: Vec<ModelProto> =
        seeds().iter().map(|(_, bytes)| ModelProto::decode(&**bytes).unwrap()).collect();
    let config = Config { cases: 20_000, failure_persistence: None, ..Config::default() };
    let outcome = TestRunner::new(config).run(&(at(), vec(change, 1..4)), |(seed, changes)| {
        let mut model = seeds[seed.index(seeds.len())].clone();
        let graph = model.graph.as_mut().unwrap();
        changes.iter().for_each(|change| apply(graph, change));
        holds(&model.encode_to_vec())
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
}

fn apply(graph: &mut GraphProto, change: &Change) {
    fn one<'a, T>(of: &'a mut [T], at: &At) -> Option<&'a mut T> {
        (!of.is_empty()).then(|| &mut of[at.index(of.len())])
    }
    let values: Vec<String> = (graph.node.iter().flat_map(|node| node.output.clone()))
        .chain(graph.initializer.iter().map(|tensor| tensor.name.clone()))
        .chain(graph.input.iter().map(|input| input.name.clone()))
        .collect();
    match change {
        Change::Operator(node, operator) => {
            if let Some(node) = one(&mut graph.node, node) {
                node.op_type = operator.to_string();
            }
        }
        Change::Wire(node, slot, from) => {
            let node = one(&mut graph.node, node);
            if let Some(input) = node.and_then(|node| one(&mut node.input, slot)) {
                *input = values[from.index(values.len())].clone();
            }
        }
        Change::Attribute(node, attribute, place, to) => {
            let node = one(&mut graph.node, node);
            if let Some(attribute) = node.and_then(|node| one(&mut node.attribute, attribute)) {
                match one(&mut attribute.ints, place) {
                    Some(int) => *int = *to,
                    None => (attribute.i, attribute.f) = (Some(*to), Some(*to as f32)),
                }
            }
        }
        Change::Name(node, attribute, name) => {
            if let Some(node) = one(&mut graph.node, node) {
                match one(&mut node.attribute, attribute) {
                    Some(attribute) => attribute.name = name.to_string(),
                    None => node.attribute.push(ints(name, &[1, 2])),
                }
            }
        }
        Change::Size(tensor, axis, to) => {
            let tensor = one(&mut graph.initializer, tensor);
            if let Some(size) = tensor.and_then(|tensor| one(&mut tensor.dims, axis)) {
                *size = *to;
            }
        }
        Change::Int(tensor, place, to) => {
            let tensor = one(&mut graph.initializer, tensor);
            if let Some(int) = tensor.and_then(|tensor| one(&mut tensor.int64_data, place)) {
                *int = *to;
            }
        }
        Change::Type(tensor, kind) => {
            if let Some(tensor) = one(&mut graph.initializer, tensor) {
                tensor.data_type = *kind;
            }
        }
        Change::InputSize(axis, to) => {
            let kind = graph.input[0].r#type.as_mut().and_then(|kind| kind.tensor_type.as_mut());
            if let Some(dim) = kind.and_then(|kind| one(&mut kind.shape.as_mut()?.dim, axis)) {
                dim.value = Some(dimension_proto::Value::DimValue(*to));
            }
        }
        Change::Drop(node) => {
            if !graph.node.is_empty() {
                graph.node.remove(node.index(graph.node.len()));
            }
        }
        Change::Again(node, to) => {
            if let Some(node) = one(&mut graph.node, node).cloned() {
                let mut node = node;
                node.output = vec!["again".into()];
                let to = to.index(graph.node.len());
                let next = graph.node.get_mut(to);
                if let Some(input) = next.and_then(|next| next.input.first_mut()) {
                    let before = std::mem::replace(input, "again".into());
                    if let Some(first) = node.input.first_mut() {
                        *first = before;
                    }
                }
                graph.node.insert(to, node);
            }
        }
    }
}

#[test]
#[ignore = "writes the seeds of fuzz/corpus anew"]
fn write_the_seeds() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/onnx");
    fs::create_dir_all(&folder).unwrap();
    for (name, bytes) in seeds() {
        fs::write(folder.join(format!("seed-{name}")), bytes).unwrap();
    }
}
