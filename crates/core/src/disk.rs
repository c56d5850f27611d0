//! Files that are there whole or not at all, and folders that only one process writes into.

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process;
use std::time::Duration;

use crate::{Error, Result};

/// Writes a file beside its place and renames it into it: whoever looks meanwhile sees the old
/// file or the new one, never half of one. Makes the folder if it is missing.
///
/// # Errors
/// What the system says, with the file's name.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let name = path.file_name().ok_or_else(|| io::Error::other("a file needs a name"))?;
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut beside = std::ffi::OsString::from(".");
    beside.push(name);
    beside.push(format!(".{}.tmp", std::process::id()));
    let beside = path.with_file_name(beside);
    let done = fs::write(&beside, bytes).and_then(|()| fs::rename(&beside, path));
    if done.is_err() {
        let _ = fs::remove_file(&beside);
    }
    done.map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))
}

/// Writes a file and waits until it is on the disk.
///
/// # Errors
/// If the disk is full or the file cannot be written.
pub fn write_synced(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || {
        let mut file = fs::File::create(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(Error::io("write", path))
}

/// Writes a file that is there whole or not at all, and stays, even after a power loss. For a folder that
/// only one process writes into.
///
/// # Errors
/// If the disk is full or the file cannot be written.
pub fn write_durable(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".tmp");
    let aside = Path::new(&aside);
    write_synced(aside, bytes)?;
    fs::rename(aside, path).map_err(Error::io("replace", path))?;
    sync_folder(folder_of(path))
}

/// Makes a folder, with those above it that are missing, so that it is there even after a power loss.
///
/// # Errors
/// If it cannot be made.
pub fn create_folder(path: &Path) -> Result<()> {
    let missing: Vec<&Path> = path.ancestors().take_while(|folder| !folder.exists()).collect();
    fs::create_dir_all(path).map_err(Error::io("create", path))?;
    let made = missing.into_iter().filter(|folder| !folder.as_os_str().is_empty());
    made.map(folder_of).try_for_each(sync_folder)
}

/// The folder that a name lies in.
fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Makes a folder's entries durable; where the system has no such thing, nothing.
///
/// # Errors
/// If the system says that it failed.
pub fn sync_folder(path: &Path) -> Result<()> {
    if cfg!(unix) {
        fs::File::open(path)
            .and_then(|folder| folder.sync_all())
            .map_err(Error::io("sync", path))?;
    }
    Ok(())
}

/// Whether Windows keeps a name for a device, whatever its case and extension.
pub fn is_device_name(name: &str) -> bool {
    let stem = name.split('.').next().unwrap_or_default().trim_end().to_ascii_uppercase();
    let numbered = ["COM", "LPT"].iter().filter_map(|device| stem.strip_prefix(device));
    matches!(&*stem, "CON" | "PRN" | "AUX" | "NUL")
        || numbered
            .into_iter()
            .any(|rest| rest.len() == 1 && rest.bytes().all(|b| b.is_ascii_digit()))
}

/// Name of the file in a folder that a process writes into.
const LOCK: &str = "lock";
/// Times that a lock is tried, and between them: who only asks for one ([`is_locked`]) has it for a moment.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_millis(10);

/// Whether a process has [`lock`]ed a folder.
pub fn is_locked(folder: &Path) -> bool {
    let file = fs::File::open(folder.join(LOCK));
    file.is_ok_and(|file| matches!(file.try_lock_shared(), Err(fs::TryLockError::WouldBlock)))
}

/// A folder's lock, which this process has until this is dropped.
pub struct FolderLock {
    file: fs::File,
    /// Who took it. A process that was forked has a copy of this, which unlocks nothing.
    process: u32,
}

impl FolderLock {
    fn is_ours(&self) -> bool {
        self.process == process::id()
    }
}

impl Drop for FolderLock {
    fn drop(&mut self) {
        // The system would keep the lock for as long as a process that was forked has the file open.
        if self.is_ours() {
            let _ = self.file.unlock();
        }
    }
}

/// Gives a folder back, and removes the lock's file if nobody has written into it.
pub fn unlock(folder: &Path, lock: FolderLock) {
    if lock.is_ours() && lock.file.metadata().is_ok_and(|found| found.len() == 0) {
        let _ = fs::remove_file(folder.join(LOCK)); // it may lie there as well
    }
    drop(lock);
}

/// Keeps a second process out of a folder until what is returned is dropped; the system gives the
/// lock back whenever and however this process ends. `who` writes there: "another training".
///
/// # Errors
/// If another process holds it, or the folder cannot be written.
pub fn lock(folder: &Path, who: &str) -> Result<FolderLock> {
    let path = folder.join(LOCK);
    // Not cut: it may be a file of the user's.
    let file = match fs::File::options().create(true).truncate(false).write(true).open(&path) {
        // Left by another user; to be locked it need not be written.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => fs::File::open(&path),
        made => made,
    };
    let file = file.map_err(Error::io("create", &path))?;
    let mut locked = file.try_lock();
    for _ in 1..TRIES {
        if matches!(locked, Err(fs::TryLockError::WouldBlock)) {
            std::thread::sleep(PAUSE);
            locked = file.try_lock();
        }
    }
    match locked {
        Err(fs::TryLockError::WouldBlock) => {
            Err(Error::Locked { path: folder.into(), by: who.into() })
        }
        // The one before has removed the file between these two lines.
        Ok(()) if !is_at(&file, &path) => lock(folder, who),
        // Some file systems know no locks; work goes on there.
        _ => Ok(FolderLock { file, process: process::id() }),
    }
}

/// Whether a path still leads to an open file.
#[cfg(unix)]
fn is_at(file: &fs::File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let [open, there] =
        [file.metadata(), fs::metadata(path)].map(|found| found.map(|f| (f.dev(), f.ino())));
    matches!((open, there), (Ok(open), Ok(there)) if open == there)
}

#[cfg(not(unix))]
fn is_at(_: &fs::File, _: &Path) -> bool {
    true // Windows removes no file that is open
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_devices() {
        for name in ["con", "AUX", "nul.png", "COM1", "lpt9.txt", "prn "] {
            assert!(is_device_name(name), "{name}");
        }
        for name in ["conv1", "con-", "com", "com10", "lpta", "auxiliary", ""] {
            assert!(!is_device_name(name), "{name}");
        }
    }
}
