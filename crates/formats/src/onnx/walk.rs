//! From the input along the one path to the output: operators become layers, constants are computed.

use std::collections::{HashMap, HashSet};

use zfnet_core::{Error, Result};

use super::fold::{self, axis_of, casts_to_float, ints_of};
use super::graph::Graph;
use super::is_onnx;
use super::pixels::Affine;
use super::proto::{NodeProto, TensorProto, ValueInfoProto, dimension_proto::Value as Dimension};
use super::response::{self, Response};
use super::tensor::{self, Budget, Data, Files, Int, Value, list};
use super::window::{MAX_SIZE, Window};
use crate::chain::not_a_chain;
use crate::weights::brief;
use crate::{Chain, Input, Layer, Op, Tensor};

/// What the data is, between two nodes.
#[derive(Clone, Debug)]
enum Form {
    /// Images: channels, rows and columns as far as they are known; channels stand last or before the rows.
    Image { channels: Option<usize>, size: [Option<usize>; 2], last: bool },
    /// So many values an image. If they stand place by place, all channels of the first, it says how many channels.
    Flat { values: Option<usize>, by_place: Option<usize> },
}

impl Form {
    /// The axis of channels, and how many axes there are.
    fn axes(&self) -> (usize, usize) {
        match self {
            Form::Image { last: false, .. } => (1, 4),
            Form::Image { last: true, .. } => (3, 4),
            Form::Flat { .. } => (1, 2),
        }
    }

    /// Channels, or values of what has none.
    fn channels(&self) -> Option<usize> {
        match *self {
            Form::Image { channels, .. } => channels,
            Form::Flat { values, .. } => values,
        }
    }

    /// Sizes behind the number of images.
    fn sizes(&self) -> Vec<Int> {
        let int = |size: Option<usize>| size.map_or(Int::Open, |size| Int::Known(size as i64));
        match *self {
            Form::Image { channels, size: [rows, columns], last: false } => {
                vec![int(channels), int(rows), int(columns)]
            }
            Form::Image { channels, size: [rows, columns], last: true } => {
                vec![int(rows), int(columns), int(channels)]
            }
            Form::Flat { values, .. } => vec![int(values)],
        }
    }

    /// Number of values of an image, if it is known.
    fn values(&self) -> Option<usize> {
        match *self {
            Form::Image { channels, size: [rows, columns], .. } => {
                channels?.checked_mul(rows?)?.checked_mul(columns?)
            }
            Form::Flat { values, .. } => values,
        }
    }
}

/// A Pad of zeros, or of what never wins, until the layer that it belongs to.
struct Pending {
    pad: [usize; 4],
    value: f32,
    by: String,
}

/// The state of reading along the path.
pub struct Walk<'a> {
    graph: &'a Graph<'a>,
    order: &'a [usize],
    tensors: HashMap<&'a str, TensorProto>,
    values: HashMap<&'a str, Value>,
    /// How many inputs take a constant that have not yet.
    uses: HashMap<&'a str, usize>,
    /// The sizes of data that has been passed.
    shapes: HashMap<&'a str, Vec<Int>>,
    files: Files,
    budget: Budget,
    chain: Chain,
    batch: Int,
    form: Form,
    pending: Option<Pending>,
    affine: Affine,
    /// The softmax, behind which there may be no layer.
    ended: Option<String>,
    /// The place of the node up to which it is a chain.
    last: Option<usize>,
    /// Names of layers.
    named: HashSet<String>,
}

impl<'a> Walk<'a> {
    /// At the input of the nodes in `order`.
    pub fn new(
        graph: &'a Graph<'a>,
        order: &'a [usize],
        tensors: HashMap<&'a str, TensorProto>,
        files: Files,
        budget: Budget,
    ) -> Self {
        let mut uses = HashMap::new();
        for &place in order {
            for input in &graph.nodes[place].input {
                *uses.entry(&**input).or_default() += 1;
            }
        }
        Walk {
            graph,
            order,
            tensors,
            values: HashMap::new(),
            uses,
            shapes: HashMap::new(),
            files,
            budget,
            chain: Chain::default(),
            batch: Int::Batch,
            form: Form::Flat { values: None, by_place: None },
            pending: None,
            affine: Affine::default(),
            ended: None,
            last: None,
            named: HashSet::new(),
        }
    }

    /// The chain up to the value `end`.
    pub fn to(mut self, end: &'a str) -> Result<Chain> {
        let graph = self.graph;
        // Which nodes handle data; Shape's output, though made of data, is sizes.
        let mut data: HashMap<&str, usize> = HashMap::new();
        let mut path = Vec::new();
        let responses = response::find(graph, self.order);
        let inside: HashSet<usize> =
            responses.values().flat_map(|response| response.inside.iter().copied()).collect();
        let takes = |data: &HashMap<&str, usize>, name: &str| {
            graph.inputs.contains_key(name) || data.contains_key(name)
        };
        for &place in self.order {
            let node = &graph.nodes[place];
            if matches!(&*node.op_type, "Shape" | "Size") || inside.contains(&place) {
                continue;
            }
            let mut any = false;
            for input in node.input.iter().filter(|input| takes(&data, input)).collect::<Vec<_>>() {
                *data.entry(input).or_default() += 1;
                any = true;
            }
            if any {
                path.push(place);
                for output in node.output.iter().filter(|output| !output.is_empty()) {
                    data.entry(output).or_default();
                }
            }
        }
        let Some(&first) = path.first().filter(|_| data.contains_key(end)) else {
            return Err(Error::Network(format!(
                "expected an output that depends on the input, found `{}`, which is constant",
                brief(end)
            )));
        };
        let Some(input) =
            graph.nodes[first].input.iter().find_map(|name| graph.inputs.get(&**name))
        else {
            return Err(Error::Network("expected a network with an input, found none".into()));
        };
        self.begin(input, &path)?;
        let mut current: &'a str = &input.name;
        self.branches(current, &data)?;
        let mut on_path = path.iter().copied().peekable();
        for &place in self.order {
            let node = &graph.nodes[place];
            if inside.contains(&place) {
                continue;
            }
            if on_path.next_if_eq(&place).is_none() {
                self.constant(node).map_err(|reason| self.refuse(node, &reason))?;
                continue;
            }
            let slots: Vec<usize> =
                (0..node.input.len()).filter(|&slot| takes(&data, &node.input[slot])).collect();
            if slots.len() > 1 || node.input[slots[0]] != *current {
                let other =
                    slots.iter().map(|&slot| &node.input[slot]).find(|name| **name != *current);
                let other = brief(other.map_or(current, String::as_str));
                return Err(self.refuse(node, &format!("joins `{other}` to the chain")));
            }
            let done = match responses.get(&place) {
                Some(response) => self.response(node, response),
                None => self.step(node, slots[0]),
            };
            done.map_err(|reason| self.refuse(node, &reason))?;
            let Some(output) = node.output.first().filter(|output| !output.is_empty()) else {
                return Err(self.refuse(node, "expected an output, found none"));
            };
            current = output;
            if self.pending.is_none() && !self.chain.layers.is_empty() {
                self.last = Some(place);
            }
            let sizes = self.sizes();
            self.shapes.insert(current, sizes);
            if current == end {
                return self.finish();
            }
            self.branches(current, &data)?;
        }
        Err(Error::Network(format!(
            "expected an output on the path of the data, found `{}`, a second output of its node",
            brief(end)
        )))
    }

    /// An error at a node, and how far the network can be read.
    fn refuse(&self, node: &NodeProto, reason: &str) -> Error {
        let reason = format!("node {}: {reason}", node.called());
        match self.readable() {
            None => Error::Network(reason),
            until => not_a_chain(reason, until),
        }
    }

    /// The node up to which the network can be read, by a name that is its own, if there is a layer.
    fn readable(&self) -> Option<&'a str> {
        self.last.map(|last| self.graph.name_of(last))
    }

    /// Refuses a value that several nodes take.
    fn branches(&self, value: &str, data: &HashMap<&str, usize>) -> Result<()> {
        if data.get(value).is_none_or(|&users| users <= 1) {
            return Ok(());
        }
        let users = self.order.iter().map(|&place| &self.graph.nodes[place]);
        let users = users.filter(|node| {
            !matches!(&*node.op_type, "Shape" | "Size")
                && node.input.iter().any(|input| input == value)
        });
        let users: Vec<String> = users.take(6).map(NodeProto::called).collect();
        let of = match self.graph.maker(value) {
            Some(_) => String::new(),
            None => format!(", those of the input `{}`", brief(value)),
        };
        let users = users.join(", ");
        let reason =
            format!("expected a chain of layers, found a branch: {users} take the same values{of}");
        Err(not_a_chain(reason, self.readable()))
    }

    /// Takes what the file says of the input.
    fn begin(&mut self, input: &'a ValueInfoProto, path: &[usize]) -> Result<()> {
        let wrong =
            |reason: String| Error::Network(format!("input `{}`: {reason}", brief(&input.name)));
        let kind = input.r#type.as_ref().and_then(|kind| kind.tensor_type.as_ref());
        let dims = match kind.and_then(|kind| kind.shape.as_ref()) {
            None => [None; 4],
            Some(shape) => {
                let sizes: Vec<Option<usize>> = (shape.dim.iter().take(5))
                    .map(|dim| match dim.value {
                        Some(Dimension::DimValue(size)) => {
                            usize::try_from(size).ok().filter(|&size| size > 0)
                        }
                        _ => None,
                    })
                    .collect();
                <[_; 4]>::try_from(sizes).map_err(|sizes| {
                    wrong(format!(
                        "expected images, tensors of 4 axes, found one of {}",
                        sizes.len()
                    ))
                })?
            }
        };
        if let Some(size) = dims[1..].iter().flatten().find(|&&size| size > MAX_SIZE) {
            return Err(wrong(format!("expected sizes of at most {MAX_SIZE}, found {size}")));
        }
        match kind.map_or(0, |kind| kind.elem_type) {
            0 | 1 | 10 | 11 | 16 => {}
            2 => (self.affine.bytes, self.affine.found) = (true, true),
            other => {
                return Err(wrong(format!("expected floats or bytes, found ONNX's type {other}")));
            }
        }
        let last = self.starts_with_channels_last(&dims, path);
        let [batch, a, b, c] = dims;
        self.batch = batch.map_or(Int::Batch, |batch| Int::Known(batch as i64));
        let (channels, size) = if last { (c, [a, b]) } else { (a, [b, c]) };
        self.form = Form::Image { channels, size, last };
        self.chain.input = Input {
            channels: channels.unwrap_or(0),
            size: size[0].zip(size[1]).map(|(rows, columns)| [rows, columns]),
        };
        self.shapes.insert(&input.name, self.sizes());
        Ok(())
    }

    /// Whether the first layout that a node asks for is made from channels that stand last.
    fn starts_with_channels_last(&self, dims: &[Option<usize>; 4], path: &[usize]) -> bool {
        for &place in path {
            let node = &self.graph.nodes[place];
            match &*node.op_type {
                "Identity" | "Cast" | "Add" | "Sub" | "Mul" | "Div" | "Pad" | "Gather" => {}
                "Transpose" => return node.ints("perm") == Some(&[0, 3, 1, 2]),
                // Between layouts of one channel nothing moves, and some exporters say it so.
                "Reshape" => {
                    let to = node.ints("shape").map(<[i64]>::to_vec).or_else(|| {
                        let tensor = self.tensors.get(&**node.input.get(1)?)?;
                        let value =
                            tensor::read(tensor, &mut Files::new(None), &mut Budget(0)).ok()?;
                        value.known_ints().ok()
                    });
                    return matches!(to.as_deref(), Some([_, 1, _, _]))
                        && dims[3] == Some(1)
                        && dims[1] != Some(1);
                }
                _ => return false,
            }
        }
        false
    }

    /// The data's sizes.
    fn sizes(&self) -> Vec<Int> {
        let mut form = self.form.clone();
        if let (Form::Image { size: [rows, columns], .. }, Some(pending)) =
            (&mut form, &self.pending)
        {
            let [top, bottom, left, right] = pending.pad;
            (*rows, *columns) =
                (rows.map(|rows| rows + top + bottom), columns.map(|size| size + left + right));
        }
        [vec![self.batch], form.sizes()].concat()
    }

    /// A constant that an input names, once for each input.
    fn take(&mut self, node: &'a NodeProto, slot: usize) -> Result<Option<Value>, String> {
        if !node.has(slot) {
            return Ok(None);
        }
        let name: &'a str = &node.input[slot];
        if let Some(tensor) = self.tensors.remove(name) {
            let value = tensor::read(&tensor, &mut self.files, &mut self.budget);
            let value = value.map_err(|reason| format!("tensor `{}`: {reason}", brief(name)))?;
            self.values.insert(name, value);
        }
        let left = self.uses.entry(name).or_insert(1);
        *left = left.saturating_sub(1);
        let value =
            if *left == 0 { self.values.remove(name) } else { self.values.get(name).cloned() };
        value.map(Some).ok_or_else(|| format!("expected a constant, found `{}`", brief(name)))
    }

    /// A constant that must be there.
    fn needed(&mut self, node: &'a NodeProto, slot: usize) -> Result<Value, String> {
        self.take(node, slot)?.ok_or_else(|| format!("lacks its input {slot}"))
    }

    /// A constant as floats.
    fn floats(
        &mut self,
        node: &'a NodeProto,
        slot: usize,
    ) -> Result<(Vec<usize>, Vec<f32>), String> {
        let value = self.needed(node, slot)?;
        let shape = value.shape.clone();
        let values = value.into_floats(&mut self.budget);
        Ok((shape, values.map_err(|reason| of_input(node, slot, &reason))?))
    }

    /// As many floats as there are outputs.
    fn vector(&mut self, node: &'a NodeProto, slot: usize, len: usize) -> Result<Vec<f32>, String> {
        let value = self.needed(node, slot)?;
        if value.shape != [len] {
            let reason = format!("expected {len} values, found sizes {}", list(&value.shape));
            return Err(of_input(node, slot, &reason));
        }
        value.into_floats(&mut self.budget).map_err(|reason| of_input(node, slot, &reason))
    }

    /// Computes a node that no data goes through.
    fn constant(&mut self, node: &'a NodeProto) -> Result<(), String> {
        let Some(output) = node.output.first() else { return Ok(()) };
        check_domain(node)?;
        let of_data = node.input.first().and_then(|input| self.shapes.get(&**input));
        let value = match (&*node.op_type, of_data) {
            ("Shape", Some(sizes)) => fold::shape_of(node, sizes),
            ("Size", _) => Value { shape: vec![], data: Data::Ints(vec![Int::Open].into()) },
            _ => {
                let inputs = (0..node.input.len()).map(|slot| self.take(node, slot));
                let inputs = inputs.collect::<Result<Vec<_>, _>>()?;
                fold::fold(node, inputs, &mut self.files, &mut self.budget)?
            }
        };
        self.values.insert(output, value);
        Ok(())
    }

    /// Adds a layer.
    fn push(&mut self, node: &NodeProto, op: Op) {
        // Nodes may share a name, outputs do not.
        let name = match self.named.insert(node.label().into()) {
            true => node.label(),
            false => node.output.first().map_or("", String::as_str),
        };
        self.chain.layers.push(Layer { name: name.into(), op });
    }

    fn note(&mut self, node: &NodeProto, what: &str) {
        self.chain.notes.push(format!("{} {what}", node.called()));
    }

    /// Takes one node of the path, whose data is the input `slot`.
    fn step(&mut self, node: &'a NodeProto, slot: usize) -> Result<(), String> {
        check_domain(node)?;
        let operator = &*node.op_type;
        if slot != 0 && !matches!(operator, "Add" | "Mul") {
            return Err(format!("expected the data as its input 0, found it as input {slot}"));
        }
        if let Some(softmax) = &self.ended
            && !matches!(operator, "Identity" | "Cast" | "Flatten" | "Reshape")
        {
            return Err(format!("stands behind {softmax}, which is read only at the end"));
        }
        if let Some(pending) = &self.pending
            && !matches!(operator, "Identity" | "Transpose" | "Conv" | "MaxPool" | "Pad")
        {
            return Err(format!(
                "expected a Conv or MaxPool behind {}, to which its pad can be given",
                pending.by
            ));
        }
        match operator {
            "Identity" => Ok(()),
            "Cast" if casts_to_float(node) => Ok(()),
            "Cast" => Err("expected a cast to floats".into()),
            "Conv" => self.conv(node),
            "Relu" => {
                self.push(node, Op::Relu);
                Ok(())
            }
            "Clip" => self.clip(node),
            "MaxPool" => self.pool(node),
            "AveragePool" => self.average(node),
            "LRN" => self.lrn(node),
            "Gemm" => self.gemm(node),
            "MatMul" => self.matmul(node),
            "Add" | "Sub" | "Mul" | "Div" => self.arithmetic(node, 1 - slot),
            "BatchNormalization" => self.normalisation(node),
            "Flatten" => self.flatten(node),
            "Reshape" => self.reshape(node),
            "Squeeze" => self.squeeze(node),
            "Transpose" => self.transpose(node),
            "Pad" => self.pad(node),
            "Gather" => self.gather(node),
            "Dropout" => self.dropout(node),
            "Softmax" | "LogSoftmax" => self.softmax(node),
            "QLinearConv" | "ConvInteger" | "QuantizeLinear" | "DequantizeLinear"
            | "QLinearMatMul" => Err("is of a quantised network, and those are not read".into()),
            "If" | "Loop" | "Scan" => Err("holds graphs of its own, which are not read".into()),
            "GlobalAveragePool" | "ReduceMean" => Err("averages, which no layer here does".into()),
            _ => Err("is no layer that is known".into()),
        }
    }

    /// The data as images with channels before rows: channels if they are known, and sizes.
    fn image(&self) -> Result<(Option<usize>, [Option<usize>; 2]), String> {
        match self.form {
            Form::Image { channels, size, last: false } => Ok((channels, size)),
            Form::Image { last: true, .. } => {
                Err("expected channels before rows and columns, found them last".into())
            }
            Form::Flat { .. } => {
                Err("expected images, found values that have been flattened".into())
            }
        }
    }

    fn set_image(&mut self, channels: Option<usize>, size: [Option<usize>; 2]) {
        self.form = Form::Image { channels, size, last: false };
    }

    fn conv(&mut self, node: &'a NodeProto) -> Result<(), String> {
        let (channels, size) = self.image()?;
        let weight = self.needed(node, 1)?;
        let &[outputs, inputs, rows, columns] = &*weight.shape else {
            return Err(format!("expected filters of 4 axes, found sizes {}", list(&weight.shape)));
        };
        let window = Window::of(node, Some([rows, columns]))?;
        let said = node.int("group").unwrap_or(1);
        let groups =
            usize::try_from(said).ok().filter(|&groups| groups > 0 && outputs % groups == 0);
        let groups = groups.ok_or_else(|| {
            format!("expected groups that divide {outputs} outputs, found {said}")
        })?;
        let all = inputs.checked_mul(groups).filter(|&all| all > 0 && outputs > 0);
        let all =
            all.ok_or_else(|| format!("expected filters, found sizes {}", list(&weight.shape)))?;
        if channels.is_some_and(|channels| channels != all) {
            return Err(format!(
                "expected filters of {} channels, found {all} (sizes {}, {groups} groups)",
                channels.unwrap_or(0),
                list(&weight.shape)
            ));
        }
        let added = self.merge_pad(node, |value| value == 0.)?;
        let pad = window.pads(node, size, added)?;
        let after = window.outputs(size, pad, false)?;
        if channels.is_none() {
            // Nothing before it has changed them.
            self.chain.input.channels = all;
        }
        let values =
            weight.into_floats(&mut self.budget).map_err(|reason| of_input(node, 1, &reason))?;
        let bias = match node.has(2) {
            true => self.vector(node, 2, outputs)?,
            false => vec![0.; outputs],
        };
        let shape = vec![outputs, inputs, rows, columns];
        let weight = Tensor { name: node.input[1].clone(), shape, values };
        self.push(node, Op::Conv { weight, bias, stride: window.stride, pad, groups, ceil: false });
        self.set_image(Some(outputs), after);
        Ok(())
    }

    fn pool(&mut self, node: &NodeProto) -> Result<(), String> {
        let (channels, size) = self.image()?;
        let window = Window::of(node, None)?;
        let ceil = node.int("ceil_mode").unwrap_or(0) != 0;
        // Among values that are not negative zeros win only where all are zero.
        let positive = self.chain.layers.last().is_some_and(|layer| layer.op == Op::Relu);
        let added = self.merge_pad(node, |value| value < -1e30 || (positive && value == 0.))?;
        let pad = window.pads(node, size, added)?;
        let [top, bottom, left, right] = pad;
        if top.max(bottom) >= window.kernel[0] || left.max(right) >= window.kernel[1] {
            return Err(format!(
                "expected pads smaller than a window of {}, found {}",
                list(&window.kernel),
                list(&pad)
            ));
        }
        let after = window.outputs(size, pad, ceil)?;
        self.push(node, Op::MaxPool { kernel: window.kernel, stride: window.stride, pad, ceil });
        self.set_image(channels, after);
        Ok(())
    }

    /// The pad of Pad nodes before this one, or none.
    fn merge_pad(
        &mut self,
        node: &NodeProto,
        fits: impl Fn(f32) -> bool,
    ) -> Result<[usize; 4], String> {
        match self.pending.take() {
            None => Ok([0; 4]),
            Some(pending) if fits(pending.value) => {
                let by = format!("was given the pad of {}", pending.by);
                self.note(node, &by);
                Ok(pending.pad)
            }
            Some(pending) => Err(format!(
                "expected a pad that is the layer's own (zeros before a Conv, the lowest number before a MaxPool), \
                 found one of {} by {}",
                pending.value, pending.by
            )),
        }
    }

    /// What exporters make of an adaptive pool at the size at which it changes nothing.
    fn average(&mut self, node: &NodeProto) -> Result<(), String> {
        let (_, size) = self.image()?;
        let window = Window::of(node, None)?;
        if window.kernel != [1, 1]
            || window.stride != [1, 1]
            || window.pads(node, size, [0; 4])? != [0; 4]
        {
            return Err("averages, which no layer here does".into());
        }
        self.note(node, "of windows of one value was left out");
        Ok(())
    }

    fn lrn(&mut self, node: &NodeProto) -> Result<(), String> {
        self.image()?;
        let size = node.int("size").unwrap_or(0);
        let odd = usize::try_from(size).ok().filter(|size| size % 2 == 1 && *size < MAX_SIZE);
        let size =
            odd.ok_or_else(|| format!("expected an odd number of channels, found {size}"))?;
        let or = |name, default| node.float(name).unwrap_or(default);
        self.push(
            node,
            Op::Lrn { size, alpha: or("alpha", 1e-4), beta: or("beta", 0.75), k: or("bias", 1.) },
        );
        Ok(())
    }

    /// Local response normalisation of single steps.
    fn response(&mut self, node: &'a NodeProto, response: &Response) -> Result<(), String> {
        let graph = self.graph;
        let (channels, _) = self.image()?;
        let pool = &graph.nodes[response.pool];
        let all = |name: &str, value: i64| {
            pool.ints(name).is_none_or(|ints| ints.iter().all(|&int| int == value))
        };
        let size = match pool.ints("kernel_shape") {
            Some(&[size @ 1..=255, 1, 1])
                if size % 2 == 1 && all("strides", 1) && all("pads", 0) =>
            {
                size
            }
            _ => {
                return Err(format!(
                    "expected a mean of an odd number of channels, found that of {}",
                    pool.called()
                ));
            }
        };
        let mut around = [0; 10];
        for &place in &response.pads {
            let pad = &graph.nodes[place];
            let given = self.take(pad, 1)?;
            let pads = ints_of(pad, "pads", given)?.unwrap_or_default();
            let value = match self.take(pad, 2)? {
                Some(value) => value.scalar()?,
                None => pad.float("value").unwrap_or(0.),
            };
            let constant = pad.text("mode").is_none_or(|mode| mode == "constant");
            if pads.len() != 10 || value != 0. || !constant {
                return Err(format!("expected a pad of zeros, found that of {}", pad.called()));
            }
            around
                .iter_mut()
                .zip(&pads)
                .for_each(|(around, pad)| *around = pad.saturating_add(*around));
        }
        let side = (size - 1) / 2;
        if around != [0, 0, side, 0, 0, 0, 0, side, 0, 0] {
            return Err(format!("expected pads of {side} channels, found {}", list(&around)));
        }
        let count = channels.map_or(Int::Open, |channels| Int::Known(channels as i64));
        for &place in &response.reshapes {
            let reshape = &graph.nodes[place];
            let sizes = match reshape.ints("shape") {
                Some(sizes) => sizes.iter().map(|&size| Int::Known(size)).collect(),
                None => self.needed(reshape, 1)?.as_ints()?.to_vec(),
            };
            match sizes[..] {
                [_, Int::Known(1), channels, _, _] | [_, channels, _, _] if channels == count => {}
                _ => {
                    return Err(format!(
                        "expected channels to keep their places, found {}",
                        reshape.called()
                    ));
                }
            }
        }
        let mut constant =
            |(place, slot): (usize, usize)| self.needed(&graph.nodes[place], slot)?.scalar();
        let [alpha, k, beta] = response.constants;
        let (alpha, k, beta) = (constant(alpha)?, constant(k)?, constant(beta)?);
        self.push(node, Op::Lrn { size: size as usize, alpha, beta, k });
        self.note(node, "and the steps before it are a local response normalisation");
        Ok(())
    }

    fn clip(&mut self, node: &'a NodeProto) -> Result<(), String> {
        let mut bound = |name: &str, slot: usize, open: f32| match node.float(name) {
            Some(bound) => Ok(bound),
            None => match self.take(node, slot)? {
                Some(bound) => bound.scalar(),
                None => Ok(open),
            },
        };
        let (low, high) = (bound("min", 1, f32::MIN)?, bound("max", 2, f32::MAX)?);
        if low != 0. || high < f32::MAX {
            return Err(format!("expected max(x, 0), found bounds {low} and {high}"));
        }
        self.push(node, Op::Relu);
        Ok(())
    }

    fn gemm(&mut self, node: &'a NodeProto) -> Result<(), String> {
        if node.int("transA").unwrap_or(0) != 0 {
            return Err("expected data that is not transposed (transA = 0)".into());
        }
        let (alpha, beta) = (node.float("alpha").unwrap_or(1.), node.float("beta").unwrap_or(1.));
        self.connected(node, node.int("transB").unwrap_or(0) != 0, alpha)?;
        if !node.has(2) || beta == 0. {
            return Ok(());
        }
        let value = self.needed(node, 2)?;
        let Some(Layer { op: Op::Fc { bias, .. }, .. }) = self.chain.layers.last_mut() else {
            return Ok(());
        };
        let one_each = match *value.shape {
            [] | [1] | [1, 1] => false,
            [len] | [1, len] if len == bias.len() => true,
            _ => {
                let reason =
                    format!("expected {} values, found sizes {}", bias.len(), list(&value.shape));
                return Err(of_input(node, 2, &reason));
            }
        };
        let outputs = bias.len();
        let values =
            value.into_floats(&mut self.budget).map_err(|reason| of_input(node, 2, &reason))?;
        let each = (0..outputs).map(|output| beta * values[if one_each { output } else { 0 }]);
        if let Some(Layer { op: Op::Fc { bias, .. }, .. }) = self.chain.layers.last_mut() {
            *bias = each.collect();
        }
        Ok(())
    }

    fn matmul(&mut self, node: &'a NodeProto) -> Result<(), String> {
        self.connected(node, false, 1.)
    }

    /// A fully connected layer without biases, of the matrix that is input 1: `[outputs, inputs]` if `rows`.
    fn connected(&mut self, node: &'a NodeProto, rows: bool, alpha: f32) -> Result<(), String> {
        let Form::Flat { values, by_place } = self.form else {
            return Err("expected values that have been flattened, found images".into());
        };
        let weight = self.needed(node, 1)?;
        let &[first, second] = &*weight.shape else {
            return Err(format!("expected a matrix, found sizes {}", list(&weight.shape)));
        };
        let (outputs, inputs) = if rows { (first, second) } else { (second, first) };
        if outputs == 0 || inputs == 0 || values.is_some_and(|values| values != inputs) {
            let known = values.map_or("some".into(), |values| values.to_string());
            return Err(format!(
                "expected weights of {known} inputs, found {inputs} inputs and {outputs} outputs"
            ));
        }
        // Constants all alike are the same in any order.
        let same = matches!(weight.data, Data::Fill(_));
        let mut weight =
            weight.into_floats(&mut self.budget).map_err(|reason| of_input(node, 1, &reason))?;
        if !rows && !same {
            weight = transposed(&weight, inputs, outputs);
        }
        if let Some(channels) = by_place {
            if channels == 0 || inputs % channels != 0 {
                return Err(format!("expected {channels} values a place, found {inputs} in all"));
            }
            if channels != inputs && !same {
                for row in weight.chunks_exact_mut(inputs) {
                    let ordered = transposed(row, inputs / channels, channels);
                    row.copy_from_slice(&ordered);
                }
            }
            self.note(node, "had its inputs put into the order channel by channel");
        }
        if alpha != 1. {
            weight.iter_mut().for_each(|weight| *weight *= alpha);
        }
        let weight =
            Tensor { name: node.input[1].clone(), shape: vec![outputs, inputs], values: weight };
        self.push(node, Op::Fc { weight, bias: vec![0.; outputs] });
        self.form = Form::Flat { values: Some(outputs), by_place: None };
        Ok(())
    }

    /// Checks that a constant is of one value, or of one a channel of the data.
    fn per_channel(&self, node: &NodeProto, shape: &[usize], values: &[f32]) -> Result<(), String> {
        let (axis, rank) = self.form.axes();
        let channels = self.form.channels();
        // Before opset 7 an attribute says where the constant's axes begin.
        let start = match node.int("axis").filter(|_| node.int("broadcast") == Some(1)) {
            Some(start) => Some(axis_of(start, rank)?),
            None => rank.checked_sub(shape.len()),
        };
        let fits = values.len() == 1
            || start.is_some_and(|start| {
                shape.iter().enumerate().all(|(own, &size)| {
                    size == 1
                        || (start + own == axis && channels.is_none_or(|channels| channels == size))
                })
            });
        match fits && !values.is_empty() {
            true => Ok(()),
            false => Err(format!(
                "expected one value or one of each of {} channels, found sizes {}",
                channels.map_or("the".into(), |channels| channels.to_string()),
                list(shape)
            )),
        }
    }

    fn arithmetic(&mut self, node: &'a NodeProto, slot: usize) -> Result<(), String> {
        let (shape, values) = self.floats(node, slot)?;
        let first = self.chain.layers.is_empty();
        if let Form::Image { channels, size: [Some(rows), Some(columns)], last: false } = self.form
            && first
            && matches!(&*shape, &[1, c, h, w] | &[c, h, w] if c > 0 && [h, w] == [rows, columns] && [h, w] != [1, 1])
            && channels.is_none_or(|channels| values.len() == channels * rows * columns)
        {
            return self.affine.take_image(&node.op_type, values, [rows, columns]);
        }
        self.per_channel(node, &shape, &values)?;
        if first {
            return self.affine.take(&node.op_type, &values);
        }
        let values = values.into_iter().map(f64::from);
        let (factor, shift): (Vec<f64>, Vec<f64>) = match &*node.op_type {
            "Add" => (vec![1.], values.collect()),
            "Sub" => (vec![1.], values.map(|value| -value).collect()),
            "Mul" => (values.collect(), vec![0.]),
            _ => (values.map(|value| 1. / value).collect(), vec![0.]),
        };
        self.scale_layer(node, &factor, &shift)
    }

    /// Gives the layer directly before, a convolution or a fully connected one, a factor and a shift of its outputs.
    fn scale_layer(
        &mut self,
        node: &NodeProto,
        factor: &[f64],
        shift: &[f64],
    ) -> Result<(), String> {
        let image = matches!(self.form, Form::Image { .. });
        let (weight, bias, name) = match self.chain.layers.last_mut() {
            Some(Layer { op: Op::Conv { weight, bias, .. }, name }) if image => {
                (weight, bias, name)
            }
            Some(Layer { op: Op::Fc { weight, bias }, name }) if !image => (weight, bias, name),
            _ => {
                return Err(
                    "expected a Conv, Gemm or MatMul directly before it, into which it is folded"
                        .into(),
                );
            }
        };
        let of = |values: &[f64], place: usize| values[if values.len() == 1 { 0 } else { place }];
        let inputs = weight.values.len() / bias.len();
        for (place, (bias, weights)) in
            bias.iter_mut().zip(weight.values.chunks_exact_mut(inputs)).enumerate()
        {
            let (factor, shift) = (of(factor, place), of(shift, place));
            if !factor.is_finite() || !shift.is_finite() {
                return Err(format!(
                    "expected finite numbers, found {factor} and {shift} for channel {place}"
                ));
            }
            *bias = (f64::from(*bias) * factor + shift) as f32;
            if factor != 1. {
                weights
                    .iter_mut()
                    .for_each(|weight| *weight = (f64::from(*weight) * factor) as f32);
            }
        }
        let into = format!("was folded into `{}`", brief(name));
        if node.op_type != "Add" {
            self.note(node, &into);
        }
        Ok(())
    }

    fn normalisation(&mut self, node: &'a NodeProto) -> Result<(), String> {
        if node.int("training_mode").unwrap_or(0) != 0 || node.int("spatial") == Some(0) {
            return Err(
                "expected batch normalisation of channels, by statistics in the file".into()
            );
        }
        let channels =
            self.form.channels().ok_or("stands where the number of channels is not known")?;
        let mut given = |slot| self.vector(node, slot, channels);
        let (scale, shift, mean, variance) = (given(1)?, given(2)?, given(3)?, given(4)?);
        let epsilon = f64::from(node.float("epsilon").unwrap_or(1e-5));
        let factor: Vec<f64> = (scale.iter().zip(&variance))
            .map(|(&scale, &variance)| f64::from(scale) / (f64::from(variance) + epsilon).sqrt())
            .collect();
        let shift: Vec<f64> = (shift.iter().zip(&mean).zip(&factor))
            .map(|((&shift, &mean), factor)| f64::from(shift) - f64::from(mean) * factor)
            .collect();
        self.scale_layer(node, &factor, &shift)
    }

    fn flatten_form(&mut self, values: Option<usize>) -> Result<(), String> {
        self.form = match self.form {
            Form::Image { channels, size, last } => {
                // One place, or one channel: both orders are the same.
                let trivial = size == [Some(1); 2] || channels == Some(1);
                let by_place = (last && !trivial).then_some(channels).flatten();
                if last && !trivial && by_place.is_none() {
                    return Err("flattens channels of which the number is not known".into());
                }
                Form::Flat { values, by_place }
            }
            Form::Flat { by_place, .. } => Form::Flat { values, by_place },
        };
        Ok(())
    }

    fn flatten(&mut self, node: &NodeProto) -> Result<(), String> {
        let (_, rank) = self.form.axes();
        let axis = axis_of(node.int("axis").unwrap_or(1), rank)?;
        if axis != 1 {
            return Err(format!(
                "expected all but the first axis to become one, found axis {axis}"
            ));
        }
        self.flatten_form(self.form.values())
    }

    fn reshape(&mut self, node: &'a NodeProto) -> Result<(), String> {
        let to = match node.ints("shape") {
            Some(sizes) => sizes.iter().map(|&size| Int::Known(size)).collect(),
            None => self.needed(node, 1)?.as_ints()?.to_vec(),
        };
        let shown: Vec<String> = (to.iter())
            .map(|int| match int {
                Int::Known(size) => size.to_string(),
                Int::Batch => "images".into(),
                Int::Open => "open".into(),
            })
            .collect();
        let from = self.sizes();
        let zero_is_zero = node.int("allowzero").unwrap_or(0) != 0;
        // 0 stands for the size that there is.
        let filled: Vec<Int> = (to.iter().enumerate())
            .map(|(axis, int)| match int {
                Int::Known(0) if !zero_is_zero => from.get(axis).copied().unwrap_or(Int::Open),
                other => *other,
            })
            .collect();
        let wrong = || {
            Err(format!(
                "expected a reshape that flattens all but the first axis, found sizes {}; if they depend on the size of \
                 images, export the network with a fixed one",
                list(&shown)
            ))
        };
        let images = match (filled.first(), self.batch) {
            (Some(Int::Batch), _) | (Some(Int::Known(-1 | 1)), Int::Batch) => true,
            (Some(Int::Known(-1)), _) => true,
            (Some(one), batch) => *one == batch,
            (None, _) => false,
        };
        if !images {
            return wrong();
        }
        let open = Int::Known(-1);
        match (&filled[1..], &self.form) {
            (&[values], form) => {
                let known = form.values();
                let values = match values {
                    Int::Known(-1) if filled[0] != open => known,
                    Int::Known(values)
                        if values > 0 && known.is_none_or(|known| known as i64 == values) =>
                    {
                        Some(values as usize)
                    }
                    _ => return wrong(),
                };
                self.flatten_form(values)
            }
            // What a fully connected layer makes, as channels of one place each.
            (&[to, Int::Known(1), Int::Known(1)], &Form::Flat { values: Some(values), .. })
                if (to == open && filled[0] != open || to == Int::Known(values as i64))
                    && self.is_connected() =>
            {
                self.set_image(Some(values), [Some(1); 2]);
                Ok(())
            }
            // The same sizes, or the other layout of one channel.
            (rest @ [_, _, _], &Form::Image { channels, size, last }) => {
                let left = filled.iter().filter(|&&size| size == open).count();
                let fits = |form: &Form| {
                    let mut sizes = form.sizes().into_iter().zip(rest);
                    left <= 1
                        && sizes.all(|(size, &to)| to == open || (to == size && size != Int::Open))
                };
                let same = Form::Image { channels, size, last };
                let other = Form::Image { channels, size, last: !last };
                if fits(&same) {
                    Ok(())
                } else if channels == Some(1) && fits(&other) {
                    self.form = other;
                    Ok(())
                } else {
                    wrong()
                }
            }
            _ => wrong(),
        }
    }

    /// Whether the data is what a fully connected layer makes, or what layers without neighbours make of that.
    fn is_connected(&self) -> bool {
        let mut layers = self.chain.layers.iter().rev();
        let last = layers.find(|layer| !matches!(layer.op, Op::Relu | Op::Dropout { .. }));
        matches!(last, Some(Layer { op: Op::Fc { .. }, .. }))
    }

    fn squeeze(&mut self, node: &'a NodeProto) -> Result<(), String> {
        let axes = match node.has(1) {
            true => Some(self.needed(node, 1)?),
            false => None,
        };
        let axes = ints_of(node, "axes", axes)?.ok_or("expected axes")?;
        let mut axes = axes.iter().map(|&axis| axis_of(axis, 4)).collect::<Result<Vec<_>, _>>()?;
        axes.sort();
        let Form::Image { channels, size: [Some(1), Some(1)], last } = self.form else {
            return Err("expected images of one row and one column".into());
        };
        if axes != if last { [1, 2] } else { [2, 3] } {
            return Err(format!(
                "expected rows and columns to be taken off, found axes {}",
                list(&axes)
            ));
        }
        self.flatten_form(channels)
    }

    fn transpose(&mut self, node: &NodeProto) -> Result<(), String> {
        let order = node.ints("perm").unwrap_or_default();
        let same = (0..self.form.axes().1 as i64).eq(order.iter().copied());
        match (&mut self.form, order) {
            _ if same => Ok(()),
            (Form::Image { last, .. }, [0, 2, 3, 1]) if !*last => {
                *last = true;
                Ok(())
            }
            (Form::Image { last, .. }, [0, 3, 1, 2]) if *last => {
                *last = false;
                Ok(())
            }
            _ => Err(format!(
                "expected channels to be moved to the end, or back before rows and columns, found the order {}",
                list(order)
            )),
        }
    }

    fn pad(&mut self, node: &'a NodeProto) -> Result<(), String> {
        let Form::Image { last, .. } = self.form else {
            return Err("expected images, found values that have been flattened".into());
        };
        if let Some(mode) = node.text("mode").filter(|mode| mode != "constant") {
            return Err(format!("expected a constant pad, found `{}`", brief(&mode)));
        }
        let given = self.take(node, 1)?;
        let pads = match node.ints("paddings") {
            Some(pads) => pads.to_vec(),
            None => ints_of(node, "pads", given)?.ok_or("expected pads")?,
        };
        let value = match self.take(node, 2)? {
            Some(value) => value.scalar()?,
            None => node.float("value").unwrap_or(0.),
        };
        let axes = match self.take(node, 3)? {
            Some(axes) => axes
                .known_ints()?
                .iter()
                .map(|&axis| axis_of(axis, 4))
                .collect::<Result<Vec<_>, _>>()?,
            None => vec![0, 1, 2, 3],
        };
        let wrong = || {
            format!(
                "expected pads of rows and columns that are not negative, found {}",
                list(&pads)
            )
        };
        if pads.len() != 2 * axes.len() || axes.len() > 4 {
            return Err(wrong());
        }
        let (rows, columns) = if last { (1, 2) } else { (2, 3) };
        let mut pad = [0; 4];
        for (place, &axis) in axes.iter().enumerate() {
            for (end, &pixels) in [pads[place], pads[axes.len() + place]].iter().enumerate() {
                let pixels = usize::try_from(pixels)
                    .ok()
                    .filter(|&pixels| pixels < MAX_SIZE)
                    .ok_or_else(wrong)?;
                match axis {
                    _ if axis == rows => pad[end] += pixels,
                    _ if axis == columns => pad[2 + end] += pixels,
                    _ if pixels == 0 => {}
                    _ => return Err(wrong()),
                }
            }
        }
        let mut by = node.called();
        if let Some(before) = self.pending.take() {
            if before.value != value {
                return Err(format!(
                    "expected pads of one value, found {value} around {}",
                    before.value
                ));
            }
            (0..4).for_each(|side| pad[side] += before.pad[side]);
            by = before.by;
        }
        if pad.iter().any(|&pad| pad >= MAX_SIZE) {
            return Err(wrong());
        }
        self.pending = (pad != [0; 4]).then_some(Pending { pad, value, by });
        Ok(())
    }

    /// Channels of the input in another order.
    fn gather(&mut self, node: &'a NodeProto) -> Result<(), String> {
        let (axis, rank) = self.form.axes();
        let places = self.needed(node, 1)?.known_ints()?;
        let by = axis_of(node.int("axis").unwrap_or(0), rank)?;
        if !self.chain.layers.is_empty() || by != axis || rank != 4 || places != [2, 1, 0] {
            return Err("expected the three channels of the input to be turned around".into());
        }
        if self.form.channels().is_some_and(|channels| channels != 3) {
            return Err("expected images of 3 channels".into());
        }
        self.affine.turn()
    }

    fn dropout(&mut self, node: &'a NodeProto) -> Result<(), String> {
        let rate = match (node.float("ratio"), self.take(node, 1)?) {
            (Some(rate), _) => rate,
            (None, Some(rate)) => rate.scalar()?,
            (None, None) => 0.5,
        };
        if !(0. ..1.).contains(&rate) {
            return Err(format!("expected a rate from 0 to less than 1, found {rate}"));
        }
        if rate > 0. {
            self.push(node, Op::Dropout { rate });
        }
        Ok(())
    }

    fn softmax(&mut self, node: &NodeProto) -> Result<(), String> {
        let Form::Flat { .. } = self.form else {
            return Err("expected values that have been flattened, found images".into());
        };
        let axis = axis_of(node.int("axis").unwrap_or(1), 2)?;
        if axis != 1 {
            return Err("expected a softmax of each image's values".into());
        }
        self.note(node, "at the end was left out");
        self.ended = Some(node.called());
        Ok(())
    }

    fn finish(mut self) -> Result<Chain> {
        if let Some(pending) = &self.pending {
            return Err(Error::Network(format!(
                "{} pads, and no layer follows that it could be given to",
                pending.by
            )));
        }
        if self.chain.input.channels == 0 {
            return Err(Error::Network(
                "expected images of a number of channels, found neither a size of the input nor a convolution that says \
                 it"
                .into(),
            ));
        }
        let channels = self.chain.input.channels;
        if self.affine.found {
            self.chain.preprocessing =
                Some(self.affine.preprocessing(channels, &mut self.chain.notes)?);
        }
        Ok(self.chain)
    }
}

/// What is wrong with a constant.
fn of_input(node: &NodeProto, slot: usize, reason: &str) -> String {
    format!("tensor `{}`: {reason}", brief(&node.input[slot]))
}

fn check_domain(node: &NodeProto) -> Result<(), String> {
    match is_onnx(&node.domain) {
        true => Ok(()),
        false => Err(format!("is no operator of ONNX's own, but one of `{}`", brief(&node.domain))),
    }
}

/// A matrix of so many rows and columns, with columns as rows.
fn transposed(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    // Tiles, so that what is read and what is written both stay in the cache.
    const SIDE: usize = 32;
    let mut made = vec![0.; values.len()];
    for row in (0..rows).step_by(SIDE) {
        for column in (0..columns).step_by(SIDE) {
            for row in row..rows.min(row + SIDE) {
                for column in column..columns.min(column + SIDE) {
                    made[column * rows + row] = values[row * columns + column];
                }
            }
        }
    }
    made
}
