//! The oldest files of PyTorch (to 0.1.10): a tar with a table of storages, a table of tensors, and a pickle that refers
//! to tensors by their numbers.

use std::collections::HashMap;
use std::io::{BufRead, Read, Seek};

use ::tar::Header;

use super::zip::Place;
use super::{
    Contents, Meta, View, count, damaged, is_big_endian, key, pickle, storage_kind, tuple_of,
    unsigned,
};
use super::{MOST_AXES, extent};
use crate::source::{Source, failed};
use crate::weights::{Element, brief};

const BLOCK: u64 = 512;
/// The files that make it.
pub(crate) const MEMBERS: [&str; 4] = ["sys_info", "storages", "tensors", "pickle"];

/// Whether a file's first block is the header of one of these.
pub(crate) fn is_header(block: &[u8]) -> bool {
    member(block).is_some_and(|(name, _)| MEMBERS.contains(&name.as_str()))
}

/// The name and size that a header gives, if it is one of a file.
fn member(block: &[u8]) -> Option<(String, u64)> {
    let block = block.get(..BLOCK as usize)?;
    let header = Header::from_byte_slice(block);
    let sum = block.iter().enumerate().map(|(at, &byte)| match at {
        148..156 => u32::from(b' '),
        _ => u32::from(byte),
    });
    let valid = header.cksum().ok()? == sum.sum::<u32>() && header.entry_type().is_file();
    let name = String::from_utf8_lossy(&header.path_bytes()).trim_start_matches("./").to_string();
    Some((name, header.entry_size().ok()?)).filter(|_| valid)
}

/// Reads it.
pub(super) fn read<R: Read + Seek>(file: &mut Source<R>) -> Result<Contents, String> {
    let mut members = HashMap::new();
    let mut at = 0;
    while members.len() < MEMBERS.len() && at < file.len() {
        let block = file.read(at, BLOCK)?;
        let Some((name, bytes)) = member(&block) else { break };
        at += BLOCK;
        if at.checked_add(bytes).is_none_or(|end| end > file.len()) {
            return Err(format!(
                "is cut short: its member `{}` reaches beyond its end; get it again",
                brief(&name)
            ));
        }
        if MEMBERS.contains(&name.as_str()) && members.insert(name, (at, bytes)).is_some() {
            return Err(damaged("a member comes twice in its tar"));
        }
        at += bytes.div_ceil(BLOCK) * BLOCK;
    }
    let mut place = |name: &str| {
        members.remove(name).ok_or_else(|| {
            format!(
                "has no `{name}` in its tar: it is cut short, or not torch.save's; get it again"
            )
        })
    };
    let (system, storages, tensors, objects) =
        (place("sys_info"), place("storages")?, place("tensors")?, place("pickle")?);
    let big_endian = match system {
        Ok((at, bytes)) => is_big_endian(&pickle::load(&mut file.stream(at)?.take(bytes))?)?,
        Err(_) => false,
    };
    if big_endian {
        return Err("was written on a big-endian machine before PyTorch 0.1.11: load it there and save it anew".into());
    }
    let (types, storages) = read_storages(file, storages)?;
    let tensors = read_tensors(file, tensors, &types)?;
    let (at, bytes) = objects;
    let pickle = pickle::load(&mut file.stream(at)?.take(bytes))?;
    Ok(Contents { pickle, storages, tensors, big_endian })
}

/// Type, first element and number of elements of each storage; the key in the file of one that is a part of another.
type Types = HashMap<String, (String, Element, u64, u64)>;

/// How many; then of each `(key, device, class)`, its number of elements and the elements; then of parts
/// `(key, key of the whole, offset, elements)`.
fn read_storages<R: Read + Seek>(
    file: &mut Source<R>,
    (begin, bytes): (u64, u64),
) -> Result<(Types, HashMap<String, Place>), String> {
    let mut types = Types::new();
    let mut places = HashMap::new();
    let mut table = file.stream(begin)?.take(bytes);
    for _ in 0..count(&mut table)? {
        let about = pickle::load(&mut table)?;
        let parts = tuple_of(&about).and_then(|[key_of, _device, class]| {
            Some((key(&about, key_of)?, about.global(class)?))
        });
        let (key, class) = parts.ok_or_else(|| damaged("a storage of a form that is not known"))?;
        let kind = storage_kind(class).filter(|kind| kind.element.is_some());
        let kind = kind
            .ok_or_else(|| format!("holds a storage of `{}`, which is not known", brief(class)))?;
        let elements = number(&mut table)?;
        let place = elements.checked_mul(kind.bytes).filter(|&bytes| bytes <= table.limit());
        let Some(bytes_of) = place else {
            return Err(format!(
                "is cut short: its storage of {elements} elements reaches beyond its end; get it again"
            ));
        };
        let at = begin + bytes - table.limit();
        pass(&mut table, bytes_of)?;
        let element = kind.element.expect("filtered");
        types.insert(key.clone(), (key.clone(), element, 0, elements));
        places.insert(key, Place { at, bytes: bytes_of, crc: 0 });
    }
    let views = pickle::load(&mut table)?;
    for &view in
        views.sequence(views.root).ok_or_else(|| damaged("parts of storages that are no list"))?
    {
        let parts = views.sequence(view).and_then(|parts| match *parts {
            [target, root, offset, elements] => Some((
                key(&views, target)?,
                types.get(&key(&views, root)?)?.clone(),
                unsigned(&views, offset)?,
                unsigned(&views, elements)?,
            )),
            _ => None,
        });
        let fits = parts.filter(|(_, (_, _, _, whole), offset, elements)| {
            offset.checked_add(*elements).is_some_and(|end| end <= *whole)
        });
        let (target, (root, element, begin, _), offset, elements) =
            fits.ok_or_else(|| damaged("a part of a storage that it does not have"))?;
        types.insert(target, (root, element, begin + offset, elements));
    }
    Ok((types, places))
}

/// How many; then of each `(key, key of its storage, class)`, its axes in four bytes and four of padding, sizes,
/// strides, and its first element.
fn read_tensors<R: Read + Seek>(
    file: &mut Source<R>,
    (begin, bytes): (u64, u64),
    types: &Types,
) -> Result<HashMap<String, Meta>, String> {
    let mut tensors = HashMap::new();
    let mut table = file.stream(begin)?.take(bytes);
    for _ in 0..count(&mut table)? {
        let about = pickle::load(&mut table)?;
        let parts = tuple_of(&about).and_then(|[key_of, storage, _class]| {
            Some((key(&about, key_of)?, types.get(&key(&about, storage)?)?))
        });
        let (key, (storage, element, first, elements)) =
            parts.ok_or_else(|| damaged("a tensor of a storage that it does not have"))?;
        let axes = number(&mut table)? & u64::from(u32::MAX);
        if axes > MOST_AXES as u64 {
            return Err(damaged(&format!("a tensor with {axes} sizes")));
        }
        let mut numbers = || (0..axes).map(|_| number(&mut table)).collect::<Result<Vec<_>, _>>();
        let (sizes, strides) = (numbers()?, numbers()?);
        let offset = number(&mut table)?;
        let shape = sizes
            .iter()
            .map(|&size| usize::try_from(size).ok().filter(|&size| size <= isize::MAX as usize));
        let shape: Option<Vec<_>> = shape.collect();
        let shape = shape
            .filter(|shape| extent(shape, &strides, offset).is_some_and(|end| end <= *elements));
        let Some(shape) = shape else {
            return Err(format!(
                "has a tensor of shape {sizes:?} and strides {strides:?} from {offset} on, larger than its storage of \
                 {elements} elements: it is damaged; get it again"
            ));
        };
        let view = View { storage: storage.clone(), offset: first + offset, strides };
        tensors.insert(key, Meta { shape, element: *element, view });
    }
    Ok(tensors)
}

fn number(table: &mut impl BufRead) -> Result<u64, String> {
    let mut bytes = [0; 8];
    table.read_exact(&mut bytes).map_err(failed)?;
    Ok(u64::from_le_bytes(bytes))
}

fn pass(table: &mut impl BufRead, bytes: u64) -> Result<(), String> {
    std::io::copy(&mut table.take(bytes), &mut std::io::sink()).map_err(failed)?;
    Ok(())
}
