//! What layers make of images, kept and damaged; and the probe as a user runs it.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use crate::common::page::check_links;
use crate::common::program::{Place, TRAIN, VAL};
use crate::common::{bits, storage_eps, values};
use zfnet::backend::{Backend, Precision};
use zfnet::data::Split;
use zfnet::data::classes::Classes;
use zfnet::data::images::{Images, ReadOptions, Scratch};
use zfnet::data::order::training_crop;
use zfnet::data::set::DataSet;
use zfnet::model::{
    Architecture, Canvas, InputStage, Model, Network, Params, Preprocess, Purpose, Workspace,
};
use zfnet::study::activations::{Rows, Views, rows};
use zfnet::train::Crops;

on_every_backend!(rows_are_what_single_images_give, rows_are_kept_and_damage_is_seen);

const OPTIONS: ReadOptions =
    ReadOptions { canvas: Canvas::square(20), max_bad: 0.1, cache_bytes: 0, io: None };

fn model<B: Backend>(backend: &B, place: &Place) -> Model<B> {
    let file = place.path("tiny.toml");
    let network = Network::new(Architecture::find(file.to_str().unwrap()).unwrap()).unwrap();
    let params = Params::init(backend, &network, 5).unwrap();
    let preprocess = Preprocess::paper([16; 2], 20, 20.0, vec![110.0; 3]);
    let classes = Classes::unknown(10);
    Model { network, params, preprocess, classes }
}

fn images(place: &Place) -> Arc<Images> {
    let set = DataSet::open(&place.path("data")).unwrap();
    Arc::new(set.images(Split::Train, OPTIONS).unwrap())
}

/// Every third image backwards, more than a batch, one of them bad.
fn rows_are_what_single_images_give<B: Backend>(backend: &B) {
    let place = Place::new();
    let model = model(backend, &place);
    let all = images(&place);
    let wanted: Vec<u32> = (0..all.len() as u32).rev().filter(|i| i % 3 != 1).collect();
    let bad = wanted[5];
    fs::write(all.path(bad as usize), "no image").unwrap();
    let layers = ["norm4", "conv2", "fc3", "fc4"].map(|name| match name {
        "norm4" => model.network.layers.iter().position(|l| l.name.starts_with("norm")).unwrap(),
        name => model.network.layer(name).unwrap(),
    });
    let mut seen = Vec::new();
    let found = rows(backend, &model, &all, &wanted, &layers, Views::Centre, None, 3, |now, of| {
        seen.push((now, of));
    })
    .unwrap();
    assert!(wanted.len() > 32 && seen == [(32, wanted.len()), (wanted.len(), wanted.len())]);

    let good: Vec<u32> = wanted.into_iter().filter(|&image| image != bad).collect();
    let mut stage = InputStage::new(backend, &model.preprocess, 1, 1).unwrap();
    let mut workspace = Workspace::new(backend, &model.network, Purpose::Infer, 1).unwrap();
    let crop = model.preprocess.ten_crops(0)[4];
    for (rows, &layer) in found.iter().zip(&layers) {
        assert_eq!((&rows.images, rows.len()), (&good, good.len()));
        assert_eq!(rows.width, model.network.layers[layer].output.per_image());
        assert_eq!(rows.values.len(), rows.width * rows.len());
    }
    // Products of other batches may be rounded otherwise.
    let eps = match backend.precision() {
        Precision::F32 => 1e-5,
        Precision::Tf32 => 1e-3,
        Precision::Bf16 => 4.0 * storage_eps(backend) as f32,
    };
    for (i, &image) in good.iter().enumerate() {
        let mut square = vec![0; all.bytes_per_image()];
        all.read(image as usize, &mut Scratch::default(), &mut square).unwrap().unwrap();
        stage.fill(backend, &mut workspace.input, &square, &[crop]).unwrap();
        workspace.forward(backend, &model.params).unwrap();
        for (rows, &layer) in found.iter().zip(&layers) {
            assert_eq!(rows.classes[i], all.class(image as usize));
            let expected = values(backend, workspace.output(layer));
            let size = expected.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            assert!(size > 0.0, "image {image} leaves layer {layer} dead");
            for (found, expected) in rows.row(i).iter().zip(&expected) {
                assert!((found - expected).abs() <= eps * size, "{found} for {expected}");
            }
        }
    }
    // Several crops of each image: those that training would cut.
    let (crops, count, seed) = (Crops::Random, 3, 7);
    let training = Views::Training { crops, count, seed };
    let fc3 = &layers[2..3];
    let several = rows(backend, &model, &all, &good, fc3, training, None, 2, |_, _| ()).unwrap();
    assert_eq!(several[0].len(), 3 * good.len());
    let mut differ = false;
    for (i, &image) in good.iter().enumerate().step_by(5) {
        let mut square = vec![0; all.bytes_per_image()];
        all.read(image as usize, &mut Scratch::default(), &mut square).unwrap().unwrap();
        for view in 0..count {
            let place = image as usize;
            let crop = training_crop(crops, &model.preprocess, seed, view as u32, place, 0);
            stage.fill(backend, &mut workspace.input, &square, &[crop]).unwrap();
            workspace.forward(backend, &model.params).unwrap();
            let row = 3 * i + view;
            let expected = values(backend, workspace.output(fc3[0]));
            let size = expected.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            for (found, expected) in several[0].row(row).iter().zip(&expected) {
                assert!((found - expected).abs() <= eps * size, "{found} for {expected}");
            }
            assert_eq!(several[0].images[row], image);
            assert_eq!(several[0].classes[row], all.class(place));
            differ |= several[0].row(row) != found[2].row(i);
        }
    }
    assert!(differ, "not all are centre crops");
    // No number of threads that read changes a bit.
    let with = |workers| {
        rows(backend, &model, &all, &good, &layers[1..2], Views::Centre, None, workers, |_, _| ())
    };
    let [one, three] = [1, 3].map(|workers| with(workers).unwrap().remove(0));
    assert_eq!((one.images, one.values), (three.images, three.values));
}

fn rows_are_kept_and_damage_is_seen<B: Backend>(backend: &B) {
    let place = Place::new();
    let mut other = model(backend, &place);
    other.preprocess.mean = vec![111.0; 3];
    let model = model(backend, &place);
    let all = images(&place);
    let wanted: Vec<u32> = (10..20).collect();
    let layers = ["conv2", "fc3"].map(|name| model.network.layer(name).unwrap());
    let keep = place.path("kept");
    // Whether the network had to be asked, and what there is.
    let call = |model: &Model<B>, wanted: &[u32]| -> (bool, Vec<Rows>) {
        let mut computed = false;
        let found =
            rows(backend, model, &all, wanted, &layers, Views::Centre, Some(&keep), 2, |_, _| {
                computed = true;
            });
        (computed, found.unwrap())
    };
    let files = || {
        let mut files: Vec<_> =
            fs::read_dir(&keep).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    };
    let same = |found: &[Rows], rows: &[Rows]| {
        found == rows && found.iter().zip(rows).all(|(a, b)| bits(&a.values) == bits(&b.values))
    };
    let (computed, first) = call(&model, &wanted);
    assert!(computed && files().len() == 2);
    let (computed, second) = call(&model, &wanted);
    assert!(!computed && same(&second, &first));
    // Other views have files of their own, which are found again.
    let views = |views: Views| {
        let mut computed = false;
        let found =
            rows(backend, &model, &all, &wanted, &layers[1..], views, Some(&keep), 2, |_, _| {
                computed = true;
            });
        (computed, found.unwrap(), files().len())
    };
    let training = |count| Views::Training { crops: Crops::Ten, count, seed: 1 };
    let (computed, made, kept) = views(training(2));
    assert!(computed && kept == 3 && made[0].len() == 20);
    let (computed, again, kept) = views(training(2));
    assert!(!computed && kept == 3 && same(&again, &made));
    assert!(views(training(3)).0);
    fs::remove_dir_all(&keep).unwrap();
    assert!(call(&model, &wanted).0);
    // Another model, or other images, have files of their own.
    let of_all = files();
    assert!(call(&other, &wanted).0 && files().len() == 4);
    let before = files();
    let (computed, fewer) = call(&model, &wanted[1..]);
    assert!(computed && files().len() == 6 && fewer[0].len() == 9);
    let of_fewer: Vec<_> = files().into_iter().filter(|file| !before.contains(file)).collect();
    assert!(!call(&model, &wanted).0);

    // Every kind of damage is seen: a bit anywhere, an end missing, more than there was, huge sizes.
    let damages: [fn(&mut Vec<u8>); 8] = [
        |bytes| bytes[0] ^= 1,
        |bytes| bytes[8..16].copy_from_slice(&u64::MAX.to_ne_bytes()),
        |bytes| bytes[16] ^= 1,
        |bytes| bytes[30] ^= 1,
        |bytes| *bytes.last_mut().unwrap() ^= 1,
        |bytes| bytes.truncate(bytes.len() - 4),
        |bytes| bytes.extend([0; 4]),
        Vec::clear,
    ];
    let original: Vec<(_, Vec<u8>)> =
        files().into_iter().map(|file| (file.clone(), fs::read(&file).unwrap())).collect();
    for (i, damage) in damages.into_iter().enumerate() {
        for (file, bytes) in &original {
            let mut bytes = bytes.clone();
            damage(&mut bytes);
            fs::write(file, bytes).unwrap();
        }
        let (computed, again) = call(&model, &wanted);
        assert!(computed && same(&again, &first), "damage {i}");
        assert!(!call(&model, &wanted).0, "damage {i} was mended");
    }
    // What is whole, but of an image that was not asked for.
    let layer = |file: &Path| file.to_str().unwrap().rsplit('-').next().unwrap().to_owned();
    for file in &of_fewer {
        let more = of_all.iter().find(|more| layer(more) == layer(file)).unwrap();
        fs::copy(more, file).unwrap();
    }
    let (computed, again) = call(&model, &wanted[1..]);
    assert!(computed && same(&again, &fewer));
}

const RUN: &str = "train --data data --arch tiny.toml --out run --epochs 2 --precision f32";

#[test]
fn every_layer_is_probed_and_a_page_says_how() {
    let place = Place::new();
    place.run(RUN).ok();
    let probe = "study probe --checkpoint run --data data";
    let ran = place.run(&format!("{probe} --per-class 5 --seeds 2")).ok();
    assert_eq!(ran.stdout.trim(), "run/report/probe/index.html");
    let out = place.path("run/report/probe");
    let html = fs::read_to_string(out.join("index.html")).unwrap();
    check_links(&out, &html);
    assert!(html.contains("Table 7") && html.contains("highest at layer"), "{html}");
    assert!(html.contains("other layers than the paper"), "{html}");

    let read = || -> serde_json::Value {
        serde_json::from_slice(&fs::read(out.join("probe.json")).unwrap()).unwrap()
    };
    let json = read();
    let layers = json["layers"].as_array().unwrap();
    let names: Vec<&str> = layers.iter().map(|layer| layer["layer"].as_str().unwrap()).collect();
    assert_eq!(names.len(), 3);
    assert!(names[0].starts_with("conv1, pool") && names[1..] == ["conv2", "fc3"], "{names:?}");
    for layer in layers {
        for trial in layer["trials"].as_array().unwrap() {
            assert_eq!((&trial["train"], &trial["test"]), (&50.into(), &(10 * VAL).into()));
            for scored in trial["scored"].as_array().unwrap() {
                let accuracy = scored["accuracy"].as_f64().unwrap();
                assert!((0.0..=1.0).contains(&accuracy) && scored["converged"] == true);
            }
        }
        let trials = layer["trials"].as_array().unwrap();
        let of = |i: usize| 100.0 * trials[i]["scored"][0]["accuracy"].as_f64().unwrap();
        assert!((layer["svm"]["mean"].as_f64().unwrap() - (of(0) + of(1)) / 2.0).abs() < 1e-9);
        let deviation = (of(0) - of(1)).abs() / 2f64.sqrt();
        assert!((layer["svm"]["deviation"].as_f64().unwrap() - deviation).abs() < 1e-9);
    }
    let csv = fs::read_to_string(out.join("probe.csv")).unwrap();
    assert_eq!(csv.lines().count(), 1 + 3 * 2 * 2);
    assert!(!out.join(".parts").exists());

    // However many threads there are, and from shards as well.
    place.run(&format!("{probe} --per-class 5 --seeds 2 --threads 1 --workers 1")).ok();
    assert_eq!(read(), json);
    place.run("pack data set --raw --resize 20").ok();
    let shards = "study probe --checkpoint run --data set --per-class 5 --seeds 2 --out other";
    place.run(shards).ok();
    let other = fs::read(place.path("other/probe.csv")).unwrap();
    assert_eq!(other, csv.as_bytes());

    // All images, one seed, one layer as it is named, before its pooling.
    place.run(&format!("{probe} --layers conv1 --seeds 1 --test-per-class 1")).ok();
    let json = read();
    assert_eq!(json["layers"][0]["layer"], "conv1");
    assert_eq!(json["layers"][0]["trials"][0]["train"], 10 * TRAIN);
    assert_eq!(json["layers"][0]["trials"][0]["test"], 10);
    assert_eq!(json["layers"][0]["svm"]["deviation"], serde_json::Value::Null);
}

/// Red and blue squares, each a little different: two classes that the network has never heard of.
#[test]
fn a_separable_set_of_other_classes_is_separated() {
    let place = Place::new();
    place.run(RUN).ok();
    for (split, count) in [("train", 10), ("val", 5)] {
        for (class, channel) in [("red", 0), ("blue", 2)] {
            let folder = place.path(&format!("colours/{split}/{class}"));
            fs::create_dir_all(&folder).unwrap();
            for i in 0..count {
                let mut pixel = [40 + 3 * i; 3];
                pixel[channel] = 200 + 5 * i;
                let picture = image::RgbImage::from_pixel(20, 20, image::Rgb(pixel));
                picture.save(folder.join(format!("{i}.png"))).unwrap();
            }
        }
    }
    place.run("study probe --checkpoint run --data colours --out page --seeds 2").ok();
    let json = fs::read(place.path("page/probe.json")).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    for layer in &json["layers"].as_array().unwrap()[..2] {
        for classifier in ["svm", "softmax"] {
            assert_eq!(layer[classifier]["mean"], 100.0, "{layer}");
        }
    }
    let html = fs::read_to_string(place.path("page/index.html")).unwrap();
    assert!(html.contains("The classes are not those"), "{html}");
}

/// A probe that was ended goes on with what it had.
#[test]
fn a_probe_goes_on_where_it_was() {
    let place = Place::new();
    place.run(RUN).ok();
    let probe = "study probe --checkpoint run --data data --seeds 2 --out";
    place.run(&format!("{probe} whole")).ok();
    let csv = |folder: &str| fs::read_to_string(place.path(folder).join("probe.csv")).unwrap();
    // It ends when all is probed, since a folder is in the plot's place.
    fs::create_dir_all(place.path("second/accuracy.svg/full")).unwrap();
    place.run(&format!("{probe} second")).refused(&["cannot write into second"]);
    let part = place.path("second/.parts");
    let kept = fs::read_dir(&part).unwrap().count();
    assert!(kept > 2, "{kept} files");
    fs::remove_dir_all(place.path("second/accuracy.svg")).unwrap();
    place.run(&format!("{probe} second")).ok();
    assert_eq!(csv("second"), csv("whole"));
    assert!(!part.exists());
}

#[test]
fn what_cannot_be_probed_is_refused() {
    let place = Place::new();
    place.run(RUN).ok();
    let probe = |data: &str, flags: &str| {
        place.run(&format!("study probe --checkpoint run --data {data} --out page {flags}"))
    };
    probe("data", "--layers conv9").refused(&["no layer `conv9`", "expected one of conv1"]);
    probe("data", "--per-class 7").refused(&[
        "expected 7 training images",
        "found 6",
        "ask for fewer",
    ]);
    assert_eq!(probe("data", "--seeds 0").code, Some(2));
    assert_eq!(probe("data", "--per-class 0").code, Some(2));
    probe("nowhere", "").refused(&["nowhere"]);

    // Shards of smaller images than the checkpoint looks at.
    place.run("pack data small --raw --resize 14").ok();
    probe("small", "").refused(&["at least 20 pixels", "resized to 14"]);

    // A class that one of the splits does not have, then no image at all.
    let classes: Vec<_> = place.images("data/val");
    let first = classes[0].file_name().unwrap().to_str().unwrap().to_owned();
    fs::rename(&classes[0], place.path("elsewhere")).unwrap();
    probe("data", "").refused(&["class `", "no validation image", "both splits"]);
    fs::rename(place.path("elsewhere"), &classes[0]).unwrap();
    for image in place.images(&format!("data/train/{first}")) {
        fs::remove_file(image).unwrap();
    }
    probe("data", "").refused(&[&first]);
    fs::create_dir_all(place.path("empty/train/a")).unwrap();
    fs::create_dir_all(place.path("empty/val/a")).unwrap();
    probe("empty", "").refused(&["empty"]);
}
