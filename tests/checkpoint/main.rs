//! Goal: a checkpoint on disk is either usable or refused with file, key or tensor, and reason; never a panic, never a read
//! beyond a file. Method: small checkpoints written with the `safetensors` crate and then broken in every way that we know of.

mod builder;
mod config;
mod gguf;
mod hub;
mod kv_scales;
mod published;
mod published_experts;
mod quantized;
mod resaved;
mod ropes;

use std::path::Path;

use inferno_node::bridge::spec::Dtype;
use inferno_node::checkpoint::{Checkpoint, CheckpointFault, LoadFormat};
use serde_json::{Value, json};

use builder::Builder;

#[test]
fn a_single_file_gives_every_tensor_as_written() {
    let builder = Builder::new(&[]);
    let checkpoint = builder.write_single().open().expect("a good checkpoint");
    builder.holds(&checkpoint);
    assert_eq!(checkpoint.end_token_ids(), [3]);
    assert_eq!(checkpoint.max_position_embeddings(), 32);
    assert_eq!(checkpoint.directory(), builder.path());
    assert_eq!(checkpoint.spec().layers[0].attention.head_dim, 2);
}

#[test]
fn shards_give_the_same_as_one_file() {
    let builder = Builder::new(&[]);
    let index = builder.write_sharded();
    builder.write("model.safetensors.index.json", index.to_string());
    builder.holds(&builder.open().expect("a good checkpoint"));
}

#[test]
fn biases_and_tied_embeddings_change_what_is_needed() {
    let changes = [
        ("attention_bias", json!(true)),
        ("mlp_bias", json!(true)),
        ("tie_word_embeddings", json!(true)),
    ];
    let mut builder = Builder::new(&changes);
    assert!(builder.tensors.contains_key("model.layers.1.self_attn.o_proj.bias"));
    assert!(builder.tensors.contains_key("model.layers.0.mlp.down_proj.bias"));
    assert!(!builder.tensors.contains_key("lm_head.weight"));
    builder.holds(&builder.write_single().open().expect("a good checkpoint"));
    // What some exports add is left out: a copy of the tied weights, frequencies that are computed anyway.
    let without: Vec<String> = builder.tensors.keys().cloned().collect();
    let embedding = builder.tensors["model.embed_tokens.weight"].clone();
    builder.tensors.insert("lm_head.weight".to_owned(), embedding);
    builder.set("model.layers.0.self_attn.rotary_emb.inv_freq", safetensors::Dtype::F64, &[1]);
    let checkpoint = builder.write_single().open().expect("a good checkpoint");
    assert_eq!(checkpoint.num_tensors(), without.len());
    assert!(checkpoint.spec().tied_embeddings);
}

#[test]
fn a_head_of_its_own_counts_whatever_the_config_says_of_ties() {
    let mut builder = Builder::new(&[("tie_word_embeddings", json!(true))]);
    builder.set("lm_head.weight", safetensors::Dtype::F32, &[10, 8]);
    let checkpoint = builder.write_single().open().expect("a good checkpoint");
    assert!(!checkpoint.spec().tied_embeddings);
    assert_eq!(checkpoint.num_tensors(), builder.tensors.len());
}

#[test]
fn every_cut_of_a_file_is_refused() {
    let builder = Builder::new(&[]);
    let whole = builder.serialize(|_| true);
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().expect("8 bytes")) as usize;
    for len in (0..24).chain(header - 3..header + 3).chain(whole.len() - 70..whole.len()) {
        builder.write("model.safetensors", &whole[..len]);
        let error = builder.open().expect_err("cut");
        assert_eq!(error.fault, CheckpointFault::Truncated, "cut at {len}: {error}");
        assert!(error.file.ends_with("model.safetensors"), "{error}");
        // Within the data the tensor is named.
        assert_eq!(error.item.is_some(), len >= header, "cut at {len}: {error}");
    }
    builder.write("model.safetensors", [&whole[..], b"x"].concat());
    assert_eq!(builder.fault(None, "1 bytes after"), CheckpointFault::Layout);
}

#[test]
fn a_flipped_byte_in_the_header_never_panics() {
    let builder = Builder::new(&[]);
    let whole = builder.serialize(|_| true);
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().expect("8 bytes")) as usize;
    for (at, flip) in (0..header).step_by(5).zip([0x01, 0x10, 0x80].into_iter().cycle()) {
        let mut broken = whole.clone();
        broken[at] ^= flip;
        builder.write("model.safetensors", &broken);
        // A changed name or digit may still make a whole file; then all of its views are inside it.
        if let Ok(checkpoint) = builder.open() {
            checkpoint.tensors().for_each(|tensor| assert!(!tensor.data.is_empty()));
        }
    }
}

/// A file of two tensors with the header given; 16 bytes of data unless said otherwise.
fn raw(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 7);
    bytes
}

#[test]
fn bad_headers_are_refused_and_the_safetensors_crate_agrees() {
    let entry = |dtype: &str, shape: &str, offsets: &str| {
        format!("{{\"dtype\":\"{dtype}\",\"shape\":{shape},\"data_offsets\":{offsets}}}")
    };
    let good = entry("F32", "[2]", "[0,8]");
    let two = |a: &str, b: &str| format!("{{\"a\":{a},\"b\":{b}}}");
    use CheckpointFault::{Layout, Malformed, Truncated, Unsupported};
    for (header, fault, item) in [
        (two(&good, &entry("F32", "[2]", "[8,24]")), Truncated, Some("b")),
        (two(&good, &entry("F32", "[2]", "[16,8]")), Malformed, Some("b")),
        (two(&good, &entry("F32", "[3]", "[8,16]")), Malformed, Some("b")),
        (two(&good, &entry("F32", "[4294967296,4294967296]", "[8,16]")), Malformed, Some("b")),
        (two(&good, &entry("F32", "[2]", "[4,12]")), Layout, Some("b")),
        (two(&good, &entry("F32", "[1]", "[12,16]")), Layout, Some("b")),
        (two(&good, &entry("F32", "[1]", "[8,12]")), Layout, None),
        (two(&good, &entry("F31", "[2]", "[8,16]")), Unsupported, Some("b")),
        (two(&good, "{\"dtype\":\"F32\"}"), Malformed, None),
        (two(&good, &entry("F32", "[-1]", "[8,16]")), Malformed, None),
        ("[]".to_owned(), Malformed, None),
        ("{".to_owned(), Malformed, None),
        ("\u{fffd}".to_owned(), Malformed, None),
    ] {
        let bytes = raw(&header, 16);
        assert!(safetensors::SafeTensors::deserialize(&bytes).is_err(), "{header}");
        let builder = Builder::new(&[]);
        builder.write("model.safetensors", &bytes);
        let error = builder.open().expect_err(&header);
        assert_eq!((error.fault, error.item.as_deref()), (fault, item), "{header}: {error}");
    }
}

#[test]
fn a_tensor_given_twice_is_refused() {
    let entry = "{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}";
    let builder = Builder::new(&[]);
    builder.write("model.safetensors", raw(&format!("{{\"a\":{entry},\"a\":{entry}}}"), 8));
    assert_eq!(builder.fault(Some("a"), "twice"), CheckpointFault::Malformed);
}

#[test]
fn a_header_of_absurd_length_is_refused_without_reading_it() {
    let builder = Builder::new(&[]);
    for length in [u64::MAX, 100_000_001] {
        builder.write("model.safetensors", length.to_le_bytes());
        assert_eq!(builder.fault(None, "header"), CheckpointFault::Malformed);
    }
    builder.write("model.safetensors", 99_999_999_u64.to_le_bytes());
    assert_eq!(builder.fault(None, "header"), CheckpointFault::Truncated);
}

#[test]
fn data_at_an_odd_place_is_read_all_the_same() {
    // Files of old writers have no padded header.
    let builder = Builder::new(&[]);
    let whole = builder.serialize(|_| true);
    let header = u64::from_le_bytes(whole[..8].try_into().expect("8 bytes")) as usize;
    let mut odd = (header as u64 + 1).to_le_bytes().to_vec();
    odd.extend(&whole[8..8 + header]);
    odd.push(b' ');
    odd.extend(&whole[8 + header..]);
    builder.write("model.safetensors", odd);
    builder.holds(&builder.open().expect("a good checkpoint"));
}

#[test]
fn wrong_tensors_are_named() {
    let name = "model.layers.1.mlp.up_proj.weight";
    let mut builder = Builder::new(&[]);
    builder.set(name, safetensors::Dtype::F32, &[8, 12]);
    let fault = builder.write_single().fault(Some(name), "[8, 12]");
    assert_eq!(fault, CheckpointFault::WrongShape);
    for dtype in [safetensors::Dtype::F8_E4M3, safetensors::Dtype::I8, safetensors::Dtype::F64] {
        builder.set(name, dtype, &[12, 8]);
        let fault = builder.write_single().fault(Some(name), "expected F32, F16 or BF16");
        assert_eq!(fault, CheckpointFault::Unsupported);
    }
    builder.tensors.remove(name);
    let fault = builder.write_single().fault(Some(name), "no file has it");
    assert_eq!(fault, CheckpointFault::MissingTensor);
}

#[test]
fn a_tensor_that_the_model_does_not_know_is_refused() {
    let mut builder = Builder::new(&[]);
    let name = "model.layers.0.self_attn.q_norm.weight";
    builder.set(name, safetensors::Dtype::F32, &[2]);
    let fault = builder.write_single().fault(Some(name), "no such tensor");
    assert_eq!(fault, CheckpointFault::UnexpectedTensor);
}

#[test]
fn half_precision_weights_are_taken() {
    for (name, dtype) in [("bfloat16", Dtype::BF16), ("float16", Dtype::F16)] {
        let mut builder = Builder::new(&[("torch_dtype", json!(name))]);
        let stored =
            if dtype == Dtype::BF16 { safetensors::Dtype::BF16 } else { safetensors::Dtype::F16 };
        for (tensor, (_, shape, _)) in builder.tensors.clone() {
            builder.set(&tensor, stored, &shape);
        }
        let checkpoint = builder.write_single().open().expect("a good checkpoint");
        assert_eq!(checkpoint.spec().activation, dtype);
        builder.holds(&checkpoint);
        // With no dtype in config.json the tensors say it.
        builder.config["torch_dtype"] = Value::Null;
        builder.write_config();
        assert_eq!(builder.open().expect("a good checkpoint").spec().activation, dtype);
    }
}

#[test]
fn a_bad_index_is_refused() {
    let builder = Builder::new(&[]);
    let good = builder.write_sharded();
    let name = "model.norm.weight";
    let set = |value: Value| {
        let mut index = good.clone();
        index["weight_map"][name] = value;
        builder.write("model.safetensors.index.json", index.to_string());
    };
    for outside in ["../model.safetensors", "/etc/passwd", "sub/x.safetensors", "..", "", "x.bin"] {
        set(json!(outside));
        let fault = builder.fault(Some(&format!("weight_map.{name}")), "beside the index");
        assert_eq!(fault, CheckpointFault::Malformed, "{outside}");
    }
    set(json!(7));
    let item = format!("weight_map.{name}");
    assert_eq!(builder.fault(Some(&item), "got 7"), CheckpointFault::Malformed);
    set(json!("model-00003-of-00002.safetensors"));
    let error = builder.open().expect_err("the file is not there");
    assert_eq!(error.fault, CheckpointFault::NotFound);
    assert!(error.file.ends_with("model-00003-of-00002.safetensors"), "{error}");
    set(json!("model-00002-of-00002.safetensors"));
    assert_eq!(builder.fault(Some(name), "but it is not"), CheckpointFault::MissingTensor);
    for (text, part) in [("{", "no JSON"), ("[1]", "got a list"), ("{}", "weight_map")] {
        builder.write("model.safetensors.index.json", text);
        let error = builder.open().expect_err(text);
        assert_eq!(error.fault, CheckpointFault::Malformed, "{error}");
        assert!(error.to_string().contains(part), "{error}");
    }
    builder.write("model.safetensors.index.json", "{\"weight_map\":{}}");
    assert_eq!(builder.fault(Some("weight_map"), "at least one"), CheckpointFault::Malformed);
}

#[test]
fn files_of_other_formats_are_named() {
    let builder = Builder::new(&[]);
    assert_eq!(builder.fault(None, "expected model.safetensors"), CheckpointFault::NotFound);
    builder.write("pytorch_model.bin", "x");
    assert_eq!(builder.fault(None, "pytorch_model.bin"), CheckpointFault::NotFound);
}

#[test]
fn a_directory_in_place_of_a_file_is_an_error() {
    let builder = Builder::new(&[]);
    std::fs::create_dir(builder.path().join("model.safetensors")).expect("makes");
    assert_eq!(builder.fault(None, "not a regular file"), CheckpointFault::Io);
}

#[test]
fn a_dummy_needs_nothing_but_its_config() {
    let builder = Builder::new(&[]);
    let checkpoint = builder.open_as(LoadFormat::Dummy).expect("config.json is there");
    assert_eq!(checkpoint.num_tensors(), 0);
    assert_eq!(checkpoint.load_format(), LoadFormat::Dummy);
    let bytes: usize = builder.tensors.values().map(|(_, _, data)| data.len()).sum();
    assert_eq!(checkpoint.total_bytes(), bytes as u64);
}

#[test]
fn every_fixture_of_transformers_opens() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut opened = 0;
    let folders = [fixtures.clone(), fixtures.join("families")];
    let entries = folders.iter().flat_map(|f| std::fs::read_dir(f).expect("the fixtures"));
    for entry in entries {
        let path = entry.expect("an entry").path();
        if !path.join("config.json").exists() {
            continue;
        }
        let checkpoint = Checkpoint::open(&path, LoadFormat::Safetensors)
            .unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(checkpoint.tensors().count(), checkpoint.num_tensors());
        // What the authors' crate reads in the files is what we see.
        for tensor in checkpoint.tensors().take(3) {
            let theirs = std::fs::read_dir(&path).expect("the files").flatten().find_map(|file| {
                let name = file.file_name().into_string().ok()?;
                if !name.starts_with("model") || !name.ends_with(".safetensors") {
                    return None;
                }
                let bytes = std::fs::read(file.path()).ok()?;
                let all = safetensors::SafeTensors::deserialize(&bytes).ok()?;
                Some(all.tensor(&tensor.expected.name).ok()?.data().to_vec())
            });
            assert_eq!(theirs.as_deref(), Some(tensor.data), "{}", tensor.expected.name);
        }
        opened += 1;
    }
    assert!(opened >= 27, "{opened} fixtures");
}
