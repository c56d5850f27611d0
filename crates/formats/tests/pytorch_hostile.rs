//! Files of PyTorch's, safetensors and what lies beside them that a disk changed: good ones, mutated, and what fuzzing has
//! found. See `fuzz/README.md`; what was made to do harm is in `pytorch.rs`.
//!
//! A test program of its own: the allocator counts what each test's own thread has at its peak.

#[path = "common/allocated.rs"]
mod allocated;
#[path = "common/torch.rs"]
mod torch;

use std::fs;
use std::path::{Path, PathBuf};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index as At;
use proptest::test_runner::{Config, TestRunner};

/// Most memory for a file of some length: tensors are at most 16 times as large, an object of a pickle and the lists
/// that hold it take at most 128 bytes for one of its file; and what is read ahead.
fn allowed(bytes: usize) -> usize {
    (16 + 128) * bytes + (128 << 10)
}

/// One change to a file.
#[derive(Clone, Debug)]
enum Edit {
    Flip(At, u8),
    Cut(At),
    /// A piece, from one place over another or in between.
    Splice(At, At, usize, bool),
    /// A number that is at the edge of something, in so many bytes.
    Number(At, u64, usize),
}

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let at = any::<At>;
    let edges = [0, 1, 0x7f, 0xff, 0xffff, 0x7fff_ffff, 0xffff_ffff, i64::MAX as u64, u64::MAX];
    let number = (prop::sample::select(edges.to_vec()), -2_i64..=2)
        .prop_map(|(edge, by): (u64, i64)| edge.wrapping_add_signed(by));
    let edit = prop_oneof![
        4 => (at(), 1_u8..).prop_map(|(place, bits)| Edit::Flip(place, bits)),
        1 => at().prop_map(Edit::Cut),
        3 => (at(), at(), 1_usize..200, any::<bool>())
            .prop_map(|(from, to, len, over)| Edit::Splice(from, to, len, over)),
        2 => (at(), number, prop::sample::select(&[1_usize, 2, 4, 8][..]))
            .prop_map(|(place, number, width)| Edit::Number(place, number, width)),
    ];
    vec(edit, 1..6)
}

fn apply(bytes: &mut Vec<u8>, edit: &Edit) {
    let len = bytes.len();
    if len == 0 {
        return;
    }
    match edit {
        Edit::Flip(at, bits) => bytes[at.index(len)] ^= bits,
        Edit::Cut(at) => bytes.truncate(at.index(len)),
        Edit::Splice(from, to, piece, over) => {
            let (from, to) = (from.index(len), to.index(len));
            let piece = bytes[from..len.min(from + piece)].to_vec();
            let end = if *over { len.min(to + piece.len()) } else { to };
            bytes.splice(to..end, piece);
        }
        Edit::Number(at, number, width) => {
            let at = at.index(len);
            let end = len.min(at + width);
            bytes[at..end].copy_from_slice(&number.to_le_bytes()[..end - at]);
        }
    }
}

fn holds(check: fn(&[u8]), bytes: &[u8]) -> Result<(), TestCaseError> {
    let (peak, allowed) = (allocated::peak(|| check(bytes)), allowed(bytes.len()));
    prop_assert!(peak <= allowed, "{peak} bytes of memory for {}, {allowed} allowed", bytes.len());
    Ok(())
}

/// Checks what is kept in a fuzzer's corpus, good files, and these with mutations.
fn mutated(name: &str, check: fn(&[u8]), seeds: &[Vec<u8>], cases: u32) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(name);
    let kept: Vec<_> = fs::read_dir(corpus).unwrap().map(|file| file.unwrap().path()).collect();
    assert!(!kept.is_empty(), "no files of {name}");
    for path in kept {
        holds(check, &fs::read(&path).unwrap()).unwrap_or_else(|error| panic!("{path:?}: {error}"));
    }
    for seed in seeds {
        holds(check, seed).unwrap();
    }
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let outcome = TestRunner::new(config).run(&(any::<At>(), edits()), |(seed, edits)| {
        let mut bytes = seeds[seed.index(seeds.len())].clone();
        edits.iter().for_each(|edit| apply(&mut bytes, edit));
        holds(check, &bytes)
    });
    outcome.unwrap_or_else(|error| panic!("{name}: {error}"));
}

fn pytorch_files() -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let files = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
    let mut files: Vec<PathBuf> =
        files.filter(|path| path.extension().is_some_and(|end| end == "pth")).collect();
    files.sort();
    assert!(files.len() >= 8, "{files:?}");
    files.iter().map(|path| fs::read(path).unwrap()).collect()
}

fn safetensors_files() -> Vec<Vec<u8>> {
    let header = |json: &str, values: &[u8]| {
        [&(json.len() as u64).to_le_bytes()[..], json.as_bytes(), values].concat()
    };
    vec![
        header(
            r#"{"__metadata__":{"format":"pt"},"module.a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},"module.b":{"dtype":"F16","shape":[2],"data_offsets":[8,12]}}"#,
            &[1; 12],
        ),
        header(
            r#"{"a":{"dtype":"F64","shape":[1],"data_offsets":[0,8]},"b":{"dtype":"BF16","shape":[],"data_offsets":[8,10]},"c":{"dtype":"I64","shape":[1],"data_offsets":[10,18]}}"#,
            &[1; 18],
        ),
    ]
}

const SIDECARS: [&str; 4] = [
    r#"{"architecture":"vgg16","pretrained_cfg":{"input_size":[3,224,224],"crop_pct":0.875,"interpolation":"bilinear","mean":[0.485,0.456,0.406],"std":[0.229,0.224,0.225]},"label_names":["n1","n2"],"label_descriptions":{"n1":"tench","n2":"shark"}}"#,
    r#"{"input_size":[1,28,32],"crop_mode":"squash","mean":[0.1],"std":[0.3]}"#,
    r#"{"do_resize":true,"size":{"shortest_edge":224},"crop_pct":0.875,"resample":3,"do_rescale":true,"rescale_factor":0.00392156862745098,"image_mean":[0.5,0.5,0.5],"image_std":[0.5,0.5,0.5]}"#,
    r#"{"size":224,"crop_size":{"height":200,"width":200},"do_normalize":false,"do_flip_channel_order":true,"id2label":{"0":"a","1":"b"}}"#,
];

#[test]
fn files_of_pytorch_are_read_or_refused() {
    mutated("pytorch", torch::pytorch, &pytorch_files(), 30_000);
}

#[test]
fn safetensors_are_read_or_refused() {
    mutated("safetensors", torch::safetensors, &safetensors_files(), 20_000);
}

#[test]
fn sidecars_are_read_or_refused() {
    let seeds: Vec<_> = SIDECARS.iter().map(|text| text.as_bytes().to_vec()).collect();
    mutated("sidecar", torch::sidecar, &seeds, 20_000);
}

/// Writes what fuzzing begins with.
#[test]
#[ignore = "writes fuzz/corpus"]
fn write_seeds() {
    let sidecars: Vec<_> = SIDECARS.iter().map(|text| text.as_bytes().to_vec()).collect();
    for (name, seeds) in
        [("pytorch", pytorch_files()), ("safetensors", safetensors_files()), ("sidecar", sidecars)]
    {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(name);
        fs::create_dir_all(&folder).unwrap();
        for (number, bytes) in seeds.iter().enumerate() {
            fs::write(folder.join(format!("seed-{number}")), bytes).unwrap();
        }
    }
}
