//! `zfnet study ensemble`: the paper's Table 2.

use std::path::PathBuf;

use crate::bench::Benchmark;
use crate::data::Split;
use crate::report;
use crate::study::ensemble::run;
use anyhow::{Result, bail};
use clap::Args;

use super::{finish, watched};
use crate::cli::eval::{ModelsArgs, say_bad};
use crate::cli::progress::Progress;
use crate::cli::{DeviceArgs, ExitCode, OnDevice, make_folder, output, shown};

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
    fn run<B: Benchmark>(self, backend: &B) -> Result<ExitCode> {
        let args = &self.models;
        if args.checkpoint.len() < 2 {
            bail!("expected two or more checkpoints, found one: see `zfnet eval` for a single one");
        }
        let mut candidates = args.load(backend)?;
        for (index, candidate) in candidates.iter_mut().enumerate() {
            // The same checkpoint may be named twice.
            candidate.name = format!("{}: {}", index + 1, candidate.name);
        }
        let out = make_folder(&self.out)?;
        let mut progress = Progress::new();
        let mut session = watched(backend, &out, &mut progress);
        session.workers = args.read.workers(backend);
        let split = Split::from(args.split).name();
        session.fact("Data", format!("{}, {split}", shown(&args.data)));
        let found = run(&mut session, &candidates)?;
        let page = finish(session, &out, report::ensemble::write(&out, &found))?;
        progress.end();
        say_bad(&candidates[0].images);
        output::line(page.display())?;
        Ok(ExitCode::SUCCESS)
    }
}
