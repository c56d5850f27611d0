//! What computes: backends that are made once and kept for as long as the process lives.
//!
//! A backend has threads, and a process that was forked has none of its parent's. So backends are kept by process, and in
//! a child there is a new one, of one thread, as in a DataLoader's worker. What is kept is only touched by who holds
//! Python's lock, and so is whole in the child: the thread that forks holds that lock too.

use std::process;
use std::sync::{Mutex, OnceLock, PoisonError};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use zfnet::backend::cpu::CpuBackend;
#[cfg(feature = "cuda")]
use zfnet::backend::cuda::CudaBackend;
use zfnet::bench::Benchmark;
use zfnet::cli::python::{Device, DeviceArgs, Value, arguments};

use crate::errors::{Error, caught, of_arguments, of_command};

/// A device as Python names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    pub device: String,
    pub threads: Option<u16>,
    pub instructions: Option<String>,
}

/// A backend with threads, or on a GPU.
pub trait Host: Benchmark {
    /// Whether its weights can be used in a process that was forked.
    const FORKS: bool;

    /// It, if it is what is on a device.
    fn of(device: &'static Device) -> Option<&'static Self>;

    /// Runs `work` where all that it divides is divided among this backend's threads.
    fn install<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T;
}

impl Host for CpuBackend {
    const FORKS: bool = true;

    fn of(device: &'static Device) -> Option<&'static Self> {
        match device {
            Device::Cpu(backend) => Some(backend),
            #[cfg(feature = "cuda")]
            Device::Cuda(_) => None,
        }
    }

    fn install<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        CpuBackend::install(self, work)
    }
}

#[cfg(feature = "cuda")]
impl Host for CudaBackend {
    const FORKS: bool = false;

    fn of(device: &'static Device) -> Option<&'static Self> {
        match device {
            Device::Cuda(backend) => Some(backend),
            Device::Cpu(_) => None,
        }
    }

    fn install<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        work()
    }
}

/// The process that has loaded this module.
static LOADED_IN: OnceLock<u32> = OnceLock::new();

/// Remembers this process as the one whose threads are all there.
pub fn remember_process() {
    LOADED_IN.get_or_init(process::id);
}

/// Whether this process was forked from the one that has loaded this module.
pub fn is_forked() -> bool {
    LOADED_IN.get() != Some(&process::id())
}

type Kept = (u32, Choice, &'static Device);

/// Those that there are. Locked by who holds Python's lock, and for as long at most.
static DEVICES: Mutex<Vec<Kept>> = Mutex::new(Vec::new());

impl Choice {
    /// The device, opened if it is not open yet.
    pub fn open(&self, py: Python<'_>) -> PyResult<&'static Device> {
        let mut devices = DEVICES.lock().unwrap_or_else(PoisonError::into_inner);
        let here = process::id();
        let known = devices.iter().find(|(process, choice, _)| *process == here && choice == self);
        if let Some((_, _, device)) = known {
            return Ok(device);
        }
        let device: &'static Device = Box::leak(Box::new(self.make(py)?));
        devices.push((here, self.clone(), device));
        Ok(device)
    }

    fn make(&self, py: Python<'_>) -> PyResult<Device> {
        let threads = if is_forked() { Some(1) } else { self.threads };
        let text = |text: &str| Value::Text(text.into());
        let threads = threads.map_or(Value::None, |threads| text(&threads.to_string()));
        let args = [("device".into(), text(&self.device)), ("threads".into(), threads)];
        let args: DeviceArgs = arguments(&args).map_err(of_arguments)?;
        let device = caught(|| args.open())?;
        let device = device.map_err(|error| of_command(py, error, &["device", "threads"]))?;
        let Some(instructions) = &self.instructions else { return Ok(device) };
        #[allow(irrefutable_let_patterns)] // without GPUs
        let Device::Cpu(backend) = device else {
            return Err(PyValueError::new_err("instructions are chosen on the CPU only"));
        };
        let make: fn(_) -> _ = match instructions.as_str() {
            "portable" => CpuBackend::portable,
            "avx2" => CpuBackend::at_most_avx2,
            other => {
                return Err(PyValueError::new_err(format!(
                    "instructions: expected portable, avx2 or None, found {other}"
                )));
            }
        };
        let made = caught(|| make(Some(backend.threads())))?;
        made.map(Device::Cpu).map_err(|error| Error::new_err(format!("{error:#}")))
    }
}
