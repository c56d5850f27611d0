//! Trainings that go wrong say so, each sign once, with its likely cause and one thing to try; those that go well
//! say nothing.

use std::fs;
use std::path::{Path, PathBuf};

use zfnet::picture::Image;

use crate::common::Random;
use crate::common::program::Place;

const FAST: &str = "train --data colours --arch tiny.toml --keep 1 --schedule constant";
/// Pictures of each class.
const TRAIN: usize = 12;
const VAL: usize = 6;

/// A folder with pictures that are easy to classify: each class has a colour of its own, under noise.
fn place() -> Place {
    let place = Place::new();
    let mut random = Random(5);
    for (split, count) in [("train", TRAIN), ("val", VAL)] {
        for class in 0..10 {
            let folder = place.path("colours").join(split).join(format!("colour-{class}"));
            fs::create_dir_all(&folder).unwrap();
            let colour = [class % 3, class / 3 % 3, class / 9].map(|level| 40 + 70 * level);
            for number in 0..count {
                let pixels =
                    (0..20 * 20 * 3).map(|i| (colour[i % 3] + random.below(60)) as u8).collect();
                Image::new(20, 20, pixels)
                    .write_png(&folder.join(format!("{number}.png")))
                    .unwrap();
            }
        }
    }
    place
}

fn sorted(folder: &Path) -> Vec<PathBuf> {
    let mut all: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    all.sort();
    all
}

/// The alarms that a run has printed, after checking that they are those of its metrics.
fn alarms(place: &Place, output: &str, run: &str) -> Vec<String> {
    let lines = output.lines().filter_map(|line| line.strip_prefix("alarm: ")).map(str::to_owned);
    let told: Vec<String> = lines.collect();
    let metrics = fs::read_to_string(place.path(run).join("metrics.jsonl")).unwrap();
    let kept = metrics.lines().filter(|line| line.starts_with(r#"{"kind":"alarm""#)).count();
    assert_eq!(kept, told.len(), "{told:?}");
    told
}

fn only<'a>(alarms: &'a [String], words: &[&str]) -> &'a str {
    let [alarm] = alarms else { panic!("expected one alarm, found {alarms:?}") };
    assert!(words.iter().all(|word| alarm.contains(word)), "{words:?} in {alarm}");
    alarm
}

/// The training loss of the last epoch.
fn last_loss(place: &Place, run: &str) -> f64 {
    let metrics = fs::read_to_string(place.path(run).join("metrics.jsonl")).unwrap();
    let last = metrics.lines().rfind(|line| line.starts_with(r#"{"kind":"epoch""#)).unwrap();
    let last: serde_json::Value = serde_json::from_str(last).unwrap();
    last["train_loss"].as_f64().unwrap()
}

#[test]
fn a_good_run_says_nothing() {
    let place = place();
    let ran = place.run(&format!("{FAST} --epochs 60 --out good")).ok();
    assert!(last_loss(&place, "good") < 1.0, "{}", ran.stderr);
    assert_eq!(alarms(&place, &ran.stderr, "good"), Vec::<String>::new());
    let metrics = fs::read_to_string(place.path("good/metrics.jsonl")).unwrap();
    let layers: Vec<&str> =
        metrics.lines().filter(|line| line.contains(r#""kind":"layers""#)).collect();
    assert_eq!(layers.len(), 60, "a line an epoch");
    assert!(layers.iter().all(|line| line.contains(r#""layer":"fc4""#)));
}

#[test]
fn a_loss_that_stays_is_told_with_its_cause() {
    let place = place();
    for (name, flags, words) in [
        ("small", "--init-std 0.001", ["stuck", "the signal dies on its way", "--init-weights he"]),
        (
            "slow",
            "--learning-rate 1e-6",
            ["stuck", "updates are too small", "--learning-rate 0.0001"],
        ),
    ] {
        let ran = place.run(&format!("{FAST} {flags} --epochs 40 --out {name}")).ok();
        let found = alarms(&place, &ran.stderr, name);
        let stuck = found.iter().find(|alarm| alarm.starts_with("stuck")).expect("an alarm");
        let all = ["after 300 updates the loss is", "guessing 2.3026", "fc4"];
        assert!(words.iter().chain(&all).all(|word| stuck.contains(word)), "{words:?} in {stuck}");
        // It has been told.
        let ran = place.run(&format!("{FAST} {flags} --epochs 80 --out {name} --resume")).ok();
        assert!(!ran.stderr.contains("alarm: stuck"), "{}", ran.stderr);
    }
}

#[test]
fn a_loss_that_is_no_number_is_told_with_layer_and_files() {
    let place = place();
    let ran = place.run(&format!("{FAST} --learning-rate 1e9 --epochs 60 --out fast"));
    let found = alarms(&place, &ran.refused(&["training diverged"]).stderr, "fast");
    only(&found, &["diverged: ", "updates too large", "colour-", ".png", "--learning-rate"]);
    let metrics = fs::read_to_string(place.path("fast/metrics.jsonl")).unwrap();
    let last = metrics.lines().last().unwrap();
    assert!(last.starts_with(r#"{"kind":"layers""#), "what was seen before: {last}");

    let ran = place.run(&format!("{FAST} --init-std 1e12 --epochs 60 --out large"));
    let found = alarms(&place, &ran.refused(&["training diverged"]).stderr, "large");
    only(&found, &["diverged: the output of ", "colour-", "from the start", "--init-weights he"]);
}

#[test]
fn classes_that_mean_another_thing_in_the_other_split_are_named() {
    let place = place();
    let val = sorted(&place.path("colours/val"));
    // Three in a circle.
    let aside = place.path("aside");
    for (from, to) in [(&val[1], &aside), (&val[4], &val[1]), (&val[7], &val[4]), (&aside, &val[7])]
    {
        fs::rename(from, to).unwrap();
    }
    let ran = place.run(&format!("{FAST} --epochs 60 --out run")).ok();
    let pairs = ["colour-1 for colour-4", "colour-4 for colour-7", "colour-7 for colour-1"];
    only(&alarms(&place, &ran.stderr, "run"), &["classes exchanged", pairs[0], pairs[1], pairs[2]]);
}

#[test]
fn validation_labels_without_meaning_are_told() {
    let place = place();
    // Picture i of a class goes to the class i + 1 places on.
    let classes = sorted(&place.path("colours/val"));
    let images: Vec<Vec<PathBuf>> = classes.iter().map(|class| sorted(class)).collect();
    for (class, images) in images.iter().enumerate() {
        for (number, image) in images.iter().enumerate() {
            let to = &classes[(class + number + 1) % classes.len()];
            fs::rename(image, to.join(format!("from-{class}-{number}.png"))).unwrap();
        }
    }
    let ran = place.run(&format!("{FAST} --epochs 60 --out run")).ok();
    only(
        &alarms(&place, &ran.stderr, "run"),
        &["validation at chance: ", "that of guessing 90.0 %"],
    );
}

#[test]
fn images_of_both_splits_are_named() {
    let place = place();
    let image = place.path("colours/train/colour-3/7.png");
    fs::copy(&image, place.path("colours/val/colour-3/again.png")).unwrap();
    let ran = place.run(&format!("{FAST} --epochs 1 --out run")).ok();
    let words = ["shared images: 1 of 61 validation", "colour-3/again.png and colour-3/7.png"];
    only(&alarms(&place, &ran.stderr, "run"), &words);
    // Nothing is looked for where nothing is watched, and what is learnt is the same.
    let ran = place.run(&format!("{FAST} --epochs 1 --no-watch --out unwatched")).ok();
    assert_eq!(alarms(&place, &ran.stderr, "unwatched"), Vec::<String>::new());
    let metrics = fs::read_to_string(place.path("unwatched/metrics.jsonl")).unwrap();
    assert!(!metrics.contains("layers"));
    let weights = |run: &str| fs::read(place.path(run).join("last/model.safetensors")).unwrap();
    assert_eq!(weights("run"), weights("unwatched"));
}
