//! `zfnet selftest`: whether this machine computes right; and the same by itself, the first time that
//! a build meets a GPU and its driver.

use std::time::Instant;

use crate::backend::Backend;
use crate::backend::cpu::{CpuBackend, Products};
#[cfg(feature = "cuda")]
use crate::backend::{
    Precision,
    cuda::{self, CudaBackend, Gemm, Kernels, Options},
};
use crate::model::{Architecture, Network};
use crate::selftest::{Check, Reference, Settings};
use anyhow::{Result, bail};
use clap::Args;
use serde::Serialize;

use super::device::DeviceName;
use super::output;

#[derive(Args)]
pub struct Selftest {
    #[cfg_attr(feature = "cuda", doc = "What is tested: auto, cpu, cuda or cuda:N")]
    #[cfg_attr(not(feature = "cuda"), doc = "What is tested: auto or cpu")]
    #[arg(long, default_value = "auto")]
    device: DeviceName,
    /// Networks whose layers are tested, by name or TOML file; repeat it for several [default: zfnet,
    /// alexnet and zfnet-mini]
    #[arg(long, visible_alias = "model")]
    arch: Vec<String>,
    /// Images at a time
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    images: u16,
    /// Largest rows and columns of a layer's output, to which larger maps are cut; six times as much of
    /// first layers
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
    /// Why it could not be run to its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[cfg(feature = "cuda")]
    #[serde(skip)]
    out_of_memory: bool,
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
            "{layer}{}{by}: {} of {} values, the first at {index}: expected {expected:?}, found {found:?}",
            self.operation, self.wrong, self.values
        ))
    }
}

impl Variant {
    /// A variant that cannot even begin.
    #[cfg(feature = "cuda")]
    fn failed(name: String, error: &crate::Error) -> Self {
        let out_of_memory = is_out_of_memory(error);
        let error = Some(error.to_string());
        Variant { name, seconds: 0.0, results: Vec::new(), error, out_of_memory }
    }

    fn faults(&self) -> impl Iterator<Item = String> {
        let error = self.error.as_ref().map(|error| format!("could not be tested: {error}"));
        self.results.iter().filter_map(Compared::fault).chain(error)
    }

    fn passes(&self) -> bool {
        self.faults().next().is_none()
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
            output::line(format_args!("  {fault}"))?;
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
    build: Option<String>,
    variants: Vec<Variant>,
}

/// The operations on one backend, beside what they should be. What fails is a result as well.
fn variant<B: Backend>(
    name: String,
    backend: &B,
    exact: bool,
    reference: &Reference,
    kernels: impl Fn() -> Vec<&'static str>,
) -> Variant {
    let begun = Instant::now();
    let mut results: Vec<Compared> = Vec::new();
    kernels(); // begins the list
    let compared = reference.compare(backend, exact, |check| {
        let mut used = kernels();
        if let (true, Some(last)) = (used.is_empty(), results.last()) {
            used.clone_from(&last.kernels); // another result of the same call
        }
        results.push(Compared::new(check, used));
    });
    #[cfg(feature = "cuda")]
    let out_of_memory = compared.as_ref().is_err_and(is_out_of_memory);
    let error = compared.err().map(|error| match results.last() {
        Some(last) => format!("after {} {}: {error}", last.layer, last.operation),
        None => error.to_string(),
    });
    Variant {
        name,
        seconds: begun.elapsed().as_secs_f64(),
        results,
        error,
        #[cfg(feature = "cuda")]
        out_of_memory,
    }
}

#[cfg(feature = "cuda")]
fn is_out_of_memory(error: &crate::Error) -> bool {
    matches!(error, crate::Error::Memory { .. })
}

/// What all others are compared with: the CPU's loops without any instruction that not every processor
/// has.
fn reference(settings: Settings) -> Result<Reference> {
    Ok(Reference::new(&CpuBackend::portable(None)?.exact(), settings)?)
}

/// The instruction sets of this processor, with Winograd's method and without, and bf16 in all the ways that it
/// has.
fn cpu_variants(reference: &Reference, done: &mut impl FnMut(Variant) -> Result<()>) -> Result<()> {
    let levels = [CpuBackend::portable, CpuBackend::at_most_avx2, CpuBackend::new];
    let mut seen = Vec::new();
    for level in levels {
        let name = level(None)?.instructions();
        if seen.contains(&name) {
            continue;
        }
        seen.push(name);
        for exact in [true, false] {
            let backend =
                || level(None).map(|backend| if exact { backend.exact() } else { backend });
            let how = if exact { ", exact" } else { "" };
            done(variant(format!("f32, {name}{how}"), &backend()?, exact, reference, Vec::new))?;
            for products in [Products::F32, Products::Bf16Pairs, Products::Bf16Tiles] {
                // What the machine lacks is not computed with.
                let Ok(backend) = backend()?.bf16_by(products) else { continue };
                let name = format!("bf16, {}{how}", backend.instructions());
                done(variant(name, &backend, exact, reference, Vec::new))?;
            }
        }
    }
    Ok(())
}

/// What a GPU computes with: the precision, and what computes convolutions and fully connected layers.
#[cfg(feature = "cuda")]
fn variant_name(backend: &CudaBackend) -> String {
    let (precision, convolutions) = (backend.precision().name(), backend.convolutions());
    match (convolutions, backend.gemm()) {
        ("plain", _) if backend.precision() == Precision::Tf32 => "f32, plain".into(),
        ("plain", _) | (_, Gemm::Own) => format!("{precision}, {convolutions}"),
        (_, Gemm::CublasLt) => format!("{precision}, {convolutions}, cuBLASLt"),
    }
}

/// The precisions of a GPU, with its libraries and without, and the plain kernels.
#[cfg(feature = "cuda")]
fn gpu_variants(device: usize) -> Result<Vec<Options>> {
    let best = CudaBackend::new(Options { device, ..Options::default() })?;
    let precisions: &[Precision] = match best.precision() {
        Precision::F32 => &[Precision::F32],
        _ => &[Precision::F32, Precision::Tf32, Precision::Bf16],
    };
    let mut variants = Vec::new();
    let mut add = |precision, kernels, gemm| {
        variants.push(tested(device, precision, kernels, gemm));
    };
    for &precision in precisions {
        // The plain kernels of tf32 are those of f32.
        if precision != Precision::Tf32 {
            add(precision, Kernels::Plain, Gemm::Own);
        }
        let hopper = precision == Precision::Bf16 && best.convolutions() == "wgmma";
        // Elsewhere those of mma.sync are the fast ones.
        let fast: &[Kernels] =
            if hopper { &[Kernels::Fast, Kernels::Mma] } else { &[Kernels::Fast] };
        for &kernels in fast {
            add(precision, kernels, Gemm::Own);
            if cuda::has_cublaslt() {
                add(precision, kernels, Gemm::CublasLt);
            }
        }
    }
    Ok(variants)
}

/// How a variant is tested: in few blocks, since of operands as small as here they would else have an item each.
#[cfg(feature = "cuda")]
fn tested(device: usize, precision: Precision, kernels: Kernels, gemm: Gemm) -> Options {
    Options { device, precision: Some(precision), gemm: Some(gemm), kernels, blocks: Some(3) }
}

#[cfg(feature = "cuda")]
fn gpu_variant(options: Options, reference: &Reference) -> Variant {
    match CudaBackend::new(options) {
        Ok(backend) => {
            let name = variant_name(&backend);
            variant(name, &backend, true, reference, || backend.kernels_used())
        }
        Err(error) => {
            let precision = options.precision.map_or("", Precision::name);
            let name = format!("{precision}, {:?} kernels", options.kernels).to_lowercase();
            Variant::failed(name, &error)
        }
    }
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
    for name in &settings.networks {
        Network::new(Architecture::find(name)?)?;
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
            (backend.describe(), Some(cuda::driver()), Some(cuda::build()))
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
    let mut done = |variant: Variant| {
        if !args.json {
            variant.print()?;
        }
        variants.push(variant);
        Ok(())
    };
    #[cfg(feature = "cuda")]
    match gpu {
        Some(device) => {
            for options in gpu_variants(device)? {
                done(gpu_variant(options, &reference))?;
            }
        }
        None => cpu_variants(&reference, &mut done)?,
    }
    #[cfg(not(feature = "cuda"))]
    cpu_variants(&reference, &mut done)?;
    let wrong: Vec<&str> = variants
        .iter()
        .filter(|variant| !variant.passes())
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
            "this machine does not compute right, in: {failed}; please report what this command prints"
        );
    }
    Ok(ExitCode::SUCCESS)
}

use super::ExitCode;
#[cfg(feature = "cuda")]
pub use first::test_once;

/// The test that runs by itself.
#[cfg(feature = "cuda")]
mod first {
    use std::fs;
    use std::hash::{DefaultHasher, Hash, Hasher};
    use std::path::PathBuf;

    use crate::backend::Backend;
    use crate::backend::cuda::{self, CudaBackend, Gemm, Kernels, Options};
    use crate::disk::write_atomic;
    use crate::model::Architecture;
    use crate::selftest::Settings;
    use anyhow::{Context, Result, bail};
    use serde::{Deserialize, Serialize};

    use super::{gpu_variant, tested, variant_name};

    /// 0 leaves the test out, and a network in its place makes it one of that network's layers: for tests
    /// of this program, where a GPU is played by a CPU.
    const VARIABLE: &str = "ZFNET_SELFTEST";

    /// What was tested: of another build, GPU, library, driver or network nothing is known.
    #[derive(Serialize, Deserialize, Hash, PartialEq)]
    struct Subject {
        build: String,
        /// The GPU, and cuBLASLt if there is one.
        device: String,
        driver: String,
        networks: Vec<String>,
    }

    /// What is remembered of it.
    #[derive(Serialize, Deserialize)]
    struct Record {
        subject: Subject,
        /// Variants that passed.
        passed: Vec<String>,
    }

    /// A network's description: a file may have changed since.
    fn described(name: &str) -> Result<String> {
        Ok(format!("{:?}", Architecture::find(name)?))
    }

    impl Subject {
        /// Where that is remembered, if the user has a folder for such things.
        fn file(&self) -> Option<PathBuf> {
            let mut hasher = DefaultHasher::new();
            self.hash(&mut hasher);
            let name = format!("selftest-{:016x}.json", hasher.finish());
            Some(dirs::cache_dir()?.join("zfnet").join(name))
        }

        /// The variants that are known to pass.
        fn passed(&self) -> Vec<String> {
            let known = self.file().and_then(|file| fs::read(file).ok());
            let record = known.and_then(|bytes| serde_json::from_slice::<Record>(&bytes).ok());
            record
                .filter(|record| record.subject == *self)
                .map_or(Vec::new(), |record| record.passed)
        }
    }

    impl Record {
        fn write(&self) -> Result<()> {
            let Some(file) = self.subject.file() else { return Ok(()) };
            let folder = file.parent().expect("in a folder");
            fs::create_dir_all(folder)
                .with_context(|| format!("cannot make the folder {}", folder.display()))?;
            Ok(write_atomic(&file, &serde_json::to_vec_pretty(self)?)?)
        }
    }

    /// Tests a GPU, unless what is to be used of it has passed with this build and driver before.
    pub fn test_once(device: usize, backend: &CudaBackend, kernels: Kernels) -> Result<()> {
        let variable = std::env::var(VARIABLE).unwrap_or_default();
        if variable == "0" {
            return Ok(());
        }
        let mut settings = Settings::default();
        if !variable.is_empty() {
            settings.networks = vec![variable];
        }
        let best = CudaBackend::new(Options { device, ..Options::default() })?;
        let subject = Subject {
            build: cuda::build(),
            device: best.describe(),
            driver: cuda::driver(),
            networks: settings
                .networks
                .iter()
                .map(|name| described(name))
                .collect::<Result<_>>()?,
        };
        drop(best);
        let wanted = variant_name(backend);
        let mut passed = subject.passed();
        if passed.contains(&wanted) {
            return Ok(());
        }
        let (gpu, driver) = (backend.gpu(), subject.driver.clone());
        tracing::info!("testing this build's kernels on {gpu}, once: see `zfnet selftest`");
        let reference = super::reference(settings)?;
        let options = |kernels, gemm| tested(device, backend.precision(), kernels, gemm);
        let variant = gpu_variant(options(kernels, backend.gemm()), &reference);
        if variant.out_of_memory && variant.results.iter().all(|result| result.wrong == 0) {
            let error = variant.error.unwrap_or_default();
            tracing::warn!("not tested, for want of memory on the GPU: {error}");
            return Ok(());
        }
        if variant.passes() {
            passed.push(wanted);
            if let Err(error) = (Record { subject, passed }).write() {
                tracing::warn!("that the test has passed cannot be remembered: {error:#}");
            }
            return Ok(());
        }
        // What else may be used, by the flag that asks for it.
        let others = [
            (kernels, Gemm::Own, "--gemm own"),
            (Kernels::Mma, backend.gemm(), "--kernels mma"),
            (Kernels::Plain, Gemm::Own, "--kernels plain, which is slow,"),
        ];
        let instead = others.into_iter().find_map(|(kernels, gemm, flag)| {
            let other = gpu_variant(options(kernels, gemm), &reference);
            (other.name != wanted && other.passes()).then_some(flag)
        });
        let faults: Vec<String> = variant.faults().collect();
        let Some(first) = faults.first() else { return Ok(()) };
        let others = match faults.len() - 1 {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let instead = instead.map_or(String::new(), |flag| format!("; {flag} computes right"));
        bail!(
            "wrong numbers on {gpu} with the driver {driver}, in {wanted}: {first}{others}; please report what `zfnet \
             selftest --device cuda:{device} --json` prints{instead}"
        );
    }
}
