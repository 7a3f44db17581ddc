//! The section `[executor]`: which devices there are and what they are made with.

use std::borrow::Cow;
use std::path::PathBuf;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::bridge::ffi;
use crate::gpu;
use crate::ids::{DeviceId, DeviceKind};
use crate::memory::{ByteSize, KvDtype, PoolSize};
use crate::settings;

/// The section `[executor]`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Devices by name: `cpu:N`, `cuda:N`, `sim:N`; not CPUs beside GPUs. Each has its own memory pool, copy of the weights and KV
    /// cache. Empty: as `gpu_devices` says.
    pub devices: Vec<String>,
    /// GPUs by number (`[0]` is `cuda:0`), or `"auto"`: all of this machine that the kernels run on (compute capability 8.0 and
    /// above), else `cpu:0`.
    pub gpu_devices: GpuDevices,
    /// Threads of each CPU device; 0: the machine's cores divided by the number of CPU devices. More than there are cores only
    /// costs.
    #[schemars(range(max = 1_024))]
    pub threads: u32,
    /// Instruction set of CPU devices: `auto` (the best that the machine has), `portable`, `avx2`, `avx_vnni`, `avx512_bf16`,
    /// `amx`. One that the machine lacks is refused when the device is made.
    pub isa: IsaChoice,
    /// Memory that each device reserves when it starts, for weights, KV blocks and workspace: bytes, `"2GiB"`, or a share, `"80%"`, of a
    /// GPU's memory or of what the machine can give to each device. Absent, on GPUs: what the fullest of them can give less 5 % of the card
    /// and 0.75 GiB, which also is the most that may be asked for. Absent, on CPUs: what the configured models need (weights,
    /// workspace, and a KV cache for `max_batch_size` sequences of `max_seq_len`, all KV caches together at most 4 GiB and at
    /// most half of the memory that is free at the start).
    #[serde(alias = "gpu_memory_pool_size", skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-aliases" = ["gpu_memory_pool_size"]))]
    pub memory_pool_size: Option<PoolSize>,
    /// KV cache of each model on each device; bytes or `"2GiB"`. Absent: by the rule of `memory_pool_size`. Less means fewer
    /// sequences at once and more pre-emptions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kv_cache_size: Option<ByteSize>,
    /// Type of the numbers in the KV cache: `auto` (the model's own), or `fp8` (e4m3, by the scales that a checkpoint has for it, else
    /// 1): twice as many tokens in the same memory and half the bytes for a decode step to read, at a price in accuracy
    /// (docs/formats.md).
    pub kv_dtype: KvDtype,
    /// Which kernels attend: `auto`, `flash` (the fastest that the device has, and what `auto` is), `reference` (portable ones, a
    /// query tile at a time: slow, to hold the others against).
    pub attention_backend: AttentionChoice,
    /// On GPUs: a request gives the same tokens alone and in any batch, at a price in speed (docs/gpu.md). CPUs always do.
    pub deterministic: bool,
    /// Cost model of `sim:N` devices, TOML or JSON (see `config/sim`). Absent: every step costs nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sim_cost_model: Option<PathBuf>,
    /// Faults to inject, for tests and drills; empty in production.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<Fault>,
}

/// `gpu_devices`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum GpuDevices {
    /// All GPUs, else the CPU.
    #[default]
    Auto,
    /// These; none is the CPU.
    Listed(Vec<u32>),
}

impl Serialize for GpuDevices {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            GpuDevices::Auto => serializer.serialize_str("auto"),
            GpuDevices::Listed(list) => list.serialize(serializer),
        }
    }
}

impl JsonSchema for GpuDevices {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "GpuDevices".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "x-type": "`\"auto\"` or list of integers" })
    }
}

impl<'de> Deserialize<'de> for GpuDevices {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "expected \"auto\" or a list of GPU numbers")]
        enum Raw {
            Word(String),
            Listed(Vec<u32>),
        }
        match Raw::deserialize(deserializer)? {
            Raw::Word(word) if word == "auto" => Ok(GpuDevices::Auto),
            Raw::Word(word) => Err(serde::de::Error::custom(format!(
                "expected \"auto\" or a list of GPU numbers, got \"{word}\""
            ))),
            Raw::Listed(list) => Ok(GpuDevices::Listed(list)),
        }
    }
}

/// `isa`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum IsaChoice {
    /// The best that the machine has.
    #[default]
    Auto,
    /// Plain C++.
    Portable,
    /// AVX2 and FMA.
    Avx2,
    /// AVX2 with VNNI.
    AvxVnni,
    /// AVX-512 with BF16.
    Avx512Bf16,
    /// AMX tiles of bf16 and int8, with AVX-512 and BF16.
    Amx,
}

/// `attention_backend`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AttentionChoice {
    /// `flash`.
    #[default]
    Auto,
    /// Flash attention by the fastest kernels that the device has.
    Flash,
    /// The portable kernels.
    Reference,
}

impl AttentionChoice {
    /// What it comes to.
    pub fn as_str(self) -> &'static str {
        match self {
            AttentionChoice::Auto | AttentionChoice::Flash => "flash",
            AttentionChoice::Reference => "reference",
        }
    }
}

impl From<AttentionChoice> for ffi::AttentionBackend {
    fn from(choice: AttentionChoice) -> Self {
        match choice {
            AttentionChoice::Auto => ffi::AttentionBackend::Auto,
            AttentionChoice::Flash => ffi::AttentionBackend::Flash,
            AttentionChoice::Reference => ffi::AttentionBackend::Reference,
        }
    }
}

impl From<IsaChoice> for ffi::Isa {
    fn from(choice: IsaChoice) -> Self {
        match choice {
            IsaChoice::Auto => ffi::Isa::Auto,
            IsaChoice::Portable => ffi::Isa::Portable,
            IsaChoice::Avx2 => ffi::Isa::Avx2,
            IsaChoice::AvxVnni => ffi::Isa::AvxVnni,
            IsaChoice::Avx512Bf16 => ffi::Isa::Avx512Bf16,
            IsaChoice::Amx => ffi::Isa::Amx,
        }
    }
}

/// One `[[executor.faults]]` entry: what is to break, and when. Exactly one of `step` and `token_id`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// On which device; absent: on every one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Once, at this step of the device, counted from 1 since the node started and over rebuilds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<u64>,
    /// Every time this token is among those that a step computes: a poison prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_id: Option<u32>,
    /// How it breaks.
    pub kind: FaultKind,
}

/// How a step breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// As if the engine threw.
    Exception,
    /// As if our own code panicked.
    Panic,
    /// As if the engine threw an error that stays with the process, such as a GPU's after an illegal address.
    Sticky,
    /// As if a kernel never ended: the step does not come back.
    Hang,
    /// As if the process were ended by a fault of its memory.
    Abort,
}

impl Config {
    /// Checks every key; files are looked at when the devices are made.
    ///
    /// # Errors
    /// One line for each key at fault: name, expected, got.
    pub fn check(&self) -> Result<(), Vec<String>> {
        let mut faults = settings::out_of_range("executor", self);
        if !self.devices.is_empty() && self.gpu_devices != GpuDevices::Auto {
            faults.push("executor.gpu_devices: expected nothing beside devices".to_owned());
        }
        let names = self.device_names();
        for (index, name) in names.iter().enumerate() {
            let key = if self.devices.is_empty() { "gpu_devices" } else { "devices" };
            match DeviceKind::parse(name) {
                Err(error) => faults.push(format!("executor.{key}: {error}")),
                Ok((DeviceKind::Cuda, _)) if !gpu::BUILT_IN => faults.push(format!(
                    "executor.{key}: {name} is a GPU, and this build has no CUDA; use cpu:0"
                )),
                Ok(_) if names[..index].contains(name) => {
                    faults.push(format!("executor.{key}: {name} stands twice"));
                }
                Ok(_) => {}
            }
        }
        let is = |wanted| {
            names.iter().any(|name| DeviceKind::parse(name).is_ok_and(|(kind, _)| kind == wanted))
        };
        if is(DeviceKind::Cuda) && is(DeviceKind::Cpu) {
            faults.push(
                "executor.devices: GPUs and CPUs in one node are not supported; start two nodes"
                    .to_owned(),
            );
        }
        let no_pool = self.memory_pool_size == Some(PoolSize::Bytes(ByteSize(0)));
        let no_kv = self.kv_cache_size == Some(ByteSize(0));
        for (key, is_zero) in [("memory_pool_size", no_pool), ("kv_cache_size", no_kv)] {
            if is_zero {
                faults.push(format!("executor.{key}: expected more than 0, or nothing"));
            }
        }
        for (index, fault) in self.faults.iter().enumerate() {
            self.check_fault(fault, &names).unwrap_or_else(|error| {
                faults.push(format!("executor.faults[{index}]: {error}"));
            });
        }
        if faults.is_empty() { Ok(()) } else { Err(faults) }
    }

    fn check_fault(&self, fault: &Fault, names: &[String]) -> Result<(), String> {
        match (fault.step, fault.token_id) {
            (Some(0), None) => return Err("step counts from 1, got 0".to_owned()),
            (Some(_), None) | (None, Some(_)) => {}
            _ => return Err("expected exactly one of step and token_id".to_owned()),
        }
        match &fault.device {
            Some(device) if !names.contains(device) => {
                Err(format!("device {device} is not among {names:?}"))
            }
            _ => Ok(()),
        }
    }

    /// The devices of the node, in order.
    pub fn device_ids(&self) -> Vec<DeviceId> {
        self.device_names().iter().map(|name| DeviceId::new(name)).collect()
    }

    fn device_names(&self) -> Vec<String> {
        match &self.gpu_devices {
            _ if !self.devices.is_empty() => self.devices.clone(),
            GpuDevices::Listed(list) if !list.is_empty() => {
                list.iter().map(|number| format!("cuda:{number}")).collect()
            }
            GpuDevices::Auto if !gpu::usable().is_empty() => {
                gpu::usable().iter().map(|number| format!("cuda:{number}")).collect()
            }
            _ => vec!["cpu:0".to_owned()],
        }
    }

    /// Whether the node takes the GPUs that it finds, whichever these are.
    pub fn takes_any_gpu(&self) -> bool {
        self.devices.is_empty() && self.gpu_devices == GpuDevices::Auto
    }

    /// The numbers of the node's GPUs.
    pub fn gpu_ordinals(&self) -> Vec<u32> {
        let number = |name: &String| match DeviceKind::parse(name) {
            Ok((DeviceKind::Cuda, number)) => Some(number),
            _ => None,
        };
        self.device_names().iter().filter_map(number).collect()
    }

    /// What kind of engine the node's devices are; `sim` counts as a CPU.
    pub fn backend(&self) -> ffi::Backend {
        if self.gpu_ordinals().is_empty() { ffi::Backend::Cpu } else { ffi::Backend::Cuda }
    }

    /// Threads of each CPU device on a machine of `cores`.
    pub fn threads_per_device(&self, cores: u32) -> u32 {
        if self.threads > 0 {
            return self.threads;
        }
        let is_cpu = |name: &String| matches!(DeviceKind::parse(name), Ok((DeviceKind::Cpu, _)));
        let cpus = self.device_names().iter().filter(|name| is_cpu(name)).count() as u32;
        (cores / cpus.max(1)).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(toml: &str) -> Config {
        toml::from_str(toml).expect("reads")
    }

    #[test]
    fn the_default_is_one_cpu_device() {
        let config = Config::default();
        assert_eq!(config.check(), Ok(()));
        // In a build with CUDA it is the machine's GPUs, where it has some.
        assert_eq!(config.gpu_ordinals(), gpu::usable());
        if gpu::usable().is_empty() {
            assert_eq!(config.device_ids(), [DeviceId::new("cpu:0")]);
        }
        assert_eq!(config.threads_per_device(6), 6);
    }

    #[test]
    fn the_mission_names_are_understood() {
        let config = config("gpu_devices = \"auto\"\ngpu_memory_pool_size = \"2GiB\"\n");
        assert_eq!(config.memory_pool_size, Some(PoolSize::Bytes(ByteSize(2 << 30))));
        assert_eq!(config.device_ids(), Config::default().device_ids());
    }

    #[test]
    fn gpus_are_refused_with_the_reason() {
        let checked = config("gpu_devices = [0, 1]").check();
        if gpu::BUILT_IN {
            // Whether they are there is seen when the node starts.
            assert_eq!(checked, Ok(()));
            return;
        }
        let faults = checked.expect_err("no CUDA here");
        assert_eq!(faults.len(), 2);
        assert!(faults[0].contains("cuda:0") && faults[0].contains("no CUDA"), "{faults:?}");
    }

    #[test]
    fn cores_are_divided_among_cpu_devices() {
        let config = config("devices = [\"cpu:0\", \"cpu:1\", \"sim:0\"]");
        assert_eq!(config.check(), Ok(()));
        assert_eq!(config.threads_per_device(9), 4);
        assert_eq!(config.threads_per_device(1), 1);
    }

    #[test]
    fn every_bad_key_is_named() {
        let bad = config(
            "devices = [\"cpu:0\", \"cpu:0\", \"tpu:1\", \"cpu:01\"]\ngpu_devices = [0]\nthreads = 5000\n\
             memory_pool_size = 0\nkv_cache_size = 0\n\
             faults = [{ kind = \"panic\" }, { step = 0, kind = \"panic\" },\n\
             { device = \"sim:7\", step = 1, kind = \"exception\" }]\n",
        );
        let faults = bad.check().expect_err("nine faults");
        for part in [
            "executor.gpu_devices: expected nothing",
            "cpu:0 stands twice",
            "got \"tpu:1\"",
            "got \"cpu:01\"",
            "executor.threads",
            "executor.memory_pool_size",
            "executor.kv_cache_size",
            "executor.faults[0]",
            "executor.faults[1]",
            "executor.faults[2]: device sim:7",
        ] {
            assert!(faults.iter().any(|fault| fault.contains(part)), "{part} in {faults:?}");
        }
    }

    #[test]
    fn unknown_words_are_refused() {
        for bad in [
            "gpu_devices = \"all\"",
            "gpu_devices = 1",
            "isa = \"sse\"",
            "kv_dtype = \"fp4\"",
            "what = 1",
        ] {
            assert!(toml::from_str::<Config>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let config = config(
            "gpu_devices = []\nisa = \"avx512_bf16\"\nkv_cache_size = \"1GiB\"\nkv_dtype = \"fp8\"\n\
             faults = [{ device = \"cpu:0\", token_id = 42, kind = \"exception\" }]\n",
        );
        assert_eq!(config.check(), Ok(()));
        let text = toml::to_string(&config).expect("writes");
        assert_eq!(toml::from_str::<Config>(&text).expect("reads"), config);
        assert_eq!(ffi::Isa::from(config.isa), ffi::Isa::Avx512Bf16);
    }
}
