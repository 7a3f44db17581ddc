"""Goal: the tokenizer of a folder is what `AutoTokenizer.from_pretrained` makes of it. Method: folders generated from fixed seeds, with
special and added tokens said in every file that may say them; the node and transformers tokenize and show the same texts."""

import json
import random

import pytest
from prompts import ROOT, ask
from transformers import AutoTokenizer

MODEL = ROOT / "tests" / "fixtures" / "llama3-tiny"
NEW = ["<new>", "<tool>", "[X]", "<|mark|>", "<thing>"]
NAMES = ["bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "mask_token"]


def token(chance: random.Random, content: str) -> dict:
    special = chance.random() < 0.5
    flags = {name: chance.random() < 0.15 for name in ("lstrip", "rstrip", "single_word")}
    return {"content": content, "normalized": not special and chance.random() < 0.5, "special": special, **flags}


def generate(folder, seed: int) -> None:
    """One folder; what it says of tokens, and where, is chance."""
    chance = random.Random(seed)
    tokenizer = json.loads((MODEL / "tokenizer.json").read_text())
    known = {entry["content"]: entry["id"] for entry in tokenizer["added_tokens"]}
    for entry in tokenizer["added_tokens"]:
        if chance.random() < 0.3:
            entry["special"] = not entry["special"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    highest = max([*tokenizer["model"]["vocab"].values(), *known.values()])
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


@pytest.mark.parametrize("seed", range(60))
def test_a_folder_gives_the_tokens_of_transformers(tmp_path, seed):
    generate(tmp_path, seed)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    marks = [entry["content"] for entry in json.loads((tmp_path / "tokenizer.json").read_text())["added_tokens"]][:6]
    chance = random.Random(seed)
    words = [*NEW, *marks, "Hello", " there", "你好", "  ", "\n", "a<new", "]"]
    texts = ["".join(chance.choices(words, k=8)) for _ in range(8)]
    ids = [theirs.encode(text) for text in texts]
    answers = ask(tmp_path, [{"text": text} for text in texts])
    assert [answer["token_ids"] for answer in answers] == ids
    answers = ask(tmp_path, [{"token_ids": each} for each in ids])
    assert [answer["text"] for answer in answers] == [theirs.decode(each, skip_special_tokens=True) for each in ids]
    messages = [{"role": "user", "content": "Hi <new>"}]
    [answer] = ask(tmp_path, [{"messages": messages}])
    assert answer["prompt"] == theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert answer["token_ids"] == theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
