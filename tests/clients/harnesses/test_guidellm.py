"""guidellm, unchanged, against a node: it asks `/health`, streams, and counts by the usage in every chunk.

Goal: it ends with every request done. Method: its command, over chat and completions, and its report. torch, of which it takes a data
loader, is stood in for where it is not installed (`stand_in`).
"""

import importlib.util
import json
from pathlib import Path

import pytest

pytest.importorskip("guidellm")

REQUESTS = 12
OUTPUT_TOKENS = 8


@pytest.fixture
def totals(run, http_url, api_key, model, tokenizer):
    """The metrics of a run over this endpoint."""
    env = {"HF_HUB_OFFLINE": "1"}
    if importlib.util.find_spec("torch") is None:
        env |= {"PYTHONPATH": str(Path(__file__).with_name("stand_in")), "USE_TORCH": "0"}

    def measured(endpoint):
        backend = f"kind=openai_http,target={http_url},model={model},api_key={api_key}"
        folder = run(
            "guidellm",
            "run",
            "--backend",
            f"{backend},request_format={endpoint}",
            "--tokenizer",
            f"kind=huggingface_auto,model={tokenizer}",
            "--profile",
            "kind=concurrent,streams=3",
            "--constraint",
            f"kind=max_requests,count={REQUESTS}",
            "--data",
            f"kind=synthetic_text,prompt_tokens=16,output_tokens={OUTPUT_TOKENS}",
            "--output",
            "kind=json,path=report.json",
            "--disable-console-interactive",
            env=env,
        )
        [benchmark] = json.loads((folder / "report.json").read_text())["benchmarks"]
        return benchmark["metrics"]

    return measured


@pytest.mark.parametrize("endpoint", ["/v1/chat/completions", "/v1/completions"])
def test_every_request_is_done(totals, endpoint):
    metrics = totals(endpoint)
    assert metrics["request_totals"] == {
        "successful": REQUESTS,
        "errored": 0,
        "incomplete": 0,
        "total": REQUESTS,
    }
    assert metrics["output_token_count"]["successful"]["mean"] == OUTPUT_TOKENS
