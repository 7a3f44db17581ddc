//! A device with one random model, and steps on it, for benchmarks of the engine.

use cxx::UniquePtr;
use inferno_node::bridge::ffi::{
    self, Context, DeviceOptions, EngineBatch as StepBatch, EngineOutput as StepOutput, Isa,
    ModelLimits, ModelPlan, ModelShape, SamplingRow,
};

/// Stands for "the token sampled last for this seat".
pub const FED: u32 = u32::MAX;

/// A device with one random model.
pub struct Runner {
    context: UniquePtr<Context>,
    /// What the model took.
    pub plan: ModelPlan,
    block_size: u32,
    blocks_per_seat: u32,
    /// How every row samples.
    pub sampling: SamplingRow,
    batch: StepBatch,
    output: StepOutput,
}

impl Runner {
    /// Seat s has the blocks from s * ceil(max_seq_len / block_size) on; `kv_bytes` must hold them.
    pub fn new(shape: &ModelShape, limits: &ModelLimits, isa: Isa, num_threads: u32) -> Self {
        let need = ffi::required_bytes(&DeviceOptions::cpu(num_threads, isa, 0), shape, limits)
            .expect("a good shape");
        let pool_bytes = need.weight_bytes + need.workspace_bytes + limits.kv_bytes;
        let options = DeviceOptions::cpu(num_threads, isa, pool_bytes);
        let mut context = ffi::new_context(&options).expect("memory for the pool");
        let plan = context.pin_mut().add_model(shape, limits).expect("memory for the model");
        context.pin_mut().fill_random(plan.model, 1).expect("an empty model");
        context.pin_mut().finish_model(plan.model).expect("all weights");
        let sampling = SamplingRow {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            seed: 1,
            position: 0,
            suppress_end: false,
        };
        Self {
            context,
            batch: StepBatch { model: plan.model, ..StepBatch::default() },
            plan,
            block_size: limits.block_size,
            blocks_per_seat: limits.max_seq_len.div_ceil(limits.block_size),
            sampling,
            output: StepOutput::default(),
        }
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.context.isa()
    }

    /// One step of (first position, query tokens, seat); every row samples.
    pub fn step(&mut self, queries: &[(u32, &[u32], u32)]) {
        let batch = &mut self.batch;
        let model = batch.model;
        *batch = StepBatch { model, cu_query_lens: vec![0], ..std::mem::take(batch) };
        for list in [
            &mut batch.token_ids,
            &mut batch.positions,
            &mut batch.slot_mapping,
            &mut batch.context_lens,
            &mut batch.block_tables,
            &mut batch.seats,
        ] {
            list.clear();
        }
        batch.feed_sampled.clear();
        batch.sample.clear();
        batch.sampling.clear();
        batch.block_table_stride = self.blocks_per_seat;
        for &(first, token_ids, seat) in queries {
            let base = seat * self.blocks_per_seat;
            for (position, &id) in (first..).zip(token_ids) {
                batch.token_ids.push(id);
                batch.positions.push(position);
                batch.slot_mapping.push(base * self.block_size + position);
            }
            batch.cu_query_lens.push(batch.token_ids.len() as u32);
            let context_len = first + token_ids.len() as u32;
            batch.context_lens.push(context_len);
            batch.block_tables.extend(base..base + self.blocks_per_seat);
            batch.seats.push(seat);
            batch.feed_sampled.push(token_ids == [FED]);
            batch.sample.push(true);
            batch.sampling.push(SamplingRow { position: context_len, ..self.sampling });
        }
        self.context.pin_mut().run_step(batch, &mut self.output).expect("a good batch");
    }
}
