"""PyTorch and transformers beside `flanc gpu bench`: the same models, packs and optimizer on the same GPU.

    flanc gpu all --out gpu
    python benches/torch_beside.py gpu/gpu.json [--model 0.5B ...] [--all-logits] [--json FILE]

Needs torch with CUDA, transformers (4.48 or newer) and flash-attn. For every model that the report has, it trains one of the
same shape with random weights on segments of the same lengths, as a careful user of transformers would: weights in f32 under
autocast to bf16, torch.compile, FlashAttention 2 with variable lengths (which transformers takes where positions begin anew
within a row), only the positions with a target through the head (all of them with --all-logits, as most trainers do), and
transformers' Adafactor with absolute steps. Printed are tokens a second of both, and how many times faster flanc is.
"""

import argparse
import json
import time

import torch
import torch.nn.functional as F
from transformers import Qwen2Config, Qwen2ForCausalLM
from transformers.optimization import Adafactor

WARM_UP, STEPS = 5, 20


def build(config):
    """A model of random weights in f32, to be run in bf16."""
    kept = {key: value for key, value in config.items() if key != "model_type"}
    torch.manual_seed(17)
    with torch.device("cuda"):
        model = Qwen2ForCausalLM._from_config(
            Qwen2Config(**kept, use_cache=False), attn_implementation="flash_attention_2", torch_dtype=torch.float32
        )
    return model.train()


def pack(segments, targets, vocabulary):
    """Ids and positions of a packed row, the places that predict a target, and the targets: the last of each segment."""
    generator = torch.Generator().manual_seed(9)
    ids = torch.randint(vocabulary, (1, sum(segments)), generator=generator).cuda()
    positions = torch.cat([torch.arange(length) for length in segments])[None].cuda()
    rows, start = [], 0
    for length in segments:
        first = max(length - -(-length // 5), 1)
        rows += range(start + first - 1, start + length - 1)
        start += length
    assert len(rows) == targets, f"{len(rows)} targets, of flanc {targets}"
    rows = torch.tensor(rows).cuda()
    return ids, positions, rows, ids[0, rows + 1]


def measure(speed, all_logits):
    """Seconds of a training step, and memory at its peak."""
    model = build(speed["config"])
    ids, positions, rows, targets = pack(speed["segments"], speed["targets"], model.config.vocab_size)
    optimizer = Adafactor(model.parameters(), lr=3e-5, scale_parameter=False, relative_step=False, warmup_init=False)
    compiled = torch.compile(model)

    def step():
        with torch.autocast("cuda", dtype=torch.bfloat16):
            if all_logits:
                logits = compiled(input_ids=ids, position_ids=positions).logits[0, rows]
            else:
                logits = compiled(input_ids=ids, position_ids=positions, logits_to_keep=rows).logits[0]
        loss = F.cross_entropy(logits.float(), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    for _ in range(WARM_UP):
        step()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(STEPS):
        step()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / STEPS, torch.cuda.max_memory_allocated()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", help="gpu.json of `flanc gpu all`")
    parser.add_argument("--model", action="append", help="only this one; may be given more than once")
    parser.add_argument("--all-logits", action="store_true", help="logits of all positions, not only of those with a target")
    parser.add_argument("--json", help="file for the figures")
    arguments = parser.parse_args()
    with open(arguments.report) as file:
        report = json.load(file)
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}")
    print("| model | flanc tokens/s | PyTorch tokens/s | flanc is faster by | PyTorch's memory |")
    print("| --- | ---: | ---: | ---: | ---: |")
    figures = []
    for speed in report.get("models", []):
        if arguments.model and speed["model"] not in arguments.model:
            continue
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        torch.compiler.reset()
        try:
            seconds, memory = measure(speed, arguments.all_logits)
        except torch.cuda.OutOfMemoryError:
            print(f"| {speed['model']} | {speed['tokens_per_second']:,.0f} | out of memory | | |")
            continue
        theirs = speed["tokens_per_step"] / seconds
        ratio = speed["tokens_per_second"] / theirs
        print(
            f"| {speed['model']} | {speed['tokens_per_second']:,.0f} | {theirs:,.0f} | {ratio:.2f} × | {memory / 1e9:.1f} GB |",
            flush=True,
        )
        figures.append({
            "model": speed["model"], "flanc_tokens_per_second": speed["tokens_per_second"],
            "torch_tokens_per_second": theirs, "ratio": ratio, "torch_bytes": memory, "all_logits": arguments.all_logits,
            "torch": torch.__version__,
        })
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(figures, file, indent=1)


if __name__ == "__main__":
    main()
