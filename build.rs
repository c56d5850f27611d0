//! Tells the tests which instructions this machine has. With the feature `cuda`: compiles every
//! `kernels/*.cu` to a fatbin that is embedded in the library, which needs nvcc, and neither a GPU nor
//! a driver nor any CUDA library.
//!
//! nvcc is looked for in `$NVCC`, `$CUDA_HOME/bin`, `$CUDA_PATH/bin`, the `PATH` and
//! `/usr/local/cuda/bin`. `$ZFNET_CUDA_ARCH` names other targets than the usual ones, as in
//! `80,90a,120`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio, exit};
use std::{env, fs};

/// The oldest compiler that knows all targets: major and minor version.
const OLDEST: (u32, u32) = (12, 8);
/// Turing, Ampere (and Ada), Hopper. What is newer compiles the embedded PTX when it loads it.
const TARGETS: &str = "75,80,90a";
/// Kernels on tensor cores (`mma.sync` on bf16 and TF32, `cp.async`) need Ampere.
const TENSOR: u32 = 80;
/// Those of `wgmma` and TMA are for Hopper alone.
const HOPPER: &str = "90a";

/// What the kernels of a file need of a GPU: `Needs` of src/backend/cuda/device.rs.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Needs {
    Nothing,
    TensorCores,
    Hopper,
}

impl Needs {
    /// By the file's name.
    fn of(source: &Path) -> Self {
        match source.to_string_lossy() {
            name if name.contains("hopper") => Needs::Hopper,
            name if name.contains("tensor") => Needs::TensorCores,
            _ => Needs::Nothing,
        }
    }
}

fn main() {
    for variable in ["NVCC", "CUDA_HOME", "CUDA_PATH", "NVCC_CCBIN", "ZFNET_CUDA_ARCH"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=kernels");
    detect_instructions();
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    if env::var_os("DOCS_RS").is_some() {
        return write_nothing();
    }
    let nvcc = find_nvcc().unwrap_or_else(|| {
        fail(
            "the feature `cuda` needs CUDA's compiler, nvcc 12.8 or later: install the CUDA \
             toolkit, or run scripts/install-nvcc.sh, and set CUDA_HOME (or NVCC to the program)",
        )
    });
    let version = version_of(&nvcc);
    if version < OLDEST {
        fail(&format!(
            "{} is nvcc {}.{}: expected {}.{} or later",
            nvcc.display(),
            version.0,
            version.1,
            OLDEST.0,
            OLDEST.1
        ));
    }
    println!("cargo::rustc-env=ZFNET_NVCC_MAJOR={}", version.0);
    println!("cargo::rustc-env=ZFNET_NVCC_MINOR={}", version.1);
    let targets = env::var("ZFNET_CUDA_ARCH").unwrap_or_else(|_| TARGETS.into());
    println!("cargo::rustc-env=ZFNET_CUDA_TARGETS={targets}");

    let out = PathBuf::from(env::var_os("OUT_DIR").expect("set by cargo"));
    let mut sources: Vec<PathBuf> = fs::read_dir("kernels")
        .expect("kernels/ is part of the crate")
        .map(|entry| entry.expect("a readable folder").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "cu"))
        .collect();
    sources.sort();
    sources.retain(|source| !architectures(&targets, Needs::of(source)).is_empty());
    if sources.is_empty() {
        fail(&format!("ZFNET_CUDA_ARCH: expected a list like {TARGETS}, found {targets:?}"));
    }
    // All at once: each is one process of a few seconds to a minute.
    let compilations: Vec<_> = sources
        .iter()
        .map(|source| {
            let name = source.file_stem().and_then(|stem| stem.to_str()).expect("a plain name");
            let fatbin = out.join(format!("{name}.fatbin"));
            let mut command = Command::new(&nvcc);
            command.args(["-fatbin", "-std=c++17", "-O3", "-lineinfo"]);
            command.args(architectures(&targets, Needs::of(source)));
            command.arg("-Xptxas=-v"); // names the kernels
            command.arg("-o").arg(&fatbin).arg(source).stderr(Stdio::piped());
            let child = command
                .spawn()
                .unwrap_or_else(|error| fail(&format!("cannot run {}: {error}", nvcc.display())));
            (source, fatbin, child)
        })
        .collect();
    let mut list = String::from("pub static MODULES: &[Module] = &[\n");
    for (source, fatbin, child) in compilations {
        let output = child.wait_with_output().expect("a child's output can be read");
        let messages = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            let shown = messages.lines().filter(|line| !line.starts_with("ptxas info"));
            eprintln!("{}", shown.collect::<Vec<_>>().join("\n"));
            fail(&format!("nvcc failed on {}: its message is above", source.display()));
        }
        let kernels = kernels_named(&messages);
        if kernels.is_empty() {
            fail(&format!("{}: nvcc -Xptxas=-v has named no kernel", source.display()));
        }
        let needs = Needs::of(source);
        list += &format!(
            "    Module {{ needs: Needs::{needs:?}, image: &Aligned(*include_bytes!({fatbin:?})), \
             kernels: &{kernels:?} }},\n"
        );
    }
    list += "];\n";
    fs::write(out.join("modules.rs"), list).expect("OUT_DIR can be written");
}

/// From ptxas's lines "Compiling entry function 'NAME' for 'sm_90a'".
fn kernels_named(messages: &str) -> Vec<&str> {
    let entries = messages.split("Compiling entry function '").skip(1);
    let mut names: Vec<&str> = entries.filter_map(|rest| rest.split('\'').next()).collect();
    names.sort();
    names.dedup(); // one for each target
    names
}

/// Sets `has_avx2`, `has_avx512` and `has_avx512_bf16` as `zfnet_cpu::isa::Isa` finds them. Only tests
/// read these: one that needs what is not there is then counted as ignored. The library asks the
/// machine that it runs on.
fn detect_instructions() {
    println!("cargo::rustc-check-cfg=cfg(has_avx2, has_avx512, has_avx512_bf16)");
    #[cfg(target_arch = "x86_64")]
    if env::var("TARGET") == env::var("HOST") {
        let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        let avx512 = avx2
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        let bf16 = avx512 && is_x86_feature_detected!("avx512bf16");
        let found = [("has_avx2", avx2), ("has_avx512", avx512), ("has_avx512_bf16", bf16)];
        for (name, _) in found.iter().filter(|(_, found)| *found) {
            println!("cargo::rustc-cfg={name}");
        }
    }
}

/// In place of kernels, where there are only docs to be made.
fn write_nothing() {
    for variable in ["ZFNET_NVCC_MAJOR", "ZFNET_NVCC_MINOR", "ZFNET_CUDA_TARGETS"] {
        println!("cargo::rustc-env={variable}=0");
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("set by cargo"));
    fs::write(out.join("modules.rs"), "pub static MODULES: &[Module] = &[];\n")
        .expect("OUT_DIR can be written");
}

/// Machine code for each target that has what is needed, and PTX of the oldest for whatever is newer than all of them.
/// Nothing if no target has.
fn architectures(targets: &str, needs: Needs) -> Vec<String> {
    let number = |target: &str| target.trim_end_matches(|c: char| c.is_alphabetic()).parse::<u32>();
    let mut options = Vec::new();
    let mut oldest: Option<u32> = None;
    for target in targets.split(',').map(str::trim) {
        let Ok(number) = number(target) else {
            fail(&format!(
                "ZFNET_CUDA_ARCH: expected a list like {TARGETS}, found {target:?} in {targets:?}"
            ));
        };
        let has = match needs {
            Needs::Nothing => true,
            Needs::TensorCores => number >= TENSOR,
            Needs::Hopper => target == HOPPER,
        };
        if !has {
            continue;
        }
        options.push(format!("-gencode=arch=compute_{target},code=sm_{target}"));
        // PTX for `90a` would run on nothing else.
        if !target.ends_with('a') {
            oldest = Some(oldest.map_or(number, |oldest| oldest.min(number)));
        }
    }
    options.extend(oldest.map(|ptx| format!("-gencode=arch=compute_{ptx},code=compute_{ptx}")));
    options
}

/// What was named is used or refused, never passed over for another.
fn find_nvcc() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let on_path = |name: &Path| {
        env::split_paths(&path).map(|folder| folder.join(name)).find(|place| place.is_file())
    };
    let named = |variable: &str, nvcc: PathBuf| {
        let found = if nvcc.components().count() == 1 { on_path(&nvcc) } else { Some(nvcc) };
        found.filter(|place| place.is_file()).unwrap_or_else(|| {
            fail(&format!("{variable} is set, but there is no nvcc where it points"))
        })
    };
    if let Some(nvcc) = env::var_os("NVCC") {
        return Some(named("NVCC", nvcc.into()));
    }
    for variable in ["CUDA_HOME", "CUDA_PATH"] {
        if let Some(home) = env::var_os(variable) {
            return Some(named(variable, Path::new(&home).join("bin/nvcc")));
        }
    }
    on_path(Path::new("nvcc")).or_else(|| {
        let usual = PathBuf::from("/usr/local/cuda/bin/nvcc");
        usual.is_file().then_some(usual)
    })
}

/// From the line "Cuda compilation tools, release 13.0, V13.0.88".
fn version_of(nvcc: &Path) -> (u32, u32) {
    let output = Command::new(nvcc).arg("--version").output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let release = text.unwrap_or_default();
    let release = release.split("release ").nth(1).and_then(|rest| rest.split(',').next());
    let mut numbers = release.unwrap_or_default().split('.').map(|part| part.parse().ok());
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(major), Some(minor)) => (major, minor),
        _ => fail(&format!("{} --version names no release: is it nvcc?", nvcc.display())),
    }
}

fn fail(message: &str) -> ! {
    println!("cargo::error={message}");
    exit(1)
}
