"""The command `llm`, unchanged, against a node: a model of OpenAI's kind in its `extra-openai-models.yaml`.

Goal: it prompts, streams, keeps a conversation and logs what was used. Method: the command itself, with a folder of its own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("llm")

MODELS = """
- model_id: {model}-chat
  model_name: {model}
  api_base: "{url}/v1"
  api_key_name: node
- model_id: {model}-text
  model_name: {model}
  api_base: "{url}/v1"
  api_key_name: node
  completion: true
"""


@pytest.fixture(scope="module")
def llm(http_url, api_key, model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("llm")
    (folder / "extra-openai-models.yaml").write_text(MODELS.format(model=model, url=http_url))
    (folder / "keys.json").write_text(json.dumps({"node": api_key}))
    command = Path(sys.executable).with_name("llm")

    def run(*arguments, stdin=""):
        ended = subprocess.run(
            [command, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            env=os.environ | {"LLM_USER_PATH": str(folder)},
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    return run


def test_the_model_is_listed(llm, model):
    assert f"{model}-chat" in llm("models", "list")


def test_streamed_or_not_the_text_is_the_same(llm, model):
    options = ["-o", "temperature", "0", "-o", "max_tokens", "12", "-s", "You are brief."]
    prompt = ["-m", f"{model}-chat", *options, "Tell me a short story about a dog."]
    streamed = llm(*prompt)
    assert streamed.strip() and llm(*prompt, "--no-stream") == streamed


def test_what_comes_on_stdin_is_the_prompt_and_the_log_counts_tokens(llm, model):
    answer = llm("-m", f"{model}-chat", "-o", "max_tokens", "8", stdin="Tell me a story.")
    [entry] = json.loads(llm("logs", "list", "-n", "1", "--json"))
    assert entry["response"].strip() == answer.strip()
    assert entry["input_tokens"] > 0 and 0 < entry["output_tokens"] <= 8


def test_a_conversation_goes_on(llm, model):
    llm("-m", f"{model}-chat", "-o", "max_tokens", "8", "Tell me a story.")
    assert llm("-c", "-o", "max_tokens", "8", "Go on.").strip()
    first, second = json.loads(llm("logs", "list", "-n", "2", "--json"))
    assert first["conversation_id"] == second["conversation_id"]


def test_completions(llm, model):
    assert llm("-m", f"{model}-text", "-o", "max_tokens", "8", "Once upon a time").strip()
