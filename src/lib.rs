//! Train ZFNet and see what a convolutional network has learnt.
//!
//! Zeiler and Fergus (2013) looked inside AlexNet with a *deconvnet* and then improved it. This
//! crate has both halves: networks that train, and the way back to the pixels.
//!
//! # The idea, in one example
//!
//! A network is a chain: *image, conv1, relu, conv2, relu, pool, conv3*. The forward pass
//! gives activations. To see what made one of them fire, set all others of its layer to zero and go
//! backward: unpool to where each maximum stood (the *switches*), keep only what is positive
//! (relu\*), and filter with the transposed filters, until pixels are reached.
//!
//! ```
//! use zfnet::backend::cpu::CpuBackend;
//! use zfnet::model::{Architecture, Network, Params, Preprocess, Projector, Rule, Seed, strongest};
//!
//! # fn main() -> zfnet::Result<()> {
//! let network = Network::new(Architecture::parse(r#"
//!     name = "example"
//!     classes = 2
//!     input = { size = 32, resize = 32, std = 64.0 }
//!     layers = [
//!       { type = "conv", name = "conv1", channels = 8, kernel = 5, stride = 2 },
//!       { type = "relu" },
//!       { type = "conv", name = "conv2", channels = 16, kernel = 3 },
//!       { type = "relu" },
//!       { type = "maxpool", name = "pool2", kernel = 3, stride = 2 },
//!       { type = "conv", name = "conv3", channels = 16, kernel = 3 },
//!       { type = "relu" },
//!       { type = "fc", name = "fc4" },
//!     ]
//!     [recipe]
//!     init = "he"
//! "#)?)?;
//! let backend = CpuBackend::new(None)?;
//! let params = Params::init(&backend, &network, 0)?;
//! let preprocess = Preprocess::paper([32; 2], 32, 64.0, vec![128.0; 3]);
//!
//! // A picture: a bright disc on a dark ground.
//! let disc = |i: usize| (i / 32).abs_diff(16).pow(2) + (i % 32).abs_diff(16).pow(2) < 80;
//! let pixels: Vec<u8> = (0..32 * 32).flat_map(|i| [if disc(i) { 230 } else { 40 }; 3]).collect();
//!
//! // Forward: every activation and every switch is kept.
//! let mut projector = Projector::new(&backend, &network, &params, &preprocess, 1, 1)?;
//! projector.look(&pixels, &preprocess.ten_crops(0)[4..5])?;
//!
//! // The strongest unit of conv3, and back to the pixels.
//! let conv3 = network.layer("conv3")?;
//! let unit = strongest(&projector.peaks(conv3)?, network.layers[conv3].output.w, 1)[0];
//! let mut projection = Vec::new();
//! projector.project(conv3, &[Seed { image: 0, unit }], Rule::DECONVNET, |_, pixels| {
//!     projection = pixels.to_vec(); // [32, 32, 3]
//!     Ok(())
//! })?;
//!
//! // Only what the unit sees can have made it fire.
//! let (y0, y1) = network.layers[conv3].field[0].of(unit.y as usize);
//! for (i, value) in projection.iter().enumerate() {
//!     let y = (i / (32 * 3)) as i64;
//!     assert!(*value == 0.0 || (y0..y1).contains(&y));
//! }
//! assert!(projection.iter().any(|value| *value != 0.0));
//! # Ok(())
//! # }
//! ```
//!
//! The "deconvolution" of the name is a **transposed convolution**, the adjoint of the layer's
//! convolution. It is *not* the inverse filter that signal processing calls deconvolution: passing
//! forward and backward does not give the image back.
//!
//! The very same backward pass with two bits of its [`model::Rule`] changed is backpropagation, and it
//! is what trains the network.
//!
//! # Modules, in the order in which data flows
//!
//! [`data`] reads images and orders them; [`backend`] runs the operations; [`model`] is the chain
//! with its forward and backward passes; [`train`] is the loop around it, with what it keeps on disk
//! ([`tensorboard`] shows it meanwhile); [`study`] looks into trained networks; [`picture`] and [`report`] show what it
//! finds, `explore` while a person asks; [`extract`] hands what layers make of images to other programs, [`export`] the
//! networks; [`mod@bench`] says how fast all that is, and [`selftest`] whether this machine computes it right.
//! [`shape`] is the arithmetic of sizes under all of them.
//!
//! [`report`] comes with the default feature `cli`, as the program does: without it there are neither pages
//! nor the libraries that draw them.

#![deny(clippy::print_stdout, clippy::print_stderr)] // `cli::output` writes, the library itself does not

pub mod backend;
pub mod bench;
#[cfg(feature = "cli")]
#[doc(hidden)] // for the program, and the Python package that brings it along
#[allow(rustdoc::invalid_html_tags)] // its comments are the program's help
pub mod cli;
#[cfg(feature = "cli")]
pub mod explore;
pub mod export;
pub mod extract;
pub mod import;
pub mod model;
pub mod picture;
pub mod ranks;
#[cfg(feature = "cli")]
pub mod report;
pub mod selftest;
pub mod study;
pub mod tensorboard;
pub mod train;

pub use zfnet_core::{BoxError, Error, Result, shape};
#[doc(hidden)] // for the program
pub use zfnet_core::{disk, human_bytes, memory, size_text};
pub use zfnet_data as data;
