//! Layers one by one: their settings as [`Op`]s, and the sizes of what they make.

use zfnet_core::shape::{Rounding, windows};
use zfnet_core::{Error, Result};

use super::data::Known;
use super::proto::*;
use super::wire;
use crate::{Chain, Input, Layer, Op, Tensor};

/// Largest kernel, stride, pad, side or number of groups: sums and products of a few stay within 64 bits.
pub const MAX_NUMBER: usize = u16::MAX as usize;

/// What is wrong with a layer.
pub fn error(layer: &LayerParameter, text: impl std::fmt::Display) -> Error {
    Error::Network(format!("layer `{}` ({}): {text}", layer.name(), layer.r#type()))
}

/// Whether a layer is of a type that computes with weights.
pub fn has_weights(layer: &LayerParameter) -> bool {
    matches!(layer.r#type(), "Convolution" | "InnerProduct" | "BatchNorm" | "Scale" | "Bias")
}

/// A chain, layer by layer.
pub struct Built {
    chain: Chain,
    /// Channels of the network's input, once they are known.
    input_channels: Option<usize>,
    /// What the last layer makes.
    now: Known,
    /// Whether that has two axes, images and values, instead of four.
    flat: bool,
    /// Whether the last layer is one that a factor and a summand of each channel can be folded into.
    foldable: bool,
}

impl Built {
    /// A chain without layers.
    pub fn new(name: String, input: Known) -> Self {
        let Known { channels, size, .. } = input;
        let chain = Chain { name, input: Input { channels: 0, size }, ..Chain::default() };
        Built { chain, input_channels: channels, now: input, flat: false, foldable: false }
    }

    /// A sentence about what was done.
    pub fn note(&mut self, note: String) {
        self.chain.notes.push(note);
    }

    /// Adds a layer, with its weights, or folds it into the last one, or leaves it out if it changes nothing.
    pub fn push(&mut self, layer: &LayerParameter, blobs: Vec<BlobProto>) -> Result<()> {
        let op = match layer.r#type() {
            "Convolution" => Some(self.convolution(layer, blobs)?),
            "InnerProduct" => Some(self.inner_product(layer, blobs)?),
            "ReLU" => match layer.relu_param.unwrap_or_default().negative_slope() {
                0. => Some(Op::Relu),
                slope => {
                    return Err(error(
                        layer,
                        format!("expected a negative slope of 0, found {slope}"),
                    ));
                }
            },
            "Pooling" => Some(self.pooling(layer)?),
            "LRN" => Some(self.lrn(layer)?),
            "Dropout" => match layer.dropout_param.unwrap_or_default().dropout_ratio() {
                0. => None,
                rate if rate > 0. && rate < 1. => Some(Op::Dropout { rate }),
                rate => {
                    return Err(error(
                        layer,
                        format!("expected a rate from 0 to below 1, found {rate}"),
                    ));
                }
            },
            "Flatten" => self.flatten(layer)?,
            "Reshape" => self.reshape(layer)?,
            "BatchNorm" | "Scale" | "Bias" => {
                self.fold(layer, blobs)?;
                return Ok(());
            }
            _ => {
                return Err(error(
                    layer,
                    "expected Convolution, InnerProduct, ReLU, Pooling, LRN, Dropout, Softmax, BatchNorm, Scale, Bias, \
                     Flatten or Reshape, found another type",
                ));
            }
        };
        self.foldable = matches!(op, Some(Op::Conv { .. } | Op::Fc { .. }));
        if let Some(op) = op {
            self.chain.layers.push(Layer { name: layer.name().to_owned(), op });
        }
        Ok(())
    }

    /// The chain, without preprocessing.
    pub fn chain(mut self) -> Result<Chain> {
        self.chain.input.channels = self.input_channels.ok_or_else(|| {
            Error::Network(
                "expected a convolution or the input's sizes, which tell its channels, found neither: give the \
                 prototxt that says them"
                    .into(),
            )
        })?;
        if self.chain.input.size.is_none() {
            self.chain.fitting = fitting(&self.chain);
        }
        Ok(self.chain)
    }

    /// The channels that a layer sees, if they are known. If not, nothing before it has changed them.
    fn see_channels(&mut self, layer: &LayerParameter, channels: usize) -> Result<()> {
        let known = *self.now.channels.get_or_insert(channels);
        self.input_channels.get_or_insert(known);
        match known == channels {
            true => Ok(()),
            false => Err(error(
                layer,
                format!("expected weights for {known} channels, found for {channels}"),
            )),
        }
    }

    fn needs_map(&self, layer: &LayerParameter) -> Result<()> {
        match self.flat {
            false => Ok(()),
            true => Err(error(layer, "expected maps as its input, found flattened values")),
        }
    }

    /// Sizes behind windows; `None` if those before are not known.
    fn windows(
        &self,
        layer: &LayerParameter,
        kernel: [usize; 2],
        stride: [usize; 2],
        pad: [usize; 2],
        rounding: Rounding,
    ) -> Result<Option<[usize; 2]>> {
        let Some(size) = self.now.size else { return Ok(None) };
        let mut output = [0; 2];
        for i in 0..2 {
            let count = windows(size[i], kernel[i], stride[i], pad[i], pad[i], rounding);
            output[i] = count.ok_or_else(|| {
                error(
                    layer,
                    format!(
                        "expected an input that {}x{} with pads of {} and {} fits into, found {}x{}",
                        kernel[0], kernel[1], pad[0], pad[1], size[0], size[1]
                    ),
                )
            })?;
            if output[i] > MAX_NUMBER {
                return Err(error(
                    layer,
                    format!(
                        "expected an output of at most {MAX_NUMBER} pixels, found {}",
                        output[i]
                    ),
                ));
            }
            let caffe = (size[i] + 2 * pad[i] - kernel[i]).div_ceil(stride[i]) + 1;
            if rounding == Rounding::Ceil && pad[i] == 0 && caffe != output[i] {
                return Err(error(
                    layer,
                    "expected windows inside the input, found one beyond its edge",
                ));
            }
        }
        Ok(Some(output))
    }

    fn convolution(&mut self, layer: &LayerParameter, blobs: Vec<BlobProto>) -> Result<Op> {
        self.needs_map(layer)?;
        let default = ConvolutionParameter::default();
        let settings = layer.convolution_param.as_ref().unwrap_or(&default);
        let &ConvolutionParameter { pad_h, pad_w, kernel_h, kernel_w, stride_h, stride_w, .. } =
            settings;
        if let Some(by) = settings.dilation.iter().find(|&&by| by != 1) {
            return Err(error(layer, format!("expected no dilation, found one of {by}")));
        }
        channels_axis(layer, self.flat, settings.axis())?;
        let kernel = pair(layer, "kernel", &settings.kernel_size, [kernel_h, kernel_w], 0)?;
        let stride = pair(layer, "stride", &settings.stride, [stride_h, stride_w], 1)?;
        let pad = pair(layer, "pad", &settings.pad, [pad_h, pad_w], 0)?;
        positive(layer, kernel, stride)?;
        let groups = settings.group() as usize;
        let (weight, bias) = weights(layer, blobs, settings.bias_term())?;
        let [outputs, inputs, rows, columns] = weight.shape[..] else {
            return Err(error(
                layer,
                format!("expected weights of four sizes, found {:?}", weight.shape),
            ));
        };
        if [rows, columns] != kernel || outputs != settings.num_output() as usize {
            return Err(error(
                layer,
                format!(
                    "expected weights of {} filters of {}x{}, found sizes {:?}",
                    settings.num_output(),
                    kernel[0],
                    kernel[1],
                    weight.shape
                ),
            ));
        }
        let channels = inputs.checked_mul(groups);
        let channels = channels.filter(|&channels| {
            channels > 0 && channels <= MAX_NUMBER && outputs > 0 && outputs.is_multiple_of(groups)
        });
        let Some(channels) = channels else {
            return Err(error(
                layer,
                format!(
                    "expected channels that {groups} groups divide, found weights of sizes {:?}",
                    weight.shape
                ),
            ));
        };
        self.see_channels(layer, channels)?;
        let size = self.windows(layer, kernel, stride, pad, Rounding::Floor)?;
        self.now = Known { channels: Some(outputs), size, ..self.now };
        let bias = vector(layer, bias, outputs)?;
        Ok(Op::Conv { weight, bias, stride, pad: around(pad), groups, ceil: false })
    }

    fn inner_product(&mut self, layer: &LayerParameter, blobs: Vec<BlobProto>) -> Result<Op> {
        let settings = layer.inner_product_param.unwrap_or_default();
        channels_axis(layer, self.flat, settings.axis())?;
        let (mut weight, bias) = weights(layer, blobs, settings.bias_term())?;
        let (rows, columns) = match weight.shape[..] {
            [rows, columns] | [1, 1, rows, columns] => (rows, columns),
            _ => {
                return Err(error(
                    layer,
                    format!("expected weights of two sizes, found {:?}", weight.shape),
                ));
            }
        };
        let (outputs, inputs) =
            if settings.transpose() { (columns, rows) } else { (rows, columns) };
        if outputs != settings.num_output() as usize || outputs == 0 || inputs == 0 {
            return Err(error(
                layer,
                format!(
                    "expected weights of {} outputs, found {outputs} of {inputs} inputs",
                    settings.num_output()
                ),
            ));
        }
        match self.now {
            Known { channels: Some(channels), size: Some([rows, columns]), .. } => {
                let values = channels as u64 * rows as u64 * columns as u64;
                if values != inputs as u64 {
                    return Err(error(
                        layer,
                        format!(
                            "expected weights for {channels} channels of {rows}x{columns}, which are {values} inputs, \
                             found for {inputs}"
                        ),
                    ));
                }
            }
            Known { channels: Some(channels), size: None, .. }
                if inputs.is_multiple_of(channels) => {}
            Known { channels, .. } => {
                return Err(error(
                    layer,
                    match channels {
                        Some(channels) => {
                            format!("expected weights for {channels} channels, found for {inputs} inputs")
                        },
                        None => "expected the input's sizes to be known, found none in the file: give the \
                                 prototxt that says them"
                            .into(),
                    },
                ));
            }
        }
        if settings.transpose() {
            let stored = std::mem::take(&mut weight.values);
            weight.values.reserve_exact(stored.len());
            for output in 0..outputs {
                weight.values.extend(stored[output..].iter().step_by(outputs));
            }
        }
        weight.shape = vec![outputs, inputs];
        self.input_channels = self.input_channels.or(self.now.channels);
        self.now = Known { channels: Some(outputs), size: Some([1, 1]), ..self.now };
        self.flat = true;
        Ok(Op::Fc { weight, bias: vector(layer, bias, outputs)? })
    }

    fn pooling(&mut self, layer: &LayerParameter) -> Result<Op> {
        self.needs_map(layer)?;
        let settings = layer.pooling_param.unwrap_or_default();
        if settings.pool() != pooling_parameter::PoolMethod::Max {
            return Err(error(
                layer,
                format!("expected MAX pooling, found {}", settings.pool().as_str_name()),
            ));
        }
        let PoolingParameter { kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, .. } =
            settings;
        let stride = pair(layer, "stride", settings.stride.as_slice(), [stride_h, stride_w], 1)?;
        let pad = pair(layer, "pad", settings.pad.as_slice(), [pad_h, pad_w], 0)?;
        let kernel = match settings.global_pooling() {
            false => pair(layer, "kernel", settings.kernel_size.as_slice(), [kernel_h, kernel_w], 0)?,
            true => self.now.size.ok_or_else(|| {
                error(
                    layer,
                    "expected an input of known size for global pooling, found none in the file: give the \
                     prototxt that says it",
                )
            })?,
        };
        positive(layer, kernel, stride)?;
        if pad[0] >= kernel[0] || pad[1] >= kernel[1] {
            return Err(error(
                layer,
                format!("expected pads below its kernel's {kernel:?}, found {pad:?}"),
            ));
        }
        let ceil = settings.round_mode() == pooling_parameter::RoundMode::Ceil;
        let rounding = if ceil { Rounding::Ceil } else { Rounding::Floor };
        self.now.size = self.windows(layer, kernel, stride, pad, rounding)?;
        Ok(Op::MaxPool { kernel, stride, pad: around(pad), ceil })
    }

    fn lrn(&self, layer: &LayerParameter) -> Result<Op> {
        self.needs_map(layer)?;
        let settings = layer.lrn_param.unwrap_or_default();
        if settings.norm_region() != lrn_parameter::NormRegion::AcrossChannels {
            return Err(error(
                layer,
                format!("expected ACROSS_CHANNELS, found {}", settings.norm_region().as_str_name()),
            ));
        }
        let (size, alpha, beta, k) =
            (settings.local_size() as usize, settings.alpha(), settings.beta(), settings.k());
        if size > MAX_NUMBER
            || size.is_multiple_of(2)
            || ![alpha, beta, k].iter().all(|v| v.is_finite())
        {
            return Err(error(
                layer,
                format!(
                    "expected an odd size and finite numbers, found {size}, alpha {alpha}, beta {beta}, k {k}"
                ),
            ));
        }
        Ok(Op::Lrn { size, alpha, beta, k })
    }

    fn flatten(&mut self, layer: &LayerParameter) -> Result<Option<Op>> {
        let settings = layer.flatten_param.unwrap_or_default();
        channels_axis(layer, self.flat, settings.axis())?;
        let last = if self.flat { 1 } else { 3 };
        if ![-1, last].contains(&settings.end_axis()) {
            return Err(error(
                layer,
                format!("expected its last axis to be -1, found {}", settings.end_axis()),
            ));
        }
        self.flat = true;
        Ok(None)
    }

    /// What leaves the order of values as it is: the same sizes, or one axis of all values of an image.
    fn reshape(&mut self, layer: &LayerParameter) -> Result<Option<Op>> {
        let default = ReshapeParameter::default();
        let settings = layer.reshape_param.as_ref().unwrap_or(&default);
        let sizes = settings.shape.as_ref().map_or(&[][..], |shape| &shape.dim);
        let Known { images, channels, size } = self.now;
        let values = channels.zip(size).and_then(|(channels, [rows, columns])| {
            channels.checked_mul(rows)?.checked_mul(columns)
        });
        let is = |size: i64, known: Option<usize>| known.is_some_and(|known| size == known as i64);
        let flattens = match (settings.axis(), settings.num_axes(), sizes) {
            (0, -1, &[first, last]) => {
                let first_fits = first == 0 || is(first, images) || first == -1 && last != -1;
                first_fits && (last == -1 || is(last, values))
            }
            (1, -1, &[last]) => last == -1 || is(last, values),
            _ => false,
        };
        let axes = if self.flat { 2 } else { 4 };
        let whole = settings.axis() == 0 && settings.num_axes() == -1;
        let same = whole && sizes.len() == axes && sizes.iter().all(|&size| size == 0);
        if !(flattens || same) {
            let some = &sizes[..sizes.len().min(8)];
            return Err(error(
                layer,
                format!(
                    "expected a reshape that flattens each image (dim: 0 dim: -1), found {some:?}"
                ),
            ));
        }
        self.flat |= flattens;
        Ok(None)
    }

    /// A factor and a summand of each channel, into the weights of the last layer.
    fn fold(&mut self, layer: &LayerParameter, blobs: Vec<BlobProto>) -> Result<()> {
        if !self.foldable {
            return Err(error(
                layer,
                "expected it right behind a Convolution or InnerProduct, into which it is folded, found it \
                 elsewhere",
            ));
        }
        let Some(Layer { name, op: Op::Conv { weight, bias, .. } | Op::Fc { weight, bias } }) =
            self.chain.layers.last_mut()
        else {
            unreachable!("a layer with weights has been pushed");
        };
        let (outputs, flat) = (bias.len(), self.flat);
        let (scale, shift) = match layer.r#type() {
            "BatchNorm" => normalisation(layer, blobs, outputs)?,
            "Scale" => {
                let settings = layer.scale_param.unwrap_or_default();
                channels_axis(layer, flat, settings.axis())?;
                let (scale, shift) = weights(layer, blobs, settings.bias_term())?;
                (
                    doubles(vector(layer, Some(scale), outputs)?),
                    doubles(vector(layer, shift, outputs)?),
                )
            }
            _ => {
                channels_axis(layer, flat, layer.bias_param.unwrap_or_default().axis())?;
                let [shift] = tensors(layer, blobs)?;
                (vec![1.; outputs], doubles(vector(layer, Some(shift), outputs)?))
            }
        };
        let filter = weight.values.len() / outputs;
        for (filter, scale) in weight.values.chunks_exact_mut(filter).zip(&scale) {
            filter.iter_mut().for_each(|value| *value = (f64::from(*value) * scale) as f32);
        }
        for ((bias, scale), shift) in bias.iter_mut().zip(&scale).zip(&shift) {
            *bias = (f64::from(*bias) * scale + shift) as f32;
        }
        let note = format!("{} `{}` folded into `{name}`", layer.r#type(), layer.name());
        self.note(note);
        Ok(())
    }
}

/// Axis 1, that of channels, also counted from the last one.
fn channels_axis(layer: &LayerParameter, flat: bool, axis: i32) -> Result<()> {
    match axis == 1 || axis == if flat { -1 } else { -3 } {
        true => Ok(()),
        false => Err(error(layer, format!("expected axis 1, found {axis}"))),
    }
}

/// What batch normalisation by stored statistics multiplies by and adds.
fn normalisation(
    layer: &LayerParameter,
    blobs: Vec<BlobProto>,
    outputs: usize,
) -> Result<(Vec<f64>, Vec<f64>)> {
    let settings = layer.batch_norm_param.unwrap_or_default();
    // A layer for training alone has another beside it for testing.
    if settings.use_global_stats == Some(false) && super::graph::has(layer, Phase::Test) {
        return Err(error(
            layer,
            "expected its stored statistics to be used, found use_global_stats: false: give the \
             prototxt for deployment",
        ));
    }
    let [mean, variance, factor] = tensors(layer, blobs)?;
    let factor = f64::from(vector(layer, Some(factor), 1)?[0]);
    let factor = if factor == 0. { 0. } else { 1. / factor };
    let mean = doubles(vector(layer, Some(mean), outputs)?);
    let variance = doubles(vector(layer, Some(variance), outputs)?);
    let deviation = |variance: f64| (variance * factor + f64::from(settings.eps())).sqrt();
    let scale: Vec<f64> = variance.into_iter().map(|variance| 1. / deviation(variance)).collect();
    if !scale.iter().all(|scale| scale.is_finite()) {
        return Err(error(layer, "expected positive variances, found others"));
    }
    let shift = mean.iter().zip(&scale).map(|(mean, scale)| -mean * factor * scale).collect();
    Ok((scale, shift))
}

/// Rows and columns of a setting: one value for both, one each, or in two fields of their own.
fn pair(
    layer: &LayerParameter,
    what: &str,
    both: &[u32],
    own: [Option<u32>; 2],
    default: u32,
) -> Result<[usize; 2]> {
    let values = match (both, own) {
        ([], [None, None]) => [default; 2],
        (&[value], [None, None]) => [value; 2],
        (&[rows, columns], [None, None]) => [rows, columns],
        ([], [rows, columns]) => [rows.unwrap_or(0), columns.unwrap_or(0)],
        _ => {
            let own = own.iter().flatten().count();
            return Err(error(
                layer,
                format!(
                    "expected one {what}, or one each for rows and columns, found {} and {own}",
                    both.len()
                ),
            ));
        }
    };
    let values = values.map(|value| value as usize);
    match values.iter().all(|&value| value <= MAX_NUMBER) {
        true => Ok(values),
        false => Err(error(
            layer,
            format!("expected a {what} of at most {MAX_NUMBER}, found {values:?}"),
        )),
    }
}

fn positive(layer: &LayerParameter, kernel: [usize; 2], stride: [usize; 2]) -> Result<()> {
    match kernel.iter().chain(&stride).all(|&value| value > 0) {
        true => Ok(()),
        false => Err(error(
            layer,
            format!(
                "expected a kernel and a stride of at least 1, found {kernel:?} and {stride:?}"
            ),
        )),
    }
}

fn around([rows, columns]: [usize; 2]) -> [usize; 4] {
    [rows, rows, columns, columns]
}

/// A layer's blobs, as many as it must have.
fn tensors<const N: usize>(layer: &LayerParameter, blobs: Vec<BlobProto>) -> Result<[Tensor; N]> {
    let found = match blobs.len() {
        0 => "found none".to_owned(),
        count => format!("found {count}"),
    };
    let plural = if N == 1 { "" } else { "s" };
    let wrong = |_| error(layer, format!("expected {N} blob{plural} of weights, {found}"));
    let blobs: [BlobProto; N] = blobs.try_into().map_err(wrong)?;
    let mut tensors = [const { None }; N];
    for (place, (tensor, blob)) in tensors.iter_mut().zip(blobs).enumerate() {
        let read = wire::tensor(blob, layer.name().to_owned());
        *tensor = Some(read.map_err(|reason| error(layer, format!("blob {place}: {reason}")))?);
    }
    Ok(tensors.map(|tensor| tensor.expect("all are read")))
}

/// Weights, and biases if it has them.
fn weights(
    layer: &LayerParameter,
    blobs: Vec<BlobProto>,
    biased: bool,
) -> Result<(Tensor, Option<Tensor>)> {
    if biased {
        let [weight, bias] = tensors(layer, blobs)?;
        Ok((weight, Some(bias)))
    } else {
        let [weight] = tensors(layer, blobs)?;
        Ok((weight, None))
    }
}

/// So many values along the last axis; zeros if there are none.
fn vector(layer: &LayerParameter, tensor: Option<Tensor>, count: usize) -> Result<Vec<f32>> {
    let Some(Tensor { shape, values, .. }) = tensor else { return Ok(vec![0.; count]) };
    match shape.split_last() {
        Some((&last, rest)) if last == count && rest.iter().all(|&size| size == 1) => Ok(values),
        _ => Err(error(layer, format!("expected {count} values, found sizes {shape:?}"))),
    }
}

fn doubles(values: Vec<f32>) -> Vec<f64> {
    values.into_iter().map(f64::from).collect()
}

/// That the size of the input is open, and which square ones fit the first fully connected layer, if there is one.
fn fitting(chain: &Chain) -> Option<String> {
    const LARGEST: usize = 1024;
    const OPEN: &str = "the size of the input is not in the file";
    let place = chain.layers.iter().position(|layer| matches!(layer.op, Op::Fc { .. }))?;
    let Op::Fc { weight, .. } = &chain.layers[place].op else { unreachable!("found as such") };
    let name = &chain.layers[place].name;
    let (maps, inputs) = (&chain.layers[..place], weight.shape[1]);
    let fits = |side: &usize| {
        let mut now = (chain.input.channels, *side);
        for layer in maps {
            let (channels, kernel, stride, pad, ceil) = match &layer.op {
                Op::Conv { weight, stride, pad, ceil, .. } => {
                    (weight.shape[0], [weight.shape[2], weight.shape[3]], stride, pad, ceil)
                }
                Op::MaxPool { kernel, stride, pad, ceil } => (now.0, *kernel, stride, pad, ceil),
                _ => continue,
            };
            let rounding = if *ceil { Rounding::Ceil } else { Rounding::Floor };
            let size = |axis: usize| {
                windows(now.1, kernel[axis], stride[axis], pad[2 * axis], pad[2 * axis], rounding)
            };
            match (size(0), size(1)) {
                (Some(rows), Some(columns)) if rows == columns && rows <= MAX_NUMBER => {
                    now = (channels, rows);
                }
                _ => return false,
            }
        }
        now.0 as u64 * (now.1 * now.1) as u64 == inputs as u64
    };
    let sides: Vec<usize> = (1..=LARGEST).filter(fits).collect();
    Some(match sides[..] {
        [] => format!("{OPEN}; no square of up to {LARGEST} pixels fits `{name}`"),
        [side] => format!("{OPEN}; of squares, only {side}x{side} fits `{name}`"),
        [first, .., last] => {
            format!("{OPEN}; of squares, {first}x{first} to {last}x{last} fit `{name}`")
        }
    })
}
