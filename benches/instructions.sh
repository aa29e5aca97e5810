#!/usr/bin/env bash
# Counts the instructions that the stages of a compile take, and compares them with those in instructions.txt.
#
# usage: instructions.sh [--update] [--flanc BINARY]
#
# Counts do not depend on what else the machine does, so a change of more than 3 % is a change of the program: it fails.
# The input is the bundled sample, on one thread, under valgrind's callgrind, whose processor has no AVX-512. A stage is
# what is spent in a function and below it. Another compiler makes other code: with another version of rustc the
# counts are printed and not compared. --update writes down what is counted now.
set -euo pipefail
cd "$(dirname "$0")/.."

flanc=target/release/flanc update=""
while [ $# -gt 0 ]; do
  case $1 in
    --update) update=yes ;;
    --flanc) flanc=$2 && shift ;;
    *)
      sed -n '4p' "$0" >&2
      exit 2
      ;;
  esac
  shift
done
if ! command -v valgrind >/dev/null; then
  echo "skipped: valgrind is not here"
  exit 0
fi
stages=(
  "tokenizer:flanc::tokenize::Tokenizer::open_to_compare"
  "decode:flanc::ingest::features::Decoder::decode"
  "fields:flanc::template::engine::Program::bind"
  "encode:flanc::expand::Worker::encode_joined"
  "pages:flanc::shard::pages::PageEncoder::encode"
  "read back:flanc::shard::reader::IdPages::next_page"
  "gather:flanc::link::gather::Gather::group"
  "pack:flanc::pack::pack"
)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# The verdict on the tokenizer is kept for its user: here it is always reached anew.
XDG_CACHE_HOME=$work/cache valgrind --tool=callgrind --callgrind-out-file="$work/counts" "$flanc" compile --data-dir data --threads 1 \
  --out "$work/out" >/dev/null 2>"$work/messages" || {
  cat "$work/messages" >&2
  exit 1
}
callgrind_annotate --inclusive=yes --auto=no --threshold=100 --show-percs=no "$work/counts" >"$work/functions" 2>/dev/null
{
  echo "# Instructions by stage, as benches/instructions.sh counts them; the compiler that made them comes first."
  rustc --version
  awk '/PROGRAM TOTALS/ { gsub(",", "", $1); print "whole: " $1 }' "$work/functions"
  for stage in "${stages[@]}"; do
    awk -v name="${stage%%:*}" -v symbol="${stage#*:}" '
      { where = index($0, ":" symbol); rest = substr($0, where + 1 + length(symbol), 1) }
      where && (rest == " " || rest == "" || rest == "\x27") { gsub(",", "", $1); print name ": " $1; found = 1; exit }
      END { if (!found) print name ": 0" }' "$work/functions"
  done
} >"$work/now"
if [ -n "$update" ]; then
  cp "$work/now" benches/instructions.txt
fi
awk -F': ' '
  /^#/ { next }
  !/: / { version[FILENAME] = $0; next }
  FNR == NR { pinned[$1] = $2; next }
  {
    change = pinned[$1] > 0 ? 100 * ($2 / pinned[$1] - 1) : 100
    printf "%-10s %15d %15d %+7.2f %%\n", $1, $2, pinned[$1], change
    if (change > 3 || change < -3) changed = changed " " $1
  }
  END {
    if (version[ARGV[1]] != version[ARGV[2]]) print "made by " version[ARGV[2]] ", pinned for " version[ARGV[1]]
    else if (changed) {
      print "changed by more than 3 %:" changed "; if that is meant to be so: benches/instructions.sh --update"
      exit 1
    }
  }' benches/instructions.txt "$work/now"
