//! Which tensor of a file is which layer's: by name or, where names differ, by order and shape.

use std::cmp::Ordering;
use std::collections::HashMap;

use zfnet_formats::{Tensor, Tensors};

use super::Row;
use crate::model::weights::{MEAN, NamedTensors, torch_shape};
use crate::model::{Architecture, Layer, LayerSpec, Network};
use crate::shape::Rounding;
use crate::{Error, Result};

/// What PyTorch adds to a variance before its root is taken, unless it is told otherwise: no file of tensors says.
const EPSILON: f32 = 1e-5;

/// A layer's weights in a file.
#[derive(Debug)]
pub(super) struct Module {
    /// What its tensors' names have in common.
    pub name: String,
    pub weight: Tensor,
    pub bias: Option<Tensor>,
    /// Whether batch normalisation behind it has been folded into it.
    folded: bool,
}

impl Module {
    fn outputs(&self) -> usize {
        self.weight.shape[0]
    }
}

/// The tensors of a file as modules, in the order of the network, with batch normalisation folded into the
/// convolutions (or fully connected layers) before it: those whose names say so, and right behind them in files that have
/// an order.
///
/// # Errors
/// If a tensor is not a weight, a bias, or one of a batch normalisation that stands right behind a layer with weights.
pub(super) fn modules(file: Tensors, notes: &mut Vec<String>) -> Result<Vec<Module>> {
    let groups = group(file.tensors)?;
    let (mut modules, mut normalisations) = (Vec::new(), Vec::new());
    for mut group in groups {
        if group.is_normalisation() {
            normalisations.push((modules.len(), group)); // and how many layers stand before it
            continue;
        }
        let weight = group.take("weight").ok_or_else(|| group.lacks("weight"))?;
        if !matches!(weight.shape.len(), 2 | 4) || weight.shape.contains(&0) {
            return Err(Error::Network(format!(
                "{}: expected weights of a 2-dimensional convolution or a fully connected layer, found shape {:?}",
                weight.name, weight.shape
            )));
        }
        let bias = group.take("bias");
        modules.push(Module { name: group.name, weight, bias, folded: false });
    }
    let mut folded = Vec::new();
    for (before, group) in normalisations {
        let (name, channels) = (group.name.clone(), group.channels());
        let mut candidates = (0..modules.len()).filter(|&index| {
            let module: &Module = &modules[index];
            let adjacent = !file.ordered || index + 1 == before;
            adjacent
                && !module.folded
                && module.outputs() == channels
                && are_neighbours(&module.name, &name)
        });
        let (Some(index), None) = (candidates.next(), candidates.next()) else {
            return Err(Error::Network(format!(
                "{name}: batch normalisation of {channels} channels that does not stand right behind a convolution of as \
                 many outputs, as far as names tell, which is not supported"
            )));
        };
        drop(candidates);
        folded.push(format!("{name} into {}", modules[index].name));
        fold(&mut modules[index], group)?;
    }
    if !file.ordered {
        modules.sort_by(by_depth);
    }
    if !folded.is_empty() {
        notes.push(format!(
            "{} batch normalisations were folded into the convolutions before them (with PyTorch's epsilon of 1e-5, since \
             the file does not say it): {}",
            folded.len(),
            folded.join(", ")
        ));
    }
    Ok(modules)
}

/// Whether a normalisation's name says that it is right behind a layer: the next number of the same `nn.Sequential`
/// (`features.3`, `features.4`), the same number or none (`conv1`, `bn1`; `block.conv`, `block.bn`), or the layer's name
/// and more (`fc6`, `fc6_bn`).
fn are_neighbours(layer: &str, normalisation: &str) -> bool {
    if let (Some((a, i)), Some((b, k))) = (numbered(layer), numbered(normalisation)) {
        return a == b && i.checked_add(1) == Some(k);
    }
    let parts = |name: &str| -> (String, String) {
        let (parent, leaf) = name.rsplit_once('.').unwrap_or(("", name));
        (parent.into(), leaf.chars().skip_while(|c| !c.is_ascii_digit()).collect())
    };
    let begins =
        normalisation.strip_prefix(layer).is_some_and(|rest| !rest.starts_with(char::is_numeric));
    begins || parts(layer) == parts(normalisation)
}

/// A module's tensors by the last part of their names.
struct Group {
    name: String,
    tensors: Vec<(String, Tensor)>,
}

impl Group {
    fn get(&self, part: &str) -> Option<&Tensor> {
        self.tensors.iter().find(|(known, _)| known == part).map(|(_, tensor)| tensor)
    }

    fn take(&mut self, part: &str) -> Option<Tensor> {
        let at = self.tensors.iter().position(|(known, _)| known == part)?;
        Some(self.tensors.swap_remove(at).1)
    }

    fn is_normalisation(&self) -> bool {
        self.get("running_mean").is_some()
    }

    /// Of a normalisation.
    fn channels(&self) -> usize {
        self.get("running_mean").map_or(0, |mean| mean.values.len())
    }

    fn lacks(&self, part: &str) -> Error {
        let found: Vec<&str> = self.tensors.iter().map(|(part, _)| part.as_str()).collect();
        Error::Network(format!(
            "{}: expected a tensor {}.{part}, found {}",
            self.name,
            self.name,
            found.join(", ")
        ))
    }
}

fn group(tensors: Vec<Tensor>) -> Result<Vec<Group>> {
    let mut groups: Vec<Group> = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    for tensor in tensors.into_iter().filter(|tensor| tensor.name != MEAN) {
        let known = ["weight", "bias", "running_mean", "running_var"];
        let parts = tensor.name.rsplit_once('.').filter(|(_, part)| known.contains(part));
        let Some((name, part)) = parts else {
            return Err(Error::Network(format!(
                "{}: expected names that end in `.weight` or `.bias`, as PyTorch's convolutions and fully connected \
                 layers have them (or `.running_mean` and `.running_var`), found shape {:?}",
                tensor.name, tensor.shape
            )));
        };
        let (name, part) = (name.to_owned(), part.to_owned());
        let place = *places.entry(name.clone()).or_insert_with(|| {
            groups.push(Group { name, tensors: Vec::new() });
            groups.len() - 1
        });
        groups[place].tensors.push((part, tensor));
    }
    Ok(groups)
}

/// Convolutions before fully connected layers, then by name with numbers taken as numbers.
fn by_depth(a: &Module, b: &Module) -> Ordering {
    let is_full = |module: &Module| module.weight.shape.len() == 2;
    is_full(a).cmp(&is_full(b)).then_with(|| natural(&a.name, &b.name))
}

/// Names in an order in which `features.9` comes before `features.10`.
fn natural(a: &str, b: &str) -> Ordering {
    let chunks = |name: &str| -> Vec<(String, u64)> {
        let mut chunks = vec![(String::new(), 0u64)];
        let mut in_number = false;
        for c in name.chars() {
            if let Some(digit) = c.to_digit(10) {
                let last = chunks.last_mut().expect("never empty");
                last.1 = last.1.saturating_mul(10).saturating_add(u64::from(digit));
                in_number = true;
            } else {
                if in_number {
                    chunks.push((String::new(), 0));
                    in_number = false;
                }
                chunks.last_mut().expect("never empty").0.push(c);
            }
        }
        chunks
    };
    chunks(a).cmp(&chunks(b)).then_with(|| a.cmp(b))
}

/// `features` and 3, of `features.3`.
fn numbered(name: &str) -> Option<(&str, usize)> {
    let (of, number) = name.rsplit_once('.').unwrap_or(("", name));
    Some((of, number.parse().ok()?))
}

/// Ioffe & Szegedy 2015, for inference: `(x - mean) / sqrt(variance + epsilon) * weight + bias`, as a part of the
/// convolution that gives `x`.
fn fold(module: &mut Module, mut group: Group) -> Result<()> {
    let channels = module.outputs();
    let mut values = |part: &str, otherwise: Option<f32>| -> Result<Vec<f32>> {
        match (group.take(part), otherwise) {
            (Some(tensor), _) if tensor.values.len() == channels => Ok(tensor.values),
            (None, Some(value)) => Ok(vec![value; channels]),
            (Some(tensor), _) => Err(Error::Network(format!(
                "{}: expected {channels} values, found {}",
                tensor.name,
                tensor.values.len()
            ))),
            (None, None) => Err(group.lacks(part)),
        }
    };
    let (mean, variance) = (values("running_mean", None)?, values("running_var", None)?);
    let (weight, shift) = (values("weight", Some(1.0))?, values("bias", Some(0.0))?);
    let zeros = || Tensor {
        name: format!("{}.bias", module.name),
        shape: vec![channels],
        values: vec![0.0; channels],
    };
    let mut bias = module.bias.take().unwrap_or_else(zeros);
    if bias.values.len() != channels {
        return Err(Error::Network(format!(
            "{}: expected {channels} values, found {}",
            bias.name,
            bias.values.len()
        )));
    }
    let len = module.weight.values.len() / channels;
    for (k, filter) in module.weight.values.chunks_exact_mut(len).enumerate() {
        let factor = weight[k] / (variance[k] + EPSILON).sqrt();
        filter.iter_mut().for_each(|value| *value *= factor);
        bias.values[k] = (bias.values[k] - mean[k]) * factor + shift[k];
    }
    (module.bias, module.folded) = (Some(bias), true);
    Ok(())
}

/// The built-in network that modules belong to.
///
/// # Errors
/// If they fit none, or several of which nothing tells them apart.
pub(super) fn recognise(modules: &[Module]) -> Result<Architecture> {
    let mut fitting = Vec::new();
    for architecture in Architecture::presets() {
        let Ok(network) = Network::new(with_classes(architecture, modules)) else { continue };
        if matching(&network, modules).is_ok() {
            fitting.push(network);
        }
    }
    if fitting.len() > 1 {
        let told: Vec<bool> = fitting.iter().map(|network| has_gaps(network, modules)).collect();
        if told.contains(&true) {
            let mut told = told.into_iter();
            fitting.retain(|_| told.next().unwrap_or(false));
        }
    }
    match fitting.len() {
        1 => Ok(fitting.swap_remove(0).architecture),
        0 => {
            let shown: Vec<String> = modules
                .iter()
                .take(4)
                .map(|module| format!("{} {:?}", module.weight.name, module.weight.shape))
                .collect();
            let more = if modules.len() > 4 { ", ..." } else { "" };
            Err(Error::UnknownNetwork(format!(
                "does not say which network its {} layers with weights belong to, and they are no built-in network's: \
                 {}{more}",
                modules.len(),
                shown.join(", ")
            )))
        }
        _ => {
            let names: Vec<&str> =
                fitting.iter().map(|network| network.architecture.name.as_str()).collect();
            Err(Error::UnknownNetwork(format!(
                "does not say which network it holds: its shapes are those of {}, which differ in what has no weights \
                 (padding, normalisation)",
                names.join(", ")
            )))
        }
    }
}

/// A description with as many classes as the module of the last layer gives, by name, or the last one.
pub(super) fn with_classes(mut architecture: Architecture, modules: &[Module]) -> Architecture {
    let gives_classes = matches!(architecture.layers.last(), Some(LayerSpec::Fc(_)));
    let named = match architecture.layers.last() {
        Some(LayerSpec::Fc(last)) => modules.iter().find(|module| module.name == last.name),
        _ => None,
    };
    let last = named.or(modules.last()).filter(|_| gives_classes && architecture.classes > 0);
    if let Some(last) = last {
        architecture.classes = last.outputs();
    }
    architecture
}

/// Whether the numbers in the modules' names leave room for just the layers between them, as those of an
/// `nn.Sequential` do.
fn has_gaps(network: &Network, modules: &[Module]) -> bool {
    let places: Vec<usize> =
        (0..network.layers.len()).filter(|&i| network.layers[i].convolution().is_some()).collect();
    let mut told = false;
    let fits = places.windows(2).zip(modules.windows(2)).all(|(places, modules)| {
        let [(a, i), (b, k)] =
            [&modules[0], &modules[1]].map(|m| numbered(&m.name).unwrap_or(("", 0)));
        if a != b || a.is_empty() {
            return true; // of two sequences, or of none
        }
        told = true;
        i.checked_add(usize::from(modules[0].folded) + (places[1] - places[0])) == Some(k)
    });
    told && fits
}

/// The tensors of a network: their layers' names, shapes and values, and which of the file each is.
///
/// # Errors
/// If their number or a shape differs: the first that does.
pub(super) fn matched(
    network: &Network,
    modules: Vec<Module>,
    notes: &mut Vec<String>,
) -> Result<(NamedTensors, Vec<Row>)> {
    let order =
        matching(network, &modules).map_err(|error| with_floor(network, &modules, error))?;
    let mut modules: Vec<Option<Module>> = modules.into_iter().map(Some).collect();
    let (mut tensors, mut table) = (NamedTensors::new(), Vec::new());
    let with_weights = network.layers.iter().filter(|layer| layer.convolution().is_some());
    for (layer, place) in with_weights.zip(order) {
        let Module { name, weight, bias, .. } = modules[place].take().expect("each module once");
        table.push(Row { from: name, shape: weight.shape, layer: layer.name.clone() });
        let dims = layer.convolution().expect("it has weights").filter();
        tensors.push((format!("{}.weight", layer.name), torch_shape(layer, dims), weight.values));
        if layer.has_bias() {
            let bias = bias.map(|bias| bias.values).unwrap_or_else(|| {
                notes.push(format!("{} has no biases in the file: zeros", layer.name));
                vec![0.0; dims.n]
            });
            tensors.push((format!("{}.bias", layer.name), vec![dims.n], bias));
        }
    }
    Ok((tensors, table))
}

/// An error about shapes, with the remark that they would fit if sizes were rounded down, as PyTorch does.
fn with_floor(network: &Network, modules: &[Module], error: Error) -> Error {
    let mut architecture = network.architecture.clone();
    for layer in &mut architecture.layers {
        match layer {
            LayerSpec::Conv(conv) => conv.rounding = Rounding::Floor,
            LayerSpec::MaxPool(pool) => pool.rounding = Rounding::Floor,
            _ => {}
        }
    }
    let fits = Network::new(architecture).is_ok_and(|network| matching(&network, modules).is_ok());
    match error {
        Error::Network(text) if fits => Error::Network(format!(
            "{text} (sizes that are rounded down, as PyTorch does, would fit: rounding = \"floor\" in convolutions and \
             poolings)"
        )),
        error => error,
    }
}

/// For each layer with weights, the module that is its.
fn matching(network: &Network, modules: &[Module]) -> Result<Vec<usize>> {
    let layers: Vec<&Layer> =
        network.layers.iter().filter(|layer| layer.convolution().is_some()).collect();
    let by_name: Option<Vec<usize>> = layers
        .iter()
        .map(|layer| modules.iter().position(|module| module.name == layer.name))
        .collect();
    let name = &network.architecture.name;
    if layers.len() != modules.len() {
        let unused =
            modules.iter().find(|module| layers.iter().all(|layer| layer.name != module.name));
        return Err(Error::Network(format!(
            "expected weights of {name}, which has {} layers with weights, found {}{}",
            layers.len(),
            modules.len(),
            match (by_name, unused) {
                (Some(_), Some(module)) => format!(": {} is none of them", module.name),
                _ => String::new(),
            }
        )));
    }
    let order = by_name.unwrap_or_else(|| (0..layers.len()).collect());
    for (layer, &place) in layers.iter().zip(&order) {
        let module = &modules[place];
        let dims = layer.convolution().expect("it has weights").filter();
        let shape = torch_shape(layer, dims);
        // A fully connected layer may stand in a file as the convolution that it is.
        let as_conv = [dims.n, dims.c, dims.h, dims.w];
        if module.weight.shape != shape && module.weight.shape != as_conv {
            return Err(Error::Network(format!(
                "expected weights of {name}, whose {} has shape {shape:?}, found {} of shape {:?}: the weights of \
                 another network, or for images of another size",
                layer.name, module.weight.name, module.weight.shape
            )));
        }
        let outputs = if layer.has_bias() { dims.n } else { 0 };
        match &module.bias {
            Some(bias) if bias.values.len() != outputs => {
                return Err(Error::Network(format!(
                    "{}: expected {outputs} values for {} of {name}, found {}",
                    bias.name,
                    layer.name,
                    bias.values.len()
                )));
            }
            _ => {}
        }
    }
    Ok(order)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(name: &str, shape: &[usize]) -> Tensor {
        let values = (0..shape.iter().product()).map(|i| (i % 7) as f32 - 3.0).collect();
        Tensor { name: name.into(), shape: shape.into(), values }
    }

    fn file(tensors: Vec<Tensor>, ordered: bool) -> Tensors {
        Tensors { tensors, ordered, notes: Vec::new() }
    }

    /// Two convolutions and two fully connected layers, as an `nn.Sequential` numbers them.
    const TINY: &str = r#"
        name = "tiny"
        classes = 3
        input = { size = 8, resize = 8 }
        layers = [
          { type = "conv", name = "conv1", channels = 4, kernel = 3, pad = 1 },
          { type = "relu" },
          { type = "maxpool", kernel = 2, stride = 2 },
          { type = "conv", name = "conv2", channels = 6, kernel = 3, pad = 1 },
          { type = "relu" },
          { type = "fc", name = "fc3", outputs = 5 },
          { type = "relu" },
          { type = "fc", name = "fc4" },
        ]"#;

    fn tiny() -> Network {
        Network::new(Architecture::parse(TINY).unwrap()).unwrap()
    }

    fn of_tiny(names: [&str; 4]) -> Vec<Tensor> {
        let shapes: [&[usize]; 4] = [&[4, 3, 3, 3], &[6, 4, 3, 3], &[5, 96], &[3, 5]];
        let named = names.iter().zip(shapes);
        named
            .flat_map(|(name, shape)| {
                let bias = tensor(&format!("{name}.bias"), &shape[..1]);
                [tensor(&format!("{name}.weight"), shape), bias]
            })
            .collect()
    }

    fn names_of(table: &[Row]) -> Vec<(&str, &str)> {
        table.iter().map(|row| (row.from.as_str(), row.layer.as_str())).collect()
    }

    #[test]
    fn by_order_where_names_differ_and_by_name_where_they_are_ours() {
        let expected = [("a.0", "conv1"), ("a.3", "conv2"), ("b.0", "fc3"), ("b.2", "fc4")];
        let mut tensors = of_tiny(["a.0", "a.3", "b.0", "b.2"]);
        for ordered in [true, false] {
            let found = modules(file(tensors.clone(), ordered), &mut Vec::new()).unwrap();
            assert_eq!(
                names_of(&matched(&tiny(), found, &mut Vec::new()).unwrap().1),
                expected,
                "{ordered}"
            );
            tensors.sort_by(|a, b| b.name.cmp(&a.name)); // as no network has them
        }
        let mut tensors = of_tiny(["conv1", "conv2", "fc3", "fc4"]);
        tensors.reverse();
        let found = modules(file(tensors, true), &mut Vec::new()).unwrap();
        let (tensors, table) = matched(&tiny(), found, &mut Vec::new()).unwrap();
        assert!(table.iter().all(|row| row.from == row.layer));
        assert_eq!(
            tensors[0],
            ("conv1.weight".into(), vec![4, 3, 3, 3], tensor("", &[4, 3, 3, 3]).values)
        );
        // With sizes that PyTorch rounds down, where nothing in the description says so.
        let odd = TINY.replace("size = 8, resize = 8", "size = 9, resize = 9");
        let odd = Network::new(Architecture::parse(&odd).unwrap()).unwrap();
        let found = modules(file(of_tiny(["a.0", "a.3", "b.0", "b.2"]), true), &mut Vec::new());
        let error = matched(&odd, found.unwrap(), &mut Vec::new()).unwrap_err().to_string();
        assert!(error.contains("rounding = \"floor\""), "{error}");
        // A classifier written as the convolutions that it is.
        let mut tensors = of_tiny(["a.0", "a.3", "b.0", "b.2"]);
        tensors[4].shape = vec![5, 6, 4, 4];
        let found = modules(file(tensors, true), &mut Vec::new()).unwrap();
        assert_eq!(matched(&tiny(), found, &mut Vec::new()).unwrap().0[4].1, [5, 96]);
    }

    /// Names without `features.` and `classifier.` sort so that the 10th comes after the 9th.
    #[test]
    fn numbers_in_names_are_numbers() {
        let mut names = ["conv10", "conv9", "conv1_2", "conv1_10", "conv1"];
        names.sort_by(|a, b| natural(a, b));
        assert_eq!(names, ["conv1", "conv1_2", "conv1_10", "conv9", "conv10"]);
    }

    #[test]
    fn other_weights_are_refused_by_name() {
        let refused = |tensors: Vec<Tensor>, words: &[&str]| {
            let found = modules(file(tensors, true), &mut Vec::new());
            let error = found
                .and_then(|found| matched(&tiny(), found, &mut Vec::new()))
                .unwrap_err()
                .to_string();
            assert!(words.iter().all(|word| error.contains(word)), "{error}");
        };
        let good = || of_tiny(["a.0", "a.3", "b.0", "b.2"]);
        let mut wrong = good();
        wrong[2].shape = vec![6, 4, 1, 9];
        refused(wrong, &["conv2", "[6, 4, 3, 3]", "a.3.weight", "[6, 4, 1, 9]"]);
        refused(good()[..6].to_vec(), &["4 layers", "found 3"]);
        let mut wrong = good();
        wrong[1] = tensor("a.0.bias", &[5]);
        refused(wrong, &["a.0.bias", "expected 4", "found 5"]);
        let mut wrong = good();
        wrong[0].name = "mystery".into();
        refused(wrong, &["mystery", ".weight"]);
        let mut wrong = good();
        wrong.remove(0);
        refused(wrong, &["a.0.weight", "found bias"]);
        let mut wrong = good();
        wrong[0].shape = vec![4, 3, 9];
        refused(wrong, &["a.0.weight", "[4, 3, 9]"]);
    }

    fn normalisation(name: &str, channels: usize) -> Vec<Tensor> {
        let part = |part: &str, value: f32| Tensor {
            name: format!("{name}.{part}"),
            shape: vec![channels],
            values: (0..channels).map(|k| value + 0.1 * k as f32).collect(),
        };
        vec![
            part("weight", 0.5),
            part("bias", -0.2),
            part("running_mean", 0.3),
            part("running_var", 2.0),
        ]
    }

    /// Normalised after the convolution, or before by other weights: the same, channel by channel.
    #[test]
    fn normalisation_is_folded_into_the_convolution_before_it() {
        let mut tensors = of_tiny(["a.0", "a.4", "b.0", "b.2"]);
        tensors.splice(2..2, normalisation("a.1", 4));
        let before = tensors[0].values.clone();
        let mut notes = Vec::new();
        let found = modules(file(tensors.clone(), true), &mut notes).unwrap();
        assert_eq!((found.len(), notes.len()), (4, 1));
        let bias = &found[0].bias.as_ref().unwrap().values;
        for k in 0..4 {
            let offset = 0.1 * k as f32;
            let factor = (0.5 + offset) / (2.0 + offset + 1e-5f32).sqrt();
            for i in 0..27 {
                let (folded, plain) = (found[0].weight.values[k * 27 + i], before[k * 27 + i]);
                assert!((folded - plain * factor).abs() < 1e-6);
            }
            let plain = tensors[1].values[k];
            let expected = (plain - (0.3 + offset)) * factor + (-0.2 + offset);
            assert!((bias[k] - expected).abs() < 1e-6);
        }
        // Without an order: where the names say that it is behind the convolution.
        let found = modules(file(tensors.clone(), false), &mut Vec::new()).unwrap();
        assert!(found[0].folded && !found[1].folded);
        // By names that are no numbers, of two convolutions and two layers with as many outputs; in files with an order
        // only right behind.
        for (names, normalised) in [
            (["conv1", "conv2", "fc3", "fc4"], "bn1"),
            (["conv1", "conv2", "fc3", "fc4"], "conv1_bn"),
            (["b.conv", "c.conv", "fc3", "fc4"], "b.bn"),
        ] {
            let mut tensors = of_tiny(names);
            tensors.splice(2..2, normalisation(normalised, 4));
            for ordered in [true, false] {
                let found = modules(file(tensors.clone(), ordered), &mut Vec::new()).unwrap();
                let names: Vec<&str> =
                    found.iter().filter(|m| m.folded).map(|m| &*m.name).collect();
                assert_eq!(names, [&*found[0].name], "{normalised}, {ordered}");
            }
        }
        let mut other = of_tiny(["conv1", "conv2", "fc3", "fc4"]);
        (other[4].shape, other[5].values) = (vec![6, 80], vec![0.0; 6]);
        other.splice(6..6, normalisation("fc3_bn", 6));
        let found = modules(file(other, false), &mut Vec::new()).unwrap();
        assert!(found[2].folded && !found[1].folded);
        // Behind a relu, of other channels, before all, or twice.
        let refused = |tensors: Vec<Tensor>| {
            let error = modules(file(tensors, true), &mut Vec::new()).unwrap_err().to_string();
            assert!(error.contains("batch normalisation"), "{error}");
        };
        let with = |at: usize, name: &str, channels: usize| {
            let mut tensors = of_tiny(["a.0", "a.4", "b.0", "b.2"]);
            tensors.splice(at..at, normalisation(name, channels));
            tensors
        };
        refused(with(2, "a.2", 4));
        refused(with(4, "a.1", 4));
        refused(with(2, "a.1", 5));
        refused(with(0, "a.1", 4));
        let mut twice = with(2, "a.1", 4);
        twice.splice(6..6, normalisation("a.2", 4));
        refused(twice);
    }

    /// Shapes of AlexNet and VGG are theirs alone; those of ZFNet's ports tell nothing of padding and normalisation, but
    /// numbers in an `nn.Sequential` do.
    #[test]
    fn networks_are_known_by_their_shapes() {
        let of = |preset: &str, names: &dyn Fn(usize) -> String| -> Vec<Module> {
            let network = Network::new(Architecture::find(preset).unwrap()).unwrap();
            network
                .convolutions()
                .enumerate()
                .map(|(i, (layer, dims))| {
                    let shape = torch_shape(layer, dims.filter());
                    let weight = Tensor { name: names(i) + ".weight", shape, values: Vec::new() };
                    let bias =
                        Some(Tensor { values: vec![0.0; dims.k as usize], ..Tensor::default() });
                    Module { name: names(i), weight, bias, folded: false }
                })
                .collect()
        };
        let plain = |i: usize| format!("layer{i}");
        for name in ["vgg11", "vgg13", "vgg16", "vgg19", "alexnet-torchvision", "zfnet-mini"] {
            assert_eq!(recognise(&of(name, &plain)).unwrap().name, name);
        }
        let error = recognise(&of("zfnet", &plain)).unwrap_err().to_string();
        assert!(error.contains("zfnet, zfnet-torch, zfnet-torch-lrn"), "{error}");
        let in_sequence = |places: [usize; 5]| {
            move |i: usize| match places.get(i) {
                Some(place) => format!("features.{place}"),
                None => format!("classifier.{}", (i - 5) * 3),
            }
        };
        let port = of("zfnet", &in_sequence([0, 3, 6, 8, 10]));
        assert_eq!(recognise(&port).unwrap().name, "zfnet-torch");
        let mut other = of("vgg11", &plain);
        other[3].weight.shape[2] = 5;
        let error = recognise(&other).unwrap_err().to_string();
        assert!(
            error.contains("11 layers") && error.contains("layer0.weight [64, 3, 3, 3]"),
            "{error}"
        );
        // A thousand classes or ten.
        let mut ten = of("vgg11", &plain);
        ten[10].weight.shape[0] = 10;
        ten[10].bias = None;
        assert_eq!(recognise(&ten).unwrap().classes, 10);
    }
}
