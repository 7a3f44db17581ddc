//! What was given to the connection but may be lost with it, and when it is to be sent again.
//!
//! A PUB has no answer, so behind the messages goes a marker to a subject of our own; NATS handles one connection's messages in
//! order, so when the marker comes back, everything before it was taken. What was not confirmed when a connection is lost is sent
//! again on the next: a subscriber that had it drops the repetition by `seq`, and one that had not sees no gap.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Most messages that NATS has not confirmed; beyond it events wait and are joined. 8,192 of 400 bytes are 3.3 MB, and more than
/// what 100,000 messages/s put into a round trip of 50 ms.
const MAX_UNCONFIRMED: usize = 8_192;

/// Time between two markers: the window of what can be repeated, against one more message per window.
const MARKER_SPACING: Duration = Duration::from_millis(2);

/// A connection that confirms nothing for so long is given up: NATS answers in milliseconds, or it is cut off.
const STALL: Duration = Duration::from_secs(10);

/// The messages between the node and NATS, oldest first. Only what the connection took is [`sent`](Self::sent), so only that can be
/// confirmed.
#[derive(Debug)]
pub(super) struct Window<M> {
    /// With the number of the marker that will confirm each.
    unconfirmed: VecDeque<(u64, M)>,
    /// Not confirmed by an earlier connection: to be sent again when the hold is over.
    again: Vec<M>,
    /// After a reconnect, how long clients have to come back.
    hold: Duration,
    hold_until: Option<Instant>,
    /// Connections so far.
    connection: u64,
    /// The number of the next marker.
    next: u64,
    /// When the marker under way was sent.
    sent_at: Option<Instant>,
    /// No marker before this.
    not_before: Option<Instant>,
    /// The connection was given up and is not yet another one.
    given_up: bool,
}

impl<M> Window<M> {
    /// Nothing is out, and nothing connected. `hold` is how long what is from before a reconnect is held back.
    pub fn new(hold: Duration) -> Self {
        Self {
            unconfirmed: VecDeque::new(),
            again: Vec::new(),
            hold,
            hold_until: None,
            connection: 0,
            next: 1,
            sent_at: None,
            not_before: None,
            given_up: false,
        }
    }

    /// There is a connection: the `connection`th. If it is another one, what was out is to be sent again after the hold. Gives how
    /// many reconnects that were.
    pub fn connected(&mut self, connection: u64, now: Instant) -> u64 {
        let (before, reconnects) = (self.connection, connection - self.connection);
        if reconnects == 0 {
            return 0;
        }
        (self.connection, self.given_up) = (connection, false);
        if before == 0 {
            return reconnects - 1;
        }
        self.hold_until = Some(now + self.hold);
        self.again.extend(self.unconfirmed.drain(..).map(|(_, message)| message));
        (self.sent_at, self.not_before) = (None, None);
        // A late marker of the old connection is none of this one's.
        self.next += 1;
        reconnects
    }

    /// The number of the connection, counted from 1; 0 before the first.
    pub fn connection(&self) -> u64 {
        self.connection
    }

    /// Whether what came on connection number `connection` is to wait for clients that are not back yet.
    pub fn holds(&self, connection: u64) -> bool {
        self.hold_until.is_some() && connection < self.connection
    }

    /// Until when streams from before are held back, and nobody counts as absent.
    pub fn hold_until(&self) -> Option<Instant> {
        self.hold_until
    }

    /// Ends a hold whose time is over; gives what is to be sent again now, oldest first.
    pub fn after_hold(&mut self, now: Instant) -> Vec<M> {
        if self.hold_until.is_some_and(|until| now < until) {
            return Vec::new();
        }
        self.hold_until = None;
        std::mem::take(&mut self.again)
    }

    /// No more holding back: the node stops.
    pub fn end_hold(&mut self) {
        self.hold_until = None;
    }

    /// Whether more may be sent.
    pub fn has_room(&self) -> bool {
        self.unconfirmed.len() < MAX_UNCONFIRMED
    }

    /// The connection took a message.
    pub fn sent(&mut self, message: M) {
        self.unconfirmed.push_back((self.next, message));
    }

    /// Whether everything that was sent is confirmed, and nothing is to be sent again.
    pub fn is_empty(&self) -> bool {
        self.unconfirmed.is_empty() && self.again.is_empty()
    }

    /// The marker to be sent now, if one is due.
    pub fn marker(&mut self, now: Instant) -> Option<u64> {
        let early = self.not_before.is_some_and(|at| now < at);
        if self.sent_at.is_some() || self.unconfirmed.is_empty() || early {
            return None;
        }
        self.sent_at = Some(now);
        self.not_before = Some(now + MARKER_SPACING);
        self.next += 1;
        Some(self.next - 1)
    }

    /// Marker `number` came back; gives its way to NATS and back if it is the one under way.
    pub fn confirm(&mut self, number: u64, now: Instant) -> Option<Duration> {
        // One of an earlier connection says nothing about this one's.
        if number + 1 != self.next {
            return None;
        }
        let round_trip = now.duration_since(self.sent_at.take()?);
        while self.unconfirmed.front().is_some_and(|(marker, _)| *marker <= number) {
            self.unconfirmed.pop_front();
        }
        Some(round_trip)
    }

    /// Whether the connection is to be replaced, because it confirms nothing; true once for each connection.
    pub fn gives_up(&mut self, now: Instant) -> bool {
        let stalled = self.sent_at.is_some_and(|at| now.duration_since(at) >= STALL);
        stalled && !std::mem::replace(&mut self.given_up, true)
    }

    /// When there is something to do next, if nothing else happens.
    pub fn next_at(&self) -> Option<Instant> {
        let marker_at = match self.sent_at {
            Some(at) if !self.given_up => Some(at + STALL),
            None if !self.unconfirmed.is_empty() => self.not_before,
            _ => None,
        };
        [marker_at, self.hold_until].into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOLD: Duration = Duration::from_secs(5);

    fn connected(now: Instant) -> Window<char> {
        let mut window = Window::new(HOLD);
        assert_eq!(window.connected(1, now), 0, "the first is no reconnect");
        window
    }

    #[test]
    fn a_marker_confirms_what_was_before_it() {
        let t0 = Instant::now();
        let mut window = connected(t0);
        assert_eq!(window.marker(t0), None);
        window.sent('a');
        window.sent('b');
        assert_eq!(window.marker(t0), Some(1));
        window.sent('c');
        assert_eq!(window.marker(t0 + MARKER_SPACING), None, "one under way at most");
        let trip = Duration::from_millis(1);
        assert_eq!(window.confirm(1, t0 + trip), Some(trip));
        assert_eq!(window.unconfirmed, [(2, 'c')]);
        assert_eq!(window.marker(t0 + trip), None, "not too often");
        assert_eq!(window.next_at(), Some(t0 + MARKER_SPACING));
        assert_eq!(window.marker(t0 + MARKER_SPACING), Some(2));
        assert_eq!(window.confirm(2, t0 + MARKER_SPACING), Some(Duration::ZERO));
        assert!(window.is_empty() && window.next_at().is_none());
    }

    #[test]
    fn what_was_not_confirmed_is_sent_again_in_order_after_the_hold() {
        let t0 = Instant::now();
        let mut window = connected(t0);
        window.sent('a');
        assert_eq!(window.marker(t0), Some(1));
        window.sent('b');
        assert_eq!(window.connected(2, t0), 1);
        assert!(window.holds(1) && !window.holds(2), "what came since is not held back");
        assert!(window.after_hold(t0 + HOLD / 2).is_empty());
        assert_eq!((window.next_at(), window.is_empty()), (Some(t0 + HOLD), false));
        window.sent('c');
        assert_eq!(window.confirm(1, t0), None, "a late marker of the old connection");
        let marker = window.marker(t0).expect("due at once");
        assert!(window.confirm(marker, t0).is_some());
        assert!(!window.is_empty(), "confirmed is what this connection took");
        assert_eq!(window.after_hold(t0 + HOLD), ['a', 'b']);
        assert!(window.is_empty() && !window.holds(1));
    }

    #[test]
    fn another_loss_during_the_hold_keeps_everything_and_holds_anew() {
        let t0 = Instant::now();
        let mut window = connected(t0);
        window.sent('a');
        window.connected(2, t0);
        window.sent('b');
        let later = t0 + HOLD / 2;
        assert_eq!(window.connected(4, later), 2);
        assert!(window.after_hold(t0 + HOLD).is_empty());
        assert_eq!(window.after_hold(later + HOLD), ['a', 'b']);
    }

    #[test]
    fn a_stop_waits_for_no_hold() {
        let t0 = Instant::now();
        let mut window = connected(t0);
        window.sent('a');
        window.connected(2, t0);
        window.end_hold();
        assert_eq!(window.after_hold(t0), ['a']);
    }

    #[test]
    fn a_connection_that_confirms_nothing_is_given_up_once() {
        let t0 = Instant::now();
        let mut window = connected(t0);
        window.sent('a');
        window.marker(t0);
        assert_eq!(window.next_at(), Some(t0 + STALL));
        assert!(!window.gives_up(t0 + STALL / 2));
        assert!(window.gives_up(t0 + STALL));
        assert!(!window.gives_up(t0 + STALL * 2));
        window.connected(2, t0 + STALL);
        window.sent('b');
        window.marker(t0 + STALL);
        assert!(window.gives_up(t0 + STALL * 2), "the next is judged for itself");
    }

    #[test]
    fn a_full_window_has_no_room_until_something_is_confirmed() {
        let t0 = Instant::now();
        let mut window = connected(t0);
        (0..MAX_UNCONFIRMED - 1).for_each(|_| window.sent('a'));
        assert!(window.has_room());
        window.sent('b');
        assert!(!window.has_room());
        let marker = window.marker(t0).expect("due");
        window.confirm(marker, t0);
        assert!(window.has_room());
    }
}
