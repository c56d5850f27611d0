//! Weights on disk: one safetensors file with PyTorch's names and layout, and all that it takes
//! to use them.
//!
//! Tensors are `conv1.weight` as OIHW, a transposed convolution's as IOHW, `fc6.weight` as `[out, in]`
//! with the inputs in C, H, W order, and biases. `preprocess.mean` is the mean that is taken off,
//! HWC; the rest of the preprocessing, the network's description and the class names are JSON under
//! the metadata's one key, `zfnet` (one key, so that equal models are equal files).

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use zfnet_core::size_text;
use zfnet_core::tensors::{deserialize, unreadable};

use super::{Architecture, Initial, Network, Params, Preprocess};
use crate::backend::{Backend, Param};
use crate::data::classes::Classes;
use crate::shape::{ConvDims, Shape};
use crate::{Error, Result};

/// The metadata's key.
pub const KEY: &str = "zfnet";
/// Version of the metadata. Version 1 did not say how weights were drawn.
const VERSION: u32 = 2;
/// Name of the mean's tensor.
pub const MEAN: &str = "preprocess.mean";

/// A network with weights, and what it takes to show it images.
pub struct Model<B: Backend> {
    /// The network.
    pub network: Network,
    /// Its weights.
    pub params: Params<B>,
    /// What happens to an image first.
    pub preprocess: Preprocess,
    /// Its classes.
    pub classes: Classes,
}

/// What the metadata holds.
#[derive(Serialize, Deserialize)]
pub struct Metadata {
    version: u32,
    architecture: Architecture,
    preprocess: Preprocess,
    /// Their names.
    classes: Vec<String>,
    /// Their folders' names; none where they are not known.
    #[serde(default)]
    class_folders: Vec<String>,
    /// How weights were drawn, by layer, as far as it is known.
    #[serde(default)]
    initial: BTreeMap<String, Initial>,
}

/// What is read first, of metadata that another version may have written.
#[derive(Deserialize)]
struct MetadataVersion {
    version: u32,
}

/// The network that the bytes of a model's file describe.
///
/// # Errors
/// If they are not a file of ours.
pub fn architecture_in(bytes: &[u8]) -> Result<Architecture> {
    about(bytes)?.map(|about| about.architecture).ok_or_else(names_no_network)
}

fn names_no_network() -> Error {
    Error::Network("names no network: expected a checkpoint".into())
}

/// Whether bytes are a model's file, or at least begin as one: a safetensors file with our metadata.
pub fn is_model(bytes: &[u8]) -> bool {
    let metadata = SafeTensors::read_metadata(bytes);
    metadata
        .is_ok_and(|(_, about)| about.metadata().as_ref().is_some_and(|map| map.contains_key(KEY)))
}

/// The metadata of a model's file; a bare file has none.
fn about(bytes: &[u8]) -> Result<Option<Metadata>> {
    let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(unreadable)?;
    let json = metadata.metadata().as_ref().and_then(|metadata| metadata.get(KEY));
    json.map(|json| Metadata::parse(json)).transpose()
}

impl Metadata {
    /// That of a model.
    pub fn of<B: Backend>(model: &Model<B>) -> Self {
        Metadata {
            version: VERSION,
            architecture: model.network.architecture.clone(),
            preprocess: model.preprocess.clone(),
            classes: model.classes.names.clone(),
            class_folders: model.classes.folders().unwrap_or_default().to_vec(),
            initial: model.named_initial(),
        }
    }

    /// From its JSON.
    ///
    /// # Errors
    /// If another version has written it, or it is damaged.
    pub fn parse(json: &str) -> Result<Self> {
        let unreadable = |error: serde_json::Error| {
            Error::Network(format!(
                "expected metadata as this version of the program writes it, found {error}: use the version that \
                 wrote it"
            ))
        };
        let MetadataVersion { version: found } = serde_json::from_str(json).map_err(unreadable)?;
        if !(1..=VERSION).contains(&found) {
            return Err(Error::Version { what: "metadata", expected: VERSION, found });
        }
        serde_json::from_str(json).map_err(unreadable)
    }

    /// As JSON, without the mean.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("plain data")
    }

    /// The network, its preprocessing with the mean, which is kept elsewhere, and its classes.
    ///
    /// # Errors
    /// If they do not fit each other.
    pub fn parts(self, mean: Vec<f32>) -> Result<(Network, Preprocess, Classes)> {
        let Metadata { architecture, mut preprocess, classes: names, class_folders, .. } = self;
        preprocess.mean = mean;
        let classes = match class_folders.len() {
            0 if names == Classes::unknown(names.len()).names => Classes::unknown(names.len()),
            0 => Classes::named(names),
            n if n == names.len() => Classes::new(class_folders, names),
            n => {
                let names = names.len();
                let reason = format!("expected a folder for each of {names} classes, found {n}");
                return Err(Error::Network(reason));
            }
        };
        let network = Network::new(architecture)?;
        preprocess.check()?;
        let input = network.input();
        let fits = (preprocess.size, preprocess.channels()) == ([input.h, input.w], input.c);
        if !fits || classes.len() != network.classes() {
            let crops = |size, channels| format!("{}x{channels}", size_text(size));
            return Err(Error::Network(format!(
                "expected crops of {} pixels and {} class names, found {} and {}",
                crops([input.h, input.w], input.c),
                network.classes(),
                crops(preprocess.size, preprocess.channels()),
                classes.len()
            )));
        }
        Ok((network, preprocess, classes))
    }
}

impl<B: Backend> Model<B> {
    /// The bytes of the file.
    ///
    /// # Errors
    /// If the backend does not give its weights.
    pub fn to_bytes(&self, backend: &B) -> Result<Vec<u8>> {
        let about = Metadata::of(self).to_json();
        let mut tensors = named_values(backend, &self.network, &self.params)?;
        tensors.push((MEAN.into(), self.preprocess.mean_shape(), self.preprocess.mean.clone()));
        serialize(&tensors, Some(HashMap::from([(KEY.into(), about)])))
    }

    /// How weights were drawn, by layer, as far as it is known.
    fn named_initial(&self) -> BTreeMap<String, Initial> {
        let layers = self.network.layers.iter().zip(&self.params.initial);
        layers.filter_map(|(layer, initial)| Some((layer.name.clone(), (*initial)?))).collect()
    }

    /// A model from the bytes of its file.
    ///
    /// # Errors
    /// If the bytes are not a model, or its tensors do not fit its network: their names, what was
    /// expected, what was found.
    pub fn from_bytes(backend: &B, bytes: &[u8]) -> Result<Self> {
        let tensors = deserialize(bytes)?;
        let mut about = about(bytes)?.ok_or_else(names_no_network)?;
        let initial = std::mem::take(&mut about.initial);
        let mean = values(&tensors, MEAN)?.into_owned();
        let (network, preprocess, classes) = about.parts(mean)?;
        let tensor = |name: &str, shape: &[usize]| values_of_shape(&tensors, name, shape);
        let mut params = read_params(backend, &network, tensor, Param::weights)?;
        for (name, initial) in initial {
            let layer = network.layer(&name)?;
            let std_of_weights = (0.0..f64::from(f32::MAX)).contains(&initial.std);
            if params.layers[layer].is_none() || !std_of_weights {
                return Err(Error::Network(format!(
                    "initial weights of {name}: expected a layer with weights and a standard deviation not \
                     below 0, found {}",
                    initial.std
                )));
            }
            params.initial[layer] = Some(initial);
        }
        Ok(Model { network, params, preprocess, classes })
    }
}

/// Names, shapes and values of tensors.
pub type NamedTensors = Vec<(String, Vec<usize>, Vec<f32>)>;

/// All parameters in PyTorch's layout, in the chain's order.
///
/// # Errors
/// If the backend does not give them.
pub fn named_values<B: Backend>(
    backend: &B,
    network: &Network,
    params: &Params<B>,
) -> Result<NamedTensors> {
    let mut named = Vec::new();
    for (layer, param) in network.layers.iter().zip(&params.layers) {
        let Some(param) = param else { continue };
        let shape = param.weight.shape();
        let mut krsc = vec![0.0; shape.len()];
        backend.download(&mut krsc, &param.weight)?;
        named.push((
            format!("{}.weight", layer.name),
            torch_shape(layer, shape),
            to_kcrs(&krsc, shape),
        ));
        if layer.has_bias() {
            let mut bias = vec![0.0; shape.n];
            backend.download(&mut bias, &param.bias)?;
            named.push((format!("{}.bias", layer.name), vec![shape.n], bias));
        }
    }
    Ok(named)
}

/// Fills parameters from tensors in PyTorch's layout, which `tensor` gives by name and shape.
///
/// # Errors
/// If it does not, or a value is not finite.
pub fn read_params<'a, B: Backend>(
    backend: &B,
    network: &Network,
    mut tensor: impl FnMut(&str, &[usize]) -> Result<Cow<'a, [f32]>>,
    allocate: impl Fn(&B, &ConvDims) -> Result<Param<B>>,
) -> Result<Params<B>> {
    let mut layers = Vec::new();
    for layer in &network.layers {
        let Some(dims) = layer.convolution() else {
            layers.push(None);
            continue;
        };
        let shape = dims.filter();
        let mut read = |what: &str, expected: &[usize]| {
            let name = format!("{}.{what}", layer.name);
            let values = tensor(&name, expected)?;
            match values.iter().find(|value| !value.is_finite()) {
                Some(value) => {
                    Err(Error::Network(format!("{name}: expected numbers, found {value}")))
                }
                None => Ok(values),
            }
        };
        // Before memory is allocated for them: a small file may describe a large network.
        let weight = read("weight", &torch_shape(layer, shape))?;
        let bias = if layer.has_bias() { Some(read("bias", &[shape.n])?) } else { None };
        let mut param = allocate(backend, dims)?;
        backend.upload(&mut param.weight, &from_kcrs(&weight, shape))?;
        if let Some(bias) = bias {
            backend.upload(&mut param.bias, &bias)?;
        }
        layers.push(Some(param));
    }
    Ok(Params { initial: vec![None; layers.len()], layers })
}

/// The f32 values of a tensor that must have this shape.
///
/// # Errors
/// If there is none of that name, or it has another shape or type.
pub fn values_of_shape<'a>(
    tensors: &SafeTensors<'a>,
    name: &str,
    expected: &[usize],
) -> Result<Cow<'a, [f32]>> {
    let found = tensors.tensor(name).map_err(|_| {
        let mut names = tensors.names();
        names.sort_unstable();
        Error::Network(format!("expected a tensor {name}, found only {}", names.join(", ")))
    })?;
    if found.shape() != expected {
        return Err(Error::Network(format!(
            "{name}: expected shape {expected:?}, found {:?}: the weights of another network",
            found.shape()
        )));
    }
    values(tensors, name)
}

/// The f32 values of a tensor.
fn values<'a>(tensors: &SafeTensors<'a>, name: &str) -> Result<Cow<'a, [f32]>> {
    let tensor = tensors
        .tensor(name)
        .map_err(|_| Error::Network(format!("expected a tensor {name}, found none")))?;
    if tensor.dtype() != Dtype::F32 {
        return Err(Error::Network(format!(
            "{name}: expected values of type F32, found {:?}",
            tensor.dtype()
        )));
    }
    // The file's bytes need not lie where f32 may lie.
    Ok(match bytemuck::try_cast_slice(tensor.data()) {
        Ok(values) => Cow::Borrowed(values),
        Err(_) => Cow::Owned(bytemuck::pod_collect_to_vec(tensor.data())),
    })
}

/// The bytes of a safetensors file of f32 tensors.
///
/// # Errors
/// If the names or shapes make no file.
pub fn serialize(
    tensors: &NamedTensors,
    metadata: Option<HashMap<String, String>>,
) -> Result<Vec<u8>> {
    let views = tensors.iter().map(|(name, shape, values)| {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytemuck::cast_slice(values));
        (name, view.expect("shapes and values agree"))
    });
    safetensors::serialize(views, metadata)
        .map_err(|error| Error::Network(format!("cannot write safetensors: {error}")))
}

/// PyTorch's shape of a weight: OIHW, or `[out, in]` where the layer is fully connected. (A transposed
/// convolution's is IOHW, which is OIHW of the convolution that it transposes.)
pub fn torch_shape(layer: &super::Layer, shape: Shape) -> Vec<usize> {
    match layer.kind {
        super::Kind::FullyConnected(_) => vec![shape.n, shape.per_image()],
        _ => vec![shape.n, shape.c, shape.h, shape.w],
    }
}

/// Filters K, R, S, C as K, C, R, S.
pub fn to_kcrs(krsc: &[f32], shape: Shape) -> Vec<f32> {
    let Shape { h, w, c, .. } = shape;
    let mut kcrs = vec![0.0; krsc.len()];
    for (from, to) in krsc.chunks_exact(h * w * c).zip(kcrs.chunks_exact_mut(h * w * c)) {
        for (i, value) in from.iter().enumerate() {
            to[i % c * h * w + i / c] = *value;
        }
    }
    kcrs
}

/// Filters K, C, R, S as K, R, S, C; `shape` is KRSC.
pub fn from_kcrs(kcrs: &[f32], shape: Shape) -> Vec<f32> {
    let Shape { h, w, c, .. } = shape;
    let mut krsc = vec![0.0; kcrs.len()];
    for (from, to) in kcrs.chunks_exact(h * w * c).zip(krsc.chunks_exact_mut(h * w * c)) {
        for (i, value) in to.iter_mut().enumerate() {
            *value = from[i % c * h * w + i / c];
        }
    }
    krsc
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two outputs of a 1x2 map of three channels, worked out by hand: PyTorch counts its inputs
    /// channel by channel, we pixel by pixel.
    #[test]
    fn fully_connected_weights_are_permuted() {
        let shape = Shape::new(2, 1, 2, 3);
        let ours = [0., 1., 2., 3., 4., 5., 10., 11., 12., 13., 14., 15.];
        let torch = [0., 3., 1., 4., 2., 5., 10., 13., 11., 14., 12., 15.];
        assert_eq!(to_kcrs(&ours, shape), torch);
        assert_eq!(from_kcrs(&torch, shape), ours);
    }
}
