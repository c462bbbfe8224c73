//! The machine: G, M, P, the netpoller, timers and sysmon. `lib.rs` has the map.

#[cfg(not(gopark_loom))]
pub(crate) mod blocking;
pub(crate) mod budget;
mod defer;
pub(crate) mod hold;
pub(crate) mod idle;
pub(crate) mod netpoll;
pub(crate) mod park;
#[cfg(not(gopark_loom))]
pub(crate) mod poll_gate;
#[cfg(not(gopark_loom))]
pub(crate) mod proc;
pub(crate) mod queue;
pub(crate) mod rare;
#[cfg(not(gopark_loom))]
#[allow(clippy::module_inception)]
pub(crate) mod runtime;
pub(crate) mod stuck;
pub(crate) mod sync;
pub(crate) mod sys;
mod syscall;
#[cfg(not(gopark_loom))]
mod sysmon;
pub(crate) mod task;
#[cfg(not(gopark_loom))]
pub(crate) mod time;
pub(crate) mod timer;
#[cfg(all(feature = "backtrace", not(gopark_loom)))]
mod trace;
pub(crate) mod wake_list;
#[cfg(not(gopark_loom))]
mod watchdog;
