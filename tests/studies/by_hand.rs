//! Studies with known answers: networks of a few weights set by hand, and the commands on real files.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use crate::common::network;
use crate::common::page::{attributes, check_links};
use crate::common::program::Place;
use serde_json::Value;
use zfnet::backend::{Backend, SeedUnit};
use zfnet::data::classes::Classes;
use zfnet::data::folder::ImageFolder;
use zfnet::data::images::{Images, ReadOptions};
use zfnet::model::{Canvas, Model, Network, Params, Preprocess, Projector, Rule, Seed};
use zfnet::picture::Image;
use zfnet::report;
use zfnet::report::figure::{self, Figure};
use zfnet::study::boxes::Annotation;
use zfnet::study::filters::{self, Trained};
use zfnet::study::image_selection::StudyImage;
use zfnet::study::occluder::Fill;
use zfnet::study::occlusion::{self, Occluded, Reading};
use zfnet::study::sanity::{self, Comparison, Wanted, correlation};
use zfnet::study::{Session, correspondence};
use zfnet::train::evaluate::{Classifier, TestCrops, softmax};

on_every_backend!(
    a_square_takes_away_what_it_covers,
    a_square_over_everything_shows_what_it_is_filled_with,
    a_changed_feature_counts_for_each_pair,
    equal_weights_give_equal_pictures,
    a_cascade_of_two_layers_is_known,
    weights_above_a_unit_have_no_part_in_it,
    a_unit_below_all_weights_stays_as_it_is,
    dead_filters_and_dead_maps_are_counted,
);

/// 8x8 pixels; conv1 passes red on, and green as a second map; the first class's logit is a 64th of red
/// at row 3, column 2, and the second's is 0.
fn by_hand<B: Backend>(backend: &B) -> Model<B> {
    let network = network(
        r#"
        name = "by hand"
        classes = 2
        input = { size = 8, resize = 8 }
        layers = [
          { type = "conv", name = "conv1", channels = 2, kernel = 1 },
          { type = "relu" },
          { type = "fc", name = "fc2" },
        ]
        "#,
    );
    let mut params = Params::weights(backend, &network).unwrap();
    let mut set = |layer: &str, values: &[f32]| {
        let param = params.layers[network.layer(layer).unwrap()].as_mut().unwrap();
        backend.upload(&mut param.weight, values).unwrap();
    };
    set("conv1", &[1.0, 0.0, 0.0, 0.0, 1.0, 0.0]);
    let mut weights = vec![0.0; 2 * 8 * 8 * 2];
    weights[(3 * 8 + 2) * 2] = 1.0 / 64.0;
    set("fc2", &weights);
    let preprocess = Preprocess::paper([8; 2], 8, 1.0, vec![0.0; 3]);
    Model {
        network,
        params,
        preprocess,
        classes: Classes::named(vec!["red".into(), "other".into()]),
    }
}

/// Red is 2 everywhere and 128 at row 3, column 2; green is 1.
fn image() -> StudyImage {
    let pixel = |i: usize| [if i == 3 * 8 + 2 { 128 } else { 2 }, 1, 0];
    let square = (0..64).flat_map(pixel).collect();
    StudyImage { name: "image".into(), class: 0, known: true, square, size: [8, 8] }
}

/// What was noted of the image, and how far the study said it was.
fn occluded<B: Backend>(
    backend: &B,
    model: &Model<B>,
    settings: &occlusion::Settings,
) -> (Occluded, Vec<(usize, usize)>) {
    let mut said = Vec::new();
    let mut session = Session::new(backend).watched(|_, done, total, _| said.push((done, total)));
    let found = occlusion::run(&mut session, model, settings, vec![(image(), None)]).unwrap();
    drop(session);
    (found.images[0].occluded.clone(), said)
}

fn a_square_takes_away_what_it_covers<B: Backend>(backend: &B) {
    let model = by_hand(backend);
    let layer = model.network.layer("conv1").unwrap();
    let settings = occlusion::Settings { square: 3, stride: 2, fill: Fill::Mean, layer };
    let (found, said) = occluded(backend, &model, &settings);
    assert_eq!(found.corners, [[0, 2, 4, 5], [0, 2, 4, 5]]);
    assert_eq!(said, [(16, 16)]);
    // Red fires most: 63 times 2, and 128.
    assert_eq!((found.map, found.before.activity), (0, 254.0));
    let probability = |logit: f32| softmax(&[logit, 0.0]).next().unwrap();
    assert_eq!(found.before.probability, probability(2.0));
    let mut covers = 0;
    for (i, place) in found.places.iter().enumerate() {
        let (y, x) = (found.corners[0][i / 4], found.corners[1][i % 4]);
        let on_it = (y..y + 3).contains(&3) && (x..x + 3).contains(&2);
        covers += usize::from(on_it);
        let expected = match on_it {
            // The first of two equal classes; with a bias, below, the other one.
            true => Reading { activity: 254.0 - 8.0 * 2.0 - 128.0, probability: 0.5, label: 0 },
            false => {
                Reading { activity: 254.0 - 9.0 * 2.0, probability: probability(2.0), label: 0 }
            }
        };
        assert_eq!(*place, expected, "{y} {x}");
    }
    assert_eq!(covers, 2);
    assert_eq!(found.drop(), Some([1, 0]));
    assert_eq!(found.at([1, 0]), [0, 2, 3, 5]);

    // The second class's logit is 1 now: less than the first's, unless that is covered.
    let mut model = by_hand(backend);
    let fc2 = model.network.layer("fc2").unwrap();
    let bias = &mut model.params.layers[fc2].as_mut().unwrap().bias;
    backend.upload(bias, &[0.0, 1.0]).unwrap();
    let (found, _) = occluded(backend, &model, &settings);
    assert_eq!(found.before.label, 0);
    let others: Vec<usize> = (0..16).filter(|i| found.places[*i].label == 1).collect();
    assert_eq!(others, [4, 5]); // rows 2 to 4, columns 0 to 2 and 2 to 4
}

fn a_square_over_everything_shows_what_it_is_filled_with<B: Backend>(backend: &B) {
    let mut model = by_hand(backend);
    model.preprocess.mean = vec![64.0, 3.0, 5.0];
    let (network, preprocess) = (&model.network, &model.preprocess);
    let layer = network.layer("conv1").unwrap();
    let grey: Vec<u8> = vec![128; 192];
    let mean: Vec<u8> = [64, 3, 5].repeat(64);
    for (fill, alone) in [(Fill::Grey, grey), (Fill::Mean, mean)] {
        let mut classifier =
            Classifier::new(backend, network, preprocess, TestCrops::One, 1).unwrap();
        let mut classified = [0.0; 2];
        classifier
            .add_probabilities(backend, network, &model.params, &alone, &mut classified)
            .unwrap();
        for square in [8, 9, 200] {
            let settings = occlusion::Settings { square, stride: 3, fill, layer };
            let (found, _) = occluded(backend, &model, &settings);
            assert_eq!((&found.corners, found.square), (&[vec![0], vec![0]], 8));
            assert_eq!(found.places.len(), 1);
            assert_eq!(found.places[0].probability, classified[0]);
        }
    }
}

/// Three images, covered at one pixel each: where red goes, where green goes, and where nothing was.
fn a_changed_feature_counts_for_each_pair<B: Backend>(backend: &B) {
    let model = by_hand(backend);
    let black = vec![0u8; 192];
    let with = |pixel: Option<(usize, [u8; 3])>| {
        let mut square = black.clone();
        if let Some((at, rgb)) = pixel {
            square[at * 3..at * 3 + 3].copy_from_slice(&rgb);
        }
        StudyImage { name: "image".into(), class: 0, known: true, square, size: [8, 8] }
    };
    let mark = |at: [f64; 2]| {
        let [y, x] = at;
        let text =
            format!(r#"{{"image":"image","boxes":{{"part":[{x},{y},{},{}]}}}}"#, x + 1.0, y + 1.0);
        serde_json::from_str(&text).unwrap()
    };
    let images = [with(Some((9, [7, 0, 0]))), with(Some((9, [0, 9, 0]))), with(None)];
    let marked = [mark([1.0, 1.0]), mark([1.0, 1.0]), mark([1.0, 1.0])];
    let layers = vec![model.network.layer("conv1").unwrap()];
    let settings = correspondence::Settings { layers, fill: Fill::Mean, draws: 0, seed: 0 };
    let scores =
        |settings: &correspondence::Settings, images: &[StudyImage], marked: &[Annotation]| {
            let mut session = Session::new(backend);
            correspondence::run(&mut session, &model, settings, images, marked).unwrap().scores
        };
    // Of 128 features red changes one, green another one, black none.
    let found = scores(&settings, &images, &marked);
    assert_eq!(found[0].pairs, [2.0 / 128.0, 1.0 / 128.0, 1.0 / 128.0]);

    let copies = [&images[0]; 5].map(Clone::clone);
    let marked = [&marked[0]; 5].map(Clone::clone);
    let found = scores(&settings, &copies, &marked);
    assert_eq!((found[0].pairs.len(), found[0].part_score), (10, [0.0, 0.0]));
    // Boxes as large as the crop are the same wherever they are drawn.
    let all: Annotation =
        serde_json::from_str(r#"{"image":"i","boxes":{"all":[0,0,8,8]}}"#).unwrap();
    let marked = [&all; 5].map(Clone::clone);
    let found = scores(&correspondence::Settings { draws: 3, ..settings }, &copies, &marked);
    assert_eq!(found[0].random_score, Some([0.0, 0.0]));
}

fn equal_weights_give_equal_pictures<B: Backend>(backend: &B) {
    let model = by_hand(backend);
    let folder = tempfile::tempdir().unwrap();
    let layer = model.network.layer("fc2").unwrap();
    let settings = sanity::Settings { units: vec![Wanted { layer, map: Some(0) }] };
    // What was compared, and the page's sections of the unit.
    let run = |random: Params<B>| {
        let mut session = Session::new(backend);
        let trained = by_hand(backend);
        let found = sanity::run(&mut session, trained, random, &settings, &[image()]).unwrap();
        for c in found.stages().filter(|c| c.randomised == 0) {
            assert_eq!([c.trained_random, c.magnitudes, c.ssim], [1.0; 3], "{c:?}");
        }
        report::sanity::write(folder.path(), &found, None).unwrap();
        let figure = fs::read(folder.path().join(figure::FILE)).unwrap();
        let figure: Figure = serde_json::from_slice(&figure).unwrap();
        let compared: Vec<Comparison> = found.compared().cloned().collect();
        let of_unit = |section: &&figure::Section| section.title == "fc2 in image";
        (compared, figure.sections.iter().filter(of_unit).cloned().collect::<Vec<_>>())
    };
    let (compared, sections) = run(by_hand(backend).params);
    assert_eq!((compared.len(), sections.len(), sections[0].pictures.len()), (3, 1, 7));
    for c in &compared {
        assert_eq!((c.trained_random, c.unit[0]), (1.0, c.random_map));
        assert_eq!((c.magnitudes, c.ssim, c.randomised), (1.0, 1.0, 2), "{c:?}");
        assert!(c.trained_image > 0.9, "{c:?}"); // all but one pixel of red is nearly black
    }
    // The deconvnet's is that of the projector: 2 from the logit, through one weight of a 64th.
    let Model { network, params, preprocess, .. } = &model;
    let mut projector = Projector::new(backend, network, params, preprocess, 1, 1).unwrap();
    projector.look(&image().square, &TestCrops::One.of(preprocess, 0)).unwrap();
    let unit = SeedUnit { map: 0, y: 0, x: 0, value: 2.0 };
    projector
        .project(layer, &[Seed { image: 0, unit }], Rule::DECONVNET, |_, pixels| {
            let red = 2.0 / 64.0;
            assert_eq!(pixels.iter().filter(|v| **v != 0.0).count(), 1);
            assert_eq!(pixels[(3 * 8 + 2) * 3], red);
            let input: Vec<f32> = image().square.iter().map(|v| f32::from(*v)).collect();
            assert_eq!(compared[0].trained_image, correlation(pixels, &input));
            Ok(())
        })
        .unwrap();
    // Without weights nothing fires, and nothing is compared.
    let (compared, sections) = run(Params::weights(backend, network).unwrap());
    assert_eq!((compared.len(), sections[0].pictures.len()), (0, 4));
    assert!(sections[0].text[0].contains("nothing fires"), "{:?}", sections[0].text);
}

/// The by-hand network's weights with signs and places changed: conv1 passes blue on as its first map and red with
/// the wrong sign as its second, and the logit of red looks at row 6, column 5 of the first, with the wrong sign.
fn other_weights<B: Backend>(backend: &B, network: &Network) -> Params<B> {
    let mut params = Params::weights(backend, network).unwrap();
    let mut set = |layer: &str, values: &[f32]| {
        let param = params.layers[network.layer(layer).unwrap()].as_mut().unwrap();
        backend.upload(&mut param.weight, values).unwrap();
    };
    set("conv1", &[0.0, 0.0, 1.0, -1.0, 0.0, 0.0]);
    let mut weights = vec![0.0; 2 * 8 * 8 * 2];
    weights[(6 * 8 + 5) * 2] = -1.0 / 64.0;
    set("fc2", &weights);
    params
}

/// Of two linear layers (but for a relu that all of red passes) the gradient of a logit is the product of their
/// weights: one value of one pixel at each stage.
fn a_cascade_of_two_layers_is_known<B: Backend>(backend: &B) {
    let model = by_hand(backend);
    let random = other_weights(backend, &model.network);
    let settings = sanity::Settings { units: Vec::new() };
    // Blue is 1, so that conv1's first map passes its relu also when it looks at blue.
    let mut image = image();
    image.square.chunks_exact_mut(3).for_each(|pixel| pixel[2] = 1);
    let mut said = Vec::new();
    let mut session = Session::new(backend).watched(|_, done, total, _| said.push((done, total)));
    let found = sanity::run(&mut session, model, random, &settings, &[image]).unwrap();
    drop(session);
    assert_eq!(said, [(1, 3), (2, 3), (3, 3)]);
    let order: Vec<(&str, bool)> =
        found.cascade.iter().map(|r| (r.layer.as_str(), r.initial_is_known)).collect();
    assert_eq!(order, [("fc2", false), ("conv1", false)]);
    let logit = found.images[0].logit.as_ref().unwrap();
    assert_eq!(logit.stages.len(), 3);
    // 128/64, -2/64 and -1/64: also where nothing fires it is followed.
    let values: Vec<f32> =
        logit.stages.iter().map(|stage| stage.projected.as_ref().unwrap().unit.value).collect();
    assert_eq!(values, [2.0, -2.0 / 64.0, -1.0 / 64.0]);
    let compared: Vec<&Comparison> = found.stages().collect();
    assert_eq!(compared.len(), 6);
    assert!(compared.iter().all(|c| (c.of, c.random_map, c.unit) == ("logit", 0, [0; 3])));
    // One value of 192, v at one place, beside w at another: r = -1/191 for equal signs, whatever their sizes.
    let apart = 1.0 / 191.0;
    let gradient: Vec<[f64; 2]> = compared
        .iter()
        .filter(|c| c.rule == "gradient")
        .map(|c| [c.trained_random, c.magnitudes])
        .collect();
    for (found, expected) in gradient.iter().zip([[1.0, 1.0], [apart, -apart], [apart, -apart]]) {
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-9, "{gradient:?}");
        }
    }
    // What is negative is stopped at the relu, so that the guided picture is empty: it does not vary.
    let guided: Vec<f64> =
        compared.iter().filter(|c| c.rule == "guided").map(|c| c.trained_random).collect();
    assert_eq!(guided, [1.0, 0.0, 0.0]);
}

fn weights_above_a_unit_have_no_part_in_it<B: Backend>(backend: &B) {
    let model = by_hand(backend);
    let layer = model.network.layer("conv1").unwrap();
    let random = other_weights(backend, &model.network);
    let settings = sanity::Settings { units: vec![Wanted { layer, map: Some(0) }] };
    let mut session = Session::new(backend);
    let mut image = image();
    image.square.chunks_exact_mut(3).for_each(|pixel| pixel[2] = 1);
    let found = sanity::run(&mut session, model, random, &settings, &[image]).unwrap();
    let unit = found.images[0].units[0].fired.as_ref().unwrap();
    let stages: Vec<(usize, Option<&str>)> =
        unit.stages.iter().map(|stage| (stage.randomised, stage.down_to.as_deref())).collect();
    assert_eq!(stages, [(0, None), (1, Some("conv1"))]);
    // Red of one pixel became blue of it: of three values (v, 0, 0) and (0, 0, w) r is -1/2.
    for c in &unit.random().unwrap().compared {
        assert!((c.trained_random + 0.5).abs() < 1e-9, "{c:?}");
        assert_eq!(c.random_map, 0);
    }
    let folder = tempfile::tempdir().unwrap();
    report::sanity::write(folder.path(), &found, None).unwrap();
    let html = fs::read_to_string(folder.path().join("index.html")).unwrap();
    check_links(folder.path(), &html);
    for words in [
        "It is not known how the weights of fc2, conv1 were drawn",
        "it alone has a part in its projection",
        "zfnet study learnt",
        "+ conv1 (all)",
    ] {
        assert!(html.contains(words), "{words}");
    }
}

fn a_unit_below_all_weights_stays_as_it_is<B: Backend>(backend: &B) {
    let network = network(
        r#"
        name = "pooled"
        classes = 2
        input = { size = 8, resize = 8 }
        layers = [
          { type = "maxpool", name = "pool1", kernel = 2, stride = 2 },
          { type = "fc", name = "fc2" },
        ]
        "#,
    );
    let [params, random] = [1, 2].map(|seed| Params::init(backend, &network, seed).unwrap());
    let layer = network.layer("pool1").unwrap();
    let preprocess = Preprocess::paper([8; 2], 8, 1.0, vec![0.0; 3]);
    let classes = Classes::named(vec!["a".into(), "b".into()]);
    let model = Model { network, params, preprocess, classes };
    let settings = sanity::Settings { units: vec![Wanted { layer, map: Some(0) }] };
    let mut session = Session::new(backend);
    let found = sanity::run(&mut session, model, random, &settings, &[image()]).unwrap();
    assert!(found.cascade.iter().all(|layer| layer.initial_is_known));
    let compared: Vec<&Comparison> = found.compared().collect();
    assert_eq!(compared.len(), 3);
    for c in compared {
        let likeness = [c.trained_random, c.magnitudes, c.ssim];
        assert_eq!((likeness, c.randomised, c.down_to.as_str()), ([1.0; 3], 0, ""));
    }
    // Without a curve, and with a logit whose weights are others.
    let logit: Vec<f64> =
        found.stages().filter(|c| c.of == "logit").map(|c| c.trained_random).collect();
    assert!(logit[..2] == [1.0; 2] && logit[2..].iter().all(|r| r.abs() < 0.9), "{logit:?}");
    let folder = tempfile::tempdir().unwrap();
    report::sanity::write(folder.path(), &found, None).unwrap();
    let html = fs::read_to_string(folder.path().join("index.html")).unwrap();
    check_links(folder.path(), &html);
    assert!(html.contains("No layer with weights has a part in it.") && !html.contains(".svg"));
    assert!(!html.contains("It is not known"));
}

/// conv1 has four filters: one passes red on, one is far too small, one is never above zero, one looks for
/// green; conv2 passes the first one's map on, and once more with the wrong sign.
fn dead_filters_and_dead_maps_are_counted<B: Backend>(backend: &B) {
    let network = network(
        r#"
        name = "dead"
        classes = 2
        input = { size = 8, resize = 8 }
        layers = [
          { type = "conv", name = "conv1", channels = 4, kernel = 2, stride = 2 },
          { type = "relu" },
          { type = "conv", name = "conv2", channels = 2, kernel = 2 },
          { type = "relu" },
          { type = "fc", name = "fc3" },
        ]
        "#,
    );
    let mut params = Params::weights(backend, &network).unwrap();
    let mut set = |layer: &str, values: &[f32]| {
        let param = params.layers[network.layer(layer).unwrap()].as_mut().unwrap();
        backend.upload(&mut param.weight, values).unwrap();
    };
    let mut first = [0.0f32; 4 * 12];
    first[0] = 1.0; // red at the filter's corner
    first[12] = 1.0 / 256.0; // the same, but small
    first[24..36].fill(-0.5); // nothing is below black
    first[36 + 4] = 0.5;
    set("conv1", &first);
    let mut second = [0.0f32; 2 * 16];
    second[0] = 1.0;
    second[16] = -1.0;
    set("conv2", &second);
    let preprocess = Preprocess::paper([8; 2], 8, 1.0, vec![0.0; 3]);
    let model = Model {
        network,
        params,
        preprocess,
        classes: Classes::named(vec!["a".into(), "b".into()]),
    };
    let place = Place::new();
    let red = Image::new(8, 8, [64, 0, 0].repeat(64));
    for split in ["train", "val"] {
        for class in ["a", "b"] {
            red.write_png(&place.path(&format!("red/{split}/{class}/1.png"))).unwrap();
        }
    }
    let images = ImageFolder::open(&place.path("red")).unwrap().val;
    let options = ReadOptions { canvas: Canvas::square(8), max_bad: 0.0, cache_bytes: 0, io: None };
    let images = Arc::new(Images::new(images, options));

    let root = place.path("red");
    let images = Some((images, root.as_path()));
    let trained = Trained { model: &model, checkpoint: "by hand".into(), images };
    let found = filters::run(&mut Session::new(backend), vec![trained]).unwrap();
    let filters = &found.networks[0];
    // The norms are 1, 1/256, 0.5 sqrt(12) and 0.5.
    let expected = [1.0, 1.0 / 256.0, 12f64.sqrt() * 0.5, 0.5].map(|norm| norm / 12f64.sqrt());
    for (found, expected) in filters.rms.iter().zip(expected) {
        assert!((found - expected).abs() < 1e-9, "{:?}", filters.rms);
    }
    assert_eq!(filters.dead_by_norm, [1]);
    assert_eq!((filters.kernel, filters.stride, filters.rms_limit), ([2, 2], 2, 0.1));
    let seen = filters.seen.as_ref().unwrap();
    // Green and blue are black: of conv1 the negative filter is dead, and the one that looks at green.
    assert_eq!(seen.dead, [("conv1".to_owned(), 4, vec![2, 3]), ("conv2".to_owned(), 2, vec![1])]);
    assert_eq!(seen.images, 2);
    assert!(seen.grid.is_none(), "four pixels do not tell frequencies apart");
    let alarms = report::filters::alarms(filters).join("\n");
    assert!(alarms.contains("1 of 4 filters are dead by their norm"), "{alarms}");
    assert!(alarms.contains("2 of 4 maps of conv1 are dead"), "{alarms}");
    assert!(alarms.contains("1 of 2 maps of conv2 are dead"), "{alarms}");
}

/// A place with a trained run.
pub(super) fn trained() -> Place {
    let place = Place::new();
    place.run("train --data data --arch tiny.toml --out run --epochs 2 --keep 9").ok();
    place
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Reads a study's page and checks its links; returns its pictures.
pub(super) fn page(place: &Place, folder: &str) -> Vec<String> {
    let out = place.path(folder);
    let html = fs::read_to_string(out.join("index.html")).unwrap();
    check_links(&out, &html);
    let pictures: Vec<String> = attributes(&html, "src").iter().map(|s| (*s).to_owned()).collect();
    for picture in &pictures {
        if picture.ends_with(".png") {
            let read = image::open(out.join(picture)).unwrap().to_rgb8();
            assert!(read.width() >= 64, "{picture} is small");
        }
    }
    pictures
}

#[test]
fn occlusion_of_files_and_of_a_data_set() {
    let place = trained();
    let ran = place.run("study occlusion --checkpoint run --data data --split train").ok();
    assert_eq!(ran.stdout.trim(), "run/report/occlusion/index.html");
    let found = json(&place.path("run/report/occlusion/occlusion.json"));
    let images = found["images"].as_array().unwrap();
    assert!(!images.is_empty() && images.len() <= 10);
    assert!(ran.stderr.matches("is left out").count() == 10 - images.len());
    assert_eq!(page(&place, "run/report/occlusion").len(), images.len() * 5);
    // 16 pixels, squares of 4: corners 0 to 12.
    assert_eq!(images[0]["occluded"]["corners"][0].as_array().unwrap().len(), 13);
    let csv = fs::read_to_string(place.path("run/report/occlusion/occlusion.csv")).unwrap();
    assert_eq!(csv.lines().count(), 1 + images.len() * 169);
    assert!(!place.path("run/report/occlusion/.parts").exists());

    // The same image as a file, with a box around everything; and once more from what was kept.
    let name = images[0]["image"].as_str().unwrap();
    let list = format!(r#"{{"images":[{{"image":"{name}","boxes":{{"all":[0,0,20,20]}}}}]}}"#);
    fs::write(place.path("data/boxes.json"), list).unwrap();
    let with = "study occlusion --checkpoint run/last --boxes data/boxes.json --out o";
    let ran = place.run(with).ok();
    let one = json(&place.path("o/occlusion.json"))["images"].clone();
    let dropped = one[0]["lowest_square_in_crop"].is_array();
    let count = usize::from(dropped);
    assert!(ran.stdout.contains(&format!("inside the box in {count} of 1")), "{}", ran.stdout);
    assert_eq!(one[0]["class"], images[0]["class"]);
    place.run("study occlusion --checkpoint run/best --boxes data/boxes.json --out o").ok();
    page(&place, "o");
}

#[test]
fn occlusion_goes_on_with_what_is_there() {
    let place = trained();
    let all = "study occlusion --checkpoint run --data data --split train --stride 1 --out o";
    place.run(all).ok();
    let whole = fs::read(place.path("o/occlusion.json")).unwrap();
    let images = json(&place.path("o/occlusion.json"))["images"].clone();
    assert!(images.as_array().unwrap().len() > 1, "the network gets several classes right");
    // It ends after all images were looked at, since a folder is in a picture's place.
    fs::remove_dir_all(place.path("o")).unwrap();
    fs::create_dir_all(place.path("o/000-input.png/full")).unwrap();
    place.run(all).refused(&["cannot write into o"]);
    fs::remove_dir_all(place.path("o/000-input.png")).unwrap();
    // What was kept is used: it is made up here, to be told again. A part that cannot be is made again.
    let part = place.path("o/.parts/image-0.json");
    let mut kept = json(&part);
    let occluded = |json: &Value| serde_json::from_value::<Occluded>(json.clone()).unwrap();
    assert!(occluded(&kept) == occluded(&images[0]["occluded"]));
    kept["before"]["activity"] = 123.0.into();
    fs::write(&part, serde_json::to_vec(&kept).unwrap()).unwrap();
    let second = place.path("o/.parts/image-1.json");
    let mut short = json(&second);
    short["places"].as_array_mut().unwrap().pop();
    fs::write(&second, serde_json::to_vec(&short).unwrap()).unwrap();
    place.run(all).ok();
    let again = json(&place.path("o/occlusion.json"))["images"].clone();
    assert!(occluded(&again[0]["occluded"]) == occluded(&kept));
    assert!(again[1] == images[1]);
    assert!(!place.path("o/.parts").exists());
    // Without what was kept, the same once more.
    place.run(all).ok();
    assert!(fs::read(place.path("o/occlusion.json")).unwrap() == whole);
}

#[test]
fn what_cannot_be_occluded_is_said() {
    let place = trained();
    let occlusion = "study occlusion --checkpoint run --out o";
    let refused = |arguments: &str, words: &[&str]| {
        place.run(&format!("{occlusion} {arguments}")).refused(words);
    };
    fs::create_dir(place.path("empty")).unwrap();
    fs::write(place.path("text.jpg"), "hello").unwrap();
    fs::write(place.path("no.json"), r#"{"images":[{"image":"x.png","boxes":{}}]}"#).unwrap();
    let image = place.images("data/val").remove(0);
    let image =
        place.images(image.strip_prefix(place.path("")).unwrap().to_str().unwrap()).remove(0);
    let image = image.display();
    refused("", &["no images", "--data"]);
    refused("nowhere.jpg", &["nowhere.jpg"]);
    refused("text.jpg", &["text.jpg", "image"]);
    refused("--data empty", &["empty", "train"]);
    refused("--data nowhere", &["nowhere"]);
    refused("--data data --classes unicorn", &["unicorn", "expected one of"]);
    refused(&format!("{image} --class unicorn"), &["unicorn"]);
    refused(&format!("{image} --layer conv9"), &["conv9", "conv2"]);
    refused("--boxes no.json", &["x.png"]);
    refused("--boxes nowhere.json", &["nowhere.json"]);
    refused(&format!("{image} --boxes no.json"), &["none of its images"]);
    let boxed = |name: &str| {
        let list =
            format!(r#"{{"images":[{{"image":"{image}","boxes":{{"{name}":[0,0,1,1]}}}}]}}"#);
        fs::write(place.path("far.json"), list).unwrap();
    };
    boxed("far");
    refused("--boxes far.json", &["`far`", "outside"]);
    refused("--boxes far.json --box near", &["no box `near`", "found far"]);
    place.run(&format!("study occlusion --checkpoint nowhere {image}")).refused(&["nowhere"]);
    for flag in ["--square 0", "--stride 0"] {
        let ran = place.run(&format!("{occlusion} {image} {flag}"));
        assert_eq!(ran.code, Some(2), "{}", ran.stderr);
    }
    // A bare file that belongs to no run.
    place
        .run(&format!("study occlusion --checkpoint run/last/model.safetensors {image}"))
        .refused(&["--out"]);
}

#[test]
fn parts_of_files_are_compared() {
    let place = trained();
    let classes = place.images("data/val");
    let of_class = |i: usize| {
        let folder = classes[i].strip_prefix(place.path("")).unwrap().to_owned();
        place.images(folder.to_str().unwrap()).remove(0)
    };
    let list = |entries: &[(usize, &str)]| {
        let entry = |(i, boxes): &(usize, &str)| {
            format!(r#"{{"image":"{}","boxes":{boxes}}}"#, of_class(*i).display())
        };
        let entries: Vec<String> = entries.iter().map(entry).collect();
        fs::write(place.path("p.json"), format!(r#"{{"images":[{}]}}"#, entries.join(",")))
            .unwrap();
    };
    let command = "study correspondence --checkpoint run --boxes p.json --random 3";
    let both = r#"{"eye":[4,4,9,9],"nose":[8,10,14,15]}"#;
    list(&[(0, both), (1, r#"{"eye":[5,3,9,9]}"#), (2, both)]);
    place.run(command).ok();
    let found = json(&place.path("run/report/correspondence/correspondence.json"));
    let scores = found.as_array().unwrap();
    let pairs: Vec<usize> =
        scores.iter().map(|score| score["pairs"].as_array().unwrap().len()).collect();
    assert_eq!(pairs, [3, 3, 1, 1]); // conv2 has no pooling; two layers, two parts
    assert_eq!((&scores[0]["layer"], &scores[1]["layer"]), (&"conv2".into(), &"fc3".into()));
    assert!(scores.iter().any(|score| score["part_score"][0].as_f64().unwrap() > 0.0));
    assert_eq!(page(&place, "run/report/correspondence").len(), 5);
    let first = fs::read(place.path("run/report/correspondence/correspondence.csv")).unwrap();
    place.run(command).ok();
    assert_eq!(
        fs::read(place.path("run/report/correspondence/correspondence.csv")).unwrap(),
        first,
        "random boxes are those of their seed"
    );

    // Copies of one image.
    list(&[(0, both), (0, both), (0, both), (0, both), (0, both)]);
    place.run(command).ok();
    let found = json(&place.path("run/report/correspondence/correspondence.json"));
    for score in found.as_array().unwrap() {
        assert_eq!(score["part_score"], serde_json::json!([0.0, 0.0]));
    }

    list(&[(0, both)]);
    place.run(command).refused(&["p.json", "two images", "found 1"]);
    list(&[(0, both), (1, r#"{"eye":[4,4,9,9]}"#)]);
    place.run(command).refused(&["`nose`", "only"]);
    list(&[(0, "{}"), (1, "{}")]);
    place.run(command).refused(&["no part"]);
    list(&[(0, r#"{"eye":[0,0,2,2]}"#), (1, r#"{"eye":[4,4,9,9]}"#)]);
    place.run(command).refused(&["`eye`", "outside"]);
    list(&[(0, both), (1, both)]);
    place.run(&format!("{command} --layers conv9")).refused(&["conv9", "conv2"]);
    place.run(&format!("{command} --data nowhere")).ok(); // these paths are absolute
    fs::write(place.path("text.png"), "hello").unwrap();
    for image in ["text.png", "nowhere.png"] {
        let entry = format!(r#"{{"image":"{image}","boxes":{both}}}"#);
        let list = format!(r#"{{"images":[{entry},{entry}]}}"#);
        fs::write(place.path("p.json"), list).unwrap();
        place.run(command).refused(&[image]);
    }
    fs::write(place.path("p.json"), "{").unwrap();
    place.run(command).refused(&["p.json", "expected {"]);
}

#[test]
fn pictures_of_random_weights_stand_beside() {
    let place = trained();
    let ran = place.run("study sanity --checkpoint run --data data --split train").ok();
    assert_eq!(ran.stdout.trim(), "run/report/sanity/index.html");
    page(&place, "run/report/sanity");
    let found = json(&place.path("run/report/sanity/sanity.json"));
    let compared = found.as_array().unwrap();
    assert!(compared.len() >= 6);
    let stage = |c: &Value| c["randomised"].as_u64().unwrap();
    for c in compared.iter().filter(|c| stage(c) > 0) {
        let value = c["trained_random"].as_f64().unwrap();
        assert!((-1.0..1.0).contains(&value), "other weights, the same picture: {c}");
    }
    for c in compared.iter().filter(|c| stage(c) == 0 && c["of"] == "logit") {
        assert_eq!((&c["trained_random"], &c["ssim"]), (&1.0.into(), &1.0.into()), "{c}");
    }
    let layers: Vec<&str> = compared
        .iter()
        .filter(|c| {
            (&c["of"], &c["rule"], &c["image"])
                == (&"logit".into(), &"gradient".into(), &compared[0]["image"])
        })
        .map(|c| c["down_to"].as_str().unwrap())
        .collect();
    assert_eq!(layers, ["", "fc4", "fc3", "conv2", "conv1"]);
    let html = || fs::read_to_string(place.path("run/report/sanity/index.html")).unwrap();
    assert!(html().contains("Not measured yet"));
    let study = "study sanity --checkpoint run --data data --split train";
    place.run("study learnt --checkpoint run --data data").ok();
    place.run(&format!("{study} --threads 1")).ok();
    assert!(html().contains("Top-1 accuracy by") && !html().contains("Not measured yet"));
    assert_eq!(json(&place.path("run/report/sanity/sanity.json")), found, "for any threads");
    fs::write(place.path("run/report/learnt/learnt.json"), "{").unwrap();
    place.run(study).ok();
    assert!(html().contains("cannot be read"));
    let again = "study sanity --checkpoint run --data data --split train --out s";
    place.run(again).ok();
    assert_eq!(json(&place.path("s/sanity.json")), found);
    place.run(&format!("{again} --seed 7")).ok();
    assert_ne!(json(&place.path("s/sanity.json")), found);
    place.run(&format!("{again} --units conv9:1")).refused(&["conv9"]);
    place.run(&format!("{again} --units conv2:99")).refused(&["conv2", "0 to 11"]);
    place.run(&format!("{again} --units conv2")).refused(&["LAYER:MAP"]);
    place.run("study sanity --checkpoint run --out s").refused(&["no images"]);
}

#[test]
fn filters_of_several_runs_stand_side_by_side() {
    let place = trained();
    place.run("train --data data --arch tiny.toml --out free --epochs 1 --rms-limit 0").ok();
    let ran = place.run("study filters --checkpoint run --beside free run/best --data data").ok();
    assert_eq!(ran.stdout.trim(), "run/report/filters/index.html");
    assert_eq!(page(&place, "run/report/filters").len(), 9);
    let found = json(&place.path("run/report/filters/filters.json"));
    let limits: Vec<f64> =
        found.as_array().unwrap().iter().map(|f| f["rms_limit"].as_f64().unwrap()).collect();
    assert!((limits[0] - 0.3).abs() < 1e-6 && limits[1] == 0.0, "{limits:?}");
    let csv = fs::read_to_string(place.path("run/report/filters/filters.csv")).unwrap();
    assert_eq!(csv.lines().count(), 1 + 3 * 8);
    // Without images there is nothing to say of dead maps.
    place.run("study filters --checkpoint run --out f").ok();
    assert!(json(&place.path("f/filters.json"))[0]["seen"].is_null());
    let filters = "study filters --checkpoint run --out f";
    place.run(&format!("{filters} --beside nowhere")).refused(&["nowhere"]);
    place.run(&format!("{filters} --data nowhere")).refused(&["nowhere"]);
    for class in place.images("data/val") {
        for image in place.images(class.to_str().unwrap()) {
            fs::write(image, "no image").unwrap();
        }
    }
    let refused = ["data", "none of the 20 files"];
    place.run(&format!("{filters} --data data --max-bad 1")).refused(&refused);
}

#[test]
fn all_studies_meet_in_the_report() {
    let place = trained();
    for study in ["features", "filters", "invariance", "occlusion", "sanity"] {
        place.run(&format!("study {study} --checkpoint run --data data --split train")).ok();
    }
    place.run("study evolution run --data data").ok();
    place.run("study report run").ok();
    let pictures = page(&place, "run/report");
    let folders =
        ["training", "features", "evolution", "invariance", "filters", "occlusion", "sanity"];
    for folder in folders {
        assert!(
            pictures.iter().any(|picture| picture.starts_with(&format!("{folder}/"))),
            "{folder}"
        );
    }
}

/// What a page shows must not be one flat colour.
#[test]
fn an_occluded_image_shows_its_square() {
    let place = trained();
    let image = place.path("half.png");
    let pixels = (0..20 * 20).flat_map(|i| [if i % 20 < 10 { 30 } else { 220 }; 3]).collect();
    Image::new(20, 20, pixels).write_png(&image).unwrap();
    place.run("study occlusion --checkpoint run half.png --out o").ok();
    for picture in page(&place, "o") {
        let read = image::open(place.path("o").join(&picture)).unwrap().to_rgb8();
        let first = read.get_pixel(0, 0);
        assert!(read.pixels().any(|pixel| pixel != first), "{picture} is flat");
    }
}
