//! What keeps a process alive when a file that it has mapped is cut short.
//!
//! Reading mapped memory beyond the end of its file raises SIGBUS, which ends the process. Here the
//! signal is caught while a thread copies out of a mapping under guard: the pages that the file no
//! longer has become zeros, the mapping is marked as lost, and the copy runs to its end. Any other
//! SIGBUS goes to whoever handled it before.
//!
//! The handler runs on the thread's alternate stack, if it has one. Those of Rust's threads are as
//! large as Linux's AT_MINSIGSTKSZ where that is more than 8 KiB, as with AMX: the largest frame that
//! a signal can have, and a few hundred bytes. So the handler must do with these, which a test in
//! `bytes` holds, and calls nothing of any depth.
//!
//! It needs nothing but POSIX and anonymous memory; it has been tried on Linux.

use std::io;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering, compiler_fence};

/// The memory of a mapped file, to be copied from under guard.
pub struct Guarded {
    start: usize,
    /// Behind the last byte.
    end: usize,
    page: usize,
    /// Whether some of its pages are not the file's any more.
    lost: AtomicBool,
}

thread_local! {
    // Constant and without a destructor: reading it runs no code, as a signal handler demands.
    /// What this thread is copying from; null most of the time.
    static COPYING: AtomicPtr<Guarded> = const { AtomicPtr::new(ptr::null_mut()) };
}

/// The action for SIGBUS that was there before ours.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();
static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();

impl Guarded {
    /// Guards `len` bytes from `start` on, and installs the handler if this is the first time.
    ///
    /// # Errors
    /// If the system refuses the handler.
    ///
    /// # Safety
    /// `start` must be where a mapping of a file begins that is as long and outlives the result. If
    /// pages of it are lost, they turn into zeros: no reference into it may exist.
    pub unsafe fn new(start: *const u8, len: usize) -> io::Result<Self> {
        install()?;
        // SAFETY: asks for a number.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
        let start = start as usize;
        Ok(Guarded { start, end: start + len, page, lost: AtomicBool::new(false) })
    }

    /// Runs `copy`, which may read the guarded memory through raw pointers. What it read is the
    /// file's if the answer is true; once false, it is false for ever.
    pub fn run(&self, copy: impl FnOnce()) -> bool {
        struct Reset;
        impl Drop for Reset {
            fn drop(&mut self) {
                COPYING.with(|copying| copying.store(ptr::null_mut(), Ordering::Relaxed));
            }
        }
        let reset = Reset; // also if `copy` panics: the handler must not find a dead `self`
        COPYING.with(|copying| copying.store(ptr::from_ref(self).cast_mut(), Ordering::Relaxed));
        // The compiler does not know that loads can call the handler of this thread.
        compiler_fence(Ordering::SeqCst);
        copy();
        compiler_fence(Ordering::SeqCst);
        drop(reset);
        // The mark is set before the pages change. So another thread whose pages were replaced
        // under its copy, without a signal of its own, sees it too.
        !self.lost.load(Ordering::Acquire)
    }
}

fn install() -> io::Result<()> {
    let installed = INSTALLED.get_or_init(|| {
        let failed = || Err(io::Error::last_os_error().raw_os_error().unwrap_or_default());
        // SAFETY: all zeros is a valid `sigaction`, with the default action.
        let mut before: libc::sigaction = unsafe { std::mem::zeroed() };
        // SAFETY: asks only; `before` is a `sigaction` to write to.
        if unsafe { libc::sigaction(libc::SIGBUS, ptr::null(), &raw mut before) } != 0 {
            return failed();
        }
        // Kept before the handler is there, since it may run at once.
        BEFORE.get_or_init(|| before);
        // SAFETY: as above.
        let mut ours: libc::sigaction = unsafe { std::mem::zeroed() };
        let handler: extern "C" fn(_, _, _) = on_sigbus;
        ours.sa_sigaction = handler as libc::sighandler_t;
        ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: the handler has the three arguments that SA_SIGINFO announces, and calls only
        // what a handler may call.
        if unsafe { libc::sigaction(libc::SIGBUS, &raw const ours, ptr::null_mut()) } != 0 {
            return failed();
        }
        Ok(())
    });
    installed.map_err(io::Error::from_raw_os_error)
}

extern "C" fn on_sigbus(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    // SAFETY: with SA_SIGINFO, the system passes a valid `siginfo_t`.
    let info_of = unsafe { &*info };
    // A signal sent by a process has no address.
    if info_of.si_code == libc::BUS_ADRERR {
        // SAFETY: a SIGBUS that the kernel raises for an access has an address.
        let address = unsafe { info_of.si_addr() } as usize;
        let guarded = COPYING.with(|copying| copying.load(Ordering::Relaxed));
        // SAFETY: null, or what `run`, which this thread is in, borrows.
        if let Some(guarded) = unsafe { guarded.as_ref() }
            && (guarded.start..guarded.end).contains(&address)
            && forget(guarded, address)
        {
            return;
        }
    }
    pass_on(signal, info, context);
}

/// Replaces the rest of the mapping by zeros, from the page of `address` on. In one piece, so that
/// a long copy costs one signal.
fn forget(guarded: &Guarded, address: usize) -> bool {
    guarded.lost.store(true, Ordering::SeqCst);
    let from = address - address % guarded.page;
    // SAFETY: `from..end` lies in a mapping that `Guarded::new` was promised, and into which no
    // reference exists; it is replaced by memory that can be read. `mmap` is a bare system call.
    let zeros = unsafe {
        libc::mmap(
            from as *mut libc::c_void,
            guarded.end - from,
            libc::PROT_READ,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
            -1,
            0,
        )
    };
    zeros != libc::MAP_FAILED
}

/// Does what would have been done without us.
fn pass_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let Some(before) = BEFORE.get() else { return };
    match before.sa_sigaction {
        libc::SIG_IGN | libc::SIG_DFL => {
            // SAFETY: the action was valid before, and `info` is what the system passed. An access
            // is made again when the handler returns, and then ends the process, which the system
            // does not let a process ignore; what was sent must be sent again.
            unsafe {
                let accessed = (*info).si_code > 0;
                if accessed || before.sa_sigaction == libc::SIG_DFL {
                    let mut default: libc::sigaction = std::mem::zeroed();
                    default.sa_sigaction = libc::SIG_DFL;
                    libc::sigaction(signal, &raw const default, ptr::null_mut());
                    if !accessed {
                        libc::raise(signal);
                    }
                }
            }
        }
        handler if before.sa_flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: with SA_SIGINFO, the field holds a function of this type.
            let handler = unsafe {
                std::mem::transmute::<
                    libc::sighandler_t,
                    extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void),
                >(handler)
            };
            handler(signal, info, context);
        }
        handler => {
            // SAFETY: without SA_SIGINFO, neither default nor ignored, it holds such a function.
            let handler = unsafe {
                std::mem::transmute::<libc::sighandler_t, extern "C" fn(libc::c_int)>(handler)
            };
            handler(signal);
        }
    }
}
