"""vLLM servers that die under a run."""

import os
import time

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed: its tests are skipped")

from lightning.pytorch.callbacks import Callback  # noqa: E402

from fulgurite.callbacks.checkpoint import RoundCheckpoint  # noqa: E402
from fulgurite.callbacks.checkpoint_files import checkpoints_in  # noqa: E402
from fulgurite.engines.vllm_server import VLLMServerEngine  # noqa: E402
from fulgurite.models.tiny import TinyModel  # noqa: E402
from fulgurite.types import SamplingSpec  # noqa: E402
from servers import Front, vllm_servers  # noqa: E402
from tiny import tiny_data, tiny_grpo, tiny_trainer  # noqa: E402

pytestmark = [pytest.mark.xdist_group("vllm servers"), pytest.mark.timeout(400)]
ALPHABET = "0123456789+-*/=#abcdefghijklmnopqrstuvwxyz ,."  # that of the engines' contract, whose servers these are


class Mourned(VLLMServerEngine):
    """`kill` is called in the round sampled with weights `when`, once two of its prompts are completed; of the others some
    are at the server and some still wait here."""

    done, when, kill = 0, None, None

    async def _complete(self, client, spread, prompt, spec):
        completions = await super()._complete(client, spread, prompt, spec)
        if self.version == self.when and not prompt.id.startswith("weight check"):
            self.done += 1
            if self.done == 2:
                self.kill()
        return completions


class Losses(Callback):
    def __init__(self):
        self.rows = []

    def on_train_batch_end(self, trainer, module, *_):
        self.rows.append((int(module.updates), module.last_update["loss"]))


def fit(folder, engine, rounds=4):
    losses = Losses()
    callbacks = [RoundCheckpoint(every_n_rounds=1), losses]
    data = tiny_data(engine=engine, prompts_per_step=8, completions_per_prompt=4, sampling=SamplingSpec(max_new_tokens=40))
    trainer = tiny_trainer(max_epochs=rounds, default_root_dir=str(folder), callbacks=callbacks)
    found = checkpoints_in(folder)
    try:
        trainer.fit(tiny_grpo(policy=TinyModel(alphabet=ALPHABET), tokens_per_microbatch=2048), datamodule=data,
                    ckpt_path=str(found[-1]) if found else None, weights_only=True if found else None)  # fmt: skip
    finally:
        engine.losses = losses.rows
    return losses.rows


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    rows = fit(tmp_path_factory.mktemp("uninterrupted"), VLLMServerEngine([vllm_servers(ALPHABET)[0].url]))
    assert [update for update, _ in rows] == [1, 2, 3, 4] and len({loss for _, loss in rows}) == 4
    return rows


def test_a_run_whose_server_is_killed_stops_and_resumes_to_the_same_losses(uninterrupted, tmp_path):
    server = vllm_servers(ALPHABET)[1]
    engine = Mourned([server.url], retries=2, in_flight=4)
    engine.when, engine.kill = 2, server.kill
    begin = time.monotonic()
    try:
        with pytest.raises(RuntimeError) as error:
            fit(tmp_path, engine)
        took = time.monotonic() - begin
    finally:
        server.start()
    text = str(error.value)
    assert text.startswith("prompt '") and "was not completed in 3 attempts; " in text
    assert f"{server.url}/v1/completions cannot be reached" in text and "--ckpt_path last" in text
    assert took < 30 and engine.losses == uninterrupted[:2] and engine.done >= 2
    assert os.path.basename(checkpoints_in(tmp_path)[-1]) == "round-000002-update-000.ckpt"
    server.wait()
    assert fit(tmp_path, VLLMServerEngine([server.url])) == uninterrupted[2:]


def test_a_round_outlives_one_of_two_servers_and_the_next_load_names_it(uninterrupted, tmp_path):
    alive = vllm_servers(ALPHABET)[0].url
    with Front(lambda path, body: None, behind=alive) as dying:
        engine = Mourned([alive, dying.url], in_flight=2)
        engine.when, engine.kill = 1, dying.close
        with pytest.raises(
            RuntimeError, match=f"weights of version 2 did not reach every server: {dying.url}/.* cannot be reached"
        ):
            fit(tmp_path, engine)
        assert len(dying.completions()) > 0
    assert engine.losses == uninterrupted[:2]
