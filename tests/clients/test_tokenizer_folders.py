"""Goal: the tokenizer of a folder is what `AutoTokenizer.from_pretrained` makes of it. Method: folders generated from fixed seeds on
tokenizers of every kind, with special and added tokens said in every file that may say them; the node and transformers tokenize and show
the same texts. Where transformers does not do what the folder says, that is listed."""

import functools
import json
import random

import pytest
from prompts import ask
from tokenizer_bases import BASES
from transformers import AutoTokenizer

NEW = ["<new>", "<tool>", "[X]", "<|mark|>", "<thing>"]
NAMES = ["bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "mask_token"]


def token(chance: random.Random, content: str) -> dict:
    special = chance.random() < 0.5
    flags = {name: chance.random() < 0.15 for name in ("lstrip", "rstrip", "single_word")}
    return {"content": content, "normalized": not special and chance.random() < 0.5, "special": special, **flags}


@functools.cache
def base(name: str) -> str:
    """A `tokenizer.json`."""
    return BASES[name]().to_str()


def highest_id(tokenizer: dict) -> int:
    vocab = tokenizer["model"]["vocab"]
    ids = vocab.values() if isinstance(vocab, dict) else range(len(vocab))
    return max([*ids, *(entry["id"] for entry in tokenizer["added_tokens"])])


def generate(folder, kind: str, seed: int) -> None:
    """One folder; what it says of tokens, and where, is chance."""
    chance = random.Random(seed)
    tokenizer = json.loads(base(kind))
    known = {entry["content"]: entry["id"] for entry in tokenizer["added_tokens"]}
    for entry in tokenizer["added_tokens"]:
        if chance.random() < 0.3:
            entry["special"] = not entry["special"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    highest = highest_id(tokenizer)
    texts = [*known, *NEW]
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    named = {name: chance.choice(texts) for name in NAMES if chance.random() < 0.4}
    if chance.random() < 0.5:
        config.update(named)
        if chance.random() < 0.5:
            config["extra_special_tokens"] = chance.sample(NEW, 2)
        if chance.random() < 0.3:
            config["image_token"] = chance.choice(NEW)
        if chance.random() < 0.7:
            new = chance.sample(NEW, 2)
            decoder = {str(highest + 1 + at): token(chance, text) for at, text in enumerate(new)}
            decoder |= {str(known[text]): token(chance, text) for text in chance.sample(list(known), 2)}
            config["added_tokens_decoder"] = decoder
    else:
        as_object = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
        special = {name: text if chance.random() < 0.5 else {"content": text, **as_object} for name, text in named.items()}
        (folder / "special_tokens_map.json").write_text(json.dumps(special))
        if chance.random() < 0.5:
            added = {text: highest + 1 + at for at, text in enumerate(chance.sample(NEW, 2))}
            (folder / "added_tokens.json").write_text(json.dumps(added))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text("{{ bos_token }}|{{ eos_token }}|{{ pad_token }}|{{ image_token }}\r\n{{ messages[0].content }}")


@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("seed", range(100))
def test_a_folder_gives_the_tokens_of_transformers(tmp_path, kind, seed):
    generate(tmp_path, kind, seed)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    marks = [entry["content"] for entry in json.loads(base(kind))["added_tokens"]][:6]
    chance = random.Random(seed)
    words = [*NEW, *marks, "Hello", " there", "你好", "  ", "\n", "a<new", "]", " ", "ﬁ"]
    texts = ["".join(chance.choices(words, k=8)) for _ in range(8)]
    ids = [theirs.encode(text) for text in texts]
    messages = [{"role": "user", "content": "Hi <new>"}]
    questions = [{"text": text} for text in texts] + [{"token_ids": each} for each in ids]
    *answers, chat = ask(tmp_path, [*questions, {"messages": messages}])
    assert [answer["token_ids"] for answer in answers[:8]] == ids
    assert [answer["text"] for answer in answers[8:]] == [theirs.decode(each, skip_special_tokens=True) for each in ids]
    assert chat["prompt"] == theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert chat["token_ids"] == theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)


def differs(kind: str, tokenizer_class: str, reason: str):
    return pytest.param(kind, tokenizer_class, marks=pytest.mark.xfail(strict=True, reason=reason))


# Some classes of transformers 5 take only the vocabulary from `tokenizer.json` and build the rest as they know it; the node takes the
# file at its word, as transformers 4 did.
CLASSES = [
    ("bytes", "PreTrainedTokenizerFast"),
    ("bytes", "Qwen2Tokenizer"),
    ("bytes", "LlamaTokenizerFast"),
    ("metaspace", "LlamaTokenizer"),
    ("replaced", "GemmaTokenizer"),
    differs("prepended", "LlamaTokenizer", "theirs has no space behind a special token, nor one more before spaces"),
    differs("bytes", "GPT2Tokenizer", "theirs splits by GPT-2's expression, whatever the file says"),
    differs("unigram", "T5Tokenizer", "theirs normalizes and ends texts as T5 does, whatever the file says"),
]


@pytest.mark.parametrize(("kind", "tokenizer_class"), CLASSES)
def test_a_class_that_rebuilds_its_tokenizer_gives_the_same_tokens(tmp_path, kind, tokenizer_class):
    (tmp_path / "tokenizer.json").write_text(base(kind))
    marks = [entry["content"] for entry in json.loads(base(kind))["added_tokens"]]
    begin, end = marks[:2] if kind == "bytes" else marks[1:3]
    config = {"tokenizer_class": tokenizer_class, "bos_token": begin, "eos_token": end}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    texts = ["Hello there", "  Hello", "", " a\n\nb  c", "你好 é", f"{marks[3]} Hi{marks[4]}\nHello {marks[4]}"]
    ids = [theirs.encode(text) for text in texts]
    answers = ask(tmp_path, [{"text": text} for text in texts] + [{"token_ids": each} for each in ids])
    assert [answer["token_ids"] for answer in answers[: len(texts)]] == ids
    shown = [theirs.decode(each, skip_special_tokens=True) for each in ids]
    assert [answer["text"] for answer in answers[len(texts) :]] == shown
