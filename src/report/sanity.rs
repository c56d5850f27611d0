//! The page of [`sanity`](crate::study::sanity): each unit's projections with trained weights beside those
//! with random ones, all at once and layer by layer from the top, and how much they are alike.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::figure::{Cell, Grid, Page, Picture, Section, Table, projection_contrast};
use super::plot::Line;
use super::{plural, short};
use crate::backend::SeedUnit;
use crate::picture::Image;
use crate::study::Facts;
use crate::study::sanity::{
    Comparison, Followed, OfImage, OfUnit, RULES, Randomised, STUDY, Sanity, Stage,
};

/// Least side of a picture, in pixels.
const SHOWN: usize = 192;

/// What likeness is measured by: a name for curves and files, and the number.
type Measure = (&'static str, &'static str, fn(&Comparison) -> f64);

const MEASURES: [Measure; 3] = [
    ("correlation", "correlation", |c| c.trained_random),
    ("correlation of magnitudes", "magnitudes", |c| c.magnitudes),
    ("SSIM", "ssim", |c| c.ssim),
];

/// Writes pictures, `sanity.csv`, `sanity.json` and the page; returns the page's path. `learnt` is the folder of
/// the page of [`learnt`](super::learnt) for the same checkpoint, if it is known where that would be.
///
/// # Errors
/// If the folder cannot be written.
pub fn write(out: &Path, found: &Sanity, learnt: Option<&Path>) -> io::Result<PathBuf> {
    let Sanity { facts, network, cascade, images } = found;
    let title = format!("What the pictures of {network} show of its training");
    let mut page = Page::new(out, &STUDY, title, facts.clone())?;
    page.figure.how = how(cascade);
    let compared: Vec<&Comparison> = found.compared().collect();
    let stages: Vec<&Comparison> = found.stages().collect();
    page.figure.sections = vec![Section { tables: vec![table(&compared)], ..Section::default() }];
    page.figure.sections.extend(groups(&page, &stages, cascade)?);
    page.figure.sections.push(components(facts, learnt));
    for (number, OfImage { image, logit, units }) in images.iter().enumerate() {
        if let Some(logit) = logit {
            let prefix = format!("{number:03}-logit");
            let mut section = logit_section(&page, &prefix, image, logit)?;
            section.title = format!("The logit of its class in {image}");
            page.figure.sections.push(section);
        }
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
    let head = ["image", "of", "layer", "map", "y", "x", "randomised", "down_to", "random_map"];
    let numbers = ["trained_random", "magnitudes", "ssim", "trained_image", "random_image"];
    let head = [&head[..], &["rule"], &numbers].concat();
    let rows = stages.iter().map(|c| {
        let mut row = vec![c.image.clone(), c.of.into(), c.layer.clone()];
        row.extend(c.unit.iter().chain([&c.randomised]).map(usize::to_string));
        row.extend([c.down_to.clone(), c.random_map.to_string(), c.rule.into()]);
        let numbers = [c.trained_random, c.magnitudes, c.ssim, c.trained_image, c.random_image];
        row.extend(numbers.map(|v| v.to_string()));
        row
    });
    page.csv("sanity.csv", "every comparison, stage by stage", &head, rows)?;
    page.file("sanity.json", "the same", &serde_json::to_vec_pretty(&stages)?)?;
    page.finish()
}

fn how(cascade: &[Randomised]) -> Vec<String> {
    let mut how: Vec<String> = vec![
        "Each unit is projected by three rules, with the trained weights and, from the same place of \
         the layer, with weights drawn afresh. If the two pictures are much alike, the picture tells of the image and of the \
         architecture, and little of what was learnt."
            .into(),
        "The strips show when that happens: weights are randomised from the top down, one layer more from column to \
         column, until all are random (cascading randomisation, Adebayo et al. 2018). What lies above a unit \
         has no part in its projection, so its strip begins with its own layer; a logit’s has all layers. The logit of the \
         image’s class is followed whatever its sign. Any other unit must fire: where its map does not any more, the \
         map that fires most at its place stands for it, and the strip says so."
            .into(),
        "Correlation (r) is of the pixels’ values in the receptive field, r of magnitudes is of their absolute values: \
         it says whether the same places are shown, also where signs have changed, as those of a gradient do. SSIM (Wang et \
         al. 2004: Gaussian window of 11 × 11 pixels with σ = 1.5, cut to smaller fields; K1 = 0.01, K2 = 0.03; range 255) is \
         of the pictures as shown, mean over colours: flat grey in both counts as alike."
            .into(),
        "Nie et al. (2018) found that a deconvnet and guided backpropagation partly recover the image, \
         whatever the weights, and that the gradient does not: compare the last columns of the table."
            .into(),
        projection_contrast(),
    ];
    let unknown: Vec<String> = cascade
        .iter()
        .filter(|layer| !layer.initial_is_known)
        .map(|Randomised { layer, std, .. }| match std {
            Some(std) => format!("{layer} (σ {})", short(*std as f32)),
            None => layer.clone(),
        })
        .collect();
    if !unknown.is_empty() {
        how.push(format!(
            "It is not known how the weights of {} were drawn before training. Their random weights are normally \
             distributed with the standard deviation that the network’s description gives, biases zero: where \
             training began otherwise, activations of the random network are of another size than they were then, \
             and more or fewer units fire.",
            unknown.join(", ")
        ));
    }
    how
}

/// For the class's logit and each layer of units: curves over the layers and their numbers, means over images.
fn groups(
    page: &Page<'_>,
    stages: &[&Comparison],
    cascade: &[Randomised],
) -> io::Result<Vec<Section>> {
    let mut keys: Vec<(&str, &str)> = Vec::new();
    for c in stages {
        let key = (c.of, c.layer.as_str());
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    keys.sort_by_key(|(of, _)| *of != "logit");
    let mut sections = Vec::new();
    for (number, (of, layer)) in keys.into_iter().enumerate() {
        let of_key = |c: &&&Comparison| (c.of, c.layer.as_str()) == (of, layer);
        let same: Vec<&Comparison> = stages.iter().filter(of_key).copied().collect();
        let what = match of {
            "logit" => "The logit of the image’s class".to_owned(),
            _ => format!("Units of {layer}"),
        };
        let mut section =
            Section { title: format!("{what}, layer by layer"), ..Section::default() };
        let most = same.iter().map(|c| c.randomised).max().unwrap_or(0);
        if most == 0 {
            section.text.push("No layer with weights has a part in it.".into());
        }
        // Two points are no curve.
        if most > 1 {
            // From the unit's own layer on: the last of the cascade, as many as there are stages.
            let order: Vec<String> = cascade[cascade.len() - most..]
                .iter()
                .enumerate()
                .map(|(i, randomised)| format!("{} {}", i + 1, randomised.layer))
                .collect();
            for (name, file, value) in MEASURES {
                let title = format!("{what}: {name} with the trained network’s picture");
                let method = format!("mean over images; layers: {}", order.join(", "));
                let picture = Picture { title, method, ..Picture::default() };
                let axes = ["randomised layers, from the top", name];
                let file = format!("curve-{number}-{file}.svg");
                section.pictures.push(page.curves(file, axes, &lines(&same, value), picture)?);
            }
        }
        section.tables = vec![stage_table(&same, most)];
        sections.push(section);
    }
    Ok(sections)
}

/// A curve for each rule, of means at each stage.
fn lines(same: &[&Comparison], value: fn(&Comparison) -> f64) -> Vec<Line> {
    let line = |rule: &str| {
        let of_stage = |stage: usize| {
            let values = of_rule_and_stage(same, rule, stage).map(value).collect::<Vec<f64>>();
            mean(&values).map(|mean| (stage as f64, mean))
        };
        let most = same.iter().map(|c| c.randomised).max().unwrap_or(0);
        Line { name: rule.into(), points: (0..=most).filter_map(of_stage).collect() }
    };
    rules_of(same).into_iter().map(line).collect()
}

fn rules_of(same: &[&Comparison]) -> Vec<&'static str> {
    let there = |rule: &&str| same.iter().any(|c| c.rule == *rule);
    RULES.iter().map(|(rule, _)| *rule).filter(there).collect()
}

fn of_rule_and_stage<'a>(
    same: &'a [&'a Comparison],
    rule: &'a str,
    stage: usize,
) -> impl Iterator<Item = &'a Comparison> {
    same.iter().copied().filter(move |c| (c.rule, c.randomised) == (rule, stage))
}

fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// Two decimals with a true minus.
fn decimals(value: f64) -> String {
    format!("{value:.2}").replace('-', "−").replace("−0.00", "0.00")
}

/// Means by stage, with the number of pictures that they are of.
fn stage_table(same: &[&Comparison], most: usize) -> Table {
    let rules = rules_of(same);
    let mut head = vec!["randomised".to_owned()];
    for rule in &rules {
        head.extend(["r", "r of magnitudes", "SSIM"].map(|name| format!("{rule}: {name}")));
    }
    head.extend(["images", "of the same map"].map(String::from));
    let row = |stage: usize| {
        let lowest = same.iter().find(|c| c.randomised == stage).map(|c| c.down_to.as_str());
        let mut row = vec![column(stage, lowest, most)];
        for rule in &rules {
            row.extend(MEASURES.map(|(_, _, value)| {
                let values: Vec<f64> = of_rule_and_stage(same, rule, stage).map(value).collect();
                mean(&values).map_or_else(|| "nothing fires".into(), decimals)
            }));
        }
        let here = || of_rule_and_stage(same, rules.first().copied().unwrap_or_default(), stage);
        row.push(here().count().to_string());
        row.push(here().filter(|c| c.random_map == c.unit[0]).count().to_string());
        row
    };
    Table {
        caption: "Likeness to the trained network’s picture, mean over images".into(),
        head,
        rows: (0..=most).map(row).collect(),
        notes: Vec::new(),
    }
}

/// The name of a stage: which layer is random, beside those before it.
fn column(stage: usize, lowest: Option<&str>, most: usize) -> String {
    let lowest = lowest.unwrap_or("one more");
    let all = if stage == most { " (all)" } else { "" };
    match stage {
        0 => "nothing: as trained".into(),
        1 => format!("{lowest}{all}"),
        _ => format!("+ {lowest}{all}"),
    }
}

/// What is read of `learnt.json`; all else in it is passed over.
#[derive(Deserialize)]
struct LearntFile {
    facts: Facts,
    trained: TopOne,
    layers: Vec<LearntLayer>,
}

#[derive(Deserialize)]
struct LearntLayer {
    layer: String,
    reinitialized: Option<TopOne>,
    without_initial: Option<TopOne>,
}

#[derive(Deserialize)]
struct TopOne {
    top1_error: f64,
}

/// The other side of it: what accuracy the network loses with single layers, if that was measured.
fn components(facts: &Facts, learnt: Option<&Path>) -> Section {
    let title = "What accuracy hangs on each layer’s learning".into();
    let command = "zfnet study learnt --checkpoint RUN --data DIR";
    let mut section = Section { title, ..Section::default() };
    let file = learnt.map(|folder| folder.join("learnt.json"));
    let bytes = file.as_deref().map(fs::read).transpose();
    let read = match bytes {
        Ok(None) => {
            return told(
                section,
                format!("Not known of this checkpoint; `{command}` measures it."),
            );
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return told(
                section,
                format!(
                    "Not measured yet: `{command}` does, and this study made again after it shows it here."
                ),
            );
        }
        Err(error) => Err(error.to_string()),
        Ok(Some(bytes)) => {
            serde_json::from_slice::<LearntFile>(&bytes).map_err(|error| error.to_string())
        }
    };
    let read = match read {
        Ok(read) => read,
        Err(error) => {
            section.alarms.push(format!(
                "The numbers of `zfnet study learnt` cannot be read (learnt.json: {error}): make it again with \
                 `{command}`."
            ));
            return section;
        }
    };
    let fact = super::fact_named;
    let is_same = |name: &&str| fact(facts, name) == fact(&read.facts, name);
    if !["Network", "Initial weights"].iter().all(is_same) {
        return told(
            section,
            format!(
                "Measured of other weights than these, so not shown: make it again with `{command}`."
            ),
        );
    }
    section.text.push(
        "The cascade says what pictures show of what was learnt; this table, what the network does with it. \
         Each layer alone is set back to its own initial weights, or loses its component along them, while all \
         others stay as trained."
            .into(),
    );
    let accuracy = |errors: &TopOne| 100.0 * (1.0 - errors.top1_error);
    let trained = accuracy(&read.trained);
    let beside = |errors: &Option<TopOne>| match errors {
        Some(errors) => {
            let now = accuracy(errors);
            format!("{now:.1} % ({:+.1})", now - trained).replace('-', "−")
        }
        None => "unknown".into(),
    };
    let row = |layer: &LearntLayer| {
        vec![layer.layer.clone(), beside(&layer.reinitialized), beside(&layer.without_initial)]
    };
    section.tables.push(Table {
        caption: format!("Top-1 accuracy by `zfnet study learnt`; {trained:.1} % as trained"),
        head: ["layer", "re-initialized", "without the initial component"].map(String::from).into(),
        rows: read.layers.iter().rev().map(row).collect(),
        notes: vec!["In brackets: points gained or lost. From the top, as above.".into()],
    });
    section
}

fn told(section: Section, text: String) -> Section {
    Section { text: vec![text], ..section }
}

/// A logit's pictures.
fn logit_section(
    page: &Page<'_>,
    prefix: &str,
    image: &str,
    logit: &Followed,
) -> io::Result<Section> {
    let caption = Picture {
        title: "What the network saw".into(),
        image: image.into(),
        area: Some(logit.area),
        ..Picture::default()
    };
    let picture = page.png(format!("{prefix}-patch.png"), &logit.patch.enlarged(SHOWN), caption)?;
    let text = format!("Class {}, logit {} as trained.", logit.unit.map, short(logit.unit.value));
    let grid = strip(page, prefix, image, logit, &RULES[1..])?;
    Ok(Section {
        text: vec![text],
        pictures: vec![picture],
        grids: vec![grid],
        ..Section::default()
    })
}

/// A unit's pictures, whose files' names begin with `prefix`.
fn section(
    page: &Page<'_>,
    prefix: &str,
    image: &str,
    layer: &str,
    fired: &Followed,
) -> io::Result<Section> {
    let Followed { unit, area, patch, stages } = fired;
    let caption = |title: String| Picture {
        title,
        image: image.into(),
        area: Some(*area),
        ..Picture::default()
    };
    let title = format!("What {layer} map {} saw", unit.map);
    let file = format!("{prefix}-patch.png");
    let mut pictures = vec![page.png(file, &patch.enlarged(SHOWN), caption(title))?];
    let random = fired.random();
    for (i, (rule, _)) in RULES.iter().enumerate() {
        for (weights, shown) in [("trained", fired.trained()), ("random", random)] {
            let Some(shown) = shown else { continue };
            let file = format!("{prefix}-{rule}-{weights}.png");
            let caption = caption(format!("{rule}, {weights} weights"));
            pictures.push(page.png(file, &shown.projections[i].enlarged(SHOWN), caption)?);
        }
    }
    let SeedUnit { map, y, x, value } = *unit;
    let place = format!("Map {map}, row {y}, column {x}: activation {}", short(value));
    let mut text = vec![match random.map(|random| random.unit) {
        None => format!("{place}. With random weights nothing fires at this place."),
        Some(random) if random.map != map => format!(
            "{place}. With random weights it does not fire at this place; map {}, which fires most there, \
             with {}, stands for it.",
            random.map,
            short(random.value)
        ),
        Some(random) => format!("{place}; with random weights {}.", short(random.value)),
    }];
    let mut grids = Vec::new();
    match stages.len() {
        0 | 1 => text.push("No layer with weights has a part in it.".into()),
        2 => text.push(
            "Of the layers with weights it alone has a part in its projection: these pictures are its cascade."
                .into(),
        ),
        _ => grids.push(strip(page, prefix, image, fired, &RULES)?),
    }
    Ok(Section { text, pictures, grids, ..Section::default() })
}

/// The cascade: a row for each rule, a column for each stage.
fn strip<R>(
    page: &Page<'_>,
    prefix: &str,
    image: &str,
    followed: &Followed,
    rules: &[(&str, R)],
) -> io::Result<Grid> {
    let Followed { unit, area, stages, .. } = followed;
    let most = stages.len() - 1;
    let name = |stage: &Stage| column(stage.randomised, stage.down_to.as_deref(), most);
    let mut rows = Vec::new();
    for (i, (rule, _)) in rules.iter().enumerate() {
        let mut cells = Vec::new();
        for stage in stages {
            let Some(projected) = &stage.projected else {
                let text = vec!["nothing fires at this place".into()];
                cells.push(Cell { picture: None, text });
                continue;
            };
            let c = &projected.compared[i];
            let weights = match stage.randomised {
                0 => "trained".into(),
                last if last == most => "random".into(),
                some => format!("random-{some}"),
            };
            let caption = Picture {
                title: format!("{rule}, random weights: {}", name(stage)),
                image: image.into(),
                area: Some(*area),
                ..Picture::default()
            };
            let shown: Image = projected.projections[i].enlarged(SHOWN);
            let picture = page.png(format!("{prefix}-{rule}-{weights}.png"), &shown, caption)?;
            let mut text = match stage.randomised {
                0 => Vec::new(),
                _ => vec![
                    format!("r {}", decimals(c.trained_random)),
                    format!("magnitudes {}", decimals(c.magnitudes)),
                    format!("SSIM {}", decimals(c.ssim)),
                ],
            };
            if projected.unit.map != unit.map {
                text.push(format!("of map {} instead", projected.unit.map));
            }
            cells.push(Cell { picture: Some(picture), text });
        }
        rows.push(((*rule).into(), cells));
    }
    Ok(Grid {
        caption: format!("Random weights from the top down, {} one by one", plural(most, "layer")),
        head: [String::new()].into_iter().chain(stages.iter().map(name)).collect(),
        rows,
    })
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
