//! What to do about an error, in terms of the command line: the library names no flags.

use std::io::ErrorKind;

use crate::Error;
use crate::data::shard::manifest::MANIFEST;

/// What to do about the first of an error and its causes for which that can be told to a command that has these
/// flags.
pub fn advice(error: &anyhow::Error, flags: &[String]) -> Option<String> {
    let has = |word: &str| match word.strip_prefix("--") {
        None => true,
        Some(rest) => {
            let end =
                rest.find(|c: char| !c.is_ascii_lowercase() && c != '-').unwrap_or(rest.len());
            flags.iter().any(|flag| *flag == rest[..end])
        }
    };
    let fits = |advice: &String| advice.split_whitespace().all(has);
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref())
        .find_map(|cause| on(cause).into_iter().find(fits))
}

/// Advice on an error: what is best, then what does without some flag.
fn on(error: &Error) -> Vec<String> {
    let advice = match error {
        Error::RunExists { .. } => "go on with --resume, or choose another --out",
        Error::LostRank { .. } => {
            return [
                "go on from the last checkpoint with the same command and --resume",
                "the same command goes on",
            ]
            .map(str::to_owned)
            .into();
        }
        Error::CannotShare(_) => {
            "start as many ranks as a batch has parts, or a half, a quarter, ... of them: a power of two, as --accumulate \
             says; a run that was begun keeps its own"
        }
        Error::Stopped { .. } => "the same command goes on",
        Error::ResumeMismatch { what, .. } => {
            let of_a_run = match *what {
                "seed" => "continue with the same --seed, or choose another --out",
                "number of parts of a batch" => {
                    "continue with the same --accumulate, or choose another --out"
                }
                "shuffle window" => {
                    "continue with the same --shuffle-window, or choose another --out"
                }
                "recipe" => {
                    "continue with the same flags, or take its weights into another run with --init and another --out"
                }
                _ => {
                    "continue with the same, or take its weights into another run with --init and another --out"
                }
            };
            let of_a_file = "go on with the same, or begin anew with --overwrite";
            return [of_a_run, of_a_file].map(str::to_owned).into();
        }
        Error::Diverged { .. } => {
            return [
                "try what an alarm above says, or a lower --learning-rate with another --out, there perhaps with \
                 --init from an earlier checkpoint of this run",
                "ask for more images with --per-class, or do without these networks with --no-scratch",
            ]
            .map(str::to_owned)
            .into();
        }
        Error::TrainingMemory { batch, samples, largest: Some(largest), .. }
            if (1..*samples).contains(largest) =>
        {
            let batch_in_parts = largest * batch.div_ceil(*samples);
            // Of so many any ranks make the same sum.
            let parts = batch.div_ceil(*largest).next_power_of_two();
            return vec![format!(
                "try --batch-size {batch_in_parts}, or --accumulate {parts} for the same batch in parts"
            )];
        }
        Error::NotAChain { until: Some(node), .. } => {
            let plain = |c: char| c.is_ascii_alphanumeric() || "_./:-".contains(c);
            // As a shell takes it.
            let node = match node.chars().all(plain) {
                true => node.clone(),
                false => format!("'{}'", node.replace('\'', r"'\''")),
            };
            return vec![format!("--until {node} reads what is below it")];
        }
        Error::UnknownNetwork(_) => {
            return [
                "say which with --arch NAME|FILE.toml, and if need be how images are prepared for it with --preprocess",
                "make a checkpoint of it with `zfnet import`",
            ]
            .map(str::to_owned)
            .into();
        }
        Error::UnknownPreprocessing(_) => {
            return [
                "say it as the network was trained: --preprocess torchvision (0 to 1, less ImageNet's mean, divided by \
                 its standard deviation), caffe (BGR, 0 to 255, less ImageNet's mean colour) or paper (0 to 255, less \
                 128)",
                "make a checkpoint of it with `zfnet import`",
            ]
            .map(str::to_owned)
            .into();
        }
        Error::UnknownInputSize(_) => {
            return [
                "say it with --input-size",
                "make a checkpoint of it with `zfnet import`, which is told the size",
            ]
            .map(str::to_owned)
            .into();
        }
        Error::TooManyBad { .. } => {
            return ["mend or remove them, or raise --max-bad", "mend or remove them"]
                .map(str::to_owned)
                .into();
        }
        Error::NotPacked { path } => {
            return vec![format!("make one with `zfnet pack {} SET`", path.display())];
        }
        Error::NotInShards => "leave out --shuffle-window, or make shards with `zfnet pack`",
        // The manifest comes of all shards, and says what they must be.
        Error::DamagedSet { path, .. } if path.ends_with(MANIFEST) => {
            "remove the whole set and run the same `zfnet pack` again"
        }
        Error::DamagedSet { .. } => {
            "run the same `zfnet pack` into this folder again: it makes anew what is missing or damaged"
        }
        Error::LostShard { .. } => {
            return ["restore it and go on with --resume", "restore it and run this again"]
                .map(str::to_owned)
                .into();
        }
        Error::Io { error, .. }
            if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) =>
        {
            return [
                "free some space (--keep 1 keeps fewer checkpoints) and go on with --resume",
                "free some space and run the same command again",
            ]
            .map(str::to_owned)
            .into();
        }
        Error::Io { action: "map", .. } => "read shards without mapping them: --io pread",
        Error::NoDevice(_) => "--device cpu needs no GPU",
        Error::UnsupportedPrecision { .. } => "use --precision f32",
        Error::MissingLibrary { .. } => "or use --gemm own",
        _ => return Vec::new(),
    };
    vec![advice.into()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;
    use std::path::Path;

    #[test]
    fn causes_are_advised_on() {
        let bare = Error::UnknownPreprocessing(None).in_file(Path::new("a.safetensors"));
        let error = Err::<(), _>(bare).context("reading").unwrap_err();
        let flags = ["arch", "preprocess", "batch-size", "accumulate"].map(str::to_owned);
        assert!(advice(&error, &flags).unwrap().contains("--preprocess"));
        let without = advice(&error, &flags[2..]).unwrap();
        assert!(without.contains("zfnet import"), "of a command without --preprocess: {without}");
        let memory = |largest| {
            let needs = String::new();
            let error = Error::TrainingMemory {
                wanted: 9,
                free: None,
                needs,
                batch: 64,
                samples: 32,
                largest,
            };
            advice(&error.into(), &flags)
        };
        let fits = "try --batch-size 20, or --accumulate 8 for the same batch in parts";
        assert_eq!(memory(Some(10)).unwrap(), fits);
        assert_eq!([memory(None), memory(Some(0)), memory(Some(32))], [None, None, None]);
        let branch =
            |node: &str| Error::NotAChain { reason: String::new(), until: Some(node.into()) };
        let until = ["until".to_owned()];
        let told = |node| advice(&branch(node).in_file(Path::new("a.onnx")).into(), &until);
        assert_eq!(told("relu5").unwrap(), "--until relu5 reads what is below it");
        assert_eq!(told("it's 5").unwrap(), r"--until 'it'\''s 5' reads what is below it");
        assert_eq!(advice(&branch("relu5").into(), &flags), None);
        let lost = || Error::LostShard { path: "a.tar".into(), reason: String::new() }.into();
        assert!(advice(&lost(), &["resume".into()]).unwrap().contains("--resume"));
        assert_eq!(advice(&lost(), &flags).unwrap(), "restore it and run this again");
    }
}
