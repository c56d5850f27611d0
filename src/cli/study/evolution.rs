//! `zfnet study evolution`, and `zfnet train --evolution`: the paper's Figure 4.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::backend::Backend;
use crate::bench::Benchmark;
use crate::data::Split;
use crate::data::images::Images;
use crate::import::ExternalConfig;
use crate::model::{Model, Network};
use crate::report;
use crate::study::Facts;
use crate::study::evolution::{EPOCHS, MAPS, STUDY, TrackedMaps, run};
use crate::study::peaks::{Chosen, Maps, spatial_layers};
use crate::train::Event;
use crate::train::checkpoint::{load_model, states};
use anyhow::{Result, bail};
use clap::Args;

use super::features::chosen_units;
use super::{finish, initial_weights, watched};
use crate::cli::progress::Progress;
use crate::cli::{DeviceArgs, ExitCode, OnDevice, ReadArgs, make_folder, open_data, output, shown};

#[derive(Args)]
pub struct Evolution {
    /// Folder of the run
    run: PathBuf,
    /// The data it was trained on: a folder with train/CLASS/* and val/CLASS/*, or shards
    #[arg(long)]
    data: PathBuf,
    /// Epochs, separated by commas [default: all whose checkpoints are kept; see train --keep]
    #[arg(long, value_delimiter = ',')]
    epochs: Vec<u32>,
    /// Maps (LAYER:MAP, as conv5:123), separated by commas [default: six of each spatial convolution]
    #[arg(long, value_delimiter = ',')]
    units: Vec<String>,
    /// Seed of that choice of maps
    #[arg(long, default_value_t = 0, conflicts_with = "units")]
    seed: u64,
    /// Folder for the page, its pictures and numbers [default: RUN/report/evolution]
    #[arg(long)]
    out: Option<PathBuf>,
    #[command(flatten)]
    pub device: DeviceArgs,
    #[command(flatten)]
    read: ReadArgs,
}

impl OnDevice for Evolution {
    fn run<B: Benchmark>(self, backend: &B) -> Result<ExitCode> {
        let mut kept = states(&self.run)?;
        kept.retain(|(state, _)| state.batch == 0 && state.epoch > 0);
        kept.sort_by_key(|(state, _)| state.epoch);
        let epochs: Vec<String> = kept.iter().map(|(state, _)| state.epoch.to_string()).collect();
        if kept.is_empty() {
            bail!(
                "{}: expected checkpoints of ends of epochs, found none: train with --keep 100",
                self.run.display()
            );
        }
        for epoch in &self.epochs {
            if kept.iter().all(|(state, _)| state.epoch != *epoch) {
                bail!(
                    "{}: no checkpoint of the end of epoch {epoch}, only of {}: train with a larger \
                     --keep, or with --evolution",
                    self.run.display(),
                    epochs.join(", ")
                );
            }
        }
        if !self.epochs.is_empty() {
            kept.retain(|(state, _)| self.epochs.contains(&state.epoch));
        }
        let out = self.out.clone().unwrap_or_else(|| page_folder(&self.run));
        let mut progress = Progress::new();
        let mut written = None;
        let mut images: Option<Arc<Images>> = None;
        for (state, folder) in &kept {
            let model = load_model(backend, folder, &ExternalConfig::default())?;
            let images = match &images {
                Some(images) => images.clone(),
                None => {
                    let options = self.read.options(model.preprocess.resize)?;
                    let opened = open_data(&self.data, &model)?.images(Split::Train, options)?;
                    images.insert(Arc::new(opened)).clone()
                }
            };
            let chosen = choose(&model.network, &self.units, self.seed)?;
            make_folder(&out)?; // now that all that was asked for is there
            let followed = TrackedMaps { images, root: &self.data, chosen };
            let mut session = watched(backend, &out, &mut progress);
            session.workers = self.read.workers(backend);
            session.facts = facts(backend, &model, &self.run, &self.data)?;
            let found = run(&mut session, &model, &followed, &out, state.epoch, state.step)?;
            written = Some(finish(session, &out, report::evolution::write(&out, &found))?);
        }
        progress.end();
        output::line(format_args!("{}", written.expect("one epoch at least").display()))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Where the page of a run is, unless it shall be elsewhere.
fn page_folder(run: &Path) -> PathBuf {
    run.join("report").join(STUDY.name)
}

fn choose(network: &Network, units: &[String], seed: u64) -> Result<Vec<Chosen>> {
    if !units.is_empty() {
        return chosen_units(network, units);
    }
    let layers = spatial_layers(network, false)?.into_iter();
    Ok(layers.map(|layer| Maps::Random(MAPS, seed).of(network, layer)).collect())
}

fn facts<B: Backend>(
    backend: &B,
    model: &Model<B>,
    run: &Path,
    data: &Path,
) -> crate::Result<Facts> {
    let facts = [
        ("Network", model.network.architecture.name.clone()),
        ("Run", shown(run)),
        ("Data", format!("{}, train", shown(data))),
    ];
    let facts = facts.map(|(name, value)| (name.to_owned(), value));
    Ok([&facts[..], &[initial_weights(backend, model)?]].concat())
}

/// What `train` takes to follow features as they come about.
#[derive(Args)]
#[command(next_help_heading = "Features as they come about")]
pub struct EvolutionArgs {
    /// After some epochs, draw the strongest training activations of some maps (Figure 4)
    #[arg(long)]
    evolution: bool,
    /// After these epochs, separated by commas, and after the last [default: the paper's 1, 2, 5, 10,
    /// 20, 30, 40, 64]
    #[arg(long, value_delimiter = ',', requires = "evolution")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    evolution_epochs: Vec<u32>,
    /// Maps (LAYER:MAP), separated by commas [default: six of each spatial convolution]
    #[arg(long, value_delimiter = ',', requires = "evolution")]
    evolution_units: Vec<String>,
}

/// A training's features, followed as it goes.
pub struct Watch<'a> {
    followed: TrackedMaps<'a>,
    epochs: Vec<u32>,
    run: PathBuf,
    workers: usize,
}

impl EvolutionArgs {
    /// What is to be followed, if anything; errors before anything is trained.
    pub fn watch<'a>(
        &self,
        network: &Network,
        images: Arc<Images>,
        data: &'a Path,
        run: &Path,
        workers: usize,
    ) -> Result<Option<Watch<'a>>> {
        if !self.evolution {
            return Ok(None);
        }
        let chosen = choose(network, &self.evolution_units, 0)?;
        let mut epochs = self.evolution_epochs.clone();
        if epochs.is_empty() {
            epochs = EPOCHS.to_vec();
        }
        epochs.push(network.architecture.recipe.epochs);
        let followed = TrackedMaps { images, root: data, chosen };
        Ok(Some(Watch { followed, epochs, run: run.to_owned(), workers }))
    }
}

impl Watch<'_> {
    /// Makes the snapshot of an epoch that has just ended, or whose snapshot was interrupted.
    pub fn event<B: Backend>(
        &self,
        backend: &B,
        event: &Event<'_>,
        progress: &mut Progress,
    ) -> crate::Result<()> {
        let (Event::Start { state, .. } | Event::Epoch { state, .. }) = event else {
            return Ok(());
        };
        if state.batch != 0 || !self.epochs.contains(&state.epoch) {
            return Ok(());
        }
        // What training holds is left alone: the checkpoint just written has the same weights.
        let model = load_model(backend, &self.run.join("last"), &ExternalConfig::default())?;
        let out = page_folder(&self.run);
        let mut session = watched(backend, &out, progress);
        session.workers = self.workers;
        session.facts = facts(backend, &model, &self.run, self.followed.root)?;
        let found = run(&mut session, &model, &self.followed, &out, state.epoch, state.step)?;
        let page = report::evolution::write(&out, &found);
        let page = page.map_err(crate::Error::io("write", &out))?;
        session.finish()?;
        progress.line(&format!("evolution: {}", page.display()));
        Ok(())
    }
}
