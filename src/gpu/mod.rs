//! The GPUs of this machine: which the driver sees, what its management library (NVML) reads of them, the context in which a thread
//! computes on one, and how much of their memory a node takes.

use std::sync::OnceLock;

use serde::Serialize;

#[cfg(feature = "cuda")]
mod driver;
#[cfg(not(feature = "cuda"))]
#[path = "no_driver.rs"]
mod driver;
mod pool;
#[cfg(feature = "cuda")]
mod sensors;
#[cfg(not(feature = "cuda"))]
use driver as sensors;

pub use pool::{pool_bytes, pool_of};

/// Whether this build has the kernels for GPUs.
pub const BUILT_IN: bool = cfg!(feature = "cuda");

/// What a GPU is: the same for as long as the process runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Card {
    /// Such as "NVIDIA H200".
    pub name: String,
    /// PCI address, `00000000:1B:00.0`.
    pub pci_bus_id: String,
    /// The NUMA node that it hangs on, where the system knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub numa_node: Option<u32>,
    /// Compute capability, major and minor.
    #[serde(skip)]
    pub capability: (i32, i32),
}

/// A GPU's memory at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// All of it.
    pub total_bytes: u64,
    /// What nobody has taken.
    pub free_bytes: u64,
}

/// What a GPU's sensors and counters say now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct CardReadings {
    /// Memory in use, by everyone on the card.
    pub memory_used_bytes: u64,
    /// All of it.
    pub memory_total_bytes: u64,
    /// Share of the last sampling period in which a kernel ran, in percent.
    pub utilisation: u32,
    /// Degrees Celsius.
    pub temperature: u32,
    /// Memory errors since the driver was loaded that ECC could not correct; absent where ECC is off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ecc_uncorrected: Option<u64>,
}

/// The oldest cards that the kernels are built for (compute capability).
const LEAST_CAPABILITY: (i32, i32) = (8, 0);

/// The GPUs that the driver sees, by ordinal: `cuda:N`. Asked once: they do not come and go while a process runs.
///
/// # Errors
/// One line that says why they cannot be listed: no CUDA in this build, no driver, one too old.
pub fn cards() -> Result<&'static [Card], String> {
    static CARDS: OnceLock<Result<Vec<Card>, String>> = OnceLock::new();
    CARDS.get_or_init(driver::cards).as_deref().map_err(Clone::clone)
}

impl Card {
    /// Why the engine's kernels do not run on it.
    pub fn why_not(&self) -> Option<String> {
        let (major, minor) = self.capability;
        let (least_major, least_minor) = LEAST_CAPABILITY;
        (self.capability < LEAST_CAPABILITY).then(|| {
            format!(
                "expected compute capability {least_major}.{least_minor} or later, got {major}.{minor}"
            )
        })
    }

    /// `cuda:0 (NVIDIA H200)`.
    fn called(&self, ordinal: u32) -> String {
        format!("cuda:{ordinal} ({})", self.name)
    }
}

/// The GPUs that the kernels run on, by number; none where this build or machine has none.
pub fn usable() -> Vec<u32> {
    cards().map_or_else(|_| Vec::new(), usable_of)
}

fn usable_of(cards: &[Card]) -> Vec<u32> {
    let cards = (0..).zip(cards);
    cards.filter(|(_, card)| card.why_not().is_none()).map(|(ordinal, _)| ordinal).collect()
}

/// The other GPUs, and why, a line each.
pub fn left_out() -> Vec<String> {
    cards().map_or_else(|_| Vec::new(), left_out_of)
}

fn left_out_of(cards: &[Card]) -> Vec<String> {
    let reason = |(ordinal, card): (u32, &Card)| {
        card.why_not().map(|reason| format!("{}: {reason}", card.called(ordinal)))
    };
    (0..).zip(cards).filter_map(reason).collect()
}

/// Why a build with CUDA has no GPU to take, in one line; `None` where it has one, or has no CUDA.
pub fn why_none() -> Option<String> {
    if !BUILT_IN {
        return None;
    }
    match cards() {
        Ok([]) => Some("the driver sees none".to_owned()),
        Ok(cards) if usable_of(cards).is_empty() => {
            Some("the kernels run on none of them".to_owned())
        }
        Ok(_) => None,
        Err(reason) => Some(reason),
    }
}

/// The primary context of a card, which CUDA's runtime shares: the thread that entered it computes there. Given back when its last
/// holder in the process drops it.
pub struct PrimaryContext(driver::Held);

/// Makes the primary context of `cuda:<ordinal>` the calling thread's, for as long as it holds the answer.
///
/// # Errors
/// One line: a card that is not there, on which the kernels do not run, or what the driver says.
pub fn enter(ordinal: u32) -> Result<PrimaryContext, String> {
    let reason = match card(ordinal)?.why_not() {
        Some(reason) => reason,
        None => match driver::enter(ordinal) {
            Ok(context) => return Ok(PrimaryContext(context)),
            Err(reason) => reason,
        },
    };
    Err(format!("cuda:{ordinal}: {reason}"))
}

/// The memory of `cuda:<ordinal>`. Makes a context there for the moment, on a thread of its own: the caller's stays as it is.
///
/// # Errors
/// One line that says why it cannot be read.
pub fn memory(ordinal: u32) -> Result<Memory, String> {
    let named = |reason| format!("cuda:{ordinal}: {reason}");
    let read = || enter(ordinal).and_then(|context| driver::memory(&context.0).map_err(named));
    let read = std::thread::scope(|scope| scope.spawn(read).join());
    read.unwrap_or_else(|_| Err(format!("cuda:{ordinal}: the driver's binding panicked")))
}

/// The sensors of `cuda:<ordinal>`.
///
/// # Errors
/// One line that says why they cannot be read.
pub fn readings(ordinal: u32) -> Result<CardReadings, String> {
    let bus_id = &card(ordinal)?.pci_bus_id;
    sensors::readings(bus_id).map_err(|error| format!("cuda:{ordinal}: {error}"))
}

/// What `cuda:<ordinal>` is, such as "NVIDIA H200"; none where it is not there.
pub fn name(ordinal: u32) -> Option<String> {
    card(ordinal).ok().map(|card| card.name.clone())
}

fn card(ordinal: u32) -> Result<&'static Card, String> {
    let cards = cards().map_err(|reason| format!("cuda:{ordinal}: {reason}"))?;
    let card = cards.get(ordinal as usize);
    card.ok_or_else(|| format!("cuda:{ordinal}: this machine has {} GPUs", cards.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card(capability: (i32, i32)) -> Card {
        let (name, pci_bus_id) = ("A card".to_owned(), "00000000:1B:00.0".to_owned());
        Card { name, pci_bus_id, numa_node: None, capability }
    }

    #[test]
    fn cards_that_the_kernels_do_not_run_on_are_left_out() {
        let cards = [card((8, 0)), card((7, 5)), card((9, 0))];
        assert_eq!((usable_of(&cards), usable_of(&cards[1..2])), (vec![0, 2], vec![]));
        let lines = left_out_of(&cards);
        let parts = ["cuda:1 (A card)", "got 7.5", "8.0"];
        assert_eq!(lines.len(), 1);
        assert!(parts.iter().all(|part| lines[0].contains(part)), "{lines:?}");
        assert_eq!(left_out_of(&cards[2..]), [""; 0]);
    }

    #[test]
    fn what_cannot_be_listed_says_why() {
        match cards() {
            Ok(cards) => assert_eq!(usable().len() + left_out().len(), cards.len()),
            Err(reason) => {
                assert!(!reason.is_empty() && !reason.contains('\n'), "{reason}");
                assert_eq!(usable().len() + left_out().len(), 0);
            }
        }
    }

    #[test]
    fn a_gpu_that_is_not_there_has_no_readings_no_memory_and_no_context() {
        for reason in [
            readings(4096).map(drop).expect_err("no such card"),
            memory(4096).map(drop).expect_err("no such card"),
            enter(4096).map(drop).expect_err("no such card"),
        ] {
            assert!(reason.starts_with("cuda:4096: "), "{reason}");
        }
    }
}
