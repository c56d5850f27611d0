//! Tables 2 and 3 through the library: an ablation that is interrupted, and a network averaged with
//! itself. No program is started here: until a child has begun its own, it holds the locks of the
//! runs that are in training beside it.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::common::program::Place;
use zfnet::backend::Backend;
use zfnet::data::classes::Classes;
use zfnet::data::folder::ImageFolder;
use zfnet::data::images::{Images, ReadOptions};
use zfnet::model::{Architecture, Canvas, Model, Network, Params, Preprocess};
use zfnet::report;
use zfnet::study::ablation::{Event, read, run};
use zfnet::study::ensemble::{Candidate, error_rates};
use zfnet::study::{Session, Splits};
use zfnet::train;
use zfnet::train::evaluate::TestCrops;

on_every_backend!(an_interruption_changes_nothing, twice_the_same_is_the_same_bit_for_bit);

/// What a study's table is made of.
fn pages(out: &Path) -> [Vec<u8>; 4] {
    ["index.html", "figure.json", "ablation.json", "ablation.csv"]
        .map(|file| fs::read(out.join(file)).unwrap())
}

/// Stopped in the second network's training, and again while a network is measured.
fn an_interruption_changes_nothing<B: Backend>(backend: &B) {
    let place = Place::with_variants();
    let folder = ImageFolder::open(&place.path("data")).unwrap();
    let options =
        ReadOptions { canvas: Canvas::square(20), max_bad: 0.0, cache_bytes: 1 << 20, io: None };
    let [of_train, of_val] =
        [&folder.train, &folder.val].map(|split| Arc::new(Images::new(split.clone(), options)));
    let data = Splits {
        train: of_train,
        val: of_val,
        classes: Classes::new(folder.classes, folder.names),
    };
    let ablation = |out: &str, stop_at: Option<(usize, u32)>| {
        let stop = AtomicUsize::new(0);
        let variants = read(&place.path("variants.toml")).unwrap();
        let out = place.path(out);
        let mut session = Session::new(backend).kept_in(&out);
        session.fact("Data", "data");
        let (mut row, mut steps) = (0, 0);
        let found = run(&session, &variants, &data, 1, 1, &out, &stop, |event| {
            let now = match event {
                Event::Row { index, .. } => {
                    row = index;
                    return;
                }
                Event::Training(train::Event::Step { state, .. }) => {
                    steps += 1;
                    state.step
                }
                Event::Measuring(..) => u32::MAX,
                _ => return,
            };
            if stop_at == Some((row, now)) {
                stop.store(2, Ordering::Relaxed);
            }
        });
        let page = found.unwrap().map(|found| report::ablation::write(&out, &found).unwrap());
        if page.is_some() {
            session.finish().unwrap();
        }
        (page, steps)
    };
    let (page, steps) = ablation("whole", None);
    assert_eq!(page, Some(place.path("whole/index.html")));
    assert_eq!(steps, 3 * 8);
    // On a device with batches in flight a step or two more are done before it stops.
    let (page, first) = ablation("cut", Some((1, 3)));
    assert_eq!(page, None);
    assert!((11..16).contains(&first), "{first} steps");
    let (page, second) = ablation("cut", Some((2, u32::MAX)));
    assert_eq!((page, first + second), (None, 3 * 8), "what was done is not done again");
    let (page, third) = ablation("cut", None);
    assert_eq!((page, third), (Some(place.path("cut/index.html")), 0));
    assert_eq!(pages(&place.path("cut")), pages(&place.path("whole")));
    for run in ["base", "without-2", "wider"] {
        let results = |out: &str| place.results(&format!("{out}/runs/{run}"));
        assert_eq!(results("cut"), results("whole"));
    }
}

/// Also the loss, which shows the last bit of every probability.
fn twice_the_same_is_the_same_bit_for_bit<B: Backend>(backend: &B) {
    let place = Place::with_variants();
    let folder = ImageFolder::open(&place.path("data")).unwrap();
    let options =
        ReadOptions { canvas: Canvas::square(20), max_bad: 0.0, cache_bytes: 1 << 20, io: None };
    let images = Arc::new(Images::new(folder.val, options));
    let file = place.path("tiny.toml");
    let candidate = |seed: u64| {
        let network = Network::new(Architecture::find(file.to_str().unwrap()).unwrap()).unwrap();
        let params = Params::init(backend, &network, seed).unwrap();
        let preprocess = Preprocess::paper([16; 2], 20, 20.0, vec![120.0; 3]);
        let classes = Classes::new(folder.classes.clone(), folder.names.clone());
        let model = Model { network, params, preprocess, classes };
        Candidate { name: seed.to_string(), model, images: images.clone() }
    };
    let rates = |candidates: &[Candidate<B>]| {
        let never = AtomicUsize::new(0);
        let rates = error_rates(backend, candidates, TestCrops::Ten, 1, &never, |_| ()).unwrap();
        let rates = rates.unwrap();
        (rates.top1_error, rates.top5_error, rates.loss.to_bits(), rates.images)
    };
    let alone = rates(&[candidate(1)]);
    assert_eq!(rates(&[candidate(1), candidate(1)]), alone);
    assert_eq!(rates(&[candidate(1), candidate(1), candidate(1), candidate(1)]), alone);
    assert_ne!(rates(&[candidate(1), candidate(2)]).2, alone.2);
}
