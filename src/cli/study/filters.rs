//! `zfnet study filters`: the paper's Figure 6.

use std::path::PathBuf;
use std::sync::Arc;

use crate::bench::Benchmark;
use crate::data::Split;
use crate::import::ExternalConfig;
use crate::report;
use crate::study::filters::{STUDY, Trained, run};
use crate::train::checkpoint::load_model;
use anyhow::Result;
use clap::Args;

use super::{StudyArgs, finish, watched};
use crate::cli::progress::Progress;
use crate::cli::{ExitCode, OnDevice, ReadArgs, SplitName, open_data, output, shown};

#[derive(Args)]
pub struct Filters {
    #[command(flatten)]
    pub study: StudyArgs,
    /// Other checkpoints to be shown beside it
    #[arg(long, num_args = 1..)]
    beside: Vec<PathBuf>,
    /// Images to find dead maps and aliasing with: a folder with train/CLASS/* and val/CLASS/*, or shards
    #[arg(long)]
    data: Option<PathBuf>,
    /// Which split of the data
    #[arg(long, value_enum, default_value = "val")]
    split: SplitName,
    #[command(flatten)]
    read: ReadArgs,
}

impl OnDevice for Filters {
    fn run<B: Benchmark>(self, backend: &B) -> Result<ExitCode> {
        // All of them first: a wrong name must not be found after the work on another.
        let mut models = vec![(&self.study.checkpoint, self.study.load(backend)?)];
        for checkpoint in &self.beside {
            models.push((checkpoint, load_model(backend, checkpoint, &ExternalConfig::default())?));
        }
        let mut networks = Vec::new();
        for (checkpoint, model) in &models {
            let mut images = None;
            if let Some(root) = &self.data {
                let options = self.read.options(model.preprocess.resize)?;
                let of_split = open_data(root, model)?.images(Split::from(self.split), options)?;
                images = Some((Arc::new(of_split), root.as_path()));
            }
            networks.push(Trained { model, checkpoint: shown(checkpoint), images });
        }
        let out = self.study.out(&STUDY)?;
        let mut progress = Progress::new();
        let mut session = watched(backend, &out, &mut progress);
        session.workers = self.read.workers(backend);
        let data = match &self.data {
            Some(root) => format!("{}, {}", shown(root), Split::from(self.split).name()),
            None => "none: dead maps and the grid in layer 2 need --data".into(),
        };
        session.fact("Data", data);
        let found = run(&mut session, networks)?;
        let page = finish(session, &out, report::filters::write(&out, &found))?;
        for first in &found.networks {
            for alarm in report::filters::alarms(first) {
                progress.line(&format!("{}: {alarm}", first.checkpoint));
            }
        }
        progress.end();
        output::line(page.display())?;
        Ok(ExitCode::SUCCESS)
    }
}
