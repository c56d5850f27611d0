//! What makes the backward pass the transpose of the forward pass: exact, on small integers.
//!
//! A convolution is a matrix C; its backward pass, which is the deconvnet's filter step, is C's
//! transpose, and also a correlation of the zero-padded signal with the filters turned by 180
//! degrees. For any geometry `<conv(x, w), y> = <x, conv^T(y, w)> = <w, wgrad(x, y)>`, and with
//! fixed switches unpooling is the transpose of choosing.

use crate::common::{
    Conv, Random, assert_exact, bytes, dot, network, pooling, stored, tensor, twin, unwritten,
    values, weights, widen,
};
use zfnet::backend::{Backend, NOT_POSITIVE, Param, Precision};
use zfnet::model::{BackwardOptions, BackwardTo, Params, Purpose, Rule, Workspace};
use zfnet::shape::{ConvDims, PoolDims, Rounding, Shape};

on_every_backend!(
    convolution_is_a_matrix,
    transposed_convolution_is_a_correlation_with_turned_filters,
    convolutions_have_adjoints,
    enlarging_is_the_transpose,
    unpooling_is_the_transpose_of_choosing,
    unpooling_transposes_max_pooling,
);

fn forward<B: Backend>(backend: &B, dims: &ConvDims, x: &[f32], weight: &[f32]) -> Vec<f32> {
    let (x, weight) = (tensor(backend, dims.input(), x), weights(backend, dims.filter(), weight));
    let mut y = unwritten(backend, dims.output());
    let mut scratch = backend.scratch(&[*dims]).unwrap();
    backend.conv_forward(&mut y, &x, &weight, None, false, dims, &mut scratch).unwrap();
    values(backend, &y)
}

fn backward_data<B: Backend>(backend: &B, dims: &ConvDims, dy: &[f32], weight: &[f32]) -> Vec<f32> {
    let (dy, weight) =
        (tensor(backend, dims.output(), dy), weights(backend, dims.filter(), weight));
    let mut dx = unwritten(backend, dims.input());
    let mut scratch = backend.scratch(&[*dims]).unwrap();
    backend.conv_backward_data(&mut dx, &dy, &weight, dims, &mut scratch).unwrap();
    values(backend, &dx)
}

/// Gradients of the weights and of the biases.
fn backward_filter<B: Backend>(
    backend: &B,
    dims: &ConvDims,
    dy: &[f32],
    x: &[f32],
) -> [Vec<f32>; 2] {
    let (dy, x) = (tensor(backend, dims.output(), dy), tensor(backend, dims.input(), x));
    let mut gradient = Param::zeros(backend, dims).unwrap();
    let mut scratch = backend.scratch(&[*dims]).unwrap();
    backend.conv_backward_filter(&mut gradient, &dy, &x, false, dims, &mut scratch).unwrap();
    [&gradient.weight, &gradient.bias].map(|tensor| values(backend, tensor))
}

/// A layer that enlarges is the naive transpose forward and the naive convolution backward, and its
/// weights' gradient is that of the convolution with the roles exchanged; no bias has one.
fn enlarging_is_the_transpose<B: Backend>(backend: &B) {
    let mut random = Random(9);
    for layer in [
        "channels = 3, kernel = 4, stride = 2, pad = 1",
        "channels = 6, kernel = 3, stride = 2, pad = [2, 0, 1, 0], groups = 3",
        "channels = 5, kernel = 3, pad = 1",
        "channels = 4, kernel = 2, stride = 3",
    ] {
        let network = network(&format!(
            r#"
            name = "enlarges"
            classes = 0
            input = {{ size = 5, resize = 5 }}
            layers = [{{ type = "conv_transpose", name = "up", {layer} }}]"#
        ));
        let dims = &network.layers[0].convolution().unwrap().with_n(2);
        assert_eq!(dims.output(), network.input().with_n(2), "{layer}");
        let [w, x, y] = [dims.filter(), dims.output(), dims.input()]
            .map(|shape| random.integers(shape.len(), 3));
        let mut params = Params::weights(backend, &network).unwrap();
        backend.upload(&mut params.layers[0].as_mut().unwrap().weight, &w).unwrap();
        let [w, wide_x, wide_y] = [&w, &x, &y].map(|v| widen(v));
        let seeded = |purpose| {
            let mut workspace = Workspace::new(backend, &network, purpose, 2).unwrap();
            backend.upload(&mut workspace.input, &x).unwrap();
            workspace.forward(backend, &params).unwrap();
            let up = stored(backend, &twin::conv_data(dims, &wide_x, &w));
            assert_exact(&values(backend, workspace.output(0)), &up, layer);
            workspace.signal().reshape(dims.input());
            backend.upload(workspace.signal(), &y).unwrap();
            workspace
        };
        let options = |gradients, to| BackwardOptions {
            from: 0,
            rule: Rule::GRADIENT,
            images: None,
            gradients,
            accumulate: false,
            to,
        };
        let mut looking = seeded(Purpose::Project { seeds: 2 });
        looking.backward(backend, &params, options(None, BackwardTo::Pixels)).unwrap();
        let down = stored(backend, &twin::conv(dims, &wide_y, &w, None));
        assert_exact(&values(backend, looking.signal()), &down, layer);

        let mut gradients = Params::zeros(backend, &network).unwrap();
        let mut training = seeded(Purpose::Train);
        training
            .backward(backend, &params, options(Some(&mut gradients), BackwardTo::FirstWeights))
            .unwrap();
        let found = gradients.layers[0].as_ref().unwrap();
        let [dw, _] = twin::conv_filter(dims, &wide_x, &wide_y);
        assert_exact(&values(backend, &found.weight), &dw, layer);
        assert!(values(backend, &found.bias).iter().all(|v| *v == 0.0), "{layer}");
    }
}

/// The 3x3 convolution of a 5x5 image written out: row (p, q) of C holds the filter, its corner at
/// (stride p - pad, stride q - pad), and zeros.
fn convolution_is_a_matrix<B: Backend>(backend: &B) {
    let mut random = Random(1);
    for (stride, pad, rounding, size) in [
        (1, 0, Rounding::Floor, 3),
        (1, 1, Rounding::Floor, 5),
        (2, 0, Rounding::Floor, 2),
        (2, 1, Rounding::Floor, 3),
        (3, 0, Rounding::Ceil, 2), // reads a row and a column beyond the edge
    ] {
        let conv = Conv {
            input: [5, 5, 1],
            filters: [1, 3, 3],
            stride: [stride; 2],
            pad: [pad; 4],
            rounding,
            ..Conv::SIMPLE
        };
        let dims = &conv.dims().unwrap();
        assert_eq!((dims.p, dims.q), (size, size));
        let size = size as usize;
        let weight = random.integers(9, 9);
        let mut c = vec![[0.0f32; 25]; size * size];
        for (p, q) in twin::places(1, size, size).map(|(_, p, q)| (p, q)) {
            for (r, s) in twin::places(1, 3, 3).map(|(_, r, s)| (r, s)) {
                let (row, column) = (stride * p + r, stride * q + s);
                if (pad..pad + 5).contains(&row) && (pad..pad + 5).contains(&column) {
                    c[p * size + q][(row - pad) * 5 + column - pad] = weight[r * 3 + s];
                }
            }
        }
        let (x, y) = (random.integers(25, 9), random.integers(size * size, 9));
        let c_x: Vec<f64> = c.iter().map(|row| dot(row, &x)).collect();
        assert_exact(&forward(backend, dims, &x, &weight), &stored(backend, &c_x), "C x");
        let c_transposed_y: Vec<f64> =
            (0..25).map(|i| dot(&c.iter().map(|row| row[i]).collect::<Vec<f32>>(), &y)).collect();
        assert_exact(
            &backward_data(backend, dims, &y, &weight),
            &stored(backend, &c_transposed_y),
            "C^T y",
        );
    }
}

/// Section 2.1 of the paper: "transposed versions of the same filters" means each filter "flipped
/// vertically and horizontally".
fn transposed_convolution_is_a_correlation_with_turned_filters<B: Backend>(backend: &B) {
    let mut random = Random(2);
    for (k, c, pad) in [(1, 1, 0), (1, 1, 1), (3, 2, 0), (4, 3, 2)] {
        let conv =
            Conv { n: 2, input: [5, 5, c], filters: [k, 3, 3], pad: [pad; 4], ..Conv::SIMPLE };
        let dims = &conv.dims().unwrap();
        let weight = random.integers(dims.filter().len(), 5);
        let y = random.integers(dims.output().len(), 5);
        // Filter c of the way down holds channel c of every filter, turned by 180 degrees.
        let mut turned = vec![0.0; weight.len()];
        for (filter, tap, channel) in twin::places(k, 9, c) {
            turned[(channel * 9 + 8 - tap) * k + filter] = weight[(filter * 9 + tap) * c + channel];
        }
        let size = dims.p as usize;
        let down = Conv {
            n: 2,
            input: [size, size, k],
            filters: [c, 3, 3],
            pad: [2 - pad; 4],
            ..Conv::SIMPLE
        };
        let correlated = forward(backend, &down.dims().unwrap(), &y, &turned);
        assert_eq!(backward_data(backend, dims, &y, &weight), correlated, "pad {pad}");
    }
}

/// Geometries nobody thinks of, drawn at random; those in which no window fits are drawn again.
fn random_conv(random: &mut Random) -> (Conv, ConvDims) {
    loop {
        let groups = 1 + random.below(3);
        let [r, s] = [(); 2].map(|()| 1 + random.below(6));
        let conv = Conv {
            n: 1 + random.below(4),
            input: [1 + random.below(12), 1 + random.below(12), groups * (1 + random.below(5))],
            filters: [groups * (1 + random.below(6)), r, s],
            stride: [(); 2].map(|()| 1 + random.below(4)),
            // Below the kernel, as networks demand it.
            pad: [random.below(r), random.below(r), random.below(s), random.below(s)],
            rounding: if random.below(2) == 0 { Rounding::Floor } else { Rounding::Ceil },
            groups,
        };
        if let Some(dims) = conv.dims() {
            return (conv, dims);
        }
    }
}

/// Where results are kept in bf16, they are integers of at most 256: sums of at most
/// 6 * 6 * 6 products.
fn convolutions_have_adjoints<B: Backend>(backend: &B) {
    let limit = if backend.precision() == Precision::Bf16 { 1 } else { 4 };
    let mut random = Random(3);
    let mut beyond_the_edge = 0;
    for _ in 0..1000 {
        let (conv, dims) = random_conv(&mut random);
        let reach = (dims.p - 1) * dims.stride[0] + dims.r;
        let padded = conv.input[0] + conv.pad[0] + conv.pad[1];
        beyond_the_edge += usize::from(reach as usize > padded);
        let x = random.integers(dims.input().len(), limit);
        let weight = random.integers(dims.filter().len(), limit);
        let y = random.integers(dims.output().len(), limit);
        let over_outputs = dot(&forward(backend, &dims, &x, &weight), &y);
        let over_inputs = dot(&x, &backward_data(backend, &dims, &y, &weight));
        let [dw, db] = backward_filter(backend, &dims, &y, &x);
        assert_eq!(over_outputs, over_inputs, "<conv x, y> = <x, conv^T y> of {conv:?}");
        assert_eq!(over_outputs, dot(&weight, &dw), "<conv x, y> = <w, wgrad> of {conv:?}");
        // A bias is a weight whose input is 1 everywhere.
        let sum: f64 = widen(&y).iter().sum();
        assert_eq!(dot(&vec![1.0; db.len()], &db), sum, "biases of {conv:?}");
    }
    assert!(beyond_the_edge > 50, "only {beyond_the_edge} geometries read beyond the edge");
}

fn random_pool(random: &mut Random) -> PoolDims {
    loop {
        let [r, s] = [(); 2].map(|()| 1 + random.below(5));
        let dims = pooling(
            1 + random.below(3),
            [1 + random.below(11), 1 + random.below(11), 1 + random.below(5)],
            [r, s],
            [(); 2].map(|()| 1 + random.below(4)),
            [random.below(r), random.below(r), random.below(s), random.below(s)],
            if random.below(2) == 0 { Rounding::Floor } else { Rounding::Ceil },
        );
        if let Some(dims) = dims {
            return PoolDims { any_sign: random.below(2) as u32, ..dims };
        }
    }
}

fn unpool<B: Backend>(
    backend: &B,
    dims: &PoolDims,
    dy: &[f32],
    switches: &[u8],
    forward_mask: bool,
) -> Vec<f32> {
    let (dy, switches) = (tensor(backend, dims.output(), dy), bytes(backend, switches));
    let mut dx = unwritten(backend, dims.input());
    backend.maxpool_backward(&mut dx, &dy, &switches, None, forward_mask, dims).unwrap();
    values(backend, &dx)
}

/// The place in the input that output `output`'s switch points at.
fn place(dims: &PoolDims, output: usize, switch: u8) -> usize {
    let Shape { h: p, w: q, c, .. } = dims.output();
    let (image, y, x) = (output / (p * q * c), output / (q * c) % p, output / c % q);
    let [rows, columns] = dims.window.map(|v| v as usize);
    let [[down, right], [top, left]] = [dims.stride, dims.pad].map(|v| v.map(|v| v as usize));
    let (r, s) = match switch {
        NOT_POSITIVE => (top.saturating_sub(y * down), left.saturating_sub(x * right)),
        index => (index as usize / columns, index as usize % columns),
    };
    assert!(r < rows && s < columns);
    let (row, column) = (y * down + r - top, x * right + s - left);
    ((image * dims.h as usize + row) * dims.w as usize + column) * c + output % c
}

/// `<unpool dy, x> = <dy, pool_by_switch x>` for switches of any input.
fn unpooling_is_the_transpose_of_choosing<B: Backend>(backend: &B) {
    let mut random = Random(4);
    for _ in 0..300 {
        let dims = random_pool(&mut random);
        let (_, switches) = twin::pool(&dims, &widen(&random.integers(dims.input().len(), 3)));
        let x = random.integers(dims.input().len(), 9);
        let dy = random.integers(dims.output().len(), 9);
        for forward_mask in [false, true] {
            let chosen: Vec<f32> = switches
                .iter()
                .enumerate()
                .map(|(output, &switch)| match switch {
                    NOT_POSITIVE if forward_mask => 0.0,
                    _ => x[place(&dims, output, switch)],
                })
                .collect();
            let unpooled = unpool(backend, &dims, &dy, &switches, forward_mask);
            assert_eq!(dot(&unpooled, &x), dot(&dy, &chosen), "{dims:?}, mask {forward_mask}");
        }
    }
}

/// With the switches of `x` itself, rectified unless they keep places of any sign: `<unpool dy, x> = <dy, maxpool x>`.
fn unpooling_transposes_max_pooling<B: Backend>(backend: &B) {
    let mut random = Random(5);
    for _ in 0..100 {
        let dims = random_pool(&mut random);
        let rectify = |x: &f32| if dims.any_sign == 1 { *x } else { x.max(0.0) };
        let x: Vec<f32> = random.integers(dims.input().len(), 9).iter().map(rectify).collect();
        let dy = random.integers(dims.output().len(), 9);
        let len = dims.output().len();
        let (mut y, mut switches) =
            (unwritten(backend, dims.output()), bytes(backend, &vec![0; len]));
        backend
            .maxpool_forward(&mut y, &mut switches, &tensor(backend, dims.input(), &x), &dims)
            .unwrap();
        let mut host = vec![0; len];
        backend.download_bytes(&mut host, &switches).unwrap();
        let over_outputs = dot(&dy, &values(backend, &y));
        for forward_mask in [false, true] {
            let unpooled = unpool(backend, &dims, &dy, &host, forward_mask);
            assert_eq!(dot(&unpooled, &x), over_outputs, "{dims:?}, mask {forward_mask}");
        }
    }
}
