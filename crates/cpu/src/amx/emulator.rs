//! AMX's instructions for bf16 on machines that have none, for tests: a handler of SIGILL carries
//! them out as Intel's manual describes them (Software Developer's Manual, volume 2), on tiles of its
//! own for each thread. So the very machine code is tested.
//!
//! LDTILECFG, STTILECFG, TILERELEASE, TILEZERO, TILELOADD, TILESTORED and TDPBF16PS. What a processor
//! would refuse (#UD, #GP) ends in the SIGILL that it is, as does any other instruction.

use std::cell::RefCell;
use std::sync::OnceLock;

/// Rows of a tile, and words of one of its rows.
const SIDE: usize = 16;

#[derive(Clone, Copy)]
struct Tile {
    rows: usize,
    row_bytes: usize,
    words: [[u32; SIDE]; SIDE],
}

struct Tiles {
    /// LDTILECFG's operand; all zeros in the beginning and after TILERELEASE.
    configuration: [u8; 64],
    tiles: [Tile; 8],
}

const NOTHING: Tiles = Tiles {
    configuration: [0; 64],
    tiles: [Tile { rows: 0, row_bytes: 0, words: [[0; SIDE]; SIDE] }; 8],
};

thread_local! {
    // Constant and without a destructor: reading it runs no code, as a signal handler demands.
    static TILES: RefCell<Tiles> = const { RefCell::new(NOTHING) };
}

/// The action for SIGILL that was there before ours.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

/// Installs the handler; again, does nothing. Every thread of the process has AMX from then on.
pub fn install() {
    BEFORE.get_or_init(|| {
        // SAFETY: all zeros is a valid `sigaction`; the handler has the three arguments that
        // SA_SIGINFO announces. It may run before `BEFORE` is set: not in this thread, and another
        // waits for it.
        unsafe {
            let mut before: libc::sigaction = std::mem::zeroed();
            let mut ours: libc::sigaction = std::mem::zeroed();
            let handler: extern "C" fn(_, _, _) = on_sigill;
            ours.sa_sigaction = handler as libc::sighandler_t;
            ours.sa_flags = libc::SA_SIGINFO;
            assert_eq!(libc::sigaction(libc::SIGILL, &raw const ours, &raw mut before), 0);
            before
        }
    });
}

extern "C" fn on_sigill(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    // SAFETY: with SA_SIGINFO, the system passes a valid `siginfo_t` and a `ucontext_t`.
    let (sent, registers) = unsafe {
        let context = &mut *context.cast::<libc::ucontext_t>();
        ((*info).si_code <= 0, &mut context.uc_mcontext.gregs)
    };
    if !sent {
        // SAFETY: the instruction could not be executed, so it was fetched from there, and what it
        // reads and writes is what the code under test promises to be valid.
        match unsafe { execute(registers) } {
            Ok(()) => return,
            Err(reason) => say(reason),
        }
    }
    // The action that was there before is taken when the instruction is executed again, or for what
    // was sent.
    // SAFETY: the action was valid before.
    unsafe {
        libc::sigaction(signal, BEFORE.wait(), std::ptr::null_mut());
        if sent {
            libc::raise(signal);
        }
    }
}

/// Writes a line to stderr, as a handler may.
fn say(reason: &str) {
    for part in ["SIGILL: ", reason, "\n"] {
        // SAFETY: writes readable bytes.
        unsafe { libc::write(2, part.as_ptr().cast(), part.len()) };
    }
}

type Registers = [libc::greg_t; 23];

/// Where the general registers are, by number.
const NUMBERED: [libc::c_int; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

/// Carries out the instruction that RIP points to, and lets RIP point to the next.
///
/// # Safety
/// RIP points to an instruction, and what it reads and writes may be read and written.
unsafe fn execute(registers: &mut Registers) -> Result<(), &'static str> {
    let mut at = registers[libc::REG_RIP as usize] as *const u8;
    let mut byte = || {
        // SAFETY: what is read belongs to the instruction: no byte is read before those in front of
        // it have said that it does.
        let byte = unsafe { at.read() };
        at = at.wrapping_add(1);
        byte
    };
    const OTHER: &str = "no instruction of AMX that is emulated";
    // VEX: C4, then three inverted high bits of registers and the map of opcodes, then W, an inverted
    // register, the length of vectors and the mandatory prefix (none, 66, F3, F2).
    if byte() != 0xc4 {
        return Err(OTHER);
    }
    let (first, second) = (byte(), byte());
    let (high_reg, high_index, high_base) =
        (first & 0x80 == 0, first & 0x40 == 0, first & 0x20 == 0);
    let (map, wide, third) = (first & 0x1f, second & 0x80 != 0, usize::from(!second >> 3 & 15));
    let (long, prefix) = (second & 4 != 0, second & 3);
    if map != 2 || wide || long {
        return Err(OTHER);
    }
    let opcode = byte();
    if !matches!(opcode, 0x49 | 0x4b | 0x5c) {
        return Err(OTHER);
    }
    // ModRM: the kind of operand, a register, and another or how an address is made.
    let modrm = byte();
    let (kind, reg, rm) = (modrm >> 6, usize::from(modrm >> 3 & 7), usize::from(modrm & 7));
    if third != 0 && opcode != 0x5c {
        return Err("#UD: VEX.vvvv is not 1111");
    }
    // The address, and the register beside it that is TILELOADD's stride.
    let (mut address, mut stride) = (0_usize, 0_usize);
    let sib = kind != 3 && rm == 4;
    if kind != 3 {
        let value = |number: usize, high: bool| {
            registers[NUMBERED[number + 8 * usize::from(high)] as usize] as usize
        };
        let mut displaced = kind;
        if sib {
            // Scale, index (4: none), base (5 without a displacement: 32 bits of that alone).
            let sib = byte();
            let (index, base) = (usize::from(sib >> 3 & 7), usize::from(sib & 7));
            if index != 4 || high_index {
                stride = value(index, high_index) << (sib >> 6);
            }
            if base == 5 && kind == 0 {
                displaced = 2;
            } else {
                address = value(base, high_base);
            }
        } else if rm == 5 && kind == 0 {
            return Err("an address relative to RIP, which is not emulated");
        } else {
            address = value(rm, high_base);
        }
        let displacement = match displaced {
            1 => isize::from(byte() as i8),
            2 => i32::from_le_bytes([byte(), byte(), byte(), byte()]) as isize,
            _ => 0,
        };
        address = address.wrapping_add_signed(displacement);
    }
    TILES.with_borrow_mut(|tiles| {
        // SAFETY: the caller's.
        unsafe {
            match (opcode, prefix, kind) {
                (0x49, 0, 3) if modrm == 0xc0 => *tiles = NOTHING,
                (0x49, 3, 3) if rm == 0 && !high_reg => tiles.zero(reg)?,
                (0x49, 0, 0..3) if reg == 0 => {
                    tiles.configure(
                        (address.wrapping_add(stride) as *const [u8; 64]).read_unaligned(),
                    )?;
                }
                (0x49, 1, 0..3) if reg == 0 => {
                    (address.wrapping_add(stride) as *mut [u8; 64])
                        .write_unaligned(tiles.configuration);
                }
                (0x4b, 3, 0..3) if sib && !high_reg => tiles.load(reg, address, stride)?,
                (0x4b, 2, 0..3) if sib && !high_reg => tiles.store(reg, address, stride)?,
                (0x5c, 2, 3) if !high_reg && !high_base => tiles.multiply(reg, rm, third)?,
                _ => return Err(OTHER),
            }
        }
        Ok(())
    })?;
    registers[libc::REG_RIP as usize] = at as libc::greg_t;
    Ok(())
}

impl Tiles {
    fn configure(&mut self, configuration: [u8; 64]) -> Result<(), &'static str> {
        *self = NOTHING;
        let [palette, start_row, ..] = configuration;
        if palette == 0 {
            return Ok(());
        }
        let reserved = [&configuration[2..16], &configuration[32..48], &configuration[56..]];
        if palette != 1
            || start_row != 0
            || reserved.iter().any(|bytes| bytes.iter().any(|&b| b != 0))
        {
            return Err("#GP: a configuration that is not of palette 1");
        }
        for (i, tile) in self.tiles.iter_mut().enumerate() {
            let at = 16 + 2 * i;
            tile.row_bytes = u16::from_le_bytes([configuration[at], configuration[at + 1]]).into();
            tile.rows = configuration[48 + i].into();
            if tile.rows > SIDE
                || tile.row_bytes > 4 * SIDE
                || (tile.rows == 0) != (tile.row_bytes == 0)
            {
                return Err("#GP: a tile that is too large, or of no rows or no columns");
            }
        }
        self.configuration = configuration;
        Ok(())
    }

    fn tile(&mut self, number: usize) -> Result<&mut Tile, &'static str> {
        let tile = self.tiles.get_mut(number).ok_or("#UD: no such tile")?;
        if tile.rows == 0 { Err("#UD: a tile that is not configured") } else { Ok(tile) }
    }

    fn zero(&mut self, number: usize) -> Result<(), &'static str> {
        self.tile(number)?.words = [[0; SIDE]; SIDE];
        Ok(())
    }

    /// # Safety
    /// The rows of the tile may be read there.
    unsafe fn load(
        &mut self,
        number: usize,
        address: usize,
        stride: usize,
    ) -> Result<(), &'static str> {
        let tile = self.tile(number)?;
        tile.words = [[0; SIDE]; SIDE];
        for (i, row) in tile.words.iter_mut().take(tile.rows).enumerate() {
            let from = address.wrapping_add(i.wrapping_mul(stride)) as *const u8;
            // SAFETY: the caller's; a row is at least as long.
            unsafe { from.copy_to_nonoverlapping(row.as_mut_ptr().cast(), tile.row_bytes) };
        }
        Ok(())
    }

    /// # Safety
    /// The rows of the tile may be written there.
    unsafe fn store(
        &mut self,
        number: usize,
        address: usize,
        stride: usize,
    ) -> Result<(), &'static str> {
        let tile = self.tile(number)?;
        for (i, row) in tile.words.iter().take(tile.rows).enumerate() {
            let to = address.wrapping_add(i.wrapping_mul(stride)) as *mut u8;
            // SAFETY: the caller's; a row is at least as long.
            unsafe { to.copy_from_nonoverlapping(row.as_ptr().cast(), tile.row_bytes) };
        }
        Ok(())
    }

    /// TDPBF16PS: `sums += a b`.
    fn multiply(&mut self, sums: usize, a: usize, b: usize) -> Result<(), &'static str> {
        if sums == a || sums == b || a == b {
            return Err("#UD: a tile twice");
        }
        let (a, b, sums) = (*self.tile(a)?, *self.tile(b)?, self.tile(sums)?);
        let whole_words = [a, b, *sums].iter().all(|tile| tile.row_bytes % 4 == 0);
        let shapes = (a.rows, 4 * b.rows, b.row_bytes);
        if !whole_words || shapes != (sums.rows, a.row_bytes, sums.row_bytes) {
            return Err("#UD: tiles whose sizes do not fit");
        }
        let columns = sums.row_bytes / 4;
        for (row, sums) in sums.words.iter_mut().enumerate().take(a.rows) {
            let products = dot(&a.words[row][..b.rows], &b.words);
            for (sum, product) in sums.iter_mut().zip(products).take(columns) {
                *sum = add(f32::from_bits(*sum), product).to_bits();
            }
        }
        Ok(())
    }
}

/// A row of pairs of bf16 by columns of them: the sums of products of first halves and of second
/// halves, made apart and then added.
fn dot(row: &[u32], columns: &[[u32; SIDE]; SIDE]) -> [f32; SIDE] {
    // Compiled for FMA too: a call of a function for each product would take most of the time.
    #[inline(always)]
    fn body(row: &[u32], columns: &[[u32; SIDE]; SIDE]) -> [f32; SIDE] {
        let mut sums = [[0.0; SIDE]; 2];
        for (pair, columns) in row.iter().zip(columns) {
            for (half, sums) in sums.iter_mut().enumerate() {
                for (sum, column) in sums.iter_mut().zip(columns) {
                    *sum = multiply_add(halves(*pair)[half], halves(*column)[half], *sum);
                }
            }
        }
        std::array::from_fn(|n| add(sums[0][n], sums[1][n]))
    }
    #[target_feature(enable = "avx2,fma")]
    fn fma(row: &[u32], columns: &[[u32; SIDE]; SIDE]) -> [f32; SIDE] {
        body(row, columns)
    }
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // SAFETY: the machine has them.
        return unsafe { fma(row, columns) };
    }
    body(row, columns)
}

/// The two bf16 of a word, the lower half first.
#[inline(always)]
pub fn halves(word: u32) -> [f32; 2] {
    [f32::from_bits(word << 16), f32::from_bits(word & 0xffff_0000)]
}

/// 2^-126 - 2^-151: from here on, 24 bits are rounded up to 2^-126.
const BELOW: f64 = f32::MIN_POSITIVE as f64 * (1.0 - 1.0 / (1 << 25) as f64);

/// `a * b + c`, rounded once, to the nearest and to even; subnormal numbers are zero before and after.
#[inline(always)]
pub fn multiply_add(a: f32, b: f32, c: f32) -> f32 {
    let (a, b, c) = (flush(a), flush(b), flush(c));
    let sum = a.mul_add(b, c);
    // What flushes is what would be below 2^-126 if rounded to 24 bits, as if there were smaller
    // exponents. The f32 above has one bit less there, and may have been rounded up to 2^-126.
    let exact = f64::from(a) * f64::from(b) + f64::from(c);
    // Without a branch, which would keep the compiler from vectors.
    let subnormal = (sum.abs() == f32::MIN_POSITIVE) & (exact.abs() < BELOW);
    flush(if subnormal { 0.0_f32.copysign(sum) } else { sum })
}

/// `a + b`, as above. A sum of two f32 that is close to zero needs no rounding.
#[inline(always)]
pub fn add(a: f32, b: f32) -> f32 {
    flush(flush(a) + flush(b))
}

#[inline(always)]
fn flush(value: f32) -> f32 {
    if value.abs() < f32::MIN_POSITIVE { 0.0_f32.copysign(value) } else { value }
}
