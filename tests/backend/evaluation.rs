//! Evaluation and the nine strongest, on real files, against what is counted one image at a time.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use crate::common::place::Place;
use crate::common::{storage_eps, values};
use zfnet::backend::Backend;
use zfnet::data::classes::Classes;
use zfnet::data::folder::ImageFolder;
use zfnet::data::images::{Images, ReadOptions, Scratch};
use zfnet::model::{
    Architecture, Canvas, InputStage, Model, Network, Params, Preprocess, Projector, Purpose, Rule,
    Workspace,
};
use zfnet::study::Session;
use zfnet::study::features::{Feature, FeatureLayer, Settings, run};
use zfnet::study::peaks::{Chosen, Maps, Searched, search};
use zfnet::study::project::{Units, project};
use zfnet::train::evaluate::{Classifier, Member, TestCrops, evaluate};

on_every_backend!(
    errors_are_those_of_averaged_probabilities,
    the_nine_strongest_are_the_strongest,
    features_and_project_find_the_same,
    an_interrupted_search_goes_on,
);

const OPTIONS: ReadOptions =
    ReadOptions { canvas: Canvas::square(20), max_bad: 0.0, cache_bytes: 1 << 20, io: None };

/// An untrained network of the place, which gives every image its own probabilities.
pub fn model<B: Backend>(backend: &B, place: &Place, seed: u64) -> Model<B> {
    let file = place.path("tiny.toml");
    let network = Network::new(Architecture::find(file.to_str().unwrap()).unwrap()).unwrap();
    let params = Params::init(backend, &network, seed).unwrap();
    let mean = (0..20 * 20 * 3).map(|i| 100.0 + (i % 37) as f32).collect();
    let preprocess = Preprocess::paper([16; 2], 20, 20.0, mean);
    let classes = Classes::unknown(10);
    Model { network, params, preprocess, classes }
}

fn squares(images: &Images) -> Vec<Vec<u8>> {
    let square = |i| {
        let mut square = vec![0; images.bytes_per_image()];
        images.read_good(i, &mut Scratch::default(), &mut square).unwrap();
        square
    };
    (0..images.len()).map(square).collect()
}

/// The activations of one layer for one crop, with its corner and whether it is mirrored.
fn look<B: Backend>(
    backend: &B,
    model: &Model<B>,
    layer: usize,
    square: &[u8],
    crop: (u32, u32, u32),
) -> Vec<f32> {
    let Model { network, params, preprocess, .. } = model;
    let mut stage = InputStage::new(backend, preprocess, 1, 1).unwrap();
    let mut workspace = Workspace::new(backend, network, Purpose::Infer, 1).unwrap();
    let (y, x, mirror) = crop;
    let crop = zfnet::backend::Crop { image: 0, y, x, mirror };
    stage.fill(backend, &mut workspace.input, square, &[crop]).unwrap();
    workspace.forward(backend, params).unwrap();
    values(backend, workspace.output(layer))
}

/// Two models, ten crops: softmax of each, averaged over crops, then over models.
fn errors_are_those_of_averaged_probabilities<B: Backend>(backend: &B) {
    let place = Place::new();
    let folder = ImageFolder::open(&place.path("data")).unwrap();
    let images = Arc::new(Images::new(folder.train, OPTIONS));
    let models = [model(backend, &place, 1), model(backend, &place, 2)];
    let corners = [(0, 0), (0, 4), (4, 0), (4, 4), (2, 2)];
    let last = models[0].network.layers.len() - 1;

    let (mut top1, mut top5, mut loss) = (0, 0, 0.0);
    for (i, square) in squares(&images).iter().enumerate() {
        let mut average = [0.0f64; 10];
        for model in &models {
            for ((y, x), mirror) in corners.into_iter().flat_map(|at| [(at, 0), (at, 1)]) {
                let logits = look(backend, model, last, square, (y, x, mirror));
                let powers: Vec<f64> = logits.iter().map(|l| f64::from(*l).exp()).collect();
                let sum: f64 = powers.iter().sum();
                average.iter_mut().zip(&powers).for_each(|(a, p)| *a += p / sum / 20.0);
            }
        }
        let own = average[images.class(i) as usize];
        let before = average.iter().filter(|p| **p > own).count();
        top1 += usize::from(before >= 1);
        top5 += usize::from(before >= 5);
        loss -= own.ln();
    }
    let count = images.len() as f64;

    let mut members = models.each_ref().map(|Model { network, params, preprocess, .. }| Member {
        network,
        params,
        classifier: Classifier::new(backend, network, preprocess, TestCrops::Ten, 7).unwrap(),
        images: images.clone(),
    });
    let never = AtomicUsize::new(0);
    let found = evaluate(backend, &mut members, 2, &never, |_| ()).unwrap().unwrap();
    assert_eq!(found.images, images.len());
    assert_eq!(found.top1_error, top1 as f64 / count);
    assert_eq!(found.top5_error, top5 as f64 / count);
    // Batches of other sizes may round logits otherwise.
    assert!((found.loss - loss / count).abs() < 1e-5, "{} {}", found.loss, loss / count);
    assert!(top1 > 0 && top1 < images.len() && top5 < top1, "the network tells images apart");
}

/// What `features` finds in the images of a folder, as a page has it.
fn features<B: Backend>(
    backend: &B,
    model: &Model<B>,
    settings: &Settings,
    images: &Arc<Images>,
    root: &Path,
) -> serde_json::Value {
    let mut session = Session::new(backend);
    session.workers = 2;
    let mut layers: Vec<FeatureLayer> = Vec::new();
    run(&mut session, model, settings, images, Some(&model.classes), root, |found| {
        match found {
            Feature::Layer(layer) => layers.push(layer),
            Feature::Map(map) => layers.last_mut().unwrap().rows.push(map),
        }
        Ok(())
    })
    .unwrap();
    serde_json::to_value(layers).unwrap()
}

/// For every map, the images whose centre crop excites it most, the place, and the box that the
/// unit sees in the file, which here is the square itself.
fn the_nine_strongest_are_the_strongest<B: Backend>(backend: &B) {
    let place = Place::new();
    let folder = ImageFolder::open(&place.path("data")).unwrap();
    let images = Arc::new(Images::new(folder.train, OPTIONS));
    let model = model(backend, &place, 1);
    let layer = model.network.layer("conv2").unwrap();
    let chosen = vec![Maps::First(11).of(&model.network, layer)];
    let settings = Settings { chosen, rule: Rule::DECONVNET };
    let found = features(backend, &model, &settings, &images, &place.path("data"));

    let shown = &model.network.layers[layer];
    let (width, maps) = (shown.output.w, shown.output.c);
    assert_eq!(maps, 12);
    let mut peaks: BTreeMap<usize, Vec<(f32, usize, usize)>> = BTreeMap::new();
    for (i, square) in squares(&images).iter().enumerate() {
        let activations = look(backend, &model, layer, square, (2, 2, 0));
        for map in 0..11 {
            let values = activations.iter().skip(map).step_by(maps).copied().enumerate();
            let (at, value) = values.rev().max_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
            if value > 0.0 {
                peaks.entry(map).or_default().push((value, i, at));
            }
        }
    }
    let rows = found[0]["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 11);
    let mut compared = 0;
    for (map, row) in rows.iter().enumerate() {
        let mut expected = peaks.remove(&map).unwrap_or_default();
        expected.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        expected.truncate(9);
        let found = row["peaks"].as_array().unwrap();
        assert_eq!(found.len(), expected.len());
        for (found, (value, image, at)) in found.iter().zip(expected) {
            let (y, x) = (at / width, at % width);
            let near = (found["value"].as_f64().unwrap() as f32 - value).abs() <= 1e-5 * value;
            assert!(near && found["y"] == y && found["x"] == x, "{found} {value} {y} {x}");
            let path = place.path("data").join(found["image"].as_str().unwrap());
            assert_eq!(path, images.path(image));
            // conv2 sees 17 pixels, 4 apart, from -4 on; the crop begins at 2 in the square.
            let sees = |i: usize| {
                let first = 4 * i as i64 - 4;
                [first, first + 17].map(|v| (v.clamp(0, 16) + 2) as f64)
            };
            let ([x0, x1], [y0, y1]) = (sees(x), sees(y));
            assert_eq!(found["patch"], serde_json::json!([x0, y0, x1, y1]));
            compared += 1;
        }
    }
    assert!(compared > 50, "only {compared} peaks");
}

/// What `features` reports of an image and a map, `project` finds in the file: of maps in any order,
/// before and after pooling, and of units that see all.
fn features_and_project_find_the_same<B: Backend>(backend: &B) {
    let place = Place::new();
    let folder = ImageFolder::open(&place.path("data")).unwrap();
    let model = model(backend, &place, 1);
    let Model { network, params, preprocess, .. } = &model;
    let [conv1, pool1, conv2, fc3] =
        ["conv1", "pool1", "conv2", "fc3"].map(|name| network.layer(name).unwrap());
    let root = place.path("data");
    let settings = Settings {
        chosen: vec![
            Chosen { layer: conv1, maps: vec![7, 2] },
            Chosen { layer: pool1, maps: vec![2] },
            Chosen { layer: conv2, maps: vec![0, 5, 11] },
            Chosen { layer: fc3, maps: vec![3, 4] },
        ],
        rule: Rule::DECONVNET,
    };
    let images = Arc::new(Images::new(folder.val, OPTIONS));
    let layers = features(backend, &model, &settings, &images, &root);

    let mut projector = Projector::new(backend, network, params, preprocess, 1, 1).unwrap();
    let mut classifier = Classifier::new(backend, network, preprocess, TestCrops::One, 1).unwrap();
    // On another way through a batch, sums may be rounded otherwise.
    let near = 1e-5 + 2.0 * storage_eps(backend) as f32;
    let mut compared = 0;
    for (Chosen { layer, maps }, found) in settings.chosen.iter().zip(layers.as_array().unwrap()) {
        let rows = found["rows"].as_array().unwrap();
        assert_eq!(rows.len(), maps.len());
        for (&map, row) in maps.iter().zip(rows) {
            assert_eq!(row["map"], map);
            for peak in row["peaks"].as_array().unwrap() {
                let path = root.join(peak["image"].as_str().unwrap());
                let units = Units::One { layer: *layer, map };
                let (projector, classifier) = (&mut projector, &mut classifier);
                let rule = Rule::DECONVNET;
                let shown =
                    project(backend, &model, projector, classifier, &path, &units, rule).unwrap();
                let unit = &shown.layers[0].units[0];
                let value = peak["value"].as_f64().unwrap() as f32;
                assert!((unit.value - value).abs() <= near * value, "{peak} {}", unit.value);
                assert_eq!(
                    serde_json::json!([unit.y, unit.x]),
                    serde_json::json!([peak["y"], peak["x"]])
                );
                assert_eq!(serde_json::json!(unit.patch), peak["patch"]);
                assert_eq!(serde_json::json!(unit.field_box), peak["field_box"]);
                compared += 1;
            }
        }
    }
    assert!(compared > 40, "only {compared} peaks");
}

/// Of 60 images 32 are looked at, then the search is ended: one that begins there finds what one that was
/// never ended finds.
fn an_interrupted_search_goes_on<B: Backend>(backend: &B) {
    let place = Place::new();
    let folder = ImageFolder::open(&place.path("data")).unwrap();
    let images = Arc::new(Images::new(folder.train, OPTIONS));
    let model = model(backend, &place, 1);
    let Model { network, params, preprocess, .. } = &model;
    let chosen = [Maps::First(5).of(network, network.layer("conv2").unwrap())];
    let mut projector = Projector::new(backend, network, params, preprocess, 32, 32).unwrap();
    let mut look = |searched: &mut Searched, end: usize| {
        search(&mut projector, &model, &images, &chosen, 9, 2, searched, |searched| {
            match searched.done == end {
                true => Err(zfnet::Error::callback("ended")),
                false => Ok(()),
            }
        })
    };
    let mut ended = Searched::nothing(&chosen);
    assert!(look(&mut ended, 32).is_err());
    assert_eq!(ended.done, 32);
    let mut whole = Searched::nothing(&chosen);
    look(&mut whole, 0).unwrap();
    assert_ne!(ended.best, whole.best);
    look(&mut ended, 0).unwrap();
    assert_eq!(ended, whole);
    let json = serde_json::to_string(&whole).unwrap();
    assert_eq!(serde_json::from_str::<Searched>(&json).unwrap(), whole, "as it is kept");
    assert_eq!(whole.done, 60);
}
