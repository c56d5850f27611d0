//! Caffe's networks, built for tests.
#![allow(dead_code)] // a test program uses a part

use prost::Message;
use zfnet_formats::caffe::proto::*;

/// Values that differ, and are no powers of two.
pub fn numbers(count: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 37 + 11) % 101) as f32 / 50. - 1.).collect()
}

pub fn blob(sizes: &[i64], values: Vec<f32>) -> BlobProto {
    let shape = Some(BlobShape { dim: sizes.to_vec() });
    BlobProto { shape, data: values, ..BlobProto::default() }
}

/// A blob of so many [`numbers`] as its sizes ask for.
pub fn filled(sizes: &[i64]) -> BlobProto {
    blob(sizes, numbers(sizes.iter().product::<i64>() as usize))
}

pub fn layer(name: &str, kind: &str, bottom: &str, top: &str) -> LayerParameter {
    LayerParameter {
        name: Some(name.into()),
        r#type: Some(kind.into()),
        bottom: vec![bottom.into()],
        top: vec![top.into()],
        ..LayerParameter::default()
    }
}

pub fn input(sizes: &[i64]) -> LayerParameter {
    LayerParameter {
        bottom: Vec::new(),
        input_param: Some(InputParameter { shape: vec![BlobShape { dim: sizes.to_vec() }] }),
        ..layer("data", "Input", "", "data")
    }
}

/// A convolution of square filters, with biases.
pub fn conv(name: &str, bottom: &str, [o, i, k]: [i64; 3]) -> LayerParameter {
    LayerParameter {
        blobs: vec![filled(&[o, i, k, k]), filled(&[o])],
        convolution_param: Some(ConvolutionParameter {
            num_output: Some(o as u32),
            kernel_size: vec![k as u32],
            ..ConvolutionParameter::default()
        }),
        ..layer(name, "Convolution", bottom, name)
    }
}

pub fn fc(name: &str, bottom: &str, [o, i]: [i64; 2]) -> LayerParameter {
    LayerParameter {
        blobs: vec![filled(&[o, i]), filled(&[o])],
        inner_product_param: Some(InnerProductParameter {
            num_output: Some(o as u32),
            ..InnerProductParameter::default()
        }),
        ..layer(name, "InnerProduct", bottom, name)
    }
}

pub fn pool(name: &str, bottom: &str, settings: PoolingParameter) -> LayerParameter {
    LayerParameter { pooling_param: Some(settings), ..layer(name, "Pooling", bottom, name) }
}

/// Pooling of 2x2 in steps of 2.
pub fn halves() -> PoolingParameter {
    PoolingParameter { kernel_size: Some(2), stride: Some(2), ..PoolingParameter::default() }
}

pub fn net(layers: Vec<LayerParameter>) -> NetParameter {
    NetParameter { name: Some("net".into()), layer: layers, ..NetParameter::default() }
}

pub fn bytes(layers: Vec<LayerParameter>) -> Vec<u8> {
    net(layers).encode_to_vec()
}

/// One layer of each kind: 3 channels of 17x15.
pub fn every_kind() -> Vec<LayerParameter> {
    let mut conv1 = conv("conv1", "data", [4, 3, 3]);
    conv1.convolution_param.as_mut().unwrap().pad = vec![1];
    let mut conv2 = conv("conv2", "pool1", [6, 2, 3]);
    *conv2.convolution_param.as_mut().unwrap() = ConvolutionParameter {
        num_output: Some(6),
        bias_term: Some(false),
        group: Some(2),
        kernel_h: Some(3),
        kernel_w: Some(2),
        stride_h: Some(2),
        stride_w: Some(1),
        pad_h: Some(1),
        ..ConvolutionParameter::default()
    };
    conv2.blobs = vec![filled(&[6, 2, 3, 2])];
    let mut fc2 = fc("fc2", "fc1", [2, 5]);
    fc2.inner_product_param.as_mut().unwrap().transpose = Some(true);
    fc2.blobs[0] = filled(&[5, 2]);
    vec![
        input(&[10, 3, 17, 15]),
        conv1,
        layer("relu1", "ReLU", "conv1", "conv1"),
        layer("norm1", "LRN", "conv1", "norm1"),
        pool("pool1", "norm1", halves()),
        conv2,
        pool("pool2", "conv2", PoolingParameter { round_mode: Some(1), pad: Some(1), ..halves() }),
        layer("flat", "Flatten", "pool2", "flat"),
        // 17x15 -> 9x8 -> 5x7 -> 3x4.
        fc("fc1", "flat", [5, 6 * 3 * 4]),
        layer("drop1", "Dropout", "fc1", "fc1"),
        fc2,
        layer("prob", "Softmax", "fc2", "prob"),
    ]
}

/// The same layers as those of version 1.
pub fn old(layers: Vec<LayerParameter>) -> NetParameter {
    let kind = |name: &str| {
        use v1_layer_parameter::LayerType::*;
        match name {
            "Convolution" => Convolution,
            "Data" => Data,
            "Dropout" => Dropout,
            "Flatten" => Flatten,
            "ImageData" => ImageData,
            "InnerProduct" => InnerProduct,
            "LRN" => Lrn,
            "Pooling" => Pooling,
            "ReLU" => Relu,
            "Softmax" => Softmax,
            "SoftmaxWithLoss" => SoftmaxLoss,
            "TanH" => Tanh,
            other => panic!("{other}"),
        }
    };
    let mut net = NetParameter { name: Some("net".into()), ..NetParameter::default() };
    for layer in layers {
        if let Some(input) = layer.input_param {
            net.input.push(layer.top[0].clone());
            net.input_dim.extend(&input.shape[0].dim);
            continue;
        }
        net.layers.push(V1LayerParameter {
            layer: None,
            bottom: layer.bottom,
            top: layer.top,
            name: layer.name,
            r#type: Some(kind(layer.r#type.as_deref().unwrap()) as i32),
            blobs: layer.blobs,
            convolution_param: layer.convolution_param,
            data_param: layer.data_param,
            dropout_param: layer.dropout_param,
            image_data_param: layer.image_data_param,
            inner_product_param: layer.inner_product_param,
            lrn_param: layer.lrn_param,
            pooling_param: layer.pooling_param,
            memory_data_param: layer.memory_data_param,
            dummy_data_param: layer.dummy_data_param,
            relu_param: layer.relu_param,
            include: layer.include,
            exclude: layer.exclude,
            transform_param: layer.transform_param,
        });
    }
    net
}

/// A prototxt of the layers of [`every_kind`], with what such files have beside.
pub const EVERY_KIND: &str = r#"
# for deployment
name: "deployed"
input: "data"
input_dim: 1 input_dim: 3
input_dim: 17 ; input_dim: 15,
layer {
  name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
  param { lr_mult: 1 decay_mult: 1e-1 } param: < lr_mult: 2.f >
  convolution_param { num_output: 4 pad: 1 kernel_size: 3 weight_filler { type: "gaussian" std: 0.01 } }
}
layer { name: 'relu1' type: "Re" "LU" bottom: "conv1" top: "conv1" }
layer { name: "norm1" type: "LRN" bottom: "conv1" top: "norm1" lrn_param { norm_region: ACROSS_CHANNELS } }
layer: { name: "pool1" type: "Pooling" bottom: "norm1" top: "pool1"
  pooling_param { pool: MAX kernel_size: 2 stride: 2 engine: CUDNN } }
layer { name: "conv2" type: "Convolution" bottom: "pool1" top: "conv2"
  convolution_param { num_output: 6 bias_term: false group: 2 kernel_size: [3, 2] stride: 2 stride: 1 pad_h: 1 pad_w: 0 } }
layer { name: "pool2" type: "Pooling" bottom: "conv2" top: "pool2"
  pooling_param { kernel_size: 0x2 stride: 02 round_mode: FLOOR pad: 1 } }
layer { name: "flat" type: "Reshape" bottom: "pool2" top: "flat" reshape_param { shape { dim: 0 dim: -1 } } }
layer { name: "fc1" type: "InnerProduct" bottom: "flat" top: "fc1" inner_product_param { num_output: 5 } }
layer { name: "drop1" type: "Dropout" bottom: "fc1" top: "fc1" dropout_param { dropout_ratio: 0.5 } }
layer { name: "fc2" type: "InnerProduct" bottom: "fc1" top: "fc2"
  inner_product_param { num_output: 2 transpose: true } [an.extension]: [1, { a: 2 }, <>] }
layer { name: "prob" type: "Softmax" bottom: "fc2" top: "prob" }
"#;
