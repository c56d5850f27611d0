//! Messages between threads of one process.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use super::{Note, Notes, Transport};
use crate::{Error, Result};

/// How long a message is waited for before it is looked whether the others live.
const LOOK: Duration = Duration::from_millis(10);

/// The messages of one rank.
pub(super) struct Threads {
    rank: usize,
    hosts: Vec<String>,
    /// To each rank.
    to: Vec<Sender<Vec<u8>>>,
    /// From each rank.
    from: Vec<Receiver<Vec<u8>>>,
    notes: ThreadNotes,
}

struct ThreadNotes {
    rank: usize,
    to: Vec<Sender<(usize, Note)>>,
    from: Receiver<(usize, Note)>,
}

/// The messages of `count` ranks.
pub(super) fn lines(count: usize) -> impl Iterator<Item = Threads> {
    let (to_notes, notes): (Vec<_>, Vec<_>) = (0..count).map(|_| channel()).unzip();
    let mut to: Vec<Vec<Sender<_>>> = (0..count).map(|_| Vec::new()).collect();
    let mut from: Vec<Vec<Receiver<_>>> = (0..count).map(|_| Vec::new()).collect();
    for of_sender in &mut to {
        for of_receiver in &mut from {
            let (send, receive) = channel();
            of_sender.push(send);
            of_receiver.push(receive);
        }
    }
    let all = to.into_iter().zip(from).zip(notes).enumerate();
    all.map(move |(rank, ((to, from), notes))| Threads {
        rank,
        hosts: vec!["this host".into(); count],
        to,
        from,
        notes: ThreadNotes { rank, to: to_notes.clone(), from: notes },
    })
}

impl Transport for Threads {
    const ENDS_TOGETHER: bool = false;

    fn rank(&self) -> usize {
        self.rank
    }

    fn hosts(&self) -> &[String] {
        &self.hosts
    }

    fn on_host(&self) -> usize {
        self.rank
    }

    fn exchange(
        &mut self,
        sends: &[(usize, &[u8])],
        receives: &mut [(usize, &mut [u8])],
        look: &mut dyn FnMut(&dyn Notes) -> Result<()>,
    ) -> Result<()> {
        for (rank, bytes) in sends {
            let _ = self.to[*rank].send(bytes.to_vec()); // one that has ended will be missed
        }
        for (rank, place) in receives {
            let bytes = loop {
                look(&self.notes)?;
                match self.from[*rank].recv_timeout(LOOK) {
                    Ok(bytes) => break bytes,
                    Err(RecvTimeoutError::Timeout) => {}
                    // Until it is known why.
                    Err(RecvTimeoutError::Disconnected) => std::thread::sleep(LOOK),
                }
            };
            if bytes.len() != place.len() {
                let (found, expected) = (bytes.len(), place.len());
                let message = format!("expected {expected} bytes of rank {rank}, found {found}");
                return Err(Error::Ranks(format!("{message}: the ranks do different things")));
            }
            place.copy_from_slice(&bytes);
        }
        Ok(())
    }

    fn notes(&self) -> &dyn Notes {
        &self.notes
    }

    fn end(self, _well: bool) {}
}

impl Notes for ThreadNotes {
    fn tell(&self, rank: usize, note: &Note) {
        debug_assert_ne!(rank, self.rank);
        let _ = self.to[rank].send((self.rank, note.clone())); // one that has ended hears nothing
    }

    fn heard(&self) -> Option<(usize, Note)> {
        self.from.try_recv().ok()
    }
}
