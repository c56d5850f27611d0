//! Looking into a trained network: one file for each of the paper's experiments.
//!
//! A study has settings and a `run`, which is called with a [`Session`] and gives a result as plain data;
//! the page made of that result is in `report`, under the study's name.

pub mod ablation;
#[doc(hidden)] // for tests
pub mod activations;
pub mod boxes;
pub mod correspondence;
pub mod diagnose;
mod divided_search;
pub mod ensemble;
pub mod evolution;
pub mod extractor;
pub mod features;
pub mod filters;
pub(crate) mod folds;
pub mod image_selection;
pub mod invariance;
pub mod learnt;
pub(crate) mod linear;
pub(crate) mod numbers;
pub mod occluder;
pub mod occlusion;
mod parts;
pub mod peaks;
pub(crate) mod pixels;
pub mod preferred;
pub mod probe;
pub mod project;
pub mod sanity;
mod session;
#[doc(hidden)] // for tests and the program
pub mod small_data;
mod ssim;
pub mod transfer;

pub use session::{Facts, Session};

use std::sync::Arc;

use xxhash_rust::xxh3::Xxh3;

use crate::backend::{Backend, SeedUnit};
use crate::data::Split;
use crate::data::classes::Classes;
use crate::data::images::{Images, ReadOptions};
use crate::data::set::DataSet;
use crate::model::weights::named_values;
use crate::model::{Model, Network, Projector, Rule, Seed};
use crate::{Error, Result};

/// A study, as commands, reports and documentation name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Study {
    /// The command, and the folder of its page in a run's report.
    pub name: &'static str,
    /// What its page shows, for the middle of a list.
    pub shows: &'static str,
    /// What of the paper it repeats: "Figure 7"; empty for nothing.
    pub paper: &'static str,
    /// Whether it is of a single run, so that its page lies in that run's report by itself.
    pub of_one_run: bool,
}

/// All studies, in the order of a run's report.
pub const STUDIES: [Study; 14] = [
    diagnose::STUDY,
    learnt::STUDY,
    features::STUDY,
    preferred::STUDY,
    evolution::STUDY,
    invariance::STUDY,
    filters::STUDY,
    occlusion::STUDY,
    correspondence::STUDY,
    sanity::STUDY,
    ensemble::STUDY,
    ablation::STUDY,
    transfer::STUDY,
    probe::STUDY,
];

impl Study {
    /// What it shows, and where that is in the paper.
    pub fn line(&self) -> String {
        match self.paper {
            "" => self.shows.into(),
            paper => format!("{} ({paper})", self.shows),
        }
    }
}

/// The images of both splits of a data set.
pub struct Splits {
    /// The training images.
    pub train: Arc<Images>,
    /// The validation images.
    pub val: Arc<Images>,
    /// Their classes, which need not be those of a network.
    pub classes: Classes,
}

impl Splits {
    /// Those of a data set.
    ///
    /// # Errors
    /// If a set of shards does not hold together.
    pub fn open(set: &DataSet, options: ReadOptions) -> Result<Self> {
        let images = |split| set.images(split, options).map(Arc::new);
        Ok(Splits {
            train: images(Split::Train)?,
            val: images(Split::Val)?,
            classes: set.classes(),
        })
    }

    /// The fingerprints of both.
    pub fn fingerprints(&self) -> [String; 2] {
        [&self.train, &self.val].map(|images| images.fingerprint())
    }
}

/// A hash of a model's weights and preprocessing, and of what computes with them: what a study's results
/// depend on, beside images and settings.
///
/// # Errors
/// If a backend operation fails.
pub fn fingerprint<B: Backend>(backend: &B, model: &Model<B>) -> Result<String> {
    let Model { network, params, preprocess, .. } = model;
    let mut hash = Xxh3::new();
    hash.update(backend.id().to_string().as_bytes());
    hash.update(network.architecture.to_toml().as_bytes());
    hash.update(&serde_json::to_vec(preprocess).expect("plain data"));
    hash.update(bytemuck::cast_slice(&preprocess.mean)); // which is not among the plain data
    for (name, _, values) in named_values(backend, network, params)? {
        hash.update(name.as_bytes());
        hash.update(bytemuck::cast_slice(&values));
    }
    Ok(format!("{:016x}", hash.digest()))
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

/// Projects one unit of the first image that the projector has looked at last: `[rows, columns, channels]`,
/// as the network's channels are.
fn projection_of<B: Backend>(
    projector: &mut Projector<'_, B>,
    layer: usize,
    unit: SeedUnit,
    rule: Rule,
) -> Result<Vec<f32>> {
    let mut pixels = Vec::new();
    projector.project(layer, &[Seed { image: 0, unit }], rule, |_, values| {
        pixels = values.to_vec();
        Ok(())
    })?;
    Ok(pixels)
}
