//! The page of [`ablation`](crate::study::ablation): the errors of a network's variants beside the paper's
//! Table 3.

use std::io;
use std::path::{Path, PathBuf};

use super::figure::{Page, Section, Table};
use super::{by, fact, fact_named, grouped};
use crate::study::ablation::{Ablation, Paper, STUDY, Spread, TrainedRun, TrainedVariant};

/// Writes `ablation.json`, `ablation.csv` and the page; returns the page's path.
///
/// # Errors
/// If the folder cannot be written.
pub fn write(out: &Path, found: &Ablation) -> io::Result<PathBuf> {
    let Ablation { facts, base, precision, rows, .. } = found;
    let seeds: Vec<u64> = rows[0].runs.iter().map(|run| run.seed).collect();
    let recipe = toml::to_string(&base.recipe).expect("plain data");
    let mut all = vec![fact("Base", &base.name)];
    all.extend(facts.clone());
    all.extend([
        fact("Classes", base.classes.to_string()),
        fact("Seeds", seeds.iter().map(u64::to_string).collect::<Vec<_>>().join(", ")),
        fact("Recipe of all", recipe.lines().collect::<Vec<_>>().join(", ")),
        fact("Precision", format!("{precision:?}")),
    ]);
    let title = format!("What each layer is worth: {}", base.name);
    let mut page = Page::new(out, &STUDY, title, all)?;
    page.figure.how = vec![
        "Every network is trained from the start, with the same images in the same order, the \
         same recipe and the same seeds. Errors are those of the weights after the last epoch, \
         on one crop of each image, the centre; no epoch is chosen by its validation error."
            .into(),
    ];
    let tables = vec![beside_the_paper(found)];
    page.figure.sections.push(Section { tables, ..Section::default() });
    if seeds.len() > 1 {
        page.figure.sections.push(Section {
            title: "What the seeds leave open".into(),
            text: vec![
                "Another seed gives other initial weights, crops and another order of images, and so \
                 another error. Only differences larger than those between seeds say something of the \
                 networks."
                    .into(),
            ],
            tables: vec![
                left_open(found, "validation images", |run| run.val.top1_error),
                left_open(found, "training images", |run| run.train.top1_error),
            ],
            ..Section::default()
        });
    }
    let json = serde_json::json!({
        "study": STUDY.name, "data": fact_named(facts, "Data"), "seeds": seeds,
        "classes": base.classes, "crops": 1, "recipe": base.recipe, "rows": rows,
    });
    page.file("ablation.json", "all rows, as shares", &serde_json::to_vec_pretty(&json)?)?;
    let head = [
        "network",
        "parameters",
        "seed",
        "train_top1_error",
        "val_top1_error",
        "val_top5_error",
        "paper_network",
        "paper_train_top1_percent",
        "paper_val_top1_percent",
        "paper_val_top5_percent",
    ];
    let runs = rows.iter().flat_map(|row| row.runs.iter().map(move |run| (row, run)));
    let lines = runs.map(|(row, run)| {
        let ours = [run.train.top1_error, run.val.top1_error, run.val.top5_error];
        let mut line = vec![row.name.clone(), row.parameters.to_string(), run.seed.to_string()];
        line.extend(ours.map(|error| error.to_string()));
        line.extend(paper_cells(row, |error| error.to_string()));
        line
    });
    page.csv(
        "ablation.csv",
        "the same as a table, a line for each network and seed",
        &head,
        lines,
    )?;
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
        let ours: [fn(&TrainedRun) -> f64; 3] =
            [|run| run.train.top1_error, |run| run.val.top1_error, |run| run.val.top5_error];
        let ours = ours.map(|error| row.mean(error));
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
    let (train, val) = (rows[0].runs[0].train.images, rows[0].runs[0].val.images);
    let error = rows[0].mean(|run| run.val.top1_error);
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
            "{} By the choice of {val} validation images alone the base’s error has a standard \
             deviation of {:.1} points; networks measured on the same images differ by less than that \
             suggests.",
            match rows[0].runs.len() {
                1 => "Each network was trained once: how much of a difference is the seed’s is not known \
                      (--seeds 2 or more says it)."
                    .to_owned(),
                seeds => format!("Means over {seeds} seeds."),
            },
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

/// The error of every seed, and which rows it tells apart.
fn left_open(found: &Ablation, images: &str, error: impl Fn(&TrainedRun) -> f64) -> Table {
    let rows = &found.rows;
    let of_row = |row: &TrainedVariant| row.runs.iter().map(&error).collect::<Vec<f64>>();
    let spread = Spread::of(&rows.iter().map(of_row).collect::<Vec<_>>());
    let least = spread.map_or(f64::NAN, |spread| spread.least_difference);
    let means: Vec<f64> = rows.iter().map(|row| row.mean(&error)).collect();
    let larger = |a: usize, b: usize| (means[a] - means[b]).abs() > least;
    let percent = |error: f64| format!("{:.1}", 100.0 * error);
    let cells = |(place, row): (usize, &TrainedVariant)| {
        let mut cells = vec![format!("{}. {}", place + 1, row.name)];
        cells.extend(of_row(row).into_iter().map(percent));
        cells.push(percent(means[place]));
        cells.extend(match place {
            0 => ["–".to_owned(), "–".to_owned()],
            _ => [
                format!("{:+.1}", 100.0 * (means[place] - means[0])),
                if larger(place, 0) { "yes" } else { "no" }.to_owned(),
            ],
        });
        let alike: Vec<String> = (0..rows.len())
            .filter(|other| *other != place && !larger(place, *other))
            .map(|other| (other + 1).to_string())
            .collect();
        cells.push(if alike.is_empty() { "–".to_owned() } else { alike.join(", ") });
        cells
    };
    let mut head = vec![String::new()];
    head.extend(rows[0].runs.iter().map(|run| format!("seed {}", run.seed)));
    let others =
        ["mean", "minus the base", "larger than the seeds’ spread", "not clearly different from"];
    head.extend(others.map(String::from));
    let notes = spread.map(|spread| {
        format!(
            "Between seeds of a network the error has a standard deviation of {:.2} points (pooled over all \
             networks, {} degrees of freedom). A difference of two means counts as larger if it is above \
             {:.2} points: Student’s t at 5 %, each pair for itself, so that of twenty pairs without a \
             difference about one is expected to seem to have one.",
            100.0 * spread.deviation,
            spread.degrees_of_freedom,
            100.0 * spread.least_difference
        )
    });
    Table {
        caption: format!("Top-1 error in per cent on the {images}, by seed"),
        head,
        rows: rows.iter().enumerate().map(cells).collect(),
        notes: notes.into_iter().collect(),
    }
}
