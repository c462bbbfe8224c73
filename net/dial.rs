//! Making connections: Go's net/dial.go, tcpsock_posix.go and fd_unix.go.

use super::fd::Fd;
use super::listen::{Control, KEEPALIVE, socket};
use super::prelude::*;
use super::resolve::{ToSocketAddrs, named, no_address, resolve};
use crate::runtime::time::{timeout, timeout_at};
use std::future::poll_fn;
use std::net::{SocketAddr, TcpStream};
use std::pin::pin;
use std::sync::Arc;

/// Settings of a connection that is to be made: Go's `net.Dialer`.
///
/// # Examples
/// ```
/// use gopark::net::{Dialer, TcpListener};
/// use std::time::Duration;
/// gopark::run(async {
///     let listener = TcpListener::bind("127.0.0.1:0").await?;
///     let dialer = Dialer::new().timeout(Duration::from_secs(5)).local_addr("127.0.0.2:0".parse().unwrap());
///     let stream = dialer.dial(listener.local_addr()?).await?;
///     assert_eq!(stream.local_addr()?.ip().to_string(), "127.0.0.2");
///     std::io::Result::Ok(())
/// })?;
/// # std::io::Result::Ok(())
/// ```
#[derive(Debug, Clone)]
#[must_use = "a dialer does nothing until `dial`"]
pub struct Dialer {
    timeout: Option<Duration>,
    deadline: Option<Instant>,
    local_addr: Option<SocketAddr>,
    keepalive: Option<Duration>,
    fallback_delay: Duration,
    control: Control,
}

impl Default for Dialer {
    fn default() -> Self {
        Dialer {
            timeout: None,
            deadline: None,
            local_addr: None,
            keepalive: Some(KEEPALIVE),
            fallback_delay: Duration::from_millis(300),
            control: Control::default(),
        }
    }
}

impl Dialer {
    /// The settings that [`TcpStream::connect`](super::TcpStream::connect) uses.
    pub fn new() -> Self {
        Self::default()
    }

    setters! {
        /// How long a dial may take, the resolver included: as long as the system lets it unless set. Of several
        /// addresses, each gets an equal share of the time that is left, and at least 2 s of it.
        fn timeout(timeout: Duration) { timeout = Some(timeout) }

        /// When a dial must be done. If there is a [`timeout`](Self::timeout) too, the earlier counts.
        fn deadline(deadline: Instant) { deadline = Some(deadline) }

        /// The address to connect from; port 0 lets the system choose. Only addresses of its family are tried.
        fn local_addr(addr: SocketAddr) { local_addr = Some(addr) }

        /// After how long a silence the peer is probed: 15 s unless set; `None` for never. The kernel counts in
        /// seconds, at least one and at most 32,767: part of a second is a whole one.
        fn keepalive(after: Option<Duration>) { keepalive = after }

        /// How long the addresses of the first one's family (IPv4 or IPv6) are tried alone, before those of the other
        /// are tried beside them: 300 ms unless set; [`Duration::MAX`] for until those have all failed. (RFC 8305,
        /// "Happy Eyeballs".)
        fn fallback_delay(delay: Duration) { fallback_delay = delay }

        /// Called with each socket and the address it is to connect to, when the other settings have been made and
        /// before it is bound or connected. An error gives the address up.
        fn control(hook: impl Fn(BorrowedFd<'_>, SocketAddr) -> io::Result<()> + Send + Sync + 'static) {
            control = Control(Some(Arc::new(hook)))
        }
    }

    pub(crate) async fn connect<A: ToSocketAddrs>(&self, addr: A) -> io::Result<Fd<TcpStream>> {
        let by_timeout = self.timeout.and_then(|t| Instant::now().checked_add(t));
        let deadline = by_timeout.into_iter().chain(self.deadline).min();
        let addrs = match deadline {
            None => resolve(addr).await?,
            Some(at) => timeout_at(at, resolve(addr)).or_gone().await???,
        };
        // Boxed: a task that dials once need not be so large for life.
        Box::pin(self.parallel(addrs.collect(), deadline)).await
    }

    /// Go's `dialParallel`: the two families race, each through its own list. Dropping the loser closes its socket.
    async fn parallel(&self, addrs: Vec<SocketAddr>, deadline: Option<Instant>) -> io::Result<Fd<TcpStream>> {
        let v4 = self.local_addr.or(addrs.first().copied()).is_some_and(|a| a.is_ipv4());
        let (primaries, fallbacks): (Vec<_>, _) = addrs.into_iter().partition(|a| a.is_ipv4() == v4);
        let mut primary = pin!(self.serial(primaries, deadline));
        if fallbacks.is_empty() || self.local_addr.is_some() {
            return primary.await;
        }
        let mut fallback = pin!(self.serial(fallbacks, deadline));
        let (is_primary, result) = match timeout(self.fallback_delay, primary.as_mut()).or_gone().await? {
            Ok(result) => (true, result),
            Err(_) => {
                poll_fn(|cx| match primary.as_mut().poll(cx) {
                    Poll::Ready(result) => Poll::Ready((true, result)),
                    Poll::Pending => fallback.as_mut().poll(cx).map(|result| (false, result)),
                })
                .await
            }
        };
        match result {
            Ok(fd) => Ok(fd),
            Err(error) if is_primary => fallback.await.map_err(|_| error),
            Err(_) => primary.await,
        }
    }

    /// Go's `dialSerial`: one address after the other. The error is the first one's.
    async fn serial(&self, addrs: Vec<SocketAddr>, deadline: Option<Instant>) -> io::Result<Fd<TcpStream>> {
        let mut first = None;
        for (left, addr) in (1..=addrs.len() as u32).rev().zip(addrs) {
            match self.single(addr, deadline.map(|d| share(Instant::now(), d, left))).await {
                Ok(fd) => return Ok(fd),
                Err(error) => drop(first.get_or_insert_with(|| named(format_args!("cannot connect to {addr}"), error))),
            }
        }
        Err(first.unwrap_or_else(|| {
            let from = self.local_addr.map_or(String::new(), |local| format!(" from {local}"));
            no_address(&format!("connect to{from}"))
        }))
    }

    /// Go's `doDialTCP`. Where the system chooses the port, it may choose the very one that is dialled, and a socket
    /// that connects to itself succeeds (TCP's simultaneous open, golang/go#2690); or one that is taken. So it is asked
    /// again, twice at most.
    async fn single(&self, addr: SocketAddr, deadline: Option<Instant>) -> io::Result<Fd<TcpStream>> {
        let mut more = if self.local_addr.is_none_or(|a| a.port() == 0) { 2 } else { 0 };
        loop {
            let result = self.attempt(addr, deadline).await;
            let again = match &result {
                // The port first: it costs one system call, not two, to see that all is well.
                Ok(fd) => fd.io().local_addr().is_ok_and(|local| {
                    local.port() == addr.port() && fd.io().peer_addr().is_ok_and(|peer| peer == local)
                }),
                Err(error) => error.raw_os_error() == Some(libc::EADDRNOTAVAIL),
            };
            if !again || more == 0 {
                return result;
            }
            more -= 1;
        }
    }

    async fn attempt(&self, addr: SocketAddr, deadline: Option<Instant>) -> io::Result<Fd<TcpStream>> {
        if deadline.is_some_and(|at| at <= Instant::now()) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let socket = socket(addr, self.keepalive)?;
        self.control.call(&socket, addr)?;
        if let Some(local) = self.local_addr {
            socket.bind(&local.into())?;
        }
        // An interrupted connect goes on by itself, as one in progress does: its end makes an edge.
        let start = match socket.connect(&addr.into()) {
            Ok(()) => Start::Try,
            Err(e) if matches!(e.raw_os_error(), Some(libc::EINPROGRESS | libc::EINTR)) => Start::Nil,
            Err(e) => return Err(e),
        };
        // Registered only now: a socket that is not connecting yet counts as hung up.
        let fd = Fd::new(TcpStream::from(socket), start, None)?;
        if start == Start::Nil {
            fd.set_deadline(Side::Write, deadline)?;
            // Readiness alone proves nothing (trap P17): without an error there must be a peer.
            let look = |_: BorrowedFd<'_>| match (fd.io().take_error()?, fd.io().peer_addr()) {
                (Some(error), _) => Err(error),
                (None, Err(e)) if e.kind() == io::ErrorKind::NotConnected => Err(io::ErrorKind::WouldBlock.into()),
                (None, peer) => peer.map(drop),
            };
            // An edge that comes during the look counts, as in any operation.
            fd.io_op(Side::Write, 0, look).await?;
            fd.set_deadline(Side::Write, None)?;
        }
        Ok(fd)
    }
}

/// Go's `partialDeadline`: an equal share of the time for each of `n` addresses; if that is less than 2 s, it is taken
/// from those at the end.
fn share(now: Instant, deadline: Instant, n: u32) -> Instant {
    let left = deadline.saturating_duration_since(now);
    now + (left / n).max(Duration::from_secs(2)).min(left)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Go's TestDialerPartialDeadline.
    #[test]
    fn shares_of_a_deadline() {
        let (now, ms) = (Instant::now(), Duration::from_millis);
        for (left, addrs, expected) in [
            (12_000, 1, 12_000),
            (12_000, 2, 6_000),
            (12_000, 3, 4_000),
            (12_000, 999, 2_000),
            (1_900, 999, 1_900),
            (1, 1, 1),
            (0, 1, 0),
        ] {
            assert_eq!(share(now, now + ms(left), addrs), now + ms(expected));
        }
        assert_eq!(share(now + ms(1), now, 1), now + ms(1));
    }
}
