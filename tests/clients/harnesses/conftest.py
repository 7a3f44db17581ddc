"""What load generators need: their program, a tokenizer that lies here, and a folder for their reports."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="session")
def tokenizer() -> str:
    """A folder: nothing is asked of a hub."""
    return os.environ.get("INFERNO_MODEL_PATH", str(ROOT / "models" / "demo"))


@pytest.fixture
def run(tmp_path):
    """Runs a program of this environment in a folder of its own, which it gives back."""

    def run(program: str, *arguments: str, env: dict[str, str] | None = None) -> Path:
        ended = subprocess.run(
            [Path(sys.executable).with_name(program), *arguments],
            cwd=tmp_path,
            env=os.environ | {"TOKENIZERS_PARALLELISM": "false"} | (env or {}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=180,
        )
        said = f"{ended.stdout[-4000:]}\n{ended.stderr[-4000:]}"
        assert ended.returncode == 0, said
        print(said)
        return tmp_path

    return run
