//! Ranks: processes, or threads of one, that train one network, or look into one, together.
//!
//! A rank sends and receives on a thread of its own, which does in order what it is given, while the rank computes. All
//! ranks give it the same in the same order. That thread also sends the others a heartbeat every second: a rank that has
//! not been heard of for long ends the work of all, which say its name.

pub(crate) mod agreement;
mod heartbeat;
#[cfg(feature = "mpi")]
mod mpi;
mod threads;

use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::{Error, Result};
use heartbeat::{Control, Heartbeat};

/// How often a rank's thread polls control messages while it has no work, and a rank whether its thread has given up.
const POLL: Duration = Duration::from_millis(100);
/// How long a rank that has failed waits for its thread, which tells the others.
const END: Duration = Duration::from_secs(1);
/// After how long without a message a rank is taken for lost, by default.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// One of the ranks.
#[derive(Clone)]
pub struct Ranks(Arc<Member>);

struct Member {
    rank: usize,
    /// The host of each rank.
    hosts: Vec<String>,
    /// Which of the ranks on its host it is.
    on_host: usize,
    /// Queue of its thread; a rank that is alone has none.
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
    /// A signal that another rank has told.
    told_stop: AtomicUsize,
}

impl Shared {
    /// The failure that counts: the first that this rank knows of, its own or another's.
    fn failure(&self) -> Option<Failure> {
        self.failure.lock().expect("never held in a panic").clone()
    }

    /// The failure that counts, from now on perhaps this one.
    fn fail(&self, failure: Failure) -> Failure {
        self.failure.lock().expect("never held in a panic").get_or_insert(failure).clone()
    }

    fn stop(&self) -> Option<Arc<AtomicUsize>> {
        self.stop.lock().expect("never held in a panic").clone()
    }
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

type Work = Box<dyn FnOnce(&mut dyn Channel) + Send>;

/// The messages of one rank, to be used on its thread alone.
pub(crate) trait Channel {
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
trait Transport: Sized {
    fn rank(&self) -> usize;
    /// The host of each rank.
    fn hosts(&self) -> &[String];
    /// Which of the ranks on its host it is.
    fn on_host(&self) -> usize;
    /// [`Channel::exchange`], with `poll` called again and again while it waits. If that fails, the work of this rank is over:
    /// where messages under way still use what was lent, this does not return, and the failure is told in another way.
    fn exchange(
        &mut self,
        sends: &[(usize, &[u8])],
        receives: &mut [(usize, &mut [u8])],
        poll: &mut dyn FnMut(&dyn ControlMessages) -> Result<()>,
    ) -> Result<()>;
    fn control(&self) -> &dyn ControlMessages;
    /// Whether all ranks have to end at a time.
    const ENDS_TOGETHER: bool;
    /// Ends all that it began, with all other ranks; or without them, after a failure.
    fn end(self, well: bool);
}

/// Control messages, which nobody waits for.
trait ControlMessages {
    fn send(&self, rank: usize, message: &Control);
    fn receive(&self) -> Option<(usize, Control)>;
}

struct Thread<T> {
    transport: T,
    heartbeat: Heartbeat,
}

impl<T: Transport> Channel for Thread<T> {
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
        let Thread { transport, heartbeat } = self;
        transport.exchange(sends, receives, &mut |control| heartbeat.poll(control))
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
            match self.result.recv_timeout(POLL) {
                Ok(result) => return result,
                Err(RecvTimeoutError::Timeout) => {
                    if let Some(failure) = self.shared.failure() {
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
    pub fn threads(count: usize, timeout: Duration) -> Vec<Self> {
        let channels = threads::channels(count);
        channels
            .map(|channel| Self::new(move || Ok(channel), timeout).expect("made already"))
            .collect()
    }

    /// This process among those that MPI has started.
    ///
    /// # Errors
    /// If MPI cannot be initialised.
    #[cfg(feature = "mpi")]
    pub fn of_mpi(timeout: Duration) -> Result<Self> {
        Self::new(mpi::Mpi::new, timeout)
    }

    /// Starts the thread of a rank, on which alone its messages are used.
    fn new<T: Transport>(
        make: impl FnOnce() -> Result<T> + Send + 'static,
        timeout: Duration,
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
            let heartbeat = Heartbeat::new(rank, hosts.clone(), timeout, of_thread.clone());
            let _ = ready.send(Ok((rank, hosts, transport.on_host()))); // is waited for
            let mut thread = Thread { transport, heartbeat };
            loop {
                match received.recv_timeout(POLL) {
                    Ok(work) => {
                        let _ = thread.heartbeat.poll(thread.transport.control());
                        work(&mut thread);
                    }
                    Err(RecvTimeoutError::Timeout) => {
                        let _ = thread.heartbeat.poll(thread.transport.control()); // kept for who waits next
                    }
                    Err(RecvTimeoutError::Disconnected) => break,
                }
            }
            let _ = thread.heartbeat.poll_now(thread.transport.control()); // a failure is told at last
            // What ends MPI waits for all without a heartbeat: it begins when all are here.
            let well = of_thread.failure().is_none()
                && (!T::ENDS_TOGETHER || all_gather(&mut thread, &[]).is_ok());
            thread.transport.end(well);
            let _ = end.send(()); // if somebody waits for it
        };
        std::thread::Builder::new()
            .name("zfnet-ranks".into())
            .spawn(run)
            .map_err(|error| Error::Ranks(format!("cannot start a thread: {error}")))?;
        // What begins MPI waits for all, also for one that has ended before, or is another program.
        let begun = is_ready.recv_timeout(timeout).map_err(|reason| {
            Error::Ranks(match reason {
                RecvTimeoutError::Timeout => format!(
                    "not all have begun within {} s: one has ended, or is no program of MPI",
                    timeout.as_secs()
                ),
                RecvTimeoutError::Disconnected => "the thread for messages has ended".into(),
            })
        });
        let (rank, hosts, on_host) = begun??;
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

    /// How many ranks are on its host.
    pub fn count_on_host(&self) -> usize {
        let own = self.host(self.rank());
        self.0.hosts.iter().filter(|host| *host == own).count()
    }

    /// The name of a rank's host.
    pub fn host(&self, rank: usize) -> &str {
        &self.0.hosts[rank]
    }

    /// From now on a number in `stop`, a signal's, is told to all ranks, whose own then becomes the same.
    pub fn share_stop(&self, stop: Arc<AtomicUsize>) {
        let mut shared = self.0.shared.stop.lock().expect("never held in a panic");
        // What another rank has told before.
        let told = self.0.shared.told_stop.load(Ordering::Relaxed);
        let _ = stop.compare_exchange(0, told, Ordering::Relaxed, Ordering::Relaxed);
        *shared = Some(stop);
    }

    /// Has something done by the thread of this rank. All ranks give theirs what belongs together in the same order.
    pub(crate) fn submit<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut dyn Channel) -> Result<T> + Send + 'static,
    ) -> Pending<T> {
        let (send, result) = mpsc::sync_channel(1);
        let shared = self.0.shared.clone();
        let work = Box::new(move |channel: &mut dyn Channel| {
            let panicked = |_| Err(Error::Ranks("the thread for messages has panicked".into()));
            let done = catch_unwind(AssertUnwindSafe(|| work(channel))).unwrap_or_else(panicked);
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
        self.submit(move |channel| all_gather(channel, &own)).wait()
    }

    /// Hands every rank's bytes to `each` at rank 0, in the order of the ranks: it has those of one at a time.
    ///
    /// # Errors
    /// As [`Ranks::all_gather`], or if `each` fails.
    pub(crate) fn gather(
        &self,
        own: Vec<u8>,
        mut each: impl FnMut(usize, Vec<u8>) -> Result<()>,
    ) -> Result<()> {
        if !self.is_first() {
            return self.submit(move |channel| send(channel, 0, &own)).wait();
        }
        each(0, own)?;
        for rank in 1..self.count() {
            each(rank, self.submit(move |channel| receive(channel, rank)).wait()?)?;
        }
        Ok(())
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
        if self.count() == 1 {
            return Ok(own);
        }
        let gather = move |channel: &mut dyn Channel| {
            let (rank, own) = (channel.rank(), u8::from(own));
            let mut all = vec![own; channel.ranks()];
            gather_into(channel, rank, &[own], all.chunks_mut(1))?;
            Ok(all.contains(&1))
        };
        self.submit(gather).wait()
    }

    /// Ends the work of all ranks at the same place if a signal has asked any of them to stop.
    ///
    /// # Errors
    /// If so, or as [`Ranks::all_gather`].
    pub(crate) fn stop_together(&self) -> Result<()> {
        let own = self.signal();
        let all = self.all_gather(vec![own])?.concat();
        stopped_by(all.into_iter().max().unwrap_or(0))
    }

    /// Whether a signal has asked any rank to stop, as far as is known: then all are to [stop
    /// together](Ranks::stop_together).
    ///
    /// # Errors
    /// If so.
    pub(crate) fn check_stop(&self) -> Result<()> {
        stopped_by(self.signal())
    }

    /// The signal that has asked a rank to stop, or 0.
    fn signal(&self) -> u8 {
        self.0.shared.stop().map_or(0, |stop| stop.load(Ordering::Relaxed)) as u8
    }

    /// Does this rank's share of what all do, and waits for the others: none has ended well before all have. They are
    /// told of an error to which they do not come themselves.
    ///
    /// # Errors
    /// Those of `share`, or as [`Ranks::all_gather`].
    pub(crate) fn together<T>(&self, share: impl FnOnce() -> Result<T>) -> Result<T> {
        let done = share().and_then(|done| self.meet().map(|()| done));
        if let Err(error) = &done
            && !error.is_of_all_ranks()
        {
            self.fail(format_args!("{error:#}"));
        }
        done
    }

    /// Waits until all ranks have come to the end of their work.
    ///
    /// # Errors
    /// As [`Ranks::all_gather`].
    pub(crate) fn meet(&self) -> Result<()> {
        self.any(false).map(drop)
    }

    /// Whether all live and none has failed, as far as is known.
    ///
    /// # Errors
    /// If not.
    pub(crate) fn check(&self) -> Result<()> {
        self.0.shared.failure().map_or(Ok(()), |failure| Err(failure.error()))
    }

    /// Tells all others that this rank cannot go on, and why: so they need not wait for it. The first failure that a rank
    /// knows of, its own or another's, is the one that counts.
    pub fn fail(&self, reason: impl Display) {
        self.0.fail(reason.to_string());
    }
}

impl Member {
    fn fail(&self, reason: String) {
        let (rank, host) = (self.rank, self.hosts[self.rank].clone());
        self.shared.fail(Failure { rank, host, why: Why::Said(reason) });
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.fail("it has panicked".into());
        }
        self.work = None; // ends the thread
        let Some(ended) = self.ended.lock().expect("never held in a panic").take() else { return };
        loop {
            // A thread that has given up does not end.
            let has_failed = self.shared.failure().is_some();
            match ended.recv_timeout(if has_failed { END } else { POLL }) {
                Err(RecvTimeoutError::Timeout) if !has_failed => {}
                _ => return,
            }
        }
    }
}

fn stopped_by(signal: u8) -> Result<()> {
    if signal == 0 { Ok(()) } else { Err(Error::Stopped { signal }) }
}

/// The bytes of a message that was received are as many as expected.
fn check_length(rank: usize, found: usize, expected: usize) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    let message = format!("expected {expected} bytes of rank {rank}, found {found}");
    Err(Error::Ranks(format!("{message}: the ranks do different things")))
}

/// First the lengths, then the bytes.
fn all_gather(channel: &mut dyn Channel, own: &[u8]) -> Result<Vec<Vec<u8>>> {
    let (rank, ranks) = (channel.rank(), channel.ranks());
    let length = (own.len() as u64).to_le_bytes();
    let mut lengths = vec![length; ranks];
    gather_into(channel, rank, &length, lengths.iter_mut().map(|length| &mut length[..]))?;
    let empty = |length: &[u8; 8]| vec![0; u64::from_le_bytes(*length) as usize];
    let mut all: Vec<Vec<u8>> = lengths.iter().map(empty).collect();
    gather_into(channel, rank, own, all.iter_mut().map(|bytes| &mut bytes[..]))?;
    all[rank].copy_from_slice(own);
    Ok(all)
}

/// Bytes for a rank, behind their length: see [`receive`].
fn send(channel: &mut dyn Channel, rank: usize, bytes: &[u8]) -> Result<()> {
    channel.exchange(&[(rank, &(bytes.len() as u64).to_le_bytes())], &mut [])?;
    match bytes {
        [] => Ok(()),
        bytes => channel.exchange(&[(rank, bytes)], &mut []),
    }
}

/// The bytes that a rank has sent by [`send`].
fn receive(channel: &mut dyn Channel, rank: usize) -> Result<Vec<u8>> {
    let mut length = [0; 8];
    channel.exchange(&[], &mut [(rank, &mut length)])?;
    let mut bytes = vec![0; u64::from_le_bytes(length) as usize];
    if !bytes.is_empty() {
        channel.exchange(&[], &mut [(rank, &mut bytes)])?;
    }
    Ok(bytes)
}

/// Sends the same to all others, and receives theirs. Who has none sends none.
fn gather_into<'a>(
    channel: &mut dyn Channel,
    rank: usize,
    own: &[u8],
    places: impl Iterator<Item = &'a mut [u8]>,
) -> Result<()> {
    let sends: Vec<(usize, &[u8])> = (0..channel.ranks())
        .filter(|other| *other != rank && !own.is_empty())
        .map(|other| (other, own))
        .collect();
    let mut receives: Vec<(usize, &mut [u8])> =
        places.enumerate().filter(|(other, place)| *other != rank && !place.is_empty()).collect();
    channel.exchange(&sends, &mut receives)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What each of so many ranks, threads, makes of `work`.
    fn by_ranks<T: Send>(count: usize, work: impl Fn(&Ranks) -> T + Sync) -> Vec<T> {
        std::thread::scope(|scope| {
            let work = &work;
            let start = |ranks: Ranks| scope.spawn(move || work(&ranks));
            let running: Vec<_> = Ranks::threads(count, TIMEOUT).into_iter().map(start).collect();
            running.into_iter().map(|rank| rank.join().expect("no panic")).collect()
        })
    }

    #[test]
    fn rank_0_gathers_bytes_in_the_order_of_the_ranks() {
        for count in 1..=4 {
            let gathered = by_ranks(count, |ranks| {
                let mut gathered = Vec::new();
                for length in [0, 3, 100_000] {
                    // Those of odd ranks are empty at first.
                    let own = vec![ranks.rank() as u8; length + (ranks.rank() + 1) % 2];
                    let each = |rank, bytes| {
                        gathered.push((rank, bytes));
                        Ok(())
                    };
                    ranks.gather(own, each).unwrap();
                }
                gathered
            });
            let of_length = |length: usize| {
                (0..count).map(move |rank| (rank, vec![rank as u8; length + (rank + 1) % 2]))
            };
            let expected: Vec<_> = [0, 3, 100_000].into_iter().flat_map(of_length).collect();
            assert!(gathered[0] == expected, "{count} ranks");
            assert!(gathered[1..].iter().all(Vec::is_empty), "{count} ranks");
        }
    }

    #[test]
    fn a_signal_at_one_rank_stops_all_at_the_same_place() {
        let stopped = by_ranks(3, |ranks| {
            let stop = Arc::new(AtomicUsize::new(0));
            ranks.share_stop(stop.clone());
            let places = (0..10).map(|place| {
                if (ranks.rank(), place) == (1, 4) {
                    stop.store(15, Ordering::Relaxed);
                }
                ranks.stop_together()
            });
            let place = places.take_while(Result::is_ok).count();
            (place, ranks.stop_together().unwrap_err().to_string())
        });
        assert!(stopped.iter().all(|(place, _)| *place == 4), "{stopped:?}");
        assert!(stopped[0].1.contains("signal 15"), "{stopped:?}");
    }

    #[test]
    fn none_has_ended_well_before_all_have() {
        let ended = by_ranks(3, |ranks| {
            let share = || match ranks.rank() {
                2 => Err(Error::Data("the disk is full".into())),
                _ => Ok(()),
            };
            ranks.together(share).unwrap_err().to_string()
        });
        assert!(ended[2].ends_with("the disk is full") && !ended[2].contains("rank"), "{ended:?}");
        for error in &ended[..2] {
            assert!(error.starts_with("rank 2 on this host: "), "{error}");
        }
    }
}
