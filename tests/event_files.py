#!/usr/bin/env python3
"""Reads a run's event files as TensorBoard does, and compares them with its log.

    python3 tests/event_files.py RUN

Needs tensorboard. Every scalar of `log.jsonl` has to come out once, at its step and time, as an f32. (A run that goes on
makes the file from its log, and may lose the last bit of a number by reading it.)
"""
import json, math, sys
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

TAGS = {
    "step": {
        "train/loss": "loss", "train/learning_rate": "rate", "train/gradient_norm": "norm", "train/epoch": "epoch",
        "speed/tokens_per_second": "tokens_per_second", "speed/mfu": "mfu", "speed/memory_bytes": "memory",
    },
    "validation": {"validation/loss": "loss"},
    "skipped": {"train/skipped": None},
}


def same(a, b):
    return a[0] == b[0] and abs(a[1] - b[1]) < 1e-5 and math.isclose(a[2], b[2], rel_tol=2e-7)


run = Path(sys.argv[1])
expected = {}
for line in (run / "log.jsonl").read_text().splitlines():
    event = json.loads(line)
    for tag, key in TAGS.get(event["event"], {}).items():
        value = event[key] if key else 1.0
        expected.setdefault(tag, []).append((event["step"], event["time"], value))

accumulator = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
accumulator.Reload()
found = {}
for tag in accumulator.Tags()["scalars"]:
    found[tag] = [(e.step, e.wall_time, e.value) for e in accumulator.Scalars(tag)]
assert accumulator.file_version == 2.0, accumulator.file_version
assert found.keys() == expected.keys(), (found.keys(), expected.keys())
for tag, scalars in expected.items():
    assert len(found[tag]) == len(scalars), f"{tag}: {len(found[tag])} in place of {len(scalars)}"
    differing = [pair for pair in zip(found[tag], scalars) if not same(*pair)]
    assert not differing, f"{tag}: {differing[:3]}"
print(f"{sum(map(len, expected.values()))} scalars of {len(expected)} tags agree")
