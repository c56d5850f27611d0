//! What layers make of images, as a file for other programs: one row an image.
//!
//! A `.safetensors` file has for each layer a tensor of its name, `[images, outputs]` or `[images, maps, rows,
//! columns]`; `labels`, I64 `[images]`, -1 for images without classes; `crops`, I32 `[images, 4]`: row and column of
//! the crop's first pixel in the resized square, its height and width; and `keys`, U8: each image's `CLASS/FILE` (or its
//! path in a folder without classes) and a line feed behind each. What it was made with is JSON under the metadata's one
//! key, `features`. A `.npy` file has one layer alone; keys, labels and crops are in a table beside it.
//!
//! Files that are no images have no row. Rows come in the order of the images, and all are computed in batches of one
//! size, so that they are the same bits however often the work was interrupted.

mod format;
mod partial;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use half::f16;
use serde_json::{Value, json};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

pub use self::format::Format;
use self::format::{Layout, Tensor, Type};
use self::partial::{Made, Partial};
use crate::backend::Backend;
use crate::data::images::Scratch;
use crate::data::loader::{Bad, BatchPlan, Loader};
use crate::data::set::KeyedImages;
use crate::disk::write_durable;
use crate::model::{Kind, Model, Network};
use crate::study::extractor::FeatureExtractor;
use crate::study::fingerprint;
use crate::train::evaluate::TestCrops;
use crate::{Error, Result};

/// Between two times that what is written is made safe: at least this long, and this many times as long as that takes.
const KEEP: (Duration, u32) = (Duration::from_millis(200), 20);
/// Bytes kept free in a header for what only the end tells.
const ROOM: usize = 32;
/// Tensors of a safetensors file beside its layers.
const LABELS: &str = "labels";
const CROPS: &str = "crops";
const KEYS: &str = "keys";

/// The type of the values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// As they are computed.
    F32,
    /// Half the size, three decimal digits.
    F16,
}

impl Dtype {
    fn name(self) -> &'static str {
        match self {
            Dtype::F32 => "f32",
            Dtype::F16 => "f16",
        }
    }

    fn kind(self) -> Type {
        match self {
            Dtype::F32 => Type::F32,
            Dtype::F16 => Type::F16,
        }
    }
}

/// What to write.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Indices of the layers. The output of one with weights is that after its relu; the last one's are the logits.
    pub layers: Vec<usize>,
    /// The type of their values.
    pub dtype: Dtype,
    /// Images of one forward pass.
    pub batch: usize,
    /// Go on with a file that was begun with other settings by beginning it anew.
    pub overwrite: bool,
    /// What only the caller knows of where model and images come from: names and values for the metadata.
    pub facts: Vec<(String, String)>,
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extracted {
    /// Rows.
    pub images: usize,
    /// Files that are no images, which have none.
    pub left_out: usize,
    /// Images that an earlier call had looked at already.
    pub before: usize,
    /// Names and shapes of the layers' tensors.
    pub layers: Vec<(String, Vec<usize>)>,
    /// Bytes of the file.
    pub bytes: u64,
}

/// A layer to be written.
struct Wanted {
    layer: usize,
    /// The shape of a row: `[outputs]`, or `[maps, rows, columns]`.
    row: Vec<usize>,
    /// Values of a row.
    values: usize,
}

/// The table that belongs to a `.npy` file.
pub fn labels_beside(out: &Path) -> PathBuf {
    out.with_extension("labels.tsv")
}

/// Writes layers' outputs for all images to the file `out`, whose ending says in which format, and replaces what is
/// there. What is written lies beside it until it is whole; a call for the same goes on with that. `progress` is called
/// with the number of images looked at and of all; a non-zero `stop` ends with `None`.
///
/// # Errors
/// If the settings do not fit the format, the file was begun with others, images cannot be read or none is good, the
/// file cannot be written, or a backend operation fails.
pub fn extract<B: Backend>(
    backend: &B,
    model: &Model<B>,
    data: &KeyedImages,
    settings: &Settings,
    out: &Path,
    workers: usize,
    stop: &AtomicUsize,
    mut progress: impl FnMut(usize, usize),
) -> Result<Option<Extracted>> {
    let images = &data.images;
    let total = images.len();
    let wanted = wanted(&model.network, settings, out)?;
    let mut file =
        Features { model, data, settings, wanted, model_hash: fingerprint(backend, model)? };
    let made = file.made(&backend.id().to_string());
    let mut partial = Partial::open(out, &made, total, settings.overwrite)?;
    // Of all images, as if all were good: what is written stays where it is if they are.
    let room = file.layout(out, &[], ROOM)?;
    let bytes_of_row = |wanted: &Wanted| (wanted.values * settings.dtype.kind().bytes()) as u64;
    let first = file.first_layer(out);
    let places = room.begins[first..].to_owned();
    let rows = partial.state.rows() as u64;
    let last = places.iter().zip(&file.wanted).map(|(at, w)| at + rows * bytes_of_row(w)).max();
    partial.must_have(last.unwrap_or(0))?;
    let before = partial.state.done;
    if before > 0 {
        tracing::info!("{}: going on after {before} of {total} images", out.display());
    }
    // Counted again, and named: of how many files are bad depends whether to go on.
    let (mut scratch, mut square) = (Scratch::default(), vec![0; images.bytes_per_image()]);
    for &index in &partial.state.bad {
        if images.read(index, &mut scratch, &mut square)?.is_some() {
            let reason = format!(
                "could not be read as an image before and now can: remove {}.partial and begin anew",
                out.display()
            );
            return Err(Error::file(images.path(index), reason));
        }
    }
    progress(before, total);

    let mut extractor = FeatureExtractor::new(backend, model, settings.batch)?;
    let order = (before as u32..total as u32).collect();
    let mut loader =
        Loader::new(images.clone(), BatchPlan::new(order, settings.batch, Bad::Skip), workers);
    let mut padded = vec![0; settings.batch * images.bytes_per_image()];
    let (mut values, mut bytes) = (Vec::new(), Vec::new());
    // At first at once: a folder that takes no further files is known then.
    let (mut kept, mut pause) = (Instant::now(), Duration::ZERO);
    while let Some(batch) = loader.next_batch()? {
        let good = batch.indices.len();
        // A batch that is not full is filled up: how a sum is rounded may depend on the number of images.
        padded[..batch.pixels().len()].copy_from_slice(batch.pixels());
        padded[batch.pixels().len()..].fill(0);
        if good > 0 {
            extractor.forward(&padded)?;
        }
        let rows = partial.state.rows() as u64;
        for (wanted, place) in file.wanted.iter().zip(&places).filter(|_| good > 0) {
            values.clear();
            extractor.append_output(wanted.layer, &mut values)?;
            bytes.clear();
            for (row, &index) in values.chunks_exact(wanted.values).zip(&batch.indices) {
                append(&mut bytes, row, wanted, settings.dtype).map_err(|value| {
                    let name = &model.network.layers[wanted.layer].name;
                    Error::Data(format!(
                        "{}: a value of {name}, {value}, does not fit into f16, whose largest is {}: write f32",
                        data.key(index as usize),
                        f16::MAX
                    ))
                })?;
            }
            partial.write(place + rows * bytes_of_row(wanted), &bytes)?;
        }
        let looked_at = partial.state.done..(partial.state.done + settings.batch).min(total);
        let is_bad = |index: &usize| batch.indices.binary_search(&(*index as u32)).is_err();
        partial.state.done = looked_at.end;
        partial.state.bad.extend(looked_at.filter(is_bad));
        loader.recycle(batch);
        let stopped = stop.load(Ordering::Relaxed) != 0;
        if stopped || kept.elapsed() >= pause {
            let begun = Instant::now();
            partial.save()?;
            kept = Instant::now();
            pause = KEEP.0.max((kept - begun) * KEEP.1);
        }
        progress(partial.state.done, total);
        if stopped {
            return Ok(None);
        }
    }
    partial.save()?;
    file.finish(partial, out, &room, before).map(Some)
}

/// Checks what is to be written.
fn wanted(network: &Network, settings: &Settings, out: &Path) -> Result<Vec<Wanted>> {
    let name = |layer: &usize| network.layers[*layer].name.as_str();
    let names: Vec<&str> = settings.layers.iter().map(name).collect();
    if names.is_empty() {
        return Err(Error::file(out, "expected at least one layer to be written"));
    }
    if let Some(twice) = (1..names.len()).find(|&i| names[..i].contains(&names[i])) {
        return Err(Error::file(out, format!("layer {} was asked for twice", names[twice])));
    }
    let own = |name: &&&str| [LABELS, CROPS, KEYS, "__metadata__"].contains(*name);
    match (Format::of(out)?, names.iter().find(own)) {
        (Format::Npy, _) if names.len() > 1 => {
            let reason = format!(
                "a .npy file has one array, found {} layers ({}): write .safetensors, or one after the other",
                names.len(),
                names.join(", ")
            );
            return Err(Error::file(out, reason));
        }
        (Format::Safetensors, Some(taken)) => {
            let reason =
                format!("the file has a tensor {taken} of its own: write the layer to .npy");
            return Err(Error::file(out, reason));
        }
        _ => {}
    }
    let wanted = |&layer: &usize| {
        let below = &network.layers[..=layer];
        let shape = below[layer].output;
        let flat = below.iter().any(|layer| matches!(layer.kind, Kind::FullyConnected(_)));
        let row = if flat { vec![shape.per_image()] } else { vec![shape.c, shape.h, shape.w] };
        Wanted { layer, row, values: shape.per_image() }
    };
    Ok(settings.layers.iter().map(wanted).collect())
}

/// Adds a row, `[rows, columns, maps]`, to bytes: maps first, little-endian. Fails with a value that does not fit.
fn append(bytes: &mut Vec<u8>, row: &[f32], wanted: &Wanted, dtype: Dtype) -> Result<(), f32> {
    let maps = wanted.row[0];
    for map in 0..maps {
        for value in row[map..].iter().step_by(maps) {
            match dtype {
                Dtype::F32 => bytes.extend(value.to_le_bytes()),
                Dtype::F16 => {
                    let half = f16::from_f32(*value);
                    if half.is_infinite() && value.is_finite() {
                        return Err(*value);
                    }
                    bytes.extend(half.to_le_bytes());
                }
            }
        }
    }
    Ok(())
}

/// All that decides what is in the file.
struct Features<'a, B: Backend> {
    model: &'a Model<B>,
    data: &'a KeyedImages,
    settings: &'a Settings,
    wanted: Vec<Wanted>,
    model_hash: String,
}

impl<B: Backend> Features<'_, B> {
    /// What rows depend on.
    fn made(&self, device: &str) -> Made {
        let images = &self.data.images;
        let mut hash = Xxh3::new();
        for index in 0..images.len() {
            hash.update(self.data.key(index).as_bytes());
            hash.update(&self.label(index).to_le_bytes());
        }
        vec![
            ("version of zfnet", env!("CARGO_PKG_VERSION").into()),
            ("device", device.into()),
            ("model", self.model_hash.clone()),
            ("choice of layers", self.names().join(",")),
            ("type of values", self.settings.dtype.name().into()),
            ("batch size", self.settings.batch.to_string()),
            ("set of images", format!("{}, keys {:016x}", images.fingerprint(), hash.digest())),
        ]
    }

    fn names(&self) -> Vec<&str> {
        let name = |wanted: &Wanted| self.model.network.layers[wanted.layer].name.as_str();
        self.wanted.iter().map(name).collect()
    }

    fn label(&self, index: usize) -> i64 {
        self.data.class(index).map_or(-1, i64::from)
    }

    /// Row, column, height, width: the same of every image.
    fn crop(&self) -> [u32; 4] {
        let crop = TestCrops::One.of(&self.model.preprocess, 0)[0];
        let input = self.model.network.input();
        [crop.y, crop.x, input.h as u32, input.w as u32]
    }

    /// Indices of the images that have rows.
    fn good<'a>(&self, bad: &'a [usize]) -> impl Iterator<Item = usize> + use<'a, B> {
        (0..self.data.images.len()).filter(|index| bad.binary_search(index).is_err())
    }

    /// The first of a file's tensors that is a layer's. What has larger values comes first, so that all are aligned.
    fn first_layer(&self, out: &Path) -> usize {
        match Format::of(out) {
            Ok(Format::Safetensors) => 2,
            _ => 0,
        }
    }

    /// The tensors of a file without these bad images.
    fn layout(&self, out: &Path, bad: &[usize], room: usize) -> Result<Layout> {
        let rows = self.data.images.len() - bad.len();
        let tensor =
            |name: &str, kind, shape: Vec<usize>| Tensor { name: name.to_owned(), kind, shape };
        let layers = self.names().into_iter().zip(&self.wanted).map(|(name, wanted)| {
            tensor(name, self.settings.dtype.kind(), [&[rows], &*wanted.row].concat())
        });
        let format = Format::of(out)?;
        let tensors = match format {
            Format::Npy => layers.collect(),
            Format::Safetensors => {
                let keys = self.good(bad).map(|index| self.data.key(index).len() + 1).sum();
                let mut tensors = vec![tensor(LABELS, Type::I64, vec![rows])];
                tensors.push(tensor(CROPS, Type::I32, vec![rows, 4]));
                tensors.extend(layers);
                tensors.push(tensor(KEYS, Type::U8, vec![keys]));
                tensors
            }
        };
        Layout::new(format, &tensors, &self.about(bad.len()), room)
    }

    /// What the metadata says.
    fn about(&self, left_out: usize) -> Value {
        let Model { network, preprocess, .. } = self.model;
        let mut prepared = serde_json::to_value(preprocess).expect("plain data");
        prepared["mean"] = match preprocess.mean_is_image() {
            false => json!(preprocess.mean),
            true => json!(format!("xxh3 {:016x}", xxh3_64(bytemuck::cast_slice(&preprocess.mean)))),
        };
        let [y, x, height, width] = self.crop();
        let mut about = json!({
            "program": concat!("zfnet ", env!("CARGO_PKG_VERSION")),
            "network": network.architecture.name,
            "model": self.model_hash,
            "preprocess": prepared,
            "crop": { "y": y, "x": x, "height": height, "width": width },
            "layers": self.names(),
            "dtype": self.settings.dtype.name(),
            "batch_size": self.settings.batch,
            "classes": self.data.classes.as_ref().map(|classes| &classes.names),
            "left_out": left_out,
        });
        for (name, value) in &self.settings.facts {
            about[name] = json!(value);
        }
        about
    }

    /// Writes what stands around the rows, and gives the file its name. `room` is how the rows lie so far.
    fn finish(
        &mut self,
        mut partial: Partial,
        out: &Path,
        room: &Layout,
        before: usize,
    ) -> Result<Extracted> {
        let bad: Vec<usize> = partial.state.bad.iter().copied().collect();
        let rows = partial.state.rows();
        if rows == 0 {
            let reason = format!("none of {} files is a usable image", self.data.images.len());
            return Err(Error::Data(reason));
        }
        let layout = self.layout(out, &bad, room.header.len())?;
        let first = self.first_layer(out);
        let ends = layout.begins[1..].iter().chain([&layout.end]);
        let moves = room.begins.iter().zip(&layout.begins).zip(ends);
        let moves: Vec<_> = moves
            .skip(first)
            .take(self.wanted.len())
            .map(|((&from, &to), end)| (from, to, end - to))
            .collect();
        if moves.iter().any(|(from, to, _)| from != to) {
            partial.rearrange(&moves)?;
        }
        partial.write(0, &layout.header)?;
        let crop = self.crop();
        match Format::of(out)? {
            Format::Safetensors => {
                let labels = self.good(&bad).map(|index| self.label(index).to_le_bytes());
                partial.write_all(layout.begins[0], labels)?;
                let crops = self.good(&bad).flat_map(|_| crop.map(u32::to_le_bytes));
                partial.write_all(layout.begins[1], crops)?;
                let keys = self.good(&bad).map(|index| format!("{}\n", self.data.key(index)));
                partial.write_all(layout.begins[first + self.wanted.len()], keys)?;
            }
            Format::Npy => {
                let mut table = "key\tlabel\ty\tx\theight\twidth\n".to_owned();
                let crop = crop.map(|number| number.to_string()).join("\t");
                for index in self.good(&bad) {
                    table += &format!("{}\t{}\t{crop}\n", self.data.key(index), self.label(index));
                }
                write_durable(&labels_beside(out), table.as_bytes())?;
            }
        }
        partial.finish(layout.end)?;
        let shape = |wanted: &Wanted| [&[rows], &*wanted.row].concat();
        let names = self.names().into_iter().map(str::to_owned);
        Ok(Extracted {
            images: rows,
            left_out: bad.len(),
            before,
            layers: names.zip(self.wanted.iter().map(shape)).collect(),
            bytes: layout.end,
        })
    }
}
