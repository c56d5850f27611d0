//! `zfnet study features`, and by its older name `zfnet top9`: the paper's Figure 2.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::backend::Backend;
use crate::bench::Benchmark;
use crate::data::Split;
use crate::data::classes::Classes;
use crate::data::images::Images;
use crate::data::set::KeyedImages;
use crate::model::{Model, Network, Rule};
use crate::ranks::Ranks;
use crate::report::figure::take_back;
use crate::report::top9::{Header, Writer};
use crate::study::features::{Feature, STUDY, Settings, run};
use crate::study::peaks::{Chosen, Maps, spatial_layers};
use crate::study::{Session, unit_named};
use anyhow::{Context, Result};
use clap::Args;

use super::{StudyArgs, finish, initial_weights, watched};
use crate::cli::progress::Progress;
use crate::cli::ranks::{RankArgs, tell_failure};
use crate::cli::signals::stop_on_signals;
use crate::cli::{ExitCode, OnDevice, ReadArgs, SplitName, output, shown};

#[derive(Args)]
pub struct Features {
    #[command(flatten)]
    pub study: StudyArgs,
    /// Images: a folder with train/CLASS/* and val/CLASS/*, of whatever classes, or of images alone, or shards made by
    /// `zfnet pack`
    #[arg(long)]
    data: PathBuf,
    #[command(flatten)]
    choose: ChooseArgs,
    /// Which split of the data [default: val, or all images of a folder without splits]
    #[arg(long, value_enum)]
    split: Option<SplitName>,
    /// Rule of the backward pass
    #[arg(long, default_value = "deconvnet", value_parser = ["deconvnet", "gradient", "guided"])]
    rule: String,
    #[command(flatten)]
    ranks: RankArgs,
    #[command(flatten)]
    read: ReadArgs,
}

/// Which layers and maps.
#[derive(Args)]
pub struct ChooseArgs {
    /// Layers, separated by commas [default: all spatial convolutions]
    #[arg(long, value_delimiter = ',')]
    layers: Vec<String>,
    /// Take the maps after pooling: the layers default to the poolings
    #[arg(long, conflicts_with_all = ["layers", "units"])]
    post_pool: bool,
    /// Only so many maps of each layer, from the first on [default: all]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    maps: Option<u32>,
    /// Draw the maps at random instead, as the paper does
    #[arg(long, requires = "maps")]
    random: bool,
    /// Seed of --random
    #[arg(long, default_value_t = 0, requires = "random")]
    seed: u64,
    /// Single maps (LAYER:MAP, as conv5:123), separated by commas, instead of --layers and --maps
    #[arg(long, value_delimiter = ',', conflicts_with_all = ["layers", "maps"])]
    units: Vec<String>,
}

impl ChooseArgs {
    fn chosen(&self, network: &Network) -> Result<Vec<Chosen>> {
        if !self.units.is_empty() {
            return chosen_units(network, &self.units);
        }
        let layers = match self.layers.as_slice() {
            [] => spatial_layers(network, self.post_pool)?,
            names => names.iter().map(|name| network.layer(name)).collect::<Result<_, _>>()?,
        };
        let maps = match self.maps {
            Some(count) if self.random => Maps::Random(count as usize, self.seed),
            count => Maps::First(count.map_or(usize::MAX, |count| count as usize)),
        };
        Ok(layers.into_iter().map(|layer| maps.of(network, layer)).collect())
    }
}

/// Maps named one by one, by layer.
pub fn chosen_units(network: &Network, units: &[String]) -> Result<Vec<Chosen>> {
    let mut named = Vec::new();
    for unit in units {
        named.push(unit_named(network, unit)?);
    }
    named.sort_unstable();
    named.dedup();
    let of_layer = |units: &[(usize, usize)]| Chosen {
        layer: units[0].0,
        maps: units.iter().map(|(_, map)| *map).collect(),
    };
    Ok(named.chunk_by(|a, b| a.0 == b.0).map(of_layer).collect())
}

/// Makes the page, by all ranks that a launcher has started.
pub fn run_by_ranks(mut args: Features) -> Result<ExitCode> {
    args.ranks.join()?;
    let ranks = args.ranks.ranks.clone();
    let run = || {
        if ranks.count() > 1 {
            // So that all stop at the same place, and name one that was killed before the launcher ends them.
            args.ranks.share_stop(&stop_on_signals()?);
        }
        let code = args.study.device.of_rank(&ranks).run(args)?;
        ranks.meet()?; // what rank 0 writes last may fail
        Ok(code)
    };
    tell_failure(&ranks, run())
}

impl OnDevice for Features {
    fn run<B: Benchmark>(self, backend: &B) -> Result<ExitCode> {
        let model = self.study.load(backend)?;
        let page = self.page(backend, &model, || self.study.out(&STUDY), Progress::new())?;
        if let Some(page) = page {
            output::line(page.display())?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Features {
    /// Makes the page of a model, whatever checkpoint it is of, and says where it is; of several ranks, the first has it.
    /// `folder` makes its folder, when all that was asked for is there.
    pub fn page<B: Backend>(
        &self,
        backend: &B,
        model: &Model<B>,
        folder: impl FnOnce() -> Result<PathBuf>,
        mut progress: Progress,
    ) -> Result<Option<PathBuf>> {
        let ranks = &self.ranks.ranks;
        let options = self.read.options(model.preprocess.resize)?;
        let data = KeyedImages::open(&self.data, self.split.map(Split::from), options)?;
        let split = match (self.split, &data.classes) {
            (None, None) => "all".to_owned(),
            (split, _) => Split::from(split.unwrap_or(SplitName::Val)).name().to_owned(),
        };
        let job = PageJob {
            checkpoint: shown(&self.study.checkpoint),
            root: &self.data,
            images: data.images,
            classes: data.classes,
            split,
            chosen: self.choose.chosen(&model.network)?,
            rule: self.rule.clone(),
            workers: self.read.workers_of_rank(backend, ranks),
            facts: Vec::new(),
            status: None,
        };
        if !ranks.is_first() {
            job.look(&mut Session::new(backend), ranks, model, |_| Ok(()))?;
            return Ok(None);
        }
        let out = folder()?;
        take_back(&out).with_context(|| format!("cannot write into {}", out.display()))?;
        let page = write_page(backend, ranks, model, job, &out, &mut progress)?;
        progress.end();
        Ok(Some(page))
    }
}

/// What a page shows.
pub struct PageJob<'a> {
    pub checkpoint: String,
    pub root: &'a Path,
    pub images: Arc<Images>,
    /// Their classes, if they have any.
    pub classes: Option<Classes>,
    /// Which images of the data they are: a split's name, or "all".
    pub split: String,
    pub chosen: Vec<Chosen>,
    pub rule: String,
    pub workers: usize,
    /// What else stands under the title.
    pub facts: Vec<(String, String)>,
    /// What is still going on; the page then renews itself.
    pub status: Option<String>,
}

impl PageJob<'_> {
    /// Does this rank's share of the search and the projections; `each` is given what they find at rank 0.
    fn look<B: Backend>(
        &self,
        session: &mut Session<'_, B>,
        ranks: &Ranks,
        model: &Model<B>,
        each: impl FnMut(Feature) -> crate::Result<()>,
    ) -> Result<()> {
        let settings = Settings { chosen: self.chosen.clone(), rule: Rule::named(&self.rule)? };
        (session.workers, session.ranks) = (self.workers, ranks.clone());
        run(session, model, &settings, &self.images, self.classes.as_ref(), self.root, each)?;
        Ok(())
    }
}

/// Makes the page in the folder `out`, which is there, and says where it is. For rank 0, which the others help.
pub fn write_page<B: Backend>(
    backend: &B,
    ranks: &Ranks,
    model: &Model<B>,
    job: PageJob<'_>,
    out: &Path,
    progress: &mut Progress,
) -> Result<PathBuf> {
    let network = &model.network;
    let header = Header {
        title: format!("What {} has learnt", network.architecture.name),
        checkpoint: job.checkpoint.clone(),
        data: shown(job.root),
        network: network.architecture.name.clone(),
        split: job.split.clone(),
        images: job.images.len(),
        input: network.architecture.input.size,
        rule: job.rule.clone(),
        facts: [
            job.facts.clone(),
            vec![
                ("Images are".into(), model.preprocess.to_string()),
                initial_weights(backend, model)?,
            ],
        ]
        .concat(),
        refresh: job.status.as_ref().map(|_| 10),
        status: job.status.clone(),
    };
    let mut writer =
        Writer::new(out, header).with_context(|| format!("cannot write into {}", out.display()))?;
    let mut session = watched(backend, out, progress);
    job.look(&mut session, ranks, model, |found| {
        let written = match found {
            Feature::Layer(layer) => writer.layer(layer),
            Feature::Map(map) => writer.map(map),
        };
        written.map_err(crate::Error::io("write", out))
    })?;
    finish(session, out, writer.finish())
}
