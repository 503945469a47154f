"""A run that tells what happens in it and can be killed at any of these points. `python killable.py` reads lines of JSON,
[case, folder], and answers each with a line: a list with a verdict per kill point. See test_resume.py."""

import hashlib
import json
import os
import random
import signal
import sys
import time
import warnings
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
warnings.filterwarnings("ignore")

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from lightning.pytorch.callbacks import Callback  # noqa: E402

from forking import run_forked  # noqa: E402
from fulgurite.callbacks import checkpoint as checkpoint_module  # noqa: E402
from fulgurite.callbacks.checkpoint import RoundCheckpoint  # noqa: E402
from fulgurite.callbacks.checkpoint_files import checkpoints_in  # noqa: E402
from fulgurite.callbacks.codistillation import CoDistillation  # noqa: E402
from fulgurite.callbacks.guards import Guards  # noqa: E402
from fulgurite.callbacks.round_metrics import RoundMetrics  # noqa: E402
from fulgurite.callbacks.samples import SampleLogger  # noqa: E402
from fulgurite.callbacks.timing import PhaseTimer  # noqa: E402
from fulgurite.callbacks.tsallis import TsallisReweighting  # noqa: E402
from fulgurite.data.gold import GoldAnswer  # noqa: E402
from fulgurite.data.hints import Hints  # noqa: E402
from fulgurite.data.rollout_datamodule import RolloutDataModule  # noqa: E402
from fulgurite.data.task_datamodule import BenchmarkLoader  # noqa: E402
from fulgurite.models.adapters import LoRA  # noqa: E402
from fulgurite.models.tiny import TinyModel  # noqa: E402
from fulgurite.modules.codistill import CoDistillGRPO  # noqa: E402
from fulgurite.modules.grpo import GRPO  # noqa: E402
from fulgurite.modules.latent_reasoning import LatentReasoning  # noqa: E402
from fulgurite.parallel import FSDP2Strategy  # noqa: E402
from tiny import TINY, EvenDigits, OptimizerSpec, tiny_benchmarks, tiny_data, tiny_trainer  # noqa: E402

for late in (
    "torch.distributed.checkpoint.state_dict",
    "torch.distributed.fsdp",
    "torch.profiler",
    "transformers.generation.configuration_utils",
    "transformers.models.qwen2.modeling_qwen2",
):
    import_module(late)  # once here, not in each run
ROUNDS = 3


def setting(name: str, default: str = "") -> str:
    return os.environ.get("T_" + name, default)


def rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


def write(name: str, text: str) -> None:
    with open(f"{name}.{rank()}", "a") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())


def event(*parts: object) -> None:
    name = ":".join(map(str, parts))
    write("events", name)
    if setting("DIE") != name or setting("RESUMED"):
        return
    if setting("HOW") == "terminate":
        if rank() == int(setting("WHO", "0")):
            os.kill(os.getpid(), signal.SIGTERM)
        return
    if setting("HOW") in ("interrupt", "again"):
        os.kill(os.getpid(), signal.SIGINT)
        if setting("HOW") == "again":
            os.kill(os.getpid(), signal.SIGINT)
        return
    if setting("HOW") == "raise":
        if rank() == 1:
            raise RuntimeError("no completions today")
        return
    if dist.is_initialized():
        dist.barrier()
    os.kill(os.getpid(), signal.SIGKILL)


def digest(*tensors: torch.Tensor) -> str:
    return hashlib.sha256(b"".join(t.detach().clone().numpy().tobytes() for t in tensors)).hexdigest()[:12]


class LoudBenchmark(BenchmarkLoader):
    def batches(self):
        event("val_sample", self.shown, int(self.data.trainer.lightning_module.rounds))
        for batch in super().batches():
            write(
                "val",
                json.dumps(
                    [
                        int(self.data.trainer.lightning_module.rounds),
                        self.name,
                        [c.token_ids for c in batch.completions],
                    ]
                ),
            )
            yield batch


class LoudData(RolloutDataModule):
    def train_dataloader(self):
        event("train_dataloader")
        return super().train_dataloader()

    def val_dataloader(self):
        models = self.trainer.lightning_module.trained_names
        return [LoudBenchmark(self, name, model) for model in models for name in self.benchmarks]

    def _sample_round(self, epoch):
        event("sampling", epoch)
        return super()._sample_round(epoch)

    def roll_out(self, epoch):
        rounds = super().roll_out(epoch)
        event("sampled", epoch)
        if str(epoch) in setting("EMPTY").split(","):
            sampled, kept = rounds
            nothing = {k: torch.zeros_like(v) for k, v in kept.coefficients.items()}
            rounds = sampled, kept.with_coefficients(**nothing)
        return rounds


class Loud:
    """Mixed into a module."""

    def configure_optimizers(self):
        if setting("ESTIMATE"):
            write("estimate", str(self.trainer.estimated_stepping_batches))
        return super().configure_optimizers()

    def training_step(self, minibatch, batch_idx):
        step = self.trainer.current_epoch * self.trainer.datamodule.updates_per_round + batch_idx
        event("training_step", step)
        super().training_step(minibatch, batch_idx)
        self.ledger = (step, minibatch.tokens, self.last_update["loss"])
        event("stepped", step)

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        event("validation_step", batch.benchmark, batch_idx)
        super().validation_step(batch, batch_idx, dataloader_idx)

    def on_validation_epoch_end(self):
        super().on_validation_epoch_end()
        if setting("BEST"):
            self.log("eval/easy/score", float(self.rounds % 2))  # 0, 1, 0: the second round is the best

    def on_train_epoch_end(self):
        super().on_train_epoch_end()
        event("module.on_train_epoch_end", self.trainer.current_epoch)


class LoudGRPO(Loud, GRPO):
    pass


class LoudLatentReasoning(Loud, LatentReasoning):
    pass


class LoudCoDistillGRPO(Loud, CoDistillGRPO):
    pass


class Ledger(Callback):
    def on_train_start(self, trainer, module):
        event("on_train_start")

    def on_train_end(self, trainer, module):
        event("on_train_end")

    def on_round(self, trainer, module, sampled, kept):
        rows = zip(sampled.group_index.tolist(), sampled.completions, sampled.rewards.tolist(), strict=True)
        told = [[sampled.prompts[i].id, list(c.token_ids), reward.hex()] for i, c, reward in rows]
        write("rounds", json.dumps([sampled.number, told]))

    def on_train_epoch_start(self, trainer, module):
        event("on_train_epoch_start", trainer.current_epoch)

    def on_train_batch_start(self, trainer, module, batch, i):
        event("on_train_batch_start", trainer.current_epoch, i)

    def on_train_batch_end(self, trainer, module, *_):
        step, tokens, loss = module.ledger
        weights = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in module.parameters()]
        rates = [float(group["lr"]).hex() for group in trainer.optimizers[0].param_groups]
        counters = [int(getattr(module, name)) for name in ("prompts", "updates", "sampled_tokens", "trained_tokens")]
        stepped = trainer.fit_loop.epoch_loop._batches_that_stepped
        row = [
            step,
            trainer.global_step,
            trainer.current_epoch,
            stepped,
            digest(tokens),
            loss.hex(),
            rates,
            counters,
            digest(*weights),
        ]
        write("ledger", json.dumps(row))
        event("on_train_batch_end", step)

    def on_validation_start(self, trainer, module):
        event("on_validation_start")

    def on_validation_end(self, trainer, module):
        event("on_validation_end", trainer.current_epoch)

    def on_train_epoch_end(self, trainer, module):
        event("on_train_epoch_end", trainer.current_epoch)

    def on_exception(self, trainer, module, error):
        event("on_exception", type(error).__name__)


class LoudCheckpoint(RoundCheckpoint):
    def save(self, trainer, rounds, updates):
        name = f"{rounds}.{updates}"
        rename = os.replace
        checkpoint_module.os.replace = lambda *paths: (
            event("keeping" if paths[1].name.startswith("best") else "saving", name),
            rename(*paths),
        )
        try:
            super().save(trainer, rounds, updates)
        finally:
            checkpoint_module.os.replace = rename
        event("saved", name)


def fit() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the tests run in the background of a script
    steps, epochs = (int(n) for n in setting("SHAPE", "2x2").split("x"))
    sharded = setting("STRATEGY")
    strategy = FSDP2Strategy(save_distributed_checkpoint=sharded == "sharded") if sharded else "auto"
    every = int(setting("EVERY", "1"))
    saver = LoudCheckpoint(
        every_n_rounds=1, every_n_updates=every, after_sampling=bool(setting("EARLY")), best=setting("BEST") or None
    )
    rounds = int(setting("ROUNDS", str(ROUNDS)))
    guards = Guards(max_truncated=1.0, max_all_equal=2.0, min_moved=0.0)
    callbacks = [saver, guards, RoundMetrics(), PhaseTimer(), SampleLogger(every_n_rounds=0), Ledger()]
    trainer = tiny_trainer(
        max_epochs=rounds, strategy=strategy, devices=2 if sharded else 1, default_root_dir=".", callbacks=callbacks
    )
    method, further = setting("METHOD"), {}
    if method == "paft":
        trainer.callbacks.append(TsallisReweighting(method))
        further = {"gold": GoldAnswer("#"), "advantage": None}
    elif method == "codistill":
        trainer.callbacks.append(CoDistillation())
        further = {"hints": Hints(tokens=2, rounds=2), "advantage": None}
    base = tiny_data(task=EvenDigits(digits=1))
    data = LoudData(task=base.task, prompts_per_step=3, completions_per_prompt=2, sampling=base.sampling,
                    steps_per_round=steps, inner_epochs=epochs, benchmarks=tiny_benchmarks(), **further)  # fmt: skip
    spec = OptimizerSpec(learning_rate=1e-2, schedule="linear")
    if method == "codistill":
        module = LoudCoDistillGRPO(TINY, TinyModel(**{**vars(TINY), "hidden_size": 32}), spec, spec, tokens_per_microbatch=32)
    else:
        kind = LoudLatentReasoning if method == "paft" else LoudGRPO
        module = kind(TINY, tokens_per_microbatch=32, optimizer=spec, lora=LoRA(rank=2) if method == "adapters" else None)
    found = checkpoints_in(".")
    trainer.fit(module, datamodule=data, ckpt_path=str(found[-1]) if found else None, weights_only=True if found else None)


def lines(folder: Path, name: str, rank: int = 0) -> list[str]:
    file = folder / f"{name}.{rank}"
    return file.read_text().splitlines() if file.exists() else []


def round_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "rounds").glob("*"))}


def differences(reference: Path, folder: Path, ranks: int) -> list[str]:
    """What a run that was resumed did otherwise than the uninterrupted one; a line that was written again is the same."""
    wrong = []
    for r in range(ranks):
        for name in ("ledger", "rounds", "val"):
            want, got = lines(reference, name, r), lines(folder, name, r)
            if set(want) != set(got) or want[-1:] != got[-1:]:
                wrong.append(f"{name} of rank {r}")
    if round_files(reference) != round_files(folder):
        wrong.append("files of the rounds")
    return wrong


def kill_at_random(root: Path, moments: int, **settings: object) -> list[dict]:
    """SIGKILL at moments spread over a whole run, drawn anew each time; every run is killed until it ends by itself."""
    reference = root / "reference"
    begin = time.monotonic()
    statuses = run_forked(fit, reference, **settings)
    took = time.monotonic() - begin
    verdicts, draw = [{"place": "reference", "wrong": [] if statuses == [0] else [f"ended with {statuses}"]}], random.Random(7)
    for attempt in range(9 * moments):  # a run may end before its first moment, and on a busy machine most do
        folder, killed, after = root / f"run-{attempt}", 0, []
        while killed < 3 and len(verdicts) + killed <= moments:
            after.append(round(draw.uniform(took / 3, took), 3))  # before it, a run only sets itself up
            if run_forked(fit, folder, kill_after_s=after[-1], **settings) == [0]:
                after.pop()
                break
            killed += 1
            after[-1] = f"{after[-1]} s: {(lines(folder, 'events') or ['start'])[-1]}"
        if (ended := run_forked(fit, folder, **settings)) != [0]:
            verdicts.append({"place": after, "wrong": [f"resume ended with {ended}"]})
            continue
        verdicts += [{"place": place, "wrong": differences(reference, folder, 1)} for place in after]
    return verdicts


def kill_and_resume(reference: Path, place: str, ranks: int = 1, **settings: object) -> dict:
    """Runs until `place`, kills the run there, resumes it, and compares everything with the uninterrupted reference."""
    folder = reference.with_name(f"{reference.name}_{place.replace(':', '_')}")
    killed = run_forked(fit, folder, ranks, DIE=place, **settings)
    before = [len(lines(folder, "events", r)) for r in range(ranks)]
    events = lines(folder, "events")
    saves = sum(e.startswith("saved:") for e in events)
    how = settings.get("HOW")
    resumed = run_forked(fit, folder, ranks, RESUMED=1, **settings)
    codes = {"interrupt": 130, "again": 1, "terminate": 143}
    expected = [os.WEXITSTATUS(s) == codes[how] if how else os.WIFSIGNALED(s) for s in killed]
    wrong = [] if all(expected) else [f"ended with {killed}"]
    if resumed != [0] * ranks:
        ends = {r: (folder / f"out.{r}").read_text()[-3000:] for r in range(ranks)}
        wrong.append(f"resume ended with {resumed}: {ends}")
    wrong += differences(reference, folder, ranks)
    if how in ("terminate", "interrupt"):  # it saves where the reference does not
        told = events[events.index(place) :]
        steps = sum(e.startswith("stepped") for e in told[1:])
        if not any(e.startswith("saved:") for e in told) or steps > 1 or told[-1] != "on_exception:SystemExit":
            wrong.append(f"after the signal: {told}")
        return {"place": place, "wrong": wrong}
    for r in range(ranks):
        events, again = lines(reference, "events", r), lines(folder, "events", r)[before[r] :]
        rest = events
        if saves:
            rest = events[[i for i, e in enumerate(events) if e.startswith("saved:")][saves - 1] + 1 :]
            again = again[again.index("on_train_start") + 1 :] if "on_train_start" in again else again
        if rest == ["on_train_end"]:  # killed after the last save: fit of a finished run does nothing
            rest = again
        if rest != again:
            wrong.append(f"hooks of rank {r}: want {rest[:6]}, got {again[:6]}")
    want, got = ([path.name for path in checkpoints_in(run, best=True)] for run in (reference, folder))
    if want != got or len(want) != ("BEST" in settings):
        wrong.append(f"best checkpoints: want {want}, got {got}")
    return {"place": place, "wrong": wrong}


CASES: dict[str, tuple[dict, list[str]]] = {
    "1x1 save every update": (
        dict(SHAPE="1x1", EVERY=1),
        ["sampling:0", "sampling:1", "sampled:1", "training_step:1", "stepped:1", "saving:2.0", "saved:2.0",
         "val_sample:easy:1", "val_sample:hard:1", "validation_step:hard:0", "on_validation_end:1", "on_train_epoch_end:1",
         "module.on_train_epoch_end:1", "on_train_epoch_start:2", "saved:3.0"],
    ),
    "4x1 save every update": (
        dict(SHAPE="4x1", EVERY=1),
        ["sampling:1", "sampled:1", "stepped:4", "saving:1.1", "saved:1.1", "stepped:6", "saved:1.3",
         "stepped:7", "val_sample:easy:1", "validation_step:easy:1", "on_validation_end:1", "on_train_epoch_end:1", "saved:2.0",
         "on_train_epoch_start:2", "saved:3.0"],
    ),
    "2x2 save every third update": (
        dict(SHAPE="2x2", EVERY=3),
        ["stepped:4", "saved:1.3", "stepped:7", "validation_step:hard:0", "sampling:2"],
    ),
    "4x1 save at round ends only": (
        dict(SHAPE="4x1", EVERY=0),
        ["sampling:1", "stepped:5", "val_sample:hard:1", "on_train_epoch_start:2"],
    ),
    "1x1 save after sampling": (
        dict(SHAPE="1x1", EVERY=0, EARLY=1),
        ["saved:0.0", "saved:1.0", "stepped:1", "sampling:1", "validation_step:hard:0", "on_train_epoch_end:1"],
    ),
    "1x1 PAFT": (dict(SHAPE="1x1", EVERY=0, EARLY=1, METHOD="paft"), ["saved:1.0", "stepped:1"]),
    "1x1 adapters": (dict(SHAPE="1x1", EVERY=1, METHOD="adapters"), ["stepped:1"]),
    "1x2 CoDistill": (
        dict(SHAPE="1x2", EVERY=1, METHOD="codistill"),
        ["sampling:1", "stepped:2", "val_sample:easy_large:1"],
    ),
    "two ranks, CoDistill": (dict(SHAPE="1x2", EVERY=1, METHOD="codistill", STRATEGY="single"), ["stepped:2"]),
    "4x1 save after sampling": (
        dict(SHAPE="4x1", EVERY=0, EARLY=1),
        ["saved:1.0", "stepped:4", "stepped:6", "sampling:1", "on_validation_end:1"],
    ),
    "2x1 three empty rounds": (
        dict(SHAPE="2x1", EVERY=1, EMPTY="0,1,2", ROUNDS=5),
        ["stepped:3", "sampling:3", "stepped:5", "stepped:7"],
    ),
    "Ctrl-C": (dict(SHAPE="2x2", EVERY=0, HOW="interrupt"), ["sampling:1", "stepped:5", "val_sample:easy:1"]),
    "Ctrl-C twice while sampling": (dict(SHAPE="2x1", EVERY=1, HOW="again"), ["sampling:1"]),
    "SIGTERM": (
        dict(SHAPE="2x2", EVERY=0, HOW="terminate"),
        ["on_train_epoch_start:0", "sampling:1", "on_train_batch_start:1:0", "stepped:5", "stepped:7", "val_sample:easy:1",
         "on_train_epoch_start:2"],
    ),
    "two ranks, SIGTERM to one": (
        dict(SHAPE="2x2", EVERY=0, HOW="terminate", STRATEGY="sharded", WHO=1), ["sampling:1", "stepped:5"]
    ),
    "4x1 estimate": (dict(SHAPE="4x1", ESTIMATE=1), ["stepped:5"]),
    "2x1 best": (
        dict(SHAPE="2x1", EVERY=1, BEST="eval/easy/score"),
        ["keeping:1.0", "saving:1.0", "keeping:2.0", "saving:2.0", "saved:2.0", "stepped:4", "on_validation_end:2"],
    ),
    "two ranks, one file": (
        dict(SHAPE="2x2", EVERY=1, STRATEGY="single"),
        ["stepped:5", "sampling:1", "validation_step:easy:1", "saved:2.0"],
    ),
    "two ranks, shards": (
        dict(SHAPE="2x2", EVERY=1, STRATEGY="sharded", BEST="eval/easy/score"),
        ["stepped:5", "sampling:1", "validation_step:easy:1", "saved:2.0"],
    ),
}  # fmt: skip


def verdicts_of(case: str, root: Path) -> list[dict]:
    if case == "random moments":
        return kill_at_random(root, 20, SHAPE="2x2", EVERY=1, EARLY=1)
    settings, places = CASES[case]
    ranks = 2 if "STRATEGY" in settings else 1
    reference = root / "reference"
    status = run_forked(fit, reference, ranks, **settings)
    verdicts = [{"place": "reference", "wrong": [] if status == [0] * ranks else [f"ended with {status}"]}]
    return verdicts + [kill_and_resume(reference, place, ranks, **settings) for place in places]


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets jobs in the background ignore it
    for line in sys.stdin:
        case, folder = json.loads(line)
        print(json.dumps(verdicts_of(case, Path(folder).resolve())), flush=True)
