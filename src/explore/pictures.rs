//! Pictures as the page asks for them, and what of them the network is shown.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use xxhash_rust::xxh3::xxh3_64;

use super::Recent;
use super::address::{Address, Source, View};
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
    preprocess: Preprocess,
    splits: BTreeMap<&'static str, Arc<Images>>,
    uploads: Mutex<Recent<Arc<Rgb>>>,
    /// Of a camera, whose many must not take the others' places.
    frames: Mutex<Recent<Arc<Rgb>>>,
    prepared: Mutex<Recent<Prepared>>,
}

impl Pictures {
    /// Those of some splits, for a network's preprocessing.
    pub fn new(preprocess: &Preprocess, splits: &[(Split, Arc<Images>)]) -> Self {
        let named = splits.iter().map(|(split, images)| (split.name(), images.clone()));
        Pictures {
            preprocess: preprocess.clone(),
            splits: named.collect(),
            uploads: Mutex::new(Recent::new(UPLOADS)),
            frames: Mutex::new(Recent::new(FRAMES)),
            prepared: Mutex::new(Recent::new(PREPARED)),
        }
    }

    /// The images of a split, if there are any.
    pub fn split(&self, name: &str) -> Option<&Arc<Images>> {
        self.splits.get(name)
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
                let images = self.in_split(*split, *index)?;
                Ok(Arc::new(images.stored(*index, &mut Scratch::default())?))
            }
            Source::Upload(name) => {
                let kept = [&self.uploads, &self.frames];
                let mut found = kept
                    .iter()
                    .filter_map(|kept| kept.lock().expect("no panic while it is held").get(name));
                found.next().ok_or_else(|| {
                    Error::Data("This picture is no longer kept: upload it again.".into())
                })
            }
        }
    }

    fn in_split(&self, split: Split, index: usize) -> Result<&Arc<Images>> {
        let images = self.split(split.name());
        images.filter(|images| index < images.len()).ok_or_else(|| {
            let found = images.map_or(0, |images| images.len());
            let name = split.name();
            Error::Data(format!("there is no image {name}/{index}: {name} has {found} images"))
        })
    }

    /// What the network is shown of a picture that has been asked for lately.
    pub fn kept(&self, address: &Address) -> Option<Prepared> {
        self.prepared.lock().expect("no panic while it is held").get(&address.key())
    }

    /// What the network is shown of a picture.
    ///
    /// # Errors
    /// If there is no such picture, or it cannot be read.
    pub fn prepared(&self, address: &Address) -> Result<Prepared> {
        if let Some(kept) = self.kept(address) {
            return Ok(kept);
        }
        let mut square = match (address.cover, address.view) {
            (Some(_), _) => {
                let whole = Address { cover: None, ..address.clone() };
                self.prepared(&whole)?.square.to_vec()
            }
            (None, Some(view)) => self.part(&*self.stored(&address.source)?, view),
            (None, None) => self.as_for_the_network(&address.source)?,
        };
        if let Some((area, fill)) = address.cover {
            Cover::new(&self.preprocess, &square, fill).lay(&mut square, area);
        }
        let key = address.key();
        let prepared = Prepared { key: key.as_str().into(), square: square.into() };
        self.prepared.lock().expect("no panic while it is held").put(key, prepared.clone());
        Ok(prepared)
    }

    fn as_for_the_network(&self, source: &Source) -> Result<Vec<u8>> {
        let mut square = vec![0; self.preprocess.bytes()];
        match source {
            Source::Data(split, index) => {
                let images = self.in_split(*split, *index)?;
                if images.read(*index, &mut Scratch::default(), &mut square)?.is_none() {
                    return Err(Error::file(images.path(*index), "is no usable image"));
                }
            }
            Source::Upload(_) => {
                prepare(&*self.stored(source)?, self.preprocess.resize, &mut square);
            }
        }
        Ok(square)
    }

    /// A part of a picture, resized to the network's input, in the middle of the canvas; the mean around it.
    fn part(&self, picture: &Rgb, View { x, y, side }: View) -> Vec<u8> {
        let [rows, columns] = self.preprocess.size;
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
        let canvas = self.preprocess.resize;
        let mut square = Image::new(canvas.columns, canvas.rows, mean_square(&self.preprocess));
        let [top, left] = self.preprocess.centre().map(i64::from);
        square.paste(&shown, left, top);
        square.pixels
    }

    /// What the network sees of it, as a picture.
    pub fn input(&self, prepared: &Prepared) -> Image {
        centre_crop(&self.preprocess, &prepared.square)
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
