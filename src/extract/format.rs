//! How tensors lie in the two kinds of files: all that stands before their values, and where these begin.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::{Error, Result};

/// What readers of safetensors accept as a header at most.
const LARGEST_HEADER: usize = 100_000_000;
/// NumPy begins the values at a multiple of this.
const NPY_ALIGNMENT: usize = 64;

/// The kind of a file, which its name's ending says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Any number of named tensors.
    Safetensors,
    /// One array.
    Npy,
}

impl Format {
    /// The kind of a file of this name.
    ///
    /// # Errors
    /// If it is none of the two.
    pub fn of(path: &Path) -> Result<Self> {
        let ending = path.extension().unwrap_or_default().to_string_lossy().into_owned();
        match ending.as_str() {
            "safetensors" => Ok(Format::Safetensors),
            "npy" => Ok(Format::Npy),
            _ => Err(Error::file(path, "expected a name that ends in .safetensors or .npy")),
        }
    }
}

/// The type of a tensor's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Type {
    F16,
    F32,
    I32,
    I64,
    U8,
}

impl Type {
    pub(super) fn bytes(self) -> usize {
        match self {
            Type::U8 => 1,
            Type::F16 => 2,
            Type::F32 | Type::I32 => 4,
            Type::I64 => 8,
        }
    }

    fn of_safetensors(self) -> &'static str {
        match self {
            Type::F16 => "F16",
            Type::F32 => "F32",
            Type::I32 => "I32",
            Type::I64 => "I64",
            Type::U8 => "U8",
        }
    }

    fn of_numpy(self) -> &'static str {
        match self {
            Type::F16 => "<f2",
            Type::F32 => "<f4",
            Type::I32 => "<i4",
            Type::I64 => "<i8",
            Type::U8 => "|u1",
        }
    }
}

/// A tensor of a file.
#[derive(Clone, Debug)]
pub(super) struct Tensor {
    pub name: String,
    pub kind: Type,
    pub shape: Vec<usize>,
}

impl Tensor {
    pub(super) fn bytes(&self) -> u64 {
        self.shape.iter().map(|&size| size as u64).product::<u64>() * self.kind.bytes() as u64
    }
}

/// Where things are in a file.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Layout {
    /// The first bytes.
    pub header: Vec<u8>,
    /// Where each tensor begins.
    pub begins: Vec<u64>,
    /// Bytes of the file.
    pub end: u64,
}

impl Layout {
    /// Tensors one after the other, behind a header of at least `room` bytes: one may be kept free for more images than
    /// there will be.
    ///
    /// # Errors
    /// If readers would not take the header.
    pub(super) fn new(
        format: Format,
        tensors: &[Tensor],
        about: &Value,
        room: usize,
    ) -> Result<Self> {
        let header = match format {
            Format::Safetensors => safetensors(tensors, about, room)?,
            Format::Npy => npy(&tensors[0], room),
        };
        let (mut begins, mut end) = (Vec::new(), header.len() as u64);
        for tensor in tensors {
            begins.push(end);
            end += tensor.bytes();
        }
        Ok(Layout { header, begins, end })
    }
}

/// Length u64 | JSON, blanks.
fn safetensors(tensors: &[Tensor], about: &Value, room: usize) -> Result<Vec<u8>> {
    let mut all = Map::new();
    all.insert("__metadata__".into(), json!({ "features": about.to_string() }));
    let mut from = 0;
    for tensor in tensors {
        let to = from + tensor.bytes();
        let (kind, shape) = (tensor.kind.of_safetensors(), &tensor.shape);
        let entry = json!({ "dtype": kind, "shape": shape, "data_offsets": [from, to] });
        all.insert(tensor.name.clone(), entry);
        from = to;
    }
    let mut json = Value::Object(all).to_string().into_bytes();
    json.resize((8 + json.len()).next_multiple_of(8).max(room) - 8, b' ');
    if json.len() > LARGEST_HEADER {
        return Err(Error::Data(format!(
            "the classes' names take {} bytes, more than a safetensors file's header has room for: write .npy",
            json.len()
        )));
    }
    Ok([&(json.len() as u64).to_le_bytes(), &*json].concat())
}

/// `\x93NUMPY` | version u8 u8 | length u16 | a dict in Python's notation, blanks, a line's end.
fn npy(tensor: &Tensor, room: usize) -> Vec<u8> {
    let sizes: Vec<_> = tensor.shape.iter().map(usize::to_string).collect(); // two at least
    let dict = format!(
        "{{'descr': '{}', 'fortran_order': False, 'shape': ({}), }}",
        tensor.kind.of_numpy(),
        sizes.join(", ")
    );
    let length = (10 + dict.len() + 1).next_multiple_of(NPY_ALIGNMENT).max(room) - 10;
    let mut header = b"\x93NUMPY\x01\x00".to_vec();
    header.extend((length as u16).to_le_bytes()); // five numbers and a few words
    header.extend(dict.into_bytes());
    header.resize(10 + length - 1, b' ');
    header.push(b'\n');
    header
}
