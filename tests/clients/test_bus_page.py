"""docs/bus.md is true: its examples run as they stand, and its tables name what a node sends, no less and no more."""

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess

import conftest
import nats
import pytest

PAGE = (conftest.ROOT / "docs" / "bus.md").read_text()
SOURCES = conftest.ROOT / "src"
P = "inferno.v1"
TIMEOUT_S = 60


def section(title):
    """The text below a heading, up to the next one."""
    [text] = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S)
    return text


def tables(title):
    """The names in the first column of each table of a section."""
    rows = r"(?:^\|.*\n)+"
    names = r"^\| `([^`]+)`"
    return [set(re.findall(names, table, re.M)) for table in re.findall(rows, section(title), re.M)]


@pytest.fixture(scope="module")
def example():
    """The functions of the page's examples."""
    namespace = {}
    for code in re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S):
        exec(compile(code, "docs/bus.md", "exec"), namespace)
    return namespace


@pytest.fixture
def run(example, nats_url, monkeypatch):
    """Runs a function of a connection as the page says."""
    monkeypatch.setenv("NATS", nats_url)
    return lambda one: asyncio.run(asyncio.wait_for(example["main"](one), TIMEOUT_S))


@pytest.mark.parametrize("name", ["with_an_id", "without_an_id", "one_answer", "in_msgpack"])
def test_an_example_of_a_request_is_answered(example, run, model, name):
    assert model == "demo", "the examples are for the demo model"
    assert run(example[name])


def long_request(request_id, **params):
    params = {"max_tokens": 1500, "ignore_eos": True, "seed": 1} | params
    return json.dumps({"request_id": request_id, "prompt": "Once", "params": params}).encode()


async def accepted(nc, request_id, model="demo", **params):
    """Starts a request; gives its events and its acceptance."""
    events = await nc.subscribe(f"{P}.tokens.{request_id}")
    request = long_request(request_id, **params)
    answer = await nc.request(f"{P}.generate.{model}", request, timeout=TIMEOUT_S)
    return events, json.loads(answer.data)


def test_a_durable_request_is_read_live_and_again_and_any_node_knows_it(example, run):
    async def inside(nc):
        request_id, text = await example["durable"](nc)
        assert text
        assert await example["read_again"](nc, request_id) == text
        status = await example["ask_any_node"](nc, "status", request_id)
        assert (status["status"], status["tokens"]) == ("finished", 20)
        ended = {"request_id": request_id, "cancelled": False, "tokens": 20}
        for _ in range(2):
            assert await example["ask_any_node"](nc, "cancel", request_id) == ended

    run(inside)


def test_cancel_and_who_runs_it_are_answered_as_the_page_says(example, run):
    async def inside(nc):
        events, _ = await accepted(nc, "page-cancel")
        await events.next_msg(TIMEOUT_S)
        assert await example["runs"](nc, "page-cancel")
        answer = await example["cancel"](nc, "page-cancel")
        assert answer["cancelled"] and 0 < answer["tokens"] < 1500
        while await example["cancel"](nc, "page-cancel") is not None:
            await asyncio.sleep(0.02)
        assert not await example["runs"](nc, "page-cancel")

    run(inside)


def test_follow_gives_every_event_once_and_passes_over_repetitions(example, run):
    async def inside(nc):
        events, _ = await accepted(nc, "page-follow", max_tokens=50)
        tokens = [
            token
            async for event in example["follow"](nc, events, "page-follow")
            for token in event["token_ids"]
        ]
        assert len(tokens) == 50
        told = [(0, 2), (2, 2), (0, 2), (2, 2), (4, 1)]
        events = await nc.subscribe("page.repeated")
        for seq, count in told:
            event = {"seq": seq, "token_ids": [7] * count} | ({"usage": {}} if seq == 4 else {})
            await nc.publish("page.repeated", json.dumps(event).encode())
        seen = [event["seq"] async for event in example["follow"](nc, events, "none")]
        assert seen == [0, 2, 4]

    run(inside)


def test_follow_notices_a_gap(example, run):
    async def inside(nc):
        events = await nc.subscribe("page.gap")
        for seq in (0, 3):
            event = {"seq": seq, "token_ids": [7]}
            await nc.publish("page.gap", json.dumps(event).encode())
        with pytest.raises(example["Gone"], match="tokens 1 to 3"):
            async for _ in example["follow"](nc, events, "none"):
                pass

    run(inside)


def test_one_reply_to_a_request_that_streams_is_the_first_event_only(run):
    async def inside(nc):
        request = {"prompt": "Once", "params": {"max_tokens": 500, "ignore_eos": True}}
        answer = await nc.request(f"{P}.generate.demo", json.dumps(request).encode(), TIMEOUT_S)
        event = json.loads(answer.data)
        assert event["seq"] == 0 and "usage" not in event and len(event["token_ids"]) < 500

    run(inside)


@contextlib.contextmanager
def dying_node(folder, nats_url):
    """The process of a slow node beside the other, which serves the model `dying`; it is killed at the end."""
    costs, config = folder / "costs.toml", folder / "node.toml"
    costs.write_text("step_us = 20_000\nnum_blocks = 4096\n")
    ready, log = folder / "ready", folder / "log"
    text = conftest.CONFIG.replace('mode = "managed"', f'mode = "external"\nurl = "{nats_url}"')
    path, slow = conftest.ROOT / "models" / "demo", conftest.SLOW.format(costs=costs)
    config.write_text(text.format(model="dying", model_path=path, sections=slow))
    binary = os.environ.get("INFERNO_BIN", str(conftest.ROOT / "target" / "debug" / "inferno-node"))
    env = {name: value for name, value in os.environ.items() if not name.startswith("INFERNO_")}
    with ready.open("w") as out, log.open("w") as err:
        command = [binary, "serve", "--config", str(config)]
        process = subprocess.Popen(command, cwd=conftest.ROOT, env=env, stdout=out, stderr=err)
    try:
        conftest.wait_until_ready(process, ready, log)
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_node_that_is_killed_or_stopped_is_noticed(example, run, tmp_path, nats_url, how):
    if conftest.from_outside():
        pytest.skip("a node of its own is killed")
    request_id, subject = f"page-{how.name}", f"{P}.generate.dying"

    async def inside(nc):
        events, answer = await accepted(nc, request_id, "dying")
        assert await example["is_alive"](nc, answer["node_id"])
        process.send_signal(how)
        with pytest.raises(example["Gone"]):
            async for _ in example["follow"](nc, events, request_id, silence_s=1):
                pass
        assert not await example["is_alive"](nc, answer["node_id"])
        if how == signal.SIGKILL:
            assert await example["cancel"](nc, request_id) is None
            with pytest.raises(nats.errors.NoRespondersError):
                await nc.request(subject, long_request("page-next"), timeout=TIMEOUT_S)
        else:
            # It is still in the queue group.
            with pytest.raises(nats.errors.TimeoutError):
                await nc.request(subject, long_request("page-next"), timeout=0.5)

    with dying_node(tmp_path, nats_url) as process:
        run(inside)


def test_who_is_there_is_known(example, run):
    async def inside(nc):
        nodes = await example["who_is_there"](nc)
        [table] = tables("Who is there")
        for node_id, entry in nodes.items():
            assert entry["id"] == node_id and entry.keys() == table
        assert any(model["name"] == "demo" for entry in nodes.values() for model in entry["models"])

    run(inside)


class Seen:
    """The members of what a node sends, by the page's tables."""

    def __init__(self):
        self.members = {}

    def add(self, name, message):
        self.members.setdefault(name, set()).update(message)
        return message

    def event(self, event):
        self.add("event", event)
        for part in ("usage", "receipt", "error"):
            self.add(part, event.get(part, {}))
        return event


async def ask(nc, seen, request, headers=None):
    """Sends a request without an id and notes its events up to the end."""
    inbox = nc.new_inbox()
    messages = await nc.subscribe(inbox)
    await nc.publish(f"{P}.generate.demo", json.dumps(request).encode(), inbox, headers)
    while (message := await messages.next_msg(TIMEOUT_S)).data:
        body = json.loads(message.data)
        if "seq" in body:
            seen.event(body)
        else:
            seen.add("refusal", body)
            seen.add("error", body["error"])


async def everything(nc):
    """Has a node send each kind of message."""
    seen = Seen()
    params = {"max_tokens": 4, "n": 2, "logprobs": 1, "prompt_logprobs": 1}
    await ask(nc, seen, {"prompt": "Once upon", "params": params})
    await ask(nc, seen, {"prompt": "Once upon", "params": {"top_p": 3}})
    await ask(nc, seen, {"prompt": "Once"}, {"Content-Type": "text/plain"})
    events, answer = await accepted(nc, "page-members")
    seen.add("acceptance", answer)
    again = await nc.request(f"{P}.generate.demo", long_request("page-members"), TIMEOUT_S)
    seen.add("refusal", json.loads(again.data))
    probe = {"Inferno-Probe": "owner"}
    asked = await nc.request(f"{P}.cancel.page-members", b"", TIMEOUT_S, headers=probe)
    seen.add("owner", json.loads(asked.data))
    cancelled = await nc.request(f"{P}.cancel.page-members", b"", TIMEOUT_S)
    seen.add("cancelled", json.loads(cancelled.data))
    while "usage" not in seen.event(json.loads((await events.next_msg(TIMEOUT_S)).data)):
        pass
    health = await nc.subscribe(f"{P}.node.*.health")
    seen.add("health", json.loads((await health.next_msg(TIMEOUT_S)).data))
    return seen.members


def test_the_tables_name_every_member_that_is_sent_and_no_other(run):
    seen = run(everything)
    event, usage, receipt = tables("Event")
    refusal, error = tables("Refusal")[:2]
    cancelled, owner = tables("Answers on the cancel subject")
    # A step that fails twice, and a full node, are not to be had from a node in order.
    assert seen["event"] == event - {"error"}
    assert seen["error"] == error - {"retry_after_ms"}
    assert (seen["usage"], seen["receipt"], seen["refusal"]) == (usage, receipt, refusal)
    assert (seen["cancelled"], seen["owner"]) == (cancelled, owner)
    assert [seen["acceptance"]] == tables("Acceptance")
    assert [seen["health"]] == tables("Health")


def test_every_member_of_a_request_is_taken_and_any_other_refused(run):
    [members] = tables("Request")
    assert members == {
        "prompt", "messages", "prompt_token_ids", "params", "params.stream", "request_id",
        "priority", "detached",
    }  # fmt: skip

    async def inside(nc):
        common = {"priority": 255, "detached": True, "params": {"stream": False, "max_tokens": 2}}
        for prompt in (
            {"prompt": "Once"},
            {"messages": [{"role": "user", "content": "Hi"}]},
            {"prompt_token_ids": [5]},
        ):
            request = json.dumps(prompt | common).encode()
            answer = await nc.request(f"{P}.generate.demo", request, TIMEOUT_S)
            assert "usage" in json.loads(answer.data), answer.data
        request = json.dumps({"prompt": "Once", "other": 1}).encode()
        answer = await nc.request(f"{P}.generate.demo", request, TIMEOUT_S)
        assert json.loads(answer.data)["error"]["param"] == "other"

    run(inside)


def test_the_table_of_headers_has_those_that_the_code_names():
    code = (SOURCES / "bus" / "wire" / "encode.rs").read_text()
    named = re.findall(r'^const (?:CONTENT_TYPE|\w+_HEADER): &str = "([^"]+)";', code, re.M)
    assert len(named) == 5
    assert [set(named)] == tables("Headers")
    [row] = re.findall(r"^\| `Content-Type` .*$", section("Headers"), re.M)
    [types] = re.findall(r"^const MSGPACK_TYPES.*?\[([^\]]*)\];", code, re.M | re.S)
    taken = {"application/json", *re.findall(r'"([^"]+)"', types)}
    assert len(taken) == 4
    assert set(re.findall(r"`(application/[^`]+)`", row)) == taken


def test_a_node_sends_every_header_of_the_table_and_no_other(run, tmp_path, nats_url):
    if conftest.from_outside():
        pytest.skip("a second node is started beside it")
    [headers] = tables("Headers")
    seen = set()

    async def note(message):
        # NATS puts names of its own into what it says of JetStream.
        own = "Nats-(?!Service)|Status$|Description$"
        names = [getattr(name, "value", name) for name in message.headers or {}]
        seen.update(name for name in names if not re.match(own, name))

    async def inside(nc):
        # Nobody else publishes there: the requests below go to other subjects.
        for subject in (f"{P}.cancel.>", f"{P}.tokens.>", f"{P}.node.>", "_INBOX.>"):
            await nc.subscribe(subject, cb=note)
        await accepted(nc, "page-headers", "dying", max_tokens=2)
        msgpack = {"Content-Type": "application/msgpack"}
        await nc.request(f"{P}.generate.demo", b"\x01", TIMEOUT_S, headers=msgpack)
        # Long enough that the node asks whether the client is still there.
        params = {"max_tokens": 150, "ignore_eos": True, "stream": False}
        request = json.dumps({"prompt": "Once", "params": params}).encode()
        await nc.request(f"{P}.generate.dying", request, TIMEOUT_S)

    with dying_node(tmp_path, nats_url):
        run(inside)
    assert seen == headers


def kinds_of_the_code():
    """Each kind's name on the wire and its status, out of the two tables of src/error.rs."""
    code = (SOURCES / "error.rs").read_text()
    names = dict(re.findall(r'Kind::(\w+) => "(\w+)"', code))
    statuses = {}
    for kinds, status in re.findall(r"((?:Kind::\w+(?: \| )?)+) => (\d{3}),", code):
        statuses |= dict.fromkeys(re.findall(r"Kind::(\w+)", kinds), int(status))
    [listed] = re.findall(r"const ALL: \[Kind; \d+\] = \[(.*?)\];", code, re.S)
    assert set(re.findall(r"Kind::(\w+)", listed)) == names.keys() == statuses.keys()
    return {kind: (names[kind], statuses[kind]) for kind in names}


def of_http_only():
    """Kinds that only the HTTP door and the list itself name: the bus has no keys."""
    files = [path for path in SOURCES.rglob("*.rs") if path != SOURCES / "error.rs"]
    elsewhere = "".join(path.read_text() for path in files if "http" not in path.relative_to(SOURCES).parts)
    return {kind for kind in kinds_of_the_code() if f"Kind::{kind}" not in elsewhere}


def test_the_table_of_error_kinds_is_the_codes():
    code, left_out = kinds_of_the_code(), of_http_only()
    assert len(code) >= 13 and left_out == {"Unauthorized", "Forbidden"}
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| (\d{3}) \|", section("Refusal"), re.M)
    page = [(name, int(status)) for names, status in rows for name in re.findall(r"\w+", names)]
    assert len(page) == len(set(page))
    assert set(page) == {code[kind] for kind in code.keys() - left_out}
