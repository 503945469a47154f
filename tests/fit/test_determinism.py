"""The same seed gives the same bytes; another seed does not; memory settings change nothing that was sampled."""

import json

import pytest

from fulgurite.callbacks.checkpoint import RoundCheckpoint
from fulgurite.callbacks.checkpoint_files import checkpoints_in
from fulgurite.callbacks.samples import SampleLogger
from fulgurite.data.supervised_datamodule import SupervisedDataModule
from fulgurite.engines.transformers_engine import TransformersEngine
from fulgurite.modules.supervised import SupervisedFineTuning
from tiny import TINY, EvenDigits, OptimizerSpec, tiny_data, tiny_grpo, tiny_trainer


def files_of_a_run(folder, module=None, **data) -> dict[str, bytes]:
    trainer = tiny_trainer(default_root_dir=folder, callbacks=[SampleLogger(every_n_rounds=0)], enable_checkpointing=False)
    trainer.fit(tiny_grpo(**(module or {})), datamodule=tiny_data(inner_epochs=2, **data))
    return {path.name: path.read_bytes() for path in sorted((folder / "rounds").iterdir())}


def test_the_same_run_twice_writes_the_same_bytes(tmp_path):
    first, second = (files_of_a_run(tmp_path / name) for name in ("a", "b"))
    assert len(first) == 6 and first == second
    assert b'"loss"' in first["000000.updates.jsonl"] and first["000000.updates.jsonl"].count(b"\n") == 2
    other = files_of_a_run(tmp_path / "c", seed=1)
    assert all(other[name] != first[name] for name in first)


@pytest.mark.parametrize("max_rows", [1, 5])
def test_how_many_rows_decode_at_once_changes_no_completion(tmp_path, max_rows):
    first = files_of_a_run(tmp_path / "a")
    second = files_of_a_run(tmp_path / "b", engine=TransformersEngine(max_rows=max_rows))
    assert first["000000.completions.jsonl"] == second["000000.completions.jsonl"]


@pytest.mark.parametrize("stop", [1, 4, 5])
def test_a_run_that_is_told_to_stop_inside_a_round_resumes_to_the_same_bytes(tmp_path, stop):
    def fit(folder, **settings):
        callbacks = [SampleLogger(every_n_rounds=0), RoundCheckpoint(every_n_rounds=1)]
        trainer = tiny_trainer(default_root_dir=folder, callbacks=callbacks, **settings)
        found = checkpoints_in(folder)
        trainer.fit(tiny_grpo(), datamodule=tiny_data(steps_per_round=3), ckpt_path=str(found[-1]) if found else None)
        return {path.name: path.read_bytes() for path in sorted((folder / "rounds").iterdir())}

    whole = fit(tmp_path / "whole", max_epochs=2)
    fit(tmp_path / "stopped", max_epochs=2, max_steps=stop)
    assert fit(tmp_path / "stopped", max_epochs=2) == whole


def test_a_limited_supervised_round_resumes_where_it_stood(tmp_path):
    def fit(folder, rounds):
        callbacks = [SampleLogger(every_n_rounds=0), RoundCheckpoint(every_n_rounds=1)]
        trainer = tiny_trainer(default_root_dir=folder, callbacks=callbacks, max_epochs=rounds, limit_train_batches=2)
        found = checkpoints_in(folder)
        data = SupervisedDataModule(EvenDigits(digits=1), prompts_per_step=4, updates_per_round=3)
        trainer.fit(SupervisedFineTuning(TINY), datamodule=data, ckpt_path=str(found[-1]) if found else None)
        return {path.name: path.read_bytes() for path in sorted((folder / "rounds").iterdir())}

    whole = fit(tmp_path / "whole", 2)
    fit(tmp_path / "halves", 1)
    assert fit(tmp_path / "halves", 2) == whole and len(whole) == 2


def test_a_finished_run_with_a_falling_rate_goes_on_at_the_rate_of_the_larger_budget(tmp_path):
    def fit(rounds):
        optimizer = OptimizerSpec(learning_rate=1e-2, schedule="linear")
        callbacks = [SampleLogger(every_n_rounds=0), RoundCheckpoint(every_n_rounds=1)]
        trainer = tiny_trainer(default_root_dir=tmp_path, callbacks=callbacks, max_epochs=rounds)
        found = checkpoints_in(tmp_path)
        trainer.fit(tiny_grpo(optimizer=optimizer), datamodule=tiny_data(), ckpt_path=str(found[-1]) if found else None)

    fit(2)
    fit(4)
    rows = [json.loads((tmp_path / "rounds" / f"00000{n}.updates.jsonl").read_text()) for n in range(4)]
    assert [row["lr/policy"] for row in rows] == pytest.approx([1e-2, 0.5e-2, 0.5e-2, 0.25e-2])
