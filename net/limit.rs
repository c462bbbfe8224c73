//! The limit of open descriptors: Go's os/rlimit.go.

use std::io;

/// Lifts the soft limit of open descriptors to the hard one, as Go does at start, and returns it. (Linux keeps the soft
/// limit low for programs that use select(2), which cannot name a descriptor above 1023.)
///
/// # Errors
/// What getrlimit(2) or setrlimit(2) says.
///
/// # Examples
/// ```
/// assert!(gopark::net::raise_nofile_limit()? > 0);
/// # std::io::Result::Ok(())
/// ```
pub fn raise_nofile_limit() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls use `limit` for their length only.
    let result = unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 && limit.rlim_cur < limit.rlim_max {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit)
        } else {
            // Nothing to lift, or getrlimit failed and left the maximum 0.
            if limit.rlim_max == 0 { -1 } else { 0 }
        }
    };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(limit.rlim_cur) }
}
