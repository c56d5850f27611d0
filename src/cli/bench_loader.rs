//! `zfnet bench loader`: how fast images on disk become batches.

use std::path::PathBuf;

use crate::bench::loader::{LoaderRow, Settings, What, copy_gbytes, example, measure};
use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Serialize;

use super::{ExitCode, IoName, MOST_WORKERS, grouped, output};

#[derive(Args)]
pub struct BenchLoader {
    /// Folder of images or set of shards; several are compared [default: made up pictures of
    /// 500x375 pixels, as files, in shards, resized to 256 and raw]
    #[arg(long)]
    data: Vec<PathBuf>,
    /// Numbers of threads that read and decode, separated by commas; each is a row [default: 1, 2, 4 and so on up to
    /// all cores]
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..=i64::from(MOST_WORKERS)))]
    workers: Vec<u16>,
    /// Rates of training in images/s, separated by commas: print about how many cores feed each
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..))]
    target: Vec<u32>,
    /// Shortest side that images are resized to
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u16).range(1..=4096))]
    side: u16,
    /// Also cut mirrored crops of so many rows and columns in the thread that takes the batches, as other programs'
    /// loaders do [default: none, since the device does that in training]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=4096))]
    size: Option<u16>,
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
    if let Some(size) = args.size.filter(|size| *size > args.side) {
        bail!("expected crops of at most --side {} pixels, found --size {size}", args.side);
    }
    if args.cold && !cfg!(target_os = "linux") {
        bail!("--cold: only Linux can be asked to drop files from its cache");
    }
    let settings = Settings {
        side: usize::from(args.side),
        size: args.size.map(usize::from),
        batch: usize::from(args.batch),
        workers: 1,
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
    let mut workers = match args.workers.as_slice() {
        [] => up_to(cores),
        asked => asked.iter().map(|workers| usize::from(*workers)).collect(),
    };
    workers.sort_unstable();
    workers.dedup();
    let mut all = All { cores, copy_gbytes: copy_gbytes(), rows: Vec::new() };
    if !args.json {
        output::line(format_args!("{cores} cores, {:.1} GB/s copied by one", all.copy_gbytes))?;
    }
    for (name, path) in &sets {
        let show = |row: &LoaderRow| if args.json { Ok(()) } else { print(row) };
        let square = measure(name, path, What::Square, &settings, all.copy_gbytes)?;
        show(&square)?;
        all.rows.push(square);
        let mut rows: Vec<LoaderRow> = Vec::new();
        for &workers in &workers {
            let settings = Settings { workers, ..settings };
            let mut row = measure(name, path, What::Batch, &settings, all.copy_gbytes)?;
            if let Some(fewest) = rows.first() {
                row.compare_with(fewest);
            }
            show(&row)?;
            rows.push(row);
        }
        if !args.json {
            print_targets(&rows, cores, &args.target)?;
        }
        all.rows.extend(rows);
    }
    if args.json {
        output::line(serde_json::to_string_pretty(&all)?)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// 1, 2, 4 and so on, and the number of cores.
fn up_to(cores: usize) -> Vec<usize> {
    let doubled = std::iter::successors(Some(1), |n| Some(2 * n)).take_while(|n| *n < cores);
    doubled.chain([cores]).take_while(|n| *n <= MOST_WORKERS.into()).collect()
}

fn print(row: &LoaderRow) -> Result<()> {
    output::line(format_args!(
        "{:<44} {:>9.1} images/s ±{:>2.0} % {:>8.2} GB/s of squares, {:>5.1} % of a copy{}",
        row.id,
        row.images_per_second,
        50.0 * row.spread,
        row.gbytes,
        100.0 * row.share,
        row.linear.map_or(String::new(), |share| format!(", {:.0} % of linear", 100.0 * share))
    ))?;
    Ok(())
}

/// How many cores feed each of the rates, by the row of the most threads that have a core each.
fn print_targets(rows: &[LoaderRow], cores: usize, targets: &[u32]) -> Result<()> {
    let on_cores = rows.iter().rev().find(|row| row.workers <= Some(cores)).or(rows.first());
    let Some((row, one)) = on_cores.and_then(|row| Some((row, row.rate_of_one()?))) else {
        return Ok(());
    };
    for target in targets {
        output::line(format_args!(
            "    {} images/s: about {} cores, extrapolated from {:.0} a core ({})",
            grouped(*target as usize),
            (f64::from(*target) / one).ceil(),
            one,
            row.id
        ))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::up_to;

    #[test]
    fn numbers_of_threads_double_up_to_all_cores() {
        assert_eq!(up_to(1), [1]);
        assert_eq!(up_to(2), [1, 2]);
        assert_eq!(up_to(12), [1, 2, 4, 8, 12]);
    }
}
