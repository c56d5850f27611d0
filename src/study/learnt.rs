//! How much of a network was learnt, and how much are its initial weights.
//!
//! A filter's weights w began as random numbers w0 (a function of recipe and seed, so that they can be drawn
//! once more). The *initial share* is the share of the filter's energy that lies along w0,
//!
//! ```text
//! cos^2(w, w0) = (w . w0)^2 / (w . w  w0 . w0)
//! ```
//!
//! which is 1 before training, and between directions that have nothing to do with each other 0.455/n in the
//! median, for n weights. A small share alone proves nothing, since small initial weights make it small. Hence
//! two more measures: how different the filters are (the largest |cos| of a filter to another, in the median),
//! and what a layer is worth: the accuracy that is lost when it alone is re-initialized, to w0 with biases of
//! zero, and when nothing but each filter's component along w0 is taken away.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use rayon::prelude::*;
use serde::Serialize;

use super::ensemble::Errors;
use super::filters::roughness;
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
    shows: "what each layer has learnt, and how much of it are its initial weights",
    paper: "",
    of_one_run: true,
};

/// Most filters of a layer that are compared with all others.
const COMPARED: usize = 256;

/// What became of a layer's initial weights.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerChange {
    /// The layer's name.
    pub layer: String,
    /// Number of its filters: outputs of a fully connected layer, inputs of a transposed convolution.
    pub filters: usize,
    /// Weights of each.
    pub weights: usize,
    /// Initial share of a filter, median and 90th percentile; `None` if it is not known how the layer was
    /// drawn, or it was not drawn at random.
    pub initial_share: Option<[f64; 2]>,
    /// Largest |cos| of a filter to another one, median; of more than 256 filters, of at most 256 in even
    /// steps. 0 if there is only one.
    pub similarity: f64,
    /// Of a first layer that sees colours: the share of a filter's energy above 0.25 cycles a pixel, mean over
    /// filters that are not dead. White noise has [`white_noise_high`](super::filters::white_noise_high).
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
        let Some([weights, _]) = values_of(backend, params, index)? else { continue };
        let filters = params.layers[index].as_ref().map_or(1, |param| param.weight.shape().n);
        let per_filter = weights.len() / filters;
        let kernel = kernel_of_first(network).filter(|_| index == 0);
        found.push(LayerChange {
            layer: layer.name.clone(),
            filters,
            weights: per_filter,
            initial_share: initial_share(&weights, params.initial[index], per_filter),
            similarity: quantile(&mut similarities(&weights, per_filter), 0.5),
            roughness: kernel.map(|kernel| roughness(&weights, kernel)),
        });
    }
    Ok(found)
}

/// A sentence on how much of the spatial convolutions are still their initial weights, for pages of
/// projections.
///
/// # Errors
/// If the backend does not give the weights.
pub fn sentence<B: Backend>(backend: &B, network: &Network, params: &Params<B>) -> Result<String> {
    let mut shares = Vec::new();
    for index in network.spatial() {
        let Some([weights, bias]) = values_of(backend, params, index)? else { continue };
        let share = initial_share(&weights, params.initial[index], weights.len() / bias.len());
        let share = share.map_or_else(|| "unknown".into(), |[median, _]| percent(median));
        shares.push(format!("{} {share}", network.layers[index].name));
    }
    if params.initial.iter().all(Option::is_none) {
        return Ok("not known: the file does not say how they were drawn".into());
    }
    Ok(format!(
        "{} of the energy of a filter’s weights (median) lies along its random initial weights",
        shares.join(", ")
    ))
}

/// A layer, and what it is worth.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerLearnt {
    /// What became of its initial weights.
    #[serde(flatten)]
    pub change: LayerChange,
    /// Errors with this layer alone re-initialized, its biases zero; `None` if its initial weights are not
    /// known.
    pub reinitialized: Option<Errors>,
    /// Errors without each filter's component along its initial weights.
    pub without_initial: Option<Errors>,
}

/// Filters of a first layer, `[filters, rows, columns, 3]`, RGB.
#[derive(Clone, Debug)]
pub struct FirstFilters {
    /// Rows and columns.
    pub kernel: [usize; 2],
    /// As they are.
    pub trained: Vec<f32>,
    /// Before training.
    pub initial: Vec<f32>,
    /// Without each filter's component along its initial weights.
    pub without_initial: Vec<f32>,
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
/// other re-initialized, and without its component along them.
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
            "expected weights of which it is known how they were drawn before training, found none: train it \
             with this version of the program, whose checkpoints say so"
                .into(),
        ));
    }
    let backend = session.backend;
    let changes = changes(backend, &model.network, &model.params)?;
    let parts = session.parts(&[&model], &(images.fingerprint(), &model.params.initial))?;
    let evaluations = 1 + 2 * model.params.initial.iter().flatten().count();
    let (mut done, total) = (0, evaluations * images.len());
    let crops = TestCrops::One;
    let Model { network, preprocess, .. } = &model;
    let mut classifier = Some(Classifier::new(backend, network, preprocess, crops, crops.batch())?);
    let mut errors = |model: &Model<B>, part: &str| -> Result<Errors> {
        let before = done;
        let found = parts.get_or_make(part, || {
            let lent = classifier.take().expect("given back by the evaluation before");
            let Model { network, params, .. } = model;
            let images = images.clone();
            let mut members = [Member { network, params, classifier: lent, images }];
            let (workers, never) = (session.workers, AtomicUsize::new(0));
            let found = evaluate(backend, &mut members, workers, &never, |images| {
                done += images;
                session.progress("learnt: images", done, total, "");
            })?;
            let [Member { classifier: lent, .. }] = members;
            classifier = Some(lent);
            Ok(found.expect("nothing asks it to stop").into())
        })?;
        done = before + images.len();
        Ok(found)
    };
    let trained = errors(&model, "trained")?;
    let mut first = None;
    let mut layers = Vec::new();
    for change in changes {
        let index = model.network.layer(&change.layer)?;
        let mut layer = LayerLearnt { change, reinitialized: None, without_initial: None };
        if let Some(initial) = model.params.initial[index] {
            let values = values_of(backend, &model.params, index)?;
            let [weights, bias] = values.expect("a layer with weights");
            let start = initial.values(weights.len());
            let rest = without_component(&weights, &start, layer.change.weights);
            let zeros = vec![0.0; bias.len()];
            set(backend, &mut model, index, &start, &zeros)?;
            layer.reinitialized = Some(errors(&model, &format!("reinitialized-{index}"))?);
            set(backend, &mut model, index, &rest, &bias)?;
            layer.without_initial = Some(errors(&model, &format!("without-initial-{index}"))?);
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

/// A layer's weights and biases, if it has weights.
pub(super) fn values_of<B: Backend>(
    backend: &B,
    params: &Params<B>,
    layer: usize,
) -> Result<Option<[Vec<f32>; 2]>> {
    let Some(param) = &params.layers[layer] else { return Ok(None) };
    let mut values = [&param.weight, &param.bias].map(|tensor| vec![0.0; tensor.shape().len()]);
    backend.download(&mut values[0], &param.weight)?;
    backend.download(&mut values[1], &param.bias)?;
    Ok(Some(values))
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
pub(super) fn kernel_of_first(network: &Network) -> Option<[usize; 2]> {
    match network.layers[0].kind {
        Kind::Conv(Conv { dims, .. }) if dims.groups == 1 => {
            Some([dims.r as usize, dims.s as usize])
        }
        _ => None,
    }
}

fn first_filters<B: Backend>(model: &Model<B>, values: [Vec<f32>; 3]) -> Option<FirstFilters> {
    let kernel = kernel_of_first(&model.network)?;
    let [trained, initial, without_initial] =
        values.map(|values| to_rgb(&model.preprocess, values));
    Some(FirstFilters { kernel, trained, initial, without_initial })
}

/// "3 %", "0.4 %".
pub fn percent(share: f64) -> String {
    match 100.0 * share {
        small if small < 0.95 => format!("{small:.1} %"),
        percent => format!("{percent:.0} %"),
    }
}

/// The initial share of filters of so many weights each, median and 90th percentile over those that are not
/// zero; none if that is unknown.
fn initial_share(weights: &[f32], initial: Option<Initial>, per_filter: usize) -> Option<[f64; 2]> {
    let mut shares = initial?.shares(weights, per_filter, usize::MAX);
    (!shares.is_empty()).then(|| [0.5, 0.9].map(|q| quantile(&mut shares, q)))
}

/// Largest |cos| of filters of so many weights each to another one, of those that are not zero. Of more than
/// [`COMPARED`] filters, of at most so many in even steps.
fn similarities(weights: &[f32], per_filter: usize) -> Vec<f64> {
    let direction = |filter: &[f32]| {
        let size = dot(filter, filter).sqrt();
        let scaled = |v: &f32| (f64::from(*v) / size) as f32;
        (size > 0.0).then(|| filter.iter().map(scaled).collect::<Vec<f32>>())
    };
    let filters: Vec<Vec<f32>> =
        weights.par_chunks_exact(per_filter).filter_map(direction).collect();
    let step = filters.len().div_ceil(COMPARED).max(1);
    let largest = |one: usize| {
        let others = filters.iter().enumerate().filter(|(other, _)| *other != one);
        others.map(|(_, other)| dot_f32(&filters[one], other).abs()).reduce(f64::max)
    };
    let chosen: Vec<usize> = (0..filters.len()).step_by(step).collect();
    chosen.into_par_iter().filter_map(largest).collect()
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// The same with sums of 1024 products in f32, several times as fast.
fn dot_f32(a: &[f32], b: &[f32]) -> f64 {
    const LANES: usize = 8;
    let of_chunk = |(a, b): (&[f32], &[f32])| {
        let mut sums = [0.0f32; LANES];
        let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
        for (a, b) in a.iter().zip(b) {
            for lane in 0..LANES {
                sums[lane] += a[lane] * b[lane];
            }
        }
        let rest = a_rest.iter().zip(b_rest).map(|(a, b)| a * b);
        f64::from(sums.into_iter().chain(rest).sum::<f32>())
    };
    a.chunks(1024).zip(b.chunks(1024)).map(of_chunk).sum()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_that_repeat_each_other_are_alike() {
        let (one, two, three) = ([1.0, 2.0, 0.0], [-2.0, -4.0, 0.0], [0.0, 0.0, 5.0]);
        let found = similarities(&[one, two, three, [0.0; 3]].concat(), 3);
        assert_eq!(found.len(), 3, "a filter of zeros has no direction");
        for (found, expected) in found.iter().zip([1.0, 1.0, 0.0]) {
            assert!((found - expected).abs() < 1e-6, "{found}");
        }
        // Against all pairs in f64, of sizes that f32 could not square.
        let mut state = 1u32;
        let mut random = || {
            state = state.wrapping_mul(1664525).wrapping_add(1013904223);
            (state as f32 / u32::MAX as f32 - 0.5) * 1e-25
        };
        let weights: Vec<f32> = (0..40 * 1500).map(|_| random()).collect();
        let filters: Vec<&[f32]> = weights.chunks(1500).collect();
        let cos = |a: &[f32], b: &[f32]| (dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()).abs();
        for (i, found) in similarities(&weights, 1500).into_iter().enumerate() {
            let others = (0..40).filter(|j| *j != i).map(|j| cos(filters[i], filters[j]));
            let expected = others.fold(0.0, f64::max);
            assert!((found - expected).abs() < 1e-5, "{found} {expected}");
        }
    }

    #[test]
    fn a_component_is_taken_away_whole() {
        let start = [1.0, 1.0, 0.0, 0.0, 0.0, 2.0];
        let rest = without_component(&[3.0, 1.0, 4.0, 7.0, 8.0, 9.0], &start, 3);
        assert_eq!(rest, [1.0, -1.0, 4.0, 7.0, 8.0, 0.0]);
        assert_eq!(without_component(&[3.0, 1.0], &[0.0; 2], 2), [3.0, 1.0]);
    }

    #[test]
    fn quantiles_lie_between_neighbours() {
        let mut values = [4.0, 1.0, 3.0, 2.0, 0.0];
        assert_eq!([0.0, 0.5, 0.9, 1.0].map(|q| quantile(&mut values, q)), [0.0, 2.0, 3.6, 4.0]);
        assert_eq!(quantile(&mut [], 0.5), 0.0);
        assert_eq!(
            [0.0, 0.00123, 0.034, 0.5, 1.0].map(percent),
            ["0.0 %", "0.1 %", "3 %", "50 %", "100 %"]
        );
    }

    #[test]
    fn what_was_not_drawn_at_random_has_no_share() {
        let none = Initial { seed: 1, stream: 1, std: 0.0 };
        assert_eq!(initial_share(&[1.0; 6], Some(none), 3), None);
        assert_eq!(initial_share(&[1.0; 6], None, 3), None);
        assert_eq!(initial_share(&[0.0; 6], Some(Initial { std: 1.0, ..none }), 3), None);
    }
}
