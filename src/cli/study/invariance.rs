//! `zfnet study invariance`: Figure 5.

use crate::bench::Benchmark;
use crate::report;
use crate::study::invariance::{STUDY, Settings, default_layers, run, shifts};
use anyhow::{Context, Result};
use clap::Args;

use super::{PickArgs, StudyArgs, finish, layers_named, with_shown_names};
use crate::cli::output;
use crate::cli::progress::Progress;
use crate::cli::{ExitCode, OnDevice};

#[derive(Args)]
pub struct Invariance {
    #[command(flatten)]
    pub study: StudyArgs,
    #[command(flatten)]
    pick: PickArgs,
    /// Without files and --classes: of so many classes, from the first on
    #[arg(long = "images", value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// Layers whose features are compared, separated by commas [default: the first convolution and the
    /// last hidden layer]
    #[arg(long, value_delimiter = ',')]
    layers: Vec<String>,
    /// Largest shift in pixels of the network's input [default: as large a part as the paper's 60 of 224]
    #[arg(long)]
    shift: Option<usize>,
    /// Pixels between two shifts [default: about 15 shifts to each side]
    #[arg(long)]
    step: Option<usize>,
}

impl OnDevice for Invariance {
    fn run<B: Benchmark>(mut self, backend: &B) -> Result<ExitCode> {
        let model = self.study.load(backend)?;
        let network = &model.network;
        let mut layers = layers_named(network, &self.layers, default_layers)?;
        layers.sort_unstable();
        layers.dedup();
        let given = match (self.shift, self.step) {
            (Some(shift), Some(step)) => format!("--shift {shift} --step {step}"),
            (Some(shift), None) => format!("--shift {shift}"),
            (None, Some(step)) => format!("--step {step}"),
            (None, None) => "neither --shift nor --step".into(),
        };
        let shifts = shifts(network.input().h, self.shift, self.step).context(given)?;
        let settings = Settings { layers, shifts };
        if self.pick.data.is_some() && self.pick.classes.is_empty() {
            self.pick.classes =
                model.classes.names.iter().take(self.limit as usize).cloned().collect();
        }
        let mut progress = Progress::new();
        let images = with_shown_names(self.pick.pick(backend, &model, &[], &mut progress)?);
        let out = self.study.out(&STUDY)?;
        let mut session = self.study.session(backend, &model, &out, &mut progress)?;
        session.fact("Data", self.pick.source());
        let found = run(&mut session, &model, &settings, &images)?;
        let page = finish(session, &out, report::invariance::write(&out, &found))?;
        progress.end();
        output::line(page.display())?;
        Ok(ExitCode::SUCCESS)
    }
}
