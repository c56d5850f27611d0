//! The operations of every backend beside naive twins in f64, and networks made of them: values,
//! adjoints, gradients, projections, evaluation; the same bits again for any number of threads.

#[macro_use]
#[path = "../common/mod.rs"]
mod common;

mod adjoints;
#[cfg(feature = "cuda")]
mod cuda;
mod deconvnet;
mod determinism;
mod evaluation;
mod gradients;
#[cfg(feature = "cuda")]
mod nccl;
mod networks;
mod operations;
mod ranks;
mod sparse;
mod winograd;
