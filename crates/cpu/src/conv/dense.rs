//! Fully connected layers: few samples and many weights, so weights are what is read once, in the
//! order in which they lie, and samples are the columns of a tile:
//!
//! - forward: `y^T [K, N] = w [K, RSC] * x^T`; of few samples as dot products of rows as they lie, so
//!   that one takes no longer than its weights take to come;
//! - backward data: `dx^T [RSC, N] = w^T [RSC, K] * dy^T`,
//! - backward filter: `dw [K, RSC] = dy^T [K, N] * x`.

use bytemuck::{cast_slice, cast_slice_mut};
use rayon::prelude::*;

use super::pack::{pack_across, pack_rows, panels_across, panels_along};
use super::{Arithmetic, Epilogue, Scratch, ScratchSize, Sizes, with_scratch};
use crate::gemm::{Ahead, DEPTH, Layout, Operands, Out, STRIDE, Words, block, tile};
use crate::pointwise::add_rows;
use crate::simd::{MOST_LANES, Simd, vectors};

/// Most samples for which dot products are faster than tiles.
const FEW_SAMPLES: usize = 16;
/// Rows of weights of a task of dot products.
const DOT_TASK: usize = 16;
/// Values of samples that are multiplied with some rows before the next rows: they fit the second cache.
const DOT_VALUES: usize = 1 << 16;
/// Rows that are multiplied with as many others at a time.
const DOTS: usize = 4;
/// Tiles, one under the other, of a forward task.
const FORWARD_TILES: usize = 4;
/// Values of a row of weights in a task on the way back to few samples: their sums stay in the first cache.
const RUN: usize = 512;
/// Rows of weights that are added to these sums at a time.
const ROWS: usize = 4;
/// Steps of a tile's depth on the way back to the samples: rows of weights.
const DATA_DEPTH: usize = 96;
/// Tiles, one under the other, of a task of filter gradients.
const FILTER_TILES: usize = 9;
/// Panels of samples that stay in a cache while filters go by.
const FILTER_PANELS: usize = 64;

/// What any direction needs.
pub fn scratch_size(sizes: &Sizes, arithmetic: Arithmetic) -> ScratchSize {
    let (rows, columns) = block(arithmetic.isa);
    let samples = sizes.n.next_multiple_of(columns);
    let (k, patch, words) = (sizes.k, sizes.patch, arithmetic.words);
    let forward = words.count(patch) * samples + k * samples;
    let data = words.count(k) * samples + patch * samples;
    let filter = words.count(sizes.n) * patch.next_multiple_of(columns);
    ScratchSize {
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
    if sizes.n > FEW_SAMPLES || arithmetic.words != Words::F32 {
        return forward_by_tiles(arithmetic, y, x, weight, epilogue, sizes, scratch);
    }
    let Arithmetic { isa, .. } = arithmetic;
    let Sizes { n, k, patch, .. } = *sizes;
    let transposed = &mut scratch.shared[..k * n];
    let tasks = transposed.par_chunks_mut(DOT_TASK * n).zip(weight.par_chunks(DOT_TASK * patch));
    tasks.for_each(|(sums, weight)| {
        // SAFETY: rows of `weight` and `x` have `patch` values, and there is a sum for each pair.
        unsafe { dots(isa, sums, weight, x, n, patch) };
    });
    transpose(y, transposed, k, n, |y| epilogue.run(isa, y));
}

vectors! {
    /// `sums[i * n + j]` = the product of row `i` of `weight` and row `j` of `x`.
    ///
    /// # Safety
    /// Rows have `depth` values, and there are `n` of `x` and as many of `weight` as of `sums`.
    unsafe fn dots<S>(sums: &mut [f32], weight: &[f32], x: &[f32], n: usize, depth: usize) {
        let count = sums.len() / n;
        sums.fill(0.0);
        let most = DOT_VALUES / n;
        for start in (0..depth).step_by(most) {
            let len = most.min(depth - start);
            let (weight, x) = (weight.as_ptr().add(start), x.as_ptr().add(start));
            for i in (0..count).step_by(DOTS) {
                for j in (0..n).step_by(DOTS) {
                    let sums = &mut sums[i * n + j..];
                    let (weight, x) = (weight.add(i * depth), x.add(j * depth));
                    if count - i >= DOTS && n - j >= DOTS {
                        add_dots::<S, DOTS, DOTS>(sums, n, weight, x, depth, len);
                    } else if count - i >= DOTS {
                        for j in 0..n - j {
                            let x = x.add(j * depth);
                            add_dots::<S, DOTS, 1>(&mut sums[j..], n, weight, x, depth, len);
                        }
                    } else {
                        for i in 0..count - i {
                            for j in 0..DOTS.min(n - j) {
                                let (weight, x) = (weight.add(i * depth), x.add(j * depth));
                                let sums = &mut sums[i * n + j..];
                                add_dots::<S, 1, 1>(sums, n, weight, x, depth, len);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Adds the products of `M` rows with `N` others, of `len` of their values, to `sums[i * n + j]`.
#[inline(always)]
unsafe fn add_dots<S: Simd, const M: usize, const N: usize>(
    sums: &mut [f32],
    n: usize,
    weight: *const f32,
    x: *const f32,
    stride: usize,
    len: usize,
) {
    // SAFETY: the caller's.
    unsafe {
        let mut lanes = [[S::zero(); N]; M];
        let whole = len - len % S::LANES;
        for at in (0..whole).step_by(S::LANES) {
            let mut columns = [S::zero(); N];
            for (j, column) in columns.iter_mut().enumerate() {
                *column = S::load(x.add(j * stride + at));
            }
            for (i, lanes) in lanes.iter_mut().enumerate() {
                let row = S::load(weight.add(i * stride + at));
                for (lane, column) in lanes.iter_mut().zip(columns) {
                    *lane = S::multiply_add(row, column, *lane);
                }
            }
        }
        for (i, lanes) in lanes.into_iter().enumerate() {
            for (j, lanes) in lanes.into_iter().enumerate() {
                let mut values = [0.0; MOST_LANES];
                S::store(values.as_mut_ptr(), lanes);
                let mut sum: f32 = values.iter().sum();
                for at in whole..len {
                    sum += *weight.add(i * stride + at) * *x.add(j * stride + at);
                }
                sums[i * n + j] += sum;
            }
        }
    }
}

/// The same by tiles.
fn forward_by_tiles(
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
    panels_along(isa, packed, words, x, patch, n, patch, columns);
    let (packed, threads) = (&*packed, &scratch.threads);
    let transposed = &mut transposed[..k * samples];
    let task = FORWARD_TILES * rows;
    transposed.par_chunks_mut(task * samples).enumerate().for_each(|(index, sums)| {
        with_scratch(threads, |buffer| {
            let a: &mut [u32] = cast_slice_mut(buffer);
            let count = sums.len() / samples;
            for depth in arithmetic.depth_blocks(patch) {
                for start in (0..count).step_by(rows) {
                    let rows = rows.min(count - start);
                    let weight = &weight[index * task * patch..];
                    let here = &weight[start * patch + depth.start..];
                    pack_rows(isa, a, words, here, patch, depth.len(), rows);
                    let below = start + rows < count;
                    let next = if below { (start + rows) * patch + depth.start } else { depth.end };
                    // Of 16 rows of memory a tile packs 14.
                    let ahead = Ahead { values: &weight[next..], stride: patch, rows: 16 };
                    for (j, b) in packed.chunks_exact(panel).enumerate() {
                        let b = &b[words.count(depth.start) * columns..];
                        let values = &mut sums[start * samples + j * columns..];
                        let accumulate = depth.start > 0;
                        let out = Out { values, stride: samples, rows, columns, accumulate };
                        let (layout, depth) = (Layout::Rows, words.count(depth.len()));
                        let (b_stride, ahead) = (columns, (j == 0).then_some(ahead));
                        tile(isa, out, Operands { words, depth, a, layout, b, b_stride, ahead });
                    }
                }
            }
        });
    });
    transpose(y, transposed, k, samples, |y| epilogue.run(isa, y));
}

/// `dx = dy * w`.
pub fn backward_data(
    arithmetic: Arithmetic,
    dx: &mut [f32],
    dy: &[f32],
    weight: &[f32],
    epilogue: &Epilogue<'_>,
    sizes: &Sizes,
    scratch: &mut Scratch,
) {
    if sizes.n > FEW_SAMPLES || arithmetic.words != Words::F32 {
        return backward_data_by_tiles(arithmetic, dx, dy, weight, epilogue, sizes, scratch);
    }
    let Arithmetic { isa, .. } = arithmetic;
    let Sizes { n, k, patch, .. } = *sizes;
    // For each task a run of every sample.
    let sums = &mut scratch.shared[..n * patch];
    sums.par_chunks_mut(n * RUN).with_max_len(1).enumerate().for_each(|(task, sums)| {
        let weight = &weight[task * RUN..];
        // SAFETY: `k` rows of `weight` have as many values as a sample's sums, and there are `n * k` in
        // `dy`.
        unsafe { weighted_rows(isa, sums, weight, dy, n, k, patch) };
    });
    let sums = &*sums;
    dx.par_chunks_mut(patch).enumerate().for_each(|(sample, dx)| {
        for (dx, sums) in dx.chunks_mut(RUN).zip(sums.chunks(n * RUN)) {
            dx.copy_from_slice(&sums[sample * dx.len()..][..dx.len()]);
        }
        epilogue.run(isa, dx);
    });
}

vectors! {
    /// Row `j` of `sums` = the sum of all `k` rows `i` of `weight` by `dy[j * k + i]`.
    ///
    /// # Safety
    /// Rows of `weight` begin `stride` apart and have as many values as the `n` of `sums`; there are
    /// `n * k` values in `dy`.
    unsafe fn weighted_rows<S>(
        sums: &mut [f32],
        weight: &[f32],
        dy: &[f32],
        n: usize,
        k: usize,
        stride: usize,
    ) {
        let len = sums.len() / n;
        sums.fill(0.0);
        for i in (0..k).step_by(ROWS) {
            let (weight, dy) = (weight.as_ptr().add(i * stride), dy.as_ptr().add(i));
            for j in (0..n).step_by(DOTS) {
                let (sums, dy) = (sums.as_mut_ptr().add(j * len), dy.add(j * k));
                if k - i < ROWS {
                    for j in 0..DOTS.min(n - j) {
                        for i in 0..k - i {
                            let (weight, dy) = (weight.add(i * stride), dy.add(j * k + i));
                            add_weighted::<S, 1, 1>(sums.add(j * len), weight, dy, len, k, stride);
                        }
                    }
                    continue;
                }
                match n - j {
                    1 => add_weighted::<S, 1, ROWS>(sums, weight, dy, len, k, stride),
                    2 => add_weighted::<S, 2, ROWS>(sums, weight, dy, len, k, stride),
                    3 => add_weighted::<S, 3, ROWS>(sums, weight, dy, len, k, stride),
                    _ => add_weighted::<S, DOTS, ROWS>(sums, weight, dy, len, k, stride),
                }
            }
        }
    }
}

/// Adds `M` rows of `len` values, each by its value of `dy`, to the sums of `N` samples.
#[inline(always)]
unsafe fn add_weighted<S: Simd, const N: usize, const M: usize>(
    sums: *mut f32,
    weight: *const f32,
    dy: *const f32,
    len: usize,
    k: usize,
    stride: usize,
) {
    // SAFETY: the caller's; what is prefetched is not read.
    unsafe {
        let mut factors = [[S::zero(); M]; N];
        for (j, factors) in factors.iter_mut().enumerate() {
            for (i, factor) in factors.iter_mut().enumerate() {
                *factor = S::splat(*dy.add(j * k + i));
            }
        }
        let whole = len - len % S::LANES;
        for at in (0..whole).step_by(S::LANES) {
            let mut rows = [S::zero(); M];
            for (i, row) in rows.iter_mut().enumerate() {
                *row = S::load(weight.add(i * stride + at));
                S::prefetch(weight.wrapping_add((i + M) * stride + at));
            }
            for (j, factors) in factors.iter().enumerate() {
                let mut sum = S::load(sums.add(j * len + at));
                for (row, factor) in rows.iter().zip(factors) {
                    sum = S::multiply_add(*row, *factor, sum);
                }
                S::store(sums.add(j * len + at), sum);
            }
        }
        for at in whole..len {
            for j in 0..N {
                let sum = &mut *sums.add(j * len + at);
                for i in 0..M {
                    *sum += *weight.add(i * stride + at) * *dy.add(j * k + i);
                }
            }
        }
    }
}

/// The same by tiles: `dx^T = w^T * dy^T`.
fn backward_data_by_tiles(
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
    panels_along(isa, packed, words, dy, k, n, k, columns);
    let (packed, threads) = (&*packed, &scratch.threads);
    let transposed = &mut transposed[..patch * samples];
    let task = DEPTH / rows * rows;
    transposed.par_chunks_mut(task * samples).enumerate().for_each(|(index, sums)| {
        with_scratch(threads, |buffer| {
            let a: &mut [u32] = cast_slice_mut(buffer);
            let count = sums.len() / samples;
            for first in (0..k).step_by(DATA_DEPTH) {
                let depth = DATA_DEPTH.min(k - first);
                let weight = &weight[first * patch + index * task..];
                pack_across(isa, a, STRIDE, words, weight, patch, depth, count);
                let next = weight.get(DATA_DEPTH * patch..).unwrap_or(&[]);
                for start in (0..count).step_by(rows) {
                    let values = next.get(start..).unwrap_or(&[]);
                    let ahead =
                        Ahead { values, stride: patch, rows: DATA_DEPTH.next_power_of_two() };
                    for (j, b) in packed.chunks_exact(panel).enumerate() {
                        let b = &b[words.count(first) * columns..];
                        let values = &mut sums[start * samples + j * columns..];
                        let (rows, accumulate) = (rows.min(count - start), first > 0);
                        let out = Out { values, stride: samples, rows, columns, accumulate };
                        let (layout, depth) = (Layout::Columns, words.count(depth));
                        let (a, b_stride, ahead) =
                            (&a[start..], columns, (j == 0).then_some(ahead));
                        tile(isa, out, Operands { words, depth, a, layout, b, b_stride, ahead });
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
        with_scratch(threads, |buffer| {
            let a: &mut [u32] = cast_slice_mut(buffer);
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
                        tile(
                            isa,
                            out,
                            Operands { words, depth, a, layout, b, b_stride, ahead: None },
                        );
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
