//! Trainings that go wrong say so, each sign once, with its likely cause and one thing to try; those that go well
//! say nothing.

use std::fs;

use crate::common::place::{TRAIN, VAL};
use crate::common::program::Place;

const FAST: &str = "train --data data --arch tiny.toml --keep 1";

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

#[test]
fn a_good_run_says_nothing() {
    let place = Place::new();
    let ran = place.run(&format!("{FAST} --epochs 100 --out good")).ok();
    assert_eq!(alarms(&place, &ran.stderr, "good"), Vec::<String>::new());
    let metrics = fs::read_to_string(place.path("good/metrics.jsonl")).unwrap();
    let layers: Vec<&str> =
        metrics.lines().filter(|line| line.contains(r#""kind":"layers""#)).collect();
    assert_eq!(layers.len(), 100, "a line an epoch");
    assert!(layers.iter().all(|line| line.contains(r#""layer":"fc4""#)));
}

#[test]
fn a_loss_that_stays_is_told_with_its_cause() {
    let place = Place::new();
    for (flags, words) in [
        ("--init-std 0.001", ["stuck", "the signal dies on its way", "--init-weights he"]),
        ("--learning-rate 1e-6", ["stuck", "updates are too small", "--learning-rate 1e-5"]),
    ] {
        let run = flags.split_whitespace().next().unwrap().trim_start_matches('-');
        let ran = place.run(&format!("{FAST} {flags} --epochs 100 --out {run}")).ok();
        let found = alarms(&place, &ran.stderr, run);
        only(&found, &words);
        only(&found, &["after 300 updates the loss is", "guessing 2.3026", "fc4"]);
        // It has been told.
        let ran = place.run(&format!("{FAST} {flags} --epochs 150 --out {run} --resume")).ok();
        assert!(!ran.stderr.contains("alarm"), "{}", ran.stderr);
    }
}

#[test]
fn a_loss_that_is_no_number_is_told_with_layer_files_and_a_rate() {
    let place = Place::new();
    let ran = place.run(&format!("{FAST} --learning-rate 100 --epochs 100 --out fast"));
    let ran = ran.refused(&["training diverged"]);
    let found = alarms(&place, &ran.stderr, "fast");
    let alarm = found.last().unwrap();
    assert!(alarm.starts_with("diverged: "), "{alarm}");
    assert!(
        ["updates too large", ".png", "--learning-rate"].iter().all(|word| alarm.contains(word)),
        "{alarm}"
    );

    let ran = place.run(&format!("{FAST} --init-std 1000 --epochs 100 --out large"));
    let found = alarms(&place, &ran.refused(&["training diverged"]).stderr, "large");
    only(&found, &["diverged: the output of ", "too large from the start", "--init-weights he"]);
}

#[test]
fn classes_that_mean_another_thing_in_the_other_split_are_named() {
    let place = Place::new();
    let val = place.path("data/val");
    let classes: Vec<_> = {
        let mut all: Vec<_> =
            fs::read_dir(&val).unwrap().map(|entry| entry.unwrap().path()).collect();
        all.sort();
        all
    };
    // Three in a circle.
    let aside = val.with_file_name("aside");
    for (from, to) in [
        (&classes[1], &aside),
        (&classes[4], &classes[1]),
        (&classes[7], &classes[4]),
        (&aside, &classes[7]),
    ] {
        fs::rename(from, to).unwrap();
    }
    let ran = place.run(&format!("{FAST} --epochs 150 --out run")).ok();
    let name = |class: usize| classes[class].file_name().unwrap().to_str().unwrap();
    let pairs = [(1, 4), (4, 7), (7, 1)].map(|(a, b)| format!("{} for {}", name(a), name(b)));
    let found = alarms(&place, &ran.stderr, "run");
    only(&found, &["classes exchanged", &pairs[0], &pairs[1], &pairs[2]]);
}

#[test]
fn labels_without_meaning_are_learnt_by_heart_and_validation_stays_at_chance() {
    let place = Place::new();
    let train = place.path("data/train");
    let mut classes: Vec<_> =
        fs::read_dir(&train).unwrap().map(|entry| entry.unwrap().path()).collect();
    classes.sort();
    // Picture i of a class goes to the i-th class from it.
    let images: Vec<Vec<_>> = classes
        .iter()
        .map(|class| {
            let mut all: Vec<_> =
                fs::read_dir(class).unwrap().map(|entry| entry.unwrap().path()).collect();
            all.sort();
            all
        })
        .collect();
    for (class, images) in images.iter().enumerate() {
        assert_eq!(images.len(), TRAIN);
        for (number, image) in images.iter().enumerate() {
            let to = &classes[(class + number + 1) % classes.len()];
            fs::rename(image, to.join(format!("from-{class}-{number}.png"))).unwrap();
        }
    }
    let ran = place
        .run(&format!(
            "{FAST} --dropout 0 --train-crops centre --epochs 400 --schedule constant --out run"
        ))
        .ok();
    let found = alarms(&place, &ran.stderr, "run");
    assert!(found.iter().any(|alarm| alarm.starts_with("validation at chance: ")), "{found:?}");
}

#[test]
fn images_of_both_splits_are_named() {
    let place = Place::new();
    let class = fs::read_dir(place.path("data/train")).unwrap().next().unwrap().unwrap().path();
    let name = class.file_name().unwrap().to_str().unwrap().to_owned();
    let image = fs::read_dir(&class).unwrap().next().unwrap().unwrap().path();
    fs::copy(&image, place.path("data/val").join(&name).join("again.png")).unwrap();
    let ran = place.run(&format!("{FAST} --epochs 1 --out run")).ok();
    let again =
        format!("{name}/again.png is {name}/{}", image.file_name().unwrap().to_str().unwrap());
    let compared = format!("1 of {} validation images", 10 * VAL + 1);
    only(&alarms(&place, &ran.stderr, "run"), &["shared images", &compared, &again]);
    // Nothing is looked for where nothing is watched.
    let ran = place.run(&format!("{FAST} --epochs 1 --no-watch --out unwatched")).ok();
    assert_eq!(alarms(&place, &ran.stderr, "unwatched"), Vec::<String>::new());
    let metrics = fs::read_to_string(place.path("unwatched/metrics.jsonl")).unwrap();
    assert!(!metrics.contains("layers"));
    let weights = |run: &str| fs::read(place.path(run).join("last/model.safetensors")).unwrap();
    assert_eq!(weights("run"), weights("unwatched"));
}
