//! Networks whose input is grey and not square, through the program from training to pages.

use std::fs;
use std::path::Path;

use serde_json::Value;
use zfnet::backend::cpu::CpuBackend;
use zfnet::model::{Canvas, Fit, Interpolation, Model};
use zfnet::picture::Image;
use zfnet::train::checkpoint::load_model;

use crate::common::Random;
use crate::common::program::Place;

/// Twice as wide as high, one channel. Nothing is mirrored: left and right are classes.
const WIDE: &str = r#"
name = "wide"
classes = 3
input = { size = [16, 32], resize = [18, 36], channels = 1, std = 64.0 }
layers = [
  { type = "conv", name = "conv1", channels = 8, kernel = 5, stride = 2 },
  { type = "relu" },
  { type = "maxpool", kernel = 3, stride = 2 },
  { type = "conv", name = "conv2", channels = 12, kernel = 3, pad = 1 },
  { type = "relu" },
  { type = "fc", name = "fc3", outputs = 16 },
  { type = "relu" },
  { type = "fc", name = "fc4" },
]
[recipe]
init = "he"
learning_rate = 0.01
epochs = 12
batch_size = 8
crops = "centre"
"#;

/// A disc on noise: on the left, in the middle or on the right of pictures of 80 x 40 and 72 x 48 pixels.
fn draw(class: usize, index: usize) -> Image {
    let (width, height) = if index.is_multiple_of(2) { (80, 40) } else { (72, 48) };
    let mut random = Random((100 * class + index) as u64 + 1);
    let noise = random.bytes(width * height * 3);
    let centre = [(class * 2 + 1) as f64 * width as f64 / 6.0, height as f64 / 2.0];
    let mut pixels = Vec::new();
    for (i, noise) in noise.chunks(3).enumerate() {
        let [x, y] = [(i % width) as f64 - centre[0], (i / width) as f64 - centre[1]];
        // Yellow on blue: of much more luma.
        let colour = if x.hypot(y) < 7.0 { [190, 180, 20] } else { [20, 20, 60] };
        pixels.extend(colour.iter().zip(noise).map(|(colour, noise)| colour + noise / 8));
    }
    Image::new(width, height, pixels)
}

/// A place with `discs`, a data set, and `wide.toml`.
fn discs() -> Place {
    let place = Place::new();
    fs::write(place.path("wide.toml"), WIDE).unwrap();
    for (split, first, count) in [("train", 0, 12), ("val", 100, 4)] {
        for (class, name) in ["left", "middle", "right"].iter().enumerate() {
            for index in first..first + count {
                let file = place.path(&format!("discs/{split}/{name}/{index:03}.png"));
                draw(class, index).write_png(&file).unwrap();
            }
        }
    }
    place
}

fn json(path: &Path) -> Value {
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&bytes).unwrap()
}

/// Width and height of a picture, and whether it is grey.
fn looked_at(path: &Path) -> ([u32; 2], bool) {
    let picture = image::open(path).unwrap().to_rgb8();
    let grey = picture.pixels().all(|pixel| pixel.0[0] == pixel.0[1] && pixel.0[1] == pixel.0[2]);
    ([picture.width(), picture.height()], grey)
}

#[test]
fn a_grey_wide_network_from_training_to_pages() {
    let place = discs();
    let ran = place.run("train --data discs --arch wide.toml --out run").ok();
    assert!(ran.stderr.contains("16x32 grey pixels from 18x36"), "{}", ran.stderr);
    let ran = place.run("inspect run").ok();
    assert!(ran.stdout.contains("input 16x32 grey, cut from 18x36"), "{}", ran.stdout);
    let eval = place.run("eval --checkpoint run --data discs --crops 1 --json").json();
    assert!(eval["top1_error"].as_f64().unwrap() < 0.2, "{eval}");
    let some = "discs/val/left/100.png discs/val/right/101.png";
    let answers = place.run(&format!("classify run {some} --crops 1 --json")).ok().stdout;
    assert!(answers.contains("left") && answers.contains("right"), "{answers}");

    // Which part of the file the network sees: 80 x 40 is of the canvas's shape, of 72 x 48 six rows are left out
    // on both sides; of that a pixel of 18 on each side.
    place.run(&format!("project run {some} --out projected")).ok();
    for folder in ["100", "101"] {
        let input = looked_at(&place.path(&format!("projected/{folder}/input.png")));
        assert_eq!(input, ([32, 16], true));
    }
    let images = json(&place.path("projected/projections.json"));
    let patches = |image: usize| -> Vec<[f64; 4]> {
        let layers = images["images"][image]["layers"].as_array().unwrap();
        let units = layers.iter().flat_map(|layer| layer["units"].as_array().unwrap());
        units.map(|unit| serde_json::from_value(unit["patch"].clone()).unwrap()).collect()
    };
    for (image, whole) in [
        (0, [40.0 / 9.0, 20.0 / 9.0, 80.0 - 40.0 / 9.0, 40.0 - 20.0 / 9.0]),
        (1, [4.0, 8.0, 68.0, 40.0]),
    ] {
        assert!(!patches(image).is_empty());
        let near = |patch: &[f64; 4]| patch.iter().zip(whole).all(|(a, b)| (a - b).abs() < 1e-9);
        assert!(patches(image).iter().any(near), "a unit sees all: {:?}", patches(image));
        for [x0, y0, x1, y1] in patches(image) {
            assert!(x0 >= whole[0] - 1e-9 && y0 >= whole[1] - 1e-9, "{x0} {y0}");
            assert!(x1 <= whole[2] + 1e-9 && y1 <= whole[3] + 1e-9, "{x1} {y1}");
        }
    }
    let mut projections = 0;
    for entry in fs::read_dir(place.path("projected/100")).unwrap() {
        let path = entry.unwrap().path();
        if !path.ends_with("input.png") {
            assert_eq!(looked_at(&path), ([32, 16], true), "{}", path.display());
            projections += 1;
        }
    }
    assert!(projections > 9);

    let of_set = "--checkpoint run --data discs";
    place.run(&format!("study features {of_set}")).ok();
    let features = json(&place.path("run/report/features/top9.json"));
    assert_eq!(features["input"], serde_json::json!([16, 32]));
    let fields: Vec<&Value> =
        features["layers"].as_array().unwrap().iter().map(|layer| &layer["field"]).collect();
    assert!(fields.contains(&&serde_json::json!(5)), "{fields:?}");
    let sheet = place.path("run/report/features/conv1/projections-000.png");
    assert!(looked_at(&sheet).1);

    place.run(&format!("study filters {of_set}")).ok();
    for what in ["one-scale", "own-scale"] {
        let (size, grey) = looked_at(&place.path(&format!("run/report/filters/0-{what}.png")));
        assert!(grey && size[0] > 8 * 5, "{size:?}");
    }

    // The probability falls most where the disc is.
    place.run("study occlusion --checkpoint run discs/val/left/100.png --square 8 --out occ").ok();
    let found = json(&place.path("occ/occlusion.json"));
    let occluded = &found["images"][0]["occluded"];
    let corners: [Vec<usize>; 2] = serde_json::from_value(occluded["corners"].clone()).unwrap();
    assert_eq!((corners[0].last(), corners[1].last()), (Some(&8), Some(&24)));
    let places = occluded["places"].as_array().unwrap();
    assert_eq!(places.len(), corners[0].len() * corners[1].len());
    let lowest: [f64; 4] =
        serde_json::from_value(found["images"][0]["lowest_square_in_file"].clone()).unwrap();
    let [x0, y0, x1, y1] = lowest;
    let disc = [80.0 / 6.0, 20.0];
    assert!(x0 < disc[0] && disc[0] < x1 && y0 < disc[1] && disc[1] < y1, "{lowest:?}");
    for map in ["input", "probability", "label"] {
        let picture = looked_at(&place.path(&format!("occ/000-{map}.png")));
        assert_eq!(picture.0, [256, 128], "{map}");
    }

    // All others run to their ends.
    place.run(&format!("study learnt {of_set}")).ok();
    place.run("study evolution run --data discs").ok();
    place.run(&format!("study invariance {of_set}")).ok();
    place.run(&format!("study sanity {of_set}")).ok();
    place.run(&format!("study preferred {of_set} --steps 5 --maps 2")).ok();
    let made = looked_at(&place.path("run/report/preferred/02-0-preferred.png"));
    assert_eq!(made, ([192, 96], true), "all of the input, six times enlarged");
    place.run(&format!("study probe {of_set} --seeds 1 --out probed")).ok();
    place.run("study report run").ok();
    let page = fs::read_to_string(place.path("run/report/index.html")).unwrap();
    assert!(page.contains("16 × 32 pixels, grey"));
}

/// The checkpoint says how images are resized; what fits of its weights begins another network.
#[test]
fn how_images_are_resized_is_kept_with_the_weights() {
    let place = discs();
    let table =
        r#"{ size = [18, 36], fit = "squash", interpolation = "bicubic", antialias = false }"#;
    fs::write(place.path("squash.toml"), WIDE.replace("[18, 36]", table)).unwrap();
    place.run("train --data discs --arch squash.toml --out run --max-steps 2").ok();
    let backend = CpuBackend::new(Some(1)).unwrap();
    let path = place.path("run");
    let Model { network, preprocess, .. } =
        load_model(&backend, &path, &Default::default()).unwrap();
    let canvas = Canvas {
        fit: Fit::Squash,
        interpolation: Interpolation::Bicubic,
        antialias: false,
        ..Canvas::of([18, 36])
    };
    assert_eq!((preprocess.resize, preprocess.channels()), (canvas, 1));
    assert_eq!(preprocess.mean.len(), 18 * 36);
    assert_eq!(network.architecture.input.resize, canvas);
    place.run("train --data discs --arch squash.toml --out run --resume --max-steps 4").ok();
    let inspected = place.run("inspect run").ok().stdout;
    let wanted = "cut from 18x36 of the whole image, bicubic, not antialiased";
    assert!(inspected.contains(wanted), "{inspected}");

    let colour = WIDE.replace("channels = 1, ", "");
    fs::write(place.path("colour.toml"), colour).unwrap();
    let ran = place
        .run("train --data discs --arch colour.toml --out colour --init run --max-steps 1")
        .ok();
    for word in ["other channels", "freshly drawn: conv1"] {
        assert!(ran.stderr.contains(word), "{}", ran.stderr);
    }
}

/// Raw squares lack what a wide canvas shows; images that were only made smaller do not.
#[test]
fn raw_squares_are_refused_for_what_is_not_square() {
    let place = discs();
    place.run("pack discs raw --raw --resize 18").ok();
    place.run("pack discs small --resize 18").ok();
    let train = "--arch wide.toml --max-steps 1";
    place.run(&format!("train --data raw {train} --out a")).refused(&[
        "raw squares of 18 pixels",
        "18x36",
        "pack the images as they are",
    ]);
    place.run(&format!("train --data small {train} --out b")).ok();
}

#[test]
fn wrong_inputs_are_named() {
    let place = discs();
    for (right, wrong, words) in [
        ("channels = 1", "channels = 2", ["3 channels (RGB) or 1 (grey)", "found 2"]),
        ("[18, 36]", "[18, 20]", ["size 16x32", "resize 18x20"]),
        ("[16, 32]", "[16, 32, 3]", ["a number of pixels", "[height, width]"]),
        ("[18, 36]", "{ size = 36, fit = \"stretch\" }", ["cover", "squash"]),
    ] {
        fs::write(place.path("wrong.toml"), WIDE.replace(right, wrong)).unwrap();
        place.run("train --data discs --arch wrong.toml --out x").refused(&words);
    }
}
