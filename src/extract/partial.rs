//! A file that is being written, and how far it is.
//!
//! Beside `FILE` lie `FILE.partial`, the values, and `FILE.partial.json`, which says of what they are and how many of
//! them are on the disk. The second is written after the first is synced, so that it never says too much.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, TryLockError};
use std::io::{BufWriter, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::disk::{create_folder, sync_folder, write_durable};
use crate::{Error, Result};

/// What values depend on, by name, in the order in which differences are looked for.
pub(super) type Made = Vec<(&'static str, String)>;

/// How far it is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct State {
    /// What the values depend on.
    made: BTreeMap<String, String>,
    /// Images that were looked at, from the first on.
    pub done: usize,
    /// Those of them that could not be used.
    pub bad: BTreeSet<usize>,
}

impl State {
    /// Rows that are written.
    pub(super) fn rows(&self) -> usize {
        self.done - self.bad.len()
    }

    fn holds_together(&self, images: usize) -> bool {
        self.done <= images && self.bad.last().is_none_or(|last| *last < self.done)
    }
}

/// A file that is being written.
pub(super) struct Partial {
    out: PathBuf,
    path: PathBuf,
    file: File,
    /// The file that was written before values were rearranged: what is locked.
    before: Option<File>,
    pub state: State,
}

impl Drop for Partial {
    /// A program that another thread is starting has the file open too, for a moment.
    fn drop(&mut self) {
        let _ = self.before.as_ref().unwrap_or(&self.file).unlock();
    }
}

impl Partial {
    /// Opens what is there of `out` if it was made of the same, or begins it, for `images` images. What was made of
    /// something else is begun anew if `overwrite` says so.
    ///
    /// # Errors
    /// If it was made of something else, another process is writing it, or it cannot be written.
    pub(super) fn open(out: &Path, made: &Made, images: usize, overwrite: bool) -> Result<Self> {
        if out.is_dir() {
            return Err(Error::file(out, "is a folder; expected the name of a file to be written"));
        }
        create_folder(folder_of(out))?;
        let path = beside(out, "");
        let file = File::options().create(true).truncate(false).read(true).write(true).open(&path);
        let file = file.map_err(Error::io("write", &path))?;
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            let reason = "another process is writing it: wait for its end, or choose another file";
            return Err(Error::file(path, reason)); // some file systems know no locks: work goes on there
        }
        let wanted = made.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        let anew = State { made: wanted, ..State::default() };
        let mut partial = Partial { out: out.to_owned(), path, file, before: None, state: anew };
        match read_state(out)?.filter(|state| state.holds_together(images)) {
            Some(state) if state.made == partial.state.made => partial.state = state,
            Some(state) if !overwrite => {
                let found = |name: &str| state.made.get(name).map_or("unknown", String::as_str);
                let other = made.iter().find(|(name, value)| found(name) != value);
                let (what, now) = other.map_or(("program", ""), |(what, now)| (*what, now));
                let difference = format!("{} then, {now} now", found(what));
                let path = partial.path.clone();
                return Err(Error::ResumeMismatch { path, what, difference });
            }
            _ => partial.begin_anew()?,
        }
        Ok(partial)
    }

    /// Forgets what was written, first of all that it was.
    fn begin_anew(&mut self) -> Result<()> {
        remove(&beside(&self.out, ".json"))?;
        sync_folder(folder_of(&self.out))?;
        self.file.set_len(0).map_err(Error::io("write", &self.path))?;
        (self.state.done, self.state.bad) = (0, BTreeSet::new());
        Ok(())
    }

    /// Begins anew what is shorter than `bytes`, though it should hold as much.
    ///
    /// # Errors
    /// As [`Partial::write`].
    pub(super) fn must_have(&mut self, bytes: u64) -> Result<()> {
        let found = self.file.metadata().map_err(Error::io("read", &self.path))?.len();
        if self.state.done > 0 && found < bytes {
            tracing::warn!("{}: has been cut short, and is made anew", self.path.display());
            self.begin_anew()?;
        }
        Ok(())
    }

    /// Writes at a place.
    ///
    /// # Errors
    /// If the disk is full or the file cannot be written.
    pub(super) fn write(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        write_at(&mut self.file, &self.path, at, |file| file.write_all(bytes))
    }

    /// Writes piece by piece from a place on.
    ///
    /// # Errors
    /// As [`Partial::write`].
    pub(super) fn write_all<P: AsRef<[u8]>>(
        &mut self,
        at: u64,
        mut pieces: impl Iterator<Item = P>,
    ) -> Result<()> {
        write_at(&mut self.file, &self.path, at, |file| {
            let mut file = BufWriter::new(file);
            pieces.try_for_each(|piece| file.write_all(piece.as_ref()))?;
            file.flush()
        })
    }

    /// Makes what is written, and how much that is, safe from a loss of power.
    ///
    /// # Errors
    /// As [`Partial::write`].
    pub(super) fn save(&self) -> Result<()> {
        self.file.sync_all().map_err(Error::io("write", &self.path))?;
        let json = serde_json::to_vec(&self.state).expect("plain data");
        write_durable(&beside(&self.out, ".json"), &json)
    }

    /// Moves values that are to lie elsewhere into another file, which becomes the one that is written: each of `moves`
    /// says from where, to where, and how many bytes. (Moved within the file they would be lost by an interruption.)
    ///
    /// # Errors
    /// As [`Partial::write`].
    pub(super) fn rearrange(&mut self, moves: &[(u64, u64, u64)]) -> Result<()> {
        let path = beside(&self.out, ".whole");
        let file = File::options().create(true).truncate(true).read(true).write(true).open(&path);
        let mut file = file.map_err(Error::io("write", &path))?;
        let moved = moves.iter().try_for_each(|&(from, to, bytes)| {
            self.file.seek(SeekFrom::Start(from)).map_err(Error::io("read", &self.path))?;
            let copied = write_at(&mut file, &path, to, |file| {
                std::io::copy(&mut (&self.file).take(bytes), file)
            })?;
            match copied == bytes {
                true => Ok(()),
                false => Err(Error::file(&self.path, "was cut short while it was read")),
            }
        });
        if moved.is_err() {
            let _ = fs::remove_file(&path); // the disk may be full
        }
        moved?;
        (self.before, self.path) = (Some(std::mem::replace(&mut self.file, file)), path);
        Ok(())
    }

    /// The file is whole, of `bytes` bytes: gives it its name.
    ///
    /// # Errors
    /// As [`Partial::write`].
    pub(super) fn finish(self, bytes: u64) -> Result<()> {
        let Partial { out, path, file, .. } = &self;
        file.set_len(bytes).and_then(|()| file.sync_all()).map_err(Error::io("write", path))?;
        fs::rename(path, out).map_err(Error::io("replace", out))?;
        sync_folder(folder_of(out))?;
        remove(&beside(out, ".json"))?;
        remove(&beside(out, ""))?;
        sync_folder(folder_of(out))
    }
}

/// Removes a file, if it is there.
fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io("remove", path)(error)),
        _ => Ok(()),
    }
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// `FILE.partial` and what belongs to it.
fn beside(out: &Path, more: &str) -> PathBuf {
    let mut name = out.as_os_str().to_owned();
    name.push(".partial");
    name.push(more);
    name.into()
}

/// What is kept of a file, if there is something that can be read.
fn read_state(out: &Path) -> Result<Option<State>> {
    let path = beside(out, ".json");
    match fs::read(&path) {
        Ok(json) => Ok(serde_json::from_slice(&json).ok()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("read", path)(error)),
    }
}

fn write_at<T>(
    file: &mut File,
    path: &Path,
    at: u64,
    write: impl FnOnce(&mut File) -> std::io::Result<T>,
) -> Result<T> {
    file.seek(SeekFrom::Start(at)).and_then(|_| write(file)).map_err(Error::io("write", path))
}
