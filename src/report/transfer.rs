//! The page of [`transfer`](crate::study::transfer): accuracy by number of training images beside the paper's
//! Tables 4 and 5.

use std::io;
use std::path::{Path, PathBuf};

use super::figure::{Page, Picture, Section, Table};
use super::plot::Line;
use super::{csv, fact};
use crate::disk::write_atomic;
use crate::study::numbers::mean_and_std;
use crate::study::small_data::Start;
use crate::study::transfer::{Duplicate, STUDY, Transfer, TransferScore};

/// From scratch, and pretrained, in %.
type Accuracies = Option<[f64; 2]>;

/// The paper's accuracies with so many images a class on Caltech-101 (Table 4) and Caltech-256 (Table 5).
const PAPER: [(usize, Accuracies, Accuracies); 4] = [
    (15, Some([22.8, 83.8]), Some([9.0, 65.7])),
    (30, Some([46.5, 86.5]), Some([22.5, 70.6])),
    (45, None, Some([31.2, 72.7])),
    (60, None, Some([38.8, 74.2])),
];

/// Writes the page with its plot, `transfer.csv` and `transfer.json` and, if near-duplicates were searched,
/// `duplicates.csv`; returns the page's path.
///
/// # Errors
/// If the folder cannot be written.
pub fn write(out: &Path, found: &Transfer) -> io::Result<PathBuf> {
    let Transfer { facts, settings, duplicates, scored, .. } = found;
    let per_class = &settings.per_class;
    let mut facts = facts.clone();
    facts.extend([
        fact("Classes", found.classes.to_string()),
        fact("Layer", &found.layer),
        fact("Folds", settings.folds.to_string()),
        fact("Test images of each class, at most", settings.test_per_class.to_string()),
        fact("Seed", settings.seed.to_string()),
    ]);
    let title = "Features put to use on other classes".into();
    let mut page = Page::new(out, &STUDY, title, facts)?;
    page.figure.how = vec![
        "The network is frozen. Of every image the outputs of one layer are taken (centre crop), and a \
         new softmax is trained on those of the training images; how much it is regularised is chosen \
         on a held-out fifth of them. Accuracy is the mean over the classes of the share of test \
         images that is right."
            .into(),
        "Beside it stands the same network trained on the same images from random weights, all of it, \
         by the checkpoint’s recipe but for the number of updates; and, if asked for, one that starts \
         with the checkpoint’s weights, at a tenth of the learning rate."
            .into(),
        "Each fold takes the next stretch of one order of a class's images; a smaller number of \
         training images is a part of a larger one."
            .into(),
    ];
    if let Some(duplicates) = duplicates {
        let row = |of: &Duplicate| {
            let [image, other] = [&of.image, &of.trained_on].map(String::clone);
            vec![image, other, format!("{:.4}", of.correlation), of.mirrored.to_string()]
        };
        let head = ["image", "trained_on", "correlation", "mirrored"];
        let table = csv(&head, duplicates.iter().map(row));
        write_atomic(&out.join("duplicates.csv"), table.as_bytes())?;
    }
    let mut methods: Vec<&str> = scored.iter().map(|of| of.method.as_str()).collect();
    methods.dedup();
    let of = |method: &str, k: usize| -> Vec<f64> {
        let same = |of: &&TransferScore| of.method == method && of.per_class == k;
        scored.iter().filter(same).map(|of| 100.0 * of.accuracy).collect()
    };
    let line = |method: &&str| {
        let points =
            per_class.iter().map(|&k| (k as f64, mean_and_std(&of(method, k))[0])).collect();
        Line { name: (*method).to_owned(), points }
    };
    let lines: Vec<Line> = methods.iter().map(line).collect();
    let caption = Picture {
        title: "Accuracy by training images".into(),
        method: "mean over the folds".into(),
        ..Picture::default()
    };
    let axes = ["training images of each class", "accuracy in %"];
    let plot = page.curves("accuracy.svg".into(), axes, &lines, caption)?;
    let row = |&k: &usize| {
        let mut row = vec![k.to_string()];
        row.extend(methods.iter().map(|method| {
            let [mean, deviation] = mean_and_std(&of(method, k));
            format!("{mean:.1} ± {deviation:.1}")
        }));
        let paper = PAPER.iter().find(|(images, ..)| *images == k);
        let papers = paper.map_or([None; 2], |(_, first, second)| [*first, *second]);
        row.extend(papers.map(|said| {
            said.map_or("–".to_owned(), |[scratch, pretrained]| {
                format!("{scratch:.1} | {pretrained:.1}")
            })
        }));
        row
    };
    let mut head = vec!["images a class"];
    head.extend(&methods);
    head.extend(["paper, Caltech-101", "paper, Caltech-256"]);
    let table = Table {
        caption: "Accuracy in %, mean ± deviation over the folds; the paper’s: from scratch | \
                  pretrained"
            .into(),
        head: head.into_iter().map(String::from).collect(),
        rows: per_class.iter().map(row).collect(),
        notes: notes(found),
    };
    page.figure.sections.push(Section {
        title: "Accuracy by training images".into(),
        text: comparison(&methods, per_class, &of),
        alarms: Vec::new(),
        pictures: vec![plot],
        tables: vec![table],
        ..Section::default()
    });
    let cells = scored.iter().map(|of| {
        let [k, fold, train, test] = [of.per_class, of.fold, of.train, of.test];
        let mut row = vec![of.method.clone()];
        row.extend([k, fold, train, test].map(|v| v.to_string()));
        row.push(of.accuracy.to_string());
        row
    });
    let head = ["method", "per_class", "fold", "train", "test", "accuracy"];
    page.csv("transfer.csv", "every number of images and fold", &head, cells)?;
    page.file("transfer.json", "the same", &serde_json::to_vec_pretty(scored)?)?;
    page.finish()
}

/// What is said under the table.
fn notes(found: &Transfer) -> Vec<String> {
    let Transfer { settings, duplicates, .. } = found;
    let mut notes = vec![match duplicates {
        None => "No near-duplicates were searched: --pretrained-on was not given.".into(),
        Some(all) => format!(
            "Images with a near-duplicate among those the network was trained on \
             (duplicates.csv): {}. Of these {} are test images, which are left out; training \
             images are not.",
            all.len(),
            all.iter().filter(|of| of.test.is_some()).count()
        ),
    }];
    notes.extend(settings.starts.iter().map(|start| {
        format!(
            "Networks {}: {} updates of at most {} images, whatever the number of images.",
            start.name(),
            settings.updates,
            found.batch_size
        )
    }));
    let lower = found.scored.iter().filter(|of| of.rate < 1.0);
    let lower: Vec<String> = lower
        .map(|of| {
            let (per_class, fold) = (of.per_class, of.fold + 1);
            format!("{}, {per_class} a class, fold {fold} ({} of it)", of.method, of.rate)
        })
        .collect();
    if !lower.is_empty() {
        notes.push(format!(
            "Networks whose loss ran away, and that were trained anew at a lower learning rate: {}.",
            lower.join("; ")
        ));
    }
    for (images, shared) in ["training", "test"].into_iter().zip(found.shared) {
        if shared > 0 {
            notes.push(format!(
                "Classes with too few {images} images, which folds share: {shared}."
            ));
        }
    }
    notes.push(
        "The paper’s network was trained on ImageNet and its features were tested on 101 and 256 \
         classes of Caltech’s; with fewer classes chance is higher."
            .into(),
    );
    notes
}

/// Whether what was pretrained beats training from scratch, and from how many images, in words.
fn comparison(
    methods: &[&str],
    per_class: &[usize],
    of: &dyn Fn(&str, usize) -> Vec<f64>,
) -> Vec<String> {
    let scratch = Start::Scratch.name();
    if !methods.contains(&scratch) {
        return Vec::new();
    }
    let mean = |method: &str, k: usize| mean_and_std(&of(method, k))[0];
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
