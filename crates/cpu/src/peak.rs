//! What the arithmetic units can do at most: independent chains of multiply-adds in registers.

use crate::isa::Isa;
#[cfg(target_arch = "x86_64")]
use crate::isa::Level;

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

/// As [`multiply_adds`], of pairs of bf16 (AVX512-BF16).
///
/// # Panics
/// If the machine has no instruction for them ([`Isa::has_bf16`]).
pub fn pair_multiply_adds(isa: Isa, rounds: usize) -> f64 {
    assert!(isa.has_bf16(), "pairs of bf16 are refused where there is no AVX512-BF16");
    // SAFETY: the features were found on this machine.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        avx512_bf16(rounds);
    }
    (2 * 32 * CHAINS * rounds) as f64
}

/// As [`multiply_adds`], of tiles of bf16 (AMX).
///
/// # Panics
/// If the machine has no instruction for them ([`Isa::has_amx`]).
#[cfg_attr(not(target_arch = "x86_64"), expect(unused_variables))]
pub fn tile_multiply_adds(isa: Isa, rounds: usize) -> f64 {
    assert!(isa.has_amx(), "tiles are refused where there is no AMX");
    #[cfg(target_arch = "x86_64")]
    return crate::amx::tiles::products(rounds);
    #[cfg(not(target_arch = "x86_64"))]
    unreachable!("no other machine has AMX")
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
fn avx512_bf16(rounds: usize) {
    use std::arch::x86_64::{
        __m512bh, __m512i, _mm512_dpbf16_ps, _mm512_reduce_add_ps, _mm512_set1_epi32,
        _mm512_setzero_ps,
    };
    // Pairs of 0.5 and 2^-20: sums stay small.
    let pairs = std::hint::black_box(_mm512_set1_epi32(0x3580_3f00));
    // SAFETY: both are 512 bits, any of which are bf16.
    let pairs = unsafe { std::mem::transmute::<__m512i, __m512bh>(pairs) };
    let mut sums = [_mm512_setzero_ps(); CHAINS];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm512_dpbf16_ps(*sum, pairs, pairs);
        }
    }
    std::hint::black_box(sums.map(|sum| _mm512_reduce_add_ps(sum)));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_counted() {
        assert_eq!(multiply_adds(Isa::PORTABLE, 10), 2.0 * 4.0 * 12.0 * 10.0);
        let isa = Isa::detect();
        if isa.has_bf16() {
            assert_eq!(pair_multiply_adds(isa, 10), 2.0 * 32.0 * 12.0 * 10.0);
        }
    }
}
