//! `zfnet extract`: what layers make of images, as a file for other programs.

use std::path::PathBuf;
use std::time::Instant;

use crate::bench::Benchmark;
use crate::data::folder::check_output;
use crate::data::set::KeyedImages;
use crate::extract::{Dtype, Format, Settings, extract};
use crate::human_bytes;
use anyhow::{Result, bail};
use clap::{Args, ValueEnum};

use super::eval::say_bad;
use super::progress::Progress;
use super::signals::{signal_code, stop_on_signals};
use super::{
    DeviceArgs, ExitCode, ExternalArgs, IoName, MOST_WORKERS, OnDevice, ReadArgs, SplitName,
    grouped, output, shown,
};

#[derive(Args)]
pub struct Extract {
    /// RUN, RUN/step-N, RUN/best, a safetensors file or another program's network
    checkpoint: PathBuf,
    /// Folder with train/CLASS/* or val/CLASS/*, shards made by `zfnet pack`, or any folder of images; the classes need
    /// not be the network's
    #[arg(long)]
    data: PathBuf,
    /// Layers, separated by commas. A convolutional or fully connected layer is taken after its relu; the last one
    /// gives the logits
    #[arg(long, value_delimiter = ',', required = true)]
    layers: Vec<String>,
    /// File to write. FILE.safetensors has a tensor for each layer ([images, outputs] or [images, maps, rows, columns])
    /// and labels (-1 without classes), crops (row, column, height, width) and keys (CLASS/FILE, a line each).
    /// FILE.npy has one layer; the rest is in FILE.labels.tsv. Until it is whole it is FILE.partial, with which the same
    /// command goes on
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,
    /// Type of the values; f16 is half as large
    #[arg(long, value_enum, default_value = "f32")]
    dtype: DtypeName,
    /// Which split of the data [default: val, or all images of a folder without splits]
    #[arg(long, value_enum)]
    split: Option<SplitName>,
    /// Images at a time; the last bits of values may depend on it
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=4096))]
    batch_size: u16,
    /// Replace a file that is there, and begin anew what was begun with other settings
    #[arg(long)]
    overwrite: bool,
    /// Threads that read and decode images [default: 2, or with a GPU as many as there are cores, up to 32]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=i64::from(MOST_WORKERS)))]
    workers: Option<u16>,
    /// Fraction of files that cannot be read as images, and have no row, before the command stops
    #[arg(long, default_value_t = 0.01)]
    max_bad: f64,
    /// How shards are read [default: mmap, or pread on a network file system]
    #[arg(long, value_enum)]
    io: Option<IoName>,
    #[command(flatten)]
    external: ExternalArgs,
    #[command(flatten)]
    pub device: DeviceArgs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum DtypeName {
    F32,
    F16,
}

impl OnDevice for Extract {
    fn run<B: Benchmark>(self, backend: &B) -> Result<ExitCode> {
        Format::of(&self.out)?;
        check_output(&self.out)?;
        if self.out.exists() && !self.overwrite {
            bail!("{}: is there already: choose another file, or --overwrite", self.out.display());
        }
        let model = self.external.load(backend, &self.checkpoint)?;
        let layers = self.layers.iter().map(|name| model.network.layer(name));
        let layers = layers.collect::<Result<_, _>>()?;
        let (workers, max_bad, io) = (self.workers, self.max_bad, self.io);
        // Each image is looked at once: none is kept in memory.
        let read = ReadArgs { workers, max_bad, cache_mb: 0, io };
        let options = read.options(model.preprocess.resize)?;
        let data = KeyedImages::open(&self.data, self.split.map(Into::into), options)?;
        let total = data.images.len();
        tracing::info!(
            "{}: {} images{}",
            self.data.display(),
            grouped(total),
            match &data.classes {
                Some(classes) => format!(" of {} classes", grouped(classes.len())),
                None => ", not in train/CLASS or val/CLASS: they have no labels".into(),
            }
        );
        let mut facts = vec![
            ("checkpoint".to_owned(), shown(&self.checkpoint)),
            ("data".into(), shown(&self.data)),
        ];
        if data.classes.is_some() {
            let split = crate::data::Split::from(self.split.unwrap_or(SplitName::Val));
            facts.push(("split".into(), split.name().into()));
        }
        let dtype = match self.dtype {
            DtypeName::F32 => Dtype::F32,
            DtypeName::F16 => Dtype::F16,
        };
        let (batch, overwrite) = (self.batch_size.into(), self.overwrite);
        let settings = Settings { layers, dtype, batch, overwrite, facts };
        let stop = stop_on_signals()?;
        let (mut progress, mut done, begun) = (Progress::new(), 0, Instant::now());
        let workers = read.workers(backend);
        let show = |now, total| {
            done = now;
            progress.show("extract", now, total, "");
        };
        let result = extract(backend, &model, &data, &settings, &self.out, workers, &stop, show);
        progress.end();
        let Some(result) = result? else {
            output::message(format_args!(
                "stopped after {} of {} images: the same command goes on from there",
                grouped(done),
                grouped(total)
            ));
            return Ok(signal_code(&stop));
        };
        say_bad(&data.images);
        let shapes = result.layers.iter().map(|(name, shape)| format!("{name} {shape:?}"));
        let rate = (total - result.before) as f64 / begun.elapsed().as_secs_f64();
        output::message(format_args!(
            "{}, {}; {rate:.0} images/s",
            shapes.collect::<Vec<_>>().join(", "),
            human_bytes(result.bytes as usize),
        ));
        output::line(self.out.display())?;
        Ok(ExitCode::SUCCESS)
    }
}
