//! `zfnet import`: another program's network as a checkpoint.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use crate::backend::Backend;
use crate::bench::Benchmark;
use crate::data::Split;
use crate::data::folder::check_output;
use crate::disk::write_atomic;
use crate::human_bytes;
use crate::import::{ExternalConfig, Imported, Kind, read};
use crate::model::Model;
use crate::study::ensemble::{Candidate, error_rates};
use crate::train::evaluate::{Evaluation, TestCrops};
use anyhow::{Context, Result, bail};
use clap::Args;

use super::inspect::print_network;
use super::progress::Progress;
use super::{DeviceArgs, ExitCode, ExternalArgs, OnDevice, ReadArgs, SplitName, open_data, output};

#[derive(Args)]
pub struct Import {
    /// PyTorch's .pth or .pt, safetensors, .onnx or .caffemodel
    file: PathBuf,
    /// The checkpoint to write, FILE.safetensors; without it the network is only read and shown
    #[arg(short, long)]
    out: Option<PathBuf>,
    #[command(flatten)]
    external: ExternalArgs,
    /// Names of the classes: a line each (NAME or FOLDER<TAB>NAME), or JSON [default: the file's, or ImageNet's if
    /// there are 1000]
    #[arg(long, value_name = "FILE")]
    classes: Option<PathBuf>,
    /// Pixels of the input, N or ROWSxCOLUMNS, if the file leaves them open
    #[arg(long, value_name = "SIZE", value_parser = size)]
    input_size: Option<[usize; 2]>,
    /// What images are resized to before they are cropped, N for the shortest side or ROWSxCOLUMNS [default: what the
    /// file says, or 8/7 of the input]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    resize: Option<[usize; 2]>,
    /// The last node of an ONNX or Caffe network that is read: what comes after it is left out
    #[arg(long, value_name = "NODE")]
    until: Option<String>,
    /// For a caffemodel: the file that describes its network, if not the model itself
    #[arg(long, value_name = "FILE")]
    prototxt: Option<PathBuf>,
    /// For a caffemodel: the mean image (mean.binaryproto)
    #[arg(long, value_name = "FILE")]
    mean: Option<PathBuf>,
    /// Images to measure its accuracy on: a folder with val/CLASS/*, or shards
    #[arg(long, value_name = "DATA")]
    check: Option<PathBuf>,
    /// Which split of these images
    #[arg(long, value_enum, default_value = "val")]
    split: SplitName,
    /// Replace a checkpoint that is there
    #[arg(long)]
    overwrite: bool,
    #[command(flatten)]
    read: ReadArgs,
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// Rows and columns, of `224` or `224x320`.
fn size(text: &str) -> Result<[usize; 2], String> {
    let number = |text: &str| text.parse::<usize>().ok().filter(|number| *number > 0);
    let sizes = match text.split_once('x') {
        Some((rows, columns)) => number(rows).zip(number(columns)).map(<[usize; 2]>::from),
        None => number(text).map(|side| [side; 2]),
    };
    sizes.ok_or_else(|| "expected a number of pixels, or rows and columns as 224x320".into())
}

impl OnDevice for Import {
    fn run<B: Benchmark>(self, backend: &B) -> Result<ExitCode> {
        if let Some(out) = &self.out {
            check_out(out, self.overwrite)?;
        }
        let config = ExternalConfig {
            classes: self.classes.clone(),
            input_size: self.input_size,
            resize: self.resize,
            until: self.until.clone(),
            prototxt: self.prototxt.clone(),
            mean: self.mean.clone(),
            ..self.external.config()
        };
        let imported = read(&self.file, &config)?;
        imported.kind.map_or(Ok(()), |kind| self.refuse_idle_flags(kind))?;
        print(&imported)?;
        let model = imported.into_model(backend).map_err(|error| error.in_file(&self.file))?;
        let model = match &self.check {
            Some(data) => self.check(backend, model, data)?,
            None => model,
        };
        if let Some(out) = &self.out {
            let bytes = model.to_bytes(backend)?;
            write_atomic(out, &bytes).context("cannot write")?;
            output::line(format_args!("{}: {}", out.display(), human_bytes(bytes.len())))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Refuses a place that the checkpoint cannot be written to, before any work.
fn check_out(out: &Path, overwrite: bool) -> Result<()> {
    if out.extension().is_none_or(|ending| ending != "safetensors") {
        bail!("--out {}: expected a name that ends in .safetensors", out.display());
    }
    if out.is_dir() {
        bail!("--out {}: is a folder; expected a file's name", out.display());
    }
    if out.exists() && !overwrite {
        bail!(
            "--out {}: is there already; replace it with --overwrite, or choose another",
            out.display()
        );
    }
    Ok(check_output(out)?)
}

/// What was read: where each layer's weights come from, the layers, and how images are prepared.
fn print(imported: &Imported) -> Result<()> {
    let Imported { network, preprocess, classes, kind, table, notes, .. } = imported;
    if let Some(kind) = kind {
        output::line(kind.text())?;
    }
    for note in notes {
        output::line(format_args!("  {note}"))?;
    }
    let width = table.iter().map(|row| row.from.len()).max().unwrap_or(0).max(12);
    output::line(format_args!("\n{:<width$} {:>20}  layer", "in the file", "shape"))?;
    for row in table {
        let shape = format!("{:?}", row.shape);
        output::line(format_args!("{:<width$} {shape:>20}  {}", row.from, row.layer))?;
    }
    output::line("")?;
    print_network(network)?;
    output::line(format_args!("\nimages: {preprocess}"))?;
    if !classes.is_empty() {
        let shown: Vec<String> = classes.names.iter().take(3).cloned().collect();
        let more = if classes.len() > 3 { ", ..." } else { "" };
        output::line(format_args!("classes: {}{more}", shown.join(", ")))?;
    }
    Ok(())
}

impl Import {
    /// Refuses flags that mean nothing for this kind of file.
    fn refuse_idle_flags(&self, kind: Kind) -> Result<()> {
        let has_layers = matches!(kind, Kind::Onnx | Kind::Caffemodel);
        let is_caffe = kind == Kind::Caffemodel;
        let idle = [
            ("--arch", has_layers && self.external.arch.is_some()),
            ("--until", !has_layers && self.until.is_some()),
            ("--input-size", !has_layers && self.input_size.is_some()),
            ("--prototxt", !is_caffe && self.prototxt.is_some()),
            ("--mean", !is_caffe && self.mean.is_some()),
        ];
        match idle.iter().find(|(_, idle)| *idle) {
            Some((flag, _)) => {
                bail!("{}: {flag} says nothing of {}", self.file.display(), kind.text())
            }
            None => Ok(()),
        }
    }

    /// Measures the network on images of its classes, and says so if that is no better than guessing.
    fn check<B: Backend>(&self, backend: &B, model: Model<B>, data: &Path) -> Result<Model<B>> {
        model.network.must_classify()?;
        let options = self.read.options(model.preprocess.resize)?;
        let images = Arc::new(open_data(data, &model)?.images(Split::from(self.split), options)?);
        let (mut progress, mut done, total) = (Progress::new(), 0, images.len());
        let candidates = [Candidate { name: String::new(), model, images }];
        let never = AtomicUsize::new(0);
        let workers = self.read.workers(backend);
        let found = error_rates(backend, &candidates, TestCrops::One, workers, &never, |images| {
            done += images;
            progress.show("check", done, total, "");
        })?;
        progress.end();
        let Evaluation { top1_error, top5_error, images, .. } =
            found.expect("nothing asks it to stop");
        let [Candidate { model, .. }] = candidates;
        output::line(format_args!(
            "accuracy on {}: top-1 {:.2} %, top-5 {:.2} %, {images} images",
            data.display(),
            100.0 * (1.0 - top1_error),
            100.0 * (1.0 - top5_error)
        ))?;
        // Twice what guessing gives, and what chance may add to that.
        let guessing = 1.0 / model.classes.len() as f64;
        let chance = 3.0 * (guessing / images.max(1) as f64).sqrt();
        if 1.0 - top1_error < 2.0 * guessing + chance {
            output::message(format_args!(
                "warning: that is not clearly better than guessing ({:.2} %): is it the preprocessing, or the order of \
                 the classes, with which the network was trained?",
                100.0 * guessing
            ));
        }
        Ok(model)
    }
}

#[cfg(test)]
mod tests {
    use super::size;

    #[test]
    fn sizes_are_a_side_or_rows_and_columns() {
        assert_eq!(size("224"), Ok([224, 224]));
        assert_eq!(size("64x128"), Ok([64, 128]));
        for wrong in ["0", "x", "64x", "64x0", "-3", "64x128x3", ""] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }
}
