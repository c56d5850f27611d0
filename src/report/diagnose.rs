//! The page of [`diagnose`](crate::study::diagnose): alarms beside the curves of loss and error, each layer's curves,
//! and the first layer's filters from their start on.

use std::io;
use std::path::{Path, PathBuf};

use super::figure::{Page, Picture, Section, Table, contrast_of, plotted};
use super::plot::{Line, Mark, Names, Plot, Scale};
use super::{fact, grouped, plural, short};
use crate::picture::Image;
use crate::study::diagnose::{
    Diagnosis, Filters, FirstFilters, Record, STUDY, Told, Watched, WatchedLayer,
};
use crate::study::learnt::percent;
use crate::train::USUAL_UPDATES;

/// Losses that differ by more than this factor are drawn on a logarithmic scale.
const FAR: f64 = 30.0;

/// Writes the pictures, the numbers as JSON and CSV, and the page; returns the page's path.
///
/// # Errors
/// If the folder cannot be written.
pub fn write(out: &Path, found: &Diagnosis) -> io::Result<PathBuf> {
    let Diagnosis { facts, network, record, first, left_out } = found;
    let title = match network.as_str() {
        "" => "How training went".into(),
        network => format!("How training of {network} went"),
    };
    let epochs = record.epochs.last().map_or(0, |last| last.epoch);
    let so_far = format!("{}, {}", plural(epochs as usize, "epoch"), updates(record));
    let own = [fact("Trained", so_far), fact("Alarms", grouped(record.alarms.len()))];
    let mut page = Page::new(out, &STUDY, title, [&facts[..], &own].concat())?;
    page.figure.sections.push(course(out, record)?);
    if let Some(last) = record.watched.last() {
        page.figure.sections.push(layers(out, record)?);
        page.figure.sections.push(Section {
            title: "Each layer in numbers".into(),
            tables: vec![table(last)],
            ..Section::default()
        });
    }
    if let Some(first) = first {
        let sections = filters(&page, first, left_out)?;
        page.figure.sections.extend(sections);
    }
    write_numbers(&mut page, found)?;
    page.finish()
}

/// An alarm in a line, with its number among those of the run.
pub(super) fn line(number: usize, told: &Told) -> String {
    let Told { step, epoch, name, seen, cause, remedy } = told;
    let step = grouped(*step as usize);
    plain(&format!(
        "{number}. Epoch {epoch}, update {step}: {name}. Seen: {seen}. Likely: {cause}. Try {remedy}."
    ))
}

/// Text of a file, without what would change how the rest of a page reads.
fn plain(text: &str) -> String {
    text.replace(char::is_control, "\u{fffd}")
}

fn updates(record: &Record) -> String {
    plural(record.updates as usize, "update")
}

/// What is to the right in a plot, and how many updates are one of it.
fn axis(record: &Record) -> (&'static str, f64) {
    match record.steps_per_epoch() {
        Some(steps) => ("epoch", steps),
        None => ("update (no epoch has ended)", 1.0),
    }
}

/// Alarms as vertical lines: one for all of the same update.
fn marks(record: &Record) -> Vec<Mark> {
    let (_, steps) = axis(record);
    let mut number = 0;
    let same = record.alarms.chunk_by(|a, b| a.step == b.step);
    same.map(|alarms| {
        let first = number + 1;
        number += alarms.len();
        let label = match alarms {
            [one] => format!("{first} {}", one.name),
            _ => format!("{first}–{number}"),
        };
        Mark { x: f64::from(alarms[0].step) / steps, label }
    })
    .collect()
}

/// Alarms, or that there are none, and the curves of loss and error with them.
fn course(out: &Path, record: &Record) -> io::Result<Section> {
    let mut text = Vec::new();
    if record.watched.is_empty() {
        text.push(match (record.epochs.is_empty(), record.alarms.is_empty()) {
            (true, _) => format!(
                "No epoch has ended yet ({}), so nothing is known of the layers: alarms, if there are any, are all \
                 that there is.",
                updates(record)
            ),
            (false, true) => "This run was not watched: it was trained with --no-watch, or by an earlier version. Train \
                              again without that flag, or go on with --resume, and each epoch from then on is \
                              watched."
                .into(),
            (false, false) => "No epoch was watched to its end.".into(),
        });
    } else if record.alarms.is_empty() {
        text.push(format!(
            "No alarm: nothing that training is watched for was seen in {} ({}).",
            plural(record.watched.len(), "epoch"),
            updates(record)
        ));
    }
    if record.unreadable > 0 {
        text.push(format!(
            "{} of metrics.jsonl cannot be read and were left out.",
            plural(record.unreadable, "line")
        ));
    }
    let (x, steps) = axis(record);
    let of_epochs = |name: &str, value: fn(&crate::study::diagnose::Epoch) -> f64| Line {
        name: name.into(),
        points: record.epochs.iter().map(|e| (f64::from(e.step) / steps, value(e))).collect(),
    };
    let single = record.losses.iter().map(|loss| (f64::from(loss.step) / steps, loss.loss));
    let losses = [
        Line { name: "training, some updates".into(), points: single.collect() },
        of_epochs("training, mean of an epoch", |epoch| epoch.train_loss),
        of_epochs("validation, centre crop", |epoch| epoch.val_loss),
    ];
    let errors = [
        of_epochs("top-1", |epoch| 100.0 * epoch.val_top1_error),
        of_epochs("top-5", |epoch| 100.0 * epoch.val_top5_error),
    ];
    let marks = marks(record);
    let beside = if marks.is_empty() { "" } else { "dashed lines are the alarms, by number" };
    let scale = scale_of(&losses);
    let loss =
        Plot { x, y: "cross-entropy", lines: &losses, scale, marks: &marks, ..Plot::default() };
    let mut pictures = vec![plot(out, "loss.svg", "Loss", beside, &loss)?];
    if !record.epochs.is_empty() {
        let y = "validation error, centre crop (%)";
        let error = Plot { x, y, lines: &errors, marks: &marks, ..Plot::default() };
        pictures.push(plot(out, "error.svg", "Validation error", beside, &error)?);
    }
    let alarms = (1..).zip(&record.alarms).map(|(number, told)| line(number, told)).collect();
    let title = "Alarms".into();
    Ok(Section { title, text, alarms, pictures, ..Section::default() })
}

/// Logarithmic for what spans many sizes.
fn scale_of(lines: &[Line]) -> Scale {
    let values = lines.iter().flat_map(|line| &line.points).map(|(_, y)| *y);
    let positive = values.filter(|value| value.is_finite() && *value > 0.0);
    let (low, high) =
        positive.fold((f64::INFINITY, 0.0f64), |(low, high), v| (low.min(v), high.max(v)));
    if high > FAR * low { Scale::Logarithmic } else { Scale::Linear }
}

/// Writes a plot, and describes it.
fn plot(out: &Path, file: &str, title: &str, method: &str, plot: &Plot<'_>) -> io::Result<Picture> {
    let picture = Picture { title: title.into(), method: method.into(), ..Picture::default() };
    plotted(out, file.into(), plot, picture)
}

/// Names of all layers that were watched, from below.
fn names(record: &Record) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for layer in record.watched.iter().flat_map(|watched| &watched.layers) {
        if !names.contains(&layer.layer.as_str()) {
            names.push(&layer.layer);
        }
    }
    names
}

/// The curves of all layers, a plot for each number.
fn layers(out: &Path, record: &Record) -> io::Result<Section> {
    let names = names(record);
    let lines = |value: &dyn Fn(&WatchedLayer) -> Option<f64>| -> Vec<Line> {
        let of_epoch = |watched: &Watched, name: &str| {
            let layer = watched.layers.iter().find(|layer| layer.layer == name)?;
            Some((f64::from(watched.epoch), value(layer)?))
        };
        let line = |name: &&str| Line {
            name: (*name).into(),
            points: record.watched.iter().filter_map(|watched| of_epoch(watched, name)).collect(),
        };
        names.iter().map(line).collect()
    };
    // Without ends of epochs nobody knows where between them an alarm was.
    let marks = record.steps_per_epoch().map(|_| marks(record)).unwrap_or_default();
    let basis = Plot { x: "epoch", names: Names::AtEnds, marks: &marks, ..Plot::default() };
    let logarithmic = Plot { scale: Scale::Logarithmic, ..basis };
    let mut activations = lines(&|layer| Some(layer.activation_std));
    activations.push(Line {
        name: "input".into(),
        points: record.watched.iter().map(|w| (f64::from(w.epoch), w.input_std)).collect(),
    });
    let gradients = lines(&|layer| Some(layer.gradient_std));
    let updates = lines(&|layer| Some(100.0 * layer.update));
    let dead = lines(&|layer| Some(100.0 * layer.dead_share()?));
    let shares = lines(&|layer| Some(100.0 * layer.initial_share?));
    let zero = "zero lies on the lower edge";
    let mut pictures = vec![
        plot(
            out,
            "activations.svg",
            "Standard deviation of activations",
            &format!(
                "of each layer’s output after its relu; a signal that dies falls by a large factor from one layer \
                 to the next, one that grows without end comes before a loss that is not finite; {zero}"
            ),
            &Plot { y: "standard deviation of activations", lines: &activations, ..logarithmic },
        )?,
        plot(
            out,
            "gradients.svg",
            "Standard deviation of gradients",
            &format!(
                "of one image’s loss by the layer’s output; layers far below the others learn late or never; {zero}"
            ),
            &Plot { y: "standard deviation of gradients", lines: &gradients, ..logarithmic },
        )?,
        plot(
            out,
            "updates.svg",
            "Relative size of updates",
            &format!(
                "RMS of an update over that of the weights; shaded: {} to {} %, usual while a network learns most; above \
                 it weights are thrown about; below it little moves, as is meant once the learning rate has been reduced",
                100.0 * USUAL_UPDATES[0],
                100.0 * USUAL_UPDATES[1]
            ),
            &Plot {
                y: "update (% of the weights)",
                lines: &updates,
                band: Some(USUAL_UPDATES.map(|share| 100.0 * share)),
                ..logarithmic
            },
        )?,
        plot(
            out,
            "dead.svg",
            "Dead units",
            "maps, or units of a fully connected layer, that fired for no image that was looked at in the epoch (where \
             that is fewer than 256, in several epochs); of layers with a relu",
            &Plot { y: "dead (% of the layer’s maps)", lines: &dead, ..basis },
        )?,
    ];
    if shares.iter().any(|line| !line.points.is_empty()) {
        pictures.push(plot(
            out,
            "initial-share.svg",
            "What is left of the random start",
            "share of the energy of a filter’s weights along its initial weights, median; it is 100 % before \
             training",
            &Plot { y: "initial share (%)", lines: &shares, ..basis },
        )?);
    }
    let images = record.watched.last().map_or(0, |last| last.images);
    Ok(Section {
        title: "Each layer, epoch by epoch".into(),
        text: vec![format!(
            "Means over the watched updates of an epoch: one of every few, {} in the last epoch.",
            plural(images, "image")
        )],
        pictures,
        ..Section::default()
    })
}

/// The last epoch's numbers.
fn table(last: &Watched) -> Table {
    let head = [
        "layer",
        "activations, mean",
        "activations, std",
        "gradients, std",
        "weights, RMS",
        "update",
        "dead",
        "initial share",
    ];
    let number = |value: f64| match value.is_finite() {
        true => short(value as f32),
        false => "not finite".into(),
    };
    let row = |layer: &WatchedLayer| {
        let update = match layer.update.is_finite() {
            true => format!("{} %", short(100.0 * layer.update as f32)),
            false => "not finite".into(),
        };
        let dead = match layer.maps {
            0 => "no relu".into(),
            maps => format!("{} of {}", grouped(layer.dead), grouped(maps)),
        };
        vec![
            plain(&layer.layer),
            number(layer.activation_mean),
            number(layer.activation_std),
            number(layer.gradient_std),
            number(layer.weight_rms),
            update,
            dead,
            layer.initial_share.map_or_else(|| "unknown".into(), percent),
        ]
    };
    Table {
        caption: format!("Epoch {}, layers from below", last.epoch),
        head: head.map(String::from).into(),
        rows: last.layers.iter().map(row).collect(),
        notes: vec![format!(
            "The input’s standard deviation is {}. Activations are those after the relu, means and standard \
             deviations over all maps, places and images.",
            number(last.input_std)
        )],
    }
}

/// The first layer's filters: once with a scale for all, once with one for each.
fn filters(page: &Page<'_>, first: &FirstFilters, left_out: &[String]) -> io::Result<Vec<Section>> {
    let FirstFilters { layer, kernel, initial, checkpoints } = first;
    let initial = initial.as_ref();
    // A checkpoint of the very start would be the same picture once more.
    let is_start = |filters: &&Filters| Some(&filters.values) == initial;
    let shown: Vec<&Filters> = checkpoints.iter().filter(|filters| !is_start(filters)).collect();
    let mut sections = Vec::new();
    let layer = plain(layer);
    for (one_scale, what, title, scale_for) in [
        (true, "one-scale", format!("Filters of {layer}, one scale"), "all of a sheet"),
        (false, "own-scale", format!("Filters of {layer}, a scale for each"), "each"),
    ] {
        let mut text = vec![contrast_of("Filters", scale_for)];
        if one_scale {
            text.push(
                "Where a few filters have grown beyond the others, those fade into grey here: section 4.1 of the \
                 paper found it so by eye."
                    .into(),
            );
            if initial.is_none() {
                text.push("How the weights were drawn before training is not known.".into());
            }
            text.extend(left_out.iter().map(|reason| plain(&format!("Left out: {reason}"))));
        }
        let mut section = Section { title, text, ..Section::default() };
        let mut add = |file: String, values: &[f32], title: String, method: String| {
            let picture = Picture { title, method, wide: true, ..Picture::default() };
            let picture =
                page.png(file, &Image::of_filters(values, *kernel, one_scale), picture)?;
            section.pictures.push(picture);
            io::Result::Ok(())
        };
        if let Some(initial) = initial {
            let file = format!("first-{what}-initial.png");
            add(file, initial, "Before training".into(), String::new())?;
        }
        for Filters { step, epoch, within, largest, values } in &shown {
            let at = grouped(*step as usize);
            let title = match (within, step) {
                (_, 0) => "Before training, update 0".into(),
                (true, _) => format!("In epoch {}, update {at}", epoch + 1),
                (false, _) => format!("After epoch {epoch}, update {at}"),
            };
            let method = match largest {
                Some(times) => {
                    format!("the largest RMS of a filter is {times:.1} times the median")
                }
                None => "the median RMS of a filter is zero".into(),
            };
            add(format!("first-{what}-{step}.png"), values, title, method)?;
        }
        sections.push(section);
    }
    Ok(sections)
}

fn write_numbers(page: &mut Page<'_>, found: &Diagnosis) -> io::Result<()> {
    let record = &found.record;
    page.file(
        "diagnose.json",
        "all of it; single updates as means of neighbours",
        &serde_json::to_vec_pretty(found)?,
    )?;
    let head = [
        "epoch",
        "step",
        "layer",
        "activation_mean",
        "activation_std",
        "gradient_std",
        "weight_rms",
        "update",
        "dead",
        "maps",
        "initial_share",
    ];
    let row = |watched: &Watched, layer: &WatchedLayer| {
        let mut row = vec![watched.epoch.to_string(), watched.step.to_string()];
        row.push(layer.layer.clone());
        let WatchedLayer { activation_mean, activation_std, gradient_std, weight_rms, .. } = layer;
        let values = [*activation_mean, *activation_std, *gradient_std, *weight_rms, layer.update];
        row.extend(values.iter().map(f64::to_string));
        row.extend([layer.dead.to_string(), layer.maps.to_string()]);
        row.push(layer.initial_share.map_or_else(String::new, |share| share.to_string()));
        row
    };
    let watched = record.watched.iter();
    let rows = watched.flat_map(|w| w.layers.iter().map(move |layer| row(w, layer)));
    page.csv("layers.csv", "each layer, epoch by epoch", &head, rows)?;
    let head = ["epoch", "step", "train_loss", "val_loss", "val_top1_error", "val_top5_error"];
    let rows = record.epochs.iter().map(|epoch| {
        let mut row = vec![epoch.epoch.to_string(), epoch.step.to_string()];
        let values = [epoch.train_loss, epoch.val_loss, epoch.val_top1_error, epoch.val_top5_error];
        row.extend(values.iter().map(f64::to_string));
        row
    });
    page.csv("epochs.csv", "losses and errors", &head, rows)?;
    let head = ["epoch", "step", "alarm", "seen", "cause", "remedy"];
    let rows = record.alarms.iter().map(|told| {
        let Told { step, epoch, name, seen, cause, remedy } = told;
        let words = [name, seen, cause, remedy].map(|text| plain(text));
        [vec![epoch.to_string(), step.to_string()], words.into()].concat()
    });
    page.csv("alarms.csv", "the alarms", &head, rows)
}
