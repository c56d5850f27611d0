//! What training is watched for: signs that something is wrong, and what follows from the numbers beside them.
//!
//! Losses come with every step, the numbers of layers with a watched one (every few steps). All of it is a
//! function of the steps, and a part of the checkpoint, so that a run that is interrupted says the same.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};

use super::alarm::{Alarm, LayerNumbers, Remedy, Sign};
use crate::model::{LayerSigns, Network, StepSigns};

/// Losses whose mean is looked at.
const WINDOW: usize = 100;
/// Share of the loss of guessing above which nothing was learnt.
const GUESSING: f64 = 0.99;
/// Watched steps of an epoch, if it has enough of them.
const WATCHED: usize = 16;
/// Steps from one watched one to the next: at least so that watching costs little, at most so that a run of long
/// epochs is looked at often.
const BETWEEN: [usize; 2] = [6, 16];
/// Share of a layer's maps that may be dead.
const DEAD: f64 = 0.25;
/// Fewest dead maps that are worth an alarm.
const FEWEST_DEAD: usize = 4;
/// Share of a layer's energy that one map may have, and fewest maps that share it.
const DOMINATED: f64 = 0.6;
const FEWEST_MAPS: usize = 8;
/// Epochs in which a class may be predicted for no image.
const NEVER: u32 = 3;
/// Fewest validation images of a class that tell something.
const FEWEST_IMAGES: u32 = 5;
/// Share of a class's images that are taken for one other class, if the classes are exchanged.
const EXCHANGED: f64 = 0.5;
/// Share of weights by which an update moves them, in trainings that go well: far below this nothing is learnt,
/// far above nothing stays.
const USUAL_UPDATE: f64 = 2e-3;

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
    /// Loss of who knows only how frequent each class is in the training split.
    pub guessing: f64,
    /// Validation images of each class.
    pub val_counts: Vec<u32>,
    /// Pixels are divided by this.
    pub pixel_std: f64,
}

impl Task<'_> {
    /// The loss of guessing by frequencies of classes: their entropy.
    pub fn entropy(counts: &[u32]) -> f64 {
        let all: f64 = counts.iter().map(|count| f64::from(*count)).sum();
        let shares = counts.iter().filter(|count| **count > 0).map(|count| f64::from(*count) / all);
        -shares.map(|share| share * share.ln()).sum::<f64>()
    }

    /// Updates after which the loss should have left that of guessing: more for more classes.
    fn patience(&self) -> u32 {
        (2 * self.classes.len()).clamp(300, 2000) as u32
    }

    /// Validation error of who always says the most frequent class.
    fn guessing_error(&self) -> f64 {
        let all: u32 = self.val_counts.iter().sum();
        1.0 - f64::from(self.val_counts.iter().copied().max().unwrap_or(0)) / f64::from(all.max(1))
    }
}

/// What a watched step shows, as it is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Numbers {
    input_std: f64,
    layers: Vec<LayerNumbers>,
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
        Numbers { input_std: signs.input_std, layers: signs.layers.iter().map(numbers).collect() }
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

    /// The largest standard deviation there is, of the last layer: the logits.
    fn logits(&self) -> Option<&LayerNumbers> {
        self.layers.last()
    }
}

/// What is kept of a layer over an epoch.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct OfEpoch {
    /// Sums over watched steps of mean, standard deviation, gradient, weights, update.
    sums: [f64; 5],
    /// Maps in all; 0 where no relu follows.
    maps: usize,
    /// Maps that have not fired so far.
    silent: Vec<u32>,
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
    /// Their lowest mean.
    lowest: Option<f64>,
    /// What the first watched step has shown, and the last.
    first: Option<Numbers>,
    last: Option<Numbers>,
    /// Of the epoch in hand: watched steps, their images, the sum of input deviations, layers.
    watched: u32,
    images: usize,
    input_stds: f64,
    layers: Vec<OfEpoch>,
    /// Classes that have been predicted for no image, and in how many epochs one after the other.
    never: BTreeMap<u32, u32>,
}

impl WatchState {
    /// Takes in what a watched step of so many images shows.
    pub(super) fn look(&mut self, task: &Task<'_>, signs: &StepSigns, images: usize) {
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
            if self.watched == 0 {
                kept.maps = layer.fired.len();
                kept.silent = (0..layer.fired.len() as u32).collect();
                kept.shares = vec![0.0; layer.shares.len()];
            }
            kept.silent.retain(|map| !layer.fired[*map as usize]);
            kept.shares.iter_mut().zip(&layer.shares).for_each(|(sum, share)| *sum += share);
        }
        self.watched += 1;
        self.images += images;
        self.input_stds += numbers.input_std;
        self.first.get_or_insert_with(|| numbers.clone());
        self.last = Some(numbers);
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
        if step >= task.patience() && stuck {
            return self.tell(self.stuck(task, step, mean, rate));
        }
        // A training that has learnt something and forgets it, or leaves guessing upwards.
        let rose =
            mean > 2.0 * guessing.max(lowest) || (lowest < 0.8 * guessing && mean > guessing);
        if rose {
            let sign = Sign::Rose { loss: mean, lowest, guessing };
            let (cause, remedy) = self.too_far(task, rate);
            return self.tell(Alarm { sign, cause, remedy });
        }
        None
    }

    /// The alarm, if it is the first of its kind.
    fn tell(&mut self, alarm: Alarm) -> Option<Alarm> {
        self.told.insert(alarm.sign.key()).then_some(alarm)
    }

    fn stuck(&self, task: &Task<'_>, updates: u32, loss: f64, rate: f32) -> Alarm {
        let (layers, input_std) = match &self.last {
            Some(last) => (last.layers.clone(), last.input_std),
            None => (Vec::new(), 0.0),
        };
        let (cause, remedy) = self.why_stuck(task, rate);
        let guessing = task.guessing;
        Alarm { sign: Sign::Stuck { loss, guessing, updates, input_std, layers }, cause, remedy }
    }

    /// Why nothing is learnt, by the numbers of the first and the last watched step.
    fn why_stuck(&self, task: &Task<'_>, rate: f32) -> (String, Remedy) {
        let (Some(first), Some(last)) = (&self.first, &self.last) else {
            return ("nothing was watched".into(), Remedy::CheckLabels);
        };
        let dead = |layer: &&OfEpoch| {
            layer.maps > 0 && layer.silent.len() as f64 >= 0.9 * layer.maps as f64
        };
        if let Some(place) = self.layers.iter().position(|layer| dead(&layer)) {
            let layer = &self.layers[place];
            let cause = format!(
                "{} of {} maps of {} are dead, so nothing passes it",
                layer.silent.len(),
                layer.maps,
                last.layers[place].layer
            );
            return match first.layers[place].activation_std > 0.0 {
                true => (format!("{cause}: updates too large"), self.lower_rate(rate)),
                false => (cause, Remedy::HeInitialization),
            };
        }
        if let Some(layer) = last.layers.iter().find(|layer| {
            layer.activation_mean.abs() > 20.0 * layer.activation_std && layer.activation_std > 0.0
        }) {
            let cause = format!(
                "{} gives {:.3} for every image, with a standard deviation of {:.4}: biases hide the signal",
                layer.layer, layer.activation_mean, layer.activation_std
            );
            return (cause, Remedy::ZeroBiases);
        }
        if let (Some(logits), Some((gain, weakest))) = (last.logits(), last.weakest_link())
            && logits.activation_std < 1e-2
        {
            let cause = format!(
                "the signal dies on its way: logits have a standard deviation of {:.1e}; {} gives {:.4} of what it \
                 gets",
                logits.activation_std, weakest.layer, gain
            );
            return (cause, Remedy::HeInitialization);
        }
        match last.largest_update() {
            Some(layer) if layer.update < USUAL_UPDATE / 5.0 => {
                let cause = format!(
                    "updates are too small: the largest, of {}, moves its weights by {:.1e} of their size",
                    layer.layer, layer.update
                );
                let wanted = USUAL_UPDATE / layer.update.max(1e-12);
                (cause, Remedy::LearningRate(rounded(f64::from(rate) * wanted.min(10.0))))
            }
            Some(layer) if layer.update > 10.0 * USUAL_UPDATE => self.too_far(task, rate),
            _ => {
                let cause = "signal and updates are as they should be, so the labels may tell nothing of the images"
                    .to_owned();
                (cause, Remedy::CheckLabels)
            }
        }
    }

    /// Why a loss has risen, by the numbers of the first and the last watched step.
    fn too_far(&self, task: &Task<'_>, rate: f32) -> (String, Remedy) {
        let (Some(first), Some(last)) = (&self.first, &self.last) else {
            return (
                "updates too large".into(),
                Remedy::LearningRate(rounded(f64::from(rate) / 10.0)),
            );
        };
        if let Some(logits) = first.logits()
            && logits.activation_std > 10.0
        {
            let cause = format!(
                "the signal was too large from the start: logits with a standard deviation of {:.3}, of an input \
                 with {:.3}",
                logits.activation_std, first.input_std
            );
            return match first.input_std > 10.0 {
                true => {
                    let std = task.pixel_std * first.input_std;
                    (cause, Remedy::InputStd(rounded(std)))
                }
                false => (cause, Remedy::HeInitialization),
            };
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

    /// A learning rate that would have held, by the updates of the first and the last watched step.
    fn lower_rate(&self, rate: f32) -> Remedy {
        let numbers = [&self.first, &self.last].into_iter().flatten();
        let largest = numbers.filter_map(|numbers| Some(numbers.largest_update()?.update));
        let times = largest.fold(0.0, f64::max) / (2.0 * USUAL_UPDATE);
        Remedy::LearningRate(rounded(f64::from(rate) / times.clamp(3.0, 100.0)))
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
        let (cause, remedy) = self.too_far(task, rate);
        Alarm { sign: Sign::NotFinite { layer, files }, cause, remedy }
    }

    /// Ends an epoch: what was seen of each layer, and how many images were looked at; `initial_shares` holds one
    /// for each.
    pub(super) fn end_epoch(&mut self, initial_shares: &[Option<f64>]) -> Option<EpochNumbers> {
        let watched = std::mem::take(&mut self.watched);
        let images = std::mem::take(&mut self.images);
        let input_std = std::mem::take(&mut self.input_stds) / f64::from(watched.max(1));
        let layers = std::mem::take(&mut self.layers);
        let last = self.last.as_ref().filter(|_| watched > 0)?;
        let layer = |((kept, last), initial_share): ((&OfEpoch, &LayerNumbers), &Option<f64>)| {
            let [activation_mean, activation_std, gradient_std, weight_rms, update] =
                kept.sums.map(|sum| sum / f64::from(watched));
            let layer = last.layer.clone();
            LayerOfEpoch {
                numbers: LayerNumbers {
                    layer,
                    activation_mean,
                    activation_std,
                    gradient_std,
                    weight_rms,
                    update,
                },
                dead: kept.silent.len(),
                maps: kept.maps,
                initial_share: *initial_share,
            }
        };
        let of_layers = layers.iter().zip(&last.layers).zip(initial_shares).map(layer).collect();
        let mut alarms = Vec::new();
        for (kept, numbers) in layers.iter().zip(&last.layers) {
            let name = || numbers.layer.clone();
            let dead = kept.silent.len();
            if dead >= FEWEST_DEAD && dead as f64 > DEAD * kept.maps as f64 {
                alarms.push(Alarm {
                    sign: Sign::Dead { layer: name(), dead, maps: kept.maps, images },
                    cause: format!(
                        "updates that threw their weights to where no image reaches them (the last was {:.1} % of \
                         the layer’s weights)",
                        100.0 * numbers.update
                    ),
                    remedy: Remedy::HeInitialization,
                });
            }
            let shares = kept.shares.iter().enumerate();
            if let Some((map, sum)) = shares.max_by(|a, b| a.1.total_cmp(b.1)) {
                let share = sum / f64::from(watched);
                if share > DOMINATED && kept.shares.len() >= FEWEST_MAPS {
                    alarms.push(Alarm {
                        sign: Sign::Dominated { layer: name(), map, share },
                        cause:
                            "one filter has grown beyond all others, as in the paper’s Figure 6(a)"
                                .into(),
                        remedy: Remedy::RmsLimit(0.1),
                    });
                }
            }
        }
        let alarms = alarms.into_iter().filter_map(|alarm| self.tell(alarm)).collect();
        Some(EpochNumbers { input_std, images, layers: of_layers, alarms })
    }

    /// Takes in what was validated: `confusion[class][predicted]` counts images.
    pub(super) fn validated(
        &mut self,
        task: &Task<'_>,
        train_loss: f64,
        error: f64,
        confusion: &Confusion,
    ) -> Vec<Alarm> {
        let mut alarms = Vec::new();
        let guessing_error = task.guessing_error();
        let has_learnt = train_loss < 0.8 * task.guessing;
        if has_learnt && let Some(classes) = confusion.exchanged(task.classes) {
            alarms.push(Alarm {
                sign: Sign::Permuted { classes },
                cause: "these classes do not stand for the same in both splits".into(),
                remedy: Remedy::CheckClasses,
            });
        } else if has_learnt && error > guessing_error - 0.02 {
            alarms.push(Alarm {
                sign: Sign::ValidationAtChance { error, guessing_error, train_loss },
                cause: "the labels of the two splits do not mean the same, or training images are learnt by heart".into(),
                remedy: Remedy::CheckClasses,
            });
        }
        let silent: BTreeSet<u32> = confusion.never_predicted(FEWEST_IMAGES).into_iter().collect();
        self.never.retain(|class, _| silent.contains(class));
        for class in silent {
            *self.never.entry(class).or_default() += 1;
        }
        let lasting = self.never.iter().filter(|(_, epochs)| **epochs >= NEVER);
        let classes: Vec<String> =
            lasting.map(|(class, _)| task.classes[*class as usize].clone()).collect();
        if has_learnt && !classes.is_empty() {
            alarms.push(Alarm {
                sign: Sign::NeverPredicted { classes, epochs: NEVER },
                cause: "too few training images of it, or images that belong to other classes"
                    .into(),
                remedy: Remedy::CheckImages,
            });
        }
        alarms.into_iter().filter_map(|alarm| self.tell(alarm)).collect()
    }
}

/// What an epoch's watched steps show.
pub(super) struct EpochNumbers {
    pub input_std: f64,
    pub images: usize,
    pub layers: Vec<LayerOfEpoch>,
    pub alarms: Vec<Alarm>,
}

/// How many images of each class were taken for which.
pub(super) struct Confusion {
    classes: usize,
    counts: Vec<u32>,
}

impl Confusion {
    pub fn new(classes: usize) -> Self {
        Confusion { classes, counts: vec![0; classes * classes] }
    }

    pub fn add(&mut self, class: usize, predicted: usize) {
        self.counts[class * self.classes + predicted] += 1;
    }

    fn of(&self, class: usize) -> &[u32] {
        &self.counts[class * self.classes..][..self.classes]
    }

    /// Classes with at least so many images, none of which, nor of any other class, is taken for them.
    fn never_predicted(&self, images: u32) -> Vec<u32> {
        let is_silent = |class: &usize| {
            let predicted: u32 = (0..self.classes).map(|other| self.of(other)[*class]).sum();
            predicted == 0 && self.of(*class).iter().sum::<u32>() >= images
        };
        (0..self.classes).filter(is_silent).map(|class| class as u32).collect()
    }

    /// Classes most of whose images are taken for one other class, that class's for another one of them, and so on
    /// until the circle is closed; with what each is taken for.
    fn exchanged(&self, names: &[String]) -> Option<Vec<[String; 2]>> {
        let mostly: Vec<usize> = (0..self.classes)
            .map(|class| {
                let counts = self.of(class);
                let all: u32 = counts.iter().sum();
                let most = (0..self.classes).max_by_key(|other| counts[*other]).unwrap_or(class);
                let is_most = all > 0 && f64::from(counts[most]) > EXCHANGED * f64::from(all);
                if is_most { most } else { class }
            })
            .collect();
        let in_circle = |class: &usize| {
            let mut at = mostly[*class];
            for _ in 0..self.classes {
                if at == *class {
                    return mostly[*class] != *class;
                }
                at = mostly[at];
            }
            false
        };
        let circle: Vec<[String; 2]> = (0..self.classes)
            .filter(in_circle)
            .map(|class| [names[class].clone(), names[mostly[class]].clone()])
            .collect();
        (!circle.is_empty()).then_some(circle)
    }
}

/// A number to try: with one digit.
fn rounded(value: f64) -> f32 {
    format!("{value:.0e}").parse().unwrap_or(value as f32)
}
