#!/usr/bin/env python3
"""Reads a run's event files as TensorBoard does, and compares them with its log.

    python3 tests/event_files.py RUN

Needs tensorboard. Every scalar of `log.jsonl` has to come out once, at its step, as the nearest f32.
"""
import json, struct, sys
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


def f32(number):
    return struct.unpack("f", struct.pack("f", number))[0]


run = Path(sys.argv[1])
expected = {}
for line in (run / "log.jsonl").read_text().splitlines():
    event = json.loads(line)
    for tag, key in TAGS.get(event["event"], {}).items():
        value = f32(event[key]) if key else 1.0
        expected.setdefault(tag, []).append((event["step"], event["time"], value))

accumulator = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
accumulator.Reload()
found = {}
for tag in accumulator.Tags()["scalars"]:
    found[tag] = [(e.step, e.wall_time, e.value) for e in accumulator.Scalars(tag)]
assert accumulator.file_version == 2.0, accumulator.file_version
assert found.keys() == expected.keys(), (found.keys(), expected.keys())
for tag, scalars in expected.items():
    assert found[tag] == scalars, f"{tag}: {found[tag][:3]} in place of {scalars[:3]}"
print(f"{sum(map(len, expected.values()))} scalars of {len(expected)} tags agree")
