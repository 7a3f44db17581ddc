//! Scales of a KV cache that stand beside codes.

use inferno_node::bridge::spec::Dtype;
use inferno_node::checkpoint::CheckpointFault;
use inferno_node::memory::KvDtype;
use serde_json::json;

use crate::builder::Builder;
use crate::quantized::{copy_of, f32_scale};

#[test]
fn scales_of_a_kv_cache_beside_codes_are_passed_over() {
    let mut builder = copy_of("fp8-tensor");
    let scale = "model.layers.0.self_attn.k_scale";
    builder.set(scale, safetensors::Dtype::F32, &[1]);
    builder.write_single();
    let mut opened = builder.open().expect("the results do not depend on it");
    opened.hold_kv_as(KvDtype::Auto).expect("nothing changes");
    assert_eq!(opened.spec().layers[0].attention.k_scale, 1.0);
    let mut plain = Builder::new(&[]);
    plain.set(scale, safetensors::Dtype::F32, &[1]);
    plain.write_single();
    assert_eq!(plain.fault(Some(scale), "no such tensor"), CheckpointFault::UnexpectedTensor);
}

#[test]
fn kv_in_fp8_has_the_scales_of_the_files_under_each_of_their_names() {
    for (keys, values) in [
        ("self_attn.k_scale", "self_attn.v_scale"),
        ("self_attn.attn.k_scale", "self_attn.attn.v_scale"),
        ("self_attn.k_proj.k_scale", "self_attn.v_proj.v_scale"),
        ("self_attn.k_proj.output_scale", "self_attn.v_proj.output_scale"),
    ] {
        let mut builder = copy_of("fp8-tensor");
        let at = |name: &str| format!("model.layers.1.{name}");
        builder.tensors.insert(at(keys), f32_scale(0.25));
        let bf16 = half::bf16::from_f32(1.5).to_le_bytes().to_vec();
        builder.tensors.insert(at(values), (safetensors::Dtype::BF16, vec![1], bf16));
        builder.write_single();
        let mut checkpoint = builder.open().expect("opens");
        checkpoint.hold_kv_as(KvDtype::Fp8).expect("good scales");
        let spec = checkpoint.spec();
        let scales = |layer: usize| {
            let attention = &spec.layers[layer].attention;
            (attention.k_scale, attention.v_scale)
        };
        assert_eq!(spec.kv, Dtype::Fp8);
        assert_eq!((scales(0), scales(1)), ((1.0, 1.0), (0.25, 1.5)), "{keys}");
    }
    let mut builder = copy_of("fp8-tensor");
    builder.tensors.insert("model.layers.0.self_attn.kv_scale".to_owned(), f32_scale(0.5));
    builder.write_single();
    let mut checkpoint = builder.open().expect("opens");
    checkpoint.hold_kv_as(KvDtype::Fp8).expect("a good scale");
    let attention = checkpoint.spec().layers[0].attention;
    assert_eq!((attention.k_scale, attention.v_scale), (0.5, 0.5));
}

#[test]
fn a_scale_of_kv_that_is_none_is_refused_by_name() {
    let name = "model.layers.0.self_attn.v_scale";
    let refused = |tensor, part: &str| {
        let mut builder = copy_of("fp8-tensor");
        builder.tensors.insert(name.to_owned(), tensor);
        builder.write_single();
        let mut checkpoint = builder.open().expect("nothing depends on it yet");
        let error = checkpoint.hold_kv_as(KvDtype::Fp8).expect_err("no scale");
        assert_eq!(
            (error.item.as_deref(), error.fault),
            (Some(name), CheckpointFault::Unsupported)
        );
        assert!(error.to_string().contains(part), "{error}");
    };
    for value in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        refused(f32_scale(value), "expected a number above 0");
    }
    let of_heads = (safetensors::Dtype::F32, vec![2], vec![0; 8]);
    refused(of_heads, "expected one number");
}

#[test]
fn two_scales_of_one_layers_values_are_the_same_or_refused() {
    for (one, other, is_refused) in [(0.5, 0.5, false), (0.5, 0.25, true), (1.0, 0.5, true)] {
        let mut builder = copy_of("fp8-tensor");
        let of_layer = |name: &str| format!("model.layers.0.self_attn.{name}");
        builder.tensors.insert(of_layer("v_scale"), f32_scale(one));
        builder.tensors.insert(of_layer("kv_scale"), f32_scale(other));
        builder.write_single();
        let mut checkpoint = builder.open().expect("nothing depends on it yet");
        let held = checkpoint.hold_kv_as(KvDtype::Fp8);
        assert_eq!(held.is_err(), is_refused, "{held:?}");
        assert!(held.err().is_none_or(|error| error.to_string().contains("another scale")));
    }
}

#[test]
fn scales_for_kv_of_another_type_are_refused_for_fp8_only() {
    for (scheme, refused) in [
        (json!({"type": "float", "num_bits": 8, "strategy": "tensor"}), None),
        (json!("static"), None),
        (json!({"type": "int", "num_bits": 8}), Some("got int of 8")),
        (json!({"type": "float", "num_bits": 4}), Some("got float of 4")),
    ] {
        let mut builder = copy_of("fp8-tensor");
        builder.config["quantization_config"]["kv_cache_scheme"] = scheme;
        builder.write_config();
        builder.write_single();
        let mut checkpoint = builder.open().expect("opens");
        checkpoint.hold_kv_as(KvDtype::Auto).expect("not asked for");
        let error = checkpoint.hold_kv_as(KvDtype::Fp8).err().map(|error| error.to_string());
        assert_eq!(error.is_some(), refused.is_some(), "{error:?}");
        let text = error.unwrap_or_default();
        assert!(text.contains(refused.unwrap_or_default()), "{text}");
        assert!(
            refused.is_none() || text.contains("quantization_config.kv_cache_scheme"),
            "{text}"
        );
    }
}
