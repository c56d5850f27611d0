//! `zfnet bench`: how fast each operation is, beside what the machine can do.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use serde_json::json;
use zfnet::backend::Backend as _;
use zfnet::bench::{OPS, Row, cases, peaks, training_steps};
use zfnet::model::{Architecture, Network};

use super::DeviceArgs;

#[derive(Args)]
pub struct Bench {
    /// A built-in network or a TOML file
    #[arg(long, visible_alias = "model", default_value = "zfnet")]
    arch: String,
    /// Only this layer
    #[arg(long)]
    layer: Option<String>,
    /// Only this operation
    #[arg(long, value_parser = OPS)]
    op: Option<String>,
    /// Images at a time
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..))]
    batch: u16,
    /// Whole training steps instead of operations. (What a cache holds can be faster than the copy
    /// that the shares of memory-bound rows are taken of)
    #[arg(long, conflicts_with_all = ["layer", "op"])]
    step: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

pub fn run(args: Bench) -> Result<ExitCode> {
    let backend = args.device.open()?;
    let network = Network::new(Architecture::find(&args.arch)?)?;
    let batch = usize::from(args.batch);
    let peaks = peaks(&backend);
    if !args.json {
        println!(
            "{}: {:.0} GFLOP/s of multiply-adds, {:.1} GB/s copied",
            backend.describe(),
            peaks.gflops,
            peaks.gbytes
        );
    }
    let mut rows = Vec::new();
    if args.step {
        let row = training_steps(&backend, network, batch, &peaks)?;
        if !args.json {
            print(&row);
        }
        rows.push(row);
    } else {
        for case in cases(&network, batch, args.layer.as_deref(), args.op.as_deref())? {
            let row = case.measure(&backend, &peaks)?;
            if !args.json {
                print(&row);
            }
            rows.push(row);
        }
    }
    if args.json {
        let device = backend.describe();
        let all = json!({"device": device, "peaks": peaks, "batch": batch, "rows": rows});
        println!("{}", serde_json::to_string_pretty(&all)?);
    }
    Ok(ExitCode::SUCCESS)
}

fn print(row: &Row) {
    let (rate, unit) = match (row.gflops, row.gbytes) {
        (Some(gflops), _) => (gflops, "GFLOP/s"),
        (_, gbytes) => (gbytes.unwrap_or(0.0), "GB/s"),
    };
    println!(
        "{:<44} {:>9.3} ms {rate:>8.1} {unit:<7} {:>5.1} % of peak",
        row.id,
        row.milliseconds,
        100.0 * row.share
    );
    if let Some(rate) = row.images_per_second {
        println!("{rate:.1} images/s");
    }
}
