//! `zfnet study ensemble`: the paper's Table 2.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;
use zfnet::bench::Measured;
use zfnet::data::Split;
use zfnet::study::ensemble::{Request, ensemble};

use crate::cli::eval::{ModelsArgs, say_bad};
use crate::cli::progress::Progress;
use crate::cli::{DeviceArgs, OnDevice, make_folder};

#[derive(Args)]
pub struct Ensemble {
    #[command(flatten)]
    models: ModelsArgs,
    /// Folder for the page and its numbers
    #[arg(long)]
    out: PathBuf,
    #[command(flatten)]
    pub device: DeviceArgs,
}

impl OnDevice for Ensemble {
    fn run<B: Measured>(self, backend: &B) -> Result<ExitCode> {
        let args = &self.models;
        if args.checkpoint.len() < 2 {
            bail!("expected two or more checkpoints, found one: see `zfnet eval` for a single one");
        }
        let mut candidates = args.load(backend)?;
        for (index, candidate) in candidates.iter_mut().enumerate() {
            // The same checkpoint may be named twice.
            candidate.name = format!("{}: {}", index + 1, candidate.name);
        }
        let request = Request {
            out: &make_folder(&self.out)?,
            data: format!("{}, {}", args.data.display(), Split::from(args.split).name()),
            workers: usize::from(args.read.workers),
        };
        let mut progress = Progress::new();
        let page = ensemble(backend, &candidates, &request, |done, total| {
            progress.show("crops", done, total, "");
        })?;
        progress.end();
        say_bad(&candidates[0].images);
        println!("{}", page.display());
        Ok(ExitCode::SUCCESS)
    }
}
