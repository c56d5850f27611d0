//! The paper's Tables 4 and 5: how well frozen features tell classes apart that the network never saw,
//! from few images of each.
//!
//! For every fold ([`super::folds`]) and number of images a class, a softmax ([`super::linear`]) is
//! trained on the rows of the training images ([`super::activations`]) and measured on those of the test
//! images by the mean over the classes of the share that is right. Beside it stand whole networks of the
//! same architecture ([`super::few`]), trained from random weights on the same images, and, if asked for,
//! from the checkpoint's.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Study;
use super::activations::Rows;
use super::few::{Squares, Start, accuracy, train_few};
use super::folds::Fold;
use super::linear::{Loss, Problem, mean_class_accuracy};
use super::numbers::mean_and_deviation;
use super::parts::Parts;
use crate::Result;
use crate::backend::Backend;
use crate::disk::write_whole;
use crate::model::Model;
use crate::report::csv;
use crate::report::figure::{Figure, Picture, Section, Table};
use crate::report::plot::{self, Line, curves};

/// See [`super::STUDIES`].
pub const STUDY: Study = Study {
    name: "transfer",
    shows: "the features on other classes",
    paper: "Tables 4 and 5",
    of_one_run: true,
};

/// The method of frozen features.
pub const FROZEN: &str = "pretrained, frozen";

/// From scratch, and pretrained, in %.
type Accuracies = Option<[f64; 2]>;

/// The paper's accuracies with so many images a class on Caltech-101 (Table 4) and Caltech-256 (Table 5).
const PAPER: [(usize, Accuracies, Accuracies); 4] = [
    (15, Some([22.8, 83.8]), Some([9.0, 65.7])),
    (30, Some([46.5, 86.5]), Some([22.5, 70.6])),
    (45, None, Some([31.2, 72.7])),
    (60, None, Some([38.8, 74.2])),
];

/// What one fold gave with so many images a class.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scored {
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
}

/// Trains a softmax on frozen features for every number of images and every fold. `train` and `test` are
/// rows of all the folds' images, ascending by image; images that have no row, as bad ones, and test
/// images in `excluded` (ascending) are left out. What `parts` holds already is taken from there, so its
/// settings must hold the rows' model and images, the folds and `excluded`. `progress` is called with how
/// much is done, and of how much.
///
/// # Errors
/// If no training image of a fold has a row, features are not finite, or parts cannot be kept.
pub fn frozen(
    train: &Rows,
    test: &Rows,
    folds: &[Fold],
    per_class: &[usize],
    classes: usize,
    excluded: &[u32],
    parts: &Parts,
    mut progress: impl FnMut(usize, usize),
) -> Result<Vec<Scored>> {
    let mut all = Vec::new();
    for &k in per_class {
        for (number, fold) in folds.iter().enumerate() {
            let part = format!("frozen-{k}-{number}");
            let scored = match parts.get(&part) {
                Some(scored) => scored,
                None => {
                    let picked = positions(train, &fold.train(k), &[]);
                    let tested = positions(test, &fold.test(), excluded);
                    let problem = Problem::new(train, &picked, classes, number as u64)?;
                    let softmax = problem.best(Loss::Softmax).linear;
                    let truth: Vec<u32> = tested.iter().map(|&i| test.classes[i]).collect();
                    let found = softmax.predict(test, &tested);
                    let accuracy = mean_class_accuracy(&truth, &found, classes);
                    let (train, test) = (picked.len(), tested.len());
                    let method = FROZEN.to_owned();
                    let scored =
                        Scored { method, per_class: k, fold: number, train, test, accuracy };
                    parts.put(&part, &scored)?;
                    scored
                }
            };
            all.push(scored);
            progress(all.len(), per_class.len() * folds.len());
        }
    }
    Ok(all)
}

/// Trains whole networks for every number of images and every fold, and measures them on the same test
/// images as [`frozen`]. `train` and `test` hold all the folds' images. What `parts` holds already is taken
/// from there. `progress` is called with how much is done, and of how much.
///
/// # Errors
/// If a loss runs away, the backend refuses, or parts cannot be kept.
pub fn whole<B: Backend>(
    backend: &B,
    checkpoint: &Model<B>,
    classes: &[String],
    [train, test]: [&Squares; 2],
    folds: &[Fold],
    per_class: &[usize],
    excluded: &[u32],
    start: Start,
    updates: u32,
    parts: &Parts,
    mut progress: impl FnMut(usize, usize),
) -> Result<Vec<Scored>> {
    let mut all = Vec::new();
    for &k in per_class {
        for (fold, images) in folds.iter().enumerate() {
            let method = start.name();
            let part = format!("{method}-{updates}-{k}-{fold}");
            let scored = match parts.get(&part) {
                Some(scored) => scored,
                None => {
                    let trained = train.part(&images.train(k), &[]);
                    let tested = test.part(&images.test(), excluded);
                    let seed = fold as u64;
                    let model =
                        train_few(backend, checkpoint, classes, &trained, start, updates, seed)?;
                    let accuracy = accuracy(backend, &model, &tested)?;
                    let (train, test) = (trained.labels.len(), tested.labels.len());
                    let method = method.to_owned();
                    let scored = Scored { method, per_class: k, fold, train, test, accuracy };
                    parts.put(&part, &scored)?;
                    scored
                }
            };
            all.push(scored);
            progress(all.len(), per_class.len() * folds.len());
        }
    }
    Ok(all)
}

/// Where images are among the rows, but for those that are excluded.
fn positions(rows: &Rows, images: &[u32], excluded: &[u32]) -> Vec<usize> {
    images
        .iter()
        .filter(|image| excluded.binary_search(image).is_err())
        .filter_map(|image| rows.images.binary_search(image).ok())
        .collect()
}

/// Writes the page with its plot, `transfer.csv` and `transfer.json`; returns the page's path. `notes` are
/// said under the table.
///
/// # Errors
/// If `out` cannot be written.
pub fn write(
    out: &Path,
    facts: Vec<(String, String)>,
    per_class: &[usize],
    scored: &[Scored],
    notes: Vec<String>,
) -> io::Result<PathBuf> {
    let mut methods: Vec<&str> = Vec::new();
    for of in scored {
        if !methods.contains(&of.method.as_str()) {
            methods.push(&of.method);
        }
    }
    let of = |method: &str, k: usize| -> Vec<f64> {
        let same = |of: &&Scored| of.method == method && of.per_class == k;
        scored.iter().filter(same).map(|of| 100.0 * of.accuracy).collect()
    };
    let line = |method: &&str| {
        let points =
            per_class.iter().map(|&k| (k as f64, mean_and_deviation(&of(method, k))[0])).collect();
        Line { name: (*method).to_owned(), points }
    };
    let lines: Vec<Line> = methods.iter().map(line).collect();
    let svg = curves("training images of each class", "accuracy in %", &lines);
    write_whole(&out.join("accuracy.svg"), svg.as_bytes())?;
    let cells = scored.iter().map(|of| {
        let [k, fold, train, test] = [of.per_class, of.fold, of.train, of.test];
        let mut row = vec![of.method.clone()];
        row.extend([k, fold, train, test].map(|v| v.to_string()));
        row.push(of.accuracy.to_string());
        row
    });
    let head = ["method", "per_class", "fold", "train", "test", "accuracy"];
    write_whole(&out.join("transfer.csv"), csv(&head, cells).as_bytes())?;
    let json = serde_json::to_vec_pretty(&scored).expect("plain data");
    write_whole(&out.join("transfer.json"), &json)?;
    let row = |&k: &usize| {
        let mut row = vec![k.to_string()];
        row.extend(methods.iter().map(|method| {
            let own = of(method, k);
            let [mean, deviation] = mean_and_deviation(&own);
            format!("{mean:.1} ± {deviation:.1}")
        }));
        let paper = PAPER.iter().find(|(images, ..)| *images == k);
        row.extend([1, 2].map(|table| {
            let said =
                paper.and_then(|(_, first, second)| if table == 1 { *first } else { *second });
            said.map_or("–".to_owned(), |[scratch, pretrained]| {
                format!("{scratch:.1} | {pretrained:.1}")
            })
        }));
        row
    };
    let mut head = vec!["images a class".to_owned()];
    head.extend(methods.iter().map(|method| (*method).to_owned()));
    head.extend(["paper, Caltech-101", "paper, Caltech-256"].map(String::from));
    let table = Table {
        caption: "Accuracy in %, mean ± deviation over the folds; the paper’s: from scratch | \
                  pretrained"
            .into(),
        head,
        rows: per_class.iter().map(row).collect(),
        notes,
    };
    let plot = Picture {
        file: "accuracy.svg".into(),
        size: plot::SIZE,
        title: "Accuracy by training images".into(),
        method: "mean over the folds".into(),
        wide: true,
        ..Picture::default()
    };
    Figure {
        study: "transfer".into(),
        title: "Features put to use on other classes".into(),
        paper: "Tables 4 and 5".into(),
        facts,
        how: vec![
            "The network is frozen. Of every image the outputs of one layer are taken (centre crop), and a \
             new softmax is trained on those of the training images; how much it is regularised is chosen \
             on a held-out fifth of them. Accuracy is the mean over the classes of the share of test \
             images that is right."
                .into(),
            "Beside it stands the same network trained on the same images from random weights, all of it, \
             by the checkpoint’s recipe but for the number of updates; and, if asked for, one that starts \
             with the checkpoint’s weights, at a tenth of the rate."
                .into(),
            "Each fold takes the next stretch of one order of a class's images; a smaller number of \
             training images is a part of a larger one."
                .into(),
        ],
        sections: vec![Section {
            title: "Accuracy by training images".into(),
            text: found(&methods, per_class, &of),
            alarms: Vec::new(),
            pictures: vec![plot],
            tables: vec![table],
        }],
        files: vec![
            ("transfer.csv".into(), "every number of images and fold".into()),
            ("transfer.json".into(), "the same".into()),
        ],
    }
    .write(out)
}

/// Whether what was pretrained beats training from scratch, and from how many images, in words.
fn found(
    methods: &[&str],
    per_class: &[usize],
    of: &dyn Fn(&str, usize) -> Vec<f64>,
) -> Vec<String> {
    let scratch = Start::Scratch.name();
    if !methods.contains(&scratch) {
        return Vec::new();
    }
    let mean = |method: &str, k: usize| mean_and_deviation(&of(method, k))[0];
    let sentence = |method: &&str| {
        let above = |k: &&usize| mean(method, **k) > mean(scratch, **k);
        let above: Vec<String> = per_class.iter().filter(above).map(usize::to_string).collect();
        match above.len() {
            0 => format!("In the mean, “{method}” is nowhere above “{scratch}”."),
            n if n == per_class.len() => {
                format!("In the mean, “{method}” is above “{scratch}” with every number of images.")
            }
            _ => {
                let images = above.join(", ");
                format!(
                    "In the mean, “{method}” is above “{scratch}” only with {images} images a class."
                )
            }
        }
    };
    methods.iter().filter(|method| **method != scratch).map(sentence).collect()
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

    #[test]
    fn features_that_tell_classes_apart_do_and_shuffled_labels_are_at_chance() {
        let (mut train, mut test) = (rows(60, 1), rows(120, 2));
        let folds = drawn(60, 120);
        let accuracy = |train: &Rows, test: &Rows| {
            let out = tempfile::tempdir().unwrap();
            let parts = Parts::open(out.path(), &0).unwrap();
            let scored =
                frozen(train, test, &folds, &[20], CLASSES, &[], &parts, |_, _| ()).unwrap();
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
        let run = |test: &Rows| {
            frozen(&train, test, &folds, &[5, 20], CLASSES, &[gone], &parts, |_, _| ()).unwrap()
        };
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
