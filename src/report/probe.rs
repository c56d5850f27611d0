//! The page of [`probe`](crate::study::probe): accuracy layer by layer beside the paper's Table 7,
//! and in words where it rises and falls.

use std::io;
use std::path::{Path, PathBuf};

use super::fact;
use super::figure::{Page, Picture, Section, Table};
use super::plot::Line;
use crate::study::numbers::{argmax, deviation, mean};
use crate::study::probe::{CLASSIFIERS, LayerProbe, Probe, STUDY, Trial};

/// A row of the paper's table: the layer, then accuracy in % on Caltech-101 (30 images a class) and
/// Caltech-256 (60 images a class), of the SVM and of the softmax.
type PaperRow = (usize, [Option<f64>; 4]);
/// The paper's Table 7.
const PAPER: [PaperRow; 6] = [
    (1, [Some(44.8), Some(24.6), None, None]),
    (2, [Some(66.2), Some(39.6), None, None]),
    (3, [Some(72.3), Some(46.0), None, None]),
    (4, [Some(76.6), Some(51.3), None, None]),
    (5, [Some(86.2), Some(65.6), Some(82.9), Some(65.7)]),
    (7, [Some(85.5), Some(71.7), Some(85.4), Some(72.6)]),
];
/// Layers with weights that the paper's network has.
const PAPER_LAYERS: usize = 8;
/// Writes the page with its plot, `probe.csv` and `probe.json`; returns the page's path.
///
/// # Errors
/// If the folder cannot be written.
pub fn write(out: &Path, found: &Probe) -> io::Result<PathBuf> {
    let Probe { facts, network, settings, layers: probed, .. } = found;
    let of_class = |asked: Option<usize>, most: Option<usize>| match (asked, most) {
        (_, None) => "all".into(),
        (Some(_), Some(most)) => format!("{most} of each class, as far as there are so many"),
        (None, Some(most)) => {
            format!("at most {most} of each class: more would not fit into memory")
        }
    };
    let mut facts = facts.clone();
    facts.extend([
        fact("Classes", found.classes.to_string()),
        fact("Training images", of_class(settings.per_class, found.per_class)),
        fact("Validation images", of_class(settings.test_per_class, found.test_per_class)),
        fact("Seeds", settings.seeds.to_string()),
    ]);
    let title = format!("How far each layer of {network} tells classes apart");
    let mut page = Page::new(out, &STUDY, title, facts)?;
    page.figure.how = vec![
        "The network is frozen. Of every image the outputs of one layer are taken (centre crop), \
         and a linear SVM (one class against the rest, squared hinge) and a softmax are trained on \
         those of the training images, multiplied by one factor that makes their mean squared norm \
         1. Both are regularised; how much is chosen on a held-out fifth of the training images, then \
         all of them are trained on. Accuracy is the mean over the classes of the share of validation \
         images that is right."
            .into(),
        "A layer, as the paper counts, is a convolution with all that follows it up to the next \
         one: relu, pooling, normalisation. Each seed draws which images are used and which fifth is \
         held out; ± is the deviation over the seeds."
            .into(),
    ];
    let caption = Picture {
        title: "Accuracy by layer".into(),
        method: "mean over the seeds".into(),
        ..Picture::default()
    };
    let axes = ["layer", "accuracy in %"];
    let plot = page.curves("accuracy.svg".into(), axes, &lines(found), caption)?;
    let mut text = Vec::new();
    for (classifier, (name, _)) in CLASSIFIERS.iter().enumerate() {
        text.extend(course(probed, classifier, name));
    }
    text.extend(uncertainty(probed));
    let unfinished =
        |of: &LayerProbe| of.trials.iter().any(|t| t.scored.iter().any(|s| !s.converged));
    let alarms = probed.iter().filter(|of| unfinished(of)).map(|of| {
        format!(
            "Layer {} ({}): the optimum was not reached with every seed; its accuracy may be lower \
             than it need be.",
            of.number, of.name
        )
    });
    page.figure.sections.push(Section {
        title: "Accuracy by layer".into(),
        text,
        alarms: alarms.collect(),
        pictures: vec![plot],
        tables: vec![table(found), details(probed)],
        ..Section::default()
    });
    write_numbers(&mut page, found)?;
    page.finish()
}

/// Whether the network has as many layers as the paper's.
fn is_like_paper(found: &Probe) -> bool {
    found.convolutions == PAPER_LAYERS
}

/// Accuracies of a classifier, one a seed, in %.
fn accuracies(of: &LayerProbe, classifier: usize) -> Vec<f64> {
    of.trials.iter().map(|trial| 100.0 * trial.scored[classifier].accuracy).collect()
}

/// Mean accuracy of a classifier on the images it was trained on, in %.
fn train_accuracy(of: &LayerProbe, classifier: usize) -> f64 {
    let of_trial = |trial: &Trial| 100.0 * trial.scored[classifier].train_accuracy;
    mean(&of.trials.iter().map(of_trial).collect::<Vec<f64>>())
}

/// Mean and standard deviation, for a table.
fn with_deviation(values: &[f64]) -> String {
    match deviation(values) {
        Some(deviation) => format!("{:.1} ± {deviation:.1}", mean(values)),
        None => format!("{:.1}", mean(values)),
    }
}

/// The curves of the plot.
fn lines(found: &Probe) -> Vec<Line> {
    let own = CLASSIFIERS.iter().enumerate().map(|(classifier, (name, _))| Line {
        name: (*name).into(),
        points: found
            .layers
            .iter()
            .map(|of| (of.number as f64, mean(&accuracies(of, classifier))))
            .collect(),
    });
    let papers = |column: usize, name: &str| Line {
        name: name.into(),
        points: PAPER
            .iter()
            .filter_map(|(layer, row)| Some((*layer as f64, row[column]?)))
            .collect(),
    };
    let mut lines: Vec<Line> = own.collect();
    if is_like_paper(found) {
        lines.push(papers(0, "paper: SVM, Caltech-101"));
        lines.push(papers(1, "paper: SVM, Caltech-256"));
    }
    lines
}

fn table(found: &Probe) -> Table {
    let (probed, like_paper) = (&found.layers, is_like_paper(found));
    let head = [
        "Layer",
        "SVM",
        "Softmax",
        "Paper: SVM, Caltech-101",
        "Paper: SVM, Caltech-256",
        "Paper: Softmax, Caltech-101",
        "Paper: Softmax, Caltech-256",
    ];
    let row = |(i, of): (usize, &LayerProbe)| {
        let mut row = vec![format!("{}: {}", of.number, of.name)];
        row.extend((0..CLASSIFIERS.len()).map(|k| with_deviation(&accuracies(of, k))));
        // Several of our rows may be of one layer of the paper's: its output is the last of them.
        let is_last = probed.get(i + 1).is_none_or(|next| next.number != of.number);
        let paper = PAPER.iter().find(|(layer, _)| like_paper && is_last && *layer == of.number);
        let papers = paper.map_or([None; 4], |(_, row)| *row);
        row.extend(papers.map(|v| v.map_or("–".into(), |v| format!("{v:.1}"))));
        row
    };
    let trial = &probed[0].trials[0];
    let mut notes = vec![
        format!(
            "The paper’s network has seen 1.3 million images of ImageNet; its classifiers were trained \
             on 30 images a class of Caltech-101 and 60 of Caltech-256, over 102 and 257 classes. Here: \
             {} training and {} validation images a seed. Numbers of different data are not to be \
             compared; the course over the layers is.",
            trial.train, trial.test
        ),
        if found.own_classes {
            "Classes of these names are among those that this network was itself trained on; the \
             paper’s were new to its network. If the training images are the same too, its last layers were made for them: \
             classifiers find them easier than images never seen, and the held-out fifth is not new to \
             the network."
                .into()
        } else {
            "The classes are not those that this network was trained on, as in the paper."
                .to_owned()
        },
    ];
    if found.per_class.is_none() {
        notes.push(
            "All training images are taken with every seed: seeds differ in which fifth of them is held \
             out, so that the standard deviations are less than those of a new draw of images."
                .into(),
        );
    }
    if !like_paper {
        notes.push(format!(
            "This network has other layers than the paper’s, which has {PAPER_LAYERS} with weights: \
             its numbers are not shown."
        ));
    }
    Table {
        caption: "Accuracy in %, mean over the classes".into(),
        head: head.map(String::from).into(),
        rows: probed.iter().enumerate().map(row).collect(),
        notes,
    }
}

/// What stands behind the accuracies.
fn details(probed: &[LayerProbe]) -> Table {
    let list = |of: &LayerProbe, value: &dyn Fn(&Trial) -> String| -> String {
        let values: Vec<String> = of.trials.iter().map(value).collect();
        let alike = values.iter().all(|value| *value == values[0]);
        if alike { values[0].clone() } else { values.join(", ") }
    };
    let row = |of: &LayerProbe| {
        let mut row = vec![format!("{}: {}", of.number, of.name), of.width.to_string()];
        for k in 0..CLASSIFIERS.len() {
            row.push(format!("{:.1}", train_accuracy(of, k)));
            row.push(list(of, &|trial| trial.scored[k].strength.to_string()));
        }
        row
    };
    let head = [
        "Layer",
        "Numbers an image",
        "SVM on training images",
        "C",
        "Softmax on training images",
        "C",
    ];
    Table {
        caption: "What the classifiers were trained on, and how well they fit it, in %".into(),
        head: head.map(String::from).into(),
        rows: probed.iter().map(row).collect(),
        notes: vec![
            "C weighs the losses against the squared weights: the larger, the less they are \
             regularised. Where seeds chose different values, that of each is named."
                .into(),
        ],
    }
}

/// A change of accuracy from one layer to the next, in points.
struct Change {
    points: f64,
    /// Of the change, over the seeds.
    deviation: Option<f64>,
}

impl Change {
    fn between(from: &LayerProbe, to: &LayerProbe, classifier: usize) -> Self {
        let pairs = accuracies(from, classifier).into_iter().zip(accuracies(to, classifier));
        let changes: Vec<f64> = pairs.map(|(from, to)| to - from).collect();
        Change { points: mean(&changes), deviation: deviation(&changes) }
    }

    fn words(&self) -> String {
        let points = format!("{:.1} points", self.points.abs());
        match self.deviation {
            None => points,
            Some(0.0) => format!("{points}, the same with every seed"),
            // Of a few seeds the deviation is not known so well that more would say anything.
            Some(deviation) if self.points.abs() > 20.0 * deviation => {
                format!("{points}, over 20 deviations")
            }
            Some(deviation) => {
                format!("{points}, {:.1} deviations", self.points.abs() / deviation)
            }
        }
    }

    /// Whether it is less than two deviations.
    fn is_slight(&self) -> bool {
        self.deviation.is_some_and(|deviation| self.points.abs() < 2.0 * deviation)
    }
}

/// Where accuracy rises and falls, in words; each fall with what stands behind it.
fn course(probed: &[LayerProbe], classifier: usize, name: &str) -> Vec<String> {
    let means: Vec<f64> = probed.iter().map(|of| mean(&accuracies(of, classifier))).collect();
    let best = argmax(&means);
    let mut first = format!(
        "{name}: accuracy is highest at layer {} ({}), {:.1} %.",
        probed[best].number, probed[best].name, means[best]
    );
    let (mut rises, mut falls) = (Vec::new(), Vec::new());
    for pair in probed.windows(2) {
        let [from, to] = [&pair[0], &pair[1]];
        let change = Change::between(from, to, classifier);
        if change.points < 0.0 {
            falls.push(fall(from, to, classifier, name, &change));
        } else if change.points > 0.0 {
            rises.push(format!("{} ({})", to.name, change.words()));
        }
    }
    if !rises.is_empty() {
        first.push_str(&format!(" It rises at {}.", rises.join(", at ")));
    }
    if falls.is_empty() && probed.len() > 1 {
        first.push_str(" It falls nowhere.");
    }
    let mut text = vec![first];
    text.extend(falls);
    text
}

/// A fall, with what may tell its reasons apart: how the training images are fitted.
fn fall(
    from: &LayerProbe,
    to: &LayerProbe,
    classifier: usize,
    name: &str,
    change: &Change,
) -> String {
    let mut text =
        format!("{name}: it falls from {} to {} by {}.", from.name, to.name, change.words());
    if change.is_slight() {
        text.push_str(
            " That is less than two deviations: another draw of images may well undo it.",
        );
    }
    let errors = [from, to].map(|of| standard_error(of, classifier).powi(2));
    let open = 2.0 * errors.iter().sum::<f64>().sqrt();
    if change.points.abs() < open {
        text.push_str(&format!(
            " It is less than the {open:.1} points (two standard errors) by which accuracies on two \
             draws of so many validation images differ by chance."
        ));
    }
    let [before, after] = [from, to].map(|of| train_accuracy(of, classifier));
    text.push_str(&format!(
        " On the training images it is {after:.1} % after {before:.1} %, each with the strength of \
         regularisation that was chosen for it (see the second table), from {} and {} numbers.",
        to.width, from.width
    ));
    text
}

/// Of a classifier's accuracy, in points, since there are only so many validation images.
fn standard_error(of: &LayerProbe, classifier: usize) -> f64 {
    let share = mean(&accuracies(of, classifier)) / 100.0;
    100.0 * (share * (1.0 - share) / of.trials[0].test as f64).sqrt()
}

/// What the number of validation images alone leaves open.
fn uncertainty(probed: &[LayerProbe]) -> Option<String> {
    let trial = probed.first()?.trials.first()?;
    let largest = probed.iter().map(|of| standard_error(of, 0)).fold(0.0, f64::max);
    Some(format!(
        "Deviations are over the seeds, between layers of the change with each seed, on the same images. \
         Of a few seeds they are only roughly known. That there are only {} validation images is not in \
         them: by itself it leaves each accuracy uncertain by up to {largest:.1} points (one standard \
         error).",
        trial.test
    ))
}

/// The numbers as CSV and JSON.
fn write_numbers(page: &mut Page<'_>, found: &Probe) -> io::Result<()> {
    let head = [
        "number",
        "layer",
        "features",
        "seed",
        "classifier",
        "train_images",
        "test_images",
        "accuracy",
        "train_accuracy",
        "c",
        "iterations",
        "converged",
    ];
    let rows = found.layers.iter().flat_map(|of| {
        let trials = of.trials.iter().enumerate();
        trials.flat_map(move |(seed, trial)| {
            CLASSIFIERS.iter().zip(&trial.scored).map(move |((name, _), scored)| {
                vec![
                    of.number.to_string(),
                    of.name.clone(),
                    of.width.to_string(),
                    (seed + 1).to_string(),
                    (*name).to_owned(),
                    trial.train.to_string(),
                    trial.test.to_string(),
                    scored.accuracy.to_string(),
                    scored.train_accuracy.to_string(),
                    scored.strength.to_string(),
                    scored.iterations.to_string(),
                    scored.converged.to_string(),
                ]
            })
        })
    });
    page.csv("probe.csv", "every layer, seed and classifier", &head, rows)?;
    let summary = |of: &LayerProbe| {
        let of_classifier = |k: usize| {
            let values = accuracies(of, k);
            serde_json::json!({ "mean": mean(&values), "deviation": deviation(&values) })
        };
        serde_json::json!({
            "number": of.number,
            "layer": of.name,
            "features": of.width,
            "svm": of_classifier(0),
            "softmax": of_classifier(1),
            "trials": of.trials,
        })
    };
    let paper = PAPER.map(|(layer, [svm_101, svm_256, softmax_101, softmax_256])| {
        serde_json::json!({
            "number": layer,
            "svm": { "caltech101_30": svm_101, "caltech256_60": svm_256 },
            "softmax": { "caltech101_30": softmax_101, "caltech256_60": softmax_256 },
        })
    });
    let json = serde_json::json!({
        "unit": "percent; in trials shares",
        "per_class": found.per_class,
        "test_per_class": found.test_per_class,
        "seeds": found.settings.seeds,
        "layers": found.layers.iter().map(summary).collect::<Vec<_>>(),
        "paper": paper,
    });
    page.file("probe.json", "the same", &serde_json::to_vec_pretty(&json)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::study::probe::ProbeScore;

    fn layer(name: &str, accuracies: &[f64], train_accuracy: f64) -> LayerProbe {
        let trial = |&accuracy: &f64| {
            let scored = ProbeScore {
                accuracy,
                train_accuracy,
                strength: 1.0,
                converged: true,
                iterations: 3,
            };
            Trial { train: 10, test: 100, scored: [scored; 2] }
        };
        let trials = accuracies.iter().map(trial).collect();
        LayerProbe { number: 1, name: name.into(), width: 5, trials }
    }

    /// 60, 70 and 65 % with two seeds each: the changes are 8 and 12 points, then -5 and -5.
    #[test]
    fn rises_and_falls_are_told_with_their_deviations() {
        let probed = [
            layer("a", &[0.60, 0.60], 0.9),
            layer("b", &[0.68, 0.72], 1.0),
            layer("c", &[0.63, 0.67], 1.0),
            layer("d", &[0.60, 0.66], 0.8),
        ];
        let text = course(&probed, 0, "SVM");
        assert_eq!(text.len(), 3);
        let deviations = 10.0 / (2.0 * 2.0f64.sqrt());
        let rise = format!("rises at b (10.0 points, {deviations:.1} deviations).");
        assert!(text[0].contains("highest at layer 1 (b), 70.0 %"), "{}", text[0]);
        assert!(text[0].contains(&rise), "{}", text[0]);
        assert!(text[1].contains("from b to c by 5.0 points"), "{}", text[1]);
        assert!(text[1].contains("it is 100.0 % after 100.0 %"), "{}", text[1]);
        assert!(text[2].contains("from c to d by 2.0 points, 1.4 deviations"), "{}", text[2]);
        assert!(text[2].contains("less than two deviations"), "{}", text[2]);
        assert!(text[1].contains("by chance"), "{}", text[1]);
        assert!(text[2].contains("it is 80.0 % after 100.0 %"), "{}", text[2]);
        let alone = course(&[layer("a", &[0.5], 1.0), layer("b", &[0.6], 1.0)], 1, "softmax");
        assert_eq!(alone.len(), 1);
        assert!(alone[0].contains("at b (10.0 points). It falls nowhere"), "{}", alone[0]);
    }
}
