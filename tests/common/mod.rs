//! What the tests share: the backends they run on, a tiny seeded generator, tensors to and from a
//! backend, and comparison. [`twin`] holds the naive operations that backends are measured against,
//! [`program`] runs the command line.
#![allow(dead_code, unused_macros)] // each test binary uses a part of it

pub mod program;
pub mod twin;

use zfnet::backend::{Backend, Param, Tensor};
use zfnet::model::{Architecture, Network, Params};
use zfnet::shape::{ConvDims, PoolDims, Rounding, Shape, windows};

/// Makes a `#[test]` of each named function, `fn name<B: Backend>(backend: &B)`, on each backend.
/// A backend is one line here.
macro_rules! on_every_backend {
    ($($test:ident),* $(,)?) => {
        on_backend!(cpu, zfnet::backend::cpu::CpuBackend::new(Some(2)), $($test),*);
        on_backend!(cpu_avx2, zfnet::backend::cpu::CpuBackend::at_most_avx2(Some(2)), $($test),*);
        on_backend!(cpu_portable, zfnet::backend::cpu::CpuBackend::portable(Some(2)), $($test),*);
    };
}

/// See [`on_every_backend`].
macro_rules! on_backend {
    ($name:ident, $backend:expr, $($test:ident),*) => {
        mod $name {
            $(#[test] fn $test() { super::$test(&$backend.expect("a backend")) })*
        }
    };
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
    Some(PoolDims { n, h, w, c, p, q, window, stride, pad: [pad[0] as u32, pad[2] as u32] })
}

/// A network from its TOML text.
pub fn network(toml: &str) -> Network {
    Network::new(Architecture::parse(toml).expect("well-formed")).expect("a network that fits")
}

pub fn tensor<B: Backend>(backend: &B, shape: Shape, values: &[f32]) -> Tensor<B> {
    let mut tensor = backend.zeros(shape).unwrap();
    backend.upload(&mut tensor, values).unwrap();
    tensor
}

/// A tensor that an operation has to overwrite: full of NaN.
pub fn unwritten<B: Backend>(backend: &B, shape: Shape) -> Tensor<B> {
    tensor(backend, shape, &vec![f32::NAN; shape.len()])
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

/// Asserts that `found` is `expected` but for the roundings of sums of `depth` products in f32.
///
/// Roundings of such a sum are as likely up as down, so their sum grows as the root of `depth`:
/// of a naive sum of random terms the relative error in norm is `eps / 2 * sqrt(depth / 2)`, and
/// any other order's is less. So `eps * sqrt(depth)` leaves a factor of about three. For each value
/// the same root holds times `magnitude`, the sum of the products' absolute values (Higham and
/// Mary 2019), which no cancellation makes small; the result's own rounding counts once more.
#[track_caller]
pub fn assert_close(found: &[f32], expected: &[f64], magnitude: &[f64], depth: usize, what: &str) {
    assert_eq!((found.len(), expected.len()), (expected.len(), magnitude.len()), "{what}");
    let eps = f64::from(f32::EPSILON);
    let limit = eps * (depth as f64).sqrt();
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let error = (f64::from(*found) - expected).abs();
        let limit = limit * magnitude[i] + eps * expected.abs();
        assert!(error <= limit, "{what}: {found} for {expected} at {i}: off by more than {limit}");
    }
    let error = norm(found.iter().zip(expected).map(|(f, e)| f64::from(*f) - e));
    let size = norm(expected.iter().copied());
    assert!(error <= limit * size, "{what}: off by {error} in norm, of {size}, limit {limit}");
}
