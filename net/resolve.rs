//! Names to addresses. The resolver blocks, so names go to the blocking pool; written addresses do not.

use crate::runtime::poll_gate::{RuntimeGone, Shut};
use crate::runtime::runtime::spawn_blocking;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, ToSocketAddrs as StdToSocketAddrs};

/// What can be turned into socket addresses, if need be by asking the resolver: `SocketAddr` and its two kinds, an IP
/// address or a name with a port, `"host:port"` as `&str` or `String`, a slice of `SocketAddr`s.
///
/// Sealed: it is used, not implemented.
pub trait ToSocketAddrs: sealed::Resolve {}

impl<T: sealed::Resolve + ?Sized> ToSocketAddrs for T {}

/// The addresses of a host.
///
/// # Errors
/// What the resolver says; `InvalidInput` for text that is not `host:port`.
///
/// # Panics
/// If a name has to be looked up outside a runtime.
///
/// # Cancel safety
/// Dropping the future leaves the lookup to its end, unheard.
///
/// # Examples
/// ```
/// gopark::run(async {
///     let addrs: Vec<_> = gopark::net::lookup_host("localhost:80").await?.collect();
///     assert!(addrs.iter().all(|a| a.ip().is_loopback()));
///     std::io::Result::Ok(())
/// })?;
/// # std::io::Result::Ok(())
/// ```
pub async fn lookup_host<A: ToSocketAddrs>(addr: A) -> io::Result<impl Iterator<Item = SocketAddr>> {
    addr.resolve().await
}

/// Looks a name up on the blocking pool.
async fn ask<A>(name: &str, addr: A) -> io::Result<sealed::Addrs>
where
    A: StdToSocketAddrs<Iter = std::vec::IntoIter<SocketAddr>> + Send + 'static,
{
    match spawn_blocking(move || addr.to_socket_addrs()).await {
        Ok(Ok(addrs)) => Ok(None.into_iter().chain(addrs)),
        Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidInput => {
            Err(named(format_args!("{name:?} is no address, which has the form HOST:PORT"), error))
        }
        Ok(Err(error)) => Err(named(format_args!("cannot look up {name}"), error)),
        Err(_) => Err(Shut::Gone.into()),
    }
}

/// What can be done with the first of the addresses with which it can be done. The error is the last one's.
pub(crate) async fn first<R>(
    addr: impl ToSocketAddrs,
    what: &str,
    f: impl Fn(SocketAddr) -> io::Result<R>,
) -> io::Result<R> {
    let mut last = no_address(what);
    for addr in addr.resolve().await? {
        match f(addr) {
            Err(error) => last = named(format_args!("cannot {what} {addr}"), error),
            done => return done,
        }
    }
    Err(last)
}

pub(crate) fn no_address(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("there is no address to {what}"))
}

/// Says what failed, with the address. Kind and source are the error's own.
pub(crate) fn named(what: fmt::Arguments<'_>, error: io::Error) -> io::Error {
    // That is not of this address.
    if error.get_ref().is_some_and(|e| e.is::<RuntimeGone>()) {
        return error;
    }
    io::Error::new(error.kind(), Named { what: what.to_string(), error })
}

struct Named {
    what: String,
    error: io::Error,
}

/// As it is displayed: this is what a `main` that returns the error shows.
impl fmt::Debug for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.error)
    }
}

impl std::error::Error for Named {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error)
    }
}

mod sealed {
    use super::*;
    use std::iter::Chain;
    use std::{option, vec};

    /// One address, which needs no memory, and then more.
    pub(super) type Addrs = Chain<option::IntoIter<SocketAddr>, vec::IntoIter<SocketAddr>>;

    fn one(addr: impl Into<SocketAddr>) -> Addrs {
        Some(addr.into()).into_iter().chain(Vec::new())
    }

    pub trait Resolve {
        fn resolve(&self) -> impl Future<Output = io::Result<Addrs>> + Send;
    }

    macro_rules! plain {
        ($($t:ty),*) => {$(
            impl Resolve for $t {
                fn resolve(&self) -> impl Future<Output = io::Result<Addrs>> + Send {
                    std::future::ready(Ok(one(*self)))
                }
            }
        )*};
    }

    plain! { SocketAddr, SocketAddrV4, SocketAddrV6, (IpAddr, u16), (Ipv4Addr, u16), (Ipv6Addr, u16) }

    impl Resolve for (&str, u16) {
        async fn resolve(&self) -> io::Result<Addrs> {
            let (host, port) = *self;
            match host.parse::<IpAddr>() {
                Ok(ip) => Ok(one((ip, port))),
                Err(_) => ask(host, (host.to_owned(), port)).await,
            }
        }
    }

    impl Resolve for (String, u16) {
        async fn resolve(&self) -> io::Result<Addrs> {
            (self.0.as_str(), self.1).resolve().await
        }
    }

    impl Resolve for str {
        async fn resolve(&self) -> io::Result<Addrs> {
            match self.parse::<SocketAddr>() {
                Ok(addr) => Ok(one(addr)),
                Err(_) => ask(self, self.to_owned()).await,
            }
        }
    }

    impl Resolve for String {
        fn resolve(&self) -> impl Future<Output = io::Result<Addrs>> + Send {
            self.as_str().resolve()
        }
    }

    impl Resolve for [SocketAddr] {
        fn resolve(&self) -> impl Future<Output = io::Result<Addrs>> + Send {
            std::future::ready(Ok(None.into_iter().chain(Vec::from(self))))
        }
    }

    impl<T: Resolve + ?Sized + Sync> Resolve for &T {
        fn resolve(&self) -> impl Future<Output = io::Result<Addrs>> + Send {
            (**self).resolve()
        }
    }
}
