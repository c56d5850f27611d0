//! What the arithmetic units can do at most: independent chains of multiply-adds in registers.

use crate::isa::{Isa, Level};

/// Chains; enough to cover an instruction's latency on both units.
const CHAINS: usize = 12;

/// Runs `rounds` of multiply-adds on this thread and says how many floating-point operations that
/// was.
pub fn multiply_adds(isa: Isa, rounds: usize) -> f64 {
    let lanes = match isa.level() {
        // SAFETY: an `Isa` of this level exists only where the running machine has the features.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => unsafe { avx512(rounds) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => unsafe { avx2(rounds) },
        _ => portable(rounds),
    };
    (2 * lanes * CHAINS * rounds) as f64
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn avx512(rounds: usize) -> usize {
    use std::arch::x86_64::{_mm512_fmadd_ps, _mm512_reduce_add_ps, _mm512_set1_ps};
    let (a, b) = std::hint::black_box((_mm512_set1_ps(0.999), _mm512_set1_ps(0.001)));
    let mut sums = [b; CHAINS];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm512_fmadd_ps(*sum, a, b);
        }
    }
    std::hint::black_box(sums.map(|sum| _mm512_reduce_add_ps(sum)));
    16
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2(rounds: usize) -> usize {
    use std::arch::x86_64::{_mm256_cvtss_f32, _mm256_fmadd_ps, _mm256_set1_ps};
    let (a, b) = std::hint::black_box((_mm256_set1_ps(0.999), _mm256_set1_ps(0.001)));
    let mut sums = [b; CHAINS];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm256_fmadd_ps(*sum, a, b);
        }
    }
    std::hint::black_box(sums.map(|sum| _mm256_cvtss_f32(sum)));
    8
}

fn portable(rounds: usize) -> usize {
    let (a, b) = std::hint::black_box((0.999f32, 0.001f32));
    let mut sums = [[b; 4]; CHAINS];
    for _ in 0..rounds {
        for sum in sums.as_flattened_mut() {
            *sum = *sum * a + b;
        }
    }
    std::hint::black_box(sums);
    4
}
