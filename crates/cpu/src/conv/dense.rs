//! Fully connected layers: few samples and many weights, so weights are what is read once, in the
//! order in which they lie, and samples are the columns of a tile:
//!
//! - forward: `y^T [K, N] = w [K, RSC] * x^T`; of few samples as dot products of rows as they lie, so
//!   that one takes no longer than its weights take to come;
//! - backward data: `dx^T [RSC, N] = w^T [RSC, K] * dy^T`; of few samples as sums of rows as they lie,
//!   in a fixed number of parts;
//! - backward filter: `dw [K, RSC] = dy^T [K, N] * x`.

use bytemuck::{cast_slice, cast_slice_mut};
use rayon::prelude::*;

use super::pack::{pack_across, pack_rows, pack_transposed, panels_across, panels_along};
use super::{Arithmetic, Epilogue, Scratch, ScratchSize, Sizes, with_scratch};
use crate::gemm::{Ahead, DEPTH, Layout, Operands, Out, Products, STRIDE, tile};
use crate::isa::Isa;
use crate::pointwise::{add_rows, narrow};
use crate::simd::{MOST_LANES, Simd, vectors};
use crate::values::Element;

/// Most samples for which dot products are faster than tiles.
const FEW_SAMPLES: usize = 16;
/// Rows of weights of a task of dot products.
const DOT_TASK: usize = 16;
/// Values of samples that are multiplied with some rows before the next rows: they fit the second cache.
const DOT_VALUES: usize = 1 << 16;
/// Rows that are multiplied with as many others at a time.
const DOTS: usize = 4;
/// Values of a row that are finished together.
const BLOCK: usize = 64;
/// Tiles, one under the other, of a forward task.
const FORWARD_TILES: usize = 4;
/// Parts of the weights' rows that are summed apart on the way back to few samples.
const PARTS: usize = 16;
/// Sums that some rows of weights are added to before the next rows: half of a first cache of 32 KB.
const SUMS: usize = 1 << 12;
/// Those rows.
const ROWS: usize = 4;
/// Steps of a tile's depth on the way back to the samples: rows of weights.
const DATA_DEPTH: usize = 96;
/// Tiles, one under the other, of a task of filter gradients.
const FILTER_TILES: usize = 9;
/// Panels of samples that stay in a cache while filters go by.
const FILTER_PANELS: usize = 64;

/// What any direction needs.
pub fn scratch_size(sizes: &Sizes, arithmetic: Arithmetic) -> ScratchSize {
    let (rows, columns) = arithmetic.block();
    let samples = sizes.n.next_multiple_of(columns);
    let (n, k, patch) = (sizes.n, sizes.k, sizes.patch);
    let words = |values: usize| arithmetic.products.words(values);
    let forward = words(patch) * samples + k * samples;
    let data = words(k) * samples + patch * samples;
    let data = data.max(PARTS * n.min(most_few(arithmetic)) * patch);
    let filter = words(n) * patch.next_multiple_of(columns);
    ScratchSize {
        thread: ((rows + DATA_DEPTH) * STRIDE).max(words(n).max(FILTER_TILES * rows) * STRIDE),
        shared: forward.max(data).max(filter),
    }
}

/// Whether the weights, as they lie, are multiplied with each sample: as fast as they come from memory.
pub fn few_samples(sizes: &Sizes, arithmetic: Arithmetic) -> bool {
    sizes.n <= most_few(arithmetic)
}

fn most_few(arithmetic: Arithmetic) -> usize {
    if arithmetic.products == Products::F32 { FEW_SAMPLES } else { DOTS }
}

/// `y^T = w * x^T`.
pub fn forward<Y: Element, X: Element>(
    arithmetic: Arithmetic,
    y: &mut [Y],
    x: &[X],
    weight: &[X],
    epilogue: &Epilogue<'_>,
    sizes: &Sizes,
    scratch: &mut Scratch,
) {
    if !few_samples(sizes, arithmetic) {
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
    transpose(isa, y, transposed, k, n, epilogue);
}

vectors! {
    /// `sums[i * n + j]` = the product of row `i` of `weight` and row `j` of `x`.
    ///
    /// # Safety
    /// Rows have `depth` values, and there are `n` of `x` and as many of `weight` as of `sums`.
    unsafe fn dots<S, X>(sums: &mut [f32], weight: &[X], x: &[X], n: usize, depth: usize) {
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
                        add_dots::<S, X, DOTS, DOTS>(sums, n, weight, x, depth, len);
                    } else if count - i >= DOTS {
                        for j in 0..n - j {
                            let x = x.add(j * depth);
                            add_dots::<S, X, DOTS, 1>(&mut sums[j..], n, weight, x, depth, len);
                        }
                    } else {
                        for i in 0..count - i {
                            for j in 0..DOTS.min(n - j) {
                                let (weight, x) = (weight.add(i * depth), x.add(j * depth));
                                let sums = &mut sums[i * n + j..];
                                add_dots::<S, X, 1, 1>(sums, n, weight, x, depth, len);
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
unsafe fn add_dots<S: Simd, X: Element, const M: usize, const N: usize>(
    sums: &mut [f32],
    n: usize,
    weight: *const X,
    x: *const X,
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
                *column = X::load::<S>(x.add(j * stride + at));
            }
            for (i, lanes) in lanes.iter_mut().enumerate() {
                let row = X::load::<S>(weight.add(i * stride + at));
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
                    let (weight, x) = (*weight.add(i * stride + at), *x.add(j * stride + at));
                    sum += weight.to_f32() * x.to_f32();
                }
                sums[i * n + j] += sum;
            }
        }
    }
}

/// The same by tiles.
fn forward_by_tiles<Y: Element, X: Element>(
    arithmetic: Arithmetic,
    y: &mut [Y],
    x: &[X],
    weight: &[X],
    epilogue: &Epilogue<'_>,
    sizes: &Sizes,
    scratch: &mut Scratch,
) {
    let Arithmetic { isa, products, .. } = arithmetic;
    let (rows, columns) = arithmetic.block();
    let Sizes { n, k, patch, .. } = *sizes;
    let samples = n.next_multiple_of(columns);
    let panel = products.words(patch) * columns;
    let (packed, transposed) = scratch.shared.split_at_mut(samples * products.words(patch));
    let packed: &mut [u32] = cast_slice_mut(packed);
    panels_along(isa, packed, products, x, patch, n, patch, columns);
    let (packed, threads) = (&*packed, &scratch.threads);
    let transposed = &mut transposed[..k * samples];
    let task = FORWARD_TILES * rows;
    transposed.par_chunks_mut(task * samples).enumerate().for_each(|(index, sums)| {
        with_scratch(threads, |buffer| {
            let _prepared = arithmetic.prepare();
            let a: &mut [u32] = cast_slice_mut(buffer);
            let count = sums.len() / samples;
            for depth in arithmetic.depth_blocks(patch) {
                for start in (0..count).step_by(rows) {
                    let rows = rows.min(count - start);
                    let weight = &weight[index * task * patch..];
                    let here = &weight[start * patch + depth.start..];
                    pack_rows(isa, a, products, here, patch, depth.len(), rows);
                    let below = start + rows < count;
                    let next = if below { (start + rows) * patch + depth.start } else { depth.end };
                    let bytes = cast_slice(&weight[next..]);
                    let stride = patch * size_of::<X>();
                    // Of 16 rows of memory a tile packs 14.
                    let ahead = Ahead { bytes, stride, rows: rows.next_power_of_two() };
                    for (j, b) in packed.chunks_exact(panel).enumerate() {
                        let b = &b[products.words(depth.start) * columns..];
                        let values = &mut sums[start * samples + j * columns..];
                        let accumulate = depth.start > 0;
                        let out = Out { values, stride: samples, rows, columns, accumulate };
                        let (layout, depth) = (Layout::Rows, products.words(depth.len()));
                        let (b_stride, ahead) = (columns, (j == 0).then_some(ahead));
                        tile(isa, out, Operands { products, depth, a, layout, b, b_stride, ahead });
                    }
                }
            }
        });
    });
    transpose(isa, y, transposed, k, samples, epilogue);
}

/// `dx = dy * w`.
pub fn backward_data<T: Element>(
    arithmetic: Arithmetic,
    dx: &mut [T],
    dy: &[T],
    weight: &[T],
    sizes: &Sizes,
    scratch: &mut Scratch,
) {
    if few_samples(sizes, arithmetic) {
        data_of_few(arithmetic, dx, dy, weight, sizes, scratch);
    } else if arithmetic.products == Products::Bf16Tiles {
        data_by_samples(arithmetic, dx, dy, weight, sizes, scratch);
    } else {
        data_by_tiles(arithmetic, dx, dy, weight, sizes, scratch);
    }
}

/// `dx = dy * w` of few samples: rows of weights as they lie, each read once.
fn data_of_few<T: Element>(
    arithmetic: Arithmetic,
    dx: &mut [T],
    dy: &[T],
    weight: &[T],
    sizes: &Sizes,
    scratch: &mut Scratch,
) {
    let Arithmetic { isa, .. } = arithmetic;
    let Sizes { n, k, patch, .. } = *sizes;
    let rows = k.div_ceil(PARTS);
    let parts = &mut scratch.shared[..k.div_ceil(rows) * n * patch];
    let tasks = parts.par_chunks_mut(n * patch).zip(weight.par_chunks(rows * patch)).enumerate();
    tasks.with_max_len(1).for_each(|(part, (sums, weight))| {
        let dy = &dy[part * rows..];
        // SAFETY: there are as many sums as in `n` rows of weights; `dy` has a value for each of these rows,
        // from sample to sample `k` apart.
        unsafe { weighted_rows(isa, sums, weight, dy, n, k, patch) };
    });
    let (sums, others) = parts.split_at_mut(n * patch);
    let run = run(n);
    sums.par_chunks_mut(n * run).enumerate().for_each(|(index, sums)| {
        for other in others.chunks_exact(n * patch) {
            add_rows(isa, sums, &other[index * n * run..][..sums.len()]);
        }
    });
    let sums = &*sums;
    dx.par_chunks_mut(patch).enumerate().for_each(|(sample, dx)| {
        for (dx, sums) in dx.chunks_mut(run).zip(sums.chunks(n * run)) {
            narrow(isa, dx, &sums[sample * dx.len()..][..dx.len()]);
        }
    });
}

/// Columns of weights that are summed before the next ones: for all samples, so that they stay in a cache.
/// Whole vectors, so that a column's sum is made in one way for any number of samples.
fn run(n: usize) -> usize {
    (SUMS / n).next_multiple_of(MOST_LANES)
}

vectors! {
    /// `sums` = for each [`run`] of columns, those of each sample `j`: the sum of all rows `i` of `weight` by
    /// `dy[j * k + i]`.
    ///
    /// # Safety
    /// Rows have `len` values; there are `n` by as many sums, and of `dy` values for all rows of `weight` in
    /// each of the `n` rows, which begin `k` apart.
    unsafe fn weighted_rows<S, T>(
        sums: &mut [f32],
        weight: &[T],
        dy: &[T],
        n: usize,
        k: usize,
        len: usize,
    ) {
        sums.fill(0.0);
        let (rows, run) = (weight.len() / len, run(n));
        for first in (0..len).step_by(run) {
            let some = run.min(len - first);
            for i in (0..rows).step_by(ROWS) {
                let weight = weight.as_ptr().add(i * len + first);
                for j in (0..n).step_by(DOTS) {
                    let sums = sums.as_mut_ptr().add(n * first + j * some);
                    let dy = dy.as_ptr().add(j * k + i);
                    if rows - i < ROWS {
                        for j in 0..DOTS.min(n - j) {
                            for i in 0..rows - i {
                                let (weight, dy) = (weight.add(i * len), dy.add(j * k + i));
                                let sums = sums.add(j * some);
                                add_weighted::<S, T, 1, 1>(sums, weight, dy, some, k, len);
                            }
                        }
                        continue;
                    }
                    match n - j {
                        1 => add_weighted::<S, T, 1, ROWS>(sums, weight, dy, some, k, len),
                        2 => add_weighted::<S, T, 2, ROWS>(sums, weight, dy, some, k, len),
                        3 => add_weighted::<S, T, 3, ROWS>(sums, weight, dy, some, k, len),
                        _ => add_weighted::<S, T, DOTS, ROWS>(sums, weight, dy, some, k, len),
                    }
                }
            }
        }
    }
}

/// Adds `M` rows of weights, each by its value of `dy`, to the sums of `N` samples: `some` values of rows
/// that begin `len` apart.
#[inline(always)]
unsafe fn add_weighted<S: Simd, T: Element, const N: usize, const M: usize>(
    sums: *mut f32,
    weight: *const T,
    dy: *const T,
    some: usize,
    k: usize,
    len: usize,
) {
    // SAFETY: the caller's.
    unsafe {
        let mut factors = [[S::zero(); M]; N];
        for (j, factors) in factors.iter_mut().enumerate() {
            for (i, factor) in factors.iter_mut().enumerate() {
                *factor = S::splat((*dy.add(j * k + i)).to_f32());
            }
        }
        let whole = some - some % S::LANES;
        for at in (0..whole).step_by(S::LANES) {
            let mut rows = [S::zero(); M];
            for (i, row) in rows.iter_mut().enumerate() {
                *row = T::load::<S>(weight.add(i * len + at));
            }
            for (j, factors) in factors.iter().enumerate() {
                let mut sum = S::load(sums.add(j * some + at));
                for (row, factor) in rows.iter().zip(factors) {
                    sum = S::multiply_add(*row, *factor, sum);
                }
                S::store(sums.add(j * some + at), sum);
            }
        }
        for at in whole..some {
            for j in 0..N {
                let sum = &mut *sums.add(j * some + at);
                for i in 0..M {
                    let (weight, dy) = (*weight.add(i * len + at), *dy.add(j * k + i));
                    *sum += weight.to_f32() * dy.to_f32();
                }
            }
        }
    }
}

/// `dx^T = w^T * dy^T`.
fn data_by_tiles<T: Element>(
    arithmetic: Arithmetic,
    dx: &mut [T],
    dy: &[T],
    weight: &[T],
    sizes: &Sizes,
    scratch: &mut Scratch,
) {
    let Arithmetic { isa, products, .. } = arithmetic;
    let (rows, columns) = arithmetic.block();
    let Sizes { n, k, patch, .. } = *sizes;
    let samples = n.next_multiple_of(columns);
    let panel = products.words(k) * columns;
    let (packed, transposed) = scratch.shared.split_at_mut(samples * products.words(k));
    let packed: &mut [u32] = cast_slice_mut(packed);
    panels_along(isa, packed, products, dy, k, n, k, columns);
    let (packed, threads) = (&*packed, &scratch.threads);
    let transposed = &mut transposed[..patch * samples];
    let task = DEPTH / rows * rows;
    transposed.par_chunks_mut(task * samples).enumerate().for_each(|(index, sums)| {
        with_scratch(threads, |buffer| {
            let _prepared = arithmetic.prepare();
            let a: &mut [u32] = cast_slice_mut(buffer);
            let count = sums.len() / samples;
            for first in (0..k).step_by(DATA_DEPTH) {
                let depth = DATA_DEPTH.min(k - first);
                let weight = &weight[first * patch + index * task..];
                pack_across(isa, a, STRIDE, products, weight, patch, depth, count);
                let next = weight.get(DATA_DEPTH * patch..).unwrap_or(&[]);
                for start in (0..count).step_by(rows) {
                    let bytes = cast_slice(next.get(start..).unwrap_or(&[]));
                    let (stride, lines) = (patch * size_of::<T>(), DATA_DEPTH.next_power_of_two());
                    let ahead = Ahead { bytes, stride, rows: lines };
                    for (j, b) in packed.chunks_exact(panel).enumerate() {
                        let b = &b[products.words(first) * columns..];
                        let values = &mut sums[start * samples + j * columns..];
                        let (rows, accumulate) = (rows.min(count - start), first > 0);
                        let out = Out { values, stride: samples, rows, columns, accumulate };
                        let (layout, depth) = (Layout::Columns, products.words(depth));
                        let (a, b_stride, ahead) =
                            (&a[start..], columns, (j == 0).then_some(ahead));
                        tile(isa, out, Operands { products, depth, a, layout, b, b_stride, ahead });
                    }
                }
            }
        });
    });
    transpose(isa, dx, transposed, patch, samples, &Epilogue::default());
}

/// `dx = dy * w`: for tiles whose rows are the samples' because weights, as they lie, cannot be rows.
fn data_by_samples<T: Element>(
    arithmetic: Arithmetic,
    dx: &mut [T],
    dy: &[T],
    weight: &[T],
    sizes: &Sizes,
    scratch: &mut Scratch,
) {
    const TASK: usize = DEPTH;
    let Arithmetic { isa, products, .. } = arithmetic;
    let (rows, columns) = arithmetic.block();
    let Sizes { n, k, patch, .. } = *sizes;
    let (sums, threads) = (&mut scratch.shared[..n * patch], &scratch.threads);
    sums.par_chunks_mut(n * TASK).enumerate().for_each(|(index, sums)| {
        with_scratch(threads, |buffer| {
            let _prepared = arithmetic.prepare();
            let (a, b) = buffer.split_at_mut(rows * STRIDE);
            let (a, b): (&mut [u32], &mut [u32]) = (cast_slice_mut(a), cast_slice_mut(b));
            let count = sums.len() / n;
            for first in (0..k).step_by(2 * DATA_DEPTH) {
                let depth = (2 * DATA_DEPTH).min(k - first);
                let weight = &weight[first * patch + index * TASK..];
                pack_across(isa, b, STRIDE, products, weight, patch, depth, count);
                for start in (0..n).step_by(rows) {
                    let rows = rows.min(n - start);
                    pack_rows(isa, a, products, &dy[start * k + first..], k, depth, rows);
                    for j in (0..count).step_by(columns) {
                        let (values, columns) =
                            (&mut sums[start * count + j..], columns.min(count - j));
                        let accumulate = first > 0;
                        let out = Out { values, stride: count, rows, columns, accumulate };
                        let (layout, depth) = (Layout::Rows, products.words(depth));
                        let (a, b, b_stride, ahead) = (&*a, &b[j..], STRIDE, None);
                        tile(isa, out, Operands { products, depth, a, layout, b, b_stride, ahead });
                    }
                }
            }
        });
    });
    let sums = &*sums;
    dx.par_chunks_mut(patch).enumerate().for_each(|(sample, dx)| {
        for (task, dx) in dx.chunks_mut(TASK).enumerate() {
            let from = task * n * TASK + sample * dx.len();
            narrow(isa, dx, &sums[from..][..dx.len()]);
        }
    });
}

/// Writes sums of `samples` columns as rows of `len` values, which are then finished.
fn transpose<Y: Element>(
    isa: Isa,
    rows: &mut [Y],
    sums: &[f32],
    len: usize,
    samples: usize,
    epilogue: &Epilogue<'_>,
) {
    // Samples whose values lie in one line of the cache.
    const ROWS: usize = 16;
    rows.par_chunks_mut(ROWS * len).enumerate().for_each(|(index, rows)| {
        let count = rows.len() / len;
        let mut turned = [[0.0; BLOCK]; ROWS];
        for first in (0..len).step_by(BLOCK) {
            let sums = sums[first * samples..].chunks_exact(samples).take(BLOCK);
            let wanted = sums.len();
            for (i, sums) in sums.enumerate() {
                for (row, sum) in turned.iter_mut().zip(&sums[index * ROWS..][..count]) {
                    row[i] = *sum;
                }
            }
            let bias = epilogue.bias.map(|bias| &bias[first..][..wanted]);
            let epilogue = Epilogue { bias, ..*epilogue };
            for (row, sums) in rows.chunks_exact_mut(len).zip(&mut turned) {
                epilogue.run(isa, &mut sums[..wanted]);
                narrow(isa, &mut row[first..][..wanted], &sums[..wanted]);
            }
        }
    });
}

/// `dw = dy^T * x`.
pub fn backward_filter<T: Element>(
    arithmetic: Arithmetic,
    dw: &mut [f32],
    db: &mut [f32],
    dy: &[T],
    x: &[T],
    accumulate: bool,
    sizes: &Sizes,
    scratch: &mut Scratch,
) {
    let Arithmetic { isa, products, .. } = arithmetic;
    let (rows, columns) = arithmetic.block();
    let Sizes { n, k, patch, .. } = *sizes;
    let most = arithmetic.most_transposed();
    let shared = &mut scratch.shared[..products.words(n) * patch.next_multiple_of(columns)];
    let packed: &mut [u32] = cast_slice_mut(shared);
    let task = FILTER_TILES * rows;
    for samples in (0..n).step_by(most) {
        let (dy, x) = (&dy[samples * k..], &x[samples * patch..]);
        let (n, accumulate) = (most.min(n - samples), accumulate || samples > 0);
        let depth = products.words(n);
        let panel = depth * columns;
        let packed = &mut packed[..depth * patch.next_multiple_of(columns)];
        panels_across(isa, packed, products, x, &[0], patch, patch, n, columns);
        let (packed, threads) = (&*packed, &scratch.threads);
        dw.par_chunks_mut(task * patch).enumerate().for_each(|(index, dw)| {
            with_scratch(threads, |buffer| {
                let _prepared = arithmetic.prepare();
                let a: &mut [u32] = cast_slice_mut(buffer);
                let count = dw.len() / patch;
                let layout = pack_transposed(isa, a, products, &dy[index * task..], k, n, count);
                for (group, packed) in packed.chunks(FILTER_PANELS * panel).enumerate() {
                    for start in (0..count).step_by(rows) {
                        for (j, b) in packed.chunks_exact(panel).enumerate() {
                            let first = (group * FILTER_PANELS + j) * columns;
                            let values = &mut dw[start * patch + first..];
                            let (rows, columns) =
                                (rows.min(count - start), columns.min(patch - first));
                            let out = Out { values, stride: patch, rows, columns, accumulate };
                            let at = match layout {
                                Layout::Rows => start * STRIDE,
                                Layout::Columns => start,
                            };
                            let (a, b_stride, ahead) = (&a[at..], panel / depth, None);
                            tile(
                                isa,
                                out,
                                Operands { products, depth, a, layout, b, b_stride, ahead },
                            );
                        }
                    }
                }
            });
        });
    }
    if !accumulate {
        db.fill(0.0);
    }
    add_rows(isa, db, dy);
}
