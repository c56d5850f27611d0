//! `zfnet train`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use crate::backend::Backend;
use crate::bench::Benchmark;
use crate::data::Split;
use crate::data::classes::Classes;
use crate::data::folder::check_output;
use crate::data::images::Images;
use crate::data::set::DataSet;
use crate::data::shard::manifest::Form;
use crate::import::ExternalConfig;
use crate::model::{Architecture, Canvas, LayerSpec, Network};
use crate::ranks::Ranks;
use crate::study::learnt::changes;
use crate::tensorboard::TensorBoard;
use crate::train::alarm::Remedy;
use crate::train::checkpoint::{architecture_of, load_model, newest};
use crate::train::{Crops, Event, Init, Job, Needs, Outcome, ScheduleKind, dry_run, train};
use crate::{human_bytes, size_text};
use anyhow::{Context, Result, bail};
use clap::Args;

use super::inspect::table_of;
use super::progress::Progress;
use super::ranks::{RankArgs, tell_failure};
use super::signals::{signal_code, stop_on_signals};
use super::study::evolution::EvolutionArgs;
use super::{DeviceArgs, ExitCode, ExternalArgs, MOST_WORKERS, OnDevice, ReadArgs, output};

#[derive(Args)]
pub struct Train {
    /// Folder with train/CLASS/* and val/CLASS/* (JPEG or PNG), or shards made by `zfnet pack`
    #[arg(long)]
    data: PathBuf,
    /// zfnet, zfnet-wide, alexnet, zfnet-mini, alexnet-mini or a TOML file
    #[arg(long, visible_alias = "model", required_unless_present = "resume")]
    arch: Option<String>,
    /// Folder of the run: checkpoints and metrics.jsonl
    #[arg(long, visible_alias = "output-dir")]
    out: PathBuf,
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Stop after so many steps in all [default: after the last epoch]
    #[arg(long)]
    max_steps: Option<u32>,
    /// Print what the training will need (memory, steps, time, from a few trial steps) and which of steps and input is
    /// the limit, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Seed of initialization, order of images, crops and dropout
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Read shards from front to back and shuffle only so many images at a time, for disks that
    /// cannot seek [default: shuffle all]
    #[arg(long, value_name = "IMAGES", value_parser = positive)]
    shuffle_window: Option<usize>,
    /// Number of parts of a batch whose gradients are accumulated, to save memory, or to be shared by up to as many ranks
    /// [default: 1, one for each rank, or the resumed run's]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    accumulate: Option<u16>,
    /// Continue from the run's last checkpoint
    #[arg(long)]
    resume: bool,
    /// Start with the weights of this checkpoint (what is resumed has its own)
    #[arg(long, value_name = "CHECKPOINT")]
    init: Option<PathBuf>,
    /// For --init with a file of another program: how its images are prepared
    #[arg(long, value_parser = ["paper", "torchvision", "caffe"])]
    preprocess: Option<String>,
    /// Save a checkpoint every so many steps, besides at the end of every epoch [default: never]
    #[arg(long)]
    save_steps: Option<u32>,
    /// Save a checkpoint when the last one is so many minutes old
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    save_minutes: u32,
    /// Number of checkpoints to keep, besides the best
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..))]
    keep: u16,
    /// Do not look for signs that something is wrong, nor write down what each layer shows
    #[arg(long)]
    no_watch: bool,
    /// Write events for TensorBoard beside metrics.jsonl: losses, errors and what each layer shows, histograms of weights
    /// and activations, and after epochs 1, 2, 5, 10, 20, 30, 40, 64 and the last, pictures of filters and projections
    #[arg(long)]
    tensorboard: bool,
    #[command(flatten)]
    evolution: EvolutionArgs,
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Number of GPUs, a power of two: each takes a share of every batch, and they exchange values by NCCL [default: one]
    #[cfg(feature = "cuda")]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..), conflicts_with_all = ["device", "dry_run", "rank_timeout"])]
    pub(super) gpus: Option<u16>,
    #[command(flatten)]
    pub ranks: RankArgs,
    #[command(flatten)]
    read: ReadArgs,
}

/// Flags that take the place of the recipe's values.
#[derive(Args, Clone, Default)]
#[command(next_help_heading = "Instead of the network's recipe")]
pub struct RecipeArgs {
    /// Number of epochs [default: the recipe's]
    #[arg(long)]
    pub epochs: Option<u32>,
    /// Batch size [default: the recipe's]
    #[arg(long)]
    batch_size: Option<usize>,
    /// Initial learning rate [default: the recipe's]
    #[arg(long, visible_alias = "lr")]
    learning_rate: Option<f32>,
    /// Momentum of SGD [default: the recipe's]
    #[arg(long)]
    momentum: Option<f32>,
    /// Weight decay (L2 penalty) [default: the recipe's]
    #[arg(long, visible_alias = "wd")]
    weight_decay: Option<f32>,
    /// Whether weight decay applies to biases too [default: the recipe's]
    #[arg(long)]
    bias_decay: Option<bool>,
    /// Initialization of the weights of all layers: N(0, init-std^2), or He et al. 2015 [default: the
    /// layer's own init_std, or the recipe's]
    #[arg(long, value_parser = ["normal", "he"])]
    init_weights: Option<String>,
    /// Standard deviation of the initial weights of all layers, which are then normal [default: as above]
    #[arg(long)]
    init_std: Option<f32>,
    /// When the learning rate is reduced: when the validation error stops falling, at --milestones, or
    /// never [default: the recipe's]
    #[arg(long, value_parser = ["plateau", "step", "constant"])]
    schedule: Option<String>,
    /// Epochs after which the learning rate is reduced, separated by commas [default: the recipe's]
    #[arg(long, visible_alias = "steps", value_delimiter = ',')]
    pub milestones: Option<Vec<u32>>,
    /// Factor by which the learning rate is multiplied then [default: the recipe's]
    #[arg(long, visible_alias = "factor")]
    gamma: Option<f32>,
    /// Epochs without improvement after which the learning rate is reduced (plateau) [default: the recipe's]
    #[arg(long)]
    patience: Option<u32>,
    /// Probability of dropout [default: the recipe's]
    #[arg(long)]
    dropout: Option<f32>,
    /// Training crops: one of the paper's ten, at random places, or the centre [default: the recipe's]
    #[arg(long, value_parser = ["ten", "random", "centre"])]
    train_crops: Option<String>,
    /// Limit of the RMS of each convolution filter; 0 for none [default: the recipe's]
    #[arg(long)]
    rms_limit: Option<f32>,
}

impl RecipeArgs {
    /// Takes the flags that were given into the network's recipe.
    pub fn apply(&self, architecture: &mut Architecture) -> Result<()> {
        let recipe = &mut architecture.recipe;
        if self.init_weights.is_some() || self.init_std.is_some() {
            architecture.layers.iter_mut().for_each(LayerSpec::clear_init_std);
        }
        match (self.init_weights.as_deref(), self.init_std) {
            (Some("he"), Some(_)) => bail!("--init-std is for --init-weights normal"),
            (Some("he"), None) => recipe.init = Init::He,
            (None, None) => {}
            _ => recipe.init = Init::Normal,
        }
        fn set<T: Clone>(place: &mut T, flag: &Option<T>) {
            if let Some(value) = flag {
                *place = value.clone();
            }
        }
        set(&mut recipe.epochs, &self.epochs);
        set(&mut recipe.batch_size, &self.batch_size);
        set(&mut recipe.learning_rate, &self.learning_rate);
        set(&mut recipe.momentum, &self.momentum);
        set(&mut recipe.weight_decay, &self.weight_decay);
        set(&mut recipe.bias_decay, &self.bias_decay);
        set(&mut recipe.init_std, &self.init_std);
        set(&mut recipe.milestones, &self.milestones);
        set(&mut recipe.gamma, &self.gamma);
        set(&mut recipe.patience, &self.patience);
        set(&mut recipe.dropout, &self.dropout);
        set(&mut recipe.rms_limit, &self.rms_limit);
        set(
            &mut recipe.schedule,
            &self.schedule.as_deref().map(|v| match v {
                "step" => ScheduleKind::Step,
                "constant" => ScheduleKind::Constant,
                _ => ScheduleKind::Plateau,
            }),
        );
        set(
            &mut recipe.crops,
            &self.train_crops.as_deref().map(|v| match v {
                "random" => Crops::Random,
                "centre" => Crops::Centre,
                _ => Crops::Ten,
            }),
        );
        Ok(())
    }
}

impl OnDevice for Train {
    fn run<B: Benchmark>(self, backend: &B) -> Result<ExitCode> {
        let trained = self.train(backend, stop_on_signals, Progress::new())?;
        self.say(trained)
    }
}

/// Trains on one device, or as ranks: those of a launcher, or one for each of several GPUs.
pub fn run(mut args: Train) -> Result<ExitCode> {
    args.ranks.join()?;
    let ranks = args.ranks.ranks.clone();
    let run = || {
        #[cfg(feature = "cuda")]
        if let Some(count) = args.gpus()? {
            args.device.limit_threads()?;
            let trained = args.on_gpus(count, stop_on_signals, Progress::new())?;
            return args.say(trained);
        }
        args.device.of_rank(&ranks).run(args)
    };
    tell_failure(&ranks, run())
}

/// How a training ended.
pub enum Trained {
    /// All that was asked for is done.
    Done,
    /// A signal has stopped it, and what had been trained is saved.
    Stopped(ExitCode),
    /// It was not begun: what it will need.
    Needs(String),
}

/// What all ranks of a process share.
pub(super) struct Inputs {
    architecture: Architecture,
    train: Arc<Images>,
    val: Arc<Images>,
    classes: Classes,
    stop: Arc<AtomicUsize>,
}

impl Train {
    /// All but what is printed at the end. `listen` begins to listen to what shall stop it, which so far was nothing.
    pub fn train<B: Benchmark>(
        &self,
        backend: &B,
        listen: impl FnOnce() -> Result<Arc<AtomicUsize>>,
        progress: Progress,
    ) -> Result<Trained> {
        let inputs = self.inputs(listen)?;
        self.ranks.share_stop(&inputs.stop);
        self.train_rank(backend, &self.ranks.ranks, &inputs, progress)
    }

    /// Prints how a training ended.
    fn say(&self, trained: Trained) -> Result<ExitCode> {
        match trained {
            Trained::Done => output::line(self.out.display())?,
            Trained::Needs(text) => output::line(text)?,
            Trained::Stopped(code) => {
                output::message("stopped; go on with the same command and --resume");
                return Ok(code);
            }
        }
        Ok(ExitCode::SUCCESS)
    }

    /// What all ranks of this process are given.
    pub(super) fn inputs(
        &self,
        listen: impl FnOnce() -> Result<Arc<AtomicUsize>>,
    ) -> Result<Inputs> {
        let mut architecture = match &self.arch {
            Some(arch) => Architecture::find(arch)?,
            None => {
                let missing =
                    || format!("{}: no checkpoint to resume: say --arch", self.out.display());
                newest(&self.out, architecture_of)?.with_context(missing)?.read
            }
        };
        self.recipe.apply(&mut architecture)?;
        architecture.recipe.check()?;
        let ranks = &self.ranks.ranks;
        if ranks.is_first() {
            check_output(&self.out)?;
        }
        if self.dry_run && ranks.count() > 1 {
            bail!("--dry-run measures one process: run it without a launcher");
        }
        let data = DataSet::open(&self.data)?;
        let options = self.read.options(architecture.input.resize)?;
        Ok(Inputs {
            stop: listen()?,
            train: Arc::new(data.images(Split::Train, options)?),
            val: Arc::new(data.images(Split::Val, options)?),
            architecture,
            classes: data.classes(),
        })
    }

    /// Trains as one of the ranks, perhaps the only one.
    pub(super) fn train_rank<B: Benchmark>(
        &self,
        backend: &B,
        ranks: &Ranks,
        inputs: &Inputs,
        progress: Progress,
    ) -> Result<Trained> {
        let Inputs { architecture, train: images, val, classes, stop } = inputs;
        let (arch, preprocess) = (self.arch.clone(), self.preprocess.clone());
        let external = ExternalArgs { arch, preprocess };
        let job = Job {
            train: images.clone(),
            val: val.clone(),
            architecture: architecture.clone(),
            classes: classes.clone(),
            out: self.out.clone(),
            seed: self.seed,
            shuffle_window: self.shuffle_window,
            accumulate: self.accumulate.map(usize::from),
            ranks: ranks.clone(),
            max_steps: self.max_steps,
            resume: self.resume,
            init: self.init.clone().map(|path| (path, external.config())),
            save_steps: self.save_steps,
            save_interval: Duration::from_secs(60 * u64::from(self.save_minutes)),
            keep: usize::from(self.keep),
            watch: !self.no_watch,
            workers: self.read.workers_of_rank(backend, ranks),
            stop,
        };
        let mut display = Display::on(progress, job.architecture.recipe.epochs);
        if self.dry_run {
            return Ok(Trained::Needs(needs(backend, &job, &mut display.progress)?));
        }
        let classes = job.classes.len();
        let network = Network::new(Architecture { classes, ..job.architecture.clone() })?;
        let (images, run) = (images.clone(), &job.out);
        let watch = self.evolution.watch(&network, images, &self.data, run, job.workers)?;
        let mut board = self.tensorboard.then(|| TensorBoard::new(backend, &job));
        let outcome = train(backend, &job, |event| {
            display.event(&event);
            if let Some(board) = &mut board {
                board.event(&event);
            }
            match &watch {
                Some(watch) => watch.event(backend, &event, &mut display.progress),
                None => Ok(()),
            }
        });
        display.progress.end();
        let outcome = outcome.with_context(|| format!("the run {}", self.out.display()))?;
        let bad = job.train.bad().len();
        if bad > 0 {
            display.progress.line(&format!(
                "{bad} training file(s) cannot be read as images; others took their places"
            ));
        }
        match outcome {
            Outcome::Done => {
                if job.ranks.is_first() {
                    say_changes(backend, &self.out, &mut display.progress);
                }
                Ok(Trained::Done)
            }
            Outcome::Stopped => Ok(Trained::Stopped(signal_code(stop))),
        }
    }
}

/// Says what became of the initial weights. A training that is done does not fail for it.
fn say_changes<B: Backend>(backend: &B, run: &Path, progress: &mut Progress) {
    let found = load_model(backend, &run.join("last"), &ExternalConfig::default())
        .and_then(|last| changes(backend, &last.network, &last.params));
    match found {
        Ok(changes) => progress.line(&table_of(&changes)),
        Err(error) => tracing::warn!("no table of initial weights: {error:#}"),
    }
}

/// A number above 0.
fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("expected a number above 0".into()),
        Ok(number) => Ok(number),
    }
}

/// What a training will need, in lines.
fn needs<B: Backend>(backend: &B, job: &Job<'_>, progress: &mut Progress) -> Result<String> {
    let needs = dry_run(backend, job, |done, all| progress.show("trial step", done, all, ""))?;
    progress.end();
    let recipe = &job.architecture.recipe;
    let free = needs.free.map_or(String::from("an unknown amount"), human_bytes);
    let largest = match needs.largest_batch {
        Some(largest) => format!("; about {largest} samples at a time would fit"),
        None => String::new(),
    };
    let Needs { steps_per_epoch, seconds_per_step, .. } = needs;
    let epoch = steps_per_epoch as f64 * seconds_per_step;
    let mut lines = vec![format!("parameters  {}", needs.parameters)];
    lines.push(format!("memory      {} wanted, {free} free{largest}", human_bytes(needs.wanted)));
    let kept = job.train.kept_bytes() + job.val.kept_bytes();
    lines.push(format!(
        "            and {} for images that are kept (--cache-mb), {} while a checkpoint is written",
        human_bytes(kept),
        human_bytes(2 * 4 * needs.parameters) // in PyTorch's order, and as a file's bytes
    ));
    let steps = steps_per_epoch * recipe.epochs as usize;
    let steps = steps.min(job.max_steps.map_or(usize::MAX, |max| max as usize));
    lines.push(format!(
        "steps       {steps_per_epoch} an epoch, {steps} in all, of {} epochs",
        recipe.epochs
    ));
    lines.push(format!(
        "time        {:.1} ms a step (the mean of {}), {:.0} images/s, {} an epoch, {} in all, \
         without validation",
        1e3 * seconds_per_step,
        needs.trial_steps,
        job.train.len() as f64 / epoch,
        duration(epoch),
        duration(steps as f64 * seconds_per_step)
    ));
    let input = Input {
        canvas: job.train.canvas(),
        form: job.train.shards().map(|shards| shards.form()),
        images: job.train.len() + job.val.len(),
        kept: job.train.kept_bytes() > 0,
        workers: job.workers,
        cores: std::thread::available_parallelism().map_or(1, usize::from),
    };
    lines.push(format!(
        "alone       steps {:.0} images/s, input {:.0} images/s by {} worker(s) on {} cores",
        needs.step_rate, needs.input_rate, input.workers, input.cores
    ));
    lines.push(format!("limit       {}", input.limit(needs.step_rate, needs.input_rate)));
    Ok(lines.join("\n"))
}

/// What the advice on a training's input depends on.
struct Input {
    /// What images are resized to.
    canvas: Canvas,
    /// How images lie in shards, if they do.
    form: Option<Form>,
    /// Images of the set.
    images: usize,
    /// Whether training images are kept in memory once they have been read.
    kept: bool,
    workers: usize,
    cores: usize,
}

impl Input {
    /// Which of steps and input is the limit, by the rates of each alone, and what lifts it.
    fn limit(&self, step_rate: f64, input_rate: f64) -> String {
        let times = step_rate / input_rate.max(1e-9);
        if times <= 1.0 {
            return format!("the steps: the input could feed {:.1} times as many", 1.0 / times);
        }
        let mut lifts = Vec::new();
        let wanted = (times * self.workers as f64).ceil() as usize;
        let cores = self.cores.min(MOST_WORKERS.into());
        if self.workers < cores {
            lifts.push(match wanted {
                n if n <= cores => format!("about {n} threads (--workers {n})"),
                n => format!(
                    "about {n} threads; this machine has cores for {0} (--workers {0})",
                    cores
                ),
            });
        }
        let Input { canvas, form, .. } = *self;
        // Shards are made by the shortest side, and raw ones are squares.
        let (side, raw_side) = (canvas.rows.min(canvas.columns), canvas.plain_side());
        let smaller = match form {
            Some(Form::Resized { side: packed, .. }) => packed as usize > side,
            Some(Form::Raw { .. }) => false,
            Some(Form::Kept) | None => true,
        };
        if smaller {
            lifts.push(format!("smaller images (`zfnet pack --resize {side}`)"));
        }
        let packed = match form {
            Some(Form::Raw { side }) => Some(side as usize),
            _ => None,
        };
        if let Some(side) = raw_side.filter(|side| packed != Some(*side)) {
            lifts.push(format!(
                "images that are decoded already (`zfnet pack --raw --resize {side}`, {})",
                human_bytes((3 * side * side).next_multiple_of(4096).saturating_mul(self.images))
            ));
        }
        let lifts = match lifts.as_slice() {
            [] => String::from("a faster disk or more memory for its cache"),
            lifts => lifts.join(", or "),
        };
        let first = if self.kept {
            " of the first epoch, since images are then kept in memory (--cache-mb)"
        } else {
            ""
        };
        format!("the input{first}: steps could take {times:.1} times as many; that takes {lifts}")
    }
}

/// Seconds, for people.
pub fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 120.0 => format!("{s:.1} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

/// Shows what happens while a network is trained.
pub struct Display {
    pub progress: Progress,
    epochs: u32,
    steps_per_epoch: usize,
    samples: usize,
}

/// The flag by which a remedy is tried, if there is one.
fn flag_of(remedy: &Remedy) -> String {
    match remedy {
        Remedy::LearningRate(rate) => format!(" (--learning-rate {rate})"),
        Remedy::HeInitialization => " (--init-weights he)".into(),
        Remedy::RmsLimit(limit) => format!(" (--rms-limit {limit})"),
        _ => String::new(),
    }
}

impl Display {
    pub fn new(epochs: u32) -> Self {
        Self::on(Progress::new(), epochs)
    }

    fn on(progress: Progress, epochs: u32) -> Self {
        Display { progress, epochs, steps_per_epoch: 0, samples: 0 }
    }

    pub fn event(&mut self, event: &Event<'_>) {
        match event {
            Event::Mean(done, total) => self.progress.show("mean image", *done, *total, ""),
            Event::Compare(done, total) => self.progress.show("compare splits", *done, *total, ""),
            Event::Start { network, state, steps_per_epoch, notes } => {
                self.steps_per_epoch = *steps_per_epoch;
                for note in *notes {
                    self.progress.line(&format!("note: {note}"));
                }
                let input = network.architecture.input;
                self.progress.line(&format!(
                    "{}: {} parameters, {}{} pixels from {}, {} classes",
                    network.architecture.name,
                    network.parameters(),
                    size_text(input.size),
                    if input.channels == 1 { " grey" } else { "" },
                    input.resize,
                    network.classes()
                ));
                let recipe = toml::to_string(&state.recipe).expect("a recipe is plain data");
                let recipe: Vec<&str> = recipe.lines().collect();
                self.progress.line(&format!("recipe: {}", recipe.join(", ")));
                self.progress.line(&format!(
                    "seed {}, accumulate {}, step {} of {}",
                    state.seed,
                    state.accumulate,
                    state.step,
                    self.epochs as usize * steps_per_epoch
                ));
            }
            Event::Step { state, loss, samples, elapsed, waiting } => {
                self.samples += samples;
                let seconds = elapsed.as_secs_f64().max(1e-9);
                let more = format!(
                    ", loss {loss:.3}, {:.0} images/s, {:.0} % waiting for data",
                    self.samples as f64 / seconds,
                    100.0 * waiting.as_secs_f64() / seconds
                );
                let what = format!("epoch {} of {}", state.epoch + 1, self.epochs);
                self.progress.show(&what, state.batch, self.steps_per_epoch, &more);
            }
            Event::Validation(done, total) => self.progress.show("validate", *done, *total, ""),
            Event::Epoch {
                state,
                train_loss,
                validation,
                learning_rate,
                next_learning_rate,
                elapsed,
                waiting,
            } => {
                let seconds = elapsed.as_secs_f64().max(1e-9);
                self.progress.line(&format!(
                    "epoch {}: train loss {train_loss:.4}, val loss {:.4}, top-1 error {:.2} %, \
                     top-5 error {:.2} %, {:.1} s, {:.0} images/s, {:.0} % waiting for data",
                    state.epoch,
                    validation.loss,
                    100.0 * validation.top1_error,
                    100.0 * validation.top5_error,
                    seconds,
                    self.samples as f64 / seconds,
                    100.0 * waiting.as_secs_f64() / seconds
                ));
                if learning_rate != next_learning_rate {
                    self.progress
                        .line(&format!("learning rate: {learning_rate} -> {next_learning_rate}"));
                }
                self.samples = 0;
            }
            Event::Alarm(alarm) => {
                self.progress.line(&format!("alarm: {alarm}{}", flag_of(&alarm.remedy)))
            }
            Event::Metric(_) | Event::Save => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILES: Input = Input {
        canvas: Canvas::square(256),
        form: None,
        images: 1000,
        kept: false,
        workers: 2,
        cores: 16,
    };

    #[test]
    fn the_slower_of_the_two_is_the_limit() {
        let limit = |step, input| FILES.limit(step, input);
        assert_eq!(limit(100.0, 250.0), "the steps: the input could feed 2.5 times as many");
        assert!(limit(100.0, 0.0).starts_with("the input: "));
        assert!(limit(250.0, 100.0).starts_with("the input: steps could take 2.5 times as many"));
    }

    #[test]
    fn the_limit_is_lifted_by_what_is_not_there_yet() {
        let form = |form| Input { form: Some(form), ..FILES }.limit(300.0, 100.0);
        for (limit, wanted, unwanted) in [
            (FILES.limit(300.0, 100.0), ["--workers 6", "--resize 256`", "--raw"], "disk"),
            (FILES.limit(3000.0, 100.0), ["about 60 threads", "--workers 16", "--raw"], "disk"),
            (form(Form::Kept), ["--workers 6", "--resize 256`", "--raw"], "disk"),
            (form(Form::Resized { side: 256, quality: 90 }), ["--workers 6"; 3], "pack --resize"),
            (form(Form::Raw { side: 256 }), ["--workers 6"; 3], "zfnet pack"),
            (form(Form::Raw { side: 512 }), ["pack --raw --resize 256"; 3], "disk"),
            (Input { workers: 16, ..FILES }.limit(300.0, 100.0), ["--raw"; 3], "--workers"),
            (Input { kept: true, ..FILES }.limit(300.0, 100.0), ["--cache-mb"; 3], "disk"),
        ] {
            assert!(wanted.iter().all(|part| limit.contains(part)), "{wanted:?} in {limit}");
            assert!(!limit.contains(unwanted), "{unwanted} in {limit}");
        }
        let raw = Input { form: Some(Form::Raw { side: 256 }), workers: 16, ..FILES };
        assert!(raw.limit(300.0, 100.0).ends_with("a faster disk or more memory for its cache"));
    }
}
