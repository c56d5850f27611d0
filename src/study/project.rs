//! What made single units fire in single images: their projections by any of the three rules.

use std::path::Path;

use serde::Serialize;

use super::pixels::{centre_crop, original_box, seen_box};
pub use super::pixels::{clipped, field_box, projection_image};
use super::{projection_of, unit_named};
use crate::backend::{Backend, SeedUnit, Tensor};
use crate::data::decode::prepare;
use crate::data::images::read_rgb;
use crate::model::weights::NamedTensors;
use crate::model::{Kind, Model, Projector, Rule, Seed, strongest};
use crate::picture::Image;
use crate::shape::Shape;
use crate::train::evaluate::{Classifier, TestCrops};
use crate::{Error, Result};

/// Units of a layer that are shown unless one is asked for.
const UNITS: usize = 9;

/// Which units to project.
pub enum Units {
    /// The nine strongest of these layers.
    Strongest(Vec<usize>),
    /// The strongest place of one map of a layer.
    One {
        /// Index of the layer.
        layer: usize,
        /// The map.
        map: usize,
    },
}

impl Units {
    /// The nine strongest of each convolutional and fully connected layer, or, for `LAYER:MAP`,
    /// that one.
    ///
    /// # Errors
    /// If there is no such layer or map.
    pub fn parse<B: Backend>(model: &Model<B>, unit: Option<&str>) -> Result<Self> {
        let network = &model.network;
        let Some(unit) = unit else {
            let layers = 0..network.layers.len();
            let weighty = |&i: &usize| network.layers[i].convolution().is_some();
            return Ok(Units::Strongest(layers.filter(weighty).collect()));
        };
        let (layer, map) = unit_named(network, unit)?;
        Ok(Units::One { layer, map })
    }
}

/// One image.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ImageProjections {
    /// The file's path as the user gave it.
    pub name: String,
    /// The crop that the network saw.
    #[serde(skip)]
    pub input: Image,
    /// Most probable first; the probability is between 0 and 1.
    pub classes: Vec<(String, f32)>,
    /// In the order of the page.
    pub layers: Vec<LayerProjections>,
}

/// Units of one layer.
#[derive(Clone, Debug, Default, Serialize)]
pub struct LayerProjections {
    /// The layer's name.
    pub name: String,
    /// Strongest first.
    pub units: Vec<Unit>,
}

/// One unit and its projection.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Unit {
    /// Its map.
    pub map: usize,
    /// Its row.
    pub y: usize,
    /// Its column.
    pub x: usize,
    /// Its activation.
    pub value: f32,
    /// x0, y0, x1, y1 (x1, y1 excluded) in pixels of the input; may exceed it.
    pub field_box: [i64; 4],
    /// What of it is in the input and read by the layers below, in pixels of the original file.
    pub patch: [f64; 4],
    /// As large as the input.
    #[serde(skip)]
    pub projection: Image,
}

/// Projects units of one image, and says what the network takes it for.
///
/// # Errors
/// If the image cannot be read, a unit that was asked for did not fire, or a backend operation fails.
pub fn project<B: Backend>(
    backend: &B,
    model: &Model<B>,
    projector: &mut Projector<'_, B>,
    classifier: &mut Classifier<B>,
    path: &Path,
    units: &Units,
    rule: Rule,
) -> Result<ImageProjections> {
    let Model { network, preprocess, .. } = model;
    let original = read_rgb(path)?;
    let mut square = vec![0; preprocess.bytes()];
    prepare(&original, preprocess.resize, &mut square);
    projector.look(&square, &TestCrops::One.of(preprocess, 0))?;

    let one;
    let layers = match units {
        Units::Strongest(layers) => layers,
        Units::One { layer, .. } => {
            one = vec![*layer];
            &one
        }
    };
    let mut shown_layers = Vec::new();
    for &index in layers {
        let layer = &network.layers[index];
        let peaks = projector.peaks(index)?;
        let seeds: Vec<SeedUnit> = match units {
            Units::Strongest(_) => strongest(&peaks, layer.output.w, UNITS),
            Units::One { map, .. } => vec![peaks[*map].unit(*map, layer.output.w)],
        };
        let seeds: Vec<Seed> = seeds.into_iter().map(|unit| Seed { image: 0, unit }).collect();
        let mut units = Vec::new();
        let projected = projector.project(index, &seeds, rule, |i, projection| {
            let SeedUnit { map, y, x, value } = seeds[i].unit;
            let (y, x) = (y as usize, x as usize);
            let field = field_box(layer, y, x);
            units.push(Unit {
                map: map as usize,
                y,
                x,
                value,
                field_box: field,
                patch: original_box(
                    preprocess,
                    original.width,
                    original.height,
                    seen_box(layer, y, x),
                ),
                projection: projection_image(preprocess, projection),
            });
            Ok(())
        });
        projected.map_err(|error| error.in_file(path))?;
        shown_layers.push(LayerProjections { name: layer.name.clone(), units });
    }
    let classes = classify(backend, model, classifier, &square)?;
    Ok(ImageProjections {
        name: path.display().to_string(),
        input: centre_crop(preprocess, &square),
        classes: classes.into_iter().take(5).collect(),
        layers: shown_layers,
    })
}

/// All classes with their probabilities, most probable first, for one preprocessed image.
///
/// # Errors
/// If a backend operation fails.
pub fn classify<B: Backend>(
    backend: &B,
    model: &Model<B>,
    classifier: &mut Classifier<B>,
    square: &[u8],
) -> Result<Vec<(String, f32)>> {
    let Model { network, params, classes, .. } = model;
    let mut probabilities = vec![0.0; classes.len()];
    classifier.add_probabilities(backend, network, params, square, &mut probabilities)?;
    let mut order: Vec<usize> = (0..classes.len()).collect();
    order.sort_by(|a, b| probabilities[*b].total_cmp(&probabilities[*a]).then(a.cmp(b)));
    Ok(order.into_iter().map(|i| (classes.names[i].clone(), probabilities[i] as f32)).collect())
}

/// Everything of one projection as raw numbers, HWC: `input`, `activation.LAYER`,
/// `switches.LAYER` (bytes as numbers), `seed` and `projection`. The image must be the one last
/// looked at.
///
/// # Errors
/// If the unit did not fire, or a backend operation fails.
pub fn arrays<B: Backend>(
    backend: &B,
    model: &Model<B>,
    projector: &mut Projector<'_, B>,
    layer: usize,
    map: usize,
    rule: Rule,
) -> Result<NamedTensors> {
    let network = &model.network;
    let mut arrays = NamedTensors::new();
    let shape = |s: Shape| vec![s.h, s.w, s.c];
    let mut keep = |name: String, tensor: &Tensor<B>| {
        let mut values = vec![0.0; tensor.shape().len()];
        backend.download(&mut values, tensor)?;
        arrays.push((name, shape(tensor.shape()), values));
        Ok::<_, Error>(())
    };
    keep("input".into(), &projector.workspace.input)?;
    for (index, l) in network.layers.iter().enumerate() {
        if !matches!(l.kind, Kind::Dropout(_)) {
            keep(format!("activation.{}", l.name), projector.workspace.output(index))?;
        }
    }
    for (index, l) in network.layers.iter().enumerate() {
        if let (Some(_), Some(bytes)) = (l.pooling(), projector.workspace.switches(index)) {
            let mut switches = vec![0; l.output.len()];
            backend.download_bytes(&mut switches, bytes)?;
            let values = switches.iter().map(|s| f32::from(*s)).collect();
            arrays.push((format!("switches.{}", l.name), shape(l.output), values));
        }
    }
    let output = network.layers[layer].output;
    let peak = projector.peaks(layer)?[map];
    let mut seed = vec![0.0; output.len()];
    let position = peak.position as usize;
    seed[position * output.c + map] = rule.seed_value(peak.value);
    arrays.push(("seed".into(), shape(output), seed));
    let projection = projection_of(projector, layer, peak.unit(map, output.w), rule)?;
    arrays.push(("projection".into(), shape(network.input()), projection));
    Ok(arrays)
}
