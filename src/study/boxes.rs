//! Boxes drawn by hand on images: what is a face's eye, where the object is.
//!
//! ```json
//! { "images": [ { "image": "val/dog/a.jpg", "boxes": { "nose": [120, 80, 160, 110] } } ] }
//! ```
//!
//! A box is `[x0, y0, x1, y1]` in pixels of the file, x1 and y1 excluded; an image's path is relative
//! to the folder of this file unless another one is named.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::image_selection::StudyImage;
use crate::data::decode::canvas_box;
use crate::model::Preprocess;
use crate::{Error, Result};
use zfnet_core::text;

/// An image and its boxes by name.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Annotation {
    /// Its path, as written.
    pub image: String,
    /// In pixels of the file.
    pub boxes: BTreeMap<String, [f64; 4]>,
    /// The file.
    #[serde(skip)]
    pub file: PathBuf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Listed {
    images: Vec<Annotation>,
}

/// Reads such a file; images' paths are relative to `root` or, without, to the folder that it stands in.
///
/// # Errors
/// If it cannot be read, is no such JSON, or a box is empty or no numbers.
pub fn read(path: &Path, root: Option<&Path>) -> Result<Vec<Annotation>> {
    let text = text::read(path)?;
    let mut listed: Listed = serde_json::from_str(&text).map_err(|error| {
        let expected =
            r#"{ "images": [ { "image": PATH, "boxes": { NAME: [x0, y0, x1, y1] } } ] }"#;
        Error::file(path, format!("expected {expected}: {error}"))
    })?;
    let folder = root.or(path.parent()).unwrap_or(Path::new(""));
    for Annotation { image, file, .. } in &mut listed.images {
        *file = folder.join(&image);
    }
    for Annotation { image, boxes, .. } in &listed.images {
        for (name, [x0, y0, x1, y1]) in boxes {
            if !(x0 < x1 && y0 < y1 && [x0, y0, x1, y1].iter().all(|v| v.is_finite())) {
                return Err(Error::file(
                    path,
                    format!(
                        "{image}: box `{name}`: expected x0 < x1 and y0 < y1, found \
                         [{x0}, {y0}, {x1}, {y1}]"
                    ),
                ));
            }
        }
    }
    Ok(listed.images)
}

/// The box of each image, in pixels of the network's centre crop: that of this name or, without, the first
/// by name; none for an image that is not in the list.
///
/// # Errors
/// If an image in the list has no such box, or it lies outside the crop.
pub fn objects(
    preprocess: &Preprocess,
    picked: &[StudyImage],
    marked: &[Annotation],
    name: Option<&str>,
) -> Result<Vec<Option<[f64; 4]>>> {
    let of_image = |image: &StudyImage| {
        let is_it = |marked: &&Annotation| {
            image.name == marked.image || Path::new(&image.name) == marked.file
        };
        let Some(Annotation { boxes, .. }) = marked.iter().find(is_it) else { return Ok(None) };
        let found = match name {
            None => boxes.iter().next(),
            Some(name) => Some(boxes.get_key_value(name).ok_or_else(|| {
                let found: Vec<&str> = boxes.keys().map(String::as_str).collect();
                let reason = format!("no box `{name}`, found {}", found.join(", "));
                Error::file(&image.name, reason)
            })?),
        };
        let Some((name, area)) = found else { return Ok(None) };
        let object = in_crop(preprocess, image, *area);
        let [x0, y0, x1, y1] = object;
        let [rows, columns] = preprocess.size.map(|size| size as f64);
        if x1 <= 0.0 || y1 <= 0.0 || x0 >= columns || y0 >= rows {
            let reason = format!("box `{name}` lies outside the centre that the network sees");
            return Err(Error::file(&image.name, reason));
        }
        Ok(Some(object))
    };
    picked.iter().map(of_image).collect()
}

/// A box in pixels of the file, in pixels of the network's centre crop; it may reach beyond that.
pub fn in_crop(preprocess: &Preprocess, picked: &StudyImage, area: [f64; 4]) -> [f64; 4] {
    let [width, height] = picked.size;
    let [top, left] = preprocess.centre().map(f64::from);
    let [x0, y0, x1, y1] = canvas_box(width, height, preprocess.resize, area);
    [x0 - left, y0 - top, x1 - left, y1 - top]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(text: &str) -> Result<Vec<Annotation>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("boxes.json");
        std::fs::write(&path, text).unwrap();
        read(&path, None)
    }

    #[test]
    fn lists_are_read_and_bad_ones_named() {
        let good = r#"{"images":[{"image":"a.png","boxes":{"eye":[1,2,3.5,4]}}]}"#;
        let marked = written(good).unwrap();
        assert_eq!(marked[0].boxes["eye"], [1.0, 2.0, 3.5, 4.0]);
        assert!(marked[0].file.ends_with("a.png") && marked[0].file.is_absolute());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("boxes.json");
        std::fs::write(&path, good).unwrap();
        let elsewhere = read(&path, Some(Path::new("e"))).unwrap();
        assert_eq!(elsewhere[0].file, Path::new("e/a.png"));
        for (bad, word) in [
            ("", "expected {"),
            ("[]", "expected {"),
            (r#"{"images":[{"image":"a.png","boxes":{"eye":[1,2,3]}}]}"#, "expected {"),
            (r#"{"images":[{"image":"a.png","boxes":{"eye":[3,2,3,4]}}]}"#, "`eye`"),
            (r#"{"images":[{"image":"a.png","boxes":{"eye":[0,9,3,4]}}]}"#, "`eye`"),
            (r#"{"images":[{"image":"a.png","parts":{}}]}"#, "expected {"),
        ] {
            let error = written(bad).unwrap_err().to_string();
            assert!(error.contains("boxes.json") && error.contains(word), "{error}");
        }
    }

    #[test]
    fn to_the_crop_and_back_is_the_same_box() {
        let preprocess = Preprocess::paper([64; 2], 73, 1.0, vec![0.0; 3]);
        let size = [500, 375];
        let square = Vec::new();
        let picked = StudyImage { name: "a".into(), class: 0, known: true, square, size };
        let there = picked.in_file(&preprocess, [10, 20, 30, 50]);
        let back = in_crop(&preprocess, &picked, there);
        for (found, expected) in back.iter().zip([10.0, 20.0, 30.0, 50.0]) {
            assert!((found - expected).abs() < 1e-9, "{back:?}");
        }
        // By hand: the square begins at column 62, is 375 wide; 4 pixels of 73 lie left of the crop.
        let [x0, ..] = in_crop(&preprocess, &picked, [62.0 + 375.0 / 73.0 * 4.0, 0.0, 1e3, 1e3]);
        assert!(x0.abs() < 1e-9);
    }
}
