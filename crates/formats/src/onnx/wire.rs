//! Protobuf's wire format, as far as it is looked at before the file's structures are allocated.

use prost::Message;
use zfnet_core::{Error, Result};

use super::proto::{ModelProto, StringStringEntryProto};

/// Most messages of a file (nodes, attributes, tensors, sizes): of two bytes each, they take hundreds in memory. The
/// longest networks of the model zoo have a tenth of them.
const MAX_MESSAGES: usize = 1 << 18;

/// The fields of a message that are messages, and what is in those.
struct Kind(&'static [(u64, &'static Kind)]);

const LEAF: Kind = Kind(&[]);
const TENSOR: Kind = Kind(&[(13, &LEAF)]);
const SHAPE: Kind = Kind(&[(1, &LEAF)]);
const VALUE: Kind = Kind(&[(2, &Kind(&[(1, &Kind(&[(2, &SHAPE)]))]))]);
const NODE: Kind = Kind(&[(5, &Kind(&[(5, &TENSOR)]))]);
const GRAPH: Kind = Kind(&[(1, &NODE), (5, &TENSOR), (11, &VALUE), (12, &VALUE)]);
const MODEL: Kind = Kind(&[(7, &GRAPH), (8, &LEAF), (METADATA, &LEAF)]);
const METADATA: u64 = 14;

/// The file's model. Takes a few times the bytes of the file at most, beside some tens of megabytes that hostile ones
/// can reach.
pub fn model(bytes: &[u8]) -> Result<ModelProto> {
    if bytes.starts_with(b"version https://git-lfs") {
        return Err(Error::Network(
            "expected an ONNX file, found a pointer of Git LFS to one: get the file itself, with `git lfs pull`"
                .into(),
        ));
    }
    let mut messages = 0;
    count(bytes, &MODEL, &mut messages)?;
    ModelProto::decode(bytes).map_err(|error| unreadable(&error.to_string()))
}

/// What a file says of itself, in its order, without reading the rest.
pub fn metadata(bytes: &[u8]) -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for field in Fields(bytes) {
        if let (METADATA, Some(entry)) = field? {
            let entry = StringStringEntryProto::decode(entry);
            let entry = entry.map_err(|error| unreadable(&error.to_string()))?;
            found.push((entry.key, entry.value));
        }
    }
    Ok(found)
}

fn unreadable(reason: &str) -> Error {
    Error::Network(format!(
        "expected an ONNX file (protobuf), found one that is damaged, cut short or of another kind: {reason}"
    ))
}

fn count(bytes: &[u8], kind: &Kind, messages: &mut usize) -> Result<()> {
    for field in Fields(bytes) {
        let (number, inner) = field?;
        let inner_kind = kind.0.iter().find(|(known, _)| *known == number);
        if let (Some((_, kind)), Some(inner)) = (inner_kind, inner) {
            *messages += 1;
            if *messages > MAX_MESSAGES {
                return Err(unreadable(&format!(
                    "expected at most {MAX_MESSAGES} nodes, attributes and tensors, found more"
                )));
            }
            count(inner, kind, messages)?;
        }
    }
    Ok(())
}

/// The fields of a message: their numbers, and the bytes of those that have a length.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for place in 0..10 {
            let (&byte, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << (7 * place);
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    fn bytes(&mut self, count: u64) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(count.try_into().ok()?)?;
        self.0 = rest;
        Some(bytes)
    }

    fn field(&mut self) -> Option<(u64, Option<&'a [u8]>)> {
        let key = self.varint()?;
        let inner = match key & 7 {
            0 => self.varint().map(|_| None)?,
            1 => self.bytes(8).map(|_| None)?,
            2 => {
                let count = self.varint()?;
                Some(self.bytes(count)?)
            }
            5 => self.bytes(4).map(|_| None)?,
            _ => return None,
        };
        Some((key >> 3, inner))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Option<&'a [u8]>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field().ok_or_else(|| unreadable("a field that does not end in it"));
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}
