//! Winograd's method, F(4x4, 3x3): sixteen outputs of a 3x3 filter from a tile of 6x6 inputs with 36
//! multiplications instead of 144 (Lavin and Gray 2016).
//!
//! In words: a row of outputs is a product of polynomials, known by its values at six points; so
//! inputs and filters are evaluated there ([`inputs`], [`filters`]), multiplied point by point (36
//! matrix products over the channels), and interpolated ([`outputs`]). In matrices
//! `Y = A^T [(G g G^T) * (B^T d B)] A`, each applied along rows, then along columns. The points are
//! 0, +-1/sqrt(2), +-sqrt(2) and infinity: with products near one, roundings grow by about a factor of
//! five over a direct sum's (the usual 0, +-1, +-2 give twice that).
//!
//! A stride of 2 is split by parity: inputs and filters of each parity of row and column are a
//! convolution of their own with a stride of 1 and at most 3x3 taps, and the four are summed at the
//! points, as if they were more channels. On the way to the inputs the four are different outputs.
//!
//! - forward: from `x` (its parities as channels) to `y`;
//! - backward data: from `dy` to `dx` (its parities as channels), with turned filters;
//! - backward filter: the forward method transposed, `dg = G^T [(A dY A^T)^T (B^T d B)] G`.
//!
//! Groups of channels come one after the other, each as a convolution of its own.
//!
//! A value that is not finite spreads over its tile.

use bytemuck::{cast_slice, cast_slice_mut};
use rayon::prelude::*;

use super::{Arithmetic, Epilogue, Scratch, ScratchSize, Sizes};
use crate::gemm::{DEPTH, Layout, Operands, Out, Products, STRIDE, block, tile};
use crate::pointwise::add_rows;
use crate::simd::{Simd, vectors};
use crate::values::Element;

/// Outputs of a tile along an axis.
const OUT: usize = 4;
/// Taps of a filter along an axis.
const TAPS: usize = 3;
/// Inputs of a tile along an axis, and points.
const IN: usize = OUT + TAPS - 1;
/// Points of the plane.
const POINTS: usize = IN * IN;
/// Tiles worked on at a time, about: what is kept of them fits the last cache.
const TILES: usize = 112;
/// Channels and filters are multiples of this, so that they are whole vectors.
const LANES: usize = 16;
/// Tiles of pixels below which the filters' transformation does not pay.
const FEWEST: usize = 64;

/// The points' squares are 1/2 and 2.
const A: f32 = std::f32::consts::FRAC_1_SQRT_2;
const B: f32 = std::f32::consts::SQRT_2;

/// Whether this convolution can be done so, and gains by it.
pub fn suits(sizes: &Sizes, arithmetic: Arithmetic) -> bool {
    let Sizes { n, channels: c, filters: k, r, s, p, q, stride, .. } = *sizes;
    let geometry = stride == [1, 1] && (r, s) == (3, 3) || stride == [2, 2] && (r, s) == (5, 5);
    let channels = c % LANES == 0 && k % LANES == 0 && c >= 2 * LANES && k >= 2 * LANES;
    let tiles = p.div_ceil(OUT) * q.div_ceil(OUT);
    let gains = 3 * tiles * POINTS * stride[0] * stride[1] < 2 * p * q * r * s;
    arithmetic.products == Products::F32 && geometry && channels && gains && n > most_without(sizes)
}

/// The most images that are too few.
pub fn most_without(sizes: &Sizes) -> usize {
    (FEWEST - 1) / (sizes.p.div_ceil(OUT) * sizes.q.div_ceil(OUT))
}

/// What any direction needs.
pub fn scratch_size(sizes: &Sizes, arithmetic: Arithmetic) -> ScratchSize {
    let (rows, columns) = block(arithmetic.isa, Products::F32);
    let (k, depth) = (sizes.filters, sizes.channels * sizes.stride[0] * sizes.stride[1]);
    let tiles = TILES.next_multiple_of(rows);
    let [packed_k, packed_depth] = [k, depth].map(|depth| Packed::new(tiles, depth).len());
    let filters = |rows: usize, count: usize| POINTS * rows * count.next_multiple_of(columns);
    let forward = k * sizes.patch + filters(depth, k) + packed_depth + POINTS * tiles * k;
    let data = filters(k, depth) + packed_k + POINTS * tiles * depth;
    let filter = POINTS * k * depth + packed_depth + packed_k;
    ScratchSize { thread: 0, shared: forward.max(data).max(filter) }
}

/// The channels of one group of a tensor, cut into tiles.
#[derive(Clone, Copy)]
struct Side {
    /// Rows of an image.
    h: usize,
    /// Columns.
    w: usize,
    /// Channels of the group.
    c: usize,
    /// Channels of all groups.
    all: usize,
    /// The first that is the group's.
    first: usize,
    /// Parities along an axis: the tensor's row `y` is row `i` of parity `f` where
    /// `y + pad = parities * i + f`.
    parities: usize,
    pad: [isize; 2],
}

impl Side {
    /// Channels of all parities.
    fn depth(&self) -> usize {
        self.parities * self.parities * self.c
    }

    /// Where the group's channels of row `i` and column `j` of a parity lie, if that is in the image.
    #[inline(always)]
    fn at(&self, image: usize, parity: usize, i: usize, j: usize) -> Option<usize> {
        let (f, g) = (parity / self.parities, parity % self.parities);
        let y = (self.parities * i + f) as isize - self.pad[0];
        let x = (self.parities * j + g) as isize - self.pad[1];
        let inside = (0..self.h as isize).contains(&y) && (0..self.w as isize).contains(&x);
        inside
            .then(|| ((image * self.h + y as usize) * self.w + x as usize) * self.all + self.first)
    }

    /// [`Side::at`] of a square of `N` rows and columns; [`OUTSIDE`] is not in the image.
    #[inline(always)]
    fn square<const N: usize>(
        &self,
        (image, i, j): (usize, usize, usize),
        parity: usize,
    ) -> [[usize; N]; N] {
        let at = |a, b| self.at(image, parity, i + a, j + b).unwrap_or(OUTSIDE);
        std::array::from_fn(|a| std::array::from_fn(|b| at(a, b)))
    }
}

/// No place.
const OUTSIDE: usize = usize::MAX;

/// The tiles of a batch.
#[derive(Clone, Copy)]
struct Grid {
    /// Of all images.
    tiles: usize,
    /// Of an image, from top to bottom.
    rows: usize,
    /// From left to right.
    columns: usize,
}

impl Grid {
    /// For outputs of so many rows and columns.
    fn new(n: usize, p: usize, q: usize) -> Self {
        let (rows, columns) = (p.div_ceil(OUT), q.div_ceil(OUT));
        Grid { tiles: n * rows * columns, rows, columns }
    }

    /// Image, and first row and column, of a tile's outputs.
    #[inline(always)]
    fn place(&self, tile: usize) -> (usize, usize, usize) {
        let (line, column) = (tile / self.columns, tile % self.columns);
        (line / self.rows, line % self.rows * OUT, column * OUT)
    }
}

/// Values at the points as operands of products: for each point and each block of the depth, a row
/// for each tile.
#[derive(Clone, Copy)]
struct Packed {
    tiles: usize,
    depth: usize,
    /// Depth of a block.
    step: usize,
    blocks: usize,
}

impl Packed {
    fn new(tiles: usize, depth: usize) -> Self {
        let step = depth.div_ceil(depth.div_ceil(DEPTH)).next_multiple_of(LANES);
        Packed { tiles, depth, step, blocks: depth.div_ceil(step) }
    }

    fn len(&self) -> usize {
        POINTS * self.blocks * self.tiles * STRIDE
    }

    /// Where a block of a point begins.
    #[inline(always)]
    fn start(&self, point: usize, block: usize) -> usize {
        (point * self.blocks + block) * self.tiles * STRIDE
    }

    /// Where channel `c` of a tile lies.
    #[inline(always)]
    fn at(&self, point: usize, tile: usize, c: usize) -> usize {
        self.start(point, c / self.step) + tile * STRIDE + c % self.step
    }

    /// The blocks, with their part of the depth.
    fn blocks(self) -> impl Iterator<Item = (usize, std::ops::Range<usize>)> {
        let range = move |b: usize| b * self.step..((b + 1) * self.step).min(self.depth);
        (0..self.blocks).map(move |block| (block, range(block)))
    }
}

/// Where threads write, each to places of its own.
#[derive(Clone, Copy)]
struct Target<T>(*mut T);

// SAFETY: those who write say why their places are their own.
unsafe impl<T: Element> Send for Target<T> {}
// SAFETY: as above.
unsafe impl<T: Element> Sync for Target<T> {}

impl<T> Target<T> {
    fn at(self, offset: usize) -> *mut T {
        self.0.wrapping_add(offset)
    }
}

/// `y = conv(x, w)`.
pub fn forward<Y: Element, X: Element>(
    arithmetic: Arithmetic,
    y: &mut [Y],
    x: &[X],
    weight: &[X],
    epilogue: &Epilogue<'_>,
    sizes: &Sizes,
    scratch: &mut Scratch,
) {
    let Sizes { n, p, q, filters, patch, .. } = *sizes;
    let (by_patch, shared) = scratch.shared.split_at_mut(filters * patch);
    let by_patch: &mut [X] = &mut cast_slice_mut(by_patch)[..filters * patch];
    for (group, weight) in weight.chunks_exact(filters * patch).enumerate() {
        let (from, to) = (input(sizes, group), output(sizes, group));
        let bias = epilogue.bias.map(|bias| &bias[to.first..][..filters]);
        let epilogue = &Epilogue { bias, ..*epilogue };
        // Filters side by side, to be worked on together.
        transpose(by_patch, weight, filters, patch);
        let taps = Taps { weight: by_patch, down: false, sizes };
        correlate(arithmetic, (y, to), (x, from), &taps, epilogue, Grid::new(n, p, q), shared);
    }
}

/// `x`, as the method reads it.
fn input(sizes: &Sizes, group: usize) -> Side {
    let Sizes { h, w, c, channels, stride, pad, .. } = *sizes;
    let first = group * channels;
    Side { h, w, c: channels, all: c, first, parities: stride[0], pad }
}

/// `y`, or its gradient.
fn output(sizes: &Sizes, group: usize) -> Side {
    let Sizes { p, q, k, filters, .. } = *sizes;
    Side { h: p, w: q, c: filters, all: k, first: group * filters, parities: 1, pad: [0, 0] }
}

/// `dx = conv^T(dy, w)`: row `i` of a parity of `dx` sees rows `i - 2 ..= i` of `dy`.
pub fn backward_data<T: Element>(
    arithmetic: Arithmetic,
    dx: &mut [T],
    dy: &[T],
    weight: &[T],
    sizes: &Sizes,
    scratch: &mut Scratch,
) {
    let Sizes { n, h, w, filters, patch, stride: [parities, _], pad, .. } = *sizes;
    // Of the rows of padding, those that are whole rows of all parities are left out.
    let pad = pad.map(|v| v as usize);
    let (skipped, pad) = (pad.map(|v| v / parities), pad.map(|v| v % parities));
    let from_pad = skipped.map(|skipped| (TAPS - 1) as isize - skipped as isize);
    let grid = Grid::new(n, (h + pad[0]).div_ceil(parities), (w + pad[1]).div_ceil(parities));
    for (group, weight) in weight.chunks_exact(filters * patch).enumerate() {
        let from = Side { pad: from_pad, ..output(sizes, group) };
        let to = Side { pad: pad.map(|v| v as isize), ..input(sizes, group) };
        let taps = Taps { weight, down: true, sizes };
        let epilogue = &Epilogue::default();
        correlate(arithmetic, (dx, to), (dy, from), &taps, epilogue, grid, &mut scratch.shared);
    }
}

/// Filters of a group as the method reads them.
struct Taps<'a, T> {
    /// KRSC backward, RSCK forward: what becomes columns is contiguous.
    weight: &'a [T],
    down: bool,
    sizes: &'a Sizes,
}

impl<T> Taps<'_, T> {
    /// Channels that are summed, and channels that come out.
    fn shape(&self) -> (usize, usize) {
        let Sizes { channels: c, filters: k, stride, .. } = *self.sizes;
        let parities = stride[0] * stride[1];
        if self.down { (k, parities * c) } else { (parities * c, k) }
    }

    /// Where tap (`a`, `b`) from channel `row` to channel `column` lies; none beyond a filter's edge.
    #[inline(always)]
    fn at(&self, row: usize, column: usize, a: usize, b: usize) -> Option<usize> {
        let Sizes { channels, filters, r, s, .. } = *self.sizes;
        let parities = self.sizes.stride[0];
        let (k, c) = if self.down { (row, column) } else { (column, row) };
        let (parity, c) = (c / channels, c % channels);
        let (a, b) = if self.down { (TAPS - 1 - a, TAPS - 1 - b) } else { (a, b) };
        let (y, x) = (parities * a + parity / parities, parities * b + parity % parities);
        let tap = (y * s + x) * channels + c;
        let at = if self.down { k * r * s * channels + tap } else { tap * filters + k };
        (y < r && x < s).then_some(at)
    }
}

/// The method: `to` from `from`, a block of tiles at a time.
fn correlate<Y: Element, X: Element>(
    arithmetic: Arithmetic,
    (y, to): (&mut [Y], Side),
    (x, from): (&[X], Side),
    taps: &Taps<'_, X>,
    epilogue: &Epilogue<'_>,
    grid: Grid,
    shared: &mut [f32],
) {
    let isa = arithmetic.isa;
    let (rows, columns) = block(isa, Products::F32);
    let (depth, count) = taps.shape();
    let panel = POINTS * depth * columns;
    let (packed_filters, rest) = shared.split_at_mut(count.div_ceil(columns) * panel);
    packed_filters.par_chunks_mut(panel).enumerate().for_each(|(index, out)| {
        // SAFETY: a panel has room for its columns at every point; taps lie in the weights.
        unsafe { filters(isa, out, taps, index * columns, columns) };
    });
    let filters: &[u32] = cast_slice(packed_filters);
    let most = TILES.next_multiple_of(rows);
    let packed = Packed::new(most, depth);
    let (values, products) = rest.split_at_mut(packed.len());
    let products = &mut products[..POINTS * most * count];
    let y = Target(y.as_mut_ptr());
    for first in (0..grid.tiles).step_by(most) {
        let tiles = most.min(grid.tiles - first);
        let target = Target(values.as_mut_ptr());
        (0..tiles).into_par_iter().for_each(|tile| {
            let place = grid.place(first + tile);
            // SAFETY: no other tile has this row of `values`, which holds all rows and points.
            unsafe { inputs(isa, target, x, &from, place, packed, tile) };
        });
        let values: &[u32] = cast_slice(values);
        products.par_chunks_mut(most * count).enumerate().for_each(|(point, out)| {
            for row in (0..tiles).step_by(rows) {
                for (j, panel) in filters.chunks_exact(panel).enumerate() {
                    for (block, range) in packed.blocks() {
                        let out = Out {
                            values: &mut out[row * count + j * columns..],
                            stride: count,
                            rows: rows.min(tiles - row),
                            columns: columns.min(count - j * columns),
                            accumulate: block > 0,
                        };
                        let operands = Operands {
                            products: Products::F32,
                            depth: range.len(),
                            a: &values[packed.start(point, block) + row * STRIDE..],
                            layout: Layout::Rows,
                            b: &panel[(point * depth + range.start) * columns..],
                            b_stride: columns,
                            ahead: None,
                        };
                        tile(isa, out, operands);
                    }
                }
            }
        });
        let products = &*products;
        (0..tiles).into_par_iter().for_each(|tile| {
            let place = grid.place(first + tile);
            let products = &products[tile * count..];
            // SAFETY: no other tile has these outputs; `products` holds the tile at every point.
            unsafe { outputs(isa, y, &to, place, products, most * count, epilogue) };
        });
    }
}

/// `dw = G^T [(A dY A^T)^T (B^T x B)] G`, summed over tiles.
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
    let Sizes { filters, patch, .. } = *sizes;
    for (group, dw) in dw.chunks_exact_mut(filters * patch).enumerate() {
        let (from, to) = (input(sizes, group), output(sizes, group));
        filter_gradients(arithmetic, dw, (dy, to), (x, from), accumulate, sizes, scratch);
    }
    if !accumulate {
        db.fill(0.0);
    }
    add_rows(arithmetic.isa, db, dy);
}

/// The same of one group, without its biases.
fn filter_gradients<T: Element>(
    arithmetic: Arithmetic,
    dw: &mut [f32],
    (dy, to): (&[T], Side),
    (x, from): (&[T], Side),
    accumulate: bool,
    sizes: &Sizes,
    scratch: &mut Scratch,
) {
    let Sizes { n, p, q, filters: k, patch, .. } = *sizes;
    let isa = arithmetic.isa;
    let (rows, columns) = block(isa, Products::F32);
    let (grid, depth, most) = (Grid::new(n, p, q), from.depth(), TILES.next_multiple_of(rows));
    let [packed_x, packed_dy] = [depth, k].map(|depth| Packed::new(most, depth));
    let (sums, rest) = scratch.shared.split_at_mut(POINTS * k * depth);
    let (values_x, values_dy) = rest.split_at_mut(packed_x.len());
    for first in (0..grid.tiles).step_by(most) {
        let tiles = most.min(grid.tiles - first);
        let (target_x, target_dy) = (Target(values_x.as_mut_ptr()), Target(values_dy.as_mut_ptr()));
        (0..tiles).into_par_iter().for_each(|tile| {
            let place = grid.place(first + tile);
            // SAFETY: no other tile has these rows of values, which hold all rows and points.
            unsafe {
                inputs(isa, target_x, x, &from, place, packed_x, tile);
                gradients(isa, target_dy, dy, &to, place, packed_dy, tile);
            }
        });
        let (values_x, values_dy): (&[u32], &[u32]) = (cast_slice(values_x), cast_slice(values_dy));
        sums.par_chunks_mut(k * depth).enumerate().for_each(|(point, sums)| {
            for (block_k, range_k) in packed_dy.blocks() {
                let a = &values_dy[packed_dy.start(point, block_k)..];
                for i in (0..range_k.len()).step_by(rows) {
                    for (block_c, range_c) in packed_x.blocks() {
                        let b = &values_x[packed_x.start(point, block_c)..];
                        for j in (0..range_c.len()).step_by(columns) {
                            let out = Out {
                                values: &mut sums
                                    [(range_k.start + i) * depth + range_c.start + j..],
                                stride: depth,
                                rows: rows.min(range_k.len() - i),
                                columns: columns.min(range_c.len() - j),
                                accumulate: first > 0,
                            };
                            let (a, b) = (&a[i..], &b[j..]);
                            let (layout, b_stride) = (Layout::Columns, STRIDE);
                            let products = Products::F32;
                            let depth = tiles;
                            tile(
                                isa,
                                out,
                                Operands { products, depth, a, layout, b, b_stride, ahead: None },
                            );
                        }
                    }
                }
            }
        });
    }
    let sums = &*sums;
    dw.par_chunks_mut(patch).enumerate().for_each(|(filter, dw)| {
        // SAFETY: a filter has `patch` values, and `sums` its depth at every point.
        unsafe { filter_gradient(isa, dw, sums, filter, sizes, accumulate) };
    });
}

/// `[k, patch]` to `[patch, k]`.
fn transpose<T: Element>(out: &mut [T], weight: &[T], k: usize, patch: usize) {
    // What is read for a block of rows stays in a cache until its lines are used up.
    const ROWS: usize = 16;
    out.par_chunks_mut(ROWS * k).enumerate().for_each(|(index, out)| {
        let first = index * ROWS;
        for (filter, weight) in weight.chunks_exact(patch).enumerate() {
            for (row, value) in weight[first..].iter().take(out.len() / k).enumerate() {
                out[row * k + filter] = *value;
            }
        }
    });
}

vectors! {
    /// `G g G^T` of the columns from `first` on: `out` is `[points, depth, columns]`.
    ///
    /// # Safety
    /// `out` is as long as that, and every tap lies in the weights.
    unsafe fn filters<S, T>(
        out: &mut [f32],
        taps: &Taps<'_, T>,
        first: usize,
        columns: usize,
    ) {
        let (depth, count) = taps.shape();
        for row in 0..depth {
            for j in (0..columns).step_by(S::LANES) {
                let mut g = [[S::zero(); TAPS]; TAPS];
                if first + j < count {
                    for (a, g) in g.iter_mut().enumerate() {
                        for (b, g) in g.iter_mut().enumerate() {
                            if let Some(at) = taps.at(row, first + j, a, b) {
                                *g = T::load::<S>(taps.weight.as_ptr().add(at));
                            }
                        }
                    }
                }
                let u = both_ways::<S, FilterToPoints, TAPS, IN>(g);
                for (point, u) in u.as_flattened().iter().enumerate() {
                    S::store(out.as_mut_ptr().add((point * depth + row) * columns + j), *u);
                }
            }
        }
    }

    /// `B^T d B` of a tile, all channels of all parities.
    ///
    /// # Safety
    /// Row `tile` of `out`, at every point, is the caller's.
    unsafe fn inputs<S, T>(
        out: Target<f32>,
        x: &[T],
        side: &Side,
        place: (usize, usize, usize),
        packed: Packed,
        tile: usize,
    ) {
        for parity in 0..side.parities * side.parities {
            let square = side.square::<IN>(place, parity);
            for c in (0..side.c).step_by(S::LANES) {
                let d = load::<S, T, IN>(x, &square, c);
                let v = both_ways::<S, InputToPoints, IN, IN>(d);
                let first = out.at(packed.at(0, tile, parity * side.c + c));
                let step = packed.start(1, 0);
                for (point, v) in v.as_flattened().iter().enumerate() {
                    S::store(first.add(point * step), *v);
                }
            }
        }
    }

    /// `A dY A^T` of a tile, all channels.
    ///
    /// # Safety
    /// Row `tile` of `out`, at every point, is the caller's.
    unsafe fn gradients<S, T>(
        out: Target<f32>,
        dy: &[T],
        side: &Side,
        place: (usize, usize, usize),
        packed: Packed,
        tile: usize,
    ) {
        let square = side.square::<OUT>(place, 0);
        for c in (0..side.c).step_by(S::LANES) {
            let dy = load::<S, T, OUT>(dy, &square, c);
            let v = both_ways::<S, OutputToPoints, OUT, IN>(dy);
            let first = out.at(packed.at(0, tile, c));
            for (point, v) in v.as_flattened().iter().enumerate() {
                S::store(first.add(point * packed.start(1, 0)), *v);
            }
        }
    }

    /// `A^T M A` of a tile, with bias and relu, to its outputs inside the image. A point's products
    /// begin `step` after those of the point before.
    ///
    /// # Safety
    /// The tile's outputs are the caller's, and `products` holds all channels at every point.
    unsafe fn outputs<S, T>(
        y: Target<T>,
        side: &Side,
        place: (usize, usize, usize),
        products: &[f32],
        step: usize,
        epilogue: &Epilogue<'_>,
    ) {
        for parity in 0..side.parities * side.parities {
            let square = side.square::<OUT>(place, parity);
            for c in (0..side.c).step_by(S::LANES) {
                let first = products.as_ptr().add(parity * side.c + c);
                let m = points::<S>(first, step);
                let values = both_ways::<S, PointsToOutput, IN, OUT>(m);
                let bias = epilogue.bias.map_or(S::zero(), |bias| S::load(bias.as_ptr().add(c)));
                for (line, values) in square.iter().zip(values) {
                    for (at, value) in line.iter().zip(values) {
                        if *at != OUTSIDE {
                            let value = S::add(value, bias);
                            let value = if epilogue.relu { S::relu(value) } else { value };
                            T::store::<S>(y.at(at + c), value);
                        }
                    }
                }
            }
        }
    }

    /// `G^T S G` of one filter of a group, added to what is there with `accumulate`.
    ///
    /// # Safety
    /// `dw` is as long as a filter, and `sums` is `[points, filters, channels of all parities]`.
    unsafe fn filter_gradient<S>(
        dw: &mut [f32],
        sums: &[f32],
        filter: usize,
        sizes: &Sizes,
        accumulate: bool,
    ) {
        let Sizes { channels, filters: k, r, s, stride: [parities, _], .. } = *sizes;
        let depth = parities * parities * channels;
        for parity in 0..parities * parities {
            for c in (0..channels).step_by(S::LANES) {
                let first = sums.as_ptr().add(filter * depth + parity * channels + c);
                let t = points::<S>(first, k * depth);
                let g = both_ways::<S, PointsToFilter, IN, TAPS>(t);
                for (a, g) in g.iter().enumerate() {
                    for (b, g) in g.iter().enumerate() {
                        let y = parities * a + parity / parities;
                        let x = parities * b + parity % parities;
                        if y < r && x < s {
                            let at = dw.as_mut_ptr().add((y * s + x) * channels + c);
                            S::store(at, if accumulate { S::add(S::load(at), *g) } else { *g });
                        }
                    }
                }
            }
        }
    }
}

/// Channels from `c` on of what lies at each place of a square; zeros outside the image.
#[inline(always)]
unsafe fn load<S: Simd, T: Element, const N: usize>(
    x: &[T],
    square: &[[usize; N]; N],
    c: usize,
) -> [[S::V; N]; N] {
    // SAFETY: the caller's instructions; a place in the image has all channels.
    unsafe {
        let mut values = [[S::zero(); N]; N];
        for (values, line) in values.iter_mut().zip(square) {
            for (value, at) in values.iter_mut().zip(line) {
                if *at != OUTSIDE {
                    *value = T::load::<S>(x.as_ptr().add(at + c));
                }
            }
        }
        values
    }
}

/// What lies at every point, from `first` on, `step` apart.
#[inline(always)]
unsafe fn points<S: Simd>(first: *const f32, step: usize) -> [[S::V; IN]; IN] {
    // SAFETY: the caller's.
    unsafe {
        let mut values = [[S::zero(); IN]; IN];
        for (point, value) in values.as_flattened_mut().iter_mut().enumerate() {
            *value = S::load(first.add(point * step));
        }
        values
    }
}

/// A transformation of lines of `N` values.
///
/// This is a trait, and there are no closures around vectors, because a closure that is not inlined
/// does not have the instructions of the function around it.
trait Line<S: Simd, const N: usize, const M: usize> {
    /// # Safety
    /// The machine has the instructions of `S`.
    unsafe fn line(line: [S::V; N]) -> [S::V; M];
}

/// A transformation applied to each row and then to each column.
#[inline(always)]
unsafe fn both_ways<S: Simd, L: Line<S, N, M>, const N: usize, const M: usize>(
    square: [[S::V; N]; N],
) -> [[S::V; M]; M] {
    // SAFETY: the caller's.
    unsafe {
        let mut rows = [[S::zero(); M]; N];
        for i in 0..N {
            rows[i] = L::line(square[i]);
        }
        let mut both = [[S::zero(); M]; M];
        for j in 0..M {
            let mut column = [S::zero(); N];
            for i in 0..N {
                column[i] = rows[i][j];
            }
            let column = L::line(column);
            for i in 0..M {
                both[i][j] = column[i];
            }
        }
        both
    }
}

/// `c` in every lane.
#[inline(always)]
unsafe fn times<S: Simd>(c: f32, v: S::V) -> S::V {
    // SAFETY: the caller's.
    unsafe { S::multiply(S::splat(c), v) }
}

/// `c v + w`.
#[inline(always)]
unsafe fn plus<S: Simd>(c: f32, v: S::V, w: S::V) -> S::V {
    // SAFETY: the caller's.
    unsafe { S::multiply_add(S::splat(c), v, w) }
}

/// `B^T d`. Row by row: the polynomials that vanish at all points but one.
struct InputToPoints;

impl<S: Simd> Line<S, IN, IN> for InputToPoints {
    #[inline(always)]
    unsafe fn line(d: [S::V; IN]) -> [S::V; IN] {
        // SAFETY: the caller's.
        unsafe {
            let even_a = plus::<S>(-B * B, d[2], d[4]);
            let odd_a = times::<S>(A, plus::<S>(-B * B, d[1], d[3]));
            let even_b = plus::<S>(-A * A, d[2], d[4]);
            let odd_b = times::<S>(B, plus::<S>(-A * A, d[1], d[3]));
            [
                plus::<S>(-(A * A + B * B), d[2], S::add(d[0], d[4])),
                S::add(even_a, odd_a),
                S::sub(even_a, odd_a),
                S::add(even_b, odd_b),
                S::sub(even_b, odd_b),
                plus::<S>(-(A * A + B * B), d[3], S::add(d[1], d[5])),
            ]
        }
    }
}

/// `G g`: a filter's polynomial at the points, over what [`input_to_points`] has there.
struct FilterToPoints;

impl<S: Simd> Line<S, TAPS, IN> for FilterToPoints {
    #[inline(always)]
    unsafe fn line(g: [S::V; TAPS]) -> [S::V; IN] {
        // SAFETY: the caller's.
        unsafe {
            let even_a = times::<S>(AT_A, plus::<S>(A * A, g[2], g[0]));
            let odd_a = times::<S>(AT_A * A, g[1]);
            let even_b = times::<S>(AT_B, plus::<S>(B * B, g[2], g[0]));
            let odd_b = times::<S>(AT_B * B, g[1]);
            [
                g[0],
                S::add(even_a, odd_a),
                S::sub(even_a, odd_a),
                S::add(even_b, odd_b),
                S::sub(even_b, odd_b),
                g[2],
            ]
        }
    }
}

/// One over the product of a point's distances from the other finite points, at +-A and at +-B.
const AT_A: f32 = -1.0 / 1.5;
const AT_B: f32 = 1.0 / 6.0;

/// `G^T t`.
struct PointsToFilter;

impl<S: Simd> Line<S, IN, TAPS> for PointsToFilter {
    #[inline(always)]
    unsafe fn line(t: [S::V; IN]) -> [S::V; TAPS] {
        // SAFETY: the caller's.
        unsafe {
            let even_a = times::<S>(AT_A, S::add(t[1], t[2]));
            let odd_a = times::<S>(AT_A * A, S::sub(t[1], t[2]));
            let even_b = times::<S>(AT_B, S::add(t[3], t[4]));
            let odd_b = times::<S>(AT_B * B, S::sub(t[3], t[4]));
            [
                S::add(t[0], S::add(even_a, even_b)),
                S::add(odd_a, odd_b),
                plus::<S>(A * A, even_a, plus::<S>(B * B, even_b, t[5])),
            ]
        }
    }
}

/// `A^T m`: from the values at the points to the coefficients.
struct PointsToOutput;

impl<S: Simd> Line<S, IN, OUT> for PointsToOutput {
    #[inline(always)]
    unsafe fn line(m: [S::V; IN]) -> [S::V; OUT] {
        // SAFETY: the caller's.
        unsafe {
            let (even_a, odd_a) = (S::add(m[1], m[2]), S::sub(m[1], m[2]));
            let (even_b, odd_b) = (S::add(m[3], m[4]), S::sub(m[3], m[4]));
            [
                S::add(m[0], S::add(even_a, even_b)),
                plus::<S>(A, odd_a, times::<S>(B, odd_b)),
                plus::<S>(A * A, even_a, times::<S>(B * B, even_b)),
                plus::<S>(A * A * A, odd_a, plus::<S>(B * B * B, odd_b, m[5])),
            ]
        }
    }
}

/// `A y`.
struct OutputToPoints;

impl<S: Simd> Line<S, OUT, IN> for OutputToPoints {
    #[inline(always)]
    unsafe fn line(y: [S::V; OUT]) -> [S::V; IN] {
        // SAFETY: the caller's.
        unsafe {
            let even_a = plus::<S>(A * A, y[2], y[0]);
            let odd_a = plus::<S>(A * A * A, y[3], times::<S>(A, y[1]));
            let even_b = plus::<S>(B * B, y[2], y[0]);
            let odd_b = plus::<S>(B * B * B, y[3], times::<S>(B, y[1]));
            [
                y[0],
                S::add(even_a, odd_a),
                S::sub(even_a, odd_a),
                S::add(even_b, odd_b),
                S::sub(even_b, odd_b),
                y[3],
            ]
        }
    }
}
