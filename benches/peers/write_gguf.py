#!/usr/bin/env python3
"""Writes a Llama of 1.24 B parameters (the shape of Llama 3.2 1B) with random weights in bf16 as a GGUF file.

    write_gguf.py VOCABULARY.gguf OUT.gguf

The vocabulary, which llama.cpp wants though no text is ever tokenized, comes from one of its own files.
"""

import sys

import gguf
import numpy as np

HIDDEN, INNER, LAYERS, HEADS, KV_HEADS, HEAD_DIM = 2048, 8192, 16, 32, 8, 64


def copy_vocabulary(vocabulary: gguf.GGUFReader, writer: gguf.GGUFWriter) -> int:
    """Adds every key of the tokenizer; answers how many tokens there are."""
    for field in vocabulary.fields.values():
        if not field.name.startswith("tokenizer."):
            continue
        value_type = field.types[0]
        sub_type = field.types[-1] if value_type == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), value_type, sub_type=sub_type)
    return len(vocabulary.fields["tokenizer.ggml.tokens"].data)


def add_shape(writer: gguf.GGUFWriter, num_tokens: int) -> None:
    writer.add_context_length(131_072)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_rope_freq_base(500_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(num_tokens)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)


def main() -> None:
    vocabulary, out = sys.argv[1:]
    writer = gguf.GGUFWriter(out, "llama")
    num_tokens = copy_vocabulary(gguf.GGUFReader(vocabulary), writer)
    add_shape(writer, num_tokens)
    random = np.random.default_rng(1)

    def add(name: str, rows: int, columns: int) -> None:
        values = random.standard_normal((rows, columns), dtype=np.float32) * np.float32(0.02)
        bf16 = (values.view(np.uint32) >> 16).astype(np.uint16)
        writer.add_tensor(name, bf16.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)

    ones = np.ones(HIDDEN, dtype=np.float32)
    add("token_embd.weight", num_tokens, HIDDEN)  # the head, too
    writer.add_tensor("output_norm.weight", ones)
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        writer.add_tensor(block + "attn_norm.weight", ones)
        writer.add_tensor(block + "ffn_norm.weight", ones)
        add(block + "attn_q.weight", HEADS * HEAD_DIM, HIDDEN)
        add(block + "attn_k.weight", KV_HEADS * HEAD_DIM, HIDDEN)
        add(block + "attn_v.weight", KV_HEADS * HEAD_DIM, HIDDEN)
        add(block + "attn_output.weight", HIDDEN, HEADS * HEAD_DIM)
        add(block + "ffn_gate.weight", INNER, HIDDEN)
        add(block + "ffn_up.weight", INNER, HIDDEN)
        add(block + "ffn_down.weight", HIDDEN, INNER)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
