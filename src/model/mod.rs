//! The network: described as data, walked up for inference, walked down for training and, with
//! one rule changed, for the deconvnet.

mod architecture;
mod deconvnet;
mod input;
mod network;
#[doc(hidden)] // what users need of it is exported here; the rest is for the program and tests
pub mod weights;
mod windows;

pub use architecture::{Architecture, Input, Kind, Layer, LayerSpec, Pad};
pub use deconvnet::{Projector, Seed, strongest};
pub use input::{InputStage, Normaliser};
pub use network::{Descent, LrnDown, Network, Params, Purpose, Rule, Workspace};
pub use weights::{Bare, Model};
pub use zfnet_core::Preprocess;
