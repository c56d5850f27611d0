//! Max pooling with one-byte switches, and unpooling as a gather.
//!
//! Unpooling asks every pixel of the input which of the windows that cover it point at it, and
//! adds their values in row-major order of the windows: no atomics, one order of sums.

use rayon::prelude::*;

use super::isa::{Isa, vectorized};
use crate::backend::NOT_POSITIVE;
use crate::shape::PoolDims;

/// `y`, `switches` = the largest value of each window and its place.
pub fn forward(isa: Isa, y: &mut [f32], switches: &mut [u8], x: &[f32], dims: &PoolDims) {
    let (p, row) = (dims.p as usize, dims.q as usize * dims.c as usize);
    let image_values = dims.input().per_image();
    let rows = y.par_chunks_mut(row).zip(switches.par_chunks_mut(row)).enumerate();
    rows.for_each(|(row, (y, switches))| {
        let x = &x[row / p * image_values..][..image_values];
        forward_row(isa, y, switches, x, row % p, dims);
    });
}

/// `dx` = every value of `dy` added where its switch points.
pub fn backward(
    isa: Isa,
    dx: &mut [f32],
    dy: &[f32],
    switches: &[u8],
    images: Option<&[u32]>,
    forward_mask: bool,
    dims: &PoolDims,
) {
    let (h, row) = (dims.h as usize, dims.w as usize * dims.c as usize);
    let image_values = dims.output().per_image();
    dx.par_chunks_mut(row).enumerate().for_each(|(row, dx)| {
        let sample = row / h;
        let image = images.map_or(sample, |images| images[sample] as usize);
        let dy = &dy[sample * image_values..][..image_values];
        let switches = &switches[image * image_values..][..image_values];
        backward_row(isa, dx, dy, switches, row % h, forward_mask, dims);
    });
}

vectorized! {
    /// Row `py` of the output of one image.
    pub fn forward_row(y: &mut [f32], switches: &mut [u8], x: &[f32], py: usize, dims: &PoolDims) {
        let [h, w, c] = [dims.h, dims.w, dims.c].map(|v| v as usize);
        let (window, stride, pad) = windows(dims);
        let (r0, r1, top) = clip(py, stride[0], pad[0], window[0], h);
        let outputs = y.chunks_exact_mut(c).zip(switches.chunks_exact_mut(c));
        for (px, (y, switch)) in outputs.enumerate() {
            let (s0, s1, left) = clip(px, stride[1], pad[1], window[1], w);
            for r in r0..r1 {
                for s in s0..s1 {
                    let line = (top + r as isize) as usize * w;
                    let x = &x[(line + (left + s as isize) as usize) * c..][..c];
                    let index = (r * window[1] + s) as u8;
                    if (r, s) == (r0, s0) {
                        y.copy_from_slice(x);
                        switch.fill(index);
                    } else {
                        take_larger(y, switch, x, index);
                    }
                }
            }
            for (switch, y) in switch.iter_mut().zip(y) {
                *switch = if *y <= 0.0 { NOT_POSITIVE } else { *switch };
            }
        }
    }

    /// Row `y` of the input of one image.
    pub fn backward_row(
        dx: &mut [f32],
        dy: &[f32],
        switches: &[u8],
        y: usize,
        forward_mask: bool,
        dims: &PoolDims,
    ) {
        let [c, p, q] = [dims.c, dims.p, dims.q].map(|v| v as usize);
        let (window, stride, pad) = windows(dims);
        dx.fill(0.0);
        for (x, dx) in dx.chunks_exact_mut(c).enumerate() {
            for py in covering(y + pad[0], window[0], stride[0], p) {
                for px in covering(x + pad[1], window[1], stride[1], q) {
                    let (r, s) = (y + pad[0] - py * stride[0], x + pad[1] - px * stride[1]);
                    let at = (py * q + px) * c;
                    let (dy, switches) = (&dy[at..at + c], &switches[at..at + c]);
                    let index = (r * window[1] + s) as u8;
                    // The first place of the window inside the image.
                    let first = r == pad[0].saturating_sub(py * stride[0])
                        && s == pad[1].saturating_sub(px * stride[1]);
                    let other = if first && !forward_mask { NOT_POSITIVE } else { index };
                    for ((dx, &dy), &switch) in dx.iter_mut().zip(dy).zip(switches) {
                        *dx += if switch == index || switch == other { dy } else { 0.0 };
                    }
                }
            }
        }
    }
}

/// Window, stride and padding along both axes.
#[inline(always)]
fn windows(dims: &PoolDims) -> ([usize; 2], [usize; 2], [usize; 2]) {
    let axes = |v: [u32; 2]| [v[0] as usize, v[1] as usize];
    (axes(dims.window), axes(dims.stride), axes(dims.pad))
}

/// The part of a window that lies in the input, along one axis: first index in the window, one
/// past the last, and the input's index of the window's index 0.
#[inline(always)]
fn clip(
    window: usize,
    stride: usize,
    pad: usize,
    kernel: usize,
    input: usize,
) -> (usize, usize, isize) {
    let origin = (window * stride) as isize - pad as isize;
    let first = (-origin).max(0) as usize;
    let end = (input as isize - origin).clamp(0, kernel as isize) as usize;
    (first, end, origin)
}

/// The windows, of `count`, that cover the padded index `i` along one axis.
#[inline(always)]
fn covering(i: usize, kernel: usize, stride: usize, count: usize) -> std::ops::Range<usize> {
    (i + 1).saturating_sub(kernel).div_ceil(stride)..(i / stride + 1).min(count)
}

/// Keeps the larger of `best` and `x`, the earlier of equals, a NaN for good.
#[inline(always)]
fn take_larger(best: &mut [f32], switch: &mut [u8], x: &[f32], index: u8) {
    for ((best, switch), &x) in best.iter_mut().zip(switch).zip(x) {
        let take = (x > *best || x.is_nan()) && !best.is_nan();
        *best = if take { x } else { *best };
        *switch = if take { index } else { *switch };
    }
}
