//! What every study is called with: what computes, who watches, and where finished parts are kept.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::fingerprint;
use super::parts::Parts;
use crate::Result;
use crate::backend::Backend;
use crate::model::Model;
use crate::ranks::Ranks;

/// What a result was made with (network, checkpoint, data, ...): names and values, for its page.
pub type Facts = Vec<(String, String)>;

/// Is told what is being done, how much of it is done, of how much, and a few words more.
type Watcher<'a> = Box<dyn FnMut(&str, usize, usize, &str) + 'a>;

/// A call of a study. Models, images and settings are arguments of their own; nothing in here changes a
/// number of the result.
pub struct Session<'a, B: Backend> {
    /// What computes.
    pub backend: &'a B,
    /// Threads that read and decode images.
    pub workers: usize,
    /// Those who make the study together, if it can be divided ([`features`](super::features)): all with the same models,
    /// images and settings. Rank 0 alone keeps parts.
    pub ranks: Ranks,
    /// What only the caller knows of where models and images come from; a result begins with it.
    pub facts: Facts,
    out: Option<PathBuf>,
    watcher: Watcher<'a>,
}

impl<'a, B: Backend> Session<'a, B> {
    /// One of a single rank that keeps no parts and tells nobody, with one thread that reads.
    pub fn new(backend: &'a B) -> Self {
        let (facts, watcher) = (Facts::new(), Box::new(|_: &str, _, _, _: &str| ()));
        Session { backend, workers: 1, ranks: Ranks::alone(), facts, out: None, watcher }
    }

    /// Keeps in `out` what is finished, so that an interrupted study goes on from there.
    pub fn kept_in(mut self, out: &Path) -> Self {
        self.out = Some(out.to_owned());
        self
    }

    /// Calls `watcher` with what is being done, how much of it is done, of how much, and a few words more.
    pub fn watched(mut self, watcher: impl FnMut(&str, usize, usize, &str) + 'a) -> Self {
        self.watcher = Box::new(watcher);
        self
    }

    /// Adds to what the result was made with.
    pub fn fact(&mut self, name: &str, value: impl Into<String>) {
        self.facts.push((name.into(), value.into()));
    }

    /// The folder in which finished parts are kept, if they are.
    pub(super) fn out(&self) -> Option<&Path> {
        self.out.as_deref()
    }

    /// Says how far the study is.
    pub(super) fn progress(&mut self, what: &str, done: usize, total: usize, more: &str) {
        (self.watcher)(what, done, total, more);
    }

    /// The parts of a study of these models that depend on nothing but them, this program's version, the
    /// backend, and `settings`: those of the study, and the images.
    ///
    /// # Errors
    /// If the folder cannot be written, or a backend operation fails.
    pub(super) fn parts(&self, models: &[&Model<B>], settings: &impl Serialize) -> Result<Parts> {
        let Some(out) = self.out.as_ref().filter(|_| self.ranks.is_first()) else {
            return Ok(Parts::none());
        };
        let models = models.iter().map(|model| fingerprint(self.backend, model));
        Parts::open(out, &(models.collect::<Result<Vec<_>>>()?, settings))
    }

    /// Removes the parts that were kept: the study's page is written.
    ///
    /// # Errors
    /// If they cannot be removed.
    pub fn finish(self) -> Result<()> {
        let kept_in = self.out.filter(|_| self.ranks.is_first());
        kept_in.map_or(Ok(()), |out| Parts::remove(&out))
    }
}
