//! A device with one model, and steps on it, for benchmarks of the engine.

use std::pin::Pin;

use cxx::UniquePtr;
use inferno_node::bridge::ffi::{
    self, Context, DeviceOptions, Isa, ModelLimits, ModelPlan, SamplerSpec, StepBatch, StepOutput,
};
use inferno_node::bridge::spec::DecoderSpec;
use inferno_node::bridge::{NO_MASK, NO_TOKEN};

/// Stands for "the token sampled last for this seat".
pub const FED: u32 = u32::MAX;

/// Most tokens of one step.
pub const STEP_TOKENS: u32 = 512;

/// As many as the machine has cores.
pub fn num_threads() -> u32 {
    std::thread::available_parallelism().map_or(1, |n| n.get() as u32)
}

/// Bytes a second, of the best 64 MB just now: neighbours on the machine take of its memory's bandwidth as they like, for seconds at a
/// time.
#[allow(dead_code, reason = "for what reads all weights for one row")]
pub fn read_bandwidth(num_threads: u32) -> f64 {
    ffi::measure_read_bandwidth(256 << 20, num_threads, 2).expect("256 MiB of memory")
}

/// The middle one.
#[allow(dead_code, reason = "for what is measured in rounds")]
pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut all: Vec<f64> = values.collect();
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

/// With KV blocks for every seat at its longest.
#[allow(dead_code, reason = "one benchmark has limits of its own")]
pub fn limits(spec: &DecoderSpec, max_batch_size: u32, max_seq_len: u32) -> ModelLimits {
    let limits = ModelLimits {
        block_size: 16,
        kv_bytes: 0,
        max_batch_size,
        max_step_tokens: STEP_TOKENS,
        max_seq_len,
        end_token_ids: Vec::new(),
    };
    let options = DeviceOptions::cpu(1, Isa::Auto, 0);
    let need = ffi::required_bytes(&options, spec, &limits).expect("a good spec");
    let blocks = u64::from(max_batch_size) * u64::from(max_seq_len.div_ceil(16));
    ModelLimits { kv_bytes: need.kv_bytes_per_block * blocks, ..limits }
}

/// A device with one model.
pub struct Runner {
    context: UniquePtr<Context>,
    /// What the model took.
    pub plan: ModelPlan,
    blocks_per_seat: u32,
    num_seats: u32,
    batch: StepBatch,
    output: StepOutput,
}

impl Runner {
    /// A random model. Seat s has the blocks from s * ceil(max_seq_len / block_size) on; `kv_bytes` must hold them.
    pub fn new(spec: &DecoderSpec, limits: &ModelLimits, isa: Isa, num_threads: u32) -> Self {
        Self::filled(spec, limits, (isa, num_threads), |context, model| {
            context.fill_random(model, 1).expect("an empty model");
        })
    }

    /// The same with what `fill` gives the model of this number.
    pub fn filled(
        spec: &DecoderSpec,
        limits: &ModelLimits,
        (isa, num_threads): (Isa, u32),
        fill: impl FnOnce(Pin<&mut Context>, u32),
    ) -> Self {
        let need = ffi::required_bytes(&DeviceOptions::cpu(num_threads, isa, 0), spec, limits)
            .expect("a good spec");
        let pool_bytes = need.weight_bytes + need.workspace_bytes + limits.kv_bytes;
        let options = DeviceOptions::cpu(num_threads, isa, pool_bytes);
        let mut context = ffi::new_context(&options).expect("memory for the pool");
        let plan = context.pin_mut().add_model(spec, limits).expect("memory for the model");
        fill(context.pin_mut(), plan.model);
        context.pin_mut().finish_model(plan.model).expect("all weights");
        let mut runner = Self {
            context,
            batch: StepBatch { model: plan.model, ..StepBatch::default() },
            plan,
            blocks_per_seat: limits.max_seq_len.div_ceil(limits.block_size),
            num_seats: limits.max_batch_size,
            output: StepOutput::default(),
        };
        runner.bind(&SamplerSpec { seed: 1, ..SamplerSpec::greedy() });
        runner
    }

    /// Every seat samples so from here on; none has a token to be fed.
    pub fn bind(&mut self, sampler: &SamplerSpec) {
        let model = self.plan.model;
        for seat in 0..self.num_seats {
            let bound = self.context.pin_mut().bind_seat(model, seat, sampler, 0, &[]);
            bound.expect("a good sampler");
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
        *batch = StepBatch { model, ..std::mem::take(batch) };
        for list in [
            &mut batch.token_ids,
            &mut batch.query_lens,
            &mut batch.context_lens,
            &mut batch.block_tables,
            &mut batch.seats,
            &mut batch.next_token_ids,
            &mut batch.mask_rows,
        ] {
            list.clear();
        }
        for list in [&mut batch.feed_sampled, &mut batch.sample, &mut batch.score] {
            list.clear();
        }
        batch.block_table_stride = self.blocks_per_seat;
        for &(first, token_ids, seat) in queries {
            let base = seat * self.blocks_per_seat;
            let query_len = token_ids.len() as u32;
            batch.token_ids.extend_from_slice(token_ids);
            batch.query_lens.push(query_len);
            batch.context_lens.push(first + query_len);
            batch.block_tables.extend(base..base + self.blocks_per_seat);
            batch.seats.push(seat);
            batch.feed_sampled.push(token_ids == [FED]);
            batch.sample.push(true);
            batch.score.push(false);
            batch.next_token_ids.push(NO_TOKEN);
            batch.mask_rows.push(NO_MASK);
        }
        self.context.pin_mut().run_step(batch, &mut self.output).expect("a good batch");
    }
}
