#!/usr/bin/env python3
"""Prints what a folder of results of build/gpu-check/run holds, as Markdown: gpu_check_table.py DIR"""

import json
import pathlib
import re
import sys

OUTCOME = re.compile(r"^part (\S+) at \S+: exit (\d+) after (\d+) s, (\S+)$", re.MULTILINE)
DETAIL = re.compile(r"(?:\d+ of \d+ requests finished|test cases: |ERROR SUMMARY: |RACECHECK SUMMARY: |test result: |peak memory of the card: ).*")
# Parts whose figures are text, and what beside figures they say: progress, seeds of tests, criterion's own words.
TEXT = ("ceilings", "kernels-", "steps-", "start-", "pool")
NOISE = re.compile(r"^(\{|part \S+ at \S+: exit|Benchmarking |Found \d|decode/\d| {2}\d|left out|\s*$)")


def read(folder):
    """[(part, text, exit status, seconds, end)] of what has ended, in the order in which it ran."""
    parts = []
    for path in folder.iterdir():
        if path.suffix in (".txt", ".failed"):
            text = path.read_text(errors="replace")
            for name, status, seconds, end in OUTCOME.findall(text):
                parts.append((name, text, int(status), int(seconds), end))
    return sorted(parts, key=lambda part: part[-1])


def checks(parts):
    print("| part | outcome | seconds | |\n| --- | --- | --- | --- |")
    for name, text, status, seconds, _ in parts:
        details = DETAIL.findall(text)
        detail = re.sub(r"\s+", " ", details[-1]).replace("|", "·").strip() if details else ""
        print(f"| {name} | {'ok' if status == 0 else f'**failed** ({status})'} | {seconds} | {detail} |")


def serving(parts):
    rows = {}
    for _, text, *_ in parts:
        table = [line for line in text.splitlines() if line.startswith("| ")]
        if table and "vLLM" in table[0]:
            rows.update(dict.fromkeys(table))  # the heads are alike: kept once
    if rows:
        print("\n## Whole node, through NATS\n")
        print("\n".join(rows))


def criterion(folder):
    """Medians by model, which is the baseline's name."""
    found = []
    for path in folder.glob("criterion/**/estimates.json"):
        baseline = path.parent.name
        if baseline not in ("new", "base", "change"):
            name = json.loads(path.with_name("benchmark.json").read_text())["group_id"]
            median_ns = json.loads(path.read_text())["median"]["point_estimate"]
            found.append((baseline, name, median_ns / 1e6))
    if found:
        print("\n## By criterion; inference: 50 tokens (time_to_first_token: one) in the library, all sequences together\n")
        print("| model | benchmark | median |\n| --- | --- | --- |")
    for baseline, name, median in sorted(found, key=by_number):
        print(f"| {baseline} | `{name}` | {median:.4g} ms |")


def by_number(row):
    return [[int(part) if part.isdigit() else part for part in re.split(r"(\d+)", word)] for word in row[:2]]


def main():
    folder = pathlib.Path(sys.argv[1])
    parts = read(folder)
    commit, card, *_ = (folder / "machine").read_text().splitlines()
    print(f"{parts[-1][-1][:10] if parts else '–'}, commit {commit}; card, driver, memory: {card}\n")
    checks(parts)
    serving(parts)
    criterion(folder)
    for name, text, *_ in parts:
        if name.startswith(TEXT):
            figures = [line.rstrip() for line in text.splitlines() if not NOISE.match(line)]
            print("\n".join([f"\n## {name}\n", "```", *figures, "```"]))
    sys.exit(any(status for _, _, status, *_ in parts))


if __name__ == "__main__":
    main()
