//! The paper's Tables 4 and 5: how well frozen features tell classes apart that the network never saw,
//! from few images of each.
//!
//! For every fold (`folds.rs`) and number of images a class, a softmax (`linear.rs`) is
//! trained on the rows of the training images ([`super::activations`]) and measured on those of the test
//! images by the mean over the classes of the share that is right. Beside it stand whole networks of the
//! same architecture ([`super::small_data`]), trained on the same images from random weights or from the
//! checkpoint's. Test images that are nearly the same as one that the network was trained on
//! (`duplicates.rs`) are left out.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::activations::{Rows, rows, union};
use super::folds::{Fold, by_class, folds, shared};
use super::linear::{Loss, Problem, mean_class_accuracy};
use super::parts::Parts;
use super::small_data::{Squares, Start, accuracy, train_few};
use super::{Facts, Session, Splits, Study};
use crate::Result;
use crate::backend::Backend;
use crate::data::images::Images;
use crate::model::Model;
use crate::train::duplicates::{Pair, pairs, thumbnails};

/// See [`super::STUDIES`].
pub const STUDY: Study = Study {
    name: "transfer",
    shows: "the features on other classes",
    paper: "Tables 4 and 5",
    of_one_run: true,
};

/// The method of frozen features.
pub const FROZEN: &str = "pretrained, frozen";

/// What is trained, on how many images.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Settings {
    /// Index of the layer whose outputs are used.
    pub layer: usize,
    /// Numbers of training images of each class, ascending, at least one.
    pub per_class: Vec<usize>,
    /// How often images are drawn, at least once.
    pub folds: usize,
    /// Test images of each class, at most.
    pub test_per_class: usize,
    /// Seed of the folds.
    pub seed: u64,
    /// How the whole networks start that are trained beside the softmax.
    pub starts: Vec<Start>,
    /// Updates of the weights of each of these.
    pub updates: u32,
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
    /// The name of the layer whose outputs were used.
    pub layer: String,
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
    /// What was trained: [`FROZEN`], or [`Start::name`].
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
    /// Share of the usual learning rate that a network was trained at: below 1 if its loss ran away before.
    #[serde(default = "whole")]
    pub rate: f32,
}

fn whole() -> f32 {
    1.0
}

/// What a method has given: training and test images, accuracy, share of the learning rate.
type Measured = (usize, usize, f64, f32);

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
    let Settings { layer, folds: count, test_per_class, seed, updates, .. } = *settings;
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
    let parts = session.parts(&[model], &(fingerprints, layer, indices))?;
    let trials = Trials {
        folds: &folds,
        per_class: &settings.per_class,
        excluded: &excluded,
        parts: &parts,
    };

    let kept = session.out().map(|out| out.join(".features"));
    let (backend, workers) = (session.backend, session.workers);
    let mut features = |name: &str, images: &Arc<Images>, wanted: &[u32]| {
        rows(backend, model, images, wanted, &[layer], kept.as_deref(), workers, |done, of| {
            session.progress(name, done, of, "");
        })
        .map(|mut rows| rows.remove(0))
    };
    let train = features("training features", &data.train, &trained)?;
    let test = features("test features", &data.val, &tested)?;
    let classes = &data.classes;
    let mut scored = trials.score(
        FROZEN,
        "frozen",
        |trained, tested, fold| frozen(&train, &test, classes.len(), trained, tested, fold),
        |done, of| session.progress("softmax", done, of, ""),
    )?;
    for start in &settings.starts {
        let (train, test) =
            (Squares::read(&data.train, &trained)?, Squares::read(&data.val, &tested)?);
        let name = start.name();
        scored.extend(trials.score(
            name,
            &format!("{name}-{updates}"),
            |trained, tested, fold| {
                let (train, test) = (train.part(trained), test.part(tested));
                let (model, rate) =
                    train_few(backend, model, classes, &train, *start, updates, fold)?;
                let accuracy = accuracy(backend, &model, &test)?;
                Ok((train.labels.len(), test.labels.len(), accuracy, rate))
            },
            |done, of| session.progress(&format!("networks {name}"), done, of, ""),
        )?);
    }
    let few = [(&data.train, most), (&data.val, test_per_class)];
    Ok(Transfer {
        facts: session.facts.clone(),
        classes: classes.len(),
        layer: model.network.layers[layer].name.clone(),
        batch_size: model.network.architecture.recipe.batch_size,
        settings: settings.clone(),
        duplicates,
        shared: few
            .map(|(images, each)| shared(&by_class(images, classes.len()), each, count).len()),
        scored,
    })
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
    /// to train and to test on, and the number of the fold. What there is of it under the name `part` is not measured again.
    /// `progress` is called with how much is done, and of how much.
    fn score(
        &self,
        method: &str,
        part: &str,
        measure: impl Fn(&[u32], &[u32], u64) -> Result<Measured>,
        mut progress: impl FnMut(usize, usize),
    ) -> Result<Vec<TransferScore>> {
        let mut all = Vec::new();
        for &per_class in self.per_class {
            for (number, fold) in self.folds.iter().enumerate() {
                let scored =
                    self.parts.get_or_make(&format!("{part}-{per_class}-{number}"), || {
                        let mut tested = fold.test();
                        tested.retain(|image| self.excluded.binary_search(image).is_err());
                        let (train, test, accuracy, rate) =
                            measure(&fold.train(per_class), &tested, number as u64)?;
                        let method = method.to_owned();
                        let fold = number;
                        Ok(TransferScore { method, per_class, fold, train, test, accuracy, rate })
                    });
                all.push(scored?);
                progress(all.len(), self.per_class.len() * self.folds.len());
            }
        }
        Ok(all)
    }
}

/// Trains a softmax on the rows of some images, and measures it on those of others; images that have no
/// row, as bad ones, are left out. Returns how many were not, and the accuracy.
fn frozen(
    train: &Rows,
    test: &Rows,
    classes: usize,
    trained: &[u32],
    tested: &[u32],
    seed: u64,
) -> Result<Measured> {
    let (picked, tested) = (train.positions(trained), test.positions(tested));
    let softmax = Problem::new(train, &picked, classes, seed)?.best(Loss::Softmax).linear;
    let truth: Vec<u32> = tested.iter().map(|&i| test.classes[i]).collect();
    let found = softmax.predict(test, &tested);
    Ok((picked.len(), tested.len(), mean_class_accuracy(&truth, &found, classes), 1.0))
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
        let one = |trained: &[u32], tested: &[u32], fold| {
            frozen(train, test, CLASSES, trained, tested, fold)
        };
        let trials = Trials { folds, per_class, excluded, parts };
        trials.score(FROZEN, "frozen", one, |_, _| ()).unwrap()
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
