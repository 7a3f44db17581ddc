"""inference-perf, unchanged, against a node, which it takes for one of vLLM's kind.

Goal: it ends with every request done. Method: its command and a file of its configuration, over both endpoints, and its report.
"""

import json

import pytest

pytest.importorskip("inference_perf")

REQUESTS = 12
OUTPUT_TOKENS = 8


def always(length):
    """A distribution that has one value."""
    lengths = {name: length for name in ("min", "max", "mean")}
    return {"type": "fixed", "total_count": REQUESTS, **lengths}


# Which kind of data goes over which endpoint is its own rule.
DATA = {
    "completion": {
        "type": "random",
        "input_distribution": always(16),
        "output_distribution": always(OUTPUT_TOKENS),
    },
    "chat": {
        "type": "shared_prefix",
        "shared_prefix": {
            "num_groups": 3,
            "num_prompts_per_group": REQUESTS // 3,
            "system_prompt_len": 8,
            "question_len": 8,
            "output_len": OUTPUT_TOKENS,
        },
    },
}


@pytest.mark.parametrize("api", DATA)
def test_every_request_is_done(run, http_url, api_key, model, tokenizer, tmp_path, api):
    config = {
        "api": {"type": api, "streaming": True},
        "server": {"type": "vllm", "model_name": model, "base_url": http_url, "api_key": api_key},
        "tokenizer": {"pretrained_model_name_or_path": tokenizer},
        "data": DATA[api],
        "load": {
            "type": "concurrent",
            "num_workers": 1,
            "stages": [{"num_requests": REQUESTS, "concurrency_level": 3}],
        },
        "storage": {"local_storage": {"path": "report"}},
    }
    # JSON is YAML.
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    folder = run("inference-perf", "-c", "config.yaml", env={"HF_HUB_OFFLINE": "1"})
    report = json.loads((folder / "report" / "summary_lifecycle_metrics.json").read_text())
    assert report["successes"]["count"] == REQUESTS and report["failures"]["count"] == 0
    assert report["successes"]["output_tokens"]["mean"] == OUTPUT_TOKENS
