//! Operations value by value: input, relu both ways, dropout, the update, the RMS limit, and values on
//! their way to tensors and from them.

use half::bf16;
use rayon::prelude::*;

use crate::isa::{Isa, vectorized};
use crate::values::{Element, Values, ValuesMut, by_element};
use zfnet_core::operation::{Crop, Dropout, InputDims, ReluRule, SgdConstants, StepState, luma};
use zfnet_core::philox::{dropout_numbers, keep_threshold};
use zfnet_core::shape::Shape;

/// Values of one task.
const CHUNK: usize = 1 << 14;
/// Pixels or values that are worked on in f32 before they are rounded together.
const BLOCK: usize = 64;

/// Cuts, mirrors and normalises: see `Backend::input`.
pub fn input(
    isa: Isa,
    x: ValuesMut<'_>,
    shape: Shape,
    pixels: &[u8],
    crops: &[Crop],
    mean: &[f32],
    inverse_std: &[f32],
    dims: &InputDims,
) {
    by_element!(x; => cut(isa, x, shape, pixels, crops, mean, inverse_std, dims));
}

fn cut<T: Element>(
    isa: Isa,
    x: &mut [T],
    shape: Shape,
    pixels: &[u8],
    crops: &[Crop],
    mean: &[f32],
    inverse_std: &[f32],
    dims: &InputDims,
) {
    let (rows, columns) = (dims.rows as usize, dims.columns as usize);
    assert!(matches!(shape.c, 1 | 3), "the input has one channel or three");
    x.par_chunks_mut(shape.per_image()).zip(crops).for_each(|(x, crop)| {
        let inside = crop.y as usize + shape.h <= rows && crop.x as usize + shape.w <= columns;
        assert!(inside, "{crop:?} of {shape} outside {rows}x{columns}");
        let image = &pixels[crop.image as usize * rows * columns * 3..];
        let of_channels = if shape.c == 1 { grey_image::<T> } else { input_image::<T> };
        of_channels(isa, x, shape.w, image, crop, mean, inverse_std, dims);
    });
}

/// `y = relu(x)`.
pub fn relu_forward(isa: Isa, y: ValuesMut<'_>, x: Values<'_>) {
    by_element!(y; x => relu_chunks(isa, y, x));
}

fn relu_chunks<T: Element>(isa: Isa, y: &mut [T], x: &[T]) {
    y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| {
        y.copy_from_slice(x);
        relu(isa, y);
    });
}

/// Lets `dy` down through a relu whose output was `y`; an image has `len` values.
pub fn relu_backward(
    isa: Isa,
    dy: ValuesMut<'_>,
    y: Values<'_>,
    images: Option<&[u32]>,
    len: usize,
    rule: ReluRule,
) {
    by_element!(dy; y => relu_samples(isa, dy, y, images, len, rule));
}

fn relu_samples<T: Element>(
    isa: Isa,
    dy: &mut [T],
    y: &[T],
    images: Option<&[u32]>,
    len: usize,
    rule: ReluRule,
) {
    dy.par_chunks_mut(len).enumerate().for_each(|(n, dy)| {
        let image = images.map_or(n, |images| images[n] as usize);
        let y = &y[image * len..(image + 1) * len];
        dy.par_chunks_mut(CHUNK).zip(y.par_chunks(CHUNK)).for_each(|(dy, y)| {
            if rule.forward_mask {
                mask(isa, dy, y);
            }
            if rule.relu_down {
                relu(isa, dy);
            }
        });
    });
}

/// `y = mask * x / (1 - rate)`.
pub fn dropout(
    isa: Isa,
    y: ValuesMut<'_>,
    x: Values<'_>,
    shape: Shape,
    dropout: &Dropout,
    state: &StepState,
) {
    by_element!(y; x => dropout_samples(isa, y, x, shape, dropout, state));
}

fn dropout_samples<T: Element>(
    isa: Isa,
    y: &mut [T],
    x: &[T],
    shape: Shape,
    dropout: &Dropout,
    state: &StepState,
) {
    let len = shape.per_image();
    y.par_chunks_mut(len).zip(x.par_chunks(len)).enumerate().for_each(|(n, (y, x))| {
        let state = StepState { first_sample: state.first_sample + n as u32, ..*state };
        if shape.h * shape.w == 1 {
            dropout_vector(isa, y, x, dropout, &state);
        } else {
            dropout_maps(y, x, shape, dropout, &state);
        }
    });
}

/// Dropout of one sample's maps: elements are numbered map by map.
fn dropout_maps<T: Element>(
    y: &mut [T],
    x: &[T],
    shape: Shape,
    dropout: &Dropout,
    state: &StepState,
) {
    let (threshold, scale) = (keep_threshold(dropout.rate), 1.0 / (1.0 - dropout.rate));
    for (i, (y, x)) in y.iter_mut().zip(x).enumerate() {
        let element = i % shape.c * (shape.h * shape.w) + i / shape.c;
        let group = (element / 4) as u32;
        let StepState { seed, step, first_sample, .. } = *state;
        let numbers = dropout_numbers(seed, dropout.layer, step, first_sample, group);
        let kept = u64::from(numbers[element % 4]) < threshold;
        *y = T::from_f32(if kept { x.to_f32() * scale } else { 0.0 });
    }
}

/// `y += x`.
pub fn add(isa: Isa, y: &mut [f32], x: &[f32]) {
    let chunks = y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK));
    chunks.for_each(|(y, x)| add_values(isa, y, x));
}

/// `v = momentum v + (g + weight_decay w); w -= learning_rate v`, and `copy = w`.
pub fn sgd_step(
    isa: Isa,
    w: &mut [f32],
    copy: Option<&mut [bf16]>,
    v: &mut [f32],
    g: &[f32],
    constants: &SgdConstants,
    rate: f32,
) {
    let chunks = w.par_chunks_mut(CHUNK).zip(v.par_chunks_mut(CHUNK)).zip(g.par_chunks(CHUNK));
    match copy {
        None => chunks.for_each(|((w, v), g)| update(isa, w, v, g, constants, rate)),
        Some(copy) => chunks.zip(copy.par_chunks_mut(CHUNK)).for_each(|(((w, v), g), copy)| {
            update(isa, w, v, g, constants, rate);
            narrow(isa, copy, w);
        }),
    }
}

/// Scales filters of `len` values whose root mean square is above `limit` down to it, and their `copy`.
pub fn limit_rms(isa: Isa, weight: &mut [f32], copy: Option<&mut [bf16]>, len: usize, limit: f32) {
    let filters = weight.par_chunks_mut(len);
    match copy {
        None => filters.for_each(|filter| {
            limit_filter(filter, limit);
        }),
        Some(copy) => filters.zip(copy.par_chunks_mut(len)).for_each(|(filter, copy)| {
            if limit_filter(filter, limit) {
                narrow(isa, copy, filter);
            }
        }),
    }
}

/// Whether the filter was scaled.
fn limit_filter(filter: &mut [f32], limit: f32) -> bool {
    let squares: f64 = filter.iter().map(|w| f64::from(*w) * f64::from(*w)).sum();
    let rms = (squares / filter.len() as f64).sqrt();
    let above = rms > f64::from(limit);
    if above {
        let factor = (f64::from(limit) / rms) as f32;
        filter.iter_mut().for_each(|w| *w *= factor);
    }
    above
}

/// Values into a tensor, rounded to what it stores.
pub fn store(isa: Isa, to: ValuesMut<'_>, from: &[f32]) {
    by_element!(to; => {
        let chunks = to.par_chunks_mut(CHUNK).zip(from.par_chunks(CHUNK));
        chunks.for_each(|(to, from)| narrow(isa, to, from));
    });
}

/// Values out of a tensor.
pub fn load(isa: Isa, to: &mut [f32], from: Values<'_>) {
    by_element!(; from => {
        let chunks = to.par_chunks_mut(CHUNK).zip(from.par_chunks(CHUNK));
        chunks.for_each(|(to, from)| widen(isa, to, from));
    });
}

vectorized! {
    /// One crop of rows of `w` pixels.
    fn input_image<T>(
        x: &mut [T],
        w: usize,
        image: &[u8],
        crop: &Crop,
        mean: &[f32],
        inverse_std: &[f32],
        dims: &InputDims,
    ) {
        let [r, g, b] = dims.order;
        let order = [r as usize, g as usize, b as usize];
        let mut buffer = [0.0; BLOCK * 3];
        for (i, x) in x.chunks_exact_mut(w * 3).enumerate() {
            let start = (crop.y as usize + i) * dims.columns as usize + crop.x as usize;
            for (block, x) in x.chunks_mut(BLOCK * 3).enumerate() {
                let values = T::sums(x, &mut buffer);
                for (j, value) in (block * BLOCK..).zip(values.chunks_exact_mut(3)) {
                    let at = start + if crop.mirror == 0 { j } else { w - 1 - j };
                    let pixel = &image[at * 3..][..3];
                    let mean = if mean.len() == 3 { mean } else { &mean[at * 3..][..3] };
                    for k in 0..3 {
                        let scaled = f32::from(pixel[order[k]]) * dims.scale;
                        value[k] = (scaled - mean[k]) * inverse_std[k];
                    }
                }
                if T::bits(x).is_some() {
                    round_into(x, &buffer);
                }
            }
        }
    }

    /// The same of one channel, luma.
    fn grey_image<T>(
        x: &mut [T],
        w: usize,
        image: &[u8],
        crop: &Crop,
        mean: &[f32],
        inverse_std: &[f32],
        dims: &InputDims,
    ) {
        for (i, x) in x.chunks_exact_mut(w).enumerate() {
            let start = (crop.y as usize + i) * dims.columns as usize + crop.x as usize;
            for (j, x) in x.iter_mut().enumerate() {
                let at = start + if crop.mirror == 0 { j } else { w - 1 - j };
                let pixel = [image[at * 3], image[at * 3 + 1], image[at * 3 + 2]];
                let value = f32::from(luma(pixel)) * dims.scale;
                let mean = mean[if mean.len() == 1 { 0 } else { at }];
                *x = T::from_f32((value - mean) * inverse_std[0]);
            }
        }
    }

    /// Rounds values to what is stored.
    pub(crate) fn narrow<T>(to: &mut [T], from: &[f32]) {
        round_into(to, from);
    }

    /// The same of pixels of `c` channels, `step` apart.
    pub(crate) fn spread<T>(to: &mut [T], step: usize, from: &[f32], c: usize) {
        for (to, from) in to.chunks_mut(step).zip(from.chunks_exact(c)) {
            round_into(&mut to[..c], from);
        }
    }

    /// The values that are stored.
    fn widen<T>(to: &mut [f32], from: &[T]) {
        for (to, from) in to.iter_mut().zip(from) {
            *to = from.to_f32();
        }
    }

    /// Below zero becomes zero; NaN stays.
    pub(crate) fn relu<T>(values: &mut [T]) {
        for value in values {
            *value = if value.to_f32() < 0.0 { T::zeroed() } else { *value };
        }
    }

    /// Lets through where `y` is positive.
    fn mask<T>(dy: &mut [T], y: &[T]) {
        for (dy, y) in dy.iter_mut().zip(y) {
            *dy = if y.to_f32() > 0.0 { *dy } else { T::zeroed() };
        }
    }

    /// Dropout of one sample's vector.
    fn dropout_vector<T>(y: &mut [T], x: &[T], dropout: &Dropout, state: &StepState) {
        let (threshold, scale) = (keep_threshold(dropout.rate), 1.0 / (1.0 - dropout.rate));
        for (block, (y, x)) in y.chunks_mut(BLOCK).zip(x.chunks(BLOCK)).enumerate() {
            let mut factors = [0.0; BLOCK];
            let groups = factors[..y.len().next_multiple_of(4)].chunks_exact_mut(4);
            for (group, factors) in ((block * BLOCK / 4) as u32..).zip(groups) {
                let StepState { seed, step, first_sample, .. } = *state;
                let numbers = dropout_numbers(seed, dropout.layer, step, first_sample, group);
                for (factor, number) in factors.iter_mut().zip(numbers) {
                    *factor = if u64::from(number) < threshold { scale } else { 0.0 };
                }
            }
            for ((y, x), factor) in y.iter_mut().zip(x).zip(factors) {
                *y = T::from_f32(if factor > 0.0 { x.to_f32() * factor } else { 0.0 });
            }
        }
    }

    fn add_values(y: &mut [f32], x: &[f32]) {
        y.iter_mut().zip(x).for_each(|(y, x)| *y += x);
    }

    fn update(w: &mut [f32], v: &mut [f32], g: &[f32], constants: &SgdConstants, rate: f32) {
        let SgdConstants { momentum, weight_decay: decay } = *constants;
        for ((w, v), g) in w.iter_mut().zip(v).zip(g) {
            *v = momentum * *v + (g + decay * *w);
            *w -= rate * *v;
        }
    }

    /// Adds the bias to rows of as many values, then relu.
    pub(crate) fn bias_relu(y: &mut [f32], bias: &[f32], relu: bool) {
        for y in y.chunks_exact_mut(bias.len()) {
            for (y, bias) in y.iter_mut().zip(bias) {
                let sum = *y + bias;
                *y = if relu && sum < 0.0 { 0.0 } else { sum };
            }
        }
    }

    /// `sums += ` every row of `rows`.
    pub(crate) fn add_rows<T>(sums: &mut [f32], rows: &[T]) {
        for row in rows.chunks_exact(sums.len()) {
            for (sum, value) in sums.iter_mut().zip(row) {
                *sum += value.to_f32();
            }
        }
    }
}

/// `to` = `from`, rounded to what is stored.
#[inline(always)]
fn round_into<T: Element>(to: &mut [T], from: &[f32]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = T::from_f32(*from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ISAS: [fn() -> Isa; 3] = [Isa::detect, Isa::at_most_avx2, || Isa::PORTABLE];
    /// More than a chunk, and no whole vectors.
    const LEN: usize = CHUNK + 19;

    fn values(seed: usize) -> Vec<f32> {
        let value = |i: usize| (i * 7919 % 1009) as f32 / 300.0 - 1.7;
        (seed..seed + LEN).map(value).collect()
    }

    fn rounded(values: &[f32]) -> Vec<bf16> {
        values.iter().map(|value| <bf16 as Element>::from_f32(*value)).collect()
    }

    #[test]
    fn values_come_back_rounded() {
        for isa in ISAS.map(|isa| isa()) {
            let values = values(0);
            let (mut stored, mut back) = (vec![bf16::ZERO; LEN], vec![0.0; LEN]);
            store(isa, ValuesMut::Bf16(&mut stored), &values);
            load(isa, &mut back, Values::Bf16(&stored));
            assert_eq!(stored, rounded(&values), "{isa:?}");
            assert_eq!(rounded(&back), stored, "{isa:?}");
            let mut same = vec![0.0; LEN];
            store(isa, ValuesMut::F32(&mut same), &values);
            load(isa, &mut back, Values::F32(&same));
            assert_eq!(back, values, "{isa:?}");
        }
    }

    #[test]
    fn copies_of_weights_follow_them() {
        for isa in ISAS.map(|isa| isa()) {
            let (mut w, mut v, g) = (values(0), values(5), values(11));
            let (mut alone, mut v_alone) = (w.clone(), v.clone());
            let mut copy = vec![bf16::ZERO; LEN];
            let constants = &SgdConstants { momentum: 0.9, weight_decay: 0.01 };
            sgd_step(isa, &mut w, Some(&mut copy), &mut v, &g, constants, 0.1);
            sgd_step(isa, &mut alone, None, &mut v_alone, &g, constants, 0.1);
            assert_eq!((&w, &v), (&alone, &v_alone), "{isa:?}");
            assert_eq!(copy, rounded(&w), "{isa:?}");
            // Every other filter is above the limit.
            let len = LEN.div_ceil(10);
            w.chunks_mut(len).step_by(2).for_each(|w| w.fill(3.0));
            store(isa, ValuesMut::Bf16(&mut copy), &w);
            limit_rms(isa, &mut w, Some(&mut copy), len, 2.5);
            assert!(w[..len].iter().all(|w| (w - 2.5).abs() < 1e-5), "{isa:?}: {}", w[0]);
            assert_eq!(w[len..2 * len], alone[len..2 * len], "{isa:?}");
            assert_eq!(copy, rounded(&w), "{isa:?}");
        }
    }

    #[test]
    fn dropout_and_relu_of_bf16_are_those_of_f32_rounded() {
        for isa in ISAS.map(|isa| isa()) {
            let x = rounded(&values(0));
            let mut wide = vec![0.0; LEN];
            load(isa, &mut wide, Values::Bf16(&x));
            let state = &StepState { seed: 3, step: 4, first_sample: 5, learning_rate: 0.0 };
            let by_half = &Dropout { rate: 0.3, layer: 2 };
            // A vector and, with as many values, maps.
            for shape in [Shape::vector(LEN), Shape::new(1, LEN, 1, 1)] {
                let (mut y, mut y_f32) = (vec![bf16::ZERO; LEN], vec![0.0; LEN]);
                dropout_samples(isa, &mut y, &x, shape, by_half, state);
                dropout_samples(isa, &mut y_f32, &wide, shape, by_half, state);
                assert_eq!(y, rounded(&y_f32), "{isa:?}, {shape}");
                let kept = y.iter().filter(|y| **y != bf16::ZERO).count();
                assert!(kept.abs_diff(LEN * 7 / 10) < LEN / 50, "{isa:?}: {kept} of {LEN}");
            }
            let (mut y, mut y_f32) = (vec![bf16::ZERO; LEN], vec![0.0; LEN]);
            relu_chunks(isa, &mut y, &x);
            relu_chunks(isa, &mut y_f32, &wide);
            assert_eq!(y, rounded(&y_f32), "{isa:?}");
            for (forward_mask, relu_down) in [(true, false), (false, true), (true, true)] {
                let rule = ReluRule { forward_mask, relu_down };
                let (mut dy, mut dy_f32) = (rounded(&values(7)), vec![0.0; LEN]);
                load(isa, &mut dy_f32, Values::Bf16(&dy));
                relu_samples(isa, &mut dy, &y, None, LEN, rule);
                relu_samples(isa, &mut dy_f32, &y_f32, None, LEN, rule);
                assert_eq!(dy, rounded(&dy_f32), "{isa:?}, {rule:?}");
            }
        }
    }

    /// Below zero becomes zero; a NaN goes through a relu, and through its mask nothing of one.
    #[test]
    fn relu_passes_nan_on() {
        fn passes<T: Element>(isa: Isa) {
            let mut values = vec![T::from_f32(-1.0); 40];
            (values[3], values[37]) = (T::from_f32(f32::NAN), T::from_f32(f32::NAN));
            relu(isa, &mut values);
            let mut dy = vec![T::from_f32(1.0); 40];
            mask(isa, &mut dy, &values);
            for (i, (value, dy)) in values.iter().zip(&dy).enumerate() {
                assert_eq!(value.to_f32().is_nan(), i == 3 || i == 37, "{isa:?} at {i}");
                assert!(value.to_f32().is_nan() || value.to_f32() == 0.0, "{isa:?} at {i}");
                assert_eq!(dy.to_f32(), 0.0, "{isa:?} at {i}");
            }
        }
        for isa in ISAS.map(|isa| isa()) {
            passes::<f32>(isa);
            passes::<bf16>(isa);
        }
    }
}
