//! Messages by MPI. Every call to it is made on the one thread that uses them.

use std::time::Duration;

use mpi::Threading;
use mpi::environment::{Universe, initialize_with_threading, processor_name};
use mpi::request::multiple_scope;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{
    Communicator, CommunicatorCollectives, Destination, Equivalence, MatchedReceiveVec, Source,
};

use super::{Control, ControlMessages, Transport, check_length};
use crate::{Error, Result};

/// Bytes of a message: MPI counts them in 32 bits.
const MESSAGE: usize = 1 << 30;
/// Bytes of a host's name.
const NAME: usize = 256;
/// How often messages are polled without a pause between, and the pause after that.
const EAGER: usize = 200;
const PAUSE: Duration = Duration::from_micros(50);

/// The messages of this process.
pub(super) struct Mpi {
    hosts: Vec<String>,
    on_host: usize,
    rank: usize,
    data: SimpleCommunicator,
    control: MpiControl,
    /// Ends MPI when it is dropped: the last of all.
    _universe: Universe,
}

struct MpiControl(SimpleCommunicator);

impl Mpi {
    pub fn new() -> Result<Self> {
        let (universe, provided) = initialize_with_threading(Threading::Funneled)
            .ok_or_else(|| Error::Ranks("MPI is in use already".into()))?;
        if provided < Threading::Funneled {
            return Err(Error::Ranks("this MPI allows no threads".into()));
        }
        let world = universe.world();
        let mut name = processor_name().unwrap_or_default().into_bytes();
        name.resize(NAME, 0);
        let mut names = vec![0; NAME * world.size() as usize];
        world.all_gather_into(&name[..], &mut names[..]);
        let host = |name: &[u8]| {
            let end = name.iter().position(|byte| *byte == 0).unwrap_or(NAME);
            String::from_utf8_lossy(&name[..end]).into_owned()
        };
        Ok(Mpi {
            hosts: names.chunks_exact(NAME).map(host).collect(),
            on_host: world.split_shared(world.rank()).rank() as usize,
            rank: world.rank() as usize,
            data: world.duplicate(),
            control: MpiControl(world.duplicate()),
            _universe: universe,
        })
    }
}

impl Transport for Mpi {
    const ENDS_TOGETHER: bool = true;

    fn rank(&self) -> usize {
        self.rank
    }

    fn hosts(&self) -> &[String] {
        &self.hosts
    }

    fn on_host(&self) -> usize {
        self.on_host
    }

    fn exchange(
        &mut self,
        sends: &[(usize, &[u8])],
        receives: &mut [(usize, &mut [u8])],
        poll: &mut dyn FnMut(&dyn ControlMessages) -> Result<()>,
    ) -> Result<()> {
        let Mpi { data, control, .. } = self;
        let messages = |bytes: usize| bytes.div_ceil(MESSAGE);
        let receiving = receives.iter().map(|(_, place)| messages(place.len())).sum::<usize>();
        let sending = sends.iter().map(|(_, bytes)| messages(bytes.len())).sum::<usize>();
        let (mut left, mut result) = (receiving + sending, Ok(()));
        multiple_scope(left, |scope, requests| {
            for (rank, place) in receives {
                let rank = data.process_at_rank(*rank as i32);
                for place in place.chunks_mut(MESSAGE) {
                    requests.add(rank.immediate_receive_into(scope, place));
                }
            }
            for (rank, bytes) in sends {
                let rank = data.process_at_rank(*rank as i32);
                for bytes in bytes.chunks(MESSAGE) {
                    requests.add(rank.immediate_send(scope, bytes));
                }
            }
            let mut polls = 0;
            while left > 0 {
                if let Some((index, status, bytes)) = requests.test_any() {
                    left -= 1;
                    polls = 0;
                    if index < receiving && result.is_ok() {
                        let found = status.count(u8::equivalent_datatype()) as usize;
                        result = check_length(status.source_rank() as usize, found, bytes.len());
                    }
                } else if poll(control).is_err() {
                    // Messages under way use what was lent for as long as the process lives: it is told of the failure
                    // by what `poll` has left, and ends.
                    loop {
                        std::thread::park();
                    }
                } else if polls < EAGER {
                    polls += 1;
                    std::thread::yield_now();
                } else {
                    std::thread::sleep(PAUSE);
                }
            }
        });
        result
    }

    fn control(&self) -> &dyn ControlMessages {
        &self.control
    }

    fn end(self, well: bool) {
        if !well {
            std::mem::forget(self); // what ends MPI waits for all ranks
        }
    }
}

impl ControlMessages for MpiControl {
    /// Returns at once: MPI keeps what is so small, until it can be delivered.
    fn send(&self, rank: usize, message: &Control) {
        self.0.process_at_rank(rank as i32).send(&message.to_bytes()[..]);
    }

    fn receive(&self) -> Option<(usize, Control)> {
        let probed = self.0.any_process().immediate_matched_probe()?;
        let (bytes, status) = probed.matched_receive_vec::<u8>();
        Some((status.source_rank() as usize, Control::from_bytes(&bytes)))
    }
}
