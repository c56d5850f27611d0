//! How features come about: snapshots at the ends of epochs, of a network by hand and of a real training.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use crate::common::network;
use crate::common::page::{attributes, check_links};
use crate::common::program::Place;
use zfnet::backend::Backend;
use zfnet::data::classes::Classes;
use zfnet::data::folder::{ImageFolder, Sample};
use zfnet::data::images::{Images, ReadOptions};
use zfnet::model::{Canvas, Model, Params, Preprocess};
use zfnet::picture::Image;
use zfnet::report;
use zfnet::study::Session;
use zfnet::study::evolution::{Evolution, TrackedMaps, run};
use zfnet::study::peaks::Chosen;

on_every_backend!(strips_by_hand);

const HAND: &str = r#"
name = "hand"
classes = 2
input = { size = 4, resize = 4 }
layers = [
  { type = "conv", name = "conv1", channels = 3, kernel = 2, stride = 2 },
  { type = "relu" },
  { type = "fc", name = "fc2" },
]"#;

/// Weights of conv1, `[map, row, column, colour]`: map 0 sees `colour` at its first pixel, map 1 green at
/// its last less green at its first, map 2 nothing but darkness, of which there is none.
fn hand<B: Backend>(backend: &B, colour: usize) -> Model<B> {
    let network = network(HAND);
    let mut weights = [0.0; 3 * 2 * 2 * 3];
    weights[colour] = 1.0;
    weights[12 + 9 + 1] = 1.0;
    weights[12 + 1] = -1.0;
    weights[24..].fill(-1.0);
    let mut params = Params::weights(backend, &network).unwrap();
    let conv1 = params.layers.iter_mut().flatten().next().unwrap();
    backend.upload(&mut conv1.weight, &weights).unwrap();
    let preprocess = Preprocess::paper([4; 2], 4, 1.0, vec![0.0; 3]);
    Model { network, params, preprocess, classes: Classes::named(vec!["a".into(), "b".into()]) }
}

/// Pictures of 4x4 pixels, black but for some values at row, column, colour.
fn hand_data(root: &Path) -> Images {
    type Values = [([usize; 3], u8)];
    let pictures: [(&str, &Values); 3] = [
        ("train/a/1.png", &[([0, 0, 0], 10), ([2, 0, 2], 40), ([3, 3, 1], 60)]),
        ("train/a/2.png", &[([0, 2, 0], 50), ([1, 1, 0], 200), ([1, 1, 1], 80)]),
        ("train/b/3.png", &[([2, 2, 2], 90), ([0, 0, 0], 50)]),
    ];
    for (name, values) in
        pictures.into_iter().chain([("val/a/1.png", &[][..]), ("val/b/1.png", &[])])
    {
        let mut image = Image::filled(4, 4, 0);
        for &([y, x, colour], value) in values {
            image.pixels[(y * 4 + x) * 3 + colour] = value;
        }
        image.write_png(&root.join(name)).unwrap();
    }
    let samples: Vec<Sample> = ImageFolder::open(root).unwrap().train;
    Images::new(
        samples,
        ReadOptions { canvas: Canvas::square(4), max_bad: 0.0, cache_bytes: 0, io: None },
    )
}

/// After epoch 1 map 0 sees red: 50 in 2.png and in 3.png, of which the earlier counts. After epoch 3 it
/// sees blue: 90 in 3.png. Map 1 finds the green of 2.png, map 2 nothing.
fn strips_by_hand<B: Backend>(backend: &B) {
    let folder = tempfile::tempdir().unwrap();
    let (root, out) = (folder.path().join("data"), folder.path().join("out"));
    let models = [hand(backend, 0), hand(backend, 2)];
    let followed = TrackedMaps {
        images: Arc::new(hand_data(&root)),
        root: &root,
        chosen: vec![Chosen { layer: 0, maps: vec![0, 1, 2] }],
    };
    let after =
        |followed: &TrackedMaps<'_>, model: &Model<B>, [epoch, step]: [u32; 2]| -> Evolution {
            run(&mut Session::new(backend), model, followed, &out, epoch, step).unwrap()
        };
    after(&followed, &models[0], [1, 10]);
    let found = after(&followed, &models[1], [3, 30]);
    assert_eq!(found.snapshots.iter().map(|s| s.epoch).collect::<Vec<_>>(), [1, 3]);
    report::evolution::write(&out, &found).unwrap();
    let csv = fs::read_to_string(out.join("evolution.csv")).unwrap();
    assert_eq!(
        csv,
        "epoch,step,layer,map,value,image,class,y,x,x0,y0,x1,y1\n\
         1,10,conv1,0,50,train/a/2.png,a,0,1,2,0,4,2\n\
         1,10,conv1,1,80,train/a/2.png,a,0,0,0,0,2,2\n\
         1,10,conv1,2,0,,,,,,,,\n\
         3,30,conv1,0,90,train/b/3.png,b,1,1,2,2,4,4\n\
         3,30,conv1,1,80,train/a/2.png,a,0,0,0,0,2,2\n\
         3,30,conv1,2,0,,,,,,,,\n"
    );
    let read = |file: &str| image::open(out.join(file)).unwrap().to_rgb8();
    let tile = |file: &str| read(&format!("{file}.png")).into_raw();
    let red = [255, 128, 128, 128, 128, 128, 128, 128, 128, 128, 128, 128];
    assert_eq!(tile("epoch-0001/0-0"), red);
    let green = [128, 1, 128, 128, 128, 128, 128, 128, 128, 128, 255, 128];
    assert_eq!(tile("epoch-0003/0-1"), green);
    // A tile is 2 pixels, shown as 64, with 2 between them: red, then blue; patches below.
    let strip = read("0-0.png");
    assert_eq!((strip.width(), strip.height()), (130, 130));
    for (x, pixel) in [(0, [255, 128, 128]), (40, [128; 3]), (64, [255; 3]), (66, [128, 128, 255])]
    {
        assert_eq!(strip.get_pixel(x, 20).0, pixel, "column {x}");
    }
    assert_eq!(strip.get_pixel(0, 67).0, [50, 0, 0]);
    assert_eq!(strip.get_pixel(66, 67).0, [0, 0, 90]);
    assert!(read("0-2.png").pixels().all(|pixel| pixel.0 == [255; 3]));
    let html = fs::read_to_string(out.join("index.html")).unwrap();
    check_links(&out, &html);
    for words in
        ["white where the map never fired", "epochs 1, 3", "train/b/3.png (the last column"]
    {
        assert!(html.contains(words), "`{words}` is not in {html}");
    }

    // What is there is not made again; what another model has made is.
    let mut idle = Session::new(backend).watched(|_, _, _, _| panic!("it is there"));
    run(&mut idle, &models[0], &followed, &out, 1, 10).unwrap();
    let found = after(&followed, &models[1], [1, 10]);
    assert_eq!(found.snapshots.len(), 2);
    let blue = found.snapshots[0].peak(0, 0).unwrap();
    assert_eq!((blue.value, blue.image.as_str()), (90.0, "train/b/3.png"));
    // Other maps are not mixed with these.
    let chosen = vec![Chosen { layer: 0, maps: vec![1] }];
    let other = TrackedMaps { images: followed.images.clone(), chosen, ..followed };
    let found = after(&other, &models[0], [3, 30]);
    assert_eq!(found.snapshots.len(), 1);
    assert_eq!(found.snapshots[0].units.len(), 1);
}

const TRAIN: &str = "train --data data --arch tiny.toml --keep 9";

/// All files in a folder and below, with what they hold.
fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if path.is_dir() {
            found.extend(
                files(&path).into_iter().map(|(file, bytes)| (format!("{name}/{file}"), bytes)),
            );
        } else {
            found.push((name, fs::read(&path).unwrap()));
        }
    }
    found.sort();
    found
}

fn epochs_in(csv: &str) -> Vec<u32> {
    let mut epochs: Vec<u32> =
        csv.lines().skip(1).map(|line| line.split(',').next().unwrap().parse().unwrap()).collect();
    epochs.dedup();
    epochs
}

#[test]
fn watching_a_training_changes_nothing_of_it() {
    let place = Place::new();
    place.run(&format!("{TRAIN} --out plain")).ok();
    place.run(&format!("{TRAIN} --out run --evolution --evolution-epochs 1,3")).ok();
    let report = place.path("run/report");
    let evolution = files(&report);
    fs::rename(&report, place.path("report")).unwrap();
    assert_eq!(files(&place.path("plain")), files(&place.path("run")));
    fs::rename(place.path("report"), &report).unwrap();

    let out = place.path("run/report/evolution");
    let csv = fs::read_to_string(out.join("evolution.csv")).unwrap();
    assert_eq!(epochs_in(&csv), [1, 3, 4], "the last epoch, too");
    assert_eq!(csv.lines().count(), 1 + 3 * (6 + 6), "six maps of two convolutions: {csv}");
    let html = fs::read_to_string(out.join("index.html")).unwrap();
    check_links(&out, &html);
    assert_eq!(attributes(&html, "src").len(), 12);

    // Killed in the middle and continued: the same files.
    let cut = format!("{TRAIN} --out cut --evolution --evolution-epochs 1,3");
    place.run(&format!("{cut} --max-steps 6")).ok();
    let csv = fs::read_to_string(place.path("cut/report/evolution/evolution.csv")).unwrap();
    assert_eq!(epochs_in(&csv), [1]);
    place.run(&format!("{cut} --resume")).ok();
    assert_eq!(place.results("cut"), place.results("run"));
    let here = |files: &[(String, Vec<u8>)]| -> Vec<(String, Vec<u8>)> {
        let own = |name: &str| !name.ends_with("index.html") && !name.ends_with("figure.json");
        files.iter().filter(|(name, _)| own(name)).cloned().collect()
    };
    assert_eq!(here(&files(&place.path("cut/report"))), here(&evolution));
    // A snapshot that an interruption has lost is made when the run goes on.
    fs::remove_file(place.path("cut/report/evolution/epoch-0004/snapshot.json")).unwrap();
    place.run(&format!("{cut} --resume")).ok();
    assert_eq!(here(&files(&place.path("cut/report"))), here(&evolution));

    // From checkpoints the same pictures come, and the same page if it is of the same run.
    place.run("study evolution run --data data --epochs 1,3,4 --out later").ok();
    assert_eq!(files(&place.path("later")), files(&out));
    let ran = place.run("study evolution run --data data --out later").ok();
    assert_eq!(ran.stdout.trim(), "later/index.html");
    let csv = fs::read_to_string(place.path("later/evolution.csv")).unwrap();
    assert_eq!(epochs_in(&csv), [1, 2, 3, 4]);
    fs::write(place.path("later/epoch-0002/snapshot.json"), "{").unwrap();
    place.run("study evolution run --data data --out later").ok();
    assert_eq!(fs::read_to_string(place.path("later/evolution.csv")).unwrap(), csv);
}

#[test]
fn what_cannot_be_watched() {
    let place = Place::new();
    let train = format!("{TRAIN} --out run --evolution");
    place.run(&format!("{train} --evolution-units conv9:1")).refused(&["conv9", "conv1"]);
    place.run(&format!("{train} --evolution-units conv1:8")).refused(&["maps 0 to 7", "found 8"]);
    assert!(!place.path("run").exists(), "told before anything is made");
    assert_eq!(place.run(&format!("{TRAIN} --out run --evolution-epochs 1")).code, Some(2));

    let study = "study evolution --data data";
    place.run(&format!("{study} nowhere")).refused(&["nowhere", "found none"]);
    place.run(&format!("{study} data")).refused(&["data", "found none"]);
    place.run("train --data data --arch tiny.toml --keep 2 --out run").ok();
    place.run(&format!("{study} run --epochs 4,9")).refused(&[
        "run",
        "epoch 9",
        "--keep",
        "--evolution",
    ]);
    place.run(&format!("{study} run --units conv9:1")).refused(&["conv9", "conv1"]);
    place.run(&format!("{study} run --units conv1:8")).refused(&["maps 0 to 7", "found 8"]);
    place.run(&format!("{study} run --units conv1")).refused(&["conv1", "LAYER:MAP"]);
    assert!(!place.path("run/report").exists(), "told before anything is made");
    for class in place.images("data/train") {
        for image in place.images(class.to_str().unwrap()) {
            fs::write(image, "no image").unwrap();
        }
    }
    place.run(&format!("{study} run")).refused(&["cannot be read as images", "--max-bad"]);
    let refused = ["data", "none of the 60 files", "usable image"];
    place.run(&format!("{study} run --max-bad 1")).refused(&refused);
}
