//! `zfnet study ...`: the paper's pictures for a network of one's own. What the commands share is here.

mod ablation;
mod correspondence;
mod ensemble;
pub mod evolution;
pub mod features;
mod filters;
mod invariance;
mod occlusion;
mod probe;
mod report;
mod sanity;
mod transfer;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use zfnet::backend::Backend;
use zfnet::data::Split;
use zfnet::model::Model;
use zfnet::report::{figure, top9};
use zfnet::study::fill::Fill;
use zfnet::study::picks::{Picked, class_named, first_correct, from_files};

use super::progress::Progress;
use super::{BareArgs, DeviceArgs, ReadArgs, SplitName, make_folder, open_data};

#[derive(Args)]
pub struct StudyCommand {
    #[command(subcommand)]
    study: Study,
}

#[derive(Subcommand)]
#[allow(clippy::large_enum_variant)] // there is one of them in a program's life
enum Study {
    /// The nine strongest activations of every map, projected, beside their patches (Figure 2)
    Features(features::Features),
    /// How features came about, epoch by epoch (Figure 4)
    Evolution(evolution::Evolution),
    /// What moving, scaling and turning an image changes (Figure 5)
    Invariance(invariance::Invariance),
    /// First-layer filters, of several networks side by side; dead features, aliasing (Figure 6)
    Filters(filters::Filters),
    /// Slide a square over images: where does the network look? (Figure 7)
    Occlusion(occlusion::Occlusion),
    /// Are parts of objects told alike in different images? (Table 1)
    Correspondence(correspondence::Correspondence),
    /// Projections beside those of random weights, by three rules
    Sanity(sanity::Sanity),
    /// Networks with layers taken out or changed in width, all trained with one budget (Table 3)
    Ablation(ablation::Ablation),
    /// Several checkpoints, each alone and all averaged, with 1 and 10 crops (Table 2)
    Ensemble(ensemble::Ensemble),
    /// The features on other classes, from few images, beside training from scratch (Tables 4 and 5)
    Transfer(transfer::Transfer),
    /// A linear classifier on every layer: where can classes be told apart? (Table 7)
    Probe(probe::Probe),
    /// One page of a run: training curves and every study made of it so far
    Report(report::Report),
}

pub fn run(command: StudyCommand) -> Result<ExitCode> {
    match command.study {
        Study::Features(args) => args.study.device.clone().run(args),
        Study::Evolution(args) => args.device.clone().run(args),
        Study::Invariance(args) => args.study.device.clone().run(args),
        Study::Filters(args) => args.study.device.clone().run(args),
        Study::Occlusion(args) => args.study.device.clone().run(args),
        Study::Correspondence(args) => args.study.device.clone().run(args),
        Study::Sanity(args) => args.study.device.clone().run(args),
        Study::Ablation(args) => args.device.clone().run(args),
        Study::Ensemble(args) => args.device.clone().run(args),
        Study::Transfer(args) => args.study.device.clone().run(args),
        Study::Probe(args) => args.study.device.clone().run(args),
        Study::Report(args) => report::run(args),
    }
}

/// What every study of a checkpoint takes.
#[derive(Args)]
pub struct StudyArgs {
    /// RUN, RUN/step-N, RUN/best or a safetensors file
    #[arg(long)]
    checkpoint: PathBuf,
    /// Folder for the page, its pictures and numbers [default: RUN/report/NAME]
    #[arg(long)]
    out: Option<PathBuf>,
    #[command(flatten)]
    bare: BareArgs,
    #[command(flatten)]
    pub device: DeviceArgs,
}

impl StudyArgs {
    fn load<B: Backend>(&self, backend: &B) -> Result<Model<B>> {
        self.bare.load(backend, &self.checkpoint)
    }

    /// The folder of a study of this name, about to be made: what it says of an earlier one is taken back,
    /// so that no report shows new pictures under old words.
    fn out(&self, study: &str) -> Result<PathBuf> {
        let out = self.folder(study)?;
        for file in [figure::FILE, top9::FILE] {
            match std::fs::remove_file(out.join(file)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error)
                        .with_context(|| format!("cannot write into {}", out.display()));
                }
                _ => {}
            }
        }
        Ok(out)
    }

    fn folder(&self, study: &str) -> Result<PathBuf> {
        if let Some(out) = &self.out {
            return make_folder(out);
        }
        let is_run = |folder: &&Path| folder.join("metrics.jsonl").is_file();
        match self.checkpoint.ancestors().take(2).find(is_run) {
            Some(run) => make_folder(&run.join("report").join(study)),
            None => bail!(
                "{} is not of a run: say with --out where the pages shall be",
                self.checkpoint.display()
            ),
        }
    }

    /// Network and checkpoint, as the first facts of a figure.
    fn facts<B: Backend>(&self, model: &Model<B>) -> Vec<(String, String)> {
        let network = model.network.architecture.name.clone();
        let checkpoint = self.checkpoint.display().to_string();
        vec![("Network".into(), network), ("Checkpoint".into(), checkpoint)]
    }
}

/// What covers a part of an image.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum FillName {
    /// The mean that preprocessing takes off: zero for the network, what the paper calls grey.
    Mean,
    /// Mid-grey, 128 in each channel.
    Grey,
    /// The image, blurred.
    Blur,
}

impl FillName {
    fn describe(self) -> &'static str {
        match self {
            FillName::Mean => "the training images’ mean, which is zero for the network",
            FillName::Grey => "mid-grey, 128 in each channel",
            FillName::Blur => "the image itself, blurred",
        }
    }
}

impl From<FillName> for Fill {
    fn from(name: FillName) -> Self {
        match name {
            FillName::Mean => Fill::Mean,
            FillName::Grey => Fill::Grey,
            FillName::Blur => Fill::Blur,
        }
    }
}

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
    /// Of which split
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
    ) -> Result<Vec<Picked>> {
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
        for &class in &classes {
            if picked.iter().all(|picked| picked.class != class) {
                progress.line(&format!(
                    "class `{}` is left out: no image of it is classified right",
                    model.classes[class]
                ));
            }
        }
        Ok(picked)
    }

    /// Where the images are from, for a figure's facts.
    fn source(&self) -> String {
        match &self.data {
            Some(root) => format!("{}, {}", root.display(), Split::from(self.split).name()),
            None => "files".into(),
        }
    }
}
