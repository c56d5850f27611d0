//! The paper's Figure 2: for every map, the nine images that excite it most, projected, beside the
//! patches that its unit sees.
//!
//! One pass over the images finds the peaks (value and place from the device; one peak an image
//! and map). Then, layer by layer, the images that hold peaks are looked at once more and each
//! peak is projected from there.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::{centre_crop, field_box, original_box, projection_image};
use crate::backend::{Backend, SeedUnit};
use crate::data::images::{Images, Scratch};
use crate::data::loader::{Bad, Loader, Plan};
use crate::model::{Model, Projector, Rule, Seed};
use crate::report::top9::{Layer, Map, Peak, Writer};
use crate::train::evaluate::TestCrops;
use crate::{Error, Result};

/// Peaks of a map.
const PEAKS: usize = 9;
/// Images, and projections, at a time.
const BATCH: usize = 32;
/// Bytes of pictures kept until they are written.
const PICTURES: usize = 256 << 20;

/// What to look at.
pub struct Request<'a> {
    /// The images to be searched.
    pub images: Arc<Images>,
    /// Their root folder: paths are shown relative to it.
    pub root: &'a Path,
    /// Indices of the layers.
    pub layers: Vec<usize>,
    /// How many maps of each layer, from the first on.
    pub maps: usize,
    /// The rule of the walk down.
    pub rule: Rule,
    /// Threads that decode.
    pub workers: usize,
}

/// A peak and the image it was found in.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Found {
    image: u32,
    unit: SeedUnit,
}

/// Strongest first, the earlier image of equals, at most [`PEAKS`].
fn insert(best: &mut Vec<Found>, found: Found) {
    let stronger = |other: &Found| {
        (other.unit.value, std::cmp::Reverse(other.image))
            > (found.unit.value, std::cmp::Reverse(found.image))
    };
    let place = best.partition_point(stronger);
    if place < PEAKS {
        best.insert(place, found);
        best.truncate(PEAKS);
    }
}

/// Finds and projects the strongest peaks of every map of the layers asked for, and hands them to
/// `writer`. `progress` is called with what is being done, how much is done, of how much.
///
/// # Errors
/// If images or pages cannot be read or written, or the backend refuses.
pub fn top9<B: Backend>(
    backend: &B,
    model: &Model<B>,
    request: &Request<'_>,
    writer: &mut Writer,
    mut progress: impl FnMut(&str, usize, usize),
) -> Result<()> {
    let Model { network, params, preprocess, .. } = model;
    let mut projector = Projector::new(backend, network, params, preprocess, BATCH, BATCH)?;
    let peaks = find(&mut projector, model, request, &mut progress)?;
    for (&layer, maps) in request.layers.iter().zip(&peaks) {
        let shown = &network.layers[layer];
        let [vertical, _] = shown.field;
        let io = |error| Error::io("write", "the page")(error);
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
        let (total, mut done) = (maps.iter().map(Vec::len).sum(), 0);
        progress(&shown.name, 0, total);
        for (part, maps) in maps.chunks((PICTURES / per_map).max(1)).enumerate() {
            let first = part * (PICTURES / per_map).max(1);
            let pictures = project_maps(model, &mut projector, request, layer, maps, |more| {
                done += more;
                progress(&shown.name, done, total);
            })?;
            for (map, peaks) in pictures.into_iter().enumerate() {
                writer.map(Map { map: first + map, peaks }).map_err(io)?;
            }
        }
    }
    Ok(())
}

/// Projects the peaks of some maps of a layer.
fn project_maps<B: Backend>(
    model: &Model<B>,
    projector: &mut Projector<'_, B>,
    request: &Request<'_>,
    layer: usize,
    maps: &[Vec<Found>],
    mut progress: impl FnMut(usize),
) -> Result<Vec<Vec<Peak>>> {
    let Model { network, preprocess, .. } = model;
    let shown = &network.layers[layer];
    // All peaks by image, so that each image is looked at once.
    let mut by_image: BTreeMap<u32, Vec<(usize, usize)>> = BTreeMap::new();
    for (map, found) in maps.iter().enumerate() {
        for (place, found) in found.iter().enumerate() {
            by_image.entry(found.image).or_default().push((map, place));
        }
    }
    let mut pictures: Vec<Vec<Peak>> =
        maps.iter().map(|found| vec![Peak::default(); found.len()]).collect();
    let images: Vec<u32> = by_image.keys().copied().collect();
    let bytes = request.images.bytes_per_image();
    let mut scratch = Scratch::default();
    for images in images.chunks(BATCH) {
        let mut pixels = vec![0; images.len() * bytes];
        let mut crops = Vec::new();
        for (i, (image, square)) in images.iter().zip(pixels.chunks_exact_mut(bytes)).enumerate() {
            request.images.read_good(*image as usize, &mut scratch, square)?;
            crops.extend(TestCrops::One.of(preprocess, i as u32));
        }
        projector.look(&pixels, &crops)?;
        let wanted: Vec<(usize, usize, usize)> = images
            .iter()
            .enumerate()
            .flat_map(|(i, image)| by_image[image].iter().map(move |&(m, p)| (i, m, p)))
            .collect();
        let seeds: Vec<Seed> = wanted
            .iter()
            .map(|&(i, map, place)| Seed { image: i as u32, unit: maps[map][place].unit })
            .collect();
        let mut sizes = BTreeMap::new();
        projector.project(layer, &seeds, request.rule, |index, projection| {
            let (i, map, place) = wanted[index];
            let Found { image, unit } = maps[map][place];
            let path = request.images.path(image as usize);
            let (width, height) = match sizes.get(&image) {
                Some(size) => *size,
                None => {
                    let size = request.images.size(image as usize, &mut scratch)?;
                    *sizes.entry(image).or_insert(size)
                }
            };
            let (y, x) = (unit.y as usize, unit.x as usize);
            let field = field_box(shown, y, x);
            let class = request.images.class(image as usize) as usize;
            let square = &pixels[i * bytes..(i + 1) * bytes];
            pictures[map][place] = Peak {
                image: path.strip_prefix(request.root).unwrap_or(&path).display().to_string(),
                class: model.classes[class].clone(),
                y,
                x,
                value: unit.value,
                field_box: field,
                patch: original_box(preprocess, width, height, field),
                projection: projection_image(preprocess, projection).crop(field),
                photo: centre_crop(preprocess, square).crop(field),
            };
            Ok(())
        })?;
        progress(seeds.len());
    }
    Ok(pictures)
}

/// One streaming pass: for each layer and map, the strongest peaks over all images.
fn find<B: Backend>(
    projector: &mut Projector<'_, B>,
    model: &Model<B>,
    request: &Request<'_>,
    progress: &mut impl FnMut(&str, usize, usize),
) -> Result<Vec<Vec<Vec<Found>>>> {
    let total = request.images.len();
    let mut best: Vec<Vec<Vec<Found>>> = request
        .layers
        .iter()
        .map(|&layer| {
            let maps = model.network.layers[layer].output.c.min(request.maps);
            vec![Vec::with_capacity(PEAKS + 1); maps]
        })
        .collect();
    let order = (0..total as u32).collect();
    let plan = Plan::new(order, BATCH, Bad::Skip);
    let mut loader = Loader::new(request.images.clone(), plan, request.workers);
    let mut done = 0;
    while let Some(batch) = loader.next_batch()? {
        let crops: Vec<_> = (0..batch.labels.len() as u32)
            .flat_map(|i| TestCrops::One.of(&model.preprocess, i))
            .collect();
        if crops.is_empty() {
            loader.recycle(batch); // all of its files are bad
            continue;
        }
        projector.look(batch.pixels(), &crops)?;
        for (&layer, best) in request.layers.iter().zip(&mut best) {
            let output = model.network.layers[layer].output;
            let peaks = projector.peaks(layer)?;
            for (peaks, &image) in peaks.chunks_exact(output.c).zip(&batch.indices) {
                for ((map, peak), best) in (0u32..).zip(peaks).zip(best.iter_mut()) {
                    if peak.value > 0.0 {
                        let width = output.w as u32;
                        let (y, x) = (peak.position / width, peak.position % width);
                        let unit = SeedUnit { map, y, x, value: peak.value };
                        insert(best, Found { image, unit });
                    }
                }
            }
        }
        done += batch.labels.len();
        progress("search", done, total);
        loader.recycle(batch);
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nine_strongest_are_kept_in_order() {
        let mut best = Vec::new();
        let values = [3.0, 1.0, 3.0, 9.0, 2.0, 5.0, 4.0, 8.0, 7.0, 6.0, 0.5, 3.0];
        for (image, value) in (0..).zip(values) {
            insert(&mut best, Found { image, unit: SeedUnit { map: 0, y: 0, x: 0, value } });
        }
        let found: Vec<_> = best.iter().map(|f| (f.unit.value, f.image)).collect();
        let expected = [(9.0, 3), (8.0, 7), (7.0, 8), (6.0, 9), (5.0, 5), (4.0, 6)];
        assert_eq!(found[..6], expected);
        assert_eq!(found[6..], [(3.0, 0), (3.0, 2), (3.0, 11)]);
    }
}
