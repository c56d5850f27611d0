//! `zfnet export`: a network for other programs.

use std::path::PathBuf;

use crate::bench::Benchmark;
use crate::data::folder::check_output;
use crate::disk::write_atomic;
use crate::export::{Format, onnx, pytorch};
use anyhow::{Context, Result, bail};
use clap::Args;

use super::{DeviceArgs, ExitCode, ExternalArgs, OnDevice, output};

#[derive(Args)]
pub struct Export {
    /// RUN, RUN/step-N, RUN/best, a safetensors file or another program's network
    checkpoint: PathBuf,
    /// File to write. NAME.onnx is ONNX, opset 17, for any number of images at a time; its metadata say how images are
    /// prepared. NAME.py is PyTorch: a Python file that builds the network (build, load) and prepares images
    /// (preprocess), with the weights in NAME.safetensors beside it
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,
    /// For ONNX: have the graph prepare pixels, bytes [N, C, rows, columns] of images already resized and cropped
    #[arg(long)]
    with_preprocessing: bool,
    /// Replace files that are there
    #[arg(long)]
    overwrite: bool,
    #[command(flatten)]
    external: ExternalArgs,
    #[command(flatten)]
    pub device: DeviceArgs,
}

impl OnDevice for Export {
    fn run<B: Benchmark>(self, backend: &B) -> Result<ExitCode> {
        let Export { out, overwrite, .. } = &self;
        let format = Format::of(out)?;
        check_output(out)?;
        let model = self.external.load(backend, &self.checkpoint)?;
        let files = match format {
            Format::PyTorch => {
                let weights = out.with_extension("safetensors");
                let Some(name) = weights.file_name().and_then(|name| name.to_str()) else {
                    bail!("{}: expected a name in UTF-8", out.display());
                };
                let text = pytorch(&model, name)?.into_bytes();
                // The Python file last: what it loads is there.
                vec![(weights, model.to_bytes(backend)?), (out.clone(), text)]
            }
            Format::Onnx => {
                vec![(out.clone(), onnx(backend, &model, self.with_preprocessing)?)]
            }
        };
        if let Some((file, _)) = files.iter().find(|(file, _)| file.exists() && !overwrite) {
            bail!("{}: is there already: choose another file, or --overwrite", file.display());
        }
        for (file, bytes) in &files {
            write_atomic(file, bytes).context("cannot write")?;
            output::line(file.display())?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
