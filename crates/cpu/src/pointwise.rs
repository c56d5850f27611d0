//! Operations value by value: input, relu both ways, dropout, the update, the RMS limit.

use rayon::prelude::*;

use crate::isa::{Isa, vectorized};
use zfnet_core::operation::{Crop, Dropout, InputDims, ReluRule, SgdConstants, StepState, luma};
use zfnet_core::philox::{dropout_numbers, keep_threshold};
use zfnet_core::shape::Shape;

/// Values of one task.
const CHUNK: usize = 1 << 14;

/// Cuts, mirrors and normalises: see `Backend::input`.
pub fn input(
    isa: Isa,
    x: &mut [f32],
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
        let of_channels = if shape.c == 1 { grey_image } else { input_image };
        of_channels(isa, x, shape.w, image, crop, mean, inverse_std, dims);
    });
}

/// `y = relu(x)`.
pub fn relu_forward(isa: Isa, y: &mut [f32], x: &[f32]) {
    y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| {
        y.copy_from_slice(x);
        relu(isa, y);
    });
}

/// Lets `dy` down through a relu whose output was `y`; an image has `len` values.
pub fn relu_backward(
    isa: Isa,
    dy: &mut [f32],
    y: &[f32],
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
    y: &mut [f32],
    x: &[f32],
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
fn dropout_maps(y: &mut [f32], x: &[f32], shape: Shape, dropout: &Dropout, state: &StepState) {
    let (threshold, scale) = (keep_threshold(dropout.rate), 1.0 / (1.0 - dropout.rate));
    for (i, (y, x)) in y.iter_mut().zip(x).enumerate() {
        let element = i % shape.c * (shape.h * shape.w) + i / shape.c;
        let group = (element / 4) as u32;
        let StepState { seed, step, first_sample, .. } = *state;
        let numbers = dropout_numbers(seed, dropout.layer, step, first_sample, group);
        let kept = u64::from(numbers[element % 4]) < threshold;
        *y = if kept { x * scale } else { 0.0 };
    }
}

/// `v = momentum v + (g + weight_decay w); w -= learning_rate v`.
pub fn sgd_step(
    isa: Isa,
    w: &mut [f32],
    v: &mut [f32],
    g: &[f32],
    constants: &SgdConstants,
    rate: f32,
) {
    let chunks = w.par_chunks_mut(CHUNK).zip(v.par_chunks_mut(CHUNK)).zip(g.par_chunks(CHUNK));
    chunks.for_each(|((w, v), g)| update(isa, w, v, g, constants, rate));
}

/// Scales filters of `len` values whose root mean square is above `limit` down to it.
pub fn limit_rms(weight: &mut [f32], len: usize, limit: f32) {
    weight.par_chunks_mut(len).for_each(|filter| {
        let squares: f64 = filter.iter().map(|w| f64::from(*w) * f64::from(*w)).sum();
        let rms = (squares / len as f64).sqrt();
        if rms > f64::from(limit) {
            let factor = (f64::from(limit) / rms) as f32;
            filter.iter_mut().for_each(|w| *w *= factor);
        }
    });
}

vectorized! {
    /// One crop of rows of `w` pixels.
    fn input_image(
        x: &mut [f32],
        w: usize,
        image: &[u8],
        crop: &Crop,
        mean: &[f32],
        inverse_std: &[f32],
        dims: &InputDims,
    ) {
        let [r, g, b] = dims.order;
        let order = [r as usize, g as usize, b as usize];
        for (i, x) in x.chunks_exact_mut(w * 3).enumerate() {
            let start = (crop.y as usize + i) * dims.columns as usize + crop.x as usize;
            for (j, x) in x.chunks_exact_mut(3).enumerate() {
                let at = start + if crop.mirror == 0 { j } else { w - 1 - j };
                let pixel = &image[at * 3..][..3];
                let mean = if mean.len() == 3 { mean } else { &mean[at * 3..][..3] };
                for k in 0..3 {
                    let value = f32::from(pixel[order[k]]) * dims.scale;
                    x[k] = (value - mean[k]) * inverse_std[k];
                }
            }
        }
    }

    /// The same of one channel, luma.
    fn grey_image(
        x: &mut [f32],
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
                *x = (value - mean[if mean.len() == 1 { 0 } else { at }]) * inverse_std[0];
            }
        }
    }

    /// Rounds values to bf16, to nearest, ties to even.
    pub fn round(values: &mut [f32]) {
        for value in values {
            *value = f32::from_bits(u32::from(bf16(*value)) << 16);
        }
    }

    /// Below zero becomes zero; NaN stays.
    pub fn relu(values: &mut [f32]) {
        for value in values {
            *value = if *value < 0.0 { 0.0 } else { *value };
        }
    }

    /// Lets through where `y` is positive.
    fn mask(dy: &mut [f32], y: &[f32]) {
        for (dy, y) in dy.iter_mut().zip(y) {
            *dy = if *y > 0.0 { *dy } else { 0.0 };
        }
    }

    /// Dropout of one sample's vector.
    fn dropout_vector(y: &mut [f32], x: &[f32], dropout: &Dropout, state: &StepState) {
        let (threshold, scale) = (keep_threshold(dropout.rate), 1.0 / (1.0 - dropout.rate));
        for (group, (y, x)) in (0u32..).zip(y.chunks_mut(4).zip(x.chunks(4))) {
            let StepState { seed, step, first_sample, .. } = *state;
            let numbers = dropout_numbers(seed, dropout.layer, step, first_sample, group);
            for ((y, x), number) in y.iter_mut().zip(x).zip(numbers) {
                *y = if u64::from(number) < threshold { x * scale } else { 0.0 };
            }
        }
    }

    fn update(w: &mut [f32], v: &mut [f32], g: &[f32], constants: &SgdConstants, rate: f32) {
        let SgdConstants { momentum, weight_decay: decay } = *constants;
        for ((w, v), g) in w.iter_mut().zip(v).zip(g) {
            *v = momentum * *v + (g + decay * *w);
            *w -= rate * *v;
        }
    }

    /// Adds the bias to rows of as many values, then relu.
    pub fn bias_relu(y: &mut [f32], bias: &[f32], relu: bool) {
        for y in y.chunks_exact_mut(bias.len()) {
            for (y, bias) in y.iter_mut().zip(bias) {
                let sum = *y + bias;
                *y = if relu && sum < 0.0 { 0.0 } else { sum };
            }
        }
    }

    /// `sums += ` every row of `rows`.
    pub fn add_rows(sums: &mut [f32], rows: &[f32]) {
        for row in rows.chunks_exact(sums.len()) {
            for (sum, value) in sums.iter_mut().zip(row) {
                *sum += value;
            }
        }
    }
}

/// Rounds to nearest, ties to even; NaN stays one.
#[inline(always)]
pub fn bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7FFF + (bits >> 16 & 1)) >> 16;
    let quiet = bits >> 16 | 0x40;
    (if value.is_nan() { quiet } else { rounded }) as u16
}
