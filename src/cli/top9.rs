//! `zfnet top9`: the paper's Figure 2 for a network of one's own.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::Args;
use zfnet::backend::Backend;
use zfnet::bench::Measured;
use zfnet::data::Split;
use zfnet::data::images::Images;
use zfnet::model::{Kind, Model, Rule};
use zfnet::report::top9::{Header, Writer};
use zfnet::study::top9::{Request, top9};

use super::progress::Progress;
use super::{BareArgs, DeviceArgs, OnDevice, ReadArgs, SplitName, make_folder, open_data};

#[derive(Args)]
pub struct Top9 {
    /// RUN, RUN/step-N, RUN/best or a safetensors file
    #[arg(long)]
    checkpoint: PathBuf,
    /// Folder with train/CLASS/* and val/CLASS/*, or shards made by `zfnet pack`
    #[arg(long)]
    data: PathBuf,
    /// Folder for the page
    #[arg(long)]
    out: PathBuf,
    /// Layers, separated by commas [default: all spatial convolutions]
    #[arg(long, value_delimiter = ',')]
    layers: Vec<String>,
    /// Only so many maps of each layer, from the first on [default: all]
    #[arg(long)]
    maps: Option<usize>,
    /// Which images
    #[arg(long, value_enum, default_value = "val")]
    split: SplitName,
    /// How to walk down
    #[arg(long, default_value = "deconvnet", value_parser = ["deconvnet", "gradient", "guided"])]
    rule: String,
    #[command(flatten)]
    bare: BareArgs,
    #[command(flatten)]
    pub device: DeviceArgs,
    #[command(flatten)]
    read: ReadArgs,
}

impl OnDevice for Top9 {
    fn run<B: Measured>(self, backend: &B) -> Result<ExitCode> {
        let model = self.bare.load(backend, &self.checkpoint)?;
        let data = open_data(&self.data, &model)?;
        let split = Split::from(self.split);
        let images = data.images(split, self.read.options(model.preprocess.resize)?)?;
        let job = PageJob {
            checkpoint: self.checkpoint.display().to_string(),
            root: &self.data,
            images: Arc::new(images),
            split,
            layers: self.layers,
            maps: self.maps,
            rule: self.rule,
            workers: usize::from(self.read.workers),
            facts: Vec::new(),
            status: None,
        };
        let mut progress = Progress::new();
        let page = write_page(backend, &model, job, &self.out, &mut progress)?;
        progress.end();
        println!("{}", page.display());
        Ok(ExitCode::SUCCESS)
    }
}

/// What a page shows.
pub struct PageJob<'a> {
    pub checkpoint: String,
    pub root: &'a Path,
    pub images: Arc<Images>,
    pub split: Split,
    /// Names; none for all spatial convolutions.
    pub layers: Vec<String>,
    /// How many maps of each layer; all of them for `None`.
    pub maps: Option<usize>,
    pub rule: String,
    pub workers: usize,
    /// What else stands under the title.
    pub facts: Vec<(String, String)>,
    /// What is still going on; the page then renews itself.
    pub status: Option<String>,
}

/// Makes the page and says where it is.
pub fn write_page<B: Backend>(
    backend: &B,
    model: &Model<B>,
    job: PageJob<'_>,
    out: &Path,
    progress: &mut Progress,
) -> Result<PathBuf> {
    let network = &model.network;
    let layers = if job.layers.is_empty() {
        let spatial = |&i: &usize| matches!(network.layers[i].kind, Kind::Conv { .. });
        (0..network.layers.len()).filter(spatial).collect()
    } else {
        job.layers.iter().map(|name| network.layer(name)).collect::<Result<Vec<_>, _>>()?
    };
    let header = Header {
        title: format!("What {} has learnt", network.architecture.name),
        checkpoint: job.checkpoint,
        data: job.root.display().to_string(),
        network: network.architecture.name.clone(),
        split: job.split.name().into(),
        images: job.images.len(),
        input: network.input().h,
        rule: job.rule.clone(),
        facts: job.facts,
        refresh: job.status.as_ref().map(|_| 10),
        status: job.status,
    };
    let written = || format!("cannot write into {}", out.display());
    let mut writer = Writer::new(&make_folder(out)?, header).with_context(written)?;
    let request = Request {
        images: job.images,
        root: job.root,
        layers,
        maps: job.maps.unwrap_or(usize::MAX),
        rule: Rule::named(&job.rule)?,
        workers: job.workers,
    };
    top9(backend, model, &request, &mut writer, |what, done, total| {
        progress.show(&format!("top9: {what}"), done, total, "");
    })?;
    writer.finish().with_context(written)
}
