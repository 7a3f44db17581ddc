"""Semantic Kernel, unchanged, against a node: its chat service over OpenAI's client, and agents, whose messages carry names.

Goal: an agent and a group of two run without tools. Method: `OpenAIChatCompletion` with an `AsyncOpenAI` of the node's base URL, the
way that its documentation gives for servers of OpenAI's kind.
"""

import asyncio

import pytest

pytest.importorskip("semantic_kernel")

from openai import AsyncOpenAI  # noqa: E402
from semantic_kernel.agents import (  # noqa: E402
    ChatCompletionAgent,
    ChatHistoryAgentThread,
    GroupChatOrchestration,
    RoundRobinGroupChatManager,
)
from semantic_kernel.agents.runtime import InProcessRuntime  # noqa: E402
from semantic_kernel.connectors.ai.open_ai import (  # noqa: E402
    OpenAIChatCompletion,
    OpenAIChatPromptExecutionSettings,
)
from semantic_kernel.contents import ChatHistory  # noqa: E402
from semantic_kernel.functions import KernelArguments  # noqa: E402

SETTINGS = OpenAIChatPromptExecutionSettings(max_tokens=12, temperature=0)


@pytest.fixture
def ask(http_url, api_key, model):
    """Runs a coroutine with a service, and closes its client."""

    def run(program):
        async def whole():
            async with AsyncOpenAI(
                base_url=f"{http_url}/v1", api_key=api_key, max_retries=0
            ) as client:
                return await program(OpenAIChatCompletion(model, async_client=client))

        return asyncio.run(whole())

    return run


def agent(service, name, instructions="You tell stories."):
    return ChatCompletionAgent(
        service=service,
        name=name,
        description=instructions,
        instructions=instructions,
        arguments=KernelArguments(SETTINGS),
    )


def history():
    history = ChatHistory(system_message="You are brief.")
    history.add_user_message("Tell me a short story about a dog.")
    return history


def test_the_service_answers_and_counts(ask):
    answer = ask(lambda service: service.get_chat_message_content(history(), SETTINGS))
    assert str(answer) and answer.finish_reason in ("stop", "length")
    assert 0 < answer.metadata["usage"].completion_tokens <= 12


def test_a_stream_gives_the_same_text(ask):
    async def both(service):
        stream = service.get_streaming_chat_message_content(history(), SETTINGS)
        parts = [part async for part in stream]
        return await service.get_chat_message_content(history(), SETTINGS), parts

    whole, parts = ask(both)
    assert len(parts) > 1 and "".join(str(part) for part in parts) == str(whole)


def test_an_agent_goes_on_in_its_thread(ask):
    async def talk(service):
        thread, poet = ChatHistoryAgentThread(), agent(service, "poet")
        for task in ("A story about a dog.", "Go on."):
            answer = await poet.get_response(messages=task, thread=thread)
        return answer, [message.name async for message in thread.get_messages()]

    answer, names = ask(talk)
    assert str(answer) and answer.name == "poet"
    assert names == [None, "poet", None, "poet"]


def test_two_agents_talk_by_their_names(ask):
    async def talk(service):
        names = []
        chat = GroupChatOrchestration(
            members=[agent(service, "poet"), agent(service, "critic", "You say what is missing.")],
            manager=RoundRobinGroupChatManager(max_rounds=4),
            agent_response_callback=lambda message: names.append(message.name),
        )
        runtime = InProcessRuntime()
        runtime.start()
        try:
            result = await chat.invoke("A story about a cat.", runtime)
            return await result.get(timeout=60), names
        finally:
            await runtime.stop()

    last, names = ask(talk)
    assert str(last) and names == ["poet", "critic", "poet", "critic"]
