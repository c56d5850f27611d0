//! The binary files: what is checked before protobuf's reader allocates anything, and blobs as tensors.

use prost::Message;
use zfnet_core::{Error, Result};

use super::proto::{BlobProto, NetParameter};
use crate::Tensor;

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
    NetParameter::decode(bytes).map_err(|error| unreadable(&error.to_string()))
}

/// A blob that is a file of its own, as means are.
pub fn blob(bytes: &[u8]) -> Result<BlobProto> {
    let mut size = Size::default();
    size.blob(bytes)?;
    size.within_limits()?;
    BlobProto::decode(bytes).map_err(|error| unreadable(&error.to_string()))
}

fn unreadable(reason: &str) -> Error {
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
        let (number, field) = field?;
        size.fields += 1;
        match (number, field) {
            (2 | 100, Field::Bytes(layer)) => {
                size.layers += 1;
                let blobs = if number == 2 { 6 } else { 7 };
                for field in Fields(layer) {
                    size.fields += 1;
                    match field? {
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
            match field? {
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
                return Err(unreadable(&format!("expected at most {most} {what}, found {found}")));
            }
        }
        Ok(())
    }
}

/// A field's value as protobuf's wire format has it.
#[derive(Clone, Copy)]
enum Field<'a> {
    Number,
    Bytes(&'a [u8]),
}

impl Field<'_> {
    fn len(self) -> usize {
        match self {
            Field::Number => 8,
            Field::Bytes(bytes) => bytes.len(),
        }
    }
}

/// The fields of a message: their numbers and values.
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

    fn field(&mut self) -> Option<(u64, Field<'a>)> {
        let key = self.varint()?;
        let field = match key & 7 {
            0 => self.varint().map(|_| Field::Number)?,
            1 => self.bytes(8).map(|_| Field::Number)?,
            2 => {
                let count = self.varint()?;
                Field::Bytes(self.bytes(count)?)
            }
            5 => self.bytes(4).map(|_| Field::Number)?,
            _ => return None,
        };
        Some((key >> 3, field))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Field<'a>)>;

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
            Some(2) => whole(&raw, |bytes| half(u16::from_le_bytes(bytes)))?,
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

/// A number of 16 bits: sign, 5 bits of exponent, 10 of fraction (IEEE 754).
fn half(bits: u16) -> f32 {
    let (exponent, fraction) = (i32::from(bits >> 10 & 0x1f), f32::from(bits & 0x3ff));
    let size = match exponent {
        0 => fraction * 2f32.powi(-24),
        0x1f if fraction == 0. => f32::INFINITY,
        0x1f => f32::NAN,
        _ => (1024. + fraction) * 2f32.powi(exponent - 25),
    };
    if bits >> 15 == 0 { size } else { -size }
}

#[cfg(test)]
mod tests {
    use super::half;

    #[test]
    fn halves_are_their_numbers() {
        let known = [(0x3c00, 1.), (0xc000, -2.), (0x3555, 0.33325195), (0x7bff, 65504.)];
        for (bits, value) in
            known.into_iter().chain([(1, 2f32.powi(-24)), (0x0400, 2f32.powi(-14))])
        {
            assert_eq!(half(bits), value, "{bits:#x}");
        }
        assert_eq!(half(0xfc00), f32::NEG_INFINITY);
        assert!(half(0x7e00).is_nan());
    }
}
