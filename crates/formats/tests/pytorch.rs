//! Files of PyTorch: those that torch wrote (`data/`, by `data/pytorch.py`), and those that somebody made to do harm.

use std::fs;
use std::io::Cursor;
use std::path::Path;
use std::time::{Duration, Instant};

use zfnet_formats::kind::kind_of;
use zfnet_formats::pytorch::{parse, read};
use zfnet_formats::{Kind, Tensors};

fn data(name: &str) -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)).unwrap()
}

fn of(bytes: &[u8]) -> Result<Tensors, String> {
    parse(Cursor::new(bytes))
}

fn refused(bytes: &[u8]) -> String {
    of(bytes).unwrap_err()
}

/// Name, shape and values of each.
fn rows(tensors: &Tensors) -> Vec<(&str, &[usize], &[f32])> {
    tensors.tensors.iter().map(|t| (&t.name[..], &t.shape[..], &t.values[..])).collect()
}

fn counted(from: usize, n: usize) -> Vec<f32> {
    (from..from + n).map(|value| value as f32).collect()
}

/// The network of `data/pytorch.py`: its values are counted up.
fn is_net(tensors: &Tensors) {
    let expected: [(&str, &[usize], usize); 6] = [
        ("conv.weight", &[2, 1, 2, 2], 0),
        ("conv.bias", &[2], 8),
        ("bn.weight", &[2], 10),
        ("bn.bias", &[2], 12),
        ("bn.running_mean", &[2], 14),
        ("bn.running_var", &[2], 16),
    ];
    assert!(tensors.ordered);
    let found = rows(tensors);
    assert_eq!(found.len(), expected.len(), "{found:?}");
    for ((name, shape, values), (expected, expected_shape, from)) in found.into_iter().zip(expected)
    {
        assert_eq!((name, shape), (expected, expected_shape));
        assert_eq!(values, counted(from, values.len()), "{name}");
    }
}

#[test]
fn the_three_formats_are_read_in_the_state_dicts_order() {
    for (name, kind, all) in [
        ("zip.pth", Kind::PytorchZip, true),
        ("stream.pth", Kind::PytorchStream, true),
        ("tar.pth", Kind::PytorchTar, false),
    ] {
        let bytes = data(name);
        assert_eq!(kind_of(Cursor::new(&bytes), None), Ok(kind));
        let tensors = of(&bytes).unwrap();
        is_net(&tensors);
        let note = match all {
            true => {
                "7 of 7 tensors read, of which 1 of integers is no weights: `bn.num_batches_tracked`"
            }
            false => "6 of 6 tensors read",
        };
        assert_eq!(tensors.notes, [note], "{name}");
    }
}

#[test]
fn a_module_is_its_state_dict() {
    for name in ["module.pth", "module_protocol1.pth"] {
        let tensors = of(&data(name)).unwrap();
        is_net(&tensors);
        assert_eq!(tensors.notes.len(), 1, "{:?}", tensors.notes);
    }
    let tensors = of(&data("module_zip.pth")).unwrap();
    let found = rows(&tensors);
    assert_eq!(found.iter().map(|row| row.0).collect::<Vec<_>>(), ["0.weight", "0.bias"]);
    assert_eq!(found[0].2, counted(0, 8));
    assert_eq!(tensors.notes[1], "`module.` was taken off 2 names");
}

#[test]
fn a_checkpoint_holds_it_beside_much_else() {
    let tensors = of(&data("checkpoint.pth")).unwrap();
    is_net(&tensors);
    assert_eq!(
        tensors.notes,
        [
            "the state dict is that of `state_dict`",
            "left out: 1 tensor beside `state_dict`",
            "left out: `epoch`, `args`, `loss`, `history` and 3 more",
            "7 of 7 tensors read, of which 1 of integers is no weights: `module.bn.num_batches_tracked`",
            "6 tensors of float16 became float32",
            "`module.` was taken off 7 names",
        ]
    );
}

#[test]
fn views_are_read_as_they_look() {
    let tensors = of(&data("views.pth")).unwrap();
    let permuted: Vec<f32> = (0..24).map(|n| (n / 6 + n % 6 / 3 * 12 + n % 3 * 4) as f32).collect();
    let steps = [6., 8., 10., 12., 14., 16.];
    let expected: [(&str, &[usize], &[f32]); 11] = [
        ("permuted", &[4, 2, 3], &permuted),
        ("steps", &[2, 3], &steps),
        ("later", &[4], &[3., 4., 5., 6.]),
        ("same", &[24], &counted(0, 24)),
        ("expanded", &[3], &[1.; 3]),
        ("empty", &[0, 3], &[]),
        ("scalar", &[], &[5.]),
        ("half", &[3], &[0., 1., 2.]),
        ("bfloat", &[3], &[0., 1., 2.]),
        ("double", &[3], &[0., 0.25, 0.5]),
        ("parameter", &[2], &[0., 1.]),
    ];
    assert_eq!(rows(&tensors), expected);
    assert_eq!(
        tensors.notes,
        [
            "12 of 12 tensors read, of which 1 of integers is no weights: `counter`",
            "1 tensor of float16 became float32",
            "1 tensor of bfloat16 became float32",
            "1 tensor of float64 became float32",
        ]
    );
}

#[test]
fn what_has_no_value_for_each_element_is_refused_by_name() {
    let error = refused(&data("sparse.pth"));
    assert!(
        error.starts_with("entry `w` is a sparse tensor") && error.contains("to_dense()"),
        "{error}"
    );
    for (class, words) in [
        ("ComplexFloatStorage", "of `torch.ComplexFloatStorage`"),
        ("QInt8Storage", "of `torch.QInt8Storage`"),
        ("FantasyStorage", "`torch.FantasyStorage`, which is not known"),
    ] {
        let tensor = Tensor { class, ..Tensor::default() };
        let error = refused(&zip_of(&dict(&[("w", &tensor.pickled())]), &[("0", &[0; 16])]));
        assert!(error.contains("`w`") && error.contains(words), "{error}");
    }
}

// ---- Pickles and zip files by hand ----

fn global(module: &str, name: &str) -> Vec<u8> {
    format!("c{module}\n{name}\n").into_bytes()
}

fn text(text: &str) -> Vec<u8> {
    [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat()
}

fn int(value: i64) -> Vec<u8> {
    [&[0x8a, 8], &value.to_le_bytes()[..]].concat()
}

fn tuple(items: &[Vec<u8>]) -> Vec<u8> {
    [b"(", &items.concat()[..], b"t"].concat()
}

fn call(callable: Vec<u8>, args: &[Vec<u8>]) -> Vec<u8> {
    [callable, tuple(args), b"R".to_vec()].concat()
}

/// The items of a dictionary that is made and filled.
fn dict(items: &[(&str, &[u8])]) -> Vec<u8> {
    let mut bytes = b"}(".to_vec();
    for (key, value) in items {
        bytes.extend(text(key));
        bytes.extend(*value);
    }
    bytes.push(b'u');
    bytes
}

/// A tensor, as a pickle has it.
#[derive(Clone)]
struct Tensor<'a> {
    class: &'a str,
    key: &'a str,
    elements: i64,
    offset: i64,
    shape: &'a [i64],
    strides: &'a [i64],
}

impl Default for Tensor<'_> {
    fn default() -> Self {
        Self { class: "FloatStorage", key: "0", elements: 4, offset: 0, shape: &[4], strides: &[1] }
    }
}

impl Tensor<'_> {
    fn pickled(&self) -> Vec<u8> {
        let numbers = |numbers: &[i64]| tuple(&numbers.iter().map(|&n| int(n)).collect::<Vec<_>>());
        let reference = [
            text("storage"),
            global("torch", self.class),
            text(self.key),
            text("cpu"),
            int(self.elements),
        ];
        let storage = [tuple(&reference), b"Q".to_vec()].concat();
        let hooks = call(global("collections", "OrderedDict"), &[]);
        let offset = int(self.offset);
        let args =
            [storage, offset, numbers(self.shape), numbers(self.strides), b"\x89".to_vec(), hooks];
        call(global("torch._utils", "_rebuild_tensor_v2"), &args)
    }
}

fn crc(bytes: &[u8]) -> u32 {
    bytes.iter().fold(!0_u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 * (crc & 1)))
    }) ^ !0
}

/// An entry of a zip file, and what its directory says of it.
struct Entry {
    name: String,
    data: Vec<u8>,
    method: u16,
    bytes: u64,
    /// Where it says to lie, if not where it does.
    at: Option<u32>,
}

fn entry(name: &str, data: &[u8]) -> Entry {
    let (bytes, at) = (data.len() as u64, None);
    Entry { name: name.into(), data: data.into(), method: 0, bytes, at }
}

fn zip(entries: &[Entry]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for entry in entries {
        let at = entry.at.unwrap_or(file.len() as u32);
        let crc = crc(&entry.data).to_le_bytes();
        let (method, name) = (entry.method.to_le_bytes(), (entry.name.len() as u16).to_le_bytes());
        let common = [&[20, 0, 0, 0], &method[..], &[0; 4], &crc].concat();
        let none = [0xff; 8];
        // Sizes stand behind the name, in eight bytes each.
        let wide =
            [&[1, 0, 16, 0], &entry.bytes.to_le_bytes()[..], &entry.bytes.to_le_bytes()].concat();
        file.extend(
            [b"PK\x03\x04", &common[..], &none, &name, &[20, 0], entry.name.as_bytes(), &wide]
                .concat(),
        );
        file.extend(&entry.data);
        let rest = [&[20, 0][..], &[0; 10], &at.to_le_bytes()].concat();
        let head = [b"PK\x01\x02\x14\x00", &common[..], &none, &name].concat();
        directory.extend([&head[..], &rest, entry.name.as_bytes(), &wide].concat());
    }
    let (count, at) = ((entries.len() as u16).to_le_bytes(), (file.len() as u32).to_le_bytes());
    let bytes = (directory.len() as u32).to_le_bytes();
    [&file[..], &directory, b"PK\x05\x06\0\0\0\0", &count, &count, &bytes, &at, &[0, 0]].concat()
}

/// A file as torch.save writes it, of a pickle's object and storages.
fn entries(object: &[u8], storages: &[(&str, &[u8])]) -> Vec<Entry> {
    let pickle = [b"\x80\x02", object, b"."].concat();
    let mut entries =
        vec![entry("archive/data.pkl", &pickle), entry("archive/byteorder", b"little")];
    entries.extend(storages.iter().map(|(key, data)| entry(&format!("archive/data/{key}"), data)));
    entries.push(entry("archive/version", b"3\n"));
    entries
}

fn zip_of(object: &[u8], storages: &[(&str, &[u8])]) -> Vec<u8> {
    zip(&entries(object, storages))
}

/// Four values.
fn storage() -> Vec<u8> {
    [1.0_f32, 2., 3., 4.].iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// A file with one tensor.
fn one(tensor: &Tensor) -> Vec<u8> {
    zip_of(&dict(&[("w", &tensor.pickled())]), &[("0", &storage())])
}

#[test]
fn files_by_hand_are_read() {
    let tensors = of(&one(&Tensor::default())).unwrap();
    assert_eq!(rows(&tensors), [("w", &[4][..], &[1., 2., 3., 4.][..])]);
    let mut big = entries(&dict(&[("w", &Tensor::default().pickled())]), &[("0", &storage())]);
    big[1].data = b"big".to_vec();
    big[1].bytes = 3;
    big[2].data.chunks_exact_mut(4).for_each(<[u8]>::reverse);
    assert_eq!(rows(&of(&zip(&big)).unwrap())[0].2, [1., 2., 3., 4.]);
}

#[test]
fn tensors_are_known_in_all_that_torch_wraps_around_them() {
    let plain = || Tensor::default().pickled();
    let args = |tensor: &Tensor| {
        let pickled = tensor.pickled();
        let name = global("torch._utils", "_rebuild_tensor_v2");
        pickled[name.len()..pickled.len() - 1].to_vec() // the tuple alone
    };
    let class = || global("torch.nn.parameter", "Parameter");
    let flags = |more: &[Vec<u8>]| [&[b"\x89".to_vec(), b"}".to_vec()], more].concat();
    let untyped = Tensor { class: "UntypedStorage", elements: 16, ..Tensor::default() };
    let storage_of = args(&untyped);
    let with_type =
        [&storage_of[..storage_of.len() - 1], &global("torch", "float32"), b"t"].concat();
    let subclass = [
        global("torch._utils", "_rebuild_tensor_v2"),
        global("my", "Tensor"),
        args(&Tensor::default()),
        b"}".to_vec(),
    ];
    for wrapped in [
        call(global("torch._utils", "_rebuild_parameter"), &[&[plain()][..], &flags(&[])].concat()),
        call(
            global("torch._utils", "_rebuild_parameter_with_state"),
            &[&[plain()][..], &flags(&[b"}".to_vec()])].concat(),
        ),
        [call(class(), &[plain()]), tuple(&flags(&[])), b"b".to_vec()].concat(),
        call(global("copy_reg", "__newobj__"), &[class(), plain()]),
        [global("torch._utils", "_rebuild_tensor_v3"), with_type, b"R".to_vec()].concat(),
        call(global("torch._tensor", "_rebuild_from_type_v2"), &subclass),
    ] {
        let tensors = of(&zip_of(&dict(&[("w", &wrapped)]), &[("0", &storage())])).unwrap();
        assert_eq!(rows(&tensors), [("w", &[4][..], &[1., 2., 3., 4.][..])]);
    }
}

#[test]
fn a_state_dict_is_taken_for_one_whatever_its_names() {
    // Layers that are called as checkpoints call what they hold.
    let layer =
        dict(&[("weight", &Tensor::default().pickled()), ("bias", &Tensor::default().pickled())]);
    let of = |object: &[u8]| of(&zip_of(object, &[("0", &storage())])).unwrap();
    let flat = dict(&[("model.weight", &Tensor::default().pickled()), ("net", &layer)]);
    let names =
        |tensors: &Tensors| tensors.tensors.iter().map(|t| t.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&of(&flat)), ["model.weight", "net.weight", "net.bias"]);
    let layers = dict(&[("conv1", &layer), ("fc", &layer)]);
    assert_eq!(names(&of(&layers)), ["conv1.weight", "conv1.bias", "fc.weight", "fc.bias"]);
    let other = of(&dict(&[("epoch", &int(3)), ("pretrained", &layers)]));
    assert_eq!(names(&other).len(), 4);
    assert_eq!(other.notes[..2], ["the state dict is that of `pretrained`", "left out: `epoch`"]);
    // A key that comes again counts as it came last.
    let later = Tensor { offset: 2, shape: &[2], ..Tensor::default() };
    let twice = of(&dict(&[("w", &Tensor::default().pickled()), ("w", &later.pickled())]));
    assert_eq!(rows(&twice), [("w", &[2][..], &[3., 4.][..])]);
    // What an optimiser has is no network's.
    let state = dict(&[("exp_avg", &Tensor::default().pickled())]);
    let beside = of(&dict(&[("fc.weight", &Tensor::default().pickled()), ("optimizer", &state)]));
    assert_eq!(names(&beside), ["fc.weight"]);
    assert_eq!(beside.notes[0], "left out: `optimizer`");
    let error =
        refused(&zip_of(&dict(&[("epoch", &int(3)), ("optimizer", &state)]), &[("0", &storage())]));
    assert!(error.starts_with("holds tensors, but no network's: `epoch`, `optimizer`"), "{error}");
    // As Python 2 and the oldest pickles write it; in a tuple with an epoch, as some save it.
    let pairs = [b"]", &tuple(&[text("w"), Tensor::default().pickled()])[..], b"a"].concat();
    let ordered = call(global("collections", "OrderedDict"), &[pairs]);
    assert_eq!(names(&of(&tuple(&[ordered, int(3)]))), ["w"]);
}

#[test]
fn one_object_in_two_places_is_the_same_in_both() {
    // Remembered while it is empty, as Python's pickler does it, and filled later.
    let filled = [b"}q\x01(", &text("w")[..], &Tensor::default().pickled(), b"u"].concat();
    let object = [b"}(", &text("alias")[..], &filled, &text("model"), b"h\x01u"].concat();
    let tensors = of(&zip_of(&object, &[("0", &storage())])).unwrap();
    assert_eq!(rows(&tensors)[0].2, [1., 2., 3., 4.]);
    assert_eq!(tensors.notes[0], "the state dict is that of `model`");
    assert!(tensors.notes[1].contains("`alias`"), "{:?}", tensors.notes);
    // One that holds itself.
    let object =
        [b"}q\x01(", &text("model")[..], b"h\x01", &text("w"), &Tensor::default().pickled(), b"u"]
            .concat();
    let error = refused(&zip_of(&object, &[("0", &storage())]));
    assert!(error.contains("too deep"), "{error}");
    let object =
        [b"}q\x01(", &text("a")[..], b"h\x01", &text("w"), &Tensor::default().pickled(), b"u"]
            .concat();
    let error = refused(&zip_of(&object, &[("0", &storage())]));
    assert!(error.contains("deep") || error.contains("entries"), "{error}");
}

#[test]
fn nothing_is_executed() {
    let folder = tempfile::tempdir().unwrap();
    let mark = folder.path().join("mark");
    let command = text(&format!("touch {}", mark.display()));
    let calls = [
        call(global("os", "system"), std::slice::from_ref(&command)),
        call(global("posix", "system"), std::slice::from_ref(&command)),
        call(global("builtins", "eval"), &[text("__import__('os')")]),
        [b"(", &command[..], b"ios\nsystem\n"].concat(),
        [b"(", &global("os", "system")[..], &command, b"o"].concat(),
        [&text("os")[..], &text("system"), b"\x93", &tuple(&[command]), b"R"].concat(),
    ];
    for code in calls {
        let error = refused(&zip_of(&code, &[]));
        assert!(error.starts_with("has no tensors"), "{error}");
        let beside = dict(&[("x", &code), ("w", &Tensor::default().pickled())]);
        let tensors = of(&zip_of(&beside, &[("0", &storage())])).unwrap();
        assert_eq!(rows(&tensors)[0].2, [1., 2., 3., 4.]);
        assert_eq!(tensors.notes[0], "left out: `x`");
        // One that would be given the tensor.
        let around = call(global("os", "system"), &[Tensor::default().pickled()]);
        let error = refused(&zip_of(&dict(&[("w", &around)]), &[("0", &storage())]));
        assert!(error.contains("in `w`: is an object of `os.system`"), "{error}");
    }
    assert!(!mark.exists());
}

#[test]
fn a_million_dictionaries_in_each_other_are_no_trouble() {
    const DEEP: usize = 1_000_000;
    for (innermost, words) in
        [(b"N".to_vec(), "no tensors"), (Tensor::default().pickled(), "too deep")]
    {
        let mut object = b"}U\x01a".repeat(DEEP);
        object.extend(innermost);
        object.extend(b"s".repeat(DEEP));
        let begin = Instant::now();
        let error = refused(&zip_of(&object, &[("0", &storage())]));
        assert!(error.contains(words), "{error}");
        assert!(begin.elapsed() < Duration::from_secs(20));
    }
    // As lists, tuples, and the arguments of calls.
    for (open, close) in [(&b"]"[..], &b"a"[..]), (b"", b"\x85"), (b"cos\nsystem\n", b"\x85R")] {
        let object =
            [&open.repeat(DEEP)[..], &Tensor::default().pickled(), &close.repeat(DEEP)].concat();
        assert!(of(&zip_of(&object, &[("0", &storage())])).is_err());
    }
}

#[test]
fn what_doubles_itself_again_and_again_is_refused() {
    // Each level holds the one before twice: 2^60 tensors.
    let mut object = [&Tensor::default().pickled()[..], b"q\x00"].concat();
    for _ in 0..60 {
        object.extend(b"}(U\x01ah\x00U\x01bh\x00uq\x00");
    }
    let begin = Instant::now();
    let error = refused(&zip_of(&object, &[("0", &storage())]));
    assert!(error.contains("entries") || error.contains("several places"), "{error}");
    let object =
        [&Tensor::default().pickled()[..], b"q\x00", &b"h\x00h\x00\x86q\x00".repeat(60)].concat();
    let error = refused(&zip_of(&object, &[("0", &storage())]));
    assert!(error.contains("entries") || error.contains("several places"), "{error}");
    // Many names for one tensor take more memory than the file has a right to.
    let mut object = [&Tensor::default().pickled()[..], b"q\x000}("].concat();
    for name in 0..50_000 {
        object.extend(text(&name.to_string()));
        object.extend(b"h\x00");
    }
    object.push(b'u');
    assert_eq!(of(&zip_of(&object, &[("0", &storage())])).unwrap().tensors.len(), 50_000);
    let large = vec![0; 1 << 20];
    let tensor = Tensor { elements: 1 << 18, shape: &[1 << 18], ..Tensor::default() };
    let object =
        [&tensor.pickled()[..], b"q\x000", &object[Tensor::default().pickled().len() + 3..]]
            .concat();
    let error = refused(&zip_of(&object, &[("0", &large)]));
    assert!(error.contains("take more than 16 times the file's"), "{error}");
    assert!(begin.elapsed() < Duration::from_secs(20));
}

#[test]
fn what_many_share_is_not_looked_at_for_each() {
    // 60,000 objects with the same attributes, 200,000 of them; modules with the same set of names.
    let attributes = b"K\x01N".repeat(200_000);
    let object = |state: &[u8]| [&global("my", "Thing")[..], b")\x81", state, b"b"].concat();
    let tables = [text("_parameters"), text("_buffers"), text("_modules")]
        .map(|key| [&key[..], b"}"].concat());
    let names = [
        text("_non_persistent_buffers_set"),
        b"]q\x02(".to_vec(),
        b"U\x01x".repeat(200_000),
        b"e".to_vec(),
    ];
    for state in [
        [b"}q\x01(", &attributes[..], b"u"].concat(),
        [b"}q\x01(", &tables.concat()[..], &names.concat(), b"u"].concat(),
    ] {
        let mut items = [b"}(", &text("w")[..], &Tensor::default().pickled()].concat();
        items.extend([text("0"), object(&state)].concat());
        for number in 1..60_000 {
            items.extend([text(&number.to_string()), object(b"h\x01")].concat());
        }
        items.push(b'u');
        let begin = Instant::now();
        let error = refused(&zip_of(&items, &[("0", &storage())]));
        assert!(error.contains("more than 65536 entries"), "{error}");
        assert!(begin.elapsed() < Duration::from_secs(20));
    }
}

#[test]
fn more_objects_than_any_checkpoint_has_are_refused() {
    for opcode in [b"]", b"}", b"("] {
        let error = refused(&zip_of(&opcode.repeat(5 << 20), &[]));
        assert!(error.contains("more than 4194304 objects"), "{error}");
    }
}

#[test]
fn absurd_sizes_are_refused() {
    const HUGE: i64 = 1 << 40;
    let too_large = "larger than its storage";
    for (shape, strides, offset, words) in [
        (&[HUGE, HUGE][..], &[1, 1][..], 0, too_large),
        (&[HUGE, HUGE, 0], &[1, 1, 1], 5, too_large),
        (&[5], &[1], 0, too_large),
        (&[2, 2], &[3, 1], 0, too_large),
        (&[2], &[i64::MAX], 0, too_large),
        (&[2, 2], &[i64::MAX, i64::MAX], 0, too_large),
        (&[3], &[i64::MAX], i64::MAX, too_large),
        (&[4], &[1], 1, too_large),
        (&[1], &[1], i64::MAX, too_large),
        (&[HUGE], &[0], 0, "take more than 16 times"),
        (&[1 << 20, 1 << 20], &[0, 0], 0, "take more than 16 times"),
        (&[-4], &[1], 0, "numbers from 0 on"),
        (&[4], &[-1], 3, "numbers from 0 on"),
        (&[4], &[1], -1, "numbers from 0 on"),
        (&[2, 2], &[1], 0, "2 sizes and 1 strides"),
        (&[1; 17], &[1; 17], 0, "numbers from 0 on"),
    ] {
        let error = refused(&one(&Tensor { shape, strides, offset, ..Tensor::default() }));
        assert!(error.contains(words), "{shape:?} {strides:?} {offset}: {error}");
        assert!(error.contains("`w`") || words.contains("16 times"), "{error}");
    }
    // A storage that says to be larger than it is; of none, of a wrong checksum.
    let long = Tensor { elements: HUGE, shape: &[HUGE], ..Tensor::default() };
    let error = refused(&one(&long));
    assert!(error.contains("more than 16 times") || error.contains("of 16 bytes"), "{error}");
    let error = refused(&one(&Tensor { elements: 8, shape: &[8], ..Tensor::default() }));
    assert!(
        error.contains("tensor `w` of shape [8]") && error.contains("its storage of 16 bytes"),
        "{error}"
    );
    let error = refused(&one(&Tensor { key: "1", ..Tensor::default() }));
    assert!(error.contains("storage `1`, which the file does not have"), "{error}");
    let error = refused(&one(&Tensor { elements: -4, ..Tensor::default() }));
    assert!(error.contains("damaged"), "{error}");
    let mut changed = one(&Tensor::default());
    let at = changed.windows(16).position(|bytes| bytes == storage()).unwrap();
    changed[at] ^= 1;
    let error = refused(&changed);
    assert!(error.contains("its checksum differs"), "{error}");
}

#[test]
fn zip_files_that_unpack_to_more_than_they_are_are_refused() {
    let good = || entries(&dict(&[("w", &Tensor::default().pickled())]), &[("0", &storage())]);
    let mut deflated = good();
    (deflated[2].method, deflated[2].bytes) = (8, 1 << 40);
    let mut long = good();
    long[2].bytes = 1 << 40;
    let mut pickle = good();
    pickle[0].bytes = u64::MAX;
    let mut overlap = good();
    overlap[2].at = Some(0);
    let mut inside = good();
    inside[0].bytes = inside[0].data.len() as u64 + 60;
    let mut twice = good();
    twice[3].name = twice[2].name.clone();
    let mut elsewhere = good();
    elsewhere[2].at = Some(7);
    let mut beyond = good();
    beyond[2].at = Some(u32::MAX - 1);
    for (entries, words) in [
        (deflated, "is compressed"),
        (long, "reaches beyond its end"),
        (pickle, "reaches beyond its end"),
        (overlap, "lie in the same bytes"),
        (inside, "lie in the same bytes"),
        (twice, "two entries"),
        (elsewhere, "not where its zip directory says"),
        (beyond, "cut short"),
    ] {
        let error = refused(&zip(&entries));
        assert!(error.contains(words), "{error}, expected {words}");
    }
}

#[test]
fn names_lead_nowhere() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("inner/evil.pth");
    fs::create_dir(path.parent().unwrap()).unwrap();
    fs::write(folder.path().join("secret"), storage()).unwrap();
    for key in ["../../secret", "../secret", "/etc/passwd"] {
        let tensor = Tensor { key, ..Tensor::default() };
        let object = dict(&[("../w", &tensor.pickled())]);
        fs::write(&path, zip_of(&object, &[])).unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains("which the file does not have"), "{error}");
        // As an entry it is a name like any other.
        fs::write(&path, zip_of(&object, &[(key, &storage())])).unwrap();
        assert_eq!(rows(&read(&path).unwrap())[0].0, "../w");
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
}

#[test]
fn files_that_are_cut_short_anywhere_are_refused() {
    for name in ["zip.pth", "stream.pth", "tar.pth", "checkpoint.pth", "views.pth", "module.pth"] {
        let bytes = data(name);
        for len in 0..bytes.len() {
            let error = match of(&bytes[..len]) {
                Err(error) => error,
                // The padding behind the last member of the tar.
                Ok(tensors) if name == "tar.pth" && len > 3584 => {
                    is_net(&tensors);
                    continue;
                }
                Ok(_) => panic!("{name} is read from its first {len} bytes"),
            };
            assert!(!error.is_empty() && error.len() < 400, "{name} to {len}: {error}");
        }
        let error = refused(&bytes[..bytes.len() * 3 / 4]);
        assert!(error.contains("get it again"), "{name}: {error}");
    }
}

#[test]
fn what_is_no_file_of_pytorch_is_told_by_its_contents() {
    let named = |name: &str| zip(&[entry(name, b"x")]);
    let script = zip(&[
        entry("net/data.pkl", b"x"),
        entry("net/code/net.py", b"x"),
        entry("net/constants.pkl", b"x"),
    ]);
    let lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 244408911\n";
    let blob = b"\x08\x01\x10\x03\x18\x02\x20\x02\x2a\x08\0\0\0\0\0\0\0\0";
    let mut tar = vec![0; 512];
    tar[257..262].copy_from_slice(b"ustar");
    let caffemodel = b"\x0a\x05LeNet\xa2\x06\x06\x0a\x04data";
    let onnx = b"\x08\x08\x12\x07pytorch\x3a\x02\x12\0\x42\x04\x0a\0\x10\x11";
    for (bytes, kind, words) in [
        (&b""[..], Kind::Empty, "an empty file"),
        (lfs, Kind::LfsPointer, "`git lfs pull`"),
        (b"\n<!DOCTYPE html><html><body>Not found", Kind::Html, "a web page"),
        (b"<?xml version=\"1.0\"?><Error><Code>AccessDenied", Kind::Html, "a web page"),
        (b"\x89HDF\r\n\x1a\n\0\0\0\0", Kind::Hdf5, "HDF5"),
        (b"\x93NUMPY\x01\0v\0{'descr'", Kind::Numpy, "NumPy"),
        (b"GGUF\x03\0\0\0", Kind::Gguf, "GGUF"),
        (b"\x1f\x8b\x08\0\0\0\0\0", Kind::Compressed, "unpack it first"),
        (b"\x1c\0\0\0TFL3\x14\0", Kind::TensorFlowLite, "TensorFlow Lite"),
        (b"[[layer]]\nname = \"conv1\"\n", Kind::Text, "a text file"),
        (b"\x80\x04\x95\x05\0\0\0\0\0\0\0}\x94.", Kind::Pickle, "torch.save did not write"),
        (b"\x10\0\0\0\0\0\0\0{\"a\":{\"dtype\":", Kind::Safetensors, "safetensors"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", Kind::Unknown, "unknown kind"),
        (&tar, Kind::Tar, "a tar of something else"),
        (blob, Kind::BinaryProto, "single array"),
        (caffemodel, Kind::Caffemodel, "a Caffe network"),
        (onnx, Kind::Onnx, "an ONNX model"),
        (&named("conv1.npy"), Kind::Numpy, "NumPy"),
        (&named("model.weights.h5"), Kind::Keras, "Keras"),
        (&named("holiday.jpg"), Kind::Zip, "a zip file of something else"),
        (&named("net/serialized_exported_program.json"), Kind::TorchExport, "torch.export"),
        (&script, Kind::TorchScript, "torch.jit.load(FILE).state_dict()"),
    ] {
        assert_eq!(kind_of(Cursor::new(bytes), None), Ok(kind));
        let error = refused(bytes);
        assert!(error.starts_with("expected a file that torch.save wrote, found a"), "{error}");
        assert!(error.contains(words), "{error}");
    }
    let error = refused(&zip_of(&dict(&[("epoch", &int(3))]), &[]));
    assert!(error.contains("torch.save(model.state_dict(), ...)"), "{error}");
    assert!(refused(&zip_of(&Tensor::default().pickled(), &[])).contains("a single tensor"));
    let state = dict(&[("conv.weight", &Tensor::default().pickled())]);
    let error = refused(&zip_of(&dict(&[("g", &state), ("d", &state)]), &[("0", &storage())]));
    assert!(error.contains("several places: `g`, `d`"), "{error}");
}
