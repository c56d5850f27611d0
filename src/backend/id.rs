//! Which backend computes, as plain data: what is stored beside results, and compared.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Precision;

/// A backend, as far as the bits of its results depend on it. The number of threads is no part of it:
/// results are the same for any.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "device", rename_all = "lowercase")]
#[non_exhaustive]
pub enum BackendId {
    /// The processor.
    Cpu {
        /// The instruction set in use: "portable", "AVX2" or "AVX-512".
        instructions: String,
        /// How activations are stored and products made.
        precision: Precision,
        /// Whether convolutions do without Winograd's method.
        exact: bool,
    },
    /// An NVIDIA GPU.
    Cuda {
        /// The driver's name for it.
        name: String,
        /// Compute capability: major, minor.
        capability: (i32, i32),
        /// How activations are stored and products made.
        precision: Precision,
        /// Version of the cuBLASLt that computes fully connected layers; `None` where our own kernels
        /// do. Sums depend on it, and so do the last bits of what is trained.
        cublaslt: Option<usize>,
        /// What convolutions are computed by: "wgmma", "mma.sync", "tiles" or "plain"; empty in what earlier
        /// versions wrote.
        #[serde(default)]
        convolutions: String,
    },
    /// One that another version of the program wrote and this one does not know.
    Other {
        /// As it was written.
        text: String,
    },
}

impl BackendId {
    /// The text of `Display`, with the number of threads of a CPU.
    pub(super) fn with_threads(&self, threads: usize) -> String {
        self.text(Some(threads))
    }

    fn text(&self, threads: Option<usize>) -> String {
        match self {
            BackendId::Cpu { instructions, precision, exact } => {
                let mut text = String::from("CPU, ");
                if let Some(threads) = threads {
                    text += &format!("{threads} threads, ");
                }
                text += instructions;
                if *precision != Precision::F32 {
                    text += &format!(", {}", precision.name());
                }
                if *exact {
                    text += ", exact";
                }
                text
            }
            BackendId::Cuda {
                name,
                capability: (major, minor),
                precision,
                cublaslt,
                convolutions,
            } => {
                let gemm = match cublaslt {
                    Some(version) => format!("cublaslt {version}"),
                    None => "own gemm".into(),
                };
                let mut text = format!("CUDA, {name} (sm_{major}{minor}) {}", precision.name());
                for part in [convolutions, &gemm] {
                    if !part.is_empty() {
                        text += &format!(" {part}");
                    }
                }
                text
            }
            BackendId::Other { text } => text.clone(),
        }
    }
}

impl fmt::Display for BackendId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text(None))
    }
}
