//! What a long study has finished, kept beside its pages, so that the same command goes on after an
//! interruption.
//!
//! Each part is a file, there whole or not at all. All belong to one set of settings (checkpoint, data,
//! flags): a part made by others is never taken.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::disk::write_whole;
use crate::{Error, Result};

/// The parts of one study.
pub struct Parts {
    folder: PathBuf,
}

impl Parts {
    /// Opens the parts in `out` if they were made with the same settings; otherwise starts without any.
    /// `settings` must hold all that parts depend on: [`super::fingerprint`] of the model, the images'
    /// fingerprint, flags.
    ///
    /// # Errors
    /// If the folder cannot be written.
    pub fn open(out: &Path, settings: &impl Serialize) -> Result<Self> {
        // Hidden, so that no layer's or class's folder is taken for it.
        let folder = out.join(".parts");
        let settings = serde_json::to_vec(settings).expect("plain data");
        let file = folder.join("settings.json");
        if fs::read(&file).ok().as_ref() != Some(&settings) {
            if folder.exists() {
                fs::remove_dir_all(&folder).map_err(Error::io("remove", &folder))?;
            }
            write_whole(&file, &settings).map_err(Error::io("write", &file))?;
        }
        Ok(Parts { folder })
    }

    /// A part that is there; `name` is the program's, not the user's. One that cannot be read is made
    /// again.
    pub fn get<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        serde_json::from_slice(&fs::read(self.file(name)).ok()?).ok()
    }

    /// Keeps a part.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn put(&self, name: &str, part: &impl Serialize) -> Result<()> {
        let file = self.file(name);
        let json = serde_json::to_vec(part).expect("plain data");
        write_whole(&file, &json).map_err(Error::io("write", &file))
    }

    /// Removes all parts: the study's pages are there.
    ///
    /// # Errors
    /// If they cannot be removed.
    pub fn done(self) -> Result<()> {
        fs::remove_dir_all(&self.folder).map_err(Error::io("remove", &self.folder))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.json"))
    }
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
        let others = Parts::open(out.path(), &("model", 2)).unwrap();
        assert_eq!(others.get::<u32>("a"), None);
        others.put("a", &8).unwrap();
        others.done().unwrap();
        assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 0);
    }
}
