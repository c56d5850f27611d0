//! The page of [`ensemble`](crate::study::ensemble): the errors of networks alone and averaged beside the
//! paper's Table 2.

use std::io;
use std::path::{Path, PathBuf};

use super::figure::{Page, Section, Table};
use super::{fact, fact_named};
use crate::study::ensemble::{Ensemble, EnsembleRow, Errors, STUDY};

/// The paper's Table 2: top-1 and top-5 error on the validation set, top-5 error on the test set, in
/// per cent.
const PAPER: [(&str, &str, &str, &str); 6] = [
    ("AlexNet, one network", "40.7", "18.2", ""),
    ("AlexNet as the paper trained it, one network", "40.5", "18.1", ""),
    ("the paper’s network (a), one", "38.4", "16.5", ""),
    ("(a), five averaged", "36.7", "15.3", "15.3"),
    ("the wider network (b), one", "37.5", "16.0", "16.1"),
    ("(a) and (b), six averaged", "36.0", "14.7", "14.8"),
];

/// Writes `ensemble.json`, `ensemble.csv` and the page; returns the page's path.
///
/// # Errors
/// If the folder cannot be written.
pub fn write(out: &Path, found: &Ensemble) -> io::Result<PathBuf> {
    let Ensemble { facts, precision, classes, rows } = found;
    let precision = format!("{precision:?}");
    let mut all = facts.clone();
    all.extend([fact("Classes", classes.to_string()), fact("Precision", &precision)]);
    let mut page = Page::new(out, &STUDY, "Networks alone and averaged".into(), all)?;
    page.figure.how = vec![
        "An image’s probabilities are averaged over its crops (the centre; or corners and \
         centre, each mirrored too), then over the networks. Of classes that are equally \
         probable, the one of the lower number counts as the more probable one."
            .into(),
    ];
    let tables = vec![beside_the_paper(found)];
    page.figure.sections.push(Section { tables, ..Section::default() });
    let json = serde_json::json!({
        "study": STUDY.name, "data": fact_named(facts, "Data"), "precision": precision, "rows": rows,
    });
    page.file("ensemble.json", "all rows, as shares", &serde_json::to_vec_pretty(&json)?)?;
    let both = |row: &EnsembleRow| [(1, row.one_crop), (10, row.ten_crops)];
    let lines = rows.iter().flat_map(|row| {
        both(row).map(|(crops, Errors { top1_error, top5_error, images })| {
            let numbers = [top1_error.to_string(), top5_error.to_string(), images.to_string()];
            [vec![row.name.clone(), crops.to_string()], numbers.into()].concat()
        })
    });
    let head = ["networks", "crops", "top1_error", "top5_error", "images"];
    page.csv("ensemble.csv", "the same as a table", &head, lines)?;
    page.finish()
}

fn beside_the_paper(found: &Ensemble) -> Table {
    let Ensemble { classes, rows, .. } = found;
    let percent = |share: f64| format!("{:.1}", share * 100.0);
    let ours = rows.iter().map(|row| {
        let EnsembleRow { name, one_crop: one, ten_crops: ten } = row;
        let errors = [one.top1_error, one.top5_error, ten.top1_error, ten.top5_error];
        let mut cells = vec![name.clone()];
        cells.extend(errors.map(percent));
        cells.extend([String::new(), one.images.to_string()]);
        cells
    });
    let paper = PAPER.iter().map(|&(name, top1, top5, test)| {
        let cells = [&format!("paper: {name}"), "", "", top1, top5, test, "50,000"];
        cells.map(String::from).into()
    });
    let head =
        ["", "top-1, 1 crop", "top-5, 1 crop", "top-1, 10 crops", "top-5, 10 crops", "top-5, test"];
    let images = rows.first().map_or(0, |row| row.one_crop.images);
    let mut notes = vec![
        format!(
            "These are different tasks. The paper: 1,000 classes of ImageNet 2012, 1.3 million \
             training images, crops of 224 pixels, errors on 50,000 validation images. Here: \
             {classes} classes and {images} images, the networks as their checkpoints say."
        ),
        format!(
            "An error of 30 % of {images} images has a standard deviation of {:.1} points by chance \
             alone; rows on the same images differ by less than that suggests.",
            100.0 * (0.3 * 0.7 / images.max(1) as f64).sqrt()
        ),
    ];
    if *classes <= 5 {
        notes
            .push("With five classes or fewer every class is among the five most probable.".into());
    }
    Table {
        caption: "Error in per cent".into(),
        head: head.into_iter().chain(["images"]).map(String::from).collect(),
        rows: ours.chain(paper).collect(),
        notes,
    }
}
