//! The border between Rust and the engine: plain data down, plain data up, every call fallible, no logic.
//!
//! With `bridge/spec.rs`, whose types it carries, the only `cxx::bridge`. `unsafe` stands only in these two, in `checkpoint/mmap.rs`
//! and in `gpu/driver.rs`. A C++ exception arrives as an error whose text starts with a fixed code and a colon;
//! [`DeviceError::parse`] reads it.

mod error;
mod options;
pub mod spec;
mod step;
mod weight_format;

pub use error::{DeviceError, DeviceErrorCode};
pub use options::ISAS;
pub use step::{NO_MASK, NO_TOKEN};
pub use weight_format::LAYER_MATRICES;

#[allow(missing_docs, unsafe_code, clippy::missing_safety_doc)]
#[cxx::bridge(namespace = "inferno")]
pub mod ffi {
    /// Which instruction set the CPU backend uses; `Auto` takes the best that the machine has.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    enum Isa {
        Auto,
        Portable,
        Avx2,
        AvxVnni,
        Avx512Bf16,
        Amx,
    }

    /// What is multiplied.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Factors {
        Floats,
        Bf16,
        /// Integers.
        Bytes,
    }

    /// What kind of device computes.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    enum Backend {
        Cpu,
        /// A GPU; only in builds with the feature `cuda`.
        Cuda,
    }

    /// Which kernels attend.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum AttentionBackend {
        /// `Flash`.
        Auto,
        /// The fastest that the device has.
        Flash,
        /// Portable ones, a query tile at a time, to hold the others against.
        Reference,
    }

    /// What a device is made with. A GPU is the one whose context is current in the thread that makes it.
    #[derive(Debug, Clone)]
    struct DeviceOptions {
        /// Threads of the CPU backend, at least 1; on a GPU those that copy weights.
        num_threads: u32,
        /// Of the CPU backend.
        isa: Isa,
        /// The memory pool's one reservation; weights, KV blocks and workspace come from it.
        pool_bytes: u64,
        backend: Backend,
        attention: AttentionBackend,
        /// On a GPU: the same tokens alone and in any batch. The CPU always gives them.
        deterministic: bool,
    }

    /// A tensor as it comes, little-endian and row-major; what the fields mean for a format says `cpp/ops/linear/packed_weights.h`.
    #[derive(Debug, Clone, Copy)]
    struct TensorRows<'a> {
        /// Of a vector one that is not quantized.
        format: WeightFormat,
        /// Rows and columns, or elements.
        shape: &'a [u64],
        data: &'a [u8],
        /// \[rows, groups\] of what is quantized.
        scales: &'a [f32],
        /// The same, where the format has them.
        offsets: &'a [f32],
    }

    /// What a model may take on a device.
    #[derive(Debug, Clone)]
    struct ModelLimits {
        /// Positions of one KV block.
        block_size: u32,
        /// Bytes for KV blocks; the plan says how many blocks that is.
        kv_bytes: u64,
        /// Most sequences in one step.
        max_batch_size: u32,
        /// Most tokens in one step.
        max_step_tokens: u32,
        /// Most positions of one sequence.
        max_seq_len: u32,
        /// Tokens that end a completion; held back up to a seat's `end_from`.
        end_token_ids: Vec<u32>,
    }

    /// What a model took.
    #[derive(Debug, Clone, Default, PartialEq, Eq)]
    struct ModelPlan {
        /// The handle for later calls.
        model: u32,
        num_blocks: u32,
        weight_bytes: u64,
        kv_bytes: u64,
        workspace_bytes: u64,
    }

    /// What a model needs of a pool: `weight_bytes + workspace_bytes + n * kv_bytes_per_block` (and a few KiB of
    /// alignment) hold it with n blocks.
    #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
    struct MemoryNeed {
        weight_bytes: u64,
        /// Keys and values of one block in all layers.
        kv_bytes_per_block: u64,
        workspace_bytes: u64,
    }

    /// The memory pool at this moment.
    #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
    struct MemoryStats {
        reserved_bytes: u64,
        used_bytes: u64,
        peak_bytes: u64,
        /// Allocations since the start; constant over steps after warm-up.
        num_allocations: u64,
    }

    /// A number added to one token's logit.
    #[derive(Debug, Clone, Copy, PartialEq)]
    struct TokenBias {
        token_id: u32,
        value: f32,
    }

    /// What a sequence wants of sampling; bound to its seat once. What changes with each token (counts, the random number's
    /// position) the engine keeps.
    #[derive(Debug, Clone, Default, PartialEq)]
    struct SamplerSpec {
        /// 0 is greedy: the lowest id among equal logits.
        temperature: f32,
        /// 0 is off.
        top_k: u32,
        top_p: f32,
        min_p: f32,
        /// With the sampled token's index in the sequence, the key of the random number.
        seed: u64,
        /// Over completion tokens.
        presence_penalty: f32,
        /// Over completion tokens.
        frequency_penalty: f32,
        /// Over prompt and completion; 1 is off.
        repetition_penalty: f32,
        /// Index in the whole sequence from which an end token may be sampled (`min_tokens`); 0: at once.
        end_from: u32,
        /// Count as end tokens for `end_from`.
        stop_token_ids: Vec<u32>,
        /// At most 1,024, no token twice.
        bias: Vec<TokenBias>,
        /// Empty: all.
        allowed_ids: Vec<u32>,
        banned_ids: Vec<u32>,
        /// Sequences of two to sixteen tokens, one after the other: the last of each is banned where the others precede, in
        /// prompt or completion. At most 512, of 2,048 tokens together.
        banned_words: Vec<u32>,
        /// How many tokens each has.
        banned_word_lens: Vec<u32>,
        /// Alternatives beside the sampled token's log probability, 0 to 20.
        num_logprobs: u32,
        /// The log probability of the sampled token.
        want_logprob: bool,
        /// Log probabilities are of what was drawn from; else of the model's own distribution (temperature 1, before penalties,
        /// bias and filters).
        processed_logprobs: bool,
    }

    /// One step's flat arrays. T tokens of S sequences, those of one sequence adjacent and in order; they are the last of their
    /// context.
    #[derive(Debug, Clone, Default)]
    struct StepBatch {
        model: u32,
        /// \[T\]; what stands where `feed_sampled` holds is not read.
        token_ids: Vec<u32>,
        /// \[S\] tokens computed.
        query_lens: Vec<u32>,
        /// \[S\] tokens whose KV exists after the step; the index of the token to be sampled.
        context_lens: Vec<u32>,
        /// \[S, block_table_stride\] block ids.
        block_tables: Vec<u32>,
        block_table_stride: u32,
        /// \[S\] the sequence's seat, below max_batch_size, bound before; its last sampled token is kept there between steps.
        seats: Vec<u32>,
        /// \[S\] the only query token is the one sampled last for this seat (the host has not seen it yet).
        feed_sampled: Vec<bool>,
        /// \[S\] whether to sample after the last query token (false inside a prompt).
        sample: Vec<bool>,
        /// \[S\] whether the log probabilities of the tokens that follow these are wanted (`prompt_logprobs`).
        score: Vec<bool>,
        /// \[S\] the token after the last query token, where `score` holds and it is a prompt's, else `NO_TOKEN`.
        next_token_ids: Vec<u32>,
        /// \[M, ceil(vocab_size / 32)\] bit id % 32 of word id / 32: whether the token may be sampled.
        masks: Vec<u32>,
        /// \[S\] which of the masks, below M; `NO_MASK`: none.
        mask_rows: Vec<u32>,
        /// Copy the model's logits of sampled rows out (tests).
        want_logits: bool,
    }

    /// What became of one sequence's row.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum RowStatus {
        /// Nothing was to be sampled.
        None,
        Sampled,
        /// A logit is NaN or +infinity.
        NotANumber,
        /// Mask, bans and bias leave no token.
        NothingLeft,
    }

    /// What a step gives back.
    #[derive(Debug, Clone, Default)]
    struct StepOutput {
        /// \[S\] sampled ids; 0 where nothing was.
        token_ids: Vec<u32>,
        /// \[S\]
        status: Vec<RowStatus>,
        /// \[S\] of the sampled token, where its seat wants it; else 0.
        logprobs: Vec<f32>,
        /// \[S + 1\] running sum of the alternatives' numbers.
        top_starts: Vec<u32>,
        /// The likeliest tokens, likeliest first; those without a probability are left out.
        top_ids: Vec<u32>,
        top_logprobs: Vec<f32>,
        /// \[S + 1\] running sum of the scored tokens' numbers.
        score_starts: Vec<u32>,
        /// Of the tokens that follow the query tokens, given all before them; of the model's own distribution.
        score_logprobs: Vec<f32>,
        /// \[scored tokens, the seat's num_logprobs\] the likeliest tokens there; `NO_TOKEN` and -infinity where there are fewer.
        score_top_ids: Vec<u32>,
        score_top_logprobs: Vec<f32>,
        /// \[rows with `sample`, vocab_size\] the model's own if wanted, else empty.
        logits: Vec<f32>,
        /// How long the device took for it, in microseconds: a GPU tells it by its own clock, the executor for other devices.
        device_us: f32,
        /// How long it had had nothing to do before, since the step before, in microseconds; 0 before the first step.
        idle_us: f32,
    }

    unsafe extern "C++" {
        include!("bridge/bridge.h");
        include!("inferno-node/src/bridge/spec.rs.h");

        type WeightFormat = super::spec::WeightFormat;
        type DecoderSpec = super::spec::DecoderSpec;
        type TensorSlot = super::spec::TensorSlot;
        #[namespace = "inferno::engine"]
        type MatrixRole = super::spec::MatrixRole;

        /// One device: its memory pool and models. Made, used and dropped on one thread.
        type Context;

        /// Fails with `out_of_memory` if the pool cannot be reserved, `other` for a device that is not there.
        fn new_context(options: &DeviceOptions) -> Result<UniquePtr<Context>>;

        /// What a model would take of such a device; takes nothing, and the device need not be there. `pool_bytes` and `kv_bytes`
        /// are not read.
        fn required_bytes(
            options: &DeviceOptions,
            spec: &DecoderSpec,
            limits: &ModelLimits,
        ) -> Result<MemoryNeed>;

        /// Whether such a device can read a matrix in these codes; else it is to be held in elements.
        fn reads_codes(
            options: &DeviceOptions,
            role: MatrixRole,
            format: &WeightFormat,
        ) -> Result<bool>;

        /// Takes memory for a model's weights, KV blocks and workspace; the weights are still to be set.
        fn add_model(
            self: Pin<&mut Context>,
            spec: &DecoderSpec,
            limits: &ModelLimits,
        ) -> Result<ModelPlan>;

        /// Copies one tensor into its slot, converting its format and layout.
        fn set_tensor(
            self: Pin<&mut Context>,
            model: u32,
            slot: &TensorSlot,
            tensor: &TensorRows<'_>,
        ) -> Result<()>;

        /// Fills every weight with seeded normal values of a trained model's scale (`load_format = "dummy"`).
        fn fill_random(self: Pin<&mut Context>, model: u32, seed: u64) -> Result<()>;

        /// Checks that every tensor was set and warms the model up, a part in each call; steps may follow when it answers 0, the
        /// number of parts that are left.
        fn finish_model_part(self: Pin<&mut Context>, model: u32) -> Result<u32>;

        /// All parts.
        fn finish_model(self: Pin<&mut Context>, model: u32) -> Result<()>;

        /// Gives the model's memory back.
        fn remove_model(self: Pin<&mut Context>, model: u32) -> Result<()>;

        /// Gives a seat the sampler of a sequence, for the steps submitted from here on; what it had is forgotten. `token_ids` are
        /// the sequence's so far, the first `prompt_len` of them its prompt.
        fn bind_seat(
            self: Pin<&mut Context>,
            model: u32,
            seat: u32,
            spec: &SamplerSpec,
            prompt_len: u32,
            token_ids: &[u32],
        ) -> Result<()>;

        /// Starts one forward pass and sampling; at most [`Context::max_in_flight`] steps are under way.
        fn submit_step(self: Pin<&mut Context>, batch: &StepBatch) -> Result<()>;

        /// Whether [`Context::take_step`] would not wait.
        fn step_has_ended(self: Pin<&mut Context>) -> Result<bool>;

        /// The oldest step's answer; waits for it.
        fn take_step(self: Pin<&mut Context>, output: &mut StepOutput) -> Result<()>;

        /// How many steps may be submitted before the first is taken.
        fn max_in_flight(self: &Context) -> u32;

        /// One step, submitted and taken.
        fn run_step(
            self: Pin<&mut Context>,
            batch: &StepBatch,
            output: &mut StepOutput,
        ) -> Result<()>;

        /// The pool's state.
        fn memory_stats(self: &Context) -> Result<MemoryStats>;

        /// The instruction set that the CPU backend uses, never `Auto`.
        fn isa(self: &Context) -> Isa;

        /// Whether this machine can run `isa`.
        fn isa_available(isa: Isa) -> bool;

        /// Sustained read bandwidth in bytes/s over `bytes` of memory with `num_threads` threads, best of `rounds`:
        /// the ceiling beside decode figures.
        fn measure_read_bandwidth(bytes: u64, num_threads: u32, rounds: u32) -> Result<f64>;

        /// Products (each a multiplication and an addition) per second that `num_threads` threads make out of registers: the ceiling
        /// beside figures of many rows.
        fn measure_product_rate(isa: Isa, factors: Factors, num_threads: u32) -> Result<f64>;
    }
}
