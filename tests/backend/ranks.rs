//! Several ranks give the same bits as one.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use crate::common::place::Place;
use crate::common::{Samples, all_weights, bits, network};
use crate::evaluation::model;
use zfnet::backend::cpu::CpuBackend;
use zfnet::backend::{Backend, Crop, StepState};
use zfnet::data::classes::Classes;
use zfnet::data::folder::{ImageFolder, Sample};
use zfnet::data::images::{Images, ReadOptions};
use zfnet::data::synthetic;
use zfnet::model::{Architecture, Canvas, Model, Network, Params, Projector, Rule};
use zfnet::picture::Image;
use zfnet::ranks::{Ranks, TIMEOUT};
use zfnet::study::Session;
use zfnet::study::features::{self, Feature};
use zfnet::study::peaks::{Chosen, Maps, Searched, search};
use zfnet::train::{Division, Event, Job, Outcome, Trainer};
use zfnet::{Error, Result};

on_every_backend!(
    ranks_make_the_same_bits,
    a_loss_that_is_not_finite_stops_all_ranks,
    ranks_find_and_show_the_same,
);

/// Parts of a batch.
pub const PARTS: usize = 8;
/// Samples of a batch: so that parts have three, and two of them none.
pub const BATCH: usize = 17;
/// Whole batches, and the ends of epochs.
pub const COUNTS: [usize; 5] = [BATCH, BATCH, 4, 1, BATCH];

/// Layers of odd sizes; one has fewer filters than there are ranks, and one more than can be divided evenly.
pub fn odd() -> Network {
    network(&format!(
        r#"
        name = "odd"
        classes = 3
        input = {{ size = 15, resize = 17, std = 64.0 }}
        layers = [
          {{ type = "conv", name = "conv1", channels = 9, kernel = 3, stride = 2 }},
          {{ type = "relu" }},
          {{ type = "maxpool", kernel = 3, stride = 2 }},
          {{ type = "lrn" }},
          {{ type = "conv", name = "conv2", channels = 38, kernel = 3, pad = 1 }},
          {{ type = "relu" }},
          {{ type = "fc", name = "fc3", outputs = 70 }},
          {{ type = "relu" }},
          {{ type = "dropout" }},
          {{ type = "fc", name = "fc4" }},
        ]
        [recipe]
        init = "he"
        batch_size = {BATCH}
        dropout = 0.3
        weight_decay = 0.01
        rms_limit = 0.1
        "#
    ))
}

/// What a training of some steps leaves at one of its ranks.
#[derive(Debug, PartialEq)]
pub struct Left {
    pub weights: Vec<u32>,
    pub losses: Vec<u64>,
    /// What has ended it.
    pub error: Option<String>,
}

/// Trains on batches of these numbers of samples, and waits for each or for all. The last layer of the rank `poisoned`
/// has biases that are NaN.
pub fn train<'a, B: Backend>(
    backend: &'a B,
    network: &Network,
    division: Division,
    counts: &[usize],
    poisoned: Option<usize>,
    waits: bool,
    prepare: impl FnOnce(&mut Trainer<'a, B>),
) -> Left {
    let batch = Samples::random(network, BATCH);
    let (share, bytes) = (division.share(BATCH), batch.preprocess.bytes());
    let mut params = Params::init(backend, network, 1).unwrap();
    if poisoned == Some(division.ranks.rank()) {
        let last = params.layers.iter_mut().flatten().last().unwrap();
        backend.upload(&mut last.bias, &vec![f32::NAN; network.classes()]).unwrap();
    }
    let (preprocess, classes) = (batch.preprocess, Classes::unknown(network.classes()));
    let model = Model { network: network.clone(), params, preprocess, classes };
    let momentum = Params::zeros(backend, network).unwrap();
    let mut trainer = Trainer::divided(backend, model, momentum, division).unwrap();
    prepare(&mut trainer);
    let (mut losses, mut error) = (Vec::new(), None);
    for (step, &samples) in (0..).zip(counts) {
        let own = share.positions(0, samples, samples);
        let first_sample = own.start as u32;
        let of_share = |crop: &Crop| Crop { image: crop.image - first_sample, ..*crop };
        let crops: Vec<Crop> = batch.crops[own.clone()].iter().map(of_share).collect();
        let pixels = &batch.pixels[own.start * bytes..own.end * bytes];
        let state = StepState { seed: 5, step, first_sample, learning_rate: 0.1 };
        let begun = trainer.enqueue_share(pixels, &crops, &batch.labels[own], samples, state);
        let waits = waits || step as usize + 1 == counts.len();
        let ended = begun.and_then(|()| if waits { trainer.wait() } else { Ok(()) });
        error = ended.err().map(|error| error.to_string());
        if error.is_some() {
            break;
        }
        while let Some(finished) = trainer.finished() {
            assert_eq!(finished.samples, counts[losses.len()]);
            losses.push(finished.loss_sum.to_bits());
        }
    }
    Left { weights: bits(&all_weights(backend, &trainer.model.params)), losses, error }
}

/// The same by so many ranks, each a thread.
fn by_ranks<B: Backend>(
    backend: &B,
    network: &Network,
    count: usize,
    counts: &[usize],
    poisoned: Option<usize>,
) -> Vec<Left> {
    let all = if count == 1 { vec![Ranks::alone()] } else { Ranks::threads(count, TIMEOUT) };
    thread::scope(|scope| {
        let train = |ranks| {
            let division = Division { parts: PARTS, tree: true, ranks };
            scope.spawn(move || train(backend, network, division, counts, poisoned, true, |_| ()))
        };
        let running: Vec<_> = all.into_iter().map(train).collect();
        running.into_iter().map(|rank| rank.join().expect("no panic")).collect()
    })
}

fn ranks_make_the_same_bits<B: Backend>(backend: &B) {
    let network = odd();
    let counts = COUNTS;
    let alone = by_ranks(backend, &network, 1, &counts, None).remove(0);
    assert_eq!(alone.losses.len(), counts.len());
    for count in [2, 4, 8] {
        for (rank, left) in by_ranks(backend, &network, count, &counts, None).iter().enumerate() {
            assert!(*left == alone, "rank {rank} of {count}: {:?}", left.error);
        }
    }
    // Not the bits of a sum in another order.
    let sequence = Division { tree: false, ..Division::alone(PARTS) };
    let other = train(backend, &network, sequence, &counts, None, true, |_| ());
    let differ = other.weights.iter().zip(&alone.weights).filter(|(one, other)| one != other);
    let differ = differ.count();
    assert!(differ > 100, "{differ} of {}", alone.weights.len());
}

/// The loss of one rank is not finite: all say so after the same step, and no weights have moved.
fn a_loss_that_is_not_finite_stops_all_ranks<B: Backend>(backend: &B) {
    let network = odd();
    let before = bits(&all_weights(backend, &Params::init(backend, &network, 1).unwrap()));
    for (count, poisoned) in [(2, 0), (2, 1), (4, 2)] {
        let all = by_ranks(backend, &network, count, &[BATCH; 2], Some(poisoned));
        for (rank, left) in all.iter().enumerate() {
            let error = left.error.as_deref().unwrap_or_default();
            assert!(error.contains("the loss is NaN at step 1"), "rank {rank}: {error}");
            // What the poisoned one owns has gone to all.
            let moved = left.weights.iter().zip(&before).filter(|(after, before)| after != before);
            assert!(moved.count() <= network.classes(), "rank {rank} of {count}");
        }
    }
}

/// What a run has left, whole: the checkpoint's files, and the metrics.
fn files(run: &Path) -> Vec<(String, Vec<u8>)> {
    let last = fs::read_link(run.join("last")).unwrap();
    let names =
        fs::read_dir(run.join(&last)).unwrap().map(|entry| last.join(entry.unwrap().file_name()));
    let mut names: Vec<PathBuf> = names.chain([PathBuf::from("metrics.jsonl")]).collect();
    names.sort();
    let read = |name: PathBuf| (name.display().to_string(), fs::read(run.join(name)).unwrap());
    names.into_iter().map(read).collect()
}

/// A job, to be done by ranks that are threads.
struct Training {
    place: Place,
    architecture: Architecture,
}

impl Training {
    fn new() -> Self {
        let place = Place::new();
        let tiny = place.path("tiny.toml");
        let mut architecture = Architecture::find(tiny.to_str().unwrap()).unwrap();
        // So that the parts of a batch differ, and not all ranks have a share in an epoch's last one.
        architecture.recipe.batch_size = 13;
        Training { place, architecture }
    }

    /// Trains as one of the ranks, on so many threads. `change` may change the job.
    fn run(
        &self,
        ranks: Ranks,
        threads: usize,
        change: impl Fn(&mut Job<'_>),
        observe: impl FnMut(Event<'_>) -> Result<()>,
    ) -> Result<Outcome> {
        let folder = ImageFolder::open(&self.place.path("data"))?;
        let read = ReadOptions {
            canvas: Canvas::square(20),
            max_bad: 0.0,
            cache_bytes: 1 << 20,
            io: None,
        };
        let images = |samples: &Vec<_>| Arc::new(Images::new(samples.clone(), read));
        let stop = Arc::new(AtomicUsize::new(0));
        ranks.share_stop(stop.clone());
        let mut job = Job {
            architecture: self.architecture.clone(),
            train: images(&folder.train),
            val: images(&folder.val),
            classes: Classes::new(folder.classes.clone(), folder.names.clone()),
            out: self.place.path("run"),
            seed: 3,
            shuffle_window: None,
            accumulate: Some(PARTS),
            max_steps: None,
            resume: false,
            init: None,
            save_steps: None,
            save_interval: Duration::MAX,
            keep: 1,
            watch: true,
            workers: 1,
            ranks,
            stop: &stop,
        };
        change(&mut job);
        zfnet::train::train(&CpuBackend::new(Some(threads))?, &job, observe)
    }

    /// Trains by so many ranks into the folder `out`.
    fn by_ranks(
        &self,
        count: usize,
        out: &str,
        change: impl Fn(&mut Job<'_>) + Sync,
    ) -> Vec<Result<Outcome>> {
        let all = if count == 1 { vec![Ranks::alone()] } else { Ranks::threads(count, TIMEOUT) };
        thread::scope(|scope| {
            let run = |ranks: Ranks| {
                let change = &change;
                let threads = 1 + ranks.rank() % 2;
                let change = move |job: &mut Job<'_>| {
                    job.out = self.place.path(out);
                    change(job);
                };
                scope.spawn(move || self.run(ranks, threads, change, |_| Ok(())))
            };
            let running: Vec<_> = all.into_iter().map(run).collect();
            running.into_iter().map(|rank| rank.join().expect("no panic")).collect()
        })
    }

    fn files(&self, out: &str) -> Vec<(String, Vec<u8>)> {
        files(&self.place.path(out))
    }
}

/// Any ranks, and any threads, leave the same files: weights, momentum, state and metrics, also where others go on.
#[test]
fn runs_are_the_same_files() {
    let training = Training::new();
    let expect = |outcomes: Vec<Result<Outcome>>| {
        outcomes.into_iter().for_each(|outcome| assert_eq!(outcome.unwrap(), Outcome::Done));
    };
    expect(training.by_ranks(1, "1", |_| ()));
    let alone = training.files("1");
    let metrics = String::from_utf8_lossy(&alone.last().unwrap().1).into_owned();
    for line in ["\"layers\"", "\"epoch\"", "\"step\""] {
        assert!(metrics.contains(line), "{metrics}");
    }
    for count in [2, 4, 8] {
        let out = count.to_string();
        expect(training.by_ranks(count, &out, |_| ()));
        for (found, expected) in training.files(&out).iter().zip(&alone) {
            assert!(found == expected, "{} of {count} ranks", found.0);
        }
    }
    // Four begin, two go on, one ends it.
    for (count, steps) in [(4, Some(3)), (2, Some(11)), (1, None)] {
        expect(training.by_ranks(count, "others", |job| {
            (job.max_steps, job.resume) = (steps, count < 4);
        }));
    }
    assert!(training.files("others") == alone);
}

/// A signal that one rank is given stops all after the same step.
#[test]
fn a_signal_at_one_rank_stops_all() {
    let training = Training::new();
    let outcomes = training.by_ranks(4, "stopped", |job| {
        if job.ranks.rank() == 2 {
            job.stop.store(15, Ordering::Relaxed);
        }
    });
    outcomes.into_iter().for_each(|outcome| assert_eq!(outcome.unwrap(), Outcome::Stopped));
    let go_on = |out| training.by_ranks(2, out, |job| job.resume = true);
    go_on("stopped").into_iter().for_each(|outcome| assert_eq!(outcome.unwrap(), Outcome::Done));
    training.by_ranks(1, "whole", |_| ()).remove(0).unwrap();
    assert!(training.files("stopped") == training.files("whole"));
}

/// A training that diverges at several ranks ends with the alarms and numbers that one rank gives.
#[test]
fn a_training_that_diverges_tells_the_same() {
    let mut training = Training::new();
    training.architecture.recipe.learning_rate = 1e4;
    training.architecture.recipe.rms_limit = 0.0;
    let mut metrics = Vec::new();
    for count in [1, 2, 8] {
        let out = count.to_string();
        for outcome in training.by_ranks(count, &out, |_| ()) {
            let error = outcome.unwrap_err();
            assert!(matches!(error, Error::Diverged { .. }), "{count} ranks: {error}");
        }
        metrics.push(fs::read_to_string(training.place.path(&out).join("metrics.jsonl")).unwrap());
    }
    assert!(metrics[0].contains("\"alarm\""), "{}", metrics[0]);
    assert_eq!(metrics[0], metrics[1]);
    assert_eq!(metrics[0], metrics[2]);
}

/// Ranks that were not given the same are refused before the first step, by what differs.
#[test]
fn ranks_that_differ_are_refused() {
    let training = Training::new();
    type Change = fn(&mut Job<'_>);
    let cases: [(&str, Change); 4] = [
        ("another seed than rank 0: 3 at rank 0, 4 at rank 1", |job| job.seed = 4),
        ("another recipe than rank 0: momentum = 0.9 at rank 0, 0.5 at rank 1", |job| {
            job.architecture.recipe.momentum = 0.5;
        }),
        ("another number of steps than rank 0: null at rank 0, 7 at rank 1", |job| {
            job.max_steps = Some(7);
        }),
        ("another set of training images than rank 0", |job| job.train = job.val.clone()),
    ];
    for (words, change) in cases {
        let outcomes = training.by_ranks(2, "refused", |job| {
            if job.ranks.rank() == 1 {
                change(job);
            }
        });
        for outcome in outcomes {
            let error = outcome.unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        assert!(!training.place.path("refused/last").exists());
    }
}

/// More ranks than parts, or ranks for a sum along no tree, are refused.
#[test]
fn ranks_that_cannot_share_the_parts_are_refused() {
    let training = Training::new();
    for (count, parts, words) in
        [(4, 2, "parts, 2, found 4"), (2, 6, "in 6 parts"), (3, 8, "found 3")]
    {
        for outcome in training.by_ranks(count, "refused", |job| job.accumulate = Some(parts)) {
            let error = outcome.unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}

/// What ends one rank ends all, which know of which one and why; the last checkpoint can be gone on with.
#[test]
fn an_error_at_one_rank_ends_all() {
    let training = Training::new();
    let full = |event: Event<'_>| match event {
        Event::Step { state, .. } if state.step == 6 => Err(Error::Data("the disk is full".into())),
        _ => Ok(()),
    };
    let mut all = Ranks::threads(2, TIMEOUT).into_iter();
    let [first, second] = [all.next().unwrap(), all.next().unwrap()];
    let [of_first, of_second] = thread::scope(|scope| {
        let second =
            scope.spawn(|| training.run(second, 1, |job| job.save_steps = Some(2), |_| Ok(())));
        let first = training.run(first, 1, |job| job.save_steps = Some(2), full);
        [first, second.join().expect("no panic")]
    });
    assert!(matches!(of_first.unwrap_err(), Error::Data(_)));
    let error = of_second.unwrap_err();
    assert!(matches!(error, Error::FailedRank { rank: 0, .. }), "{error}");
    assert!(error.to_string().contains("the disk is full"), "{error}");
    let last = fs::read_link(training.place.path("run/last")).unwrap();
    assert_eq!(last, Path::new("step-5")); // the first epoch's end
    training.run(Ranks::alone(), 1, |job| job.resume = true, |_| Ok(())).unwrap();
    training.by_ranks(1, "whole", |_| ()).remove(0).unwrap();
    assert!(training.files("run") == training.files("whole"));
}

/// A rank of which nothing is heard is named by the others.
#[test]
fn a_lost_rank_is_named() {
    let training = Training::new();
    let mut all = Ranks::threads(2, Duration::from_secs(2)).into_iter();
    let [first, second] = [all.next().unwrap(), all.next().unwrap()];
    let error = thread::scope(|scope| {
        let first = scope.spawn(|| training.run(first, 1, |_| (), |_| Ok(())));
        second.fall_silent();
        first.join().expect("no panic").unwrap_err()
    });
    assert!(matches!(error, Error::LostRank { rank: 1, .. }), "{error}");
    assert!(
        error.to_string().contains("rank 1 on this host has not been heard of for 2 s"),
        "{error}"
    );
}

/// Images, some of them bad, in which ranks look for the strongest activations.
struct Looking {
    place: Place,
    samples: Vec<Sample>,
    max_bad: f64,
}

/// What one rank is given.
struct Share<'a, B: Backend> {
    model: Model<B>,
    settings: features::Settings,
    images: Arc<Images>,
    stop: &'a AtomicUsize,
    /// When to set that: when so many images have been searched.
    stop_at: usize,
}

/// What it leaves.
#[derive(Default)]
struct Found {
    /// All maps: numbers, and pictures.
    shown: Vec<(serde_json::Value, Vec<[Image; 2]>)>,
    /// How far the search was, each time that was told.
    told: Vec<usize>,
    error: Option<Error>,
}

impl Looking {
    /// In 25 batches, of which one has no image, and the last not as many as the others.
    fn new() -> Self {
        let place = Place::new();
        synthetic::write_folder(&place.path("many"), 5, 20, 80, 1, |_| ()).unwrap();
        let mut samples = ImageFolder::open(&place.path("many")).unwrap().train;
        samples.truncate(797);
        let bad = samples.iter().step_by(80).chain(&samples[64..96]);
        bad.for_each(|sample| fs::write(&sample.path, "no image").unwrap());
        Looking { place, samples, max_bad: 0.1 }
    }

    fn images(&self, count: usize) -> Arc<Images> {
        let (canvas, max_bad) = (Canvas::square(20), self.max_bad);
        let options = ReadOptions { canvas, max_bad, cache_bytes: 0, io: None };
        Arc::new(Images::new(self.samples[..count].to_vec(), options))
    }

    fn chosen(network: &Network) -> Vec<Chosen> {
        let layers = ["conv1", "conv2", "fc3"].map(|name| network.layer(name).unwrap());
        layers.map(|layer| Maps::First(11).of(network, layer)).into()
    }

    /// Looks as one of the ranks.
    fn look<B: Backend>(
        &self,
        backend: &B,
        ranks: Ranks,
        out: &Path,
        change: impl Fn(&Ranks, &mut Share<'_, B>),
    ) -> Found {
        let stop = Arc::new(AtomicUsize::new(0));
        let model = model(backend, &self.place, 1);
        let settings =
            features::Settings { chosen: Looking::chosen(&model.network), rule: Rule::DECONVNET };
        let images = self.images(self.samples.len());
        let mut share = Share { model, settings, images, stop: &stop, stop_at: usize::MAX };
        change(&ranks, &mut share);
        ranks.share_stop(stop.clone());
        let mut found = Found::default();
        let mut session = Session::new(backend).kept_in(out).watched(|what, done, _, _| {
            if what == "features: search" {
                found.told.push(done);
                if done >= share.stop_at {
                    share.stop.store(15, Ordering::Relaxed);
                }
            }
        });
        (session.workers, session.ranks) = (2, ranks);
        let Share { model, settings, images, .. } = &share;
        let (classes, root) = (Some(&model.classes), self.place.path("many"));
        let each = |feature| {
            if let Feature::Map(map) = feature {
                let json = serde_json::to_value(&map).unwrap();
                let pictures = map.peaks.into_iter().map(|peak| [peak.projection, peak.photo]);
                found.shown.push((json, pictures.collect()));
            }
            Ok(())
        };
        let ended = features::run(&mut session, model, settings, images, classes, &root, each);
        drop(session);
        found.error = ended.err();
        found
    }

    /// Looks by so many ranks, which keep what the search has found in the folder `out`.
    fn by_ranks<B: Backend>(
        &self,
        backend: &B,
        count: usize,
        out: &str,
        change: impl Fn(&Ranks, &mut Share<'_, B>) + Sync,
    ) -> Vec<Found> {
        let out = self.place.path(out);
        fs::create_dir_all(&out).unwrap();
        let all = if count == 1 { vec![Ranks::alone()] } else { Ranks::threads(count, TIMEOUT) };
        thread::scope(|scope| {
            let (out, change) = (&out, &change);
            let look = |ranks| scope.spawn(move || self.look(backend, ranks, out, change));
            let running: Vec<_> = all.into_iter().map(look).collect();
            running.into_iter().map(|rank| rank.join().expect("no panic")).collect()
        })
    }

    fn kept_in(&self, out: &str) -> PathBuf {
        self.place.path(out).join(".parts/search.json")
    }

    /// What one rank finds in the first 160 images, in place of what is kept.
    fn keep_some<B: Backend>(&self, backend: &B, out: &str) {
        let model = model(backend, &self.place, 1);
        let Model { network, params, preprocess, .. } = &model;
        let mut projector = Projector::new(backend, network, params, preprocess, 32, 32).unwrap();
        let (chosen, images) = (Looking::chosen(network), self.images(self.samples.len()));
        let mut searched = Searched::nothing(&chosen);
        let end = |searched: &Searched| match searched.done {
            160 => Err(Error::callback("ended")),
            _ => Ok(()),
        };
        search(&mut projector, &model, &images, &chosen, 9, 2, &mut searched, end).unwrap_err();
        fs::write(self.kept_in(out), serde_json::to_vec(&searched).unwrap()).unwrap();
    }
}

/// Any number of ranks finds the same peaks and makes the same pictures, also where others have begun.
fn ranks_find_and_show_the_same<B: Backend>(backend: &B) {
    let looking = Looking::new();
    let kept = |out: &str| fs::read_to_string(looking.kept_in(out)).unwrap();
    let alone = looking.by_ranks(backend, 1, "1", |_, _| ()).remove(0);
    assert!(alone.error.is_none() && alone.told.len() == 25, "{:?}", alone.error);
    let pictures = alone.shown.iter().map(|(_, pictures)| pictures.len()).sum::<usize>();
    assert!(alone.shown.len() == 8 + 11 + 11 && pictures > 200, "{pictures}");
    let expect = |all: Vec<Found>, out: &str, told: &[usize]| {
        for (rank, found) in all.iter().enumerate() {
            assert!(found.error.is_none(), "rank {rank}, {out}: {:?}", found.error);
            assert!(rank == 0 || found.shown.is_empty(), "rank {rank}, {out}");
        }
        assert_eq!(all[0].told, told, "{out}");
        assert!(all[0].shown == alone.shown, "{out}");
        assert!(kept(out) == kept("1"), "{out}");
    };
    for (count, told) in [(2, &[512, 797][..]), (3, &[768, 797]), (4, &[797])] {
        let out = count.to_string();
        expect(looking.by_ranks(backend, count, &out, |_, _| ()), &out, told);
    }
    // Three are stopped, and one goes on.
    let stopped = looking.by_ranks(backend, 3, "others", |ranks, share| {
        share.stop_at = if ranks.rank() == 1 { 1 } else { usize::MAX };
    });
    for Found { error, told, shown } in stopped {
        assert!(matches!(error, Some(Error::Stopped { signal: 15 })), "{error:?}");
        assert!(told == [768] && shown.is_empty(), "{told:?}");
    }
    expect(looking.by_ranks(backend, 1, "others", |_, _| ()), "others", &[797]);
    // One has begun, and two go on.
    looking.keep_some(backend, "others");
    expect(looking.by_ranks(backend, 2, "others", |_, _| ()), "others", &[672, 797]);
}

/// Bad images are those of all ranks.
#[test]
fn ranks_count_bad_images_together() {
    let backend = CpuBackend::new(Some(1)).unwrap();
    let mut looking = Looking::new();
    // Of 41 bad ones no rank meets as many as 40.
    looking.max_bad = 0.05;
    for count in [1, 2, 3] {
        let all = looking.by_ranks(&backend, count, &format!("bad-{count}"), |_, _| ());
        let error = all[0].error.as_ref().unwrap();
        assert!(matches!(error, Error::TooManyBad { bad: 41, .. }), "{count} ranks: {error}");
        for Found { error, .. } in &all[1..] {
            let error = error.as_ref().unwrap();
            assert!(matches!(error, Error::FailedRank { rank: 0, .. }), "{count} ranks: {error}");
        }
    }
    looking.max_bad = 1.0;
    looking.samples = looking.samples.split_off(64);
    looking.samples.truncate(32);
    for count in [1, 2] {
        for found in looking.by_ranks(&backend, count, "none", |_, _| ()) {
            let error = found.error.unwrap().to_string();
            assert!(error.contains("none of the 32 files of this split"), "{error}");
        }
    }
}

/// Ranks that were not given the same to look for are refused before the search, by what differs.
#[test]
fn ranks_that_look_for_other_things_are_refused() {
    let backend = CpuBackend::new(Some(1)).unwrap();
    let looking = Looking::new();
    type Change = fn(&Looking, &mut Share<'_, CpuBackend>);
    let cases: [(&str, Change); 4] = [
        ("model", |looking, share| {
            share.model = model(&CpuBackend::new(Some(1)).unwrap(), &looking.place, 2);
        }),
        ("set of images", |looking, share| share.images = looking.images(32)),
        ("choice of maps", |_, share| share.settings.chosen[1].maps.truncate(10)),
        ("rule of the backward pass", |_, share| share.settings.rule = Rule::GUIDED),
    ];
    for (what, change) in cases {
        let all = looking.by_ranks(&backend, 2, "refused", |ranks, share| {
            if ranks.rank() == 1 {
                change(&looking, share);
            }
        });
        for found in all {
            let error = found.error.unwrap().to_string();
            assert!(error.contains(&format!("has another {what} than rank 0: ")), "{error}");
            assert!(found.told.is_empty());
        }
    }
}
