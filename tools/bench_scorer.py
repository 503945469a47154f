"""Seconds and peak memory of one micro-batch, forward and backward, against the size of a chunk of logits.

    python tools/bench_scorer.py                                 the shape of a 1.5B model, bfloat16 on a GPU
    python tools/bench_scorer.py --device cpu --shape small --rows 4 --length 64

Each line is one size; `whole` makes all logits at once, with torch's own log-softmax, as a loss without chunks does. Weights
are random. Peak memory is what the pass added to the weights.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from bench_gpu_round import SHAPES
from fulgurite.models import scoring
from fulgurite.models.causal_lm import CausalLM


def whole(model: CausalLM, tokens: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    logits = model.head_logits(model.hidden(tokens, keep))
    return logits.log_softmax(-1).gather(-1, tokens[keep][:, None])[:, 0]


def measure(
    model: CausalLM, tokens: torch.Tensor, keep: torch.Tensor, mebibytes: int | None, repeats: int
) -> tuple[float, float]:
    """(median seconds, peak GiB above the weights)"""
    device, seconds = tokens.device.type, []
    if mebibytes:
        scoring.LOGITS_BYTES[device] = mebibytes << 20
    for _ in range(repeats + 1):
        model.zero_grad(set_to_none=True)
        if device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        begin = time.perf_counter()
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            logprobs = model.score(tokens, keep).logprobs[keep] if mebibytes else whole(model, tokens, keep)
        logprobs.mean().backward()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    peak = (torch.cuda.max_memory_allocated() - before) / 2**30 if device == "cuda" else float("nan")
    return statistics.median(seconds[1:]), peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--shape", choices=tuple(SHAPES), default="1.5b")
    for name, value in {"rows": 16, "length": 512, "repeats": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--mebibytes", type=int, nargs="+", default=[12, 48, 96, 192, 384, 768])
    options = parser.parse_args()
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    with torch.device(options.device):
        model = CausalLM(Qwen2ForCausalLM(Qwen2Config(**SHAPES[options.shape], tie_word_embeddings=True)).float())
        tokens = torch.randint(SHAPES[options.shape]["vocab_size"], (options.rows, options.length))
    keep = torch.zeros_like(tokens, dtype=torch.bool)
    keep[:, 1:] = True
    for activations in (False, True):
        if activations:
            model.checkpoint_activations()
        print(f"{options.rows} rows of {options.length} tokens, activations {'computed again' if activations else 'kept'}")
        for size in [*options.mebibytes, None]:
            try:
                seconds, peak = measure(model, tokens, keep, size, options.repeats)
            except torch.OutOfMemoryError:
                print(f"{size or 'whole':>8} MiB: out of memory", flush=True)
                continue
            rate = keep.sum() / seconds
            print(f"{size or 'whole':>8} MiB: {seconds:.4f} s, {rate:.0f} tokens/s, peak {peak:.2f} GiB", flush=True)


if __name__ == "__main__":
    main()
