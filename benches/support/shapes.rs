//! Models of true shape for `load_format = "dummy"`: the `config.json` of a folder of `benches/shapes`, and a tokenizer made here that
//! spells every id, so that the node has as much text to write as with a trained one.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

/// A shape's folder: `BENCH_MODELS`, or the one of this repository.
pub fn folder() -> PathBuf {
    std::env::var_os("BENCH_MODELS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/shapes"), PathBuf::from)
}

pub struct Shape {
    config: Value,
}

impl Shape {
    pub fn read(name: &str) -> Self {
        let file = folder().join(name).join("config.json");
        let text = std::fs::read(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        Self { config: serde_json::from_slice(&text).expect("a config.json") }
    }

    /// Writes what the node needs into a folder.
    pub fn write(&self, folder: &Path) {
        for (name, value) in [("config.json", &self.config), ("tokenizer.json", &self.tokenizer())]
        {
            std::fs::write(folder.join(name), value.to_string()).expect("a folder of ours");
        }
    }

    /// Bytes of weights that a decode step reads, `bits` for each of a layer's: of the embedding a row for each token, unless it is
    /// the output's matrix, too, which has 16 bits.
    #[allow(dead_code)] // only where a floor is shown
    pub fn bytes_read_by_a_step(&self, bits: f64) -> f64 {
        let [hidden, heads] = ["hidden_size", "num_attention_heads"].map(|key| self.number(key));
        let head_dim = self.config["head_dim"].as_f64().unwrap_or(hidden / heads);
        let kv = self.number("num_key_value_heads") * head_dim;
        let attention = 2.0 * hidden * heads * head_dim + 2.0 * hidden * kv;
        let layer = attention + 3.0 * hidden * self.number("intermediate_size") + 2.0 * hidden;
        let output = self.number("vocab_size") * hidden + hidden;
        self.number("num_hidden_layers") * layer * bits / 8.0 + 2.0 * output
    }

    fn tokenizer(&self) -> Value {
        let ids = 0..self.number("vocab_size") as u32;
        let vocab: Map<_, _> = ids.map(|id| (format!("Ġ{id:x}"), id.into())).collect();
        let byte_level = json!({
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true
        });
        json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
            "normalizer": null, "pre_tokenizer": byte_level, "post_processor": null,
            "decoder": byte_level,
            "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "Ġ0"}
        })
    }

    fn number(&self, key: &str) -> f64 {
        self.config[key].as_f64().unwrap_or_else(|| panic!("config.json: no {key}"))
    }
}
