//! The paper's Table 1: does a network tell that a part of an object is the same part in other images?
//!
//! In each image the same part (a left eye, a nose) is covered. With x an image, x' the same with the part
//! covered, and f a layer's output:
//!
//! ```text
//! e_i = f(x_i) - f(x'_i)
//! D   = mean over pairs i != j of H(sign e_i, sign e_j)
//! ```
//!
//! where H is the share of features whose signs (-1, 0 or 1) differ. The smaller D, the more alike the
//! change is. The paper sums over the 20 ordered pairs of five images and does not print how H is
//! normalised; a mean over pairs does not depend on how many images there are.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::Serialize;

use super::boxes::{Marked, in_crop};
use super::fill::{Cover, Fill};
use super::mean_and_deviation;
use super::picks::Picked;
use crate::backend::Backend;
use crate::disk::write_whole;
use crate::model::{InputStage, Model, Network, Purpose, Workspace};
use crate::picture::Image;
use crate::report::csv;
use crate::report::figure::{Figure, PHOTOGRAPH_CONTRAST, Picture, Section, Table};
use crate::train::evaluate::TestCrops;
use crate::{Error, Result};

/// Least side of a picture, in pixels.
const SHOWN: usize = 192;

/// What is compared.
pub struct Request<'a> {
    /// The images.
    pub images: &'a [Picked],
    /// Their parts, image by image.
    pub marked: &'a [Marked],
    /// Indices of the layers.
    pub layers: &'a [usize],
    /// What covers a part.
    pub fill: Fill,
    /// How often boxes are drawn at random for each part.
    pub draws: usize,
    /// Seed of those.
    pub seed: u64,
}

/// How alike a change is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Score {
    /// The part's name.
    pub part: String,
    /// The layer's name.
    pub layer: String,
    /// Names of the images that have the part.
    pub images: Vec<String>,
    /// H of each pair of them, in the order (0, 1), (0, 2), ..., (1, 2), ...
    pub pairs: Vec<f64>,
    /// D of the part, and the standard deviation over its pairs.
    pub part_score: [f64; 2],
    /// D of boxes of the same sizes at random places: the mean over the draws, and the standard deviation
    /// over them; none without draws.
    pub random_score: Option<[f64; 2]>,
}

/// The output of the last spatial convolution, after its pooling if it has one, and of the last hidden
/// fully connected layer: the paper's layers 5 and 7.
pub fn default_layers(network: &Network) -> Vec<usize> {
    let layers = &network.layers;
    let pooled = network.spatial().last().map(|&conv| {
        let mut above = (conv + 1..layers.len()).take_while(|&i| layers[i].convolution().is_none());
        above.find(|&i| layers[i].pooling().is_some()).unwrap_or(conv)
    });
    pooled.into_iter().chain(network.last_hidden()).collect()
}

/// Covers parts and random boxes, and scores how alike the changes are, for each layer and part.
/// `progress` is called with how many coverings are done, and of how many.
///
/// # Errors
/// If fewer than two images have a part, a part lies outside the crop, or the backend refuses.
pub fn correspondence<B: Backend>(
    backend: &B,
    model: &Model<B>,
    request: &Request<'_>,
    mut progress: impl FnMut(usize, usize),
) -> Result<Vec<Score>> {
    let Request { images, layers, draws, seed, .. } = *request;
    let parts = parts(model, request)?;
    if layers.is_empty() {
        let name = &model.network.architecture.name;
        let reason = format!("network {name}: has no hidden layer to compare: name layers");
        return Err(Error::Network(reason));
    }
    let mut looker = Looker::new(backend, model, layers)?;
    let squares: Vec<Vec<u8>> = images.iter().map(|image| image.square.clone()).collect();
    let whole = looker.look(&squares)?;
    let (total, mut done) = (parts.len() * (draws + 1), 0);
    let mut scores = Vec::new();
    for (number, (part, boxes)) in parts.iter().enumerate() {
        let mut with = |boxes: &BTreeMap<usize, [i64; 4]>| -> Result<Vec<Vec<f64>>> {
            let covered: Vec<Vec<u8>> =
                boxes.iter().map(|(image, area)| covered(model, request, *image, *area)).collect();
            let changed = looker.look(&covered)?;
            done += 1;
            progress(done, total);
            let of_layer = |layer: usize| {
                let changes: Vec<Vec<f32>> = boxes
                    .keys()
                    .zip(&changed)
                    .map(|(image, changed)| {
                        let pairs = whole[*image][layer].iter().zip(&changed[layer]);
                        pairs.map(|(whole, changed)| whole - changed).collect()
                    })
                    .collect();
                pairwise(&changes)
            };
            Ok((0..layers.len()).map(of_layer).collect())
        };
        let of_part = with(boxes)?;
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(number as u64);
        let mut of_draws = vec![Vec::new(); layers.len()];
        for _ in 0..draws {
            let anywhere = |area: &[i64; 4]| somewhere(&mut random, model.preprocess.size, *area);
            let drawn: BTreeMap<usize, [i64; 4]> =
                boxes.keys().copied().zip(boxes.values().map(anywhere)).collect();
            for (of_layer, pairs) in of_draws.iter_mut().zip(with(&drawn)?) {
                of_layer.push(mean_and_deviation(&pairs)[0]);
            }
        }
        for ((layer, pairs), of_draws) in layers.iter().zip(of_part).zip(&of_draws) {
            scores.push(Score {
                part: part.clone(),
                layer: model.network.layers[*layer].name.clone(),
                images: boxes.keys().map(|image| images[*image].name.clone()).collect(),
                part_score: mean_and_deviation(&pairs),
                random_score: (draws > 0).then(|| mean_and_deviation(of_draws)),
                pairs,
            });
        }
    }
    Ok(scores)
}

/// The share of features whose signs differ, for each pair of images.
pub fn pairwise(changes: &[Vec<f32>]) -> Vec<f64> {
    let sign = |change: f32| (change > 0.0) as i8 - (change < 0.0) as i8;
    let hamming = |a: &[f32], b: &[f32]| {
        let differing = a.iter().zip(b).filter(|(a, b)| sign(**a) != sign(**b)).count();
        differing as f64 / a.len() as f64
    };
    let mut pairs = Vec::new();
    for (i, a) in changes.iter().enumerate() {
        pairs.extend(changes[i + 1..].iter().map(|b| hamming(a, b)));
    }
    pairs
}

/// The boxes of each part in pixels of the crop, by image.
fn parts<B: Backend>(
    model: &Model<B>,
    request: &Request<'_>,
) -> Result<BTreeMap<String, BTreeMap<usize, [i64; 4]>>> {
    let size = model.preprocess.size as f64;
    let mut parts: BTreeMap<String, BTreeMap<usize, [i64; 4]>> = BTreeMap::new();
    for (number, (image, marked)) in request.images.iter().zip(request.marked).enumerate() {
        for (name, area) in &marked.boxes {
            let [x0, y0, x1, y1] = in_crop(&model.preprocess, image, *area);
            let seen = |from: f64, to: f64| (to.min(size) - from.max(0.0)).max(0.0) / (to - from);
            if seen(x0, x1) * seen(y0, y1) < 0.5 {
                return Err(Error::Data(format!(
                    "{}: part `{name}`: more than half of it lies outside the {size} x {size} pixels \
                     of the centre that the network sees",
                    image.name
                )));
            }
            // At least a pixel, and never beyond the crop.
            let low = |v: f64| v.round().clamp(0.0, size - 1.0) as i64;
            let high = |v: f64, low: i64| (v.round().min(size) as i64).max(low + 1);
            let (left, top) = (low(x0), low(y0));
            let area = [left, top, high(x1, left), high(y1, top)];
            parts.entry(name.clone()).or_default().insert(number, area);
        }
    }
    let alone = parts.iter().find(|(_, boxes)| boxes.len() < 2);
    if let Some((name, boxes)) = alone {
        let image = &request.images[*boxes.keys().next().expect("a box made the entry")].name;
        return Err(Error::Data(format!(
            "part `{name}` is marked in {image} only: a part is compared between two images at least"
        )));
    }
    if parts.is_empty() {
        return Err(Error::Data("no part is marked in any image".into()));
    }
    Ok(parts)
}

/// A box of the same size at a random place inside the crop.
fn somewhere(random: &mut ChaCha8Rng, size: usize, [x0, y0, x1, y1]: [i64; 4]) -> [i64; 4] {
    let (width, height) = (x1 - x0, y1 - y0);
    let mut place = |side: i64| (random.next_u64() % (size as i64 - side + 1) as u64) as i64;
    let (x, y) = (place(width), place(height));
    [x, y, x + width, y + height]
}

/// An image with a box covered.
fn covered<B: Backend>(
    model: &Model<B>,
    request: &Request<'_>,
    image: usize,
    area: [i64; 4],
) -> Vec<u8> {
    let mut square = request.images[image].square.clone();
    Cover::new(&model.preprocess, &square, request.fill).lay(&mut square, area);
    square
}

/// Gives the outputs of layers.
struct Looker<'a, B: Backend> {
    backend: &'a B,
    model: &'a Model<B>,
    layers: &'a [usize],
    stage: InputStage<B>,
    workspace: Workspace<B>,
}

impl<'a, B: Backend> Looker<'a, B> {
    fn new(backend: &'a B, model: &'a Model<B>, layers: &'a [usize]) -> Result<Self> {
        Ok(Looker {
            backend,
            model,
            layers,
            stage: InputStage::new(backend, &model.preprocess, 1, 1)?,
            workspace: Workspace::new(backend, &model.network, Purpose::Infer, 1)?,
        })
    }

    /// `[image][layer]`, each flattened.
    ///
    /// # Errors
    /// If a feature is no finite number, or the backend refuses.
    fn look(&mut self, squares: &[Vec<u8>]) -> Result<Vec<Vec<Vec<f32>>>> {
        let Model { network, params, preprocess, .. } = self.model;
        let mut outputs = Vec::new();
        // One at a time: how a sum is rounded may depend on the number of images beside it, and a
        // rounding must not look like a change.
        for square in squares {
            let crops = TestCrops::One.of(preprocess, 0);
            self.stage.fill(self.backend, &mut self.workspace.input, square, &crops)?;
            self.workspace.up(self.backend, params)?;
            let mut of_image = Vec::new();
            for &layer in self.layers {
                let output = self.workspace.output(layer);
                let mut values = vec![0.0; output.shape().len()];
                self.backend.download(&mut values, output)?;
                if values.iter().any(|value| !value.is_finite()) {
                    let name = &network.layers[layer].name;
                    let reason =
                        format!("{name}: its outputs are not finite: nothing can be compared");
                    return Err(Error::Network(reason));
                }
                of_image.push(values);
            }
            outputs.push(of_image);
        }
        Ok(outputs)
    }
}

/// Writes the covered images, `correspondence.csv`, `correspondence.json` and the page; returns the
/// page's path.
///
/// # Errors
/// If the folder cannot be written.
pub fn write<B: Backend>(
    out: &Path,
    model: &Model<B>,
    request: &Request<'_>,
    facts: Vec<(String, String)>,
    scores: &[Score],
) -> Result<PathBuf> {
    let io = |error: io::Error| Error::io("write", out)(error);
    let mut figure = Figure {
        study: "correspondence".into(),
        title: format!("Are parts of objects alike to {}?", model.network.architecture.name),
        paper: "Table 1".into(),
        facts,
        how: vec![
            "The same part is covered in each image, and the sign of the change of every feature is \
             noted. A number is the share of features whose signs differ between two images, the mean \
             over all pairs of images. If it is lower than for boxes at random places, the layer tells \
             that the part is the same in different images, without having been told of parts."
                .into(),
        ],
        files: vec![
            ("correspondence.csv".into(), "every pair of images".into()),
            ("correspondence.json".into(), "the same, with means and deviations".into()),
        ],
        ..Figure::default()
    };
    let (input, classes) = (model.preprocess.size, model.classes.len());
    let mut table = table(request, scores);
    table.notes.push(format!("Here: {classes} classes, {input} × {input} pixels."));
    let text = vec![found(scores)];
    figure.sections.push(Section { text, tables: vec![table], ..Section::default() });
    for (number, (name, boxes)) in parts(model, request)?.iter().enumerate() {
        let mut section = Section { title: name.clone(), ..Section::default() };
        for (&image, &area) in boxes {
            let picked = &request.images[image];
            let square = covered(model, request, image, area);
            let shown = Picked { square, ..picked.clone() }.input(&model.preprocess);
            let times = SHOWN.div_ceil(shown.width);
            let shown: Image = shown.resize(shown.width * times, shown.height * times);
            let file = format!("{number:02}-{image:03}.png");
            shown.write_png(&out.join(&file)).map_err(io)?;
            section.pictures.push(Picture {
                file,
                size: [shown.width, shown.height],
                title: format!("{name}, covered"),
                method: "the centre crop, as the network sees it; the box is what is covered"
                    .into(),
                contrast: PHOTOGRAPH_CONTRAST.into(),
                image: picked.name.clone(),
                area: Some(picked.in_file(&model.preprocess, area)),
                wide: false,
            });
        }
        figure.sections.push(section);
    }
    let head = ["layer", "part", "image_a", "image_b", "signs_that_differ"];
    let rows = scores.iter().flat_map(|score| {
        let images = &score.images;
        let pairs = (0..images.len()).flat_map(|i| (i + 1..images.len()).map(move |j| (i, j)));
        pairs.zip(&score.pairs).map(|((i, j), value)| {
            let [layer, part] = [&score.layer, &score.part].map(String::clone);
            vec![layer, part, images[i].clone(), images[j].clone(), value.to_string()]
        })
    });
    let files = [
        ("correspondence.csv", csv(&head, rows).into_bytes()),
        ("correspondence.json", serde_json::to_vec_pretty(scores).expect("plain data")),
    ];
    for (file, bytes) in files {
        write_whole(&out.join(file), &bytes).map_err(io)?;
    }
    figure.write(out).map_err(io)
}

/// What the numbers say, in a sentence.
fn found(scores: &[Score]) -> String {
    let alike = |score: &&Score| {
        let below = |[mean, deviation]: [f64; 2]| score.part_score[0] < mean - deviation;
        score.random_score.is_some_and(below)
    };
    let named = |score: &Score| format!("{} in {}", score.part, score.layer);
    let found: Vec<String> = scores.iter().filter(alike).map(named).collect();
    let what = if found.is_empty() { "nothing".into() } else { found.join(", ") };
    format!("More alike than random boxes, by more than their deviation: {what}.")
}

/// Parts by layers, ours above the paper's.
fn table(request: &Request<'_>, scores: &[Score]) -> Table {
    let first_part = scores.chunk_by(|a, b| a.part == b.part).next().unwrap_or_default();
    let mut head = vec![String::new()];
    head.extend(first_part.iter().map(|score| score.layer.clone()));
    let shown = |[mean, deviation]: [f64; 2]| format!("{mean:.3} ± {deviation:.3}");
    let mut rows: Vec<Vec<String>> = Vec::new();
    for of_part in scores.chunk_by(|a, b| a.part == b.part) {
        let images = of_part[0].images.len();
        let mut part = vec![format!("{}, {images} images", of_part[0].part)];
        let mut random = vec![format!("boxes of its size at random, {} draws", request.draws)];
        part.extend(of_part.iter().map(|score| shown(score.part_score)));
        random.extend(of_part.iter().filter_map(|score| score.random_score.map(shown)));
        rows.push(part);
        if request.draws > 0 {
            rows.push(random);
        }
    }
    Table {
        caption: "Share of features whose signs of change differ; lower is more alike".into(),
        head,
        rows,
        notes: vec![
            "The deviation of a part is over its pairs of images, that of random boxes over the draws."
                .into(),
            "The paper’s Table 1, layer 5 | layer 7, with five dogs’ faces and its network trained on \
             ImageNet at 224 pixels: right eye 0.067 | 0.069, left eye 0.069 | 0.068, nose 0.079 | \
             0.069, random 0.107 | 0.073; its left and \
             right may be the dog’s. It does not say how its sums are normalised: compare a part \
             with random boxes, within one table."
                .into(),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Architecture;

    #[test]
    fn signs_are_compared_pair_by_pair() {
        let changes =
            [vec![1.0, -2.0, 0.0, 3.0], vec![0.5, -0.1, 0.0, -3.0], vec![0.0, 1.0, -0.0, f32::NAN]];
        // 0-1: the last differs. 0-2: 1 against 0, - against +, 3 against nothing. 1-2: the same.
        assert_eq!(pairwise(&changes), [0.25, 0.75, 0.75]);
        assert_eq!(pairwise(&changes[..1]), [0.0; 0]);
        assert_eq!(mean_and_deviation(&[1.0, 3.0]), [2.0, 2f64.sqrt()]);
        assert_eq!(mean_and_deviation(&[5.0]), [5.0, 0.0]);
    }

    #[test]
    fn random_boxes_keep_their_size_and_stay_inside() {
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let mut corners = std::collections::BTreeSet::new();
        for _ in 0..200 {
            let [x0, y0, x1, y1] = somewhere(&mut random, 12, [3, 4, 8, 6]);
            assert_eq!((x1 - x0, y1 - y0), (5, 2));
            assert!(x0 >= 0 && y0 >= 0 && x1 <= 12 && y1 <= 12);
            corners.insert((x0, y0));
        }
        assert!(corners.len() > 40);
        assert_eq!(somewhere(&mut random, 12, [0, 0, 12, 12]), [0, 0, 12, 12]);
    }

    #[test]
    fn layers_five_and_seven_are_found() {
        for name in ["zfnet", "alexnet-mini"] {
            let network = Network::new(Architecture::find(name).unwrap()).unwrap();
            let layers = default_layers(&network);
            let names: Vec<&str> =
                layers.iter().map(|i| network.layers[*i].name.as_str()).collect();
            assert_eq!(names, ["pool5", "fc7"], "{name}");
        }
    }
}
