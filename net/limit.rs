//! The limit of open descriptors: Go's os/rlimit.go.

use super::sys::check;
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
    // SAFETY: there is room for both limits.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) })?;
    if limit.rlim_cur < limit.rlim_max {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: only reads them.
        check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) })?;
    }
    Ok(limit.rlim_cur)
}
