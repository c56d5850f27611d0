//! Which ranks live, which have been asked to stop, and which have failed: control messages beside the work.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{ControlMessages, Failure, Shared, Why};
use crate::Result;

/// How often control messages are polled.
const POLL: Duration = Duration::from_millis(10);
/// How often a rank sends a heartbeat.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long the others have to answer after a signal: launchers that end all ranks because of one leave them a second.
const ANSWER: Duration = Duration::from_millis(500);
/// Characters of a reason that are told: few enough for MPI to keep them until they are read.
const REASON: usize = 800;

/// A control message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Control {
    /// The sender lives.
    Heartbeat,
    /// A signal has asked it to stop. To be answered.
    Stop(u8),
    /// It cannot go on.
    Failed(String),
}

impl Control {
    #[cfg(feature = "mpi")]
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            Control::Heartbeat => vec![0],
            Control::Stop(signal) => vec![1, *signal],
            Control::Failed(reason) => [&[2], reason.as_bytes()].concat(),
        }
    }

    #[cfg(feature = "mpi")]
    pub fn from_bytes(bytes: &[u8]) -> Self {
        match bytes {
            [1, signal, ..] => Control::Stop(*signal),
            [2, reason @ ..] => Control::Failed(String::from_utf8_lossy(reason).into_owned()),
            _ => Control::Heartbeat,
        }
    }
}

/// What a rank knows of the others.
pub(super) struct Heartbeat {
    rank: usize,
    hosts: Vec<String>,
    shared: Arc<Shared>,
    /// After how long without a message a rank is taken for lost.
    timeout: Duration,
    /// When each was last heard of.
    last_heard: Vec<Instant>,
    polled: Instant,
    sent: Option<Instant>,
    /// When the others were told of a signal, until it has been seen who answers.
    asked: Option<Instant>,
    has_sent_stop: bool,
    has_sent_failure: bool,
}

impl Heartbeat {
    pub fn new(rank: usize, hosts: Vec<String>, timeout: Duration, shared: Arc<Shared>) -> Self {
        let now = Instant::now();
        Heartbeat {
            rank,
            last_heard: vec![now; hosts.len()],
            hosts,
            shared,
            timeout,
            polled: now,
            sent: None,
            asked: None,
            has_sent_stop: false,
            has_sent_failure: false,
        }
    }

    /// Sends what is due, and receives what the others have sent.
    ///
    /// # Errors
    /// If this rank has failed, another has said that it has, or has been silent for too long.
    pub fn poll(&mut self, control: &dyn ControlMessages) -> Result<()> {
        if self.polled.elapsed() < POLL { Ok(()) } else { self.poll_now(control) }
    }

    /// [`Heartbeat::poll`], however short ago that was.
    ///
    /// # Errors
    /// As there.
    pub fn poll_now(&mut self, control: &dyn ControlMessages) -> Result<()> {
        let now = Instant::now();
        // The whole process has been stopped, and others may have thought that they told it something.
        let was_stopped = now > self.polled + self.timeout;
        self.polled = now;
        if was_stopped {
            self.last_heard.fill(now);
        }
        while let Some((rank, message)) = control.receive() {
            self.last_heard[rank] = now;
            match message {
                Control::Heartbeat => {}
                Control::Stop(signal) => {
                    control.send(rank, &Control::Heartbeat);
                    self.shared.told_stop.store(usize::from(signal), Ordering::Relaxed);
                    if let Some(stop) = self.shared.stop() {
                        let signal = usize::from(signal);
                        let _ =
                            stop.compare_exchange(0, signal, Ordering::Relaxed, Ordering::Relaxed);
                    }
                }
                Control::Failed(reason) => drop(self.fail(rank, Why::Said(reason))),
            }
        }
        if let Some(failure) = self.shared.failure() {
            if let Why::Said(reason) = &failure.why
                && failure.rank == self.rank
                && !std::mem::replace(&mut self.has_sent_failure, true)
            {
                self.send_all(control, &Control::Failed(reason.chars().take(REASON).collect()));
            }
            return Err(failure.error());
        }
        let often = INTERVAL.min(self.timeout / 4);
        if self.sent.is_none_or(|sent| now >= sent + often) {
            self.sent = Some(now);
            // One that is not heard of may not read, and what is sent to it would have to be kept.
            let reads = |rank: &usize| now < self.last_heard[*rank] + self.timeout / 2;
            self.others().filter(reads).for_each(|rank| control.send(rank, &Control::Heartbeat));
        }
        let signal = self.shared.stop().map_or(0, |stop| stop.load(Ordering::Relaxed)) as u8;
        if signal != 0 && !std::mem::replace(&mut self.has_sent_stop, true) {
            self.asked = Some(now);
            self.send_all(control, &Control::Stop(signal));
        }
        if let Some(asked) = self.asked.filter(|asked| now >= *asked + ANSWER) {
            self.asked = None;
            let answers = |rank: &usize| *rank == self.rank || self.last_heard[*rank] >= asked;
            let speaks = (0..self.hosts.len()).find(answers) == Some(self.rank);
            for rank in self.others().filter(|rank| speaks && !answers(rank)) {
                let host = &self.hosts[rank];
                tracing::error!("rank {rank} on {host} does not answer: it was killed or stopped");
            }
        }
        let lost = self.others().find(|rank| now > self.last_heard[*rank] + self.timeout);
        lost.map_or(Ok(()), |rank| Err(self.fail(rank, Why::Silence(self.timeout)).error()))
    }

    /// The failure that counts, from now on perhaps this one.
    fn fail(&self, rank: usize, why: Why) -> Failure {
        self.shared.fail(Failure { rank, host: self.hosts[rank].clone(), why })
    }

    fn send_all(&self, control: &dyn ControlMessages, message: &Control) {
        self.others().for_each(|rank| control.send(rank, message));
    }

    fn others(&self) -> impl Iterator<Item = usize> {
        let own = self.rank;
        (0..self.hosts.len()).filter(move |rank| *rank != own)
    }
}
