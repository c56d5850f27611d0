//! The network: described as data, run forward for inference, backward for training and, with one
//! rule changed, for the deconvnet.

mod architecture;
mod deconvnet;
mod initial;
mod input;
mod layer;
mod network;
mod params;
mod plan;
mod rule;
mod watch;
#[doc(hidden)] // what users need of it is exported here; the rest is for the program and tests
pub mod weights;
mod window_buffers;
mod windows;
mod workspace;

pub use architecture::{Architecture, Input};
pub use deconvnet::{Projector, Seed, strongest};
pub use initial::Initial;
pub use input::{InputStage, Normaliser};
pub use layer::{
    Conv, ConvSpec, ConvTranspose, ConvTransposeSpec, Dropout, DropoutSpec, FcSpec, Kind, Layer,
    LayerSpec, LrnSpec, MaxPool, MaxPoolSpec, Pad, Relu, ReluSpec,
};
pub use network::Network;
pub use params::Params;
pub use plan::Purpose;
pub use rule::{LrnRule, Rule};
pub use watch::{LayerSigns, StepSigns};
pub use weights::Model;
pub use workspace::{BackwardOptions, BackwardTo, Workspace};
pub use zfnet_core::{Canvas, Fit, Interpolation, Preprocess};
