//! `zfnet study ...`: the paper's pictures for a network of one's own. What the commands share is here.

mod ablation;
mod correspondence;
mod diagnose;
mod ensemble;
pub mod evolution;
pub mod features;
mod filters;
mod invariance;
mod learnt;
mod occlusion;
mod preferred;
mod probe;
mod report;
mod sanity;
mod transfer;

use std::io;
use std::path::{Path, PathBuf};

use crate::backend::Backend;
use crate::data::Split;
use crate::model::{Model, Network};
use crate::study::image_selection::{StudyImage, class_named, first_correct, from_files};
use crate::study::learnt::sentence;
use crate::study::{self, Session, Study};
use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};

use super::progress::Progress;
use super::{DeviceArgs, ExternalArgs, ReadArgs, SplitName, make_folder, open_data, shown};
use crate::cli::ExitCode;

#[derive(Args)]
pub struct StudyCommand {
    #[command(subcommand)]
    command: Command,
}

// Each is named and described by its entry in the library's list of studies, in the order of that.
#[derive(Subcommand)]
#[allow(clippy::large_enum_variant)] // there is one of them in a program's life
enum Command {
    #[command(about = about(&study::diagnose::STUDY))]
    Diagnose(diagnose::Diagnose),
    #[command(about = about(&study::learnt::STUDY))]
    Learnt(learnt::Learnt),
    #[command(about = about(&study::features::STUDY))]
    Features(features::Features),
    #[command(about = about(&study::preferred::STUDY))]
    Preferred(preferred::Preferred),
    #[command(about = about(&study::evolution::STUDY))]
    Evolution(evolution::Evolution),
    #[command(about = about(&study::invariance::STUDY))]
    Invariance(invariance::Invariance),
    #[command(about = about(&study::filters::STUDY))]
    Filters(filters::Filters),
    #[command(about = about(&study::occlusion::STUDY))]
    Occlusion(occlusion::Occlusion),
    #[command(about = about(&study::correspondence::STUDY))]
    Correspondence(correspondence::Correspondence),
    #[command(about = about(&study::sanity::STUDY))]
    Sanity(sanity::Sanity),
    #[command(about = about(&study::ensemble::STUDY))]
    Ensemble(ensemble::Ensemble),
    #[command(about = about(&study::ablation::STUDY))]
    Ablation(ablation::Ablation),
    #[command(about = about(&study::transfer::STUDY))]
    Transfer(transfer::Transfer),
    #[command(about = about(&study::probe::STUDY))]
    Probe(probe::Probe),
    /// One page of a run: training curves and every study made of it so far
    Report(report::Report),
}

impl StudyCommand {
    /// Whether several ranks can do it together.
    pub fn is_divided(&self) -> bool {
        matches!(self.command, Command::Features(_))
    }
}

/// A study as the list of commands has it.
fn about(study: &Study) -> String {
    let line = study.line();
    format!("{}{}", line[..1].to_uppercase(), &line[1..])
}

pub fn run(StudyCommand { command }: StudyCommand) -> Result<ExitCode> {
    match command {
        Command::Diagnose(args) => diagnose::run(args),
        Command::Learnt(args) => args.study.device.clone().run(args),
        Command::Features(args) => features::run_by_ranks(args),
        Command::Preferred(args) => args.study.device.clone().run(args),
        Command::Evolution(args) => args.device.clone().run(args),
        Command::Invariance(args) => args.study.device.clone().run(args),
        Command::Filters(args) => args.study.device.clone().run(args),
        Command::Occlusion(args) => args.study.device.clone().run(args),
        Command::Correspondence(args) => args.study.device.clone().run(args),
        Command::Sanity(args) => args.study.device.clone().run(args),
        Command::Ensemble(args) => args.device.clone().run(args),
        Command::Ablation(args) => args.device.clone().run(args),
        Command::Transfer(args) => args.study.device.clone().run(args),
        Command::Probe(args) => args.study.device.clone().run(args),
        Command::Report(args) => report::run(args),
    }
}

/// What every study of a checkpoint takes.
#[derive(Args)]
pub struct StudyArgs {
    /// RUN, RUN/step-N, RUN/best, a safetensors file or another program's network
    #[arg(long)]
    checkpoint: PathBuf,
    /// Folder for the page, its pictures and numbers [default: RUN/report/NAME]
    #[arg(long)]
    out: Option<PathBuf>,
    #[command(flatten)]
    external: ExternalArgs,
    #[command(flatten)]
    pub device: DeviceArgs,
}

impl StudyArgs {
    fn load<B: Backend>(&self, backend: &B) -> Result<Model<B>> {
        self.external.load(backend, &self.checkpoint)
    }

    /// A session on this checkpoint: the study's folder, made if need be, and what says how far it is.
    fn session<'a, B: Backend>(
        &self,
        backend: &'a B,
        model: &Model<B>,
        out: &Path,
        progress: &'a mut Progress,
    ) -> Result<Session<'a, B>> {
        let mut session = watched(backend, out, progress);
        session.facts = self.facts(backend, model)?;
        Ok(session)
    }

    /// The folder of a study's page, made if need be.
    fn out(&self, study: &Study) -> Result<PathBuf> {
        if let Some(out) = &self.out {
            return make_folder(out);
        }
        match run_folder(&self.checkpoint) {
            Some(run) => make_folder(&run.join("report").join(study.name)),
            None => bail!(
                "{} is not of a run: say with --out where the pages shall be",
                self.checkpoint.display()
            ),
        }
    }

    /// Network, checkpoint and how much of it are its initial weights, as the first facts of a figure.
    fn facts<B: Backend>(&self, backend: &B, model: &Model<B>) -> Result<Vec<(String, String)>> {
        let network = model.network.architecture.name.clone();
        let checkpoint = shown(&self.checkpoint);
        let facts = vec![("Network".into(), network), ("Checkpoint".into(), checkpoint)];
        Ok([facts, vec![initial_weights(backend, model)?]].concat())
    }
}

/// The folder of the run that a checkpoint is of, if it is of one.
pub fn run_folder(checkpoint: &Path) -> Option<&Path> {
    let is_run = |folder: &&Path| folder.join("metrics.jsonl").is_file();
    checkpoint.ancestors().take(2).find(is_run)
}

/// How much of a model are its initial weights, as a fact of a figure.
pub fn initial_weights<B: Backend>(
    backend: &B,
    model: &Model<B>,
) -> crate::Result<(String, String)> {
    Ok(("Initial weights".into(), sentence(backend, &model.network, &model.params)?))
}

/// A session that keeps its parts in `out` and shows how far it is.
fn watched<'a, B: Backend>(
    backend: &'a B,
    out: &Path,
    progress: &'a mut Progress,
) -> Session<'a, B> {
    let show = |what: &str, done, total, more: &str| progress.show(what, done, total, more);
    Session::new(backend).kept_in(out).watched(show)
}

/// Ends a session whose page has been written, or not.
fn finish<B: Backend>(
    session: Session<'_, B>,
    out: &Path,
    page: io::Result<PathBuf>,
) -> Result<PathBuf> {
    let page = page.with_context(|| format!("cannot write into {}", out.display()))?;
    session.finish()?;
    Ok(page)
}

/// Images whose names are as pages show them. What is found by a file's name must be found before.
fn with_shown_names(mut images: Vec<StudyImage>) -> Vec<StudyImage> {
    images.iter_mut().for_each(|image| image.name = shown(Path::new(&image.name)));
    images
}

/// Indices of layers; of none, what `instead` says.
fn layers_named(
    network: &Network,
    names: &[String],
    instead: impl FnOnce(&Network) -> Vec<usize>,
) -> Result<Vec<usize>> {
    match names {
        [] => Ok(instead(network)),
        names => Ok(names.iter().map(|name| network.layer(name)).collect::<Result<_, _>>()?),
    }
}

/// Classes that are named one by one where they are left out.
const SHOWN: usize = 10;

/// Which images a study looks into.
#[derive(Args)]
struct PickArgs {
    /// JPEG or PNG files
    images: Vec<PathBuf>,
    /// The files' class [default: their folder's name if it is a class, else the most probable one]
    #[arg(long, requires = "images")]
    class: Option<String>,
    /// Instead of files: of each class the first image that is classified right, from a folder with
    /// train/CLASS/* and val/CLASS/*, or from shards
    #[arg(long, conflicts_with = "images")]
    data: Option<PathBuf>,
    /// Only of these classes, separated by commas
    #[arg(long, value_delimiter = ',', requires = "data")]
    classes: Vec<String>,
    /// Which split of the data
    #[arg(long, value_enum, default_value = "val")]
    split: SplitName,
    #[command(flatten)]
    read: ReadArgs,
}

impl PickArgs {
    /// The images; `instead` are the files if none were named.
    fn pick<B: Backend>(
        &self,
        backend: &B,
        model: &Model<B>,
        instead: &[PathBuf],
        progress: &mut Progress,
    ) -> Result<Vec<StudyImage>> {
        let Some(root) = &self.data else {
            let files = if self.images.is_empty() { instead } else { &self.images };
            if files.is_empty() {
                bail!("no images: name JPEG or PNG files, or a data set with --data");
            }
            return Ok(from_files(backend, model, files, self.class.as_deref())?);
        };
        let classes = match self.classes.as_slice() {
            [] => (0..model.classes.len()).collect(),
            names => names
                .iter()
                .map(|name| class_named(&model.classes, name))
                .collect::<Result<Vec<_>, _>>()?,
        };
        let options = self.read.options(model.preprocess.resize)?;
        let images = open_data(root, model)?.images(self.split.into(), options)?;
        let picked = first_correct(backend, model, &images, root, &classes, |done, total| {
            progress.show("choose images", done, total, "");
        })?;
        if picked.is_empty() {
            bail!(
                "{}: the network classifies no {} image right",
                root.display(),
                Split::from(self.split).name()
            );
        }
        let is_left_out = |class: &&usize| picked.iter().all(|picked| picked.class != **class);
        let left_out: Vec<_> = classes.iter().filter(is_left_out).collect();
        for class in left_out.iter().take(SHOWN) {
            progress.line(&format!(
                "class `{}` is left out: no image of it is classified right",
                model.classes.names[**class]
            ));
        }
        if left_out.len() > SHOWN {
            progress.line(&format!("... and {} more", left_out.len() - SHOWN));
        }
        Ok(picked)
    }

    /// Where the images are from, for a figure's facts.
    fn source(&self) -> String {
        match &self.data {
            Some(root) => format!("{}, {}", shown(root), Split::from(self.split).name()),
            None => "files".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::study::STUDIES;
    use clap::Subcommand;

    #[test]
    fn every_study_has_a_command_in_the_order_of_the_list() {
        let help = super::Command::augment_subcommands(clap::Command::new("study"));
        let mut commands: Vec<&str> = help.get_subcommands().map(|c| c.get_name()).collect();
        assert_eq!(commands.pop(), Some("report"));
        assert_eq!(commands, STUDIES.map(|study| study.name));
        let readme = include_str!("../../../README.md");
        for study in STUDIES {
            assert!(readme.contains(&format!("zfnet study {} ", study.name)), "{}", study.name);
        }
    }
}
