"""All that a GPU can tell, in one command and under eight minutes: `flanc gpu all`, and PyTorch beside it.

    python benches/gpu.py --out gpu [--flanc target/release/flanc] [--all-logits]
    python benches/gpu.py --dry

Checks and times the kernels and trains the models of `flanc gpu bench`, then trains the same models with
`torch_beside.py`, whose head says what it needs and how it trains, each in a process of its own. OUT/gpu.json and OUT/gpu.md
are those of `flanc gpu all`, with PyTorch's figures and the ratio in them (`torch`). A model that PyTorch cannot train, or
has no time left for, is named with the reason.

Without a GPU it says so and exits with 1, as it does where a kernel computes something else than the CPU or no model was
compared. --dry goes the same way with a tiny model on the CPU, and no flanc: it says whether what is installed can do the
rest. Its figures mean nothing and are thrown away.
"""

import argparse
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

# For all of it, of the 480 that were promised: the rest is for what is under way to be written.
SECONDS = 465
HERE = pathlib.Path(__file__).resolve().parent


def run(command, deadline, **options):
    """Exit status, stdout and stderr; no status of a command that the deadline ended, with whatever it had started."""
    process = subprocess.Popen(command, text=True, start_new_session=True, **options)
    try:
        said = process.communicate(timeout=max(deadline - time.monotonic(), 0))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return None, *process.communicate()
    return process.returncode, *said


def flanc_alone(flanc, out, deadline):
    """Has flanc write its report; returns the exit status."""
    try:
        found = subprocess.run([flanc, "gpu", "--json"], capture_output=True, text=True)
    except FileNotFoundError:
        sys.exit(f"there is no {flanc}: `cargo build --release` makes it, --flanc names another")
    if found.returncode != 0:
        sys.exit(found.stderr.partition("\n")[0])
    (out / "gpu.json").unlink(missing_ok=True)
    status, _, _ = run([flanc, "gpu", "all", "--out", str(out)], deadline)
    if not (out / "gpu.json").exists():
        sys.exit("`flanc gpu all` took too long" if status is None else f"`flanc gpu all` failed with status {status}")
    return status


def torch_beside(report, model, deadline, options):
    """What PyTorch makes of a model of the report."""
    command = [sys.executable, str(HERE / "torch_beside.py"), str(report), model, *options]
    status, out, errors = run(command, deadline, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    sys.stderr.write(errors)
    if status is None:
        return {"error": "no time was left"}
    if status != 0:
        return {"error": (errors.strip() or f"failed with status {status}").splitlines()[-1][:120]}
    return json.loads(out.splitlines()[-1])


def compare(out, deadline, options):
    """Adds PyTorch's figures to the report, after each model; returns the report."""
    report = json.loads((out / "gpu.json").read_text())
    alone = (out / "gpu.md").read_text()
    report["torch"] = []
    for speed in report.get("models", []):
        name = speed["model"]
        print(f"{name} by PyTorch", file=sys.stderr)
        figures = {"model": name, **torch_beside(out / "gpu.json", name, deadline, options)}
        if "tokens_per_second" in figures:
            figures["ratio"] = speed["tokens_per_second"] / figures["tokens_per_second"]
        report["torch"].append(figures)
        (out / "gpu.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
        (out / "gpu.md").write_text(alone + table(report))
    return report


def line(speed, figures):
    ours = f"{speed['tokens_per_second']:,.0f}"
    if "error" in figures:
        return f"| {speed['model']} | {ours} | {figures['error']} | | |"
    theirs, memory = f"{figures['tokens_per_second']:,.0f}", f"{figures['bytes'] / 1e9:.1f} GB"
    return f"| {speed['model']} | {ours} | {theirs} | {figures['ratio']:.2f} × | {memory} |"


def table(report):
    versions = {figures["versions"] for figures in report["torch"] if "versions" in figures}
    lines = [line(speed, figures) for speed, figures in zip(report["models"], report["torch"])]
    head = f"\nBeside it: {'; '.join(sorted(versions)) or 'PyTorch'}.\n\n"
    head += "| model | flanc tokens/s | PyTorch tokens/s | flanc is faster by | PyTorch's memory |\n"
    return head + "| --- | ---: | ---: | ---: | ---: |\n" + "\n".join(lines) + "\n"


def dry(deadline):
    """All but flanc, the GPU, its attention and its compiler."""
    segments = [5, 1, 23, 2, 40]
    tiny = {
        "vocab_size": 131, "hidden_size": 64, "intermediate_size": 100, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "tie_word_embeddings": True,
    }
    speed = {
        "model": "tiny", "config": tiny, "segments": segments, "targets": sum(max(-(-n // 5), 1) for n in segments if n > 1),
        "tokens_per_step": sum(segments), "tokens_per_second": 1.0,
    }
    with tempfile.TemporaryDirectory() as directory:
        out = pathlib.Path(directory)
        (out / "gpu.json").write_text(json.dumps({"models": [speed]}))
        (out / "gpu.md").write_text("# dry run\n")
        figures = compare(out, deadline, ["--dry"])["torch"][0]
        assert json.loads((out / "gpu.json").read_text())["torch"] == [figures]
        assert (out / "gpu.md").read_text().count("| tiny |") == 1
    if "error" in figures:
        sys.exit(f"dry run: {figures['error']}")
    print(f"dry run on the CPU, {figures['versions']}: nothing was measured")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default="gpu", help="directory for gpu.json and gpu.md")
    parser.add_argument("--flanc", default="target/release/flanc", help="the program")
    parser.add_argument("--all-logits", action="store_true", help="PyTorch makes logits of all positions, as most trainers do")
    parser.add_argument("--dry", action="store_true", help="a tiny model on the CPU, without figures: can it run here?")
    arguments = parser.parse_args()
    deadline = time.monotonic() + SECONDS
    if arguments.dry:
        return dry(deadline)
    status = flanc_alone(arguments.flanc, arguments.out, deadline)
    report = compare(arguments.out, deadline, ["--all-logits"] if arguments.all_logits else [])
    print(f"{table(report)}\n{arguments.out}/gpu.json, {arguments.out}/gpu.md")
    sys.exit(status or (0 if any("ratio" in figures for figures in report["torch"]) else 1))


if __name__ == "__main__":
    main()
