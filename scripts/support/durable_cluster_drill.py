"""Durable streams on the cluster of containers: a node is killed, one is cut off its network, NATS stops, dies, and loses its store.

Ends with 0 only if every subscriber has every token once and in order, as a plain request says them, and after the store was wiped
every open request ended once, in a clear error.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import time

import nats

from durable_streams import P, Readers, Verdict, answers_to

STREAMS = 100
TOKENS = 1_500  # on two quick cores some seconds, so that streams run when something is done to the cluster
CUT_S = 30
STOP_S = 10
LIMIT_S = 240
NODES = ("node-1", "node-2", "node-3")


def run(*words):
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


class Containers:
    """What may be done to the cluster, all of which runs."""

    def __init__(self, compose):
        self.compose = compose.split()
        self.up()
        self.ids = {service: run(*self.compose, "ps", "-q", service) for service in [*NODES, "nats"]}

    def up(self):
        run(*self.compose, "up", "-d", "--no-build")

    async def docker(self, verb, service):
        await asyncio.to_thread(run, "docker", verb, self.ids[service])

    async def cut(self, service):
        """Off its network for a while, and back."""
        template = "{{range $name, $_ := .NetworkSettings.Networks}}{{$name}}{{end}}"
        network = run("docker", "inspect", "--format", template, self.ids[service])
        await asyncio.to_thread(run, "docker", "network", "disconnect", "--force", network, self.ids[service])
        await asyncio.sleep(CUT_S)
        await asyncio.to_thread(run, "docker", "network", "connect", network, self.ids[service])

    async def wipe(self):
        """NATS begins anew, with nothing."""
        await asyncio.to_thread(run, *self.compose, "rm", "--stop", "--force", "nats")
        await asyncio.to_thread(self.up)


def request(seed):
    params = {"max_tokens": TOKENS, "seed": seed, "ignore_eos": True, "temperature": 1.0}
    return {"prompt": "Once upon a time", "params": params}


class Round:
    """All streams once, and what is done to the cluster at which share of their tokens."""

    def __init__(self, connection, name):
        self.connection = connection
        self.ids = [f"{name}{seed}" for seed in range(STREAMS)]
        self.readers = Readers(connection, self.ids)

    async def start(self):
        js = self.connection.jetstream()
        self.subscription = await self.connection.subscribe(
            f"{P}.tokens.*", cb=self.readers.hear, pending_msgs_limit=-1, pending_bytes_limit=-1
        )
        for seed, request_id in enumerate(self.ids):
            body = {"request_id": request_id, **request(seed)}
            await js.publish(f"{P}.jobs.demo", json.dumps(body).encode())

    def owner_of_most(self, besides=None):
        owners = [stream.owner for stream in self.readers.streams.values() if stream.owner and not stream.is_over]
        return max((node for node in NODES if node != besides), key=owners.count)

    async def until(self, share):
        while sum(len(stream.tokens) for stream in self.readers.streams.values()) < share * STREAMS * TOKENS:
            await asyncio.sleep(0.05)

    async def all_have_begun(self):
        """What still waits when the store goes is known to nobody: there is no end that a subscriber could be told."""
        deadline = time.monotonic() + LIMIT_S
        while not all(stream.owner for stream in self.readers.streams.values()):
            if time.monotonic() > deadline:
                raise SystemExit("not all begun in time")
            await asyncio.sleep(0.01)

    async def end(self):
        deadline = time.monotonic() + LIMIT_S
        while not all(stream.is_over for stream in self.readers.streams.values()):
            if time.monotonic() > deadline:
                raise SystemExit("not done in time")
            await asyncio.sleep(0.5)
            await self.readers.catch_up_all()
        await self.subscription.unsubscribe()


async def nodes_go(round, cluster):
    """A node is killed with -9; then another is cut off, and comes back to what it had to say."""
    await round.until(0.1)
    killed = round.owner_of_most()
    print(f"-- kill -9 of {killed}", flush=True)
    await cluster.docker("kill", killed)
    await round.until(0.3)
    cut = round.owner_of_most(besides=killed)
    print(f"-- {cut} is off its network for {CUT_S} s", flush=True)
    cutting = asyncio.create_task(cluster.cut(cut))
    await round.end()
    await cutting
    await cluster.docker("start", killed)


async def nats_goes(round, cluster):
    """NATS is stopped for a while; then it is killed, and with it a node."""
    await round.until(0.1)
    print(f"-- NATS is stopped for {STOP_S} s", flush=True)
    await cluster.docker("stop", "nats")
    await asyncio.sleep(STOP_S)
    await cluster.docker("start", "nats")
    await round.until(0.4)
    killed = round.owner_of_most()
    print(f"-- kill -9 of NATS, and of {killed}", flush=True)
    await asyncio.gather(cluster.docker("kill", "nats"), cluster.docker("kill", killed))
    await cluster.docker("start", "nats")
    await round.end()
    await cluster.docker("start", killed)


async def store_goes(connection, cluster):
    """Every open request ends once, in a clear error; new ones go on."""
    round = Round(connection, "w")
    await round.start()
    await round.all_have_begun()
    print("-- NATS loses its store", flush=True)
    await cluster.wipe()
    await round.end()
    streams = round.readers.streams.values()
    errors = [stream.error for stream in streams if not stream.is_whole(TOKENS)]
    unclear = [error for error in errors if error != "log_unavailable"]
    print(f"store wiped: {len(errors)} open requests ended in log_unavailable, {len(unclear)} in anything else")
    return errors and not unclear


async def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compose", required=True)
    parser.add_argument("--nats", required=True)
    options = parser.parse_args()
    cluster = Containers(options.compose)

    async def quiet(_):
        """What the client says of a server that is away."""

    connection = await nats.connect(
        options.nats, max_reconnect_attempts=-1, reconnect_time_wait=0.2, error_cb=quiet, pending_size=1 << 26
    )
    await wait_for_nodes(connection)
    answers = await answers_to(connection, map(request, range(STREAMS)), LIMIT_S)
    is_good = True
    for name, faults in [("n", nodes_go), ("s", nats_goes)]:
        round = Round(connection, name)
        await round.start()
        await faults(round, cluster)
        verdict = Verdict(round.readers, answers)
        print(verdict, flush=True)
        is_good = is_good and verdict.is_good()
        await wait_for_nodes(connection)
    is_good = await store_goes(connection, cluster) and is_good
    await connection.close()
    return 0 if is_good else 1


async def wait_for_nodes(connection):
    """Until every node is ready and says so in the bucket."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            bucket = await connection.jetstream().key_value("inferno_nodes")
            entries = [json.loads((await bucket.get(node)).value) for node in NODES]
            if all(entry["ready"] for entry in entries):
                return
        except Exception:  # it is not there yet
            pass
        await asyncio.sleep(0.5)
    raise SystemExit("the nodes are not ready")


sys.exit(asyncio.run(main()))
