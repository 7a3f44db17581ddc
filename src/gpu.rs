//! The GPUs of this machine: which the CUDA runtime sees, what the driver's management library (NVML) reads of them, and how much of
//! their memory a node takes.

use std::sync::OnceLock;

use serde::Serialize;

use crate::bridge::{DeviceError, ffi};
use crate::memory::PoolSize;

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
    pub capability: (u32, u32),
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

/// The oldest cards that the kernels are built for, as `cpp/engine/cuda/cuda_backend.cc` has it.
const LEAST_CAPABILITY: (u32, u32) = (8, 0);

/// One part in this many of a card stays free of the pool: who watches the card wants it under 95 % full.
const KEPT_SHARE: u64 = 20;
/// What a node takes on a card beside its pool: the CUDA context, the kernels' code, recorded graphs, cuBLASLt.
const BESIDE_THE_POOL_BYTES: u64 = 3 << 29;

/// The GPUs that the CUDA runtime sees, by ordinal: `cuda:N`. Asked once: they do not come and go while a process runs.
///
/// # Errors
/// One line that says why they cannot be listed: no CUDA in this build, no driver, one too old.
pub fn cards() -> Result<&'static [Card], String> {
    static CARDS: OnceLock<Result<Vec<Card>, String>> = OnceLock::new();
    let cards = CARDS.get_or_init(|| {
        let kinds = ffi::gpu_kinds().map_err(|error| DeviceError::from(error).message)?;
        Ok(kinds.into_iter().map(Card::from).collect())
    });
    cards.as_deref().map_err(Clone::clone)
}

impl From<ffi::GpuKind> for Card {
    fn from(kind: ffi::GpuKind) -> Self {
        Self {
            name: kind.name,
            numa_node: numa_node(&kind.bus_id),
            pci_bus_id: kind.bus_id,
            capability: (kind.major, kind.minor),
        }
    }
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
    if !ffi::has_cuda() {
        return None;
    }
    match cards() {
        Ok([]) => Some("the CUDA runtime sees none".to_owned()),
        Ok(cards) if usable_of(cards).is_empty() => {
            Some("the kernels run on none of them".to_owned())
        }
        Ok(_) => None,
        Err(reason) => Some(reason),
    }
}

/// The memory of `cuda:<ordinal>`, from the CUDA runtime where NVML does not answer.
///
/// # Errors
/// One line that says why it cannot be read.
pub fn memory(ordinal: u32) -> Result<Memory, String> {
    let bus_id = &card(ordinal)?.pci_bus_id;
    nvml::memory(bus_id).or_else(|nvml| match ffi::gpu_memory(ordinal) {
        Ok(memory) => Ok(Memory { total_bytes: memory.total_bytes, free_bytes: memory.free_bytes }),
        Err(error) => {
            let runtime = DeviceError::from(error).message;
            Err(format!("cuda:{ordinal}: {nvml}; the CUDA runtime: {runtime}"))
        }
    })
}

/// The sensors of `cuda:<ordinal>`.
///
/// # Errors
/// One line that says why they cannot be read.
pub fn readings(ordinal: u32) -> Result<CardReadings, String> {
    let bus_id = &card(ordinal)?.pci_bus_id;
    nvml::readings(bus_id).map_err(|error| format!("cuda:{ordinal}: {error}"))
}

fn card(ordinal: u32) -> Result<&'static Card, String> {
    let cards = cards().map_err(|reason| format!("cuda:{ordinal}: {reason}"))?;
    let card = cards.get(ordinal as usize);
    card.ok_or_else(|| format!("cuda:{ordinal}: this machine has {} GPUs", cards.len()))
}

/// What a node may reserve of a card: what is free, less a twentieth of the card and what the node takes beside its pool. So the
/// card stays under 95 % full, whoever else is on it, other nodes included.
///
/// # Errors
/// One line with what is free and what there is, where nothing is left.
pub fn pool_of(memory: Memory) -> Result<u64, String> {
    let Memory { total_bytes, free_bytes } = memory;
    let kept = total_bytes.div_ceil(KEPT_SHARE).saturating_add(BESIDE_THE_POOL_BYTES);
    free_bytes.checked_sub(kept).filter(|pool| *pool > 0).ok_or_else(|| {
        format!(
            "nothing is left for a pool: {} free of {}, and {} of that are kept free of pools",
            size(free_bytes),
            size(total_bytes),
            size(kept)
        )
    })
}

/// What a node reserves on each of these GPUs, the same on all: what `executor.memory_pool_size` asks for (a share: of the smallest), else
/// what the fullest can give.
///
/// # Errors
/// One line: a GPU that is not there or has no room, or more asked for than [`pool_of`] allows.
pub fn pool_bytes(ordinals: &[u32], asked: Option<PoolSize>) -> Result<u64, String> {
    let mut gpus = Vec::new();
    for &ordinal in ordinals {
        let called = card(ordinal)?.called(ordinal);
        match memory(ordinal) {
            Ok(memory) => gpus.push((called, memory)),
            // Then the reservation itself is the check.
            Err(reason) if matches!(asked, Some(PoolSize::Bytes(_))) => {
                tracing::warn!(reason, "executor.memory_pool_size is not held against the card");
            }
            Err(reason) => return Err(reason),
        }
    }
    pool_among(&gpus, asked)
}

fn pool_among(gpus: &[(String, Memory)], asked: Option<PoolSize>) -> Result<u64, String> {
    let mut least = None;
    for (called, memory) in gpus {
        let pool = pool_on(*memory, asked).map_err(|reason| match asked {
            Some(_) => format!("executor.memory_pool_size: {called}: {reason}"),
            None => format!("{called}: {reason}"),
        })?;
        least = Some(least.map_or(pool, |least: u64| least.min(pool)));
    }
    Ok(least.unwrap_or_else(|| asked.map_or(0, |asked| asked.of(0))))
}

fn pool_on(memory: Memory, asked: Option<PoolSize>) -> Result<u64, String> {
    let Some(asked) = asked else { return pool_of(memory) };
    let wanted = asked.of(memory.total_bytes);
    let most = pool_of(memory).map_err(|reason| format!("asked for {}, {reason}", size(wanted)))?;
    if wanted > most {
        let (free, total) = (size(memory.free_bytes), size(memory.total_bytes));
        let (wanted, most) = (size(wanted), size(most));
        return Err(format!(
            "asked for {wanted}, at most {most} may be taken ({free} free of {total})"
        ));
    }
    Ok(wanted)
}

/// Exact, and at a glance.
fn size(bytes: u64) -> String {
    format!("{bytes} bytes ({:.2} GiB)", bytes as f64 / (1_u64 << 30) as f64)
}

/// The NUMA node of a PCI device, as the kernel says it.
fn numa_node(bus_id: &str) -> Option<u32> {
    let text = std::fs::read_to_string(numa_file(bus_id)?);
    // -1 is the kernel's word for "unknown".
    text.ok()?.trim().parse().ok()
}

/// The kernel's file names the card in small letters and with four digits of domain.
fn numa_file(bus_id: &str) -> Option<String> {
    let (domain, rest) = bus_id.split_once(':')?;
    let domain = &domain[domain.len().saturating_sub(4)..];
    let card = format!("{domain}:{rest}").to_lowercase();
    Some(format!("/sys/bus/pci/devices/{card}/numa_node"))
}

#[cfg(feature = "cuda")]
mod nvml {
    use nvml_wrapper::enum_wrappers::device::{EccCounter, MemoryError, TemperatureSensor};
    use nvml_wrapper::error::NvmlError;
    use nvml_wrapper::{Device, Nvml};

    use super::{CardReadings, Memory, OnceLock};

    /// What `read` makes of the card.
    fn ask<T>(
        bus_id: &str,
        read: impl FnOnce(Device<'static>) -> Result<T, NvmlError>,
    ) -> Result<T, String> {
        // Opened at run time, once.
        static LIBRARY: OnceLock<Result<Nvml, String>> = OnceLock::new();
        let library = LIBRARY.get_or_init(|| Nvml::init().map_err(|error| error.to_string()));
        let library = library.as_ref().map_err(|error| format!("NVML: {error}"))?;
        let device = library.device_by_pci_bus_id(bus_id);
        device.and_then(read).map_err(|error| format!("NVML: {bus_id}: {error}"))
    }

    pub(super) fn memory(bus_id: &str) -> Result<Memory, String> {
        ask(bus_id, |device| {
            let memory = device.memory_info()?;
            Ok(Memory { total_bytes: memory.total, free_bytes: memory.free })
        })
    }

    pub(super) fn readings(bus_id: &str) -> Result<CardReadings, String> {
        ask(bus_id, |device| {
            let memory = device.memory_info()?;
            let ecc = device.total_ecc_errors(MemoryError::Uncorrected, EccCounter::Volatile);
            Ok(CardReadings {
                memory_used_bytes: memory.used,
                memory_total_bytes: memory.total,
                utilisation: device.utilization_rates()?.gpu,
                temperature: device.temperature(TemperatureSensor::Gpu)?,
                ecc_uncorrected: ecc.ok(),
            })
        })
    }
}

#[cfg(not(feature = "cuda"))]
mod nvml {
    use super::{CardReadings, Memory};

    const NONE: &str = "this build has no CUDA";

    pub(super) fn memory(_: &str) -> Result<Memory, String> {
        Err(NONE.to_owned())
    }

    pub(super) fn readings(_: &str) -> Result<CardReadings, String> {
        Err(NONE.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::ByteSize;

    const GIB: u64 = 1 << 30;

    fn gpu(total_gib: u64, free_gib: u64) -> Memory {
        Memory { total_bytes: total_gib * GIB, free_bytes: free_gib * GIB }
    }

    fn bytes(bytes: u64) -> Option<PoolSize> {
        Some(PoolSize::Bytes(ByteSize(bytes)))
    }

    fn card(capability: (u32, u32)) -> Card {
        let (name, pci_bus_id) = ("A card".to_owned(), "00000000:1B:00.0".to_owned());
        Card { name, pci_bus_id, numa_node: None, capability }
    }

    #[test]
    fn the_pool_leaves_a_twentieth_of_the_card_and_what_the_node_takes_beside_it() {
        assert_eq!(pool_of(gpu(80, 80)), Ok(80 * GIB - 4 * GIB - 3 * GIB / 2));
        assert_eq!(pool_of(gpu(80, 30)), Ok(30 * GIB - 4 * GIB - 3 * GIB / 2));
    }

    #[test]
    fn a_card_with_several_nodes_stays_under_95_percent() {
        let mut memory = gpu(80, 78);
        // A small one first, then one that takes all that it may, then one too many.
        for asked in [bytes(10 * GIB), None] {
            let taken = pool_among(&[("cuda:0".to_owned(), memory)], asked).expect("room");
            memory.free_bytes -= taken + BESIDE_THE_POOL_BYTES;
        }
        let used = memory.total_bytes - memory.free_bytes;
        assert!(used * 100 <= memory.total_bytes * 95, "{used}");
        assert!(pool_of(memory).is_err());
    }

    #[test]
    fn a_card_without_room_says_what_is_free_and_what_there_is() {
        for free in [0, 5] {
            let reason = pool_of(gpu(80, free)).expect_err("4 GiB and 1.5 GiB are kept");
            let (free, total) = (size(free * GIB), size(80 * GIB));
            assert!(reason.contains(&free) && reason.contains(&total), "{reason}");
        }
        assert!(pool_of(Memory { total_bytes: u64::MAX, free_bytes: u64::MAX }).is_ok());
        let kept = 80 * GIB / 20 + BESIDE_THE_POOL_BYTES;
        assert!(pool_of(Memory { total_bytes: 80 * GIB, free_bytes: kept }).is_err());
    }

    #[test]
    fn a_configured_pool_is_kept_or_refused_with_key_card_and_numbers() {
        let gpus = [("cuda:0 (A)".to_owned(), gpu(80, 80)), ("cuda:1 (B)".to_owned(), gpu(80, 40))];
        let most = pool_of(gpu(80, 40)).expect("room");
        assert_eq!(pool_among(&gpus, bytes(GIB)), Ok(GIB));
        assert_eq!(pool_among(&gpus, bytes(most)), Ok(most));
        let reason = pool_among(&gpus, bytes(most + 1)).expect_err("one byte too many");
        for part in ["executor.memory_pool_size", "cuda:1 (B)", &size(most + 1), &size(most)] {
            assert!(reason.contains(part), "{part} in {reason}");
        }
        let full = [("cuda:0".to_owned(), gpu(80, 1))];
        let reason = pool_among(&full, bytes(GIB)).expect_err("no room");
        assert!(reason.starts_with("executor.memory_pool_size: cuda:0: asked for"), "{reason}");
        // No figures: what is asked for is tried.
        assert_eq!(pool_among(&[], bytes(GIB)), Ok(GIB));
    }

    #[test]
    fn a_share_is_of_the_smallest_card_and_refused_where_one_has_no_room_for_it() {
        let gpus = [("cuda:0".to_owned(), gpu(80, 80)), ("cuda:1".to_owned(), gpu(40, 30))];
        assert_eq!(pool_among(&gpus, Some(PoolSize::Share(50))), Ok(20 * GIB));
        let reason = pool_among(&gpus, Some(PoolSize::Share(80))).expect_err("32 of 30 GiB");
        for part in ["executor.memory_pool_size: cuda:1", &size(32 * GIB), &size(30 * GIB)] {
            assert!(reason.contains(part), "{part} in {reason}");
        }
    }

    #[test]
    fn the_pool_is_what_the_fullest_card_can_give() {
        let gpus = [("cuda:0".to_owned(), gpu(80, 80)), ("cuda:1".to_owned(), gpu(80, 40))];
        assert_eq!(pool_among(&gpus, None), pool_of(gpu(80, 40)));
        let full = [gpus[0].clone(), ("cuda:1".to_owned(), gpu(80, 2))];
        assert!(pool_among(&full, None).expect_err("no room").starts_with("cuda:1: "));
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
    fn the_numa_node_is_looked_up_as_the_kernel_names_the_card() {
        let file = numa_file("00000000:1B:00.0").expect("an address");
        assert_eq!(file, "/sys/bus/pci/devices/0000:1b:00.0/numa_node");
        assert_eq!((numa_file("card"), numa_node("00000000:FF:1F.7")), (None, None));
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
    fn a_gpu_that_is_not_there_has_no_readings_and_no_pool() {
        assert!(readings(4096).is_err());
        assert!(memory(4096).is_err());
        assert!(pool_bytes(&[4096], None).is_err());
        assert!(pool_bytes(&[4096], Some(PoolSize::Share(1))).is_err());
    }
}
