//! The paper's Tables 4 and 5: how well frozen features tell classes apart that the network never saw,
//! from few images of each.
//!
//! For every fold (`folds.rs`) and number of images a class, a softmax (`linear.rs`) is
//! trained on the rows of the training images ([`super::activations`]) and measured on those of the test
//! images by the mean over the classes of the share that is right. Beside it stand whole networks of the
//! same architecture ([`super::small_data`]), trained on the same images from random weights or from the
//! checkpoint's. Test images that are nearly the same as one that the network was trained on
//! (`duplicates.rs`) are left out.
//!
//! All methods see the same: in training crops as the checkpoint's recipe cuts them (a network a new one in each
//! epoch, a softmax [`Settings::crops`] of each image), in tests the centre. And all choose one setting in the
//! same way: for each number of images what is best on the centre crops of a held-out fifth of the *first*
//! fold's training images (the softmax its `C`, networks their learning rate), which then holds for all folds.
//! Nothing is chosen by test images.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::activations::{LIMIT, Rows, Views, rows, union};
use super::folds::{Fold, by_class, folds, shared};
use super::linear::{Loss, Problem, ROWS, mean_class_accuracy};
use super::parts::Parts;
use super::small_data::{Squares, Start, Training, accuracy, choose_rate, train_few};
use super::{Facts, Session, Splits, Study};
use crate::Result;
use crate::backend::Backend;
use crate::data::images::Images;
use crate::model::Model;
use crate::train::Crops;
use crate::train::duplicates::{Pair, pairs, thumbnails};

/// See [`super::STUDIES`].
pub const STUDY: Study = Study {
    name: "transfer",
    shows: "the features on other classes",
    paper: "Tables 4 and 5",
    of_one_run: true,
};

/// The method of frozen features of a layer.
pub fn frozen_name(layer: &str) -> String {
    format!("frozen, {layer}")
}

/// What is trained, on how many images.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Settings {
    /// Indices of the layers whose outputs are used, one after another.
    pub layers: Vec<usize>,
    /// Numbers of training images of each class, ascending, at least one.
    pub per_class: Vec<usize>,
    /// How often images are drawn, at least once.
    pub folds: usize,
    /// Test images of each class, at most.
    pub test_per_class: usize,
    /// Seed of the folds and of the crops.
    pub seed: u64,
    /// Training crops of each image that a softmax is trained on, at least one. Fewer are taken where so many would be
    /// too many rows ([`Transfer::crops`]).
    pub crops: usize,
    /// How the whole networks start that are trained beside the softmax.
    pub starts: Vec<Start>,
    /// Updates of the weights of each of these.
    pub updates: u32,
    /// Learning rates that they choose from, as shares of the recipe's, ascending; at least one.
    pub rates: Vec<f32>,
    /// Correlation of thumbnails from which on two images are near-duplicates.
    pub duplicate_threshold: f32,
}

impl Settings {
    /// The largest number of training images of a class.
    fn most(&self) -> usize {
        self.per_class.last().copied().unwrap_or(0)
    }
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Transfer {
    /// What it was made with.
    pub facts: Facts,
    /// Number of classes of the images.
    pub classes: usize,
    /// The names of the layers whose outputs were used.
    pub layers: Vec<String>,
    /// Training crops of each image that a softmax was trained on.
    pub crops: usize,
    /// Where all training crops were cut.
    pub cut: Crops,
    /// Images of an update of a whole network, at most.
    pub batch_size: usize,
    /// What was asked for.
    pub settings: Settings,
    /// Training images, then test images, that are nearly the same as one that the network was trained on;
    /// `None` if they were not searched for.
    pub duplicates: Option<Vec<Duplicate>>,
    /// How many classes have too few training images for folds that share none, and how many too few
    /// validation images.
    pub shared: [usize; 2],
    /// The frozen features, then each start: every number of images, every fold.
    pub scored: Vec<TransferScore>,
}

/// An image with a near-duplicate.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Duplicate {
    /// Its file.
    pub image: String,
    /// The file of the image most like it that the network was trained on.
    pub trained_on: String,
    /// Their correlation.
    pub correlation: f32,
    /// Whether one is the other mirrored.
    pub mirrored: bool,
    /// Its index among the test images, which it is left out of; `None` if it is a training image.
    pub test: Option<u32>,
}

/// What one fold gave with so many images a class.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TransferScore {
    /// What was trained: [`frozen_name`], or [`Start::name`].
    pub method: String,
    /// Training images of each class.
    pub per_class: usize,
    /// Which fold, from 0.
    pub fold: usize,
    /// Training images; bad ones are left out.
    pub train: usize,
    /// Test images; bad ones and near-duplicates are left out.
    pub test: usize,
    /// Mean over the classes of the share of test images that is right.
    pub accuracy: f64,
    /// The same of the training images, centre crop: what is far below 1 was not trained to its end.
    pub accuracy_in_training: f64,
    /// What was chosen in the first fold: a softmax's `C`, a network's share of the recipe's learning rate.
    pub setting: f64,
    /// Share of that rate at which a network was trained: below 1 if its loss ran away before.
    pub lowered: f32,
}

/// What a method has given.
struct Measured {
    images: [usize; 2],
    accuracy: [f64; 2],
    setting: f64,
    lowered: f32,
}

/// Draws the folds.
///
/// # Errors
/// If a number is 0, or a class has no validation image or too few training images.
pub fn draw(settings: &Settings, data: &Splits) -> Result<Vec<Fold>> {
    let [train, val] = [&data.train, &data.val].map(|images| by_class(images, data.classes.len()));
    let Settings { folds: count, test_per_class, seed, .. } = *settings;
    folds(&train, &val, &data.classes.names, settings.most(), test_per_class, count, seed)
}

/// Trains and measures every method; `pretrained_on` are the images that the network was trained on. The
/// features are kept beside the session's parts, for later calls.
///
/// # Errors
/// As [`draw`]; if images cannot be read, features are not finite or do not fit into memory, a loss runs
/// away, parts cannot be kept, or a backend operation fails.
pub fn run<B: Backend>(
    session: &mut Session<'_, B>,
    model: &Model<B>,
    settings: &Settings,
    data: &Splits,
    pretrained_on: Option<&Images>,
) -> Result<Transfer> {
    let Settings { folds: count, test_per_class, seed, updates, .. } = *settings;
    let folds = draw(settings, data)?;
    let of_folds =
        |of: &dyn Fn(&Fold) -> Vec<u32>| union(&folds.iter().map(of).collect::<Vec<_>>());
    let most = settings.most();
    let (trained, tested) = (of_folds(&|fold| fold.train(most)), of_folds(&Fold::test));
    let threshold = settings.duplicate_threshold;
    let duplicates =
        pretrained_on.map(|seen| search(data, [&trained, &tested], seen, threshold)).transpose()?;
    let excluded: Vec<u32> = duplicates.iter().flatten().filter_map(|found| found.test).collect();
    let fingerprints = data.fingerprints();
    let indices = (&trained, &tested, &excluded, seed, count, test_per_class, most);
    let parts = session.parts(&[model], &(fingerprints, indices))?;
    let trials = Trials {
        folds: &folds,
        per_class: &settings.per_class,
        excluded: &excluded,
        parts: &parts,
    };

    let kept = session.out().map(|out| out.join(".features"));
    let (backend, workers, classes) = (session.backend, session.workers, &data.classes);
    let cut = model.network.architecture.recipe.crops;
    let crops = crops_of(settings, model, trained.len(), classes.len());
    let mut scored = Vec::new();
    for &layer in &settings.layers {
        let name = &model.network.layers[layer].name;
        let mut features = |of: &str, images: &Arc<Images>, wanted: &[u32], views| {
            let kept = kept.as_deref();
            rows(backend, model, images, wanted, &[layer], views, kept, workers, |done, all| {
                session.progress(&format!("{of} features of {name}"), done, all, "");
            })
            .map(|mut rows| rows.remove(0))
        };
        let views = Views::Training { crops: cut, count: crops, seed };
        let features = Features {
            train: features("training", &data.train, &trained, views)?,
            centre: features("centre", &data.train, &trained, Views::Centre)?,
            test: features("test", &data.val, &tested, Views::Centre)?,
            classes: classes.len(),
        };
        scored.extend(trials.score(
            &frozen_name(name),
            &format!("frozen-{layer}-{crops}"),
            |trained, tested, fold, known| features.measure(trained, tested, fold, known),
            |done, of| session.progress(&format!("softmax on {name}"), done, of, ""),
        )?);
    }
    let read = |images: &Images, wanted: &[u32]| match settings.starts.is_empty() {
        true => Ok(Squares::default()),
        false => Squares::read(images, wanted),
    };
    let (train, test) = (read(&data.train, &trained)?, read(&data.val, &tested)?);
    let rates: Vec<String> = settings.rates.iter().map(f32::to_string).collect();
    for &start in &settings.starts {
        let name = start.name();
        scored.extend(trials.score(
            name,
            &format!("{name}-{updates}-{}", rates.join("_")),
            |trained, tested, fold, known| {
                let (train, test) = (train.part(trained), test.part(tested));
                let training = Training { start, updates, rate: 1.0, seed: fold };
                let rate = match known {
                    Some(rate) => rate as f32,
                    None => {
                        choose_rate(backend, model, classes, &train, training, &settings.rates)?
                    }
                };
                let training = Training { rate, ..training };
                let (model, lowered) = train_few(backend, model, classes, &train, training)?;
                let accuracy = |squares| accuracy(backend, &model, squares);
                Ok(Measured {
                    images: [train.labels.len(), test.labels.len()],
                    accuracy: [accuracy(&train)?, accuracy(&test)?],
                    setting: f64::from(rate),
                    lowered,
                })
            },
            |done, of| session.progress(&format!("networks {name}"), done, of, ""),
        )?);
    }
    let few = [(&data.train, most), (&data.val, test_per_class)];
    Ok(Transfer {
        facts: session.facts.clone(),
        classes: classes.len(),
        layers: settings.layers.iter().map(|&i| model.network.layers[i].name.clone()).collect(),
        crops,
        cut,
        batch_size: model.network.architecture.recipe.batch_size,
        settings: settings.clone(),
        duplicates,
        shared: few
            .map(|(images, each)| shared(&by_class(images, classes.len()), each, count).len()),
        scored,
    })
}

/// Training crops of each image: as many as are asked for, unless that makes more rows than a classifier or the memory
/// for features takes, and one if all are the same.
fn crops_of<B: Backend>(
    settings: &Settings,
    model: &Model<B>,
    images: usize,
    classes: usize,
) -> usize {
    if model.network.architecture.recipe.crops == Crops::Centre {
        return 1;
    }
    let width = |&layer: &usize| model.network.layers[layer].output.per_image();
    let widest = settings.layers.iter().map(width).max().unwrap_or(1);
    let of_classifier = ROWS / settings.most().saturating_mul(classes).max(1);
    let of_memory = LIMIT / 4 / widest.saturating_mul(images).max(1);
    settings.crops.min(of_classifier).min(of_memory).max(1)
}

/// An image as `SPLIT/CLASS/FILE`, wherever its set is.
fn in_set(path: &Path) -> String {
    let mut parts: Vec<_> = path.components().rev().take(3).collect();
    parts.reverse();
    parts.iter().collect::<PathBuf>().display().to_string()
}

/// Searches the training and the test images of all folds for near-duplicates of images in `seen`.
fn search(
    data: &Splits,
    [trained, tested]: [&[u32]; 2],
    seen: &Images,
    threshold: f32,
) -> Result<Vec<Duplicate>> {
    let all: Vec<u32> = (0..seen.len() as u32).collect();
    let second = thumbnails(seen, &all)?;
    let mut duplicates = Vec::new();
    for (images, wanted, is_test) in [(&data.train, trained, false), (&data.val, tested, true)] {
        let first = thumbnails(images, wanted)?;
        for Pair { first, second, correlation, mirrored } in pairs(&first, &second, threshold) {
            let index = wanted[first];
            duplicates.push(Duplicate {
                image: in_set(&images.path(index as usize)),
                trained_on: in_set(&seen.path(second)),
                correlation,
                mirrored,
                test: is_test.then_some(index),
            });
        }
    }
    Ok(duplicates)
}

/// What every method is trained and measured on.
struct Trials<'a> {
    folds: &'a [Fold],
    per_class: &'a [usize],
    /// Test images that are left out, ascending.
    excluded: &'a [u32],
    /// Their settings hold all the above but `per_class`.
    parts: &'a Parts,
}

impl Trials<'_> {
    /// Scores a method with every number of images and every fold. `measure` is given indices of images
    /// to train and to test on, the number of the fold, and what was chosen in the first one, which is itself given none.
    /// What there is of it under the name `part` is not measured again. `progress` is called with how much is done, and of how much.
    fn score(
        &self,
        method: &str,
        part: &str,
        measure: impl Fn(&[u32], &[u32], u64, Option<f64>) -> Result<Measured>,
        mut progress: impl FnMut(usize, usize),
    ) -> Result<Vec<TransferScore>> {
        let mut all: Vec<TransferScore> = Vec::new();
        for &per_class in self.per_class {
            let mut chosen = None;
            for (number, fold) in self.folds.iter().enumerate() {
                let scored =
                    self.parts.get_or_make(&format!("{part}-{per_class}-{number}"), || {
                        let mut tested = fold.test();
                        tested.retain(|image| self.excluded.binary_search(image).is_err());
                        let Measured { images, accuracy, setting, lowered } =
                            measure(&fold.train(per_class), &tested, number as u64, chosen)?;
                        Ok(TransferScore {
                            method: method.to_owned(),
                            per_class,
                            fold: number,
                            train: images[0],
                            test: images[1],
                            accuracy: accuracy[1],
                            accuracy_in_training: accuracy[0],
                            setting,
                            lowered,
                        })
                    })?;
                chosen = Some(scored.setting);
                all.push(scored);
                progress(all.len(), self.per_class.len() * self.folds.len());
            }
        }
        Ok(all)
    }
}

/// What a layer makes of the images of all folds.
struct Features {
    /// Of training crops of the training images.
    train: Rows,
    /// Of their centre crops.
    centre: Rows,
    /// Of the centre crops of the test images.
    test: Rows,
    classes: usize,
}

impl Features {
    /// Trains a softmax on the rows of some images, and measures it on those of others; images that have no
    /// row, as bad ones, are left out. `C` is chosen unless it is known.
    fn measure(
        &self,
        trained: &[u32],
        tested: &[u32],
        seed: u64,
        known: Option<f64>,
    ) -> Result<Measured> {
        let Features { train, centre, test, classes } = self;
        let problem = Problem::new(train, &train.positions(trained), *classes, seed)?;
        let setting = known.unwrap_or_else(|| problem.best_on(Loss::Softmax, centre));
        let softmax = problem.fit(Loss::Softmax, setting).linear;
        let measured = [(centre, trained), (test, tested)].map(|(rows, images)| {
            let picked = rows.positions(images);
            let truth: Vec<u32> = picked.iter().map(|&i| rows.classes[i]).collect();
            let found = softmax.predict(rows, &picked);
            (picked.len(), mean_class_accuracy(&truth, &found, *classes))
        });
        Ok(Measured {
            images: measured.map(|of| of.0),
            accuracy: measured.map(|of| of.1),
            setting,
            lowered: 1.0,
        })
    }
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::{Rng, SeedableRng};

    use super::*;
    use crate::data::order::shuffle;
    use crate::study::folds::folds;

    const CLASSES: usize = 3;

    /// Noisy rows around a corner of their own for each class, image by image.
    fn rows(each: usize, seed: u64) -> Rows {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let classes: Vec<u32> = (0..(CLASSES * each) as u32).map(|i| i / each as u32).collect();
        let mut noise = || random.next_u32() as f32 / u32::MAX as f32 * 2.0 - 1.0;
        let row = |class: &u32| {
            let mut row: Vec<f32> = (0..8).map(|_| noise()).collect();
            row[*class as usize] += 2.0;
            row
        };
        let values = classes.iter().flat_map(row).collect();
        Rows { width: 8, values, images: (0..classes.len() as u32).collect(), classes }
    }

    fn drawn(each: usize, tested: usize) -> Vec<Fold> {
        let of_class = |each: usize| -> Vec<Vec<u32>> {
            (0..CLASSES).map(|c| (c * each..(c + 1) * each).map(|i| i as u32).collect()).collect()
        };
        let names = ["a", "b", "c"].map(String::from);
        folds(&of_class(each), &of_class(tested), &names, 20, 40, 3, 0).unwrap()
    }

    fn scored(
        train: &Rows,
        test: &Rows,
        folds: &[Fold],
        per_class: &[usize],
        excluded: &[u32],
        parts: &Parts,
    ) -> Vec<TransferScore> {
        let [train, centre, test] = [train, train, test].map(Rows::clone);
        let features = Features { train, centre, test, classes: CLASSES };
        let one = |trained: &[u32], tested: &[u32], fold, known| {
            features.measure(trained, tested, fold, known)
        };
        let trials = Trials { folds, per_class, excluded, parts };
        trials.score("frozen", "frozen", one, |_, _| ()).unwrap()
    }

    /// Each fold is given what the first has chosen, and the first nothing.
    #[test]
    fn a_setting_is_chosen_in_the_first_fold() {
        let folds = drawn(60, 120);
        let trials =
            Trials { folds: &folds, per_class: &[5, 20], excluded: &[], parts: &Parts::none() };
        let measure = |trained: &[u32], _: &[u32], fold, known: Option<f64>| {
            assert_eq!(known.is_none(), fold == 0);
            let setting = known.unwrap_or(trained.len() as f64);
            Ok(Measured { images: [1; 2], accuracy: [1.0, 0.5], setting, lowered: 1.0 })
        };
        let all = trials.score("m", "m", measure, |_, _| ()).unwrap();
        let settings: Vec<f64> = all.iter().map(|of| of.setting).collect();
        assert_eq!(settings, [15.0, 15.0, 15.0, 60.0, 60.0, 60.0]);
        assert!(all.iter().all(|of| (of.accuracy, of.accuracy_in_training) == (0.5, 1.0)));
    }

    #[test]
    fn features_that_tell_classes_apart_do_and_shuffled_labels_are_at_chance() {
        let (mut train, mut test) = (rows(60, 1), rows(120, 2));
        let folds = drawn(60, 120);
        let accuracy = |train: &Rows, test: &Rows| {
            let scored = scored(train, test, &folds, &[20], &[], &Parts::none());
            assert!(scored.iter().all(|of| (of.train, of.test) == (60, 120)));
            scored.iter().map(|of| of.accuracy).sum::<f64>() / scored.len() as f64
        };
        assert!(accuracy(&train, &test) > 0.9);
        let mut random = ChaCha8Rng::seed_from_u64(3);
        shuffle(&mut random, &mut train.classes);
        shuffle(&mut random, &mut test.classes);
        // 360 draws with a chance of a third: four deviations of a binomial.
        let deviation = (1.0 / 3.0 * 2.0 / 3.0 / 360.0f64).sqrt();
        let found = accuracy(&train, &test);
        assert!((found - 1.0 / 3.0).abs() < 4.0 * deviation, "{found}");
    }

    #[test]
    fn parts_are_taken_and_excluded_or_bad_images_left_out() {
        let (train, mut test) = (rows(60, 1), rows(120, 2));
        let folds = drawn(60, 120);
        let gone = folds[0].test()[0];
        let out = tempfile::tempdir().unwrap();
        let parts = Parts::open(out.path(), &0).unwrap();
        let run = |test: &Rows| scored(&train, test, &folds, &[5, 20], &[gone], &parts);
        let first = run(&test);
        assert_eq!(first.len(), 6);
        assert_eq!(first[0].test, 119);
        assert_eq!((first[0].train, first[3].train), (15, 60));
        // Nothing is computed again: the rows are of no use any more.
        test.values.fill(0.0);
        assert_eq!(run(&test), first);
        // One part is lost, and an image has turned bad.
        parts.put("frozen-5-0", &"damaged").unwrap();
        let bad = folds[0].test()[7] as usize;
        test.images.remove(bad);
        test.classes.remove(bad);
        test.values.drain(bad * 8..(bad + 1) * 8);
        let again = run(&test);
        assert_eq!(again[0].test, 118);
        assert_eq!(again[1..], first[1..]);
    }
}
