//! Looking into a trained network: one file for each of the paper's experiments.

pub mod ablation;
pub mod activations;
pub mod boxes;
pub mod correspondence;
pub mod duplicates;
pub mod ensemble;
pub mod evolution;
pub mod features;
pub mod few;
pub mod fill;
pub mod filters;
pub mod folds;
pub mod invariance;
pub mod linear;
pub mod occlusion;
pub mod parts;
pub mod peaks;
pub mod picks;
pub mod probe;
pub mod project;
pub mod sanity;
pub mod transfer;

use xxhash_rust::xxh3::Xxh3;

use crate::backend::Backend;
use crate::model::weights::named_values;
use crate::model::{Layer, Model, Network, Preprocess};
use crate::picture::Image;
use crate::{Error, Result};

/// A hash of a model's weights and preprocessing, and of what computes with them: what a study's results
/// depend on, beside images and settings.
///
/// # Errors
/// If the backend refuses.
pub fn fingerprint<B: Backend>(backend: &B, model: &Model<B>) -> Result<String> {
    let Model { network, params, preprocess, .. } = model;
    let mut hash = Xxh3::new();
    hash.update(backend.id().to_string().as_bytes());
    hash.update(network.architecture.to_toml().as_bytes());
    hash.update(&serde_json::to_vec(preprocess).expect("plain data"));
    for (name, _, values) in named_values(backend, network, params)? {
        hash.update(name.as_bytes());
        hash.update(bytemuck::cast_slice(&values));
    }
    Ok(format!("{:016x}", hash.digest()))
}

/// Mean and deviation of a sample; a single value has the deviation 0.
fn mean_and_deviation(values: &[f64]) -> [f64; 2] {
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
    [mean, (squares / values.len().saturating_sub(1).max(1) as f64).sqrt()]
}

/// A layer's index and a map of it, from `LAYER:MAP`.
///
/// # Errors
/// If there is no such layer or map.
pub fn unit_named(network: &Network, unit: &str) -> Result<(usize, usize)> {
    let parts = unit.split_once(':').and_then(|(l, m)| Some((l, m.parse::<usize>().ok()?)));
    let Some((name, map)) = parts else {
        return Err(Error::Network(format!("unit `{unit}`: expected LAYER:MAP, as in conv5:123")));
    };
    let layer = network.layer(name)?;
    let maps = network.layers[layer].output.c;
    if map >= maps {
        return Err(Error::Network(format!(
            "unit `{unit}`: {name} has maps 0 to {}, found {map}",
            maps - 1
        )));
    }
    Ok((layer, map))
}

/// The receptive field of a unit as `[x0, y0, x1, y1]` in pixels of the network's input.
pub fn field_box(layer: &Layer, y: usize, x: usize) -> [i64; 4] {
    let [(y0, y1), (x0, x1)] = [layer.field[0].of(y), layer.field[1].of(x)];
    [x0, y0, x1, y1]
}

/// A box in pixels of the network's centre crop, clipped to it, in pixels of the file of
/// `width x height` that the crop was taken from.
fn original_box(preprocess: &Preprocess, width: usize, height: usize, field: [i64; 4]) -> [f64; 4] {
    let inside = field.map(|v| v.clamp(0, preprocess.size as i64) as f64);
    let [top, left] = preprocess.centre().map(f64::from);
    let [x0, y0, x1, y1] = inside;
    let square = [x0 + left, y0 + top, x1 + left, y1 + top];
    crate::data::decode::source_box(width, height, preprocess.resize, square)
}

/// The centre crop that the network sees of a square of pixels.
fn centre_crop(preprocess: &Preprocess, square: &[u8]) -> Image {
    let [top, left] = preprocess.centre().map(i64::from);
    let (side, size) = (preprocess.resize, preprocess.size as i64);
    Image::new(side, side, square.to_vec()).crop([left, top, left + size, top + size])
}

/// A projection as a picture; a network that sees BGR is shown in RGB.
fn projection_image(preprocess: &Preprocess, projection: &[f32]) -> Image {
    let mut rgb = projection.to_vec();
    if preprocess.order == [2, 1, 0] {
        rgb.chunks_exact_mut(3).for_each(|pixel| pixel.swap(0, 2));
    }
    Image::projection(preprocess.size, preprocess.size, &rgb)
}
