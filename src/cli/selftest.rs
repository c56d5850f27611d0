//! `zfnet selftest`: whether this machine computes right; and the same by itself, the first time that
//! a build meets a GPU and its driver.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, bail};
use clap::Args;
use serde::Serialize;
use zfnet::backend::Backend;
use zfnet::backend::cpu::CpuBackend;
#[cfg(feature = "cuda")]
use zfnet::backend::{
    Precision,
    cuda::{self, CudaBackend, Gemm, Kernels, Options},
};
use zfnet::selftest::{Check, Reference, Settings};

use super::device::DeviceName;
use super::output;

#[derive(Args)]
pub struct Selftest {
    #[cfg_attr(feature = "cuda", doc = "What is tested: auto, cpu, cuda or cuda:N")]
    #[cfg_attr(not(feature = "cuda"), doc = "What is tested: auto or cpu")]
    #[arg(long, default_value = "auto")]
    device: DeviceName,
    /// Networks whose layers are tested, by name or TOML file; repeat it for several [default: zfnet,
    /// alexnet and zfnet-mini, which between them need every kernel]
    #[arg(long, visible_alias = "model")]
    arch: Vec<String>,
    /// Images at a time
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=1024))]
    images: u16,
    /// Largest rows and columns of a layer's output; larger maps are cut to it
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=512))]
    map: u16,
    /// Print JSON, with every result of every operation
    #[arg(long)]
    json: bool,
}

/// What one variant of the backend has computed.
#[derive(Serialize)]
struct Variant {
    name: String,
    seconds: f64,
    results: Vec<Compared>,
}

#[derive(Serialize)]
struct Compared {
    layer: String,
    operation: &'static str,
    values: usize,
    wrong: usize,
    /// Of the first wrong value: index, found, expected.
    #[serde(skip_serializing_if = "Option::is_none")]
    first: Option<(usize, f32, f32)>,
    /// On a GPU: the kernels and libraries that were used.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    kernels: Vec<&'static str>,
}

impl Compared {
    fn new(check: &Check, kernels: Vec<&'static str>) -> Self {
        let Check { layer, operation, values, wrong, first } = check.clone();
        Compared { layer, operation, values, wrong, first, kernels }
    }

    /// What is wrong, in words.
    fn fault(&self) -> Option<String> {
        let (index, found, expected) = self.first?;
        let by = if self.kernels.is_empty() {
            String::new()
        } else {
            format!(" by {}", self.kernels.join(" and "))
        };
        let layer = if self.layer.is_empty() { "" } else { &format!("{} ", self.layer) };
        Some(format!(
            "{layer}{}{by}: {} of {} values, the first at {index}: expected {expected}, found {found}",
            self.operation, self.wrong, self.values
        ))
    }
}

impl Variant {
    fn faults(&self) -> impl Iterator<Item = String> {
        self.results.iter().filter_map(Compared::fault)
    }

    fn print(&self) -> Result<()> {
        let values: usize = self.results.iter().map(|result| result.values).sum();
        let wrong = self.results.iter().filter(|result| result.wrong > 0).count();
        output::line(format_args!(
            "{:<36} {:>7} {:>12} {:>6} {:>6.1} s",
            self.name,
            self.results.len(),
            super::grouped(values),
            wrong,
            self.seconds
        ))?;
        for fault in self.faults() {
            output::line(format_args!("  wrong: {fault}"))?;
        }
        Ok(())
    }
}

#[derive(Serialize)]
struct All {
    version: &'static str,
    device: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    driver: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    build: Option<&'static str>,
    variants: Vec<Variant>,
}

/// The operations on one backend, beside what they should be.
fn variant<B: Backend>(
    name: String,
    backend: &B,
    exact: bool,
    reference: &Reference,
    kernels: impl Fn() -> Vec<&'static str>,
) -> Result<Variant> {
    let begun = Instant::now();
    let mut results = Vec::new();
    kernels(); // begins the list
    reference.compare(backend, exact, |check| results.push(Compared::new(check, kernels())))?;
    Ok(Variant { name, seconds: begun.elapsed().as_secs_f64(), results })
}

/// What all others are compared with: the CPU's loops without any instruction that not every processor
/// has.
fn reference(settings: Settings) -> Result<Reference> {
    Ok(Reference::new(&CpuBackend::portable(None)?.exact(), settings)?)
}

/// The instruction sets of this processor, with Winograd's method and without, and bf16.
fn cpu_variants(reference: &Reference, mut done: impl FnMut(Variant) -> Result<()>) -> Result<()> {
    let levels = [CpuBackend::portable, CpuBackend::at_most_avx2, CpuBackend::new];
    let mut seen = Vec::new();
    for level in levels {
        let name = level(None)?.instructions();
        if seen.contains(&name) {
            continue;
        }
        seen.push(name);
        for exact in [true, false] {
            let backend = level(None)?;
            let backend = if exact { backend.exact() } else { backend };
            let how = if exact { ", exact" } else { "" };
            done(variant(format!("f32, {name}{how}"), &backend, exact, reference, Vec::new)?)?;
            if let Ok(backend) = backend.bf16() {
                done(variant(format!("bf16, {name}{how}"), &backend, exact, reference, Vec::new)?)?;
            }
        }
    }
    Ok(())
}

/// The precisions of a GPU, with its libraries and without, and the plain kernels.
#[cfg(feature = "cuda")]
fn gpu_variants(
    device: usize,
    kernels: Kernels,
    reference: &Reference,
    mut done: impl FnMut(Variant) -> Result<()>,
) -> Result<()> {
    let tensor_cores = CudaBackend::new(Options { device, ..Options::default() })?.precision();
    let precisions: &[Precision] = match tensor_cores {
        Precision::F32 => &[Precision::F32],
        _ => &[Precision::F32, Precision::Tf32, Precision::Bf16],
    };
    for &precision in precisions {
        let options =
            Options { device, precision: Some(precision), gemm: Some(Gemm::Own), kernels };
        let mut run = |options: Options, suffix: &str| -> Result<()> {
            let backend = CudaBackend::new(options)?;
            let kernels = || backend.kernels_used();
            let name = format!("{}{suffix}", precision.name());
            done(variant(name, &backend, true, reference, kernels)?)
        };
        let plain = Options { kernels: Kernels::Plain, ..options };
        if precision != Precision::Tf32 {
            run(plain, ", plain kernels")?; // those of tf32 are those of f32
        }
        if kernels == Kernels::Fast {
            run(options, "")?;
            if cuda::has_cublaslt() {
                run(Options { gemm: Some(Gemm::CublasLt), ..options }, ", cuBLASLt")?;
            }
        }
    }
    Ok(())
}

pub fn run(args: Selftest) -> Result<ExitCode> {
    let mut settings = Settings {
        images: usize::from(args.images),
        map: usize::from(args.map),
        ..Settings::default()
    };
    if !args.arch.is_empty() {
        settings.networks = args.arch;
    }
    let on_cpu = || CpuBackend::new(None).map(|backend| backend.describe());
    #[cfg(feature = "cuda")]
    let gpu = match args.device {
        DeviceName::Cpu => None,
        DeviceName::Auto => cuda::devices().is_ok().then_some(0),
        DeviceName::Cuda(device) => Some(device),
    };
    #[cfg(not(feature = "cuda"))]
    if let DeviceName::Cuda(_) = args.device {
        bail!("this build has no CUDA backend: build it with --features cuda")
    }
    #[cfg(feature = "cuda")]
    let (device, driver, build) = match gpu {
        Some(device) => {
            let backend = CudaBackend::new(Options { device, ..Options::default() })?;
            (backend.describe(), Some(cuda::driver()), Some(cuda::BUILD))
        }
        None => (on_cpu()?, None, None),
    };
    #[cfg(not(feature = "cuda"))]
    let (device, driver, build) = (on_cpu()?, None, None);
    if !args.json {
        output::line(&device)?;
        output::line(format_args!(
            "{:<36} {:>7} {:>12} {:>6} {:>8}",
            "variant", "results", "values", "wrong", "time"
        ))?;
    }
    let reference = reference(settings)?;
    let mut variants = Vec::new();
    let done = |variant: Variant| {
        if !args.json {
            variant.print()?;
        }
        variants.push(variant);
        Ok(())
    };
    #[cfg(feature = "cuda")]
    match gpu {
        Some(device) => gpu_variants(device, Kernels::Fast, &reference, done)?,
        None => cpu_variants(&reference, done)?,
    }
    #[cfg(not(feature = "cuda"))]
    cpu_variants(&reference, done)?;
    let wrong: Vec<&str> = variants
        .iter()
        .filter(|variant| variant.faults().next().is_some())
        .map(|variant| variant.name.as_str())
        .collect();
    let failed = wrong.join("; ");
    if args.json {
        let version = env!("CARGO_PKG_VERSION");
        let all = All { version, device, driver, build, variants };
        output::line(serde_json::to_string_pretty(&all)?)?;
    }
    if !failed.is_empty() {
        bail!(
            "wrong numbers on this machine, in: {failed}; please report what this command prints"
        );
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(feature = "cuda")]
pub use first::test_once;

/// The test that runs by itself.
#[cfg(feature = "cuda")]
mod first {
    use std::fs;
    use std::hash::{DefaultHasher, Hash, Hasher};
    use std::path::PathBuf;

    use anyhow::{Result, bail};
    use serde::{Deserialize, Serialize};
    use zfnet::backend::cuda::{self, Kernels};
    use zfnet::disk::write_atomic;
    use zfnet::selftest::Settings;

    /// 0 leaves the test out, and a network in its place makes it one of that network's layers: for tests
    /// of this program, where a GPU is played by a CPU.
    const VARIABLE: &str = "ZFNET_SELFTEST";

    /// What has passed: of another build, GPU or driver nothing is known.
    #[derive(Serialize, Deserialize, Hash, PartialEq)]
    struct Passed {
        build: String,
        device: String,
        driver: String,
        plain: bool,
    }

    impl Passed {
        /// Where that is remembered, if the user has a folder for such things.
        fn file(&self) -> Option<PathBuf> {
            let mut hasher = DefaultHasher::new();
            self.hash(&mut hasher);
            let name = format!("selftest-{:016x}.json", hasher.finish());
            Some(dirs::cache_dir()?.join("zfnet").join(name))
        }

        fn is_known(&self) -> bool {
            let known = self.file().and_then(|file| fs::read(file).ok());
            known.and_then(|bytes| serde_json::from_slice::<Passed>(&bytes).ok()).as_ref()
                == Some(self)
        }

        fn remember(&self) -> Result<()> {
            let Some(file) = self.file() else { return Ok(()) };
            fs::create_dir_all(file.parent().expect("in a folder"))?;
            Ok(write_atomic(&file, &serde_json::to_vec_pretty(self)?)?)
        }
    }

    /// Tests the kernels that are to be used on a GPU, unless this build has passed on the same GPU with
    /// the same driver before.
    pub fn test_once(device: usize, name: String, kernels: Kernels) -> Result<()> {
        let passed = Passed {
            build: cuda::BUILD.into(),
            device: name,
            driver: cuda::driver(),
            plain: kernels == Kernels::Plain,
        };
        let variable = std::env::var(VARIABLE).unwrap_or_default();
        if variable == "0" || passed.is_known() {
            return Ok(());
        }
        let mut settings = Settings::default();
        if !variable.is_empty() {
            settings.networks = vec![variable];
        }
        tracing::info!(
            "testing this build's kernels on {}, once: see `zfnet selftest`",
            passed.device
        );
        let reference = super::reference(settings)?;
        let mut faults = Vec::new();
        super::gpu_variants(device, kernels, &reference, |variant| {
            faults.extend(variant.faults().map(|fault| format!("{}: {fault}", variant.name)));
            Ok(())
        })?;
        if let Some(first) = faults.first() {
            let others = match faults.len() - 1 {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            let plain = match kernels {
                Kernels::Fast => "; --kernels plain computes without the fast ones, slowly",
                Kernels::Plain => "",
            };
            bail!(
                "wrong numbers on {} with the driver {}: {first}{others}; please report what `zfnet \
                 selftest --device cuda:{device} --json` prints{plain}",
                passed.device,
                passed.driver
            );
        }
        if let Err(error) = passed.remember() {
            tracing::warn!("the kernels are right, but that cannot be remembered: {error:#}");
        }
        Ok(())
    }
}
