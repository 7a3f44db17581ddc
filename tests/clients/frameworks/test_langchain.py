"""LangChain, unchanged, against a node: `ChatOpenAI` with a base URL.

Goal: a chain, a stream and a fallback work as with OpenAI. Method: each as LangChain documents it; what it is told about tokens and
overflow comes from the node's answers.
"""

import pytest

pytest.importorskip("langchain_openai")

from langchain_core.exceptions import ContextOverflowError  # noqa: E402
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage  # noqa: E402
from langchain_core.prompts import ChatPromptTemplate  # noqa: E402
from langchain_openai import ChatOpenAI, OpenAI  # noqa: E402

QUESTION = "Tell me a short story about a dog."


@pytest.fixture(scope="module")
def connection(http_url, api_key, model):
    return dict(model=model, base_url=f"{http_url}/v1", api_key=api_key, max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def chat(connection):
    return ChatOpenAI(**connection, temperature=0, max_tokens=16)


def test_chat_has_text_usage_and_a_reason(chat, model):
    answer = chat.invoke(QUESTION)
    assert isinstance(answer, AIMessage) and answer.content
    usage = answer.usage_metadata
    assert usage["input_tokens"] > 0 and 0 < usage["output_tokens"] <= 16
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert answer.response_metadata["finish_reason"] in ("stop", "length")
    assert answer.response_metadata["model_name"] == model


def test_a_stream_gives_the_same_text_and_usage(chat):
    whole = chat.invoke(QUESTION)
    chunks = list(chat.stream(QUESTION, stream_usage=True))
    together = chunks[0]
    for chunk in chunks[1:]:
        together += chunk
    assert len(chunks) > 2 and together.content == whole.content
    assert together.usage_metadata["output_tokens"] == whole.usage_metadata["output_tokens"]


def test_a_stop_string_ends_the_text(chat):
    whole = chat.invoke(QUESTION).content
    word = whole.split()[3]
    assert chat.invoke(QUESTION, stop=[word]).content == whole[: whole.index(word)]


def test_a_batch_of_a_chain_is_answered_in_order(chat):
    template = [("system", "You are brief."), ("human", "Tell me about {what}.")]
    chain = ChatPromptTemplate.from_messages(template) | chat
    things = [{"what": "a dog"}, {"what": "a cat"}, {"what": "the moon"}]
    assert [answer.content for answer in chain.batch(things)] == [
        chain.invoke(thing).content for thing in things
    ]


def test_messages_with_names_are_taken(chat):
    messages = [
        SystemMessage("You are brief.", name="editor"),
        HumanMessage("Who are you?", name="anna"),
        AIMessage("A story teller.", name="poet"),
        HumanMessage(QUESTION, name="ben"),
    ]
    assert chat.invoke(messages).content


def test_too_long_a_prompt_is_known_as_an_overflow(chat):
    with pytest.raises(ContextOverflowError):
        chat.invoke("word " * 4_000)
    with pytest.raises(ContextOverflowError):
        list(chat.stream("word " * 4_000))


def test_an_overflow_starts_the_fallback(chat):
    from langchain_core.runnables import RunnableLambda

    short = RunnableLambda(lambda prompt: chat.invoke(str(prompt)[:100]))
    fallback = chat.with_fallbacks([short], exceptions_to_handle=(ContextOverflowError,))
    assert fallback.invoke("word " * 4_000).content


def test_completions(connection):
    answer = OpenAI(**connection, temperature=0, max_tokens=8).invoke("Once upon a time")
    assert answer
