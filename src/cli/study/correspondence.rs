//! `zfnet study correspondence`: the paper's Table 1.

use std::path::PathBuf;

use crate::bench::Benchmark;
use crate::report;
use crate::study::boxes;
use crate::study::correspondence::{STUDY, Settings, default_layers, run};
use crate::study::image_selection::from_files;
use crate::study::occluder::Fill;
use anyhow::{Result, bail};
use clap::Args;

use super::{StudyArgs, finish, layers_named};
use crate::cli::progress::Progress;
use crate::cli::{ExitCode, OnDevice};
use crate::cli::{output, shown};

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
    /// Fill value of a covered part
    #[arg(long, value_enum, default_value = "mean")]
    fill: Fill,
    /// Number of random draws of boxes, for comparison
    #[arg(long, default_value_t = 20)]
    random: u16,
    /// Seed of these draws
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

impl OnDevice for Correspondence {
    fn run<B: Benchmark>(self, backend: &B) -> Result<ExitCode> {
        let model = self.study.load(backend)?;
        let settings = Settings {
            layers: layers_named(&model.network, &self.layers, default_layers)?,
            fill: self.fill,
            draws: usize::from(self.random),
            seed: self.seed,
        };
        let marked = boxes::read(&self.boxes, self.data.as_deref())?;
        if marked.len() < 2 {
            bail!("{}: expected two images at least, found {}", self.boxes.display(), marked.len());
        }
        let files: Vec<PathBuf> = marked.iter().map(|marked| marked.file.clone()).collect();
        let images = from_files(backend, &model, &files, None)?;
        let out = self.study.out(&STUDY)?;
        let mut progress = Progress::new();
        let mut session = self.study.session(backend, &model, &out, &mut progress)?;
        session.fact("Parts", shown(&self.boxes));
        let found = run(&mut session, &model, &settings, &images, &marked)?;
        let page = finish(session, &out, report::correspondence::write(&out, &found))?;
        progress.end();
        output::line(page.display())?;
        Ok(ExitCode::SUCCESS)
    }
}
