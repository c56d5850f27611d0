//! The paper's Table 2: networks alone and averaged, with one crop of each image and with ten.
//!
//! An image's probabilities are averaged over its crops, then over the networks; the class of the
//! largest one is the answer. What `zfnet eval` prints comes from here too, so a network's row is
//! what `eval` says of it. A network averaged with itself is the same bit for bit, since half of a
//! probability and the sum of two equal halves are exact; so is any power of two of it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use serde::{Deserialize, Serialize};

use super::parts::Parts;
use super::{Study, fingerprint};
use crate::backend::Backend;
use crate::data::images::Images;
use crate::disk::write_whole;
use crate::model::Model;
use crate::model::weights::made_up_classes;
use crate::report::csv;
use crate::report::figure::{Figure, Section, Table};
use crate::train::evaluate::{Classifier, Evaluation, Member, TestCrops, evaluate};
use crate::{Error, Result};

/// See [`super::STUDIES`].
pub const STUDY: Study = Study {
    name: "ensemble",
    shows: "several checkpoints averaged",
    paper: "Table 2",
    of_one_run: false,
};

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

/// A network, and the images as squares of its size.
pub struct Candidate<B: Backend> {
    /// What it is called in the table.
    pub name: String,
    /// The network and its weights.
    pub model: Model<B>,
    /// The images; the same ones in the same order for all.
    pub images: Arc<Images>,
}

/// What a study keeps of an [`Evaluation`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Errors {
    /// Share of images whose class is not the most probable one.
    pub top1_error: f64,
    /// Share of images whose class is not among the five most probable ones.
    pub top5_error: f64,
    /// Number of images; files that are none are left out.
    pub images: usize,
}

impl From<Evaluation> for Errors {
    fn from(evaluation: Evaluation) -> Self {
        let Evaluation { top1_error, top5_error, images, .. } = evaluation;
        Errors { top1_error, top5_error, images }
    }
}

/// A row of the table.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// The network, or how many were averaged.
    pub name: String,
    /// With the centre crop.
    pub one_crop: Errors,
    /// With corners and centre, mirrored or not.
    pub ten_crops: Errors,
}

/// What to evaluate on, and where to.
pub struct Request<'a> {
    /// The folder of the page.
    pub out: &'a Path,
    /// Data and split, as the page names them.
    pub data: String,
    /// Threads that decode.
    pub workers: usize,
}

/// The errors of several networks, each alone and all averaged; rows that an interrupted call has
/// finished are not worked out again. `progress` hears of crops done, of how many.
///
/// # Errors
/// If too many files are bad, the networks disagree on the classes, the folder cannot be written or
/// the backend refuses.
pub fn ensemble<B: Backend>(
    backend: &B,
    candidates: &[Candidate<B>],
    request: &Request<'_>,
    mut progress: impl FnMut(usize, usize),
) -> Result<PathBuf> {
    let settings = (
        candidates
            .iter()
            .map(|candidate| fingerprint(backend, &candidate.model))
            .collect::<Result<Vec<_>>>()?,
        candidates.first().map(|candidate| candidate.images.fingerprint()),
        &request.data,
        backend.id(),
    );
    let parts = Parts::open(request.out, &settings)?;
    let alone = candidates.chunks(1).map(|one| (one[0].name.clone(), one));
    let averaged = (format!("all {} averaged", candidates.len()), candidates);
    let mut evaluations = Vec::new();
    for (index, (name, members)) in alone.chain([averaged]).enumerate() {
        for (count, crops) in [(1, TestCrops::One), (10, TestCrops::Ten)] {
            let part = format!("row-{index}-crops-{count}");
            let known = parts.get::<Errors>(&part);
            let work = count * members.iter().map(|member| member.images.len()).sum::<usize>();
            let work = if known.is_some() { 0 } else { work };
            evaluations.push(Planned {
                name: name.clone(),
                members,
                crops,
                count,
                part,
                known,
                work,
            });
        }
    }
    let total = evaluations.iter().map(|planned| planned.work).sum();
    let mut done = 0;
    let mut found = Vec::new();
    for Planned { name, members, crops, count, part, known, .. } in evaluations {
        let errors = match known {
            Some(errors) => errors,
            None => {
                let never = AtomicUsize::new(0);
                let workers = request.workers;
                let rates = error_rates(backend, members, crops, workers, &never, |images| {
                    done += images * count;
                    progress(done, total);
                })?;
                let errors = rates.expect("nothing asks it to stop").into();
                parts.put(&part, &errors)?;
                errors
            }
        };
        found.push((name, errors));
    }
    let rows: Vec<Row> = found
        .chunks_exact(2)
        .map(|pair| Row { name: pair[0].0.clone(), one_crop: pair[0].1, ten_crops: pair[1].1 })
        .collect();
    let classes = candidates[0].model.classes.len();
    let page = write(request, &format!("{:?}", backend.precision()), classes, &rows)?;
    Parts::remove(request.out)?;
    Ok(page)
}

/// One half of a row: with one number of crops.
struct Planned<'a, B: Backend> {
    name: String,
    members: &'a [Candidate<B>],
    crops: TestCrops,
    count: usize,
    part: String,
    known: Option<Errors>,
    /// Crops that are still to be looked at.
    work: usize,
}

/// Error rates of the average of some networks. `progress` is called with the number of images that
/// a network has seen; a non-zero `stop` ends with `None`.
///
/// # Errors
/// As [`evaluate`].
pub fn error_rates<B: Backend>(
    backend: &B,
    candidates: &[Candidate<B>],
    crops: TestCrops,
    workers: usize,
    stop: &AtomicUsize,
    progress: impl FnMut(usize),
) -> Result<Option<Evaluation>> {
    let mut members = Vec::new();
    for Candidate { model, images, .. } in candidates {
        let Model { network, params, preprocess, .. } = model;
        let classifier = Classifier::new(backend, network, preprocess, crops, crops.batch())?;
        members.push(Member { network, params, classifier, images: images.clone() });
    }
    evaluate(backend, &mut members, workers, stop, progress)
}

/// Checks that all networks tell the same classes apart.
///
/// # Errors
/// If one has other classes than the first: both names, and where they part.
pub fn same_classes<B: Backend>(models: &[(String, Model<B>)]) -> Result<()> {
    let Some(((first, one), others)) = models.split_first() else { return Ok(()) };
    // A bare model does not know its classes' names: they have been made up.
    let named = |classes: &[String]| classes != made_up_classes(classes.len());
    for (name, other) in others {
        let (a, b) = (&one.classes, &other.classes);
        let refuse = |a: String, b: String| {
            Err(Error::Data(format!(
                "the networks of an ensemble must have the same classes: {first} has {a}, {name} \
                 has {b}"
            )))
        };
        if a.len() != b.len() {
            return refuse(format!("{} classes", a.len()), format!("{} classes", b.len()));
        }
        let apart = a.iter().zip(b).enumerate().find(|(_, (a, b))| a != b);
        if let Some((class, (a_class, b_class))) = apart
            && named(a)
            && named(b)
        {
            return refuse(
                format!("`{a_class}` as class {class}"),
                format!("`{b_class}` as class {class}"),
            );
        }
    }
    Ok(())
}

/// Writes the page, and the rows as JSON and CSV.
fn write(request: &Request<'_>, precision: &str, classes: usize, rows: &[Row]) -> Result<PathBuf> {
    let Request { out, data, .. } = request;
    let both = |row: &Row| [(1, row.one_crop), (10, row.ten_crops)];
    let lines = rows.iter().flat_map(|row| {
        both(row).map(|(crops, Errors { top1_error, top5_error, images })| {
            let numbers = [top1_error.to_string(), top5_error.to_string(), images.to_string()];
            [vec![row.name.clone(), crops.to_string()], numbers.into()].concat()
        })
    });
    let table = csv(&["networks", "crops", "top1_error", "top5_error", "images"], lines);
    let json = serde_json::json!({
        "study": "ensemble", "data": data, "precision": precision, "rows": rows,
    });
    let json = serde_json::to_vec_pretty(&json).expect("plain data");
    let figure = Figure {
        study: "ensemble".into(),
        title: "Networks alone and averaged".into(),
        paper: "Table 2".into(),
        facts: vec![
            ("Data".into(), data.clone()),
            ("Classes".into(), classes.to_string()),
            ("Precision".into(), precision.into()),
        ],
        how: vec![
            "An image’s probabilities are averaged over its crops (the centre; or corners and \
             centre, each mirrored too), then over the networks. Of classes that are equally \
             probable, the one of the lower number counts as the more probable one."
                .into(),
        ],
        sections: vec![Section {
            tables: vec![beside_the_paper(classes, rows)],
            ..Section::default()
        }],
        files: vec![
            ("ensemble.json".into(), "all rows, as shares".into()),
            ("ensemble.csv".into(), "the same as a table".into()),
        ],
    };
    let write = || {
        write_whole(&out.join("ensemble.json"), &json)?;
        write_whole(&out.join("ensemble.csv"), table.as_bytes())?;
        figure.write(out)
    };
    write().map_err(Error::io("write", *out))
}

fn beside_the_paper(classes: usize, rows: &[Row]) -> Table {
    let percent = |share: f64| format!("{:.1}", share * 100.0);
    let ours = rows.iter().map(|row| {
        let Row { name, one_crop: one, ten_crops: ten } = row;
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
    if classes <= 5 {
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
