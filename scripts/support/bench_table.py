#!/usr/bin/env python3
"""Prints one table of all benchmarks: bench_table.py LOG SINCE

LOG is the output of a run of them. Figures come from its lines `result<TAB>name<TAB>median<TAB>unit<TAB>target` and, for
criterion's, from the estimates.json of every benchmark that was measured since SINCE (Unix seconds).
"""

import json
import pathlib
import re
import subprocess
import sys

# What a figure is held against, by the beginning of its name; the longest one counts. Rates are those of the whole control plane on
# one core: a stage alone has to be far above them.
REQUESTS = "> 4,000 requests/s, all stages together"
TOKENS = "> 500,000 tokens/s, all stages together"
TARGETS = {
    "batcher/decode step/8": "< 20 µs, host work between two steps",
    "batcher/decode step/256": "< 100 µs, host work between two steps",
    "scheduler/assign": REQUESTS,
    "admission": REQUESTS,
    "bus_decode_request": REQUESTS,
    "bus_encode_event": TOKENS,
    "bus_merge_64_events": TOKENS,
    "reply_push": TOKENS,
}


def target(name, median_ns, throughput, bandwidth):
    """The target of a figure, or the ceiling of one that reads weights."""
    if name.startswith("op_matmul") and bandwidth and "Bytes" in throughput:
        reached = throughput["Bytes"] / median_ns
        return f"{bandwidth:.1f} GB/s read ({100 * reached / bandwidth:.0f} %)"
    known = [key for key in TARGETS if name.startswith(key)]
    return TARGETS[max(known, key=len)] if known else ""


def with_unit(value, units):
    """Scales a value into the first unit in which it is below 1,000."""
    for unit, factor in units:
        if value < 1_000 * factor or unit == units[-1][0]:
            return f"{value / factor:.3g}" if value < 1_000 * factor else f"{value / factor:.0f}", unit
    return str(value), ""


TIMES = [("ns", 1), ("µs", 1e3), ("ms", 1e6), ("s", 1e9)]
COUNTS = [("", 1), ("k", 1e3), ("M", 1e6), ("G", 1e9)]


def rate(throughput, median_ns):
    """What a second holds: bytes, or the elements that the benchmark names."""
    for kind, count in throughput.items():
        number, prefix = with_unit(count / median_ns * 1e9, COUNTS)
        return f"{number} {prefix}{'B' if kind == 'Bytes' else ''}/s"
    return ""


def by_number(path):
    """Sorts 8 before 16."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", str(path))]


def criterion_rows(since, bandwidth):
    metadata = subprocess.run(
        ["cargo", "metadata", "--format-version=1", "--no-deps"],
        check=True,
        capture_output=True,
    )
    root = pathlib.Path(json.loads(metadata.stdout)["target_directory"]) / "criterion"
    for path in sorted(root.glob("**/new/estimates.json"), key=by_number):
        if path.stat().st_mtime < since:
            continue
        about = json.loads(path.with_name("benchmark.json").read_text())
        median_ns = json.loads(path.read_text())["median"]["point_estimate"]
        throughput = about.get("throughput") or {}
        name = about["full_id"]
        number, unit = with_unit(median_ns, TIMES)
        yield [name, number, unit, rate(throughput, median_ns), target(name, median_ns, throughput, bandwidth)]


def main():
    log = pathlib.Path(sys.argv[1])
    results = [line.split("\t")[1:] for line in log.read_text().splitlines() if line.startswith("result\t")]
    # Not for the table: the read bandwidth that was measured in this run.
    bandwidth = max((float(median) for name, median, *_ in results if name == "read_bandwidth"), default=0.0)
    rows = [[name, median, unit, "", held] for name, median, unit, held in results]
    rows += criterion_rows(float(sys.argv[2]), bandwidth)
    head = ["name", "median", "unit", "rate", "ceiling or target"]
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]

    def line(cells):
        aligned = [cell.rjust(width) if column == 1 else cell.ljust(width) for column, (cell, width) in enumerate(zip(cells, widths))]
        return "| " + " | ".join(aligned) + " |"

    print(line(head))
    print(line(["-" * width for width in widths]))
    for row in rows:
        print(line(row))


if __name__ == "__main__":
    main()
