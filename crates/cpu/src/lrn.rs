//! Local response normalisation across channels, forward and backward.
//!
//! `s[c] = k + alpha * sum of x[j]^2 over the neighbours j of c`, `y = x s^-beta`;
//! `dx[c] = dy[c] s[c]^-beta - 2 alpha beta x[c] * sum over those j whose neighbour is c of
//! dy[j] x[j] s[j]^(-beta - 1)`. The neighbours of `c` are `c - size / 2 ..= c + (size - 1) / 2`.
//!
//! A pixel's channels are contiguous. A few pixels are worked on in passes over short buffers in
//! which zeros stand between one pixel's channels and the next one's, so that a sum over neighbours
//! is a sum of shifted vectors. Few, so that memory is read while there is arithmetic to do; not
//! one, because a shifted vector straddles two that were written in the pass before, and waits for
//! them if that was just now.

use std::ops::Range;

use rayon::prelude::*;

use crate::isa::{Isa, vectorized};
use crate::values::{Element, Values, ValuesMut, by_element};
use zfnet_core::operation::{Lrn, MAX_LRN_SIZE};

/// Values that are worked on together: a vector of AVX-512, two of AVX2.
const LANES: usize = 16;
/// Largest number of channels that lie in a buffer beside each other.
const BLOCK: usize = 512;
/// Values of a buffer: some pixels of a usual network, or a block of one with its surroundings.
const BUFFER: usize = 640;
const _: () = assert!(BLOCK + 2 * MAX_LRN_SIZE.next_multiple_of(LANES) <= BUFFER);
/// Values of a task.
const TASK: usize = 1 << 14;

type Buffer = [f32; BUFFER];
type Lanes = [f32; LANES];

/// `y = x s^-beta`, pixels of `c` channels.
pub fn forward(isa: Isa, y: ValuesMut<'_>, x: Values<'_>, c: usize, lrn: &Lrn) {
    by_element!(y; x => forward_tasks(isa, y, x, c, lrn));
}

fn forward_tasks<T: Element>(isa: Isa, y: &mut [T], x: &[T], c: usize, lrn: &Lrn) {
    let task = task(c);
    y.par_chunks_mut(task).zip(x.par_chunks(task)).for_each(|(y, x)| {
        forward_pixels(isa, y, x, c, lrn);
    });
}

/// `dx` for `dy` at `x`; sample `n` of `dy` uses image `images[n]` of `x`. An image has `len` values.
pub fn backward(
    isa: Isa,
    dx: ValuesMut<'_>,
    dy: Values<'_>,
    x: Values<'_>,
    images: Option<&[u32]>,
    len: usize,
    c: usize,
    lrn: &Lrn,
) {
    by_element!(dx; dy, x => backward_tasks(isa, dx, dy, x, images, len, c, lrn));
}

fn backward_tasks<T: Element>(
    isa: Isa,
    dx: &mut [T],
    dy: &[T],
    x: &[T],
    images: Option<&[u32]>,
    len: usize,
    c: usize,
    lrn: &Lrn,
) {
    let task = task(c);
    let samples = dx.par_chunks_mut(len).zip(dy.par_chunks(len)).enumerate();
    samples.for_each(|(n, (dx, dy))| {
        let image = images.map_or(n, |images| images[n] as usize);
        let x = &x[image * len..(image + 1) * len];
        let parts = dx.par_chunks_mut(task).zip(dy.par_chunks(task)).zip(x.par_chunks(task));
        parts.for_each(|((dx, dy), x)| backward_pixels(isa, dx, dy, x, c, lrn));
    });
}

/// Values of a task: whole pixels.
fn task(c: usize) -> usize {
    (TASK / c).max(1) * c
}

vectorized! {
    fn forward_pixels<T>(y: &mut [T], x: &[T], c: usize, lrn: &Lrn) {
        // A branch for the exponent that everybody uses, here and not in the loops.
        if lrn.beta == 0.75 {
            forward_runs::<true, T>(y, x, c, lrn);
        } else {
            forward_runs::<false, T>(y, x, c, lrn);
        }
    }

    fn backward_pixels<T>(dx: &mut [T], dy: &[T], x: &[T], c: usize, lrn: &Lrn) {
        if lrn.beta == 0.75 {
            backward_runs::<true, T>(dx, dy, x, c, lrn);
        } else {
            backward_runs::<false, T>(dx, dy, x, c, lrn);
        }
    }
}

#[inline(always)]
fn forward_runs<const USUAL: bool, T: Element>(y: &mut [T], x: &[T], c: usize, lrn: &Lrn) {
    let layout = Layout::new(c, lrn);
    let before = lrn.size as usize / 2;
    let mut squares = [0.0; BUFFER];
    for (y, x) in y.chunks_mut(layout.run * c).zip(x.chunks(layout.run * c)) {
        for block in layout.blocks() {
            fill_squares(&mut squares, x, &block, &layout, lrn);
            for (pixel, (y, x)) in y.chunks_exact_mut(c).zip(x.chunks_exact(c)).enumerate() {
                for group in groups(&block) {
                    let at = layout.place(pixel, &block, group.start);
                    let [power, _] = powers::<USUAL>(scales(&squares, at - before, lrn), lrn.beta);
                    store(&mut y[group.clone()], times(load(&x[group]), power));
                }
            }
        }
    }
}

#[inline(always)]
fn backward_runs<const USUAL: bool, T: Element>(
    dx: &mut [T],
    dy: &[T],
    x: &[T],
    c: usize,
    lrn: &Lrn,
) {
    let layout = Layout::new(c, lrn);
    let size = lrn.size as usize;
    let (before, after) = (size / 2, (size - 1) / 2);
    let factor = 2.0 * lrn.alpha * lrn.beta;
    let (mut squares, mut terms, mut direct) = ([0.0; BUFFER], [0.0; BUFFER], [0.0; BUFFER]);
    let run = layout.run * c;
    for ((dx, dy), x) in dx.chunks_mut(run).zip(dy.chunks(run)).zip(x.chunks(run)) {
        for block in layout.blocks() {
            fill_squares(&mut squares, x, &block, &layout, lrn);
            if c > BLOCK {
                terms.fill(0.0);
            }
            // The channels whose neighbour is one of the block's.
            let wide = block.start.saturating_sub(after)..(block.end + before).min(c);
            for (pixel, (dy, x)) in dy.chunks_exact(c).zip(x.chunks_exact(c)).enumerate() {
                for group in groups(&wide) {
                    let at = layout.place(pixel, &block, group.start);
                    let s = scales(&squares, at - before, lrn);
                    let [power, power_by_s] = powers::<USUAL>(s, lrn.beta);
                    let (dy, x) = (load(&dy[group.clone()]), load(&x[group.clone()]));
                    let here = at..at + group.len();
                    store(&mut terms[here.clone()], times(times(dy, x), power_by_s));
                    store(&mut direct[here], times(dy, power));
                }
            }
            for (pixel, (dx, x)) in dx.chunks_exact_mut(c).zip(x.chunks_exact(c)).enumerate() {
                for group in groups(&block) {
                    let at = layout.place(pixel, &block, group.start);
                    let (x, direct) = (load(&x[group.clone()]), load(&direct[at..at + LANES]));
                    let sum = sum_of_neighbours(&terms, at - after, size);
                    let mut indirect = times(each(x, |x| factor * x), sum);
                    for (value, direct) in indirect.iter_mut().zip(direct) {
                        *value = direct - *value;
                    }
                    store(&mut dx[group], indirect);
                }
            }
        }
    }
}

/// How pixels lie in a buffer: a margin, the channels of a pixel (or a block of them), a margin,
/// those of the next. Margins hold the neighbours outside the block, and zeros outside the pixel.
struct Layout {
    c: usize,
    margin: usize,
    /// Values from one pixel to the next.
    stride: usize,
    /// Pixels of a buffer.
    run: usize,
}

impl Layout {
    #[inline(always)]
    fn new(c: usize, lrn: &Lrn) -> Layout {
        let margin = (lrn.size as usize - 1).next_multiple_of(LANES);
        let stride = c.min(BLOCK).next_multiple_of(LANES) + margin;
        // A block's margins are not empty, and so not shared.
        let run = if c > BLOCK { 1 } else { (BUFFER - margin) / stride };
        Layout { c, margin, stride, run }
    }

    /// The channels in blocks.
    #[inline(always)]
    fn blocks(&self) -> impl Iterator<Item = Range<usize>> {
        let c = self.c;
        (0..c).step_by(BLOCK).map(move |start| start..(start + BLOCK).min(c))
    }

    /// Where a channel of a pixel lies, in a buffer for a block.
    #[inline(always)]
    fn place(&self, pixel: usize, block: &Range<usize>, channel: usize) -> usize {
        pixel * self.stride + self.margin + channel - block.start
    }
}

/// Squares of a block of each pixel's channels and of all that it can reach, forward and back.
#[inline(always)]
fn fill_squares<T: Element>(
    squares: &mut Buffer,
    x: &[T],
    block: &Range<usize>,
    layout: &Layout,
    lrn: &Lrn,
) {
    let reach = lrn.size as usize - 1;
    if layout.c > BLOCK {
        squares.fill(0.0);
    }
    let wide = block.start.saturating_sub(reach)..(block.end + reach).min(layout.c);
    for (pixel, x) in x.chunks_exact(layout.c).enumerate() {
        for group in groups(&wide) {
            let at = layout.place(pixel, block, group.start);
            let x = load(&x[group.clone()]);
            store(&mut squares[at..at + group.len()], times(x, x));
        }
    }
}

/// Cut into [`LANES`], the last perhaps into fewer.
#[inline(always)]
fn groups(channels: &Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let end = channels.end;
    channels.clone().step_by(LANES).map(move |start| start..(start + LANES).min(end))
}

/// `s` of the channels whose neighbourhoods begin at `at ..`.
#[inline(always)]
fn scales(squares: &Buffer, at: usize, lrn: &Lrn) -> Lanes {
    let sum = sum_of_neighbours(squares, at, lrn.size as usize);
    each(sum, |sum| lrn.k + lrn.alpha * sum)
}

/// The sums of `size` values from each of `at ..` on.
#[inline(always)]
fn sum_of_neighbours(values: &Buffer, at: usize, size: usize) -> Lanes {
    let mut sum = [0.0; LANES];
    for t in 0..size {
        let values = load(&values[at + t..at + t + LANES]);
        for (sum, value) in sum.iter_mut().zip(values) {
            *sum += value;
        }
    }
    sum
}

/// `s^-beta` and `s^(-beta - 1)`; without logarithms for the usual beta of 0.75.
#[inline(always)]
fn powers<const USUAL: bool>(s: Lanes, beta: f32) -> [Lanes; 2] {
    if USUAL {
        let root = each(s, |s| 1.0 / s.sqrt());
        let power = times(root, each(root, f32::sqrt));
        [power, times(power, times(root, root))]
    } else {
        let power = each(s, |s| s.powf(-beta));
        [power, times(power, each(s, |s| 1.0 / s))]
    }
}

#[inline(always)]
fn each(mut values: Lanes, of: impl Fn(f32) -> f32) -> Lanes {
    for value in &mut values {
        *value = of(*value);
    }
    values
}

#[inline(always)]
#[allow(clippy::needless_range_loop)] // zipped, backward takes a seventh longer
fn times(mut a: Lanes, b: Lanes) -> Lanes {
    for lane in 0..LANES {
        a[lane] *= b[lane];
    }
    a
}

/// Up to [`LANES`] values, then zeros.
#[inline(always)]
fn load<T: Element>(values: &[T]) -> Lanes {
    let stored = <[T; LANES]>::try_from(values).unwrap_or_else(|_| {
        let mut lanes = [T::zeroed(); LANES];
        lanes[..values.len()].copy_from_slice(values);
        lanes
    });
    stored.map(T::to_f32)
}

/// As many of the lanes as there is room for.
#[inline(always)]
fn store<T: Element>(values: &mut [T], lanes: Lanes) {
    let lanes = lanes.map(T::from_f32);
    if let Ok(values) = <&mut [T; LANES]>::try_from(&mut *values) {
        *values = lanes;
    } else {
        values.copy_from_slice(&lanes[..values.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nan_stays_and_what_is_huge_becomes_zero() {
        for isa in [Isa::detect(), Isa::at_most_avx2(), Isa::PORTABLE] {
            for beta in [0.75, 0.6] {
                let lrn = &Lrn { size: 5, k: 1e-40, alpha: 1e-4, beta };
                let mut x = [1.0; 40];
                (x[5], x[20], x[30]) = (f32::NAN, 1e30, 0.0);
                let (mut y, mut dx) = ([7.0; 40], [7.0; 40]);
                let (ones, x) = (Values::F32(&[1.0; 40]), Values::F32(&x));
                forward(isa, ValuesMut::F32(&mut y), x, 40, lrn);
                backward(isa, ValuesMut::F32(&mut dx), ones, x, None, 40, 40, lrn);
                for (i, (y, dx)) in y.iter().zip(&dx).enumerate() {
                    assert_eq!(y.is_nan(), i.abs_diff(5) <= 2, "{isa:?}, {beta}: {y} at {i}");
                    assert_eq!(dx.is_nan(), i.abs_diff(5) <= 4, "{isa:?}, {beta}: {dx} at {i}");
                    let zero = i.abs_diff(20) <= 2 || i == 30;
                    assert_eq!(*y == 0.0, zero, "{isa:?}, {beta}: {y} at {i}");
                }
            }
        }
    }
}
