//! What layers make of many images: a row of numbers for each crop, computed once and kept on disk.
//!
//! Linear classifiers (Tables 4 to 7 of the paper) are trained on such rows. A kept file has this
//! layout, in the machine's own order of bytes:
//!
//! ```text
//! magic u64 | rows u64 | width u64 | classes, rows x u32 | images, rows x u32
//!     | values, rows x width x f32 | xxh3 of all that u64
//! ```

use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytemuck::{cast_slice, cast_slice_mut};
use xxhash_rust::xxh3::Xxh3;

use super::extractor::FeatureExtractor;
use super::fingerprint;
use crate::backend::{Backend, Crop};
use crate::data::images::Images;
use crate::data::loader::{Bad, BatchPlan, Loader};
use crate::data::order::training_crop;
use crate::data::shard::manifest::Form;
use crate::model::{Canvas, Model, Preprocess};
use crate::train::Crops;
use crate::train::evaluate::TestCrops;
use crate::{Error, Result, human_bytes};

/// Bytes that the rows of one call may take: images x (sum of the layers' widths) x 4.
pub const LIMIT: usize = 4 << 30;

/// Images of one forward pass.
const BATCH: usize = 32;
/// The first bytes of a kept file; on a machine that orders bytes otherwise they are others.
const MAGIC: u64 = u64::from_le_bytes(*b"zfnrows1");
/// Bytes read, written and hashed at a time.
const PIECE: usize = 1 << 20;

/// The crops of an image that rows are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Views {
    /// The centre alone.
    Centre,
    /// As many as `count` that training might have seen.
    Training {
        /// Where they are cut.
        crops: Crops,
        /// Of each image, at least one. Of a smaller number all are among those of a larger one.
        count: usize,
        /// What they are drawn by, together with the image's index.
        seed: u64,
    },
}

impl Views {
    /// Rows of each image.
    pub fn count(self) -> usize {
        match self {
            Views::Centre => 1,
            Views::Training { count, .. } => count,
        }
    }

    /// The crops of the image `index` of a split, which is the `place`-th of a batch.
    fn of(self, preprocess: &Preprocess, index: u32, place: u32) -> Vec<Crop> {
        match self {
            Views::Centre => TestCrops::One.of(preprocess, place),
            // A view stands for an epoch of a training in which the image has its own place.
            Views::Training { crops, count, seed } => (0..count as u32)
                .map(|view| training_crop(crops, preprocess, seed, view, index as usize, place))
                .collect(),
        }
    }
}

/// The outputs of a layer, a row for each crop; those of an image follow each other.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rows {
    /// Numbers in a row.
    pub width: usize,
    /// `[rows, width]`.
    pub values: Vec<f32>,
    /// The class of each row's image.
    pub classes: Vec<u32>,
    /// The index of each row's image in its split.
    pub images: Vec<u32>,
}

impl Rows {
    /// Number of rows.
    pub fn len(&self) -> usize {
        self.images.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.images.is_empty()
    }

    /// A row.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row(&self, index: usize) -> &[f32] {
        &self.values[index * self.width..(index + 1) * self.width]
    }

    /// Where all rows of images are, if rows are ascending by image; bad ones have none.
    pub(super) fn positions(&self, images: &[u32]) -> Vec<usize> {
        let first = |image: u32| self.images.partition_point(|other| *other < image);
        let end = |image: u32| self.images.partition_point(|other| *other <= image);
        images.iter().flat_map(|&image| first(image)..end(image)).collect()
    }
}

/// All indices of some lists, once, ascending.
pub(super) fn union(lists: &[Vec<u32>]) -> Vec<u32> {
    let mut all = lists.concat();
    all.sort_unstable();
    all.dedup();
    all
}

/// The outputs of `layers` for the images `wanted` of `images`, in that order, one [`Rows`] a layer:
/// flattened as (row, column, map), of these `views`; a layer with weights is taken after its relu.
/// Bad images are left out.
///
/// They take images x views x width x 4 bytes of memory for each layer, and as much on disk in the folder `keep`, if
/// one is given, where the next call for the same finds them. `progress` is called with the number of images
/// seen so far and of all.
///
/// # Errors
/// If the images were made smaller than the network looks at them, the rows would take more than
/// [`LIMIT`], no image is good, images cannot be read, `keep` cannot be written, or a backend
/// operation fails.
pub fn rows<B: Backend>(
    backend: &B,
    model: &Model<B>,
    images: &Arc<Images>,
    wanted: &[u32],
    layers: &[usize],
    views: Views,
    keep: Option<&Path>,
    workers: usize,
    progress: impl FnMut(usize, usize),
) -> Result<Vec<Rows>> {
    check_size(images, model.preprocess.resize)?;
    let network = &model.network;
    let width = |layer: usize| network.layers[layer].output.per_image();
    let bytes = layers
        .iter()
        .fold(0usize, |sum, &layer| sum.saturating_add(width(layer)))
        .saturating_mul(4 * views.count())
        .saturating_mul(wanted.len());
    if bytes > LIMIT {
        let names: Vec<&str> =
            layers.iter().map(|&layer| network.layers[layer].name.as_str()).collect();
        return Err(Error::Data(format!(
            "the outputs of {} for {} crops take {}, more than the {} there may be: take fewer \
             images a class, or other layers",
            names.join(", "),
            wanted.len() * views.count(),
            human_bytes(bytes),
            human_bytes(LIMIT)
        )));
    }
    let kept = match keep {
        Some(folder) => Some((folder, hash(backend, model, images, wanted, views)?)),
        None => None,
    };
    let file = |layer: usize| {
        kept.as_ref().map(|(folder, hash)| folder.join(format!("{hash}-{layer}.rows")))
    };
    let mut found: Vec<Option<Rows>> = layers
        .iter()
        .map(|&layer| {
            let rows = read(&file(layer)?, width(layer), wanted.len() * views.count())?;
            belong(&rows, images, wanted, views).then_some(rows)
        })
        .collect();
    let missing: Vec<usize> = (0..layers.len()).filter(|&i| found[i].is_none()).collect();
    if !missing.is_empty() {
        let new: Vec<usize> = missing.iter().map(|&i| layers[i]).collect();
        let made = extract(backend, model, images, wanted, &new, views, workers, progress)?;
        for (i, rows) in missing.into_iter().zip(made) {
            if let Some(file) = file(layers[i]) {
                write(&file, &rows)?;
            }
            found[i] = Some(rows);
        }
    }
    Ok(found.into_iter().flatten().collect())
}

/// Refuses shards whose images were made smaller than the network looks at them.
fn check_size(images: &Images, canvas: Canvas) -> Result<()> {
    let resize = canvas.rows.min(canvas.columns); // shards are made by the shortest side
    let side = match images.shards().map(|shards| shards.form()) {
        Some(Form::Resized { side, .. } | Form::Raw { side }) if (side as usize) < resize => side,
        _ => return Ok(()),
    };
    Err(Error::Data(format!(
        "expected images of at least {resize} pixels, which the checkpoint looks at, found shards of \
         images resized to {side}: pack them at {resize} pixels or more"
    )))
}

/// Runs all images forward.
fn extract<B: Backend>(
    backend: &B,
    model: &Model<B>,
    images: &Arc<Images>,
    wanted: &[u32],
    layers: &[usize],
    views: Views,
    workers: usize,
    mut progress: impl FnMut(usize, usize),
) -> Result<Vec<Rows>> {
    let mut extractor = FeatureExtractor::new(backend, model, BATCH)?;
    let mut made: Vec<Rows> = layers
        .iter()
        .map(|&layer| {
            let width = model.network.layers[layer].output.per_image();
            let values = Vec::with_capacity(width * wanted.len() * views.count());
            Rows { width, values, ..Rows::default() }
        })
        .collect();
    let plan = BatchPlan::new(wanted.to_vec(), BATCH, Bad::Skip);
    let mut loader = Loader::new(images.clone(), plan, workers);
    let mut seen = 0;
    while let Some(batch) = loader.next_batch()? {
        // If there are none, all files of the batch are bad.
        if !batch.labels.is_empty() {
            let of_image =
                |(place, &index): (usize, &u32)| views.of(&model.preprocess, index, place as u32);
            let crops: Vec<Crop> = batch.indices.iter().enumerate().flat_map(of_image).collect();
            for crops in crops.chunks(BATCH) {
                extractor.forward_crops(batch.pixels(), crops)?;
                for (rows, &layer) in made.iter_mut().zip(layers) {
                    extractor.append_output(layer, &mut rows.values)?;
                    let places = crops.iter().map(|crop| crop.image as usize);
                    rows.classes.extend(places.clone().map(|place| batch.labels[place]));
                    rows.images.extend(places.map(|place| batch.indices[place]));
                }
            }
        }
        seen = (seen + BATCH).min(wanted.len());
        progress(seen, wanted.len());
        loader.recycle(batch);
    }
    if made.iter().any(Rows::is_empty) {
        return Err(Error::Data("no image of the set can be read".into()));
    }
    Ok(made)
}

/// A hash of what rows depend on beside their layer: weights, images, how they were computed.
fn hash<B: Backend>(
    backend: &B,
    model: &Model<B>,
    images: &Images,
    wanted: &[u32],
    views: Views,
) -> Result<String> {
    let mut hash = Xxh3::new();
    hash.update(env!("CARGO_PKG_VERSION").as_bytes());
    hash.update(fingerprint(backend, model)?.as_bytes());
    hash.update(images.fingerprint().as_bytes());
    match images.canvas().plain_side() {
        Some(side) => hash.update(&side.to_le_bytes()),
        None => hash.update(&serde_json::to_vec(&images.canvas()).expect("plain data")),
    }
    hash.update(cast_slice(wanted));
    if let Views::Training { crops, count, seed } = views {
        hash.update(format!("{crops:?} {count} {seed}").as_bytes());
    }
    Ok(format!("{:016x}", hash.digest()))
}

/// Whether rows read from a disk are of images that were asked for, in that order.
fn belong(rows: &Rows, images: &Images, wanted: &[u32], views: Views) -> bool {
    let mut wanted = wanted.iter();
    let mut of_images = rows.images.chunks(views.count()).zip(rows.classes.chunks(views.count()));
    of_images.all(|(indices, classes)| {
        let class = images.class(indices[0] as usize);
        wanted.any(|other| *other == indices[0])
            && indices.iter().all(|index| *index == indices[0])
            && classes.iter().all(|other| *other == class)
    }) && rows.len().is_multiple_of(views.count())
}

/// Reads kept rows; `None` if there are none, or they are damaged.
fn read(path: &PathBuf, width: usize, most: usize) -> Option<Rows> {
    let file = File::open(path).ok()?;
    let bytes = file.metadata().ok()?.len();
    let (mut file, mut hash) = (BufReader::new(file), Xxh3::new());
    let mut piece = |into: &mut [u8]| {
        for piece in into.chunks_mut(PIECE) {
            file.read_exact(piece).ok()?;
            hash.update(piece);
        }
        Some(hash.digest())
    };
    let mut head = [0u64; 3];
    piece(cast_slice_mut(&mut head))?;
    let rows = usize::try_from(head[1]).ok().filter(|rows| (1..=most).contains(rows))?;
    // `rows` and `width` are no larger than what was asked for, so this cannot overflow.
    let expected = 24 + rows * 8 + rows * width * 4 + 8;
    if head[0] != MAGIC || head[2] != width as u64 || bytes != expected as u64 {
        tracing::warn!("{}: is damaged or of another version, and is made again", path.display());
        return None;
    }
    let (mut classes, mut images) = (vec![0u32; rows], vec![0u32; rows]);
    let mut values = vec![0f32; rows * width];
    piece(cast_slice_mut(&mut classes))?;
    piece(cast_slice_mut(&mut images))?;
    let found = piece(cast_slice_mut(&mut values))?;
    let mut sum = [0u64];
    piece(cast_slice_mut(&mut sum))?;
    if sum[0] != found {
        tracing::warn!("{}: has another checksum than its own, and is made again", path.display());
        return None;
    }
    Some(Rows { width, values, classes, images })
}

/// Writes rows beside their place and renames them into it.
fn write(path: &Path, rows: &Rows) -> Result<()> {
    let folder = path.parent().expect("a file in a folder");
    let write = || {
        fs::create_dir_all(folder)?;
        let mut file = BufWriter::new(tempfile::NamedTempFile::new_in(folder)?);
        let mut hash = Xxh3::new();
        let head = [MAGIC, rows.len() as u64, rows.width as u64];
        let parts: [&[u8]; 4] = [
            cast_slice(&head),
            cast_slice(&rows.classes),
            cast_slice(&rows.images),
            cast_slice(&rows.values),
        ];
        for piece in parts.iter().flat_map(|part| part.chunks(PIECE)) {
            hash.update(piece);
            file.write_all(piece)?;
        }
        file.write_all(&hash.digest().to_ne_bytes())?;
        file.into_inner()?.persist(path)?;
        Ok(())
    };
    write().map_err(Error::io("write", path))
}
