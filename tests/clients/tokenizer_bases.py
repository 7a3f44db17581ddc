"""Tokenizers in the manner of every kind that checkpoints have, trained on this project's pages: what the folders of
test_tokenizer_folders.py are made from."""

import json

from prompts import ROOT
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

MARKS = ["<unk>", "<s>", "</s>", "<|user|>", "<|end|>"]
TEXTS = ["openai.md", "bus.md", "models.md"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def text():
    pages = "\n".join((ROOT / "docs" / name).read_text() for name in TEXTS)
    return pages[:60_000] + "你好 there, Hello!"


def trained_bpe(tokenizer: Tokenizer) -> Tokenizer:
    """Trains a BPE with bytes for what it does not know."""
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=MARKS, show_progress=False)
    tokenizer.train_from_iterator(text().splitlines(), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    vocab = model["vocab"]
    for byte in BYTES:
        vocab.setdefault(byte, len(vocab))
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer.model = models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    return tokenizer


def begun(tokenizer: Tokenizer) -> Tokenizer:
    """Puts the begin token before every text."""
    begin = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", begin)]
    )
    return tokenizer


def spoken(*more) -> decoders.Decoder:
    return decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *more])


def prepended() -> Tokenizer:
    """As Llama 2's: the normalizer puts a space before every text."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = spoken(decoders.Strip(" ", 1, 0))
    return begun(trained_bpe(tokenizer))


def metaspace() -> Tokenizer:
    """As Mistral's: a space before the first word alone."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = spoken(decoders.Strip(" ", 1, 0))
    return begun(trained_bpe(tokenizer))


def replaced() -> Tokenizer:
    """As Gemma's: spaces are written otherwise, none is added."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = spoken()
    return begun(trained_bpe(tokenizer))


def unigram() -> Tokenizer:
    """As T5's: likely pieces of words, composed characters."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(vocab_size=700, special_tokens=MARKS, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(text().splitlines(), trainer)
    return begun(tokenizer)


def of_bytes() -> Tokenizer:
    """As Llama 3's."""
    return Tokenizer.from_file(str(ROOT / "tests" / "fixtures" / "llama3-tiny" / "tokenizer.json"))


BASES = {"bytes": of_bytes, "prepended": prepended, "metaspace": metaspace, "replaced": replaced, "unigram": unigram}
