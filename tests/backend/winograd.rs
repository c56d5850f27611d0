//! Convolutions of the sizes that the CPU backend does by Winograd's method: how far they are from
//! exact, that they are what they say they are (linear, and each other's adjoints), and that training
//! goes the same way without them.

use crate::common::{
    Conv, Random, assert_exact, bits, dot, in_full, norm, tensor, twin, unwritten, values, weights,
    widen,
};
use zfnet::backend::cpu::CpuBackend;
use zfnet::backend::{Backend, Param};
use zfnet::shape::{ConvDims, Rounding, Shape};

in_f32!(errors_are_bounded, transposes_are_adjoint, nothing_leaks_between_images);

/// Geometries of at least 64 tiles: one tile and several to a map, ragged ones, pads on one side, two
/// parities, blocks of several hundred channels, more tiles than are worked on at a time, groups.
fn convolutions() -> Vec<Conv> {
    use Rounding::Ceil;
    let three = Conv { filters: [48, 3, 3], pad: [1; 4], ..Conv::SIMPLE };
    let five = Conv { filters: [32, 5, 5], stride: [2, 2], ..Conv::SIMPLE };
    vec![
        Conv { n: 5, input: [13, 13, 32], ..three },
        Conv { n: 9, input: [11, 12, 48], pad: [0, 2, 1, 0], ..three },
        Conv { n: 8, input: [14, 14, 32], filters: [80, 3, 3], pad: [0; 4], ..three },
        Conv { n: 4, input: [16, 16, 416], filters: [32, 3, 3], ..three },
        Conv { n: 4, input: [15, 16, 32], filters: [400, 3, 3], ..three },
        Conv { n: 16, input: [12, 12, 32], filters: [32, 3, 3], ..three },
        Conv { n: 5, input: [29, 29, 32], ..five },
        Conv { n: 4, input: [31, 34, 48], pad: [2; 4], ..five },
        Conv { n: 5, input: [28, 30, 32], pad: [1, 2, 1, 2], rounding: Ceil, ..five },
        Conv { n: 2, input: [55, 55, 112], filters: [32, 5, 5], ..five },
        Conv { n: 5, input: [13, 13, 64], filters: [96, 3, 3], groups: 2, ..three },
        Conv { n: 5, input: [29, 28, 144], filters: [96, 5, 5], pad: [1; 4], groups: 3, ..five },
    ]
}

/// All three directions from the same operands: `y`, `dx`, `dw`.
fn run<B: Backend>(backend: &B, dims: &ConvDims, [x, w, dy]: [&[f32]; 3]) -> [Vec<f32>; 3] {
    let mut scratch = backend.scratch(&[*dims]).unwrap();
    let weight = &weights(backend, dims.filter(), w);
    let (x, dy) = (&tensor(backend, dims.input(), x), &tensor(backend, dims.output(), dy));
    let (mut y, mut dx) = (unwritten(backend, dims.output()), unwritten(backend, dims.input()));
    backend.conv_forward(&mut y, x, weight, None, false, dims, &mut scratch).unwrap();
    backend.conv_backward_data(&mut dx, dy, weight, dims, &mut scratch).unwrap();
    let mut gradient = Param::zeros(backend, dims).unwrap();
    backend.conv_backward_filter(&mut gradient, dy, x, false, dims, &mut scratch).unwrap();
    [values(backend, &y), values(backend, &dx), values(backend, &gradient.weight)]
}

fn operands(dims: &ConvDims, mut draw: impl FnMut(usize) -> Vec<f32>) -> [Vec<f32>; 3] {
    [dims.input(), dims.filter(), dims.output()].map(|shape| draw(shape.len()))
}

/// The transformations multiply roundings by a constant: of random operands a direct sum in f32 is
/// off by about `eps / 2 * sqrt(depth / 2)` in norm if it is made in order, and these are by as much.
fn errors_are_bounded<B: Backend>(backend: &B) {
    let mut random = Random(31);
    for conv in convolutions() {
        let dims = &conv.dims().unwrap();
        let [x, w, dy] = operands(dims, |count| random.reals(count));
        let found = run(backend, dims, [&x, &w, &dy]);
        let [x, w, dy] = [&x, &w, &dy].map(|v| widen(v));
        let [filter, _] = twin::conv_filter(dims, &dy, &x);
        let expected = [twin::conv(dims, &x, &w, None), twin::conv_data(dims, &dy, &w), filter];
        let taps = (dims.r * dims.s) as usize;
        let [channels, filters] = [dims.c, dims.k].map(|count| (count / dims.groups) as usize);
        let depths = [taps * channels, taps * filters, (dims.n * dims.p * dims.q) as usize];
        for ((found, expected), depth) in found.iter().zip(&expected).zip(depths) {
            let error = norm(found.iter().zip(expected).map(|(f, e)| f64::from(*f) - e));
            let unit = f64::from(f32::EPSILON) / 2.0 * (depth as f64 / 2.0).sqrt();
            let share = error / norm(expected.iter().copied()) / unit;
            eprintln!("{conv:?}: {share:.2}");
            assert!(share < 2.0, "{conv:?}: {share} times a direct sum's error");
        }
    }
}

/// `<conv(x), dy> = <x, conv^T(dy)> = <w, gradient>`.
fn transposes_are_adjoint<B: Backend>(backend: &B) {
    let mut random = Random(32);
    for conv in convolutions() {
        let dims = &conv.dims().unwrap();
        let [x, w, dy] = operands(dims, |count| random.reals(count));
        let [y, dx, dw] = run(backend, dims, [&x, &w, &dy]);
        let products = [dot(&y, &dy), dot(&x, &dx), dot(&w, &dw)];
        let size = norm(widen(&y)) * norm(widen(&dy));
        for other in &products[1..] {
            let error = (products[0] - other).abs() / size;
            assert!(error < 1e-6, "{conv:?}: {products:?}");
        }
    }
}

/// An image's results are the same whatever the images beside it hold, even what is not finite.
fn nothing_leaks_between_images<B: Backend>(backend: &B) {
    let mut random = Random(33);
    for conv in convolutions() {
        let dims = &conv.dims().unwrap();
        let [mut x, w, mut dy] = operands(dims, |count| random.reals(count));
        let [y, dx, _] = run(backend, dims, [&x, &w, &dy]);
        let (inputs, outputs) = (dims.input().per_image(), dims.output().per_image());
        let images = dims.n as usize;
        for image in (1..images).step_by(2) {
            x[image * inputs..][..inputs].fill(f32::NAN);
            dy[image * outputs..][..outputs].fill(f32::INFINITY);
        }
        let [among_nan, from_infinity, _] = run(backend, dims, [&x, &w, &dy]);
        for image in (0..images).step_by(2) {
            let (i, o) = (image * inputs, image * outputs);
            let same = bits(&y[o..o + outputs]) == bits(&among_nan[o..o + outputs]);
            assert!(same, "forward of {conv:?}, image {image}");
            let same = bits(&dx[i..i + inputs]) == bits(&from_infinity[i..i + inputs]);
            assert!(same, "backward data of {conv:?}, image {image}");
        }
    }
}

/// The bias is added to what is otherwise the result, and relu is last.
#[test]
fn bias_and_relu_come_last() {
    let mut random = Random(35);
    let backend = &CpuBackend::new(Some(2)).unwrap();
    for conv in convolutions() {
        let dims = &conv.dims().unwrap();
        let [x, w, dy] = operands(dims, |count| random.reals(count));
        let bias = random.reals(conv.filters[0]);
        let [plain, ..] = run(backend, dims, [&x, &w, &dy]);
        let (mut y, mut scratch) =
            (unwritten(backend, dims.output()), backend.scratch(&[*dims]).unwrap());
        let (x, w) = (tensor(backend, dims.input(), &x), weights(backend, dims.filter(), &w));
        let b = in_full(backend, Shape::vector(bias.len()), &bias);
        backend.conv_forward(&mut y, &x, &w, Some(&b), true, dims, &mut scratch).unwrap();
        let expected: Vec<f32> =
            plain.iter().zip(bias.iter().cycle()).map(|(y, b)| (y + b).max(0.0)).collect();
        assert!(values(backend, &y) == expected, "{conv:?}");
    }
}

/// Without the method sums of small integers are exact; with it they are not, or it was not used.
#[test]
fn exact_is_exact() {
    let mut random = Random(34);
    let exact = CpuBackend::new(Some(2)).unwrap().exact();
    let usual = CpuBackend::new(Some(2)).unwrap();
    for conv in convolutions() {
        let dims = &conv.dims().unwrap();
        let [x, w, dy] = operands(dims, |count| random.integers(count, 3));
        let found = run(&exact, dims, [&x, &w, &dy]);
        let other = run(&usual, dims, [&x, &w, &dy]);
        let [x, w, dy] = [&x, &w, &dy].map(|v| widen(v));
        let [filter, _] = twin::conv_filter(dims, &dy, &x);
        let expected = [twin::conv(dims, &x, &w, None), twin::conv_data(dims, &dy, &w), filter];
        for ((found, expected), other) in found.iter().zip(&expected).zip(other) {
            assert_exact(found, expected, &format!("{conv:?}"));
            assert_ne!(bits(found), bits(&other), "{conv:?} is not done by Winograd's method");
        }
    }
}
