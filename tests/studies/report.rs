//! The report of a run, on what commands have really written.

use std::fs;

use crate::common::page::{attributes, check_links};
use crate::common::program::Place;
use zfnet::report::figure::{Figure, Picture, Section};

#[test]
fn a_run_is_reported_with_what_was_made_of_it() {
    let place = Place::new();
    place.run("train --data data --arch tiny.toml --out run --epochs 2").ok();
    let bare = place.run("study report run").ok();
    assert!(bare.stderr.contains("no study of this run"), "{}", bare.stderr);
    let out = place.path("run/report");
    let html = fs::read_to_string(out.join("index.html")).unwrap();
    check_links(&out, &html);
    assert_eq!(attributes(&html, "src"), ["training/loss.svg", "training/error.svg"]);
    assert!(html.contains("2 of 2 epochs") && html.contains("zfnet study features"));

    place.run("top9 --checkpoint run --data data --out run/report/features").ok();
    let picture = Picture { file: "a.svg".into(), size: [9, 9], ..Picture::default() };
    let section = Section { pictures: vec![picture], ..Section::default() };
    let figure = |file: &str| {
        let mut figure = Figure { sections: vec![section.clone()], ..Figure::default() };
        figure.sections[0].pictures[0].file = file.into();
        figure
    };
    for (folder, file) in [("good", "a.svg"), ("missing", "b.svg"), ("outside", "../good/a.svg")] {
        let folder = out.join(folder);
        figure(file).write(&folder).unwrap();
        fs::write(folder.join("a.svg"), "<svg/>").unwrap();
    }
    fs::create_dir(out.join("broken")).unwrap();
    fs::write(out.join("broken/figure.json"), "{").unwrap();
    fs::create_dir(out.join("other")).unwrap();

    let ran = place.run("study report run").ok();
    assert_eq!(ran.stdout.trim(), "run/report/index.html");
    for word in ["missing: b.svg is missing", "outside: figure.json: names a file", "broken: "] {
        assert!(ran.stderr.contains(word), "`{word}` is not in {}", ran.stderr);
    }
    assert_eq!(ran.stderr.matches("left out").count(), 3, "{}", ran.stderr);
    let html = fs::read_to_string(out.join("index.html")).unwrap();
    check_links(&out, &html);
    for id in ["conv1", "conv1/0", "conv2/11", "study.training", "study.features", "study.good"] {
        assert!(attributes(&html, "id").contains(&id), "{id}");
    }
    assert!(!html.contains("study.outside") && !html.contains("zfnet study features"));
    // The same once more is the same page.
    place.run("study report run").ok();
    assert_eq!(fs::read_to_string(out.join("index.html")).unwrap(), html);
}

#[test]
fn what_is_no_run_has_no_report() {
    let place = Place::new();
    place.run("study report nowhere").refused(&["nowhere", "no run"]);
    place.run("study report data").refused(&["data", "no run"]);
}
