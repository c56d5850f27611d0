//! Trains a small network on a folder of images, with `train/CLASS/*` and `val/CLASS/*`:
//!
//!     cargo run --release --example train -- FOLDER RUN
//!
//! Interrupted and started again, it goes on where it was.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use zfnet::backend::cpu::CpuBackend;
use zfnet::data::Split;
use zfnet::data::images::ReadOptions;
use zfnet::data::set::DataSet;
use zfnet::model::Architecture;
use zfnet::train::{Event, Job, train};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [folder, run] = arguments.as_slice() else { return Err("usage: train FOLDER RUN".into()) };
    let data = DataSet::open(folder)?;
    let mut architecture = Architecture::find("zfnet-mini")?;
    architecture.classes = data.classes().len();
    architecture.recipe.epochs = 2;
    let canvas = architecture.input.resize;
    let options = ReadOptions { canvas, max_bad: 0.01, cache_bytes: 1 << 30, io: None };
    let stop = AtomicUsize::new(0);
    let job = Job {
        train: Arc::new(data.images(Split::Train, options)?),
        val: Arc::new(data.images(Split::Val, options)?),
        classes: data.classes(),
        architecture,
        out: run.clone(),
        seed: 0,
        shuffle_window: None,
        accumulate: None,
        ranks: zfnet::ranks::Ranks::alone(),
        max_steps: None,
        resume: Path::new(run).exists(),
        init: None,
        save_steps: None,
        save_interval: Duration::from_secs(600),
        keep: 2,
        watch: true,
        workers: 2,
        stop: &stop,
    };
    train(&CpuBackend::new(None)?, &job, |event| {
        if let Event::Epoch { state, train_loss, validation, .. } = event {
            let error = 100.0 * validation.top1_error;
            println!("epoch {}: loss {train_loss:.4}, top-1 error {error:.1} %", state.epoch);
        }
        Ok(())
    })?;
    Ok(())
}
