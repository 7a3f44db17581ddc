"""The bus contract, seen by the official NATS client as it is installed.

Nothing here depends on what the model says, only on subjects, bodies, headers and order.
"""

import asyncio
import functools
import json
import uuid

import httpx
import msgpack
import nats
import nats.errors
import pytest

TIMEOUT_S = 60
PREFIX = "inferno.v1"


def over_nats(test):
    """Gives an async test a connection as `client`; it is closed at the end, whatever happens."""

    @functools.wraps(test)
    def run(nats_url, model):
        async def inside():
            client = await nats.connect(nats_url)
            try:
                await asyncio.wait_for(test(client, f"{PREFIX}.generate.{model}"), TIMEOUT_S)
            finally:
                await client.close()

        asyncio.run(inside())

    del run.__wrapped__  # pytest takes the fixtures from the wrapper's own signature
    return run


def new_id():
    return f"py-{uuid.uuid4().hex}"


def body(**members):
    request = {"prompt": "Once upon a time", "params": {"max_tokens": 8, "temperature": 0}}
    return request | members


def packed(request):
    return json.dumps(request).encode()


async def whole(subscription, read=json.loads):
    """The events up to the last one; no token may be missing or repeated."""
    events, expected = [], 0
    while True:
        message = await subscription.next_msg(TIMEOUT_S)
        event = read(message.data)
        assert event["seq"] == expected, event
        expected += len(event["token_ids"])
        events.append(event)
        if "finish_reason" in event:
            return events


def token_ids(events):
    return [token for event in events for token in event["token_ids"]]


async def is_unknown(client, request_id):
    """Whether no node runs the request any more: its cancel subject is left a moment after its last event."""
    for _ in range(100):
        try:
            await client.request(f"{PREFIX}.cancel.{request_id}", timeout=TIMEOUT_S)
        except nats.errors.NoRespondersError:
            return True
        await asyncio.sleep(0.02)
    return False


@over_nats
async def test_choices_stream_side_by_side_and_the_last_event_has_the_usage(client, subject):
    request_id = new_id()
    tokens = await client.subscribe(f"{PREFIX}.tokens.{request_id}")
    params = {"max_tokens": 8, "n": 3, "seed": 1, "ignore_eos": True}
    await client.request(subject, packed(body(request_id=request_id, params=params)), TIMEOUT_S)
    seen, ends = {0: 0, 1: 0, 2: 0}, []
    while True:
        event = json.loads((await tokens.next_msg(TIMEOUT_S)).data)
        index = event.get("index", 0)
        assert event["seq"] == seen[index], event
        seen[index] += len(event["token_ids"])
        if "finish_reason" in event:
            ends.append((index, event["finish_reason"]))
        if "usage" in event:
            break
    assert seen == {0: 8, 1: 8, 2: 8}
    assert sorted(ends) == [(0, "length"), (1, "length"), (2, "length")]
    assert event["usage"]["completion_tokens"] == 24
    assert await is_unknown(client, request_id)


@over_nats
async def test_publish_and_stream(client, subject):
    request_id = new_id()
    tokens = await client.subscribe(f"{PREFIX}.tokens.{request_id}")
    answer = await client.request(subject, packed(body(request_id=request_id)), timeout=TIMEOUT_S)
    accepted = json.loads(answer.data)
    assert accepted["request_id"] == request_id
    assert accepted["status"] == "accepted"
    assert accepted["node_id"]
    events = await whole(tokens)
    last = events[-1]
    assert all(event["request_id"] == request_id for event in events)
    assert all(event["attempt"] == 1 for event in events)
    assert last["finish_reason"] in ("stop", "length")
    assert last["usage"]["completion_tokens"] == len(token_ids(events)) <= 8
    assert last["usage"]["total_tokens"] == last["usage"]["prompt_tokens"] + len(token_ids(events))
    assert last["receipt"]["node_id"] == accepted["node_id"]
    assert "error" not in last
    assert not any("usage" in event for event in events[:-1])


@over_nats
async def test_fire_and_forget_with_an_id_streams_too(client, subject):
    request_id = new_id()
    tokens = await client.subscribe(f"{PREFIX}.tokens.{request_id}")
    await client.publish(subject, packed(body(request_id=request_id)))
    assert token_ids(await whole(tokens))


@over_nats
async def test_request_many_ends_with_an_empty_message(client, subject):
    inbox = client.new_inbox()
    answers = await client.subscribe(inbox)
    await client.publish(subject, packed(body()), reply=inbox)
    events = await whole(answers)
    assert len({event["request_id"] for event in events}) == 1
    end = await answers.next_msg(TIMEOUT_S)
    assert end.data == b""


@over_nats
async def test_one_event_without_streaming(client, subject):
    request = body(params={"max_tokens": 6, "temperature": 0, "stream": False})
    answer = await client.request(subject, packed(request), timeout=TIMEOUT_S)
    event = json.loads(answer.data)
    assert event["seq"] == 0
    assert event["finish_reason"] in ("stop", "length")
    assert event["usage"]["completion_tokens"] == len(event["token_ids"])


ONE_ANSWER = {"max_tokens": 400, "ignore_eos": True, "stream": False}


async def cancelled(http_url):
    """How many requests the node has counted as cancelled."""
    page = await asyncio.to_thread(lambda: httpx.get(f"{http_url}/metrics").text)
    lines = (line for line in page.splitlines() if line.startswith("inferno_requests_finished_total"))
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if 'reason="cancelled"' in line)


def test_a_request_for_one_answer_ends_when_its_connection_does_and_not_while_it_stays(
    slow_node, model
):
    subject = f"{PREFIX}.generate.{model}"

    async def inside():
        stays, goes = await nats.connect(slow_node.nats_url), await nats.connect(slow_node.nats_url)
        try:
            # Computed for eight seconds; the other waits for its seat.
            answer = asyncio.create_task(
                stays.request(subject, packed(body(params=ONE_ANSWER)), timeout=TIMEOUT_S)
            )
            call = asyncio.create_task(
                goes.request(subject, packed(body(params=ONE_ANSWER)), timeout=TIMEOUT_S)
            )
            while goes.stats["in_msgs"] == 0:  # the node asks for the caller, beside the answer
                await asyncio.sleep(0.02)
            await goes.close()
            call.cancel()
            while await cancelled(slow_node.http_url) < 1:
                await asyncio.sleep(0.05)
            event = json.loads((await answer).data)
            assert len(event["token_ids"]) == 400
            quick = body(params=ONE_ANSWER | {"max_tokens": 2})
            event = json.loads((await stays.request(subject, packed(quick), TIMEOUT_S)).data)
            assert len(event["token_ids"]) == 2
        finally:
            await stays.close()
            await goes.close()

    asyncio.run(asyncio.wait_for(inside(), 2 * TIMEOUT_S))


def test_one_answer_to_a_subscription_of_its_own_comes_first_and_whole(slow_node, model):
    async def inside():
        client = await nats.connect(slow_node.nats_url, inbox_prefix="acme.inbox")
        try:
            inbox = client.new_inbox()
            answers = await client.subscribe(inbox)
            request = packed(body(params=ONE_ANSWER))
            await client.publish(f"{PREFIX}.generate.{model}", request, reply=inbox)
            event = json.loads((await answers.next_msg(TIMEOUT_S)).data)
            assert (len(event["token_ids"]), event["finish_reason"]) == (400, "length")
        finally:
            await client.close()

    asyncio.run(asyncio.wait_for(inside(), TIMEOUT_S))


@over_nats
async def test_msgpack_says_the_same_as_json(client, subject):
    ids = new_id(), new_id()
    streams = [await client.subscribe(f"{PREFIX}.tokens.{one}") for one in ids]
    await client.publish(subject, packed(body(request_id=ids[0])))
    answer = await client.request(
        subject,
        msgpack.packb(body(request_id=ids[1])),
        timeout=TIMEOUT_S,
        headers={"Content-Type": "application/msgpack"},
    )
    assert msgpack.unpackb(answer.data)["status"] == "accepted"
    assert answer.headers["Content-Type"] == "application/msgpack"
    as_json = await whole(streams[0])
    as_msgpack = await whole(streams[1], msgpack.unpackb)
    assert token_ids(as_json) == token_ids(as_msgpack)
    assert "".join(e["text"] for e in as_json) == "".join(e["text"] for e in as_msgpack)


@pytest.mark.parametrize("name", ["application/vnd.msgpack", "application/x-msgpack"])
def test_msgpack_has_other_names_and_is_answered_under_its_usual_one(nats_url, model, name):
    @over_nats
    async def asked(client, subject):
        request = body(params={"max_tokens": 4, "temperature": 0, "stream": False})
        as_json = await client.request(subject, packed(request), timeout=TIMEOUT_S)
        answer = await client.request(
            subject, msgpack.packb(request), timeout=TIMEOUT_S, headers={"Content-Type": name}
        )
        assert answer.headers["Content-Type"] == "application/msgpack"
        event = msgpack.unpackb(answer.data)
        assert event["token_ids"] == json.loads(as_json.data)["token_ids"]
        bad = msgpack.packb(request | {"other": 1})
        answer = await client.request(
            subject, bad, timeout=TIMEOUT_S, headers={"Content-Type": name}
        )
        assert answer.headers["Content-Type"] == "application/msgpack"
        assert msgpack.unpackb(answer.data)["error"]["param"] == "other"

    asked(nats_url, model)


PARTS = [{"type": "text", "text": "Tell me "}, {"type": "text", "text": "a story."}]
PLAIN = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Tell me a story."},
]


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "developer", "content": "Be brief."}, PLAIN[1]],
        [PLAIN[0], {"role": "user", "content": PARTS}],
    ],
    ids=["developer", "parts"],
)
def test_messages_are_taken_as_openai_has_them(nats_url, model, messages):
    @over_nats
    async def asked(client, subject):
        async def answer(messages):
            params = {"max_tokens": 8, "temperature": 0, "stream": False}
            request = packed({"messages": messages, "params": params})
            event = json.loads((await client.request(subject, request, timeout=TIMEOUT_S)).data)
            return event["token_ids"], event["usage"]["prompt_tokens"]

        assert await answer(messages) == await answer(PLAIN)
        # What stands in them counts.
        assert await answer(messages) != await answer(PLAIN[1:])

    asked(nats_url, model)


@over_nats
async def test_the_same_seed_gives_the_same_tokens(client, subject):
    runs = []
    for _ in range(2):
        request_id = new_id()
        tokens = await client.subscribe(f"{PREFIX}.tokens.{request_id}")
        params = {"max_tokens": 12, "temperature": 1, "seed": 42}
        await client.publish(subject, packed(body(request_id=request_id, params=params)))
        runs.append(token_ids(await whole(tokens)))
    assert runs[0] == runs[1]


def long_request(request_id, **members):
    params = {"max_tokens": 1500, "ignore_eos": True, "temperature": 1, "seed": 1}
    return packed(body(request_id=request_id, params=params, **members))


@over_nats
async def test_cancel_is_acknowledged_with_the_tokens_so_far(client, subject):
    request_id = new_id()
    tokens = await client.subscribe(f"{PREFIX}.tokens.{request_id}")
    await client.request(subject, long_request(request_id), timeout=TIMEOUT_S)
    await tokens.next_msg(TIMEOUT_S)
    answer = await client.request(f"{PREFIX}.cancel.{request_id}", timeout=TIMEOUT_S)
    cancelled = json.loads(answer.data)
    assert cancelled["request_id"] == request_id
    assert cancelled["cancelled"] is True
    while True:
        message = await tokens.next_msg(TIMEOUT_S)
        last = json.loads(message.data)
        if "finish_reason" in last:
            break
    assert last["finish_reason"] == "cancelled"
    assert message.headers is None
    assert cancelled["tokens"] == last["usage"]["completion_tokens"] < 1500


@over_nats
async def test_an_unknown_request_has_no_responder(client, subject):
    assert await is_unknown(client, new_id())


@over_nats
async def test_an_unknown_model_has_no_responder(client, subject):
    with pytest.raises(nats.errors.NoRespondersError):
        await client.request(f"{PREFIX}.generate.no-such-model", packed(body()), timeout=TIMEOUT_S)


@over_nats
async def test_an_id_that_runs_is_a_conflict_and_its_stream_goes_on(client, subject):
    request_id = new_id()
    tokens = await client.subscribe(f"{PREFIX}.tokens.{request_id}")
    await client.request(subject, long_request(request_id), timeout=TIMEOUT_S)
    answer = await client.request(subject, packed(body(request_id=request_id)), timeout=TIMEOUT_S)
    assert answer.headers["Nats-Service-Error-Code"] == "409"
    assert json.loads(answer.data)["error"]["kind"] == "conflict"
    await client.request(f"{PREFIX}.cancel.{request_id}", timeout=TIMEOUT_S)
    assert (await whole(tokens))[-1]["finish_reason"] == "cancelled"


@pytest.mark.parametrize(
    ("request_body", "kind", "param"),
    [
        (b"{", "invalid", None),
        (b"", "invalid", None),
        (packed({}), "invalid", "prompt"),
        (packed(body(promt="x")), "invalid", "promt"),
        (b'{"prompt":"a","prompt":"b"}', "invalid", "prompt"),
        (packed(body(params={"temperature": 3})), "invalid", "params.temperature"),
        (packed(body(params={"top_q": 1})), "invalid", "params.top_q"),
        (packed(body(priority=256)), "invalid", "priority"),
        (packed(body(tenant="a")), "unsupported", "tenant"),
        (packed(body(deadline_ms=100)), "unsupported", "deadline_ms"),
        (packed(body(params={"max_tokens": 10_000_000})), "context_length", "params.max_tokens"),
        (packed({"messages": [{"role": "user", "content": 1}]}), "invalid", "messages[0].content"),
    ],
)
def test_a_refusal_names_the_field(nats_url, model, request_body, kind, param):
    @over_nats
    async def refused(client, subject):
        answer = await client.request(subject, request_body, timeout=TIMEOUT_S)
        error = json.loads(answer.data)["error"]
        assert error["kind"] == kind
        assert answer.headers["Nats-Service-Error-Code"] == "400"
        assert error.get("param") == param
        assert error["message"].startswith(f"{param}: " if param else "")
        assert answer.headers["Nats-Service-Error"] == f"{kind}: {error['message']}"[:200]

    refused(nats_url, model)


@over_nats
async def test_another_content_type_is_refused(client, subject):
    headers = {"Content-Type": "text/plain"}
    answer = await client.request(subject, b"hi", timeout=TIMEOUT_S, headers=headers)
    assert json.loads(answer.data)["error"]["kind"] == "unsupported"


@over_nats
async def test_the_service_api_shows_the_node(client, subject):
    for name in ("$SRV.PING", "$SRV.PING.inferno"):
        ping = json.loads((await client.request(name, timeout=TIMEOUT_S)).data)
        assert ping["type"] == "io.nats.micro.v1.ping_response"
        assert ping["name"] == "inferno"
    node_id = ping["id"]
    info = json.loads((await client.request(f"$SRV.INFO.inferno.{node_id}")).data)
    assert subject in [endpoint["subject"] for endpoint in info["endpoints"]]

    async def stats():
        answer = json.loads((await client.request(f"$SRV.STATS.inferno.{node_id}")).data)
        [endpoint] = [one for one in answer["endpoints"] if one["subject"] == subject]
        return endpoint["num_requests"], endpoint["num_errors"]

    before = await stats()
    inbox = client.new_inbox()
    answers = await client.subscribe(inbox)
    await client.publish(subject, packed(body()), reply=inbox)
    await whole(answers)
    await client.request(subject, b"{", timeout=TIMEOUT_S)
    after = await stats()
    assert after == (before[0] + 2, before[1] + 1), "one for a request, however many messages"


@over_nats
async def test_health_comes_every_second(client, subject):
    health = await client.subscribe(f"{PREFIX}.node.*.health")
    message = json.loads((await health.next_msg(10)).data)
    assert message["status"] in ("healthy", "degraded", "critical")
    assert message["node_id"] and message["timestamp"].endswith("Z")
    assert {check["name"] for check in message["checks"]} >= {"memory", "model", "progress"}
