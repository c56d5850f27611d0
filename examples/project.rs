//! What made the strongest units of a layer fire in an image: their projections down to pixels by the
//! deconvnet, one PNG file each:
//!
//!     cargo run --release --example project -- CHECKPOINT LAYER IMAGE FOLDER

use std::error::Error;
use std::path::{Path, PathBuf};

use zfnet::backend::cpu::CpuBackend;
use zfnet::data::decode::prepare;
use zfnet::data::images::read_rgb;
use zfnet::import::ExternalConfig;
use zfnet::model::{Model, Projector, Rule, Seed, strongest};
use zfnet::picture::Image;
use zfnet::train::checkpoint::load_model;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [checkpoint, layer, image, folder] = arguments.as_slice() else {
        return Err("usage: project CHECKPOINT LAYER IMAGE FOLDER".into());
    };
    let backend = CpuBackend::new(None)?;
    let model = load_model(&backend, Path::new(checkpoint), &ExternalConfig::default())?;
    let Model { network, params, preprocess, .. } = &model;
    let layer = network.layer(layer)?;

    // Forward, with the crop in the middle: every activation and every switch is kept.
    let mut square = vec![0; preprocess.bytes()];
    prepare(&read_rgb(Path::new(image))?, preprocess.resize, &mut square);
    let mut projector = Projector::new(&backend, network, params, preprocess, 1, 9)?;
    projector.look(&square, &preprocess.ten_crops(0)[4..5])?;

    // Back, from the nine maps that fire most.
    let units = strongest(&projector.peaks(layer)?, network.layers[layer].output.w, 9);
    let seeds: Vec<Seed> = units.iter().map(|&unit| Seed { image: 0, unit }).collect();
    let [rows, columns] = preprocess.size;
    projector.project(layer, &seeds, Rule::DECONVNET, |i, pixels| {
        let path = PathBuf::from(folder).join(format!("map-{}.png", units[i].map));
        println!("{}: activation {:.2}", path.display(), units[i].value);
        let picture = Image::projection(columns, rows, pixels);
        picture.write_png(&path).map_err(zfnet::Error::io("write", &path))
    })?;
    Ok(())
}
