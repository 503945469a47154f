"""After every weight load: does the engine hold the trainer's weights, and does it sample as it was told?

Checksums compare the tensors that the engine can read back, exactly. A probe compares log-probabilities, so it sees whatever
changes them: tensors that cannot be read, a kept prefix cache, another temperature. Its prompt is the same every time, and
longer than a block of the key-value cache, so that a cache that survived a load is hit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..engines.protocol import Engine
from ..engines.weights import ChecksummedWeights
from ..guards.engine_gap import max_gap_of
from ..guards.engine_weights import check_checksums, probe_failed
from ..parallel import agree
from ..seeding import address
from ..types import Prompt, SamplingSpec

if TYPE_CHECKING:
    import lightning as L

PROBE_TOKENS, PROBE_SAMPLES = 36, 2
TEMPERATURES = [t / 20 for t in range(1, 61)]


def check_load(trainer: L.Trainer, engine: Engine, sent: ChecksummedWeights, temperature: float) -> None:
    """Every rank must call it.

    Raises:
        GuardError: checksums or log-probabilities differ; the message says what does.
    """
    agree(trainer, "checking the engine's weights", lambda: check_checksums(sent.checksums(), sent.sizes, engine.fingerprint()))
    chosen = next((c.max_gap_nats for c in trainer.callbacks if hasattr(c, "max_gap_nats")), None)
    limit = max_gap_of(chosen, trainer.precision, engine.dtype)
    rows = _Probe(trainer, engine, "probe", temperature)
    gap = rows.gap(temperature)
    if not gap <= limit:
        raise probe_failed(gap, limit, _cause(trainer, engine, rows, temperature, limit))


def _cause(trainer: L.Trainer, engine: Engine, rows: _Probe, temperature: float, limit: float) -> str:
    """What a failed probe shows on a second look."""
    gap, fitting = min((rows.gap(t), t) for t in TEMPERATURES)
    if gap <= limit:
        return f"They agree at temperature {fitting:g}, and the run samples at {temperature:g}: the engine applies another one"
    if _Probe(trainer, engine, f"fresh {engine.version}", temperature).gap(temperature) <= limit:
        return "They agree on a prompt that the engine has not seen: it keeps its prefix cache over a load; reset the cache"
    return "The engine's weights are not the trainer's, or it computes with them otherwise: check that it takes every update"


def probe_prompt(tokenizer, name: str, length: int) -> Prompt:
    """Plain tokens at random, the same for the same name."""
    generator = torch.Generator().manual_seed(address("weight check", name))
    special = set(tokenizer.all_special_ids)
    plain = [token for token in range(min(tokenizer.vocab_size, 1000)) if token not in special]
    chosen = torch.randint(len(plain), (length,), generator=generator).tolist()
    return Prompt(id=f"weight check {name}", token_ids=tuple(plain[i] for i in chosen))


class _Probe:
    """A few first tokens after a prompt, sampled once by every replica; scored at any temperature."""

    def __init__(self, trainer: L.Trainer, engine: Engine, name: str, temperature: float) -> None:
        prompt = probe_prompt(trainer.lightning_module.tokenizer, name, min(PROBE_TOKENS, engine.limit - 1))
        spec = SamplingSpec(temperature, max_new_tokens=1, n=PROBE_SAMPLES)
        completions = agree(trainer, "probing the engine's weights", engine.generate, [prompt] * engine.replicas, spec)
        self.trainer = trainer
        self.engine_logprobs = torch.tensor([c.logprobs[0] for c in completions])
        self.tokens = torch.tensor([prompt.token_ids + c.token_ids for c in completions])

    def gap(self, temperature: float) -> float:
        """Mean distance to the trainer's log-probabilities in nats, the largest of all ranks."""
        logprobs = self._trainer_logprobs(temperature)
        gap = (logprobs.cpu() - self.engine_logprobs).abs().mean().to(self.trainer.strategy.root_device)
        return float(self.trainer.strategy.reduce(gap, reduce_op="max"))

    def _trainer_logprobs(self, temperature: float) -> Tensor:
        """(rows,) of the last token of each row."""
        module = self.trainer.lightning_module
        model, tokens = module.sampling_model, self.tokens.to(module.device)
        keep = torch.zeros_like(tokens, dtype=torch.bool)
        keep[:, -1] = True
        training = model.training
        model.eval()
        with torch.no_grad(), self.trainer.precision_plugin.forward_context():
            logprobs = model.score(tokens, keep, temperature).logprobs[:, -1]
        if model.is_sharded:
            model.reshard()
        model.train(training)
        return logprobs
