//! A training in TensorBoard: an observer that writes an event file into the run's folder, beside `metrics.jsonl`.
//!
//! | tags | what | when |
//! |---|---|---|
//! | `train/loss`, `train/learning_rate` | as in `metrics.jsonl` | each step |
//! | `train/epoch_loss`, `val/loss`, `val/top1_error`, `val/top5_error` | likewise | each epoch |
//! | `train/images_per_second` | of the epoch's training in this session | each epoch |
//! | `layers/LAYER/activation_std`, `.../gradient_std`, `.../update`, `.../dead_share`, `.../initial_share` | what the epoch's watched steps show | each epoch |
//! | `alarms/SIGN` | an alarm, as text | when it is told |
//! | `weights/LAYER`, `activations/LAYER` | histograms: of all weights; of what the layer makes, after its relu, of the same [`LOOKED_AT`] training images each time | each epoch |
//! | `filters/LAYER` | the first layer's filters, a scale for each | the epochs of [`evolution`](crate::study::evolution), and the last |
//! | `projections/LAYER` | the maps that evolution follows: above, each one's strongest activation in the same [`SEARCHED`] training images, projected; below, what was there | likewise |
//!
//! So many because the viewer keeps ten pictures of a tag, and of histograms and numbers some hundreds, spread over all.
//!
//! A session that goes on with a run opens a file of its own, which first takes back what earlier files have of the
//! checkpoint's step and of later ones. What the checkpoint's own step had is then written again, out of `metrics.jsonl`
//! and the weights, since the interruption may have come before it was; but for images a second, which nothing keeps. If
//! there is no earlier file, all that `metrics.jsonl` has is written; a session without events between others leaves a gap.
//!
//! Event files are for people. What fails is told once and ends no training: a file that cannot be written is written no
//! more; if what it takes to draw and count cannot be had, numbers alone go on.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rayon::prelude::*;
use zfnet_formats::tensorboard::proto::summary::Value;
use zfnet_formats::tensorboard::{self as events, Histogram, histogram, image, scalar, text};

use crate::backend::{Backend, Param};
use crate::data::images::Images;
use crate::data::loader::{Bad, BatchPlan, Loader};
use crate::import::ExternalConfig;
use crate::model::{Layer, Model, Projector, Rule};
use crate::picture::Image;
use crate::ranks::Ranks;
use crate::study::diagnose::first_filters;
use crate::study::evolution::{EPOCHS, MAPS};
use crate::study::extractor::FeatureExtractor;
use crate::study::peaks::{
    Activation, BATCH, Chosen, Maps, ProjectedPeak, Search, Searched, pictures,
};
use crate::train::checkpoint::{State, load_model};
use crate::train::log::{METRICS, Metric};
use crate::train::{Event, Job, LayerOfEpoch};
use crate::{Error, Result};

/// Training images whose activations are counted.
pub const LOOKED_AT: usize = 32;
/// Training images among which the strongest activations are looked for.
pub const SEARCHED: usize = 512;
/// Time after which the next event that is written makes others able to read all so far.
const FLUSH: Duration = Duration::from_secs(2);
/// What event files' names begin with.
const PREFIX: &str = "events.out.tfevents.";
/// Values that are counted at a time.
const COUNTED: usize = 1 << 16;
/// Smaller tiles are enlarged by a whole factor to at least this side.
const SMALLEST: usize = 64;

/// Writes what a training tells into an event file.
pub struct TensorBoard<'a, B: Backend> {
    backend: &'a B,
    run: PathBuf,
    images: Arc<Images>,
    workers: usize,
    epochs: u32,
    file: EventFile,
    /// Whether weights are looked into, which has not failed yet.
    looks: bool,
    /// Of the epoch in hand, in this session.
    samples: usize,
}

impl<'a, B: Backend> TensorBoard<'a, B> {
    /// For a training that is about to begin.
    pub fn new(backend: &'a B, job: &Job<'_>) -> Self {
        TensorBoard {
            backend,
            run: job.out.clone(),
            images: job.train.clone(),
            workers: job.workers,
            epochs: job.architecture.recipe.epochs,
            file: EventFile::default(),
            looks: true,
            samples: 0,
        }
    }

    /// Writes what belongs to an event.
    pub fn event(&mut self, event: &Event<'_>) {
        match event {
            Event::Start { state, .. } => self.start(state),
            Event::Metric(metric) => {
                let (step, values) = values_of(metric);
                self.file.write(step, values);
            }
            Event::Save => self.file.flush(),
            Event::Step { samples, .. } => self.samples += samples,
            Event::Epoch { state, elapsed, .. } => {
                let rate = self.samples as f64 / elapsed.as_secs_f64().max(1e-9);
                self.samples = 0;
                let rate = scalar("train/images_per_second", rate as f32);
                self.file.write(state.step, vec![rate]);
                self.look(state);
            }
            _ => {}
        }
    }

    fn start(&mut self, state: &State) {
        let from = self.file.open(&self.run, state.step);
        match kept_metrics(&self.run, from) {
            Ok(metrics) => metrics
                .iter()
                .map(values_of)
                .for_each(|(step, values)| self.file.write(step, values)),
            Err(error) => tracing::warn!("not shown in TensorBoard: {error:#}"),
        }
        if state.batch == 0 && state.epoch > 0 {
            self.look(state);
        }
    }

    /// Writes what an epoch has made of the weights.
    fn look(&mut self, state: &State) {
        if !self.looks || self.file.open.is_none() {
            return;
        }
        match self.seen(state.epoch) {
            Ok(values) => {
                self.file.write(state.step, values);
                self.file.flush();
            }
            Err(error) => {
                self.looks = false;
                tracing::warn!(
                    "no more pictures and histograms in TensorBoard, training goes on: {error:#}"
                );
            }
        }
    }

    /// Histograms and pictures of the checkpoint that an epoch has ended with: what training holds is left alone.
    fn seen(&self, epoch: u32) -> Result<Vec<Value>> {
        let model = load_model(self.backend, &self.run.join("last"), &ExternalConfig::default())?;
        let mut values = weights(self.backend, &model)?;
        values.extend(self.activations(&model)?);
        if EPOCHS.contains(&epoch) || epoch == self.epochs {
            values.extend(filters(self.backend, &model)?);
            values.extend(self.projections(&model)?);
        }
        Ok(values)
    }

    /// So many of the training images, from all over the split, which is sorted by class.
    fn sample(&self, count: usize) -> Vec<u32> {
        let all = self.images.len();
        let count = count.min(all);
        (0..count).map(|place| (place * all / count) as u32).collect()
    }

    /// Histograms of what layers with weights make of some images.
    fn activations(&self, model: &Model<B>) -> Result<Vec<Value>> {
        let mut extractor = FeatureExtractor::new(self.backend, model, LOOKED_AT)?;
        let plan = BatchPlan::new(self.sample(LOOKED_AT), LOOKED_AT, Bad::Skip);
        let mut loader = Loader::new(self.images.clone(), plan, self.workers);
        let Some(batch) = loader.next_batch()?.filter(|batch| !batch.labels.is_empty()) else {
            return Ok(Vec::new()); // all of them are bad
        };
        extractor.forward(batch.pixels())?;
        let layers = model.network.layers.iter().enumerate();
        let weighted = layers.filter(|(_, layer)| layer.convolution().is_some());
        let value = |(index, layer): (usize, &Layer)| {
            let tag = format!("activations/{}", layer.name);
            Ok(histogram(tag, &distribution(&extractor.output(index)?)))
        };
        weighted.map(value).collect()
    }

    /// For each spatial convolution a sheet of some of its maps.
    fn projections(&self, model: &Model<B>) -> Result<Vec<Value>> {
        let Model { network, params, preprocess, .. } = model;
        let chosen: Vec<Chosen> = (network.spatial().into_iter())
            .map(|layer| Maps::Random(MAPS, 0).of(network, layer))
            .collect();
        if chosen.is_empty() {
            return Ok(Vec::new());
        }
        let (images, backend) = (&self.images, self.backend);
        let mut projector = Projector::new(backend, network, params, preprocess, BATCH, BATCH)?;
        let mut searched = Searched::nothing(&chosen);
        let mut search = Search::over(images, self.sample(SEARCHED), self.workers, BATCH);
        while search.next(&mut projector, model, &chosen, 1, &mut searched)? {}
        let sheet = |(Chosen { layer, .. }, best): (&Chosen, &Vec<Vec<Activation>>)| {
            let rule = Rule::DECONVNET;
            let (projector, root) = (&mut projector, Path::new(""));
            let peaks = pictures(
                model,
                projector,
                images,
                None,
                root,
                rule,
                *layer,
                best,
                &Ranks::alone(),
                |_| (),
            )?;
            let layer = &network.layers[*layer];
            let side = layer.field[0].size.max(layer.field[1].size);
            picture(format!("projections/{}", layer.name), &strips(&peaks, side))
        };
        chosen.iter().zip(&searched.best).map(sheet).collect()
    }
}

/// What a line of the metrics is in TensorBoard, and of which step.
fn values_of(metric: &Metric) -> (u32, Vec<Value>) {
    match metric {
        Metric::Step { step, loss, rate, .. } => {
            (*step, vec![scalar("train/loss", *loss as f32), scalar("train/learning_rate", *rate)])
        }
        Metric::Epoch { step, train_loss, val_loss, val_top1_error, val_top5_error, .. } => {
            let numbers = [
                ("train/epoch_loss", train_loss),
                ("val/loss", val_loss),
                ("val/top1_error", val_top1_error),
                ("val/top5_error", val_top5_error),
            ];
            (*step, numbers.map(|(tag, number)| scalar(tag, *number as f32)).into())
        }
        Metric::Layers { step, layers, .. } => {
            (*step, layers.iter().flat_map(values_of_layer).collect())
        }
        // A tag for each, since the viewer shows one value of a step.
        Metric::Alarm { step, alarm, .. } => {
            (*step, vec![text(format!("alarms/{}", alarm.sign.key()), &alarm.to_string())])
        }
    }
}

fn values_of_layer(layer: &LayerOfEpoch) -> impl Iterator<Item = Value> {
    let LayerOfEpoch { numbers, dead, maps, initial_share } = layer;
    let numbers = [
        ("activation_std", Some(numbers.activation_std)),
        ("gradient_std", Some(numbers.gradient_std)),
        ("update", Some(numbers.update)),
        ("dead_share", (*maps > 0).then(|| *dead as f64 / *maps as f64)),
        ("initial_share", *initial_share),
    ];
    let name = &layer.numbers.layer;
    let value = move |(what, number): (&str, Option<f64>)| {
        Some(scalar(format!("layers/{name}/{what}"), number? as f32))
    };
    numbers.into_iter().filter_map(value)
}

/// The lines of a run's metrics from a step on. Those of its last epoch's end come behind the last step's.
fn kept_metrics(run: &Path, from: u32) -> Result<Vec<Metric>> {
    let path = run.join(METRICS);
    let lines = fs::read_to_string(&path).map_err(Error::io("read", &path))?;
    // Lines that another version has written are passed over.
    let metrics = lines.lines().filter_map(|line| serde_json::from_str(line).ok());
    let step = |metric: &Metric| match metric {
        Metric::Step { step, .. }
        | Metric::Epoch { step, .. }
        | Metric::Layers { step, .. }
        | Metric::Alarm { step, .. } => *step,
    };
    Ok(metrics.filter(|metric| step(metric) >= from).collect())
}

/// Histograms of the weights of each layer that has any.
fn weights<B: Backend>(backend: &B, model: &Model<B>) -> Result<Vec<Value>> {
    let layers = model.network.layers.iter().zip(&model.params.layers);
    let weighted = layers.filter_map(|(layer, param)| Some((layer, param.as_ref()?)));
    let value = |(layer, param): (&Layer, &Param<B>)| {
        let mut values = vec![0.0; param.weight.shape().len()];
        backend.download(&mut values, &param.weight)?;
        Ok(histogram(format!("weights/{}", layer.name), &distribution(&values)))
    };
    weighted.map(value).collect()
}

/// The first layer's filters, if it is a convolution of an image.
fn filters<B: Backend>(backend: &B, model: &Model<B>) -> Result<Option<Value>> {
    let Some((kernel, values)) = first_filters(backend, model)? else { return Ok(None) };
    let tag = format!("filters/{}", model.network.layers[0].name);
    picture(tag, &Image::of_filters(&values, kernel, false)).map(Some)
}

/// How values are distributed, the same for any number of threads.
fn distribution(values: &[f32]) -> Histogram {
    let parts: Vec<Histogram> = values.par_chunks(COUNTED).map(Histogram::of).collect();
    let mut all = Histogram::of(&[]);
    parts.iter().for_each(|part| all.add(part));
    all
}

/// Above each map's projection, below what was there; black where the map did not fire. `side` is that of the layer's
/// receptive field.
fn strips(peaks: &[Vec<ProjectedPeak>], side: usize) -> Image {
    let tile = |image: Option<&Image>| match image {
        Some(image) => image.squared().enlarged(SMALLEST),
        None => Image::filled(side, side, 0).enlarged(SMALLEST),
    };
    let projections = peaks.iter().map(|peaks| tile(peaks.first().map(|peak| &peak.projection)));
    let photos = peaks.iter().map(|peaks| tile(peaks.first().map(|peak| &peak.photo)));
    Image::sheet(&projections.chain(photos).collect::<Vec<_>>(), peaks.len(), 2, 255)
}

fn picture(tag: String, picture: &Image) -> Result<Value> {
    let png = picture.png().map_err(Error::io("encode", Path::new(&tag)))?;
    Ok(image(tag, [picture.width, picture.height], png))
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// A session's event file.
#[derive(Default)]
struct EventFile {
    path: PathBuf,
    /// Not before it is opened, nor after a write that has failed.
    open: Option<BufWriter<File>>,
    flushed: Option<Instant>,
}

impl EventFile {
    /// Opens the file of a session that goes on at `step`. Gives the step from which on the run's metrics belong into it.
    fn open(&mut self, run: &Path, step: u32) -> u32 {
        let earlier = match newest(run) {
            Ok(earlier) => earlier,
            Err(error) => {
                self.fail(&Error::io("read", run)(error));
                return step;
            }
        };
        // Files are read in the order of their names, whatever the clock did.
        let seconds = (now() as u64).max(earlier.map_or(0, |seconds| seconds.saturating_add(1)));
        self.path = run.join(format!("{PREFIX}{seconds:010}.{}.{}.0", host(), process::id()));
        match File::create_new(&self.path) {
            Ok(file) => self.open = Some(BufWriter::new(file)),
            Err(error) => self.fail(&Error::io("create", &self.path)(error)),
        }
        self.put(&events::version(now()));
        if earlier.is_none() {
            return 0;
        }
        self.put(&events::restart(now(), step));
        step
    }

    /// Writes values of a step.
    fn write(&mut self, step: u32, values: Vec<Value>) {
        if !values.is_empty() {
            self.put(&events::summary(now(), step, values));
        }
    }

    fn put(&mut self, event: &events::proto::Event) {
        self.with(|file| events::write(file, event));
        if self.flushed.is_none_or(|flushed| flushed.elapsed() > FLUSH) {
            self.flush();
        }
    }

    /// Makes others able to read all so far.
    fn flush(&mut self) {
        self.flushed = Some(Instant::now());
        self.with(BufWriter::flush);
    }

    /// Does something with the file, if it is open.
    fn with(&mut self, what: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) {
        if let Some(file) = &mut self.open
            && let Err(error) = what(file)
        {
            self.fail(&Error::io("write", &self.path)(error));
        }
    }

    fn fail(&mut self, error: &Error) {
        // What waits to be written would fail once more.
        let _ = self.open.take().map(BufWriter::into_parts);
        tracing::warn!("no more events for TensorBoard, training goes on: {error:#}");
    }
}

/// The seconds in the name of the newest event file of a folder.
fn newest(folder: &Path) -> io::Result<Option<u64>> {
    let mut newest = None;
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        let seconds = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        let seconds = seconds.and_then(|rest| rest.split('.').next()?.parse().ok());
        newest = newest.max(seconds);
    }
    Ok(newest)
}

/// The machine's name, as a part of a file's name.
fn host() -> String {
    #[cfg(unix)]
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    #[cfg(not(unix))]
    let name = std::env::var("COMPUTERNAME").unwrap_or_default();
    let usable = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    let name: String = name.chars().filter(usable).take(64).collect();
    if name.is_empty() { "localhost".into() } else { name }
}
