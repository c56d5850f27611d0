//! A network as data: the TOML that describes it, and the checked list of layers built from it.
//!
//! ```toml
//! name = "tiny"
//! classes = 10
//! input = { size = 32, resize = 36 }
//! layers = [
//!   { type = "conv", name = "conv1", channels = 16, kernel = 5, stride = 2 },
//!   { type = "relu" },
//!   { type = "maxpool", name = "pool1", kernel = 3, stride = 2 },
//!   { type = "fc", name = "fc2" },
//! ]
//! [recipe]
//! learning_rate = 0.01
//! ```

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::backend::{Lrn, MAX_LRN_SIZE};
use crate::shape::{ConvDims, Field, PoolDims, Rounding, Shape, transposed, windows};
use crate::{Error, Result};
use zfnet_core::Recipe;

/// The networks that are built in: their names and descriptions.
const PRESETS: [&str; 5] = [
    include_str!("presets/zfnet.toml"),
    include_str!("presets/zfnet-wide.toml"),
    include_str!("presets/alexnet.toml"),
    include_str!("presets/zfnet-mini.toml"),
    include_str!("presets/alexnet-mini.toml"),
];

/// Largest number of values of one image in any layer, and of parameters in all: a guard against
/// descriptions that no machine can hold.
const MAX_VALUES: usize = 1 << 31;
/// Largest kernel, stride, number of groups, channels, outputs or classes: products of four of
/// them stay within 64 bits, and each within 32.
const MAX_NUMBER: usize = u16::MAX as usize;

/// What a network is, and how it is trained, as a user writes it down.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Architecture {
    /// Its name.
    pub name: String,
    /// A sentence about it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// Number of classes; the data's number takes its place when training starts. 0 for a network
    /// that gives maps instead: any layer may be its last, and it is run and trained by the library's
    /// caller, who knows what the maps are to be.
    pub classes: usize,
    /// What the network sees.
    pub input: Input,
    /// The chain, from pixels to classes.
    pub layers: Vec<LayerSpec>,
    /// How to train it.
    #[serde(default)]
    pub recipe: Recipe,
}

/// What the network sees of an image.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// Rows and columns of a crop.
    pub size: usize,
    /// Rows and columns of the square that crops are cut from: an image's shortest side is
    /// resized to this, and its centre taken.
    pub resize: usize,
    /// Values are divided by this after the mean is taken off (1 in the paper).
    #[serde(default = "one_f32")]
    pub std: f32,
}

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
}

/// One primitive layer of the chain. Without a name it is called by its type and the number of
/// the last convolutional or fully connected layer: `relu1`, `pool1`, `norm1`, `drop6`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
#[allow(missing_docs)] // the fields are the field's own terms
pub enum LayerSpec {
    /// Convolution with bias.
    Conv {
        name: String,
        channels: usize,
        kernel: usize,
        #[serde(default = "one_usize")]
        stride: usize,
        #[serde(default)]
        pad: Pad,
        #[serde(default)]
        rounding: Rounding,
        #[serde(default = "one_usize")]
        groups: usize,
        /// Limit of each filter's RMS instead of the recipe's; 0 for none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rms_limit: Option<f32>,
    },
    /// Transposed convolution without bias, which enlarges its maps: PyTorch's `ConvTranspose2d`, with
    /// `(in - 1) stride - pads + kernel` rows and columns.
    #[serde(rename = "conv_transpose")]
    ConvTranspose {
        name: String,
        channels: usize,
        kernel: usize,
        #[serde(default = "one_usize")]
        stride: usize,
        #[serde(default)]
        pad: Pad,
        #[serde(default = "one_usize")]
        groups: usize,
    },
    /// Fully connected layer with bias; the last one has as many outputs as there are classes.
    Fc {
        name: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        outputs: Option<usize>,
        /// Limit of each row's RMS; none by default.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rms_limit: Option<f32>,
    },
    /// max(x, 0).
    Relu {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
    },
    /// Max pooling with switches.
    MaxPool {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
        kernel: usize,
        stride: usize,
        #[serde(default)]
        pad: Pad,
        #[serde(default)]
        rounding: Rounding,
    },
    /// Local response normalisation across channels; `alpha` is not divided by `size`.
    Lrn {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
        #[serde(default = "lrn_size")]
        size: u32,
        #[serde(default = "lrn_k")]
        k: f32,
        #[serde(default = "lrn_alpha")]
        alpha: f32,
        #[serde(default = "lrn_beta")]
        beta: f32,
    },
    /// Dropout while training.
    Dropout {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
        /// Instead of the recipe's.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rate: Option<f32>,
    },
}

impl LayerSpec {
    /// Gives it a name of its own in place of what it has or would be called.
    pub fn rename(&mut self, new: &str) {
        match self {
            LayerSpec::Conv { name, .. }
            | LayerSpec::ConvTranspose { name, .. }
            | LayerSpec::Fc { name, .. } => *name = new.into(),
            LayerSpec::Relu { name }
            | LayerSpec::MaxPool { name, .. }
            | LayerSpec::Lrn { name, .. }
            | LayerSpec::Dropout { name, .. } => *name = Some(new.into()),
        }
    }
}

fn one_f32() -> f32 {
    1.0
}
fn one_usize() -> usize {
    1
}
fn lrn_size() -> u32 {
    5
}
fn lrn_k() -> f32 {
    2.0
}
fn lrn_alpha() -> f32 {
    1e-4
}
fn lrn_beta() -> f32 {
    0.75
}

impl Architecture {
    /// The built-in networks.
    pub fn presets() -> Vec<Architecture> {
        let parse = |text| toml::from_str(text).expect("a built-in network is well-formed");
        PRESETS.map(parse).into()
    }

    /// A built-in network by its name, or one described in a TOML file.
    ///
    /// # Errors
    /// If there is neither, or the file is not a network's description.
    pub fn find(name_or_file: &str) -> Result<Self> {
        let presets = Self::presets();
        if let Some(preset) = presets.iter().find(|preset| preset.name == name_or_file) {
            return Ok(preset.clone());
        }
        let path = Path::new(name_or_file);
        if !path.exists() {
            let names: Vec<&str> = presets.iter().map(|preset| preset.name.as_str()).collect();
            return Err(Error::Network(format!(
                "no network `{name_or_file}`: expected {} or the path of a TOML file",
                names.join(", ")
            )));
        }
        let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
        Self::parse(&text).map_err(|error| Error::file(path, error.to_string()))
    }

    /// A network from its TOML text.
    ///
    /// # Errors
    /// If the text is not a network's description; the message says where and what was expected.
    pub fn parse(text: &str) -> Result<Self> {
        toml::from_str(text).map_err(|error| Error::Network(error.to_string()))
    }

    /// The TOML text that [`Architecture::parse`] reads back.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a description is plain data")
    }
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
}

/// What a layer does, with its sizes for one image.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)] // the fields are the field's own terms
pub enum Kind {
    /// Spatial convolution.
    Conv { dims: ConvDims, rms_limit: f32 },
    /// Transposed convolution: `dims` are those of the convolution from its output to its input.
    ConvTranspose { dims: ConvDims },
    /// Fully connected: a convolution whose filter covers the input and whose output is one pixel.
    FullyConnected { dims: ConvDims, rms_limit: f32 },
    /// max(x, 0).
    Relu,
    /// Max pooling.
    MaxPool { dims: PoolDims },
    /// Local response normalisation.
    Lrn(Lrn),
    /// Dropout while training.
    Dropout { rate: f32 },
}

impl Layer {
    /// Sizes of the convolution this layer is, if it has weights; of a transposed convolution those
    /// of the convolution from its output to its input.
    pub fn convolution(&self) -> Option<&ConvDims> {
        match &self.kind {
            Kind::Conv { dims, .. }
            | Kind::ConvTranspose { dims }
            | Kind::FullyConnected { dims, .. } => Some(dims),
            _ => None,
        }
    }

    /// Whether biases are added to its output.
    pub fn has_bias(&self) -> bool {
        matches!(self.kind, Kind::Conv { .. } | Kind::FullyConnected { .. })
    }

    /// Products that one value of its output is the sum of, away from the edges; on average, for a
    /// transposed convolution with a stride. 0 if it has no weights.
    pub fn fan_in(&self) -> f64 {
        match (&self.kind, self.convolution()) {
            (Kind::ConvTranspose { .. }, Some(dims)) => {
                let area = f64::from(dims.r * dims.s) / f64::from(dims.stride[0] * dims.stride[1]);
                area * f64::from(dims.k / dims.groups)
            }
            (_, dims) => dims.map_or(0.0, |dims| dims.filter().per_image() as f64),
        }
    }

    /// Sizes of the max pooling this layer is, if it is one.
    pub fn pooling(&self) -> Option<&PoolDims> {
        match &self.kind {
            Kind::MaxPool { dims } => Some(dims),
            _ => None,
        }
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

/// Checks a description and works out every layer's sizes.
pub(super) fn build_layers(architecture: &Architecture) -> Result<Vec<Layer>> {
    let Input { size, resize, std } = architecture.input;
    let recipe = &architecture.recipe;
    let wrong = |message: String| Err(Error::Network(message));
    if size == 0 || resize < size || resize > 4096 {
        return wrong(format!(
            "input: expected 0 < size <= resize <= 4096, found size {size} and resize {resize}"
        ));
    }
    if !(std > 0.0 && std.is_finite()) {
        return wrong(format!("input: expected a positive std, found {std}"));
    }
    if !(2..=MAX_NUMBER).contains(&architecture.classes) && architecture.classes != 0 {
        return wrong(format!(
            "expected at least 2 classes and at most {MAX_NUMBER} (or 0, for a network that gives \
             maps), found {}",
            architecture.classes
        ));
    }
    recipe.check()?;

    let mut layers: Vec<Layer> = Vec::new();
    let mut shape = Shape::new(1, size, size, 3);
    let mut field = [Field::PIXEL; 2];
    let (mut number, mut parameters) = (0, 0);
    let weighty = |spec: &LayerSpec| {
        use LayerSpec::{Conv, ConvTranspose, Fc};
        matches!(spec, Conv { .. } | ConvTranspose { .. } | Fc { .. })
    };
    for (index, spec) in architecture.layers.iter().enumerate() {
        let gives_classes =
            architecture.classes > 0 && !architecture.layers[index + 1..].iter().any(weighty);
        number += usize::from(weighty(spec));
        let name = match spec {
            LayerSpec::Conv { name, .. }
            | LayerSpec::ConvTranspose { name, .. }
            | LayerSpec::Fc { name, .. } => name.clone(),
            LayerSpec::Relu { name } => name.clone().unwrap_or(format!("relu{number}")),
            LayerSpec::MaxPool { name, .. } => name.clone().unwrap_or(format!("pool{number}")),
            LayerSpec::Lrn { name, .. } => name.clone().unwrap_or(format!("norm{number}")),
            LayerSpec::Dropout { name, .. } => name.clone().unwrap_or(format!("drop{number}")),
        };
        let wrong = |message: String| Err(Error::Network(format!("layer {name}: {message}")));
        let usable = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        if name.is_empty() || !name.chars().all(usable) {
            return wrong("expected a name of letters, digits, `_` and `-`".into());
        }
        if layers.iter().any(|layer| layer.name == name) {
            return wrong("expected a name of its own, found it twice".into());
        }
        let largest = match *spec {
            LayerSpec::Conv { channels, kernel, stride, groups, .. }
            | LayerSpec::ConvTranspose { channels, kernel, stride, groups, .. } => {
                channels.max(kernel).max(stride).max(groups)
            }
            LayerSpec::Fc { outputs, .. } => outputs.unwrap_or(0),
            LayerSpec::MaxPool { kernel, stride, .. } => kernel.max(stride),
            _ => 0,
        };
        if largest > MAX_NUMBER {
            return wrong(format!("expected no number above {MAX_NUMBER}, found {largest}"));
        }
        let input = shape;
        // Windows along both axes, or why there are none.
        let count = |kernel: usize, stride: usize, pad: Pad, rounding: Rounding| {
            let [rows, columns] = pad.axes();
            let one = |input, (before, after)| {
                if before >= kernel || after >= kernel {
                    return None;
                }
                windows(input, kernel, stride, before, after, rounding)
            };
            one(input.h, rows).zip(one(input.w, columns)).ok_or_else(|| {
                Error::Network(format!(
                    "layer {name}: expected a kernel that fits into its input of {}x{}, a stride \
                     above 0 and a pad below the kernel, found kernel {kernel}, stride {stride}, \
                     pad {pad:?}",
                    input.h, input.w
                ))
            })
        };
        let through = |kernel: usize, stride: usize, pad: Pad| {
            let [(top, _), (left, _)] = pad.axes();
            [field[0].through(kernel, stride, top), field[1].through(kernel, stride, left)]
        };
        let check_groups = |channels: usize, groups: usize| {
            let divides = |count: usize| groups > 0 && count.is_multiple_of(groups);
            if channels > 0 && divides(input.c) && divides(channels) {
                return Ok(());
            }
            Err(Error::Network(format!(
                "layer {name}: expected groups that divide {} input and {channels} output channels, \
                 found {groups}",
                input.c
            )))
        };
        let kind = match *spec {
            LayerSpec::Conv {
                channels, kernel, stride, pad, rounding, groups, rms_limit, ..
            } => {
                let (p, q) = count(kernel, stride, pad, rounding)?;
                check_groups(channels, groups)?;
                field = through(kernel, stride, pad);
                shape = Shape::new(1, p, q, channels);
                let [(top, _), (left, _)] = pad.axes();
                let dims = conv_dims(input, shape, [kernel; 2], stride, [top, left], groups);
                Kind::Conv { dims, rms_limit: rms_limit.unwrap_or(recipe.rms_limit) }
            }
            LayerSpec::ConvTranspose { channels, kernel, stride, pad, groups, .. } => {
                check_groups(channels, groups)?;
                let [rows, columns] = pad.axes();
                let one = |input, (before, after)| {
                    let fits = before < kernel && after < kernel;
                    let size = fits.then(|| transposed(input, kernel, stride, before, after));
                    size.flatten().filter(|size| *size <= MAX_NUMBER)
                };
                let Some((h, w)) = one(input.h, rows).zip(one(input.w, columns)) else {
                    return wrong(format!(
                        "expected an output, (in - 1) stride - pads + kernel, of 1 to {MAX_NUMBER} \
                         rows and columns, a stride above 0 and a pad below the kernel, found an \
                         input of {}x{}, kernel {kernel}, stride {stride}, pad {pad:?}",
                        input.h, input.w
                    ));
                };
                let [(top, _), (left, _)] = [rows, columns];
                field = [(field[0], top), (field[1], left)].map(|(field, pad)| {
                    field.through_transposed(kernel, stride, pad).unwrap_or(Field::whole(size))
                });
                shape = Shape::new(1, h, w, channels);
                let dims = conv_dims(shape, input, [kernel; 2], stride, [top, left], groups);
                Kind::ConvTranspose { dims }
            }
            LayerSpec::Fc { outputs, rms_limit, .. } => {
                let outputs = match outputs {
                    Some(outputs) if gives_classes && outputs != architecture.classes => {
                        return wrong(format!(
                            "expected one output for each of {} classes (or no `outputs` at all), \
                             found {outputs}",
                            architecture.classes
                        ));
                    }
                    None if !gives_classes => {
                        return wrong(
                            "expected `outputs`; only a last layer that gives the classes goes \
                             without"
                                .into(),
                        );
                    }
                    outputs => outputs.unwrap_or(architecture.classes),
                };
                if outputs == 0 {
                    return wrong("expected at least one output, found 0".into());
                }
                field = [Field::whole(size); 2];
                shape = Shape::new(1, 1, 1, outputs);
                let dims = conv_dims(input, shape, [input.h, input.w], 1, [0, 0], 1);
                Kind::FullyConnected { dims, rms_limit: rms_limit.unwrap_or(0.0) }
            }
            LayerSpec::Relu { .. } => Kind::Relu,
            LayerSpec::MaxPool { kernel, stride, pad, rounding, .. } => {
                let (p, q) = count(kernel, stride, pad, rounding)?;
                if kernel * kernel > 255 {
                    return wrong(format!(
                        "expected a window of at most 255 values (a switch is one byte), found \
                         {kernel}x{kernel}"
                    ));
                }
                field = through(kernel, stride, pad);
                shape = Shape::new(1, p, q, input.c);
                let [(top, _), (left, _)] = pad.axes();
                Kind::MaxPool {
                    dims: PoolDims {
                        n: 1,
                        h: input.h as u32,
                        w: input.w as u32,
                        c: input.c as u32,
                        p: p as u32,
                        q: q as u32,
                        window: [kernel as u32; 2],
                        stride: [stride as u32; 2],
                        pad: [top as u32, left as u32],
                    },
                }
            }
            LayerSpec::Lrn { size, k, alpha, beta, .. } => {
                let fits = size > 0 && size as usize <= MAX_LRN_SIZE;
                if !(fits && k > 0.0 && alpha >= 0.0 && beta >= 0.0) {
                    return wrong(format!(
                        "expected a size of 1 to {MAX_LRN_SIZE}, k above 0, alpha and beta not \
                         below 0, found size {size}, k {k}, alpha {alpha}, beta {beta}"
                    ));
                }
                Kind::Lrn(Lrn { size, k, alpha, beta })
            }
            LayerSpec::Dropout { rate, .. } => {
                let rate = rate.unwrap_or(recipe.dropout);
                if !(0.0..1.0).contains(&rate) {
                    return wrong(format!("expected a rate of 0 to below 1, found {rate}"));
                }
                Kind::Dropout { rate }
            }
        };
        let layer = Layer { name: name.clone(), kind, input, output: shape, field };
        parameters += layer.parameters();
        if parameters.max(shape.len()) > MAX_VALUES {
            return wrong(format!(
                "expected at most {MAX_VALUES} values, and parameters up to here, found {} and \
                 {parameters}",
                shape.len()
            ));
        }
        if field.iter().any(|field| field.size.max(field.jump) > MAX_NUMBER) {
            return wrong(format!(
                "expected a receptive field and steps of at most {MAX_NUMBER} pixels, found {} and {}",
                field[0].size, field[0].jump
            ));
        }
        layers.push(layer);
    }
    let gives_classes = |layer: &Layer| matches!(layer.kind, Kind::FullyConnected { .. });
    if !layers.last().is_some_and(|last| architecture.classes == 0 || gives_classes(last)) {
        return wrong(format!(
            "expected a last layer of type `fc` that gives the classes (or 0 classes, for a network \
             that gives maps), found {}",
            layers.last().map_or("no layer", |layer| &layer.name)
        ));
    }
    check_switches(&layers)?;
    Ok(layers)
}

/// A switch keeps no place for a winner that is not positive, so a relu must make that harmless:
/// above the pooling (directly) or below it.
fn check_switches(layers: &[Layer]) -> Result<()> {
    for (i, layer) in layers.iter().enumerate() {
        let is_relu = |layer: &Layer| matches!(layer.kind, Kind::Relu);
        // These keep what is not positive so. Above, normalisation does not do: its derivative
        // sends something down to such a winner, from its neighbours.
        let signless = |kind: &Kind| matches!(kind, Kind::Dropout { .. } | Kind::MaxPool { .. });
        let keeps = |layer: &&Layer| !signless(&layer.kind) && !matches!(layer.kind, Kind::Lrn(_));
        let below = layers[..i].iter().rev().find(keeps).is_some_and(is_relu);
        let above = layers[i + 1..].iter().find(|layer| !signless(&layer.kind));
        let above = above.is_some_and(is_relu);
        if matches!(layer.kind, Kind::MaxPool { .. }) && !below && !above {
            return Err(Error::Network(format!(
                "layer {}: expected a relu before or after it (its switches tell only positive \
                 winners apart), found none",
                layer.name
            )));
        }
    }
    Ok(())
}

fn conv_dims(
    input: Shape,
    output: Shape,
    kernel: [usize; 2],
    stride: usize,
    pad: [usize; 2],
    groups: usize,
) -> ConvDims {
    ConvDims {
        n: 1,
        h: input.h as u32,
        w: input.w as u32,
        c: input.c as u32,
        k: output.c as u32,
        r: kernel[0] as u32,
        s: kernel[1] as u32,
        p: output.h as u32,
        q: output.w as u32,
        stride: [stride as u32; 2],
        pad: pad.map(|v| v as u32),
        groups: groups as u32,
    }
}
