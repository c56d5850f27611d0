//! Networks of other programs: read, written, read again, and refused.

use std::fs;

use half::f16;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

use crate::common::program::Place;

/// A place with a model, `run`.
fn trained() -> Place {
    let place = Place::new();
    place.run("train --data data --arch tiny.toml --out run --max-steps 3").ok();
    place
}

/// The model's weights in half precision under the names of an `nn.Sequential` inside of `module.`, as safetensors
/// without a word about the network.
fn write_half(place: &Place, file: &str) {
    let bytes = fs::read(place.path("run/last/model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let names = [
        ("conv1", "features.0"),
        ("conv2", "features.4"),
        ("fc3", "classifier.0"),
        ("fc4", "classifier.3"),
    ];
    let mut half = Vec::new();
    for (ours, theirs) in names {
        for part in ["weight", "bias"] {
            let tensor = tensors.tensor(&format!("{ours}.{part}")).unwrap();
            let values = tensor.data().chunks_exact(4);
            let values: Vec<u8> = values
                .flat_map(|b| {
                    f16::from_f32(f32::from_le_bytes(b.try_into().unwrap())).to_le_bytes()
                })
                .collect();
            half.push((format!("module.{theirs}.{part}"), tensor.shape().to_vec(), values));
        }
    }
    let views = half.iter().map(|(name, shape, values)| {
        (name, TensorView::new(Dtype::F16, shape.clone(), values).unwrap())
    });
    fs::write(place.path(file), safetensors::serialize(views, None).unwrap()).unwrap();
}

/// The first class and its probability of each validation image.
fn classified(place: &Place, checkpoint: &str) -> Vec<(String, f64)> {
    let classes = place.images("data/val");
    let files = classes.iter().flat_map(|class| fs::read_dir(class).unwrap());
    let mut images: Vec<String> =
        files.map(|entry| entry.unwrap().path().display().to_string()).collect();
    images.sort();
    let images = images.join(" ");
    let answers = place.run(&format!("classify {checkpoint} {images} --crops 1 --json")).json();
    let first = |answer: &serde_json::Value| {
        let class = &answer["classes"][0];
        (class["class"].as_str().unwrap().to_owned(), class["probability"].as_f64().unwrap())
    };
    answers.as_array().unwrap().iter().map(first).collect()
}

/// Weights by another program's names and in half its precision: by order and shape; what the file does not say is asked
/// for, and nothing is written before.
#[test]
fn weights_under_other_names_are_read_by_order_and_shape() {
    let place = trained();
    write_half(&place, "half.safetensors");
    place
        .run("import half.safetensors -o half-ours.safetensors")
        .refused(&["half.safetensors", "--arch"]);
    place
        .run("import half.safetensors --arch tiny.toml -o half-ours.safetensors")
        .refused(&["half.safetensors", "--preprocess torchvision"]);
    assert!(!place.path("half-ours.safetensors").exists());
    let ran = place
        .run("import half.safetensors --arch tiny.toml --preprocess paper -o half-ours.safetensors --check data")
        .ok();
    for words in [
        "8 of 8 tensors read",
        "module.",
        "features.4          [12, 8, 3, 3]  conv2",
        "RGB from 0 to 255",
        "top-5",
    ] {
        assert!(ran.stdout.contains(words), "`{words}` is not in {}", ran.stdout);
    }
    let classes: String = fs::read_dir(place.path("data/train"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect::<std::collections::BTreeSet<_>>()
        .into_iter()
        .map(|name| name + "\n")
        .collect();
    fs::write(place.path("names.txt"), classes).unwrap();
    let options = "--arch tiny.toml --preprocess paper --classes names.txt --overwrite";
    place.run(&format!("import half.safetensors {options} -o half-ours.safetensors")).ok();
    let imported = classified(&place, "half-ours.safetensors");
    // The file itself, with the same words; and what it becomes is what it is.
    let direct = place.run(
        "eval --data data --checkpoint half.safetensors --arch tiny.toml --preprocess paper --json",
    );
    let ours = place.run("eval --data data --checkpoint half-ours.safetensors --json");
    assert_eq!(direct.json()["top1_error"], ours.json()["top1_error"]);
    assert!(imported.iter().all(|(class, _)| !class.starts_with("class ")));
    // On images of some of its classes, those in the middle left out: from a folder and from shards, as by hand.
    for split in ["train", "val"] {
        for class in ["disc", "ring"] {
            fs::remove_dir_all(place.path("data").join(split).join(class)).unwrap();
        }
    }
    place.run("pack data shards").ok();
    let files = classified(&place, "half-ours.safetensors");
    let mut classes: Vec<_> = place.images("data/val").into_iter().collect();
    classes.sort();
    let of_file = |i: usize| classes[i / 2].file_name().unwrap().to_str().unwrap().to_owned();
    let wrong = (0..files.len()).filter(|&i| files[i].0 != of_file(i)).count();
    assert!(wrong < 16, "no class is told right, so that classes in a wrong order would not show");
    for data in ["data", "shards"] {
        let eval =
            format!("eval --data {data} --checkpoint half-ours.safetensors --crops 1 --json");
        let found = place.run(&eval).json();
        assert_eq!(found["images"], 16, "{data}");
        assert_eq!(found["top1_error"].as_f64(), Some(wrong as f64 / 16.0), "{data}");
    }

    let refused = |what: &str, words: &[&str]| {
        place.run(&format!("import half.safetensors --preprocess paper {what}")).refused(words);
    };
    // Which is asked for by nothing that is shown.
    place.run("inspect half.safetensors --arch tiny.toml").ok();
    refused("--arch zfnet-mini", &["zfnet-mini", "8 layers with weights", "found 4"]);
    refused("--arch tiny.toml -o half-ours.safetensors", &["half-ours.safetensors", "--overwrite"]);
    refused("--arch tiny.toml -o new.pth", &["new.pth", ".safetensors"]);
    fs::write(place.path("names.txt"), "one\ntwo\n").unwrap();
    refused("--arch tiny.toml --classes names.txt", &["names.txt", "10 classes", "found 2"]);
}

/// Out to ONNX and in again: the same network, bit for bit, with its preprocessing and its classes.
#[test]
fn onnx_comes_back_as_it_went_out() {
    let place = trained();
    place.run("export run -o net.onnx").ok();
    assert_eq!(classified(&place, "net.onnx"), classified(&place, "run"));
    place.run("import net.onnx -o again.safetensors").ok();
    assert_eq!(classified(&place, "again.safetensors"), classified(&place, "run"));
    place.run("export run -o pixels.onnx --with-preprocessing").ok();
    assert_eq!(classified(&place, "pixels.onnx"), classified(&place, "run"));
    for file in ["net.onnx", "pixels.onnx", "again.safetensors"] {
        let ran = place.run(&format!("inspect {file}")).ok();
        assert!(ran.stdout.contains("conv2") && ran.stdout.contains("3398"), "{}", ran.stdout);
    }
    let told = place.run("import pixels.onnx --preprocess torchvision");
    told.refused(&["pixels.onnx", "prepares pixels itself"]);
    // Told otherwise, it is otherwise.
    let ran = place.run("import net.onnx --preprocess torchvision").ok();
    assert!(ran.stdout.contains("less 0.485, 0.456, 0.406"), "{}", ran.stdout);

    place.run("export run -o net.onnx").refused(&["net.onnx", "is there already", "--overwrite"]);
    place.run("export run -o net.pb").refused(&["net.pb", ".onnx"]);
    let bytes = fs::read(place.path("net.onnx")).unwrap();
    for len in [1, bytes.len() / 2, bytes.len() - 1] {
        fs::write(place.path("cut.onnx"), &bytes[..len]).unwrap();
        place.run("import cut.onnx -o cut.safetensors").refused(&["cut.onnx"]);
        assert!(!place.path("cut.safetensors").exists());
    }
}

/// The lower part of a network has no classes, and shows what its units see in any images.
#[test]
fn a_network_that_is_cut_has_features() {
    let place = trained();
    place.run("export run -o net.onnx").ok();
    place.run("import net.onnx --until conv9 -o cut.safetensors").refused(&["conv9", "conv2"]);
    let ran = place.run("import net.onnx --until conv2 --preprocess paper -o cut.safetensors").ok();
    assert!(ran.stdout.contains("maps, no classes"), "{}", ran.stdout);
    place.run("study features --checkpoint cut.safetensors --data data --out page").ok();
    place.run("study features --checkpoint cut.safetensors --data data/train --out plain").ok();
    for (page, images) in [("page", 20), ("plain", 60)] {
        let json = fs::read_to_string(place.path(page).join("top9.json")).unwrap();
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["images"], images, "{page}");
    }
    place.run("eval --checkpoint cut.safetensors --data data").refused(&["0 classes"]);
}

/// What people have by mistake.
#[test]
fn files_that_are_no_networks_are_refused_with_what_to_do() {
    let place = Place::new();
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0000\nsize 244408911\n";
    let cases: [(&str, &[u8], &str); 6] = [
        ("pointer.pth", pointer.as_bytes(), "git lfs pull"),
        ("page.pth", b"<!DOCTYPE html>\n<html><body>404</body></html>", "a web page"),
        ("empty.onnx", b"", "an empty file"),
        ("keras.h5", b"\x89HDF\r\n\x1a\n and more", "HDF5"),
        ("words.pth", b"just some words, and no more than that", "text"),
        (
            "code.pt",
            b"\x80\x02cos\nsystem\nq\x00X\x04\x00\x00\x00ls /q\x01\x85q\x02Rq\x03.",
            "pickle",
        ),
    ];
    for (name, bytes, words) in cases {
        fs::write(place.path(name), bytes).unwrap();
        let run = |command: &str| {
            place.run(command).refused(&[name, words]);
            assert!(!place.path("out.safetensors").exists());
        };
        run(&format!("import {name} -o out.safetensors"));
        run(&format!("eval --checkpoint {name} --data data"));
    }
    place.run("import gone.pth").refused(&["gone.pth"]);
    place.run("import data").refused(&["data", "a folder"]);
}
