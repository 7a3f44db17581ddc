//! Where somebody is: a host by name or IP, and a port.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// A host and a port. A name is looked up each time, because it may come to mean another machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HostPort {
    /// A name, or an IP without brackets.
    pub(super) host: String,
    /// Where on it.
    pub(super) port: u16,
}

impl HostPort {
    /// Reads `host`, `host:port`, `ip`, `ip:port` or `[ip]:port`, with `http://` before it or not.
    pub(super) fn parse(text: &str, default_port: u16) -> Option<Self> {
        let text = text.strip_prefix("http://").map_or(text, |rest| rest.trim_end_matches('/'));
        if let Ok(at) = text.parse::<SocketAddr>() {
            return Some(at).filter(|at| at.port() != 0).map(Self::from);
        }
        let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
        if let Ok(ip) = bare.parse::<IpAddr>() {
            return Some(SocketAddr::from((ip, default_port)).into());
        }
        let (host, port) = match text.split_once(':') {
            None => (text, default_port),
            Some((host, port)) => (host, port.parse().ok().filter(|port| *port != 0)?),
        };
        is_name(host).then(|| Self { host: host.to_ascii_lowercase(), port })
    }

    /// The IP, where the host is one.
    pub(super) fn ip(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }

    /// Whether others than this machine cannot reach it.
    pub(super) fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.ip().is_some_and(|ip| ip.is_loopback())
    }
}

impl From<SocketAddr> for HostPort {
    fn from(at: SocketAddr) -> Self {
        Self { host: at.ip().to_string(), port: at.port() }
    }
}

/// As an URL has it.
impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ip() {
            Some(ip) => SocketAddr::from((ip, self.port)).fmt(f),
            None => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// A host's name (RFC 1123); an underscore is taken too, because container networks use it.
fn is_name(host: &str) -> bool {
    let is_label = |label: &str| {
        let letters = label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        letters && (1..=63).contains(&label.len()) && !label.starts_with('-')
    };
    host.len() <= 253 && host.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_read_with_and_without_a_port() {
        for (text, expected) in [
            ("lb", "lb:6100"),
            ("LB.internal:7", "lb.internal:7"),
            ("http://lb:7/", "lb:7"),
            ("10.0.0.1", "10.0.0.1:6100"),
            ("10.0.0.1:7", "10.0.0.1:7"),
            ("::1", "[::1]:6100"),
            ("[::1]", "[::1]:6100"),
            ("[::1]:7", "[::1]:7"),
            ("my_service", "my_service:6100"),
        ] {
            let read = HostPort::parse(text, 6_100).unwrap_or_else(|| panic!("{text}"));
            assert_eq!(read.to_string(), expected);
        }
        for text in ["", ":7", "lb:", "lb:x", "lb:0", "lb:70000", "10.0.0.1:0", "https://lb"] {
            assert_eq!(HostPort::parse(text, 6_100), None, "{text}");
        }
        for text in ["a b", "me:hush@lb:1", "lb/x", "-lb", "a..b", "ä"] {
            assert_eq!(HostPort::parse(text, 6_100), None, "{text}");
        }
    }

    #[test]
    fn what_only_this_machine_reaches_is_known_by_its_name() {
        let is_loopback = |text| HostPort::parse(text, 1).is_some_and(|at| at.is_loopback());
        assert!(is_loopback("localhost") && is_loopback("127.0.0.2") && is_loopback("[::1]:5"));
        assert!(!is_loopback("lb") && !is_loopback("10.0.0.1"));
    }
}
