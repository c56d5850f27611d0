//! What was learnt, and what are the initial weights: end to end through the program.

use std::fs;

use serde_json::Value;
use zfnet_core::tensors::deserialize as safetensors_of;

use crate::common::page::check_links;
use crate::common::program::Place;

/// Initial shares of the layers of a checkpoint: medians; none where they are not known.
fn shares(place: &Place, checkpoint: &str) -> Vec<Option<f64>> {
    let layers = place.run(&format!("inspect {checkpoint} --json")).ok().json();
    let weights = layers.as_array().unwrap().iter().filter_map(|layer| layer.get("weights"));
    weights.map(|weights| weights["initial_share"][0].as_f64()).collect()
}

#[test]
fn training_moves_weights_away_from_the_initial_ones_and_the_checkpoint_knows_it() {
    let place = Place::new();
    let train = "train --data data --arch tiny.toml --seed 3 --keep 99 --save-steps 1";
    let ran = place.run(&format!("{train} --out run --epochs 2")).ok();
    assert!(ran.stderr.contains("90th") && ran.stderr.contains("fc4  "), "{}", ran.stderr);
    let before = shares(&place, "run/step-0");
    assert_eq!(before.len(), 4);
    assert!(before.iter().all(|share| (share.unwrap() - 1.0).abs() < 1e-6), "{before:?}");
    let after = shares(&place, "run/step-8");
    for (before, after) in before.iter().zip(&after) {
        assert!(after < before && after.unwrap() > 0.5, "{before:?} {after:?}");
    }

    // Weights that are taken over keep their start; those that are drawn have their own.
    let tiny = fs::read_to_string(place.path("tiny.toml")).unwrap();
    fs::write(place.path("other.toml"), tiny.replace("outputs = 16", "outputs = 17")).unwrap();
    let tuned = "train --data data --arch other.toml --init run/step-8 --seed 9 --max-steps 1";
    place.run(&format!("{tuned} --out tuned --keep 99")).ok();
    let begun = shares(&place, "tuned/step-0");
    assert_eq!(begun[..2], after[..2]);
    assert!(begun[2..].iter().all(|share| (share.unwrap() - 1.0).abs() < 1e-6), "{begun:?}");

    let study = "study learnt --checkpoint run --data data";
    let page = place.run(study).ok();
    assert_eq!(page.stdout.trim(), "run/report/learnt/index.html");
    let out = place.path("run/report/learnt");
    let html = fs::read_to_string(out.join("index.html")).unwrap();
    check_links(&out, &html);
    assert!(html.contains("Initial weights</dt><dd>conv1 ") && html.contains("first-initial.png"));
    let found: Value = serde_json::from_slice(&fs::read(out.join("learnt.json")).unwrap()).unwrap();
    let eval = place.run("eval --checkpoint run --data data --crops 1 --json").ok().json();
    assert_eq!(found["trained"]["top1_error"], eval["top1_error"]);
    let layers = found["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 4);
    assert!(layers.iter().all(|layer| layer["reinitialized"]["images"] == 20));
    // The same once more, from parts or anew, is the same.
    let bytes = fs::read(out.join("learnt.json")).unwrap();
    place.run(study).ok();
    assert_eq!(fs::read(out.join("learnt.json")).unwrap(), bytes);
}

/// A run's own seed is not that of the random weights that its pictures are compared with.
#[test]
fn random_weights_are_not_those_that_training_began_with() {
    let place = Place::new();
    place.run("train --data data --arch tiny.toml --out run --max-steps 1 --seed 1 --keep 9").ok();
    let class = place.images("data/train")[0].display().to_string();
    let image = &place.images(&class)[0];
    let sanity =
        "study sanity --checkpoint run/step-0 --out s --seed 1 --units conv1:0,conv1:1,conv1:2";
    place.run(&format!("{sanity} {}", image.display())).ok();
    let found: Value =
        serde_json::from_slice(&fs::read(place.path("s/sanity.json")).unwrap()).unwrap();
    let compared = found.as_array().unwrap();
    let random = compared.iter().filter(|one| one["of"] == "unit" && one["randomised"] != 0);
    assert!(random.clone().count() > 0);
    for one in random {
        assert!(one["trained_random"].as_f64().unwrap().abs() < 0.9, "{one}");
    }
}

/// Flags of initialization are for all layers, also for those with an `init_std` of their own.
#[test]
fn layers_and_flags_say_how_weights_are_drawn() {
    let place = Place::new();
    let tiny = fs::read_to_string(place.path("tiny.toml")).unwrap();
    let own = tiny.replace("name = \"conv1\",", "name = \"conv1\", init_std = 0.5,");
    fs::write(place.path("own.toml"), own).unwrap();
    let rms = |flags: &str, out: &str| {
        let train = format!("train --data data --arch own.toml --max-steps 1 --out {out} --keep 9");
        place.run(&format!("{train} {flags}")).ok();
        let bytes = fs::read(place.path(out).join("step-0/model.safetensors")).unwrap();
        let tensors = safetensors_of(&bytes).unwrap();
        ["conv1.weight", "conv2.weight"].map(|name| {
            let values = tensors.tensor(name).unwrap();
            let values: Vec<f32> = values
                .data()
                .chunks(4)
                .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
                .collect();
            (values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32).sqrt()
        })
    };
    let he = [(2.0f32 / 75.0).sqrt(), (2.0f32 / 72.0).sqrt()];
    for (flags, out, expected) in [
        ("", "a", [0.5, he[1]]),
        ("--init-weights he", "b", he),
        ("--init-std 0.02", "c", [0.02; 2]),
        ("--init-weights normal --init-std 0.03", "d", [0.03; 2]),
    ] {
        for (found, expected) in rms(flags, out).into_iter().zip(expected) {
            assert!((found / expected - 1.0).abs() < 0.15, "{flags}: {found} {expected}");
        }
    }
    let both = "train --data data --arch own.toml --out e --init-weights he --init-std 0.02";
    place.run(both).refused(&["--init-std", "normal"]);
    let own = fs::read_to_string(place.path("own.toml")).unwrap();
    fs::write(place.path("own.toml"), own.replace("0.5", "-0.5")).unwrap();
    place.run("inspect own.toml").refused(&["conv1", "init_std", "-0.5"]);
}

/// At step 0 nothing was learnt: setting a layer back changes nothing.
#[test]
fn a_network_that_has_learnt_nothing_loses_nothing() {
    let place = Place::new();
    place.run("train --data data --arch tiny.toml --out run --max-steps 1 --keep 9").ok();
    place.run("study learnt --checkpoint run/step-0 --data data --out page").ok();
    let json = fs::read(place.path("page/learnt.json")).unwrap();
    let found: Value = serde_json::from_slice(&json).unwrap();
    for layer in found["layers"].as_array().unwrap() {
        assert_eq!(layer["reinitialized"], found["trained"]);
    }
}
