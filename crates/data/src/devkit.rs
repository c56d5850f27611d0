//! The development kit of ILSVRC2012: which class a number means, and the classes of the validation
//! images.
//!
//! Of `ILSVRC2012_devkit_t12.tar.gz` two files are read, in memory: `data/meta.mat`, a MATLAB 5 file
//! whose one variable `synsets` is an array of structs, and
//! `data/ILSVRC2012_validation_ground_truth.txt`, whose line i is the number of the class of
//! `ILSVRC2012_val_0000000i.JPEG`. These numbers follow neither the WordNet ids nor the readable
//! names.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use flate2::read::{GzDecoder, ZlibDecoder};

use super::tar::{Archive, ReadAt};
use zfnet_core::{Error, Result};

/// The kit's file name.
pub const DEVKIT: &str = "ILSVRC2012_devkit_t12.tar.gz";
const META: &str = "data/meta.mat";
const GROUND_TRUTH: &str = "data/ILSVRC2012_validation_ground_truth.txt";
/// More than this is not unpacked; the kit is far smaller.
const MAX_BYTES: u64 = 64 << 20;

/// A class, or a group of classes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Synset {
    /// The number that stands for it in the kit: its `ILSVRC2012_ID`, counted from 1.
    pub id: u32,
    /// Its WordNet id: `n` and eight digits.
    pub wnid: String,
    /// What it is called, divided by commas.
    pub words: String,
    /// Whether it is a class: groups have children.
    pub leaf: bool,
}

/// What the kit says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Devkit {
    /// By id.
    pub synsets: BTreeMap<u32, Synset>,
    /// Ids of the validation images' classes; all of them are in `synsets` and leaves.
    pub ground_truth: Vec<u32>,
}

impl Devkit {
    /// Reads a kit.
    ///
    /// # Errors
    /// If it is none, or not whole; names it.
    pub fn read(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::io("read", path))?;
        let unpacked = bounded(GzDecoder::new(io::BufReader::new(file)), MAX_BYTES)
            .map_err(|reason| Error::file(path, format!("cannot be unpacked: {reason}")))?;
        let tar =
            Archive { path, inner: "", bytes: unpacked.len() as u64, file: &unpacked, start: 0 };

        let (mut meta, mut ground_truth) = (None, None);
        tar.members(&mut |member| {
            let ends = |file: &str| {
                member.name.strip_suffix(file).is_some_and(|s| s.is_empty() || s.ends_with('/'))
            };
            let wanted = if ends(META) {
                &mut meta
            } else if ends(GROUND_TRUTH) {
                &mut ground_truth
            } else {
                return Ok(());
            };
            let mut bytes = vec![0; member.bytes as usize];
            unpacked.read_exact_at(&mut bytes, member.offset).map_err(Error::io("read", path))?;
            match wanted.replace(bytes) {
                None => Ok(()),
                Some(_) => Err(tar.member_error(member.name, "is there twice")),
            }
        })?;

        let lacks = |file: &str| Error::file(path, format!("has no {file}"));
        let wrong = |file: &'static str| {
            move |reason: String| Error::file(path, format!("{file} in it {reason}"))
        };
        let synsets = parse_meta(&meta.ok_or_else(|| lacks(META))?).map_err(wrong(META))?;
        let lines = ground_truth.ok_or_else(|| lacks(GROUND_TRUTH))?;
        let ground_truth = parse_ground_truth(&lines, &synsets).map_err(wrong(GROUND_TRUTH))?;
        Ok(Devkit { synsets, ground_truth })
    }
}

/// Whether this is a WordNet id of a noun: `n` and eight digits.
pub fn is_wnid(name: &str) -> bool {
    let digits = name.strip_prefix('n').unwrap_or_default();
    digits.len() == 8 && digits.bytes().all(|byte| byte.is_ascii_digit())
}

/// All that a decoder gives, unless it is too much.
fn bounded(decoder: impl Read, limit: u64) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let read = decoder.take(limit + 1).read_to_end(&mut bytes);
    read.map_err(|error| error.to_string())?;
    if bytes.len() as u64 > limit {
        return Err(format!("expected at most {limit} bytes, found more"));
    }
    Ok(bytes)
}

/// One id a line.
fn parse_ground_truth(bytes: &[u8], synsets: &BTreeMap<u32, Synset>) -> Result<Vec<u32>, String> {
    let text = String::from_utf8_lossy(bytes);
    let ids = text.trim_end().lines().enumerate().map(|(i, line)| {
        let id = line.trim().parse().ok();
        id.filter(|id| synsets.get(id).is_some_and(|synset| synset.leaf)).ok_or_else(|| {
            let line: String = line.chars().take(40).collect();
            format!("expected the id of a class in line {}, found {line:?}", i + 1)
        })
    });
    ids.collect()
}

// The types of a MATLAB 5 file's elements, and the classes of its arrays.
const MATRIX: u32 = 14;
const COMPRESSED: u32 = 15;
const STRUCT: u8 = 2;
const CHAR: u8 = 4;
const NUMERIC: std::ops::RangeInclusive<u8> = 6..=15;
/// Structs with more fields are refused; the real ones have eight.
const MAX_FIELDS: usize = 1000;

/// The variable `synsets` of a MATLAB 5 file, by `ILSVRC2012_ID`.
///
/// # Errors
/// What was expected and what was found, if there is none.
pub fn parse_meta(bytes: &[u8]) -> Result<BTreeMap<u32, Synset>, String> {
    if bytes.len() < 128 || bytes[124..128] != *b"\0\x01IM" {
        return Err("is no MATLAB 5 file, little-endian".into());
    }
    let mut rest = &bytes[128..];
    // Not for each element: many small ones may be as bad as a large one.
    let mut budget = MAX_BYTES;
    while !rest.is_empty() {
        let (kind, data) = element(&mut rest)?;
        let synsets = if kind == COMPRESSED {
            let inflated = bounded(ZlibDecoder::new(data), budget)
                .map_err(|reason| format!("cannot be inflated: {reason}"))?;
            budget -= inflated.len() as u64;
            let (kind, data) = element(&mut &inflated[..])?;
            variable(kind, data)?
        } else {
            variable(kind, data)?
        };
        if let Some(synsets) = synsets {
            return Ok(synsets);
        }
    }
    Err("has no variable `synsets`".into())
}

/// The synsets, if this element is the variable of that name.
fn variable(kind: u32, data: &[u8]) -> Result<Option<BTreeMap<u32, Synset>>, String> {
    if kind != MATRIX {
        return Ok(None);
    }
    let array = Array::parse(data)?;
    if array.name != b"synsets" {
        return Ok(None);
    }
    if array.class != STRUCT {
        return Err("has a variable `synsets` that is no array of structs".into());
    }
    let mut rest = array.rest;
    let (_, width) = element(&mut rest)?;
    let width = <[u8; 4]>::try_from(width).map_or(0, u32::from_le_bytes) as usize;
    let (_, names) = element(&mut rest)?;
    if width == 0 || names.len() / width > MAX_FIELDS {
        return Err(format!("has structs without fields or with more than {MAX_FIELDS}"));
    }
    let names: Vec<_> = names.chunks_exact(width).map(until_nul).collect();
    let find = |wanted: &str| {
        let place = names.iter().position(|name| *name == wanted.as_bytes());
        place.ok_or_else(|| format!("has synsets without a field {wanted}"))
    };
    let [id_at, wnid_at, words_at, children_at] =
        [find("ILSVRC2012_ID")?, find("WNID")?, find("words")?, find("num_children")?];

    let mut synsets = BTreeMap::new();
    let mut fields = Vec::with_capacity(names.len());
    for _ in 0..array.len {
        fields.clear();
        for name in &names {
            match element(&mut rest)? {
                (MATRIX, data) => fields.push(data),
                _ => return Err(format!("has a field {} that is no array", lossy(name))),
            }
        }
        let number = |at: usize| {
            let value = Array::parse(fields[at]).and_then(|array| array.number());
            value.map_err(|reason| format!("has a field {} that {reason}", lossy(names[at])))
        };
        let text = |at: usize| {
            let value = Array::parse(fields[at]).and_then(|array| array.text());
            value.map_err(|reason| format!("has a field {} that {reason}", lossy(names[at])))
        };
        let synset = Synset {
            id: number(id_at)?,
            wnid: text(wnid_at)?,
            words: text(words_at)?,
            leaf: number(children_at)? == 0,
        };
        if !is_wnid(&synset.wnid) {
            return Err(format!("has a WNID {:?}; expected n and eight digits", synset.wnid));
        }
        let id = synset.id;
        if synsets.insert(id, synset).is_some() {
            return Err(format!("has two synsets with the ILSVRC2012_ID {id}"));
        }
    }
    Ok(Some(synsets))
}

/// An array of a MATLAB 5 file, not yet read.
struct Array<'a> {
    class: u8,
    /// Number of elements.
    len: u64,
    rows: u32,
    name: &'a [u8],
    /// What stands behind the name.
    rest: &'a [u8],
}

impl<'a> Array<'a> {
    fn parse(mut rest: &'a [u8]) -> Result<Self, String> {
        let (_, flags) = element(&mut rest)?;
        let (_, dims) = element(&mut rest)?;
        let (_, name) = element(&mut rest)?;
        let dims = dims.chunks_exact(4).map(|d| u32::from_le_bytes(d.try_into().expect("four")));
        let len = dims.clone().try_fold(1, |len: u64, dim| len.checked_mul(u64::from(dim)));
        match (flags, len, dims.clone().next()) {
            ([class, ..], Some(len), Some(rows)) => {
                Ok(Array { class: *class, len, rows, name, rest })
            }
            _ => Err("is no array".into()),
        }
    }

    /// A single whole number, however it is stored.
    fn number(&self) -> Result<u32, String> {
        let (kind, data) = element(&mut &*self.rest)?;
        let value = match (kind, data) {
            (1, &[a]) => f64::from(a as i8),
            (2, &[a]) => f64::from(a),
            (3, &[a, b]) => f64::from(i16::from_le_bytes([a, b])),
            (4, &[a, b]) => f64::from(u16::from_le_bytes([a, b])),
            (5, &[a, b, c, d]) => f64::from(i32::from_le_bytes([a, b, c, d])),
            (6, &[a, b, c, d]) => f64::from(u32::from_le_bytes([a, b, c, d])),
            (7, &[a, b, c, d]) => f64::from(f32::from_le_bytes([a, b, c, d])),
            (9, &[a, b, c, d, e, f, g, h]) => f64::from_le_bytes([a, b, c, d, e, f, g, h]),
            (12 | 13, &[a, b, c, d, e, f, g, h]) => {
                u64::from_le_bytes([a, b, c, d, e, f, g, h]) as f64
            }
            _ => f64::NAN,
        };
        if !NUMERIC.contains(&self.class) || f64::from(value as u32) != value {
            return Err("is no whole number".into());
        }
        Ok(value as u32)
    }

    /// One row of characters, however they are stored.
    fn text(&self) -> Result<String, String> {
        if self.class != CHAR || (self.rows != 1 && self.len != 0) {
            return Err("is no text".into());
        }
        if self.len == 0 {
            return Ok(String::new());
        }
        let (kind, data) = element(&mut &*self.rest)?;
        let text = match kind {
            1 | 2 => Some(data.iter().map(|&byte| char::from(byte)).collect()),
            16 => String::from_utf8(data.into()).ok(),
            3 | 4 | 17 => {
                let units = data.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
                char::decode_utf16(units).collect::<Result<_, _>>().ok()
            }
            _ => None,
        };
        text.ok_or_else(|| "is no text".into())
    }
}

/// Cuts the next element off: its type and its bytes.
fn element<'a>(rest: &mut &'a [u8]) -> Result<(u32, &'a [u8]), String> {
    let mut take = |count: usize| {
        let (taken, behind) =
            rest.split_at_checked(count).ok_or("is cut short or not what it says it is")?;
        *rest = behind;
        Ok::<_, String>(taken)
    };
    let number = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().expect("four bytes"));
    let kind = number(take(4)?);
    // Up to four bytes stand in the tag itself, their number in its upper half.
    if kind >> 16 != 0 {
        let data = take(4)?;
        let data = data.get(..(kind >> 16) as usize).ok_or("has an element of a wrong length")?;
        return Ok((kind & 0xffff, data));
    }
    let length = number(take(4)?) as usize;
    let data = take(length)?;
    if kind != COMPRESSED {
        let padding = length.next_multiple_of(8) - length;
        *rest = rest.get(padding..).unwrap_or_default();
    }
    Ok((kind, data))
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|&byte| byte == 0).next().unwrap_or_default()
}

fn lossy(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}
