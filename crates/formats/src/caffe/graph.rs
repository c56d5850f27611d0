//! Which layers are a network's, and the chain they form.

use std::collections::{HashMap, HashSet};

use zfnet_core::{Error, Result};

use super::proto::{LayerParameter, NetStateRule, Phase};
use super::{Net, data, layer};
use crate::Chain;
use crate::chain::not_a_chain;

/// Most inputs or outputs of a layer.
const MAX_ENDS: usize = 1000;

/// What follows one layer of a chain.
struct Graph<'a> {
    layers: &'a [LayerParameter],
    /// For each value the layers that take it.
    users: Vec<Vec<usize>>,
    /// For each layer the values that it makes.
    outputs: Vec<Vec<usize>>,
    /// Values that come from outside: which input of the network, or which layer with which output.
    sources: Vec<(usize, Source)>,
}

/// Where a network's input comes from.
#[derive(Clone, Copy)]
enum Source {
    Input(usize),
    Layer(usize, usize),
}

/// Losses, measures and what else ends a network in training: nothing else depends on them.
const ENDS: [&str; 12] = [
    "Accuracy",
    "ArgMax",
    "ContrastiveLoss",
    "EuclideanLoss",
    "HDF5Output",
    "HingeLoss",
    "InfogainLoss",
    "MultinomialLogisticLoss",
    "SigmoidCrossEntropyLoss",
    "Silence",
    "SoftmaxLoss",
    "SoftmaxWithLoss",
];

/// The chain of a network's layers, up to `until` and with it.
pub fn chain(net: Net, until: Option<&str>) -> Result<Chain> {
    let Net { name, inputs, mut layers, stored } = net;
    // What is computed with, apart from how layers follow each other.
    let mut blobs: Vec<_> =
        layers.iter_mut().map(|layer| std::mem::take(&mut layer.blobs)).collect();
    let graph = Graph::new(&layers, &inputs)?;
    let sources = graph.inputs()?;
    let (mut value, source) = sources[0];
    let (source_layer, sizes) = match source {
        Source::Input(input) => (None, inputs[input].1.clone()),
        Source::Layer(layer, output) => (Some(&layers[layer]), data::sizes(&layers[layer], output)),
    };
    let input = data::known(source_layer, &sizes)?;
    let mut built = layer::Built::new(name, input);
    let mut passed: Vec<&str> = Vec::new();
    while let Some(next) = graph.next(value, &passed)? {
        let layer = &layers[next];
        let up_to_here = |error| match error {
            Error::Network(text) if !passed.is_empty() => not_a_chain(text, passed.last().copied()),
            error => error,
        };
        if let (true, Some(stored)) = (blobs[next].is_empty() && layer::has_weights(layer), &stored)
        {
            return Err(up_to_here(layer::error(
                layer,
                format!(
                    "expected its weights in the .caffemodel, found none: that has weights of {}; give the prototxt \
                     of this file",
                    stored.join(", ")
                ),
            )));
        }
        if layer.bottom.len() > 1 {
            return Err(up_to_here(layer::error(
                layer,
                format!(
                    "expected one input, found {}: {}",
                    layer.bottom.len(),
                    layer.bottom.join(", ")
                ),
            )));
        }
        built.push(layer, std::mem::take(&mut blobs[next])).map_err(up_to_here)?;
        passed.push(layer.name());
        let Some(&output) = graph.outputs[next].first() else {
            return Err(layer::error(layer, "expected an output, found none"));
        };
        // Beside its maxima pooling may give their places.
        if let Some(other) =
            graph.outputs[next][1..].iter().find(|&&other| !graph.live(other).is_empty())
        {
            let user = layers[graph.live(*other)[0]].name();
            return Err(layer::error(
                layer,
                format!("expected one output, found another that `{user}` takes"),
            ));
        }
        if until == Some(layer.name()) {
            return built.finish(|chain| data::preprocessing(chain, source_layer));
        }
        value = output;
    }
    if let Some(until) = until {
        let known = passed.iter().map(|&name| name.to_owned()).collect();
        return Err(Error::UnknownLayer { name: until.to_owned(), known });
    }
    if let Some(&(other, _)) = sources.get(1) {
        let text = format!("expected a network of one input, found {}", sources.len());
        return Err(layer::error(&layers[graph.live(other)[0]], text));
    }
    let left_out: Vec<_> = graph.users[value]
        .iter()
        .map(|&end| format!("{} ({})", layers[end].name(), layers[end].r#type()))
        .collect();
    if !left_out.is_empty() {
        built.note(format!("left out at the end: {}", left_out.join(", ")));
    }
    built.finish(|chain| data::preprocessing(chain, source_layer))
}

/// The layers that a network has when it is tested. A snapshot of training has only those of training: one of them
/// stays where others need what it makes, or, in place, where testing has nothing else for it.
pub fn tested(layers: Vec<LayerParameter>, inputs: &[(String, Vec<i64>)]) -> Vec<LayerParameter> {
    let tops = |wanted: fn(&LayerParameter) -> bool| -> HashSet<String> {
        layers.iter().filter(|layer| wanted(layer)).flat_map(|layer| layer.top.clone()).collect()
    };
    let mut made = tops(|layer| has(layer, Phase::Test));
    made.extend(inputs.iter().map(|(name, _)| name.clone()));
    let replaced = tops(|layer| has(layer, Phase::Test) && !has(layer, Phase::Train));
    let mut needed = HashSet::new();
    let mut kept = Vec::new();
    for layer in layers.into_iter().rev() {
        let stays = has(&layer, Phase::Test)
            || has(&layer, Phase::Train)
                && match layer.top == layer.bottom {
                    true => !layer.top.iter().any(|top| replaced.contains(top)),
                    false => layer.top.iter().any(|top| needed.contains(top)),
                };
        if stays {
            needed.extend(layer.bottom.iter().filter(|bottom| !made.contains(*bottom)).cloned());
            kept.push(layer);
        }
    }
    kept.reverse();
    kept
}

/// Whether a network has a layer in a phase, at level 0 and without stages.
pub fn has(layer: &LayerParameter, phase: Phase) -> bool {
    let met = |rule: &NetStateRule| {
        rule.phase.is_none_or(|wanted| wanted == phase as i32)
            && rule.min_level.is_none_or(|level| level <= 0)
            && rule.max_level.is_none_or(|level| level >= 0)
            && rule.stage.is_empty()
    };
    match layer.include.is_empty() {
        true => !layer.exclude.iter().any(met),
        false => layer.include.iter().any(met),
    }
}

impl<'a> Graph<'a> {
    /// In Caffe a name stands for what the last layer above has made under it, so there are no cycles.
    fn new(layers: &'a [LayerParameter], inputs: &[(String, Vec<i64>)]) -> Result<Self> {
        let mut graph = Graph {
            layers,
            users: Vec::new(),
            outputs: Vec::with_capacity(layers.len()),
            sources: Vec::new(),
        };
        let mut named: HashMap<&str, usize> = HashMap::new();
        for (place, (name, _)) in inputs.iter().enumerate() {
            if named.insert(name, graph.users.len()).is_some() {
                return Err(Error::Network(format!("expected one input `{name}`, found two")));
            }
            graph.sources.push((graph.users.len(), Source::Input(place)));
            graph.users.push(Vec::new());
        }
        for (place, layer) in layers.iter().enumerate() {
            let split = layer.r#type() == "Split";
            let most = layer.bottom.len().max(layer.top.len());
            if most > MAX_ENDS {
                return Err(layer::error(
                    layer,
                    format!("expected at most {MAX_ENDS} inputs and outputs, found {most}"),
                ));
            }
            let mut taken = None;
            for bottom in &layer.bottom {
                let &value = named.get(&**bottom).ok_or_else(|| {
                    layer::error(
                        layer,
                        format!(
                            "expected as its input what a layer above it makes, found `{bottom}`, which none does: if \
                             that is the network's input, give the prototxt that says so"
                        ),
                    )
                })?;
                taken = Some(value);
                if !split && graph.users[value].last() != Some(&place) {
                    graph.users[value].push(place);
                }
            }
            let mut outputs = Vec::new();
            for (i, top) in layer.top.iter().enumerate() {
                if named.contains_key(&**top) && !layer.bottom.contains(top)
                    || layer.top[..i].contains(top)
                {
                    return Err(layer::error(
                        layer,
                        format!(
                            "expected outputs that no other layer makes, found `{top}`, which one does"
                        ),
                    ));
                }
                let value = match taken {
                    Some(value) if split => value,
                    _ => {
                        graph.users.push(Vec::new());
                        graph.users.len() - 1
                    }
                };
                if layer.bottom.is_empty() {
                    graph.sources.push((value, Source::Layer(place, i)));
                }
                outputs.push(value);
            }
            // After its inputs have been looked up: a layer in place makes what it takes.
            for (top, &value) in layer.top.iter().zip(&outputs) {
                named.insert(top, value);
            }
            graph.outputs.push(outputs);
        }
        Ok(graph)
    }

    /// The layers that take a value and do not end the network.
    fn live(&self, value: usize) -> Vec<usize> {
        let ends = |&user: &usize| {
            let kind = self.layers[user].r#type();
            let followed = |&output: &usize| {
                let users = &self.users[output];
                users.iter().any(|&user| !ENDS.contains(&self.layers[user].r#type()))
            };
            ENDS.contains(&kind) || kind == "Softmax" && !self.outputs[user].iter().any(followed)
        };
        self.users[value].iter().copied().filter(|user| !ends(user)).collect()
    }

    /// The values from outside that anything is computed of, by the first layer that takes them. What joins the first
    /// one later is refused there.
    fn inputs(&self) -> Result<Vec<(usize, Source)>> {
        let first = |&(value, _): &(usize, Source)| self.live(value).first().copied();
        let mut used: Vec<_> =
            self.sources.iter().filter_map(|source| Some((first(source)?, *source))).collect();
        used.sort_by_key(|&(first, _)| first);
        if used.is_empty() {
            return Err(Error::Network(
                "expected an input and layers that compute something of it, found none".into(),
            ));
        }
        Ok(used.into_iter().map(|(_, source)| source).collect())
    }

    /// The layer that takes a value, if any does; `passed` are the layers up to it.
    fn next(&self, value: usize, passed: &[&str]) -> Result<Option<usize>> {
        let users = self.live(value);
        match users[..] {
            [] => Ok(None),
            [next] => Ok(Some(next)),
            _ => {
                let names = users.iter().map(|&user| {
                    format!("`{}` ({})", self.layers[user].name(), self.layers[user].r#type())
                });
                let names = names.collect::<Vec<_>>().join(", ");
                let at = if passed.is_empty() { ", those of the input" } else { "" };
                let reason = format!(
                    "expected a chain of layers, found a branch: {names} take the same values{at}"
                );
                Err(not_a_chain(reason, passed.last().copied()))
            }
        }
    }
}

impl layer::Built {
    /// The chain, when its preprocessing has been set.
    fn finish(self, preprocess: impl FnOnce(&mut Chain) -> Result<()>) -> Result<Chain> {
        let mut chain = self.chain()?;
        preprocess(&mut chain)?;
        Ok(chain)
    }
}
