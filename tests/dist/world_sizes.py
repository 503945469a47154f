"""A run that goes on with another number of processes; `python world_sizes.py FOLDER` leaves the weights at the end of each way.

Models in float64, see ranks.py.
"""

import sys
import warnings
from functools import partial
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[i]) for i in (0, 1)]
warnings.filterwarnings("ignore")

import torch  # noqa: E402
from ranks import compute_in_float64, grpo, reference, rounds  # noqa: E402

from forking import run_forked  # noqa: E402
from fulgurite.callbacks.checkpoint import RoundCheckpoint  # noqa: E402
from fulgurite.callbacks.checkpoint_files import checkpoints_in  # noqa: E402
from tiny import tiny_trainer  # noqa: E402

WAYS = {  # the first two rounds, the last two
    "1": ((1, "auto"), (1, "auto")),
    "1 to 2": ((1, "auto"), (2, "fsdp2")),
    "1 to 2 shards": ((1, "auto"), (2, "fsdp2_sharded")),
    "2 to 1": ((2, "fsdp2"), (1, "auto")),
    "2 ddp to 1": ((2, "ddp"), (1, "auto")),
    "2 shards to 1": ((2, "fsdp2_sharded"), (1, "fsdp2")),
    "2 shards to 2": ((2, "fsdp2_sharded"), (2, "fsdp2")),
    "2 to 2 shards": ((2, "fsdp2"), (2, "fsdp2_sharded")),
}


def work(epochs: int, ranks: int, strategy: str) -> None:
    compute_in_float64()
    module, data = grpo(kl_beta=0.3, reference=reference()), rounds(steps_per_round=2, inner_epochs=1)
    saver = RoundCheckpoint(every_n_rounds=1)
    trainer = tiny_trainer(max_epochs=epochs, devices=ranks, strategy=strategy, default_root_dir=".", callbacks=[saver])
    found = checkpoints_in(".")
    trainer.fit(module, datamodule=data, ckpt_path=str(found[-1]) if found else None, weights_only=True if found else None)
    weights = dict(module.trained["policy"].named_full_weights())
    if trainer.is_global_zero:
        torch.save({"weights": weights, "updates": int(module.updates), "tokens": int(module.sampled_tokens)}, "end.pt")


def main(root: Path) -> None:
    for way, halves in WAYS.items():
        for epochs, (ranks, strategy) in zip((2, 4), halves, strict=True):
            print(way, run_forked(partial(work, epochs, ranks, strategy), root / way, ranks), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
