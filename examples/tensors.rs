//! What a network makes of tensors that another program has written: logits, the gradients of a batch, and
//! projections of the strongest units by every rule. `scripts/check-interop` compares them with PyTorch's.
//!
//!     cargo run --release --example tensors -- CHECKPOINT INPUT OUTPUT [ARCH]
//!
//! INPUT is a safetensors file with `x`, f32 `[images, channels, rows, columns]`, which the first layer sees as it
//! is. OUTPUT gets `logits` `[images, classes]`, `output.LAYER` `[images, channels, rows, columns]` of each layer (of one
//! with weights after its relu) and, if INPUT has `labels` (I64 `[images]`), `loss` (the mean of softmax
//! and cross-entropy) and `gradient.NAME` for each weight, in PyTorch's layout, without dropout; and for each
//! convolution's map with a strongest unit in the first image `LAYER.units`, `[units, 4]` (map, row, column,
//! activation after the relu) and `LAYER.RULE`, `[units, channels, rows, columns]`. Its metadata has the names of
//! all `layers` but dropout, and of those that are `weighted`, in their order.

use std::collections::HashMap;
use std::error::Error;
use std::path::Path;

use safetensors::{Dtype, SafeTensors};
use zfnet::backend::cpu::CpuBackend;
use zfnet::backend::{Backend, Peak, SeedUnit, Tensor};
use zfnet::import::ExternalConfig;
use zfnet::model::weights::{NamedTensors, from_kcrs, named_values, serialize, to_kcrs};
use zfnet::model::{
    BackwardOptions, BackwardTo, Kind, Layer, LayerSpec, Model, Network, Params, Purpose, Rule,
    Workspace, strongest,
};
use zfnet::shape::Shape;
use zfnet::train::checkpoint::load_model;

/// Units of each layer that are projected.
const UNITS: usize = 3;

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [checkpoint, input, output, arch @ ..] = arguments.as_slice() else {
        return Err("usage: tensors CHECKPOINT INPUT OUTPUT [ARCH]".into());
    };
    let backend = CpuBackend::new(None)?;
    let mut external = ExternalConfig { arch: arch.first().cloned(), ..ExternalConfig::default() };
    let model = load_model(&backend, Path::new(checkpoint), &external).or_else(|_| {
        // Of images nothing is asked here, so that any preprocessing will do.
        external.preprocess = Some("torchvision".into());
        load_model(&backend, Path::new(checkpoint), &external)
    })?;
    let file = std::fs::read(input)?;
    let file = SafeTensors::deserialize(&file)?;
    let x = file.tensor("x")?;
    if x.dtype() != Dtype::F32 || x.shape().len() != 4 {
        return Err(format!("{input}: expected x of type F32 and 4 sizes").into());
    }
    let values: Vec<f32> =
        x.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("four"))).collect();
    let &[n, c, h, w] = x.shape() else { unreachable!("4 sizes") };
    let x = from_kcrs(&values, Shape::new(n, h, w, c));

    let mut tensors = forward(&backend, &model, n, &x)?;
    if let Ok(labels) = file.tensor("labels") {
        let labels: Vec<u32> = labels
            .data()
            .chunks_exact(8)
            .map(|b| i64::from_le_bytes(b.try_into().expect("eight")) as u32)
            .collect();
        tensors.extend(gradients(&backend, &model, n, &x, &labels)?);
    }
    tensors.extend(projections(&backend, &model, n, &x)?);
    let names = |counts: fn(&Layer) -> bool| {
        let layers = model.network.layers.iter().filter(|layer| counts(layer));
        layers.map(|layer| &*layer.name).collect::<Vec<_>>().join(",")
    };
    let metadata = HashMap::from([
        ("layers".to_owned(), names(|layer| !matches!(layer.kind, Kind::Dropout(_)))),
        ("weighted".to_owned(), names(|layer| layer.convolution().is_some())),
    ]);
    std::fs::write(output, serialize(&tensors, Some(metadata))?)?;
    Ok(())
}

fn forward<B: Backend>(
    backend: &B,
    model: &Model<B>,
    n: usize,
    x: &[f32],
) -> Outcome<NamedTensors> {
    let mut workspace = Workspace::new(backend, &model.network, Purpose::Infer, n)?;
    backend.upload(&mut workspace.input, x)?;
    workspace.forward(backend, &model.params)?;
    let value = |tensor: &Tensor<B>| -> Outcome<(Shape, Vec<f32>)> {
        let shape = tensor.shape();
        let mut values = vec![0.0; shape.len()];
        backend.download(&mut values, tensor)?;
        Ok((shape, to_kcrs(&values, shape)))
    };
    let (shape, logits) = value(workspace.logits())?;
    let mut tensors = vec![("logits".to_owned(), vec![n, shape.per_image()], logits)];
    for (index, layer) in model.network.layers.iter().enumerate() {
        let (shape, values) = value(workspace.output(index))?;
        let sizes = vec![n, shape.c, shape.h, shape.w];
        tensors.push((format!("output.{}", layer.name), sizes, values));
    }
    Ok(tensors)
}

fn gradients<B: Backend>(
    backend: &B,
    model: &Model<B>,
    n: usize,
    x: &[f32],
    labels: &[u32],
) -> Outcome<NamedTensors> {
    let mut architecture = model.network.architecture.clone();
    for layer in &mut architecture.layers {
        if let LayerSpec::Dropout(dropout) = layer {
            dropout.rate = Some(0.0);
        }
    }
    let network = &Network::new(architecture)?;
    let mut workspace = Workspace::new(backend, network, Purpose::Train, n)?;
    backend.upload(&mut workspace.input, x)?;
    workspace.forward(backend, &model.params)?;
    let (mut losses, mut classes) = (backend.zeros(Shape::vector(n))?, backend.indices(n)?);
    backend.upload_indices(&mut classes, labels)?;
    workspace.loss(backend, &mut losses, &classes, 1.0 / n as f32)?;
    let mut gradients = Params::zeros(backend, network)?;
    let options = BackwardOptions {
        from: network.layers.len() - 1,
        rule: Rule::GRADIENT,
        images: None,
        gradients: Some(&mut gradients),
        accumulate: false,
        to: BackwardTo::FirstWeights,
    };
    workspace.backward(backend, &model.params, options)?;
    let mut values = vec![0.0; n];
    backend.download(&mut values, &losses)?;
    let loss = values.iter().sum::<f32>() / n as f32;
    let named = named_values(backend, network, &gradients)?.into_iter();
    let named = named.map(|(name, shape, values)| (format!("gradient.{name}"), shape, values));
    Ok(named.chain([("loss".into(), vec![1], vec![loss])]).collect())
}

fn projections<B: Backend>(
    backend: &B,
    model: &Model<B>,
    n: usize,
    x: &[f32],
) -> Outcome<NamedTensors> {
    let Model { network, params, .. } = model;
    let mut workspace = Workspace::new(backend, network, Purpose::Project { seeds: UNITS }, n)?;
    backend.upload(&mut workspace.input, x)?;
    workspace.forward(backend, params)?;
    let mut images = backend.indices(UNITS)?;
    backend.upload_indices(&mut images, &[0; UNITS])?;
    let input = network.input();
    let mut tensors = NamedTensors::new();
    for layer in network.spatial() {
        let (name, output) = (&network.layers[layer].name, workspace.output(layer));
        let mut peaks = vec![Peak { value: 0.0, position: 0 }; n * output.shape().c];
        backend.channel_max(&mut peaks, output)?;
        let units = strongest(&peaks[..output.shape().c], output.shape().w, UNITS);
        if units.is_empty() {
            continue;
        }
        let rows = units.iter().flat_map(|u| [u.map as f32, u.y as f32, u.x as f32, u.value]);
        tensors.push((format!("{name}.units"), vec![units.len(), 4], rows.collect()));
        for (rule_name, rule) in
            [("deconvnet", Rule::DECONVNET), ("gradient", Rule::GRADIENT), ("guided", Rule::GUIDED)]
        {
            let seeds: Vec<SeedUnit> =
                units.iter().map(|&u| SeedUnit { value: rule.seed_value(u.value), ..u }).collect();
            let mut pictures = vec![0.0; units.len() * input.len()];
            workspace.project(backend, params, layer, rule, &images, &seeds, &mut pictures)?;
            let pictures = to_kcrs(&pictures, input.with_n(units.len()));
            let shape = vec![units.len(), input.c, input.h, input.w];
            tensors.push((format!("{name}.{rule_name}"), shape, pictures));
        }
    }
    Ok(tensors)
}
