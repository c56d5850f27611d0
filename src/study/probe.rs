//! The paper's Table 7: how well a linear classifier tells the classes apart by what each layer makes
//! of the images.
//!
//! For every layer and seed, an SVM and a softmax ([`super::linear`]) are trained on the layer's outputs
//! for some training images of each class, and measured on validation images by the mean over the
//! classes of the share that is right. One layer's outputs are in memory at a time: at most
//! [`LIMIT`] bytes of training images and as many of validation images, and 1 GiB of products.
//!
//! A layer, as the paper counts, is a convolution with all that follows it up to the next one: relu,
//! pooling, normalisation ([`paper_layers`]).

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use serde::{Deserialize, Serialize};

use super::activations::{LIMIT, Rows, rows};
use super::linear::{Fit, Loss, Problem, ROWS, mean_class_accuracy};
use super::parts::Parts;
use crate::backend::Backend;
use crate::data::images::Images;
use crate::data::order::shuffle;
use crate::disk::write_whole;
use crate::model::{Kind, Model, Network};
use crate::report::csv;
use crate::report::figure::{Figure, Picture, Section, Table};
use crate::report::plot::{self, Line, curves};
use crate::{Error, Result};

/// A row of the paper's table: the layer, then accuracy in % on Caltech-101 (30 images a class) and
/// Caltech-256 (60 images a class), of the SVM and of the softmax.
type PaperRow = (usize, [Option<f64>; 4]);
/// The paper's Table 7.
const PAPER: [PaperRow; 6] = [
    (1, [Some(44.8), Some(24.6), None, None]),
    (2, [Some(66.2), Some(39.6), None, None]),
    (3, [Some(72.3), Some(46.0), None, None]),
    (4, [Some(76.6), Some(51.3), None, None]),
    (5, [Some(86.2), Some(65.6), Some(82.9), Some(65.7)]),
    (7, [Some(85.5), Some(71.7), Some(85.4), Some(72.6)]),
];
/// Layers with weights that the paper's network has.
const PAPER_LAYERS: usize = 8;
/// The classifiers with their names.
const CLASSIFIERS: [(&str, Loss); 2] = [("SVM", Loss::Svm), ("Softmax", Loss::Softmax)];

/// What is probed, with which images.
pub struct Request {
    /// The images that classifiers are trained on.
    pub train: Arc<Images>,
    /// The images that they are measured on.
    pub val: Arc<Images>,
    /// Names of the images' classes, which need not be the network's.
    pub classes: Vec<String>,
    /// Indices of layers.
    pub layers: Vec<usize>,
    /// Training images of each class; for `None` all, or as many as memory stands.
    pub per_class: Option<usize>,
    /// Validation images of each class, at most; for `None` all, or as many as memory stands.
    pub test_per_class: Option<usize>,
    /// How often images are drawn anew, at least once.
    pub seeds: u32,
    /// Threads that decode.
    pub workers: usize,
}

/// The images of every seed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Draws {
    /// Training images of a class, at most; `None` if all are taken.
    pub per_class: Option<usize>,
    /// Validation images of a class, at most; `None` if all are taken.
    pub test_per_class: Option<usize>,
    /// For each seed, the indices of the training images, ascending.
    pub train: Vec<Vec<u32>>,
    /// The same of the validation images.
    pub test: Vec<Vec<u32>>,
}

/// One classifier of one seed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scored {
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
    pub scored: [Scored; 2],
}

/// What all seeds gave for a layer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Probed {
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
///
/// # Errors
/// If a class has no image in one of the splits, or too few for `per_class`.
pub fn draw(network: &Network, request: &Request) -> Result<Draws> {
    let Request { train, val, classes, layers, per_class, test_per_class, seeds, .. } = request;
    if layers.is_empty() {
        let name = &network.architecture.name;
        return Err(Error::Network(format!(
            "network {name}: has no layer below its logits to probe"
        )));
    }
    let train = by_class(train, "training", classes)?;
    let val = by_class(val, "validation", classes)?;
    if let Some(wanted) = *per_class
        && let Some(class) = train.iter().position(|images| images.len() < wanted)
    {
        return Err(Error::Data(format!(
            "expected {wanted} training images of every class, found {} of class `{}`: ask for fewer",
            train[class].len(),
            classes[class]
        )));
    }
    let widest = layers.iter().map(|&layer| network.layers[layer].output.per_image()).max();
    let room = LIMIT / 4 / widest.unwrap_or(1).max(1);
    let seeds = *seeds as usize;
    let per_class = per_class.or_else(|| most_of_a_class(&train, room, room.min(ROWS), seeds));
    let test_per_class = test_per_class.or_else(|| most_of_a_class(&val, room, room, seeds));
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

/// The images of each class.
fn by_class(images: &Images, split: &str, classes: &[String]) -> Result<Vec<Vec<u32>>> {
    let mut of_class = vec![Vec::new(); classes.len()];
    for image in 0..images.len() {
        of_class[images.class(image) as usize].push(image as u32);
    }
    match of_class.iter().position(Vec::is_empty) {
        Some(class) => Err(Error::Data(format!(
            "class `{}` has no {split} image: expected some of every class in both splits",
            classes[class]
        ))),
        None => Ok(of_class),
    }
}

/// How many images of each class may be taken so that the images of one seed are no more than `most`
/// and those of all seeds fit into `room`; `None` if all may be.
fn most_of_a_class(of_class: &[Vec<u32>], room: usize, most: usize, seeds: usize) -> Option<usize> {
    let taken = |k: usize| of_class.iter().map(|images| images.len().min(k)).sum::<usize>();
    let largest = of_class.iter().map(Vec::len).max().unwrap_or(0);
    if taken(largest) <= most {
        return None;
    }
    let fits = |k: &usize| taken(*k) <= most.min(room / seeds.max(1));
    Some((1..largest).rev().find(fits).unwrap_or(1))
}

/// Probes every layer with every seed; what `parts` holds already is taken from there. `progress` is
/// called with how much is done, of how much, and a few words more.
///
/// # Errors
/// If images cannot be read, rows do not fit into memory, parts cannot be kept, or the backend refuses.
pub fn probe<B: Backend>(
    backend: &B,
    model: &Model<B>,
    fingerprint: &str,
    request: &Request,
    draws: &Draws,
    parts: &Parts,
    mut progress: impl FnMut(usize, usize, &str),
) -> Result<Vec<Probed>> {
    let Request { train, val, classes, layers, workers, .. } = request;
    let part = |layer: usize, seed: usize| format!("{layer}-{seed}");
    let (all_train, all_test) = (union(&draws.train), union(&draws.test));
    let seeds = draws.train.len();
    // An image on its way up counts as much as one in a training.
    let looked_at = all_train.len() + all_test.len();
    let trained_on: usize = draws.train.iter().map(Vec::len).sum();
    let (mut done, total) = (0, layers.len() * (looked_at + trained_on));
    let mut all = Vec::new();
    for &layer in layers {
        let (number, name) = named(&model.network, layer);
        let width = model.network.layers[layer].output.per_image();
        let there = (0..seeds).map(|seed| parts.get::<Trial>(&part(layer, seed)));
        let mut trials: Vec<Option<Trial>> = there.collect();
        let before = done;
        if trials.iter().any(Option::is_none) {
            let said = format!(", {name}: features");
            let mut features = |images: &Arc<Images>, wanted: &[u32], before: usize| {
                let only = &[layer];
                rows(backend, model, fingerprint, images, wanted, only, None, *workers, |now, _| {
                    progress(before + now, total, &said);
                })
                .map(|mut rows| rows.remove(0))
            };
            let train = features(train, &all_train, done)?;
            let test = features(val, &all_test, done + all_train.len())?;
            done += looked_at;
            for (seed, trial) in trials.iter_mut().enumerate() {
                progress(done, total, &format!(", {name}: seed {}", seed + 1));
                if trial.is_none() {
                    let picked = positions(&train, &draws.train[seed]);
                    let tested = positions(&test, &draws.test[seed]);
                    let new = one_trial(&train, &picked, &test, &tested, classes.len(), seed)?;
                    parts.put(&part(layer, seed), &new)?;
                    *trial = Some(new);
                }
                done += draws.train[seed].len();
            }
        }
        done = before + looked_at + trained_on;
        progress(done, total, "");
        all.push(Probed { number, name, width, trials: trials.into_iter().flatten().collect() });
    }
    Ok(all)
}

/// All indices of some lists, once, ascending.
fn union(lists: &[Vec<u32>]) -> Vec<u32> {
    let mut all = lists.concat();
    all.sort_unstable();
    all.dedup();
    all
}

/// Where the images that were drawn are among the rows, both ascending; bad images are in none.
fn positions(rows: &Rows, drawn: &[u32]) -> Vec<usize> {
    drawn.iter().filter_map(|image| rows.images.binary_search(image).ok()).collect()
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
        Scored {
            accuracy: accuracy(test, tested),
            train_accuracy: accuracy(train, picked),
            strength,
            converged,
            iterations,
        }
    });
    Ok(Trial { train: picked.len(), test: tested.len(), scored })
}

impl Probed {
    /// Accuracies of a classifier, one a seed, in %.
    fn accuracies(&self, classifier: usize) -> Vec<f64> {
        self.trials.iter().map(|trial| 100.0 * trial.scored[classifier].accuracy).collect()
    }

    /// Mean accuracy of a classifier on the images it was trained on, in %.
    fn train_accuracy(&self, classifier: usize) -> f64 {
        let of = |trial: &Trial| 100.0 * trial.scored[classifier].train_accuracy;
        mean(&self.trials.iter().map(of).collect::<Vec<f64>>())
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The deviation of a sample; `None` of a single value.
fn deviation(values: &[f64]) -> Option<f64> {
    let mean = mean(values);
    let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
    (values.len() > 1).then(|| (squares / (values.len() - 1) as f64).sqrt())
}

/// Mean and deviation, for a table.
fn with_deviation(values: &[f64]) -> String {
    match deviation(values) {
        Some(deviation) => format!("{:.1} ± {deviation:.1}", mean(values)),
        None => format!("{:.1}", mean(values)),
    }
}

/// Writes the page with its plot, `probe.csv` and `probe.json`. Returns the page's path. `own_classes`:
/// whether any of the classes is, by name, one that the network was trained on.
///
/// # Errors
/// If `out` cannot be written.
pub fn write(
    out: &Path,
    network: &Network,
    facts: Vec<(String, String)>,
    draws: &Draws,
    own_classes: bool,
    probed: &[Probed],
) -> io::Result<PathBuf> {
    let like_paper = network.convolutions().count() == PAPER_LAYERS;
    let lines = lines(probed, like_paper);
    write_whole(&out.join("accuracy.svg"), curves("layer", "accuracy in %", &lines).as_bytes())?;
    write_numbers(out, draws, probed)?;
    let mut text = Vec::new();
    for (classifier, (name, _)) in CLASSIFIERS.iter().enumerate() {
        text.extend(course(probed, classifier, name));
    }
    text.extend(uncertainty(probed));
    let plot = Picture {
        file: "accuracy.svg".into(),
        size: plot::SIZE,
        title: "Accuracy by layer".into(),
        method: "mean over the seeds".into(),
        wide: true,
        ..Picture::default()
    };
    let unfinished = |of: &Probed| of.trials.iter().any(|t| t.scored.iter().any(|s| !s.converged));
    let alarms = probed.iter().filter(|of| unfinished(of)).map(|of| {
        format!(
            "Layer {} ({}): the optimum was not reached with every seed; its accuracy may be lower \
             than it need be.",
            of.number, of.name
        )
    });
    let section = Section {
        title: "Accuracy by layer".into(),
        text,
        alarms: alarms.collect(),
        pictures: vec![plot],
        tables: vec![
            table(probed, like_paper, own_classes, draws.per_class.is_none()),
            details(probed),
        ],
    };
    Figure {
        study: "probe".into(),
        title: format!("How far each layer of {} tells classes apart", network.architecture.name),
        paper: "Table 7".into(),
        facts,
        how: vec![
            "The network is frozen. Of every image the outputs of one layer are taken (centre crop), \
             and a linear SVM (one class against the rest, squared hinge) and a softmax are trained on \
             those of the training images, multiplied by one factor that makes their mean squared norm \
             1. Both are regularised; how much is chosen on a held-out fifth of the training images, then \
             all of them are trained on. Accuracy is the mean over the classes of the share of validation \
             images that is right."
                .into(),
            "A layer, as the paper counts, is a convolution with all that follows it up to the next \
             one: relu, pooling, normalisation. Each seed draws which images are used and which fifth is \
             held out; ± is the deviation over the seeds."
                .into(),
        ],
        sections: vec![section],
        files: vec![
            ("probe.csv".into(), "every layer, seed and classifier".into()),
            ("probe.json".into(), "the same".into()),
        ],
    }
    .write(out)
}

/// The curves of the plot.
fn lines(probed: &[Probed], like_paper: bool) -> Vec<Line> {
    let own = CLASSIFIERS.iter().enumerate().map(|(classifier, (name, _))| Line {
        name: (*name).into(),
        points: probed
            .iter()
            .map(|of| (of.number as f64, mean(&of.accuracies(classifier))))
            .collect(),
    });
    let papers = |column: usize, name: &str| Line {
        name: name.into(),
        points: PAPER
            .iter()
            .filter_map(|(layer, row)| Some((*layer as f64, row[column]?)))
            .collect(),
    };
    let mut lines: Vec<Line> = own.collect();
    if like_paper {
        lines.push(papers(0, "paper: SVM, Caltech-101"));
        lines.push(papers(1, "paper: SVM, Caltech-256"));
    }
    lines
}

fn table(probed: &[Probed], like_paper: bool, own_classes: bool, all: bool) -> Table {
    let head = [
        "Layer",
        "SVM",
        "Softmax",
        "Paper: SVM, Caltech-101",
        "Paper: SVM, Caltech-256",
        "Paper: Softmax, Caltech-101",
        "Paper: Softmax, Caltech-256",
    ];
    let row = |(i, of): (usize, &Probed)| {
        let mut row = vec![format!("{}: {}", of.number, of.name)];
        row.extend((0..CLASSIFIERS.len()).map(|k| with_deviation(&of.accuracies(k))));
        // Several of our rows may be of one layer of the paper's: its output is the last of them.
        let is_last = probed.get(i + 1).is_none_or(|next| next.number != of.number);
        let paper = PAPER.iter().find(|(layer, _)| like_paper && is_last && *layer == of.number);
        let papers = paper.map_or([None; 4], |(_, row)| *row);
        row.extend(papers.map(|v| v.map_or("–".into(), |v| format!("{v:.1}"))));
        row
    };
    let trial = &probed[0].trials[0];
    let mut notes = vec![
        format!(
            "The paper’s network has seen 1.3 million images of ImageNet; its classifiers were trained \
             on 30 images a class of Caltech-101 and 60 of Caltech-256, over 102 and 257 classes. Here: \
             {} training and {} validation images a seed. Numbers of different data are not to be \
             compared; the course over the layers is.",
            trial.train, trial.test
        ),
        if own_classes {
            "Classes of these names are among those that this network was itself trained on; the \
             paper’s were new to its network. If the training images are the same too, its last layers were made for them: \
             classifiers find them easier than images never seen, and the held-out fifth is not new to \
             the network."
                .into()
        } else {
            "The classes are not those that this network was trained on, as in the paper."
                .to_owned()
        },
    ];
    if all {
        notes.push(
            "All training images are taken with every seed: seeds differ in which fifth of them is held \
             out, so that the deviations are less than those of a new draw of images."
                .into(),
        );
    }
    if !like_paper {
        notes.push(format!(
            "This network has other layers than the paper’s, which has {PAPER_LAYERS} with weights: \
             its numbers are not shown."
        ));
    }
    Table {
        caption: "Accuracy in %, mean over the classes".into(),
        head: head.map(String::from).into(),
        rows: probed.iter().enumerate().map(row).collect(),
        notes,
    }
}

/// What stands behind the accuracies.
fn details(probed: &[Probed]) -> Table {
    let list = |of: &Probed, value: &dyn Fn(&Trial) -> String| -> String {
        let values: Vec<String> = of.trials.iter().map(value).collect();
        let alike = values.iter().all(|value| *value == values[0]);
        if alike { values[0].clone() } else { values.join(", ") }
    };
    let row = |of: &Probed| {
        let mut row = vec![format!("{}: {}", of.number, of.name), of.width.to_string()];
        for k in 0..CLASSIFIERS.len() {
            row.push(format!("{:.1}", of.train_accuracy(k)));
            row.push(list(of, &|trial| trial.scored[k].strength.to_string()));
        }
        row
    };
    let head = [
        "Layer",
        "Numbers an image",
        "SVM on training images",
        "C",
        "Softmax on training images",
        "C",
    ];
    Table {
        caption: "What the classifiers were trained on, and how well they fit it, in %".into(),
        head: head.map(String::from).into(),
        rows: probed.iter().map(row).collect(),
        notes: vec![
            "C weighs the losses against the squared weights: the larger, the less they are \
             regularised. Where seeds chose different values, that of each is named."
                .into(),
        ],
    }
}

/// A change of accuracy from one layer to the next, in points.
struct Change {
    points: f64,
    /// Of the change, over the seeds.
    deviation: Option<f64>,
}

impl Change {
    fn between(from: &Probed, to: &Probed, classifier: usize) -> Self {
        let pairs = from.accuracies(classifier).into_iter().zip(to.accuracies(classifier));
        let changes: Vec<f64> = pairs.map(|(from, to)| to - from).collect();
        Change { points: mean(&changes), deviation: deviation(&changes) }
    }

    fn words(&self) -> String {
        let points = format!("{:.1} points", self.points.abs());
        match self.deviation {
            None => points,
            Some(0.0) => format!("{points}, the same with every seed"),
            // Of a few seeds the deviation is not known so well that more would say anything.
            Some(deviation) if self.points.abs() > 20.0 * deviation => {
                format!("{points}, over 20 deviations")
            }
            Some(deviation) => {
                format!("{points}, {:.1} deviations", self.points.abs() / deviation)
            }
        }
    }

    /// Whether it is less than two deviations.
    fn is_slight(&self) -> bool {
        self.deviation.is_some_and(|deviation| self.points.abs() < 2.0 * deviation)
    }
}

/// Where accuracy rises and falls, in words; each fall with what stands behind it.
fn course(probed: &[Probed], classifier: usize, name: &str) -> Vec<String> {
    let means: Vec<f64> = probed.iter().map(|of| mean(&of.accuracies(classifier))).collect();
    let mut best = 0;
    for (i, mean) in means.iter().enumerate() {
        if *mean > means[best] {
            best = i;
        }
    }
    let mut first = format!(
        "{name}: accuracy is highest at layer {} ({}), {:.1} %.",
        probed[best].number, probed[best].name, means[best]
    );
    let (mut rises, mut falls) = (Vec::new(), Vec::new());
    for pair in probed.windows(2) {
        let [from, to] = [&pair[0], &pair[1]];
        let change = Change::between(from, to, classifier);
        if change.points < 0.0 {
            falls.push(fall(from, to, classifier, name, &change));
        } else if change.points > 0.0 {
            rises.push(format!("{} ({})", to.name, change.words()));
        }
    }
    if !rises.is_empty() {
        first.push_str(&format!(" It rises at {}.", rises.join(", at ")));
    }
    if falls.is_empty() && probed.len() > 1 {
        first.push_str(" It falls nowhere.");
    }
    let mut text = vec![first];
    text.extend(falls);
    text
}

/// A fall, with what may tell its reasons apart: how the training images are fitted.
fn fall(from: &Probed, to: &Probed, classifier: usize, name: &str, change: &Change) -> String {
    let mut text =
        format!("{name}: it falls from {} to {} by {}.", from.name, to.name, change.words());
    if change.is_slight() {
        text.push_str(
            " That is less than two deviations: another draw of images may well undo it.",
        );
    }
    let errors = [from, to].map(|of| standard_error(of, classifier).powi(2));
    let open = 2.0 * errors.iter().sum::<f64>().sqrt();
    if change.points.abs() < open {
        text.push_str(&format!(
            " It is less than the {open:.1} points (two standard errors) by which accuracies on two \
             draws of so many validation images differ by chance."
        ));
    }
    let [before, after] = [from, to].map(|of| of.train_accuracy(classifier));
    text.push_str(&format!(
        " On the training images it is {after:.1} % after {before:.1} %, each with the strength of \
         regularisation that was chosen for it (see the second table), from {} and {} numbers.",
        to.width, from.width
    ));
    text
}

/// Of a classifier's accuracy, in points, since there are only so many validation images.
fn standard_error(of: &Probed, classifier: usize) -> f64 {
    let share = mean(&of.accuracies(classifier)) / 100.0;
    100.0 * (share * (1.0 - share) / of.trials[0].test as f64).sqrt()
}

/// What the number of validation images alone leaves open.
fn uncertainty(probed: &[Probed]) -> Option<String> {
    let trial = probed.first()?.trials.first()?;
    let largest = probed.iter().map(|of| standard_error(of, 0)).fold(0.0, f64::max);
    Some(format!(
        "Deviations are over the seeds, between layers of the change with each seed, on the same images. \
         Of a few seeds they are only roughly known. That there are only {} validation images is not in \
         them: by itself it leaves each accuracy uncertain by up to {largest:.1} points (one standard \
         error).",
        trial.test
    ))
}

/// The numbers as CSV and JSON.
fn write_numbers(out: &Path, draws: &Draws, probed: &[Probed]) -> io::Result<()> {
    let head = [
        "number",
        "layer",
        "features",
        "seed",
        "classifier",
        "train_images",
        "test_images",
        "accuracy",
        "train_accuracy",
        "c",
        "iterations",
        "converged",
    ];
    let rows = probed.iter().flat_map(|of| {
        let trials = of.trials.iter().enumerate();
        trials.flat_map(move |(seed, trial)| {
            CLASSIFIERS.iter().zip(&trial.scored).map(move |((name, _), scored)| {
                vec![
                    of.number.to_string(),
                    of.name.clone(),
                    of.width.to_string(),
                    (seed + 1).to_string(),
                    (*name).to_owned(),
                    trial.train.to_string(),
                    trial.test.to_string(),
                    scored.accuracy.to_string(),
                    scored.train_accuracy.to_string(),
                    scored.strength.to_string(),
                    scored.iterations.to_string(),
                    scored.converged.to_string(),
                ]
            })
        })
    });
    write_whole(&out.join("probe.csv"), csv(&head, rows).as_bytes())?;
    let summary = |of: &Probed| {
        let of_classifier = |k: usize| {
            let values = of.accuracies(k);
            serde_json::json!({ "mean": mean(&values), "deviation": deviation(&values) })
        };
        serde_json::json!({
            "number": of.number,
            "layer": of.name,
            "features": of.width,
            "svm": of_classifier(0),
            "softmax": of_classifier(1),
            "trials": of.trials,
        })
    };
    let paper = PAPER.map(|(layer, [svm_101, svm_256, softmax_101, softmax_256])| {
        serde_json::json!({
            "number": layer,
            "svm": { "caltech101_30": svm_101, "caltech256_60": svm_256 },
            "softmax": { "caltech101_30": softmax_101, "caltech256_60": softmax_256 },
        })
    });
    let json = serde_json::json!({
        "unit": "percent; in trials shares",
        "per_class": draws.per_class,
        "test_per_class": draws.test_per_class,
        "seeds": draws.train.len(),
        "layers": probed.iter().map(summary).collect::<Vec<_>>(),
        "paper": paper,
    });
    write_whole(&out.join("probe.json"), &serde_json::to_vec_pretty(&json)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Architecture;

    fn layer(name: &str, accuracies: &[f64], train_accuracy: f64) -> Probed {
        let trial = |&accuracy: &f64| {
            let scored =
                Scored { accuracy, train_accuracy, strength: 1.0, converged: true, iterations: 3 };
            Trial { train: 10, test: 100, scored: [scored; 2] }
        };
        let trials = accuracies.iter().map(trial).collect();
        Probed { number: 1, name: name.into(), width: 5, trials }
    }

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

    /// 60, 70 and 65 % with two seeds each: the changes are 8 and 12 points, then -5 and -5.
    #[test]
    fn rises_and_falls_are_told_with_their_deviations() {
        let probed = [
            layer("a", &[0.60, 0.60], 0.9),
            layer("b", &[0.68, 0.72], 1.0),
            layer("c", &[0.63, 0.67], 1.0),
            layer("d", &[0.60, 0.66], 0.8),
        ];
        let text = course(&probed, 0, "SVM");
        assert_eq!(text.len(), 3);
        let deviations = 10.0 / (2.0 * 2.0f64.sqrt());
        let rise = format!("rises at b (10.0 points, {deviations:.1} deviations).");
        assert!(text[0].contains("highest at layer 1 (b), 70.0 %"), "{}", text[0]);
        assert!(text[0].contains(&rise), "{}", text[0]);
        assert!(text[1].contains("from b to c by 5.0 points"), "{}", text[1]);
        assert!(text[1].contains("it is 100.0 % after 100.0 %"), "{}", text[1]);
        assert!(text[2].contains("from c to d by 2.0 points, 1.4 deviations"), "{}", text[2]);
        assert!(text[2].contains("less than two deviations"), "{}", text[2]);
        assert!(text[1].contains("by chance"), "{}", text[1]);
        assert!(text[2].contains("it is 80.0 % after 100.0 %"), "{}", text[2]);
        let alone = course(&[layer("a", &[0.5], 1.0), layer("b", &[0.6], 1.0)], 1, "softmax");
        assert_eq!(alone.len(), 1);
        assert!(alone[0].contains("at b (10.0 points). It falls nowhere"), "{}", alone[0]);
    }
}
