//! Whether the caller who waits for a request's one answer is still there, found out without a message that it would take for the
//! answer.
//!
//! The request methods of NATS clients have all their answers come to one subscription of their connection,
//! `_INBOX.<connection>.*`, and pass over a message whose last token they do not know. So a *sibling* of the reply subject, with
//! another last token, is heard for as long as the connection lasts. Not every reply subject has such siblings: it may be a
//! subscription of its own, and somebody may watch everything. Therefore two subjects are asked first: only where a sibling is heard
//! and a *stranger*, with another connection's token, too, is not, does a sibling that is not heard later mean that the caller has
//! gone.

use async_nats::Subject;

use super::probe::ListenerProbe;

/// What is known of the inbox that a reply subject belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum CallerInbox {
    /// Nothing was asked.
    #[default]
    Unknown,
    /// A sibling and behind it a stranger were asked; the stranger may have been heard.
    Asked,
    /// One subscription hears all siblings, and nothing else.
    OfConnection,
    /// Nothing can be concluded from it.
    Opaque,
}

impl CallerInbox {
    /// What is to be asked now to learn whether the caller behind `reply` is there; `fresh` is a token that nobody has used.
    pub fn ask(&mut self, reply: &str, fresh: &str) -> Vec<(Subject, ListenerProbe)> {
        let Some((connection, _)) = reply.rsplit_once('.') else { return Vec::new() };
        let Some((root, _)) = connection.rsplit_once('.') else { return Vec::new() };
        let sibling = (format!("{connection}.{fresh}").into(), ListenerProbe::Sibling);
        match self {
            Self::Unknown => {
                *self = Self::Asked;
                // In this order, in which NATS answers, too: nobody heard the stranger means that the sibling was heard.
                vec![sibling, (format!("{root}.{fresh}.{fresh}").into(), ListenerProbe::Stranger)]
            }
            // The stranger was heard, or NATS does not let the node ask.
            Self::Asked => {
                *self = Self::Opaque;
                Vec::new()
            }
            Self::OfConnection => vec![sibling],
            Self::Opaque => Vec::new(),
        }
    }

    /// NATS says that nobody heard a probe; true if the caller has gone.
    pub fn unheard(&mut self, probe: ListenerProbe) -> bool {
        match (*self, probe) {
            (Self::OfConnection, ListenerProbe::Sibling) => return true,
            (Self::Asked, ListenerProbe::Sibling) => *self = Self::Opaque,
            (Self::Asked, ListenerProbe::Stranger) => *self = Self::OfConnection,
            _ => {}
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPLY: &str = "_INBOX.a.1";

    fn asked(inbox: &mut CallerInbox) -> Vec<(String, ListenerProbe)> {
        let asked = inbox.ask(REPLY, "new");
        asked.into_iter().map(|(subject, probe)| (subject.to_string(), probe)).collect()
    }

    #[test]
    fn a_caller_has_gone_when_a_sibling_is_not_heard_that_was_heard_while_a_stranger_was_not() {
        let mut inbox = CallerInbox::default();
        let sibling = ("_INBOX.a.new".to_owned(), ListenerProbe::Sibling);
        let stranger = ("_INBOX.new.new".to_owned(), ListenerProbe::Stranger);
        assert_eq!(asked(&mut inbox), [sibling.clone(), stranger]);
        assert!(!inbox.unheard(ListenerProbe::Stranger));
        for _ in 0..2 {
            assert_eq!(asked(&mut inbox), std::slice::from_ref(&sibling));
        }
        assert!(inbox.unheard(ListenerProbe::Sibling));
    }

    #[test]
    fn an_inbox_whose_first_sibling_is_not_heard_is_not_asked_again() {
        let mut inbox = CallerInbox::default();
        asked(&mut inbox);
        assert!(!inbox.unheard(ListenerProbe::Sibling) && !inbox.unheard(ListenerProbe::Stranger));
        assert!(asked(&mut inbox).is_empty());
        assert!(!inbox.unheard(ListenerProbe::Sibling), "one that comes again says nothing");
    }

    #[test]
    fn where_strangers_are_heard_nothing_is_concluded() {
        let mut inbox = CallerInbox::default();
        asked(&mut inbox);
        assert!(asked(&mut inbox).is_empty());
        assert!(
            !inbox.unheard(ListenerProbe::Stranger) && !inbox.unheard(ListenerProbe::Sibling),
            "too late"
        );
        assert!(asked(&mut inbox).is_empty());
    }

    #[test]
    fn one_that_was_never_asked_has_not_gone() {
        let mut inbox = CallerInbox::default();
        assert!(!inbox.unheard(ListenerProbe::Sibling) && !inbox.unheard(ListenerProbe::Stranger));
        assert_eq!(inbox, CallerInbox::Unknown);
    }

    #[test]
    fn a_reply_subject_of_less_than_three_tokens_is_not_asked() {
        for reply in ["a", "_INBOX.a"] {
            assert!(CallerInbox::default().ask(reply, "new").is_empty(), "{reply}");
        }
    }
}
