"""After every weight load: does the engine hold the trainer's weights, and does it sample as it was told?

Checksums compare the tensors that the engine can read back, exactly. A probe compares log-probabilities, so it sees whatever
changes them: tensors that cannot be read, a kept prefix cache, another temperature. Its prompt is the same every time, and
longer than a block of the key-value cache, so that a cache that survived a load is hit. After an engine's first load the probe
is longer, and its draws are compared with the trainer's distribution, too: log-probabilities alone say nothing of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..engines.protocol import Engine
from ..engines.weights import ChecksummedWeights
from ..guards.engine_gap import max_gap_of
from ..guards.engine_weights import check_checksums, check_draws, check_version, probe_failed
from ..parallel import agree
from ..seeding import address
from ..types import Prompt, SamplingSpec

if TYPE_CHECKING:
    import lightning as L

    from ..models.causal_lm import CausalLM

PROBE_TOKENS, FIRST_TOKENS, DRAWS = 36, 8, 512


def check_load(trainer: L.Trainer, engine: Engine, model: CausalLM, sent: ChecksummedWeights, temperature: float) -> None:
    """Compares the engine with the model whose weights it was sent. Every rank must call it.

    Raises:
        GuardError: version, checksums, log-probabilities or draws differ; the message says what does.
    """
    for _ in sent:  # what the engine left unread; gathering a weight is collective
        pass
    compared = agree(trainer, "checking the engine's weights", _compare, trainer, engine, sent)
    chosen = next((c.max_gap_nats for c in trainer.callbacks if hasattr(c, "max_gap_nats")), None)
    limit = max_gap_of(chosen, trainer, engine.dtype)
    probe = _Probe(trainer, engine, model, "probe", temperature, tokens=1 if engine.draws_checked else FIRST_TOKENS)
    gap = probe.gap(temperature)
    if not _largest(trainer, gap) <= limit:
        cause = _cause(trainer, engine, model, temperature, limit, compared)
        agree(trainer, "probing the engine's weights", _judge, gap, limit, cause)
    if not engine.draws_checked:
        draws = _Probe(trainer, engine, model, "draws", temperature, samples=DRAWS)
        agree(trainer, "checking the engine's draws", check_draws, *draws.excess(temperature), temperature)
        engine.draws_checked = True


def _compare(trainer: L.Trainer, engine: Engine, sent: ChecksummedWeights) -> int:
    check_version(int(trainer.lightning_module.updates), engine.version)
    return check_checksums(sent.checksums(), engine.fingerprint())


def _judge(gap: float, limit: float, cause: str) -> None:
    if not gap <= limit:
        raise probe_failed(gap, limit, cause)


def _largest(trainer: L.Trainer, gap: float) -> float:
    """Of all ranks; not a number counts as infinite."""
    value = torch.tensor(gap, device=trainer.strategy.root_device).nan_to_num(torch.inf)
    return float(trainer.strategy.reduce(value, reduce_op="max"))


def _cause(trainer: L.Trainer, engine: Engine, model: CausalLM, temperature: float, limit: float, compared: int) -> str:
    """What a failed probe shows on a second look, at many first tokens after a prompt that the engine has not seen."""
    fresh = _Probe(trainer, engine, model, f"fresh {engine.version}", temperature, samples=64)
    gaps = {t: fresh.gap(t) for t in (temperature, *(i / 50 for i in range(5, 151)))}
    fitting = min(gaps, key=gaps.__getitem__)
    differences = fresh.difference(temperature)
    if gaps[temperature] <= limit:
        return "They agree on a prompt that the engine has not seen: it keeps its prefix cache over a load; reset the cache"
    if gaps[fitting] <= limit and gaps[fitting] < gaps[temperature] / 10:
        return (
            f"Its log-probabilities are those of temperature {fitting:g}, and the run samples at {temperature:g}: it samples "
            "at another temperature, or reports log-probabilities that are not scaled"
        )
    if differences.std() < abs(differences.mean()) / 100:
        return (
            "They differ by the same number on every token: the engine cuts the distribution with a top_p or top_k of its own"
        )
    equal = f"The {compared} tensors that can be read are the trainer's" if compared else "No tensor can be read"
    return f"{equal}; others are not, or the engine computes otherwise: check that it takes every update, and its precision"


def probe_prompt(tokenizer, name: str, length: int) -> Prompt:
    """Plain tokens at random, the same for the same name."""
    generator = torch.Generator().manual_seed(address("weight check", name))
    special = set(tokenizer.all_special_ids)
    plain = [token for token in range(min(tokenizer.vocab_size, 1000)) if token not in special]
    chosen = torch.randint(len(plain), (length,), generator=generator).tolist()
    return Prompt(id=f"weight check {name}", token_ids=tuple(plain[i] for i in chosen))


class _Probe:
    """A few completions of a prompt, drawn once by every replica; scored at any temperature."""

    def __init__(
        self,
        trainer: L.Trainer,
        engine: Engine,
        model: CausalLM,
        name: str,
        temperature: float,
        samples: int = 1,
        tokens: int = 1,
    ) -> None:
        prompt = probe_prompt(trainer.lightning_module.tokenizer, name, min(PROBE_TOKENS, engine.limit - tokens))
        spec = SamplingSpec(temperature, max_new_tokens=tokens, n=samples)
        drawn = agree(trainer, "probing the engine's weights", engine.generate, [prompt] * engine.replicas, spec)
        self.trainer, self.model, start = trainer, model, len(prompt.token_ids)
        self.engine_logprobs = torch.tensor([p for c in drawn for p in c.logprobs])
        self.tokens = torch.zeros(len(drawn), start + tokens, dtype=torch.int64)
        self.keep = torch.zeros_like(self.tokens, dtype=torch.bool)
        for row, keep, completion in zip(self.tokens, self.keep, drawn, strict=True):
            end = start + len(completion.token_ids)
            row[:end] = torch.tensor(prompt.token_ids + completion.token_ids)
            keep[start:end] = True

    def difference(self, temperature: float) -> Tensor:
        """(drawn tokens,) the engine's log-probabilities less the trainer's, in nats."""
        return self.engine_logprobs - self._scores(temperature)[0]

    def gap(self, temperature: float) -> float:
        """Mean distance of the two, in nats."""
        return float(self.difference(temperature).abs().mean())

    def excess(self, temperature: float) -> tuple[float, float]:
        """How much less likely the draws are than the entropy of the trainer's distribution has it, in nats and in standard
        deviations: 0 in the mean where they come from it."""
        logprobs, entropy = self._scores(temperature)
        surprise = -logprobs - entropy
        mean, spread = float(surprise.mean()), float(surprise.std()) / len(surprise) ** 0.5
        return mean, mean / max(spread, 1e-3)

    def _scores(self, temperature: float) -> tuple[Tensor, Tensor]:
        """(drawn tokens,) the trainer's log-probabilities, and the entropies of their distributions."""
        model, device = self.model, self.trainer.strategy.root_device
        keep, training = self.keep.to(device), model.training
        model.eval()
        with torch.no_grad(), self.trainer.precision_plugin.forward_context():
            scores = model.score(self.tokens.to(device), keep, temperature)
        if model.is_sharded:
            model.reshard()
        model.train(training)
        return scores.logprobs[keep].float().cpu(), scores.entropy[keep].float().cpu()
