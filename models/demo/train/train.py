#!/usr/bin/env python3
"""Train the demo model on generated text and write a Hugging Face directory.

On a GPU the defaults take about five minutes. The schedule ends at --max-steps or --max-minutes,
whichever comes first, and the learning rate falls to its end by then in either case.
"""

import argparse
import csv
import json
import math
import os
import pathlib
import time

import numpy as np
import torch
from safetensors.torch import save_file

import packing
from model import Config, Llama

EVAL_SEED_OFFSET = 1000  # held-out documents come from another seed


def parse():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("directory", type=pathlib.Path, help="holds tokenizer.json already")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=160_000_000, help="distinct training tokens")
    parser.add_argument("--eval-tokens", type=int, default=1_000_000)
    parser.add_argument("--max-steps", type=int, default=5200)
    parser.add_argument("--max-minutes", type=float, default=60.0)
    parser.add_argument("--batch", type=int, default=64, help="rows a step")
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--warmup", type=int, default=150)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    return parser.parse_args()


def learning_rate(arguments, step, progress):
    warm = min(1.0, (step + 1) / arguments.warmup)
    return arguments.learning_rate * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


def make_optimizer(model, arguments, device):
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        groups, lr=arguments.learning_rate, betas=(0.9, 0.95), fused=device == "cuda"
    )


class Batches:
    """Rows in a new random order each epoch, on the device."""

    def __init__(self, rows, batch, device, seed):
        self.rows = torch.from_numpy(rows.astype(np.int32)).to(device)
        self.batch, self.random = batch, np.random.default_rng(seed)
        self.order = []
        self.epochs = 0

    def next(self):
        if len(self.order) < self.batch:
            self.order = self.random.permutation(len(self.rows)).tolist()
            self.epochs += 1
        chosen, self.order = self.order[: self.batch], self.order[self.batch :]
        rows = self.rows[chosen].long()
        return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


@torch.no_grad()
def evaluate(loss_of, rows, batch, device):
    total, count = 0.0, 0
    for start in range(0, len(rows) - batch + 1, batch):
        part = torch.from_numpy(rows[start : start + batch].astype(np.int64)).to(device)
        total += float(loss_of(part[:, :-1].contiguous(), part[:, 1:].contiguous()))
        count += 1
    return total / count


def train(arguments, model, rows, held_out, device):
    """Returns the loss curve: (step, tokens, seconds, training loss, held-out loss or '')."""
    optimizer = make_optimizer(model, arguments, device)
    batches = Batches(rows, arguments.batch, device, arguments.seed)
    compiled = torch.compile(model.loss) if device == "cuda" else model.loss

    def loss_of(token_ids, targets):
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            return compiled(token_ids, targets)

    curve, start, step, progress, recent = [], None, 0, 0.0, []
    while progress < 1.0:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(arguments, step, progress)
        loss = loss_of(*batches.next())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        recent.append(loss.detach())
        start = start or time.time()  # the first step compiles
        step += 1
        seconds = time.time() - start
        progress = max(step / arguments.max_steps, seconds / 60 / arguments.max_minutes)
        if step % 20 == 0 or progress >= 1.0:
            mean = float(torch.stack(recent).mean())
            recent = []
            is_due = step % 200 == 0 or progress >= 1.0
            score = evaluate(loss_of, held_out, arguments.batch, device) if is_due else ""
            tokens = step * arguments.batch * arguments.context
            curve.append(
                (step, tokens, round(seconds, 1), round(mean, 4), score and round(score, 4))
            )
            if is_due:
                print(
                    f"step {step:5} {tokens / 1e6:6.1f} M tokens {seconds:6.1f} s loss {mean:.4f}"
                    f" held-out {score:.4f} epoch {batches.epochs}",
                    flush=True,
                )
    return curve


def export(model, directory):
    state = {
        name: tensor.to(torch.bfloat16).contiguous() for name, tensor in model.state_dict().items()
    }
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
    config = json.dumps(dict(sorted(model.config.huggingface().items())), indent=2)
    (directory / "config.json").write_text(config + "\n")
    generation = {
        "bos_token_id": 0,
        "do_sample": True,
        "eos_token_id": [1, 5],
        "temperature": 0.7,
        "top_p": 0.9,
        "transformers_version": "4.45.0",
    }
    (directory / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")


def main():
    arguments = parse()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(arguments.seed)
    torch.set_float32_matmul_precision("high")
    began = time.time()
    tokenizer = arguments.directory / "tokenizer.json"
    shape = (arguments.context + 1, arguments.workers)
    rows = packing.rows(tokenizer, arguments.seed, arguments.tokens, *shape)
    held_out_seed = arguments.seed + EVAL_SEED_OFFSET
    held_out = packing.rows(tokenizer, held_out_seed, arguments.eval_tokens, *shape)
    print(
        f"{rows.size / 1e6:.1f} M training tokens made in {time.time() - began:.0f} s", flush=True
    )

    model = Llama(Config()).to(device)
    size = sum(p.numel() for p in model.parameters())
    print(f"{size} parameters on {device}", flush=True)
    curve = train(arguments, model, rows, held_out, device)

    with (arguments.directory / "loss_curve.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("step", "tokens", "seconds", "training_loss", "held_out_loss"))
        writer.writerows(curve)
    export(model, arguments.directory)
    rounded = {name: t.to(torch.bfloat16).to(t.dtype) for name, t in model.state_dict().items()}
    model.load_state_dict(rounded)
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        final = evaluate(model.loss, held_out, min(16, arguments.batch), device)
    print(f"held-out loss of the bf16 weights {final:.4f}", flush=True)


if __name__ == "__main__":
    main()
