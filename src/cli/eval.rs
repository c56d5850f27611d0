//! `zfnet eval`: error rates of one checkpoint, or of several averaged.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use crate::backend::Backend;
use crate::bench::Benchmark;
use crate::data::Split;
use crate::data::images::Images;
use crate::study::ensemble::{Candidate, error_rates, same_classes};
use crate::train::evaluate::Evaluation;
use anyhow::Result;
use clap::Args;

use super::progress::Progress;
use super::{
    CropsName, DeviceArgs, ExitCode, ExternalArgs, OnDevice, ReadArgs, SplitName, open_data,
    output, shown,
};

#[derive(Args)]
pub struct Eval {
    #[command(flatten)]
    models: ModelsArgs,
    /// Number of crops whose probabilities are averaged
    #[arg(long, value_enum, default_value = "10")]
    crops: CropsName,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// Checkpoints, and the images that they are tried on.
#[derive(Args)]
pub struct ModelsArgs {
    /// Checkpoints (RUN, RUN/step-N, RUN/best, a safetensors file or another program's network); several are averaged
    #[arg(long, required = true, num_args = 1..)]
    pub checkpoint: Vec<PathBuf>,
    /// Folder with val/CLASS/* (and train/CLASS/*), or shards made by `zfnet pack`
    #[arg(long)]
    pub data: PathBuf,
    /// Which split of the data
    #[arg(long, value_enum, default_value = "val")]
    pub split: SplitName,
    #[command(flatten)]
    external: ExternalArgs,
    #[command(flatten)]
    pub read: ReadArgs,
}

impl ModelsArgs {
    /// The models, each with the images as it looks at them.
    pub fn load<B: Backend>(&self, backend: &B) -> Result<Vec<Candidate<B>>> {
        let mut models = Vec::new();
        for path in &self.checkpoint {
            models.push((shown(path), self.external.load(backend, path)?));
        }
        same_classes(&models)?;
        let set = open_data(&self.data, &models[0].1)?;
        let mut candidates: Vec<Candidate<B>> = Vec::new();
        for (name, model) in models {
            let canvas = model.preprocess.resize;
            // Those that look at the same share the images, and with them what is kept in memory.
            let known: Option<&Arc<Images>> = candidates
                .iter()
                .map(|other| &other.images)
                .find(|images| images.canvas() == canvas);
            let images = match known {
                Some(images) => images.clone(),
                None => Arc::new(set.images(Split::from(self.split), self.read.options(canvas)?)?),
            };
            candidates.push(Candidate { name, model, images });
        }
        Ok(candidates)
    }
}

impl OnDevice for Eval {
    fn run<B: Benchmark>(self, backend: &B) -> Result<ExitCode> {
        let result = measure(backend, &self)?;
        if self.json {
            output::line(serde_json::to_string(&result)?)?;
        } else {
            output::line(format_args!(
                "top-1 error {:.2} %, top-5 error {:.2} %, {} images",
                100.0 * result.top1_error,
                100.0 * result.top5_error,
                result.images
            ))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn measure<B: Backend>(backend: &B, args: &Eval) -> Result<Evaluation> {
    let candidates = args.models.load(backend)?;
    let total = candidates.iter().map(|candidate| candidate.images.len()).sum();
    let (mut progress, mut done) = (Progress::new(), 0);
    let never = AtomicUsize::new(0);
    let workers = args.models.read.workers(backend);
    let result = error_rates(backend, &candidates, args.crops.into(), workers, &never, |images| {
        done += images;
        progress.show("evaluate", done, total, "");
    })?;
    progress.end();
    say_bad(&candidates[0].images);
    Ok(result.expect("nothing asks it to stop"))
}

/// Says how many images were left out.
pub fn say_bad(images: &Images) {
    let bad = images.bad().len();
    if bad > 0 {
        output::message(format_args!("{bad} file(s) cannot be read as images and were left out"));
    }
}
