//! `zfnet verify`: whether a set of shards is still what was packed.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crate::data::shard::manifest::MANIFEST;
use crate::data::verify::{Report, verify};
use crate::human_bytes;
use anyhow::Result;
use clap::Args;

use super::progress::Progress;
use super::signals::{signal_code, stop_on_signals};
use super::{ExitCode, grouped, output, use_threads};

/// Problems printed; `--json` has all.
const SHOWN: usize = 50;

#[derive(Args)]
pub struct Verify {
    /// Folder of a set that `zfnet pack` has made
    set: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// CPU threads [default: all cores]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
}

pub fn run(args: Verify) -> Result<ExitCode> {
    use_threads(args.threads)?;
    let stop = stop_on_signals()?;
    let mut progress = Progress::new();
    let begun = Instant::now();
    let report = verify(&args.set, &stop, &mut |done, total| {
        let rate = done as f64 / begun.elapsed().as_secs_f64().max(1e-9);
        progress.show("verify", done, total, &format!(", {rate:.0} images/s"));
    });
    progress.end();
    let report = report?;
    if stop.load(Ordering::Relaxed) != 0 {
        output::message("stopped; the set has not been checked to its end");
        return Ok(signal_code(&stop));
    }
    if args.json {
        output::line(serde_json::to_string_pretty(&report)?)?;
    } else {
        print(&report)?;
    }
    Ok(if report.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print(report: &Report) -> Result<()> {
    let checked = format!(
        "{} images in {} shards, {}",
        grouped(report.images),
        grouped(report.shards),
        human_bytes(report.bytes as usize)
    );
    let problems = &report.problems;
    if problems.is_empty() {
        output::line(format_args!("{checked}: all good"))?;
        return Ok(());
    }
    for problem in problems.iter().take(SHOWN) {
        let key = problem.key.as_ref().map_or(String::new(), |key| format!("{key}: "));
        let line = format!("{}: {key}{}", problem.file, problem.what);
        // Names from a damaged file must not drive the terminal.
        output::line(line.replace(char::is_control, "\u{fffd}"))?;
    }
    if problems.len() > SHOWN {
        output::line(format_args!("... and {} more", grouped(problems.len() - SHOWN)))?;
    }
    output::line(format_args!("\n{checked}: {} problem(s)", grouped(problems.len())))?;
    // The manifest comes of all shards, and says what they must be.
    let of_shard = |file: &str| !file.ends_with(MANIFEST);
    if problems.iter().all(|problem| problem.unread) {
        output::line(
            "what could not be read may be in order: see to it that it can be, and verify again",
        )?;
    } else if !problems.iter().all(|problem| of_shard(&problem.file)) {
        output::line("remove the whole set and run the same `zfnet pack` again")?;
    } else {
        output::line(
            "remove the damaged files and run the same `zfnet pack` into this folder again: it makes \
             them anew",
        )?;
    }
    Ok(())
}
