//! `zfnet bench`: how fast each operation is, beside what the machine can do.

use std::path::{Path, PathBuf};

use crate::bench::{Benchmark, OPS, Peaks, Row, cases, forward, slower, training_steps};
use crate::data::folder::check_output;
use crate::disk::write_atomic;
use crate::model::{Architecture, Network};
use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};

use super::{DeviceArgs, ExitCode, OnDevice, output};

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Bench {
    #[command(subcommand)]
    pub other: Option<Other>,
    /// A built-in network or a TOML file
    #[arg(long, visible_alias = "model", default_value = "zfnet")]
    arch: String,
    /// Only this layer, or these, separated by commas
    #[arg(long, value_delimiter = ',')]
    layer: Vec<String>,
    /// Only this operation, or these, separated by commas
    #[arg(long, value_delimiter = ',', value_parser = OPS)]
    op: Vec<String>,
    /// Images at a time
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..))]
    batch: u16,
    /// Whole training steps instead of operations. (What a cache holds can be faster than the copy
    /// that the shares of memory-bound rows are taken of)
    #[arg(long, conflicts_with_all = ["layer", "op"])]
    step: bool,
    /// Whole forward passes instead of operations: pixels copied in, logits copied out
    #[arg(long, conflicts_with_all = ["layer", "op", "step", "resident"])]
    forward: bool,
    /// With --step: on a batch that stays where the device has it, instead of copying one in each time
    #[arg(long)]
    resident: bool,
    /// Write the rows into this file, as --json prints them
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// Compare with the rows of a file written by --save, and fail if one is slower now
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,
    /// Share by which a row may be slower than in --compare
    #[arg(long, default_value_t = 0.1, value_parser = share)]
    tolerance: f64,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// What else can be measured.
#[derive(Subcommand)]
pub enum Other {
    /// How fast images on disk become batches
    Loader(super::bench_loader::BenchLoader),
}

/// What a run prints and keeps.
#[derive(Serialize, Deserialize)]
struct Saved {
    device: String,
    peaks: Peaks,
    batch: usize,
    rows: Vec<Row>,
    /// The most bytes that the process has had in memory, where the system says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    peak_memory: Option<u64>,
}

impl OnDevice for Bench {
    fn run<B: Benchmark>(self, backend: &B) -> Result<ExitCode> {
        if self.resident && !self.step {
            bail!("--resident is about whole training steps: add --step");
        }
        if let Some(file) = &self.save {
            check_output(file)?;
        }
        let network = Network::new(Architecture::find(&self.arch)?)?;
        let batch = usize::from(self.batch);
        let cases = cases(backend, &network, batch, &self.layer, &self.op)?;
        let earlier = self.compare.as_deref().map(read).transpose()?;
        let peaks = backend.peaks()?;
        let device = backend.describe();
        let mut rows = Vec::new();
        let mut show = |row: Row| {
            if !self.json {
                print(&row)?;
            }
            rows.push(row);
            Ok::<_, anyhow::Error>(())
        };
        if !self.json {
            let Peaks { gflops, gbytes } = peaks;
            output::line(format_args!(
                "{device}: {gflops:.0} GFLOP/s of multiply-adds, {gbytes:.1} GB/s copied"
            ))?;
        }
        if self.step {
            show(training_steps(backend, network.clone(), batch, self.resident, &peaks)?)?;
        } else if self.forward {
            show(forward(backend, &network, batch, &peaks)?)?;
        } else {
            for case in cases {
                show(case.measure(backend, &peaks)?)?;
            }
        }
        let peak_memory = peak_memory();
        if let (false, Some(bytes)) = (self.json, peak_memory) {
            output::line(format_args!("peak memory: {:.0} MB", bytes as f64 / 1e6))?;
        }
        let all = Saved { device, peaks, batch, rows, peak_memory };
        let text = serde_json::to_string_pretty(&all)?;
        if self.json {
            output::line(&text)?;
        }
        if let Some(file) = &self.save {
            let written = write_atomic(file, text.as_bytes());
            written.with_context(|| format!("cannot write {}", file.display()))?;
        }
        match earlier {
            Some(earlier) => Ok(compare(&all, &earlier, self.tolerance)),
            None => Ok(ExitCode::SUCCESS),
        }
    }
}

/// Linux's high-water mark of the memory that the process has had resident, in bytes.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(1024 * line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?)
}

/// A finite share of at least 0.
fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if share.is_finite() && share >= 0.0 => Ok(share),
        _ => Err("expected a share such as 0.1".into()),
    }
}

/// Rows of an earlier run.
fn read(file: &Path) -> Result<Saved> {
    let text = std::fs::read_to_string(file);
    let text = text.with_context(|| format!("cannot read {}", file.display()))?;
    serde_json::from_str(&text)
        .with_context(|| format!("{}: expected what bench --save writes", file.display()))
}

/// Says which rows have become slower; an exit code of 1 if any has.
fn compare(now: &Saved, earlier: &Saved, tolerance: f64) -> ExitCode {
    if now.device != earlier.device {
        output::message(format_args!(
            "note: the other rows are of another device: {}",
            earlier.device
        ));
    }
    let shared = now.rows.iter().filter(|row| earlier.rows.iter().any(|old| old.id == row.id));
    let (shared, slower) = (shared.count(), slower(&now.rows, &earlier.rows, tolerance));
    for (id, before, after) in &slower {
        let more = 100.0 * (after / before - 1.0);
        output::message(format_args!(
            "slower: {id}: {before:.3} ms before, {after:.3} ms now (+{more:.0} %)"
        ));
    }
    output::message(format_args!(
        "{} of {shared} rows that both have are slower by more than {:.0} %",
        slower.len(),
        100.0 * tolerance
    ));
    if shared == 0 {
        output::message(
            "nothing to compare: no row has the layer, operation, precision, batch and device",
        );
    }
    if slower.is_empty() && shared > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn print(row: &Row) -> Result<()> {
    let (rate, unit) = match (row.gflops, row.gbytes) {
        (Some(gflops), _) => (gflops, "GFLOP/s"),
        (_, gbytes) => (gbytes.unwrap_or(0.0), "GB/s"),
    };
    output::line(format_args!(
        "{:<44} {:>9.3} ms ±{:>2.0} % {rate:>8.1} {unit:<7} {:>5.1} % of peak",
        row.id,
        row.milliseconds,
        50.0 * row.spread,
        100.0 * row.share
    ))?;
    if let Some(rate) = row.images_per_second {
        output::line(format_args!("{rate:.1} images/s"))?;
    }
    Ok(())
}
