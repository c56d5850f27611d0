//! Safetensors files of other programs: their types, and what is refused.

use std::io::Cursor;

use zfnet_formats::Tensors;
use zfnet_formats::safetensors::parse;

fn file(json: &str, values: &[u8]) -> Vec<u8> {
    [&(json.len() as u64).to_le_bytes()[..], json.as_bytes(), values].concat()
}

fn of(bytes: &[u8]) -> Result<Tensors, String> {
    parse(Cursor::new(bytes))
}

/// A header's entry.
fn tensor(name: &str, dtype: &str, shape: &str, begin: usize, end: usize) -> String {
    format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
}

#[test]
fn every_type_of_floating_point_is_read() {
    let values = [
        &1.5_f64.to_le_bytes()[..],
        &f64::INFINITY.to_le_bytes(),
        &2.5_f32.to_le_bytes(),
        &[0x00, 0x3c, 0x01, 0x00], // 1 and 2^-24 as float16
        &[0x80, 0x3f, 0xc0, 0xff], // 1 and NaN as bfloat16
        &7_i64.to_le_bytes(),
    ]
    .concat();
    let header = [
        tensor("module.model.d", "F64", "[2]", 0, 16),
        tensor("module.model.s", "F32", "[1,1]", 16, 20),
        tensor("module.model.h", "F16", "[2]", 20, 24),
        tensor("module.model.b", "BF16", "[2]", 24, 28),
        tensor("module.model.n", "I64", "[]", 28, 36),
    ]
    .join(",");
    let tensors = of(&file(&format!("{{{header}}}"), &values)).unwrap();
    assert!(!tensors.ordered);
    let of = |name: &str| {
        let found = tensors.tensors.iter().find(|tensor| tensor.name == name).unwrap();
        (&found.shape[..], &found.values[..])
    };
    assert_eq!(tensors.tensors.len(), 4);
    assert_eq!(of("d"), (&[2][..], &[1.5, f32::INFINITY][..]));
    assert_eq!(of("s"), (&[1, 1][..], &[2.5][..]));
    assert_eq!(of("h"), (&[2][..], &[1., 2_f32.powi(-24)][..]));
    assert_eq!(of("b").1[0], 1.);
    assert!(of("b").1[1].is_nan());
    assert_eq!(
        tensors.notes,
        [
            "5 of 5 tensors read, of which 1 of integers is no weights: `module.model.n`",
            "1 tensor of float16 became float32",
            "1 tensor of bfloat16 became float32",
            "1 tensor of float64 became float32",
            "`module.` was taken off 5 names",
            "`model.` was taken off 5 names",
        ]
    );
}

#[test]
fn prefixes_stay_unless_all_names_have_them() {
    let header =
        [tensor("model.a", "F32", "[1]", 0, 4), tensor("head", "F32", "[1]", 4, 8)].join(",");
    let tensors = of(&file(&format!("{{{header}}}"), &[0; 8])).unwrap();
    assert_eq!(tensors.notes, ["2 of 2 tensors read"]);
    let header = tensor("model.", "F32", "[1]", 0, 4);
    assert_eq!(of(&file(&format!("{{{header}}}"), &[0; 4])).unwrap().tensors[0].name, "model.");
}

#[test]
fn what_cannot_be_read_is_refused() {
    let one = |dtype, shape, end, bytes| {
        of(&file(&format!("{{{}}}", tensor("w", dtype, shape, 0, end)), &vec![0; bytes]))
            .unwrap_err()
    };
    for (error, words) in [
        (one("F8_E4M3", "[4]", 4, 4), "tensor `w` is of F8_E4M3"),
        (one("C64", "[1]", 8, 8), "tensor `w` is of C64"),
        (one("I32", "[1]", 4, 4), "no tensors of floating-point numbers"),
        (one("F32", "[2]", 8, 4), "is cut short: expected 8 bytes of values, found 4"),
        (one("F32", "[1]", 4, 8), "is damaged: expected 4 bytes of values, found 8"),
        (one("F32", "[3]", 8, 8), "damaged"),
        (one("F32", "[4294967296,4294967296,4]", 8, 8), "damaged"),
        (one("F32", "[-1]", 4, 4), "damaged"),
        (one("F32", "[1]", usize::MAX, 4), "damaged"),
        (of(b"").unwrap_err(), "cut short"),
        (of(&[0xff; 100]).unwrap_err(), "a header of 18446744073709551615 bytes"),
        (of(&file("{}", b"")).unwrap_err(), "no tensors"),
        (of(&(1000_u64).to_le_bytes()).unwrap_err(), "cut short"),
    ] {
        assert!(error.contains(words), "{error}, expected {words}");
    }
    let large = file(&format!("{{{}}}", tensor("w", "F64", "[1]", 0, 8)), &1e300_f64.to_le_bytes());
    let error = of(&large).unwrap_err();
    assert!(error.contains("tensor `w` has the value 1e300"), "{error}");
}
