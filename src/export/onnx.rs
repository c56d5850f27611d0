//! A network as ONNX.

use zfnet_formats::{Chain, Input, Layer, Op, Preprocessing, Tensor, onnx as file};

use crate::backend::Backend;
use crate::model::weights::{KEY, Metadata, named_values};
use crate::model::{Kind, Model, Preprocess};
use crate::shape::{ConvDims, PoolDims};
use crate::{Error, Result};

/// Key of the mean that preprocessing takes off, beside [`KEY`], in a file's metadata: JSON, HWC or one value a channel.
pub const MEAN_KEY: &str = "zfnet.mean";

/// The bytes of a network's file: opset 17, for any number of images at a time. Its metadata say how images are prepared
/// and what the classes are; `with_preprocessing` has the graph prepare pixels itself, which are bytes then, `[N, C,
/// rows, columns]`, RGB or grey, already resized and cropped.
///
/// # Errors
/// If the network has a layer that the writer does not have, or is larger than ONNX files can be.
pub fn onnx<B: Backend>(
    backend: &B,
    model: &Model<B>,
    with_preprocessing: bool,
) -> Result<Vec<u8>> {
    let chain = chain(backend, model)?;
    let mean = serde_json::to_string(&model.preprocess.mean).expect("plain data");
    let metadata = [(KEY.to_owned(), Metadata::of(model).to_json()), (MEAN_KEY.to_owned(), mean)];
    let pixels = if with_preprocessing { file::Pixels::Bytes } else { file::Pixels::Prepared };
    let options = file::Options { pixels, metadata: &metadata };
    let mut bytes = Vec::new();
    file::write(&chain, &options, &mut bytes)?;
    Ok(bytes)
}

fn chain<B: Backend>(backend: &B, model: &Model<B>) -> Result<Chain> {
    let Model { network, params, preprocess, .. } = model;
    let mut values = named_values(backend, network, params)?.into_iter();
    let mut tensor = || {
        let (name, shape, values) = values.next().expect("a tensor of each layer with weights");
        Tensor { name, shape, values }
    };
    let mut layers = Vec::new();
    for layer in &network.layers {
        let op = match &layer.kind {
            Kind::Conv(conv) => {
                let ConvDims { h, w, r, s, p, q, stride, pad, groups, .. } = conv.dims;
                Op::Conv {
                    weight: tensor(),
                    bias: tensor().values,
                    stride: stride.map(|step| step as usize),
                    pad: around([(h, r, p), (w, s, q)], stride, pad),
                    groups: groups as usize,
                    ceil: false,
                }
            }
            Kind::FullyConnected(_) => Op::Fc { weight: tensor(), bias: tensor().values },
            Kind::Relu(_) => Op::Relu,
            Kind::MaxPool(pool) => {
                let PoolDims { h, w, p, q, window, stride, pad, .. } = pool.dims;
                Op::MaxPool {
                    kernel: window.map(|side| side as usize),
                    stride: stride.map(|step| step as usize),
                    pad: around([(h, window[0], p), (w, window[1], q)], stride, pad),
                    ceil: false,
                }
            }
            Kind::Lrn(lrn) => Op::Lrn {
                size: lrn.size as usize,
                alpha: lrn.alpha * lrn.size as f32, // which ONNX divides by it
                beta: lrn.beta,
                k: lrn.k,
            },
            Kind::Dropout(dropout) => Op::Dropout { rate: dropout.rate },
            Kind::ConvTranspose(_) => {
                return Err(Error::Network(format!(
                    "layer {}: a transposed convolution, which is not written as ONNX",
                    layer.name
                )));
            }
        };
        layers.push(Layer { name: layer.name.clone(), op });
    }
    let input = network.input();
    Ok(Chain {
        name: network.architecture.name.clone(),
        input: Input { channels: input.c, size: Some([input.h, input.w]) },
        layers,
        preprocessing: Some(of_pixels(preprocess)),
        classes: model.classes.names.clone(),
        ..Chain::default()
    })
}

/// Pads at the top, bottom, left and right with which windows of (input, kernel, windows) along both axes are all
/// filled.
fn around(axes: [(u32, u32, u32); 2], stride: [u32; 2], before: [u32; 2]) -> [usize; 4] {
    let after = |axis: usize| {
        let (input, kernel, windows) = axes[axis];
        ((windows - 1) * stride[axis] + kernel).saturating_sub(input + before[axis]) as usize
    };
    [before[0] as usize, after(0), before[1] as usize, after(1)]
}

/// How the pixels of a crop become the input: of a mean image, what lies under the crop in the middle.
fn of_pixels(preprocess: &Preprocess) -> Preprocessing {
    let (channels, [rows, columns]) = (preprocess.channels(), preprocess.size);
    let (mean, mean_size) = if preprocess.mean_is_image() {
        let [top, left] = preprocess.centre().map(|place| place as usize);
        let of_channel = |channel: usize| {
            let places =
                (0..rows).flat_map(move |y| (0..columns).map(move |x| (top + y, left + x)));
            places.map(move |(y, x)| {
                preprocess.mean[(y * preprocess.resize.columns + x) * channels + channel]
            })
        };
        ((0..channels).flat_map(of_channel).collect(), Some([rows, columns]))
    } else {
        (preprocess.mean.clone(), None)
    };
    Preprocessing {
        scale: preprocess.scale,
        mean,
        mean_size,
        std: preprocess.std.clone(),
        bgr: channels == 3 && preprocess.order == [2, 1, 0],
        crop: Some(preprocess.size),
        ..Preprocessing::default()
    }
}
