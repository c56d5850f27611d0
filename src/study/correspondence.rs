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

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::Serialize;

use super::boxes::{Annotation, in_crop};
use super::extractor::FeatureExtractor;
use super::image_selection::StudyImage;
use super::numbers::mean_and_std;
use super::occluder::{Cover, Fill};
use super::{Facts, Session, Study};
use crate::backend::Backend;
use crate::model::{Model, Network, Preprocess};
use crate::picture::Image;
use crate::{Error, Result};

/// See [`super::STUDIES`].
pub const STUDY: Study = Study {
    name: "correspondence",
    shows: "whether the features of object parts are consistent across images",
    paper: "Table 1",
    of_one_run: true,
};

/// What is compared.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Settings {
    /// Indices of the layers.
    pub layers: Vec<usize>,
    /// What covers a part.
    pub fill: Fill,
    /// How often boxes are drawn at random for each part.
    pub draws: usize,
    /// Seed of those.
    pub seed: u64,
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Correspondence {
    /// What it was made with.
    pub facts: Facts,
    /// The network's name.
    pub network: String,
    /// Rows and columns of its input.
    #[serde(with = "zfnet_core::size")]
    pub input: [usize; 2],
    /// Number of its classes.
    pub classes: usize,
    /// What was compared.
    pub settings: Settings,
    /// By part, then by layer.
    pub scores: Vec<Score>,
    /// By part: its name, and the images that have it.
    pub parts: Vec<(String, Vec<Covered>)>,
}

/// An image with a part covered.
#[derive(Clone, Debug, Serialize)]
pub struct Covered {
    /// The image's place among all of them.
    pub index: usize,
    /// Its name.
    pub image: String,
    /// What is covered: `[x0, y0, x1, y1]` in pixels of the file.
    pub area: [f64; 4],
    /// The centre crop, as the network sees it.
    #[serde(skip)]
    pub crop: Image,
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

/// Covers parts and random boxes in images, marked one by one, and scores how alike the changes are, for each
/// layer and part.
///
/// # Errors
/// If fewer than two images have a part, a part lies outside the crop, or a backend operation fails.
pub fn run<B: Backend>(
    session: &mut Session<'_, B>,
    model: &Model<B>,
    settings: &Settings,
    images: &[StudyImage],
    marked: &[Annotation],
) -> Result<Correspondence> {
    let Model { network, preprocess, classes, .. } = model;
    let Settings { layers, fill, draws, seed } = settings;
    let parts = parts(preprocess, images, marked)?;
    if layers.is_empty() {
        let name = &network.architecture.name;
        let reason = format!("{name} has no hidden layer to compare: name layers");
        return Err(Error::Network(reason));
    }
    let covered = |image: usize, area: [i64; 4]| {
        let mut square = images[image].square.clone();
        Cover::new(preprocess, &square, *fill).lay(&mut square, area);
        square
    };
    let mut extractor = FeatureExtractor::new(session.backend, model, 1)?;
    let whole: Vec<_> = images
        .iter()
        .map(|image| features(&mut extractor, network, layers, &image.square))
        .collect::<Result<_>>()?;
    let (total, mut done) = (parts.len() * (draws + 1), 0);
    let mut scores = Vec::new();
    for (number, (part, boxes)) in parts.iter().enumerate() {
        // The pairs of each layer.
        let mut with = |boxes: &BTreeMap<usize, [i64; 4]>| -> Result<Vec<Vec<f64>>> {
            let changed: Vec<_> = boxes
                .iter()
                .map(|(&i, &area)| features(&mut extractor, network, layers, &covered(i, area)))
                .collect::<Result<_>>()?;
            done += 1;
            session.progress("correspondence: coverings", done, total, "");
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
        let mut random = ChaCha8Rng::seed_from_u64(*seed);
        random.set_stream(number as u64);
        let mut of_draws = vec![Vec::new(); layers.len()];
        for _ in 0..*draws {
            let anywhere = |area: &[i64; 4]| somewhere(&mut random, preprocess.size, *area);
            let drawn: BTreeMap<usize, [i64; 4]> =
                boxes.keys().copied().zip(boxes.values().map(anywhere)).collect();
            for (of_layer, pairs) in of_draws.iter_mut().zip(with(&drawn)?) {
                of_layer.push(mean_and_std(&pairs)[0]);
            }
        }
        for ((layer, pairs), of_draws) in layers.iter().zip(of_part).zip(&of_draws) {
            scores.push(Score {
                part: part.clone(),
                layer: network.layers[*layer].name.clone(),
                images: boxes.keys().map(|image| images[*image].name.clone()).collect(),
                part_score: mean_and_std(&pairs),
                random_score: (*draws > 0).then(|| mean_and_std(of_draws)),
                pairs,
            });
        }
    }
    let shown = |(&image, &area): (&usize, &[i64; 4])| {
        let picked = StudyImage { square: covered(image, area), ..images[image].clone() };
        let (area, crop) = (picked.in_file(preprocess, area), picked.input(preprocess));
        Covered { index: image, image: picked.name, area, crop }
    };
    let shown = |(name, boxes): (&String, &BTreeMap<usize, [i64; 4]>)| {
        (name.clone(), boxes.iter().map(shown).collect())
    };
    Ok(Correspondence {
        facts: session.facts.clone(),
        network: network.architecture.name.clone(),
        input: preprocess.size,
        classes: classes.len(),
        settings: settings.clone(),
        scores,
        parts: parts.iter().map(shown).collect(),
    })
}

/// What each layer makes of an image, flattened. One image at a time: how a sum is rounded may depend on the
/// number of images beside it, and a rounding must not look like a change.
fn features<B: Backend>(
    extractor: &mut FeatureExtractor<'_, B>,
    network: &Network,
    layers: &[usize],
    square: &[u8],
) -> Result<Vec<Vec<f32>>> {
    extractor.forward(square)?;
    let of_layer = |&layer: &usize| {
        let values = extractor.output(layer)?;
        if values.iter().any(|value| !value.is_finite()) {
            let name = &network.layers[layer].name;
            let reason = format!("{name}: its outputs are not finite: nothing can be compared");
            return Err(Error::Network(reason));
        }
        Ok(values)
    };
    layers.iter().map(of_layer).collect()
}

/// The share of features whose signs differ, for each pair of images.
fn pairwise(changes: &[Vec<f32>]) -> Vec<f64> {
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
fn parts(
    preprocess: &Preprocess,
    images: &[StudyImage],
    marked: &[Annotation],
) -> Result<BTreeMap<String, BTreeMap<usize, [i64; 4]>>> {
    let [rows, columns] = preprocess.size.map(|size| size as f64);
    let mut parts: BTreeMap<String, BTreeMap<usize, [i64; 4]>> = BTreeMap::new();
    for (number, (image, marked)) in images.iter().zip(marked).enumerate() {
        for (name, area) in &marked.boxes {
            let [x0, y0, x1, y1] = in_crop(preprocess, image, *area);
            let seen = |from: f64, to: f64, size: f64| {
                (to.min(size) - from.max(0.0)).max(0.0) / (to - from)
            };
            if seen(x0, x1, columns) * seen(y0, y1, rows) < 0.5 {
                return Err(Error::Data(format!(
                    "{}: part `{name}`: more than half of it lies outside the {rows} x {columns} pixels \
                     of the centre that the network sees",
                    image.name
                )));
            }
            // At least a pixel, and never beyond the crop.
            let low = |v: f64, size: f64| v.round().clamp(0.0, size - 1.0) as i64;
            let high = |v: f64, low: i64, size: f64| (v.round().min(size) as i64).max(low + 1);
            let (left, top) = (low(x0, columns), low(y0, rows));
            let area = [left, top, high(x1, left, columns), high(y1, top, rows)];
            parts.entry(name.clone()).or_default().insert(number, area);
        }
    }
    let alone = parts.iter().find(|(_, boxes)| boxes.len() < 2);
    if let Some((name, boxes)) = alone {
        let image = &images[*boxes.keys().next().expect("a box made the entry")].name;
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
fn somewhere(
    random: &mut ChaCha8Rng,
    [rows, columns]: [usize; 2],
    [x0, y0, x1, y1]: [i64; 4],
) -> [i64; 4] {
    let (width, height) = (x1 - x0, y1 - y0);
    let mut place =
        |side: i64, size: usize| (random.next_u64() % (size as i64 - side + 1) as u64) as i64;
    let (x, y) = (place(width, columns), place(height, rows));
    [x, y, x + width, y + height]
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
    }

    #[test]
    fn random_boxes_keep_their_size_and_stay_inside() {
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let mut corners = std::collections::BTreeSet::new();
        for _ in 0..200 {
            let [x0, y0, x1, y1] = somewhere(&mut random, [12; 2], [3, 4, 8, 6]);
            assert_eq!((x1 - x0, y1 - y0), (5, 2));
            assert!(x0 >= 0 && y0 >= 0 && x1 <= 12 && y1 <= 12);
            corners.insert((x0, y0));
        }
        assert!(corners.len() > 40);
        assert_eq!(somewhere(&mut random, [12; 2], [0, 0, 12, 12]), [0, 0, 12, 12]);
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
