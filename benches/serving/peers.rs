//! What the rows of the GPU part are held against.
//!
//! vLLM 0.24.0 on an H200, bf16, random weights of the same shapes, greedy. Offline: `LLM.generate` on token ids, no detokenizing.
//! As served: its HTTP server with its own load generator on the same machine, at most 512 requests at once. Measured by us
//! (docs/gpu.md); empty where it was not measured.

/// The rows, in the order in which they are measured.
pub const ROWS: [&str; 7] = [
    "TTFT of 32 tokens, alone, P50 / P95",
    "1 × 50 tokens, P50 / P95",
    "8 × 50 tokens at once",
    "64 at once, 128 in / 128 out",
    "1,024 × 512 in / 128 out, 512 at once",
    "1,024 × 128 in / 256 out, 512 at once",
    "ready after",
];

pub struct Peer {
    pub shape: &'static str,
    pub offline: [&'static str; ROWS.len()],
    pub served: [&'static str; ROWS.len()],
    pub target: [&'static str; ROWS.len()],
}

pub const PEERS: [Peer; 3] = [
    Peer {
        shape: "llama-3.2-1b",
        offline: ["6.7 ms", "91 ms", "120 ms", "", "28,507 tok/s", "52,717 tok/s", "39 s"],
        served: [
            "12.5 / 15.0 ms",
            "106 ms",
            "58.5 req/s",
            "18,512 tok/s",
            "16,901 tok/s",
            "21,500 tok/s, ITL 19 / 33 ms",
            "70 s",
        ],
        target: ["", "", "", "", "", "52,717 tok/s", ""],
    },
    Peer {
        shape: "llama-3.1-8b",
        offline: ["8.8 ms", "248 ms", "261 ms", "", "6,981 tok/s", "19,589 tok/s", "42 s"],
        served: [
            "13.2 / 16.6 ms",
            "252 ms",
            "29.5 req/s",
            "8,060 tok/s",
            "6,629 tok/s",
            "14,215 tok/s, ITL 27 / 186 ms",
            "106 s",
        ],
        target: ["6 ms", "", "", "", "6,981 tok/s", "19,589 tok/s", "5 s"],
    },
    Peer {
        shape: "llama-2-7b",
        offline: ["7.6 ms", "231 ms", "252 ms", "", "4,762 tok/s", "12,427 tok/s", "59 s"],
        served: [""; ROWS.len()],
        target: ["", "", "< 200 ms", "", "", "", ""],
    },
];
