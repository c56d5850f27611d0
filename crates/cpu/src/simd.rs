//! Vectors of f32 under one name for each instruction set, for the loops that need registers
//! counted: the tiles of a product ([`super::gemm`]) and Winograd's transforms.
//!
//! Everything here is inlined into functions that [`vectors!`] compiles for an instruction set.

use half::bf16;

use crate::values::Element;

/// The vectors of an instruction set.
///
/// # Safety
/// Every function requires that the running machine has the instructions, and of pointers that
/// there are [`Simd::LANES`] values behind them.
pub trait Simd: Copy {
    /// A vector of [`Simd::LANES`] values.
    type V: Copy;
    /// Values of a vector.
    const LANES: usize;

    /// Asks for a line of memory that will be wanted soon, if the machine prefetches.
    unsafe fn prefetch(_line: *const f32) {}
    /// All zero.
    unsafe fn zero() -> Self::V;
    /// All the same.
    unsafe fn splat(value: f32) -> Self::V;
    /// From memory, in any alignment.
    unsafe fn load(from: *const f32) -> Self::V;
    /// To memory, in any alignment.
    unsafe fn store(to: *mut f32, value: Self::V);
    /// The bits of bf16 from memory, in any alignment.
    unsafe fn load_bf16(from: *const u16) -> Self::V;
    /// To memory as the bits of bf16, rounded to nearest, ties to even, in any alignment; NaN stays one.
    unsafe fn store_bf16(to: *mut u16, value: Self::V);
    /// `a + b`.
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    /// `a - b`.
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    /// `a b`.
    unsafe fn multiply(a: Self::V, b: Self::V) -> Self::V;
    /// `a b + c`, rounded once where the machine can.
    unsafe fn multiply_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// Zero where `a` is below zero, else `a`; NaN stays.
    unsafe fn relu(a: Self::V) -> Self::V;
    /// Values of `a` and `b` in turn: of their lower halves, and of their upper halves.
    unsafe fn interleave(a: Self::V, b: Self::V) -> [Self::V; 2];

    /// Lists which of a vector's values are not zero, the first of which is number `first`, and says how
    /// many they are. There is room for a whole vector, any part of which may be overwritten.
    #[inline(always)]
    unsafe fn compress(numbers: *mut u32, values: *mut f32, from: Self::V, first: u32) -> usize {
        let (mut lanes, mut found) = ([0.0; MOST_LANES], 0);
        // SAFETY: a vector of any kind fits; the rest is the caller's.
        unsafe {
            Self::store(lanes.as_mut_ptr(), from);
            for (value, number) in lanes.into_iter().take(Self::LANES).zip(first..) {
                *numbers.add(found) = number;
                *values.add(found) = value;
                found += usize::from(value != 0.0);
            }
        }
        found
    }
}

/// Values of the longest vector.
pub const MOST_LANES: usize = 16;

/// Rows become columns: of the first [`Simd::LANES`] vectors.
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
pub unsafe fn transpose<S: Simd>(mut rows: [S::V; MOST_LANES]) -> [S::V; MOST_LANES] {
    let half = S::LANES / 2;
    for _ in 0..S::LANES.trailing_zeros() {
        let old = rows;
        for i in 0..half {
            // SAFETY: the caller's.
            let [low, high] = unsafe { S::interleave(old[i], old[half + i]) };
            (rows[2 * i], rows[2 * i + 1]) = (low, high);
        }
    }
    rows
}

/// Four values, left to the compiler.
#[derive(Clone, Copy)]
pub struct Portable;

impl Simd for Portable {
    type V = [f32; 4];
    const LANES: usize = 4;

    #[inline(always)]
    unsafe fn zero() -> [f32; 4] {
        [0.0; 4]
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> [f32; 4] {
        [value; 4]
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> [f32; 4] {
        // SAFETY: the caller's.
        unsafe { from.cast::<[f32; 4]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, value: [f32; 4]) {
        // SAFETY: the caller's.
        unsafe { to.cast::<[f32; 4]>().write_unaligned(value) }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> [f32; 4] {
        // SAFETY: the caller's.
        let bits = unsafe { from.cast::<[u16; 4]>().read_unaligned() };
        bits.map(|bits| Element::to_f32(bf16::from_bits(bits)))
    }

    #[inline(always)]
    unsafe fn store_bf16(to: *mut u16, value: [f32; 4]) {
        let bits = value.map(|value| <bf16 as Element>::from_f32(value).to_bits());
        // SAFETY: the caller's.
        unsafe { to.cast::<[u16; 4]>().write_unaligned(bits) }
    }

    #[inline(always)]
    unsafe fn add(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|i| a[i] + b[i])
    }

    #[inline(always)]
    unsafe fn sub(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|i| a[i] - b[i])
    }

    #[inline(always)]
    unsafe fn multiply(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|i| a[i] * b[i])
    }

    #[inline(always)]
    unsafe fn relu(a: [f32; 4]) -> [f32; 4] {
        a.map(|a| if a < 0.0 { 0.0 } else { a })
    }

    #[inline(always)]
    unsafe fn multiply_add(a: [f32; 4], b: [f32; 4], c: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }

    #[inline(always)]
    unsafe fn interleave(a: [f32; 4], b: [f32; 4]) -> [[f32; 4]; 2] {
        [[a[0], b[0], a[1], b[1]], [a[2], b[2], a[3], b[3]]]
    }
}

/// See [`Simd::interleave`].
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn interleave_16(
    a: std::arch::x86_64::__m512,
    b: std::arch::x86_64::__m512,
) -> [std::arch::x86_64::__m512; 2] {
    use std::arch::x86_64::{_mm512_permutex2var_ps, _mm512_setr_epi32};
    // SAFETY: the instructions are the caller's.
    unsafe {
        let low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
        let high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
        [_mm512_permutex2var_ps(a, low, b), _mm512_permutex2var_ps(a, high, b)]
    }
}

/// See [`Simd::interleave`].
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn interleave_8(
    a: std::arch::x86_64::__m256,
    b: std::arch::x86_64::__m256,
) -> [std::arch::x86_64::__m256; 2] {
    use std::arch::x86_64::{_mm256_permute2f128_ps, _mm256_unpackhi_ps, _mm256_unpacklo_ps};
    // SAFETY: the instructions are the caller's.
    unsafe {
        // Each of them of both halves: values 0, 1, 4, 5 and 2, 3, 6, 7.
        let (first, second) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
        let low = _mm256_permute2f128_ps::<0x20>(first, second);
        [low, _mm256_permute2f128_ps::<0x31>(first, second)]
    }
}

/// Implements [`Simd`] by intrinsics.
#[cfg(target_arch = "x86_64")]
macro_rules! simd {
    ($name:ident, $doc:literal, $v:ident, $lanes:literal, $zero:ident, $splat:ident, $load:ident,
     $store:ident, $add:ident, $sub:ident, $multiply:ident, $multiply_add:ident, $max:ident,
     $interleave:ident, $load_bf16:ident, $store_bf16:ident $(, $compress:ident)?) => {
        #[doc = $doc]
        #[derive(Clone, Copy)]
        pub struct $name;

        // SAFETY (of every call below): what the trait asks of its callers.
        #[allow(clippy::undocumented_unsafe_blocks)]
        impl Simd for $name {
            type V = std::arch::x86_64::$v;
            const LANES: usize = $lanes;

            #[inline(always)]
            unsafe fn prefetch(line: *const f32) {
                use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
                unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) }
            }

            #[inline(always)]
            unsafe fn zero() -> Self::V {
                unsafe { std::arch::x86_64::$zero() }
            }

            #[inline(always)]
            unsafe fn splat(value: f32) -> Self::V {
                unsafe { std::arch::x86_64::$splat(value) }
            }

            #[inline(always)]
            unsafe fn load(from: *const f32) -> Self::V {
                unsafe { std::arch::x86_64::$load(from) }
            }

            #[inline(always)]
            unsafe fn store(to: *mut f32, value: Self::V) {
                unsafe { std::arch::x86_64::$store(to, value) }
            }

            #[inline(always)]
            unsafe fn load_bf16(from: *const u16) -> Self::V {
                unsafe { $load_bf16(from) }
            }

            #[inline(always)]
            unsafe fn store_bf16(to: *mut u16, value: Self::V) {
                unsafe { $store_bf16(to, value) }
            }

            #[inline(always)]
            unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
                unsafe { std::arch::x86_64::$add(a, b) }
            }

            #[inline(always)]
            unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
                unsafe { std::arch::x86_64::$sub(a, b) }
            }

            #[inline(always)]
            unsafe fn multiply(a: Self::V, b: Self::V) -> Self::V {
                unsafe { std::arch::x86_64::$multiply(a, b) }
            }

            // Of a NaN the instruction returns its second operand.
            #[inline(always)]
            unsafe fn relu(a: Self::V) -> Self::V {
                unsafe { std::arch::x86_64::$max(Self::zero(), a) }
            }

            #[inline(always)]
            unsafe fn multiply_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
                unsafe { std::arch::x86_64::$multiply_add(a, b, c) }
            }

            #[inline(always)]
            unsafe fn interleave(a: Self::V, b: Self::V) -> [Self::V; 2] {
                unsafe { $interleave(a, b) }
            }

            $(
                #[inline(always)]
                unsafe fn compress(
                    numbers: *mut u32,
                    values: *mut f32,
                    from: Self::V,
                    first: u32,
                ) -> usize {
                    unsafe { $compress(numbers, values, from, first) }
                }
            )?
        }
    };
}

#[cfg(target_arch = "x86_64")]
simd!(
    Avx512,
    "Sixteen values of AVX-512.",
    __m512,
    16,
    _mm512_setzero_ps,
    _mm512_set1_ps,
    _mm512_loadu_ps,
    _mm512_storeu_ps,
    _mm512_add_ps,
    _mm512_sub_ps,
    _mm512_mul_ps,
    _mm512_fmadd_ps,
    _mm512_max_ps,
    interleave_16,
    load_bf16_avx512,
    store_bf16_avx512,
    compress_avx512
);

#[cfg(target_arch = "x86_64")]
simd!(
    Avx2,
    "Eight values of AVX2.",
    __m256,
    8,
    _mm256_setzero_ps,
    _mm256_set1_ps,
    _mm256_loadu_ps,
    _mm256_storeu_ps,
    _mm256_add_ps,
    _mm256_sub_ps,
    _mm256_mul_ps,
    _mm256_fmadd_ps,
    _mm256_max_ps,
    interleave_8,
    load_bf16_avx2,
    store_bf16_avx2
);

/// See [`Simd::load_bf16`].
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn load_bf16_avx512(from: *const u16) -> std::arch::x86_64::__m512 {
    use std::arch::x86_64::*;
    // SAFETY: the caller's.
    unsafe {
        let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
    }
}

/// See [`Simd::store_bf16`]. (The instruction of AVX512-BF16 would flush subnormals.)
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn store_bf16_avx512(to: *mut u16, value: std::arch::x86_64::__m512) {
    use std::arch::x86_64::*;
    // SAFETY: the caller's.
    unsafe {
        let bits = _mm512_castps_si512(value);
        let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
        let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
        let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(value, value);
        let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x0040_0000));
        let chosen = _mm512_mask_mov_epi32(rounded, nan, quiet);
        let halves = _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(chosen));
        _mm256_storeu_si256(to.cast(), halves);
    }
}

/// See [`Simd::load_bf16`].
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn load_bf16_avx2(from: *const u16) -> std::arch::x86_64::__m256 {
    use std::arch::x86_64::*;
    // SAFETY: the caller's.
    unsafe {
        let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits))
    }
}

/// See [`Simd::store_bf16`].
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn store_bf16_avx2(to: *mut u16, value: std::arch::x86_64::__m256) {
    use std::arch::x86_64::*;
    // SAFETY: the caller's.
    unsafe {
        let bits = _mm256_castps_si256(value);
        let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
        let rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
        let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(value, value));
        let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x0040_0000));
        let chosen = _mm256_srli_epi32::<16>(_mm256_blendv_epi8(rounded, quiet, nan));
        // Both halves to one side: values are below 2^16, so nothing saturates.
        let packed = _mm256_packus_epi32(chosen, chosen);
        let packed = _mm256_permute4x64_epi64::<0b00_00_10_00>(packed);
        _mm_storeu_si128(to.cast(), _mm256_castsi256_si128(packed));
    }
}

/// [`Simd::compress`].
///
/// # Safety
/// See there.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn compress_avx512(
    numbers: *mut u32,
    values: *mut f32,
    from: std::arch::x86_64::__m512,
    first: u32,
) -> usize {
    use std::arch::x86_64::*;
    // SAFETY: the caller's.
    unsafe {
        let wanted = _mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(from, _mm512_setzero_ps());
        let number = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        let number = _mm512_add_epi32(number, _mm512_set1_epi32(first as i32));
        _mm512_storeu_ps(values, _mm512_maskz_compress_ps(wanted, from));
        _mm512_storeu_si512(numbers.cast(), _mm512_maskz_compress_epi32(wanted, number));
        wanted.count_ones() as usize
    }
}

/// Defines `unsafe fn name(isa, ...)` from a body that is generic over its vectors, `S`, compiled for
/// every instruction set. What the body calls must be `#[inline(always)]`. Further generic types are
/// those of stored values.
macro_rules! vectors {
    ($(
        $(#[$meta:meta])*
        $visibility:vis unsafe fn $name:ident<$s:ident $(, $element:ident)*>(
            $($arg:ident: $type:ty),* $(,)?
        ) $body:block
    )*) => { $(
        $(#[$meta])*
        $visibility unsafe fn $name<$($element: $crate::values::Element),*>(
            isa: $crate::isa::Isa,
            $($arg: $type),*
        ) {
            #[inline(always)]
            unsafe fn body<$s: $crate::simd::Simd, $($element: $crate::values::Element),*>(
                $($arg: $type),*
            ) {
                // SAFETY: the caller's.
                unsafe { $body }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
            unsafe fn avx512<$($element: $crate::values::Element),*>($($arg: $type),*) {
                // SAFETY: the caller's.
                unsafe { body::<$crate::simd::Avx512, $($element),*>($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            unsafe fn avx2<$($element: $crate::values::Element),*>($($arg: $type),*) {
                // SAFETY: the caller's.
                unsafe { body::<$crate::simd::Avx2, $($element),*>($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            use $crate::isa::Level;
            // SAFETY: the caller's; an `Isa` of a level exists only where the machine has it.
            unsafe {
                match isa.level() {
                    #[cfg(target_arch = "x86_64")]
                    Level::Avx512 => avx512::<$($element),*>($($arg),*),
                    #[cfg(target_arch = "x86_64")]
                    Level::Avx2 => avx2::<$($element),*>($($arg),*),
                    _ => body::<$crate::simd::Portable, $($element),*>($($arg),*),
                }
            }
        }
    )* };
}
pub(crate) use vectors;
