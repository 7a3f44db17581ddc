"""Templates with choices and slots: how every sentence of the training text is written.

"[a|b]" takes one side, choices nest, and an empty side is allowed. "{x}" is the slot x; "{a:x}"
puts a or an before it; "{c:x}" capitalises it. A slot that the caller did not fill is drawn from
the pool of that name and kept for the rest of the text; "{*x}" draws afresh and is not kept.
"""

from functools import lru_cache

from words import POOLS


def with_article(phrase):
    vowel = phrase[0].lower() in "aeiou" and not phrase.lower().startswith(("uni", "use", "one"))
    return ("an " if vowel or phrase.startswith("hour") else "a ") + phrase


def capital(phrase):
    return phrase[:1].upper() + phrase[1:]


@lru_cache(maxsize=None)
def parse(template):
    nodes, end = parse_sequence(template, 0, "")
    assert end == len(template), f"stray bracket in {template!r}"
    return nodes


def parse_sequence(text, at, stops):
    """Nodes up to a character of `stops`: a str, a list of alternatives or a (mode, slot) pair."""
    nodes, literal = [], at
    while at < len(text) and text[at] not in stops:
        if text[at] == "[":
            nodes.append(text[literal:at])
            alternatives = []
            while text[at] != "]":
                branch, at = parse_sequence(text, at + 1, "|]")
                alternatives.append(branch)
            nodes.append(alternatives)
            at += 1
            literal = at
        elif text[at] == "{":
            nodes.append(text[literal:at])
            close = text.index("}", at)
            mode, _, slot = text[at + 1 : close].rpartition(":")
            nodes.append((mode, slot))
            at = literal = close + 1
        else:
            at += 1
    nodes.append(text[literal:at])
    return tuple(node for node in nodes if node), at


def render(rng, template, slots=None):
    slots = {} if slots is None else slots
    out = []
    emit(rng, parse(template), slots, out)
    return "".join(out)


def emit(rng, nodes, slots, out):
    for node in nodes:
        if isinstance(node, str):
            out.append(node)
        elif isinstance(node, list):
            emit(rng, node[int(rng.random() * len(node))], slots, out)
        else:
            mode, slot = node
            value = fill(rng, slot, slots)
            if mode == "a":
                value = with_article(value)
            elif mode == "c":
                value = capital(value)
            elif mode == "A":
                value = capital(with_article(value))
            out.append(value)


def fill(rng, slot, slots):
    if slot in slots:
        return slots[slot]
    if slot[0] == "*":
        return rng.choice(POOLS[slot[1:]])
    value = rng.choice(POOLS[slot.rstrip("0123456789")])
    taken = set(slots.values())
    for _ in range(8):  # two slots of one story should not be the same word
        if value not in taken:
            break
        value = rng.choice(POOLS[slot.rstrip("0123456789")])
    slots[slot] = value
    return value
