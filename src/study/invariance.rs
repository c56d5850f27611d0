//! The paper's Figure 5: how much features change as an image is shifted, enlarged or turned.
//!
//! A preprocessed image is resampled bilinearly about the centre c of the network's crop:
//!
//! ```text
//! shift t       out(p) = in(p - (0, t))                    down for t > 0
//! scale s       out(p) = in(c + (p - c) / s)
//! rotation r    out(p) = in(c + R(r) (p - c))              counter-clockwise
//! ```
//!
//! Positions are rounded to 2^-20 pixels, so that a quarter of a turn moves whole pixels. What lies
//! outside the square is the mean that preprocessing takes off (as a byte): zero for the network.
//! For each layer the result is the Euclidean distance |f(out) - f(in)| of its features, and, so that
//! layers can be compared, that distance divided by |f(in)|; beside it the probability of the class.
//!
//! Every forward pass has the untransformed image as its first sample, and is as large as all others: so a
//! transformation that changes no pixel has the distance 0, exactly.

use serde::{Deserialize, Serialize};

use super::extractor::FeatureExtractor;
use super::image_selection::StudyImage;
use super::occluder::mean_square;
use super::pixels::{centre_crop, whole};
use super::{Facts, Session, Study};
use crate::backend::Backend;
use crate::model::{Model, Network, Preprocess};
use crate::picture::Image;
use crate::train::evaluate::softmax;
use crate::{Error, Result};

/// See [`super::STUDIES`].
pub const STUDY: Study = Study {
    name: "invariance",
    shows: "what moving, scaling and turning an image changes",
    paper: "Figure 5",
    of_one_run: true,
};

/// Samples of one forward pass; the first one is the untransformed image.
const BATCH: usize = 16;
/// The paper's shifts, of an input of [`PAPER_INPUT`] pixels.
const PAPER_SHIFT: f64 = 60.0;
const PAPER_INPUT: f64 = 224.0;
/// Shifts to each side unless a step is given.
const SHIFTS: usize = 15;
/// Scales are 1, 1.1, ... 1.8.
const TENTHS: std::ops::RangeInclusive<u32> = 10..=18;
/// Rotations are 0, 10, ... 350 degrees.
const DEGREES: (u32, u32) = (360, 10);

/// What is looked at.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Settings {
    /// Indices of the layers, from below.
    pub layers: Vec<usize>,
    /// Largest shift to each side in pixels of the network's input, and the step: see [`shifts`].
    pub shifts: [usize; 2],
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Invariance {
    /// What it was made with.
    pub facts: Facts,
    /// Names of the layers, from below.
    pub layers: Vec<String>,
    /// Largest shift to each side in pixels of the network's input, and the step.
    pub shifts: [usize; 2],
    /// Image by image.
    pub images: Vec<Responses>,
    /// What the same images look like.
    pub examples: Vec<Examples>,
}

/// An image as the network sees it.
#[derive(Clone, Debug, Serialize)]
pub struct Examples {
    /// The network's crop: `[x0, y0, x1, y1]` in pixels of the file.
    pub area: [f64; 4],
    /// Unchanged, at the largest shift, at scale 1.8, and turned by 30 degrees.
    #[serde(skip)]
    pub crops: [Image; 4],
}

/// What is done to an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// Moved down by so many pixels of the network's input; up if negative.
    Shift,
    /// Enlarged by this factor.
    Scale,
    /// Turned counter-clockwise by so many degrees.
    Rotation,
}

impl Change {
    /// All of them, in the order of the paper's rows.
    pub const ALL: [Change; 3] = [Change::Shift, Change::Scale, Change::Rotation];

    /// As files and pages have it.
    pub fn name(self) -> &'static str {
        match self {
            Change::Shift => "shift",
            Change::Scale => "scale",
            Change::Rotation => "rotation",
        }
    }

    /// The amount that leaves the image as it is.
    pub fn nothing(self) -> f64 {
        if self == Change::Scale { 1.0 } else { 0.0 }
    }
}

/// A preprocessed image (`[rows, columns, 3]`) after a change about the centre of the network's crop; see
/// the module's equations.
pub fn changed(preprocess: &Preprocess, square: &[u8], change: Change, amount: f64) -> Vec<u8> {
    let canvas = preprocess.resize.size();
    let [centre_y, centre_x] = [0, 1].map(|axis| {
        f64::from(preprocess.centre()[axis]) + (preprocess.size[axis] as f64 - 1.0) / 2.0
    });
    let (sin, cos) = match change {
        Change::Rotation => amount.to_radians().sin_cos(),
        _ => (0.0, 1.0),
    };
    let grain = f64::from(1u32 << 20);
    let mut out = mean_square(preprocess);
    for (i, pixel) in out.chunks_exact_mut(3).enumerate() {
        let (y, x) = ((i / canvas[1]) as f64, (i % canvas[1]) as f64);
        let (dy, dx) = (y - centre_y, x - centre_x);
        let (from_y, from_x) = match change {
            Change::Shift => (y - amount, x),
            Change::Scale => (centre_y + dy / amount, centre_x + dx / amount),
            Change::Rotation => (centre_y + sin * dx + cos * dy, centre_x + cos * dx - sin * dy),
        };
        let from = [from_y, from_x].map(|v| (v * grain).round() / grain);
        if let Some(found) = bilinear(square, canvas, from) {
            pixel.copy_from_slice(&found);
        }
    }
    out
}

/// The colour between the four pixels around a place; none outside.
fn bilinear(square: &[u8], [rows, columns]: [usize; 2], [y, x]: [f64; 2]) -> Option<[u8; 3]> {
    let inside = |at: f64, size: usize| (0.0..=(size - 1) as f64).contains(&at);
    if !inside(y, rows) || !inside(x, columns) {
        return None;
    }
    let (top, left) = (y as usize, x as usize);
    let (low, right) = ((top + 1).min(rows - 1), (left + 1).min(columns - 1));
    let (v, u) = (y - top as f64, x - left as f64);
    Some([0, 1, 2].map(|channel| {
        let at = |y: usize, x: usize| f64::from(square[(y * columns + x) * 3 + channel]);
        let above = at(top, left) * (1.0 - u) + at(top, right) * u;
        let below = at(low, left) * (1.0 - u) + at(low, right) * u;
        (above * (1.0 - v) + below * v).round() as u8
    }))
}

/// The layers that the paper looks at: the first convolution, and the last hidden fully connected layer.
pub fn default_layers(network: &Network) -> Vec<usize> {
    let weighty = |i: &usize| network.layers[*i].convolution().is_some();
    let first = network.spatial().first().copied().or((0..network.layers.len()).find(weighty));
    let mut layers: Vec<usize> = first.into_iter().chain(network.last_hidden()).collect();
    layers.dedup();
    layers
}

/// Range and step of the shifts, which are down and up, for an input of `size` rows: as large a part of it as in the paper, and
/// 15 to each side, unless one is given.
///
/// # Errors
/// If the range is not below `size`, or the step is 0 or beyond the range.
pub fn shifts(size: usize, range: Option<usize>, step: Option<usize>) -> Result<[usize; 2]> {
    let scaled = (PAPER_SHIFT * size as f64 / PAPER_INPUT).round() as usize;
    let range = range.unwrap_or(scaled.max(1));
    let step = step.unwrap_or((range / SHIFTS).max(1));
    if range >= size || step == 0 || step > range {
        return Err(Error::Data(format!(
            "shifts: expected a range below the input's {size} pixels and a step from 1 to the range, \
             found a range of {range} and a step of {step}"
        )));
    }
    Ok([range, step])
}

/// All changes of one image, with their amounts.
fn all_changes([range, step]: [usize; 2]) -> Vec<(Change, f64)> {
    let most = (range / step) as i64;
    let shifts = (-most..=most).map(|i| (Change::Shift, (i * step as i64) as f64));
    let scales = TENTHS.map(|tenths| (Change::Scale, f64::from(tenths) / 10.0));
    let (turn, degrees) = DEGREES;
    let rotations = (0..turn / degrees).map(|i| (Change::Rotation, f64::from(i * degrees)));
    shifts.chain(scales).chain(rotations).collect()
}

/// What one change does to an image's features.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Response {
    /// What was changed.
    pub change: Change,
    /// By how much: pixels, a factor or degrees.
    pub amount: f64,
    /// For each layer, the Euclidean distance from the untransformed image's features.
    pub distances: Vec<f64>,
    /// Of the image's class.
    pub probability: f64,
}

/// All that was measured of one image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Responses {
    /// Name of the image.
    pub image: String,
    /// Its class.
    pub class: String,
    /// Whether that is known; otherwise it is what the network takes the image for.
    pub known: bool,
    /// For each layer, the Euclidean norm of the untransformed image's features.
    pub norms: Vec<f64>,
    /// In the order shifts, scales, rotations.
    pub responses: Vec<Response>,
}

impl Responses {
    /// Amounts and distances relative to the untransformed features' norm, of one layer (its place in the
    /// settings) and change. Not finite where the untransformed features are all zero.
    pub fn relative(&self, change: Change, layer: usize) -> Vec<(f64, f64)> {
        let of_change = self.responses.iter().filter(|response| response.change == change);
        of_change.map(|r| (r.amount, r.distances[layer] / self.norms[layer])).collect()
    }

    /// Amounts and probabilities of the image's class, of one change.
    pub fn probability(&self, change: Change) -> Vec<(f64, f64)> {
        let of_change = self.responses.iter().filter(|response| response.change == change);
        of_change.map(|r| (r.amount, r.probability)).collect()
    }
}

/// Measures what changes do to features.
pub struct ChangeExtractor<'a, B: Backend> {
    extractor: FeatureExtractor<'a, B>,
    model: &'a Model<B>,
    layers: Vec<usize>,
}

impl<'a, B: Backend> ChangeExtractor<'a, B> {
    /// For the features of these layers.
    ///
    /// # Errors
    /// If the backend is out of memory.
    pub fn new(backend: &'a B, model: &'a Model<B>, layers: &[usize]) -> Result<Self> {
        let extractor = FeatureExtractor::new(backend, model, BATCH)?;
        Ok(ChangeExtractor { extractor, model, layers: layers.to_vec() })
    }

    /// Measures changes of one image. `progress` is called with the number of changes done.
    ///
    /// # Errors
    /// If a backend operation fails.
    pub fn measure(
        &mut self,
        picked: &StudyImage,
        changes: &[(Change, f64)],
        mut progress: impl FnMut(usize),
    ) -> Result<Responses> {
        let Model { network, preprocess, classes, .. } = self.model;
        let (mut norms, mut responses) = (Vec::new(), Vec::new());
        for (part, changes) in changes.chunks(BATCH - 1).enumerate() {
            // The untransformed image fills what is left of the last batch.
            let mut pixels = picked.square.repeat(BATCH);
            let squares = pixels.chunks_exact_mut(picked.square.len()).skip(1);
            for (square, &(change, amount)) in squares.zip(changes) {
                square.copy_from_slice(&changed(preprocess, &picked.square, change, amount));
            }
            self.extractor.forward(&pixels)?;
            let logits = self.extractor.logits()?;
            let of_sample = |(logits, &(change, amount)): (&[f32], &(Change, f64))| {
                let class = softmax(logits).nth(picked.class);
                let probability = class.expect("one of the network's classes");
                Response { change, amount, distances: Vec::new(), probability }
            };
            let samples = logits.chunks_exact(classes.len()).skip(1);
            let mut found: Vec<Response> = samples.zip(changes).map(of_sample).collect();
            for &layer in &self.layers {
                let values = self.extractor.output(layer)?;
                let mut samples = values.chunks_exact(network.layers[layer].output.per_image());
                let untransformed = samples.next().expect("a sample");
                if part == 0 {
                    norms.push(distance(untransformed, &vec![0.0; untransformed.len()]));
                }
                for (response, sample) in found.iter_mut().zip(samples) {
                    response.distances.push(distance(sample, untransformed));
                }
            }
            responses.extend(found);
            progress(responses.len());
        }
        let class = classes.names[picked.class].clone();
        let (image, known) = (picked.name.clone(), picked.known);
        Ok(Responses { image, class, known, norms, responses })
    }
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    let square = |(a, b): (&f32, &f32)| (f64::from(*a) - f64::from(*b)).powi(2);
    a.iter().zip(b).map(square).sum::<f64>().sqrt()
}

/// Measures all images. What was finished before an interruption is not measured again.
///
/// # Errors
/// If there is no image, parts cannot be kept, or a backend operation fails.
pub fn run<B: Backend>(
    session: &mut Session<'_, B>,
    model: &Model<B>,
    settings: &Settings,
    images: &[StudyImage],
) -> Result<Invariance> {
    if images.is_empty() {
        return Err(Error::Data("invariance: expected at least one image, found none".into()));
    }
    let Settings { layers, shifts } = settings;
    let seen: Vec<_> = images.iter().map(StudyImage::fingerprint).collect();
    let parts = session.parts(&[model], &(seen, settings))?;
    let changes = all_changes(*shifts);
    let mut extractor = ChangeExtractor::new(session.backend, model, layers)?;
    let total = images.len() * changes.len();
    let mut measured = Vec::new();
    for (i, image) in images.iter().enumerate() {
        let before = i * changes.len();
        measured.push(parts.get_or_make(&format!("image-{i}"), || {
            let progress = |done| session.progress(STUDY.name, before + done, total, "");
            extractor.measure(image, &changes, progress)
        })?);
        session.progress(STUDY.name, before + changes.len(), total, "");
    }
    let name = |&layer: &usize| model.network.layers[layer].name.clone();
    let examples = |image: &StudyImage| examples(&model.preprocess, image, shifts[0]);
    Ok(Invariance {
        facts: session.facts.clone(),
        layers: layers.iter().map(name).collect(),
        shifts: *shifts,
        images: measured,
        examples: images.iter().map(examples).collect(),
    })
}

/// Some changes of an image, one of which is a shift by `shift` pixels.
fn examples(preprocess: &Preprocess, image: &StudyImage, shift: usize) -> Examples {
    let crops = [
        (Change::Shift, 0.0),
        (Change::Shift, shift as f64),
        (Change::Scale, 1.8),
        (Change::Rotation, 30.0),
    ]
    .map(|(change, amount)| {
        let square = changed(preprocess, &image.square, change, amount);
        centre_crop(preprocess, &square)
    });
    Examples { area: image.in_file(preprocess, whole(preprocess.size)), crops }
}

/// The mean of the images' values at each amount; those that are not finite have no say.
pub(crate) fn mean(
    all: &[Responses],
    of: impl Fn(&Responses) -> Vec<(f64, f64)>,
) -> Vec<(f64, f64)> {
    let rows: Vec<Vec<(f64, f64)>> = all.iter().map(of).collect();
    let amounts = rows.first().map_or(0, Vec::len);
    (0..amounts)
        .map(|i| {
            let finite = rows.iter().map(|row| row[i].1).filter(|value| value.is_finite());
            let (sum, count) = finite.fold((0.0, 0), |(sum, n), value| (sum + value, n + 1));
            (rows[0][i].0, sum / f64::from(count))
        })
        .collect()
}

/// How fast a layer changes at first: the mean relative distance at the smallest changes (of both signs),
/// and that per unit of the change (a pixel, a tenth of scale, ten degrees are the smallest).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Onset {
    /// Size of the smallest change.
    pub smallest: f64,
    /// Mean relative distance there.
    pub distance: f64,
    /// `distance / smallest`.
    pub slope: f64,
}

/// The onset of a layer (its place in the settings) over all images; none if nothing was changed, or the
/// features are all zero.
pub fn onset(all: &[Responses], change: Change, layer: usize) -> Option<Onset> {
    // Turns of 350 degrees are small, too.
    let size = |amount: f64| match change {
        Change::Rotation => amount.min(360.0 - amount),
        _ => (amount - change.nothing()).abs(),
    };
    let values = mean(all, |r| r.relative(change, layer));
    let changes = values.iter().filter(|(amount, value)| size(*amount) > 0.0 && value.is_finite());
    let smallest = changes.clone().map(|(amount, _)| size(*amount)).min_by(f64::total_cmp)?;
    let near: Vec<f64> =
        changes.filter(|(amount, _)| size(*amount) == smallest).map(|(_, value)| *value).collect();
    let distance = near.iter().sum::<f64>() / near.len() as f64;
    Some(Onset { smallest, distance, slope: distance / smallest })
}
