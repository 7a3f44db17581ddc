"""Sends requests to the cluster with the official NATS client while one node drains and another is killed.

Prints which node answered what, and ends with 0 only if every request ended in an answer or a clear error.
"""

import argparse
import asyncio
import collections
import json
import subprocess
import time
import urllib.request

import nats

NODES = ("node-1", "node-2", "node-3")
DRAINED, KILLED = "node-2", "node-3"
REQUESTS = 100
AT_ONCE = 24
# Long enough that a node has some in the middle when it is stopped.
MAX_TOKENS = 1200
# A stream that is silent for so long has lost its node. (Surviving that is the durable requests' job.)
SILENCE_S = 10


class Cluster:
    """The nodes' containers."""

    def __init__(self, compose):
        self.ids = {node: run([*compose.split(), "ps", "-q", node]) for node in NODES}

    def stop(self, node):
        """SIGTERM, and SIGKILL a little after the node's own deadline."""
        run(["docker", "stop", "--time", "40", self.ids[node]])

    def kill(self, node):
        run(["docker", "kill", self.ids[node]])

    def exit_code(self, node):
        return int(run(["docker", "inspect", "--format", "{{.State.ExitCode}}", self.ids[node]]))


def run(words):
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


async def wait_until_healthy(client, prometheus):
    """Every node says healthy on the bus, and Prometheus scrapes all of them."""
    healthy = set()

    async def on_health(message):
        health = json.loads(message.data)
        if health["status"] == "healthy":
            healthy.add(health["node_id"])

    subscription = await client.subscribe("inferno.v1.node.*.health", cb=on_health)
    deadline = time.monotonic() + 120
    while set(NODES) - healthy:
        if time.monotonic() > deadline:
            raise SystemExit(f"not healthy after 120 s: {sorted(set(NODES) - healthy)}")
        await asyncio.sleep(0.2)
    await subscription.unsubscribe()
    print(f"healthy: {', '.join(sorted(healthy))}")
    while True:
        url = f"{prometheus}/api/v1/query?query=inferno_health_status"
        with urllib.request.urlopen(url, timeout=5) as reply:
            series = json.load(reply)["data"]["result"]
        scraped = {row["metric"]["node"] for row in series}
        if scraped == set(NODES):
            break
        if time.monotonic() > deadline:
            raise SystemExit(f"Prometheus has only {sorted(scraped)}")
        await asyncio.sleep(0.5)
    print(f"scraped by Prometheus: {', '.join(sorted(scraped))}")


async def one_request(client, number, running):
    """Returns (node that took it or '-', how it ended)."""
    request_id = f"drill-{number}"
    events = await client.subscribe(f"inferno.v1.tokens.{request_id}")
    body = {
        "request_id": request_id,
        "prompt": "Once upon a time",
        "params": {"max_tokens": MAX_TOKENS, "ignore_eos": True, "seed": number},
    }
    node = "-"
    try:
        reply = await client.request(
            "inferno.v1.generate.demo", json.dumps(body).encode(), timeout=SILENCE_S
        )
        answer = json.loads(reply.data)
        if "error" in answer:
            return node, f"refused: {answer['error']['kind']}"
        node = answer["node_id"]
        running[node] += 1
        expected = 0
        while True:
            event = json.loads((await events.next_msg(timeout=SILENCE_S)).data)
            if event["seq"] != expected:
                return node, f"error: expected token {expected}, got {event['seq']}"
            expected += len(event["token_ids"])
            if "finish_reason" in event:
                return node, f"answered ({event['finish_reason']})"
    except nats.errors.NoRespondersError:
        return node, "refused: no node listens"
    except nats.errors.TimeoutError:
        return node, f"timeout: silent for {SILENCE_S} s"
    finally:
        if node != "-":
            running[node] -= 1
        await events.unsubscribe()


async def stop_nodes(cluster, running, done):
    """Drains one node and kills another, each while it has something to do."""
    loop = asyncio.get_running_loop()
    while done["count"] < REQUESTS // 4 or not running[DRAINED]:
        await asyncio.sleep(0.01)
    print(f"-- stopping {DRAINED} gently ({running[DRAINED]} requests running)")
    draining = loop.run_in_executor(None, cluster.stop, DRAINED)
    while done["count"] < REQUESTS // 2 or not running[KILLED]:
        await asyncio.sleep(0.01)
    print(f"-- killing {KILLED} ({running[KILLED]} requests running)")
    await loop.run_in_executor(None, cluster.kill, KILLED)
    await draining
    code = cluster.exit_code(DRAINED)
    print(f"-- {DRAINED} ended with exit code {code}")
    return code


async def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compose", required=True)
    parser.add_argument("--nats", required=True)
    parser.add_argument("--prometheus", required=True)
    options = parser.parse_args()

    client = await nats.connect(options.nats)
    await wait_until_healthy(client, options.prometheus)
    running, done, outcomes = collections.Counter(), {"count": 0}, []
    gate = asyncio.Semaphore(AT_ONCE)

    async def numbered(number):
        async with gate:
            outcome = await one_request(client, number, running)
        outcomes.append(outcome)
        done["count"] += 1

    stopper = asyncio.create_task(stop_nodes(Cluster(options.compose), running, done))
    await asyncio.gather(*(numbered(number) for number in range(REQUESTS)))
    drain_code = await stopper
    await client.close()

    table = collections.Counter(outcomes)
    print(f"{'node':<8} {'outcome':<32} requests")
    for (node, outcome), count in sorted(table.items()):
        print(f"{node:<8} {outcome:<32} {count}")
    check(table, drain_code)


def check(table, drain_code):
    """The claims of this drill."""
    total = sum(table.values())
    answered = {node for node, outcome in table if outcome.startswith("answered")}
    lost = {(node, outcome): n for (node, outcome), n in table.items() if node != "-"}
    strays = [
        key
        for key in lost
        if not key[1].startswith("answered") and key[0] != KILLED
    ]
    if total != REQUESTS:
        raise SystemExit(f"{REQUESTS - total} requests without an end")
    if answered != set(NODES):
        raise SystemExit(f"answers came from {sorted(answered)} only")
    if strays:
        raise SystemExit(f"lost on a node that was not killed: {strays}")
    if any(outcome.startswith("error") for _, outcome in table):
        raise SystemExit("a stream had a gap")
    if drain_code != 0:
        raise SystemExit(f"the drained node ended with exit code {drain_code}")
    print(f"every one of {total} requests ended in an answer or a clear error")


asyncio.run(main())
