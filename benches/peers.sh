#!/usr/bin/env bash
# Runs the compile benchmark: flanc and its peers on the same rows, templates and tokenizer, in turns, on the same cores.
#
# usage: peers.sh [--cap 2000] [--runs 3] [--cpus 0,1] [--without seqio] [--work DIR] [--flanc BINARY]
#
# Prints a table with the median of the runs. Peers are timed by themselves, without start-up (interpreter, imports,
# tokenizer); flanc in both ways: as a whole process, and from opening the corpora to the manifest. Processor seconds
# stand beside wall time because other work on the machine stretches the one and hardly the other. The ids of every
# prompt are compared with those of the first peer; where they differ, the script fails.
#
# The peers and the corpora lie in ../shared; without it there is nothing to run against.
set -euo pipefail
cd "$(dirname "$0")/.."

shared=../shared cap=2000 runs=3 cpus=0-$(($(nproc) - 1)) without="" work=target/peers flanc=target/release/flanc
while [ $# -gt 0 ]; do
  case $1 in
    --cap) cap=$2 ;;
    --runs) runs=$2 ;;
    --cpus) cpus=$2 ;;
    --without) without+=" $2" ;;
    --work) work=$2 ;;
    --flanc) flanc=$2 ;;
    *)
      sed -n '4p' "$0" >&2
      exit 2
      ;;
  esac
  shift 2
done
if [ ! -d "$shared/bench" ]; then
  echo "skipped: the peers' scripts are in $shared/bench, which is not here"
  exit 0
fi
if [ ! -x "$flanc" ]; then
  cargo build --release --quiet
fi
mkdir -p "$work"
if [ ! -e "$work/venv/ready" ]; then
  rm -rf "$work/venv"
  bash "$shared/bench/setup.sh" "$work/venv"
  touch "$work/venv/ready"
fi
python=$work/venv/bin/python
data=$shared/corpora/tfds

recipe() { # the recipe with this cap; its tokenizer path counts from where the recipe lies
  local tokenizer
  tokenizer=$(realpath "$shared/bench/tokenizer.json")
  sed -e "s/^cap = .*/cap = $cap/" -e "s|^file = .*|file = \"$tokenizer\"|" benches/work/bench.toml
}
recipe >"$work/bench.toml"

log=$work/runs.jsonl
rm -f "$log"
measure() { # NAME COMMAND …
  local name=$1
  shift
  TF_CPP_MIN_LOG_LEVEL=3 taskset -c "$cpus" "$python" benches/measure.py "$log" "$name" -- "$@" 2>"$work/$name.err" || {
    cat "$work/$name.err" >&2
    exit 1
  }
}
for ((run = 1; run <= runs; run++)); do
  for peer in python seqio; do
    case $without in *"$peer"*) continue ;; esac
    rm -rf "$work/out-$peer"
    extra=()
    [ "$peer" = python ] || extra=(--spm "$work/spm.model")
    measure "$peer" "$python" "$shared/bench/peer_$peer.py" "$work/out-$peer" --cap "$cap" "${extra[@]}"
  done
  rm -rf "$work/out-flanc"
  measure flanc "$flanc" compile "$work/bench.toml" --templates benches/work/defs --schemas schemas \
    --data-dir "$data" --out "$work/out-flanc" --json
done
case $without in
  *python*) ;;
  *) "$python" benches/compare.py "$work/out-python" "$work/out-flanc" --data-dir "$data" --cap "$cap" ;;
esac

echo "cap $cap, median of $runs, processors $cpus, load average $(cut -d' ' -f1-3 /proc/loadavg)"
"$python" - "$log" <<'EOF'
import json
import statistics
import sys

runs = {}
for line in open(sys.argv[1]):
    record = json.loads(line)
    runs.setdefault(record["name"], []).append(record)


def median(records, value):
    return statistics.median(value(r) for r in records)


def contestant(name, records, wall):
    if name.startswith("flanc"):
        splits = [s for task in records[0]["result"]["manifest"]["tasks"] for s in task["splits"].values()]
        prompts, size = sum(s["prompts"] for s in splits), sum(s["text_bytes"] for s in splits)
    else:
        prompts, size = records[0]["result"]["prompts"], records[0]["result"]["bytes"]
    processor = median(records, lambda r: r["user"] + r["system"])
    return name, prompts, size, median(records, wall), processor, median(records, lambda r: r["anonymous_mib"])


table = []
for name, records in runs.items():
    if name == "flanc":
        table.append(contestant("flanc, whole process", records, lambda r: r["wall"]))
        table.append(contestant("flanc, without start-up", records, lambda r: sum(r["result"]["seconds"].values())))
    else:
        table.append(contestant(f"peer_{name}", records, lambda r: r["result"]["wall"]))
best = table[-1]
print("| contestant | wall s | prompts/s | MB/s | processor s | peak MiB | flanc is faster by | by processor time |")
print("| --- | --- | --- | --- | --- | --- | --- | --- |")
for name, prompts, size, wall, processor, memory in table:
    ratio, by_processor = (size / best[2]) ** -1 * wall / best[3], (size / best[2]) ** -1 * processor / best[4]
    print(
        f"| {name} | {wall:.2f} | {prompts / wall:,.0f} | {size / wall / 1e6:.2f} | {processor:.1f} | {memory:,.0f}"
        f" | {ratio:.1f} x | {by_processor:.1f} x |"
    )
EOF
