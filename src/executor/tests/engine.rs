//! The engine behind an executor.

use super::*;
use crate::ids::DeviceId;

#[actix::test]
async fn the_engine_gives_the_reference_tokens_of_every_fixture() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let ids = |value: &serde_json::Value| -> Vec<u32> {
        serde_json::from_value(value.clone()).expect("token ids")
    };
    let config = Config { threads: 2, ..Config::default() };
    let maker = Maker::new(&config, &DeviceId::new("cpu:0"), 64 << 20).expect("a CPU device");
    let mut bench = Bench::of(maker, false);
    bench.ready().await.expect("a device");
    for name in ["llama2-tiny", "llama2-tiny-sharded", "llama3-tiny", "llama32-tiny-bf16"] {
        let path = fixtures.join(name);
        let golden = std::fs::read(path.join("golden.json")).expect("the fixture");
        let golden: serde_json::Value = serde_json::from_slice(&golden).expect("JSON");
        let checkpoint = Checkpoint::open(&path, LoadFormat::Safetensors).expect("good");
        let loaded = bench.load(&Arc::new(checkpoint)).await.expect("loads");
        assert!(loaded.num_blocks >= 4 && loaded.memory.used_bytes > loaded.weight_bytes);
        let case = &golden["prompts"][1];
        let mut tokens = ids(&case["prompt_token_ids"]);
        let num_prompt_tokens = tokens.len();
        for step in 0..4 {
            let done = bench.step(step, batch(&tokens)).await;
            tokens.extend(done.result.expect("a step").token_ids);
        }
        let expected = ids(&case["greedy_token_ids"]);
        assert_eq!(tokens[num_prompt_tokens..], expected[..4], "{name}");
        bench.unload().await.expect("unloads");
        assert_eq!(bench.running.memory.used_bytes(), 0, "{name}");
    }
    bench.stop();
}

#[actix::test]
async fn the_engine_makes_random_weights_for_a_dummy() {
    let (_dir, checkpoint) = testing::dummy();
    let maker = Maker::new(&Config::default(), &DeviceId::new("cpu:0"), 16 << 20);
    let mut bench = Bench::of(maker.expect("a CPU device"), false);
    let loaded = bench.load(&checkpoint).await.expect("loads");
    assert!(loaded.weight_bytes > 0 && loaded.num_blocks > 0);
    let output = bench.step(1, batch(&[3, 4, 5])).await.result.expect("a step");
    assert!(output.token_ids[0] < 16);
    let mut bad = batch(&[3, 4, 5]);
    bad.token_ids[1] = 99;
    let failure = bench.step(2, bad).await.result.expect_err("no such token");
    assert!(matches!(failure, StepFailure::Device(e) if e.code == DeviceErrorCode::InvalidBatch));
    bench.stop();
}
