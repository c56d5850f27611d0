//! `zfnet pack`: a set of shards from a folder or tars of images.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use crate::data::pack::{Options, Outcome, Plan, check_place, default_mean_side, pack};
use crate::data::shard::manifest::Form;
use crate::data::source::Source;
use crate::human_bytes;
use anyhow::{Result, bail};
use clap::Args;

use super::progress::Progress;
use super::signals::{signal_code, stop_on_signals};
use super::{ExitCode, output, use_threads};

#[derive(Args)]
pub struct Pack {
    /// Folder with train/CLASS/* and val/CLASS/*, with ImageNet's tars (ILSVRC2012_img_train.tar,
    /// ILSVRC2012_img_val.tar, ILSVRC2012_devkit_t12.tar.gz) or with WebDataset's, or another set
    source: PathBuf,
    /// Folder for the set: a new one, or the beginning of this set, which is then gone on with
    out: PathBuf,
    /// Length of a shard, at most (about, with --resize): 1GB, 500MB, 1GiB or a number of bytes
    #[arg(long, default_value = "1GB", value_parser = parse_bytes)]
    shard_size: u64,
    /// Resize the shortest side to so many pixels and write JPEG, instead of keeping the files as
    /// they are; with --raw, the side of the squares
    #[arg(long, value_name = "SIDE")]
    resize: Option<u32>,
    /// Quality of the JPEG files written, from 1 to 100
    #[arg(long, default_value_t = 90, requires = "resize", conflicts_with = "raw")]
    quality: u8,
    /// Write centre squares as raw pixels, 256x256 unless --resize says otherwise: large, but nothing is
    /// left to decode
    #[arg(long)]
    raw: bool,
    /// Keep images in the order of classes and names, instead of mixing them
    #[arg(long)]
    no_shuffle: bool,
    /// Fraction of a split's files that cannot be read as images before packing stops
    #[arg(long, default_value_t = 0.01)]
    max_bad: f64,
    /// CPU threads [default: all cores]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
}

pub fn run(args: Pack) -> Result<ExitCode> {
    if !(0.0..=1.0).contains(&args.max_bad) {
        bail!("--max-bad: expected a share from 0 to 1, found {}", args.max_bad);
    }
    use_threads(args.threads)?;
    let form = match (args.raw, args.resize) {
        (true, side) => Form::Raw { side: side.unwrap_or(256) },
        (false, Some(side)) => Form::Resized { side, quality: args.quality },
        (false, None) => Form::Kept,
    };
    let options = Options {
        form,
        shard_bytes: args.shard_size,
        shuffle: !args.no_shuffle,
        mean_side: default_mean_side(form),
    };
    let stop = stop_on_signals()?;
    check_place(&args.source, &args.out)?;
    let mut progress = Progress::new();
    let source = Source::open(&args.source, &mut |images| {
        progress.show("list images", images, images, "");
        match stop.load(Ordering::Relaxed) {
            0 => Ok(()),
            _ => Err(crate::Error::callback("stopped")),
        }
    });
    let source = match source {
        Err(_) if stop.load(Ordering::Relaxed) != 0 => {
            progress.end();
            return Ok(stopped(&stop));
        }
        listed => listed?,
    };
    let plan = Plan::new(&source, &options)?;
    progress.line(&format!(
        "{}: {} classes, {} training and {} validation images",
        source.kind,
        source.classes.len(),
        source.train.len(),
        source.val.len()
    ));
    progress.line(&format!(
        "writing {}{} ({} bytes) in {} shard(s) to {}",
        if plan.exact { "" } else { "about " },
        human_bytes(plan.bytes() as usize),
        plan.bytes(),
        plan.shards.len(),
        args.out.display()
    ));

    for (split, items) in [("training", &source.train), ("validation", &source.val)] {
        if items.is_empty() {
            progress
                .line(&format!("note: no {split} images: `zfnet train` needs a set that has both"));
        }
    }

    let begun = Instant::now();
    let mut before = None;
    let outcome = pack(&source, &plan, &args.out, args.max_bad, &stop, &mut |now| {
        let first = *before.get_or_insert(now.images);
        let rate = (now.images - first) as f64 / begun.elapsed().as_secs_f64().max(1e-9);
        let written = human_bytes(now.bytes as usize);
        let more = format!(", {written}, {rate:.0} images/s, {} rejected", now.rejected);
        progress.show("pack", now.images, now.of_images, &more);
    });
    progress.end();
    match outcome? {
        Outcome::Stopped => return Ok(stopped(&stop)),
        Outcome::Already(0) => {
            output::message("the whole set is there already; `zfnet verify` checks it")
        }
        Outcome::Already(shards) => output::message(format_args!(
            "made {shards} missing or cut shard(s) anew; lengths were compared, `zfnet verify` compares all bytes"
        )),
        Outcome::Done => {}
    }
    output::line(args.out.display())?;
    Ok(ExitCode::SUCCESS)
}

/// Says that a signal has ended it, and how to go on.
fn stopped(stop: &AtomicUsize) -> ExitCode {
    output::message("stopped; the same command goes on");
    signal_code(stop)
}

/// "1GB", "500 MB", "1GiB" or a plain number.
fn parse_bytes(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        _ => return Err(format!("expected kB, MB, GB, KiB, MiB or GiB, found {unit:?}")),
    };
    match number.parse::<f64>() {
        Ok(number) => Ok((number * factor as f64) as u64),
        Err(_) => Err(String::from("expected a number of bytes, such as 1GB or 500MB")),
    }
}

#[cfg(test)]
mod tests {
    use super::parse_bytes;

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in [("1GB", 1_000_000_000), ("1.5 MiB", 3 << 19), ("70000", 70_000)] {
            assert_eq!(parse_bytes(text), Ok(bytes));
        }
        for text in ["", "GB", "1XB", "-1", "1.2.3GB", "1 GB x"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }
}
