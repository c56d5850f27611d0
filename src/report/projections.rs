//! The page of single images: what the network says, and its strongest units carried back to pixels.
//!
//! ```text
//! OUT/index.html
//! OUT/projections.json              every unit: map, position, value, boxes
//! OUT/IMAGE/input.png               what the network saw
//! OUT/IMAGE/LAYER-MAP-Y-X.png       one unit's projection, as large as the input
//! ```
//!
//! The page cuts both pictures to the unit's receptive field itself (an element of the field's
//! shape with the whole picture behind it), so that a chosen unit can show the whole with the field
//! drawn in it: with no script and no second file. One entry is the page of a single unit.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use maud::{Markup, html};
use serde::Serialize;

use super::{Slugs, by_rule, caution, facts, page, short, signed};
use crate::disk::write_atomic;
use crate::picture::Image;
use crate::study::Facts;
pub use crate::study::project::{ImageProjections, LayerProjections, Unit};

/// What a page shows.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Projections {
    /// The page's title.
    pub title: String,
    /// Where the weights come from.
    pub checkpoint: String,
    /// The network's name.
    pub network: String,
    /// Name of the rule of the backward pass.
    pub rule: String,
    /// What else stands under the title.
    pub facts: Facts,
    /// In the order of the page.
    pub images: Vec<ImageProjections>,
}

/// Writes the page, its pictures and its data; returns the page's path.
pub fn write(out: &Path, projections: &Projections) -> io::Result<PathBuf> {
    fs::create_dir_all(out)?;
    let mut slugs = Slugs::default();
    let folders: Vec<String> = projections.images.iter().map(|s| slugs.make(stem(s))).collect();
    for (shown, folder) in projections.images.iter().zip(&folders) {
        let folder = out.join(folder);
        shown.input.write_png(&folder.join("input.png"))?;
        for (layer, slug) in named(&shown.layers) {
            for unit in &layer.units {
                unit.projection.write_png(&folder.join(file(&slug, unit)))?;
            }
        }
    }
    write_atomic(&out.join("projections.json"), &serde_json::to_vec(projections)?)?;
    let path = out.join("index.html");
    let html = page(&projections.title, None, &body(projections, &folders));
    write_atomic(&path, html.as_bytes())?;
    Ok(path)
}

fn stem(shown: &ImageProjections) -> &str {
    Path::new(&shown.name).file_stem().and_then(|s| s.to_str()).unwrap_or("image")
}

/// The layers of one image with names fit for a path.
fn named(layers: &[LayerProjections]) -> impl Iterator<Item = (&LayerProjections, String)> {
    let mut slugs = Slugs::default();
    layers.iter().map(move |layer| (layer, slugs.make(&layer.name)))
}

fn file(slug: &str, unit: &Unit) -> String {
    format!("{slug}-{}-{}-{}.png", unit.map, unit.y, unit.x)
}

fn body(projections: &Projections, folders: &[String]) -> Markup {
    let fixed = [
        ("Network", projections.network.as_str()),
        ("Checkpoint", &projections.checkpoint),
        ("Rule", &projections.rule),
    ];
    let own = projections.facts.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    html! {
        header.top {
            h1 { (projections.title) }
            (facts(fixed.into_iter().chain(own)))
            section.how aria-labelledby="page.how" {
                h2 id="page.how" { "How to read this" }
                p {
                    "Each pair is one unit: on the left its activation carried back to pixels "
                    (by_rule(&projections.rule)) ", all others of its layer set to zero, on the "
                    "right the part of the input that it sees. Grey is zero, lighter and darker are opposite signs, and "
                    "every picture has its own contrast. Choose a pair to see where in the whole "
                    "input it lies."
                }
                (caution())
            }
        }
        @if projections.images.len() > 1 {
            nav.toc aria-label="Images" {
                @for (shown, folder) in projections.images.iter().zip(folders) {
                    a href={ "#image." (folder) } { (shown.name) }
                }
            }
        }
        main {
            @for (shown, folder) in projections.images.iter().zip(folders) {
                (image(shown, folder))
            }
        }
        footer {
            p {
                "The numbers as data: " a href="projections.json" { "projections.json" }
                ". Made by zfnet."
            }
        }
    }
}

fn image(shown: &ImageProjections, folder: &str) -> Markup {
    let Image { width, height, .. } = shown.input;
    html! {
        section.shown id={ "image." (folder) } {
            figure.input {
                h2 { (shown.name) }
                img src={ (folder) "/input.png" } width=(width) height=(height)
                    alt={ "the network's input, " (width) " by " (height) " pixels" };
                ol.classes aria-label="Most probable classes" {
                    @for (class, probability) in &shown.classes {
                        li {
                            span { (class) }
                            span { (format!("{:.1} %", probability * 100.0)) }
                            meter min="0" max="1" value=(probability) aria-hidden="true" {}
                        }
                    }
                }
            }
            div {
                @for (layer, slug) in named(&shown.layers) {
                    h3 { (layer.name) " " small { (span(layer)) } }
                    div.units {
                        @for each in &layer.units {
                            (unit(each, &shown.input, folder, &layer.name, &slug))
                        }
                        @if layer.units.is_empty() { p { "No unit of this layer is above zero." } }
                    }
                }
            }
        }
    }
}

/// How much of the input the layer's units see.
fn span(layer: &LayerProjections) -> String {
    let Some(unit) = layer.units.first() else {
        return String::new();
    };
    let [x0, y0, x1, y1] = unit.field_box;
    format!("each unit sees {} × {} pixels", x1 - x0, y1 - y0)
}

fn unit(unit: &Unit, input: &Image, folder: &str, layer: &str, slug: &str) -> Markup {
    let Image { width, height, .. } = *input;
    let [x0, y0, x1, y1] = unit.field_box;
    let (w, h) = ((x1 - x0).max(1), (y1 - y0).max(1));
    let id = format!("{folder}.{slug}-{}-{}-{}", unit.map, unit.y, unit.x);
    let style = format!("--W:{width};--H:{height};--x:{x0};--y:{y0};--w:{w};--h:{h}");
    let name = format!("{layer} map {}", unit.map);
    let pictures = [
        (file(slug, unit), format!("projection of {name}")),
        ("input.png".into(), format!("what {name} sees")),
    ];
    let [px0, py0, px1, py1] = unit.patch.map(|edge| signed(edge.round() as i64));
    html! {
        figure.unit.crisp[w < 32] id=(id) style=(style) {
            a href={ "#" (id) } {
                @for (file, alt) in pictures {
                    span.cut {
                        img src={ (folder) "/" (file) } width=(width) height=(height)
                            loading="lazy" alt=(alt);
                    }
                }
            }
            figcaption {
                b { "map " (unit.map) ": " (short(unit.value)) }
                span.details {
                    "at y " (unit.y) ", x " (unit.x) "; in the file: x " (px0) " to " (px1) ", y " (py0)
                    " to " (py1)
                }
                span.back { " " a href={ "#image." (folder) } { "close" } }
            }
        }
    }
}
