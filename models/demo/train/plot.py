#!/usr/bin/env python3
"""Draw loss_curve.svg from loss_curve.csv."""

import csv
import pathlib
import sys

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402


def main():
    directory = pathlib.Path(sys.argv[1])
    with (directory / "loss_curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    plt.rcParams["svg.hashsalt"] = "demo"
    figure, axes = plt.subplots(figsize=(7, 4))
    tokens = [int(row["tokens"]) / 1e6 for row in rows]
    axes.plot(tokens, [float(row["training_loss"]) for row in rows], label="training", linewidth=1)
    scored = [row for row in rows if row["held_out_loss"]]
    axes.plot(
        [int(row["tokens"]) / 1e6 for row in scored],
        [float(row["held_out_loss"]) for row in scored],
        "o-",
        label="held out",
        markersize=3,
    )
    axes.set_yscale("log")
    axes.set_xlabel("million tokens")
    axes.set_ylabel("cross entropy, nats a token")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(directory / "loss_curve.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
