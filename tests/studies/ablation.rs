//! Tables 2 and 3 through the program: ensembles are what `eval` says, ablations what `train` makes.

use std::fs;
use std::path::Path;

use crate::common::page::check_links;
use crate::common::program::{Place, VARIANTS};
use serde_json::Value;
use zfnet::backend::Precision;
use zfnet::model::{Architecture, Network};
use zfnet::study::ablation::{Ablation, TrainedRun, TrainedVariant, read};
use zfnet::study::ensemble::Errors;

const ABLATION: &str = "study ablation --config variants.toml --data data --out out";

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// What a study's table is made of.
fn pages(out: &Path) -> [Vec<u8>; 4] {
    ["index.html", "figure.json", "ablation.json", "ablation.csv"]
        .map(|file| fs::read(out.join(file)).unwrap())
}

#[test]
fn rows_are_what_train_and_eval_say() {
    let place = Place::with_variants();
    let ran = place.run(&format!("{ABLATION} --seed 5")).ok();
    assert_eq!(ran.stdout.trim(), "out/index.html");
    for word in ["1 of 3: tiny (base)", "3 of 3: wider", "left for all networks"] {
        assert!(ran.stderr.contains(word), "`{word}` is not in {}", ran.stderr);
    }
    let json = read_json(&place.path("out/ablation.json"));
    let rows = json["rows"].as_array().unwrap();
    let names: Vec<_> = rows.iter().map(|row| row["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["tiny (base)", "without <2>", "wider"]);
    assert_eq!(rows[1]["paper"]["val"], 45.4);

    // The base as `train` makes it, with the flags that stand for the file's recipe.
    let train =
        "train --data data --arch tiny.toml --out whole --seed 5 --epochs 2 --steps 1 --no-watch";
    place.run(train).ok();
    assert_eq!(place.results("out/runs/base"), place.results("whole"));
    // Each row as `eval` measures it.
    for (row, run) in rows.iter().zip(["base", "without-2", "wider"]) {
        let row = &row["runs"][0];
        assert_eq!((row["seed"].as_u64(), &row["run"]), (Some(5), &format!("runs/{run}").into()));
        for split in ["train", "val"] {
            let eval =
                format!("eval --checkpoint out/runs/{run}/last --data data --crops 1 --json");
            assert_eq!(place.run(&format!("{eval} --split {split}")).json(), row[split]);
        }
        place.run(&format!("study report out/runs/{run}")).ok();
    }
    // conv1 has filters of 5x5x3, conv2 of 3x3; fc3 reads 3x3 places, fc4 gives ten classes.
    let parameters: Vec<_> = rows.iter().map(|row| row["parameters"].as_u64().unwrap()).collect();
    let ends = |conv1: u64, fc3: u64| 76 * conv1 + 10 * (fc3 + 1);
    let base = ends(8, 16) + 12 * (9 * 8 + 1) + 16 * (9 * 12 + 1);
    let without = ends(8, 16) + 16 * (9 * 8 + 1);
    let wider = ends(10, 24) + 12 * (9 * 10 + 1) + 24 * (9 * 12 + 1);
    assert_eq!(parameters, [base, without, wider]);

    let html = fs::read_to_string(place.path("out/index.html")).unwrap();
    check_links(&place.path("out"), &html);
    assert!(html.contains("without &lt;2&gt;") && html.contains("a &lt; note"));
    assert!(!place.path("out/.parts").exists());

    // The same once more trains nothing and says the same.
    let before = pages(&place.path("out"));
    let stamp = || fs::metadata(place.path("out/runs/wider/last/state.json")).unwrap().modified();
    let stamped = stamp().unwrap();
    let again = place.run(&format!("{ABLATION} --seed 5")).ok();
    assert!(!again.stderr.contains("epoch 1:"), "{}", again.stderr);
    assert_eq!(stamp().unwrap(), stamped);
    assert_eq!(pages(&place.path("out")), before);

    // Another seed is added to what there is.
    assert!(!String::from_utf8(before[0].clone()).unwrap().contains("What the seeds leave open"));
    let added = place.run(&format!("{ABLATION} --seed 5 --seeds 2")).ok();
    assert!(added.stderr.contains("4 of 6: tiny (base), seed 6"), "{}", added.stderr);
    assert_eq!(stamp().unwrap(), stamped);
    place.run(&train.replace("--out whole --seed 5", "--out other --seed 6")).ok();
    assert_eq!(place.results("out/seed-6/base"), place.results("other"));
    let json = read_json(&place.path("out/ablation.json"));
    assert_eq!(json["seeds"], serde_json::json!([5, 6]));
    for (row, now) in rows.iter().zip(json["rows"].as_array().unwrap()) {
        assert_eq!(row["runs"][0], now["runs"][0]);
        assert_eq!(
            (now["runs"].as_array().unwrap().len(), &now["runs"][1]["seed"]),
            (2, &6.into())
        );
    }
    let html = fs::read_to_string(place.path("out/index.html")).unwrap();
    check_links(&place.path("out"), &html);
    assert!(html.contains("What the seeds leave open") && html.contains("Means over 2 seeds"));
    let csv = fs::read_to_string(place.path("out/ablation.csv")).unwrap();
    assert_eq!(csv.lines().count(), 1 + 3 * 2);
    // One seed again says what it said.
    place.run(&format!("{ABLATION} --seed 5")).ok();
    assert_eq!(pages(&place.path("out")), before);

    // With anything else nothing goes on, and nothing is touched.
    let refused = |flags: &str, words: &[&str]| {
        place.run(&format!("{ABLATION} {flags}")).refused(words);
    };
    refused("--seed 6", &["base/variant.json", "another seed", "5 then, 6 now", "--out"]);
    refused("--seed 5 --epochs 3", &["another recipe", "epochs = 2", "epochs = 3"]);
    let other = VARIANTS.replace("fc3 = 24", "fc3 = 25").replace("\"without <2>\"", "\"new\"");
    fs::write(place.path("variants.toml"), other).unwrap();
    refused("--seed 5", &["wider/variant.json", "another network", "Some(24)", "Some(25)"]);
    assert!(!place.path("out/runs/new").exists(), "all are checked before one is trained");
    fs::write(place.path("variants.toml"), VARIANTS).unwrap();
    let val = place.images("data/val").remove(0);
    fs::remove_file(place.images(val.to_str().unwrap()).remove(0)).unwrap();
    refused("--seed 5", &["another set of validation images", "20 files", "19 files"]);
    assert_eq!(pages(&place.path("out")), before);
}

/// By hand: squares of deviations 2 x 4, 2 x 4 and 2 x 1, in all 18 points squared of 3 degrees of freedom; the standard
/// deviation is 2.45 points, Student's t 3.182, and two means of two differ by more than 7.79 points.
#[test]
fn differences_are_set_against_those_between_seeds() {
    let run = |seed: u64, error: f64| {
        let of = |top1_error: f64| Errors { top1_error, top5_error: 0.0, images: 100 };
        TrainedRun { seed, run: format!("runs/{seed}"), train: of(error / 2.0), val: of(error) }
    };
    let row = |name: &str, errors: [f64; 2]| TrainedVariant {
        name: name.into(),
        parameters: 1,
        runs: vec![run(3, errors[0]), run(4, errors[1])],
        paper: None,
    };
    let found = Ablation {
        facts: Vec::new(),
        base: Architecture::find("zfnet-mini").unwrap(),
        seed: 3,
        precision: Precision::F32,
        note: String::new(),
        rows: vec![row("base", [0.30, 0.34]), row("v", [0.54, 0.50]), row("w", [0.33, 0.35])],
    };
    let out = tempfile::tempdir().unwrap();
    zfnet::report::ablation::write(out.path(), &found).unwrap();
    let figure = read_json(&out.path().join("figure.json"));
    let main = &figure["sections"][0]["tables"][0]["rows"];
    assert_eq!((&main[1][3], &main[1][2]), (&"52.0".into(), &"26.0".into()));
    let table = &figure["sections"][1]["tables"][0];
    let expected = serde_json::json!([
        ["1. base", "30.0", "34.0", "32.0", "–", "–", "3"],
        ["2. v", "54.0", "50.0", "52.0", "+20.0", "yes", "–"],
        ["3. w", "33.0", "35.0", "34.0", "+2.0", "no", "1"],
    ]);
    assert_eq!(table["rows"], expected);
    let note = table["notes"][0].as_str().unwrap();
    for said in ["2.45 points", "3 degrees", "7.79 points"] {
        assert!(note.contains(said), "{note}");
    }
    let caption = &figure["sections"][1]["tables"][1]["caption"];
    assert!(caption.as_str().unwrap().contains("training images"));
}

/// Ctrl-C saves the run in hand and ends the program as `train` does.
#[cfg(unix)]
#[test]
fn signals_save_and_say_so() {
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    let place = Place::with_variants();
    let mut command = place.command(&format!("{ABLATION} --epochs 100000"));
    let child = command.stderr(Stdio::piped()).spawn().unwrap();
    let patience = Instant::now();
    while !place.path("out/runs/base/last/state.json").exists() {
        assert!(patience.elapsed() < Duration::from_secs(60), "no checkpoint in a minute");
        std::thread::sleep(Duration::from_millis(20));
    }
    let kill = format!("kill -INT {}", child.id());
    assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert!(String::from_utf8(output.stderr).unwrap().contains("go on with the same command"));
    assert!(!place.path("out/runs/without-2").exists());
    assert!(!place.path("out/index.html").exists());
}

#[test]
fn files_that_make_no_ablation() {
    let place = Place::with_variants();
    let try_file = |text: &str, words: &[&str]| {
        fs::write(place.path("variants.toml"), text).unwrap();
        place.run(ABLATION).refused(&[&["variants.toml"], words].concat());
    };
    let one = |variant: &str| format!("base = \"tiny.toml\"\n[[variant]]\nname = \"v\"\n{variant}");
    try_file("base = \"tiny.toml\"", &["at least one [[variant]]"]);
    try_file("base = \"zfnet-maxi\"\n[[variant]]\nname = \"v\"", &["zfnet-maxi", "zfnet-mini"]);
    try_file(&one("remove = [\"conv2\"]"), &["unknown field `remove`", "drop", "line 4"]);
    try_file(&one("drop = [\"conv7\"]"), &["variant `v`", "no layer `conv7`", "conv2, relu2"]);
    try_file(&one("channels = { conv7 = 3 }"), &["variant `v`", "no layer `conv7`", "conv2"]);
    try_file(&one("channels = { pool1 = 3 }"), &["variant `v`", "pool1", "no channels"]);
    try_file(&one("channels = { fc4 = 3 }"), &["fc4", "one output for each class"]);
    try_file(&one("channels = { conv2 = 0 }"), &["variant `v`", "conv2", "found 0"]);
    try_file(&one("channels = { conv2 = -1 }"), &["line 4", "-1"]);
    try_file(&one("channels = { fc3 = 70000 }"), &["fc3", "65535", "70000"]);
    try_file(&one("channels = { fc3 = 16 }"), &["variant `v`", "is the base"]);
    try_file(&one("drop = []"), &["variant `v`", "is the base"]);
    try_file(&one("drop = [\"fc4\"]"), &["fc4", "gives the classes"]);
    let both = "drop = [\"conv2\"]\nchannels = { conv2 = 3 }";
    try_file(&one(both), &["conv2", "is dropped"]);
    // Without its pool a layer has too many weights, and without what comes before a filter does not fit.
    let tiny = fs::read_to_string(place.path("tiny.toml")).unwrap();
    let large = tiny.replace("size = 16, resize = 20", "size = 256, resize = 256");
    fs::write(place.path("large.toml"), large.replace("outputs = 16", "outputs = 20000")).unwrap();
    let large = one("drop = [\"pool1\"]").replace("tiny.toml", "large.toml");
    try_file(&large, &["variant `v`", "fc3", "at most"]);
    let conv3 = "{ type = \"conv\", name = \"conv3\", channels = 4, kernel = 5 },\n{ type = \"fc\", name = \"fc3\"";
    let deep = tiny.replace("kernel = 3, pad = 1", "kernel = 3, pad = 2");
    let deep = deep.replace("{ type = \"fc\", name = \"fc3\"", conv3);
    fs::write(place.path("deep.toml"), deep).unwrap();
    let deep = one("drop = [\"conv2\"]").replace("tiny.toml", "deep.toml");
    try_file(&deep, &["variant `v`", "conv3", "fits into its input of 3x3", "kernel 5"]);
    let twice =
        format!("{}\n[[variant]]\nname = \"V\"\ndrop = [\"fc3\"]", one("drop = [\"conv2\"]"));
    try_file(&twice, &["variant `V`", "that of `v`", "runs/v"]);
    try_file(&one("drop = [\"fc3\"]").replace("\"v\"", "\"base\""), &["`base`", "runs/base"]);
    try_file(&one("drop = [\"fc3\"]").replace("\"v\"", "\"../!\""), &["`../!`", "letters"]);
    let recipe = |line: &str| format!("{}\n[recipe]\n{line}", one("drop = [\"fc3\"]"));
    try_file(&recipe("epoch = 3"), &["[recipe]", "unknown field `epoch`", "epochs"]);
    try_file(&recipe("momentum = 2.0"), &["momentum", "found 2"]);
    let paper = one("drop = [\"fc3\"]\npaper = { train = 1, val = 101, top5 = 3 }");
    try_file(&paper, &["`v`", "per cent", "101"]);
    fs::write(place.path("variants.toml"), VARIANTS).unwrap();
    place.run(&ABLATION.replace("--data data", "--data nowhere")).refused(&["nowhere"]);
    place.run(&format!("{ABLATION} --momentum 2")).refused(&["momentum", "found 2"]);
    assert!(!place.path("out").join("runs").exists(), "nothing is trained");
}

/// Weights and biases of every network in a file, and the numbers of the paper's rows.
#[test]
fn the_shipped_files_are_the_papers_rows() {
    let file = |name: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name);
        let rows = read(&path).unwrap().rows;
        let count = |row: &zfnet::study::ablation::VariantPlan| {
            let network = Network::new(row.architecture.clone()).unwrap();
            let paper = row.paper.clone().expect("every row is of the paper");
            (network.parameters(), [paper.train, paper.val, paper.top5])
        };
        rows.iter().map(count).collect::<Vec<_>>()
    };
    // Weights and biases by hand. ZFNet's and AlexNet's layers 1, and those they share:
    let (zf1, alex1, conv2) = (14_208, 34_944, 614_656);
    let (conv3, conv4, conv5) = (885_120, 1_327_488, 884_992);
    let (fc6, fc7, fc8) = (37_752_832, 16_781_312, 4_097_000);
    let convolutions = conv2 + conv3 + conv4 + conv5;
    let narrow = 18_876_416 + 4_196_352 + 2_049_000; // 9216 to 2048 to 2048 to 1000
    let broad = 75_505_664 + 67_117_056 + 8_193_000; // 9216 to 8192 to 8192 to 1000
    let maps = 1_180_160 + 4_719_616 + 4_719_104; // 256 to 512 to 1024 to 512
    let broad_on_maps = 151_003_136 + 67_117_056 + 8_193_000; // 18432 to 8192 to 8192 to 1000
    assert_eq!(
        file("ablation-paper.toml"),
        [
            (62_357_608, [33.1, 38.4, 16.5]),
            (zf1 + convolutions + narrow, [38.2, 40.2, 17.6]),
            (zf1 + convolutions + broad, [22.0, 38.8, 17.0]),
            (107_627_624, [18.8, 37.5, 16.0]),
            (zf1 + conv2 + maps + broad_on_maps, [10.0, 38.3, 16.9]),
        ]
    );
    let short = conv2 + 590_080; // conv5 reads the 256 maps of layer 2
    let straight = 9_217_000; // 9216 to 1000
    assert_eq!(
        file("ablation-paper-alexnet.toml"),
        [
            (62_378_344, [35.1, 40.5, 18.1]),
            (alex1 + short + fc6 + fc7 + fc8, [41.8, 45.4, 22.1]),
            (alex1 + convolutions + fc6 + fc8, [27.4, 40.0, 18.4]),
            (alex1 + convolutions + straight, [27.4, 44.8, 22.4]),
            (alex1 + short + straight, [71.1, 71.3, 50.1]),
            (alex1 + convolutions + narrow, [40.3, 41.7, 18.8]),
            (alex1 + convolutions + broad, [26.8, 40.0, 18.1]),
        ]
    );
    // zfnet-mini has 48, 96, 192, 192, 128 maps, 4x4 of them at the end, and ten classes.
    let low = 7_104 + 115_296;
    let convolutions = low + 166_080 + 331_968 + 221_312;
    let short = low + 110_720;
    let maps = low + 221_440 + 1_180_160 + 1_179_904;
    let (fc6, fc7, fc8, straight) = (1_049_088, 262_656, 5_130, 20_490);
    assert_eq!(
        file("ablation-zfnet-mini.toml"),
        [
            (convolutions + fc6 + fc7 + fc8, [33.1, 38.4, 16.5]),
            (short + fc6 + fc7 + fc8, [41.8, 45.4, 22.1]),
            (convolutions + fc6 + fc8, [27.4, 40.0, 18.4]),
            (convolutions + straight, [27.4, 44.8, 22.4]),
            (short + straight, [71.1, 71.3, 50.1]),
            (convolutions + 524_544 + 65_792 + 2_570, [38.2, 40.2, 17.6]),
            (convolutions + 2_098_176 + 1_049_600 + 10_250, [22.0, 38.8, 17.0]),
            (maps + 2_097_664 + fc7 + fc8, [18.8, 37.5, 16.0]),
            (maps + 4_195_328 + 1_049_600 + 10_250, [10.0, 38.3, 16.9]),
        ]
    );
    // Half of all these widths, and 3x3 places.
    let low = 3_552 + 28_848;
    let convolutions = low + 41_568 + 83_040 + 55_360;
    let short = low + 27_712;
    let maps = low + 55_424 + 295_168 + 295_040;
    let (fc6, fc7, fc8, straight) = (147_712, 65_792, 2_570, 5_770);
    assert_eq!(
        file("../benches/record/ablation-48.toml"),
        [
            (convolutions + fc6 + fc7 + fc8, [33.1, 38.4, 16.5]),
            (short + fc6 + fc7 + fc8, [41.8, 45.4, 22.1]),
            (convolutions + fc6 + fc8, [27.4, 40.0, 18.4]),
            (convolutions + straight, [27.4, 44.8, 22.4]),
            (short + straight, [71.1, 71.3, 50.1]),
            (convolutions + 73_856 + 16_512 + 1_290, [38.2, 40.2, 17.6]),
            (convolutions + 295_424 + 262_656 + 5_130, [22.0, 38.8, 17.0]),
            (maps + 295_168 + fc7 + fc8, [18.8, 37.5, 16.0]),
            (maps + 590_336 + 262_656 + 5_130, [10.0, 38.3, 16.9]),
        ]
    );
}

/// A layer that is dropped takes its relu and dropout along, and others keep their names.
#[test]
fn layers_keep_their_names() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/ablation-zfnet-mini.toml");
    let rows = read(&path).unwrap().rows;
    let names = |row: usize| {
        let network = Network::new(rows[row].architecture.clone()).unwrap();
        network.layers.iter().map(|layer| layer.name.clone()).collect::<Vec<_>>().join(" ")
    };
    let low = "conv1 relu1 pool1 norm1 conv2 relu2 pool2 norm2";
    assert_eq!(names(1), format!("{low} conv5 relu5 pool5 fc6 relu6 drop6 fc7 relu7 drop7 fc8"));
    assert_eq!(names(4), format!("{low} conv5 relu5 pool5 fc8"));
    assert!(rows.iter().all(|row| row.architecture.recipe == rows[0].architecture.recipe));
    assert_eq!(rows[0].architecture.recipe.epochs, 10);
    assert_eq!(rows[0].architecture.recipe.momentum, 0.9);
}

#[test]
fn an_ensemble_is_what_eval_says() {
    let place = Place::new();
    // Another input size, so that each sees the images in its own.
    let tiny = fs::read_to_string(place.path("tiny.toml")).unwrap();
    let other = tiny.replace("size = 16, resize = 20", "size = 18, resize = 24");
    assert_ne!(other, tiny);
    fs::write(place.path("other.toml"), other).unwrap();
    place.run("train --data data --arch tiny.toml --out a").ok();
    place.run("train --data data --arch other.toml --out b --seed 3").ok();
    let eval = |models: &str, crops: u32| {
        let command = format!("eval --checkpoint {models} --data data --crops {crops} --json");
        place.run(&command).json()
    };
    let ensemble = |models: &str, out: &str| {
        let command = format!("study ensemble --checkpoint {models} --data data --out {out}");
        let ran = place.run(&command).ok();
        assert_eq!(ran.stdout.trim(), format!("{out}/index.html"));
        let html = fs::read_to_string(place.path(out).join("index.html")).unwrap();
        check_links(&place.path(out), &html);
        assert!(html.contains("six averaged") && !place.path(out).join(".parts").exists());
        let rows = read_json(&place.path(out).join("ensemble.json"))["rows"].clone();
        rows.as_array().unwrap().clone()
    };
    let expect = |row: &Value, models: &str| {
        assert_eq!(row["one_crop"], eval(models, 1), "{models}");
        assert_eq!(row["ten_crops"], eval(models, 10), "{models}");
    };
    let rows = ensemble("a b a", "out");
    assert_eq!(rows.len(), 4);
    for (row, models) in rows.iter().zip(["a", "b", "a", "a b a"]) {
        expect(row, models);
    }
    assert_eq!(rows[1]["name"], "2: b");
    let twice = ensemble("a a", "twice");
    assert_eq!(twice[2]["name"], "all 2 averaged");
    expect(&twice[2], "a");
    assert_ne!(rows[0]["ten_crops"], rows[1]["ten_crops"], "the networks differ");

    // Rows that were finished are taken as they are, if they were of the same networks.
    let csv = fs::read(place.path("out/ensemble.csv")).unwrap();
    assert_eq!(String::from_utf8(csv).unwrap().lines().count(), 1 + 4 * 2);

    place.run("study ensemble --checkpoint a --data data --out x").refused(&["two or more"]);
    let class = place.images("data/train").remove(0);
    for split in ["train", "val"] {
        let to = place.path("nine").join(split);
        for folder in place.images(&format!("data/{split}")) {
            if folder.file_name() != class.file_name() {
                let to = to.join(folder.file_name().unwrap());
                fs::create_dir_all(&to).unwrap();
                for image in place.images(folder.to_str().unwrap()) {
                    fs::copy(&image, to.join(image.file_name().unwrap())).unwrap();
                }
            }
        }
    }
    place.run("train --data nine --arch tiny.toml --out c --epochs 1").ok();
    let mixed = "study ensemble --checkpoint a c --data data --out x";
    place.run(mixed).refused(&["c has others than a", "expected 10 classes, found 9"]);
    let words = ["data: does not have the classes", "expected 9 classes, found 10"];
    place.run("study ensemble --checkpoint c c --data data --out x").refused(&words);
    assert!(!place.path("x").exists(), "nothing is made for networks that cannot be averaged");
}
