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

use bytemuck::cast_slice_mut;
use rayon::prelude::*;

use super::pack::add_patches;
use super::{Arithmetic, Method, Scratch, ScratchSize, Sizes, dense, keep, with_scratch};
use crate::gemm::{Products, lanes};
use crate::isa::Isa;
use crate::simd::{Simd, vectors};
use crate::values::Element;

/// Vectors of a chunk: with a value and a row of `w` they fit into 16 registers.
const VECTORS: usize = 6;
/// Values of the rows of `w` that are multiplied at a time: about a first cache of 48 KB.
const PANEL: usize = 12 << 10;
/// Filters of a block are a multiple of this, so that they are whole vectors.
const LANES: usize = 16;
/// Pixels that are listed, and multiplied by a chunk of `w`, at a time.
const PIXELS: usize = 256;
/// How many rows of weights ahead of their use are asked for.
const AHEAD: usize = 8;
/// Most images.
const MOST_IMAGES: usize = 16;
/// Pixels of an image that are looked at to learn how many values are zero.
const SAMPLE: usize = 64;

/// Whether this is faster than another method for an image with this gradient: by the sizes, and by how
/// much of it is zero, so far as a sample of its pixels tells.
///
/// Not of many images, as in training, which would be cut into runs of one method or the other.
pub fn suits<T: Element>(sizes: &Sizes, arithmetic: Arithmetic, dy: &[T], other: &Method) -> bool {
    let Sizes { n, k, p, q, .. } = *sizes;
    let (few, share) = match other {
        // Weights that are all read come as fast as memory gives them.
        Method::Dense => (dense::few_samples(sizes, arithmetic), 0.25),
        Method::Direct => (n <= MOST_IMAGES, 0.55),
        Method::Winograd => (n <= MOST_IMAGES, 0.3),
    };
    if !few {
        return false;
    }
    // How many times as fast other methods multiply, about.
    let faster = match arithmetic.products {
        Products::F32 => 1.0,
        Products::Bf16Pairs => 2.0,
        Products::Bf16Tiles => 8.0,
    };
    let count = SAMPLE.min(p * q);
    let sample = (0..count).map(|i| &dy[i * p * q / count * k..][..k]);
    let found = sample.flatten().filter(|value| value.to_f32() != 0.0).count();
    found as f32 * faster <= share * (count * k) as f32
}

/// What it needs.
pub fn scratch_size(sizes: &Sizes, arithmetic: Arithmetic) -> ScratchSize {
    let Sizes { n, h, w, c, p, q, k, .. } = *sizes;
    let Blocks { chunks, width, filters } = Blocks::new(sizes, arithmetic.isa);
    let pixels = PIXELS.min(n.min(MOST_IMAGES) * p * q);
    let lists = pixels * (2 * k + filters.count);
    let patches = |chunks: usize| pixels * chunks * width;
    // Sums of an image have a place of their own where they are not stored as they are.
    let image = h * w * c;
    let panel = filters.most * width;
    ScratchSize {
        thread: image + panel + patches(1) + lists,
        shared: patches(chunks.count) + lists,
    }
}

/// Something of each group, cut.
#[derive(Clone, Copy)]
struct Cut {
    /// Of a group.
    len: usize,
    /// Of a part; a group's last one may have less.
    most: usize,
    /// Parts of a group.
    of_group: usize,
    /// Of all groups.
    count: usize,
}

impl Cut {
    fn new(groups: usize, len: usize, most: usize) -> Self {
        let of_group = len.div_ceil(most);
        Cut { len, most, of_group, count: groups * of_group }
    }

    /// The group of a part, and what of it.
    fn at(&self, index: usize) -> (usize, Range<usize>) {
        let start = index % self.of_group * self.most;
        (index / self.of_group, start..(start + self.most).min(self.len))
    }
}

/// How the work is cut.
#[derive(Clone, Copy)]
struct Blocks {
    /// Patches.
    chunks: Cut,
    /// Values of a chunk and what makes it whole vectors.
    width: usize,
    /// Filters.
    filters: Cut,
}

impl Blocks {
    fn new(sizes: &Sizes, isa: Isa) -> Self {
        let Sizes { groups, filters, patch, .. } = *sizes;
        let vectors = patch.div_ceil(lanes(isa));
        let width = vectors.div_ceil(vectors.div_ceil(VECTORS)) * lanes(isa);
        let chunks = Cut::new(groups, patch, width);
        let most = PANEL / width;
        let most = filters.div_ceil(filters.div_ceil(most)).next_multiple_of(LANES);
        let filters = Cut::new(groups, filters, most);
        Blocks { chunks, width, filters }
    }
}

/// The values that are not zero, of each block of filters of each pixel: of pixel `i` and filter `j` on
/// from `i * k + j` on, as in `dy`, and their number.
struct Lists<'a> {
    /// Counted from the first of the block on.
    filters: &'a mut [u32],
    values: &'a mut [f32],
    /// Of each block of a pixel.
    counts: &'a mut [u32],
}

impl<'a> Lists<'a> {
    /// In some scratch, for so many pixels, and what is left of it.
    fn new(
        scratch: &'a mut [f32],
        pixels: usize,
        k: usize,
        blocks: &Blocks,
    ) -> (Self, &'a mut [f32]) {
        let (filters, rest) = scratch.split_at_mut(pixels * k);
        let (values, rest) = rest.split_at_mut(pixels * k);
        let (counts, rest) = rest.split_at_mut(pixels * blocks.filters.count);
        let (filters, counts) = (cast_slice_mut(filters), cast_slice_mut(counts));
        (Lists { filters, values, counts }, rest)
    }

    /// Lists the values of rows of all filters.
    fn fill<T: Element>(&mut self, isa: Isa, dy: &[T], k: usize, blocks: &Blocks) {
        let Cut { count, .. } = blocks.filters;
        let counts = self.counts.chunks_exact_mut(count);
        let lists = self.filters.chunks_exact_mut(k).zip(self.values.chunks_exact_mut(k));
        for ((dy, counts), (filters, values)) in dy.chunks_exact(k).zip(counts).zip(lists) {
            for (index, found) in counts.iter_mut().enumerate() {
                let (group, block) = blocks.filters.at(index);
                let first = group * blocks.filters.len;
                let block = first + block.start..first + block.end;
                let (filters, values) = (&mut filters[block.clone()], &mut values[block.clone()]);
                // SAFETY: the three slices have one length.
                unsafe { list(isa, filters, values, found, &dy[block]) };
            }
        }
    }
}

/// `patches' = dy * w`, added to where they lie.
pub fn backward_data<T: Element>(
    arithmetic: Arithmetic,
    dx: &mut [T],
    dy: &[T],
    weight: &[T],
    sizes: &Sizes,
    scratch: &mut Scratch,
) {
    let isa = arithmetic.isa;
    let Sizes { n, h, w, c, p, q, k, .. } = *sizes;
    let blocks = Blocks::new(sizes, isa);
    let Blocks { chunks, width, .. } = blocks;
    let (image_values, image_pixels) = (h * w * c, p * q);
    let panel = blocks.filters.most * width;
    let sums = if size_of::<T>() < size_of::<f32>() { image_values } else { 0 };
    let Scratch { threads, shared } = scratch;
    let images = PIXELS / image_pixels;
    if images <= 1 && n > 1 || images == 0 {
        // An image has pixels enough for a task.
        dx.par_chunks_mut(image_values).enumerate().for_each(|(image, dx)| {
            with_scratch(threads, |buffer| {
                let (panel, buffer) = buffer.split_at_mut(panel);
                let (sums, buffer) = buffer.split_at_mut(sums);
                T::sums(dx, sums).fill(0.0);
                let (first, end) = (image * image_pixels, (image + 1) * image_pixels);
                for start in (first..end).step_by(PIXELS) {
                    let pixels = start..(start + PIXELS).min(end);
                    let (mut lists, patches) = Lists::new(buffer, pixels.len(), k, &blocks);
                    lists.fill(isa, &dy[pixels.start * k..pixels.end * k], k, &blocks);
                    let patches = &mut patches[..pixels.len() * width];
                    for index in 0..chunks.count {
                        let (group, chunk) = chunks.at(index);
                        let pixels = pixels.clone();
                        multiply(isa, patches, &lists, weight, index, panel, sizes);
                        let (dx, offset) = (T::sums(dx, sums), image * image_values);
                        add_patches(isa, dx, offset, patches, width, pixels, group, chunk, sizes);
                    }
                }
                keep(isa, dx, sums);
            });
        });
        return;
    }
    // So few pixels an image that several share the work of reading the filters.
    for first in (0..n).step_by(images) {
        let images = images.min(n - first);
        let pixels = images * image_pixels;
        let (mut lists, patches) = Lists::new(shared, pixels, k, &blocks);
        let from = first * image_pixels;
        lists.fill(isa, &dy[from * k..(from + pixels) * k], k, &blocks);
        let patches = &mut patches[..chunks.count * pixels * width];
        patches.par_chunks_mut(pixels * width).enumerate().for_each(|(index, patches)| {
            with_scratch(threads, |buffer| {
                multiply(isa, patches, &lists, weight, index, &mut buffer[..panel], sizes);
            });
        });
        let dx = &mut dx[first * image_values..][..images * image_values];
        dx.par_chunks_mut(image_values).enumerate().for_each(|(image, dx)| {
            with_scratch(threads, |sums| {
                T::sums(dx, sums).fill(0.0);
                for (index, patches) in patches.chunks_exact(pixels * width).enumerate() {
                    let (group, chunk) = chunks.at(index);
                    let patches = &patches[image * image_pixels * width..];
                    let (dx, offset) = (T::sums(dx, sums), (first + image) * image_values);
                    let start = (first + image) * image_pixels;
                    let pixels = start..start + image_pixels;
                    add_patches(isa, dx, offset, patches, width, pixels, group, chunk, sizes);
                }
                keep(isa, dx, sums);
            });
        });
    }
}

/// Chunk `index` of the patches of the listed pixels.
fn multiply<T: Element>(
    isa: Isa,
    patches: &mut [f32],
    lists: &Lists<'_>,
    weight: &[T],
    index: usize,
    panel: &mut [f32],
    sizes: &Sizes,
) {
    let Sizes { k, patch, .. } = *sizes;
    let blocks = Blocks::new(sizes, isa);
    let (group, chunk) = blocks.chunks.at(index);
    let Blocks { width, filters: cut, .. } = blocks;
    for index in group * cut.of_group..(group + 1) * cut.of_group {
        let (_, block) = cut.at(index);
        let first = group * cut.len + block.start;
        let pack = |panel: &mut [f32], rows: Range<usize>| {
            let panel = &mut panel[rows.start * width..rows.end * width];
            let weight = &weight[(first + rows.start) * patch..(first + rows.end) * patch];
            // SAFETY: panel and weight have as many rows; the chunk lies in those of the weight.
            unsafe { pack_rows(isa, panel, width, weight, patch, chunk.clone()) };
        };
        let counts = lists.counts.iter().skip(index).step_by(cut.count);
        // Filters that no value asks for may be left out.
        let listed: usize = counts.clone().map(|count| *count as usize).sum();
        if 4 * listed < block.len() {
            for (pixel, count) in counts.enumerate() {
                let listed = &lists.filters[pixel * k + first..][..*count as usize];
                for filter in listed.iter().map(|filter| *filter as usize) {
                    pack(panel, filter..filter + 1);
                }
            }
        } else {
            pack(panel, 0..block.len());
        }
        let (filters, values) = (&lists.filters[first..], &lists.values[first..]);
        let counts = &lists.counts[index..];
        let (strides, add) = ([k, cut.count], block.start > 0);
        // SAFETY: listed filters have a row in the panel.
        unsafe { sum_rows(isa, patches, width, filters, values, counts, panel, strides, add) };
    }
}

vectors! {
    /// Lists the values that are not zero, and says how many they are.
    ///
    /// # Safety
    /// All slices have one length.
    unsafe fn list<S, T>(filters: &mut [u32], values: &mut [f32], count: &mut u32, dy: &[T]) {
        let mut found = 0;
        let whole = dy.len() / S::LANES * S::LANES;
        for at in (0..whole).step_by(S::LANES) {
            let to = (filters.as_mut_ptr().add(found), values.as_mut_ptr().add(found));
            found += S::compress(to.0, to.1, T::load::<S>(dy.as_ptr().add(at)), at as u32);
        }
        for (at, value) in dy.iter().enumerate().skip(whole) {
            let value = value.to_f32();
            (filters[found], values[found]) = (at as u32, value);
            found += usize::from(value != 0.0);
        }
        *count = found as u32;
    }

    /// Copies a chunk of each row of some weights, and makes it whole vectors.
    ///
    /// # Safety
    /// There are as many rows of the panel as of weights, and in those are all of the chunk's values.
    unsafe fn pack_rows<S, T>(
        panel: &mut [f32],
        width: usize,
        weight: &[T],
        patch: usize,
        chunk: Range<usize>,
    ) {
        let whole = chunk.len() / S::LANES * S::LANES;
        for (index, row) in panel.chunks_exact_mut(width).enumerate() {
            let from = weight.as_ptr().add(index * patch + chunk.start);
            // Rows of weights are too far from each other for the machine to foresee them.
            let ahead = from.wrapping_add(AHEAD * patch);
            for at in (0..whole).step_by(S::LANES) {
                S::prefetch(ahead.wrapping_add(at).cast());
                S::store(row.as_mut_ptr().add(at), T::load::<S>(from.add(at)));
            }
            for (at, value) in row.iter_mut().enumerate().skip(whole) {
                *value = if at < chunk.len() { (*from.add(at)).to_f32() } else { 0.0 };
            }
        }
    }

    /// Rows of `width` values of `patches`, one for each pixel; added to what is there with `add`.
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
        strides: [usize; 2],
        add: bool,
    ) {
        let [k, blocks] = strides;
        for (pixel, patch) in patches.chunks_exact_mut(width).enumerate() {
            let count = counts[pixel * blocks] as usize;
            let filters = &filters[pixel * k..][..count];
            let values = &values[pixel * k..][..count];
            let (to, panel) = (patch.as_mut_ptr(), panel.as_ptr());
            match width / S::LANES {
                1 => sum_row::<S, 1>(to, filters, values, panel, add),
                2 => sum_row::<S, 2>(to, filters, values, panel, add),
                3 => sum_row::<S, 3>(to, filters, values, panel, add),
                4 => sum_row::<S, 4>(to, filters, values, panel, add),
                5 => sum_row::<S, 5>(to, filters, values, panel, add),
                _ => sum_row::<S, VECTORS>(to, filters, values, panel, add),
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
    add: bool,
) {
    // SAFETY: the caller's.
    unsafe {
        let mut sums = [S::zero(); N];
        if add {
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = S::load(to.add(i * S::LANES));
            }
        }
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
