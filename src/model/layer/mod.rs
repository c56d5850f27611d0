//! The layers of a network, one file each: what a description says of it, what is checked, its sizes
//! and receptive field, its forward pass, and its backward pass under a [`Rule`].
//!
//! A new kind of layer is a file here, with a [`Spec`] and an [`Operation`], and a line in each of
//! [`LayerSpec`], [`Kind`] and the two macros below them.

mod conv;
mod conv_pool;
mod conv_transpose;
mod dropout;
mod fc;
mod lrn;
mod pool;
mod relu;

use serde::{Deserialize, Serialize};

pub use conv::{Conv, ConvSpec};
pub(super) use conv_pool::ConvPool;
pub use conv_transpose::{ConvTranspose, ConvTransposeSpec};
pub use dropout::{Dropout, DropoutSpec};
pub use fc::FcSpec;
pub use lrn::LrnSpec;
pub use pool::{MaxPool, MaxPoolSpec};
pub use relu::{Relu, ReluSpec};

use super::rule::Rule;
use crate::backend::{Backend, Lrn, Param, Tensor};
use crate::shape::{ConvDims, Field, PoolDims, Rounding, Shape, Windows, windows};
use crate::{Error, Result};
use zfnet_core::{Init, Recipe};

/// Largest kernel, stride, number of groups, channels, outputs or classes: products of four of
/// them stay within 64 bits, and each within 32.
pub(super) const MAX_NUMBER: usize = u16::MAX as usize;

/// One primitive layer of the chain, as a description has it. Without a name it is called by its
/// type and the number of the last layer with weights: `relu1`, `pool1`, `norm1`, `drop6`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
#[non_exhaustive]
pub enum LayerSpec {
    /// Convolution with bias.
    Conv(ConvSpec),
    /// Transposed convolution without bias.
    #[serde(rename = "conv_transpose")]
    ConvTranspose(ConvTransposeSpec),
    /// Fully connected layer with bias.
    Fc(FcSpec),
    /// max(x, 0).
    Relu(ReluSpec),
    /// Max pooling with switches.
    MaxPool(MaxPoolSpec),
    /// Local response normalisation across channels.
    Lrn(LrnSpec),
    /// Dropout while training.
    Dropout(DropoutSpec),
}

/// What a layer does, with its sizes for one image.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Kind {
    /// Spatial convolution.
    Conv(Conv),
    /// Transposed convolution.
    ConvTranspose(ConvTranspose),
    /// Fully connected: a convolution whose filter covers its input.
    FullyConnected(Conv),
    /// max(x, 0).
    Relu(Relu),
    /// Max pooling.
    MaxPool(MaxPool),
    /// Local response normalisation.
    Lrn(Lrn),
    /// Dropout while training.
    Dropout(Dropout),
}

/// Evaluates an expression of whichever [`Spec`] a [`LayerSpec`] holds.
macro_rules! of_spec {
    ($layer:expr, $spec:ident => $value:expr) => {
        match $layer {
            LayerSpec::Conv($spec) => $value,
            LayerSpec::ConvTranspose($spec) => $value,
            LayerSpec::Fc($spec) => $value,
            LayerSpec::Relu($spec) => $value,
            LayerSpec::MaxPool($spec) => $value,
            LayerSpec::Lrn($spec) => $value,
            LayerSpec::Dropout($spec) => $value,
        }
    };
}

/// Evaluates an expression of whichever [`Operation`] a [`Kind`] holds.
macro_rules! of_kind {
    ($kind:expr, $operation:ident => $value:expr) => {
        match $kind {
            Kind::Conv($operation) => $value,
            Kind::ConvTranspose($operation) => $value,
            Kind::FullyConnected($operation) => $value,
            Kind::Relu($operation) => $value,
            Kind::MaxPool($operation) => $value,
            Kind::Lrn($operation) => $value,
            Kind::Dropout($operation) => $value,
        }
    };
}

/// A layer that fits into its network.
#[derive(Clone, Debug)]
pub struct Layer {
    /// Its name.
    pub name: String,
    /// What it does.
    pub kind: Kind,
    /// Shape of its input for one image.
    pub input: Shape,
    /// Shape of its output for one image.
    pub output: Shape,
    /// What its units see, downwards and to the right. From a transposed convolution on it is what
    /// they see at most: neighbours there need not see equally much.
    pub field: [Field; 2],
    /// Standard deviation of its initial weights; `None` to follow the recipe.
    pub init_std: Option<f32>,
}

impl Layer {
    /// Standard deviation of its initial weights. Their mean is 0.
    pub fn init_std(&self, recipe: &Recipe) -> f64 {
        match (self.init_std, recipe.init) {
            (Some(std), _) => f64::from(std),
            (None, Init::Normal) => f64::from(recipe.init_std),
            (None, Init::He) => (2.0 / self.fan_in()).sqrt(),
        }
    }

    /// Sizes of the convolution this layer is, if it has weights; of a transposed convolution those
    /// of the convolution from its output to its input.
    pub fn convolution(&self) -> Option<&ConvDims> {
        of_kind!(&self.kind, operation => operation.convolution())
    }

    /// Whether biases are added to its output.
    pub fn has_bias(&self) -> bool {
        of_kind!(&self.kind, operation => operation.has_bias())
    }

    /// Limit of the RMS of each of its filters; 0 for none.
    pub fn rms_limit(&self) -> f32 {
        of_kind!(&self.kind, operation => operation.rms_limit())
    }

    /// Products that one value of its output is the sum of, away from the edges; on average, for a
    /// transposed convolution with a stride. 0 if it has no weights.
    pub fn fan_in(&self) -> f64 {
        of_kind!(&self.kind, operation => operation.fan_in())
    }

    /// Sizes of the max pooling this layer is, if it is one.
    pub fn pooling(&self) -> Option<&PoolDims> {
        of_kind!(&self.kind, operation => operation.pooling())
    }

    /// Number of weights and biases.
    pub fn parameters(&self) -> usize {
        let biases = if self.has_bias() { self.output.c } else { 0 };
        self.convolution().map_or(0, |dims| dims.filter().len() + biases)
    }

    /// Multiply-adds for one image, forward.
    pub fn multiply_adds(&self) -> u64 {
        self.convolution().map_or(0, ConvDims::multiply_adds)
    }
}

// ---- descriptions ----

/// Padding: one number for all four sides, or `[top, bottom, left, right]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a pad: a number, or [top, bottom, left, right]")]
pub enum Pad {
    /// The same on all sides.
    All(usize),
    /// Top, bottom, left, right.
    Sides([usize; 4]),
}

impl Default for Pad {
    fn default() -> Self {
        Pad::All(0)
    }
}

impl Pad {
    /// (before, after) for rows, then for columns.
    fn axes(self) -> [(usize, usize); 2] {
        match self {
            Pad::All(pad) => [(pad, pad); 2],
            Pad::Sides([top, bottom, left, right]) => [(top, bottom), (left, right)],
        }
    }

    /// Rows and columns before the input.
    fn before(self) -> [usize; 2] {
        self.axes().map(|(before, _)| before)
    }
}

/// What a description says of one layer.
trait Spec {
    /// What a layer without a name is called by, before its number.
    const PREFIX: &'static str;
    /// Whether the layer has weights.
    const HAS_WEIGHTS: bool = false;

    /// Its name, if it has one.
    fn name(&self) -> Option<&str>;

    /// Gives it a name of its own.
    fn rename(&mut self, name: &str);

    /// Standard deviation of its initial weights, if it does not leave that to the recipe.
    fn init_std(&self) -> Option<f32> {
        None
    }

    /// Leaves its initial weights to the recipe.
    fn clear_init_std(&mut self) {}

    /// Checks the layer and works out its sizes.
    ///
    /// # Errors
    /// If it does not fit: its name, what was expected, what was found.
    fn plan(&self, place: &Place<'_>) -> Result<Planned>;
}

/// Where in a network a layer is to fit.
pub(super) struct Place<'a> {
    /// The layer's name.
    pub name: &'a str,
    /// Shape of its input for one image.
    pub input: Shape,
    /// What the units of its input see.
    pub field: [Field; 2],
    /// Rows and columns of the network's input.
    pub size: [usize; 2],
    /// The number of classes, if this is the layer that gives them.
    pub classes: Option<usize>,
    /// The network's recipe.
    pub recipe: &'a Recipe,
}

/// A layer that fits.
pub(super) struct Planned {
    pub kind: Kind,
    /// Shape of its output for one image.
    pub output: Shape,
    /// What the units of its output see.
    pub field: [Field; 2],
}

impl Place<'_> {
    /// An error that names the layer.
    pub fn error(&self, message: impl std::fmt::Display) -> Error {
        Error::Network(format!("layer {}: {message}", self.name))
    }

    /// Refuses numbers that sizes could not be worked out with.
    fn check_numbers<const N: usize>(&self, numbers: [usize; N]) -> Result<()> {
        let largest = numbers.into_iter().max().unwrap_or(0);
        if largest > MAX_NUMBER {
            return Err(
                self.error(format!("expected no number above {MAX_NUMBER}, found {largest}"))
            );
        }
        Ok(())
    }

    /// Refuses groups that do not divide the channels.
    fn check_groups(&self, channels: usize, groups: usize) -> Result<()> {
        let divides = |count: usize| groups > 0 && count.is_multiple_of(groups);
        if channels > 0 && divides(self.input.c) && divides(channels) {
            return Ok(());
        }
        Err(self.error(format!(
            "expected groups that divide {} input and {channels} output channels, found {groups}",
            self.input.c
        )))
    }

    /// Number of windows along both axes.
    fn windows(
        &self,
        kernel: usize,
        stride: usize,
        pad: Pad,
        rounding: Rounding,
    ) -> Result<(usize, usize)> {
        let Shape { h, w, .. } = self.input;
        let [rows, columns] = pad.axes();
        let one = |input, (before, after)| {
            if before >= kernel || after >= kernel {
                return None;
            }
            windows(input, kernel, stride, before, after, rounding)
        };
        one(h, rows).zip(one(w, columns)).ok_or_else(|| {
            self.error(format!(
                "expected a kernel that fits into its input of {h}x{w}, a stride above 0 and a pad \
                 below the kernel, found kernel {kernel}, stride {stride}, pad {pad:?}"
            ))
        })
    }

    /// What units see that each see a window of the input.
    fn field_of_windows(&self, kernel: usize, stride: usize, pad: Pad) -> [Field; 2] {
        let [top, left] = pad.before();
        [self.field[0].through(kernel, stride, top), self.field[1].through(kernel, stride, left)]
    }

    /// A layer that leaves shape and field as they are.
    fn pointwise(&self, kind: Kind) -> Planned {
        Planned { kind, output: self.input, field: self.field }
    }
}

impl LayerSpec {
    /// Gives it a name of its own in place of what it has or would be called.
    pub fn rename(&mut self, name: &str) {
        of_spec!(self, spec => spec.rename(name));
    }

    /// Its name, where `number` layers with weights come before it or are it.
    pub(super) fn name(&self, number: usize) -> String {
        fn name<S: Spec>(spec: &S, number: usize) -> String {
            spec.name().map_or_else(|| format!("{}{number}", S::PREFIX), str::to_owned)
        }
        of_spec!(self, spec => name(spec, number))
    }

    /// Whether it has weights.
    pub(super) fn has_weights(&self) -> bool {
        fn has_weights<S: Spec>(_: &S) -> bool {
            S::HAS_WEIGHTS
        }
        of_spec!(self, spec => has_weights(spec))
    }

    /// See [`Spec::init_std`].
    pub(super) fn init_std(&self) -> Option<f32> {
        of_spec!(self, spec => spec.init_std())
    }

    /// Leaves its initial weights to the recipe, also if it says how they are to be drawn.
    pub fn clear_init_std(&mut self) {
        of_spec!(self, spec => spec.clear_init_std());
    }

    /// See [`Spec::plan`].
    pub(super) fn plan(&self, place: &Place<'_>) -> Result<Planned> {
        of_spec!(self, spec => spec.plan(place))
    }
}

fn one() -> usize {
    1
}

// ---- the two passes ----

/// What a layer computes. What it reads and writes beside its sizes is handed to it.
pub(super) trait Operation: Copy {
    /// See [`Layer::convolution`].
    fn convolution(&self) -> Option<&ConvDims> {
        None
    }

    /// See [`Layer::has_bias`].
    fn has_bias(&self) -> bool {
        false
    }

    /// See [`Layer::rms_limit`].
    fn rms_limit(&self) -> f32 {
        0.0
    }

    /// See [`Layer::fan_in`].
    fn fan_in(&self) -> f64 {
        self.convolution().map_or(0.0, |dims| dims.filter().per_image() as f64)
    }

    /// See [`Layer::pooling`].
    fn pooling(&self) -> Option<&PoolDims> {
        None
    }

    /// Computes `y` from `x`.
    fn forward<B: Backend>(&self, pass: Forward<'_, B>) -> Result<()>;

    /// Computes `dx` from `dy`, as the rule has it, and the gradients of the weights if they are
    /// asked for.
    fn backward<B: Backend>(&self, pass: Backward<'_, B>) -> Result<Output>;

    // What follows is for projections from single units, which compute no more of a map than
    // windows: see `model/windows.rs`.

    /// The windows of its input, a map of so many rows and columns, that windows of its output are
    /// made of; `None` if they would not all have one size.
    fn input_windows(&self, _map: [u32; 2], output: &Windows) -> Option<Windows> {
        Some(*output)
    }

    /// Becomes the same operation where there is no more of its output than windows of this size.
    fn shrink_to_windows(&mut self, _size: [u32; 2]) {}

    /// Whether [`Operation::backward`] reads the forward pass's `x` under a rule.
    fn reads_input(&self, _rule: &Rule) -> bool {
        false
    }
}

/// Operands of a forward pass through one layer.
pub(super) struct Forward<'a, B: Backend> {
    pub backend: &'a B,
    /// Output: `[n, ...]` of the layer's output.
    pub y: &'a mut Tensor<B>,
    /// Where a pooling notes its switches.
    pub switches: Option<&'a mut B::Bytes>,
    /// Input: `[n, ...]` of the layer's input.
    pub x: &'a Tensor<B>,
    /// Weights and bias.
    pub param: Option<&'a Param<B>>,
    /// Whether a relu follows that is to be computed at once.
    pub relu: bool,
    pub common: Common<'a, B>,
}

/// Operands of a backward pass through one layer.
pub(super) struct Backward<'a, B: Backend> {
    pub backend: &'a B,
    /// What leaves the layer at its input.
    pub dx: &'a mut Tensor<B>,
    /// What arrives at the layer's output.
    pub dy: &'a Tensor<B>,
    /// The forward pass's input.
    pub x: &'a Tensor<B>,
    /// The forward pass's switches, of a pooling.
    pub switches: Option<&'a B::Bytes>,
    /// For each sample of `dy` the forward sample it belongs to; its own by default.
    pub images: Option<&'a B::Indices>,
    pub rule: Rule,
    /// Weights and bias.
    pub param: Option<&'a Param<B>>,
    /// Gradients of the weights to be written, or added to with `accumulate`.
    pub gradient: Option<&'a mut Param<B>>,
    pub accumulate: bool,
    /// Whether `dx` is asked for.
    pub to_input: bool,
    /// Where sums go that would be a bias's gradient, of a layer that has none.
    pub no_bias: &'a mut Tensor<B>,
    pub common: Common<'a, B>,
}

/// What both passes take beside tensors.
pub(super) struct Common<'a, B: Backend> {
    /// Memory for operations.
    pub scratch: &'a mut B::Scratch,
    /// Seed and number of the step, for dropout.
    pub state: &'a B::State,
    /// Index of the layer, for dropout.
    pub layer: u32,
    /// Whether dropout drops.
    pub training: bool,
}

/// Where a backward pass has left its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Output {
    /// In `dx`.
    Dx,
    /// In `dy`: the layer changes nothing.
    Dy,
    /// Nowhere: only gradients were asked for.
    Nothing,
}

/// What a workspace runs as one: a layer, or the first layer together with its relu and pooling.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    Layer(Kind),
    ConvPool(ConvPool),
}

/// Evaluates an expression of whichever [`Operation`] a [`Step`] holds.
macro_rules! of_step {
    ($step:expr, $operation:ident => $value:expr) => {
        match $step {
            Step::Layer(kind) => of_kind!(kind, $operation => $value),
            Step::ConvPool($operation) => $value,
        }
    };
}

impl Step {
    pub fn forward<B: Backend>(&self, pass: Forward<'_, B>) -> Result<()> {
        of_step!(self, operation => operation.forward(pass))
    }

    pub fn backward<B: Backend>(&self, pass: Backward<'_, B>) -> Result<Output> {
        of_step!(self, operation => operation.backward(pass))
    }

    pub fn convolution(&self) -> Option<&ConvDims> {
        of_step!(self, operation => operation.convolution())
    }

    pub fn pooling(&self) -> Option<&PoolDims> {
        of_step!(self, operation => operation.pooling())
    }

    pub fn input_windows(&self, map: [u32; 2], output: &Windows) -> Option<Windows> {
        of_step!(self, operation => operation.input_windows(map, output))
    }

    /// The same where there is no more of its output than windows of this size.
    pub fn of_windows(mut self, size: [u32; 2]) -> Self {
        of_step!(&mut self, operation => operation.shrink_to_windows(size));
        self
    }

    pub fn reads_input(&self, rule: &Rule) -> bool {
        of_step!(self, operation => operation.reads_input(rule))
    }
}
