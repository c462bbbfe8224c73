//! `block_in_place`. Go has no such call, because its scheduler sees a goroutine enter a system call
//! (`entersyscallblock`); here the user says so.

use super::proc::without_p;

/// Runs a closure that may block, on the calling thread, while other tasks go on elsewhere.
///
/// On a worker it first hands the worker's place (Go's P) and everything queued there to another thread, as Go does
/// around a system call. The task that calls it is not interrupted and keeps its thread; its other branches (a `join!`
/// or `select!` around the call) wait with it. On any other thread it only calls `f`.
///
/// Where no other thread can be had ([`Builder::max_threads`](crate::Builder::max_threads)), `f` runs all the same, and
/// tasks wait until it is done: if `f` waits for one of them, for ever.
///
/// # Panics
/// If `f` panics, with its panic.
///
/// # Examples
/// ```
/// gopark::run(async {
///     let text = gopark::block_in_place(|| std::fs::read_to_string("Cargo.toml"));
///     assert!(text.unwrap().contains("gopark"));
/// });
/// ```
pub fn block_in_place<F: FnOnce() -> R, R>(f: F) -> R {
    without_p(f)
}
