//! The paper's Table 2: networks alone and averaged, with one crop of each image and with ten.
//!
//! An image's probabilities are averaged over its crops, then over the networks; the class of the
//! largest one is the answer. What `zfnet eval` prints comes from here too, so a network's row is
//! what `eval` says of it. A network averaged with itself is the same bit for bit, since half of a
//! probability and the sum of two equal halves are exact; so is any power of two of it.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use serde::{Deserialize, Serialize};

use super::{Facts, Session, Study};
use crate::backend::{Backend, Precision};
use crate::data::images::Images;
use crate::model::Model;
use crate::train::evaluate::{Classifier, Evaluation, Member, TestCrops, evaluate};
use crate::{Error, Result};

/// See [`super::STUDIES`].
pub const STUDY: Study = Study {
    name: "ensemble",
    shows: "several checkpoints averaged",
    paper: "Table 2",
    of_one_run: false,
};

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
pub struct EnsembleRow {
    /// The network, or how many were averaged.
    pub name: String,
    /// With the centre crop.
    pub one_crop: Errors,
    /// With corners and centre, mirrored or not.
    pub ten_crops: Errors,
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Ensemble {
    /// What it was made with.
    pub facts: Facts,
    /// How activations were stored.
    pub precision: Precision,
    /// Number of classes, the same for all networks.
    pub classes: usize,
    /// Each network alone, then all averaged.
    pub rows: Vec<EnsembleRow>,
}

/// The errors of several networks, each alone and all averaged.
///
/// # Errors
/// If too many files are bad, the networks disagree on the number of classes, parts cannot be kept, or a
/// backend operation fails.
///
/// # Panics
/// If there are no candidates.
pub fn run<B: Backend>(
    session: &mut Session<'_, B>,
    candidates: &[Candidate<B>],
) -> Result<Ensemble> {
    let models: Vec<&Model<B>> = candidates.iter().map(|candidate| &candidate.model).collect();
    // The first image's path says which set it is: names of files and classes may be those of another.
    let images = &candidates[0].images;
    let settings = (images.fingerprint(), images.path(0), &session.facts);
    let parts = session.parts(&models, &settings)?;
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
                let (backend, workers) = (session.backend, session.workers);
                let rates = error_rates(backend, members, crops, workers, &never, |images| {
                    done += images * count;
                    session.progress("crops", done, total, "");
                })?;
                let errors = rates.expect("nothing asks it to stop").into();
                parts.put(&part, &errors)?;
                errors
            }
        };
        found.push((name, errors));
    }
    let rows = found
        .chunks_exact(2)
        .map(|pair| EnsembleRow {
            name: pair[0].0.clone(),
            one_crop: pair[0].1,
            ten_crops: pair[1].1,
        })
        .collect();
    Ok(Ensemble {
        facts: session.facts.clone(),
        precision: session.backend.precision(),
        classes: candidates[0].model.classes.len(),
        rows,
    })
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
    for (name, other) in others {
        if let Some(difference) = one.classes.difference(&other.classes) {
            return Err(Error::Data(format!(
                "the networks of an ensemble must have the same classes, and {name} has others than {first}: \
                 {difference}"
            )));
        }
    }
    Ok(())
}
