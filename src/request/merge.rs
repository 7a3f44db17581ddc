//! Joining events that wait, and splitting what is too large for one message. Borders of events may fall anywhere, so a subscriber
//! sees the same tokens, text and end either way.

use std::collections::VecDeque;

use super::Event;

/// Joins `next` to `last`, which it follows without a gap; of it tokens and text are left. False where it cannot be joined: another
/// choice or attempt, a gap, or `last` is the choice's last event.
pub fn merge(last: &mut Event, next: &mut Event) -> bool {
    let follows = last.seq as usize + last.token_ids.len() == next.seq as usize;
    let same = last.index == next.index && last.attempt == next.attempt;
    if last.finish_reason.is_some() || !same || !follows {
        return false;
    }
    last.token_ids.extend_from_slice(&next.token_ids);
    last.text.push_str(&next.text);
    if let Some(entries) = next.logprobs.take() {
        last.logprobs.get_or_insert_default().extend(entries);
    }
    if let Some(entries) = next.prompt_logprobs.take() {
        last.prompt_logprobs.get_or_insert_default().extend(entries);
    }
    last.finish_reason = next.finish_reason;
    last.usage = next.usage;
    last.receipt = next.receipt.take();
    last.error = next.error.take();
    true
}

/// Events of one request that wait: one for each choice, joined, and one more for every new attempt.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EventQueue(VecDeque<Box<Event>>);

impl EventQueue {
    /// Adds what an event says, which is left with nothing.
    pub fn push(&mut self, event: &mut Event) {
        let index = event.index;
        let last = self.0.len().checked_sub(1);
        // The request's last event stays behind those of the other choices.
        let of_choice = self.0.iter().rposition(|other| other.index == index);
        let of_choice = of_choice.filter(|at| !event.is_last() || Some(*at) == last);
        let waits = of_choice.and_then(|at| self.0.get_mut(at));
        if !waits.is_some_and(|last| merge(last, event)) {
            self.0.push_back(Box::new(event.take()));
        }
    }

    /// The one that waits longest.
    pub fn pop(&mut self) -> Option<Box<Event>> {
        self.0.pop_front()
    }

    /// Puts one before all others.
    pub fn push_front(&mut self, event: Event) {
        self.0.push_front(Box::new(event));
    }

    /// All that wait, in their order.
    pub fn iter(&self) -> impl Iterator<Item = &Event> {
        self.0.iter().map(|event| &**event)
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Forgets all of them.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

/// Splits an event until `fits` says yes to every part; the last part has the end. A part that cannot be split further is given
/// as it is.
pub fn split(event: Event, fits: &mut impl FnMut(&Event) -> bool) -> Vec<Event> {
    let mut done = Vec::new();
    let mut todo = vec![event];
    while let Some(event) = todo.pop() {
        let few = |entries: &Option<Vec<_>>| entries.as_ref().is_none_or(|all| all.len() < 2);
        let whole = event.token_ids.len() < 2
            && event.text.chars().nth(1).is_none()
            && few(&event.prompt_logprobs);
        if whole || fits(&event) {
            done.push(event);
            continue;
        }
        let (first, second) = halve(event);
        todo.push(second);
        todo.push(first);
    }
    done
}

fn halve(mut event: Event) -> (Event, Event) {
    if let Some(entries) = event.prompt_logprobs.as_mut().filter(|entries| entries.len() > 1) {
        // The prompt comes before any token: half of it in an event of its own.
        let rest = entries.split_off(entries.len() / 2);
        let first = Event {
            request_id: event.request_id.clone(),
            token_ids: Vec::new(),
            text: String::new(),
            logprobs: event.logprobs.as_ref().map(|_| Vec::new()),
            prompt_logprobs: event.prompt_logprobs.replace(rest),
            finish_reason: None,
            usage: None,
            receipt: None,
            error: None,
            ..event
        };
        return (first, event);
    }
    let (tokens, bytes) = (event.token_ids.len(), event.text.len());
    // One token goes to the first half, so that only text, which may lag, comes later.
    let token_ids = event.token_ids.split_off(tokens.div_ceil(2));
    let logprobs = event.logprobs.as_mut();
    let logprobs =
        logprobs.map(|entries| entries.split_off(event.token_ids.len().min(entries.len())));
    let mut at = event.text.floor_char_boundary(bytes / 2);
    if at == 0 && tokens < 2 {
        at = event.text.ceil_char_boundary(1);
    }
    let text = event.text.split_off(at);
    let second = Event {
        request_id: event.request_id.clone(),
        at: event.at,
        index: event.index,
        attempt: event.attempt,
        seq: event.seq + event.token_ids.len() as u32,
        token_ids,
        text,
        logprobs,
        prompt_logprobs: None,
        finish_reason: event.finish_reason.take(),
        usage: event.usage.take(),
        receipt: event.receipt.take(),
        error: event.error.take(),
    };
    (event, second)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use crate::ids::RequestId;
    use crate::request::{FinishReason, TokenLogprob, Usage};

    fn event(seq: u32, token_ids: Vec<u32>, text: &str) -> Event {
        Event {
            seq,
            token_ids,
            text: text.to_owned(),
            ..Event::new(RequestId::parse("r").expect("an id"))
        }
    }

    #[test]
    fn events_in_sequence_become_one() {
        let mut first = event(3, vec![1, 2], "a");
        assert!(merge(&mut first, &mut event(5, vec![], "b")));
        let mut end = event(5, vec![9], "c");
        end.finish_reason = Some(FinishReason::Stop);
        end.usage = Some(Usage::default());
        assert!(merge(&mut first, &mut end));
        assert_eq!((first.seq, first.token_ids, first.text.as_str()), (3, vec![1, 2, 9], "abc"));
        assert_eq!(first.finish_reason, Some(FinishReason::Stop));
        assert!(first.usage.is_some());
    }

    #[test]
    fn another_attempt_or_choice_a_gap_or_an_end_is_not_joined() {
        let mut first = event(0, vec![1], "a");
        assert!(!merge(&mut first, &mut event(2, vec![3], "")));
        let mut other = event(1, vec![2], "");
        other.attempt = 2;
        assert!(!merge(&mut first, &mut other.clone()));
        (other.attempt, other.index) = (1, 1);
        assert!(!merge(&mut first, &mut other));
        first.finish_reason = Some(FinishReason::Length);
        assert!(!merge(&mut first, &mut event(1, vec![2], "")));
        assert_eq!(first.token_ids, [1]);
    }

    #[test]
    fn parts_give_the_same_tokens_text_and_one_end() {
        let text = "Schöne Grüße 🦀🦀, und noch etwas Text";
        for tokens in [0_u32, 1, 2, 7, 100] {
            for limit in [1, 5, 20, 1000] {
                let mut whole = event(10, (0..tokens).collect(), text);
                whole.finish_reason = Some(FinishReason::Failed);
                whole.error = Some(Box::new(Error::internal("x")));
                let mut fits = |e: &Event| e.token_ids.len() * 4 + e.text.len() <= limit;
                let parts = split(whole, &mut fits);
                let mut seq = 10;
                for (i, part) in parts.iter().enumerate() {
                    assert_eq!(part.seq, seq);
                    seq += part.token_ids.len() as u32;
                    let last = i + 1 == parts.len();
                    assert_eq!((part.finish_reason.is_some(), part.error.is_some()), (last, last));
                    let small = part.token_ids.len() <= 1 && part.text.chars().count() <= 1;
                    assert!(small || part.token_ids.len() * 4 + part.text.len() <= limit);
                }
                assert_eq!(seq, 10 + tokens);
                let joined: String = parts.iter().map(|part| part.text.as_str()).collect();
                assert_eq!(joined, text);
            }
        }
    }

    #[test]
    fn log_probabilities_are_joined_and_split_with_their_tokens() {
        let with = |event: Event| Event {
            logprobs: Some(
                event
                    .token_ids
                    .iter()
                    .map(|id| TokenLogprob {
                        token_id: *id,
                        token: id.to_string(),
                        bytes: None,
                        logprob: Some(-1.0),
                        text_offset: 0,
                        top: Vec::new(),
                    })
                    .collect(),
            ),
            ..event
        };
        let mut whole = with(event(0, vec![1, 2], "ab"));
        assert!(merge(&mut whole, &mut with(event(2, vec![3, 4, 5], "cde"))));
        let parts = split(whole, &mut |part| part.token_ids.len() < 3);
        assert!(parts.len() > 1);
        for part in parts {
            let tokens: Vec<String> = part.token_ids.iter().map(u32::to_string).collect();
            let entries = part.logprobs.expect("wanted");
            assert_eq!(entries.into_iter().map(|entry| entry.token).collect::<Vec<_>>(), tokens);
        }
    }

    #[test]
    fn a_prompt_goes_before_its_completion_in_as_many_parts_as_it_takes() {
        let mut whole = event(0, vec![7], "x");
        whole.finish_reason = Some(FinishReason::Length);
        let entry = |token_id| TokenLogprob {
            token_id,
            token: "t".to_owned(),
            bytes: None,
            logprob: None,
            text_offset: 0,
            top: Vec::new(),
        };
        whole.prompt_logprobs = Some((0..9).map(entry).collect());
        let len = |event: &Event| event.prompt_logprobs.as_ref().map_or(0, Vec::len);
        let parts = split(whole.clone(), &mut |part| len(part) < 3);
        assert!(parts.len() > 3);
        assert!(parts.iter().all(|part| part.seq == 0 && len(part) < 3));
        let mut parts = parts.into_iter();
        let mut joined = parts.next().expect("a part");
        for mut part in parts {
            assert!(joined.token_ids.is_empty() && joined.finish_reason.is_none());
            assert!(merge(&mut joined, &mut part));
        }
        assert_eq!(joined, whole);
    }
}
