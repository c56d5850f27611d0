//! Vectors of f32 under one name for each instruction set, for the loops that need registers
//! counted: the tiles of a product ([`super::gemm`]) and Winograd's transforms.
//!
//! Everything here is inlined into functions that [`vectors!`] compiles for an instruction set.

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

    /// Lists which of a vector's values are not zero, the first of which is number `first`, and says how
    /// many they are. There is room for a whole vector, any of which may be overwritten.
    unsafe fn compress(numbers: *mut u32, values: *mut f32, from: *const f32, first: u32) -> usize {
        let mut found = 0;
        for (i, number) in (0..Self::LANES).zip(first..) {
            // SAFETY: the caller's.
            unsafe {
                let value = *from.add(i);
                *numbers.add(found) = number;
                *values.add(found) = value;
                found += usize::from(value != 0.0);
            }
        }
        found
    }
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
}

/// Implements [`Simd`] by intrinsics.
#[cfg(target_arch = "x86_64")]
macro_rules! simd {
    ($name:ident, $doc:literal, $v:ident, $lanes:literal, $zero:ident, $splat:ident, $load:ident,
     $store:ident, $add:ident, $sub:ident, $multiply:ident, $multiply_add:ident, $max:ident $(, $more:item)*) => {
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

            $($more)*
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
    #[inline(always)]
    unsafe fn compress(numbers: *mut u32, values: *mut f32, from: *const f32, first: u32) -> usize {
        use std::arch::x86_64::*;
        unsafe {
            let value = _mm512_loadu_ps(from);
            let wanted = _mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(value, _mm512_setzero_ps());
            let number = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
            let number = _mm512_add_epi32(number, _mm512_set1_epi32(first as i32));
            let number = _mm512_maskz_compress_epi32(wanted, number);
            _mm512_storeu_ps(values, _mm512_maskz_compress_ps(wanted, value));
            _mm512_storeu_si512(numbers.cast(), number);
            wanted.count_ones() as usize
        }
    }
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
    _mm256_max_ps
);

/// Defines `unsafe fn name(isa, ...)` from a body that is generic over its vectors, `S`, compiled for
/// every instruction set. What the body calls must be `#[inline(always)]`.
macro_rules! vectors {
    ($(
        $(#[$meta:meta])*
        $visibility:vis unsafe fn $name:ident<$s:ident>($($arg:ident: $type:ty),* $(,)?) $body:block
    )*) => { $(
        $(#[$meta])*
        $visibility unsafe fn $name(isa: $crate::isa::Isa, $($arg: $type),*) {
            #[inline(always)]
            unsafe fn body<$s: $crate::simd::Simd>($($arg: $type),*) {
                // SAFETY: the caller's.
                unsafe { $body }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
            unsafe fn avx512($($arg: $type),*) {
                // SAFETY: the caller's.
                unsafe { body::<$crate::simd::Avx512>($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            unsafe fn avx2($($arg: $type),*) {
                // SAFETY: the caller's.
                unsafe { body::<$crate::simd::Avx2>($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            use $crate::isa::Level;
            // SAFETY: the caller's; an `Isa` of a level exists only where the machine has it.
            unsafe {
                match isa.level() {
                    #[cfg(target_arch = "x86_64")]
                    Level::Avx512 => avx512($($arg),*),
                    #[cfg(target_arch = "x86_64")]
                    Level::Avx2 => avx2($($arg),*),
                    _ => body::<$crate::simd::Portable>($($arg),*),
                }
            }
        }
    )* };
}
pub(crate) use vectors;
