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
    /// The values' bits, if they are bf16.
    fn bits(values: &[Self]) -> Option<&[u16]>;
    /// Where sums for these values are made: in their own place if they are f32, else in the buffer.
    fn sums<'a>(values: &'a mut [Self], buffer: &'a mut [f32]) -> &'a mut [f32];
    /// Exactly, from memory in any alignment.
    ///
    /// # Safety
    /// As for [`Simd::load`].
    unsafe fn load<S: Simd>(from: *const Self) -> S::V;
    /// Rounded as by [`Element::from_f32`], to memory in any alignment.
    ///
    /// # Safety
    /// As for [`Simd::store`].
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
