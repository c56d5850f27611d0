//! What a disk may hold after a power loss, given what was recorded.
//!
//! What was synced is there. Of what was not, a file's data may be as at its last sync, all there, cut short,
//! or zeros (in a file that has only been written into, its parts that were not); each change of a folder's names may have come to the disk or not, a rename as one. The
//! changes of one folder may come in their order, as journals do it, or any of them without those
//! before it, as POSIX allows. Folders and files are independent of each other.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::record::{Change, Content, Event, Kind, Node, ROOT, Record};
use crate::common::Random;

/// So many ways to lose are drawn at each moment, beside those that are always tried.
const DRAWN: usize = 24;

/// A folder: what each path in it is.
pub struct Tree(BTreeMap<PathBuf, Item>);

enum Item {
    Folder,
    File(Content),
    Link(PathBuf),
}

impl Tree {
    /// Puts it into a new folder.
    pub fn write(&self, root: &Path) {
        fs::create_dir(root).unwrap();
        for (path, item) in &self.0 {
            let path = root.join(path);
            match item {
                Item::Folder => fs::create_dir(path).unwrap(),
                Item::File(content) => fs::write(path, &content.bytes).unwrap(),
                Item::Link(target) => symlink(target, path).unwrap(),
            }
        }
    }

    fn hash(&self) -> u64 {
        let mut hash = DefaultHasher::new();
        for (path, item) in &self.0 {
            let (file, link) = match item {
                Item::Folder => (None, None),
                Item::File(content) => (Some(content.hash), None),
                Item::Link(target) => (None, Some(target)),
            };
            (path, file, link).hash(&mut hash);
        }
        hash.finish()
    }
}

impl fmt::Display for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (path, item) in &self.0 {
            match item {
                Item::Folder => write!(f, "{}/ ", path.display())?,
                Item::File(content) => write!(f, "{}: {} ", path.display(), content.bytes.len())?,
                Item::Link(target) => write!(f, "{} -> {} ", path.display(), target.display())?,
            }
        }
        Ok(())
    }
}

/// What became of a file's data that was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loss {
    Nothing,
    /// As it was at its last sync.
    All,
    /// Half of what is new is there.
    Half,
    /// Its length is there, and zeros for what is new.
    Zeros,
}

const LOSSES: [Loss; 4] = [Loss::Nothing, Loss::All, Loss::Half, Loss::Zeros];

/// A folder as it is on the disk, and the changes that may not be.
#[derive(Default)]
struct Folder {
    synced: BTreeMap<String, Node>,
    pending: Vec<Vec<Change>>,
}

/// A file's data on the disk, and as written.
struct File {
    synced: Content,
    now: Content,
    /// Whether it has been shorter since its last sync, so that nothing of it need be what was synced.
    cut: bool,
}

impl File {
    fn after(&self, loss: Loss) -> Content {
        let (old, new) = (&self.synced.bytes, &self.now.bytes);
        let same = old.iter().zip(new.iter()).take_while(|(a, b)| a == b).count();
        match loss {
            Loss::Nothing => self.now.clone(),
            Loss::All => self.synced.clone(),
            Loss::Half if !self.cut => {
                let half = same + (new.len() - same) / 2;
                Content::new([&new[..half], old.get(half..).unwrap_or_default()].concat())
            }
            Loss::Zeros if !self.cut => {
                let old = old.iter().map(Some).chain(std::iter::repeat(None));
                let kept =
                    new.iter().zip(old).map(|(new, old)| if old == Some(new) { *new } else { 0 });
                Content::new(kept.collect())
            }
            Loss::Half => Content::new(new[..same + (new.len() - same) / 2].to_vec()),
            Loss::Zeros => {
                let mut bytes = new.to_vec();
                bytes[same..].fill(0);
                Content::new(bytes)
            }
        }
    }
}

/// The disk while a record is played, with what a power loss may take.
pub struct Disk<'a> {
    record: &'a Record,
    folders: BTreeMap<Node, Folder>,
    files: BTreeMap<Node, File>,
}

/// One way to lose power: which changes of names came to the disk, and what of data.
struct Choice {
    names: BTreeMap<Node, Vec<bool>>,
    data: BTreeMap<Node, Loss>,
}

impl<'a> Disk<'a> {
    pub fn new(record: &'a Record) -> Self {
        let (names, data) = record.base.clone();
        let folder = |synced| Folder { synced, pending: Vec::new() };
        let file = |content: Content| File { synced: content.clone(), now: content, cut: false };
        Disk {
            record,
            folders: names.into_iter().map(|(node, names)| (node, folder(names))).collect(),
            files: data.into_iter().map(|(node, content)| (node, file(content))).collect(),
        }
    }

    /// Plays an event.
    pub fn play(&mut self, event: &Event) {
        match event {
            Event::Names { folder, changes } => {
                self.folders.entry(*folder).or_default().pending.push(changes.clone());
            }
            Event::Data { file, content } => {
                let empty = || Content::new(Vec::new());
                let file = self.files.entry(*file).or_insert_with(|| File {
                    synced: empty(),
                    now: empty(),
                    cut: false,
                });
                file.now = content.clone();
                file.cut |= file.now.bytes.len() < file.synced.bytes.len();
            }
            Event::Synced(node) => {
                if let Some(file) = self.files.get_mut(node) {
                    (file.synced, file.cut) = (file.now.clone(), false);
                }
                if let Some(folder) = self.folders.get_mut(node) {
                    let all = vec![true; folder.pending.len()];
                    (folder.synced, folder.pending) = (folder.after(&all), Vec::new());
                }
            }
            Event::Told | Event::Ended => {}
        }
    }

    /// What the disk may hold if power is lost now. Not every combination: all or none of the changes, all but
    /// one or one alone, the first so many of a folder, and some that are drawn.
    pub fn losses(&self, random: &mut Random, mut state: impl FnMut(Tree, &dyn Fn() -> String)) {
        let there = self.may_be_there();
        let pending: Vec<(Node, usize)> = (self.folders.iter())
            .map(|(node, folder)| (*node, folder.pending.len()))
            .filter(|(node, pending)| *pending > 0 && there.contains(node))
            .collect();
        let written: Vec<Node> = (self.files.iter())
            .filter(|(node, file)| file.synced.hash != file.now.hash && there.contains(node))
            .map(|(node, _)| *node)
            .collect();
        let mut make =
            |choice: Choice, how: &str| state(self.tree(&choice), &|| self.describe(&choice, how));
        let choice = |names: &mut dyn FnMut(usize) -> Vec<bool>,
                      data: &mut dyn FnMut(Node) -> Loss| {
            Choice {
                names: pending.iter().map(|&(node, count)| (node, names(count))).collect(),
                data: written.iter().map(|&node| (node, data(node))).collect(),
            }
        };
        // All names and data, or none of them.
        for kept in [true, false] {
            for loss in LOSSES {
                make(choice(&mut |count| vec![kept; count], &mut |_| loss), "all");
            }
        }
        // One file, or one change, otherwise than the rest.
        for rest in [Loss::Nothing, Loss::All] {
            for &one in &written {
                for loss in LOSSES {
                    let mut data = |node| if node == one { loss } else { rest };
                    make(choice(&mut |count| vec![true; count], &mut data), "one file");
                }
            }
        }
        for kept in [true, false] {
            for &(one, count) in &pending {
                for place in 0..count {
                    let mut all = choice(&mut |count| vec![kept; count], &mut |_| Loss::Nothing);
                    all.names.get_mut(&one).unwrap()[place] = !kept;
                    make(all, "one change");
                    let mut all = choice(&mut |count| vec![kept; count], &mut |_| Loss::Nothing);
                    all.names.insert(one, (0..count).map(|other| other < place).collect());
                    make(all, "in order");
                }
            }
        }
        if pending.len() + written.len() < 2 && pending.iter().all(|(_, count)| *count < 2) {
            return; // those were all
        }
        for _ in 0..DRAWN {
            let mut other = Random(random.bits());
            let mut data = |_| LOSSES[other.below(LOSSES.len())];
            let mut ordered = |count| {
                let kept = random.below(count + 1);
                (0..count).map(|place| place < kept).collect()
            };
            make(choice(&mut ordered, &mut data), "in order");
            let mut unordered = |count| (0..count).map(|_| random.below(2) == 0).collect();
            make(choice(&mut unordered, &mut data), "in any order");
        }
    }

    /// All nodes that have a name in some state that a power loss may leave.
    fn may_be_there(&self) -> BTreeSet<Node> {
        let (mut there, mut next) = (BTreeSet::from([ROOT]), vec![ROOT]);
        while let Some(node) = next.pop() {
            let Some(folder) = self.folders.get(&node) else { continue };
            let pending = folder.pending.iter().flatten().filter_map(|change| change.after);
            let inside = folder.synced.values().copied().chain(pending);
            next.extend(inside.filter(|node| there.insert(*node)));
        }
        there
    }

    fn tree(&self, choice: &Choice) -> Tree {
        let mut tree = BTreeMap::new();
        self.fill(ROOT, Path::new(""), choice, &mut tree);
        Tree(tree)
    }

    fn fill(&self, node: Node, path: &Path, choice: &Choice, tree: &mut BTreeMap<PathBuf, Item>) {
        let Some(folder) = self.folders.get(&node) else { return };
        let names = match choice.names.get(&node) {
            Some(kept) => folder.after(kept),
            None => folder.synced.clone(),
        };
        for (name, node) in names {
            let path = path.join(name);
            let item = match &self.record.nodes[node] {
                Kind::Folder => {
                    self.fill(node, &path, choice, tree);
                    Item::Folder
                }
                Kind::Link(target) => Item::Link(target.clone()),
                Kind::File => Item::File(match self.files.get(&node) {
                    Some(file) => match choice.data.get(&node) {
                        Some(loss) => file.after(*loss),
                        None => file.synced.clone(),
                    },
                    None => Content::new(Vec::new()),
                }),
            };
            tree.insert(path, item);
        }
    }

    /// A choice in words, for who looks for the reason of a failure.
    fn describe(&self, choice: &Choice, how: &str) -> String {
        let mut text = format!("{how}:");
        for (node, kept) in &choice.names {
            for (changes, kept) in self.folders[node].pending.iter().zip(kept) {
                let what = if *kept { "kept" } else { "lost" };
                let names: Vec<String> = changes.iter().map(describe).collect();
                text += &format!(" {what} {};", names.join(" "));
            }
        }
        for (node, loss) in &choice.data {
            text += &format!(" data of {node}: {loss:?};");
        }
        text
    }
}

/// A change in words.
fn describe(Change { name, before, after }: &Change) -> String {
    let node = |node: &Option<Node>| node.map_or("-".into(), |node| node.to_string());
    format!("{name} ({} to {})", node(before), node(after))
}

impl Folder {
    /// Its names if those of the pending changes came to the disk that were `kept`.
    fn after(&self, kept: &[bool]) -> BTreeMap<String, Node> {
        let mut names = self.synced.clone();
        for (changes, _) in self.pending.iter().zip(kept).filter(|(_, kept)| **kept) {
            for Change { name, before, after } in changes {
                match (before, after) {
                    (_, Some(after)) => {
                        names.retain(|_, node| node != after); // it may not have come where it went from
                        names.insert(name.clone(), *after);
                    }
                    // Whatever else has the name, because a change before was lost, keeps it.
                    (Some(before), None) if names.get(name) == Some(before) => {
                        names.remove(name);
                    }
                    (_, None) => {}
                }
            }
        }
        names
    }
}

/// A state that a power loss may leave.
pub struct State<P> {
    pub tree: Tree,
    /// What the program had promised; the greatest, if several moments leave this state.
    pub promise: P,
    /// How it comes about then.
    pub how: String,
}

/// How many ways to lose power at all moments of a record were tried, and the different states that they
/// leave. `promise` is shown all events in order, and says what is promised from then on.
pub fn losses<P: Ord + Clone>(
    record: &Record,
    seed: u64,
    mut promise: impl FnMut(&Event) -> P,
) -> (usize, Vec<State<P>>) {
    let (mut disk, mut random) = (Disk::new(record), Random(seed));
    let (mut tried, mut states) = (0, Vec::<State<P>>::new());
    let mut known: HashMap<u64, usize> = HashMap::new();
    for (at, event) in record.events.iter().enumerate() {
        disk.play(event);
        let promise = promise(event);
        disk.losses(&mut random, |tree, how| {
            tried += 1;
            let how = || format!("after event {at}, {}; {}", say(event), how());
            match known.entry(tree.hash()) {
                Entry::Occupied(place) => {
                    let state = &mut states[*place.get()];
                    if promise > state.promise {
                        (state.promise, state.how) = (promise.clone(), how());
                    }
                }
                Entry::Vacant(place) => {
                    place.insert(states.len());
                    states.push(State { tree, promise: promise.clone(), how: how() });
                }
            }
        });
    }
    (tried, states)
}

/// An event in words.
pub fn say(event: &Event) -> String {
    match event {
        Event::Names { folder, changes } => {
            let changes: Vec<String> = changes.iter().map(describe).collect();
            format!("names in {folder}: {}", changes.join(" "))
        }
        Event::Data { file, content } => format!("data of {file}: {} bytes", content.bytes.len()),
        Event::Synced(node) => format!("sync of {node}"),
        Event::Told => "told".into(),
        Event::Ended => "ended".into(),
    }
}
