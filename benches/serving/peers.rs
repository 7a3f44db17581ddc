//! What the rows of the GPU part are held against.
//!
//! vLLM, bf16, random weights of the same shapes, greedy: 0.33.0 on an H100, 0.24.0 on an H200. Offline: `LLM.generate` on token ids,
//! no detokenizing. As served: its HTTP server with its own load generator on the same machine, at most 512 requests at once. Measured
//! by us (docs/gpu.md); empty where it was not measured.

/// The rows, in the order in which they are measured.
pub const ROWS: [&str; 8] = [
    "TTFT of 32 tokens, alone, P50 / P95",
    "1 × 50 tokens, P50 / P95",
    "8 × 50 tokens at once",
    "64 at once, 128 in / 128 out",
    "1,024 × 512 in / 128 out, 512 at once",
    "1,024 × 128 in / 256 out, 512 at once",
    "the same over HTTP",
    "ready after",
];

type Row = [&'static str; ROWS.len()];

const NOTHING: Row = [""; ROWS.len()];

/// What vLLM reached on one kind of card.
pub struct Vllm {
    pub offline: Row,
    pub served: Row,
}

const UNMEASURED: Vllm = Vllm { offline: NOTHING, served: NOTHING };

/// A shape and the format of its weights, what vLLM reached with them, and what we want.
pub struct Comparison {
    pub shape: &'static str,
    pub quantization: Option<Quantization>,
    h100: Vllm,
    h200: Vllm,
    pub target: Row,
}

/// Of the weights of the layers; the head stays in 16 bits.
#[derive(Clone, Copy)]
pub struct Quantization {
    /// As `quantization` has it.
    pub name: &'static str,
    /// Of a weight, with its share of scales.
    pub bits: f64,
}

const FP8: Quantization = Quantization { name: "fp8", bits: 8.0 };
const INT4: Quantization = Quantization { name: "int4", bits: 4.25 };

impl Comparison {
    /// As BENCH_ONLY has it.
    pub fn name(&self) -> String {
        match self.quantization {
            Some(quantization) => format!("{} {}", self.shape, quantization.name),
            None => self.shape.to_owned(),
        }
    }

    /// On a card of that name; one that is no H100 is held against the H200.
    pub fn vllm(&self, card: &str) -> &Vllm {
        if card.contains("H100") { &self.h100 } else { &self.h200 }
    }
}

/// The version and its card, for a card of that name.
pub fn version(card: &str) -> &'static str {
    if card.contains("H100") { "vLLM 0.33: one H100" } else { "vLLM 0.24: one H200" }
}

pub const COMPARISONS: [Comparison; 6] = [
    Comparison {
        shape: "llama-3.2-1b",
        quantization: None,
        h100: Vllm {
            offline: NOTHING,
            served: [
                "12.2 ms",
                "123 ms",
                "52.8 req/s",
                "13,601 tok/s",
                "20,259 tok/s",
                "29,607 tok/s",
                "29,607 tok/s",
                "",
            ],
        },
        h200: Vllm {
            offline: ["6.7 ms", "91 ms", "120 ms", "", "28,507 tok/s", "52,717 tok/s", "", "39 s"],
            served: [
                "12.5 / 15.0 ms",
                "106 ms",
                "58.5 req/s",
                "18,512 tok/s",
                "16,901 tok/s",
                "21,500 tok/s, ITL 19 / 33 ms",
                "21,500 tok/s",
                "70 s",
            ],
        },
        target: ["", "", "", "", "", "52,717 tok/s", "0.97 of NATS", ""],
    },
    Comparison {
        shape: "llama-3.1-8b",
        quantization: None,
        h100: Vllm {
            offline: ["15.9 ms", "340 ms", "21.8 req/s", "", "6,769 tok/s", "18,560 tok/s", "", ""],
            served: [
                "20.3 ms",
                "370 ms",
                "22.3 req/s",
                "6,992 tok/s",
                "6,856 tok/s",
                "18,651 tok/s",
                "18,651 tok/s",
                "",
            ],
        },
        h200: Vllm {
            offline: ["8.8 ms", "248 ms", "261 ms", "", "6,981 tok/s", "19,589 tok/s", "", "42 s"],
            served: [
                "13.2 / 16.6 ms",
                "252 ms",
                "29.5 req/s",
                "8,060 tok/s",
                "6,629 tok/s",
                "14,215 tok/s, ITL 27 / 186 ms",
                "14,215 tok/s",
                "106 s",
            ],
        },
        target: ["6 ms", "", "", "", "6,981 tok/s", "19,589 tok/s", "0.97 of NATS", "5 s"],
    },
    Comparison {
        shape: "llama-2-7b",
        quantization: None,
        h100: UNMEASURED,
        h200: Vllm {
            offline: ["7.6 ms", "231 ms", "252 ms", "", "4,762 tok/s", "12,427 tok/s", "", "59 s"],
            served: NOTHING,
        },
        target: ["", "", "< 200 ms", "", "", "", "0.97 of NATS", ""],
    },
    Comparison {
        shape: "llama-3.1-8b",
        quantization: Some(FP8),
        h100: Vllm {
            offline: ["", "", "", "", "9,110 tok/s", "24,420 tok/s", "", ""],
            served: NOTHING,
        },
        h200: UNMEASURED,
        target: ["", "", "", "", "10,500 tok/s", "29,000 tok/s", "0.97 of NATS", ""],
    },
    Comparison {
        shape: "llama-2-7b",
        quantization: Some(FP8),
        h100: UNMEASURED,
        h200: UNMEASURED,
        target: ["", "P95 < 100 ms", "", "", "", "", "0.97 of NATS", ""],
    },
    Comparison {
        shape: "llama-2-7b",
        quantization: Some(INT4),
        h100: UNMEASURED,
        h200: UNMEASURED,
        target: ["", "P95 < 75 ms", "> 100 req/s", "", "", "", "0.97 of NATS", ""],
    },
];
