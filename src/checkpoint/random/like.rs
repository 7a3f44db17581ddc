//! The families whose shape can be had, with the values of their published `config.json`.

use clap::ValueEnum;
use serde_json::{Value, json};

use super::packing::{RandomFormat, Unplaced};
use super::tokens::Tokens;
use super::{RandomError, common_config};
use crate::checkpoint::families::ExpectedTensor;

/// Whose shape a random checkpoint has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, ValueEnum)]
pub enum Like {
    /// 8.03 B parameters, 16.1 GB.
    #[value(name = "llama-3.1-8b")]
    Llama31With8B,
    /// 1.24 B parameters, tied embeddings, 2.5 GB.
    #[value(name = "llama-3.2-1b")]
    Llama32With1B,
    /// 6.74 B parameters, 13.5 GB.
    #[value(name = "llama-2-7b")]
    Llama2With7B,
}

/// What a checkpoint is made from.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Recipe {
    /// For people.
    pub name: &'static str,
    /// `config.json`.
    pub config: Value,
    /// Which special tokens stand where.
    pub tokens: Tokens,
    /// Of the layers' matrices.
    pub format: Option<RandomFormat>,
}

impl Recipe {
    pub(super) fn of(like: Like) -> Self {
        let (name, tokens, own) = match like {
            Like::Llama31With8B => ("llama-3.1-8b", Tokens::Llama3, llama_31_8b()),
            Like::Llama32With1B => ("llama-3.2-1b", Tokens::Llama3, llama_32_1b()),
            Like::Llama2With7B => ("llama-2-7b", Tokens::Llama2, llama_2_7b()),
        };
        let mut config = common_config();
        if let (Value::Object(all), Value::Object(own)) = (&mut config, own) {
            all.extend(own);
        }
        config["bos_token_id"] = tokens.begin().into();
        config["eos_token_id"] = tokens.end_ids();
        Self { name, config, tokens, format: None }
    }

    /// Writes the layers' matrices in a format.
    pub(super) fn quantize(&mut self, format: Option<RandomFormat>) {
        self.format = format;
        if let Some(format) = format {
            self.config["quantization_config"] = format.config();
        }
    }

    /// What stands in the files for these.
    pub(super) fn tensors(&self, tensors: &[ExpectedTensor]) -> Vec<Unplaced> {
        let stored = |tensor: &ExpectedTensor| match self.format {
            Some(format) => format.tensors(tensor),
            None => vec![Unplaced::of_elements(tensor)],
        };
        tensors.iter().flat_map(stored).collect()
    }

    /// Leaves only the first `layers` layers.
    pub(super) fn cut(&mut self, layers: u32) -> Result<(), RandomError> {
        let max = self.number("num_hidden_layers");
        if !(1..=max).contains(&layers) {
            return Err(RandomError::Layers { max, got: layers });
        }
        self.config["num_hidden_layers"] = layers.into();
        Ok(())
    }

    pub(super) fn vocab_size(&self) -> u32 {
        self.number("vocab_size")
    }

    pub(super) fn max_positions(&self) -> u32 {
        self.number("max_position_embeddings")
    }

    /// `generation_config.json` as these families have it.
    pub(super) fn generation_config(&self) -> Value {
        json!({
            "bos_token_id": self.config["bos_token_id"], "eos_token_id": self.config["eos_token_id"],
            "do_sample": true, "temperature": 0.6, "top_p": 0.9
        })
    }

    fn number(&self, key: &str) -> u32 {
        let number = self.config[key].as_u64().and_then(|number| u32::try_from(number).ok());
        number.expect("every recipe has this size")
    }
}

/// As Llama-3.1-8B-Instruct.
fn llama_31_8b() -> Value {
    json!({
        "vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131_072,
        "rope_theta": 500_000.0, "rope_scaling": llama3_rope(8.0), "tie_word_embeddings": false
    })
}

/// As Llama-3.2-1B-Instruct.
fn llama_32_1b() -> Value {
    json!({
        "vocab_size": 128_256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "max_position_embeddings": 131_072,
        "rope_theta": 500_000.0, "rope_scaling": llama3_rope(32.0), "tie_word_embeddings": true
    })
}

/// As Llama-2-7b-chat-hf, in bfloat16 (the published one is float16).
fn llama_2_7b() -> Value {
    json!({
        "vocab_size": 32_000, "hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 4096,
        "rope_theta": 10_000.0, "rope_scaling": null, "tie_word_embeddings": false
    })
}

fn llama3_rope(factor: f64) -> Value {
    json!({
        "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192
    })
}
