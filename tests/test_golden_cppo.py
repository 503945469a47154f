"""Pruning against an independent float64 oracle: which rows stay, and loss and gradient of the gathered rows."""

from __future__ import annotations

import pytest
import torch

from fulgurite.losses.aggregate import denominator, weighted_sum
from fulgurite.losses.compose import Component, compose
from fulgurite.losses.kl import token_kl
from fulgurite.losses.policy import policy_loss
from fulgurite.selection.prune import kept_count, prune
from golden_vectors import DTYPES, cases, close, document, exact, name_of, tensors

pytestmark = pytest.mark.golden


def kept_rows(given: dict) -> torch.Tensor:
    groups = torch.arange(len(given["advantages"])) // given["group_size"]
    return prune(
        given["advantages"], groups, rate=given["prune_rate"], threshold=given["threshold"], scope=given["scope"],
        remove=given["metric"], drop_zero=given["drop_zero_adv"],
    )  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", cases("cppo"), ids=name_of)
def test_golden_pruning(case, dtype):
    given, want = tensors(case["inputs"], dtype), case["expected"]
    keep = kept_rows(given)
    assert keep.tolist() == want["keep"] and int(keep.sum()) == want["kept_rows"]
    mode, mask = given["aggregation"], given["mask"]
    counted = mask[keep] if given["divisor"] == "retained" else mask
    divisor = denominator(counted, mode)
    exact(divisor, want["denominator"], "denominator")
    logp = given["logp"].requires_grad_()
    rows = {name: given[name][keep] for name in ("logp_old", "mask", "advantages")}
    total, _ = policy_loss(
        logp[keep], rows["logp_old"], rows["mask"], rows["advantages"],
        eps_low=given["eps_lo"], eps_high=given["eps_hi"], aggregation=mode,
    )  # fmt: skip
    sums, components = {"policy": total}, {"policy": Component(1.0, mode)}
    if given["kl_beta"]:
        kl = token_kl(logp[keep], given["logp_ref"][keep], "k3", rows["mask"])
        sums["kl"], components["kl"] = weighted_sum(kl, rows["mask"], mode), Component(given["kl_beta"], mode)
    loss = compose(sums, components, dict.fromkeys(components, float(divisor)))
    loss.backward()
    close(loss, want["loss"], dtype, "loss")
    close(logp.grad, want["grad"], dtype, "grad")


@pytest.mark.parametrize("row", document("cppo").get("kept_count_table", []), ids=str)
def test_golden_number_of_rows_that_stay(row):
    assert kept_count(row["n"], row["prune_rate"]) == row["k"]
