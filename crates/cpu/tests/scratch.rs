//! Scratch that was planned for more images and holds anything, in every way that products are made: what
//! is computed in it is what is computed in fresh memory planned for just these images, bit for bit.

use half::bf16;
use zfnet_core::shape::ConvDims;
use zfnet_cpu::Products;
use zfnet_cpu::conv::{self, Arithmetic, Epilogue, Scratch, ScratchSize};
use zfnet_cpu::isa::Isa;
use zfnet_cpu::memory::Storage;
use zfnet_cpu::values::{Element, Values, ValuesMut};

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[path = "../src/amx/emulator.rs"]
mod emulator;

fn scratch(arithmetic: Arithmetic, dims: &ConvDims, fill: f32) -> Scratch {
    let ScratchSize { thread, shared } = ScratchSize::of(arithmetic, &[*dims]);
    let filled = |len| {
        let mut storage = Storage::zeros(len).expect("memory");
        storage.fill(fill);
        storage
    };
    let threads = (0..rayon::current_num_threads()).map(|_| filled(thread)).collect();
    Scratch::new(threads, filled(shared))
}

/// Numbers from -1 to 1, some eighths of them zero.
fn numbers(len: usize, zeros: usize, seed: usize) -> Vec<f32> {
    let number = |i: usize| (i * 2_654_435_761 + seed * 97) % 8191;
    let value = |i| if number(i) % 8 < zeros { 0.0 } else { number(i) as f32 / 4096.0 - 1.0 };
    (0..len).map(value).collect()
}

/// Bits of `y`, `dx`, `dw` and `db`.
fn run(arithmetic: Arithmetic, dims: &ConvDims, stored: bool, scratch: &mut Scratch) -> Vec<u32> {
    let narrow = |values: &[f32]| -> Vec<bf16> {
        values.iter().map(|value| <bf16 as Element>::from_f32(*value)).collect()
    };
    let [x, w] = [dims.input(), dims.filter()].map(|shape| numbers(shape.len(), 2, 1));
    let [x16, w16] = [&x, &w].map(|values| narrow(values));
    let mut results = Vec::new();
    // Gradients that are dense, and that are zero for the most part.
    for zeros in [1, 7] {
        let dy = numbers(dims.output().len(), zeros, 2);
        let dy16 = narrow(&dy);
        let [x, w, dy] = if stored {
            [&x16, &w16, &dy16].map(|values| Values::Bf16(values))
        } else {
            [&x, &w, &dy].map(|values| Values::F32(values))
        };
        let [mut y, mut dx, mut dw] =
            [dims.output(), dims.input(), dims.filter()].map(|shape| vec![f32::NAN; shape.len()]);
        let [mut y16, mut dx16] = [&y, &dx].map(|values| vec![bf16::NAN; values.len()]);
        let (to_y, to_dx) = if stored {
            (ValuesMut::Bf16(&mut y16), ValuesMut::Bf16(&mut dx16))
        } else {
            (ValuesMut::F32(&mut y), ValuesMut::F32(&mut dx))
        };
        let mut db = vec![f32::NAN; dims.k as usize];
        conv::forward(arithmetic, to_y, x, w, &Epilogue::default(), dims, scratch);
        conv::backward_data(arithmetic, to_dx, dy, w, dims, scratch);
        conv::backward_filter(arithmetic, &mut dw, &mut db, dy, x, false, dims, scratch);
        results.extend([y, dx, dw, db].concat().iter().map(|value| value.to_bits()));
        results.extend([y16, dx16].concat().iter().map(|value| u32::from(value.to_bits())));
    }
    results
}

/// All ways, and whether values are stored in bf16.
fn arithmetics() -> Vec<(Arithmetic, bool)> {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    if !zfnet_cpu::amx::available() {
        emulator::install();
        // SAFETY: the emulator carries the instructions out, in every thread.
        unsafe { zfnet_cpu::amx::assume() };
    }
    let mut all = Vec::new();
    for isa in [Isa::PORTABLE, Isa::at_most_avx2(), Isa::detect()] {
        let of = |products| Arithmetic { isa, products, winograd: true };
        all.push((of(Products::F32), false));
        let of_bf16 = [Products::F32, Products::Bf16Pairs, Products::Bf16Tiles];
        all.extend(of_bf16.into_iter().filter(|p| isa.has(*p)).map(|p| (of(p), true)));
    }
    all
}

fn convolutions() -> [ConvDims; 8] {
    // Image, channels, filters, their side, stride, pad, groups.
    [
        ([13, 13], 32, 48, 3, 1, 1, 1),
        ([27, 26], 32, 32, 5, 2, 0, 1),
        ([12, 11], 6, 10, 3, 2, 1, 2),
        ([9, 8], 66, 35, 3, 1, 1, 1),
        ([20, 20], 3, 24, 7, 2, 1, 1),
        ([1, 1], 32, 1000, 1, 1, 0, 1),
        ([1, 1], 2000, 5, 1, 1, 0, 1),
        ([6, 6], 20, 33, 6, 1, 0, 1),
    ]
    .map(|([h, w], c, k, r, stride, pad, groups)| {
        let [p, q] = [h, w].map(|side| (side + 2 * pad - r) / stride + 1);
        let (stride, pad) = ([stride; 2], [pad; 2]);
        ConvDims { n: 1, h, w, c, k, r, s: r, p, q, stride, pad, groups }
    })
}

#[test]
fn scratch_of_more_images_serves_fewer() {
    for (arithmetic, stored) in arithmetics() {
        for dims in convolutions() {
            for (planned, n) in [(1, 1), (20, 3), (20, 17), (5, 5)] {
                let (planned, dims) = (dims.with_n(planned), dims.with_n(n));
                let fresh = run(arithmetic, &dims, stored, &mut scratch(arithmetic, &dims, 0.0));
                let used =
                    run(arithmetic, &dims, stored, &mut scratch(arithmetic, &planned, f32::NAN));
                let (isa, products) = (arithmetic.isa.name(), arithmetic.products);
                assert!(used == fresh, "{isa}, {products:?}, stored in bf16: {stored}, {dims:?}");
            }
        }
    }
}
