//! What a run writes down beside its checkpoints.
//!
//! `metrics.jsonl`: one line a step, one an epoch, one with what its watched steps show, and one an alarm, all of it
//! a function of seed and data. Times are not in it, so that an interrupted and continued run leaves the very same file.
//!
//! `quarantine.tsv`: images that could not be used, one a line: file or shard, which image of the
//! shard, what is wrong with it.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::alarm::Alarm;
use super::watcher::LayerOfEpoch;
use crate::data::images::{BadImage, Images};
use crate::disk::write_durable;
use crate::{Error, Result};

/// Time after which the next line that is written makes others able to read all so far.
const FLUSH: Duration = Duration::from_secs(2);
/// Where bad images are listed.
const QUARANTINE: &str = "quarantine.tsv";
/// Where numbers are.
pub(crate) const METRICS: &str = "metrics.jsonl";

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Metric {
    /// An update of the weights.
    Step {
        /// Updates so far, this one included.
        step: u32,
        /// The epoch in hand, from 1.
        epoch: u32,
        /// Mean loss of the batch.
        loss: f64,
        /// Learning rate.
        rate: f32,
    },
    /// The end of an epoch.
    Epoch {
        /// Updates so far.
        step: u32,
        /// Epochs so far.
        epoch: u32,
        /// Mean loss of the training samples, each at its own step.
        train_loss: f64,
        /// Mean loss on the validation set, centre crop.
        val_loss: f64,
        /// Share of validation images whose class is not the most probable one, centre crop.
        val_top1_error: f64,
        /// The same for the five most probable ones.
        val_top5_error: f64,
        /// Learning rate of the next epoch.
        rate: f32,
    },
    /// What an epoch's watched steps have shown; behind the line of its end.
    Layers {
        /// Updates so far.
        step: u32,
        /// Epochs so far.
        epoch: u32,
        /// Images of the watched steps.
        images: usize,
        /// Standard deviation of the network's input, mean over them.
        input_std: f64,
        /// Layers with weights, from below.
        layers: Vec<LayerOfEpoch>,
    },
    /// Something seems to be wrong.
    Alarm {
        /// Updates so far.
        step: u32,
        /// The epoch in hand, from 1, or the one that has ended.
        epoch: u32,
        /// What.
        alarm: Alarm,
    },
}

/// When a line was written: what of it is read to go on, so that other versions' lines stay.
#[derive(Deserialize)]
struct LineHead {
    kind: String,
    step: u32,
    epoch: u32,
}

/// Adds the images of these sets that were bad so far to `run/quarantine.tsv`.
///
/// # Errors
/// If the file cannot be read or written.
pub(super) fn quarantine(run: &Path, sets: &[&Images]) -> Result<()> {
    let bad: Vec<BadImage> = sets.iter().flat_map(|images| images.bad()).collect();
    if bad.is_empty() {
        return Ok(());
    }
    let path = run.join(QUARANTINE);
    let known = match fs::read_to_string(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(Error::io("read", &path)(error));
        }
        read => read.unwrap_or_default(),
    };
    // Those of earlier sessions may not have been met again.
    let mut lines: BTreeSet<String> = known.lines().map(str::to_owned).collect();
    let before = lines.len();
    lines.extend(bad.iter().map(|BadImage { file, key, reason }| {
        [file, key, reason].map(|column| column.replace(['\t', '\n', '\r'], " ")).join("\t")
    }));
    if lines.len() > before {
        let text: String = lines.iter().flat_map(|line| [line.as_str(), "\n"]).collect();
        write_durable(&path, text.as_bytes())?;
    }
    Ok(())
}

/// The open file.
pub(super) struct MetricsLog {
    path: PathBuf,
    /// None of a rank that writes nothing.
    file: Option<BufWriter<File>>,
    flushed: Instant,
}

impl MetricsLog {
    /// Opens `run/metrics.jsonl`, cut back to what happened up to a checkpoint, which has so many steps and epochs
    /// behind it; to nothing, where there is none.
    ///
    /// # Errors
    /// If the file cannot be read or written.
    pub(super) fn open(run: &Path, reached: Option<(u32, u32)>) -> Result<Self> {
        let path = run.join(METRICS);
        let (step, epochs) = reached.unwrap_or_default();
        let kept: String = match fs::read_to_string(&path) {
            Ok(_) if reached.is_none() => String::new(),
            Ok(text) => text
                .split_inclusive('\n')
                .take_while(|line| {
                    serde_json::from_str::<LineHead>(line).is_ok_and(|head| {
                        match head.kind.as_str() {
                            "epoch" => head.epoch <= epochs,
                            _ => head.step <= step,
                        }
                    })
                })
                .collect(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(Error::io("read", &path)(error)),
        };
        // Were the name lost that the lines to come are under, a checkpoint could outlive them.
        write_durable(&path, kept.as_bytes())?;
        let file = OpenOptions::new().append(true).open(&path).map_err(Error::io("open", &path))?;
        Ok(MetricsLog { path, file: Some(BufWriter::new(file)), flushed: Instant::now() })
    }

    /// That of a rank which writes nothing.
    pub(super) fn nowhere() -> Self {
        MetricsLog { path: PathBuf::new(), file: None, flushed: Instant::now() }
    }

    /// Adds a line.
    ///
    /// # Errors
    /// If the disk is full.
    pub(super) fn write(&mut self, metric: &Metric) -> Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        let line = serde_json::to_string(metric).expect("plain data");
        let io = |error| Error::io("write", &self.path)(error);
        writeln!(file, "{line}").map_err(io)?;
        if self.flushed.elapsed() > FLUSH {
            file.flush().map_err(io)?;
            self.flushed = Instant::now();
        }
        Ok(())
    }

    /// Makes all lines so far durable; called before a checkpoint that they belong to.
    ///
    /// # Errors
    /// If the disk is full.
    pub(super) fn sync(&mut self) -> Result<()> {
        let sync = |file: &mut BufWriter<File>| {
            file.flush()?;
            file.get_ref().sync_data()
        };
        self.file.as_mut().map_or(Ok(()), sync).map_err(Error::io("write", &self.path))
    }
}
