//! `zfnet study invariance`: Figure 5.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use zfnet::bench::Measured;
use zfnet::study::invariance::{Request, default_layers, shifts, study};

use super::{PickArgs, StudyArgs};
use crate::cli::OnDevice;
use crate::cli::progress::Progress;

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
    fn run<B: Measured>(mut self, backend: &B) -> Result<ExitCode> {
        let model = self.study.load(backend)?;
        let network = &model.network;
        let mut layers = match self.layers.as_slice() {
            [] => default_layers(network),
            names => names.iter().map(|name| network.layer(name)).collect::<Result<_, _>>()?,
        };
        layers.sort_unstable();
        layers.dedup();
        let shifts = shifts(network.input().h, self.shift, self.step)?;
        if self.pick.data.is_some() && self.pick.classes.is_empty() {
            self.pick.classes = model.classes.iter().take(self.limit as usize).cloned().collect();
        }
        let mut progress = Progress::new();
        let picked = self.pick.pick(backend, &model, &[], &mut progress)?;
        let out = self.study.out(&zfnet::study::invariance::STUDY)?;
        let mut facts = self.study.facts(&model);
        facts.push(("Data".into(), self.pick.source()));
        let request = Request { picked: &picked, layers, shifts, out: &out, facts };
        let page = study(backend, &model, &request, |done, total| {
            progress.show("invariance", done, total, "");
        })?;
        progress.end();
        println!("{}", page.display());
        Ok(ExitCode::SUCCESS)
    }
}
