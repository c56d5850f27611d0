//! Files of Caffe's that somebody else made, or that a disk changed: good ones, cut and mutated, absurd ones, and what
//! fuzzing has found. See `fuzz/README.md`.
//!
//! A test program of its own: the allocator counts what each test's own thread has at its peak.

#[path = "common/allocated.rs"]
mod allocated;
#[path = "common/caffe.rs"]
mod caffe;
#[path = "common/caffe_nets.rs"]
mod caffe_nets;

use std::fs;
use std::path::{Path, PathBuf};

use allocated::peak;
use caffe_nets::*;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index as At;
use proptest::test_runner::{Config, TestRunner};
use prost::Message;
use zfnet_formats::caffe::{parse_prototxt, proto::*, read};

/// Most memory for a file of some length: what is read of it, while vectors grow, and what the smallest messages that
/// are let in become.
fn allowed(bytes: usize) -> usize {
    12 * bytes + (1 << 20)
}

fn weights() -> Vec<u8> {
    bytes(every_kind())
}

fn models() -> Vec<(&'static str, Vec<u8>)> {
    let batch_norm = LayerParameter {
        blobs: vec![filled(&[2]), blob(&[2], vec![3., 5.]), blob(&[1], vec![2.])],
        ..layer("bn1", "BatchNorm", "conv1", "bn1")
    };
    let mut data = layer("data", "Data", "", "data");
    data.bottom.clear();
    data.transform_param = Some(TransformationParameter {
        mean_value: vec![104., 117., 123.],
        crop_size: Some(9),
        ..Default::default()
    });
    let mut half = fc("fc1", "bn1", [1, 98]);
    half.blobs[0].data.clear();
    (half.blobs[0].raw_data_type, half.blobs[0].raw_data) = (Some(2), Some(vec![1; 196]));
    let folded = vec![data, conv("conv1", "data", [2, 3, 3]), batch_norm, half];
    vec![
        ("new", weights()),
        ("old", old(every_kind()).encode_to_vec()),
        ("folded", bytes(folded)),
        ("mean", filled(&[3, 4, 5]).encode_to_vec()),
    ]
}

fn texts() -> Vec<(&'static str, Vec<u8>)> {
    let old = "input: 'data' input_shape { dim: [1, 3, 5, 5] } layers { name: 'conv1' type: CONVOLUTION bottom: 'data' \
               top: 'conv1' convolution_param { num_output: 4 kernel_size: 3 } }";
    vec![("new", EVERY_KIND.into()), ("old", old.into())]
}

fn check_text(bytes: &[u8]) {
    thread_local!(static WEIGHTS: Vec<u8> = weights());
    WEIGHTS.with(|weights| caffe::prototxt(bytes, weights));
}

#[test]
fn the_good_files_are_good() {
    for (name, file) in &models()[..3] {
        read(file, None, None).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    zfnet_formats::caffe::read_mean(&models()[3].1).unwrap();
    for (name, text) in texts() {
        let text = String::from_utf8(text).unwrap();
        read(&weights(), Some(&text), None).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

/// Cut anywhere, a file is refused, but for the few places between two layers, where it is a shorter network.
#[test]
fn files_that_are_cut_short_are_refused() {
    for (name, file) in models() {
        let good = (0..file.len()).filter(|&len| {
            caffe::caffe(&file[..len]);
            read(&file[..len], None, None).is_ok()
        });
        let good = good.count();
        assert!(good < 12, "{name}: {good} of {} lengths are good", file.len());
    }
    let good = (0..EVERY_KIND.len()).filter(|&len| {
        check_text(&EVERY_KIND.as_bytes()[..len]);
        read(&weights(), Some(&EVERY_KIND[..len]), None).is_ok()
    });
    assert!(good.count() < 40, "between two layers there is space");
}

/// One change to a file.
#[derive(Clone, Debug)]
enum Edit {
    Flip(At, u8),
    Cut(At),
    /// A piece, from one place over another or in between.
    Splice(At, At, usize, bool),
    /// Bytes of their own, as protobuf's lengths and numbers are.
    Write(At, Vec<u8>),
}

fn mutated(seeds: &[(&str, Vec<u8>)], check: fn(&[u8]), pieces: &'static [&'static [u8]]) {
    let at = any::<At>;
    let edit = prop_oneof![
        4 => (at(), 1u8..).prop_map(|(place, bits)| Edit::Flip(place, bits)),
        1 => at().prop_map(Edit::Cut),
        3 => (at(), at(), 1usize..200, any::<bool>())
            .prop_map(|(from, to, len, over)| Edit::Splice(from, to, len, over)),
        3 => (at(), prop::sample::select(pieces))
            .prop_map(|(place, piece)| Edit::Write(place, piece.to_vec())),
    ];
    let config = Config { cases: 20_000, failure_persistence: None, ..Config::default() };
    let cases = (at(), vec(edit, 1..6));
    let outcome = TestRunner::new(config).run(&cases, |(seed, edits)| {
        let mut bytes = seeds[seed.index(seeds.len())].1.clone();
        for edit in edits {
            if bytes.is_empty() {
                break;
            }
            let len = bytes.len();
            match edit {
                Edit::Flip(at, bits) => bytes[at.index(len)] ^= bits,
                Edit::Cut(at) => bytes.truncate(at.index(len)),
                Edit::Splice(from, to, piece, over) => {
                    let (from, to) = (from.index(len), to.index(len));
                    let piece = bytes[from..len.min(from + piece)].to_vec();
                    let end = if over { len.min(to + piece.len()) } else { to };
                    bytes.splice(to..end, piece);
                }
                Edit::Write(at, piece) => {
                    let to = at.index(len);
                    bytes.splice(to..len.min(to + piece.len()), piece);
                }
            }
        }
        let peak = peak(|| check(&bytes));
        prop_assert!(peak <= allowed(bytes.len() + weights().len()), "{peak} bytes of memory");
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
}

/// Where seeds lie, and what fuzzing has found.
fn corpus(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(name)
}

fn replay(name: &str, check: fn(&[u8])) {
    let files: Vec<_> = fs::read_dir(corpus(name)).unwrap().collect();
    assert!(files.len() >= 2, "{files:?}");
    for file in files {
        check(&fs::read(file.unwrap().path()).unwrap());
    }
}

#[test]
fn models_are_read_or_refused() {
    replay("caffe", caffe::caffe);
    let numbers: &[&[u8]] = &[
        &[0],
        &[0xff, 0xff, 0xff, 0xff, 0x0f],
        &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
        &[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x40],
        &[0x80, 0x80, 0x04],
        &[0x00, 0x00, 0x80, 0x7f],
        &[0x00, 0x00, 0xc0, 0x7f],
    ];
    mutated(&models(), caffe::caffe, numbers);
}

#[test]
fn prototxts_are_read_or_refused() {
    replay("prototxt", check_text);
    let pieces: &[&[u8]] = &[
        b"{",
        b"}",
        b"<",
        b">",
        b"[",
        b"]",
        b"\"",
        b"\\",
        b"#",
        b"\n",
        b": ",
        b"-1",
        b"0",
        b"99999999999",
        b"1e99",
        b"nan",
        b"layer {",
        b"include { phase: TRAIN }",
        b"\xc3\xbc",
    ];
    mutated(&texts(), check_text, pieces);
}

/// Files that grow in memory: the smallest layers, blobs, rules, names and sizes that there can be.
#[test]
fn absurd_files_take_bounded_memory() {
    let many = |bytes: &[u8], count: usize| bytes.repeat(count);
    let inside = |key: &[u8], inner: Vec<u8>| {
        let mut file = key.to_vec();
        prost::encode_length_delimiter(inner.len(), &mut file).unwrap();
        [file, inner].concat()
    };
    const NEW: &[u8] = &[0xa2, 0x06];
    let count = 4 << 20;
    let cases = [
        ("layers of version 2", many(&[0xa2, 0x06, 0], count)),
        ("layers of version 1", many(&[0x12, 0], count)),
        ("inputs", many(&[0x1a, 0], count)),
        ("sizes of inputs", many(&[0x42, 0], count)),
        ("blobs", inside(NEW, many(&[0x3a, 0], count))),
        ("bottoms", inside(NEW, many(&[0x1a, 0], count))),
        ("rules", inside(NEW, many(&[0x42, 0], count))),
        (
            "sizes of a blob",
            inside(NEW, inside(&[0x3a], inside(&[0x3a], inside(&[0x0a], many(&[1], count))))),
        ),
        ("means", inside(NEW, inside(&[0xa2, 0x06], inside(&[0x2a], vec![0; 4 * count])))),
        ("kernels", inside(NEW, inside(&[0xd2, 0x06], inside(&[0x22], many(&[1], count))))),
    ];
    for (what, file) in cases {
        let peak = peak(|| {
            let error = read(&file, None, None).expect_err(what).to_string();
            assert!(error.contains("expected at most"), "{what}: {error}");
            assert!(error.len() < 400, "{what}: {error}");
        });
        assert!(peak < 1 << 20, "{what}: {peak} bytes for {}", file.len());
    }
    // Just below the limits.
    for (what, file) in [
        ("layers", many(&[0xa2, 0x06, 0], 8000)),
        ("blobs", inside(NEW, many(&[0x3a, 0], 120_000))),
        ("rules", inside(NEW, many(&[0x42, 0], 120_000))),
        (
            "sizes of a blob",
            inside(NEW, inside(&[0x3a], inside(&[0x3a], inside(&[0x0a], many(&[1], 1_000_000))))),
        ),
    ] {
        let peak = peak(|| caffe::caffe(&file));
        println!("{what}: {peak} bytes for {}", file.len());
        assert!(peak < 100 << 20, "{what}: {peak} bytes for {}", file.len());
    }
    // A float and a half of each value, and vectors that grow.
    let large = blob(&[1000, 1000], vec![0.5; 1_000_000]);
    let mut layer = fc("fc1", "data", [1000, 1000]);
    layer.blobs[0] = large;
    let file = bytes(vec![input(&[1, 1, 1, 1000]), layer]);
    let peak = peak(|| drop(read(&file, None, None).unwrap()));
    println!("a million weights: {peak} bytes for {}", file.len());
    assert!(peak < 4 * file.len());
}

#[test]
fn absurd_text_takes_bounded_memory() {
    let error = |text: String| {
        let mut found = String::new();
        let peak = peak(|| found = parse_prototxt(&text).expect_err("absurd").to_string());
        println!("{peak} bytes for {}: {found}", text.len());
        assert!(peak < 64 << 20, "{peak} bytes for {}", text.len());
        found
    };
    for open in ["a{", "a<", "layer{", "a:{", "layer { a { "] {
        assert!(
            error(open.repeat(100_000)).contains("at most 32 messages inside each other"),
            "{open}"
        );
    }
    assert!(error("a:[".repeat(100_000)).contains("expected , or ]"));
    assert!(error("layer{}".repeat(100_000)).contains("at most 8192 values"));
    assert!(error("layer{include{}}".repeat(60_000)).contains("at most"));
    assert!(error("layer{bottom:'a'}".repeat(60_000)).contains("at most"));
    assert!(
        error(format!("input_dim: [{}1]", "1,".repeat(100_000))).contains("at most 8192 values")
    );
    assert!(error("a:1 ".repeat(100_000)).contains("at most 65536 fields"));
    assert!(error(" ".repeat(5 << 20)).contains("at most 4 MiB"));
    assert!(error(format!("name: \"{}", "x".repeat(1 << 20))).contains("ends in \""));
    assert!(error(format!("input_dim: {}", "9".repeat(1 << 20))).contains("a whole number"));
}

/// What is no such file at all.
#[test]
fn other_files_are_refused() {
    for (what, file) in [
        ("text", EVERY_KIND.as_bytes()),
        ("HTML", b"<!DOCTYPE html><html><body>404</body></html>"),
        ("a pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"),
        ("zip", b"PK\x03\x04\x14\x00\x08\x00\x08\x00"),
        ("HDF5", b"\x89HDF\r\n\x1a\n\0\0\0\0"),
        ("zeros", &[0; 64]),
        ("ones", &[0xff; 64]),
    ] {
        let error = read(file, None, None).expect_err(what).to_string();
        println!("{what}: {error}");
        assert!(error.contains("expected"), "{what}: {error}");
    }
}

#[test]
#[ignore = "writes the seeds of fuzz/corpus anew"]
fn write_the_seeds() {
    for (name, seeds) in [("caffe", models()), ("prototxt", texts())] {
        fs::create_dir_all(corpus(name)).unwrap();
        for (seed, bytes) in seeds {
            fs::write(corpus(name).join(format!("seed-{seed}")), bytes).unwrap();
        }
    }
}
