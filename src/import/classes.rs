//! The classes of a network that comes without their names.

use std::path::Path;

use serde_json::Value;
use zfnet_core::text;

use crate::data::classes::Classes;
use crate::{Error, Result};

/// ImageNet's 1,000 classes of 2012, sorted by their folders: lines of `FOLDER<TAB>NAME`, the first of WordNet's words.
const IMAGENET: &str = include_str!("imagenet.tsv");

/// The classes of a network that has `count`: from the user's file, else as the network's file or one beside it names
/// them, else ImageNet's where there are as many.
///
/// # Errors
/// If the user's file cannot be read, or has another number.
pub(super) fn resolve(
    count: usize,
    file: Option<&Path>,
    known: Vec<String>,
    notes: &mut Vec<String>,
) -> Result<Classes> {
    if let Some(path) = file {
        let (folders, names) =
            parse(&text::read(path)?).map_err(|reason| Error::file(path, reason))?;
        if names.len() != count {
            return Err(Error::file(
                path,
                format!("expected names of {count} classes, found {}", names.len()),
            ));
        }
        return Ok(folders
            .map_or_else(|| named(names.clone()), |folders| Classes::new(folders, names.clone())));
    }
    if known.len() == count && count > 0 {
        return Ok(named(known));
    }
    if !known.is_empty() {
        notes.push(format!(
            "the names of {} classes that were found are not used: the network has {count}",
            known.len()
        ));
    }
    if count == 1000 {
        notes.push(
            "the 1,000 classes are taken to be ImageNet's, in the order of their folders".into(),
        );
        return Ok(imagenet());
    }
    Ok(Classes::unknown(count))
}

/// ImageNet's 1,000 classes.
fn imagenet() -> Classes {
    let lines = IMAGENET.lines().filter_map(|line| line.split_once('\t'));
    let (folders, names) = lines.map(|(folder, name)| (folder.into(), name.into())).unzip();
    Classes::new(folders, names)
}

/// Names alone: folders of data sets may be called so too.
fn named(names: Vec<String>) -> Classes {
    let mut sorted: Vec<&String> = names.iter().collect();
    sorted.sort_unstable();
    let twice = sorted.windows(2).any(|pair| pair[0] == pair[1]);
    if twice {
        let numbers = (0..names.len()).map(|class| class.to_string()).collect();
        return Classes::new(numbers, names);
    }
    Classes::named(names)
}

type Named = (Option<Vec<String>>, Vec<String>);

/// Folders, if they are said, and names: from JSON (a list of names; `{"0": "tench"}`; `{"0": ["n01440764",
/// "tench"]}`; `{"tench": 0}`) or lines of `NAME`, `FOLDER<TAB>NAME` or `n01440764 tench, Tinca tinca`.
fn parse(text: &str) -> Result<Named, String> {
    if text.trim_start().starts_with(['{', '[']) {
        let value =
            serde_json::from_str(text).map_err(|error| format!("expected JSON, found {error}"))?;
        return of_json(value);
    }
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let with_synset = |line: &str| {
        let (synset, name) = line.split_once([' ', '\t'])?;
        let digits = synset.strip_prefix('n')?;
        let is_synset = digits.len() == 8 && digits.bytes().all(|b| b.is_ascii_digit());
        is_synset.then(|| (synset.to_owned(), name.trim().to_owned()))
    };
    let with_tab =
        |line: &str| line.split_once('\t').map(|(a, b)| (a.trim().to_owned(), b.trim().to_owned()));
    for split in [&with_synset as &dyn Fn(&str) -> Option<(String, String)>, &with_tab] {
        if let Some(pairs) = lines.iter().map(|line| split(line)).collect::<Option<Vec<_>>>() {
            let (folders, names): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
            return Ok((Some(folders), names));
        }
    }
    Ok((None, lines.into_iter().map(str::to_owned).collect()))
}

fn of_json(value: Value) -> Result<Named, String> {
    let wrong = || "expected a list of names, or an object from numbers to names".to_owned();
    let text = |value: &Value| value.as_str().map(str::to_owned).ok_or_else(wrong);
    let entries: Vec<Value> = match value {
        Value::Array(names) => names,
        Value::Object(map) => {
            let to_numbers = map.values().all(Value::is_u64); // as torchvision's `class_to_idx`
            let mut by_number = Vec::new();
            for (key, value) in map {
                by_number.push(match (value.as_u64().filter(|_| to_numbers), key.parse()) {
                    (Some(number), _) => (number as usize, Value::String(key)),
                    (None, Ok(number)) => (number, value),
                    (None, Err(_)) => return Err(wrong()),
                });
            }
            by_number.sort_by_key(|(number, _)| *number);
            if let Some(missing) = (0..by_number.len()).find(|&i| by_number[i].0 != i) {
                return Err(format!(
                    "expected names of all classes from 0 on, found none of {missing}"
                ));
            }
            by_number.into_iter().map(|(_, value)| value).collect()
        }
        _ => return Err(wrong()),
    };
    if entries.iter().all(Value::is_array) && !entries.is_empty() {
        let mut folders = Vec::new();
        let mut names = Vec::new();
        for entry in &entries {
            let [folder, name] = entry.as_array().map_or(&[][..], Vec::as_slice) else {
                return Err(wrong());
            };
            folders.push(text(folder)?);
            names.push(text(name)?);
        }
        return Ok((Some(folders), names));
    }
    Ok((None, entries.iter().map(text).collect::<Result<_, _>>()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn imagenet_has_a_thousand_different_classes() {
        let classes = imagenet();
        assert_eq!(classes.len(), 1000);
        assert_eq!(classes.position("n01440764"), Some(0));
        assert_eq!(classes.position("n15075141"), Some(999));
        assert_eq!(classes.names[0], "tench");
        let folders = classes.folders().unwrap();
        assert!(folders.windows(2).all(|pair| pair[0] < pair[1]));
    }

    #[test]
    fn files_of_names_as_they_are_found() {
        let names = ["tench", "goldfish"].map(str::to_owned).to_vec();
        let folders = ["n01440764", "n01443537"].map(str::to_owned).to_vec();
        let with = |folders: &Vec<String>| Ok((Some(folders.clone()), names.clone()));
        assert_eq!(parse("tench\ngoldfish\n\n"), Ok((None, names.clone())));
        assert_eq!(parse("n01440764\ttench\nn01443537\tgoldfish"), with(&folders));
        assert_eq!(parse("n01440764 tench\nn01443537 goldfish"), with(&folders));
        assert_eq!(parse(r#"["tench", "goldfish"]"#), Ok((None, names.clone())));
        assert_eq!(parse(r#"{"1": "goldfish", "0": "tench"}"#), Ok((None, names.clone())));
        assert_eq!(parse(r#"{"goldfish": 1, "tench": 0}"#), Ok((None, names.clone())));
        let index = r#"{"0": ["n01440764", "tench"], "1": ["n01443537", "goldfish"]}"#;
        assert_eq!(parse(index), with(&folders));
        let digits = Ok((None, ["0", "1"].map(str::to_owned).to_vec()));
        assert_eq!(parse(r#"{"1": 1, "0": 0}"#), digits);
        for wrong in [r#"{"0": "a", "2": "b"}"#, "[1, 2]", "{", r#"{"a": "b"}"#] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn names_that_are_there_twice_are_told_apart() {
        let mut notes = Vec::new();
        let classes = resolve(2, None, vec!["crane".into(); 2], &mut notes).unwrap();
        assert_ne!(classes.names[0], classes.names[1]);
        assert!(notes.is_empty());
        assert!(!resolve(7, None, Vec::new(), &mut notes).unwrap().are_known());
        assert!(resolve(1000, None, Vec::new(), &mut notes).unwrap().are_known());
        assert_eq!(notes.len(), 1);
    }
}
