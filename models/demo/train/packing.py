"""Generated documents as rows of token_ids, in parallel and the same on every machine."""

import pathlib
from multiprocessing import get_context

import numpy as np
from tokenizers import Tokenizer

import corpus

DOCUMENTS_PER_JOB = 2000
LONG = 700  # a document of so many tokens starts its own row


def pack(encoded, row_len):
    """Rows of exactly row_len tokens. Each starts with a document; only the last one is cut."""
    rows, row, waiting = [], [], []
    for token_ids in encoded:
        if row and len(token_ids) > LONG and len(row) + len(token_ids) > row_len:
            waiting.append(token_ids)
            continue
        row.extend(token_ids)
        while len(row) >= row_len:
            rows.append(row[:row_len])
            row = list(waiting.pop()) if waiting else []
    for token_ids in waiting:
        row.extend(token_ids)
        if len(row) >= row_len:
            rows.append(row[:row_len])
            row = []
    return np.array(rows, dtype=np.uint16).reshape(-1, row_len)


def job(arguments):
    tokenizer_path, seed, index, row_len = arguments
    tokenizer = Tokenizer.from_file(tokenizer_path)
    start = index * DOCUMENTS_PER_JOB
    texts = corpus.documents(seed, start, start + DOCUMENTS_PER_JOB)
    encoded = (tokenizer.encode(text, add_special_tokens=False).ids for text in texts)
    return pack(encoded, row_len)


def rows(tokenizer_path, seed, num_tokens, row_len, num_workers):
    """num_tokens tokens, to the nearest row, as [rows, row_len]."""
    path = str(pathlib.Path(tokenizer_path))
    done, total = [], 0
    jobs = ((path, seed, index, row_len) for index in range(1 << 20))
    with get_context("spawn").Pool(num_workers) as pool:
        while total < num_tokens:
            batch = [next(jobs) for _ in range(num_workers)]
            for part in pool.map(job, batch, chunksize=1):
                done.append(part)
                total += part.size
    return np.concatenate(done)[: max(1, round(num_tokens / row_len))]
