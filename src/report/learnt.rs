//! The page of [`learnt`](crate::study::learnt): each layer's initial share and what the layer is worth, and the
//! first layer's filters beside their start.

use std::io;
use std::path::{Path, PathBuf};

use super::figure::{PROJECTION_CONTRAST, Page, Picture, Section, Table};
use super::filters::sheet;
use crate::study::ensemble::Errors;
use crate::study::learnt::{FirstFilters, LayerLearnt, Learnt, STUDY};

/// Writes the pictures, `learnt.csv`, `learnt.json` and the page; returns the page's path.
///
/// # Errors
/// If the folder cannot be written.
pub fn write(out: &Path, found: &Learnt) -> io::Result<PathBuf> {
    let title = format!("What {} has learnt, layer by layer", found.network);
    let mut page = Page::new(out, &STUDY, title, found.facts.clone())?;
    page.figure.how = vec![
        "Before training a filter’s weights are random numbers. Their initial share is the share of the \
         filter’s energy (the sum of the squares of its weights) that still lies along these numbers: cos² \
         of the angle between then and now. It is 100 % before training."
            .into(),
        "A small share alone proves nothing, since a start of small numbers makes it small. So each layer is \
         also set back to its start, with biases of zero, while all others stay as they are: what the network \
         then gets wrong, this layer had learnt. Where taking away the component along the start costs nothing, \
         that component is noise in the pictures and nothing else. Similarity is the largest |cos| of a filter \
         to another one of the layer, in the median: near 1, filters repeat each other."
            .into(),
    ];
    let tables = vec![table(found)];
    page.figure.sections.push(Section { tables, ..Section::default() });
    if let Some(first) = &found.first {
        let section = pictures(&page, first)?;
        page.figure.sections.push(section);
    }
    page.file("learnt.json", "all layers, as shares", &serde_json::to_vec_pretty(found)?)?;
    let head = [
        "layer",
        "filters",
        "weights",
        "initial_share_median",
        "initial_share_p90",
        "similarity",
        "top1_error_set_back",
        "top1_error_without_start",
    ];
    let optional = |value: Option<f64>| value.map_or_else(String::new, |v| v.to_string());
    let lines = found.layers.iter().map(|LayerLearnt { change, set_back, without_start }| {
        let [median, high] = [0, 1].map(|i| optional(change.initial_share.map(|share| share[i])));
        let error = |errors: &Option<Errors>| optional(errors.map(|errors| errors.top1_error));
        vec![
            change.layer.clone(),
            change.filters.to_string(),
            change.weights.to_string(),
            median,
            high,
            change.similarity.to_string(),
            error(set_back),
            error(without_start),
        ]
    });
    page.csv("learnt.csv", "the same as a table", &head, lines)?;
    page.finish()
}

fn table(found: &Learnt) -> Table {
    let Learnt { trained, layers, .. } = found;
    let accuracy = |errors: &Errors| 100.0 * (1.0 - errors.top1_error);
    let beside = |errors: &Option<Errors>| match errors {
        Some(errors) => {
            let now = accuracy(errors);
            format!("{now:.1} % ({:+.1})", now - accuracy(trained)).replace('-', "−")
        }
        None => "unknown".into(),
    };
    let head = [
        "layer",
        "filters × weights",
        "initial share, median",
        "90th percentile",
        "similarity",
        "top-1 with the layer set back",
        "top-1 without the start’s component",
    ];
    let rows = layers.iter().map(|LayerLearnt { change, set_back, without_start }| {
        let [median, high] = change.share_in_words();
        let size = format!("{} × {}", change.filters, change.weights);
        let similarity = format!("{:.2}", change.similarity);
        vec![
            change.layer.clone(),
            size,
            median,
            high,
            similarity,
            beside(set_back),
            beside(without_start),
        ]
    });
    let (now, images) = (accuracy(trained), trained.images);
    let chance = 100.0 * (now / 100.0 * (1.0 - now / 100.0) / images.max(1) as f64).sqrt();
    Table {
        caption: format!("Top-1 accuracy with the centre crop is {now:.1} % as trained"),
        head: head.map(String::from).into(),
        rows: rows.collect(),
        notes: vec![format!(
            "In brackets: points gained or lost. An accuracy of {now:.1} % on {images} images has a standard \
             deviation of {chance:.1} points by chance alone; two on the same images differ by less than that \
             suggests."
        )],
    }
}

fn pictures(page: &Page<'_>, first: &FirstFilters) -> io::Result<Section> {
    let mut section = Section { title: "The first layer’s filters".into(), ..Section::default() };
    for (name, title, values) in [
        ("trained", "as trained", &first.trained),
        ("initial", "as they began", &first.initial),
        (
            "without-start",
            "as trained, without the component along their start",
            &first.without_start,
        ),
    ] {
        let picture = Picture {
            title: title.into(),
            method: "every filter, row by row from 0".into(),
            contrast: PROJECTION_CONTRAST
                .replace("in projections", "in filters")
                .replace("each picture", "each filter"),
            wide: true,
            ..Picture::default()
        };
        let sheet = sheet(values, first.kernel, false);
        section.pictures.push(page.png(format!("first-{name}.png"), &sheet, picture)?);
    }
    Ok(section)
}
