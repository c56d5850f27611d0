//! The most probable class of each image, by a checkpoint, averaged over the paper's ten crops:
//!
//!     cargo run --release --example classify -- CHECKPOINT IMAGE...

use std::error::Error;
use std::path::PathBuf;

use zfnet::backend::cpu::CpuBackend;
use zfnet::data::decode::prepare;
use zfnet::data::images::read_rgb;
use zfnet::import::ExternalConfig;
use zfnet::model::Model;
use zfnet::train::checkpoint::load_model;
use zfnet::train::evaluate::{Classifier, TestCrops};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [checkpoint, images @ ..] = arguments.as_slice() else {
        return Err("usage: classify CHECKPOINT IMAGE...".into());
    };
    let backend = CpuBackend::new(None)?;
    let model = load_model(&backend, checkpoint, &ExternalConfig::default())?;
    let Model { network, params, preprocess, classes } = &model;
    let mut classifier = Classifier::new(&backend, network, preprocess, TestCrops::Ten, 1)?;
    for path in images {
        let mut square = vec![0; preprocess.bytes()];
        prepare(&read_rgb(path)?, preprocess.resize, &mut square);
        let mut probabilities = vec![0.0; classes.len()];
        classifier.add_probabilities(&backend, network, params, &square, &mut probabilities)?;
        let best =
            (0..classes.len()).max_by(|a, b| probabilities[*a].total_cmp(&probabilities[*b]));
        let best = best.expect("a network has classes");
        println!(
            "{}: {} ({:.1} %)",
            path.display(),
            classes.names[best],
            100.0 * probabilities[best]
        );
    }
    Ok(())
}
