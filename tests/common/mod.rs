//! What the tests share: the backends they run on, a tiny seeded generator, tensors to and from a
//! backend, and comparison. [`twin`] holds the naive operations that backends are measured against,
//! [`place`] is a folder with images, [`program`] runs the command line there, [`page`] reads its pages.
#![allow(dead_code, unused_macros)] // each test binary uses a part of it

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[path = "../../crates/cpu/src/amx/emulator.rs"]
mod emulator;
pub mod page;
pub mod place;
#[cfg(feature = "cli")]
pub mod program;
pub mod twin;

use std::sync::{Mutex, MutexGuard, PoisonError};

use zfnet::backend::cpu::{CpuBackend, Products};
#[cfg(feature = "cuda")]
use zfnet::backend::cuda::{Gemm, Kernels, Options};
use zfnet::backend::{Backend, BackendId, Crop, Param, Precision, Tensor};
use zfnet::model::{Architecture, ConvSpec, FcSpec, LayerSpec, Network, Params, Preprocess};
use zfnet::shape::{ConvDims, PoolDims, Rounding, Shape, windows};

/// Makes a `#[test]` of each named function, `fn name<B: Backend>(backend: &B)`, on each backend.
/// A backend is one line here, in [`on_fast_backends`] or in [`in_f32`]. Tests on one that a machine may
/// lack are ignored: those on a GPU always (`--include-ignored` runs them), those for a kind of CPU where
/// `build.rs` has not found it.
macro_rules! on_every_backend {
    ($($test:ident),* $(,)?) => {
        on_fast_backends!($($test),*);
        on_backend!(
            #[cfg_attr(not(has_avx512), ignore = "needs a CPU with AVX-512")]
            cpu_bf16_tiles, crate::common::bf16_by_tiles(),
            $($test),*
        );
    };
}

/// As [`on_every_backend`], without AMX, which may be emulated: for networks of full size.
macro_rules! on_fast_backends {
    ($($test:ident),* $(,)?) => {
        in_f32!($($test),*);
        on_backend!(
            #[cfg_attr(not(has_avx512_bf16), ignore = "needs a CPU with AVX512-BF16")]
            cpu_bf16_pairs, CpuBackend::new(Some(2)).and_then(|cpu| cpu.bf16_by(Products::Bf16Pairs)),
            $($test),*
        );
        on_backend!(
            #[cfg(all())] // on every machine
            cpu_bf16, CpuBackend::new(Some(2)).and_then(|cpu| cpu.bf16_by(Products::F32)),
            $($test),*
        );
        on_gpu!(cuda_tf32, Tf32, Fast, $($test),*);
        // On Hopper, and so on the stand-in, the first is by `wgmma`.
        on_gpu!(cuda_bf16, Bf16, Fast, $($test),*);
        on_gpu!(cuda_bf16_mma, Bf16, Mma, $($test),*);
        on_gpu!(cuda_bf16_plain, Bf16, Plain, $($test),*);
    };
}

/// As [`on_every_backend`], on those that compute in f32: for what other precisions do not promise.
macro_rules! in_f32 {
    ($($test:ident),* $(,)?) => {
        on_backend!(
            #[cfg_attr(not(has_avx512), ignore = "needs a CPU with AVX-512")]
            cpu_avx512, zfnet::backend::cpu::CpuBackend::new(Some(2)), $($test),*
        );
        on_backend!(
            #[cfg_attr(not(has_avx2), ignore = "needs a CPU with AVX2")]
            cpu_avx2, zfnet::backend::cpu::CpuBackend::at_most_avx2(Some(2)), $($test),*
        );
        on_backend!(
            #[cfg(all())] // on every machine
            cpu_portable, zfnet::backend::cpu::CpuBackend::portable(Some(2)), $($test),*
        );
        on_gpu!(cuda_f32, F32, Fast, $($test),*);
        on_gpu!(cuda_f32_plain, F32, Plain, $($test),*);
    };
}

/// See [`on_every_backend`].
macro_rules! on_backend {
    (#[$condition:meta] $name:ident, $backend:expr, $($test:ident),*) => {
        mod $name {
            $(
                #[test]
                #[$condition]
                fn $test() {
                    #[allow(unused_imports)]
                    use zfnet::backend::cpu::{CpuBackend, Products};
                    super::$test(&crate::common::opened(|| $backend))
                }
            )*
        }
    };
}

/// See [`on_every_backend`]: on a GPU, or on what stands in for one.
macro_rules! on_gpu {
    ($name:ident, $precision:ident, $kernels:ident, $($test:ident),*) => {
        #[cfg(feature = "cuda")]
        on_backend!(
            #[ignore = "needs an NVIDIA GPU"]
            $name,
            zfnet::backend::cuda::CudaBackend::new(crate::common::gpu_options(
                zfnet::backend::Precision::$precision,
                zfnet::backend::cuda::Kernels::$kernels,
            )),
            $($test),*
        );
    };
}

/// Held while a backend is opened, and by a test while it counts what all threads allocate.
pub fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The backend of a test.
pub fn opened<B: Backend>(open: impl FnOnce() -> zfnet::Result<B>) -> B {
    let _turn = turn();
    open().expect("a backend")
}

/// A CPU backend that multiplies bf16 by AMX. Where there is none, its instructions are emulated.
pub fn bf16_by_tiles() -> zfnet::Result<CpuBackend> {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    if !zfnet_cpu::amx::available() {
        emulator::install();
        // SAFETY: the emulator carries the instructions out, in every thread.
        unsafe { zfnet_cpu::amx::assume() };
    }
    CpuBackend::new(Some(2))?.bf16_by(Products::Bf16Tiles)
}

/// The first GPU. Fully connected layers go through cuBLASLt if it is installed, but with
/// ZFNET_TEST_GEMM=own through our own kernels: a sanitizer takes minutes to load the library.
#[cfg(feature = "cuda")]
pub fn gpu_options(precision: Precision, kernels: Kernels) -> Options {
    let gemm = match std::env::var("ZFNET_TEST_GEMM").as_deref() {
        Ok("own") => Some(Gemm::Own),
        Err(std::env::VarError::NotPresent) => None,
        other => panic!("ZFNET_TEST_GEMM: expected own, found {other:?}"),
    };
    // So few blocks that each has several items of these small operands.
    Options { precision: Some(precision), kernels, gemm, blocks: Some(2), ..Options::default() }
}

/// SplitMix64: small, and the same everywhere.
pub struct Random(pub u64);

impl Random {
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// From 0 to below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.bits() % bound as u64) as usize
    }

    /// From -1 to 1.
    pub fn real(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    pub fn reals(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.real()).collect()
    }

    /// From `-limit` to `limit`, so small that sums of products stay exact in f32.
    pub fn integers(&mut self, count: usize, limit: usize) -> Vec<f32> {
        (0..count).map(|_| self.below(2 * limit + 1) as f32 - limit as f32).collect()
    }

    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.bits() as u8).collect()
    }
}

/// A convolution as its tests write it down; [`Conv::SIMPLE`] fills in the rest.
#[derive(Clone, Copy, Debug)]
pub struct Conv {
    pub n: usize,
    /// Rows, columns, channels.
    pub input: [usize; 3],
    /// Number, rows, columns.
    pub filters: [usize; 3],
    pub stride: [usize; 2],
    /// Top, bottom, left, right.
    pub pad: [usize; 4],
    pub rounding: Rounding,
    pub groups: usize,
}

impl Conv {
    pub const SIMPLE: Conv = Conv {
        n: 1,
        input: [1, 1, 1],
        filters: [1, 1, 1],
        stride: [1, 1],
        pad: [0; 4],
        rounding: Rounding::Floor,
        groups: 1,
    };

    /// The sizes, unless no window fits.
    pub fn dims(&self) -> Option<ConvDims> {
        let Conv { n, input: [h, w, c], filters: [k, r, s], stride, pad, rounding, groups } = *self;
        let p = windows(h, r, stride[0], pad[0], pad[1], rounding)?;
        let q = windows(w, s, stride[1], pad[2], pad[3], rounding)?;
        let [n, h, w, c, k, r, s, p, q] = [n, h, w, c, k, r, s, p, q].map(|v| v as u32);
        let (stride, pad) = (stride.map(|v| v as u32), [pad[0] as u32, pad[2] as u32]);
        Some(ConvDims { n, h, w, c, k, r, s, p, q, stride, pad, groups: groups as u32 })
    }
}

/// Sizes of a pooling; `pad` is top, bottom, left, right.
pub fn pooling(
    n: usize,
    [h, w, c]: [usize; 3],
    window: [usize; 2],
    stride: [usize; 2],
    pad: [usize; 4],
    rounding: Rounding,
) -> Option<PoolDims> {
    let p = windows(h, window[0], stride[0], pad[0], pad[1], rounding)?;
    let q = windows(w, window[1], stride[1], pad[2], pad[3], rounding)?;
    let [n, h, w, c, p, q] = [n, h, w, c, p, q].map(|v| v as u32);
    let [window, stride] = [window, stride].map(|pair| pair.map(|v| v as u32));
    let pad = [pad[0] as u32, pad[2] as u32];
    Some(PoolDims { n, h, w, c, p, q, window, stride, pad, any_sign: 0 })
}

/// Whether the backend is a GPU of which a processor only plays the part, slowly.
pub fn is_stand_in<B: Backend>(backend: &B) -> bool {
    // So `tests/standin/libcuda.cpp` calls itself.
    matches!(backend.id(), BackendId::Cuda { name, .. } if name.contains("stand-in"))
}

/// zfnet-mini; on a stand-in with as many layers of the same geometry, but a sixth of the maps.
pub fn mini<B: Backend>(backend: &B) -> Architecture {
    let mut architecture = Architecture::find("zfnet-mini").unwrap();
    if is_stand_in(backend) {
        for layer in &mut architecture.layers {
            match layer {
                LayerSpec::Conv(ConvSpec { channels, .. }) => *channels /= 6,
                LayerSpec::Fc(FcSpec { outputs: Some(outputs), .. }) => *outputs /= 16,
                _ => {}
            }
        }
    }
    architecture
}

/// A network from its TOML text.
pub fn network(toml: &str) -> Network {
    Network::new(Architecture::parse(toml).expect("well-formed")).expect("a network that fits")
}

/// The same network for an input of one channel and 14 x 25 pixels.
pub fn grey_and_wide(toml: &str) -> String {
    let input = toml.lines().find(|line| line.trim_start().starts_with("input = ")).expect("one");
    toml.replace(input, "input = { size = [14, 25], resize = [14, 25], channels = 1 }")
}

/// A tensor filled with values.
pub fn filled<B: Backend>(backend: &B, mut tensor: Tensor<B>, values: &[f32]) -> Tensor<B> {
    backend.upload(&mut tensor, values).unwrap();
    tensor
}

/// An activation, or what goes backward.
pub fn tensor<B: Backend>(backend: &B, shape: Shape, values: &[f32]) -> Tensor<B> {
    filled(backend, backend.activations(shape).unwrap(), values)
}

/// What is always f32: biases, gradients of weights, logits, means.
pub fn in_full<B: Backend>(backend: &B, shape: Shape, values: &[f32]) -> Tensor<B> {
    filled(backend, backend.zeros(shape).unwrap(), values)
}

/// Weights that convolutions read.
pub fn weights<B: Backend>(backend: &B, shape: Shape, values: &[f32]) -> Tensor<B> {
    filled(backend, backend.weights(shape).unwrap(), values)
}

/// An activation that an operation has to overwrite: full of NaN.
pub fn unwritten<B: Backend>(backend: &B, shape: Shape) -> Tensor<B> {
    tensor(backend, shape, &vec![f32::NAN; shape.len()])
}

/// The same of what is always f32.
pub fn unwritten_in_full<B: Backend>(backend: &B, shape: Shape) -> Tensor<B> {
    in_full(backend, shape, &vec![f32::NAN; shape.len()])
}

/// Keeps `bits` bits of a fraction, rounding to nearest, ties to even.
fn keep_fraction(value: f64, bits: i32) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return value;
    }
    let step = 2f64.powi(value.abs().log2().floor() as i32 - bits);
    (value / step).round_ties_even() * step
}

/// Rounds an exact result once, to what the backend stores of an activation.
pub fn stored<B: Backend>(backend: &B, values: &[f64]) -> Vec<f64> {
    let round = |value: &f64| match backend.precision() {
        Precision::F32 | Precision::Tf32 => *value,
        Precision::Bf16 => keep_fraction(*value, 7),
    };
    values.iter().map(round).collect()
}

/// Half the distance of neighbours of what the backend stores, as a share: what the rounding of an
/// activation costs beyond f32's.
pub fn storage_eps<B: Backend>(backend: &B) -> f64 {
    match backend.precision() {
        Precision::F32 | Precision::Tf32 => 0.0,
        Precision::Bf16 => 1.0 / 256.0,
    }
}

/// Values that the backend stores and multiplies as they are.
pub fn exact_operands<B: Backend>(backend: &B, values: Vec<f32>) -> Vec<f32> {
    let bits = match backend.precision() {
        Precision::F32 => return values,
        Precision::Tf32 => 10,
        Precision::Bf16 => 7,
    };
    values.iter().map(|value| keep_fraction(f64::from(*value), bits) as f32).collect()
}

pub fn values<B: Backend>(backend: &B, tensor: &Tensor<B>) -> Vec<f32> {
    let mut values = vec![0.0; tensor.shape().len()];
    backend.download(&mut values, tensor).unwrap();
    values
}

pub fn indices<B: Backend>(backend: &B, values: &[u32]) -> B::Indices {
    let mut indices = backend.indices(values.len()).unwrap();
    backend.upload_indices(&mut indices, values).unwrap();
    indices
}

pub fn bytes<B: Backend>(backend: &B, values: &[u8]) -> B::Bytes {
    let mut bytes = backend.bytes(values.len()).unwrap();
    backend.upload_bytes(&mut bytes, values).unwrap();
    bytes
}

/// Weights drawn afresh, and small random biases instead of zeros.
pub fn random_params<B: Backend>(backend: &B, network: &Network, seed: u64) -> Params<B> {
    let mut params = Params::init(backend, network, seed).unwrap();
    let mut random = Random(seed);
    for Param { bias, .. } in params.layers.iter_mut().flatten() {
        let values: Vec<f32> = random.reals(bias.shape().len()).iter().map(|v| v * 0.1).collect();
        backend.upload(bias, &values).unwrap();
    }
    params
}

/// Squares of random pixels, crops of them, labels.
pub struct Samples {
    pub preprocess: Preprocess,
    pub pixels: Vec<u8>,
    pub crops: Vec<Crop>,
    pub labels: Vec<u32>,
}

impl Samples {
    pub fn random(network: &Network, samples: usize) -> Self {
        let input = network.architecture.input;
        let mut random = Random(11);
        let preprocess = input.preprocess(vec![128.0; 3]);
        let last = preprocess.last_place();
        let crop = |image: usize| {
            let [y, x] = last.map(|last| random.below(last + 1) as u32);
            Crop { image: image as u32, y, x, mirror: random.below(2) as u32 }
        };
        Samples {
            crops: (0..samples).map(crop).collect(),
            pixels: Random(12).bytes(samples * preprocess.bytes()),
            preprocess,
            labels: (0..samples).map(|i| (i * 7 % network.classes()) as u32).collect(),
        }
    }
}

/// All weights and biases, in order.
pub fn all_weights<B: Backend>(backend: &B, params: &Params<B>) -> Vec<f32> {
    let params = params.layers.iter().flatten();
    params.flat_map(|p| [values(backend, &p.weight), values(backend, &p.bias)].concat()).collect()
}

/// Weights and biases of each layer, on the host.
pub fn host_params<B: Backend>(backend: &B, params: &Params<B>) -> twin::HostParams {
    let host = |param: &Param<B>| {
        [&param.weight, &param.bias].map(|tensor| widen(&values(backend, tensor)))
    };
    params.layers.iter().map(|param| param.as_ref().map(host)).collect()
}

pub fn widen(values: &[f32]) -> Vec<f64> {
    values.iter().map(|v| f64::from(*v)).collect()
}

pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// `<a, b>` in f64.
pub fn dot(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

pub fn norm(values: impl IntoIterator<Item = f64>) -> f64 {
    values.into_iter().map(|v| v * v).sum::<f64>().sqrt()
}

/// Asserts exact equality, and says where it first fails.
#[track_caller]
pub fn assert_exact(found: &[f32], expected: &[f64], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let equal = f64::from(*found) == *expected || found.is_nan() && expected.is_nan();
        assert!(equal, "{what}: found {found}, expected {expected} at {i}");
    }
}

/// Asserts that `found` is `expected` but for the roundings of sums of `depth` products in f32, and
/// of the result where it is an activation, `stored`.
///
/// Roundings of such a sum are as likely up as down, so their sum grows as the root of `depth`:
/// of a naive sum of random terms the relative error in norm is `eps / 2 * sqrt(depth / 2)`, and
/// any other order's is less. So `eps * sqrt(depth)` leaves a factor of about three. For each value
/// the same root holds times `magnitude`, the sum of the products' absolute values (Higham and
/// Mary 2019), which no cancellation makes small; the result's own rounding counts once more.
///
/// Tensor cores cut what they add to a sum, every 4 or 8 products of tf32 and twice as many of bf16,
/// rather than round it: that leans one way and grows with the number of times. A product that is split
/// among blocks has few in a chain, but cuBLASLt's need not be split. Simulated for tf32 at a depth of
/// 2304, where the root is 48, it is 45 eps on Hopper and 61 on Ampere: so a 32nd of the depth is added.
#[track_caller]
pub fn assert_close<B: Backend>(
    backend: &B,
    found: &[f32],
    expected: &[f64],
    magnitude: &[f64],
    depth: usize,
    stored: bool,
    what: &str,
) {
    assert_eq!((found.len(), expected.len()), (expected.len(), magnitude.len()), "{what}");
    let storage = if stored { storage_eps(backend) } else { 0.0 };
    let cut = match (backend.device(), backend.precision()) {
        ("cuda", Precision::Tf32) => 1.0 / 32.0,
        ("cuda", Precision::Bf16) => 1.0 / 64.0,
        _ => 0.0,
    };
    let eps = f64::from(f32::EPSILON);
    let share = eps * ((depth as f64).sqrt() + cut * depth as f64);
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let error = (f64::from(*found) - expected).abs();
        let limit = share * magnitude[i] + (eps + 1.01 * storage) * expected.abs();
        assert!(error <= limit, "{what}: {found} for {expected} at {i}: off by more than {limit}");
    }
    let error = norm(found.iter().zip(expected).map(|(f, e)| f64::from(*f) - e));
    let (size, share) = (norm(expected.iter().copied()), share + storage);
    assert!(error <= share * size, "{what}: off by {error} in norm, of {size}, limit {share}");
}
