//! What training is watched for: signs that something is wrong, and what follows from the numbers beside them.
//!
//! Losses come with every step, the numbers of layers with a watched one (every few steps). All of it is a
//! function of the steps, and a part of the checkpoint, so that a run that is interrupted says the same.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use super::alarm::{Alarm, LayerNumbers, Remedy, STUCK, Sign};
use super::confusion::Confusion;
use crate::model::{LayerSigns, Network, StepSigns};
use zfnet_core::{Init, Recipe};

/// Losses whose mean is looked at.
const WINDOW: usize = 100;
/// Share of the loss of guessing above which nothing was learnt; below which something has been; and below which
/// validation should not be guessing any more.
const GUESSING: f64 = 0.99;
const LEARNT: f64 = 0.8;
const WELL_LEARNT: f64 = 0.6;
/// Standard errors by which a mean loss has to lie above or below another.
const CLEAR: f64 = 4.0;
/// Watched steps of an epoch, if it has enough of them.
const WATCHED: usize = 16;
/// Steps from one watched one to the next: at least so that watching costs little, at most so that a run of long
/// epochs is looked at often.
const BETWEEN: [usize; 2] = [6, 16];
/// Share of a layer's maps that may be dead: small networks that learn well have had a quarter.
const DEAD: f64 = 0.5;
/// Share of the highest layer's gradient that the lowest one's has, below which it has vanished.
const VANISHED: f64 = 1e-6;
/// Standard deviation of the first step's logits, as a share of the input's, below which the signal has died on its way
/// up: with the recipes of zfnet-mini and alexnet-mini it is 8e-3.
const FADED: f64 = 2e-3;
/// Mean of a layer's output, by its standard deviation, above which biases make it: a relu's of what has no mean is
/// 0.68, and with biases of 1 it was 1.7 to 8 in the convolutions of zfnet-mini and alexnet-mini.
const BIASED: f64 = 1.4;
/// Share of a layer's maps without which nothing passes it.
const ALL_DEAD: f64 = 0.9;
/// Fewest dead maps that are worth an alarm, and fewest images for which they were silent.
const FEWEST_DEAD: usize = 4;
const FEWEST_LOOKED_AT: usize = 256;
/// Share of a layer's energy that one map may have, and fewest maps that share it.
const DOMINATED: f64 = 0.6;
const FEWEST_MAPS: usize = 8;
/// Epochs, and updates, in which a class may be predicted for no image.
const NEVER: u32 = 3;
const NEVER_UPDATES: u32 = 100;
/// Training images of a class, as a share of a class's mean, below which they are few.
const FEW_OF_CLASS: f64 = 0.25;
/// Standard deviation that the network's input should have.
const USUAL_INPUT: RangeInclusive<f64> = 0.1..=10.0;
/// Share of weights by which an update moves them, in trainings that go well: far below this nothing is learnt,
/// far above nothing stays.
const USUAL_UPDATE: f64 = 2e-3;
/// Below the first where nothing is learnt, the largest update is taken for too small; above the second for too large.
pub const USUAL_UPDATES: [f64; 2] = [USUAL_UPDATE / 5.0, 10.0 * USUAL_UPDATE];
/// Updates that are too small, whether the loss falls or not.
const TINY_UPDATE: f64 = USUAL_UPDATES[0] / 4.0;
/// Watched steps whose updates are averaged: single ones are noisy.
const UPDATES: usize = 8;
/// Factor by which a learning rate is raised at most.
const RAISED: f64 = 100.0;

/// Whether a step is a watched one, by its number from 0.
pub(super) fn is_watched(step: u32, steps_per_epoch: usize) -> bool {
    let [least, most] = BETWEEN;
    (step as usize).is_multiple_of((steps_per_epoch / WATCHED).clamp(least, most))
}

/// What alarms depend on beside what training shows.
pub(super) struct Task<'a> {
    pub network: &'a Network,
    /// Names of the classes.
    pub classes: &'a [String],
    /// Training images of each class.
    images: Vec<u32>,
    /// Loss of who knows only how frequent each class is in the training split: the entropy of its labels.
    guessing: f64,
}

impl<'a> Task<'a> {
    pub fn new(network: &'a Network, classes: &'a [String], images: Vec<u32>) -> Self {
        let all: f64 = images.iter().map(|count| f64::from(*count)).sum();
        let shares = images.iter().filter(|count| **count > 0).map(|count| f64::from(*count) / all);
        let guessing = -shares.map(|share| share * share.ln()).sum::<f64>();
        Task { network, classes, images, guessing }
    }

    /// What makes the signal of a first step smaller or larger: the divisor of pixels, if the input is to blame; else
    /// how weights are drawn, if that is not He's way already.
    fn other_start(&self, input_std: f64) -> Remedy {
        let architecture = &self.network.architecture;
        if !USUAL_INPUT.contains(&input_std) && input_std > 0.0 {
            Remedy::InputStd(rounded(f64::from(architecture.input.std) * input_std))
        } else if architecture.recipe.init == Init::He {
            Remedy::CheckStart
        } else {
            Remedy::HeInitialization
        }
    }

    /// A limit of the filters' RMS that is lower than the one there is.
    fn rms_limit(&self) -> Remedy {
        let limit = self.network.architecture.recipe.rms_limit;
        let usual = Recipe::default().rms_limit;
        Remedy::RmsLimit(if limit > 0.0 && limit <= usual { limit / 2.0 } else { usual })
    }

    /// Why a class is never predicted, by how many training images it has.
    fn never_predicted(&self, class: usize) -> (String, Remedy) {
        let mean = self.images.iter().sum::<u32>() as f64 / self.images.len() as f64;
        let of = format!("{} training images of {}", self.images[class], self.classes[class]);
        match f64::from(self.images[class]) < FEW_OF_CLASS * mean {
            true => {
                (format!("only {of}, where a class has {mean:.0} on average"), Remedy::MoreImages)
            }
            false => (format!("{of} are enough, but may show something else"), Remedy::CheckImages),
        }
    }

    /// Updates after which the loss should have left that of guessing: more for more classes.
    fn patience(&self) -> u32 {
        (2 * self.classes.len()).clamp(300, 2000) as u32
    }
}

/// What a watched step shows, as it is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Numbers {
    input_std: f64,
    layers: Vec<LayerNumbers>,
    /// Share of each layer's maps that fired for no image of the step.
    dead: Vec<f64>,
}

impl Numbers {
    fn of(network: &Network, signs: &StepSigns) -> Self {
        let numbers = |signs: &LayerSigns| LayerNumbers {
            layer: network.layers[signs.layer].name.clone(),
            activation_mean: signs.activation_mean,
            activation_std: signs.activation_std,
            gradient_std: signs.gradient_std,
            weight_rms: signs.weight_rms,
            update: signs.update,
        };
        let dead = |layer: &LayerSigns| {
            let dead = layer.fired.iter().filter(|fired| !**fired).count();
            dead as f64 / layer.fired.len().max(1) as f64
        };
        Numbers {
            input_std: signs.input_std,
            layers: signs.layers.iter().map(numbers).collect(),
            dead: signs.layers.iter().map(dead).collect(),
        }
    }

    fn is_finite(&self) -> bool {
        let layers = self.layers.iter().flat_map(|layer| {
            [
                layer.activation_mean,
                layer.activation_std,
                layer.gradient_std,
                layer.weight_rms,
                layer.update,
            ]
        });
        layers.chain([self.input_std]).all(f64::is_finite)
    }

    /// The layer whose last update was the largest, and that update.
    fn largest_update(&self) -> Option<&LayerNumbers> {
        self.layers.iter().max_by(|a, b| a.update.total_cmp(&b.update))
    }

    /// By what factor a layer's output is smaller than its input, where it is the most, and that layer.
    fn weakest_link(&self) -> Option<(f64, &LayerNumbers)> {
        let below =
            [self.input_std].into_iter().chain(self.layers.iter().map(|l| l.activation_std));
        let gains = below.zip(&self.layers);
        let gain =
            |(below, layer): (f64, &'_ LayerNumbers)| layer.activation_std / below.max(1e-30);
        let weakest = gains.min_by(|a, b| gain(*a).total_cmp(&gain(*b)))?;
        Some((gain(weakest), weakest.1))
    }

    /// What is seen if biases make the outputs of most layers below the last.
    fn biases(&self) -> Option<String> {
        let biased =
            |layer: &&LayerNumbers| layer.activation_mean.abs() > BIASED * layer.activation_std;
        let inner = &self.layers[..self.layers.len().saturating_sub(1)];
        let lowest = inner.iter().find(biased)?;
        (2 * inner.iter().filter(biased).count() > inner.len()).then(|| {
            format!(
                "from the first step on {} gave {:.3} on average, with a standard deviation of {:.3}: biases hide the \
                 signal",
                lowest.layer, lowest.activation_mean, lowest.activation_std
            )
        })
    }

    /// The largest standard deviation there is, of the last layer: the logits.
    fn logits(&self) -> Option<&LayerNumbers> {
        self.layers.last()
    }
}

/// Maps of a layer that have not fired so far.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Silent {
    /// All of the layer's; 0 where no relu follows.
    maps: usize,
    silent: Vec<u32>,
}

impl Silent {
    /// The share of the layer's maps.
    fn share(&self) -> f64 {
        self.silent.len() as f64 / self.maps.max(1) as f64
    }
}

/// What is kept of a layer over an epoch.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct OfEpoch {
    /// Sums over watched steps of mean, standard deviation, gradient, weights, update.
    sums: [f64; 5],
    /// For each map its share of the layer's sum of squares, summed; only of convolutions.
    shares: Vec<f64>,
}

/// What the watched steps of an epoch show of a layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerOfEpoch {
    /// Means over the watched steps.
    #[serde(flatten)]
    pub numbers: LayerNumbers,
    /// Maps that fired for no image looked at.
    pub dead: usize,
    /// Of how many; 0 where no relu follows.
    pub maps: usize,
    /// Share of a filter's energy along its initial weights at the epoch's end, median over some filters; `None`
    /// where it is not known how they were drawn.
    pub initial_share: Option<f64>,
}

/// Where the watch stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct WatchState {
    /// Signs that have been told.
    told: BTreeSet<String>,
    /// The last losses.
    losses: VecDeque<f64>,
    /// Their lowest mean, and the largest standard error that their mean has had.
    lowest: Option<f64>,
    largest_error: f64,
    /// What the first watched step has shown, and the last.
    first: Option<Numbers>,
    last: Option<Numbers>,
    /// The largest update of any layer, in the last watched steps, and in all; and in all as a multiple of the learning
    /// rate that it had.
    updates: VecDeque<f64>,
    largest_update: f64,
    largest_of_rate: f64,
    /// Of the epoch in hand: watched steps, their images, the sum of input deviations, layers.
    watched: u32,
    images: usize,
    input_stds: f64,
    layers: Vec<OfEpoch>,
    /// Maps that have fired for none of so many images: of an epoch, or of several until they are enough to tell.
    silent: Vec<Silent>,
    silent_for: usize,
    /// Classes that have been predicted for no image: in how many epochs one after the other, and since which update.
    never: BTreeMap<u32, (u32, u32)>,
    /// Classes that the last validation found exchanged, each with what it was taken for.
    exchanged: BTreeMap<u32, u32>,
}

impl WatchState {
    /// Whether it is of this network, as what a checkpoint's file says need not be.
    pub(super) fn fits(&self, network: &Network) -> bool {
        let with_weights = network.layers.iter().filter(|layer| layer.convolution().is_some());
        let maps: Vec<usize> = with_weights.map(|layer| layer.output.c).collect();
        let numbers = [&self.first, &self.last].into_iter().flatten();
        let silent_fit = |(silent, maps): (&Silent, &usize)| {
            let known = silent.maps == 0 || silent.maps == *maps;
            known && silent.silent.iter().all(|map| (*map as usize) < silent.maps)
        };
        let as_many = |len: usize| len == maps.len();
        numbers.into_iter().all(|n| as_many(n.layers.len()) && as_many(n.dead.len()))
            && (as_many(self.layers.len()) || self.watched == 0)
            && (as_many(self.silent.len()) || self.silent_for == 0 && self.watched == 0)
            && self.silent.iter().zip(&maps).all(silent_fit)
            && self.never.keys().all(|class| (*class as usize) < network.classes())
            && self.exchanged.iter().all(|(a, b)| (*a.max(b) as usize) < network.classes())
            && self.losses.len() <= WINDOW
            && self.updates.len() <= UPDATES
    }

    /// Takes in what a watched step shows.
    pub(super) fn look(&mut self, task: &Task<'_>, signs: &StepSigns, rate: f32) {
        let images = signs.samples;
        let numbers = Numbers::of(task.network, signs);
        if !numbers.is_finite() {
            return; // the loss will tell
        }
        self.layers.resize_with(signs.layers.len(), OfEpoch::default);
        for ((kept, layer), numbers) in
            self.layers.iter_mut().zip(&signs.layers).zip(&numbers.layers)
        {
            let LayerNumbers {
                activation_mean,
                activation_std,
                gradient_std,
                weight_rms,
                update,
                ..
            } = *numbers;
            let values = [activation_mean, activation_std, gradient_std, weight_rms, update];
            kept.sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
            if kept.shares.len() < layer.shares.len() {
                kept.shares.resize(layer.shares.len(), 0.0); // none are told of an output that is all zero
            }
            kept.shares.iter_mut().zip(&layer.shares).for_each(|(sum, share)| *sum += share);
        }
        if self.silent_for == 0 {
            let all = |layer: &LayerSigns| Silent {
                maps: layer.fired.len(),
                silent: (0..layer.fired.len() as u32).collect(),
            };
            self.silent = signs.layers.iter().map(all).collect();
        }
        for (kept, layer) in self.silent.iter_mut().zip(&signs.layers) {
            kept.silent.retain(|map| !layer.fired[*map as usize]);
        }
        self.silent_for += images;
        self.watched += 1;
        self.images += images;
        self.input_stds += numbers.input_std;
        if let Some(largest) = numbers.largest_update() {
            self.updates.push_back(largest.update);
            if self.updates.len() > UPDATES {
                self.updates.pop_front();
            }
            self.moved(largest.update, rate);
        }
        self.first.get_or_insert_with(|| numbers.clone());
        self.last = Some(numbers);
    }

    /// Takes in the size of an update.
    fn moved(&mut self, update: f64, rate: f32) {
        self.largest_update = self.largest_update.max(update);
        self.largest_of_rate = self.largest_of_rate.max(update / f64::from(rate).max(1e-30));
    }

    /// Takes in a step's mean loss; `step` counts it.
    pub(super) fn step(
        &mut self,
        task: &Task<'_>,
        step: u32,
        loss: f64,
        rate: f32,
    ) -> Option<Alarm> {
        self.losses.push_back(loss);
        if self.losses.len() > WINDOW {
            self.losses.pop_front();
        }
        let mean = self.losses.iter().sum::<f64>() / self.losses.len() as f64;
        if self.losses.len() < WINDOW {
            return None;
        }
        let lowest = *self.lowest.get_or_insert(mean);
        self.lowest = Some(lowest.min(mean));
        let guessing = task.guessing;
        let stuck = lowest.min(mean) > GUESSING * guessing;
        let spread = self.losses.iter().map(|loss| (loss - mean).powi(2)).sum::<f64>();
        let error = (spread / (WINDOW * (WINDOW - 1)) as f64).sqrt();
        if step >= task.patience() && stuck {
            let falls = mean + CLEAR * error < guessing;
            return self.tell(self.stuck(task, step, mean, falls, rate));
        }
        // A training that has learnt something and forgets it, or leaves guessing upwards: by more than the losses of
        // single batches tell.
        self.largest_error = self.largest_error.max(error);
        let clear = mean - CLEAR * self.largest_error.max(error);
        let rose = clear > 2.0 * guessing.max(lowest)
            || (lowest + CLEAR * self.largest_error < LEARNT * guessing && clear > guessing);
        if rose {
            let sign = Sign::Rose { loss: mean, lowest, guessing };
            let (cause, remedy) = self.too_far(task, rate);
            return self.tell(Alarm { sign, cause, remedy });
        }
        None
    }

    /// The alarm, if it is the first of its kind.
    pub(super) fn tell(&mut self, alarm: Alarm) -> Option<Alarm> {
        self.told.insert(alarm.sign.key()).then_some(alarm)
    }

    fn stuck(&self, task: &Task<'_>, updates: u32, loss: f64, falls: bool, rate: f32) -> Alarm {
        let (layers, input_std) = match &self.last {
            Some(last) => (last.layers.clone(), last.input_std),
            None => (Vec::new(), 0.0),
        };
        let (cause, remedy) = self.why_stuck(task, falls, rate);
        let guessing = task.guessing;
        Alarm { sign: Sign::Stuck { loss, guessing, updates, input_std, layers }, cause, remedy }
    }

    /// Why nothing is learnt, by what the watched steps have shown and whether the loss falls at all.
    fn why_stuck(&self, task: &Task<'_>, falls: bool, rate: f32) -> (String, Remedy) {
        let (Some(first), Some(last)) = (&self.first, &self.last) else {
            return ("nothing was watched".into(), Remedy::CheckLabels);
        };
        // Whatever else is seen may follow from it.
        if !USUAL_INPUT.contains(&first.input_std) {
            let cause = format!(
                "the network's input has a standard deviation of {:.3}, where about 1 is usual",
                first.input_std
            );
            return (cause, task.other_start(first.input_std));
        }
        if let Some(biases) = first.biases() {
            return (biases, Remedy::ZeroBiases);
        }
        if let (Some(lowest), Some(highest)) = (last.layers.first(), last.layers.last())
            && let Some((gain, weakest)) = last.weakest_link()
            && lowest.gradient_std > 0.0
            && lowest.gradient_std < VANISHED * highest.gradient_std
        {
            let cause = format!(
                "the signal dies on its way: what goes back has a standard deviation of {:.1e} in {} and of {:.1e} in \
                 {}; {} gives {:.3} of the deviation that it gets",
                highest.gradient_std,
                highest.layer,
                lowest.gradient_std,
                lowest.layer,
                weakest.layer,
                gain
            );
            return (cause, task.other_start(last.input_std));
        }
        if let Some(logits) = first.logits()
            && logits.activation_std < FADED * first.input_std
            && let Some((gain, weakest)) = first.weakest_link()
        {
            let cause = format!(
                "the signal died on its way up from the first step on: an input with a standard deviation of {:.3} gave \
                 logits with one of {:.1e}; {} gave {:.3} of the deviation that it got",
                first.input_std, logits.activation_std, weakest.layer, gain
            );
            return (cause, task.other_start(first.input_std));
        }
        if let Some(place) = self
            .silent
            .iter()
            .position(|silent| self.silent_for >= FEWEST_LOOKED_AT && silent.share() >= ALL_DEAD)
        {
            let (why, remedy) = self.dead(task, place, rate);
            let share = 100.0 * self.silent[place].share();
            let layer = &last.layers[place].layer;
            return (
                format!("{share:.0} % of {layer} is dead, so nothing passes it: {why}"),
                remedy,
            );
        }
        if let Some(place) = last.layers.iter().position(|layer| layer.activation_std == 0.0) {
            let (why, remedy) = self.dead(task, place, rate);
            let layer = &last.layers[place].layer;
            return (
                format!("{layer} gives the same for all, so nothing passes it: {why}"),
                remedy,
            );
        }
        let update = self.updates.iter().sum::<f64>() / self.updates.len().max(1) as f64;
        // Updates by labels without meaning cancel each other, so that they stay small, too; but then no loss falls.
        if update < TINY_UPDATE || (falls && update < USUAL_UPDATES[0]) {
            let cause = format!(
                "updates are too small: the largest of all layers move weights by {update:.1e} of their size{}",
                if falls { ", and the loss does fall" } else { "" }
            );
            let wanted = (USUAL_UPDATE / update.max(1e-12)).min(RAISED);
            return (cause, Remedy::LearningRate(rounded(f64::from(rate) * wanted)));
        }
        if update > USUAL_UPDATES[1] {
            return self.too_far(task, rate);
        }
        let cause = "signal and updates are as they should be, so the labels may tell nothing of the images";
        (cause.to_owned(), Remedy::CheckLabels)
    }

    /// Why maps of the layer at this place are dead, and what to do about it.
    fn dead(&self, task: &Task<'_>, place: usize, rate: f32) -> (String, Remedy) {
        let Some(first) = &self.first else {
            return ("nothing was watched".into(), self.lower_rate(rate));
        };
        // A single batch leaves many maps silent that other images excite.
        if first.dead[place] >= ALL_DEAD {
            return ("so it was drawn".into(), task.other_start(first.input_std));
        }
        let cause = format!(
            "in the first batch {:.0} % of {} was silent; the largest update since was {:.1} % of a layer's weights",
            100.0 * first.dead[place],
            first.layers[place].layer,
            100.0 * self.largest_update
        );
        (cause, self.lower_rate(rate))
    }

    /// Why a loss has risen, by the numbers of the first and the last watched step.
    fn too_far(&self, task: &Task<'_>, rate: f32) -> (String, Remedy) {
        let (Some(first), Some(last)) = (&self.first, &self.last) else {
            return ("updates too large".into(), self.lower_rate(rate));
        };
        if let Some(logits) = first.logits()
            && logits.activation_std > 10.0
        {
            let found = format!("logits with a standard deviation of {:.3}", logits.activation_std);
            return Self::too_large(task, &found, first.input_std);
        }
        let cause = match last.largest_update() {
            Some(layer) => format!(
                "updates too large: that of {} was {:.1} % of its weights",
                layer.layer,
                100.0 * layer.update
            ),
            None => "updates too large".into(),
        };
        (cause, self.lower_rate(rate))
    }

    /// The cause where the first step has shown a signal that was too large already.
    fn too_large(task: &Task<'_>, found: &str, input_std: f64) -> (String, Remedy) {
        let cause = format!(
            "the signal was too large from the start: {found}, of an input with one of {input_std:.3}"
        );
        (cause, task.other_start(input_std))
    }

    /// A learning rate that would have held, by the largest update there was: a third of this one at most.
    fn lower_rate(&self, rate: f32) -> Remedy {
        let usual = USUAL_UPDATE / self.largest_of_rate.max(1e-30);
        Remedy::LearningRate(rounded(usual.min(f64::from(rate) / 3.0)))
    }

    /// The alarm of a step whose loss was not finite; `signs` are its own.
    pub(super) fn failed(
        &mut self,
        task: &Task<'_>,
        signs: &StepSigns,
        files: Vec<String>,
        rate: f32,
    ) -> Alarm {
        let broken = signs.layers.iter().find(|layer| !layer.activation_std.is_finite());
        let layer = broken.map(|layer| task.network.layers[layer.layer].name.clone());
        // The last update may have been many times as large as the last that was watched.
        let finite =
            signs.layers.iter().map(|layer| layer.update).filter(|update| update.is_finite());
        finite.for_each(|update| self.moved(update, rate));
        let known = self.last.iter_mut().flat_map(|last| &mut last.layers).zip(&signs.layers);
        known
            .filter(|(_, now)| now.update.is_finite())
            .for_each(|(last, now)| last.update = now.update);
        let (cause, remedy) = match &self.first {
            Some(_) => self.too_far(task, rate),
            None if signs.input_std.is_finite() && layer.is_some() => {
                let found = "activations that are not finite";
                Self::too_large(task, found, signs.input_std)
            }
            None => ("updates too large".into(), self.lower_rate(rate)),
        };
        Alarm { sign: Sign::NotFinite { layer, files }, cause, remedy }
    }

    /// Ends an epoch: what was seen of each layer, and how many images were looked at; `initial_shares` holds one
    /// for each.
    pub(super) fn end_epoch(
        &mut self,
        task: &Task<'_>,
        initial_shares: &[Option<f64>],
        rate: f32,
    ) -> Option<EpochNumbers> {
        let watched = std::mem::take(&mut self.watched);
        let images = std::mem::take(&mut self.images);
        let input_std = std::mem::take(&mut self.input_stds) / f64::from(watched.max(1));
        let layers = std::mem::take(&mut self.layers);
        let last = self.last.as_ref().filter(|_| watched > 0)?;
        let layer = |(place, kept): (usize, &OfEpoch)| {
            let [activation_mean, activation_std, gradient_std, weight_rms, update] =
                kept.sums.map(|sum| sum / f64::from(watched));
            let layer = last.layers[place].layer.clone();
            LayerOfEpoch {
                numbers: LayerNumbers {
                    layer,
                    activation_mean,
                    activation_std,
                    gradient_std,
                    weight_rms,
                    update,
                },
                dead: self.silent[place].silent.len(),
                maps: self.silent[place].maps,
                initial_share: initial_shares[place],
            }
        };
        let of_layers: Vec<LayerOfEpoch> = layers.iter().enumerate().map(layer).collect();
        let mut alarms = Vec::new();
        if self.silent_for >= FEWEST_LOOKED_AT {
            let images = std::mem::take(&mut self.silent_for);
            for (place, Silent { maps, silent }) in self.silent.iter().enumerate() {
                let dead = silent.len();
                if dead >= FEWEST_DEAD && dead as f64 > DEAD * *maps as f64 {
                    let (cause, remedy) = self.dead(task, place, rate);
                    let layer = last.layers[place].layer.clone();
                    let sign = Sign::Dead { layer, dead, maps: *maps, images };
                    alarms.push(Alarm { sign, cause, remedy });
                }
            }
        }
        for (kept, numbers) in layers.iter().zip(&last.layers) {
            let shares = kept.shares.iter().enumerate();
            if let Some((map, sum)) = shares.max_by(|a, b| a.1.total_cmp(b.1)) {
                let share = sum / f64::from(watched);
                if share > DOMINATED && kept.shares.len() >= FEWEST_MAPS {
                    let (cause, remedy) = match self.first.as_ref().and_then(Numbers::biases) {
                        Some(biases) => (biases, Remedy::ZeroBiases),
                        None => (
                            "one filter has grown beyond all others, as in the paper’s Figure 6(a)"
                                .into(),
                            task.rms_limit(),
                        ),
                    };
                    let sign = Sign::Dominated { layer: numbers.layer.clone(), map, share };
                    alarms.push(Alarm { sign, cause, remedy });
                }
            }
        }
        // What is seen of the layers of a training that is stuck has been told with it.
        let is_stuck = self.lowest.is_none_or(|lowest| lowest > GUESSING * task.guessing);
        if is_stuck && self.told.contains(STUCK) {
            alarms.clear();
        }
        let alarms = alarms.into_iter().filter_map(|alarm| self.tell(alarm)).collect();
        Some(EpochNumbers { input_std, images, layers: of_layers, alarms })
    }

    /// Forgets all but what has been told: an epoch has ended that was not watched.
    pub(super) fn not_watched(&mut self) {
        *self = WatchState { told: std::mem::take(&mut self.told), ..WatchState::default() };
    }

    /// Takes in what was validated after so many steps.
    pub(super) fn validated(
        &mut self,
        task: &Task<'_>,
        step: u32,
        train_loss: f64,
        confusion: &Confusion,
    ) -> Vec<Alarm> {
        let mut alarms = Vec::new();
        // An epoch's confusion may be that of a network that has not learnt enough yet.
        let exchanged = match train_loss < WELL_LEARNT * task.guessing {
            true => confusion.exchanged(),
            false => BTreeMap::new(),
        };
        let before = std::mem::replace(&mut self.exchanged, exchanged);
        let lasting = circles_of_both(&before, &self.exchanged);
        if !lasting.is_empty() {
            let name = |class: &u32| task.classes[*class as usize].clone();
            let classes = lasting.iter().map(|(class, taken_for)| [name(class), name(taken_for)]);
            let classes = classes.collect();
            alarms.push(Alarm {
                sign: Sign::Permuted { classes },
                cause: "these classes do not stand for the same in both splits".into(),
                remedy: Remedy::CheckClasses,
            });
        } else if (self.exchanged.is_empty() || !before.is_empty())
            && train_loss < WELL_LEARNT * task.guessing
            && let Some((error, guessing_error)) = confusion.at_chance()
        {
            alarms.push(Alarm {
                sign: Sign::ValidationAtChance { error, guessing_error, train_loss },
                cause: "the labels of the two splits do not mean the same, or training images are learnt by heart".into(),
                remedy: Remedy::CheckClasses,
            });
        }
        if train_loss < WELL_LEARNT * task.guessing {
            let silent: BTreeSet<u32> = confusion.never_predicted().into_iter().collect();
            self.never.retain(|class, _| silent.contains(class));
            for class in silent {
                self.never.entry(class).or_insert((0, step)).0 += 1;
            }
            let lasting = self
                .never
                .iter()
                .filter(|&(_, &(epochs, since))| epochs >= NEVER && step - since >= NEVER_UPDATES);
            let classes: Vec<usize> = lasting.map(|(class, _)| *class as usize).collect();
            // The one with the fewest training images stands for all.
            if let Some(first) = classes.iter().min_by_key(|class| task.images[**class]) {
                let (cause, remedy) = task.never_predicted(*first);
                let classes = classes.iter().map(|class| task.classes[*class].clone()).collect();
                let sign = Sign::NeverPredicted { classes, epochs: NEVER };
                alarms.push(Alarm { sign, cause, remedy });
            }
        }
        alarms.into_iter().filter_map(|alarm| self.tell(alarm)).collect()
    }
}

/// Those circles of exchanged classes, each with what it is taken for, that are in both.
fn circles_of_both(before: &BTreeMap<u32, u32>, now: &BTreeMap<u32, u32>) -> BTreeMap<u32, u32> {
    let mut both = now.clone();
    both.retain(|class, taken_for| before.get(class) == Some(taken_for));
    // Of a circle that is in one of them only, parts may be left.
    while let Some(open) = both.iter().find(|(_, taken_for)| !both.contains_key(taken_for)) {
        let open = *open.0;
        both.remove(&open);
    }
    both
}

/// What an epoch's watched steps show.
pub(super) struct EpochNumbers {
    pub input_std: f64,
    pub images: usize,
    pub layers: Vec<LayerOfEpoch>,
    pub alarms: Vec<Alarm>,
}

/// A number to try: with one digit.
fn rounded(value: f64) -> f32 {
    format!("{value:.0e}").parse().unwrap_or(value as f32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Architecture;

    fn network() -> Network {
        Network::new(Architecture { classes: 10, ..Architecture::find("zfnet-mini").unwrap() })
            .unwrap()
    }

    fn names() -> Vec<String> {
        (0..10).map(|class| format!("class {class}")).collect()
    }

    fn task<'a>(network: &'a Network, classes: &'a [String]) -> Task<'a> {
        Task::new(network, classes, vec![50; classes.len()])
    }

    /// What a training shows that goes well.
    fn healthy(network: &Network) -> StepSigns {
        let layers =
            network.layers.iter().enumerate().filter(|(_, layer)| layer.convolution().is_some());
        let sign = |(index, _)| LayerSigns {
            layer: index,
            activation_mean: 0.2,
            activation_std: 0.5,
            gradient_std: 0.01,
            weight_rms: 0.02,
            update: 0.003,
            fired: vec![true; 16],
            shares: vec![1.0 / 16.0; 16],
        };
        StepSigns { samples: 32, input_std: 1.0, layers: layers.map(sign).collect() }
    }

    /// Losses of so many steps, after one watched step with these signs; the alarms.
    fn alarms_of(
        state: &mut WatchState,
        task: &Task<'_>,
        signs: &StepSigns,
        losses: impl IntoIterator<Item = f64>,
    ) -> Vec<(u32, Alarm)> {
        state.look(task, signs, 0.01);
        let tell = |(step, loss)| Some((step, state.step(task, step, loss, 0.01)?));
        (1..).zip(losses).filter_map(tell).collect()
    }

    #[test]
    fn the_loss_of_guessing_is_the_entropy_of_the_labels() {
        let (network, classes) = (network(), names());
        let guessing = |images: &[u32]| Task::new(&network, &classes, images.into()).guessing;
        assert!((guessing(&[7; 10]) - 10f64.ln()).abs() < 1e-12);
        let uneven = 0.25 * 4f64.ln() + 0.75 * (4.0 / 3.0f64).ln();
        assert!((guessing(&[3, 1, 0]) - uneven).abs() < 1e-12);
        assert_eq!(guessing(&[5, 0]), 0.0);
    }

    #[test]
    fn a_loss_that_stays_is_told_once_and_one_that_falls_is_not() {
        let (network, classes) = (network(), names());
        let task = task(&network, &classes);
        let signs = healthy(&network);
        let told = alarms_of(&mut WatchState::default(), &task, &signs, vec![2.301; 900]);
        assert_eq!(told.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [300]);
        let Sign::Stuck { updates, layers, .. } = &told[0].1.sign else { panic!("{:?}", told[0]) };
        assert_eq!((*updates, layers.len(), &told[0].1.remedy), (300, 8, &Remedy::CheckLabels));

        let falling = (0..900).map(|step| 2.35 - 0.001 * f64::from(step));
        assert_eq!(alarms_of(&mut WatchState::default(), &task, &signs, falling), []);
        // With many classes more updates are waited for.
        let many: Vec<String> = (0..1000).map(|class| class.to_string()).collect();
        assert_eq!(Task::new(&network, &many, vec![1; 1000]).patience(), 2000);
    }

    #[test]
    fn the_cause_follows_from_the_numbers() {
        let (network, classes) = (network(), names());
        let task = task(&network, &classes);
        let good = healthy(&network);
        let stuck = |first: &StepSigns, last: &StepSigns| {
            let mut state = WatchState::default();
            state.look(&task, &StepSigns { samples: 32, ..first.clone() }, 0.01);
            let told = alarms_of(&mut state, &task, last, vec![2.305; 300]);
            let [(300, alarm)] = told.as_slice() else { panic!("{told:?}") };
            (alarm.cause.clone(), alarm.remedy.clone())
        };
        let changed = |change: &dyn Fn(usize, &mut LayerSigns)| {
            let mut signs = good.clone();
            signs.layers.iter_mut().enumerate().for_each(|(place, layer)| change(place, layer));
            signs
        };
        // A hundredth of the usual update asks for a hundred times the rate, and no one for more.
        for update in [2e-5, 2e-9] {
            let slow = changed(&|_, layer| layer.update = update);
            let (cause, remedy) = stuck(&slow, &slow);
            assert!(cause.contains("too small"), "{cause}");
            assert_eq!(remedy, Remedy::LearningRate(1.0));
        }
        // Updates of a tenth are as small as those by labels without meaning, which cancel each other: only of the
        // former does the loss fall.
        let slow = changed(&|_, layer| layer.update = 2e-4);
        assert_eq!(stuck(&slow, &slow).1, Remedy::CheckLabels);
        let told = alarms_of(&mut WatchState::default(), &task, &slow, vec![2.299; 300]);
        assert_eq!(told[0].1.remedy, Remedy::LearningRate(0.1));
        // A single watched step does not decide.
        let mut state = WatchState::default();
        (0..7).for_each(|_| state.look(&task, &good, 0.01));
        let told = alarms_of(&mut state, &task, &slow, vec![2.299; 300]);
        assert_eq!(told[0].1.remedy, Remedy::CheckLabels);
        // The first step's logits are a thousandth of the input.
        let faded = changed(&|_, layer| {
            (layer.activation_mean, layer.activation_std) = (1e-3, 1e-3);
        });
        let (cause, remedy) = stuck(&faded, &good);
        assert!(cause.contains("died on its way up"), "{cause}");
        assert_eq!(remedy, Remedy::CheckStart, "it is drawn by He's way already");
        // What goes back to the first layer is a billionth of what there was.
        let vanishing = changed(&|place, layer| {
            layer.gradient_std = 10f64.powi(place as i32 - 8);
            layer.activation_std = 0.1f64.powi(place as i32);
            layer.activation_mean = 0.7 * layer.activation_std;
        });
        let (cause, remedy) = stuck(&vanishing, &vanishing);
        assert!(cause.contains("the signal dies"), "{cause}");
        assert_eq!(remedy, Remedy::CheckStart, "it is drawn by He's way already");
        // Pixels that were not divided, which may kill layers, too.
        let undivided = |signs: &StepSigns| StepSigns { input_std: 60.0, ..signs.clone() };
        let flat = undivided(&changed(&|_, layer| layer.activation_std = 0.0));
        let (cause, remedy) = stuck(&undivided(&good), &flat);
        assert!(cause.contains("a standard deviation of 60.000"), "{cause}");
        assert!(matches!(remedy, Remedy::InputStd(std) if std > 1000.0), "{remedy:?}");
        // Dead now, alive at first.
        let dead = changed(&|place, layer| {
            if place == 4 {
                layer.fired.fill(false);
                layer.activation_std = 0.0;
            }
        });
        let (cause, remedy) = stuck(&good, &dead);
        assert!(cause.contains("conv5 gives the same for all"), "{cause}");
        assert!(matches!(remedy, Remedy::LearningRate(rate) if rate < 0.01), "{remedy:?}");
        assert_eq!(stuck(&dead, &dead).1, Remedy::CheckStart);
        let biased =
            changed(&|_, layer| (layer.activation_mean, layer.activation_std) = (1.0, 0.01));
        assert_eq!(stuck(&biased, &biased).1, Remedy::ZeroBiases);
    }

    #[test]
    fn remedies_heed_the_recipe() {
        let mut architecture = Architecture::find("zfnet-mini").unwrap();
        architecture.recipe.init = Init::Normal;
        architecture.input.std = 1.0;
        let remedies = |rms_limit: f32| {
            let mut architecture = architecture.clone();
            architecture.recipe.rms_limit = rms_limit;
            let (network, classes) = (Network::new(architecture).unwrap(), names());
            let task = task(&network, &classes);
            [task.other_start(1.0), task.other_start(62.0), task.rms_limit()]
        };
        let [he, std, limit] = remedies(0.0);
        assert_eq!((he, std), (Remedy::HeInitialization, Remedy::InputStd(60.0)));
        assert_eq!(limit, Remedy::RmsLimit(0.1));
        assert_eq!(remedies(0.1)[2], Remedy::RmsLimit(0.05));
        assert_eq!(remedies(3.0)[2], Remedy::RmsLimit(0.1));
    }

    #[test]
    fn a_loss_that_rises_again_is_told_with_a_lower_rate() {
        let (network, classes) = (network(), names());
        let task = task(&network, &classes);
        let mut signs = healthy(&network);
        signs.layers[2].update = 0.4;
        let losses = (0..300).map(|step| if step < 150 { 1.0 } else { 4.0 });
        let told = alarms_of(&mut WatchState::default(), &task, &signs, losses);
        let [(_, alarm)] = told.as_slice() else { panic!("{told:?}") };
        assert!(matches!(alarm.sign, Sign::Rose { lowest, .. } if lowest == 1.0));
        assert!(alarm.cause.contains("conv3 was 40.0 %"), "{}", alarm.cause);
        assert_eq!(alarm.remedy, Remedy::LearningRate(5e-5));
        // An update counts as what it was of its own rate, which may have been reduced since.
        let mut state = WatchState::default();
        state.look(&task, &signs, 1.0);
        assert_eq!(state.lower_rate(0.1), Remedy::LearningRate(5e-3));
        assert_eq!(state.lower_rate(0.003), Remedy::LearningRate(1e-3));
    }

    #[test]
    fn dead_and_dominating_maps_are_told_at_the_end_of_an_epoch() {
        let (network, classes) = (network(), names());
        let task = task(&network, &classes);
        let mut signs = healthy(&network);
        signs.layers[1].fired[..9].fill(false); // 9 of 16
        signs.layers[3].fired[..8].fill(false); // half
        signs.layers[0].shares = [vec![0.7], vec![0.02; 15]].concat();
        let mut state = WatchState::default();
        state.look(&task, &StepSigns { samples: 200, ..signs.clone() }, 0.01);
        state.look(&task, &StepSigns { samples: 62, ..signs.clone() }, 0.01);
        let found = state.end_epoch(&task, &[Some(0.5); 8], 0.01).unwrap();
        assert_eq!((found.images, found.layers.len()), (262, 8));
        assert_eq!((found.layers[1].dead, found.layers[1].maps), (9, 16));
        let told: Vec<&Sign> = found.alarms.iter().map(|alarm| &alarm.sign).collect();
        assert!(
            matches!(told[1], Sign::Dominated { map: 0, share, .. } if (share - 0.7).abs() < 1e-12)
        );
        assert!(matches!(told[0], Sign::Dead { dead: 9, maps: 16, images: 262, .. }));
        assert_eq!(told.len(), 2);
        assert!(matches!(found.alarms[1].remedy, Remedy::RmsLimit(_)));
        let mut biased = signs.clone();
        for layer in &mut biased.layers {
            (layer.activation_mean, layer.activation_std) = (1.0, 0.1);
        }
        let mut began_so = WatchState::default();
        began_so.look(&task, &StepSigns { samples: 32, ..biased }, 0.01);
        let found = began_so.end_epoch(&task, &[None; 8], 0.01).unwrap();
        assert_eq!(found.alarms[0].remedy, Remedy::ZeroBiases);
        // Those of a training that is stuck were told with it.
        let mut stuck = WatchState { told: [STUCK.into()].into(), ..WatchState::default() };
        stuck.look(&task, &StepSigns { samples: 262, ..signs.clone() }, 0.01);
        assert!(stuck.end_epoch(&task, &[None; 8], 0.01).unwrap().alarms.is_empty());
        // It has learnt since.
        stuck.look(&task, &StepSigns { samples: 262, ..signs.clone() }, 0.01);
        stuck.lowest = Some(2.0);
        assert_eq!(stuck.end_epoch(&task, &[None; 8], 0.01).unwrap().alarms.len(), 2);
        // A map that fires once in an epoch is not dead, and what has been told is not told again.
        state.look(&task, &StepSigns { samples: 200, ..signs.clone() }, 0.01);
        state.look(&task, &StepSigns { samples: 200, ..healthy(&network) }, 0.01);
        let found = state.end_epoch(&task, &[None; 8], 0.01).unwrap();
        assert!(found.alarms.is_empty() && found.layers[1].dead == 0);
        assert!(state.end_epoch(&task, &[None; 8], 0.01).is_none(), "nothing was watched");
        // Epochs of few images tell only together.
        let mut state = WatchState::default();
        let told = (0..3).map(|_| {
            state.look(&task, &StepSigns { samples: 100, ..signs.clone() }, 0.01);
            state.end_epoch(&task, &[None; 8], 0.01).unwrap().alarms.len()
        });
        assert_eq!(told.collect::<Vec<_>>(), [1, 0, 1]); // the dominating map at once
    }

    #[test]
    fn a_class_that_is_never_predicted_is_told_after_three_epochs() {
        let (network, classes) = (network(), names());
        let task = task(&network, &classes);
        let mut confusion = Confusion::default();
        for class in 0..10 {
            (0..50).for_each(|_| confusion.add(class, if class == 6 { 1 } else { class }));
        }
        let mut state = WatchState::default();
        let told: Vec<usize> =
            (1..6).map(|epoch| state.validated(&task, 50 * epoch, 1.0, &confusion).len()).collect();
        assert_eq!(told, [0, 0, 1, 0, 0]);
        let mut images = vec![50; 10];
        assert_eq!(task.never_predicted(6).1, Remedy::CheckImages);
        images[6] = 7;
        let (cause, remedy) = Task::new(&network, &classes, images).never_predicted(6);
        assert!(cause.starts_with("only 7 training images of class 6, where"), "{cause}");
        assert_eq!(remedy, Remedy::MoreImages);
        // Epochs of ten updates are short.
        let mut state = WatchState::default();
        let told = (1..14).map(|epoch| state.validated(&task, 10 * epoch, 1.0, &confusion).len());
        assert_eq!(told.collect::<Vec<_>>(), [[0; 10].as_slice(), &[1, 0, 0]].concat());
        // Before anything is learnt it tells nothing.
        let mut state = WatchState::default();
        assert!((0..5).all(|_| state.validated(&task, 900, 1.5, &confusion).is_empty()));
    }

    #[test]
    fn classes_are_exchanged_if_two_validations_say_so() {
        let (network, classes) = (network(), names());
        let task = task(&network, &classes);
        let circle = |of: [usize; 2]| {
            let mut confusion = Confusion::default();
            for class in 0..10 {
                let taken_for = match of {
                    [a, b] if class == a => b,
                    [a, b] if class == b => a,
                    _ => class,
                };
                (0..50).for_each(|_| confusion.add(class, taken_for));
            }
            confusion
        };
        let told = |state: &mut WatchState, loss: f64, of: [usize; 2]| {
            state
                .validated(&task, 900, loss, &circle(of))
                .into_iter()
                .map(|alarm| alarm.sign)
                .next()
        };
        let mut state = WatchState::default();
        assert_eq!(told(&mut state, 1.0, [2, 5]), None);
        assert_eq!(told(&mut state, 1.0, [2, 6]), None, "another circle");
        assert_eq!(told(&mut state, 1.8, [2, 6]), None, "it has not learnt enough");
        assert_eq!(told(&mut state, 1.0, [2, 6]), None);
        let Some(Sign::Permuted { classes }) = told(&mut state, 1.0, [2, 6]) else {
            panic!("no alarm")
        };
        let pair = |a: &str, b: &str| [a.to_owned(), b.to_owned()];
        assert_eq!(classes, [pair("class 2", "class 6"), pair("class 6", "class 2")]);
        assert_eq!(told(&mut state, 1.0, [2, 6]), None, "once");
        // A circle that is in both, one that is now another, one that was not there.
        let before = BTreeMap::from([(0, 1), (1, 0), (2, 3), (3, 4), (4, 2)]);
        let now = BTreeMap::from([(0, 1), (1, 0), (2, 3), (3, 5), (5, 2), (6, 7), (7, 6)]);
        assert_eq!(circles_of_both(&before, &now), BTreeMap::from([(0, 1), (1, 0)]));
    }

    #[test]
    fn validation_at_chance_is_told_when_the_training_loss_has_fallen() {
        let (network, classes) = (network(), names());
        let task = task(&network, &classes);
        let mut confusion = Confusion::default();
        for class in 0..10 {
            (0..50).for_each(|image| confusion.add(class, image % 10));
        }
        assert!(WatchState::default().validated(&task, 900, 1.5, &confusion).is_empty());
        let told = WatchState::default().validated(&task, 900, 1.0, &confusion);
        assert!(
            matches!(told[0].sign, Sign::ValidationAtChance { guessing_error, .. } if guessing_error == 0.9)
        );
        // Better than guessing; one class alone; so few images that they tell nothing.
        let told = |images: &[(usize, usize, u32)]| {
            let mut confusion = Confusion::default();
            for &(class, predicted, count) in images {
                (0..count).for_each(|_| confusion.add(class, predicted));
            }
            WatchState::default().validated(&task, 900, 1.0, &confusion).len()
        };
        assert_eq!(told(&[(0, 0, 30), (0, 1, 20), (1, 0, 20), (1, 1, 30)]), 0);
        assert_eq!(told(&[(0, 0, 50)]), 0);
        assert_eq!(told(&[(0, 0, 1), (1, 0, 1)]), 0);
        // Always the class that is nearly all, and nearly all right where the other class is, too.
        assert_eq!(told(&[(0, 0, 980), (1, 0, 200)]), 1);
        assert_eq!(told(&[(0, 0, 950), (0, 1, 30), (1, 1, 20)]), 0);
    }

    #[test]
    fn what_is_kept_goes_on_as_if_it_had_not_been_interrupted() {
        let (network, classes) = (network(), names());
        let task = task(&network, &classes);
        let mut signs = healthy(&network);
        signs.layers[1].fired[..9].fill(false);
        let mut whole = WatchState::default();
        whole.look(&task, &StepSigns { samples: 7, ..signs.clone() }, 0.01);
        (1..=150)
            .for_each(|step| drop(whole.step(&task, step, 2.31 - 1e-5 / f64::from(step), 0.1)));
        let mut again: WatchState =
            serde_json::from_str(&serde_json::to_string_pretty(&whole).unwrap()).unwrap();
        assert_eq!(again, whole);
        // These signs have 16 maps a layer, which is not what the network has.
        assert!(WatchState::default().fits(&network) && !whole.fits(&network));
        for state in [&mut whole, &mut again] {
            (151..=400).for_each(|step| drop(state.step(&task, step, 2.3, 0.1)));
            state.end_epoch(&task, &[None; 8], 0.01);
        }
        assert_eq!(again, whole);
    }
}
