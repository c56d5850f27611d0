//! `zfnet study preferred`: images synthesised for single maps.

use std::path::PathBuf;

use crate::bench::Benchmark;
use crate::data::Split;
use crate::data::set::KeyedImages;
use crate::model::Network;
use crate::report::preferred::Writer;
use crate::study::peaks::{Chosen, Maps};
use crate::study::preferred::{
    Compared, Found, STUDY, Settings, default_layers, must_have_weights, run,
};
use anyhow::{Context, Result};
use clap::Args;

use super::features::chosen_units;
use super::{StudyArgs, finish, layers_named};
use crate::cli::progress::Progress;
use crate::cli::{ExitCode, OnDevice, ReadArgs, SplitName, output, shown};

#[derive(Args)]
pub struct Preferred {
    #[command(flatten)]
    pub study: StudyArgs,
    /// Images whose nine strongest patches stand beside: a folder with train/CLASS/* and val/CLASS/*, of
    /// whatever classes, or of images alone, or shards made by `zfnet pack`
    #[arg(long)]
    data: Option<PathBuf>,
    /// Which split of the data [default: val, or all images of a folder without splits]
    #[arg(long, value_enum, requires = "data")]
    split: Option<SplitName>,
    /// Layers with weights, separated by commas [default: all spatial convolutions and the logits]
    #[arg(long, value_delimiter = ',')]
    layers: Vec<String>,
    /// So many maps of each layer, from the first on
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..))]
    maps: u32,
    /// Draw the maps at random instead
    #[arg(long)]
    random: bool,
    /// Single maps (LAYER:MAP, as conv5:123), separated by commas, instead of --layers and --maps
    #[arg(long, value_delimiter = ',', conflicts_with_all = ["layers", "maps", "random"])]
    units: Vec<String>,
    /// Seed of noise and jitter, and of --random
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    ascent: AscentArgs,
    #[command(flatten)]
    read: ReadArgs,
}

/// How pictures are made.
#[derive(Args)]
struct AscentArgs {
    /// Steps of the ascent
    #[arg(long, default_value_t = Settings::default().steps as u32, value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,
    /// Learning rate: by how much a step changes the pixels that the unit sees, root mean square (a pixel is 0 to 255)
    #[arg(long, default_value_t = Settings::default().rate)]
    rate: f32,
    /// Share of the picture's distance from the mean that each step takes away
    #[arg(long, default_value_t = Settings::default().decay)]
    decay: f32,
    /// Standard deviation of the blur, in pixels; 0 for none
    #[arg(long, default_value_t = Settings::default().blur)]
    blur: f32,
    /// Steps from one blur to the next
    #[arg(long, default_value_t = Settings::default().blur_every as u32, value_parser = clap::value_parser!(u32).range(1..))]
    blur_every: u32,
    /// Largest random shift, as a share of what a unit sees
    #[arg(long, default_value_t = Settings::default().jitter)]
    jitter: f32,
}

impl AscentArgs {
    fn settings(&self) -> Settings {
        Settings {
            steps: self.steps as usize,
            rate: self.rate,
            decay: self.decay,
            blur: self.blur,
            blur_every: self.blur_every as usize,
            jitter: self.jitter,
        }
    }
}

impl Preferred {
    fn chosen(&self, network: &Network) -> Result<Vec<Chosen>> {
        if !self.units.is_empty() {
            return chosen_units(network, &self.units);
        }
        let maps = match self.random {
            true => Maps::Random(self.maps as usize, self.seed),
            false => Maps::First(self.maps as usize),
        };
        let layers = layers_named(network, &self.layers, default_layers)?;
        Ok(layers.into_iter().map(|layer| maps.of(network, layer)).collect())
    }
}

impl OnDevice for Preferred {
    fn run<B: Benchmark>(self, backend: &B) -> Result<ExitCode> {
        let model = self.study.load(backend)?;
        let chosen = self.chosen(&model.network)?;
        for chosen in &chosen {
            must_have_weights(&model.network, chosen.layer)?;
        }
        let settings = self.ascent.settings();
        settings.check()?;
        let data = match &self.data {
            Some(root) => {
                let options = self.read.options(model.preprocess.resize)?;
                let data = KeyedImages::open(root, self.split.map(Split::from), options)?;
                Some((root, data))
            }
            None => None,
        };
        let compared = data.as_ref().map(|(root, data)| Compared {
            images: &data.images,
            classes: data.classes.as_ref(),
            root,
        });
        let mut progress = Progress::new();
        let out = self.study.out(&STUDY)?;
        let mut session = self.study.session(backend, &model, &out, &mut progress)?;
        session.workers = self.read.workers(backend);
        if let Some((root, data)) = &data {
            let of = match (self.split, &data.classes) {
                (None, None) => "all".to_owned(),
                (split, _) => Split::from(split.unwrap_or(SplitName::Val)).name().to_owned(),
            };
            session.fact("Images", format!("{}, {of}: {}", shown(root), data.images.len()));
        }
        session.fact("Seed", self.seed.to_string());
        let facts = session.facts.clone();
        let mut writer = Writer::new(&out, &model.network, facts, &settings, compared.is_some())
            .with_context(|| format!("cannot write into {}", out.display()))?;
        run(&mut session, &model, &chosen, &settings, self.seed, compared.as_ref(), |found| {
            match found {
                Found::Layer(layer) => writer.layer(&layer),
                Found::Map(map) => writer.map(&map).map_err(crate::Error::io("write", &out))?,
            }
            Ok(())
        })?;
        let page = finish(session, &out, writer.finish())?;
        progress.end();
        output::line(page.display())?;
        Ok(ExitCode::SUCCESS)
    }
}
