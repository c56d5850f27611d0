//! The instructions: configuration, the product of a block, products in registers alone.

use std::cell::Cell;
use std::marker::PhantomData;

use super::{SIDE, available};

thread_local! {
    /// Whether a [`Tiles`] of this thread lives.
    static CONFIGURED: Cell<bool> = const { Cell::new(false) };
}

/// This thread's tiles, configured: eight of 16 rows of 64 bytes.
///
/// Configuring takes as long as a few products of tiles. Whoever calls [`tile`]
/// many times holds one of these meanwhile; those that are made within it, as by [`tile`] itself,
/// do nothing. When the outermost is dropped the tiles are released: the system then has nothing of
/// them to save when it switches threads or delivers a signal, and the core can sleep deeply.
///
/// While it lives, this thread must not run code that uses tiles in its own way.
pub(crate) struct Tiles {
    outermost: bool,
    /// It stays on its thread.
    thread: PhantomData<*const ()>,
}

impl Tiles {
    /// Configures the tiles unless they are.
    pub(crate) fn configure() -> Tiles {
        let outermost = !CONFIGURED.get();
        if outermost {
            assert!(available(), "tiles are refused where there is no AMX");
            configure();
            CONFIGURED.set(true);
        }
        Tiles { outermost, thread: PhantomData }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        if self.outermost {
            CONFIGURED.set(false);
            release();
        }
    }
}

/// LDTILECFG's operand.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

fn configure() {
    static CONFIGURATION: Configuration = Configuration {
        palette: 1,
        start_row: 0,
        reserved: [0; 14],
        row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
        rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
    };
    // SAFETY: the caller has seen that there is AMX; reads 64 bytes, a valid configuration. The
    // compiler uses no tiles.
    unsafe {
        std::arch::asm!("ldtilecfg [{}]", in(reg) &raw const CONFIGURATION,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack, readonly, preserves_flags));
    }
}

fn release() {
    // SAFETY: only a `Tiles` calls it, so there is AMX; the compiler uses no tiles.
    unsafe {
        std::arch::asm!("tilerelease",
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack, nomem, preserves_flags));
    }
}

/// `out = a b`, or `out += a b`, for a block of at most 32 rows and columns; `rows` and `columns` are
/// rounded up to 16 and so many computed.
///
/// Words of `a` and `b` are pairs of bf16 that follow each other along the depth, the first in the
/// lower half. Row `i` of `a` begins at `i * a_stride`, its depth is contiguous; step `k` of `b`
/// begins at `k * b_stride`, its columns are contiguous; row `i` of `out` begins at
/// `i * out_stride`. `depth` counts words, 16 of them an instruction.
///
/// Of 16 words of the depth, the products of first halves and those of second halves are summed
/// apart in order, in f32; then the two sums are added, and that to what the words before gave.
/// Subnormal numbers count as zero everywhere.
///
/// It is at its fastest where a row of a tile is a line of a cache: with `a` and `b` at multiples of
/// 64 bytes, and strides of an odd number of lines (or one line), so that the 16 rows of a tile do
/// not fall into the same sets. Four tiles are loaded for four products, which by Intel's manual take twice
/// as long as loads from the first cache do.
///
/// # Safety
/// The machine has AMX ([`available`]). `a` and `b` may be read, `out` read and written, for
/// `rows` and `columns` rounded up to 16.
pub(crate) unsafe fn tile(
    out: *mut f32,
    out_stride: usize,
    accumulate: bool,
    rows: usize,
    columns: usize,
    depth: usize,
    a: *const u32,
    a_stride: usize,
    b: *const u32,
    b_stride: usize,
) {
    assert!(depth > 0 && depth.is_multiple_of(SIDE));
    assert!((1..=2 * SIDE).contains(&rows) && (1..=2 * SIDE).contains(&columns));
    let _tiles = Tiles::configure();
    let run = match (rows > SIDE, columns > SIDE) {
        (true, true) => block::<2, 2>,
        (true, false) => block::<2, 1>,
        (false, true) => block::<1, 2>,
        (false, false) => block::<1, 1>,
    };
    // SAFETY: the caller's; the tiles are configured.
    unsafe {
        run(out, 4 * out_stride, accumulate, depth / SIDE, a, 4 * a_stride, b, 4 * b_stride);
    }
}

/// [`tile`] for `ROWS` by `COLUMNS` tiles, `steps` of 16 words, strides in bytes.
///
/// # Safety
/// See there; the tiles are configured.
unsafe fn block<const ROWS: usize, const COLUMNS: usize>(
    out: *mut f32,
    out_stride: usize,
    accumulate: bool,
    steps: usize,
    a: *const u32,
    a_stride: usize,
    b: *const u32,
    b_stride: usize,
) {
    // The second rows of tiles, if there are any; else these point nowhere, and nothing is read.
    let below = |stride: usize| SIDE * stride;
    // In tmm0 to tmm3 are the sums, in tmm4 and tmm5 rows of `a`, in tmm6 and tmm7 columns of `b`.
    // SAFETY: the caller's. Tiles do not outlive the block, and are said to be overwritten.
    unsafe {
        std::arch::asm!(
            "test {accumulate:e}, {accumulate:e}",
            "jnz 2f",
            "tilezero tmm0",
            ".if {columns} > 1",
            "tilezero tmm1",
            ".endif",
            ".if {rows} > 1",
            "tilezero tmm2",
            ".if {columns} > 1",
            "tilezero tmm3",
            ".endif",
            ".endif",
            "jmp 3f",
            "2:",
            "tileloadd tmm0, [{out} + {out_stride}]",
            ".if {columns} > 1",
            "tileloadd tmm1, [{out} + {out_stride} + 64]",
            ".endif",
            ".if {rows} > 1",
            "tileloadd tmm2, [{out_below} + {out_stride}]",
            ".if {columns} > 1",
            "tileloadd tmm3, [{out_below} + {out_stride} + 64]",
            ".endif",
            ".endif",
            // 16 words of the depth.
            "3:",
            "tileloadd tmm6, [{b} + {b_stride}]",
            "tileloadd tmm4, [{a} + {a_stride}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            ".if {columns} > 1",
            "tileloadd tmm7, [{b} + {b_stride} + 64]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            ".endif",
            ".if {rows} > 1",
            "tileloadd tmm5, [{a_below} + {a_stride}]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            ".if {columns} > 1",
            "tdpbf16ps tmm3, tmm5, tmm7",
            ".endif",
            ".endif",
            "add {a}, 64",
            "add {a_below}, 64",
            "add {b}, {b_step}",
            "dec {steps}",
            "jnz 3b",
            "tilestored [{out} + {out_stride}], tmm0",
            ".if {columns} > 1",
            "tilestored [{out} + {out_stride} + 64], tmm1",
            ".endif",
            ".if {rows} > 1",
            "tilestored [{out_below} + {out_stride}], tmm2",
            ".if {columns} > 1",
            "tilestored [{out_below} + {out_stride} + 64], tmm3",
            ".endif",
            ".endif",
            rows = const ROWS,
            columns = const COLUMNS,
            accumulate = in(reg) u32::from(accumulate),
            out = in(reg) out,
            out_below = in(reg) out.wrapping_byte_add(below(out_stride)),
            out_stride = in(reg) out_stride,
            a = inout(reg) a => _,
            a_below = inout(reg) a.wrapping_byte_add(below(a_stride)) => _,
            a_stride = in(reg) a_stride,
            b = inout(reg) b => _,
            b_stride = in(reg) b_stride,
            b_step = in(reg) below(b_stride),
            steps = inout(reg) steps => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// `rounds` of products of tiles in registers, each onto sums of its own; how many operations on
/// floating-point numbers they were.
pub(crate) fn products(rounds: usize) -> f64 {
    /// As many as there is room for: by Intel's manual sums are there after 52 cycles, and there can be an
    /// instruction every 16.
    const SUMS: usize = 6;
    // Pairs of 0.5 and 2^-20: sums stay small, and no bits are all zero, which would save power.
    let factors = [0x3580_3f00_u32; SIDE * SIDE];
    let _tiles = Tiles::configure();
    if rounds > 0 {
        // SAFETY: there is AMX, and the tiles are configured; reads `factors`, writes no memory.
        unsafe {
            std::arch::asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "tilezero tmm4",
                "tilezero tmm5",
                "tileloadd tmm6, [{factors} + {stride}]",
                "tileloadd tmm7, [{factors} + {stride}]",
                "2:",
                "tdpbf16ps tmm0, tmm6, tmm7",
                "tdpbf16ps tmm1, tmm6, tmm7",
                "tdpbf16ps tmm2, tmm6, tmm7",
                "tdpbf16ps tmm3, tmm6, tmm7",
                "tdpbf16ps tmm4, tmm6, tmm7",
                "tdpbf16ps tmm5, tmm6, tmm7",
                "dec {rounds}",
                "jnz 2b",
                factors = in(reg) &raw const factors,
                stride = in(reg) 4 * SIDE,
                rounds = inout(reg) rounds => _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, readonly),
            );
        }
    }
    (2 * SIDE * SIDE * (2 * SIDE) * SUMS * rounds) as f64
}
