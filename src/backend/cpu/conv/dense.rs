//! Fully connected layers: few samples and many weights, so weights are what is read once, in the
//! order in which they lie, and samples are the columns of a tile:
//!
//! - forward: `y^T [K, N] = w [K, RSC] * x^T`,
//! - backward data: `dx^T [RSC, N] = w^T [RSC, K] * dy^T`,
//! - backward filter: `dw [K, RSC] = dy^T [K, N] * x`.

use bytemuck::{cast_slice, cast_slice_mut};
use rayon::prelude::*;

use super::pack::{pack_across, pack_rows, panels_across, panels_along};
use super::{Arithmetic, Epilogue, Room, Scratch, Sizes, with_room};
use crate::backend::cpu::gemm::{DEPTH, Layout, Operands, Out, STRIDE, block, tile};
use crate::backend::cpu::pointwise::add_rows;

/// Tiles, one under the other, of a forward task.
const FORWARD_TILES: usize = 4;
/// Steps of a tile's depth on the way back to the samples: rows of weights.
const DATA_DEPTH: usize = 96;
/// Tiles, one under the other, of a task of filter gradients.
const FILTER_TILES: usize = 9;
/// Panels of samples that stay in a cache while filters go by.
const FILTER_PANELS: usize = 64;

/// What any direction needs.
pub fn room(sizes: &Sizes, arithmetic: Arithmetic) -> Room {
    let (rows, columns) = block(arithmetic.isa);
    let samples = sizes.n.next_multiple_of(columns);
    let (k, patch, words) = (sizes.k, sizes.patch, arithmetic.words);
    let forward = words.count(patch) * samples + k * samples;
    let data = words.count(k) * samples + patch * samples;
    let filter = words.count(sizes.n) * patch.next_multiple_of(columns);
    Room {
        thread: (rows.max(DATA_DEPTH) * STRIDE).max(words.count(sizes.n) * STRIDE),
        shared: forward.max(data).max(filter),
    }
}

/// `y^T = w * x^T`.
pub fn forward(
    arithmetic: Arithmetic,
    y: &mut [f32],
    x: &[f32],
    weight: &[f32],
    epilogue: &Epilogue<'_>,
    sizes: &Sizes,
    scratch: &mut Scratch,
) {
    let Arithmetic { isa, words, .. } = arithmetic;
    let (rows, columns) = block(isa);
    let Sizes { n, k, patch, .. } = *sizes;
    let samples = n.next_multiple_of(columns);
    let panel = words.count(patch) * columns;
    let (packed, transposed) = scratch.shared.split_at_mut(samples * words.count(patch));
    let packed: &mut [u32] = cast_slice_mut(packed);
    panels_along(packed, words, x, patch, n, patch, columns);
    let (packed, threads) = (&*packed, &scratch.threads);
    let transposed = &mut transposed[..k * samples];
    let task = FORWARD_TILES * rows;
    transposed.par_chunks_mut(task * samples).enumerate().for_each(|(index, sums)| {
        with_room(threads, |room| {
            let a: &mut [u32] = cast_slice_mut(room);
            let count = sums.len() / samples;
            for depth in arithmetic.depth_blocks(patch) {
                for start in (0..count).step_by(rows) {
                    let rows = rows.min(count - start);
                    let weight = &weight[(index * task + start) * patch + depth.start..];
                    pack_rows(isa, a, words, weight, patch, depth.len(), rows);
                    for (j, b) in packed.chunks_exact(panel).enumerate() {
                        let b = &b[words.count(depth.start) * columns..];
                        let values = &mut sums[start * samples + j * columns..];
                        let accumulate = depth.start > 0;
                        let out = Out { values, stride: samples, rows, columns, accumulate };
                        let (layout, depth) = (Layout::Rows, words.count(depth.len()));
                        tile(isa, out, Operands { words, depth, a, layout, b, b_stride: columns });
                    }
                }
            }
        });
    });
    transpose(y, transposed, k, samples, |y| epilogue.run(isa, y));
}

/// `dx^T = w^T * dy^T`.
pub fn backward_data(
    arithmetic: Arithmetic,
    dx: &mut [f32],
    dy: &[f32],
    weight: &[f32],
    epilogue: &Epilogue<'_>,
    sizes: &Sizes,
    scratch: &mut Scratch,
) {
    let Arithmetic { isa, words, .. } = arithmetic;
    let (rows, columns) = block(isa);
    let Sizes { n, k, patch, .. } = *sizes;
    let samples = n.next_multiple_of(columns);
    let panel = words.count(k) * columns;
    let (packed, transposed) = scratch.shared.split_at_mut(samples * words.count(k));
    let packed: &mut [u32] = cast_slice_mut(packed);
    panels_along(packed, words, dy, k, n, k, columns);
    let (packed, threads) = (&*packed, &scratch.threads);
    let transposed = &mut transposed[..patch * samples];
    let task = DEPTH / rows * rows;
    transposed.par_chunks_mut(task * samples).enumerate().for_each(|(index, sums)| {
        with_room(threads, |room| {
            let a: &mut [u32] = cast_slice_mut(room);
            let count = sums.len() / samples;
            for first in (0..k).step_by(DATA_DEPTH) {
                let depth = DATA_DEPTH.min(k - first);
                let weight = &weight[first * patch + index * task..];
                pack_across(isa, a, STRIDE, words, weight, patch, depth, count);
                for start in (0..count).step_by(rows) {
                    for (j, b) in packed.chunks_exact(panel).enumerate() {
                        let b = &b[words.count(first) * columns..];
                        let values = &mut sums[start * samples + j * columns..];
                        let (rows, accumulate) = (rows.min(count - start), first > 0);
                        let out = Out { values, stride: samples, rows, columns, accumulate };
                        let (layout, depth) = (Layout::Columns, words.count(depth));
                        let a = &a[start..];
                        tile(isa, out, Operands { words, depth, a, layout, b, b_stride: columns });
                    }
                }
            }
        });
    });
    transpose(dx, transposed, patch, samples, |dx| epilogue.run(isa, dx));
}

/// Writes sums of `samples` columns as rows of `len` values, each group of which is then `finish`ed.
fn transpose(
    rows: &mut [f32],
    sums: &[f32],
    len: usize,
    samples: usize,
    finish: impl Fn(&mut [f32]) + Sync,
) {
    // Samples whose values lie in one line of the cache.
    const ROWS: usize = 16;
    rows.par_chunks_mut(ROWS * len).enumerate().for_each(|(index, rows)| {
        let count = rows.len() / len;
        for (i, sums) in sums.chunks_exact(samples).enumerate() {
            for (row, sum) in sums[index * ROWS..][..count].iter().enumerate() {
                rows[row * len + i] = *sum;
            }
        }
        finish(rows);
    });
}

/// `dw = dy^T * x`.
pub fn backward_filter(
    arithmetic: Arithmetic,
    dw: &mut [f32],
    db: &mut [f32],
    dy: &[f32],
    x: &[f32],
    accumulate: bool,
    sizes: &Sizes,
    scratch: &mut Scratch,
) {
    let Arithmetic { isa, words, .. } = arithmetic;
    let (rows, columns) = block(isa);
    let Sizes { n, k, patch, .. } = *sizes;
    let depth = words.count(n);
    let panel = depth * columns;
    let shared = &mut scratch.shared[..depth * patch.next_multiple_of(columns)];
    let packed: &mut [u32] = cast_slice_mut(shared);
    panels_across(isa, packed, words, x, patch, patch, n, columns);
    let (packed, threads) = (cast_slice::<u32, u32>(packed), &scratch.threads);
    let task = FILTER_TILES * rows;
    dw.par_chunks_mut(task * patch).enumerate().for_each(|(index, dw)| {
        with_room(threads, |room| {
            let a: &mut [u32] = cast_slice_mut(room);
            let count = dw.len() / patch;
            pack_across(isa, a, STRIDE, words, &dy[index * task..], k, n, count);
            for (group, packed) in packed.chunks(FILTER_PANELS * panel).enumerate() {
                for start in (0..count).step_by(rows) {
                    for (j, b) in packed.chunks_exact(panel).enumerate() {
                        let first = (group * FILTER_PANELS + j) * columns;
                        let values = &mut dw[start * patch + first..];
                        let (rows, columns) = (rows.min(count - start), columns.min(patch - first));
                        let out = Out { values, stride: patch, rows, columns, accumulate };
                        let (layout, a, b_stride) = (Layout::Columns, &a[start..], panel / depth);
                        tile(isa, out, Operands { words, depth, a, layout, b, b_stride });
                    }
                }
            }
        });
    });
    if !accumulate {
        db.fill(0.0);
    }
    add_rows(isa, db, dy);
}
