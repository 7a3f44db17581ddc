"""Goal: `strftime_now` tells what it tells in transformers. Method: every directive, alone and with the flags of glibc, rendered by both in
one moment; what a second's end comes between is rendered again. Ours is UTC (docs/templates.md), so theirs has that zone here.
"""

import string
import time

import pytest
from prompts import ROOT, ask
from transformers import AutoTokenizer

MODEL = ROOT / "models" / "demo"
MESSAGES = [{"role": "user", "content": "Hi"}]

# Ours has no fractions of a second, and no seconds of the epoch: a prompt that changes with every request is in no cache.
LEFT_OUT = set("fs")
LETTERS = [letter for letter in string.ascii_letters if letter not in LEFT_OUT]
# Those that stand for one field: glibc's capitals reach letters that are no directives, too.
FIELDS = "aAbBCdeGghHIjklmMpSuUVwWyY"

FORMATS = {
    "every directive": "|".join(f"%{letter}" for letter in LETTERS) + "|%%",
    "without padding": "|".join(f"%-{letter}" for letter in LETTERS),
    "padded with spaces": "|".join(f"%_{letter}" for letter in LETTERS),
    "padded with zeros": "|".join(f"%0{letter}" for letter in LETTERS),
    "in capitals": "|".join(f"%^{letter}" for letter in FIELDS),
    "what is no directive": "100% é %é %! %-! % %:z 5 %",
    "of published templates": "%D %x %U %j|%d %b %Y|%Y-%m-%d|%B %d, %Y|%A, %-d %B %Y|%H:%M",
}


@pytest.fixture(autouse=True)
def utc(monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(MODEL)


@pytest.mark.parametrize("kind", FORMATS)
def test_strftime_now_tells_what_it_tells_in_transformers(tokenizer, kind):
    template = "{{ strftime_now('%s') }}" % FORMATS[kind]
    question = {"messages": MESSAGES, "chat_template": template, "variables": {}}
    for _ in range(5):
        [answer] = ask(MODEL, [question | {"add_generation_prompt": True}])
        wanted = tokenizer.apply_chat_template(MESSAGES, chat_template=template, tokenize=False)
        if answer["prompt"] == wanted:
            return
    assert answer["prompt"].split("|") == wanted.split("|")
