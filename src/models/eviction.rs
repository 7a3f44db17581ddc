//! Which idle models make room: the least recently used first, as few as it takes.

/// A model on a device, as the policy sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its alias.
    pub name: String,
    /// Requests running or waiting.
    pub in_use: u64,
    /// The last admission, in microseconds.
    pub last_used: u64,
    /// What it gives back there.
    pub bytes: u64,
}

/// The models to unload so that `missing_bytes` become free, oldest use first; `None` if all idle models together do not give
/// so much (then none is to be touched).
pub fn victims(candidates: &[Candidate], missing_bytes: u64) -> Option<Vec<String>> {
    let mut idle: Vec<&Candidate> = candidates.iter().filter(|c| c.in_use == 0).collect();
    // The name decides between equals, so that the choice does not depend on the order of a table.
    idle.sort_by(|a, b| (a.last_used, &a.name).cmp(&(b.last_used, &b.name)));
    let mut freed = 0_u64;
    let mut chosen = Vec::new();
    for candidate in idle {
        if freed >= missing_bytes {
            break;
        }
        freed = freed.saturating_add(candidate.bytes);
        chosen.push(candidate);
    }
    if freed < missing_bytes {
        return None;
    }
    // One taken early may turn out to be spare beside a large one taken later.
    let mut kept = Vec::with_capacity(chosen.len());
    for candidate in chosen.iter().rev() {
        if freed - candidate.bytes.min(freed) >= missing_bytes {
            freed -= candidate.bytes;
        } else {
            kept.push(candidate.name.clone());
        }
    }
    kept.reverse();
    Some(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(name: &str, in_use: u64, last_used: u64, bytes: u64) -> Candidate {
        Candidate { name: name.to_owned(), in_use, last_used, bytes }
    }

    #[test]
    fn the_least_recently_used_goes_first() {
        let models = [model("new", 0, 9, 10), model("old", 0, 1, 10), model("mid", 0, 5, 10)];
        assert_eq!(victims(&models, 10), Some(vec!["old".to_owned()]));
        assert_eq!(victims(&models, 11), Some(vec!["old".to_owned(), "mid".to_owned()]));
    }

    #[test]
    fn a_model_in_use_stays() {
        let models = [model("busy", 1, 0, 100), model("idle", 0, 9, 10)];
        assert_eq!(victims(&models, 10), Some(vec!["idle".to_owned()]));
        assert_eq!(victims(&models, 11), None);
    }

    #[test]
    fn nothing_is_evicted_without_need_and_nothing_in_vain() {
        let models = [model("small", 0, 0, 5), model("large", 0, 1, 100)];
        assert_eq!(victims(&models, 0), Some(vec![]));
        assert_eq!(victims(&models, 100), Some(vec!["large".to_owned()]));
        assert_eq!(victims(&[], 1), None);
    }

    #[test]
    fn equals_go_by_name() {
        let models = [model("b", 0, 3, 10), model("a", 0, 3, 10)];
        assert_eq!(victims(&models, 1), Some(vec!["a".to_owned()]));
    }
}
