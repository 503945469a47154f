"""One side of `tools/bench.py` in a process of its own: rounds of GRPO with Fulgurite or TRL, and a line of JSON at the end.

The line: {"steps": [{"whole_s", "generation_s", "rest_s", "completions": [[tokens per completion] per prompt]}], "peak_gib",
"prompts": [[prompt tokens] per step]}. `rest_s` is what the step took beyond sampling and judging: the update and all that a
loop costs.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from pathlib import Path

import torch


class Setting:
    """What both sides get; made from the command line's JSON."""

    def __init__(self, values: dict) -> None:
        self.__dict__.update(values)

    def texts(self) -> list[str]:
        """Prompts of letters, a token each; with ragged lengths from a quarter of `prompt_tokens` to all of it."""
        draw = random.Random(0)
        shortest = max(1, self.prompt_tokens // 4) if self.ragged else self.prompt_tokens
        lengths = [draw.randint(shortest, self.prompt_tokens) for _ in range(self.prompts * (self.steps + 1))]
        return ["".join(draw.choices("abcdefghij", k=length)) for length in lengths]


def reward(setting: Setting, prompt: str, tokens: list[int]) -> float:
    """The share of even tokens, which random text earns and in which completions differ; 0 for a share of the prompts."""
    if setting.dead and random.Random(prompt).random() < setting.dead:
        return 0.0
    return sum(token % 2 == 0 for token in tokens) / len(tokens)


def peak_gib() -> float:
    from fulgurite.callbacks.timing import peak_memory

    memory = peak_memory(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    return memory.get("memory/peak_cuda_gib", memory["memory/peak_rss_gib"])


def fulgurite(setting: Setting) -> dict:
    import lightning as L

    from fulgurite.callbacks.guards import Guards
    from fulgurite.callbacks.round_metrics import RoundMetrics
    from fulgurite.callbacks.timing import PhaseTimer
    from fulgurite.data.rollout_datamodule import RolloutDataModule
    from fulgurite.engines.transformers_engine import TransformersEngine
    from fulgurite.modules.grpo import GRPO
    from fulgurite.modules.optimizer import OptimizerSpec
    from fulgurite.tasks.protocol import Task
    from fulgurite.types import Prompt, SamplingSpec, Verdict

    class EvenTokens(Task):
        def prompts(self, split: str) -> list[Prompt]:
            return [Prompt(id=f"{i}", text=text) for i, text in enumerate(setting.texts())]

        def judge(self, prompt: Prompt, completion) -> Verdict:
            value = reward(setting, prompt.text, list(completion.token_ids))
            return Verdict("correct" if value > 0.5 else "wrong", {"even": value}, value)

    class Recorder(L.Callback):
        def __init__(self) -> None:
            self.steps, self.lengths = [], []

        def on_train_start(self, trainer, module) -> None:
            self.before = self.reading(module)

        def on_round(self, trainer, module, sampled, held) -> None:
            size = setting.completions
            lengths = [len(completion.token_ids) for completion in sampled.completions]
            self.completions = [lengths[i : i + size] for i in range(0, len(lengths), size)]
            self.prompts = [len(prompt.token_ids) for prompt in sampled.prompts]

        def reading(self, module) -> dict:
            if setting.device == "cuda":
                torch.cuda.synchronize()
            return {"now": time.perf_counter(), **module.clock.wall}

        def on_train_epoch_end(self, trainer, module) -> None:
            now = self.reading(module)
            spent = {name: now[name] - self.before[name] for name in now}
            self.before = now
            sampling = spent["sample"] + spent["sync"] + spent["check"]
            rest = spent["now"] - sampling - spent["judge"]
            self.steps.append(dict(whole_s=spent["now"], generation_s=sampling, rest_s=rest, completions=self.completions))
            self.lengths.append(self.prompts)

    recorder = Recorder()
    data = RolloutDataModule(
        EvenTokens(), setting.prompts, setting.completions, SamplingSpec(max_new_tokens=setting.new_tokens),
        engine=TransformersEngine(max_rows=setting.prompts * setting.completions),
    )  # fmt: skip
    width = setting.rows_per_pass * (setting.prompt_tokens + setting.new_tokens)
    module = GRPO(
        setting.model,
        optimizer=OptimizerSpec(learning_rate=setting.learning_rate),
        tokens_per_microbatch=width,
        activation_checkpointing=setting.activation_checkpointing,
    )
    watch = [] if setting.bare else [Guards(max_truncated=1.0, max_all_equal=2.0), RoundMetrics(), PhaseTimer()]
    trainer = L.Trainer(
        accelerator=setting.device, devices=1, precision="bf16-mixed" if setting.dtype == "bf16" else "32-true",
        max_epochs=setting.steps, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, num_sanity_val_steps=0, inference_mode=False,
        callbacks=[*watch, recorder],
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    return {"steps": recorder.steps, "prompts": recorder.lengths, "peak_gib": peak_gib()}


def trl(setting: Setting) -> dict:
    import tempfile

    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    completions, prompts = [], []

    def rewards(prompts: list[str], completion_ids: list[list[int]], **_) -> list[float]:
        return [reward(setting, *pair) for pair in zip(prompts, completion_ids, strict=True)]

    dataset = Dataset.from_list([{"prompt": text} for text in setting.texts()])
    rows = setting.prompts * setting.completions
    options = {"static": {"cache_implementation": "static"}, "paged": {"use_transformers_continuous_batching": True}}
    weights = torch.bfloat16 if setting.peer_weights == "bf16" else torch.float32
    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder, per_device_train_batch_size=min(rows, setting.rows_per_pass),
            num_generations=setting.completions,
            gradient_accumulation_steps=max(1, rows // setting.rows_per_pass), generation_batch_size=rows,
            max_completion_length=setting.new_tokens, max_steps=setting.steps, learning_rate=setting.learning_rate,
            lr_scheduler_type="constant", beta=0.0, loss_type="grpo", logging_steps=1, report_to="none", save_strategy="no",
            use_cpu=setting.device == "cpu", bf16=setting.dtype == "bf16", disable_tqdm=True, seed=0,
            gradient_checkpointing=setting.activation_checkpointing, model_init_kwargs={"dtype": weights},
            dataloader_num_workers=0, **options.get(setting.peer_mode, {}),
        )  # fmt: skip
        trainer = GRPOTrainer(setting.model, rewards, config, train_dataset=dataset)
    spent = {"generation": 0.0, "prepare": 0.0}

    def timed(name: str, key: str) -> None:
        inner = getattr(trainer, name)

        def call(*args, **kwargs):
            begin = time.perf_counter()
            result = inner(*args, **kwargs)
            if setting.device == "cuda":
                torch.cuda.synchronize()
            spent[key] += time.perf_counter() - begin
            return result

        setattr(trainer, name, call)

    def keep_lengths(prompt_ids, *args, **kwargs):
        ids, logprobs = generate(prompt_ids, *args, **kwargs)
        size = setting.completions
        completions.append([[len(row) for row in ids[i : i + size]] for i in range(0, rows, size)])
        prompts.append([len(row) for row in prompt_ids[::size]])
        return ids, logprobs

    generate = trainer._generate_single_turn
    trainer._generate_single_turn = keep_lengths
    timed("_generate", "generation")
    timed("_generate_and_score_completions", "prepare")
    stamps = []

    from transformers import TrainerCallback

    class Stamp(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            if setting.device == "cuda":
                torch.cuda.synchronize()
            stamps.append((time.perf_counter(), dict(spent)))

    trainer.add_callback(Stamp())
    begin = time.perf_counter()
    trainer.train()
    steps, before = [], (begin, {"generation": 0.0, "prepare": 0.0})
    for stamp, lengths in zip(stamps, completions, strict=True):
        whole = stamp[0] - before[0]
        generation, prepare = (stamp[1][key] - before[1][key] for key in ("generation", "prepare"))
        steps.append(dict(whole_s=whole, generation_s=generation, rest_s=whole - prepare, completions=lengths))
        before = stamp
    return {"steps": steps, "prompts": prompts, "peak_gib": peak_gib()}


def main() -> None:
    setting = Setting(json.loads(Path(sys.argv[2]).read_text()))
    if setting.device == "cpu":
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    result = {"fulgurite": fulgurite, "trl": trl}[sys.argv[1]](setting)
    print("\n" + json.dumps(result))


if __name__ == "__main__":
    main()
