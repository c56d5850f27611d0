//! `zfnet study sanity`: projections beside those of random weights.

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use zfnet::bench::Measured;
use zfnet::model::Params;
use zfnet::study::sanity::{Wanted, default_units, sanity, write};
use zfnet::study::unit_named;

use super::{PickArgs, StudyArgs};
use crate::cli::OnDevice;
use crate::cli::progress::Progress;

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
    fn run<B: Measured>(self, backend: &B) -> Result<ExitCode> {
        let model = self.study.load(backend)?;
        let network = &model.network;
        let wanted = match self.units.as_slice() {
            [] => default_units(network),
            names => {
                let unit = |name: &String| {
                    let (layer, map) = unit_named(network, name)?;
                    Ok(Wanted { layer, map: Some(map) })
                };
                names.iter().map(unit).collect::<Result<Vec<_>>>()?
            }
        };
        let mut progress = Progress::new();
        let images = self.pick.pick(backend, &model, &[], &mut progress)?;
        let random = Params::init(backend, network, self.seed)?;
        let out = self.study.out(&zfnet::study::sanity::STUDY)?;
        let (compared, sections) =
            sanity(backend, &model, &random, &images, &wanted, &out, |done| {
                progress.show("sanity: images", done, images.len(), "");
            })?;
        progress.end();
        let mut facts = self.study.facts(&model);
        facts.push(("Images".into(), self.pick.source()));
        facts.push(("Random weights".into(), format!("drawn as for training, seed {}", self.seed)));
        let page = write(&out, network, facts, &compared, sections)
            .with_context(|| format!("cannot write into {}", out.display()))?;
        println!("{}", page.display());
        Ok(ExitCode::SUCCESS)
    }
}
