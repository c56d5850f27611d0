//! Max pooling with one-byte switches, and unpooling as a gather.
//!
//! Unpooling asks every pixel of the input which of the windows that cover it point at it, and
//! adds their values in row-major order of the windows: no atomics, one order of sums.

use rayon::prelude::*;

use crate::isa::{Isa, vectorized};
use crate::values::{Element, Values, ValuesMut, by_element};
use zfnet_core::operation::NOT_POSITIVE;
use zfnet_core::shape::PoolDims;

/// Channels that are worked on together: a vector of AVX-512, two of AVX2.
const LANES: usize = 16;
/// How many windows ahead of their use pixels are asked for.
const AHEAD: usize = 4;
/// Most windows that cover a pixel: places of the largest one.
const MAX_WINDOW: usize = 255;

/// `y`, `switches` = the largest value of each window and its place.
pub fn forward(isa: Isa, y: ValuesMut<'_>, switches: &mut [u8], x: Values<'_>, dims: &PoolDims) {
    by_element!(y; x => forward_rows(isa, y, switches, x, dims));
}

fn forward_rows<T: Element>(isa: Isa, y: &mut [T], switches: &mut [u8], x: &[T], dims: &PoolDims) {
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
    dx: ValuesMut<'_>,
    dy: Values<'_>,
    switches: &[u8],
    images: Option<&[u32]>,
    forward_mask: bool,
    dims: &PoolDims,
) {
    by_element!(dx; dy => backward_rows(isa, dx, dy, switches, images, forward_mask, dims));
}

fn backward_rows<T: Element>(
    isa: Isa,
    dx: &mut [T],
    dy: &[T],
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
    pub(crate) fn forward_row<T>(
        y: &mut [T],
        switches: &mut [u8],
        x: &[T],
        py: usize,
        dims: &PoolDims,
    ) {
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
                *switch = if y.to_f32() <= forgotten { NOT_POSITIVE } else { *switch };
            }
        }
    }

    /// Row `y` of the input of one image.
    pub(crate) fn backward_row<T>(
        dx: &mut [T],
        dy: &[T],
        switches: &[u8],
        y: usize,
        forward_mask: bool,
        dims: &PoolDims,
    ) {
        let [c, p, q] = [dims.c, dims.p, dims.q].map(|v| v as usize);
        let (window, stride, pad) = windows(dims);
        let mut covers = [Cover { at: 0, index: 0, other: 0 }; MAX_WINDOW];
        for (x, dx) in dx.chunks_exact_mut(c).enumerate() {
            let mut count = 0;
            for py in covering(y + pad[0], window[0], stride[0], p) {
                for px in covering(x + pad[1], window[1], stride[1], q) {
                    let (r, s) = (y + pad[0] - py * stride[0], x + pad[1] - px * stride[1]);
                    let index = (r * window[1] + s) as u8;
                    // The first place of the window inside the image.
                    let first = r == pad[0].saturating_sub(py * stride[0])
                        && s == pad[1].saturating_sub(px * stride[1]);
                    let other = if first && !forward_mask { NOT_POSITIVE } else { index };
                    covers[count] = Cover { at: (py * q + px) * c, index, other };
                    count += 1;
                }
            }
            sum_covers(dx, dy, switches, &covers[..count]);
        }
    }
}

/// A window that covers a pixel.
#[derive(Clone, Copy)]
struct Cover {
    /// Where its channels begin.
    at: usize,
    /// The switches that point at the pixel.
    index: u8,
    other: u8,
}

impl Cover {
    /// `dy` if the switch points at the pixel.
    #[inline(always)]
    fn take<T: Element>(self, dy: T, switch: u8) -> f32 {
        if switch == self.index || switch == self.other { dy.to_f32() } else { 0.0 }
    }
}

/// `dx`, a pixel, of the windows that cover it. Sums stay in registers and are rounded once.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // lanes of several arrays
fn sum_covers<T: Element>(dx: &mut [T], dy: &[T], switches: &[u8], covers: &[Cover]) {
    let whole = dx.len() / LANES * LANES;
    for at in (0..whole).step_by(LANES) {
        let dx: &mut [T; LANES] = (&mut dx[at..at + LANES]).try_into().expect("lanes");
        let mut sum = [0.0; LANES];
        for cover in covers {
            let lanes = cover.at + at..cover.at + at + LANES;
            let dy: &[T; LANES] = dy[lanes.clone()].try_into().expect("lanes");
            let switches: &[u8; LANES] = switches[lanes].try_into().expect("lanes");
            let mut values = [0.0; LANES];
            for lane in 0..LANES {
                values[lane] = dy[lane].to_f32();
            }
            for lane in 0..LANES {
                sum[lane] += cover.take(values[lane], switches[lane]);
            }
        }
        for lane in 0..LANES {
            dx[lane] = T::from_f32(sum[lane]);
        }
    }
    for at in whole..dx.len() {
        let taken =
            covers.iter().map(|cover| cover.take(dy[cover.at + at], switches[cover.at + at]));
        dx[at] = T::from_f32(taken.fold(0.0, |sum, dy| sum + dy));
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
fn largest_of_nine<T: Element>(y: &mut [T], switches: &mut [u8], x: [&[T]; 9], forgotten: f32) {
    let whole = y.len() / LANES * LANES;
    for at in (0..whole).step_by(LANES) {
        let stored = x.map(|x| <[T; LANES]>::try_from(&x[at..at + LANES]).expect("lanes"));
        let x = stored.map(T::to_f32s);
        let y: &mut [T; LANES] = (&mut y[at..at + LANES]).try_into().expect("lanes");
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
            y[lane] = T::from_f32(best);
            switches[lane] = if best <= forgotten { NOT_POSITIVE } else { winner };
        }
        // Comparisons as above lose a NaN; a sum does not.
        if sum.iter().fold(false, |nan, sum| nan | sum.is_nan()) {
            for lane in 0..LANES {
                // Of copies, not of `x`, which would have to lie in memory for it.
                let (best, switch) = largest(stored.map(|x| x[lane].to_f32()), forgotten);
                (y[lane], switches[lane]) = (T::from_f32(best), switch);
            }
        }
    }
    for at in whole..y.len() {
        let (best, switch) = largest(x.map(|x| x[at].to_f32()), forgotten);
        (y[at], switches[at]) = (T::from_f32(best), switch);
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
fn prefetch<T: Element>(values: &[T], from: usize, len: usize) {
    #[cfg(target_arch = "x86_64")]
    for value in values.iter().skip(from).take(len).step_by(64 / size_of::<T>()) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a hint, which changes nothing; SSE is part of x86-64.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(value).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (values, from, len);
}

/// Keeps the larger of `best` and `x`, the earlier of equals, a NaN for good.
#[inline(always)]
fn take_larger<T: Element>(best: &mut [T], switch: &mut [u8], x: &[T], index: u8) {
    for ((best, switch), &x) in best.iter_mut().zip(switch).zip(x) {
        let (value, largest) = (x.to_f32(), best.to_f32());
        let take = (value > largest || value.is_nan()) && !largest.is_nan();
        *best = if take { x } else { *best };
        *switch = if take { index } else { *switch };
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    /// One image, with channels for a group of lanes and some more.
    fn dims(size: u32, window: u32, stride: u32, pad: u32, any_sign: u32) -> PoolDims {
        let outputs = (size + 2 * pad - window).div_ceil(stride) + 1;
        let ([h, w], [p, q]) = ([size; 2], [outputs; 2]);
        let (window, stride, pad) = ([window; 2], [stride; 2], [pad; 2]);
        PoolDims { n: 1, h, w, c: 19, p, q, window, stride, pad, any_sign }
    }

    /// Ties, both signs, both zeros, infinities and some NaN, all of them bf16.
    fn values(len: usize) -> Vec<f32> {
        const SOME: [f32; 8] = [-2.0, -0.0, 0.0, 1.5, -1.0, f32::INFINITY, f32::NEG_INFINITY, 0.25];
        let value = |i: usize| match i.wrapping_mul(0x9E37_79B9) >> 7 & 63 {
            63 => f32::NAN,
            other => SOME[other % 8] * if other < 48 { 1.0 } else { 0.5 },
        };
        (0..len).map(value).collect()
    }

    /// Winner and switch of one window, looked for as the rule says it.
    fn winner(x: &[f32], py: usize, px: usize, c: usize, dims: &PoolDims) -> (f32, u8) {
        let (window, stride, pad) = windows(dims);
        let mut best: Option<(f32, u8)> = None;
        for index in 0..window[0] * window[1] {
            let row = (py * stride[0] + index / window[1]).wrapping_sub(pad[0]);
            let column = (px * stride[1] + index % window[1]).wrapping_sub(pad[1]);
            if row < dims.h as usize && column < dims.w as usize {
                let value = x[(row * dims.w as usize + column) * dims.c as usize + c];
                let wins =
                    best.is_none_or(|(best, _)| value > best || value.is_nan() && !best.is_nan());
                best = if wins { Some((value, index as u8)) } else { best };
            }
        }
        let (value, index) = best.expect("a window lies in its input");
        (value, if dims.any_sign == 0 && value <= 0.0 { NOT_POSITIVE } else { index })
    }

    fn winners_are<T: Element>(isa: Isa, dims: &PoolDims) {
        let x = values(dims.input().len());
        let stored: Vec<T> = x.iter().map(|x| T::from_f32(*x)).collect();
        let len = dims.output().len();
        let (mut y, mut switches) = (vec![T::zeroed(); len], vec![77; len]);
        forward_rows(isa, &mut y, &mut switches, &stored, dims);
        for (at, (y, switch)) in y.iter().zip(switches).enumerate() {
            let [q, c] = [dims.q, dims.c].map(|v| v as usize);
            let (value, expected) = winner(&x, at / c / q, at / c % q, at % c, dims);
            let y = y.to_f32();
            let place = format!("{isa:?} {dims:?} at {at}: {y}, {value}");
            assert!(y.to_bits() == value.to_bits() || y.is_nan() && value.is_nan(), "{place}");
            assert_eq!(switch, expected, "{place}");
        }
    }

    #[test]
    fn winners_are_the_first_of_the_largest_and_nan() {
        for isa in [Isa::detect(), Isa::at_most_avx2(), Isa::PORTABLE] {
            for any_sign in [0, 1] {
                for (size, window, stride, pad) in [(12, 3, 2, 1), (9, 3, 2, 0), (7, 2, 1, 1)] {
                    let dims = dims(size, window, stride, pad, any_sign);
                    winners_are::<f32>(isa, &dims);
                    winners_are::<bf16>(isa, &dims);
                }
            }
        }
    }

    /// The middle of what four windows cover, all of which point there.
    fn middle<T: Element>(isa: Isa) -> Vec<f32> {
        let dims = dims(5, 3, 2, 0, 1);
        let c = dims.c as usize;
        let each = |values: [f32; 4]| values.into_iter().flat_map(|v| std::iter::repeat_n(v, c));
        let dy: Vec<T> = each([256.0, 1.0, 1.0, 1.0]).map(T::from_f32).collect();
        let switches: Vec<u8> = each([8.0, 6.0, 2.0, 0.0]).map(|switch| switch as u8).collect();
        let mut dx = vec![T::from_f32(7.0); dims.input().len()];
        backward_rows(isa, &mut dx, &dy, &switches, None, true, &dims);
        let (before, rest) = dx.split_at((2 * 5 + 2) * c);
        let (middle, after) = rest.split_at(c);
        assert!(before.iter().chain(after).all(|dx| dx.to_f32() == 0.0), "{isa:?}");
        middle.iter().map(|dx| dx.to_f32()).collect()
    }

    /// 257 is no bf16, nor is 259: added one by one they would all round to 256.
    #[test]
    fn unpooling_rounds_once() {
        for isa in [Isa::detect(), Isa::at_most_avx2(), Isa::PORTABLE] {
            assert_eq!(middle::<f32>(isa), [259.0; 19], "{isa:?}");
            assert_eq!(middle::<bf16>(isa), [260.0; 19], "{isa:?}");
        }
    }
}
