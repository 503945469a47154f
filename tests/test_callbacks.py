"""Callbacks that log, on small real Trainers: what is written, where, and the same again after a kill."""

from __future__ import annotations

import json
import math
import re
import signal
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugin_util import markdown_to_safe_html
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from fulgurite.callbacks import over_ranks
from fulgurite.callbacks.dashboard import LAYOUT, Dashboard, write_settings
from fulgurite.callbacks.guards import Guards
from fulgurite.callbacks.preemption import StopRequest
from fulgurite.callbacks.progress import RoundProgressBar
from fulgurite.callbacks.round_metrics import RoundMetrics, round_metrics, round_sums
from fulgurite.callbacks.samples import SampleLogger, forget_ranks, json_line, plain, samples_table
from fulgurite.callbacks.timing import PhaseTimer
from fulgurite.types import ConfigError, Prompt
from records import Killed, RecordingLogger, StubModule, StubRounds, make_round

# Two groups, one mixed; 2 + 5 + 1 + 4 = 12 tokens, one completion cut; the group without spread is not kept.
MIXED = make_round(
    [[1.0, 0.0], [0.5, 0.5]],
    lengths=[2, 5, 1, 4],
    cut=[False, True, False, False],
    outcomes=["correct", "ungradable", "wrong", "wrong"],
    named=[{"answer": 1.0, "format": 2.0}, {"answer": 0.0}, {"answer": 0.0, "format": 1.0}, {"answer": 0.0}],
    coefficients={"policy": [1.0, -1.0, 0.0, 0.0]},
)
ROUNDS = [MIXED, make_round([[1.0, 0.0], [0.0, 1.0]], number=1, coefficients={"policy": [0.5, 1.5, -0.5, 0.5]})]


class SaveEveryUpdate(Checkpoint):
    """Saves after each update but the last of a round, and at a round's end."""

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "last.ckpt")

    def on_train_epoch_end(self, trainer, module):
        trainer.save_checkpoint(Path(trainer.default_root_dir) / "last.ckpt")


def fit(folder, callbacks, *, dies_at=None, logger=None, resume=False, kinds=(("good", "good"),), **settings):
    """Rounds of two updates, each followed by a validation; two of them. Returns the module."""
    module = StubModule(dies_at=dies_at)
    settings = {"enable_progress_bar": False, "max_epochs": 2, **settings}
    trainer = L.Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        logger=logger or False,
        callbacks=callbacks,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(c, Checkpoint) for c in callbacks),
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        **settings,
    )
    trainer.fit(module, StubRounds(ROUNDS, kinds, validate=True), ckpt_path=folder / "last.ckpt" if resume else None)
    return module


def fit_killed(folder, make, dies_at, **options):
    """The same run, killed after an update that is not saved yet, and resumed with new callbacks."""
    with pytest.raises(Killed):
        fit(folder, [*make(), SaveEveryUpdate()], dies_at=dies_at, **options)
    return fit(folder, [*make(), SaveEveryUpdate()], resume=True, **options)


# PhaseTimer


@pytest.mark.parametrize("dies_at", [None, (0, 1), (1, 0), (1, 1)])
def test_the_timer_logs_seconds_and_rates_of_each_round(tmp_path, dies_at):
    logger, timers = RecordingLogger(), []

    def make():
        timers.append(PhaseTimer())
        return [timers[-1]]

    if dies_at:
        fit_killed(tmp_path, make, dies_at, logger=logger)
    else:
        fit(tmp_path, make(), logger=logger)
    # A round: 3 s of sampling, two updates of 2 s with 5 tokens, 7 s of validation; x is that of its last update.
    assert logger.series("time/sample_s") == [(1, 3.0), (3, 3.0)]
    assert logger.series("time/train_s") == [(1, 4.0), (3, 4.0)]
    assert logger.series("time/validate_s") == [(1, 7.0), (3, 7.0)]
    assert logger.series("time/judge_s") == [(1, 0.0), (3, 0.0)]
    assert logger.series("time/round_s") == [(1, 14.0), (3, 14.0)]
    assert logger.series("time/sampled_tokens_per_s") == [(1, 12 / 3), (3, 8 / 3)]
    assert logger.series("time/trained_tokens_per_s") == [(1, 10 / 4), (3, 10 / 4)]
    wall = timers[-1].totals["wall"]
    assert {k: v for k, v in wall.items() if v} == {"sample": 6.0, "train": 8.0, "validate": 14.0}
    assert timers[-1].totals["cpu"] == wall
    (_, rss), _ = logger.series("memory/peak_rss_gib")
    assert 0.05 < rss < 50  # a process with torch in it, in GiB and not in KiB or bytes


def test_the_timer_goes_on_in_a_second_fit_and_leaves_out_what_is_between(tmp_path):
    timer = PhaseTimer()
    trainer = L.Trainer(
        accelerator="cpu", default_root_dir=tmp_path, logger=False, callbacks=[timer], max_epochs=1,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    module, data = StubModule(), StubRounds(ROUNDS, [["good"]])
    trainer.fit(module, data)
    with module.clock("sample"):
        module.time.now += 1000
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, data)
    assert timer.totals["wall"]["sample"] == 6.0
    assert timer.totals["wall"]["train"] == 4.0
    saved = timer.state_dict()
    module.time.now += 1000
    timer.load_state_dict(saved)
    assert timer.totals == saved["totals"]


def test_timer_state_is_plain_and_loads_with_weights_only(tmp_path):
    fit(tmp_path, [PhaseTimer(), Guards(), SaveEveryUpdate()])
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]
    assert saved["PhaseTimer"]["totals"]["wall"]["train"] == 8.0
    assert set(map(type, saved["Guards"]["streaks"].values())) == {int}


# RoundMetrics


def test_round_metrics_of_a_round_by_hand(tmp_path):
    logger = RecordingLogger()
    fit(tmp_path, [RoundMetrics()], logger=logger)
    (x0, first), (x1, second) = ((x, row) for x, row in logger.rows if "reward/mean" in row)
    assert (x0, x1) == (0, 2)
    assert first == pytest.approx(
        {
            "reward/mean": 0.5,
            "reward/answer": 0.25,
            "reward/format": 1.5,
            "reward/correct": 0.25,
            "reward/ungradable": 0.25,
            "reward/failed": 0.0,
            "round/tokens_per_completion": 3.0,
            "round/truncated": 0.25,
            "round/mixed_groups": 0.5,
            "round/informative_pair_frac": 0.5,
            "round/kept_rows": 2.0,
            "round/sampled_tokens": 12.0,
            "credit/policy_std": math.sqrt(0.5),
        },
        abs=1e-12,
    )
    assert second["round/sampled_tokens"] == 20.0
    assert second["round/mixed_groups"] == 1.0
    assert second["credit/policy_std"] == pytest.approx(math.sqrt(0.5), abs=1e-12)  # about their mean, 0.5


def test_an_empty_round_and_groups_of_one_give_no_made_up_numbers():
    assert round_metrics(round_sums(make_round([]), make_round([]))) == {"round/kept_rows": 0.0}
    alone = make_round([[1.0], [0.0]])
    assert "round/mixed_groups" not in round_metrics(round_sums(alone, alone))


def test_a_reward_named_correct_gives_way_to_the_share():
    sampled = make_round([[3.0, 5.0]], named=[{"correct": 3.0}, {"correct": 5.0}], outcomes=["correct", "wrong"])
    assert round_metrics(round_sums(sampled, sampled))["reward/correct"] == 0.5


def two_ranks(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    # Rank 1 has one mixed group and a reward of its own; rank 2 has no row at all the second time.
    rounds = {
        0: [make_round([[1.0, 0.0]], cut=[True, True], coefficients={"policy": [1.0, -1.0]}), MIXED],
        1: [
            make_round([[0.0, 0.0]], lengths=[4, 6], named=[{"style": 4.0}] * 2, coefficients={"policy": [0.0, 0.0]}),
            make_round([], coefficients={"policy": []}),
        ],
    }[rank]
    logger, written = RecordingLogger(), []
    trainer = SimpleNamespace(
        world_size=2,
        is_global_zero=rank == 0,
        loggers=[logger],
        datamodule=SimpleNamespace(engine=SimpleNamespace(dtype=torch.float32)),
        fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(_batches_that_stepped=0)),
        strategy=SimpleNamespace(root_device=torch.device("cpu"), reduce=lambda t, reduce_op: (dist.all_reduce(t), t)[1]),
    )
    module = SimpleNamespace(sampled_tokens=torch.tensor(14), streams={"policy": set()})
    guards = Guards(max_truncated=0.4, max_all_equal=0.5, patience_rounds=5)
    for sampled in rounds:
        RoundMetrics().on_round(trainer, module, sampled, sampled)
        guards.on_round(trainer, module, sampled, sampled)
        written.append(dict(guards.streaks))
    largest = over_ranks(trainer, {"a": rank, f"only{rank}": 7}, max)
    Path(folder, f"{rank}.json").write_text(json.dumps([logger.rows, written, largest]))
    dist.destroy_process_group()


def test_rows_of_ranks_that_are_gone_are_not_kept_beside_a_round_sampled_again(tmp_path):
    for name in ("000001.rank1", "000001.rank12", "000002.rank3", "000011.rank1"):
        (tmp_path / f"{name}.completions.jsonl").touch()
    forget_ranks(tmp_path, 1, ranks=2)
    assert {path.name.removesuffix(".completions.jsonl") for path in tmp_path.iterdir()} == {
        "000001.rank1", "000002.rank3", "000011.rank1",
    }  # fmt: skip


def test_the_dashboard_has_charts_of_tags_that_runs_write():
    listed = re.findall(r"^\| `([\w/<>@]+)`", (Path(__file__).parents[1] / "docs" / "concepts.md").read_text(), re.MULTILINE)
    tags = [re.sub(r"<\w+>", "x", tag) for tag in listed]
    patterns = [pattern for charts in LAYOUT.values() for _, patterns in charts.values() for pattern in patterns]
    assert len(patterns) > 15
    for pattern in patterns:
        assert any(re.match(pattern, tag) for tag in tags), f"no run writes {pattern}"


def test_settings_and_their_accuracies_reach_tensorboard(tmp_path):
    logger = TensorBoardLogger(tmp_path, name="", version="")
    trainer = L.Trainer(logger=logger, accelerator="cpu", callbacks=[])
    write_settings(trainer, {"a.rate": 0.5, "b": True, "c": "x", "d": None, "e": [1]}, ["eval/sums/accuracy"])
    Dashboard().on_train_start(trainer, None)
    logger.finalize("success")
    metadata = EventAccumulator(str(tmp_path)).Reload().summary_metadata
    start = HParamsPluginData.FromString(metadata["_hparams_/session_start_info"].plugin_data.content).session_start_info
    assert {name: value.WhichOneof("kind") for name, value in start.hparams.items()} == {
        "a.rate": "number_value", "b": "number_value", "c": "string_value",
    }  # fmt: skip
    about = HParamsPluginData.FromString(metadata["_hparams_/experiment"].plugin_data.content).experiment
    assert [info.name.tag for info in about.metric_infos] == ["eval/sums/accuracy"]
    assert "custom_scalars__config__" in metadata


def test_numbers_and_decisions_are_those_of_all_ranks(tmp_path):
    mp.spawn(two_ranks, args=(str(tmp_path),), nprocs=2)
    (rows, streaks, largest), (no_rows, streaks_1, largest_1) = (
        json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)
    )
    (_, first), (_, second) = rows
    assert no_rows == []
    assert first["reward/mean"] == 0.25 and first["reward/answer"] == 0.5 and first["reward/style"] == 4.0
    assert first["round/truncated"] == 0.5 and first["round/mixed_groups"] == 0.5
    assert first["round/tokens_per_completion"] == 14 / 4 and first["round/kept_rows"] == 4
    assert first["credit/policy_std"] == pytest.approx(math.sqrt(0.5), abs=1e-12)
    assert second["reward/mean"] == 0.5 and second["round/mixed_groups"] == 0.5
    assert streaks == streaks_1
    assert [s["truncation"] for s in streaks] == [1, 0] and [s["all_equal_groups"] for s in streaks] == [1, 2]
    assert largest == largest_1 == {"a": 1, "only0": 7, "only1": 7}


# SampleLogger


def written(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "rounds").iterdir())}


def test_completions_and_updates_are_written_row_by_row(tmp_path):
    fit(tmp_path, [SampleLogger(every_n_rounds=0)], kinds=[["good", "bad"], ["good", "empty"]])
    files = written(tmp_path)
    assert list(files) == [
        "000000.completions.jsonl", "000000.updates.jsonl", "000001.completions.jsonl", "000001.updates.jsonl"
    ]  # fmt: skip
    rows = list(map(json.loads, files["000000.completions.jsonl"].splitlines()))
    assert rows[0] == {
        "group": 0,
        "prompt_id": "q0",
        "prompt": "question 0",
        "token_ids": [10, 11],
        "text": "text 0",
        "finish_reason": "stop",
        "outcome": "correct",
        "rewards": {"answer": 1.0, "format": 2.0},
        "reward": 1.0,
        "extracted": None,
        "failure": "",
        "coefficients": {"policy": 1.0},
        "kept": True,
    }
    assert [row["kept"] for row in rows] == [True, True, False, False]
    assert [row["finish_reason"] for row in rows] == ["stop", "length", "stop", "stop"]
    good, bad = map(json.loads, files["000000.updates.jsonl"].splitlines())
    assert (good["round"], good["update"], good["loss"], good["skipped"]) == (0, 0, 75.0, 0.0)
    assert good["lr/policy"] == 0.1
    assert (bad["update"], bad["loss"], bad["skipped"]) == (1, None, 1.0)
    empty = json.loads(files["000001.updates.jsonl"].splitlines()[1])
    assert (empty["round"], empty["update"], empty["empty"]) == (1, 1, 1.0)


@pytest.mark.parametrize("dies_at", [(0, 0), (0, 1), (1, 0), (1, 2)])
def test_a_killed_and_resumed_run_writes_the_same_bytes(tmp_path, dies_at):
    kinds = [["good", "bad", "good"]]
    if dies_at == (0, 0):  # nothing is saved yet: the run starts again over the old files
        with pytest.raises(Killed):
            fit(tmp_path / "killed", [SampleLogger(), SaveEveryUpdate()], dies_at=dies_at, kinds=kinds)
        fit(tmp_path / "killed", [SampleLogger(), SaveEveryUpdate()], kinds=kinds)
    else:
        fit_killed(tmp_path / "killed", lambda: [SampleLogger()], dies_at, kinds=kinds)
    fit(tmp_path / "whole", [SampleLogger()], kinds=kinds)
    assert written(tmp_path / "killed") == written(tmp_path / "whole")
    assert len(written(tmp_path / "whole")) == 4


def test_a_run_killed_after_its_row_was_written_keeps_each_row_once(tmp_path):
    logger, module = SampleLogger(), SimpleNamespace(last_update={"loss": 1.0})
    trainer = SimpleNamespace(default_root_dir=tmp_path, is_global_zero=True, current_epoch=4)
    for update, loss in ((0, 1.0), (1, 2.0), (2, 3.0), (1, 2.5), (2, 3.5)):
        module.last_update = {"loss": loss}
        logger.on_train_batch_end(trainer, module, None, None, update)
    rows = [json.loads(line) for line in (tmp_path / "rounds" / "000004.updates.jsonl").read_text().splitlines()]
    assert [(row["update"], row["loss"]) for row in rows] == [(0, 1.0), (1, 2.5), (2, 3.5)]


def test_other_ranks_write_their_own_completions_and_no_updates(tmp_path):
    logger, module = SampleLogger(every_n_rounds=1), SimpleNamespace(last_update={"loss": 1.0})
    trainer = SimpleNamespace(default_root_dir=tmp_path, global_rank=1, is_global_zero=False, current_epoch=0)
    logger.on_round(trainer, module, MIXED, MIXED)
    logger.on_train_batch_end(trainer, module, None, None, 0)
    assert list(written(tmp_path)) == ["000000.rank1.completions.jsonl"]


def test_a_kept_completion_that_was_not_sampled_is_an_error(tmp_path):
    trainer = SimpleNamespace(default_root_dir=tmp_path, global_rank=0, world_size=1)
    with pytest.raises(ValueError, match="2 of 2 kept completions of round 0 are not among the sampled"):
        SampleLogger().on_round(trainer, None, MIXED, make_round([[1.0, 0.0]]))


def test_lines_hold_any_text_and_exact_floats():
    odd = {"nan": float("nan"), "rewards": {"a": -math.inf}, "list": [1.0, math.inf]}
    line = json_line({"text": "a\nb\u2028c \ud800 é", "x": 0.1 + 0.2, **odd})
    assert line.isascii() and "\n" not in line
    assert json.loads(line) == {
        "text": "a\nb\u2028c \ud800 é", "x": 0.30000000000000004, "nan": None, "rewards": {"a": None}, "list": [1.0, None]
    }  # fmt: skip


def test_tensorboard_gets_a_table_and_histograms_of_every_nth_round(tmp_path):
    logger = TensorBoardLogger(tmp_path, name="", version="")
    fit(tmp_path, [SampleLogger(every_n_rounds=2, jsonl=False)], logger=logger, max_epochs=3)
    assert not (tmp_path / "rounds").exists()
    events = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0}).Reload()
    shown = events.Tensors("samples/round/text_summary")
    assert [event.step for event in shown] == [0, 4]
    table = shown[0].tensor_proto.string_val[0].decode()
    assert table.splitlines()[2].split(" | ") == [
        "| question 0", "answer 0", "best", "text 0", "stop", "correct", "1 |"
    ]  # fmt: skip
    assert table.splitlines()[3].split(" | ")[2:] == ["worst", "text 1", "length", "ungradable", "0 |"]
    for name, total in (("reward", 2.0), ("length", 12.0), ("coefficient_policy", 0.0)):
        histogram = events.Histograms(f"histograms/{name}")[0].histogram_value
        assert (histogram.num, histogram.sum) == (4, total)


def test_every_n_rounds_zero_writes_no_text_and_below_zero_is_refused(tmp_path):
    logger = TensorBoardLogger(tmp_path, name="", version="")
    fit(tmp_path, [SampleLogger(every_n_rounds=0, jsonl=False)], logger=logger)
    assert EventAccumulator(str(tmp_path)).Reload().Tags()["tensors"] == []
    with pytest.raises(ConfigError, match="samples.every_n_rounds is -1"):
        SampleLogger(every_n_rounds=-1)


def test_an_empty_round_is_logged_without_a_histogram(tmp_path):
    trainer = SimpleNamespace(
        default_root_dir=tmp_path, global_rank=0, world_size=1, is_global_zero=True,
        loggers=[TensorBoardLogger(tmp_path, name="", version="")],
        fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(_batches_that_stepped=0)),
    )  # fmt: skip
    empty = make_round([], coefficients={"policy": []})
    SampleLogger().on_round(trainer, None, empty, empty)
    assert written(tmp_path) == {"000000.completions.jsonl": b""}


HOSTILE = (
    "<script>alert(1)</script>",
    "| a | b |\n|---|---|\n| c | d |",
    "```\ncode\n```\n# title",
    "![i](http://x/y.png) [l](javascript:alert(1)) <img src=x onerror=alert(1)>",
    "*b* _i_ `c` ~~s~~ &lt; \\| \x00 \x1b[31m \ud800 \u202e",
)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_shown_as_it_is(text):
    prompt = Prompt(id="q", messages=({"role": "user", "content": text},), answer=text, token_ids=(1,))
    table = samples_table(make_round([[1.0, 0.0]], texts=[text, text], prompts=[prompt]))
    html = markdown_to_safe_html(table.encode())
    assert html.count("<tr>") == 3 and html.count("<td>") == 14
    assert not any(f"<{tag}" in html for tag in ("script", "img", "a ", "code", "pre", "h1", "em", "strong", "h2"))


def test_plain_text_keeps_its_words_and_loses_only_the_middle():
    assert plain("2 + 2 = 4\nso: 4") == "2 &#43; 2 &#61; 4 ↵ so&#58; 4"
    long = "a" * 500 + "b" * 5000 + "c" * 500
    assert plain(long) == "a" * 400 + " &#8230; " + "c" * 400


# RoundProgressBar


class BarWatcher(L.Callback):
    """Notes the description of the bars when a round starts or the clock changes, and the postfix after each update."""

    def __init__(self, bar: RoundProgressBar) -> None:
        self.bar, self.descriptions, self.postfixes = bar, [], []

    def on_fit_start(self, trainer, module):
        module.clock.listeners.append(self.note)

    def on_train_epoch_start(self, trainer, module):
        self.note("")

    def note(self, phase: str) -> None:
        validating = self.bar.trainer.validating
        self.descriptions.append((self.bar.val_progress_bar if validating else self.bar.train_progress_bar).desc)

    def on_train_batch_end(self, *_):
        self.postfixes.append(self.bar.train_progress_bar.postfix)


def test_the_bar_names_round_and_phase_and_shows_reward_and_loss(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    bar = RoundProgressBar()
    watcher = BarWatcher(bar)
    module = fit(tmp_path, [bar, watcher], enable_progress_bar=True)
    one_round = ["", "sample", "", "train", "", "train", ""]
    assert watcher.descriptions == [
        text for n in (0, 1)
        for text in (*(f"Round {n} {phase}".rstrip() + ": " for phase in one_round),
                     "Validation validate: ", "Validation sample: ", "Validation validate: ", "Validation: ")
    ]  # fmt: skip
    assert watcher.postfixes[0] == "reward=0.5, loss=75"
    bar.setup(bar.trainer, module, "fit")
    assert module.clock.listeners.count(bar._show_phase) == 1  # as in a second fit
    assert "Round 1 train:   0%|          | 0/2" in capsys.readouterr().out


def test_a_resumed_run_has_the_round_in_its_bar(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    bars = []

    def make():
        bars.append(RoundProgressBar())
        return [bars[-1], BarWatcher(bars[-1])]

    with pytest.raises(Killed):
        fit(tmp_path, [*make(), SaveEveryUpdate()], dies_at=(1, 1), enable_progress_bar=True)
    watch = make()
    fit(tmp_path, [*watch, SaveEveryUpdate()], resume=True, enable_progress_bar=True)
    assert watch[1].descriptions[0] == "Round 1 train: "


def test_signals_are_given_back_and_an_ignored_ctrl_c_stays_ignored():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        for ctrl_c in (signal.default_int_handler, signal.SIG_IGN):
            signal.signal(signal.SIGINT, ctrl_c)
            request = StopRequest()
            assert (signal.getsignal(signal.SIGINT) == request._note) is (ctrl_c != signal.SIG_IGN)
            assert signal.getsignal(signal.SIGTERM) == request._note
            request.withdraw()
            assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == (ctrl_c, before[signal.SIGTERM])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
