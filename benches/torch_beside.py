"""A model of `flanc gpu bench`, trained by PyTorch and transformers: the same shape, packs and optimizer on the same GPU.

    python benches/torch_beside.py gpu/gpu.json 0.5B [--all-logits]

`gpu.py` calls it for every model. Needs torch 2 with CUDA, transformers (4.49 or newer, which has `logits_to_keep`) and
flash-attn. It trains a model of the shape that the report names, with random weights, on segments of the same lengths, as
a careful user of transformers would: weights in f32 under autocast to bf16, torch.compile, FlashAttention 2 with variable
lengths (which transformers takes where positions begin anew within a row), only the positions with a target through the head
(all of them with --all-logits, as most trainers do), and transformers' Adafactor with absolute steps. The last line it
prints is an object with the figures.

--dry goes the same way on the CPU, with PyTorch's own attention and nothing compiled: it needs neither a GPU nor flash-attn. It
checks that the rows asked for have the losses of whole logits and that the loss falls. Its times mean nothing.
"""

import argparse
import json
import pathlib
import time

import torch
import torch.nn.functional as F
import transformers
from transformers import Qwen2Config, Qwen2ForCausalLM
from transformers.optimization import Adafactor

WARM_UP, STEPS = 5, 20


def build(config, device):
    """A model of random weights in f32, to be run in bf16."""
    kept = {key: value for key, value in config.items() if key != "model_type"}
    torch.manual_seed(17)
    with torch.device(device):
        model = Qwen2ForCausalLM._from_config(
            Qwen2Config(**kept, use_cache=False),
            attn_implementation="flash_attention_2" if device == "cuda" else "sdpa",
        )
    assert all(weight.dtype == torch.float32 for weight in model.parameters())
    return model.train()


def pack(segments, vocabulary, device):
    """Ids and positions of a packed row, the places that predict a target, and the targets: the last of each segment."""
    generator = torch.Generator().manual_seed(9)
    ids = torch.randint(vocabulary, (1, sum(segments)), generator=generator).to(device)
    positions = torch.cat([torch.arange(length) for length in segments])[None].to(device)
    rows, start = [], 0
    for length in segments:
        first = max(length - -(-length // 5), 1)
        rows += range(start + first - 1, start + length - 1)
        start += length
    rows = torch.tensor(rows).to(device)
    return ids, positions, rows, ids[0, rows + 1]


def loss_of(model, ids, positions, rows, targets, all_logits):
    """Mean loss of the rows that predict a target."""
    with torch.autocast(ids.device.type, dtype=torch.bfloat16):
        if all_logits:
            logits = model(input_ids=ids, position_ids=positions).logits[0, rows]
        else:
            logits = model(input_ids=ids, position_ids=positions, logits_to_keep=rows).logits[0]
    return F.cross_entropy(logits.float(), targets)


def adafactor(model, rate):
    return Adafactor(model.parameters(), lr=rate, scale_parameter=False, relative_step=False, warmup_init=False)


def step(model, optimizer, packed, all_logits):
    loss = loss_of(model, *packed, all_logits)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss


def measure(speed, all_logits):
    """Seconds of a training step, and memory at its peak."""
    model = build(speed["config"], "cuda")
    packed = pack(speed["segments"], model.config.vocab_size, "cuda")
    found = len(packed[-1])
    assert found == speed["targets"], f"{found} targets, of flanc {speed['targets']}"
    optimizer, compiled = adafactor(model, 3e-5), torch.compile(model)
    for _ in range(WARM_UP):
        step(compiled, optimizer, packed, all_logits)
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(STEPS):
        step(compiled, optimizer, packed, all_logits)
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / STEPS, torch.cuda.max_memory_allocated()


def try_out(speed):
    """The same on the CPU: seconds that mean nothing, and no memory."""
    model = build(speed["config"], "cpu")
    packed = pack(speed["segments"], model.config.vocab_size, "cpu")
    assert len(packed[-1]) == speed["targets"], f"{len(packed[-1])} targets, not {speed['targets']}"
    with torch.no_grad():
        some, whole = (loss_of(model, *packed, all_logits).item() for all_logits in (False, True))
    assert abs(some - whole) < 1e-3 * whole, f"{some} of the rows asked for, {whole} of whole logits"
    optimizer, began = adafactor(model, 1e-3), time.perf_counter()
    losses = [step(model, optimizer, packed, all_logits=False).item() for _ in range(STEPS)]
    assert losses[-1] < losses[0] - 0.1, f"the loss went from {losses[0]} to {losses[-1]}"
    return (time.perf_counter() - began) / STEPS, 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=pathlib.Path, help="gpu.json of `flanc gpu all`")
    parser.add_argument("model", help="one that the report has")
    parser.add_argument("--dry", action="store_true", help="on the CPU, without figures: can it run here?")
    parser.add_argument("--all-logits", action="store_true", help="logits of all positions, not only of those with a target")
    arguments = parser.parse_args()
    speeds = {speed["model"]: speed for speed in json.loads(arguments.report.read_text()).get("models", [])}
    if arguments.model not in speeds:
        parser.error(f"the report has {', '.join(speeds) or 'no models'}")
    speed = speeds[arguments.model]
    seconds, peak = try_out(speed) if arguments.dry else measure(speed, arguments.all_logits)
    print(json.dumps({
        "tokens_per_second": speed["tokens_per_step"] / seconds, "step_seconds": seconds, "bytes": peak,
        "all_logits": arguments.all_logits, "versions": f"PyTorch {torch.__version__}, transformers {transformers.__version__}",
    }))


if __name__ == "__main__":
    main()
