//! The page of [`correspondence`](crate::study::correspondence): parts by layers beside the paper's
//! table, and the covered images.

use std::io;
use std::path::{Path, PathBuf};

use super::figure::{Page, Picture, Section, Table};
use super::{by, covering, fact};
use crate::study::correspondence::{Correspondence, Covered, STUDY, Score, Settings};

/// Least side of a picture, in pixels.
const SHOWN: usize = 192;

/// Writes the covered images, `correspondence.csv`, `correspondence.json` and the page; returns the
/// page's path.
///
/// # Errors
/// If the folder cannot be written.
pub fn write(out: &Path, found: &Correspondence) -> io::Result<PathBuf> {
    let Correspondence { facts, network, settings, scores, parts, .. } = found;
    let mut facts = facts.clone();
    facts.push(fact("Covered with", covering(settings.fill)));
    facts.push(fact("Seed", settings.seed.to_string()));
    let title = format!("Are parts of objects alike to {network}?");
    let mut page = Page::new(out, &STUDY, title, facts)?;
    page.figure.how = vec![
        "The same part is covered in each image, and the sign of the change of every feature is \
         noted. A number is the share of features whose signs differ between two images, the mean \
         over all pairs of images. If it is lower than for boxes at random places, the layer tells \
         that the part is the same in different images, without having been told of parts."
            .into(),
        "Pictures are the centre crop, as the network sees it; the box is what is covered.".into(),
    ];
    let (text, tables) = (vec![alike(scores)], vec![table(found)]);
    page.figure.sections.push(Section { text, tables, ..Section::default() });
    for (number, (name, images)) in parts.iter().enumerate() {
        let mut section = Section { title: name.clone(), ..Section::default() };
        for Covered { index, image, area, crop } in images {
            let caption = Picture {
                title: format!("{name}, covered"),
                image: image.clone(),
                area: Some(*area),
                ..Picture::default()
            };
            let file = format!("{number:02}-{index:03}.png");
            section.pictures.push(page.png(file, &crop.enlarged(SHOWN), caption)?);
        }
        page.figure.sections.push(section);
    }
    let head = ["layer", "part", "image_a", "image_b", "signs_that_differ"];
    let rows = scores.iter().flat_map(|score| {
        let images = &score.images;
        let pairs = (0..images.len()).flat_map(|i| (i + 1..images.len()).map(move |j| (i, j)));
        pairs.zip(&score.pairs).map(|((i, j), value)| {
            let [layer, part] = [&score.layer, &score.part].map(String::clone);
            vec![layer, part, images[i].clone(), images[j].clone(), value.to_string()]
        })
    });
    page.csv("correspondence.csv", "every pair of images", &head, rows)?;
    let json = serde_json::to_vec_pretty(scores)?;
    page.file("correspondence.json", "the same, with means and standard deviations", &json)?;
    page.finish()
}

/// What the numbers say, in a sentence.
fn alike(scores: &[Score]) -> String {
    let alike = |score: &&Score| {
        let below = |[mean, deviation]: [f64; 2]| score.part_score[0] < mean - deviation;
        score.random_score.is_some_and(below)
    };
    let named = |score: &Score| format!("{} in {}", score.part, score.layer);
    let found: Vec<String> = scores.iter().filter(alike).map(named).collect();
    let what = if found.is_empty() { "nothing".into() } else { found.join(", ") };
    format!("More alike than random boxes, by more than their deviation: {what}.")
}

/// Parts by layers, ours above the paper's.
fn table(found: &Correspondence) -> Table {
    let Correspondence { scores, settings: Settings { draws, .. }, input, classes, .. } = found;
    let first_part = scores.chunk_by(|a, b| a.part == b.part).next().unwrap_or_default();
    let mut head = vec![String::new()];
    head.extend(first_part.iter().map(|score| score.layer.clone()));
    let shown = |[mean, deviation]: [f64; 2]| format!("{mean:.3} ± {deviation:.3}");
    let mut rows: Vec<Vec<String>> = Vec::new();
    for of_part in scores.chunk_by(|a, b| a.part == b.part) {
        let images = of_part[0].images.len();
        let mut part = vec![format!("{}, {images} images", of_part[0].part)];
        let mut random = vec![format!("boxes of its size at random, {draws} draws")];
        part.extend(of_part.iter().map(|score| shown(score.part_score)));
        random.extend(of_part.iter().filter_map(|score| score.random_score.map(shown)));
        rows.push(part);
        if *draws > 0 {
            rows.push(random);
        }
    }
    Table {
        caption: "Share of features whose signs of change differ; lower is more alike".into(),
        head,
        rows,
        notes: vec![
            "The deviation of a part is over its pairs of images, that of random boxes over the draws."
                .into(),
            "The paper’s Table 1, layer 5 | layer 7, with five dogs’ faces and its network trained on \
             ImageNet at 224 pixels: right eye 0.067 | 0.069, left eye 0.069 | 0.068, nose 0.079 | \
             0.069, random 0.107 | 0.073; its left and \
             right may be the dog’s. It does not say how its sums are normalised: compare a part \
             with random boxes, within one table."
                .into(),
            format!("Here: {classes} classes, {} pixels.", by(*input)),
        ],
    }
}
