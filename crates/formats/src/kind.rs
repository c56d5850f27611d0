//! What kind of file a file is, by what is in it. Its name counts only where contents leave two possible.

use std::fs;
use std::io::{Read, Seek};
use std::path::Path;

use zfnet_core::{Error, Result};

use crate::pytorch::{tar, zip};
use crate::source::{Source, open};
use crate::wire::varint;

/// Bytes at the beginning of a file that are looked at.
const HEAD: u64 = 1024;
/// Fields of a protobuf message that are looked at, at most.
const FIELDS: usize = 64;

/// A kind of file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// A header in JSON, and tensors.
    Safetensors,
    /// What torch.save writes since PyTorch 1.6.
    PytorchZip,
    /// What it wrote before: one pickle behind the other.
    PytorchStream,
    /// What it wrote to 0.1.10.
    PytorchTar,
    /// An ONNX model.
    Onnx,
    /// Caffe's network with weights.
    Caffemodel,
    /// Caffe's mean image, or another single array.
    BinaryProto,
    /// A program with its weights, in a zip file of PyTorch's.
    TorchScript,
    /// A program with its weights, as torch.export writes it.
    TorchExport,
    /// A pickle, but not of torch.save.
    Pickle,
    /// Arrays of NumPy.
    Numpy,
    /// Keras' zip file.
    Keras,
    /// HDF5: Keras' files before, and others.
    Hdf5,
    /// A model of TensorFlow.
    TensorFlow,
    /// A model of TensorFlow Lite.
    TensorFlowLite,
    /// A language model for llama.cpp.
    Gguf,
    /// A compressed file.
    Compressed,
    /// A zip file of something else.
    Zip,
    /// A tar of something else.
    Tar,
    /// What Git keeps in place of a large file.
    LfsPointer,
    /// A web page, or what a server answered in place of a file.
    Html,
    /// Text: a description of a network, a list of classes.
    Text,
    /// A folder.
    Folder,
    /// Nothing.
    Empty,
    /// None of these.
    Unknown,
}

impl Kind {
    /// What it is, with what to do about it if it is not read: "expected ..., found" goes before it.
    pub fn text(self) -> &'static str {
        match self {
            Kind::Safetensors => "a safetensors file",
            Kind::PytorchZip => "a PyTorch file",
            Kind::PytorchStream => "a PyTorch file in the older format",
            Kind::PytorchTar => "a PyTorch file in the oldest format",
            Kind::Onnx => "an ONNX model",
            Kind::Caffemodel => "a Caffe network",
            Kind::BinaryProto => {
                "a single array of Caffe's, such as a mean image, and no network: give the .caffemodel"
            }
            Kind::TorchScript => {
                "a TorchScript archive, which is a program: save the state dict with \
                 torch.save(torch.jit.load(FILE).state_dict(), ...)"
            }
            Kind::TorchExport => {
                "a program that torch.export wrote: save the state dict with \
                 torch.save(torch.export.load(FILE).state_dict, ...)"
            }
            Kind::Pickle => {
                "a pickle that torch.save did not write: load it in Python, and save the state dict with \
                 torch.save(state_dict, ...)"
            }
            Kind::Numpy => {
                "arrays of NumPy: save them with safetensors.numpy.save_file, by the names that PyTorch would give \
                 them"
            }
            Kind::Keras => {
                "a Keras model: export it to ONNX with model.export(FILE, format=\"onnx\")"
            }
            Kind::Hdf5 => "an HDF5 file, as Keras writes it: export the model to ONNX with tf2onnx",
            Kind::TensorFlow => "a TensorFlow model: convert it to ONNX with tf2onnx",
            Kind::TensorFlowLite => "a TensorFlow Lite model: convert it to ONNX with tf2onnx",
            Kind::Gguf => {
                "a GGUF file, which holds a language model: expected a convolutional network"
            }
            Kind::Compressed => "a compressed file: unpack it first",
            Kind::Zip => "a zip file of something else: unpack it first",
            Kind::Tar => "a tar of something else: unpack it first",
            Kind::LfsPointer => {
                "a Git LFS pointer, which stands for the file: fetch the file itself with `git lfs pull`"
            }
            Kind::Html => {
                "a web page, which a server sent in place of the file: download the file itself (from its \"raw\" or \
                 \"resolve\" address, or logged in)"
            }
            Kind::Text => "a text file: give the file with the weights",
            Kind::Folder => "a folder: give the file with the weights",
            Kind::Empty => "an empty file: get it again",
            Kind::Unknown => {
                "a file of an unknown kind: get it again, or convert it to ONNX or safetensors"
            }
        }
    }
}

/// The kind of a file or folder.
///
/// # Errors
/// If it cannot be read.
pub fn kind(path: &Path) -> Result<Kind> {
    let metadata = fs::metadata(path).map_err(Error::io("read", path))?;
    if metadata.is_dir() {
        let is_model = path.join("saved_model.pb").is_file();
        return Ok(if is_model { Kind::TensorFlow } else { Kind::Folder });
    }
    let file = open(path)?;
    let kind = Source::new(file).and_then(|mut file| of(&mut file, Some(path)));
    kind.map_err(|reason| Error::file(path, reason))
}

/// The kind of what a file holds; `name` decides where it could be two.
#[doc(hidden)]
pub fn kind_of(file: impl Read + Seek, name: Option<&Path>) -> Result<Kind, String> {
    of(&mut Source::new(file)?, name)
}

pub(crate) fn of<R: Read + Seek>(
    file: &mut Source<R>,
    name: Option<&Path>,
) -> Result<Kind, String> {
    let head = file.peek(0, HEAD)?;
    let text = String::from_utf8_lossy(&head[..head.len().min(512)]);
    let text = text.trim_start_matches('\u{feff}').trim_start();
    let begins =
        |with: &str| text.get(..with.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(with));
    Ok(match &head[..] {
        [] => Kind::Empty,
        [b'P', b'K', 3 | 5, 4 | 6, ..] => in_zip(file, &head),
        [b'\x89', b'H', b'D', b'F', b'\r', b'\n', 0x1a, b'\n', ..] => Kind::Hdf5,
        [0x93, b'N', b'U', b'M', b'P', b'Y', ..] => Kind::Numpy,
        [b'G', b'G', b'U', b'F', ..] => Kind::Gguf,
        [_, _, _, _, b'T', b'F', b'L', b'3', ..] => Kind::TensorFlowLite,
        [0x1f, 0x8b, ..]
        | [b'B', b'Z', b'h', b'1'..=b'9', ..]
        | [0xfd, b'7', b'z', b'X', b'Z', ..]
        | [0x28, 0xb5, 0x2f, 0xfd, ..]
        | [b'7', b'z', 0xbc, 0xaf, ..]
        | [b'R', b'a', b'r', b'!', ..] => Kind::Compressed,
        _ if begins("version https://git-lfs") => Kind::LfsPointer,
        _ if ["<!doctype", "<html", "<?xml", "<head", "<error", "<svg"].into_iter().any(begins) => {
            Kind::Html
        }
        _ if head.starts_with(b"L119547037146038801333356L\n") => Kind::PytorchStream, // the number in protocols 0 and 1
        [0x80, ..] => {
            // The number that the first pickle is.
            let magic = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19";
            let is_torch =
                head[..head.len().min(64)].windows(magic.len()).any(|bytes| bytes == magic);
            if is_torch { Kind::PytorchStream } else { Kind::Pickle }
        }
        _ if is_safetensors(&head) => Kind::Safetensors,
        _ if tar::is_header(&head) => Kind::PytorchTar,
        _ if head.get(257..262) == Some(b"ustar") => Kind::Tar,
        _ if is_text(&head) => Kind::Text,
        _ => in_protobuf(file, name).unwrap_or(Kind::Unknown),
    })
}

/// Eight bytes with the length of what follows, and that is JSON.
fn is_safetensors(head: &[u8]) -> bool {
    let Some((header, json)) = head.split_first_chunk::<8>() else { return false };
    let header = u64::from_le_bytes(*header);
    (2..1 << 40).contains(&header) && json.first() == Some(&b'{')
}

fn is_text(head: &[u8]) -> bool {
    let valid = match std::str::from_utf8(head) {
        Ok(text) => text,
        // Cut in the middle of a character.
        Err(error) if error.error_len().is_none() => {
            std::str::from_utf8(&head[..error.valid_up_to()]).expect("valid so far")
        }
        Err(_) => return false,
    };
    !valid.is_empty() && valid.chars().all(|char| !char.is_control() || char.is_whitespace())
}

/// By the names in its directory; one whose directory is damaged passes for what its first entry is.
fn in_zip<R: Read + Seek>(file: &mut Source<R>, head: &[u8]) -> Kind {
    let Ok(entries) = zip::list(file) else {
        let first = String::from_utf8_lossy(&head[head.len().min(30)..]);
        let is_torch =
            ["data.pkl", "data/0", ".format_version"].iter().any(|name| first.contains(name));
        return if is_torch { Kind::PytorchZip } else { Kind::Zip };
    };
    let names = || entries.iter().map(|entry| &entry.name[..]);
    let has =
        |name: &str| names().any(|entry| entry == name || entry.ends_with(&format!("/{name}")));
    match () {
        () if has("serialized_exported_program.json")
            || names().any(|name| name.contains("models/model.json")) =>
        {
            Kind::TorchExport
        }
        () if has("constants.pkl")
            || names().any(|name| name.starts_with("code/") || name.contains("/code/")) =>
        {
            Kind::TorchScript
        }
        () if has("data.pkl") => Kind::PytorchZip,
        () if has("model.weights.h5") => Kind::Keras,
        () if names().next().is_some() && names().all(|name| name.ends_with(".npy")) => Kind::Numpy,
        () => Kind::Zip,
    }
}

/// A field of a protobuf message: its number, how it is written, its number or length, where what it holds begins.
struct Field {
    number: u64,
    wire: u64,
    value: u64,
    at: u64,
}

/// By the first fields: ONNX, Caffe and TensorFlow give them other numbers and types. `None` if it is no such message.
fn in_protobuf<R: Read + Seek>(file: &mut Source<R>, name: Option<&Path>) -> Option<Kind> {
    let mut fields = Vec::new();
    let mut at = 0;
    while at < file.len() && fields.len() < FIELDS {
        let bytes = file.peek(at, 20).ok()?;
        let (tag, used) = varint(&bytes)?;
        let (number, wire) = (tag >> 3, tag & 7);
        if number == 0 {
            return None;
        }
        let (value, more) = match wire {
            0 | 2 => varint(&bytes[used..])?,
            1 => (8, 0),
            5 => (4, 0),
            _ => return None,
        };
        let begin = at + (used + more) as u64;
        let end = if wire == 0 { begin } else { begin.checked_add(value)? };
        fields.push(Field { number, wire, value, at: begin });
        // A file that is cut short is what it was.
        if end > file.len() {
            break;
        }
        at = end;
    }
    let has =
        |number, wire| fields.iter().any(|field| (field.number, field.wire) == (number, wire));
    let extension =
        name.and_then(Path::extension).map(|extension| extension.to_string_lossy().to_lowercase());
    let first = fields.first()?;
    // A network: layers as messages in 100, in the older form in 2, behind its name in 1.
    if has(100, 2) && !has(1, 0) {
        return Some(Kind::Caffemodel);
    }
    // A model: its version in 1, and its graph in 7.
    if has(7, 2) && has(1, 0) {
        return Some(Kind::Onnx);
    }
    // An array: number, channels, height and width in 1 to 4, or a shape in 7; values in 5.
    if has(5, 2) && (has(7, 2) || (has(2, 0) && has(3, 0))) {
        return Some(Kind::BinaryProto);
    }
    // TensorFlow: a version in 1 and graphs in 2; or nodes in 1, each of which begins with its name.
    if has(1, 0) && has(2, 2) && !has(8, 2) {
        let schema = first.number == 1 && first.value == 1;
        return Some(if schema { Kind::TensorFlow } else { Kind::Onnx });
    }
    if has(1, 0) && has(8, 2) {
        return Some(Kind::Onnx);
    }
    if (first.number, first.wire) == (1, 2)
        && fields.iter().filter(|field| field.number == 1).count() > 1
    {
        let inside = file.peek(first.at, 1).ok()?;
        return (inside == [0x0a]).then_some(Kind::TensorFlow);
    }
    match extension.as_deref() {
        Some("onnx") => Some(Kind::Onnx),
        Some("pb") => Some(Kind::TensorFlow),
        Some("caffemodel") => Some(Kind::Caffemodel),
        _ if has(2, 2) => Some(Kind::Caffemodel),
        _ => None,
    }
}

/// Says what was found where a network's weights were expected.
pub fn unexpected(path: &Path, kind: Kind) -> Error {
    let found = kind.text();
    let expected = "a network's weights (safetensors, a PyTorch file, ONNX or a .caffemodel)";
    Error::file(path, format!("expected {expected}, found {found}"))
}
