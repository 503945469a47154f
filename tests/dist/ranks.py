"""The same five updates on one process and on two; `python ranks.py CASE FOLDER` leaves a record per way and rank.

See test_two_ranks.py. Models are float64: Adam turns a gradient that is 0 up to rounding into a step, so in float32 two
orders of a sum are two trajectories.
"""

import os
import sys
import warnings
from functools import partial
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "methods")]
warnings.filterwarnings("ignore")

import torch  # noqa: E402
from tabular import Recorder  # noqa: E402

from forking import run_forked  # noqa: E402
from fulgurite.callbacks.codistillation import CoDistillation  # noqa: E402
from fulgurite.callbacks.downsampling import DownSampling  # noqa: E402
from fulgurite.callbacks.pruning import CompletionPruning  # noqa: E402
from fulgurite.callbacks.tsallis import TsallisReweighting  # noqa: E402
from fulgurite.data.gold import GoldAnswer  # noqa: E402
from fulgurite.data.hints import Hints  # noqa: E402
from fulgurite.data.supervised_datamodule import SupervisedDataModule  # noqa: E402
from fulgurite.models.adapters import LoRA  # noqa: E402
from fulgurite.models.causal_lm import CausalLM  # noqa: E402
from fulgurite.models.tiny import TinyModel  # noqa: E402
from fulgurite.modules.base import COUNTERS  # noqa: E402
from fulgurite.modules.codistill import CoDistillGRPO  # noqa: E402
from fulgurite.modules.latent_reasoning import LatentReasoning  # noqa: E402
from fulgurite.modules.supervised import SupervisedFineTuning  # noqa: E402
from fulgurite.parallel import FSDP2Strategy  # noqa: E402
from fulgurite.types import Prompt, SamplingSpec, Verdict  # noqa: E402
from tiny import TINY, EvenDigits, OptimizerSpec, tiny_data, tiny_grpo, tiny_trainer  # noqa: E402

UPDATES = 5
WAYS = {"one": (1, "auto"), "fsdp2": (2, "fsdp2"), "ddp": (2, "ddp")}
STRATEGIES = {
    "kl, little memory": partial(FSDP2Strategy, cpu_offload=True, reshard_after_forward=False),
    "kl, bfloat16": partial(FSDP2Strategy, gather_dtype="bfloat16"),
}
"""{case: its kind of fsdp2}"""
FSDP2_ONLY = ("codistill", *STRATEGIES)
OPTIMIZER = OptimizerSpec(learning_rate=1e-2, schedule="linear", warmup_updates=1, max_grad_norm=0.5)
LARGE = TinyModel(**{**vars(TINY), "hidden_size": 32, "seed": 1})
LENGTHS = (1, 200, 3, 60, 9, 120)


class Ragged(EvenDigits):
    """Prompts of 1 to 200 tokens; every third one rewards whatever is said, so its group is dead."""

    def prompts(self, split):
        return [
            Prompt(id=f"q{i}", text="".join(str(i * k % 10) for k in range(LENGTHS[i % 6])), answer="even" if i % 3 else "any")
            for i in range(18)
        ]

    def judge(self, prompt, completion):
        if os.environ.get("T_FAILS") and os.environ["LOCAL_RANK"] == "1":
            raise RuntimeError("no verdicts today")
        return super().judge(prompt, completion) if prompt.answer == "even" else Verdict("correct", {"even": 1.0}, 1.0)

    def gold(self, prompt):
        return "8" * (1 + len(prompt.text) % 4)

    def solution(self, prompt):
        return prompt.text[:7] + "#" + "8" * (1 + len(prompt.text) % 4)


def rounds(**settings):
    sampling = SamplingSpec(max_new_tokens=12)
    return tiny_data(task=Ragged(digits=1), prompts_per_step=3, sampling=sampling, zero_variance="drop", **settings)


def grpo(**settings):
    return tiny_grpo(optimizer=OPTIMIZER, tokens_per_microbatch=150, **settings)


def reference():
    return TinyModel(**{**vars(TINY), "seed": 1})


CASES = {
    "grpo": lambda: (grpo(aggregation="token_mean"), rounds(), UPDATES),
    "kl": lambda: (grpo(kl_beta=0.3, reference=reference(), eps_low=0.05), rounds(steps_per_round=UPDATES), 1),
    "pruned": lambda: (
        grpo(kl_beta=0.3, reference=reference(), aggregation="token_mean"),
        rounds(),
        UPDATES,
        CompletionPruning(0.5, scope="global", divisor="group"),
    ),
    "garl": lambda: (
        LatentReasoning(TINY, OPTIMIZER, tokens_per_microbatch=150),
        rounds(advantage=None, gold=GoldAnswer("#")),
        UPDATES,
        TsallisReweighting(),
    ),
    "paft": lambda: (
        LatentReasoning(TINY, OPTIMIZER, tokens_per_microbatch=150),
        rounds(advantage=None, gold=GoldAnswer("#")),
        UPDATES,
        TsallisReweighting("paft"),
    ),
    "codistill": lambda: (
        CoDistillGRPO(TINY, LARGE, OPTIMIZER, OPTIMIZER, tokens_per_microbatch=150),
        rounds(advantage=None, hints=Hints(tokens=4, rounds=2)),
        UPDATES,
        CoDistillation(),
        DownSampling(2, stream="small"),
    ),
    "kl, little memory": lambda: (
        grpo(kl_beta=0.3, reference=reference(), eps_low=0.05, activation_checkpointing=True),
        rounds(steps_per_round=UPDATES),
        1,
    ),
    "kl, bfloat16": lambda: (grpo(kl_beta=0.3, reference=reference()), rounds(steps_per_round=UPDATES), 1),
    "adapters": lambda: (
        grpo(kl_beta=0.3, reference=reference(), lora=LoRA(rank=3)),
        rounds(),
        UPDATES,
    ),
    "exact kl": lambda: (grpo(kl_beta=0.3, reference=reference(), kl_estimator="exact"), rounds(), UPDATES),
    "supervised": lambda: (
        SupervisedFineTuning(TINY, OPTIMIZER, tokens_per_microbatch=150),
        SupervisedDataModule(Ragged(digits=1), prompts_per_step=3, updates_per_round=UPDATES),
        1,
    ),
}


class RankRecorder(Recorder):
    """Also the rows of this rank in each update, without padding."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.rows.append([tuple(row[:length].tolist()) for row, length in zip(batch.tokens, batch.lengths(), strict=True)])


def compute_in_float64() -> None:
    CausalLM.load = partial(CausalLM.load, dtype=torch.float64)


def work(case: str, ranks: int, strategy: str) -> None:
    compute_in_float64()
    module, data, epochs, *callbacks = CASES[case]()
    recorder = RankRecorder()
    if strategy == "fsdp2" and case in STRATEGIES:
        strategy = STRATEGIES[case]()
    tiny_trainer(
        max_epochs=epochs, devices=ranks, strategy=strategy, enable_checkpointing=False, callbacks=[*callbacks, recorder]
    ).fit(module, datamodule=data)  # fmt: skip
    counters = {name: int(getattr(module, name)) for name in COUNTERS}
    record = {name: getattr(recorder, name) for name in ("gradients", "weights", "updates", "rows")}
    torch.save({**record, "counters": counters}, f"record.{os.environ.get('LOCAL_RANK', '0')}.pt")


def main(case: str, folder: Path) -> None:
    if case == "failure":
        print(run_forked(partial(work, "grpo", 2, "fsdp2"), folder, 2, limit_s=60, FAILS=1))
        return
    for way, (ranks, strategy) in WAYS.items():
        if case in FSDP2_ONLY and way == "ddp":
            continue
        print(way, run_forked(partial(work, case, ranks, strategy), folder / way, ranks), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]).resolve())
