//! Ranks: processes, or threads of one, that train one network together.
//!
//! A rank hears and tells the others by a thread of its own, which does in order what it is given, while the rank
//! computes. All ranks give it the same in the same order. It also tells the others every second that its rank lives:
//! one that has not been heard of for long ends the work of all, with its name.

mod alive;
#[cfg(feature = "mpi")]
mod mpi;
mod threads;

use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::AtomicUsize;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::{Error, Result};
use alive::{Alive, Note};

/// How often the thread of a rank looks whether the others live, and a rank whether its thread has given up.
const LOOK: Duration = Duration::from_millis(100);
/// How long the end of a rank waits for the others' ends.
const GOODBYE: Duration = Duration::from_secs(5);
/// After how long without a word of it a rank is taken for lost, unless it is said otherwise.
pub const SILENCE: Duration = Duration::from_secs(60);

/// One of the ranks, and its way to the others.
#[derive(Clone)]
pub struct Ranks(Arc<Member>);

struct Member {
    rank: usize,
    /// The host of each rank.
    hosts: Vec<String>,
    /// Which of the ranks on its host it is.
    on_host: usize,
    /// To its thread; a rank that is alone has none.
    work: Option<Sender<Work>>,
    shared: Arc<Shared>,
    /// Says that the thread has ended.
    ended: Mutex<Option<Receiver<()>>>,
}

/// What a rank and its thread both know.
#[derive(Default)]
struct Shared {
    failure: Mutex<Option<Failure>>,
    stop: Mutex<Option<Arc<AtomicUsize>>>,
}

/// Why the ranks cannot go on.
#[derive(Clone)]
struct Failure {
    rank: usize,
    host: String,
    why: Why,
}

#[derive(Clone)]
enum Why {
    /// Not heard of for so long.
    Silence(Duration),
    /// It has said so.
    Said(String),
}

impl Failure {
    fn error(&self) -> Error {
        let Failure { rank, host, why } = self.clone();
        match why {
            Why::Silence(silence) => Error::LostRank { rank, host, silence },
            Why::Said(reason) => Error::FailedRank { rank, host, reason },
        }
    }
}

type Work = Box<dyn FnOnce(&mut dyn Line) + Send>;

/// The messages of one rank, to be used on its thread alone.
pub(crate) trait Line {
    /// Which rank it is.
    fn rank(&self) -> usize;
    /// How many there are.
    fn ranks(&self) -> usize;
    /// Sends bytes to ranks and receives such from them, all at once. Both sides know how many, and have as many messages
    /// for each other, in the same order.
    fn exchange(
        &mut self,
        sends: &[(usize, &[u8])],
        receives: &mut [(usize, &mut [u8])],
    ) -> Result<()>;
}

/// What carries messages.
trait Transport {
    fn rank(&self) -> usize;
    /// The host of each rank.
    fn hosts(&self) -> &[String];
    /// Which of the ranks on its host it is.
    fn on_host(&self) -> usize;
    /// [`Line::exchange`], with `look` called again and again while it waits. If that fails, the work of this rank is over:
    /// where messages under way still use what was lent, this does not return, and the failure is told in another way.
    fn exchange(
        &mut self,
        sends: &[(usize, &[u8])],
        receives: &mut [(usize, &mut [u8])],
        look: &mut dyn FnMut(&dyn Notes) -> Result<()>,
    ) -> Result<()>;
    fn notes(&self) -> &dyn Notes;
    /// Ends all that it began, with all other ranks; or without them, after a failure.
    fn end(self, well: bool);
}

/// Small messages that nobody waits for.
trait Notes {
    fn tell(&self, rank: usize, note: &Note);
    fn heard(&self) -> Option<(usize, Note)>;
}

struct Thread<T> {
    transport: T,
    alive: Alive,
}

impl<T: Transport> Line for Thread<T> {
    fn rank(&self) -> usize {
        self.transport.rank()
    }

    fn ranks(&self) -> usize {
        self.transport.hosts().len()
    }

    fn exchange(
        &mut self,
        sends: &[(usize, &[u8])],
        receives: &mut [(usize, &mut [u8])],
    ) -> Result<()> {
        let Thread { transport, alive } = self;
        transport.exchange(sends, receives, &mut |notes| alive.look(notes))
    }
}

/// What is under way on a rank's thread.
pub(crate) struct Pending<T> {
    result: Receiver<Result<T>>,
    shared: Arc<Shared>,
}

impl<T> Pending<T> {
    /// Waits for it.
    pub fn wait(self) -> Result<T> {
        loop {
            match self.result.recv_timeout(LOOK) {
                Ok(result) => return result,
                Err(RecvTimeoutError::Timeout) => {
                    let failure = self.shared.failure.lock().expect("never held in a panic");
                    if let Some(failure) = &*failure {
                        return Err(failure.error());
                    }
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Error::Ranks("the thread for messages has ended".into()));
                }
            }
        }
    }
}

impl Ranks {
    /// The only rank.
    pub fn alone() -> Self {
        Ranks(Arc::new(Member {
            rank: 0,
            hosts: vec![String::new()],
            on_host: 0,
            work: None,
            shared: Arc::default(),
            ended: Mutex::new(None),
        }))
    }

    /// Ranks that are threads of this process, to be given one each.
    pub fn threads(count: usize, silence: Duration) -> Vec<Self> {
        let lines = threads::lines(count);
        lines.map(|line| Self::new(move || Ok(line), silence).expect("made already")).collect()
    }

    /// This process among those that MPI has started.
    ///
    /// # Errors
    /// If MPI cannot be initialised.
    #[cfg(feature = "mpi")]
    pub fn of_mpi(silence: Duration) -> Result<Self> {
        Self::new(mpi::Mpi::new, silence)
    }

    /// Starts the thread of a rank, on which alone its messages are used.
    fn new<T: Transport>(
        make: impl FnOnce() -> Result<T> + Send + 'static,
        silence: Duration,
    ) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let of_thread = shared.clone();
        let (work, received) = mpsc::channel::<Work>();
        let (ready, is_ready) = mpsc::sync_channel(1);
        let (end, ended) = mpsc::channel();
        let run = move || {
            let transport = match make() {
                Ok(transport) => transport,
                Err(error) => return drop(ready.send(Err(error))),
            };
            let (rank, hosts) = (transport.rank(), transport.hosts().to_vec());
            let alive = Alive::new(rank, hosts.clone(), silence, of_thread.clone());
            let _ = ready.send(Ok((rank, hosts, transport.on_host()))); // is waited for
            let mut thread = Thread { transport, alive };
            loop {
                match received.recv_timeout(LOOK) {
                    Ok(work) => work(&mut thread),
                    Err(RecvTimeoutError::Timeout) => {
                        let _ = thread.alive.look(thread.transport.notes()); // kept for who waits next
                    }
                    Err(RecvTimeoutError::Disconnected) => break,
                }
            }
            let _ = thread.alive.look_now(thread.transport.notes()); // a failure is told at last
            let well = of_thread.failure.lock().expect("never held in a panic").is_none();
            // Until all others are here, too: one that has ended tells nobody that it lives.
            let well = well && all_gather(&mut thread, &[]).is_ok();
            thread.transport.end(well);
            let _ = end.send(()); // if somebody waits for it
        };
        std::thread::Builder::new()
            .name("zfnet-ranks".into())
            .spawn(run)
            .map_err(|error| Error::Ranks(format!("cannot start a thread: {error}")))?;
        let begun = is_ready.recv();
        let begun = begun.map_err(|_| Error::Ranks("the thread for messages has ended".into()))?;
        let (rank, hosts, on_host) = begun?;
        let (work, ended) = (Some(work), Mutex::new(Some(ended)));
        Ok(Ranks(Arc::new(Member { rank, hosts, on_host, work, shared, ended })))
    }

    /// Which rank this is, from 0.
    pub fn rank(&self) -> usize {
        self.0.rank
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.hosts.len()
    }

    /// Whether it is rank 0, which speaks for all and writes what they make.
    pub fn is_first(&self) -> bool {
        self.0.rank == 0
    }

    /// Which of the ranks on its host it is, from 0.
    pub fn on_host(&self) -> usize {
        self.0.on_host
    }

    /// The name of a rank's host.
    pub fn host(&self, rank: usize) -> &str {
        &self.0.hosts[rank]
    }

    /// From now on a number in `stop`, a signal's, is told to all ranks, whose own then becomes the same.
    pub fn share_stop(&self, stop: Arc<AtomicUsize>) {
        *self.0.shared.stop.lock().expect("never held in a panic") = Some(stop);
    }

    /// Has something done by the thread of this rank. All ranks give theirs what belongs together in the same order.
    pub(crate) fn submit<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut dyn Line) -> Result<T> + Send + 'static,
    ) -> Pending<T> {
        let (send, result) = mpsc::sync_channel(1);
        let shared = self.0.shared.clone();
        let work = Box::new(move |line: &mut dyn Line| {
            let panicked = |_| Err(Error::Ranks("the thread for messages has panicked".into()));
            let done = catch_unwind(AssertUnwindSafe(|| work(line))).unwrap_or_else(panicked);
            let _ = send.send(done); // nobody may wait for it any more
        });
        if let Some(thread) = &self.0.work {
            let _ = thread.send(work); // whoever waits is told that it has ended
        }
        Pending { result, shared }
    }

    /// Every rank's bytes, in the order of the ranks, at all of them.
    ///
    /// # Errors
    /// If a rank is lost or has failed.
    pub(crate) fn all_gather(&self, own: Vec<u8>) -> Result<Vec<Vec<u8>>> {
        if self.count() == 1 {
            return Ok(vec![own]);
        }
        self.submit(move |line| all_gather(line, &own)).wait()
    }

    /// Rank 0's bytes, at all ranks. The others have none.
    ///
    /// # Errors
    /// As [`Ranks::all_gather`].
    pub(crate) fn broadcast(&self, own: Option<Vec<u8>>) -> Result<Vec<u8>> {
        assert_eq!(own.is_some(), self.is_first(), "rank 0 has what all get");
        if self.count() == 1 {
            return Ok(own.expect("rank 0's"));
        }
        let all = self.all_gather(own.unwrap_or_default())?;
        Ok(all.into_iter().next().expect("rank 0's"))
    }

    /// Says nothing any more, as a process that was killed or stopped. For tests.
    #[doc(hidden)]
    pub fn fall_silent(self) {
        std::mem::forget(self.submit(|_| -> Result<()> {
            loop {
                std::thread::park();
            }
        }));
        std::mem::forget(self);
    }

    /// Whether it is so at any rank.
    ///
    /// # Errors
    /// As [`Ranks::all_gather`].
    pub(crate) fn any(&self, own: bool) -> Result<bool> {
        Ok(self.all_gather(vec![u8::from(own)])?.concat().contains(&1))
    }

    /// Whether all ranks live and can go on, as far as is known.
    ///
    /// # Errors
    /// If a rank is lost or has failed.
    pub(crate) fn check(&self) -> Result<()> {
        let failure = self.0.shared.failure.lock().expect("never held in a panic");
        failure.as_ref().map_or(Ok(()), |failure| Err(failure.error()))
    }

    /// Tells all others that this rank cannot go on, and why: so they need not wait for it. The first failure that a rank
    /// knows of, its own or another's, is the one that counts.
    pub fn fail(&self, reason: impl Display) {
        let (rank, host) = (self.rank(), self.host(self.rank()).to_owned());
        let failure = Failure { rank, host, why: Why::Said(reason.to_string()) };
        self.0.shared.failure.lock().expect("never held in a panic").get_or_insert(failure);
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.work = None; // ends the thread
        if let Some(ended) = self.ended.lock().expect("never held in a panic").take() {
            let has_failed = self.shared.failure.lock().expect("never held in a panic").is_some();
            // Where all is well there is no limit but that of silence.
            let _ = if has_failed { ended.recv_timeout(GOODBYE).ok() } else { ended.recv().ok() };
        }
    }
}

/// First the lengths, then the bytes.
fn all_gather(line: &mut dyn Line, own: &[u8]) -> Result<Vec<Vec<u8>>> {
    let (rank, ranks) = (line.rank(), line.ranks());
    let length = (own.len() as u64).to_le_bytes();
    let mut lengths = vec![length; ranks];
    gather_into(line, rank, &length, lengths.iter_mut().map(|length| &mut length[..]))?;
    let empty = |length: &[u8; 8]| vec![0; u64::from_le_bytes(*length) as usize];
    let mut all: Vec<Vec<u8>> = lengths.iter().map(empty).collect();
    gather_into(line, rank, own, all.iter_mut().map(|bytes| &mut bytes[..]))?;
    all[rank].copy_from_slice(own);
    Ok(all)
}

/// Sends the same to all others, and receives theirs. Who has none sends none.
fn gather_into<'a>(
    line: &mut dyn Line,
    rank: usize,
    own: &[u8],
    places: impl Iterator<Item = &'a mut [u8]>,
) -> Result<()> {
    let sends: Vec<(usize, &[u8])> = (0..line.ranks())
        .filter(|other| *other != rank && !own.is_empty())
        .map(|other| (other, own))
        .collect();
    let mut receives: Vec<(usize, &mut [u8])> =
        places.enumerate().filter(|(other, place)| *other != rank && !place.is_empty()).collect();
    line.exchange(&sends, &mut receives)
}
