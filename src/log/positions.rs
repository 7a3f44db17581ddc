//! How far a reader has come in each choice of a stream, and how server-sent events say it.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use crate::request::Event;

/// The longest text of positions, in bytes: more choices than any request has.
const MAX_TEXT: usize = 4_096;

/// The tokens of each choice that a reader has. As text: the index of the last one of each, `-` where there is none, joined by commas
/// (`7`, or `7,-,3`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Positions(BTreeMap<u32, u32>);

impl Positions {
    /// Tokens of one choice.
    pub fn of(&self, index: u32) -> u32 {
        self.0.get(&index).copied().unwrap_or_default()
    }

    /// The reader has so many tokens of a choice, or had more.
    pub fn reach(&mut self, index: u32, tokens: u32) {
        let known = self.0.entry(index).or_default();
        *known = tokens.max(*known);
    }

    /// The reader has this event.
    pub fn pass(&mut self, event: &Event) {
        self.reach(event.index, event.end());
    }

    /// What follows these tokens of a choice is not to be counted.
    pub fn fall_back(&mut self, index: u32, tokens: u32) {
        let known = self.0.entry(index).or_default();
        *known = tokens.min(*known);
    }

    /// Tokens of all choices.
    pub fn total(&self) -> u32 {
        self.0.values().fold(0, |sum, tokens| sum.saturating_add(*tokens))
    }

    /// Whether the reader has no token yet.
    pub fn is_start(&self) -> bool {
        self.0.values().all(|tokens| *tokens == 0)
    }
}

/// Of the first choice alone.
impl From<u32> for Positions {
    fn from(tokens: u32) -> Self {
        Self(BTreeMap::from([(0, tokens)]))
    }
}

impl fmt::Display for Positions {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reached = self.0.iter().filter(|(_, tokens)| **tokens > 0);
        let last = reached.map(|(index, _)| *index).max().unwrap_or_default();
        for index in 0..=last {
            if index > 0 {
                out.write_str(",")?;
            }
            match self.of(index).checked_sub(1) {
                Some(token) => write!(out, "{token}")?,
                None => out.write_str("-")?,
            }
        }
        Ok(())
    }
}

/// What is no text of positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected the index of the last token of each choice, as `id:` says it: 7, or 7,-,3")]
pub struct NoPositions;

impl FromStr for Positions {
    type Err = NoPositions;

    fn from_str(text: &str) -> Result<Self, NoPositions> {
        if text.len() > MAX_TEXT {
            return Err(NoPositions);
        }
        let tokens = |word: &str| match word.trim() {
            "-" => Ok(0),
            word => word.parse::<u32>().map(|last| last.saturating_add(1)).map_err(|_| NoPositions),
        };
        let words = (0..).zip(text.split(','));
        words.map(|(index, word)| Ok((index, tokens(word)?))).collect::<Result<_, _>>().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_reader_says_is_what_it_was_told() {
        for text in ["7", "0", "7,-,3", "-,4"] {
            let positions: Positions = text.parse().expect("positions");
            assert_eq!(positions.to_string(), text);
        }
        let positions: Positions = "7,-,3".parse().expect("positions");
        assert_eq!([0, 1, 2, 3].map(|index| positions.of(index)), [8, 0, 4, 0]);
        assert_eq!(Positions::from(8), "7".parse().expect("positions"));
        assert!("-".parse::<Positions>().expect("positions").is_start());
        for text in ["", "a", "-1", "1,", "1;2", "4294967296"] {
            assert_eq!(text.parse::<Positions>(), Err(NoPositions), "{text}");
        }
    }

    #[test]
    fn a_reader_never_goes_back() {
        let mut positions = Positions::default();
        positions.reach(1, 4);
        positions.reach(1, 2);
        assert_eq!(positions.to_string(), "-,3");
    }
}
