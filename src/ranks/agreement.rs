//! Whether all ranks were given the same to do.

use std::collections::BTreeSet;
use std::path::Path;

use serde::Serialize;
use serde_json::Value;
use xxhash_rust::xxh3::xxh3_64;

use super::Ranks;
use crate::{Error, Result};

/// Characters of a difference that are shown.
const SHOWN: usize = 500;

/// Refuses ranks that differ in the program that they run or in what they are to do: by name, what makes bits, or
/// decides how often they meet.
///
/// # Errors
/// If they differ, or as [`Ranks::all_gather`].
pub(crate) fn must_agree<const N: usize>(ranks: &Ranks, own: [(&str, Value); N]) -> Result<()> {
    let own: Vec<_> = [("build", value(&program()?))].into_iter().chain(own).collect();
    let bytes = serde_json::to_vec(&own).expect("plain data");
    let all = ranks.all_gather(bytes)?;
    let read = |(rank, bytes): (usize, &Vec<u8>)| -> Result<Vec<(String, Value)>> {
        serde_json::from_slice(bytes)
            .map_err(|error| Error::Ranks(format!("what rank {rank} is to do: {error}")))
    };
    let all: Vec<_> = all.iter().enumerate().map(read).collect::<Result<_>>()?;
    for (rank, of_rank) in all.iter().enumerate() {
        for ((what, first), (_, other)) in all[0].iter().zip(of_rank) {
            if first != other {
                let of_rank = format!("at rank {rank}");
                let difference = difference(first, other, ["at rank 0", &of_rank]);
                let difference = difference.chars().take(SHOWN).collect();
                let (host, what) = (ranks.host(rank).to_owned(), what.clone());
                return Err(Error::RanksDiffer { rank, host, what, difference });
            }
        }
    }
    Ok(())
}

/// The program that runs, by its bytes.
fn program() -> Result<String> {
    let path = std::env::current_exe().map_err(Error::io("find", Path::new("this program")))?;
    let bytes = std::fs::read(&path).map_err(Error::io("read", &path))?;
    Ok(format!("{} {:016x}", env!("CARGO_PKG_VERSION"), xxh3_64(&bytes)))
}

/// Plain data as JSON. By way of text: as numbers of 64 bits those of 32 have many more digits.
pub(crate) fn value(data: &impl Serialize) -> Value {
    let text = serde_json::to_string(data).expect("plain data");
    serde_json::from_str(&text).expect("JSON")
}

/// What differs of two values: of objects the keys that do.
pub(crate) fn difference(one: &Value, other: &Value, [of_one, of_other]: [&str; 2]) -> String {
    let (Some(first), Some(second)) = (one.as_object(), other.as_object()) else {
        return format!("{one} {of_one}, {other} {of_other}");
    };
    let value = |value: Option<&Value>| value.map_or("none".into(), Value::to_string);
    let keys: BTreeSet<&String> = first.keys().chain(second.keys()).collect();
    let differ = keys.into_iter().filter(|key| first.get(*key) != second.get(*key));
    let line = |key: &String| {
        let [one, other] = [first, second].map(|object| value(object.get(key)));
        format!("{key} = {one} {of_one}, {other} {of_other}")
    };
    differ.map(line).collect::<Vec<_>>().join("; ")
}
