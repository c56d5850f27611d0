//! `zfnet study sanity`: projections beside those of random weights, all at once and layer by layer.

use crate::bench::Benchmark;
use crate::model::Params;
use crate::report;
use crate::study::learnt;
use crate::study::sanity::{STUDY, Settings, Wanted, default_units, run};
use crate::study::unit_named;
use anyhow::Result;
use clap::Args;

use super::{PickArgs, StudyArgs, finish, run_folder, with_shown_names};
use crate::cli::output;
use crate::cli::progress::Progress;
use crate::cli::{ExitCode, OnDevice};

#[derive(Args)]
pub struct Sanity {
    #[command(flatten)]
    pub study: StudyArgs,
    #[command(flatten)]
    pick: PickArgs,
    /// Maps (LAYER:MAP, as conv5:123), separated by commas [default: the strongest of the first and
    /// the last convolution and of the logits]
    #[arg(long, value_delimiter = ',')]
    units: Vec<String>,
    /// Seed of the random weights
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

impl OnDevice for Sanity {
    fn run<B: Benchmark>(self, backend: &B) -> Result<ExitCode> {
        let model = self.study.load(backend)?;
        let units = match self.units.as_slice() {
            [] => default_units(&model.network),
            names => {
                let unit = |name: &String| {
                    let (layer, map) = unit_named(&model.network, name)?;
                    Ok(Wanted { layer, map: Some(map) })
                };
                names.iter().map(unit).collect::<Result<Vec<_>>>()?
            }
        };
        let mut progress = Progress::new();
        let images = with_shown_names(self.pick.pick(backend, &model, &[], &mut progress)?);
        let random = Params::untrained(backend, &model.network, self.seed)?;
        let out = self.study.out(&STUDY)?;
        let mut session = self.study.session(backend, &model, &out, &mut progress)?;
        session.fact("Images", self.pick.source());
        session.fact(
            "Random weights",
            format!("drawn like those that training begins with, but others; seed {}", self.seed),
        );
        let found = run(&mut session, model, random, &Settings { units }, &images)?;
        let learnt = run_folder(&self.study.checkpoint)
            .map(|run| run.join("report").join(learnt::STUDY.name));
        let page = finish(session, &out, report::sanity::write(&out, &found, learnt.as_deref()))?;
        progress.end();
        output::line(page.display())?;
        Ok(ExitCode::SUCCESS)
    }
}
