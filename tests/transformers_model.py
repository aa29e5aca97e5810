"""What PyTorch and transformers compute, for the model of the trainer to be compared with.

    python tests/transformers_model.py make              writes tests/fixtures/model/ anew (the tests read it; PyTorch is not needed)
    python tests/transformers_model.py check DIRECTORY   loads a checkpoint of flanc's and compares its logits with expected.json

A fixture is a checkpoint as transformers saves it, with random weights, and golden.safetensors beside it:

    ids, lengths      segments, one after another
    trained           1 where a token is trained (never the first of a segment)
    logits            of all positions but each segment's last
    loss, gradient.*  mean loss of the trained tokens, and its gradients
    steps.*           losses before each of ten steps of transformers' Adafactor, and after the last

Segments go through PyTorch one by one, without padding or masks; flanc packs them into one row. Made with torch 1.13.1
and transformers 4.44.2. That version has no Qwen3: its norm of queries and keys is put behind the projections here.
"""

import json
import pathlib
import shutil
import sys

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.optimization import Adafactor

ROOT = pathlib.Path(__file__).parent / "fixtures" / "model"

SMALL = dict(
    vocab_size=67, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64, rms_norm_eps=1e-5,
)
CASES = {
    # Grouped queries, a head of its own.
    "llama": LlamaConfig(**SMALL, tie_word_embeddings=False),
    # As many key as query heads, tied head, biases, Llama 3's rotations. Of three frequencies the first is kept, the others are
    # divided; none is interpolated (a test of src/model/config.rs has those).
    "llama3-tied": LlamaConfig(**{
        **SMALL, "num_key_value_heads": 4, "tie_word_embeddings": True, "attention_bias": True, "rope_theta": 500.0,
        "rope_scaling": {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 32}}),
    # One key head for all, odd sizes, stretched rotations.
    "llama-odd": LlamaConfig(
        vocab_size=101, hidden_size=30, intermediate_size=33, num_hidden_layers=3, num_attention_heads=3,
        num_key_value_heads=1, max_position_embeddings=64, rope_scaling={"rope_type": "linear", "factor": 2.0},
        tie_word_embeddings=False),
    "qwen2": Qwen2Config(**SMALL, tie_word_embeddings=True),
    "qwen2-untied": Qwen2Config(**{**SMALL, "num_attention_heads": 6, "num_key_value_heads": 3, "rope_theta": 1e6}),
    "qwen3": LlamaConfig(**SMALL, tie_word_embeddings=True),
    # YaRN, as documented for Qwen: its formula is that of all classes, but this version's Qwen2 has none. The first of eight
    # frequencies is kept, the next four are interpolated, the others divided. This version takes `max_position_embeddings`
    # for the original context, so that the two have to be the same.
    "llama-yarn": LlamaConfig(**{
        **SMALL, "hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "rope_theta": 100.0,
        "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}}),
}
LENGTHS = [13, 1, 29, 2, 19]


class NormedHeads(torch.nn.Module):
    """A projection whose heads are normed, as Qwen3 norms queries and keys."""

    def __init__(self, linear, head_dim, eps):
        super().__init__()
        self.linear, self.norm, self.head_dim = linear, LlamaRMSNorm(head_dim, eps), head_dim

    def forward(self, x):
        y = self.linear(x)
        return self.norm(y.view(*y.shape[:-1], -1, self.head_dim)).view(y.shape)


def build(name, config):
    model = (Qwen2ForCausalLM if name.startswith("qwen2") else LlamaForCausalLM)(config)
    if name == "qwen3":
        for layer in model.model.layers:
            attention = layer.self_attn
            attention.q_proj = NormedHeads(attention.q_proj, attention.head_dim, config.rms_norm_eps)
            attention.k_proj = NormedHeads(attention.k_proj, attention.head_dim, config.rms_norm_eps)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            # Large enough for attention to choose, and for norms and biases to matter.
            parameter.normal_(1.0 if "norm" in parameter_name else 0.0, 0.2)
    return model


def stored_name(name):
    """The name of a parameter in a checkpoint."""
    for head in "qk":
        name = name.replace(f"{head}_proj.linear.", f"{head}_proj.").replace(f"{head}_proj.norm.", f"{head}_norm.")
    return name


def mean_loss(model, segments, masks):
    total, count = 0.0, 0
    for ids, mask in zip(segments, masks):
        targets = torch.where(mask.bool(), ids, torch.full_like(ids, -100))[1:]
        if (targets != -100).any():
            logits = model(input_ids=ids[None]).logits[0, :-1]
            total = total + torch.nn.functional.cross_entropy(logits, targets, reduction="sum", ignore_index=-100)
            count += int((targets != -100).sum())
    return total / count


def make():
    shutil.rmtree(ROOT, ignore_errors=True)
    for number, (name, config) in enumerate(CASES.items()):
        torch.manual_seed(number)
        config.use_cache = False
        model = build(name, config)
        directory = ROOT / name
        if name == "qwen3":
            directory.mkdir(parents=True)
            weights = {stored_name(n): p.detach().clone() for n, p in model.named_parameters()}
            save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
            raw = {**json.loads(config.to_json_string()), "model_type": "qwen3", "head_dim": 6}
            (directory / "config.json").write_text(json.dumps(raw, indent=2) + "\n")
        else:
            # One of them in several files.
            model.save_pretrained(directory, max_shard_size="20KB" if name == "llama" else "5GB")
            (directory / "generation_config.json").unlink()

        segments = [torch.randint(config.vocab_size, (n,)) for n in LENGTHS]
        masks = [torch.randint(2, (n,)) for n in LENGTHS]
        for mask in masks:
            mask[0] = 0
        golden = {
            "ids": torch.cat(segments).int(),
            "lengths": torch.tensor(LENGTHS, dtype=torch.int32),
            "trained": torch.cat(masks).int(),
            "logits": torch.cat([model(input_ids=s[None]).logits[0, :-1] for s in segments]).detach(),
        }
        loss = mean_loss(model, segments, masks)
        loss.backward()
        golden["loss"] = loss.detach()[None]
        for parameter_name, parameter in model.named_parameters():
            golden[f"gradient.{stored_name(parameter_name)}"] = parameter.grad.clone()

        start = {n: p.detach().clone() for n, p in model.named_parameters()}
        for kind, settings in {
            "absolute": dict(lr=1e-2, scale_parameter=False, relative_step=False),
            "scaled": dict(lr=1e-2, scale_parameter=True, relative_step=False, weight_decay=0.1),
            "relative": dict(lr=None, scale_parameter=True, relative_step=True),
        }.items():
            with torch.no_grad():
                for parameter_name, parameter in model.named_parameters():
                    parameter.copy_(start[parameter_name])
            optimizer = Adafactor(model.parameters(), **settings)
            losses = []
            for step in range(11):
                optimizer.zero_grad()
                loss = mean_loss(model, segments, masks)
                losses.append(loss.item())
                if step < 10:
                    loss.backward()
                    optimizer.step()
            golden[f"steps.{kind}"] = torch.tensor(losses)
        save_file({n: t.contiguous() for n, t in golden.items()}, directory / "golden.safetensors")
        print(name, sum(p.numel() for p in model.parameters()), golden["steps.absolute"].tolist())


def check(directory):
    directory = pathlib.Path(directory)
    expected = json.loads((directory / "expected.json").read_text())
    model, loading = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True, torch_dtype=torch.float32)
    assert not any(loading.values()), loading
    ours, at, worst = torch.tensor(expected["logits"]), 0, 0.0
    with torch.no_grad():
        for ids in expected["segments"]:
            logits = model(input_ids=torch.tensor([ids])).logits[0, :-1].reshape(-1).float()
            part = ours[at : at + logits.numel()]
            at += logits.numel()
            if len(part):
                worst = max(worst, ((logits - part).norm() / logits.norm()).item())
    assert at == len(ours), (at, len(ours))
    print(f"transformers {transformers.__version__}: relative difference of the logits {worst:.1e}")
    assert worst < expected["tolerance"], worst


if __name__ == "__main__":
    if sys.argv[1:] == ["make"]:
        make()
    elif len(sys.argv) == 3 and sys.argv[1] == "check":
        check(sys.argv[2])
    else:
        sys.exit(__doc__)
