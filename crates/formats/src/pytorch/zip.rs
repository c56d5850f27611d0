//! The directory of a zip file, as far as files of PyTorch use it: entries that are stored as they are, each in a place
//! of its own.

use std::collections::HashMap;
use std::io::{Read, Seek};

use crate::source::Source;
use crate::weights::brief;

/// Bytes of the records, without what they name as following.
const END: u64 = 22;
const LOCATOR: u64 = 20;
const END64: u64 = 56;
const CENTRAL: usize = 46;
const LOCAL: u64 = 30;
/// A comment behind the directory, at most.
const COMMENT: u64 = 0xffff;

/// An entry, as the directory has it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) name: String,
    /// 0 if it is stored as it is.
    method: u16,
    encrypted: bool,
    /// CRC-32 of its bytes; 0 if the writer did not compute it.
    pub(crate) crc: u32,
    stored: u64,
    bytes: u64,
    header: u64,
}

/// Where an entry's bytes lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) at: u64,
    pub(crate) bytes: u64,
    pub(crate) crc: u32,
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// What the directory lists, unchecked.
pub(crate) fn list<R: Read + Seek>(file: &mut Source<R>) -> Result<Vec<Entry>, String> {
    const CUT: &str =
        "is cut short: expected a zip file's directory at its end, found none; get it again";
    let tail_at = file.len().saturating_sub(END + COMMENT);
    let tail = file.peek(tail_at, END + COMMENT)?;
    let found = tail.windows(END as usize).rposition(|bytes| bytes.starts_with(b"PK\x05\x06"));
    let end = found.ok_or(CUT)?;
    let end_at = tail_at + end as u64;
    let mut count = u64::from(u16_at(&tail, end + 10));
    let mut bytes = u64::from(u32_at(&tail, end + 12));
    let mut at = u64::from(u32_at(&tail, end + 16));
    let mut behind = end_at;
    if let Some(locator_at) = end_at.checked_sub(LOCATOR) {
        let locator = file.read(locator_at, LOCATOR)?;
        if locator.starts_with(b"PK\x06\x07") {
            let end64_at = u64_at(&locator, 8);
            let end64 = file.read(end64_at, END64)?;
            if !end64.starts_with(b"PK\x06\x06") {
                return Err("its zip directory does not begin where it says".into());
            }
            (count, bytes, at) = (u64_at(&end64, 32), u64_at(&end64, 40), u64_at(&end64, 48));
            behind = end64_at;
        }
    }
    if at.checked_add(bytes).is_none_or(|end| end > behind) {
        return Err("its zip directory reaches beyond its end: it is damaged; get it again".into());
    }
    let directory = file.read(at, bytes)?;
    let mut rest = &directory[..];
    let mut entries = Vec::new();
    while !rest.is_empty() {
        let (entry, behind) = entry(rest).ok_or("its zip directory is damaged; get it again")?;
        entries.push(entry);
        rest = behind;
    }
    match entries.len() as u64 == count {
        true => Ok(entries),
        false => Err(format!(
            "its zip directory is damaged: it says {count} entries and has {}; get it again",
            entries.len()
        )),
    }
}

/// The first entry of a directory, and what is behind it.
fn entry(bytes: &[u8]) -> Option<(Entry, &[u8])> {
    if bytes.len() < CENTRAL || !bytes.starts_with(b"PK\x01\x02") {
        return None;
    }
    let (name, extra) = (usize::from(u16_at(bytes, 28)), usize::from(u16_at(bytes, 30)));
    let comment = usize::from(u16_at(bytes, 32));
    let behind = bytes.get(CENTRAL + name + extra + comment..)?;
    let extra = &bytes[CENTRAL + name..CENTRAL + name + extra];
    let name = String::from_utf8_lossy(&bytes[CENTRAL..CENTRAL + name]).into_owned();
    let mut fields = [u32_at(bytes, 24), u32_at(bytes, 20), u32_at(bytes, 42)].map(u64::from);
    let mut wide = zip64(extra);
    for field in fields.iter_mut().filter(|field| **field == u64::from(u32::MAX)) {
        let value;
        (value, wide) = wide.split_at_checked(8)?;
        *field = u64_at(value, 0);
    }
    let [bytes_of, stored, header] = fields;
    let entry = Entry {
        name,
        method: u16_at(bytes, 10),
        encrypted: u16_at(bytes, 8) & 1 != 0,
        crc: u32_at(bytes, 16),
        stored,
        bytes: bytes_of,
        header,
    };
    Some((entry, behind))
}

/// The extra field with sizes that do not fit into four bytes; empty if there is none.
fn zip64(mut extra: &[u8]) -> &[u8] {
    while extra.len() >= 4 {
        let (id, bytes) = (u16_at(extra, 0), usize::from(u16_at(extra, 2)));
        let Some(field) = extra.get(4..4 + bytes) else { break };
        if id == 1 {
            return field;
        }
        extra = &extra[4 + bytes..];
    }
    &[]
}

/// Where each entry's bytes lie: stored as they are, inside the file, no two in the same place.
pub(crate) fn places<R: Read + Seek>(
    file: &mut Source<R>,
    entries: &[Entry],
) -> Result<HashMap<String, Place>, String> {
    let mut places = HashMap::new();
    let mut taken = Vec::new();
    for entry in entries {
        let name = brief(&entry.name);
        if entry.encrypted {
            return Err(format!("its entry `{name}` is encrypted, which torch.save does not do"));
        }
        if entry.method != 0 || entry.stored != entry.bytes {
            return Err(format!(
                "its entry `{name}` is compressed, which torch.save does not do: unpack the zip file and pack it \
                 without compression (`zip -0`)"
            ));
        }
        let header = file.read(entry.header, LOCAL)?;
        if !header.starts_with(b"PK\x03\x04") {
            return Err(format!("its entry `{name}` is not where its zip directory says"));
        }
        let behind = u64::from(u16_at(&header, 26)) + u64::from(u16_at(&header, 28));
        let at = entry.header + LOCAL + behind;
        let end = at.checked_add(entry.bytes).filter(|&end| end <= file.len());
        let Some(end) = end else {
            return Err(format!(
                "its entry `{name}` of {} bytes reaches beyond its end: it is damaged; get it again",
                entry.bytes
            ));
        };
        taken.push((entry.header, end, &entry.name));
        let place = Place { at, bytes: entry.bytes, crc: entry.crc };
        if places.insert(entry.name.clone(), place).is_some() {
            return Err(format!("has two entries `{name}`: no program of PyTorch writes that"));
        }
    }
    taken.sort_unstable();
    for pair in taken.windows(2) {
        let ((_, end, first), (begin, _, second)) = (pair[0], pair[1]);
        if begin < end {
            return Err(format!(
                "its entries `{}` and `{}` lie in the same bytes: no program of PyTorch writes that",
                brief(first),
                brief(second)
            ));
        }
    }
    Ok(places)
}
