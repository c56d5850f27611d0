//! Pickles as data: a machine with Python's opcodes that calls nothing. What Python would import is a name, what it
//! would call is a [`Node::Call`], and who reads the result decides which of them mean something.
//!
//! Objects are numbered and refer to each other by number, as Python's do by reference: one that is fetched a million
//! times is one object, one that is filled after it was remembered is seen filled, and circles are no trouble. So what
//! a pickle takes in memory is bounded by its bytes, and nothing recurses.

use std::collections::HashMap;
use std::io::{BufRead, Read};

use crate::source::failed;

/// The number of an object.
pub(crate) type Id = u32;

pub(crate) const NONE: Id = 0;
const FALSE: Id = 1;
const TRUE: Id = 2;
const OPAQUE: Id = 3;
const NO_ARGUMENTS: Id = 4;

/// Objects of a pickle, at most: a hundred times those of the largest checkpoints.
const MOST: usize = 1 << 22;
/// Opcodes, at most.
const MOST_OPCODES: u32 = 1 << 27;
/// Texts longer than this are passed over: names are far shorter.
const LONGEST: u64 = 4096;

/// An object.
#[derive(Debug, PartialEq)]
pub(crate) enum Node {
    None,
    Bool(bool),
    Int(i64),
    Text(Box<str>),
    /// What nobody asks for: floats, bytes, large integers, long texts.
    Opaque,
    Tuple(Vec<Id>),
    /// Sets, too.
    List(Vec<Id>),
    /// Keys and values, in the order of their writing; a key may come again, and then its last value counts.
    Dict(Vec<(Id, Id)>),
    /// A class or function, `module.name`.
    Global(Box<str>),
    /// What the file keeps elsewhere.
    Persistent(Id),
    Call(Box<Call>),
}

/// An object that Python would make by calling something.
#[derive(Debug, PartialEq)]
pub(crate) struct Call {
    pub(crate) callable: Id,
    /// A tuple, if the pickle is a sound one.
    pub(crate) args: Id,
    /// What it would be given to set itself up with; `NONE` if nothing.
    pub(crate) state: Id,
    /// What would be put into it, as into a dictionary.
    pub(crate) items: Vec<(Id, Id)>,
    /// What would be appended to it.
    pub(crate) appended: Vec<Id>,
}

/// The objects of a pickle.
#[derive(Debug)]
pub(crate) struct Pickle {
    nodes: Vec<Node>,
    pub(crate) root: Id,
}

impl Pickle {
    pub(crate) fn node(&self, id: Id) -> &Node {
        &self.nodes[id as usize]
    }

    pub(crate) fn nodes(&self) -> impl Iterator<Item = (Id, &Node)> {
        (0..).zip(&self.nodes)
    }

    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    pub(crate) fn text(&self, id: Id) -> Option<&str> {
        match self.node(id) {
            Node::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(crate) fn int(&self, id: Id) -> Option<i64> {
        match *self.node(id) {
            Node::Int(value) => Some(value),
            _ => None,
        }
    }

    /// The elements of a tuple.
    pub(crate) fn tuple(&self, id: Id) -> Option<&[Id]> {
        match self.node(id) {
            Node::Tuple(items) => Some(items),
            _ => None,
        }
    }

    /// The elements of a tuple or list.
    pub(crate) fn sequence(&self, id: Id) -> Option<&[Id]> {
        match self.node(id) {
            Node::Tuple(items) | Node::List(items) => Some(items),
            _ => None,
        }
    }

    pub(crate) fn global(&self, id: Id) -> Option<&str> {
        match self.node(id) {
            Node::Global(name) => Some(name),
            _ => None,
        }
    }

    /// The value that a dictionary has for a text.
    pub(crate) fn get(&self, dict: Id, key: &str) -> Option<Id> {
        let Node::Dict(items) = self.node(dict) else { return None };
        items.iter().rev().find(|&&(k, _)| self.text(k) == Some(key)).map(|&(_, value)| value)
    }

    /// The objects that one refers to.
    pub(crate) fn children(&self, id: Id, mut each: impl FnMut(Id)) {
        match self.node(id) {
            Node::Tuple(items) | Node::List(items) => items.iter().for_each(|&item| each(item)),
            Node::Dict(items) => items.iter().for_each(|&(key, value)| {
                each(key);
                each(value);
            }),
            Node::Persistent(id) => each(*id),
            Node::Call(call) => {
                [call.callable, call.args, call.state].into_iter().for_each(&mut each);
                call.items.iter().for_each(|&(key, value)| {
                    each(key);
                    each(value);
                });
                call.appended.iter().for_each(|&item| each(item));
            }
            _ => {}
        }
    }
}

/// Reads one pickle, and leaves its source behind it.
pub(crate) fn load(source: &mut impl BufRead) -> Result<Pickle, String> {
    let mut machine = Machine {
        source,
        nodes: vec![
            Node::None,
            Node::Bool(false),
            Node::Bool(true),
            Node::Opaque,
            Node::Tuple(Vec::new()),
        ],
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
    };
    let root = machine.run()?;
    Ok(Pickle { nodes: machine.nodes, root })
}

fn too_large() -> String {
    format!("its pickle has more than {MOST} objects: save the network's state dict alone")
}

struct Machine<'a, R> {
    source: &'a mut R,
    nodes: Vec<Node>,
    stack: Vec<Id>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

fn damaged(what: &str) -> String {
    format!("its pickle is damaged: {what}; get it again")
}

impl<R: BufRead> Machine<'_, R> {
    fn run(&mut self) -> Result<Id, String> {
        for _ in 0..MOST_OPCODES {
            let [opcode] = self.array()?;
            match opcode {
                b'.' => return self.pop(),
                0x80 => {
                    let [protocol] = self.array()?;
                    if protocol > 5 {
                        return Err(damaged(&format!("expected protocols to 5, found {protocol}")));
                    }
                }
                0x95 => drop(self.array::<8>()?),

                b'N' => self.push(NONE)?,
                0x88 => self.push(TRUE)?,
                0x89 => self.push(FALSE)?,
                b'I' => match self.line()?.as_str() {
                    "00" => self.push(FALSE)?,
                    "01" => self.push(TRUE)?,
                    line => self.decimal(line)?,
                },
                b'L' => match self.any_line()? {
                    Some(line) => self.decimal(line.strip_suffix('L').unwrap_or(&line))?,
                    None => self.push(OPAQUE)?,
                },
                b'K' => {
                    let [value] = self.array()?;
                    self.make(Node::Int(value.into()))?;
                }
                b'M' => {
                    let value = u16::from_le_bytes(self.array()?);
                    self.make(Node::Int(value.into()))?;
                }
                b'J' => {
                    let value = i32::from_le_bytes(self.array()?);
                    self.make(Node::Int(value.into()))?;
                }
                0x8a => {
                    let bytes = self.length::<1>()?;
                    self.long(bytes)?;
                }
                0x8b => {
                    let bytes = self.length::<4>()?;
                    self.long(bytes)?;
                }
                b'F' => {
                    self.line()?;
                    self.push(OPAQUE)?;
                }
                b'G' => {
                    self.array::<8>()?;
                    self.push(OPAQUE)?;
                }

                // Python 2's strings, b'U' and b'T', are bytes that are text most of the time.
                0x8c | b'U' => {
                    let bytes = self.length::<1>()?;
                    self.text(bytes)?;
                }
                b'X' | b'T' => {
                    let bytes = self.length::<4>()?;
                    self.text(bytes)?;
                }
                0x8d => {
                    let bytes = self.length::<8>()?;
                    self.text(bytes)?;
                }
                b'V' | b'S' => match self.any_line()? {
                    None => self.push(OPAQUE)?,
                    Some(line) if opcode == b'V' => self.make(Node::Text(line.into()))?,
                    Some(line) => self.make(Node::Text(line.trim_matches(['"', '\'']).into()))?,
                },
                b'C' => {
                    let bytes = self.length::<1>()?;
                    self.pass(bytes)?;
                }
                b'B' => {
                    let bytes = self.length::<4>()?;
                    self.pass(bytes)?;
                }
                0x8e | 0x96 => {
                    let bytes = self.length::<8>()?;
                    self.pass(bytes)?;
                }

                b')' => self.push(NO_ARGUMENTS)?,
                b'(' => {
                    self.marks.push(self.stack.len());
                    self.limit(self.marks.len())?;
                }
                b't' => {
                    let items = self.marked()?;
                    self.make(Node::Tuple(items))?;
                }
                0x85..=0x87 => {
                    let mut items = Vec::with_capacity(3);
                    for _ in 0x84..opcode {
                        items.push(self.pop()?);
                    }
                    items.reverse();
                    self.make(Node::Tuple(items))?;
                }
                b']' | 0x8f => self.make(Node::List(Vec::new()))?,
                b'l' | 0x91 => {
                    let items = self.marked()?;
                    self.make(Node::List(items))?;
                }
                b'a' => {
                    let item = self.pop()?;
                    self.append(&[item])?;
                }
                b'e' | 0x90 => {
                    let items = self.marked()?;
                    self.append(&items)?;
                }
                b'}' => self.make(Node::Dict(Vec::new()))?,
                b'd' => {
                    let items = self.marked()?;
                    self.make(Node::Dict(Vec::new()))?;
                    self.set(&items)?;
                }
                b's' => {
                    let (value, key) = (self.pop()?, self.pop()?);
                    self.set(&[key, value])?;
                }
                b'u' => {
                    let items = self.marked()?;
                    self.set(&items)?;
                }

                b'0' => match self.marks.last() == Some(&self.stack.len()) {
                    true => drop(self.marks.pop()),
                    false => drop(self.pop()?),
                },
                b'1' => drop(self.marked()?),
                b'2' => {
                    let top = self.top()?;
                    self.push(top)?;
                }
                b'q' => {
                    let [place] = self.array()?;
                    self.remember(place.into())?;
                }
                b'r' => {
                    let place = u32::from_le_bytes(self.array()?);
                    self.remember(place)?;
                }
                b'p' => {
                    let place = self.place()?;
                    self.remember(place)?;
                }
                0x94 => {
                    let place = u32::try_from(self.memo.len()).expect("limited");
                    self.remember(place)?;
                }
                b'h' => {
                    let [place] = self.array()?;
                    self.fetch(place.into())?;
                }
                b'j' => {
                    let place = u32::from_le_bytes(self.array()?);
                    self.fetch(place)?;
                }
                b'g' => {
                    let place = self.place()?;
                    self.fetch(place)?;
                }

                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.make(Node::Global(format!("{module}.{name}").into()))?;
                }
                0x93 => {
                    let (name, module) = (self.pop()?, self.pop()?);
                    let name = match (&self.nodes[module as usize], &self.nodes[name as usize]) {
                        (Node::Text(module), Node::Text(name)) => format!("{module}.{name}"),
                        _ => return Err(damaged("a name that is no text")),
                    };
                    self.make(Node::Global(name.into()))?;
                }
                b'R' | 0x81 => {
                    let (args, callable) = (self.pop()?, self.pop()?);
                    self.call(callable, args)?;
                }
                0x92 => {
                    // Arguments with names come with the others, so that nothing in them is overlooked.
                    let (named, args, callable) = (self.pop()?, self.pop()?, self.pop()?);
                    self.call(callable, args)?;
                    self.append(&[named])?;
                }
                b'o' => {
                    let mut items = self.marked()?;
                    if items.is_empty() {
                        return Err(damaged("an object without a class"));
                    }
                    let callable = items.remove(0);
                    let args = self.add(Node::Tuple(items))?;
                    self.call(callable, args)?;
                }
                b'i' => {
                    let (module, name) = (self.line()?, self.line()?);
                    let items = self.marked()?;
                    let args = self.add(Node::Tuple(items))?;
                    let callable = self.add(Node::Global(format!("{module}.{name}").into()))?;
                    self.call(callable, args)?;
                }
                b'b' => {
                    let state = self.pop()?;
                    let top = self.top()?;
                    if let Node::Call(call) = &mut self.nodes[top as usize] {
                        call.state = state;
                    }
                }
                b'P' => {
                    let line = self.line()?;
                    let id = self.add(Node::Text(line.into()))?;
                    self.make(Node::Persistent(id))?;
                }
                b'Q' => {
                    let id = self.pop()?;
                    self.make(Node::Persistent(id))?;
                }
                0x82..=0x84 | 0x97 | 0x98 => {
                    return Err(format!(
                        "its pickle uses the opcode 0x{opcode:02x}, which PyTorch does not write: save it again with \
                         torch.save"
                    ));
                }
                _ => return Err(damaged(&format!("no opcode is 0x{opcode:02x}"))),
            }
        }
        Err(too_large())
    }

    fn limit(&self, found: usize) -> Result<(), String> {
        if found <= MOST { Ok(()) } else { Err(too_large()) }
    }

    fn add(&mut self, node: Node) -> Result<Id, String> {
        self.limit(self.nodes.len() + 1)?;
        self.nodes.push(node);
        Ok(self.nodes.len() as Id - 1)
    }

    fn make(&mut self, node: Node) -> Result<(), String> {
        let id = self.add(node)?;
        self.push(id)
    }

    fn call(&mut self, callable: Id, args: Id) -> Result<(), String> {
        let (items, appended) = (Vec::new(), Vec::new());
        self.make(Node::Call(Box::new(Call { callable, args, state: NONE, items, appended })))
    }

    fn push(&mut self, id: Id) -> Result<(), String> {
        self.stack.push(id);
        self.limit(self.stack.len())
    }

    /// Nothing is taken from below a mark.
    fn top(&self) -> Result<Id, String> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.get(floor..).and_then(<[Id]>::last) {
            Some(&id) => Ok(id),
            None => Err(damaged("it takes more objects than it has made")),
        }
    }

    fn pop(&mut self) -> Result<Id, String> {
        let id = self.top()?;
        self.stack.pop();
        Ok(id)
    }

    fn marked(&mut self) -> Result<Vec<Id>, String> {
        let mark = self.marks.pop().ok_or_else(|| damaged("a mark is missing"))?;
        Ok(self.stack.split_off(mark))
    }

    fn append(&mut self, more: &[Id]) -> Result<(), String> {
        let top = self.top()?;
        match &mut self.nodes[top as usize] {
            Node::List(items) => items.extend_from_slice(more),
            Node::Call(call) => call.appended.extend_from_slice(more),
            _ => return Err(damaged("it appends to what is no list")),
        }
        Ok(())
    }

    fn set(&mut self, more: &[Id]) -> Result<(), String> {
        let top = self.top()?;
        let (pairs, []) = more.as_chunks::<2>() else {
            return Err(damaged("a key without a value"));
        };
        let pairs = pairs.iter().map(|&[key, value]| (key, value));
        match &mut self.nodes[top as usize] {
            Node::Dict(items) => items.extend(pairs),
            Node::Call(call) => call.items.extend(pairs),
            _ => return Err(damaged("it puts values into what is no dictionary")),
        }
        Ok(())
    }

    fn remember(&mut self, place: u32) -> Result<(), String> {
        let top = self.top()?;
        self.memo.insert(place, top);
        self.limit(self.memo.len())
    }

    fn fetch(&mut self, place: u32) -> Result<(), String> {
        let id = self.memo.get(&place).copied();
        self.push(id.ok_or_else(|| damaged("it fetches an object that it has not made"))?)
    }

    fn place(&mut self) -> Result<u32, String> {
        self.line()?.parse().map_err(|_| damaged("an object's number is none"))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut bytes = [0; N];
        self.source.read_exact(&mut bytes).map_err(failed)?;
        Ok(bytes)
    }

    fn length<const N: usize>(&mut self) -> Result<u64, String> {
        let mut bytes = [0; 8];
        bytes[..N].copy_from_slice(&self.array::<N>()?);
        Ok(u64::from_le_bytes(bytes))
    }

    /// To the line's end, which is passed; nothing of a line that is too long to be kept.
    fn any_line(&mut self) -> Result<Option<String>, String> {
        let mut line = Vec::new();
        self.source.by_ref().take(LONGEST).read_until(b'\n', &mut line).map_err(failed)?;
        if line.pop() == Some(b'\n') {
            return Ok(Some(String::from_utf8_lossy(&line).into_owned()));
        }
        match self.source.skip_until(b'\n').map_err(failed)? {
            0 => Err(damaged("a line without an end")),
            _ => Ok(None),
        }
    }

    fn line(&mut self) -> Result<String, String> {
        self.any_line()?.ok_or_else(|| damaged("a line that is longer than any name or number"))
    }

    fn decimal(&mut self, text: &str) -> Result<(), String> {
        match text.trim().parse() {
            Ok(value) => self.make(Node::Int(value)),
            Err(_) => self.push(OPAQUE),
        }
    }

    fn long(&mut self, bytes: u64) -> Result<(), String> {
        if bytes > 8 {
            return self.pass(bytes);
        }
        let mut value = [0; 8];
        let value_bytes = &mut value[..bytes as usize];
        self.source.read_exact(value_bytes).map_err(failed)?;
        if value_bytes.last().is_some_and(|&byte| byte >= 0x80) {
            value[bytes as usize..].fill(0xff);
        }
        self.make(Node::Int(i64::from_le_bytes(value)))
    }

    fn text(&mut self, bytes: u64) -> Result<(), String> {
        if bytes > LONGEST {
            return self.pass(bytes);
        }
        let mut text = Vec::new();
        self.source.by_ref().take(bytes).read_to_end(&mut text).map_err(failed)?;
        if text.len() as u64 != bytes {
            return Err(failed(std::io::ErrorKind::UnexpectedEof.into()));
        }
        self.make(Node::Text(String::from_utf8_lossy(&text).into()))
    }

    /// Passes over what nobody asks for.
    fn pass(&mut self, bytes: u64) -> Result<(), String> {
        let passed = std::io::copy(&mut self.source.by_ref().take(bytes), &mut std::io::sink());
        if passed.map_err(failed)? != bytes {
            return Err(failed(std::io::ErrorKind::UnexpectedEof.into()));
        }
        self.push(OPAQUE)
    }
}
