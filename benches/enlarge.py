"""Makes a corpus directory with the rows of another one several times over, to see what memory depends on.

usage: enlarge.py DATA_DIR LARGER_DIR TIMES

Shards of the split `train` are linked under new names, dataset_info.json counts them, other splits are left out. For
the five corpora of the benchmark.
"""

import json
import os
import shutil
import sys

CORPORA = [
    "glue/sst2/2.0.0",
    "gem/common_gen/1.1.0",
    "imdb_reviews/plain_text/1.0.0",
    "aeslc/1.0.0",
    "math_dataset/algebra__linear_1d/1.0.0",
]


def main():
    source, target, times = sys.argv[1], sys.argv[2], int(sys.argv[3])
    for corpus in CORPORA:
        old, new = os.path.join(source, corpus), os.path.join(target, corpus)
        os.makedirs(new)
        with open(os.path.join(old, "dataset_info.json")) as file:
            info = json.load(file)
        split = next(s for s in info["splits"] if s["name"] == "train")
        shards = len(split["shardLengths"])
        split["shardLengths"] *= times
        split["numBytes"] = str(int(split["numBytes"]) * times)
        info["splits"] = [split]
        with open(os.path.join(new, "dataset_info.json"), "w") as file:
            json.dump(info, file)
        for name in os.listdir(old):
            if name == "features.json" or name.endswith(".labels.txt"):
                shutil.copyfile(os.path.join(old, name), os.path.join(new, name))
        stem = f"{corpus.split('/')[0]}-train.tfrecord"
        for i in range(shards * times):
            shard = os.path.join(old, f"{stem}-{i % shards:05}-of-{shards:05}")
            os.symlink(os.path.abspath(shard), os.path.join(new, f"{stem}-{i:05}-of-{shards * times:05}"))


main()
