//! The command line: one file a command; parsing and printing only. What the commands share is here.
//!
//! [`main`] is the program; the Python package calls that too, and in [`python`] the parts of some commands.

mod advice;
mod bench;
mod bench_loader;
mod classify;
mod demo;
mod device;
mod eval;
mod explore;
mod export;
mod extract;
#[cfg(feature = "cuda")]
mod gpus;
mod import;
mod inspect;
mod limits;
mod output;
mod pack;
mod progress;
mod project;
pub mod python;
mod ranks;
mod selftest;
mod signals;
mod study;
mod train;
mod verify;

use std::ffi::OsString;
use std::panic;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::backend::Backend;
use crate::data::Split;
use crate::data::folder::check_output;
use crate::data::images::ReadOptions;
use crate::data::set::DataSet;
use crate::data::shard::Io;
use crate::disk::{FolderLock, lock, unlock};
use crate::import::ExternalConfig;
use crate::model::{Canvas, Model};
use crate::ranks::Ranks;
use crate::train::checkpoint::load_model;
use crate::train::evaluate::TestCrops;
use anyhow::{Context, Result, bail};
use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use device::{DeviceArgs, OnDevice};

/// Train ZFNet and see what a convolutional network has learnt.
#[derive(Parser)]
#[command(version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Generate pictures, train zfnet-mini on them and show what it has learnt, in minutes
    Demo(demo::Demo),
    /// Train a network on a folder of images
    Train(train::Train),
    /// Top-1 and top-5 error of a checkpoint, or of several averaged
    Eval(eval::Eval),
    /// The most probable classes of images
    Classify(classify::Classify),
    /// Write a network for other programs
    Export(export::Export),
    /// Write what layers make of images to a file, for other programs
    Extract(extract::Extract),
    /// Show what made units fire in an image: their projections down to pixels
    Project(project::Project),
    /// Look into a network in the browser: its maps, what made a unit fire, what covering parts of an image changes
    Explore(explore::Explore),
    /// The same as `study features`
    Top9(study::features::Features),
    /// The paper's pictures, for a network of one's own
    Study(study::StudyCommand),
    /// Make a checkpoint of another program's network: PyTorch, ONNX, Caffe, safetensors
    Import(import::Import),
    /// Make shards of many images each, from a folder or tars of images
    Pack(pack::Pack),
    /// Check every byte of a set of shards
    Verify(verify::Verify),
    /// What a set of shards holds; layers, parameters and receptive fields of a network or checkpoint
    Inspect(inspect::Inspect),
    /// How fast each operation is, beside what this machine can do; or the loader
    Bench(bench::Bench),
    /// Whether this machine computes right: every operation beside a plain one
    Selftest(selftest::Selftest),
}

/// What the program tells who has called it: 0 if all is well. Unlike the standard library's it can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitCode(pub u8);

impl ExitCode {
    /// All is well.
    pub const SUCCESS: ExitCode = ExitCode(0);
    /// Something is not.
    pub const FAILURE: ExitCode = ExitCode(1);
}

#[derive(Args, Clone)]
struct ExternalArgs {
    /// For a file of another program that has weights alone: which network they belong to (a name or a TOML file)
    #[arg(long, visible_alias = "model")]
    arch: Option<String>,
    /// For a file of another program: how its images are prepared, instead of what it says itself
    #[arg(long, value_parser = ["paper", "torchvision", "caffe"])]
    preprocess: Option<String>,
}

impl ExternalArgs {
    fn config(&self) -> ExternalConfig {
        let (arch, preprocess) = (self.arch.clone(), self.preprocess.clone());
        ExternalConfig { arch, preprocess, ..ExternalConfig::default() }
    }

    fn load<B: Backend>(&self, backend: &B, checkpoint: &Path) -> Result<Model<B>> {
        Ok(load_model(backend, checkpoint, &self.config())?)
    }
}

/// The most threads that a loader may have.
const MOST_WORKERS: u16 = 256;

/// How images are read.
#[derive(Args, Clone)]
struct ReadArgs {
    /// Threads that read and decode images [default: 2, or with a GPU as many as there are cores, up to 32]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=i64::from(MOST_WORKERS)))]
    workers: Option<u16>,
    /// Fraction of files that cannot be read as images before the command stops
    #[arg(long, default_value_t = 0.01)]
    max_bad: f64,
    /// Keep decoded images in memory if all of a split fit into so many MiB; 0 for never
    #[arg(long, default_value_t = 2048)]
    cache_mb: usize,
    /// How shards are read [default: mmap, or pread on a network file system]
    #[arg(long, value_enum)]
    io: Option<IoName>,
}

impl ReadArgs {
    /// Threads of the loader.
    fn workers<B: Backend>(&self, backend: &B) -> usize {
        self.workers_of_rank(backend, &Ranks::alone())
    }

    /// Threads of the loader of one of several ranks: those of a host share its cores.
    fn workers_of_rank<B: Backend>(&self, backend: &B, ranks: &Ranks) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        match self.workers {
            Some(workers) => workers.into(),
            // A device that works beside the cores leaves them to the loader. Each thread has a batch of its own in
            // memory, hence the limit.
            None if backend.batches_in_flight() > 1 => {
                (cores() / ranks.count_on_host()).clamp(2, 32)
            }
            None => 2,
        }
    }

    fn options(&self, canvas: Canvas) -> Result<ReadOptions> {
        if !(0.0..=1.0).contains(&self.max_bad) {
            bail!("--max-bad: expected a share from 0 to 1, found {}", self.max_bad);
        }
        // Both splits may be kept, beside the network and its training.
        let share_of_free = crate::memory::available().map_or(usize::MAX, |free| free / 4);
        let cache_bytes = self.cache_mb.saturating_mul(1 << 20).min(share_of_free);
        let io = self.io.map(Io::from);
        Ok(ReadOptions { canvas, max_bad: self.max_bad, cache_bytes, io })
    }
}

/// Crops of an image whose probabilities are averaged.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum CropsName {
    /// The centre.
    #[value(name = "1")]
    One,
    /// The paper's: corners and centre, mirrored or not.
    #[value(name = "10")]
    Ten,
}

impl From<CropsName> for TestCrops {
    fn from(name: CropsName) -> Self {
        match name {
            CropsName::One => TestCrops::One,
            CropsName::Ten => TestCrops::Ten,
        }
    }
}

/// How shards are read.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum IoName {
    /// Mapped into memory.
    Mmap,
    /// By reads.
    Pread,
}

impl From<IoName> for Io {
    fn from(name: IoName) -> Self {
        match name {
            IoName::Mmap => Io::Mmap,
            IoName::Pread => Io::Pread,
        }
    }
}

/// A split of a data set.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum SplitName {
    /// The training images.
    Train,
    /// The validation images.
    Val,
}

impl From<SplitName> for Split {
    fn from(name: SplitName) -> Self {
        match name {
            SplitName::Train => Split::Train,
            SplitName::Val => Split::Val,
        }
    }
}

/// A data set that a model is tried on, which must have its classes.
fn open_data<B: Backend>(data: &Path, model: &Model<B>) -> Result<DataSet> {
    let set = DataSet::open_for(data, &model.classes)?;
    if !model.classes.are_known() {
        tracing::warn!(
            "the network's file does not name its classes: they are taken to be those of {}, in the order of their \
             folders",
            data.display()
        );
    }
    Ok(set)
}

/// So many threads for what runs on all cores outside the CPU backend.
fn use_threads(threads: Option<u16>) -> Result<()> {
    let threads = limits::check_threads(threads)?.unwrap_or(0); // 0: all cores
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
    pool.build_global().context("cannot start threads")
}

/// A number with a comma before every third digit from the right.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let groups: Vec<_> =
        digits.as_bytes().rchunks(3).rev().map(|group| String::from_utf8_lossy(group)).collect();
    groups.join(",")
}

/// A path as pages show it: as it was given or, if that was absolute and may tell of a user what others need not know,
/// by its last name.
fn shown(path: &Path) -> String {
    if path.is_relative() {
        return path.display().to_string();
    }
    let name = path.file_name().map_or(path, Path::new);
    let within = ["best", "last", "model.safetensors"].iter().any(|known| name == Path::new(known))
        || name.to_string_lossy().starts_with("step-");
    match path.parent() {
        Some(run) if within => format!("{}/{}", shown(run), name.display()),
        _ => name.display().to_string(),
    }
}

/// Folders that this command writes pages into, each with its lock.
static HELD: Mutex<Vec<(PathBuf, FolderLock)>> = Mutex::new(Vec::new());

/// The folder for a command's pages, made if need be.
fn make_folder(out: &Path) -> Result<PathBuf> {
    let mut held = HELD.lock().expect("no panic while it is held");
    if held.iter().all(|(folder, _)| folder != out) {
        held.push((out.to_owned(), locked_folder(out)?)); // until the program ends
    }
    Ok(out.to_owned())
}

/// Makes a folder for pages, if need be, and locks it: two commands that write into one folder would mix their pictures
/// and numbers.
fn locked_folder(out: &Path) -> Result<FolderLock> {
    check_output(out)?;
    std::fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
    // Known before hours of work, and gone when it is dropped.
    tempfile::tempfile_in(out).with_context(|| format!("cannot write into {}", out.display()))?;
    Ok(lock(out, "another command")?)
}

/// Runs the program with these arguments, the first of which is its name.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    // Of several ranks the first speaks; the others only of their own trouble.
    let launched = ranks::launched();
    let speaks = launched.is_none_or(|(rank, _)| rank == 0);
    output::be_silent(!speaks);
    let _already_set = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .log_internal_errors(false) // by `eprintln!`, which ends the program where stderr cannot be written
        .with_target(false)
        .with_ansi(output::colours())
        .without_time()
        .with_max_level(if speaks { tracing::Level::INFO } else { tracing::Level::ERROR })
        .try_init()
        .is_err(); // by an earlier call in the same process
    signals::outlive_file_size_limits();
    silence_decoders();
    let matches = Cli::command().try_get_matches_from(args);
    let parsed = matches.and_then(|matches| Ok((Cli::from_arg_matches(&matches)?, matches)));
    let (Cli { command }, matches) = match parsed {
        Ok(parsed) => parsed,
        Err(error) => {
            if speaks {
                let _ = error.print(); // help, too
            }
            return ExitCode(error.exit_code() as u8);
        }
    };
    let result = limits::raise_open_files().and_then(|()| run(command));
    for (folder, file) in HELD.lock().expect("no panic while it is held").drain(..) {
        unlock(&folder, file);
    }
    result.unwrap_or_else(|error| {
        if error.downcast_ref().is_some_and(output::Unwritable::reader_has_left) {
            return ExitCode(signals::SIGPIPE_CODE);
        }
        let advice = advice::advice(&error, &flags(&matches));
        let advice = advice.map_or(String::new(), |advice| format!("; {advice}"));
        match launched.filter(|(rank, _)| *rank > 0) {
            None => output::message(format_args!("error: {error:#}{advice}")),
            Some((rank, _)) if ranks::is_own_trouble(rank, &error) => {
                output::complain(format_args!("rank {rank}: error: {error:#}{advice}"));
            }
            Some(_) => {}
        }
        signals::code_of(&error).unwrap_or(ExitCode::FAILURE)
    })
}

/// Leaves it at an error where a decoder panics at a bad image: what Rust would say of it helps nobody.
fn silence_decoders() {
    let say = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        if !crate::data::decode::is_decoding() {
            say(panic);
        }
    }));
}

/// The long flags of the command that was given.
fn flags(matches: &ArgMatches) -> Vec<String> {
    let all = Cli::command();
    let (mut command, mut matches) = (&all, matches);
    while let Some((name, inner)) = matches.subcommand() {
        let Some(found) = command.find_subcommand(name) else { break };
        (command, matches) = (found, inner);
    }
    command.get_arguments().filter_map(|flag| flag.get_long().map(str::to_owned)).collect()
}

fn run(command: Command) -> Result<ExitCode> {
    let is_divided = match &command {
        Command::Train(_) | Command::Top9(_) => true,
        Command::Study(study) => study.is_divided(),
        _ => false,
    };
    if let Some((_, ranks)) = ranks::launched().filter(|_| !is_divided) {
        bail!(
            "only `train` and `study features` are done by several ranks, found {ranks}: run it without a launcher"
        );
    }
    match command {
        Command::Demo(args) => args.device.clone().run(args),
        Command::Train(args) => train::run(args),
        Command::Eval(args) => args.device.clone().run(args),
        Command::Classify(args) => args.device.clone().run(args),
        Command::Export(args) => args.device.clone().run(args),
        Command::Extract(args) => args.device.clone().run(args),
        Command::Project(args) => args.device.clone().run(args),
        Command::Explore(args) => args.device.clone().run(args),
        Command::Top9(args) => study::features::run_by_ranks(args),
        Command::Study(args) => study::run(args),
        Command::Import(args) => args.device.clone().run(args),
        Command::Pack(args) => pack::run(args),
        Command::Verify(args) => verify::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Selftest(args) => selftest::run(args),
        Command::Bench(args) => match args.other {
            Some(bench::Other::Loader(args)) => bench_loader::run(args),
            None => args.device.clone().run(args),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::grouped;

    #[test]
    fn thousands_are_set_apart() {
        assert_eq!([0, 999, 1000, 1_281_167].map(grouped), ["0", "999", "1,000", "1,281,167"]);
    }
}
