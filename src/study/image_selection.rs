//! Which images a study looks into: files, or of each class the first one that the network gets right.

use std::path::{Path, PathBuf};

use serde::Serialize;
use xxhash_rust::xxh3::xxh3_64;

use super::numbers::most_probable;
use super::pixels::{centre_crop, original_box};
use crate::backend::Backend;
use crate::data::classes::Classes;
use crate::data::decode::prepare;
use crate::data::images::{Images, Scratch, read_rgb};
use crate::model::{Model, Preprocess};
use crate::picture::Image;
use crate::train::evaluate::{Classifier, TestCrops};
use crate::{Error, Result};

/// Images classified at a time.
const BATCH: usize = 32;

/// An image to be looked into.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StudyImage {
    /// Its path as the user gave it, or relative to the data's folder.
    pub name: String,
    /// Index of its class.
    pub class: usize,
    /// Whether that class is known; otherwise it is what the network takes the image for.
    pub known: bool,
    /// What the network's crops are taken from, `[rows, columns, 3]` in RGB.
    #[serde(skip)]
    pub square: Vec<u8>,
    /// Width and height of the file.
    pub size: [usize; 2],
}

impl StudyImage {
    /// What results depend on: name, class and pixels.
    pub(super) fn fingerprint(&self) -> (&str, usize, u64) {
        (&self.name, self.class, xxh3_64(&self.square))
    }

    /// The centre crop that the network sees.
    pub fn input(&self, preprocess: &Preprocess) -> Image {
        centre_crop(preprocess, &self.square)
    }

    /// A box `[x0, y0, x1, y1]` in pixels of that crop, in pixels of the file.
    pub fn in_file(&self, preprocess: &Preprocess, area: [i64; 4]) -> [f64; 4] {
        original_box(preprocess, self.size[0], self.size[1], area)
    }
}

/// Reads files. Their class is `class` if it is given, else the name of the folder they lie in if the
/// model has such a class, else what the network takes them for.
///
/// # Errors
/// If a file is no image, there is no such class, or a backend operation fails.
pub fn from_files<B: Backend>(
    backend: &B,
    model: &Model<B>,
    paths: &[PathBuf],
    class: Option<&str>,
) -> Result<Vec<StudyImage>> {
    let Model { network, params, preprocess, classes } = model;
    let given = class.map(|name| class_named(classes, name)).transpose()?;
    let mut classifier = Classifier::new(backend, network, preprocess, TestCrops::One, 1)?;
    let mut picked = Vec::new();
    for path in paths {
        let original = read_rgb(path)?;
        let mut square = vec![0; preprocess.bytes()];
        prepare(&original, preprocess.resize, &mut square);
        let folder = path.parent().and_then(|folder| folder.file_name()?.to_str());
        let of_folder = || folder.and_then(|folder| classes.position(folder));
        let known = given.or_else(of_folder);
        let class = match known {
            Some(class) => class,
            None => {
                let mut probabilities = vec![0.0; classes.len()];
                classifier.add_probabilities(
                    backend,
                    network,
                    params,
                    &square,
                    &mut probabilities,
                )?;
                most_probable(&probabilities).ok_or_else(|| {
                    Error::file(path, "the network's probabilities for it are not numbers")
                })?
            }
        };
        let size = [original.width, original.height];
        let (name, known) = (path.display().to_string(), known.is_some());
        picked.push(StudyImage { name, class, known, square, size });
    }
    Ok(picked)
}

/// Of each of these classes, the first image that the network classifies right; names are relative to
/// `root`. Classes none of whose images it gets right are left out. `progress` is called with the number
/// of images seen so far and of all.
///
/// # Errors
/// If a class has no images, images cannot be read, or a backend operation fails.
pub fn first_correct<B: Backend>(
    backend: &B,
    model: &Model<B>,
    images: &Images,
    root: &Path,
    classes: &[usize],
    mut progress: impl FnMut(usize, usize),
) -> Result<Vec<StudyImage>> {
    let Model { network, params, preprocess, .. } = model;
    let mut classifier = Classifier::new(backend, network, preprocess, TestCrops::One, BATCH)?;
    let bytes = images.bytes_per_image();
    let mut scratch = Scratch::default();
    let (mut picked, mut seen) = (Vec::new(), 0);
    for &class in classes {
        let of_class: Vec<usize> =
            (0..images.len()).filter(|&i| images.class(i) as usize == class).collect();
        if of_class.is_empty() {
            let name = &model.classes.names[class];
            return Err(Error::Data(format!(
                "{}: no image of class `{name}`: add some, or choose other classes",
                root.display()
            )));
        }
        'images: for some in of_class.chunks(BATCH) {
            let (mut good, mut pixels) = (Vec::new(), Vec::new());
            for &image in some {
                let mut square = vec![0; bytes];
                if images.read(image, &mut scratch, &mut square)?.is_some() {
                    good.push(image);
                    pixels.extend(square);
                }
            }
            if good.is_empty() {
                continue; // all of them are bad
            }
            let mut probabilities = vec![0.0; good.len() * model.classes.len()];
            classifier.add_probabilities(backend, network, params, &pixels, &mut probabilities)?;
            seen += some.len();
            progress(seen, images.len());
            let rows = probabilities.chunks_exact(model.classes.len());
            for ((&image, row), square) in good.iter().zip(rows).zip(pixels.chunks_exact(bytes)) {
                if most_probable(row) == Some(class) {
                    let path = images.path(image);
                    let (width, height) = images.size(image, &mut scratch)?;
                    picked.push(StudyImage {
                        name: path.strip_prefix(root).unwrap_or(&path).display().to_string(),
                        class,
                        known: true,
                        square: square.to_vec(),
                        size: [width, height],
                    });
                    break 'images;
                }
            }
        }
    }
    Ok(picked)
}

/// The index of a class by its name or its folder's.
///
/// # Errors
/// If there is none; the message lists the names.
pub fn class_named(classes: &Classes, name: &str) -> Result<usize> {
    classes.position(name).ok_or_else(|| {
        let first: Vec<&str> = classes.names.iter().take(12).map(String::as_str).collect();
        let more = if classes.len() > 12 { ", ..." } else { "" };
        Error::Data(format!(
            "no class `{name}`: expected one of the network's: {}{more}",
            first.join(", ")
        ))
    })
}
