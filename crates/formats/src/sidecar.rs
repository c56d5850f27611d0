//! What lies beside weights and says how images are prepared for them, and what the classes are called: timm's
//! `config.json`, and Hugging Face's `preprocessor_config.json` and `config.json`.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use serde_json::{Map, Value};
use zfnet_core::{Error, text};

use crate::chain::{Preprocessing, Resize};
use crate::weights::{brief, quoted};

/// timm's file, and Hugging Face's about a network.
const CONFIG: &str = "config.json";
/// Hugging Face's about images.
const PREPROCESSOR: &str = "preprocessor_config.json";
/// Bytes of such a file, at most: those with the names of 22,000 classes have two million.
const LARGEST: u64 = 8 << 20;
/// Rows and columns of images, at most.
const LARGEST_SIDE: u64 = 1 << 14;
/// Share of an image's side that timm crops where it is not said.
const CROP_SHARE: f64 = 0.875;

/// What files beside weights say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sidecar {
    /// How pixels become its input.
    pub preprocessing: Option<Preprocessing>,
    /// The names of classes, in their order; empty if they are not named.
    pub classes: Vec<String>,
    /// Which file said what, and what of it cannot be done here, a sentence each.
    pub notes: Vec<String>,
}

type Object = Map<String, Value>;

/// Reads the files that lie beside weights; `None` if there are none that say anything. One that cannot be used is a
/// note: it may be another program's, of the same name.
pub fn read_sidecars(folder: &Path) -> Option<Sidecar> {
    let text = |name| read(&folder.join(name)).transpose();
    Some(of(text(CONFIG), text(PREPROCESSOR))).filter(|sidecar| *sidecar != Sidecar::default())
}

/// What two files say; either may be missing.
#[doc(hidden)]
pub fn parse(config: Option<&str>, preprocessor: Option<&str>) -> Sidecar {
    let text = |text: Option<&str>| text.map(|text| Ok(text.to_owned()));
    of(text(config), text(preprocessor))
}

/// A file's text, if there is one.
fn read(path: &Path) -> Result<Option<String>, String> {
    match fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("cannot read it: {error}")),
        Ok(metadata) if metadata.len() > LARGEST => {
            Err(format!("expected at most {LARGEST} bytes, found {}", metadata.len()))
        }
        Ok(_) => text::read(path).map(Some).map_err(Error::without_path),
    }
}

type Text = Result<String, String>;

/// What files of these texts say.
fn of(config: Option<Text>, preprocessor: Option<Text>) -> Sidecar {
    let mut unused = Vec::new();
    let mut object = |file: &str, text: Option<Text>| {
        let object = text?.and_then(|text| {
            serde_json::from_str(&text)
                .map_err(|error| format!("expected a JSON object, found {}", quoted(error)))
        });
        object.map_err(|reason| unused.push(format!("{file}: not used: {reason}"))).ok()
    };
    let (config, preprocessor) = (object(CONFIG, config), object(PREPROCESSOR, preprocessor));
    let mut sidecar = sidecar(config.as_ref(), preprocessor.as_ref());
    sidecar.notes.extend(unused);
    sidecar
}

fn sidecar(config: Option<&Object>, preprocessor: Option<&Object>) -> Sidecar {
    let mut sidecar = Sidecar::default();
    let timm = config.and_then(timm_settings);
    let mut assumed = Vec::new();
    let said = match (timm, preprocessor) {
        (Some(settings), _) => Some((CONFIG, of_timm(settings, &mut assumed))),
        (None, Some(settings)) => Some((PREPROCESSOR, of_hugging_face(settings, &mut assumed))),
        (None, None) => None,
    };
    match said {
        Some((file, Ok(preprocessing))) => {
            sidecar.notes.push(format!("the preprocessing is that of {file}"));
            sidecar.notes.extend(assumed.iter().map(|what| format!("{file}: {what}")));
            sidecar.preprocessing = Some(preprocessing);
        }
        Some((file, Err(reason))) => {
            sidecar.notes.push(format!("the preprocessing of {file} cannot be used: {reason}"));
        }
        None => {}
    }
    if let Some(config) = config {
        match classes(config) {
            Ok(classes) if classes.is_empty() => {}
            Ok(classes) => {
                sidecar.notes.push(format!(
                    "the classes are named as in {CONFIG}, {} of them",
                    classes.len()
                ));
                sidecar.classes = classes;
            }
            Err(reason) => {
                sidecar.notes.push(format!("the classes of {CONFIG} cannot be used: {reason}"))
            }
        }
    }
    sidecar
}

/// Where timm's file has them: by now in `pretrained_cfg`, before in `default_cfg`, at first beside all else.
fn timm_settings(config: &Object) -> Option<&Object> {
    let inside =
        ["pretrained_cfg", "default_cfg"].iter().find_map(|key| config.get(*key)?.as_object());
    inside
        .or(Some(config))
        .filter(|settings| settings.contains_key("mean") && settings.contains_key("input_size"))
}

/// As `timm.data.create_transform` does it for validation; and what was assumed.
fn of_timm(settings: &Object, assumed: &mut Vec<String>) -> Result<Preprocessing, String> {
    let size = settings.get("input_size").and_then(Value::as_array);
    let Some([channels, rows, columns]) = size.map(Vec::as_slice) else {
        return Err("expected input_size as channels, rows and columns".into());
    };
    let (channels, crop) = (side(channels)?, [side(rows)?, side(columns)?]);
    let share = match settings.get("crop_pct") {
        None | Some(Value::Null) => CROP_SHARE,
        Some(share) => {
            share.as_f64().filter(|share| (0.01..=1.0).contains(share)).ok_or_else(|| {
                format!("expected crop_pct from 0.01 to 1, found {}", brief(&share.to_string()))
            })?
        }
    };
    let larger = crop.map(|side| (side as f64 / share).floor() as usize);
    let resize = match settings.get("crop_mode").and_then(Value::as_str).unwrap_or("center") {
        "center" if crop[0] == crop[1] => Resize::Shortest(larger[0]),
        "center" => {
            return Err(format!(
                "a crop of {} x {} that is not square is not known",
                crop[0], crop[1]
            ));
        }
        "squash" => Resize::Squash(larger),
        other => {
            return Err(format!("expected crop_mode center or squash, found {:?}", brief(other)));
        }
    };
    let interpolation = match settings.get("interpolation").and_then(Value::as_str) {
        None => "bicubic",
        Some("random") => {
            assumed.push("the interpolation is bilinear: it is random in training only".into());
            "bilinear"
        }
        Some(name) => ["nearest", "bilinear", "bicubic", "lanczos", "box"]
            .into_iter()
            .find(|known| *known == name)
            .ok_or_else(|| format!("the interpolation {:?} is not known", brief(name)))?,
    };
    Ok(Preprocessing {
        scale: 1.0 / 255.0,
        mean: values(settings, "mean", channels)?,
        mean_size: None,
        std: positive(values(settings, "std", channels)?)?,
        bgr: false,
        resize: Some(resize),
        crop: Some(crop),
        interpolation: Some(interpolation.into()),
        antialias: Some(true), // Pillow always does
    })
}

/// As its image processors do it; and what was assumed. What is not said is done, unless there is no size for it.
fn of_hugging_face(settings: &Object, assumed: &mut Vec<String>) -> Result<Preprocessing, String> {
    let does = |key: &str, otherwise: bool| match settings.get(key) {
        None | Some(Value::Null) => Ok(otherwise),
        Some(Value::Bool(does)) => Ok(*does),
        Some(other) => {
            Err(format!("expected {key} to be true or false, found {}", brief(&other.to_string())))
        }
    };
    for key in [
        "do_pad",
        "rescale_offset",
        "do_thumbnail",
        "do_align_long_axis",
        "do_reduce_labels",
        "do_grayscale",
    ] {
        if does(key, false)? {
            return Err(format!("{key} is not known"));
        }
    }
    let class = ["image_processor_type", "feature_extractor_type"]
        .iter()
        .find_map(|key| settings.get(*key)?.as_str())
        .unwrap_or_default();
    // Those that take a size alone for that of the shortest side; the others make a square of it.
    let shortest = ["CLIP", "ConvNext", "MobileNet", "MobileViT", "Chinese", "Bit"]
        .iter()
        .any(|part| class.contains(part));
    let square = ["ViT", "DeiT", "Beit"].iter().any(|name| {
        let rest = class.strip_prefix(name).unwrap_or_default();
        rest.starts_with("ImageProcessor") || rest.starts_with("FeatureExtractor")
    });
    let mut resize = match settings.get("size").filter(|size| !size.is_null()) {
        Some(size) if does("do_resize", true)? => {
            if size.is_u64() && !shortest && !square {
                assumed.push(format!(
                    "the size {size} is taken for rows and columns, whatever an image's shape; it could be that of the \
                     shortest side"
                ));
            }
            Some(size_of(size, shortest)?)
        }
        None if does("do_resize", false)? => {
            return Err("it resizes, and does not say to what size".into());
        }
        _ => None,
    };
    let mut crop = match settings.get("crop_size").filter(|size| !size.is_null()) {
        Some(size) if does("do_center_crop", true)? => match size_of(size, false)? {
            Resize::Squash(crop) => Some(crop),
            Resize::Shortest(side) => Some([side, side]),
        },
        None if does("do_center_crop", false)? => {
            return Err("it crops, and does not say to what size".into());
        }
        _ => None,
    };
    // ConvNext's: below 384 it resizes to more than the size, and crops; from there on it makes a square of the image.
    if let (Some(Resize::Shortest(side)), Some(share)) =
        (resize, settings.get("crop_pct").and_then(Value::as_f64))
    {
        if !(0.01..=1.0).contains(&share) {
            return Err(format!("expected crop_pct from 0.01 to 1, found {share}"));
        }
        if side < 384 {
            resize = Some(Resize::Shortest((side as f64 / share) as usize));
            crop = Some([side, side]);
        } else {
            resize = Some(Resize::Squash([side, side]));
        }
    }
    if let (Some(resize), Some(crop)) = (resize, crop) {
        let resized = match resize {
            Resize::Shortest(side) => [side; 2],
            Resize::Squash(sides) => sides,
        };
        if crop[0] > resized[0] || crop[1] > resized[1] {
            return Err(format!(
                "it crops {} x {} of images that may be only {} x {}, and pads them with zeros, which is not known",
                crop[0], crop[1], resized[0], resized[1]
            ));
        }
    }
    let interpolation = match settings.get("resample").filter(|code| !code.is_null()) {
        None => None,
        Some(code) => {
            // Pillow's numbers.
            let known = ["nearest", "lanczos", "bilinear", "bicubic", "box"];
            let name = code.as_u64().and_then(|code| known.get(usize::try_from(code).ok()?));
            let name = name.ok_or_else(|| {
                format!("the resampling {} is not known", brief(&code.to_string()))
            })?;
            Some(name.to_string())
        }
    };
    let scale = match settings.get("rescale_factor").filter(|factor| !factor.is_null()) {
        _ if !does("do_rescale", true)? => 1.0,
        None => 1.0 / 255.0,
        Some(factor) => match factor.as_f64().map(|factor| factor as f32) {
            Some(factor) if factor.is_finite() && factor > 0.0 => factor,
            _ => {
                return Err(format!(
                    "expected a rescale_factor above 0, found {}",
                    brief(&factor.to_string())
                ));
            }
        },
    };
    let (mean, std) = match does("do_normalize", true)? {
        true => {
            let mean = values(settings, "image_mean", 0)?;
            let std = positive(values(settings, "image_std", mean.len())?)?;
            (mean, std)
        }
        false => (vec![0.0; 3], vec![1.0; 3]),
    };
    Ok(Preprocessing {
        scale,
        mean,
        mean_size: None,
        std,
        bgr: does("do_flip_channel_order", false)?,
        resize,
        crop,
        interpolation,
        antialias: Some(true), // Pillow always does
    })
}

/// Rows, columns or channels.
fn side(value: &Value) -> Result<usize, String> {
    match value.as_u64() {
        Some(side) if (1..=LARGEST_SIDE).contains(&side) => Ok(side as usize),
        _ => Err(format!(
            "expected sizes from 1 to {LARGEST_SIDE}, found {}",
            brief(&value.to_string())
        )),
    }
}

/// A size as Hugging Face writes it; a number alone is the shortest side's, or that of all.
fn size_of(value: &Value, shortest: bool) -> Result<Resize, String> {
    let Some(size) = value.as_object() else {
        let side = match value.as_array().map(Vec::as_slice) {
            Some([rows, columns]) => return Ok(Resize::Squash([side(rows)?, side(columns)?])),
            _ => side(value)?,
        };
        return Ok(if shortest { Resize::Shortest(side) } else { Resize::Squash([side, side]) });
    };
    match (size.get("shortest_edge"), size.get("height"), size.get("width")) {
        (Some(edge), None, None) if size.len() == 1 => Ok(Resize::Shortest(side(edge)?)),
        (None, Some(rows), Some(columns)) => Ok(Resize::Squash([side(rows)?, side(columns)?])),
        _ => {
            let found = brief(&value.to_string());
            Err(format!("expected a size by shortest_edge, or by height and width, found {found}"))
        }
    }
}

/// A value for each channel; of as many as there are if `channels` is 0.
fn values(settings: &Object, key: &str, channels: usize) -> Result<Vec<f32>, String> {
    let values =
        settings.get(key).and_then(Value::as_array).ok_or_else(|| format!("{key} is missing"))?;
    let values: Option<Vec<f32>> =
        values.iter().map(|value| value.as_f64().map(|value| value as f32)).collect();
    let values = values.filter(|values| values.iter().all(|value| value.is_finite()));
    let values = values.ok_or_else(|| format!("expected numbers for {key}"))?;
    let fits = if channels == 0 { matches!(values.len(), 1 | 3) } else { values.len() == channels };
    match fits {
        true => Ok(values),
        false => {
            Err(format!("expected {key} to have a value for each channel, found {}", values.len()))
        }
    }
}

fn positive(values: Vec<f32>) -> Result<Vec<f32>, String> {
    match values.iter().all(|&value| value > 0.0) {
        true => Ok(values),
        false => Err("expected standard deviations above 0".into()),
    }
}

/// Names of classes: by their numbers in `id2label`, or as timm's list, with what the list's names stand for.
fn classes(config: &Object) -> Result<Vec<String>, String> {
    if let Some(labels) = config.get("id2label").and_then(Value::as_object) {
        let numbered =
            labels.iter().map(|(id, name)| Some((id.parse::<usize>().ok()?, name.as_str()?)));
        let numbered: Option<BTreeMap<usize, &str>> = numbered.collect();
        let numbered = numbered.ok_or("expected id2label from numbers to names")?;
        if numbered.len() != labels.len() || !numbered.keys().copied().eq(0..labels.len()) {
            return Err(format!(
                "expected id2label to have the numbers from 0 to {}",
                labels.len().saturating_sub(1)
            ));
        }
        // What is written where nobody gave names.
        if numbered.iter().all(|(id, name)| *name == format!("LABEL_{id}")) {
            return Ok(Vec::new());
        }
        return Ok(numbered.into_values().map(str::to_string).collect());
    }
    let inside = config.get("pretrained_cfg").and_then(Value::as_object);
    let get =
        |key: &str| config.get(key).or_else(|| inside?.get(key)).filter(|value| !value.is_null());
    let Some(names) = get("label_names") else { return Ok(Vec::new()) };
    let names: Option<Vec<&str>> =
        names.as_array().and_then(|names| names.iter().map(Value::as_str).collect());
    let names = names.ok_or("expected label_names to be a list of names")?;
    let descriptions = get("label_descriptions").and_then(Value::as_object);
    let described =
        names.iter().map(|name| descriptions?.get(*name)?.as_str()).collect::<Option<Vec<_>>>();
    Ok(described.unwrap_or(names).into_iter().map(str::to_string).collect())
}
