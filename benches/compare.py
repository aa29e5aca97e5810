"""Compares what peer_python.py wrote with the task shards of flanc: `input_ids` and `labels` of every prompt.

usage: compare.py PEER_DIR OUT --data-dir DIR --cap N [--templates 10]

Both write row by row, a row's prompts in the order of its templates. flanc counts rows shard by shard;
tensorflow_datasets reads 16 shards in turns, 16 rows at a time, so its rows are put into our order first. flanc makes
no prompt without targets, which the peer does: these must be empty there. Exits with 1 at the first difference.
"""

import argparse
import json
import os
import sys

import numpy
import pyarrow as pa
import pyarrow.parquet as pq

# The recipe's tasks, and what the peer calls their files.
TASKS = {
    "sst2": "glue/sst2:2.0.0",
    "common_gen": "gem/common_gen:1.1.0",
    "imdb_reviews": "imdb_reviews/plain_text:1.0.0",
    "aeslc": "aeslc:1.0.0",
    "math_dataset": "math_dataset/algebra__linear_1d:1.0.0",
}
CYCLE, BLOCK = 16, 16  # tfds.ReadConfig: interleave_cycle_length, interleave_block_length


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer")
    parser.add_argument("out")
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--cap", type=int, required=True)
    parser.add_argument("--templates", type=int, default=10)
    args = parser.parse_args()
    with open(os.path.join(args.out, "manifest.json")) as file:
        files = sorted(f["path"] for f in json.load(file)["files"])
    prompts = tokens = 0
    for task, corpus in TASKS.items():
        peer = pq.read_table(os.path.join(args.peer, corpus.replace("/", "_").replace(":", "_") + ".parquet"))
        shards = [f for f in files if f.startswith(f"tasks/{task}/train-") and not f.endswith(".provenance.parquet")]
        ours = pa.concat_tables(pq.read_table(os.path.join(args.out, f)) for f in shards)
        origins = pa.concat_tables(
            pq.read_table(os.path.join(args.out, f.removesuffix(".parquet") + ".provenance.parquet")) for f in shards
        )
        templates = {f"original-{i}": i for i in range(7)} | {f"turned-around-{i}": 7 + i for i in range(3)}
        row = origins["row"].to_numpy()
        template = numpy.array([templates[name] for name in origins["template"].to_pylist()])
        place = places(args.data_dir, corpus, args.cap)
        if len(peer) != len(place) * args.templates:
            fail(f"{task}: the peer has {len(peer)} prompts, not {len(place)} rows x {args.templates}")
        index = place[row] * args.templates + template
        if len(numpy.unique(index)) != len(index):
            fail(f"{task}: a prompt is there twice")
        same(task, peer.take(pa.array(index)), ours, row, template)
        missing = numpy.setdiff1d(numpy.arange(len(peer)), index)
        for i in missing:
            target = [x for x in peer["labels"][int(i)].as_py() if x != -100]
            if len(target) > 2:  # one blank, and the end of the sequence
                fail(f"{task}: flanc lacks prompt {i} of the peer, whose targets are {target}")
        note = f", {len(missing)} with empty targets left out" if len(missing) else ""
        print(f"{task}: {len(ours)} prompts equal{note}", file=sys.stderr)
        prompts += len(ours)
        tokens += sum(len(chunk.values) for chunk in ours["input_ids"].chunks)
    print(json.dumps({"equal": True, "prompts": prompts, "tokens": tokens}))


def places(data_dir, corpus, cap):
    """For each row of the split, in our order, its place in the order of tensorflow_datasets."""
    with open(os.path.join(data_dir, corpus.replace(":", "/"), "dataset_info.json")) as file:
        split = next(s for s in json.load(file)["splits"] if s["name"] == "train")
    shards, first = [], 0
    for length in map(int, split["shardLengths"]):
        rows = range(first, min(first + length, cap))
        if rows:
            shards.append(iter(rows))
        first += length
    order, slots = [], []
    waiting = iter(shards)
    slots = [next(waiting, None) for _ in range(CYCLE)]
    while any(slots):
        for i, shard in enumerate(slots):
            if shard is None:
                continue
            block = [row for _, row in zip(range(BLOCK), shard)]
            order.extend(block)
            if len(block) < BLOCK:
                slots[i] = next(waiting, None)
    place = numpy.empty(len(order), dtype=numpy.int64)
    place[order] = numpy.arange(len(order))
    return place


def same(task, peer, ours, row, template):
    for column in ("input_ids", "labels"):
        a, b = peer[column].combine_chunks(), ours[column].combine_chunks()
        if lengths(a) == lengths(b) and flat(a).equals(flat(b)):
            continue
        for i, (x, y) in enumerate(zip(a, b)):
            if x.as_py() != y.as_py():
                where = f"{task}, row {row[i]}, template {template[i]}"
                fail(f"{where}: {column} differ\n  peer  {x.as_py()[:60]}\n  flanc {y.as_py()[:60]}")
        fail(f"{task}: {len(a)} and {len(b)} prompts")


def lengths(lists):
    return numpy.diff(lists.offsets.to_numpy()).tolist()


def flat(lists):
    return lists.flatten().cast(pa.int32())


def fail(message):
    print(message, file=sys.stderr)
    sys.exit(1)


main()
