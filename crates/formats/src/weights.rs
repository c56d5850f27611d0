//! What all files of bare tensors share: types of elements, a bound on what is read, and names.

use std::collections::HashSet;

use half::{bf16, f16};

use crate::chain::{Tensor, Tensors};
use crate::source::reserve;

/// What programs put before the names of all tensors, and which class of theirs does it.
const PREFIXES: [&str; 3] = ["module.", "_orig_mod.", "model."];
/// Bytes that tensors may take in memory for each byte of their file: float16 takes 4, and its bytes while it is read
/// 2 more; tied weights are read for each of their names.
const GROWTH: u64 = 16;
/// Characters of a name, at most.
pub(crate) const LONGEST_NAME: usize = 1024;

/// What a tensor's elements are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Element {
    F16,
    Bf16,
    F32,
    F64,
    /// Integers and truth values, which are no weights: counters, indices.
    Whole,
}

impl Element {
    /// Bytes of one; of integers nobody asks.
    pub(crate) fn bytes(self) -> u64 {
        match self {
            Element::Whole => 1,
            Element::F16 | Element::Bf16 => 2,
            Element::F32 => 4,
            Element::F64 => 8,
        }
    }

    /// Puts the values of bytes behind others.
    pub(crate) fn values(
        self,
        bytes: &[u8],
        big_endian: bool,
        values: &mut Vec<f32>,
    ) -> Result<(), String> {
        fn each<const N: usize>(
            bytes: &[u8],
            big_endian: bool,
            values: &mut Vec<f32>,
            value: fn([u8; N]) -> f32,
        ) {
            values.extend(bytes.as_chunks::<N>().0.iter().map(|&(mut bytes)| {
                if big_endian {
                    bytes.reverse();
                }
                value(bytes)
            }));
        }
        let begin = values.len();
        match self {
            Element::F16 => {
                each(bytes, big_endian, values, |bytes| f16::from_le_bytes(bytes).to_f32())
            }
            Element::Bf16 => {
                each(bytes, big_endian, values, |bytes| bf16::from_le_bytes(bytes).to_f32())
            }
            Element::F32 => each(bytes, big_endian, values, f32::from_le_bytes),
            Element::F64 => {
                each(bytes, big_endian, values, |bytes| f64::from_le_bytes(bytes) as f32)
            }
            Element::Whole => return Err("holds integers, which are no weights".into()),
        }
        if self == Element::F64 {
            // Infinite in the file is infinite here; the others may not become it.
            let wide = bytes.as_chunks::<8>().0.iter().map(|&(mut bytes)| {
                if big_endian {
                    bytes.reverse();
                }
                f64::from_le_bytes(bytes)
            });
            let mut pairs = wide.zip(&values[begin..]);
            if let Some((wide, _)) = pairs.find(|(w, value)| w.is_finite() && !value.is_finite()) {
                return Err(format!("has the value {wide:e}, which float32 cannot hold"));
            }
        }
        Ok(())
    }
}

/// How much may still be read.
pub(crate) struct Budget {
    left: u64,
    file: u64,
}

impl Budget {
    /// For a file of so many bytes.
    pub(crate) fn new(file: u64) -> Self {
        Self { left: file.saturating_mul(GROWTH).saturating_add(64 << 10), file }
    }

    pub(crate) fn take(&mut self, bytes: u64) -> Result<(), String> {
        match self.left.checked_sub(bytes) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => Err(format!(
                "its tensors take more than {GROWTH} times the file's {} bytes: they share storage that they would \
                 not share here; save them as tensors of their own (`tensor.clone()`)",
                self.file
            )),
        }
    }
}

/// The product of sizes, if it is one.
pub(crate) fn product(shape: &[usize]) -> Option<u64> {
    shape.iter().try_fold(1_u64, |product, &size| product.checked_mul(size as u64))
}

/// A tensor in a file, not yet read.
pub(crate) struct Found<P> {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) element: Element,
    /// Where it is.
    pub(crate) place: P,
}

/// Reads the tensors that are weights; `read` is asked for the values of each, at most as many as its shape has.
pub(crate) fn collect<P>(
    found: Vec<Found<P>>,
    ordered: bool,
    mut notes: Vec<String>,
    mut budget: Budget,
    mut read: impl FnMut(&Found<P>, &mut Budget, &mut Vec<f32>) -> Result<(), String>,
) -> Result<Tensors, String> {
    let mut names = HashSet::new();
    for Found { name, .. } in &found {
        if name.len() > LONGEST_NAME {
            return Err(format!("a tensor's name has {} characters", name.len()));
        }
        budget.take(name.len() as u64)?;
        if !names.insert(name) {
            return Err(format!("has two tensors `{}`", brief(name)));
        }
    }
    drop(names);
    let all = found.len();
    let mut tensors = Vec::new();
    let mut whole = Vec::new();
    let mut rounded = [
        (Element::F16, "float16", 0),
        (Element::Bf16, "bfloat16", 0),
        (Element::F64, "float64", 0),
    ];
    for found in &found {
        let Found { name, shape, element, .. } = found;
        if *element == Element::Whole {
            whole.push(name.clone());
            continue;
        }
        for (of, _, count) in &mut rounded {
            *count += usize::from(of == element);
        }
        let in_tensor = |reason| format!("tensor `{}` {reason}", brief(name));
        let count = product(shape).and_then(|count| Some((count, count.checked_mul(4)?)));
        let (count, bytes) = count
            .ok_or_else(|| in_tensor(format!("has the shape {shape:?}, larger than any memory")))?;
        budget.take(bytes)?;
        let mut values = Vec::new();
        reserve(&mut values, count).map_err(in_tensor)?;
        read(found, &mut budget, &mut values).map_err(in_tensor)?;
        if values.len() as u64 != count {
            return Err(in_tensor(format!("has {} values, expected {count}", values.len())));
        }
        tensors.push(Tensor { name: name.clone(), shape: shape.clone(), values });
    }
    if tensors.is_empty() {
        return Err("has no tensors of floating-point numbers: expected a network's weights".into());
    }
    let apart = match whole.len() {
        0 => String::new(),
        n => format!(
            ", of which {n} of integers {} no weights: {}",
            if n == 1 { "is" } else { "are" },
            some(&whole)
        ),
    };
    notes.push(format!("{} of {all} tensors read{apart}", tensors.len() + whole.len()));
    for (_, name, count) in rounded {
        if count > 0 {
            let tensors = if count == 1 { "tensor" } else { "tensors" };
            notes.push(format!("{count} {tensors} of {name} became float32"));
        }
    }
    take_off_prefixes(&mut tensors, &whole, &mut notes);
    Ok(Tensors { tensors, ordered, notes })
}

/// Takes off what stands before all names, of those that are no weights too.
fn take_off_prefixes(tensors: &mut [Tensor], whole: &[String], notes: &mut Vec<String>) {
    let mut off = 0;
    let has = |name: &str, off: usize, prefix: &str| {
        name.get(off..).is_some_and(|name| name.starts_with(prefix) && name.len() > prefix.len())
    };
    loop {
        let names = || tensors.iter().map(|tensor| &tensor.name).chain(whole);
        let prefix = PREFIXES.into_iter().find(|prefix| names().all(|name| has(name, off, prefix)));
        let Some(prefix) = prefix else { break };
        notes.push(format!("`{prefix}` was taken off {} names", tensors.len() + whole.len()));
        off += prefix.len();
    }
    for tensor in tensors {
        tensor.name.drain(..off);
    }
}

/// The first few names, for messages.
pub(crate) fn some<T: AsRef<str>>(names: &[T]) -> String {
    const SHOWN: usize = 4;
    let shown = names.iter().take(SHOWN).map(|name| format!("`{}`", brief(name.as_ref())));
    let mut text = shown.collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        text += &format!(" and {} more", names.len() - SHOWN);
    }
    text
}

/// A name from a file, for messages: no longer than a line, and without what would change the terminal.
pub(crate) fn brief(name: &str) -> String {
    cut(name, 80)
}

/// What may be longer than a name, for messages: another library's error, which may quote all of a file.
pub(crate) fn quoted(error: impl ToString) -> String {
    cut(&error.to_string(), 300)
}

fn cut(text: &str, most: usize) -> String {
    let mut chars = text.chars().flat_map(|char| {
        let plain = matches!(char, '"' | '\'' | '\\');
        let escaped = (!plain).then(|| char.escape_debug());
        escaped.into_iter().flatten().chain(plain.then_some(char))
    });
    let mut text: String = chars.by_ref().take(most).collect();
    if chars.next().is_some() {
        text += "...";
    }
    text
}
