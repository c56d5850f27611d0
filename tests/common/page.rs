//! A page as a browser finds it.

use std::collections::HashSet;
use std::path::Path;

/// The values of an attribute, as written.
pub fn attributes<'a>(html: &'a str, name: &str) -> Vec<&'a str> {
    let start = format!(" {name}=\"");
    html.split(&start).skip(1).map(|rest| rest.split('"').next().unwrap()).collect()
}

/// Everything a page in `out` refers to is a file beside it or an id in it, and nothing is elsewhere.
pub fn check_links(out: &Path, html: &str) {
    let ids = attributes(html, "id");
    let unique: HashSet<&str> = ids.iter().copied().collect();
    assert_eq!(ids.len(), unique.len(), "an id is used twice");
    for source in attributes(html, "src") {
        assert!(!source.contains("..") && out.join(source).is_file(), "{source}");
    }
    for target in attributes(html, "href") {
        match target.strip_prefix('#') {
            Some(id) => assert!(unique.contains(id), "{target}"),
            None if target == "data:," || target == "https://arxiv.org/abs/1805.07039" => {}
            None => assert!(!target.contains("..") && out.join(target).is_file(), "{target}"),
        }
    }
}
