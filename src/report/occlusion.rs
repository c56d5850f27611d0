//! The page of [`occlusion`](crate::study::occlusion): for each image, what was noted at every place of the
//! square, as maps of the image's geometry.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use super::figure::{Page, Picture, Section, Table, projection_contrast};
use super::plot::{COLOURS, heat};
use super::{by, covering, fact, short};
use crate::backend::SeedUnit;
use crate::picture::{GREY, Image};
use crate::study::occlusion::{Occluded, Occlusion, OfImage, Projected, Reading, STUDY};
use crate::study::pixels::whole;

/// Least side of a picture, in pixels.
const SHOWN: usize = 256;

/// Writes pictures, `occlusion.csv`, `occlusion.json` and the page into a folder; returns the page's path.
///
/// # Errors
/// If the folder cannot be written.
pub fn write(out: &Path, found: &Occlusion) -> io::Result<PathBuf> {
    let Occlusion { facts, network, preprocess, settings, layer, images, .. } = found;
    let (square, _) = settings.sweep(preprocess.size);
    let mut facts = facts.clone();
    facts.extend([
        fact(
            "Square",
            format!("{square} of {} pixels, every {}", sides(preprocess.size), settings.stride),
        ),
        fact("Fill value", covering(settings.fill)),
        fact("Layer", layer),
    ]);
    let mut page = Page::new(out, &STUDY, format!("What {network} looks at"), facts)?;
    page.figure.how = vec![
        "A square is laid over the image, at one position after another, and the network looks again. \
         Each map below has the geometry of the image: the colour at a point is what was noted with \
         the square’s centre there. Where no centre can come, since the square does not leave the \
         image, a map is grey; a square that covers everything has one place, which stands for all."
            .into(),
        "Where the probability of the class falls, the network looked at what was covered. Where \
         the map’s activity falls, that map did. Activity is the map’s sum. Probabilities go from 0 (dark) to 1 \
         (yellow); the colours of the most probable class are in the table below each image."
            .into(),
        "Images are the centre crop, as the network sees it, with the square where the probability is lowest \
         (vermilion) and the object’s box, if it is known (sky blue). A map is projected by the deconvnet from \
         its strongest unit without the square."
            .into(),
        projection_contrast(),
    ];
    if images.iter().any(|image| image.object.is_some()) {
        page.figure.sections.push(Section { tables: vec![inside(found)], ..Section::default() });
    }
    for (number, image) in images.iter().enumerate() {
        let section = section(&page, found, number, image)?;
        page.figure.sections.push(section);
    }
    write_numbers(&mut page, found)?;
    page.finish()
}

/// Whether the deepest drop lies in the object's box, image by image.
fn inside(found: &Occlusion) -> Table {
    let answer = |shown: &OfImage| {
        let answer = match (shown.drop_is_inside()?, shown.centre_of_drop()) {
            (_, None) => "it falls nowhere",
            (true, _) => "yes",
            (false, _) => "no",
        };
        let chance = format!("{:.0} %", 100.0 * shown.places_inside()?);
        let class = found.classes[shown.image.class].clone();
        Some(vec![shown.image.name.clone(), class, answer.into(), chance])
    };
    let images = &found.images;
    let expected: f64 = images.iter().filter_map(OfImage::places_inside).sum();
    let rows: Vec<_> = images.iter().filter_map(answer).collect();
    let count = rows.iter().filter(|row| row[2] == "yes").count();
    Table {
        caption: "Does the probability fall most with the square’s centre inside the object’s box?"
            .into(),
        head: ["image", "class", "inside", "positions inside"].map(String::from).into(),
        notes: vec![format!(
            "Inside in {count} of {}; at positions drawn by chance it would be {expected:.1}. {} of the \
             images have no box.",
            rows.len(),
            images.len() - rows.len()
        )],
        rows,
    }
}

fn section(
    page: &Page<'_>,
    found: &Occlusion,
    number: usize,
    shown: &OfImage,
) -> io::Result<Section> {
    let Occlusion { preprocess, classes, layer, .. } = found;
    let OfImage { image, occluded, projected, object } = shown;
    let Occluded { square, map, before, places, .. } = occluded;
    let class = &classes[image.class];
    let size = preprocess.size;
    let [rows, columns] = size;
    // Small inputs are shown with every pixel as a square of this side.
    let times = SHOWN.div_ceil(rows.max(columns));
    let whole = image.in_file(preprocess, whole(size));
    let picture = |what: &str, shown: &Image, title: String, method: String, contrast: String| {
        let (image, area) = (image.name.clone(), Some(whole));
        let caption = Picture { title, method, contrast, image, area, ..Picture::default() };
        page.png(format!("{number:03}-{what}.png"), shown, caption)
    };

    let mut input = image.input(preprocess);
    input = input.resize(columns * times, rows * times);
    let scaled = |edges: [f64; 4]| edges.map(|edge| (edge * times as f64).round() as i64);
    if let Some(object) = object {
        let [x0, y0, x1, y1] = *object;
        let within = |edge: f64, size: usize| edge.clamp(0.0, size as f64);
        let visible =
            [within(x0, columns), within(y0, rows), within(x1, columns), within(y1, rows)];
        input.frame(scaled(visible), 2, COLOURS[5].0);
    }
    if let Some(place) = occluded.drop() {
        input.frame(scaled(occluded.at(place).map(|edge| edge as f64)), 2, COLOURS[1].0);
    }
    let none = String::new;
    let mut pictures = vec![picture("input", &input, class.clone(), none(), none())?];

    let name = format!("{layer} map {map}");
    if let Some(Projected { unit, field, projection }) = projected {
        let SeedUnit { y, x, value, .. } = unit;
        let mut projected = picture(
            "projection",
            &projection.enlarged(SHOWN),
            format!("{name}, projected"),
            format!("row {y}, column {x}, activation {}", short(*value)),
            none(),
        )?;
        projected.area = Some(image.in_file(preprocess, *field));
        pictures.push(projected);
    }
    let activities = || places.iter().map(|p| p.activity).chain([before.activity]);
    let most = activities().fold(0.0, f32::max);
    let least = activities().fold(0.0, f32::min); // logits may be below zero
    let laid = |colour: &dyn Fn(&Reading) -> [u8; 3]| lay(occluded, size, times, colour);
    pictures.push(picture(
        "activity",
        &laid(&|place| heat(f64::from(place.activity), f64::from(least), f64::from(most))),
        format!("Activity of {name}"),
        format!("{} without the square", short(before.activity)),
        format!("from {} (dark) to {} (yellow)", short(least), short(most)),
    )?);
    pictures.push(picture(
        "probability",
        &laid(&|place| heat(place.probability, 0.0, 1.0)),
        format!("Probability of {class}"),
        format!("{:.1} % without the square", before.probability * 100.0),
        none(),
    )?);
    let labels = shares(places);
    let colour_of = |label: usize| {
        // The last colour is for all that come after.
        let place = labels.iter().position(|(class, _)| *class == label).unwrap_or(usize::MAX);
        COLOURS[place.min(COLOURS.len() - 1)]
    };
    pictures.push(picture(
        "label",
        &laid(&|place| colour_of(place.label).0),
        "Most probable class".into(),
        none(),
        none(),
    )?);
    let rows = labels.iter().map(|(label, count)| {
        let share = *count as f64 / places.len() as f64 * 100.0;
        vec![colour_of(*label).1.into(), classes[*label].clone(), format!("{share:.0} %")]
    });
    let table = Table {
        caption: "Most probable class, by the square’s position".into(),
        head: ["colour", "class", "share of positions"].map(String::from).into(),
        rows: rows.collect(),
        notes: Vec::new(),
    };
    let known = match image.known {
        true => String::new(),
        false => {
            format!(" The class is the network’s own answer, “{class}”: the file’s is not known.")
        }
    };
    let drop = match occluded.drop() {
        Some([row, column]) => {
            let lowest = places[row * occluded.corners[1].len() + column].probability;
            format!(
                "The probability of {class} falls from {:.1} % to {:.1} % at its lowest.",
                before.probability * 100.0,
                lowest * 100.0
            )
        }
        None => format!("The probability of {class} falls nowhere."),
    };
    Ok(Section {
        title: format!("{class}: {}", image.name),
        text: vec![format!(
            "A square of {square} of {} pixels, at {} positions. {drop}{known}",
            sides(size),
            places.len()
        )],
        pictures,
        tables: vec![table],
        ..Section::default()
    })
}

/// A side in words; both where they differ.
fn sides(size: [usize; 2]) -> String {
    if size[0] == size[1] { size[0].to_string() } else { by(size) }
}

/// A picture of `times * size` rows and columns, coloured by the place whose square has its centre nearest,
/// no further than half a stride; grey elsewhere.
fn lay(
    occluded: &Occluded,
    size: [usize; 2],
    times: usize,
    colour: &dyn Fn(&Reading) -> [u8; 3],
) -> Image {
    let Occluded { square, corners, places, .. } = occluded;
    let nearest = |axis: usize| -> Vec<Option<usize>> {
        let (corners, size) = (&corners[axis], size[axis]);
        let steps = corners.windows(2).map(|pair| pair[1] - pair[0]);
        let reach = steps.max().unwrap_or(2 * size) as f64 / 2.0;
        let nearest = |pixel: usize| {
            let at = (pixel as f64 + 0.5) / times as f64;
            let distance = |i: &usize| (corners[*i] as f64 + *square as f64 / 2.0 - at).abs();
            let nearest = (0..corners.len()).min_by(|a, b| distance(a).total_cmp(&distance(b)))?;
            (distance(&nearest) <= reach).then_some(nearest)
        };
        (0..size * times).map(nearest).collect()
    };
    let (down, across) = (nearest(0), nearest(1));
    let pixels = down.iter().flat_map(|row| {
        across.iter().flat_map(move |column| match (row, column) {
            (Some(row), Some(column)) => colour(&places[row * corners[1].len() + column]),
            _ => [GREY; 3],
        })
    });
    Image::new(across.len(), down.len(), pixels.collect())
}

/// The most probable classes with the number of their places, most frequent first.
fn shares(places: &[Reading]) -> Vec<(usize, usize)> {
    let mut counts = BTreeMap::new();
    for place in places {
        *counts.entry(place.label).or_insert(0) += 1;
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|(label, count)| (std::cmp::Reverse(*count), *label));
    counts
}

fn write_numbers(page: &mut Page<'_>, found: &Occlusion) -> io::Result<()> {
    let Occlusion { preprocess, classes, images, .. } = found;
    let head = ["image", "class", "y", "x", "activity", "probability", "most_probable"];
    let rows = images.iter().flat_map(|OfImage { image, occluded, .. }| {
        let row = |i: usize, place: &Reading| {
            let [x0, y0, ..] = occluded.at(occluded.place(i));
            vec![
                image.name.clone(),
                classes[image.class].clone(),
                y0.to_string(),
                x0.to_string(),
                place.activity.to_string(),
                place.probability.to_string(),
                classes[place.label].clone(),
            ]
        };
        occluded.places.iter().enumerate().map(move |(i, place)| row(i, place)).collect::<Vec<_>>()
    });
    page.csv("occlusion.csv", "every position of the square", &head, rows)?;
    let images: Vec<_> = images
        .iter()
        .map(|shown| {
            let OfImage { image, occluded, object, .. } = shown;
            let lowest = occluded.drop().map(|place| occluded.at(place));
            serde_json::json!({
                "image": image.name,
                "class": classes[image.class],
                "class_is_known": image.known,
                "occluded": occluded,
                "lowest_square_in_crop": lowest,
                "lowest_square_in_file": lowest.map(|area| image.in_file(preprocess, area)),
                "object_in_crop": object,
                "lowest_is_inside": shown.drop_is_inside(),
            })
        })
        .collect();
    let facts: BTreeMap<&str, &str> =
        page.figure.facts.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let json = serde_json::json!({ "made_with": facts, "images": images });
    let holds = "the same, with what was measured without it";
    page.file("occlusion.json", holds, &serde_json::to_vec(&json)?)
}
