//! The setting `executor.kv_dtype`.

/// Type of the numbers in the KV cache.
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    serde::Serialize,
    serde::Deserialize,
    schemars::JsonSchema,
    clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum KvDtype {
    /// The type of the model's activations.
    #[default]
    Auto,
    /// e4m3, with the scales that the checkpoint has.
    Fp8,
}
