//! The paper's Figure 2: for every map, the nine images that excite it most, projected, beside the
//! patches that its unit sees.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::divided_search::search_by_ranks;
use super::peaks::{BATCH, Chosen, ProjectedPeak, Searched, must_be_images, pictures};
use super::{Session, Study, fingerprint};
use crate::backend::Backend;
use crate::data::classes::Classes;
use crate::data::images::Images;
use crate::model::{Model, Projector, Rule};
use crate::ranks::Ranks;
use crate::ranks::agreement::{must_agree, value};
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
/// Bytes of pictures kept until they are written, beside those of one other rank on their way to rank 0.
const PICTURES: usize = 256 << 20;
/// Between two times that the search is kept.
const KEEP: Duration = Duration::from_secs(30);

/// What to look at.
pub struct Settings {
    /// The maps.
    pub chosen: Vec<Chosen>,
    /// The rule of the backward pass.
    pub rule: Rule,
}

/// What [`run`] hands on: each layer before its maps.
pub enum Feature {
    /// The next layer, as yet without maps.
    Layer(FeatureLayer),
    /// The next map of that layer.
    Map(Map),
}

/// One layer's maps.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct FeatureLayer {
    /// The layer's name.
    pub name: String,
    /// How many maps the layer has, shown or not.
    pub maps: usize,
    /// Rows and columns of the input that a unit sees; unit i from `start + i * jump` on.
    #[serde(with = "zfnet_core::size")]
    pub field: [usize; 2],
    /// Distance of two neighbouring units' fields.
    pub jump: usize,
    /// First pixel that unit 0 sees.
    pub start: i64,
    /// The maps shown.
    pub rows: Vec<Map>,
}

/// One map and its strongest activations.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Map {
    /// Its number in the layer.
    pub map: usize,
    /// Up to nine, strongest first, one for an image; none if the map never fired.
    pub peaks: Vec<ProjectedPeak>,
}

/// Searches `images` for the strongest peaks of every chosen map and projects them. There are more pictures
/// than memory may hold, so they are handed on map by map; image paths are relative to `root`, and `classes` are the
/// images' own, which need not be the network's. How far the
/// search has come is kept now and then. Ranks divide search and projections; the results are those of one, and rank 0's
/// `each` is given them.
///
/// # Errors
/// If there are no images, images cannot be read, parts cannot be kept, a backend operation fails,
/// or `each` fails; of several ranks also if they were not given the same, one is lost or has failed, or a signal has
/// stopped them.
pub fn run<B: Backend>(
    session: &mut Session<'_, B>,
    model: &Model<B>,
    settings: &Settings,
    images: &Arc<Images>,
    classes: Option<&Classes>,
    root: &Path,
    each: impl FnMut(Feature) -> Result<()>,
) -> Result<()> {
    let ranks = session.ranks.clone();
    ranks.together(|| run_rank(session, &ranks, model, settings, images, classes, root, each))
}

fn run_rank<B: Backend>(
    session: &mut Session<'_, B>,
    ranks: &Ranks,
    model: &Model<B>,
    settings: &Settings,
    images: &Arc<Images>,
    classes: Option<&Classes>,
    root: &Path,
    mut each: impl FnMut(Feature) -> Result<()>,
) -> Result<()> {
    let Model { network, params, preprocess, .. } = model;
    let Settings { chosen, rule } = settings;
    let (backend, workers) = (session.backend, session.workers);
    if ranks.count() > 1 {
        let own = [
            ("device", value(&backend.id())),
            ("model", value(&fingerprint(backend, model)?)),
            ("set of images", value(&images.fingerprint())),
            ("choice of maps", value(chosen)),
            ("rule of the backward pass", value(&format!("{rule:?}"))),
        ];
        must_agree(ranks, own)?;
    }
    // The search does not depend on the rule.
    let parts = session.parts(&[model], &(images.fingerprint(), chosen))?;
    let mut projector = Projector::new(backend, network, params, preprocess, BATCH, BATCH)?;
    let mut searched = parts.get("search").unwrap_or_else(|| Searched::nothing(chosen));
    let mut kept = None::<Instant>;
    let progress = |searched: &Searched| {
        session.progress("features: search", searched.done, images.len(), "");
        // A set without any usable image is refused below, each time.
        let any = searched.best.iter().flatten().any(|peaks| !peaks.is_empty());
        if any && kept.is_none_or(|kept| kept.elapsed() > KEEP) {
            kept = Some(Instant::now());
            parts.put("search", searched)?;
        }
        Ok(())
    };
    let ended = search_by_ranks(
        &mut projector,
        model,
        images,
        chosen,
        PEAKS,
        workers,
        ranks,
        &mut searched,
        progress,
    );
    if ended.is_ok() && ranks.is_first() {
        must_be_images(images, root)?; // it knows of all that are bad
    }
    if matches!(ended, Ok(()) | Err(Error::Stopped { .. })) {
        parts.put("search", &searched)?;
    }
    ended?;
    let mut each = |feature| if ranks.is_first() { each(feature) } else { Ok(()) };
    for (Chosen { layer, maps }, best) in chosen.iter().zip(&searched.best) {
        let shown = &network.layers[*layer];
        let [vertical, horizontal] = shown.field;
        each(Feature::Layer(FeatureLayer {
            name: shown.name.clone(),
            maps: shown.output.c,
            field: [vertical.size, horizontal.size],
            jump: vertical.jump,
            start: vertical.start,
            rows: Vec::new(),
        }))?;
        // So many maps at a time that their pictures fit into PICTURES.
        let per_map = 2 * PEAKS * 3 * vertical.size * horizontal.size;
        let at_a_time = (PICTURES / per_map).max(1);
        let what = format!("features: {}", shown.name);
        let (total, mut done) = (best.iter().map(Vec::len).sum(), 0);
        session.progress(&what, 0, total, "");
        for (maps, best) in maps.chunks(at_a_time).zip(best.chunks(at_a_time)) {
            let mut say = |now| session.progress(&what, done + now, total, "");
            let rows = pictures(
                model,
                &mut projector,
                images,
                classes,
                root,
                *rule,
                *layer,
                best,
                ranks,
                &mut say,
            )?;
            done += best.iter().map(Vec::len).sum::<usize>();
            for (&map, peaks) in maps.iter().zip(rows) {
                each(Feature::Map(Map { map, peaks }))?;
            }
        }
    }
    Ok(())
}
