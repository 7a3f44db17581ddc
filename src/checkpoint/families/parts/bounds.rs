//! The bounds of what a `config.json` may claim. They are the engine's (`check_spec` in `cpp/engine/spec/spec.cc`), so that what it
//! would refuse when the model is loaded is refused when the file is read, by the file's key; a test holds the two together.

pub const MAX_VOCAB_SIZE: u32 = 1 << 22;
pub const MAX_HIDDEN_SIZE: u32 = 1 << 18;
/// Of an MLP, and of one expert.
pub const MAX_INTERMEDIATE_SIZE: u32 = 1 << 20;
pub const MAX_LAYERS: u32 = 1 << 10;
pub const MAX_HEADS: u32 = 1 << 10;
pub const MAX_HEAD_DIM: u32 = 1 << 10;
pub const MAX_EXPERTS: u32 = 1 << 10;
pub const MAX_EXPERTS_PER_TOKEN: u32 = 1 << 6;
/// They are counted in single precision on the device.
pub const MAX_POSITIONS: u32 = 1 << 28;

/// Ours alone: each has tensors of its own, which are listed before the first is looked for.
pub const MAX_EXPERTS_OF_ALL: u64 = 1 << 16;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bridge::ffi::{DeviceOptions, Isa, ModelLimits, required_bytes};
    use crate::bridge::spec::{
        Activation, DecoderSpec, Dtype, LayerSpec, MlpKind, NO_ROPE, NormSpec, RopeSpec,
    };
    use crate::checkpoint::families::parts::sizes::{RequiredSizes, Sizes};

    /// A decoder of one layer of experts that is small in every way.
    fn small() -> DecoderSpec {
        let all = RequiredSizes {
            vocab_size: 8,
            hidden_size: 8,
            intermediate_size: 8,
            num_layers: 1,
            num_heads: 1,
            max_position_embeddings: 16,
        };
        let sizes = Sizes {
            all,
            num_kv_heads: 1,
            head_dim: 8,
            norm: NormSpec::rms(1e-5),
            tied: true,
            activation: Activation::SILU,
            dtype: Dtype::F32,
        };
        sizes.decoder(|_| {
            let mut layer = sizes.layer();
            layer.attention.rope = NO_ROPE;
            layer.mlp.kind = MlpKind::Experts;
            layer.mlp.num_experts = MAX_EXPERTS_PER_TOKEN + 1;
            layer
        })
    }

    /// What the engine says against a decoder.
    fn fault(spec: &DecoderSpec) -> Option<String> {
        let limits = ModelLimits {
            block_size: 16,
            kv_bytes: 0,
            max_batch_size: 1,
            max_step_tokens: 1,
            max_seq_len: 16,
            end_token_ids: Vec::new(),
        };
        let device = DeviceOptions::cpu(1, Isa::Portable, 0);
        required_bytes(&device, spec, &limits).err().map(|error| error.what().to_owned())
    }

    #[test]
    fn the_engine_has_the_same_bounds() {
        type Change = fn(&mut DecoderSpec, u32);
        fn layer(spec: &mut DecoderSpec) -> &mut LayerSpec {
            &mut spec.layers[0]
        }
        let bounds: [(&str, u32, Change); 9] = [
            ("vocab_size", MAX_VOCAB_SIZE, |spec, size| spec.vocab_size = size),
            ("hidden_size", MAX_HIDDEN_SIZE, |spec, size| spec.hidden_size = size),
            ("intermediate_size", MAX_INTERMEDIATE_SIZE, |spec, size| {
                layer(spec).mlp.intermediate_size = size;
            }),
            ("num_layers", MAX_LAYERS, |spec, size| {
                spec.layers = vec![spec.layers[0]; size as usize];
            }),
            ("num_heads", MAX_HEADS, |spec, size| layer(spec).attention.num_heads = size),
            ("head_dim", MAX_HEAD_DIM, |spec, size| layer(spec).attention.head_dim = size),
            ("num_experts", MAX_EXPERTS, |spec, size| layer(spec).mlp.num_experts = size),
            ("experts_per_token", MAX_EXPERTS_PER_TOKEN, |spec, size| {
                layer(spec).mlp.experts_per_token = size;
            }),
            ("query_original_positions", MAX_POSITIONS, |spec, size| {
                spec.ropes = vec![RopeSpec {
                    inv_freq: vec![1.0],
                    scale: 1.0,
                    interleaved: false,
                    query_beta: 0.0,
                    query_original_positions: size,
                }];
            }),
        ];
        for (name, most, change) in bounds {
            let with = |size| {
                let mut spec = small();
                change(&mut spec, size);
                fault(&spec)
            };
            assert_eq!(with(most), None, "{name}");
            let beyond = with(most + 1).unwrap_or_default();
            assert!(beyond.contains(&format!("{name}: expected 1 to {most}, got")), "{beyond}");
        }
    }
}
