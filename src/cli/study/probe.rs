//! `zfnet study probe`: the paper's Table 7.

use std::path::PathBuf;

use crate::bench::Benchmark;
use crate::data::set::DataSet;
use crate::report;
use crate::study::Splits;
use crate::study::probe::{STUDY, Settings, paper_layers, run};
use anyhow::{Context, Result};
use clap::Args;

use super::{StudyArgs, finish, layers_named};
use crate::cli::progress::Progress;
use crate::cli::{ExitCode, OnDevice, ReadArgs, output, shown};

#[derive(Args)]
pub struct Probe {
    #[command(flatten)]
    pub study: StudyArgs,
    /// Folder with train/CLASS/* and val/CLASS/*, or shards made by `zfnet pack`; the classes need not
    /// be the checkpoint's
    #[arg(long)]
    data: PathBuf,
    /// Layers, separated by commas [default: each convolution and fully connected layer but the last,
    /// with the relu, pooling and normalisation behind it, as the paper counts]
    #[arg(long, value_delimiter = ',')]
    layers: Vec<String>,
    /// Training images of each class [default: all, or as many as fit into memory]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    per_class: Option<u32>,
    /// Validation images of each class, at most [default: all, or as many as fit into memory]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    test_per_class: Option<u32>,
    /// Number of random draws of training images
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    seeds: u32,
    #[command(flatten)]
    read: ReadArgs,
}

impl OnDevice for Probe {
    fn run<B: Benchmark>(self, backend: &B) -> Result<ExitCode> {
        let model = self.study.load(backend)?;
        let settings = Settings {
            layers: layers_named(&model.network, &self.layers, paper_layers)?,
            per_class: self.per_class.map(|images| images as usize),
            test_per_class: self.test_per_class.map(|images| images as usize),
            seeds: self.seeds,
        };
        let set = DataSet::open(&self.data)?;
        let data = Splits::open(&set, self.read.options(model.preprocess.resize)?)?;
        let out = self.study.out(&STUDY)?;
        let mut progress = Progress::new();
        let mut session = self.study.session(backend, &model, &out, &mut progress)?;
        session.workers = self.read.workers(backend);
        session.fact("Data", shown(&self.data));
        let found = run(&mut session, &model, &settings, &data)
            .with_context(|| self.data.display().to_string())?;
        let page = finish(session, &out, report::probe::write(&out, &found))?;
        progress.end();
        output::line(page.display())?;
        Ok(ExitCode::SUCCESS)
    }
}
