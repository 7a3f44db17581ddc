"""Goal: a chat template renders what `apply_chat_template` renders. Method: snippets of what Jinja and Python's values can do, composed
ones from fixed seeds, and templates in the manner of every family, each rendered by the node and by transformers."""

import itertools
import random
from pathlib import Path

import pytest
from family_templates import FAMILIES
from prompts import ROOT, ask
from transformers import AutoTokenizer

HERE = Path(__file__).parent
MODEL = ROOT / "models" / "demo"

CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "  Hi <there> & \"you\" it's\n"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "你好?"},
]
VARIABLES = {
    "a": 5, "b": -3, "f": 2.5, "s": "Hello wOrld's end", "l": [3, 1, 2], "e": "", "t": "a,b,,c",
    "d": {"b": 1, "a": [1, 2.5, None, True], "é": "x'y\"z"},
    "nested": [{"n": "x", "v": 2, "g": "A"}, {"n": "Y", "v": 1, "g": "b"}, {"n": "z", "v": 2, "g": "a"}],
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(MODEL)


def rendered(tokenizer, questions: list[dict]) -> list[tuple[dict, str | Exception]]:
    """Each question with what transformers makes of it, or why nothing."""

    def one(question: dict) -> str | Exception:
        try:
            return tokenizer.apply_chat_template(
                question["messages"],
                chat_template=question["chat_template"],
                add_generation_prompt=question["add_generation_prompt"],
                tokenize=False,
                **question["variables"],
            )
        except Exception as error:  # noqa: BLE001: whatever a template raises
            return error

    return [(question, one(question)) for question in questions]


def differences(renderings: list[tuple[dict, str | Exception]]) -> list[str]:
    """Where the node's answer is not that of transformers; where one refuses, the other has to."""
    found = []
    answers = ask(MODEL, [question for question, _ in renderings])
    for (question, wanted), answer in zip(renderings, answers, strict=True):
        if answer.get("prompt") != (wanted if isinstance(wanted, str) else None):
            found.append(f"{question['chat_template']!r:.200}: wanted {wanted!r:.300}, got {answer!r:.300}")
    return found


def questions(templates) -> list[dict]:
    shared = {"messages": CONVERSATION, "variables": VARIABLES, "add_generation_prompt": True}
    return [{"chat_template": template, **shared} for template in templates]


def test_expressions_show_what_python_shows(tokenizer):
    expressions = (HERE / "template_expressions.txt").read_text().splitlines()
    assert len(expressions) > 500
    assert not differences(rendered(tokenizer, questions("{{ %s }}" % expression for expression in expressions)))


def test_statements_do_what_jinja_does(tokenizer):
    statements = (HERE / "template_statements.txt").read_text().rstrip("\n").split("\n%%%\n")
    assert len(statements) > 80
    assert not differences(rendered(tokenizer, questions(statements)))


# What gives a generator is made a list: theirs do nothing until they are gone through, ours at once.
VALUES = ["s", "t", "l", "d", "nested", "a", "f", "e", "messages", "none", "[1, 'x', 2.5]", "(1, 2)", "'a b c'", "missing"]
FILTERS = ["upper", "lower", "title", "trim", "length", "string", "list", "first", "last", "join('-')", "sort", "reverse|list", "tojson",
           "default('z')", "replace('a', 'b')", "map('string')|list", "select|list", "unique|list", "int", "float", "abs", "round", "capitalize",
           "wordcount", "indent", "center(12)", "truncate(9)", "batch(2)|list", "e", "min", "max", "sum", "dictsort", "items|list",
           "map(attribute='n')|list", "selectattr('v', 'gt', 1)|list", "tojson(indent=1)", "count"]  # fmt: skip
METHODS = [".upper()", ".strip()", ".split()", ".split('o', 1)", ".title()", ".items()", ".keys()|list", ".get('b')", ".zfill(4)",
           ".startswith('H')", ".replace('l', 'L', 1)", ".partition(' ')", ".count('l')", "[0]", "[-1]", "[1:]", "[::-1]", ".b"]  # fmt: skip
OPERATORS = ["+", "-", "*", "/", "//", "%", "~", "==", "<", "in", "and", "or", "not in", ">="]


def composed(seed: int) -> str:
    chance = random.Random(seed)

    def value() -> str:
        text = chance.choice(VALUES) + (chance.choice(METHODS) if chance.random() < 0.3 else "")
        for _ in range(chance.randrange(3)):
            text += "|" + chance.choice(FILTERS)
        return f"({text})"

    text = value()
    if chance.random() < 0.5:
        text += f" {chance.choice(OPERATORS)} {value()}"
    return "{{ %s }}" % text


def test_composed_expressions_show_what_python_shows(tokenizer):
    generators = ("<generator", "<built-in", "object at 0x", "<function", "reverseiterator")
    renderings = rendered(tokenizer, questions(composed(seed) for seed in range(1_500)))
    # Addresses are never the same.
    shown = [pair for pair in renderings if isinstance(pair[1], Exception) or not any(part in pair[1] for part in generators)]
    assert len(shown) > 1_000
    assert not differences(shown)


CONVERSATIONS = [
    CONVERSATION,
    CONVERSATION[:2],
    CONVERSATION[1:2],
    CONVERSATION[1:],
    CONVERSATION[1:3],
    CONVERSATION[2:],
    [*CONVERSATION[:2], {"role": "assistant", "content": "<think>\nwell\n</think>\n\nYes.", "reasoning_content": "hm"}, CONVERSATION[3]],
    [{"role": "user", "name": "Ann", "content": [{"type": "text", "text": " one "}, {"type": "text", "text": "two"}]}],
    [{"role": "wizard", "content": "abc"}],
]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_familys_template_renders_every_shape_of_conversation(tokenizer, family):
    switches = [{}, {"enable_thinking": False}, {"date_string": "1 May", "controls": {"length": "long"}, "reasoning_effort": "high"}]
    asked = [
        {"chat_template": FAMILIES[family], "messages": messages, "add_generation_prompt": opens, "variables": variables}
        for messages, opens, variables in itertools.product(CONVERSATIONS, [True, False], switches)
    ]
    assert not differences(rendered(tokenizer, asked))


def test_the_demo_models_prompt_has_the_tokens_of_transformers(tokenizer):
    [answer] = ask(MODEL, [{"messages": CONVERSATION}])
    wanted = tokenizer.apply_chat_template(CONVERSATION, add_generation_prompt=True, return_dict=False)
    assert answer["token_ids"] == wanted
