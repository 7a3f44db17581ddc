//! What was given to the connection but may be lost with it.
//!
//! A PUB has no answer, so behind the messages goes a marker to a subject of our own; NATS handles one connection's messages in
//! order, so when the marker comes back, everything before it was taken. What was not confirmed when a connection is lost is sent
//! again on the next: a subscriber that had it drops the repetition by `seq`, and one that had not sees no gap.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Time between two markers: the window of what can be repeated, against one more message per window.
const MARKER_SPACING: Duration = Duration::from_millis(2);

/// The messages between the node and NATS, oldest first.
#[derive(Debug)]
pub(super) struct Unconfirmed<M> {
    /// With the number of the marker that will confirm each.
    messages: VecDeque<(u64, M)>,
    /// The number of the next marker.
    next: u64,
    /// When the marker under way was sent.
    sent_at: Option<Instant>,
    /// No marker before this.
    not_before: Option<Instant>,
    /// The last marker's way to NATS and back.
    round_trip: Duration,
}

impl<M> Default for Unconfirmed<M> {
    fn default() -> Self {
        Self {
            messages: VecDeque::new(),
            next: 1,
            sent_at: None,
            not_before: None,
            round_trip: Duration::ZERO,
        }
    }
}

impl<M> Unconfirmed<M> {
    /// A message was given to the connection.
    pub fn push(&mut self, message: M) {
        self.messages.push_back((self.next, message));
    }

    /// How many are not confirmed.
    pub fn len(&self) -> usize {
        self.messages.len()
    }

    /// Whether everything is confirmed.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// The marker to be sent now, if one is due.
    pub fn marker(&mut self, now: Instant) -> Option<u64> {
        let early = self.not_before.is_some_and(|at| now < at);
        if self.sent_at.is_some() || self.messages.is_empty() || early {
            return None;
        }
        self.sent_at = Some(now);
        self.not_before = Some(now + MARKER_SPACING);
        self.next += 1;
        Some(self.next - 1)
    }

    /// When [`Unconfirmed::marker`] is to be asked again, if nothing else happens.
    pub fn marker_at(&self) -> Option<Instant> {
        match (self.sent_at, self.messages.is_empty()) {
            (None, false) => self.not_before,
            _ => None,
        }
    }

    /// Marker `number` came back; true if it is the one under way.
    pub fn confirm(&mut self, number: u64, now: Instant) -> bool {
        // One of an earlier connection says nothing about this one's.
        if number + 1 != self.next {
            return false;
        }
        let Some(sent_at) = self.sent_at.take() else { return false };
        self.round_trip = now.duration_since(sent_at);
        while self.messages.front().is_some_and(|(marker, _)| *marker <= number) {
            self.messages.pop_front();
        }
        true
    }

    /// How long the marker under way has been.
    pub fn waiting_for(&self, now: Instant) -> Duration {
        self.sent_at.map_or(Duration::ZERO, |at| now.duration_since(at))
    }

    /// The last marker's way to NATS and back; zero before the first.
    pub fn round_trip(&self) -> Duration {
        self.round_trip
    }

    /// The connection is another one: takes out, oldest first, what has to be sent again.
    pub fn reconnected(&mut self) -> Vec<M> {
        self.sent_at = None;
        self.not_before = None;
        self.next += 1;
        self.messages.drain(..).map(|(_, message)| message).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_confirms_what_was_before_it() {
        let mut window = Unconfirmed::default();
        let t0 = Instant::now();
        assert_eq!(window.marker(t0), None);
        window.push('a');
        window.push('b');
        assert_eq!(window.marker(t0), Some(1));
        window.push('c');
        assert_eq!(window.marker(t0 + MARKER_SPACING), None, "one under way at most");
        assert_eq!(window.waiting_for(t0 + MARKER_SPACING), MARKER_SPACING);
        assert!(window.confirm(1, t0 + Duration::from_millis(1)));
        assert_eq!((window.len(), window.round_trip()), (1, Duration::from_millis(1)));
        assert_eq!(window.marker(t0 + Duration::from_millis(1)), None, "not too often");
        assert_eq!(window.marker_at(), Some(t0 + MARKER_SPACING));
        assert_eq!(window.marker(t0 + MARKER_SPACING), Some(2));
        assert!(window.confirm(2, t0 + MARKER_SPACING));
        assert!(window.is_empty() && window.marker_at().is_none());
    }

    #[test]
    fn what_was_not_confirmed_is_sent_again_in_order() {
        let mut window = Unconfirmed::default();
        let t0 = Instant::now();
        window.push('a');
        assert_eq!(window.marker(t0), Some(1));
        window.push('b');
        assert_eq!(window.reconnected(), ['a', 'b']);
        assert!(window.is_empty());
        window.push('c');
        assert!(!window.confirm(1, t0));
        assert_eq!(window.len(), 1, "a late marker of the old connection confirms nothing");
        let marker = window.marker(t0).expect("due at once");
        assert!(window.confirm(marker, t0));
        assert!(window.is_empty());
    }
}
