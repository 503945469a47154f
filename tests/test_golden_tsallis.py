"""GARL and PAFT against an independent float64 oracle: coefficients, gradients, resampling, the verifier's limits."""

from __future__ import annotations

import math

import pytest
import torch

from fulgurite.credit.tsallis import (
    effective_sample_size,
    garl,
    log_mean,
    log_mean_of_others,
    paft,
    resample,
    tsallis_loss,
)
from golden_vectors import DTYPES, cases, document, name_of

pytestmark = pytest.mark.golden


def close(got: torch.Tensor, want, dtype: torch.dtype, field: str) -> None:
    """As the other vectors, but relative to the largest value of the field itself, however small it is."""
    want = torch.tensor(want, dtype=torch.float64)
    relative, absolute = (1e-9, 1e-12) if dtype == torch.float64 else (1e-5, 1e-5)
    allowed = relative * want.abs() + absolute * want.abs().max()
    assert got.dtype == torch.float64 and not got.requires_grad
    assert bool(((got - want).abs() <= allowed).all()), f"{field}: got {got.tolist()}, expected {want.tolist()}"


def weights(case: dict, dtype: torch.dtype) -> torch.Tensor:
    log_w = torch.tensor([case["inputs"]["log_w"]], dtype=dtype)
    if dtype == torch.float32 and log_w.abs().max() > 10:
        pytest.skip("the vectors except such weights in float32")
    return log_w


def scale_of(given: dict, size: int) -> float:
    return float(size) ** -given["q"] if given["normalise_Mq"] else 1.0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", cases("tsallis", "garl_cases"), ids=name_of)
def test_golden_garl(case, dtype):
    given, want, log_w = case["inputs"], case["expected"], weights(case, dtype)
    size, q = log_w.shape[1], given["q"]
    c, b = (rows[0] for rows in garl(log_w, q))
    plugin, _ = (rows[0] for rows in garl(log_w, q, leave_one_out=False))
    close(log_mean(log_w)[0], want["log_wbar"], dtype, "log_wbar")
    close(log_mean_of_others(log_w)[0], want["log_wbar_loo"], dtype, "log_wbar_loo")
    close(c, want["c"], dtype, "c")
    close(b, want["b"], dtype, "b")
    close(tsallis_loss(log_mean(log_w), q)[0], want["ell_q_of_wbar"], dtype, "ell_q_of_wbar")
    factor = -scale_of(given, size) / size
    close(factor * c, want["grad_sum_logp_z"], dtype, "grad_sum_logp_z")
    close(factor * b, want["grad_sum_logp_y"], dtype, "grad_sum_logp_y")
    close(factor * plugin, want["grad_sum_logp_z_plugin"], dtype, "grad_sum_logp_z_plugin")
    if dtype == torch.float64:
        loss = factor * (c * torch.tensor(given["sum_logp_z"], dtype=dtype) + b * log_w[0]).sum()
        close(loss, want["surrogate_loss"], dtype, "surrogate_loss")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", cases("tsallis", "paft_cases"), ids=name_of)
def test_golden_paft(case, dtype):
    given, want, log_w = case["inputs"], case["expected"], weights(case, dtype)
    size, q, draws = log_w.shape[1], given["q"], given["K"]
    factor = -scale_of(given, size) / size
    coefficients = paft(log_w, torch.tensor([given["counts"]]), q)[0]
    close(factor * coefficients, want["grad_sum_logp_z"], dtype, "grad_sum_logp_z")
    shares = log_w.double().softmax(1)
    close(draws * shares[0], want["expected_counts"], dtype, "expected_counts")
    close(factor * paft(log_w, draws * shares, q)[0], want["mean_grad"], dtype, "mean_grad")
    close(effective_sample_size(log_w)[0], want["ess"], dtype, "ess")
    points = (given["systematic_offset_u"] + torch.arange(draws, dtype=torch.float64)) / draws
    assert resample(log_w, points[None])[0].tolist() == want["systematic_counts"]


@pytest.mark.parametrize("row", document("tsallis").get("loss_family", []), ids=str)
def test_golden_loss_family(row):
    log_p = torch.tensor([row["log_P"]], dtype=torch.float64, requires_grad=True)
    loss = tsallis_loss(log_p, row["q"])
    loss.sum().backward()
    close(loss.detach()[0], row["ell_q"], torch.float64, "ell_q")
    # torch takes the derivative of expm1 from its value, which is -1 to the last bit for a probability of exp(-500)
    assert float(log_p.grad[0]) == pytest.approx(row["d_ell_d_logP"], rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("row", document("tsallis").get("verifier_table", []), ids=str)
def test_golden_verifier_table(row):
    size, solved, q = row["M"], row["K"], row["q"]
    success = torch.arange(size) < solved
    log_w = success.double().log()[None]
    c, _ = garl(log_w, q)
    want = [row["a_success"]] * solved + [row["a_failure"]] * (size - solved)
    close(c[0], want, torch.float64, "a")
    assert bool((c == 0).all()) == row["all_zero"]
    drawn = paft(log_w, success[None].double(), q) if solved else paft(log_w, torch.ones(1, size), q)
    want = [row["paft_weight"] * size / max(1, solved)] * solved + [0.0] * (size - solved)
    close(drawn[0], want, torch.float64, "paft")


@pytest.mark.parametrize("row", document("tsallis").get("eta_table", []), ids=str)
def test_golden_eta(row):
    """The mean gradient of verified pools over that of l_q, summed over the number of successes."""
    size, p, q = row["M"], row["P"], row["q"]
    got = {"eta": 0.0, "eta_leave_one_out": 0.0}
    for solved in range(size + 1):
        chance = math.comb(size, solved) * p**solved * (1 - p) ** (size - solved)
        log_w = (torch.arange(size) < solved).double().log()[None]
        for name, leave_one_out in (("eta", False), ("eta_leave_one_out", True)):
            c = garl(log_w, q, leave_one_out)[0][0]
            # scores are 1/p of a success and -1/(1-p) of a failure, in units of the gradient of p
            slope = (c[:solved].sum() / p - c[solved:].sum() / (1 - p)) / size
            got[name] += chance * float(slope) * p**q
    for name, value in got.items():
        assert value == pytest.approx(row[name], rel=1e-9), name


@pytest.mark.parametrize("case", cases("tsallis", "amplifier_cases"), ids=name_of)
def test_golden_capped_amplifier(case):
    given, want, log_w = case["inputs"], case["expected"], weights(case, torch.float64)
    for p_min, name in ((0.0, "plugin"), (given["p_min"], "clip")):
        _, b = garl(log_w, given["q"], p_min=p_min)
        close((b / log_w.exp())[0], want[name], torch.float64, name)
