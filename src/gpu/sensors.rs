//! What the driver's management library (NVML) reads of a card; opened at run time, once.

use std::sync::OnceLock;

use nvml_wrapper::Nvml;
use nvml_wrapper::enum_wrappers::device::{EccCounter, MemoryError, TemperatureSensor};
use nvml_wrapper::error::NvmlError;

use super::CardReadings;

/// Of the card with this PCI address.
///
/// # Errors
/// One line that says why it cannot be read.
pub(super) fn readings(pci_bus_id: &str) -> Result<CardReadings, String> {
    read(library()?, pci_bus_id).map_err(|error| format!("NVML: {pci_bus_id}: {error}"))
}

fn library() -> Result<&'static Nvml, String> {
    static LIBRARY: OnceLock<Result<Nvml, String>> = OnceLock::new();
    let library = LIBRARY.get_or_init(|| Nvml::init().map_err(|error| error.to_string()));
    library.as_ref().map_err(|error| format!("NVML: {error}"))
}

fn read(library: &Nvml, pci_bus_id: &str) -> Result<CardReadings, NvmlError> {
    let device = library.device_by_pci_bus_id(pci_bus_id)?;
    let memory = device.memory_info()?;
    let ecc = device.total_ecc_errors(MemoryError::Uncorrected, EccCounter::Volatile);
    Ok(CardReadings {
        memory_used_bytes: memory.used,
        memory_total_bytes: memory.total,
        utilisation: device.utilization_rates()?.gpu,
        temperature: device.temperature(TemperatureSensor::Gpu)?,
        ecc_uncorrected: ecc.ok(),
    })
}
