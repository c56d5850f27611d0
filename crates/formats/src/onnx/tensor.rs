//! Constants: tensors of the file, and what nodes make of them.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use half::{bf16, f16};

use super::proto::TensorProto;
use crate::weights::brief;

/// Most axes of a tensor; networks have four.
pub const MAX_RANK: usize = 16;
/// Most integers of a tensor that is kept: sizes and places are few. Longer ones are weights, of no type that is read.
const MAX_INTS: usize = 1 << 12;

/// An integer, as sizes of the data and what is computed of them are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Int {
    /// A number.
    Known(i64),
    /// The number of images, which the file leaves open.
    Batch,
    /// A number that the file leaves open.
    Open,
}

/// A constant.
#[derive(Clone, Debug)]
pub struct Value {
    /// Its sizes; their product is in `usize`.
    pub shape: Vec<usize>,
    /// Its values, row-major.
    pub data: Data,
}

/// A constant's values.
#[derive(Clone, Debug)]
pub enum Data {
    /// Floats of any type.
    Floats(Rc<Vec<f32>>),
    /// All the same.
    Fill(f32),
    /// Integers and booleans.
    Ints(Rc<Vec<Int>>),
    /// Of this type, and not kept.
    Unread(&'static str),
}

/// The bytes that may still be taken for what is not in the file: values that nodes make, and copies.
pub struct Budget(pub usize);

impl Budget {
    /// Takes what `count` values of `bytes` each need.
    pub fn charge(&mut self, count: usize, bytes: usize) -> Result<(), String> {
        let left = count.checked_mul(bytes).and_then(|bytes| self.0.checked_sub(bytes));
        self.0 = left.ok_or_else(|| {
            format!("expected constants of few bytes beside those in the file, found {count} values more")
        })?;
        Ok(())
    }
}

/// The product of sizes.
pub fn count(shape: &[usize]) -> Result<usize, String> {
    let values = shape.iter().try_fold(1usize, |count, &size| count.checked_mul(size));
    values
        .filter(|&values| values <= isize::MAX as usize / 16 && shape.len() <= MAX_RANK)
        .ok_or_else(|| format!("expected sizes of a tensor, found {}", list(shape)))
}

/// Numbers in brackets, the first of them if there are many.
pub fn list<T: ToString>(numbers: &[T]) -> String {
    let shown: Vec<String> = numbers.iter().take(MAX_RANK).map(T::to_string).collect();
    let rest = if numbers.len() > MAX_RANK { ", ..." } else { "" };
    format!("[{}{rest}]", shown.join(", "))
}

impl Value {
    /// Integers along one axis.
    pub fn ints(ints: Vec<Int>) -> Self {
        Value { shape: vec![ints.len()], data: Data::Ints(Rc::new(ints)) }
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// The same values, as floats of its own.
    pub fn into_floats(self, budget: &mut Budget) -> Result<Vec<f32>, String> {
        let len = self.len();
        match self.data {
            Data::Floats(values) => match Rc::try_unwrap(values) {
                Ok(values) => Ok(values),
                Err(values) => {
                    budget.charge(len, 4)?;
                    Ok(values.to_vec())
                }
            },
            Data::Fill(value) => {
                budget.charge(len, 4)?;
                Ok(vec![value; len])
            }
            Data::Ints(_) => Err("expected floats, found integers".into()),
            Data::Unread(kind) => {
                let why =
                    if kind.contains("int") { ": quantised networks are not read" } else { "" };
                Err(format!("expected floats, found {kind}{why}"))
            }
        }
    }

    /// Its integers.
    pub fn as_ints(&self) -> Result<&[Int], String> {
        match &self.data {
            Data::Ints(ints) => Ok(ints),
            Data::Floats(_) | Data::Fill(_) => Err("expected integers, found floats".into()),
            Data::Unread(kind) => {
                Err(format!("expected few integers, found many, or others ({kind})"))
            }
        }
    }

    /// Its integers, all of which the file must say.
    pub fn known_ints(&self) -> Result<Vec<i64>, String> {
        let known = self.as_ints()?.iter().map(|int| match int {
            Int::Known(int) => Some(*int),
            Int::Batch | Int::Open => None,
        });
        known.collect::<Option<_>>().ok_or_else(|| {
            "depends on sizes that the file leaves open: export it with a fixed size of images"
                .into()
        })
    }

    /// Its only value.
    pub fn scalar(&self) -> Result<f32, String> {
        match &self.data {
            _ if self.len() != 1 => {
                Err(format!("expected one value, found sizes {}", list(&self.shape)))
            }
            Data::Floats(values) => Ok(values[0]),
            Data::Fill(value) => Ok(*value),
            Data::Ints(ints) => match ints[0] {
                Int::Known(int) => Ok(int as f32),
                Int::Batch | Int::Open => Err("depends on sizes that the file leaves open".into()),
            },
            Data::Unread(kind) => Err(format!("expected a number, found {kind}")),
        }
    }
}

/// The values of a tensor of the file.
pub fn read(tensor: &TensorProto, files: &mut Files, budget: &mut Budget) -> Result<Value, String> {
    let shape: Option<Vec<usize>> = match tensor.dims.len() <= MAX_RANK {
        true => tensor.dims.iter().map(|&size| size.try_into().ok()).collect(),
        false => None,
    };
    let shape =
        shape.ok_or_else(|| format!("expected sizes of a tensor, found {}", list(&tensor.dims)))?;
    let count = count(&shape)?;
    let (kind, width) = match tensor.data_type {
        1 => ("float", 4),
        2 => ("uint8", 1),
        3 => ("int8", 1),
        4 => ("uint16", 2),
        5 => ("int16", 2),
        6 => ("int32", 4),
        7 => ("int64", 8),
        9 => ("bool", 1),
        10 => ("float16", 2),
        11 => ("double", 8),
        16 => ("bfloat16", 2),
        8 => return Ok(Value { shape, data: Data::Unread("strings") }),
        12 => return Ok(Value { shape, data: Data::Unread("uint32") }),
        13 => return Ok(Value { shape, data: Data::Unread("uint64") }),
        _ => return Ok(Value { shape, data: Data::Unread("another type") }),
    };
    let float = matches!(tensor.data_type, 1 | 10 | 11 | 16);
    if !float && count > MAX_INTS {
        return Ok(Value { shape, data: Data::Unread(kind) });
    }
    let external;
    let raw = if tensor.data_location == 1 {
        external = files.read(tensor, (count * width) as u64, budget)?;
        &external
    } else {
        &tensor.raw_data
    };
    let data = match tensor.data_type {
        1 => floats(raw, &tensor.float_data, f32::from_le_bytes, |value| value),
        11 => floats(
            raw,
            &tensor.double_data,
            |raw| f64::from_le_bytes(raw) as f32,
            |value| value as f32,
        ),
        10 => floats(
            raw,
            &tensor.int32_data,
            |raw| f16::from_le_bytes(raw).to_f32(),
            |bits| f16::from_bits(bits as u16).to_f32(),
        ),
        16 => floats(
            raw,
            &tensor.int32_data,
            |raw| bf16::from_le_bytes(raw).to_f32(),
            |bits| bf16::from_bits(bits as u16).to_f32(),
        ),
        7 => ints(raw, &tensor.int64_data, i64::from_le_bytes),
        6 => ints(raw, &tensor.int32_data, |raw| i32::from_le_bytes(raw).into()),
        5 => ints(raw, &tensor.int32_data, |raw| i16::from_le_bytes(raw).into()),
        4 => ints(raw, &tensor.int32_data, |raw| u16::from_le_bytes(raw).into()),
        3 => ints(raw, &tensor.int32_data, |raw| i8::from_le_bytes(raw).into()),
        _ => ints(raw, &tensor.int32_data, |raw: [u8; 1]| raw[0].into()),
    };
    let (found, data) = data.ok_or_else(|| {
        format!("expected values of {width} bytes ({kind}), found {} bytes of them", raw.len())
    })?;
    if found != count {
        return Err(format!(
            "expected as many values as the product of its sizes {}, found {found}",
            list(&shape)
        ));
    }
    Ok(Value { shape, data })
}

/// Floats from bytes if there are any, else as numbers: how many, and the values.
fn floats<const N: usize, T: Copy>(
    raw: &[u8],
    typed: &[T],
    of_bytes: fn([u8; N]) -> f32,
    of_number: fn(T) -> f32,
) -> Option<(usize, Data)> {
    let values: Vec<f32> = match raw.as_chunks::<N>() {
        ([], []) => typed.iter().map(|&value| of_number(value)).collect(),
        (values, []) => values.iter().map(|&value| of_bytes(value)).collect(),
        _ => return None,
    };
    Some((values.len(), Data::Floats(Rc::new(values))))
}

/// The same of integers.
fn ints<const N: usize, T: Copy + Into<i64>>(
    raw: &[u8],
    typed: &[T],
    of_bytes: fn([u8; N]) -> i64,
) -> Option<(usize, Data)> {
    let values: Vec<Int> = match raw.as_chunks::<N>() {
        ([], []) => typed.iter().map(|&value| Int::Known(value.into())).collect(),
        (values, []) => values.iter().map(|&value| Int::Known(of_bytes(value))).collect(),
        _ => return None,
    };
    Some((values.len(), Data::Ints(Rc::new(values))))
}

/// The files beside the network's in which its values may lie.
pub struct Files {
    folder: Option<PathBuf>,
    /// What may still be read of each without charge: its length.
    left: HashMap<PathBuf, u64>,
}

impl Files {
    /// Those in a folder, if there is one.
    pub fn new(folder: Option<&Path>) -> Self {
        Files { folder: folder.map(Path::to_path_buf), left: HashMap::new() }
    }

    /// `bytes` bytes of the file that a tensor names.
    fn read(
        &mut self,
        tensor: &TensorProto,
        bytes: u64,
        budget: &mut Budget,
    ) -> Result<Vec<u8>, String> {
        let entry = |key: &str| {
            let mut entries = tensor.external_data.iter();
            entries.find(|entry| entry.key == key).map(|entry| entry.value.as_str())
        };
        let number = |key: &str, default: u64| match entry(key) {
            None => Ok(default),
            Some(text) => text.parse().map_err(|_| {
                format!("expected the {key} of its values in bytes, found `{}`", brief(text))
            }),
        };
        let location = entry("location").unwrap_or_default();
        let (offset, length) = (number("offset", 0)?, number("length", bytes)?);
        if length != bytes {
            return Err(format!(
                "expected {bytes} bytes of values, as its sizes say, found a length of {length}"
            ));
        }
        let path = self.find(location)?;
        let named = brief(location);
        let failed =
            |error: std::io::Error| format!("cannot read its values in `{named}`: {error}");
        let mut file = File::open(&path).map_err(failed)?;
        let len = file.metadata().map_err(failed)?.len();
        if offset.checked_add(length).is_none_or(|end| end > len) {
            return Err(format!(
                "expected {length} bytes of values from byte {offset} of `{named}` on, found a file of {len} bytes"
            ));
        }
        // Tensors that share bytes would otherwise take any multiple of the file's.
        let left = self.left.entry(path).or_insert(len);
        match left.checked_sub(length) {
            Some(rest) => *left = rest,
            None => budget.charge(length as usize, 1)?,
        }
        let mut values = Vec::with_capacity(length as usize);
        file.seek(SeekFrom::Start(offset)).map_err(failed)?;
        file.take(length).read_to_end(&mut values).map_err(failed)?;
        Ok(values)
    }

    /// Where a file lies, if it is one inside the folder.
    fn find(&self, location: &str) -> Result<PathBuf, String> {
        let named = brief(location);
        let Some(folder) = &self.folder else {
            return Err(format!(
                "its values are in another file, `{named}`, and no folder is known to look in"
            ));
        };
        let inside = |part| matches!(part, Component::Normal(_) | Component::CurDir);
        if location.is_empty()
            || location.contains('\0')
            || !Path::new(location).components().all(inside)
        {
            return Err(format!(
                "expected its values in a file beside the network's, found `{named}`"
            ));
        }
        let missing = |error| {
            format!(
                "its values are in `{named}`, which must lie beside the network's file: {error}"
            )
        };
        let folder = fs::canonicalize(folder).map_err(missing)?;
        let path = fs::canonicalize(folder.join(location)).map_err(missing)?;
        if !path.starts_with(&folder) {
            return Err(format!(
                "expected its values in a file beside the network's, and `{named}` leads elsewhere"
            ));
        }
        match fs::metadata(&path).map_err(missing)?.is_file() {
            true => Ok(path),
            false => {
                Err(format!("expected a file with its values, found `{named}`, which is none"))
            }
        }
    }
}
