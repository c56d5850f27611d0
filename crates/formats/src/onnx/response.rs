//! Local response normalisation in single steps, as PyTorch writes it, found again.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::graph::Graph;
use super::proto::NodeProto;

/// The nodes that are one: `x / (k + alpha * mean of neighbours' squares)^beta`.
pub struct Response {
    /// All but the division at the end, which has the result, and `x` as its input 0.
    pub inside: Vec<usize>,
    /// The pool over channels, a Pad of which is among those before it.
    pub pool: usize,
    /// Pads of channels.
    pub pads: Vec<usize>,
    /// What makes five axes of four, and four of five.
    pub reshapes: Vec<usize>,
    /// Node and input of the factor of the mean, of what is added, and of the exponent.
    pub constants: [(usize, usize); 3],
}

/// Those among some nodes, by the division at their end.
pub fn find(graph: &Graph<'_>, order: &[usize]) -> BTreeMap<usize, Response> {
    let mut found: BTreeMap<usize, Response> =
        order.iter().filter_map(|&place| Some((place, response(graph, place)?))).collect();
    // What is used elsewhere too is no step of one layer.
    let owners: HashMap<usize, usize> = (found.iter())
        .flat_map(|(&end, response)| response.inside.iter().map(move |&place| (place, end)))
        .collect();
    let mut shared: HashSet<usize> = HashSet::new();
    for &place in order {
        for maker in graph.nodes[place].input.iter().filter_map(|input| graph.maker(input)) {
            let owner = owners.get(&maker).copied();
            if owner.is_some_and(|end| end != place && owners.get(&place) != Some(&end)) {
                shared.extend(owner);
            }
        }
    }
    found.retain(|end, _| !shared.contains(end));
    found
}

fn response(graph: &Graph<'_>, end: usize) -> Option<Response> {
    let node = |place: usize| &graph.nodes[place];
    let maker = |place: usize, slot: usize, operator: &str| {
        let maker = graph.maker(node(place).input.get(slot)?)?;
        (node(maker).op_type == operator).then_some(maker)
    };
    // The input of a sum or product that such a node makes, and the other.
    let either = |place: usize, wanted: &dyn Fn(&NodeProto) -> bool| {
        let (slot, made) = [0, 1].into_iter().find_map(|slot| {
            let made = graph.maker(node(place).input.get(slot)?)?;
            wanted(node(made)).then_some((slot, made))
        })?;
        Some((made, 1 - slot))
    };
    if node(end).op_type != "Div" {
        return None;
    }
    let x = node(end).input.first()?;
    let power = maker(end, 1, "Pow")?;
    let sum = maker(power, 0, "Add")?;
    let (product, added) = either(sum, &|node| node.op_type == "Mul")?;
    let mean =
        |node: &NodeProto| ["Reshape", "Squeeze", "If", "AveragePool"].contains(&&*node.op_type);
    let (mut at, factor) = either(product, &mean)?;
    let mut inside = vec![power, sum, product];
    let mut reshapes = vec![];
    if node(at).op_type == "Reshape" {
        inside.push(at);
        reshapes.push(at);
        at = graph.maker(node(at).input.first()?)?;
    }
    let pool = match &*node(at).op_type {
        "AveragePool" => at,
        "Squeeze" => {
            inside.push(at);
            maker(at, 0, "AveragePool")?
        }
        // If the axis to be taken off is of size 1, in graphs of its own, which nothing is known of here; what is
        // behind it must have the sizes of x.
        "If" if !reshapes.is_empty() => {
            let same = maker(at, 0, "Equal")?;
            let size = maker(same, 0, "Gather")?;
            let sizes = maker(size, 0, "Shape")?;
            inside.extend([at, same, size, sizes]);
            maker(sizes, 0, "AveragePool")?
        }
        _ => return None,
    };
    inside.push(pool);
    let mut pads = vec![];
    at = graph.maker(node(pool).input.first()?)?;
    while node(at).op_type == "Pad" && pads.len() < 2 {
        inside.push(at);
        pads.push(at);
        at = graph.maker(node(at).input.first()?)?;
    }
    if node(at).op_type != "Reshape" {
        return None;
    }
    inside.push(at);
    reshapes.push(at);
    at = graph.maker(node(at).input.first()?)?;
    let square = node(at);
    if square.op_type != "Mul"
        || square.input.len() != 2
        || square.input.iter().any(|input| input != x)
    {
        return None;
    }
    inside.push(at);
    let constants = [(product, factor), (sum, added), (power, 1)];
    Some(Response { inside, pool, pads, reshapes, constants })
}
