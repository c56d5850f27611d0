//! The paper's Table 3: a network with layers taken out or changed in width, each variant trained
//! with the same budget.
//!
//! ```toml
//! base = "zfnet-mini"                    # a network's name, or a file beside this one
//! paper = { network = "ZFNet", train = 33.1, val = 38.4, top5 = 16.5 }
//! note = "said under the table"
//! [recipe]                               # changes of the base's recipe, for all
//! epochs = 10
//! [[variant]]
//! name = "without layers 3, 4"
//! drop = ["conv3", "conv4"]              # each with the relu and dropout right behind it
//! paper = { network = "AlexNet", train = 41.8, val = 45.4, top5 = 22.1 }
//! [[variant]]
//! name = "fully connected half as wide"
//! channels = { fc6 = 256, fc7 = 256 }    # new numbers of maps or outputs
//! ```
//!
//! ```text
//! OUT/runs/SLUG/               the run of a row: `base`, or the variant's name made fit for a path
//! OUT/runs/SLUG/variant.json   what it was begun with, to be compared when it goes on
//! OUT/seed-SEED/SLUG/          the same of every seed but the first
//! ```
//!
//! Every run is one that `zfnet train` could have made. Errors are those of its last weights with the
//! centre crop: no epoch is chosen by its validation error.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::ensemble::{Candidate, Errors, error_rates};
use super::numbers::mean;
use super::{Facts, Session, Splits, Study};
use crate::backend::{Backend, Precision};
use crate::data::classes::Classes;
use crate::disk::{is_device_name, write_atomic};
use crate::import::ExternalConfig;
use crate::model::{Architecture, ConvSpec, ConvTransposeSpec, FcSpec, Kind, LayerSpec, Network};
use crate::ranks::Ranks;
use crate::train::checkpoint::load_model;
use crate::train::evaluate::TestCrops;
use crate::train::{self, Job, Outcome, Recipe, train};
use crate::{Error, Result};
use zfnet_core::text;

/// See [`super::STUDIES`].
pub const STUDY: Study = Study {
    name: "ablation",
    shows: "layers taken out or changed",
    paper: "Table 3",
    of_one_run: false,
};

/// What a run was begun with, in its folder.
const BEGUN: &str = "variant.json";
/// The row of the unchanged network: its folder.
const BASE: &str = "base";
/// Checkpoints of a run that are kept: one to fall back to.
const KEEP: usize = 2;
/// An interruption that saves nothing (a crash) loses no more than this.
const SAVE_INTERVAL: Duration = Duration::from_secs(600);
/// Longest name of a run's folder.
const MAX_SLUG: usize = 64;

/// What to train: the base first, then the variants in the file's order.
#[derive(Clone, Debug, PartialEq)]
pub struct Variants {
    /// As many as are trained.
    pub rows: Vec<VariantPlan>,
    /// The file's note.
    pub note: String,
}

/// One network to train.
#[derive(Clone, Debug, PartialEq)]
pub struct VariantPlan {
    /// What it is called in the table.
    pub name: String,
    /// The name of its run's folder.
    pub slug: String,
    /// The network, and the recipe that is the same for all.
    pub architecture: Architecture,
    /// What the paper found for the like.
    pub paper: Option<Paper>,
}

/// A row of the paper's table, in per cent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Paper {
    /// Which network the paper changed.
    #[serde(default)]
    pub network: String,
    /// Top-1 error on the training set.
    pub train: f64,
    /// Top-1 error on the validation set.
    pub val: f64,
    /// Top-5 error on the validation set.
    pub top5: f64,
}

/// The file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    base: String,
    paper: Option<Paper>,
    #[serde(default)]
    note: String,
    #[serde(default)]
    recipe: toml::Table,
    #[serde(default)]
    variant: Vec<Variant>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Variant {
    name: String,
    #[serde(default)]
    drop: Vec<String>,
    #[serde(default)]
    channels: BTreeMap<String, usize>,
    paper: Option<Paper>,
}

/// Reads a file of variants and checks that every network of it fits.
///
/// # Errors
/// If the file cannot be read, has a key or a layer that is not known, two variants of one name, or
/// one that does not fit: which one, what was expected, what was found.
pub fn read(path: &Path) -> Result<Variants> {
    let text = text::read(path)?;
    let config: Config =
        toml::from_str(&text).map_err(|error| Error::file(path, error.to_string()))?;
    build(config, path).map_err(|error| error.in_file(path))
}

fn build(config: Config, path: &Path) -> Result<Variants> {
    let Config { base, paper, note, recipe, variant: variants } = config;
    let is_built_in = Architecture::presets().iter().any(|preset| preset.name == base);
    let beside = path.with_file_name(&base);
    let base = if is_built_in { base.into() } else { beside.to_string_lossy() };
    let mut base = Architecture::find(&base)?;
    base.recipe = changed(&base.recipe, recipe)?;
    let network = Network::new(base.clone())?;
    if variants.is_empty() {
        return Err(Error::Network("expected at least one [[variant]], found none".into()));
    }
    let name = format!("{} (base)", base.name);
    let mut rows = vec![VariantPlan { name, slug: BASE.into(), architecture: base, paper }];
    for variant in variants {
        let name = variant.name.clone();
        let row = vary(&network, variant).and_then(|row| {
            Network::new(row.architecture.clone())?;
            match rows.iter().find(|other| other.slug == row.slug) {
                Some(other) => Err(Error::Network(format!(
                    "its folder would be that of `{}`, runs/{}: expected a name of its own",
                    other.name, other.slug
                ))),
                None => Ok(row),
            }
        });
        rows.push(row.map_err(|error| of_variant(&name, error))?);
    }
    for VariantPlan { name, paper, .. } in &rows {
        for error in paper.iter().flat_map(|paper| [paper.train, paper.val, paper.top5]) {
            if !(0.0..=100.0).contains(&error) {
                let reason =
                    format!("`{name}`: expected errors of the paper in per cent, found {error}");
                return Err(Error::Network(reason));
            }
        }
    }
    Ok(Variants { rows, note })
}

/// Says which variant an error is about.
fn of_variant(name: &str, error: Error) -> Error {
    match error {
        Error::Network(reason) => Error::Network(format!("variant `{name}`: {reason}")),
        Error::UnknownLayer { name: layer, known } => Error::Network(format!(
            "variant `{name}`: no layer `{layer}`: expected one of {}",
            known.join(", ")
        )),
        other => other,
    }
}

/// A recipe with the values of a table in the place of its own.
fn changed(recipe: &Recipe, mut changes: toml::Table) -> Result<Recipe> {
    let mut table = toml::Table::try_from(recipe).expect("plain data");
    for (former, name) in Recipe::FORMER_NAMES {
        if let Some(value) = changes.remove(former)
            && changes.insert(name.into(), value).is_some()
        {
            return Err(Error::Network(format!(
                "[recipe]: expected `{name}`, or `{former}` as it was called before, found both"
            )));
        }
    }
    table.extend(changes);
    table.try_into().map_err(|error| Error::Network(format!("[recipe]: {error}")))
}

/// The base with a variant's changes. Layers are called as in the base, also those that are named by
/// their number.
fn vary(base: &Network, variant: Variant) -> Result<VariantPlan> {
    let Variant { name, drop, channels, paper } = variant;
    let wrong = |reason: String| Err(Error::Network(reason));
    let last = base.layers.len() - 1;
    let mut layers = base.architecture.layers.clone();
    layers.iter_mut().zip(&base.layers).for_each(|(spec, layer)| spec.rename(&layer.name));
    let unchanged = layers.clone();
    let mut dropped = vec![false; layers.len()];
    for name in &drop {
        let at = base.layer(name)?;
        if at == last {
            return wrong(format!("layer {name} gives the classes: it cannot be dropped"));
        }
        let has_weights = base.layers[at].convolution().is_some();
        let goes_along =
            |index: &usize| matches!(base.layers[*index].kind, Kind::Relu(_) | Kind::Dropout(_));
        let behind = (at + 1..last).take_while(goes_along).count();
        dropped[at..=at + if has_weights { behind } else { 0 }].fill(true);
    }
    for (name, count) in channels {
        let at = base.layer(&name)?;
        if dropped[at] {
            return wrong(format!("layer {name} is dropped: expected no channels for it"));
        }
        if count == 0 {
            return wrong(format!("layer {name}: expected at least one channel, found 0"));
        }
        match &mut layers[at] {
            LayerSpec::Fc(_) if at == last => {
                return wrong(format!(
                    "layer {name} has one output for each class: expected no channels for it"
                ));
            }
            LayerSpec::Conv(ConvSpec { channels, .. })
            | LayerSpec::ConvTranspose(ConvTransposeSpec { channels, .. }) => {
                *channels = count;
            }
            LayerSpec::Fc(FcSpec { outputs, .. }) => *outputs = Some(count),
            _ => {
                return wrong(format!(
                    "layer {name} has no channels of its own: expected a convolution or a fully \
                     connected layer"
                ));
            }
        }
    }
    let mut is_dropped = dropped.into_iter();
    layers.retain(|_| !is_dropped.next().expect("as many as layers"));
    if layers == unchanged {
        return wrong(
            "is the base: expected layers to `drop` or other numbers of `channels`".into(),
        );
    }
    let slug = slug(&name);
    if slug.is_empty() {
        return wrong("expected a name with letters from a to z or digits".into());
    }
    let architecture = Architecture {
        name: format!("{}, {name}", base.architecture.name),
        description: String::new(),
        layers,
        ..base.architecture.clone()
    };
    Ok(VariantPlan { name, slug, architecture, paper })
}

/// A name made fit for a path.
fn slug(name: &str) -> String {
    let fit = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { ' ' };
    let words: String = name.chars().map(fit).collect();
    let mut slug = words.split_whitespace().collect::<Vec<_>>().join("-");
    slug.truncate(MAX_SLUG);
    if is_device_name(&slug) {
        slug.push('-');
    }
    slug
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Ablation {
    /// What it was made with.
    pub facts: Facts,
    /// The unchanged network, for the images' number of classes; the recipe is that of all.
    pub base: Architecture,
    /// Seed of the first run of each row; the others follow it.
    pub seed: u64,
    /// How activations were stored.
    pub precision: Precision,
    /// The note of the file of variants.
    pub note: String,
    /// The base, then the variants.
    pub rows: Vec<TrainedVariant>,
}

/// What happens, for whoever shows it.
pub enum Event<'a> {
    /// A row's training begins, goes on, or turns out to be finished.
    Row {
        /// Its place, from 0, among the rows of all seeds.
        index: usize,
        /// How many there are.
        rows: usize,
        /// Its name.
        name: &'a str,
        /// Its seed.
        seed: u64,
        /// Share of the whole work that it takes.
        share: f64,
    },
    /// In the training of that row.
    Training(train::Event<'a>),
    /// Its errors are being measured: images done, of how many.
    Measuring(usize, usize),
    /// It is finished.
    Finished(&'a TrainedVariant, &'a TrainedRun),
}

/// A finished row.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TrainedVariant {
    /// Its name.
    pub name: String,
    /// Weights and biases.
    pub parameters: usize,
    /// With each seed.
    pub runs: Vec<TrainedRun>,
    /// The paper's row.
    pub paper: Option<Paper>,
}

/// A network trained with one seed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TrainedRun {
    /// The seed.
    pub seed: u64,
    /// The run, relative to the page.
    pub run: String,
    /// On the training images, centre crop.
    pub train: Errors,
    /// On the validation images, centre crop.
    pub val: Errors,
}

impl TrainedVariant {
    /// The mean over the seeds of an error.
    pub fn mean(&self, error: impl Fn(&TrainedRun) -> f64) -> f64 {
        mean(&self.runs.iter().map(error).collect::<Vec<_>>())
    }
}

/// What seeds leave open of the differences between rows, if all have the same spread.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The standard deviation of an error over seeds, pooled over all rows.
    pub deviation: f64,
    /// What it is estimated from: rows x (seeds - 1).
    pub degrees_of_freedom: usize,
    /// The least difference between the means of two rows that is significant at 5 %: Student's t of both sides times
    /// `deviation * sqrt(2 / seeds)`.
    pub least_difference: f64,
}

impl Spread {
    /// Of an error of all rows, one list of seeds each; `None` if a row has fewer than two seeds.
    pub fn of(rows: &[Vec<f64>]) -> Option<Self> {
        let seeds = rows.iter().map(Vec::len).min().filter(|seeds| *seeds > 1)?;
        let squares = |errors: &Vec<f64>| {
            let mean = mean(errors);
            errors.iter().map(|error| (error - mean).powi(2)).sum::<f64>()
        };
        let degrees_of_freedom = rows.iter().map(|errors| errors.len() - 1).sum();
        let squares: f64 = rows.iter().map(squares).sum();
        let deviation = (squares / degrees_of_freedom as f64).sqrt();
        let least_difference =
            student_t(degrees_of_freedom) * deviation * (2.0 / seeds as f64).sqrt();
        Some(Spread { deviation, degrees_of_freedom, least_difference })
    }
}

/// The 97.5 % quantile of Student's t distribution, from tables up to 10 degrees of freedom (at least one), above by
/// Fisher and Cornish's expansion, whose error there is below 0.001.
fn student_t(degrees_of_freedom: usize) -> f64 {
    const TABLE: [f64; 10] =
        [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228];
    match TABLE.get(degrees_of_freedom.saturating_sub(1)) {
        Some(t) => *t,
        None => {
            let (z, n) = (1.959_964f64, degrees_of_freedom as f64);
            let first = (z.powi(3) + z) / 4.0;
            let second = (5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z) / 96.0;
            let third = (3.0 * z.powi(7) + 19.0 * z.powi(5) + 17.0 * z.powi(3) - 15.0 * z) / 384.0;
            z + first / n + second / (n * n) + third / n.powi(3)
        }
    }
}

/// What a run was begun with: it goes on with nothing else.
#[derive(Serialize, Deserialize)]
struct RunSettings {
    seed: u64,
    train: String,
    val: String,
    /// Names of their folders.
    classes: Vec<String>,
    precision: String,
    architecture: Architecture,
}

/// Trains and measures every row, for the images' classes, with `seeds` seeds from `seed` on: all rows with the first,
/// then all with the next. A row that was finished before is not trained again, one that was begun goes on, so that
/// seeds can be added later. The runs are in `out`. A non-zero `stop` saves the run in hand and ends with `None`.
///
/// # Errors
/// If a network does not fit, a run was begun with something else (both before anything is trained),
/// a training fails, or the folder cannot be written.
pub fn run<B: Backend>(
    session: &Session<'_, B>,
    variants: &Variants,
    data: &Splits,
    seed: u64,
    seeds: usize,
    out: &Path,
    stop: &AtomicUsize,
    mut observe: impl FnMut(Event<'_>),
) -> Result<Option<Ablation>> {
    let (backend, rows) = (session.backend, &variants.rows);
    let seeds: Vec<u64> = (0..seeds as u64).map(|i| seed.wrapping_add(i)).collect();
    let [of_train, of_val] = data.fingerprints();
    let mut networks = Vec::new();
    for row in rows {
        let classes = data.classes.len();
        let architecture = Architecture { classes, ..row.architecture.clone() };
        let network = Network::new(architecture);
        networks.push(network.map_err(|error| of_variant(&row.name, error))?);
    }
    let record_of = |seed: u64, network: &Network| RunSettings {
        seed,
        train: of_train.clone(),
        val: of_val.clone(),
        classes: data.classes.folders().unwrap_or(&data.classes.names).to_vec(),
        precision: format!("{:?}", backend.precision()),
        architecture: Architecture { description: String::new(), ..network.architecture.clone() },
    };
    // The first seed's runs are where those of a single seed would be, so that others can be added.
    let folder_of = |of: u64, row: &VariantPlan| match of == seed {
        true => Path::new("runs").join(&row.slug),
        false => Path::new(&format!("seed-{of}")).join(&row.slug),
    };
    let mut plans = Vec::new();
    for &seed in &seeds {
        for (place, (row, network)) in rows.iter().zip(&networks).enumerate() {
            let (folder, record) = (folder_of(seed, row), record_of(seed, network));
            let known = same(&out.join(&folder).join(BEGUN), &record, &data.classes)?;
            plans.push((seed, place, folder, record, known));
        }
    }
    // The key names no model: weights follow from the records and the backend.
    let records: Vec<&RunSettings> =
        plans[..rows.len()].iter().map(|(.., record, _)| record).collect();
    let parts = session.parts(&[], &(&records, backend.id()))?;
    let work = |network: &Network| network.multiply_adds() as f64;
    let total: f64 = seeds.len() as f64 * networks.iter().map(work).sum::<f64>();
    let finished = |(row, network): (&VariantPlan, &Network)| TrainedVariant {
        name: row.name.clone(),
        parameters: network.parameters(),
        runs: Vec::new(),
        paper: row.paper.clone(),
    };
    let mut measured: Vec<_> = rows.iter().zip(&networks).map(finished).collect();
    for (index, (seed, place, folder, record, known)) in plans.iter().enumerate() {
        let (row, network) = (&rows[*place], &networks[*place]);
        let share = work(network) / total;
        let (name, count) = (&row.name, plans.len());
        observe(Event::Row { index, rows: count, name, seed: *seed, share });
        let run = out.join(folder);
        if !known {
            let json = serde_json::to_vec_pretty(record).expect("plain data");
            write_atomic(&run.join(BEGUN), &json).map_err(Error::io("write", &run))?;
        }
        let job = Job {
            architecture: row.architecture.clone(),
            train: data.train.clone(),
            val: data.val.clone(),
            classes: data.classes.clone(),
            out: run.clone(),
            seed: *seed,
            shuffle_window: None,
            accumulate: None,
            ranks: Ranks::alone(),
            max_steps: None,
            resume: *known,
            init: None,
            save_steps: None,
            save_interval: SAVE_INTERVAL,
            keep: KEEP,
            watch: false,
            workers: session.workers,
            stop,
        };
        let outcome = train(backend, &job, |event| {
            observe(Event::Training(event));
            Ok(())
        });
        if outcome? == Outcome::Stopped {
            return Ok(None);
        }
        let part = format!("row-{place}-seed-{seed}");
        let [train, val] = match parts.get::<[Errors; 2]>(&part) {
            Some(known) => known,
            None => {
                let errors = measure(session, data, &run, stop, &mut observe)?;
                let Some(errors) = errors else { return Ok(None) };
                parts.put(&part, &errors)?;
                errors
            }
        };
        let run = folder.to_string_lossy().replace('\\', "/");
        measured[*place].runs.push(TrainedRun { seed: *seed, run, train, val });
        let row = &measured[*place];
        observe(Event::Finished(row, &row.runs[row.runs.len() - 1]));
    }
    let (.., base, _) = plans.swap_remove(0);
    Ok(Some(Ablation {
        facts: session.facts.clone(),
        base: base.architecture,
        seed,
        precision: backend.precision(),
        note: variants.note.clone(),
        rows: measured,
    }))
}

/// Errors on the training and the validation images of a run's last weights, unless it was stopped.
fn measure<B: Backend>(
    session: &Session<'_, B>,
    data: &Splits,
    run: &Path,
    stop: &AtomicUsize,
    observe: &mut impl FnMut(Event<'_>),
) -> Result<Option<[Errors; 2]>> {
    let model = load_model(session.backend, &run.join("last"), &ExternalConfig::default())?;
    let (mut done, total) = (0, data.train.len() + data.val.len());
    let images = data.train.clone();
    let mut candidate = [Candidate { name: String::new(), model, images }];
    let mut rates = |candidate: &[Candidate<B>]| {
        let Session { backend, workers, .. } = *session;
        error_rates(backend, candidate, TestCrops::One, workers, stop, |images| {
            done += images;
            observe(Event::Measuring(done, total));
        })
    };
    let Some(train) = rates(&candidate)? else { return Ok(None) };
    candidate[0].images = data.val.clone();
    let Some(val) = rates(&candidate)? else { return Ok(None) };
    Ok(Some([train.into(), val.into()]))
}

/// Whether a run was begun before, which must have been with the same.
fn same(file: &Path, now: &RunSettings, classes: &Classes) -> Result<bool> {
    let bytes = match fs::read(file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        read => read.map_err(Error::io("read", file))?,
    };
    let then: RunSettings = serde_json::from_slice(&bytes)
        .map_err(|error| Error::file(file, format!("is damaged: {error}")))?;
    let differs =
        |what, difference| Err(Error::ResumeMismatch { path: file.into(), what, difference });
    // Earlier versions wrote down readable names.
    if let Some(difference) = Classes::named(then.classes.clone()).difference(classes) {
        return differs("set of classes", difference);
    }
    for ((what, then), (_, now)) in then.lines().into_iter().zip(now.lines()) {
        let line = |lines: &[String], i: usize| lines.get(i).cloned().unwrap_or("nothing".into());
        let apart = (0..then.len().max(now.len())).find(|i| then.get(*i) != now.get(*i));
        if let Some(i) = apart {
            return differs(what, format!("{} then, {} now", line(&then, i), line(&now, i)));
        }
    }
    Ok(true)
}

impl RunSettings {
    /// All of it as lines, for a message to say which one differs.
    fn lines(&self) -> [(&'static str, Vec<String>); 6] {
        let Architecture { name, input, layers, recipe, .. } = &self.architecture;
        let recipe = toml::to_string(recipe).expect("plain data");
        let network = [name.clone(), format!("{input:?}")].into_iter();
        let layers = layers.iter().map(|layer| format!("{layer:?}"));
        [
            ("seed", vec![self.seed.to_string()]),
            ("set of training images", vec![self.train.clone()]),
            ("set of validation images", vec![self.val.clone()]),
            ("precision", vec![self.precision.clone()]),
            ("recipe", recipe.lines().map(str::to_owned).collect()),
            ("network", network.chain(layers).collect()),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::{Spread, slug, student_t};

    /// By hand: deviations from the means are 1, 1, 2 and 2, squared 10 in all; 10 / 2 = 5.
    #[test]
    fn what_seeds_leave_open() {
        let spread = Spread::of(&[vec![3.0, 5.0], vec![10.0, 14.0]]).unwrap();
        assert_eq!((spread.deviation, spread.degrees_of_freedom), (5f64.sqrt(), 2));
        assert!((spread.least_difference - 4.303 * 5f64.sqrt()).abs() < 1e-12);
        // Four seeds halve the variance of a mean: (0.5 + 0.5) x 2 squares of 1, 6 degrees of freedom.
        let four = vec![vec![1.0, 3.0, 1.0, 3.0]; 2];
        let spread = Spread::of(&four).unwrap();
        assert_eq!((spread.deviation, spread.degrees_of_freedom), ((8f64 / 6.0).sqrt(), 6));
        let least = 2.447 * (8f64 / 6.0).sqrt() * 0.5f64.sqrt();
        assert!((spread.least_difference - least).abs() < 1e-12);
        assert_eq!(Spread::of(&[vec![1.0], vec![2.0]]), None);
        assert_eq!(Spread::of(&[]), None);
    }

    /// Tabulated values beyond the table in the code.
    #[test]
    fn quantiles_are_students() {
        for (n, t) in [(1, 12.706), (9, 2.262), (11, 2.201), (15, 2.131), (30, 2.042), (120, 1.980)]
        {
            assert!((student_t(n) - t).abs() < 1e-3, "{n}: {}", student_t(n));
        }
    }

    #[test]
    fn names_are_made_fit_for_a_path() {
        assert_eq!(slug("without layers 3, 4"), "without-layers-3-4");
        assert_eq!(slug("../../etc/passwd"), "etc-passwd");
        assert_eq!(slug("Maps 256-512"), "maps-256-512");
        assert_eq!(slug("<é>"), "");
        assert_eq!([slug("CON"), slug("com1"), slug("conv")], ["con-", "com1-", "conv"]);
        assert_eq!(slug(&"x".repeat(500)).len(), 64);
    }
}
