//! What one message of a request's log says.

use serde::{Deserialize, Serialize};

use crate::request::Event;

/// One message of a request's log: an event as every subscriber reads it, and what nodes say to each other beside it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// What subscribers read.
    #[serde(flatten)]
    pub event: Event,
    /// The node takes the request up; the event has no tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim: Option<Box<Claim>>,
    /// The node gives the request back in good health: the attempt does not count as one that failed.
    #[serde(default, skip_serializing_if = "is_false")]
    pub handed_back: bool,
}

fn is_false(flag: &bool) -> bool {
    !flag
}

/// Who goes on with a request from here, and with which message of the queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The node's name.
    pub node_id: String,
    /// The node's life: another after each start, so that a node is not taken for the one that it was before.
    pub life: String,
    /// The place in the queue that the job was published to first. A request runs by the job that was claimed first.
    pub job: u64,
    /// Digest of the request, so that another request under the same id is told from a repetition.
    pub body: String,
    /// Digest of what the tokens depend on, beside the request.
    pub exactness: String,
}

impl Record {
    /// An event and nothing beside it.
    pub fn of(event: Event) -> Self {
        Self { event, claim: None, handed_back: false }
    }

    /// Whether nothing of the request follows.
    pub fn is_last(&self) -> bool {
        self.event.is_last()
    }
}

/// Whether an event's record has no more than so many bytes.
pub(super) fn fits(event: &Event, most: usize) -> bool {
    // A letter may be six bytes in JSON, a token's id ten and a comma; the rest is far below this.
    let plain = event.logprobs.is_none() && event.prompt_logprobs.is_none();
    if plain && 1_024 + 11 * event.token_ids.len() + 6 * event.text.len() <= most {
        return true;
    }
    serde_json::to_vec(event).map_or(true, |json| json.len() <= most)
}

#[cfg(test)]
pub(super) mod testing {
    use super::*;
    use crate::ids::RequestId;
    use crate::request::{FinishReason, Usage};

    /// An event without tokens.
    pub fn event(attempt: u32, seq: u32) -> Event {
        Event { attempt, seq, ..Event::new(RequestId::parse("r").expect("an id")) }
    }

    /// A claim for job 1 of body "b".
    pub fn claim(attempt: u32, seq: u32) -> Record {
        let word = str::to_owned;
        let claim = Claim {
            node_id: word("n"),
            life: word("l"),
            job: 1,
            body: word("b"),
            exactness: word("e"),
        };
        Record { claim: Some(Box::new(claim)), ..Record::of(event(attempt, seq)) }
    }

    /// An event whose text has a letter for each token.
    pub fn tokens(attempt: u32, seq: u32, ids: &[u32]) -> Record {
        let text = "x".repeat(ids.len());
        Record::of(Event { token_ids: ids.to_vec(), text, ..event(attempt, seq) })
    }

    /// The last event.
    pub fn end(attempt: u32, seq: u32) -> Record {
        let (finish_reason, usage) = (Some(FinishReason::Length), Some(Usage::default()));
        Record::of(Event { finish_reason, usage, ..event(attempt, seq) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::RequestId;

    #[test]
    fn a_record_is_an_event_with_members_that_others_pass_over() {
        let id = RequestId::parse("r").expect("an id");
        let event = Event { seq: 3, token_ids: vec![7], text: "x".into(), ..Event::new(id) };
        let plain = serde_json::to_value(Record::of(event.clone())).expect("serialises");
        assert_eq!(plain, serde_json::to_value(&event).expect("serialises"));
        let record = Record { event, handed_back: true, ..testing::claim(1, 0) };
        let json = serde_json::to_string(&record).expect("serialises");
        assert_eq!(serde_json::from_str::<Record>(&json).expect("reads"), record);
        assert_eq!(serde_json::from_str::<Event>(&json).expect("reads"), record.event);
        let packed = rmp_serde::to_vec_named(&record).expect("serialises");
        assert_eq!(rmp_serde::from_slice::<Record>(&packed).expect("reads"), record);
    }
}
