//! A network as a Python file that builds it of `torch.nn`'s modules and prepares images for it. The weights, under
//! PyTorch's names, are in the model's own file.
//!
//! Pillow's bilinear reduction rounds otherwise than ours: of a reduced photograph about a tenth of the values differ, by
//! one of 255 levels. On the same input the layers' values agree to about 1e-6 of the largest.
//!
//! Names come from files: they stand in the text as Python's string literals alone.

use std::fmt::Write;

use crate::backend::Backend;
use crate::model::{Canvas, Fit, Interpolation, Kind, Layer, Model, Network, Preprocess};
use crate::shape::{ConvDims, Rounding, Shape, windows};
use crate::{Error, Result};

/// What a `torch.nn.Sequential` has of its own, so that no module of it can be called so.
const TAKEN: &str = "T_destination add_module append apply bfloat16 buffers call_super_init children compile cpu cuda \
                     double dump_patches eval extend extra_repr float forward get_buffer get_extra_state \
                     get_parameter get_submodule half insert ipu load_state_dict modules mtia named_buffers \
                     named_children named_modules named_parameters parameters pop register_backward_hook \
                     register_buffer register_forward_hook register_forward_pre_hook register_full_backward_hook \
                     register_full_backward_pre_hook register_load_state_dict_post_hook \
                     register_load_state_dict_pre_hook register_module register_parameter register_state_dict_post_hook \
                     register_state_dict_pre_hook requires_grad_ set_extra_state set_submodule share_memory state_dict \
                     to to_empty train training type xpu zero_grad";

/// The text of the Python file, for weights in the file named `weights` beside it.
///
/// # Errors
/// If a layer has a name that PyTorch does not take.
pub fn pytorch<B: Backend>(model: &Model<B>, weights: &str) -> Result<String> {
    let Model { network, preprocess, .. } = model;
    let mut modules = String::new();
    for (name, module) in modules_of(network)? {
        writeln!(modules, "        ({}, {module}),", literal(&name)).expect("a string");
    }
    let classes = model.classes.names.iter();
    let classes: String = classes.map(|name| format!("    {},\n", literal(name))).collect();
    let Shape { h, w, c, .. } = network.input();
    Ok(format!(
        r#""""A network exported by zfnet {version}: build(), load() and preprocess(). Needs torch, safetensors, numpy and Pillow.

    model = load()
    logits = model(preprocess(Image.open("photo.jpg")).unsqueeze(0))
    print(CLASSES[logits.argmax()])
"""

from collections import OrderedDict
from functools import cache
from pathlib import Path

import numpy
import torch
from PIL import Image
from safetensors import safe_open
from torch import nn

NAME = {name}
WEIGHTS = Path(__file__).with_name({weights})
CLASSES = [
{classes}]


def build():
    """The network with random weights, for images [N, {c}, {h}, {w}]."""
    return nn.Sequential(OrderedDict([
{modules}    ]))


def load(weights=WEIGHTS):
    """The network with its weights, ready to classify."""
    with safe_open(weights, "pt") as file:
        tensors = {{name: file.get_tensor(name) for name in file.keys() if name != "preprocess.mean"}}
    model = build()
    model.load_state_dict(tensors)
    return model.eval()

{preprocessing}"#,
        version = env!("CARGO_PKG_VERSION"),
        name = literal(&network.architecture.name),
        weights = literal(weights),
        preprocessing = preprocessing(preprocess, [h, w])?,
    ))
}

/// A text as Python's literal: JSON's are.
fn literal(text: &str) -> String {
    serde_json::to_string(text).expect("plain data")
}

/// A number as Python writes it, with the digits that tell it from other f32.
fn number(value: f32) -> String {
    format!("{value:?}")
}

fn numbers(values: &[f32]) -> String {
    format!("[{}]", values.iter().map(|value| number(*value)).collect::<Vec<_>>().join(", "))
}

/// The modules of a network, with their names.
fn modules_of(network: &Network) -> Result<Vec<(String, String)>> {
    let mut modules: Vec<(String, String)> = Vec::new();
    let names: Vec<&str> = network.layers.iter().map(|layer| layer.name.as_str()).collect();
    let mut flat = false;
    for layer in &network.layers {
        let name = layer.name.as_str();
        if name.is_empty()
            || name.contains('.')
            || name.starts_with('_')
            || TAKEN.split_whitespace().any(|t| t == name)
        {
            return Err(Error::Network(format!(
                "layer `{name}`: PyTorch takes no module of this name; rename it in the network's description"
            )));
        }
        // A module that PyTorch needs beside the layer's own, under a name that is nobody's.
        let beside = |what: &str| {
            let mut beside = format!("{name}_{what}");
            while names.contains(&beside.as_str()) {
                beside.push('_');
            }
            beside
        };
        let Shape { h, w, c, .. } = layer.input;
        let is_flat = matches!(layer.kind, Kind::FullyConnected(_));
        let is_pointwise = matches!(layer.kind, Kind::Relu(_) | Kind::Dropout(_));
        if is_flat && !flat {
            modules.push((beside("input"), "nn.Flatten()".into()));
        } else if flat && !is_flat && !is_pointwise {
            modules.push((beside("input"), format!("nn.Unflatten(1, ({c}, {h}, {w}))")));
        }
        flat = is_flat || flat && is_pointwise;
        let (before, module, after) = module(layer);
        modules.extend(before.map(|module| (beside("pad"), module)));
        modules.push((name.to_owned(), module));
        modules.extend(after.map(|module| (beside("cut"), module)));
    }
    Ok(modules)
}

/// One number for two that are equal.
fn pair([a, b]: [u32; 2]) -> String {
    if a == b { a.to_string() } else { format!("({a}, {b})") }
}

/// Windows along one axis.
#[derive(Clone, Copy)]
struct Axis {
    input: u32,
    output: u32,
    kernel: u32,
    stride: u32,
    /// Before the input.
    pad: u32,
}

impl Axis {
    /// Whether as many windows come of the same pad behind the input.
    fn is_symmetric(&self, rounding: Rounding) -> bool {
        let Axis { input, output, kernel, stride, pad } = *self;
        let [input, kernel, stride, pad] = [input, kernel, stride, pad].map(|v| v as usize);
        windows(input, kernel, stride, pad, pad, rounding) == Some(output as usize)
    }

    /// How far the last window reaches behind the input.
    fn pad_after(&self) -> u32 {
        ((self.output - 1) * self.stride + self.kernel).saturating_sub(self.input + self.pad)
    }
}

/// `left, right, top, bottom`, of what is added around an input.
fn around([rows, columns]: [Axis; 2]) -> String {
    format!("{}, {}, {}, {}", columns.pad, columns.pad_after(), rows.pad, rows.pad_after())
}

/// A layer as a module, with one before it or behind it where PyTorch's takes fewer settings.
fn module(layer: &Layer) -> (Option<String>, String, Option<String>) {
    let alone = |module: String| (None, module, None);
    match &layer.kind {
        Kind::Conv(conv) => {
            let ConvDims { h, w, c, k, r, s, p, q, stride, pad, groups, .. } = conv.dims;
            let axes = [
                Axis { input: h, output: p, kernel: r, stride: stride[0], pad: pad[0] },
                Axis { input: w, output: q, kernel: s, stride: stride[1], pad: pad[1] },
            ];
            let symmetric = axes.iter().all(|axis| axis.is_symmetric(Rounding::Floor));
            let mut module =
                format!("nn.Conv2d({c}, {k}, {}, stride={}", pair([r, s]), pair(stride));
            if symmetric && pad != [0, 0] {
                write!(module, ", padding={}", pair(pad)).expect("a string");
            }
            if groups > 1 {
                write!(module, ", groups={groups}").expect("a string");
            }
            let before = (!symmetric).then(|| format!("nn.ZeroPad2d(({}))", around(axes)));
            (before, module + ")", None)
        }
        Kind::ConvTranspose(conv) => {
            // Sizes are those of the convolution from its output to its input.
            let ConvDims { h, w, c, k, r, s, p, q, stride, pad, groups, .. } = conv.dims;
            let after = [(p, r, h, 0), (q, s, w, 1)]
                .map(|(count, kernel, size, i)| (count - 1) * stride[i] + kernel - size - pad[i]);
            let mut module =
                format!("nn.ConvTranspose2d({k}, {c}, {}, stride={}", pair([r, s]), pair(stride));
            if after == pad && pad != [0, 0] {
                write!(module, ", padding={}", pair(pad)).expect("a string");
            }
            if groups > 1 {
                write!(module, ", groups={groups}").expect("a string");
            }
            // What is padded by less than nothing is cut off.
            let cut = (after != pad).then(|| {
                let sides = [pad[1], after[1], pad[0], after[0]].map(|side| -i64::from(side));
                let [left, right, top, bottom] = sides;
                format!("nn.ZeroPad2d(({left}, {right}, {top}, {bottom}))")
            });
            (None, module + ", bias=False)", cut)
        }
        Kind::FullyConnected(full) => {
            alone(format!("nn.Linear({}, {})", layer.input.per_image(), full.dims.k))
        }
        Kind::Relu(_) => alone("nn.ReLU()".into()),
        Kind::MaxPool(pool) => {
            let dims = &pool.dims;
            let [kernel, stride, pad] = [dims.window, dims.stride, dims.pad];
            let axis = |i: usize, input, output| Axis {
                input,
                output,
                kernel: kernel[i],
                stride: stride[i],
                pad: pad[i],
            };
            let axes = [axis(0, dims.h, dims.p), axis(1, dims.w, dims.q)];
            let begin = format!("nn.MaxPool2d({}, stride={}", pair(kernel), pair(stride));
            let takes = |rounding| {
                let half = axes.iter().all(|axis| 2 * axis.pad <= axis.kernel);
                half && axes.iter().all(|axis| axis.is_symmetric(rounding))
            };
            let padding = match pad {
                [0, 0] => String::new(),
                pad => format!(", padding={}", pair(pad)),
            };
            match () {
                () if takes(Rounding::Floor) => alone(format!("{begin}{padding})")),
                () if takes(Rounding::Ceil) => alone(format!("{begin}{padding}, ceil_mode=True)")),
                () => {
                    let before = format!("nn.ConstantPad2d(({}), -torch.inf)", around(axes));
                    (Some(before), begin + ")", None)
                }
            }
        }
        // PyTorch divides alpha by the size.
        Kind::Lrn(lrn) => alone(format!(
            "nn.LocalResponseNorm({0}, alpha={0} * {1}, beta={2}, k={3})",
            lrn.size,
            number(lrn.alpha),
            number(lrn.beta),
            number(lrn.k)
        )),
        Kind::Dropout(dropout) => alone(format!("nn.Dropout({})", number(dropout.rate))),
    }
}

/// The functions that make a network's input of a picture, for crops of so many rows and columns.
///
/// # Errors
/// If Pillow does not resize so.
fn preprocessing(preprocess: &Preprocess, [h, w]: [usize; 2]) -> Result<String> {
    let Canvas { rows, columns, fit, interpolation, antialias } = preprocess.resize;
    let mean = if preprocess.mean_is_image() {
        "    with safe_open(WEIGHTS, \"pt\") as file:\n        return file.get_tensor(\"preprocess.mean\")\n"
            .to_owned()
    } else {
        format!("    return torch.tensor({})\n", numbers(&preprocess.mean))
    };
    let [y, x] = preprocess.centre();
    let (mode, order) = match preprocess.channels() {
        1 => ("L", "[..., None]".to_owned()),
        _ => ("RGB", format!("[..., {:?}]", preprocess.order)),
    };
    let part = match fit {
        Fit::Squash => "    box = (0, 0, *image.size)".to_owned(),
        Fit::Cover => format!(
            "    # The largest part in the middle that has the shape of {columns} to {rows}.\n    \
             width = min(image.width, image.height * {columns} / {rows})\n    \
             height = min(image.height, image.width * {rows} / {columns})\n    \
             left, top = (image.width - width) // 2, (image.height - height) // 2\n    \
             box = (left, top, left + width, top + height)"
        ),
    };
    let filter = format!("{interpolation:?}").to_uppercase();
    if !antialias
        && !matches!(
            interpolation,
            Interpolation::Nearest | Interpolation::Bilinear | Interpolation::Bicubic
        )
    {
        return Err(Error::Network(format!(
            "images are resized by {interpolation:?} without antialiasing, which Pillow does not do"
        )));
    }
    let resized = if antialias || interpolation == Interpolation::Nearest {
        format!("image = image.resize(({columns}, {rows}), Image.Resampling.{filter}, box=box)")
    } else {
        // Pillow widens its filters; `transform` does not.
        format!(
            "image = image.transform(({columns}, {rows}), Image.Transform.EXTENT, box, Image.Resampling.{filter})"
        )
    };
    Ok(format!(
        r#"
@cache
def mean():
    """What is taken off: [{c}], or [{rows}, {columns}, {c}], in the network's order of channels."""
{mean}

def preprocess(image):
    """A PIL image as the network's input, [{c}, {h}, {w}]. EXIF orientation and colour profiles are ignored."""
    image = image.convert("RGB")
{part}
    {resized}
    pixels = torch.from_numpy(numpy.array(image.convert("{mode}"))){order} * {scale}
    pixels = (pixels - mean()) / torch.tensor({std})
    return pixels[{y}:{y} + {h}, {x}:{x} + {w}].permute(2, 0, 1).contiguous()
"#,
        c = preprocess.channels(),
        scale = number(preprocess.scale),
        std = numbers(&preprocess.std),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::CpuBackend;
    use crate::data::classes::Classes;
    use crate::model::{Architecture, Params};

    fn network(layers: &str) -> Network {
        let description = format!(
            "name = 'a\"\"\"\\'\nclasses = 2\ninput = {{ size = 16, resize = 20 }}\nlayers = [{layers}]\n[recipe]\ninit = 'he'"
        );
        Network::new(Architecture::parse(&description).unwrap()).unwrap()
    }

    /// Each line worked out by hand from PyTorch's documentation of its modules' sizes.
    #[test]
    fn modules_have_the_sizes_of_the_layers() {
        let network = network(
            r#"
            { type = "conv", name = "symmetric", channels = 6, kernel = 3, pad = 1, groups = 3 },
            { type = "relu" },
            { type = "conv", name = "ceil", channels = 4, kernel = 3, stride = 2 },
            { type = "relu" },
            { type = "maxpool", name = "floor", kernel = 3, stride = 1, pad = 1 },
            { type = "maxpool", name = "rounded", kernel = 3, stride = 2 },
            { type = "maxpool", name = "sides", kernel = 3, stride = 1, pad = [1, 0, 0, 1] },
            { type = "lrn", name = "norm", size = 3, alpha = 0.5, beta = 0.25, k = 1 },
            { type = "conv_transpose", name = "up", channels = 5, kernel = 4, stride = 2, pad = 1 },
            { type = "conv_transpose", name = "cut", channels = 5, kernel = 4, stride = 2, pad = [1, 2, 0, 1] },
            { type = "fc", name = "fc1", outputs = 7 },
            { type = "relu", name = "relu" },
            { type = "conv", name = "fc1_input", channels = 3, kernel = 1 },
            { type = "dropout", name = "drop", rate = 0.25 },
            { type = "fc", name = "fc2" }"#,
        );
        let modules = modules_of(&network).unwrap();
        let modules: Vec<_> = modules.iter().map(|(n, m)| (n.as_str(), m.as_str())).collect();
        let expected = [
            ("symmetric", "nn.Conv2d(3, 6, 3, stride=1, padding=1, groups=3)"),
            ("relu1", "nn.ReLU()"),
            ("ceil_pad", "nn.ZeroPad2d((0, 1, 0, 1))"), // 16 to 8, of which the last begins at 14
            ("ceil", "nn.Conv2d(6, 4, 3, stride=2)"),
            ("relu2", "nn.ReLU()"),
            ("floor", "nn.MaxPool2d(3, stride=1, padding=1)"),
            ("rounded", "nn.MaxPool2d(3, stride=2, ceil_mode=True)"), // 8 to 4
            ("sides_pad", "nn.ConstantPad2d((0, 1, 1, 0), -torch.inf)"), // 4 to 3
            ("sides", "nn.MaxPool2d(3, stride=1)"),
            ("norm", "nn.LocalResponseNorm(3, alpha=3 * 0.5, beta=0.25, k=1.0)"),
            ("up", "nn.ConvTranspose2d(4, 5, 4, stride=2, padding=1, bias=False)"),
            ("cut", "nn.ConvTranspose2d(5, 5, 4, stride=2, bias=False)"),
            ("cut_cut", "nn.ZeroPad2d((0, -1, -1, -2))"),
            ("fc1_input_", "nn.Flatten()"),
            ("fc1", "nn.Linear(715, 7)"),
            ("relu", "nn.ReLU()"),
            ("fc1_input_input", "nn.Unflatten(1, (7, 1, 1))"),
            ("fc1_input", "nn.Conv2d(7, 3, 1, stride=1)"),
            ("drop", "nn.Dropout(0.25)"),
            ("fc2_input", "nn.Flatten()"),
            ("fc2", "nn.Linear(3, 2)"),
        ];
        assert_eq!(modules, expected);
    }

    #[test]
    fn names_are_literals_or_refused() {
        let backend = CpuBackend::new(Some(1)).unwrap();
        let network = network(r#"{ type = "fc", name = "fc1" }"#);
        let model = Model {
            params: Params::init(&backend, &network, 0).unwrap(),
            preprocess: Preprocess::named("torchvision", [16; 2], 20).unwrap(),
            classes: Classes::named(vec!["a\nb\"".into(), "\"\"\"\\".into()]),
            network,
        };
        let text = pytorch(&model, "w\".safetensors").unwrap();
        for line in [
            r#"NAME = "a\"\"\"\\""#,
            r#"WEIGHTS = Path(__file__).with_name("w\".safetensors")"#,
            r#"    "a\nb\"","#,
            r#"    "\"\"\"\\","#,
            "    return torch.tensor([0.485, 0.456, 0.406])",
            "    image = image.resize((20, 20), Image.Resampling.BILINEAR, box=box)",
            "    pixels = torch.from_numpy(numpy.array(image.convert(\"RGB\")))[..., [0, 1, 2]] * 0.003921569",
            "    return pixels[2:2 + 16, 2:2 + 16].permute(2, 0, 1).contiguous()",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in:\n{text}");
        }
        for name in ["a.b", "_a", "train", "forward"] {
            let mut network = model.network.clone();
            network.layers[0].name = name.into();
            let error = modules_of(&network).unwrap_err().to_string();
            assert!(error.contains(&format!("`{name}`")) && error.contains("rename"), "{error}");
        }
    }
}
