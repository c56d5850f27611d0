//! `zfnet study transfer`: the paper's Tables 4 and 5.

use std::path::PathBuf;

use crate::bench::Benchmark;
use crate::data::Split;
use crate::data::set::DataSet;
use crate::report;
use crate::study::Splits;
use crate::study::probe::paper_layers;
use crate::study::small_data::Start;
use crate::study::transfer::{STUDY, Settings, draw, run};
use anyhow::{Context, Result, bail};
use clap::Args;

use super::{StudyArgs, finish};
use crate::cli::progress::Progress;
use crate::cli::{ExitCode, OnDevice, ReadArgs, output, shown};

#[derive(Args)]
pub struct Transfer {
    #[command(flatten)]
    pub study: StudyArgs,
    /// Folder with train/CLASS/* and val/CLASS/*, or shards made by `zfnet pack`, of classes that the
    /// checkpoint was not trained on
    #[arg(long)]
    data: PathBuf,
    /// Layers whose outputs are used, separated by commas [default: the last before the classifier]
    #[arg(long, value_delimiter = ',')]
    layer: Vec<String>,
    /// Training images of each class, separated by commas
    #[arg(long, value_delimiter = ',', default_value = "5,15,30,60")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    per_class: Vec<u32>,
    /// Number of folds
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    folds: u32,
    /// Test images of each class, at most
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    test_per_class: u32,
    /// Seed of the folds and crops
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Do not train the same network from scratch beside it
    #[arg(long)]
    no_scratch: bool,
    /// Train the whole network from the checkpoint's weights, too
    #[arg(long)]
    fine_tune: bool,
    /// Training crops of each image that the classifier on frozen features learns from, as the recipe cuts them; fewer
    /// if they do not fit
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    train_crops: u32,
    /// Steps of each network that is trained as a whole
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u32).range(1..))]
    updates: u32,
    /// Learning rates of these networks, as shares of the recipe's, separated by commas: with several, the best on
    /// held-out training images is taken
    #[arg(long, value_delimiter = ',', default_value = "0.1,0.3,1")]
    rates: Vec<f32>,
    /// What the checkpoint was trained on, to be searched for near-duplicates of the images used
    #[arg(long)]
    pretrained_on: Option<PathBuf>,
    /// Correlation of thumbnails from which on two images are near-duplicates
    #[arg(long, default_value_t = 0.95)]
    duplicate_threshold: f32,
    #[command(flatten)]
    read: ReadArgs,
}

impl OnDevice for Transfer {
    fn run<B: Benchmark>(mut self, backend: &B) -> Result<ExitCode> {
        if !(-1.0..=1.0).contains(&self.duplicate_threshold) {
            let found = self.duplicate_threshold;
            bail!("--duplicate-threshold: expected a correlation from -1 to 1, found {found}");
        }
        let model = self.study.load(backend)?;
        if let Some(rate) = self.rates.iter().find(|rate| !(**rate > 0.0 && rate.is_finite())) {
            bail!("--rates: expected shares of the learning rate above 0, found {rate}");
        }
        let layers = match paper_layers(&model.network).last() {
            _ if !self.layer.is_empty() => {
                let mut layers = Vec::new();
                for name in &self.layer {
                    let layer = model.network.layer(name)?;
                    if !layers.contains(&layer) {
                        layers.push(layer);
                    }
                }
                layers
            }
            Some(&layer) => vec![layer],
            None => bail!("the network has no layer before its classifier: name one with --layer"),
        };
        self.rates.sort_unstable_by(f32::total_cmp);
        self.rates.dedup();
        self.per_class.sort_unstable();
        self.per_class.dedup();
        let starts = [(Start::Scratch, !self.no_scratch), (Start::FineTune, self.fine_tune)];
        let settings = Settings {
            layers,
            per_class: self.per_class.iter().map(|&images| images as usize).collect(),
            folds: self.folds as usize,
            test_per_class: self.test_per_class as usize,
            seed: self.seed,
            crops: self.train_crops as usize,
            starts: starts.iter().filter(|(_, wanted)| *wanted).map(|(start, _)| *start).collect(),
            updates: self.updates,
            rates: self.rates,
            duplicate_threshold: self.duplicate_threshold,
        };
        let options = self.read.options(model.preprocess.resize)?;
        let data = Splits::open(&DataSet::open(&self.data)?, options)?;
        // Whether there are enough images is asked before a folder is made.
        draw(&settings, &data).with_context(|| self.data.display().to_string())?;
        let out = self.study.out(&STUDY)?;
        let seen = match &self.pretrained_on {
            Some(root) => Some(DataSet::open(root)?.images(Split::Train, options)?),
            None => None,
        };
        let mut progress = Progress::new();
        let mut session = self.study.session(backend, &model, &out, &mut progress)?;
        session.workers = self.read.workers(backend);
        session.fact("Data", shown(&self.data));
        let found = run(&mut session, &model, &settings, &data, seen.as_ref())?;
        let page = finish(session, &out, report::transfer::write(&out, &found))?;
        progress.end();
        output::line(page.display())?;
        Ok(ExitCode::SUCCESS)
    }
}
