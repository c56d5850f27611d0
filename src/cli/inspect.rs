//! `zfnet inspect`: the table of a network's layers.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use serde::Serialize;
use zfnet::backend::cpu::CpuBackend;
use zfnet::model::{Architecture, Network};

use super::BareArgs;

#[derive(Args)]
pub struct Inspect {
    /// A built-in network (zfnet, zfnet-wide, alexnet, zfnet-mini, alexnet-mini), a TOML file or a
    /// checkpoint
    what: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    bare: BareArgs,
}

/// One row.
#[derive(Serialize)]
struct Row<'a> {
    name: &'a str,
    output: [usize; 3],
    parameters: usize,
    multiply_adds: u64,
    field: usize,
    jump: usize,
    start: i64,
}

pub fn run(args: Inspect) -> Result<ExitCode> {
    let network = find(&args)?;
    let rows: Vec<Row<'_>> = network
        .layers
        .iter()
        .map(|layer| Row {
            name: &layer.name,
            output: [layer.output.h, layer.output.w, layer.output.c],
            parameters: layer.parameters(),
            multiply_adds: layer.multiply_adds(),
            field: layer.field[0].size,
            jump: layer.field[0].jump,
            start: layer.field[0].start,
        })
        .collect();
    if args.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
        return Ok(ExitCode::SUCCESS);
    }
    let about = &network.architecture;
    let input = about.input;
    println!("{}: {}", about.name, about.description);
    println!(
        "input {0}x{0}, cut from {1}x{1}; {2} classes\n",
        input.size, input.resize, about.classes
    );
    println!(
        "{:<8} {:>16} {:>12} {:>14} {:>6} {:>5} {:>6}",
        "layer", "output", "parameters", "multiply-adds", "field", "jump", "start"
    );
    for row in rows {
        let [h, w, c] = row.output;
        println!(
            "{:<8} {:>16} {:>12} {:>14} {:>6} {:>5} {:>6}",
            row.name,
            format!("{h}x{w}x{c}"),
            row.parameters,
            row.multiply_adds,
            row.field,
            row.jump,
            row.start
        );
    }
    let (parameters, multiply_adds) = (network.parameters(), network.multiply_adds());
    println!("{:<8} {:>16} {parameters:>12} {multiply_adds:>14}", "total", "");
    Ok(ExitCode::SUCCESS)
}

/// A network by name or file, or the one of a checkpoint, read whole and checked.
fn find(args: &Inspect) -> Result<Network> {
    let path = Path::new(&args.what);
    let is_model = path.extension().is_some_and(|extension| extension == "safetensors");
    if is_model || path.is_dir() {
        let backend = CpuBackend::new(Some(1))?;
        return Ok(args.bare.load(&backend, path)?.network);
    }
    Ok(Network::new(Architecture::find(&args.what)?)?)
}
