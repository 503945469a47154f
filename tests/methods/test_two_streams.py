"""A method of its own: two loss components, each with a coefficient stream and a segment, and a callback that sets both.

`latent` weighs the tokens the policy sampled, `answer` the gold tokens that the callback appends to each row.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from tabular import assert_same, fit, whole_logprobs
from torch.nn.functional import pad

from fulgurite.credit.group import Advantage
from fulgurite.data.transforms import RoundTransform
from fulgurite.losses.aggregate import weighted_sum
from fulgurite.losses.compose import Component
from fulgurite.modules.base import RoundModule
from fulgurite.modules.optimizer import OptimizerSpec
from fulgurite.types import Minibatch, Segment
from tiny import TINY, tiny_data

GOLD = {0: [5, 6, 1], 1: [7, 1], 2: [1]}
"""Gold tokens of a row by its place in the group; the end-of-sequence token is 1."""
ANSWER = {0: 2.0, 1: -0.5, 2: 0.0}
"""Its coefficient in the stream `answer`."""


class TwoStreams(RoundModule):
    def __init__(self, tokens_per_microbatch: int) -> None:
        optimizer = OptimizerSpec(learning_rate=1e-2, max_grad_norm=0.0)
        super().__init__({"policy": TINY}, {}, {"policy": optimizer}, tokens_per_microbatch)
        self.scored = []

    @property
    def components(self):
        return {
            "latent": Component(1.0, "token_mean", (Segment.SAMPLED,), "latent"),
            "answer": Component(0.5, "seq_mean_token_sum", (Segment.GOLD,), "answer"),
        }

    def losses(self, rows: Minibatch, model: str):
        logp = self.trained["policy"].score(rows.tokens, rows.keep(), rows.temperature).logprobs
        logp.retain_grad()
        self.scored.append((self.current_epoch, rows, logp))
        sums = {
            name: weighted_sum(-logp, part.keep(rows), part.aggregation, rows.coefficients[name])
            for name, part in self.components.items()
        }
        return sums, {}


class AppendGold(Callback, RoundTransform):
    stage, streams = "advantage", ("latent", "answer")

    def __init__(self) -> None:
        self.kept = []

    def transform(self, held):
        places = [row % 3 for row in range(len(held))]
        tokens, segments = pad(held.tokens, (0, 3)), pad(held.segments, (0, 3))
        for row, (place, length) in enumerate(zip(places, (held.segments != 0).sum(1).tolist(), strict=True)):
            end = length + len(GOLD[place])
            tokens[row, length:end] = torch.tensor(GOLD[place])
            segments[row, length:end] = int(Segment.GOLD)
        numbers = torch.arange(len(held)).float()[:, None].expand(tokens.shape)
        held = replace(held, tokens=tokens, segments=segments, columns={"row": numbers})
        latent = Advantage(scale="none")(held.rewards, held.group_index)
        return held.with_coefficients(latent=latent, answer=torch.tensor([ANSWER[place] for place in places]))

    def on_round(self, trainer, module, sampled, kept) -> None:
        self.kept.append(kept)


@pytest.fixture(scope="module")
def run():
    module, gold = TwoStreams(tokens_per_microbatch=40), AppendGold()
    recorder = fit(module, tiny_data(advantage=None), gold, max_epochs=2)
    return module, gold.kept, recorder


def by_hand(held) -> torch.Tensor:
    """(N, L) the gradient of the loss in the log-probability of each token."""
    sampled, gold = (held.segments == int(kind) for kind in (Segment.SAMPLED, Segment.GOLD))
    latent = -held.coefficients["latent"][:, None] / int(sampled.sum())
    answer = -0.5 * held.coefficients["answer"][:, None] / len(held)
    return torch.where(sampled, latent, 0) + torch.where(gold, answer, 0)


def test_the_gradient_is_that_of_both_components(run):
    module, rounds, recorder = run
    model = deepcopy(module.trained["policy"])
    assert len(rounds) == len(recorder.gradients) == 2
    for held, weights, got in zip(rounds, recorder.weights, recorder.gradients, strict=False):
        model.load_state_dict({k.removeprefix("policy."): v for k, v in weights.items()}, strict=False)
        loss = (by_hand(held) * whole_logprobs(model.hf, held.tokens)).sum()
        want = torch.autograd.grad(loss, list(model.parameters()))
        assert_same(got, dict(zip(got, want, strict=True)), relative=1e-5)  # float32 models


def test_each_stream_reaches_its_own_segment_only(run):
    """And the denominators are those of the update, though the rows are cut into several micro-batches."""
    module, rounds, _ = run
    for number, held in enumerate(rounds):
        want, reached = by_hand(held), []
        parts = [(rows, logp) for epoch, rows, logp in module.scored if epoch == number]
        assert len(parts) > 2
        for rows, logp in parts:
            numbers = rows.columns["row"][:, 0].long()
            torch.testing.assert_close(logp.grad, want[numbers, : logp.shape[1]], rtol=1e-6, atol=0)
            assert rows.denominators == {"latent": int((held.segments == int(Segment.SAMPLED)).sum()), "answer": len(held)}
            reached += numbers.tolist()
        assert sorted(reached) == (want != 0).any(1).nonzero().flatten().tolist()
        assert 0 < len(reached) < len(held), "some rows have no coefficient in either stream, and are left out"
