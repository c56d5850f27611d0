//! Caffe's files: what is read of them, and what is refused with which words.

#[path = "common/caffe_nets.rs"]
mod caffe_nets;
#[path = "common/naive.rs"]
mod naive;

use std::fs;
use std::io::{Write, stderr};
use std::path::{Path, PathBuf};

use caffe_nets::*;
use naive::{Maps, forward};
use prost::Message;
use zfnet_core::Error;
use zfnet_formats::caffe::{self, proto::*};
use zfnet_formats::{Chain, Input, Op, Preprocessing, Resize};

fn read(layers: Vec<LayerParameter>) -> Chain {
    caffe::read(&bytes(layers), None, None).unwrap()
}

fn refused(result: zfnet_core::Result<Chain>, words: &[&str]) {
    let error = result.expect_err(words[0]).to_string();
    for words in words {
        assert!(error.contains(words), "expected {words:?} in {error:?}");
    }
}

fn names(chain: &Chain) -> Vec<&str> {
    chain.layers.iter().map(|layer| &*layer.name).collect()
}

#[test]
fn every_kind_of_layer_is_read() {
    let chain = read(every_kind());
    assert_eq!(chain.input, Input { channels: 3, size: Some([17, 15]) });
    assert_eq!((&*chain.name, &chain.preprocessing), ("net", &None));
    assert_eq!(
        names(&chain),
        ["conv1", "relu1", "norm1", "pool1", "conv2", "pool2", "fc1", "drop1", "fc2"]
    );
    assert_eq!(chain.notes, ["left out at the end: prob (Softmax)"]);
    let ops: Vec<_> = chain.layers.iter().map(|layer| &layer.op).collect();
    match ops[0] {
        Op::Conv { weight, bias, stride: [1, 1], pad: [1, 1, 1, 1], groups: 1, ceil: false } => {
            assert_eq!((&*weight.name, &weight.shape), ("conv1", &vec![4, 3, 3, 3]));
            assert_eq!((&weight.values, bias), (&numbers(108), &numbers(4)));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(ops[1], &Op::Relu);
    assert_eq!(ops[2], &Op::Lrn { size: 5, alpha: 1., beta: 0.75, k: 1. });
    let pool = Op::MaxPool { kernel: [2, 2], stride: [2, 2], pad: [0; 4], ceil: true };
    assert_eq!(ops[3], &pool);
    match ops[4] {
        Op::Conv { weight, bias, stride: [2, 1], pad: [1, 1, 0, 0], groups: 2, ceil: false } => {
            assert_eq!((&weight.shape, bias), (&vec![6, 2, 3, 2], &vec![0.; 6]));
        }
        other => panic!("{other:?}"),
    }
    let pool = Op::MaxPool { kernel: [2, 2], stride: [2, 2], pad: [1; 4], ceil: false };
    assert_eq!(ops[5], &pool);
    assert!(matches!(ops[6], Op::Fc { weight, .. } if weight.shape == [5, 72]));
    assert_eq!(ops[7], &Op::Dropout { rate: 0.5 });
    match ops[8] {
        Op::Fc { weight, bias } => {
            let stored = numbers(10);
            assert_eq!((&weight.shape, bias), (&vec![2, 5], &numbers(2)));
            let turned = |i: usize| stored[i % 5 * 2 + i / 5];
            assert!(weight.values.iter().enumerate().all(|(i, &value)| value == turned(i)));
        }
        other => panic!("{other:?}"),
    }
    let image = Maps { sizes: [3, 17, 15], values: vec![0.5; 765] };
    assert_eq!(forward(&chain, image).sizes, [2, 1, 1]);
}

#[test]
fn layers_of_version_1_are_the_same() {
    let old = old(every_kind()).encode_to_vec();
    assert_eq!(caffe::read(&old, None, None).unwrap(), read(every_kind()));
    refused(
        caffe::read(
            &caffe_nets::old(vec![layer("t", "TanH", "data", "t")]).encode_to_vec(),
            None,
            None,
        ),
        &["layer `t` (TanH)", "`data`, which none does", "prototxt"],
    );
    let mut both = caffe_nets::old(every_kind());
    both.layer = every_kind();
    refused(caffe::read(&both.encode_to_vec(), None, None), &["12 of version 2"]);
    let oldest =
        V1LayerParameter { layer: Some(V0LayerParameter::default()), ..Default::default() };
    let oldest = NetParameter { layers: vec![oldest], ..NetParameter::default() };
    refused(
        caffe::read(&oldest.encode_to_vec(), None, None),
        &["version 0", "upgrade_net_proto_binary"],
    );
}

/// Sizes as files of 2014 have them, and values as double and half.
#[test]
fn blobs_are_read_however_they_are_stored() {
    let plain =
        vec![input(&[1, 3, 5, 5]), conv("conv1", "data", [2, 3, 3]), fc("fc1", "conv1", [2, 18])];
    let wanted = read(plain.clone());
    let mut other = plain.clone();
    for layer in &mut other {
        for blob in &mut layer.blobs {
            let sizes = blob.shape.take().unwrap().dim;
            let size = |i: usize| (i + sizes.len()).checked_sub(4).map(|i| sizes[i]).or(Some(1));
            (blob.num, blob.channels, blob.height, blob.width) =
                (size(0), size(1), size(2), size(3));
            blob.double_data = std::mem::take(&mut blob.data).into_iter().map(f64::from).collect();
        }
    }
    assert_eq!(read(other), wanted);
    // 1 and -2, as halves.
    let mut raw = plain.clone();
    raw[2].blobs[1].data.clear();
    (raw[2].blobs[1].raw_data_type, raw[2].blobs[1].raw_data) =
        (Some(2), Some(vec![0, 0x3c, 0, 0xc0]));
    let chain = read(raw.clone());
    assert!(matches!(&chain.layers[1].op, Op::Fc { bias, .. } if bias == &[1., -2.]));
    raw[2].blobs[1].raw_data.as_mut().unwrap().push(7);
    refused(caffe::read(&bytes(raw.clone()), None, None), &["fc1", "blob 1", "5 bytes"]);
    raw[2].blobs[1].raw_data_type = Some(3);
    refused(caffe::read(&bytes(raw.clone()), None, None), &["type 0, 1 or 2", "Some(3)"]);
    raw[2].blobs[1].data = vec![1., 2.];
    refused(caffe::read(&bytes(raw), None, None), &["values of one type"]);
}

#[test]
fn blobs_of_absurd_sizes_are_refused() {
    for sizes in [
        vec![2, 3, 3, -3],
        vec![-2, -3, 3, 3],
        vec![i64::MAX, i64::MAX, i64::MAX, 2],
        vec![1 << 32, 1 << 32, 1, 1],
        vec![2, 3, 3, 4],
        vec![0, 3, 3, 3],
        vec![54],
        vec![],
        vec![1; 40],
        vec![3, 2, 3, 3],
        vec![1, 2, 3, 3, 3],
    ] {
        let mut conv = conv("conv1", "data", [2, 3, 3]);
        conv.blobs[0].shape = Some(BlobShape { dim: sizes.clone() });
        let result = caffe::read(&bytes(vec![input(&[1, 3, 5, 5]), conv]), None, None);
        println!("{}", result.as_ref().unwrap_err());
        refused(result, &["layer `conv1` (Convolution)", "expected", "found"]);
    }
}

/// Against the layers one after the other.
#[test]
fn normalisation_is_folded_into_the_convolution() {
    let batch_norm = LayerParameter {
        blobs: vec![filled(&[2]), blob(&[2], vec![3., 5.]), blob(&[1], vec![2.])],
        batch_norm_param: Some(BatchNormParameter { eps: Some(0.25), ..Default::default() }),
        ..layer("bn1", "BatchNorm", "conv1", "conv1")
    };
    let scale = LayerParameter {
        blobs: vec![blob(&[2], vec![1.5, -2.]), blob(&[2], vec![0.125, 7.])],
        scale_param: Some(ScaleParameter { bias_term: Some(true), ..Default::default() }),
        ..layer("scale1", "Scale", "conv1", "scale1")
    };
    let bias = LayerParameter {
        blobs: vec![blob(&[2], vec![-1., 2.])],
        ..layer("bias1", "Bias", "scale1", "b")
    };
    let plain = vec![input(&[1, 3, 5, 5]), conv("conv1", "data", [2, 3, 3])];
    let image = Maps { sizes: [3, 5, 5], values: numbers(75).into_iter().map(f64::from).collect() };
    let mut wanted = forward(&read(plain.clone()), image.clone());
    for (i, value) in wanted.values.iter_mut().enumerate() {
        let c = i / 9;
        let mean = f64::from(numbers(2)[c]) / 2.;
        *value = (*value - mean) / ([3., 5.][c] / 2. + 0.25f64).sqrt();
        *value = *value * [1.5, -2.][c] + [0.125, 7.][c] + [-1., 2.][c];
    }
    let with = |layers: &[&LayerParameter]| {
        let layers = layers.iter().map(|&layer| layer.clone());
        plain.iter().cloned().chain(layers).collect::<Vec<_>>()
    };
    let chain = read(with(&[&batch_norm, &scale, &bias]));
    assert_eq!(names(&chain), ["conv1"]);
    assert_eq!(chain.notes.len(), 3);
    assert_eq!(chain.notes[0], "BatchNorm `bn1` folded into `conv1`");
    let found = forward(&chain, image);
    for (found, wanted) in found.values.iter().zip(&wanted.values) {
        // The folded weights are rounded to f32, each twice.
        assert!((found - wanted).abs() < 1e-5, "{found} for {wanted}");
    }
    // Between them something else.
    let relu = layer("relu1", "ReLU", "conv1", "conv1");
    refused(
        caffe::read(&bytes(with(&[&relu, &batch_norm])), None, None),
        &["layer `bn1` (BatchNorm)", "right behind a Convolution", "it is a chain up to `relu1`"],
    );
    refused(
        caffe::read(
            &bytes(vec![input(&[1, 2, 5, 5]), layer("s", "Scale", "data", "s")]),
            None,
            None,
        ),
        &["layer `s` (Scale)", "elsewhere"],
    );
    let mut strange = batch_norm.clone();
    strange.blobs[1].data[0] = -3.;
    refused(caffe::read(&bytes(with(&[&strange])), None, None), &["bn1", "positive variances"]);
    strange = batch_norm.clone();
    strange.blobs.pop();
    refused(
        caffe::read(&bytes(with(&[&strange])), None, None),
        &["bn1", "expected 3 blobs", "found 2"],
    );
    strange = batch_norm.clone();
    strange.batch_norm_param.as_mut().unwrap().use_global_stats = Some(false);
    refused(caffe::read(&bytes(with(&[&strange])), None, None), &["bn1", "use_global_stats"]);
    strange = scale.clone();
    strange.scale_param.as_mut().unwrap().axis = Some(2);
    refused(caffe::read(&bytes(with(&[&strange])), None, None), &["scale1", "axis 1, found 2"]);
    // A factor of 0, as before the first step, stands for no statistics at all.
    let mut unused = batch_norm.clone();
    unused.blobs[2].data[0] = 0.;
    let Op::Conv { bias, .. } = &read(with(&[&unused])).layers[0].op else {
        panic!("a convolution")
    };
    assert_eq!(bias, &[numbers(2)[0] * 2., numbers(2)[1] * 2.]);
}

#[test]
fn layers_without_counterpart_are_refused_by_name() {
    type Change = fn(&mut LayerParameter);
    let cases: [(&str, Change, &[&str]); 22] = [
        (
            "conv1",
            |l| l.convolution_param.as_mut().unwrap().dilation = vec![1, 2],
            &["dilation", "2"],
        ),
        ("conv1", |l| l.convolution_param.as_mut().unwrap().axis = Some(2), &["axis 1, found 2"]),
        (
            "conv1",
            |l| l.convolution_param.as_mut().unwrap().stride = vec![0],
            &["stride of at least 1"],
        ),
        (
            "conv1",
            |l| l.convolution_param.as_mut().unwrap().stride = vec![1; 3],
            &["expected one stride"],
        ),
        (
            "conv1",
            |l| l.convolution_param.as_mut().unwrap().pad = vec![u32::MAX],
            &["pad of at most 65535"],
        ),
        (
            "conv1",
            |l| l.convolution_param.as_mut().unwrap().kernel_size = vec![4],
            &["4 filters of 4x4"],
        ),
        (
            "conv1",
            |l| l.convolution_param.as_mut().unwrap().num_output = Some(5),
            &["5 filters of 3x3"],
        ),
        ("conv1", |l| l.convolution_param.as_mut().unwrap().group = Some(3), &["3 groups"]),
        ("conv1", |l| l.convolution_param.as_mut().unwrap().group = Some(0), &["0 groups"]),
        (
            "conv1",
            |l| l.convolution_param.as_mut().unwrap().group = Some(2),
            &["for 3 channels, found for 6"],
        ),
        (
            "conv1",
            |l| l.convolution_param.as_mut().unwrap().bias_term = Some(false),
            &["1 blob", "found 2"],
        ),
        ("conv1", |l| l.blobs.clear(), &["2 blobs of weights, found none"]),
        ("conv1", |l| l.blobs[1] = filled(&[5]), &["expected 4 values, found sizes [5]"]),
        (
            "relu1",
            |l| l.relu_param = Some(ReLuParameter { negative_slope: Some(0.1) }),
            &["slope of 0, found 0.1"],
        ),
        (
            "norm1",
            |l| l.lrn_param = Some(LrnParameter { norm_region: Some(1), ..Default::default() }),
            &["ACROSS_CHANNELS, found WITHIN_CHANNEL"],
        ),
        (
            "norm1",
            |l| l.lrn_param = Some(LrnParameter { local_size: Some(4), ..Default::default() }),
            &["odd size"],
        ),
        (
            "pool1",
            |l| l.pooling_param.as_mut().unwrap().pool = Some(1),
            &["MAX pooling, found AVE"],
        ),
        ("pool1", |l| l.pooling_param.as_mut().unwrap().pad = Some(2), &["pads below"]),
        (
            "pool1",
            |l| l.pooling_param.as_mut().unwrap().stride_w = Some(2),
            &["expected one stride"],
        ),
        (
            "flat",
            |l| l.flatten_param = Some(FlattenParameter { axis: Some(2), end_axis: None }),
            &["axis 1"],
        ),
        (
            "fc1",
            |l| l.blobs[0] = filled(&[5, 71]),
            &["6 channels of 3x4, which are 72 inputs, found for 71"],
        ),
        (
            "drop1",
            |l| l.dropout_param = Some(DropoutParameter { dropout_ratio: Some(1.) }),
            &["below 1, found 1"],
        ),
    ];
    for (name, change, words) in cases {
        let mut layers = every_kind();
        let place = layers.iter().position(|layer| layer.name() == name).unwrap();
        change(&mut layers[place]);
        let before = layers[place - 1].name().to_owned();
        let result = caffe::read(&bytes(layers), None, None);
        println!("{}", result.as_ref().unwrap_err());
        let named = format!("layer `{name}` (");
        let cut = format!("; it is a chain up to `{before}`");
        let words: Vec<_> = words.iter().copied().chain([&*named]).collect();
        refused(result.map(|chain| dbg!(chain)), &words);
        if place > 1 {
            let mut layers = every_kind();
            change(&mut layers[place]);
            refused(caffe::read(&bytes(layers.clone()), None, None), &[&cut]);
            let chain = caffe::read(&bytes(layers), None, Some(&before)).unwrap();
            assert!(chain.layers.len() < 9, "cut at {before}");
        }
    }
    for kind in ["Sigmoid", "Deconvolution", "PReLU", "Power", "Python"] {
        let layers = vec![
            input(&[1, 3, 9, 9]),
            conv("conv1", "data", [2, 3, 3]),
            layer("odd", kind, "conv1", "odd"),
        ];
        refused(
            caffe::read(&bytes(layers), None, None),
            &[&format!("layer `odd` ({kind})"), "another type"],
        );
    }
    let maps_again =
        vec![input(&[1, 3, 9, 9]), fc("fc1", "data", [3, 243]), conv("conv1", "fc1", [2, 3, 3])];
    refused(caffe::read(&bytes(maps_again), None, None), &["conv1", "found flattened values"]);
    // Windows that begin beyond the edge: Caffe's smallest number.
    let settings = PoolingParameter { kernel_size: Some(1), stride: Some(3), ..Default::default() };
    let outside = vec![
        input(&[1, 3, 6, 6]),
        pool("pool1", "data", settings),
        conv("conv1", "pool1", [2, 3, 1]),
    ];
    refused(caffe::read(&bytes(outside), None, None), &["pool1", "beyond its edge"]);
    // Pads that make maps of a million pixels a side, and more.
    let mut growing = vec![input(&[1, 3, 9, 9])];
    for i in 0..3000 {
        let bottom = growing.last().unwrap().name().to_owned();
        let mut conv = conv(&format!("conv{i}"), &bottom, [3, 3, 1]);
        conv.convolution_param.as_mut().unwrap().pad = vec![65_535];
        growing.push(conv);
    }
    refused(
        caffe::read(&bytes(growing.clone()), None, None),
        &["layer `conv0`", "output of at most 65535 pixels, found 131079"],
    );
    growing[0] = data_layer("Data", None);
    growing[1].bottom = vec!["data".into()];
    growing.push(fc("fc1", "conv2999", [1, 3]));
    let chain = read(growing);
    assert!(chain.fitting.as_ref().unwrap().contains("no square"), "{:?}", chain.fitting);
    let small = vec![input(&[1, 3, 2, 2]), conv("conv1", "data", [2, 3, 3])];
    refused(caffe::read(&bytes(small), None, None), &["conv1", "3x3", "found 2x2"]);
}

#[test]
fn global_pooling_needs_a_known_size() {
    let settings = PoolingParameter { global_pooling: Some(true), ..Default::default() };
    let layers = |input| {
        let pool = pool("pool1", "conv1", settings);
        vec![input, conv("conv1", "data", [2, 3, 3]), pool, fc("fc1", "pool1", [2, 2])]
    };
    let chain = read(layers(input(&[1, 3, 9, 7])));
    let pool = Op::MaxPool { kernel: [7, 5], stride: [1, 1], pad: [0; 4], ceil: true };
    assert_eq!(chain.layers[1].op, pool);
    let result = caffe::read(&bytes(layers(data_layer("Data", None))), None, None);
    refused(result, &["pool1", "known size", "prototxt"]);
}

#[test]
fn reshapes_that_flatten_are_left_out() {
    let reshape = |dim: &[i64], axis: i32| LayerParameter {
        reshape_param: Some(ReshapeParameter {
            shape: Some(BlobShape { dim: dim.to_vec() }),
            axis: Some(axis),
            num_axes: None,
        }),
        ..layer("shape", "Reshape", "conv1", "shape")
    };
    let with = |reshape| {
        let layers = [
            input(&[7, 3, 5, 5]),
            conv("conv1", "data", [2, 3, 3]),
            reshape,
            fc("fc1", "shape", [2, 18]),
        ];
        caffe::read(&bytes(layers.into()), None, None)
    };
    for (dim, axis) in [
        (&[0, -1][..], 0),
        (&[7, -1], 0),
        (&[-1, 18], 0),
        (&[0, 18], 0),
        (&[-1], 1),
        (&[18], 1),
        (&[0; 4], 0),
    ] {
        assert_eq!(names(&with(reshape(dim, axis)).unwrap()), ["conv1", "fc1"], "{dim:?}");
    }
    for (dim, axis) in
        [(&[0, 9][..], 0), (&[8, -1], 0), (&[-1, -1], 0), (&[0, 3, 3, 2], 0), (&[-1], 0), (&[], 0)]
    {
        refused(
            with(reshape(dim, axis)),
            &["layer `shape` (Reshape)", "flattens", "up to `conv1`"],
        );
    }
}

#[test]
fn a_branch_is_refused_and_can_be_cut() {
    let mut sum = layer("sum", "Eltwise", "a", "sum");
    sum.bottom.push("b".into());
    let layers = vec![
        input(&[1, 3, 9, 9]),
        conv("conv1", "data", [2, 3, 3]),
        layer("relu1", "ReLU", "conv1", "conv1"),
        conv("a", "conv1", [2, 2, 3]),
        conv("b", "conv1", [2, 2, 3]),
        sum,
    ];
    let file = bytes(layers.clone());
    refused(
        caffe::read(&file, None, None),
        &[
            "expected a chain of layers, found a branch: `a` (Convolution), `b` (Convolution) take the same values",
            "it is a chain up to `relu1`",
        ],
    );
    refused(caffe::read(&file, None, Some("sum")), &["a branch", "up to `relu1`"]);
    assert_eq!(names(&caffe::read(&file, None, Some("relu1")).unwrap()), ["conv1", "relu1"]);
    assert_eq!(names(&caffe::read(&file, None, Some("conv1")).unwrap()), ["conv1"]);
    // The same through Split, as Caffe writes it.
    let mut split = layer("conv1_split", "Split", "conv1", "one");
    split.top.push("two".into());
    let mut with_split = layers.clone();
    with_split.insert(3, split);
    (with_split[4].bottom[0], with_split[5].bottom[0]) = ("one".into(), "two".into());
    refused(caffe::read(&bytes(with_split), None, None), &["a branch", "up to `relu1`"]);
    // At the input, and of several inputs.
    let fork =
        vec![input(&[1, 3, 9, 9]), conv("a", "data", [2, 3, 3]), conv("b", "data", [2, 3, 3])];
    refused(
        caffe::read(&bytes(fork), None, None),
        &["a branch: `a` (Convolution), `b`", "those of the input"],
    );
    let mut more = input(&[1, 3, 9, 9]);
    more.top = vec!["more".into()];
    let two = vec![
        input(&[1, 3, 9, 9]),
        more,
        conv("a", "data", [2, 3, 3]),
        conv("b", "more", [2, 3, 3]),
    ];
    refused(caffe::read(&bytes(two), None, None), &["layer `b`", "one input, found 2"]);
    let mut joined = vec![
        input(&[1, 3, 9, 9]),
        input(&[1, 3]),
        conv("a", "data", [2, 3, 3]),
        layer("proposal", "Python", "a", "rois"),
    ];
    joined[1].top = vec!["info".into()];
    joined[3].bottom.push("info".into());
    refused(
        caffe::read(&bytes(joined.clone()), None, None),
        &["layer `proposal` (Python)", "one input, found 2: a, info", "it is a chain up to `a`"],
    );
    assert_eq!(names(&caffe::read(&bytes(joined), None, Some("a")).unwrap()), ["a"]);
    let mut sum = layer("sum", "Eltwise", "conv1", "sum");
    sum.bottom.push("data".into());
    let around = vec![input(&[1, 3, 9, 9]), conv("conv1", "data", [3, 3, 1]), sum];
    refused(
        caffe::read(&bytes(around), None, None),
        &["a branch: `conv1`", "`sum` (Eltwise)", "those of the input"],
    );
    match caffe::read(&bytes(every_kind()), None, Some("conv3")).unwrap_err() {
        Error::UnknownLayer { name, known } => {
            assert_eq!((&*name, known.len(), &*known[6]), ("conv3", 10, "flat"));
        }
        other => panic!("{other}"),
    }
    // The places of maxima, which nobody takes, and which somebody does.
    let mut places =
        vec![input(&[1, 3, 9, 9]), pool("pool1", "data", halves()), conv("a", "pool1", [2, 3, 3])];
    places[1].top.push("places".into());
    assert_eq!(names(&read(places.clone())), ["pool1", "a"]);
    places.push(conv("b", "places", [2, 3, 3]));
    refused(caffe::read(&bytes(places), None, None), &["pool1", "another that `b` takes"]);
}

#[test]
fn names_that_nothing_makes_and_names_made_twice_are_refused() {
    let with = |layers: Vec<LayerParameter>| {
        let all = [vec![input(&[1, 3, 9, 9]), conv("conv1", "data", [3, 3, 3])], layers].concat();
        caffe::read(&bytes(all), None, None)
    };
    refused(
        with(vec![layer("r", "ReLU", "nowhere", "r")]),
        &["layer `r` (ReLU)", "`nowhere`, which none does"],
    );
    // Cycles: what a layer takes stands above it, or it is refused.
    refused(with(vec![layer("r", "ReLU", "r", "r")]), &["layer `r`", "`r`, which none does"]);
    refused(
        with(vec![layer("a", "ReLU", "b", "a"), layer("b", "ReLU", "a", "b")]),
        &["layer `a`", "`b`, which none"],
    );
    refused(
        with(vec![layer("again", "ReLU", "data", "conv1")]),
        &["layer `again`", "`conv1`, which one does"],
    );
    let mut twice = layer("twice", "Slice", "conv1", "x");
    twice.top.push("x".into());
    refused(with(vec![twice]), &["layer `twice`", "`x`, which one does"]);
    let mut none = layer("none", "ReLU", "conv1", "");
    none.top.clear();
    refused(with(vec![none]), &["layer `none`", "expected an output"]);
    refused(caffe::read(&bytes(vec![input(&[1, 3, 9, 9])]), None, None), &["found none"]);
    refused(caffe::read(&[], None, None), &["expected layers, found none"]);
    let name = "n".repeat(1001);
    refused(
        with(vec![layer(&name, "ReLU", "conv1", "r")]),
        &["layer 3", "1000 bytes, found one of 1001"],
    );
    let mut many = layer("many", "Concat", "conv1", "many");
    many.bottom = vec!["conv1".into(); 1001];
    refused(with(vec![many]), &["layer `many`", "found 1001"]);
}

fn data_layer(kind: &str, transform: Option<TransformationParameter>) -> LayerParameter {
    let mut layer =
        LayerParameter { transform_param: transform, ..layer("source", kind, "", "data") };
    layer.bottom.clear();
    layer.top.push("label".into());
    layer
}

fn phase(phase: Phase) -> Vec<NetStateRule> {
    vec![NetStateRule { phase: Some(phase as i32), ..NetStateRule::default() }]
}

/// A train_val network: two data layers, a dropout for training, losses and measures.
#[test]
fn layers_for_testing_are_preferred() {
    let transform = |crop| TransformationParameter { crop_size: Some(crop), ..Default::default() };
    let mut train = data_layer("Data", Some(transform(9)));
    train.include = phase(Phase::Train);
    let mut test = data_layer("Data", Some(transform(11)));
    test.include = phase(Phase::Test);
    let mut dropout = layer("drop", "Dropout", "fc1", "fc1");
    dropout.exclude = phase(Phase::Test);
    let mut staged = layer("staged", "Sigmoid", "fc1", "staged");
    staged.include = vec![NetStateRule { stage: vec!["deploy".into()], ..NetStateRule::default() }];
    let mut loss = layer("loss", "SoftmaxWithLoss", "fc1", "loss");
    loss.bottom.push("label".into());
    let mut accuracy = layer("accuracy", "Accuracy", "fc1", "accuracy");
    accuracy.bottom.push("label".into());
    accuracy.include = phase(Phase::Test);
    let body = |size: i64| {
        vec![conv("conv1", "data", [2, 3, 3]), fc("fc1", "conv1", [2, 2 * size * size])]
    };
    let ends = [dropout, staged, loss, accuracy];
    let all = [vec![train.clone(), test], body(9), ends.to_vec()].concat();
    let chain = read(all);
    assert_eq!(chain.input.size, Some([11, 11]));
    assert_eq!(names(&chain), ["conv1", "fc1", "drop"]);
    assert_eq!(chain.notes[0], "left out at the end: loss (SoftmaxWithLoss), accuracy (Accuracy)");
    assert_eq!(chain.preprocessing.unwrap().crop, Some([11, 11]));
    // What a snapshot of training holds.
    let snapshot = [vec![train], body(7), ends.to_vec()].concat();
    assert_eq!(read(snapshot).input.size, Some([9, 9]));
    // Normalisation that has a twin for testing, in place; in a snapshot it has none.
    let normalised = |rule, stored| LayerParameter {
        blobs: vec![filled(&[2]), blob(&[2], vec![3., 5.]), blob(&[1], vec![2.])],
        include: phase(rule),
        batch_norm_param: Some(BatchNormParameter { use_global_stats: Some(stored), eps: None }),
        ..layer("bn", "BatchNorm", "conv1", "conv1")
    };
    let [train, test] = [normalised(Phase::Train, false), normalised(Phase::Test, true)];
    let begin = vec![input(&[1, 3, 5, 5]), conv("conv1", "data", [2, 3, 3])];
    let snapshot = [begin.clone(), vec![train.clone()]].concat();
    let chain = read(snapshot.clone());
    assert_eq!(chain.notes, ["BatchNorm `bn` folded into `conv1`"]);
    assert_eq!(read([begin.clone(), vec![train, test.clone()]].concat()), chain);
    assert_eq!(read([begin, vec![test]].concat()), chain);
    // The weights of the twin that stays.
    let twins = "input: 'data' input_dim: [1, 3, 5, 5]
        layer { name: 'conv1' type: 'Convolution' bottom: 'data' top: 'conv1'
                convolution_param { num_output: 2 kernel_size: 3 } }
        layer { name: 'bn' type: 'BatchNorm' bottom: 'conv1' top: 'conv1' include { phase: TRAIN } }
        layer { name: 'bn' type: 'BatchNorm' bottom: 'conv1' top: 'conv1' include { phase: TEST } }";
    assert_eq!(caffe::read(&bytes(snapshot), Some(twins), None).unwrap().layers, chain.layers);
    // A head that only training has.
    let mut head = conv("head", "conv1", [2, 2, 3]);
    head.include = phase(Phase::Train);
    let with_head = vec![input(&[1, 3, 5, 5]), conv("conv1", "data", [2, 3, 3]), head];
    assert_eq!(names(&read(with_head)), ["conv1"]);
}

#[test]
fn preprocessing_is_what_the_data_layer_says() {
    let with = |channels: i64, data: LayerParameter| {
        caffe::read(&bytes(vec![data, conv("conv1", "data", [2, channels, 3])]), None, None)
    };
    let said = |channels, data| with(channels, data).unwrap().preprocessing;
    let base = |channels: usize| Preprocessing {
        scale: 1.,
        mean: vec![0.; channels],
        std: vec![1.; channels],
        bgr: channels == 3,
        ..Preprocessing::default()
    };
    // Blue, green, red; subtracted before scaling.
    let means = TransformationParameter {
        mean_value: vec![104., 117., 123.],
        scale: Some(0.5),
        crop_size: Some(32),
        mirror: Some(true),
        ..Default::default()
    };
    let wanted =
        Preprocessing { scale: 0.5, mean: vec![52., 58.5, 61.5], crop: Some([32, 32]), ..base(3) };
    assert_eq!(said(3, data_layer("Data", Some(means.clone()))), Some(wanted));
    assert_eq!(
        with(3, data_layer("Data", Some(means.clone()))).unwrap().input.size,
        Some([32, 32])
    );
    let one = TransformationParameter { mean_value: vec![30.], ..Default::default() };
    assert_eq!(
        said(3, data_layer("Data", Some(one.clone()))),
        Some(Preprocessing { mean: vec![30.; 3], ..base(3) })
    );
    assert_eq!(
        said(1, data_layer("Data", Some(one.clone()))),
        Some(Preprocessing { mean: vec![30.], ..base(1) })
    );
    refused(
        with(1, data_layer("Data", Some(means.clone()))),
        &["layer `source` (Data)", "or 1, found 3"],
    );
    let both = TransformationParameter { mean_file: Some("m".into()), ..one.clone() };
    refused(with(1, data_layer("Data", Some(both))), &["source", "found both"]);
    let endless = TransformationParameter { scale: Some(f32::INFINITY), ..Default::default() };
    refused(with(1, data_layer("Data", Some(endless))), &["source", "finite"]);
    // Nothing is said: of images that is something, of other values it is not.
    assert_eq!(said(3, data_layer("Data", None)), Some(base(3)));
    for kind in ["HDF5Data", "Python", "MemoryData"] {
        assert_eq!(said(3, data_layer(kind, None)), None, "{kind}");
    }
    assert_eq!(said(3, input(&[1, 3, 9, 9])), None);
    assert_eq!(
        said(3, data_layer("MemoryData", Some(one))),
        Some(Preprocessing { mean: vec![30.; 3], ..base(3) })
    );
    let mut images = data_layer("ImageData", None);
    images.image_data_param = Some(ImageDataParameter {
        new_height: Some(48),
        new_width: Some(64),
        ..Default::default()
    });
    let wanted = Preprocessing {
        resize: Some(Resize::Squash([48, 64])),
        interpolation: Some("bilinear".into()),
        antialias: Some(false),
        ..base(3)
    };
    assert_eq!(said(3, images), Some(wanted));
    // Files of 2014.
    let mut old_data = data_layer("Data", None);
    old_data.data_param = Some(DataParameter {
        scale: Some(0.25),
        mean_file: Some("m.binaryproto".into()),
        crop_size: Some(5),
    });
    let old = old(vec![old_data, conv("conv1", "data", [2, 3, 3])]).encode_to_vec();
    let mut chain = caffe::read(&old, None, None).unwrap();
    let wanted = Preprocessing { scale: 0.25, mean: vec![], crop: Some([5, 5]), ..base(3) };
    assert_eq!(chain.preprocessing, Some(wanted.clone()));
    assert_eq!(chain.notes, ["the mean is in another file, `m.binaryproto`"]);
    let mean = BlobProto {
        num: Some(1),
        channels: Some(3),
        height: Some(2),
        width: Some(4),
        data: numbers(24),
        ..BlobProto::default()
    };
    let read = caffe::read_mean(&mean.encode_to_vec()).unwrap();
    assert_eq!((&*read.shape, &read.values), (&[3, 2, 4][..], &numbers(24)));
    caffe::set_mean(&mut chain, &mean.encode_to_vec()).unwrap();
    let scaled = numbers(24).iter().map(|value| value * 0.25).collect();
    let wanted = Preprocessing { mean: scaled, mean_size: Some([2, 4]), ..wanted };
    assert_eq!(chain.preprocessing, Some(wanted));
    // Beside a network that says nothing, and that has other channels.
    let mut deployed = with(3, input(&[1, 3, 9, 9])).unwrap();
    caffe::set_mean(&mut deployed, &mean.encode_to_vec()).unwrap();
    let wanted = Preprocessing { mean: numbers(24), mean_size: Some([2, 4]), ..base(3) };
    assert_eq!(deployed.preprocessing, Some(wanted));
    let mut grey = with(1, input(&[1, 1, 9, 9])).unwrap();
    let error = caffe::set_mean(&mut grey, &mean.encode_to_vec()).unwrap_err().to_string();
    assert!(error.contains("expected 1 channels") && error.contains("found 3"), "{error}");
    for sizes in [&[24][..], &[2, 3, 2, 2], &[0, 2, 4], &[3, 2, 5]] {
        let mut mean = blob(sizes, numbers(24));
        if sizes[0] == 0 {
            mean.data.clear();
        }
        assert!(caffe::read_mean(&mean.encode_to_vec()).is_err(), "{sizes:?}");
    }
}

#[test]
fn the_input_size_comes_from_whatever_says_it() {
    let body = || conv("conv1", "data", [2, 3, 3]);
    let mut dummy = data_layer("DummyData", None);
    dummy.dummy_data_param = Some(DummyDataParameter {
        num: vec![1],
        channels: vec![3, 1],
        height: vec![9],
        width: vec![8],
        shape: vec![],
    });
    let mut memory = data_layer("MemoryData", None);
    memory.memory_data_param =
        Some(MemoryDataParameter { channels: Some(3), height: Some(9), width: Some(8) });
    for layer in [dummy, memory, input(&[1, 3, 9, 8])] {
        let chain = read(vec![layer, body()]);
        assert_eq!(chain.input, Input { channels: 3, size: Some([9, 8]) });
    }
    let shaped = NetParameter {
        input: vec!["data".into()],
        input_shape: vec![BlobShape { dim: vec![1, 3, 9, 8] }],
        ..net(vec![body()])
    };
    let chain = caffe::read(&shaped.encode_to_vec(), None, None).unwrap();
    assert_eq!(chain.input.size, Some([9, 8]));
    // Channels by the first convolution, or not at all.
    let chain = read(vec![
        data_layer("Data", None),
        pool("pool1", "data", halves()),
        conv("a", "pool1", [2, 1, 3]),
    ]);
    assert_eq!(chain.input, Input { channels: 1, size: None });
    assert_eq!(chain.fitting, None);
    let only_fc = vec![data_layer("Data", None), fc("fc1", "data", [2, 75])];
    refused(caffe::read(&bytes(only_fc), None, None), &["fc1", "input's sizes", "prototxt"]);
    let only_relu = vec![data_layer("Data", None), layer("relu", "ReLU", "data", "relu")];
    refused(caffe::read(&bytes(only_relu), None, None), &["tell its channels"]);
    assert_eq!(read(vec![input(&[1, 3, 5, 5]), fc("fc1", "data", [2, 75])]).input.channels, 3);
    let one_fits =
        vec![data_layer("Data", None), conv("a", "data", [2, 1, 3]), fc("fc1", "a", [2, 18])];
    let fitting = "the size of the input is not in the file; of squares, only 5x5 fits `fc1`";
    assert_eq!(read(one_fits).fitting.as_deref(), Some(fitting));
    for sizes in [
        &[1, 3, 0, 9][..],
        &[1, -3, 9, 9],
        &[1, 3, 70_000, 9],
        &[1, 3, i64::MAX, i64::MAX],
        &[1, 75],
    ] {
        let result = caffe::read(&bytes(vec![input(sizes), body()]), None, None);
        refused(
            result,
            &["expected", "of the input", "found"].map(|w| {
                if sizes.len() == 2 && w == "of the input" { "an input of four sizes" } else { w }
            }),
        );
    }
    refused(
        caffe::read(&bytes(vec![input(&[1, 1, 9, 9]), body()]), None, None),
        &["conv1", "for 1 channels, found for 3"],
    );
}

#[test]
fn a_prototxt_decides_what_the_layers_are() {
    let file = bytes(every_kind());
    let chain = caffe::read(&file, Some(EVERY_KIND), None).unwrap();
    let wanted = Chain { name: "deployed".into(), ..read(every_kind()) };
    assert_eq!(chain, wanted);
    let change = |from: &str, to: &str| {
        assert!(EVERY_KIND.contains(from), "{from}");
        caffe::read(&file, Some(&EVERY_KIND.replace(from, to)), None)
    };
    refused(
        change("round_mode: FLOOR pad: 1", "round_mode: FLOOR"),
        &["fc1", "6 channels of 2x3, which are 36 inputs, found for 72"],
    );
    let ceil = change("round_mode: FLOOR pad: 1", "pad: 1").unwrap();
    assert!(matches!(ceil.layers[5].op, Op::MaxPool { ceil: true, .. }));
    refused(
        change("name: \"conv2\"", "name: \"conv_2\""),
        &[
            "layer `conv_2`",
            "found none",
            "has weights of conv1, conv2, fc1, fc2",
            "give the prototxt",
        ],
    );
    refused(
        change("num_output: 6", "num_output: 8"),
        &["layer `conv2`", "8 filters of 3x2", "[6, 2, 3, 2]"],
    );
    refused(change("input_dim: 17", "input_dim: 23"), &["fc1", "found for 72"]);
    assert_eq!(caffe::read(&file, Some(EVERY_KIND), Some("pool1")).unwrap().layers.len(), 4);
    let cut = EVERY_KIND.rfind("layer { name: \"fc2\"").unwrap();
    let shorter = caffe::read(&file, Some(&EVERY_KIND[..cut]), None).unwrap();
    assert_eq!(
        shorter.notes,
        ["the .caffemodel has weights of layers that the prototxt does not have: fc2"]
    );
    // The weights' own file says what they were trained with.
    let transform = TransformationParameter {
        mean_value: vec![104., 117., 123.],
        crop_size: Some(224),
        ..Default::default()
    };
    let trained = [vec![data_layer("Data", Some(transform))], every_kind()[1..].to_vec()].concat();
    let chain = caffe::read(&bytes(trained), Some(EVERY_KIND), None).unwrap();
    let preprocessing = chain.preprocessing.unwrap();
    assert_eq!((preprocessing.mean, preprocessing.crop), (vec![104., 117., 123.], None));
    assert_eq!(chain.input.size, Some([17, 15]));
    assert!(
        chain.notes.last().unwrap().contains("`source` in the .caffemodel"),
        "{:?}",
        chain.notes
    );
    let twice = [every_kind(), every_kind()].concat();
    refused(
        caffe::read(&bytes(twice), Some(EVERY_KIND), None),
        &["found two `conv1` with weights"],
    );
    let old = "input: 'data' input_shape { dim: [1, 3, 5, 5] } \
               layers { name: 'conv1' type: CONVOLUTION bottom: 'data' top: 'conv1' blobs_lr: 1 \
               convolution_param { num_output: 4 kernel_size: 3 } }";
    assert_eq!(names(&caffe::read(&file, Some(old), None).unwrap()), ["conv1"]);
}

#[test]
fn text_that_is_no_prototxt_is_refused_with_its_line() {
    let file = bytes(every_kind());
    let error = |text: &str| match caffe::read(&file, Some(text), None) {
        Err(error) => error.to_string(),
        Ok(chain) => panic!("{text}: {chain:?}"),
    };
    for (text, words) in [
        ("\n\nlayer {", "line 3: expected the name of a field, found the end"),
        ("layer }", "line 1: expected {, found \"}\""),
        ("name: 5", "expected text in quotes, found \"5\""),
        ("name: \"a\nb\"", "expected text that ends in \""),
        ("name: \"a\\q\"", "unknown escapes"),
        ("name \"a\"", "expected :"),
        ("name:", "expected a value, found the end"),
        ("input_dim: 1.5", "expected a whole number, found \"1.5\""),
        ("input_dim: 99999999999999999999", "expected a whole number"),
        ("input_dim: - 1", "expected a whole number"),
        ("input_dim: [1, 2", "expected , or ]"),
        ("layer { dropout_param { dropout_ratio: x } }", "expected a number, found \"x } }\""),
        ("layer { convolution_param { pad: -1 } }", "from 0 to 4294967295, found \"-1 } }\""),
        ("layer { convolution_param { pad: 4294967296 } }", "from 0 to 4294967295"),
        ("layer { convolution_param { bias_term: 2 } }", "true or false"),
        ("layer { pooling_param { pool: BEST } }", "names that Caffe has for this field"),
        ("layers { type: \"Pooling\" }", "names that Caffe has for this field"),
        ("unknown", ": or {"),
        ("<html>", "the name of a field, found \"<html>\""),
        ("größe: 1", ": or {"),
        ("layers { layer { name: 'a' } }", "version 0"),
        ("", "expected layers, found none"),
        ("solver_mode: GPU net: \"x.prototxt\"", "expected layers, found none"),
    ] {
        let error = error(text);
        assert!(error.contains(words), "{text:?}: expected {words:?} in {error:?}");
    }
    // Escapes, and numbers as C has them.
    let text = r#"name: "\"\x41\102\\" 'b' input_dim: 0x10 input_dim: 017 # 5
        layer { dropout_param { dropout_ratio: 1.e-1f } lrn_param < k: -.5 alpha: 2 > phase: TEST }"#;
    let net = caffe::parse_prototxt(text).unwrap();
    assert_eq!((net.name(), &*net.input_dim), ("\"AB\\b", &[16, 15][..]));
    assert_eq!(net.layer[0].dropout_param.unwrap().dropout_ratio(), 0.1);
    assert_eq!(net.layer[0].lrn_param.unwrap().k(), -0.5);
}

/// A folder of the shared data, beside the crate or where ZFNET_SHARED says.
fn shared(folder: &str) -> Option<PathBuf> {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared");
    let root = std::env::var_os("ZFNET_SHARED").map_or_else(beside, PathBuf::from);
    let folder = root.join("data").join(folder);
    if !folder.is_dir() {
        // Not `eprintln!`, which nobody sees of a test that passes.
        writeln!(stderr(), "skipped: {} is not there", folder.display()).expect("stderr");
        return None;
    }
    Some(folder)
}

/// A file that Caffe has written. It says itself that pixels are scaled by 1/256.
#[test]
fn shared_lenet_gets_the_ten_digits_right() {
    let Some(folder) = shared("weights") else { return };
    let bytes = fs::read(folder.join("lenet.caffemodel")).unwrap();
    let chain = caffe::read(&bytes, None, None).unwrap();
    for layer in &chain.layers {
        let sizes = match &layer.op {
            Op::Conv { weight, .. } | Op::Fc { weight, .. } => format!("{:?}", weight.shape),
            op => format!("{op:?}"),
        };
        println!("{}: {sizes}", layer.name);
    }
    println!("{:?}, {:?}, {:#?}", chain.input, chain.preprocessing, chain.notes);
    let names: Vec<_> = chain.layers.iter().map(|layer| &*layer.name).collect();
    assert_eq!(names, ["conv1", "pool1", "conv2", "pool2", "ip1", "relu1", "ip2"]);
    assert_eq!((chain.name.as_str(), chain.input.channels, chain.input.size), ("LeNet", 1, None));
    let preprocessing = chain.preprocessing.as_ref().unwrap();
    assert_eq!(preprocessing.scale, 1. / 256.);
    assert_eq!((&*preprocessing.mean, &*preprocessing.std), (&[0.][..], &[1.][..]));
    assert!(!preprocessing.bgr);
    let mut digits: Vec<_> =
        fs::read_dir(folder.join("digits")).unwrap().map(|file| file.unwrap().path()).collect();
    digits.sort();
    assert_eq!(digits.len(), 10);
    for digit in digits {
        let file = digit.file_stem().unwrap().to_str().unwrap();
        let label: usize = file.split('_').nth(1).unwrap().parse().unwrap();
        let file = std::io::BufReader::new(fs::File::open(&digit).unwrap());
        let mut reader = png::Decoder::new(file).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        assert_eq!(info.color_type, png::ColorType::Grayscale, "{}", digit.display());
        let values = pixels.iter().map(|&pixel| f64::from(pixel) * f64::from(preprocessing.scale));
        let sizes = [1, info.height as usize, info.width as usize];
        let logits = forward(&chain, Maps { sizes, values: values.collect() }).values;
        let best = (0..10).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
        println!("{}: {best} of {logits:.1?}", digit.display());
        assert_eq!(best, label, "{}", digit.display());
    }
}
