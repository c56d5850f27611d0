//! Preferred images: of linear networks, whose filters they must become, of networks that rise, and from the command.

use std::fs;

use zfnet::backend::Backend;
use zfnet::model::{Canvas, Network, Params, Preprocess, Projector};
use zfnet::picture::Image;
use zfnet::report::figure::{self, Figure};
use zfnet::study::preferred::{Ascent, Settings, variation};
use zfnet::study::sanity::correlation;
use zfnet::train::evaluate::TestCrops;

use super::by_hand::{page, trained};
use crate::common::{Random, bits, network, random_params, storage_eps};

on_every_backend!(
    without_regularisation_a_linear_unit_gets_its_filter,
    decay_leaves_nothing_of_the_noise,
    jitter_spreads_what_is_added,
    decay_and_blur_are_those_of_naive_twins,
    a_seed_decides_every_bit,
    an_activation_rises_above_that_of_noise_and_of_images,
);

/// No regularisation.
const PLAIN: Settings =
    Settings { steps: 0, rate: 2.0, decay: 0.0, blur: 0.0, blur_every: 0, jitter: 0.0 };

/// 12x14 pixels and one convolution without a relu; the unit in the middle sees rows 4 to 8, columns 5 to 9.
fn linear() -> Network {
    network(
        r#"
        name = "linear"
        classes = 0
        input = { size = [12, 14], resize = [12, 14] }
        layers = [{ type = "conv", name = "conv1", channels = 2, kernel = 5 }]
        "#,
    )
}

fn preprocess() -> Preprocess {
    Preprocess::paper([12, 14], Canvas::of([12, 14]), 2.0, vec![128.0; 3])
}

/// Integers, so that all backends store them exactly; and a bias.
fn linear_weights<B: Backend>(backend: &B, network: &Network) -> (Params<B>, Vec<f32>) {
    let mut params = Params::weights(backend, network).unwrap();
    let filters = Random(3).integers(2 * 5 * 5 * 3, 8);
    let param = params.layers[0].as_mut().unwrap();
    backend.upload(&mut param.weight, &filters).unwrap();
    backend.upload(&mut param.bias, &[0.0, -3.0]).unwrap();
    (params, filters[75..].to_vec())
}

fn ascent<B: Backend>(
    backend: &B,
    preprocess: &Preprocess,
    settings: &Settings,
    seed: u64,
) -> Ascent<B> {
    Ascent::new(backend, &linear(), preprocess, 0, 1, settings, seed).unwrap()
}

/// What of the input the unit sees, and the rest.
fn split(input: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let (mut inside, mut outside) = (Vec::new(), Vec::new());
    for (i, value) in input.iter().enumerate() {
        let (y, x) = (i / 3 / 14, i / 3 % 14);
        let is_seen = (4..9).contains(&y) && (5..10).contains(&x);
        if is_seen { &mut inside } else { &mut outside }.push(*value);
    }
    (inside, outside)
}

fn without_regularisation_a_linear_unit_gets_its_filter<B: Backend>(backend: &B) {
    let (network, preprocess) = (linear(), preprocess());
    let (params, filter) = linear_weights(backend, &network);
    let mut ascent = ascent(backend, &preprocess, &PLAIN, 0);
    assert_eq!(ascent.seen(), [5, 4, 10, 9]);
    let (noise, still) = split(ascent.input());
    let before = ascent.activation(backend, &params).unwrap();
    for steps in 1..=20 {
        ascent.step(backend, &params).unwrap();
        assert_eq!(ascent.steps(), steps);
    }
    let (inside, outside) = split(ascent.input());
    assert_eq!(outside, still, "nothing changes where the unit does not look");
    let added: Vec<f32> = inside.iter().zip(&noise).map(|(now, then)| now - then).collect();
    assert!(correlation(&added, &filter) > 1.0 - 1e-6);
    // Twenty steps of two bytes, which are one each for the network.
    let rms = (added.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / 75.0).sqrt();
    assert!((rms - 20.0).abs() < 1e-3, "{rms}");
    let products = inside.iter().zip(&filter).map(|(x, w)| f64::from(*x) * f64::from(*w));
    let (sum, size) =
        products.fold((-3.0, 0.0), |(sum, size), product| (sum + product, size + product.abs()));
    let activation = ascent.activation(backend, &params).unwrap();
    let tolerance = size * (1e-3 + storage_eps(backend));
    assert!((f64::from(activation) - sum).abs() < tolerance, "{activation} {sum}");
    assert!(activation > before);
    // The picture is what the network sees, in bytes.
    let pixel = |i: usize| (ascent.input()[i] * 2.0 + 128.0).round() as u8;
    let bytes: Vec<u8> = (0..12 * 14 * 3).map(pixel).collect();
    let picture = ascent.picture();
    assert_eq!(([picture.width, picture.height], picture.pixels), ([14, 12], bytes));
}

fn decay_leaves_nothing_of_the_noise<B: Backend>(backend: &B) {
    let (network, preprocess) = (linear(), preprocess());
    let (params, filter) = linear_weights(backend, &network);
    let settings = Settings { decay: 0.1, ..PLAIN };
    let mut ascent = ascent(backend, &preprocess, &settings, 0);
    let (_, noise) = split(ascent.input());
    for _ in 0..60 {
        ascent.step(backend, &params).unwrap();
    }
    let (inside, outside) = split(ascent.input());
    assert!(correlation(&inside, &filter) > 1.0 - 1e-4);
    for (now, then) in outside.iter().zip(&noise) {
        let expected = f64::from(*then) * 0.9f64.powi(60);
        assert!((f64::from(*now) - expected).abs() <= expected.abs() * 1e-4, "{now} {expected}");
    }
    // Brighter and darker than bytes can be is clipped.
    let mut ascent = self::ascent(backend, &preprocess, &Settings { rate: 200.0, ..PLAIN }, 0);
    for _ in 0..5 {
        ascent.step(backend, &params).unwrap();
    }
    let (inside, _) = split(ascent.input());
    let range = |sign: f32| inside.iter().fold(0f32, |most, v| most.max(v * sign));
    assert_eq!([range(-1.0), range(1.0)], [64.0, 63.5]);
}

fn jitter_spreads_what_is_added<B: Backend>(backend: &B) {
    let (network, preprocess) = (linear(), preprocess());
    let (params, filter) = linear_weights(backend, &network);
    // Of five pixels, two.
    let settings = Settings { jitter: 0.4, ..PLAIN };
    let mut ascent = ascent(backend, &preprocess, &settings, 0);
    let mut before = ascent.input().to_vec();
    let mut places = Vec::new();
    for _ in 0..40 {
        ascent.step(backend, &params).unwrap();
        let added: Vec<f32> = ascent.input().iter().zip(&before).map(|(a, b)| a - b).collect();
        // The filter, at one place of the picture.
        let at = |[y, x]: [usize; 2]| -> Vec<f32> {
            let rows = (y..y + 5).map(|y| &added[(y * 14 + x) * 3..(y * 14 + x + 5) * 3]);
            rows.flatten().copied().collect()
        };
        let all = (0..8).flat_map(|y| (0..10).map(move |x| [y, x]));
        let place = all
            .max_by(|a, b| correlation(&at(*a), &filter).total_cmp(&correlation(&at(*b), &filter)));
        let place = place.unwrap();
        assert!(correlation(&at(place), &filter) > 1.0 - 1e-6);
        assert_eq!(
            added.iter().filter(|v| **v != 0.0).count(),
            at(place).iter().filter(|v| **v != 0.0).count(),
            "nothing is added elsewhere"
        );
        places.push(place);
        before = ascent.input().to_vec();
    }
    for axis in 0..2 {
        let along: Vec<usize> = places.iter().map(|place| place[axis]).collect();
        let [first, last] = [along.iter().min().unwrap(), along.iter().max().unwrap()];
        assert_eq!(
            [*first, *last],
            [2 + axis, 6 + axis],
            "two pixels on either side of {}",
            4 + axis
        );
    }
}

/// Blurred directly, in two dimensions.
fn blurred(input: &[f64], deviation: f64) -> Vec<f64> {
    let radius = (3.0 * deviation).ceil() as i64;
    let weight = |d: i64| (-((d * d) as f64) / (2.0 * deviation * deviation)).exp();
    let mut out = vec![0.0; input.len()];
    for y in 0..12i64 {
        for x in 0..14i64 {
            let mut total = 0.0;
            let mut sums = [0.0; 3];
            for dy in -radius..=radius {
                for dx in -radius..=radius {
                    let w = weight(dy) * weight(dx);
                    let from = ((y + dy).clamp(0, 11) * 14 + (x + dx).clamp(0, 13)) as usize * 3;
                    total += w;
                    (0..3).for_each(|c| sums[c] += w * input[from + c]);
                }
            }
            (0..3).for_each(|c| out[(y * 14 + x) as usize * 3 + c] = sums[c] / total);
        }
    }
    out
}

fn decay_and_blur_are_those_of_naive_twins<B: Backend>(backend: &B) {
    let (network, preprocess) = (linear(), preprocess());
    let (params, _) = linear_weights(backend, &network);
    for deviation in [0.5, 0.8, 6.0] {
        // No gradient is added; the jitter is taken back exactly.
        let settings = Settings {
            rate: 0.0,
            decay: 0.25,
            blur: deviation,
            blur_every: 2,
            jitter: 0.4,
            ..PLAIN
        };
        let mut ascent = ascent(backend, &preprocess, &settings, 5);
        let mut expected: Vec<f64> = ascent.input().iter().map(|v| f64::from(*v)).collect();
        for step in 1..=4 {
            ascent.step(backend, &params).unwrap();
            expected.iter_mut().for_each(|v| *v *= 0.75);
            if step % 2 == 0 {
                expected = blurred(&expected, f64::from(deviation));
            }
            for (found, expected) in ascent.input().iter().zip(&expected) {
                assert!((f64::from(*found) - expected).abs() < 1e-5, "{step}: {found} {expected}");
            }
        }
    }
}

/// Two convolutions with relus, a pooling, and logits.
fn deep() -> Network {
    network(
        r#"
        name = "deep"
        classes = 3
        input = { size = 16, resize = 16, std = 64.0 }
        layers = [
          { type = "conv", name = "conv1", channels = 8, kernel = 3, pad = 1 },
          { type = "relu" },
          { type = "maxpool", name = "pool1", kernel = 2, stride = 2 },
          { type = "conv", name = "conv2", channels = 8, kernel = 3 },
          { type = "relu" },
          { type = "fc", name = "fc3", outputs = 8 },
          { type = "relu" },
          { type = "fc", name = "fc4" },
        ]
        [recipe]
        init = "he"
        "#,
    )
}

fn a_seed_decides_every_bit<B: Backend>(backend: &B) {
    let network = deep();
    let params = random_params(backend, &network, 1);
    let preprocess = Preprocess::paper([16; 2], 16, 64.0, vec![128.0; 3]);
    let made = |map: usize, seed: u64| {
        let layer = network.layer("conv2").unwrap();
        let mut ascent =
            Ascent::new(backend, &network, &preprocess, layer, map, &Settings::default(), seed)
                .unwrap();
        let noise = bits(ascent.input());
        (0..12).for_each(|_| ascent.step(backend, &params).unwrap());
        (noise, bits(ascent.input()))
    };
    let first = made(2, 7);
    assert_eq!(made(2, 7), first);
    for (map, seed) in [(2, 8), (3, 7)] {
        let other = made(map, seed);
        assert!(other.0 != first.0 && other.1 != first.1);
    }
}

fn an_activation_rises_above_that_of_noise_and_of_images<B: Backend>(backend: &B) {
    let network = deep();
    let mut params = random_params(backend, &network, 1);
    let preprocess = Preprocess::paper([16; 2], 16, 64.0, vec![128.0; 3]);
    // Such that the second map of conv2 does not fire at noise.
    let conv2 = network.layer("conv2").unwrap();
    let bias = &mut params.layers[conv2].as_mut().unwrap().bias;
    let lowered: Vec<f32> = (0..8).map(|map| if map == 1 { -0.5 } else { 0.0 }).collect();
    backend.upload(bias, &lowered).unwrap();
    let mut random = Random(4);
    let images: Vec<u8> = random.bytes(8 * preprocess.bytes());
    let mut projector = Projector::new(backend, &network, &params, &preprocess, 8, 1).unwrap();
    let crops: Vec<_> = (0..8).flat_map(|image| TestCrops::One.of(&preprocess, image)).collect();
    projector.look(&images, &crops).unwrap();
    // Random filters want what a blur takes away.
    let settings = Settings { blur: 0.0, ..Settings::default() };
    for (name, map) in [("conv1", 0), ("conv2", 1), ("fc3", 4), ("fc4", 2)] {
        let layer = network.layer(name).unwrap();
        let maps = network.layers[layer].output.c;
        let peaks = projector.peaks(layer).unwrap();
        let strongest =
            peaks.iter().skip(map).step_by(maps).map(|peak| peak.value).fold(0.0, f32::max);
        let mut ascent =
            Ascent::new(backend, &network, &preprocess, layer, map, &settings, 0).unwrap();
        let noise = ascent.activation(backend, &params).unwrap();
        assert!(name != "conv2" || noise < 0.0, "{noise}");
        (0..60).for_each(|_| ascent.step(backend, &params).unwrap());
        let found = ascent.activation(backend, &params).unwrap();
        assert!(
            found > 1.2 * strongest && found > noise.abs() * 4.0,
            "{name}: {found} {noise} {strongest}"
        );
    }
    for (layer, map, words) in [("pool1", 0, "conv1"), ("conv2", 8, "8 maps")] {
        let layer = network.layer(layer).unwrap();
        let refused = Ascent::new(backend, &network, &preprocess, layer, map, &settings, 0);
        assert!(refused.err().unwrap().to_string().contains(words));
    }
}

#[test]
fn a_picture_varies_by_its_neighbours() {
    // Rows 0, 10 and 40, 20: by 10 and 20 along rows, by 40 and 10 along columns, in one of three colours.
    let pixels = [0, 10, 40, 20].iter().flat_map(|red| [*red, 7, 7]).collect();
    assert_eq!(variation(&Image::new(2, 2, pixels)), 80.0 / 12.0);
    assert_eq!(variation(&Image::filled(5, 3, 9)), 0.0);
    assert_eq!(variation(&Image::filled(1, 1, 9)), 0.0);
}

#[test]
fn pictures_are_synthesised_by_the_command() {
    let place = trained();
    let few = "--steps 6 --maps 2";
    let ran = place.run(&format!("study preferred --checkpoint run --data data {few}")).ok();
    assert_eq!(ran.stdout.trim(), "run/report/preferred/index.html");
    // Two convolutions and the logits, two maps each; no patches of one that never fires.
    let pictures = page(&place, "run/report/preferred");
    let made = pictures.iter().filter(|picture| picture.ends_with("-preferred.png")).count();
    assert_eq!(made, 6);
    assert!(pictures.len() > made);
    let read = |file: &str| fs::read_to_string(place.path(file)).unwrap();
    let html = read("run/report/preferred/index.html");
    for words in ["Synthesised: no photograph", "6 steps", "strongest patch"] {
        assert!(html.contains(words), "{words}");
    }
    let figure: Figure =
        serde_json::from_str(&read(&format!("run/report/preferred/{}", figure::FILE))).unwrap();
    let titles: Vec<&str> = figure.sections.iter().map(|section| section.title.as_str()).collect();
    assert_eq!(titles, ["conv1", "conv2", "fc4"]);
    let csv = read("run/report/preferred/preferred.csv");
    assert_eq!(csv.lines().count(), 1 + 6);
    assert!(!place.path("run/report/preferred/.parts").exists());

    // The same for any threads, and in the report; another for another seed.
    let alone = "study preferred --checkpoint run --out p --steps 6 --maps 2";
    place.run(&format!("{alone} --data data --threads 1")).ok();
    assert_eq!(read("p/preferred.csv"), csv);
    place.run(&format!("{alone} --data data --seed 1")).ok();
    assert_ne!(read("p/preferred.csv"), csv);
    place.run("study report run").ok();
    assert!(page(&place, "run/report").iter().any(|p| p.starts_with("preferred/")));

    // Without images, of single units.
    place
        .run("study preferred --checkpoint run --out p --steps 1 --units fc4:1,conv2:3,fc4:0")
        .ok();
    assert_eq!(page(&place, "p").len(), 3);

    for (flags, words) in [
        ("--layers conv9", ["conv9", "conv2"]),
        ("--units conv2:12", ["conv2", "0 to 11"]),
        ("--layers pool1", ["pool1", "conv1"]),
        ("--decay 1.5", ["decay", "1.5"]),
        ("--blur NaN", ["blur", "NaN"]),
        ("--data nowhere", ["nowhere", "nowhere"]),
    ] {
        place.run(&format!("study preferred --checkpoint run --out q {flags}")).refused(&words);
    }
    for flags in ["--steps 0", "--maps 0", "--units conv2:1 --layers conv1", "--split val"] {
        let ran = place.run(&format!("study preferred --checkpoint run --out q {flags}"));
        assert_eq!(ran.code, Some(2), "{}", ran.stderr);
    }
    assert!(!place.path("q").exists());
}
