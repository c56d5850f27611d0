//! Lists what a tar holds without trusting it: sources of images are often files from elsewhere.
//!
//! Only headers are read, from anywhere in a file, so that a tar in a tar is a section of the outer
//! one and nothing is ever unpacked. Files and folders in the formats V7, ustar, GNU and pax are
//! listed. What a set of images has no use for, and what unpackers have been fooled with, is refused:
//! links, devices, sparse files, names that lead elsewhere, sizes that disagree or run past the end.

use std::fs::File;
use std::io;
use std::path::Path;

use ::tar::{EntryType, Header};

use zfnet_core::{Error, Result};

const BLOCK: u64 = 512;
/// Read at a time. A member as small as a class's number shares it with its neighbours' headers.
const WINDOW: u64 = 4096;
/// The largest size that the field of a header holds in octal.
const LARGEST_OCTAL: u64 = 0o777_7777_7777;
/// Zeros behind the end of an archive, at most: programs fill up blocks of 10 KiB, or of a few hundred if asked to.
const MOST_PADDING: u64 = 1 << 20;
/// An extended header larger than this is refused: names are far shorter.
const MAX_EXTENSION: u64 = 64 << 10;

/// A file in a tar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member<'a> {
    /// Its name, never absolute, without `.` and `..`, and not empty.
    pub name: &'a str,
    /// Where its bytes begin in the outermost file.
    pub offset: u64,
    /// How many they are; all of them lie in the tar.
    pub bytes: u64,
}

/// A tar: a section of a file.
#[derive(Clone, Copy)]
pub struct Archive<'a> {
    /// The file, for messages.
    pub path: &'a Path,
    /// The member of it that is this tar, for messages; empty if the file is the tar.
    pub inner: &'a str,
    /// The file's bytes.
    pub file: &'a dyn ReadAt,
    /// Where the tar begins in it.
    pub start: u64,
    /// The tar's length.
    pub bytes: u64,
}

/// What was read last.
#[derive(Default)]
struct Window {
    at: u64,
    bytes: Vec<u8>,
}

/// What extended headers say of the member that follows.
#[derive(Default, PartialEq)]
struct Extension {
    name: Option<Vec<u8>>,
    size: Option<u64>,
}

impl Archive<'_> {
    /// Shows every file to `visit`, in the order of the tar, until it fails. At no time more than one
    /// member is kept in memory.
    ///
    /// # Errors
    /// If this is no whole tar, or has a member that is refused; names both.
    pub fn members(&self, visit: &mut dyn FnMut(Member<'_>) -> Result<()>) -> Result<()> {
        let mut window = Window::default();
        let mut extension = Extension::default();
        let mut at = 0;
        loop {
            let block = self.block(at, &mut window)?;
            if block.iter().all(|&byte| byte == 0) {
                if extension != Extension::default() {
                    return Err(self.error("has an extended header without a member behind it"));
                }
                return self.ends_at(at);
            }
            let header = Header::from_byte_slice(block);
            if header.cksum().ok() != Some(checksum(block)) {
                return Err(self.error(&match at {
                    0 => not_a_tar(block),
                    _ => format!("is damaged: expected a member's header at byte {at}"),
                }));
            }

            let kind = header.entry_type();
            let extends = matches!(
                kind,
                EntryType::GNULongName | EntryType::XHeader | EntryType::XGlobalHeader
            );
            let said = if extends { Extension::default() } else { std::mem::take(&mut extension) };
            let raw = said.name.unwrap_or_else(|| header.path_bytes().into_owned());
            let refused = |reason: &str| self.member_error(&String::from_utf8_lossy(&raw), reason);
            let mut size = size(header).map_err(|reason| refused(&reason))?;
            if let Some(said) = said.size {
                // What does not fit in the header's field is 0 there, as GNU tar and Python write it.
                if size != said && !(size == 0 && said > LARGEST_OCTAL) {
                    return Err(refused("has two sizes that disagree"));
                }
                size = said;
            }
            let data = at + BLOCK;
            if size > self.bytes - data {
                return Err(refused(&format!(
                    "has {size} bytes, but only {} follow: the tar is cut short or wrong; get it \
                     again",
                    self.bytes - data
                )));
            }
            at = (data + size.next_multiple_of(BLOCK)).min(self.bytes);

            if extends {
                if size > MAX_EXTENSION {
                    return Err(refused(&format!(
                        "is an extended header of {size} bytes; expected {MAX_EXTENSION} at most"
                    )));
                }
                let mut text = vec![0; size as usize];
                self.read(data, &mut text)?;
                extension.add(kind, text).map_err(refused)?;
                continue;
            }
            if !matches!(kind, EntryType::Regular | EntryType::Directory) {
                return Err(refused(&format!("is {}; expected files", called(kind))));
            }
            let name = plain_name(&raw).map_err(refused)?;
            // Before POSIX a folder was a file whose name ends in a slash.
            if kind == EntryType::Directory || raw.ends_with(b"/") {
                if size != 0 {
                    return Err(refused("is a folder with a size"));
                }
            } else if name.is_empty() {
                return Err(refused("has no name"));
            } else {
                visit(Member { name: &name, offset: self.start + data, bytes: size })?;
            }
        }
    }

    /// Checks that the archive may end here: with nothing but zeros behind, and no more of them than programs add.
    /// Otherwise images are missing: a download that has not come to its end in a file of the full length, or tars that
    /// were joined.
    fn ends_at(&self, at: u64) -> Result<()> {
        let mut rest = vec![0; (self.bytes - at).min(MOST_PADDING) as usize];
        self.read(at, &mut rest)?;
        let data = rest.iter().position(|&byte| byte != 0);
        if data.is_none() && self.bytes - at <= MOST_PADDING {
            return Ok(());
        }
        let found = match data {
            Some(data) => format!("and more data at byte {}", at + data as u64),
            None => format!("and {} zero bytes behind it", self.bytes - at),
        };
        Err(self.error(&format!(
            "ends at byte {at} of {}, {found}: it is incomplete or damaged, or tars were joined; get it again",
            self.bytes
        )))
    }

    /// The block at a place of the tar, of which more may be read than that.
    fn block<'a>(&self, at: u64, window: &'a mut Window) -> Result<&'a [u8]> {
        if self.bytes - at < BLOCK {
            return Err(self.error(&match at {
                0 => format!("is no tar: expected {BLOCK} bytes or more, found {}", self.bytes),
                _ => format!(
                    "is cut short: expected another header or the end of the archive at byte {at}, \
                     found the end of the file; get it again"
                ),
            }));
        }
        if at < window.at || at + BLOCK > window.at + window.bytes.len() as u64 {
            window.bytes.resize(WINDOW.min(self.bytes - at) as usize, 0);
            window.at = at;
            self.read(at, &mut window.bytes)?;
        }
        Ok(&window.bytes[(at - window.at) as usize..][..BLOCK as usize])
    }

    /// This tar, and what is wrong with it.
    pub fn error(&self, reason: &str) -> Error {
        match self.inner {
            "" => Error::file(self.path, reason),
            inner => Error::file(self.path, format!("{inner:?} in it {reason}")),
        }
    }

    /// A member of this tar, and what is wrong with it.
    pub fn member_error(&self, name: &str, reason: &str) -> Error {
        let name: String = name.chars().take(200).collect();
        self.error(&format!("has a member {name:?} that {reason}"))
    }

    fn read(&self, at: u64, out: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(out, self.start + at).map_err(Error::io("read", self.path))
    }
}

/// What a file is that does not begin as a tar does.
fn not_a_tar(block: &[u8]) -> String {
    let compressed = match block {
        [0x1f, 0x8b, ..] => Some(("gzip", "gunzip")),
        [b'B', b'Z', b'h', ..] => Some(("bzip2", "bunzip2")),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some(("xz", "unxz")),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(("zstd", "unzstd")),
        _ => None,
    };
    match compressed {
        Some((by, tool)) => format!(
            "is no tar but one compressed with {by}, of which no single image can be read: uncompress it first ({tool} < IN > OUT.tar)"
        ),
        None => "is no tar: it does not begin with a member's header".into(),
    }
}

/// The sum of a header's bytes, with blanks where the sum itself stands.
fn checksum(block: &[u8]) -> u32 {
    let sum = |bytes: &[u8]| bytes.iter().map(|&byte| u32::from(byte)).sum::<u32>();
    sum(&block[..148]) + 8 * u32::from(b' ') + sum(&block[156..])
}

fn size(header: &Header) -> Result<u64, String> {
    let field = header.as_old().size;
    // Of a binary number the crate reads the last eight bytes.
    if field[0] >= 0x80 && (field[0] != 0x80 || field[1..4] != [0; 3]) {
        return Err("has an impossible size".into());
    }
    header.entry_size().map_err(|error| format!("has an unreadable size: {error}"))
}

/// A name that stays where it is, without the parts that mean nothing.
fn plain_name(raw: &[u8]) -> Result<String, &'static str> {
    let name = std::str::from_utf8(raw).map_err(|_| "has a name that is no UTF-8")?;
    if name.contains('\0') {
        return Err("has a NUL in its name");
    }
    if name.starts_with('/') {
        return Err("has an absolute name");
    }
    if name.split('/').any(|part| part == "..") {
        return Err("has a name that leads out of its folder");
    }
    let parts: Vec<_> = name.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    Ok(parts.join("/"))
}

impl Extension {
    /// Adds what an extended header of this kind says.
    fn add(&mut self, kind: EntryType, mut text: Vec<u8>) -> Result<(), &'static str> {
        let found = if kind == EntryType::GNULongName {
            if text.last() == Some(&0) {
                text.pop();
            }
            Extension { name: Some(text), size: None }
        } else {
            pax(&text)?
        };
        if kind == EntryType::XGlobalHeader && found != Extension::default() {
            return Err("gives all members one name or size");
        }
        if found.name.is_some() && self.name.is_some()
            || found.size.is_some() && self.size.is_some()
        {
            return Err("is an extended header that says again what another one said");
        }
        self.name = found.name.or(self.name.take());
        self.size = found.size.or(self.size);
        Ok(())
    }
}

/// Records of `LENGTH KEY=VALUE\n`. (The crate cuts them at line ends, which values may contain.)
fn pax(mut text: &[u8]) -> Result<Extension, &'static str> {
    let malformed = "is a malformed pax header";
    let mut found = Extension::default();
    while !text.is_empty() {
        let blank = text.iter().position(|&byte| byte == b' ').ok_or(malformed)?;
        let length = number(&text[..blank]).ok_or(malformed)?;
        let record = usize::try_from(length).ok().and_then(|end| text.get(blank + 1..end));
        let record = record.and_then(|record| record.strip_suffix(b"\n")).ok_or(malformed)?;
        let equals = record.iter().position(|&byte| byte == b'=').ok_or(malformed)?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        if key.starts_with(b"GNU.sparse.") {
            return Err("is the header of a sparse file; expected files");
        }
        match key {
            b"path" => found.name = Some(value.into()),
            b"size" => found.size = Some(number(value).ok_or(malformed)?),
            _ => {}
        }
        text = &text[length as usize..];
    }
    Ok(found)
}

fn number(digits: &[u8]) -> Option<u64> {
    // `parse` would take a sign.
    let digits = std::str::from_utf8(digits).ok().filter(|text| !text.starts_with('+'))?;
    digits.parse().ok()
}

fn called(kind: EntryType) -> String {
    match kind {
        EntryType::Symlink => "a symbolic link".into(),
        EntryType::Link => "a hard link".into(),
        EntryType::Char | EntryType::Block => "a device".into(),
        EntryType::Fifo => "a fifo".into(),
        EntryType::GNUSparse => "a sparse file".into(),
        EntryType::GNULongLink => "the long name of a link".into(),
        other => format!("of the unknown type {:?}", char::from(other.as_byte())),
    }
}

/// Bytes that can be read from any place, by many threads.
pub trait ReadAt {
    /// Reads some bytes from `offset` on; 0 at the end.
    ///
    /// # Errors
    /// If the system cannot.
    fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Fills `out` from `offset` on.
    ///
    /// # Errors
    /// If the system cannot, or the bytes end before.
    fn read_exact_at(&self, mut out: &mut [u8], mut offset: u64) -> io::Result<()> {
        while !out.is_empty() {
            match self.read_at(out, offset) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => {
                    out = &mut out[read..];
                    offset += read as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl ReadAt for File {
    fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<usize> {
        #[cfg(unix)]
        return std::os::unix::fs::FileExt::read_at(self, out, offset);
        #[cfg(windows)]
        return std::os::windows::fs::FileExt::seek_read(self, out, offset);
    }
}

impl ReadAt for Vec<u8> {
    fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<usize> {
        let rest = usize::try_from(offset).ok().and_then(|at| self.get(at..)).unwrap_or_default();
        let read = rest.len().min(out.len());
        out[..read].copy_from_slice(&rest[..read]);
        Ok(read)
    }
}
