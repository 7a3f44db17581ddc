//! The tensors that a checkpoint of a decoder has: names, shapes, and the slots that they fill. A family says what differs from
//! Llama's names.

use crate::bridge::spec::{
    AttentionSpec, DecoderSpec, LayerSpec, MlpKind, MlpSpec, NormSpec, QkNorm, SharedExpertSpec,
    TensorPart, TensorSlot,
};

use super::transform::Transform;

/// Rows of a tensor that fill one slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Where they go.
    pub slot: TensorSlot,
    /// How many of the tensor's first dimension.
    pub rows: u64,
}

/// A tensor that the model needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpectedTensor {
    /// Its Hugging Face name.
    pub name: String,
    /// Row-major.
    pub shape: Vec<u64>,
    /// What its rows fill, in their order.
    pub pieces: Vec<Piece>,
    /// What happens to it before.
    pub transform: Transform,
}

impl ExpectedTensor {
    /// The name of the module whose weight this is, where it is a matrix of one.
    pub fn module(&self) -> Option<&str> {
        self.name.strip_suffix(".weight").filter(|_| self.shape.len() == 2)
    }
}

/// Where in a file the decoder's tensors stand. A multimodal file has them under a prefix, beside what is not ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Root {
    /// Before `embed_tokens`, `layers` and `norm`.
    pub decoder: &'static str,
    /// The head's whole name.
    pub head: &'static str,
    /// Beginnings of names that may be there and are not needed.
    pub others: &'static [&'static str],
}

impl Root {
    /// A file of nothing but a decoder.
    pub const PLAIN: &'static [Self] =
        &[Self { decoder: "model.", head: "lm_head.weight", others: &[] }];

    /// A decoder beside a vision tower, as hubs have it, and as transformers 4.52 to 4.57 kept it in memory.
    pub const MULTIMODAL: &'static [Self] = &[
        Self {
            decoder: "language_model.model.",
            head: "language_model.lm_head.weight",
            others: &["vision_tower.", "multi_modal_projector."],
        },
        Self {
            decoder: "model.language_model.",
            head: "lm_head.weight",
            others: &["model.vision_tower.", "model.multi_modal_projector."],
        },
    ];

    /// The embedding's name, by which a file shows which root it has.
    pub fn embedding(&self) -> String {
        format!("{}embed_tokens.weight", self.decoder)
    }

    /// Whether a file may have this tensor although the decoder does not need it.
    pub fn may_be_left_out(&self, name: &str) -> bool {
        // Old Llama checkpoints carry what follows from the configuration.
        name.ends_with(".rotary_emb.inv_freq")
            || self.others.iter().any(|other| name.starts_with(other))
    }
}

/// Gate, up and down of an MLP, as most families call them.
const LLAMA_MLP: [&str; 3] = ["gate_proj", "up_proj", "down_proj"];

/// How a family keeps its experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpertNames {
    /// `{at}.J.{name}.weight`, for gate, up and down.
    Each { at: &'static str, names: [&'static str; 3] },
    /// gpt-oss: all experts in one tensor, inputs before outputs, gate and up in turns.
    Together,
}

/// What a family calls its tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Names {
    pub pre_attention: &'static str,
    pub post_attention: &'static str,
    pub pre_mlp: &'static str,
    pub post_mlp: &'static str,
    /// q, k and v in one tensor `qkv_proj`.
    pub fused_qkv: bool,
    /// Gate and up in one tensor `gate_up_proj`.
    pub fused_gate_up: bool,
    /// Norms keep their difference from one.
    pub plus_one: bool,
    pub router: &'static str,
    /// The whole name.
    pub score_correction: &'static str,
    pub experts: ExpertNames,
    /// Of the expert that all tokens share: before `gate_proj` and so on.
    pub shared_expert: &'static str,
    pub shared_gate: &'static str,
}

impl Names {
    pub const LLAMA: Self = Self {
        pre_attention: "input_layernorm",
        post_attention: "post_attention_layernorm",
        pre_mlp: "post_attention_layernorm",
        post_mlp: "post_feedforward_layernorm",
        fused_qkv: false,
        fused_gate_up: false,
        plus_one: false,
        router: "mlp.gate",
        score_correction: "mlp.gate.e_score_correction_bias",
        experts: ExpertNames::Each { at: "mlp.experts", names: LLAMA_MLP },
        shared_expert: "mlp.shared_experts",
        shared_gate: "mlp.shared_expert_gate",
    };

    pub fn tensors(&self, spec: &DecoderSpec, root: &Root) -> Vec<ExpectedTensor> {
        let (vocab, hidden) = (u64::from(spec.vocab_size), u64::from(spec.hidden_size));
        let mut table = Table { names: self, hidden, all: Vec::new(), at: String::new(), layer: 0 };
        table.matrix(&root.embedding(), TensorPart::Embedding, (vocab, hidden));
        for (index, layer) in (0..).zip(&spec.layers) {
            table.layer = index;
            table.at = format!("{}layers.{index}.", root.decoder);
            table.layer_tensors(layer);
        }
        table.layer = 0;
        table.at = String::new();
        table.norm(&format!("{}norm", root.decoder), TensorPart::FinalNorm, &spec.final_norm);
        if !spec.tied_embeddings {
            table.matrix(root.head, TensorPart::Head, (vocab, hidden));
        }
        table.all
    }
}

/// The tensors so far, and where the next ones stand.
struct Table<'a> {
    names: &'a Names,
    hidden: u64,
    all: Vec<ExpectedTensor>,
    at: String,
    layer: u32,
}

impl Table<'_> {
    fn add(&mut self, name: &str, shape: Vec<u64>, pieces: Vec<Piece>, transform: Transform) {
        let name = format!("{}{name}", self.at);
        self.all.push(ExpectedTensor { name, shape, pieces, transform });
    }

    fn slot(&self, part: TensorPart, expert: u32, first_row: u64) -> TensorSlot {
        TensorSlot { part, layer: self.layer, expert, first_row: first_row as u32 }
    }

    /// All of a part, by the whole name.
    fn matrix(&mut self, name: &str, part: TensorPart, (rows, columns): (u64, u64)) {
        let piece = Piece { slot: self.slot(part, 0, 0), rows };
        self.add(name, vec![rows, columns], vec![piece], Transform::None);
    }

    fn vector(&mut self, name: &str, part: TensorPart, length: u64) {
        let piece = Piece { slot: self.slot(part, 0, 0), rows: length };
        self.add(name, vec![length], vec![piece], Transform::None);
    }

    fn norm(&mut self, name: &str, part: TensorPart, spec: &NormSpec) {
        if spec.has_weight() {
            self.norm_weight(name, part, self.hidden);
        }
    }

    fn norm_weight(&mut self, name: &str, part: TensorPart, length: u64) {
        self.vector(&format!("{name}.weight"), part, length);
        if let Some(last) = self.all.last_mut().filter(|_| self.names.plus_one) {
            last.transform = Transform::PlusOne;
        }
    }

    /// Rows from `first_row` of a part, with their bias: `part` and the one after it.
    fn linear(&mut self, name: &str, slot: TensorSlot, size: (u64, u64), bias: Option<TensorPart>) {
        let (rows, columns) = size;
        let weight = Piece { slot, rows };
        self.add(&format!("{name}.weight"), vec![rows, columns], vec![weight], Transform::None);
        if let Some(part) = bias {
            let bias = Piece { slot: TensorSlot { part, ..slot }, rows };
            self.add(&format!("{name}.bias"), vec![rows], vec![bias], Transform::None);
        }
    }

    fn layer_tensors(&mut self, layer: &LayerSpec) {
        let names = *self.names;
        self.norm(names.pre_attention, TensorPart::PreAttentionNorm, &layer.pre_attention);
        self.attention(&layer.attention);
        self.norm(names.post_attention, TensorPart::PostAttentionNorm, &layer.post_attention);
        self.norm(names.pre_mlp, TensorPart::PreMlpNorm, &layer.pre_mlp);
        match layer.mlp.kind {
            MlpKind::Experts => self.experts(&layer.mlp),
            _ => self.dense(&layer.mlp),
        }
        self.norm(names.post_mlp, TensorPart::PostMlpNorm, &layer.post_mlp);
    }

    fn attention(&mut self, attention: &AttentionSpec) {
        let (q, kv) = (u64::from(attention.q_size()), u64::from(attention.kv_size()));
        let bias = attention.qkv.bias.then_some(TensorPart::QkvBias);
        let slot = |table: &Self, first_row| table.slot(TensorPart::Qkv, 0, first_row);
        if self.names.fused_qkv {
            let whole = slot(self, 0);
            self.linear("self_attn.qkv_proj", whole, (q + 2 * kv, self.hidden), bias);
        } else {
            for (name, first_row, rows) in [("q", 0, q), ("k", q, kv), ("v", q + kv, kv)] {
                let rows_of = slot(self, first_row);
                self.linear(&format!("self_attn.{name}_proj"), rows_of, (rows, self.hidden), bias);
            }
        }
        let per_head = u64::from(attention.head_dim);
        let widths = match attention.qk_norm {
            QkNorm::PerHead => Some((per_head, per_head)),
            QkNorm::PerRow => Some((q, kv)),
            _ => None,
        };
        if let Some((of_q, of_k)) = widths {
            self.norm_weight("self_attn.q_norm", TensorPart::QNorm, of_q);
            self.norm_weight("self_attn.k_norm", TensorPart::KNorm, of_k);
        }
        if attention.sinks {
            self.vector("self_attn.sinks", TensorPart::Sinks, u64::from(attention.num_heads));
        }
        if attention.output_gate {
            let slot = self.slot(TensorPart::OutputGate, 0, 0);
            self.linear("self_attn.gate_proj", slot, (q, self.hidden), None);
        }
        let bias = attention.o.bias.then_some(TensorPart::OBias);
        self.linear("self_attn.o_proj", self.slot(TensorPart::O, 0, 0), (self.hidden, q), bias);
    }

    fn dense(&mut self, mlp: &MlpSpec) {
        let inner = u64::from(mlp.intermediate_size);
        let bias = mlp.gate_up.bias.then_some(TensorPart::GateUpBias);
        let gate_up = (self.slot(TensorPart::GateUp, 0, 0), bias);
        let bias = mlp.down.bias.then_some(TensorPart::DownBias);
        let down = (self.slot(TensorPart::Down, 0, 0), bias);
        if self.names.fused_gate_up {
            self.linear("mlp.gate_up_proj", gate_up.0, (2 * inner, self.hidden), gate_up.1);
            self.linear("mlp.down_proj", down.0, (self.hidden, inner), down.1);
        } else {
            self.gated("mlp", LLAMA_MLP, inner, gate_up, down);
        }
    }

    /// Gate, up and down of an MLP, `names` below `at`; gate's slot is followed by up's rows. Each with its bias, if it has one.
    fn gated(
        &mut self,
        at: &str,
        [gate, up, down]: [&str; 3],
        inner: u64,
        (gate_slot, bias): (TensorSlot, Option<TensorPart>),
        (down_slot, down_bias): (TensorSlot, Option<TensorPart>),
    ) {
        let up_slot = TensorSlot { first_row: inner as u32, ..gate_slot };
        self.linear(&format!("{at}.{gate}"), gate_slot, (inner, self.hidden), bias);
        self.linear(&format!("{at}.{up}"), up_slot, (inner, self.hidden), bias);
        self.linear(&format!("{at}.{down}"), down_slot, (self.hidden, inner), down_bias);
    }

    fn shared_expert(&mut self, shared: &SharedExpertSpec) {
        if shared.intermediate_size == 0 {
            return;
        }
        let gate_up = (self.slot(TensorPart::SharedGateUp, 0, 0), None);
        let down = (self.slot(TensorPart::SharedDown, 0, 0), None);
        let inner = shared.intermediate_size.into();
        self.gated(self.names.shared_expert, LLAMA_MLP, inner, gate_up, down);
        if shared.has_gate {
            let slot = self.slot(TensorPart::SharedGate, 0, 0);
            self.linear(self.names.shared_gate, slot, (1, self.hidden), None);
        }
    }

    fn experts(&mut self, mlp: &MlpSpec) {
        let inner = u64::from(mlp.intermediate_size);
        let (count, hidden) = (u64::from(mlp.num_experts), self.hidden);
        let router = self.slot(TensorPart::Router, 0, 0);
        let bias = mlp.router.bias.then_some(TensorPart::RouterBias);
        self.linear(self.names.router, router, (count, hidden), bias);
        if mlp.score_correction {
            self.vector(self.names.score_correction, TensorPart::ScoreCorrection, count);
        }
        match self.names.experts {
            ExpertNames::Each { at, names } => {
                for expert in 0..mlp.num_experts {
                    let gate_up = (self.slot(TensorPart::GateUp, expert, 0), None);
                    let down = (self.slot(TensorPart::Down, expert, 0), None);
                    self.gated(&format!("{at}.{expert}"), names, inner, gate_up, down);
                }
            }
            ExpertNames::Together => {
                let gate_up = (TensorPart::GateUp, TensorPart::GateUpBias, (hidden, 2 * inner));
                let down = (TensorPart::Down, TensorPart::DownBias, (inner, hidden));
                self.together("gate_up_proj", mlp.num_experts, gate_up, true);
                self.together("down_proj", mlp.num_experts, down, false);
            }
        }
        self.shared_expert(&mlp.shared);
    }

    /// `[experts, inputs, outputs]`, and the biases `[experts, outputs]`.
    fn together(
        &mut self,
        name: &str,
        count: u32,
        (part, bias, (inputs, outputs)): (TensorPart, TensorPart, (u64, u64)),
        interleaved: bool,
    ) {
        let transform = Transform::Experts { interleaved };
        let pieces = |table: &Self, part| -> Vec<Piece> {
            (0..count).map(|expert| Piece { slot: table.slot(part, expert, 0), rows: 1 }).collect()
        };
        let name = format!("mlp.experts.{name}");
        let (weights, biases) = (pieces(self, part), pieces(self, bias));
        let experts = u64::from(count);
        self.add(&name, vec![experts, inputs, outputs], weights, transform);
        self.add(&format!("{name}_bias"), vec![experts, outputs], biases, transform);
    }
}
