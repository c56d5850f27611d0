//! Max pooling with one-byte switches, and unpooling as a gather.
//!
//! Unpooling asks every pixel of the input which of the windows that cover it point at it, and
//! adds their values in row-major order of the windows: no atomics, one order of sums.

use rayon::prelude::*;

use crate::isa::{Isa, vectorized};
use zfnet_core::operation::NOT_POSITIVE;
use zfnet_core::shape::PoolDims;

/// Channels that are worked on together: a vector of AVX-512, two of AVX2.
const LANES: usize = 16;
/// How many windows ahead of their use pixels are asked for.
const AHEAD: usize = 4;

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
        let forgotten = forgotten(dims);
        let (r0, r1, top) = clip(py, stride[0], pad[0], window[0], h);
        let outputs = y.chunks_exact_mut(c).zip(switches.chunks_exact_mut(c));
        for (px, (y, switch)) in outputs.enumerate() {
            let (s0, s1, left) = clip(px, stride[1], pad[1], window[1], w);
            let place = |r: usize, s: usize| {
                let line = (top + r as isize) as usize * w;
                (line + (left + s as isize) as usize) * c
            };
            if window == [3, 3] && (r0, r1, s0, s1) == (0, 3, 0, 3) {
                for r in 0..3 {
                    prefetch(x, place(r, 0) + AHEAD * stride[1] * c, stride[1] * c);
                }
                let nine = std::array::from_fn(|i| &x[place(i / 3, i % 3)..][..c]);
                largest_of_nine(y, switch, nine, forgotten);
                continue;
            }
            for r in r0..r1 {
                for s in s0..s1 {
                    let x = &x[place(r, s)..][..c];
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
                *switch = if *y <= forgotten { NOT_POSITIVE } else { *switch };
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

/// The largest winner whose place is not kept: 0, or a NaN, which no winner is at most.
#[inline(always)]
fn forgotten(dims: &PoolDims) -> f32 {
    if dims.any_sign == 0 { 0.0 } else { f32::NAN }
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

/// Winners of whole windows of three by three, and their switches. Nine values meet in registers, so
/// that `y` is written once; but they come from three rows at a time, which the machine does not
/// foresee: see [`prefetch`].
#[inline(always)]
#[allow(clippy::needless_range_loop)] // lanes of several arrays
fn largest_of_nine(y: &mut [f32], switches: &mut [u8], x: [&[f32]; 9], forgotten: f32) {
    let whole = y.len() / LANES * LANES;
    for at in (0..whole).step_by(LANES) {
        let lanes = |x: &[f32]| <[f32; LANES]>::try_from(&x[at..at + LANES]).expect("lanes");
        let x = x.map(lanes);
        let y: &mut [f32; LANES] = (&mut y[at..at + LANES]).try_into().expect("lanes");
        let switches: &mut [u8; LANES] = (&mut switches[at..at + LANES]).try_into().expect("lanes");
        let mut sum = [0.0; LANES];
        for lane in 0..LANES {
            let mut best = x[0][lane];
            for x in &x {
                best = if x[lane] > best { x[lane] } else { best };
                sum[lane] += x[lane];
            }
            let mut winner = 0;
            for i in (0..9u8).rev() {
                winner = if x[usize::from(i)][lane] == best { i } else { winner };
            }
            y[lane] = best;
            switches[lane] = if best <= forgotten { NOT_POSITIVE } else { winner };
        }
        // Comparisons as above lose a NaN; a sum does not.
        if sum.iter().fold(false, |nan, sum| nan | sum.is_nan()) {
            for lane in 0..LANES {
                (y[lane], switches[lane]) = largest(x.map(|x| x[lane]), forgotten);
            }
        }
    }
    for at in whole..y.len() {
        (y[at], switches[at]) = largest(x.map(|x| x[at]), forgotten);
    }
}

/// One window's winner and its switch.
#[inline(always)]
fn largest(x: [f32; 9], forgotten: f32) -> (f32, u8) {
    let (mut best, mut switch) = (x[0], 0);
    for (index, x) in (0..).zip(x) {
        let (best, switch) = (std::slice::from_mut(&mut best), std::slice::from_mut(&mut switch));
        take_larger(best, switch, &[x], index);
    }
    (best, if best <= forgotten { NOT_POSITIVE } else { switch })
}

/// Asks for the lines of `values[from .. from + len]`, as far as there are any.
#[inline(always)]
fn prefetch(values: &[f32], from: usize, len: usize) {
    #[cfg(target_arch = "x86_64")]
    for value in values.iter().skip(from).take(len).step_by(64 / size_of::<f32>()) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a hint, which changes nothing; SSE is part of x86-64.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(value).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (values, from, len);
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
