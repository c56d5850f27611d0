//! The strongest activations of all maps over a data set, searched between other work.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use xxhash_rust::xxh3::xxh3_64;

use super::engine::{Progress, layers_shown};
use crate::Result;
use crate::backend::Backend;
use crate::data::Split;
use crate::data::images::Images;
use crate::disk::write_atomic;
use crate::model::{Model, Projector};
use crate::study::fingerprint;
use crate::study::peaks::{Activation, Chosen, Maps, Search, Searched};
use crate::study::pixels::field_box;

/// Peaks of a map.
const PEAKS: usize = 9;
/// Images at a time: between two batches the page is answered.
const AT_ONCE: usize = 4;
/// Between two times that what has been found is kept.
const KEEP: Duration = Duration::from_secs(30);

/// The strongest activations of a map.
#[derive(Default, Serialize)]
pub(super) struct Top {
    #[serde(flatten)]
    pub progress: Progress,
    peaks: Vec<Peak>,
}

#[derive(Serialize)]
struct Peak {
    id: String,
    y: u32,
    x: u32,
    value: f32,
    field: [i64; 4],
}

/// The search with one network over one split.
pub(super) struct Strongest<'a, B: Backend> {
    model: Arc<Model<B>>,
    split: Split,
    images: Arc<Images>,
    chosen: Vec<Chosen>,
    found: Searched,
    /// Where it is kept, and when it last was.
    kept: Option<(PathBuf, Instant)>,
    /// While it is searched.
    at_work: Option<(Projector<'a, B>, Search)>,
}

impl<'a, B: Backend> Strongest<'a, B> {
    /// With what an earlier search has kept in a folder.
    ///
    /// # Errors
    /// If a backend operation fails.
    pub fn new(
        backend: &'a B,
        model: Arc<Model<B>>,
        (split, images): (Split, Arc<Images>),
        folder: Option<&Path>,
    ) -> Result<Self> {
        let all = |layer| Maps::First(usize::MAX).of(&model.network, layer);
        let chosen: Vec<Chosen> = layers_shown(&model.network).map(all).collect();
        let file = folder.map(|folder| kept_file(backend, &model, &images, folder)).transpose()?;
        let read = |file: &PathBuf| serde_json::from_slice(&fs::read(file).ok()?).ok();
        let known = file.as_ref().and_then(read).filter(|found: &Searched| {
            let maps = found.best.iter().map(Vec::len);
            maps.eq(chosen.iter().map(|chosen| chosen.maps.len())) && found.done <= images.len()
        });
        let found = known.unwrap_or_else(|| Searched::nothing(&chosen));
        let kept = file.map(|file| (file, Instant::now()));
        Ok(Strongest { model, split, images, chosen, found, kept, at_work: None })
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        Progress { done: self.found.done, total: self.images.len(), failed: None }
    }

    /// Goes on with a batch; whether there is more to do.
    ///
    /// # Errors
    /// If images cannot be read, or a backend operation fails.
    pub fn go_on(&mut self, backend: &'a B) -> Result<bool> {
        if self.found.done >= self.images.len() {
            return Ok(false);
        }
        let (projector, search) = match &mut self.at_work {
            Some(at_work) => at_work,
            none => {
                let projector = Projector::shared(backend, self.model.clone(), AT_ONCE, 1)?;
                none.insert((projector, Search::new(&self.images, self.found.done, 1, AT_ONCE)))
            }
        };
        let Strongest { model, chosen, found, .. } = self;
        let is_more = search.next(projector, model, chosen, PEAKS, found);
        if !matches!(is_more, Ok(true)) || self.found.done >= self.images.len() {
            self.at_work = None;
            self.keep();
        } else if self.kept.as_ref().is_some_and(|(_, kept)| kept.elapsed() > KEEP) {
            self.keep();
        }
        is_more
    }

    /// Keeps what has been found, if it can be kept.
    fn keep(&mut self) {
        let Some((file, when)) = &mut self.kept else { return };
        *when = Instant::now();
        let json = serde_json::to_vec(&self.found).expect("plain data");
        if let Err(error) = write_atomic(file, &json) {
            tracing::warn!("{}: what the search has found is not kept: {error}", file.display());
        }
    }

    /// What it has found of a map.
    pub fn top(&self, layer: usize, map: usize) -> Top {
        let place = self.chosen.iter().position(|chosen| chosen.layer == layer);
        let found = place.and_then(|place| self.found.best[place].get(map));
        let of = &self.model.network.layers[layer];
        let peak = |Activation { image, unit }: &Activation| Peak {
            id: format!("{}/{image}", self.split.name()),
            y: unit.y,
            x: unit.x,
            value: unit.value,
            field: field_box(of, unit.y as usize, unit.x as usize),
        };
        let peaks = found.map(|found| found.iter().map(peak).collect()).unwrap_or_default();
        Top { progress: self.progress(), peaks }
    }
}

/// The file of what a search finds, one for all that it depends on.
fn kept_file<B: Backend>(
    backend: &B,
    model: &Model<B>,
    images: &Images,
    folder: &Path,
) -> Result<PathBuf> {
    let version = env!("CARGO_PKG_VERSION");
    let depends_on = [version, &fingerprint(backend, model)?, &images.fingerprint()].concat();
    Ok(folder.join(format!("search-{:016x}.json", xxh3_64(depends_on.as_bytes()))))
}
