"""Seconds, memory and engine-trainer gap of GRPO at a real size, with random weights: nothing is downloaded.

    python tools/bench_gpu_round.py round --engine vllm         rounds of GRPO: seconds per phase, tokens/s, memory, gap
    python tools/bench_gpu_round.py round --engine embedded     the same with the embedded engine
    python tools/bench_gpu_round.py engine                      a weight load, its checks, sleep and wake
    ... --device cpu --shape small --prompts 4 --tokens 16      on a laptop, to try the script itself

Prints a line of JSON per round or step; the last line is a summary in words. The model is freshly drawn, its final norm raised
so that the distributions are less flat; a trained model's are sharper still, so its gap is another one.
"""

import argparse
import json
import random
import tempfile
import time
from pathlib import Path

import lightning as L
import torch

from fulgurite.callbacks.timing import peak_memory
from fulgurite.data.rollout_datamodule import RolloutDataModule
from fulgurite.engines.transformers_engine import TransformersEngine
from fulgurite.engines.vllm_engine import VLLMEngine
from fulgurite.engines.weights import ChecksummedWeights
from fulgurite.guards.engine_weights import check_checksums
from fulgurite.losses.importance import gap_statistics
from fulgurite.models.causal_lm import CausalLM
from fulgurite.models.sources import load_tokenizer
from fulgurite.models.tiny import TinyModel
from fulgurite.modules.grpo import GRPO
from fulgurite.tasks.protocol import Task
from fulgurite.types import Prompt, SamplingSpec, Verdict

SHAPES = {
    "1.5b": dict(hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12, num_key_value_heads=2,
                 vocab_size=151936),
    "small": dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
                  vocab_size=512),
}  # fmt: skip
PROMPT_TOKENS = 64


class EvenTokens(Task):
    """Random text; the reward is the share of even token ids, which random weights earn and every group differs in."""

    def prompts(self, split: str) -> list[Prompt]:
        draw = random.Random(0)
        texts = ["".join(draw.choices("abcdefghij 0123456789", k=PROMPT_TOKENS)) for _ in range(256)]
        return [Prompt(id=f"{i}", text=text) for i, text in enumerate(texts)]

    def judge(self, prompt: Prompt, completion) -> Verdict:
        reward = sum(token % 2 == 0 for token in completion.token_ids) / len(completion.token_ids)
        return Verdict("correct" if reward > 0.5 else "wrong", {"even": reward}, reward)


def make_model(folder: Path, shape: str, device: str) -> str:
    """A folder with random weights and a byte-level tokenizer; made once."""
    from transformers import AutoConfig, AutoModelForCausalLM

    if not (folder / "model.safetensors").exists():
        tokenizer = load_tokenizer(TinyModel())
        config = AutoConfig.for_model(
            "qwen2", **SHAPES[shape], max_position_embeddings=4096, tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
        )  # fmt: skip
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        model.model.norm.weight.data.fill_(4.0)
        model.save_pretrained(folder, max_shard_size="100GB")
        tokenizer.save_pretrained(folder)
    return str(folder)


def make_engine(options):
    if options.engine == "embedded":
        return TransformersEngine()
    return VLLMEngine(memory_share=options.memory_share, max_tokens=PROMPT_TOKENS + options.tokens)


def used_gib(device: str) -> float:
    """Memory in use: of the whole GPU, whoever uses it; on a CPU the largest so far of this process."""
    if device == "cuda":
        free, total = torch.cuda.mem_get_info()
        return (total - free) / 2**30
    return peak_memory(torch.device("cpu"))["memory/peak_rss_gib"]


def show(**figures) -> None:
    print(json.dumps({k: round(v, 5) if isinstance(v, float) else v for k, v in figures.items()}), flush=True)


class Stopwatch:
    """Adds up the seconds of calls. Starting the engine is part of the phase sync; here it is also known alone."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, function):
        def timed(*args, **kwargs):
            begin = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - begin

        return timed


class Recorder(L.Callback):
    """A line per round; `memory` is the most in use at the end of each phase, `torch_peak` the most that torch allocated."""

    def __init__(self, device: str, start: Stopwatch) -> None:
        self.device, self.start = device, start
        self.memory: dict[str, float] = {}
        self.torch_peak: dict[str, float] = {}
        self.rounds: list[dict[str, float]] = []
        self.phase = ""

    def on_train_start(self, trainer, module) -> None:
        self.before = self._reading(module)
        module.clock.listeners.append(self._on_phase)

    def _on_phase(self, phase: str) -> None:
        ended, self.phase = self.phase or "other", phase
        self.memory[ended] = max(self.memory.get(ended, 0.0), used_gib(self.device))
        if self.device == "cuda":
            self.torch_peak[ended] = max(self.torch_peak.get(ended, 0.0), torch.cuda.max_memory_allocated() / 2**30)
            torch.cuda.reset_peak_memory_stats()

    def _reading(self, module) -> dict[str, float]:
        seconds = {f"{phase}_s": value for phase, value in module.clock.wall.items()}
        tokens = {"sampled": float(module.sampled_tokens), "trained": float(module.trained_tokens)}
        return {**seconds, "start_s": self.start.seconds, **tokens}

    def on_train_epoch_end(self, trainer, module) -> None:
        now = self._reading(module)
        figures = {name: value - self.before[name] for name, value in now.items()}
        self.before = now
        figures["sampled_tokens_per_s"] = figures["sampled"] / figures["sample_s"]
        figures["trained_tokens_per_s"] = figures["trained"] / figures["train_s"]
        figures |= {name.removeprefix("mismatch/"): v for name, v in module.last_update.items() if name.startswith("mismatch/")}
        self.rounds.append(figures)
        show(round=trainer.current_epoch, **figures)


def bench_round(options, model: str) -> str:
    start, engine = Stopwatch(), make_engine(options)
    engine.bind = start.around(engine.bind)
    data = RolloutDataModule(
        EvenTokens(), options.prompts, options.completions, SamplingSpec(max_new_tokens=options.tokens), engine=engine
    )
    recorder = Recorder(options.device, start)
    trainer = L.Trainer(
        accelerator=options.device, devices=1, precision="bf16-mixed", max_epochs=options.rounds, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
        num_sanity_val_steps=0, inference_mode=False, callbacks=[recorder],
    )  # fmt: skip
    trainer.fit(GRPO(model, tokens_per_microbatch=options.tokens_per_microbatch), datamodule=data)
    show(memory_gib_at_the_end_of=recorder.memory, torch_peak_gib_in=recorder.torch_peak)
    last = recorder.rounds[-1]
    return (
        f"{options.engine}: sample {last['sample_s']:.1f} s ({last['sampled_tokens_per_s']:.0f} tokens/s), sync "
        f"{last['sync_s']:.2f} s (check {last['check_s']:.2f}), train {last['train_s']:.1f} s; gap "
        f"{last['logprob_gap_mean_nats']:.2g} mean, {last['logprob_gap_p99_nats']:.2g} p99, "
        f"{last['logprob_gap_max_nats']:.2g} max; peak {max(recorder.memory.values()):.1f} GiB"
    )


def gap(engine, model: CausalLM, options) -> dict[str, float]:
    """Between the engine's log-probabilities and those of the trainer's mixed precision, on fresh completions."""
    prompts = [Prompt(id=f"{i}", token_ids=tuple(range(3 + i, 3 + i + PROMPT_TOKENS))) for i in range(options.prompts)]
    gaps = []
    for prompt, completion in zip(prompts, engine.generate(prompts, SamplingSpec(max_new_tokens=options.tokens)), strict=True):
        row = torch.tensor([prompt.token_ids + completion.token_ids], device=options.device)
        keep = torch.arange(row.shape[1], device=options.device)[None] >= len(prompt.token_ids)
        with torch.no_grad(), torch.autocast(options.device, torch.bfloat16):
            scored = model.score(row, keep).logprobs[keep]
        gaps.append((scored.cpu() - torch.tensor(completion.logprobs)).abs())
    return {f"gap_{name}_nats": float(value) for name, value in gap_statistics(torch.cat(gaps)).items()}


def bench_engine(options, model: str) -> str:
    policy, engine = CausalLM.load(model).eval().to(options.device), make_engine(options)

    def step(name: str, work, **more) -> float:
        begin = time.perf_counter()
        result = work()
        if options.device == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - begin
        show(step=name, seconds=seconds, used_gib=used_gib(options.device), **more, **(result or {}))
        return seconds

    def weights() -> ChecksummedWeights:
        return ChecksummedWeights(policy.named_full_weights(), engine.dtype)

    def check() -> dict[str, int]:
        return {"compared": check_checksums(sent.checksums(), engine.fingerprint()), "streamed": len(sent.sizes)}

    step("start", lambda: engine.bind(policy, load_tokenizer(model)))
    step("first load", lambda: engine.load_weights(weights(), 0))
    load = step("load without checksums", lambda: engine.load_weights(policy.named_full_weights(), 1))
    sent = weights()
    checksummed = step("load", lambda: engine.load_weights(sent, 2))
    compared = step("compare checksums", check)
    step("sample", lambda: gap(engine, policy, options))
    awake = used_gib(options.device)
    asleep_s = step("sleep", engine.sleep)
    asleep = used_gib(options.device)
    sent = weights()
    woken = step("wake and load", lambda: engine.load_weights(sent, 3))
    step("compare checksums after wake", check)
    after = gap(engine, policy, options)
    show(step="sample after wake", used_gib=used_gib(options.device), **after)
    return (
        f"load {load:.2f} s, with checksums {checksummed:.2f} s, compare {compared:.2f} s; sleep {asleep_s:.2f} s, "
        f"{awake:.1f} -> {asleep:.1f} GiB, wake and load {woken:.2f} s; gap after wake {after['gap_mean_nats']:.2g} nats"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("round", "engine"))
    parser.add_argument("--engine", choices=("vllm", "embedded"), default="vllm")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--shape", choices=tuple(SHAPES), default="1.5b")
    parser.add_argument("--model", type=Path, help="folder to make the model in, or to find it again")
    for name, value in {"rounds": 3, "prompts": 16, "completions": 8, "tokens": 512, "tokens_per_microbatch": 8192}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--memory_share", type=float, default=0.3)
    options = parser.parse_args()
    if options.part == "engine" and options.engine == "embedded":
        parser.error("part engine is about an engine with weights of its own; expected --engine vllm")
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(options.model or Path(folder), options.shape, options.device)
        print({"round": bench_round, "engine": bench_engine}[options.part](options, model))


if __name__ == "__main__":
    main()
