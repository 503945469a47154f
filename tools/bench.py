"""Seconds of a step of GRPO here and in TRL: the same model, prompts, group size and tokens, one after the other in turns.

    python tools/bench.py                               the setting of a small model on one thread
    python tools/bench.py --preset ragged               long prompts, ragged lengths, half of the groups dead, V = 32,000
    python tools/bench.py --preset 1.5b --device cuda   a real size with random weights
    python tools/bench.py --prompts 16 --json out.json  any setting; --help names them

Needs the extra `bench`. Each side runs in a process of its own, `--repeats` times in turns; the first `--warmup` steps of each
are left out, and medians are over all others. The floor is the time that the arithmetic and the memory traffic of a step take
at the rates a large matrix product and a large copy reach on this machine: see tools/bench_floor.py.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from bench_floor import Shape, generation, rates, update

TINY = dict(hidden=128, intermediate=384, layers=4, heads=4, kv_heads=2, vocabulary=400)
QWEN = dict(hidden=1536, intermediate=8960, layers=28, heads=12, kv_heads=2, vocabulary=151936)
DEFAULTS = dict(
    **TINY, prompts=8, completions=8, prompt_tokens=20, new_tokens=32, ragged=False, dead=0.0, rows_per_pass=64, steps=12,
    warmup=3, repeats=3, threads=1, device="cpu", dtype="fp32", learning_rate=1e-3, activation_checkpointing=False, bare=False,
    peer_mode="hf", peer_weights="fp32",
)  # fmt: skip
PRESETS = {
    "script": {},
    "ragged": dict(vocabulary=32000, prompts=4, completions=16, prompt_tokens=256, new_tokens=64, ragged=True, dead=0.5),
    "1.5b": dict(
        **QWEN, prompts=8, completions=8, prompt_tokens=128, new_tokens=256, rows_per_pass=16, steps=4, warmup=1, repeats=1,
        dtype="bf16", learning_rate=1e-6, threads=8,
    ),
}  # fmt: skip
PARTS = {"whole_s": "whole step", "generation_s": "generation", "rest_s": "update and loop"}


def make_model(folder: Path, setting: dict) -> int:
    """A Qwen2 with random weights and a tokenizer with a token per byte; returns its number of weights.

    Ragged: as many tokens end a row as make `new_tokens / 2` its mean length before the cut. Otherwise none that is drawn does.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    size, alphabet = setting["vocabulary"], pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        [],
        trainers.BpeTrainer(vocab_size=258, special_tokens=["<pad>", "<bos>"], initial_alphabet=alphabet, show_progress=False),
    )
    tokenizer.add_special_tokens([f"<filler{i}>" for i in range(size - 258)] + ["<eos>"])
    special = dict(pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special, padding_side="left").save_pretrained(folder)
    ends = [size, *range(2, 2 + max(1, round(size / (setting["new_tokens"] / 2))))] if setting["ragged"] else [size]
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=size, hidden_size=setting["hidden"], intermediate_size=setting["intermediate"],
        num_hidden_layers=setting["layers"], num_attention_heads=setting["heads"], num_key_value_heads=setting["kv_heads"],
        max_position_embeddings=4096, bos_token_id=1, eos_token_id=ends, pad_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.device(setting["device"]):
        model = Qwen2ForCausalLM(config).to(torch.bfloat16 if setting["dtype"] == "bf16" else torch.float32)
    model.generation_config.eos_token_id = ends
    model.save_pretrained(folder, max_shard_size="100GB")
    return sum(weight.numel() for weight in model.parameters())


def run_side(side: str, file: Path, threads: int) -> dict:
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
        "TRL_EXPERIMENTAL_SILENCE": "1",
    }  # fmt: skip
    command = [sys.executable, str(Path(__file__).with_name("bench_sides.py")), side, str(file)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the side {side} ended with code {done.returncode}:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def medians(runs: list[dict], warmup: int) -> dict[str, float]:
    steps = [step for run in runs for step in run["steps"][warmup:]]
    tokens = [sum(map(sum, step["completions"])) for step in steps]
    return {name: statistics.median(step[name] for step in steps) for name in PARTS} | {
        "tokens": statistics.median(tokens),
        "generated_per_s": statistics.median(t / s["generation_s"] for t, s in zip(tokens, steps, strict=True)),
        "trained_per_s": statistics.median(t / s["rest_s"] for t, s in zip(tokens, steps, strict=True)),
        "peak_gib": max(run["peak_gib"] for run in runs),
    }


def floors(setting: dict, run: dict, weights: int, speed: tuple[float, float]) -> dict[str, float]:
    """Medians over the steps of a run: seconds and operations of both phases at the least."""
    shape = Shape(**{name: setting[name] for name in Shape.__dataclass_fields__})
    width = 2 if setting["dtype"] == "bf16" else 4
    generated, updated = [], []
    for prompts, step in list(zip(run["prompts"], run["steps"], strict=True))[setting["warmup"] :]:
        generated.append(generation(shape, prompts, step["completions"], width))
        live = 1.0 - setting["dead"]
        work = update(shape, prompts, step["completions"], width, weights)
        updated.append((live * work.flops, work.bytes))
    return {
        "generation_s": statistics.median(work.seconds(*speed) for work in generated),
        "generation_flops": statistics.median(work.flops for work in generated),
        "generation_bytes": statistics.median(work.bytes for work in generated),
        "rest_s": statistics.median(max(flops / speed[0], moved / speed[1]) for flops, moved in updated),
        "update_flops": statistics.median(flops for flops, _ in updated),
        "update_bytes": statistics.median(moved for _, moved in updated),
    }


def show(report: dict) -> None:
    sides, floor = report["sides"], report["floor"]
    floor_of = {"whole_s": floor["generation_s"] + floor["rest_s"], **floor}
    print(
        f"{'':18}"
        + "".join(f"{name:>14}" for name in sides)
        + f"{'ratio':>10}{'floor':>12}{next(iter(sides)) + ' / floor':>20}"
    )
    for part, label in PARTS.items():
        values = [side[part] for side in sides.values()]
        ratio = f"{values[1] / values[0]:.2f}" if len(values) > 1 else "-"  # of the second to the first
        row = f"{label:18}" + "".join(f"{value:>12.4f} s" for value in values) + f"{ratio:>10}{floor_of[part]:>10.4f} s"
        print(row + f"{values[0] / floor_of[part]:>20.1f}")
    for name, side in sides.items():
        share = floor["update_flops"] / side["rest_s"] / report["flops_per_s"]
        print(
            f"{name}: {side['tokens']:.0f} tokens a step; {side['generated_per_s']:.0f} tokens/s generated, "
            f"{side['trained_per_s']:.0f} trained; peak {side['peak_gib']:.2f} GiB; "
            f"{share:.1%} of the rate of a large product in the update"
        )
    print(f"rates: {report['flops_per_s'] / 1e9:.1f} GFLOP/s, {report['bytes_per_s'] / 1e9:.1f} GB/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=tuple(PRESETS), default="script")
    for name, value in DEFAULTS.items():
        kind = dict(action=argparse.BooleanOptionalAction) if isinstance(value, bool) else dict(type=type(value))
        parser.add_argument(f"--{name}", **kind, help=f"default {value}")
    parser.add_argument("--sides", nargs="+", choices=("fulgurite", "trl"), default=["fulgurite", "trl"])
    parser.add_argument("--json", type=Path, help="file for all figures")
    options = vars(parser.parse_args())
    given = {name: options[name] for name in DEFAULTS if options[name] is not None}
    setting = DEFAULTS | PRESETS[options["preset"]] | given
    with tempfile.TemporaryDirectory() as folder:
        weights = make_model(Path(folder), setting)
        file = Path(folder) / "setting.json"
        file.write_text(json.dumps(setting | {"model": folder}))
        runs: dict[str, list[dict]] = {side: [] for side in options["sides"]}
        for _ in range(setting["repeats"]):
            for side in runs:
                runs[side].append(run_side(side, file, setting["threads"]))
    torch.set_num_threads(setting["threads"])
    speed = rates(setting["device"], torch.bfloat16 if setting["dtype"] == "bf16" else torch.float32)
    report = {
        "setting": setting, "weights": weights, "torch": torch.__version__, "flops_per_s": speed[0], "bytes_per_s": speed[1],
        "sides": {side: medians(of_side, setting["warmup"]) for side, of_side in runs.items()},
        "floor": floors(setting, runs[options["sides"][0]][0], weights, speed), "runs": runs,
    }  # fmt: skip
    if options["json"]:
        options["json"].write_text(json.dumps(report))
    show(report)


if __name__ == "__main__":
    main()
