//! What a long study has finished, kept beside its pages, so that the same command goes on after an
//! interruption.
//!
//! Each part is a file, there whole or not at all. All belong to one set of settings (checkpoint, data,
//! flags) and one version of this program: a part made by others is never taken.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::disk::write_atomic;
use crate::{Error, Result};

/// The parts of one study.
pub(super) struct Parts {
    /// None if nothing is kept.
    folder: Option<PathBuf>,
}

impl Parts {
    /// Keeps nothing.
    pub(super) fn none() -> Self {
        Parts { folder: None }
    }

    /// Opens the parts in `out` if they were made with the same settings; otherwise starts without any.
    /// `settings` must hold all that parts depend on, but for this program's version.
    ///
    /// # Errors
    /// If the folder cannot be written.
    pub(super) fn open(out: &Path, settings: &impl Serialize) -> Result<Self> {
        let folder = folder(out);
        let settings = (env!("CARGO_PKG_VERSION"), settings);
        let settings = serde_json::to_vec(&settings).expect("plain data");
        let file = folder.join("settings.json");
        if fs::read(&file).ok().as_ref() != Some(&settings) {
            Parts::remove(out)?;
            write_atomic(&file, &settings).map_err(Error::io("write", &file))?;
        }
        Ok(Parts { folder: Some(folder) })
    }

    /// Removes the parts in `out`, if there are any.
    ///
    /// # Errors
    /// If they cannot be removed.
    pub(super) fn remove(out: &Path) -> Result<()> {
        let folder = folder(out);
        match folder.exists() {
            true => fs::remove_dir_all(&folder).map_err(Error::io("remove", &folder)),
            false => Ok(()),
        }
    }

    /// A part that is there; `name` is the program's, not the user's. One that cannot be read is made
    /// again.
    pub(super) fn get<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        serde_json::from_slice(&fs::read(self.file(name)?).ok()?).ok()
    }

    /// Keeps a part.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn put(&self, name: &str, part: &impl Serialize) -> Result<()> {
        let Some(file) = self.file(name) else { return Ok(()) };
        let json = serde_json::to_vec(part).expect("plain data");
        write_atomic(&file, &json).map_err(Error::io("write", &file))
    }

    /// A part that is there, or the one that `make` makes, which is kept.
    ///
    /// # Errors
    /// Those of `make`, or if it cannot be written.
    pub(super) fn get_or_make<T: Serialize + DeserializeOwned>(
        &self,
        name: &str,
        make: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        if let Some(part) = self.get(name) {
            return Ok(part);
        }
        let part = make()?;
        self.put(name, &part)?;
        Ok(part)
    }

    fn file(&self, name: &str) -> Option<PathBuf> {
        Some(self.folder.as_ref()?.join(format!("{name}.json")))
    }
}

/// Hidden, so that no layer's or class's folder is taken for it.
fn folder(out: &Path) -> PathBuf {
    out.join(".parts")
}

#[cfg(test)]
mod tests {
    use super::Parts;

    #[test]
    fn parts_are_those_of_their_settings() {
        let out = tempfile::tempdir().unwrap();
        let parts = Parts::open(out.path(), &("model", 1)).unwrap();
        assert_eq!(parts.get::<u32>("a"), None);
        parts.put("a", &7).unwrap();
        let again = Parts::open(out.path(), &("model", 1)).unwrap();
        assert_eq!(again.get::<u32>("a"), Some(7));
        assert_eq!(again.get::<String>("a"), None);
        assert_eq!(again.get_or_make("a", || Ok(1u32)).unwrap(), 7);
        assert_eq!(again.get_or_make("b", || Ok(2u32)).unwrap(), 2);
        assert_eq!(again.get::<u32>("b"), Some(2));
        let others = Parts::open(out.path(), &("model", 2)).unwrap();
        assert_eq!(others.get::<u32>("a"), None);
        others.put("a", &8).unwrap();
        Parts::remove(out.path()).unwrap();
        assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 0);
        Parts::remove(out.path()).unwrap();
        let none = Parts::none();
        none.put("a", &1).unwrap();
        assert_eq!(none.get::<u32>("a"), None);
    }
}
