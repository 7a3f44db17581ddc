//! A decoder as data: what a family's file makes of `config.json` and the engine runs. The fields are explained in
//! `cpp/engine/spec/spec.h`, whose order of computation they follow; the enumerations are the engine's own, held against it by the
//! compiler.

#[allow(missing_docs, unsafe_code)]
#[cxx::bridge(namespace = "inferno")]
pub mod ffi {
    /// Element type of a tensor.
    #[namespace = "inferno::ops"]
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    #[repr(u8)]
    enum Dtype {
        F32,
        F16,
        BF16,
        /// e4m3; of the KV cache only.
        Fp8,
    }

    #[namespace = "inferno::ops"]
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    #[repr(u8)]
    enum WeightKind {
        F32,
        F16,
        BF16,
        /// e4m3.
        Fp8,
        Int8,
        Int4,
        /// e2m1.
        Mxfp4,
    }

    /// How a matrix is stored on the device: `cpp/ops/linear/weight_format.h`.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    struct WeightFormat {
        kind: WeightKind,
        /// Columns that share a scale; 0: all of a row.
        group: u32,
        offsets: bool,
    }

    #[namespace = "inferno::engine"]
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    #[repr(u8)]
    enum NormKind {
        None,
        Rms,
        RmsUnweighted,
    }

    /// The norm of q and k before they are turned.
    #[namespace = "inferno::engine"]
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    #[repr(u8)]
    enum QkNorm {
        None,
        PerHead,
        PerHeadUnweighted,
        /// One over all heads of a token.
        PerRow,
    }

    #[namespace = "inferno::ops"]
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    #[repr(u8)]
    enum ActivationKind {
        Silu,
        GeluTanh,
        /// gpt-oss's.
        ClampedSilu,
    }

    #[namespace = "inferno::engine"]
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    #[repr(u8)]
    enum MlpKind {
        Dense,
        Experts,
    }

    /// How a router's logits become weights.
    #[namespace = "inferno::ops"]
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    #[repr(u8)]
    enum RouterKind {
        /// Softmax over all experts, then the top k.
        SoftmaxTopK,
        /// The top k, then softmax over these.
        TopKSoftmax,
        /// Sigmoid of each; the top k with the score correction, weighed without it.
        Sigmoid,
    }

    /// What a tensor is part of.
    #[namespace = "inferno::engine"]
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
    #[repr(u8)]
    enum TensorPart {
        Embedding,
        FinalNorm,
        Head,
        PreAttentionNorm,
        Qkv,
        QkvBias,
        QkvOrder,
        QNorm,
        KNorm,
        Sinks,
        OutputGate,
        O,
        OBias,
        OOrder,
        PostAttentionNorm,
        PreMlpNorm,
        Router,
        RouterBias,
        ScoreCorrection,
        GateUp,
        GateUpBias,
        GateUpOrder,
        Down,
        DownBias,
        DownOrder,
        SharedGateUp,
        SharedDown,
        SharedGate,
        PostMlpNorm,
    }

    /// How a matrix is read.
    #[namespace = "inferno::engine"]
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    #[repr(u8)]
    enum MatrixRole {
        /// Row by row.
        Embedding,
        /// As a factor of a product.
        Linear,
        /// As one of many of which each token takes a few.
        Experts,
    }

    /// Where a tensor goes.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct TensorSlot {
        part: TensorPart,
        /// 0 for what is no layer's.
        layer: u32,
        /// 0 where there is one MLP.
        expert: u32,
        /// Of a vector: its first element.
        first_row: u32,
    }

    #[derive(Debug, Clone, Copy, PartialEq)]
    struct NormSpec {
        kind: NormKind,
        eps: f32,
    }

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct LinearSpec {
        bias: bool,
        format: WeightFormat,
        /// Its columns stand in an order of their own, which is loaded with it.
        ordered: bool,
    }

    #[derive(Debug, Clone, PartialEq)]
    struct RopeSpec {
        /// \[rotary_dim / 2\]
        inv_freq: Vec<f32>,
        /// Of cosine and sine.
        scale: f32,
        interleaved: bool,
        query_beta: f32,
        query_original_positions: u32,
    }

    #[derive(Debug, Clone, Copy, PartialEq)]
    struct AttentionSpec {
        num_heads: u32,
        num_kv_heads: u32,
        head_dim: u32,
        qkv: LinearSpec,
        o: LinearSpec,
        qk_norm: QkNorm,
        qk_norm_eps: f32,
        /// Index into the decoder's ropes, or [`NO_ROPE`](super::NO_ROPE).
        rope: u32,
        /// Positions that a token sees, itself included; 0: all.
        window: u32,
        scale: f32,
        /// 0: none.
        softcap: f32,
        sinks: bool,
        /// Each element of the output times the sigmoid of its gate's.
        output_gate: bool,
        /// Of the output gate's matrix.
        gate: WeightFormat,
        /// Of keys in fp8; else 1.
        k_scale: f32,
        v_scale: f32,
    }

    #[derive(Debug, Clone, Copy, PartialEq)]
    struct Activation {
        kind: ActivationKind,
        alpha: f32,
        limit: f32,
    }

    /// An expert that every token goes through, beside those that a router chooses.
    #[derive(Debug, Clone, Copy, PartialEq)]
    struct SharedExpertSpec {
        /// 0: there is none.
        intermediate_size: u32,
        gate_up: WeightFormat,
        down: WeightFormat,
        /// Its output is multiplied by the sigmoid of one gate for each token.
        has_gate: bool,
        gate: WeightFormat,
    }

    #[derive(Debug, Clone, Copy, PartialEq)]
    struct MlpSpec {
        kind: MlpKind,
        /// Of an expert, where there are several.
        intermediate_size: u32,
        activation: Activation,
        gate_up: LinearSpec,
        down: LinearSpec,
        num_experts: u32,
        experts_per_token: u32,
        router: LinearSpec,
        router_kind: RouterKind,
        score_correction: bool,
        renormalise: bool,
        routed_scale: f32,
        shared: SharedExpertSpec,
    }

    #[derive(Debug, Clone, Copy, PartialEq)]
    struct LayerSpec {
        pre_attention: NormSpec,
        post_attention: NormSpec,
        pre_mlp: NormSpec,
        post_mlp: NormSpec,
        attention: AttentionSpec,
        mlp: MlpSpec,
        residual_scale: f32,
    }

    #[derive(Debug, Clone, PartialEq)]
    struct DecoderSpec {
        vocab_size: u32,
        hidden_size: u32,
        /// Between the parts of a GPU; a CPU computes in float.
        activation: Dtype,
        /// `Fp8`, or as the activations.
        kv: Dtype,
        embedding: WeightFormat,
        embedding_scale: f32,
        /// The head is the embedding itself.
        tied_embeddings: bool,
        head: LinearSpec,
        final_norm: NormSpec,
        logit_scale: f32,
        /// 0: none.
        logit_softcap: f32,
        ropes: Vec<RopeSpec>,
        layers: Vec<LayerSpec>,
    }

    unsafe extern "C++" {
        include!("engine/spec/spec.h");
        include!("engine/weights/weights.h");

        #[namespace = "inferno::ops"]
        type Dtype;
        #[namespace = "inferno::ops"]
        type WeightKind;
        #[namespace = "inferno::engine"]
        type NormKind;
        #[namespace = "inferno::engine"]
        type QkNorm;
        #[namespace = "inferno::ops"]
        type ActivationKind;
        #[namespace = "inferno::engine"]
        type MatrixRole;
        #[namespace = "inferno::engine"]
        type MlpKind;
        #[namespace = "inferno::ops"]
        type RouterKind;
        #[namespace = "inferno::engine"]
        type TensorPart;
    }
}

pub use ffi::*;

/// An attention without rotation has this for its rope.
pub const NO_ROPE: u32 = u32::MAX;

impl NormSpec {
    /// No norm.
    pub const NONE: Self = Self { kind: NormKind::None, eps: 0.0 };

    /// RMSNorm with a weight.
    pub fn rms(eps: f32) -> Self {
        Self { kind: NormKind::Rms, eps }
    }

    /// Whether there is a weight to load.
    pub fn has_weight(&self) -> bool {
        self.kind == NormKind::Rms
    }
}

impl Activation {
    /// x · sigmoid(x).
    pub const SILU: Self = Self { kind: ActivationKind::Silu, alpha: 1.0, limit: 0.0 };
    /// GELU by its tanh approximation.
    pub const GELU_TANH: Self = Self { kind: ActivationKind::GeluTanh, alpha: 1.0, limit: 0.0 };
}

impl Dtype {
    /// Bytes of one element.
    pub fn bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::Fp8 => 1,
            _ => 2,
        }
    }
}

impl AttentionSpec {
    /// Outputs of q.
    pub fn q_size(&self) -> u32 {
        self.num_heads * self.head_dim
    }

    /// Outputs of k, and of v.
    pub fn kv_size(&self) -> u32 {
        self.num_kv_heads * self.head_dim
    }
}

impl DecoderSpec {
    /// The largest number of positions that some layer looks back on; `None`: some layer sees all.
    pub fn widest_window(&self) -> Option<u32> {
        let windows = self.layers.iter().map(|layer| layer.attention.window);
        windows
            .map(|window| (window > 0).then_some(window))
            .collect::<Option<Vec<_>>>()?
            .into_iter()
            .max()
    }
}
