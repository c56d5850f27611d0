//! Products of packed operands, a tile of registers at a time: `out = a b` or `out += a b`.
//!
//! A tile is [`block`]'s rows of `a` by its columns of `b`; its sums stay in registers for the whole
//! depth. What surrounds it (which rows, which columns, in which order) is the business of whoever
//! packs the operands, in [`super::conv`]. The order of a sum depends on its depth alone.

use crate::amx;
use crate::isa::Isa;
#[cfg(target_arch = "x86_64")]
use crate::isa::Level;
#[cfg(target_arch = "x86_64")]
use crate::simd::{Avx2, Avx512};
use crate::simd::{Portable, Simd};

/// Largest depth of a packed row of `a`.
pub const DEPTH: usize = 384;
/// Distance of packed rows. More than [`DEPTH`], so that rows do not fall into the same sets of a
/// cache.
pub const STRIDE: usize = DEPTH + 16;

/// Bytes of a line of a cache.
pub const LINE: usize = 64;
/// Vectors of `b` in a tile.
const VECTORS: usize = 2;
/// Rows of a tile that leave room for `b` and a value of `a` among 32 registers, and among 16.
const ROWS_OF_32: usize = 14;
const ROWS_OF_16: usize = 6;
/// Sums of the largest tile.
const MOST_SUMS: usize = amx::BLOCK * amx::BLOCK;
const _: () = assert!(ROWS_OF_32 * VECTORS * 16 <= MOST_SUMS);

/// Rows and columns of a tile.
pub fn block(isa: Isa, products: Products) -> (usize, usize) {
    match isa.level() {
        _ if products == Products::Bf16Tiles => (amx::BLOCK, amx::BLOCK),
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => (ROWS_OF_32, VECTORS * Avx512::LANES),
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => (ROWS_OF_16, VECTORS * Avx2::LANES),
        _ => (ROWS_OF_16, VECTORS * Portable::LANES),
    }
}

/// Values of a vector.
pub fn lanes(isa: Isa) -> usize {
    block(isa, Products::F32).1 / VECTORS
}

/// How products are made, and so what a word of packed operands is: one step of a tile's depth.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Products {
    /// A word is an f32.
    F32,
    /// A word is two bf16 that follow each other along the depth, the first in the lower half; their
    /// products are added by one instruction (AVX512-BF16).
    Bf16Pairs,
    /// The same words, multiplied by the matrix unit (AMX), 16 at a time.
    Bf16Tiles,
}

impl Products {
    /// Values of so many words along the depth, or of the fewest there can be more.
    pub fn values(self, words: usize) -> usize {
        match self {
            Products::F32 => words,
            Products::Bf16Pairs => 2 * words,
            Products::Bf16Tiles => 2 * words.next_multiple_of(amx::STEPS),
        }
    }

    /// Words for so many values along the depth. What is left of the last ones is zero.
    pub fn words(self, values: usize) -> usize {
        match self {
            Products::F32 => values,
            Products::Bf16Pairs => values.div_ceil(2),
            Products::Bf16Tiles => values.div_ceil(2).next_multiple_of(amx::STEPS),
        }
    }
}

/// How the rows of a tile lie in memory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Row `i` begins at `i * STRIDE`, its depth is contiguous.
    Rows,
    /// Step `k` of the depth begins at `k * STRIDE`, its rows are contiguous.
    Columns,
}

/// `a` and `b` of a tile: words of a whole tile, of which those that are not wanted may be anything.
#[derive(Clone, Copy)]
pub struct Operands<'a> {
    /// What a word is.
    pub products: Products,
    /// Steps of the sum.
    pub depth: usize,
    /// Rows.
    pub a: &'a [u32],
    /// How they lie.
    pub layout: Layout,
    /// Columns: those of step `k` begin at `k * b_stride`.
    pub b: &'a [u32],
    /// See there.
    pub b_stride: usize,
    /// What memory is to bring meanwhile.
    pub ahead: Option<Ahead<'a>>,
}

/// Rows in memory that will be packed next: a line of a row is asked for at each step of the depth,
/// `rows` of them before the next line of each.
#[derive(Clone, Copy)]
pub struct Ahead<'a> {
    /// The first row, and what is behind it.
    pub bytes: &'a [u8],
    /// Bytes from row to row.
    pub stride: usize,
    /// A power of two.
    pub rows: usize,
}

/// Where the sums of a tile go: row `i` to `i * stride`.
pub struct Out<'a> {
    /// Of all that is written.
    pub values: &'a mut [f32],
    /// From row to row.
    pub stride: usize,
    /// Rows that are wanted.
    pub rows: usize,
    /// Columns that are wanted.
    pub columns: usize,
    /// Add to what is there.
    pub accumulate: bool,
}

/// `out = a b`, or `out += a b`, for one tile.
pub fn tile(isa: Isa, out: Out<'_>, operands: Operands<'_>) {
    let Operands { products, depth, a, b, .. } = operands;
    let (rows, columns) = block(isa, products);
    assert!(depth > 0 && (1..=rows).contains(&out.rows) && (1..=columns).contains(&out.columns));
    let last_of_a = match operands.layout {
        Layout::Rows => (rows - 1) * STRIDE + depth - 1,
        Layout::Columns => (depth - 1) * STRIDE + rows - 1,
    };
    assert!(last_of_a < a.len() && (depth - 1) * operands.b_stride + columns <= b.len());
    assert!((out.rows - 1) * out.stride + out.columns <= out.values.len());
    if (out.rows, out.columns) == (rows, columns) {
        let place = (out.values.as_mut_ptr(), out.stride, out.accumulate);
        // SAFETY: the assertions say that all that is read and written lies in the slices.
        unsafe { dispatch(isa, place, (rows, columns), operands) };
        return;
    }
    let (mut whole, wanted) = ([0.0; MOST_SUMS], (out.rows, out.columns));
    if out.accumulate {
        let rows = out.values.chunks(out.stride).zip(whole.chunks_mut(columns)).take(out.rows);
        for (values, sums) in rows {
            sums[..out.columns].copy_from_slice(&values[..out.columns]);
        }
    }
    // Added to as a whole tile is, for tiles of the matrix unit add step by step.
    let place = (whole.as_mut_ptr(), columns, out.accumulate);
    // SAFETY: as above, and a tile of any instruction set fits into `whole`.
    unsafe { dispatch(isa, place, wanted, operands) };
    let rows = out.values.chunks_mut(out.stride).zip(whole.chunks(columns)).take(out.rows);
    for (values, sums) in rows {
        values[..out.columns].copy_from_slice(&sums[..out.columns]);
    }
}

/// Keeps what this thread's products need in place while it lives. Where there is none, each of them sees
/// to it, which takes longer.
pub struct Prepared {
    #[cfg(target_arch = "x86_64")]
    _tiles: Option<amx::tiles::Tiles>,
}

impl Prepared {
    /// For many tiles.
    #[cfg_attr(not(target_arch = "x86_64"), expect(unused_variables))]
    pub fn new(isa: Isa, products: Products) -> Prepared {
        Prepared {
            #[cfg(target_arch = "x86_64")]
            _tiles: (products == Products::Bf16Tiles && isa.has_amx())
                .then(amx::tiles::Tiles::configure),
        }
    }
}

/// Pointer to the first sum, distance of rows, whether to add.
type Place = (*mut f32, usize, bool);

/// Of the tile at least the `wanted` rows and columns.
///
/// # Safety
/// A whole tile lies in the operands, and behind the place.
#[cfg_attr(not(target_arch = "x86_64"), expect(unused_variables))]
unsafe fn dispatch(isa: Isa, place: Place, wanted: (usize, usize), operands: Operands<'_>) {
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn avx512_bf16<const A: usize, const STEP: usize>(place: Place, operands: Operands<'_>) {
        // SAFETY: the caller's.
        unsafe { sums::<Avx512, Pairs, ROWS_OF_32, A, STEP>(place, operands) }
    }
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn avx512<const A: usize, const STEP: usize>(place: Place, operands: Operands<'_>) {
        // SAFETY: the caller's.
        unsafe { sums::<Avx512, Single, ROWS_OF_32, A, STEP>(place, operands) }
    }
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn avx2<const A: usize, const STEP: usize>(place: Place, operands: Operands<'_>) {
        // SAFETY: the caller's.
        unsafe { sums::<Avx2, Single, ROWS_OF_16, A, STEP>(place, operands) }
    }
    let rows = operands.layout == Layout::Rows;
    // SAFETY: the caller's, and an `Isa` of a level exists only where the running machine has it.
    unsafe {
        match (isa.level(), operands.products) {
            #[cfg(target_arch = "x86_64")]
            (_, Products::Bf16Tiles) => {
                assert!(
                    isa.has_amx() && rows,
                    "tiles are of rows, and refused where there is no AMX"
                );
                let ((rows, columns), (out, stride, accumulate)) = (wanted, place);
                let Operands { depth, a, b, b_stride, .. } = operands;
                let (a, b) = (a.as_ptr(), b.as_ptr());
                amx::tiles::tile(
                    out, stride, accumulate, rows, columns, depth, a, STRIDE, b, b_stride,
                );
            }
            #[cfg(target_arch = "x86_64")]
            (Level::Avx512, Products::F32) if rows => avx512::<STRIDE, 1>(place, operands),
            #[cfg(target_arch = "x86_64")]
            (Level::Avx512, Products::F32) => avx512::<1, STRIDE>(place, operands),
            #[cfg(target_arch = "x86_64")]
            (_, Products::Bf16Pairs) => {
                assert!(isa.has_bf16(), "pairs are refused where there is no AVX512-BF16");
                if rows {
                    avx512_bf16::<STRIDE, 1>(place, operands);
                } else {
                    avx512_bf16::<1, STRIDE>(place, operands);
                }
            }
            #[cfg(target_arch = "x86_64")]
            (Level::Avx2, _) if rows => avx2::<STRIDE, 1>(place, operands),
            #[cfg(target_arch = "x86_64")]
            (Level::Avx2, _) => avx2::<1, STRIDE>(place, operands),
            _ if rows => sums::<Portable, Single, ROWS_OF_16, STRIDE, 1>(place, operands),
            _ => sums::<Portable, Single, ROWS_OF_16, 1, STRIDE>(place, operands),
        }
    }
}

/// How a step of the depth is added to the sums.
trait Multiply<S: Simd> {
    /// # Safety
    /// As for [`Simd`].
    unsafe fn add(a: S::V, b: S::V, sum: S::V) -> S::V;
}

/// Words are f32.
struct Single;

impl<S: Simd> Multiply<S> for Single {
    #[inline(always)]
    unsafe fn add(a: S::V, b: S::V, sum: S::V) -> S::V {
        // SAFETY: the caller's.
        unsafe { S::multiply_add(a, b, sum) }
    }
}

/// Words are pairs of bf16.
#[cfg(target_arch = "x86_64")]
struct Pairs;

#[cfg(target_arch = "x86_64")]
impl Multiply<Avx512> for Pairs {
    #[inline(always)]
    unsafe fn add(
        a: std::arch::x86_64::__m512,
        b: std::arch::x86_64::__m512,
        sum: std::arch::x86_64::__m512,
    ) -> std::arch::x86_64::__m512 {
        // SAFETY: both are 512 bits, any of which are bf16; the instruction is the caller's.
        unsafe {
            let [a, b] = [a, b].map(|v| std::mem::transmute(v));
            std::arch::x86_64::_mm512_dpbf16_ps(sum, a, b)
        }
    }
}

/// The tile itself: value (row `i`, step `k`) of `a` lies at `i * A + k * STEP`.
///
/// # Safety
/// The machine has the instructions, and a whole tile lies in the operands and behind the place.
#[inline(always)]
unsafe fn sums<S: Simd, M: Multiply<S>, const ROWS: usize, const A: usize, const STEP: usize>(
    place: Place,
    operands: Operands<'_>,
) {
    // Two loops, since even a wish that is not made costs an instruction.
    // SAFETY: the caller's.
    unsafe {
        match operands.ahead {
            None => steps::<S, M, ROWS, A, STEP>(place, operands, None),
            Some(ahead) => steps::<S, M, ROWS, A, STEP>(place, operands, Some(ahead)),
        }
    }
}

/// See [`sums`].
///
/// # Safety
/// See there.
#[inline(always)]
unsafe fn steps<S: Simd, M: Multiply<S>, const ROWS: usize, const A: usize, const STEP: usize>(
    (out, out_stride, accumulate): Place,
    operands: Operands<'_>,
    ahead: Option<Ahead<'_>>,
) {
    // SAFETY: the caller's.
    unsafe {
        let mut a = operands.a.as_ptr().cast::<f32>();
        let mut b = operands.b.as_ptr().cast::<f32>();
        let mut sums = [[S::zero(); VECTORS]; ROWS];
        if accumulate {
            // They come in from the last cache, a few lines here and there, while the sums are made.
            for i in 0..ROWS {
                S::prefetch(out.add(i * out_stride));
                S::prefetch(out.add(i * out_stride + VECTORS * S::LANES - 1));
            }
        }
        for step in 0..operands.depth {
            if let Some(Ahead { bytes, stride, rows }) = ahead {
                let (row, line) = (step & (rows - 1), step >> rows.trailing_zeros());
                let line = bytes.as_ptr().wrapping_add(row * stride + line * LINE);
                S::prefetch(line.cast());
            }
            let columns: [S::V; VECTORS] = std::array::from_fn(|j| S::load(b.add(j * S::LANES)));
            for (i, sums) in sums.iter_mut().enumerate() {
                let value = S::splat(*a.add(i * A));
                for (sum, column) in sums.iter_mut().zip(columns) {
                    *sum = M::add(value, column, *sum);
                }
            }
            // One past the last step these point nowhere, and nothing is read.
            a = a.wrapping_add(STEP);
            b = b.wrapping_add(operands.b_stride);
        }
        for (i, sums) in sums.into_iter().enumerate() {
            for (j, sum) in sums.into_iter().enumerate() {
                let out = out.add(i * out_stride + j * S::LANES);
                S::store(out, if accumulate { S::add(S::load(out), sum) } else { sum });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whole tiles and parts of them, both layouts, written and added, exactly on small integers.
    #[test]
    fn tiles_are_exact_on_integers() {
        for isa in [Isa::PORTABLE, Isa::at_most_avx2(), Isa::detect()] {
            let (most_rows, most_columns) = block(isa, Products::F32);
            let depth = most_rows + 3;
            let a = |i: usize, k: usize| ((i * 7 + k * 3) % 11) as f32 - 5.0;
            let b = |k: usize, j: usize| ((k * 5 + j * 2) % 13) as f32 - 6.0;
            let lay = |step: usize, row: usize| {
                let mut words = vec![f32::NAN.to_bits(); (most_rows + depth) * STRIDE];
                for i in 0..most_rows {
                    for k in 0..depth {
                        words[i * row + k * step] = a(i, k).to_bits();
                    }
                }
                words
            };
            let b_stride = most_columns + 1;
            let columns: Vec<u32> =
                (0..depth * b_stride).map(|at| b(at / b_stride, at % b_stride).to_bits()).collect();
            for (layout, a_words) in
                [(Layout::Rows, lay(1, STRIDE)), (Layout::Columns, lay(STRIDE, 1))]
            {
                for (rows, wanted) in [(most_rows, most_columns), (1, most_columns - 1), (2, 1)] {
                    for accumulate in [false, true] {
                        let stride = most_columns + 2;
                        let mut values = vec![2.0; most_rows * stride];
                        let out =
                            Out { values: &mut values, stride, rows, columns: wanted, accumulate };
                        let operands = Operands {
                            products: Products::F32,
                            depth,
                            a: &a_words,
                            layout,
                            b: &columns,
                            b_stride,
                            ahead: None,
                        };
                        tile(isa, out, operands);
                        for (at, value) in values.iter().enumerate() {
                            let (i, j) = (at / stride, at % stride);
                            let sum: f32 = (0..depth).map(|k| a(i, k) * b(k, j)).sum();
                            let start = if accumulate { 2.0 } else { 0.0 };
                            let want = if i < rows && j < wanted { start + sum } else { 2.0 };
                            assert_eq!(*value, want, "{isa:?}, row {i}, column {j}");
                        }
                    }
                }
            }
        }
    }
}
