//! Local response normalisation across channels, forward and backward.
//!
//! `s[c] = k + alpha * sum of x[j]^2 over the neighbours j of c`, `y = x s^-beta`;
//! `dx[c] = dy[c] s[c]^-beta - 2 alpha beta x[c] * sum over those j whose neighbour is c of
//! dy[j] x[j] s[j]^(-beta - 1)`. The neighbours of `c` are `c - size / 2 ..= c + (size - 1) / 2`.
//!
//! A pixel's channels are contiguous, so blocks of them are widened by what their neighbourhoods
//! reach and worked on as short arrays.

use rayon::prelude::*;

use super::isa::{Isa, vectorized};
use crate::backend::{Lrn, MAX_LRN_SIZE};

/// Channels of a block.
const BLOCK: usize = 64;
/// A block widened by two neighbourhoods on each side.
const WIDE: usize = BLOCK + 2 * (MAX_LRN_SIZE - 1);

/// `y = x s^-beta`, pixels of `c` channels.
pub fn forward(isa: Isa, y: &mut [f32], x: &[f32], c: usize, lrn: &Lrn) {
    let chunk = chunk(c);
    y.par_chunks_mut(chunk).zip(x.par_chunks(chunk)).for_each(|(y, x)| {
        forward_pixels(isa, y, x, c, lrn);
    });
}

/// `dx` for `dy` at `x`; sample `n` of `dy` uses image `images[n]` of `x`. An image has `len` values.
pub fn backward(
    isa: Isa,
    dx: &mut [f32],
    dy: &[f32],
    x: &[f32],
    images: Option<&[u32]>,
    len: usize,
    c: usize,
    lrn: &Lrn,
) {
    let chunk = chunk(c);
    let samples = dx.par_chunks_mut(len).zip(dy.par_chunks(len)).enumerate();
    samples.for_each(|(n, (dx, dy))| {
        let image = images.map_or(n, |images| images[n] as usize);
        let x = &x[image * len..(image + 1) * len];
        let parts = dx.par_chunks_mut(chunk).zip(dy.par_chunks(chunk)).zip(x.par_chunks(chunk));
        parts.for_each(|((dx, dy), x)| backward_pixels(isa, dx, dy, x, c, lrn));
    });
}

/// Values of a task: whole pixels.
fn chunk(c: usize) -> usize {
    (4096 / c).max(1) * c
}

vectorized! {
    fn forward_pixels(y: &mut [f32], x: &[f32], c: usize, lrn: &Lrn) {
        for (y, x) in y.chunks_exact_mut(c).zip(x.chunks_exact(c)) {
            for start in (0..c).step_by(BLOCK) {
                let len = BLOCK.min(c - start);
                let mut sums = [0.0; WIDE];
                scales(&mut sums, x, start as isize, len, lrn);
                let (y, x) = (&mut y[start..start + len], &x[start..start + len]);
                for ((y, x), s) in y.iter_mut().zip(x).zip(&sums) {
                    *y = x * inverse_power(*s, lrn.beta);
                }
            }
        }
    }

    fn backward_pixels(dx: &mut [f32], dy: &[f32], x: &[f32], c: usize, lrn: &Lrn) {
        let size = lrn.size as usize;
        let after = (size - 1) / 2;
        let factor = 2.0 * lrn.alpha * lrn.beta;
        let pixels = dx.chunks_exact_mut(c).zip(dy.chunks_exact(c)).zip(x.chunks_exact(c));
        for ((dx, dy), x) in pixels {
            for start in (0..c).step_by(BLOCK) {
                let len = BLOCK.min(c - start);
                // The channels j whose neighbour is one of the block's.
                let first = start as isize - after as isize;
                let wide = len + size - 1;
                let mut s = [0.0; WIDE];
                scales(&mut s, x, first, wide, lrn);
                let mut powers = [0.0; WIDE];
                for (power, s) in powers[..wide].iter_mut().zip(&s) {
                    *power = inverse_power(*s, lrn.beta);
                }
                let mut terms = [0.0; WIDE];
                let (skip, from, to) = inside(first, wide, c);
                let inputs = dy[from..to].iter().zip(&x[from..to]);
                let scales = powers[skip..].iter().zip(&s[skip..]);
                for ((term, (dy, x)), (power, s)) in terms[skip..].iter_mut().zip(inputs).zip(scales) {
                    *term = dy * x * power / s;
                }
                let mut sums = [0.0; BLOCK];
                for t in 0..size {
                    for (sum, term) in sums[..len].iter_mut().zip(&terms[t..]) {
                        *sum += term;
                    }
                }
                let inputs = dy[start..start + len].iter().zip(&x[start..start + len]);
                let outputs = dx[start..start + len].iter_mut().zip(inputs);
                for ((dx, (dy, x)), (power, sum)) in outputs.zip(powers[after..].iter().zip(&sums)) {
                    *dx = dy * power - factor * x * sum;
                }
            }
        }
    }
}

/// Which of the channels `first .. first + len` there are, of `c`: how many to skip, and the range.
#[inline(always)]
fn inside(first: isize, len: usize, c: usize) -> (usize, usize, usize) {
    let skip = (-first).max(0) as usize;
    let to = (first + len as isize).clamp(0, c as isize) as usize;
    let from = (first.max(0) as usize).min(to);
    (skip, from, to)
}

/// `s` of the channels `first .. first + len` of one pixel; outside the channels, `k`.
#[inline(always)]
fn scales(s: &mut [f32; WIDE], x: &[f32], first: isize, len: usize, lrn: &Lrn) {
    let (size, before) = (lrn.size as usize, lrn.size as isize / 2);
    let mut squares = [0.0f32; WIDE + MAX_LRN_SIZE];
    let (skip, from, to) = inside(first - before, len + size - 1, x.len());
    for (square, x) in squares[skip..].iter_mut().zip(&x[from..to]) {
        *square = x * x;
    }
    for t in 0..size {
        for (s, square) in s[..len].iter_mut().zip(&squares[t..]) {
            *s += square;
        }
    }
    for s in &mut s[..len] {
        *s = lrn.k + lrn.alpha * *s;
    }
}

/// `s^-beta`, without a logarithm for the exponent that everybody uses.
#[inline(always)]
fn inverse_power(s: f32, beta: f32) -> f32 {
    if beta == 0.75 {
        let root = s.sqrt();
        1.0 / (root * root.sqrt())
    } else {
        s.powf(-beta)
    }
}
