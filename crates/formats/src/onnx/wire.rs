//! The file's messages: what is checked before protobuf's reader allocates anything.

use std::fmt::Display;

use prost::Message;
use zfnet_core::{Error, Result};

use super::proto::{ModelProto, StringStringEntryProto};
use crate::wire::{Field, Fields};

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
    let mut messages = 0;
    count(bytes, &MODEL, &mut messages)?;
    ModelProto::decode(bytes).map_err(unreadable)
}

/// What a file says of itself, in its order, without reading the rest.
pub fn metadata(bytes: &[u8]) -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for field in Fields(bytes) {
        if let (METADATA, Field::Bytes(entry)) = field.map_err(unreadable)? {
            let entry = StringStringEntryProto::decode(entry);
            let entry = entry.map_err(unreadable)?;
            found.push((entry.key, entry.value));
        }
    }
    Ok(found)
}

fn unreadable(reason: impl Display) -> Error {
    Error::Network(format!(
        "expected an ONNX file (protobuf), found one that is damaged, cut short or of another kind: {reason}"
    ))
}

fn count(bytes: &[u8], kind: &Kind, messages: &mut usize) -> Result<()> {
    for field in Fields(bytes) {
        let (number, field) = field.map_err(unreadable)?;
        let inner_kind = kind.0.iter().find(|(known, _)| *known == number);
        if let (Some((_, kind)), Field::Bytes(inner)) = (inner_kind, field) {
            *messages += 1;
            if *messages > MAX_MESSAGES {
                return Err(unreadable(format!(
                    "expected at most {MAX_MESSAGES} nodes, attributes and tensors, found more"
                )));
            }
            count(inner, kind, messages)?;
        }
    }
    Ok(())
}
