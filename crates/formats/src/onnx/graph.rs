//! The file's graph: who makes which value, and the nodes that an output needs, in order.

use std::collections::{HashMap, HashSet};

use zfnet_core::{Error, Result};

use super::proto::{AttributeProto, NodeProto, ValueInfoProto};
use crate::weights::brief;

impl NodeProto {
    /// Its name, else that of its first output.
    pub fn label(&self) -> &str {
        match self.name.is_empty() {
            true => self.output.iter().find(|output| !output.is_empty()).map_or("", String::as_str),
            false => &self.name,
        }
    }

    /// Its name and operator, for messages.
    pub fn called(&self) -> String {
        format!("`{}` ({})", brief(self.label()), brief(&self.op_type))
    }

    /// Whether it has the input.
    pub fn has(&self, slot: usize) -> bool {
        self.input.get(slot).is_some_and(|name| !name.is_empty())
    }

    /// An attribute.
    pub fn attribute(&self, name: &str) -> Option<&AttributeProto> {
        self.attribute.iter().find(|attribute| attribute.name == name)
    }

    /// An integer attribute.
    pub fn int(&self, name: &str) -> Option<i64> {
        self.attribute(name).map(|attribute| attribute.i.unwrap_or(0))
    }

    /// A float attribute.
    pub fn float(&self, name: &str) -> Option<f32> {
        self.attribute(name).map(|attribute| attribute.f.unwrap_or(0.))
    }

    /// An attribute of integers.
    pub fn ints(&self, name: &str) -> Option<&[i64]> {
        self.attribute(name).map(|attribute| &*attribute.ints)
    }

    /// An attribute of text.
    pub fn text(&self, name: &str) -> Option<String> {
        let text = self.attribute(name)?.s.as_deref().unwrap_or_default();
        Some(String::from_utf8_lossy(text).into_owned())
    }
}

/// What is known of a graph by names.
pub struct Graph<'a> {
    /// Its nodes.
    pub nodes: &'a [NodeProto],
    /// Inputs that no initialiser fills.
    pub inputs: HashMap<&'a str, &'a ValueInfoProto>,
    outputs: Vec<&'a str>,
    constants: HashSet<&'a str>,
    makers: HashMap<&'a str, usize>,
}

impl<'a> Graph<'a> {
    /// Of the names of initialisers, and the rest. Refuses values that are made twice.
    pub fn new(
        nodes: &'a [NodeProto],
        initializers: &'a [String],
        inputs: &'a [ValueInfoProto],
        outputs: &'a [ValueInfoProto],
    ) -> Result<Self> {
        let twice = |name: &str| {
            Error::Network(format!(
                "expected values of different names, found `{}` twice",
                brief(name)
            ))
        };
        let mut constants = HashSet::new();
        for name in initializers.iter().filter(|name| !name.is_empty()) {
            if !constants.insert(&**name) {
                return Err(twice(name));
            }
        }
        let mut open = HashMap::new();
        for input in inputs.iter().filter(|input| !constants.contains(&*input.name)) {
            if open.insert(&*input.name, input).is_some() {
                return Err(twice(&input.name));
            }
        }
        let mut makers = HashMap::new();
        for (place, node) in nodes.iter().enumerate() {
            for output in node.output.iter().filter(|output| !output.is_empty()) {
                let known = constants.contains(&**output) || open.contains_key(&**output);
                if known || makers.insert(&**output, place).is_some() {
                    return Err(twice(output));
                }
            }
        }
        let outputs = outputs.iter().map(|output| &*output.name).collect();
        Ok(Graph { nodes, inputs: open, outputs, constants, makers })
    }

    /// The node that makes a value.
    pub fn maker(&self, value: &str) -> Option<usize> {
        self.makers.get(value).copied()
    }

    /// The value to end with, of a node or output by name, or the output that needs all others; and the nodes it
    /// needs, each behind those that it needs itself.
    pub fn path_to(&self, until: Option<&str>) -> Result<(&'a str, Vec<usize>)> {
        let (value, maker) = match until {
            Some(name) => self.find(name)?,
            None => self.output()?,
        };
        let order = self.needed(&[maker])?;
        if until.is_none() {
            let needed: HashSet<usize> = order.iter().copied().collect();
            let outside =
                |value: &&&str| self.maker(value).is_some_and(|maker| !needed.contains(&maker));
            if let Some(other) = self.outputs.iter().find(outside) {
                return Err(Error::Network(format!(
                    "expected a network of one output, found `{}` and `{}`, neither of which leads to the other: name \
                     the node to read it until",
                    brief(value),
                    brief(other)
                )));
            }
        }
        Ok((value, order))
    }

    /// A name by which a node is found: its own, or its output's if others have that too.
    pub fn name_of(&self, place: usize) -> &'a str {
        let node = &self.nodes[place];
        let label = node.label();
        match self.find(label) {
            Ok((_, found)) if found == place => label,
            _ => node.output.first().map_or(label, String::as_str),
        }
    }

    fn find(&self, name: &str) -> Result<(&'a str, usize)> {
        if let Some((&value, &maker)) = self.makers.get_key_value(name) {
            return Ok((value, maker));
        }
        let mut named =
            self.nodes.iter().enumerate().filter(|(_, node)| node.name == name && !name.is_empty());
        match (named.next(), named.next()) {
            (Some((place, node)), None) if !node.label().is_empty() => {
                let value = node.output.iter().find(|output| !output.is_empty());
                let value = value.ok_or_else(|| {
                    Error::Network(format!("node {} has no output", node.called()))
                })?;
                Ok((value, place))
            }
            (Some((_, one)), Some((_, other))) => Err(Error::Network(format!(
                "expected one node of the name `{}`, found several: name its output, one of `{}`, `{}`",
                brief(name),
                brief(one.output.first().map_or("", String::as_str)),
                brief(other.output.first().map_or("", String::as_str))
            ))),
            _ => Err(Error::Network(format!(
                "expected the name of a node or of its output, found `{}`, which is none; {}",
                brief(name),
                self.nearest(name)
            ))),
        }
    }

    /// Names like the one that is not there, else the first.
    fn nearest(&self, name: &str) -> String {
        const SHOWN: usize = 12;
        let wanted = name.to_lowercase();
        let labels = || self.nodes.iter().map(NodeProto::label).filter(|label| !label.is_empty());
        let like = labels().filter(|label| {
            let label = label.to_lowercase();
            !wanted.is_empty() && (label.contains(&wanted) || wanted.contains(&label))
        });
        let shown = |labels: &mut dyn Iterator<Item = &str>| {
            let shown: Vec<String> =
                labels.take(SHOWN).map(|label| format!("`{}`", brief(label))).collect();
            shown.join(", ")
        };
        match shown(&mut { like }) {
            like if !like.is_empty() => format!("there are {like}"),
            _ => format!("its nodes begin with {}", shown(&mut labels())),
        }
    }

    fn output(&self) -> Result<(&'a str, usize)> {
        let made: Vec<_> =
            self.outputs.iter().filter_map(|&value| Some((value, self.maker(value)?))).collect();
        match made[..] {
            [] => Err(Error::Network(
                "expected a network with an output, found none that a node makes".into(),
            )),
            [one] => Ok(one),
            _ => {
                // If one of them needs all the others, it stands behind them.
                let roots: Vec<usize> = made.iter().map(|(_, maker)| *maker).collect();
                let order = self.needed(&roots)?;
                let last = order
                    .iter()
                    .rev()
                    .find_map(|place| made.iter().find(|(_, maker)| maker == place));
                Ok(*last.unwrap_or(&made[0]))
            }
        }
    }

    /// The nodes that some need, themselves among them, in an order in which they can be computed.
    fn needed(&self, roots: &[usize]) -> Result<Vec<usize>> {
        #[derive(Clone, Copy, PartialEq)]
        enum Mark {
            New,
            Open,
            Done,
        }
        let mut marks = vec![Mark::New; self.nodes.len()];
        let mut order = Vec::new();
        for &root in roots {
            if marks[root] != Mark::New {
                continue;
            }
            marks[root] = Mark::Open;
            let mut stack = vec![(root, 0)];
            while let Some((place, slot)) = stack.last_mut() {
                let node = &self.nodes[*place];
                let Some(input) = node.input.get(*slot) else {
                    marks[*place] = Mark::Done;
                    order.push(*place);
                    stack.pop();
                    continue;
                };
                *slot += 1;
                if input.is_empty()
                    || self.inputs.contains_key(&**input)
                    || self.constants.contains(&**input)
                {
                    continue;
                }
                let maker = self.maker(input).ok_or_else(|| {
                    Error::Network(format!(
                        "node {} takes `{}`, which is no input, no initialiser and no output of a node",
                        node.called(),
                        brief(input)
                    ))
                })?;
                match marks[maker] {
                    Mark::Done => {}
                    Mark::Open => {
                        return Err(Error::Network(format!(
                            "node {} needs its own output: expected a graph without cycles",
                            self.nodes[maker].called()
                        )));
                    }
                    Mark::New => {
                        marks[maker] = Mark::Open;
                        stack.push((maker, 0));
                    }
                }
            }
        }
        Ok(order)
    }
}
