//! The paper's Table 7: how well a linear classifier tells the classes apart by what each layer makes
//! of the images.
//!
//! For every layer and seed, an SVM and a softmax (`linear.rs`) are trained on the layer's outputs
//! for some training images of each class, and measured on validation images by the mean over the
//! classes of the share that is right. One layer's outputs are in memory at a time: at most
//! [`LIMIT`] bytes of training images and as many of validation images, and 1 GiB of products.
//!
//! A layer, as the paper counts, is a convolution with all that follows it up to the next one: relu,
//! pooling, normalisation ([`paper_layers`]).

use std::sync::Arc;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use serde::{Deserialize, Serialize};

use super::activations::{LIMIT, Rows, Views, rows, union};
use super::folds::by_class;
use super::linear::{Fit, Loss, Problem, ROWS, mean_class_accuracy};
use super::{Facts, Session, Splits, Study};
use crate::backend::Backend;
use crate::data::images::Images;
use crate::data::order::shuffle;
use crate::model::{Kind, Model, Network};
use crate::{Error, Result};

/// See [`super::STUDIES`].
pub const STUDY: Study = Study {
    name: "probe",
    shows: "a linear classifier on each layer",
    paper: "Table 7",
    of_one_run: true,
};

/// The classifiers with their names.
pub(crate) const CLASSIFIERS: [(&str, Loss); 2] = [("SVM", Loss::Svm), ("Softmax", Loss::Softmax)];

/// What is probed, with how many images.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Settings {
    /// Indices of layers.
    pub layers: Vec<usize>,
    /// Training images of each class; for `None` all, or as many as fit into memory.
    pub per_class: Option<usize>,
    /// Validation images of each class, at most; for `None` all, or as many as fit into memory.
    pub test_per_class: Option<usize>,
    /// How often images are drawn anew, at least once.
    pub seeds: u32,
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Probe {
    /// What it was made with.
    pub facts: Facts,
    /// The network's name.
    pub network: String,
    /// How many of its layers have weights.
    pub convolutions: usize,
    /// Number of classes of the images.
    pub classes: usize,
    /// Whether any of them is, by name, one that the network was trained on.
    pub own_classes: bool,
    /// What was asked for.
    pub settings: Settings,
    /// Training images of a class that were taken, at most; `None` if all were.
    pub per_class: Option<usize>,
    /// The same of validation images.
    pub test_per_class: Option<usize>,
    /// In the order of `settings`.
    pub layers: Vec<LayerProbe>,
}

/// The images of every seed.
#[derive(Serialize)]
struct Draws {
    /// Training images of a class, at most; `None` if all are taken.
    per_class: Option<usize>,
    /// Validation images of a class, at most; `None` if all are taken.
    test_per_class: Option<usize>,
    /// For each seed, the indices of the training images, ascending.
    train: Vec<Vec<u32>>,
    /// The same of the validation images.
    test: Vec<Vec<u32>>,
}

/// One classifier of one seed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProbeScore {
    /// Mean over the classes of the share of validation images that is right.
    pub accuracy: f64,
    /// The same of the images it was trained on.
    pub train_accuracy: f64,
    /// The `C` that was chosen.
    pub strength: f64,
    /// Whether the optimum was reached.
    pub converged: bool,
    /// Iterations of the last training.
    pub iterations: usize,
}

/// What one seed gave for a layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// Training images; bad ones are left out.
    pub train: usize,
    /// Validation images.
    pub test: usize,
    /// The SVM, then the softmax.
    pub scored: [ProbeScore; 2],
}

/// What all seeds gave for a layer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerProbe {
    /// The layer as the paper counts: how many layers with weights there are up to it.
    pub number: usize,
    /// The layers it is made of.
    pub name: String,
    /// Numbers an image.
    pub width: usize,
    /// One a seed.
    pub trials: Vec<Trial>,
}

/// The paper's layers of a network: for each layer with weights but the last, the last layer before
/// the next one with weights, dropout apart.
pub fn paper_layers(network: &Network) -> Vec<usize> {
    let weighted: Vec<usize> =
        (0..network.layers.len()).filter(|&i| network.layers[i].convolution().is_some()).collect();
    let is_dropout = |i: &usize| matches!(network.layers[*i].kind, Kind::Dropout(_));
    let last = |pair: &[usize]| (pair[0]..pair[1]).rev().find(|i| !is_dropout(i));
    weighted.windows(2).filter_map(last).collect()
}

/// How many layers with weights there are up to a layer, and the names of what belongs to it: from the
/// last of these on, without relu and dropout.
fn named(network: &Network, layer: usize) -> (usize, String) {
    let layers = &network.layers[..=layer];
    let number = layers.iter().filter(|layer| layer.convolution().is_some()).count();
    let first = layers.iter().rposition(|layer| layer.convolution().is_some()).unwrap_or(0);
    let plain = |kind: &Kind| !matches!(kind, Kind::Relu(_) | Kind::Dropout(_));
    let names: Vec<&str> = layers[first..]
        .iter()
        .filter(|layer| plain(&layer.kind))
        .map(|layer| layer.name.as_str())
        .collect();
    (number, if names.is_empty() { layers[layer].name.clone() } else { names.join(", ") })
}

/// Draws the images of every seed.
fn draw(network: &Network, data: &Splits, settings: &Settings) -> Result<Draws> {
    let Settings { layers, per_class, test_per_class, seeds } = settings;
    if layers.is_empty() {
        let name = &network.architecture.name;
        return Err(Error::Network(format!(
            "network {name}: has no layer below its logits to probe"
        )));
    }
    let train = some_of_each(&data.train, "training", &data.classes.names)?;
    let val = some_of_each(&data.val, "validation", &data.classes.names)?;
    if let Some(wanted) = *per_class
        && let Some(class) = train.iter().position(|images| images.len() < wanted)
    {
        return Err(Error::Data(format!(
            "expected {wanted} training images of every class, found {} of class `{}`: ask for fewer",
            train[class].len(),
            data.classes.names[class]
        )));
    }
    let widest = layers.iter().map(|&layer| network.layers[layer].output.per_image()).max();
    let budget = LIMIT / 4 / widest.unwrap_or(1).max(1);
    let seeds = *seeds as usize;
    let per_class = per_class.or_else(|| most_of_a_class(&train, budget, budget.min(ROWS), seeds));
    let test_per_class = test_per_class.or_else(|| most_of_a_class(&val, budget, budget, seeds));
    let draw = |of_class: &[Vec<u32>], most: Option<usize>, stream: u64| {
        let of_seed = |seed: usize| {
            let mut random = ChaCha8Rng::seed_from_u64(seed as u64);
            random.set_stream(stream);
            let mut drawn: Vec<u32> = of_class
                .iter()
                .flat_map(|images| {
                    let mut images = images.clone();
                    shuffle(&mut random, &mut images);
                    images.truncate(most.unwrap_or(usize::MAX));
                    images
                })
                .collect();
            drawn.sort_unstable();
            drawn
        };
        (0..seeds).map(of_seed).collect()
    };
    let (train, test) = (draw(&train, per_class, 1), draw(&val, test_per_class, 2));
    Ok(Draws { per_class, test_per_class, train, test })
}

/// The images of each class, of which there must be some.
fn some_of_each(images: &Images, split: &str, classes: &[String]) -> Result<Vec<Vec<u32>>> {
    let of_class = by_class(images, classes.len());
    match of_class.iter().position(Vec::is_empty) {
        Some(class) => Err(Error::Data(format!(
            "class `{}` has no {split} image: expected some of every class in both splits",
            classes[class]
        ))),
        None => Ok(of_class),
    }
}

/// How many images of each class may be taken so that the images of one seed are no more than `most`
/// and those of all seeds fit into `budget`; `None` if all may be.
fn most_of_a_class(
    of_class: &[Vec<u32>],
    budget: usize,
    most: usize,
    seeds: usize,
) -> Option<usize> {
    let taken = |k: usize| of_class.iter().map(|images| images.len().min(k)).sum::<usize>();
    let largest = of_class.iter().map(Vec::len).max().unwrap_or(0);
    if taken(largest) <= most {
        return None;
    }
    let fits = |k: &usize| taken(*k) <= most.min(budget / seeds.max(1));
    Some((1..largest).rev().find(fits).unwrap_or(1))
}

/// Probes every layer with every seed.
///
/// # Errors
/// If a class has no image in one of the splits, or too few, images cannot be read, rows do not fit into
/// memory, parts cannot be kept, or a backend operation fails.
pub fn run<B: Backend>(
    session: &mut Session<'_, B>,
    model: &Model<B>,
    settings: &Settings,
    data: &Splits,
) -> Result<Probe> {
    let Model { network, classes: own, .. } = model;
    let draws = draw(network, data, settings)?;
    let parts = session.parts(&[model], &(data.fingerprints(), &draws))?;
    let part = |layer: usize, seed: usize| format!("{layer}-{seed}");
    let (all_train, all_test) = (union(&draws.train), union(&draws.test));
    let seeds = draws.train.len();
    // An image in a forward pass counts as much as one in a training.
    let looked_at = all_train.len() + all_test.len();
    let trained_on: usize = draws.train.iter().map(Vec::len).sum();
    let (mut done, total) = (0, settings.layers.len() * (looked_at + trained_on));
    let mut layers = Vec::new();
    for &layer in &settings.layers {
        let (number, name) = named(network, layer);
        let width = network.layers[layer].output.per_image();
        let there = (0..seeds).map(|seed| parts.get::<Trial>(&part(layer, seed)));
        let mut trials: Vec<Option<Trial>> = there.collect();
        let before = done;
        if trials.iter().any(Option::is_none) {
            let said = format!(", {name}: features");
            let (backend, workers) = (session.backend, session.workers);
            let mut features = |images: &Arc<Images>, wanted: &[u32], before: usize| {
                rows(
                    backend,
                    model,
                    images,
                    wanted,
                    &[layer],
                    Views::Centre,
                    None,
                    workers,
                    |now, _| {
                        session.progress(STUDY.name, before + now, total, &said);
                    },
                )
                .map(|mut rows| rows.remove(0))
            };
            let train = features(&data.train, &all_train, done)?;
            let test = features(&data.val, &all_test, done + all_train.len())?;
            done += looked_at;
            for (seed, trial) in trials.iter_mut().enumerate() {
                session.progress(STUDY.name, done, total, &format!(", {name}: seed {}", seed + 1));
                if trial.is_none() {
                    let picked = train.positions(&draws.train[seed]);
                    let tested = test.positions(&draws.test[seed]);
                    let classes = data.classes.len();
                    let new = one_trial(&train, &picked, &test, &tested, classes, seed)?;
                    parts.put(&part(layer, seed), &new)?;
                    *trial = Some(new);
                }
                done += draws.train[seed].len();
            }
        }
        done = before + looked_at + trained_on;
        session.progress(STUDY.name, done, total, "");
        layers.push(LayerProbe {
            number,
            name,
            width,
            trials: trials.into_iter().flatten().collect(),
        });
    }
    Ok(Probe {
        facts: session.facts.clone(),
        network: network.architecture.name.clone(),
        convolutions: network.convolutions().count(),
        classes: data.classes.len(),
        own_classes: data.classes.names.iter().any(|class| own.position(class).is_some()),
        settings: settings.clone(),
        per_class: draws.per_class,
        test_per_class: draws.test_per_class,
        layers,
    })
}

fn one_trial(
    train: &Rows,
    picked: &[usize],
    test: &Rows,
    tested: &[usize],
    classes: usize,
    seed: usize,
) -> Result<Trial> {
    let problem = Problem::new(train, picked, classes, seed as u64)?;
    let scored = CLASSIFIERS.map(|(_, loss)| {
        let Fit { linear, strength, converged, iterations } = problem.best(loss);
        let accuracy = |rows: &Rows, picked: &[usize]| {
            let truth: Vec<u32> = picked.iter().map(|&i| rows.classes[i]).collect();
            mean_class_accuracy(&truth, &linear.predict(rows, picked), classes)
        };
        ProbeScore {
            accuracy: accuracy(test, tested),
            train_accuracy: accuracy(train, picked),
            strength,
            converged,
            iterations,
        }
    });
    Ok(Trial { train: picked.len(), test: tested.len(), scored })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Architecture;

    #[test]
    fn layers_are_those_of_the_paper() {
        let network = Network::new(Architecture::find("zfnet").unwrap()).unwrap();
        let layers = paper_layers(&network);
        let names: Vec<(usize, String)> = layers.iter().map(|&i| named(&network, i)).collect();
        assert_eq!(names.len(), 7);
        assert_eq!(names.iter().map(|(n, _)| *n).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6, 7]);
        let pooled = |i: usize| names[i].1.contains("pool");
        assert!([0, 1, 4].into_iter().all(pooled) && ![2, 3, 5, 6].into_iter().any(pooled));
        assert_eq!([&names[2].1, &names[6].1], ["conv3", "fc7"]);
        let widths: Vec<usize> =
            layers.iter().map(|&i| network.layers[i].output.per_image()).collect();
        assert_eq!(widths[3..], [13 * 13 * 384, 6 * 6 * 256, 4096, 4096]);
        // A layer that is named is taken as it is.
        let conv1 = network.layer("conv1").unwrap();
        assert_eq!(named(&network, conv1), (1, "conv1".into()));
        assert_eq!(named(&network, conv1 + 1), (1, "conv1".into()));
    }

    #[test]
    fn as_many_images_as_memory_stands() {
        let of_class: Vec<Vec<u32>> = [4, 10].map(|n| (0..n).collect()).into();
        assert_eq!(most_of_a_class(&of_class, 14, 14, 3), None);
        // Of all three seeds together there may be 24: 4 of each class.
        assert_eq!(most_of_a_class(&of_class, 24, 13, 3), Some(4));
        assert_eq!(most_of_a_class(&of_class, 100, 13, 3), Some(9));
        assert_eq!(most_of_a_class(&of_class, 1, 1, 3), Some(1));
    }
}
