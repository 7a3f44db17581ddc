//! Goal: the report says what loading finds and takes. Method: the fixtures of the golden tests, and the engine's own plan for them.

use std::path::PathBuf;

use super::*;
use crate::bridge::ffi::Backend;
use crate::checkpoint::Quantization;
use crate::gpu;
use crate::ids::DeviceId;
use crate::memory::{KvDtype, StepLimits};

const LIMITS: StepLimits = StepLimits {
    block_size: 16,
    max_batch_size: 4,
    max_step_tokens: 64,
    num_threads: 1,
    backend: Backend::Cpu,
    kv_dtype: KvDtype::Auto,
};

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn of_length(tokens: u32) -> InspectedAs {
    InspectedAs { max_seq_len: Some(tokens), ..InspectedAs::default() }
}

fn report(name: &str, free_bytes: u64) -> Report {
    let device = device(free_bytes);
    inspect(&fixture(name), of_length(64), &HubCache::default(), &[device])
        .expect("a good checkpoint")
}

fn device(free_bytes: u64) -> DeviceHere {
    let id = DeviceId::new("cpu:0");
    DeviceHere { id, card: None, refused: None, free_bytes, pool_bytes: None, limits: LIMITS }
}

fn card(capability: (i32, i32)) -> DeviceHere {
    let memory = gpu::Memory { total_bytes: 2 << 30, free_bytes: 1 << 30 };
    let card = gpu_with(capability, Ok(memory));
    DeviceHere { pool_bytes: Some(1 << 24), limits: LIMITS, ..card }
}

fn gpu_with(capability: (i32, i32), memory: Result<gpu::Memory, String>) -> DeviceHere {
    let card = gpu::Card {
        name: "A card".to_owned(),
        pci_bus_id: "00000000:1B:00.0".to_owned(),
        numa_node: Some(1),
        capability,
    };
    DeviceHere::gpu(0, &card, memory)
}

#[test]
fn parts_add_up_to_the_files() {
    for (name, tied) in
        [("llama2-tiny", false), ("llama3-tiny", false), ("llama32-tiny-bf16", true)]
    {
        let report = report(name, 1 << 30);
        let total = report.parts.total();
        assert_eq!(total.bytes, report.checkpoint_bytes, "{name}");
        assert_eq!(total.parameters, report.parameters.total);
        assert_eq!(report.architecture.tie_word_embeddings, tied, "{name}");
        assert_eq!(report.parts.lm_head.parameters == 0, tied);
        let hidden = u64::from(report.architecture.hidden_size);
        let layers = u64::from(report.architecture.num_layers);
        let inner = u64::from(report.architecture.intermediate_size);
        assert_eq!(report.parts.norms.parameters, (2 * layers + 1) * hidden);
        assert_eq!(report.parts.mlp.parameters, layers * 3 * hidden * inner);
        let vocab = u64::from(report.architecture.vocab_size);
        assert_eq!(report.parameters.embedding, vocab * hidden);
    }
}

#[test]
fn the_numbers_are_what_the_engine_plans() {
    let report = report("llama32-tiny-bf16", 1 << 24);
    let fit = &report.devices[0];
    let checkpoint =
        Checkpoint::open(&fixture("llama32-tiny-bf16"), LoadFormat::Safetensors).expect("loads");
    let need = crate::memory::engine_need(checkpoint.spec(), &LIMITS, 64).expect("runs");
    assert_eq!((fit.weight_bytes, fit.workspace_bytes), (need.weight_bytes, need.workspace_bytes));
    assert_eq!(report.kv_bytes_per_token * 16, need.kv_bytes_per_block);
    let left = (1 << 24) - need.weight_bytes - need.workspace_bytes;
    let blocks = fit.kv_tokens / 16;
    assert!(fit.fits && blocks * need.kv_bytes_per_block <= left);
    assert_eq!(fit.sequences, blocks / 4);
    let one_more = (blocks + 1) * need.kv_bytes_per_block;
    assert!(one_more + crate::memory::ALIGNMENT_SLACK > left);
}

#[test]
fn what_does_not_fit_is_said() {
    let report = report("llama3-tiny", 100_000);
    let fit = &report.devices[0];
    assert_eq!((fit.fits, fit.kv_tokens, fit.sequences), (false, 0, 0));
    assert!(fit.short_bytes > 0);
    assert!(report.to_string().contains("does not fit"), "{report}");
}

#[test]
fn a_device_with_a_pool_gives_no_more_than_that() {
    let checkpoint =
        Checkpoint::open(&fixture("llama3-tiny"), LoadFormat::Safetensors).expect("loads");
    let card = card((9, 0));
    let fit = card.fit(checkpoint.spec(), 64);
    let same = device(1 << 24).fit(checkpoint.spec(), 64);
    assert_eq!((fit.kv_tokens, fit.sequences), (same.kv_tokens, same.sequences));
    assert_eq!(fit.kv_tokens_by_default, 4 * 64);
    let mut refused = checkpoint.spec().clone();
    refused.layers[0].attention.head_dim = 3;
    let refused = card.fit(&refused, 64);
    assert!(!refused.fits && refused.refused.is_some(), "{refused:?}");
}

#[test]
fn a_card_is_named_with_its_address_and_its_numa_node() {
    let inspect = |card| {
        let devices = [card, device(1 << 30)];
        inspect(&fixture("llama3-tiny"), of_length(64), &HubCache::default(), &devices)
            .expect("good")
    };
    let report = inspect(card((8, 0)));
    let text = report.to_string();
    assert!(text.contains("cuda:0 (A card, PCI 00000000:1B:00.0, NUMA node 1): "), "{text}");
    assert!(text.contains("cpu:0: "), "{text}");
    let json = serde_json::to_value(&report).expect("plain fields");
    let [gpu, cpu] = [&json["devices"][0], &json["devices"][1]];
    assert_eq!((gpu["name"].as_str(), gpu["numa_node"].as_u64()), (Some("A card"), Some(1)));
    assert_eq!(gpu["pci_bus_id"].as_str(), Some("00000000:1B:00.0"));
    assert!(cpu.get("name").is_none() && cpu.get("pci_bus_id").is_none(), "{cpu}");
    let old = inspect(card((7, 5)));
    let refused = old.devices[0].refused.as_deref().unwrap_or_default();
    assert!(!old.devices[0].fits && refused.contains("got 7.5"), "{refused}");
}

#[test]
fn a_card_whose_memory_cannot_be_read_is_shown_with_the_reason() {
    let checkpoint =
        Checkpoint::open(&fixture("llama3-tiny"), LoadFormat::Safetensors).expect("loads");
    let lost = || Err("cuda:0: GPU is lost".to_owned());
    let fit = gpu_with((9, 0), lost()).fit(checkpoint.spec(), 64);
    assert_eq!(fit.refused.as_deref(), Some("cuda:0: GPU is lost"));
    assert_eq!((fit.fits, fit.free_bytes, fit.kv_tokens), (false, 0, 0));
    let old = gpu_with((7, 5), lost()).fit(checkpoint.spec(), 64);
    assert!(old.refused.is_some_and(|reason| reason.contains("got 7.5")));
}

#[test]
fn a_checkpoint_is_reckoned_with_in_the_formats_that_are_asked_for() {
    let look = |quantization, quantization_head| {
        let options = InspectedAs { quantization, quantization_head, ..of_length(64) };
        let devices = [device(1 << 30)];
        let path = fixture("llama32-tiny-bf16");
        inspect(&path, options, &HubCache::default(), &devices).expect("a good checkpoint")
    };
    let (stored, asked) = (look(None, None), look(Some(Quantization::Int4), None));
    assert!(asked.devices[0].weight_bytes < stored.devices[0].weight_bytes);
    assert!(asked.to_string().contains("int4 in groups of 128"), "{asked}");
    let head = look(None, Some(Quantization::Int8));
    assert_eq!(
        head.formats.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(),
        ["bf16", "int8"]
    );
    let path = fixture("formats/gptq-128");
    let options = InspectedAs { quantization: Some(Quantization::Fp8), ..of_length(64) };
    let error = inspect(&path, options, &HubCache::default(), &[]).expect_err("it has codes");
    assert!(error.contains("quantized already"), "{error}");
}

#[test]
fn codes_want_a_card_that_reads_them_and_what_becomes_elements_is_told() {
    let path = fixture("formats/gptq-128");
    let cards = [card((9, 0)), card((8, 6))];
    let mut report =
        inspect(&path, of_length(64), &HubCache::default(), &cards).expect("a good checkpoint");
    assert_eq!(report.devices[0].refused, None);
    let refused = report.devices[1].refused.clone().unwrap_or_default();
    assert!(refused.contains("compute capability 9.0, got 8.6"), "{refused}");
    report.devices[0].held_in_16_bits = vec!["experts in mxfp4".to_owned()];
    assert!(report.to_string().contains("(held in 16 bits: experts in mxfp4)"), "{report}");
    let json = serde_json::to_value(&report).expect("JSON");
    assert_eq!(json["devices"][0]["held_in_16_bits"][0], "experts in mxfp4");
    assert!(json["devices"][1].get("held_in_16_bits").is_none());
}

#[test]
fn this_machine_has_a_processor() {
    let devices = devices_here();
    assert!(devices.iter().any(|device| device.id == DeviceId::new("cpu:0")), "{devices:?}");
}

#[test]
fn a_checkpoint_without_a_tokenizer_is_still_looked_at() {
    let root = tempfile::tempdir().expect("a temporary directory");
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(fixture("llama3-tiny").join(file), root.path().join(file)).expect("copies");
    }
    let look = || inspect(root.path(), InspectedAs::default(), &HubCache::default(), &[]);
    let report = look().expect("a good checkpoint");
    assert_eq!((report.tokenizer_ids, report.has_chat_template), (None, false));
    assert_eq!((report.context_length, report.max_seq_len), (512, 512));
    assert!(report.to_string().contains("absent"), "{report}");
    std::fs::write(root.path().join("tokenizer.json"), "{}").expect("writes");
    let error = look().expect_err("no tokenizer");
    assert!(error.contains("tokenizer.json"), "{error}");
    let long =
        inspect(root.path(), of_length(513), &HubCache::default(), &[]).expect_err("too long");
    assert!(long.contains("max_seq_len"), "{long}");
}

#[test]
fn a_token_in_fp8_takes_half_of_one_in_16_bits() {
    let look = |kv_dtype| {
        let options = InspectedAs { kv_dtype, ..of_length(64) };
        let devices = [device(1 << 30)];
        let path = fixture("llama32-tiny-bf16");
        inspect(&path, options, &HubCache::default(), &devices).expect("a good checkpoint")
    };
    let (auto, fp8) = (look(KvDtype::Auto), look(KvDtype::Fp8));
    assert_eq!(fp8.kv_bytes_per_token * 2, auto.kv_bytes_per_token);
    let (least, most) = (2 * auto.devices[0].kv_tokens, 2 * auto.devices[0].kv_tokens + 16);
    assert!((least..=most).contains(&fp8.devices[0].kv_tokens), "{fp8:?}");
}
