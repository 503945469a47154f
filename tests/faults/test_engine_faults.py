"""Engines that serve other weights than the trainer's, or sample otherwise than told: each stops the run and is named."""

from dataclasses import replace

import pytest

from fulgurite.engines.transformers_engine import TransformersEngine
from fulgurite.guards import GuardError
from fulgurite.types import SamplingSpec
from tiny import VLLM_TINY, require_vllm_cpu, tiny_data, tiny_grpo, tiny_trainer


class Copying(TransformersEngine):
    """The embedded engine with a copy of its own, as it has of a sharded model."""

    def bind(self, model, tokenizer):
        model.is_sharded = True
        super().bind(model, tokenizer)
        model.is_sharded = False


class Ignoring:
    """Takes the first load, and no other."""

    loads = 0

    def load_weights(self, weights, version):
        self.loads += 1
        if self.loads == 1:
            return super().load_weights(weights, version)
        list(weights)
        self.version = version


class TakingHalf:
    """Of every load after the first it takes every second tensor; the rest stays as it was."""

    older = None

    def load_weights(self, weights, version):
        new = [(name, weight.clone()) for name, weight in weights]
        mixed = new if self.older is None else [pair for i, pair in enumerate(new) if i % 2] + self.older
        self.older = [pair for i, pair in enumerate(new) if not i % 2] if self.older is None else self.older
        super().load_weights(mixed, version)


class AnotherTemperature:
    def generate(self, prompts, spec):
        return super().generate(prompts, replace(spec, temperature=1.3))


def train(engine, temperature=1.0, epochs=4):
    data = tiny_data(engine=engine, sampling=SamplingSpec(temperature, max_new_tokens=5))
    module = tiny_grpo(policy=VLLM_TINY)
    tiny_trainer(max_epochs=epochs, enable_checkpointing=False).fit(module, datamodule=data)
    return module


def faulty(fault, engine):
    return type(f"{fault.__name__}{engine.__name__}", (fault, engine), {})()


FAULTS = {
    Ignoring: "tensors of the engine are not the weights it was just given",
    TakingHalf: "tensors of the engine are not the weights it was just given",
    AnotherTemperature: "They agree at temperature 1.3, and the run samples at 0.7: the engine applies another one",
}


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_sound_engine_trains_to_the_end(temperature):
    assert int(train(Copying(), temperature).updates) == 4


@pytest.mark.parametrize("fault", list(FAULTS))
def test_a_faulty_engine_stops_the_run_and_is_named(fault):
    with pytest.raises(GuardError, match=FAULTS[fault]):
        train(faulty(fault, Copying), temperature=0.7)


@pytest.mark.parametrize("fault", [Ignoring, TakingHalf])
def test_the_probe_sees_what_cannot_be_read(fault, monkeypatch):
    """An engine whose tensors are packed has no checksums; its log-probabilities tell."""
    monkeypatch.setattr(Copying, "fingerprint", lambda self: [])
    with pytest.raises(GuardError, match="The engine's weights are not the trainer's"):
        train(faulty(fault, Copying))


def test_one_wrong_element_is_seen():
    class Flipping(Copying):
        def load_weights(self, weights, version):
            super().load_weights(weights, version)
            if version == 2:
                self.model.hf.model.norm.weight.data[3] += 1e-6

    with pytest.raises(GuardError, match=r"1 of 26 tensors .*: model.norm.weight; expected equal checksums"):
        train(Flipping())


@pytest.fixture(scope="module")
def vllm():
    require_vllm_cpu()
    from fulgurite.engines import vllm_engine

    return vllm_engine


class KeepingItsCache:
    def _forget(self):
        pass


VLLM_FAULTS = {**FAULTS, KeepingItsCache: "it keeps its prefix cache over a load"}


@pytest.mark.parametrize("fault", [None, *VLLM_FAULTS])
def test_vllm(vllm, fault):
    if fault is None:
        assert int(train(vllm.VLLMEngine(), 0.7).updates) == 4
        return
    with pytest.raises(GuardError, match=VLLM_FAULTS[fault]):
        train(faulty(fault, vllm.VLLMEngine), temperature=0.7)
