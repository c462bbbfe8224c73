//! Runs a program on a kernel that has no epoll_pwait2(2), nor epoll_wait(2) on x86-64: `enosys COMMAND [ARGS...]`.
//!
//! A seccomp filter makes them fail with ENOSYS, as a kernel before 5.11 does the one, and as a filter may do the other that was
//! written for programs of Go's or musl's, in the program and in everything that it starts. One file for rustc alone, so it is nobody's dependency.

use std::ffi::{c_int, c_long, c_ulong};
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

unsafe extern "C" {
    fn prctl(option: c_int, ...) -> c_int;
    fn syscall(number: c_long, ...) -> c_long;
}

/// The same on every architecture that Rust has, as of all system calls since 424.
const SYS_EPOLL_PWAIT2: u32 = 441;
/// Elsewhere there is only epoll_pwait(2), and so nothing more to refuse.
const SYS_EPOLL_WAIT: u32 = if cfg!(target_arch = "x86_64") { 232 } else { SYS_EPOLL_PWAIT2 };
const ENOSYS: u32 = 38;

const PR_SET_SECCOMP: c_int = 22;
const PR_SET_NO_NEW_PRIVS: c_int = 38;
const SECCOMP_MODE_FILTER: c_ulong = 2;
const SECCOMP_RET_ERRNO: u32 = 0x0005_0000;
const SECCOMP_RET_ALLOW: u32 = 0x7fff_0000;

const LOAD: u16 = 0x20;
const JUMP_IF_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;

/// `struct sock_filter`: one instruction.
#[repr(C)]
struct Instruction {
    code: u16,
    if_true: u8,
    if_false: u8,
    k: u32,
}

/// `struct sock_fprog`.
#[repr(C)]
struct Program {
    len: u16,
    instructions: *const Instruction,
}

/// It guards nothing, so it need not look at the architecture first, as a guard has to.
const FILTER: [Instruction; 5] = [
    // The number stands first in `struct seccomp_data`.
    Instruction { code: LOAD, if_true: 0, if_false: 0, k: 0 },
    Instruction { code: JUMP_IF_EQUAL, if_true: 1, if_false: 0, k: SYS_EPOLL_WAIT },
    Instruction { code: JUMP_IF_EQUAL, if_true: 0, if_false: 1, k: SYS_EPOLL_PWAIT2 },
    Instruction { code: RETURN, if_true: 0, if_false: 0, k: SECCOMP_RET_ERRNO | ENOSYS },
    Instruction { code: RETURN, if_true: 0, if_false: 0, k: SECCOMP_RET_ALLOW },
];

fn filter() -> io::Result<()> {
    let program = Program { len: FILTER.len() as u16, instructions: FILTER.as_ptr() };
    // SAFETY: both take numbers only, but for `program`, which outlives the call and says how long it is.
    let result = unsafe {
        match prctl(PR_SET_NO_NEW_PRIVS, 1 as c_ulong, 0 as c_ulong, 0 as c_ulong, 0 as c_ulong) {
            0 => prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &raw const program),
            failed => failed,
        }
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Not taken on trust.
fn is_missing(number: u32) -> bool {
    // SAFETY: there is no epoll instance of number -1, so the kernel looks at nothing else.
    let result = unsafe { syscall(number.into(), -1 as c_long, 0 as c_long, 1 as c_long, 0 as c_long) };
    result == -1 && io::Error::last_os_error().raw_os_error() == Some(ENOSYS as i32)
}

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let Some(program) = args.next() else {
        eprintln!("usage: enosys COMMAND [ARGS...]");
        return ExitCode::from(2);
    };
    if let Err(error) = filter() {
        eprintln!("enosys: cannot install a seccomp filter: {error}");
        return ExitCode::FAILURE;
    }
    if ![SYS_EPOLL_WAIT, SYS_EPOLL_PWAIT2].into_iter().all(is_missing) {
        eprintln!("enosys: the filter is there, and a call that it refuses still is too");
        return ExitCode::FAILURE;
    }
    let error = Command::new(&program).args(args).exec();
    eprintln!("enosys: cannot run {}: {error}", program.display());
    ExitCode::FAILURE
}
