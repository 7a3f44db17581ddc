"""Goal: a chat over HTTP has the prompt that `apply_chat_template` gives its messages. Method: the node serves the demo model, and a copy
whose template shows every member of every message; the tokens that it says it computed are held against those of transformers.
"""

import json
import shutil

import conftest
import httpx
import pytest
from transformers import AutoTokenizer

DEMO = conftest.ROOT / "models" / "demo"

# Members by their names: where the client wrote them is not the template's to see.
SHOWS_ALL = """{{ bos_token }}{% for message in messages %}{% for name, value in message | dictsort %}
{{ name }}={{ value if value is string else value | tojson }};{% endfor %}<|end|>{% endfor %}
{% if add_generation_prompt %}<|assistant|>{% endif %}"""


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A node's address, and the folders of its models."""
    if conftest.from_outside():
        pytest.skip("a node from outside has the models that it has")
    folder = tmp_path_factory.mktemp("shows-all")
    for name in ("config.json", "generation_config.json", "tokenizer.json", "model.safetensors"):
        shutil.copy(DEMO / name, folder)
    config = json.loads((DEMO / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": SHOWS_ALL}))
    sections = f'[[models]]\nname = "shows-all"\nmodel_path = "{folder}"\n'
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("INFERNO_MODEL_PATH", raising=False)
        with conftest.started(tmp_path_factory.mktemp("node"), "demo", sections) as node:
            yield node.http_url, {"demo": DEMO, "shows-all": folder}


def parts(*texts, **more):
    return [{"type": "text", "text": text, **more} for text in texts]


NULLS = {"refusal": None, "tool_calls": None, "function_call": None, "audio": None, "name": None}
HI = {"role": "user", "content": "Hi!"}

CHATS = {
    "plain": [{"role": "system", "content": "Be brief."}, HI],
    "developer": [{"role": "developer", "content": "Be brief.\n"}, HI],
    "parts": [
        {"role": "developer", "content": parts("Be ", "brief", ".")},
        {"role": "user", "content": parts("  你好", "", "? ", cache_control=None)},
    ],
    "no parts": [{"role": "user", "content": []}],
    "nulls": [
        HI | {"name": None},
        {"role": "assistant", "content": "Hello.", **NULLS},
        {"role": "user", "content": "Go on.", "x": None},
    ],
    "a reply without text": [HI, {"role": "assistant", "content": None, **NULLS}, HI],
    "a reply without content": [HI, {"role": "assistant", **NULLS}, HI],
    "further members": [HI | {"name": "Ann", "x": {"y": [1, None, "z"]}}, HI | {"flag": False}],
}


def as_templates_know_them(messages):
    """What the page on OpenAI's API says of messages: null is absent, `developer` is `system`, text parts stand together."""
    known = []
    for message in messages:
        message = {name: value for name, value in message.items() if value is not None}
        content = message.get("content", "")
        if not isinstance(content, str):
            content = "".join(part["text"] for part in content)
        role = message["role"].replace("developer", "system")
        known.append(message | {"role": role, "content": content})
    return known


@pytest.mark.parametrize("model", ["demo", "shows-all"])
@pytest.mark.parametrize("chat", CHATS)
def test_a_served_chat_has_the_prompt_of_transformers(served, model, chat):
    url, folders = served
    tokenizer = AutoTokenizer.from_pretrained(folders[model])
    messages = as_templates_know_them(CHATS[chat])
    wanted = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    body = {"model": model, "messages": CHATS[chat], "max_tokens": 1, "prompt_logprobs": 0}
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).json()
    assert answer["usage"]["prompt_tokens"] == len(wanted), answer
    first, *others = answer["prompt_logprobs"]
    assert first is None
    assert [[int(token) for token in entry] for entry in others] == [[token] for token in wanted[1:]]
