//! Every operation of the backend against its naive f64 twin: exactly, on small integers, wherever
//! the operation only adds, multiplies and compares; else to a bound that has a reason.

use std::ops::Range;

use crate::common::{
    Conv, Random, assert_close, assert_exact, bits, bytes, exact_operands, in_full, indices,
    pooling, storage_eps, stored, tensor, twin, unwritten, unwritten_in_full, values, weights,
    widen,
};
use zfnet::backend::cpu::{CpuBackend, Products};
use zfnet::backend::philox::philox4x32;
use zfnet::backend::{
    Backend, BackendId, Crop, Dropout, InputDims, Lrn, MapMoments, NOT_POSITIVE, Param, Peak,
    Precision, ReluRule, SeedUnit, SgdConstants, StepState, Tensor, Update,
};
use zfnet::shape::{ConvDims, PoolDims, Rounding, Shape, Windows};

on_every_backend!(
    convolutions_are_exact_on_integers,
    convolutions_of_reals_are_close,
    zeros_going_back,
    updates_reach_what_convolutions_read,
    products_of_what_is_not_finite,
    relu_in_the_epilogue_passes_nan_on,
    pooled_at_once_is_pooled_after,
    pooling_and_its_switches,
    unpooling,
    pooling_by_hand,
    relu_up_and_down,
    lrn_up_and_down,
    dropout_is_philox,
    dropout_is_the_same_for_any_split,
    softmax_cross_entropy,
    softmax_of_nan_shows,
    a_bad_loss_halts_updates,
    input_is_exact,
    input_of_reals_is_close,
    peaks_sums_and_seeds,
    moments_of_maps,
    windows_are_cut_and_put_back,
    unpooling_of_windows,
    sgd_over_several_steps,
    an_update_is_one_tensor_after_the_other,
    slices_are_updated,
    slices_are_copied,
    gradients_are_added,
    halting_is_told,
    rms_is_limited,
);

// ---- convolution ----

/// Odd geometries, and those whose size makes a backend cut its work in several pieces.
fn convolutions() -> Vec<Conv> {
    use Rounding::Ceil;
    let simple = Conv::SIMPLE;
    vec![
        Conv { input: [5, 5, 1], filters: [1, 3, 3], ..simple },
        Conv { n: 2, input: [6, 9, 3], filters: [5, 3, 2], pad: [1, 0, 0, 1], ..simple },
        Conv { n: 3, input: [7, 7, 2], filters: [3, 3, 3], stride: [2, 2], pad: [1; 4], ..simple },
        Conv { n: 5, input: [9, 8, 3], filters: [7, 4, 3], stride: [4, 4], ..simple },
        Conv { n: 1, input: [8, 11, 5], filters: [2, 2, 5], stride: [1, 2], ..simple },
        Conv { n: 2, input: [10, 7, 3], filters: [4, 5, 5], pad: [4, 0, 2, 3], ..simple },
        // Windows that reach beyond the edge: at the bottom, on the right, at both.
        Conv {
            n: 2,
            input: [8, 8, 3],
            filters: [5, 3, 3],
            stride: [2, 2],
            rounding: Ceil,
            ..simple
        },
        Conv {
            n: 1,
            input: [10, 9, 2],
            filters: [3, 5, 3],
            stride: [4, 2],
            rounding: Ceil,
            ..simple
        },
        Conv {
            n: 4,
            input: [11, 10, 3],
            filters: [9, 7, 7],
            stride: [2, 4],
            pad: [1, 2, 3, 0],
            rounding: Ceil,
            ..simple
        },
        // Groups.
        Conv { n: 2, input: [6, 5, 6], filters: [8, 3, 3], pad: [1; 4], groups: 2, ..simple },
        Conv {
            n: 3,
            input: [7, 9, 9],
            filters: [6, 2, 3],
            stride: [2, 2],
            rounding: Ceil,
            groups: 3,
            ..simple
        },
        Conv { n: 2, input: [3, 4, 4], filters: [6, 1, 1], groups: 2, ..simple },
        // Groups that tiles are worth it for: of whole chunks, narrow, of 96 and of more, and of none;
        // with a stride, with a depth that is split, and of nine channels.
        Conv { n: 2, input: [9, 8, 32], filters: [48, 3, 3], pad: [1; 4], groups: 2, ..simple },
        Conv {
            n: 2,
            input: [9, 8, 192],
            filters: [160, 3, 3],
            stride: [2, 2],
            pad: [1; 4],
            groups: 2,
            ..simple
        },
        Conv { n: 1, input: [5, 6, 432], filters: [408, 3, 3], groups: 3, ..simple },
        Conv { n: 3, input: [11, 9, 27], filters: [30, 3, 2], pad: [1; 4], groups: 3, ..simple },
        Conv { n: 2, input: [7, 9, 24], filters: [44, 2, 2], stride: [2, 1], groups: 2, ..simple },
        // 1x1, few and many pixels; with a stride and with pads.
        Conv { n: 3, input: [4, 5, 7], filters: [11, 1, 1], ..simple },
        Conv { n: 5, input: [41, 40, 3], filters: [5, 1, 1], ..simple },
        Conv { n: 2, input: [7, 8, 3], filters: [4, 1, 1], stride: [2, 2], ..simple },
        Conv {
            n: 1,
            input: [3, 3, 3],
            filters: [4, 1, 1],
            pad: [0, 0, 0, 0],
            rounding: Ceil,
            ..simple
        },
        // The filter covers the input: few rows and many, narrow and wide.
        Conv { n: 1, input: [3, 2, 5], filters: [7, 3, 2], ..simple },
        Conv { n: 5, input: [6, 6, 13], filters: [300, 6, 6], ..simple },
        Conv { n: 4, input: [1, 1, 300], filters: [257, 1, 1], ..simple },
        // Few samples, rows in several parts, and runs of columns of which the last is short.
        Conv { n: 1, input: [3, 11, 131], filters: [37, 3, 11], ..simple },
        Conv { n: 3, input: [1, 1, 1500], filters: [70, 1, 1], ..simple },
        Conv { n: 7, input: [2, 5, 77], filters: [67, 2, 5], ..simple },
        // Fewer pixels than filters: of several tasks, depths and groups, and not whole tiles of either.
        Conv { n: 1, input: [7, 6, 45], filters: [75, 3, 3], pad: [1; 4], ..simple },
        Conv { n: 2, input: [5, 6, 90], filters: [140, 3, 2], groups: 2, ..simple },
        Conv { n: 1025, input: [2, 2, 515], filters: [3, 2, 2], ..simple },
        // The filter covers the input, but with pads or groups.
        Conv { n: 2, input: [3, 3, 4], filters: [5, 3, 3], pad: [1, 0, 1, 0], ..simple },
        Conv { n: 3, input: [3, 3, 4], filters: [4, 3, 3], groups: 2, ..simple },
        // Channels and filters that are multiples of eight, which tensor cores take whole: narrow,
        // of 96 and of more, with and without a stride, and fully connected.
        Conv { n: 2, input: [9, 8, 16], filters: [24, 3, 3], pad: [1; 4], ..simple },
        Conv {
            n: 2,
            input: [14, 13, 32],
            filters: [96, 5, 5],
            stride: [2, 2],
            rounding: Ceil,
            ..simple
        },
        Conv { n: 3, input: [7, 9, 96], filters: [136, 3, 3], pad: [1; 4], ..simple },
        Conv { n: 6, input: [6, 6, 64], filters: [200, 6, 6], ..simple },
        Conv { n: 12, input: [3, 3, 64], filters: [200, 3, 3], ..simple },
        // Several tiles of 256 rows and of 128 columns; the chunks of 64 channels whole, and not.
        Conv { n: 3, input: [11, 12, 128], filters: [136, 3, 3], pad: [1; 4], ..simple },
        Conv { n: 5, input: [8, 9, 120], filters: [264, 2, 3], pad: [0, 2, 1, 0], ..simple },
        // Classes of a stride, each of several tiles or of one, of other taps downwards than to the right, with pads and
        // windows beyond the edge, and of single taps; and filters that leave pixels out.
        Conv {
            n: 3,
            input: [21, 20, 96],
            filters: [72, 5, 5],
            stride: [2, 2],
            pad: [2, 1, 2, 1],
            rounding: Ceil,
            ..simple
        },
        Conv {
            n: 2,
            input: [13, 10, 40],
            filters: [96, 3, 2],
            stride: [2, 1],
            pad: [1; 4],
            ..simple
        },
        Conv {
            n: 1,
            input: [9, 11, 200],
            filters: [16, 4, 3],
            stride: [1, 2],
            pad: [3; 4],
            ..simple
        },
        Conv { n: 2, input: [8, 9, 64], filters: [64, 2, 2], stride: [2, 2], ..simple },
        Conv { n: 2, input: [9, 9, 16], filters: [24, 2, 1], stride: [2, 2], ..simple },
        Conv {
            n: 2,
            input: [11, 10, 24],
            filters: [16, 3, 4],
            stride: [3, 2],
            pad: [1; 4],
            ..simple
        },
        // Enough pixels that the filter gradient is cut along them.
        Conv { n: 5, input: [12, 13, 32], filters: [40, 3, 3], pad: [1; 4], ..simple },
        // First layers: three channels, as ZFNet, its small version and AlexNet have them.
        Conv {
            n: 2,
            input: [40, 37, 3],
            filters: [96, 7, 7],
            stride: [2, 2],
            rounding: Ceil,
            ..simple
        },
        Conv {
            n: 1,
            input: [37, 40, 3],
            filters: [48, 7, 7],
            stride: [2, 2],
            pad: [3; 4],
            ..simple
        },
        Conv {
            n: 2,
            input: [50, 47, 3],
            filters: [56, 11, 11],
            stride: [4, 4],
            rounding: Ceil,
            ..simple
        },
        // Images that first layers read in groups of four pixels, with edges and without.
        Conv { n: 2, input: [39, 60, 3], filters: [96, 7, 7], stride: [2, 2], ..simple },
        Conv {
            n: 2,
            input: [33, 44, 3],
            filters: [8, 7, 7],
            stride: [2, 2],
            pad: [3, 3, 4, 4],
            ..simple
        },
        Conv { n: 2, input: [75, 76, 3], filters: [64, 11, 11], stride: [4, 4], ..simple },
        // Several tiles of pixels, and several tiles to a partial sum.
        Conv {
            n: 3,
            input: [60, 61, 3],
            filters: [5, 7, 7],
            stride: [2, 2],
            pad: [3; 4],
            ..simple
        },
        Conv { n: 3, input: [30, 29, 90], filters: [2, 5, 5], pad: [2, 2, 2, 1], ..simple },
    ]
}

/// What all directions of one convolution give, from the same operands.
struct Directions {
    forward: Vec<f32>,
    /// The same, kept in f32 as the logits are.
    in_full: Vec<f32>,
    rectified: Vec<f32>,
    without_bias: Vec<f32>,
    data: Vec<f32>,
    filter: [Vec<f32>; 2],
    accumulated: [Vec<f32>; 2],
}

/// Operands of a convolution.
struct Operands {
    x: Vec<f32>,
    weight: Vec<f32>,
    bias: Vec<f32>,
    dy: Vec<f32>,
    /// What gradients are added to.
    start: [Vec<f32>; 2],
}

impl Operands {
    fn new(dims: &ConvDims, mut draw: impl FnMut(usize) -> Vec<f32>) -> Self {
        Operands {
            x: draw(dims.input().len()),
            weight: draw(dims.filter().len()),
            bias: draw(dims.k as usize),
            dy: draw(dims.output().len()),
            start: [draw(dims.filter().len()), draw(dims.k as usize)],
        }
    }

    fn run<B: Backend>(
        &self,
        backend: &B,
        dims: &ConvDims,
        scratch: &mut B::Scratch,
    ) -> Directions {
        let x = &tensor(backend, dims.input(), &self.x);
        let weight = &weights(backend, dims.filter(), &self.weight);
        let bias = &in_full(backend, Shape::vector(dims.k as usize), &self.bias);
        let dy = &tensor(backend, dims.output(), &self.dy);
        let mut forward = |mut y, bias, relu| {
            backend.conv_forward(&mut y, x, weight, bias, relu, dims, scratch).unwrap();
            values(backend, &y)
        };
        let y = || unwritten(backend, dims.output());
        let (with, rectified) = (forward(y(), Some(bias), false), forward(y(), Some(bias), true));
        let without_bias = forward(y(), None, false);
        let in_full = forward(unwritten_in_full(backend, dims.output()), Some(bias), false);
        let mut dx = unwritten(backend, dims.input());
        backend.conv_backward_data(&mut dx, dy, weight, dims, scratch).unwrap();
        let mut filter = |start: [Vec<f32>; 2], accumulate| {
            let mut gradient = Param::zeros(backend, dims).unwrap();
            backend.upload(&mut gradient.weight, &start[0]).unwrap();
            backend.upload(&mut gradient.bias, &start[1]).unwrap();
            backend.conv_backward_filter(&mut gradient, dy, x, accumulate, dims, scratch).unwrap();
            [&gradient.weight, &gradient.bias].map(|tensor| values(backend, tensor))
        };
        let nan = self.start.each_ref().map(|start| vec![f32::NAN; start.len()]);
        Directions {
            forward: with,
            in_full,
            rectified,
            without_bias,
            data: values(backend, &dx),
            filter: filter(nan, false),
            accumulated: filter(self.start.clone(), true),
        }
    }
}

fn convolutions_are_exact_on_integers<B: Backend>(backend: &B) {
    let all: Vec<ConvDims> = convolutions().iter().map(|conv| conv.dims().unwrap()).collect();
    assert!(all.iter().any(|dims| dims.n as usize * (dims.p * dims.q) as usize > 2 * 1024));
    // One scratch for all, as networks have it.
    let mut scratch = backend.scratch(&all).unwrap();
    let mut random = Random(1);
    for (conv, dims) in convolutions().iter().zip(&all) {
        // At most 2175 * 9 terms of at most 9 each stay far below 2^24.
        let operands = Operands::new(dims, |count| random.integers(count, 3));
        let found = operands.run(backend, dims, &mut scratch);
        let Operands { x, weight, bias, dy, start } = &operands;
        let [x, weight, bias, dy] = [x, weight, bias, dy].map(|v| widen(v));
        let y = twin::conv(dims, &x, &weight, Some(&bias));
        assert_exact(&found.in_full, &y, &format!("forward, in f32, of {conv:?}"));
        let y = stored(backend, &y);
        assert_exact(&found.forward, &y, &format!("forward of {conv:?}"));
        assert_exact(&found.rectified, &twin::relu(&y), &format!("relu of {conv:?}"));
        let y = stored(backend, &twin::conv(dims, &x, &weight, None));
        assert_exact(&found.without_bias, &y, &format!("no bias in {conv:?}"));
        let dx = stored(backend, &twin::conv_data(dims, &dy, &weight));
        assert_exact(&found.data, &dx, &format!("backward data of {conv:?}"));
        let gradient = twin::conv_filter(dims, &dy, &x);
        for (part, name) in ["weights", "biases"].iter().enumerate() {
            let what = format!("gradient of the {name} of {conv:?}");
            assert_exact(&found.filter[part], &gradient[part], &what);
            let sum: Vec<f64> =
                gradient[part].iter().zip(&start[part]).map(|(g, s)| g + f64::from(*s)).collect();
            assert_exact(&found.accumulated[part], &sum, &format!("accumulated {what}"));
        }
    }
}

fn convolutions_of_reals_are_close<B: Backend>(backend: &B) {
    let absolute = |v: &[f64]| -> Vec<f64> { v.iter().map(|v| v.abs()).collect() };
    let mut random = Random(2);
    for conv in convolutions() {
        let dims = &conv.dims().unwrap();
        // Rounded first to what is multiplied, so that what is left is the sums' own.
        let operands = Operands::new(dims, |count| exact_operands(backend, random.reals(count)));
        let mut scratch = backend.scratch(&[*dims]).unwrap();
        let found = operands.run(backend, dims, &mut scratch);
        let Operands { x, weight, bias, dy, .. } = &operands;
        let [x, weight, bias, dy] = [x, weight, bias, dy].map(|v| widen(v));
        let [abs_x, abs_weight, abs_bias, abs_dy] = [&x, &weight, &bias, &dy].map(|v| absolute(v));

        let depth = dims.filter().per_image();
        let y = twin::conv(dims, &x, &weight, Some(&bias));
        let magnitude = twin::conv(dims, &abs_x, &abs_weight, Some(&abs_bias));
        let what = format!("forward of {conv:?}");
        assert_close(backend, &found.forward, &y, &magnitude, depth + 1, true, &what);
        assert_close(backend, &found.in_full, &y, &magnitude, depth + 1, false, &what);

        // A pixel lies in at most R S windows.
        let depth = depth / (dims.c / dims.groups) as usize * (dims.k / dims.groups) as usize;
        let dx = twin::conv_data(dims, &dy, &weight);
        let magnitude = twin::conv_data(dims, &abs_dy, &abs_weight);
        let what = format!("backward data of {conv:?}");
        assert_close(backend, &found.data, &dx, &magnitude, depth, true, &what);

        let depth = (dims.n * dims.p * dims.q) as usize;
        let gradient = twin::conv_filter(dims, &dy, &x);
        let magnitude = twin::conv_filter(dims, &abs_dy, &abs_x);
        for part in 0..2 {
            let what = format!("gradient of {conv:?}");
            let (found, gradient) = (&found.filter[part], &gradient[part]);
            assert_close(backend, found, gradient, &magnitude[part], depth, false, &what);
        }
    }
}

/// Where a backend pools what a first convolution makes at once, it is what the operations make one
/// after the other: maps taller than what is kept of them, windows beyond the edge and apart, rows
/// longer than a block of pixels, groups.
fn pooled_at_once_is_pooled_after<B: Backend>(backend: &B) {
    let simple = Conv { pad: [1; 4], ..Conv::SIMPLE };
    let first = Conv { stride: [2, 2], rounding: Rounding::Ceil, ..Conv::SIMPLE };
    let cases = [
        (Conv { n: 3, input: [30, 27, 3], filters: [40, 3, 3], ..simple }, [3, 3], [2, 2]),
        (Conv { n: 2, input: [9, 130, 3], filters: [5, 3, 3], ..simple }, [3, 2], [2, 2]),
        // Several tasks to an image, of several parts and of one.
        (Conv { n: 1, input: [97, 9, 3], filters: [6, 3, 3], ..simple }, [3, 3], [2, 2]),
        (Conv { n: 9, input: [47, 8, 3], filters: [4, 3, 3], ..simple }, [3, 3], [2, 2]),
        (
            Conv { n: 2, input: [16, 15, 4], filters: [6, 3, 3], groups: 2, ..simple },
            [2, 2],
            [3, 3],
        ),
        (Conv { n: 1, input: [6, 7, 1], filters: [33, 5, 5], ..simple }, [2, 3], [1, 2]),
        // First layers, as ZFNet and AlexNet have them: several tiles of pixels and filters.
        (Conv { n: 2, input: [40, 47, 3], filters: [96, 7, 7], ..first }, [3, 3], [2, 2]),
        (
            Conv { n: 1, input: [75, 76, 3], filters: [56, 11, 11], stride: [4, 4], ..first },
            [3, 3],
            [2, 2],
        ),
    ];
    let mut random = Random(41);
    for (conv, window, stride) in cases {
        let dims = &conv.dims().unwrap();
        let map = [dims.p, dims.q, dims.k].map(|v| v as usize);
        let pool = &pooling(conv.n, map, window, stride, [0; 4], Rounding::Ceil).unwrap();
        if !backend.supports_conv_pool(dims, pool) {
            assert_ne!(backend.device(), "cpu", "{conv:?}");
            continue;
        }
        let mut scratch = backend.scratch(&[*dims]).unwrap();
        backend.prepare_conv_pool(&mut scratch, dims).unwrap();
        let Operands { x, weight, bias, start, .. } =
            Operands::new(dims, |count| random.integers(count, 2));
        let x = &tensor(backend, dims.input(), &x);
        let weight = &weights(backend, dims.filter(), &weight);
        let bias = &in_full(backend, Shape::vector(map[2]), &bias);
        let room = || backend.bytes(pool.output().len()).unwrap();
        let switches_of = |switches: &B::Bytes| {
            let mut found = vec![0; pool.output().len()];
            backend.download_bytes(&mut found, switches).unwrap();
            found
        };

        let (mut y, mut switches) = (unwritten(backend, pool.output()), room());
        backend
            .conv_pool_forward(&mut y, &mut switches, x, weight, bias, dims, pool, &mut scratch)
            .unwrap();
        let mut map = unwritten(backend, dims.output());
        backend.conv_forward(&mut map, x, weight, Some(bias), true, dims, &mut scratch).unwrap();
        let (mut after, mut switches_after) = (unwritten(backend, pool.output()), room());
        backend.maxpool_forward(&mut after, &mut switches_after, &map, pool).unwrap();
        assert_eq!(values(backend, &y), values(backend, &after), "{conv:?}");
        assert_eq!(switches_of(&switches), switches_of(&switches_after), "{conv:?}");

        let dy = &tensor(backend, pool.output(), &random.integers(pool.output().len(), 2));
        let gradient = |accumulate: bool| {
            let mut gradient = Param::zeros(backend, dims).unwrap();
            let start = start
                .each_ref()
                .map(|start| if accumulate { start.clone() } else { vec![f32::NAN; start.len()] });
            backend.upload(&mut gradient.weight, &start[0]).unwrap();
            backend.upload(&mut gradient.bias, &start[1]).unwrap();
            gradient
        };
        for accumulate in [false, true] {
            let mut found = gradient(accumulate);
            backend
                .conv_pool_backward_filter(
                    &mut found,
                    dy,
                    &switches,
                    x,
                    accumulate,
                    dims,
                    pool,
                    &mut scratch,
                )
                .unwrap();
            let mut expected = gradient(accumulate);
            backend.maxpool_backward(&mut map, dy, &switches, None, true, pool).unwrap();
            backend
                .conv_backward_filter(&mut expected, &map, x, accumulate, dims, &mut scratch)
                .unwrap();
            for (found, expected) in
                [(&found.weight, &expected.weight), (&found.bias, &expected.bias)]
            {
                assert_eq!(values(backend, found), values(backend, expected), "{conv:?}");
            }
        }
    }
}

fn relu_in_the_epilogue_passes_nan_on<B: Backend>(backend: &B) {
    for conv in [
        Conv { n: 2, input: [5, 5, 2], filters: [3, 3, 3], ..Conv::SIMPLE },
        Conv { n: 2, input: [2, 2, 2], filters: [3, 2, 2], ..Conv::SIMPLE },
    ] {
        let dims = &conv.dims().unwrap();
        let mut x = vec![1.0; dims.input().len()];
        x[0] = f32::NAN;
        let weight = vec![-1.0; dims.filter().len()];
        let (x, weight) =
            (tensor(backend, dims.input(), &x), weights(backend, dims.filter(), &weight));
        let mut y = unwritten(backend, dims.output());
        let mut scratch = backend.scratch(&[*dims]).unwrap();
        backend.conv_forward(&mut y, &x, &weight, None, true, dims, &mut scratch).unwrap();
        let y = values(backend, &y);
        assert!(y[..3].iter().all(|y| y.is_nan()), "NaN must stay: {y:?}");
        assert!(y[3..].iter().all(|y| *y == 0.0), "what does not see it is rectified: {y:?}");
    }
}

/// Infinities and NaN are what they are in f64, forward and on the way back; what is subnormal may count as
/// zero where pairs of bf16 are multiplied.
fn products_of_what_is_not_finite<B: Backend>(backend: &B) {
    const INFINITE: f32 = f32::INFINITY;
    const NAN: f32 = f32::NAN;
    let subnormal = 2f32.powi(-130);
    let pixels = [[INFINITE, 1.0], [INFINITE, INFINITE], [NAN, 1.0], [-1.0, -INFINITE], [0.0, 1.0]];
    let filters = [[1.0, -1.0], [0.0, 2.0], [INFINITE, 1.0]];
    let product = |a: [f32; 2], b: [f32; 2]| f64::from(a[0] * b[0] + a[1] * b[1]);
    for spatial in [true, false] {
        // Pixels of a map, or samples of a fully connected layer.
        let (n, h) = if spatial { (1, pixels.len()) } else { (pixels.len(), 1) };
        let conv = Conv { n, input: [h, 1, 2], filters: [filters.len(), 1, 1], ..Conv::SIMPLE };
        let dims = &conv.dims().unwrap();
        let weight = weights(backend, dims.filter(), filters.as_flattened());
        let mut scratch = backend.scratch(&[*dims]).unwrap();
        let mut forward = |x: &[f32]| {
            let (x, mut y) = (tensor(backend, dims.input(), x), unwritten(backend, dims.output()));
            backend.conv_forward(&mut y, &x, &weight, None, false, dims, &mut scratch).unwrap();
            values(backend, &y)
        };
        let found = forward(pixels.as_flattened());
        let expected = pixels.map(|pixel| filters.map(|filter| product(pixel, filter)));
        assert_exact(&found, expected.as_flattened(), &format!("spatial {spatial}: forward"));
        let small = &forward(&[subnormal; 10])[1];
        let exact = 2.0 * subnormal;
        let in_pairs = match backend.id() {
            BackendId::Cpu { instructions, .. } => ["AVX512-BF16", "AMX"].contains(&&*instructions),
            _ => backend.precision() != Precision::F32,
        };
        assert!(*small == exact || in_pairs && *small == 0.0, "{small} for {exact}");
        // The same products on the way back.
        let conv = Conv { n, input: [h, 1, 3], filters: [2, 1, 1], ..Conv::SIMPLE };
        let dims = &conv.dims().unwrap();
        let turned = [0, 1].map(|c| filters.map(|filter| filter[c]));
        let weight = weights(backend, dims.filter(), turned.as_flattened());
        let mut scratch = backend.scratch(&[*dims]).unwrap();
        let dy = tensor(backend, dims.output(), pixels.as_flattened());
        let mut dx = unwritten(backend, dims.input());
        backend.conv_backward_data(&mut dx, &dy, &weight, dims, &mut scratch).unwrap();
        let found = values(backend, &dx);
        assert_exact(&found, expected.as_flattened(), &format!("spatial {spatial}: data"));
    }
}

/// Mostly zeros, as below an unpooling; nothing else; and all but one value.
fn zeros_going_back<B: Backend>(backend: &B) {
    let mut random = Random(3);
    let wide = Conv { n: 7, input: [9, 10, 8], filters: [600, 3, 3], pad: [1; 4], ..Conv::SIMPLE };
    for conv in convolutions().into_iter().chain([wide]).filter(|conv| conv.n < 100) {
        let dims = &conv.dims().unwrap();
        let mut scratch = backend.scratch(&[*dims]).unwrap();
        let weight = random.integers(dims.filter().len(), 3);
        let dy = random.integers(dims.output().len(), 3);
        let some = random.below(dy.len());
        let kept: [&mut dyn FnMut(usize) -> bool; 3] =
            [&mut |_| random.below(8) == 0, &mut |_| false, &mut |i| i == some];
        for kept in kept {
            let keep = |(i, value): (usize, &f32)| if kept(i) { *value } else { 0.0 };
            let dy: Vec<f32> = dy.iter().enumerate().map(keep).collect();
            let mut dx = unwritten(backend, dims.input());
            let operands =
                (&tensor(backend, dims.output(), &dy), &weights(backend, dims.filter(), &weight));
            backend
                .conv_backward_data(&mut dx, operands.0, operands.1, dims, &mut scratch)
                .unwrap();
            let expected = twin::conv_data(dims, &widen(&dy), &widen(&weight));
            let what = format!("backward data of zeros, {conv:?}");
            assert_exact(&values(backend, &dx), &stored(backend, &expected), &what);
        }
    }
}

/// Where weights are kept twice, an update and the RMS limit write both.
fn updates_reach_what_convolutions_read<B: Backend>(backend: &B) {
    let dims = &Conv { n: 1, filters: [3, 1, 1], ..Conv::SIMPLE }.dims().unwrap();
    let mut weight = weights(backend, dims.filter(), &[4.0, -0.5, 100.0]);
    let mut v = backend.zeros(dims.filter()).unwrap();
    let g = in_full(backend, dims.filter(), &[1.0, 2.0, 3.0]);
    let mut state = backend.state().unwrap();
    backend
        .set_state(&mut state, StepState { learning_rate: 0.5, ..StepState::default() })
        .unwrap();
    let constants = SgdConstants { momentum: 0.0, weight_decay: 0.0 };
    backend.sgd_step(&mut weight, &mut v, &g, &constants, &state).unwrap();
    let mut scratch = backend.scratch(&[*dims]).unwrap();
    let one = tensor(backend, dims.input(), &[1.0]);
    let mut read = |weight: &_| {
        let mut y = unwritten_in_full(backend, dims.output());
        backend.conv_forward(&mut y, &one, weight, None, false, dims, &mut scratch).unwrap();
        values(backend, &y)
    };
    assert_eq!(read(&weight), [3.5, -1.5, 98.5]);
    backend.limit_rms(&mut weight, 2.0, &state).unwrap();
    assert_eq!(read(&weight), [2.0, -1.5, 2.0]);
}

// ---- pooling ----

fn poolings() -> Vec<PoolDims> {
    use Rounding::{Ceil, Floor};
    [
        pooling(1, [6, 6, 1], [2, 2], [2, 2], [0; 4], Floor),
        pooling(2, [7, 9, 3], [3, 3], [2, 2], [0; 4], Floor),
        // Windows that the image clips, as the paper's pools have them.
        pooling(3, [8, 8, 5], [3, 3], [2, 2], [0; 4], Ceil),
        pooling(2, [6, 7, 4], [3, 2], [1, 1], [0; 4], Floor),
        pooling(2, [9, 8, 2], [3, 3], [2, 2], [1; 4], Floor),
        pooling(5, [10, 7, 3], [4, 5], [3, 2], [2, 1, 3, 2], Ceil),
        pooling(1, [5, 5, 2], [5, 5], [1, 1], [4; 4], Floor),
        // Windows apart from each other, and one for all.
        pooling(4, [11, 10, 7], [2, 2], [4, 4], [0; 4], Ceil),
        pooling(2, [4, 3, 2], [4, 3], [1, 1], [0; 4], Floor),
        pooling(1, [17, 15, 1], [17, 15], [1, 1], [0; 4], Floor),
        pooling(2, [40, 39, 33], [3, 3], [2, 2], [0; 4], Ceil),
        // Channels that go eight at a time.
        pooling(3, [8, 8, 8], [3, 3], [2, 2], [0; 4], Ceil),
        pooling(2, [9, 8, 16], [3, 3], [2, 2], [1; 4], Floor),
        pooling(2, [6, 7, 24], [3, 3], [2, 2], [2, 1, 1, 2], Ceil),
        pooling(2, [7, 9, 8], [3, 2], [2, 1], [0; 4], Floor),
        pooling(5, [10, 7, 16], [4, 5], [3, 2], [2, 1, 3, 2], Ceil),
        pooling(2, [40, 39, 40], [3, 3], [2, 2], [0; 4], Ceil),
    ]
    .into_iter()
    .flat_map(|dims| [0, 1].map(|any_sign| PoolDims { any_sign, ..dims.unwrap() }))
    .collect()
}

fn run_pool<B: Backend>(backend: &B, dims: &PoolDims, x: &[f32]) -> (Vec<f32>, Vec<u8>) {
    let len = dims.output().len();
    let x = tensor(backend, dims.input(), x);
    let mut y = unwritten(backend, dims.output());
    let mut switches = bytes(backend, &vec![77; len]);
    backend.maxpool_forward(&mut y, &mut switches, &x, dims).unwrap();
    let mut found = vec![0; len];
    backend.download_bytes(&mut found, &switches).unwrap();
    (values(backend, &y), found)
}

/// Few different values make many ties; some windows hold nothing positive, some hold NaN.
fn pool_inputs(dims: &PoolDims, random: &mut Random) -> Vec<Vec<f32>> {
    let len = dims.input().len();
    let ties = random.integers(len, 1);
    let rectified = ties.iter().map(|v| v.max(0.0)).collect();
    let negative = random.integers(len, 3).iter().map(|v| v - 4.0).collect();
    let mut nan = random.integers(len, 9);
    nan.iter_mut().for_each(|v| *v = if random.below(9) == 0 { f32::NAN } else { *v });
    vec![ties, rectified, negative, nan, vec![0.0; len], vec![-0.0; len], vec![f32::NAN; len]]
}

fn pooling_and_its_switches<B: Backend>(backend: &B) {
    let mut random = Random(3);
    for dims in &poolings() {
        for x in pool_inputs(dims, &mut random) {
            let (y, switches) = run_pool(backend, dims, &x);
            let (twin_y, twin_switches) = twin::pool(dims, &widen(&x));
            assert_exact(&y, &twin_y, &format!("{dims:?}"));
            assert_eq!(switches, twin_switches, "switches of {dims:?}");
        }
    }
}

fn unpooling<B: Backend>(backend: &B) {
    let mut random = Random(4);
    for dims in &poolings() {
        for x in pool_inputs(dims, &mut random) {
            let (_, switches) = twin::pool(dims, &widen(&x));
            let all: Vec<u32> = (0..dims.n).collect();
            // As many samples as images, and more, in another order.
            let list: Vec<u32> = (0..dims.n + 2).map(|i| (i * 3 + 1) % dims.n).collect();
            for (images, given) in [(&all, false), (&all, true), (&list, true)] {
                let dims = &dims.with_n(images.len());
                let dy = random.integers(dims.output().len(), 9);
                for forward_mask in [false, true] {
                    let dy_tensor = tensor(backend, dims.output(), &dy);
                    let mut dx = unwritten(backend, dims.input());
                    let list = given.then(|| indices(backend, images));
                    let switch_bytes = bytes(backend, &switches);
                    backend
                        .maxpool_backward(
                            &mut dx,
                            &dy_tensor,
                            &switch_bytes,
                            list.as_ref(),
                            forward_mask,
                            dims,
                        )
                        .unwrap();
                    let expected = twin::unpool(dims, &widen(&dy), &switches, images, forward_mask);
                    let what = format!("{dims:?}, images {images:?}, mask {forward_mask}");
                    assert_exact(&values(backend, &dx), &expected, &what);
                }
            }
        }
    }
}

/// The rule of the switch in one row of windows, worked out by hand.
fn pooling_by_hand<B: Backend>(backend: &B) {
    const NAN: f32 = f32::NAN;
    let dims = pooling(1, [1, 9, 1], [1, 3], [1, 2], [0, 0, 1, 0], Rounding::Ceil).unwrap();
    // Windows over columns -1..2, 1..4, 3..6, 5..8 and 7..10, of which 0..9 are there.
    let cases = [
        ([3., 5., 5., 5., 4., 5., 1., 2., 2.], [5., 5., 5., 5., 2.], [2, 0, 0, 0, 0]),
        ([0., 0., 0., 0., -1., -2., -3., -2., -1.], [0., 0., 0., -2., -1.], [255; 5]),
        ([1., NAN, 9., NAN, NAN, 0., 7., 8., NAN], [NAN, NAN, NAN, 8., NAN], [2, 0, 0, 2, 1]),
        ([NAN; 9], [NAN; 5], [1, 0, 0, 0, 0]),
    ];
    for (x, y, switches) in cases {
        let found = run_pool(backend, &dims, &x);
        assert_exact(&found.0, &widen(&y), "winners");
        assert_eq!(found.1, switches, "switches of {x:?}");
    }
    let all = PoolDims { any_sign: 1, ..dims };
    let found = run_pool(backend, &all, &cases[1].0);
    assert_exact(&found.0, &widen(&cases[1].1), "winners of any sign");
    assert_eq!(found.1, [1, 0, 0, 0, 1], "switches of any sign");
    // The same side by side, in eight channels.
    let beside = pooling(1, [1, 9, 8], [1, 3], [1, 2], [0, 0, 1, 0], Rounding::Ceil).unwrap();
    let channels = |place: usize| (0..8).map(move |channel| (channel % 4, place));
    let x: Vec<f32> = (0..9).flat_map(channels).map(|(case, place)| cases[case].0[place]).collect();
    let found = run_pool(backend, &beside, &x);
    for (index, (case, place)) in (0..5).flat_map(channels).enumerate() {
        let (_, y, switches) = cases[case];
        assert_exact(&found.0[index..][..1], &[f64::from(y[place])], "winners of eight channels");
        assert_eq!(found.1[index], switches[place], "case {case}, window {place}");
    }
    // The first sample's first two windows both point at column 1 and add there; in the second,
    // 255 is the first column inside the image: 0 of the first window, 5 of the fourth.
    for (mask, expected) in [
        (false, [100., 11., 0., 0., 0., 1000., 0., 0., 4096.]),
        (true, [0., 11., 0., 0., 0., 0., 0., 0., 4096.]),
    ] {
        let dy = tensor(
            backend,
            dims.with_n(2).output(),
            &[10., 1., 0., 0., 0., 100., 0., 0., 1000., 4096.],
        );
        let switches = bytes(backend, &[255, 0, 2, 255, 1, 2, 0, 0, 0, 0]);
        let mut dx = unwritten(backend, dims.with_n(2).input());
        let images = indices(backend, &[1, 0]);
        let dims = &dims.with_n(2);
        backend.maxpool_backward(&mut dx, &dy, &switches, Some(&images), mask, dims).unwrap();
        let dx = values(backend, &dx);
        let sum: Vec<f32> = dx[..9].iter().zip(&dx[9..]).map(|(a, b)| a + b).collect();
        assert_eq!(sum, expected, "mask {mask}");
    }
    assert_eq!(NOT_POSITIVE, 255);
}

// ---- relu ----

fn relu_up_and_down<B: Backend>(backend: &B) {
    let shape = Shape::new(3, 41, 20, 21); // more than one task's values an image
    let mut random = Random(5);
    let mut x = random.integers(shape.len(), 2);
    x[7] = f32::NAN;
    x[shape.len() - 1] = -0.0;
    let mut y = unwritten(backend, shape);
    backend.relu_forward(&mut y, &tensor(backend, shape, &x)).unwrap();
    let y = values(backend, &y);
    assert_exact(&y, &twin::relu(&widen(&x)), "forward");

    let per_image = shape.per_image();
    for list in [None, Some(vec![2, 0, 0, 1, 2])] {
        let images = list.clone().unwrap_or(vec![0, 1, 2]);
        let shape = shape.with_n(images.len());
        let dy = random.integers(shape.len(), 2);
        let own: Vec<f64> = images
            .iter()
            .flat_map(|&image| widen(&y[image as usize * per_image..][..per_image]))
            .collect();
        for (forward_mask, relu_down) in
            [(false, false), (false, true), (true, false), (true, true)]
        {
            let rule = ReluRule { forward_mask, relu_down };
            let mut found = tensor(backend, shape, &dy);
            let y = tensor(backend, Shape { n: 3, ..shape }, &y);
            let list = list.as_ref().map(|list| indices(backend, list));
            backend.relu_backward(&mut found, &y, list.as_ref(), rule).unwrap();
            let expected = twin::relu_down(&widen(&dy), &own, rule);
            assert_exact(&values(backend, &found), &expected, &format!("{rule:?}, {images:?}"));
        }
    }
    // A NaN that descends is seen, too.
    let mut dy = tensor(backend, Shape::vector(2), &[f32::NAN, -1.0]);
    let rule = ReluRule { forward_mask: false, relu_down: true };
    let y = tensor(backend, Shape::vector(2), &[1.0, 1.0]);
    backend.relu_backward(&mut dy, &y, None, rule).unwrap();
    assert_exact(&values(backend, &dy), &[f64::NAN, 0.0], "relu down");
}

// ---- normalisation ----

/// An `alpha` this large makes the sum matter as much as `k`. In `s` all terms are positive, so
/// its relative error is at most `size + 2` roundings; the power multiplies that by `beta` (at
/// most 1.3) and adds its own two or three, the product one more: below `2 size + 8` roundings of
/// `eps / 2` each.
fn lrn_up_and_down<B: Backend>(backend: &B) {
    let eps = f64::from(f32::EPSILON);
    let mut random = Random(6);
    for c in [1, 3, 8, 64, 65, 200, 600] {
        for size in [1, 2, 5, 33] {
            for beta in [0.75, 0.5, 1.3] {
                let lrn = &Lrn { size, k: 2.0, alpha: 0.3, beta };
                let shape = Shape::new(3, 5, 7, c);
                let what = format!("{c} channels, {lrn:?}");
                let x = random.reals(shape.len()).iter().map(|x| x * 4.0).collect();
                let x: Vec<f32> = exact_operands(backend, x);
                let x_tensor = &tensor(backend, shape, &x);
                let mut y = unwritten(backend, shape);
                backend.lrn_forward(&mut y, x_tensor, lrn).unwrap();
                let limit = eps * f64::from(size + 4) + 1.01 * storage_eps(backend);
                let expected = twin::lrn(&widen(&x), c, lrn);
                for (y, expected) in values(backend, &y).iter().zip(&expected) {
                    let error = (f64::from(*y) - expected).abs();
                    assert!(error <= limit * expected.abs(), "{what}: {y} for {expected}");
                }
                for list in [None, Some([1, 1, 0, 2])] {
                    let images: Vec<u32> = list.map_or(vec![0, 1, 2], |list| list.into());
                    let shape = shape.with_n(images.len());
                    let dy = exact_operands(backend, random.reals(shape.len()));
                    let mut dx = unwritten(backend, shape);
                    let dy_tensor = tensor(backend, shape, &dy);
                    let list = list.map(|list| indices(backend, &list));
                    backend
                        .lrn_backward(&mut dx, &dy_tensor, x_tensor, list.as_ref(), lrn)
                        .unwrap();
                    let own: Vec<f64> = images
                        .iter()
                        .flat_map(|&i| {
                            widen(&x[i as usize * shape.per_image()..][..shape.per_image()])
                        })
                        .collect();
                    // Each term twice as far from exact as `y`, then a sum of `size` of them.
                    let limit = eps * f64::from(3 * size + 10);
                    let [expected, magnitude] = twin::lrn_backward(&widen(&dy), &own, c, lrn);
                    let found = values(backend, &dx);
                    for ((dx, expected), magnitude) in found.iter().zip(&expected).zip(&magnitude) {
                        let error = (f64::from(*dx) - expected).abs();
                        let limit =
                            limit * magnitude + 1.01 * storage_eps(backend) * expected.abs();
                        assert!(error <= limit, "{what}: down {dx} for {expected}");
                    }
                }
            }
        }
    }
}

// ---- dropout ----

/// Runs dropout on samples `first ..` of a step.
fn run_dropout<B: Backend>(
    backend: &B,
    shape: Shape,
    x: &[f32],
    dropout: Dropout,
    state: StepState,
) -> Vec<f32> {
    let mut place = backend.state().unwrap();
    backend.set_state(&mut place, state).unwrap();
    let mut y = unwritten(backend, shape);
    backend.dropout(&mut y, &tensor(backend, shape, x), &dropout, &place).unwrap();
    values(backend, &y)
}

fn dropout_is_philox<B: Backend>(backend: &B) {
    let mut random = Random(7);
    let seed = 0x0123_4567_89ab_cdef_u64;
    for (shape, rate) in [
        (Shape::new(3, 1, 1, 10), 0.5),
        (Shape::new(2, 1, 1, 4097), 0.25),
        (Shape::new(4, 3, 5, 7), 0.5),
        (Shape::new(2, 2, 2, 2), 0.0),
        (Shape::new(2, 4, 1, 3), 0.9),
    ] {
        let x: Vec<f32> = random.integers(shape.len(), 9).iter().map(|v| v + 100.0).collect();
        let dropout = Dropout { rate, layer: 17 };
        let state = StepState { seed, step: 5, first_sample: 1000, learning_rate: 0.0 };
        let found = run_dropout(backend, shape, &x, dropout, state);
        let threshold = (f64::from(1.0 - rate) * 2f64.powi(32)).round() as u64;
        for sample in 0..shape.n {
            for (y, x_place, c) in twin::places(shape.h, shape.w, shape.c) {
                let element = (c * shape.h + y) * shape.w + x_place; // C, H, W order
                let counter = [17, 5, 1000 + sample as u32, element as u32 / 4];
                let number = philox4x32(counter, [0x89ab_cdef, 0x0123_4567])[element % 4];
                let place = sample * shape.per_image() + (y * shape.w + x_place) * shape.c + c;
                let kept = u64::from(number) < threshold;
                let expected = if kept { x[place] * (1.0 / (1.0 - rate)) } else { 0.0 };
                let expected = stored(backend, &[f64::from(expected)])[0];
                assert_eq!(f64::from(found[place]), expected, "{shape} at {place}, rate {rate}");
            }
        }
        let kept = found.iter().filter(|y| **y != 0.0).count() as f64 / shape.len() as f64;
        let share = f64::from(1.0 - rate);
        // Five deviations of the share of so many draws.
        let limit = 5.0 * (share * (1.0 - share) / shape.len() as f64).sqrt();
        assert!((kept - share).abs() <= limit, "{kept} kept at rate {rate}");
    }
}

fn dropout_is_the_same_for_any_split<B: Backend>(backend: &B) {
    let dropout = Dropout { rate: 0.5, layer: 3 };
    for shape in [Shape::new(7, 1, 1, 50), Shape::new(7, 3, 2, 9)] {
        let x = vec![1.0; shape.len()];
        let state = |first_sample| StepState { seed: 9, step: 2, first_sample, learning_rate: 0.0 };
        let whole = run_dropout(backend, shape, &x, dropout, state(0));
        for size in 1..7 {
            let mut parts = Vec::new();
            for first in (0..shape.n).step_by(size) {
                let shape = shape.with_n(size.min(shape.n - first));
                let x = &x[..shape.len()];
                parts.extend(run_dropout(backend, shape, x, dropout, state(first as u32)));
            }
            assert_eq!(parts, whole, "in parts of {size}");
        }
        let others = [
            run_dropout(backend, shape, &x, Dropout { layer: 4, ..dropout }, state(0)),
            run_dropout(backend, shape, &x, dropout, StepState { step: 3, ..state(0) }),
            run_dropout(backend, shape, &x, dropout, StepState { seed: 10, ..state(0) }),
            run_dropout(backend, shape, &x, dropout, StepState { seed: 9 << 32, ..state(0) }),
        ];
        assert!(others.iter().all(|other| *other != whole), "layer, step and seed must matter");
    }
}

// ---- loss ----

/// Losses and gradients; `labels` has one class a row.
fn run_softmax<B: Backend>(
    backend: &B,
    logits: &[f32],
    labels: &[u32],
    scale: f32,
) -> [Vec<f32>; 2] {
    let n = labels.len();
    let shape = Shape::new(n, 1, 1, logits.len() / n);
    let mut losses = unwritten_in_full(backend, Shape::vector(n));
    let mut gradient = unwritten(backend, shape);
    let (logits, labels) = (in_full(backend, shape, logits), indices(backend, labels));
    let mut state = backend.state().unwrap();
    let (losses_out, dlogits) = (&mut losses, &mut gradient);
    backend
        .softmax_cross_entropy(losses_out, dlogits, &logits, &labels, scale, &mut state)
        .unwrap();
    [values(backend, &losses), values(backend, &gradient)]
}

/// A probability has the error of an exponential, a sum's and a division's: a few eps. The loss
/// adds that of `logit - max`, which is as large as the loss itself.
fn softmax_cross_entropy<B: Backend>(backend: &B) {
    let eps = f64::from(f32::EPSILON);
    let mut random = Random(8);
    for classes in [2, 10, 1000] {
        for spread in [1e-3, 1.0, 30.0, 1e4, 1e30] {
            for shift in [0.0, 1e4] {
                let n = 4;
                let logits: Vec<f32> =
                    random.reals(n * classes).iter().map(|v| v * spread + shift).collect();
                let labels: Vec<u32> = (0..n).map(|_| random.below(classes) as u32).collect();
                let scale = 1.0 / n as f32;
                let found = run_softmax(backend, &logits, &labels, scale);
                let expected =
                    twin::softmax_cross_entropy(&widen(&logits), classes, &labels, scale.into());
                let what = format!("{classes} classes, spread {spread}, shift {shift}");
                for (loss, expected) in found[0].iter().zip(&expected[0]) {
                    let error = (f64::from(*loss) - expected).abs();
                    assert!(error <= 4.0 * eps * (1.0 + expected), "{what}: {loss} for {expected}");
                }
                for (dx, expected) in found[1].iter().zip(&expected[1]) {
                    let error = (f64::from(*dx) - expected).abs();
                    let limit =
                        8.0 * eps * f64::from(scale) + 1.01 * storage_eps(backend) * expected.abs();
                    assert!(error <= limit, "{what}: {dx} for {expected}");
                }
            }
        }
    }
    let [loss, gradient] = run_softmax(backend, &[0.0; 4], &[1], 2.0);
    assert_eq!(loss, [4f32.ln()]);
    assert_eq!(gradient, [0.5, -1.5, 0.5, 0.5]);
}

fn softmax_of_nan_shows<B: Backend>(backend: &B) {
    for place in 0..3 {
        let mut logits = [1.0, 2.0, 3.0, 1.0, 2.0, 3.0];
        logits[place] = f32::NAN;
        let [losses, gradient] = run_softmax(backend, &logits, &[1, 1], 1.0);
        assert!(losses[0].is_nan(), "NaN at {place} gives {losses:?}");
        assert!(gradient[..3].iter().any(|g| g.is_nan()));
        assert!(losses[1].is_finite() && gradient[3..].iter().all(|g| g.is_finite()));
    }
}

/// A loss that is not finite halts updates by its state, and by no other.
fn a_bad_loss_halts_updates<B: Backend>(backend: &B) {
    let one = Shape::vector(2);
    let labels = indices(backend, &[0]);
    let [mut halted, mut free] = [(); 2].map(|()| backend.state().unwrap());
    for (state, logits) in [(&mut halted, [f32::NAN, 1.0]), (&mut free, [0.0, 1.0])] {
        let mut losses = unwritten_in_full(backend, Shape::vector(1));
        let (mut dlogits, logits) = (unwritten(backend, one), in_full(backend, one, &logits));
        backend
            .softmax_cross_entropy(&mut losses, &mut dlogits, &logits, &labels, 1.0, state)
            .unwrap();
        // A new step does not set it free.
        backend.set_state(state, StepState { learning_rate: 1.0, ..StepState::default() }).unwrap();
    }
    let g = in_full(backend, one, &[1.0, 2.0]);
    let constants = SgdConstants { momentum: 0.5, weight_decay: 0.0 };
    for (state, updated, limited) in
        [(&halted, [4.0, 8.0], [4.0, 8.0]), (&free, [3.0, 6.0], [1.0, 1.0])]
    {
        let (mut w, mut v) = (weights(backend, one, &[4.0, 8.0]), backend.zeros(one).unwrap());
        backend.sgd_step(&mut w, &mut v, &g, &constants, state).unwrap();
        assert_eq!(values(backend, &w), updated);
        let filters = Shape::new(2, 1, 1, 1);
        let mut w = weights(backend, filters, &[4.0, 8.0]);
        backend.limit_rms(&mut w, 1.0, state).unwrap();
        assert_eq!(values(backend, &w), limited);
    }
}

// ---- input ----

/// One run of the input operation.
struct InputCase {
    images: usize,
    /// Rows, columns and channels of a crop.
    size: [usize; 3],
    dims: InputDims,
    mean: Vec<f32>,
    inverse_std: Vec<f32>,
    crops: Vec<Crop>,
}

impl InputCase {
    fn run<B: Backend>(&self, backend: &B, pixels: &[u8]) -> Vec<f32> {
        let [rows, columns, channels] = self.size;
        let shape = Shape::new(self.crops.len(), rows, columns, channels);
        let mut x = unwritten(backend, shape);
        let mut crops = backend.crops(self.crops.len() + 2).unwrap();
        backend.upload_crops(&mut crops, &self.crops).unwrap();
        let mean_shape = match self.mean.len() == channels {
            true => Shape::vector(channels),
            false => Shape::new(1, self.dims.rows as usize, self.dims.columns as usize, channels),
        };
        let mean = in_full(backend, mean_shape, &self.mean);
        let inverse_std = in_full(backend, Shape::vector(channels), &self.inverse_std);
        let pixels = bytes(backend, pixels);
        backend.input(&mut x, &pixels, &crops, &mean, &inverse_std, &self.dims).unwrap();
        values(backend, &x)
    }

    /// In two steps: take the mean off, then cut and mirror.
    fn expected(&self, pixels: &[u8]) -> Vec<f64> {
        let [rows, columns, channels] = self.size;
        let [down, across] = [self.dims.rows as usize, self.dims.columns as usize];
        let normalised = |image: u32, y: usize, x: usize, c: usize| {
            let place = y * across + x;
            let pixel = &pixels[(image as usize * down * across + place) * 3..][..3];
            let byte = match channels {
                // As Pillow's mode L has it.
                1 => {
                    let parts = [19595, 38470, 7471].iter().zip(pixel);
                    let sum: u32 = parts.map(|(weight, byte)| weight * u32::from(*byte)).sum();
                    ((sum + (1 << 15)) >> 16) as u8
                }
                _ => pixel[self.dims.order[c] as usize],
            };
            let one_each = self.mean.len() == channels;
            let mean = self.mean[if one_each { c } else { place * channels + c }];
            let value = f64::from(byte) * f64::from(self.dims.scale) - f64::from(mean);
            value * f64::from(self.inverse_std[c])
        };
        let crop = |crop: &Crop| {
            let Crop { image, y, x, mirror } = *crop;
            let place = move |(i, j, c): (usize, usize, usize)| {
                let j = if mirror == 1 { columns - 1 - j } else { j };
                normalised(image, y as usize + i, x as usize + j, c)
            };
            twin::places(rows, columns, channels).map(place).collect::<Vec<f64>>()
        };
        self.crops.iter().flat_map(crop).collect()
    }
}

fn input_cases(
    random: &mut Random,
    scale: f32,
    mean: f32,
    inverse_std: [f32; 3],
) -> Vec<InputCase> {
    let crop = |image, y, x, mirror| Crop { image, y, x, mirror };
    let crops = vec![
        crop(0, 0, 0, 0),
        crop(2, 3, 4, 1),
        crop(1, 4, 0, 1),
        crop(2, 0, 4, 0),
        crop(2, 3, 4, 0),
    ];
    let mut cases = Vec::new();
    for order in [[0, 1, 2], [2, 1, 0]] {
        // A square; more columns than rows, more rows than columns, of either number of channels.
        let sizes = [([9, 9], [5, 5, 3]), ([8, 70], [4, 66, 3]), ([29, 8], [25, 4, 3])];
        let grey = [([9, 9], [5, 5, 1]), ([8, 70], [4, 66, 1]), ([29, 8], [25, 4, 1])];
        for (canvas, size) in sizes.into_iter().chain(grey) {
            let [rows, columns] = canvas;
            for mean_len in [size[2], rows * columns * size[2]] {
                let integers = random.integers(mean_len, 100);
                cases.push(InputCase {
                    images: 3,
                    size,
                    dims: InputDims { rows: rows as u32, columns: columns as u32, scale, order },
                    mean: integers.iter().map(|v| (v + 100.0) * mean).collect(),
                    inverse_std: inverse_std[..size[2]].to_vec(),
                    crops: crops.clone(),
                });
            }
        }
    }
    cases
}

fn input_is_exact<B: Backend>(backend: &B) {
    let mut random = Random(9);
    for case in input_cases(&mut random, 1.0, 0.5, [1.0, 0.5, 0.25]) {
        let pixels = random.bytes(case.images * (case.dims.rows * case.dims.columns * 3) as usize);
        let expected = stored(backend, &case.expected(&pixels));
        assert_exact(&case.run(backend, &pixels), &expected, "input");
    }
    // The whole square, unmirrored, without a mean, is the pixels themselves.
    let pixels: Vec<u8> = (0..4 * 4 * 3).collect();
    let whole = InputCase {
        images: 1,
        size: [4, 4, 3],
        dims: InputDims { rows: 4, columns: 4, scale: 1.0, order: [0, 1, 2] },
        mean: vec![0.0; 3],
        inverse_std: vec![1.0; 3],
        crops: vec![Crop { image: 0, y: 0, x: 0, mirror: 0 }],
    };
    let expected: Vec<f64> = (0..4 * 4 * 3).map(f64::from).collect();
    assert_exact(&whole.run(backend, &pixels), &expected, "pixels");
    // Every grey pixel is its own luma.
    let pixels: Vec<u8> = (0..=255).flat_map(|v| [v; 3]).collect();
    let grey = InputCase {
        size: [16, 16, 1],
        dims: InputDims { rows: 16, columns: 16, ..whole.dims },
        mean: vec![0.0],
        inverse_std: vec![1.0],
        ..whole
    };
    let expected: Vec<f64> = (0..=255).map(f64::from).collect();
    assert_exact(&grey.run(backend, &pixels), &expected, "luma of grey");
}

/// Three roundings, the first two of values of at most 1.
fn input_of_reals_is_close<B: Backend>(backend: &B) {
    let mut random = Random(10);
    for case in input_cases(&mut random, 1.0 / 255.0, 0.0047, [4.37, 4.46, 4.44]) {
        let pixels = random.bytes(case.images * (case.dims.rows * case.dims.columns * 3) as usize);
        for (found, expected) in case.run(backend, &pixels).iter().zip(case.expected(&pixels)) {
            let error = (f64::from(*found) - expected).abs();
            let limit =
                2.0 * f64::from(f32::EPSILON) * 4.5 + 1.01 * storage_eps(backend) * expected.abs();
            assert!(error <= limit, "{found} for {expected}");
        }
    }
}

// ---- looking ----

fn peaks_sums_and_seeds<B: Backend>(backend: &B) {
    let mut random = Random(11);
    for shape in [Shape::new(3, 5, 4, 7), Shape::new(1, 13, 13, 65), Shape::new(2, 1, 1, 9)] {
        let mut x = random.integers(shape.len(), 5);
        x[1] = f32::NAN;
        if shape.h > 1 {
            x[1 + 2 * shape.c] = f32::NAN;
            // Map 2 of the first image is all equal, map 3 below zero.
            (0..shape.h * shape.w).for_each(|place| x[place * shape.c + 2] = -3.0);
            (0..shape.h * shape.w).for_each(|place| x[place * shape.c + 3] -= 6.0);
        }
        let x_tensor = tensor(backend, shape, &x);
        let mut peaks = vec![Peak { value: 5.0, position: 99 }; shape.n * shape.c];
        backend.channel_max(&mut peaks, &x_tensor).unwrap();
        let mut sums = vec![7.0; shape.n * shape.c];
        backend.channel_sum(&mut sums, &x_tensor).unwrap();
        for (i, (peak, sum)) in peaks.iter().zip(&sums).enumerate() {
            let (image, map) = (i / shape.c, i % shape.c);
            let area = shape.h * shape.w;
            let at = |place: usize| x[(image * area + place) * shape.c + map];
            let value = (0..area).map(at).fold(f32::NEG_INFINITY, |a, b| {
                if a.is_nan() || b.is_nan() { f32::NAN } else { a.max(b) }
            });
            let is_it = |place: &usize| at(*place) == value || at(*place).is_nan();
            let first = (0..area).find(is_it).unwrap();
            assert!(peak.value == value || peak.value.is_nan() && value.is_nan(), "map {map}");
            assert_eq!(peak.position as usize, first, "map {map} of image {image} of {shape}");
            assert_exact(&[*sum], &[(0..area).map(|place| f64::from(at(place))).sum()], "sum");
        }

        let mut dy = unwritten(backend, shape);
        let unit = |n: usize| SeedUnit {
            map: (n % shape.c) as u32,
            y: (shape.h - 1) as u32,
            x: (n % shape.w) as u32,
            value: 2.5 + n as f32,
        };
        let units: Vec<SeedUnit> = (0..shape.n).map(unit).collect();
        backend.scatter_units(&mut dy, &units).unwrap();
        let mut expected = vec![0.0; shape.len()];
        for (n, unit) in units.iter().enumerate() {
            let [map, y, x] = [unit.map, unit.y, unit.x].map(|v| v as usize);
            expected[((n * shape.h + y) * shape.w + x) * shape.c + map] = f64::from(unit.value);
        }
        assert_exact(&values(backend, &dy), &expected, "seed");
    }
}

/// Integers, so that sums are exact in whatever order; the largest leaves out what is no number. Of maps that are
/// few, one, or more than a block has threads; of an activation and of weights, which may be stored in other ways.
fn moments_of_maps<B: Backend>(backend: &B) {
    let mut random = Random(13);
    let shapes = [
        [3, 5, 4, 7],
        [1, 13, 13, 65],
        [2, 1, 1, 9],
        [5, 21, 20, 5],
        [5, 43, 41, 1],
        [4, 33, 32, 3],
        [2, 9, 7, 1030],
    ]
    .map(|[n, h, w, c]| Shape::new(n, h, w, c));
    for shape in shapes {
        let [mut x, w] = [(); 2].map(|()| random.integers(shape.len(), 5));
        if shape.c > 4 {
            x[shape.len() - shape.c + 1] = f32::NAN;
            // Map 2 holds no number at all, and map 3 none above zero.
            x.iter_mut().skip(2).step_by(shape.c).for_each(|value| *value = f32::NAN);
            x.iter_mut().skip(3).step_by(shape.c).for_each(|value| *value -= 6.0);
        }
        let mut moments = backend.moments(1 + 2 * shape.c, shape.c).unwrap();
        backend.map_moments(&mut moments, 1, &tensor(backend, shape, &x)).unwrap();
        let w_tensor = weights(backend, shape, &w);
        backend.map_moments(&mut moments, 1 + shape.c, &w_tensor).unwrap();
        backend.send_moments(&mut moments).unwrap();
        backend.synchronize().unwrap();
        let mut found = vec![MapMoments { sum: 7.0, squares: 7.0, largest: 7.0 }; 1 + 2 * shape.c];
        backend.received_moments(&mut found, &moments).unwrap();
        let maps = (0..shape.c).map(|map| (&x, map)).chain((0..shape.c).map(|map| (&w, map)));
        for ((x, map), found) in maps.zip(&found[1..]) {
            let values: Vec<f64> =
                x.iter().skip(map).step_by(shape.c).map(|value| f64::from(*value)).collect();
            let expected = [values.iter().sum(), values.iter().map(|value| value * value).sum()];
            let what = format!("moments of map {map} of {shape}");
            assert_exact(&[found.sum, found.squares], &expected, &what);
            let largest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            assert_eq!(f64::from(found.largest), largest, "{what}");
        }
    }
}

/// Inside the map, beyond each of its edges, beyond all of them, and nowhere near it.
fn windows_are_cut_and_put_back<B: Backend>(backend: &B) {
    let mut random = Random(12);
    let units = [0, 0, 3, 1, 1, 2];
    let cases = [
        ([9, 8], [3, 4], [0, 0], [2, 1], 3),
        ([9, 8], [3, 4], [-2, -1], [1, 3], 8),
        ([5, 7], [4, 4], [-1, 2], [1, 2], 1),
        ([4, 5], [9, 11], [-2, -3], [0, 0], 5),
        ([4, 5], [3, 2], [-20, 0], [1, 1], 2),
        ([4, 5], [3, 2], [0, 9], [1, 1], 2),
        ([1, 1], [1, 1], [0, 0], [0, 0], 16),
    ];
    for (map, size, start, jump, c) in cases {
        let windows = Windows { map, size, start, jump };
        let what = format!("{windows:?}, {c} channels");
        let (images, own) = ([1, 0, 1], [0, 1, 2]);
        let src = random.integers(2 * windows.inverse().shape(1, c).len(), 9);
        let src_tensor = tensor(backend, windows.inverse().shape(2, c), &src);
        let (list, unit_list) = (indices(backend, &images), indices(backend, &units));
        let mut dst = unwritten(backend, windows.shape(3, c));
        backend.gather_windows(&mut dst, &src_tensor, Some(&list), &unit_list, &windows).unwrap();
        let cut = twin::cut(&windows, &units, &images, c, &widen(&src));
        assert_exact(&values(backend, &dst), &cut, &what);

        let mut whole = unwritten(backend, windows.inverse().shape(3, c));
        backend.gather_windows(&mut whole, &dst, None, &unit_list, &windows.inverse()).unwrap();
        let back = twin::cut(&windows.inverse(), &units, &own, c, &cut);
        assert_exact(&values(backend, &whole), &back, &format!("put back, {what}"));

        let x = random.integers(windows.shape(3, c).len(), 9);
        let mut x_tensor = tensor(backend, windows.shape(3, c), &x);
        backend.zero_out_of_bounds(&mut x_tensor, &unit_list, &windows).unwrap();
        let inside = twin::cut(&windows, &units, &images, c, &vec![1.0; src.len()]);
        let cleared: Vec<f64> = widen(&x).iter().zip(&inside).map(|(x, one)| x * one).collect();
        assert_exact(&values(backend, &x_tensor), &cleared, &format!("cleared, {what}"));
    }
}

/// Cut switches are those that unpool windows, without padding, to what windows of the unpooled maps
/// hold.
fn unpooling_of_windows<B: Backend>(backend: &B) {
    let mut random = Random(13);
    for dims in &poolings() {
        let c = dims.c as usize;
        let map = [dims.p, dims.q];
        let windows = Windows { map, size: [3, 2], start: [-1, 0], jump: [1, 1] };
        let below = windows.below([dims.h, dims.w], dims.window, dims.stride, dims.pad);
        // Units at the corners and in the middle, of images in some order.
        let [bottom, right] = map.map(|size| size - 1);
        let units = [0, 0, bottom, right, 0, right, bottom / 2, right / 2];
        let images: Vec<u32> = (0..4).map(|i| (i * 3 + 1) % dims.n).collect();
        for x in pool_inputs(dims, &mut random) {
            let (_, switches) = twin::pool(dims, &widen(&x));
            let (whole, small) = (dims.with_n(4), dims.with_n(4).windowed(windows.size));
            let inside = vec![1.0; whole.output().len()];
            let inside = twin::cut(&windows, &units, &[0, 1, 2, 3], c, &inside);
            let dy: Vec<f64> = widen(&random.integers(small.output().len(), 9));
            let dy: Vec<f64> = dy.iter().zip(&inside).map(|(dy, one)| dy * one).collect();
            let own = [0, 1, 2, 3];
            let whole_dy = twin::cut(&windows.inverse(), &units, &own, c, &dy);
            for forward_mask in [false, true] {
                let mut cut = bytes(backend, &vec![77; small.output().len()]);
                let (list, unit_list) = (indices(backend, &images), indices(backend, &units));
                let from = bytes(backend, &switches);
                let list = Some(&list);
                backend
                    .gather_switches(
                        &mut cut,
                        &from,
                        list,
                        &unit_list,
                        &windows,
                        forward_mask,
                        &whole,
                    )
                    .unwrap();
                let mut found = vec![0; small.output().len()];
                backend.download_bytes(&mut found, &cut).unwrap();
                let found = twin::unpool(&small, &dy, &found, &own, forward_mask);
                let whole_dx = twin::unpool(&whole, &whole_dy, &switches, &images, forward_mask);
                let expected = twin::cut(&below, &units, &own, c, &whole_dx);
                assert!(found == expected, "{dims:?}, mask {forward_mask}");
            }
        }
    }
}

// ---- parameters ----

/// Each step rounds `v` and `w` three times or so; ten steps' roundings add up to at most forty of
/// the largest value met.
fn sgd_over_several_steps<B: Backend>(backend: &B) {
    let shape = Shape::new(5, 61, 61, 3);
    let mut random = Random(12);
    for (momentum, decay) in [(0.9, 5e-4), (0.0, 0.1), (0.5, 0.0)] {
        let start = random.reals(shape.len());
        let mut w = weights(backend, shape, &start);
        let mut v = backend.zeros(shape).unwrap();
        let mut state = backend.state().unwrap();
        let (mut twin_w, mut twin_v) = (widen(&start), vec![0.0f64; shape.len()]);
        let mut largest = 1.0f64;
        for step in 0..10 {
            let rate = if step < 6 { 0.1f32 } else { 0.01 };
            let g = random.reals(shape.len());
            backend
                .set_state(
                    &mut state,
                    StepState { learning_rate: rate, step, ..StepState::default() },
                )
                .unwrap();
            let constants = SgdConstants { momentum, weight_decay: decay };
            let gradient = in_full(backend, shape, &g);
            backend.sgd_step(&mut w, &mut v, &gradient, &constants, &state).unwrap();
            for ((w, v), g) in twin_w.iter_mut().zip(&mut twin_v).zip(&g) {
                *v = f64::from(momentum) * *v + (f64::from(*g) + f64::from(decay) * *w);
                *w -= f64::from(rate) * *v;
                largest = largest.max(w.abs()).max(v.abs());
            }
        }
        let limit = 40.0 * 0.5 * f64::from(f32::EPSILON) * largest;
        for (found, expected) in [(&w, &twin_w), (&v, &twin_v)] {
            for (found, expected) in values(backend, found).iter().zip(expected) {
                let error = (f64::from(*found) - expected).abs();
                assert!(error <= limit, "momentum {momentum}, decay {decay}: {found}, {expected}");
            }
        }
    }
    // By hand, exactly: v = 2 + 0.5 * 4 = 4, w = 4 - 0.25 * 4 = 3; then v = 0.5 * 4 + 1 + 0.5 * 3.
    let one = Shape::vector(1);
    let (mut w, mut v) = (weights(backend, one, &[4.0]), backend.zeros(one).unwrap());
    let mut state = backend.state().unwrap();
    backend
        .set_state(&mut state, StepState { learning_rate: 0.25, ..StepState::default() })
        .unwrap();
    let constants = SgdConstants { momentum: 0.5, weight_decay: 0.5 };
    for (g, expected) in [(2.0, [3.0, 4.0]), (1.0, [1.875, 4.5])] {
        let g = in_full(backend, one, &[g]);
        backend.sgd_step(&mut w, &mut v, &g, &constants, &state).unwrap();
        assert_eq!([values(backend, &w)[0], values(backend, &v)[0]], expected);
    }
}

/// More tensors than a kernel takes at a time, of a value and of many, with limits and without.
fn an_update_is_one_tensor_after_the_other<B: Backend>(backend: &B) {
    let mut random = Random(52);
    let mut state = backend.state().unwrap();
    let step = StepState { seed: 0, step: 0, first_sample: 0, learning_rate: 0.3 };
    backend.set_state(&mut state, step).unwrap();
    let shapes: Vec<Shape> =
        (0..19).map(|i| Shape::new(1 + i % 5, 1 + i % 3, 2, 1 + i * i * 7)).collect();
    let operands: Vec<[Vec<f32>; 3]> =
        shapes.iter().map(|shape| [0; 3].map(|_| random.reals(shape.len()))).collect();
    let constants = |i: usize| SgdConstants { momentum: 0.9, weight_decay: [0.1, 0.0][i % 2] };
    let limit = |i: usize| i.is_multiple_of(3).then_some(0.5 + 0.01 * i as f32);
    let tensors = || -> Vec<_> {
        let of = |(shape, [w, v, g]): (&Shape, &[Vec<f32>; 3])| {
            let [v, g] = [v, g].map(|values| in_full(backend, *shape, values));
            (weights(backend, *shape, w), v, g)
        };
        shapes.iter().zip(&operands).map(of).collect()
    };
    let [mut at_once, mut in_turn] = [tensors(), tensors()];
    let mut updates: Vec<Update<'_, B>> = Vec::new();
    for (i, (w, v, g)) in at_once.iter_mut().enumerate() {
        updates.push(Update { w, first: 0, v, g, constants: constants(i), rms_limit: limit(i) });
    }
    backend.update(&mut updates, &state).unwrap();
    for (i, (w, v, g)) in in_turn.iter_mut().enumerate() {
        backend.sgd_step(w, v, g, &constants(i), &state).unwrap();
        if let Some(limit) = limit(i) {
            backend.limit_rms(w, limit, &state).unwrap();
        }
    }
    for (i, (found, expected)) in at_once.iter().zip(&in_turn).enumerate() {
        assert_eq!(values(backend, &found.0), values(backend, &expected.0), "weights {i}");
        assert_eq!(values(backend, &found.1), values(backend, &expected.1), "momentum {i}");
    }
}

/// Moved in slices of filters, weights, their copy and their momentum are the same bits as moved at once.
fn slices_are_updated<B: Backend>(backend: &B) {
    let mut random = Random(15);
    let mut state = backend.state().unwrap();
    let step = StepState { seed: 0, step: 0, first_sample: 0, learning_rate: 0.3 };
    backend.set_state(&mut state, step).unwrap();
    let constants = SgdConstants { momentum: 0.9, weight_decay: 0.1 };
    let biases = Shape::vector(41);
    for (shape, slices) in [
        (Shape::new(13, 3, 3, 5), vec![0..4, 4..12, 12..13]),
        (Shape::new(41, 1, 1, 4100), vec![0..20, 20..40, 40..41]),
        (biases, vec![0..12, 12..41]),
    ] {
        let [w, v, g] = [0; 3].map(|_| random.reals(shape.len()));
        let rms_limit = (shape != biases).then_some(0.5);
        // What becomes of some filters, or biases.
        let update = |weights: &mut Tensor<B>, filters: Range<usize>| {
            let (of_slice, each) = match shape == biases {
                true => (Shape::vector(filters.len()), 1),
                false => (shape.with_n(filters.len()), shape.per_image()),
            };
            let range = each * filters.start..each * filters.end;
            let [mut v, g] =
                [&v, &g].map(|values| in_full(backend, of_slice, &values[range.clone()]));
            let (w, first) = (weights, range.start);
            let update = Update { w, first, v: &mut v, g: &g, constants, rms_limit };
            backend.update(&mut [update], &state).unwrap();
            values(backend, &v)
        };
        let [mut whole, mut sliced] = [0; 2].map(|_| weights(backend, shape, &w));
        let last = slices.last().expect("slices").end;
        let at_once = update(&mut whole, 0..last);
        let in_turn: Vec<f32> =
            slices.into_iter().flat_map(|slice| update(&mut sliced, slice)).collect();
        assert_eq!(bits(&values(backend, &sliced)), bits(&values(backend, &whole)), "{shape}");
        assert_eq!(bits(&in_turn), bits(&at_once), "momentum of {shape}");
        assert_ne!(bits(&values(backend, &whole)), bits(&w), "{shape}");
    }
}

fn gradients_are_added<B: Backend>(backend: &B) {
    let mut random = Random(16);
    for shape in [Shape::vector(1), Shape::new(3, 5, 1, 7), Shape::new(70, 3, 3, 33)] {
        let [y, x] = [0; 2].map(|_| random.reals(shape.len()));
        let (mut sum, addend) = (in_full(backend, shape, &y), in_full(backend, shape, &x));
        backend.add(&mut sum, &addend).unwrap();
        let expected: Vec<f32> = y.iter().zip(&x).map(|(y, x)| y + x).collect();
        assert_eq!(bits(&values(backend, &sum)), bits(&expected), "{shape}");
        assert_eq!(bits(&values(backend, &addend)), bits(&x), "{shape}");
    }
}

/// Parts of tensors are copied in and out, and convolutions see weights that were.
fn slices_are_copied<B: Backend>(backend: &B) {
    let mut random = Random(17);
    let conv = Conv { n: 2, input: [5, 5, 3], filters: [9, 3, 3], ..Conv::SIMPLE };
    let dims = conv.dims().expect("windows fit");
    let [old, new] = [0; 2].map(|_| random.reals(dims.filter().len()));
    let x = tensor(backend, dims.input(), &random.reals(dims.input().len()));
    let range = 4 * 27..7 * 27;
    let mut mixed = old.clone();
    mixed[range.clone()].copy_from_slice(&new[range.clone()]);
    let mut written = weights(backend, dims.filter(), &old);
    backend.upload_from(&mut written, range.start, &new[range.clone()]).unwrap();
    let mut read = vec![0.0; 50];
    backend.download_from(&mut read, &written, 100).unwrap();
    assert_eq!(bits(&read), bits(&mixed[100..150]));
    let mut scratch = backend.scratch(&[dims]).unwrap();
    let mut convolve = |weight: &Tensor<B>| {
        let mut y = backend.activations(dims.output()).unwrap();
        backend.conv_forward(&mut y, &x, weight, None, false, &dims, &mut scratch).unwrap();
        values(backend, &y)
    };
    let expected = convolve(&weights(backend, dims.filter(), &mixed));
    assert_eq!(bits(&convolve(&written)), bits(&expected));
}

fn halting_is_told<B: Backend>(backend: &B) {
    let mut state = backend.state().unwrap();
    assert!(!backend.is_halted(&state).unwrap());
    let step = StepState { seed: 0, step: 0, first_sample: 0, learning_rate: 0.5 };
    backend.set_state(&mut state, step).unwrap();
    backend.halt(&mut state).unwrap();
    backend.set_state(&mut state, step).unwrap();
    assert!(backend.is_halted(&state).unwrap());
    let shape = Shape::vector(5);
    let mut w = weights(backend, shape, &[1.0; 5]);
    let (mut v, g) = (in_full(backend, shape, &[0.0; 5]), in_full(backend, shape, &[1.0; 5]));
    let constants = SgdConstants { momentum: 0.0, weight_decay: 0.0 };
    backend.sgd_step(&mut w, &mut v, &g, &constants, &state).unwrap();
    assert_eq!(values(backend, &w), [1.0; 5]);
}

fn rms_is_limited<B: Backend>(backend: &B) {
    let shape = Shape::new(9, 5, 5, 7);
    let mut random = Random(13);
    // Filter k has values up to (k + 1) / 20, so an RMS of about (k + 1) / 35.
    let scale = |k: usize| (k + 1) as f32 / 20.0;
    let per_filter = shape.per_image();
    let w: Vec<f32> = random
        .reals(shape.len())
        .iter()
        .enumerate()
        .map(|(i, v)| v * scale(i / per_filter))
        .collect();
    let mut weight = weights(backend, shape, &w);
    let limit = 0.1;
    backend.limit_rms(&mut weight, limit, &backend.state().unwrap()).unwrap();
    let found = values(backend, &weight);
    let mut limited = 0;
    for (before, after) in w.chunks(per_filter).zip(found.chunks(per_filter)) {
        let squares: f64 = before.iter().map(|w| f64::from(*w).powi(2)).sum();
        let rms = (squares / per_filter as f64).sqrt();
        if rms <= f64::from(limit) {
            assert_eq!(bits(before), bits(after), "an RMS of {rms} is left alone");
            continue;
        }
        limited += 1;
        for (before, after) in before.iter().zip(after) {
            // The factor's rounding and the product's.
            let expected = f64::from(*before) * f64::from(limit) / rms;
            let error = (f64::from(*after) - expected).abs();
            assert!(error <= 2.0 * f64::from(f32::EPSILON) * expected.abs(), "RMS of {rms}");
        }
    }
    assert!(limited > 2 && limited < 8, "{limited} filters were limited: both kinds are needed");
}

#[test]
fn bf16_is_refused_without_its_instructions() {
    let portable = CpuBackend::portable(Some(1)).unwrap();
    let refused = portable.bf16_by(Products::Bf16Pairs).err();
    let error = refused.expect("no AVX512-BF16 is used").to_string();
    assert!(error.contains("AVX512-BF16") && error.contains("portable"), "{error}");
}
