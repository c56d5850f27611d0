//! The promise: one seed gives the same bits, whatever the number of threads. And what is not
//! promised: a batch in parts gives the same masks, but sums in another order.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use crate::common::place::Place;
use crate::common::{Random, Samples, all_weights, bits, norm, random_params, values};
use zfnet::backend::cpu::{CpuBackend, Products};
use zfnet::backend::{Backend, StepState};
use zfnet::data::classes::Classes;
use zfnet::data::folder::ImageFolder;
use zfnet::data::images::{Images, ReadOptions};
use zfnet::data::loader;
use zfnet::model::{
    Architecture, Canvas, Model, Network, Params, Projector, Rule, Seed, strongest,
};
use zfnet::study::fingerprint;
use zfnet::train::{Event, Finished, Job, Outcome, Trainer};
use zfnet::{Error, Result};

on_every_backend!(
    a_batch_in_parts_is_close,
    steps_are_repeatable,
    watched_steps_are_the_same,
    batches_in_the_backends_own_memory_are_the_same,
    a_step_without_a_finite_loss_changes_nothing,
    a_dropout_below_all_layers_is_only_for_training,
);

/// Several tiles to a partial sum in the first layer: 20 * 32 * 32 output pixels.
const BATCH: usize = 20;

fn mini(batch_size: usize) -> Network {
    let mut architecture = Architecture::find("zfnet-mini").unwrap();
    architecture.recipe.batch_size = batch_size;
    Network::new(architecture).unwrap()
}

/// All weights and biases after `steps` updates, in `accumulate` parts each, and the losses.
fn train<B: Backend>(
    backend: &B,
    network: &Network,
    accumulate: usize,
    steps: u32,
) -> (Vec<f32>, Vec<f64>) {
    let batch = Samples::random(network, network.architecture.recipe.batch_size);
    let params = random_params(backend, network, 1);
    let classes = Classes::unknown(network.classes());
    let preprocess = batch.preprocess.clone();
    let model = Model { network: network.clone(), params, preprocess, classes };
    let momentum = Params::zeros(backend, network).unwrap();
    let mut trainer = Trainer::new(backend, model, momentum, accumulate).unwrap();
    let step = |step| {
        let state = StepState { seed: 5, step, first_sample: 0, learning_rate: 0.01 };
        trainer.step(&batch.pixels, &batch.crops, &batch.labels, state).unwrap()
    };
    let losses = (0..steps).map(step).collect();
    (all_weights(backend, &trainer.model.params), losses)
}

/// Projections of the strongest units of a low, a high and a fully connected layer.
fn project<B: Backend>(backend: &B, network: &Network) -> Vec<f32> {
    let batch = Samples::random(network, 3);
    let params = random_params(backend, network, 2);
    let mut projector = Projector::new(backend, network, &params, &batch.preprocess, 3, 5).unwrap();
    projector.look(&batch.pixels, &batch.crops).unwrap();
    let mut pictures = Vec::new();
    for name in ["conv1", "conv5", "fc7"] {
        let layer = network.layer(name).unwrap();
        let shape = network.layers[layer].output;
        let peaks = projector.peaks(layer).unwrap();
        let seeds: Vec<Seed> = (0u32..)
            .zip(peaks.chunks(shape.c))
            .flat_map(|(image, peaks)| {
                let units = strongest(peaks, shape.w, 3);
                units.into_iter().map(move |unit| Seed { image, unit })
            })
            .collect();
        for rule in [Rule::DECONVNET, Rule::GRADIENT] {
            projector
                .project(layer, &seeds, rule, |_, picture| {
                    pictures.extend_from_slice(picture);
                    Ok(())
                })
                .unwrap();
        }
    }
    pictures
}

fn threads_do_not_matter(with_threads: impl Fn(Option<usize>) -> Result<CpuBackend>) {
    let network = mini(BATCH);
    let all: Vec<_> = [1, 2, 7]
        .iter()
        .map(|threads| {
            let backend = with_threads(Some(*threads)).unwrap();
            assert_eq!(backend.threads(), *threads);
            let (weights, losses) = train(&backend, &network, 1, 1);
            (bits(&weights), losses, bits(&project(&backend, &network)))
        })
        .collect();
    assert!(all[0] == all[1], "1 and 2 threads");
    assert!(all[0] == all[2], "1 and 7 threads");
}

#[test]
fn threads_do_not_matter_on_cpu() {
    threads_do_not_matter(CpuBackend::new);
}

#[test]
fn threads_do_not_matter_on_cpu_portable() {
    threads_do_not_matter(CpuBackend::portable);
}

#[test]
fn threads_do_not_matter_in_bf16() {
    threads_do_not_matter(|threads| CpuBackend::new(threads)?.bf16_by(Products::F32));
}

#[test]
#[cfg_attr(not(has_avx512_bf16), ignore = "needs a CPU with AVX512-BF16")]
fn threads_do_not_matter_in_bf16_pairs() {
    threads_do_not_matter(|threads| CpuBackend::new(threads)?.bf16_by(Products::Bf16Pairs));
}

/// What is hashed for the parts of a study that are finished does not change with the threads either.
#[test]
fn threads_are_no_part_of_a_fingerprint() {
    let network = small(4);
    let preprocess = Samples::random(&network, 1).preprocess;
    let of = |backend: CpuBackend| {
        let params = random_params(&backend, &network, 1);
        let classes = Classes::unknown(4);
        let (network, preprocess) = (network.clone(), preprocess.clone());
        fingerprint(&backend, &Model { network, params, preprocess, classes }).unwrap()
    };
    let one = of(CpuBackend::new(Some(1)).unwrap());
    assert_eq!(one, of(CpuBackend::new(Some(3)).unwrap()));
    assert_ne!(one, of(CpuBackend::new(Some(1)).unwrap().exact()));
}

/// A run that goes on where roundings are others says so, in whatever else it was set up.
#[test]
fn a_run_continued_on_other_instructions_says_so() {
    let place = Place::new();
    let folder = ImageFolder::open(&place.path("data")).unwrap();
    let architecture = Architecture::find(place.path("tiny.toml").to_str().unwrap()).unwrap();
    let read =
        ReadOptions { canvas: Canvas::square(20), max_bad: 0.0, cache_bytes: 1 << 20, io: None };
    let images = |samples: &Vec<_>| Arc::new(Images::new(samples.clone(), read));
    let notes = |backend: CpuBackend, max_steps| {
        let job = Job {
            architecture: architecture.clone(),
            train: images(&folder.train),
            val: images(&folder.val),
            classes: Classes::new(folder.classes.clone(), folder.names.clone()),
            out: place.path("run"),
            seed: 0,
            shuffle_window: None,
            accumulate: None,
            ranks: zfnet::ranks::Ranks::alone(),
            max_steps: Some(max_steps),
            resume: max_steps > 1,
            init: None,
            save_steps: None,
            save_interval: Duration::MAX,
            keep: 1,
            watch: true,
            workers: 1,
            stop: &AtomicUsize::new(0),
        };
        let mut said = Vec::new();
        let outcome = zfnet::train::train(&backend, &job, |event| {
            if let Event::Start { notes, .. } = event {
                said = notes.to_vec();
            }
            Ok(())
        });
        assert_eq!(outcome.unwrap(), Outcome::Done);
        said
    };
    let best = || CpuBackend::new(Some(1)).unwrap().exact();
    let plain = || CpuBackend::portable(Some(1)).unwrap().exact();
    assert!(notes(best(), 1).is_empty());
    assert!(notes(CpuBackend::new(Some(3)).unwrap().exact(), 2).is_empty(), "other threads only");
    let expected =
        format!("begun on {}, continued on {}: not bit for bit", best().id(), plain().id());
    assert_eq!(
        notes(plain(), 3),
        if best().id() == plain().id() { vec![] } else { vec![expected] }
    );
}

/// A small network with dropout at both ends of its fully connected part.
fn small(batch_size: usize) -> Network {
    crate::common::network(&format!(
        r#"
        name = "small"
        classes = 4
        input = {{ size = 14, resize = 16, std = 64.0 }}
        layers = [
          {{ type = "conv", name = "conv1", channels = 8, kernel = 5, stride = 2 }},
          {{ type = "relu" }},
          {{ type = "maxpool", kernel = 3, stride = 2 }},
          {{ type = "lrn" }},
          {{ type = "dropout" }},
          {{ type = "fc", name = "fc2", outputs = 40 }},
          {{ type = "relu" }},
          {{ type = "dropout" }},
          {{ type = "fc", name = "fc3" }},
        ]
        [recipe]
        init = "he"
        batch_size = {batch_size}"#
    ))
}

fn steps_are_repeatable<B: Backend>(backend: &B) {
    let network = small(6);
    let one = train(backend, &network, 1, 4);
    assert!(one == train(backend, &network, 1, 4));
    assert!(one.1.windows(2).all(|pair| pair[0] != pair[1]), "each step's masks are its own");
}

/// Weights and losses of nine steps are the same bits if some of them are watched, also two in a row and where a
/// GPU replays the others; and what those tell is the same whether the next ones are begun before they have ended.
fn watched_steps_are_the_same<B: Backend>(backend: &B) {
    let network = small(7);
    let batch = Samples::random(&network, 7);
    let watched = |step: u32| matches!(step, 0 | 1 | 4 | 7 | 8);
    let train = |accumulate: usize, watches: bool, waits: bool| {
        let params = random_params(backend, &network, 1);
        let classes = Classes::unknown(network.classes());
        let preprocess = batch.preprocess.clone();
        let model = Model { network: network.clone(), params, preprocess, classes };
        let momentum = Params::zeros(backend, &network).unwrap();
        let mut trainer = Trainer::new(backend, model, momentum, accumulate).unwrap();
        if watches {
            trainer.prepare_watch().unwrap();
        }
        for step in 0..9 {
            trainer.watches = watches && watched(step);
            let state = StepState { seed: 5, step, first_sample: 0, learning_rate: 0.01 };
            trainer.enqueue(&batch.pixels, &batch.crops, &batch.labels, state).unwrap();
            if waits {
                trainer.wait().unwrap();
            }
        }
        trainer.wait().unwrap();
        let finished: Vec<Finished> = std::iter::from_fn(|| trainer.finished()).collect();
        (bits(&all_weights(backend, &trainer.model.params)), finished)
    };
    for accumulate in [1, 3] {
        let (weights, finished) = train(accumulate, false, false);
        let (watched_weights, watched_finished) = train(accumulate, true, false);
        assert!(watched_weights == weights, "weights, in {accumulate} parts");
        assert_eq!(finished.len(), 9);
        for (plain, other) in finished.iter().zip(&watched_finished) {
            assert_eq!(plain.loss_sum.to_bits(), other.loss_sum.to_bits());
            assert!(plain.signs.is_none());
            assert_eq!(other.signs.is_some(), watched(plain.state.step), "{:?}", plain.state);
        }
        let signs: Vec<_> = watched_finished.iter().filter_map(|of| of.signs.as_ref()).collect();
        let each_its_own = signs.windows(2).all(|pair| pair[0] != pair[1]);
        assert!(each_its_own, "in {accumulate} parts: {signs:?}");
        let (_, one_by_one) = train(accumulate, true, true);
        assert!(one_by_one == watched_finished, "signs, in {accumulate} parts");
    }
}

/// Read into memory that the backend exchanges for that of the batch before, and written over as soon
/// as it is given back.
fn batches_in_the_backends_own_memory_are_the_same<B: Backend>(backend: &B) {
    let network = small(6);
    let batch = Samples::random(&network, 6);
    let bytes = batch.pixels.len();
    let train = |own_memory: bool| {
        let params = random_params(backend, &network, 1);
        let classes = Classes::unknown(network.classes());
        let preprocess = batch.preprocess.clone();
        let model = Model { network: network.clone(), params, preprocess, classes };
        let momentum = Params::zeros(backend, &network).unwrap();
        let mut trainer = Trainer::new(backend, model, momentum, 1).unwrap();
        let mut ring: Vec<loader::Batch> = (0..2)
            .map(|_| loader::Batch {
                memory: backend.host_memory(bytes).unwrap(),
                bytes: 0,
                labels: Vec::new(),
                indices: Vec::new(),
                first: 0,
                bad: Vec::new(),
            })
            .collect();
        for step in 0..9 {
            let samples = if step == 5 { 4 } else { 6 };
            let pixels = Random(u64::from(step)).bytes(bytes / 6 * samples);
            let (crops, labels) = (&batch.crops[..samples], &batch.labels[..samples]);
            let state = StepState { seed: 5, step, first_sample: 0, learning_rate: 0.01 };
            if own_memory {
                let read = &mut ring[step as usize % 2];
                read.memory.bytes_mut().fill(0);
                read.memory.bytes_mut()[..pixels.len()].copy_from_slice(&pixels);
                read.bytes = pixels.len();
                read.labels = labels.to_vec();
                let samples = read.labels.len();
                trainer.enqueue_batch(read, crops, samples, state).unwrap();
                read.memory.bytes_mut().fill(255);
            } else {
                trainer.enqueue(&pixels, crops, labels, state).unwrap();
            }
        }
        trainer.wait().unwrap();
        all_weights(backend, &trainer.model.params)
    };
    assert_eq!(bits(&train(true)), bits(&train(false)));
}

/// Masks depend on a sample's place in the whole batch, so parts draw the same ones; but their
/// gradients are summed part by part, and products of fewer rows may be cut otherwise, so that
/// roundings differ. Of a gradient, a sum over the batch's output pixels (here at most 7 * 25) on
/// top of a chain of three layers' sums: below `eps * sqrt(175)` times a few, a hundred-thousandth.
/// Another mask would change half of it.
fn a_batch_in_parts_is_close<B: Backend>(backend: &B) {
    let network = small(7); // does not divide: parts of 4 and 3, and of 3, 3 and 1
    let before = all_weights(backend, &random_params(backend, &network, 1));
    let (whole, loss) = train(backend, &network, 1, 1);
    let moved = norm(before.iter().zip(&whole).map(|(a, b)| f64::from(a - b)));
    assert!(moved > 1e-4);
    for accumulate in [2, 3, 7] {
        let (parts, part_loss) = train(backend, &network, accumulate, 1);
        assert!((part_loss[0] - loss[0]).abs() < 1e-5 * loss[0], "{part_loss:?} for {loss:?}");
        let error = norm(parts.iter().zip(&whole).map(|(a, b)| f64::from(a - b)));
        // What is left of the update when it is rounded into a weight of size 1 comes on top.
        let rounding = 0.5 * f64::from(f32::EPSILON) * norm(whole.iter().map(|w| f64::from(*w)));
        let limit = 1e-5 * moved + rounding;
        assert!(error <= limit, "in {accumulate} parts: off by {error} of {moved}, limit {limit}");
    }
}

/// A loss that is no number is an error, and leaves the weights as they were.
fn a_step_without_a_finite_loss_changes_nothing<B: Backend>(backend: &B) {
    let network = small(4);
    let batch = Samples::random(&network, 4);
    let mut params = random_params(backend, &network, 1);
    let last = params.layers.iter_mut().flatten().last().unwrap();
    backend.upload(&mut last.bias, &[f32::NAN; 4]).unwrap();
    let before = bits(&all_weights(backend, &params));
    let classes = Classes::unknown(4);
    let model = Model { network, params, preprocess: batch.preprocess, classes };
    let momentum = Params::zeros(backend, &model.network).unwrap();
    let mut trainer = Trainer::new(backend, model, momentum, 1).unwrap();
    let state = StepState { seed: 5, step: 41, first_sample: 0, learning_rate: 0.5 };
    let result = trainer.step(&batch.pixels, &batch.crops, &batch.labels, state);
    let error = result.unwrap_err();
    assert!(matches!(error, Error::Diverged { step: 42, learning_rate: 0.5, .. }), "{error:?}");
    assert!(error.to_string().contains("the loss is NaN at step 42"), "{error}");
    assert_eq!(bits(&all_weights(backend, &trainer.model.params)), before);
}

/// Dropout on the pixels themselves: a workspace that does not train must pass them on.
fn a_dropout_below_all_layers_is_only_for_training<B: Backend>(backend: &B) {
    let toml = |dropout: &str| {
        format!(
            r#"
            name = "below"
            classes = 2
            input = {{ size = 4, resize = 4 }}
            layers = [
              {dropout}
              {{ type = "conv", name = "conv1", channels = 3, kernel = 3 }},
              {{ type = "relu" }},
              {{ type = "fc", name = "fc2" }},
            ]"#
        )
    };
    let input = Random(1).reals(4 * 4 * 3);
    let logits = ["", "{ type = \"dropout\", rate = 0.5 },"].map(|dropout| {
        let network = crate::common::network(&toml(dropout));
        // Layers are drawn by their place in the chain; these are to have the same weights.
        let mut params = Params::weights(backend, &network).unwrap();
        let mut random = Random(2);
        for param in params.layers.iter_mut().flatten() {
            let weights = random.reals(param.weight.shape().len());
            backend.upload(&mut param.weight, &weights).unwrap();
        }
        let purpose = zfnet::model::Purpose::Project { seeds: 1 };
        let mut workspace = zfnet::model::Workspace::new(backend, &network, purpose, 1).unwrap();
        backend.upload(&mut workspace.input, &input).unwrap();
        workspace.forward(backend, &params).unwrap();
        values(backend, workspace.logits())
    });
    assert_eq!(logits[0], logits[1]);
}
