//! What a benchmark needs of the GPU: time by events, and what the GPU can do at best.

use cudarc::driver::{result, sys::CUdevice_attribute};

use super::blas::Fc;
use super::device::{Launch, failed, launch};
use super::plan::Direction;
use super::{CudaBackend, conv};
use crate::Result;
use crate::backend::Precision;

/// Multiply-adds of one thread and round of `peak.cu`, and of one warp of `peak_tensor.cu`.
const OF_A_THREAD: f64 = 16.0;
const OF_A_WARP: f64 = 8.0 * 16.0 * 8.0;

impl CudaBackend {
    /// Seconds on the GPU of each of several runs (short ones in groups), after some that are not
    /// counted: at least five, for about half a second.
    ///
    /// # Errors
    /// If a run fails.
    pub fn seconds(&self, run: &mut dyn FnMut() -> Result<()>) -> Result<Vec<f64>> {
        let (begin, end) = (self.device.timer()?, self.device.timer()?);
        let record = failed("record an event");
        let mut timed = |runs: usize| -> Result<f64> {
            begin.record(&self.device.stream).map_err(&record)?;
            for _ in 0..runs {
                run()?;
            }
            end.record(&self.device.stream).map_err(&record)?;
            let milliseconds = begin.elapsed_ms(&end).map_err(failed("read an event"))?;
            Ok(f64::from(milliseconds) / 1e3)
        };
        timed(1)?;
        // So many runs between two events that the first launch's way to an idle GPU, some ten
        // microseconds, is little beside them.
        let runs = (2e-3 / timed(1)?.max(1e-6)).clamp(1.0, 100.0) as usize;
        let mut times: Vec<f64> = Vec::new();
        while times.len() < 5 || times.iter().sum::<f64>() * (runs as f64) < 0.4 {
            times.push(timed(runs)? / runs as f64);
        }
        Ok(times)
    }

    /// Bytes of the GPU's L2 cache.
    pub fn cache(&self) -> usize {
        self.device.attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)
    }

    /// Bytes read and written a second, copying on the GPU.
    ///
    /// # Errors
    /// If there is not enough memory.
    pub fn copied_per_second(&self) -> Result<f64> {
        const BYTES: usize = 256 << 20;
        let (to, from) = (self.allocate(BYTES)?, self.allocate(BYTES)?);
        let times = self.seconds(&mut || {
            let stream = self.device.stream.cu_stream();
            // SAFETY: both are live allocations of that many bytes.
            unsafe { result::memcpy_dtod_async(to.pointer(), from.pointer(), BYTES, stream) }
                .map_err(failed("copy"))
        })?;
        Ok(2.0 * BYTES as f64 / shortest(&times))
    }

    /// Floating-point operations a second, of multiply-adds in registers: on tensor cores where
    /// the precision uses them.
    ///
    /// # Errors
    /// If the GPU refuses.
    pub fn multiply_adds_per_second(&self) -> Result<f64> {
        let blocks = 8 * self.device.multiprocessors() as usize;
        let out = self.f32(blocks * Launch::BLOCK as usize)?;
        let threads = (blocks * Launch::BLOCK as usize) as f64;
        let (kernel, of_a_round) = match self.precision {
            Precision::F32 => ("peak_f32", threads * OF_A_THREAD),
            Precision::Tf32 => ("peak_tf32", threads / 32.0 * OF_A_WARP * 8.0),
            Precision::Bf16 => ("peak_bf16", threads / 32.0 * OF_A_WARP * 16.0),
        };
        // Raised until a run is long enough to be timed, whatever the machine.
        let mut rounds = 1u32;
        loop {
            let times = self.seconds(&mut || {
                launch!(self.device, kernel, Launch::blocks(blocks), out.pointer(), rounds)
            })?;
            let seconds = shortest(&times);
            if seconds > 2e-3 || rounds > 1 << 20 {
                return Ok(2.0 * of_a_round * f64::from(rounds) / seconds);
            }
            rounds = (f64::from(rounds) * (3e-3 / seconds).clamp(2.0, 64.0)) as u32;
        }
    }

    /// Floating-point operations a second of a large product by cuBLASLt, if it is in use.
    ///
    /// # Errors
    /// If the library refuses.
    pub fn product_per_second(&self) -> Result<Option<f64>> {
        let Some(blas) = &self.blas else { return Ok(None) };
        let operands = conv::operands(self);
        let mut side = 256;
        loop {
            let sizes = Fc { n: side, k: side, d: side };
            if !blas.prepare(Direction::Forward, sizes, operands)? {
                return Ok(None);
            }
            let y = self.f32(side * side)?;
            let (x, w) = (self.f32(side * side)?, self.f32(side * side)?);
            // On zeros a GPU draws less power and runs faster: any other bits will do.
            for (memory, seed) in [(&x, 1u32), (&w, 2)] {
                let mut bits = seed;
                let values: Vec<u32> = std::iter::repeat_with(|| {
                    bits = bits.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    // Two bf16, or an f32, from 1/2 to 2 and of either sign.
                    bits & 0x80ff_80ff | 0x3f00_3f00
                })
                .take(side * side)
                .collect();
                self.device.upload(memory, &values)?;
            }
            let workspace = self.allocate(super::blas::WORKSPACE)?;
            let times = self.seconds(&mut || {
                let stream = self.device.stream.cu_stream();
                let (y, x, w) = (y.pointer(), x.pointer(), w.pointer());
                let workspace = (workspace.pointer(), workspace.bytes());
                // SAFETY: live allocations of these sizes, which freeing waits for.
                unsafe { blas.forward(stream, y, x, w, sizes, operands, workspace) }
            })?;
            if shortest(&times) > 1e-3 || side >= 8192 {
                return Ok(Some(2.0 * (side as f64).powi(3) / shortest(&times)));
            }
            side *= 2;
        }
    }
}

fn shortest(times: &[f64]) -> f64 {
    times.iter().copied().fold(f64::INFINITY, f64::min)
}
