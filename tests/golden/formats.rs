//! Goal: a quantized checkpoint computes what the weights that its codes stand for compute in `transformers`, and keeps its bits however
//! it is run. Method: a small checkpoint in each packing in `tests/fixtures/formats`, the same facts as of Llama's.

super::facts::facts_of! { "formats/" [];
    fp8_tensor: "fp8-tensor",
    fp8_channel: "fp8-channel",
    fp8_block: "fp8-block",
    fp8_block_cut: "fp8-block-cut",
    int8_channel: "int8-channel",
    int8_zeros: "int8-zeros",
    packed_128: "packed-128",
    packed_32_zeros: "packed-32-zeros",
    packed_8_bits: "packed-8-bits",
    packed_act_order: "packed-act-order",
    gptq_128: "gptq-128",
    gptq_64_zeros: "gptq-64-zeros",
    gptq_rows: "gptq-rows",
    gptq_8_bits: "gptq-8-bits",
    gptq_v2_zeros: "gptq-v2-zeros",
    gptq_act_order: "gptq-act-order",
    awq_64: "awq-64",
    mxfp4: "mxfp4",
}

/// A folder without its tests would go unnoticed.
#[test]
fn every_fixture_of_a_format_is_tested() {
    let listed = include_str!("formats.rs");
    for entry in std::fs::read_dir(super::harness::fixture("formats")).expect("the fixtures") {
        let name = entry.expect("an entry").file_name().into_string().expect("a name");
        assert!(listed.contains(&format!(": \"{name}\",")), "{name}");
    }
}
