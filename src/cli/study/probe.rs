//! `zfnet study probe`: the paper's Table 7.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::Args;
use zfnet::bench::Measured;
use zfnet::data::Split;
use zfnet::data::set::DataSet;
use zfnet::study::fingerprint;
use zfnet::study::parts::Parts;
use zfnet::study::probe::{Draws, Request, draw, paper_layers, probe, write};

use super::StudyArgs;
use crate::cli::progress::Progress;
use crate::cli::{OnDevice, ReadArgs};

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
    /// Training images of each class [default: all, or as many as memory stands]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    per_class: Option<u32>,
    /// Validation images of each class, at most [default: all, or as many as memory stands]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    test_per_class: Option<u32>,
    /// How often images are drawn anew
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    seeds: u32,
    #[command(flatten)]
    read: ReadArgs,
}

impl OnDevice for Probe {
    fn run<B: Measured>(self, backend: &B) -> Result<ExitCode> {
        let model = self.study.load(backend)?;
        let network = &model.network;
        let layers = match self.layers.as_slice() {
            [] => paper_layers(network),
            names => names.iter().map(|name| network.layer(name)).collect::<Result<_, _>>()?,
        };
        let data = DataSet::open(&self.data)?;
        let options = self.read.options(model.preprocess.resize)?;
        let request = Request {
            train: Arc::new(data.images(Split::Train, options)?),
            val: Arc::new(data.images(Split::Val, options)?),
            classes: data.names(),
            layers,
            per_class: self.per_class.map(|images| images as usize),
            test_per_class: self.test_per_class.map(|images| images as usize),
            seeds: self.seeds,
            workers: usize::from(self.read.workers),
        };
        let in_data = || self.data.display().to_string();
        let draws = draw(network, &request).with_context(in_data)?;

        let out = self.study.out("probe")?;
        let model_print = fingerprint(backend, &model)?;
        let images = [&request.train, &request.val].map(|images| images.fingerprint());
        let precision = format!("{:?}", backend.precision());
        let parts = Parts::open(&out, &(&model_print, images, &draws, precision))?;
        let mut progress = Progress::new();
        let probed =
            probe(backend, &model, &model_print, &request, &draws, &parts, |done, total, more| {
                progress.show("probe", done, total, more);
            })
            .with_context(in_data)?;
        progress.end();

        let mut facts = self.study.facts(&model);
        let of_class = |asked: Option<u32>, most: Option<usize>| match (asked, most) {
            (_, None) => "all".into(),
            (Some(_), Some(most)) => format!("{most} of each class, as far as there are so many"),
            (None, Some(most)) => {
                format!("at most {most} of each class: more would not fit into memory")
            }
        };
        let Draws { per_class, test_per_class, .. } = draws;
        facts.extend(
            [
                ("Data", self.data.display().to_string()),
                ("Classes", request.classes.len().to_string()),
                ("Training images", of_class(self.per_class, per_class)),
                ("Validation images", of_class(self.test_per_class, test_per_class)),
                ("Seeds", self.seeds.to_string()),
            ]
            .map(|(name, value)| (name.to_owned(), value)),
        );
        let own_classes = request.classes.iter().any(|class| model.classes.contains(class));
        let page = write(&out, network, facts, &draws, own_classes, &probed)
            .with_context(|| format!("cannot write into {}", out.display()))?;
        parts.done()?;
        println!("{}", page.display());
        Ok(ExitCode::SUCCESS)
    }
}
