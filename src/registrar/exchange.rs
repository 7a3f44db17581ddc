//! One registration over the network: names looked up, one connection, one request, one answer; each with its limit.

use std::net::{SocketAddr, ToSocketAddrs as _};
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::Request;
use hyper::client::conn::http1;
use hyper::header::{AUTHORIZATION, CONNECTION, CONTENT_TYPE, HOST};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::host_port::HostPort;
use crate::secret::Secret;

/// A load balancer is in the same network; one that takes longer is as good as absent.
const CONNECT_LIMIT: Duration = Duration::from_millis(500);

/// From the connection to the answer's last byte: Inferno answers in milliseconds.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// The longest answer in bytes: it lists all nodes that the load balancer knows, some 200 bytes each.
const MAX_ANSWER_BYTES: usize = 1 << 20;

/// Why there is no answer; for a person.
#[derive(Debug)]
pub(super) enum ExchangeFault {
    /// There is no connection.
    Absent(String),
    /// There was one.
    Broken(String),
}

/// Looks up where somebody is; IPv4 goes first, because Inferno cuts addresses at their first colon. The system's resolver has time
/// limits of its own. It has a thread to itself, which a node that stops need not wait for.
pub(super) async fn look_up(at: &HostPort) -> Result<SocketAddr, ExchangeFault> {
    if let Some(ip) = at.ip() {
        return Ok((ip, at.port).into());
    }
    let (sender, found) = oneshot::channel();
    let (name, port) = (at.host.clone(), at.port);
    let thread = std::thread::Builder::new().name("lookup".to_owned());
    let started = thread.spawn(move || {
        let found = (name.as_str(), port).to_socket_addrs().map(|all| all.collect::<Vec<_>>());
        // Nobody waits any more where the node stops.
        let _ = sender.send(found);
    });
    let fault = |reason: &str| ExchangeFault::Absent(format!("{} is not found: {reason}", at.host));
    started.map_err(|error| fault(&error.to_string()))?;
    let found = found.await.map_err(|_| fault("the look-up ended"))?;
    let found = found.map_err(|error| fault(&error.to_string()))?;
    let first = found.iter().find(|at| at.is_ipv4()).or(found.first());
    first.copied().ok_or_else(|| fault("it has no address"))
}

/// Posts a registration; gives status and body of the answer.
pub(super) async fn register(
    at: SocketAddr,
    host: &HostPort,
    secret: Option<&Secret>,
    body: Vec<u8>,
) -> Result<(u16, Bytes), ExchangeFault> {
    let connected = timeout(CONNECT_LIMIT, TcpStream::connect(at)).await;
    let stream = connected
        .map_err(|_| ExchangeFault::Absent(format!("no connection to {at} in {CONNECT_LIMIT:?}")))?
        .map_err(|error| ExchangeFault::Absent(format!("no connection to {at}: {error}")))?;
    let mut request = Request::post("/registration")
        .header(HOST, host.to_string())
        .header(CONTENT_TYPE, "application/json")
        .header(CONNECTION, "close");
    if let Some(secret) = secret {
        request = request.header(AUTHORIZATION, format!("Bearer {}", secret.expose()));
    }
    let broken = |error: hyper::http::Error| ExchangeFault::Broken(error.to_string());
    let request = request.body(Full::new(Bytes::from(body))).map_err(broken)?;
    let answered = timeout(ANSWER_LIMIT, exchange(stream, request)).await;
    let late = |_| ExchangeFault::Broken(format!("no whole answer within {ANSWER_LIMIT:?}"));
    answered.map_err(late)?.map_err(ExchangeFault::Broken)
}

async fn exchange(
    stream: TcpStream,
    request: Request<Full<Bytes>>,
) -> Result<(u16, Bytes), String> {
    let text = |error: hyper::Error| format!("the answer broke off: {error}");
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(text)?;
    let answer = async {
        let answer = sender.send_request(request).await.map_err(text)?;
        let status = answer.status().as_u16();
        let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES).collect().await;
        let body = body.map_err(|error| format!("the answer broke off: {error}"))?;
        Ok((status, body.to_bytes()))
    };
    let mut answer = pin!(answer);
    // The connection has to be driven; what has arrived when it ends is still to be read.
    tokio::select! {
        biased;
        answer = &mut answer => answer,
        _ = connection => answer.await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_becomes_an_ip_and_an_ip_stays_one() {
        let of = |text: &str| HostPort::parse(text, 7).expect("a place");
        let found = look_up(&of("localhost")).await.expect("every system has it");
        assert!(found.ip().is_loopback() && found.port() == 7, "{found}");
        let found = look_up(&of("[::1]:9")).await.expect("it is one");
        assert_eq!(found.to_string(), "[::1]:9");
        let absent = look_up(&of("no-such-host.invalid")).await.expect_err("RFC 6761");
        assert!(matches!(absent, ExchangeFault::Absent(text) if text.contains("no-such-host")));
    }
}
