//! What the tokens of this node depend on beside the model: its kernels, and what it does with a request that does not say.

use super::config::Config;
use crate::bridge::ISAS;
use crate::bridge::ffi::{self, Isa};
use crate::gpu;
use crate::ids::{DeviceId, DeviceKind};
use crate::memory::KvDtype;

impl Config {
    /// Words that are equal on two nodes whose devices give the same bits. A device that gives others in other batches has words that
    /// no other process has.
    pub fn exactness(&self) -> String {
        let devices = self.device_ids();
        let mut words: Vec<String> = devices.iter().map(|device| self.words_of(device)).collect();
        words.sort();
        words.dedup();
        let kv = match self.kv_dtype {
            KvDtype::Auto => String::new(),
            kv => format!(" kv {kv:?}"),
        };
        format!("{} {}{kv}", env!("CARGO_PKG_VERSION"), words.join("+"))
    }

    fn words_of(&self, device: &DeviceId) -> String {
        match DeviceKind::parse(device.as_str()) {
            Ok((DeviceKind::Sim, _)) => "sim".to_owned(),
            Ok((DeviceKind::Cuda, ordinal)) if self.deterministic => {
                let card = gpu::name(ordinal).unwrap_or_default();
                format!("cuda {card} {:?}", self.attention_backend)
            }
            Ok((DeviceKind::Cuda, _)) => format!("cuda {}", uuid::Uuid::now_v7().simple()),
            Ok((DeviceKind::Cpu, _)) | Err(_) => {
                let isa = match ffi::Isa::from(self.isa) {
                    Isa::Auto => ISAS.into_iter().rfind(|isa| ffi::isa_available(*isa)),
                    isa => Some(isa),
                };
                format!("cpu {isa:?} {:?}", self.attention_backend)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_of_one_kind_say_the_same_and_others_do_not() {
        let with = |text: &str| toml::from_str::<Config>(text).expect("valid").exactness();
        let cpu = || with("devices = [\"cpu:0\"]");
        assert_eq!(cpu(), cpu());
        assert_eq!(cpu(), with("devices = [\"cpu:0\", \"cpu:1\"]"), "however many");
        assert_ne!(cpu(), with("devices = [\"sim:0\"]"));
        assert_ne!(
            with("devices = [\"cpu:0\"]\nisa = \"portable\""),
            with("devices = [\"cpu:0\"]\nisa = \"avx2\"")
        );
        let loose = || with("devices = [\"cuda:0\"]");
        assert_ne!(loose(), loose(), "its tokens depend on the batch");
        let strict = || with("devices = [\"cuda:0\"]\ndeterministic = true");
        assert_eq!(strict(), strict());
    }
}
