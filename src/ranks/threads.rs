//! Messages between threads of one process.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use super::{Control, ControlMessages, Transport, check_length};
use crate::Result;

/// How long a message is waited for before control messages are polled.
const POLL: Duration = Duration::from_millis(10);

/// The messages of one rank.
pub(super) struct Threads {
    rank: usize,
    hosts: Vec<String>,
    /// To each rank.
    to: Vec<Sender<Vec<u8>>>,
    /// From each rank.
    from: Vec<Receiver<Vec<u8>>>,
    control: ThreadControl,
}

struct ThreadControl {
    rank: usize,
    to: Vec<Sender<(usize, Control)>>,
    from: Receiver<(usize, Control)>,
}

/// The messages of `count` ranks.
pub(super) fn channels(count: usize) -> impl Iterator<Item = Threads> {
    let (to_control, control): (Vec<_>, Vec<_>) = (0..count).map(|_| channel()).unzip();
    let mut to: Vec<Vec<Sender<_>>> = (0..count).map(|_| Vec::new()).collect();
    let mut from: Vec<Vec<Receiver<_>>> = (0..count).map(|_| Vec::new()).collect();
    for of_sender in &mut to {
        for of_receiver in &mut from {
            let (send, receive) = channel();
            of_sender.push(send);
            of_receiver.push(receive);
        }
    }
    let all = to.into_iter().zip(from).zip(control).enumerate();
    all.map(move |(rank, ((to, from), control))| Threads {
        rank,
        hosts: vec!["this host".into(); count],
        to,
        from,
        control: ThreadControl { rank, to: to_control.clone(), from: control },
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
        poll: &mut dyn FnMut(&dyn ControlMessages) -> Result<()>,
    ) -> Result<()> {
        for (rank, bytes) in sends {
            let _ = self.to[*rank].send(bytes.to_vec()); // one that has ended will be missed
        }
        for (rank, place) in receives {
            let bytes = loop {
                poll(&self.control)?;
                match self.from[*rank].recv_timeout(POLL) {
                    Ok(bytes) => break bytes,
                    Err(RecvTimeoutError::Timeout) => {}
                    // Until it is known why.
                    Err(RecvTimeoutError::Disconnected) => std::thread::sleep(POLL),
                }
            };
            check_length(*rank, bytes.len(), place.len())?;
            place.copy_from_slice(&bytes);
        }
        Ok(())
    }

    fn control(&self) -> &dyn ControlMessages {
        &self.control
    }

    fn end(self, _well: bool) {}
}

impl ControlMessages for ThreadControl {
    fn send(&self, rank: usize, message: &Control) {
        debug_assert_ne!(rank, self.rank);
        let _ = self.to[rank].send((self.rank, message.clone())); // one that has ended hears nothing
    }

    fn receive(&self) -> Option<(usize, Control)> {
        self.from.try_recv().ok()
    }
}
