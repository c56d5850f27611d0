//! The page of [`invariance`](crate::study::invariance): for each change, what it does to every layer and to
//! the probability of the class, as curves, a sentence and a table.

use std::io;
use std::path::{Path, PathBuf};

use super::fact;
use super::figure::{Page, Picture, Section, Table};
use super::plot::Line;
use crate::picture::Image;
use crate::study::invariance::{Change, Invariance, Responses, STUDY, mean, onset};

/// Writes pictures, plots, `invariance.csv`, `invariance.json` and the page; returns the page's path.
///
/// # Errors
/// If the folder cannot be written.
pub fn write(out: &Path, found: &Invariance) -> io::Result<PathBuf> {
    let Invariance { facts, layers, shifts: [range, step], images, .. } = found;
    let mut facts = facts.clone();
    facts.extend([
        fact("Images", images.len().to_string()),
        fact("Layers", layers.join(", ")),
        fact("Shifts", format!("up to {range} pixels up and down, by {step}")),
    ]);
    let title = "How features change with the image".into();
    let mut page = Page::new(out, &STUDY, title, facts)?;
    page.figure.how = vec![
        "Each image is shifted vertically, enlarged or turned about the centre of the network's \
         crop, and the features of the changed image are compared with those of the unchanged one: \
         Euclidean distance of a layer's output after its relu. In the plots it is divided by the \
         norm of the unchanged features, so that layers can be compared: 0 is the same, 1 as far \
         away as a picture without any feature. The paper's plots have the plain distance, as \
         invariance.csv does."
            .into(),
        "Pixels are interpolated bilinearly in the square that the crop is cut from; what lies \
         outside that square is the mean that preprocessing takes off, so that the network sees \
         zero there, but for rounding to a byte. Large shifts and turns bring in such borders, \
         which change features by themselves."
            .into(),
    ];
    page.figure.sections = vec![images_shown(&page, found)?];
    for change in Change::ALL {
        let section = Section {
            title: capital(change.name()),
            text: onsets(found, change).into_iter().collect(),
            pictures: plots(&page, found, change)?,
            tables: vec![summary(found, change)],
            ..Section::default()
        };
        page.figure.sections.push(section);
    }
    write_numbers(&mut page, found)?;
    page.finish()
}

/// Each image and some of its changes.
fn images_shown(page: &Page<'_>, found: &Invariance) -> io::Result<Section> {
    let Invariance { shifts: [range, _], images, examples, .. } = found;
    let mut pictures = Vec::new();
    for (number, (image, examples)) in (1..).zip(images.iter().zip(examples)) {
        let class = match image.known {
            true => image.class.clone(),
            false => format!("taken for {}", image.class),
        };
        let caption = Picture {
            title: format!("{number} {class}"),
            image: image.image.clone(),
            area: Some(examples.area),
            ..Picture::default()
        };
        let sheet = Image::sheet(&examples.crops, examples.crops.len(), 2, 255);
        pictures.push(page.png(format!("image-{number}.png"), &sheet, caption)?);
    }
    let text = vec![format!(
        "What the network sees: unchanged, shifted by {range} pixels, at scale 1.8, turned by 30 degrees."
    )];
    Ok(Section { title: "The images".into(), text, pictures, ..Section::default() })
}

/// The curves of a change: all layers, each layer by images, and the probability.
fn plots(page: &Page<'_>, found: &Invariance, change: Change) -> io::Result<Vec<Picture>> {
    let Invariance { layers, images, .. } = found;
    let plot = |file: &str, y: &str, lines: Vec<Line>, title: String, method: &str| {
        let title = format!("{}: {title}", capital(change.name()));
        let caption = Picture { title, method: method.into(), ..Picture::default() };
        page.curves(format!("{}-{file}.svg", change.name()), [axis(change), y], &lines, caption)
    };
    let by_image = |points: &dyn Fn(&Responses) -> Vec<(f64, f64)>| -> Vec<Line> {
        let line = |(number, image): (usize, &Responses)| Line {
            name: format!("{number} {}", image.class),
            points: points(image),
        };
        (1..).zip(images).map(line).collect()
    };
    let relative = "distance / norm of the unchanged features";
    let method = "Relative distance from the unchanged image's features";
    let of_layer = |(layer, name): (usize, &String)| Line {
        name: name.clone(),
        points: mean(images, |image| image.relative(change, layer)),
    };
    let lines = layers.iter().enumerate().map(of_layer).collect();
    let title = "every layer, mean over the images".into();
    let mut pictures = vec![plot("mean", relative, lines, title, method)?];
    for (layer, name) in layers.iter().enumerate() {
        let lines = by_image(&|image| image.relative(change, layer));
        let title = format!("{name}, a line an image");
        pictures.push(plot(&layer.to_string(), relative, lines, title, method)?);
    }
    let lines = by_image(&|image| image.probability(change));
    let title = "probability of the image's class".into();
    let method = "Softmax of the network's output";
    pictures.push(plot("probability", "probability of the class", lines, title, method)?);
    Ok(pictures)
}

fn axis(change: Change) -> &'static str {
    match change {
        Change::Shift => "vertical shift in pixels, down is positive",
        Change::Scale => "scale",
        Change::Rotation => "rotation in degrees, counter-clockwise",
    }
}

/// An amount in words.
fn words(change: Change, amount: f64) -> String {
    match change {
        Change::Shift if amount.abs() == 1.0 => format!("a shift by {amount} pixel"),
        Change::Shift => format!("a shift by {amount} pixels"),
        Change::Scale => format!("scale {amount:.1}"),
        Change::Rotation => format!("a rotation by {amount} degrees"),
    }
}

/// How fast the lowest and the highest layer change at first, in a sentence; none if that of one is
/// not known.
fn onsets(found: &Invariance, change: Change) -> Option<String> {
    let Invariance { layers, images, .. } = found;
    let last = layers.len() - 1;
    let (low, top) = (onset(images, change, 0)?, onset(images, change, last)?);
    let unit = match change {
        Change::Shift => "a pixel",
        Change::Scale => "a unit of scale",
        Change::Rotation => "a degree",
    };
    let amount = words(change, change.nothing() + low.smallest);
    let mut text = format!(
        "Under {amount}, {} changes by {:.3} of its norm ({:.4} {unit})",
        layers[0], low.distance, low.slope
    );
    if last > 0 {
        text +=
            &format!(" and {} by {:.3} ({:.4} {unit}): ", layers[last], top.distance, top.slope);
        text += &match (low.distance, top.distance) {
            (l, t) if l > t => format!("{} changes {:.1} times as fast", layers[0], l / t),
            (l, t) if l < t => format!("{} changes {:.1} times as fast", layers[last], t / l),
            _ => "both change as fast".into(),
        };
    }
    text += match images.len() {
        1 => ".",
        _ => ", as a mean over the images.",
    };
    Some(text)
}

/// The ends of the curves as numbers.
fn summary(found: &Invariance, change: Change) -> Table {
    let Invariance { layers, images, .. } = found;
    let row = |(layer, name): (usize, &String)| {
        let onset = onset(images, change, layer);
        let values = mean(images, |image| image.relative(change, layer));
        let most = values.iter().filter(|v| v.1.is_finite()).max_by(|a, b| a.1.total_cmp(&b.1));
        vec![
            name.clone(),
            onset.map_or("none".into(), |onset| format!("{:.4}", onset.distance)),
            onset.map_or("none".into(), |onset| format!("{:.4}", onset.slope)),
            most.map_or("none".into(), |(_, value)| format!("{value:.4}")),
            most.map_or("none".into(), |(amount, _)| format!("{}", (amount * 10.0).round() / 10.0)),
        ]
    };
    Table {
        caption: format!("{}: relative distance, mean over the images", capital(change.name())),
        head: ["Layer", "At the smallest change", "The same a unit", "Largest", "At"]
            .map(String::from)
            .into(),
        rows: layers.iter().enumerate().map(row).collect(),
        notes: Vec::new(),
    }
}

fn write_numbers(page: &mut Page<'_>, found: &Invariance) -> io::Result<()> {
    let Invariance { layers, images, .. } = found;
    let head =
        ["image", "class", "change", "amount", "layer", "distance", "relative", "probability"];
    let rows = images.iter().flat_map(|image| {
        image.responses.iter().flat_map(move |response| {
            layers.iter().enumerate().map(move |(i, layer)| {
                vec![
                    image.image.clone(),
                    image.class.clone(),
                    response.change.name().into(),
                    response.amount.to_string(),
                    layer.clone(),
                    response.distances[i].to_string(),
                    (response.distances[i] / image.norms[i]).to_string(),
                    response.probability.to_string(),
                ]
            })
        })
    });
    page.csv("invariance.csv", "every distance and probability", &head, rows)?;
    let json = serde_json::json!({ "layers": layers, "images": images });
    let json = serde_json::to_vec_pretty(&json)?;
    page.file("invariance.json", "the same, image by image", &json)
}

fn capital(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map_or(String::new(), |first| first.to_uppercase().chain(letters).collect())
}
