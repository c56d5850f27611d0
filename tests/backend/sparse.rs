//! The way back through a convolution when most of what goes back is zero, which the CPU backend skips:
//! the same bits for any number of threads, and what becomes of values that are not finite.

use crate::common::{
    Conv, Random, assert_exact, bits, tensor, twin, unwritten, values, weights, widen,
};
use zfnet::Result;
use zfnet::backend::Backend;
use zfnet::backend::cpu::CpuBackend;
use zfnet::shape::ConvDims;

/// Many pixels an image and few, several images at a time, several blocks of filters, and both, in
/// groups.
fn convolutions() -> Vec<ConvDims> {
    let three = Conv { filters: [300, 3, 3], ..Conv::SIMPLE };
    let all = [
        Conv { n: 9, input: [3, 3, 40], ..three },
        Conv { n: 9, input: [7, 9, 20], ..three },
        Conv { n: 7, input: [12, 9, 6], pad: [1, 0, 2, 1], groups: 2, ..three },
        Conv { n: 3, input: [37, 39, 3], filters: [96, 7, 7], stride: [2, 2], ..Conv::SIMPLE },
        Conv { n: 9, input: [1, 1, 530], filters: [600, 1, 1], ..Conv::SIMPLE },
    ];
    all.map(|conv| conv.dims().unwrap()).to_vec()
}

fn backward_data(backend: &CpuBackend, dims: &ConvDims, dy: &[f32], weight: &[f32]) -> Vec<f32> {
    let mut scratch = backend.scratch(&[*dims]).unwrap();
    let weight = &weights(backend, dims.filter(), weight);
    let dy = &tensor(backend, dims.output(), dy);
    let mut dx = unwritten(backend, dims.input());
    backend.conv_backward_data(&mut dx, dy, weight, dims, &mut scratch).unwrap();
    values(backend, &dx)
}

/// As many values as wanted, of which one in eight is kept.
fn mostly_zero(random: &mut Random, mut values: Vec<f32>) -> Vec<f32> {
    for value in &mut values {
        *value = if random.below(8) == 0 { *value } else { 0.0 };
    }
    values
}

#[test]
fn threads_do_not_matter() {
    let mut random = Random(41);
    let kinds: [fn(Option<usize>) -> Result<CpuBackend>; 3] =
        [CpuBackend::new, CpuBackend::at_most_avx2, CpuBackend::portable];
    for dims in convolutions() {
        let dy = random.reals(dims.output().len());
        let dy = mostly_zero(&mut random, dy);
        let weight = random.reals(dims.filter().len());
        for kind in kinds {
            let run = |threads| {
                let backend = kind(Some(threads)).unwrap();
                bits(&backward_data(&backend, &dims, &dy, &weight))
            };
            let alone = run(1);
            assert!(alone == run(2) && alone == run(7), "{dims:?}");
        }
    }
}

#[test]
fn what_is_not_finite_goes_back_too() {
    let mut random = Random(42);
    for backend in [CpuBackend::new, CpuBackend::at_most_avx2, CpuBackend::portable] {
        let backend = backend(Some(2)).unwrap();
        for dims in convolutions() {
            let dy = random.integers(dims.output().len(), 3);
            let mut dy = mostly_zero(&mut random, dy);
            for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0] {
                let at = random.below(dy.len());
                dy[at] = value;
            }
            let weight = random.integers(dims.filter().len(), 3);
            let found = backward_data(&backend, &dims, &dy, &weight);
            let expected = twin::conv_data(&dims, &widen(&dy), &widen(&weight));
            assert_exact(&found, &expected, &format!("{dims:?}"));
        }
    }
}

/// A zero is not multiplied: it makes no NaN of a weight that is not finite.
#[test]
fn zeros_do_not_meet_weights() {
    let mut random = Random(43);
    let backend = CpuBackend::new(Some(2)).unwrap();
    for dims in convolutions() {
        let dy = random.integers(dims.output().len(), 3);
        let mut dy = mostly_zero(&mut random, dy);
        let mut weight = random.integers(dims.filter().len(), 3);
        let filter = random.below(dims.k as usize);
        dy.iter_mut().skip(filter).step_by(dims.k as usize).for_each(|value| *value = 0.0);
        let expected = twin::conv_data(&dims, &widen(&dy), &widen(&weight));
        let patch = dims.filter().per_image();
        weight[filter * patch..(filter + 1) * patch].fill(f32::INFINITY);
        let found = backward_data(&backend, &dims, &dy, &weight);
        assert_exact(&found, &expected, &format!("{dims:?}"));
    }
}
