//! What tensors hold: f32, or bf16 in two bytes. Sums are always made in f32.

use bytemuck::Pod;
use half::bf16;

use crate::simd::Simd;

/// Values of a tensor, of whichever type it stores.
#[derive(Clone, Copy, Debug)]
pub enum Values<'a> {
    /// Single precision.
    F32(&'a [f32]),
    /// Half of the memory.
    Bf16(&'a [bf16]),
}

/// As [`Values`], to be written.
#[derive(Debug)]
pub enum ValuesMut<'a> {
    /// Single precision.
    F32(&'a mut [f32]),
    /// Half of the memory.
    Bf16(&'a mut [bf16]),
}

/// Evaluates an expression with each of some [`Values`] and [`ValuesMut`] as the slice that it is; all
/// of them hold the same type. (The code is made for either type.)
macro_rules! by_element {
    ($($mut:ident),*; $($shared:ident),* => $body:expr) => {
        match ($($mut,)* $($shared,)*) {
            ($($crate::values::ValuesMut::F32($mut),)* $($crate::values::Values::F32($shared),)*) => $body,
            ($($crate::values::ValuesMut::Bf16($mut),)* $($crate::values::Values::Bf16($shared),)*) => $body,
            #[allow(unreachable_patterns)] // of a single operand
            _ => panic!("operands are stored in different precisions"),
        }
    };
}
pub(crate) use by_element;

mod sealed {
    /// Keeps [`Element`](super::Element) to this crate.
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::bf16 {}
}

/// A type of stored values.
pub trait Element: sealed::Sealed + Pod + Send + Sync {
    /// Exactly.
    fn to_f32(self) -> f32;
    /// Rounded to nearest, ties to even; NaN stays one.
    fn from_f32(value: f32) -> Self;
    /// Each exactly. (Of f32 nothing is done: a loop that copies them has cost LRN half of its speed.)
    fn to_f32s<const N: usize>(values: [Self; N]) -> [f32; N];
    /// Each rounded as by [`Element::from_f32`].
    fn from_f32s<const N: usize>(values: [f32; N]) -> [Self; N];
    /// The values' bits, if they are bf16.
    fn bits(values: &[Self]) -> Option<&[u16]>;
    /// Where sums for these values are made: in their own place if they are f32, else in the buffer.
    fn sums<'a>(values: &'a mut [Self], buffer: &'a mut [f32]) -> &'a mut [f32];
    /// Exactly, from memory in any alignment.
    ///
    /// # Safety
    /// As for `Simd::load`.
    unsafe fn load<S: Simd>(from: *const Self) -> S::V;
    /// Rounded as by [`Element::from_f32`], to memory in any alignment.
    ///
    /// # Safety
    /// As for `Simd::store`.
    unsafe fn store<S: Simd>(to: *mut Self, value: S::V);
}

impl Element for f32 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }

    #[inline(always)]
    fn from_f32(value: f32) -> f32 {
        value
    }

    #[inline(always)]
    fn to_f32s<const N: usize>(values: [f32; N]) -> [f32; N] {
        values
    }

    #[inline(always)]
    fn from_f32s<const N: usize>(values: [f32; N]) -> [f32; N] {
        values
    }

    #[inline(always)]
    fn bits(_values: &[f32]) -> Option<&[u16]> {
        None
    }

    #[inline(always)]
    fn sums<'a>(values: &'a mut [f32], _buffer: &'a mut [f32]) -> &'a mut [f32] {
        values
    }

    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const f32) -> S::V {
        // SAFETY: the caller's.
        unsafe { S::load(from) }
    }

    #[inline(always)]
    unsafe fn store<S: Simd>(to: *mut f32, value: S::V) {
        // SAFETY: the caller's.
        unsafe { S::store(to, value) }
    }
}

// The conversions of `half` have branches, which keep loops from being made of vectors.
impl Element for bf16 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[inline(always)]
    fn from_f32(value: f32) -> bf16 {
        let bits = value.to_bits();
        let rounded = bits.wrapping_add(0x7FFF + (bits >> 16 & 1)) >> 16;
        let quiet = bits >> 16 | 0x40;
        bf16::from_bits((if value.is_nan() { quiet } else { rounded }) as u16)
    }

    #[inline(always)]
    fn to_f32s<const N: usize>(values: [bf16; N]) -> [f32; N] {
        values.map(Element::to_f32)
    }

    #[inline(always)]
    fn from_f32s<const N: usize>(values: [f32; N]) -> [bf16; N] {
        values.map(Element::from_f32)
    }

    #[inline(always)]
    fn bits(values: &[bf16]) -> Option<&[u16]> {
        Some(bytemuck::cast_slice(values))
    }

    #[inline(always)]
    fn sums<'a>(values: &'a mut [bf16], buffer: &'a mut [f32]) -> &'a mut [f32] {
        &mut buffer[..values.len()]
    }

    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const bf16) -> S::V {
        // SAFETY: the caller's.
        unsafe { S::load_bf16(from.cast()) }
    }

    #[inline(always)]
    unsafe fn store<S: Simd>(to: *mut bf16, value: S::V) {
        // SAFETY: the caller's.
        unsafe { S::store_bf16(to.cast(), value) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::Isa;
    use crate::simd::vectors;

    vectors! {
        /// Whole vectors, whichever they are.
        unsafe fn load_all<S, T>(to: &mut [f32], from: &[T]) {
            for (to, from) in to.chunks_exact_mut(S::LANES).zip(from.chunks_exact(S::LANES)) {
                S::store(to.as_mut_ptr(), T::load::<S>(from.as_ptr()));
            }
        }

        /// The same back.
        unsafe fn store_all<S, T>(to: &mut [T], from: &[f32]) {
            for (to, from) in to.chunks_exact_mut(S::LANES).zip(from.chunks_exact(S::LANES)) {
                T::store::<S>(to.as_mut_ptr(), S::load(from.as_ptr()));
            }
        }
    }

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|value| value.to_bits()).collect()
    }

    #[test]
    fn every_bf16_is_read_as_it_is() {
        let stored: Vec<bf16> = (0..=u16::MAX).map(bf16::from_bits).collect();
        let expected: Vec<u32> = (0..=u16::MAX).map(|bits| u32::from(bits) << 16).collect();
        for (stored, expected) in stored.iter().zip(&expected) {
            let (here, half) = (Element::to_f32(*stored), stored.to_f32());
            assert_eq!(here.to_bits(), *expected, "{stored:?}");
            assert!(here == half || here.is_nan() && half.is_nan(), "{stored:?}");
        }
        for isa in [Isa::detect(), Isa::at_most_avx2(), Isa::PORTABLE] {
            let mut values = vec![0.0; stored.len()];
            // SAFETY: both are whole vectors long, and the machine has the instructions.
            unsafe { load_all::<bf16>(isa, &mut values, &stored) };
            assert_eq!(bits(&values), expected, "{isa:?}");
        }
    }

    /// Every upper half of an f32, so subnormals, infinities and NaN too, with the lower halves beside a
    /// tie, and beside the values that are stored.
    #[test]
    fn rounding_agrees_with_half() {
        let lower = [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF];
        let value = |upper: u16, lower| f32::from_bits(u32::from(upper) << 16 | lower);
        let values: Vec<f32> =
            (0..=u16::MAX).flat_map(|upper| lower.map(|lower| value(upper, lower))).collect();
        let expected: Vec<u16> = values.iter().map(|v| bf16::from_f32(*v).to_bits()).collect();
        for (value, expected) in values.iter().zip(&expected) {
            let rounded = <bf16 as Element>::from_f32(*value);
            assert_eq!(rounded.to_bits(), *expected, "{value:e}");
            assert_eq!(rounded.is_nan(), value.is_nan(), "{value:e}");
        }
        for isa in [Isa::detect(), Isa::at_most_avx2(), Isa::PORTABLE] {
            let mut stored = vec![bf16::ZERO; values.len()];
            let mut copied = vec![0.0; values.len()];
            // SAFETY: all are whole vectors long, and the machine has the instructions.
            unsafe {
                store_all::<bf16>(isa, &mut stored, &values);
                store_all::<f32>(isa, &mut copied, &values);
            }
            assert_eq!(bf16::bits(&stored), Some(expected.as_slice()), "{isa:?}");
            assert_eq!(bits(&copied), bits(&values), "{isa:?}");
        }
    }
}
