//! From tensors to the words that tiles multiply ([`crate::gemm`]).
//!
//! *Along*: values that follow each other in memory follow each other in the depth. *Across*: they
//! are neighbouring rows or columns of one step of the depth. A panel holds the columns of one tile,
//! step by step.

use std::ops::Range;

use rayon::prelude::*;

use super::{Sizes, Visitor};
use crate::gemm::{STRIDE, Words};
use crate::isa::{Isa, vectorized};
use crate::pointwise::bf16;
use crate::simd::{MOST_LANES, transpose, vectors};

/// Values copied at a time.
const LANES: usize = 16;
/// Steps of the depth that a panel's columns are packed together for, to stay in a cache.
const STEPS: usize = 64;

/// Packs the columns `rows[j * stride..][..depth]`, `count` of them, into panels of `columns`.
pub fn panels_along(
    isa: Isa,
    panels: &mut [u32],
    words: Words,
    rows: &[f32],
    stride: usize,
    count: usize,
    depth: usize,
    columns: usize,
) {
    panels.par_chunks_mut(words.count(depth) * columns).enumerate().for_each(|(panel, out)| {
        let first = panel * columns;
        let wanted = columns.min(count - first);
        panel_along(isa, out, words, &rows[first * stride..], stride, wanted, depth, columns);
    });
}

/// Packs the columns `rows[j * stride..][..depth]`, `count` of them, into one panel of `columns`; the
/// others become zero.
pub fn panel_along(
    isa: Isa,
    out: &mut [u32],
    words: Words,
    rows: &[f32],
    stride: usize,
    count: usize,
    depth: usize,
    columns: usize,
) {
    match words {
        Words::F32 => {
            assert!((1..=columns).contains(&count) && columns * depth <= out.len());
            assert!((count - 1) * stride + depth <= rows.len());
            let out = bytemuck::cast_slice_mut(out);
            // SAFETY: the assertions say that all that is read and written lies in the slices, and
            // panels are two vectors wide.
            unsafe { transpose_rows(isa, out, rows, stride, count, depth, columns) };
        }
        Words::Bf16Pairs => {
            let steps = words.count(depth);
            for first in (0..steps).step_by(STEPS) {
                let last = (first + STEPS).min(steps);
                let out = &mut out[first * columns..last * columns];
                for j in 0..columns {
                    let row = if j < count { &rows[j * stride..][..depth] } else { &[] };
                    let out = out.iter_mut().skip(j).step_by(columns);
                    if row.is_empty() {
                        out.for_each(|out| *out = 0);
                    } else {
                        for (out, two) in out.zip(row[2 * first..].chunks(2)) {
                            *out = pair(two[0], two.get(1).copied().unwrap_or(0.0));
                        }
                    }
                }
            }
        }
    }
}

vectors! {
    /// `out[step * columns + j] = rows[j * stride + step]`, zero from row `count` on, squares of a vector
    /// at a time.
    ///
    /// # Safety
    /// There are `depth` values in each of the `count` rows, and places for `columns` of each in `out`; a
    /// multiple of the vectors' values.
    unsafe fn transpose_rows<S>(
        out: &mut [f32],
        rows: &[f32],
        stride: usize,
        count: usize,
        depth: usize,
        columns: usize,
    ) {
        let whole = depth - depth % S::LANES;
        for first in (0..whole).step_by(STEPS) {
            for j in (0..columns).step_by(S::LANES) {
                for step in (first..(first + STEPS).min(whole)).step_by(S::LANES) {
                    let mut square = [S::zero(); MOST_LANES];
                    for (i, row) in square.iter_mut().enumerate().take(S::LANES) {
                        if j + i < count {
                            *row = S::load(rows.as_ptr().add((j + i) * stride + step));
                        }
                    }
                    let square = transpose::<S>(square);
                    for (i, column) in square.into_iter().enumerate().take(S::LANES) {
                        S::store(out.as_mut_ptr().add((step + i) * columns + j), column);
                    }
                }
            }
        }
        for step in whole..depth {
            for (j, out) in out[step * columns..][..columns].iter_mut().enumerate() {
                *out = if j < count { rows[j * stride + step] } else { 0.0 };
            }
        }
    }
}

/// Packs the columns `matrix[k * stride + j]` of `depth` steps `k`, `count` of them, into panels of
/// `columns`.
pub fn panels_across(
    isa: Isa,
    panels: &mut [u32],
    words: Words,
    matrix: &[f32],
    stride: usize,
    count: usize,
    depth: usize,
    columns: usize,
) {
    panels.par_chunks_mut(words.count(depth) * columns).enumerate().for_each(|(panel, out)| {
        let first = panel * columns;
        let wanted = columns.min(count - first);
        pack_across(isa, out, columns, words, &matrix[first..], stride, depth, wanted);
    });
}

vectorized! {
    /// Packs `depth` rows of `wanted` values each, a step (or, of pairs, half a step) a row. Steps
    /// begin `out_stride` apart; what is left of them becomes zero up to the next tile's width.
    pub fn pack_across(
        out: &mut [u32],
        out_stride: usize,
        words: Words,
        matrix: &[f32],
        stride: usize,
        depth: usize,
        wanted: usize,
    ) {
        let steps = words.count(depth);
        for (step, out) in out.chunks_mut(out_stride).take(steps).enumerate() {
            let (values, rest) = out.split_at_mut(wanted);
            rest.fill(0);
            match words {
                Words::F32 => {
                    copy(bytemuck::cast_slice_mut(values), &matrix[step * stride..][..wanted]);
                }
                Words::Bf16Pairs => {
                    let first = &matrix[2 * step * stride..][..wanted];
                    if 2 * step + 1 < depth {
                        let second = &matrix[(2 * step + 1) * stride..][..wanted];
                        for ((out, first), second) in values.iter_mut().zip(first).zip(second) {
                            *out = pair(*first, *second);
                        }
                    } else {
                        for (out, first) in values.iter_mut().zip(first) {
                            *out = pair(*first, 0.0);
                        }
                    }
                }
            }
        }
    }

    /// Packs rows of `depth` values, along: [`STRIDE`] apart.
    pub fn pack_rows(out: &mut [u32], words: Words, rows: &[f32], stride: usize, depth: usize, count: usize) {
        for (row, out) in out.chunks_mut(STRIDE).take(count).enumerate() {
            along(words, out, 0, &rows[row * stride..][..depth]);
            end(words, out, depth);
        }
    }

    /// Packs values `depth` of the patches of some output pixels, along, a patch a row.
    pub fn pack_patches(
        out: &mut [u32],
        words: Words,
        x: &[f32],
        pixels: Range<usize>,
        group: usize,
        depth: Range<usize>,
        sizes: &Sizes,
    ) {
        let mut place = sizes.place(pixels.start);
        let line = sizes.s * sizes.c;
        let whole = sizes.groups == 1 && depth == (0..sizes.patch);
        for out in out.chunks_mut(STRIDE).take(pixels.len()) {
            match sizes.inside(place) {
                // The common case, and of a first layer's many pixels the only one that counts.
                Some(first) if whole && words == Words::F32 => {
                    let out: &mut [f32] = bytemuck::cast_slice_mut(out);
                    let rows = x[first..].chunks(sizes.w * sizes.c).take(sizes.r);
                    for (out, from) in out.chunks_exact_mut(line).zip(rows) {
                        copy(out, &from[..line]);
                    }
                }
                Some(first) if whole => {
                    let rows = x[first..].chunks(sizes.w * sizes.c).take(sizes.r);
                    for (r, from) in rows.enumerate() {
                        along(words, out, r * line, &from[..line]);
                    }
                }
                _ => sizes.runs(place, group, &depth, &mut Pack { out, words, x }),
            }
            end(words, out, depth.len());
            place = sizes.next(place);
        }
    }

    /// Adds values `depth` of the patches of some output pixels to where they lie in `dx`, which
    /// starts at `offset`. Patches begin `stride` apart.
    pub fn add_patches(
        dx: &mut [f32],
        offset: usize,
        patches: &[f32],
        stride: usize,
        pixels: Range<usize>,
        group: usize,
        depth: Range<usize>,
        sizes: &Sizes,
    ) {
        let mut place = sizes.place(pixels.start);
        for patch in patches.chunks(stride).take(pixels.len()) {
            sizes.runs(place, group, &depth, &mut Add { dx, offset, patch });
            place = sizes.next(place);
        }
    }
}

/// Packs the runs of a patch into a row.
struct Pack<'a> {
    out: &'a mut [u32],
    words: Words,
    x: &'a [f32],
}

impl Visitor for Pack<'_> {
    #[inline(always)]
    fn run(&mut self, at: usize, len: usize, input: Option<usize>) {
        match input {
            Some(input) => along(self.words, self.out, at, &self.x[input..input + len]),
            None => zeros(self.words, self.out, at, len),
        }
    }
}

/// Adds the runs of a patch to where they lie.
struct Add<'a> {
    dx: &'a mut [f32],
    offset: usize,
    patch: &'a [f32],
}

impl Visitor for Add<'_> {
    #[inline(always)]
    fn run(&mut self, at: usize, len: usize, input: Option<usize>) {
        let Some(input) = input else { return };
        let to = &mut self.dx[input - self.offset..][..len];
        for (sum, value) in to.iter_mut().zip(&self.patch[at..at + len]) {
            *sum += value;
        }
    }
}

/// Writes values from value `at` of a row on.
#[inline(always)]
fn along(words: Words, row: &mut [u32], at: usize, values: &[f32]) {
    match words {
        Words::F32 => copy(bytemuck::cast_slice_mut(&mut row[at..at + values.len()]), values),
        Words::Bf16Pairs => {
            let row: &mut [u16] = bytemuck::cast_slice_mut(row);
            for (out, value) in row[at..at + values.len()].iter_mut().zip(values) {
                *out = bf16(*value);
            }
        }
    }
}

#[inline(always)]
fn zeros(words: Words, row: &mut [u32], at: usize, len: usize) {
    match words {
        Words::F32 => row[at..at + len].fill(0),
        Words::Bf16Pairs => bytemuck::cast_slice_mut::<u32, u16>(row)[at..at + len].fill(0),
    }
}

/// Completes the last word of a row of `len` values.
#[inline(always)]
fn end(words: Words, row: &mut [u32], len: usize) {
    if words == Words::Bf16Pairs && len % 2 == 1 {
        zeros(words, row, len, 1);
    }
}

/// Copies; short runs as two vectors that overlap, since a call would take longer.
#[inline(always)]
fn copy(to: &mut [f32], from: &[f32]) {
    match (from.first_chunk::<LANES>(), from.last_chunk::<LANES>()) {
        (Some(first), Some(last)) if from.len() <= 2 * LANES => {
            let (to, end) = (&mut to[..from.len()], from.len() - LANES);
            to[..LANES].copy_from_slice(first);
            to[end..].copy_from_slice(last);
        }
        _ => to.copy_from_slice(from),
    }
}

/// Two values as one word.
#[inline(always)]
fn pair(first: f32, second: f32) -> u32 {
    u32::from(bf16(first)) | u32::from(bf16(second)) << 16
}
