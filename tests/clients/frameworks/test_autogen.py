"""AutoGen, unchanged, against a node: agents that talk to each other, each message with its author's name.

Goal: a round of agents without tools runs to its end. Method: `OpenAIChatCompletionClient` with a base URL and what a model of an
unknown name needs (`model_info`), as its documentation has it.
"""

import asyncio

import pytest

pytest.importorskip("autogen_agentchat")
pytest.importorskip("autogen_ext.models.openai")

from autogen_agentchat.agents import AssistantAgent  # noqa: E402
from autogen_agentchat.conditions import MaxMessageTermination  # noqa: E402
from autogen_agentchat.messages import ModelClientStreamingChunkEvent, TextMessage  # noqa: E402
from autogen_agentchat.teams import RoundRobinGroupChat  # noqa: E402
from autogen_core.models import SystemMessage, UserMessage  # noqa: E402
from autogen_ext.models.openai import OpenAIChatCompletionClient  # noqa: E402

MODEL_INFO = {
    "vision": False,
    "function_calling": False,
    "json_output": False,
    "structured_output": False,
    "family": "unknown",
}


@pytest.fixture
def ask(http_url, api_key, model):
    """Runs a coroutine with a client, and closes the client."""

    def run(program):
        async def whole():
            client = OpenAIChatCompletionClient(
                model=model,
                base_url=f"{http_url}/v1",
                api_key=api_key,
                model_info=MODEL_INFO,
                max_retries=0,
                temperature=0,
                max_tokens=12,
            )
            try:
                return await program(client)
            finally:
                await client.close()

        return asyncio.run(whole())

    return run


def test_the_client_answers_and_counts(ask):
    messages = [
        SystemMessage(content="You are brief."),
        UserMessage(content="Tell me a story.", source="anna"),
    ]
    result = ask(lambda client: client.create(messages))
    assert result.content and result.finish_reason in ("stop", "length")
    assert result.usage.prompt_tokens > 0 and 0 < result.usage.completion_tokens <= 12


def test_a_stream_ends_with_the_same_result(ask):
    messages = [UserMessage(content="Tell me a story.", source="anna")]

    async def both(client):
        parts = [part async for part in client.create_stream(messages, include_usage=True)]
        return await client.create(messages), parts

    whole, (*texts, last) = ask(both)
    assert "".join(texts) == last.content == whole.content
    assert last.usage.completion_tokens == whole.usage.completion_tokens


def test_two_agents_talk_by_their_names(ask):
    async def talk(client):
        poet = AssistantAgent("poet", client, system_message="You tell stories.")
        critic = AssistantAgent("critic", client, system_message="You say what is missing.")
        team = RoundRobinGroupChat([poet, critic], termination_condition=MaxMessageTermination(5))
        return await team.run(task="A story about a dog.")

    result = ask(talk)
    authors = [message.source for message in result.messages]
    assert authors == ["user", "poet", "critic", "poet", "critic"]
    assert all(isinstance(message, TextMessage) and message.content for message in result.messages)
    assert all(message.models_usage.completion_tokens > 0 for message in result.messages[1:])


def test_an_agent_streams(ask):
    async def talk(client):
        agent = AssistantAgent("poet", client, model_client_stream=True)
        return [event async for event in agent.run_stream(task="A story about a cat.")]

    *events, result = ask(talk)
    chunks = [event for event in events if isinstance(event, ModelClientStreamingChunkEvent)]
    assert len(chunks) > 1
    assert "".join(chunk.content for chunk in chunks) == result.messages[-1].content
