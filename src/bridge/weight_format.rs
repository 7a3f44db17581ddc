//! How a decoder's matrices are stored on a device.

use std::fmt;

use half::{bf16, f16};

use super::spec::{
    DecoderSpec, Dtype, LayerSpec, MatrixRole, MlpKind, TensorPart, WeightFormat, WeightKind,
};

impl Dtype {
    /// Little-endian elements as numbers.
    pub fn floats(self, elements: &[u8]) -> impl Iterator<Item = f32> + '_ {
        let value = move |element: &[u8]| match (self, element) {
            (Self::F16, &[a, b]) => f16::from_le_bytes([a, b]).to_f32(),
            (Self::BF16, &[a, b]) => bf16::from_le_bytes([a, b]).to_f32(),
            (_, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
            _ => 0.0,
        };
        elements.chunks_exact(self.bytes() as usize).map(value)
    }
}

impl From<Dtype> for WeightFormat {
    fn from(dtype: Dtype) -> Self {
        let kind = match dtype {
            Dtype::F16 => WeightKind::F16,
            Dtype::BF16 => WeightKind::BF16,
            _ => WeightKind::F32,
        };
        Self { kind, group: 0, offsets: false }
    }
}

impl WeightFormat {
    /// Whether a matrix is codes and scales.
    pub fn is_quantized(self) -> bool {
        !matches!(self.kind, WeightKind::F32 | WeightKind::F16 | WeightKind::BF16)
    }

    /// Of a matrix, before any padding of the engine's: elements, or codes, scales and offsets.
    pub fn bytes(self, rows: u64, columns: u64) -> u64 {
        let bits = match self.kind {
            WeightKind::F32 => 32,
            WeightKind::F16 | WeightKind::BF16 => 16,
            WeightKind::Fp8 | WeightKind::Int8 => 8,
            _ => 4,
        };
        let groups = if self.group == 0 { 1 } else { columns.div_ceil(self.group.into()) };
        let floats = u64::from(self.is_quantized()) + u64::from(self.offsets);
        rows * ((columns * bits).div_ceil(8) + groups * floats * 4)
    }
}

/// As people call it: `int4 in groups of 128`.
impl fmt::Display for WeightFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            WeightKind::F32 => "f32",
            WeightKind::F16 => "f16",
            WeightKind::BF16 => "bf16",
            WeightKind::Fp8 => "fp8",
            WeightKind::Int8 => "int8",
            WeightKind::Int4 => "int4",
            _ => "mxfp4",
        })?;
        if self.group > 0 {
            write!(f, " in groups of {}", self.group)?;
        }
        f.write_str(if self.offsets { " with zero points" } else { "" })
    }
}

/// Matrices of a layer that may be codes; routers, and gates of one output, are too small to be worth it.
pub const LAYER_MATRICES: [TensorPart; 7] = [
    TensorPart::Qkv,
    TensorPart::OutputGate,
    TensorPart::O,
    TensorPart::GateUp,
    TensorPart::Down,
    TensorPart::SharedGateUp,
    TensorPart::SharedDown,
];

impl LayerSpec {
    fn format_mut(&mut self, part: TensorPart) -> Option<&mut WeightFormat> {
        let Self { attention, mlp, .. } = self;
        match part {
            TensorPart::Qkv => Some(&mut attention.qkv.format),
            TensorPart::OutputGate => Some(&mut attention.gate),
            TensorPart::O => Some(&mut attention.o.format),
            TensorPart::GateUp => Some(&mut mlp.gate_up.format),
            TensorPart::Down => Some(&mut mlp.down.format),
            TensorPart::SharedGateUp => Some(&mut mlp.shared.gate_up),
            TensorPart::SharedDown => Some(&mut mlp.shared.down),
            _ => None,
        }
    }
}

impl DecoderSpec {
    /// The same with activations, KV and all matrices that are not quantized of one type.
    #[must_use]
    pub fn stored_as(mut self, dtype: Dtype) -> Self {
        self.activation = dtype;
        if self.kv != Dtype::Fp8 {
            self.kv = dtype;
        }
        self.for_each_format(|format| {
            if !format.is_quantized() {
                *format = dtype.into();
            }
        });
        self
    }

    /// Every matrix's format, the embedding's first and the head's last.
    pub fn for_each_format(&mut self, mut change: impl FnMut(&mut WeightFormat)) {
        change(&mut self.embedding);
        for layer in &mut self.layers {
            let (attention, mlp) = (&mut layer.attention, &mut layer.mlp);
            let shared = &mut mlp.shared;
            for format in [
                &mut attention.qkv.format,
                &mut attention.gate,
                &mut attention.o.format,
                &mut mlp.router.format,
                &mut mlp.gate_up.format,
                &mut mlp.down.format,
                &mut shared.gate_up,
                &mut shared.down,
                &mut shared.gate,
            ] {
                change(format);
            }
        }
        change(&mut self.head.format);
    }

    /// Of the matrix that a part of a layer is; `None` for vectors, routers and gates of one output, which stay elements.
    pub fn format_mut(&mut self, part: TensorPart, layer: u32) -> Option<&mut WeightFormat> {
        match part {
            TensorPart::Embedding => Some(&mut self.embedding),
            TensorPart::Head => Some(&mut self.head.format),
            _ => self.layers.get_mut(layer as usize)?.format_mut(part),
        }
    }

    /// The same to look at.
    pub fn format(&self, part: TensorPart, layer: u32) -> Option<WeightFormat> {
        match part {
            TensorPart::Embedding => Some(self.embedding),
            TensorPart::Head => Some(self.head.format),
            _ => self.layers.get(layer as usize).copied()?.format_mut(part).copied(),
        }
    }

    /// Every matrix that may be codes, by part and layer.
    pub fn matrices(&self) -> impl Iterator<Item = (TensorPart, u32)> + use<> {
        let of_layers = (0..self.layers.len() as u32)
            .flat_map(|layer| LAYER_MATRICES.map(|part| (part, layer)));
        of_layers.chain([(TensorPart::Embedding, 0), (TensorPart::Head, 0)])
    }

    /// Whether any matrix is codes and scales.
    pub fn has_codes(&self) -> bool {
        self.matrices()
            .filter_map(|(part, layer)| self.format(part, layer))
            .any(WeightFormat::is_quantized)
    }

    /// How that matrix is read; a tied head is the embedding.
    pub fn role(&self, part: TensorPart, layer: u32) -> MatrixRole {
        let mlp = self.layers.get(layer as usize).map(|layer| layer.mlp.kind);
        match part {
            TensorPart::Embedding => MatrixRole::Embedding,
            TensorPart::Head if self.tied_embeddings => MatrixRole::Embedding,
            TensorPart::GateUp | TensorPart::Down if mlp == Some(MlpKind::Experts) => {
                MatrixRole::Experts
            }
            _ => MatrixRole::Linear,
        }
    }

    /// Whether that matrix's columns have an order of their own; `None` where they cannot.
    pub fn ordered_mut(&mut self, part: TensorPart, layer: u32) -> Option<&mut bool> {
        let LayerSpec { attention, mlp, .. } = self.layers.get_mut(layer as usize)?;
        let is_dense = mlp.kind == MlpKind::Dense;
        match part {
            TensorPart::Qkv => Some(&mut attention.qkv.ordered),
            TensorPart::O => Some(&mut attention.o.ordered),
            TensorPart::GateUp if is_dense => Some(&mut mlp.gate_up.ordered),
            TensorPart::Down if is_dense => Some(&mut mlp.down.ordered),
            _ => None,
        }
    }
}
