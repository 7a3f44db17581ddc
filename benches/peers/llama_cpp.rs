//! llama.cpp's own benchmark, as `benches/peers/llama-cpp` builds it.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use inferno_node::checkpoint::{Checkpoint, LoadFormat};
use serde_json::Value;

use super::{BATCHES, DECODED, Figures, PREFILLS, PROMPT, STEP_TOKENS};

/// Where it is.
pub struct LlamaCpp {
    folder: PathBuf,
}

impl LlamaCpp {
    /// Builds it, for this machine or for one of this instruction set, if that was not done yet. None where it cannot be had, which the
    /// script says.
    pub fn find(isa: Option<&str>) -> Option<Self> {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/peers/llama-cpp");
        let output =
            Command::new(script).args(isa).stderr(Stdio::inherit()).output().expect("a shell");
        let folder = String::from_utf8(output.stdout).expect("a path");
        let folder = folder.trim();
        (!folder.is_empty()).then(|| Self { folder: folder.into() })
    }

    /// The file of this type, for our engine.
    pub fn open(&self, file_type: &str) -> Checkpoint {
        Checkpoint::open(&self.file(file_type), LoadFormat::Safetensors).expect("a good file")
    }

    fn file(&self, file_type: &str) -> PathBuf {
        self.folder.with_file_name(format!("{file_type}.gguf"))
    }

    /// Every figure once, of the file of this type.
    pub fn measure(&self, file_type: &str, num_threads: u32) -> Figures {
        let list =
            |numbers: &[u32]| numbers.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
        let decodes =
            self.run(file_type, num_threads, (&list(&[PROMPT]), DECODED, &list(&BATCHES)));
        let prefills = self.run(file_type, num_threads, (&list(&PREFILLS), 1, "1"));
        let mut figures = Figures::default();
        let rates = decodes.iter().map(|row| &row["speed_tg"]);
        let rates = rates.chain(prefills.iter().map(|row| &row["speed_pp"]));
        for (figure, rate) in figures.iter_mut().zip(rates) {
            *figure = rate.as_f64().expect("tokens per second");
        }
        assert!(figures.iter().all(|figure| *figure > 0.0), "llama-batched-bench left rows out");
        figures
    }

    /// A row for each length of prompts and each batch.
    fn run(
        &self,
        file_type: &str,
        num_threads: u32,
        (prompts, decoded, batches): (&str, u32, &str),
    ) -> Vec<Value> {
        let longest = PREFILLS
            .into_iter()
            .fold(BATCHES.into_iter().fold(0, u32::max) * (PROMPT + DECODED), u32::max);
        let output = Command::new(self.folder.join("bin/llama-batched-bench"))
            .arg("--model")
            .arg(self.file(file_type))
            .args([
                "--ctx-size",
                &(longest + 64).to_string(),
                "--ubatch-size",
                &STEP_TOKENS.to_string(),
            ])
            .args([
                "--threads",
                &num_threads.to_string(),
                "--threads-batch",
                &num_threads.to_string(),
            ])
            .args([
                "-npp",
                prompts,
                "-ntg",
                &decoded.to_string(),
                "-npl",
                batches,
                "--output-format",
                "jsonl",
            ])
            .output()
            .expect("llama-batched-bench");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success(),
            "llama-batched-bench: {text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let rows = text.lines().filter(|line| line.starts_with('{'));
        rows.map(|line| serde_json::from_str(line).expect("a row")).collect()
    }
}
