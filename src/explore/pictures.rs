//! Pictures as the page asks for them, and what of them the network is shown.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use xxhash_rust::xxh3::xxh3_64;

use super::Recent;
use super::address::{Address, Source, View};
use super::engine::Opened;
use crate::backend::Backend;
use crate::data::Split;
use crate::data::decode::{Rgb, decode, prepare, resize};
use crate::data::images::{Images, Scratch};
use crate::model::Preprocess;
use crate::picture::Image;
use crate::study::occluder::{Cover, mean_square};
use crate::study::pixels::centre_crop;
use crate::{Error, Result};

/// Uploads that are kept, and pixels of a side of one at most; larger ones are made smaller.
const UPLOADS: usize = 16;
const UPLOAD_SIDE: usize = 2048;
/// Frames of a camera that are kept.
const FRAMES: usize = 4;
/// Prepared images that are kept.
const PREPARED: usize = 32;
/// Pixels of the longer side of a picture on the page, and of the shorter one of a thumbnail.
const SHOWN_SIDE: usize = 1024;
const THUMB_SIDE: usize = 96;

/// An image as the network's preprocessing begins with it.
#[derive(Clone)]
pub struct Prepared {
    /// What tells it from all others.
    pub key: Arc<str>,
    /// `[rows, columns, 3]`, u8, RGB: the canvas whose centre crop the network sees.
    pub square: Arc<[u8]>,
}

/// The pictures that a page can ask for: those of a data set, and uploads, which live as long as the program.
pub struct Pictures {
    /// What each network's preprocessing is, and the images as it begins with them.
    inputs: Vec<(Preprocess, BTreeMap<&'static str, Arc<Images>>)>,
    /// The folder that files must not lie outside of, whatever links say; none for any.
    within: Option<PathBuf>,
    uploads: Mutex<Recent<String, Arc<Rgb>>>,
    /// Of a camera, whose many must not take the others' places.
    frames: Mutex<Recent<String, Arc<Rgb>>>,
    prepared: Mutex<Recent<String, Prepared>>,
}

impl Pictures {
    /// Those of the splits that networks are opened with, each for its preprocessing; with `within` only files that
    /// lie in that folder, wherever links to them are.
    pub fn new<B: Backend>(opened: &[Opened<B>], within: Option<PathBuf>) -> Self {
        let input = |Opened { model, splits, .. }: &Opened<B>| {
            let named = splits.iter().map(|(split, images)| (split.name(), images.clone()));
            (model.preprocess.clone(), named.collect())
        };
        Pictures {
            inputs: opened.iter().map(input).collect(),
            within,
            uploads: Mutex::new(Recent::new(UPLOADS)),
            frames: Mutex::new(Recent::new(FRAMES)),
            prepared: Mutex::new(Recent::new(PREPARED)),
        }
    }

    /// The images of a split, if there are any.
    pub fn split(&self, name: &str) -> Option<&Arc<Images>> {
        self.inputs[0].1.get(name)
    }

    /// Decodes bytes of a JPEG or PNG and keeps the picture, or frame of a camera; its name, width and height.
    ///
    /// # Errors
    /// If it is no such file, or one that is too large.
    pub fn upload(&self, bytes: &[u8], is_frame: bool) -> Result<(String, [usize; 2])> {
        let rgb = decode(bytes).map_err(|error| Error::Data(format!("The picture: {error}.")))?;
        let rgb = at_most(rgb, UPLOAD_SIDE);
        let size = [rgb.width, rgb.height];
        let name = format!("{:016x}{:x}", xxh3_64(&rgb.pixels), rgb.width);
        let kept = if is_frame { &self.frames } else { &self.uploads };
        kept.lock().expect("no panic while it is held").put(name.clone(), rgb.into());
        Ok((name, size))
    }

    /// A picture as it is stored.
    fn stored(&self, source: &Source) -> Result<Arc<Rgb>> {
        match source {
            Source::Data(split, index) => {
                let images = self.in_split(0, *split, *index)?;
                Ok(Arc::new(images.stored(*index, &mut Scratch::default())?))
            }
            Source::Upload(name) => {
                let kept = [&self.uploads, &self.frames];
                let mut found = kept.iter().filter_map(|kept| {
                    kept.lock().expect("no panic while it is held").get(name).cloned()
                });
                found.next().ok_or_else(|| {
                    Error::Data("This picture is no longer kept: upload it again.".into())
                })
            }
        }
    }

    /// The images of a split that has this one, as a network's preprocessing begins with them.
    fn in_split(&self, network: usize, split: Split, index: usize) -> Result<&Arc<Images>> {
        let name = split.name();
        let images = self.inputs[network].1.get(name);
        let found = images.filter(|images| index < images.len()).ok_or_else(|| {
            let found = images.map_or(0, |images| images.len());
            Error::Data(format!("there is no image {name}/{index}: {name} has {found} images"))
        })?;
        let is_outside = |folder: &PathBuf| {
            let file = found.path(index).canonicalize();
            file.is_ok_and(|file| !file.starts_with(folder)) && found.shards().is_none()
        };
        if self.within.as_ref().is_some_and(is_outside) {
            let reason = "This image is a link to a file outside the data folder, which others are not shown.";
            return Err(Error::Data(reason.into()));
        }
        Ok(found)
    }

    /// What a network is shown of a picture that has been asked for lately.
    pub fn kept(&self, network: usize, address: &Address) -> Option<Prepared> {
        let key = format!("{network} {}", address.key());
        self.prepared.lock().expect("no panic while it is held").get(&key).cloned()
    }

    /// What a network is shown of a picture.
    ///
    /// # Errors
    /// If there is no such picture, or it cannot be read.
    pub fn prepared(&self, network: usize, address: &Address) -> Result<Prepared> {
        if let Some(kept) = self.kept(network, address) {
            return Ok(kept);
        }
        let preprocess = &self.inputs[network].0;
        let mut square = match (address.cover, address.view) {
            (Some(_), _) => {
                let whole = Address { cover: None, ..address.clone() };
                self.prepared(network, &whole)?.square.to_vec()
            }
            (None, Some(view)) => part(preprocess, &*self.stored(&address.source)?, view),
            (None, None) => self.as_for(network, &address.source)?,
        };
        if let Some((area, fill)) = address.cover {
            Cover::new(preprocess, &square, fill).lay(&mut square, area);
        }
        let key = format!("{network} {}", address.key());
        let prepared = Prepared { key: key.as_str().into(), square: square.into() };
        self.prepared.lock().expect("no panic while it is held").put(key, prepared.clone());
        Ok(prepared)
    }

    fn as_for(&self, network: usize, source: &Source) -> Result<Vec<u8>> {
        let preprocess = &self.inputs[network].0;
        let mut square = vec![0; preprocess.bytes()];
        match source {
            Source::Data(split, index) => {
                let images = self.in_split(network, *split, *index)?;
                if images.read(*index, &mut Scratch::default(), &mut square)?.is_none() {
                    let reason = self.stored(source).err(); // which says what is wrong with the file
                    let unknown = || Error::file(images.path(*index), "is no usable image");
                    return Err(reason.unwrap_or_else(unknown));
                }
            }
            Source::Upload(_) => {
                prepare(&*self.stored(source)?, preprocess.resize, &mut square);
            }
        }
        Ok(square)
    }

    /// What a network sees of it, as a picture.
    pub fn input(&self, network: usize, prepared: &Prepared) -> Image {
        centre_crop(&self.inputs[network].0, &prepared.square)
    }

    /// The picture as a page shows it.
    ///
    /// # Errors
    /// If there is no such picture, or it cannot be read.
    pub fn shown(&self, source: &Source, is_thumb: bool) -> Result<Image> {
        let stored = self.stored(source)?;
        let [width, height] = [stored.width, stored.height];
        let (wanted, side) = match is_thumb {
            true => (THUMB_SIDE, width.min(height)),
            false => (SHOWN_SIDE, width.max(height)),
        };
        let image = Image::new(width, height, stored.pixels.clone());
        let to = |size: usize| (size * wanted).div_ceil(side.max(1)).clamp(1, 4 * wanted);
        Ok(if side > wanted { image.resize(to(width), to(height)) } else { image })
    }
}

/// A part of a picture, resized to the network's input, in the middle of the canvas; the mean around it.
fn part(preprocess: &Preprocess, picture: &Rgb, View { x, y, side }: View) -> Vec<u8> {
    let [rows, columns] = preprocess.size;
    let shorter = picture.width.min(picture.height) as f64;
    let [left, top] = [x, y].map(|share| (share * shorter).round() as i64);
    // As high and wide as the input is, the larger of both the side that was asked for.
    let of = |pixels: usize| {
        let share = side * pixels as f64 / rows.max(columns) as f64;
        (share * shorter).round().max(1.0) as i64
    };
    let whole = Image::new(picture.width, picture.height, picture.pixels.clone());
    let part = whole.crop([left, top, left + of(columns), top + of(rows)]);
    let mut shown = Image::filled(columns, rows, 0);
    resize([part.width, part.height], &part.pixels, [columns, rows], &mut shown.pixels);
    let canvas = preprocess.resize;
    let mut square = Image::new(canvas.columns, canvas.rows, mean_square(preprocess));
    let [top, left] = preprocess.centre().map(i64::from);
    square.paste(&shown, left, top);
    square.pixels
}

/// A picture whose sides have at most so many pixels.
fn at_most(picture: Rgb, most: usize) -> Rgb {
    let longer = picture.width.max(picture.height);
    if longer <= most {
        return picture;
    }
    let [width, height] =
        [picture.width, picture.height].map(|size| (size * most).div_ceil(longer).max(1));
    let mut pixels = vec![0; width * height * 3];
    resize([picture.width, picture.height], &picture.pixels, [width, height], &mut pixels);
    Rgb { width, height, pixels }
}
