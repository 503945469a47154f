"""What the check after every weight load costs, at the sizes of the quick start: python tools/bench_weight_check.py [ROUNDS]

Loads with and without the check take turns in one run; medians over rounds.
"""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")
warnings.filterwarnings("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

import lightning as L  # noqa: E402

from fulgurite.data.rollout_datamodule import RolloutDataModule  # noqa: E402
from fulgurite.data.weight_check import check_load  # noqa: E402
from fulgurite.engines.vllm_engine import VLLMEngine  # noqa: E402
from fulgurite.engines.weights import ChecksummedWeights  # noqa: E402
from fulgurite.models.tiny import TinyModel  # noqa: E402
from fulgurite.modules.grpo import GRPO  # noqa: E402
from fulgurite.tasks.addition import Addition  # noqa: E402
from fulgurite.types import SamplingSpec, Verdict  # noqa: E402

POLICY = TinyModel("qwen3", heads=6, kv_heads=6, head_dim=32, alphabet="0123456789+-*/=#$%()[]{}<>,.:;?! abcdefghijklmno")


class Digits(Addition):
    """Addition that rewards digits, so that random weights have something to learn and every update is taken."""

    def judge(self, prompt, completion):
        reward = sum(c.isdigit() for c in completion.text) / len(completion.token_ids)
        return Verdict("correct", {"digits": reward}, reward)


class Rounds(L.Callback):
    def __init__(self):
        self.seconds, self.bare, self.checked = [], [], []

    def on_train_epoch_start(self, trainer, module):
        self.begin = time.perf_counter()

    def on_train_epoch_end(self, trainer, module):
        self.seconds.append(time.perf_counter() - self.begin)
        data, model = trainer.datamodule, module.sampling_model
        begin = time.perf_counter()
        data.engine.load_weights(model.named_full_weights(), int(module.updates))
        middle = time.perf_counter()
        weights = ChecksummedWeights(model.named_full_weights(), data.engine.dtype)
        data.engine.load_weights(weights, int(module.updates))
        check_load(trainer, data.engine, model, weights, data.temperature)
        self.bare.append(middle - begin)
        self.checked.append(time.perf_counter() - middle)
        data.engine.version = None  # so that the next round loads and checks, as every round does


def main(rounds: int) -> None:
    data = RolloutDataModule(Digits(digits=2), 64, 8, SamplingSpec(max_new_tokens=8), engine=VLLMEngine())
    timer = Rounds()
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=rounds,
        callbacks=[timer],
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(GRPO(POLICY), datamodule=data)
    round_s, bare, checked = (1e3 * median(values[2:]) for values in (timer.seconds, timer.bare, timer.checked))
    cost = checked - bare
    print(f"round {round_s:.1f} ms, load {bare:.1f} ms, load and check {checked:.1f} ms")
    print(f"the check costs {cost:.1f} ms, {100 * cost / (round_s - cost):.2f}% of a round")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 40)
