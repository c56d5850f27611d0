//! The networks behind the page: what they make of pictures, and what single units show of them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TryRecvError;

use super::Recent;
use super::by_class::{ClassShown, Histogram, Histograms, OfClass};
use super::checkpoint::{Checkpoint, Now};
use super::pictures::Prepared;
use super::strongest::{Strongest, Top};
use crate::backend::{Backend, Peak, SeedUnit};
use crate::data::Split;
use crate::data::classes::Classes;
use crate::data::images::Images;
use crate::model::{Kind, Layer, Model, Network, Params, Projector, Rule, Seed};
use crate::picture::{Image, scale};
use crate::shape::Shape;
use crate::study::diagnose::first_filters;
use crate::study::pixels::{field_box, to_rgb};
use crate::study::preferred::{Ascent, Settings};
use crate::train::evaluate::{TestCrops, softmax};
use crate::{Error, Result};

/// Classes that are named.
const CLASSES: usize = 5;
/// From the last look at a picture on, before work in the background goes on.
const REST: Duration = Duration::from_millis(300);
/// Models and projectors that are kept beside those of the checkpoints that were named.
const MODELS: usize = 3;
const PROJECTORS: usize = 4;
/// Answers of each kind of work in the background that are kept.
const KEPT_ANSWERS: usize = 6;
/// Reasons for which work has ended early that are kept, and how long before it is tried again.
const KEPT_REASONS: usize = 64;
const TRIED_AGAIN: Duration = Duration::from_secs(30);
pub(super) const PANICKED: &str = "This could not be computed: an error of the program.";
/// Seed of the untrained weights, as in `study sanity`, and of the noise that preferred images begin with, as in
/// `study preferred`.
const UNTRAINED_SEED: u64 = 0;
const NOISE_SEED: u64 = 0;

/// A question of a page.
pub struct Job(pub(super) Box<Question>);

type Question = dyn FnOnce(&mut dyn Questions) + Send;

/// Which weights.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Which {
    /// Of which checkpoint.
    pub checkpoint: usize,
    /// Those of this version and no other.
    pub version: Option<u64>,
    /// Those after so many updates of its run, instead of those that it stands for.
    pub step: Option<u32>,
    /// Untrained ones of its network instead.
    pub untrained: bool,
}

/// Why a question has no answer.
#[derive(Debug)]
pub(super) enum Failed {
    /// The weights are others than those that were asked for.
    Replaced,
    /// Anything else.
    Error(Error),
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Failed::Error(error)
    }
}

pub(super) type Answer<T> = Result<T, Failed>;

/// A unit and how to project it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unit {
    pub layer: usize,
    pub map: usize,
    pub y: usize,
    pub x: usize,
    pub rule: Rule,
}

/// What a job can ask. Layers are indices in the network; they, maps, units and checkpoints are there.
pub(super) trait Questions {
    /// The most probable classes, and one more; none if the network is no classifier.
    fn classes(&mut self, which: Which, of: &Prepared, more: Option<usize>) -> Answer<Vec<Class>>;
    /// A layer's maps, `[maps, rows, columns]`.
    fn maps(&mut self, which: Which, of: &Prepared, layer: usize) -> Answer<(OfLayer, Vec<i8>)>;
    /// A unit's projection, `[rows, columns, 3]`; no values if it did not fire. `beside`: the picture is not the
    /// page's own, which need not be looked at again for the next question.
    fn project(
        &mut self,
        which: Which,
        of: &Prepared,
        unit: Unit,
        beside: bool,
    ) -> Answer<(Projection, Vec<f32>)>;
    /// The first layer's filters.
    fn filters(&mut self, which: Which) -> Answer<Image>;
    /// Begins to search for the strongest activations over the data set, unless it has begun.
    fn start_search(&mut self, which: Which) -> Answer<Progress>;
    /// What that has found of a map.
    fn top(&mut self, which: Which, layer: usize, map: usize) -> Answer<Top>;
    /// What a layer's maps contribute to a class of the network, so far.
    fn of_class(&mut self, which: Which, layer: usize, class: usize) -> Answer<ClassShown>;
    /// A map's largest activations in images of all classes, so far.
    fn histogram(&mut self, which: Which, layer: usize, map: usize) -> Answer<Histogram>;
    /// A map's preferred image so far, `[rows, columns, 3]`.
    fn preferred(&mut self, which: Which, layer: usize, map: usize)
    -> Answer<(Synthesised, Image)>;
}

/// How far work in the background is.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Progress {
    pub done: usize,
    /// 0 if there is nothing to do.
    pub total: usize,
    /// Why it has ended early, if it has.
    pub failed: Option<String>,
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
}

/// An image that is synthesised, as far as it has come.
#[derive(Serialize)]
pub(super) struct Synthesised {
    step: usize,
    steps: usize,
    /// Before the relu.
    activation: f32,
    rows: usize,
    columns: usize,
    channels: usize,
    failed: Option<String>,
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

/// The layers with an output of their own to look at, as the page lists them.
pub(super) fn listed<B: Backend>(model: &Model<B>) -> Vec<ListedLayer> {
    let list = |index: usize| {
        let layer = &model.network.layers[index];
        let kind = match layer.kind {
            Kind::Conv(_) => "conv",
            Kind::ConvTranspose(_) => "transposed conv",
            Kind::FullyConnected(_) => "fc",
            Kind::MaxPool(_) => "maxpool",
            Kind::Lrn(_) => "lrn",
            Kind::Relu(_) => "relu",
            Kind::Dropout(_) => "dropout",
        };
        let [vertical, horizontal] = layer.field;
        let parameters = model.params.layers[index]
            .as_ref()
            .map_or(0, |param| param.weight.shape().len() + param.bias.shape().len());
        ListedLayer {
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
        }
    };
    layers_shown(&model.network).map(list).collect()
}

/// Layers with an output of their own: a relu's is that of what is before it.
pub(super) fn layers_shown(network: &Network) -> impl Iterator<Item = usize> {
    let has_own = |layer: &Layer| !matches!(layer.kind, Kind::Relu(_) | Kind::Dropout(_));
    let layers = network.layers.iter().enumerate();
    layers.filter(move |(_, layer)| has_own(layer)).map(|(index, _)| index)
}

/// A checkpoint that the page can look at.
pub struct Opened<B: Backend> {
    /// Its name on the page.
    pub name: String,
    pub(super) checkpoint: Checkpoint,
    /// What it was when the program began, and which weights these were.
    pub model: Arc<Model<B>>,
    version: Option<u64>,
    /// Images as its network takes them: the splits that there are, the one to search first.
    pub splits: Vec<(Split, Arc<Images>)>,
    /// Where what a search finds is kept, and views for the report.
    pub folder: Option<PathBuf>,
}

impl<B: Backend> Opened<B> {
    /// One without images, which keeps nothing; `load` reads what it stands for now.
    ///
    /// # Errors
    /// If that cannot be read.
    pub fn new<E>(
        name: String,
        checkpoint: Checkpoint,
        load: impl Fn(&Path) -> Result<Model<B>, E>,
    ) -> Result<Self, E> {
        let Now { path, version } = checkpoint.now();
        let model = load(&path).or_else(|_| load(checkpoint.named()))?.into();
        Ok(Opened { name, checkpoint, model, version, splits: Vec::new(), folder: None })
    }
}

/// Which weights of a run that goes on: without what version is wanted, and which it is.
type Version = (Which, Option<u64>);

/// A projector that remembers which picture it has looked at last.
struct Looking<'a, B: Backend> {
    projector: Projector<'a, B>,
    model: Arc<Model<B>>,
    seen: Option<Arc<str>>,
}

impl<B: Backend> Looking<'_, B> {
    fn look(&mut self, picture: &Prepared) -> Result<()> {
        if self.seen.as_ref() != Some(&picture.key) {
            self.seen = None;
            let crops = TestCrops::One.of(&self.model.preprocess, 0);
            self.projector.look(&picture.square, &crops)?;
            self.seen = Some(picture.key.clone());
        }
        Ok(())
    }

    /// A layer's output, `[rows, columns, maps]`.
    fn output(&self, backend: &B, layer: usize) -> Result<Vec<f32>> {
        let output = self.projector.workspace.output(layer);
        let mut values = vec![0.0; output.shape().len()];
        backend.download(&mut values, output)?;
        Ok(values)
    }
}

/// Work that takes long, and goes on between jobs.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Work {
    Search(Version),
    OfClass(Version, usize, usize),
    Histograms(Version, usize),
    Preferred(Version, usize, usize),
}

type Load<'a, B> = dyn Fn(&Path) -> Result<Model<B>> + 'a;

/// A preferred image.
enum Preferred<B: Backend> {
    /// Being made, with these weights.
    Going(Arc<Model<B>>, Box<Ascent<B>>),
    /// With its activation.
    Done(f32, Image),
}

/// The networks behind a page, and the work that goes on in the background.
pub struct Engine<'a, B: Backend> {
    backend: &'a B,
    opened: &'a [Opened<B>],
    data_classes: Option<Classes>,
    load: Box<Load<'a, B>>,
    models: Recent<Version, Arc<Model<B>>>,
    /// With whether they are for pictures beside the page's.
    looking: Recent<(Version, bool), Looking<'a, B>>,
    searches: Recent<Version, Strongest<'a, B>>,
    of_classes: Recent<(Version, usize, usize), OfClass<'a, B>>,
    histograms: Recent<(Version, usize), Histograms<'a, B>>,
    preferred: Recent<(Version, usize, usize), Preferred<B>>,
    /// When a picture was last looked at for the page.
    looked: Instant,
    /// What is to be done, the next last.
    work: Vec<Work>,
    /// Why work has ended early, and when.
    failed: Recent<Work, (String, Instant)>,
}

impl<'a, B: Backend> Engine<'a, B> {
    /// For these checkpoints, of which there is at least one; `load` reads another of one's run.
    pub fn new(
        backend: &'a B,
        opened: &'a [Opened<B>],
        data_classes: Option<Classes>,
        load: impl Fn(&Path) -> Result<Model<B>> + 'a,
    ) -> Self {
        let count = opened.len();
        let mut models = Recent::new(count + MODELS);
        for (checkpoint, Opened { version, model, .. }) in opened.iter().enumerate() {
            let which = Which { checkpoint, ..Which::default() };
            models.put((which, *version), model.clone());
        }
        Engine {
            backend,
            opened,
            data_classes,
            load: Box::new(load),
            models,
            looking: Recent::new(count + PROJECTORS),
            searches: Recent::new(count),
            of_classes: Recent::new(KEPT_ANSWERS),
            histograms: Recent::new(KEPT_ANSWERS),
            preferred: Recent::new(KEPT_ANSWERS),
            looked: Instant::now(),
            work: Vec::new(),
            failed: Recent::new(KEPT_REASONS),
        }
    }

    /// Answers until nobody can ask any more. Jobs come first: while they do, what takes long rests.
    pub fn run(mut self, mut jobs: mpsc::Receiver<Job>) {
        loop {
            let job = match self.work.is_empty() {
                true => jobs.blocking_recv().ok_or(TryRecvError::Disconnected),
                false => jobs.try_recv(),
            };
            match job {
                Ok(job) => self.answer(job),
                Err(TryRecvError::Disconnected) => return,
                Err(TryRecvError::Empty) if self.looked.elapsed() < REST => {
                    std::thread::sleep(REST / 100);
                }
                Err(TryRecvError::Empty) => self.go_on(),
            }
        }
    }

    /// Answers a job. What panics is an error of this job alone, whose asker is then told so.
    fn answer(&mut self, Job(question): Job) {
        if catch_unwind(AssertUnwindSafe(|| question(self))).is_err() {
            self.forget();
        }
    }

    /// Forgets all that a panic may have left half done.
    fn forget(&mut self) {
        self.looking.kept.clear();
        self.searches.kept.clear();
        self.of_classes.kept.clear();
        self.histograms.kept.clear();
        self.preferred.kept.clear();
        for work in std::mem::take(&mut self.work) {
            self.failed.put(work, (PANICKED.into(), Instant::now()));
        }
    }

    /// Forgets what was made with weights that these have taken the place of.
    fn forget_replaced(&mut self, version: Version) {
        let stays = |other: &Version| other.0 != version.0 || *other == version;
        self.models.kept.retain(|(other, _)| stays(other));
        self.looking.kept.retain(|((other, _), _)| stays(other));
        self.searches.kept.retain(|(other, _)| stays(other));
        self.of_classes.kept.retain(|((other, ..), _)| stays(other));
        self.histograms.kept.retain(|((other, _), _)| stays(other));
        self.preferred.kept.retain(|((other, ..), _)| stays(other));
    }

    /// Does a little of what is to be done.
    fn go_on(&mut self) {
        let Some(&work) = self.work.last() else { return };
        let done = catch_unwind(AssertUnwindSafe(|| self.go_on_with(work)));
        let done = done.unwrap_or_else(|_| {
            self.forget();
            Err(Error::Data(PANICKED.into()))
        });
        if !matches!(done, Ok(true)) {
            self.work.retain(|other| *other != work);
        }
        if let Err(error) = done {
            self.failed.put(work, (error.to_string(), Instant::now()));
        }
    }

    /// Whether there is more of it to do.
    fn go_on_with(&mut self, work: Work) -> Result<bool> {
        let backend = self.backend;
        match work {
            Work::Search(version) => {
                self.searches.get(&version).map_or(Ok(false), |search| search.go_on(backend))
            }
            Work::OfClass(version, layer, class) => {
                let key = (version, layer, class);
                self.of_classes.get(&key).map_or(Ok(false), |of_class| of_class.go_on(backend))
            }
            Work::Histograms(version, layer) => {
                let key = (version, layer);
                self.histograms.get(&key).map_or(Ok(false), |found| found.go_on(backend))
            }
            Work::Preferred(version, layer, map) => {
                let key = (version, layer, map);
                let Some(preferred) = self.preferred.get(&key) else { return Ok(false) };
                let Preferred::Going(model, ascent) = preferred else { return Ok(false) };
                ascent.step(backend, &model.params)?;
                if ascent.steps() < Settings::default().steps {
                    return Ok(true);
                }
                let activation = ascent.activation(backend, &model.params)?;
                *preferred = Preferred::Done(activation, ascent.picture());
                Ok(false)
            }
        }
    }

    /// Puts work before all other.
    fn begin(&mut self, work: Work) {
        self.failed.kept.retain(|(other, _)| *other != work);
        self.work.retain(|other| *other != work);
        self.work.push(work);
    }

    fn failed(&mut self, work: &Work) -> Option<String> {
        Some(self.failed.get(work)?.0.clone())
    }

    /// Whether work is to be begun, of which `is_there` says whether something has been found. What has failed is begun
    /// again after a while.
    ///
    /// # Errors
    /// Why it failed, if nothing is there and that was just now.
    fn is_to_begin(&mut self, work: &Work, is_there: bool) -> Result<bool> {
        match self.failed.get(work) {
            None => Ok(!is_there),
            Some((_, when)) if when.elapsed() > TRIED_AGAIN => Ok(true),
            Some(_) if is_there => Ok(false),
            Some((reason, _)) => Err(Error::Data(reason.clone())),
        }
    }

    /// The weights that are meant, and which they are now.
    fn model(&mut self, asked: Which) -> Answer<(Version, Arc<Model<B>>)> {
        let which = Which { version: None, ..asked };
        let Opened { checkpoint, model: first, .. } = &self.opened[which.checkpoint];
        let now = match which {
            Which { untrained: true, .. } => Now::default(),
            Which { step: Some(step), .. } => checkpoint.at(step).ok_or_else(|| {
                Error::Data(format!("The run has no checkpoint after {step} updates any more."))
            })?,
            Which { step: None, .. } => checkpoint.now(),
        };
        if asked.version.is_some_and(|version| now.version != Some(version)) {
            return Err(Failed::Replaced);
        }
        let version = (which, now.version);
        if let Some(model) = self.models.get(&version) {
            return Ok((version, model.clone()));
        }
        self.forget_replaced(version);
        let model = match which.untrained {
            true => Model {
                params: Params::untrained(self.backend, &first.network, UNTRAINED_SEED)?,
                network: first.network.clone(),
                preprocess: first.preprocess.clone(),
                classes: first.classes.clone(),
            },
            false => (self.load)(&now.path).or_else(|error| match which.step {
                Some(_) => Err(error),
                None => (self.load)(checkpoint.named()),
            })?,
        };
        // But for the recipe, which may have changed: a run can be gone on with for more epochs.
        let about = |model: &Model<B>| {
            let Model { network, preprocess, classes, .. } = model;
            (network.architecture.layers.clone(), preprocess.clone(), classes.clone())
        };
        if about(&model) != about(first) {
            let sentence = "There is another network in this folder now, or one with other classes or another mean \
                            image: start the explorer again.";
            return Err(Error::Data(sentence.into()).into());
        }
        let model = self.models.put(version, model.into()).clone();
        Ok((version, model))
    }

    /// The model, having looked at a picture.
    fn look(
        &mut self,
        which: Which,
        beside: bool,
        picture: &Prepared,
    ) -> Answer<&mut Looking<'a, B>> {
        let (version, model) = self.model(which)?;
        let key = (version, beside);
        if self.looking.get(&key).is_none() {
            let projector = Projector::shared(self.backend, model.clone(), 1, 1)?;
            self.looking.put(key, Looking { projector, model, seen: None });
        }
        let looking = self.looking.get(&key).expect("put above");
        looking.look(picture)?;
        self.looked = Instant::now();
        Ok(looking)
    }

    /// The split that is searched, of a checkpoint.
    fn searched(&self, checkpoint: usize) -> Result<&'a (Split, Arc<Images>)> {
        self.opened[checkpoint].splits.first().ok_or_else(|| {
            Error::Data("There are no images to look at: start the explorer with --data.".into())
        })
    }

    /// The search with a checkpoint's weights, with what has been found before; the work that it is.
    fn search(&mut self, which: Which) -> Answer<(Work, &mut Strongest<'a, B>)> {
        let checkpoint = which.checkpoint;
        let (version, model) = self.model(which)?;
        if self.searches.get(&version).is_none() {
            let images = self.searched(checkpoint)?.clone();
            let Opened { folder, checkpoint, .. } = &self.opened[checkpoint];
            // Of weights that will be replaced nothing is kept.
            let folder = folder.as_deref().filter(|_| !checkpoint.is_in_training());
            let search = Strongest::new(self.backend, model, images, folder)?;
            self.searches.put(version, search);
        }
        let work = Work::Search(version);
        Ok((work, self.searches.get(&version).expect("put above")))
    }

    /// The network's classes as the data number them.
    fn data_class(&self, model: &Model<B>, class: usize) -> Option<u32> {
        let data = self.data_classes.as_ref()?;
        let names = [model.classes.folders(), Some(&model.classes.names[..])];
        names.into_iter().flatten().find_map(|names| Some(data.position(names.get(class)?)? as u32))
    }
}

impl<B: Backend> Questions for Engine<'_, B> {
    fn classes(&mut self, which: Which, of: &Prepared, more: Option<usize>) -> Answer<Vec<Class>> {
        let classes = &self.opened[which.checkpoint].model.classes;
        if classes.is_empty() {
            return Ok(Vec::new());
        }
        let backend = self.backend;
        let looking = self.look(which, false, of)?;
        let logits = looking.projector.workspace.logits();
        let mut values = vec![0.0; logits.shape().len()];
        backend.download(&mut values, logits)?;
        let mut all: Vec<(usize, f64)> = softmax(&values).enumerate().collect();
        all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let others = all.iter().skip(CLASSES).filter(|(class, _)| Some(*class) == more);
        let shown = all.iter().take(CLASSES).chain(others);
        let named = shown.filter_map(|&(class, probability)| {
            Some(Class { class, name: classes.names.get(class)?.clone(), probability })
        });
        Ok(named.collect())
    }

    fn maps(&mut self, which: Which, of: &Prepared, layer: usize) -> Answer<(OfLayer, Vec<i8>)> {
        let backend = self.backend;
        let looking = self.look(which, false, of)?;
        let values = looking.output(backend, layer)?;
        let peaks = looking.projector.peaks(layer)?;
        let shown = &looking.model.network.layers[layer];
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

    fn project(
        &mut self,
        which: Which,
        of: &Prepared,
        Unit { layer, map, y, x, rule }: Unit,
        beside: bool,
    ) -> Answer<(Projection, Vec<f32>)> {
        let backend = self.backend;
        let looking = self.look(which, beside, of)?;
        let values = looking.output(backend, layer)?;
        let Looking { projector, model, .. } = looking;
        let shown = &model.network.layers[layer];
        let activation = values[(y * shown.output.w + x) * shown.output.c + map];
        let mut pixels = Vec::new();
        if activation > 0.0 {
            let seed = SeedUnit { map: map as u32, y: y as u32, x: x as u32, value: activation };
            projector.project(layer, &[Seed { image: 0, unit: seed }], rule, |_, values| {
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
        };
        Ok((about, pixels))
    }

    fn filters(&mut self, which: Which) -> Answer<Image> {
        let (_, model) = self.model(which)?;
        let found = first_filters(self.backend, &model)?;
        let (kernel, filters) = found.ok_or_else(|| {
            Error::Data(
                "The first layer has no filters that see all of an image's channels.".into(),
            )
        })?;
        Ok(Image::of_filters(&filters, kernel, false))
    }

    fn start_search(&mut self, which: Which) -> Answer<Progress> {
        let (work, search) = self.search(which)?;
        let progress = search.progress();
        if progress.done < progress.total && self.is_to_begin(&work, false)? {
            self.begin(work);
        }
        Ok(progress)
    }

    fn top(&mut self, which: Which, layer: usize, map: usize) -> Answer<Top> {
        if self.searched(which.checkpoint).is_err() {
            return Ok(Top::default());
        }
        let (work, search) = self.search(which)?;
        let mut top = search.top(layer, map);
        top.progress.failed = self.failed(&work);
        Ok(top)
    }

    fn of_class(&mut self, which: Which, layer: usize, class: usize) -> Answer<ClassShown> {
        let (version, model) = self.model(which)?;
        let key = (version, layer, class);
        let (split, images) = self.searched(which.checkpoint)?;
        let work = Work::OfClass(version, layer, class);
        let is_there = self.of_classes.get(&key).is_some();
        if self.is_to_begin(&work, is_there)? {
            let called = self.data_class(&model, class).ok_or_else(|| {
                let name = model.classes.names.get(class).map_or("this class", String::as_str);
                Error::Data(format!("The data set has no images that are called {name}."))
            })?;
            let of_class = OfClass::new(model, images.clone(), layer, class, called);
            if of_class.progress().total == 0 {
                let names = &self.data_classes.as_ref().expect("it has this class").names;
                let sentence =
                    format!("{} has no image of {}.", split.name(), names[called as usize]);
                return Err(Error::Data(sentence).into());
            }
            self.of_classes.put(key, of_class);
            self.begin(work);
        }
        let mut shown = self.of_classes.get(&key).expect("put above").shown(split.name());
        shown.progress.failed = self.failed(&work);
        Ok(shown)
    }

    fn histogram(&mut self, which: Which, layer: usize, map: usize) -> Answer<Histogram> {
        let (version, model) = self.model(which)?;
        let key = (version, layer);
        let (_, images) = self.searched(which.checkpoint)?;
        let work = Work::Histograms(version, layer);
        let is_there = self.histograms.get(&key).is_some();
        if self.is_to_begin(&work, is_there)? {
            let classes = self.data_classes.as_ref().map_or(0, Classes::len);
            let histograms = Histograms::new(model, images.clone(), layer, classes);
            self.histograms.put(key, histograms);
            self.begin(work);
        }
        let found = self.histograms.get(&key).expect("put above");
        let mut shown = found.shown(map, self.data_classes.as_ref());
        shown.progress.failed = self.failed(&work);
        Ok(shown)
    }

    fn preferred(
        &mut self,
        which: Which,
        layer: usize,
        map: usize,
    ) -> Answer<(Synthesised, Image)> {
        let (version, model) = self.model(which)?;
        let (backend, settings) = (self.backend, Settings::default());
        let key = (version, layer, map);
        let work = Work::Preferred(version, layer, map);
        let is_there = self.preferred.get(&key).is_some();
        if self.is_to_begin(&work, is_there)? {
            let Model { network, preprocess, .. } = model.as_ref();
            let ascent =
                Ascent::new(backend, network, preprocess, layer, map, &settings, NOISE_SEED)?;
            self.preferred.put(key, Preferred::Going(model, ascent.into()));
            self.begin(work);
        }
        let failed = self.failed(&work);
        let (step, activation, picture) = match self.preferred.get(&key).expect("put above") {
            Preferred::Done(activation, picture) => (settings.steps, *activation, picture.clone()),
            Preferred::Going(model, ascent) => {
                let activation = ascent.activation(backend, &model.params)?;
                (ascent.steps(), activation, ascent.picture())
            }
        };
        let about = Synthesised {
            step,
            steps: settings.steps,
            activation,
            rows: picture.height,
            columns: picture.width,
            channels: 3,
            failed,
        };
        Ok((about, picture))
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;
    use crate::backend::cpu::CpuBackend;
    use crate::model::Architecture;

    #[test]
    fn what_panics_is_an_error_of_its_own_job_alone() {
        let backend = CpuBackend::new(Some(1)).unwrap();
        let model = || {
            let architecture = Architecture::find("zfnet-mini").unwrap();
            let preprocess = architecture.input.preprocess(vec![128.0; 3]);
            let network = Network::new(architecture).unwrap();
            let params = Params::untrained(&backend, &network, 1).unwrap();
            Model { network, params, preprocess, classes: Classes::unknown(10) }
        };
        let square = vec![90; model().preprocess.bytes()];
        let checkpoint = Checkpoint::new(Path::new("network"), None);
        let opened =
            [Opened::new("network".into(), checkpoint, |_| Ok::<_, Error>(model())).unwrap()];
        let never = |_: &Path| -> Result<Model<CpuBackend>> { unreachable!("it is loaded") };
        let engine = Engine::new(&backend, &opened, None, never);

        let picture = Prepared { key: "grey".into(), square: square.into() };
        let (sender, jobs) = mpsc::channel(4);
        let answers: Vec<_> = [false, true, false]
            .into_iter()
            .map(|panics| {
                let (reply, answer) = oneshot::channel();
                let picture = picture.clone();
                let question = move |networks: &mut dyn Questions| {
                    let classes = networks.classes(Which::default(), &picture, None).unwrap();
                    assert!(!panics, "this is meant to panic");
                    reply.send(classes.len()).unwrap();
                };
                assert!(sender.try_send(Job(Box::new(question))).is_ok(), "there is room for four");
                answer
            })
            .collect();
        drop(sender);
        engine.run(jobs);
        let answers: Vec<Option<usize>> =
            answers.into_iter().map(|answer| answer.blocking_recv().ok()).collect();
        assert_eq!(answers, [Some(CLASSES), None, Some(CLASSES)]);
    }
}
