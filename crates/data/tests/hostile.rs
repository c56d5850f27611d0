//! Files that somebody else made, or that a disk or a thief of bits changed: good ones, mutated, and
//! what fuzzing has found. See `fuzz/README.md`.
//!
//! A test program of its own: the allocator counts what each test's own thread has at its peak.

#[path = "common/hostile.rs"]
mod hostile;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs;
use std::path::Path;

use jpeg_encoder::{ColorType, Encoder, SamplingFactor};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index as At;
use proptest::test_runner::{Config, TestRunner};
use zfnet_data::Split;
use zfnet_data::shard::index::{Entry, Index};
use zfnet_data::shard::manifest::{Class, Form, Manifest, MeanMark, ShardMark};

/// An input: its name, what must hold, good files, the most memory that may be taken for a file of
/// some length, and how many mutations are tried.
struct Input {
    name: &'static str,
    check: fn(&[u8]),
    seeds: fn() -> Vec<(&'static str, Vec<u8>)>,
    memory: fn(usize) -> usize,
    cases: u32,
}

/// The tables that a parser makes, the text of errors, and the copies that the checks make.
fn a_few_times(bytes: usize) -> usize {
    8 * bytes + (16 << 10)
}

const INPUTS: [Input; 5] = [
    Input {
        name: "index",
        check: hostile::index,
        seeds: indexes,
        memory: a_few_times,
        cases: 20_000,
    },
    Input {
        name: "manifest",
        check: hostile::manifest,
        seeds: manifests,
        memory: a_few_times,
        cases: 20_000,
    },
    Input {
        name: "decode",
        check: hostile::decode,
        seeds: images,
        // At most 8256 pixels a byte of the file, as decoded and as RGB.
        memory: |bytes| 8256 * (4 + 3) * bytes + (1 << 20),
        cases: 6000,
    },
    Input { name: "tar", check: hostile::tar, seeds: tars, memory: a_few_times, cases: 20_000 },
    Input {
        name: "devkit",
        check: hostile::devkit,
        seeds: devkits,
        // DEFLATE grows at most 1032-fold.
        memory: |bytes| 2 * 1032 * bytes + (64 << 10),
        cases: 20_000,
    },
];

fn input(name: &str) -> &'static Input {
    INPUTS.iter().find(|input| input.name == name).unwrap()
}

/// Runs the check, and the measure of its memory, on one file.
fn holds(input: &Input, bytes: &[u8]) -> Result<(), TestCaseError> {
    let before = HELD.get();
    PEAK.set(before);
    (input.check)(bytes);
    let (peak, allowed) = ((PEAK.get() - before) as usize, (input.memory)(bytes.len()));
    prop_assert!(peak <= allowed, "{peak} bytes of memory for {}, {allowed} allowed", bytes.len());
    Ok(())
}

/// One change to a file.
#[derive(Clone, Debug)]
enum Edit {
    Flip(At, u8),
    Cut(At),
    /// A piece, from one place over another or in between.
    Splice(At, At, usize, bool),
    /// A number that is at the edge of something, in so many bytes, little- or big-endian.
    Number(At, u64, usize, bool),
    /// Decimal or octal digits.
    Digits(At, u64, bool),
}

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let at = any::<At>;
    let number = || {
        let edges = prop_oneof![
            Just(0u64),
            Just(1),
            Just(0x7f),
            Just(0xff),
            Just(0x7fff),
            Just(0xffff),
            Just(0x7fff_ffff),
            Just(0xffff_ffff),
            Just(i64::MAX as u64),
            Just(u64::MAX)
        ];
        (edges, -2i64..=2).prop_map(|(edge, by)| edge.wrapping_add_signed(by))
    };
    let edit = prop_oneof![
        4 => (at(), 1u8..).prop_map(|(place, bits)| Edit::Flip(place, bits)),
        1 => at().prop_map(Edit::Cut),
        2 => (at(), at(), 1usize..600, any::<bool>())
            .prop_map(|(from, to, len, over)| Edit::Splice(from, to, len, over)),
        3 => (at(), number(), prop_oneof![Just(1usize), Just(2), Just(4), Just(8)], any::<bool>())
            .prop_map(|(place, number, width, big)| Edit::Number(place, number, width, big)),
        2 => (at(), number(), any::<bool>())
            .prop_map(|(place, number, octal)| Edit::Digits(place, number, octal)),
    ];
    vec(edit, 1..6)
}

fn apply(bytes: &mut Vec<u8>, edit: &Edit) {
    if bytes.is_empty() {
        return;
    }
    let len = bytes.len();
    let mut write = |at: usize, new: &[u8]| {
        let end = len.min(at + new.len());
        bytes[at..end].copy_from_slice(&new[..end - at]);
    };
    match edit {
        Edit::Flip(at, bits) => bytes[at.index(len)] ^= bits,
        Edit::Cut(at) => bytes.truncate(at.index(len)),
        Edit::Splice(from, to, piece, over) => {
            let (from, to) = (from.index(len), to.index(len));
            let piece = bytes[from..len.min(from + piece)].to_vec();
            let end = if *over { len.min(to + piece.len()) } else { to };
            bytes.splice(to..end, piece);
        }
        Edit::Number(at, number, width, big) => {
            // Where numbers stand in most files.
            let at = at.index(len) / width * width;
            match big {
                true => write(at, &number.to_be_bytes()[8 - width..]),
                false => write(at, &number.to_le_bytes()[..*width]),
            }
        }
        Edit::Digits(at, number, octal) => {
            let digits = if *octal { format!("{number:o}") } else { number.to_string() };
            write(at.index(len), digits.as_bytes());
        }
    }
}

/// Mutates the good files of an input, after all that is kept in its corpus.
fn mutated(name: &str) {
    // Decoders may panic inside `decode`, which catches it. Backtraces take more memory than images.
    std::panic::set_hook(Box::new(|panic| eprintln!("{panic}")));
    let input = input(name);
    for (seed, bytes) in corpus(name) {
        if let Err(error) = holds(input, &bytes) {
            panic!("{name}, {seed}: {error}");
        }
    }
    let seeds = (input.seeds)();
    for (seed, bytes) in &seeds {
        if let Err(error) = holds(input, bytes) {
            panic!("{name}, {seed}: {error}");
        }
    }
    let config = Config { cases: input.cases, failure_persistence: None, ..Config::default() };
    let cases = (any::<At>(), edits());
    let outcome = TestRunner::new(config).run(&cases, |(seed, edits)| {
        let mut bytes = seeds[seed.index(seeds.len())].1.clone();
        edits.iter().for_each(|edit| apply(&mut bytes, edit));
        holds(input, &bytes)
    });
    if let Err(error) = outcome {
        panic!("{name}: {error}");
    }
}

/// What lies in `fuzz/corpus/`: it does not come with the package, only with the repository.
fn corpus(name: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(name);
    let Ok(files) = fs::read_dir(folder) else { return Vec::new() };
    let mut files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    files.sort();
    files.into_iter().map(|file| (file.display().to_string(), fs::read(file).unwrap())).collect()
}

#[test]
fn indexes_are_read_or_refused() {
    mutated("index");
}

#[test]
fn manifests_are_read_or_refused() {
    mutated("manifest");
}

#[test]
fn images_are_read_or_refused() {
    mutated("decode");
}

#[test]
fn tars_are_read_or_refused() {
    mutated("tar");
}

#[test]
fn devkits_are_read_or_refused() {
    mutated("devkit");
}

/// A check that refuses everything would hold for anything.
#[test]
fn the_good_files_are_good() {
    use zfnet_data::{decode::decode, devkit::parse_meta, tar::Archive};
    assert!(indexes().iter().all(|(_, bytes)| Index::parse(bytes).is_ok()));
    assert!(manifests().iter().all(|(_, bytes)| Manifest::parse(bytes).is_ok()));
    assert!(images().iter().all(|(_, bytes)| decode(bytes).is_ok()));
    assert!(devkits().iter().all(|(_, bytes)| parse_meta(bytes).is_ok()));
    for (name, file) in tars() {
        let (path, bytes) = (Path::new(name), file.len() as u64);
        let mut members = 0;
        Archive { path, inner: "", file: &file, start: 0, bytes }
            .members(&mut |_| {
                members += 1;
                Ok(())
            })
            .unwrap();
        assert!(members > 1, "{name}");
    }
}

#[test]
#[ignore = "writes the seeds of fuzz/corpus anew"]
fn write_the_seeds() {
    for input in INPUTS {
        let folder =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(input.name);
        fs::create_dir_all(&folder).unwrap();
        for (name, bytes) in (input.seeds)() {
            fs::write(folder.join(format!("seed-{name}")), bytes).unwrap();
        }
    }
}

fn indexes() -> Vec<(&'static str, Vec<u8>)> {
    let index = |count: u32| {
        let mut index = Index::default();
        (index.shard_bytes, index.shard_xxh3) = (1 << 30, 7);
        for i in 0..count {
            let entry = Entry {
                offset: u64::from(i) * 4096,
                bytes: 3000 + i,
                crc32c: i * 77,
                class: i % 3,
                number: count - 1 - i,
            };
            index.push(entry, &format!("n0000000{}/größe_{i}.JPEG", i % 3));
        }
        index.to_bytes()
    };
    vec![("empty", index(0)), ("one", index(1)), ("several", index(9))]
}

fn manifests() -> Vec<(&'static str, Vec<u8>)> {
    let manifest = |form: Form, file: &str| {
        let mut manifest = Manifest::new(form);
        manifest.source = "ImageFolder".into();
        for (folder, name, train) in [("n00000001", "cat", 5), ("n00000002", "Käse", 4)] {
            manifest.classes.push(Class {
                folder: folder.into(),
                name: name.into(),
                train,
                val: 1,
            });
        }
        manifest.mean =
            Some(MeanMark { file: "mean.safetensors".into(), side: 256, xxh3: "1f".into() });
        for (split, images) in [(Split::Train, 9), (Split::Val, 2)] {
            let shard = ShardMark {
                file: format!("{}-000000.{file}", split.name()),
                images,
                bytes: 12_345,
                xxh3: "0123456789abcdef".into(),
                index_xxh3: "fedcba9876543210".into(),
            };
            match split {
                Split::Train => manifest.train.push(shard),
                Split::Val => manifest.val.push(shard),
            }
        }
        manifest.to_json().into_bytes()
    };
    vec![
        ("kept", manifest(Form::Kept, "tar")),
        ("resized", manifest(Form::Resized { side: 256, quality: 90 }, "tar")),
        ("raw", manifest(Form::Raw { side: 256 }, "raw")),
    ]
}

fn images() -> Vec<(&'static str, Vec<u8>)> {
    const W: usize = 45;
    const H: usize = 37;
    /// A slope with some grain, `channels` bytes a pixel.
    fn pixels(channels: usize) -> Vec<u8> {
        let byte = |i: usize| (i / channels % W * 4 + i * 7919 % 31) as u8;
        (0..W * H * channels).map(byte).collect()
    }
    fn jpeg(colour: ColorType, channels: usize, set: fn(&mut Encoder<&mut Vec<u8>>)) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut encoder = Encoder::new(&mut bytes, 80);
        set(&mut encoder);
        encoder.encode(&pixels(channels), W as u16, H as u16, colour).unwrap();
        bytes
    }
    fn png(colour: png::ColorType, depth: png::BitDepth) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, W as u32, H as u32);
        encoder.set_color(colour);
        encoder.set_depth(depth);
        if colour == png::ColorType::Indexed {
            encoder.set_palette((0..48).map(|i| i * 5).collect::<Vec<u8>>());
        }
        let line = (W * colour.samples() * depth as usize).div_ceil(8);
        let data: Vec<u8> = pixels(8).into_iter().take(line * H).collect();
        encoder.write_header().unwrap().write_image_data(&data).unwrap();
        bytes
    }
    vec![
        ("baseline.jpg", jpeg(ColorType::Rgb, 3, |_| ())),
        ("422.jpg", jpeg(ColorType::Rgb, 3, |e| e.set_sampling_factor(SamplingFactor::F_2_1))),
        ("progressive.jpg", jpeg(ColorType::Rgb, 3, |e| e.set_progressive(true))),
        ("restarts.jpg", jpeg(ColorType::Rgb, 3, |e| e.set_restart_interval(2))),
        ("grey.jpg", jpeg(ColorType::Luma, 1, |_| ())),
        ("cmyk.jpg", jpeg(ColorType::Cmyk, 4, |_| ())),
        ("rgb.png", png(png::ColorType::Rgb, png::BitDepth::Eight)),
        ("deep.png", png(png::ColorType::Rgba, png::BitDepth::Sixteen)),
        ("grey.png", png(png::ColorType::Grayscale, png::BitDepth::One)),
        ("palette.png", png(png::ColorType::Indexed, png::BitDepth::Four)),
    ]
}

fn tars() -> Vec<(&'static str, Vec<u8>)> {
    let tar = |header: fn() -> tar::Header, names: &[&str]| {
        let mut builder = tar::Builder::new(Vec::new());
        for (i, name) in names.iter().enumerate() {
            let mut header = header();
            header.set_size(100 + 500 * i as u64);
            header.set_mode(0o644);
            let data = vec![b'x'; 100 + 500 * i];
            builder.append_data(&mut header, name, &data[..]).unwrap();
        }
        builder.into_inner().unwrap()
    };
    let long = "n00000001/".repeat(13) + "a.JPEG";
    let names = ["n00000001/a.jpg", "n00000001/a.cls", "n00000002/b.jpg"];
    let mut pax = tar::Builder::new(Vec::new());
    for name in ["größe.jpg", "b.jpg"] {
        pax.append_pax_extensions([("path", name.as_bytes()), ("size", b"5")]).unwrap();
        let mut header = tar::Header::new_ustar();
        header.set_size(5);
        pax.append_data(&mut header, "plain", &b"hello"[..]).unwrap();
    }
    vec![
        ("ustar.tar", tar(tar::Header::new_ustar, &names)),
        ("gnu.tar", tar(tar::Header::new_gnu, &[&long, "b.JPEG"])),
        ("old.tar", tar(tar::Header::new_old, &names)),
        ("pax.tar", pax.into_inner().unwrap()),
    ]
}

/// MATLAB 5 files as the kit has one: an array of structs, as it is and compressed.
fn devkits() -> Vec<(&'static str, Vec<u8>)> {
    fn element(kind: u32, data: &[u8]) -> Vec<u8> {
        let padding = vec![0; data.len().next_multiple_of(8) - data.len()];
        [&kind.to_le_bytes(), &(data.len() as u32).to_le_bytes(), data, &padding].concat()
    }
    fn array(class: u8, dims: [u32; 2], name: &str, content: &[Vec<u8>]) -> Vec<u8> {
        let parts = [
            element(6, &[class, 0, 0, 0, 0, 0, 0, 0]),
            element(5, &dims.map(u32::to_le_bytes).concat()),
            element(1, name.as_bytes()),
            content.concat(),
        ];
        element(14, &parts.concat())
    }
    let number = |value: f64| array(6, [1, 1], "", &[element(9, &value.to_le_bytes())]);
    let text = |text: &str| {
        let units: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
        array(4, [1, text.len() as u32], "", &[element(4, &units)])
    };
    let mut names = vec![0; 4 * 16];
    for (i, name) in ["ILSVRC2012_ID", "WNID", "words", "num_children"].iter().enumerate() {
        names[i * 16..][..name.len()].copy_from_slice(name.as_bytes());
    }
    // The width of a name stands in its tag.
    let mut fields = vec![[5, 0, 4, 0, 16, 0, 0, 0].to_vec(), element(1, &names)];
    for (id, wnid, children) in
        [(1.0, "n00000003", 0.0), (2.0, "n00000001", 0.0), (3.0, "n00000002", 2.0)]
    {
        fields.extend([number(id), text(wnid), text("cat, mouse"), number(children)]);
    }
    let variable = array(2, [3, 1], "synsets", &fields);
    let mut header = vec![b' '; 124];
    header.extend(b"\0\x01IM");
    let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
    std::io::Write::write_all(&mut zlib, &variable).unwrap();
    let zipped = zlib.finish().unwrap();
    let compressed = [&15u32.to_le_bytes()[..], &(zipped.len() as u32).to_le_bytes(), &zipped];
    vec![
        ("plain.mat", [&header[..], &variable].concat()),
        ("compressed.mat", [&header, &compressed.concat()[..]].concat()),
    ]
}

/// The system's allocator, counting what each thread holds.
struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

thread_local! {
    // Constant and without a destructor: reading it allocates nothing.
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    let held = HELD.get() + bytes;
    HELD.set(held);
    PEAK.set(PEAK.get().max(held));
}

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as isize - layout.size() as isize);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
}
