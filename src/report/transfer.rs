//! The page of [`transfer`](crate::study::transfer): accuracy by number of training images beside the paper's
//! Tables 4 and 5.

use std::io;
use std::path::{Path, PathBuf};

use super::figure::{Page, Picture, Section, Table};
use super::plot::Line;
use super::{csv, fact};
use crate::disk::write_atomic;
use crate::study::linear::STRENGTHS;
use crate::study::numbers::mean_and_std;
use crate::study::small_data::Start;
use crate::study::transfer::{Duplicate, STUDY, Transfer, TransferScore};
use crate::train::Crops;

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
        fact("Layers", found.layers.join(", ")),
        fact("Folds", settings.folds.to_string()),
        fact("Test images of each class, at most", settings.test_per_class.to_string()),
        fact("Seed", settings.seed.to_string()),
    ]);
    let title = "Features put to use on other classes".into();
    let mut page = Page::new(out, &STUDY, title, facts)?;
    page.figure.how = vec![
        "Frozen: the network stays as it is. The outputs of one layer are taken, and a new softmax is \
         trained on those of the training images. Accuracy is the mean over the classes of the share \
         of test images that is right, on the centre crop."
            .into(),
        "Beside it stand whole networks of the same layers, trained on the same images by the \
         checkpoint’s recipe but for the number of updates and the learning rate: from random weights \
         or, if asked for, fine-tuned from the checkpoint’s."
            .into(),
        "Each fold takes the next stretch of one order of a class's images; a smaller number of \
         training images is a part of a larger one."
            .into(),
        "All methods choose one setting in the same way: for each number of images what is best on the \
         centre crops of a held-out fifth of the first fold’s training images; all folds are then \
         trained on all their images with it. Nothing is chosen by test images. With few images that \
         fifth is few, and ties go to the middle value."
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
        pictures: vec![plot],
        tables: vec![table],
        ..Section::default()
    });
    page.figure.sections.push(Section {
        title: "What each method had".into(),
        tables: vec![given(found), chosen(found, &methods)],
        ..Section::default()
    });
    let cells = scored.iter().map(|of| {
        let [k, fold, train, test] = [of.per_class, of.fold, of.train, of.test];
        let mut row = vec![of.method.clone()];
        row.extend([k, fold, train, test].map(|v| v.to_string()));
        row.extend([of.accuracy, of.accuracy_in_training, of.setting].map(|v| v.to_string()));
        row
    });
    let head = [
        "method",
        "per_class",
        "fold",
        "train",
        "test",
        "accuracy",
        "accuracy_in_training",
        "setting",
    ];
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
    if found.crops < settings.crops && found.cut != Crops::Centre {
        notes.push(format!(
            "Of each training image {} crops are used, not {}: more do not fit.",
            found.crops, settings.crops
        ));
    }
    let lower = found.scored.iter().filter(|of| of.lowered < 1.0);
    let lower: Vec<String> = lower
        .map(|of| {
            let (per_class, fold) = (of.per_class, of.fold + 1);
            format!("{}, {per_class} a class, fold {fold} ({} of it)", of.method, of.lowered)
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

/// What each method was trained on, with what, and how it was measured.
fn given(found: &Transfer) -> Table {
    let Transfer { settings, .. } = found;
    let of_each = |count: usize| match found.cut {
        Crops::Centre => "the centre crop of each image".to_owned(),
        Crops::Ten => {
            format!("{count} draws of the ten crops of each image (corners, centre; mirrored)")
        }
        Crops::Random => format!("{count} random crops of each image, mirrored or not"),
    };
    let softmax = vec![
        "frozen".to_owned(),
        of_each(found.crops),
        "the softmax".to_owned(),
        "zero".to_owned(),
        "to the optimum".to_owned(),
        format!("C, one of {}", STRENGTHS.map(|c| c.to_string()).join(", ")),
        "centre crop".to_owned(),
    ];
    let rates: Vec<String> = settings.rates.iter().map(f32::to_string).collect();
    let network = |start: &Start| {
        let crop = match found.cut {
            Crops::Centre => of_each(1),
            Crops::Ten => "in each epoch one of the ten crops of each image".to_owned(),
            Crops::Random => {
                "in each epoch a new random crop of each image, mirrored or not".to_owned()
            }
        };
        let weights = match start {
            Start::Scratch => "drawn (He), all layers",
            Start::FineTune => "the checkpoint’s; the last layer drawn (He)",
        };
        let rate = match &rates[..] {
            [rate] => format!("nothing: {rate} of the recipe’s learning rate"),
            rates => format!("learning rate, {} of the recipe’s", rates.join(", ")),
        };
        vec![
            start.name().to_owned(),
            crop,
            "all layers, at one rate".to_owned(),
            weights.to_owned(),
            format!("{} updates of at most {} images", settings.updates, found.batch_size),
            rate,
            "centre crop".to_owned(),
        ]
    };
    let head = ["", "trained on", "what is trained", "starts at", "budget", "chosen", "tested on"];
    Table {
        caption: "What each method is given".into(),
        head: head.map(String::from).into(),
        rows: [softmax].into_iter().chain(settings.starts.iter().map(network)).collect(),
        notes: vec![
            "The rate of the networks falls to a tenth for the last quarter of the updates. Weight \
             decay, momentum, dropout and limits are the recipe’s, and were not chosen for so few images."
                .into(),
        ],
    }
}

/// What was chosen with each number of images, and how well the training images were learnt.
fn chosen(found: &Transfer, methods: &[&str]) -> Table {
    let cell = |method: &str, k: usize| {
        let same = |of: &&TransferScore| of.method == method && of.per_class == k;
        let all: Vec<&TransferScore> = found.scored.iter().filter(same).collect();
        let learnt: Vec<f64> = all.iter().map(|of| 100.0 * of.accuracy_in_training).collect();
        let setting = all.first().map_or(f64::NAN, |of| of.setting) as f32;
        format!("{setting}; {:.1} %", mean_and_std(&learnt)[0])
    };
    let row = |&k: &usize| {
        let cells = methods.iter().map(|method| cell(method, k));
        [k.to_string()].into_iter().chain(cells).collect()
    };
    let head = ["images a class"].iter().chain(methods);
    Table {
        caption:
            "What was chosen (C, or the share of the recipe’s learning rate); accuracy on the \
                  training images themselves, mean over the folds"
                .into(),
        head: head.map(|name| (*name).to_owned()).collect(),
        rows: found.settings.per_class.iter().map(row).collect(),
        notes: vec![
            "A network whose accuracy on its own training images is far below 100 % had too few \
             updates, or too small a rate: its accuracy on test images says little of its start."
                .into(),
        ],
    }
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
