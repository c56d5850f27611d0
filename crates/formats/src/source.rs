//! A file, or bytes in memory, of which parts are read.

use std::fs::{self, File};
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use zfnet_core::{Error, Result};

/// Opens a file.
pub(crate) fn open(path: &Path) -> Result<File> {
    // Asked before it is opened: opening a pipe would wait for whoever writes into it.
    if !fs::metadata(path).map_err(Error::io("read", path))?.is_file() {
        return Err(Error::file(path, "is no file; expected a network's weights"));
    }
    File::open(path).map_err(Error::io("open", path))
}

/// What is read from, and how long it is.
pub(crate) struct Source<R> {
    inner: R,
    len: u64,
}

impl<R: Read + Seek> Source<R> {
    pub(crate) fn new(mut inner: R) -> Result<Self, String> {
        let len = inner.seek(SeekFrom::End(0)).map_err(failed)?;
        Ok(Self { inner, len })
    }

    /// Its bytes.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// `bytes` of them from `at` on. No memory is taken for what the file does not have.
    pub(crate) fn read(&mut self, at: u64, bytes: u64) -> Result<Vec<u8>, String> {
        if at.checked_add(bytes).is_none_or(|end| end > self.len) {
            let len = self.len;
            return Err(format!(
                "is cut short: expected {bytes} bytes from byte {at} on, and there are {len} in all; get it again"
            ));
        }
        let mut read = Vec::new();
        reserve(&mut read, bytes)?;
        self.inner.seek(SeekFrom::Start(at)).map_err(failed)?;
        self.inner.by_ref().take(bytes).read_to_end(&mut read).map_err(failed)?;
        match read.len() as u64 == bytes {
            true => Ok(read),
            false => Err("became shorter while it was read; get it again".into()),
        }
    }

    /// Hands on `bytes` from `at` on in pieces of a few pages, each but the last a multiple of every element's size.
    pub(crate) fn pieces(
        &mut self,
        at: u64,
        bytes: u64,
        mut each: impl FnMut(&[u8]) -> Result<(), String>,
    ) -> Result<(), String> {
        const PIECE: u64 = 1 << 18;
        let mut done = 0;
        while done < bytes {
            let piece = PIECE.min(bytes - done);
            each(&self.read(at + done, piece)?)?;
            done += piece;
        }
        Ok(())
    }

    /// At most `bytes` from `at` on: fewer where it ends.
    pub(crate) fn peek(&mut self, at: u64, bytes: u64) -> Result<Vec<u8>, String> {
        let at = at.min(self.len);
        self.read(at, bytes.min(self.len - at))
    }

    /// All from `at` on, one after the other.
    pub(crate) fn stream(&mut self, at: u64) -> Result<BufReader<&mut R>, String> {
        self.inner.seek(SeekFrom::Start(at)).map_err(failed)?;
        Ok(BufReader::new(&mut self.inner))
    }
}

/// Room for more elements, or an error in place of the program's end.
pub(crate) fn reserve<T>(vec: &mut Vec<T>, more: u64) -> Result<(), String> {
    let wanted = usize::try_from(more).ok().filter(|&more| vec.try_reserve_exact(more).is_ok());
    match wanted {
        Some(_) => Ok(()),
        None => Err(format!("takes more memory than there is ({more} values at once)")),
    }
}

/// What the system said.
pub(crate) fn failed(error: io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => "is cut short: it ends in the middle; get it again".into(),
        _ => format!("cannot be read: {error}"),
    }
}
