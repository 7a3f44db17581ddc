//! Which tensor stands where: shards as Hugging Face cuts them, and their headers.

use serde_json::{Map, Value, json};

use super::packing::{TensorBytes, Unplaced};

/// One tensor in its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Placed {
    pub name: String,
    pub dtype: &'static str,
    pub shape: Vec<u64>,
    /// In bytes of the data, which follows the header.
    pub begin: u64,
    pub bytes: u64,
    pub content: TensorBytes,
}

/// One safetensors file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shard {
    pub file: String,
    /// Its length, the JSON, spaces up to a multiple of 8.
    pub header: Vec<u8>,
    pub tensors: Vec<Placed>,
    pub data_bytes: u64,
}

impl Shard {
    pub(super) fn file_bytes(&self) -> u64 {
        self.header.len() as u64 + self.data_bytes
    }
}

/// Puts tensors into files in their order; a tensor that would make a file larger than `max_bytes` begins the next one.
pub(super) fn shards(tensors: Vec<Unplaced>, max_bytes: u64) -> Vec<Shard> {
    let mut files: Vec<Vec<Placed>> = Vec::new();
    let mut begin = 0;
    for tensor in tensors {
        let Unplaced { name, dtype, shape, bytes, content } = tensor;
        if files.is_empty() || begin + bytes > max_bytes {
            files.push(Vec::new());
            begin = 0;
        }
        let placed = Placed { name, dtype, shape, begin, bytes, content };
        begin += bytes;
        if let Some(file) = files.last_mut() {
            file.push(placed);
        }
    }
    let count = files.len();
    files
        .into_iter()
        .enumerate()
        .map(|(index, tensors)| Shard {
            file: file_name(index, count),
            header: header(&tensors),
            data_bytes: tensors.iter().map(|tensor| tensor.bytes).sum(),
            tensors,
        })
        .collect()
}

/// `model.safetensors.index.json`.
pub(super) fn index(shards: &[Shard]) -> Value {
    let total: u64 = shards.iter().map(|shard| shard.data_bytes).sum();
    let weight_map: Map<String, Value> = shards
        .iter()
        .flat_map(|shard| shard.tensors.iter().map(|t| (t.name.clone(), shard.file.clone().into())))
        .collect();
    json!({"metadata": {"total_size": total}, "weight_map": weight_map})
}

fn file_name(index: usize, count: usize) -> String {
    if count == 1 {
        "model.safetensors".to_owned()
    } else {
        format!("model-{:05}-of-{count:05}.safetensors", index + 1)
    }
}

fn header(tensors: &[Placed]) -> Vec<u8> {
    let mut entries = Map::new();
    entries.insert("__metadata__".to_owned(), json!({"format": "pt"}));
    for tensor in tensors {
        let offsets = [tensor.begin, tensor.begin + tensor.bytes];
        let entry = json!({"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": offsets});
        entries.insert(tensor.name.clone(), entry);
    }
    let mut text = Value::Object(entries).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut header = (text.len() as u64).to_le_bytes().to_vec();
    header.append(&mut text);
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::families::{ExpectedTensor, Transform};

    fn tensor(name: &str, elements: u64) -> Unplaced {
        Unplaced::of_elements(&ExpectedTensor {
            name: name.to_owned(),
            shape: vec![elements],
            pieces: Vec::new(),
            transform: Transform::None,
        })
    }

    #[test]
    fn a_shard_is_full_before_the_next_begins() {
        let tensors = [tensor("a", 40), tensor("b", 10), tensor("c", 1), tensor("d", 60)];
        let shards = shards(tensors.to_vec(), 100);
        let names: Vec<Vec<&str>> =
            shards.iter().map(|s| s.tensors.iter().map(|t| t.name.as_str()).collect()).collect();
        assert_eq!(names, [vec!["a", "b"], vec!["c"], vec!["d"]]);
        assert_eq!(shards[0].file, "model-00001-of-00003.safetensors");
        let index = index(&shards);
        assert_eq!(index["metadata"]["total_size"], 222);
        assert_eq!(index["weight_map"]["c"], "model-00002-of-00003.safetensors");
    }

    #[test]
    fn what_fits_is_one_file_whose_data_is_aligned() {
        let shards = shards(vec![tensor("a", 3), tensor("b", 2)], 100);
        assert_eq!(shards.len(), 1);
        assert_eq!(shards[0].file, "model.safetensors");
        assert_eq!(shards[0].header.len() % 8, 0);
        assert_eq!(shards[0].file_bytes(), shards[0].header.len() as u64 + 10);
    }
}
