//! `zfnet eval`: error rates of one checkpoint, or of several averaged.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use anyhow::Result;
use clap::Args;
use zfnet::backend::Backend;
use zfnet::bench::Measured;
use zfnet::train::evaluate::{Classifier, Evaluation, Member, TestCrops, evaluate};

use super::progress::Progress;
use super::{BareArgs, CropsName, DeviceArgs, OnDevice, ReadArgs, SplitName, open_data};

#[derive(Args)]
pub struct Eval {
    /// Checkpoints (RUN, RUN/step-N, RUN/best or a safetensors file); several are averaged
    #[arg(long, required = true, num_args = 1..)]
    checkpoint: Vec<PathBuf>,
    /// Folder with train/CLASS/* and val/CLASS/*, or shards made by `zfnet pack`
    #[arg(long)]
    data: PathBuf,
    /// Which images
    #[arg(long, value_enum, default_value = "val")]
    split: SplitName,
    /// Crops averaged
    #[arg(long, value_enum, default_value = "10")]
    crops: CropsName,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    bare: BareArgs,
    #[command(flatten)]
    pub device: DeviceArgs,
    #[command(flatten)]
    read: ReadArgs,
}

impl OnDevice for Eval {
    fn run<B: Measured>(self, backend: &B) -> Result<ExitCode> {
        let result = measure(backend, &self)?;
        if self.json {
            println!("{}", serde_json::to_string(&result)?);
        } else {
            println!(
                "top-1 error {:.2} %, top-5 error {:.2} %, {} images",
                100.0 * result.top1_error,
                100.0 * result.top5_error,
                result.images
            );
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn measure<B: Backend>(backend: &B, args: &Eval) -> Result<Evaluation> {
    let models = args
        .checkpoint
        .iter()
        .map(|path| args.bare.load(backend, path))
        .collect::<Result<Vec<_>>>()?;
    let crops = TestCrops::from(args.crops);
    let mut members = Vec::new();
    for model in &models {
        let data = open_data(&args.data, model)?;
        let options = args.read.options(model.preprocess.resize)?;
        members.push(Member {
            network: &model.network,
            params: &model.params,
            classifier: Classifier::new(
                backend,
                &model.network,
                &model.preprocess,
                crops,
                crops.batch(),
            )?,
            images: Arc::new(data.images(args.split.into(), options)?),
        });
    }
    let total = members.iter().map(|member| member.images.len()).sum();
    let (mut progress, mut done) = (Progress::new(), 0);
    let never = AtomicUsize::new(0);
    let workers = usize::from(args.read.workers);
    let result = evaluate(backend, &mut members, workers, &never, |images| {
        done += images;
        progress.show("evaluate", done, total, "");
    })?;
    progress.end();
    let bad = members[0].images.bad().len();
    if bad > 0 {
        eprintln!("{bad} file(s) are no usable images and were left out");
    }
    Ok(result.expect("nothing asks it to stop"))
}
