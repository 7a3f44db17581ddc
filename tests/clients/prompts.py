"""Asks the node's `models prompt`: one process answers any number of questions about a checkpoint."""

import json
import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def ask(folder: Path, questions: list[dict]) -> list[dict]:
    binary = os.environ.get("INFERNO_BIN", str(ROOT / "target" / "debug" / "inferno-node"))
    lines = "".join(json.dumps(question) + "\n" for question in questions)
    ended = subprocess.run(
        [binary, "models", "prompt", str(folder)], input=lines, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
    answers = [json.loads(line) for line in ended.stdout.split("\n")[:-1]]
    assert len(answers) == len(questions)
    return answers
