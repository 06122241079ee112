//! Ports chosen for daemons that are yet to start.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType};

/// A port that nothing listens on, kept from being given to anybody else: a socket is bound to it that never listens.
/// The daemon meant for it, whose socket is bound with `SO_REUSEADDR` as this one is, can listen on it meanwhile; the
/// kernel gives it to no connection and to nobody who asks for any port.
pub struct FreePort {
    port: u16,
    _socket: OwnedFd,
}

impl FreePort {
    pub fn of(host: IpAddr) -> std::io::Result<Self> {
        let any = SocketAddr::new(host, 0);
        let family = if host.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let socket = rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        // Bound first: a socket that may share addresses could be given one that is shared already.
        rustix::net::bind(&socket, &any)?;
        rustix::net::sockopt::set_socket_reuseaddr(&socket, true)?;
        let bound: SocketAddr = rustix::net::getsockname(&socket)?.try_into()?;
        Ok(Self { port: bound.port(), _socket: socket })
    }

    pub fn port(&self) -> u16 {
        self.port
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_daemon_can_listen_on_it_while_it_is_held() {
        let host = IpAddr::from([127, 0, 0, 1]);
        let free = FreePort::of(host).unwrap();
        let daemon = TcpListener::bind((host, free.port())).unwrap();
        assert_eq!(daemon.local_addr().unwrap().port(), free.port());
        assert!(TcpListener::bind((host, free.port())).is_err(), "a second daemon cannot");
    }

    /// As many as a third of all there are to choose from, so that one chosen twice would show.
    #[test]
    fn nobody_else_is_given_it() {
        let host = IpAddr::from([127, 0, 0, 1]);
        let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
        let ends: Vec<usize> = range.split_whitespace().map(|end| end.parse().unwrap()).collect();
        let many = ((ends[1] - ends[0]) / 3).min(400);
        let held: Vec<FreePort> = (0..many).map(|_| FreePort::of(host).unwrap()).collect();
        let others: Vec<TcpListener> = (0..many).map(|_| TcpListener::bind((host, 0)).unwrap()).collect();
        let ports = held.iter().map(FreePort::port);
        let ports = ports.chain(others.iter().map(|other| other.local_addr().unwrap().port()));
        assert_eq!(ports.collect::<HashSet<u16>>().len(), 2 * many);
    }
}
