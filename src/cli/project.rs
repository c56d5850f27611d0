//! `zfnet project`: what made units fire in images.

use std::path::PathBuf;

use crate::bench::Benchmark;
use crate::data::folder::check_output;
use crate::model::weights::serialize;
use crate::model::{Projector, Rule};
use crate::report::projections::{Projections, write};
use crate::study::project::{Units, arrays, project};
use crate::train::evaluate::{Classifier, TestCrops};
use anyhow::{Context, Result, bail};
use clap::Args;

use super::progress::Progress;
use super::study::initial_weights;
use super::{DeviceArgs, ExitCode, ExternalArgs, OnDevice, make_folder, output, shown};

#[derive(Args)]
pub struct Project {
    /// RUN, RUN/step-N, RUN/best, a safetensors file or another program's network
    checkpoint: PathBuf,
    /// JPEG or PNG files
    #[arg(required = true)]
    images: Vec<PathBuf>,
    /// One map (LAYER:MAP, as conv5:123, pool5:7 or fc7:42) instead of the nine
    /// strongest of each convolutional and fully connected layer
    #[arg(long)]
    unit: Option<String>,
    /// Rule of the backward pass
    #[arg(long, default_value = "deconvnet", value_parser = ["deconvnet", "gradient", "guided"])]
    rule: String,
    /// Folder for the page
    #[arg(long, default_value = "projections")]
    out: PathBuf,
    /// Keep input, activations (of a convolution, after its relu), switches, seed and projection as
    /// raw floats, HWC (with --unit, for one image)
    #[arg(long, value_name = "FILE.safetensors", requires = "unit")]
    save_arrays: Option<PathBuf>,
    #[command(flatten)]
    external: ExternalArgs,
    #[command(flatten)]
    pub device: DeviceArgs,
}

impl OnDevice for Project {
    fn run<B: Benchmark>(self, backend: &B) -> Result<ExitCode> {
        if self.save_arrays.is_some() && self.images.len() != 1 {
            bail!("--save-arrays: expected one image, found {}", self.images.len());
        }
        if let Some(file) = &self.save_arrays {
            check_output(file)?;
        }
        let model = self.external.load(backend, &self.checkpoint)?;
        let rule = Rule::named(&self.rule)?;
        let units = Units::parse(&model, self.unit.as_deref())?;
        let (network, params, preprocess) = (&model.network, &model.params, &model.preprocess);
        let mut projector = Projector::new(backend, network, params, preprocess, 1, 9)?;
        let mut classifier = Classifier::new(backend, network, preprocess, TestCrops::One, 1)?;
        let out = make_folder(&self.out)?;
        let mut images = Vec::new();
        let mut progress = Progress::new();
        for (done, path) in self.images.iter().enumerate() {
            progress.show("project", done, self.images.len(), "");
            let mut projected =
                project(backend, &model, &mut projector, &mut classifier, path, &units, rule)?;
            projected.name = shown(path);
            images.push(projected);
        }
        progress.end();
        if let (Some(file), Units::One { layer, map }) = (&self.save_arrays, &units) {
            let arrays = arrays(backend, &model, &mut projector, *layer, *map, rule)?;
            let bytes = serialize(&arrays, None)?;
            std::fs::write(file, bytes)
                .with_context(|| format!("cannot write {}", file.display()))?;
        }
        let page = write(
            &out,
            &Projections {
                title: match images.as_slice() {
                    [one] => format!("{} looks at {}", network.architecture.name, one.name),
                    several => {
                        format!("{} looks at {} images", network.architecture.name, several.len())
                    }
                },
                checkpoint: shown(&self.checkpoint),
                network: network.architecture.name.clone(),
                rule: self.rule,
                facts: vec![initial_weights(backend, &model)?],
                images,
            },
        )
        .with_context(|| format!("cannot write into {}", out.display()))?;
        output::line(page.display())?;
        Ok(ExitCode::SUCCESS)
    }
}
