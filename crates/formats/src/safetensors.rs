//! Safetensors files of any program: a header in JSON, then the values. The order of their tensors means nothing.

use std::io::{Read, Seek};
use std::path::Path;

use safetensors::tensor::{Dtype, Metadata};
use zfnet_core::{Error, Result};

use crate::chain::Tensors;
use crate::source::{Source, open};
use crate::weights::{Budget, Element, Found, brief, collect, quoted};

/// Bytes of the header, at most: those of networks with ten thousand tensors have one.
const LARGEST_HEADER: u64 = 16 << 20;

/// Reads the tensors of a file: float32, float16, bfloat16 and float64 as f32. Those of integers are no weights, and
/// are only counted.
///
/// # Errors
/// If it cannot be read, or is no such file; if it holds tensors of other types: which.
pub fn read(path: &Path) -> Result<Tensors> {
    let file = open(path)?;
    parse(file).map_err(|reason| Error::file(path, reason))
}

/// Reads the tensors of what a file holds.
#[doc(hidden)]
pub fn parse(file: impl Read + Seek) -> Result<Tensors, String> {
    let mut file = Source::new(file)?;
    let header = file.peek(0, 8)?;
    let header =
        header.try_into().map(u64::from_le_bytes).map_err(|_| "is cut short: get it again")?;
    if header > LARGEST_HEADER {
        return Err(format!(
            "expected a safetensors file, found a header of {header} bytes; those of networks have {LARGEST_HEADER} at \
             most"
        ));
    }
    let json = file.read(8, header)?;
    // What it says of each tensor is checked as it is read: sizes against shapes, no gap, no overlap.
    let metadata: Metadata = serde_json::from_slice(&json).map_err(|error| {
        format!("expected the header of a safetensors file, found a damaged one: {}", quoted(error))
    })?;
    drop(json);
    let begin = 8 + header;
    let (said, found) = (metadata.data_len() as u64, file.len() - begin);
    if said != found {
        let what = if said > found { "is cut short" } else { "is damaged" };
        return Err(format!(
            "{what}: expected {said} bytes of values, found {found}; get it again"
        ));
    }
    let mut tensors = Vec::new();
    for name in metadata.offset_keys() {
        let info = metadata.info(&name).expect("one of its keys");
        let element = match info.dtype {
            Dtype::F16 => Element::F16,
            Dtype::BF16 => Element::Bf16,
            Dtype::F32 => Element::F32,
            Dtype::F64 => Element::F64,
            Dtype::BOOL
            | Dtype::U8
            | Dtype::I8
            | Dtype::I16
            | Dtype::U16
            | Dtype::I32
            | Dtype::U32
            | Dtype::I64
            | Dtype::U64 => Element::Whole,
            other => {
                return Err(format!(
                    "tensor `{}` is of {other}: expected F32, F16, BF16 or F64; convert it in Python with \
                     `tensor.float()`",
                    brief(&name)
                ));
            }
        };
        let (place, shape) = (info.data_offsets, info.shape.clone());
        tensors.push(Found { name, shape, element, place });
    }
    let budget = Budget::new(file.len());
    collect(tensors, false, Vec::new(), budget, |found, budget, values| {
        let (from, to) = found.place;
        let bytes = (to - from) as u64;
        budget.take(bytes)?;
        file.pieces(begin + from as u64, bytes, |piece| found.element.values(piece, false, values))
    })
}
