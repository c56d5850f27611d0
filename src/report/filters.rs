//! The page of [`filters`](crate::study::filters): what is wrong with each network's first layer, its filters
//! and their spectra, and the numbers side by side.

use std::io;
use std::path::{Path, PathBuf};

use super::figure::{Page, Picture, Section, Table, contrast_of};
use super::plot::heat;
use super::short;
use crate::picture::Image;
use crate::study::filters::{
    BANDS, Filters, FirstLayer, GRID, STUDY, Seen, largest, median, spectrum, white_noise_high,
};

/// A filter whose RMS is so many times the median dominates.
const DOMINATES: f64 = 3.0;
/// Middle frequencies are few if fewer filters than this share have more of their energy there than in
/// either other band.
const FEW: f64 = 0.1;
/// A grid measure above this is aliasing.
const ALIASED: f64 = 2.0;
/// Folded energy above this share is aliasing to come.
const FOLDED: f64 = 0.5;

/// Writes the pictures, `filters.csv`, `filters.json` and the page; returns the page's path.
///
/// # Errors
/// If the folder cannot be written.
pub fn write(out: &Path, found: &Filters) -> io::Result<PathBuf> {
    let Filters { facts, networks } = found;
    let title = "Filters of the first layer".into();
    let mut page = Page::new(out, &STUDY, title, facts.clone())?;
    page.figure.how = vec![
        "With one scale for the whole layer a filter that dominates shows: the others fade into \
         grey beside it. With a scale of its own each filter shows its shape. A spectrum has \
         frequency 0 in its middle and half a cycle a pixel at its edges."
            .into(),
        format!(
            "Low frequencies are below {} cycles a pixel, middle ones up to {}, high ones above. \
             Folded is the share of the energy beyond half a cycle a stride, which the layer’s \
             output cannot tell from lower frequencies. The grid is the energy at frequencies of the \
             first layer’s stride over that beside them: 1 where nothing stands out.",
            BANDS[0], BANDS[1]
        ),
    ];
    for (number, first) in networks.iter().enumerate() {
        let alarms = alarms(first);
        let text = match alarms.is_empty() {
            true => vec!["No alarm.".into()],
            false => Vec::new(),
        };
        let title = name(number, first);
        page.figure.sections.push(Section { title, text, alarms, ..Section::default() });
    }
    let one = contrast_of("Filters", "all of a layer");
    let own = contrast_of("Filters", "each");
    let amplitude = "Amplitude, from 0 (dark) to each filter’s largest (yellow).";
    type Draw = fn(&FirstLayer) -> Image;
    let shows: [(&str, &str, &str, Draw); 3] = [
        ("one-scale", "One scale for the layer", &one, |first| {
            Image::of_filters(&first.values, first.kernel, true)
        }),
        ("own-scale", "A scale for each filter", &own, |first| {
            Image::of_filters(&first.values, first.kernel, false)
        }),
        ("spectrum", "Spectra", amplitude, spectra),
    ];
    for (what, title, contrast, draw) in shows {
        let text = vec![contrast.into()];
        let mut section = Section { title: title.into(), text, ..Section::default() };
        for (number, first) in networks.iter().enumerate() {
            let [rows, columns] = first.kernel;
            let caption = Picture {
                title: name(number, first),
                method: format!(
                    "all {} filters of {}, {rows} × {columns} pixels, stride {}, row by row from 0",
                    first.rms.len(),
                    first.layer,
                    first.stride
                ),
                wide: true,
                ..Picture::default()
            };
            section.pictures.push(page.png(
                format!("{number}-{what}.png"),
                &draw(first),
                caption,
            )?);
        }
        page.figure.sections.push(section);
    }
    let title = "Numbers".into();
    page.figure.sections.push(Section { title, tables: tables(networks), ..Section::default() });
    let head =
        ["network", "checkpoint", "filter", "rms", "low", "middle", "high", "folded", "dead"];
    let rows = networks.iter().flat_map(|first| {
        first.rms.iter().zip(&first.shares).enumerate().map(|(i, (rms, shares))| {
            let mut row = vec![first.network.clone(), first.checkpoint.clone(), i.to_string()];
            row.push(rms.to_string());
            row.extend(shares.iter().map(f64::to_string));
            row.push(first.dead_by_norm.contains(&i).to_string());
            row
        })
    });
    page.csv("filters.csv", "every filter", &head, rows)?;
    let json = serde_json::to_vec_pretty(networks)?;
    page.file("filters.json", "the same, with dead maps", &json)?;
    page.finish()
}

/// What is wrong, in words.
pub fn alarms(first: &FirstLayer) -> Vec<String> {
    let mut alarms = Vec::new();
    let middle = median(&first.rms);
    let (strongest, most) = largest(&first.rms);
    if middle > 0.0 && most > DOMINATES * middle {
        alarms.push(format!(
            "Filter {strongest} dominates: its RMS is {:.1} times the median (more than \
             {DOMINATES} is an alarm). A limit of the RMS (--rms-limit) prevents that.",
            most / middle
        ));
    }
    if !first.dead_by_norm.is_empty() {
        alarms.push(format!(
            "{} of {} filters are dead by their norm, below 1 % of the median: {}.",
            first.dead_by_norm.len(),
            first.rms.len(),
            listed(&first.dead_by_norm)
        ));
    }
    let mostly_middle = first.mostly(1);
    if (mostly_middle as f64) < FEW * first.rms.len() as f64 {
        alarms.push(format!(
            "Few middle frequencies: {mostly_middle} of {} filters have more of their energy \
             between {} and {} cycles a pixel than below or above (fewer than {:.0} % is an alarm).",
            first.rms.len(),
            BANDS[0],
            BANDS[1],
            FEW * 100.0
        ));
    }
    let folded = first.mean(3);
    if folded > FOLDED {
        alarms.push(format!(
            "{:.0} % of the filters’ energy lies beyond what a stride of {} can carry, and folds \
             onto other frequencies (more than {:.0} % is an alarm). A smaller stride helps.",
            folded * 100.0,
            first.stride,
            FOLDED * 100.0
        ));
    }
    for (layer, maps, dead) in first.seen.iter().flat_map(|seen| &seen.dead) {
        if !dead.is_empty() {
            alarms.push(format!(
                "{} of {maps} maps of {layer} are dead, never above zero in the images: {}.",
                dead.len(),
                listed(dead)
            ));
        }
    }
    if let Some((grid, _)) = grid(first).filter(|(grid, _)| *grid > ALIASED) {
        alarms.push(format!(
            "Layer 2’s projections repeat with the first layer’s stride of {}: {grid:.1} times as \
             much energy there as at frequencies beside it (more than {ALIASED} is an alarm).",
            first.stride
        ));
    }
    alarms
}

fn listed(numbers: &[usize]) -> String {
    let first: Vec<String> = numbers.iter().take(20).map(usize::to_string).collect();
    format!("{}{}", first.join(", "), if numbers.len() > 20 { ", ..." } else { "" })
}

fn grid(first: &FirstLayer) -> Option<(f64, usize)> {
    first.seen.as_ref()?.grid
}

/// The filters' spectra, zero in the middle of each tile, the tile's largest value yellow.
fn spectra(first: &FirstLayer) -> Image {
    let of_filter = first.kernel[0] * first.kernel[1] * 3;
    let tile = |filter: &[f32]| {
        let spectrum = spectrum(filter, first.kernel, GRID);
        let most = spectrum.iter().copied().fold(0.0, f64::max);
        let pixels = spectrum.iter().flat_map(|power| heat(power.sqrt(), 0.0, most.sqrt()));
        Image::new(GRID, GRID, pixels.collect()).resize(GRID * 2, GRID * 2)
    };
    Image::filter_tiles(&first.values.chunks_exact(of_filter).map(tile).collect::<Vec<_>>())
}

fn name(number: usize, first: &FirstLayer) -> String {
    let limit = match first.rms_limit > 0.0 {
        true => format!("limit {}", first.rms_limit),
        false => "no limit".into(),
    };
    format!("{}. {}, {limit} ({})", number + 1, first.network, first.checkpoint)
}

/// The networks as columns; and their dead maps by layer.
fn tables(networks: &[FirstLayer]) -> Vec<Table> {
    let mut head = vec![String::new()];
    head.extend(networks.iter().enumerate().map(|(i, f)| format!("{}. {}", i + 1, f.network)));
    let row = |what: &str, value: &dyn Fn(&FirstLayer) -> String| {
        std::iter::once(what.to_owned()).chain(networks.iter().map(value)).collect::<Vec<_>>()
    };
    let percent = |share: f64| format!("{:.0} %", share * 100.0);
    let ratio = |f: &FirstLayer| largest(&f.rms).1 / median(&f.rms).max(f64::MIN_POSITIVE);
    let mut rows = vec![
        row("filters", &|f| f.rms.len().to_string()),
        row("kernel", &|f| format!("{} × {}", f.kernel[0], f.kernel[1])),
        row("stride", &|f| f.stride.to_string()),
        row("limit of the RMS", &|f| {
            if f.rms_limit > 0.0 { f.rms_limit.to_string() } else { "none".into() }
        }),
        row("RMS, least", &|f| short(f.rms.iter().copied().fold(f64::INFINITY, f64::min) as f32)),
        row("RMS, median", &|f| short(median(&f.rms) as f32)),
        row("RMS, largest", &|f| short(largest(&f.rms).1 as f32)),
        row("largest / median", &|f| format!("{:.1}", ratio(f))),
        row("dead by norm", &|f| f.dead_by_norm.len().to_string()),
        row("energy in low frequencies", &|f| percent(f.mean(0))),
        row("energy in middle frequencies", &|f| percent(f.mean(1))),
        row("energy in high frequencies", &|f| {
            format!("{} (white noise: {})", percent(f.mean(2)), percent(white_noise_high()))
        }),
        row("filters mostly middle", &|f| f.mostly(1).to_string()),
        row("energy folded by the stride", &|f| percent(f.mean(3))),
    ];
    let mut tables = Vec::new();
    if networks.iter().any(|first| first.seen.is_some()) {
        rows.push(row("grid in layer 2’s projections", &|f| match grid(f) {
            Some((grid, count)) => format!("{grid:.2} ({count} pictures)"),
            None => "–".into(),
        }));
    }
    tables.push(Table {
        caption: "First layer; shares are means over the filters that are not dead".into(),
        head,
        rows,
        notes: vec![
            "The paper changed AlexNet’s first layer from 11 × 11 filters with a stride of 4 to 7 × 7 \
             with a stride of 2 because it saw few middle frequencies, dead features, and aliasing in \
             layer 2. It gives no numbers for them: these measures are ours."
                .into(),
        ],
    });
    let of_layers = networks.iter().enumerate().flat_map(|(number, first)| {
        first.layers.iter().map(move |change| {
            let [median, high] = change.share_in_words();
            let name = format!("{}. {}, {}", number + 1, first.network, change.layer);
            vec![name, median, high, format!("{:.2}", change.similarity)]
        })
    });
    tables.push(Table {
        caption: "What is left of the initial weights, and how alike filters are".into(),
        head: ["", "initial share, median", "90th percentile", "cosine similarity"]
            .map(String::from)
            .into(),
        rows: of_layers.collect(),
        notes: vec![
            "Initial share: the share of the energy of a filter’s weights that lies along its initial weights. \
             Cosine similarity: the largest |cos| of a filter to another one of the layer, median (of at most \
             256 filters)."
                .into(),
        ],
    });
    let mut rows = Vec::new();
    for (number, first) in networks.iter().enumerate() {
        for (layer, maps, dead) in first.seen.iter().flat_map(|seen| &seen.dead) {
            let name = format!("{}. {}, {layer}", number + 1, first.network);
            rows.push(vec![name, maps.to_string(), dead.len().to_string()]);
        }
    }
    if let Some(Seen { images, .. }) = networks.iter().find_map(|first| first.seen.as_ref()) {
        tables.push(Table {
            caption: format!("Maps that are above zero in none of {images} images"),
            head: ["", "maps", "dead"].map(String::from).into(),
            rows,
            notes: Vec::new(),
        });
    }
    tables
}
