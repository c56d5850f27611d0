//! Whole networks trained on few images that fit into memory, as a study of transfer compares with: from
//! random weights, or from a checkpoint's (fine-tuning).
//!
//! The loop is that of training in small: `updates` of at most a batch of the recipe, epochs shuffled by
//! the seed, the recipe's crops, dropout, weight decay and limits; one learning rate for all layers, which
//! falls to a tenth for the last quarter. Weights that are drawn are He's, whatever the network was begun
//! with: smaller ones take more updates to come into motion than there are here. Nothing is written to disk.

use serde::Serialize;

use super::linear::{best_of, held_out, mean_class_accuracy};
use super::numbers::most_probable;
use crate::backend::{Backend, StepState};
use crate::data::classes::Classes;
use crate::data::images::{Images, Scratch};
use crate::data::order::{permutation, training_crop};
use crate::model::{Architecture, LayerSpec, Model, Network, Params, Preprocess};
use crate::train::Init;
use crate::train::Trainer;
use crate::train::evaluate::{Classifier, TestCrops};
use crate::{Error, Result};

/// Images classified at a time.
const BATCH: usize = 32;

/// Images in memory, with their classes.
#[derive(Default)]
pub struct Squares {
    /// Their indices in the set.
    pub images: Vec<u32>,
    /// `[image, rows, columns, 3]`.
    pub pixels: Vec<u8>,
    /// Class of each.
    pub labels: Vec<u32>,
}

impl Squares {
    /// Reads images; bad ones are left out.
    ///
    /// # Errors
    /// If more are bad than the options allow.
    pub fn read(images: &Images, wanted: &[u32]) -> Result<Self> {
        let mut squares = Squares::default();
        let (mut scratch, mut square) = (Scratch::default(), vec![0; images.bytes_per_image()]);
        for &image in wanted {
            if images.read(image as usize, &mut scratch, &mut square)?.is_some() {
                squares.images.push(image);
                squares.pixels.extend_from_slice(&square);
                squares.labels.push(images.class(image as usize));
            }
        }
        Ok(squares)
    }

    /// Those of `wanted` (ascending).
    pub fn part(&self, wanted: &[u32]) -> Squares {
        let bytes = self.pixels.len() / self.images.len().max(1);
        let mut part = Squares::default();
        for (i, image) in self.images.iter().enumerate() {
            if wanted.binary_search(image).is_ok() {
                part.images.push(*image);
                part.pixels.extend_from_slice(&self.pixels[i * bytes..(i + 1) * bytes]);
                part.labels.push(self.labels[i]);
            }
        }
        part
    }
}

/// How a whole network starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Start {
    /// Random weights, and the mean of the training images is taken off.
    Scratch,
    /// The checkpoint's weights and preprocessing; the last layer is new.
    FineTune,
}

impl Start {
    /// As tables have it.
    pub fn name(self) -> &'static str {
        match self {
            Start::Scratch => "from scratch",
            Start::FineTune => "fine-tuned",
        }
    }
}

/// How a whole network is trained.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Training {
    /// How it starts.
    pub start: Start,
    /// Updates of its weights.
    pub updates: u32,
    /// Share of the recipe's learning rate.
    pub rate: f32,
    /// Seed of its order, crops, dropout and drawn weights.
    pub seed: u64,
}

/// Shares of the learning rate that are tried until the loss stays finite: on very few images a step is that of a
/// small batch, and the rate may be too high for it.
const LOWER: [f32; 3] = [1.0, 0.1, 0.01];

/// The best of several learning rates, as shares of the recipe's: that after which a network that is trained on all
/// but a held-out fifth of the images (drawn by the training's seed) has the best [`accuracy`] on that
/// fifth, or is nearest to the middle of those that tie; one at which the loss runs away has none. A single rate
/// is not tried, and without a held-out image the middle one is taken.
///
/// # Errors
/// If a backend operation fails.
///
/// # Panics
/// If there are no rates.
pub fn choose_rate<B: Backend>(
    backend: &B,
    checkpoint: &Model<B>,
    classes: &Classes,
    squares: &Squares,
    training: Training,
    rates: &[f32],
) -> Result<f32> {
    let [fitted, held] = held_out(&squares.labels, classes.len(), training.seed).map(|places| {
        let mut images: Vec<u32> = places.into_iter().map(|place| squares.images[place]).collect();
        images.sort_unstable();
        squares.part(&images)
    });
    if rates.len() == 1 || held.labels.is_empty() {
        return Ok(rates[rates.len() / 2]);
    }
    best_of(rates, |rate| {
        let training = Training { rate, ..training };
        match train_at(backend, checkpoint, classes, &fitted, training) {
            Ok(model) => accuracy(backend, &model, &held),
            Err(Error::Diverged { .. }) => Ok(f64::NAN),
            Err(error) => Err(error),
        }
    })
}

/// Trains a network of `checkpoint`'s architecture for other classes on a few images. If its loss runs away, it is
/// trained anew at a tenth of the learning rate, and then at a hundredth; which it was is returned with it.
///
/// # Errors
/// If there are no images, the loss runs away nevertheless, or a backend operation fails.
pub fn train_few<B: Backend>(
    backend: &B,
    checkpoint: &Model<B>,
    classes: &Classes,
    squares: &Squares,
    training: Training,
) -> Result<(Model<B>, f32)> {
    let train = |share: f32| {
        let training = Training { rate: share * training.rate, ..training };
        train_at(backend, checkpoint, classes, squares, training)
    };
    let [most, lower @ ..] = LOWER;
    let (mut trained, mut used) = (train(most), most);
    for share in lower {
        let Err(error @ Error::Diverged { .. }) = &trained else { break };
        tracing::warn!(
            "{}: {error}; trained anew at {share} of the learning rate",
            training.start.name()
        );
        (trained, used) = (train(share), share);
    }
    Ok((trained?, used))
}

fn train_at<B: Backend>(
    backend: &B,
    checkpoint: &Model<B>,
    classes: &Classes,
    squares: &Squares,
    training: Training,
) -> Result<Model<B>> {
    let Training { start, updates, rate, seed } = training;
    let mut architecture =
        Architecture { classes: classes.len(), ..checkpoint.network.architecture.clone() };
    let count = squares.labels.len();
    let recipe = &mut architecture.recipe;
    recipe.batch_size = recipe.batch_size.min(count).max(1);
    recipe.learning_rate *= rate;
    recipe.init = Init::He;
    let recipe = recipe.clone();
    architecture.layers.iter_mut().for_each(LayerSpec::clear_init_std);
    let network = Network::new(architecture)?;
    let mut params = Params::untrained(backend, &network, seed)?;
    let mut preprocess = checkpoint.preprocess.clone();
    match start {
        Start::Scratch => preprocess.mean = mean_of(&preprocess, &squares.pixels),
        Start::FineTune => copy_but_last(backend, checkpoint, &mut params)?,
    }
    let model = Model { network, params, preprocess, classes: classes.clone() };
    let momentum = Params::zeros(backend, &model.network)?;
    let mut trainer = Trainer::new(backend, model, momentum, 1)?;
    let bytes = trainer.model.preprocess.bytes();
    let (mut pixels, mut step, mut epoch) = (Vec::new(), 0, 0);
    while step < updates {
        let order = permutation(seed, epoch, count);
        for (batch, images) in order.chunks(recipe.batch_size).enumerate() {
            if step == updates {
                break;
            }
            pixels.clear();
            let (mut crops, mut labels) = (Vec::new(), Vec::new());
            for (i, &image) in images.iter().enumerate() {
                let from = image as usize * bytes;
                pixels.extend_from_slice(&squares.pixels[from..from + bytes]);
                labels.push(squares.labels[image as usize]);
                let position = batch * recipe.batch_size + i;
                let preprocess = &trainer.model.preprocess;
                crops.push(training_crop(
                    recipe.crops,
                    preprocess,
                    seed,
                    epoch,
                    position,
                    i as u32,
                ));
            }
            let falls = step >= updates - updates / 4;
            let rate = recipe.learning_rate * if falls { 0.1 } else { 1.0 };
            let state = StepState { seed, step, learning_rate: rate, ..StepState::default() };
            trainer.step(&pixels, &crops, &labels, state)?;
            step += 1;
        }
        epoch += 1;
    }
    Ok(trainer.model)
}

/// The mean of preprocessed images, as the preprocessing takes it off.
fn mean_of(preprocess: &Preprocess, pixels: &[u8]) -> Vec<f32> {
    let bytes = preprocess.bytes();
    let mut sums = vec![0u64; bytes];
    for square in pixels.chunks_exact(bytes) {
        sums.iter_mut().zip(square).for_each(|(sum, v)| *sum += u64::from(*v));
    }
    let count = (pixels.len() / bytes).max(1) as f64;
    let of_channel = |pixel: &[u64], channel: usize| {
        // The network's channel `channel` is this one of red, green, blue.
        let sum = pixel[preprocess.order[channel] as usize];
        (sum as f64 / count * f64::from(preprocess.scale)) as f32
    };
    let in_order = |pixel| [0, 1, 2].map(|channel| of_channel(pixel, channel));
    let mean = sums.chunks_exact(3).flat_map(in_order).collect();
    // Of three channels in the same order, whatever the network has.
    let rgb = Preprocess { std: vec![1.0; 3], mean, ..preprocess.clone() };
    rgb.of_channels(preprocess.channels()).mean
}

/// Copies all weights but those of the last layer that has some.
fn copy_but_last<B: Backend>(backend: &B, from: &Model<B>, to: &mut Params<B>) -> Result<()> {
    let last = from.params.layers.iter().rposition(Option::is_some);
    let (known, Params { layers, initial }) = (&from.params.initial, to);
    for (index, (from, to)) in from.params.layers.iter().zip(layers).enumerate() {
        let (Some(from), Some(to)) = (from, to) else { continue };
        if Some(index) == last {
            continue;
        }
        for (from, to) in [(&from.weight, &mut to.weight), (&from.bias, &mut to.bias)] {
            let mut values = vec![0.0; from.shape().len()];
            backend.download(&mut values, from)?;
            backend.upload(to, &values)?;
        }
        initial[index] = known[index];
    }
    Ok(())
}

/// The mean over the classes of the share of images whose class is the most probable one, centre crop.
///
/// # Errors
/// If a backend operation fails.
pub fn accuracy<B: Backend>(backend: &B, model: &Model<B>, squares: &Squares) -> Result<f64> {
    let Model { network, params, preprocess, classes } = model;
    let mut classifier = Classifier::new(backend, network, preprocess, TestCrops::One, BATCH)?;
    let mut found = Vec::new();
    for pixels in squares.pixels.chunks(BATCH * preprocess.bytes()) {
        let images = pixels.len() / preprocess.bytes();
        let mut probabilities = vec![0.0; images * classes.len()];
        classifier.add_probabilities(backend, network, params, pixels, &mut probabilities)?;
        for row in probabilities.chunks_exact(classes.len()) {
            // Of probabilities that are no numbers none comes first: that counts as wrong.
            found.push(most_probable(row).unwrap_or(classes.len()) as u32);
        }
    }
    Ok(mean_class_accuracy(&squares.labels, &found, classes.len()))
}
