//! The network behind the page: what it makes of pictures, and what single units show of them.

use std::cell::OnceCell;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::{mpsc, oneshot};
use xxhash_rust::xxh3::xxh3_64;

use super::pictures::Prepared;
use crate::backend::{Backend, Peak, SeedUnit};
use crate::data::Split;
use crate::data::images::Images;
use crate::disk::write_atomic;
use crate::model::{Kind, Layer, Model, Network, Params, Preprocess, Projector, Rule, Seed};
use crate::picture::scale;
use crate::shape::Shape;
use crate::study::fingerprint;
use crate::study::peaks::{Activation, Chosen, Maps, Searched, search};
use crate::study::pixels::{field_box, to_rgb};
use crate::train::evaluate::{TestCrops, softmax};
use crate::{Error, Result};

/// Classes that are named.
const CLASSES: usize = 5;
/// Peaks of a map.
const PEAKS: usize = 9;
/// Images of the search at a time: between two of these batches the page is answered.
const SEARCHED_AT_ONCE: usize = 4;
/// Between two times that the search is kept.
const KEEP: Duration = Duration::from_secs(30);
/// From the last job on, before the search goes on.
const REST: Duration = Duration::from_millis(300);
/// Before a search that has failed is tried again.
const TRIED_AGAIN: Duration = Duration::from_secs(30);
const PANICKED: &str = "This could not be computed: an error of the program.";
/// Seed of the untrained weights, as in `study sanity`.
const UNTRAINED_SEED: u64 = 0;

/// One question of a page.
pub struct Job {
    pub(super) ask: Ask,
    pub(super) reply: oneshot::Sender<Result<Answer>>,
}

/// A unit and how to project it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub layer: usize,
    pub map: usize,
    pub y: usize,
    pub x: usize,
    pub rule: Rule,
    /// By which weights, and which of the projectors.
    pub by: By,
}

/// Which projector is asked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum By {
    /// The one that looks at the picture on the page.
    Page,
    /// The one for pictures beside it, so that the page's need not be looked at again.
    Beside,
    /// The one with untrained weights.
    Untrained,
}

pub(super) enum Ask {
    /// The most probable classes, and this one.
    Classes(Prepared, Option<usize>),
    Maps(Prepared, usize),
    Project(Prepared, Asked),
    Top {
        layer: usize,
        map: usize,
    },
    Status,
}

pub(super) enum Answer {
    Classes(Vec<Class>),
    Maps(OfLayer, Vec<i8>),
    /// Without values for a unit that did not fire.
    Projection(Projection, Vec<f32>),
    Top(Top),
    Status(Progress),
}

#[derive(Serialize)]
pub(super) struct Class {
    class: usize,
    name: String,
    probability: f64,
}

/// The maps of a layer, whose values are given as a map's scale / 127 times a signed byte.
#[derive(Serialize)]
pub(super) struct OfLayer {
    layer: String,
    maps: usize,
    rows: usize,
    columns: usize,
    /// Largest magnitude of each map.
    scales: Vec<f32>,
    /// Value, row and column of each map's strongest unit.
    peaks: Vec<(f32, usize, usize)>,
}

#[derive(Serialize)]
pub(super) struct Projection {
    pub activation: f32,
    /// The receptive field, x0, y0, x1, y1 in pixels of the input.
    pub field: [i64; 4],
    pub rows: usize,
    pub columns: usize,
    channels: usize,
    /// The magnitude that is shown as black or white.
    scale: f32,
    random: bool,
}

/// How far the search for strongest images is.
#[derive(Clone, Copy, Default, Serialize)]
pub(super) struct Progress {
    searched: usize,
    /// 0 if there is nothing to search.
    total: usize,
}

#[derive(Serialize)]
pub(super) struct Top {
    #[serde(flatten)]
    progress: Progress,
    peaks: Vec<TopPeak>,
    /// Why the search has ended early, if it has.
    failed: Option<String>,
}

#[derive(Serialize)]
struct TopPeak {
    id: String,
    y: u32,
    x: u32,
    value: f32,
    field: [i64; 4],
}

/// A layer as the page lists it.
#[derive(Clone, Debug, Serialize)]
pub struct ListedLayer {
    /// Index in the network.
    #[serde(skip)]
    pub index: usize,
    /// Its name.
    pub name: String,
    kind: &'static str,
    /// Maps, rows and columns of its output.
    pub maps: usize,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
    /// Columns and rows that a unit sees.
    field: [usize; 2],
    /// Columns and rows from one unit's field to the next one's.
    stride: [usize; 2],
    /// First column and row that the unit at (0, 0) sees.
    offset: [i64; 2],
    parameters: usize,
}

/// Layers with an output of their own to look at: a relu's is that of what is before it.
pub(super) fn listed<B: Backend>(model: &Model<B>) -> Vec<ListedLayer> {
    let list = |(index, layer): (usize, &Layer)| {
        let kind = match layer.kind {
            Kind::Conv(_) => "conv",
            Kind::ConvTranspose(_) => "transposed conv",
            Kind::FullyConnected(_) => "fc",
            Kind::MaxPool(_) => "maxpool",
            Kind::Lrn(_) => "lrn",
            Kind::Relu(_) | Kind::Dropout(_) => return None,
        };
        let [vertical, horizontal] = layer.field;
        let parameters = model.params.layers[index]
            .as_ref()
            .map_or(0, |param| param.weight.shape().len() + param.bias.shape().len());
        Some(ListedLayer {
            index,
            name: layer.name.clone(),
            kind,
            maps: layer.output.c,
            rows: layer.output.h,
            columns: layer.output.w,
            field: [horizontal.size, vertical.size],
            stride: [horizontal.jump, vertical.jump],
            offset: [horizontal.start, vertical.start],
            parameters,
        })
    };
    model.network.layers.iter().enumerate().filter_map(list).collect()
}

/// A projector that remembers which picture it has looked at last.
struct Remembering<'a, B: Backend> {
    inner: Projector<'a, B>,
    seen: Option<Arc<str>>,
}

impl<'a, B: Backend> Remembering<'a, B> {
    fn new(backend: &'a B, model: &'a Model<B>, params: &'a Params<B>) -> Result<Self> {
        let Model { network, preprocess, .. } = model;
        let projector = Projector::new(backend, network, params, preprocess, 1, 1)?;
        Ok(Remembering { inner: projector, seen: None })
    }

    fn look(&mut self, preprocess: &Preprocess, picture: &Prepared) -> Result<()> {
        if self.seen.as_ref() != Some(&picture.key) {
            self.seen = None;
            self.inner.look(&picture.square, &TestCrops::One.of(preprocess, 0))?;
            self.seen = Some(picture.key.clone());
        }
        Ok(())
    }
}

/// The network behind a page, and the search for what excites it most.
pub struct Engine<'a, B: Backend> {
    backend: &'a B,
    model: &'a Model<B>,
    trained: Remembering<'a, B>,
    beside: Option<Remembering<'a, B>>,
    untrained: &'a OnceCell<Params<B>>,
    by_untrained: Option<Remembering<'a, B>>,
}

impl<'a, B: Backend> Engine<'a, B> {
    /// For a model; `untrained` is a place for other weights, should they be asked for.
    ///
    /// # Errors
    /// If the backend is out of memory.
    pub fn new(
        backend: &'a B,
        model: &'a Model<B>,
        untrained: &'a OnceCell<Params<B>>,
    ) -> Result<Self> {
        let trained = Remembering::new(backend, model, &model.params)?;
        Ok(Engine { backend, model, trained, beside: None, untrained, by_untrained: None })
    }

    /// Answers until nobody can ask any more. When it is first asked for the strongest activations, it searches
    /// a split for them, and answers other jobs between its batches; what it has found is kept in the folder
    /// `kept_in`.
    ///
    /// # Errors
    /// If the backend is out of memory, or the folder is none that can be written.
    pub fn run(
        mut self,
        mut jobs: mpsc::Receiver<Job>,
        searched_in: Option<&(Split, Arc<Images>)>,
        kept_in: Option<&Path>,
    ) -> Result<()> {
        let (backend, model) = (self.backend, self.model);
        let network = &model.network;
        let all = |layer: ListedLayer| Maps::First(usize::MAX).of(network, layer.index);
        let chosen: Vec<Chosen> = listed(model).into_iter().map(all).collect();
        let images = searched_in.map(|(_, images)| images);
        let split = searched_in.map_or(Split::Val, |(split, _)| *split);
        let kept = match (images, kept_in) {
            (Some(images), Some(folder)) => Some(kept_file(backend, model, images, folder)?),
            _ => None,
        };
        let read = |file: &PathBuf| serde_json::from_slice(&fs::read(file).ok()?).ok();
        let total = images.map_or(0, |images| images.len());
        let known = kept.as_ref().and_then(read).filter(|found: &Searched| {
            let maps = found.best.iter().map(Vec::len);
            maps.eq(chosen.iter().map(|chosen| chosen.maps.len())) && found.done <= total
        });
        let mut found = known.unwrap_or_else(|| Searched::nothing(&chosen));
        let mut failed: Option<(String, Instant)> = None;
        while let Some(job) = jobs.blocking_recv() {
            let is_searching = matches!(job.ask, Ask::Top { .. });
            let reason = failed.as_ref().map(|(reason, _)| reason.as_str());
            let so_far = Search { chosen: &chosen, found: &found, split, total, failed: reason };
            self.answer(&so_far, job);
            let may_try = failed.as_ref().is_none_or(|(_, when)| when.elapsed() > TRIED_AGAIN);
            let Some(images) = images.filter(|_| is_searching && found.done < total && may_try)
            else {
                continue;
            };
            let searched = catch_unwind(AssertUnwindSafe(|| {
                self.search(&mut jobs, (split, images), &chosen, &mut found, kept.as_deref())
            }));
            let searched = searched.unwrap_or_else(|_| Err(Error::Data(PANICKED.into())));
            failed = searched.err().map(|error| (error.to_string(), Instant::now()));
            keep(kept.as_deref(), &found);
        }
        Ok(())
    }

    /// Searches the images that have not been searched yet. Jobs come first: while they do, the search rests.
    fn search(
        &mut self,
        jobs: &mut mpsc::Receiver<Job>,
        (split, images): (Split, &Arc<Images>),
        chosen: &[Chosen],
        found: &mut Searched,
        kept: Option<&Path>,
    ) -> Result<()> {
        let (backend, model) = (self.backend, self.model);
        let Model { network, params, preprocess, .. } = model;
        let total = images.len();
        let mut projector =
            Projector::new(backend, network, params, preprocess, SEARCHED_AT_ONCE, 1)?;
        let mut written = Instant::now();
        let between = |found: &Searched| {
            let mut last: Option<Instant> = None;
            loop {
                if let Ok(job) = jobs.try_recv() {
                    self.answer(&Search { chosen, found, split, total, failed: None }, job);
                    last = Some(Instant::now());
                } else if last.is_some_and(|last| last.elapsed() < REST) {
                    std::thread::sleep(REST / 100);
                } else {
                    break;
                }
            }
            if written.elapsed() > KEEP {
                keep(kept, found);
                written = Instant::now();
            }
            Ok(())
        };
        let (workers, at_once) = (1, SEARCHED_AT_ONCE);
        search(&mut projector, model, images, chosen, PEAKS, workers, at_once, found, between)
    }

    /// Answers a job, if somebody still waits for it. What panics is an error of this job alone.
    fn answer(&mut self, search: &Search<'_>, Job { ask, reply }: Job) {
        if reply.is_closed() {
            return;
        }
        let answer = catch_unwind(AssertUnwindSafe(|| self.answer_to(search, ask)));
        let answer = answer.unwrap_or_else(|_| {
            (self.trained.seen, self.beside, self.by_untrained) = (None, None, None);
            Err(Error::Data(PANICKED.into()))
        });
        let _ = reply.send(answer); // who asked may have left
    }

    fn answer_to(&mut self, search: &Search<'_>, ask: Ask) -> Result<Answer> {
        match ask {
            Ask::Classes(picture, also) => self.classes(&picture, also).map(Answer::Classes),
            Ask::Maps(picture, layer) => {
                self.maps(&picture, layer).map(|(about, values)| Answer::Maps(about, values))
            }
            Ask::Project(picture, unit) => self.project(&picture, unit),
            Ask::Top { layer, map } => search.top(&self.model.network, layer, map).map(Answer::Top),
            Ask::Status => Ok(Answer::Status(search.progress())),
        }
    }

    /// The most probable classes, and one more; none if the network is not a classifier.
    fn classes(&mut self, picture: &Prepared, also: Option<usize>) -> Result<Vec<Class>> {
        let Model { classes, preprocess, .. } = self.model;
        if classes.is_empty() {
            return Ok(Vec::new());
        }
        self.trained.look(preprocess, picture)?;
        let logits = self.trained.inner.workspace.logits();
        let mut values = vec![0.0; logits.shape().len()];
        self.backend.download(&mut values, logits)?;
        let mut all: Vec<(usize, f64)> = softmax(&values).enumerate().collect();
        all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let others = all.iter().skip(CLASSES).filter(|(class, _)| Some(*class) == also);
        let shown = all.iter().take(CLASSES).chain(others);
        let named = shown.filter_map(|&(class, probability)| {
            Some(Class { class, name: classes.names.get(class)?.clone(), probability })
        });
        Ok(named.collect())
    }

    /// A layer's output, `[rows, columns, maps]`.
    fn output(projector: &Remembering<'_, B>, backend: &B, layer: usize) -> Result<Vec<f32>> {
        let output = projector.inner.workspace.output(layer);
        let mut values = vec![0.0; output.shape().len()];
        backend.download(&mut values, output)?;
        Ok(values)
    }

    fn maps(&mut self, picture: &Prepared, layer: usize) -> Result<(OfLayer, Vec<i8>)> {
        self.trained.look(&self.model.preprocess, picture)?;
        let values = Self::output(&self.trained, self.backend, layer)?;
        let peaks = self.trained.inner.peaks(layer)?;
        let shown = &self.model.network.layers[layer];
        let Shape { h, w, c, .. } = shown.output;
        let of_map = |map: usize| values[map..].iter().step_by(c);
        let largest = |map| {
            let finite = of_map(map).map(|value| value.abs()).filter(|value| value.is_finite());
            finite.fold(0.0, f32::max)
        };
        let scales: Vec<f32> = (0..c).map(largest).collect();
        let byte = |value: f32, scale: f32| match scale {
            0.0 => 0,
            scale => (value / scale * 127.0).round() as i8, // saturates
        };
        let bytes = |map: usize| of_map(map).map(move |value| (value, map));
        let bytes = (0..c).flat_map(bytes).map(|(value, map)| byte(*value, scales[map])).collect();
        let peak = |Peak { value, position }: &Peak| {
            (*value, *position as usize / w, *position as usize % w)
        };
        let peaks = peaks.iter().map(peak).collect();
        let about =
            OfLayer { layer: shown.name.clone(), maps: c, rows: h, columns: w, scales, peaks };
        Ok((about, bytes))
    }

    fn project(&mut self, picture: &Prepared, unit: Asked) -> Result<Answer> {
        let Asked { layer, map, y, x, rule, by } = unit;
        let model = self.model;
        let projector = match by {
            By::Page => &mut self.trained,
            By::Beside => match &mut self.beside {
                Some(projector) => projector,
                none => none.insert(Remembering::new(self.backend, model, &model.params)?),
            },
            By::Untrained => {
                if self.untrained.get().is_none() {
                    let drawn = Params::untrained(self.backend, &model.network, UNTRAINED_SEED)?;
                    let _ = self.untrained.set(drawn); // which was empty
                }
                let params = self.untrained.get().expect("set above");
                match &mut self.by_untrained {
                    Some(projector) => projector,
                    none => none.insert(Remembering::new(self.backend, model, params)?),
                }
            }
        };
        projector.look(&model.preprocess, picture)?;
        let shown = &model.network.layers[layer];
        let values = Self::output(projector, self.backend, layer)?;
        let activation = values[(y * shown.output.w + x) * shown.output.c + map];
        let mut pixels = Vec::new();
        if activation > 0.0 {
            let seed = SeedUnit { map: map as u32, y: y as u32, x: x as u32, value: activation };
            let seed = Seed { image: 0, unit: seed };
            projector.inner.project(layer, &[seed], rule, |_, values| {
                pixels = to_rgb(&model.preprocess, values.to_vec());
                Ok(())
            })?;
        }
        let [rows, columns] = model.preprocess.size;
        let about = Projection {
            activation,
            field: field_box(shown, y, x),
            rows,
            columns,
            channels: 3,
            scale: scale(&pixels),
            random: by == By::Untrained,
        };
        Ok(Answer::Projection(about, pixels))
    }
}

/// The file of what a search finds, one for all that it depends on.
fn kept_file<B: Backend>(
    backend: &B,
    model: &Model<B>,
    images: &Images,
    folder: &Path,
) -> Result<PathBuf> {
    let version = env!("CARGO_PKG_VERSION");
    let depends_on = [version, &fingerprint(backend, model)?, &images.fingerprint()].concat();
    Ok(folder.join(format!("search-{:016x}.json", xxh3_64(depends_on.as_bytes()))))
}

/// Keeps what a search has found, if it can be kept.
fn keep(file: Option<&Path>, found: &Searched) {
    let Some(file) = file else { return };
    let json = serde_json::to_vec(found).expect("plain data");
    if let Err(error) = write_atomic(file, &json) {
        tracing::warn!("{}: what the search has found is not kept: {error}", file.display());
    }
}

/// How far the search for strongest images is, and what it has found.
struct Search<'a> {
    chosen: &'a [Chosen],
    found: &'a Searched,
    /// Of which images.
    split: Split,
    total: usize,
    /// Why it has ended early.
    failed: Option<&'a str>,
}

impl Search<'_> {
    fn progress(&self) -> Progress {
        Progress { searched: self.found.done, total: self.total }
    }

    fn top(&self, network: &Network, layer: usize, map: usize) -> Result<Top> {
        let place = self.chosen.iter().position(|chosen| chosen.layer == layer);
        let found = place.and_then(|place| self.found.best[place].get(map));
        let peak = |Activation { image, unit }: &Activation| TopPeak {
            id: format!("{}/{image}", self.split.name()),
            y: unit.y,
            x: unit.x,
            value: unit.value,
            field: field_box(&network.layers[layer], unit.y as usize, unit.x as usize),
        };
        let peaks = found.map(|found| found.iter().map(peak).collect()).unwrap_or_default();
        let failed = self.failed.map(str::to_owned);
        Ok(Top { progress: self.progress(), peaks, failed })
    }
}
