//! The page of [`evolution`](crate::study::evolution): a strip for each map, a column an epoch.
//!
//! ```text
//! OUT/8-17.png        the strip of map 17 of layer 8
//! OUT/epoch-0005/     what the study keeps
//! ```

use std::io;
use std::path::{Path, PathBuf};

use super::figure::{Page, Picture, Section, Table, projection_contrast};
use crate::picture::Image;
use crate::study::evolution::{Evolution, STUDY, Snapshot, Strongest};
use crate::study::peaks::ProjectedPeak;

/// Smaller tiles are enlarged by a whole factor to at least this side.
const SMALLEST: usize = 64;

/// Writes the strips, `evolution.csv` and the page; returns the page's path.
///
/// # Errors
/// If the folder cannot be written.
pub fn write(out: &Path, found: &Evolution) -> io::Result<PathBuf> {
    let Evolution { facts, network, snapshots } = found;
    let title = format!("How the features of {network} came about");
    let mut page = Page::new(out, &STUDY, title, facts.clone())?;
    let epochs: Vec<String> = snapshots.iter().map(|s| s.epoch.to_string()).collect();
    page.figure.how = vec![
        format!(
            "A strip is one map, its columns are epochs {}: above, the strongest activation over all training \
             images, carried back to pixels by the deconvnet; below, the patch of the image that it was found \
             in; white where the map never fired. The image may change from column to column: then another \
             one excites the map more.",
            epochs.join(", ")
        ),
        projection_contrast(),
    ];
    let units = snapshots.last().map_or(&[][..], |last| &last.units);
    for same in units.chunk_by(|a, b| a.layer == b.layer) {
        let mut section = Section { title: same[0].name.clone(), ..Section::default() };
        let mut rows = Vec::new();
        for unit in same {
            section.pictures.push(strip(&page, snapshots, unit)?);
            let mut row = vec![unit.map.to_string()];
            row.extend(snapshots.iter().map(
                |snapshot| match snapshot.peak(unit.layer, unit.map) {
                    Some(peak) => format!("{:.3}", peak.value),
                    None => "dead".into(),
                },
            ));
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
        page.figure.sections.push(section);
    }
    write_numbers(&mut page, snapshots)?;
    page.finish()
}

/// Puts the tiles of a map side by side.
fn strip(page: &Page<'_>, snapshots: &[Snapshot], unit: &Strongest) -> io::Result<Picture> {
    let peaks: Vec<_> = snapshots.iter().map(|s| s.peak(unit.layer, unit.map)).collect();
    let side = peaks
        .iter()
        .flatten()
        .map(|peak| peak.photo.width.max(peak.photo.height))
        .max()
        .unwrap_or(SMALLEST);
    let side = side * SMALLEST.div_ceil(side);
    // A map that did not fire in an epoch leaves its place empty: white, not grey.
    let tile = |image: Option<&Image>| {
        image.map_or(Image::filled(side, side, 255), |image| image.squared().resize(side, side))
    };
    let projections = peaks.iter().map(|peak| tile(peak.map(|peak| &peak.projection)));
    let photos = peaks.iter().map(|peak| tile(peak.map(|peak| &peak.photo)));
    let tiles: Vec<Image> = projections.chain(photos).collect();
    let strip = Image::sheet(&tiles, snapshots.len(), 2, 255);
    let newest = peaks.iter().rev().find_map(|peak| *peak);
    let caption = Picture {
        title: format!("{} map {}", unit.name, unit.map),
        image: newest.map_or(String::new(), |peak| {
            format!("{} (the last column in which it fires)", peak.image)
        }),
        area: newest.map(|peak| peak.patch),
        wide: true,
        ..Picture::default()
    };
    page.png(format!("{}-{}.png", unit.layer, unit.map), &strip, caption)
}

fn write_numbers(page: &mut Page<'_>, snapshots: &[Snapshot]) -> io::Result<()> {
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
                let ProjectedPeak { value, image, class, y, x, patch, .. } = peak;
                row.extend([value.to_string(), image.clone(), class.clone()]);
                row.extend([y.to_string(), x.to_string()]);
                row.extend(patch.map(|edge| edge.to_string()));
            }
        }
        row
    };
    let rows = snapshots.iter().flat_map(|s| s.units.iter().map(move |unit| row(s, unit)));
    page.csv("evolution.csv", "every strongest activation", &head, rows)
}
