//! What users get wrong, and what disks do: one sentence that names the file, what was expected,
//! what was found; no panic, no damage to what was there.

use std::fs;
use std::path::Path;

use crate::common::program::{Place, TRAIN};
use jpeg_encoder::{ColorType, Encoder};

const COMMAND: &str = "train --data data --arch tiny.toml --out run";

/// A small JPEG of any colour type.
fn jpeg(path: &Path, colour: ColorType, channels: usize) {
    let (width, height) = (24, 22);
    let pixel = |i: usize| (i * 37 % 251) as u8;
    let pixels: Vec<u8> = (0..width * height * channels).map(pixel).collect();
    let mut bytes = Vec::new();
    let encoder = Encoder::new(&mut bytes, 90);
    encoder.encode(&pixels, width as u16, height as u16, colour).unwrap();
    fs::write(path, bytes).unwrap();
}

fn flip_byte(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

fn cut(path: &Path, share: f64) {
    let bytes = fs::read(path).unwrap();
    fs::write(path, &bytes[..(bytes.len() as f64 * share) as usize]).unwrap();
}

#[test]
fn data_folders() {
    let place = Place::new();
    let train = |data: &str| place.run(&format!("train --data {data} --arch tiny.toml --out run"));
    train("nowhere").refused(&["nowhere", "does not exist", "train/CLASS"]);
    train("tiny.toml").refused(&["tiny.toml", "is a file", "train/CLASS"]);
    fs::create_dir_all(place.path("empty/train")).unwrap();
    train("empty").refused(&["empty", "no class folders", "found nothing"]);
    fs::create_dir_all(place.path("one/train/cat")).unwrap();
    fs::create_dir_all(place.path("one/val/cat")).unwrap();
    train("one").refused(&["cat", "at least two"]);
    assert!(!place.path("run").exists(), "nothing is made for data that cannot be used");
    place.run("eval --checkpoint nowhere --data data").refused(&["nowhere", "no such file"]);
}

/// Among good images: named, counted, replaced by others in a way that depends on nothing else.
#[test]
fn bad_images_among_good_ones() {
    let place = Place::new();
    let classes = place.images("data/train");
    let images: Vec<_> =
        classes.iter().flat_map(|class| place.images(class.to_str().unwrap())).collect();
    assert_eq!(images.len(), 10 * TRAIN);
    cut(&images[3], 0.5);
    fs::write(&images[9], "").unwrap();
    fs::write(images[15].with_extension("jpg"), "this is a text").unwrap();
    fs::remove_file(&images[15]).unwrap();
    // Not readable at all: a folder's place taken by a link that leads nowhere.
    fs::remove_file(&images[21]).unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink("nowhere", &images[21]).unwrap();
    // Nor a file that never ends.
    fs::remove_file(&images[27]).unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink("/dev/zero", &images[27]).unwrap();

    let bad = place.run(COMMAND).refused(&["cannot be read as images", "--max-bad"]);
    assert!(bad.stderr.contains("left out:"), "{}", bad.stderr);
    fs::remove_dir_all(place.path("run")).unwrap();

    let ran = place.run(&format!("{COMMAND} --max-bad 0.1 --workers 1")).ok();
    let text = images[15].with_extension("jpg");
    for name in [&images[3], &images[9], &text, &images[21], &images[27]] {
        let name = name.file_name().unwrap().to_str().unwrap();
        let lines = ran.stderr.lines().filter(|line| line.contains("left out")).count();
        assert_eq!(lines, 5, "each once: {}", ran.stderr);
        assert!(ran.stderr.contains(name), "{name}: {}", ran.stderr);
    }
    assert!(ran.stderr.contains("5 training file(s)"), "{}", ran.stderr);
    let again = "train --data data --arch tiny.toml --out again --max-bad 0.1 --workers 4";
    place.run(again).ok();
    assert_eq!(place.results("run"), place.results("again"));

    let val = place.images(place.images("data/val")[0].to_str().unwrap());
    fs::write(&val[0], "").unwrap();
    let of_good = place.run("eval --checkpoint run --data data --max-bad 0.1 --json").json();
    assert_eq!(of_good["images"], 19);
}

/// Unusual, and good: grey, CMYK, PNG under the name of a JPEG, one pixel.
#[test]
fn unusual_images_are_used() {
    let place = Place::new();
    place.run(COMMAND).ok();
    jpeg(&place.path("grey.jpg"), ColorType::Luma, 1);
    jpeg(&place.path("cmyk.jpg"), ColorType::Cmyk, 4);
    jpeg(&place.path("ycck.jpg"), ColorType::CmykAsYcck, 4);
    let png = place.images(place.images("data/val")[0].to_str().unwrap()).remove(0);
    fs::copy(png, place.path("png.JPEG")).unwrap();
    image::RgbImage::from_pixel(1, 1, image::Rgb([9, 8, 7])).save(place.path("1x1.png")).unwrap();
    let names = "grey.jpg cmyk.jpg ycck.jpg png.JPEG 1x1.png";
    let answers = place.run(&format!("classify run {names} --json")).json();
    assert_eq!(answers.as_array().unwrap().len(), 5);
    for answer in answers.as_array().unwrap() {
        let classes = answer["classes"].as_array().unwrap();
        let sum: f64 = classes.iter().map(|class| class["probability"].as_f64().unwrap()).sum();
        assert!(classes.len() == 10 && (sum - 1.0).abs() < 1e-5, "{answer}");
    }
    place.run(&format!("project run {names}")).ok();
}

#[test]
fn bad_images_alone() {
    let place = Place::new();
    place.run(COMMAND).ok();
    fs::write(place.path("empty.png"), "").unwrap();
    fs::write(place.path("text.jpg"), "some words").unwrap();
    jpeg(&place.path("short.jpg"), ColorType::Luma, 1);
    cut(&place.path("short.jpg"), 0.6);
    for (name, why) in [
        ("empty.png", "empty file"),
        ("text.jpg", "only JPEG and PNG"),
        ("short.jpg", "cut short"),
        ("missing.jpg", "cannot read"),
    ] {
        place.run(&format!("classify run {name}")).refused(&[name, why]);
        place.run(&format!("project run {name}")).refused(&[name, why]);
    }
    let good = place.images(place.images("data/val")[0].to_str().unwrap()).remove(0);
    let ran = place.run(&format!("classify run empty.png {}", good.display()));
    assert!(ran.code == Some(1) && ran.stdout.contains(" %"), "the good one is still answered");
}

/// A file may declare any size: nothing of that size is allocated. The limit of 1.5 GB of address
/// space holds the program and its threads, not the 10 GB declared.
#[cfg(target_os = "linux")]
#[test]
fn huge_declared_sizes_take_no_memory() {
    let place = Place::new();
    place.run(COMMAND).ok();
    jpeg(&place.path("huge.jpg"), ColorType::Luma, 1);
    let mut bytes = fs::read(place.path("huge.jpg")).unwrap();
    let frame = bytes.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
    bytes[frame + 5..frame + 9].copy_from_slice(&[0xff, 0xdc, 0xff, 0xdc]);
    fs::write(place.path("huge.jpg"), bytes).unwrap();
    let limit = "ulimit -v 1500000";
    place.run_limited(limit, "classify run huge.jpg").refused(&["huge.jpg", "65500x65500"]);
    let class = place.images("data/train").remove(0);
    fs::copy(place.path("huge.jpg"), class.join("huge.jpg")).unwrap();
    let again = "train --data data --arch tiny.toml --out again --max-bad 0.1 --threads 2";
    let ran = place.run_limited(limit, again).ok();
    assert!(ran.stderr.contains("65500x65500"), "{}", ran.stderr);
}

#[test]
fn networks() {
    let place = Place::new();
    let tiny = fs::read_to_string(place.path("tiny.toml")).unwrap();
    let wrong = |from: &str, to: &str, words: &[&str]| {
        assert!(tiny.contains(from));
        fs::write(place.path("wrong.toml"), tiny.replace(from, to)).unwrap();
        place.run("inspect wrong.toml").refused(words);
        place.run("train --data data --arch wrong.toml --out wrong").refused(words);
        assert!(!place.path("wrong").exists());
    };
    wrong("kernel = 5", "kernel = 25", &["conv1", "expected", "found"]);
    wrong("channels = 12", "channels = 0", &["conv2", "expected", "found"]);
    wrong("\"conv2\"", "\"conv1\"", &["conv1", "name"]);
    wrong("\"relu\"", "\"gelu\"", &["wrong.toml", "gelu", "relu"]);
    wrong("stride = 2", "stride = 2, colour = 1", &["wrong.toml", "colour"]);
    wrong("learning_rate = 0.01", "learning_rate = -1.0", &["learning_rate", "-1"]);
    wrong("channels = 8", "channels = 4000000000", &["conv1", "expected", "found"]);
    wrong("batch_size = 16", "batch_size = 1000000000", &["batch_size", "expected", "found"]);
    place
        .run("train --data data --arch zfnet --batch-size 65536 --out wrong")
        .refused(&["out of memory: requested", "GB"]);
    place.run("inspect lenet").refused(&["lenet", "zfnet-mini"]);
    place.run("inspect missing.toml").refused(&["missing.toml"]);
    place.run("bench --arch tiny.toml --layer conv9").refused(&["conv9", "conv1"]);
}

#[test]
fn checkpoints() {
    let place = Place::new();
    place.run(COMMAND).ok();
    let model = "run/best/model.safetensors";
    fs::copy(place.path(model), place.path("whole.safetensors")).unwrap();
    let check = |what: &str, words: &[&str]| {
        place.run(&format!("eval --checkpoint {what} --data data")).refused(words);
        place.run(&format!("top9 --checkpoint {what} --data data --out page")).refused(words);
        assert!(!place.path("page").exists());
    };
    check("data", &["data", "expected a run or a checkpoint", "state.json"]);
    // Also what never was in a checkpoint of ours may be cut or be something else.
    cut(&place.path("whole.safetensors"), 0.7);
    check("whole.safetensors", &["whole.safetensors", "safetensors"]);
    place.run("inspect whole.safetensors").refused(&["whole.safetensors", "safetensors"]);
    fs::write(place.path("text.safetensors"), "some words, more than eight bytes").unwrap();
    check("text.safetensors", &["text.safetensors", "safetensors"]);

    // Without our metadata, a file must be told its network, and must fit it.
    let bytes = fs::read(place.path(model)).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let bare = safetensors::serialize(tensors.tensors(), None).unwrap();
    fs::write(place.path("bare.safetensors"), bare).unwrap();
    check("bare.safetensors", &["bare.safetensors", "--arch", "--preprocess"]);
    let told = |arch: &str| format!("bare.safetensors --arch {arch} --preprocess torchvision");
    let other = fs::read_to_string(place.path("tiny.toml")).unwrap();
    let other = other.replace("kernel = 5", "kernel = 3");
    fs::write(place.path("other.toml"), other).unwrap();
    check(&told("other.toml"), &["bare.safetensors", "conv1 has shape [8, 3, 3, 3]", "found"]);
    check(&told("zfnet-mini"), &["bare.safetensors", "8 layers with weights", "found 4"]);
    place.run(&format!("eval --data data --checkpoint {}", told("tiny.toml"))).ok();

    // Weights that are no numbers.
    let at = tensors.tensor("fc4.bias").unwrap().data().as_ptr() as usize - bytes.as_ptr() as usize;
    let mut lost = bytes.clone();
    lost[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(place.path("lost.safetensors"), lost).unwrap();
    check("lost.safetensors", &["lost.safetensors", "fc4.bias", "NaN"]);

    // A flipped byte in a weight is still a number: only the checksum knows.
    flip_byte(&place.path(model), bytes.len() - 9);
    check("run", &["model.safetensors", "damaged", "xxh3"]);
    check(model, &["model.safetensors", "damaged", "xxh3"]);
    cut(&place.path(model), 0.9);
    check("run/best", &["model.safetensors", "damaged", "bytes"]);
    fs::remove_file(place.path(model)).unwrap();
    check("run", &["model.safetensors"]);

    // Data of other classes.
    let class = place.images("data/val").remove(0);
    fs::rename(&class, class.with_file_name("zebra")).unwrap();
    let class = place.path("data/train").join(class.file_name().unwrap());
    fs::rename(&class, class.with_file_name("zebra")).unwrap();
    place.run(&format!("{COMMAND}-2")).ok();
    place
        .run("train --data data --arch tiny.toml --out run-3 --init bare.safetensors")
        .refused(&["bare.safetensors", "--preprocess"]);
    fs::rename(class.with_file_name("zebra"), class.with_file_name("yak")).unwrap();
    let val = place.path("data/val");
    fs::rename(val.join("zebra"), val.join("yak")).unwrap();
    place.run("eval --checkpoint run-2 --data data").refused(&[
        "data",
        "does not have the classes of the checkpoint",
        "expected `zebra` as class 9, found `yak`",
    ]);
}

/// A disk that is full after so many KiB: the run says which file could not be written, what was
/// saved before stays good, and with room it goes on as if nothing had been.
#[cfg(unix)]
#[test]
fn full_disks() {
    let place = Place::new();
    place.run("train --data data --arch tiny.toml --out whole").ok();
    place.run(&format!("{COMMAND} --epochs 2")).ok();
    let before = place.results("run");
    // A write beyond the limit fails as on a full disk.
    let full = "ulimit -f 8";
    place.run_limited(full, &format!("{COMMAND} --resume")).refused(&[
        "cannot write",
        "model.safetensors",
        "run",
    ]);
    assert_eq!(place.results("run")[..2], before[..2]);
    place.run(&format!("{COMMAND} --resume")).ok();
    assert_eq!(place.results("run"), place.results("whole"));
    place
        .run_limited(full, "train --data data --arch tiny.toml --out fresh")
        .refused(&["cannot write", "fresh"]);
    let data = place.images(place.images("data/val")[0].to_str().unwrap()).remove(0);
    let nothing = "ulimit -f 0";
    place
        .run_limited(nothing, &format!("project run {} --out page", data.display()))
        .refused(&["cannot write", "page"]);
    if Path::new("/dev/full").exists() {
        let unit = place.unit_that_fires("conv2", &data);
        let flags = format!("--unit {unit} --save-arrays /dev/full");
        let ran = place.run(&format!("project run {} {flags}", data.display()));
        ran.refused(&["cannot write /dev/full"]);
    }
}

#[test]
fn folders_that_cannot_be_written() {
    let place = Place::new();
    let train = |out: &str| place.run(&format!("train --data data --arch tiny.toml --out {out}"));
    train("tiny.toml/run").refused(&["cannot create", "tiny.toml/run"]);
    train("tiny.toml").refused(&["tiny.toml"]);
    #[cfg(unix)]
    {
        use std::io::{Write, stderr};
        use std::os::unix::fs::PermissionsExt;
        let sealed = place.path("sealed");
        fs::create_dir(&sealed).unwrap();
        fs::set_permissions(&sealed, fs::Permissions::from_mode(0o555)).unwrap();
        if fs::write(sealed.join("probe"), "").is_ok() {
            // Not `eprintln!`, which nobody sees of a test that passes.
            writeln!(stderr(), "skipped: this user may write into read-only folders")
                .expect("stderr");
        } else {
            train("sealed").refused(&["sealed"]);
        }
    }
}

#[test]
fn a_loss_that_runs_away() {
    let place = Place::new();
    place.run(&format!("{COMMAND} --lr 1e12")).refused(&["loss", "step", "--learning-rate"]);
    let metrics = fs::read_to_string(place.path("run/metrics.jsonl")).unwrap();
    assert!(!metrics.contains("NaN") && !metrics.contains("null"), "{metrics}");
}
