//! Messages that ask NATS whether anybody listens: to one with a reply subject it answers 503 where nobody hears it. What was asked
//! for which request is in that reply subject.

use async_nats::Subject;

/// The subject that a probe goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::bus) enum ListenerProbe {
    /// That of the request's events: an event is the probe.
    Events,
    /// A sibling of the subject of its one answer.
    Sibling,
    /// One beside all siblings.
    Stranger,
}

impl ListenerProbe {
    /// Where the 503 for a probe of a stream goes, under the node's `inbox`.
    pub fn reply(self, inbox: &str, stream: u64) -> Subject {
        format!("{inbox}.{}{stream}", self.letter()).into()
    }

    /// The stream and the probe that the last token of such a subject names.
    pub fn parse(token: &str) -> Option<(u64, Self)> {
        let (letter, stream) = token.split_at_checked(1)?;
        let is_it = |probe: &Self| probe.letter() == letter;
        let probe = [Self::Events, Self::Sibling, Self::Stranger].into_iter().find(is_it)?;
        Some((stream.parse().ok()?, probe))
    }

    fn letter(self) -> &'static str {
        match self {
            Self::Events => "e",
            Self::Sibling => "s",
            Self::Stranger => "x",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_subject_names_the_stream_and_what_was_asked() {
        for probe in [ListenerProbe::Events, ListenerProbe::Sibling, ListenerProbe::Stranger] {
            let reply = probe.reply("_INBOX.node", 42);
            let token = reply.strip_prefix("_INBOX.node.").expect("under the inbox");
            assert_eq!(ListenerProbe::parse(token), Some((42, probe)));
        }
        for token in ["", "m", "e", "42", "y42", "e42e", "ü1"] {
            assert_eq!(ListenerProbe::parse(token), None, "{token:?}");
        }
    }
}
