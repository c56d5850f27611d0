//! From tensors to the words that tiles multiply ([`crate::gemm`]).
//!
//! *Along*: values that follow each other in memory follow each other in the depth. *Across*: they
//! are neighbouring rows or columns of one step of the depth. A panel holds the columns of one tile,
//! step by step.

use std::ops::Range;

use bytemuck::{cast_slice, cast_slice_mut};
use rayon::prelude::*;

use super::{Sizes, Visitor};
use crate::gemm::{Layout, Products, STRIDE};
use crate::isa::{Isa, vectorized};
use crate::simd::{MOST_LANES, Simd, transpose, vectors};
use crate::values::Element;

/// Values copied at a time.
const LANES: usize = 16;
/// Steps of the depth that a panel's columns are packed together for, to stay in a cache.
const STEPS: usize = 64;

/// Packs the columns `rows[j * stride..][..depth]`, `count` of them, into panels of `columns`.
pub fn panels_along<T: Element>(
    isa: Isa,
    panels: &mut [u32],
    products: Products,
    rows: &[T],
    stride: usize,
    count: usize,
    depth: usize,
    columns: usize,
) {
    panels.par_chunks_mut(products.words(depth) * columns).enumerate().for_each(|(panel, out)| {
        let first = panel * columns;
        let wanted = columns.min(count - first);
        panel_along(isa, out, products, &rows[first * stride..], stride, wanted, depth, columns);
    });
}

/// Packs the columns `rows[j * stride..][..depth]`, `count` of them, into one panel of `columns` (a multiple
/// of a vector's values); the others become zero.
pub fn panel_along<T: Element>(
    isa: Isa,
    out: &mut [u32],
    products: Products,
    rows: &[T],
    stride: usize,
    count: usize,
    depth: usize,
    columns: usize,
) {
    let out = &mut out[..products.words(depth) * columns];
    assert!((1..=columns).contains(&count) && (count - 1) * stride + depth <= rows.len());
    let pairs = products != Products::F32;
    assert!(!pairs || T::bits(rows).is_some(), "pairs are of bf16");
    // SAFETY: the assertions say that all rows lie in the slice, and what is multiplied in pairs.
    unsafe { turn_rows(isa, out, pairs, rows, stride, count, depth, columns) };
}

vectors! {
    /// Word `step` of row `j` becomes `out[step * columns + j]`, zero beyond the depth and the rows.
    ///
    /// # Safety
    /// There are `count` rows of `depth` values, `stride` apart, of bf16 if words are pairs.
    unsafe fn turn_rows<S, T>(
        out: &mut [u32],
        pairs: bool,
        rows: &[T],
        stride: usize,
        count: usize,
        depth: usize,
        columns: usize,
    ) {
        if pairs {
            turn::<S, T, true>(out, rows, stride, count, depth, columns);
        } else {
            turn::<S, T, false>(out, rows, stride, count, depth, columns);
        }
    }
}

/// See [`turn_rows`]: squares of a vector at a time, in registers.
///
/// # Safety
/// See there.
#[inline(always)]
unsafe fn turn<S: Simd, T: Element, const PAIRS: bool>(
    out: &mut [u32],
    rows: &[T],
    stride: usize,
    count: usize,
    depth: usize,
    columns: usize,
) {
    let steps = out.len() / columns;
    let words = if PAIRS { depth / 2 } else { depth };
    let whole = words - words % S::LANES;
    assert!(whole <= steps && columns.is_multiple_of(S::LANES));
    for first in (0..whole).step_by(STEPS) {
        for j in (0..columns).step_by(S::LANES) {
            for step in (first..(first + STEPS).min(whole)).step_by(S::LANES) {
                // SAFETY: the caller's; whole vectors of words lie in the rows and in `out`.
                unsafe {
                    let mut square = [S::zero(); MOST_LANES];
                    for (i, row) in square.iter_mut().enumerate().take(S::LANES) {
                        if j + i < count {
                            let from = rows.as_ptr().add((j + i) * stride);
                            *row = if PAIRS {
                                S::load(from.cast::<f32>().add(step))
                            } else {
                                T::load::<S>(from.add(step))
                            };
                        }
                    }
                    let square = transpose::<S>(square);
                    for (i, column) in square.into_iter().enumerate().take(S::LANES) {
                        let out = out.as_mut_ptr().add((step + i) * columns + j);
                        S::store(out.cast(), column);
                    }
                }
            }
        }
    }
    for step in whole..steps {
        for (j, out) in out[step * columns..][..columns].iter_mut().enumerate() {
            let row = if j < count { &rows[j * stride..][..depth] } else { &[] };
            *out = if let (true, Some(bits)) = (PAIRS, T::bits(row)) {
                let value = |at: usize| bits.get(at).copied().unwrap_or(0);
                pair(value(2 * step), value(2 * step + 1))
            } else {
                row.get(step).map_or(0, |value| value.to_f32().to_bits())
            };
        }
    }
}

/// Packs columns of a matrix, `count` of them, into panels of `columns`. The matrix has `depth` rows,
/// `stride` apart, from each of these places on: those of the first place, then those of the next.
pub fn panels_across<T: Element>(
    isa: Isa,
    panels: &mut [u32],
    products: Products,
    matrix: &[T],
    places: &[usize],
    stride: usize,
    count: usize,
    depth: usize,
    columns: usize,
) {
    let steps = products.words(places.len() * depth);
    panels.par_chunks_mut(steps * columns).enumerate().for_each(|(panel, out)| {
        let first = panel * columns;
        let wanted = columns.min(count - first);
        // A word belongs to one place, so with pairs and several places the depth is even.
        let words = if products == Products::F32 { depth } else { depth.div_ceil(2) };
        for (out, place) in out.chunks_mut(words * columns).zip(places) {
            pack_across(
                isa,
                out,
                columns,
                products,
                &matrix[place + first..],
                stride,
                depth,
                wanted,
            );
        }
        let packed = places.len() * words * columns;
        out[packed..].fill(0);
    });
}

/// Packs `depth` rows of `wanted` values each as the rows of tiles (of which each is what lies across),
/// and says how they lie.
pub fn pack_transposed<T: Element>(
    isa: Isa,
    out: &mut [u32],
    products: Products,
    matrix: &[T],
    stride: usize,
    depth: usize,
    wanted: usize,
) -> Layout {
    if products == Products::Bf16Tiles {
        transpose_pairs(isa, out, products, matrix, stride, depth, wanted);
        return Layout::Rows;
    }
    pack_across(isa, out, STRIDE, products, matrix, stride, depth, wanted);
    Layout::Columns
}

vectorized! {
    /// Packs `depth` rows of `wanted` values each, a step (or, of pairs, half a step) a row. Steps
    /// begin `out_stride` apart; what is left of them becomes zero.
    pub fn pack_across<T>(
        out: &mut [u32],
        out_stride: usize,
        products: Products,
        matrix: &[T],
        stride: usize,
        depth: usize,
        wanted: usize,
    ) {
        let steps = products.words(depth);
        for (step, out) in out.chunks_mut(out_stride).take(steps).enumerate() {
            let (values, rest) = out.split_at_mut(wanted);
            rest.fill(0);
            let row = |row: usize| (row < depth).then(|| &matrix[row * stride..][..wanted]);
            if products == Products::F32 {
                along(products, values, 0, &matrix[step * stride..][..wanted]);
                continue;
            }
            match (row(2 * step).and_then(T::bits), row(2 * step + 1).and_then(T::bits)) {
                (Some(first), Some(second)) => {
                    for ((out, first), second) in values.iter_mut().zip(first).zip(second) {
                        *out = pair(*first, *second);
                    }
                }
                (Some(first), None) => {
                    for (out, first) in values.iter_mut().zip(first) {
                        *out = pair(*first, 0);
                    }
                }
                _ => values.fill(0),
            }
        }
    }

    /// Packs `depth` rows of `wanted` values each as `wanted` rows of pairs, [`STRIDE`] apart.
    fn transpose_pairs<T>(
        out: &mut [u32],
        products: Products,
        matrix: &[T],
        stride: usize,
        depth: usize,
        wanted: usize,
    ) {
        const BLOCK: usize = 16;
        let steps = products.words(depth);
        for first in (0..wanted).step_by(BLOCK) {
            let count = BLOCK.min(wanted - first);
            for start in (0..steps).step_by(BLOCK) {
                // As they are read, then turned.
                let mut square = [[0; BLOCK]; BLOCK];
                for (step, square) in square.iter_mut().enumerate() {
                    let row = 2 * (start + step);
                    let bits = |row: usize| {
                        let values = (row < depth).then(|| &matrix[row * stride + first..][..count]);
                        values.and_then(T::bits)
                    };
                    match (bits(row), bits(row + 1)) {
                        (Some(one), Some(other)) => {
                            for ((out, one), other) in square.iter_mut().zip(one).zip(other) {
                                *out = pair(*one, *other);
                            }
                        }
                        (Some(one), None) => {
                            for (out, one) in square.iter_mut().zip(one) {
                                *out = pair(*one, 0);
                            }
                        }
                        _ => {}
                    }
                }
                for j in 0..count {
                    let out = &mut out[(first + j) * STRIDE + start..][..BLOCK];
                    for (out, square) in out.iter_mut().zip(&square) {
                        *out = square[j];
                    }
                }
            }
        }
    }

    /// Packs rows of `depth` values, along: [`STRIDE`] apart.
    pub fn pack_rows<T>(
        out: &mut [u32],
        products: Products,
        rows: &[T],
        stride: usize,
        depth: usize,
        count: usize,
    ) {
        for (row, out) in out.chunks_mut(STRIDE).take(count).enumerate() {
            along(products, out, 0, &rows[row * stride..][..depth]);
            end(products, out, depth);
        }
    }

    /// Packs values `depth` of the patches of some output pixels, along, a patch a row.
    pub fn pack_patches<T>(
        out: &mut [u32],
        products: Products,
        x: &[T],
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
                Some(first) if whole => {
                    let rows = x[first..].chunks(sizes.w * sizes.c).take(sizes.r);
                    for (r, from) in rows.enumerate() {
                        along(products, out, r * line, &from[..line]);
                    }
                }
                _ => sizes.runs(place, group, &depth, &mut Pack { out, products, x }),
            }
            end(products, out, depth.len());
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
struct Pack<'a, T> {
    out: &'a mut [u32],
    products: Products,
    x: &'a [T],
}

impl<T: Element> Visitor for Pack<'_, T> {
    #[inline(always)]
    fn run(&mut self, at: usize, len: usize, input: Option<usize>) {
        match input {
            Some(input) => along(self.products, self.out, at, &self.x[input..input + len]),
            None => zeros(self.products, self.out, at, len),
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
        add(&mut self.dx[input - self.offset..][..len], &self.patch[at..at + len]);
    }
}

/// Writes values from value `at` of a row on.
#[inline(always)]
fn along<T: Element>(products: Products, row: &mut [u32], at: usize, values: &[T]) {
    match (products, T::bits(values)) {
        (Products::F32, None) => copy(&mut row[at..at + values.len()], cast_slice(values)),
        (Products::F32, Some(_)) => {
            for (out, value) in row[at..at + values.len()].iter_mut().zip(values) {
                *out = value.to_f32().to_bits();
            }
        }
        (_, Some(bits)) => {
            let row: &mut [u16] = cast_slice_mut(row);
            copy(&mut row[at..at + bits.len()], bits);
        }
        (_, None) => unreachable!("pairs are of stored bf16"),
    }
}

#[inline(always)]
fn zeros(products: Products, row: &mut [u32], at: usize, len: usize) {
    match products {
        Products::F32 => row[at..at + len].fill(0),
        _ => cast_slice_mut::<u32, u16>(row)[at..at + len].fill(0),
    }
}

/// Completes the last words of a row of `len` values.
#[inline(always)]
fn end(products: Products, row: &mut [u32], len: usize) {
    let all = 2 * products.words(len);
    if products != Products::F32 && all > len {
        zeros(products, row, len, all - len);
    }
}

/// Adds; short runs as [`copy`].
#[inline(always)]
fn add(to: &mut [f32], from: &[f32]) {
    match (from.first_chunk::<LANES>(), from.last_chunk::<LANES>()) {
        (Some(first), Some(last)) if from.len() <= 2 * LANES => {
            let (to, end) = (&mut to[..from.len()], from.len() - LANES);
            // Both sums before either is stored: where they overlap they are the same.
            let first: [f32; LANES] = std::array::from_fn(|i| to[i] + first[i]);
            let last: [f32; LANES] = std::array::from_fn(|i| to[end + i] + last[i]);
            to[..LANES].copy_from_slice(&first);
            to[end..].copy_from_slice(&last);
        }
        _ => {
            for (sum, value) in to.iter_mut().zip(from) {
                *sum += value;
            }
        }
    }
}

/// Copies; short runs as two vectors that overlap, since a call would take longer.
#[inline(always)]
fn copy<T: Copy>(to: &mut [T], from: &[T]) {
    match (from.first_chunk::<LANES>(), from.last_chunk::<LANES>()) {
        (Some(first), Some(last)) if from.len() <= 2 * LANES => {
            let (to, end) = (&mut to[..from.len()], from.len() - LANES);
            to[..LANES].copy_from_slice(first);
            to[end..].copy_from_slice(last);
        }
        _ => to.copy_from_slice(from),
    }
}

/// The bits of two bf16 as one word.
#[inline(always)]
fn pair(first: u16, second: u16) -> u32 {
    u32::from(first) | u32::from(second) << 16
}
