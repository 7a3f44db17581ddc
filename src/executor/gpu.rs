//! The GPUs of this machine: which the CUDA runtime sees, and what the driver's management library (NVML) reads of them.

use std::sync::OnceLock;

use serde::Serialize;

use crate::bridge::{DeviceError, ffi};

/// One GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Gpu {
    /// The CUDA runtime's number: `cuda:N`.
    pub ordinal: u32,
    /// Such as "NVIDIA H200".
    pub name: String,
    /// PCI address, `00000000:1B:00.0`.
    pub bus_id: String,
    /// All of its memory.
    pub total_bytes: u64,
    /// What nobody has taken.
    pub free_bytes: u64,
    /// The NUMA node that it hangs on, where the system knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub numa_node: Option<u32>,
}

/// What a GPU's sensors and counters say now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Readings {
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

/// PCI bus ids by ordinal, or why there are none. Asked once: GPUs do not come and go while a process runs.
fn bus_ids() -> &'static Result<Vec<String>, String> {
    static IDS: OnceLock<Result<Vec<String>, String>> = OnceLock::new();
    IDS.get_or_init(|| ffi::gpu_bus_ids().map_err(|error| DeviceError::from(error).message))
}

/// How many GPUs the CUDA runtime sees; 0 where this build or machine has none.
pub fn count() -> u32 {
    bus_ids().as_ref().map_or(0, |ids| ids.len() as u32)
}

/// Why a build with CUDA sees no GPU, in one line; `None` where it sees one, or has no CUDA.
pub fn why_none() -> Option<String> {
    if !ffi::has_cuda() {
        return None;
    }
    match bus_ids() {
        Ok(ids) if ids.is_empty() => Some("the CUDA runtime sees none".to_owned()),
        Ok(_) => None,
        Err(reason) => Some(reason.clone()),
    }
}

#[cfg(feature = "cuda")]
mod nvml {
    use nvml_wrapper::Nvml;
    use nvml_wrapper::enum_wrappers::device::{EccCounter, MemoryError, TemperatureSensor};

    use super::{Gpu, OnceLock, Readings, bus_ids};

    /// Opened at run time, once.
    fn library() -> Result<&'static Nvml, String> {
        static LIBRARY: OnceLock<Result<Nvml, String>> = OnceLock::new();
        let library = LIBRARY.get_or_init(|| Nvml::init().map_err(|error| error.to_string()));
        library.as_ref().map_err(|error| format!("NVML: {error}"))
    }

    fn device(bus_id: &str) -> Result<nvml_wrapper::Device<'static>, String> {
        library()?.device_by_pci_bus_id(bus_id).map_err(|error| format!("NVML: {bus_id}: {error}"))
    }

    /// The kernel's file names the card in small letters and with four digits of domain.
    fn numa_node(bus_id: &str) -> Option<u32> {
        let (domain, rest) = bus_id.split_once(':')?;
        let domain = &domain[domain.len().saturating_sub(4)..];
        let card = format!("{domain}:{rest}").to_lowercase();
        let text = std::fs::read_to_string(format!("/sys/bus/pci/devices/{card}/numa_node"));
        // -1 is the kernel's word for "unknown".
        text.ok()?.trim().parse().ok()
    }

    pub(super) fn list() -> Result<Vec<Gpu>, String> {
        let ids = bus_ids().as_ref().map_err(Clone::clone)?;
        let of = |(ordinal, bus_id): (usize, &String)| {
            let device = device(bus_id)?;
            let memory = device.memory_info().map_err(|error| format!("NVML: {error}"))?;
            Ok(Gpu {
                ordinal: ordinal as u32,
                name: device.name().map_err(|error| format!("NVML: {error}"))?,
                numa_node: numa_node(bus_id),
                bus_id: bus_id.clone(),
                total_bytes: memory.total,
                free_bytes: memory.free,
            })
        };
        ids.iter().enumerate().map(of).collect()
    }

    pub(super) fn readings(ordinal: u32) -> Result<Readings, String> {
        let ids = bus_ids().as_ref().map_err(Clone::clone)?;
        let bus_id = ids.get(ordinal as usize).ok_or_else(|| format!("no cuda:{ordinal}"))?;
        let read = || {
            let device = device(bus_id)?;
            let memory = device.memory_info().map_err(|error| error.to_string())?;
            let utilisation = device.utilization_rates().map_err(|error| error.to_string())?;
            let temperature =
                device.temperature(TemperatureSensor::Gpu).map_err(|error| error.to_string())?;
            Ok(Readings {
                memory_used_bytes: memory.used,
                memory_total_bytes: memory.total,
                utilisation: utilisation.gpu,
                temperature,
                ecc_uncorrected: device
                    .total_ecc_errors(MemoryError::Uncorrected, EccCounter::Volatile)
                    .ok(),
            })
        };
        read().map_err(|error: String| format!("cuda:{ordinal}: {error}"))
    }
}

/// The GPUs, by ordinal.
///
/// # Errors
/// One line that says why they cannot be listed: no CUDA in this build, no driver, one too old.
pub fn list() -> Result<Vec<Gpu>, String> {
    #[cfg(feature = "cuda")]
    return nvml::list();
    #[cfg(not(feature = "cuda"))]
    bus_ids().as_ref().map(|_| Vec::new()).map_err(Clone::clone)
}

/// Share of a GPU's free memory that a node takes by default: the driver and a peak need the rest.
const POOL_PERCENT: u64 = 92;

/// What a node reserves on each of these GPUs where the configuration does not say: as much as all of them can give.
///
/// # Errors
/// One line that says why that is not known.
pub fn pool_bytes(ordinals: &[u32]) -> Result<u64, String> {
    let gpus = list()?;
    let free = |ordinal: &u32| {
        let gpu = gpus.get(*ordinal as usize);
        gpu.map(|gpu| gpu.free_bytes)
            .ok_or_else(|| format!("cuda:{ordinal}: this machine has {} GPUs", gpus.len()))
    };
    let all = ordinals.iter().map(free).collect::<Result<Vec<u64>, String>>()?;
    Ok(all.into_iter().min().unwrap_or(0) / 100 * POOL_PERCENT)
}

/// The sensors of `cuda:<ordinal>`.
///
/// # Errors
/// One line that says why they cannot be read.
pub fn readings(ordinal: u32) -> Result<Readings, String> {
    #[cfg(feature = "cuda")]
    return nvml::readings(ordinal);
    #[cfg(not(feature = "cuda"))]
    Err(format!("cuda:{ordinal}: this build has no CUDA"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_listed_says_why() {
        match list() {
            Ok(gpus) => assert_eq!(gpus.len(), count() as usize),
            Err(reason) => {
                assert!(!reason.is_empty() && !reason.contains('\n'), "{reason}");
                assert_eq!(count(), 0);
            }
        }
    }

    #[test]
    fn a_gpu_that_is_not_there_has_no_readings() {
        assert!(readings(4096).is_err());
    }
}
