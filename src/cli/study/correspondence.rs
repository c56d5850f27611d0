//! `zfnet study correspondence`: the paper's Table 1.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;
use zfnet::bench::Measured;
use zfnet::study::boxes;
use zfnet::study::correspondence::{Request, correspondence, default_layers, write};
use zfnet::study::picks::from_files;

use super::{FillName, StudyArgs};
use crate::cli::OnDevice;
use crate::cli::progress::Progress;

#[derive(Args)]
pub struct Correspondence {
    #[command(flatten)]
    pub study: StudyArgs,
    /// Parts of objects in images, in pixels of the files, as JSON: { "images": [ { "image": PATH,
    /// "boxes": { PART: [x0, y0, x1, y1] } } ] }
    #[arg(long, value_name = "FILE.json")]
    boxes: PathBuf,
    /// Folder that the images' paths are relative to [default: that of the JSON]
    #[arg(long)]
    data: Option<PathBuf>,
    /// Layers, separated by commas [default: the last convolution, pooled, and the last hidden fully
    /// connected layer]
    #[arg(long, value_delimiter = ',')]
    layers: Vec<String>,
    /// What covers a part
    #[arg(long, value_enum, default_value = "mean")]
    fill: FillName,
    /// How often boxes are drawn at random
    #[arg(long, default_value_t = 20)]
    random: u16,
    /// Seed of those
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

impl OnDevice for Correspondence {
    fn run<B: Measured>(self, backend: &B) -> Result<ExitCode> {
        let model = self.study.load(backend)?;
        let layers = match self.layers.as_slice() {
            [] => default_layers(&model.network),
            names => {
                let layers = names.iter().map(|name| model.network.layer(name));
                layers.collect::<Result<Vec<_>, _>>()?
            }
        };
        let marked = boxes::read(&self.boxes)?;
        if marked.len() < 2 {
            bail!("{}: expected two images at least, found {}", self.boxes.display(), marked.len());
        }
        let images = from_files(
            backend,
            &model,
            &boxes::files(&self.boxes, self.data.as_deref(), &marked),
            None,
        )?;
        let request = Request {
            images: &images,
            marked: &marked,
            layers: &layers,
            fill: self.fill.into(),
            draws: usize::from(self.random),
            seed: self.seed,
        };
        let out = self.study.out("correspondence")?;
        let mut progress = Progress::new();
        let scores = correspondence(backend, &model, &request, |done, total| {
            progress.show("correspondence: coverings", done, total, "");
        })?;
        progress.end();
        let mut facts = self.study.facts(&model);
        facts.extend(
            [
                ("Parts", self.boxes.display().to_string()),
                ("Covered with", self.fill.describe().into()),
                ("Seed", self.seed.to_string()),
            ]
            .map(|(name, value)| (name.to_owned(), value)),
        );
        println!("{}", write(&out, &model, &request, facts, &scores)?.display());
        Ok(ExitCode::SUCCESS)
    }
}
