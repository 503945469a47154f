"""The same updates with vLLM on one process and on two; `python vllm_ranks.py same FOLDER` leaves a record per way and rank.

See test_vllm_ranks.py.
"""

import os
import sys
import warnings
from functools import partial
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "methods"), str(TESTS / "dist")]
warnings.filterwarnings("ignore")

import torch  # noqa: E402
from ranks import RankRecorder, Ragged  # noqa: E402

from forking import run_forked  # noqa: E402
from fulgurite.engines.vllm_engine import VLLMEngine  # noqa: E402
from fulgurite.types import SamplingSpec  # noqa: E402
from tiny import VLLM_TINY, tiny_benchmarks, tiny_data, tiny_grpo, tiny_trainer  # noqa: E402

WAYS = {"one": (1, "auto"), "fsdp2": (2, "fsdp2")}


class StaleOnTheSecondRank(VLLMEngine):
    def load_weights(self, weights, version):
        if version == 0 or os.environ["LOCAL_RANK"] == "0":
            return super().load_weights(weights, version)
        list(weights)
        self.version = version


def work(ranks: int, strategy: str) -> None:
    engine = StaleOnTheSecondRank() if os.environ.get("T_STALE") else VLLMEngine()
    data = tiny_data(
        task=Ragged(digits=1), prompts_per_step=5, sampling=SamplingSpec(max_new_tokens=12), engine=engine,
        benchmarks={"hard": tiny_benchmarks()["hard"]},
    )  # fmt: skip
    module, recorder = tiny_grpo(policy=VLLM_TINY), RankRecorder()
    tiny_trainer(
        max_epochs=3, devices=ranks, strategy=strategy, enable_checkpointing=False, callbacks=[recorder]
    ).fit(module, datamodule=data)  # fmt: skip
    record = {"updates": recorder.updates, "rows": recorder.rows, "sampled_tokens": int(module.sampled_tokens)}
    torch.save(record, f"record.{os.environ.get('LOCAL_RANK', '0')}.pt")


def main(case: str, folder: Path) -> None:
    if case == "stale":
        print(run_forked(partial(work, 2, "fsdp2"), folder, 2, limit_s=100, STALE=1))
        return
    for way, (ranks, strategy) in WAYS.items():
        print(way, run_forked(partial(work, ranks, strategy), folder / way, ranks), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]).resolve())
