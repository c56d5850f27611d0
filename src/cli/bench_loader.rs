//! `zfnet bench loader`: how fast images on disk become batches.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Serialize;
use zfnet::bench::loader::{LoaderRow, Settings, What, copy_gbytes, example, measure};

use super::{IoName, output};

#[derive(Args)]
pub struct BenchLoader {
    /// Folder of images or set of shards; several are compared [default: made up pictures of
    /// 500x375 pixels, as files, in shards, resized to 256 and raw]
    #[arg(long)]
    data: Vec<PathBuf>,
    /// Threads that read and decode
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    workers: u16,
    /// Shortest side that images are resized to
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u16).range(1..=4096))]
    side: u16,
    /// Rows and columns of a crop
    #[arg(long, default_value_t = 224, value_parser = clap::value_parser!(u16).range(1..=4096))]
    size: u16,
    /// Images of a batch
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u16).range(1..))]
    batch: u16,
    /// How shards are read [default: mmap, or pread on a network file system]
    #[arg(long, value_enum)]
    io: Option<IoName>,
    /// Ask the system to drop the files from its cache before each pass (Linux; needs no rights)
    #[arg(long)]
    cold: bool,
    /// Seconds to measure each row for, at least
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct All {
    cores: usize,
    copy_gbytes: f64,
    rows: Vec<LoaderRow>,
}

pub fn run(args: BenchLoader) -> Result<ExitCode> {
    if args.size > args.side {
        bail!("expected crops of at most --side {} pixels, found --size {}", args.side, args.size);
    }
    if args.cold && !cfg!(target_os = "linux") {
        bail!("--cold: only Linux can be asked to drop files from its cache");
    }
    let settings = Settings {
        side: usize::from(args.side),
        size: usize::from(args.size),
        batch: usize::from(args.batch),
        workers: usize::from(args.workers),
        io: args.io.map(Into::into),
        cold: args.cold,
        seconds: args.seconds,
    };
    let made_up = tempfile::tempdir().context("cannot make a folder for pictures")?;
    let sets = if args.data.is_empty() {
        output::message("note: made up pictures; --data measures your own");
        example(made_up.path(), 130)?
    } else {
        args.data.iter().map(|path| (path.display().to_string(), path.clone())).collect()
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut all = All { cores, copy_gbytes: copy_gbytes(), rows: Vec::new() };
    if !args.json {
        output::line(format_args!("{cores} cores, {:.1} GB/s copied by one", all.copy_gbytes))?;
    }
    for (name, path) in &sets {
        for what in [What::Square, What::Batch] {
            let row = measure(name, path, what, &settings, all.copy_gbytes)?;
            if !args.json {
                print(&row)?;
            }
            all.rows.push(row);
        }
    }
    if args.json {
        output::line(serde_json::to_string_pretty(&all)?)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn print(row: &LoaderRow) -> Result<()> {
    output::line(format_args!(
        "{:<44} {:>9.1} images/s ±{:>2.0} % {:>8.2} GB/s of squares, {:>5.1} % of a copy",
        row.id,
        row.images_per_second,
        50.0 * row.spread,
        row.gbytes,
        100.0 * row.share
    ))?;
    Ok(())
}
