"""aider's calls as they were recorded from aider-chat 0.86.2 (which asks through LiteLLM), replayed to a node.

Goal: every member that aider sends is served. Method: `recorded/aider.json` holds the headers and bodies of its edit formats, its
commit message and its prompt caching, with the texts cut to 60 characters; each is sent as it stands, for the node's model.
"""

import json
from pathlib import Path

import httpx
import pytest

RECORDED = json.loads((Path(__file__).parent / "recorded" / "aider.json").read_text())


def answer_of(response):
    """Text and reason of a whole or a streamed answer."""
    if "event-stream" not in response.headers["content-type"]:
        [choice] = response.json()["choices"]
        return choice["message"]["content"], choice["finish_reason"]
    *lines, done = [line for line in response.text.splitlines() if line]
    assert done == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines]
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    text = "".join(choice["delta"].get("content") or "" for choice in choices)
    return text, choices[-1]["finish_reason"]


@pytest.mark.parametrize("call", RECORDED["calls"], ids=lambda call: call["call"])
def test_a_recorded_call_is_served(http_url, api_key, model, call):
    response = httpx.post(
        http_url + call["path"],
        json=call["body"] | {"model": model},
        headers=RECORDED["headers"] | {"Authorization": f"Bearer {api_key}"},
        timeout=60,
    )
    assert response.status_code == 200, response.text
    text, reason = answer_of(response)
    assert text and reason in ("stop", "length")
