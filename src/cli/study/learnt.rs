//! `zfnet study learnt`: what was learnt, and what are the initial weights.

use std::path::PathBuf;
use std::sync::Arc;

use crate::bench::Benchmark;
use crate::data::Split;
use crate::report;
use crate::study::learnt::{STUDY, run};
use anyhow::Result;
use clap::Args;

use super::{StudyArgs, finish};
use crate::cli::progress::Progress;
use crate::cli::{ExitCode, OnDevice, ReadArgs, SplitName, open_data, output, shown};

#[derive(Args)]
pub struct Learnt {
    #[command(flatten)]
    pub study: StudyArgs,
    /// Images to evaluate with: a folder with train/CLASS/* and val/CLASS/*, or shards
    #[arg(long)]
    data: PathBuf,
    /// Which split of the data
    #[arg(long, value_enum, default_value = "val")]
    split: SplitName,
    #[command(flatten)]
    read: ReadArgs,
}

impl OnDevice for Learnt {
    fn run<B: Benchmark>(self, backend: &B) -> Result<ExitCode> {
        let model = self.study.load(backend)?;
        let options = self.read.options(model.preprocess.resize)?;
        let split = Split::from(self.split);
        let images = Arc::new(open_data(&self.data, &model)?.images(split, options)?);
        let out = self.study.out(&STUDY)?;
        let mut progress = Progress::new();
        let mut session = self.study.session(backend, &model, &out, &mut progress)?;
        session.workers = self.read.workers(backend);
        session.fact("Images", format!("{}, {}", shown(&self.data), split.name()));
        let found = run(&mut session, model, &images)?;
        let page = finish(session, &out, report::learnt::write(&out, &found))?;
        progress.end();
        output::line(page.display())?;
        Ok(ExitCode::SUCCESS)
    }
}
