//! How much memory training takes, and which batch would fit.

use super::evaluate::{Classifier, TestCrops};
use super::trainer::{Division, Trainer};
use crate::backend::Backend;
use crate::data::classes::Classes;
use crate::human_bytes;
use crate::model::{Model, Network, Params};
use crate::{Error, Result};

/// Samples at a time of the two small trainings by which the need of larger ones is told: the first pair of
/// which both fit.
const SMALL: [[usize; 2]; 3] = [[64, 128], [8, 16], [1, 2]];

/// Adds to an error for want of memory how much would be needed and which batch would fit.
pub(super) fn with_memory_hint<B: Backend>(
    backend: &B,
    network: &Network,
    division: &Division,
    error: Error,
) -> Error {
    let Error::Memory { wanted, free } = error else { return error };
    let batch = network.architecture.recipe.batch_size;
    let samples = batch.div_ceil(division.parts.max(1));
    let own_parts = division.parts / division.ranks.count();
    let name = &network.architecture.name;
    let free_now = backend.memory().ok().and_then(|memory| memory.free);
    let (needs, largest) = match memory_model(backend, network, own_parts) {
        None => {
            let weights = human_bytes(4 * network.parameters());
            let needs = format!(
                "To train {name} not even one sample at a time would fit: its weights alone take \
                 three times {weights}, with momentum and gradients"
            );
            (needs, Some(0))
        }
        Some((fixed, each)) => {
            let all = human_bytes((fixed + each * samples as f64) as usize);
            let largest = largest_batch(backend, network, own_parts, free_now);
            let fits = match largest {
                Some(0) | None => "no batch at all would fit".into(),
                // The estimate is a little too high.
                Some(largest) if largest >= samples => "a little less would fit".into(),
                Some(largest) => format!("about {largest} would fit"),
            };
            let needs =
                format!("To train {name} on {samples} samples at a time takes about {all}; {fits}");
            (needs, largest)
        }
    };
    Error::TrainingMemory { wanted, free, needs, batch, samples, largest }
}

/// A training of a network with any weights, for a set of pictures that does not matter, and its
/// validation.
pub(super) fn dummy_trainer<'a, B: Backend>(
    backend: &'a B,
    network: &Network,
    accumulate: usize,
) -> Result<(Trainer<'a, B>, Classifier<B>)> {
    let input = network.architecture.input;
    let preprocess = input.preprocess(vec![128.0; input.resize.bytes()]);
    let params = Params::init(backend, network, 0)?;
    let classes = Classes::unknown(network.classes());
    let model = Model { network: network.clone(), params, preprocess, classes };
    let momentum = Params::zeros(backend, network)?;
    let trainer = Trainer::new(backend, model, momentum, accumulate)?;
    let validator = validator(backend, &trainer.model, accumulate)?;
    Ok((trainer, validator))
}

/// Bytes that a training in so many parts of a batch takes at one rank whatever their size, and bytes for each sample of a
/// part.
fn memory_model<B: Backend>(
    backend: &B,
    network: &Network,
    accumulate: usize,
) -> Option<(f64, f64)> {
    let accumulate = accumulate.max(1);
    let bytes = |samples| {
        let mut network = network.clone();
        network.architecture.recipe.batch_size = samples * accumulate;
        let before = backend.memory().ok()?.allocated_total;
        dummy_trainer(backend, &network, accumulate).ok()?;
        Some((backend.memory().ok()?.allocated_total - before) as f64)
    };
    SMALL.iter().find_map(|&[few, more]| {
        let (with_few, with_more) = (bytes(few)?, bytes(more)?);
        let each = (with_more - with_few) / (more - few) as f64;
        Some((with_more - each * more as f64, each))
    })
}

/// About how many samples at a time fit into so much free memory, if that can be told.
pub(super) fn largest_batch<B: Backend>(
    backend: &B,
    network: &Network,
    accumulate: usize,
    free: Option<usize>,
) -> Option<usize> {
    let (fixed, each) = memory_model(backend, network, accumulate)?;
    // Allocations are rounded up, and the host and the driver need some.
    let available = 0.95 * free? as f64 - fixed;
    Some((available / each).max(0.0) as usize)
}

/// What validation needs: no more samples at a time than training has.
pub(super) fn validator<B: Backend>(
    backend: &B,
    model: &Model<B>,
    accumulate: usize,
) -> Result<Classifier<B>> {
    let Model { network, preprocess, .. } = model;
    let at_a_time = network.architecture.recipe.batch_size.div_ceil(accumulate.max(1));
    let images = TestCrops::One.batch().min(at_a_time);
    Classifier::new(backend, network, preprocess, TestCrops::One, images)
}
