//! What was watched in training: on metrics written by hand, and end to end through the program.

use std::fs;
use std::path::Path;

use crate::common::page::{attributes, check_links};
use crate::common::program::Place;
use serde_json::{Value, json};
use zfnet::backend::cpu::CpuBackend;
use zfnet::report;
use zfnet::study::Session;
use zfnet::study::diagnose::{Diagnosis, run};

fn layer(name: &str, activation_std: Value, dead: usize) -> Value {
    json!({
        "layer": name, "activation_mean": 0.5, "activation_std": activation_std, "gradient_std": 1e-4,
        "weight_rms": 0.1, "update": 0.002, "dead": dead, "maps": 4, "initial_share": 0.25
    })
}

/// Two epochs of two updates, in the second of which conv1 dies and a class with an evil name is missed.
fn metrics() -> Vec<Value> {
    let step = |step, epoch, loss| json!({"kind": "step", "step": step, "epoch": epoch, "loss": loss, "rate": 0.1});
    let ended = |step, epoch, loss: Value| {
        json!({
            "kind": "epoch", "step": step, "epoch": epoch, "train_loss": 2.0, "val_loss": loss,
            "val_top1_error": 0.5, "val_top5_error": 0.25, "rate": 0.1
        })
    };
    let layers = |step, epoch, of: [Value; 2]| json!({"kind": "layers", "step": step, "epoch": epoch, "images": 8, "input_std": 1.0, "layers": of});
    let alarm = |sign: Value, remedy: Value| json!({"kind": "alarm", "step": 4, "epoch": 2, "alarm": {"sign": sign, "cause": "<i>cause</i>", "remedy": remedy}});
    vec![
        step(1, 1, 2.5),
        step(2, 1, 1.5),
        ended(2, 1, json!(1.75)),
        layers(2, 1, [layer("conv1", json!(0.75), 0), layer("fc2", json!(null), 0)]),
        json!({"kind": "hologram", "step": 2, "what": [1, 2]}),
        step(3, 2, 1.0),
        step(4, 2, 3.0),
        ended(4, 2, json!(null)),
        layers(4, 2, [layer("conv1", json!(0.0), 3), layer("fc2", json!(0.5), 1)]),
        alarm(
            json!({"dead": {"layer": "conv1", "dead": 3, "maps": 4, "images": 8}}),
            json!("he-initialization"),
        ),
        alarm(
            json!({"never-predicted": {"classes": ["<script>\u{7}tench"], "epochs": 3}}),
            json!("check-images"),
        ),
    ]
}

/// Writes these lines, and an end that was cut, into a folder, and looks at it.
fn diagnosed(folder: &Path, lines: &[Value], end: &str) -> (Diagnosis, String) {
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("metrics.jsonl"), text + end).unwrap();
    let backend = CpuBackend::new(Some(1)).unwrap();
    let found = run(&mut Session::new(&backend), folder).unwrap();
    let out = folder.join("page");
    fs::create_dir_all(&out).unwrap();
    let page = report::diagnose::write(&out, &found).unwrap();
    let html = fs::read_to_string(page).unwrap();
    check_links(&out, &html);
    (found, html)
}

#[test]
fn what_was_written_down_is_what_is_shown() {
    let folder = tempfile::tempdir().unwrap();
    let cut = r#"{"kind":"step","step":5,"epo"#;
    let (found, html) = diagnosed(folder.path(), &metrics(), cut);
    let losses: Vec<(u32, f64)> = found.record.losses.iter().map(|l| (l.step, l.loss)).collect();
    assert_eq!(losses, [(1, 2.5), (2, 1.5), (3, 1.0), (4, 3.0)]);
    assert_eq!(found.record.unreadable, 0);
    assert_eq!(found.record.steps_per_epoch(), Some(2.0));
    let stds: Vec<Vec<f64>> = found
        .record
        .watched
        .iter()
        .map(|watched| watched.layers.iter().map(|layer| layer.activation_std).collect())
        .collect();
    assert_eq!((stds[0][0], &stds[1][..]), (0.75, &[0.0, 0.5][..]));
    assert!(stds[0][1].is_nan());

    let out = folder.path().join("page");
    let csv = fs::read_to_string(out.join("layers.csv")).unwrap();
    let rows: Vec<&str> = csv.lines().collect();
    assert_eq!(rows.len(), 5, "{csv}");
    assert_eq!(rows[1], "1,2,conv1,0.5,0.75,0.0001,0.1,0.002,0,4,0.25");
    assert_eq!(rows[2], "1,2,fc2,0.5,NaN,0.0001,0.1,0.002,0,4,0.25");
    let json: Value =
        serde_json::from_slice(&fs::read(out.join("diagnose.json")).unwrap()).unwrap();
    assert_eq!(json["watched"][1]["layers"][0]["dead"], 3);
    assert_eq!(json["epochs"][1]["val_loss"], Value::Null);

    // Alarms say when, what, why and what to do; nothing of a file is markup, nor a control character.
    let dead = "1. Epoch 2, update 4: dead. Seen: 3 of 4 maps of conv1 fired for none of the 8 images looked at lately. \
                Likely: &lt;i&gt;cause&lt;/i&gt;. Try initial weights by He et al.";
    assert!(html.contains(dead), "{html}");
    assert!(
        html.contains(
            "2. Epoch 2, update 4: never predicted. Seen: &lt;script&gt;\u{fffd}tench was"
        )
    );
    assert!(!html.contains('\u{7}') && !html.contains("<script>\u{fffd}"));
    assert!(html.contains("75 %") || html.contains("3 of 4"), "the last epoch's table");
    assert!(!html.contains("No alarm") && !html.contains("cannot be read"));
    // Both alarms are of one moment, the end of epoch 2: one line with both numbers in each plot.
    for plot in ["loss.svg", "error.svg", "activations.svg", "dead.svg", "initial-share.svg"] {
        assert!(attributes(&html, "src").contains(&plot), "{plot}");
        let svg = fs::read_to_string(out.join(plot)).unwrap();
        assert!(svg.contains("1–2"), "{plot}: {svg}");
    }
    let svg = fs::read_to_string(out.join("activations.svg")).unwrap();
    let circles = svg.matches("<circle ").count();
    assert_eq!(circles, 5, "three of four layers' and two of the input are finite: {svg}");
}

#[test]
fn a_run_that_was_not_watched_says_so_and_one_without_alarms_too() {
    let folder = tempfile::tempdir().unwrap();
    let of = |kinds: &[&str]| -> Vec<Value> {
        let lines = metrics().into_iter();
        lines.filter(|line| kinds.contains(&line["kind"].as_str().unwrap())).collect()
    };
    let (_, html) = diagnosed(&folder.path().join("a"), &of(&["step", "epoch"]), "");
    assert!(html.contains("was not watched") && html.contains("--no-watch"), "{html}");
    assert!(!html.contains("activations.svg") && html.contains("loss.svg"));
    let (_, html) = diagnosed(&folder.path().join("b"), &of(&["step", "epoch", "layers"]), "x\n");
    assert!(html.contains("No alarm: ") && html.contains("2 epochs (4 updates)"), "{html}");
    assert!(html.contains("1 line of metrics.jsonl cannot be read"), "{html}");
    let (_, html) = diagnosed(&folder.path().join("c"), &of(&["step"]), "");
    assert!(html.contains("No epoch has ended yet (4 updates)"), "{html}");
    let (_, html) = diagnosed(&folder.path().join("d"), &[], "");
    assert!(html.contains("No epoch has ended yet (0 updates)"), "{html}");
    // An alarm in the first epoch is told, whatever is not known of the layers.
    let (_, html) = diagnosed(&folder.path().join("e"), &of(&["step", "alarm"]), "");
    assert!(html.contains("1. Epoch 2") && html.contains("No epoch has ended"), "{html}");
}

#[test]
fn a_training_is_diagnosed_and_its_report_shows_the_alarms() {
    let place = Place::new();
    place.run("train --data data --arch tiny.toml --out run --epochs 2 --keep 99").ok();
    let ran = place.run("study diagnose run").ok();
    assert_eq!(ran.stdout.trim(), "run/report/diagnose/index.html");
    let out = place.path("run/report/diagnose");
    let html = fs::read_to_string(out.join("index.html")).unwrap();
    check_links(&out, &html);
    let sheets: Vec<&str> =
        attributes(&html, "src").into_iter().filter(|src| src.contains("one-scale")).collect();
    let steps = ["initial", "4", "8"].map(|step| format!("first-one-scale-{step}.png"));
    assert_eq!(sheets, steps, "the start is drawn again, and not shown twice");
    assert!(html.contains("After epoch 1, update 4") && html.contains("fc4"), "{html}");
    let bytes = fs::read(out.join("diagnose.json")).unwrap();
    let found: Value = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(found["watched"].as_array().unwrap().len(), 2);
    assert_eq!(found["network"], "tiny");

    // Alarms of this run stand in its report, with a link to the page if there is one.
    let path = place.path("run/metrics.jsonl");
    let alarm = metrics().pop().unwrap();
    fs::write(&path, format!("{}{alarm}\n", fs::read_to_string(&path).unwrap())).unwrap();
    let report = place.path("run/report");
    let reported = || {
        place.run("study report run").ok();
        let html = fs::read_to_string(report.join("index.html")).unwrap();
        check_links(&report, &html);
        let training = html.split("id=\"study.training\"").nth(1).unwrap();
        training.split("</section>").next().unwrap().to_owned()
    };
    let with_page = reported();
    assert!(with_page.contains("never predicted. Seen: &lt;script&gt;"), "{with_page}");
    assert!(with_page.contains("Likely: &lt;i&gt;cause"), "{with_page}");
    assert!(with_page.contains("href=\"#study.diagnose\""), "{with_page}");
    fs::remove_dir_all(&out).unwrap();
    let without = reported();
    assert!(without.contains("never predicted") && without.contains("zfnet study diagnose"));
    assert!(!without.contains("#study.diagnose"), "{without}");

    fs::write(&path, "no JSON\n").unwrap();
    place.run("study diagnose run").refused(&["metrics.jsonl", "found no line of that"]);
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    place.run("study diagnose run").refused(&["metrics.jsonl", "expected a file"]);
    place.run("study diagnose nowhere").refused(&["nowhere", "is no run", "metrics.jsonl"]);
    assert!(!place.path("nowhere").exists(), "nothing is made for what is no run");
    place.run("study diagnose data").refused(&["data", "is no run"]);
}

/// What is damaged, or of an image but no convolution, keeps nobody from the curves.
#[test]
fn damaged_checkpoints_are_left_out() {
    let place = Place::new();
    place.run("train --data data --arch tiny.toml --out run --max-steps 5 --keep 99").ok();
    fs::write(place.path("run/step-4/model.safetensors"), "x").unwrap();
    let ran = place.run("study diagnose run --out page").ok();
    assert!(ran.stderr.contains("left out") && ran.stderr.contains("step-4"), "{}", ran.stderr);
    let html = fs::read_to_string(place.path("page/index.html")).unwrap();
    assert!(html.contains("In epoch 2, update 5") && html.contains("Left out: "), "{html}");
    assert!(!html.contains("-4.png"), "{html}");
}
