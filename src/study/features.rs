//! The paper's Figure 2: for every map, the nine images that excite it most, projected, beside the
//! patches that its unit sees.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::parts::Parts;
use super::peaks::{BATCH, Chosen, Searched, must_be_images, pictures, search};
use super::{Study, fingerprint};
use crate::backend::Backend;
use crate::data::images::Images;
use crate::model::{Model, Projector, Rule};
use crate::report::top9::{Layer, Map, Writer};
use crate::{Error, Result};

/// See [`super::STUDIES`].
pub const STUDY: Study = Study {
    name: "features",
    shows: "the nine strongest activations of every map, projected",
    paper: "Figure 2",
    of_one_run: true,
};

/// Peaks of a map.
const PEAKS: usize = 9;
/// Bytes of pictures kept until they are written.
const PICTURES: usize = 256 << 20;
/// Between two times that the search is kept.
const KEEP: Duration = Duration::from_secs(30);

/// What to look at.
pub struct Request<'a> {
    /// The images to be searched.
    pub images: Arc<Images>,
    /// Their root folder: paths are shown relative to it.
    pub root: &'a Path,
    /// The maps.
    pub chosen: Vec<Chosen>,
    /// The rule of the walk down.
    pub rule: Rule,
    /// Threads that decode.
    pub workers: usize,
}

/// Finds and projects the strongest peaks of every chosen map, and hands them to `writer`. What the
/// search has found is kept in `out` now and then, so that the same search goes on there. `progress` is
/// called with what is being done, how much is done, of how much.
///
/// # Errors
/// If there are no images, images or pages cannot be read or written, or the backend refuses.
pub fn features<B: Backend>(
    backend: &B,
    model: &Model<B>,
    request: &Request<'_>,
    out: &Path,
    writer: &mut Writer,
    mut progress: impl FnMut(&str, usize, usize),
) -> Result<()> {
    let Model { network, params, preprocess, .. } = model;
    let Request { images, root, chosen, rule, workers } = request;
    let settings = (fingerprint(backend, model)?, images.fingerprint(), chosen);
    let parts = Parts::open(out, &settings)?;
    let mut projector = Projector::new(backend, network, params, preprocess, BATCH, BATCH)?;
    let mut searched = parts.get("search").unwrap_or_else(|| Searched::nothing(chosen));
    let mut kept = Instant::now();
    search(&mut projector, model, images, chosen, PEAKS, *workers, &mut searched, |searched| {
        progress("search", searched.done, images.len());
        if kept.elapsed() > KEEP || searched.done == images.len() {
            kept = Instant::now();
            parts.put("search", searched)?;
        }
        Ok(())
    })?;
    must_be_images(images, root)?;
    for (Chosen { layer, maps }, best) in chosen.iter().zip(&searched.best) {
        let shown = &network.layers[*layer];
        let [vertical, _] = shown.field;
        let io = |error| Error::io("write", out)(error);
        writer
            .layer(Layer {
                name: shown.name.clone(),
                maps: shown.output.c,
                field: vertical.size,
                jump: vertical.jump,
                start: vertical.start,
                rows: Vec::new(),
            })
            .map_err(io)?;
        // So many maps at a time that their pictures fit into PICTURES.
        let per_map = 2 * PEAKS * 3 * vertical.size * vertical.size;
        let at_a_time = (PICTURES / per_map).max(1);
        let (total, mut done) = (best.iter().map(Vec::len).sum(), 0);
        progress(&shown.name, 0, total);
        for (maps, best) in maps.chunks(at_a_time).zip(best.chunks(at_a_time)) {
            let rows = pictures(model, &mut projector, images, root, *rule, *layer, best, |now| {
                progress(&shown.name, done + now, total);
            })?;
            done += best.iter().map(Vec::len).sum::<usize>();
            for (&map, peaks) in maps.iter().zip(rows) {
                writer.map(Map { map, peaks }).map_err(io)?;
            }
        }
    }
    Parts::remove(out)
}
