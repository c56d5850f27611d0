//! The paper's Figure 4: how features come about. At some epochs, for chosen maps, the strongest
//! activation over the training images, projected.
//!
//! ```text
//! OUT/epoch-0005/snapshot.json          written last: what was found with the weights of epoch 5
//! OUT/epoch-0005/8-17.png               map 17 of layer 8, projected, cut to its receptive field
//! OUT/epoch-0005/8-17-patch.png         what was there in the image
//! ```
//!
//! Snapshots are made one by one, as training goes or from checkpoints, and stay; a result is all there are.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::peaks::{BATCH, Chosen, ProjectedPeak, Searched, must_be_images, pictures, search};
use super::{Facts, Session, Study, fingerprint};
use crate::backend::Backend;
use crate::data::images::{Images, read_rgb};
use crate::disk::write_atomic;
use crate::model::{Model, Network, Projector, Rule};
use crate::picture::Image;
use crate::ranks::Ranks;
use crate::{Error, Result};

/// See [`super::STUDIES`].
pub const STUDY: Study = Study {
    name: "evolution",
    shows: "the strongest activation of some maps, epoch by epoch",
    paper: "Figure 4",
    of_one_run: true,
};

/// The epochs of the paper's figure.
pub const EPOCHS: [u32; 8] = [1, 2, 5, 10, 20, 30, 40, 64];
/// Maps of each layer that are followed unless some are named.
pub const MAPS: usize = 6;

const SNAPSHOT: &str = "snapshot.json";

/// What is followed, and over which images.
pub struct TrackedMaps<'a> {
    /// The training images.
    pub images: Arc<Images>,
    /// Their root folder: paths are shown relative to it.
    pub root: &'a Path,
    /// The maps.
    pub chosen: Vec<Chosen>,
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Evolution {
    /// What it was made with.
    pub facts: Facts,
    /// The network's name.
    pub network: String,
    /// By epoch; all of the same maps.
    pub snapshots: Vec<Snapshot>,
}

/// What was found at the end of an epoch.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Snapshot {
    /// What it is a snapshot of: images and maps.
    settings: String,
    /// The weights' fingerprint.
    model: String,
    /// The epoch that had ended, counted from 1.
    pub epoch: u32,
    /// Steps until then.
    pub step: u32,
    /// Layer by layer, in the order of their maps.
    pub units: Vec<Strongest>,
}

/// The strongest activation of a map.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Strongest {
    /// Index of the layer.
    pub layer: usize,
    /// Its name.
    pub name: String,
    /// The map.
    pub map: usize,
    /// None if the map never fired.
    pub peak: Option<ProjectedPeak>,
}

/// Makes the snapshot of an epoch in the folder `out`, unless it is there, and gives all snapshots there of
/// these maps and images.
///
/// # Errors
/// If images cannot be read, the folder cannot be read or written, or a backend operation fails.
pub fn run<B: Backend>(
    session: &mut Session<'_, B>,
    model: &Model<B>,
    followed: &TrackedMaps<'_>,
    out: &Path,
    epoch: u32,
    step: u32,
) -> Result<Evolution> {
    followed.snapshot(session, model, out, epoch, step)?;
    Ok(Evolution {
        facts: session.facts.clone(),
        network: model.network.architecture.name.clone(),
        snapshots: followed.snapshots(&model.network, out)?,
    })
}

impl Snapshot {
    /// The peak of a map that was followed; none if it never fired.
    pub fn peak(&self, layer: usize, map: usize) -> Option<&ProjectedPeak> {
        let is_it = |unit: &&Strongest| (unit.layer, unit.map) == (layer, map);
        self.units.iter().find(is_it)?.peak.as_ref()
    }
}

impl TrackedMaps<'_> {
    /// What a snapshot must be of to stand beside another.
    fn settings(&self, network: &Network) -> String {
        let name =
            |chosen: &Chosen| format!("{} {:?}", network.layers[chosen.layer].name, chosen.maps);
        let maps: Vec<String> = self.chosen.iter().map(name).collect();
        format!("{}; {}", self.images.fingerprint(), maps.join("; "))
    }

    fn snapshot<B: Backend>(
        &self,
        session: &mut Session<'_, B>,
        model: &Model<B>,
        out: &Path,
        epoch: u32,
        step: u32,
    ) -> Result<()> {
        let Model { network, params, preprocess, .. } = model;
        let (backend, workers) = (session.backend, session.workers);
        let (settings, fingerprint) = (self.settings(network), fingerprint(backend, model)?);
        let folder = folder(out, epoch);
        let is_there = |there: Snapshot| {
            (there.settings, there.model) == (settings.clone(), fingerprint.clone())
        };
        if read(&folder).is_some_and(is_there) {
            return Ok(());
        }
        let mut projector = Projector::new(backend, network, params, preprocess, BATCH, BATCH)?;
        let TrackedMaps { images, root, chosen } = self;
        let what = format!("evolution: epoch {epoch}");
        let mut searched = Searched::nothing(chosen);
        search(&mut projector, model, images, chosen, 1, workers, &mut searched, |searched| {
            session.progress(&what, searched.done, images.len(), "");
            Ok(())
        })?;
        must_be_images(images, root)?;
        let io = |error| Error::io("write", &folder)(error);
        let _ = fs::remove_file(folder.join(SNAPSHOT)); // its pictures are about to change
        let mut units = Vec::new();
        for (Chosen { layer, maps }, best) in chosen.iter().zip(&searched.best) {
            let rule = Rule::DECONVNET;
            let shown = pictures(
                model,
                &mut projector,
                images,
                Some(&model.classes),
                root,
                rule,
                *layer,
                best,
                &Ranks::alone(),
                |_| (),
            )?;
            for (&map, peaks) in maps.iter().zip(shown) {
                let peak = peaks.into_iter().next();
                let name = network.layers[*layer].name.clone();
                let unit = Strongest { layer: *layer, name, map, peak };
                if let Some(peak) = &unit.peak {
                    let [projection, photo] = unit.files(&folder);
                    peak.projection.write_png(&projection).map_err(io)?;
                    peak.photo.write_png(&photo).map_err(io)?;
                }
                units.push(unit);
            }
        }
        let snapshot = Snapshot { settings, model: fingerprint, epoch, step, units };
        let json = serde_json::to_vec(&snapshot).expect("plain data");
        write_atomic(&folder.join(SNAPSHOT), &json).map_err(io)
    }

    /// All snapshots in `out` of these maps and images, with their pictures, by epoch.
    fn snapshots(&self, network: &Network, out: &Path) -> Result<Vec<Snapshot>> {
        let settings = self.settings(network);
        let entries = fs::read_dir(out).map_err(Error::io("read", out))?;
        let mut snapshots: Vec<Snapshot> = entries
            .filter_map(|entry| read(&entry.ok()?.path()))
            .filter(|snapshot| snapshot.settings == settings)
            .collect();
        snapshots.sort_by_key(|snapshot| snapshot.epoch);
        for snapshot in &mut snapshots {
            let folder = folder(out, snapshot.epoch);
            for unit in &mut snapshot.units {
                let [projection, photo] = unit.files(&folder);
                if let Some(peak) = &mut unit.peak {
                    peak.projection = picture(&projection)?;
                    peak.photo = picture(&photo)?;
                }
            }
        }
        Ok(snapshots)
    }
}

impl Strongest {
    /// Its projection, and what was there in the image.
    fn files(&self, folder: &Path) -> [PathBuf; 2] {
        ["", "-patch"].map(|what| folder.join(format!("{}-{}{what}.png", self.layer, self.map)))
    }
}

fn folder(out: &Path, epoch: u32) -> PathBuf {
    out.join(format!("epoch-{epoch:04}"))
}

/// The snapshot in a folder, as yet without its pictures; `None` if there is none of ours.
fn read(folder: &Path) -> Option<Snapshot> {
    serde_json::from_slice(&fs::read(folder.join(SNAPSHOT)).ok()?).ok()
}

fn picture(path: &Path) -> Result<Image> {
    let rgb = read_rgb(path)?;
    Ok(Image::new(rgb.width, rgb.height, rgb.pixels))
}
