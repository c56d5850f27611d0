//! Nodes whose inputs are constants, computed while a network is read.

use std::rc::Rc;

use super::proto::NodeProto;
use super::tensor::{self, Budget, Data, Files, Int, MAX_RANK, Value, list};

/// ONNX's numbers of the types of floats.
pub fn is_float(kind: i64) -> bool {
    matches!(kind, 1 | 10 | 11 | 16)
}

/// Whether the type that a Cast is to is one of floats; in the oldest files it is a name.
pub fn casts_to_float(node: &NodeProto) -> bool {
    match node.text("to").filter(|name| !name.is_empty()) {
        Some(name) => ["FLOAT", "FLOAT16", "DOUBLE", "BFLOAT16"].contains(&&*name),
        None => is_float(node.int("to").unwrap_or(0)),
    }
}

/// Integers of an attribute, in older files, or of an input.
pub fn ints_of(
    node: &NodeProto,
    name: &str,
    input: Option<Value>,
) -> Result<Option<Vec<i64>>, String> {
    match (node.ints(name), input) {
        (Some(ints), _) => Ok(Some(ints.to_vec())),
        (None, Some(value)) => value.known_ints().map(Some),
        (None, None) => Ok(None),
    }
}

/// An axis, which may be counted from the end, among `rank`.
pub fn axis_of(axis: i64, rank: usize) -> Result<usize, String> {
    let from_start = if axis < 0 { axis.saturating_add(rank as i64) } else { axis };
    usize::try_from(from_start)
        .ok()
        .filter(|&axis| axis < rank)
        .ok_or_else(|| format!("expected one of {rank} axes, found {axis}"))
}

/// The sizes of a value, from an axis to another as the node says.
pub fn shape_of(node: &NodeProto, sizes: &[Int]) -> Value {
    let place = |name: &str, default: usize| {
        let Some(place) = node.int(name) else { return default };
        let place = if place < 0 { place.saturating_add(sizes.len() as i64) } else { place };
        place.clamp(0, sizes.len() as i64) as usize
    };
    let (start, end) = (place("start", 0), place("end", sizes.len()));
    Value::ints(sizes.get(start..end).unwrap_or_default().to_vec())
}

/// The output of a node of constants.
pub fn fold(
    node: &NodeProto,
    inputs: Vec<Option<Value>>,
    files: &mut Files,
    budget: &mut Budget,
) -> Result<Value, String> {
    let mut inputs = inputs.into_iter();
    let mut input = || inputs.next().flatten();
    let missing = || "lacks an input".to_string();
    match &*node.op_type {
        "Constant" => return constant(node, files, budget),
        "ConstantOfShape" => {
            let sizes = input().ok_or_else(missing)?.known_ints()?;
            return filled(node, &sizes, files, budget);
        }
        _ => {}
    }
    let value = input().ok_or_else(missing)?;
    let rank = value.shape.len();
    match &*node.op_type {
        "Identity" => Ok(value),
        "Shape" => {
            let sizes: Vec<Int> = value.shape.iter().map(|&size| Int::Known(size as i64)).collect();
            Ok(shape_of(node, &sizes))
        }
        "Cast" => cast(node, value, budget),
        "Reshape" => {
            let sizes = ints_of(node, "shape", input())?.ok_or_else(missing)?;
            reshape(value, &sizes, node.int("allowzero").unwrap_or(0) != 0)
        }
        "Unsqueeze" => {
            let axes = ints_of(node, "axes", input())?.ok_or_else(missing)?;
            let rank = rank + axes.len();
            if rank > MAX_RANK {
                return Err(format!("expected a tensor of few axes, found {rank}"));
            }
            let axes = axes.iter().map(|&axis| axis_of(axis, rank)).collect::<Result<Vec<_>, _>>()?;
            let mut old = value.shape.iter().copied();
            let shape = (0..rank).map(|axis| match axes.contains(&axis) {
                true => Some(1),
                false => old.next(),
            });
            let shape = shape.collect::<Option<_>>().ok_or("expected different axes")?;
            Ok(Value { shape, ..value })
        }
        "Squeeze" => {
            let axes = match ints_of(node, "axes", input())? {
                Some(axes) => axes.iter().map(|&axis| axis_of(axis, rank)).collect::<Result<Vec<_>, _>>()?,
                None => (0..rank).filter(|&axis| value.shape[axis] == 1).collect(),
            };
            if let Some(axis) = axes.iter().find(|&&axis| value.shape[axis] != 1) {
                return Err(format!("expected size 1 along axis {axis}, found sizes {}", list(&value.shape)));
            }
            let kept = (0..rank).filter(|axis| !axes.contains(axis));
            Ok(Value { shape: kept.map(|axis| value.shape[axis]).collect(), ..value })
        }
        "Transpose" => {
            let order = match node.ints("perm") {
                Some(order) if order.len() == rank => {
                    order.iter().map(|&axis| axis_of(axis, rank)).collect::<Result<Vec<_>, _>>()?
                }
                Some(order) => return Err(format!("expected an order of {rank} axes, found {}", list(order))),
                None => (0..rank).rev().collect(),
            };
            if (0..rank).any(|axis| !order.contains(&axis)) {
                return Err(format!("expected an order of {rank} axes, found {}", list(&order)));
            }
            let steps = steps(&value.shape);
            let shape = order.iter().map(|&axis| value.shape[axis]).collect();
            let steps: Vec<isize> = order.iter().map(|&axis| steps[axis]).collect();
            view(value, shape, 0, &steps, budget)
        }
        "Slice" => {
            let starts = ints_of(node, "starts", input())?.ok_or_else(missing)?;
            let ends = ints_of(node, "ends", input())?.ok_or_else(missing)?;
            let axes = ints_of(node, "axes", input())?;
            let strides = ints_of(node, "steps", input())?;
            slice(value, &starts, &ends, axes, strides, budget)
        }
        "Gather" => {
            let places = input().ok_or_else(missing)?;
            gather(value, &places, node.int("axis").unwrap_or(0), budget)
        }
        "Concat" => {
            let mut parts = vec![value];
            for part in inputs {
                parts.push(part.ok_or_else(missing)?);
            }
            concat(parts, node.int("axis").unwrap_or(1), budget)
        }
        "Add" | "Sub" | "Mul" | "Div" => {
            let other = input().ok_or_else(missing)?;
            arithmetic(node, value, other, budget)
        }
        _ => Err("computes constants, and only simple arithmetic of them is done while a network is read".into()),
    }
}

fn constant(node: &NodeProto, files: &mut Files, budget: &mut Budget) -> Result<Value, String> {
    let of = |name: &str| node.attribute(name);
    let floats = |shape: Vec<usize>, values: &[f32]| Value {
        shape,
        data: Data::Floats(Rc::new(values.into())),
    };
    if let Some(tensor) = of("value").and_then(|attribute| attribute.t.as_ref()) {
        tensor::read(tensor, files, budget)
    } else if let Some(value) = of("value_float").and_then(|attribute| attribute.f) {
        Ok(floats(vec![], &[value]))
    } else if let Some(values) = of("value_floats") {
        Ok(floats(vec![values.floats.len()], &values.floats))
    } else if let Some(value) = of("value_int").and_then(|attribute| attribute.i) {
        Ok(Value { shape: vec![], data: Data::Ints(Rc::new(vec![Int::Known(value)])) })
    } else if let Some(values) = of("value_ints") {
        budget.charge(values.ints.len(), size_of::<Int>())?;
        Ok(Value::ints(values.ints.iter().map(|&value| Int::Known(value)).collect()))
    } else {
        Err("expected a tensor or numbers, found a constant of another kind".into())
    }
}

fn filled(
    node: &NodeProto,
    sizes: &[i64],
    files: &mut Files,
    budget: &mut Budget,
) -> Result<Value, String> {
    let wrong = || format!("expected sizes of a tensor, found {}", list(sizes));
    if sizes.len() > MAX_RANK {
        return Err(wrong());
    }
    let shape: Vec<usize> =
        sizes.iter().map(|&size| size.try_into().ok()).collect::<Option<_>>().ok_or_else(wrong)?;
    let count = tensor::count(&shape)?;
    let Some(one) = node.attribute("value").and_then(|attribute| attribute.t.as_ref()) else {
        return Ok(Value { shape, data: Data::Fill(0.) });
    };
    let one = tensor::read(one, files, budget)?;
    if one.len() != 1 {
        return Err(format!("expected one value to fill with, found sizes {}", list(&one.shape)));
    }
    let data = match one.data {
        Data::Ints(ints) => {
            budget.charge(count, size_of::<Int>())?;
            Data::Ints(Rc::new(vec![ints[0]; count]))
        }
        Data::Unread(kind) => Data::Unread(kind),
        Data::Floats(_) | Data::Fill(_) => Data::Fill(one.scalar()?),
    };
    Ok(Value { shape, data })
}

fn cast(node: &NodeProto, value: Value, budget: &mut Budget) -> Result<Value, String> {
    let Value { shape, data } = value;
    let data = match (casts_to_float(node), data) {
        (true, Data::Ints(ints)) => {
            budget.charge(ints.len(), 4)?;
            let values = ints.iter().map(|int| match int {
                Int::Known(int) => Ok(*int as f32),
                Int::Batch | Int::Open => Err("depends on sizes that the file leaves open"),
            });
            Data::Floats(Rc::new(values.collect::<Result<_, _>>()?))
        }
        (false, Data::Floats(values)) => {
            budget.charge(values.len(), size_of::<Int>())?;
            Data::Ints(Rc::new(values.iter().map(|&value| Int::Known(value as i64)).collect()))
        }
        (false, Data::Fill(value)) => {
            let count = tensor::count(&shape)?;
            budget.charge(count, size_of::<Int>())?;
            Data::Ints(Rc::new(vec![Int::Known(value as i64); count]))
        }
        (_, same) => same,
    };
    Ok(Value { shape, data })
}

fn reshape(value: Value, sizes: &[i64], zeros: bool) -> Result<Value, String> {
    let wrong = || {
        format!(
            "expected sizes of as many values as {} has, found {}",
            list(&value.shape),
            list(sizes)
        )
    };
    if sizes.len() > MAX_RANK {
        return Err(wrong());
    }
    let mut shape = Vec::with_capacity(sizes.len());
    let mut open = None;
    for (axis, &size) in sizes.iter().enumerate() {
        shape.push(match size {
            -1 if open.is_none() => {
                open = Some(axis);
                1
            }
            0 if !zeros => *value.shape.get(axis).ok_or_else(wrong)?,
            _ => usize::try_from(size).map_err(|_| wrong())?,
        });
    }
    let (count, others) = (value.len(), tensor::count(&shape)?);
    if let Some(axis) = open
        && others > 0
    {
        shape[axis] = count / others;
    }
    match tensor::count(&shape)? == count {
        true => Ok(Value { shape, ..value }),
        false => Err(wrong()),
    }
}

/// How far apart neighbours along each axis are, row-major.
fn steps(shape: &[usize]) -> Vec<isize> {
    let mut steps = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        steps[axis - 1] = steps[axis] * shape[axis].max(1) as isize;
    }
    steps
}

/// Values at `start` and so many steps further along each axis of the new shape. They must be there.
fn view(
    value: Value,
    shape: Vec<usize>,
    start: usize,
    steps: &[isize],
    budget: &mut Budget,
) -> Result<Value, String> {
    let count = tensor::count(&shape)?;
    let data = match value.data {
        Data::Floats(values) => {
            budget.charge(count, 4)?;
            Data::Floats(Rc::new(viewed(&values, &shape, start, steps, count)))
        }
        Data::Ints(values) => {
            budget.charge(count, size_of::<Int>())?;
            Data::Ints(Rc::new(viewed(&values, &shape, start, steps, count)))
        }
        other => other,
    };
    Ok(Value { shape, data })
}

fn viewed<T: Copy>(
    values: &[T],
    shape: &[usize],
    start: usize,
    steps: &[isize],
    count: usize,
) -> Vec<T> {
    let mut made = Vec::with_capacity(count);
    let mut place = vec![0; shape.len()];
    let mut at = start as isize;
    for _ in 0..count {
        made.push(values[at as usize]);
        for axis in (0..shape.len()).rev() {
            place[axis] += 1;
            at += steps[axis];
            if place[axis] < shape[axis] {
                break;
            }
            at -= steps[axis] * place[axis] as isize;
            place[axis] = 0;
        }
    }
    made
}

fn slice(
    value: Value,
    starts: &[i64],
    ends: &[i64],
    axes: Option<Vec<i64>>,
    strides: Option<Vec<i64>>,
    budget: &mut Budget,
) -> Result<Value, String> {
    let rank = value.shape.len();
    let axes = axes.unwrap_or_else(|| (0..starts.len() as i64).collect());
    let strides = strides.unwrap_or_else(|| vec![1; starts.len()]);
    if starts.len() > rank || [ends.len(), axes.len(), strides.len()] != [starts.len(); 3] {
        return Err(format!("expected a start, an end and a step for some of {rank} axes"));
    }
    let (mut shape, mut steps, mut first) = (value.shape.clone(), steps(&value.shape), 0);
    let mut seen = Vec::new();
    for (((&start, &end), &axis), &stride) in starts.iter().zip(ends).zip(&axes).zip(&strides) {
        let axis = axis_of(axis, rank)?;
        if stride == 0 || stride == i64::MIN || seen.contains(&axis) {
            return Err("expected a step that is not 0, and each axis once".into());
        }
        seen.push(axis);
        let size = value.shape[axis] as i64;
        let from_start = |place: i64| if place < 0 { place.saturating_add(size) } else { place };
        let (low, high) = if stride > 0 { (0, size) } else { (-1, size - 1) };
        let (start, end) =
            (from_start(start).clamp(low.max(0), high.max(0)), from_start(end).clamp(low, high));
        let distance = if stride > 0 { end - start } else { start - end };
        let count = if size == 0 {
            0
        } else {
            distance.max(0).unsigned_abs().div_ceil(stride.unsigned_abs())
        };
        shape[axis] = count as usize;
        if count > 0 {
            first += start as usize * steps[axis] as usize;
        }
        // One that is not taken may be longer than any tensor.
        steps[axis] = if count > 1 { steps[axis] * stride as isize } else { 0 };
    }
    view(value, shape, first, &steps, budget)
}

/// Copies, for each of `outer`, the pieces of `inner` values at `places`, of `size` that there are.
fn pick<T: Copy>(
    values: &[T],
    outer: usize,
    size: usize,
    inner: usize,
    places: &[usize],
) -> Vec<T> {
    let mut made = Vec::with_capacity(outer * places.len() * inner);
    for one in 0..outer {
        for place in places {
            let at = (one * size + place) * inner;
            made.extend_from_slice(&values[at..at + inner]);
        }
    }
    made
}

fn gather(value: Value, places: &Value, axis: i64, budget: &mut Budget) -> Result<Value, String> {
    let axis = axis_of(axis, value.shape.len())?;
    let size = value.shape[axis];
    let wanted = places.known_ints()?;
    let wanted = wanted.iter().map(|&place| axis_of(place, size)).collect::<Result<Vec<_>, _>>()?;
    let shape = [&value.shape[..axis], &places.shape, &value.shape[axis + 1..]].concat();
    let count = tensor::count(&shape)?;
    let outer = tensor::count(&value.shape[..axis])?;
    let inner = tensor::count(&value.shape[axis + 1..])?;
    let data = match value.data {
        Data::Floats(values) => {
            budget.charge(count, 4)?;
            Data::Floats(Rc::new(pick(&values, outer, size, inner, &wanted)))
        }
        Data::Ints(values) => {
            budget.charge(count, size_of::<Int>())?;
            Data::Ints(Rc::new(pick(&values, outer, size, inner, &wanted)))
        }
        other => other,
    };
    Ok(Value { shape, data })
}

fn concat(parts: Vec<Value>, axis: i64, budget: &mut Budget) -> Result<Value, String> {
    let mut shape = parts[0].shape.clone();
    let axis = axis_of(axis, shape.len())?;
    for part in &parts[1..] {
        let fits = part.shape.len() == shape.len()
            && (0..shape.len()).all(|other| other == axis || part.shape[other] == shape[other]);
        if !fits {
            return Err(format!(
                "expected tensors that fit along axis {axis}, found sizes {} and {}",
                list(&parts[0].shape),
                list(&part.shape)
            ));
        }
        shape[axis] =
            shape[axis].checked_add(part.shape[axis]).ok_or("expected sizes of a tensor")?;
    }
    let count = tensor::count(&shape)?;
    let outer = tensor::count(&shape[..axis])?;
    fn joined<T: Copy>(parts: &[&[T]], outer: usize, count: usize) -> Vec<T> {
        let mut made = Vec::with_capacity(count);
        for one in 0..outer {
            for part in parts {
                let piece = part.len() / outer;
                made.extend_from_slice(&part[one * piece..(one + 1) * piece]);
            }
        }
        made
    }
    let data = if parts.iter().all(|part| matches!(part.data, Data::Ints(_))) {
        budget.charge(count, size_of::<Int>())?;
        let parts: Vec<&[Int]> = parts.iter().map(Value::as_ints).collect::<Result<_, _>>()?;
        Data::Ints(Rc::new(joined(&parts, outer, count)))
    } else {
        budget.charge(count, 4)?;
        let parts: Vec<Vec<f32>> =
            parts.into_iter().map(|part| part.into_floats(budget)).collect::<Result<_, _>>()?;
        let parts: Vec<&[f32]> = parts.iter().map(Vec::as_slice).collect();
        Data::Floats(Rc::new(joined(&parts, outer, count)))
    };
    Ok(Value { shape, data })
}

/// Two values as they meet: sizes of 1 are repeated.
fn arithmetic(node: &NodeProto, a: Value, b: Value, budget: &mut Budget) -> Result<Value, String> {
    let rank = a.shape.len().max(b.shape.len());
    let size = |value: &Value, axis: usize| {
        (axis + value.shape.len()).checked_sub(rank).map_or(1, |axis| value.shape[axis])
    };
    let mut shape = Vec::with_capacity(rank);
    for axis in 0..rank {
        shape.push(match (size(&a, axis), size(&b, axis)) {
            (one, other) if one == other || other == 1 => one,
            (1, other) => other,
            _ => {
                return Err(format!(
                    "expected sizes that fit, found {} and {}",
                    list(&a.shape),
                    list(&b.shape)
                ));
            }
        });
    }
    let spread = |value: Value, budget: &mut Budget| {
        if value.shape == shape {
            return Ok(value);
        }
        let own = steps(&value.shape);
        let steps = (0..rank).map(|axis| match (axis + value.shape.len()).checked_sub(rank) {
            Some(own_axis) if value.shape[own_axis] != 1 => own[own_axis],
            _ => 0,
        });
        let steps: Vec<isize> = steps.collect();
        view(value, shape.clone(), 0, &steps, budget)
    };
    let (a, b) = (spread(a, budget)?, spread(b, budget)?);
    let count = tensor::count(&shape)?;
    let data = match (&a.data, &b.data) {
        (Data::Ints(a), Data::Ints(b)) => {
            budget.charge(count, size_of::<Int>())?;
            let made = a.iter().zip(&**b).map(|(&a, &b)| of_ints(&node.op_type, a, b));
            Data::Ints(Rc::new(
                made.collect::<Option<_>>().ok_or("expected numbers that do not overflow")?,
            ))
        }
        (Data::Fill(a), Data::Fill(b)) => Data::Fill(of_floats(&node.op_type, *a, *b)),
        _ => {
            let (mut a, b) = (a.into_floats(budget)?, b.into_floats(budget)?);
            a.iter_mut().zip(&b).for_each(|(a, b)| *a = of_floats(&node.op_type, *a, *b));
            Data::Floats(Rc::new(a))
        }
    };
    Ok(Value { shape, data })
}

fn of_floats(operator: &str, a: f32, b: f32) -> f32 {
    match operator {
        "Add" => a + b,
        "Sub" => a - b,
        "Mul" => a * b,
        _ => a / b,
    }
}

/// `None` beyond the range of integers.
fn of_ints(operator: &str, a: Int, b: Int) -> Option<Int> {
    use Int::{Batch, Known, Open};
    Some(match (operator, a, b) {
        ("Mul" | "Div", Batch, Known(1)) | ("Add" | "Sub", Batch, Known(0)) => Batch,
        ("Mul", Known(1), Batch) | ("Add", Known(0), Batch) => Batch,
        (_, Known(a), Known(b)) => Known(match operator {
            "Add" => a.checked_add(b),
            "Sub" => a.checked_sub(b),
            "Mul" => a.checked_mul(b),
            _ => a.checked_div(b),
        }?),
        _ => Open,
    })
}
