//! The commands as a user meets them: what they print, what they leave, and the names that others
//! script against.

use std::fs;

use crate::common::program::Place;
use safetensors::SafeTensors;

#[test]
fn from_training_to_pages() {
    let place = Place::new();
    let ran = place.run("train --data data --model tiny.toml --output-dir run").ok();
    assert_eq!(ran.stdout.trim(), "run");
    for words in
        ["learning_rate = 0.01", "rms_limit = 0.3", "seed 0", "learning rate: 0.01 -> 0.001"]
    {
        assert!(ran.stderr.contains(words), "`{words}` is not in {}", ran.stderr);
    }
    let kinds = fs::read_to_string(place.path("run/metrics.jsonl")).unwrap();
    assert_eq!(kinds.matches("\"kind\":\"step\"").count(), 16);
    assert_eq!(kinds.matches("\"kind\":\"epoch\"").count(), 4);
    for link in ["run/last", "run/best"] {
        let to = fs::read_link(place.path(link)).unwrap();
        assert!(to.is_relative() && to.to_str().unwrap().starts_with("step-"), "{to:?}");
    }

    for crops in ["1", "10"] {
        let eval = format!("eval --checkpoint run --data data --crops {crops} --json");
        let json = place.run(&eval).json();
        let errors = ["top1_error", "top5_error"].map(|key| json[key].as_f64().unwrap());
        assert!(json["images"] == 20 && 0.0 <= errors[1] && errors[1] <= errors[0], "{json}");
        // A checkpoint averaged with itself is itself.
        let both = eval.replace("--checkpoint run", "--checkpoint run/last run/last");
        let last = eval.replace("--checkpoint run", "--checkpoint run/last");
        assert_eq!(place.run(&both).json(), place.run(&last).json());
    }
    let of_train = place.run("eval --checkpoint run --data data --split train --json").json();
    assert_eq!(of_train["images"], 60);

    let image = place.images(place.images("data/val")[4].to_str().unwrap()).remove(1);
    let image = image.display();
    let text = place.run(&format!("classify run {image}")).ok().stdout;
    assert_eq!(text.lines().count(), 6, "the file and its five best classes: {text}");

    let page = place.run(&format!("project run {image} --out shown")).ok();
    assert_eq!(page.stdout.trim(), "shown/index.html");
    let json = fs::read_to_string(place.path("shown/projections.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let layers = json["images"][0]["layers"].as_array().unwrap();
    let names: Vec<_> = layers.iter().map(|layer| layer["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["conv1", "conv2", "fc3", "fc4"]);

    let page = place.run("top9 --checkpoint run --data data --out pages --layers conv1,conv2").ok();
    assert_eq!(page.stdout.trim(), "pages/index.html");
    assert!(place.path("pages/index.html").is_file());
    place
        .run("top9 --checkpoint run --data data --out pages --layers conv7")
        .refused(&["conv7", "conv1"]);
}

#[test]
fn features_of_chosen_maps() {
    let place = Place::new();
    place.run("train --data data --arch tiny.toml --out run").ok();
    let rows = |arguments: &str| -> Vec<(String, Vec<u64>)> {
        let ran = place.run(&format!("{arguments} --checkpoint run --data data")).ok();
        let page = place.path(ran.stdout.trim());
        let json = fs::read_to_string(page.with_file_name("top9.json")).unwrap();
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        let layers = json["layers"].as_array().unwrap().iter();
        let maps = |layer: &serde_json::Value| {
            let rows = layer["rows"].as_array().unwrap().iter();
            rows.map(|row| row["map"].as_u64().unwrap()).collect()
        };
        layers.map(|layer| (layer["name"].as_str().unwrap().to_owned(), maps(layer))).collect()
    };
    let named = |name: &str, maps: &[u64]| (name.to_owned(), maps.to_vec());
    let all = |count: u64| (0..count).collect::<Vec<u64>>();
    let both = [named("conv1", &all(8)), named("conv2", &all(12))];
    assert_eq!(rows("study features"), both);
    assert!(place.path("run/report/features/index.html").is_file(), "the default folder");
    // The old name is the same command.
    assert_eq!(rows("top9 --out a"), both);
    let read = |file: &str| fs::read(place.path(file)).unwrap();
    for file in ["top9.json", "index.html", "conv2/projections-000.png"] {
        assert!(
            read(&format!("a/{file}")) == read(&format!("run/report/features/{file}")),
            "{file}"
        );
    }
    let chosen = [named("conv1", &[0]), named("conv2", &[3, 11])];
    assert_eq!(rows("study features --units conv2:11,conv1:0,conv2:3"), chosen);
    assert_eq!(rows("study features --post-pool"), [named("pool1", &all(8))]);
    let first = [named("conv2", &[0, 1, 2, 3])];
    assert_eq!(rows("study features --maps 4 --layers conv2"), first);
    let drawn = |seed: u32| rows(&format!("study features --maps 4 --random --seed {seed}"));
    assert_eq!(drawn(5), drawn(5));
    assert_ne!(drawn(5), drawn(6));
    assert!(drawn(5).iter().all(|(_, maps)| maps.len() == 4), "{:?}", drawn(5));

    let refused = |flags: &str, words: &[&str]| {
        place.run(&format!("study features --checkpoint run --data data {flags}")).refused(words);
    };
    refused("--units conv9:0", &["conv9", "conv1, relu1"]);
    refused("--units conv2:12", &["conv2:12", "maps 0 to 11", "found 12"]);
    refused("--units conv2", &["conv2", "LAYER:MAP"]);
    refused("--layers conv9", &["conv9"]);
    for wrong in ["--units conv2:1 --maps 3", "--random", "--maps 0", "--post-pool --layers conv1"]
    {
        let ran = place.run(&format!("study features --checkpoint run --data data {wrong}"));
        assert_eq!(ran.code, Some(2), "{wrong}: {}", ran.stderr);
    }
    let file = "run/last/model.safetensors";
    fs::copy(place.path(file), place.path("alone.safetensors")).unwrap();
    place
        .run("study features --checkpoint alone.safetensors --data data")
        .refused(&["alone.safetensors", "--out"]);
    for class in place.images("data/val") {
        for image in place.images(class.to_str().unwrap()) {
            fs::write(image, "no image").unwrap();
        }
    }
    refused("", &["cannot be read as images", "--max-bad"]);
    refused("--max-bad 1", &["data", "none of the 20 files", "usable image"]);
}

/// The arrays are the projection itself: seeded and run backward once more, they give the same.
#[test]
fn saved_arrays() {
    let place = Place::new();
    place.run("train --data data --arch tiny.toml --out run").ok();
    let image = place.images(place.images("data/val")[4].to_str().unwrap()).remove(1);
    let unit = place.unit_that_fires("conv2", &image);
    let image = image.display();
    for (rule, seed_is_one) in [("deconvnet", false), ("gradient", true), ("guided", false)] {
        let flags = format!("--unit {unit} --rule {rule} --save-arrays a.safetensors");
        place.run(&format!("project run {image} {flags}")).ok();
        let bytes = fs::read(place.path("a.safetensors")).unwrap();
        let arrays = SafeTensors::deserialize(&bytes).unwrap();
        let floats = |name: &str| -> (Vec<usize>, Vec<f32>) {
            let tensor = arrays.tensor(name).unwrap();
            let value = |b: &[u8]| f32::from_le_bytes(b.try_into().unwrap());
            (tensor.shape().to_vec(), tensor.data().chunks_exact(4).map(value).collect())
        };
        assert_eq!(floats("input").0, [16, 16, 3]);
        assert_eq!(floats("projection").0, [16, 16, 3]);
        assert_eq!(floats("activation.conv1").0, [7, 7, 8]);
        let (shape, switches) = floats("switches.pool1");
        assert_eq!(shape, [3, 3, 8]);
        assert!(switches.iter().all(|s| *s < 9.0 || *s == 255.0), "{switches:?}");
        let (shape, seed) = floats("seed");
        assert_eq!(shape, [3, 3, 12]);
        let (_, activation) = floats("activation.conv2");
        let seeded: Vec<_> = (0..seed.len()).filter(|i| seed[*i] != 0.0).collect();
        assert_eq!(seeded.len(), 1);
        let fired = activation[seeded[0]];
        assert!(fired > 0.0);
        assert_eq!(seed[seeded[0]], if seed_is_one { 1.0 } else { fired });
    }
}

#[test]
fn inspect_and_bench_for_scripts() {
    let place = Place::new();
    let rows = place.run("inspect zfnet --json").json();
    let conv5 = rows.as_array().unwrap().iter().find(|row| row["name"] == "conv5").unwrap();
    assert_eq!(conv5["output"], serde_json::json!([13, 13, 256]));
    assert_eq!([&conv5["field"], &conv5["jump"], &conv5["start"]], [139, 16, -48]);
    assert_eq!(conv5["parameters"], 884_992);
    assert!(place.run("inspect zfnet").ok().stdout.contains("62357608"));
    let table = place.run("inspect tiny.toml").ok().stdout;
    place.run("train --data data --arch tiny.toml --out run").ok();
    for trained in ["run", "run/last/model.safetensors"] {
        let shown = place.run(&format!("inspect {trained}")).ok().stdout;
        assert!(shown.starts_with(&table) && shown.contains("similarity"), "{shown}");
    }

    let bench = "bench --arch tiny.toml --batch 4 --json";
    let json = place.run(&format!("{bench} --layer conv2 --op forward")).json();
    let row = &json["rows"][0];
    assert_eq!(row["id"], "tiny/conv2/forward/f32/4/cpu");
    for key in ["milliseconds", "gflops", "share"] {
        assert!(row[key].as_f64().unwrap() > 0.0, "{key}: {row}");
    }
    let some = "--layer conv1,conv2 --op backward-data,backward-filter";
    let json = place.run(&format!("{bench} {some}")).json();
    assert_eq!(json["rows"].as_array().unwrap().len(), 3, "no data gradient of the first layer");
    let step = place.run(&format!("{bench} --step")).json();
    assert!(step["rows"][0]["images_per_second"].as_f64().unwrap() > 0.0, "{step}");
    let forward = place.run(&format!("{bench} --forward")).json();
    let row = &forward["rows"][0];
    assert_eq!(row["id"], "tiny/all/forward/f32/4/cpu");
    let rate = row["images_per_second"].as_f64().unwrap();
    assert!((rate * row["milliseconds"].as_f64().unwrap() / 4e3 - 1.0).abs() < 1e-9, "{row}");
    if cfg!(target_os = "linux") {
        assert!(forward["peak_memory"].as_u64().unwrap() > 1_000_000, "{forward}");
    }
    for other in ["--step", "--resident", "--op update", "--layer conv2"] {
        assert_eq!(place.run(&format!("{bench} --forward {other}")).code, Some(2), "{other}");
    }
}

#[test]
fn bench_notices_what_has_become_slower() {
    let place = Place::new();
    let bench = "bench --arch tiny.toml --layer fc3 --op forward --batch 2";
    place.run(&format!("{bench} --save rows.json")).ok();
    let saved: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(place.path("rows.json")).unwrap()).unwrap();
    assert_eq!(saved["rows"][0]["id"], "tiny/fc3/forward/f32/2/cpu");
    // Even on a noisy machine it is not a hundred times slower than before; a thousandth of its time
    // it never takes.
    let compare = format!("{bench} --compare rows.json --tolerance 100");
    place.run(&compare).ok();
    let time = saved["rows"][0]["milliseconds"].as_f64().unwrap();
    let mut faster = saved.clone();
    faster["rows"][0]["milliseconds"] = (time / 1000.0).into();
    fs::write(place.path("rows.json"), faster.to_string()).unwrap();
    let ran = place.run(&compare);
    assert_eq!(ran.code, Some(1));
    assert!(ran.stderr.contains("slower: tiny/fc3/forward"), "{}", ran.stderr);
    // Rows that are not there are no success; nor is a file of something else.
    let ran = place.run(&compare.replace("forward", "backward-data"));
    assert!(ran.code == Some(1) && ran.stderr.contains("0 of 0 rows"), "{}", ran.stderr);
    fs::write(place.path("rows.json"), "{}").unwrap();
    place.run(&compare).refused(&["rows.json", "bench --save"]);
}

#[test]
fn a_dry_run_foretells_and_writes_nothing() {
    let place = Place::new();
    let told = place.run("train --data data --arch tiny.toml --out run --dry-run").ok().stdout;
    let line = |name: &str| told.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
    let inspected = place.run("inspect tiny.toml --json").json();
    let layers = inspected.as_array().unwrap().iter();
    let parameters: u64 = layers.map(|layer| layer["parameters"].as_u64().unwrap()).sum();
    assert_eq!(line("parameters").split_whitespace().nth(1), Some(&*parameters.to_string()));
    assert!(line("steps").contains("4 an epoch, 16 in all, of 4 epochs"), "{told}");
    assert!(line("memory").contains("wanted") && line("time").contains("ms a step"), "{told}");
    let rates: Vec<f64> = line("alone").split_whitespace().filter_map(|w| w.parse().ok()).collect();
    let [steps, input, workers, _cores] = rates[..] else { panic!("{told}") };
    assert!(steps > 0.0 && input > 0.0 && workers == 2.0, "{told}");
    let limit = if steps > input { "the input" } else { "the steps" };
    assert!(steps == input || line("limit").contains(limit), "{told}");
    assert!(!place.path("run").exists());
    // A batch larger than the set, and more threads than it has batches.
    let odd = "train --data data --arch tiny.toml --out run --dry-run --batch-size 4096 --workers 9 --cache-mb 0";
    let told = place.run(odd).ok().stdout;
    assert!(told.contains("limit  "), "{told}");
}

#[test]
fn the_loader_is_measured_by_threads() {
    let place = Place::new();
    let bench = "bench loader --data data --side 20 --batch 8 --seconds 0";
    let json = place.run(&format!("{bench} --workers 2,1,2 --size 16 --json")).json();
    let rows = json["rows"].as_array().unwrap();
    let of = |key: &str| rows.iter().map(|row| row[key].clone()).collect::<Vec<_>>();
    assert_eq!(of("id"), ["loader/data/square", "loader/data/batch/1", "loader/data/batch/2"]);
    assert!(of("images_per_second").iter().all(|rate| rate.as_f64().unwrap() > 0.0), "{json}");
    assert!(rows[1]["linear"].is_null() && rows[2]["linear"].as_f64().unwrap() > 0.0, "{json}");
    let told = place.run(&format!("{bench} --target 37000")).ok().stdout;
    assert!(told.contains("37,000 images/s: about ") && told.contains("extrapolated"), "{told}");
    assert_eq!(place.run(&format!("{bench} --workers 0")).code, Some(2));
    place.run(&format!("{bench} --size 21")).refused(&["--size 21"]);
}

#[test]
fn weights_go_over_to_another_network() {
    let place = Place::new();
    place.run("train --data data --arch tiny.toml --out run").ok();
    let tiny = fs::read_to_string(place.path("tiny.toml")).unwrap();
    fs::write(place.path("other.toml"), tiny.replace("outputs = 16", "outputs = 24")).unwrap();
    let ran = place.run("train --data data --arch other.toml --out other --init run").ok();
    assert!(ran.stderr.contains("freshly drawn: fc3, fc4"), "{}", ran.stderr);
    place
        .run("train --data data --arch zfnet-mini --max-steps 1 --out mini --init run")
        .refused(&["no layer has the name and shape"]);
}

/// On every processor that this passes on, each of its instruction sets computes what the plain loops do.
#[test]
fn this_machine_passes_its_self_test() {
    let place = Place::new();
    let found = place.run("selftest --device cpu --arch tiny.toml --map 3 --json").json();
    let variants = found["variants"].as_array().unwrap();
    assert!(variants.len() >= 2, "{variants:?}");
    for variant in variants {
        let results = variant["results"].as_array().unwrap();
        let of = |operation: &str| results.iter().any(|result| result["operation"] == operation);
        assert!(["conv_forward", "lrn_backward", "update"].into_iter().all(of), "{results:?}");
        assert!(results.iter().all(|result| result["wrong"] == 0), "{results:?}");
    }
    let listed = place.run("selftest --device cpu --arch tiny.toml --map 3").ok().stdout;
    assert!(listed.contains("f32, portable"), "{listed}");
    place.run("selftest --device cpu --arch nothing.toml").refused(&["nothing.toml"]);
}

/// The README's first command, small: pictures, two networks, a page.
#[test]
fn demo() {
    let place = Place::new();
    let ran = place.run("demo --quick --out demo").ok();
    assert!(ran.stdout.contains("demo/page/index.html"), "{}", ran.stdout);
    assert!(ran.stdout.contains("a linear classifier on pixels"), "{}", ran.stdout);
    let page = fs::read_to_string(place.path("demo/page/index.html")).unwrap();
    assert!(page.contains("conv5") && page.contains("linear classifier on pixels"));
    // Once more goes on from what is there, to the same end.
    assert_eq!(place.run("demo --quick --out demo").ok().stdout.lines().count(), 2);
    place.run("demo --quick --out tiny.toml").refused(&["tiny.toml"]);
}

/// The weights beside the Python file are a model of ours, too. What the text says is tested where it is written.
#[test]
fn export_writes_python_and_weights() {
    let place = Place::new();
    place.run("train --data data --arch tiny.toml --out run --max-steps 2").ok();
    let ran = place.run("export run -o out/net.py").ok();
    assert_eq!(ran.stdout, "out/net.safetensors\nout/net.py\n");
    let text = fs::read_to_string(place.path("out/net.py")).unwrap();
    assert!(
        text.contains(r#"with_name("net.safetensors")"#)
            && text.contains("get_tensor(\"preprocess.mean\")")
    );
    let error =
        |model: &str| place.run(&format!("eval --checkpoint {model} --data data --json")).json();
    assert_eq!(error("out/net.safetensors"), error("run"));
    place.run("export run -o out/net.py").refused(&["out/net.safetensors", "--overwrite"]);
    place.run("export run -o out/net.py --overwrite").ok();
    place.run("export run -o net.h5").refused(&["net.h5", ".py (PyTorch)"]);
    place.run("export run -o data/train/net.py").refused(&["among the images"]);
}
