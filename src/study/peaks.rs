//! The strongest activations of chosen maps over many images, and their pictures.
//!
//! One pass over the images finds the peaks (value and place from the device; one peak an image and
//! map). Then the images that hold peaks are looked at once more and each peak is projected from there.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use bytemuck::{bytes_of, pod_read_unaligned};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use super::pixels::{centre_crop, field_box, original_box, projection_image, seen_box};
use crate::backend::{Backend, SeedUnit};
use crate::data::classes::Classes;
use crate::data::images::{Images, Scratch};
use crate::data::loader::{Bad, BatchPlan, Loader};
use crate::model::{Model, Network, Projector, Rule, Seed};
use crate::picture::Image;
use crate::ranks::Ranks;
use crate::train::evaluate::TestCrops;
use crate::{Error, Result};

/// Images, and projections, at a time.
pub const BATCH: usize = 32;

/// Maps of a layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Chosen {
    /// Index of the layer.
    pub layer: usize,
    /// In rising order.
    pub maps: Vec<usize>,
}

/// Which maps of a layer.
#[derive(Clone, Copy, Debug)]
pub enum Maps {
    /// So many, from the first on.
    First(usize),
    /// So many, drawn with this seed.
    Random(usize, u64),
}

impl Maps {
    /// The maps of a layer.
    pub fn of(self, network: &Network, layer: usize) -> Chosen {
        let count = network.layers[layer].output.c;
        let maps = match self {
            Maps::First(wanted) => (0..count.min(wanted)).collect(),
            Maps::Random(wanted, seed) => {
                // A stream for each layer, so that one layer's choice does not depend on the others.
                let mut random = ChaCha8Rng::seed_from_u64(seed);
                random.set_stream(layer as u64);
                let mut maps: Vec<usize> = (0..count).collect();
                for i in 0..count.min(wanted) {
                    let left = (count - i) as u64;
                    maps.swap(i, i + (random.next_u64() % left) as usize);
                }
                maps.truncate(wanted);
                maps.sort_unstable();
                maps
            }
        };
        Chosen { layer, maps }
    }
}

/// The spatial convolutions of a network, or with `pooled` its poolings.
///
/// # Errors
/// If it has none.
pub fn spatial_layers(network: &Network, pooled: bool) -> Result<Vec<usize>> {
    let pooling = |&i: &usize| network.layers[i].pooling().is_some();
    let layers = match pooled {
        true => (0..network.layers.len()).filter(pooling).collect(),
        false => network.spatial(),
    };
    if layers.is_empty() {
        let what = if pooled { "pooling" } else { "spatial convolution" };
        return Err(Error::Network(format!(
            "{} has no {what}: name layers",
            network.architecture.name
        )));
    }
    Ok(layers)
}

/// A peak and the image it was found in.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Activation {
    /// Index of the image.
    pub image: u32,
    /// Map, row, column, activation.
    pub unit: SeedUnit,
}

/// Strongest first, the earlier image of equals, at most `count`.
pub(super) fn insert(best: &mut Vec<Activation>, found: Activation, count: usize) {
    let stronger = |other: &Activation| {
        (other.unit.value, std::cmp::Reverse(other.image))
            > (found.unit.value, std::cmp::Reverse(found.image))
    };
    let place = best.partition_point(stronger);
    if place < count {
        best.insert(place, found);
        best.truncate(count);
    }
}

/// How far a search has come.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Searched {
    /// Images that were looked at, from the first on.
    pub done: usize,
    /// For each chosen layer and map the strongest peaks so far, strongest first.
    pub best: Vec<Vec<Vec<Activation>>>,
}

impl Searched {
    /// Nothing yet.
    pub fn nothing(chosen: &[Chosen]) -> Self {
        let best = chosen.iter().map(|chosen| vec![Vec::new(); chosen.maps.len()]).collect();
        Searched { done: 0, best }
    }
}

/// One streaming pass over images, batch by batch.
pub struct Search {
    loader: Loader,
    images: usize,
    size: usize,
}

impl Search {
    /// Over the images from the one numbered `first` on, read by so many threads, `size` at a time.
    pub fn new(images: &Arc<Images>, first: usize, workers: usize, size: usize) -> Self {
        let order = (first as u32..images.len() as u32).collect();
        Search { images: images.len(), ..Self::over(images, order, workers, size) }
    }

    /// Over these of the images, in this order.
    pub fn over(images: &Arc<Images>, order: Vec<u32>, workers: usize, size: usize) -> Self {
        let count = order.len();
        let plan = BatchPlan::new(order, size, Bad::Skip);
        Search { loader: Loader::new(images.clone(), plan, workers), images: count, size }
    }

    /// Looks at a batch: for each chosen layer and map, the `count` strongest peaks over all images so far.
    /// The projector must have memory for the batch. Returns whether there was one more.
    ///
    /// # Errors
    /// If images cannot be read, or a backend operation fails.
    pub fn next<B: Backend>(
        &mut self,
        projector: &mut Projector<'_, B>,
        model: &Model<B>,
        chosen: &[Chosen],
        count: usize,
        searched: &mut Searched,
    ) -> Result<bool> {
        let Some(batch) = self.loader.next_batch()? else { return Ok(false) };
        let crops: Vec<_> = (0..batch.labels.len() as u32)
            .flat_map(|i| TestCrops::One.of(&model.preprocess, i))
            .collect();
        // If there are none, all files of the batch are bad.
        if !crops.is_empty() {
            projector.look(batch.pixels(), &crops)?;
            for (Chosen { layer, maps }, best) in chosen.iter().zip(&mut searched.best) {
                let output = model.network.layers[*layer].output;
                let peaks = projector.peaks(*layer)?;
                for (peaks, &image) in peaks.chunks_exact(output.c).zip(&batch.indices) {
                    for (&map, best) in maps.iter().zip(best.iter_mut()) {
                        let peak = peaks[map];
                        if peak.value > 0.0 {
                            let unit = peak.unit(map, output.w);
                            insert(best, Activation { image, unit }, count);
                        }
                    }
                }
            }
        }
        searched.done = (searched.done + self.size).min(self.images);
        self.loader.recycle(batch);
        Ok(true)
    }
}

/// A [`Search`] to its end: `searched` says how far it is, and `progress` is told of it after each batch.
///
/// # Errors
/// If images cannot be read, a backend operation fails, or `progress` fails.
pub fn search<B: Backend>(
    projector: &mut Projector<'_, B>,
    model: &Model<B>,
    images: &Arc<Images>,
    chosen: &[Chosen],
    count: usize,
    workers: usize,
    searched: &mut Searched,
    mut progress: impl FnMut(&Searched) -> Result<()>,
) -> Result<()> {
    let mut search = Search::new(images, searched.done, workers, BATCH);
    while search.next(projector, model, chosen, count, searched)? {
        progress(searched)?;
    }
    Ok(())
}

/// Refuses a set of images, in the folder `root`, none of which is one: after a search, which has tried all.
///
/// # Errors
/// If there are none.
pub fn must_be_images(images: &Images, root: &Path) -> Result<()> {
    if images.bad().len() < images.len() {
        return Ok(());
    }
    let reason = format!("none of the {} files of this split is a usable image", images.len());
    Err(Error::file(root, reason))
}

/// A peak of [`project`], with its projection.
pub struct Projected<'a> {
    /// Which of the maps given.
    pub map: usize,
    /// Which of its peaks.
    pub place: usize,
    /// The peak.
    pub found: Activation,
    /// The preprocessed image it was found in.
    pub square: &'a [u8],
    /// `[rows, columns, channels]`, as the network's channels are.
    pub projection: &'a [f32],
}

/// Peaks that are projected together, of images that are looked at together.
struct Pass {
    images: Vec<u32>,
    /// For each peak which of the images, which map, and which of its peaks.
    peaks: Vec<(usize, usize, usize)>,
}

/// All passes for peaks of some maps: each image is looked at once, for some passes that follow one another. They are the
/// same for any ranks, since on a GPU what is computed together may decide how sums are rounded.
fn passes(maps: &[Vec<Activation>]) -> Vec<Pass> {
    let mut by_image: BTreeMap<u32, Vec<(usize, usize)>> = BTreeMap::new();
    for (map, found) in maps.iter().enumerate() {
        for (place, found) in found.iter().enumerate() {
            by_image.entry(found.image).or_default().push((map, place));
        }
    }
    let holding: Vec<u32> = by_image.keys().copied().collect();
    let of_images = |images: &[u32]| {
        let peaks = images.iter().enumerate().flat_map(|(i, image)| {
            by_image[image].iter().map(move |&(map, place)| (i, map, place))
        });
        let peaks: Vec<_> = peaks.collect();
        let pass = |peaks: &[_]| Pass { images: images.to_vec(), peaks: peaks.to_vec() };
        peaks.chunks(BATCH).map(pass).collect::<Vec<_>>()
    };
    holding.chunks(BATCH).flat_map(of_images).collect()
}

/// A rank's share of so many passes: neighbours, so that few images are looked at by two.
fn share(passes: usize, rank: usize, ranks: usize) -> Range<usize> {
    passes * rank / ranks..passes * (rank + 1) / ranks
}

/// Projects peaks of maps of a layer, looking at each image once, and hands each to `each`, in no order
/// of theirs.
///
/// # Errors
/// If images cannot be read, a backend operation fails, or `each` fails.
pub fn project<B: Backend>(
    model: &Model<B>,
    projector: &mut Projector<'_, B>,
    images: &Images,
    rule: Rule,
    layer: usize,
    maps: &[Vec<Activation>],
    each: impl FnMut(Projected<'_>) -> Result<()>,
) -> Result<()> {
    project_passes(model, projector, images, rule, layer, maps, &passes(maps), each)
}

fn project_passes<B: Backend>(
    model: &Model<B>,
    projector: &mut Projector<'_, B>,
    images: &Images,
    rule: Rule,
    layer: usize,
    maps: &[Vec<Activation>],
    passes: &[Pass],
    mut each: impl FnMut(Projected<'_>) -> Result<()>,
) -> Result<()> {
    let bytes = images.bytes_per_image();
    let (mut scratch, mut pixels) = (Scratch::default(), Vec::new());
    let mut looked_at: &[u32] = &[];
    for Pass { images: some, peaks } in passes {
        if looked_at != some {
            pixels.resize(some.len() * bytes, 0);
            let mut crops = Vec::new();
            for (i, (image, square)) in some.iter().zip(pixels.chunks_exact_mut(bytes)).enumerate()
            {
                images.read_good(*image as usize, &mut scratch, square)?;
                crops.extend(TestCrops::One.of(&model.preprocess, i as u32));
            }
            projector.look(&pixels, &crops)?;
            looked_at = some;
        }
        let seed = |&(i, map, place): &(usize, usize, usize)| Seed {
            image: i as u32,
            unit: maps[map][place].unit,
        };
        let seeds: Vec<Seed> = peaks.iter().map(seed).collect();
        projector.project(layer, &seeds, rule, |index, projection| {
            let (i, map, place) = peaks[index];
            let square = &pixels[i * bytes..(i + 1) * bytes];
            each(Projected { map, place, found: maps[map][place], square, projection })
        })?;
    }
    Ok(())
}

/// A peak with its pictures.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ProjectedPeak {
    /// Path relative to the data folder.
    pub image: String,
    /// Class of the image.
    pub class: String,
    /// Row of the unit.
    pub y: usize,
    /// Column of the unit.
    pub x: usize,
    /// The activation.
    pub value: f32,
    /// x0, y0, x1, y1 (x1, y1 excluded) in pixels of the network's input; may exceed the image.
    pub field_box: [i64; 4],
    /// What of it is in the image and read by the layers below, in pixels of the original file.
    pub patch: [f64; 4],
    /// Both cut to the field's box, of one size within a layer.
    #[serde(skip)]
    pub projection: Image,
    /// What the unit saw.
    #[serde(skip)]
    pub photo: Image,
}

/// Projects peaks of some maps of a layer, cut to their receptive fields, beside the patches that were
/// there; image paths are relative to `root`. Ranks divide the work, and rank 0 gets all of it, the others nothing of use.
/// `progress` is called with the number of peaks done.
///
/// # Errors
/// If images cannot be read, a backend operation fails, or a rank is lost or has failed.
pub fn pictures<B: Backend>(
    model: &Model<B>,
    projector: &mut Projector<'_, B>,
    images: &Images,
    classes: Option<&Classes>,
    root: &Path,
    rule: Rule,
    layer: usize,
    maps: &[Vec<Activation>],
    ranks: &Ranks,
    mut progress: impl FnMut(usize),
) -> Result<Vec<Vec<ProjectedPeak>>> {
    let Model { network, preprocess, .. } = model;
    let shown = &network.layers[layer];
    let field = |unit: SeedUnit| field_box(shown, unit.y as usize, unit.x as usize);
    // All of a peak but what only who has looked at the image knows: the size of its file, and the pictures.
    let described = |Activation { image, unit }, [width, height]: [usize; 2], projection, photo| {
        let path = images.path(image as usize);
        let class = images.class(image as usize) as usize;
        let (y, x) = (unit.y as usize, unit.x as usize);
        ProjectedPeak {
            image: path.strip_prefix(root).unwrap_or(&path).display().to_string(),
            class: classes.map_or_else(String::new, |classes| classes.names[class].clone()),
            y,
            x,
            value: unit.value,
            field_box: field(unit),
            patch: original_box(preprocess, width, height, seen_box(shown, y, x)),
            projection,
            photo,
        }
    };
    let mut pictures: Vec<Vec<ProjectedPeak>> =
        maps.iter().map(|found| vec![ProjectedPeak::default(); found.len()]).collect();
    let (passes, count) = (passes(maps), ranks.count());
    let of_rank = |rank| &passes[share(passes.len(), rank, count)];
    let total: usize = maps.iter().map(Vec::len).sum();
    let (mut sizes, mut scratch, mut done) = (BTreeMap::new(), Scratch::default(), 0);
    let mut for_first = Vec::new();
    let own = of_rank(ranks.rank());
    let made = project_passes(model, projector, images, rule, layer, maps, own, |projected| {
        ranks.check()?;
        ranks.check_stop()?;
        let Projected { map, place, found, square, projection } = projected;
        let size = match sizes.get(&found.image) {
            Some(size) => *size,
            None => {
                let (width, height) = images.size(found.image as usize, &mut scratch)?;
                *sizes.entry(found.image).or_insert([width, height])
            }
        };
        let projection = projection_image(preprocess, projection).crop(field(found.unit));
        let photo = centre_crop(preprocess, square).crop(field(found.unit));
        if count == 1 {
            pictures[map][place] = described(found, size, projection, photo);
        } else {
            for_first.extend_from_slice(bytes_of(&size.map(|side| side as u64)));
            for_first.extend([projection.pixels, photo.pixels].concat());
        }
        done += 1;
        progress(total.min(done * count)); // the others are about as far
        Ok(())
    });
    if count == 1 {
        return made.map(|()| pictures);
    }
    if matches!(made, Ok(()) | Err(Error::Stopped { .. })) {
        ranks.stop_together()?;
    }
    made?;
    ranks.gather(for_first, |rank, bytes| {
        let mut rest = &bytes[..];
        let mut take = |len| {
            let missing = || Error::Ranks(format!("rank {rank} has sent too few pictures"));
            rest.split_off(..len).ok_or_else(missing)
        };
        for &(_, map, place) in of_rank(rank).iter().flat_map(|pass| &pass.peaks) {
            let size: [u64; 2] = pod_read_unaligned(take(size_of::<[u64; 2]>())?);
            let size = size.map(|side| side as usize);
            let [x0, y0, x1, y1] = field(maps[map][place].unit);
            let (width, height) = ((x1 - x0) as usize, (y1 - y0) as usize);
            let mut picture =
                || take(3 * width * height).map(|bytes| Image::new(width, height, bytes.to_vec()));
            let (projection, photo) = (picture()?, picture()?);
            pictures[map][place] = described(maps[map][place], size, projection, photo);
        }
        Ok(())
    })?;
    Ok(pictures)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nine_strongest_are_kept_in_order() {
        let mut best = Vec::new();
        let values = [3.0, 1.0, 3.0, 9.0, 2.0, 5.0, 4.0, 8.0, 7.0, 6.0, 0.5, 3.0];
        for (image, value) in (0..).zip(values) {
            insert(
                &mut best,
                Activation { image, unit: SeedUnit { map: 0, y: 0, x: 0, value } },
                9,
            );
        }
        let found: Vec<_> = best.iter().map(|f| (f.unit.value, f.image)).collect();
        let expected = [(9.0, 3), (8.0, 7), (7.0, 8), (6.0, 9), (5.0, 5), (4.0, 6)];
        assert_eq!(found[..6], expected);
        assert_eq!(found[6..], [(3.0, 0), (3.0, 2), (3.0, 11)]);
    }

    #[test]
    fn a_random_choice_is_that_of_its_seed() {
        let network =
            Network::new(crate::model::Architecture::find("zfnet-mini").unwrap()).unwrap();
        let conv3 = network.layer("conv3").unwrap();
        let choose = |seed| Maps::Random(9, seed).of(&network, conv3).maps;
        assert_eq!(choose(1), choose(1));
        assert_ne!(choose(1), choose(2));
        assert!(choose(1).windows(2).all(|pair| pair[0] < pair[1]) && choose(1).len() == 9);
        let all = network.layers[conv3].output.c;
        let every: Vec<usize> = (0..all).collect();
        assert_eq!(Maps::Random(all + 5, 3).of(&network, conv3).maps, every);
        assert_eq!(Maps::First(usize::MAX).of(&network, conv3).maps, every);
        let names = |pooled| -> Vec<&str> {
            let layers = spatial_layers(&network, pooled).unwrap();
            layers.into_iter().map(|i| network.layers[i].name.as_str()).collect()
        };
        assert_eq!(names(false), ["conv1", "conv2", "conv3", "conv4", "conv5"]);
        assert_eq!(names(true), ["pool1", "pool2", "pool5"]);
    }
}
