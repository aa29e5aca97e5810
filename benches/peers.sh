#!/usr/bin/env bash
# Runs the compile benchmark: flanc and its peers on the same rows, templates and tokenizer, in turns, on the same cores.
#
# usage: peers.sh [--cap 2000] [--runs 3] [--templates all] [--cpus 0,1] [--without seqio] [--work DIR] [--flanc BINARY]
#
# Prints a table with the median of the runs. Peers are timed by themselves, without start-up (interpreter, imports,
# tokenizer); flanc in both ways: as a whole process, and from opening the corpora to the manifest. Processor seconds
# stand beside wall time because other work on the machine stretches the one much more than the other; from them, what
# a run over one row takes is subtracted for every contestant. The ids of every prompt are compared with those of the
# first peer; where they differ, the script fails. With `--templates one` a row goes through one template: the first for
# the peers, a drawn one for flanc, so that there is nothing to compare.
#
# The peers and the corpora lie in ../shared; without it there is nothing to run against.
set -euo pipefail
cd "$(dirname "$0")/.."

shared=../shared cap=2000 runs=3 templates=all cpus=0-$(($(nproc) - 1)) without="" work=target/peers flanc=target/release/flanc
while [ $# -gt 0 ]; do
  case $1 in
    --cap) cap=$2 ;;
    --runs) runs=$2 ;;
    --templates) templates=$2 ;;
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
exec 9>"$work/lock"
flock -n 9 || {
  echo "another run uses $work: wait for it, or name another directory with --work" >&2
  exit 1
}
if [ ! -e "$work/venv/ready" ]; then
  rm -rf "$work/venv"
  bash "$shared/bench/setup.sh" "$work/venv"
  touch "$work/venv/ready"
fi
python=$work/venv/bin/python
data=$shared/corpora/tfds

case $templates in
  all) recipe=bench few=() ;;
  one) recipe=bench-one few=(--templates 1) ;;
  *)
    echo "--templates is all or one, not $templates" >&2
    exit 2
    ;;
esac

log=$work/runs.jsonl
rm -f "$log"
measure() { # NAME COMMAND …
  local name=$1
  shift
  sync # what the run before has left to be written is not for this one to wait for
  TF_CPP_MIN_LOG_LEVEL=3 taskset -c "$cpus" "$python" benches/measure.py "$log" "$name" -- "$@" 2>"$work/error.txt" || {
    cat "$work/error.txt" >&2
    exit 1
  }
}
contestant() { # NAME CAP LABEL
  local out=$work/out-$1
  rm -rf "$out"
  case $1 in
    python) measure "$3" "$python" "$shared/bench/peer_python.py" "$out" --cap "$2" "${few[@]}" ;;
    seqio) measure "$3" "$python" "$shared/bench/peer_seqio.py" "$out" --cap "$2" --spm "$work/spm.model" "${few[@]}" ;;
    flanc)
      # The recipe with another cap; the path of its tokenizer counts from where the recipe lies.
      sed -e "s/^cap = .*/cap = $2/" -e "s|^file = .*|file = \"$(realpath "$shared/bench/tokenizer.json")\"|" \
        "benches/work/$recipe.toml" >"$work/bench.toml"
      measure "$3" "$flanc" compile "$work/bench.toml" --templates benches/work/defs --schemas schemas \
        --data-dir "$data" --out "$out" --json
      ;;
  esac
}

contestants=()
for name in python seqio flanc; do
  case $without in *"$name"*) ;; *) contestants+=("$name") ;; esac
done
for name in "${contestants[@]}"; do
  # seqio's peer trains its SentencePiece model in the first of these.
  if [ "$name" = seqio ] && [ ! -e "$work/spm.model" ]; then contestant seqio 1 ignored; fi
  contestant "$name" 1 "$name, start-up"
done
for ((run = 1; run <= runs; run++)); do
  for name in "${contestants[@]}"; do
    contestant "$name" "$cap" "$name"
  done
done
case $templates$without in
  one* | *python*) ;;
  *) "$python" benches/compare.py "$work/out-python" "$work/out-flanc" --data-dir "$data" --cap "$cap" ;;
esac

echo "cap $cap, $templates templates, median of $runs, processors $cpus, load average $(cut -d' ' -f1-3 /proc/loadavg)"
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


def contestant(name, title, wall):
    records, start = runs[name], runs[f"{name}, start-up"]
    if name == "flanc":
        splits = [s for task in records[0]["result"]["manifest"]["tasks"] for s in task["splits"].values()]
        prompts, size = sum(s["prompts"] for s in splits), sum(s["text_bytes"] for s in splits)
    else:
        prompts, size = records[0]["result"]["prompts"], records[0]["result"]["bytes"]
    processor = median(records, lambda r: r["user"] + r["system"]) - median(start, lambda r: r["user"] + r["system"])
    return title, prompts, size, median(records, wall), processor, median(records, lambda r: r["anonymous_mib"])


table = [contestant(n, f"peer_{n}", lambda r: r["result"]["wall"]) for n in ("python", "seqio") if n in runs]
table.append(contestant("flanc", "flanc, whole process", lambda r: r["wall"]))
table.append(contestant("flanc", "flanc, without start-up", lambda r: sum(r["result"]["seconds"].values())))
flanc = table[-1]
print("| contestant | wall s | prompts/s | MB/s | processor s | peak MiB | flanc is faster by | by processor time |")
print("| --- | --- | --- | --- | --- | --- | --- | --- |")
for title, prompts, size, wall, processor, memory in table:
    work = flanc[2] / size
    print(
        f"| {title} | {wall:.2f} | {prompts / wall:,.0f} | {size / wall / 1e6:.2f} | {processor:.1f} | {memory:,.0f}"
        f" | {work * wall / flanc[3]:.1f} x | {work * processor / flanc[4]:.1f} x |"
    )
EOF
