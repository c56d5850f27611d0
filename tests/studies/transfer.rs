//! Transfer to other classes: the command end to end, and whole networks on few images.

use std::fs;

use crate::common::page::{attributes, check_links};
use crate::common::program::Place;
use crate::common::{all_weights, bits};
use serde_json::Value;
use zfnet::backend::Backend;
use zfnet::data::classes::Classes;
use zfnet::model::{Architecture, Model, Network, Params, Preprocess};
use zfnet::study::small_data::{Squares, Start, Training, accuracy, choose_rate, train_few};

on_every_backend!(few_images_are_learnt);

/// Dark and bright pictures of 20 pixels: whatever the start, a network tells them apart after a while.
fn few_images_are_learnt<B: Backend>(backend: &B) {
    let place = Place::new();
    let file = place.path("tiny.toml");
    let mut architecture = Architecture::find(file.to_str().unwrap()).unwrap();
    architecture.recipe.dropout = 0.0;
    let network = Network::new(architecture).unwrap();
    let params = Params::init(backend, &network, 3).unwrap();
    let preprocess = Preprocess::paper([16; 2], 20, 64.0, vec![128.0; 3]);
    let classes = Classes::unknown(10);
    let mut checkpoint = Model { network, params, preprocess, classes };
    let squares = |from: u8| {
        let mut squares = Squares::default();
        for i in 0..12u8 {
            let label = u32::from(i % 2);
            squares.images.push(u32::from(i));
            squares.labels.push(label);
            let level = from + 3 * i + 90 * label as u8;
            squares.pixels.extend(vec![level; 20 * 20 * 3]);
        }
        squares
    };
    let (train, test) = (squares(40), squares(42));
    let named = Classes::named(vec!["dark".to_owned(), "bright".to_owned()]);
    for start in [Start::Scratch, Start::FineTune] {
        let model = |updates| {
            let training = Training { start, updates, rate: 1.0, seed: 1 };
            train_few(backend, &checkpoint, &named, &train, training).unwrap().0
        };
        let learnt = model(150);
        assert_eq!(accuracy(backend, &learnt, &test).unwrap(), 1.0, "{start:?}");
        assert_eq!((learnt.network.classes(), &learnt.classes), (2, &named));
        let again = all_weights(backend, &model(150).params);
        assert_eq!(bits(&all_weights(backend, &learnt.params)), bits(&again));
        // Where it starts: the checkpoint's weights but for the last layer, or others.
        let start_of = all_weights(backend, &model(0).params);
        let whole = all_weights(backend, &checkpoint.params);
        let last = 16 * 10 + 10;
        let below = whole.len() - last;
        let kept = start_of[..below] == whole[..below];
        assert_eq!(kept, start == Start::FineTune, "{start:?}");
        let mean = &learnt.preprocess.mean;
        match start {
            // 40 + 3 i, and 90 for the odd half, i from 0 to 11.
            Start::Scratch => assert_eq!((mean.len(), mean[0]), (1200, 40.0 + 16.5 + 45.0)),
            Start::FineTune => assert_eq!(mean, &[128.0; 3]),
        }
    }
    // Of rates at which nothing moves, and one that learns, the last is chosen, though it is not in the middle.
    let choose = |images: &Squares, rates: &[f32]| {
        let training = Training { start: Start::Scratch, updates: 150, rate: 1.0, seed: 1 };
        choose_rate(backend, &checkpoint, &named, images, training, rates).unwrap()
    };
    assert_eq!(choose(&train, &[1e-9, 1e-8, 1.0]), 1.0);
    assert_eq!(choose(&train, &[0.5]), 0.5);
    // With one image of each class none can be held out.
    assert_eq!(choose(&train.part(&[0, 1]), &[1e-9, 0.7, 1.0]), 0.7);
    // Whatever small weights the network was begun with, these begin with He's.
    let initial = |share: f32| {
        let mut small = checkpoint.network.architecture.clone();
        small.recipe.init_std *= share;
        let network = Network::new(small).unwrap();
        let params = Params::init(backend, &network, 3).unwrap();
        let (preprocess, classes) = (checkpoint.preprocess.clone(), checkpoint.classes.clone());
        let small = Model { network, params, preprocess, classes };
        let training = Training { start: Start::Scratch, updates: 0, rate: 1.0, seed: 1 };
        all_weights(
            backend,
            &train_few(backend, &small, &named, &train, training).unwrap().0.params,
        )
    };
    assert_eq!(initial(0.01), initial(1.0));
    // Among ever higher rates there is one at which the loss runs away, and at a tenth or a hundredth of it does not.
    let lowered = (2..36).any(|power| {
        checkpoint.network.architecture.recipe.learning_rate = 10f32.powi(power);
        let training = Training { start: Start::Scratch, updates: 9, rate: 1.0, seed: 1 };
        let trained = train_few(backend, &checkpoint, &named, &train, training);
        trained.is_ok_and(|(_, rate)| rate < 1.0)
    });
    assert!(lowered);
    let part = test.part(&[1, 5, 12]);
    assert_eq!((part.images, part.labels, part.pixels.len()), (vec![1, 5], vec![1, 1], 2400));
}

fn json(place: &Place, file: &str) -> Value {
    serde_json::from_slice(&fs::read(place.path(file)).unwrap()).unwrap()
}

/// The first six classes of the place's data in `six`, the others in `four`.
fn two_sets() -> Place {
    let place = Place::new();
    for split in ["train", "val"] {
        for (i, class) in place.images(&format!("data/{split}")).iter().enumerate() {
            let set = if i < 6 { "six" } else { "four" };
            let to = place.path(&format!("{set}/{split}"));
            fs::create_dir_all(&to).unwrap();
            fs::rename(class, to.join(class.file_name().unwrap())).unwrap();
        }
    }
    place.run("train --data six --arch tiny.toml --out run --epochs 2").ok();
    place
}

#[test]
fn from_six_classes_to_four_others() {
    let place = two_sets();
    let few = "--per-class 1,2 --folds 2 --test-per-class 1 --updates 8";
    let all = format!(
        "study transfer --checkpoint run --data four {few} --fine-tune --layer conv2,fc3,conv2 --rates 1,0.5"
    );
    let ran = place.run(&format!("{all} --pretrained-on six")).ok();
    assert_eq!(ran.stdout.trim(), "run/report/transfer/index.html");
    let out = place.path("run/report/transfer");
    let html = fs::read_to_string(out.join("index.html")).unwrap();
    check_links(&out, &html);
    assert_eq!(attributes(&html, "src"), ["accuracy.svg"]);
    assert_eq!(html.matches("In the mean, ").count(), 3);
    for said in [
        "10 random crops of each image, mirrored or not",
        "0.5, 1 of the recipe’s",
        "8 updates of at most",
    ] {
        assert!(html.contains(said), "`{said}` is not in {html}");
    }
    let found = json(&place, "run/report/transfer/transfer.json");
    let found = found.as_array().unwrap();
    let of = |method: &str| found.iter().filter(|f| f["method"] == method).count();
    let methods = ["frozen, conv2", "frozen, fc3", "from scratch", "fine-tuned"];
    assert_eq!(methods.map(of), [4; 4]);
    // What the first fold has chosen holds for the second.
    for method in methods {
        let settings: Vec<f64> = found
            .iter()
            .filter(|f| f["method"] == method)
            .map(|f| f["setting"].as_f64().unwrap())
            .collect();
        assert_eq!(settings[0], settings[1]);
        assert_eq!(settings[2], settings[3]);
        if !method.starts_with("frozen") {
            // One image a class leaves none to choose by: the middle of two is the second.
            assert_eq!(settings[0], 1.0);
            assert!([0.5, 1.0].contains(&settings[2]));
        }
    }
    for f in found {
        let k = f["per_class"].as_u64().unwrap();
        assert_eq!((f["train"].as_u64(), f["test"].as_u64()), (Some(4 * k), Some(4)));
        for accuracy in ["accuracy", "accuracy_in_training"] {
            assert!((0.0..=1.0).contains(&f[accuracy].as_f64().unwrap()));
        }
    }
    let duplicates = fs::read_to_string(out.join("duplicates.csv")).unwrap();
    assert_eq!(duplicates.lines().next(), Some("image,trained_on,correlation,mirrored"));

    // The same once more, and the same after it was ended when all was trained.
    let csv = |folder: &str| fs::read(place.path(folder).join("transfer.csv")).unwrap();
    place.run(&format!("{all} --pretrained-on six --out again")).ok();
    assert_eq!(csv("again"), csv("run/report/transfer"));
    fs::create_dir_all(place.path("ended/accuracy.svg/full")).unwrap();
    let ended = format!("{all} --pretrained-on six --out ended");
    place.run(&ended).refused(&["cannot write into ended"]);
    assert!(place.path("ended/.parts").is_dir());
    fs::remove_dir_all(place.path("ended/accuracy.svg")).unwrap();
    place.run(&ended).ok();
    assert_eq!(csv("ended"), csv("again"));
    assert!(!place.path("ended/.parts").exists());
    place.run("study report run").ok();
    let report = fs::read_to_string(place.path("run/report/index.html")).unwrap();
    assert!(report.contains("study.transfer"));
}

#[test]
fn a_planted_duplicate_is_found_and_left_out() {
    let place = two_sets();
    // A test image of the other set, among what the network was trained on.
    let class = place.images("four/val").remove(0);
    let image = place.images(class.to_str().unwrap()).remove(0);
    let own = place.images("six/train").remove(0);
    fs::copy(&image, own.join("planted.png")).unwrap();
    let transfer = "study transfer --checkpoint run --data four --per-class 1 --folds 1 \
                    --test-per-class 2 --no-scratch --duplicate-threshold 0.9999";
    place.run(&format!("{transfer} --pretrained-on six")).ok();
    let duplicates = fs::read_to_string(place.path("run/report/transfer/duplicates.csv")).unwrap();
    assert!(duplicates.contains("planted.png,1.0000,false"), "{duplicates}");
    let found = json(&place, "run/report/transfer/transfer.json");
    assert_eq!(found[0]["test"], 7, "one of eight is left out");
    // Who does not search says so.
    place.run(transfer).ok();
    let html = fs::read_to_string(place.path("run/report/transfer/index.html")).unwrap();
    assert!(html.contains("No near-duplicates were searched"), "{html}");
}

#[test]
fn what_cannot_be_transferred_is_said() {
    let place = two_sets();
    let refused = |flags: &str, words: &[&str]| {
        let all = format!("study transfer --checkpoint run --out o --no-scratch {flags}");
        place.run(&all).refused(words);
    };
    refused("--data four --per-class 7", &["four", "found 6 training", "at least 7"]);
    refused("--data four --per-class 1 --layer conv9", &["conv9", "conv2"]);
    refused("--data nowhere", &["nowhere"]);
    refused("--data four --rates 1,0", &["--rates", "above 0", "found 0"]);
    refused("--data four --duplicate-threshold 1.5", &["--duplicate-threshold", "1.5"]);
    refused("--data four --per-class 1 --pretrained-on nowhere", &["nowhere"]);
    place
        .run("study transfer --checkpoint nowhere --data four --out o")
        .refused(&["nowhere", "checkpoint"]);
    let class = place.images("four/val").remove(0);
    for image in place.images(class.to_str().unwrap()) {
        fs::remove_file(image).unwrap();
    }
    refused("--data four --per-class 1", &["found 0 validation"]);
}
