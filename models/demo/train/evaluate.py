#!/usr/bin/env python3
"""Load the exported model with `transformers`, check it against model.py, and ask it things.

Writes samples.txt (what it says) and figures.json (how often it is right on generated questions
whose numbers, names and texts are drawn from a seed that training did not use).
"""

import argparse
import json
import pathlib
import random

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import chats
import questions
import reading
import sums
from model import Config, Llama

END_IDS = [1, 5]
COMPLETIONS = [
    "Once upon a time",
    "The little dog",
    "It was a rainy day",
    "Question: What is rain?\nAnswer:",
]
CHATS = [
    "Hello!",
    "Who are you?",
    "What is the capital of France?",
    "What colour is the sky?",
    "What is 3 plus 4?",
    "what is 27 + 45",
    "Tell me a story about a fox.",
    "Name three animals.",
    "Why do birds sing?",
    "Write a short poem about rain.",
    "Explain quantum mechanics.",
    "What is a volcano?",
    "How do I make tea?",
    "Tell me about penguins.",
    "I am sad.",
    "Tell me a joke.",
    "What can you do?",
    "Who won the world cup in 1998?",
    "How many legs does a spider have?",
    "What do you think about dinosaurs?",
    "Can you help me?",
    "What is the meaning of life?",
]
DIALOGUES = [
    [("system", "Answer in one word."), ("user", "What is the opposite of hot?")],
    [("system", 'Start every answer with "Arr!"'), ("user", "What is the capital of Japan?")],
    [("system", "You are Rosa, a baker."), ("user", "What is your name?")],
    [
        ("user", "My name is Tom."),
        ("assistant", "Hello, Tom!"),
        ("user", "What is 2 plus 2?"),
        ("assistant", "2 plus 2 is 4."),
        ("user", "What is my name?"),
    ],
    [
        ("user", "What is the capital of Spain?"),
        ("assistant", "The capital of Spain is Madrid."),
        ("user", "And of Italy?"),
    ],
    [("user", "Anna has a red ball. Ben has a blue kite. What colour is Ben's kite?")],
]


def prompt_ids(tokenizer, turns):
    messages = [{"role": role, "content": text} for role, text in turns]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids


@torch.no_grad()
def answer(model, tokenizer, token_ids, sample=False, max_new_tokens=200):
    token_ids = token_ids.to(model.device)
    how = {"do_sample": True, "temperature": 0.7, "top_p": 0.9} if sample else {"do_sample": False}
    if not sample:
        model.generation_config.temperature = model.generation_config.top_p = None
    out = model.generate(
        token_ids,
        attention_mask=torch.ones_like(token_ids),
        max_new_tokens=max_new_tokens,
        eos_token_id=END_IDS,
        pad_token_id=1,
        **how,
    )
    return tokenizer.decode(out[0, token_ids.shape[1] :], skip_special_tokens=True)


def check_export(model, directory):
    """The same logits from transformers and from the code that trained the model."""
    ours = Llama(Config()).eval()
    ours.load_state_dict(
        {k: t.float() for k, t in load_file(directory / "model.safetensors").items()}
    )
    token_ids = torch.randint(6, 3000, (1, 300), generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        difference = (ours(token_ids) - model(token_ids).logits).abs().max()
    assert difference < 1e-3, f"logits differ by {difference}"
    return float(difference)


def write_samples(model, tokenizer, path):
    torch.manual_seed(7)
    lines = []
    for text in COMPLETIONS:
        token_ids = tokenizer(text, return_tensors="pt").input_ids
        for sample in (False, True):
            kind = "T=0.7" if sample else "greedy"
            lines.append(
                f"[completion, {kind}]\n{text}" + answer(model, tokenizer, token_ids, sample)
            )
    for turns in [[("user", text)] for text in CHATS] + DIALOGUES:
        asked = "\n".join(f"{role}: {text}" for role, text in turns)
        for sample in (False, True):
            said = answer(model, tokenizer, prompt_ids(tokenizer, turns), sample)
            lines.append(f"[chat, {'T=0.7' if sample else 'greedy'}]\n{asked}\nassistant: {said}")
    path.write_text("\n\n".join(lines) + "\n")


def share_right(model, tokenizer, cases):
    right = 0
    for turns, expected in cases:
        said = answer(model, tokenizer, prompt_ids(tokenizer, turns), max_new_tokens=48)
        right += said.strip() == expected
    return right / len(cases)


def single(rng, writer):
    asked, said = writer(rng)[:2]
    return [("user", asked)], said


def last_of(turns):
    return turns[:-1], turns[-1][1]


def figures(model, tokenizer, count):
    rng = random.Random(77)
    draw = lambda make: [make() for _ in range(count)]
    tests = {
        "arithmetic": draw(lambda: single(rng, sums.arithmetic)),
        "word problems": draw(lambda: single(rng, sums.word_problem)),
        "a fact told earlier in the chat": draw(lambda: last_of(chats.memory_chat(rng))),
        "a fact in a short text": draw(lambda: last_of(reading.chat(rng)[:2])),
        "a fact in a long text": draw(lambda: last_of(reading.chat(rng, long=True)[:2])),
        "capitals": draw(lambda: single(rng, questions.capital_of)),
        "a manner the system prompt asks for": draw(
            lambda: last_of(chats.mannered_chat(rng, questions.capital_of)[:3])
        ),
    }
    return {name: share_right(model, tokenizer, cases) for name, cases in tests.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("--count", type=int, default=100, help="questions of each kind; 0 for none")
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.directory)
    model = AutoModelForCausalLM.from_pretrained(arguments.directory, dtype=torch.float32).eval()
    print(f"largest logit difference from model.py: {check_export(model, arguments.directory):.1e}")
    if torch.cuda.is_available():
        model.cuda()
    write_samples(model, tokenizer, arguments.directory / "samples.txt")
    if arguments.count:
        result = figures(model, tokenizer, arguments.count)
        text = json.dumps({"questions of each kind": arguments.count, **result}, indent=2)
        (arguments.directory / "figures.json").write_text(text + "\n")
        print(text)


if __name__ == "__main__":
    main()
