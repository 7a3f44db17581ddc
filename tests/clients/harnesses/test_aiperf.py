"""aiperf, unchanged, against a node: it looks for metrics with HEAD, streams, and compares the node's token counts with its own.

Goal: it ends with every request done and no error. Method: its command, over streamed chat, and its report.
"""

import json

import pytest

pytest.importorskip("aiperf")

REQUESTS = 12
OUTPUT_TOKENS = 8


def test_every_request_is_done(run, http_url, api_key, model, tokenizer):
    folder = run(
        "aiperf",
        "profile",
        *("--model", model, "--url", http_url, "--api-key", api_key, "--tokenizer", tokenizer),
        *("--endpoint-type", "chat", "--streaming", "--use-server-token-count"),
        *("--request-count", str(REQUESTS), "--concurrency", "3"),
        *("--synthetic-input-tokens-mean", "16", "--output-tokens-mean", str(OUTPUT_TOKENS)),
        *("--extra-inputs", "ignore_eos:true", "--random-seed", "7", "--per-chunk-usage"),
        *("--ui", "none", "--artifact-dir", "report"),
    )
    report = json.loads((folder / "report" / "profile_export_aiperf.json").read_text())
    assert report["is_complete"] and not report["error_summary"]
    assert report["request_count"]["avg"] == REQUESTS
    assert report["request_error_rate"]["avg"] == 0
    assert report["output_sequence_length"]["avg"] == OUTPUT_TOKENS
