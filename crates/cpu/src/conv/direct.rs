//! Convolution as products over patches. In words: a row of the patch matrix holds the `R S C`
//! inputs that one output pixel sees, so
//!
//! - forward: `y [NPQ, K] = patches [NPQ, RSC] * w^T`;
//! - backward data: `patches' = dy [NPQ, K] * w [K, RSC]`, each row then *added* to where its inputs lie;
//!   or, by the matrix unit, forward again for each parity of row and column of `dx` (its pixels of one
//!   parity see the same taps of the filters): `dx [NHW, C] = patches of dy [NHW, RSK] * w`;
//! - backward filter: `dw [K, RSC] = dy^T [K, NPQ] * patches`.
//!
//! The patch matrix never exists: as many rows as a tile has are packed straight from the image, for
//! as much of their depth as fits the first cache, and multiplied by all filters. Only of fewer pixels
//! than filters all of it is packed, since it is then the smaller operand: filters are packed for a
//! tile's columns at a time.

use std::ops::Range;

use bytemuck::{cast_slice, cast_slice_mut};
use rayon::prelude::*;

use super::pack::{
    add_patches, pack_across, pack_patches, pack_rows, pack_transposed, panel_along, panels_across,
    panels_along,
};
use super::{Arithmetic, Epilogue, Parity, Scratch, ScratchSize, Sizes, keep, with_scratch};
use crate::gemm::{Ahead, DEPTH, LINE, Layout, Operands, Out, Products, STRIDE, tile};
use crate::pointwise::{add_rows, spread};
use crate::pool;
use crate::values::Element;
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
/// Parts that filter gradients are summed in, at most, and values of all of them, about.
const PARTS: usize = 16;
const PARTIAL_SUMS: usize = 12 << 20;
/// Values of patches that are added to their places at a time, a pixel.
const UNPACKED: usize = 512;

/// Pool rows of an image that are worked on before the next ones: what they need of the convolution
/// fits the second cache.
const POOL_ROWS: usize = 5;
/// Tasks of convolution and pooling that there should be.
const POOL_TASKS: usize = 16;
/// Most of them in an image.
const POOL_TASKS_OF_ONE: usize = 8;
/// Rows of the convolution that the buffer holds then.
const POOLED_LINES: usize = 16;

/// What the directions from and to pixels need.
pub fn scratch_size(sizes: &Sizes, arithmetic: Arithmetic) -> ScratchSize {
    let (rows, columns) = arithmetic.block();
    let Sizes { k, q, groups, filters, channels, .. } = *sizes;
    let words = |values: usize| arithmetic.products.words(values);
    let a = rows * STRIDE;
    let task = TILES * rows;
    // Forward: sums of a task's pixels, or of the rows that are pooled, once in f32 and once as stored.
    let packed = packed_len(sizes, arithmetic);
    // Of fewer images pixels may be few.
    let few = &Sizes { pixels: sizes.pixels.min(filters), ..*sizes };
    let by_filters = packed_patches(arithmetic, few) + sums_by_filters(arithmetic, few);
    let sums = (task * k).max(2 * POOLED_LINES * q * k);
    // Backward data: the pixels of a task, or patches and an image.
    let (data, packed_data) = if gathers(sizes, arithmetic) {
        let packed = sizes.parities().map(|parity| packed_len(&parity.sizes, arithmetic));
        (data_rows(sizes, arithmetic) * sizes.w.div_ceil(sizes.stride[1]) * sizes.c, packed.sum())
    } else {
        let chunk = (unpacked_lines(sizes) * sizes.s * channels).next_multiple_of(columns);
        let chunks = groups * chunks(sizes).count();
        (task * chunk + sizes.h * sizes.w * sizes.c, chunks * words(filters) * chunk)
    };
    ScratchSize {
        thread: (a + sums).max(DEPTH * columns).max(a + data),
        shared: packed.max(by_filters).max(packed_data),
    }
}

/// What filter gradients need.
pub fn filter_scratch_size(sizes: &Sizes, arithmetic: Arithmetic) -> ScratchSize {
    let Sizes { k, q, filters, .. } = *sizes;
    let task = TILES * arithmetic.block().0;
    let pixels = task.max(q);
    // Whole rows of an image are more than half as many pixels as a block may have.
    let parts = parts(sizes).min(sizes.pixels.div_ceil(task / 2));
    let (block, rows_of_dy) = gradient_blocks(sizes, arithmetic, pixels);
    let packed = pixels * STRIDE + arithmetic.products.words(pixels) * STRIDE;
    ScratchSize {
        thread: pixels * k + packed + filters.div_ceil(block) * rows_of_dy,
        shared: parts * partial(sizes),
    }
}

/// Whether pooling can follow at once, on rows that stay in a cache.
pub fn pools(sizes: &Sizes, arithmetic: Arithmetic, pool: &PoolDims) -> bool {
    let lines = (POOL_ROWS - 1) * pool.stride[0] as usize + pool.window[0] as usize;
    let fits = lines <= POOLED_LINES && sizes.q <= arithmetic.most_transposed();
    !sizes.dense && pool.pad[0] == 0 && fits
}

/// `y = patches * w^T`.
pub fn forward<Y: Element, X: Element>(
    arithmetic: Arithmetic,
    y: &mut [Y],
    x: &[X],
    weight: &[X],
    epilogue: &Epilogue<'_>,
    sizes: &Sizes,
    scratch: &mut Scratch,
) {
    if few_pixels(sizes) {
        return forward_by_filters(arithmetic, y, x, weight, epilogue, sizes, scratch);
    }
    let (rows, _) = arithmetic.block();
    let tiles = sizes.pixels.div_ceil(rows);
    let task = rows * (tiles / TASKS).clamp(FEWEST_TILES, TILES);
    let packed = pack_filters(arithmetic, &mut scratch.shared, weight, sizes);
    y.par_chunks_mut(task * sizes.k).with_max_len(1).enumerate().for_each(|(index, y)| {
        with_scratch(&scratch.threads, |buffer| {
            let (a, buffer) = buffer.split_at_mut(rows * STRIDE);
            let sums = Y::sums(y, buffer);
            multiply_patches(arithmetic, sums, x, packed, index * task, cast_slice_mut(a), sizes);
            epilogue.finish(arithmetic.isa, y, buffer);
        });
    });
}

/// Whether there are fewer pixels than filters, and so less to pack of patches than of filters.
fn few_pixels(sizes: &Sizes) -> bool {
    sizes.pixels <= sizes.filters
}

/// Words of all patches of a group, packed in blocks of their depth and of a tile's rows.
fn packed_patches(arithmetic: Arithmetic, sizes: &Sizes) -> usize {
    let (rows, _) = arithmetic.block();
    arithmetic.depth_blocks(sizes.patch).count() * sizes.pixels.next_multiple_of(rows) * STRIDE
}

/// Sums of all tasks where pixels are few: whole tiles.
fn sums_by_filters(arithmetic: Arithmetic, sizes: &Sizes) -> usize {
    let (rows, _) = arithmetic.block();
    let filters = sizes.filters.next_multiple_of(task_filters(arithmetic));
    sizes.groups * filters * sizes.pixels.next_multiple_of(rows)
}

/// Filters of a task where pixels are few.
fn task_filters(arithmetic: Arithmetic) -> usize {
    let (_, columns) = arithmetic.block();
    columns.next_multiple_of(FILTERS)
}

/// The same for few pixels: all patches are packed at first, and each task packs filters of its own.
fn forward_by_filters<Y: Element, X: Element>(
    arithmetic: Arithmetic,
    y: &mut [Y],
    x: &[X],
    weight: &[X],
    epilogue: &Epilogue<'_>,
    sizes: &Sizes,
    scratch: &mut Scratch,
) {
    let Arithmetic { isa, products, .. } = arithmetic;
    let (rows, _) = arithmetic.block();
    let Sizes { k, groups, filters, patch, pixels, .. } = *sizes;
    let (task, tiles) = (task_filters(arithmetic), pixels.div_ceil(rows));
    let Scratch { threads, shared } = scratch;
    let (patches, sums) = shared.split_at_mut(packed_patches(arithmetic, sizes));
    let patches: &mut [u32] = cast_slice_mut(patches);
    let sums = &mut sums[..sums_by_filters(arithmetic, sizes)];
    let group_sums = sums.len() / groups;
    let weights = weight.chunks_exact(filters * patch);
    for (group, (sums, weight)) in sums.chunks_exact_mut(group_sums).zip(weights).enumerate() {
        patches.par_chunks_mut(rows * STRIDE).enumerate().for_each(|(index, a)| {
            let depth = arithmetic.depth_blocks(patch).nth(index / tiles).expect("a block");
            let first = index % tiles * rows;
            let pixels = first..(first + rows).min(pixels);
            pack_patches(isa, a, products, x, pixels, group, depth, sizes);
        });
        let patches = &*patches;
        let tasks = sums.par_chunks_mut(task * tiles * rows).zip(weight.par_chunks(task * patch));
        tasks.with_max_len(1).for_each(|(sums, weight)| {
            with_scratch(threads, |buffer| {
                multiply_filters(arithmetic, sums, patches, weight, cast_slice_mut(buffer), sizes);
            });
        });
    }
    let sums = &*sums;
    y.par_chunks_mut(rows * k).enumerate().for_each(|(index, y)| {
        with_scratch(threads, |buffer| {
            let to = Y::sums(y, buffer);
            for (row, to) in to.chunks_exact_mut(k).enumerate() {
                let groups = to.chunks_exact_mut(filters).zip(sums.chunks_exact(group_sums));
                for (to, sums) in groups {
                    let sums = sums[(index * rows + row) * task..].chunks(tiles * rows * task);
                    for (to, sums) in to.chunks_mut(task).zip(sums) {
                        to.copy_from_slice(&sums[..to.len()]);
                    }
                }
            }
            epilogue.finish(isa, y, buffer);
        });
    });
}

/// `patches * w^T` for the filters of a task and all pixels: a row of sums a pixel. `b` is for a panel.
fn multiply_filters<X: Element>(
    arithmetic: Arithmetic,
    sums: &mut [f32],
    patches: &[u32],
    weight: &[X],
    b: &mut [u32],
    sizes: &Sizes,
) {
    let Arithmetic { isa, products, .. } = arithmetic;
    let (rows, columns) = arithmetic.block();
    let (task, tiles) = (task_filters(arithmetic), sizes.pixels.div_ceil(rows));
    let (patch, stride) = (sizes.patch, sizes.patch * size_of::<X>());
    let _prepared = arithmetic.prepare();
    let blocks = patches.chunks_exact(tiles * rows * STRIDE);
    for (depth, patches) in arithmetic.depth_blocks(patch).zip(blocks) {
        for (j, weight) in weight.chunks(columns * patch).enumerate() {
            let (count, here) = (weight.len() / patch, &weight[depth.start..]);
            panel_along(isa, b, products, here, patch, count, depth.len(), columns);
            let next: &[u8] = cast_slice(&weight[depth.end..]);
            let depth_bytes = depth.len() * size_of::<X>();
            let (accumulate, depth) = (depth.start > 0, products.words(depth.len()));
            let tiles = patches.chunks_exact(rows * STRIDE).zip(sums.chunks_exact_mut(rows * task));
            for (tile_index, (a, sums)) in tiles.enumerate() {
                let values = &mut sums[j * columns..];
                let out = Out { values, stride: task, rows, columns, accumulate };
                // A tile's steps ask for some lines of each row of the next block.
                let at = tile_index * (depth / AHEAD) * LINE;
                let wanted = at < depth_bytes && at < next.len();
                let ahead = wanted.then(|| Ahead { bytes: &next[at..], stride, rows: AHEAD });
                let (layout, b, b_stride) = (Layout::Rows, &*b, columns);
                tile(isa, out, Operands { products, depth, a, layout, b, b_stride, ahead });
            }
        }
    }
}

/// `y = maxpool(epilogue(patches * w^T))`, without keeping the convolution's output.
pub fn forward_pooled<T: Element>(
    arithmetic: Arithmetic,
    (y, switches): (&mut [T], &mut [u8]),
    x: &[T],
    weight: &[T],
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
                let (a, buffer) = buffer.split_at_mut(arithmetic.block().0 * STRIDE);
                let (lines, sums) = buffer.split_at_mut(POOLED_LINES * line);
                let a = cast_slice_mut(a);
                let lines: &mut [T] = &mut cast_slice_mut(lines)[..POOLED_LINES * line];
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
                    multiply_patches(arithmetic, T::sums(new, sums), x, packed, first, a, sizes);
                    epilogue.finish(isa, new, sums);
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

/// Words of the filters of all groups as panels.
fn packed_len(sizes: &Sizes, arithmetic: Arithmetic) -> usize {
    let (_, columns) = arithmetic.block();
    let filters = sizes.filters.next_multiple_of(columns);
    sizes.groups * filters * arithmetic.products.words(sizes.patch)
}

/// Packs the filters of each group, one after the other, as panels.
fn pack_filters<'a, X: Element>(
    arithmetic: Arithmetic,
    buffer: &'a mut [f32],
    weight: &[X],
    sizes: &Sizes,
) -> &'a [u32] {
    let (_, columns) = arithmetic.block();
    let Sizes { groups, filters, patch, .. } = *sizes;
    let packed: &mut [u32] = &mut cast_slice_mut(buffer)[..packed_len(sizes, arithmetic)];
    let group = packed.len() / groups;
    for (packed, weight) in packed.chunks_exact_mut(group).zip(weight.chunks(filters * patch)) {
        panels_along(
            arithmetic.isa,
            packed,
            arithmetic.products,
            weight,
            patch,
            filters,
            patch,
            columns,
        );
    }
    packed
}

/// `y = patches * w^T` for as many output pixels as fit into `y`, the first of which is `first`.
fn multiply_patches<X: Element>(
    arithmetic: Arithmetic,
    y: &mut [f32],
    x: &[X],
    packed: &[u32],
    first: usize,
    a: &mut [u32],
    sizes: &Sizes,
) {
    let Arithmetic { isa, products, .. } = arithmetic;
    let (rows, columns) = arithmetic.block();
    let Sizes { k, filters, patch, .. } = *sizes;
    let panel = products.words(patch) * columns;
    let count = y.len() / k;
    let _prepared = arithmetic.prepare();
    for (group, packed) in packed.chunks_exact(filters.div_ceil(columns) * panel).enumerate() {
        for depth in arithmetic.depth_blocks(patch) {
            for start in (0..count).step_by(rows) {
                let rows = rows.min(count - start);
                let pixels = first + start..first + start + rows;
                pack_patches(isa, a, products, x, pixels, group, depth.clone(), sizes);
                for (j, b) in packed.chunks_exact(panel).enumerate() {
                    let b = &b[products.words(depth.start) * columns..];
                    let out = Out {
                        values: &mut y[start * k + group * filters + j * columns..],
                        stride: k,
                        rows,
                        columns: columns.min(filters - j * columns),
                        accumulate: depth.start > 0,
                    };
                    let (depth, layout) = (products.words(depth.len()), Layout::Rows);
                    tile(
                        isa,
                        out,
                        Operands { products, depth, a, layout, b, b_stride: columns, ahead: None },
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

/// Whether data gradients are made pixel by pixel of `dx`, not pixel by pixel of `dy`: where products take
/// so little time that adding patches takes as much again. Otherwise the taps that lie outside the output
/// make it slower.
fn gathers(sizes: &Sizes, arithmetic: Arithmetic) -> bool {
    let Sizes { h, w, p, q, channels, filters, stride, .. } = *sizes;
    let (_, columns) = arithmetic.block();
    // Products of either way, each over the taps of all filters; what fills no tile is lost.
    let gathered =
        h.div_ceil(stride[0]) * w.div_ceil(stride[1]) * channels.next_multiple_of(columns);
    arithmetic.products == Products::Bf16Tiles
        && filters.is_multiple_of(2)
        && 4 * gathered <= 5 * p * q * channels
}

/// Rows of `dx` of a task, for each parity.
fn data_rows(sizes: &Sizes, arithmetic: Arithmetic) -> usize {
    let (rows, _) = arithmetic.block();
    (TILES * rows / sizes.w.div_ceil(sizes.stride[1])).max(1)
}

/// `dx = conv^T(dy, w)`.
pub fn backward_data<T: Element>(
    arithmetic: Arithmetic,
    dx: &mut [T],
    dy: &[T],
    weight: &[T],
    sizes: &Sizes,
    scratch: &mut Scratch,
) {
    if gathers(sizes, arithmetic) {
        gather_data(arithmetic, dx, dy, weight, sizes, scratch);
    } else {
        scatter_data(arithmetic, dx, dy, weight, sizes, scratch);
    }
}

/// `dx = patches of dy * w`, for each parity.
fn gather_data<T: Element>(
    arithmetic: Arithmetic,
    dx: &mut [T],
    dy: &[T],
    weight: &[T],
    sizes: &Sizes,
    scratch: &mut Scratch,
) {
    let Arithmetic { isa, products, .. } = arithmetic;
    let (rows, columns) = arithmetic.block();
    let Sizes { h, w, c, groups, filters, channels, patch, stride, .. } = *sizes;
    let mut rest: &mut [u32] = cast_slice_mut(&mut scratch.shared);
    let mut packed = Vec::new();
    for parity in sizes.parities() {
        let (panels, left) = rest.split_at_mut(packed_len(&parity.sizes, arithmetic));
        rest = left;
        let group = (panels.len() / groups).max(1);
        for (index, panels) in panels.chunks_exact_mut(group).enumerate() {
            let weight = &weight[index * filters * patch..];
            let taps = &parity.taps;
            panels_across(isa, panels, products, weight, taps, patch, channels, filters, columns);
        }
        packed.push((parity, &*panels));
    }
    let (packed, threads) = (&packed, &scratch.threads);
    let task = data_rows(sizes, arithmetic) * stride[0];
    dx.par_chunks_mut(h * w * c).enumerate().for_each(|(image, dx)| {
        dx.par_chunks_mut(task * w * c).enumerate().for_each(|(index, dx)| {
            with_scratch(threads, |buffer| {
                let (a, buffer) = buffer.split_at_mut(rows * STRIDE);
                let a: &mut [u32] = cast_slice_mut(a);
                let first = index * task / stride[0];
                for (Parity { sizes, offset, .. }, packed) in packed {
                    let end = dx.len() / (w * c);
                    let rows = end.saturating_sub(offset[0]).div_ceil(stride[0]);
                    let pixels = (image * sizes.p + first) * sizes.q;
                    let sums = &mut buffer[..rows * sizes.q * c];
                    if sizes.patch == 0 {
                        sums.fill(0.0);
                    } else {
                        multiply_patches(arithmetic, sums, dy, packed, pixels, a, sizes);
                    }
                    for (row, sums) in sums.chunks_exact(sizes.q * c).enumerate() {
                        let row = (row * stride[0] + offset[0]) * w + offset[1];
                        spread(isa, &mut dx[row * c..], stride[1] * c, sums, c);
                    }
                }
            });
        });
    });
}

/// `patches' = dy * w`, added to where they lie.
fn scatter_data<T: Element>(
    arithmetic: Arithmetic,
    dx: &mut [T],
    dy: &[T],
    weight: &[T],
    sizes: &Sizes,
    scratch: &mut Scratch,
) {
    let Arithmetic { isa, products, .. } = arithmetic;
    let (rows, columns) = arithmetic.block();
    let Sizes { k, filters, patch, .. } = *sizes;
    // Filters as columns, for each group and each chunk of the patch.
    let steps = products.words(filters);
    let mut rest: &mut [u32] = cast_slice_mut(&mut scratch.shared);
    let mut packed = Vec::new();
    for group in 0..sizes.groups {
        for chunk in chunks(sizes) {
            let len = steps * chunk.len().next_multiple_of(columns);
            let (panels, left) = rest.split_at_mut(len);
            rest = left;
            let places = &[group * filters * patch + chunk.start];
            let count = chunk.len();
            panels_across(isa, panels, products, weight, places, patch, count, filters, columns);
            packed.push((group, chunk, &*panels));
        }
    }
    let (packed, threads) = (&packed, &scratch.threads);
    // One image a task: patches overlap, and their sum must have one order.
    let image_values = sizes.h * sizes.w * sizes.c;
    let image_pixels = sizes.p * sizes.q;
    dx.par_chunks_mut(image_values).enumerate().for_each(|(image, dx)| {
        with_scratch(threads, |buffer| {
            let (a, buffer) = buffer.split_at_mut(rows * STRIDE);
            let (sums, patches) = buffer.split_at_mut(image_values);
            let a: &mut [u32] = cast_slice_mut(a);
            T::sums(dx, sums).fill(0.0);
            let _prepared = arithmetic.prepare();
            let (first, end) = (image * image_pixels, (image + 1) * image_pixels);
            for start in (first..end).step_by(TILES * rows) {
                let pixels = start..(start + TILES * rows).min(end);
                for (group, chunk, packed) in packed {
                    let stride = chunk.len().next_multiple_of(columns);
                    for depth in arithmetic.depth_blocks(filters) {
                        for start in pixels.clone().step_by(rows) {
                            let rows = rows.min(pixels.end - start);
                            let dy = &dy[start * k + group * filters + depth.start..];
                            pack_rows(isa, a, products, dy, k, depth.len(), rows);
                            for (j, b) in packed.chunks_exact(steps * columns).enumerate() {
                                let b = &b[products.words(depth.start) * columns..];
                                let at = (start - pixels.start) * stride + j * columns;
                                let (values, accumulate) = (&mut patches[at..], depth.start > 0);
                                let out = Out { values, stride, rows, columns, accumulate };
                                let depth = products.words(depth.len());
                                let (layout, b_stride) = (Layout::Rows, columns);
                                tile(
                                    isa,
                                    out,
                                    Operands {
                                        products,
                                        depth,
                                        a,
                                        layout,
                                        b,
                                        b_stride,
                                        ahead: None,
                                    },
                                );
                            }
                        }
                    }
                    let (pixels, chunk) = (pixels.clone(), chunk.clone());
                    let (dx, offset) = (T::sums(dx, sums), image * image_values);
                    add_patches(isa, dx, offset, patches, stride, pixels, *group, chunk, sizes);
                }
            }
            keep(isa, dx, sums);
        });
    });
}

/// A gradient of the output.
#[derive(Clone, Copy)]
pub enum OutputGradient<'a, T> {
    /// As it is.
    Values(&'a [T]),
    /// What a max pooling with these switches lets down of its own.
    Pooled(&'a [T], &'a [u8], &'a PoolDims),
}

impl<'a, T: Element> OutputGradient<'a, T> {
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
    ) -> &'a [T] {
        let Sizes { k, p, q, .. } = *sizes;
        match self {
            OutputGradient::Values(dy) => &dy[pixels.start * k..pixels.end * k],
            OutputGradient::Pooled(dy, switches, pool) => {
                let image = pool.output().per_image();
                let rows: &mut [T] = &mut cast_slice_mut(buffer)[..pixels.len() * k];
                for (row, dx) in (pixels.start / q..).zip(rows.chunks_exact_mut(q * k)) {
                    let from = row / p * image..(row / p + 1) * image;
                    let (dy, switches) = (&dy[from.clone()], &switches[from]);
                    pool::backward_row(arithmetic.isa, dx, dy, switches, row % p, true, pool);
                }
                rows
            }
        }
    }
}

/// Values of a part of a filter gradient: all filters, then all biases.
fn partial(sizes: &Sizes) -> usize {
    sizes.k * sizes.patch + sizes.k
}

/// Rows of `dy`, transposed, that are packed beside each other, and words of them with so many pixels.
fn gradient_blocks(sizes: &Sizes, arithmetic: Arithmetic, pixels: usize) -> (usize, usize) {
    let (rows, _) = arithmetic.block();
    let block = DEPTH / rows * rows;
    let filters = block.min(sizes.filters.next_multiple_of(rows));
    (block, filters.max(arithmetic.products.words(pixels)) * STRIDE)
}

/// Parts that a filter gradient is summed in: fewer of large filters, whose sums would take more memory than
/// activations do.
fn parts(sizes: &Sizes) -> usize {
    (PARTIAL_SUMS / partial(sizes)).clamp(PARTS / 2, PARTS)
}

/// `dw = dy^T * patches`, in parts of the pixels.
pub fn backward_filter<T: Element>(
    arithmetic: Arithmetic,
    dw: &mut [f32],
    db: &mut [f32],
    dy: OutputGradient<'_, T>,
    x: &[T],
    accumulate: bool,
    sizes: &Sizes,
    scratch: &mut Scratch,
) {
    let isa = arithmetic.isa;
    let Sizes { k, patch, .. } = *sizes;
    let block_pixels = dy.pixels(sizes, arithmetic.block().0);
    let blocks = sizes.pixels.div_ceil(block_pixels);
    let (count, len) = (parts(sizes).min(blocks), partial(sizes));
    let Scratch { threads, shared } = scratch;
    let partials = &mut shared[..count * len];
    partials.par_chunks_mut(len).enumerate().for_each(|(part, partial)| {
        let (first, end) = (part * blocks / count, (part + 1) * blocks / count);
        with_scratch(threads, |buffer| {
            partial.fill(0.0);
            let _prepared = arithmetic.prepare();
            let (unpooled, buffer) = buffer.split_at_mut(block_pixels * k);
            for index in first..end {
                let start = index * block_pixels;
                let pixels = start..(start + block_pixels).min(sizes.pixels);
                let dy = dy.rows(arithmetic, pixels.clone(), unpooled, sizes);
                add_gradient(arithmetic, partial, dy, x, pixels, cast_slice_mut(buffer), sizes);
            }
        });
    });
    const CHUNK: usize = 4096;
    let partials = &*partials;
    let sum = |from: usize, sum: &mut [f32]| {
        if !accumulate {
            sum.fill(0.0);
        }
        for partial in partials.chunks_exact(len) {
            add_rows(isa, sum, &partial[from..][..sum.len()]);
        }
    };
    dw.par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, dw)| sum(chunk * CHUNK, dw));
    sum(k * patch, db);
}

/// Adds what some pixels, whose gradient is `dy`, contribute to a part.
fn add_gradient<T: Element>(
    arithmetic: Arithmetic,
    partial: &mut [f32],
    dy: &[T],
    x: &[T],
    pixels: Range<usize>,
    buffer: &mut [u32],
    sizes: &Sizes,
) {
    let Arithmetic { isa, products, .. } = arithmetic;
    let (rows, columns) = arithmetic.block();
    let Sizes { k, filters, patch, .. } = *sizes;
    let (count, steps) = (pixels.len(), products.words(pixels.len()));
    let (patches, buffer) = buffer.split_at_mut(count * STRIDE);
    let (pairs, packed) = buffer.split_at_mut(steps * STRIDE);
    let (dw, db) = partial.split_at_mut(k * patch);
    add_rows(isa, db, dy);
    let (block_rows, packed_rows) = gradient_blocks(sizes, arithmetic, count);
    for (group, dw) in dw.chunks_exact_mut(filters * patch).enumerate() {
        let mut layout = Layout::Rows;
        for (i, packed) in packed.chunks_exact_mut(packed_rows).enumerate() {
            let first = i * block_rows;
            if first < filters {
                let (dy, wanted) =
                    (&dy[group * filters + first..], block_rows.min(filters - first));
                layout = pack_transposed(isa, packed, products, dy, k, count, wanted);
            }
        }
        let step = DEPTH / columns * columns;
        for from in (0..patch).step_by(step) {
            let depth = from..(from + step).min(patch);
            let (pixels, wanted) = (pixels.clone(), depth.len());
            pack_patches(isa, patches, products, x, pixels, group, depth, sizes);
            let words = if products == Products::F32 {
                &*patches
            } else {
                // Packed as rows; words are of neighbouring pixels.
                let rows: &[T] = cast_slice(patches);
                let stride = STRIDE * size_of::<u32>() / size_of::<T>();
                pack_across(isa, pairs, STRIDE, products, rows, stride, count, wanted);
                &*pairs
            };
            for i in (0..filters).step_by(rows) {
                let (block, row) = (i / block_rows, i % block_rows);
                let at = match layout {
                    Layout::Rows => row * STRIDE,
                    Layout::Columns => row,
                };
                let a = &packed[block * packed_rows + at..];
                for j in (0..wanted).step_by(columns) {
                    let out = Out {
                        values: &mut dw[i * patch + from + j..],
                        stride: patch,
                        rows: rows.min(filters - i),
                        columns: columns.min(wanted - j),
                        accumulate: true,
                    };
                    let (depth, b, b_stride) = (steps, &words[j..], STRIDE);
                    tile(
                        isa,
                        out,
                        Operands { products, depth, a, layout, b, b_stride, ahead: None },
                    );
                }
            }
        }
    }
}
