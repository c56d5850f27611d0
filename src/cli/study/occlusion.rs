//! `zfnet study occlusion`: the paper's Figure 7.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use xxhash_rust::xxh3::xxh3_64;
use zfnet::bench::Measured;
use zfnet::model::Projector;
use zfnet::study::boxes::{self, Marked};
use zfnet::study::fingerprint;
use zfnet::study::occlusion::{Occluded, Occluder, Shown, Sliding, write};
use zfnet::study::parts::Parts;
use zfnet::study::picks::Picked;

use super::{FillName, PickArgs, StudyArgs};
use crate::cli::OnDevice;
use crate::cli::progress::Progress;

#[derive(Args)]
pub struct Occlusion {
    #[command(flatten)]
    pub study: StudyArgs,
    #[command(flatten)]
    pick: PickArgs,
    /// Side of the square, in pixels of the network's input [default: a quarter of it]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    square: Option<u16>,
    /// From one place of the square to the next, in pixels [default: what makes 25 places a side]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    stride: Option<u16>,
    /// What the square is filled with
    #[arg(long, value_enum, default_value = "mean")]
    fill: FillName,
    /// Layer whose strongest map's activity is noted [default: the last spatial convolution]
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
    fn run<B: Measured>(self, backend: &B) -> Result<ExitCode> {
        let model = self.study.load(backend)?;
        let (network, preprocess) = (&model.network, &model.preprocess);
        let layer = match &self.layer {
            Some(name) => network.layer(name)?,
            None => *network
                .spatial()
                .last()
                .context("the network has no spatial convolution: choose a --layer")?,
        };
        let square = self.square.map_or(preprocess.size.div_ceil(4), usize::from);
        let room = preprocess.size.saturating_sub(square);
        let stride = self.stride.map_or(room.div_ceil(24).max(1), usize::from);
        let sliding = Sliding { square, stride, fill: self.fill.into(), layer };
        let marked = self.boxes.as_deref().map(boxes::read).transpose()?.unwrap_or_default();
        let of_list = self.boxes.as_deref().map(|list| boxes::files(list, None, &marked));
        let of_list = of_list.unwrap_or_default();

        let mut progress = Progress::new();
        let picked = self.pick.pick(backend, &model, &of_list, &mut progress)?;
        let objects = picked
            .iter()
            .map(|image| {
                let object = self.object(image, &marked, &of_list)?;
                let Some((name, object)) = object else { return Ok(None) };
                let object = boxes::in_crop(preprocess, image, object);
                let [x0, y0, x1, y1] = object;
                let size = preprocess.size as f64;
                if x1 <= 0.0 || y1 <= 0.0 || x0 >= size || y0 >= size {
                    bail!(
                        "{}: box `{name}` lies outside the centre that the network sees",
                        image.name
                    );
                }
                Ok(Some(object))
            })
            .collect::<Result<Vec<Option<[f64; 4]>>>>()?;
        if let (Some(list), true) = (&self.boxes, objects.iter().all(Option::is_none)) {
            bail!("{}: none of its images is among those looked at", list.display());
        }
        let boxed = objects.iter().flatten().count();
        if boxed < marked.len() {
            progress.line(&format!(
                "{} of {} images with boxes are not among those looked at",
                marked.len() - boxed,
                marked.len()
            ));
        }

        let out = self.study.out("occlusion")?;
        let images: Vec<_> =
            picked.iter().map(|p| (&p.name, p.class, xxh3_64(&p.square))).collect();
        let fill = format!("{:?}", sliding.fill);
        let settings = (fingerprint(backend, &model)?, images, square, stride, fill, layer);
        let parts = Parts::open(&out, &settings)?;
        let mut occluder = Occluder::new(backend, &model, sliding)?;
        let mut projector = Projector::new(backend, network, &model.params, preprocess, 1, 1)?;
        let places = occluder.places();
        let total = picked.len() * places;
        let mut shown = Vec::new();
        for (number, (image, object)) in picked.into_iter().zip(objects).enumerate() {
            let part = format!("image-{number}");
            let fits = |kept: &Occluded| {
                kept.fits(preprocess.size, sliding, network.layers[layer].output.c)
            };
            let occluded = match parts.get(&part).filter(fits) {
                Some(occluded) => occluded,
                None => {
                    let occluded = occluder.look(&image, |now| {
                        let done = number * places + now;
                        progress.show("occlusion: places of the square", done, total, "");
                    })?;
                    parts.put(&part, &occluded)?;
                    occluded
                }
            };
            shown.push(Shown::new(&mut projector, &model, image, occluded, layer, object)?);
        }
        progress.end();

        let layer = &network.layers[layer];
        let mut facts = self.study.facts(&model);
        facts.extend(
            [
                ("Images", self.pick.source()),
                (
                    "Square",
                    format!(
                        "{} of {} pixels, every {stride}",
                        square.min(preprocess.size),
                        preprocess.size
                    ),
                ),
                ("Filled with", self.fill.describe().into()),
                ("Layer", layer.name.clone()),
            ]
            .map(|(name, value)| (name.to_owned(), value)),
        );
        let page = write(&out, &model, facts, layer, &shown)
            .with_context(|| format!("cannot write into {}", out.display()))?;
        parts.done()?;
        let inside: Vec<bool> = shown.iter().filter_map(Shown::drop_is_inside).collect();
        if !inside.is_empty() {
            let count = inside.iter().filter(|inside| **inside).count();
            println!("the probability falls most inside the box in {count} of {}", inside.len());
        }
        println!("{}", page.display());
        Ok(ExitCode::SUCCESS)
    }
}

impl Occlusion {
    /// The box of an image, in pixels of its file; none if it is not in the list.
    fn object(
        &self,
        image: &Picked,
        marked: &[Marked],
        files: &[PathBuf],
    ) -> Result<Option<(String, [f64; 4])>> {
        let is_it = |(marked, file): &(&Marked, &PathBuf)| {
            image.name == marked.image || Path::new(&image.name) == file.as_path()
        };
        let Some((Marked { boxes, .. }, _)) = marked.iter().zip(files).find(is_it) else {
            return Ok(None);
        };
        match &self.r#box {
            None => Ok(boxes.iter().next().map(|(name, object)| (name.clone(), *object))),
            Some(name) => {
                let found: Vec<&str> = boxes.keys().map(String::as_str).collect();
                let object = boxes.get(name).with_context(|| {
                    format!("{}: no box `{name}`, found {}", image.name, found.join(", "))
                })?;
                Ok(Some((name.clone(), *object)))
            }
        }
    }
}
