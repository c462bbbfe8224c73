//! UDP: Go's net/udpsock.go.

use super::fd::Fd;
use super::prelude::*;
use super::resolve::{ToSocketAddrs, first, no_address, resolve};
use std::net::{self, Ipv4Addr, Ipv6Addr, SocketAddr};

/// A UDP socket.
///
/// All operations take `&self`: any number of tasks may use one socket at once. Dropping it closes it.
///
/// # Examples
/// ```
/// use gopark::net::UdpSocket;
/// gopark::run(async {
///     let server = UdpSocket::bind("127.0.0.1:0").await?;
///     let client = UdpSocket::bind("127.0.0.1:0").await?;
///     client.connect(server.local_addr()?).await?;
///     client.send(b"hello").await?;
///     let mut buf = [0; 1500];
///     let (n, from) = server.recv_from(&mut buf).await?;
///     assert_eq!((&buf[..n], from), (&b"hello"[..], client.local_addr()?));
///     server.send_to(b"hello yourself", from).await?;
///     assert_eq!(client.recv(&mut buf).await?, 14);
///     std::io::Result::Ok(())
/// })?;
/// # std::io::Result::Ok(())
/// ```
pub struct UdpSocket {
    fd: Fd<net::UdpSocket>,
}

owner!(UdpSocket: net::UdpSocket, Start::TryCut);
datagram!(UdpSocket, SocketAddr);

impl UdpSocket {
    /// Binds to the first of the addresses with which that can be done; port 0 lets the system choose.
    ///
    /// # Errors
    /// What the system says of the last address (`AddrInUse`, `PermissionDenied`), with the address named; what the resolver says.
    ///
    /// # Panics
    /// Outside a runtime.
    pub async fn bind<A: ToSocketAddrs>(addr: A) -> io::Result<Self> {
        first(addr, "bind to", |addr| Self::from_std(net::UdpSocket::bind(addr)?)).await
    }

    /// Makes the first of the addresses with which that can be done the peer: datagrams go to it, and no other's arrive.
    /// What arrived before stays.
    ///
    /// # Errors
    /// What connect(2) says of the last address, with the address named; what the resolver says.
    pub async fn connect<A: ToSocketAddrs>(&self, addr: A) -> io::Result<()> {
        first(addr, "connect to", |addr| self.fd.io().connect(addr)).await
    }

    /// Sends a datagram to the first of the addresses.
    ///
    /// # Errors
    /// As [`send`](Self::send); what the resolver says.
    ///
    /// # Cancel safety
    /// Safe: if the future is dropped before it is ready, nothing was sent.
    pub async fn send_to<A: ToSocketAddrs>(&self, buf: &[u8], addr: A) -> io::Result<usize> {
        let addr = resolve(addr).await?.next().ok_or_else(|| no_address("send to"))?;
        self.fd.io_op(Side::Write, buf.len(), |_| self.fd.io().send_to(buf, addr)).await
    }

    /// Sends a datagram, if there is room.
    ///
    /// # Errors
    /// `WouldBlock` if there is none; otherwise as [`send`](Self::send).
    pub fn try_send_to(&self, buf: &[u8], addr: SocketAddr) -> io::Result<usize> {
        self.fd.try_io(Side::Write, buf.len(), |_| self.fd.io().send_to(buf, addr))
    }

    /// Receives as many datagrams as are there, at most 32, by one system call, each into a buffer of its own, waiting
    /// until one is. What came with each is appended to `received`, in order, after what that holds already. Returns how
    /// many there were: 0 if there is no buffer.
    ///
    /// # Errors
    /// As [`recv`](Self::recv).
    ///
    /// # Cancel safety
    /// Safe: no datagram is lost, and `received` is as it was.
    pub fn recv_many(
        &self,
        bufs: &mut [IoSliceMut<'_>],
        received: &mut Vec<Received>,
    ) -> impl Future<Output = io::Result<usize>> {
        self.fd.io_op(Side::Read, bufs.len(), |s| sys::recv_many(s, bufs, received))
    }

    /// Sends as many of the datagrams as there is room for, at most 32, by one system call, waiting until there is room
    /// for one. Each goes to its address, or else to the socket's peer. Returns how many were sent.
    ///
    /// # Errors
    /// As [`send`](Self::send), of the first datagram: an error of a later one comes when that is the first.
    ///
    /// # Cancel safety
    /// Safe: if the future is dropped before it is ready, nothing was sent.
    ///
    /// # Examples
    /// ```
    /// use gopark::net::UdpSocket;
    /// use std::io::{IoSlice, IoSliceMut};
    /// gopark::run(async {
    ///     let socket = UdpSocket::bind("127.0.0.1:0").await?;
    ///     let to = Some(socket.local_addr()?);
    ///     assert_eq!(socket.send_many(&[(IoSlice::new(b"a"), to), (IoSlice::new(b"bcd"), to)]).await?, 2);
    ///     let (mut one, mut two) = ([0; 2], [0; 2]);
    ///     let mut received = Vec::new();
    ///     let bufs = &mut [IoSliceMut::new(&mut one), IoSliceMut::new(&mut two)];
    ///     assert_eq!(socket.recv_many(bufs, &mut received).await?, 2);
    ///     assert_eq!((one, two), (*b"a\0", *b"bc"));
    ///     assert_eq!((received[0].len, received[0].truncated), (1, false));
    ///     assert_eq!((received[1].len, received[1].truncated), (2, true));
    ///     std::io::Result::Ok(())
    /// })?;
    /// # std::io::Result::Ok(())
    /// ```
    pub fn send_many(
        &self,
        datagrams: &[(IoSlice<'_>, Option<SocketAddr>)],
    ) -> impl Future<Output = io::Result<usize>> {
        self.fd.io_op(Side::Write, 0, |s| sys::send_many(s, datagrams))
    }

    forward! {
        /// Whether datagrams may go to broadcast addresses: no unless set.
        fn set_broadcast(broadcast: bool) -> ();
        /// Whether datagrams may go to broadcast addresses.
        fn broadcast() -> bool;
        /// How many hops a packet may make.
        fn set_ttl(ttl: u32) -> ();
        /// How many hops a packet may make.
        fn ttl() -> u32;
        /// Whether this machine hears what it sends to groups.
        fn set_multicast_loop_v4(on: bool) -> ();
        /// Whether this machine hears what it sends to groups.
        fn multicast_loop_v4() -> bool;
        /// Whether this machine hears what it sends to groups.
        fn set_multicast_loop_v6(on: bool) -> ();
        /// Whether this machine hears what it sends to groups.
        fn multicast_loop_v6() -> bool;
        /// How many hops a packet to a group may make: 1 unless set.
        fn set_multicast_ttl_v4(ttl: u32) -> ();
        /// How many hops a packet to a group may make.
        fn multicast_ttl_v4() -> u32;
        /// Joins a group, on the interface with that address.
        fn join_multicast_v4(group: &Ipv4Addr, interface: &Ipv4Addr) -> ();
        /// Leaves a group.
        fn leave_multicast_v4(group: &Ipv4Addr, interface: &Ipv4Addr) -> ();
        /// Joins a group, on the interface with that index.
        fn join_multicast_v6(group: &Ipv6Addr, interface: u32) -> ();
        /// Leaves a group.
        fn leave_multicast_v6(group: &Ipv6Addr, interface: u32) -> ();
    }
}
