//! Counts another process's system calls by perf_event_open(2) at the tracepoint raw_syscalls:sys_enter.

use crate::Failure;
use crate::args::Args;
use crate::child::Proc;
use crate::syscalls::{CLASSES, Counts};
use std::ffi::{CString, c_char, c_ulong};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// The number that this kernel gave to the tracepoint.
#[derive(Clone, Copy, PartialEq)]
pub(crate) struct Tracepoint(u64);

const TRACEFS: &str = "/sys/kernel/tracing";
const DEBUGFS: &str = "/sys/kernel/debug/tracing";

fn read_number(root: &str) -> io::Result<u64> {
    let text = fs::read_to_string(format!("{root}/events/raw_syscalls/sys_enter/id"))?;
    text.trim().parse().map_err(io::Error::other)
}

/// Finds the tracepoint, and sees whether this process may count at it. Where tracefs is not mounted, a child mounts it
/// for itself alone, so that nothing on the machine changes.
pub(crate) fn tracepoint() -> Result<Tracepoint, Failure> {
    let number = match read_number(TRACEFS).or_else(|_| read_number(DEBUGFS)) {
        Ok(number) => number,
        Err(_) => {
            let mut child = Proc::start_self(&["tracepoint"])?;
            let line = child.line(Duration::from_secs(5))?;
            child.finish(Duration::from_secs(5))?;
            line.parse().map_err(|_| Failure::run(line))?
        }
    };
    let tracepoint = Tracepoint(number);
    open(std::process::id() as i32, tracepoint).map_err(|error| Failure::run(format!("perf_event_open: {error}")))?;
    Ok(tracepoint)
}

/// `benches tracepoint`: prints the number, or why there is none.
pub(crate) fn tracepoint_child(args: Args) -> Result<(), Failure> {
    args.finish()?;
    match mount_tracefs().and_then(|()| read_number(TRACEFS)) {
        Ok(number) => println!("{number}"),
        Err(error) => println!("no tracefs: {error}"),
    }
    Ok(())
}

/// Mounts tracefs where only this process sees it.
fn mount_tracefs() -> io::Result<()> {
    let [none, root, tracefs, target] = [c"none", c"/", c"tracefs", c"/sys/kernel/tracing"];
    let (no_data, private) = (std::ptr::null(), libc::MS_REC | libc::MS_PRIVATE);
    // SAFETY: takes no pointers.
    let mut result = unsafe { libc::unshare(libc::CLONE_NEWNS) };
    if result == 0 {
        // SAFETY: the strings live for ever; no data is what these calls expect.
        result = unsafe { libc::mount(none.as_ptr(), root.as_ptr(), std::ptr::null(), private, no_data) };
    }
    if result == 0 {
        // SAFETY: as above.
        result = unsafe { libc::mount(none.as_ptr(), target.as_ptr(), tracefs.as_ptr(), 0, no_data) };
    }
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The first published form of `struct perf_event_attr`, which every kernel since takes.
#[repr(C)]
struct Attr {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    bp_type: u32,
    config1: u64,
}

const KIND_TRACEPOINT: u32 = 2;
/// Threads that a counted thread starts are counted as well.
const FLAG_INHERIT: u64 = 1 << 1;
const FLAG_CLOEXEC: c_ulong = 1 << 3;
/// `_IOW('$', 6, char *)`.
const SET_FILTER: c_ulong = 0x4008_2406;

/// A running counter of one thread and those that it will start.
fn open(tid: i32, tracepoint: Tracepoint) -> io::Result<File> {
    let attr = Attr {
        kind: KIND_TRACEPOINT,
        size: size_of::<Attr>() as u32,
        config: tracepoint.0,
        sample_period: 0,
        sample_type: 0,
        read_format: 0,
        flags: FLAG_INHERIT,
        wakeup_events: 0,
        bp_type: 0,
        config1: 0,
    };
    let (any_cpu, no_group) = (-1, -1);
    // SAFETY: `attr` is alive for the length of the call and says its own size.
    let fd = unsafe { libc::syscall(libc::SYS_perf_event_open, &attr, tid, any_cpu, no_group, FLAG_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call above made `fd`, and nobody else owns it.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(fd as i32) }))
}

/// Has a counter see only some calls.
fn filter(counter: &File, calls: &[i64]) -> io::Result<()> {
    let terms: Vec<String> = calls.iter().map(|call| format!("id=={call}")).collect();
    let text = CString::new(terms.join("||")).expect("no zero byte in it");
    let pointer: *const c_char = text.as_ptr();
    // SAFETY: `text` is alive for the length of the call and ends with a zero byte.
    match unsafe { libc::ioctl(counter.as_raw_fd(), SET_FILTER as _, pointer) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

pub(crate) struct Counters {
    /// Per class and thread; the last are those of all calls.
    counters: [Vec<File>; CLASSES.len() + 1],
}

impl Counters {
    /// Counts from now on, in all threads of a process.
    pub(crate) fn attach(pid: i32, tracepoint: Tracepoint) -> io::Result<Self> {
        let mut counters = [const { Vec::new() }; CLASSES.len() + 1];
        for tid in threads(pid)? {
            for (class, counters) in counters.iter_mut().enumerate() {
                let counter = open(tid, tracepoint)?;
                if let Some((_, calls)) = CLASSES.get(class) {
                    filter(&counter, calls)?;
                }
                counters.push(counter);
            }
        }
        Ok(Counters { counters })
    }

    pub(crate) fn read(&self) -> io::Result<Counts> {
        let mut counts = Counts::default();
        for (count, counters) in counts.iter_mut().zip(&self.counters) {
            for mut counter in counters {
                let mut value = [0; 8];
                counter.read_exact(&mut value)?;
                *count += u64::from_ne_bytes(value);
            }
        }
        Ok(counts)
    }
}

/// The threads that a process has now.
pub(crate) fn threads(pid: i32) -> io::Result<Vec<i32>> {
    let entries = fs::read_dir(format!("/proc/{pid}/task"))?;
    entries.map(|entry| entry?.file_name().to_string_lossy().parse().map_err(io::Error::other)).collect()
}
