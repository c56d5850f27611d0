//! Convolution as matrix products over patches, in its three directions.
//!
//! In words: a row of the patch matrix holds the `R S C` inputs that one output pixel sees, so
//!
//! - forward: `y [NPQ, K] = patches [NPQ, RSC] * w^T`,
//! - backward data: `patches' = dy [NPQ, K] * w [K, RSC]`, each row then *added* to where its
//!   inputs lie,
//! - backward filter: `dw [K, RSC] = dy^T * patches`.
//!
//! Departures from that:
//!
//! 1. Patches are made for a tile of output pixels at a time, small enough for the L2 cache.
//! 2. Where a patch is a contiguous run of the input (1x1 filters, and fully connected layers,
//!    whose filter covers the whole input), the input *is* the patch matrix, and few rows are
//!    split by columns instead, so that a batch reads the weights once.
//! 3. Work is cut by sizes alone, never by the number of threads; the filter gradient sums a
//!    fixed number of groups of tiles apart and adds them in order. So results do not depend on
//!    threads.

use std::ops::Range;
use std::sync::Mutex;

use faer::MatMut;
use rayon::prelude::*;

use super::CpuBackend;
use super::gemm::{gemm, matrix, matrix_mut};
use super::isa::{Isa, vectorized};
use super::memory::Storage;
use super::pointwise::{add, add_rows, bias_relu, relu as relu_in_place};
use crate::Result;
use crate::shape::ConvDims;

/// Values of a tile of patches: 1 MiB of f32.
const TILE_VALUES: usize = 1 << 18;
/// Groups of tiles whose filter gradients are summed apart.
const GROUPS: usize = 16;
/// Columns of a product with few rows that make one task.
const COLUMN_TASK: usize = 128;

/// Room for patches, one slot a thread, and for partial filter gradients.
pub struct Scratch {
    slots: Vec<Mutex<Storage>>,
    partials: Storage,
}

impl Scratch {
    /// Room for each of these convolutions on the backend's threads.
    ///
    /// # Errors
    /// If there is none.
    pub fn new(backend: &CpuBackend, convolutions: &[ConvDims]) -> Result<Self> {
        let all = convolutions.iter().map(Sizes::new);
        let patched = all.filter(|sizes| !sizes.direct);
        let (mut tile, mut partials) = (0, 0);
        for sizes in patched {
            tile = tile.max(sizes.tile * sizes.patch);
            partials = partials.max(sizes.groups() * sizes.partial());
        }
        let slots = (0..backend.threads()).map(|_| Ok(Mutex::new(backend.room(tile)?)));
        Ok(Scratch { slots: slots.collect::<Result<_>>()?, partials: backend.room(partials)? })
    }

    /// The calling thread's slot. Each thread of the pool has its own, so it is always free.
    fn with_slot<T>(slots: &[Mutex<Storage>], work: impl FnOnce(&mut [f32]) -> T) -> T {
        let thread = rayon::current_thread_index().unwrap_or(0);
        work(&mut slots[thread].lock().expect("a thread panicked while it held its patches"))
    }
}

/// [`ConvDims`] as `usize`, and what follows from them.
#[derive(Clone, Copy)]
struct Sizes {
    h: usize,
    w: usize,
    c: usize,
    k: usize,
    r: usize,
    s: usize,
    p: usize,
    q: usize,
    stride: [usize; 2],
    pad: [usize; 2],
    groups: usize,
    /// Output pixels of all images.
    pixels: usize,
    /// Values of a patch of one group: `R S C / groups`.
    patch: usize,
    /// Output pixels of a tile.
    tile: usize,
    /// Whether the input is the patch matrix.
    direct: bool,
}

impl Sizes {
    fn new(dims: &ConvDims) -> Self {
        let [h, w, c] = [dims.h, dims.w, dims.c].map(|v| v as usize);
        let [k, r, s, p, q] = [dims.k, dims.r, dims.s, dims.p, dims.q].map(|v| v as usize);
        let groups = dims.groups as usize;
        let stride = dims.stride.map(|v| v as usize);
        let pad = dims.pad.map(|v| v as usize);
        let patch = r * s * (c / groups);
        let pixels = dims.n as usize * p * q;
        let tile = (TILE_VALUES / patch).clamp(128, 1024).next_multiple_of(16);
        let one_by_one = (r, s, stride) == (1, 1, [1, 1]) && (p, q) == (h, w);
        let covers = (r, s, p, q) == (h, w, 1, 1);
        let direct = groups == 1 && pad == [0, 0] && (one_by_one || covers);
        Sizes { h, w, c, k, r, s, p, q, stride, pad, groups, pixels, patch, tile, direct }
    }

    /// Values of one group's filters.
    fn filters(&self) -> usize {
        self.k / self.groups * self.patch
    }

    fn tiles(&self) -> usize {
        self.pixels.div_ceil(self.tile)
    }

    /// Number of partial filter gradients.
    fn groups(&self) -> usize {
        GROUPS.min(self.tiles())
    }

    /// Values of a partial filter gradient: all filters, then all biases.
    fn partial(&self) -> usize {
        self.k * self.patch + self.k
    }

    /// The output pixels of a tile.
    fn tile_range(&self, tile: usize) -> Range<usize> {
        tile * self.tile..((tile + 1) * self.tile).min(self.pixels)
    }

    /// Whether there are too few rows to give every thread some.
    fn few_rows(&self) -> bool {
        self.tiles() < 8
    }

    /// Calls `run(patch_start, input_start, len)` for each contiguous run of the patch of output
    /// pixel `pixel` (input offsets from the start of all images); `zero` for runs outside.
    #[inline(always)]
    fn runs(
        &self,
        pixel: usize,
        group: usize,
        mut run: impl FnMut(usize, usize, usize),
        mut zero: impl FnMut(usize, usize),
    ) {
        let (image, y, x) = (pixel / (self.p * self.q), pixel / self.q % self.p, pixel % self.q);
        let channels = self.c / self.groups;
        let left = (x * self.stride[1]) as isize - self.pad[1] as isize;
        let first = (-left).clamp(0, self.s as isize) as usize;
        let last = (self.w as isize - left).clamp(first as isize, self.s as isize) as usize;
        for r in 0..self.r {
            let row = (y * self.stride[0] + r) as isize - self.pad[0] as isize;
            let start = r * self.s * channels;
            if row < 0 || row >= self.h as isize || first == last {
                zero(start, self.s * channels);
                continue;
            }
            zero(start, first * channels);
            zero(start + last * channels, (self.s - last) * channels);
            let line = (image * self.h + row as usize) * self.w;
            let column = (left + first as isize) as usize;
            let input = (line + column) * self.c + group * channels;
            if self.groups == 1 {
                run(start + first * channels, input, (last - first) * channels);
            } else {
                for s in 0..last - first {
                    run(start + (first + s) * channels, input + s * self.c, channels);
                }
            }
        }
    }

    /// Writes the patches of these output pixels, one a row.
    fn pack(&self, patches: &mut [f32], x: &[f32], pixels: Range<usize>, group: usize) {
        for (patch, pixel) in patches.chunks_exact_mut(self.patch).zip(pixels) {
            let patch = std::cell::RefCell::new(patch);
            self.runs(
                pixel,
                group,
                |to, from, len| {
                    patch.borrow_mut()[to..to + len].copy_from_slice(&x[from..from + len])
                },
                |to, len| patch.borrow_mut()[to..to + len].fill(0.0),
            );
        }
    }
}

vectorized! {
    /// Adds the patches of these output pixels to where their values lie; `dx` starts at `offset`.
    fn unpack_add(
        dx: &mut [f32],
        offset: usize,
        patches: &[f32],
        pixels: Range<usize>,
        group: usize,
        sizes: &Sizes,
    ) {
        for (patch, pixel) in patches.chunks_exact(sizes.patch).zip(pixels) {
            let add = |from: usize, to: usize, len: usize| {
                let to = to - offset;
                for (sum, value) in dx[to..to + len].iter_mut().zip(&patch[from..from + len]) {
                    *sum += value;
                }
            };
            sizes.runs(pixel, group, add, |_, _| ());
        }
    }
}

/// `y = conv(x, w) + bias`, then relu if asked for.
pub fn forward(
    isa: Isa,
    y: &mut [f32],
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    relu: bool,
    dims: &ConvDims,
    scratch: &mut Scratch,
) {
    let sizes = &Sizes::new(dims);
    let Sizes { k, groups, patch, .. } = *sizes;
    if sizes.direct && sizes.few_rows() {
        let (x, w) = (matrix(x, sizes.pixels, patch), matrix(weight, k, patch));
        column_tasks(matrix_mut(y, sizes.pixels, k), |out, columns| {
            let w = w.subrows(columns.start, columns.len());
            gemm(isa, out, false, x, w.transpose());
        });
        y.par_chunks_mut(k).for_each(|y| epilogue(isa, y, bias, relu));
        return;
    }
    let slots = &scratch.slots;
    y.par_chunks_mut(sizes.tile * k).enumerate().for_each(|(tile, y)| {
        let pixels = sizes.tile_range(tile);
        let rows = pixels.len();
        if sizes.direct {
            let x = matrix(&x[pixels.start * patch..], rows, patch);
            let w = matrix(weight, k, patch).transpose();
            gemm(isa, matrix_mut(y, rows, k), false, x, w);
        } else {
            Scratch::with_slot(slots, |patches| {
                let filters = k / groups;
                for group in 0..groups {
                    let patches = &mut patches[..rows * patch];
                    sizes.pack(patches, x, pixels.clone(), group);
                    let w = matrix(&weight[group * sizes.filters()..], filters, patch).transpose();
                    let y = matrix_mut(y, rows, k).subcols_mut(group * filters, filters);
                    gemm(isa, y, false, matrix(patches, rows, patch), w);
                }
            });
        }
        epilogue(isa, y, bias, relu);
    });
}

/// `dx = conv^T(dy, w)`.
pub fn backward_data(
    isa: Isa,
    dx: &mut [f32],
    dy: &[f32],
    weight: &[f32],
    dims: &ConvDims,
    scratch: &mut Scratch,
) {
    let sizes = &Sizes::new(dims);
    let Sizes { k, groups, patch, .. } = *sizes;
    if sizes.direct {
        let w = matrix(weight, k, patch);
        if sizes.few_rows() {
            let dy = matrix(dy, sizes.pixels, k);
            column_tasks(matrix_mut(dx, sizes.pixels, patch), |out, columns| {
                gemm(isa, out, false, dy, w.subcols(columns.start, columns.len()));
            });
        } else {
            dx.par_chunks_mut(sizes.tile * patch).enumerate().for_each(|(tile, dx)| {
                let pixels = sizes.tile_range(tile);
                let dy = matrix(&dy[pixels.start * k..], pixels.len(), k);
                gemm(isa, matrix_mut(dx, pixels.len(), patch), false, dy, w);
            });
        }
        return;
    }
    // One image a task: patches overlap, and their sum must have one order.
    let image_values = sizes.h * sizes.w * sizes.c;
    let image_pixels = sizes.p * sizes.q;
    let slots = &scratch.slots;
    dx.par_chunks_mut(image_values).enumerate().for_each(|(image, dx)| {
        dx.fill(0.0);
        Scratch::with_slot(slots, |patches| {
            let (first, end) = (image * image_pixels, (image + 1) * image_pixels);
            for start in (first..end).step_by(sizes.tile) {
                let pixels = start..(start + sizes.tile).min(end);
                let rows = pixels.len();
                let filters = k / groups;
                for group in 0..groups {
                    let dy = matrix(&dy[pixels.start * k..], rows, k);
                    let dy = dy.subcols(group * filters, filters);
                    let w = matrix(&weight[group * sizes.filters()..], filters, patch);
                    let patches = &mut patches[..rows * patch];
                    gemm(isa, matrix_mut(patches, rows, patch), false, dy, w);
                    unpack_add(
                        isa,
                        dx,
                        image * image_values,
                        patches,
                        pixels.clone(),
                        group,
                        sizes,
                    );
                }
            }
        });
    });
}

/// `dw = sum over output pixels of dy * patch`, `db = sum of dy`; added to what is there with
/// `accumulate`.
pub fn backward_filter(
    isa: Isa,
    dw: &mut [f32],
    db: &mut [f32],
    dy: &[f32],
    x: &[f32],
    accumulate: bool,
    dims: &ConvDims,
    scratch: &mut Scratch,
) {
    let sizes = &Sizes::new(dims);
    let Sizes { k, groups, patch, .. } = *sizes;
    if sizes.direct {
        let rows = sizes.pixels;
        let (dy, x) = (matrix(dy, rows, k), matrix(x, rows, patch));
        let filters = k.div_ceil(32).clamp(8, 128);
        dw.par_chunks_mut(filters * patch).enumerate().for_each(|(task, dw)| {
            let count = dw.len() / patch;
            let dy = dy.subcols(task * filters, count).transpose();
            gemm(isa, matrix_mut(dw, count, patch), accumulate, dy, x);
        });
        db.par_iter_mut().enumerate().for_each(|(k, db)| {
            let sum: f32 = (0..rows).map(|row| dy[(row, k)]).sum();
            *db = if accumulate { *db + sum } else { sum };
        });
        return;
    }
    let Scratch { slots, partials } = scratch;
    let count = sizes.groups();
    let partials = &mut partials[..count * sizes.partial()];
    partials.par_chunks_mut(sizes.partial()).enumerate().for_each(|(part, partial)| {
        let (dw, db) = partial.split_at_mut(k * patch);
        db.fill(0.0);
        let tiles = part * sizes.tiles() / count..(part + 1) * sizes.tiles() / count;
        let first_tile = tiles.start;
        for tile in tiles {
            let pixels = sizes.tile_range(tile);
            let rows = pixels.len();
            let dy = &dy[pixels.start * k..pixels.end * k];
            add_rows(isa, db, dy);
            Scratch::with_slot(slots, |patches| {
                let filters = k / groups;
                for group in 0..groups {
                    let patches = &mut patches[..rows * patch];
                    sizes.pack(patches, x, pixels.clone(), group);
                    let dy = matrix(dy, rows, k).subcols(group * filters, filters).transpose();
                    let dw = &mut dw[group * sizes.filters()..];
                    let dw = matrix_mut(dw, filters, patch);
                    gemm(isa, dw, tile > first_tile, dy, matrix(patches, rows, patch));
                }
            });
        }
    });
    let (partials, stride) = (&*partials, sizes.partial());
    let add_partials = |out: &mut [f32], offset: usize| {
        const CHUNK: usize = 4096;
        out.par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, out)| {
            if !accumulate {
                out.fill(0.0);
            }
            for partial in partials.chunks_exact(stride) {
                add(isa, out, &partial[offset + chunk * CHUNK..][..out.len()]);
            }
        });
    };
    add_partials(dw, 0);
    add_partials(db, k * patch);
}

/// Cuts a product with few rows into tasks of [`COLUMN_TASK`] columns.
fn column_tasks(out: MatMut<'_, f32>, task: impl Fn(MatMut<'_, f32>, Range<usize>) + Sync) {
    fn split<F: Fn(MatMut<'_, f32>, Range<usize>) + Sync>(
        out: MatMut<'_, f32>,
        first: usize,
        task: &F,
    ) {
        let columns = out.ncols();
        if columns <= COLUMN_TASK {
            return task(out, first..first + columns);
        }
        let half = columns.div_ceil(2).next_multiple_of(COLUMN_TASK);
        let (left, right) = out.split_at_col_mut(half);
        rayon::join(|| split(left, first, task), || split(right, first + half, task));
    }
    split(out, 0, &task);
}

/// Adds the bias to every row, then relu.
fn epilogue(isa: Isa, y: &mut [f32], bias: Option<&[f32]>, relu: bool) {
    match bias {
        Some(bias) => bias_relu(isa, y, bias, relu),
        None if relu => relu_in_place(isa, y),
        None => {}
    }
}
