//! What the Python package takes of the commands: their flags as arguments of functions, what they do but for what
//! they print, and the words of errors with arguments in place of flags.

use std::ffi::OsString;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Once;

use anyhow::Result;
use clap::error::ErrorKind;
use clap::{Args, Command};

pub use super::device::{Device, DeviceArgs};
pub use super::limits::raise_open_files;
pub use super::output::harmless;
pub use super::progress::{Listener, Progress, ProgressEvent};
pub use super::study::features::Features;
pub use super::train::{Train, Trained};
use super::{advice, locked_folder, silence_decoders};
use crate::backend::Backend;
use crate::disk::{FolderLock, unlock};
use crate::model::Model;

/// What a program that is not ours does once before it calls anything here.
pub fn begin() {
    static ONCE: Once = Once::new();
    ONCE.call_once(silence_decoders);
}

/// An argument's value.
#[derive(Clone, Debug)]
pub enum Value {
    /// As if it were not given.
    None,
    /// A switch, or `true` and `false` of a flag that takes them.
    Bool(bool),
    /// As on a command line.
    Text(OsString),
    /// What a command line separates by commas.
    List(Vec<OsString>),
}

/// Arguments that are none of a command's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArgumentError {
    /// Whether there is no such argument, or one is missing; otherwise a value is wrong.
    pub signature: bool,
    /// What is wrong, in clap's words.
    pub text: String,
}

/// A command's flags, by names with underscores.
///
/// # Errors
/// If there is no such flag, one is missing, or a value is wrong.
pub fn arguments<A: Args>(given: &[(String, Value)]) -> Result<A, ArgumentError> {
    let command = command::<A>();
    let mut args = Vec::new();
    for (name, value) in given {
        let name = name.replace('_', "-");
        let known = command.get_arguments().find(|arg| arg.get_long() == Some(&name));
        let is_switch = known.is_some_and(|arg| !arg.get_action().takes_values());
        let mut flag = OsString::from(format!("--{name}"));
        match value {
            Value::None if known.is_some() => continue,
            Value::None => {} // for clap to refuse
            Value::Bool(false) if is_switch => continue,
            Value::Bool(true) if is_switch => {}
            Value::Bool(value) => write!(flag, "={value}").expect("written to memory"),
            Value::Text(text) => flag.push(joined("=", std::slice::from_ref(text))),
            Value::List(texts) => flag.push(joined("=", texts)),
        }
        args.push(flag);
    }
    let names = long_flags(&command).chain(given.iter().map(|(name, _)| name.replace('_', "-")));
    let names: Vec<String> = names.collect();
    let matches = command.try_get_matches_from(args);
    matches.and_then(|matches| A::from_arg_matches(&matches)).map_err(|error| {
        let signature =
            matches!(error.kind(), ErrorKind::UnknownArgument | ErrorKind::MissingRequiredArgument);
        let text = error.render().to_string();
        let text = text.strip_prefix("error: ").unwrap_or(&text);
        // What follows is about a command line.
        let end = ["\n\nUsage:", "\n\nFor more"].iter().filter_map(|rest| text.find(rest)).min();
        ArgumentError { signature, text: in_python(&text[..end.unwrap_or(text.len())], &names) }
    })
}

fn joined(before: &str, texts: &[OsString]) -> OsString {
    let mut all = OsString::from(before);
    all.push(texts.join(",".as_ref()));
    all
}

fn command<A: Args>() -> Command {
    let command = Command::new("zfnet").no_binary_name(true).disable_help_flag(true);
    A::augment_args(command)
}

/// The long flags of a command, for [`message`] and [`in_python`].
pub fn flags<A: Args>() -> Vec<String> {
    long_flags(&command::<A>()).collect()
}

fn long_flags(command: &Command) -> impl Iterator<Item = String> {
    command.get_arguments().filter_map(|arg| arg.get_long().map(str::to_owned))
}

/// An error and what to do about it, for a function that takes what these flags of a command say.
pub fn message(error: &anyhow::Error, flags: &[String]) -> String {
    let text = match advice::advice(error, flags) {
        Some(advice) => format!("{error:#}; {advice}"),
        None => format!("{error:#}"),
    };
    harmless(in_python(&text, flags))
}

/// A text of the command line, with the names of arguments in place of these flags.
pub fn in_python(text: &str, flags: &[String]) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("--") {
        let (before, from) = rest.split_at(at);
        let name = &from[2..];
        let len = name.find(|c: char| !c.is_ascii_lowercase() && c != '-').unwrap_or(name.len());
        let begins = before.is_empty() && out.is_empty()
            || before.ends_with(|c: char| c.is_whitespace() || "'`\"([".contains(c));
        out += before;
        if begins && flags.iter().any(|flag| *flag == name[..len]) {
            out += &name[..len].replace('-', "_");
        } else {
            out += &from[..2 + len];
        }
        rest = &name[len..];
    }
    out + rest
}

/// A folder that only one process makes a page in: locked until this is dropped.
pub struct PageFolder {
    path: PathBuf,
    lock: Option<FolderLock>,
}

impl PageFolder {
    /// Makes the folder, if need be, and locks it.
    ///
    /// # Errors
    /// If that cannot be, or another process has locked it.
    pub fn lock(path: &Path) -> Result<Self> {
        Ok(PageFolder { path: path.to_owned(), lock: Some(locked_folder(path)?) })
    }
}

impl Drop for PageFolder {
    fn drop(&mut self) {
        if let Some(lock) = self.lock.take() {
            unlock(&self.path, lock);
        }
    }
}

/// Makes the page of a model's features in a folder. No lock of this process is taken: one that a thread has while
/// another forks would stay locked in the child.
///
/// # Errors
/// As the command.
pub fn top9<B: Backend>(
    features: &Features,
    backend: &B,
    model: &Model<B>,
    out: &PageFolder,
    progress: Progress,
) -> Result<PathBuf> {
    let page = features.page(backend, model, || Ok(out.path.clone()), progress)?;
    Ok(page.expect("the only rank makes it"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(value: &str) -> Value {
        Value::Text(value.into())
    }

    fn train(more: &[(&str, Value)]) -> Result<Train, ArgumentError> {
        let needed = [("data", text("d")), ("arch", text("zfnet-mini")), ("out", text("o"))];
        let given = needed.iter().chain(more).map(|(name, value)| ((*name).into(), value.clone()));
        arguments(&given.collect::<Vec<_>>())
    }

    #[test]
    fn arguments_are_the_flags_of_the_command() {
        assert!(train(&[]).is_ok());
        let more = [
            ("learning_rate", text("1e-05")),
            ("resume", Value::Bool(true)),
            ("dry_run", Value::Bool(false)),
            ("bias_decay", Value::Bool(false)),
            ("milestones", Value::List(vec!["3".into(), "5".into()])),
            ("max_steps", Value::None),
        ];
        assert!(train(&more).is_ok());
    }

    #[test]
    fn wrong_arguments_are_told_without_dashes() {
        let error = |name, value| train(&[(name, value)]).err().unwrap();
        let unknown = error("learning_rat", text("1"));
        assert!(unknown.signature && unknown.text.contains("'learning_rate'"), "{unknown:?}");
        let without = train(&[("learning_rat", Value::None)]).err().unwrap();
        assert_eq!(without, unknown);
        let wrong = error("learning_rate", text("fast"));
        assert!(!wrong.signature && wrong.text.contains("'fast'"), "{wrong:?}");
        let missing = arguments::<Train>(&[]).err().unwrap();
        assert!(missing.signature && missing.text.contains("data <DATA>"), "{missing:?}");
        for error in [unknown, wrong, missing] {
            assert!(!error.text.contains("--") && !error.text.contains("Usage"), "{error:?}");
        }
    }

    #[test]
    fn flags_become_arguments_and_other_dashes_stay() {
        let flags = ["out", "batch-size", "keep", "b", "c"].map(str::to_owned);
        let text = "--out: try --batch-size 8, or `--keep 1`; a--b /--c -- d --- e --X --features";
        let told = "out: try batch_size 8, or `keep 1`; a--b /--c -- d --- e --X --features";
        assert_eq!(in_python(text, &flags), told);
        let error = crate::Error::RunExists { path: "run".into() }.into();
        let told = message(&error, &["resume".into(), "out".into()]);
        assert_eq!(told, "run: holds a training already; go on with resume, or choose another out");
    }
}
