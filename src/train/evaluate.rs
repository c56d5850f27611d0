//! Evaluation: top-1 and top-5 error with one crop or the paper's ten, of one model or of the
//! average of several.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytemuck::{Pod, Zeroable, cast_slice, pod_read_unaligned};
use serde::Serialize;

use crate::backend::{Backend, Crop};
use crate::data::images::Images;
use crate::data::loader::{Bad, BatchPlan, Loader};
use crate::model::{InputStage, Network, Params, Preprocess, Purpose, Workspace};
use crate::ranks::Ranks;
use crate::{Error, Result};

/// Samples (crops) of one forward pass.
const SAMPLES: usize = 64;

/// How well a model does on a set.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Evaluation {
    /// Share of images whose class is not the most probable one.
    pub top1_error: f64,
    /// Share of images whose class is not among the five most probable ones.
    pub top5_error: f64,
    /// Mean of `-ln` of the averaged probability of the right class.
    #[serde(skip)]
    pub loss: f64,
    /// Number of images; files that are none are left out.
    pub images: usize,
}

/// How many crops are averaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TestCrops {
    /// The centre.
    One,
    /// Four corners and centre, each mirrored too.
    Ten,
}

impl TestCrops {
    /// The crops of an image.
    pub fn of(self, preprocess: &Preprocess, image: u32) -> Vec<Crop> {
        let ten = preprocess.ten_crops(image);
        match self {
            TestCrops::One => vec![ten[4]],
            TestCrops::Ten => ten.to_vec(),
        }
    }

    /// Images at a time that make an evaluation fast.
    pub fn batch(self) -> usize {
        (SAMPLES / self.count()).max(1)
    }

    fn count(self) -> usize {
        match self {
            TestCrops::One => 1,
            TestCrops::Ten => 10,
        }
    }
}

/// Gives the probabilities of classes for preprocessed images.
pub struct Classifier<B: Backend> {
    stage: InputStage<B>,
    workspace: Workspace<B>,
    crops: TestCrops,
    preprocess: Preprocess,
    host: Vec<f32>,
    images: usize,
}

impl<B: Backend> Classifier<B> {
    /// Plans for a network and its preprocessing, and so many images at a time.
    ///
    /// # Errors
    /// If the backend is out of memory.
    pub fn new(
        backend: &B,
        network: &Network,
        preprocess: &Preprocess,
        crops: TestCrops,
        images: usize,
    ) -> Result<Self> {
        network.must_classify()?;
        let samples = images * crops.count();
        Ok(Classifier {
            stage: InputStage::new(backend, preprocess, images, samples)?,
            workspace: Workspace::new(backend, network, Purpose::Infer, samples)?,
            crops,
            preprocess: preprocess.clone(),
            host: vec![0.0; samples * network.classes()],
            images,
        })
    }

    /// Images that one call takes at most.
    pub fn images(&self) -> usize {
        self.images
    }

    /// Adds each image's probabilities, averaged over its crops, to `probabilities`
    /// (`[images, classes]`). `pixels` holds whole squares.
    ///
    /// # Errors
    /// If a backend operation fails.
    pub fn add_probabilities(
        &mut self,
        backend: &B,
        network: &Network,
        params: &Params<B>,
        pixels: &[u8],
        probabilities: &mut [f64],
    ) -> Result<()> {
        let classes = network.classes();
        let images = probabilities.len() / classes;
        let crops: Vec<Crop> =
            (0..images as u32).flat_map(|image| self.crops.of(&self.preprocess, image)).collect();
        self.stage.fill(backend, &mut self.workspace.input, pixels, &crops)?;
        self.workspace.forward(backend, params)?;
        let logits = &mut self.host[..crops.len() * classes];
        backend.download(logits, self.workspace.logits())?;
        let share = 1.0 / self.crops.count() as f64;
        let per_image = self.crops.count() * classes;
        let images = probabilities.chunks_exact_mut(classes).zip(logits.chunks_exact(per_image));
        for (probabilities, logits) in images {
            for logits in logits.chunks_exact(classes) {
                for (p, of_crop) in probabilities.iter_mut().zip(softmax(logits)) {
                    *p += of_crop * share;
                }
            }
        }
        Ok(())
    }
}

/// The probabilities of classes, from one sample's logits.
pub fn softmax(logits: &[f32]) -> impl Iterator<Item = f64> {
    let max = logits.iter().fold(f64::NEG_INFINITY, |m, l| m.max(f64::from(*l)));
    let sum: f64 = logits.iter().map(|l| (f64::from(*l) - max).exp()).sum();
    logits.iter().map(move |logit| (f64::from(*logit) - max).exp() / sum)
}

/// One model of an ensemble.
pub struct Member<'a, B: Backend> {
    /// The network.
    pub network: &'a Network,
    /// Its weights.
    pub params: &'a Params<B>,
    /// Plans, and with them the preprocessing.
    pub classifier: Classifier<B>,
    /// The images, as squares of this model's size.
    pub images: Arc<Images>,
}

/// Evaluates the average of the members' probabilities. `progress` is called with the number of
/// images that a member has seen; a non-zero `stop` ends with `None`.
///
/// # Errors
/// If too many files are bad, members disagree on the classes, or a backend operation fails.
pub fn evaluate<B: Backend>(
    backend: &B,
    members: &mut [Member<'_, B>],
    workers: usize,
    stop: &AtomicUsize,
    progress: impl FnMut(usize),
) -> Result<Option<Evaluation>> {
    evaluate_each(backend, members, workers, &Ranks::alone(), stop, progress, |_, _| {})
}

/// What becomes of one image.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Row {
    class: u32,
    /// The number of classes that come before it.
    rank: u32,
    /// The most probable class; `u32::MAX` if a probability is NaN.
    predicted: u32,
    unused: u32,
    /// The probability of its class.
    probability: f64,
}

/// The same, divided among ranks, each of which is given the result; `each` is called with every image's class and the
/// most probable one, unless a probability is NaN.
pub(super) fn evaluate_each<B: Backend>(
    backend: &B,
    members: &mut [Member<'_, B>],
    workers: usize,
    ranks: &Ranks,
    stop: &AtomicUsize,
    mut progress: impl FnMut(usize),
    mut each: impl FnMut(usize, usize),
) -> Result<Option<Evaluation>> {
    let Some(first) = members.first() else {
        return Err(Error::Data("no model to evaluate".into()));
    };
    let (classes, len) = (first.network.classes(), first.images.len());
    let batch = first.classifier.images();
    let mut loaders = Vec::new();
    for member in members.iter() {
        if member.network.classes() != classes {
            return Err(Error::Data(format!(
                "expected models of {classes} classes, found one of {}",
                member.network.classes()
            )));
        }
        // All go through the same images in step; each sees them in its own size.
        assert_eq!(member.classifier.images(), batch, "members take the same crops");
        // Every so many-th batch is this rank's; batches are the same for any ranks.
        let order: Vec<u32> = (0..len as u32).collect();
        let own = order.chunks(batch).skip(ranks.rank()).step_by(ranks.count());
        let order = own.flatten().copied().collect();
        let plan = BatchPlan::new(order, batch, Bad::Skip);
        loaders.push(Loader::new(member.images.clone(), plan, workers));
    }
    let weight = 1.0 / members.len() as f64;
    let mut sums = vec![0.0f64; batch * classes];
    let mut one = sums.clone();
    let mut result = Evaluation { top1_error: 0.0, top5_error: 0.0, loss: 0.0, images: 0 };
    let batches = len.div_ceil(batch);
    for first in (0..batches).step_by(ranks.count()) {
        let stopped = stop.load(Ordering::Relaxed) != 0;
        if ranks.any(stopped)? {
            return Ok(None);
        }
        let mut rows = Vec::new();
        let has_batch = first + ranks.rank() < batches;
        sums.fill(0.0);
        let mut labels = Vec::new();
        for (member, loader) in members.iter_mut().zip(&mut loaders).filter(|_| has_batch) {
            let batch = loader.next_batch()?.expect("as many batches as counted");
            let Member { network, params, classifier, .. } = member;
            let one = &mut one[..batch.labels.len() * classes];
            one.fill(0.0);
            if !one.is_empty() {
                classifier.add_probabilities(backend, network, params, batch.pixels(), one)?;
            }
            sums.iter_mut().zip(one).for_each(|(sum, p)| *sum += *p * weight);
            labels.clone_from(&batch.labels);
            progress(batch.labels.len());
            loader.recycle(batch);
        }
        for (row, &label) in sums.chunks_exact(classes).zip(&labels) {
            let mut predicted = u32::MAX;
            if row.iter().all(|p| !p.is_nan()) {
                let first = row.iter().enumerate().rev().max_by(|a, b| a.1.total_cmp(b.1));
                predicted = first.expect("a class").0 as u32;
            }
            let (rank, probability) = (rank(row, label as usize) as u32, row[label as usize]);
            rows.push(Row { class: label, rank, predicted, unused: 0, probability });
        }
        for (rank, bytes) in ranks.all_gather(cast_slice(&rows).to_vec())?.iter().enumerate() {
            let rows = bytes.chunks_exact(size_of::<Row>()).map(pod_read_unaligned::<Row>);
            if rank != ranks.rank() {
                progress(rows.len());
            }
            for Row { class, rank, predicted, probability: p, .. } in rows {
                if predicted != u32::MAX {
                    each(class as usize, predicted as usize);
                }
                result.images += 1;
                result.top1_error += f64::from(u8::from(rank >= 1));
                result.top5_error += f64::from(u8::from(rank >= 5));
                // A probability may be zero, which is no infinite loss; NaN stays.
                result.loss -= if p < f64::MIN_POSITIVE { f64::MIN_POSITIVE } else { p }.ln();
            }
        }
    }
    if result.images == 0 {
        return Err(Error::Data("no image of the set can be read".into()));
    }
    let count = result.images as f64;
    result.top1_error /= count;
    result.top5_error /= count;
    result.loss /= count;
    Ok(Some(result))
}

/// The number of classes that come before `label`: those of larger probability, and those of equal
/// probability and lower index. A NaN anywhere counts as wrong: all classes come before.
pub(crate) fn rank(probabilities: &[f64], label: usize) -> usize {
    if probabilities.iter().any(|p| p.is_nan()) {
        return probabilities.len();
    }
    let own = probabilities[label];
    let before = |(class, p): (usize, &f64)| *p > own || (*p == own && class < label);
    probabilities.iter().enumerate().filter(|&pair| before(pair)).count()
}

#[cfg(test)]
mod tests {
    use super::rank;

    #[test]
    fn ranks_with_ties_and_nan() {
        let p = [0.1, 0.3, 0.3, 0.2, 0.1];
        assert_eq!([0, 1, 2, 3, 4].map(|label| rank(&p, label)), [3, 0, 1, 2, 4]);
        assert_eq!(rank(&[0.5, f64::NAN], 0), 2);
        assert_eq!(rank(&[f64::NAN; 7], 3), 7);
        assert_eq!(rank(&[0.5; 6], 5), 5);
    }
}
