"""CoDistill-GRPO against an independent float64 oracle: rewards, selection, credit, both losses, maximal variance."""

from __future__ import annotations

import pytest
import torch

from fulgurite.credit.group import group_advantages
from fulgurite.credit.kd_reward import kd_reward
from fulgurite.losses.aggregate import denominator
from fulgurite.losses.policy import policy_loss
from fulgurite.losses.ratio import log_ratio
from fulgurite.selection.downsample import downsample
from golden_vectors import DTYPES, cases, close, name_of, tensors

pytestmark = pytest.mark.golden


def centred(values: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    return group_advantages(values, groups, scale="none", baseline="mean")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", cases("codistill"), ids=name_of)
def test_golden_codistill(case, dtype):
    given, want = tensors(case["inputs"], dtype), case["expected"]
    mask = torch.tensor(case["inputs"]["completion_mask"])
    hint = torch.tensor(case["inputs"]["hint_mask"])
    mask = mask | hint if given["is_includes_hint"] else mask & ~hint
    assert mask.tolist() == want["mask"]
    const_len = given["const_len"] if given["kd_norm"] == "const" else None
    kd = kd_reward(given["logp_small_old"], given["logp_large_old"], mask, const_len)
    close(kd, want["kd"], dtype, "kd")
    effective = given["rewards"].double() + given["alpha"] * kd
    close(effective, want["effective_reward"], dtype, "effective_reward")
    groups = given["group_index"]
    keep = torch.ones(len(groups), dtype=torch.bool)
    if given["downsample"] != "none":
        rule = {"max_var": "max_variance", "top": "top"}[given["downsample"]]
        keep = downsample(centred(effective, groups), groups, given["keep_G"], rule)
    if want["keep_unique"]:
        assert keep.tolist() == want["keep"]
    else:
        keep = torch.tensor(want["keep"])
    credits = {"small": effective, "large": given["rewards"]}
    streams = {}
    for name, rewards in credits.items():
        whole = centred(rewards, groups)
        streams[name] = centred(whole[keep], groups[keep]) if given["baseline_over"] == "kept" else whole[keep]
        spread = torch.zeros(len(groups), dtype=streams[name].dtype).masked_scatter(keep, streams[name])
        close(spread, want[f"advantage_{name}"], dtype, f"advantage_{name}")
    mode = "seq_mean_token_mean" if given["loss_norm"] == "seq_len" else "seq_mean_token_sum_const"
    for name, advantages in streams.items():
        logp = given[f"logp_{name}"].requires_grad_()
        old, kept = given["logp_small_old"][keep], mask[keep]
        total, metrics = policy_loss(
            logp[keep], old, kept, advantages.to(dtype),
            eps_low=given["eps_lo"], eps_high=given["eps_hi"], aggregation=mode, ratio_level=given["ratio_level"],
        )  # fmt: skip
        loss = total / denominator(kept, mode, given["const_len"])
        loss.backward()
        close(loss, want[name]["loss"], dtype, f"{name} loss")
        close(logp.grad, want[name]["grad"], dtype, f"{name} grad")
        shares = {key: float(value / max(1, int(count))) for key, (value, count) in metrics.items()}
        assert shares["clip_fraction_low"] == pytest.approx(want[name]["clip_frac_low"])
        assert shares["clip_fraction_high"] == pytest.approx(want[name]["clip_frac_high"])
        ratio = log_ratio(logp.detach()[keep], old, kept, "token").exp()
        outside = kept & ((ratio < 1 - given["eps_lo"]) | (ratio > 1 + given["eps_hi"]))
        share = float(outside.sum() / max(1, int(kept.sum())))
        assert share == pytest.approx(want[name]["frac_ratio_outside_window"])


@pytest.mark.parametrize("case", cases("codistill", "subset_cases"), ids=name_of)
def test_golden_subsets_of_maximal_variance(case):
    given, want = case["inputs"], case["expected"]
    values = torch.tensor(given["values"], dtype=torch.float64)
    keep = downsample(values, torch.zeros(len(values), dtype=torch.int64), given["keep"], "max_variance")
    chosen = keep.nonzero().flatten().tolist()
    assert float(values[keep].var(correction=0)) == pytest.approx(want["variance_ddof0"], abs=1e-15)
    assert chosen in want["all_optimal"] or len(want["all_optimal"]) == 60
    if want["unique"]:
        assert chosen == want["indices"]
