//! `zfnet classify`: what images show, in a network's opinion.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use serde_json::json;
use zfnet::data::decode::prepare;
use zfnet::data::images::read_rgb;
use zfnet::study::project::classify;
use zfnet::train::evaluate::Classifier;

use super::{BareArgs, CropsName, DeviceArgs};

#[derive(Args)]
pub struct Classify {
    /// RUN, RUN/step-N, RUN/best or a safetensors file
    checkpoint: PathBuf,
    /// JPEG or PNG files
    #[arg(required = true)]
    images: Vec<PathBuf>,
    /// Crops averaged
    #[arg(long, value_enum, default_value = "10")]
    crops: CropsName,
    /// Print JSON, with all classes
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    bare: BareArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

pub fn run(args: Classify) -> Result<ExitCode> {
    let backend = args.device.open()?;
    let model = args.bare.load(&backend, &args.checkpoint)?;
    let side = model.preprocess.resize;
    let mut square = vec![0; side * side * 3];
    let (network, preprocess) = (&model.network, &model.preprocess);
    let mut classifier = Classifier::new(&backend, network, preprocess, args.crops.into(), 1)?;
    let mut answers = Vec::new();
    let mut code = ExitCode::SUCCESS;
    for path in &args.images {
        let image = match read_rgb(path) {
            Ok(image) => image,
            Err(error) => {
                eprintln!("error: {error}");
                code = ExitCode::FAILURE;
                continue;
            }
        };
        prepare(&image, side, &mut square);
        let classes = classify(&backend, &model, &mut classifier, &square)?;
        if args.json {
            let classes: Vec<_> = classes
                .iter()
                .map(|(class, probability)| json!({"class": class, "probability": probability}))
                .collect();
            answers.push(json!({"image": path.display().to_string(), "classes": classes}));
        } else {
            println!("{}", path.display());
            for (class, probability) in classes.iter().take(5) {
                println!("  {:6.2} %  {class}", 100.0 * probability);
            }
        }
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&answers)?);
    }
    Ok(code)
}
