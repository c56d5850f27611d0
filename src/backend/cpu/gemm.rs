//! Matrix products on one thread: `out = a b` or `out += a b`.
//!
//! On x86 with AVX2 or AVX-512 the work is faer's, chosen by it at run time. Anywhere else, and
//! in tests anywhere, a small tiled product in plain Rust does it, which the compiler vectorises
//! for whatever the target has. Neither uses threads: the order of a sum depends on sizes alone.

use faer::{Accum, MatMut, MatRef, Par};

use super::isa::Isa;

/// Rows of `out` computed together by the portable product.
const ROWS: usize = 4;
/// Columns of `out` computed together by the portable product.
const COLUMNS: usize = 16;
/// Depth whose panels are packed at a time (both fit in 20 KB of stack).
const DEPTH: usize = 256;

/// `out = a b`, or `out += a b` with `accumulate`, for `[m, n] = [m, k] [k, n]`.
pub fn gemm(
    isa: Isa,
    out: MatMut<'_, f32>,
    accumulate: bool,
    a: MatRef<'_, f32>,
    b: MatRef<'_, f32>,
) {
    if isa != Isa::PORTABLE {
        let accumulate = if accumulate { Accum::Add } else { Accum::Replace };
        faer::linalg::matmul::matmul(out, accumulate, a, b, 1.0, Par::Seq);
    } else {
        portable(out, accumulate, a, b);
    }
}

/// A row-major matrix over the first `rows * columns` values of a slice.
pub fn matrix(values: &[f32], rows: usize, columns: usize) -> MatRef<'_, f32> {
    MatRef::from_row_major_slice(&values[..rows * columns], rows, columns)
}

/// As [`matrix`], to be written.
pub fn matrix_mut(values: &mut [f32], rows: usize, columns: usize) -> MatMut<'_, f32> {
    MatMut::from_row_major_slice_mut(&mut values[..rows * columns], rows, columns)
}

fn portable(mut out: MatMut<'_, f32>, accumulate: bool, a: MatRef<'_, f32>, b: MatRef<'_, f32>) {
    let (m, n, k) = (out.nrows(), out.ncols(), a.ncols());
    assert_eq!((a.nrows(), b.nrows(), b.ncols()), (m, k, n));
    if !accumulate {
        out.fill(0.0);
    }
    let mut b_panel = [[0.0f32; COLUMNS]; DEPTH];
    let mut a_panel = [[0.0f32; ROWS]; DEPTH];
    for k0 in (0..k).step_by(DEPTH) {
        let depth = DEPTH.min(k - k0);
        for j0 in (0..n).step_by(COLUMNS) {
            let columns = COLUMNS.min(n - j0);
            for (l, row) in b_panel[..depth].iter_mut().enumerate() {
                for (j, value) in row.iter_mut().enumerate() {
                    *value = if j < columns { b[(k0 + l, j0 + j)] } else { 0.0 };
                }
            }
            for i0 in (0..m).step_by(ROWS) {
                let rows = ROWS.min(m - i0);
                for (l, row) in a_panel[..depth].iter_mut().enumerate() {
                    for (i, value) in row.iter_mut().enumerate() {
                        *value = if i < rows { a[(i0 + i, k0 + l)] } else { 0.0 };
                    }
                }
                let mut sums = [[0.0f32; COLUMNS]; ROWS];
                for (a, b) in a_panel[..depth].iter().zip(&b_panel[..depth]) {
                    for (sums, a) in sums.iter_mut().zip(a) {
                        for (sum, b) in sums.iter_mut().zip(b) {
                            *sum += a * b;
                        }
                    }
                }
                for (i, sums) in sums[..rows].iter().enumerate() {
                    for (j, sum) in sums[..columns].iter().enumerate() {
                        out[(i0 + i, j0 + j)] += sum;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both products, exactly, on small integers, with ragged edges and every storage order.
    #[test]
    fn products_are_exact_on_integers() {
        let (m, n, k) = (ROWS * 2 + 3, COLUMNS + 5, DEPTH + 7);
        let a: Vec<f32> = (0..m * k).map(|i| (i * 7 % 11) as f32 - 5.0).collect();
        let b: Vec<f32> = (0..k * n).map(|i| (i * 5 % 13) as f32 - 6.0).collect();
        let at: Vec<f32> = (0..k * m).map(|i| a[(i % m) * k + i / m]).collect();
        let bt: Vec<f32> = (0..k * n).map(|i| b[(i % k) * n + i / k]).collect();
        let want: Vec<f32> =
            (0..m * n).map(|i| (0..k).map(|l| a[i / n * k + l] * b[l * n + i % n]).sum()).collect();
        for isa in [Isa::PORTABLE, Isa::detect()] {
            for a in [matrix(&a, m, k), matrix(&at, k, m).transpose()] {
                for b in [matrix(&b, k, n), matrix(&bt, n, k).transpose()] {
                    let mut out = vec![f32::NAN; m * n];
                    gemm(isa, matrix_mut(&mut out, m, n), false, a, b);
                    assert_eq!(out, want);
                    gemm(isa, matrix_mut(&mut out, m, n), true, a, b);
                    assert!(out.iter().zip(&want).all(|(o, w)| *o == 2.0 * w));
                }
            }
        }
    }
}
