//! What a device is usually made with.

use super::ffi;

impl ffi::DeviceOptions {
    /// A CPU device.
    pub fn cpu(num_threads: u32, isa: ffi::Isa, pool_bytes: u64) -> Self {
        Self {
            num_threads,
            isa,
            pool_bytes,
            backend: ffi::Backend::Cpu,
            ordinal: 0,
            attention: ffi::AttentionBackend::Auto,
            deterministic: false,
        }
    }

    /// A GPU, whose weights are copied by so many threads.
    pub fn cuda(ordinal: u32, num_threads: u32, pool_bytes: u64) -> Self {
        Self {
            num_threads,
            isa: ffi::Isa::Auto,
            pool_bytes,
            backend: ffi::Backend::Cuda,
            ordinal,
            attention: ffi::AttentionBackend::Auto,
            deterministic: false,
        }
    }
}
