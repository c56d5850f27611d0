//! What several GPUs do with their gradients and weights: [`Exchange`] by NCCL, from memory of one to memory of the
//! other.
//!
//! Nothing here waits on the host for a transfer. Kernels and transfers are ordered by events alone: a layer's gradient is on its way
//! while kernels make that of the layer below, and they wait for all of them only before the weights move.

use std::sync::Arc;
use std::time::Duration;

use super::device::{Launch, Memory, launch};
use super::nccl::can_load;
use super::{Communicator, CudaBackend, UniqueId};
use crate::backend::{Backend, Param, Tensor};
use crate::model::{Network, Params};
use crate::ranks::Ranks;
use crate::train::{Exchange, Slices, tree_additions};
use crate::{Error, Result};

/// How long a GPU waits within an epoch for the others, whose ranks live: longer than any step takes, or the writing of a
/// checkpoint.
const PATIENCE: Duration = Duration::from_secs(600);
/// How long the end of a rank waits for the others' ends.
const GOODBYE: Duration = Duration::from_secs(5);

/// The exchange between GPUs.
pub struct NcclExchange {
    communicator: Arc<Communicator>,
    slices: Slices,
    /// What each rank has sent of the gradients that this rank owns. That of rank 0 becomes the sum of all.
    received: Vec<Params<CudaBackend>>,
    /// Layers that were begun, each with the number of ranks that have a gradient of it.
    under_way: Vec<(usize, usize)>,
}

/// NCCL, if all of these ranks can load it and each has a GPU of its own.
pub(super) fn direct(
    backend: &CudaBackend,
    network: &Network,
    ranks: &Ranks,
) -> Result<Option<NcclExchange>> {
    let missing = can_load().err();
    let own = backend.device.uuid()?;
    let told = if missing.is_none() { own.to_vec() } else { Vec::new() };
    let all = ranks.all_gather(told)?;
    let reason = if let Some(missing) = missing {
        missing.to_string()
    } else if let Some(rank) = all.iter().position(Vec::is_empty) {
        format!("rank {rank} on {} cannot load NCCL", ranks.host(rank))
    } else if (1..all.len()).any(|rank| all[..rank].contains(&all[rank])) {
        "not every rank has a GPU of its own".into()
    } else {
        let exchange = NcclExchange::new(backend, network, ranks, PATIENCE)?;
        if ranks.is_first() {
            tracing::info!("GPUs exchange values by NCCL");
        }
        return Ok(Some(exchange));
    };
    if ranks.is_first() {
        tracing::warn!("GPUs exchange values through the hosts' memory, which is slow: {reason}");
    }
    Ok(None)
}

impl NcclExchange {
    /// For a network among these ranks, each of which has a GPU of its own. From now on waits for the backend end when a
    /// rank is lost, or after `patience`, which has to be longer than any step.
    ///
    /// # Errors
    /// If NCCL cannot be loaded, another rank has failed, or the backend is out of memory.
    pub fn new(
        backend: &CudaBackend,
        network: &Network,
        ranks: &Ranks,
        patience: Duration,
    ) -> Result<Self> {
        let own = ranks.is_first().then(UniqueId::new).transpose()?;
        let id = ranks.broadcast(own.map(|id| id.0.to_vec()))?;
        let id = id.try_into().map_err(|_| Error::Ranks("rank 0 tells no identifier".into()))?;
        let (rank, count, of_all) = (ranks.rank(), ranks.count(), ranks.clone());
        let alive = move || of_all.check();
        let communicator = Communicator::new(backend, &UniqueId(id), rank, count, patience, alive)?;
        let slices = Slices::new(network, rank, count);
        let received = (0..count).map(|_| slices.zeros(backend)).collect::<Result<_>>()?;
        Ok(NcclExchange { communicator, slices, received, under_way: Vec::new() })
    }

    /// All ranks, this one last: its own values are not sent, but copied.
    fn ranks(&self) -> impl Iterator<Item = usize> + use<> {
        self.communicator.others().chain([self.communicator.rank()])
    }
}

impl Exchange<CudaBackend> for NcclExchange {
    fn begin(
        &mut self,
        _backend: &CudaBackend,
        layer: usize,
        gradient: &mut Option<Param<CudaBackend>>,
        senders: usize,
    ) -> Result<()> {
        self.communicator.after_operations()?;
        let mut group = self.communicator.group();
        for rank in self.ranks() {
            if let (Some(gradient), true) = (&*gradient, self.communicator.rank() < senders) {
                let [weights, biases] = self.slices.values(layer, rank);
                group.send(rank, &gradient.weight, weights);
                group.send(rank, &gradient.bias, biases);
            }
            if let (Some(received), true) = (&mut self.received[rank].layers[layer], rank < senders)
            {
                receive_whole(&mut group, rank, received);
            }
        }
        self.under_way.push((layer, senders));
        group.enqueue()
    }

    fn halt(&mut self, _backend: &CudaBackend, state: &mut Memory) -> Result<()> {
        self.communicator.after_operations()?;
        let mut group = self.communicator.group();
        group.halt(state);
        group.enqueue()?;
        self.communicator.before_operations()
    }

    fn sums(
        &mut self,
        backend: &CudaBackend,
        _gradients: &mut Params<CudaBackend>,
    ) -> Result<&Params<CudaBackend>> {
        self.communicator.before_operations()?;
        for (layer, senders) in self.under_way.drain(..) {
            for (sum, other) in tree_additions(senders) {
                let (head, tail) = self.received.split_at_mut(other);
                let (sum, other) = (&mut head[sum].layers[layer], &tail[0].layers[layer]);
                if let (Some(sum), Some(other)) = (sum, other) {
                    backend.add(&mut sum.weight, &other.weight)?;
                    backend.add(&mut sum.bias, &other.bias)?;
                }
            }
        }
        Ok(&self.received[0])
    }

    fn gather(&mut self, backend: &CudaBackend, weights: &mut Params<CudaBackend>) -> Result<()> {
        self.communicator.after_operations()?;
        let mut group = self.communicator.group();
        for (layer, param) in weights.layers.iter_mut().enumerate() {
            let Some(Param { weight, bias }) = param else { continue };
            let own = self.slices.values(layer, self.communicator.rank());
            for other in self.communicator.others() {
                let theirs = self.slices.values(layer, other);
                for (tensor, (own, theirs)) in
                    [&mut *weight, &mut *bias].into_iter().zip(own.clone().into_iter().zip(theirs))
                {
                    group.send(other, tensor, own);
                    group.receive(other, tensor, theirs);
                }
            }
        }
        group.enqueue()?;
        self.communicator.before_operations()?;
        weights.layers.iter().flatten().try_for_each(|param| renew_copy(backend, &param.weight))
    }

    fn collect(
        &mut self,
        _backend: &CudaBackend,
        own: &Params<CudaBackend>,
        whole: &mut Params<CudaBackend>,
        at: usize,
    ) -> Result<()> {
        self.communicator.after_operations()?;
        let mut group = self.communicator.group();
        for (layer, (own, whole)) in own.layers.iter().zip(&mut whole.layers).enumerate() {
            if let Some(Param { weight, bias }) = own {
                group.send(at, weight, 0..weight.shape().len());
                group.send(at, bias, 0..bias.shape().len());
            }
            if let (Some(whole), true) = (whole, self.communicator.rank() == at) {
                for rank in self.ranks() {
                    let [weights, biases] = self.slices.values(layer, rank);
                    group.receive(rank, &mut whole.weight, weights);
                    group.receive(rank, &mut whole.bias, biases);
                }
            }
        }
        group.enqueue()?;
        self.communicator.before_operations()
    }
}

impl Drop for NcclExchange {
    /// What others still receive is sent; where a rank has failed, nobody is waited for long.
    fn drop(&mut self) {
        let _ = self.communicator.finish(GOODBYE);
    }
}

fn receive_whole(group: &mut super::Group<'_>, from: usize, param: &mut Param<CudaBackend>) {
    let Param { weight, bias } = param;
    for tensor in [weight, bias] {
        let len = tensor.shape().len();
        group.receive(from, tensor, 0..len);
    }
}

/// Makes anew what convolutions read of weights.
fn renew_copy(backend: &CudaBackend, weights: &Tensor<CudaBackend>) -> Result<()> {
    let (copy, values, len) =
        (weights.buffer.copy(), weights.buffer.values(), weights.shape().len());
    if copy == 0 {
        return Ok(());
    }
    launch!(backend.device, "to_bf16", Launch::per_value(len.div_ceil(4)), copy, values, len as u64)
}
