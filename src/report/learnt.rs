//! The page of [`learnt`](crate::study::learnt): each layer's initial share and what the layer is worth, and the
//! first layer's filters beside their start.

use std::io;
use std::path::{Path, PathBuf};

use super::figure::{Page, Picture, Section, Table, contrast_of};
use crate::picture::Image;
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
        "The initial share of a filter is the share of its energy (the sum of the squares of its weights) that \
         lies along its initial weights, the random numbers that it was before training: cos² of the angle \
         between then and now. It is 100 % before training. Cosine similarity is the largest |cos| of a filter to \
         another one of the layer, in the median: near 1, filters repeat each other."
            .into(),
        "A small share alone proves nothing, since small initial weights make it small. So each layer alone is \
         also re-initialized, with biases of zero: accuracy that is lost depended on what the layer has learnt. \
         (The layers around it have learnt to work with it, so losses do not add up.) And it is stripped of the \
         component along its initial weights: where that costs no accuracy, what projections show of this \
         component is noise to the network."
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
        "top1_error_reinitialized",
        "top1_error_without_initial",
    ];
    let optional = |value: Option<f64>| value.map_or_else(String::new, |v| v.to_string());
    let lines =
        found.layers.iter().map(|LayerLearnt { change, reinitialized, without_initial }| {
            let [median, high] =
                [0, 1].map(|i| optional(change.initial_share.map(|share| share[i])));
            let error = |errors: &Option<Errors>| optional(errors.map(|errors| errors.top1_error));
            vec![
                change.layer.clone(),
                change.filters.to_string(),
                change.weights.to_string(),
                median,
                high,
                change.similarity.to_string(),
                error(reinitialized),
                error(without_initial),
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
        "cosine similarity",
        "top-1, re-initialized",
        "top-1, without the initial component",
    ];
    let rows = layers.iter().map(|LayerLearnt { change, reinitialized, without_initial }| {
        let [median, high] = change.share_in_words();
        let size = format!("{} × {}", change.filters, change.weights);
        let similarity = format!("{:.2}", change.similarity);
        vec![
            change.layer.clone(),
            size,
            median,
            high,
            similarity,
            beside(reinitialized),
            beside(without_initial),
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
             deviation of {chance:.1} points by chance alone; the difference of two networks on the same images \
             varies less."
        )],
    }
}

fn pictures(page: &Page<'_>, first: &FirstFilters) -> io::Result<Section> {
    let text = vec![contrast_of("Filters", "each")];
    let title = "The first layer’s filters".into();
    let mut section = Section { title, text, ..Section::default() };
    for (name, title, values) in [
        ("trained", "as trained", &first.trained),
        ("initial", "before training", &first.initial),
        (
            "without-initial",
            "as trained, without the component along the initial weights",
            &first.without_initial,
        ),
    ] {
        let picture = Picture { title: title.into(), wide: true, ..Picture::default() };
        let sheet = Image::of_filters(values, first.kernel, false);
        section.pictures.push(page.png(format!("first-{name}.png"), &sheet, picture)?);
    }
    Ok(section)
}
