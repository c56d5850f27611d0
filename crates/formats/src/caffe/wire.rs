//! The binary files: what is checked before protobuf's reader allocates anything, and blobs as tensors.

use std::fmt::Display;

use half::f16;
use prost::Message;
use zfnet_core::{Error, Result};

use super::proto::{BlobProto, NetParameter};
use crate::Tensor;
use crate::wire::{Field, Fields};

/// Most bytes of a network beside its weights, most layers, and most fields of all layers: in memory a layer or a blob
/// of two bytes takes hundreds. The longest published networks stay below a quarter of each.
const MAX_DESCRIPTION: usize = 1 << 20;
const MAX_LAYERS: usize = 1 << 13;
const MAX_FIELDS: usize = 1 << 17;
/// Most sizes of a blob that Caffe takes.
const MAX_AXES: usize = 32;

/// A network with its weights. Allocates at most a few times the bytes of the file, beside some tens of megabytes that
/// hostile ones can reach.
pub fn network(bytes: &[u8]) -> Result<NetParameter> {
    check(bytes)?;
    NetParameter::decode(bytes).map_err(unreadable)
}

/// A blob that is a file of its own, as means are.
pub fn blob(bytes: &[u8]) -> Result<BlobProto> {
    let mut size = Size::default();
    size.blob(bytes)?;
    size.within_limits()?;
    BlobProto::decode(bytes).map_err(unreadable)
}

fn unreadable(reason: impl Display) -> Error {
    Error::Network(format!(
        "expected a binary file of Caffe's (.caffemodel, .binaryproto), found one that is damaged, cut short or of \
         another kind: {reason}"
    ))
}

/// What a file would take in memory beside its weights.
#[derive(Default)]
struct Size {
    description: usize,
    layers: usize,
    fields: usize,
}

fn check(bytes: &[u8]) -> Result<()> {
    let mut size = Size::default();
    for field in Fields(bytes) {
        let (number, field) = field.map_err(unreadable)?;
        size.fields += 1;
        match (number, field) {
            (2 | 100, Field::Bytes(layer)) => {
                size.layers += 1;
                let blobs = if number == 2 { 6 } else { 7 };
                for field in Fields(layer) {
                    size.fields += 1;
                    match field.map_err(unreadable)? {
                        (number, Field::Bytes(blob)) if number == blobs => size.blob(blob)?,
                        (_, field) => size.description += field.len(),
                    }
                }
            }
            (_, field) => size.description += field.len(),
        }
        size.within_limits()?;
    }
    Ok(())
}

impl Size {
    /// What a blob adds: values take what they take in the file, the rest more.
    fn blob(&mut self, bytes: &[u8]) -> Result<()> {
        for field in Fields(bytes) {
            match field.map_err(unreadable)? {
                (5 | 6 | 8 | 9 | 12 | 13, _) => {}
                (_, field) => {
                    self.fields += 1;
                    self.description += field.len();
                }
            }
        }
        Ok(())
    }

    fn within_limits(&self) -> Result<()> {
        for (found, most, what) in [
            (self.description, MAX_DESCRIPTION, "bytes beside weights"),
            (self.layers, MAX_LAYERS, "layers"),
            (self.fields, MAX_FIELDS, "fields of layers"),
        ] {
            if found > most {
                return Err(unreadable(format!("expected at most {most} {what}, found {found}")));
            }
        }
        Ok(())
    }
}

/// A blob's sizes and values, by the name `name`; an error says what is wrong with it.
pub fn tensor(blob: BlobProto, name: String) -> Result<Tensor, String> {
    let BlobProto { num, channels, height, width, data, shape, double_data, .. } = blob;
    let sizes = match shape {
        Some(shape) => shape.dim,
        None => [num, channels, height, width].map(|size| size.unwrap_or(0)).to_vec(),
    };
    if sizes.len() > MAX_AXES {
        return Err(format!("expected at most {MAX_AXES} sizes, found {}", sizes.len()));
    }
    let raw = blob.raw_data.unwrap_or_default();
    let values = match (data.len(), double_data.len(), raw.len()) {
        (_, 0, 0) => data,
        (0, _, 0) => double_data.iter().map(|&value| value as f32).collect(),
        (0, 0, _) => match blob.raw_data_type {
            Some(0) => whole(&raw, |bytes| f64::from_le_bytes(bytes) as f32)?,
            Some(1) => whole(&raw, f32::from_le_bytes)?,
            Some(2) => whole(&raw, |bytes| f16::from_le_bytes(bytes).to_f32())?,
            other => {
                return Err(format!(
                    "expected raw values of type 0, 1 or 2 (double, float, half), found {other:?}"
                ));
            }
        },
        _ => return Err("expected values of one type, found several".into()),
    };
    let shape: Option<Vec<usize>> = sizes.iter().map(|&size| size.try_into().ok()).collect();
    let count = shape
        .as_ref()
        .and_then(|shape| shape.iter().try_fold(1usize, |count, &size| count.checked_mul(size)));
    match (shape, count) {
        (Some(shape), Some(count)) if count == values.len() => Ok(Tensor { name, shape, values }),
        _ => Err(format!(
            "expected as many values as the product of its sizes {sizes:?}, found {}",
            values.len()
        )),
    }
}

/// Values of `N` bytes each.
fn whole<const N: usize>(raw: &[u8], value: fn([u8; N]) -> f32) -> Result<Vec<f32>, String> {
    let (values, rest) = raw.as_chunks::<N>();
    match rest {
        [] => Ok(values.iter().map(|&bytes| value(bytes)).collect()),
        _ => Err(format!("expected values of {N} bytes, found {} bytes of them", raw.len())),
    }
}
