//! The choice of the machine: made once, here, and said.

use std::str::FromStr;

use crate::backend::cpu::{CpuBackend, Products};
#[cfg(feature = "cuda")]
use crate::backend::{Precision, cuda};
use crate::bench::Benchmark;
use crate::ranks::Ranks;
use anyhow::Result;
#[cfg(feature = "cuda")]
use anyhow::bail;
use clap::{Args, ValueEnum};

use super::ExitCode;
use super::limits::check_threads;
#[cfg(feature = "cuda")]
use super::selftest::test_once;

/// Where to compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceName {
    /// The best there is.
    Auto,
    /// The processor.
    Cpu,
    /// An NVIDIA GPU by number.
    Cuda(usize),
}

impl FromStr for DeviceName {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let number = |text: &str| text.parse().map(DeviceName::Cuda);
        match (name, name.strip_prefix("cuda:").map(number)) {
            ("auto", _) => Ok(DeviceName::Auto),
            ("cpu", _) => Ok(DeviceName::Cpu),
            ("cuda", _) => Ok(DeviceName::Cuda(0)),
            (_, Some(Ok(device))) => Ok(device),
            _ => Err("expected auto, cpu, cuda or cuda:N (N a GPU's number)".into()),
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum PrecisionName {
    F32,
    #[cfg(feature = "cuda")]
    Tf32,
    Bf16,
}

#[cfg(feature = "cuda")]
#[derive(Clone, Copy, Debug, ValueEnum)]
enum GemmName {
    Cublaslt,
    Own,
}

#[cfg(feature = "cuda")]
#[derive(Clone, Copy, Debug, ValueEnum)]
enum KernelsName {
    Fast,
    Mma,
    Plain,
}

#[derive(Args, Clone)]
pub struct DeviceArgs {
    #[cfg_attr(feature = "cuda", doc = "Where to compute: auto, cpu, cuda or cuda:N")]
    #[cfg_attr(not(feature = "cuda"), doc = "Where to compute: auto or cpu")]
    #[arg(long, default_value = "auto")]
    device: DeviceName,
    /// Threads of the CPU backend [default: one per core]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    #[cfg_attr(
        feature = "cuda",
        doc = "Precision of activations and matrix products [default: on a GPU bf16, or f32 before Ampere; on the CPU f32: bf16 halves the memory of activations there, and saves time with AMX (Intel) or AVX512-BF16 (AMD)]"
    )]
    #[cfg_attr(
        not(feature = "cuda"),
        doc = "Precision of activations and matrix products; bf16 halves the memory of activations, and saves time with AMX (Intel) or AVX512-BF16 (AMD) [default: f32]"
    )]
    #[arg(long, value_enum)]
    precision: Option<PrecisionName>,
    /// On the CPU: compute all convolutions directly, not by Winograd's method: slower, rounds less
    #[arg(long)]
    exact: bool,
    /// On a GPU: what computes fully connected layers [default: cublaslt if it is installed]
    #[cfg(feature = "cuda")]
    #[arg(long, value_enum)]
    gemm: Option<GemmName>,
    /// On a GPU: how convolutions and fully connected layers are computed [default: fast]; mma is without Hopper's own
    /// instructions (wgmma and TMA, used in bf16); plain, a thread a value, is slow, and is for machines on which the
    /// fast kernels fail `zfnet selftest`
    #[cfg(feature = "cuda")]
    #[arg(long, value_enum)]
    kernels: Option<KernelsName>,
}

/// A command that computes, on whichever device was chosen.
pub trait OnDevice {
    fn run<B: Benchmark>(self, backend: &B) -> Result<ExitCode>;
}

/// What computes.
pub enum Device {
    Cpu(CpuBackend),
    #[cfg(feature = "cuda")]
    Cuda(cuda::CudaBackend),
}

impl DeviceArgs {
    /// Opens the device, says which one it is, and runs a command on it.
    pub fn run(&self, command: impl OnDevice) -> Result<ExitCode> {
        self.limit_threads()?;
        match &self.open()? {
            Device::Cpu(backend) => say(command, backend),
            #[cfg(feature = "cuda")]
            Device::Cuda(backend) => say(command, backend),
        }
    }

    /// What runs beside the backend (the mean image, say) keeps to the number of threads too.
    pub fn limit_threads(&self) -> Result<()> {
        if let Some(threads) = check_threads(self.threads)? {
            rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
        }
        Ok(())
    }

    /// The same for one of several ranks: where nothing else is asked for, each on a host has a GPU of its own.
    pub fn of_rank(&self, ranks: &Ranks) -> Self {
        let mut own = self.clone();
        let gpus = gpus();
        if ranks.count() > 1 && gpus > 0 && own.device == DeviceName::Auto {
            // A launcher may show each rank its own alone.
            own.device = DeviceName::Cuda(ranks.on_host() % gpus);
        }
        own
    }

    /// Opens the device.
    pub fn open(&self) -> Result<Device> {
        match self.device {
            DeviceName::Cpu => self.cpu(),
            #[cfg(feature = "cuda")]
            DeviceName::Cuda(device) => self.open_gpu(device).map(Device::Cuda),
            #[cfg(not(feature = "cuda"))]
            DeviceName::Cuda(_) => {
                let reason = "this build has no CUDA backend: build it with cargo's feature `cuda`";
                Err(crate::Error::NoDevice(reason.into()).into())
            }
            #[cfg(feature = "cuda")]
            DeviceName::Auto => match cuda::devices() {
                Ok(_) => self.open_gpu(0).map(Device::Cuda),
                Err(reason) => {
                    tracing::info!("not on a GPU: {reason:#}");
                    self.cpu()
                }
            },
            #[cfg(not(feature = "cuda"))]
            DeviceName::Auto => self.cpu(),
        }
    }

    fn cpu(&self) -> Result<Device> {
        #[cfg(feature = "cuda")]
        if self.gemm.is_some() {
            bail!("--gemm is for a GPU");
        }
        #[cfg(feature = "cuda")]
        if self.kernels.is_some() {
            bail!("--kernels is for a GPU");
        }
        let mut backend = CpuBackend::new(check_threads(self.threads)?)?;
        if self.exact {
            backend = backend.exact();
        }
        match self.precision {
            None | Some(PrecisionName::F32) => {}
            #[cfg(feature = "cuda")]
            Some(PrecisionName::Tf32) => bail!("--precision tf32 is for a GPU"),
            Some(PrecisionName::Bf16) => {
                backend = backend.bf16();
                if backend.products() == Products::F32 {
                    tracing::info!(
                        "bf16 saves memory but little time here: no AMX can be used, nor a fast \
                         AVX512-BF16, so products are made in f32"
                    );
                }
            }
        }
        Ok(Device::Cpu(backend))
    }

    /// Opens a GPU.
    #[cfg(feature = "cuda")]
    pub fn open_gpu(&self, device: usize) -> Result<cuda::CudaBackend> {
        if self.exact {
            bail!("--exact is for the CPU: no kernel for a GPU uses Winograd's method");
        }
        let precision = self.precision.map(|precision| match precision {
            PrecisionName::F32 => Precision::F32,
            PrecisionName::Tf32 => Precision::Tf32,
            PrecisionName::Bf16 => Precision::Bf16,
        });
        let gemm = self.gemm.map(|gemm| match gemm {
            GemmName::Cublaslt => cuda::Gemm::CublasLt,
            GemmName::Own => cuda::Gemm::Own,
        });
        let kernels = match self.kernels {
            None | Some(KernelsName::Fast) => cuda::Kernels::Fast,
            Some(KernelsName::Mma) => cuda::Kernels::Mma,
            Some(KernelsName::Plain) => cuda::Kernels::Plain,
        };
        let backend = cuda::CudaBackend::new(cuda::Options {
            device,
            precision,
            gemm,
            kernels,
            blocks: None,
        })?;
        test_once(device, &backend, kernels)?;
        Ok(backend)
    }
}

/// GPUs that this build can use.
fn gpus() -> usize {
    #[cfg(feature = "cuda")]
    let found = cuda::devices().unwrap_or_default();
    #[cfg(not(feature = "cuda"))]
    let found = 0;
    found
}

fn say<B: Benchmark>(command: impl OnDevice, backend: &B) -> Result<ExitCode> {
    tracing::info!("device: {}", backend.describe());
    command.run(backend)
}
