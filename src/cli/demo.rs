//! `zfnet demo`: from nothing to a page of what a network has learnt, in minutes.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use crate::backend::Backend;
use crate::bench::Benchmark;
use crate::data::Split;
use crate::data::classes::Classes;
use crate::data::folder::ImageFolder;
use crate::data::images::Images;
use crate::data::synthetic;
use crate::disk::write_atomic;
use crate::import::ExternalConfig;
use crate::model::{Architecture, ConvSpec, FcSpec, LayerSpec};
use crate::ranks::Ranks;
use crate::study::peaks::{Maps, spatial_layers};
use crate::train::checkpoint::load_model;
use crate::train::evaluate::{Classifier, Evaluation, Member, TestCrops, evaluate};
use crate::train::{Event, Job, Outcome, ScheduleKind, train};
use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::json;

use super::progress::Progress;
use super::signals::{signal_code, stop_on_signals};
use super::study::features::{PageJob, write_page};
use super::train::Display;
use super::{DeviceArgs, ExitCode, OnDevice, ReadArgs, make_folder, output, shown};

#[derive(Args)]
pub struct Demo {
    /// Folder for pictures, checkpoints and the page [default: zfnet-demo, or zfnet-demo-quick]
    #[arg(long)]
    out: Option<PathBuf>,
    /// Seed of pictures, weights and training
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Few pictures and epochs: shows that everything works, not how well
    #[arg(long)]
    quick: bool,
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// A linear classifier on pixels, to compare with: one fully connected layer.
const LINEAR: &str = r#"
name = "linear"
classes = 10
input = { size = 64, resize = 64, std = 64.0 }
layers = [{ type = "fc", name = "fc1" }]
[recipe]
learning_rate = 0.0003
weight_decay = 0.01
schedule = "constant"
epochs = 10
batch_size = 32
crops = "centre"
"#;

/// Standard deviations of zfnet-mini's initial weights, here: small in conv1, so that its filters show what they
/// have learnt; in conv3 to conv5 larger than the preset's, so that little of the few steps is lost at the start.
const INIT_STD: [(&str, f32); 7] = [
    ("conv1", 0.008),
    ("conv2", 0.01),
    ("conv3", 0.055),
    ("conv4", 0.04),
    ("conv5", 0.04),
    ("fc6", 0.045),
    ("fc7", 0.09),
];

/// Rows and columns of the generated pictures.
const SIDE: usize = 73;

impl OnDevice for Demo {
    fn run<B: Benchmark>(self, backend: &B) -> Result<ExitCode> {
        let begun = Instant::now();
        let stop = stop_on_signals()?;
        let default = if self.quick { "zfnet-demo-quick" } else { "zfnet-demo" };
        let out = make_folder(self.out.as_deref().unwrap_or(Path::new(default)))?;
        claim(&out, &self)?;
        let (per_class, epochs, milestones) =
            if self.quick { (40, 2, vec![2]) } else { (400, 14, vec![10, 13]) };

        let data = out.join("data");
        let total = per_class * 5 / 4 * synthetic::CLASSES.len();
        output::message(format_args!(
            "drawing {total} pictures of {} classes",
            synthetic::CLASSES.len()
        ));
        synthetic::write_folder(&data, self.seed, SIDE, per_class, per_class / 4, |_| ())
            .with_context(|| format!("cannot draw into {}", data.display()))?;
        let folder = ImageFolder::open(&data)?;

        let linear = Architecture::parse(LINEAR)?;
        let mut mini = Architecture::find("zfnet-mini")?;
        for layer in &mut mini.layers {
            if let LayerSpec::Conv(ConvSpec { name, init_std, .. })
            | LayerSpec::Fc(FcSpec { name, init_std, .. }) = layer
            {
                *init_std = INIT_STD.iter().find(|(of, _)| of == name).map(|(_, std)| *std);
            }
        }
        let recipe = &mut mini.recipe;
        recipe.weight_decay = 0.0005;
        (recipe.epochs, recipe.schedule, recipe.milestones) =
            (epochs, ScheduleKind::Step, milestones);

        let mut runs = Vec::new();
        for architecture in [linear, mini] {
            let run = out.join(&architecture.name);
            match learn(backend, &self, architecture, &folder, &run, &stop)? {
                Outcome::Done => runs.push(run),
                Outcome::Stopped => {
                    output::message("stopped and saved; the same command goes on");
                    return Ok(signal_code(&stop));
                }
            }
        }
        let [linear, mini] = &runs[..] else { unreachable!("two runs") };
        let measured = [linear, mini].map(|run| measure(backend, run, &folder, &stop));
        let [Some(of_linear), Some(of_mini)] =
            measured.into_iter().collect::<Result<Vec<_>>>()?[..]
        else {
            return Ok(signal_code(&stop));
        };
        let facts = facts(&of_mini, Some(&of_linear));
        let page = page(backend, &folder, mini, &out, facts, None)?;
        output::line(format_args!(
            "top-1 accuracy: zfnet-mini {:.1} %, a linear classifier on pixels {:.1} % ({} validation \
             pictures)",
            100.0 * (1.0 - of_mini.top1_error),
            100.0 * (1.0 - of_linear.top1_error),
            of_mini.images
        ))?;
        output::line(format_args!(
            "{:.0} s; open {}",
            begun.elapsed().as_secs_f64(),
            page.display()
        ))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Takes note of whose demo the folder holds: one with other pictures cannot be gone on with.
fn claim(out: &Path, args: &Demo) -> Result<()> {
    let (file, own) = (out.join("demo.json"), json!({"seed": args.seed, "quick": args.quick}));
    let found = std::fs::read_to_string(&file).unwrap_or_default();
    if found.is_empty() {
        write_atomic(&file, own.to_string().as_bytes())
            .with_context(|| format!("cannot write {}", file.display()))?;
    } else if serde_json::from_str::<serde_json::Value>(&found).ok() != Some(own) {
        bail!("{}: holds another demo ({found}): choose another --out", out.display());
    }
    Ok(())
}

/// Trains one network; renews the page after each epoch of the convolutional one.
fn learn<B: Backend>(
    backend: &B,
    args: &Demo,
    architecture: Architecture,
    folder: &ImageFolder,
    run: &Path,
    stop: &AtomicUsize,
) -> Result<Outcome> {
    let options = read_args().options(architecture.input.resize)?;
    let job = Job {
        train: Arc::new(Images::new(folder.train.clone(), options)),
        val: Arc::new(Images::new(folder.val.clone(), options)),
        classes: Classes::new(folder.classes.clone(), folder.names.clone()),
        out: run.to_owned(),
        seed: args.seed,
        shuffle_window: None,
        accumulate: None,
        ranks: Ranks::alone(),
        max_steps: None,
        resume: true, // the same command goes on where it was stopped
        init: None,
        save_steps: None,
        save_interval: Duration::MAX,
        keep: 1,
        watch: true,
        workers: 1,
        stop,
        architecture,
    };
    let epochs = job.architecture.recipe.epochs;
    let linear = job.architecture.name == "linear";
    let mut display = Display::new(epochs);
    let out = run.parent().expect("a run is a folder in the demo's");
    let outcome = train(backend, &job, |event| {
        display.event(&event);
        if let Event::Epoch { state, validation, .. } = &event
            && !linear
            && state.epoch < epochs
        {
            let status = format!("epoch {} of {epochs}, training", state.epoch);
            let facts = facts(validation, None);
            let shown = page(backend, folder, run, out, facts, Some(status));
            let path = shown.map_err(crate::Error::callback)?;
            if state.epoch == 1 {
                display.progress.line(&format!("first pictures: open {}", path.display()));
            }
        }
        Ok(())
    });
    display.progress.end();
    Ok(outcome?)
}

/// Validation pictures that are searched for the pages made while training goes on.
const PREVIEW_IMAGES: usize = 200;
/// Maps of each layer on those pages.
const PREVIEW_MAPS: usize = 32;

/// Makes the page of a run's last checkpoint. While a status is shown, a smaller one.
fn page<B: Backend>(
    backend: &B,
    folder: &ImageFolder,
    run: &Path,
    out: &Path,
    facts: Vec<(String, String)>,
    status: Option<String>,
) -> Result<PathBuf> {
    let model = load_model(backend, &run.join("last"), &ExternalConfig::default())?;
    let preview = status.is_some();
    let step = if preview { folder.val.len().div_ceil(PREVIEW_IMAGES) } else { 1 };
    let samples = folder.val.iter().step_by(step).cloned().collect();
    let options = read_args().options(model.preprocess.resize)?;
    let network = &model.network;
    let layers = spatial_layers(network, false)?;
    let maps = Maps::First(if preview { PREVIEW_MAPS } else { usize::MAX });
    let job = PageJob {
        checkpoint: shown(run),
        root: &folder.root,
        images: Arc::new(Images::new(samples, options)),
        classes: Some(Classes::new(folder.classes.clone(), folder.names.clone())),
        split: Split::Val.name().into(),
        chosen: layers.into_iter().map(|layer| maps.of(network, layer)).collect(),
        rule: "deconvnet".into(),
        workers: 1,
        facts,
        status,
    };
    let page = make_folder(&out.join("page"))?;
    write_page(backend, &Ranks::alone(), &model, job, &page, &mut Progress::new())
}

fn facts(own: &Evaluation, linear: Option<&Evaluation>) -> Vec<(String, String)> {
    let accuracy = |e: &Evaluation| format!("top-1 accuracy {:.1} %", 100.0 * (1.0 - e.top1_error));
    let mut facts = vec![("validation".to_owned(), accuracy(own))];
    if let Some(linear) = linear {
        facts.push(("linear classifier on pixels".into(), accuracy(linear)));
    }
    facts
}

fn measure<B: Backend>(
    backend: &B,
    run: &Path,
    folder: &ImageFolder,
    stop: &AtomicUsize,
) -> Result<Option<Evaluation>> {
    let crops = TestCrops::Ten;
    let model = load_model(backend, run, &ExternalConfig::default())?;
    let options = read_args().options(model.preprocess.resize)?;
    let images = Arc::new(Images::new(folder.val.clone(), options));
    let classifier =
        Classifier::new(backend, &model.network, &model.preprocess, crops, crops.batch())?;
    let (network, params) = (&model.network, &model.params);
    let mut members = [Member { network, params, classifier, images }];
    Ok(evaluate(backend, &mut members, 1, stop, |_| ())?)
}

fn read_args() -> ReadArgs {
    ReadArgs { workers: Some(1), max_bad: 0.0, cache_mb: 2048, io: None }
}
