"""A node for the client tests.

With INFERNO_HTTP_URL (and INFERNO_NATS_URL for the bus) the tests go to a node that runs already. Otherwise one is started from
INFERNO_BIN (default: the debug build), on free ports, with a NATS server of its own, and stopped at the end.

INFERNO_MODEL        alias of the model (default: demo)
INFERNO_MODEL_PATH   its checkpoint (default: models/demo)
INFERNO_API_KEY      the key, if the running node wants one
INFERNO_SERVE_ARGS   further arguments of `serve`
"""

import contextlib
import os
import re
import shlex
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 40

CONFIG = """
[http]
bind = "127.0.0.1:0"

[bus]
mode = "managed"

{sections}
[[models]]
name = "{model}"
model_path = "{model_path}"
"""


SLOW = """
[executor]
devices = ["sim:0"]
sim_cost_model = "{costs}"

[batcher]
max_batch_size = 1
"""


@dataclass(frozen=True)
class Node:
    http_url: str | None
    nats_url: str | None


def announced(ready: str, name: str) -> str | None:
    """The value of name=value in what the node printed when it was ready."""
    found = re.search(rf"\b{name}=(\S+)", ready)
    return found and found[1]


def wait_until_ready(process: subprocess.Popen, ready: Path, log: Path) -> str:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        text = ready.read_text()
        if announced(text, "http") and text.endswith("\n"):
            return text
        if process.poll() is not None:
            pytest.fail(f"the node ended with {process.returncode}:\n{log.read_text()[-4000:]}")
        time.sleep(0.02)
    pytest.fail(f"the node was not ready after {START_TIMEOUT_S} s:\n{log.read_text()[-4000:]}")


def stop(process: subprocess.Popen) -> int:
    """Drains the node; one that does not end is killed, and its code is then not 0."""
    process.terminate()
    try:
        return process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


@pytest.fixture(scope="session")
def model() -> str:
    return os.environ.get("INFERNO_MODEL", "demo")


@pytest.fixture(scope="session")
def api_key() -> str:
    return os.environ.get("INFERNO_API_KEY", "none-is-needed")


def from_outside() -> Node | None:
    """The node that runs already, if there is one."""
    http_url, nats_url = os.environ.get("INFERNO_HTTP_URL"), os.environ.get("INFERNO_NATS_URL")
    return Node(http_url and http_url.rstrip("/"), nats_url) if http_url or nats_url else None


@contextlib.contextmanager
def started(folder: Path, model: str, sections: str = ""):
    """A node of its own, with these further sections of the configuration."""
    config, ready, log = folder / "node.toml", folder / "ready", folder / "log"
    model_path = os.environ.get("INFERNO_MODEL_PATH", str(ROOT / "models" / "demo"))
    config.write_text(CONFIG.format(model=model, model_path=model_path, sections=sections))
    binary = os.environ.get("INFERNO_BIN", str(ROOT / "target" / "debug" / "inferno-node"))
    command = [binary, "serve", "--config", str(config)]
    command += shlex.split(os.environ.get("INFERNO_SERVE_ARGS", ""))
    with ready.open("w") as out, log.open("w") as err:
        # The node reads INFERNO_<SECTION>_<KEY>; ours are none of these, and the caller's are not for this node.
        env = {name: value for name, value in os.environ.items() if not name.startswith("INFERNO_")}
        process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=out, stderr=err)
    try:
        text = wait_until_ready(process, ready, log)
        yield Node(announced(text, "http").rstrip("/"), announced(text, "nats"))
    finally:
        code = stop(process)
    assert code == 0, f"the node ended with {code}:\n{log.read_text()[-4000:]}"


@pytest.fixture(scope="session")
def node(tmp_path_factory, model):
    if running := from_outside():
        yield running
        return
    with started(tmp_path_factory.mktemp("node"), model) as node:
        yield node


@pytest.fixture(scope="session")
def slow_node(tmp_path_factory, model):
    """A node of one seat whose steps take 20 ms, whatever the machine."""
    if from_outside():
        pytest.skip("a node from outside is as fast as it is")
    folder = tmp_path_factory.mktemp("slow-node")
    costs = folder / "costs.toml"
    costs.write_text("step_us = 20_000\nnum_blocks = 4096\n")
    with started(folder, model, SLOW.format(costs=costs)) as node:
        yield node


@pytest.fixture(scope="session")
def http_url(node) -> str:
    if node.http_url is None:
        pytest.skip("INFERNO_HTTP_URL is not set")
    return node.http_url


@pytest.fixture(scope="session")
def nats_url(node) -> str:
    if node.nats_url is None:
        pytest.skip("the node has no bus, or INFERNO_NATS_URL is not set")
    return node.nats_url
