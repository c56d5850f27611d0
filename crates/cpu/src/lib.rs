//! The hot loops of the CPU backend: plain functions over slices, compiled for AVX2 and AVX-512 beside the
//! portable form. A part of `zfnet`: use that crate.
//!
//! They are a crate of their own because only they need to be compiled in one piece (one codegen
//! unit): cut up, vectors are passed through memory between functions that were not inlined. So no
//! function that others call is generic: all of their code is made here.

pub mod amx;
pub mod conv;
mod gemm;
pub mod isa;
pub mod look;
pub mod lrn;
pub mod memory;
pub mod peak;
pub mod pointwise;
pub mod pool;
mod simd;
pub mod softmax;
pub mod values;
pub mod window;

pub use gemm::Products;
