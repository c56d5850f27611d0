//! Moments of maps: how `map_moments` of `kernels/look.cu` is spread over a tensor, where what its blocks find
//! is joined, and how the result comes to the host.

use super::device::{Launch, Memory, Pinned, launch};
use super::{CudaBackend, Storage, by};
use crate::Result;
use crate::backend::{HostMemory, MapMoments, Tensor};

/// Threads of a block, at most: `THREADS` in `kernels/look.cu`.
const THREADS: usize = 256;
/// Blocks that run at once on the GPUs that this is written for: four on each of 132 multiprocessors. A constant,
/// because a sum must not depend on the machine.
const BLOCKS: usize = 4 * 132;
/// Periods of a thread, at least, where there are so many: with fewer, blocks would write nearly as much as they
/// read.
const LEAST: usize = 8;

/// Moments on the GPU, and on their way to the host.
pub struct Moments {
    of_maps: Memory,
    /// What blocks find of a tensor.
    partial: Memory,
    host: Pinned,
}

/// How a tensor is cut, in the words of `kernels/look.cu`.
#[derive(Debug)]
struct Spread {
    packs: usize,
    /// Threads side by side, one behind the other, and blocks side by side.
    width: usize,
    rows: usize,
    across: usize,
    periods: usize,
    stretches: usize,
}

/// Neighbours of 16 bytes.
fn pack(storage: Storage) -> usize {
    match storage {
        Storage::F32 => 4,
        Storage::Bf16 => 8,
    }
}

impl Spread {
    /// Of `len` values of `maps` maps.
    fn new(len: usize, maps: usize, pack: usize) -> Self {
        // A pack is a power of two, and so is what it has in common with the maps.
        let packs = maps >> maps.trailing_zeros().min(pack.trailing_zeros());
        let across = packs.div_ceil(THREADS);
        let width = packs.div_ceil(across);
        let rows = THREADS / width;
        let periods = len / (packs * pack);
        let stretches = periods.div_ceil(rows * LEAST).clamp(1, (BLOCKS / across).max(1));
        Spread { packs, width, rows, across, periods, stretches }
    }

    /// Moments that all blocks find together: rows of one of each map.
    fn partial(&self, pack: usize) -> usize {
        self.stretches * self.packs * pack
    }
}

/// See [`crate::backend::Backend::moments`].
pub fn allocate(backend: &CudaBackend, maps: usize, most: usize) -> Result<Moments> {
    // Of tensors so long that more would not be cut any finer.
    let partial = |maps| [4, 8].map(|pack| Spread::new(usize::MAX, maps, pack).partial(pack));
    let partial = (1..=most).flat_map(partial).max().unwrap_or(0);
    Ok(Moments {
        of_maps: backend.allocate(size_of::<MapMoments>() * maps)?,
        partial: backend.allocate(size_of::<MapMoments>() * partial)?,
        host: backend.device.pinned(size_of::<MapMoments>() * maps)?,
    })
}

/// See [`crate::backend::Backend::map_moments`].
pub fn make(
    backend: &CudaBackend,
    dst: &mut Moments,
    first: usize,
    x: &Tensor<CudaBackend>,
) -> Result<()> {
    let (len, maps, storage) = (x.shape().len(), x.shape().c, x.buffer.storage());
    let pack = pack(storage);
    let spread = Spread::new(len, maps, pack);
    let Moments { of_maps, partial, .. } = dst;
    let bytes = |moments: usize| size_of::<MapMoments>() * moments;
    assert!(bytes(first + maps) <= of_maps.bytes(), "{maps} maps from {first} on");
    assert!(
        bytes(spread.partial(pack)) <= partial.bytes(),
        "{spread:?} for more maps than planned"
    );
    let Spread { packs, width, rows, across, periods, stretches } = spread;
    launch!(
        backend.device,
        by(storage, "map_moments_f32", "map_moments_bf16"),
        Launch {
            grid: [across as u32, stretches as u32, 1],
            block: [width as u32, rows as u32, 1],
            shared: 0
        },
        partial.pointer(),
        x.buffer.values(),
        len as u64,
        packs as u32,
        periods as u64,
        periods.div_ceil(stretches) as u64,
    )?;
    launch!(
        backend.device,
        "join_moments",
        Launch::blocks(maps.div_ceil(THREADS / 32)),
        of_maps.pointer() + bytes(first) as u64,
        partial.pointer(),
        (stretches * packs * pack / maps) as u32,
        maps as u32,
    )
}

/// See [`crate::backend::Backend::send_moments`].
pub fn send(backend: &CudaBackend, moments: &mut Moments) -> Result<()> {
    // On the kernels' stream: after what makes the moments, and before whatever is recorded or waited for there
    // next, so that who has waited for that has waited for this copy. No kernel of a later step writes the moments
    // before they have been copied either.
    let Moments { of_maps, host, .. } = moments;
    host.download(of_maps, of_maps.bytes(), &backend.device.stream)
}

/// See [`crate::backend::Backend::received_moments`].
pub fn received(dst: &mut [MapMoments], moments: &Moments) {
    // The caller has waited for the event that `end_batch` records on the stream of the copy, behind it, or for the
    // whole stream. What the GPU may write now is the copy of moments that were sent since: a step that sends
    // others begins only when these have been read (`Trainer::begin`).
    let bytes = &moments.host.bytes()[..size_of_val(dst)];
    bytemuck::cast_slice_mut(dst).copy_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pack_is_somebodys_and_every_stretch_has_work() {
        for maps in (1..=600).chain([1000, 2056, 4096, 1 << 18]) {
            for pixels in [1, 2, 7, 50, 169, 4096, 128 * 110 * 110] {
                for pack in [4, 8] {
                    let len = pixels * maps;
                    let spread = Spread::new(len, maps, pack);
                    let Spread { packs, width, rows, across, periods, stretches } = spread;
                    assert!((packs * pack).is_multiple_of(maps), "{maps} {spread:?}");
                    assert!(across * width >= packs && (across - 1) * width < packs, "{spread:?}");
                    assert!(rows * width > THREADS / 2, "{spread:?}");
                    assert!(rows * width <= THREADS && stretches <= BLOCKS, "{spread:?}");
                    assert!(len - periods * packs * pack < packs * pack, "{spread:?}");
                    let share = periods.div_ceil(stretches);
                    assert!(share * stretches >= periods, "{spread:?}");
                    let most = Spread::new(usize::MAX, maps, pack).partial(pack);
                    assert!(spread.partial(pack) <= most, "{spread:?}");
                }
            }
        }
    }

    #[test]
    fn large_tensors_fill_the_machine() {
        for (len, maps) in [(128 * 110 * 110 * 96, 96), (4096 * 36 * 256, 256), (1 << 24, 4096)] {
            for pack in [4, 8] {
                let spread = Spread::new(len, maps, pack);
                assert_eq!(spread.across * spread.stretches, BLOCKS, "{maps} {spread:?}");
                assert!(spread.width * spread.rows > 230, "{maps} {spread:?}");
            }
        }
    }

    #[test]
    fn threads_are_those_of_the_kernel() {
        let kernels = include_str!("../../../kernels/look.cu");
        assert!(kernels.contains(&format!("constexpr unsigned THREADS = {THREADS};")));
    }
}
