//! `zfnet study occlusion`: the paper's Figure 7.

use std::path::PathBuf;

use crate::bench::Benchmark;
use crate::report;
use crate::study::boxes;
use crate::study::occluder::Fill;
use crate::study::occlusion::{OfImage, STUDY, Settings, run};
use anyhow::{Result, anyhow, bail};
use clap::Args;

use super::{PickArgs, StudyArgs, finish, with_shown_names};
use crate::cli::output;
use crate::cli::progress::Progress;
use crate::cli::{ExitCode, OnDevice};

#[derive(Args)]
pub struct Occlusion {
    #[command(flatten)]
    pub study: StudyArgs,
    #[command(flatten)]
    pick: PickArgs,
    /// Side of the square, in pixels of the network's input [default: a quarter of its shorter side]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    square: Option<u16>,
    /// Stride of the square, in pixels [default: what makes 25 positions on the longer side]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    stride: Option<u16>,
    /// Fill value of the square
    #[arg(long, value_enum, default_value = "mean")]
    fill: Fill,
    /// Layer whose strongest map is measured [default: the last spatial convolution]
    #[arg(long)]
    layer: Option<String>,
    /// Boxes of the objects, in pixels of the files, as JSON: { "images": [ { "image": PATH, "boxes":
    /// { NAME: [x0, y0, x1, y1] } } ] }. Without images or --data, its images are looked at
    #[arg(long, value_name = "FILE.json")]
    boxes: Option<PathBuf>,
    /// Which of an image's boxes [default: the first by name]
    #[arg(long, requires = "boxes")]
    r#box: Option<String>,
}

impl OnDevice for Occlusion {
    fn run<B: Benchmark>(self, backend: &B) -> Result<ExitCode> {
        let model = self.study.load(backend)?;
        let network = &model.network;
        let layer = self.layer.as_ref().map(|name| network.layer(name)).transpose()?;
        let [square, stride] = [self.square, self.stride].map(|pixels| pixels.map(usize::from));
        let settings = Settings::new(network, layer, square, stride, self.fill)
            .map_err(|error| anyhow!("{error:#}, with --layer"))?;
        let marked = match &self.boxes {
            Some(list) => boxes::read(list, None)?,
            None => Vec::new(),
        };
        let files: Vec<PathBuf> = marked.iter().map(|marked| marked.file.clone()).collect();

        let mut progress = Progress::new();
        let picked = self.pick.pick(backend, &model, &files, &mut progress)?;
        let name = self.r#box.as_deref();
        let objects = boxes::objects(&model.preprocess, &picked, &marked, name)?;
        let boxed = objects.iter().flatten().count();
        if let (Some(list), 0) = (&self.boxes, boxed) {
            bail!("{}: none of its images is among those looked at", list.display());
        }
        if boxed < marked.len() {
            progress.line(&format!(
                "{} of {} images with boxes are not among those looked at",
                marked.len() - boxed,
                marked.len()
            ));
        }

        let out = self.study.out(&STUDY)?;
        let mut session = self.study.session(backend, &model, &out, &mut progress)?;
        session.fact("Images", self.pick.source());
        let images = with_shown_names(picked).into_iter().zip(objects).collect();
        let found = run(&mut session, &model, &settings, images)?;
        let page = finish(session, &out, report::occlusion::write(&out, &found))?;
        progress.end();
        let inside: Vec<bool> = found.images.iter().filter_map(OfImage::drop_is_inside).collect();
        if !inside.is_empty() {
            let count = inside.iter().filter(|inside| **inside).count();
            output::line(format_args!(
                "the probability falls most inside the box in {count} of {}",
                inside.len()
            ))?;
        }
        output::line(page.display())?;
        Ok(ExitCode::SUCCESS)
    }
}
