//! `zfnet inspect`: the table of a network's layers, or what a set of shards holds.

use std::path::Path;

use crate::backend::cpu::CpuBackend;
use crate::data::Split;
use crate::data::set::{DataSet, is_unfinished};
use crate::data::shard::ShardSet;
use crate::data::shard::manifest::{Form, Manifest};
use crate::model::{Architecture, Kind, Model, Network};
use crate::study::filters::white_noise_high;
use crate::study::learnt::{LayerChange, changes, percent};
use crate::{human_bytes, size_text};
use anyhow::Result;
use clap::Args;
use serde::Serialize;

use super::{ExitCode, ExternalArgs, grouped, output};

/// Classes of a set that are printed; if there are more, all but the first and last few are left out.
const FEW: usize = 8;
const FIRST: usize = 5;
const LAST: usize = 2;

#[derive(Args)]
pub struct Inspect {
    /// A built-in network (zfnet, zfnet-wide, alexnet, zfnet-mini, alexnet-mini, zfnet-torch, zfnet-torch-lrn,
    /// alexnet-torchvision, vgg11, vgg13, vgg16, vgg19), a TOML file, a checkpoint, another program's network or a set of
    /// shards
    what: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    external: ExternalArgs,
}

/// One row.
#[derive(Serialize)]
struct Row<'a> {
    name: &'a str,
    output: [usize; 3],
    parameters: usize,
    multiply_adds: u64,
    #[serde(with = "zfnet_core::size")]
    field: [usize; 2],
    jump: usize,
    start: i64,
    /// Whether units may see less than their field: so from a transposed convolution on.
    field_is_at_most: bool,
    /// Of a checkpoint's layer with weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    weights: Option<&'a LayerChange>,
}

pub fn run(args: Inspect) -> Result<ExitCode> {
    let path = Path::new(&args.what);
    if ShardSet::is_at(path) {
        let manifest = ShardSet::open(path)?.manifest;
        if args.json {
            output::line(manifest.to_json().trim_end())?;
        } else {
            print_set(&args.what, &manifest)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    if is_unfinished(path) {
        DataSet::open(path)?; // which says what to do
    }
    let (network, changes) = find(&args)?;
    if !args.json {
        print_network(&network)?;
        if !changes.is_empty() {
            output::line(format_args!("\n{}", table_of(&changes)))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    output::line(serde_json::to_string_pretty(&rows(&network, &changes))?)?;
    Ok(ExitCode::SUCCESS)
}

/// The first transposed convolution.
fn transposed(network: &Network) -> Option<usize> {
    network.layers.iter().position(|layer| matches!(layer.kind, Kind::ConvTranspose(_)))
}

fn rows<'a>(network: &'a Network, changes: &'a [LayerChange]) -> Vec<Row<'a>> {
    let transposed = transposed(network);
    (0..)
        .zip(&network.layers)
        .map(|(index, layer)| Row {
            name: &layer.name,
            output: [layer.output.h, layer.output.w, layer.output.c],
            parameters: layer.parameters(),
            multiply_adds: layer.multiply_adds(),
            field: layer.field.map(|field| field.size),
            jump: layer.field[0].jump,
            start: layer.field[0].start,
            field_is_at_most: transposed.is_some_and(|first| index >= first),
            weights: changes.iter().find(|change| change.layer == layer.name),
        })
        .collect()
}

/// The table of a network's layers.
pub fn print_network(network: &Network) -> Result<()> {
    let about = &network.architecture;
    let input = about.input;
    let colon = if about.description.is_empty() { "" } else { ": " };
    output::line(format_args!("{}{colon}{}", about.name, about.description))?;
    let gives = match about.classes {
        0 => "maps, no classes".into(),
        classes => format!("{classes} classes"),
    };
    output::line(format_args!(
        "input {}{}, cut from {}; {gives}\n",
        size_text(input.size),
        if input.channels == 1 { " grey" } else { "" },
        input.resize
    ))?;
    let longest = network.layers.iter().map(|layer| layer.name.len()).max();
    let width = longest.unwrap_or(0).max(8);
    output::line(format_args!(
        "{:<width$} {:>16} {:>12} {:>14} {:>6} {:>5} {:>6}",
        "layer", "output", "parameters", "multiply-adds", "field", "jump", "start"
    ))?;
    for row in rows(network, &[]) {
        let [h, w, c] = row.output;
        output::line(format_args!(
            "{:<width$} {:>16} {:>12} {:>14} {:>6} {:>5} {:>6}",
            row.name,
            format!("{h}x{w}x{c}"),
            row.parameters,
            row.multiply_adds,
            match row.field {
                [rows, columns] if rows == columns => rows.to_string(),
                field => size_text(field),
            },
            row.jump,
            row.start
        ))?;
    }
    let (parameters, multiply_adds) = (network.parameters(), network.multiply_adds());
    output::line(format_args!(
        "{:<width$} {:>16} {parameters:>12} {multiply_adds:>14}",
        "total", ""
    ))?;
    if let Some(first) = transposed(network) {
        output::line(format_args!(
            "\nFrom {} on, a transposed convolution, fields are what units see at most (neighbours need \
             not see equally much); a jump of 0 stands for the whole input.",
            network.layers[first].name
        ))?;
    }
    Ok(())
}

/// What became of a network's initial weights, as a table.
pub fn table_of(changes: &[LayerChange]) -> String {
    let mut table =
        format!("{:<8} {:>12} {:>12} {:>12}\n", "layer", "initial", "90th perc.", "similarity");
    for change in changes {
        let ([median, high], similarity) = (change.share_in_words(), change.similarity);
        table += &format!("{:<8} {median:>12} {high:>12} {similarity:>12.2}\n", change.layer);
    }
    for (LayerChange { layer, .. }, rough) in
        changes.iter().filter_map(|change| Some((change, change.roughness?)))
    {
        table += &format!(
            "{layer}: {} of a filter's energy lies above 0.25 cycles a pixel (of white noise {})\n",
            percent(rough),
            percent(white_noise_high())
        );
    }
    table
        + "initial: share of the energy of a filter's weights that lies along its initial weights, median and \
           90th percentile; similarity: largest |cos| of a filter to another, median (of at most 256 filters)"
}

fn print_set(what: &str, set: &Manifest) -> Result<()> {
    // What stands in a set may come from anywhere, and must not drive the terminal.
    let line = |text: String| output::line(text.replace(char::is_control, "\u{fffd}"));
    let form = match set.form {
        Form::Kept => "images as they were, in tars".into(),
        Form::Resized { side, quality } => {
            format!("JPEG of quality {quality}, shortest side {side}, in tars")
        }
        Form::Raw { side } => format!("raw pixels, {side}x{side}"),
    };
    line(format!("{what}: {form}"))?;
    let mean = match &set.mean {
        Some(mean) => format!("{}, {1}x{1}", mean.file, mean.side),
        None => "none".into(),
    };
    for (name, value) in [
        ("source", &set.source),
        ("program", &set.program),
        ("decoder", &set.decoder),
        ("resizer", &set.resizer),
        ("mean", &mean),
        ("rejected", &grouped(set.rejected as usize)),
    ] {
        line(format!("{name:<8}  {value}"))?;
    }

    output::line(format_args!("\n{:<24} {:>12} {:>10}", "shard", "bytes", "images"))?;
    for split in [Split::Train, Split::Val] {
        for shard in set.shards(split) {
            line(format!("{:<24} {:>12} {:>10}", shard.file, shard.bytes, shard.images))?;
        }
    }
    for split in [Split::Train, Split::Val] {
        let bytes =
            set.shards(split).iter().fold(0u64, |sum, shard| sum.saturating_add(shard.bytes));
        output::line(format_args!(
            "{:<24} {:>12} {:>10}",
            format!("{}: {} shard(s)", split.name(), set.shards(split).len()),
            human_bytes(bytes as usize),
            set.images(split)
        ))?;
    }

    output::line(format_args!(
        "\n{:<6} {:<20} {:<32} {:>8} {:>8}",
        "class", "folder", "name", "train", "val"
    ))?;
    let many = set.classes.len() > FEW;
    for (index, class) in set.classes.iter().enumerate() {
        if many && (FIRST..set.classes.len() - LAST).contains(&index) {
            if index == FIRST {
                output::line("...")?;
            }
            continue;
        }
        let (folder, name) = (&class.folder, &class.name);
        line(format!("{index:<6} {folder:<20} {name:<32} {:>8} {:>8}", class.train, class.val))?;
    }
    Ok(())
}

/// A network by name or file, or the one of a checkpoint, read whole and checked, with what became of its
/// initial weights.
fn find(args: &Inspect) -> Result<(Network, Vec<LayerChange>)> {
    let path = Path::new(&args.what);
    let is_text = path.extension().is_some_and(|extension| extension == "toml");
    // A run's newest or best checkpoint, whether or not there is a link of that name.
    let is_pointer = path.file_name().is_some_and(|name| name == "last" || name == "best");
    if path.is_file() && !is_text || is_pointer || path.is_dir() {
        let backend = CpuBackend::new(Some(1))?;
        let unknown = |error: &anyhow::Error| {
            let mut causes = error.chain().filter_map(|cause| cause.downcast_ref());
            causes.any(|cause| matches!(cause, crate::Error::UnknownPreprocessing(_)))
        };
        let Model { network, params, .. } = match args.external.load(&backend, path) {
            // Of how images are prepared nothing is shown, so that any will do.
            Err(error) if unknown(&error) => {
                let preprocess = Some("torchvision".into());
                ExternalArgs { preprocess, ..args.external.clone() }.load(&backend, path)?
            }
            loaded => loaded?,
        };
        let changes = changes(&backend, &network, &params)?;
        return Ok((network, changes));
    }
    Ok((Network::new(Architecture::find(&args.what)?)?, Vec::new()))
}
