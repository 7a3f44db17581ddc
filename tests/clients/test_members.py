"""Every member that a request may have, held to docs/openai.md.

Goal: no member of the official client is forgotten, and none is taken and ignored. Method: the names come from the installed client's
own types; the page says the rule of each; the node is asked with values that the rule takes and with others.
"""

import json
import typing
import uuid
from pathlib import Path

import httpx
import pytest
from openai.types import chat as chat_types
from openai.types import completion_create_params as completion_params
from openai.types.chat import completion_create_params as chat_params

PAGE = Path(__file__).resolve().parents[2] / "docs" / "openai.md"

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"

MESSAGES = [
    chat_types.ChatCompletionDeveloperMessageParam,
    chat_types.ChatCompletionSystemMessageParam,
    chat_types.ChatCompletionUserMessageParam,
    chat_types.ChatCompletionAssistantMessageParam,
    chat_types.ChatCompletionToolMessageParam,
    chat_types.ChatCompletionFunctionMessageParam,
]

# What stands above each table of the page.
SERVED = "## Served members"
OPTIONS = "In `stream_options`:\n| member | |"
MESSAGE = "In a message (`role`"
PART = "In a content part:\n| member | rule"
NEUTRAL = ["Parameters (on the bus", "OpenAI's own", "In a body, ours to come:"]
NEUTRAL_OPTIONS = "In `stream_options`:\n| member | values"
NEUTRAL_MESSAGE = "In a message:"
NEUTRAL_PART = "In a content part:\n| member | values"

# A value of each served member, and what has to stand beside it.
SAMPLES = {
    "stream": True,
    "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    "max_tokens": 2,
    "max_completion_tokens": 2,
    "n": 2,
    "best_of": 2,
    "min_tokens": 1,
    "stop": ["dog"],
    "stop_token_ids": [5],
    "include_stop_str_in_output": True,
    "ignore_eos": True,
    "skip_special_tokens": False,
    "temperature": 0.5,
    "top_k": -1,
    "top_p": 0.5,
    "min_p": 0.1,
    "presence_penalty": 1,
    "frequency_penalty": -1,
    "repetition_penalty": 1.1,
    "seed": 7,
    "logit_bias": {"5": 1},
    "allowed_token_ids": [5, 6, 7],
    "banned_token_ids": [5],
    "bad_words": ["dog"],
    "logprobs": 1,
    "top_logprobs": 1,
    "prompt_logprobs": 1,
    "logprobs_mode": "processed",
    "echo": True,
    "add_special_tokens": False,
    "add_generation_prompt": False,
    "chat_template_kwargs": {"enable_thinking": False},
    "priority": 200,
    "detached": True,
    "messages": [{"role": "user", "content": "Hi"}],
    "prompt": "Once",
}
BESIDE = {"stream_options": {"stream": True}, "top_logprobs": {"logprobs": True}}

CANDIDATES = [True, False, 0, -1, 1, 7.5, "", "zzz", "none", [], [{"a": 1}], ["text"], {}]
CANDIDATES += [{"a": "b"}, {"a": {"b": 1}}, {"type": "text"}, {"type": "json_object"}]


def tables():
    """The rows of each table as lists of cells, by the line above it and the table's first line."""
    found, above, lines = {}, "", iter(PAGE.read_text().splitlines())
    for line in lines:
        if not line.startswith("|"):
            above = line or above
            continue
        rows, head = [], f"{above}\n{line}"
        next(lines)
        for row in lines:
            if not row.startswith("|"):
                break
            rows.append([cell.strip() for cell in row.strip("|").split(" | ")])
        found[head] = {row[0].strip("` "): row[1:] for row in rows}
    return found


TABLES = tables()


def table(start):
    [only] = [rows for head, rows in TABLES.items() if head.startswith(start)]
    assert only, start
    return only


def neutral_rows():
    return {name: cells[0] for start in NEUTRAL for name, cells in table(start).items()}


def admits(values, value):
    """Whether the page's words take a value."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    match values:
        case "–":
            return False
        case "true" | "false" | "true, false":
            return isinstance(value, bool) and json.dumps(value) in values.split(", ")
        case "a number":
            return is_number
        case "a string":
            return isinstance(value, str)
        case "an object":
            return isinstance(value, dict)
        case "an object of strings":
            return isinstance(value, dict) and all(isinstance(one, str) for one in value.values())
        case "an empty string, array or object":
            return value in ("", [], {}) and not isinstance(value, (bool, int, float))
        case '{"type": "text"}' | '["text"]':
            return value == json.loads(values)
        case _ if values.lstrip("-")[0].isdigit():
            return is_number and value in [float(one) for one in values.split(", ")]
        case _:
            return isinstance(value, str) and value in values.split(", ")


@pytest.fixture(scope="module")
def ask(http_url, api_key, model):
    headers = {"Authorization": f"Bearer {api_key}"}
    with httpx.Client(base_url=http_url, headers=headers, timeout=60) as client:

        def ask(path, members):
            body = {"model": model, "max_tokens": 2}
            body |= {"messages": SAMPLES["messages"]} if path == CHAT else {"prompt": "Once"}
            return client.post(path, json=body | members)

        yield ask


def names_of(*types):
    return {name for one in types for name in typing.get_type_hints(one, include_extras=True)}


def test_the_page_has_every_member_of_the_official_clients_types():
    bodies = names_of(
        chat_params.CompletionCreateParamsStreaming,
        completion_params.CompletionCreateParamsStreaming,
    )
    assert bodies <= table(SERVED).keys() | neutral_rows().keys()
    options = names_of(chat_types.ChatCompletionStreamOptionsParam)
    assert options <= table(OPTIONS).keys() | table(NEUTRAL_OPTIONS).keys()
    assert names_of(*MESSAGES) <= table(MESSAGE).keys() | table(NEUTRAL_MESSAGE).keys()
    parts = names_of(chat_types.ChatCompletionContentPartTextParam)
    assert parts <= table(PART).keys() | table(NEUTRAL_PART).keys()


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_served_members_are_taken_where_the_page_says_so_and_refused_by_name_elsewhere(ask, path):
    for name, (chat, completions, *_) in table(SERVED).items():
        if name == "model":
            continue
        value = uuid.uuid4().hex if name == "request_id" else SAMPLES[name]
        answer = ask(path, {name: value} | BESIDE.get(name, {}))
        served = (chat if path == CHAT else completions) == "yes"
        if served:
            assert answer.status_code == 200, (name, answer.text)
        else:
            error = answer.json()["error"]
            assert (answer.status_code, error["param"]) == (400, name), answer.text


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_neutral_members_are_taken_with_the_pages_values_and_refused_by_name_with_others(ask, path):
    rows = neutral_rows()
    taken = {}
    for name, values in rows.items():
        for value in CANDIDATES:
            if admits(values, value):
                taken[name] = value
                continue
            answer = ask(path, {name: value})
            error = answer.json()["error"]
            refused = (answer.status_code, error["code"], error["param"])
            assert refused == (400, "unsupported", name), (value, answer.text)
    for name, values in rows.items():
        if values not in ("–", "") and name not in taken:
            taken[name] = values.split(", ")[0]
    assert ask(path, taken).status_code == 200, ask(path, taken).text
    assert ask(path, dict.fromkeys(rows)).status_code == 200, "null asks for nothing"


def test_members_of_messages_and_parts_follow_the_page(ask):
    def chat(**members):
        return ask(CHAT, {"messages": [{"role": "assistant", "content": "Hi"} | members]})

    template = {name: "x" for name, cells in table(MESSAGE).items() if cells[0] == "template"}
    assert chat(**template, some_templates_own=[1]).status_code == 200
    for name, (values,) in table(NEUTRAL_MESSAGE).items():
        for value in CANDIDATES:
            answer = chat(**{name: value})
            if admits(values, value):
                assert answer.status_code == 200, answer.text
            else:
                error = answer.json()["error"]
                assert (error["code"], error["param"]) == ("unsupported", f"messages[0].{name}")
    for name, (values,) in table(NEUTRAL_PART).items():
        for value in CANDIDATES:
            answer = chat(content=[{"type": "text", "text": "Hi", name: value}])
            if admits(values, value):
                assert answer.status_code == 200, answer.text
            else:
                param = f"messages[0].content[0].{name}"
                assert answer.json()["error"]["param"] == param, answer.text


def test_a_misspelt_member_is_told_the_one_that_was_meant(ask):
    error = ask(CHAT, {"max_token": 3}).json()["error"]
    assert (error["code"], error["param"]) == ("invalid", "max_token")
    assert error["message"] == "max_token: unknown parameter; did you mean max_tokens?"
