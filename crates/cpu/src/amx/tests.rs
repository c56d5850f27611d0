//! The instructions of `tiles` on this machine's AMX, or on the emulator where there is none, beside a
//! model in plain Rust.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};

use super::emulator::{self, add, halves, multiply_add};
use super::tiles::{Tiles, products, tile};
use super::*;

/// Lets the instructions be executed. Whether by hardware.
fn prepare() -> bool {
    static HARDWARE: OnceLock<bool> = OnceLock::new();
    *HARDWARE.get_or_init(|| {
        let hardware = available();
        if !hardware {
            emulator::install();
            // SAFETY: the emulator is there, for all threads.
            unsafe { assume() };
        }
        hardware
    })
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u32 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) as u32
    }
}

fn bf16(value: f32) -> u32 {
    assert_eq!(value.to_bits() & 0xffff, 0, "{value} is no bf16");
    value.to_bits() >> 16
}

/// Operands and result of one product, with room between rows and around them.
struct Product {
    size: (usize, usize, usize),
    a: Vec<u32>,
    a_stride: usize,
    b: Vec<u32>,
    b_stride: usize,
    out: Vec<f32>,
    out_stride: usize,
    accumulate: bool,
}

impl Product {
    /// Of pairs that `word` gives, onto what `before` gives; `gap` words between rows.
    fn new(
        size: (usize, usize, usize),
        gap: usize,
        accumulate: bool,
        mut word: impl FnMut() -> u32,
        mut before: impl FnMut() -> f32,
    ) -> Self {
        let (rows, columns, depth) = size;
        let (a_stride, b_stride, out_stride) = (depth + gap, columns + gap, columns + gap);
        Product {
            size,
            a: (0..rows * a_stride).map(|_| word()).collect(),
            a_stride,
            b: (0..depth * b_stride).map(|_| word()).collect(),
            b_stride,
            out: (0..rows * out_stride).map(|_| before()).collect(),
            out_stride,
            accumulate,
        }
    }

    /// What the instructions write.
    fn run(&self) -> Vec<f32> {
        let mut out = self.out.clone();
        let (rows, columns, depth) = self.size;
        // SAFETY: `prepare` was called; the vectors hold whole blocks.
        unsafe {
            tile(
                out.as_mut_ptr(),
                self.out_stride,
                self.accumulate,
                rows,
                columns,
                depth,
                self.a.as_ptr(),
                self.a_stride,
                self.b.as_ptr(),
                self.b_stride,
            );
        }
        out
    }

    /// What they should write.
    fn expected(&self) -> Vec<f32> {
        let mut out = self.out.clone();
        let (rows, columns, depth) = self.size;
        for i in 0..rows {
            for j in 0..columns {
                let out = &mut out[i * self.out_stride + j];
                let mut sum = if self.accumulate { *out } else { 0.0 };
                for from in (0..depth).step_by(16) {
                    let (mut first, mut second) = (0.0, 0.0);
                    for k in from..from + 16 {
                        let a = halves(self.a[i * self.a_stride + k]);
                        let b = halves(self.b[k * self.b_stride + j]);
                        first = multiply_add(a[0], b[0], first);
                        second = multiply_add(a[1], b[1], second);
                    }
                    sum = add(sum, add(first, second));
                }
                *out = sum;
            }
        }
        out
    }

    /// Runs it, and compares every bit, but those of what is not a number.
    fn check(&self) {
        let same = |a: f32, b: f32| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
        for (at, (value, wanted)) in self.run().into_iter().zip(self.expected()).enumerate() {
            let (i, j) = (at / self.out_stride, at % self.out_stride);
            assert!(same(value, wanted), "{:?}, {i}, {j}: {value:e}, not {wanted:e}", self.size);
        }
    }
}

const SIZES: [(usize, usize); 4] = [(16, 16), (16, 32), (32, 16), (32, 32)];

#[test]
fn small_integers_are_exact() {
    prepare();
    for (rows, columns) in SIZES {
        for depth in [16, 32, 48, 160] {
            for (gap, accumulate) in [(0, false), (0, true), (16, true), (7, false)] {
                let mut random = Random(depth as u64 + gap as u64);
                let mut integer = || (random.bits() % 17) as f32 - 8.0;
                let word = || bf16(integer()) | bf16(integer()) << 16;
                let mut next = 0.0;
                let before = || {
                    next += 1.0;
                    next
                };
                let product = Product::new((rows, columns, depth), gap, accumulate, word, before);
                for (at, value) in product.run().into_iter().enumerate() {
                    let (i, j) = (at / product.out_stride, at % product.out_stride);
                    let mut wanted = product.out[at];
                    if j < columns {
                        let sums = (0..depth).map(|k| {
                            let a = halves(product.a[i * product.a_stride + k]);
                            let b = halves(product.b[k * product.b_stride + j]);
                            a[0] * b[0] + a[1] * b[1]
                        });
                        wanted = sums.sum::<f32>() + if accumulate { wanted } else { 0.0 };
                    }
                    assert_eq!(value, wanted, "{rows} by {columns} by {depth}: {i}, {j}");
                }
            }
        }
    }
}

/// What is not wanted of a block is computed: `rows` and `columns` are rounded up.
#[test]
fn parts_are_rounded_up() {
    prepare();
    for (rows, columns, whole) in [(1, 1, (16, 16)), (17, 3, (32, 16)), (16, 31, (16, 32))] {
        let mut random = Random(5);
        let mut product =
            Product::new((whole.0, whole.1, 32), 4, false, || random.bits() & 0x3fff_3fff, || 9.0);
        let wanted = product.expected();
        product.size = (rows, columns, 32);
        assert_eq!(product.run(), wanted);
    }
}

/// Ordinary values, and any bits at all: huge, tiny, infinite, no numbers.
#[test]
fn results_are_those_of_the_model() {
    prepare();
    for (seed, (rows, columns)) in SIZES.into_iter().cycle().take(12).enumerate() {
        for accumulate in [false, true] {
            let mut random = Random(seed as u64);
            let mut other = Random(seed as u64 + 100);
            // Exponents of 2^-8 to 2^7.
            let near_one = |bits: u32| bits & 0x83ff_83ff | 0x3c00_3c00;
            Product::new(
                (rows, columns, 16 * (1 + seed)),
                16,
                accumulate,
                || near_one(random.bits()),
                || f32::from_bits(near_one(other.bits())),
            )
            .check();
            // Products of about 2^-126, of which many are subnormal.
            let small = |bits: u32| bits & 0x81ff_81ff | 0x1f00_1f00;
            Product::new(
                (rows, columns, 32),
                5,
                accumulate,
                || small(random.bits()),
                || f32::from_bits(other.bits() & 0x81ff_ffff),
            )
            .check();
            Product::new(
                (rows, columns, 16),
                0,
                accumulate,
                || random.bits(),
                || f32::from_bits(other.bits()),
            )
            .check();
        }
    }
}

/// One product by one, all else zero: NaN, infinities, what overflows, subnormal numbers.
#[test]
fn special_values() {
    prepare();
    let tiny = f32::from_bits(1 << 16); // a subnormal bf16
    let least = f32::MIN_POSITIVE;
    let most = f32::from_bits(0x7f7f_0000); // the largest bf16
    let [nan, inf] = [f32::NAN, f32::INFINITY];
    for (a, b, before, wanted) in [
        (nan, 1.0, 1.0, nan),
        (1.0, 1.0, nan, nan),
        (inf, 0.0, 1.0, nan),
        (inf, -1.0, 1.0, -inf),
        (inf, 1.0, -inf, nan),
        (most, 2.0, 0.0, inf),
        (most, most, -1.0, inf),
        (tiny, 1.0, 1.0, 1.0),
        // What is small becomes zero before it is multiplied by what is large,
        (tiny, most, 0.0, 0.0),
        (0.0, 0.0, 1e-40, 0.0),
        // and a small result becomes zero before it is added,
        (least, 0.5, 0.0, 0.0),
        (least, 0.5, 0.5 * least, 0.0),
        // as does a small sum.
        (least, 1.0, -1.5 * least, -0.0),
        (least, 1.0, 0.0, least),
    ] {
        for (i, j, k, half) in [(0, 0, 0, 0), (31, 17, 19, 16)] {
            let mut product = Product::new((32, 32, 32), 0, true, || 0, || before);
            product.a[i * 32 + k] = bf16(a) << half;
            product.b[k * 32 + j] = bf16(b) << half;
            let sum = product.run()[i * 32 + j];
            assert!(sum == wanted || sum.is_nan() && wanted.is_nan(), "{a} {b} {before}: {sum}");
        }
    }
}

/// The model's arithmetic is that of this machine's FMA when told to flush.
#[test]
fn the_model_is_fma_without_subnormal_numbers() {
    if !is_x86_feature_detected!("fma") {
        return;
    }
    let machine = |a: f32, b: f32, mut c: f32| {
        // Flush results, treat subnormal operands as zero, no traps, round to nearest.
        let (flushing, mut before) = (0x9fc0_u32, 0_u32);
        // SAFETY: the machine has FMA; MXCSR is put back.
        unsafe {
            std::arch::asm!(
                "stmxcsr [{before}]",
                "ldmxcsr [{flushing}]",
                "vfmadd231ss {c}, {a}, {b}",
                "ldmxcsr [{before}]",
                before = in(reg) &raw mut before,
                flushing = in(reg) &raw const flushing,
                a = in(xmm_reg) a,
                b = in(xmm_reg) b,
                c = inout(xmm_reg) c,
                options(nostack),
            );
        }
        c
    };
    let check = |a: f32, b: f32, c: f32| {
        for (b, model) in [(b, multiply_add(a, b, c)), (1.0, add(a, c))] {
            let machine = machine(a, b, c);
            let same = model.to_bits() == machine.to_bits() || model.is_nan() && machine.is_nan();
            assert!(same, "{a:e} * {b:e} + {c:e} = {machine:e}, not {model:e}");
        }
    };
    let mut random = Random(1);
    for _ in 0..200_000 {
        let [a, b] = halves(random.bits());
        let c = f32::from_bits(random.bits());
        check(a, b, c);
        // Of products about the size of the sum, and about that of the smallest number.
        check(a, 1.0 / a, c);
        let [a, b] = halves(random.bits() & 0x81ff_81ff | 0x1f00_1f00);
        check(a, b, f32::from_bits(random.bits() & 0x81ff_ffff));
        // Just below the smallest number, where rounding decides whether a result is subnormal.
        let part = f32::from_bits(0x3f00_0000 | random.bits() & 0x00ff_0000); // 0.5 to 2
        let least = f32::MIN_POSITIVE;
        for exponent in [-22, -23, -24, -25, -26] {
            let (a, b) = (part * 2_f32.powi(-64), 2_f32.powi(exponent - 62));
            check(a, b, least);
            check(-a, b, least);
            check(a, b, -least);
        }
    }
}

/// LDTILECFG's operand: rows and bytes of a row of the first tiles.
fn configuration(tiles: &[(u8, u16)]) -> [u8; 64] {
    let mut bytes = [0; 64];
    bytes[0] = 1;
    for (i, &(rows, row_bytes)) in tiles.iter().enumerate() {
        bytes[16 + 2 * i..][..2].copy_from_slice(&row_bytes.to_le_bytes());
        bytes[48 + i] = rows;
    }
    bytes
}

/// The configuration of this thread's tiles.
fn configured() -> [u8; 64] {
    let mut bytes = [0; 64];
    // SAFETY: there is AMX, or the emulator; writes 64 bytes.
    unsafe { std::arch::asm!("sttilecfg [{}]", in(reg) &raw mut bytes, options(nostack)) };
    bytes
}

/// Tiles that are not whole, and every kind of address: 5 rows of 3 words by 3 rows of 7.
#[test]
fn parts_of_tiles() {
    prepare();
    let mut random = Random(3);
    let words: Vec<u32> = (0..400).map(|_| random.bits() & 0xbfff_bfff).collect();
    let shapes = configuration(&[(5, 28), (5, 12), (3, 28), (16, 64)]);
    let (mut out, mut whole) = ([7_u32; 400], [7_u32; 256]);
    // SAFETY: there is AMX, or the emulator; all that is read and written lies in the arrays: with
    // strides of 80 and 64 bytes, 5 rows end before byte 400.
    unsafe {
        std::arch::asm!(
            "ldtilecfg [{shapes}]",
            "tileloadd tmm0, [{words} + 4 * {twenty}]",
            "tileloadd tmm1, [{words} + 2 * {forty} + 4]",
            "tileloadd tmm2, [{words} + {eighty} + 800]",
            "tdpbf16ps tmm0, tmm1, tmm2",
            "tilestored [{out} + {eighty}], tmm0",
            "tilezero tmm3",
            "tilestored [{whole} + 8 * {eight}], tmm3",
            "tileloadd tmm3, [{whole}]",
            "tilerelease",
            shapes = in(reg) &raw const shapes,
            words = in(reg) words.as_ptr(),
            out = in(reg) &raw mut out,
            whole = in(reg) &raw mut whole,
            eight = in(reg) 8_usize,
            twenty = in(reg) 20_usize,
            forty = in(reg) 40_usize,
            eighty = in(reg) 80_usize,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            options(nostack),
        );
    }
    assert_eq!(whole, [0; 256]);
    for (at, &value) in out.iter().enumerate() {
        let (i, j) = (at / 20, at % 20);
        let mut wanted = 7;
        if i < 5 && j < 7 {
            let (mut first, mut second) = (0.0, 0.0);
            for k in 0..3 {
                let (a, b) = (halves(words[i * 20 + k + 1]), halves(words[k * 20 + j + 200]));
                first = multiply_add(a[0], b[0], first);
                second = multiply_add(a[1], b[1], second);
            }
            wanted = add(f32::from_bits(words[at]), add(first, second)).to_bits();
        }
        assert_eq!(value, wanted, "{i}, {j}");
    }
}

/// They are configured while the outermost lives, for its thread alone.
#[test]
fn tiles_are_released() {
    prepare();
    let ours = configuration(&[(16, 64); 8]);
    assert_eq!(configured(), [0; 64]);
    let outer = Tiles::configure();
    {
        let _inner = Tiles::configure();
        assert_eq!(configured(), ours);
    }
    assert_eq!(configured(), ours);
    std::thread::scope(|scope| {
        scope.spawn(|| assert_eq!(configured(), [0; 64]));
    });
    let late = Tiles::configure();
    drop(outer);
    assert_eq!(configured(), [0; 64]);
    // One that outlives the outermost finds nothing: a product configures anew.
    let product = Product::new((16, 16, 16), 0, false, || 0x3f80_3f80, || 0.0);
    product.check();
    drop(late);
    assert_eq!(configured(), [0; 64]);
}

#[test]
fn threads_have_tiles_of_their_own() {
    prepare();
    std::thread::scope(|scope| {
        for seed in 0..4 {
            scope.spawn(move || {
                let _tiles = Tiles::configure();
                let mut random = Random(seed);
                for _ in 0..10 {
                    let word = || random.bits() & 0xbfff_bfff;
                    Product::new((32, 32, 64), 0, false, word, || 0.0).check();
                }
            });
        }
    });
}

#[test]
fn products_in_registers_are_counted() {
    prepare();
    assert_eq!(products(0), 0.0);
    assert_eq!(products(3), 3.0 * 6.0 * 16_384.0);
    let isa = crate::isa::Isa::detect();
    if isa.has_amx() {
        assert_eq!(crate::peak::tile_multiply_adds(isa, 3), products(3));
    }
    assert!(!crate::isa::Isa::at_most_avx2().has_amx());
}

/// What Sapphire Rapids says of itself, and less of each.
#[test]
fn limits_of_tiles() {
    use std::arch::x86_64::CpuidResult;
    let palette = CpuidResult { eax: 0x0400_2000, ebx: 0x0008_0040, ecx: 0x10, edx: 0 };
    let multiplier = CpuidResult { eax: 0, ebx: 0x4010, ecx: 0, edx: 0 };
    assert!(large_enough(palette, multiplier));
    for ebx in [0x0007_0040, 0x0008_003f] {
        assert!(!large_enough(CpuidResult { ebx, ..palette }, multiplier));
    }
    assert!(!large_enough(CpuidResult { ecx: 15, ..palette }, multiplier));
    for ebx in [0x400f, 0x3f10] {
        assert!(!large_enough(palette, CpuidResult { ebx, ..multiplier }));
    }
}

/// Runs `child` below in a process of its own.
fn run_child(what: &str) -> ExitStatus {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "amx::tests::child", "--ignored", "--nocapture"])
        .env("ZFNET_CHILD", what)
        .output()
        .unwrap()
        .status
}

/// What a processor refuses ends a process, as does what is no instruction of AMX.
#[test]
fn the_emulator_refuses() {
    assert_eq!(run_child("nothing").code(), Some(0));
    for what in ["a tile twice", "not configured", "sizes that do not fit", "ud2", "sent"] {
        assert_eq!(run_child(what).signal(), Some(libc::SIGILL), "{what}");
    }
    let refused = run_child("wrong palette").signal();
    assert!(refused == Some(libc::SIGILL) || refused == Some(libc::SIGSEGV));
    assert_eq!(run_child("handled before").code(), Some(42));
}

#[test]
#[ignore = "only as a process of its own"]
fn child() {
    extern "C" fn exit_42(_: libc::c_int) {
        // SAFETY: may be called here.
        unsafe { libc::_exit(42) }
    }
    let Ok(what) = std::env::var("ZFNET_CHILD") else { return };
    let mut wrong = configuration(&[(16, 64); 8]);
    wrong[0] = 2;
    let odd = configuration(&[(16, 64), (16, 64), (15, 64)]);
    // SAFETY: the handler has the argument that its flags announce; the instructions change registers
    // that the compiler does not use, if anything.
    unsafe {
        if what == "handled before" {
            let mut action: libc::sigaction = std::mem::zeroed();
            let handler: extern "C" fn(_) = exit_42;
            action.sa_sigaction = handler as libc::sighandler_t;
            assert_eq!(libc::sigaction(libc::SIGILL, &raw const action, std::ptr::null_mut()), 0);
        }
        prepare();
        match what.as_str() {
            "nothing" => _ = Tiles::configure(),
            "a tile twice" => {
                let _tiles = Tiles::configure();
                // tdpbf16ps tmm0, tmm0, tmm1, which assemblers refuse.
                std::arch::asm!(".byte 0xc4, 0xe2, 0x72, 0x5c, 0xc0");
            }
            "not configured" => std::arch::asm!("tilezero tmm0"),
            "sizes that do not fit" => {
                std::arch::asm!("ldtilecfg [{}]", "tdpbf16ps tmm0, tmm1, tmm2", in(reg) &odd);
            }
            "wrong palette" => std::arch::asm!("ldtilecfg [{}]", in(reg) &wrong),
            "ud2" | "handled before" => std::arch::asm!("ud2"),
            "sent" => _ = libc::raise(libc::SIGILL),
            other => panic!("{other}"),
        }
    }
}
