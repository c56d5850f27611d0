//! `zfnet study ablation`: the paper's Table 3.

use std::path::PathBuf;
use std::time::Instant;

use crate::bench::Benchmark;
use crate::data::set::DataSet;
use crate::study::ablation::{Event, read, run};
use crate::study::{Session, Splits};
use crate::{report, train};
use anyhow::Result;
use clap::Args;

use super::finish;
use crate::cli::signals::{signal_code, stop_on_signals};
use crate::cli::train::{Display, RecipeArgs, duration};
use crate::cli::{DeviceArgs, ExitCode, OnDevice, ReadArgs, make_folder, output, shown};

#[derive(Args)]
pub struct Ablation {
    /// TOML file: a base network and its variants (see examples/ablation-zfnet-mini.toml)
    #[arg(long)]
    config: PathBuf,
    /// Folder with train/CLASS/* and val/CLASS/*, or shards made by `zfnet pack`
    #[arg(long)]
    data: PathBuf,
    /// Folder for the page, its numbers and all runs; the same command goes on where it was
    #[arg(long)]
    out: PathBuf,
    /// Seed of every run; with --seeds of the first
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Train every network with so many seeds, and say which differences are larger than those between seeds; more
    /// can be added later
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    seeds: u32,
    #[command(flatten)]
    recipe: RecipeArgs,
    #[command(flatten)]
    pub device: DeviceArgs,
    #[command(flatten)]
    read: ReadArgs,
}

impl OnDevice for Ablation {
    fn run<B: Benchmark>(self, backend: &B) -> Result<ExitCode> {
        let mut variants = read(&self.config)?;
        for row in &mut variants.rows {
            self.recipe.apply(&mut row.architecture)?;
        }
        let base = &variants.rows[0].architecture;
        base.recipe.check()?;
        let epochs = base.recipe.epochs;
        let options = self.read.options(base.input.resize)?;
        let data = Splits::open(&DataSet::open(&self.data)?, options)?;
        let stop = stop_on_signals()?;
        let out = make_folder(&self.out)?;
        let mut session = Session::new(backend).kept_in(&out);
        session.workers = self.read.workers(backend);
        session.fact("Data", shown(&self.data));
        let mut display = Display::new(epochs);
        let mut left = Left { begun: None, before: 0.0, share: 0.0 };
        let seeds = self.seeds as usize;
        let observe = |event: Event<'_>| match event {
            Event::Row { index, rows, name, seed, share } => {
                display.progress.end();
                display = Display::new(epochs);
                let with = if seeds > 1 { format!(", seed {seed}") } else { String::new() };
                display.progress.line(&format!("{} of {rows}: {name}{with}", index + 1));
                left = Left { before: left.before + left.share, share, ..left };
            }
            Event::Training(event) => {
                display.event(&event);
                if let train::Event::Start { state, .. } = event
                    && state.epoch < epochs
                {
                    left.at(f64::from(state.epoch) / f64::from(epochs));
                }
                if let train::Event::Epoch { state, .. } = event
                    && let Some(seconds) = left.at(f64::from(state.epoch) / f64::from(epochs))
                {
                    let line = format!("about {} left for all networks", duration(seconds));
                    display.progress.line(&line);
                }
            }
            Event::Measuring(done, total) => display.progress.show("measure", done, total, ""),
            Event::Finished(row, run) => display.progress.line(&format!(
                "{}: top-1 error {:.2} % in training, {:.2} % in validation, top-5 error {:.2} %",
                row.name,
                100.0 * run.train.top1_error,
                100.0 * run.val.top1_error,
                100.0 * run.val.top5_error
            )),
        };
        let found = run(&session, &variants, &data, self.seed, seeds, &out, &stop, observe);
        display.progress.end();
        match found? {
            Some(found) => {
                let page = finish(session, &out, report::ablation::write(&out, &found))?;
                output::line(page.display())?;
                Ok(ExitCode::SUCCESS)
            }
            None => {
                output::message("stopped; go on with the same command");
                Ok(signal_code(&stop))
            }
        }
    }
}

/// Tells how much time is left, from multiply-adds done since this process began.
struct Left {
    /// When training began, and which share of all work was done then.
    begun: Option<(Instant, f64)>,
    /// Share of the rows before the one in hand, and its own.
    before: f64,
    share: f64,
}

impl Left {
    /// Seconds that are left, if the row in hand is done to this part.
    fn at(&mut self, part: f64) -> Option<f64> {
        let done = self.before + self.share * part;
        let (begun, first) = *self.begun.get_or_insert((Instant::now(), done));
        (done > first).then(|| begun.elapsed().as_secs_f64() / (done - first) * (1.0 - done))
    }
}
