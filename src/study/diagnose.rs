//! What was watched while a network was trained: losses, what each layer showed, alarms, and the first layer's
//! filters from their start on.
//!
//! The paper's section 4.1 looks at a trained first layer and finds by eye what had gone wrong in training: filters
//! that dominate, dead features. Here it is in numbers, epoch by epoch, from what the run has written down
//! ([`crate::train::log`]); nothing is computed anew, and no images are needed.
//!
//! `metrics.jsonl` may be of a newer version, or cut short, or hold numbers that were not finite (`null` in JSON):
//! what can be read is taken, and the rest is counted.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::filters::{largest, median};
use super::learnt::{kernel_of_first, values_of};
use super::pixels::to_rgb;
use super::{Facts, Session, Study};
use crate::backend::Backend;
use crate::import::ExternalConfig;
use crate::model::{Initial, Model};
use crate::train::alarm::Alarm;
use crate::train::checkpoint::{State, load_model, states};
use crate::train::log::METRICS;
use crate::{Error, Result};

/// See [`super::STUDIES`].
pub const STUDY: Study = Study {
    name: "diagnose",
    shows: "what was watched in training: alarms, and each layer epoch by epoch",
    paper: "Section 4.1",
    of_one_run: true,
};

/// Points of the curve of single updates.
const POINTS: usize = 200;
/// Letters of an alarm that this version cannot read.
const RAW: usize = 300;

/// What a run has written down, as far as it could be read. A number that was not finite is NaN.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Record {
    /// Losses of updates, each point the mean of neighbours.
    pub losses: Vec<Loss>,
    /// Epochs that have ended.
    pub epochs: Vec<Epoch>,
    /// What was watched in them; empty if nothing was.
    pub watched: Vec<Watched>,
    /// Alarms, in the order in which they were told.
    pub alarms: Vec<Told>,
    /// Updates so far.
    pub updates: u32,
    /// Lines that could not be read, but for a last one that was cut short.
    pub unreadable: usize,
}

/// The mean loss of some updates.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Loss {
    /// The update in their middle.
    pub step: u32,
    /// Their mean loss.
    pub loss: f64,
}

/// The end of an epoch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Epoch {
    /// Updates so far.
    pub step: u32,
    /// Epochs so far.
    pub epoch: u32,
    /// Mean loss of the training samples, each at its own step.
    #[serde(deserialize_with = "number")]
    pub train_loss: f64,
    /// Mean loss on the validation set, centre crop.
    #[serde(deserialize_with = "number")]
    pub val_loss: f64,
    /// Share of validation images whose class is not the most probable one.
    #[serde(deserialize_with = "number")]
    pub val_top1_error: f64,
    /// The same for the five most probable ones.
    #[serde(deserialize_with = "number")]
    pub val_top5_error: f64,
}

/// What the watched steps of an epoch have shown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Watched {
    /// Updates so far.
    pub step: u32,
    /// Epochs so far.
    pub epoch: u32,
    /// Images of the watched steps.
    pub images: usize,
    /// Standard deviation of the network's input.
    #[serde(deserialize_with = "number")]
    pub input_std: f64,
    /// Layers with weights, from below.
    pub layers: Vec<WatchedLayer>,
}

/// What they have shown of a layer: see [`LayerNumbers`](crate::train::alarm::LayerNumbers) and
/// [`LayerOfEpoch`](crate::train::LayerOfEpoch).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WatchedLayer {
    /// The layer.
    pub layer: String,
    /// Mean of its output, after the relu.
    #[serde(deserialize_with = "number")]
    pub activation_mean: f64,
    /// Standard deviation of its output.
    #[serde(deserialize_with = "number")]
    pub activation_std: f64,
    /// Standard deviation of the gradient of one sample's loss by that output.
    #[serde(deserialize_with = "number")]
    pub gradient_std: f64,
    /// Root mean square of its weights.
    #[serde(deserialize_with = "number")]
    pub weight_rms: f64,
    /// Root mean square of an update of them, as a share of it.
    #[serde(deserialize_with = "number")]
    pub update: f64,
    /// Maps that fired for no image looked at.
    pub dead: usize,
    /// Of how many; 0 where no relu follows.
    pub maps: usize,
    /// Share of a filter's energy along its initial weights, median; `None` where that is not known.
    pub initial_share: Option<f64>,
}

impl WatchedLayer {
    /// Share of its maps that are dead; `None` where no relu follows.
    pub fn dead_share(&self) -> Option<f64> {
        (self.maps > 0).then(|| self.dead as f64 / self.maps as f64)
    }
}

/// An alarm, in words.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Told {
    /// Updates before it.
    pub step: u32,
    /// The epoch in hand, from 1, or the one that had ended.
    pub epoch: u32,
    /// Its name, in a word or two.
    pub name: String,
    /// What was seen.
    pub seen: String,
    /// Its likely cause.
    pub cause: String,
    /// What to try.
    pub remedy: String,
}

impl Told {
    fn of(step: u32, epoch: u32, alarm: &Value) -> Self {
        if let Ok(Alarm { sign, cause, remedy }) = Alarm::deserialize(alarm) {
            let (name, seen) = (sign.name().into(), sign.to_string());
            return Told { step, epoch, name, seen, cause, remedy: remedy.to_string() };
        }
        // Of a newer version, or with a number that was not finite: its words as they stand there.
        let sign = &alarm["sign"];
        let name = match sign {
            Value::Object(fields) => fields.keys().next().cloned().unwrap_or_default(),
            other => words(other),
        };
        let seen = sign.get(&name).map(words).unwrap_or_default();
        let [cause, remedy] = ["cause", "remedy"].map(|field| words(&alarm[field]));
        Told { step, epoch, name, seen, cause, remedy }
    }
}

/// A value of JSON for people: a text without quotes, of another value its first letters, of nothing nothing.
fn words(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string().chars().take(RAW).collect(),
    }
}

/// One line of the file.
#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum Line {
    Step {
        step: u32,
        #[serde(deserialize_with = "number")]
        loss: f64,
    },
    Epoch(Epoch),
    Layers(Watched),
    Alarm {
        step: u32,
        epoch: u32,
        alarm: Value,
    },
    /// Of a newer version.
    #[serde(other)]
    Other,
}

/// A number that was not finite is written as `null`.
fn number<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

impl Record {
    /// Reads `run/metrics.jsonl`.
    ///
    /// # Errors
    /// If there is no such file, it cannot be read, or no line of it can.
    pub fn read(run: &Path) -> Result<Self> {
        let path = run.join(METRICS);
        let io = |error| Error::io("read", &path)(error);
        if !fs::metadata(&path).map_err(io)?.is_file() {
            return Err(Error::file(&path, "expected a file"));
        }
        let bytes = fs::read(&path).map_err(io)?;
        let record = Record::of(&String::from_utf8_lossy(&bytes));
        let nothing = Record { unreadable: record.unreadable, ..Record::default() };
        if record.unreadable > 0 && record == nothing {
            return Err(Error::file(
                &path,
                "expected what a training has written, found no line of that",
            ));
        }
        Ok(record)
    }

    fn of(text: &str) -> Self {
        let mut lines = Lines::default();
        lines.take(text);
        lines.record()
    }

    /// Updates of an epoch; `None` before one has ended.
    pub fn steps_per_epoch(&self) -> Option<f64> {
        let ended = self.epochs.iter().rfind(|epoch| epoch.epoch > 0 && epoch.step > 0)?;
        Some(f64::from(ended.step) / f64::from(ended.epoch))
    }
}

/// What lines of the file have said so far.
#[derive(Default)]
struct Lines {
    /// Without losses.
    record: Record,
    losses: Vec<(u32, f64)>,
}

impl Lines {
    fn take(&mut self, text: &str) {
        let record = &mut self.record;
        for line in text.split_inclusive('\n') {
            match serde_json::from_str(line) {
                Ok(Line::Step { step, loss }) => self.losses.push((step, loss)),
                Ok(Line::Epoch(epoch)) => record.epochs.push(epoch),
                Ok(Line::Layers(watched)) => record.watched.push(watched),
                Ok(Line::Alarm { step, epoch, alarm }) => {
                    record.alarms.push(Told::of(step, epoch, &alarm));
                }
                Ok(Line::Other) => {}
                Err(_) => record.unreadable += usize::from(line.ends_with('\n')),
            }
        }
    }

    fn record(&self) -> Record {
        let updates = self.losses.last().map_or(0, |(step, _)| *step);
        let some = self.losses.chunks(self.losses.len().div_ceil(POINTS).max(1));
        let mean = |some: &[(u32, f64)]| Loss {
            step: some[some.len() / 2].0,
            loss: some.iter().map(|(_, loss)| loss).sum::<f64>() / some.len() as f64,
        };
        Record { updates, losses: some.map(mean).collect(), ..self.record.clone() }
    }
}

/// The record of a run that may go on, of which only what is new is read each time.
#[derive(Default)]
pub struct Followed {
    /// Bytes that have been read.
    read: u64,
    /// The last of them: if they are others by now, so is the file.
    last: Vec<u8>,
    lines: Lines,
}

/// Bytes by which a file is known again.
const KNOWN_BY: usize = 4096;

impl Followed {
    /// What the run has written down by now, but for a line that is not whole yet.
    ///
    /// # Errors
    /// If there is no such file, or it cannot be read.
    pub fn record(&mut self, run: &Path) -> Result<Record> {
        let path = run.join(METRICS);
        let io = |error| Error::io("read", &path)(error);
        let mut file = File::open(&path).map_err(io)?;
        file.seek(SeekFrom::Start(self.read - self.last.len() as u64)).map_err(io)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(io)?;
        if bytes.starts_with(&self.last) {
            bytes.drain(..self.last.len());
        } else {
            // A run that is resumed takes back what was behind its checkpoint; or it is another run.
            *self = Followed::default();
            file.rewind().map_err(io)?;
            bytes.clear();
            file.read_to_end(&mut bytes).map_err(io)?;
        }
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
        self.lines.take(&String::from_utf8_lossy(&bytes[..whole]));
        self.read += whole as u64;
        self.last.extend(&bytes[..whole]);
        self.last.drain(..self.last.len().saturating_sub(KNOWN_BY));
        Ok(self.lines.record())
    }
}

/// Filters of a first layer before training and after some of it: `[filters, rows, columns, 3]`, RGB.
#[derive(Clone, Debug, PartialEq)]
pub struct FirstFilters {
    /// The layer.
    pub layer: String,
    /// Rows and columns.
    pub kernel: [usize; 2],
    /// Before training; `None` if it is not known how they were drawn.
    pub initial: Option<Vec<f32>>,
    /// Of each checkpoint that is still there, in order.
    pub checkpoints: Vec<Filters>,
}

/// Those of a checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Filters {
    /// Updates so far.
    pub step: u32,
    /// Epochs that have ended.
    pub epoch: u32,
    /// Whether the next one has begun.
    pub within: bool,
    /// Root mean square of the largest filter, as a multiple of the median; `None` if that is zero.
    pub largest: Option<f64>,
    /// The filters.
    pub values: Vec<f32>,
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Diagnosis {
    /// What it was made with.
    pub facts: Facts,
    /// The network's name; empty if there is no checkpoint.
    pub network: String,
    /// What the run has written down.
    #[serde(flatten)]
    pub record: Record,
    /// Filters of the first layer, if it is a convolution of an image and there are checkpoints.
    #[serde(skip)]
    pub first: Option<FirstFilters>,
    /// Checkpoints that could not be read, and why.
    pub left_out: Vec<String>,
}

/// Reads what a run has written down, and the first layer's filters of its checkpoints.
///
/// # Errors
/// If it is no run, or its files cannot be read. Checkpoints that are damaged are left out.
pub fn run<B: Backend>(session: &mut Session<'_, B>, run: &Path) -> Result<Diagnosis> {
    let record = Record::read(run).map_err(|error| match &error {
        Error::Io { error: cause, .. } if cause.kind() == std::io::ErrorKind::NotFound => {
            Error::file(run, "is no run: expected metrics.jsonl in it, found none")
        }
        _ => error,
    })?;
    let mut checkpoints = states(run)?;
    checkpoints.sort_by_key(|(state, _)| state.step);
    let mut found = Diagnosis {
        facts: session.facts.clone(),
        network: String::new(),
        record,
        first: None,
        left_out: Vec::new(),
    };
    let total = checkpoints.len();
    for (number, (state, folder)) in checkpoints.iter().enumerate() {
        session.progress("diagnose: checkpoints", number, total, "");
        match load_model(session.backend, folder, &ExternalConfig::default()) {
            Ok(model) => {
                found.network = model.network.architecture.name.clone();
                found.take_filters(session.backend, &model, state)?;
            }
            // A training that goes on removes old ones.
            Err(error) => found.left_out.push(error.to_string()),
        }
    }
    session.progress("diagnose: checkpoints", total, total, "");
    Ok(found)
}

/// Rows and columns of the first layer's filters and their weights, as the network's channels are, if it is a
/// convolution of an image.
fn first_weights<B: Backend>(
    backend: &B,
    model: &Model<B>,
) -> Result<Option<([usize; 2], Vec<f32>)>> {
    let Some(kernel) = kernel_of_first(&model.network) else { return Ok(None) };
    Ok(values_of(backend, &model.params, 0)?.map(|[weights, _]| (kernel, weights)))
}

/// The same in RGB, `[filters, rows, columns, 3]`.
///
/// # Errors
/// If a backend operation fails.
pub fn first_filters<B: Backend>(
    backend: &B,
    model: &Model<B>,
) -> Result<Option<([usize; 2], Vec<f32>)>> {
    let found = first_weights(backend, model)?;
    Ok(found.map(|(kernel, weights)| (kernel, to_rgb(&model.preprocess, weights))))
}

impl Diagnosis {
    /// Adds a checkpoint's filters, if it has any of an image.
    fn take_filters<B: Backend>(
        &mut self,
        backend: &B,
        model: &Model<B>,
        state: &State,
    ) -> Result<()> {
        let Some((kernel, weights)) = first_weights(backend, model)? else { return Ok(()) };
        let filters = model.network.layers[0].output.c.max(1);
        let drawn = |initial: Initial| to_rgb(&model.preprocess, initial.values(weights.len()));
        let first = self.first.get_or_insert_with(|| FirstFilters {
            layer: model.network.layers[0].name.clone(),
            kernel,
            initial: model.params.initial[0].map(drawn),
            checkpoints: Vec::new(),
        });
        let rms = |filter: &[f32]| {
            let sum = filter.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>();
            (sum / filter.len() as f64).sqrt()
        };
        let rms: Vec<f64> =
            weights.chunks_exact((weights.len() / filters).max(1)).map(rms).collect();
        let middle = median(&rms);
        first.checkpoints.push(Filters {
            step: state.step,
            epoch: state.epoch,
            within: state.batch > 0,
            largest: (middle > 0.0).then(|| largest(&rms).1 / middle),
            values: to_rgb(&model.preprocess, weights),
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYER: &str = r#"{"layer":"conv1","activation_mean":0.5,"activation_std":1.5,"gradient_std":null,
        "weight_rms":0.1,"update":0.002,"dead":3,"maps":12,"initial_share":null}"#;

    #[test]
    fn lines_of_any_kind_are_read_as_far_as_they_can_be() {
        let layers = format!(
            r#"{{"kind":"layers","step":2,"epoch":1,"images":8,"input_std":0.9,"layers":[{LAYER}],"new":[1]}}"#
        );
        let lines = [
            r#"{"kind":"step","step":1,"epoch":1,"loss":2.0,"rate":0.01}"#,
            r#"{"kind":"weather","sun":true}"#,
            r#"{"kind":"step","step":2,"epoch":1,"loss":null,"rate":0.01}"#,
            "no JSON",
            r#"{"kind":"epoch","step":2,"epoch":1,"train_loss":1.5,"val_loss":null,"val_top1_error":0.5,"val_top5_error":0.25,"rate":0.01}"#,
            &layers.replace('\n', ""),
            r#"{"kind":"step","step":3,"ep"#,
        ];
        let record = Record::of(&lines.join("\n"));
        assert_eq!((record.updates, record.unreadable), (2, 1));
        assert_eq!((record.losses[0].step, record.losses[0].loss), (1, 2.0));
        assert!(record.losses[1].loss.is_nan() && record.losses.len() == 2);
        let [epoch] = &record.epochs[..] else { panic!("{record:?}") };
        assert!(epoch.val_loss.is_nan() && epoch.train_loss == 1.5);
        assert_eq!(record.steps_per_epoch(), Some(2.0));
        let [watched] = &record.watched[..] else { panic!("{record:?}") };
        let [layer] = &watched.layers[..] else { panic!("{record:?}") };
        assert_eq!((layer.activation_std, layer.update), (1.5, 0.002));
        assert_eq!((layer.dead_share(), layer.initial_share), (Some(0.25), None));
        assert!(layer.gradient_std.is_nan());
        let json = serde_json::to_string(&record).unwrap();
        assert!(json.contains(r#""gradient_std":null"#), "{json}");
        assert_eq!(Record::of(""), Record::default());
    }

    #[test]
    fn what_a_run_adds_is_read_and_what_it_takes_back_forgotten() {
        let run = tempfile::tempdir().unwrap();
        let file = run.path().join("metrics.jsonl");
        let step =
            |step| format!(r#"{{"kind":"step","step":{step},"epoch":1,"loss":{step},"rate":1}}"#);
        let text = |count: u32| (1..=count).map(|s| step(s) + "\n").collect::<String>();
        let mut followed = Followed::default();
        assert!(followed.record(run.path()).is_err(), "there is no file");
        let (whole, half) = (text(3), step(4));
        fs::write(&file, whole + &half[..9]).unwrap();
        assert_eq!(followed.record(run.path()).unwrap(), Record::of(&text(3)));
        fs::write(&file, text(400)).unwrap();
        assert_eq!(followed.record(run.path()).unwrap(), Record::of(&text(400)));
        assert_eq!(followed.record(run.path()).unwrap(), Record::of(&text(400)), "nothing is new");
        fs::write(&file, text(2)).unwrap();
        assert_eq!(followed.record(run.path()).unwrap(), Record::of(&text(2)));
        // Longer by now than what had been read of another.
        let other = text(900).replace("\"epoch\":1", "\"epoch\":2").replacen("1,", "5,", 1);
        fs::write(&file, &other).unwrap();
        assert_eq!(followed.record(run.path()).unwrap(), Record::of(&other));
    }

    #[test]
    fn an_alarm_is_told_also_if_it_is_of_a_newer_version() {
        let known = r#"{"sign":{"dead":{"layer":"conv2","dead":9,"maps":10,"images":64}},"cause":"why","remedy":"he-initialization"}"#;
        let newer = r#"{"sign":{"asleep":{"layer":"fc","loss":null}},"cause":"late","remedy":{"coffee":2}}"#;
        let line =
            |alarm: &str| format!(r#"{{"kind":"alarm","step":7,"epoch":2,"alarm":{alarm}}}"#);
        let record = Record::of(&format!("{}\n{}\n{}\n", line(known), line(newer), line("3")));
        let [dead, asleep, nothing] = &record.alarms[..] else { panic!("{record:?}") };
        assert_eq!((dead.step, dead.epoch, dead.name.as_str()), (7, 2, "dead"));
        assert_eq!(
            dead.seen,
            "9 of 10 maps of conv2 fired for none of the 64 images looked at lately"
        );
        assert!(dead.remedy.contains("He et al.") && dead.cause == "why");
        assert_eq!((asleep.name.as_str(), asleep.cause.as_str()), ("asleep", "late"));
        assert_eq!(asleep.seen, r#"{"layer":"fc","loss":null}"#);
        assert_eq!(asleep.remedy, r#"{"coffee":2}"#);
        assert_eq!(nothing.name, "");
    }

    #[test]
    fn losses_of_many_updates_are_means_of_neighbours() {
        let line = |step: usize| format!("{{\"kind\":\"step\",\"step\":{step},\"loss\":{step}}}\n");
        let text: String = (1..=1000).map(line).collect();
        let losses = Record::of(&text).losses;
        assert_eq!(losses.len(), 200);
        assert_eq!((losses[0].step, losses[0].loss), (3, 3.0));
        assert_eq!((losses[199].step, losses[199].loss), (998, 998.0));
    }
}
