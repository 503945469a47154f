"""The same seed gives the same bytes; another seed does not; memory settings change nothing that was sampled."""

import pytest

from fulgurite.callbacks.samples import SampleLogger
from fulgurite.engines.transformers_engine import TransformersEngine
from tiny import tiny_data, tiny_grpo, tiny_trainer


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
