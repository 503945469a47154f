"""Faults of a run that are no thresholds: each ends it with its cause, and what was finished is on disk."""

import json
from pathlib import Path

import pytest

from fulgurite.callbacks.checkpoint import RoundCheckpoint
from fulgurite.callbacks.checkpoint_files import checkpoints_in
from fulgurite.data.rollout_datamodule import RolloutDataModule
from fulgurite.engines.transformers_engine import TransformersEngine
from fulgurite.guards import GuardError
from fulgurite.models.causal_lm import CausalLM
from fulgurite.models.sources import load_tokenizer
from fulgurite.models.tiny import TinyModel
from fulgurite.types import ConfigError, SamplingSpec
from test_cli import TINY_RUN, refused
from tiny import TINY, EvenDigits, tiny_data, tiny_grpo, tiny_trainer


class EndsEarly(RolloutDataModule):
    def minibatches(self):
        for i, minibatch in enumerate(super().minibatches()):
            if (self.trainer.current_epoch, i) == (1, 2):
                return
            yield minibatch


class RaisesOnce(TransformersEngine):
    """In the third call."""

    def __init__(self, message: str) -> None:
        super().__init__()
        self.message, self.calls = message, 0

    def generate(self, prompts, spec):
        self.calls += 1
        if self.calls == 3:
            raise RuntimeError(self.message)
        return super().generate(prompts, spec)


def weights(module) -> list:
    return [weight.tolist() for _, weight in module.trained["policy"].named_full_weights()]


def test_a_loader_that_ends_early_stops_the_run(tmp_path):
    data = EndsEarly(EvenDigits(digits=1), 4, 2, SamplingSpec(max_new_tokens=4), steps_per_round=4)
    trainer = tiny_trainer(default_root_dir=tmp_path)
    with pytest.raises(GuardError, match="the loader ended after 2 of 4 minibatches of the round; expected all of them"):
        trainer.fit(tiny_grpo(), datamodule=data)
    assert trainer.current_epoch == 1


def test_an_engine_that_raises_in_mid_round_is_named_and_the_run_goes_on_from_the_last_save(tmp_path):
    whole = tiny_grpo()
    tiny_trainer(max_epochs=3, default_root_dir=tmp_path / "whole", enable_checkpointing=False).fit(
        whole, datamodule=tiny_data()
    )
    saver = RoundCheckpoint(every_n_rounds=1)
    broken = tiny_trainer(max_epochs=3, default_root_dir=tmp_path / "run", callbacks=[saver])
    with pytest.raises(RuntimeError, match="the engine has no more tokens"):
        broken.fit(tiny_grpo(), datamodule=tiny_data(engine=RaisesOnce("the engine has no more tokens")))
    (first, newest) = checkpoints_in(tmp_path / "run")
    assert newest.name == "round-000002-update-000.ckpt"
    module, saver = tiny_grpo(), RoundCheckpoint(every_n_rounds=1)
    resumed = tiny_trainer(max_epochs=3, default_root_dir=tmp_path / "run", callbacks=[saver])
    resumed.fit(module, datamodule=tiny_data(), ckpt_path=str(newest), weights_only=True)
    assert weights(module) == weights(whole)


def test_another_reference_is_refused_on_resume(tmp_path):
    """Trained weights are in the checkpoint; those of a reference are read from its folder again."""

    def reference(seed: int) -> None:
        tiny = TinyModel(**{**vars(TINY), "seed": seed})
        CausalLM.load(tiny).save(tmp_path / "reference", load_tokenizer(tiny))

    def fit(epochs: int) -> None:
        found = checkpoints_in(tmp_path / "run")
        module = tiny_grpo(kl_beta=0.1, reference=str(tmp_path / "reference"))
        saver = RoundCheckpoint(every_n_rounds=1)
        trainer = tiny_trainer(max_epochs=epochs, default_root_dir=tmp_path / "run", callbacks=[saver])
        resume = {"ckpt_path": str(found[-1]), "weights_only": True} if found else {}
        trainer.fit(module, datamodule=tiny_data(), **resume)

    reference(1)
    fit(1)
    fit(2)
    reference(2)
    with pytest.raises(ConfigError, match="the weights of the frozen model 'reference', from .*/reference, are not those"):
        fit(3)


def test_a_damaged_row_in_the_middle_of_a_file_is_named_before_a_model_loads(tmp_path, capsys):
    rows = [json.dumps({"question": f"{i}?", "answer": f"{i}"}) for i in range(9)]
    rows[5] = rows[5][:9]
    (tmp_path / "train.jsonl").write_text("\n".join(rows) + "\n")
    config = tmp_path / "run.yaml"
    task = f"{{class_path: QA, init_args: {{splits: {{train: {{path: {tmp_path / 'train.jsonl'}}}}}}}}}"
    text = TINY_RUN.replace("RUN", str(tmp_path / "run")).replace("{class_path: tiny.EvenDigits, init_args: {digits: 1}}", task)
    config.write_text(text.replace("benchmarks: {sampled: {split: held_out, limit: 4, sampling: {max_new_tokens: 4}}}", ""))
    said = refused(capsys, "fit", "--config", str(config))
    assert f"{tmp_path / 'train.jsonl'}" in said and "line 6" in said
    assert not (Path(tmp_path) / "run" / "checkpoints").exists()
