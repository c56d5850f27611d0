//! `zfnet classify`: what images show, in a network's opinion.

use std::path::PathBuf;

use crate::bench::Benchmark;
use crate::data::decode::prepare;
use crate::data::images::read_rgb;
use crate::study::project::classify;
use crate::train::evaluate::Classifier;
use anyhow::Result;
use clap::Args;
use serde_json::json;

use super::{CropsName, DeviceArgs, ExitCode, ExternalArgs, OnDevice, output};

#[derive(Args)]
pub struct Classify {
    /// RUN, RUN/step-N, RUN/best, a safetensors file or another program's network
    checkpoint: PathBuf,
    /// JPEG or PNG files
    #[arg(required = true)]
    images: Vec<PathBuf>,
    /// Number of crops whose probabilities are averaged
    #[arg(long, value_enum, default_value = "10")]
    crops: CropsName,
    /// Print JSON, with all classes
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    external: ExternalArgs,
    #[command(flatten)]
    pub device: DeviceArgs,
}

impl OnDevice for Classify {
    fn run<B: Benchmark>(self, backend: &B) -> Result<ExitCode> {
        let model = self.external.load(backend, &self.checkpoint)?;
        let canvas = model.preprocess.resize;
        let mut square = vec![0; canvas.bytes()];
        let (network, preprocess) = (&model.network, &model.preprocess);
        let mut classifier = Classifier::new(backend, network, preprocess, self.crops.into(), 1)?;
        let mut answers = Vec::new();
        let mut code = ExitCode::SUCCESS;
        for path in &self.images {
            let image = match read_rgb(path) {
                Ok(image) => image,
                Err(error) => {
                    output::message(format_args!("error: {error:#}"));
                    code = ExitCode::FAILURE;
                    continue;
                }
            };
            prepare(&image, canvas, &mut square);
            let classes = classify(backend, &model, &mut classifier, &square)?;
            if self.json {
                let classes: Vec<_> = classes
                    .iter()
                    .map(|(class, probability)| json!({"class": class, "probability": probability}))
                    .collect();
                answers.push(json!({"image": path.display().to_string(), "classes": classes}));
            } else {
                output::line(path.display())?;
                for (class, probability) in classes.iter().take(5) {
                    output::line(format_args!("  {:6.2} %  {class}", 100.0 * probability))?;
                }
            }
        }
        if self.json {
            output::line(serde_json::to_string_pretty(&answers)?)?;
        }
        Ok(code)
    }
}
