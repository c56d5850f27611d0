//! The network behind the page: what it makes of pictures, and what single units show of them.

use std::cell::OnceCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Serialize, Serializer};
use tokio::sync::{mpsc, oneshot};

use super::pictures::Prepared;
use crate::backend::{Backend, Peak, SeedUnit};
use crate::data::images::Images;
use crate::model::{Kind, Layer, Model, Network, Params, Preprocess, Projector, Rule, Seed};
use crate::picture::scale;
use crate::shape::Shape;
use crate::study::Session;
use crate::study::parts::Parts;
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
/// What is kept of it.
const SEARCH: &str = "search";
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
    /// By untrained weights.
    pub untrained: bool,
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

/// The maps of a layer, whose values are given as `scale / 127` times a signed byte.
#[derive(Serialize)]
pub(super) struct OfLayer {
    layer: String,
    maps: usize,
    rows: usize,
    columns: usize,
    scale: f32,
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
    pub peaks: Vec<TopPeak>,
}

#[derive(Serialize)]
pub(super) struct TopPeak {
    #[serde(serialize_with = "as_address")]
    pub id: u32,
    pub y: u32,
    pub x: u32,
    value: f32,
    pub field: [i64; 4],
}

fn as_address<S: Serializer>(image: &u32, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("val/{image}"))
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

/// A network that looks at one picture at a time, and remembers which.
struct Eye<'a, B: Backend> {
    projector: Projector<'a, B>,
    seen: Option<Arc<str>>,
}

impl<'a, B: Backend> Eye<'a, B> {
    fn new(backend: &'a B, model: &'a Model<B>, params: &'a Params<B>) -> Result<Self> {
        let Model { network, preprocess, .. } = model;
        let projector = Projector::new(backend, network, params, preprocess, 1, 1)?;
        Ok(Eye { projector, seen: None })
    }

    fn look(&mut self, preprocess: &Preprocess, picture: &Prepared) -> Result<()> {
        if self.seen.as_ref() != Some(&picture.key) {
            self.seen = None;
            self.projector.look(&picture.square, &TestCrops::One.of(preprocess, 0))?;
            self.seen = Some(picture.key.clone());
        }
        Ok(())
    }
}

/// The network behind a page, and the search for what excites it most.
pub struct Engine<'a, B: Backend> {
    backend: &'a B,
    model: &'a Model<B>,
    trained: Eye<'a, B>,
    untrained: &'a OnceCell<Params<B>>,
    by_untrained: Option<Eye<'a, B>>,
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
        let trained = Eye::new(backend, model, &model.params)?;
        Ok(Engine { backend, model, trained, untrained, by_untrained: None })
    }

    /// Answers until nobody can ask any more. When it is first asked for the strongest activations, it searches
    /// `images` for them, and answers other jobs between its batches; what it has found is kept in the folder
    /// `kept_in`.
    ///
    /// # Errors
    /// If the backend is out of memory, or the folder is none that can be written.
    pub fn run(
        mut self,
        mut jobs: mpsc::Receiver<Job>,
        images: Option<&Arc<Images>>,
        kept_in: Option<&Path>,
    ) -> Result<()> {
        let (backend, model) = (self.backend, self.model);
        let Model { network, params, preprocess, .. } = model;
        let all = |layer: ListedLayer| Maps::First(usize::MAX).of(network, layer.index);
        let chosen: Vec<Chosen> = listed(model).into_iter().map(all).collect();
        let mut session = Session::new(backend);
        if let Some(folder) = kept_in {
            session = session.kept_in(folder);
        }
        let fingerprint = images.map(|images| images.fingerprint());
        let parts = session.parts(&[model], &(fingerprint, &chosen))?;
        let total = images.map_or(0, |images| images.len());
        let mut found = parts.get(SEARCH).unwrap_or_else(|| Searched::nothing(&chosen));
        let mut failed: Option<String> = None;
        while let Some(job) = jobs.blocking_recv() {
            let is_searching = matches!(job.ask, Ask::Top { .. });
            let search_so_far =
                Search { chosen: &chosen, found: &found, total, failed: failed.as_deref() };
            self.answer(&search_so_far, job);
            let is_open = found.done < total && failed.is_none();
            let Some(images) = images.filter(|_| is_searching && is_open) else { continue };
            let mut projector =
                Projector::new(backend, network, params, preprocess, SEARCHED_AT_ONCE, 1)?;
            let mut kept = Instant::now();
            let between = |found: &Searched| {
                while let Ok(job) = jobs.try_recv() {
                    self.answer(&Search { chosen: &chosen, found, total, failed: None }, job);
                }
                if kept.elapsed() > KEEP {
                    keep(&parts, found);
                    kept = Instant::now();
                }
                Ok(())
            };
            let (at_once, workers) = (SEARCHED_AT_ONCE, 1);
            let searched = search(
                &mut projector,
                model,
                images,
                &chosen,
                PEAKS,
                workers,
                at_once,
                &mut found,
                between,
            );
            failed = searched.err().map(|error| error.to_string());
            keep(&parts, &found);
        }
        Ok(())
    }

    /// Answers a job, if somebody still waits for it. What panics is an error of this job alone.
    fn answer(&mut self, search: &Search<'_>, Job { ask, reply }: Job) {
        if reply.is_closed() {
            return;
        }
        let answer = catch_unwind(AssertUnwindSafe(|| self.answer_to(search, ask)));
        let answer = answer.unwrap_or_else(|_| {
            (self.trained.seen, self.by_untrained) = (None, None);
            Err(Error::Data("this could not be computed: an error of the program".into()))
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
        let logits = self.trained.projector.workspace.logits();
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
    fn output(eye: &Eye<'_, B>, backend: &B, layer: usize) -> Result<Vec<f32>> {
        let output = eye.projector.workspace.output(layer);
        let mut values = vec![0.0; output.shape().len()];
        backend.download(&mut values, output)?;
        Ok(values)
    }

    fn maps(&mut self, picture: &Prepared, layer: usize) -> Result<(OfLayer, Vec<i8>)> {
        self.trained.look(&self.model.preprocess, picture)?;
        let values = Self::output(&self.trained, self.backend, layer)?;
        let peaks = self.trained.projector.peaks(layer)?;
        let shown = &self.model.network.layers[layer];
        let Shape { h, w, c, .. } = shown.output;
        let finite = values.iter().map(|v| v.abs()).filter(|v| v.is_finite());
        let scale = finite.fold(0.0, f32::max);
        let byte = |value: f32| match scale {
            0.0 => 0,
            scale => (value / scale * 127.0).round() as i8, // saturates
        };
        let by_map = (0..c).flat_map(|map| values[map..].iter().step_by(c).map(|v| byte(*v)));
        let bytes: Vec<i8> = by_map.collect();
        let peak = |Peak { value, position }: &Peak| {
            (*value, *position as usize / w, *position as usize % w)
        };
        let peaks = peaks.iter().map(peak).collect();
        let about =
            OfLayer { layer: shown.name.clone(), maps: c, rows: h, columns: w, scale, peaks };
        Ok((about, bytes))
    }

    fn project(&mut self, picture: &Prepared, unit: Asked) -> Result<Answer> {
        let Asked { layer, map, y, x, rule, untrained } = unit;
        let model = self.model;
        let eye = match untrained {
            false => &mut self.trained,
            true => {
                if self.untrained.get().is_none() {
                    let drawn = Params::untrained(self.backend, &model.network, UNTRAINED_SEED)?;
                    let _ = self.untrained.set(drawn); // which was empty
                }
                let params = self.untrained.get().expect("set above");
                match &mut self.by_untrained {
                    Some(eye) => eye,
                    none => none.insert(Eye::new(self.backend, model, params)?),
                }
            }
        };
        eye.look(&model.preprocess, picture)?;
        let shown = &model.network.layers[layer];
        let values = Self::output(eye, self.backend, layer)?;
        let activation = values[(y * shown.output.w + x) * shown.output.c + map];
        let mut pixels = Vec::new();
        if activation > 0.0 {
            let seed = SeedUnit { map: map as u32, y: y as u32, x: x as u32, value: activation };
            let seed = Seed { image: 0, unit: seed };
            eye.projector.project(layer, &[seed], rule, |_, values| {
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
            random: untrained,
        };
        Ok(Answer::Projection(about, pixels))
    }
}

/// Keeps what a search has found, if it can be kept.
fn keep(parts: &Parts, found: &Searched) {
    if let Err(error) = parts.put(SEARCH, found) {
        tracing::warn!("what the search has found is not kept: {error}");
    }
}

/// How far the search for strongest images is, and what it has found.
struct Search<'a> {
    chosen: &'a [Chosen],
    found: &'a Searched,
    total: usize,
    /// Why it has ended early.
    failed: Option<&'a str>,
}

impl Search<'_> {
    fn progress(&self) -> Progress {
        Progress { searched: self.found.done, total: self.total }
    }

    fn top(&self, network: &Network, layer: usize, map: usize) -> Result<Top> {
        if let Some(reason) = self.failed {
            return Err(Error::Data(reason.into()));
        }
        let place = self.chosen.iter().position(|chosen| chosen.layer == layer);
        let found = place.and_then(|place| self.found.best[place].get(map));
        let peak = |Activation { image, unit }: &Activation| TopPeak {
            id: *image,
            y: unit.y,
            x: unit.x,
            value: unit.value,
            field: field_box(&network.layers[layer], unit.y as usize, unit.x as usize),
        };
        let peaks = found.map(|found| found.iter().map(peak).collect()).unwrap_or_default();
        Ok(Top { progress: self.progress(), peaks })
    }
}
