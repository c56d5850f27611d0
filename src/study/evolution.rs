//! The paper's Figure 4: how features come about. At some epochs, for chosen maps, the strongest
//! activation over the training images, projected.
//!
//! ```text
//! OUT/epoch-0005/snapshot.json          written last: what was found with the weights of epoch 5
//! OUT/epoch-0005/8-17.png               map 17 of layer 8, projected, cut to its receptive field
//! OUT/epoch-0005/8-17-patch.png         what was there in the image
//! OUT/index.html, 8-17.png, ...         the page: a strip a map, a column an epoch
//! ```
//!
//! Snapshots are made one by one, as training goes or from checkpoints; the page is made of those there
//! are.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::peaks::{BATCH, Chosen, Peak, Searched, must_be_images, pictures, search};
use super::{Study, fingerprint};
use crate::backend::Backend;
use crate::data::images::{Images, read_rgb};
use crate::disk::write_whole;
use crate::model::{Model, Network, Projector, Rule};
use crate::picture::Image;
use crate::report::csv;
use crate::report::figure::{Figure, PROJECTION_CONTRAST, Picture, Section, Table};
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
/// Smaller tiles are enlarged by a whole factor to at least this side.
const SMALLEST: usize = 64;

/// What is followed, and over which images.
pub struct Followed<'a> {
    /// The training images.
    pub images: Arc<Images>,
    /// Their root folder: paths are shown relative to it.
    pub root: &'a Path,
    /// The maps.
    pub chosen: Vec<Chosen>,
    /// Threads that decode.
    pub workers: usize,
}

/// What was found at the end of an epoch.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Snapshot {
    /// What it is a snapshot of: images and maps.
    settings: String,
    /// The weights' fingerprint.
    model: String,
    epoch: u32,
    step: u32,
    units: Vec<Strongest>,
}

/// The strongest activation of a map.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Strongest {
    /// Index of the layer.
    layer: usize,
    name: String,
    map: usize,
    /// None if the map never fired.
    peak: Option<Peak>,
}

impl Followed<'_> {
    /// What a snapshot must be of to stand beside another.
    fn settings(&self, network: &Network) -> String {
        let name =
            |chosen: &Chosen| format!("{} {:?}", network.layers[chosen.layer].name, chosen.maps);
        let maps: Vec<String> = self.chosen.iter().map(name).collect();
        format!("{}; {}", self.images.fingerprint(), maps.join("; "))
    }

    /// Makes the snapshot of an epoch in `out`, unless it is there. `progress` is called with how many
    /// images are done, and of how many.
    ///
    /// # Errors
    /// If images cannot be read, the folder cannot be written, or the backend refuses.
    pub fn snapshot<B: Backend>(
        &self,
        backend: &B,
        model: &Model<B>,
        out: &Path,
        epoch: u32,
        step: u32,
        mut progress: impl FnMut(usize, usize),
    ) -> Result<()> {
        let Model { network, params, preprocess, .. } = model;
        let (settings, fingerprint) = (self.settings(network), fingerprint(backend, model)?);
        let folder = folder(out, epoch);
        let is_there = |there: Snapshot| {
            (there.settings, there.model) == (settings.clone(), fingerprint.clone())
        };
        if read(&folder).is_ok_and(is_there) {
            return Ok(());
        }
        let mut projector = Projector::new(backend, network, params, preprocess, BATCH, BATCH)?;
        let mut searched = Searched::nothing(&self.chosen);
        let (images, chosen) = (&self.images, &self.chosen);
        search(
            &mut projector,
            model,
            images,
            chosen,
            1,
            self.workers,
            &mut searched,
            |searched| {
                progress(searched.done, images.len());
                Ok(())
            },
        )?;
        must_be_images(images, self.root)?;
        let io = |error| Error::io("write", &folder)(error);
        let _ = fs::remove_file(folder.join(SNAPSHOT)); // its pictures are about to change
        let mut units = Vec::new();
        for (Chosen { layer, maps }, best) in self.chosen.iter().zip(&searched.best) {
            let (rule, root) = (Rule::DECONVNET, self.root);
            let shown = pictures(model, &mut projector, images, root, rule, *layer, best, |_| ())?;
            for (&map, peaks) in maps.iter().zip(shown) {
                let peak = peaks.into_iter().next();
                let name = network.layers[*layer].name.clone();
                let unit = Strongest { layer: *layer, name, map, peak };
                if let Some(peak) = &unit.peak {
                    peak.projection.write_png(&folder.join(unit.file(""))).map_err(io)?;
                    peak.photo.write_png(&folder.join(unit.file("-patch"))).map_err(io)?;
                }
                units.push(unit);
            }
        }
        let snapshot = Snapshot { settings, model: fingerprint, epoch, step, units };
        let json = serde_json::to_vec(&snapshot).expect("plain data");
        write_whole(&folder.join(SNAPSHOT), &json).map_err(io)
    }
}

impl Strongest {
    fn file(&self, what: &str) -> String {
        format!("{}-{}{what}.png", self.layer, self.map)
    }
}

fn folder(out: &Path, epoch: u32) -> PathBuf {
    out.join(format!("epoch-{epoch:04}"))
}

fn read(folder: &Path) -> Result<Snapshot> {
    let path = folder.join(SNAPSHOT);
    let bytes = fs::read(&path).map_err(Error::io("read", &path))?;
    serde_json::from_slice(&bytes)
        .map_err(|error| Error::file(&path, format!("is no snapshot of ours: {error}")))
}

impl Followed<'_> {
    /// Writes the page of all snapshots of these maps and images in `out`, with `evolution.csv`; returns
    /// the page's path. `facts` say what it was made with.
    ///
    /// # Errors
    /// If there is no snapshot, or the folder cannot be read or written.
    pub fn write(
        &self,
        network: &Network,
        out: &Path,
        facts: Vec<(String, String)>,
    ) -> Result<PathBuf> {
        let settings = self.settings(network);
        let entries = fs::read_dir(out).map_err(Error::io("read", out))?;
        let mut snapshots: Vec<Snapshot> = entries
            .filter_map(|entry| read(&entry.ok()?.path()).ok())
            .filter(|snapshot| snapshot.settings == settings)
            .collect();
        snapshots.sort_by_key(|snapshot| snapshot.epoch);
        let Some(last) = snapshots.last() else {
            return Err(Error::file(out, "holds no snapshot of these maps and images"));
        };
        let io = |error| Error::io("write", out)(error);
        let mut figure = Figure {
            study: "evolution".into(),
            title: format!("How the features of {} came about", network.architecture.name),
            paper: "Figure 4".into(),
            facts,
            how: vec![
                "A strip is one map, a column one epoch: above, the strongest activation over all \
                 training images, carried back to pixels; below, the patch of the image that it was \
                 found in. The image may change from column to column: then another one excites the \
                 map more."
                    .into(),
            ],
            files: vec![("evolution.csv".into(), "every strongest activation".into())],
            ..Figure::default()
        };
        for same in last.units.chunk_by(|a, b| a.layer == b.layer) {
            let mut section = Section { title: same[0].name.clone(), ..Section::default() };
            let mut rows = Vec::new();
            for unit in same {
                section.pictures.push(strip(out, &snapshots, unit)?);
                let mut row = vec![unit.map.to_string()];
                row.extend(snapshots.iter().map(|snapshot| match found(snapshot, unit) {
                    Some(peak) => format!("{:.3}", peak.value),
                    None => "dead".into(),
                }));
                rows.push(row);
            }
            let mut head = vec!["map".to_owned()];
            head.extend(snapshots.iter().map(|snapshot| format!("epoch {}", snapshot.epoch)));
            section.tables.push(Table {
                caption: format!("Strongest activation of each map of {}", same[0].name),
                head,
                rows,
                notes: Vec::new(),
            });
            figure.sections.push(section);
        }
        write_whole(&out.join("evolution.csv"), numbers(&snapshots).as_bytes()).map_err(io)?;
        figure.write(out).map_err(io)
    }
}

/// The peak of a map in a snapshot of the same maps.
fn found<'a>(snapshot: &'a Snapshot, unit: &Strongest) -> Option<&'a Peak> {
    let is_it = |other: &&Strongest| (other.layer, other.map) == (unit.layer, unit.map);
    snapshot.units.iter().find(is_it)?.peak.as_ref()
}

/// Puts the tiles of a map side by side.
fn strip(out: &Path, snapshots: &[Snapshot], unit: &Strongest) -> Result<Picture> {
    let mut tiles = [Vec::new(), Vec::new()];
    for snapshot in snapshots {
        for (tiles, what) in tiles.iter_mut().zip(["", "-patch"]) {
            tiles.push(match found(snapshot, unit) {
                None => None,
                Some(_) => {
                    let rgb = read_rgb(&folder(out, snapshot.epoch).join(unit.file(what)))?;
                    Some(Image::new(rgb.width, rgb.height, rgb.pixels))
                }
            });
        }
    }
    let side = tiles.iter().flatten().flatten().map(|tile| tile.width).max().unwrap_or(SMALLEST);
    let side = side * SMALLEST.div_ceil(side);
    // A map that did not fire in an epoch leaves its place empty: white, not grey.
    let tiles: Vec<Image> = tiles
        .into_iter()
        .flatten()
        .map(|tile| tile.map_or(Image::filled(side, side, 255), |tile| tile.resize(side, side)))
        .collect();
    let strip = Image::sheet(&tiles, snapshots.len(), 2, 255);
    let file = unit.file("");
    strip.write_png(&out.join(&file)).map_err(Error::io("write", out))?;
    let epochs: Vec<String> = snapshots.iter().map(|s| s.epoch.to_string()).collect();
    let dead = snapshots.iter().any(|snapshot| found(snapshot, unit).is_none());
    let newest = snapshots.iter().rev().find_map(|snapshot| found(snapshot, unit));
    Ok(Picture {
        file,
        size: [strip.width, strip.height],
        title: format!("{} map {}", unit.name, unit.map),
        method: format!(
            "columns are epochs {}; the strongest activation of the training images by the deconvnet, \
             and its patch{}",
            epochs.join(", "),
            if dead { "; white where the map never fired" } else { "" }
        ),
        contrast: format!("of a projection, {PROJECTION_CONTRAST}; patches as in the file"),
        image: newest.map_or(String::new(), |peak| {
            format!("{} (the last column in which it fires)", peak.image)
        }),
        area: newest.map(|peak| peak.patch),
        wide: true,
    })
}

fn numbers(snapshots: &[Snapshot]) -> String {
    let head = ["epoch", "step", "layer", "map", "value", "image", "class", "y", "x"];
    let head = [&head[..], &["x0", "y0", "x1", "y1"]].concat();
    let row = |snapshot: &Snapshot, unit: &Strongest| {
        let mut row = vec![
            snapshot.epoch.to_string(),
            snapshot.step.to_string(),
            unit.name.clone(),
            unit.map.to_string(),
        ];
        match &unit.peak {
            None => row.extend(["0".to_owned()].into_iter().chain((0..8).map(|_| String::new()))),
            Some(peak) => {
                let Peak { value, image, class, y, x, patch, .. } = peak;
                row.extend([value.to_string(), image.clone(), class.clone()]);
                row.extend([y.to_string(), x.to_string()]);
                row.extend(patch.map(|edge| edge.to_string()));
            }
        }
        row
    };
    let rows = snapshots.iter().flat_map(|s| s.units.iter().map(move |unit| row(s, unit)));
    csv(&head, rows)
}
