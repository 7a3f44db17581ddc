//! What a device is usually made with.

use super::ffi::{self, Isa};

/// Instruction sets of CPU devices, from the narrowest to the widest: of those that a machine has, it takes the last.
pub const ISAS: [Isa; 5] = [Isa::Portable, Isa::Avx2, Isa::AvxVnni, Isa::Avx512Bf16, Isa::Amx];

impl ffi::DeviceOptions {
    /// A CPU device.
    pub fn cpu(num_threads: u32, isa: ffi::Isa, pool_bytes: u64) -> Self {
        Self {
            num_threads,
            isa,
            pool_bytes,
            backend: ffi::Backend::Cpu,
            attention: ffi::AttentionBackend::Auto,
            deterministic: false,
        }
    }

    /// The GPU of the calling thread's context, its weights copied by so many threads.
    pub fn cuda(num_threads: u32, pool_bytes: u64) -> Self {
        Self {
            num_threads,
            isa: ffi::Isa::Auto,
            pool_bytes,
            backend: ffi::Backend::Cuda,
            attention: ffi::AttentionBackend::Auto,
            deterministic: false,
        }
    }
}
