//! A unit's preferred image: gradient ascent from noise, with the regularisations of Yosinski et al. 2015
//! (*Understanding Neural Networks Through Deep Visualization*, section 3).
//!
//! Each step changes the network's input x, which begins as noise around the mean:
//!
//! ```text
//! x <- blur((1 - decay) (x + rate g / rms(g))),   g = da/dx
//! ```
//!
//! where a is the activation of the unit in the middle of its map before its relu (a logit has none), rms is
//! over what the unit sees, so that one rate suits all layers, and only every few steps blur. Each gradient
//! is taken with the picture shifted by a few pixels at random (jitter, Mordvintsev et al. 2015), against patterns
//! that depend on their exact place. What no image could hold is clipped: a pixel is a byte from 0 to 255. The
//! article's clipping of pixels with small norm or small contribution is left out.
//!
//! Nothing of such a picture is of a photograph; a deconvnet's, of [`features`](super::features), is made of one.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use super::peaks::{BATCH, Chosen, ProjectedPeak, Searched, must_be_images, pictures, search};
use super::pixels::{centre_mean, input_image, seen_box};
use super::{Session, Study};
use crate::backend::{Backend, SeedUnit};
use crate::data::classes::Classes;
use crate::data::images::Images;
use crate::model::{
    Initial, Layer, Model, Network, Params, Preprocess, Projector, Purpose, Rule, Workspace,
};
use crate::picture::Image;
use crate::ranks::Ranks;
use crate::shape::Shape;
use crate::{Error, Result};

/// See [`super::STUDIES`].
pub const STUDY: Study = Study {
    name: "preferred",
    shows: "an image synthesised for each map, by gradient ascent from noise",
    paper: "",
    of_one_run: true,
};

/// Peaks of a map.
const PEAKS: usize = 9;
/// Between two times that the search is kept.
const KEEP: Duration = Duration::from_secs(30);
/// Standard deviation of the noise that an ascent begins with, in bytes of a pixel.
const NOISE: f64 = 10.0;
/// Stream of the jitter's random numbers; those of noise are the units' own, from 0 on.
const JITTER_STREAM: u64 = 1 << 63;

/// How a picture is made.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Steps of the ascent.
    pub steps: usize,
    /// Learning rate: what a step adds to a pixel's byte, the root mean square over what the unit sees.
    pub rate: f32,
    /// The share of the picture's distance from the mean that each step takes away (L2 decay).
    pub decay: f32,
    /// Standard deviation of the Gaussian blur, in pixels; 0 for none.
    pub blur: f32,
    /// Steps from one blur to the next; 0 for none.
    pub blur_every: usize,
    /// Largest random shift along each axis, as a share of what the unit sees, to the nearest pixel.
    pub jitter: f32,
}

impl Default for Settings {
    fn default() -> Self {
        Settings { steps: 200, rate: 4.0, decay: 0.01, blur: 0.5, blur_every: 4, jitter: 0.05 }
    }
}

impl Settings {
    /// Refuses what no ascent can be made with.
    ///
    /// # Errors
    /// If a number is not in its range.
    pub fn check(&self) -> Result<()> {
        let Settings { rate, decay, blur, jitter, .. } = *self;
        let good = (0.0..=255.0).contains(&rate)
            && (0.0..=1.0).contains(&decay)
            && (0.0..=100.0).contains(&blur)
            && (0.0..=1.0).contains(&jitter);
        if good {
            return Ok(());
        }
        Err(Error::Network(format!(
            "gradient ascent: expected a rate from 0 to 255, a decay and a jitter from 0 to 1 and a blur from 0 to 100, \
             found {self}"
        )))
    }
}

impl fmt::Display for Settings {
    /// "200 steps, rate 4, decay 0.01, blur of 0.5 pixels every 4 steps, jitter of 0.05 of what a unit sees".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Settings { steps, rate, decay, blur, blur_every, jitter } = self;
        write!(f, "{steps} steps, rate {rate}, decay {decay}, ")?;
        match *blur == 0.0 || *blur_every == 0 {
            true => write!(f, "no blur")?,
            false => write!(f, "blur of {blur} pixels every {blur_every} steps")?,
        }
        write!(f, ", jitter of {jitter} of what a unit sees")
    }
}

/// A gradient ascent, to be advanced step by step. It has a workspace of its own, for one image and for no layer
/// above its own.
pub struct Ascent<B: Backend> {
    preprocess: Preprocess,
    settings: Settings,
    layer: usize,
    unit: SeedUnit,
    /// What the unit sees of the input, `[x0, y0, x1, y1]`.
    seen: [i64; 4],
    workspace: Workspace<B>,
    image: B::Indices,
    random: ChaCha8Rng,
    done: usize,
    /// The network's input.
    input: Vec<f32>,
    /// The same shifted; later in a step, what the first of a blur's two passes makes.
    shifted: Vec<f32>,
    /// Of the shifted input.
    gradient: Vec<f32>,
    /// The mean of each of the input's values.
    mean: Vec<f32>,
}

impl<B: Backend> Ascent<B> {
    /// Of the unit in the middle of a map of a layer with weights. What it makes is a function of its arguments and of
    /// the weights that its steps are given.
    ///
    /// # Errors
    /// If the layer has no weights, or no such map, or the backend is out of memory.
    pub fn new(
        backend: &B,
        network: &Network,
        preprocess: &Preprocess,
        layer: usize,
        map: usize,
        settings: &Settings,
        seed: u64,
    ) -> Result<Self> {
        settings.check()?;
        must_have_weights(network, layer)?;
        let shown = &network.layers[layer];
        let Shape { h, w, c, .. } = shown.output;
        if map >= c {
            return Err(Error::Network(format!("{} has {c} maps, found map {map}", shown.name)));
        }
        // Without what is above, the layer's relu among it: this would stop the gradient of a unit that does
        // not fire, where the ascent has yet to begin.
        let mut network = network.clone();
        network.layers.truncate(layer + 1);
        let purpose = Purpose::Project { seeds: 1 };
        let mut workspace = Workspace::new(backend, &network, purpose, 1)?;
        let count = network.input().len();
        workspace.input.reshape(network.input().with_n(1));
        let mut image = backend.indices(1)?;
        backend.upload_indices(&mut image, &[0])?;

        let unit = SeedUnit { map: map as u32, y: (h / 2) as u32, x: (w / 2) as u32, value: 1.0 };
        let stream = ((layer as u64) << 32) + map as u64;
        let noise = Initial { seed, stream, std: NOISE * byte(preprocess) };
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(JITTER_STREAM);
        let mut ascent = Ascent {
            preprocess: preprocess.clone(),
            settings: *settings,
            layer,
            unit,
            seen: seen_in_the_middle(shown),
            workspace,
            image,
            random,
            done: 0,
            input: noise.values(count),
            shifted: vec![0.0; count],
            gradient: vec![0.0; count],
            mean: centre_mean(preprocess),
        };
        ascent.clip();
        Ok(ascent)
    }

    /// Steps so far.
    pub fn steps(&self) -> usize {
        self.done
    }

    /// What the network sees, `[rows, columns, channels]`.
    pub fn input(&self) -> &[f32] {
        &self.input
    }

    /// The same as a picture, which a file could hold: `[rows, columns, 3]` in RGB.
    pub fn picture(&self) -> Image {
        input_image(&self.preprocess, &self.input)
    }

    /// What the unit sees of the picture, `[x0, y0, x1, y1]`, x1 and y1 excluded.
    pub fn seen(&self) -> [i64; 4] {
        self.seen
    }

    /// The unit's activation before its relu, for the picture as it is.
    ///
    /// # Errors
    /// If a backend operation fails.
    pub fn activation(&mut self, backend: &B, params: &Params<B>) -> Result<f32> {
        backend.upload(&mut self.workspace.input, &self.input)?;
        self.workspace.forward(backend, params)?;
        let output = self.workspace.output(self.layer);
        let mut values = vec![0.0; output.shape().len()];
        backend.download(&mut values, output)?;
        let Shape { w, c, .. } = output.shape();
        let SeedUnit { map, y, x, .. } = self.unit;
        Ok(values[(y as usize * w + x as usize) * c + map as usize])
    }

    /// One step.
    ///
    /// # Errors
    /// If a backend operation fails.
    pub fn step(&mut self, backend: &B, params: &Params<B>) -> Result<()> {
        let Settings { rate, decay, blur, blur_every, jitter, .. } = self.settings;
        let ([rows, columns], channels) = (self.preprocess.size, self.preprocess.channels());
        let row = columns * channels;
        let [x0, y0, x1, y1] = self.seen;
        // A transposed convolution may leave units that see nothing.
        let seen = [y1 - y0, x1 - x0].map(|size| size.max(1) as usize);
        // From 0 on, cyclically: what leaves on one side comes in on the other.
        let mut shift = |size: usize, seen: usize| {
            let most = (jitter * seen as f32).round() as u64;
            let from_most = self.random.next_u64() % (2 * most + 1);
            ((from_most + size as u64 - most) % size as u64) as usize
        };
        let (down, right) = (shift(rows, seen[0]), shift(columns, seen[1]) * channels);
        for (y, values) in self.input.chunks_exact(row).enumerate() {
            let shifted = &mut self.shifted[(y + down) % rows * row..][..row];
            shifted.copy_from_slice(values);
            shifted.rotate_right(right);
        }
        backend.upload(&mut self.workspace.input, &self.shifted)?;
        self.workspace.forward(backend, params)?;
        let (image, units, gradient) = (&self.image, [self.unit], &mut self.gradient);
        self.workspace.project(
            backend,
            params,
            self.layer,
            Rule::GRADIENT,
            image,
            &units,
            gradient,
        )?;

        let squares: f64 = self.gradient.iter().map(|g| f64::from(*g).powi(2)).sum();
        let rms = (squares / (seen[0] * seen[1] * channels) as f64).sqrt();
        // Where nothing changes the activation there is no direction to go.
        let is_direction = rms > 0.0 && rms.is_finite();
        let factor =
            if is_direction { f64::from(rate) * byte(&self.preprocess) / rms } else { 0.0 };
        for (y, values) in self.input.chunks_exact_mut(row).enumerate() {
            let gradient = &mut self.gradient[(y + down) % rows * row..][..row];
            gradient.rotate_left(right);
            for (value, g) in values.iter_mut().zip(gradient) {
                *value = (1.0 - decay) * (*value + (factor * f64::from(*g)) as f32);
            }
        }
        self.done += 1;
        if blur > 0.0 && self.done.is_multiple_of(blur_every) {
            let kernel = gaussian(blur);
            blur_along(&self.input, &mut self.shifted, rows, row, &kernel);
            blur_along(&self.shifted, &mut self.input, columns, channels, &kernel);
        }
        self.clip();
        Ok(())
    }

    /// Keeps each value in the range of a byte.
    fn clip(&mut self) {
        let Preprocess { scale, std, .. } = &self.preprocess;
        for (i, (value, mean)) in self.input.iter_mut().zip(&self.mean).enumerate() {
            let [black, white] = [0.0, 255.0].map(|b| (b * scale - mean) / std[i % std.len()]);
            *value = value.clamp(black.min(white), black.max(white)); // a scale may be negative
        }
    }
}

/// What a step of one byte is for the network: by the mean of its channels' standard deviations.
fn byte(preprocess: &Preprocess) -> f64 {
    let Preprocess { scale, std, .. } = preprocess;
    let sum: f64 = std.iter().map(|std| f64::from(*std)).sum();
    f64::from(scale.abs()) * std.len() as f64 / sum
}

/// What the unit in the middle of a layer's maps sees of the input.
fn seen_in_the_middle(layer: &Layer) -> [i64; 4] {
    seen_box(layer, layer.output.h / 2, layer.output.w / 2)
}

/// The weights of a Gaussian blur, to three standard deviations on either side.
fn gaussian(deviation: f32) -> Vec<f32> {
    let radius = (3.0 * deviation).ceil() as i32;
    let weight = |d: i32| (-0.5 * (f64::from(d) / f64::from(deviation)).powi(2)).exp();
    let weights: Vec<f64> = (-radius..=radius).map(weight).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|weight| (weight / sum) as f32).collect()
}

/// Blurs along the middle axis of `[any, length, inner]`; beyond an edge its values are repeated.
fn blur_along(from: &[f32], to: &mut [f32], length: usize, inner: usize, kernel: &[f32]) {
    let radius = kernel.len() / 2;
    let lines = from.chunks_exact(length * inner).zip(to.chunks_exact_mut(length * inner));
    for (from, to) in lines {
        for (i, to) in to.chunks_exact_mut(inner).enumerate() {
            to.fill(0.0);
            for (d, weight) in kernel.iter().enumerate() {
                let at = (i + d).saturating_sub(radius).min(length - 1);
                for (to, from) in to.iter_mut().zip(&from[at * inner..][..inner]) {
                    *to += weight * from;
                }
            }
        }
    }
}

/// Refuses a layer without weights: its maps are those of the layer below that has some.
///
/// # Errors
/// If it has none.
pub fn must_have_weights(network: &Network, layer: usize) -> Result<()> {
    let has_weights = |&index: &usize| network.layers[index].convolution().is_some();
    if has_weights(&layer) {
        return Ok(());
    }
    let below = (0..layer).rev().find(has_weights);
    let instead = below.map_or(String::new(), |below| {
        format!(": its maps are those of {}", network.layers[below].name)
    });
    let name = &network.layers[layer].name;
    Err(Error::Network(format!("layer {name}: expected one with weights{instead}")))
}

/// How rough a picture is: the mean difference of neighbouring pixels' bytes, along both axes and over its colours.
pub fn variation(picture: &Image) -> f64 {
    let Image { width, height, pixels } = picture;
    let (mut sum, mut count) = (0u64, 0u64);
    for y in 0..*height {
        for x in 0..*width {
            let at = |y: usize, x: usize| &pixels[(y * width + x) * 3..][..3];
            let right = (x + 1 < *width).then(|| at(y, x + 1));
            let below = (y + 1 < *height).then(|| at(y + 1, x));
            for other in right.into_iter().chain(below) {
                let differences =
                    at(y, x).iter().zip(other).map(|(a, b)| u64::from(a.abs_diff(*b)));
                sum += differences.sum::<u64>();
                count += 3;
            }
        }
    }
    sum as f64 / count.max(1) as f64
}

/// The spatial convolutions and the layer that gives the logits.
pub fn default_layers(network: &Network) -> Vec<usize> {
    let mut layers = network.spatial();
    layers.extend((network.classes() > 0).then_some(network.layers.len() - 1));
    layers.dedup();
    layers
}

/// Images that pictures are compared with.
pub struct Compared<'a> {
    /// The images.
    pub images: &'a Arc<Images>,
    /// Their classes, which need not be those of the network.
    pub classes: Option<&'a Classes>,
    /// The folder that their paths are relative to.
    pub root: &'a Path,
}

/// A layer whose maps follow.
#[derive(Clone, Debug, Serialize)]
pub struct OfLayer {
    /// Its name.
    pub name: String,
    /// How many maps it has, shown or not.
    pub maps: usize,
    /// Rows and columns of the input that the unit in the middle of a map sees.
    pub seen: [usize; 2],
}

/// What was made of a map.
#[derive(Clone, Debug, Serialize)]
pub struct OfMap {
    /// The layer's name.
    pub layer: String,
    /// Its number in the layer.
    pub map: usize,
    /// The class whose logit it is; empty for any other map.
    pub class: String,
    /// The activation of the noise at the beginning, before the relu.
    pub noise: f32,
    /// That of the picture, before the relu.
    pub activation: f32,
    /// How rough the picture is: see [`variation`].
    pub variation: f64,
    /// The synthesised picture, cut to the receptive field.
    #[serde(skip)]
    pub picture: Image,
    /// Up to nine, strongest first, one for an image; none if the map never fired, or nothing was searched.
    pub peaks: Vec<ProjectedPeak>,
}

impl OfMap {
    /// Its activation as a share of the strongest of all images; none if none fires.
    pub fn ratio(&self) -> Option<f64> {
        let strongest = self.peaks.first()?.value;
        Some(f64::from(self.activation) / f64::from(strongest))
    }
}

/// A finished ascent, as it is kept.
#[derive(Serialize, Deserialize)]
struct Made {
    noise: f32,
    activation: f32,
    /// The picture, cut to what the unit sees.
    pixels: Vec<u8>,
}

/// What [`run`] hands on: each layer before its maps.
pub enum Found {
    /// The next layer.
    Layer(OfLayer),
    /// The next map of that layer.
    Map(OfMap),
}

/// Synthesises a picture for each of the maps `chosen` and, if there are images to compare with, searches them for
/// each map's strongest activations. Each map is handed on as it is finished, and kept.
///
/// # Errors
/// If a layer has no weights, images cannot be read or none can, parts cannot be kept, a backend operation fails,
/// or `each` fails.
pub fn run<B: Backend>(
    session: &mut Session<'_, B>,
    model: &Model<B>,
    chosen: &[Chosen],
    settings: &Settings,
    seed: u64,
    compared: Option<&Compared<'_>>,
    mut each: impl FnMut(Found) -> Result<()>,
) -> Result<()> {
    let Model { network, params, preprocess, classes } = model;
    let (backend, workers) = (session.backend, session.workers);
    let images = compared.map(|compared| compared.images.fingerprint());
    let parts = session.parts(&[model], &(images, chosen, settings, seed))?;
    let mut searched: Searched = parts.get("search").unwrap_or_else(|| Searched::nothing(chosen));
    let mut looking = None;
    if let Some(compared @ Compared { images, root, .. }) = compared {
        let mut projector = Projector::new(backend, network, params, preprocess, BATCH, BATCH)?;
        let mut kept = Instant::now();
        let progress = |searched: &Searched| {
            session.progress("preferred: search", searched.done, images.len(), "");
            if kept.elapsed() > KEEP || searched.done == images.len() {
                kept = Instant::now();
                parts.put("search", searched)?;
            }
            Ok(())
        };
        search(&mut projector, model, images, chosen, PEAKS, workers, &mut searched, progress)?;
        must_be_images(images, root)?;
        looking = Some((projector, compared));
    }
    for (Chosen { layer, maps }, best) in chosen.iter().zip(&searched.best) {
        let (layer, shown) = (*layer, &network.layers[*layer]);
        let [x0, y0, x1, y1] = seen_in_the_middle(shown);
        let [height, width] = [y1 - y0, x1 - x0].map(|size| size.max(0) as usize);
        let (name, maps_in_all) = (shown.name.clone(), shown.output.c);
        each(Found::Layer(OfLayer { name, maps: maps_in_all, seen: [height, width] }))?;
        let is_logits = network.classes() > 0 && layer + 1 == network.layers.len();
        let what = format!("preferred: {}", shown.name);
        let total = maps.len() * settings.steps;
        for (number, (&map, best)) in maps.iter().zip(best).enumerate() {
            let part = format!("map-{layer}-{map}");
            let fits = |made: &Made| made.pixels.len() == width * height * 3;
            let made = match parts.get(&part).filter(fits) {
                Some(made) => made,
                None => {
                    let mut ascent =
                        Ascent::new(backend, network, preprocess, layer, map, settings, seed)?;
                    let noise = ascent.activation(backend, params)?;
                    while ascent.steps() < settings.steps {
                        ascent.step(backend, params)?;
                        let done = number * settings.steps + ascent.steps();
                        session.progress(&what, done, total, "");
                    }
                    let pixels = ascent.picture().crop(ascent.seen()).pixels;
                    let made =
                        Made { noise, activation: ascent.activation(backend, params)?, pixels };
                    parts.put(&part, &made)?;
                    made
                }
            };
            let mut peaks = Vec::new();
            if let Some((projector, Compared { images, classes, root })) = &mut looking {
                let (rule, best) = (Rule::DECONVNET, std::slice::from_ref(best));
                let say = |_| ();
                peaks = pictures(
                    model,
                    projector,
                    images,
                    *classes,
                    root,
                    rule,
                    layer,
                    best,
                    &Ranks::alone(),
                    say,
                )?
                .swap_remove(0);
            }
            let picture = Image::new(width, height, made.pixels);
            each(Found::Map(OfMap {
                layer: shown.name.clone(),
                map,
                class: classes.names.get(map).filter(|_| is_logits).cloned().unwrap_or_default(),
                noise: made.noise,
                activation: made.activation,
                variation: variation(&picture),
                picture,
                peaks,
            }))?;
        }
    }
    Ok(())
}
