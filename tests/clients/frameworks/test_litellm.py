"""LiteLLM, unchanged, against a node: provider `openai/` with an `api_base`, and its router.

Goal: whoever has LiteLLM between programs and models adds the node as one more. Method: its calls as documented; costs are not asked
for, the model being none that it knows.
"""

import asyncio
import os

import pytest

# Before its import: its price list is the one that it brings.
os.environ |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}

litellm = pytest.importorskip("litellm")

litellm.telemetry = False

MESSAGES = [{"role": "user", "content": "Tell me a short story about a dog."}]
LONG = [{"role": "user", "content": "word " * 4_000}]


@pytest.fixture(scope="module")
def arguments(http_url, api_key, model):
    return dict(
        model=f"openai/{model}",
        api_base=f"{http_url}/v1",
        api_key=api_key,
        temperature=0,
        max_tokens=16,
        timeout=60,
        num_retries=0,
    )


def test_chat_has_text_usage_and_a_reason(arguments):
    answer = litellm.completion(messages=MESSAGES, **arguments)
    [choice] = answer.choices
    assert choice.message.content and choice.finish_reason in ("stop", "length")
    assert 0 < answer.usage.completion_tokens <= 16
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_stream_gives_the_same_text_and_usage(arguments):
    whole = litellm.completion(messages=MESSAGES, **arguments)
    options = {"include_usage": True}
    chunks = list(
        litellm.completion(messages=MESSAGES, stream=True, stream_options=options, **arguments)
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    [usage] = [chunk.usage for chunk in chunks if getattr(chunk, "usage", None)]
    assert usage.completion_tokens == whole.usage.completion_tokens


def test_a_stop_string_ends_the_text(arguments):
    whole = litellm.completion(messages=MESSAGES, **arguments).choices[0].message.content
    word = whole.split()[3]
    answer = litellm.completion(messages=MESSAGES, stop=[word], **arguments)
    assert answer.choices[0].message.content == whole[: whole.index(word)]
    assert answer.choices[0].finish_reason == "stop"


def test_async_calls_run_together(arguments):
    async def many():
        calls = [litellm.acompletion(messages=MESSAGES, **arguments) for _ in range(4)]
        return await asyncio.gather(*calls)

    assert len({answer.choices[0].message.content for answer in asyncio.run(many())}) == 1


def test_prompt_caching_and_a_replayed_answer_are_taken(arguments):
    """`cache_control` marks what a provider may cache; an answer goes back with all members that LiteLLM gave it."""
    part = {"type": "text", "text": "You are brief.", "cache_control": {"type": "ephemeral"}}
    reply = litellm.completion(messages=MESSAGES, **arguments).choices[0].message.model_dump()
    messages = [
        {"role": "system", "content": [part]},
        *MESSAGES,
        reply | {"reasoning_content": None},
        {"role": "user", "content": "Go on."},
    ]
    assert litellm.completion(messages=messages, **arguments).choices[0].message.content


def test_text_completion(arguments):
    text = arguments | {"model": arguments["model"].replace("openai/", "text-completion-openai/")}
    assert litellm.text_completion(prompt="Once upon a time", **text).choices[0].text


def test_too_long_a_prompt_is_known_as_an_overflow(arguments):
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(messages=LONG, **arguments)


def test_an_overflow_starts_the_routers_fallback(arguments, http_url, api_key, model):
    shared = {name: arguments[name] for name in ("model", "api_base", "api_key", "max_tokens")}
    router = litellm.Router(
        model_list=[
            {"model_name": "small", "litellm_params": shared},
            {
                "model_name": "large",
                "litellm_params": shared | {"mock_response": "from the large one"},
            },
        ],
        context_window_fallbacks=[{"small": ["large"]}],
        num_retries=0,
    )
    answer = router.completion(model="small", messages=LONG)
    assert answer.choices[0].message.content == "from the large one"
