"""Importance weights, effective sample size, gap statistics and the weighted policy term against a float64 oracle."""

from __future__ import annotations

import pytest

from fulgurite.losses.aggregate import denominator
from fulgurite.losses.compose import Component, compose
from fulgurite.losses.importance import Importance, effective_sample_size, gap_statistics, raw_weight, weights_of_level
from fulgurite.losses.policy import policy_loss
from golden_vectors import DTYPES, cases, close, exact, name_of, tensors

pytestmark = pytest.mark.golden

LEVELS = {"token": "token", "sequence_mean": "sequence", "sequence_product": "sequence_product"}


def settings_of(given) -> Importance:
    level = LEVELS[given["level"]]
    if given["mode"] == "mask":
        return Importance(level, "mask", low=given["low"], high=given["high"])
    return Importance(level, "truncate", cap=given["cap"] if given["mode"] == "truncate" else float("inf"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", cases("importance"), ids=name_of)
def test_golden_importance(case, dtype):
    given, want = tensors(case["inputs"], dtype), case["expected"]
    logp, old, engine, keep = given["logp"].requires_grad_(), given["logp_old"], given["logp_engine"], given["mask"]
    importance = settings_of(given)
    raw = raw_weight(old, engine, keep, importance.level)
    used = importance(raw)
    assert raw.dtype == used.dtype == dtype
    close(raw, want["raw_weight"], dtype, "raw_weight")
    close(used, want["weight"], dtype, "weight")
    exact(used[~keep], [0.0] * int((~keep).sum()), "weight at masked positions")
    for name, weight in (("ess_raw", raw), ("ess_used", used)):
        close(effective_sample_size(weights_of_level(weight, keep, importance.level)), want[name], dtype, name)
    for name, value in gap_statistics((old - engine).abs()[keep]).items():
        close(value, want[f"gap_{name}"], dtype, f"gap_{name}")

    mode = given["aggregation"]
    total, _ = policy_loss(
        logp, old, keep, given["advantages"], eps_low=given["eps_lo"], eps_high=given["eps_hi"], aggregation=mode, weight=used
    )
    loss = compose({"only": total}, {"only": Component(1.0, mode)}, {"only": denominator(keep, mode).item()})
    loss.backward()
    close(loss, want["loss"], dtype, "loss")
    close(logp.grad, want["grad"], dtype, "grad")
    exact(logp.grad[used == 0], [0.0] * int((used == 0).sum()), "grad where the weight is 0")
