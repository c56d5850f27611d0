//! What a program changes in a folder, and what it syncs, in order.
//!
//! The program is run under ptrace, so nothing in it takes part. After each of its system calls that may
//! have changed something, it stands still while the folder is looked at, and what differs from the
//! look before is an [`Event`]. So no call's arguments need to be understood, but the descriptors of
//! syncs and writes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::Arc;

use libc::{c_int, c_long, c_uint, pid_t};
use xxhash_rust::xxh3::xxh3_64;

/// A file, folder or link that is or was in the folder, whatever it is called.
pub type Node = usize;

/// The folder that is recorded.
pub const ROOT: Node = 0;

/// What a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    Folder,
    File,
    Link(PathBuf),
}

/// Bytes of a file, and their hash.
#[derive(Clone, Debug)]
pub struct Content {
    pub bytes: Arc<[u8]>,
    pub hash: u64,
}

impl Content {
    pub fn new(bytes: Vec<u8>) -> Self {
        Content { hash: xxh3_64(&bytes), bytes: bytes.into() }
    }
}

/// A name of a folder that has come to mean another node, or none.
#[derive(Clone, Debug)]
pub struct Change {
    pub name: String,
    pub before: Option<Node>,
    pub after: Option<Node>,
}

/// Something that matters to what is on the disk after a power loss.
#[derive(Clone, Debug)]
pub enum Event {
    /// Names of one folder, changed by one call: two of them by a rename.
    Names { folder: Node, changes: Vec<Change> },
    /// What a file holds from now on.
    Data { file: Node, content: Content },
    /// All that was done to this node before is on the disk.
    Synced(Node),
    /// The program has printed something.
    Told,
    /// The program has ended by itself.
    Ended,
}

impl Event {
    /// The changes of names that it is.
    pub fn changes(&self) -> &[Change] {
        match self {
            Event::Names { changes, .. } => changes,
            _ => &[],
        }
    }
}

/// A folder's content by names, each with its node.
type Names = BTreeMap<String, Node>;

/// The numbers by which the system knows a file or folder while there is one.
type Inode = (u64, u64);

fn inode(found: &fs::Metadata) -> Inode {
    (found.dev(), found.ino())
}

/// What was recorded of a folder, by one program or several after each other.
pub struct Record {
    root: PathBuf,
    /// What each node is.
    pub nodes: Vec<Kind>,
    /// What was there before the first event, on the disk.
    pub base: (HashMap<Node, Names>, HashMap<Node, Content>),
    pub events: Vec<Event>,
    names: HashMap<Node, Names>,
    data: HashMap<Node, Content>,
    /// The nodes that are there now.
    inodes: HashMap<Inode, Node>,
}

impl Record {
    /// Of a folder that lies on the disk as it is.
    pub fn new(root: &Path) -> Self {
        let inodes = HashMap::from([(inode(&fs::metadata(root).unwrap()), ROOT)]);
        let (names, data) = (HashMap::new(), HashMap::new());
        let base = (HashMap::new(), HashMap::new());
        let nodes = vec![Kind::Folder];
        let events = Vec::new();
        let mut record = Record { root: root.into(), nodes, base, events, names, data, inodes };
        record.look();
        record.events.clear();
        record.base = (record.names.clone(), record.data.clone());
        record
    }

    /// Runs a program to its end, or until `enough` says so of an event, and then kills it.
    pub fn run(&mut self, command: &mut Command, enough: impl Fn(&Event) -> bool) -> ExitStatus {
        let mut killed = false;
        let status = trace(command, |call| {
            let before = self.events.len();
            self.see(call);
            killed |= self.events[before..].iter().any(&enough);
            killed
        });
        let before = self.events.len();
        self.look();
        let missed = &self.events[before..];
        assert!(missed.is_empty(), "changed by a call that is not in `CHANGES`: {missed:?}");
        if !killed {
            self.events.push(Event::Ended);
        }
        status
    }

    /// All that files have held.
    pub fn contents(&self) -> impl Iterator<Item = &Content> {
        self.events.iter().filter_map(|event| match event {
            Event::Data { content, .. } => Some(content),
            _ => None,
        })
    }

    fn see(&mut self, call: &Call) {
        let node = |descriptor: u64| {
            let path = format!("/proc/{}/fd/{}", call.process, descriptor as c_int);
            fs::metadata(path).ok().and_then(|found| self.inodes.get(&inode(&found)).copied())
        };
        match call.number {
            libc::SYS_fsync | libc::SYS_fdatasync => {
                if let Some(node) = node(call.arguments[0]) {
                    self.events.push(Event::Synced(node));
                }
            }
            libc::SYS_write | libc::SYS_writev => match node(call.arguments[0]) {
                Some(_) => self.look(),
                None if [1, 2].contains(&call.arguments[0]) => self.events.push(Event::Told),
                None => {}
            },
            number if CHANGES.contains(&number) => self.look(),
            _ => {}
        }
    }

    /// Finds what has changed.
    fn look(&mut self) {
        let (events, mut inodes) = (self.events.len(), HashMap::new());
        self.look_into(&self.root.clone(), ROOT, &mut inodes);
        inodes.insert(inode(&fs::metadata(&self.root).unwrap()), ROOT);
        // A number is given anew when what had it is gone.
        self.inodes = inodes;
        let folders = |event: &&Event| matches!(event, Event::Names { .. });
        let folders = self.events[events..].iter().filter(folders).count();
        assert!(folders < 2 || events == 0, "one call that changes two folders is not modelled");
    }

    fn look_into(&mut self, path: &Path, folder: Node, inodes: &mut HashMap<Inode, Node>) {
        let mut names = Names::new();
        for entry in fs::read_dir(path).unwrap() {
            let entry = entry.unwrap();
            let found = entry.path().symlink_metadata().unwrap();
            let node = self.inodes.get(&inode(&found)).copied().unwrap_or_else(|| {
                self.nodes.push(match found.file_type() {
                    kind if kind.is_dir() => Kind::Folder,
                    kind if kind.is_file() => Kind::File,
                    kind if kind.is_symlink() => Kind::Link(fs::read_link(entry.path()).unwrap()),
                    kind => panic!("{kind:?} is not modelled"),
                });
                self.nodes.len() - 1
            });
            let again = inodes.insert(inode(&found), node);
            assert!(again.is_none(), "hard links are not modelled");
            names.insert(entry.file_name().into_string().unwrap(), node);
        }
        let before = self.names.insert(folder, names.clone()).unwrap_or_default();
        let all: BTreeSet<&String> = before.keys().chain(names.keys()).collect();
        let change = |name: &String| {
            let (before, after) = (before.get(name).copied(), names.get(name).copied());
            (before != after).then(|| Change { name: name.clone(), before, after })
        };
        let changes: Vec<Change> = all.into_iter().filter_map(change).collect();
        if !changes.is_empty() {
            self.events.push(Event::Names { folder, changes });
        }
        for (name, node) in names {
            match self.nodes[node] {
                Kind::Folder => self.look_into(&path.join(name), node, inodes),
                Kind::File => {
                    let content = Content::new(fs::read(path.join(name)).unwrap());
                    let before = self.data.get(&node).map_or(xxh3_64(&[]), |known| known.hash);
                    if content.hash != before {
                        self.data.insert(node, content.clone());
                        self.events.push(Event::Data { file: node, content });
                    }
                }
                Kind::Link(_) => {}
            }
        }
    }
}

/// Calls after which the folder is looked at, beside writes into it.
const CHANGES: &[c_long] = &[
    libc::SYS_openat,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_truncate,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_copy_file_range,
    libc::SYS_sendfile,
    libc::SYS_splice,
    libc::SYS_mkdirat,
    libc::SYS_unlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_linkat,
    libc::SYS_symlinkat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_open,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_creat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mkdir,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rmdir,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rename,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_link,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_symlink,
];

/// A system call that has succeeded.
struct Call {
    process: pid_t,
    number: c_long,
    arguments: [u64; 6],
}

/// Whether this process may trace another: some containers forbid it.
pub fn is_allowed() -> bool {
    let traced = || ptrace(libc::PTRACE_TRACEME, 0, 0, 0).map(|_| ());
    let mut command = Command::new("true");
    // SAFETY: between fork and exec nothing but one system call is made.
    unsafe { command.pre_exec(traced) };
    let Ok(mut child) = command.spawn() else { return false };
    let _ = child.kill().and_then(|()| child.wait()); // it has stopped at its beginning
    true
}

/// Runs a program and shows all its calls to `seen`, which may end it by answering `true`.
fn trace(command: &mut Command, mut seen: impl FnMut(&Call) -> bool) -> ExitStatus {
    let traced = || ptrace(libc::PTRACE_TRACEME, 0, 0, 0).map(|_| ());
    // SAFETY: between fork and exec nothing but one system call is made.
    unsafe { command.pre_exec(traced) };
    #[allow(clippy::zombie_processes)] // it is waited for below, with its threads
    let child = command.spawn().expect("the program, with this process allowed to trace it");
    let process = child.id() as pid_t;
    let mut begun: HashMap<pid_t, (c_long, [u64; 6])> = HashMap::new();
    loop {
        // Only what this thread has begun: other tests wait for programs of their own.
        let (thread, status) = wait();
        let ended = libc::WIFEXITED(status) || libc::WIFSIGNALED(status);
        if ended && thread == process {
            return ExitStatus::from_raw(status);
        }
        if !libc::WIFSTOPPED(status) {
            continue;
        }
        let mut signal = 0;
        match libc::WSTOPSIG(status) {
            stop if stop == libc::SIGTRAP | 0x80 => {
                let mut words = [0_u64; 11]; // ptrace_syscall_info: the kind first, the rest from 24 on
                let place = words.as_mut_ptr() as usize;
                let bytes = size_of_val(&words);
                // Fails where the thread was killed meanwhile.
                let known = ptrace(libc::PTRACE_GET_SYSCALL_INFO, thread, bytes, place);
                match (known, words[0].to_ne_bytes()[0]) {
                    (Ok(_), libc::PTRACE_SYSCALL_INFO_ENTRY) => {
                        let arguments = words[4..10].try_into().unwrap();
                        begun.insert(thread, (words[3] as c_long, arguments));
                    }
                    (Ok(_), libc::PTRACE_SYSCALL_INFO_EXIT) => {
                        let call = begun.remove(&thread).filter(|_| words[3] as i64 >= 0);
                        let end = call.is_some_and(|(number, arguments)| {
                            seen(&Call { process, number, arguments })
                        });
                        if end {
                            // SAFETY: a plain system call, on a child that was not waited for.
                            unsafe { libc::kill(process, libc::SIGKILL) };
                        }
                    }
                    _ => {}
                }
            }
            libc::SIGTRAP if status >> 16 == 0 => {
                // Once, after exec. All its threads are traced, and killed with this one.
                let options = libc::PTRACE_O_TRACESYSGOOD
                    | libc::PTRACE_O_TRACECLONE
                    | libc::PTRACE_O_EXITKILL;
                ptrace(libc::PTRACE_SETOPTIONS, thread, 0, options as usize).unwrap();
            }
            // A new thread, told by both sides.
            libc::SIGTRAP | libc::SIGSTOP => {}
            other => signal = other as usize,
        }
        let _ = ptrace(libc::PTRACE_SYSCALL, thread, 0, signal); // it may be dead
    }
}

fn ptrace(request: c_uint, thread: pid_t, address: usize, data: usize) -> io::Result<c_long> {
    // SAFETY: of the requests made here only GET_SYSCALL_INFO writes into this process: at most
    // `address` bytes, which its caller has, at `data`.
    match unsafe { libc::ptrace(request, thread, address, data) } {
        -1 => Err(io::Error::last_os_error()),
        done => Ok(done),
    }
}

/// The next of this thread's children, or of their threads, that has stopped or ended.
fn wait() -> (pid_t, c_int) {
    let mut status = 0;
    loop {
        // SAFETY: `status` is there to be written to.
        let thread = unsafe { libc::waitpid(-1, &mut status, libc::__WALL | libc::__WNOTHREAD) };
        if thread > 0 {
            return (thread, status);
        }
        let error = io::Error::last_os_error();
        assert_eq!(error.kind(), io::ErrorKind::Interrupted, "{error}");
    }
}
