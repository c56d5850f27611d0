//! Which instructions to use: decided once, when the backend is created.
//!
//! The loops of this backend are plain Rust. `vectorized!` compiles each of them three times, for
//! AVX-512, for AVX2 and for whatever the program is compiled for, and calls the right one; so an
//! ordinary build is fast on x86 and works everywhere.

use crate::gemm::Products;

/// An instruction set that this machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(Level);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    Portable,
    Avx2,
    Avx512,
}

impl Isa {
    /// What every machine has that the program was compiled for.
    pub const PORTABLE: Isa = Isa(Level::Portable);

    /// The best that this machine has.
    pub fn detect() -> Isa {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            let avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            if avx2 && avx512 {
                return Isa(Level::Avx512);
            }
            if avx2 {
                return Isa(Level::Avx2);
            }
        }
        Isa::PORTABLE
    }

    /// AVX2 where there is more, else what [`Isa::detect`] finds.
    pub fn at_most_avx2() -> Isa {
        match Isa::detect() {
            Isa(Level::Avx512) => Isa(Level::Avx2),
            lower => lower,
        }
    }

    /// Its name, for logs and checkpoints.
    pub fn name(self) -> &'static str {
        match self.0 {
            Level::Portable => "portable",
            Level::Avx2 => "AVX2",
            Level::Avx512 => "AVX-512",
        }
    }

    /// Whether the machine multiplies pairs of bf16 (AVX512-BF16), and this is AVX-512.
    pub fn has_bf16(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        if self.0 == Level::Avx512 {
            return is_x86_feature_detected!("avx512bf16");
        }
        false
    }

    /// Whether the machine multiplies tiles of bf16 (AMX), this process may, and this is AVX-512.
    pub fn has_amx(self) -> bool {
        self.0 == Level::Avx512 && crate::amx::available()
    }

    /// Whether this machine makes products so.
    pub fn has(self, products: Products) -> bool {
        match products {
            Products::F32 => true,
            Products::Bf16Pairs => self.has_bf16(),
            Products::Bf16Tiles => self.has_amx(),
        }
    }

    /// How products of bf16 are made in the shortest time. Intel's processors add pairs with one of the
    /// two units that multiply f32, so that what is packed in pairs gains nothing there; AMD's (Zen 4
    /// and 5) with both.
    pub fn fastest_bf16(self) -> Products {
        match self {
            _ if self.has_amx() => Products::Bf16Tiles,
            _ if self.has_bf16() && is_amd() => Products::Bf16Pairs,
            _ => Products::F32,
        }
    }

    /// Which of the three versions to call. A level above portable is what [`Isa::detect`] has
    /// found, or below that, so whoever holds one is on a machine that has it.
    pub(crate) fn level(self) -> Level {
        self.0
    }
}

/// Whether AMD made the processor.
#[cfg(target_arch = "x86_64")]
fn is_amd() -> bool {
    let leaf = cpuid(0, 0);
    let name = [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes);
    name.as_flattened() == b"AuthenticAMD"
}

#[cfg(not(target_arch = "x86_64"))]
fn is_amd() -> bool {
    false
}

/// What the processor says of itself.
#[cfg(target_arch = "x86_64")]
pub(crate) fn cpuid(leaf: u32, part: u32) -> std::arch::x86_64::CpuidResult {
    // Newer compilers know that this is safe.
    #[allow(unused_unsafe)]
    // SAFETY: x86-64 processors have the instruction.
    unsafe {
        std::arch::x86_64::__cpuid_count(leaf, part)
    }
}

/// Defines `fn name(isa, ...)`, compiled for every instruction set. What the body calls must be
/// `#[inline(always)]` to be compiled with it. Its generic types are those of stored values.
macro_rules! vectorized {
    ($(
        $(#[$meta:meta])*
        $visibility:vis fn $name:ident$(<$($element:ident),+>)?(
            $($arg:ident: $type:ty),* $(,)?
        ) $body:block
    )*) => { $(
        $(#[$meta])*
        $visibility fn $name$(<$($element: $crate::values::Element),+>)?(
            isa: $crate::isa::Isa,
            $($arg: $type),*
        ) {
            #[inline(always)]
            fn body$(<$($element: $crate::values::Element),+>)?($($arg: $type),*) $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
            fn avx512$(<$($element: $crate::values::Element),+>)?($($arg: $type),*) {
                body($($arg),*);
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2$(<$($element: $crate::values::Element),+>)?($($arg: $type),*) {
                body($($arg),*);
            }
            #[cfg(target_arch = "x86_64")]
            use $crate::isa::Level;
            match isa.level() {
                // SAFETY: an `Isa` of this level exists only where `Isa::detect` has found all of
                // these features on the running machine.
                #[cfg(target_arch = "x86_64")]
                Level::Avx512 => unsafe { avx512($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                Level::Avx2 => unsafe { avx2($($arg),*) },
                _ => body($($arg),*),
            }
        }
    )* };
}
pub(crate) use vectorized;
