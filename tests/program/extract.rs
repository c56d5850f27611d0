//! Features of images as files: what is in them, and that interruptions leave the same bytes.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use half::f16;
use safetensors::SafeTensors;
use safetensors::tensor::Dtype as Kind;

use crate::common::program::Place;
use zfnet::backend::cpu::CpuBackend;
use zfnet::data::Split;
use zfnet::data::images::ReadOptions;
use zfnet::data::set::KeyedImages;
use zfnet::extract::{Dtype, Settings, extract};
use zfnet::import::ExternalConfig;
use zfnet::model::{Canvas, Model};
use zfnet::study::extractor::FeatureExtractor;
use zfnet::train::checkpoint::load_model;

const OPTIONS: ReadOptions =
    ReadOptions { canvas: Canvas::square(20), max_bad: 0.1, cache_bytes: 0, io: None };
/// Layers of the tiny network, with their rows as PyTorch has them.
const LAYERS: [(&str, &[usize]); 4] =
    [("fc3", &[16]), ("pool1", &[8, 3, 3]), ("conv2", &[12, 3, 3]), ("fc4", &[10])];

/// A place with a model, `run`.
fn trained() -> Place {
    let place = Place::new();
    place.run("train --data data --arch tiny.toml --out run --max-steps 2").ok();
    place
}

fn model(place: &Place, backend: &CpuBackend) -> Model<CpuBackend> {
    load_model(backend, &place.path("run"), &ExternalConfig::default()).unwrap()
}

/// What the extractor gives, rearranged without the library: for each layer a row an image, maps first.
fn expected(place: &Place, images: &[&str], batch: usize) -> Vec<Vec<f32>> {
    let backend = CpuBackend::new(None).unwrap();
    let model = model(place, &backend);
    let mut extractor = FeatureExtractor::new(&backend, &model, batch).unwrap();
    let mut layers = vec![Vec::new(); LAYERS.len()];
    for some in images.chunks(batch) {
        let mut pixels = vec![0; batch * 20 * 20 * 3];
        for (path, square) in some.iter().zip(pixels.chunks_exact_mut(20 * 20 * 3)) {
            let image = zfnet::data::images::read_rgb(&place.path(path)).unwrap();
            zfnet::data::decode::prepare(&image, 20, square);
        }
        extractor.forward(&pixels).unwrap();
        for ((name, shape), values) in LAYERS.iter().zip(&mut layers) {
            let output = extractor.output(model.network.layer(name).unwrap()).unwrap();
            let (maps, places) = (shape[0], shape[1..].iter().product::<usize>());
            for row in output.chunks_exact(maps * places).take(some.len()) {
                let transposed = |i| row[i % places * maps + i / places];
                values.extend((0..maps * places).map(transposed));
            }
        }
    }
    layers
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

fn read(place: &Place, file: &str) -> Vec<u8> {
    fs::read(place.path(file)).unwrap()
}

/// Shape and values of a `.npy` file, by NumPy's description of the format.
fn npy(bytes: &[u8], kind: &str) -> (String, Vec<u8>) {
    assert_eq!(&bytes[..8], b"\x93NUMPY\x01\x00");
    let end = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    assert_eq!((end % 64, bytes[end - 1]), (0, b'\n'));
    let dict = std::str::from_utf8(&bytes[10..end]).unwrap().trim_end();
    let begin = format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': (");
    let shape = dict.strip_prefix(begin.as_str()).unwrap().strip_suffix("), }").unwrap();
    (shape.to_owned(), bytes[end..].to_owned())
}

/// What stands in a folder, but for logs.
fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// The tiny network's layers of the validation images, in every format, are those of the extractor; so are those of
/// another folder of the same pictures, without classes.
#[test]
fn files_hold_what_layers_give() {
    let place = trained();
    let classes = names(&place.path("data/val"));
    let mut keys = Vec::new();
    for class in &classes {
        let images = place.images(&format!("data/val/{class}"));
        let name = |path: &PathBuf| format!("{class}/{}", path.file_name().unwrap().display());
        keys.extend(images.iter().map(name));
    }
    let paths: Vec<String> = keys.iter().map(|key| format!("data/val/{key}")).collect();
    let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
    let expected = expected(&place, &paths, 7);
    let layers = LAYERS.map(|(name, _)| name).join(",");
    let common = format!("extract run --layers {layers} --batch-size 7 --workers 3");
    let ran = place.run(&format!("{common} --data data -o out/f.safetensors")).ok();
    assert_eq!(ran.stdout, "out/f.safetensors\n");
    assert!(ran.stderr.contains("fc3 [20, 16], pool1 [20, 8, 3, 3]"), "{}", ran.stderr);
    assert_eq!(names(&place.path("out")), ["f.safetensors"]);

    let bytes = read(&place, "out/f.safetensors");
    let file = SafeTensors::deserialize(&bytes).unwrap();
    for ((name, shape), values) in LAYERS.iter().zip(&expected) {
        let tensor = file.tensor(name).unwrap();
        assert_eq!((tensor.dtype(), tensor.shape()), (Kind::F32, &*[&[20], *shape].concat()));
        assert_eq!(&floats(tensor.data()), values, "{name}");
        assert_eq!(tensor.data().as_ptr().align_offset(4), bytes.as_ptr().align_offset(4));
    }
    assert!(expected.iter().all(|values| values.iter().any(|value| *value != values[0])));
    let labels: Vec<u8> = (0..20).flat_map(|image: i64| (image / 2).to_le_bytes()).collect();
    assert_eq!(file.tensor("labels").unwrap().data(), labels);
    let crops = file.tensor("crops").unwrap();
    assert_eq!((crops.dtype(), crops.shape()), (Kind::I32, &[20, 4][..]));
    let crop: Vec<u8> = [2i32, 2, 16, 16].iter().flat_map(|n| n.to_le_bytes()).collect();
    assert!(crops.data().chunks_exact(16).all(|found| found == crop));
    assert_eq!(file.tensor("keys").unwrap().data(), (keys.join("\n") + "\n").as_bytes());
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let about = &metadata.metadata().as_ref().unwrap()["features"];
    let about: serde_json::Value = serde_json::from_str(about).unwrap();
    assert_eq!(about["classes"].as_array().unwrap().len(), 10);
    assert_eq!((&about["split"], &about["data"]), (&"val".into(), &"data".into()));
    assert_eq!(about["preprocess"]["resize"], 20);
    assert_eq!((&about["left_out"], &about["batch_size"]), (&0.into(), &7.into()));

    // The same for any number of threads that read or compute, and from shards.
    place.run(&format!("{common} --threads 1 --data data -o one.safetensors")).ok();
    assert!(bytes == read(&place, "one.safetensors"));
    place.run("pack data set").ok();
    place.run(&format!("{common} --data set -o set.safetensors")).ok();
    let packed = read(&place, "set.safetensors");
    let packed = SafeTensors::deserialize(&packed).unwrap();
    for (name, tensor) in file.tensors() {
        assert!(tensor.data() == packed.tensor(&name).unwrap().data(), "{name}");
    }

    // One array, of the training images; and half as many bytes.
    for (name, shape, values) in
        [("conv2", "20, 12, 3, 3", &expected[2]), ("fc4", "20, 10", &expected[3])]
    {
        let common = format!("extract run --data data --layers {name} --batch-size 7");
        place.run(&format!("{common} -o a.npy --overwrite")).ok();
        let (found, bytes) = npy(&read(&place, "a.npy"), "<f4");
        assert_eq!((found.as_str(), &floats(&bytes)), (shape, values));
        place.run(&format!("{common} -o b.npy --dtype f16 --overwrite")).ok();
        let (_, bytes) = npy(&read(&place, "b.npy"), "<f2");
        let halves: Vec<u8> = values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect();
        assert!(bytes == halves);
    }
    let table = fs::read_to_string(place.path("a.labels.tsv")).unwrap();
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!((lines.len(), lines[0]), (21, "key\tlabel\ty\tx\theight\twidth"));
    assert_eq!(lines[3], format!("{}\t1\t2\t2\t16\t16", keys[2]));
    place.run("extract run --data data --layers fc3 --split train -o train.npy").ok();
    assert_eq!(npy(&read(&place, "train.npy"), "<f4").0, "60, 16");

    // The same pictures, deeper and without classes, then alone in `val`.
    fs::create_dir_all(place.path("any/deep")).unwrap();
    fs::rename(place.path("data/val"), place.path("any/deep/er")).unwrap();
    place.run(&format!("{common} --data any -o any.safetensors")).ok();
    let any = read(&place, "any.safetensors");
    let any = SafeTensors::deserialize(&any).unwrap();
    assert_eq!(any.tensor("labels").unwrap().data(), (-1i64).to_le_bytes().repeat(20));
    let deeper: String = keys.iter().map(|key| format!("deep/er/{key}\n")).collect();
    assert_eq!(any.tensor("keys").unwrap().data(), deeper.as_bytes());
    assert!(any.tensor("fc3").unwrap().data() == file.tensor("fc3").unwrap().data());
    fs::rename(place.path("any/deep/er"), place.path("any/val")).unwrap();
    place.run(&format!("{common} --data any -o alone.safetensors")).ok();
    let alone = read(&place, "alone.safetensors");
    let alone = SafeTensors::deserialize(&alone).unwrap();
    for (name, tensor) in file.tensors() {
        assert!(tensor.data() == alone.tensor(&name).unwrap().data(), "{name}");
    }
}

/// Stopped after every batch, with files among the images that are none: the same bytes as in one go. Those files have
/// no row.
#[test]
fn stops_change_nothing() {
    let place = trained();
    let class = place.images("data/val").remove(0);
    fs::write(class.join("a bad one.png"), "no picture").unwrap();
    let backend = CpuBackend::new(Some(1)).unwrap();
    let model = model(&place, &backend);
    for (file, layers) in [("f.safetensors", &["pool1", "fc3"][..]), ("a.npy", &["conv2"])] {
        let settings = Settings {
            layers: layers.iter().map(|name| model.network.layer(name).unwrap()).collect(),
            dtype: Dtype::F16,
            batch: 3,
            overwrite: false,
            facts: Vec::new(),
        };
        let run = |folder: &str, last: usize| {
            let data = KeyedImages::open(&place.path("data"), Some(Split::Val), OPTIONS).unwrap();
            let (out, stop) = (place.path(folder).join(file), AtomicUsize::new(0));
            extract(&backend, &model, &data, &settings, &out, 2, &stop, |done, _| {
                stop.store(usize::from(done >= last), Ordering::Relaxed);
            })
            .unwrap()
        };
        let whole = run("whole", usize::MAX).unwrap();
        assert_eq!((whole.images, whole.left_out, whole.before), (20, 1, 0));
        // One batch a call, but two of the first, which is told to stop when the first is done.
        let mut calls = 1;
        let last = loop {
            match run("stopped", 1) {
                Some(last) => break last,
                None => calls += 1,
            }
        };
        assert_eq!((calls, last.before), (7, 21), "{file}");
        let [whole, stopped] = ["whole", "stopped"].map(|folder| place.path(folder));
        assert_eq!(names(&whole), names(&stopped));
        for name in names(&whole) {
            assert!(fs::read(whole.join(&name)).unwrap() == fs::read(stopped.join(&name)).unwrap());
        }
    }
    let bytes = read(&place, "whole/f.safetensors");
    let file = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(file.tensor("pool1").unwrap().shape(), [20, 8, 3, 3]);
    let keys = file.tensor("keys").unwrap();
    assert!(!std::str::from_utf8(keys.data()).unwrap().contains("bad"));
    assert_eq!(npy(&read(&place, "whole/a.npy"), "<f2").0, "20, 12, 3, 3");
    // Beside values that are as wide as those of f32, the same values.
    place
        .run("extract run --data data --layers fc3 --batch-size 3 --max-bad 0 -o w.npy")
        .refused(&["a bad one.png", "allowed share"]);
    place.run("extract run --data data --layers fc3 --batch-size 3 -o w.npy").ok();
    let (_, wide) = npy(&read(&place, "w.npy"), "<f4");
    let halves: Vec<u8> =
        floats(&wide).iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect();
    assert!(file.tensor("fc3").unwrap().data() == halves);
}

/// A picture that was none when the file was begun, other settings, a file that lost its end.
#[test]
fn what_was_begun_is_gone_on_with_or_refused() {
    let place = trained();
    let class = place.images("data/val").remove(0);
    let bad = class.join("a bad one.png");
    fs::write(&bad, "no picture").unwrap();
    let backend = CpuBackend::new(None).unwrap();
    let model = model(&place, &backend);
    let begin = |out: &str| {
        let settings = Settings {
            layers: vec![model.network.layer("fc3").unwrap()],
            dtype: Dtype::F32,
            batch: 4,
            overwrite: false,
            facts: vec![("data".into(), "data".into())],
        };
        let data = KeyedImages::open(&place.path("data"), Some(Split::Val), OPTIONS).unwrap();
        let (out, stop) = (place.path(out), AtomicUsize::new(1));
        let done = extract(&backend, &model, &data, &settings, &out, 1, &stop, |_, _| ()).unwrap();
        assert_eq!(done, None);
    };
    let with = "extract run --max-bad 0.1 --layers fc3 --batch-size 4 -o f.npy --data";
    begin("f.npy");
    assert_eq!(names(&place.path("")).iter().filter(|name| name.contains("partial")).count(), 2);
    let other = |command: &str, what: &str, difference: &str| {
        place.run(command).refused(&["f.npy.partial", what, difference, "--overwrite"]);
    };
    other(&format!("{with} data --dtype f16"), "another type of values", "f32 then, f16 now");
    other(
        &with.replace("size 4", "size 5").replace("--data", "--data data"),
        "batch size",
        "4 then, 5",
    );
    other(
        &with.replace("fc3", "fc4").replace("--data", "--data data"),
        "choice of layers",
        "fc3 then, fc4",
    );
    other(&format!("{with} data --split train"), "set of images", "21 files");
    place.run("train --data data --arch tiny.toml --out run2 --max-steps 3").ok();
    other(&format!("{with} data").replace("run", "run2"), "another model", "then");
    // It goes on, and says so; the picture that is none still counts.
    let ran = place.run(&format!("{with} data")).ok();
    assert!(ran.stderr.contains("going on after 4 of 21") && ran.stderr.contains("1 file(s)"));
    let whole = read(&place, "f.npy");
    place.run(&format!("{with} data")).refused(&["f.npy", "there already", "--overwrite"]);
    // Begun anew, so that nothing is left of the other settings.
    begin("f.npy");
    place.run(&format!("{with} data --dtype f16 --overwrite")).ok();
    assert_eq!(npy(&read(&place, "f.npy"), "<f2").0, "20, 16");
    place.run(&format!("{with} data --overwrite")).ok();
    assert!(read(&place, "f.npy") == whole);
    // Cut short.
    begin("f.npy");
    fs::OpenOptions::new()
        .write(true)
        .open(place.path("f.npy.partial"))
        .and_then(|file| file.set_len(200))
        .unwrap();
    let ran = place.run(&format!("{with} data --overwrite")).ok();
    assert!(ran.stderr.contains("cut short"));
    assert!(read(&place, "f.npy") == whole);
    // What is said of it is damaged, or makes no sense.
    for state in ["{", "{}", r#"{"made": {}, "done": 4, "bad": [9]}"#, &"[".repeat(100_000)] {
        begin("f.npy");
        fs::write(place.path("f.npy.partial.json"), state).unwrap();
        place.run(&format!("{with} data --overwrite")).ok();
        assert!(read(&place, "f.npy") == whole);
    }
    // The picture is one now: which images there are would depend on the interruption.
    begin("g.npy");
    fs::copy(place.images(place.images("data/train")[0].to_str().unwrap()).remove(0), &bad)
        .unwrap();
    let ran = place.run(&format!("{with} data").replace("f.npy", "g.npy"));
    ran.refused(&["a bad one.png", "could not be read", "remove", "g.npy.partial"]);
}

#[test]
fn what_cannot_be_written_is_refused() {
    let place = trained();
    let with = "extract run --data data";
    let refused = |flags: &str, words: &[&str]| {
        place.run(&format!("{with} {flags}")).refused(words);
    };
    refused("--layers fc9 -o a.npy", &["no layer `fc9`", "conv1, relu1, pool1", "fc4"]);
    refused("--layers fc3,fc4 -o a.npy", &["a.npy", "one array", "fc3, fc4"]);
    refused("--layers fc3,fc3 -o a.safetensors", &["fc3", "twice"]);
    refused("--layers fc3 -o a.h5", &["a.h5", ".safetensors or .npy"]);
    refused("--layers fc3 -o data/train/a.npy", &["among the images"]);
    refused("--layers fc3 -o tiny.toml/a.npy", &["tiny.toml"]);
    refused("--layers fc3 --split train -o f.npy --max-bad 2", &["--max-bad"]);
    fs::create_dir(place.path("folder.npy")).unwrap();
    refused("--layers fc3 -o folder.npy --overwrite", &["folder.npy", "is a folder"]);
    // A tensor of a layer's name.
    let toml = fs::read_to_string(place.path("tiny.toml")).unwrap().replace("fc3", "labels");
    fs::write(place.path("taken.toml"), toml).unwrap();
    place.run("train --data data --arch taken.toml --out taken --max-steps 1").ok();
    let taken = "extract taken --data data --layers labels -o";
    place.run(&format!("{taken} a.safetensors")).refused(&["a.safetensors", "labels", ".npy"]);
    place.run(&format!("{taken} a.npy")).ok();
    // Values beyond f16's largest: weights times a million.
    let mut weights = read(&place, "run/last/model.safetensors");
    let (header, metadata) = SafeTensors::read_metadata(&weights).unwrap();
    let [from, to] =
        metadata.info("fc4.bias").map(|info| [info.data_offsets.0, info.data_offsets.1]).unwrap();
    for value in weights[8 + header..][from..to].chunks_exact_mut(4) {
        value.copy_from_slice(&70000f32.to_le_bytes());
    }
    fs::write(place.path("large.safetensors"), weights).unwrap();
    let large = "extract large.safetensors --data data --layers fc4 -o large.npy";
    place.run(&format!("{large} --dtype f16")).refused(&["fc4", "does not fit into f16", "65504"]);
    // Data that are not there.
    let of = |data: &str, words: &[&str]| {
        place.run(&format!("extract run --layers fc3 -o b.npy --data {data}")).refused(words);
    };
    of("nowhere", &["nowhere", "does not exist"]);
    of("run", &["run", "expected .jpg"]);
    of("data/train --split val", &["data/train", "has no folder val"]);
    fs::remove_dir_all(place.path("data/val")).unwrap();
    of("data", &["data", "has no folder val"]);
    for folder in ["none", "bad"] {
        fs::create_dir(place.path(folder)).unwrap();
        fs::write(place.path("bad/a.png"), "no picture").unwrap_or_default();
    }
    of("none", &["none", "found nothing"]);
    of("bad --max-bad 1", &["none of 1 files"]);
    assert!(!place.path("b.npy").exists());
}

#[cfg(unix)]
mod unix {
    use super::*;
    use crate::common::Random;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::symlink;
    use std::process::{Command, Stdio};
    use std::thread;
    use std::time::{Duration, Instant};

    /// A folder of many names of a few pictures.
    fn many(place: &Place, names: usize) {
        let images = place.images(place.images("data/train")[0].to_str().unwrap());
        for number in 0..names {
            let folder = place.path(&format!("many/{}", number % 3));
            fs::create_dir_all(&folder).unwrap();
            let image = &images[number % images.len()];
            fs::hard_link(image, folder.join(format!("{number:06}.png"))).unwrap();
        }
    }

    const EXTRACT: &str =
        "extract run --data many --layers pool1,fc3 --batch-size 2 --threads 1 --workers 1 -o";

    #[test]
    fn kills_and_signals_at_any_moment_change_nothing() {
        let place = trained();
        many(&place, 6000);
        let begun = Instant::now();
        place.run(&format!("{EXTRACT} whole.safetensors")).ok();
        let mut time = begun.elapsed();
        let mut random = Random(5);
        let (mut kills, mut gone_on) = (0, 0);
        loop {
            let mut child = place
                .command(&format!("{EXTRACT} killed.safetensors"))
                .stderr(Stdio::piped())
                .stdout(Stdio::null())
                .spawn()
                .unwrap();
            if kills < 30 {
                thread::sleep(time.mul_f64(0.5 * f64::from(random.real().abs())));
                child.kill().unwrap();
            }
            let output = child.wait_with_output().unwrap();
            let stderr = String::from_utf8(output.stderr).unwrap();
            gone_on += usize::from(stderr.contains("going on after"));
            if output.status.success() {
                if kills >= 30 || kills >= 3 && gone_on >= 2 {
                    break;
                }
                // The machine has less to do than when the time was taken.
                fs::remove_file(place.path("killed.safetensors")).unwrap();
                time /= 2;
                continue;
            }
            assert_eq!(output.status.code(), None, "ended by an error, not by a kill: {stderr}");
            kills += 1;
        }
        assert!(kills >= 3 && gone_on >= 2, "killed {kills} times, gone on {gone_on} times");
        let whole = read(&place, "whole.safetensors");
        assert!(read(&place, "killed.safetensors").len() == whole.len());
        // Metadata say nothing of the file's name.
        assert!(read(&place, "killed.safetensors") == whole);

        let child =
            place.command(&format!("{EXTRACT} int.safetensors")).stderr(Stdio::piped()).spawn();
        let child = child.unwrap();
        let patience = Instant::now();
        while !place.path("int.safetensors.partial.json").exists() {
            assert!(patience.elapsed() < Duration::from_secs(60), "nothing kept in a minute");
            thread::sleep(Duration::from_millis(2));
        }
        place
            .run(&format!("{EXTRACT} int.safetensors"))
            .refused(&["int.safetensors.partial", "another process"]);
        let kill = format!("kill -INT {}", child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130));
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(stderr.contains("of 6,000 images: the same command goes on"), "{stderr}");
        place.run(&format!("{EXTRACT} int.safetensors")).ok();
        assert!(read(&place, "int.safetensors") == whole);
        assert!(names(&place.path("")).iter().all(|name| !name.contains("partial")));
    }

    /// A disk that is full after so many KiB.
    #[test]
    fn full_disks() {
        let place = trained();
        many(&place, 300);
        place.run(&format!("{EXTRACT} whole.safetensors")).ok();
        for room in ["ulimit -f 0", "ulimit -f 16", "ulimit -f 60"] {
            let ran = place.run_limited(room, &format!("{EXTRACT} full.safetensors"));
            ran.refused(&["cannot write", "full.safetensors.partial"]);
        }
        place.run(&format!("{EXTRACT} full.safetensors")).ok();
        assert!(read(&place, "full.safetensors") == read(&place, "whole.safetensors"));
    }

    #[test]
    fn folders_of_links_and_odd_names() {
        let place = trained();
        many(&place, 6);
        symlink(place.path("many"), place.path("many/0/round")).unwrap();
        symlink(place.path("many/2"), place.path("many/1/again")).unwrap();
        let ran = place.run(&format!("{EXTRACT} a.safetensors")).ok();
        assert!(ran.stderr.contains("many/0/round: left out"), "{}", ran.stderr);
        let bytes = read(&place, "a.safetensors");
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let keys = "0/000000.png\n0/000003.png\n1/000001.png\n1/000004.png\n\
                    1/again/000002.png\n1/again/000005.png\n";
        assert_eq!(file.tensor("keys").unwrap().data(), keys.as_bytes());
        for (name, word) in [(&b"a\nb.png"[..], "line break"), (b"a\xff.png", "UTF-8")] {
            let odd = place.path("many").join(std::ffi::OsStr::from_bytes(name));
            if fs::copy(place.path("many/0/000000.png"), &odd).is_ok() {
                place.run(&format!("{EXTRACT} b.safetensors")).refused(&["many", word, "rename"]);
                fs::remove_file(odd).unwrap();
            }
        }
    }
}
