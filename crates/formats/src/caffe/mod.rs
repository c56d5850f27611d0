//! Caffe's files: a `.caffemodel` holds layers and weights; a prototxt describes a network without weights, and if one
//! is given, it says what the layers are. The definition is `src/caffe/proto/caffe.proto` of
//! [Caffe](https://github.com/BVLC/caffe); what layers compute is in its `src/caffe/layers/`.

mod data;
mod graph;
mod layer;
#[doc(hidden)] // for tests, which build networks of them
#[rustfmt::skip] // as prost-build writes it
#[allow(missing_docs)] // caffe.proto has them
pub mod proto;
mod text;
mod wire;

use std::collections::HashMap;

use proto::{LayerParameter, NetParameter, V1LayerParameter, v1_layer_parameter::LayerType};
use zfnet_core::{Error, Result};

use crate::{Chain, Preprocessing, Tensor};

/// Longest name of a layer.
const MAX_NAME: usize = 1000;

/// The network of a `.caffemodel`, up to the layer `until`, if one is named, and with it.
///
/// A `prototxt` (deploy or train_val; a text, as [`zfnet_core::text::read`] gives it) decides what the layers are, and
/// the size of the input; their weights are found by name. Of layers for training and for testing, those for testing
/// are taken where there are both.
///
/// # Errors
/// For bytes that are no such file, for what is not a chain (the error names the last layer up to which it is one), and
/// for layers that have no counterpart in [`Op`](crate::Op), by name. [`Error::UnknownLayer`] if there is no `until`.
pub fn read(bytes: &[u8], prototxt: Option<&str>, until: Option<&str>) -> Result<Chain> {
    let mut weights = Net::new(wire::network(bytes)?)?;
    let Some(prototxt) = prototxt else {
        return graph::chain(weights.tested(), until);
    };
    let mut net = Net::new(text::parse(prototxt)?)?.tested();
    let left_out = net.take_weights(&mut weights)?;
    let mut chain = graph::chain(net, until)?;
    if !left_out.is_empty() && until.is_none() {
        chain.notes.push(format!(
            "the .caffemodel has weights of layers that the prototxt does not have: {}",
            left_out.join(", ")
        ));
    }
    if chain.preprocessing.is_none() {
        data::from_training(&mut chain, &weights)?;
    }
    Ok(chain)
}

/// The network that a prototxt describes, for tests and fuzzing.
#[doc(hidden)]
pub fn parse_prototxt(text: &str) -> Result<NetParameter> {
    text::parse(text)
}

/// A mean image (`mean.binaryproto`): CHW, 0 to 255, the channels of three being blue, green, red.
///
/// # Errors
/// For bytes that are no such file.
pub fn read_mean(bytes: &[u8]) -> Result<Tensor> {
    let tensor = wire::tensor(wire::blob(bytes)?, "mean".into());
    let tensor = tensor.and_then(|mut tensor| match tensor.shape[..] {
        [channels, rows, columns] | [1, channels, rows, columns] => {
            let shape = vec![channels, rows, columns];
            if shape.contains(&0) {
                return Err(format!("expected a mean image, found one of the sizes {shape:?}"));
            }
            tensor.shape = shape;
            Ok(tensor)
        }
        _ => Err(format!(
            "expected a mean image of the sizes 1, channels, rows, columns, found {:?}",
            tensor.shape
        )),
    });
    tensor.map_err(|reason| Error::Network(format!("mean image: {reason}")))
}

/// Gives a chain the mean image of a `mean.binaryproto`. If nothing is known of its preprocessing, pixels are from 0 to
/// 255.
///
/// # Errors
/// For bytes that are no mean image, or one of other channels than the chain's.
pub fn set_mean(chain: &mut Chain, bytes: &[u8]) -> Result<()> {
    let Tensor { shape, values, .. } = read_mean(bytes)?;
    let channels = chain.input.channels;
    if shape[0] != channels {
        return Err(Error::Network(format!(
            "mean image: expected {channels} channels, as the network's input, found {}",
            shape[0]
        )));
    }
    let preprocessing = chain.preprocessing.get_or_insert_with(|| Preprocessing {
        scale: 1.,
        std: vec![1.; channels],
        bgr: channels == 3,
        ..Preprocessing::default()
    });
    // Caffe subtracts it before it scales.
    preprocessing.mean = values.iter().map(|value| value * preprocessing.scale).collect();
    preprocessing.mean_size = Some([shape[1], shape[2]]);
    Ok(())
}

/// A network as newer files have it.
struct Net {
    name: String,
    /// Inputs that no layer makes, with their sizes if they are said.
    inputs: Vec<(String, Vec<i64>)>,
    layers: Vec<LayerParameter>,
    /// If weights are another file's: what layers there have some.
    stored: Option<Vec<String>>,
}

impl Net {
    fn new(net: NetParameter) -> Result<Net> {
        let NetParameter { name, layers, input, input_dim, input_shape, layer } = net;
        if !layer.is_empty() && !layers.is_empty() {
            return Err(Error::Network(format!(
                "expected layers of one version, found {} of version 1 and {} of version 2",
                layers.len(),
                layer.len()
            )));
        }
        let old = layers.into_iter().map(upgraded).collect::<Result<Vec<_>>>()?;
        let mut layers = if old.is_empty() { layer } else { old };
        if layers.is_empty() {
            return Err(Error::Network("expected layers, found none".into()));
        }
        for (place, layer) in layers.iter_mut().enumerate() {
            if layer.name().is_empty() {
                let top = layer.top.first().cloned();
                layer.name = Some(top.unwrap_or_else(|| format!("layer {}", place + 1)));
            }
            // Notes repeat them.
            if layer.name().len() > MAX_NAME {
                return Err(Error::Network(format!(
                    "layer {}: expected a name of at most {MAX_NAME} bytes, found one of {}",
                    place + 1,
                    layer.name().len()
                )));
            }
        }
        let sizes = |place: usize| match input_shape.get(place) {
            Some(shape) => shape.dim.clone(),
            None => input_dim.chunks_exact(4).nth(place).unwrap_or_default().to_vec(),
        };
        let inputs = input.into_iter().enumerate().map(|(i, name)| (name, sizes(i))).collect();
        Ok(Net { name: name.unwrap_or_default(), inputs, layers, stored: None })
    }

    /// Without the layers that only training needs.
    fn tested(mut self) -> Net {
        self.layers = graph::tested(self.layers, &self.inputs);
        self
    }

    /// Takes the weights of its layers, by name, from `file`: those of which layers there are left.
    fn take_weights(&mut self, file: &mut Net) -> Result<Vec<String>> {
        let mut weights = HashMap::new();
        let mut names = Vec::new();
        for layer in &mut file.layers {
            if layer.blobs.is_empty() {
                continue;
            }
            let blobs = std::mem::take(&mut layer.blobs);
            if weights.insert(layer.name().to_owned(), blobs).is_some() {
                return Err(Error::Network(format!(
                    "expected one layer of each name in the .caffemodel, found two `{}` with weights",
                    layer.name()
                )));
            }
            names.push(layer.name().to_owned());
        }
        for layer in &mut self.layers {
            layer.blobs = weights.remove(layer.name()).unwrap_or_default();
        }
        let left_out = names.iter().filter(|name| weights.contains_key(*name)).cloned().collect();
        self.stored = Some(names);
        Ok(left_out)
    }
}

/// A layer of version 1 as one of version 2.
fn upgraded(layer: V1LayerParameter) -> Result<LayerParameter> {
    if layer.layer.is_some() {
        return Err(Error::Network(
            "expected layers of version 1 or 2, found version 0 (Caffe of 2013): Caffe's upgrade_net_proto_binary, \
             or upgrade_net_proto_text, makes newer ones of them"
                .into(),
        ));
    }
    let kind = match layer.r#type {
        None => "none".into(),
        Some(kind) => match LayerType::try_from(kind) {
            Ok(kind) => new_name(kind),
            Err(_) => format!("number {kind}"),
        },
    };
    Ok(LayerParameter {
        name: layer.name,
        r#type: Some(kind),
        bottom: layer.bottom,
        top: layer.top,
        blobs: layer.blobs,
        include: layer.include,
        exclude: layer.exclude,
        transform_param: layer.transform_param,
        convolution_param: layer.convolution_param,
        data_param: layer.data_param,
        dropout_param: layer.dropout_param,
        dummy_data_param: layer.dummy_data_param,
        image_data_param: layer.image_data_param,
        inner_product_param: layer.inner_product_param,
        lrn_param: layer.lrn_param,
        memory_data_param: layer.memory_data_param,
        pooling_param: layer.pooling_param,
        relu_param: layer.relu_param,
        ..LayerParameter::default()
    })
}

/// INNER_PRODUCT is InnerProduct since version 2; a few are written otherwise.
fn new_name(kind: LayerType) -> String {
    match kind {
        LayerType::Relu => "ReLU".into(),
        LayerType::Lrn => "LRN".into(),
        LayerType::Mvn => "MVN".into(),
        LayerType::Tanh => "TanH".into(),
        LayerType::Bnll => "BNLL".into(),
        LayerType::Absval => "AbsVal".into(),
        LayerType::Argmax => "ArgMax".into(),
        LayerType::Hdf5Data => "HDF5Data".into(),
        LayerType::Hdf5Output => "HDF5Output".into(),
        LayerType::SoftmaxLoss => "SoftmaxWithLoss".into(),
        kind => {
            let words = kind.as_str_name().split('_');
            words.map(|word| word[..1].to_owned() + &word[1..].to_ascii_lowercase()).collect()
        }
    }
}
