"""llama-index, unchanged, against a node: `OpenAILike`, its class for servers that are not OpenAI's.

Goal: chats, completions and streams work, as its query engines use them. Method: its calls as documented.
"""

import asyncio

import pytest

pytest.importorskip("llama_index.llms.openai_like")

from llama_index.core.llms import ChatMessage  # noqa: E402
from llama_index.llms.openai_like import OpenAILike  # noqa: E402

MESSAGES = [
    ChatMessage(role="system", content="You are brief."),
    ChatMessage(role="user", content="Tell me a short story about a dog."),
]


@pytest.fixture
def llm(http_url, api_key, model):
    return lambda **more: OpenAILike(
        model=model,
        api_base=f"{http_url}/v1",
        api_key=api_key,
        is_chat_model=True,
        context_window=2048,
        max_tokens=12,
        temperature=0,
        max_retries=0,
        **more,
    )


def test_chat_has_text_and_usage(llm):
    answer = llm().chat(MESSAGES)
    assert answer.message.content and answer.raw.usage.completion_tokens <= 12


def test_a_stream_gives_the_same_text(llm):
    parts = list(llm().stream_chat(MESSAGES))
    text = "".join(part.delta for part in parts)
    assert len(parts) > 1 and text == parts[-1].message.content
    assert text == llm().chat(MESSAGES).message.content


def test_a_stop_string_ends_the_text(llm):
    whole = llm().chat(MESSAGES).message.content
    word = whole.split()[3]
    assert llm().chat(MESSAGES, stop=[word]).message.content == whole[: whole.index(word)]


def test_a_completion_of_a_chat_model_is_a_chat(llm):
    question = MESSAGES[-1:]
    assert llm().complete(question[0].content).text == llm().chat(question).message.content


def test_completions_of_a_model_that_does_not_chat(llm):
    completing = OpenAILike(**llm().model_dump() | {"is_chat_model": False, "api_key": "none"})
    whole = completing.complete("Once upon a time").text
    parts = list(completing.stream_complete("Once upon a time"))
    assert whole and parts[-1].text == whole


def test_async_calls_run_together(llm):
    async def many():
        client = llm()
        return await asyncio.gather(*(client.achat(MESSAGES) for _ in range(4)))

    assert len({answer.message.content for answer in asyncio.run(many())}) == 1
