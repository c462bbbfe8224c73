//! A system call where it stands, as Go makes its own: `Syscall6` in internal/runtime/syscall.
//!
//! The C library's functions are calls, and the processor mispredicts each return after the kernel's own; and those that may
//! wait are cancellation points, with two atomic operations each. Without that at recv(2), send(2) and epoll_wait(2), a round trip
//! takes 2 to 3 % less CPU time. The price: a sanitizer does not see those three, and a library that is preloaded to change
//! them is passed by.

use std::io;

/// # Safety
/// As of the system call. What it does with memory through an argument, that argument's pointer must allow.
#[cfg(all(target_arch = "x86_64", not(miri), not(gopark_libc)))]
#[inline(always)]
pub(crate) unsafe fn syscall6(number: libc::c_long, args: [usize; 6]) -> io::Result<usize> {
    let result: isize;
    // SAFETY: these are the kernel's registers for the call. It changes the three that are named as outputs, and leaves flags and
    // stack as they were; memory is the caller's promise.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") number as isize => result,
            in("rdi") args[0],
            in("rsi") args[1],
            in("rdx") args[2],
            in("r10") args[3],
            in("r8") args[4],
            in("r9") args[5],
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack, preserves_flags),
        );
    }
    check(result)
}

/// # Safety
/// As above.
#[cfg(all(target_arch = "aarch64", not(miri), not(gopark_libc)))]
#[inline(always)]
pub(crate) unsafe fn syscall6(number: libc::c_long, args: [usize; 6]) -> io::Result<usize> {
    let result: isize;
    // SAFETY: as above; but of vector registers the kernel keeps the lower 128 bits only, so all is taken for changed that a call of a
    // C function may change.
    unsafe {
        std::arch::asm!(
            "svc 0",
            in("x8") number,
            inlateout("x0") args[0] => result,
            in("x1") args[1],
            in("x2") args[2],
            in("x3") args[3],
            in("x4") args[4],
            in("x5") args[5],
            clobber_abi("C"),
            options(nostack),
        );
    }
    check(result)
}

/// Elsewhere the C library makes it, and with `--cfg gopark_libc`, for sanitizers and libraries that are preloaded: these know it
/// by the function's name.
///
/// # Safety
/// As above.
#[cfg(any(gopark_libc, miri, not(any(target_arch = "x86_64", target_arch = "aarch64"))))]
pub(crate) unsafe fn syscall6(number: libc::c_long, args: [usize; 6]) -> io::Result<usize> {
    let [a, b, c, d, e, f] = args;
    let at = std::ptr::with_exposed_provenance_mut;
    // SAFETY: the caller's promise.
    let result = unsafe {
        // Those without an address, or without a signal mask.
        match (number, e, f) {
            (libc::SYS_recvfrom, 0, 0) => libc::recv(a as i32, at(b), c, d as i32),
            (libc::SYS_sendto, 0, 0) => libc::send(a as i32, at(b), c, d as i32),
            #[cfg(target_arch = "x86_64")]
            (libc::SYS_epoll_wait, ..) => libc::epoll_wait(a as i32, at(b).cast(), c as i32, d as i32) as isize,
            (libc::SYS_epoll_pwait, 0, _) => libc::epoll_wait(a as i32, at(b).cast(), c as i32, d as i32) as isize,
            _ => libc::syscall(number, a, b, c, d, e, f) as isize,
        }
    };
    if result == -1 { Err(io::Error::last_os_error()) } else { check(result) }
}

/// A negative result is an error's number.
#[inline(always)]
fn check(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result as i32))
}

#[cfg(all(test, not(gopark_loom), not(miri)))]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    /// Every argument arrives: mmap(2) has six, and pread(2) reads where it is told.
    #[test]
    fn all_six_arguments() {
        const PAGE: usize = 4096;
        let file = std::env::current_exe().and_then(std::fs::File::open).unwrap();
        let fd = file.as_raw_fd() as usize;
        let mut expected = [0; 64];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut expected, PAGE as u64).unwrap();
        let (read, private) = (libc::PROT_READ as usize, libc::MAP_PRIVATE as usize);
        // SAFETY: a new mapping, of a file that nobody changes; it is read before it is unmapped.
        unsafe {
            let at = syscall6(libc::SYS_mmap, [0, PAGE, read, private, fd, PAGE]).unwrap();
            let page = std::slice::from_raw_parts(std::ptr::with_exposed_provenance::<u8>(at), PAGE);
            assert_eq!(page[..64], expected);
            assert_eq!(syscall6(libc::SYS_munmap, [at, PAGE, 0, 0, 0, 0]).unwrap(), 0);
        }
    }

    #[test]
    fn errors_are_what_the_kernel_says() {
        // SAFETY: no memory, and no descriptor.
        let error = unsafe { syscall6(libc::SYS_close, [-1_i32 as usize, 0, 0, 0, 0, 0]) }.unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBADF));
        // SAFETY: there is no call of that number.
        let error = unsafe { syscall6(libc::c_long::from(i16::MAX), [0; 6]) }.unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOSYS));
    }
}
