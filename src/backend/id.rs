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
    /// Whether `now` computes the same bits as this one, which a checkpoint names, as far as is known.
    pub(crate) fn computes_as(&self, now: &BackendId) -> bool {
        let mut then = self.clone();
        if let (BackendId::Cuda { convolutions, .. }, BackendId::Cuda { convolutions: of_now, .. }) =
            (&mut then, now)
            && convolutions.is_empty()
            && of_now != "wgmma"
        {
            // Of a version that did not say, and had no `wgmma`.
            convolutions.clone_from(of_now);
        }
        then == *now
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unnamed_convolution_is_any_but_wgmma() {
        let by = |convolutions: &str| BackendId::Cuda {
            name: "H100".into(),
            capability: (9, 0),
            precision: Precision::Bf16,
            cublaslt: None,
            convolutions: convolutions.into(),
        };
        let same = |then: &str, now: &str| by(then).computes_as(&by(now));
        assert!(same("wgmma", "wgmma") && same("", "mma.sync") && same("", "plain"));
        assert!(!same("", "wgmma") && !same("mma.sync", "wgmma") && !same("wgmma", "plain"));
    }
}
