//! What several ranks do between backward pass and update, and after it.
//!
//! Each rank owns some filters of every layer. It receives the others' gradients of them, adds these in the order of a
//! binary tree over the ranks, and moves its own filters alone, whose momentum no other rank has (ZeRO, Rajbhandari et
//! al. 2020, stage 1); then all receive the new weights. So a rank sends and receives, of P values of which it owns P/R,
//! twice P (R - 1)/R values a step, the least that gives every rank the sum.

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use super::gradients::tree_additions;
use crate::backend::{Backend, Param, SLICE_ALIGNMENT, Tensor};
use crate::model::{Network, Params};
use crate::ranks::{Channel, Pending, Ranks};
use crate::shape::ConvDims;
use crate::{Error, Result};

/// Which filters of which layer are whose.
#[derive(Clone, Debug)]
pub struct Slices {
    rank: usize,
    ranks: usize,
    /// Sizes of the layers that have weights.
    layers: Vec<Option<ConvDims>>,
}

impl Slices {
    /// Divides a network's filters among ranks.
    pub fn new(network: &Network, rank: usize, ranks: usize) -> Self {
        let layers = network.layers.iter().map(|layer| layer.convolution().copied()).collect();
        Slices { rank, ranks, layers }
    }

    /// This rank.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many there are.
    pub fn ranks(&self) -> usize {
        self.ranks
    }

    /// A rank's filters of a layer: none of one without weights, and perhaps none of a small one.
    pub fn filters(&self, layer: usize, rank: usize) -> Range<usize> {
        let filters = self.layers[layer].map_or(0, |dims| dims.k as usize);
        // A few at a time, so that wherever a slice begins, GPUs can read several values at once.
        let groups = filters.div_ceil(SLICE_ALIGNMENT);
        let bound = |rank| filters.min(SLICE_ALIGNMENT * (groups * rank / self.ranks));
        bound(rank)..bound(rank + 1)
    }

    /// Values of a filter.
    fn per_filter(&self, layer: usize) -> usize {
        self.layers[layer].map_or(0, |dims| dims.filter().per_image())
    }

    /// A rank's values of a layer's weights, and of its biases.
    pub fn values(&self, layer: usize, rank: usize) -> [Range<usize>; 2] {
        let (filters, each) = (self.filters(layer, rank), self.per_filter(layer));
        [each * filters.start..each * filters.end, filters]
    }

    /// Values of a layer's weights, and of its biases.
    fn lengths(&self, layer: usize) -> [usize; 2] {
        self.values(layer, self.ranks - 1).map(|last| last.end)
    }

    /// What each rank owns of a layer's weights, and of its biases, cut out of these; whatever is not empty.
    fn pieces<'a>(
        &self,
        layer: usize,
        values: [&'a mut [f32]; 2],
    ) -> impl Iterator<Item = (usize, &'a mut [f32])> {
        let bounds = (0..self.ranks).map(|rank| self.values(layer, rank).map(|range| range.len()));
        let bounds: Vec<[usize; 2]> = bounds.collect();
        values.into_iter().enumerate().flat_map(move |(tensor, mut rest)| {
            let mut pieces = Vec::new();
            for (rank, lengths) in bounds.iter().enumerate() {
                let (piece, behind) = rest.split_at_mut(lengths[tensor]);
                if !piece.is_empty() {
                    pieces.push((rank, piece));
                }
                rest = behind;
            }
            pieces
        })
    }

    /// Zeros for what this rank owns: of no layer of which that is nothing.
    ///
    /// # Errors
    /// If the backend is out of memory.
    pub fn zeros<B: Backend>(&self, backend: &B) -> Result<Params<B>> {
        let zeros = |(layer, dims): (usize, &Option<ConvDims>)| {
            let filters = self.filters(layer, self.rank);
            let dims = dims.filter(|_| !filters.is_empty());
            dims.map(|dims| Param::zeros(backend, &ConvDims { k: filters.len() as u32, ..dims }))
                .transpose()
        };
        let layers: Vec<_> = self.layers.iter().enumerate().map(zeros).collect::<Result<_>>()?;
        Ok(Params { initial: vec![None; layers.len()], layers })
    }

    /// What this rank owns of values that all have.
    ///
    /// # Errors
    /// If the backend is out of memory.
    pub fn of<B: Backend>(&self, backend: &B, whole: &Params<B>) -> Result<Params<B>> {
        let mut own = self.zeros(backend)?;
        for (layer, (own, whole)) in own.layers.iter_mut().zip(&whole.layers).enumerate() {
            let (Some(own), Some(whole)) = (own, whole) else { continue };
            let ranges = self.values(layer, self.rank);
            let tensors = [(&mut own.weight, &whole.weight), (&mut own.bias, &whole.bias)];
            for ((own, whole), range) in tensors.into_iter().zip(ranges) {
                backend.upload(own, &download(backend, whole, range)?)?;
            }
        }
        Ok(own)
    }
}

/// What several ranks do with their gradients and weights. All call the same in the same order.
///
/// Alone, a rank needs none of it.
pub trait Exchange<B: Backend>: Send {
    /// Begins with a layer whose gradient, the sum of this rank's parts, is there; or will be when the operations so far
    /// are done. Ranks `0..senders` have such a sum; the others, for which a batch has ended too early, only receive.
    /// The gradient may be taken until [`Exchange::sums`].
    ///
    /// # Errors
    /// If a rank is lost or has failed, or a backend operation fails.
    fn begin(
        &mut self,
        backend: &B,
        layer: usize,
        gradient: &mut Option<Param<B>>,
        senders: usize,
    ) -> Result<()>;

    /// Halts updates by this state if any rank's are halted.
    ///
    /// # Errors
    /// As [`Exchange::begin`].
    fn halt(&mut self, backend: &B, state: &mut B::State) -> Result<()>;

    /// The sums over all ranks of what this rank owns of the layers that were begun; gradients are given back.
    ///
    /// # Errors
    /// As [`Exchange::begin`].
    fn sums(&mut self, backend: &B, gradients: &mut Params<B>) -> Result<&Params<B>>;

    /// Gives all ranks the weights that each has moved.
    ///
    /// # Errors
    /// As [`Exchange::begin`].
    fn gather(&mut self, backend: &B, weights: &mut Params<B>) -> Result<()>;

    /// Brings what each rank owns together at one of them, in `whole`. For momentum, outside of steps and at some of
    /// them only.
    ///
    /// # Errors
    /// As [`Exchange::begin`].
    fn collect(
        &mut self,
        backend: &B,
        own: &Params<B>,
        whole: &mut Params<B>,
        at: usize,
    ) -> Result<()>;
}

/// The exchange by way of the host's memory.
pub struct HostExchange<B: Backend> {
    ranks: Ranks,
    slices: Slices,
    /// Sums over all ranks of what this rank owns.
    sums: Params<B>,
    under_way: Vec<(usize, Pending<Reduced<B>>)>,
    /// What is received, by rank. Used by the thread of this rank alone.
    received: Arc<Mutex<Vec<Vec<f32>>>>,
}

/// A gradient and what this rank owns of the sum.
type Reduced<B> = (Lent<B>, Lent<B>);

/// A layer's values while the thread for messages has them: the tensors themselves where those lie in the host's
/// memory, or copies.
enum Lent<B: Backend> {
    Tensors(Param<B>),
    Copies([Vec<f32>; 2], PhantomData<B>),
}

impl<B: Backend> Lent<B> {
    /// Lends tensors, or copies of their values.
    fn of(backend: &B, param: &mut Option<Param<B>>) -> Result<Self> {
        let taken = param.take_if(|param| {
            B::on_host_mut(&mut param.weight).is_some() && B::on_host_mut(&mut param.bias).is_some()
        });
        Ok(match (taken, param) {
            (Some(taken), _) => Lent::Tensors(taken),
            (None, param) => Lent::Copies(copies(backend, param.as_ref())?, PhantomData),
        })
    }

    /// Gives the tensors back, or the values of the copies.
    fn give_back(self, backend: &B, param: &mut Option<Param<B>>) -> Result<()> {
        match self {
            Lent::Tensors(lent) => {
                *param = Some(lent);
                Ok(())
            }
            Lent::Copies(copies, _) => upload(backend, param, &copies),
        }
    }

    fn values_mut(&mut self) -> [&mut [f32]; 2] {
        match self {
            Lent::Tensors(Param { weight, bias }) => {
                [weight, bias].map(|tensor| B::on_host_mut(tensor).expect("lent where it is"))
            }
            Lent::Copies([weight, bias], _) => [weight, bias],
        }
    }
}

/// Values of a tensor, on the host.
fn download<B: Backend>(backend: &B, tensor: &Tensor<B>, range: Range<usize>) -> Result<Vec<f32>> {
    let mut values = vec![0.0; range.len()];
    backend.download_from(&mut values, tensor, range.start)?;
    Ok(values)
}

/// A layer's weights and biases on the host; of none, none.
fn copies<B: Backend>(backend: &B, param: Option<&Param<B>>) -> Result<[Vec<f32>; 2]> {
    let Some(Param { weight, bias }) = param else { return Ok([Vec::new(), Vec::new()]) };
    let whole = |tensor: &Tensor<B>| download(backend, tensor, 0..tensor.shape().len());
    Ok([whole(weight)?, whole(bias)?])
}

/// The same back.
fn upload<B: Backend>(
    backend: &B,
    param: &mut Option<Param<B>>,
    [weights, biases]: &[Vec<f32>; 2],
) -> Result<()> {
    let Some(Param { weight, bias }) = param else { return Ok(()) };
    backend.upload(weight, weights)?;
    backend.upload(bias, biases)
}

impl<B: Backend> HostExchange<B> {
    /// For a network among these ranks.
    ///
    /// # Errors
    /// If the backend is out of memory.
    pub fn new(backend: &B, network: &Network, ranks: Ranks) -> Result<Self> {
        let slices = Slices::new(network, ranks.rank(), ranks.count());
        let sums = slices.zeros(backend)?;
        let received = Arc::new(Mutex::new(vec![Vec::new(); ranks.count()]));
        Ok(HostExchange { ranks, slices, sums, under_way: Vec::new(), received })
    }
}

impl<B: Backend> Exchange<B> for HostExchange<B> {
    fn begin(
        &mut self,
        backend: &B,
        layer: usize,
        gradient: &mut Option<Param<B>>,
        senders: usize,
    ) -> Result<()> {
        let mut lent = Lent::of(backend, gradient)?;
        let mut sum = Lent::of(backend, &mut self.sums.layers[layer])?;
        let (slices, received) = (self.slices.clone(), self.received.clone());
        let reduced = self.ranks.submit(move |channel| {
            let mut received =
                received.lock().map_err(|_| Error::Ranks("an exchange has failed".into()))?;
            reduce(
                channel,
                &slices,
                layer,
                senders,
                lent.values_mut(),
                sum.values_mut(),
                &mut received,
            )?;
            Ok((lent, sum))
        });
        self.under_way.push((layer, reduced));
        Ok(())
    }

    fn halt(&mut self, backend: &B, state: &mut B::State) -> Result<()> {
        if self.ranks.any(backend.is_halted(state)?)? {
            backend.halt(state)?;
        }
        Ok(())
    }

    fn sums(&mut self, backend: &B, gradients: &mut Params<B>) -> Result<&Params<B>> {
        for (layer, reduced) in self.under_way.drain(..) {
            let (lent, sum) = reduced.wait()?;
            if let Lent::Tensors(gradient) = lent {
                gradients.layers[layer] = Some(gradient);
            }
            sum.give_back(backend, &mut self.sums.layers[layer])?;
        }
        Ok(&self.sums)
    }

    fn gather(&mut self, backend: &B, weights: &mut Params<B>) -> Result<()> {
        let mut under_way = Vec::new();
        for layer in (0..weights.layers.len()).filter(|layer| self.slices.layers[*layer].is_some())
        {
            let mut lent = Lent::of(backend, &mut weights.layers[layer])?;
            let slices = self.slices.clone();
            let gathered = self.ranks.submit(move |channel| {
                gather(channel, &slices, layer, lent.values_mut())?;
                Ok(lent)
            });
            under_way.push((layer, gathered));
        }
        for (layer, gathered) in under_way {
            gathered.wait()?.give_back(backend, &mut weights.layers[layer])?;
        }
        Ok(())
    }

    fn collect(
        &mut self,
        backend: &B,
        own: &Params<B>,
        whole: &mut Params<B>,
        at: usize,
    ) -> Result<()> {
        for layer in (0..own.layers.len()).filter(|layer| self.slices.layers[*layer].is_some()) {
            let own_values = copies(backend, own.layers[layer].as_ref())?;
            let slices = self.slices.clone();
            let collected = self
                .ranks
                .submit(move |channel| collect(channel, &slices, layer, own_values, at))
                .wait()?;
            if let Some(values) = collected {
                upload(backend, &mut whole.layers[layer], &values)?;
            }
        }
        Ok(())
    }
}

/// The sum over ranks `0..senders` of what this rank owns of a layer's gradient.
fn reduce(
    channel: &mut dyn Channel,
    slices: &Slices,
    layer: usize,
    senders: usize,
    gradient: [&mut [f32]; 2],
    sum: [&mut [f32]; 2],
    received: &mut [Vec<f32>],
) -> Result<()> {
    let own = slices.values(layer, slices.rank);
    for ((gradient, own), (tensor, sum)) in
        gradient.into_iter().zip(own).zip(sum.into_iter().enumerate())
    {
        // What comes of rank 0 is received where the sum will be.
        let mut parts = vec![sum];
        for values in &mut received[1..senders] {
            values.resize(values.len().max(own.len()), 0.0);
            parts.push(&mut values[..own.len()]);
        }
        let mut sends: Vec<(usize, &[u8])> = Vec::new();
        let mut receives: Vec<(usize, &mut [u8])> = Vec::new();
        for rank in 0..slices.ranks {
            let range = slices.values(layer, rank)[tensor].clone();
            if rank != slices.rank && slices.rank < senders && !range.is_empty() {
                sends.push((rank, bytemuck::cast_slice(&gradient[range])));
            }
        }
        for (rank, part) in parts.iter_mut().enumerate().filter(|(_, part)| !part.is_empty()) {
            match rank == slices.rank {
                true => part.copy_from_slice(&gradient[own.clone()]),
                false => receives.push((rank, bytemuck::cast_slice_mut(part))),
            }
        }
        channel.exchange(&sends, &mut receives)?;
        add_tree(&mut parts);
    }
    Ok(())
}

/// The first becomes the sum of all, along a binary tree.
fn add_tree(parts: &mut [&mut [f32]]) {
    /// Values at a time, so that sums are added while they are in the cache.
    const CHUNK: usize = 1 << 12;
    let len = parts.first().map_or(0, |part| part.len());
    for start in (0..len).step_by(CHUNK) {
        let chunk = start..len.min(start + CHUNK);
        for (sum, other) in tree_additions(parts.len()) {
            let (head, tail) = parts.split_at_mut(other);
            let sums = &mut head[sum][chunk.clone()];
            sums.iter_mut().zip(&tail[0][chunk.clone()]).for_each(|(sum, value)| *sum += value);
        }
    }
}

/// Every rank's own values of a layer, at all ranks.
fn gather(
    channel: &mut dyn Channel,
    slices: &Slices,
    layer: usize,
    values: [&mut [f32]; 2],
) -> Result<()> {
    let is_own = |piece: &(usize, &mut [f32])| piece.0 == slices.rank;
    let (own, others): (Vec<_>, Vec<_>) = slices.pieces(layer, values).partition(is_own);
    let ranks = (0..slices.ranks).filter(|rank| *rank != slices.rank);
    let to_each = |rank| own.iter().map(move |(_, piece)| (rank, bytemuck::cast_slice(piece)));
    let sends: Vec<(usize, &[u8])> = ranks.flat_map(to_each).collect();
    channel.exchange(&sends, &mut as_bytes(others))
}

/// Every rank's own values of a layer, at one of them.
fn collect(
    channel: &mut dyn Channel,
    slices: &Slices,
    layer: usize,
    own: [Vec<f32>; 2],
    at: usize,
) -> Result<Option<[Vec<f32>; 2]>> {
    if slices.rank != at {
        let own = own.iter().filter(|values| !values.is_empty());
        let sends: Vec<(usize, &[u8])> =
            own.map(|values| (at, bytemuck::cast_slice(values))).collect();
        return channel.exchange(&sends, &mut []).map(|()| None);
    }
    let mut all = slices.lengths(layer).map(|len| vec![0.0; len]);
    let [weight, bias] = &mut all;
    let is_own = |piece: &(usize, &mut [f32])| piece.0 == at;
    let (places, others): (Vec<_>, Vec<_>) = slices.pieces(layer, [weight, bias]).partition(is_own);
    let own = own.iter().filter(|values| !values.is_empty());
    places.into_iter().zip(own).for_each(|((_, place), values)| place.copy_from_slice(values));
    channel.exchange(&[], &mut as_bytes(others))?;
    Ok(Some(all))
}

fn as_bytes(pieces: Vec<(usize, &mut [f32])>) -> Vec<(usize, &mut [u8])> {
    pieces.into_iter().map(|(rank, piece)| (rank, bytemuck::cast_slice_mut(piece))).collect()
}

#[cfg(test)]
mod tests {
    use super::add_tree;

    #[test]
    fn neighbours_are_added_first() {
        // Of which each order but one has another sum.
        let values = [1.0f32, 3e-8, 5e-8, -7e-8, 1e7, 0.3, -1e7, 0.7];
        let pairs = |v: &[f32]| -> f32 { (v[0] + v[1]) + (v[2] + v[3]) };
        for (count, sum) in [
            (1, values[0]),
            (2, values[0] + values[1]),
            (3, (values[0] + values[1]) + values[2]),
            (4, pairs(&values[..4])),
            (5, pairs(&values[..4]) + values[4]),
            (6, pairs(&values[..4]) + (values[4] + values[5])),
            (7, pairs(&values[..4]) + ((values[4] + values[5]) + values[6])),
            (8, pairs(&values[..4]) + pairs(&values[4..])),
        ] {
            let mut parts: Vec<Vec<f32>> =
                values[..count].iter().map(|value| vec![*value; 5000]).collect();
            add_tree(&mut parts.iter_mut().map(|part| &mut part[..]).collect::<Vec<_>>());
            assert!(parts[0].iter().all(|found| found.to_bits() == sum.to_bits()), "{count} parts");
        }
    }
}
