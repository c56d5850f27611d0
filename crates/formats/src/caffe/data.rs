//! What data layers say of the input: its sizes, and how pixels become it.

use zfnet_core::{Error, Result};

use super::layer::{MAX_NUMBER, error};
use super::proto::{BlobShape, LayerParameter, TransformationParameter};
use super::{Net, graph};
use crate::{Chain, Preprocessing, Resize};

/// What is known of the values between two layers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Known {
    /// Images of a batch.
    pub images: Option<usize>,
    pub channels: Option<usize>,
    /// Rows and columns.
    pub size: Option<[usize; 2]>,
}

/// The sizes that a data layer says one of its outputs has; empty if it does not say.
pub fn sizes(layer: &LayerParameter, output: usize) -> Vec<i64> {
    let one = |shapes: &[BlobShape]| {
        let shape = shapes.get(if shapes.len() == 1 { 0 } else { output });
        shape.map(|shape| shape.dim.clone()).unwrap_or_default()
    };
    if let Some(input) = &layer.input_param {
        return one(&input.shape);
    }
    if let Some(dummy) = &layer.dummy_data_param {
        if !dummy.shape.is_empty() {
            return one(&dummy.shape);
        }
        let sizes = [&dummy.num, &dummy.channels, &dummy.height, &dummy.width];
        let size = |sizes: &Vec<u32>| sizes.get(if sizes.len() == 1 { 0 } else { output }).copied();
        return sizes
            .map(|sizes| size(sizes).map(i64::from))
            .into_iter()
            .collect::<Option<_>>()
            .unwrap_or_default();
    }
    // It has as many images as its batch, which is of no use here.
    match layer.memory_data_param {
        Some(memory) if output == 0 => {
            vec![1, memory.channels().into(), memory.height().into(), memory.width().into()]
        }
        _ => Vec::new(),
    }
}

/// What is known of an input of these sizes, or from a data layer.
pub fn known(layer: Option<&LayerParameter>, sizes: &[i64]) -> Result<Known> {
    let crop = match layer.and_then(|layer| Data::of(layer).crop) {
        Some(crop) => Some(side(crop.into())?),
        None => None,
    };
    let crop = crop.map(|crop| [crop; 2]);
    match *sizes {
        [] => Ok(Known { size: crop, ..Known::default() }),
        [images, channels, rows, columns] => Ok(Known {
            images: Some(side(images)?),
            channels: Some(side(channels)?),
            size: Some(crop.unwrap_or([side(rows)?, side(columns)?])),
        }),
        _ => Err(Error::Network(format!(
            "expected an input of four sizes (images, channels, rows, columns), found {}",
            sizes.len()
        ))),
    }
}

fn side(size: i64) -> Result<usize> {
    let side = usize::try_from(size).ok().filter(|side| (1..=MAX_NUMBER).contains(side));
    side.ok_or_else(|| {
        Error::Network(format!("expected sizes of the input from 1 to {MAX_NUMBER}, found {size}"))
    })
}

/// What a data layer does to pixels, wherever it says it.
#[derive(Default)]
struct Data {
    scale: f32,
    mean_file: Option<String>,
    mean_values: Vec<f32>,
    crop: Option<u32>,
    resize: Option<[u32; 2]>,
    /// Whether it says what its values are: it does so, or it reads images and leaves them as they are.
    said: bool,
}

impl Data {
    fn of(layer: &LayerParameter) -> Data {
        let mut data = Data { scale: 1., ..Data::default() };
        // Files of 2014 say it where later ones say where the data are.
        if let Some(old) = &layer.data_param {
            (data.scale, data.mean_file, data.crop) =
                (old.scale(), old.mean_file.clone(), old.crop_size);
        }
        if let Some(old) = &layer.image_data_param {
            (data.scale, data.mean_file, data.crop) =
                (old.scale(), old.mean_file.clone(), old.crop_size);
            data.resize = old.new_height.zip(old.new_width).map(<[u32; 2]>::from);
        }
        if let Some(TransformationParameter { scale, mean_file, mean_value, crop_size, .. }) =
            &layer.transform_param
        {
            data.scale = scale.unwrap_or(data.scale);
            data.mean_file = mean_file.clone().or(data.mean_file);
            data.mean_values = mean_value.clone();
            data.crop = crop_size.or(data.crop);
        }
        data.crop = data.crop.filter(|&crop| crop > 0);
        data.resize = data.resize.filter(|size| !size.contains(&0));
        let reads_images = matches!(layer.r#type(), "Data" | "ImageData" | "WindowData");
        data.said = reads_images || layer.transform_param.is_some();
        data
    }
}

/// Sets a chain's preprocessing, if its data layer says it.
pub fn preprocessing(chain: &mut Chain, layer: Option<&LayerParameter>) -> Result<()> {
    let Some(layer) = layer else { return Ok(()) };
    let data = Data::of(layer);
    if !data.said {
        return Ok(());
    }
    let channels = chain.input.channels;
    if !data.scale.is_finite() || !data.mean_values.iter().all(|mean| mean.is_finite()) {
        return Err(error(layer, "expected a finite scale and finite means, found others"));
    }
    // Caffe subtracts before it scales.
    let mut mean: Vec<f32> = match data.mean_values[..] {
        [] => vec![0.; channels],
        [mean] => vec![mean; channels],
        ref means if means.len() == channels => means.to_vec(),
        ref means => {
            return Err(error(
                layer,
                format!("expected one mean_value or {channels}, found {}", means.len()),
            ));
        }
    };
    mean.iter_mut().for_each(|mean| *mean *= data.scale);
    match &data.mean_file {
        Some(_) if !data.mean_values.is_empty() => {
            return Err(error(layer, "expected a mean_file or mean_values, found both"));
        }
        Some(file) => {
            mean.clear();
            chain.notes.push(format!("the mean is in another file, `{file}`"));
        }
        None if data.mean_values.is_empty() => chain.notes.push(format!(
            "no mean is subtracted: the layer `{}` ({}) has none",
            layer.name(),
            layer.r#type()
        )),
        None => {}
    }
    // OpenCV resizes them: bilinear, each value of four.
    let resize = data.resize.map(|size| Resize::Squash(size.map(|side| side as usize)));
    let crop = data.crop.map(|crop| [crop as usize; 2]);
    chain.preprocessing = Some(Preprocessing {
        scale: data.scale,
        mean,
        mean_size: None,
        std: vec![1.; channels],
        bgr: channels == 3,
        resize,
        crop: crop.filter(|&crop| chain.input.size.is_none_or(|size| size == crop)),
        interpolation: resize.map(|_| "bilinear".into()),
        antialias: resize.map(|_| false),
    });
    Ok(())
}

/// Sets a chain's preprocessing to that which its weights were trained with, if that network's data layer says it.
pub fn from_training(chain: &mut Chain, trained: &Net) -> Result<()> {
    let says = |layer: &&LayerParameter| layer.bottom.is_empty() && Data::of(layer).said;
    let mut layers: Vec<_> = trained.layers.iter().filter(says).collect();
    // A layer for testing first.
    layers.sort_by_key(|layer| !graph::has(layer, super::proto::Phase::Test));
    let Some(layer) = layers.first() else { return Ok(()) };
    chain.notes.push(format!(
        "the preprocessing is that of the layer `{}` in the .caffemodel",
        layer.name()
    ));
    preprocessing(chain, Some(layer))
}
