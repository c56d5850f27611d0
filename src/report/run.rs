//! The report of a run: its curves, and every figure made of it so far, on one page.
//!
//! ```text
//! RUN/report/index.html       the page; nothing it shows lies outside this folder
//! RUN/report/training/        the curves
//! RUN/report/STUDY/           what `zfnet study STUDY` has written: figure.json, or Figure 2's data
//! ```
//!
//! Links that stay: `#conv5/123` is map 123 of conv5, `#conv5` the layer, `#study.NAME` a study.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use maud::{Markup, html};

use super::figure::{self, Figure, Picture, Section, Table, plotted};
use super::plot::{Line, Plot};
use super::{by, diagnose, facts, grouped, page, top9};
use crate::disk::write_atomic;
use crate::model::Architecture;
use crate::study::diagnose::{Record, STUDY as DIAGNOSE};
use crate::study::{STUDIES, features};
use crate::train::checkpoint::State;
use crate::{Error, Result};

/// The study with pages of its own kind.
const FEATURES: &str = features::STUDY.name;
/// The folder of the curves.
const TRAINING: &str = "training";

/// A run as its folder tells it.
pub struct Run<'a> {
    /// Its folder.
    pub folder: &'a Path,
    /// Where its newest checkpoint stands.
    pub state: &'a State,
    /// Its network.
    pub architecture: &'a Architecture,
    /// All that it has written down.
    pub record: &'a Record,
}

/// What one page shows, and what was wrong with what it could not show.
pub struct Written {
    /// The page.
    pub page: PathBuf,
    /// The studies in it.
    pub studies: Vec<String>,
    /// Folders that were left out, and why.
    pub left_out: Vec<String>,
}

/// Writes `RUN/report/index.html`.
///
/// # Errors
/// If the folder cannot be read or written.
pub fn write(run: &Run<'_>) -> Result<Written> {
    let out = run.folder.join("report");
    let io = |error| Error::io("write", &out)(error);
    let training = training(run, &out.join("training")).map_err(io)?;
    let Pages { features, figures, left_out } = find(&out)?;
    let name = run.folder.file_name().unwrap_or(run.folder.as_os_str()).to_string_lossy();
    let title = format!("{} in {name}", run.architecture.name);
    let studies: Vec<String> = features
        .iter()
        .map(|_| "features".to_owned())
        .chain(figures.iter().map(|(folder, _)| folder.clone()))
        .collect();
    let there = |study: &str| studies.iter().any(|there| there == study);
    let missing: Vec<_> = STUDIES.iter().filter(|study| !there(study.name)).collect();
    let body = html! {
        header.top {
            h1 { (title) }
            (facts(about(run).iter().map(|(name, value)| (*name, value.as_str()))))
        }
        nav.toc aria-label="Parts" {
            a href="#study.training" { "training" }
            @for study in &studies { a href={ "#study." (study) } { (study) } }
        }
        main {
            (section(TRAINING, &alarms(run.record, there(DIAGNOSE.name)), &training))
            @if let Some(features) = &features { (maps(features)) }
            @for (folder, figure) in &figures { (section(folder, &html! {}, figure)) }
            @if !missing.is_empty() {
                section.study id="study.missing" {
                    h2 { "Not made yet" }
                    ul {
                        @for study in missing {
                            li {
                                code { "zfnet study " (study.name) } ": " (study.line())
                                @if !study.of_one_run { "; --out RUN/report/" (study.name) }
                            }
                        }
                    }
                }
            }
        }
        footer {
            p { "Made by zfnet; " code { "zfnet study report" } " makes it again, with what was added." }
        }
        @if let Some(features) = &features { (features.enlarger) }
        (figure::enlarger())
    };
    let path = out.join("index.html");
    write_atomic(&path, page(&title, None, &body).as_bytes()).map_err(io)?;
    Ok(Written { page: path, studies, left_out })
}

/// What studies have left in the folder of a report.
#[derive(Default)]
struct Pages {
    features: Option<top9::Embedded>,
    /// With the folders they lie in, in the order of the page.
    figures: Vec<(String, Figure)>,
    left_out: Vec<String>,
}

fn find(out: &Path) -> Result<Pages> {
    let mut found = Pages::default();
    for (folder, is_fit) in folders(out)? {
        if !is_fit {
            let reason = "its name has more than letters, digits, dots, - and _: rename it";
            found.left_out.push(format!("{}: {reason}", out.join(&folder).display()));
            continue;
        }
        let read = match folder.as_str() {
            FEATURES => top9::embed(out, FEATURES).map(|maps| found.features = Some(maps)),
            _ => figure_in(&out.join(&folder))
                .map(|figure| found.figures.push((folder.clone(), figure))),
        };
        match read {
            // Another folder, or one whose study has not ended.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => found.left_out.push(format!("{}: {error}", out.join(&folder).display())),
            Ok(()) => {}
        }
    }
    let place = |name: &str| STUDIES.iter().position(|study| study.name == name);
    let order = |(name, _): &(String, Figure)| (place(name).unwrap_or(usize::MAX), name.clone());
    found.figures.sort_by_key(order);
    Ok(found)
}

/// The folders in a folder, but for that of the curves, and whether their names are fit for an address.
fn folders(out: &Path) -> Result<Vec<(String, bool)>> {
    let read = || -> io::Result<Vec<(String, bool)>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(out)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let fit = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            if entry.path().is_dir() && name != TRAINING {
                let is_fit = name.chars().all(fit);
                names.push((name, is_fit));
            }
        }
        names.sort();
        Ok(names)
    };
    read().map_err(Error::io("read", out))
}

fn figure_in(folder: &Path) -> io::Result<Figure> {
    let figure: Figure = serde_json::from_slice(&fs::read(folder.join(figure::FILE))?)?;
    let refuse = |reason: String| Err(io::Error::new(io::ErrorKind::InvalidData, reason));
    if !figure.stays_in_its_folder() {
        return refuse(format!("{}: names a file outside its folder", figure::FILE));
    }
    for file in figure.all_files() {
        if !folder.join(file).is_file() {
            return refuse(format!("{file} is missing: run this study again"));
        }
    }
    Ok(figure)
}

/// A figure as a part of the page; `above` stands under its title.
fn section(folder: &str, above: &Markup, figure: &Figure) -> Markup {
    let at = format!("{folder}/");
    html! {
        section.study id={ "study." (folder) } {
            h2 { (figure.title) }
            (above)
            (figure.about())
            (figure.sections(&at, 3))
            (figure.numbers(&at))
            @if folder != TRAINING {
                p { a href={ (at) "index.html" } { "This on a page of its own" } }
            }
        }
    }
}

/// What training has said is wrong, and where more of it is.
fn alarms(record: &Record, is_diagnosed: bool) -> Markup {
    html! {
        @if !record.alarms.is_empty() {
            @for (number, told) in (1..).zip(&record.alarms) {
                p.alarm role="note" { (diagnose::line(number, told)) }
            }
            p {
                @if is_diagnosed {
                    a href={ "#study." (DIAGNOSE.name) } { "What was seen, layer by layer" }
                } @else {
                    code { "zfnet study " (DIAGNOSE.name) } " shows what was seen, layer by layer."
                }
            }
        }
    }
}

fn maps(features: &top9::Embedded) -> Markup {
    let header = &features.header;
    let searched = format!("{}, {} images", header.split, grouped(header.images));
    let fixed = [
        ("In the paper", features::STUDY.paper),
        ("Checkpoint", &header.checkpoint),
        ("Data", &header.data),
        ("Searched", &searched),
        ("Rule", &header.rule),
    ];
    let own = header.facts.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    html! {
        section.study id={ "study." (FEATURES) } {
            h2 { (header.title) }
            (facts(fixed.into_iter().chain(own)))
            (features.maps)
            p { a href={ (FEATURES) "/index.html" } { "This on a page of its own" } }
        }
    }
}

/// The lines under the title.
fn about(run: &Run<'_>) -> Vec<(&'static str, String)> {
    let State { step, epoch, seed, recipe, backend, program, .. } = run.state;
    let input = run.architecture.input;
    vec![
        ("Network", run.architecture.name.clone()),
        (
            "Input",
            format!("{} pixels{}", by(input.size), if input.channels == 1 { ", grey" } else { "" }),
        ),
        ("Classes", grouped(run.architecture.classes)),
        (
            "Trained",
            format!("{epoch} of {} epochs, {} updates", recipe.epochs, grouped(*step as usize)),
        ),
        ("Batch", format!("{} images", recipe.batch_size)),
        ("Seed", seed.to_string()),
        ("Trained on", backend.to_string()),
        ("By", program.clone()),
    ]
}

/// Curves of loss and error, and the best epoch beside the paper's numbers.
fn training(run: &Run<'_>, out: &Path) -> io::Result<Figure> {
    let epochs: Vec<(f64, [f64; 4])> = run
        .record
        .epochs
        .iter()
        .map(|e| {
            let values = [e.train_loss, e.val_loss, e.val_top1_error, e.val_top5_error];
            (f64::from(e.epoch), values)
        })
        .collect();
    let line = |name: &str, column: usize, scale: f64| Line {
        name: name.into(),
        points: epochs.iter().map(|(epoch, values)| (*epoch, values[column] * scale)).collect(),
    };
    let losses = [
        step_losses(run.record),
        line("training, mean of an epoch", 0, 1.0),
        line("validation, centre crop", 1, 1.0),
    ];
    let errors = [line("top-1", 2, 100.0), line("top-5", 3, 100.0)];
    let plot = |file: &str, y: &str, lines: &[Line], title: &str, method: &str| {
        let picture = Picture { title: title.into(), method: method.into(), ..Picture::default() };
        plotted(out, file.into(), &Plot { x: "epoch", y, lines, ..Plot::default() }, picture)
    };
    let with_dropout = "training losses are those of the steps, with dropout and training crops";
    let loss = plot("loss.svg", "cross-entropy", &losses, "Loss by epoch", with_dropout)?;
    let y = "validation error, centre crop (%)";
    let one_crop = "one crop of each image, the centre";
    let error = plot("error.svg", y, &errors, "Validation error by epoch", one_crop)?;
    Ok(Figure {
        study: TRAINING.into(),
        title: "Training".into(),
        sections: vec![Section {
            pictures: vec![loss, error],
            tables: vec![beside_the_paper(run, &epochs)],
            ..Section::default()
        }],
        ..Figure::default()
    })
}

/// Losses of single steps, each point the mean of neighbours.
fn step_losses(record: &Record) -> Line {
    let per_epoch = record.steps_per_epoch().unwrap_or(f64::from(record.updates.max(1)));
    let points = record.losses.iter().map(|loss| (f64::from(loss.step) / per_epoch, loss.loss));
    Line { name: "training, some steps at a time".into(), points: points.collect() }
}

/// The run's best epoch, and what the paper reports of the network it is made after.
fn beside_the_paper(run: &Run<'_>, epochs: &[(f64, [f64; 4])]) -> Table {
    let percent = |share: f64| format!("{:.1}", share * 100.0);
    let best = epochs.iter().min_by(|(_, a), (_, b)| a[2].total_cmp(&b[2]));
    let mut rows = Vec::new();
    if let Some((epoch, [.., top1, top5])) = best {
        rows.push(vec![
            format!("this run, its best epoch by this, {epoch}"),
            percent(*top1),
            percent(*top5),
        ]);
    }
    let name = &run.architecture.name;
    if name.starts_with("zfnet") {
        rows.push(["the paper’s network, ImageNet 2012", "38.4", "16.5"].map(String::from).into());
    }
    rows.push(["AlexNet as the paper trained it", "40.5", "18.1"].map(String::from).into());
    let Architecture { classes, input, .. } = run.architecture;
    let recipe = &run.state.recipe;
    Table {
        caption: "Validation error in per cent".into(),
        head: ["", "top-1", "top-5"].map(String::from).into(),
        rows,
        notes: vec![format!(
            "These are different tasks. The paper: 1,000 classes, 1.3 million training images, crops \
             of 224 pixels, 70 epochs, ten crops averaged. Here: {} classes, {} updates of {} images \
             so far, crops of {} pixels, {} of {} epochs, one crop.",
            grouped(*classes),
            grouped(run.state.step as usize),
            recipe.batch_size,
            by(input.size),
            run.state.epoch,
            recipe.epochs,
        )],
    }
}
