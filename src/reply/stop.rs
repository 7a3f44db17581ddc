//! Stop strings, searched in a text that comes in pieces.
//!
//! One Knuth-Morris-Pratt automaton per stop string: each byte is looked at once, and the automaton's state is at every
//! moment how much of the text's end could still become that stop string. The result does not depend on where the pieces
//! are cut: the stop string that is complete first counts, of several complete at the same place the longest.

/// Searches several stop strings at once.
#[derive(Debug)]
pub struct StopMatcher {
    searches: Vec<Search>,
}

/// A stop string was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StopMatch {
    /// Bytes of the piece up to and with the stop string's last byte.
    pub end: usize,
    /// Length of the stop string in bytes; it may have begun in an earlier piece.
    pub len: usize,
}

impl StopMatcher {
    /// A search for any of `stop`; none of them is empty.
    pub fn new(stop: Vec<String>) -> Self {
        let searches = stop
            .into_iter()
            .filter(|pattern| !pattern.is_empty())
            .map(|pattern| Search::new(pattern.into_bytes()))
            .collect();
        Self { searches }
    }

    /// Whether there is nothing to search for.
    pub fn is_empty(&self) -> bool {
        self.searches.is_empty()
    }

    /// Reads the next piece of the text. With `armed` false a complete stop string does not count (`min_tokens`), but one
    /// begun here may be completed later.
    pub fn push(&mut self, piece: &str, armed: bool) -> Option<StopMatch> {
        if self.searches.is_empty() {
            return None;
        }
        for (at, byte) in piece.bytes().enumerate() {
            let mut longest = None;
            for search in &mut self.searches {
                if search.push(byte) {
                    longest = longest.max(Some(search.pattern.len()));
                }
            }
            if let Some(len) = longest.filter(|_| armed) {
                return Some(StopMatch { end: at + 1, len });
            }
        }
        None
    }

    /// How many bytes at the text's end could still become a stop string, and are to be held back.
    pub fn held(&self) -> usize {
        self.searches.iter().map(|search| search.matched).max().unwrap_or(0)
    }
}

#[derive(Debug)]
struct Search {
    pattern: Vec<u8>,
    /// `borders[i]`: length of the longest proper prefix of the pattern that ends its first `i + 1` bytes.
    borders: Vec<usize>,
    /// Bytes of the pattern that the text ends with, less than all.
    matched: usize,
}

impl Search {
    fn new(pattern: Vec<u8>) -> Self {
        let mut borders = vec![0; pattern.len()];
        let mut border = 0;
        for i in 1..pattern.len() {
            while border > 0 && pattern[i] != pattern[border] {
                border = borders[border - 1];
            }
            if pattern[i] == pattern[border] {
                border += 1;
            }
            borders[i] = border;
        }
        Self { pattern, borders, matched: 0 }
    }

    /// Whether the pattern is complete with this byte.
    fn push(&mut self, byte: u8) -> bool {
        while self.matched > 0 && self.pattern[self.matched] != byte {
            self.matched = self.borders[self.matched - 1];
        }
        if self.pattern[self.matched] == byte {
            self.matched += 1;
        }
        let complete = self.matched == self.pattern.len();
        if complete {
            self.matched = self.borders[self.matched - 1];
        }
        complete
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    fn matcher(stop: &[&str]) -> StopMatcher {
        StopMatcher::new(stop.iter().map(|&s| s.to_owned()).collect())
    }

    /// What is shown of a text that comes in pieces, and whether a stop string was found.
    fn shown(stop: &[&str], pieces: &[&str]) -> (String, bool) {
        let mut matcher = matcher(stop);
        let (mut shown, mut held) = (String::new(), String::new());
        for piece in pieces {
            let before = held.len();
            held.push_str(piece);
            if let Some(found) = matcher.push(piece, true) {
                held.truncate(before + found.end - found.len);
                return (shown + &held, true);
            }
            let keep = matcher.held();
            shown.push_str(&held[..held.len() - keep]);
            held.drain(..held.len() - keep);
        }
        (shown + &held, false)
    }

    /// The definition, by trying everything: the match that ends first, of those the longest.
    fn by_definition(stop: &[&str], text: &str) -> (String, bool) {
        for end in 1..=text.len() {
            let longest = stop.iter().filter(|s| text.as_bytes()[..end].ends_with(s.as_bytes()));
            if let Some(len) = longest.map(|s| s.len()).max() {
                return (text[..end - len].to_owned(), true);
            }
        }
        (text.to_owned(), false)
    }

    #[test]
    fn a_stop_string_over_several_pieces_is_cut_off() {
        assert_eq!(shown(&["</end>"], &["one <", "/e", "nd", "> two"]), ("one ".into(), true));
        assert_eq!(
            shown(&["</end>"], &["one <", "/e", "nt> two"]),
            ("one </ent> two".into(), false)
        );
        assert_eq!(shown(&["\n\n"], &["a\n", "b\n", "\nc"]), ("a\nb".into(), true));
        assert_eq!(shown(&["。"], &["你", "好。", "x"]), ("你好".into(), true));
    }

    #[test]
    fn the_one_complete_first_wins_and_the_longest_at_the_same_place() {
        assert_eq!(shown(&["abcd", "c"], &["xabcd"]), ("xab".into(), true));
        assert_eq!(shown(&["cd", "abcd"], &["xabcd"]), ("x".into(), true));
        assert_eq!(shown(&["late", "early"], &["so early, not late"]), ("so ".into(), true));
    }

    #[test]
    fn what_could_begin_a_stop_string_is_held_and_no_more() {
        let mut stop = matcher(&["aab", "xyz"]);
        for (piece, held) in [("a", 1), ("a", 2), ("a", 2), ("x", 1), ("y", 2), ("q", 0)] {
            assert_eq!(stop.push(piece, true), None);
            assert_eq!(stop.held(), held, "{piece}");
        }
        assert!(!stop.is_empty());
        assert!(matcher(&[""]).is_empty());
    }

    #[test]
    fn an_unarmed_match_does_not_count_but_may_be_begun() {
        let mut stop = matcher(&["ab"]);
        assert_eq!(stop.push("abab", false), None);
        assert_eq!(stop.push("a", false), None);
        assert_eq!(stop.push("b", true), Some(StopMatch { end: 1, len: 2 }));
    }

    #[test]
    fn any_cut_into_pieces_gives_what_the_definition_gives() {
        let letters = ["a", "b", "ab", "é", "你", "🙂"];
        for seed in 0..3_000u64 {
            let mut rng = StdRng::seed_from_u64(seed);
            let mut word = |max: usize| -> String {
                let len = rng.random_range(1..=max);
                (0..len).map(|_| letters[rng.random_range(0..letters.len())]).collect()
            };
            let stop = [word(4), word(3), word(6)];
            let stop: Vec<&str> = stop.iter().map(String::as_str).collect();
            let pieces: Vec<String> = (0..12).map(|_| word(3)).collect();
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            assert_eq!(
                shown(&stop, &pieces),
                by_definition(&stop, &pieces.concat()),
                "seed {seed}: {stop:?} in {pieces:?}"
            );
        }
    }
}
