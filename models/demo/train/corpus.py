#!/usr/bin/env python3
"""The training text. Document `index` of `seed` is always the same text.

python3 corpus.py --show 20      print some documents
"""

import argparse
import random

import chats
import reading
import stories

BOS, EOS, END = "<|begin_of_text|>", "<|end_of_text|>", "<|end|>"
ROLES = ("system", "user", "assistant")
SPECIAL_TOKENS = [BOS, EOS] + [f"<|{role}|>" for role in ROLES] + [END]


def chat_text(turns):
    """What the chat template of tokenizer_config.json writes."""
    return "".join(f"<|{role}|>{text}{END}" for role, text in turns)


def long_memory(rng):
    """A conversation of many turns that comes back to its beginning."""
    turns = chats.memory_chat(rng, num_between=rng.randint(8, 14))
    while sum(len(text) for _, text in turns) > reading.MAX_CHARS:
        turns = chats.memory_chat(rng, num_between=6)
    return chat_text(turns)


# (share of documents, writer)
KINDS = [
    (56, lambda rng: chat_text(chats.chat(rng))),
    (18, stories.titled),
    (1.2, lambda rng: stories.long_story(rng, rng.randint(4, 14))[0]),
    (7, lambda rng: chat_text(reading.chat(rng))),
    (5, lambda rng: chat_text(reading.chat(rng, long=True))),
    (2, reading.plain),
    (2, lambda rng: reading.plain(rng, long=True)),
    (1, long_memory),
    (4, reading.encyclopedia),
    (4, reading.question_list),
    (2, reading.poem),
    (2.5, reading.diary),
]
WEIGHTS, WRITERS = zip(*KINDS)


def document(seed, index):
    rng = random.Random((seed << 40) + index)
    return BOS + rng.choices(WRITERS, WEIGHTS)[0](rng) + EOS


def documents(seed, start, stop):
    return (document(seed, index) for index in range(start, stop))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--show", type=int, default=10)
    arguments = parser.parse_args()
    for text in documents(arguments.seed, 0, arguments.show):
        print(text, end="\n\n")


if __name__ == "__main__":
    main()
