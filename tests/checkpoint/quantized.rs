//! Quantized checkpoints: each packing has its format, and what does not make a matrix is refused by name.

use inferno_node::bridge::spec::{Dtype, TensorPart, WeightFormat, WeightKind};
use inferno_node::checkpoint::{Checkpoint, CheckpointFault, LoadFormat, Quantization};
use serde_json::{Value, json};

use crate::builder::Builder;

fn fixture(name: &str) -> std::path::PathBuf {
    format!("{}/tests/fixtures/formats/{name}", env!("CARGO_MANIFEST_DIR")).into()
}

/// A format's fixture, to be changed.
pub fn copy_of(name: &str) -> Builder {
    let text = std::fs::read(fixture(name).join("config.json")).expect("reads");
    let bytes = std::fs::read(fixture(name).join("model.safetensors")).expect("reads");
    let stored = safetensors::SafeTensors::deserialize(&bytes).expect("a whole file");
    let mut builder = Builder::new(&[]);
    builder.config = serde_json::from_slice(&text).expect("JSON");
    builder.write_config();
    let tensors = stored
        .tensors()
        .into_iter()
        .map(|(name, view)| (name, (view.dtype(), view.shape().to_vec(), view.data().to_vec())));
    builder.tensors = tensors.collect();
    builder
}

const fn of(kind: WeightKind, group: u32, offsets: bool) -> WeightFormat {
    WeightFormat { kind, group, offsets }
}

/// Of layer 1's attention output, which every fixture of a Llama quantizes.
const FORMATS: [(&str, WeightFormat); 17] = [
    ("fp8-tensor", of(WeightKind::Fp8, 0, false)),
    ("fp8-channel", of(WeightKind::Fp8, 0, false)),
    // One block is as wide as the matrix.
    ("fp8-block", of(WeightKind::Fp8, 0, false)),
    ("fp8-block-cut", of(WeightKind::Fp8, 128, false)),
    ("int8-channel", of(WeightKind::Int8, 0, false)),
    ("int8-zeros", of(WeightKind::Int8, 0, true)),
    ("packed-128", of(WeightKind::Int4, 0, false)),
    ("packed-32-zeros", of(WeightKind::Int4, 32, true)),
    ("packed-8-bits", of(WeightKind::Int8, 0, false)),
    ("packed-act-order", of(WeightKind::Int4, 32, false)),
    ("gptq-128", of(WeightKind::Int4, 0, false)),
    ("gptq-64-zeros", of(WeightKind::Int4, 64, true)),
    ("gptq-rows", of(WeightKind::Int4, 0, false)),
    ("gptq-8-bits", of(WeightKind::Int8, 32, false)),
    ("gptq-v2-zeros", of(WeightKind::Int4, 32, true)),
    ("gptq-act-order", of(WeightKind::Int4, 32, false)),
    ("awq-64", of(WeightKind::Int4, 64, true)),
];

#[test]
fn each_packing_has_its_format_on_the_device() {
    for (name, format) in FORMATS {
        let checkpoint = Checkpoint::open(&fixture(name), LoadFormat::Safetensors)
            .unwrap_or_else(|error| panic!("{error}"));
        let spec = checkpoint.spec();
        assert_eq!(spec.format(TensorPart::O, 1), Some(format), "{name}");
        assert_eq!(spec.format(TensorPart::Head, 0), Some(spec.activation.into()), "{name}");
    }
    let experts = Checkpoint::open(&fixture("mxfp4"), LoadFormat::Safetensors).expect("opens");
    let mxfp4 = of(WeightKind::Mxfp4, 32, false);
    assert_eq!(experts.spec().format(TensorPart::GateUp, 0), Some(mxfp4));
    assert_eq!(experts.spec().format(TensorPart::Qkv, 0), Some(Dtype::BF16.into()));
}

#[test]
fn a_matrix_whose_tensors_differ_is_one_of_elements() {
    let open = |name| Checkpoint::open(&fixture(name), LoadFormat::Safetensors).expect("opens");
    let mixed = open("packed-32-zeros");
    assert_eq!(mixed.spec().format(TensorPart::Qkv, 0), Some(Dtype::BF16.into()));
    assert_eq!(mixed.spec().format(TensorPart::Qkv, 1), Some(of(WeightKind::Int4, 32, true)));
    let kept = open("fp8-block");
    assert_eq!(kept.spec().format(TensorPart::Down, 1), Some(Dtype::BF16.into()));
    assert_eq!(kept.spec().format(TensorPart::Down, 0), Some(of(WeightKind::Fp8, 128, false)));
}

#[test]
fn columns_out_of_order_keep_their_codes_where_all_of_a_matrix_have_one_order() {
    let int4 = of(WeightKind::Int4, 32, false);
    let of_layers = |name| {
        let checkpoint = Checkpoint::open(&fixture(name), LoadFormat::Safetensors).expect("opens");
        [0, 1].map(|layer| {
            let (attention, mlp) =
                (checkpoint.spec().layers[layer].attention, checkpoint.spec().layers[layer].mlp);
            [attention.qkv, attention.o, mlp.gate_up, mlp.down]
                .map(|linear| (linear.ordered, linear.format))
        })
    };
    assert_eq!(of_layers("packed-act-order"), [[(true, int4); 4]; 2]);
    // In layer 1 every tensor has an order of its own.
    let elements = (false, Dtype::F16.into());
    let mixed = [elements, (true, int4), elements, (true, int4)];
    assert_eq!(of_layers("gptq-act-order"), [[(true, int4); 4], mixed]);
    assert_eq!(of_layers("gptq-128")[0][1], (false, of(WeightKind::Int4, 0, false)));
}

#[test]
fn columns_of_groups_that_are_not_full_become_elements() {
    let format_with = |groups: [i32; 128]| {
        let data = groups.into_iter().flat_map(i32::to_le_bytes).collect();
        let builder = with_beside("gptq-act-order", "g_idx", &[128], data);
        builder.open().expect("opens").spec().format(TensorPart::O, 1).expect("a matrix")
    };
    let mut groups: [i32; 128] = std::array::from_fn(|k| (k * 7 % 128 / 32) as i32);
    assert_eq!(format_with(groups), of(WeightKind::Int4, 32, false));
    groups[5] = (groups[5] + 1) % 4;
    assert_eq!(format_with(groups), Dtype::F16.into());
}

#[test]
fn weights_that_are_made_have_the_formats_of_the_configuration() {
    for (name, _) in FORMATS {
        let made = Checkpoint::open(&fixture(name), LoadFormat::Dummy).expect("a good config");
        let format = made.spec().format(TensorPart::Down, 0).expect("a matrix");
        assert!(format.is_quantized(), "{name}");
        assert_eq!(made.spec().format(TensorPart::Head, 0), Some(made.spec().activation.into()));
    }
}

#[test]
fn what_does_not_make_a_matrix_is_refused_by_its_tensor() {
    use CheckpointFault::{MissingTensor, Unsupported, WrongShape};
    let o_proj = "model.layers.1.self_attn.o_proj";
    for (name, tensor, shape, fault) in [
        ("int8-channel", "weight_scale", None, MissingTensor),
        ("int8-channel", "weight_scale", Some(vec![127, 1]), WrongShape),
        ("int8-channel", "weight", Some(vec![128, 64]), WrongShape),
        ("packed-128", "weight_packed", Some(vec![128, 15]), Unsupported),
        ("gptq-128", "scales", None, MissingTensor),
        ("gptq-128", "qzeros", Some(vec![1, 8]), WrongShape),
        ("gptq-act-order", "g_idx", Some(vec![127]), WrongShape),
        ("awq-64", "qweight", Some(vec![128, 15]), WrongShape),
        ("awq-64", "qzeros", Some(vec![2, 15]), WrongShape),
        ("packed-32-zeros", "weight_zero_point", Some(vec![128, 4]), WrongShape),
    ] {
        let mut builder = copy_of(name);
        let key = format!("{o_proj}.{tensor}");
        match shape {
            None => {
                builder.tensors.remove(&key);
            }
            Some(shape) => {
                let dtype = builder.tensors[&key].0;
                builder.set(&key, dtype, &shape);
            }
        }
        builder.write_single();
        assert_eq!(builder.fault(Some(&key), ""), fault, "{name} {tensor}");
    }
}

#[test]
fn words_of_another_type_are_refused_before_they_are_read() {
    for (name, tensor) in [
        ("gptq-64-zeros", "qzeros"),
        ("awq-64", "qweight"),
        ("packed-32-zeros", "weight_zero_point"),
        ("gptq-act-order", "g_idx"),
    ] {
        let mut builder = copy_of(name);
        let key = format!("model.layers.1.self_attn.o_proj.{tensor}");
        let shape = builder.tensors[&key].1.clone();
        builder.set(&key, safetensors::Dtype::U8, &shape);
        builder.write_single();
        assert_eq!(builder.fault(Some(&key), "I32"), CheckpointFault::WrongShape, "{name}");
    }
}

#[test]
fn what_a_configuration_says_of_codes_is_checked() {
    let mut builder = copy_of("gptq-128");
    let whole = builder.config["quantization_config"].clone();
    for (key, value) in [
        ("quant_method", json!("bitsandbytes")),
        ("quant_method", Value::Null),
        ("checkpoint_format", json!("marlin")),
        ("bits", json!(3)),
    ] {
        builder.config["quantization_config"] = whole.clone();
        builder.config["quantization_config"][key] = value;
        builder.write_config();
        let item = format!("quantization_config.{key}");
        assert_eq!(builder.fault(Some(&item), "expected"), CheckpointFault::Unsupported);
    }
    let mut builder = copy_of("int8-channel");
    builder.config.as_object_mut().expect("an object").remove("quantization_config");
    builder.write_config();
    builder.write_single();
    let item = "model.layers.0.self_attn.q_proj.weight";
    builder.fault(Some(item), "or a quantization_config that says what the codes mean");
}

#[test]
fn zero_points_that_contradict_the_configuration_are_said_at_load() {
    let mut builder = copy_of("gptq-128");
    let zeros = "model.layers.0.self_attn.q_proj.qzeros";
    builder.tensors.get_mut(zeros).expect("zero points").2[3] ^= 0x10;
    builder.write_single();
    let checkpoint = builder.open().expect("its headers are good");
    let faults: Vec<String> = checkpoint
        .tensors()
        .flat_map(|tensor| tensor.parts().filter_map(|part| part.err()))
        .map(|error| error.to_string())
        .collect();
    assert_eq!(faults.len(), 1);
    assert!(faults[0].contains("self_attn.q_proj.weight: quantization_config says"), "{faults:?}");
}

pub fn f32_scale(value: f32) -> (safetensors::Dtype, Vec<usize>, Vec<u8>) {
    (safetensors::Dtype::F32, vec![], value.to_le_bytes().to_vec())
}

/// Of the fixture `name` with this tensor beside layer 1's attention output.
fn with_beside(name: &str, tensor: &str, shape: &[usize], data: Vec<u8>) -> Builder {
    let mut builder = copy_of(name);
    let dtype =
        if data.len() == 4 * shape[0] { safetensors::Dtype::I32 } else { safetensors::Dtype::I8 };
    let key = format!("model.layers.1.self_attn.o_proj.{tensor}");
    builder.tensors.insert(key, (dtype, shape.to_vec(), data));
    builder.write_single();
    builder
}

#[test]
fn what_would_change_the_meaning_of_fp8_is_refused_and_what_says_nothing_is_not() {
    let o_proj = "model.layers.1.self_attn.o_proj";
    for (value, is_refused) in [(0, false), (3, true)] {
        let builder = with_beside("fp8-tensor", "weight_zero_point", &[1], vec![value]);
        if is_refused {
            let item = format!("{o_proj}.weight_zero_point");
            assert_eq!(builder.fault(Some(&item), "that is not 0"), CheckpointFault::Unsupported);
        } else {
            builder.open().expect("nothing is said by it");
        }
    }
    let order = |of: fn(i32) -> i32| (0..128).flat_map(|k| of(k).to_le_bytes()).collect();
    let builder = with_beside("fp8-tensor", "weight_g_idx", &[128], order(|_| 0));
    builder.open().expect("in order");
    let unset = with_beside("fp8-tensor", "weight_g_idx", &[128], order(|_| -1));
    unset.open().expect("in order, for none was set");
    let wrong = with_beside("fp8-tensor", "weight_g_idx", &[128], order(|k| -k));
    let item = format!("{o_proj}.weight_g_idx");
    assert_eq!(wrong.fault(Some(&item), "group -1, but there are 1"), CheckpointFault::WrongShape);
}

#[test]
fn weights_that_are_turned_or_have_gaps_are_refused_by_the_key_that_says_so() {
    let turned = json!({"config_groups": {"R1": {"type": "hadamard"}}});
    for (key, value, refused) in [
        ("transform_config", json!({}), None),
        ("transform_config", json!({"config_groups": {}}), None),
        ("transform_config", turned, Some("quantization_config.transform_config")),
        ("sparsity_config", json!({}), None),
        ("sparsity_config", json!({"format": "dense"}), None),
        (
            "sparsity_config",
            json!({"format": "sparse-24-bitmask"}),
            Some("quantization_config.sparsity_config.format"),
        ),
    ] {
        let mut builder = copy_of("packed-32-zeros");
        builder.config["quantization_config"][key] = value;
        builder.write_config();
        builder.write_single();
        let Some(item) = refused else {
            builder.open().unwrap_or_else(|error| panic!("{error}"));
            continue;
        };
        assert_eq!(builder.fault(Some(item), ""), CheckpointFault::Unsupported);
    }
}

/// What is static is not applied: inputs are rounded by what they are, if at all.
#[test]
fn scales_of_activations_beside_codes_are_passed_over() {
    for name in ["input_scale", "activation_scale"] {
        let mut builder = copy_of("fp8-tensor");
        let key = format!("model.layers.1.self_attn.o_proj.{name}");
        builder.tensors.insert(key, f32_scale(0.25));
        builder.write_single();
        builder.open().unwrap_or_else(|error| panic!("{error}"));
    }
}

#[test]
fn groups_are_as_long_as_the_configuration_says() {
    for (name, member, is_refused) in
        [("packed-32-zeros", 32, false), ("packed-32-zeros", 48, true), ("packed-128", 128, false)]
    {
        let mut builder = copy_of(name);
        let groups = &mut builder.config["quantization_config"]["config_groups"]["group_0"];
        assert!(groups["weights"]["group_size"].is_number(), "{groups}");
        groups["weights"]["group_size"] = member.into();
        builder.write_config();
        builder.write_single();
        assert_eq!(builder.open().is_err(), is_refused, "{name} {member}");
        if is_refused {
            let item = "model.layers.0.self_attn.k_proj.weight_scale";
            let fault = builder.fault(Some(item), "says otherwise");
            assert_eq!(fault, CheckpointFault::Unsupported);
        }
    }
}

#[test]
fn a_scale_that_is_no_number_is_said_at_load() {
    let mut builder = copy_of("awq-64");
    let scales = "model.layers.0.self_attn.q_proj.scales";
    let data = &mut builder.tensors.get_mut(scales).expect("scales").2;
    data[..2].copy_from_slice(&[0, 0x7c]); // infinite, of F16
    builder.write_single();
    let checkpoint = builder.open().expect("its headers are good");
    let parts = checkpoint.tensors().flat_map(|tensor| tensor.parts().collect::<Vec<_>>());
    let faults: Vec<String> =
        parts.filter_map(|part| part.err()).map(|error| error.to_string()).collect();
    assert_eq!(faults.len(), 1);
    assert!(faults[0].contains("q_proj.weight: a scale is inf"), "{faults:?}");
}

#[test]
fn biases_of_zeros_beside_codes_are_passed_over_and_others_refused() {
    let mut builder = copy_of("gptq-128");
    let bias = "model.layers.0.self_attn.o_proj.bias";
    builder.tensors.get_mut(bias).expect("a bias").2[5] = 1;
    builder.write_single();
    assert_eq!(builder.fault(Some(bias), "no such tensor"), CheckpointFault::UnexpectedTensor);
}

#[test]
fn sixteen_bits_become_fewer_at_load_and_codes_do_not() {
    let builder = Builder::new(&[]);
    builder.write_single();
    let mut checkpoint = builder.open().expect("opens");
    checkpoint.quantize(Some(Quantization::Int4), Some(Quantization::Int8)).expect("elements");
    let spec = checkpoint.spec();
    for part in [TensorPart::Qkv, TensorPart::O, TensorPart::GateUp, TensorPart::Down] {
        assert_eq!(spec.format(part, 1), Some(of(WeightKind::Int4, 128, false)));
    }
    assert_eq!(spec.format(TensorPart::Head, 0), Some(of(WeightKind::Int8, 0, false)));
    assert_eq!(spec.format(TensorPart::Embedding, 0), Some(Dtype::F32.into()));
    let path = fixture("awq-64");
    let mut codes = Checkpoint::open(&path, LoadFormat::Safetensors).expect("opens");
    let error = codes.quantize(Some(Quantization::Fp8), None).expect_err("codes");
    assert_eq!(error.fault, CheckpointFault::Unsupported);
    assert!(
        error.to_string().contains("quantization: the checkpoint is quantized already"),
        "{error}"
    );
    let path = fixture("../gguf/llama/model.gguf");
    let mut codes = Checkpoint::open(&path, LoadFormat::Safetensors).expect("opens");
    let error = codes.quantize(None, Some(Quantization::Int8)).expect_err("its head is codes");
    assert!(error.to_string().contains("quantization_head: the checkpoint is"), "{error}");
}
