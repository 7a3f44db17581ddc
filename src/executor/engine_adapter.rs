//! The engine's older border under the newer one, until the engine binds seats itself.

use crate::bridge::ffi::{
    EngineBatch, EngineOutput, SamplerSpec, SamplingRow, StepBatch, StepOutput,
};

use super::SeatBinding;

/// The seats of one model.
pub(super) struct Seats {
    pub block_size: u32,
    bound: Vec<Option<SeatBinding>>,
}

impl Seats {
    pub fn new(block_size: u32, max_batch_size: u32) -> Self {
        Self { block_size, bound: vec![None; max_batch_size as usize] }
    }

    pub fn bind(&mut self, binding: &SeatBinding) {
        self.bound[binding.seat as usize] = Some(binding.clone());
    }

    pub fn batch(&self, batch: &StepBatch) -> EngineBatch {
        let stride = batch.block_table_stride as usize;
        let mut engine = EngineBatch {
            model: batch.model,
            token_ids: batch.token_ids.clone(),
            cu_query_lens: vec![0],
            context_lens: batch.context_lens.clone(),
            block_tables: batch.block_tables.clone(),
            block_table_stride: batch.block_table_stride,
            seats: batch.seats.clone(),
            feed_sampled: batch.feed_sampled.clone(),
            sample: batch.sample.clone(),
            want_logits: batch.want_logits,
            ..EngineBatch::default()
        };
        for (row, (query_len, end)) in batch.query_lens.iter().zip(&batch.context_lens).enumerate()
        {
            for position in end - query_len..*end {
                let block =
                    batch.block_tables[row * stride + (position / self.block_size) as usize];
                engine.positions.push(position);
                engine.slot_mapping.push(block * self.block_size + position % self.block_size);
            }
            engine.cu_query_lens.push(engine.positions.len() as u32);
            let spec = self.bound[batch.seats[row] as usize].as_ref();
            engine.sampling.push(sampling_row(spec.map(|bound| bound.sampler.as_ref()), *end));
        }
        engine
    }
}

fn sampling_row(spec: Option<&SamplerSpec>, position: u32) -> SamplingRow {
    let neutral = SamplerSpec::neutral();
    let spec = spec.unwrap_or(&neutral);
    SamplingRow {
        temperature: spec.temperature,
        top_k: spec.top_k,
        top_p: spec.top_p,
        min_p: spec.min_p,
        seed: spec.seed,
        position,
        suppress_end: position < spec.end_from,
    }
}

pub(super) fn output(engine: EngineOutput, sample: &[bool], output: &mut StepOutput) {
    *output = StepOutput {
        logits: engine.logits,
        device_us: engine.device_us,
        idle_us: engine.idle_us,
        ..StepOutput::of_tokens(engine.token_ids, sample)
    };
}
