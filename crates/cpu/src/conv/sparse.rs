//! The way back to the inputs when most of `dy` is zero, as below an unpooling: only what is not zero is
//! multiplied.
//!
//! A row of `patches' = dy * w` ([`super::direct`]) is a sum of rows of `w`, one for each filter, times
//! the values of `dy`. Here it is the sum of those rows alone whose value is not zero, a chunk of
//! the row at a time, which stays in registers meanwhile. The values that are not zero are listed once
//! for all chunks.
//!
//! A zero is not multiplied, even by a weight that is not finite.

use std::ops::Range;

use bytemuck::{cast_slice, cast_slice_mut};
use rayon::prelude::*;

use super::pack::add_patches;
use super::{Arithmetic, Epilogue, Scratch, ScratchSize, Sizes, with_scratch};
use crate::gemm::{Words, lanes};
use crate::isa::{Isa, vectorized};
use crate::pointwise::round;
use crate::simd::{Simd, vectors};

/// Vectors of a chunk: with a value and a row of `w` they fit into 16 registers.
const VECTORS: usize = 10;
/// Pixels that are listed, and multiplied by a chunk of `w`, at a time.
const PIXELS: usize = 256;
/// Pixels that are looked at to learn how many values are zero.
const SAMPLE: usize = 512;

/// Whether no more than this share of `dy`, so far as a sample of its pixels tells, is not zero.
pub fn suits(sizes: &Sizes, dy: &[f32], share: f32) -> bool {
    let Sizes { k, pixels, .. } = *sizes;
    let count = SAMPLE.min(pixels);
    let sample = (0..count).map(|i| i * pixels / count);
    let values = |pixel: usize| &dy[pixel * k..(pixel + 1) * k];
    let found: usize =
        sample.map(|pixel| values(pixel).iter().filter(|value| **value != 0.0).count()).sum();
    found as f32 <= share * (count * k) as f32
}

/// What it needs.
pub fn scratch_size(sizes: &Sizes, arithmetic: Arithmetic) -> ScratchSize {
    let Sizes { k, groups, filters, .. } = *sizes;
    let chunks = Chunks::new(sizes, arithmetic.isa);
    let pixels = PIXELS.min(sizes.pixels);
    let lists = pixels * (2 * k + groups);
    let patches = |count: usize| pixels * count * chunks.width;
    let panel = filters * chunks.width;
    ScratchSize { thread: panel + patches(1) + lists, shared: patches(chunks.count()) + lists }
}

/// How the patches of all groups are cut.
#[derive(Clone, Copy)]
struct Chunks {
    groups: usize,
    patch: usize,
    /// Values of a chunk, whole vectors; of a patch's last one fewer may be wanted.
    width: usize,
}

impl Chunks {
    fn new(sizes: &Sizes, isa: Isa) -> Self {
        let Sizes { groups, patch, .. } = *sizes;
        let vectors = patch.div_ceil(lanes(isa));
        let width = vectors.div_ceil(vectors.div_ceil(VECTORS)) * lanes(isa);
        Chunks { groups, patch, width }
    }

    /// Of all groups.
    fn count(&self) -> usize {
        self.groups * self.patch.div_ceil(self.width)
    }

    /// The group of a chunk, and its part of the patch.
    fn at(&self, index: usize) -> (usize, Range<usize>) {
        let count = self.patch.div_ceil(self.width);
        let start = index % count * self.width;
        (index / count, start..(start + self.width).min(self.patch))
    }
}

/// The values that are not zero, of each group of each pixel: of pixel `i` from `i * k + group * filters`
/// on, as in `dy`, and their number.
struct Lists<'a> {
    filters: &'a mut [u32],
    values: &'a mut [f32],
    counts: &'a mut [u32],
}

impl<'a> Lists<'a> {
    /// In some scratch, for so many pixels, and what is left of it.
    fn new(scratch: &'a mut [f32], pixels: usize, sizes: &Sizes) -> (Self, &'a mut [f32]) {
        let (filters, rest) = scratch.split_at_mut(pixels * sizes.k);
        let (values, rest) = rest.split_at_mut(pixels * sizes.k);
        let (counts, rest) = rest.split_at_mut(pixels * sizes.groups);
        let (filters, counts) = (cast_slice_mut(filters), cast_slice_mut(counts));
        (Lists { filters, values, counts }, rest)
    }
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
    let isa = arithmetic.isa;
    let Sizes { n, h, w, c, p, q, k, filters, .. } = *sizes;
    let chunks = Chunks::new(sizes, isa);
    let (image_values, image_pixels) = (h * w * c, p * q);
    let panel = filters * chunks.width;
    let Scratch { threads, shared } = scratch;
    let images = PIXELS / image_pixels;
    if images <= 1 && n > 1 || images == 0 {
        // An image has pixels enough for a task.
        dx.par_chunks_mut(image_values).enumerate().for_each(|(image, dx)| {
            dx.fill(0.0);
            with_scratch(threads, |buffer| {
                let (panel, buffer) = buffer.split_at_mut(panel);
                let (first, end) = (image * image_pixels, (image + 1) * image_pixels);
                for start in (first..end).step_by(PIXELS) {
                    let pixels = start..(start + PIXELS).min(end);
                    let (mut lists, patches) = Lists::new(buffer, pixels.len(), sizes);
                    list(isa, &mut lists, &dy[pixels.start * k..pixels.end * k], filters);
                    let patches = &mut patches[..pixels.len() * chunks.width];
                    for index in 0..chunks.count() {
                        let (group, chunk) = chunks.at(index);
                        let pixels = pixels.clone();
                        multiply(arithmetic, patches, &lists, weight, index, panel, sizes);
                        let (offset, stride) = (image * image_values, chunks.width);
                        add_patches(isa, dx, offset, patches, stride, pixels, group, chunk, sizes);
                    }
                }
            });
            epilogue.run(isa, dx);
        });
        return;
    }
    // So few pixels an image that several share the work of reading the filters.
    for first in (0..n).step_by(images) {
        let images = images.min(n - first);
        let pixels = images * image_pixels;
        let (mut lists, patches) = Lists::new(shared, pixels, sizes);
        let from = first * image_pixels;
        list(isa, &mut lists, &dy[from * k..(from + pixels) * k], filters);
        let patches = &mut patches[..chunks.count() * pixels * chunks.width];
        patches.par_chunks_mut(pixels * chunks.width).enumerate().for_each(|(index, patches)| {
            with_scratch(threads, |buffer| {
                multiply(arithmetic, patches, &lists, weight, index, &mut buffer[..panel], sizes);
            });
        });
        let dx = &mut dx[first * image_values..][..images * image_values];
        dx.par_chunks_mut(image_values).enumerate().for_each(|(image, dx)| {
            dx.fill(0.0);
            for (index, patches) in patches.chunks_exact(pixels * chunks.width).enumerate() {
                let (group, chunk) = chunks.at(index);
                let patches = &patches[image * image_pixels * chunks.width..];
                let (offset, stride) = ((first + image) * image_values, chunks.width);
                let start = (first + image) * image_pixels;
                let pixels = start..start + image_pixels;
                add_patches(isa, dx, offset, patches, stride, pixels, group, chunk, sizes);
            }
            epilogue.run(isa, dx);
        });
    }
}

/// Lists what is not zero in rows of all filters.
fn list(isa: Isa, lists: &mut Lists<'_>, dy: &[f32], filters: usize) {
    list_values(isa, lists.filters, lists.values, lists.counts, dy, filters);
}

/// Chunk `index` of the patches of the listed pixels.
fn multiply(
    arithmetic: Arithmetic,
    patches: &mut [f32],
    lists: &Lists<'_>,
    weight: &[f32],
    index: usize,
    panel: &mut [f32],
    sizes: &Sizes,
) {
    let isa = arithmetic.isa;
    let Sizes { k, filters, patch, groups, .. } = *sizes;
    let chunks = Chunks::new(sizes, isa);
    let (group, chunk) = chunks.at(index);
    // Filters side by side; those that no value asks for are left out.
    let mut wanted = 0;
    let counts = lists.counts.iter().skip(group).step_by(groups);
    for count in counts.clone() {
        wanted += *count as usize;
    }
    let pack = |panel: &mut [f32], filter: usize| {
        let row = &mut panel[filter * chunks.width..][..chunks.width];
        let from = (group * filters + filter) * patch;
        row[..chunk.len()].copy_from_slice(&weight[from + chunk.start..from + chunk.end]);
        row[chunk.len()..].fill(0.0);
        if arithmetic.words == Words::Bf16Pairs {
            round(isa, row);
        }
    };
    if wanted < filters {
        for (pixel, count) in counts.enumerate() {
            let listed = &lists.filters[pixel * k + group * filters..][..*count as usize];
            listed.iter().for_each(|filter| pack(panel, *filter as usize));
        }
    } else {
        (0..filters).for_each(|filter| pack(panel, filter));
    }
    // SAFETY: listed filters have a row in the panel.
    unsafe {
        sum_rows(
            isa,
            patches,
            chunks.width,
            cast_slice(lists.filters),
            lists.values,
            lists.counts,
            panel,
            k,
            group * filters,
            group,
            groups,
        );
    }
}

vectorized! {
    fn list_values(
        filters: &mut [u32],
        values: &mut [f32],
        counts: &mut [u32],
        dy: &[f32],
        group: usize,
    ) {
        let lists = filters.chunks_exact_mut(group).zip(values.chunks_exact_mut(group));
        for (((filters, values), count), dy) in lists.zip(counts).zip(dy.chunks_exact(group)) {
            let mut found = 0;
            for (filter, value) in dy.iter().enumerate() {
                filters[found] = filter as u32;
                values[found] = *value;
                found += usize::from(*value != 0.0);
            }
            *count = found as u32;
        }
    }
}

vectors! {
    /// Rows of `width` values of `patches`, one for each pixel.
    ///
    /// # Safety
    /// `panel` has a row of every listed filter, of `width` values, which are whole vectors.
    unsafe fn sum_rows<S>(
        patches: &mut [f32],
        width: usize,
        filters: &[u32],
        values: &[f32],
        counts: &[u32],
        panel: &[f32],
        k: usize,
        first: usize,
        group: usize,
        groups: usize,
    ) {
        for (pixel, patch) in patches.chunks_exact_mut(width).enumerate() {
            let count = counts[pixel * groups + group] as usize;
            let filters = &filters[pixel * k + first..][..count];
            let values = &values[pixel * k + first..][..count];
            let (to, panel) = (patch.as_mut_ptr(), panel.as_ptr());
            match width / S::LANES {
                1 => sum_row::<S, 1>(to, filters, values, panel),
                2 => sum_row::<S, 2>(to, filters, values, panel),
                3 => sum_row::<S, 3>(to, filters, values, panel),
                4 => sum_row::<S, 4>(to, filters, values, panel),
                5 => sum_row::<S, 5>(to, filters, values, panel),
                6 => sum_row::<S, 6>(to, filters, values, panel),
                7 => sum_row::<S, 7>(to, filters, values, panel),
                8 => sum_row::<S, 8>(to, filters, values, panel),
                9 => sum_row::<S, 9>(to, filters, values, panel),
                _ => sum_row::<S, VECTORS>(to, filters, values, panel),
            }
        }
    }
}

/// The sum of rows of a panel times their values.
#[inline(always)]
unsafe fn sum_row<S: Simd, const N: usize>(
    to: *mut f32,
    filters: &[u32],
    values: &[f32],
    panel: *const f32,
) {
    // SAFETY: the caller's.
    unsafe {
        let mut sums = [S::zero(); N];
        for (filter, value) in filters.iter().zip(values) {
            let row = panel.add(*filter as usize * N * S::LANES);
            let value = S::splat(*value);
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = S::multiply_add(value, S::load(row.add(i * S::LANES)), *sum);
            }
        }
        for (i, sum) in sums.into_iter().enumerate() {
            S::store(to.add(i * S::LANES), sum);
        }
    }
}
