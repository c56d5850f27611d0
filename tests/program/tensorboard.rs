//! What `train --tensorboard` writes, read back by a reader of its own.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::Instant;

use prost::Message;
use serde_json::Value as Json;
use zfnet::model::{Architecture, Network};
use zfnet_formats::tensorboard::proto::session_log::SessionStatus;
use zfnet_formats::tensorboard::proto::summary::value::Value;
use zfnet_formats::tensorboard::proto::{Event, event::What};

use crate::common::Random;
use crate::common::program::Place;

const TRAIN: &str = "train --data data --arch tiny.toml";
/// Updates of an epoch of the 60 pictures.
const STEPS: i64 = 4;

/// The events of a file, whose frames are checked, up to one that a kill has cut short.
fn events(file: &Path) -> Vec<Event> {
    let bytes = fs::read(file).unwrap();
    let mut rest = &bytes[..];
    let mut found = Vec::new();
    while !rest.is_empty() {
        let Some(length) = rest.first_chunk() else { break };
        let length = u64::from_le_bytes(*length) as usize;
        if rest.len() < 16 + length {
            break;
        }
        let data = &rest[12..12 + length];
        for (checked, sum) in [(&rest[..8], &rest[8..12]), (data, &rest[12 + length..16 + length])]
        {
            let crc = crc32c::crc32c(checked);
            let masked = crc.rotate_right(15).wrapping_add(0xa282_ead8);
            assert_eq!(masked.to_le_bytes(), sum);
        }
        found.push(Event::decode(data).unwrap());
        rest = &rest[16 + length..];
    }
    found
}

/// The sessions of a run, in the order of their files' names.
fn sessions(run: &Path) -> Vec<Vec<Event>> {
    let files = fs::read_dir(run).unwrap().map(|entry| entry.unwrap().path());
    let is_events = |file: &Path| file.file_name().unwrap().to_str().unwrap().starts_with("events");
    let mut files: Vec<_> = files.filter(|file| is_events(file)).collect();
    files.sort();
    files.iter().map(|file| events(file)).collect()
}

/// Values by tag, with their steps: what is left when each restart has taken back what it says.
fn shown(sessions: &[Vec<Event>]) -> BTreeMap<String, Vec<(i64, Value)>> {
    let mut shown: BTreeMap<String, Vec<(i64, Value)>> = BTreeMap::new();
    for session in sessions {
        let Some((first, events)) = session.split_first() else { continue }; // killed at once
        assert_eq!(first.what, Some(What::FileVersion("brain.Event:2".into())));
        for event in events {
            match event.what.as_ref().unwrap() {
                What::SessionLog(log) => {
                    assert_eq!(log.status(), SessionStatus::Start);
                    shown.values_mut().for_each(|of| of.retain(|(step, _)| *step < event.step));
                }
                What::Summary(summary) => {
                    for value in summary.value.clone() {
                        let of = shown.entry(value.tag).or_default();
                        of.push((event.step, value.value.unwrap()));
                    }
                }
                What::FileVersion(version) => panic!("{version} once more"),
            }
        }
    }
    shown
}

/// What the metrics of a run say of numbers, by the tags that they have in TensorBoard.
fn expected(run: &Path) -> BTreeMap<String, Vec<(i64, Value)>> {
    let mut expected: BTreeMap<String, Vec<(i64, Value)>> = BTreeMap::new();
    for line in fs::read_to_string(run.join("metrics.jsonl")).unwrap().lines() {
        let line: Json = serde_json::from_str(line).unwrap();
        let step = line["step"].as_i64().unwrap();
        let mut add = |tag: String, number: &Json| {
            let Some(number) = number.as_f64() else { return };
            expected.entry(tag).or_default().push((step, Value::SimpleValue(number as f32)));
        };
        match line["kind"].as_str().unwrap() {
            "step" => {
                add("train/loss".into(), &line["loss"]);
                add("train/learning_rate".into(), &line["rate"]);
            }
            "epoch" => {
                add("train/epoch_loss".into(), &line["train_loss"]);
                for what in ["loss", "top1_error", "top5_error"] {
                    add(format!("val/{what}"), &line[format!("val_{what}")]);
                }
            }
            "layers" => {
                for layer in line["layers"].as_array().unwrap() {
                    let name = layer["layer"].as_str().unwrap();
                    for what in ["activation_std", "gradient_std", "update", "initial_share"] {
                        add(format!("layers/{name}/{what}"), &layer[what]);
                    }
                    let [dead, maps] = ["dead", "maps"].map(|key| layer[key].as_f64().unwrap());
                    if maps > 0.0 {
                        add(format!("layers/{name}/dead_share"), &(dead / maps).into());
                    }
                }
            }
            _ => {}
        }
    }
    expected
}

fn steps(values: &[(i64, Value)]) -> Vec<i64> {
    values.iter().map(|(step, _)| *step).collect()
}

/// A run that is interrupted after its last checkpoint, and gone on with.
#[test]
fn no_step_stands_twice_and_all_is_as_in_the_metrics() {
    let place = Place::new();
    // Both splits have it, so that an alarm names it.
    let image = &place.images("data/train/disc")[0];
    fs::copy(image, place.path("data/val/disc/<b>![x](y_z).png")).unwrap();
    let run = place.path("run");
    place.run(&format!("{TRAIN} --max-steps 10 --keep 9 --out run --tensorboard")).ok();
    place.run(&format!("{TRAIN} --max-steps 14 --keep 9 --out run --tensorboard --resume")).ok();
    for lost in ["step-12", "step-14"] {
        fs::remove_dir_all(run.join(lost)).unwrap();
    }
    place.run(&format!("{TRAIN} --keep 9 --out run --tensorboard --resume")).ok();
    place.run(&format!("{TRAIN} --keep 9 --out whole")).ok();
    assert_eq!(place.results("run"), place.results("whole"), "events change nothing");

    let sessions = sessions(&run);
    let restarts: Vec<_> = sessions.iter().map(|session| &session[1]).collect();
    let is_restart = |event: &&Event| matches!(event.what, Some(What::SessionLog(_)));
    assert_eq!(restarts.iter().map(|&e| is_restart(&e)).collect::<Vec<_>>(), [false, true, true]);
    assert_eq!([restarts[1].step, restarts[2].step], [10, 10]);

    let mut shown = shown(&sessions);
    assert_eq!(steps(&shown["train/loss"]), (1..=16).collect::<Vec<_>>());
    let ends: Vec<i64> = (1..=4).map(|epoch| epoch * STEPS).collect();
    assert_eq!(steps(&shown["val/loss"]), ends);
    for (tag, numbers) in expected(&run) {
        assert_eq!(shown.remove(&tag).as_ref(), Some(&numbers), "{tag}");
    }
    let rates = shown.remove("train/images_per_second").unwrap();
    assert_eq!(steps(&rates), ends);

    let Value::Tensor(text) = &shown.remove("alarms/shared images").unwrap()[0].1 else {
        panic!("no text");
    };
    let text = String::from_utf8(text.string_val[0].clone()).unwrap();
    assert!(text.contains(r"disc/&lt;b&gt;!\[x\](y\_z).png and disc/"), "{text}");

    let network =
        Network::new(Architecture::find(place.path("tiny.toml").to_str().unwrap()).unwrap());
    let network = network.unwrap();
    for (layer, dims) in network.convolutions() {
        let made = layer.output.per_image() * 32;
        for (what, count) in [("weights", dims.filter().len()), ("activations", made)] {
            let histograms = shown.remove(&format!("{what}/{}", layer.name)).unwrap();
            assert_eq!(steps(&histograms), ends, "{what} of {}", layer.name);
            for (_, value) in histograms {
                let Value::Histo(found) = value else { panic!("no histogram") };
                assert_eq!(found.bucket.iter().sum::<f64>(), count as f64);
                assert_eq!(
                    (found.num, found.bucket.len()),
                    (count as f64, found.bucket_limit.len())
                );
                assert!(found.min < found.max && *found.bucket_limit.last().unwrap() > found.max);
            }
        }
    }
    // Eight filters of 5 x 5 pixels, six times as large, with three pixels between; six maps of each layer in two rows,
    // in tiles of their receptive fields' size, at least 64, with two pixels between.
    let tile = |field: usize| (field * 64usize.div_ceil(field)) as i32;
    let (one, two) = (tile(5), tile(network.layers[network.layer("conv2").unwrap()].field[0].size));
    for (tag, size) in [
        ("filters/conv1", [8 * 33 - 3, 30]),
        ("projections/conv1", [6 * (one + 2) - 2, 2 * (one + 2) - 2]),
        ("projections/conv2", [6 * (two + 2) - 2, 2 * (two + 2) - 2]),
    ] {
        let pictures = shown.remove(tag).unwrap();
        assert_eq!(steps(&pictures), [4, 8, 16], "epochs 1, 2 and the last: {tag}");
        for (_, value) in pictures {
            let Value::Image(found) = value else { panic!("no picture") };
            let png = image::load_from_memory(&found.encoded_image_string).unwrap().to_rgb8();
            assert_eq!([found.width, found.height], size, "{tag}");
            assert_eq!([png.width() as i32, png.height() as i32], size, "{tag}");
            assert!(png.as_raw().iter().any(|byte| *byte != png.as_raw()[0]), "{tag}");
        }
    }
    assert_eq!(shown.keys().collect::<Vec<_>>(), Vec::<&String>::new(), "nothing else");
}

/// Some die while they start, some amid a checkpoint, some amid pictures.
#[test]
fn kills_at_any_moment_leave_no_gap_and_nothing_twice() {
    let place = Place::new();
    let flags = "--epochs 24 --save-steps 3";
    let begun = Instant::now();
    place.run(&format!("{TRAIN} {flags} --out whole --tensorboard")).ok();
    let time = begun.elapsed();
    let mut random = Random(3);
    for _ in 0..20 {
        let mut child = place
            .command(&format!("{TRAIN} {flags} --out run --tensorboard --resume"))
            .stderr(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        thread::sleep(time.mul_f64(0.2 * f64::from(random.real().abs())));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    place.run(&format!("{TRAIN} {flags} --out run --tensorboard --resume")).ok();
    let run = place.path("run");
    let expected = expected(&run);
    assert_eq!(steps(&expected["train/loss"]), (1..=24 * STEPS).collect::<Vec<_>>());
    let (sessions, whole) = (sessions(&run), sessions(&place.path("whole")));
    assert!(sessions.len() > 4, "{} sessions only", sessions.len());
    let (mut shown, mut whole) = (shown(&sessions), shown(&whole));
    for (tag, numbers) in expected {
        assert_eq!(shown[&tag], numbers, "{tag}");
    }
    // Nothing keeps the rate of an epoch whose checkpoint a session begins with.
    let rates = [&mut shown, &mut whole].map(|of| of.remove("train/images_per_second").unwrap());
    assert!(rates[0].len() <= 24 && steps(&rates[0]).is_sorted_by(|a, b| a < b));
    assert_eq!(rates[1].len(), 24);
    assert!(shown == whole, "histograms and pictures are those of a run without kills");
}

#[test]
fn a_run_that_had_no_events_has_all_of_them_once_it_has_any() {
    let place = Place::new();
    let run = place.path("run");
    place.run(&format!("{TRAIN} --epochs 2 --out run")).ok();
    assert_eq!(sessions(&run), Vec::<Vec<Event>>::new());
    place.run(&format!("{TRAIN} --epochs 3 --out run --resume --tensorboard")).ok();
    let expected = expected(&run);
    assert_eq!(steps(&expected["train/loss"]), (1..=3 * STEPS).collect::<Vec<_>>());
    place.run(&format!("{TRAIN} --epochs 4 --out run --resume")).ok();
    let sessions = sessions(&run);
    assert_eq!(sessions.len(), 1, "none without the flag");
    let shown = shown(&sessions);
    for (tag, numbers) in expected {
        assert_eq!(shown[&tag], numbers, "{tag}");
    }
    assert_eq!(steps(&shown["weights/fc4"]), [8, 12], "of what there are checkpoints");
}

/// Events are for people: a full disk ends no training.
#[test]
fn what_cannot_be_written_is_told_once() {
    let place = Place::new();
    place.run(&format!("{TRAIN} --epochs 12 --out whole")).ok();
    let limits = "trap '' XFSZ; ulimit -f 128";
    let ran = place.run_limited(limits, &format!("{TRAIN} --epochs 12 --out run --tensorboard"));
    let ran = ran.ok();
    let told =
        "no more events for TensorBoard, training goes on: cannot write run/events.out.tfevents.";
    assert_eq!(ran.stderr.matches(told).count(), 1, "{}", ran.stderr);
    assert_eq!(place.results("run"), place.results("whole"));
}
