"""More clients than a node has places, with OpenAI's own client and its defaults: two retries, by the node's `retry-after-ms`.

How fast the node is does not matter: the times that it names follow from that.
"""

import asyncio
import concurrent.futures
import json

import conftest
import nats
import openai
import pytest

PLACES, CLIENTS, AT_LEAST = 8, 40, 38

ADMISSION = f"""
[admission]
max_requests = {PLACES}
"""


@pytest.fixture(scope="module")
def small_node(tmp_path_factory, model):
    if conftest.from_outside():
        pytest.skip("a node from outside has the places that it has")
    with conftest.started(tmp_path_factory.mktemp("small-node"), model, ADMISSION) as node:
        yield node


def ask(client, model, seed):
    try:
        answer = client.completions.create(
            model=model, prompt="Once upon a time", max_tokens=300, seed=seed
        )
    except openai.RateLimitError as refused:
        return refused
    return answer.choices[0].text


def test_of_40_clients_on_8_places_at_least_38_are_answered_three_times_in_a_row(small_node, model):
    with openai.OpenAI(base_url=f"{small_node.http_url}/v1", api_key="none") as client:
        for run in range(3):
            with concurrent.futures.ThreadPoolExecutor(CLIENTS) as threads:
                answers = list(threads.map(lambda n: ask(client, model, n), range(CLIENTS)))
            answered = sum(isinstance(answer, str) for answer in answers)
            assert answered >= AT_LEAST, f"run {run}: {answered}"


def test_both_headers_of_a_refusal_name_the_same_time_and_the_next_client_a_later_one(
    small_node, model
):
    def refusals():
        with openai.OpenAI(
            base_url=f"{small_node.http_url}/v1", api_key="none", max_retries=0
        ) as client:
            with concurrent.futures.ThreadPoolExecutor(CLIENTS) as threads:
                answers = list(threads.map(lambda n: ask(client, model, n), range(CLIENTS)))
        return [one.response.headers for one in answers if isinstance(one, openai.RateLimitError)]

    told = [(int(headers["retry-after-ms"]), int(headers["retry-after"])) for headers in refusals()]
    assert told
    assert all(1_000 <= ms <= 60_000 and seconds == -(-ms // 1_000) for ms, seconds in told)
    assert len({ms for ms, _ in told}) > len(told) // 2, told


def test_the_bus_names_times_of_the_same_kind(small_node, model):
    params = {"max_tokens": 300, "ignore_eos": True, "stream": False}
    request = json.dumps({"prompt": "Once upon a time", "params": params}).encode()

    async def inside():
        client = await nats.connect(small_node.nats_url)
        try:
            asked = [
                client.request(f"inferno.v1.generate.{model}", request, timeout=60)
                for _ in range(CLIENTS)
            ]
            return [json.loads(answer.data) for answer in await asyncio.gather(*asked)]
        finally:
            await client.close()

    refused = [answer["error"] for answer in asyncio.run(inside()) if "error" in answer]
    assert refused
    for error in refused:
        assert set(error) == {"kind", "message", "retry_after_ms"}
        assert error["kind"] == "queue_full" and 1_000 <= error["retry_after_ms"] <= 60_000
    assert len({error["retry_after_ms"] for error in refused}) > len(refused) // 2
