//! Intel's AMX: products of bf16, a block of 32 rows by 32 columns at a time in registers of 1 KiB
//! (tiles of 16 rows of 64 bytes).
//!
//! Its intrinsics are not stable, so the instructions are written out. That they compute what is
//! wanted is tested on any x86-64 machine with Linux: where there is no AMX, the tests carry the
//! instructions out in a handler of SIGILL (`emulator`).

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

#[cfg(all(test, target_arch = "x86_64", target_os = "linux"))]
mod emulator;
#[cfg(all(test, target_arch = "x86_64", target_os = "linux"))]
mod tests;
#[cfg(target_arch = "x86_64")]
pub(crate) mod tiles;

/// Rows of a tile, and words of one of its rows.
const SIDE: usize = 16;
/// Rows and columns of a block.
pub(crate) const BLOCK: usize = 2 * SIDE;
/// Words of the depth that are multiplied at a time.
pub(crate) const STEPS: usize = SIDE;

/// Set by [`assume`].
static ASSUMED: AtomicBool = AtomicBool::new(false);

/// Whether this process may multiply tiles of bf16: the processor has AMX, the system saves its
/// registers, and has given the permission that it wants to be asked for. Asked once.
///
/// Linux gives the permission to the process: whichever thread asks, all of its threads have it,
/// those to come as well. It refuses if a thread's alternate signal stack is too small for a signal
/// frame with tiles (8 KiB more), and later refuses such stacks. Those of Rust's threads are large
/// enough.
pub fn available() -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    ASSUMED.load(Ordering::Relaxed) || *FOUND.get_or_init(detect)
}

/// Lets [`available`] say yes from now on: for tests, with something else that carries the
/// instructions out.
///
/// # Safety
/// AMX's instructions for bf16 do in every thread of this process what they do on a machine that
/// has them.
#[doc(hidden)]
pub unsafe fn assume() {
    ASSUMED.store(true, Ordering::Relaxed);
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn detect() -> bool {
    use std::arch::x86_64::_xgetbv;

    use crate::isa::cpuid as leaf;

    const OSXSAVE: u32 = 1 << 27;
    const AMX_BF16: u32 = 1 << 22;
    const AMX_TILE: u32 = 1 << 24;
    /// Configuration and contents of tiles.
    const XCR0_TILES: u64 = 1 << 17 | 1 << 18;
    /// What `arch_prctl` is asked for: the permission for a state, here for the contents of tiles.
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;

    let has = |register: u32, bits: u32| register & bits == bits;
    // Beyond the last leaf, another is given.
    if leaf(0, 0).eax < 0x1e
        || !has(leaf(1, 0).ecx, OSXSAVE)
        || !has(leaf(7, 0).edx, AMX_BF16 | AMX_TILE)
        || !large_enough(leaf(0x1d, 1), leaf(0x1e, 0))
    {
        return false;
    }
    // SAFETY: OSXSAVE says that the instruction may be executed.
    let saved = unsafe { _xgetbv(0) };
    if saved & XCR0_TILES != XCR0_TILES {
        return false;
    }
    // SAFETY: passes two numbers.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
fn detect() -> bool {
    false
}

/// Whether palette 1 (CPUID's leaf 1Dh, part 1) has the tiles that are configured here, and the
/// multiplier (1Eh) takes them whole.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn large_enough(
    palette: std::arch::x86_64::CpuidResult,
    multiplier: std::arch::x86_64::CpuidResult,
) -> bool {
    let (row_bytes, tiles, rows) = (palette.ebx & 0xffff, palette.ebx >> 16, palette.ecx & 0xffff);
    let (depth, columns) = (multiplier.ebx & 0xff, multiplier.ebx >> 8 & 0xffff);
    tiles >= 8 && rows >= 16 && row_bytes >= 64 && depth >= 16 && columns >= 64
}
