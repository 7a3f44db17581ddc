//! A decoder as a kind of device holds it: codes that it has no kernels for become elements.

use std::fmt;

use super::engine_options;
use crate::bridge::DeviceError;
use crate::bridge::ffi::{Backend, reads_codes};
use crate::bridge::spec::{DecoderSpec, Dtype, MatrixRole, WeightFormat};

/// Codes that a device holds as elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WidenedCodes {
    role: MatrixRole,
    format: WeightFormat,
}

/// `experts in mxfp4`.
impl fmt::Display for WidenedCodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.role {
            MatrixRole::Embedding => "embedding",
            MatrixRole::Experts => "experts",
            _ => "layers and head",
        };
        write!(f, "{name} in {}", self.format)
    }
}

/// The decoder there: a GPU makes bfloat16 of float32, and no device holds codes that it cannot read.
///
/// # Errors
/// `other` if the build has no such device.
pub fn spec_on(backend: Backend, spec: DecoderSpec) -> Result<DecoderSpec, DeviceError> {
    Ok(held(backend, spec)?.0)
}

/// Which of a decoder's codes become elements there, each once.
///
/// # Errors
/// As [`spec_on`].
pub fn widened(backend: Backend, spec: &DecoderSpec) -> Result<Vec<WidenedCodes>, DeviceError> {
    Ok(held(backend, spec.clone())?.1)
}

fn held(
    backend: Backend,
    mut spec: DecoderSpec,
) -> Result<(DecoderSpec, Vec<WidenedCodes>), DeviceError> {
    if (backend, spec.activation) == (Backend::Cuda, Dtype::F32) {
        spec = spec.stored_as(Dtype::BF16);
    }
    let options = engine_options(backend, 1);
    let widened = widen(&mut spec, |role, format| Ok(reads_codes(&options, role, &format)?))?;
    Ok((spec, widened))
}

/// Makes elements of what cannot be read.
fn widen(
    spec: &mut DecoderSpec,
    mut reads: impl FnMut(MatrixRole, WeightFormat) -> Result<bool, DeviceError>,
) -> Result<Vec<WidenedCodes>, DeviceError> {
    let elements = WeightFormat::from(spec.activation);
    let mut widened = Vec::new();
    for (part, layer) in spec.matrices() {
        let role = spec.role(part, layer);
        let Some(format) = spec.format_mut(part, layer).filter(|format| format.is_quantized())
        else {
            continue;
        };
        if reads(role, *format)? {
            continue;
        }
        let codes = WidenedCodes { role, format: *format };
        if !widened.contains(&codes) {
            widened.push(codes);
        }
        *format = elements;
    }
    Ok(widened)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bridge::spec::{MlpKind, WeightKind};
    use crate::checkpoint::{Checkpoint, LoadFormat, Quantization};

    const BF16: WeightFormat = WeightFormat { kind: WeightKind::BF16, group: 0, offsets: false };

    fn quantized() -> DecoderSpec {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/llama32-tiny-bf16");
        let opened = Checkpoint::open(path.as_ref(), LoadFormat::Safetensors);
        let mut checkpoint = opened.expect("a good checkpoint");
        let (layers, head) = (Some(Quantization::Int4), Some(Quantization::Int8));
        checkpoint.quantize(layers, head).expect("of 16 bits");
        checkpoint.spec().clone()
    }

    fn names(widened: &[WidenedCodes]) -> Vec<String> {
        widened.iter().map(WidenedCodes::to_string).collect()
    }

    #[test]
    fn what_cannot_be_read_becomes_elements_and_is_named_once() {
        let mut spec = quantized();
        spec.layers[1].mlp.kind = MlpKind::Experts;
        let of_products = |role, _| Ok(role == MatrixRole::Linear);
        let widened = widen(&mut spec, of_products).expect("an answer");
        assert_eq!(names(&widened), ["experts in int4 in groups of 128", "embedding in int8"]);
        assert!(spec.layers[0].mlp.gate_up.format.is_quantized());
        let mlp = &spec.layers[1].mlp;
        assert_eq!([mlp.gate_up.format, mlp.down.format], [BF16; 2]);
        assert_eq!([spec.embedding, spec.head.format], [BF16; 2], "they are one matrix");
    }

    #[test]
    fn a_cpu_reads_all_codes() {
        let spec = quantized();
        assert_eq!(widened(Backend::Cpu, &spec), Ok(Vec::new()));
        assert_eq!(spec_on(Backend::Cpu, spec.clone()), Ok(spec));
    }
}
