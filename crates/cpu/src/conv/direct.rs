//! Convolution as products over patches. In words: a row of the patch matrix holds the `R S C`
//! inputs that one output pixel sees, so
//!
//! - forward: `y [NPQ, K] = patches [NPQ, RSC] * w^T`,
//! - backward data: `patches' = dy [NPQ, K] * w [K, RSC]`, each row then *added* to where its
//!   inputs lie,
//! - backward filter: `dw^T [RSC, K] = patches^T * dy`.
//!
//! The patch matrix never exists: as many rows as a tile has are packed straight from the image, for
//! as much of their depth as fits the first cache, and multiplied by all filters.

use std::ops::Range;

use bytemuck::{cast_slice, cast_slice_mut};
use rayon::prelude::*;

use super::pack::{
    add_patches, pack_across, pack_patches, pack_rows, panel_along, panels_across, panels_along,
};
use super::{Arithmetic, Epilogue, Scratch, ScratchSize, Sizes, with_scratch};
use crate::gemm::{Ahead, DEPTH, LINE, Layout, Operands, Out, STRIDE, Words, block, tile};
use crate::isa::Isa;
use crate::pointwise::{add_rows, round};
use crate::pool;
use zfnet_core::shape::PoolDims;

/// Tiles, one under the other, of a task, at most.
const TILES: usize = 8;
/// Tiles of a task, at least: as often packed filters are used that come from the last cache.
const FEWEST_TILES: usize = 2;
/// Tasks that there should be.
const TASKS: usize = 16;
/// Filters of a task where pixels are few.
const FILTERS: usize = 32;
/// Rows of filters that memory brings while others are multiplied.
const AHEAD: usize = 32;
/// Parts that filter gradients are summed in.
const PARTS: usize = 16;
/// Values of patches that are added to their places at a time, a pixel.
const UNPACKED: usize = 512;

/// Pool rows of an image that are worked on before the next ones: what they need of the convolution
/// fits the second cache.
const POOL_ROWS: usize = 5;
/// Tasks of convolution and pooling that there should be.
const POOL_TASKS: usize = 32;
/// Most of them in an image.
const POOL_TASKS_OF_ONE: usize = 8;
/// Rows of the convolution that the buffer holds then.
const POOLED_LINES: usize = 16;

/// What any direction needs.
pub fn scratch_size(sizes: &Sizes, arithmetic: Arithmetic) -> ScratchSize {
    let (rows, columns) = block(arithmetic.isa);
    let filters = sizes.filters.next_multiple_of(columns);
    let packed = sizes.groups * arithmetic.words.count(sizes.patch) * filters;
    // Of fewer images pixels may be few.
    let few = &Sizes { pixels: sizes.pixels.min(sizes.filters), ..*sizes };
    let forward = packed.max(packed_patches(arithmetic, few) + sums_by_filters(arithmetic, few));
    let chunks = sizes.groups * chunks(sizes).count();
    let chunk = unpacked_lines(sizes) * sizes.s * sizes.channels;
    let chunk = chunk.next_multiple_of(columns);
    let backward = chunks * arithmetic.words.count(sizes.filters) * chunk;
    let pixels = (TILES * rows).max(sizes.q);
    // Whole rows of an image are more than half as many pixels as a block may have.
    let parts = PARTS.min(sizes.pixels.div_ceil(TILES * rows / 2));
    let pooled = rows * STRIDE + POOLED_LINES * sizes.q * sizes.k;
    let unpacked = rows * STRIDE + TILES * rows * chunk;
    let gradient = pixels * (sizes.k + 2 * STRIDE + filters);
    ScratchSize {
        thread: pooled.max(unpacked).max(gradient).max(DEPTH * columns),
        shared: forward.max(backward).max(parts * partial(sizes)),
    }
}

/// Whether pooling can follow at once, on rows that stay in a cache.
pub fn pools(sizes: &Sizes, pool: &PoolDims) -> bool {
    let lines = (POOL_ROWS - 1) * pool.stride[0] as usize + pool.window[0] as usize;
    !sizes.dense && pool.pad[0] == 0 && lines <= POOLED_LINES
}

/// `y = patches * w^T`.
pub fn forward(
    arithmetic: Arithmetic,
    y: &mut [f32],
    x: &[f32],
    weight: &[f32],
    epilogue: &Epilogue<'_>,
    sizes: &Sizes,
    scratch: &mut Scratch,
) {
    if few_pixels(sizes) {
        return forward_by_filters(arithmetic, y, x, weight, epilogue, sizes, scratch);
    }
    let isa = arithmetic.isa;
    let rows = block(isa).0;
    let tiles = sizes.pixels.div_ceil(rows);
    let task = rows * (tiles / TASKS).clamp(FEWEST_TILES, TILES);
    let packed = pack_filters(arithmetic, &mut scratch.shared, weight, sizes);
    y.par_chunks_mut(task * sizes.k).with_max_len(1).enumerate().for_each(|(index, y)| {
        with_scratch(&scratch.threads, |buffer| {
            let a = cast_slice_mut(buffer);
            multiply_patches(arithmetic, y, x, packed, index * task, a, sizes);
            epilogue.run(isa, y);
        });
    });
}

/// Whether there are fewer pixels than filters, and so less to pack of patches than of filters.
fn few_pixels(sizes: &Sizes) -> bool {
    sizes.pixels <= sizes.filters
}

/// Words of all patches of a group, packed in blocks of their depth and of a tile's rows.
fn packed_patches(arithmetic: Arithmetic, sizes: &Sizes) -> usize {
    let rows = block(arithmetic.isa).0;
    arithmetic.depth_blocks(sizes.patch).count() * sizes.pixels.next_multiple_of(rows) * STRIDE
}

/// Sums of all pixels and of all tasks' filters.
fn sums_by_filters(arithmetic: Arithmetic, sizes: &Sizes) -> usize {
    let filters = sizes.filters.next_multiple_of(task_filters(arithmetic.isa));
    filters * sizes.pixels.next_multiple_of(block(arithmetic.isa).0)
}

/// Filters of a task where pixels are few.
fn task_filters(isa: Isa) -> usize {
    block(isa).1.next_multiple_of(FILTERS)
}

/// The same for few pixels: all patches are packed at first, and each task packs filters of its own.
fn forward_by_filters(
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
    let Sizes { k, filters, patch, pixels, .. } = *sizes;
    let (task, tiles) = (task_filters(isa), pixels.div_ceil(rows));
    let Scratch { threads, shared } = scratch;
    let (patches, sums) = shared.split_at_mut(packed_patches(arithmetic, sizes));
    let patches: &mut [u32] = cast_slice_mut(patches);
    let sums = &mut sums[..sums_by_filters(arithmetic, sizes)];
    for (group, weight) in weight.chunks_exact(filters * patch).enumerate() {
        patches.par_chunks_mut(rows * STRIDE).enumerate().for_each(|(index, a)| {
            let depth = arithmetic.depth_blocks(patch).nth(index / tiles).expect("a block");
            let first = index % tiles * rows;
            let pixels = first..(first + rows).min(pixels);
            pack_patches(isa, a, words, x, pixels, group, depth, sizes);
        });
        let patches = &*patches;
        let tasks = sums.par_chunks_mut(task * tiles * rows).zip(weight.par_chunks(task * patch));
        tasks.with_max_len(1).for_each(|(sums, weight)| {
            with_scratch(threads, |b| {
                let b: &mut [u32] = cast_slice_mut(b);
                let blocks = patches.chunks_exact(tiles * rows * STRIDE);
                for (depth, patches) in arithmetic.depth_blocks(patch).zip(blocks) {
                    for (j, weight) in weight.chunks(columns * patch).enumerate() {
                        let (count, here) = (weight.len() / patch, &weight[depth.start..]);
                        let next = &weight[depth.end..];
                        panel_along(isa, b, words, here, patch, count, depth.len(), columns);
                        let sums = sums.chunks_exact_mut(rows * task);
                        let tiles = patches.chunks_exact(rows * STRIDE).zip(sums);
                        for (tile_index, (a, sums)) in tiles.enumerate() {
                            let values = &mut sums[j * columns..];
                            let accumulate = depth.start > 0;
                            let out = Out { values, stride: task, rows, columns, accumulate };
                            let (depth, layout) = (words.count(depth.len()), Layout::Rows);
                            let b_stride = columns;
                            let line = tile_index * (depth / AHEAD) * LINE;
                            let ahead = (line < DEPTH && line < next.len()).then(|| Ahead {
                                values: &next[line..],
                                stride: patch,
                                rows: AHEAD,
                            });
                            tile(
                                isa,
                                out,
                                Operands { words, depth, a, layout, b, b_stride, ahead },
                            );
                        }
                    }
                }
            });
        });
        let sums = &*sums;
        y.par_chunks_mut(rows * k).enumerate().for_each(|(index, y)| {
            for (row, y) in y.chunks_exact_mut(k).enumerate() {
                let sums = sums[(index * rows + row) * task..].chunks(tiles * rows * task);
                for (y, sums) in y[group * filters..][..filters].chunks_mut(task).zip(sums) {
                    y.copy_from_slice(&sums[..y.len()]);
                }
            }
            if group + 1 == sizes.groups {
                epilogue.run(isa, y);
            }
        });
    }
}

/// `y = maxpool(epilogue(patches * w^T))`, without keeping the convolution's output.
pub fn forward_pooled(
    arithmetic: Arithmetic,
    (y, switches): (&mut [f32], &mut [u8]),
    x: &[f32],
    weight: &[f32],
    epilogue: &Epilogue<'_>,
    (sizes, pool): (&Sizes, &PoolDims),
    scratch: &mut Scratch,
) {
    let isa = arithmetic.isa;
    let (k, line) = (sizes.k, sizes.q * sizes.k);
    let [window, stride] = [pool.window[0], pool.stride[0]].map(|v| v as usize);
    let (image, row) = (pool.output().per_image(), pool.q as usize * k);
    let Scratch { threads, shared } = scratch;
    let packed = pack_filters(arithmetic, shared, weight, sizes);
    let task = pool_task(sizes, pool);
    let images = y.par_chunks_mut(image).zip(switches.par_chunks_mut(image)).enumerate();
    images.for_each(|(image, (y, switches))| {
        let tasks = y.par_chunks_mut(task * row).zip(switches.par_chunks_mut(task * row));
        tasks.with_max_len(1).enumerate().for_each(|(index, (y, switches))| {
            with_scratch(threads, |buffer| {
                let (a, lines) = buffer.split_at_mut(block(isa).0 * STRIDE);
                let a = cast_slice_mut(a);
                // The convolution's rows `kept` are at the front of `lines`.
                let mut kept = 0..0usize;
                let parts = y.chunks_mut(POOL_ROWS * row).zip(switches.chunks_mut(POOL_ROWS * row));
                for (part, (y, switches)) in parts.enumerate() {
                    let count = y.len() / row;
                    let start = (index * task + part * POOL_ROWS) * stride;
                    let end = (start + (count - 1) * stride + window).min(sizes.p);
                    let again = kept.end.saturating_sub(start);
                    lines.copy_within((kept.len() - again) * line..kept.len() * line, 0);
                    let new = &mut lines[again * line..(end - start) * line];
                    let first = (image * sizes.p + start + again) * sizes.q;
                    multiply_patches(arithmetic, new, x, packed, first, a, sizes);
                    epilogue.run(isa, new);
                    kept = start..end;
                    let (h, p) = (kept.len() as u32, count as u32);
                    let dims = PoolDims { n: 1, h, p, ..*pool };
                    let rows = y.chunks_exact_mut(row).zip(switches.chunks_exact_mut(row));
                    for (index, (y, switches)) in rows.enumerate() {
                        let lines = &lines[..kept.len() * line];
                        pool::forward_row(isa, y, switches, lines, index, &dims);
                    }
                }
            });
        });
    });
}

/// Pool rows of a task: those of an image, if there are enough images. Between tasks a few rows of the
/// convolution are made twice, so there are not many in an image.
fn pool_task(sizes: &Sizes, pool: &PoolDims) -> usize {
    let tasks = POOL_TASKS.div_ceil(sizes.n).min(POOL_TASKS_OF_ONE);
    (pool.p as usize).div_ceil(tasks).max(POOL_ROWS)
}

/// Packs the filters of each group, one after the other, as panels.
fn pack_filters<'a>(
    arithmetic: Arithmetic,
    buffer: &'a mut [f32],
    weight: &[f32],
    sizes: &Sizes,
) -> &'a [u32] {
    let Arithmetic { isa, words, .. } = arithmetic;
    let (_, columns) = block(isa);
    let Sizes { filters, patch, .. } = *sizes;
    let group = filters.next_multiple_of(columns) * words.count(patch);
    let packed: &mut [u32] = &mut cast_slice_mut(buffer)[..sizes.groups * group];
    for (packed, weight) in packed.chunks_exact_mut(group).zip(weight.chunks(filters * patch)) {
        panels_along(isa, packed, words, weight, patch, filters, patch, columns);
    }
    packed
}

/// `y = patches * w^T` for as many output pixels as fit into `y`, the first of which is `first`.
fn multiply_patches(
    arithmetic: Arithmetic,
    y: &mut [f32],
    x: &[f32],
    packed: &[u32],
    first: usize,
    a: &mut [u32],
    sizes: &Sizes,
) {
    let Arithmetic { isa, words, .. } = arithmetic;
    let (rows, columns) = block(isa);
    let Sizes { k, filters, patch, .. } = *sizes;
    let panel = words.count(patch) * columns;
    let count = y.len() / k;
    for (group, packed) in packed.chunks_exact(filters.div_ceil(columns) * panel).enumerate() {
        for depth in arithmetic.depth_blocks(patch) {
            for start in (0..count).step_by(rows) {
                let rows = rows.min(count - start);
                let pixels = first + start..first + start + rows;
                pack_patches(isa, a, words, x, pixels, group, depth.clone(), sizes);
                for (j, b) in packed.chunks_exact(panel).enumerate() {
                    let b = &b[words.count(depth.start) * columns..];
                    let out = Out {
                        values: &mut y[start * k + group * filters + j * columns..],
                        stride: k,
                        rows,
                        columns: columns.min(filters - j * columns),
                        accumulate: depth.start > 0,
                    };
                    let (depth, layout) = (words.count(depth.len()), Layout::Rows);
                    tile(
                        isa,
                        out,
                        Operands { words, depth, a, layout, b, b_stride: columns, ahead: None },
                    );
                }
            }
        }
    }
}

/// Rows of a filter whose part of a patch is added to its place at a time.
fn unpacked_lines(sizes: &Sizes) -> usize {
    (UNPACKED / (sizes.s * sizes.channels)).clamp(1, sizes.r)
}

/// The parts of a patch that are added to their places at a time.
fn chunks(sizes: &Sizes) -> impl Iterator<Item = Range<usize>> + use<> {
    let (step, patch) = (unpacked_lines(sizes) * sizes.s * sizes.channels, sizes.patch);
    (0..patch).step_by(step).map(move |start| start..(start + step).min(patch))
}

/// `patches' = dy * w`, added to where they lie.
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
    let Sizes { k, filters, patch, .. } = *sizes;
    // Filters as columns, for each group and each chunk of the patch.
    let steps = words.count(filters);
    let mut rest: &mut [u32] = cast_slice_mut(&mut scratch.shared);
    let mut packed = Vec::new();
    for group in 0..sizes.groups {
        for chunk in chunks(sizes) {
            let len = steps * chunk.len().next_multiple_of(columns);
            let (panels, left) = rest.split_at_mut(len);
            rest = left;
            let weight = &weight[group * filters * patch + chunk.start..];
            panels_across(isa, panels, words, weight, patch, chunk.len(), filters, columns);
            packed.push((group, chunk, &*panels));
        }
    }
    let (packed, threads) = (&packed, &scratch.threads);
    // One image a task: patches overlap, and their sum must have one order.
    let image_values = sizes.h * sizes.w * sizes.c;
    let image_pixels = sizes.p * sizes.q;
    dx.par_chunks_mut(image_values).enumerate().for_each(|(image, dx)| {
        dx.fill(0.0);
        with_scratch(threads, |buffer| {
            let (a, patches) = buffer.split_at_mut(rows * STRIDE);
            let a: &mut [u32] = cast_slice_mut(a);
            let (first, end) = (image * image_pixels, (image + 1) * image_pixels);
            for start in (first..end).step_by(TILES * rows) {
                let pixels = start..(start + TILES * rows).min(end);
                for (group, chunk, packed) in packed {
                    let stride = chunk.len().next_multiple_of(columns);
                    for depth in arithmetic.depth_blocks(filters) {
                        for start in pixels.clone().step_by(rows) {
                            let rows = rows.min(pixels.end - start);
                            let dy = &dy[start * k + group * filters + depth.start..];
                            pack_rows(isa, a, words, dy, k, depth.len(), rows);
                            for (j, b) in packed.chunks_exact(steps * columns).enumerate() {
                                let b = &b[words.count(depth.start) * columns..];
                                let at = (start - pixels.start) * stride + j * columns;
                                let (values, accumulate) = (&mut patches[at..], depth.start > 0);
                                let out = Out { values, stride, rows, columns, accumulate };
                                let depth = words.count(depth.len());
                                let (layout, b_stride) = (Layout::Rows, columns);
                                tile(
                                    isa,
                                    out,
                                    Operands { words, depth, a, layout, b, b_stride, ahead: None },
                                );
                            }
                        }
                    }
                    let (pixels, chunk) = (pixels.clone(), chunk.clone());
                    let offset = image * image_values;
                    add_patches(isa, dx, offset, patches, stride, pixels, *group, chunk, sizes);
                }
            }
        });
        epilogue.run(isa, dx);
    });
}

/// A gradient of the output.
#[derive(Clone, Copy)]
pub enum OutputGradient<'a> {
    /// As it is.
    Values(&'a [f32]),
    /// What a max pooling with these switches lets down of its own.
    Pooled(&'a [f32], &'a [u8], &'a PoolDims),
}

impl<'a> OutputGradient<'a> {
    /// Pixels that are worked on together: of a pooling whole rows, for that is how they come down.
    fn pixels(self, sizes: &Sizes, rows: usize) -> usize {
        let most = TILES * rows;
        match self {
            OutputGradient::Values(_) => most,
            OutputGradient::Pooled(..) => sizes.q * (most / sizes.q).max(1),
        }
    }

    /// The gradient of some pixels; `buffer` is for theirs.
    fn rows(
        self,
        arithmetic: Arithmetic,
        pixels: Range<usize>,
        buffer: &'a mut [f32],
        sizes: &Sizes,
    ) -> &'a [f32] {
        let Sizes { k, p, q, .. } = *sizes;
        match self {
            OutputGradient::Values(dy) => &dy[pixels.start * k..pixels.end * k],
            OutputGradient::Pooled(dy, switches, pool) => {
                let image = pool.output().per_image();
                let rows = &mut buffer[..pixels.len() * k];
                for (row, dx) in (pixels.start / q..).zip(rows.chunks_exact_mut(q * k)) {
                    let from = row / p * image..(row / p + 1) * image;
                    let (dy, switches) = (&dy[from.clone()], &switches[from]);
                    pool::backward_row(arithmetic.isa, dx, dy, switches, row % p, true, pool);
                }
                if arithmetic.words == Words::Bf16Pairs {
                    round(arithmetic.isa, rows);
                }
                rows
            }
        }
    }
}

/// Values of a part of a filter gradient: all filters, their patches from row to row, then all biases.
fn partial(sizes: &Sizes) -> usize {
    sizes.k * sizes.patch + sizes.k
}

/// `dw^T = patches^T * dy`, in parts of the pixels.
pub fn backward_filter(
    arithmetic: Arithmetic,
    dw: &mut [f32],
    db: &mut [f32],
    dy: OutputGradient<'_>,
    x: &[f32],
    accumulate: bool,
    sizes: &Sizes,
    scratch: &mut Scratch,
) {
    let isa = arithmetic.isa;
    let Sizes { k, filters, patch, .. } = *sizes;
    let block_pixels = dy.pixels(sizes, block(isa).0);
    let blocks = sizes.pixels.div_ceil(block_pixels);
    let (count, len) = (PARTS.min(blocks), partial(sizes));
    let Scratch { threads, shared } = scratch;
    let partials = &mut shared[..count * len];
    partials.par_chunks_mut(len).enumerate().for_each(|(part, partial)| {
        let (first, end) = (part * blocks / count, (part + 1) * blocks / count);
        with_scratch(threads, |buffer| {
            partial.fill(0.0);
            let (unpooled, buffer) = buffer.split_at_mut(block_pixels * k);
            for index in first..end {
                let start = index * block_pixels;
                let pixels = start..(start + block_pixels).min(sizes.pixels);
                let dy = dy.rows(arithmetic, pixels.clone(), unpooled, sizes);
                add_gradient(arithmetic, partial, dy, x, pixels, cast_slice_mut(buffer), sizes);
            }
        });
    });
    let (sum, others) = partials.split_at_mut(len);
    const CHUNK: usize = 4096;
    sum.par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, sum)| {
        for other in others.chunks_exact(len) {
            add_rows(isa, sum, &other[chunk * CHUNK..][..sum.len()]);
        }
    });
    let (by_patch, sums_of_dy) = sum.split_at(k * patch);
    // Filters whose values lie in one line of the cache, back from columns to rows.
    const ROWS: usize = 16;
    dw.par_chunks_mut(ROWS * patch).enumerate().for_each(|(index, dw)| {
        for (row, dw) in dw.chunks_exact_mut(patch).enumerate() {
            let filter = index * ROWS + row;
            let (group, column) = (filter / filters, filter % filters);
            let column = by_patch[group * filters * patch..][column..].iter().step_by(filters);
            for (dw, sum) in dw.iter_mut().zip(column) {
                *dw = if accumulate { *dw + sum } else { *sum };
            }
        }
    });
    for (db, sum) in db.iter_mut().zip(sums_of_dy) {
        *db = if accumulate { *db + sum } else { *sum };
    }
}

/// Adds what some pixels, whose gradient is `dy`, contribute to a part.
fn add_gradient(
    arithmetic: Arithmetic,
    partial: &mut [f32],
    dy: &[f32],
    x: &[f32],
    pixels: Range<usize>,
    buffer: &mut [u32],
    sizes: &Sizes,
) {
    let Arithmetic { isa, words, .. } = arithmetic;
    let (rows, columns) = block(isa);
    let Sizes { k, filters, patch, .. } = *sizes;
    let (count, steps) = (pixels.len(), words.count(pixels.len()));
    let (a, buffer) = buffer.split_at_mut(count * STRIDE);
    let (pairs, panels) = buffer.split_at_mut(count * STRIDE);
    let (dw, db) = partial.split_at_mut(k * patch);
    add_rows(isa, db, dy);
    for (group, dw) in dw.chunks_exact_mut(filters * patch).enumerate() {
        let panels = &mut panels[..steps * filters.next_multiple_of(columns)];
        for (j, panel) in panels.chunks_exact_mut(steps * columns).enumerate() {
            let wanted = columns.min(filters - j * columns);
            let dy = &dy[group * filters + j * columns..];
            pack_across(isa, panel, columns, words, dy, k, count, wanted);
        }
        let step = DEPTH / rows * rows;
        for from in (0..patch).step_by(step) {
            let depth = from..(from + step).min(patch);
            let (pixels, wanted) = (pixels.clone(), depth.len());
            // As f32 first: pairs are of neighbouring pixels.
            pack_patches(isa, a, Words::F32, x, pixels, group, depth, sizes);
            let a = match words {
                Words::F32 => &*a,
                Words::Bf16Pairs => {
                    pack_across(isa, pairs, STRIDE, words, cast_slice(a), STRIDE, count, wanted);
                    &*pairs
                }
            };
            for i in (0..wanted).step_by(rows) {
                for j in (0..filters).step_by(columns) {
                    let out = Out {
                        values: &mut dw[(from + i) * filters + j..],
                        stride: filters,
                        rows: rows.min(wanted - i),
                        columns: columns.min(filters - j),
                        accumulate: true,
                    };
                    let (a, b) = (&a[i..], &panels[j * steps..]);
                    let (layout, depth, b_stride) = (Layout::Columns, steps, columns);
                    tile(isa, out, Operands { words, depth, a, layout, b, b_stride, ahead: None });
                }
            }
        }
    }
}
