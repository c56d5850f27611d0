//! `zfnet study filters`: the paper's Figure 6.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::Args;
use zfnet::bench::Measured;
use zfnet::data::Split;
use zfnet::model::Bare;
use zfnet::study::filters::{Filters as Found, write};
use zfnet::train::checkpoint::load_model;

use super::StudyArgs;
use crate::cli::progress::Progress;
use crate::cli::{OnDevice, ReadArgs, SplitName, open_data};

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
    /// Which of them
    #[arg(long, value_enum, default_value = "val")]
    split: SplitName,
    #[command(flatten)]
    read: ReadArgs,
}

impl OnDevice for Filters {
    fn run<B: Measured>(self, backend: &B) -> Result<ExitCode> {
        let mut progress = Progress::new();
        let mut networks = Vec::new();
        // All of them first: a wrong name must not be found after the work on another.
        let mut models = vec![(&self.study.checkpoint, self.study.load(backend)?)];
        for checkpoint in &self.beside {
            models.push((checkpoint, load_model(backend, checkpoint, &Bare::default())?));
        }
        for (checkpoint, model) in models {
            let name = checkpoint.display().to_string();
            let mut filters = Found::of(backend, &model, &name)?;
            if let Some(root) = &self.data {
                let options = self.read.options(model.preprocess.resize)?;
                let images = open_data(root, &model)?.images(Split::from(self.split), options)?;
                let workers = usize::from(self.read.workers);
                filters.look(
                    backend,
                    &model,
                    &Arc::new(images),
                    root,
                    workers,
                    |what, done, total| {
                        progress.show(&format!("filters of {name}: {what}"), done, total, "");
                    },
                )?;
            }
            for alarm in filters.alarms() {
                progress.line(&format!("{name}: {alarm}"));
            }
            networks.push(filters);
        }
        progress.end();
        let out = self.study.out(&zfnet::study::filters::STUDY)?;
        let data = match &self.data {
            Some(root) => format!("{}, {}", root.display(), Split::from(self.split).name()),
            None => "none: dead maps and the grid in layer 2 need --data".into(),
        };
        let page = write(&out, vec![("Data".into(), data)], &networks)
            .with_context(|| format!("cannot write into {}", out.display()))?;
        println!("{}", page.display());
        Ok(ExitCode::SUCCESS)
    }
}
