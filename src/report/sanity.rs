//! The page of [`sanity`](crate::study::sanity): each unit's projections with trained weights beside those
//! with random ones, and how much they correlate.

use std::io;
use std::path::{Path, PathBuf};

use super::figure::{Page, Picture, Section, Table, projection_contrast};
use super::short;
use crate::backend::SeedUnit;
use crate::picture::Image;
use crate::study::sanity::{Comparison, Fired, OfImage, OfUnit, RULES, Random, STUDY, Sanity};

/// Least side of a picture, in pixels.
const SHOWN: usize = 192;

/// Writes pictures, `sanity.csv`, `sanity.json` and the page; returns the page's path.
///
/// # Errors
/// If the folder cannot be written.
pub fn write(out: &Path, found: &Sanity) -> io::Result<PathBuf> {
    let Sanity { facts, network, images } = found;
    let title = format!("What the pictures of {network} show of its training");
    let mut page = Page::new(out, &STUDY, title, facts.clone())?;
    page.figure.how = vec![
        "Each unit is projected by three rules, with the trained weights and, from the same place of \
         the layer, with weights drawn afresh. If the two pictures are much alike, the picture tells of the image and of the \
         architecture, and little of what was learnt."
            .into(),
        "Nie et al. (2018) found that a deconvnet and guided backpropagation partly recover the image, \
         whatever the weights, and that the gradient does not: compare the last columns of the table."
            .into(),
        projection_contrast(),
    ];
    let compared: Vec<&Comparison> = found.compared().collect();
    page.figure.sections = vec![Section { tables: vec![table(&compared)], ..Section::default() }];
    for (number, OfImage { image, units }) in images.iter().enumerate() {
        for (place, OfUnit { layer, fired }) in units.iter().enumerate() {
            let mut section = match fired {
                Some(fired) => {
                    section(&page, &format!("{number:03}-{place}"), image, layer, fired)?
                }
                None => {
                    let text = vec!["No unit of this layer fires.".into()];
                    Section { text, ..Section::default() }
                }
            };
            section.title = format!("{layer} in {image}");
            page.figure.sections.push(section);
        }
    }
    let head = ["image", "layer", "map", "y", "x", "random_map", "rule"];
    let head = [&head[..], &["trained_random", "trained_image", "random_image"]].concat();
    let rows = compared.iter().map(|c| {
        let mut row = vec![c.image.clone(), c.layer.clone()];
        row.extend(c.unit.iter().chain([&c.random_map]).map(usize::to_string));
        row.push(c.rule.into());
        row.extend([c.trained_random, c.trained_image, c.random_image].map(|v| v.to_string()));
        row
    });
    page.csv("sanity.csv", "every correlation", &head, rows)?;
    page.file("sanity.json", "the same", &serde_json::to_vec_pretty(&compared)?)?;
    page.finish()
}

/// A unit's pictures, whose files' names begin with `prefix`.
fn section(
    page: &Page<'_>,
    prefix: &str,
    image: &str,
    layer: &str,
    fired: &Fired,
) -> io::Result<Section> {
    let Fired { unit, area, patch, projections, random } = fired;
    let picture = |what: &str, shown: &Image, title: String| {
        let caption =
            Picture { title, image: image.into(), area: Some(*area), ..Picture::default() };
        page.png(format!("{prefix}-{what}.png"), &shown.enlarged(SHOWN), caption)
    };
    let title = format!("What {layer} map {} saw", unit.map);
    let mut pictures = vec![picture("patch", patch, title)?];
    for (i, (rule, _)) in RULES.iter().enumerate() {
        let random = random.as_ref().map(|random| ("random", &random.projections));
        for (weights, projections) in [("trained", projections)].into_iter().chain(random) {
            let (what, title) = (format!("{rule}-{weights}"), format!("{rule}, {weights} weights"));
            pictures.push(picture(&what, &projections[i], title)?);
        }
    }
    let SeedUnit { map, y, x, value } = *unit;
    let place = format!("Map {map}, row {y}, column {x}: activation {}", short(value));
    let text = match random {
        None => format!("{place}. With random weights nothing fires at this place."),
        Some(Random { unit, .. }) if unit.map != map => format!(
            "{place}. With random weights it does not fire at this place; map {}, which fires most there, \
             with {}, stands for it.",
            unit.map,
            short(unit.value)
        ),
        Some(Random { unit, .. }) => format!("{place}; with random weights {}.", short(unit.value)),
    };
    Ok(Section { text: vec![text], pictures, ..Section::default() })
}

/// Mean correlations by layer and rule.
fn table(compared: &[&Comparison]) -> Table {
    let mut keys: Vec<(&str, &str)> = Vec::new();
    for c in compared {
        let key = (c.layer.as_str(), c.rule);
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    let row = |(layer, rule): (&str, &str)| {
        let of_key = |c: &&&Comparison| (c.layer.as_str(), c.rule) == (layer, rule);
        let same: Vec<&Comparison> = compared.iter().filter(of_key).copied().collect();
        let mean = |value: fn(&Comparison) -> f64| {
            let sum: f64 = same.iter().map(|c| value(c)).sum();
            format!("{:.2}", sum / same.len() as f64).replace('-', "−")
        };
        vec![
            format!("{layer}, {rule}"),
            mean(|c| c.trained_random),
            mean(|c| c.trained_image),
            mean(|c| c.random_image),
            same.len().to_string(),
            same.iter().filter(|c| c.random_map == c.unit[0]).count().to_string(),
        ]
    };
    let head = [
        "",
        "trained – random",
        "trained – image",
        "random – image",
        "pictures",
        "of the same map",
    ];
    Table {
        caption: "Mean correlation of the pixels in the receptive field".into(),
        head: head.map(String::from).into(),
        rows: keys.into_iter().map(row).collect(),
        notes: vec![
            "1 is the same picture up to brightness and contrast, 0 no linear relation. Both pictures are \
             of the same place, and so of the same pixels; the image is what the network sees. A gradient may follow the image with either sign, so its mean may be near \
             0 though single ones are not."
                .into(),
        ],
    }
}
