//! Which ranks live, which have been asked to stop, and which have failed: small messages beside the work.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{Failure, Notes, Shared, Why};
use crate::Result;

/// How often it is looked.
const LOOK: Duration = Duration::from_millis(10);
/// How often a rank says that it lives.
const SAY: Duration = Duration::from_secs(1);
/// How long the others have to answer after a signal: launchers that end all ranks because of one leave them a second.
const ANSWER: Duration = Duration::from_millis(500);
/// Characters of a reason that are told: few enough for MPI to keep them until they are read.
const REASON: usize = 800;

/// A small message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Note {
    /// The sender lives.
    Alive,
    /// A signal has asked it to stop. To be answered.
    Stop(u8),
    /// It cannot go on.
    Failed(String),
}

impl Note {
    #[cfg(feature = "mpi")]
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            Note::Alive => vec![0],
            Note::Stop(signal) => vec![1, *signal],
            Note::Failed(reason) => [&[2], reason.as_bytes()].concat(),
        }
    }

    #[cfg(feature = "mpi")]
    pub fn from_bytes(bytes: &[u8]) -> Self {
        match bytes {
            [1, signal, ..] => Note::Stop(*signal),
            [2, reason @ ..] => Note::Failed(String::from_utf8_lossy(reason).into_owned()),
            _ => Note::Alive,
        }
    }
}

/// What a rank knows of the others.
pub(super) struct Alive {
    rank: usize,
    hosts: Vec<String>,
    shared: Arc<Shared>,
    /// Longest silence of a rank that lives.
    silence: Duration,
    /// When each was last heard of.
    heard: Vec<Instant>,
    looked: Instant,
    said: Option<Instant>,
    /// When the others were told of a signal, until it has been seen who answers.
    asked: Option<Instant>,
    has_told_stop: bool,
    has_told_failure: bool,
}

impl Alive {
    pub fn new(rank: usize, hosts: Vec<String>, silence: Duration, shared: Arc<Shared>) -> Self {
        let now = Instant::now();
        Alive {
            rank,
            heard: vec![now; hosts.len()],
            hosts,
            shared,
            silence,
            looked: now,
            said: None,
            asked: None,
            has_told_stop: false,
            has_told_failure: false,
        }
    }

    /// Tells what is to be told, and hears what the others tell.
    ///
    /// # Errors
    /// If this rank has failed, another has said that it has, or has been silent for too long.
    pub fn look(&mut self, notes: &dyn Notes) -> Result<()> {
        if self.looked.elapsed() < LOOK { Ok(()) } else { self.look_now(notes) }
    }

    /// [`Alive::look`], however short ago that was.
    ///
    /// # Errors
    /// As there.
    pub fn look_now(&mut self, notes: &dyn Notes) -> Result<()> {
        let now = Instant::now();
        // The whole process has been stopped, and others may have thought that they told it something.
        let was_stopped = now > self.looked + self.silence;
        self.looked = now;
        if was_stopped {
            self.heard.fill(now);
        }
        while let Some((rank, note)) = notes.heard() {
            self.heard[rank] = now;
            match note {
                Note::Alive => {}
                Note::Stop(signal) => {
                    notes.tell(rank, &Note::Alive);
                    self.shared.told_stop.store(usize::from(signal), Ordering::Relaxed);
                    if let Some(stop) = &*self.shared.stop.lock().expect("never held in a panic") {
                        let signal = usize::from(signal);
                        let _ =
                            stop.compare_exchange(0, signal, Ordering::Relaxed, Ordering::Relaxed);
                        self.has_told_stop = true; // whoever was asked has told all
                    }
                }
                Note::Failed(reason) => self.fail(rank, Why::Said(reason)),
            }
        }
        let failure = self.shared.failure.lock().expect("never held in a panic").clone();
        if let Some(failure) = failure {
            if let Why::Said(reason) = &failure.why
                && failure.rank == self.rank
                && !std::mem::replace(&mut self.has_told_failure, true)
            {
                self.tell_all(notes, &Note::Failed(reason.chars().take(REASON).collect()));
            }
            return Err(failure.error());
        }
        let often = SAY.min(self.silence / 4);
        if self.said.is_none_or(|said| now >= said + often) {
            self.said = Some(now);
            // One that is not heard of may not read, and what is sent to it would have to be kept.
            let reads = |rank: &usize| now < self.heard[*rank] + self.silence / 2;
            self.others().filter(reads).for_each(|rank| notes.tell(rank, &Note::Alive));
        }
        let stop = self.shared.stop.lock().expect("never held in a panic").clone();
        let signal = stop.map_or(0, |stop| stop.load(Ordering::Relaxed)) as u8;
        if signal != 0 && !std::mem::replace(&mut self.has_told_stop, true) {
            self.asked = Some(now);
            self.tell_all(notes, &Note::Stop(signal));
        }
        if let Some(asked) = self.asked.filter(|asked| now >= *asked + ANSWER) {
            self.asked = None;
            let answers = |rank: &usize| *rank == self.rank || self.heard[*rank] >= asked;
            let speaks = (0..self.hosts.len()).find(answers) == Some(self.rank);
            for rank in self.others().filter(|rank| speaks && !answers(rank)) {
                let host = &self.hosts[rank];
                tracing::error!("rank {rank} on {host} does not answer: it was killed or stopped");
            }
        }
        let lost = self.others().find(|rank| now > self.heard[*rank] + self.silence);
        if let Some(rank) = lost {
            self.fail(rank, Why::Silence(self.silence));
            return self.look_again();
        }
        Ok(())
    }

    fn look_again(&self) -> Result<()> {
        let failure = self.shared.failure.lock().expect("never held in a panic").clone();
        failure.map_or(Ok(()), |failure| Err(failure.error()))
    }

    fn fail(&self, rank: usize, why: Why) {
        let failure = Failure { rank, host: self.hosts[rank].clone(), why };
        self.shared.failure.lock().expect("never held in a panic").get_or_insert(failure);
    }

    fn tell_all(&self, notes: &dyn Notes, note: &Note) {
        self.others().for_each(|rank| notes.tell(rank, note));
    }

    fn others(&self) -> impl Iterator<Item = usize> {
        let own = self.rank;
        (0..self.hosts.len()).filter(move |rank| *rank != own)
    }
}
