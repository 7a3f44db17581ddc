//! Which connection gives way where there are many: the one that has been idle longest.
//!
//! A connection is busy from the head of a request to the last piece of its answer, and idle before, between and after; one that
//! asks for health or metrics stays idle. Beyond `http.max_connections` all but the [`SPARE`] youngest of the idle ones are closed.
//! So whoever comes for health or metrics is accepted at once and has time to ask, whether the others are idle or busy.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io;
use std::net::Shutdown;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use actix_web::body::{BodySize, BoxBody, MessageBody};
use actix_web::rt::net::TcpStream;
use bytes::Bytes;
use socket2::{SockRef, Socket};

/// Idle connections that are left open beyond the limit. A client sends its request in the round trip after it was accepted:
/// with so many, 3,000 new connections a second leave it 10 ms.
pub(super) const SPARE: usize = 32;

/// The open connections; `S` is what an idle one is closed by.
struct OpenConnections<S> {
    max: usize,
    busy: usize,
    /// By the turn in which each became idle.
    idle: BTreeMap<u64, S>,
    next_turn: u64,
}

impl<S> OpenConnections<S> {
    fn new(max: usize) -> Self {
        Self { max, busy: 0, idle: BTreeMap::new(), next_turn: 0 }
    }

    /// A connection is idle from now on. Gives its turn, and the one that has to close for it.
    fn rest(&mut self, connection: S) -> (u64, Option<S>) {
        let turn = self.next_turn;
        self.next_turn += 1;
        self.idle.insert(turn, connection);
        let is_over = self.busy + self.idle.len() > self.max && self.idle.len() > SPARE;
        let oldest = if is_over { self.idle.pop_first() } else { None };
        (turn, oldest.map(|(_, connection)| connection))
    }

    /// An idle connection has a request, or none any more. (One that was told to close may still have sent one.)
    fn leave(&mut self, turn: u64) {
        self.idle.remove(&turn);
    }
}

/// The connections of a server, over all its workers.
pub(super) struct Connections(Mutex<OpenConnections<Arc<Socket>>>);

impl Connections {
    /// At most `max` that are busy, and of idle ones what is left of it, or [`SPARE`].
    pub(super) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self(Mutex::new(OpenConnections::new(max))))
    }

    fn lock(&self) -> MutexGuard<'_, OpenConnections<Arc<Socket>>> {
        // Nothing panics while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One open connection, owned by its worker until it is closed.
pub(super) struct Connection {
    /// The same socket as the worker's, under a descriptor of its own.
    socket: Arc<Socket>,
    /// Since when it has been idle; none: it is busy.
    turn: Cell<Option<u64>>,
    all: Arc<Connections>,
}

impl Connection {
    /// A new one, idle.
    ///
    /// # Errors
    /// The system's reason, if there is no descriptor left for it.
    pub(super) fn open(all: &Arc<Connections>, stream: &TcpStream) -> io::Result<Rc<Self>> {
        let socket = Arc::new(SockRef::from(stream).try_clone()?);
        let connection = Rc::new(Self { socket, turn: Cell::new(None), all: all.clone() });
        connection.rest(&mut connection.all.lock());
        Ok(connection)
    }

    /// A request has come in.
    pub(super) fn begin(connection: &Rc<Self>) -> BusyConnection {
        let mut all = connection.all.lock();
        if let Some(turn) = connection.turn.take() {
            all.leave(turn);
            all.busy += 1;
        }
        BusyConnection { connection: connection.clone(), has_place: all.busy <= all.max }
    }

    fn rest(&self, all: &mut OpenConnections<Arc<Socket>>) {
        let (turn, gives_way) = all.rest(self.socket.clone());
        self.turn.set(Some(turn));
        if let Some(socket) = gives_way {
            // Its worker reads the end, or cannot write, and closes. What the kernel has still goes out; for a reader that takes
            // nothing there may be more, which must not keep the connection. It may have been closed from the other side already.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        match self.turn.get() {
            Some(turn) => self.all.lock().leave(turn),
            None => self.all.lock().busy -= 1,
        }
    }
}

/// A connection with a request; it is idle again when this is dropped.
pub(super) struct BusyConnection {
    connection: Rc<Connection>,
    has_place: bool,
}

impl BusyConnection {
    /// Whether it is within `http.max_connections`; beyond, only health and metrics are answered.
    pub(super) fn has_place(&self) -> bool {
        self.has_place
    }
}

impl Drop for BusyConnection {
    fn drop(&mut self) {
        let mut all = self.connection.all.lock();
        if self.connection.turn.get().is_none() {
            all.busy -= 1;
            self.connection.rest(&mut all);
        }
    }
}

/// An answer's body; its connection is busy until it is told whole.
pub(super) struct HeldBody {
    pub(super) body: BoxBody,
    /// None where it may be closed before.
    pub(super) _busy: Option<BusyConnection>,
}

impl MessageBody for HeldBody {
    type Error = <BoxBody as MessageBody>::Error;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Self::Error>>> {
        Pin::new(&mut self.body).poll_next(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_that_is_idle_longest_gives_way() {
        let mut open = OpenConnections::new(SPARE + 2);
        let first: Vec<_> = (0..SPARE as u64 + 2).map(|at| open.rest(at)).collect();
        assert!(first.iter().all(|(_, gives_way)| gives_way.is_none()));
        // The first asks for something and rests again: now the second is idle longest.
        open.leave(first[0].0);
        open.rest(0);
        assert_eq!(open.rest(100).1, Some(1));
        open.leave(first[2].0);
        assert_eq!(open.rest(101).1, None, "there is room again");
        assert_eq!(open.rest(102).1, Some(3));
    }

    #[test]
    fn busy_ones_stay_and_a_few_may_always_come_and_ask() {
        let mut open = OpenConnections::new(100);
        open.busy = 100;
        let came: Vec<_> = (0..1_000).filter_map(|at| open.rest(at).1).collect();
        assert_eq!(open.idle.len(), SPARE);
        assert_eq!(came, (0..1_000 - SPARE as u64).collect::<Vec<_>>());
        open.busy = 0;
        assert_eq!(open.rest(1_000).1, None);
    }
}
