//! Binds, serves and stops.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use actix_web::dev::ServerHandle;
use actix_web::http::KeepAlive;
use actix_web::middleware::from_fn;
use actix_web::rt::net::TcpStream;
use actix_web::web::Data;
use actix_web::{App, HttpServer};
use rustix::process::{Resource, getrlimit};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::task::JoinHandle;

use super::connections::{Connection, Connections, SPARE};
use super::door::HttpDoor;
use super::guard::guard;
use super::malformed::Malformed;
use super::routes::configure;
use super::{Config, HttpDeps};
use crate::lifeline::Lifeline;

/// Connections the kernel holds until a worker accepts them: a burst of as many clients as a node serves at once.
const BACKLOG: i32 = 1_024;

/// The worker's socket, and a second name of it by which another worker may close it.
const FILES_PER_CONNECTION: u64 = 2;

/// Open files that the rest of the node may need: devices, models, NATS.
const OTHER_FILES: u64 = 256;

/// Longer than any drain: the deadline of [`Server::stop`] ends a stop, not actix's own.
const NEVER_S: u64 = 365 * 24 * 3_600;

/// A door that is open.
pub struct Server {
    address: SocketAddr,
    handle: ServerHandle,
    server: JoinHandle<io::Result<()>>,
}

/// Binds and serves, with workers on threads of their own. Call it inside a tokio or actix runtime, on which the server's own
/// (nearly idle) task then runs; it holds `alive`. Dropping the result leaves the door open; [`Server::stop`] closes it.
///
/// # Errors
/// When the configuration has a fault, or the address cannot be bound.
pub fn start(config: &Config, deps: HttpDeps, alive: Lifeline) -> io::Result<Server> {
    let invalid =
        |faults: Vec<String>| io::Error::new(io::ErrorKind::InvalidInput, faults.join("; "));
    config.check().map_err(invalid)?;
    let address = config.address().map_err(|fault| invalid(vec![fault]))?;
    let listener = listen(address, config.slow_reader())?;
    let address = listener.local_addr()?;

    let door = Data::new(HttpDoor::new(config, deps));
    let keep_alive = match config.keep_alive_s {
        0 => KeepAlive::Disabled,
        seconds => KeepAlive::Timeout(Duration::from_secs(seconds)),
    };
    let max_connections = affordable(config.max_connections, getrlimit(Resource::Nofile).current);
    let connections = Connections::new(max_connections);
    let malformed = Malformed::new(door.metrics.clone());
    let workers = Arc::new(alive.beside("HTTP worker"));
    let app = move || {
        // Each worker makes one of these and drops it at its end.
        let app = App::new().app_data(door.clone()).app_data(workers.beside("HTTP worker"));
        app.wrap(from_fn(guard)).configure(configure)
    };
    let server = HttpServer::new(app)
        .workers(config.workers)
        // Of those that give way, so many may not have closed yet.
        .max_connections((max_connections + 2 * SPARE).div_ceil(config.workers))
        .on_connect(move |stream, data| {
            data.insert(malformed.handler());
            let stream = stream.downcast_ref::<TcpStream>();
            // One for which no descriptor is left is not counted.
            if let Some(Ok(connection)) = stream.map(|it| Connection::open(&connections, it)) {
                data.insert(connection);
            }
        })
        // One large body is parsed at once.
        .worker_max_blocking_threads(1)
        .keep_alive(keep_alive)
        .client_request_timeout(config.read_timeout())
        // A client that leaves while it waits is a cancel.
        .h1_allow_half_closed(false)
        .tcp_nodelay(true)
        .disable_signals()
        .shutdown_timeout(NEVER_S)
        .listen(listener)?
        .run();
    let handle = server.handle();
    let server = tokio::spawn(async move {
        let _alive = alive;
        server.await
    });
    Ok(Server { address, handle, server })
}

/// How many connections the open files of this process are enough for, `asked` at most.
fn affordable(asked: usize, max_files: Option<u64>) -> usize {
    let files = max_files.unwrap_or(u64::MAX).saturating_sub(OTHER_FILES);
    let affordable = usize::try_from(files / FILES_PER_CONNECTION).unwrap_or(usize::MAX);
    if affordable < asked {
        tracing::warn!(asked, affordable, "http.max_connections: too few open files (ulimit -n)");
    }
    affordable.clamp(1, asked)
}

fn listen(address: SocketAddr, slow_reader: Duration) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    // Accepted connections inherit it: the kernel closes one whose reader takes nothing, even where the completion is
    // over and only its last bytes wait. A running request is cancelled by the outbox in any case.
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(slow_reader))?;
    #[cfg(not(target_os = "linux"))]
    let _ = slow_reader;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

impl Server {
    /// Where it listens; the port that was found, if 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Accepts no connection and no request from now on, lets running answers end, and cuts what is left at the deadline. Says
    /// whether all ended in time. (While a node drains it wants to be seen: stop the door last, after admission refuses.)
    pub async fn stop(self, deadline: Duration) -> bool {
        let Self { handle, mut server, .. } = self;
        // The command is sent by the call; the server's task ends when it is done.
        drop(handle.stop(true));
        if tokio::time::timeout(deadline, &mut server).await.is_ok() {
            return true;
        }
        // Dropping the server stops its workers at once.
        server.abort();
        let _ = server.await;
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_no_more_connections_than_files() {
        assert_eq!(affordable(4_096, None), 4_096);
        assert_eq!(affordable(4_096, Some(1 << 20)), 4_096);
        assert_eq!(affordable(4_096, Some(1_024)), 384);
        assert_eq!(affordable(4_096, Some(64)), 1);
    }
}
