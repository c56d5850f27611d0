//! How features change with an image: known answers on every backend, and the command on files.

use std::f64::consts::TAU;
use std::fs;

use crate::common::program::Place;
use crate::common::{Random, random_params};
use zfnet::backend::Backend;
use zfnet::data::classes::Classes;
use zfnet::model::{Architecture, Model, Network, Preprocess};
use zfnet::study::image_selection::StudyImage;
use zfnet::study::invariance::{
    Change, ChangeExtractor, Onset, changed, default_layers, onset, shifts,
};

on_every_backend!(nothing_changes_nothing);

/// A preprocessing whose crops are the whole square.
fn whole(side: usize) -> Preprocess {
    Preprocess::paper([side; 2], side, 1.0, vec![10.0, 20.0, 30.0])
}

/// Grey pixels by row and column.
fn drawn(side: usize, value: impl Fn(f64, f64) -> f64) -> Vec<u8> {
    let byte = |i: usize| value((i / side) as f64, (i % side) as f64).round() as u8;
    (0..side * side).flat_map(|i| [byte(i); 3]).collect()
}

fn nothing_changes_nothing<B: Backend>(backend: &B) {
    let place = Place::new();
    let file = place.path("tiny.toml");
    let network = Network::new(Architecture::find(file.to_str().unwrap()).unwrap()).unwrap();
    let params = random_params(backend, &network, 5);
    let classes = Classes::unknown(10);
    let preprocess = Preprocess::paper([16; 2], 20, 64.0, vec![120.0; 3]);
    let model = Model { network, params, preprocess, classes };
    let layers = default_layers(&model.network);
    let names: Vec<&str> = layers.iter().map(|&i| model.network.layers[i].name.as_str()).collect();
    assert_eq!(names, ["conv1", "fc3"]);

    let square = Random(7).bytes(20 * 20 * 3);
    let picked = StudyImage { name: "a".into(), class: 3, known: true, square, size: [20, 20] };
    // So many that there are several forward passes, the last of which is not full.
    let nothing = [(Change::Shift, 0.0), (Change::Scale, 1.0), (Change::Rotation, 0.0)];
    let mut changes: Vec<(Change, f64)> = (0..30).map(|i| nothing[i % 3]).collect();
    changes.push((Change::Rotation, 360.0));
    changes.push((Change::Shift, 2.0));
    let mut extractor = ChangeExtractor::new(backend, &model, &layers).unwrap();
    let measured = extractor.measure(&picked, &changes, |_| ()).unwrap();
    assert!(measured.norms.iter().all(|norm| *norm > 0.0), "{:?}", measured.norms);
    let (moved, unchanged) = measured.responses.split_last().unwrap();
    for response in unchanged {
        assert_eq!(response.distances, [0.0, 0.0], "{response:?}");
        assert_eq!(response.probability, unchanged[0].probability);
    }
    assert!(moved.distances[0] > 0.0, "{moved:?}");
}

#[test]
fn unchanged_pictures_are_the_same_bytes() {
    let square = Random(1).bytes(20 * 20 * 3);
    let preprocess = Preprocess::paper([15; 2], 20, 1.0, vec![0.0; 3]);
    for (change, amount) in [
        (Change::Shift, 0.0),
        (Change::Scale, 1.0),
        (Change::Rotation, 0.0),
        (Change::Rotation, 360.0),
    ] {
        assert_eq!(changed(&preprocess, &square, change, amount), square, "{change:?}");
    }
}

#[test]
fn quarters_of_a_turn_move_whole_pixels() {
    for side in [8, 9] {
        let square = Random(2).bytes(side * side * 3);
        let last = side - 1;
        let at = |y: usize, x: usize| &square[(y * side + x) * 3..][..3];
        for (degrees, from) in [
            (90.0, (|y, x, last| (x, last - y)) as fn(usize, usize, usize) -> (usize, usize)),
            (180.0, |y, x, last| (last - y, last - x)),
            (270.0, |y, x, last| (last - x, y)),
        ] {
            let turned = changed(&whole(side), &square, Change::Rotation, degrees);
            for (i, pixel) in turned.chunks(3).enumerate() {
                let (y, x) = from(i / side, i % side, last);
                assert_eq!(pixel, at(y, x), "{degrees} degrees, {i}");
            }
        }
    }
}

#[test]
fn a_shift_is_exact_and_brings_in_the_mean() {
    let square = Random(3).bytes(12 * 12 * 3);
    let row = 12 * 3;
    let mean = [10, 20, 30].repeat(3 * 12);
    let down = changed(&whole(12), &square, Change::Shift, 3.0);
    assert_eq!(down[..3 * row], mean);
    assert_eq!(down[3 * row..], square[..9 * row]);
    let up = changed(&whole(12), &square, Change::Shift, -3.0);
    assert_eq!(up[..9 * row], square[3 * row..]);
    assert_eq!(up[9 * row..], mean);
}

#[test]
fn a_ramp_at_scale_2_has_half_the_slope() {
    // About the centre 10 of 21 pixels: 40 + 4 x becomes 40 + 4 (10 + (x - 10) / 2) = 60 + 2 x.
    let ramp = drawn(21, |_, x| 40.0 + 4.0 * x);
    let large = changed(&whole(21), &ramp, Change::Scale, 2.0);
    assert_eq!(large, drawn(21, |_, x| 60.0 + 2.0 * x));
}

#[test]
fn smooth_pictures_follow_the_equations() {
    // Linear interpolation of a wave of length w errs by at most (2 pi / w)^2 / 8 of its amplitude along
    // each axis: 100 * (2 pi / 40)^2 / 8 = 0.31; and both roundings to a byte by a half each.
    let wave =
        |y: f64, x: f64| 128.0 + 100.0 * (TAU * (x + 3.0) / 40.0).sin() * (TAU * y / 40.0).cos();
    let (side, centre) = (61, 30.0);
    let picture = drawn(side, wave);
    for (change, amount) in
        [(Change::Scale, 1.3), (Change::Rotation, 30.0), (Change::Rotation, 250.0)]
    {
        let found = changed(&whole(side), &picture, change, amount);
        // A turned corner may come from outside: only a disc is compared.
        let (mut compared, angle) = (0, amount.to_radians());
        for (i, pixel) in found.chunks(3).enumerate() {
            let (dy, dx) = ((i / side) as f64 - centre, (i % side) as f64 - centre);
            if dy.hypot(dx) > 29.0 {
                continue;
            }
            let (y, x) = match change {
                Change::Scale => (dy / amount, dx / amount),
                _ => (angle.sin() * dx + angle.cos() * dy, angle.cos() * dx - angle.sin() * dy),
            };
            let expected = wave(centre + y, centre + x);
            let error = (f64::from(pixel[0]) - expected).abs();
            assert!(error <= 2.0 * 0.31 + 1.0, "{change:?} {amount}: {error} at {i}");
            compared += 1;
        }
        assert!(compared > 2000);
    }
}

#[test]
fn a_turn_is_counter_clockwise() {
    let right = drawn(9, |y, x| if (y, x) == (4.0, 7.0) { 200.0 } else { 0.0 });
    let top = drawn(9, |y, x| if (y, x) == (1.0, 4.0) { 200.0 } else { 0.0 });
    assert_eq!(changed(&whole(9), &right, Change::Rotation, 90.0), top);
}

#[test]
fn shifts_are_scaled_from_the_papers() {
    assert_eq!(shifts(224, None, None).unwrap(), [60, 4]);
    assert_eq!(shifts(64, None, None).unwrap(), [17, 1]);
    assert_eq!(shifts(64, Some(8), Some(2)).unwrap(), [8, 2]);
    for (range, step) in [(Some(64), None), (Some(8), Some(0)), (Some(8), Some(9))] {
        assert!(shifts(64, range, step).is_err(), "{range:?} {step:?}");
    }
}

#[test]
fn the_onset_is_that_of_the_smallest_changes() {
    use zfnet::study::invariance::{Response, Responses};
    let response = |amount: f64, distance: f64| Response {
        change: Change::Shift,
        amount,
        distances: vec![distance],
        probability: 0.5,
    };
    let responses = |norm: f64, d: [f64; 5]| Responses {
        image: "a".into(),
        class: "b".into(),
        known: true,
        norms: vec![norm],
        responses: [-4.0, -2.0, 0.0, 2.0, 4.0]
            .iter()
            .zip(d)
            .map(|(a, d)| response(*a, d))
            .collect(),
    };
    // Relative: 0.5 and 1 at two pixels of one image, 0.25 and 0.25 of the other; mean 0.5.
    let all = [
        responses(2.0, [9.0, 1.0, 0.0, 2.0, 9.0]),
        responses(4.0, [9.0, 1.0, 0.0, 1.0, 9.0]),
        responses(0.0, [0.0; 5]), // has no relative distance
    ];
    let expected = Onset { smallest: 2.0, distance: 0.5, slope: 0.25 };
    assert_eq!(onset(&all, Change::Shift, 0), Some(expected));
    assert_eq!(onset(&all, Change::Scale, 0), None);
}

#[test]
fn the_command_writes_its_page_and_refuses_what_is_wrong() {
    let place = Place::new();
    place.run("train --data data --model tiny.toml --out run --epochs 1 --seed 1").ok();
    let image = place.images("data/val")[0].clone();
    let image = place.images(&format!("data/val/{}", image.file_name().unwrap().to_str().unwrap()))
        [0]
    .display()
    .to_string();
    let study = "study invariance --checkpoint run";
    let ran = place.run(&format!("{study} {image} --layers conv1,conv2,fc3")).ok();
    let page = place.path("run/report/invariance/index.html");
    assert_eq!(ran.stdout.trim(), "run/report/invariance/index.html");
    let html = fs::read_to_string(page).unwrap();
    assert!(html.contains("Figure 5") && html.contains("times as fast"), "{html}");
    let folder = place.path("run/report/invariance");
    assert!(!folder.join(".parts").exists());
    let numbers = fs::read_to_string(folder.join("invariance.csv")).unwrap();
    // 9 shifts, 9 scales and 36 turns of one image in three layers, and the names.
    assert_eq!(numbers.lines().count(), 1 + (9 + 9 + 36) * 3, "{numbers}");
    let zero = numbers.lines().filter(|line| line.contains(",shift,0,")).count();
    assert_eq!(zero, 3);
    assert!(numbers.lines().filter(|l| l.contains(",shift,0,")).all(|l| l.contains(",0,0,")));

    place.run(&format!("{study} {image} --layers conv9")).refused(&["no layer `conv9`", "conv1"]);
    place.run(&format!("{study} {image} --class zebra")).refused(&["no class `zebra`"]);
    place.run(&format!("{study} --data data --classes zebra")).refused(&["no class `zebra`"]);
    place.run(&format!("{study} {image} --shift 99")).refused(&["--shift 99", "16 pixels"]);
    place.run(&format!("{study} none.jpg")).refused(&["none.jpg"]);
    place.run(&format!("{study} --data nowhere")).refused(&["nowhere"]);
    place.run(&format!("study invariance --checkpoint nothing {image}")).refused(&["nothing"]);
    fs::create_dir_all(place.path("empty/train")).unwrap();
    fs::create_dir_all(place.path("empty/val")).unwrap();
    place.run(&format!("{study} --data empty")).refused(&["empty"]);
}
