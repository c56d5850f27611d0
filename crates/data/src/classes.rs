//! The classes of a data set or a network: folders identify them, people read their names.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use unicode_normalization::UnicodeNormalization;

use zfnet_core::{Error, Result, text};

/// The classes of a set or a network, by index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Classes {
    /// Readable names, of which no two look the same.
    pub names: Vec<String>,
    identity: Identity,
}

/// What two sets of classes are compared by.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Identity {
    /// The names of their folders.
    Folders(Vec<String>),
    /// Their readable names: all that checkpoints of earlier versions say.
    Names,
    /// Nothing is known but their number.
    Number,
}

impl Classes {
    /// Classes with these folders and readable names. Names that look the same get their folders' behind them.
    pub fn new(folders: Vec<String>, names: Vec<String>) -> Self {
        Classes { names: distinct(&folders, names), identity: Identity::Folders(folders) }
    }

    /// Classes of which only the names are known.
    pub fn named(names: Vec<String>) -> Self {
        Classes { names, identity: Identity::Names }
    }

    /// So many classes of which nothing is known: `class 0`, `class 1`, ...
    pub fn unknown(count: usize) -> Self {
        let names = (0..count).map(|class| format!("class {class}")).collect();
        Classes { names, identity: Identity::Number }
    }

    /// Number of classes.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// The folders' names, if they are known.
    pub fn folders(&self) -> Option<&[String]> {
        match &self.identity {
            Identity::Folders(folders) => Some(folders),
            _ => None,
        }
    }

    /// Whether anything but their number is known.
    pub fn are_known(&self) -> bool {
        self.identity != Identity::Number
    }

    /// The class of a folder or, if no folder is called so, of a readable name.
    pub fn position(&self, called: &str) -> Option<usize> {
        let find = |names: &[String]| names.iter().position(|name| name == called);
        self.folders().and_then(find).or_else(|| find(&self.names))
    }

    /// For each of other classes, which of these it is; `None` if one is none of them, or two are the same.
    pub fn positions(&self, others: &Classes) -> Option<Vec<u32>> {
        let mut taken = HashSet::new();
        let others = others.folders().unwrap_or(&others.names).iter().zip(&others.names);
        let mut position = |(folder, name): (&String, &String)| {
            let known = self.position(folder).or_else(|| self.position(name))? as u32;
            taken.insert(known).then_some(known)
        };
        others.map(&mut position).collect::<Option<_>>().filter(|_| self.are_known())
    }

    /// Where other classes differ from these: the first that does, or the numbers. Of classes about which nothing is
    /// known only the numbers are compared.
    pub fn difference(&self, found: &Classes) -> Option<String> {
        let counts = (self.len() != found.len())
            .then(|| format!("expected {} classes, found {}", self.len(), found.len()));
        let sides = [self, found].map(|classes| match &classes.identity {
            Identity::Folders(folders) => vec![folders, &classes.names],
            Identity::Names => vec![&classes.names],
            Identity::Number => vec![],
        });
        let [ours, theirs] = &sides;
        let (Some(mut expected), Some(mut other)) = (ours.first(), theirs.first()) else {
            return counts;
        };
        if (ours.len(), theirs.len()) != (2, 2) {
            // One side knows names alone: of a set without readable names they are the folders'.
            if let Some((a, b)) =
                ours.iter().flat_map(|a| theirs.iter().map(move |b| (a, b))).find(|(a, b)| a == b)
            {
                (expected, other) = (a, b);
            }
        }
        // What one side has alone tells more than the first place that differs, which sorting may have moved.
        let of_one = |these: &[String], those: &[String]| -> Vec<usize> {
            let those: HashSet<&String> = those.iter().collect();
            (0..these.len()).filter(|&i| !those.contains(&these[i])).collect()
        };
        let (missing, more) = (of_one(expected, other), of_one(other, expected));
        let alike = missing.iter().flat_map(|&m| more.iter().map(move |&o| (m, o)));
        let alike = alike.clone().find(|&(m, o)| as_seen(&expected[m]) == as_seen(&other[o]));
        let pair = alike.or_else(|| missing.first().copied().zip(more.first().copied()));
        let moved = (0..self.len().min(found.len())).find(|&i| expected[i] != other[i]);
        let first = match (pair, missing.first(), more.first(), moved) {
            (Some((m, o)), ..) => {
                let [a, b] = told_apart(&expected[m], &other[o]);
                format!("expected {a} as class {m}, found {b}")
            }
            (None, Some(&m), ..) => format!("class {m}, `{}`, is missing", expected[m]),
            (None, None, Some(&o), _) => format!("class {o}, `{}`, was not expected", other[o]),
            (None, None, None, Some(i)) => {
                let [a, b] = told_apart(&expected[i], &other[i]);
                format!("expected {a} as class {i}, found {b}")
            }
            (None, None, None, None) => return counts,
        };
        Some(counts.map_or(first.clone(), |counts| format!("{counts}: {first}")))
    }
}

/// Reads the readable names of classes, by index, from lines of `FOLDER<TAB>NAME`; further columns may follow. A class
/// without a line keeps its folder's name.
///
/// # Errors
/// If a line is something else, or the second of its class: which line. Lines of classes that are not there are told
/// in the log; a file that has no others is an error too.
pub fn read_names(path: &Path, folders: &[String]) -> Result<Vec<String>> {
    let wrong = |number: usize, what: &str| Error::file(path, format!("line {number}: {what}"));
    let by_folder: HashMap<&str, usize> = folders.iter().map(String::as_str).zip(0..).collect();
    let mut names = vec![None; folders.len()];
    let mut unknown = Vec::new();
    for (number, line) in (1..).zip(text::read(path)?.lines()) {
        if line.trim().is_empty() {
            continue;
        }
        let mut columns = line.split('\t').map(str::trim);
        let (Some(folder), Some(name)) = (columns.next(), columns.next()) else {
            let reason = format!(
                "expected a class's folder, a tab and its name, found {line:?} without a tab"
            );
            return Err(wrong(number, &reason));
        };
        if folder.is_empty() || name.is_empty() {
            return Err(wrong(
                number,
                &format!("expected a class's folder, a tab and its name, found {line:?}"),
            ));
        }
        match by_folder.get(folder) {
            None => unknown.push((number, folder.to_owned())),
            Some(&class) => {
                if let Some((first, _)) = names[class].replace((number, name.to_owned())) {
                    return Err(wrong(
                        number,
                        &format!("names {folder} again, after line {first}"),
                    ));
                }
            }
        }
    }
    if unknown.is_empty() && names.iter().all(Option::is_none) && !folders.is_empty() {
        return Err(Error::file(
            path,
            "is empty; expected lines of a class's folder, a tab and its name",
        ));
    }
    if let Some((number, folder)) = unknown.first() {
        let none = names.iter().all(Option::is_none);
        let alike = folders.iter().find(|known| as_seen(known) == as_seen(folder));
        let shown = alike.map_or(format!("`{folder}`"), |known| {
            let [there, here] = told_apart(folder, known);
            format!("{there}; the folder is {here}")
        });
        let found = format!(
            "{} line(s) of classes that are not there, the first in line {number}: {shown}",
            unknown.len()
        );
        if none {
            let example = folders.first().map_or("", String::as_str);
            return Err(Error::file(
                path,
                format!("has no line of a class (`{example}`, say), but {found}"),
            ));
        }
        tracing::warn!("{}: has {found}", path.display());
    }
    let name = |(name, folder): (Option<(usize, String)>, &String)| {
        name.map_or_else(|| folder.clone(), |(_, name)| name)
    };
    Ok(names.into_iter().zip(folders).map(name).collect())
}

/// Names of which no two look the same: those that do get their folders' names behind them and, where these look the
/// same too, their characters' numbers.
fn distinct(folders: &[String], names: Vec<String>) -> Vec<String> {
    let with_folder = |class: usize, name: &str| match &folders[class] {
        folder if folder == name => name.to_owned(),
        folder => format!("{name} ({folder})"),
    };
    let with_numbers =
        |class: usize, name: &str| format!("{name} [{}]", code_points(&folders[class]));
    let names = mark_alike(names, with_folder);
    mark_alike(names, with_numbers)
}

fn mark_alike(names: Vec<String>, mark: impl Fn(usize, &str) -> String) -> Vec<String> {
    let mut alike: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (class, name) in names.iter().enumerate() {
        alike.entry(as_seen(name)).or_default().push(class);
    }
    let mut marked = names.clone();
    for class in alike.into_values().filter(|classes| classes.len() > 1).flatten() {
        marked[class] = mark(class, &names[class]);
    }
    marked
}

/// What a name looks like: composed, without what is not seen.
fn as_seen(name: &str) -> String {
    let seen =
        name.nfkc().filter(|c| !matches!(c, '\u{200b}'..='\u{200f}' | '\u{feff}' | '\u{ad}'));
    seen.collect::<String>().split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Two different names in quotes, with their characters' numbers where they look the same.
fn told_apart(a: &str, b: &str) -> [String; 2] {
    if as_seen(a) == as_seen(b) {
        [a, b].map(|name| format!("`{name}` ({})", code_points(name)))
    } else {
        [a, b].map(|name| format!("`{name}`"))
    }
}

fn code_points(name: &str) -> String {
    name.chars().map(|c| format!("U+{:04X}", u32::from(c))).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn classes(folders: &[&str], names: &[&str]) -> Classes {
        Classes::new(strings(folders), strings(names))
    }

    #[test]
    fn names_that_look_the_same_are_told_apart() {
        let cranes = classes(&["n02012849", "n03126707", "n9"], &["crane", "crane", "heron"]);
        assert_eq!(cranes.names, ["crane (n02012849)", "crane (n03126707)", "heron"]);
        let forms = ["e\u{301}", "\u{e9}"];
        let accents = classes(&forms, &forms);
        assert_eq!(accents.names, ["e\u{301} [U+0065 U+0301]", "\u{e9} [U+00E9]"]);
        assert_eq!((accents.position("\u{e9}"), accents.position("e\u{301}")), (Some(1), Some(0)));
        assert_eq!((cranes.position("heron"), cranes.position("n9")), (Some(2), Some(2)));
    }

    #[test]
    fn folders_are_what_is_compared() {
        let plain = classes(&["a", "b"], &["a", "b"]);
        let named = classes(&["a", "b"], &["ant", "bee"]);
        assert_eq!((plain.difference(&named), named.difference(&plain)), (None, None));
        // Of earlier versions: trained with names or without them.
        for old in [["a", "b"], ["ant", "bee"]] {
            assert_eq!(Classes::named(strings(&old)).difference(&named), None);
            assert_eq!(named.difference(&Classes::named(strings(&old))), None);
        }
        assert!(Classes::named(strings(&["ant", "bee"])).difference(&plain).is_some());
        assert_eq!(Classes::unknown(2).difference(&named), None);
        assert!(
            Classes::unknown(3).difference(&named).unwrap().contains("expected 3 classes, found 2")
        );
        // Names that a program might make up are names.
        let made_up = classes(&["class 0", "class 1"], &["class 0", "class 1"]);
        let difference = made_up.difference(&plain).unwrap();
        assert_eq!(difference, "expected `class 0` as class 0, found `a`");
        let many = ["a", "b", "c", "d", "e", "x"];
        let others = ["a", "b", "c", "d", "e", "y"];
        let difference = classes(&many, &many).difference(&classes(&others, &others)).unwrap();
        assert_eq!(difference, "expected `x` as class 5, found `y`");
        let more = classes(&many, &many).difference(&classes(&many[..4], &many[..4])).unwrap();
        assert_eq!(more, "expected 6 classes, found 4: class 4, `e`, is missing");
        let difference =
            classes(&["e\u{301}"], &["é"]).difference(&classes(&["\u{e9}"], &["é"])).unwrap();
        assert_eq!(
            difference,
            "expected `e\u{301}` (U+0065 U+0301) as class 0, found `\u{e9}` (U+00E9)"
        );
    }
}
