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

use super::pack::{add_patches, pack_across, pack_patches, pack_rows, panels_across, panels_along};
use super::{Arithmetic, Epilogue, Room, Scratch, Sizes, with_room};
use crate::backend::cpu::gemm::{DEPTH, Layout, Operands, Out, STRIDE, Words, block, tile};
use crate::backend::cpu::pointwise::add_rows;

/// Tiles, one under the other, of a task.
const TILES: usize = 8;
/// Parts that filter gradients are summed in.
const PARTS: usize = 16;
/// Values of patches that are added to their places at a time, a pixel.
const UNPACKED: usize = 512;

/// What any direction needs.
pub fn room(sizes: &Sizes, arithmetic: Arithmetic) -> Room {
    let (rows, columns) = block(arithmetic.isa);
    let filters = sizes.filters.next_multiple_of(columns);
    let pixels = TILES * rows;
    let forward = sizes.groups * arithmetic.words.count(sizes.patch) * filters;
    let chunks = sizes.groups * chunks(sizes).count();
    let chunk = unpacked_lines(sizes) * sizes.s * sizes.channels;
    let chunk = chunk.next_multiple_of(columns);
    let backward = chunks * arithmetic.words.count(sizes.filters) * chunk;
    Room {
        thread: (rows * STRIDE + pixels * chunk).max(2 * pixels * STRIDE + pixels * filters),
        shared: forward.max(backward).max(parts(sizes, rows) * partial(sizes)),
    }
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
    let Arithmetic { isa, words, .. } = arithmetic;
    let (rows, columns) = block(isa);
    let Sizes { k, filters, patch, .. } = *sizes;
    let panels = filters.div_ceil(columns);
    let panel = words.count(patch) * columns;
    let packed = &mut cast_slice_mut(&mut scratch.shared)[..sizes.groups * panels * panel];
    for (group, packed) in packed.chunks_exact_mut(panels * panel).enumerate() {
        let weight = &weight[group * filters * patch..];
        panels_along(packed, words, weight, patch, filters, patch, columns);
    }
    let (packed, threads) = (&*packed, &scratch.threads);
    let task = TILES * rows;
    y.par_chunks_mut(task * k).enumerate().for_each(|(index, y)| {
        with_room(threads, |room| {
            let a: &mut [u32] = cast_slice_mut(room);
            let (first, count) = (index * task, y.len() / k);
            for (group, packed) in packed.chunks_exact(panels * panel).enumerate() {
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
                            let depth = words.count(depth.len());
                            let (layout, b_stride) = (Layout::Rows, columns);
                            tile(isa, out, Operands { words, depth, a, layout, b, b_stride });
                        }
                    }
                }
            }
            epilogue.run(isa, y);
        });
    });
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
        with_room(threads, |room| {
            let (a, patches) = room.split_at_mut(rows * STRIDE);
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
                                tile(isa, out, Operands { words, depth, a, layout, b, b_stride });
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

/// Parts that a filter gradient is summed in.
fn parts(sizes: &Sizes, rows: usize) -> usize {
    PARTS.min(sizes.pixels.div_ceil(TILES * rows))
}

/// Values of a part: all filters, their patches from row to row, then all biases.
fn partial(sizes: &Sizes) -> usize {
    sizes.k * sizes.patch + sizes.k
}

/// `dw^T = patches^T * dy`, in parts of the pixels.
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
    let Sizes { k, filters, patch, .. } = *sizes;
    let block_pixels = TILES * rows;
    let (count, len) = (parts(sizes, rows), partial(sizes));
    let blocks = sizes.pixels.div_ceil(block_pixels);
    let Scratch { threads, shared } = scratch;
    let partials = &mut shared[..count * len];
    partials.par_chunks_mut(len).enumerate().for_each(|(part, partial)| {
        let (dw, db) = partial.split_at_mut(k * patch);
        db.fill(0.0);
        let (first, end) = (part * blocks / count, (part + 1) * blocks / count);
        with_room(threads, |room| {
            let room: &mut [u32] = cast_slice_mut(room);
            let (a, room) = room.split_at_mut(block_pixels * STRIDE);
            let (pairs, panels) = room.split_at_mut(block_pixels * STRIDE);
            for index in first..end {
                let start = index * block_pixels;
                let pixels = start..(start + block_pixels).min(sizes.pixels);
                let (count, steps) = (pixels.len(), words.count(pixels.len()));
                let dy = &dy[pixels.start * k..pixels.end * k];
                add_rows(isa, db, dy);
                for (group, dw) in dw.chunks_exact_mut(filters * patch).enumerate() {
                    for (j, panel) in panels
                        .chunks_mut(steps * columns)
                        .take(filters.div_ceil(columns))
                        .enumerate()
                    {
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
                                let a = cast_slice(a);
                                pack_across(isa, pairs, STRIDE, words, a, STRIDE, count, wanted);
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
                                    accumulate: index > first,
                                };
                                let (a, b) = (&a[i..], &panels[j * steps..]);
                                let (layout, depth, b_stride) = (Layout::Columns, steps, columns);
                                tile(isa, out, Operands { words, depth, a, layout, b, b_stride });
                            }
                        }
                    }
                }
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
