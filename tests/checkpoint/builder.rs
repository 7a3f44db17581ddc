//! Writes small checkpoints, whole or broken.

use std::collections::BTreeMap;
use std::path::Path;

use inferno_node::checkpoint::{
    Checkpoint, CheckpointError, CheckpointFault, ExpectedTensor, LoadFormat,
};
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

/// A checkpoint being written: `config.json` as a value, tensors by name.
pub struct Builder {
    dir: tempfile::TempDir,
    pub config: Value,
    pub tensors: BTreeMap<String, (safetensors::Dtype, Vec<usize>, Vec<u8>)>,
}

/// Two layers, four heads, all sizes small.
pub fn tiny_config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "vocab_size": 10, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": false,
        "torch_dtype": "float32", "eos_token_id": 3
    })
}

/// What the checkpoint's tensors must be.
pub fn expected(checkpoint: &Checkpoint) -> Vec<ExpectedTensor> {
    checkpoint.decoder().usual_tensors()
}

impl Builder {
    /// A whole checkpoint of `tiny_config` with `changes` to it.
    pub fn new(changes: &[(&str, Value)]) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut builder = Self { dir, config: tiny_config(), tensors: BTreeMap::new() };
        for (key, value) in changes {
            builder.config[*key] = value.clone();
        }
        builder.write_config();
        for tensor in expected(&builder.open_as(LoadFormat::Dummy).expect("a good config")) {
            let shape: Vec<usize> = tensor.shape.iter().map(|size| *size as usize).collect();
            builder.set(&tensor.name, safetensors::Dtype::F32, &shape);
        }
        builder
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn set(&mut self, name: &str, dtype: safetensors::Dtype, shape: &[usize]) {
        let bytes = shape.iter().product::<usize>() * dtype.bitsize() / 8;
        // Bytes that tell the tensor and the place, so that a view of the wrong one is seen.
        let salt = name.bytes().fold(0_u8, u8::wrapping_add);
        let data = (0..bytes).map(|i| (i as u8).wrapping_mul(31) ^ salt).collect();
        self.tensors.insert(name.to_owned(), (dtype, shape.to_vec(), data));
    }

    pub fn write_config(&self) {
        self.write("config.json", self.config.to_string());
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        std::fs::write(self.path().join(name), content).expect("writes");
    }

    pub fn serialize(&self, names: impl Fn(&str) -> bool) -> Vec<u8> {
        let views: Vec<(&str, TensorView<'_>)> = self
            .tensors
            .iter()
            .filter(|(name, _)| names(name))
            .map(|(name, (dtype, shape, data))| {
                let view = TensorView::new(*dtype, shape.clone(), data).expect("a whole tensor");
                (name.as_str(), view)
            })
            .collect();
        safetensors::serialize(views, None).expect("serialises")
    }

    pub fn write_single(&self) -> &Self {
        self.write("model.safetensors", self.serialize(|_| true));
        self
    }

    /// Two shards: layer 1 in the second.
    pub fn write_sharded(&self) -> Value {
        let second = |name: &str| name.contains("layers.1.");
        self.write("model-00001-of-00002.safetensors", self.serialize(|name| !second(name)));
        self.write("model-00002-of-00002.safetensors", self.serialize(second));
        let map: serde_json::Map<String, Value> = self
            .tensors
            .keys()
            .map(|name| {
                let number = if second(name) { 2 } else { 1 };
                (name.clone(), json!(format!("model-0000{number}-of-00002.safetensors")))
            })
            .collect();
        json!({"metadata": {"total_size": 1}, "weight_map": map})
    }

    pub fn open(&self) -> Result<Checkpoint, CheckpointError> {
        self.open_as(LoadFormat::Safetensors)
    }

    pub fn open_as(&self, format: LoadFormat) -> Result<Checkpoint, CheckpointError> {
        Checkpoint::open(self.path(), format)
    }

    /// The fault of opening it; `item` and `part` must be in the error.
    #[track_caller]
    pub fn fault(&self, item: Option<&str>, part: &str) -> CheckpointFault {
        let error = self.open().expect_err("it is broken");
        assert_eq!(error.item.as_deref(), item, "{error}");
        assert!(error.to_string().contains(part), "{part:?} in {error}");
        assert!(error.file.starts_with(self.path()), "{error}");
        error.fault
    }

    #[track_caller]
    pub fn holds(&self, checkpoint: &Checkpoint) {
        let expected = expected(checkpoint);
        assert_eq!(checkpoint.num_tensors(), expected.len());
        let mut total = 0;
        for (tensor, expected) in checkpoint.tensors().zip(expected) {
            assert_eq!(*tensor.expected, expected);
            assert_eq!(tensor.data, self.tensors[&expected.name].2, "{}", expected.name);
            total += tensor.data.len() as u64;
        }
        assert_eq!(checkpoint.total_bytes(), total);
        assert!(checkpoint.tensor(checkpoint.num_tensors()).is_none());
    }
}
