//! The page of [`ablation`](crate::study::ablation): the errors of a network's variants beside the paper's
//! Table 3.

use std::io;
use std::path::{Path, PathBuf};

use super::figure::{Page, Section, Table};
use super::{by, fact, fact_named, grouped};
use crate::study::ablation::{Ablation, Paper, STUDY, TrainedVariant};

/// Writes `ablation.json`, `ablation.csv` and the page; returns the page's path.
///
/// # Errors
/// If the folder cannot be written.
pub fn write(out: &Path, found: &Ablation) -> io::Result<PathBuf> {
    let Ablation { facts, base, seed, precision, rows, .. } = found;
    let recipe = toml::to_string(&base.recipe).expect("plain data");
    let mut all = vec![fact("Base", &base.name)];
    all.extend(facts.clone());
    all.extend([
        fact("Classes", base.classes.to_string()),
        fact("Seed", seed.to_string()),
        fact("Recipe of all", recipe.lines().collect::<Vec<_>>().join(", ")),
        fact("Precision", format!("{precision:?}")),
    ]);
    let title = format!("What each layer is worth: {}", base.name);
    let mut page = Page::new(out, &STUDY, title, all)?;
    page.figure.how = vec![
        "Every network is trained from the start, with the same images in the same order, the \
         same recipe and the same seed. Errors are those of the weights after the last epoch, \
         on one crop of each image, the centre; no epoch is chosen by its validation error."
            .into(),
    ];
    let tables = vec![beside_the_paper(found)];
    page.figure.sections.push(Section { tables, ..Section::default() });
    let json = serde_json::json!({
        "study": STUDY.name, "data": fact_named(facts, "Data"), "seed": seed,
        "classes": base.classes, "crops": 1, "recipe": base.recipe, "rows": rows,
    });
    page.file("ablation.json", "all rows, as shares", &serde_json::to_vec_pretty(&json)?)?;
    let head = [
        "network",
        "parameters",
        "train_top1_error",
        "val_top1_error",
        "val_top5_error",
        "paper_network",
        "paper_train_top1_percent",
        "paper_val_top1_percent",
        "paper_val_top5_percent",
    ];
    let lines = rows.iter().map(|row| {
        let ours = [row.train.top1_error, row.val.top1_error, row.val.top5_error];
        let mut line = vec![row.name.clone(), row.parameters.to_string()];
        line.extend(ours.map(|error| error.to_string()));
        line.extend(paper_cells(row, |error| error.to_string()));
        line
    });
    page.csv("ablation.csv", "the same as a table", &head, lines)?;
    page.finish()
}

/// The paper's network and its three errors, all empty if it has no such row.
fn paper_cells(row: &TrainedVariant, show: impl Fn(f64) -> String) -> [String; 4] {
    row.paper.as_ref().map_or_else(Default::default, |paper| {
        let Paper { network, train, val, top5 } = paper;
        [network.clone(), show(*train), show(*val), show(*top5)]
    })
}

/// Our rows, each beside the paper's.
fn beside_the_paper(found: &Ablation) -> Table {
    let Ablation { base, note, rows, .. } = found;
    let cells = |row: &TrainedVariant| {
        let percent = |error: f64| format!("{:.1}", 100.0 * error);
        let mut cells = vec![row.name.clone(), grouped(row.parameters)];
        let ours = [row.train.top1_error, row.val.top1_error, row.val.top5_error];
        cells.extend(ours.map(percent));
        cells.extend(paper_cells(row, |error| format!("{error:.1}")));
        cells
    };
    let head = [
        "",
        "parameters",
        "training, top-1",
        "validation, top-1",
        "validation, top-5",
        "paper’s network",
        "paper: training, top-1",
        "paper: validation, top-1",
        "paper: validation, top-5",
    ];
    let (train, val) = (rows[0].train.images, rows[0].val.images);
    let error = rows[0].val.top1_error;
    let mut notes = vec![
        format!(
            "These are different tasks. The paper: 1,000 classes, 1.3 million training images, \
             crops of 224 pixels, 70 epochs, validation with ten crops averaged. Here: {} classes, \
             {train} training and {val} validation images, crops of {} pixels, {} epochs, one crop \
             for every error.",
            base.classes,
            by(base.input.size),
            base.recipe.epochs
        ),
        format!(
            "Each network was trained once. By the choice of {val} validation images alone the \
             base’s error has a standard deviation of {:.1} points; networks measured on the same \
             images differ by less than that suggests, other seeds by more.",
            100.0 * (error * (1.0 - error) / val as f64).sqrt()
        ),
    ];
    if base.classes <= 5 {
        notes
            .push("With five classes or fewer every class is among the five most probable.".into());
    }
    if !note.is_empty() {
        notes.push(note.clone());
    }
    Table {
        caption: "Error in per cent".into(),
        head: head.map(String::from).into(),
        rows: rows.iter().map(cells).collect(),
        notes,
    }
}
