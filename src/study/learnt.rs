//! How much of a network was learnt, and how much is still its random start.
//!
//! A filter's weights w began as random numbers w0 (a function of recipe and seed, so that they can be drawn
//! once more). The *initial share* is the share of the filter's energy that lies along w0,
//!
//! ```text
//! cos^2(w, w0) = (w . w0)^2 / (w . w  w0 . w0)
//! ```
//!
//! which is 1 before training, and between directions that have nothing to do with each other 0.455/n in the
//! median, for n weights. A small share alone proves nothing, since a small start makes it small. Hence two
//! more measures: how different the filters are (the largest |cos| of a filter to another, in the median), and
//! what a layer is worth: the accuracy that is lost when it is set back to w0 with biases of zero, and when
//! nothing but each filter's component along w0 is taken away.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use rayon::prelude::*;
use serde::Serialize;

use super::ensemble::Errors;
use super::filters::high;
use super::pixels::to_rgb;
use super::{Facts, Session, Study};
use crate::backend::Backend;
use crate::data::images::Images;
use crate::model::{Conv, Initial, Kind, Model, Network, Params};
use crate::train::evaluate::{Classifier, Member, TestCrops, evaluate};
use crate::{Error, Result};

/// See [`super::STUDIES`].
pub const STUDY: Study = Study {
    name: "learnt",
    shows: "what each layer has learnt, and how much of it is its random start",
    paper: "",
    of_one_run: true,
};

/// Filters of a layer that are compared with all others; if there are more, so many in even steps.
const COMPARED: usize = 512;

/// What became of a layer's initial weights.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerChange {
    /// The layer's name.
    pub layer: String,
    /// Number of its filters; of a fully connected layer, its outputs.
    pub filters: usize,
    /// Weights of each.
    pub weights: usize,
    /// Initial share of a filter, median and 90th percentile; `None` if it is not known how the layer was
    /// drawn.
    pub initial_share: Option<[f64; 2]>,
    /// Largest |cos| of a filter to another one, median; 0 if there is only one.
    pub similarity: f64,
    /// Of a first layer that sees colours: the share of its energy above 0.25 cycles a pixel, mean over filters.
    /// White noise has [`white_noise_high`](super::filters::white_noise_high).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub roughness: Option<f64>,
}

impl LayerChange {
    /// The initial share in words, for tables.
    pub fn share_in_words(&self) -> [String; 2] {
        match self.initial_share {
            Some(shares) => shares.map(percent),
            None => ["unknown".into(), "unknown".into()],
        }
    }
}

/// All layers with weights, from below.
///
/// # Errors
/// If the backend does not give the weights.
pub fn changes<B: Backend>(
    backend: &B,
    network: &Network,
    params: &Params<B>,
) -> Result<Vec<LayerChange>> {
    let mut found = Vec::new();
    for (index, layer) in network.layers.iter().enumerate() {
        let Some(weights) = weights_of(backend, params, index)? else { continue };
        let filters = params.layers[index].as_ref().map_or(0, |param| param.weight.shape().n);
        let per_filter = weights.len() / filters;
        found.push(LayerChange {
            layer: layer.name.clone(),
            filters,
            weights: per_filter,
            initial_share: params.initial[index]
                .map(|initial| middle_and_high(initial_shares(&weights, initial, per_filter))),
            similarity: quantile(&mut similarities(&weights, per_filter), 0.5),
            roughness: kernel_of_first(network)
                .filter(|_| index == 0)
                .map(|kernel| high(&weights, kernel)),
        });
    }
    Ok(found)
}

/// A layer, and what it is worth.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerLearnt {
    /// What became of its initial weights.
    #[serde(flatten)]
    pub change: LayerChange,
    /// Errors with the layer set back to its initial weights and biases of zero; `None` if these are not known.
    pub set_back: Option<Errors>,
    /// Errors without each filter's component along its initial weights.
    pub without_start: Option<Errors>,
}

/// Filters of a first layer, `[filters, rows, columns, 3]`, RGB.
#[derive(Clone, Debug)]
pub struct FirstFilters {
    /// Rows and columns.
    pub kernel: [usize; 2],
    /// As they are.
    pub trained: Vec<f32>,
    /// As they began.
    pub initial: Vec<f32>,
    /// Without each filter's component along its initial weights.
    pub without_start: Vec<f32>,
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Learnt {
    /// What it was made with.
    pub facts: Facts,
    /// The network's name.
    pub network: String,
    /// Errors of the network as it is, with the centre crop.
    pub trained: Errors,
    /// Layers with weights, from below.
    pub layers: Vec<LayerLearnt>,
    /// The first layer's filters, if it is a convolution of an image and its initial weights are known.
    #[serde(skip)]
    pub first: Option<FirstFilters>,
}

/// Measures what became of each layer's initial weights, and evaluates the network with one layer after the
/// other set back to them, and without its component along them.
///
/// # Errors
/// If the model does not say how any of its layers was drawn, too many images are bad, parts cannot be kept, or
/// a backend operation fails.
pub fn run<B: Backend>(
    session: &mut Session<'_, B>,
    mut model: Model<B>,
    images: &Arc<Images>,
) -> Result<Learnt> {
    if model.params.initial.iter().all(Option::is_none) {
        return Err(Error::Network(
            "expected weights of which it is known how they were drawn before training, found none: a \
             checkpoint says so if it was trained from the start by this version or a later one"
                .into(),
        ));
    }
    let backend = session.backend;
    let changes = changes(backend, &model.network, &model.params)?;
    let parts = session.parts(&[&model], &images.fingerprint())?;
    let evaluations = 1 + 2 * model.params.initial.iter().flatten().count();
    let (mut done, total) = (0, evaluations * images.len());
    let mut errors = |model: &Model<B>, part: &str| -> Result<Errors> {
        let before = done;
        let found = parts.get_or_make(part, || {
            errors_of(backend, model, images, session.workers, |images| {
                done += images;
                session.progress("learnt: images", done, total, "");
            })
        })?;
        done = before + images.len();
        Ok(found)
    };
    let trained = errors(&model, "trained")?;
    let mut first = None;
    let mut layers = Vec::new();
    let with_weights =
        (0..model.network.layers.len()).filter(|i| model.params.layers[*i].is_some());
    for (index, change) in with_weights.collect::<Vec<_>>().into_iter().zip(changes) {
        let mut layer = LayerLearnt { change, set_back: None, without_start: None };
        if let Some(initial) = model.params.initial[index] {
            let [weights, bias] = values_of(backend, &model, index)?;
            let start = initial.values(weights.len());
            let rest = without_component(&weights, &start, layer.change.weights);
            let zeros = vec![0.0; bias.len()];
            set(backend, &mut model, index, &start, &zeros)?;
            layer.set_back = Some(errors(&model, &format!("set-back-{index}"))?);
            set(backend, &mut model, index, &rest, &bias)?;
            layer.without_start = Some(errors(&model, &format!("without-start-{index}"))?);
            set(backend, &mut model, index, &weights, &bias)?;
            if index == 0 {
                first = first_filters(&model, [weights, start, rest]);
            }
        }
        layers.push(layer);
    }
    let (facts, network) = (session.facts.clone(), model.network.architecture.name.clone());
    Ok(Learnt { facts, network, trained, layers, first })
}

/// Errors with the centre crop.
fn errors_of<B: Backend>(
    backend: &B,
    model: &Model<B>,
    images: &Arc<Images>,
    workers: usize,
    progress: impl FnMut(usize),
) -> Result<Errors> {
    let Model { network, params, preprocess, .. } = model;
    let crops = TestCrops::One;
    let classifier = Classifier::new(backend, network, preprocess, crops, crops.batch())?;
    let mut members = [Member { network, params, classifier, images: images.clone() }];
    let never = AtomicUsize::new(0);
    let found = evaluate(backend, &mut members, workers, &never, progress)?;
    Ok(found.expect("nothing asks it to stop").into())
}

/// A layer's weights and biases.
fn values_of<B: Backend>(backend: &B, model: &Model<B>, layer: usize) -> Result<[Vec<f32>; 2]> {
    let param = model.params.layers[layer].as_ref().expect("a layer with weights");
    let mut values = [&param.weight, &param.bias].map(|tensor| vec![0.0; tensor.shape().len()]);
    backend.download(&mut values[0], &param.weight)?;
    backend.download(&mut values[1], &param.bias)?;
    Ok(values)
}

fn set<B: Backend>(
    backend: &B,
    model: &mut Model<B>,
    layer: usize,
    weights: &[f32],
    bias: &[f32],
) -> Result<()> {
    let param = model.params.layers[layer].as_mut().expect("a layer with weights");
    backend.upload(&mut param.weight, weights)?;
    backend.upload(&mut param.bias, bias)
}

/// Filters without their components along other ones.
fn without_component(weights: &[f32], start: &[f32], per_filter: usize) -> Vec<f32> {
    let mut rest = weights.to_vec();
    for (filter, start) in rest.chunks_exact_mut(per_filter).zip(start.chunks_exact(per_filter)) {
        let size = dot(start, start);
        let along = if size > 0.0 { dot(filter, start) / size } else { 0.0 };
        for (weight, start) in filter.iter_mut().zip(start) {
            *weight = (f64::from(*weight) - along * f64::from(*start)) as f32;
        }
    }
    rest
}

/// Rows and columns of the first layer's filters, if it is a convolution that sees all colours.
fn kernel_of_first(network: &Network) -> Option<[usize; 2]> {
    match network.layers[0].kind {
        Kind::Conv(Conv { dims, .. }) if dims.groups == 1 => {
            Some([dims.r as usize, dims.s as usize])
        }
        _ => None,
    }
}

fn first_filters<B: Backend>(model: &Model<B>, mut values: [Vec<f32>; 3]) -> Option<FirstFilters> {
    let kernel = kernel_of_first(&model.network)?;
    values.iter_mut().for_each(|values| to_rgb(&model.preprocess, values));
    let [trained, initial, without_start] = values;
    Some(FirstFilters { kernel, trained, initial, without_start })
}

/// A sentence on how much of the spatial convolutions is still their random start, for pages of projections.
///
/// # Errors
/// If the backend does not give the weights.
pub fn sentence<B: Backend>(backend: &B, network: &Network, params: &Params<B>) -> Result<String> {
    let mut known = Vec::new();
    for index in network.spatial() {
        let Some(weights) = weights_of(backend, params, index)? else { continue };
        let Some(initial) = params.initial[index] else { continue };
        let per_filter = network.layers[index].convolution().map_or(1, |d| d.filter().per_image());
        let [median, _] = middle_and_high(initial_shares(&weights, initial, per_filter));
        known.push(format!("{} {}", network.layers[index].name, percent(median)));
    }
    Ok(match known.is_empty() {
        true => "not known: the checkpoint does not say how its weights were drawn".into(),
        false => format!(
            "{} of the energy of a filter’s weights (median) is still as it was drawn before training",
            known.join(", ")
        ),
    })
}

/// "3 %", "0.4 %".
pub fn percent(share: f64) -> String {
    match 100.0 * share {
        small if small < 0.95 => format!("{small:.1} %"),
        percent => format!("{percent:.0} %"),
    }
}

/// The initial share of each filter that is not zero, of so many weights each.
pub fn initial_shares(weights: &[f32], initial: Initial, per_filter: usize) -> Vec<f64> {
    let start = initial.values(weights.len());
    let pairs = weights.par_chunks_exact(per_filter).zip(start.par_chunks_exact(per_filter));
    pairs.filter_map(|(now, then)| cosine(now, then).map(|cos| cos * cos)).collect()
}

/// Largest |cos| of each filter that is not zero to another one. Of more than 512 filters, of 512 in even
/// steps.
pub fn similarities(weights: &[f32], per_filter: usize) -> Vec<f64> {
    let filters: Vec<&[f32]> = weights.chunks_exact(per_filter).collect();
    let step = filters.len().div_ceil(COMPARED).max(1);
    let chosen: Vec<usize> = (0..filters.len()).step_by(step).collect();
    let largest = |&one: &usize| {
        let others = filters.iter().enumerate().filter(|(other, _)| *other != one);
        others.filter_map(|(_, other)| cosine(filters[one], other)).map(f64::abs).reduce(f64::max)
    };
    chosen.par_iter().filter_map(largest).collect()
}

/// The cosine between two vectors; none if one is zero. Sums of 1024 products are in f32.
fn cosine(a: &[f32], b: &[f32]) -> Option<f64> {
    let size = (dot(a, a) * dot(b, b)).sqrt();
    (size > 0.0).then(|| dot(a, b) / size)
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    const LANES: usize = 8;
    let chunks = a.chunks(1024).zip(b.chunks(1024));
    chunks
        .map(|(a, b)| {
            let mut sums = [0.0f32; LANES];
            let (a_lanes, a_rest) = a.as_chunks::<LANES>();
            let (b_lanes, b_rest) = b.as_chunks::<LANES>();
            for (a, b) in a_lanes.iter().zip(b_lanes) {
                for lane in 0..LANES {
                    sums[lane] += a[lane] * b[lane];
                }
            }
            let rest = a_rest.iter().zip(b_rest).map(|(a, b)| a * b);
            f64::from(sums.into_iter().chain(rest).sum::<f32>())
        })
        .sum()
}

fn middle_and_high(mut shares: Vec<f64>) -> [f64; 2] {
    [quantile(&mut shares, 0.5), quantile(&mut shares, 0.9)]
}

/// A quantile, between two neighbours in proportion; 0 of nothing.
fn quantile(values: &mut [f64], q: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let Some(last) = values.len().checked_sub(1) else { return 0.0 };
    let place = q * last as f64;
    let below = place as usize;
    let above = (below + 1).min(last);
    values[below] + (values[above] - values[below]) * (place - below as f64)
}

fn weights_of<B: Backend>(
    backend: &B,
    params: &Params<B>,
    layer: usize,
) -> Result<Option<Vec<f32>>> {
    let Some(param) = &params.layers[layer] else { return Ok(None) };
    let mut weights = vec![0.0; param.weight.shape().len()];
    backend.download(&mut weights, &param.weight)?;
    Ok(Some(weights))
}
