//! Files of PyTorch: zip files (`torch.save` since 1.6), the stream of pickles before (0.1.11 to 1.5), and the tar before
//! that. Nothing of them is executed: what a pickle would call is a name here, and the few that make tensors are known.
//!
//! The reader is ours, and small. The crate `pytorch-reader` (0.22.1), the best kept of those that there are, stood the
//! hostile files of our tests without a panic, but it does not keep the order of a state dict, which is all that tells
//! layers apart when their names differ. Besides, a dictionary that was remembered before it was filled, as Python does
//! it, is empty wherever the pickle refers to it again; one object with tensors that it does not know makes the whole
//! file unreadable; of two tensors of one name one is lost; a file of 643 bytes with a stride of 0 makes a tensor of
//! 8 GiB, one of 100 MB of empty lists takes 8.7 GB.

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::io::{BufRead, Read, Seek};
use std::path::Path;

use crc_fast::{CrcAlgorithm, Digest};
use zfnet_core::{Error, Result};

use crate::chain::Tensors;
use crate::kind::{Kind, of};
use crate::source::{self, Source};
use crate::weights::{Budget, Element, Found, brief, collect, product, some};
use pickle::{Call, Id, NONE, Node, Pickle};

mod pickle;
pub(crate) mod tar;
pub(crate) mod zip;

/// The keys under which checkpoints have a network's state dict, the one that is asked first before the others.
const STATE_DICTS: [&str; 14] = [
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "model_state",
    "weights",
    "params",
    "module",
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "ema",
    "params_ema",
];
/// Parts of keys under which checkpoints have tensors that are no network's.
const COMPANY: [&str; 6] = ["optim", "sched", "scaler", "rng", "callback", "loops"];
/// How deep modules lie in modules, at most.
const DEEPEST: usize = 64;
/// Entries of a state dict, at most.
const MOST: usize = 1 << 16;
/// Axes of a tensor, at most.
const MOST_AXES: usize = 16;

/// Reads the tensors of a file of PyTorch, in the order of its state dict: float32, float16, bfloat16 and float64 as
/// f32. Those of integers are no weights, and are only counted. The notes say which of a checkpoint's state dicts it is,
/// what was taken off all names, and what was left out.
///
/// # Errors
/// If it cannot be read; if it is no such file, and what it is then; if it is damaged, or holds no network's tensors.
pub fn read(path: &Path) -> Result<Tensors> {
    let file = source::open(path)?;
    parse(file).map_err(|reason| Error::file(path, reason))
}

/// Reads the tensors of what a file holds.
#[doc(hidden)]
pub fn parse(file: impl Read + Seek) -> Result<Tensors, String> {
    let mut file = Source::new(file)?;
    let contents = match of(&mut file, None)? {
        Kind::PytorchZip => from_zip(&mut file)?,
        Kind::PytorchStream => from_stream(&mut file)?,
        Kind::PytorchTar => tar::read(&mut file)?,
        other => {
            return Err(format!("expected a file that torch.save wrote, found {}", other.text()));
        }
    };
    let mut reader = Reader::new(&contents);
    let found = reader.network()?;
    let notes = reader.notes;
    let budget = Budget::new(file.len());
    collect(found, true, notes, budget, |found, budget, values| {
        let View { storage, offset, strides } = &found.place;
        let place = contents.storages.get(storage).ok_or_else(|| {
            format!("lies in the storage `{}`, which the file does not have: it is damaged; get it again", brief(storage))
        })?;
        let element = found.element.bytes();
        let (begin, end) = extent(&found.shape, strides, *offset)
            .and_then(|end| Some((offset.checked_mul(element)?, end.checked_mul(element)?)))
            .filter(|&(begin, end)| begin <= end && end <= place.bytes)
            .ok_or_else(|| {
                format!(
                    "of shape {:?} and strides {strides:?} from {offset} on is larger than its storage of {} bytes: it \
                     is damaged; get it again",
                    found.shape, place.bytes
                )
            })?;
        budget.take(end - begin)?;
        let at = place.at + begin;
        if is_contiguous(&found.shape, strides) {
            let mut digest = Digest::new(CrcAlgorithm::Crc32IsoHdlc);
            file.pieces(at, end - begin, |piece| {
                digest.update(piece);
                found.element.values(piece, contents.big_endian, values)
            })?;
            // Where a tensor is a part of its storage, its bytes have no checksum of their own.
            if place.crc != 0
                && end - begin == place.bytes
                && digest.finalize() != u64::from(place.crc)
            {
                return Err("is not as it was written (its checksum differs): get it again".into());
            }
            return Ok(());
        }
        let bytes = file.read(at, end - begin)?;
        let mut index = vec![0; found.shape.len()];
        let mut at = 0;
        for _ in 0..product(&found.shape).expect("checked") {
            let bytes = &bytes[(at * element) as usize..][..element as usize];
            found.element.values(bytes, contents.big_endian, values)?;
            for ((index, &size), &stride) in index.iter_mut().zip(&found.shape).zip(strides).rev() {
                *index += 1;
                at += stride;
                if *index < size {
                    break;
                }
                at -= stride * size as u64;
                *index = 0;
            }
        }
        Ok(())
    })
}

/// One behind the last element of a view in its storage.
fn extent(shape: &[usize], strides: &[u64], offset: u64) -> Option<u64> {
    if product(shape)? == 0 {
        return Some(offset);
    }
    let last = shape.iter().zip(strides).try_fold(offset, |last, (&size, &stride)| {
        // So that no step of the walk over it overflows either.
        stride.checked_mul(size as u64)?;
        last.checked_add(stride * (size as u64 - 1))
    })?;
    last.checked_add(1)
}

/// Whether elements lie one behind the other; steps along an axis of size one are never taken.
fn is_contiguous(shape: &[usize], strides: &[u64]) -> bool {
    let mut step = 1;
    shape.iter().zip(strides).rev().all(|(&size, &stride)| {
        let fits = size <= 1 || stride == step;
        step = step.wrapping_mul(size as u64); // only where the product of all is 0
        fits
    })
}

/// What a file holds: its objects, and where the bytes of tensors are.
struct Contents {
    pickle: Pickle,
    /// By their keys.
    storages: HashMap<String, zip::Place>,
    /// Tensors that the pickle refers to by their keys: the tar's.
    tensors: HashMap<String, Meta>,
    big_endian: bool,
}

/// A tensor, without its values.
#[derive(Clone, Debug)]
struct Meta {
    shape: Vec<usize>,
    element: Element,
    view: View,
}

/// Where a tensor's values lie.
#[derive(Clone, Debug)]
struct View {
    /// The storage's key.
    storage: String,
    /// Its first element there.
    offset: u64,
    /// Elements from one index to the next, an axis each.
    strides: Vec<u64>,
}

/// A storage, as tensors refer to it.
#[derive(Clone, Debug)]
struct Storage {
    key: String,
    kind: StorageKind,
    /// Elements that it says to have; those of a part of a storage.
    elements: u64,
    /// Where that part begins.
    offset: u64,
}

/// What a storage holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct StorageKind {
    /// `None` if no tensor of them can be weights.
    element: Option<Element>,
    /// Bytes of an element.
    bytes: u64,
}

/// What a storage's class says that it holds; `None` if it is no such class.
fn storage_kind(class: &str) -> Option<StorageKind> {
    let (module, name) = class.rsplit_once('.')?;
    if module != "torch" && !module.starts_with("torch.") {
        return None;
    }
    let (element, bytes) = match name.strip_suffix("Storage")? {
        "Half" => (Some(Element::F16), 2),
        "BFloat16" => (Some(Element::Bf16), 2),
        "Float" => (Some(Element::F32), 4),
        "Double" => (Some(Element::F64), 8),
        "Bool" | "Byte" | "Char" => (Some(Element::Whole), 1),
        "Short" => (Some(Element::Whole), 2),
        "Int" => (Some(Element::Whole), 4),
        "Long" => (Some(Element::Whole), 8),
        "Untyped" | "QInt8" | "QUInt8" | "QUInt4x2" | "QUInt2x4" => (None, 1),
        "QInt32" => (None, 4),
        "ComplexFloat" => (None, 8),
        "ComplexDouble" => (None, 16),
        _ => return None,
    };
    Some(StorageKind { element, bytes })
}

fn damaged(what: &str) -> String {
    format!("is damaged: {what}; get it again")
}

/// A number of Python's that may not be negative.
fn unsigned(pickle: &Pickle, id: Id) -> Option<u64> {
    u64::try_from(pickle.int(id)?).ok()
}

/// Keys of storages are numbers or text.
fn key(pickle: &Pickle, id: Id) -> Option<String> {
    match pickle.node(id) {
        Node::Text(text) => Some(text.to_string()),
        Node::Int(number) => Some(number.to_string()),
        _ => None,
    }
}

/// What a reference to a storage says: `("storage", class, key, device, elements)`, and of a part of one in the older
/// files `(key, offset, elements)` behind it.
fn storage(pickle: &Pickle, id: Id) -> Result<Storage, String> {
    let parts = || match pickle.tuple(id)? {
        &[tag, class, key_of, _device, elements, ref part @ ..]
            if pickle.text(tag) == Some("storage") =>
        {
            let class = pickle.global(class).or(pickle.text(class))?;
            let (key, elements) = (key(pickle, key_of)?, unsigned(pickle, elements)?);
            let part = match *part {
                [part] if part != NONE => match *pickle.tuple(part)? {
                    [_, offset, elements] => {
                        Some((unsigned(pickle, offset)?, unsigned(pickle, elements)?))
                    }
                    _ => return None,
                },
                _ => None,
            };
            Some((class, key, elements, part))
        }
        _ => None,
    };
    let (class, key, elements, part) =
        parts().ok_or_else(|| damaged("a storage of a form that is not known"))?;
    let kind = storage_kind(class)
        .ok_or_else(|| format!("holds a storage of `{}`, which is not known", brief(class)))?;
    let (offset, elements) = match part {
        None => (0, elements),
        Some((offset, of_part)) => {
            let inside = offset.checked_add(of_part).is_some_and(|end| end <= elements);
            if !inside {
                return Err(damaged("a part of a storage that is larger than the storage"));
            }
            (offset, of_part)
        }
    };
    Ok(Storage { key, kind, elements, offset })
}

/// A zip file's.
fn from_zip<R: Read + Seek>(file: &mut Source<R>) -> Result<Contents, String> {
    let entries = zip::list(file)?;
    let places = zip::places(file, &entries)?;
    let is_root = |folder: &str| folder.is_empty() || folder.ends_with('/');
    let roots = places.keys().filter_map(|name| name.strip_suffix("data.pkl"));
    let root = roots.filter(|folder| is_root(folder)).min_by_key(|folder| folder.len());
    let root = root.ok_or("has no `data.pkl`: expected a zip file that torch.save wrote")?;
    let pickle = places[&format!("{root}data.pkl")];
    let big_endian = match places.get(&format!("{root}byteorder")) {
        None => false,
        Some(place) => match &file.peek(place.at, place.bytes.min(8))?[..] {
            b"little" => false,
            b"big" => true,
            _ => return Err(damaged("expected the byte order little or big, found neither")),
        },
    };
    let pickle = pickle::load(&mut file.stream(pickle.at)?.take(pickle.bytes))?;
    let folder = format!("{root}data/");
    let storages = places
        .iter()
        .filter_map(|(name, &place)| Some((name.strip_prefix(&folder)?.to_string(), place)))
        .collect();
    Ok(Contents { pickle, storages, tensors: HashMap::new(), big_endian })
}

/// Reads the pickle that says of what machine a file is.
fn is_big_endian(system: &Pickle) -> Result<bool, String> {
    match system.get(system.root, "little_endian").map(|id| system.node(id)) {
        Some(Node::Bool(little)) => Ok(!little),
        _ => Err(damaged("it does not say its byte order")),
    }
}

/// A stream's: a magic number, a version, the machine, the objects, the keys of storages in the order in which they
/// follow, each as the number of its elements and the elements.
fn from_stream<R: Read + Seek>(file: &mut Source<R>) -> Result<Contents, String> {
    let mut stream = file.stream(0)?;
    pickle::load(&mut stream)?;
    let version = pickle::load(&mut stream)?;
    if version.int(version.root) != Some(1001) {
        return Err("expected version 1001 of PyTorch's older format, found another".into());
    }
    let big_endian = is_big_endian(&pickle::load(&mut stream)?)?;
    let pickle = pickle::load(&mut stream)?;
    let keys = pickle::load(&mut stream)?;
    let mut at = stream.stream_position().map_err(source::failed)?;
    drop(stream);
    let mut bytes = HashMap::new();
    for (_, node) in pickle.nodes() {
        let Node::Persistent(id) = *node else { continue };
        let tag = pickle.tuple(id).and_then(|parts| pickle.text(*parts.first()?));
        if tag == Some("storage") {
            let Storage { key, kind, .. } = storage(&pickle, id)?;
            let before = bytes.insert(key, kind.bytes);
            if before.is_some_and(|before| before != kind.bytes) {
                return Err(damaged("a storage of two types"));
            }
        }
    }
    let mut storages = HashMap::new();
    let listed =
        keys.sequence(keys.root).ok_or_else(|| damaged("it does not list its storages"))?;
    for &id in listed {
        let key = key(&keys, id).ok_or_else(|| damaged("a storage without a key"))?;
        let element =
            bytes.get(&key).ok_or_else(|| damaged("a storage of which no type is said"))?;
        let count = file.read(at, 8)?.try_into().expect("eight bytes");
        let count = if big_endian { u64::from_be_bytes(count) } else { u64::from_le_bytes(count) };
        let bytes = count.checked_mul(*element);
        let end =
            bytes.and_then(|bytes| (at + 8).checked_add(bytes)).filter(|&end| end <= file.len());
        let (Some(bytes), Some(end)) = (bytes, end) else {
            return Err(format!(
                "is cut short: the storage `{}` of {count} elements reaches beyond its end; get it again",
                brief(&key)
            ));
        };
        storages.insert(key, zip::Place { at: at + 8, bytes, crc: 0 });
        at = end;
    }
    Ok(Contents { pickle, storages, tensors: HashMap::new(), big_endian })
}

/// Finds a network's tensors among a file's objects.
struct Reader<'a> {
    contents: &'a Contents,
    pickle: &'a Pickle,
    /// Whether tensors are reached from an object.
    reaches: Vec<bool>,
    notes: Vec<String>,
    /// Items that may still be looked at: references to one dictionary from many places would make more of few bytes.
    left: Cell<usize>,
}

/// A key and what it stands for.
type Item = (String, Id);

impl<'a> Reader<'a> {
    fn new(contents: &'a Contents) -> Self {
        let pickle = &contents.pickle;
        let reaches = reaching_tensors(pickle);
        let left = Cell::new(16 * pickle.len() + MOST);
        Self { contents, pickle, reaches, notes: Vec::new(), left }
    }

    /// The network's tensors, wherever in the file they are.
    fn network(&mut self) -> Result<Vec<Found<View>>, String> {
        let mut at = self.pickle.root;
        let mut path: Vec<String> = Vec::new();
        for _ in 0..DEEPEST {
            match self.inside(at)? {
                Some((key, value)) => {
                    path.push(key);
                    at = value;
                }
                None => {
                    let mut tensors = Vec::new();
                    let mut left_out = Vec::new();
                    self.walk(at, "", 0, &mut tensors, &mut left_out).map_err(
                        |reason| match path.is_empty() {
                            true => reason,
                            false => format!("in `{}`: {reason}", path.join("`, `")),
                        },
                    )?;
                    if self.left.get() == 0 {
                        return Err(format!(
                            "has more than {MOST} entries: expected one network's state dict"
                        ));
                    }
                    if tensors.is_empty() {
                        return Err("has no tensors: expected a network's state dict, as in \
                                    torch.save(model.state_dict(), ...)"
                            .into());
                    }
                    if self.pickle.sequence(at).is_some() {
                        self.notes.push("the tensors of a list are named by their numbers".into());
                    }
                    if !path.is_empty() {
                        self.notes.insert(
                            0,
                            format!("the state dict is that of `{}`", path.join("`, `")),
                        );
                    }
                    if !left_out.is_empty() {
                        self.notes.push(format!("left out: {}", some(&left_out)));
                    }
                    return Ok(tensors);
                }
            }
        }
        Err("has dictionaries too deep in each other: expected a state dict".into())
    }

    /// The object in a checkpoint that is the network's; `None` if the whole is.
    fn inside(&mut self, id: Id) -> Result<Option<Item>, String> {
        if self.tensor(id)?.is_some() {
            return Err("holds a single tensor: expected a network's state dict, as in \
                        torch.save(model.state_dict(), ...)"
                .into());
        }
        if self.module(id).is_some() {
            return Ok(None);
        }
        let Some(items) = self.items(id) else { return Ok(None) };
        let (mut direct, mut flat) = (0, false);
        let mut holders: Vec<Item> = Vec::new();
        let mut others = Vec::new();
        for (key, value) in items {
            if !self.reaches[value as usize] {
                others.push(key);
                continue;
            }
            match self.tensor(value) {
                Ok(None) if is_company(&key) => others.push(key),
                Ok(None) => holders.push((key, value)),
                // What is wrong with one matters only if it is the network's.
                Ok(Some(_)) | Err(_) => {
                    direct += 1;
                    flat |= key.contains('.');
                }
            }
        }
        if direct == 0 && holders.is_empty() && self.reaches[id as usize] {
            return Err(format!(
                "holds tensors, but no network's: {}; expected a state dict, as in torch.save(model.state_dict(), ...)",
                some(&others)
            ));
        }
        // Names of layers and parameters: it is a state dict itself.
        if flat {
            return Ok(None);
        }
        let known = STATE_DICTS.iter().find_map(|known| {
            let place = holders.iter().position(|(key, _)| key == known)?;
            Some(holders.remove(place))
        });
        let chosen = match known {
            Some(known) => known,
            None if direct > 0 || holders.is_empty() => return Ok(None),
            None if holders.len() == 1 => holders.remove(0),
            None if holders.iter().all(|&(_, value)| self.is_layer(value)) => return Ok(None),
            None => {
                let keys: Vec<_> = holders.iter().map(|(key, _)| key).collect();
                return Err(format!(
                    "holds tensors in several places: {}; save the state dict of one network alone, as in \
                     torch.save(checkpoint[{:?}], ...)",
                    some(&keys),
                    brief(keys[0])
                ));
            }
        };
        if !holders.is_empty() {
            let keys: Vec<_> = holders.iter().map(|(key, _)| key).collect();
            self.notes.push(format!("left out, though there are tensors in it: {}", some(&keys)));
        }
        if direct > 0 {
            let tensors = if direct == 1 { "tensor" } else { "tensors" };
            self.notes.push(format!("left out: {direct} {tensors} beside `{}`", brief(&chosen.0)));
        }
        if !others.is_empty() {
            self.notes.push(format!("left out: {}", some(&others)));
        }
        Ok(Some((brief(&chosen.0), chosen.1)))
    }

    /// Whether it is a dictionary of tensors whose keys are one word each: a layer's.
    fn is_layer(&self, id: Id) -> bool {
        self.items(id).is_some_and(|items| {
            items.iter().all(|(key, value)| {
                !key.contains('.') && matches!(self.tensor(*value), Ok(Some(_)))
            })
        })
    }

    /// The tensors under an object, with their names. Of a module those that its state dict would have.
    fn walk(
        &mut self,
        id: Id,
        name: &str,
        depth: usize,
        tensors: &mut Vec<Found<View>>,
        left_out: &mut Vec<String>,
    ) -> Result<(), String> {
        if self.left.get() == 0 || tensors.len() + left_out.len() > MOST {
            return Err(format!("has more than {MOST} entries: expected one network's state dict"));
        }
        if let Some(Meta { shape, element, view }) =
            self.tensor(id).map_err(|reason| in_entry(name, reason))?
        {
            tensors.push(Found { name: name.into(), shape, element, place: view });
            return Ok(());
        }
        if !self.reaches[id as usize] {
            // Modules without weights are no loss.
            if !name.is_empty() && self.module(id).is_none() {
                left_out.push(brief(name));
            }
            return Ok(());
        }
        let module = self.module(id);
        let may_be_company = depth == 0 && module.is_none();
        let items = module.or_else(|| self.items(id)).ok_or_else(|| {
            let reason = "with tensors, which is not known: save the state dict alone";
            in_entry(name, format!("is an object of `{}` {reason}", brief(self.class(id))))
        })?;
        if depth == DEEPEST {
            return Err(format!("has modules more than {DEEPEST} deep in each other"));
        }
        for (key, value) in items {
            if value == NONE {
                continue;
            }
            if may_be_company && is_company(&key) && matches!(self.tensor(value), Ok(None)) {
                left_out.push(brief(&key));
                continue;
            }
            let name = if name.is_empty() { key } else { format!("{name}.{key}") };
            if name.len() > crate::weights::LONGEST_NAME {
                return Err(format!("a tensor's name has {} characters", name.len()));
            }
            self.walk(value, &name, depth + 1, tensors, left_out)?;
        }
        Ok(())
    }

    /// The class of an object, for messages.
    fn class(&self, id: Id) -> &'a str {
        match self.pickle.node(id) {
            Node::Call(call) => match self.pickle.node(call.callable) {
                Node::Global(name) if name.ends_with(".__newobj__") => {
                    let class = self.pickle.tuple(call.args).and_then(|args| args.first());
                    class.and_then(|&class| self.pickle.global(class)).unwrap_or("object")
                }
                Node::Global(name) => name,
                Node::Persistent(_) => "class",
                _ => "object",
            },
            Node::Global(name) => name,
            _ => "object",
        }
    }

    /// What an object has by names: a dictionary's items, the attributes of what is no dictionary, a sequence's
    /// elements by their numbers.
    fn items(&self, id: Id) -> Option<Vec<Item>> {
        let pairs = match self.pickle.node(id) {
            Node::Dict(items) => self.named(items),
            Node::Tuple(items) | Node::List(items) => {
                self.look(items.len());
                (0..).map(|n: usize| n.to_string()).zip(items.iter().copied()).collect()
            }
            Node::Call(call) if !call.items.is_empty() => self.named(&call.items),
            Node::Call(call) => match self.pairs_of(call) {
                Some(pairs) => self.named(&pairs),
                None => match self.pickle.node(self.attributes(call)) {
                    Node::Dict(items) => self.named(items),
                    _ => return None,
                },
            },
            _ => return None,
        };
        Some(pairs)
    }

    /// What a dictionary is made of where it is made of pairs: `OrderedDict([(key, value), ...])`.
    fn pairs_of(&self, call: &Call) -> Option<Vec<(Id, Id)>> {
        let &[pairs] = self.pickle.tuple(call.args)? else { return None };
        let pairs = self.pickle.sequence(pairs)?.iter();
        let pairs = pairs.map(|&pair| match *self.pickle.sequence(pair)? {
            [key, value] => Some((key, value)),
            _ => None,
        });
        pairs.collect()
    }

    /// The dictionary of an object's attributes; with slots it is the first of two.
    fn attributes(&self, call: &Call) -> Id {
        match self.pickle.tuple(call.state) {
            Some(&[attributes, _slots]) => attributes,
            _ => call.state,
        }
    }

    /// Whether so many items may still be looked at; if not, the walk ends with an error.
    fn look(&self, items: usize) -> bool {
        self.left.set(self.left.get().saturating_sub(items));
        self.left.get() > 0
    }

    /// Names and values in their order; of a key that comes again the last value, in the first's place.
    fn named(&self, items: &[(Id, Id)]) -> Vec<Item> {
        if !self.look(items.len() + 1) {
            return Vec::new();
        }
        let mut named: Vec<Item> = Vec::new();
        let mut places = HashMap::new();
        for &(id, value) in items {
            let key = key(self.pickle, id).unwrap_or_else(|| format!("?{}", named.len()));
            match places.get(&key) {
                Some(&place) => {
                    let item: &mut Item = &mut named[place];
                    item.1 = value;
                }
                None => {
                    places.insert(key.clone(), named.len());
                    named.push((key, value));
                }
            }
        }
        named
    }

    /// What a module's state dict has: its parameters, its buffers but for those that are not saved, its modules.
    fn module(&self, id: Id) -> Option<Vec<Item>> {
        let Node::Call(call) = self.pickle.node(id) else { return None };
        let attributes = self.attributes(call);
        if let Node::Dict(items) = self.pickle.node(attributes) {
            self.look(items.len());
        }
        let tables = ["_parameters", "_buffers", "_modules"];
        let [parameters, buffers, modules] = tables.map(|table| self.pickle.get(attributes, table));
        let (parameters, buffers, modules) = (parameters?, buffers?, modules?);
        let mut items = self.items(parameters)?;
        let unsaved = self.pickle.get(attributes, "_non_persistent_buffers_set");
        let unsaved = unsaved.and_then(|id| self.set(id)).unwrap_or_default();
        items.extend(self.items(buffers)?.into_iter().filter(|(name, _)| !unsaved.contains(name)));
        items.extend(self.items(modules)?);
        Some(items)
    }

    /// The texts of a set, which old pickles make of a list.
    fn set(&self, id: Id) -> Option<HashSet<String>> {
        let items = match self.pickle.node(id) {
            Node::Call(call) => match *self.pickle.tuple(call.args)? {
                [items] => self.pickle.sequence(items)?,
                _ => return None,
            },
            _ => self.pickle.sequence(id)?,
        };
        if !self.look(items.len()) {
            return None;
        }
        Some(items.iter().filter_map(|&item| Some(self.pickle.text(item)?.to_string())).collect())
    }

    /// The tensor that an object is, if it is one.
    fn tensor(&self, id: Id) -> Result<Option<Meta>, String> {
        let mut id = id;
        // Parameters hold tensors; so a few steps, and no more than a few.
        for _ in 0..4 {
            match self.pickle.node(id) {
                Node::Persistent(key_of) => {
                    let tensor = key(self.pickle, *key_of);
                    return Ok(tensor.and_then(|key| self.contents.tensors.get(&key).cloned()));
                }
                Node::Call(call) => {
                    let Some(mut function) = self.pickle.global(call.callable) else {
                        return Ok(None);
                    };
                    let Some(mut args) = self.pickle.tuple(call.args) else { return Ok(None) };
                    if let ("torch._tensor._rebuild_from_type_v2", &[inner, _, of_inner, ..]) =
                        (function, args)
                    {
                        let (Some(inner), Some(of_inner)) =
                            (self.pickle.global(inner), self.pickle.tuple(of_inner))
                        else {
                            return Err(damaged("a tensor of a form that is not known"));
                        };
                        (function, args) = (inner, of_inner);
                    }
                    if let (true, &[class, ref of_class @ ..]) =
                        (function.ends_with(".__newobj__"), args)
                        && let Some(class) = self.pickle.global(class)
                    {
                        (function, args) = (class, of_class);
                    }
                    match (function, args) {
                        (
                            "torch._utils._rebuild_parameter"
                            | "torch._utils._rebuild_parameter_with_state"
                            | "torch.nn.parameter.Parameter"
                            | "torch.nn.parameter.Buffer"
                            | "torch.autograd.variable.Variable",
                            &[data, ..],
                        ) => id = data,
                        (
                            "torch._utils._rebuild_tensor"
                            | "torch._utils._rebuild_tensor_v2"
                            | "torch._utils._rebuild_tensor_v3",
                            _,
                        ) => return self.rebuilt(function, args).map(Some),
                        _ if function.starts_with("torch._utils._rebuild_") => {
                            let kind = match function {
                                f if f.contains("sparse") => "a sparse tensor",
                                f if f.contains("qtensor") => "a quantised tensor",
                                f if f.contains("nested") => "a nested tensor",
                                _ => "a tensor of a kind that is not read",
                            };
                            return Err(format!(
                                "is {kind} (`{}`): expected one with a value for each element; convert it in Python \
                                 (`to_dense()`, `dequantize()`)",
                                brief(function)
                            ));
                        }
                        _ => return Ok(None),
                    }
                }
                _ => return Ok(None),
            }
        }
        Ok(None)
    }

    /// `_rebuild_tensor(storage, offset, sizes, strides, ...)`.
    fn rebuilt(&self, function: &str, args: &[Id]) -> Result<Meta, String> {
        let pickle = self.pickle;
        let &[storage_of, offset, sizes, strides, ref rest @ ..] = args else {
            return Err(damaged("a tensor without its sizes"));
        };
        let &Node::Persistent(reference) = pickle.node(storage_of) else {
            return Err(damaged("a tensor without a storage"));
        };
        let numbers = |id: Id| -> Option<Vec<u64>> {
            let numbers = pickle.sequence(id).filter(|numbers| numbers.len() <= MOST_AXES)?;
            numbers.iter().map(|&id| unsigned(pickle, id)).collect()
        };
        let sizes = numbers(sizes).and_then(|sizes| {
            sizes.into_iter().map(|size| usize::try_from(size).ok()).collect::<Option<Vec<_>>>()
        });
        let (Some(offset), Some(shape), Some(strides)) =
            (unsigned(pickle, offset), sizes, numbers(strides))
        else {
            return Err(damaged(
                "expected sizes and strides of a tensor, numbers from 0 on, found others",
            ));
        };
        let storage = storage(pickle, reference)?;
        let mut element = storage.kind.element;
        let (mut elements, bytes) = (storage.elements, storage.kind.bytes);
        if function.ends_with("_v3") {
            let dtype = rest.get(2).and_then(|&id| pickle.global(id)).unwrap_or("none");
            let (kind, bytes_of) = match dtype {
                "torch.float16" => (Some(Element::F16), 2),
                "torch.bfloat16" => (Some(Element::Bf16), 2),
                "torch.float32" => (Some(Element::F32), 4),
                "torch.float64" => (Some(Element::F64), 8),
                "torch.bool" | "torch.uint8" | "torch.int8" => (Some(Element::Whole), 1),
                "torch.uint16" | "torch.int16" => (Some(Element::Whole), 2),
                "torch.uint32" | "torch.int32" => (Some(Element::Whole), 4),
                "torch.uint64" | "torch.int64" => (Some(Element::Whole), 8),
                other => return Err(unknown_type(other)),
            };
            element = kind;
            elements = elements.saturating_mul(bytes) / bytes_of;
        }
        let class = || pickle.tuple(reference).and_then(|parts| pickle.global(parts[1]));
        let element = element.ok_or_else(|| unknown_type(class().unwrap_or("none")))?;
        // Views of negated and of conjugated values say so behind all else.
        let marks = rest.get(if function.ends_with("_v3") { 3 } else { 2 });
        if marks.is_some_and(|&marks| !matches!(pickle.node(marks), Node::None | Node::Dict(_)))
            || marks.is_some_and(
                |&marks| matches!(pickle.node(marks), Node::Dict(marks) if !marks.is_empty()),
            )
        {
            return Err(
                "is a view that changes the values it shows: save it as a tensor of its own \
                        (`tensor.clone()`)"
                    .into(),
            );
        }
        if shape.len() != strides.len() {
            return Err(damaged(&format!(
                "a tensor with {} sizes and {} strides",
                shape.len(),
                strides.len()
            )));
        }
        let end = extent(&shape, &strides, offset);
        if end.is_none_or(|end| end > elements) {
            return Err(format!(
                "of shape {shape:?} and strides {strides:?} from {offset} on is larger than its storage of {elements} \
                 elements: it is damaged; get it again"
            ));
        }
        let offset = storage.offset + offset;
        Ok(Meta { shape, element, view: View { storage: storage.key, offset, strides } })
    }
}

/// Whether what a checkpoint has under a key is not of the network.
fn is_company(key: &str) -> bool {
    let key = key.to_lowercase();
    COMPANY.iter().any(|part| key.contains(part))
}

fn in_entry(key: &str, reason: String) -> String {
    match key {
        "" => reason,
        key => format!("entry `{}` {reason}", brief(key)),
    }
}

fn unknown_type(found: &str) -> String {
    format!(
        "is of `{}`: expected float32, float16, bfloat16 or float64; convert it in Python with `tensor.float()`",
        brief(found)
    )
}

/// Of each object, whether a tensor is reached from it.
fn reaching_tensors(pickle: &Pickle) -> Vec<bool> {
    // From each object to those that refer to it: the edges, by their ends.
    let mut starts = vec![0_u32; pickle.len() + 1];
    for (id, _) in pickle.nodes() {
        pickle.children(id, |child| starts[child as usize + 1] += 1);
    }
    for place in 1..starts.len() {
        starts[place] += starts[place - 1];
    }
    let mut next = starts.clone();
    let mut parents = vec![0; starts[pickle.len()] as usize];
    for (id, _) in pickle.nodes() {
        pickle.children(id, |child| {
            parents[next[child as usize] as usize] = id;
            next[child as usize] += 1;
        });
    }
    let mut reaches = vec![false; pickle.len()];
    let mut open = Vec::new();
    for (id, node) in pickle.nodes() {
        let begins = match node {
            // Classes are kept elsewhere, too: `("module", class, ...)`, and in tars `(class, ...)`.
            Node::Persistent(id) => match pickle.tuple(*id) {
                Some(parts) => parts.first().and_then(|&tag| pickle.text(tag)) == Some("storage"),
                None => true,
            },
            Node::Call(call) => pickle
                .global(call.callable)
                .is_some_and(|name| name.starts_with("torch._utils._rebuild_")),
            _ => false,
        };
        if begins && !std::mem::replace(&mut reaches[id as usize], true) {
            open.push(id);
        }
    }
    while let Some(id) = open.pop() {
        let range = starts[id as usize] as usize..starts[id as usize + 1] as usize;
        for &parent in &parents[range] {
            if !std::mem::replace(&mut reaches[parent as usize], true) {
                open.push(parent);
            }
        }
    }
    reaches
}

/// Reads one pickle of a table, which tells what follows it.
fn tuple_of<const N: usize>(pickle: &Pickle) -> Option<[Id; N]> {
    pickle.tuple(pickle.root)?.try_into().ok()
}

/// Reads a number that a table begins with.
fn count(table: &mut impl BufRead) -> Result<u64, String> {
    let pickle = pickle::load(table)?;
    unsigned(&pickle, pickle.root).ok_or_else(|| damaged("a table without its length"))
}
