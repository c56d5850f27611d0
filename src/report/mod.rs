//! Static pages: pictures and numbers become one HTML file and the pictures beside it.
//!
//! [`top9`] is the paper's Figure 2 for a network of one's own, [`projections`] the page of single
//! images, [`figure`] that of any other study, and [`run`] the report of all of them. They can be
//! opened from a disk: no server, no network, nothing fetched by a script. Names of files, classes
//! and layers are hostile input: maud escapes them in the page, `inline_json` in the data for the
//! script, and `Slugs` makes them fit for a path.

pub mod ablation;
pub mod correspondence;
pub mod diagnose;
pub mod ensemble;
pub mod evolution;
pub mod figure;
pub mod filters;
pub mod invariance;
pub mod learnt;
pub mod occlusion;
pub mod plot;
pub mod preferred;
pub mod probe;
pub mod projections;
pub mod run;
pub mod sanity;
pub mod top9;
pub mod transfer;

use std::collections::HashSet;

use maud::{DOCTYPE, Markup, PreEscaped, html};
use serde::Serialize;

use crate::disk::is_device_name;
use crate::study::Facts;
use crate::study::occluder::Fill;

/// Bytes of a fact that takes a line of its own.
const LONG: usize = 80;

/// Also of the explorer's page.
pub(crate) const COLOURS: &str = include_str!("colours.css");
const STYLE: &str = include_str!("style.css");

/// A whole page. `refresh` renews it after so many seconds.
fn page(title: &str, refresh: Option<u32>, body: &Markup) -> String {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta name="referrer" content="no-referrer";
                link rel="icon" href="data:,";
                title { (title) }
                // A script waits while a map is being looked at; without scripts the browser does
                // it.
                @if let Some(seconds) = refresh {
                    noscript { meta http-equiv="refresh" content=(seconds); }
                }
                style { (PreEscaped(COLOURS)) (PreEscaped(STYLE)) }
                script { "document.documentElement.className='js'" }
            }
            body { (body) }
        }
    }
    .into_string()
}

/// The lines under the title: what was looked at, with what.
fn facts<'a>(facts: impl IntoIterator<Item = (&'a str, &'a str)>) -> Markup {
    html! {
        dl.facts {
            @for (name, value) in facts.into_iter().filter(|(_, value)| !value.is_empty()) {
                div.long[value.len() > LONG] { dt { (name) } dd { (value) } }
            }
        }
    }
}

/// How the pictures were made, for the middle of a sentence.
fn by_rule(rule: &str) -> Markup {
    html! { "by the rule “" (if rule.is_empty() { "deconvnet" } else { rule }) "”" }
}

/// What every page of projections has to say about itself.
fn caution() -> Markup {
    html! {
        p {
            "This is not a generative model: it draws no typical image of what a map stands for, "
            "only what in "
            em { "this" }
            " image the one activation was made of. Nie et al. ("
            a href="https://arxiv.org/abs/1805.07039" { "2018" }
            ") showed that a deconvnet and guided backpropagation partly recover the image itself, "
            "whatever the class: a crisp outline is not yet evidence that the network has learned "
            "it. Compare with the same network with random weights."
        }
    }
}

/// Data for a script, safe inside a `<script>` element: no `<` is left in it.
fn inline_json(data: &impl Serialize) -> serde_json::Result<String> {
    let json = serde_json::to_string(data)?;
    Ok(json.replace('<', "\\u003c").replace('\u{2028}', "\\u2028").replace('\u{2029}', "\\u2029"))
}

/// A name and a value under the title.
/// Rows and columns in words.
fn by([rows, columns]: [usize; 2]) -> String {
    format!("{rows} × {columns}")
}

fn fact(name: &str, value: impl Into<String>) -> (String, String) {
    (name.into(), value.into())
}

/// The value of a fact; empty if there is none of this name.
fn fact_named<'a>(facts: &'a Facts, name: &str) -> &'a str {
    facts.iter().find(|(other, _)| other == name).map_or("", |(_, value)| value)
}

/// What covers a part of an image, in words.
fn covering(fill: Fill) -> &'static str {
    match fill {
        Fill::Mean => "the training images’ mean, which is zero for the network",
        Fill::Grey => "mid-grey, 128 in each channel",
        Fill::Blur => "the image itself, blurred",
    }
}

/// A file of comma-separated values: its names of columns, then its rows.
pub fn csv(head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut writer = csv::Writer::from_writer(Vec::new());
    let rows = rows.into_iter();
    // Writing into memory fails only on rows of unequal length, which would be ours.
    writer.write_record(head).expect("written into memory");
    rows.for_each(|row| writer.write_record(row).expect("as many cells as names"));
    String::from_utf8(writer.into_inner().expect("flushed into memory")).expect("made of text")
}

/// Names that are fit for a path, an address and an id, no two alike on any file system.
#[derive(Default)]
struct Slugs(HashSet<String>);

impl Slugs {
    fn make(&mut self, name: &str) -> String {
        let fit = |c: char| {
            if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' }
        };
        let mut slug: String = name.chars().take(64).map(fit).collect();
        if slug.is_empty() || is_device_name(&slug) {
            slug.push('-');
        }
        let stem = slug.clone();
        for n in 2.. {
            if self.0.insert(slug.to_lowercase()) {
                break;
            }
            slug = format!("{stem}-{n}");
        }
        slug
    }
}

/// Four digits, for captions.
pub(crate) fn short(value: f32) -> String {
    let value = rounded(value);
    let size = value.abs();
    if size >= 1e6 || size < 1e-3 && size > 0.0 {
        return format!("{value:.2e}");
    }
    let decimals = if size >= 100.0 { 0 } else { 2 - usize::from(size >= 10.0) };
    format!("{value:.*}", if size < 1.0 { 3 } else { decimals }).replace('-', "−")
}

/// Four significant digits, for the data of a script.
fn rounded(value: f32) -> f64 {
    format!("{value:.3e}").parse().unwrap_or(f64::NAN)
}

/// An integer with a true minus.
fn signed(value: i64) -> String {
    value.to_string().replace('-', "−")
}

/// 1234567 as 1,234,567.
pub(crate) fn grouped(value: usize) -> String {
    let digits = value.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

fn plural(n: usize, one: &str) -> String {
    format!("{} {one}{}", grouped(n), if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slugs_stay_in_their_folder_and_apart() {
        let mut slugs = Slugs::default();
        assert_eq!(slugs.make("conv3"), "conv3");
        assert_eq!(slugs.make("Conv3"), "Conv3-2");
        assert_eq!(slugs.make("conv3"), "conv3-3");
        assert_eq!(slugs.make("../../etc/passwd"), "------etc-passwd");
        assert_eq!(slugs.make(""), "-");
        assert_eq!(slugs.make("<b>\"é"), "-b---");
        assert!(slugs.make(&"x".repeat(5000)).len() < 100);
    }

    #[test]
    fn inline_data_cannot_end_its_script() {
        let json = inline_json(&"</script><!--\u{2028}").unwrap();
        assert_eq!(json, r#""\u003c/script>\u003c!--\u2028""#);
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), "</script><!--\u{2028}");
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(short(0.0), "0.000");
        assert_eq!(short(-2.71999), "−2.72");
        assert_eq!(short(12.3456), "12.3");
        assert_eq!(short(1234.56), "1235");
        assert_eq!(short(0.00012), "1.20e-4");
        assert_eq!(short(f32::NAN), "NaN");
        assert_eq!(rounded(1.0 / 3.0), 0.3333);
        assert_eq!(grouped(1281167), "1,281,167");
        assert_eq!(plural(1, "map"), "1 map");
        assert_eq!(signed(-16), "−16");
    }
}
