"""GARL and PAFT through `LatentReasoning` and the callback in a real fit: expectations over every pool, limits, and rounds."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from itertools import product

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from tabular import TabularGRPO, assert_same, fit, single_tokens, whole_logprobs
from torch import Tensor, nn

from fulgurite.callbacks.downsampling import DownSampling
from fulgurite.callbacks.tsallis import TsallisReweighting
from fulgurite.credit.group import group_advantages
from fulgurite.credit.tsallis import garl, paft, resample, tsallis_loss
from fulgurite.data.gold import GoldAnswer
from fulgurite.models.causal_lm import CausalLM
from fulgurite.models.scoring import Scores
from fulgurite.modules.latent_reasoning import LatentReasoning
from fulgurite.modules.optimizer import OptimizerSpec
from fulgurite.tasks.addition import Addition
from fulgurite.types import Completion, ConfigError, Prompt, Round, SamplingSpec, Segment, Verdict
from golden_vectors import cases, document, name_of
from tiny import TINY, tiny_data, tiny_grpo

STILL = OptimizerSpec(learning_rate=0.0, max_grad_norm=0.0)
TABLES = cases("tsallis", "tabular")
ROW = (Segment.PROMPT, Segment.SAMPLED, Segment.GOLD)


class LatentTable(nn.Module):
    """p(z) = softmax(rationale), p(y* | z) = sigmoid(answer[z]), in float64; rows are prompt, z, y*."""

    packs = False

    def __init__(self, rationale: list[float], answer: list[float]) -> None:
        super().__init__()
        self.rationale = nn.Parameter(torch.tensor(rationale, dtype=torch.float64))
        self.answer = nn.Parameter(torch.tensor(answer, dtype=torch.float64))

    def score(self, tokens: Tensor, keep: Tensor, temperature: float = 1.0) -> Scores:
        z = tokens[:, 1]
        values = torch.stack(
            [torch.zeros(len(z)), self.rationale.log_softmax(0)[z], nn.functional.logsigmoid(self.answer)[z]], 1
        )
        return Scores(torch.where(keep, values, 0.0), torch.zeros_like(values), None)


class TabularLatent(LatentReasoning):
    def __init__(self, rationale: list[float], answer: list[float]) -> None:
        super().__init__("a table", optimizer=STILL)
        self.tables = rationale, answer

    def configure_model(self) -> None:
        self.trained["policy"] = LatentTable(*self.tables)


def of_case(case: dict) -> TabularLatent:
    return TabularLatent(case["inputs"]["rationale_logits"], case["inputs"]["answer_logits"])


def pools(size: int) -> Iterator[tuple[int, ...]]:
    """Every pool of `size` rationales out of three, up to its order."""
    for first in range(size + 1):
        for second in range(size + 1 - first):
            yield (0,) * first + (1,) * second + (2,) * (size - first - second)


def chance_of(pool: tuple[int, ...], logp: Tensor) -> float:
    ways = math.factorial(len(pool)) / math.prod(math.factorial(pool.count(z)) for z in set(pool))
    return ways * float(logp[list(pool)].sum().exp())


def latent_round(module: LatentReasoning, groups: list[tuple[int, ...]]) -> Round:
    """A round with these rationales of each prompt, and the column `gold` that the module computes."""
    tokens = torch.tensor([[0, z, 1] for group in groups for z in group])
    rows = len(tokens)
    held = Round(
        number=0,
        weight_version=0,
        prompts=tuple(Prompt(id=f"q{i}") for i in range(len(groups))),
        completions=(Completion((1,), (0.0,), "stop", ""),) * rows,
        verdicts=(Verdict("wrong", {}, 0.0),) * rows,
        group_index=torch.arange(len(groups)).repeat_interleave(len(groups[0])),
        step=torch.zeros(rows, dtype=torch.int64),
        tokens=tokens,
        segments=torch.tensor([ROW], dtype=torch.uint8).repeat(rows, 1),
        rewards=torch.zeros(rows),
    )
    module.configure_model()
    return held.with_columns(gold=module.column("gold", held.all_rows()))


def mean_gradient(case: dict, size: int, **settings) -> Tensor:
    """(6,) the gradient of the module's loss, its mean over all pools of the policy; rationale logits first."""
    module, groups = of_case(case), list(pools(size))
    callback = TsallisReweighting(q=case["inputs"]["q"], normalise=False, **settings)
    held = callback.transform(latent_round(module, groups))
    logp = torch.tensor(case["inputs"]["rationale_logits"], dtype=torch.float64).log_softmax(0)
    # The loss is linear in the coefficients, so a pool's chance may stand in them; the rows are weighed by their number.
    chance = torch.tensor([chance_of(group, logp) for group in groups], dtype=torch.float64)
    weight = (chance * len(groups)).repeat_interleave(size)
    minibatch = replace(held.all_rows(), coefficients={k: v.double() * weight for k, v in held.coefficients.items()})
    return gradient_of(module, minibatch)


def gradient_of(module: LatentReasoning, minibatch) -> Tensor:
    (gradient,) = fit(module, [minibatch]).gradients
    return torch.cat([gradient["policy.rationale"], gradient["policy.answer"]])


def close(got: Tensor, want: list[float] | Tensor, relative: float = 1e-6) -> None:
    """Coefficients of a round are float32."""
    want = torch.as_tensor(want, dtype=torch.float64)
    assert float((got - want).abs().max()) <= relative * float(want.abs().max()), (got.tolist(), want.tolist())


# The mean gradient, by enumeration through the module


@pytest.mark.golden
@pytest.mark.parametrize("leave_one_out", [True, False])
@pytest.mark.parametrize("case", TABLES, ids=name_of)
def test_the_mean_gradient_of_garl_over_all_pools(case, leave_one_out):
    for size, want in case["expected"]["by_M"].items():
        close(mean_gradient(case, int(size), leave_one_out=leave_one_out), want["mean_gradient"])
    if case["inputs"]["q"] == 0:
        close(mean_gradient(case, 3, leave_one_out=leave_one_out), [-g for g in case["expected"]["grad_P"]])


@pytest.mark.golden
@pytest.mark.parametrize("case", TABLES, ids=name_of)
def test_the_bias_shrinks_with_the_size_of_the_pool_as_derived(case):
    want = torch.tensor(case["expected"]["grad_ell_q"], dtype=torch.float64)
    limit = torch.tensor(case["expected"]["bias_times_M_limit"], dtype=torch.float64)
    if case["inputs"]["q"] == 0:
        return close(mean_gradient(case, 8), want)
    scaled = {size: size * (mean_gradient(case, size) - want) for size in (8, 16, 32)}
    errors = [float((value - limit).abs().max()) for value in scaled.values()]
    assert errors[2] < errors[1] < errors[0]
    # the next order falls with the size: extrapolated, it is gone
    close(2 * scaled[32] - scaled[16], limit, relative=0.1)


@pytest.mark.golden
@pytest.mark.parametrize("case", TABLES[:10], ids=name_of)
def test_the_mean_gradient_of_paft_is_that_of_garl_without_a_baseline_pool_by_pool(case, monkeypatch):
    """Every draw of 3 of 3, with its chance, through the callback's own resampling."""
    for pool in ((0, 1, 2), (0, 0, 2), (1, 1, 1)):
        module = of_case(case)
        log_w = latent_round(module, [pool]).columns["gold"][:, 2].double()
        shares = log_w.softmax(0)
        middles = shares.cumsum(0) - shares / 2
        draws = list(product(range(3), repeat=3))
        held = latent_round(module, [pool] * len(draws))
        callback, points = TsallisReweighting("paft", q=case["inputs"]["q"]), middles[torch.tensor(draws)]
        monkeypatch.setattr(callback, "_points", lambda held, size, at=points: at)
        held = callback.transform(held)
        weight = (shares[torch.tensor(draws)].prod(1) * len(draws)).repeat_interleave(3)
        minibatch = replace(held.all_rows(), coefficients={k: v.double() * weight for k, v in held.coefficients.items()})
        got = gradient_of(module, minibatch)
        plain = TsallisReweighting(q=case["inputs"]["q"], leave_one_out=False).transform(latent_round(module, [pool]))
        close(got, gradient_of(of_case(case), plain.all_rows()))


@pytest.mark.golden
@pytest.mark.parametrize("estimator", ["garl", "paft"])
@pytest.mark.parametrize("q", [0.0, 0.25, 0.75, 1.0])
@pytest.mark.parametrize("normalise", [True, False])
def test_the_loss_is_the_surrogate_and_its_gradient_the_explicit_formula(estimator, q, normalise):
    pool, tables = (2, 0, 2, 1), ([0.671, -0.247, 0.644], [-0.903, 0.231, -3.0])
    module = TabularLatent(*tables)
    callback = TsallisReweighting(estimator, q=q, normalise=normalise, resampling="systematic")
    held = callback.transform(latent_round(module, [pool]))
    recorder = fit(module, [held.all_rows()])
    z, y = (torch.tensor(t, dtype=torch.float64, requires_grad=True) for t in tables)
    log_z, log_y = z.log_softmax(0)[list(pool)], nn.functional.logsigmoid(y)[list(pool)]
    w, scale = log_y.exp().detach(), 1.0 if not normalise else 4**-q
    mean = w.mean()
    if estimator == "garl":
        others = torch.stack([(w.sum() - w[m]) / 3 for m in range(4)])
        loss = -(scale / 4) * ((w / mean**q - others ** (1 - q)) * log_z + w / mean**q * log_y).sum()
    else:
        counts = held.coefficients["policy"].double() / (scale * mean ** (1 - q))
        assert counts.sum() == pytest.approx(4, rel=1e-6)
        assert float((counts - counts.round()).abs().max()) < 1e-6
        loss = -(scale / 4) * mean ** (1 - q) * (counts * (log_z + log_y)).sum()
    loss.backward()
    assert recorder.updates[0]["loss"] == pytest.approx(float(loss.detach()), rel=1e-6)
    close(torch.cat(list(recorder.gradients[0].values())), torch.cat([z.grad, y.grad]))


def test_the_answer_term_can_be_left_out():
    tables = ([0.671, -0.247, 0.644], [-0.903, 0.231, -3.0])
    both, reasoning = (
        gradient_of(module, TsallisReweighting(pathwise=pathwise).transform(latent_round(module, [(0, 1, 2)])).all_rows())
        for pathwise in (True, False)
        for module in [TabularLatent(*tables)]
    )
    assert torch.equal(both[:3], reasoning[:3]) and both[3:].abs().min() > 0 and not reasoning[3:].any()


# Coefficients


def random_weights(groups: int = 50, size: int = 6) -> Tensor:
    return -8 * torch.rand(groups, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("q", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_laws_of_the_coefficients(q):
    log_w = random_weights()
    c, b = garl(log_w, q)
    w = log_w.exp()
    if q == 0:
        others = (w.sum(1, keepdim=True) - w) / 5
        torch.testing.assert_close(c, w - others, rtol=1e-12, atol=1e-15)
    if q == 1:
        assert float(c.sum(1).abs().max()) < 1e-12
    same, _ = garl(log_w[:, :1].expand(-1, 6), q)
    assert float(same.abs().max()) < 1e-14, "equal weights have no credit"
    scaled, _ = garl(log_w + math.log(0.01), q)
    torch.testing.assert_close(scaled, c * 0.01 ** (1 - q), rtol=1e-9, atol=1e-15)
    largest = b / 6**q
    assert float(largest.max()) <= 1
    alone = torch.full((1, 6), -torch.inf, dtype=torch.float64)
    alone[0, 3] = 0.0
    assert float(garl(alone, q)[1].max()) / 6**q == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("q", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_weights_of_exp_minus_500_are_ordinary(q):
    """At -500 only a common factor separates the coefficients from those of moderate weights; and a few are 0."""
    log_w = random_weights()
    for function in (lambda x: garl(x, q)[0], lambda x: garl(x, q)[1], lambda x: paft(x, torch.ones(50, 6), q)):
        want, got = function(log_w), function(log_w - 500)
        assert got.isfinite().all() and got.abs().min() > 0
        torch.testing.assert_close(got, want * math.exp(-500 * (1 - q)), rtol=1e-9, atol=0)
    log_w[:, 0], log_w[0] = -torch.inf, -torch.inf
    c, b = garl(log_w, q)
    assert c.isfinite().all() and not b[:, 0].any() and not c[0].any()
    assert (c[1:, 0] < 0).all(), "a row of weight 0 beside others is made less likely"


@pytest.mark.parametrize("q", [0.25, 0.75, 1.0])
def test_the_cap_bounds_what_a_small_mean_is_amplified_by(q):
    log_w = random_weights() - 6
    c, b = garl(log_w, q, p_min=0.05)
    torch.testing.assert_close(b, log_w.exp() * 0.05**-q, rtol=1e-12, atol=0)
    others = (log_w.exp().sum(1, keepdim=True) - log_w.exp()) / 5
    torch.testing.assert_close(c, (log_w.exp() - others) * 0.05**-q, rtol=1e-9, atol=1e-16)
    torch.testing.assert_close(paft(log_w, torch.ones(50, 6), q, 0.05), b.mean(1, keepdim=True).expand(-1, 6))
    free, capped = garl(log_w, q), garl(log_w, q, p_min=1e-9)
    torch.testing.assert_close(capped[0], free[0], rtol=1e-9, atol=1e-16)


@pytest.mark.parametrize("resampling", ["multinomial", "systematic"])
def test_rows_are_drawn_in_proportion_to_their_weights(resampling):
    module = TabularLatent([0.0, 0.0, 0.0], [-0.9, 0.2, -3.0])
    held = latent_round(module, [(0, 1, 2, 2)] * 4000)
    callback = TsallisReweighting("paft", q=1.0, normalise=False, resampling=resampling)
    counts = callback.transform(held).coefficients["policy"].double().view(-1, 4)
    assert torch.equal(counts, callback.transform(held).coefficients["policy"].double().view(-1, 4))
    shares = callback.log_weights(held)[0].softmax(0)
    spread = (counts - 4 * shares).abs().max()
    assert (spread < 1) == (resampling == "systematic")
    error = counts.mean(0) - 4 * shares
    assert float(error.abs().max()) < 5 * math.sqrt(4 * 0.25 / 4000)
    other = TsallisReweighting("paft", q=1.0, normalise=False, resampling=resampling)
    other.seed = 1
    for changed in (other.transform(held), callback.transform(replace(held, number=1))):
        assert not torch.equal(counts, changed.coefficients["policy"].double().view(-1, 4)), "of another seed, or round"


def test_a_draw_at_the_end_of_the_unit_interval_falls_to_a_row_with_weight():
    log_w = torch.tensor([[0.0, -1.0, -torch.inf], [-torch.inf] * 3])
    points = torch.tensor([[1 - 1e-16, 0.999999999999, 0.0]] * 2, dtype=torch.float64)
    assert resample(log_w, points).tolist()[0] == [1, 2, 0]
    assert resample(log_w, points).sum(1).tolist() == [3, 3]


# The loss that is meant


def test_gradients_along_the_continuum_are_parallel():
    p = torch.tensor([0.003, 0.2, 0.7], dtype=torch.float64, requires_grad=True)
    slopes = {q: torch.autograd.grad(tsallis_loss(p.log(), q).sum(), p)[0] for q in (0.0, 0.3, 0.75, 1.0)}
    for q, slope in slopes.items():
        torch.testing.assert_close(slope, p.detach() ** -q * slopes[0.0])
        torch.testing.assert_close(slope, p.detach() ** (1 - q) * slopes[1.0])
    torch.testing.assert_close(tsallis_loss(p.log(), 1 - 1e-5), tsallis_loss(p.log(), 1.0), rtol=1e-4, atol=0)


@pytest.mark.golden
@pytest.mark.parametrize("row", document("tsallis").get("escape_times", []), ids=str)
def test_a_small_probability_is_left_in_the_time_derived(row):
    """Gradient flow of a sigmoid, with steps that grow where little happens."""
    for q, want in ((0.0, row["T_q0"]), (0.75, row["T_q075"]), (1.0, row["T_q1"])):
        b, time = math.log(row["p0"] / (1 - row["p0"])), 0.0
        while (p := 1 / (1 + math.exp(-b))) < row["delta"]:
            speed = p ** (1 - q) * (1 - p)
            b, time = b + 1e-4, time + 1e-4 / speed
        assert time == pytest.approx(want, rel=1e-3), q


@pytest.mark.parametrize("q", [0.5, 1.0])
def test_the_minimiser_is_the_escort_distribution(q):
    alpha = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = (alpha * tsallis_loss(logits.log_softmax(0), q)).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    want = alpha ** (1 / q) / (alpha ** (1 / q)).sum()
    torch.testing.assert_close(logits.detach().softmax(0), want, rtol=1e-4, atol=0)


# Verdicts as weights


def verified(rewards: list[list[float]], **settings) -> Tensor:
    """(Q, M) coefficients of the stream `policy`."""
    module = TabularLatent([0.0] * 3, [0.0] * 3)
    held = latent_round(module, [(0,) * len(rewards[0])] * len(rewards))
    held = replace(held, rewards=torch.tensor(rewards).flatten())
    callback = TsallisReweighting(reward="verifier", normalise=False, **settings)
    assert callback.streams == ("policy",) and callback.columns == ()
    return callback.transform(held).coefficients["policy"].view(len(rewards), -1)


SOLVED = [[1.0] * k + [0.0] * (8 - k) for k in range(9)]


def test_at_q_0_the_credit_of_verdicts_is_leave_one_out():
    rewards = torch.tensor(SOLVED)
    groups = torch.arange(9).repeat_interleave(8)
    want = group_advantages(rewards.flatten(), groups, "none", "leave_one_out").view(9, 8)
    torch.testing.assert_close(verified(SOLVED, q=0.0), want)
    real = [[0.5, 0.25, 0.0, 2.0]]
    want = group_advantages(torch.tensor(real[0]), torch.zeros(4, dtype=torch.int64), "none", "leave_one_out")
    torch.testing.assert_close(verified(real, q=0.0)[0], want)


def test_at_q_1_the_credit_of_verdicts_is_that_of_maximum_likelihood_reinforcement():
    """M/K - 1 for a success and -1 for a failure; nothing where no completion is a success."""
    for solved, row in enumerate(verified(SOLVED, q=1.0)):
        want = [8 / solved - 1] * solved + [-1.0] * (8 - solved) if solved else [0.0] * 8
        assert row.tolist() == pytest.approx(want, rel=1e-6, abs=1e-6)


@pytest.mark.golden
@pytest.mark.parametrize("size", [2, 8])
@pytest.mark.parametrize("leave_one_out", [True, False])
def test_the_mean_gradient_of_verdicts_is_eta_times_that_of_the_loss(size, leave_one_out):
    """Through GRPO, whose rows are the whole completion."""
    for row in (r for r in document("tsallis")["eta_table"] if r["M"] == size):
        p, q = row["P"], row["q"]
        groups = [[1.0] * k + [0.0] * (size - k) for k in range(size + 1)]
        credit = verified(groups, q=q, leave_one_out=leave_one_out).double()
        chance = torch.tensor([math.comb(size, k) * p**k * (1 - p) ** (size - k) for k in range(size + 1)])
        weighted = credit * chance.double()[:, None] * (size + 1)
        actions = torch.tensor(groups).long().flatten()  # 1 is right
        module = TabularGRPO([math.log(1 - p), math.log(p)], optimizer=STILL)
        (gradient,) = fit(module, [single_tokens(actions, weighted.flatten())]).gradients
        slope = -(p**-q) * p * (1 - p)  # of l_q in the logit of the right action
        eta = row["eta_leave_one_out" if leave_one_out else "eta"]
        assert float(gradient["policy.logits"][1]) == pytest.approx(eta * slope, rel=1e-5, abs=1e-7)


def test_verdicts_alone_start_nothing():
    assert not verified([[0.0] * 8], q=0.75).any()
    assert not verified([[0.0] * 8], q=0.75, estimator="paft").any()
    assert not verified([[1.0] * 8], q=0.75).any() and verified([[1.0] * 8], q=0.75, leave_one_out=False).all()


def test_negative_rewards_are_refused():
    with pytest.raises(ConfigError, match="a reward is -0.5, and TsallisReweighting takes rewards as weights"):
        verified([[0.0, -0.5]])


# q


def test_q_steps_at_the_round_that_is_asked_for():
    callback = TsallisReweighting(q=1.0, later_q=0.0, switch_round=3)
    assert [callback.q_of(number) for number in range(5)] == [1.0, 1.0, 1.0, 0.0, 0.0]
    module = TabularLatent([0.1, 0.2, 0.3], [-1.0, 0.0, 1.0])
    held = latent_round(module, [(0, 1, 2)])
    early, late = (callback.transform(replace(held, number=n)).coefficients["answer"] for n in (2, 3))
    assert torch.equal(early, TsallisReweighting(q=1.0).transform(held).coefficients["answer"])
    assert torch.equal(late, TsallisReweighting(q=0.0).transform(held).coefficients["answer"])
    assert TsallisReweighting(q=0.5).q_of(10**6) == 0.5


# Rounds of a real model


class Seen(Callback):
    def __init__(self):
        self.rounds = []

    def on_round(self, trainer, module, sampled, kept):
        self.rounds.append(kept)


def latent(**settings) -> LatentReasoning:
    return LatentReasoning(TINY, OptimizerSpec(learning_rate=1e-2, max_grad_norm=0.0), tokens_per_microbatch=64, **settings)


def gold_data(**settings):
    settings = {"task": Addition(digits=1), "sampling": SamplingSpec(max_new_tokens=9), "completions_per_prompt": 4, **settings}
    return tiny_data(gold=GoldAnswer(after="#"), advantage=None, **settings)


@pytest.mark.parametrize("estimator", ["garl", "paft"])
def test_the_gradient_of_a_round_is_that_of_its_own_likelihoods(estimator, monkeypatch):
    """Latents sampled by the engine, answers teacher-forced; all recomputed from the tokens."""
    rows, transform = [], TsallisReweighting.transform
    module, seen, callback = latent(), Seen(), TsallisReweighting(estimator, q=0.75)
    monkeypatch.setattr(TsallisReweighting, "transform", lambda self, held: (rows.append(len(held)), transform(self, held))[1])
    recorder = fit(module, gold_data(), callback, seen, max_epochs=2)
    assert rows == [16, 16], "as many rows as completions: nothing more is generated"
    model = deepcopy(module.trained["policy"])
    for held, weights, got in zip(seen.rounds, recorder.weights, recorder.gradients, strict=False):
        model.load_state_dict({k.removeprefix("policy."): v for k, v in weights.items()}, strict=False)
        logp = whole_logprobs(model.hf, held.tokens)
        sampled, gold = (held.segments == int(kind) for kind in (Segment.SAMPLED, Segment.GOLD))
        log_y = torch.where(gold, logp, 0.0).sum(1)
        log_w = torch.where(gold.any(1), log_y.detach().double(), -torch.inf).view(4, 4)
        torch.testing.assert_close(callback.log_weights(held), log_w, rtol=1e-5, atol=1e-5)
        if estimator == "garl":
            c, b = garl(log_w, 0.75)
        else:
            c = b = paft(log_w, resample(log_w, callback._points(held, 4)), 0.75)
        c, b = (x.flatten() / 4**0.75 for x in (c, b))
        loss = -((c * torch.where(sampled, logp, 0.0).sum(1)) + b * log_y).mean()
        want = torch.autograd.grad(loss, list(model.parameters()))
        assert_same(got, dict(zip(got, want, strict=True)), relative=1e-4)  # float32 models
        assert not held.rewards.any(), "no completion was right, and yet there is a gradient"
        assert all(not stream.requires_grad for stream in held.coefficients.values())


def test_forced_tokens_and_dropped_answers_have_no_credit():
    seen, module = Seen(), latent()
    fit(module, gold_data(sampling=SamplingSpec(max_new_tokens=5), prompts_per_step=16), TsallisReweighting(), seen)
    (held,) = seen.rounds
    kinds = held.segments
    credited = torch.stack([*held.coefficients.values()]).any(0)
    trained = (kinds == int(Segment.SAMPLED)) | (kinds == int(Segment.GOLD))
    assert int(module.trained_tokens) == int(trained[credited].sum()) < int((kinds > int(Segment.PROMPT))[credited].sum())
    (hash_token,) = held.tokens[kinds == int(Segment.FORCED)].unique()
    for tokens, segments, completion in zip(held.tokens, kinds, held.completions, strict=True):
        row = tokens[segments == int(Segment.SAMPLED)].tolist()
        assert row == list(completion.token_ids[: len(row)])
        forced, gold = ((segments == int(kind)).sum() for kind in (Segment.FORCED, Segment.GOLD))
        if "#" in completion.text:
            assert row[-1] == hash_token and row.count(hash_token) == 1 and not forced and gold == 3
        elif completion.finish_reason == "length":
            assert len(row) == 5 and forced == 1 and gold == 3
        else:
            assert not forced and not gold
    assert {int((row == int(Segment.FORCED)).sum()) for row in kinds} == {0, 1}
    assert {int((row == int(Segment.GOLD)).sum()) for row in kinds} == {0, 3}


@pytest.mark.parametrize(
    ("settings", "data", "word"),
    [
        ({}, {"gold": None}, "TsallisReweighting has reward: likelihood, and data.gold is null"),
        ({}, {"steps_per_round": 2}, "a round has 2 updates"),
        ({}, {"inner_epochs": 3}, "a round has 3 updates"),
        ({}, {"sampling": SamplingSpec(temperature=0.7)}, "temperature 0.7"),
        ({}, {"sampling": SamplingSpec(top_k=5)}, "top_k 5"),
        ({}, {"completions_per_prompt": 1}, "completions_per_prompt is 1"),
        ({"reward": "verifier"}, {}, "'answer' that LatentReasoning reads; take a module that does not read it"),
    ],
)
def test_runs_that_would_be_wrong_are_refused_before_a_model_loads(settings, data, word, monkeypatch):
    monkeypatch.setattr(CausalLM, "load", lambda *_: pytest.fail("a model was loaded"))
    made = gold_data(**{k: v for k, v in data.items() if k != "gold"})
    made.gold = data.get("gold", made.gold)
    with pytest.raises(ConfigError, match=word):
        fit(latent(), made, TsallisReweighting(**settings))


def test_gold_answers_are_never_trained_against():
    """Subtracting a mean from their credit would make half of them less likely."""
    with pytest.raises(ConfigError, match="the credit that TsallisReweighting sets is not centred"):
        fit(latent(), gold_data(), TsallisReweighting(), DownSampling(2))
    data = gold_data(completions_per_prompt=4)
    fit(latent(), data, TsallisReweighting(), DownSampling(2, recentre=False))
    assert len(data.held) == 2 * len(data.held.prompts) and (data.held.coefficients["answer"] > 0).any()
    assert (data.held.coefficients["answer"] >= 0).all()


@pytest.mark.parametrize("aggregation", ["seq_mean_token_mean", "token_mean", "seq_mean_token_sum"])
def test_a_division_by_the_length_is_warned_of(aggregation):
    module = tiny_grpo(aggregation=aggregation)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(module, tiny_data(advantage=None), TsallisReweighting(reward="verifier"))
    warned = [w for w in caught if "which divides by lengths" in str(w.message)]
    assert bool(warned) == (aggregation != "seq_mean_token_sum")


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"estimator": "grpo"}, "estimator is 'grpo'; expected garl or paft"),
        ({"reward": "answer"}, "reward is 'answer'"),
        ({"resampling": "none"}, "resampling is 'none'"),
        ({"q": 1.5}, "q is 1.5"),
        ({"q": 1.0, "later_q": -1.0, "switch_round": 3}, "later_q is -1.0"),
        ({"later_q": 0.0}, "later_q 0.0 and switch_round None"),
        ({"q": 1.0, "later_q": 0.0, "switch_round": 0}, "switch_round 0"),
        ({"p_min": 1.0}, "p_min is 1.0"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, word):
    with pytest.raises(ConfigError, match=word):
        TsallisReweighting(**settings)
