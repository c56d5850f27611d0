//! Graphs as exporters write them, and as nobody should.

#[path = "common/onnx_nets.rs"]
mod onnx_nets;

use std::fs;
use std::path::PathBuf;

use onnx_nets::*;
use prost::Message;
use zfnet_core::Error;
use zfnet_formats::onnx::proto::{dimension_proto::Value as Dimension, *};
use zfnet_formats::onnx::{Options, Pixels, metadata, read, read_within, write};
use zfnet_formats::{Chain, Input, Layer, Op, Preprocessing, Tensor};

impl Net {
    fn read(&self) -> Chain {
        read(&self.bytes(), None, None).unwrap()
    }

    fn until(&self, name: &str) -> Chain {
        read(&self.bytes(), None, Some(name)).unwrap()
    }

    #[track_caller]
    fn refused(&self, parts: &[&str]) {
        refused(&self.bytes(), None, parts);
    }
}

#[track_caller]
fn refused(bytes: &[u8], until: Option<&str>, parts: &[&str]) {
    let error = read(bytes, None, until).expect_err("refused").to_string();
    for part in parts {
        assert!(error.contains(part), "{part:?} is not in: {error}");
    }
}

/// What a chain is made of, a word a layer.
fn words(chain: &Chain) -> String {
    let sides = |pad: &[usize; 4]| match pad {
        [0, 0, 0, 0] => String::new(),
        [top, bottom, left, right] => format!("+{top}{bottom}{left}{right}"),
    };
    let word = |op: &Op| match op {
        Op::Conv { weight, stride, pad, groups, .. } => {
            let groups = if *groups > 1 { format!("g{groups}") } else { String::new() };
            format!("conv{:?}/{}{}{groups}", weight.shape, stride[0], sides(pad)).replace(", ", ",")
        }
        Op::Fc { weight, .. } => format!("fc{:?}", weight.shape).replace(", ", ","),
        Op::Relu => "relu".into(),
        Op::MaxPool { kernel, stride, pad, ceil } => {
            let ceil = if *ceil { "ceil" } else { "" };
            format!("pool{}/{}{}{ceil}", kernel[0], stride[0], sides(pad))
        }
        Op::Lrn { size, .. } => format!("lrn{size}"),
        Op::Dropout { rate } => format!("dropout{rate}"),
    };
    chain.layers.iter().map(|layer| word(&layer.op)).collect::<Vec<_>>().join(" ")
}

fn conv(chain: &Chain) -> (&Tensor, &[f32], [usize; 4]) {
    let found = chain.layers.iter().find_map(|layer| match &layer.op {
        Op::Conv { weight, bias, pad, .. } => Some((weight, &**bias, *pad)),
        _ => None,
    });
    found.expect("a convolution")
}

fn fc(chain: &Chain) -> (&Tensor, &[f32]) {
    let found = chain.layers.iter().find_map(|layer| match &layer.op {
        Op::Fc { weight, bias } => Some((weight, &**bias)),
        _ => None,
    });
    found.expect("a fully connected layer")
}

#[test]
fn a_chain_of_every_operator_is_read() {
    let chain = whole().read();
    assert_eq!(chain.name, "net");
    assert_eq!(chain.input, Input { channels: 3, size: Some([8, 8]) });
    assert_eq!(
        words(&chain),
        "conv[2,3,3,3]/1+1111 relu lrn5 pool3/2ceil fc[5,32] relu dropout0.25 fc[2,5]"
    );
    let names: Vec<_> = chain.layers.iter().map(|layer| &*layer.name).collect();
    assert_eq!(names, ["c", "r", "l", "p", "g", "r1", "d", "m"]);
    assert_eq!(conv(&chain).0.values, ramp(54));
    assert_eq!(conv(&chain).1, ramp(2));
    assert_eq!(chain.layers[2].op, Op::Lrn { size: 5, alpha: 5e-4, beta: 0.5, k: 2. });
    let Op::Fc { weight, bias } = &chain.layers[7].op else { panic!("{:?}", chain.layers[7]) };
    let columns = ramp(10);
    let rows: Vec<f32> = (0..10).map(|place| columns[place % 5 * 2 + place / 5]).collect();
    assert_eq!((&weight.values, bias), (&rows, &ramp(2)));
    assert!(chain.notes.iter().any(|note| note.contains("`s` (Softmax)")), "{:?}", chain.notes);
}

#[test]
fn gemm_has_factors_and_either_order() {
    let net = Net::new(&[0, 2, 1, 1]).node("Flatten", &["x"], "f", &[]).ramp("w", &[2, 3]);
    let scaled = [float("alpha", 2.), float("beta", 4.)];
    let chain =
        net.clone().floats("b", &[1], &[1.5]).node("Gemm", &["f", "w", "b"], "g", &scaled).read();
    let w = ramp(6);
    let expected = [w[0], w[3], w[1], w[4], w[2], w[5]].map(|weight| 2. * weight);
    assert_eq!(fc(&chain).0.values, expected);
    assert_eq!(fc(&chain).1, [6.; 3]);
    net.clone().ramp("b", &[4]).node("Gemm", &["f", "w", "b"], "g", &[]).refused(&[
        "`g` (Gemm)",
        "`b`",
        "3 values",
    ]);
    net.clone().node("Gemm", &["f", "w"], "g", &[int("transA", 1)]).refused(&["transA"]);
    net.node("Gemm", &["f", "w"], "g", &[int("transB", 1)]).refused(&[
        "`g` (Gemm)",
        "2 inputs",
        "3 inputs",
    ]);
}

/// Floats of every type, in bytes and as numbers.
#[test]
fn weights_of_any_float_type_are_read() {
    let values = [1.5f32, -2., 0.25, 8.];
    let base = TensorProto { name: "w".into(), dims: vec![1, 1, 2, 2], ..Default::default() };
    let half: Vec<u16> = vec![0x3e00, 0xc000, 0x3400, 0x4800];
    let brain: Vec<u16> = values.iter().map(|value| (value.to_bits() >> 16) as u16).collect();
    let bytes16 =
        |bits: &[u16]| bits.iter().flat_map(|bits| bits.to_le_bytes()).collect::<Vec<_>>();
    let numbers = |bits: &[u16]| bits.iter().map(|&bits| bits.into()).collect::<Vec<i32>>();
    let doubles: Vec<f64> = values.iter().map(|&value| value.into()).collect();
    let cases = [
        TensorProto { data_type: 1, float_data: values.into(), ..base.clone() },
        TensorProto {
            data_type: 1,
            raw_data: values.map(f32::to_le_bytes).concat(),
            ..base.clone()
        },
        TensorProto { data_type: 11, double_data: doubles.clone(), ..base.clone() },
        TensorProto {
            data_type: 11,
            raw_data: doubles.iter().flat_map(|value| value.to_le_bytes()).collect(),
            ..base.clone()
        },
        TensorProto { data_type: 10, int32_data: numbers(&half), ..base.clone() },
        TensorProto { data_type: 10, raw_data: bytes16(&half), ..base.clone() },
        TensorProto { data_type: 16, int32_data: numbers(&brain), ..base.clone() },
        TensorProto { data_type: 16, raw_data: bytes16(&brain), ..base.clone() },
    ];
    for case in cases {
        let mut net = Net::new(&[1, 1, 4, 4]);
        net.graph.initializer.push(case.clone());
        assert_eq!(conv(&net.node("Conv", &["x", "w"], "c", &[]).read()).0.values, values);
        // The same as a node's attribute, listed among the inputs too, as the oldest files do.
        let net = Net::new(&[1, 1, 4, 4]).node("Constant", &[], "k", &[tensor(case)]);
        assert_eq!(conv(&net.node("Conv", &["x", "k"], "c", &[]).read()).0.values, values);
    }
    let whole = TensorProto { data_type: 3, raw_data: vec![1, 2, 3, 4], ..base.clone() };
    let mut net = Net::new(&[1, 1, 4, 4]);
    net.graph.initializer.push(whole);
    net.node("Conv", &["x", "w"], "c", &[]).refused(&["`c` (Conv)", "tensor `w`", "integers"]);
    let many =
        TensorProto { data_type: 3, dims: vec![9, 1, 64, 64], raw_data: vec![1; 9 << 12], ..base };
    let mut net = Net::new(&[1, 1, 64, 64]);
    net.graph.initializer.push(many);
    net.node("Conv", &["x", "w"], "c", &[]).refused(&["`c` (Conv)", "int8", "quantised"]);
}

#[test]
fn initialisers_among_the_inputs_are_no_inputs() {
    let mut net = whole();
    net.graph.input.push(value("w", 1, &[2, 3, 3, 3]));
    net.graph.input.insert(0, value("b", 1, &[2]));
    assert_eq!(net.read(), whole().read());
}

#[test]
fn batch_normalisation_is_folded() {
    let (scale, shift, mean, variance, epsilon) =
        ([2f32, -0.5], [1f32, 3.], [0.5f32, -2.], [4f32, 0.25], 0.01);
    let statistics = |net: Net| {
        net.floats("s", &[2], &scale).floats("t", &[2], &shift).floats("m", &[2], &mean).floats(
            "v",
            &[2],
            &variance,
        )
    };
    let folded = ["y", "s", "t", "m", "v"];
    let attributes = [float("epsilon", epsilon)];
    // Of what came out, what should have: y in f64, then its normalisation.
    let check = |y: &dyn Fn(usize) -> f64, found: &dyn Fn(usize) -> f64| {
        for k in 0..2 {
            let [s, t, m, v] = [scale[k], shift[k], mean[k], variance[k]].map(f64::from);
            let expected = (y(k) - m) / (v + f64::from(epsilon)).sqrt() * s + t;
            assert!((found(k) - expected).abs() < 1e-5, "{} beside {expected}", found(k));
        }
    };
    let dot = |weights: &[f32], bias: f32, x: &[f32]| -> f64 {
        let sum: f64 = weights.iter().zip(x).map(|(&w, &x)| f64::from(w) * f64::from(x)).sum();
        sum + f64::from(bias)
    };
    let x: Vec<f32> = (0..27).map(|i| (i as f32).sin()).collect();
    let net = statistics(small().node("Conv", &["x", "w", "b"], "y", &[]));
    let chain = net.node("BatchNormalization", &folded, "n", &attributes).read();
    let (w, b) = (ramp(54), ramp(2));
    let (weight, bias, _) = conv(&chain);
    let row = |k: usize| 27 * k..27 * (k + 1);
    check(&|k| dot(&w[row(k)], b[k], &x), &|k| dot(&weight.values[row(k)], bias[k], &x));
    assert!(chain.notes[0].contains("`n` (BatchNormalization) was folded into `y`"));

    let net = Net::new(&[0, 27, 1, 1]).node("Flatten", &["x"], "f", &[]).ramp("w", &[2, 27]);
    let net = statistics(net.node("Gemm", &["f", "w"], "y", &[int("transB", 1)]));
    let chain = net.node("BatchNormalization", &folded, "n", &attributes).read();
    let (weight, bias) = fc(&chain);
    check(&|k| dot(&w[row(k)], 0., &x), &|k| dot(&weight.values[row(k)], bias[k], &x));

    let after_relu =
        statistics(small().node("Conv", &["x", "w", "b"], "c", &[]).node("Relu", &["c"], "y", &[]));
    let after_relu = after_relu.node("BatchNormalization", &folded, "n", &attributes);
    after_relu.refused(&["`n` (BatchNormalization)", "directly before", "up to `y`"]);
    assert_eq!(words(&after_relu.until("y")), "conv[2,3,3,3]/1 relu");
    let training = statistics(small().node("Conv", &["x", "w", "b"], "y", &[]));
    training
        .node("BatchNormalization", &folded, "n", &[int("training_mode", 1)])
        .refused(&["statistics"]);
    let broken = small().node("Conv", &["x", "w", "b"], "y", &[]).floats("v", &[2], &[-1., 1.]);
    let broken =
        broken.floats("s", &[2], &scale).floats("t", &[2], &shift).floats("m", &[2], &mean);
    broken.node("BatchNormalization", &folded, "n", &[]).refused(&["finite"]);
}

#[test]
fn constants_a_channel_become_biases_and_factors() {
    let net = small().node("Conv", &["x", "w"], "c", &[]);
    for (sizes, attributes, opset) in [
        (&[1, 2, 1, 1][..], &[][..], 13),
        (&[2, 1, 1], &[], 13),
        // Before opset 7.
        (&[2], &[int("broadcast", 1), int("axis", 1)], 6),
    ] {
        let mut net = net.clone().floats("k", sizes, &[10., 20.]);
        net.opset = opset;
        assert_eq!(
            conv(&net.clone().node("Add", &["c", "k"], "a", attributes).read()).1,
            [10., 20.]
        );
        assert_eq!(conv(&net.node("Sub", &["c", "k"], "a", attributes).read()).1, [-10., -20.]);
    }
    let net = net.floats("k", &[2, 1, 1], &[10., 20.]).floats("all", &[], &[2.]);
    let chain =
        net.clone().node("Mul", &["k", "c"], "a", &[]).node("Div", &["a", "all"], "d", &[]).read();
    let expected: Vec<f32> =
        ramp(54).iter().enumerate().map(|(i, w)| w * if i < 27 { 5. } else { 10. }).collect();
    assert_eq!(conv(&chain).0.values, expected);
    net.clone().node("Sub", &["k", "c"], "a", &[]).refused(&["`a` (Sub)", "input 0"]);
    net.clone()
        .node("Relu", &["c"], "r", &[])
        .node("Add", &["r", "k"], "a", &[])
        .refused(&["`a` (Add)", "directly"]);
    net.floats("three", &[3], &[1.; 3])
        .node("Add", &["c", "three"], "a", &[])
        .refused(&["2 channels", "[3]"]);
}

#[test]
fn pads_are_merged_into_the_layer_behind() {
    let pads = [0, 0, 1, 2, 0, 0, 3, 4];
    let attribute =
        small().node("Pad", &["x"], "p", &[ints("pads", &pads), text("mode", "constant")]);
    let input = small().ints("at", &pads).node("Pad", &["x", "at", NONE], "p", &[]);
    let axes = small().ints("at", &[2, 1, 4, 3]).ints("axes", &[3, -2]);
    let axes = axes.node("Pad", &["x", "at", NONE, "axes"], "p", &[]);
    for net in [&attribute, &input, &axes] {
        let chain =
            net.clone().node("Conv", &["p", "w"], "c", &[ints("pads", &[0, 1, 0, 1])]).read();
        assert_eq!(conv(&chain).2, [1, 3, 3, 5], "top, bottom, left, right");
        net.clone().node("Relu", &["p"], "r", &[]).refused(&["`r` (Relu)", "behind `p` (Pad)"]);
        net.refused(&["`p` (Pad)", "no layer follows"]);
        net.clone()
            .node("MaxPool", &["p"], "m", &[kernel(5)])
            .refused(&["`m` (MaxPool)", "lowest"]);
    }
    // Among values that are not negative, zeros never win either.
    let net = small().node("Conv", &["x", "w"], "c", &[]).node("Relu", &["c"], "r", &[]);
    let net = net.node("Pad", &["r"], "p", &[ints("pads", &[0, 0, 0, 0, 0, 0, 1, 1])]);
    assert_eq!(
        words(&net.node("MaxPool", &["p"], "m", &[kernel(2)]).read()),
        "conv[2,3,3,3]/1 relu pool2/1+0101"
    );
    let low = [ints("pads", &[0, 0, 1, 1, 0, 0, 1, 1]), float("value", f32::NEG_INFINITY)];
    let net = Net::new(&[0, 3, 8, 8]).node("Pad", &["x"], "p", &low);
    assert_eq!(words(&net.node("MaxPool", &["p"], "m", &[kernel(2)]).read()), "pool2/1+1111");
    let reflected = [ints("pads", &pads), text("mode", "reflect")];
    small().node("Pad", &["x"], "p", &reflected).refused(&["`p` (Pad)", "reflect"]);
    let channels = [ints("pads", &[0, 1, 0, 0, 0, 0, 0, 0])];
    small().node("Pad", &["x"], "p", &channels).refused(&["rows and columns"]);
    let negative = [ints("pads", &[0, 0, -1, 0, 0, 0, 0, 0])];
    small().node("Pad", &["x"], "p", &negative).refused(&["not negative"]);
}

#[test]
fn windows_are_the_file_s() {
    let with = |attributes: &[AttributeProto]| small().node("Conv", &["x", "w"], "c", attributes);
    let pad_of = |attributes: &[AttributeProto]| conv(&with(attributes).read()).2;
    assert_eq!(pad_of(&[ints("pads", &[0, 1, 2, 3])]), [0, 2, 1, 3], "top, bottom, left, right");
    assert_eq!(pad_of(&[text("auto_pad", "SAME_UPPER")]), [1; 4]);
    // 8 values by steps of 2, windows of 3: one pad, behind or before.
    assert_eq!(pad_of(&[text("auto_pad", "SAME_UPPER"), strides(2)]), [0, 1, 0, 1]);
    assert_eq!(pad_of(&[text("auto_pad", "SAME_LOWER"), strides(2)]), [1, 0, 1, 0]);
    assert_eq!(pad_of(&[text("auto_pad", "VALID"), ints("pads", &[])]), [0; 4]);
    let Op::Conv { stride, .. } = with(&[ints("strides", &[2, 3])]).read().layers[0].op else {
        panic!()
    };
    assert_eq!(stride, [2, 3]);
    with(&[ints("dilations", &[2, 2])]).refused(&["`c` (Conv)", "gaps"]);
    with(&[ints("strides", &[0, 1])]).refused(&["strides", "positive"]);
    with(&[ints("strides", &[1])]).refused(&["strides", "two"]);
    with(&[kernel(5)]).refused(&["kernel_shape"]);
    with(&[ints("pads", &[0, -1, 0, 0])]).refused(&["not negative"]);
    with(&[ints("pads", &[i64::MAX; 4])]).refused(&["pads"]);
    with(&[int("group", 2)]).refused(&["3 channels", "found 6"]);
    with(&[int("group", 0)]).refused(&["groups", "found 0"]);
    Net::new(&[1, 3, 2, 8])
        .ramp("w", &[2, 3, 3, 3])
        .node("Conv", &["x", "w"], "c", &[])
        .refused(&["window of 3"]);
    let open = Net::new(&[0, 3, 0, 0]).ramp("w", &[2, 3, 3, 3]);
    assert_eq!(
        conv(
            &open.clone().node("Conv", &["x", "w"], "c", &[text("auto_pad", "SAME_UPPER")]).read()
        )
        .2,
        [1; 4]
    );
    let same = [text("auto_pad", "SAME_UPPER"), strides(2)];
    open.node("Conv", &["x", "w"], "c", &same).refused(&["fixed size"]);
    let uneven = [ints("kernel_shape", &[2, 4]), ints("pads", &[1, 0, 0, 3])];
    let Op::MaxPool { kernel, pad, .. } =
        small().node("MaxPool", &["x"], "m", &uneven).read().layers[0].op
    else {
        panic!()
    };
    assert_eq!((kernel, pad), ([2, 4], [1, 0, 0, 3]));
    let wide = [ints("kernel_shape", &[2, 2]), ints("pads", &[2, 0, 0, 0])];
    small().node("MaxPool", &["x"], "m", &wide).refused(&["pads smaller"]);
}

/// A view to `[images, everything]`, as exporters compute its sizes.
#[test]
fn sizes_are_computed() {
    let net = |reshape: &dyn Fn(Net) -> Net| {
        let net = small().node("Conv", &["x", "w"], "c", &[]);
        let net = reshape(net).ramp("m", &[72, 4]);
        words(&net.node("MatMul", &["f", "m"], "y", &[]).read())
    };
    let expected = "conv[2,3,3,3]/1 fc[4,72]";
    let axis = [int("axis", 0)];
    let of_sizes = |net: Net| {
        net.node("Shape", &["c"], "s", &[])
            .node(
                "Constant",
                &[],
                "zero",
                &[tensor(TensorProto { dims: vec![], ..ints_tensor("", &[0]) })],
            )
            .node("Gather", &["s", "zero"], "n", &axis)
    };
    // x.view(x.size(0), -1), with axes as an attribute and as an input.
    assert_eq!(
        net(&|net| {
            of_sizes(net)
                .node("Unsqueeze", &["n"], "u", &[ints("axes", &[0])])
                .ints("rest", &[-1])
                .node("Concat", &["u", "rest"], "to", &axis)
                .node("Reshape", &["c", "to"], "f", &[])
        }),
        expected
    );
    // x.view(x.size(0), x.size(1) * x.size(2) * x.size(3))
    assert_eq!(
        net(&|net| {
            of_sizes(net)
                .ints("axes", &[0])
                .node("Unsqueeze", &["n", "axes"], "u", &[])
                .ints("one", &[1])
                .ints("two", &[2])
                .ints("end", &[i64::MAX])
                .node("Slice", &["s", "one", "end"], "chw", &[])
                .node("Gather", &["chw", "axes"], "channels", &axis)
                .node("Slice", &["chw", "one", "two"], "rows", &[])
                .node("Slice", &["s"], "columns", &[ints("starts", &[-1]), ints("ends", &[4])])
                .node("Mul", &["channels", "rows"], "some", &[])
                .node("Mul", &["some", "columns"], "all", &[])
                .node("Concat", &["u", "all"], "to", &axis)
                .node("Cast", &["to"], "as_ints", &[int("to", 7)])
                .node("Reshape", &["c", "as_ints"], "f", &[])
        }),
        expected
    );
    for to in [&[-1, 72][..], &[0, -1], &[0, 72], &[1, -1], &[1, 72]] {
        assert_eq!(
            net(&|net| net.ints("to", to).node("Reshape", &["c", "to"], "f", &[])),
            expected,
            "{to:?}"
        );
        assert_eq!(
            net(&|net| net.node("Reshape", &["c"], "f", &[ints("shape", to)])),
            expected,
            "{to:?}"
        );
    }
    let reshape = |to: &[i64]| {
        small().node("Conv", &["x", "w"], "c", &[]).node(
            "Reshape",
            &["c"],
            "f",
            &[ints("shape", to)],
        )
    };
    for to in [
        &[-1, 36][..],
        &[2, 36],
        &[-1],
        &[0, 2, 36],
        &[72, -1],
        &[0, 0, 0, -1, 1],
        &[-1, -1],
        &[0, 36, 2, 1],
        &[],
    ] {
        reshape(to).refused(&["`f` (Reshape)", "flattens"]);
    }
    assert_eq!(words(&reshape(&[0, 2, -1, 6]).read()), "conv[2,3,3,3]/1");
    let fixed = |to| Net::new(&[5, 2, 1, 1]).node("Reshape", &["x"], "f", &[ints("shape", to)]);
    assert_eq!(words(&fixed(&[5, 2]).read()), "");
    fixed(&[1, 10]).refused(&["`f` (Reshape)"]);
    let squeezed = Net::new(&[0, 2, 1, 1])
        .node("Squeeze", &["x"], "f", &[ints("axes", &[2, 3])])
        .ramp("m", &[2, 3]);
    assert_eq!(words(&squeezed.node("MatMul", &["f", "m"], "y", &[]).read()), "fc[3,2]");
}

/// Weights that nodes make: ONNX's own tests fill them, CNTK reshapes, Keras transposes.
#[test]
fn weights_are_computed() {
    let fill =
        TensorProto { dims: vec![1], data_type: 1, float_data: vec![0.5], ..Default::default() };
    let net = Net::new(&[0, 1, 4, 4]).ints("sizes", &[2, 1, 3, 3]);
    let net = net.node("ConstantOfShape", &["sizes"], "w", &[tensor(fill)]);
    assert_eq!(conv(&net.node("Conv", &["x", "w"], "c", &[]).read()).0.values, [0.5; 18]);
    // HWIO to OIHW.
    let net = Net::new(&[0, 1, 4, 4]).ramp("hwio", &[2, 2, 1, 3]);
    let net = net.node("Transpose", &["hwio"], "w", &[ints("perm", &[3, 2, 0, 1])]);
    let chain = net.node("Conv", &["x", "w"], "c", &[]).read();
    let hwio = ramp(12);
    let expected: Vec<f32> = (0..12).map(|i| hwio[i % 4 * 3 + i / 4]).collect();
    assert_eq!((&*conv(&chain).0.shape, &conv(&chain).0.values), (&[3, 1, 2, 2][..], &expected));
    let net =
        Net::new(&[1, 2, 2, 1]).ramp("w", &[2, 2, 1, 3]).ints("to", &[4, 3]).ints("flat", &[1, 4]);
    let net = net.node("Reshape", &["w", "to"], "m", &[]).node("Reshape", &["x", "flat"], "f", &[]);
    assert_eq!(words(&net.node("MatMul", &["f", "m"], "y", &[]).read()), "fc[3,4]");
    let net = Net::new(&[0, 2, 1, 1]).ramp("w", &[1, 2, 1, 1]).ramp("k", &[1, 1, 1, 1]);
    let net = net.node("Concat", &["w", "w"], "w2", &[int("axis", 0)]).node(
        "Mul",
        &["w2", "k"],
        "w3",
        &[],
    );
    let net = net.node("Sub", &["w3", "w2"], "w4", &[]).node("Div", &["w4", "k"], "w5", &[]);
    let w = ramp(2);
    let made: Vec<f32> = [0, 1, 0, 1].map(|i| (-w[i] - w[i]) / -1.).to_vec();
    assert_eq!(conv(&net.node("Conv", &["x", "w5"], "c", &[]).read()).0.values, made);
    let unknown = Net::new(&[0, 2, 1, 1]).ramp("w", &[1, 2, 1, 1]).node("Exp", &["w"], "e", &[]);
    unknown.node("Conv", &["x", "e"], "c", &[]).refused(&["`e` (Exp)", "constants"]);
}

/// As tf2onnx and Keras write networks: channels last outside, and where values are flattened.
#[test]
fn channels_last_at_the_edges_are_put_in_order() {
    let first = [ints("perm", &[0, 3, 1, 2])];
    let back = [ints("perm", &[0, 2, 3, 1])];
    let net =
        Net::new(&[0, 3, 4, 3]).node("Transpose", &["x"], "t", &first).ramp("w", &[2, 3, 1, 1]);
    let net = net.node("Conv", &["t", "w"], "c", &[]).node("Transpose", &["c"], "l", &back);
    let net = net.floats("k", &[2], &[10., 20.]).node("Add", &["l", "k"], "a", &[]).node(
        "Relu",
        &["a"],
        "r",
        &[],
    );
    let net = net.node("Flatten", &["r"], "f", &[]).ramp("m", &[24, 1]).node(
        "MatMul",
        &["f", "m"],
        "y",
        &[],
    );
    let chain = net.read();
    assert_eq!(chain.input, Input { channels: 3, size: Some([3, 4]) });
    assert_eq!(words(&chain), "conv[2,3,1,1]/1 relu fc[1,24]");
    assert_eq!(conv(&chain).1, [10., 20.]);
    // Row (h, w, c) of the matrix is the weight of (c, h, w).
    let m = ramp(24);
    let expected: Vec<f32> = (0..24).map(|i| m[i % 12 * 2 + i / 12]).collect();
    assert_eq!(fc(&chain).0.values, expected);
    // Between layouts of one channel a reshape does it.
    let net =
        Net::new(&[0, 3, 4, 1]).ints("to", &[-1, 1, 3, 4]).node("Reshape", &["x", "to"], "t", &[]);
    let chain = net.ramp("w", &[2, 1, 1, 1]).node("Conv", &["t", "w"], "c", &[]).read();
    assert_eq!(
        (chain.input, words(&chain)),
        (Input { channels: 1, size: Some([3, 4]) }, "conv[2,1,1,1]/1".into())
    );
    let turned = small().node("Transpose", &["x"], "t", &[ints("perm", &[0, 1, 3, 2])]);
    turned.refused(&["`t` (Transpose)", "[0, 1, 3, 2]"]);
    let last = small().node("Conv", &["x", "w"], "c", &[]).node("Transpose", &["c"], "t", &back);
    last.node("MaxPool", &["t"], "m", &[kernel(2)]).refused(&["`m` (MaxPool)", "channels"]);
}

#[test]
fn older_and_newer_dropout_and_clip_are_read() {
    let rate = |net: Net| match net.read().layers[..] {
        [Layer { op: Op::Dropout { rate }, .. }] => Some(rate),
        [] => None,
        _ => panic!(),
    };
    let net = || Net::new(&[0, 3, 8, 8]).floats("r", &[], &[0.25]).floats("none", &[], &[0.]);
    assert_eq!(
        rate(net().node("Dropout", &["x"], "d", &[int("is_test", 1), float("ratio", 0.75)])),
        Some(0.75)
    );
    assert_eq!(rate(net().node("Dropout", &["x"], "d", &[])), Some(0.5));
    assert_eq!(rate(net().node("Dropout", &["x", "r"], "d", &[])), Some(0.25));
    assert_eq!(rate(net().node("Dropout", &["x", "none"], "d", &[])), None);
    net().node("Dropout", &["x"], "d", &[float("ratio", 1.)]).refused(&["rate"]);
    net().node("Dropout", &["x"], "d", &[float("ratio", f32::NAN)]).refused(&["rate"]);
    let clipped = |net: Net| words(&net.read());
    assert_eq!(clipped(net().node("Clip", &["x", "none"], "c", &[])), "relu");
    assert_eq!(
        clipped(net().node("Clip", &["x"], "c", &[float("min", 0.), float("max", f32::MAX)])),
        "relu"
    );
    net().node("Clip", &["x", "none", "r"], "c", &[]).refused(&["`c` (Clip)", "0.25"]);
    net().node("Clip", &["x"], "c", &[]).refused(&["`c` (Clip)"]);
    // What is left of an adaptive pool at the size at which it changes nothing.
    assert_eq!(clipped(net().node("AveragePool", &["x"], "a", &[kernel(1)])), "");
    net()
        .node("AveragePool", &["x"], "a", &[kernel(2)])
        .refused(&["`a` (AveragePool)", "averages"]);
    net()
        .node("GlobalAveragePool", &["x"], "a", &[])
        .refused(&["`a` (GlobalAveragePool)", "averages"]);
}

#[test]
fn normalisation_in_steps_is_found() {
    let steps = |pads: &[i64]| {
        small()
            .node("Relu", &["x"], "r", &[])
            .node("Mul", &["r", "r"], "square", &[])
            .ints("five", &[0, 1, 3, 8, -1])
            .node("Reshape", &["square", "five"], "as5", &[])
            .node("Pad", &["as5"], "pad", &[ints("pads", pads)])
            .node(
                "AveragePool",
                &["pad"],
                "mean",
                &[ints("kernel_shape", &[3, 1, 1]), ints("strides", &[1, 1, 1])],
            )
            .node("Squeeze", &["mean"], "as4", &[ints("axes", &[1])])
            .floats("alpha", &[], &[0.5])
            .node("Mul", &["as4", "alpha"], "scaled", &[])
            .floats("k", &[], &[2.])
            .node("Add", &["k", "scaled"], "sum", &[])
            .floats("beta", &[], &[0.75])
            .node("Pow", &["sum", "beta"], "power", &[])
            .node("Div", &["r", "power"], "n", &[])
    };
    let right = steps(&[0, 0, 1, 0, 0, 0, 0, 1, 0, 0]);
    let chain = right.read();
    assert_eq!(chain.layers[1].op, Op::Lrn { size: 3, alpha: 0.5, beta: 0.75, k: 2. });
    assert_eq!((words(&chain), &*chain.layers[1].name), ("relu lrn3".into(), "n"));
    steps(&[0, 0, 2, 0, 0, 0, 0, 0, 0, 0]).refused(&["`n` (Div)", "pads of 1"]);
    // A step that is used elsewhere is a step of its own.
    right.node("Add", &["n", "power"], "more", &[]).refused(&["branch", "up to `r`"]);
}

#[test]
fn what_is_no_chain_is_refused_by_node_and_can_be_cut() {
    let net = small()
        .node("Conv", &["x", "w"], "c", &[])
        .node("Relu", &["c"], "r", &[])
        .node("MaxPool", &["r"], "left", &[kernel(2)])
        .node("Identity", &["r"], "right", &[])
        .node("Concat", &["left", "right"], "y", &[int("axis", 1)]);
    net.refused(&["branch", "`left` (MaxPool), `right` (Identity)", "chain up to `r`"]);
    assert_eq!(words(&net.until("r")), "conv[2,3,3,3]/1 relu");
    assert_eq!(words(&net.until("c")), "conv[2,3,3,3]/1");
    assert_eq!(
        words(&net.until("left")),
        "conv[2,3,3,3]/1 relu pool2/1",
        "the other side is not looked at"
    );
    refused(&net.bytes(), Some("zzz"), &["`zzz`", "begin with `c`, `r`"]);
    refused(&net.bytes(), Some("LEFT"), &["there are `left`"]);
    refused(&net.bytes(), Some("x"), &["`x`", "none"]);
    let mut named = net.clone();
    named.graph.node[1].name = "rectify".into();
    named.graph.node[0].name = "first".into();
    assert_eq!(named.until("rectify").layers[1].name, "rectify");
    assert_eq!(named.until("r"), named.until("rectify"));
    let up_to = |net: &Net| match read(&net.bytes(), None, None).unwrap_err() {
        Error::NotAChain { reason, until } => {
            let until = until.unwrap();
            assert!(reason.ends_with(&format!("; it is a chain up to `{until}`")), "{reason}");
            assert_eq!(words(&net.until(&until)), "conv[2,3,3,3]/1 relu");
            until
        }
        other => panic!("{other}"),
    };
    assert_eq!(up_to(&named), "rectify");
    named.graph.node[2].name = "rectify".into();
    assert_eq!(up_to(&named), "r", "of nodes of one name, each by its output");
    refused(&named.bytes(), Some("rectify"), &["several", "`r`", "`left`"]);
    let square = small().node("Mul", &["x", "x"], "s", &[]);
    square.refused(&["branch", "`s` (Mul)", "input `x`"]);
    let at_input = read(&square.bytes(), None, None).unwrap_err();
    assert!(matches!(at_input, Error::NotAChain { until: None, .. }), "{at_input}");
    // A name that would change a terminal is not advised.
    let mut odd = net.clone();
    odd.graph.node[1].name = "\u{1b}[2J".into();
    let error = read(&odd.bytes(), None, None).unwrap_err();
    assert!(!error.to_string().contains('\u{1b}'), "{error}");
    assert!(matches!(error, Error::NotAChain { until: None, .. }), "{error}");
    let unknown = small().node("Conv", &["x", "w"], "c", &[]).node("Sigmoid", &["c"], "s", &[]);
    unknown.refused(&["`s` (Sigmoid)", "no layer", "up to `c`"]);
    let mut foreign = unknown.clone();
    foreign.graph.node[1].domain = "com.microsoft".into();
    foreign.refused(&["`s` (Sigmoid)", "com.microsoft"]);
    let not_last = small().node("Flatten", &["x"], "f", &[]).node("Softmax", &["f"], "s", &[]);
    not_last
        .clone()
        .node("Relu", &["s"], "r", &[])
        .refused(&["`r` (Relu)", "behind `s` (Softmax)"]);
    assert_eq!(words(&not_last.node("Identity", &["s"], "i", &[]).read()), "");
    for operator in ["If", "Loop", "Scan"] {
        small().node(operator, &["x"], "y", &[]).refused(&["`y`", operator, "graphs of its own"]);
    }
    small().node("QLinearConv", &["x"], "y", &[]).refused(&["quantised"]);
    let constant = small().node("Identity", &["w"], "y", &[]);
    constant.refused(&["depends on the input"]);
    let two = small().node("Relu", &["x"], "r", &[]).node("Add", &["r", "z"], "y", &[]);
    let mut other = two.clone();
    other.graph.input.push(value("z", 1, &[0, 3, 8, 8]));
    other.refused(&["`y` (Add)", "joins `z`", "up to `r`"]);
    two.refused(&["`y` (Add)", "`z`", "no input"]);
}

#[test]
fn outputs_that_nobody_takes_do_not_matter() {
    let mut net = whole();
    let dropout = net.graph.node.iter_mut().find(|node| node.op_type == "Dropout").unwrap();
    dropout.output.push("mask".into());
    assert_eq!(net.read(), whole().read());
    refused(&net.bytes(), Some("mask"), &["`mask`", "second output"]);
    // A head beside the chain, as long as it is no output.
    let aside = whole().node("Sigmoid", &["c"], "aside", &[]);
    let mut model = aside.model();
    model.graph.as_mut().unwrap().output[0].name = "s".into();
    assert_eq!(read(&model.encode_to_vec(), None, None).unwrap(), whole().read());
    model.graph.as_mut().unwrap().output.push(value("aside", 1, &[]));
    refused(&model.encode_to_vec(), None, &["one output", "`s`", "`aside`"]);
    // Layers of the chain that are outputs too.
    let mut model = whole().model();
    model.graph.as_mut().unwrap().output.insert(0, value("r", 1, &[]));
    assert_eq!(read(&model.encode_to_vec(), None, None).unwrap(), whole().read());
}

#[test]
fn graphs_that_are_none_are_refused() {
    let mut cycle = small().node("Relu", &["b2"], "a", &[]).node("Relu", &["a"], "b2", &[]);
    cycle.refused(&["needs its own output", "cycles"]);
    cycle.graph.node[0].input = vec!["a".into()];
    cycle.refused(&["`a` (Relu)", "cycles"]);
    small().node("Relu", &["x"], "a", &[]).node("Relu", &["a"], "a", &[]).refused(&["`a` twice"]);
    small().node("Relu", &["x"], "w", &[]).refused(&["`w` twice"]);
    small().node("Relu", &["w"], "x", &[]).refused(&["`x` twice"]);
    small().ramp("w", &[1]).node("Relu", &["x"], "a", &[]).refused(&["`w` twice"]);
    Net::new(&[1, 3, 8]).node("Relu", &["x"], "a", &[]).refused(&["input `x`", "4 axes", "3"]);
    Net::new(&[0, 0, 8, 8]).node("Relu", &["x"], "a", &[]).refused(&["channels"]);
    Net::new(&[0, 3, i64::MAX, 8])
        .node("Relu", &["x"], "a", &[])
        .refused(&["input `x`", "at most"]);
    let mut ints_in = small().node("Relu", &["x"], "a", &[]);
    ints_in.graph.input[0] = value("x", 7, &[0, 3, 8, 8]);
    ints_in.refused(&["input `x`", "floats or bytes"]);
    refused(&[], None, &["graph"]);
    refused(b"<!DOCTYPE html><html>", None, &["another kind"]);
    small().refused(&["output"]);
    // A chain as deep as a file can say is no deep recursion.
    let mut long = small();
    for place in 0..50_000 {
        let (from, to) =
            (if place == 0 { "x".into() } else { format!("v{}", place - 1) }, format!("v{place}"));
        long = long.node("Relu", &[&from], &to, &[]);
    }
    assert_eq!(long.read().layers.len(), 50_000);
}

#[test]
fn sizes_that_no_file_has_take_no_memory() {
    let with = |change: &dyn Fn(&mut TensorProto)| {
        let mut net = small();
        change(&mut net.graph.initializer[0]);
        net.node("Conv", &["x", "w"], "c", &[])
    };
    with(&|w| w.dims[0] = 3).refused(&["`c` (Conv)", "tensor `w`", "found 54"]);
    with(&|w| w.dims[0] = -2).refused(&["tensor `w`", "-2"]);
    with(&|w| w.dims = vec![i64::MAX; 4]).refused(&["tensor `w`", "sizes"]);
    with(&|w| w.dims = vec![1; 1000]).refused(&["tensor `w`", "sizes"]);
    with(&|w| w.dims[0] = 1 << 40).refused(&["tensor `w`", "found 54"]);
    with(&|w| (w.float_data, w.raw_data) = (vec![], vec![0; 215])).refused(&["215 bytes"]);
    with(&|w| (w.dims, w.float_data) = (vec![2, 3, 3, 0], vec![])).refused(&["kernel_shape"]);
    with(&|w| (w.dims, w.float_data) = (vec![0, 3, 3, 3], vec![]))
        .refused(&["`c` (Conv)", "filters"]);
    with(&|w| w.data_type = 99).refused(&["another type"]);
    let filled = |sizes: &[i64]| {
        let net = Net::new(&[0, 3, 8, 8]).ints("sizes", sizes).node(
            "ConstantOfShape",
            &["sizes"],
            "w",
            &[],
        );
        net.node("Conv", &["x", "w"], "c", &[])
    };
    assert_eq!(conv(&filled(&[4, 3, 3, 3]).read()).0.values, [0.; 108]);
    filled(&[1 << 40, 3, 3, 3]).refused(&["`c` (Conv)", "`w`", "few bytes"]);
    filled(&[1 << 62, 3, 3, 3]).refused(&["`w` (ConstantOfShape)", "sizes"]);
    filled(&[-1, 3, 3, 3]).refused(&["`w` (ConstantOfShape)", "-1"]);
    filled(&[4, 5, 3, 3]).refused(&["3 channels", "found 5"]);
    let net = filled(&[4, 3, 3, 3]).bytes();
    assert!(read_within(&net, None, None, 432).is_ok());
    assert!(read_within(&net, None, None, 431).unwrap_err().to_string().contains("few bytes"));
    // Twice as long again and again.
    let mut doubled = small().ramp("d0", &[1 << 10]);
    for i in 0..40 {
        let from = format!("d{i}");
        doubled =
            doubled.node("Concat", &[&from, &from], &format!("d{}", i + 1), &[int("axis", 0)]);
    }
    let doubled = doubled.node("Add", &["x", "d40"], "y", &[]);
    let error = read_within(&doubled.bytes(), None, None, 1 << 24).unwrap_err().to_string();
    assert!(error.contains("(Concat)") && error.contains("few bytes"), "{error}");
    // The same weights over and over.
    let mut tied = Net::new(&[0, 64, 8, 8]).ramp("w", &[64, 64, 1, 1]);
    for i in 0..100 {
        let from = if i == 0 { "x".into() } else { format!("c{}", i - 1) };
        tied = tied.node("Conv", &[&from, "w"], &format!("c{i}"), &[]);
    }
    assert!(
        read_within(&tied.bytes(), None, None, 1 << 20)
            .unwrap_err()
            .to_string()
            .contains("few bytes")
    );
    assert_eq!(tied.read().layers.len(), 100);
    // Messages of two bytes each.
    let nodes = [10, 0].repeat(300_000);
    let mut model = vec![7 << 3 | 2];
    prost::encoding::encode_varint(nodes.len() as u64, &mut model);
    refused(&[model, nodes].concat(), None, &["at most", "nodes"]);
}

#[test]
fn files_cut_short_are_refused_at_every_length() {
    let bytes = whole().bytes();
    for end in 0..bytes.len() {
        // Some end between two fields: then a part of the graph, or the opsets, are missing.
        if let Ok(chain) = read(&bytes[..end], None, None) {
            assert_eq!(chain, whole().read(), "cut to {end} of {}", bytes.len());
            assert!(end + 6 >= bytes.len(), "cut to {end} of {}", bytes.len());
        }
    }
}

#[test]
fn values_beside_the_file_are_read_inside_the_folder_only() {
    let outer = tempfile::tempdir().unwrap();
    let folder = outer.path().join("net");
    fs::create_dir_all(folder.join("inner")).unwrap();
    let bytes: Vec<u8> =
        [vec![9; 8], ramp(54).iter().flat_map(|value| value.to_le_bytes()).collect()].concat();
    for place in ["net/w.bin", "net/inner/w.bin", "w.bin"] {
        fs::write(outer.path().join(place), &bytes).unwrap();
    }
    let net = |entries: &[(&str, &str)]| {
        let mut net = small();
        let w = &mut net.graph.initializer[0];
        (w.data_location, w.float_data) = (1, vec![]);
        let entry = |&(key, value): &(&str, &str)| StringStringEntryProto {
            key: key.into(),
            value: value.into(),
        };
        w.external_data = entries.iter().map(entry).collect();
        net.node("Conv", &["x", "w"], "c", &[]).bytes()
    };
    let rest = [("offset", "8"), ("length", "216")];
    let at = |location: &str| net(&[&[("location", location)], &rest[..]].concat());
    for location in ["w.bin", "inner/w.bin", "./w.bin"] {
        let chain = read(&at(location), Some(&folder), None).unwrap();
        assert_eq!(conv(&chain).0.values, ramp(54), "{location}");
    }
    assert!(read(&net(&[("location", "w.bin"), ("offset", "8")]), Some(&folder), None).is_ok());
    let refused = |bytes: &[u8], part: &str| {
        let error = read(bytes, Some(&folder), None).unwrap_err().to_string();
        assert!(
            error.contains("tensor `w`") && error.contains(part),
            "{part:?} is not in: {error}"
        );
    };
    let absolute = folder.join("w.bin");
    for location in [
        "../w.bin",
        "inner/../../w.bin",
        "inner/../w.bin",
        absolute.to_str().unwrap(),
        "",
        "w\0.bin",
    ] {
        refused(&at(location), "beside the network's");
    }
    refused(&at("inner"), "which is none");
    refused(&at("none.bin"), "none.bin");
    refused(
        &net(&[("location", "w.bin"), ("offset", "9"), ("length", "216")]),
        "file of 224 bytes",
    );
    refused(
        &net(&[("location", "w.bin"), ("offset", "18446744073709551615")]),
        "file of 224 bytes",
    );
    refused(
        &net(&[("location", "w.bin"), ("length", "1000000000000")]),
        "found a length of 1000000000000",
    );
    refused(&net(&[("location", "w.bin"), ("offset", "-1")]), "offset");
    let error = read(&at("w.bin"), None, None).unwrap_err().to_string();
    assert!(error.contains("no folder"), "{error}");
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("../w.bin", folder.join("out.bin")).unwrap();
        refused(&at("out.bin"), "leads elsewhere");
        std::os::unix::fs::symlink("w.bin", folder.join("in.bin")).unwrap();
        assert!(read(&at("in.bin"), Some(&folder), None).is_ok());
    }
}

#[test]
fn arithmetic_of_pixels_is_preprocessing() {
    let of = |net: Net| {
        net.ramp("w", &[2, 3, 1, 1]).node("Conv", &["y", "w"], "c", &[]).read().preprocessing
    };
    let (mean, std) = ([0.485f32, 0.456, 0.406], [0.229f32, 0.224, 0.225]);
    let net = |kind: i32| {
        let mut net = Net::new(&[0, 3, 8, 8]);
        net.graph.input[0] = value("x", kind, &[0, 3, 8, 8]);
        net.floats("s", &[], &[1. / 255.]).floats("m", &[1, 3, 1, 1], &mean).floats(
            "d",
            &[3, 1, 1],
            &std,
        )
    };
    let imagenet = Preprocessing {
        scale: 1. / 255.,
        mean: mean.into(),
        std: std.into(),
        ..Default::default()
    };
    let rest = |net: Net, from: &str| {
        net.node("Sub", &[from, "m"], "b", &[]).node("Div", &["b", "d"], "y", &[])
    };
    let scaled = |net: Net, from: &str| net.node("Mul", &[from, "s"], "a", &[]);
    assert_eq!(of(rest(scaled(net(1), "x"), "a")).as_ref(), Some(&imagenet));
    let cast = net(2).node("Cast", &["x"], "f", &[int("to", 1)]);
    assert_eq!(of(rest(scaled(cast.clone(), "f"), "a")).as_ref(), Some(&imagenet));
    // Of values from 0 to 1, as they only can be.
    assert_eq!(of(rest(net(1), "x")).as_ref(), Some(&imagenet));
    // Blue first, before or behind the rest.
    let places = [int("axis", 1)];
    let turned = net(1).ints("bgr", &[2, 1, 0]).node("Gather", &["x", "bgr"], "g", &places);
    assert_eq!(
        of(rest(scaled(turned, "g"), "a")),
        Some(Preprocessing { bgr: true, ..imagenet.clone() })
    );
    let turned = rest(scaled(net(1), "x"), "a").ints("bgr", &[2, 1, 0]);
    let chain = turned.node("Gather", &["y", "bgr"], "g", &places).ramp("w", &[2, 3, 1, 1]);
    let chain = chain.node("Conv", &["g", "w"], "c", &[]).read();
    let back = |values: [f32; 3]| values.into_iter().rev().collect::<Vec<_>>();
    let (mean, std) = (back(mean), back(std));
    assert_eq!(chain.preprocessing, Some(Preprocessing { bgr: true, mean, std, ..imagenet }));
    // A factor and a sum in any order are the same as some mean and deviation.
    let other = net(1).floats("k", &[], &[-100.]).node("Add", &["x", "k"], "a", &[]).node(
        "Mul",
        &["a", "s"],
        "y",
        &[],
    );
    let Preprocessing { scale, mean, std, .. } = of(other).unwrap();
    let pixel = 30f32;
    assert!((((pixel * scale - mean[1]) / std[1]) - (pixel - 100.) / 255.).abs() < 1e-6);
    assert_eq!(of(Net::new(&[0, 3, 8, 8]).node("Identity", &["x"], "y", &[])), None);
    let zero = net(1).floats("z", &[], &[0.]);
    zero.node("Div", &["x", "z"], "y", &[]).refused(&["finite"]);
    let odd = net(1).ints("rgb", &[0, 2, 1]).node("Gather", &["x", "rgb"], "y", &places);
    odd.refused(&["`y` (Gather)", "turned around"]);
}

fn written(chain: &Chain, options: &Options) -> Vec<u8> {
    let mut bytes = Vec::new();
    write(chain, options, &mut bytes).unwrap();
    bytes
}

#[test]
fn what_is_written_is_read_back() {
    let chain = Chain { notes: vec![], ..whole().read() };
    // Its last windows lie beyond the input: 8 values, windows of 3 by steps of 2.
    assert!(matches!(chain.layers[3].op, Op::MaxPool { pad: [0, 0, 0, 0], ceil: true, .. }));
    let expected = {
        let mut expected = chain.clone();
        let Op::MaxPool { pad, ceil, .. } = &mut expected.layers[3].op else { panic!() };
        (*pad, *ceil) = ([0, 1, 0, 1], false);
        for layer in &mut expected.layers {
            if let Op::Conv { weight, .. } | Op::Fc { weight, .. } = &mut layer.op {
                weight.name = format!("{}.weight", layer.name);
            }
        }
        expected
    };
    let props = [("zfnet".to_string(), "{\"a\": 1}".to_string()), ("b".into(), String::new())];
    let options = Options { metadata: &props, ..Options::default() };
    let bytes = written(&chain, &options);
    assert_eq!(read(&bytes, None, None).unwrap(), expected);
    assert_eq!(metadata(&bytes).unwrap(), props);
    assert_eq!(written(&expected, &options), bytes, "the same again");
    let model = ModelProto::decode(&*bytes).unwrap();
    assert_eq!((model.ir_version, model.opset_import[0].version), (8, 17));
    let graph = model.graph.unwrap();
    assert_eq!(graph.input[0], value_named("input", 1, "N", &[3, 8, 8]));
    assert_eq!(graph.output[0], value_named("m", 1, "N", &[2]));
}

fn value_named(name: &str, kind: i32, open: &str, sizes: &[i64]) -> ValueInfoProto {
    let mut value = value(name, kind, &[&[0], sizes].concat());
    let shape =
        value.r#type.as_mut().unwrap().tensor_type.as_mut().unwrap().shape.as_mut().unwrap();
    shape.dim[0].value = Some(Dimension::DimParam(open.into()));
    value
}

/// A fully connected layer makes channels of one place each, for whatever stands behind it.
#[test]
fn layers_of_images_behind_fully_connected_ones() {
    let tensor = |name: &str, shape: &[usize]| Tensor {
        name: format!("{name}.weight"),
        shape: shape.to_vec(),
        values: ramp(shape.iter().product()),
    };
    let fc = |name: &str, shape: [usize; 2]| Layer {
        name: name.into(),
        op: Op::Fc { weight: tensor(name, &shape), bias: vec![0.; shape[0]] },
    };
    let layer = |name: &str, op| Layer { name: name.into(), op };
    let pool = |pad| Op::MaxPool { kernel: [2, 2], stride: [2, 2], pad, ceil: false };
    let conv = Op::Conv {
        weight: tensor("c", &[5, 4, 3, 3]),
        bias: vec![0.; 5],
        stride: [1, 1],
        pad: [1; 4],
        groups: 1,
        ceil: false,
    };
    let lrn = Op::Lrn { size: 3, alpha: 0.5, beta: 0.75, k: 2. };
    let mut chain = Chain {
        name: "net".into(),
        input: Input { channels: 3, size: Some([4, 4]) },
        layers: vec![
            fc("f1", [4, 48]),
            layer("r", Op::Relu),
            layer("c", conv.clone()),
            layer("p", pool([1, 0, 0, 1])),
            layer("n", lrn.clone()),
            fc("f2", [6, 5]),
            layer("n2", lrn),
        ],
        ..Chain::default()
    };
    let bytes = written(&chain, &Options::default());
    assert_eq!(read(&bytes, None, None).unwrap(), chain);
    let output = ModelProto::decode(&*bytes).unwrap().graph.unwrap().output.remove(0);
    assert_eq!(output, value_named("n2", 1, "N", &[6, 1, 1]));
    // Windows are those of one place, not of the size before.
    chain.layers.truncate(1);
    chain.layers.push(layer("p", pool([0; 4])));
    let error = write(&chain, &Options::default(), &mut Vec::new()).unwrap_err().to_string();
    assert!(error.contains("layer `p`") && error.contains("found one of 1"), "{error}");
    // Which channels the input has, a convolution behind them does not say.
    let net = Net::new(&[0, 0, 4, 4]).node("Flatten", &["x"], "f", &[]).ramp("m", &[48, 2]);
    let net = net.node("MatMul", &["f", "m"], "g", &[]).ints("to", &[0, 2, 1, 1]);
    let net = net.node("Reshape", &["g", "to"], "r", &[]).ramp("k", &[1, 2, 1, 1]);
    net.node("Conv", &["r", "k"], "y", &[]).refused(&["a number of channels"]);
    // Images that were only flattened do not become others.
    let net = Net::new(&[0, 3, 4, 4]).node("Relu", &["x"], "r", &[]);
    let net = net.node("Flatten", &["r"], "f", &[]).ints("to", &[0, 48, 1, 1]);
    net.node("Reshape", &["f", "to"], "y", &[]).refused(&["`y` (Reshape)", "flattens"]);
}

#[test]
fn windows_beyond_the_input_become_pads() {
    let conv = |ceil| Op::Conv {
        weight: Tensor { name: "c.weight".into(), shape: vec![1, 1, 3, 3], values: ramp(9) },
        bias: vec![0.],
        stride: [2, 3],
        pad: [1, 0, 0, 0],
        groups: 1,
        ceil,
    };
    let chain = |ceil, size| Chain {
        name: "net".into(),
        input: Input { channels: 1, size },
        layers: vec![Layer { name: "c".into(), op: conv(ceil) }],
        ..Default::default()
    };
    // Rows: 1 + 7 values, 3 windows by steps of 2 leave one; columns: 8 values, 2 windows by steps of 3 leave 2.
    let bytes = written(&chain(true, Some([7, 8])), &Options::default());
    let Op::Conv { pad, ceil, .. } = read(&bytes, None, None).unwrap().layers[0].op else {
        panic!()
    };
    assert_eq!((pad, ceil), ([1, 1, 0, 1], false));
    let bytes = written(&chain(false, Some([7, 8])), &Options::default());
    let Op::Conv { pad, .. } = read(&bytes, None, None).unwrap().layers[0].op else { panic!() };
    assert_eq!(pad, [1, 0, 0, 0]);
    let open = read(&written(&chain(false, None), &Options::default()), None, None).unwrap();
    assert_eq!(open.input, Input { channels: 1, size: None });
    let error =
        write(&chain(true, None), &Options::default(), &mut Vec::new()).unwrap_err().to_string();
    assert!(error.contains("layer `c`") && error.contains("known size"), "{error}");
    let error =
        write(&chain(false, Some([1, 8])), &Options::default(), &mut Vec::new()).unwrap_err();
    assert!(error.to_string().contains("window of 3"), "{error}");
}

#[test]
fn preprocessing_is_written_into_the_graph() {
    let pixels = Options { pixels: Pixels::Bytes, ..Options::default() };
    let mut chain = small().node("Conv", &["x", "w"], "c", &[]).read();
    let imagenet = Preprocessing {
        scale: 1. / 255.,
        mean: vec![0.485, 0.456, 0.406],
        std: vec![0.229, 0.224, 0.225],
        bgr: true,
        ..Default::default()
    };
    let caffe = Preprocessing {
        scale: 1.,
        mean: ramp(192),
        mean_size: Some([8, 8]),
        std: vec![1.; 3],
        bgr: true,
        ..Default::default()
    };
    for preprocessing in [imagenet, caffe.clone()] {
        chain.preprocessing = Some(preprocessing);
        let bytes = written(&chain, &pixels);
        assert_eq!(read(&bytes, None, None).unwrap().preprocessing, chain.preprocessing);
        let bytes = written(&chain, &Options::default());
        assert_eq!(read(&bytes, None, None).unwrap().preprocessing, None);
    }
    // Of a larger mean image the middle.
    let of_place = |row: usize, column: usize| (100 * row + column + 1) as f32;
    let large: Vec<f32> = (0..3).flat_map(|_| (0..120).map(|i| of_place(i / 10, i % 10))).collect();
    chain.preprocessing = Some(Preprocessing { mean: large, mean_size: Some([12, 10]), ..caffe });
    let bytes = written(&chain, &pixels);
    let Preprocessing { mean, mean_size, .. } =
        read(&bytes, None, None).unwrap().preprocessing.unwrap();
    let middle: Vec<f32> = (0..192).map(|i| of_place(i % 64 / 8 + 2, i % 8 + 1)).collect();
    assert_eq!((mean, mean_size), (middle, Some([8, 8])));
    chain.preprocessing = None;
    let error = write(&chain, &pixels, &mut Vec::new()).unwrap_err().to_string();
    assert!(error.contains("preprocessing"), "{error}");
}

/// A full disk, say: the writer's own error comes through.
#[test]
fn errors_of_the_writer_come_through() {
    struct Full;
    impl std::io::Write for Full {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::Error::other("the disk is full"))
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let chain = small().node("Conv", &["x", "w"], "c", &[]).read();
    let error = write(&chain, &Options::default(), &mut Full).unwrap_err();
    assert_eq!(error.to_string(), "the disk is full");
}

#[test]
#[ignore = "needs the graphs that come with PyPI's onnx: LIGHT=SITE-PACKAGES/onnx/backend/test/data/light"]
fn the_model_zoo_is_read() {
    let folder = PathBuf::from(std::env::var("LIGHT").expect("the folder, in LIGHT"));
    let file = |name: &str| fs::read(folder.join(format!("light_{name}.onnx"))).unwrap();
    let whole = [
        (
            "zfnet512",
            "conv[96,3,7,7]/2 relu lrn5 pool3/2 conv[256,96,5,5]/2 relu lrn5 pool3/2 conv[512,256,3,3]/1+1111 relu \
             conv[512,512,3,3]/1+1111 relu conv[512,512,3,3]/1+1111 relu pool2/2 fc[4096,18432] relu fc[1024,4096] relu \
             fc[1000,1024]",
        ),
        (
            "bvlc_alexnet",
            "conv[96,3,11,11]/4 relu lrn5 pool3/2 conv[256,48,5,5]/1+2222g2 relu lrn5 pool3/2 conv[384,256,3,3]/1+1111 \
             relu conv[384,192,3,3]/1+1111g2 relu conv[256,192,3,3]/1+1111g2 relu pool3/2+0101 fc[4096,9216] relu \
             dropout0.5 fc[4096,4096] relu dropout0.5 fc[1000,4096]",
        ),
    ];
    for (name, expected) in whole {
        let chain = read(&file(name), None, None).unwrap();
        assert_eq!(words(&chain), expected, "{name}");
        assert_eq!(chain.input, Input { channels: 3, size: Some([224, 224]) });
    }
    let vgg = read(&file("vgg19"), None, None).unwrap();
    let parameters: usize = (vgg.layers.iter())
        .map(|layer| match &layer.op {
            Op::Conv { weight, bias, .. } | Op::Fc { weight, bias } => {
                weight.values.len() + bias.len()
            }
            _ => 0,
        })
        .sum();
    assert_eq!((vgg.layers.len(), parameters), (16 + 18 + 5 + 3 + 2, 143_667_240));
    let first = |net: &str, until: &str, last: &str, expected: &str| {
        refused(&file(net), None, &["branch", last]);
        let chain = read(&file(net), None, Some(until)).unwrap();
        assert_eq!(words(&chain), expected, "{net}");
    };
    first("squeezenet", "n4", "up to `n4`", "conv[64,3,3,3]/2 relu pool3/2 conv[16,64,1,1]/1 relu");
    first("resnet50", "n3", "up to `n3`", "conv[64,3,7,7]/2+3333 relu pool3/2+1111");
    first(
        "inception_v1",
        "n9",
        "up to `n9`",
        "conv[64,3,7,7]/2+3333 relu pool3/2 lrn5 conv[64,64,1,1]/1 relu conv[192,64,3,3]/1+1111 relu lrn5 pool3/2",
    );
}
