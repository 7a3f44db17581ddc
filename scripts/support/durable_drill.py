"""Three nodes, 200 durable streams, three faults in mid-stream: what does a subscriber see?

The nodes compute nothing (`sim`), so what each stream says is known before: it is asked of a node that nobody disturbs.
Subscribers are a plain NATS client; where one misses a record, it reads it from the log.
"""

import asyncio
import collections
import json
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time

import nats

from durable_streams import P, Readers, Verdict, answers_to

BINARY = sys.argv[1]
STREAMS = 200
TOKENS = 200
STEP_US = 50_000  # 20 tokens/s a stream
LIMIT_S = 85


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Cluster:
    """A nats-server and nodes, all of which end with it."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.port = free_port()
        self.url = f"nats://127.0.0.1:{self.port}"
        self.nodes = {}
        self.server = None

    def start_server(self):
        command = ["nats-server", "-a", "127.0.0.1", "-p", str(self.port), "-js", "-sd", self.folder / "store"]
        self.server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    async def start_node(self, name, step_us, bus):
        costs = self.folder / f"{name}.costs.toml"
        costs.write_text(f"step_us = {step_us}\nnum_blocks = 65536\n")
        config = self.folder / f"{name}.toml"
        config.write_text(f"""
[http]
enabled = false
[[models]]
name = "demo"
model_path = "models/demo"
[executor]
devices = ["sim:0"]
sim_cost_model = "{costs}"
[batcher]
max_batch_size = 256
[bus]
{bus}
[node]
id = "{name}"
""")
        ready = self.folder / f"{name}.ready"
        with ready.open("w") as out, (self.folder / f"{name}.log").open("w") as log:
            command = [BINARY, "serve", "--config", config]
            self.nodes[name] = subprocess.Popen(command, stdout=out, stderr=log)
        for _ in range(600):
            line = ready.read_text()
            if line.endswith("\n"):
                return dict(word.split("=", 1) for word in line.split() if "=" in word)
            assert self.nodes[name].poll() is None, (self.folder / f"{name}.log").read_text()
            await asyncio.sleep(0.05)
        raise SystemExit(f"{name} is not ready")

    def external(self):
        return f'mode = "external"\nurl = "{self.url}"'

    def stop(self):
        for process in [*self.nodes.values(), self.server]:
            if process and process.poll() is None:
                process.terminate()
        for process in [*self.nodes.values(), self.server]:
            if process:
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()


def request(seed):
    params = {"max_tokens": TOKENS, "seed": seed, "ignore_eos": True, "temperature": 1.0}
    return {"prompt": "Once upon a time", "params": params}


async def known_answers(cluster):
    """What each stream says, from a node that nobody disturbs."""
    ready = await cluster.start_node("quiet", 50, 'mode = "managed"')
    connection = await nats.connect(ready["nats"])
    answers = await answers_to(connection, map(request, range(STREAMS)), 60)
    await connection.close()
    cluster.nodes["quiet"].send_signal(signal.SIGTERM)
    return answers


def table(readers, cluster, what):
    streams = readers.streams.values()
    owners = collections.Counter(stream.owner for stream in streams if not stream.is_over)
    names = [name for name in cluster.nodes if name != "quiet"]
    counts = "  ".join(f"{name} {owners.get(name, 0):>3}" for name in names)
    done, tokens = sum(stream.is_over for stream in streams), sum(len(stream.tokens) for stream in streams)
    print(f"{time.monotonic() - STARTED:5.1f} s  {counts}  done {done:>3}  tokens {tokens:>6}  {what}", flush=True)


async def faults(cluster):
    """In mid-stream: a kill -9, a drain, a NATS that goes and comes back. Says what it did."""
    await asyncio.sleep(2.5)
    cluster.nodes["one"].kill()
    yield "kill -9 of one"
    await asyncio.sleep(2)
    cluster.nodes["two"].send_signal(signal.SIGTERM)
    yield "drain of two"
    await asyncio.sleep(1.5)
    cluster.server.terminate()
    cluster.server.wait()
    await asyncio.sleep(1)
    cluster.start_server()
    yield "NATS was stopped, and started again"


async def disturb(readers, cluster):
    async for what in faults(cluster):
        table(readers, cluster, f"<- {what}")


async def drill(folder):
    cluster = Cluster(folder)
    try:
        cluster.start_server()
        answers = await known_answers(cluster)
        await asyncio.gather(*(cluster.start_node(name, STEP_US, cluster.external()) for name in ["one", "two", "three"]))

        async def quiet(_):
            """What the client says of a server that is away."""

        connection = await nats.connect(
            cluster.url, max_reconnect_attempts=-1, reconnect_time_wait=0.2, error_cb=quiet, pending_size=1 << 26
        )
        js, ids = connection.jetstream(), [f"s{seed}" for seed in range(STREAMS)]
        readers = Readers(connection, ids)
        await connection.subscribe(f"{P}.tokens.*", cb=readers.hear, pending_msgs_limit=-1, pending_bytes_limit=-1)
        for seed, request_id in enumerate(ids):
            body = {"request_id": request_id, **request(seed)}
            await js.publish(f"{P}.jobs.demo", json.dumps(body).encode())  # the acknowledgement is the promise
        disturbing = asyncio.create_task(disturb(readers, cluster))
        while not all(stream.is_over for stream in readers.streams.values()):
            if time.monotonic() - STARTED > LIMIT_S:
                table(readers, cluster, "not done in time")
                break
            await asyncio.sleep(0.5)
            table(readers, cluster, "")
            await readers.catch_up_all()
        await disturbing
        await connection.close()
        verdict = Verdict(readers, answers)
        print(verdict)
        return 0 if verdict.is_good() else 1
    finally:
        cluster.stop()


STARTED = time.monotonic()
with tempfile.TemporaryDirectory() as folder:
    status = asyncio.run(drill(folder))
sys.exit(status)
