//! What was learnt, and what is the random start: end to end through the program.

use std::fs;

use serde_json::Value;

use crate::common::page::check_links;
use crate::common::program::Place;

/// Initial shares of the layers of a checkpoint: medians; none where they are not known.
fn shares(place: &Place, checkpoint: &str) -> Vec<Option<f64>> {
    let layers = place.run(&format!("inspect {checkpoint} --json")).ok().json();
    let weights = layers.as_array().unwrap().iter().filter_map(|layer| layer.get("weights"));
    weights.map(|weights| weights["initial_share"][0].as_f64()).collect()
}

#[test]
fn training_takes_the_random_start_away_and_the_checkpoint_knows_it() {
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
    assert!(html.contains("Random start</dt><dd>conv1 ") && html.contains("first-initial.png"));
    let found: Value = serde_json::from_slice(&fs::read(out.join("learnt.json")).unwrap()).unwrap();
    let eval = place.run("eval --checkpoint run --data data --crops 1 --json").ok().json();
    assert_eq!(found["trained"]["top1_error"], eval["top1_error"]);
    let layers = found["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 4);
    assert!(layers.iter().all(|layer| layer["set_back"]["images"] == 20));
    // The same once more, from parts or anew, is the same.
    let bytes = fs::read(out.join("learnt.json")).unwrap();
    place.run(study).ok();
    assert_eq!(fs::read(out.join("learnt.json")).unwrap(), bytes);
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
        assert_eq!(layer["set_back"], found["trained"]);
    }
}
