//! A chain of another program's layers as a network's description.

use std::collections::HashSet;
use std::path::Path;

use zfnet_formats::{Chain, Layer, Op};

use super::Row;
use super::preprocessing::canvas_for;
use crate::model::weights::NamedTensors;
use crate::model::{
    Architecture, ConvSpec, DropoutSpec, FcSpec, Input, LayerSpec, LrnSpec, MaxPoolSpec, Pad,
    ReluSpec,
};
use crate::shape::Rounding;
use crate::{Error, Result};
use zfnet_core::Recipe;

/// The longest name of a layer that is kept.
const MAX_NAME: usize = 24;

/// The description, the tensors under its layers' names, and which layer of the file each is. `size` is the input's
/// where the file leaves it open.
///
/// # Errors
/// If a layer is of a kind that a description has not, or nobody says how large the input is.
pub(super) fn describe(
    chain: Chain,
    path: &Path,
    size: Option<[usize; 2]>,
) -> Result<(Architecture, NamedTensors, Vec<Row>)> {
    let fitting = chain.fitting.clone();
    let size = match (chain.input.size, size) {
        (Some(in_file), Some(asked)) if in_file != asked && has_fc(&chain.layers) => {
            let [h, w] = in_file;
            return Err(Error::Network(format!(
                "is for images of {h}x{w}, found {}x{} asked for",
                asked[0], asked[1]
            )));
        }
        (in_file, asked) => asked.or(in_file).ok_or(Error::UnknownInputSize(fitting))?,
    };
    let names = names(&chain.layers);
    let (mut layers, mut tensors, mut table) = (Vec::new(), NamedTensors::new(), Vec::new());
    let (mut classes, last) = (0, chain.layers.len().wrapping_sub(1));
    for (index, (Layer { name: from, op }, name)) in chain.layers.into_iter().zip(names).enumerate()
    {
        let wrong = |expected: &str, found: String| {
            Error::Network(format!("layer {from}: expected {expected}, found {found}"))
        };
        let of_one = |what: &str, [a, b]: [usize; 2]| match a == b {
            true => Ok(a),
            false => {
                Err(wrong(&format!("the same {what} along both axes"), format!("{a} and {b}")))
            }
        };
        let named = || name.clone().unwrap_or_default(); // layers with weights always have one
        let spec = match op {
            Op::Conv { weight, bias, stride, pad, groups, ceil } => {
                let [channels, _, rows, columns] = weight.shape[..] else {
                    let expected = "a convolution along two axes";
                    return Err(wrong(expected, format!("shape {:?}", weight.shape)));
                };
                let spec = ConvSpec {
                    name: named(),
                    channels,
                    kernel: of_one("kernel", [rows, columns])?,
                    stride: of_one("stride", stride)?,
                    pad: sides(pad),
                    rounding: rounding(ceil),
                    groups,
                    rms_limit: None,
                    init_std: None,
                };
                add(&mut tensors, &mut table, &from, &spec.name, weight, bias);
                LayerSpec::Conv(spec)
            }
            Op::Fc { weight, bias } => {
                let [outputs, _] = weight.shape[..] else {
                    return Err(wrong("a matrix", format!("shape {:?}", weight.shape)));
                };
                if index == last && outputs > 1 {
                    classes = outputs;
                }
                let spec = FcSpec {
                    name: named(),
                    outputs: (index != last || outputs <= 1).then_some(outputs),
                    rms_limit: None,
                    init_std: None,
                };
                add(&mut tensors, &mut table, &from, &spec.name, weight, bias);
                LayerSpec::Fc(spec)
            }
            Op::Relu => LayerSpec::Relu(ReluSpec { name }),
            Op::MaxPool { kernel, stride, pad, ceil } => LayerSpec::MaxPool(MaxPoolSpec {
                name,
                kernel: of_one("kernel", kernel)?,
                stride: of_one("stride", stride)?,
                pad: sides(pad),
                rounding: rounding(ceil),
            }),
            Op::Lrn { size, alpha, beta, k } => LayerSpec::Lrn(LrnSpec {
                name,
                size: u32::try_from(size).unwrap_or(u32::MAX),
                k,
                alpha: alpha / size as f32, // which the other programs divide by it as they compute
                beta,
            }),
            Op::Dropout { rate } => LayerSpec::Dropout(DropoutSpec { name, rate: Some(rate) }),
        };
        layers.push(spec);
    }
    let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
    let name = [Some(chain.name), stem].into_iter().flatten().find(|name| !name.is_empty());
    let architecture = Architecture {
        name: name.unwrap_or_else(|| "imported".into()),
        description: String::new(),
        classes,
        input: Input { size, channels: chain.input.channels, resize: canvas_for(size), std: 1.0 },
        layers,
        recipe: Recipe { rms_limit: 0.0, ..Recipe::default() },
    };
    Ok((architecture, tensors, table))
}

fn has_fc(layers: &[Layer]) -> bool {
    layers.iter().any(|layer| matches!(layer.op, Op::Fc { .. }))
}

/// Adds a layer's tensors under the `name` that it has here.
pub(super) fn add(
    tensors: &mut NamedTensors,
    table: &mut Vec<Row>,
    from: &str,
    name: &str,
    weight: zfnet_formats::Tensor,
    bias: Vec<f32>,
) {
    table.push(Row { from: from.into(), shape: weight.shape.clone(), layer: name.into() });
    tensors.push((format!("{name}.weight"), weight.shape, weight.values));
    tensors.push((format!("{name}.bias"), vec![bias.len()], bias));
}

fn sides([top, bottom, left, right]: [usize; 4]) -> Pad {
    match [top, bottom, left, right].iter().all(|side| *side == top) {
        true => Pad::All(top),
        false => Pad::Sides([top, bottom, left, right]),
    }
}

fn rounding(ceil: bool) -> Rounding {
    if ceil { Rounding::Ceil } else { Rounding::Floor }
}

/// The layers' names: the file's where they can be ours and are people's, else `conv1`, `conv2`, ..., `fc6` for those
/// with weights, and none for others, which are then called after them.
fn names(layers: &[Layer]) -> Vec<Option<String>> {
    let usable = |name: &str| {
        let known = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        let made_up = name.starts_with("node_") || name.chars().all(|c| c.is_ascii_digit());
        name.len() <= MAX_NAME && name.chars().all(known) && !made_up
    };
    let has_weights = |layer: &&Layer| matches!(layer.op, Op::Conv { .. } | Op::Fc { .. });
    let mut different = HashSet::new();
    let kept = layers
        .iter()
        .filter(has_weights)
        .all(|layer| usable(&layer.name) && different.insert(layer.name.as_str()));
    let mut number = 0;
    layers
        .iter()
        .map(|layer| {
            let prefix = match layer.op {
                Op::Conv { .. } => "conv",
                Op::Fc { .. } => "fc",
                _ if kept && usable(&layer.name) && different.insert(&layer.name) => {
                    return Some(layer.name.clone());
                }
                _ => return None,
            };
            number += 1;
            Some(if kept { layer.name.clone() } else { format!("{prefix}{number}") })
        })
        .collect()
}
