//! Names to addresses. The resolver blocks, so names go to the blocking pool; written addresses do not.

use crate::runtime::budget;
use crate::runtime::poll_gate::{RuntimeGone, Shut};
use crate::runtime::runtime::spawn_blocking;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, ToSocketAddrs as _};

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
    resolve(addr).await
}

/// Names are looked up on the blocking pool.
pub(crate) async fn resolve(addr: impl ToSocketAddrs) -> io::Result<sealed::Addrs> {
    // Who tries what fails at once, again and again, lets others run (trap S22).
    poll_fn(budget::poll_take).await;
    let name = match addr.written() {
        Ok(addrs) => return Ok(addrs),
        Err(name) => name,
    };
    let asked = name.clone();
    match spawn_blocking(move || asked.to_socket_addrs()).await {
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
    for addr in resolve(addr).await? {
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
    io::Error::new(error.kind(), Named(what.to_string(), error))
}

struct Named(String, io::Error);

/// As it is displayed: this is what a `main` that returns the error shows.
impl fmt::Debug for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.0, self.1)
    }
}

impl std::error::Error for Named {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.1)
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
        /// The addresses that are written there; or a name, as `host:port`, which has to be looked up.
        fn written(&self) -> Result<Addrs, String>;
    }

    macro_rules! resolve {
        ($($($t:ty),* => |$addr:pat_param| $written:expr;)*) => {$($(
            impl Resolve for $t {
                fn written(&self) -> Result<Addrs, String> {
                    let $addr = self;
                    $written
                }
            }
        )*)*};
    }

    resolve! {
        SocketAddr, SocketAddrV4, SocketAddrV6 => |addr| Ok(one(*addr));
        (IpAddr, u16), (Ipv4Addr, u16), (Ipv6Addr, u16) => |addr| Ok(one(*addr));
        [SocketAddr] => |addrs| Ok(None.into_iter().chain(Vec::from(addrs)));
        str, String => |text| text.parse::<SocketAddr>().map(one).map_err(|_| text.to_owned());
        (&str, u16), (String, u16) => |(host, port)| {
            host.parse::<IpAddr>().map(|ip| one((ip, *port))).map_err(|_| format!("{host}:{port}"))
        };
    }

    impl<T: Resolve + ?Sized> Resolve for &T {
        fn written(&self) -> Result<Addrs, String> {
            (**self).written()
        }
    }
}
