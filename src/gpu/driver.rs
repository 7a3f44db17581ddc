//! The GPUs as CUDA's driver has them, through `cudarc`. Its library is opened at run time, so a binary starts where there is none.

use std::sync::Arc;

use cudarc::driver::CudaContext;
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUdevice, CUdevice_attribute_enum as Attribute};

use super::{Card, Memory};

/// The oldest driver that runs this build's kernels, by the CUDA that it is of: 1,000 times the major version.
const LEAST_VERSION: i32 = 13_000;

/// Every card, by ordinal; none where the machine has none.
///
/// # Errors
/// One line that says why they cannot be listed: no driver, or one too old.
pub(super) fn cards() -> Result<Vec<Card>, String> {
    match open() {
        Err(Closed::NoCard) => Ok(Vec::new()),
        Err(Closed::Because(reason)) => Err(reason),
        Ok(()) => (0..result::device::get_count().map_err(words)?).map(card).collect(),
    }
}

enum Closed {
    NoCard,
    Because(String),
}

/// Opens the driver; cheap when it is open.
fn open() -> Result<(), Closed> {
    // SAFETY: opens a library and closes it again; its initialisers are the driver's, which may run on any thread.
    #[allow(unsafe_code)]
    let is_there = unsafe { sys::is_culib_present() };
    if !is_there {
        return Err(Closed::Because("there is no CUDA driver (libcuda.so)".to_owned()));
    }
    match result::init() {
        Ok(()) => {}
        Err(DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => return Err(Closed::NoCard),
        Err(error) => return Err(Closed::Because(words(error))),
    }
    let mut version = 0;
    // SAFETY: writes one integer.
    #[allow(unsafe_code)]
    let asked = unsafe { sys::cuDriverGetVersion(&raw mut version) };
    asked.result().map_err(|error| Closed::Because(words(error)))?;
    if version < LEAST_VERSION {
        let of_cuda = |version: i32| format!("{}.{}", version / 1000, version % 1000 / 10);
        let (least, got) = (of_cuda(LEAST_VERSION), of_cuda(version));
        let reason = format!("expected a driver of CUDA {least} or later, got one of {got}");
        return Err(Closed::Because(reason));
    }
    Ok(())
}

fn card(ordinal: i32) -> Result<Card, String> {
    let device = result::device::get(ordinal).map_err(words)?;
    let number = |which| attribute(device, which);
    let place = [
        number(Attribute::CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID)?,
        number(Attribute::CU_DEVICE_ATTRIBUTE_PCI_BUS_ID)?,
        number(Attribute::CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID)?,
    ];
    Ok(Card {
        name: result::device::get_name(device).map_err(words)?,
        pci_bus_id: format!("{:08X}:{:02X}:{:02X}.0", place[0], place[1], place[2]),
        // -1 is the driver's word for "unknown".
        numa_node: number(Attribute::CU_DEVICE_ATTRIBUTE_HOST_NUMA_ID)
            .ok()
            .and_then(|node| u32::try_from(node).ok()),
        capability: (
            number(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            number(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
    })
}

fn attribute(device: CUdevice, which: Attribute) -> Result<i32, String> {
    // SAFETY: `device` is the driver's own, from `device::get`.
    #[allow(unsafe_code)]
    let value = unsafe { result::device::get_attribute(device, which) };
    value.map_err(words)
}

/// A card's primary context, held.
pub(super) type Held = Arc<CudaContext>;

/// Makes the card's primary context the calling thread's current one.
///
/// # Errors
/// What the driver says.
pub(super) fn enter(ordinal: u32) -> Result<Held, String> {
    CudaContext::new(ordinal as usize).map_err(words)
}

/// The memory of the card.
///
/// # Errors
/// What the driver says.
pub(super) fn memory(context: &Held) -> Result<Memory, String> {
    let (free, total) = context.mem_get_info().map_err(words)?;
    Ok(Memory { total_bytes: total as u64, free_bytes: free as u64 })
}

/// Such as `out of memory (CUDA_ERROR_OUT_OF_MEMORY)`.
fn words(error: DriverError) -> String {
    match error.error_string() {
        Ok(text) => format!("{} ({:?})", text.to_string_lossy(), error.0),
        Err(_) => format!("{:?}", error.0),
    }
}
