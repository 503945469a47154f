"""CoDistill-GRPO through its own `training_step` in a real fit: Theorem 1 by enumeration, limits, hints, both models."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from tabular import PROMPT_TOKEN, TabularPolicy, fit
from torch import Tensor

from fulgurite.callbacks.codistillation import CoDistillation
from fulgurite.callbacks.downsampling import DownSampling
from fulgurite.callbacks.export import ModelExport
from fulgurite.callbacks.pruning import CompletionPruning
from fulgurite.credit.group import Advantage
from fulgurite.data.hints import Hints, whole
from fulgurite.data.supervised_datamodule import SupervisedDataModule
from fulgurite.engines.transformers_engine import TransformersEngine
from fulgurite.models.causal_lm import CausalLM
from fulgurite.models.sources import load_tokenizer
from fulgurite.models.tiny import TinyModel
from fulgurite.modules.codistill import CoDistillGRPO
from fulgurite.modules.optimizer import OffloadedAdamW, OptimizerSpec
from fulgurite.seeding import address
from fulgurite.selection.downsample import downsample
from fulgurite.types import Completion, ConfigError, Prompt, Round, SamplingSpec, Segment, Verdict
from golden_vectors import cases, name_of
from tiny import TINY, EvenDigits, tiny_benchmarks, tiny_data, tiny_grpo, tiny_trainer

STILL = OptimizerSpec(learning_rate=0.0, max_grad_norm=0.0)
MOVING = OptimizerSpec(learning_rate=1e-2, max_grad_norm=0.0)
LARGE = TinyModel(**{**vars(TINY), "hidden_size": 32, "seed": 1})
UNCLIPPED = {"eps_low": 1.0, "eps_high": 1e9}


class TabularPair(CoDistillGRPO):
    def __init__(self, small: list[float], large: list[float], **settings) -> None:
        super().__init__("a table", "a table", STILL, STILL, **settings)
        self.tables = {"small": small, "large": large}

    def setup(self, stage: str) -> None:
        """Tables have no tokenizers."""

    def configure_model(self) -> None:
        for name, logits in self.tables.items():
            self.trained[name] = TabularPolicy(logits)


def pair(large: TinyModel | str = LARGE, optimizer: OptimizerSpec = MOVING, **settings) -> CoDistillGRPO:
    return CoDistillGRPO(TINY, large, optimizer, optimizer, **{"tokens_per_microbatch": 64, **settings})


def pair_data(**settings):
    return tiny_data(**{"advantage": None, "completions_per_prompt": 4, **settings})


def tabular_round(module: TabularPair, groups: Tensor, reward: Tensor) -> Round:
    """One completion of one token per entry of `groups` (Q, G), with the columns of both models in float32."""
    actions = groups.flatten()
    rows = len(actions)
    held = Round(
        number=0,
        weight_version=0,
        prompts=tuple(Prompt(id=f"q{i}") for i in range(len(groups))),
        completions=(Completion((1,), (0.0,), "stop", ""),) * rows,
        verdicts=(Verdict("wrong", {}, 0.0),) * rows,
        group_index=torch.arange(len(groups)).repeat_interleave(groups.shape[1]),
        step=torch.zeros(rows, dtype=torch.int64),
        tokens=torch.stack([torch.full_like(actions, PROMPT_TOKEN), actions], 1),
        segments=torch.tensor([[Segment.PROMPT, Segment.SAMPLED]], dtype=torch.uint8).repeat(rows, 1),
        rewards=reward[actions].float(),
    )
    module.configure_model()
    rows_of_all = held.all_rows()
    return held.with_columns(**{name: module.column(name, rows_of_all) for name in ("small", "large")})


def close(got: Tensor, want: list[float] | Tensor) -> None:
    """Columns and coefficients of a round are float32."""
    want = torch.as_tensor(want, dtype=torch.float64)
    assert float((got - want).abs().max()) <= 2e-6 * max(0.1, float(want.abs().max())), (got.tolist(), want.tolist())


# Theorem 1, by enumeration through the module


@pytest.mark.golden
@pytest.mark.parametrize("case", cases("codistill", "theorem1"), ids=name_of)
def test_the_mean_gradients_over_all_groups(case):
    given, want = case["inputs"], case["expected"]
    size, alpha = given["group_size"], given["alpha"]
    module = TabularPair(given["logits_small"], given["logits_large"], **UNCLIPPED)
    groups = torch.tensor(list(product(range(4), repeat=size)))
    reward = torch.tensor(given["reward_per_action"])
    held = CoDistillation(alpha, const_len=1).transform(tabular_round(module, groups, reward))
    logp = torch.tensor(given["logits_small"], dtype=torch.float64).log_softmax(-1)
    # The losses are linear in the coefficients, so a group's chance may stand in them.
    weight = (logp[groups].sum(1).exp() * len(groups)).repeat_interleave(size)
    minibatch = replace(held.all_rows(), coefficients={k: v.double() * weight for k, v in held.coefficients.items()})
    (gradient,) = fit(module, [minibatch]).gradients
    small, large = (-gradient[f"{name}.logits"] for name in ("small", "large"))
    close(small, want["mean_gradient_small"])
    close(large, want["mean_gradient_large_unclipped"])
    slope = torch.tensor(want["grad_expected_reward"]) - alpha * torch.tensor(want["grad_kl"])
    close(small, (size - 1) / size * slope)
    p, kd = logp.exp(), torch.tensor(given["logits_large"], dtype=torch.float64).log_softmax(-1) - logp
    assert float((p * kd).sum()) == pytest.approx(-want["kl_small_large"], rel=1e-9) == want["mean_kd"]


# Limits


def gradients_of(module, data, *callbacks) -> dict[str, Tensor]:
    return fit(module, data, *callbacks).gradients[0]


@pytest.fixture(scope="module")
def grpo_gradients() -> dict[str, Tensor]:
    """Of GRPO with the mean as baseline, row by row, so that no other row's arithmetic matters."""
    data = tiny_data(advantage=Advantage(scale="none"), completions_per_prompt=4)
    return gradients_of(tiny_grpo(tokens_per_microbatch=1, optimizer=MOVING), data)


def assert_bitwise(got: dict[str, Tensor], name: str, want: dict[str, Tensor]) -> None:
    for key, gradient in want.items():
        assert torch.equal(got[key.replace("policy.", f"{name}.", 1)], gradient), key


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_equal_models_are_grpo_with_the_mean_as_baseline_to_the_bit(grpo_gradients, alpha):
    got = gradients_of(pair(TINY, tokens_per_microbatch=1), pair_data(), CoDistillation(alpha))
    assert_bitwise(got, "small", grpo_gradients)
    assert_bitwise(got, "large", grpo_gradients)


@pytest.mark.parametrize("train_large", [True, False])
def test_without_its_reward_the_small_model_does_not_see_the_large_one(grpo_gradients, train_large):
    got = gradients_of(pair(tokens_per_microbatch=1, train_large=train_large), pair_data(), CoDistillation(0.0))
    assert_bitwise(got, "small", grpo_gradients)
    assert any(name.startswith("large.") for name in got) == train_large
    with_it = gradients_of(pair(tokens_per_microbatch=1, train_large=train_large), pair_data(), CoDistillation(1.0))
    assert any(not torch.equal(with_it[name], got[name]) for name in got if name.startswith("small."))


def test_a_frozen_large_model_is_read_and_neither_trained_nor_saved():
    module = pair(train_large=False)
    recorder = fit(module, pair_data(), CoDistillation(), max_epochs=2)
    whole = fit(pair(), pair_data(), CoDistillation())
    for name, gradient in recorder.gradients[0].items():
        assert torch.equal(gradient, whole.gradients[0][name]), "the small model's first update is the same"
    assert [group["name"] for group in module.trainer.optimizers[0].param_groups] == ["small"]
    assert not [name for name in module.state_dict() if "large" in name]
    assert not any(p.grad is not None for p in module.frozen["large"].parameters())


class Credit(Callback):
    """Sets streams by hand, after the callbacks that own them."""

    def __init__(self, **streams: float) -> None:
        self.streams = streams

    def on_round(self, trainer, module, sampled, kept) -> None:
        changed = {name: kept.coefficients[name] * factor for name, factor in self.streams.items()}
        trainer.datamodule.held = kept.with_coefficients(**changed)


def same(recorder, name: str) -> bool:
    first, last = recorder.weights[0], recorder.weights[-1]
    return all(torch.equal(first[key], last[key]) for key in first if key.startswith(f"{name}."))


@pytest.mark.parametrize(("silent", "heard"), [("small", "large"), ("large", "small")])
def test_no_gradient_crosses_and_a_model_without_credit_stands_still(silent, heard):
    """Not even on momentum: the first round moves both."""

    class Later(Credit):
        def on_round(self, trainer, module, sampled, kept):
            if kept.number:
                super().on_round(trainer, module, sampled, kept)

    recorder = fit(pair(), pair_data(), CoDistillation(), Later(**{silent: 0.0}), max_epochs=2)
    assert not any(key.startswith(f"{silent}.") for key in recorder.gradients[1])
    assert any(key.startswith(f"{heard}.") for key in recorder.gradients[1])
    first, second, third = recorder.weights
    assert all(torch.equal(second[k], third[k]) for k in second if k.startswith(f"{silent}."))
    assert not all(torch.equal(second[k], third[k]) for k in second if k.startswith(f"{heard}."))
    assert not all(torch.equal(first[k], second[k]) for k in first if k.startswith(f"{silent}."))
    assert recorder.updates[1][f"grad_norm/{silent}"] == 0.0


def test_equal_rewards_leave_the_large_model_alone_and_still_teach_the_small_one():
    class SameReward(EvenDigits):
        def judge(self, prompt, completion):
            return Verdict("correct", {"even": 1.0}, 1.0)

    recorder = fit(pair(), pair_data(task=SameReward(digits=1)), CoDistillation())
    assert same(recorder, "large") and not same(recorder, "small")


def test_constants_cancel():
    module = TabularPair([0.3, -0.2, 0.1, 0.0], [1.0, 0.0, -1.0, 0.5])
    held = tabular_round(module, torch.tensor([[0, 1, 2], [3, 3, 0]]), torch.tensor([1.0, 0.0, 0.5, 0.25]))
    want = CoDistillation(0.7).transform(held).coefficients
    richer = CoDistillation(0.7).transform(replace(held, rewards=held.rewards + 4)).coefficients
    likelier = CoDistillation(0.7).transform(held.with_columns(large=held.columns["large"] + 3)).coefficients
    for changed in (richer, likelier):
        for name in ("small", "large"):
            torch.testing.assert_close(changed[name], want[name], rtol=1e-5, atol=1e-6)
    assert not any(stream.requires_grad for stream in want.values())


# Down-sampling


def test_the_subset_of_largest_variance_is_that_of_a_search_over_all():
    draw = torch.Generator().manual_seed(0)
    for size in range(2, 9):
        for keep in range(1, size + 1):
            values = torch.randn(size, generator=draw, dtype=torch.float64)
            chosen = values[downsample(values, torch.zeros(size, dtype=torch.int64), keep, "max_variance")]
            best = max(
                torch.tensor(subset, dtype=torch.float64).var(correction=0) for subset in combinations(values.tolist(), keep)
            )
            assert len(chosen) == keep and float(chosen.var(correction=0)) == pytest.approx(float(best), abs=1e-12)


def test_groups_of_any_order_and_size():
    values = torch.tensor([5.0, 1.0, 3.0, 2.0, 9.0, 0.0])
    groups = torch.tensor([1, 0, 1, 1, 0, 1])
    assert downsample(values, groups, 3, "top").tolist() == [True, True, True, True, True, False]
    assert downsample(values, groups, 2, "max_variance").tolist() == [True, True, False, False, True, True]
    assert downsample(values, groups, 9, "max_variance").all()


class Rounds(Callback):
    def __init__(self):
        self.seen = []

    def on_round(self, trainer, module, sampled, kept):
        self.seen.append((sampled, kept))


@pytest.mark.parametrize("recentre", [True, False])
def test_rows_are_dropped_before_any_gradient_and_centred_again(recentre, monkeypatch):
    trained, rounds, score = [], Rounds(), CausalLM.score

    def counted(self, tokens, *rest, **settings):
        trained.append(len(tokens) * torch.is_grad_enabled())
        return score(self, tokens, *rest, **settings)

    monkeypatch.setattr(CausalLM, "score", counted)
    fit(pair(), pair_data(), CoDistillation(), DownSampling(2, stream="small", recentre=recentre), rounds)
    ((sampled, kept),) = rounds.seen
    assert len(sampled) == 16 and len(kept) == 8 and sum(trained) <= 16
    for group in range(4):
        for name in ("small", "large"):
            whole = sampled.coefficients[name][sampled.group_index == group]
            mine = kept.coefficients[name][kept.group_index == group]
            assert float(whole.sum()) == pytest.approx(0, abs=1e-6)
            assert recentre == (abs(float(mine.sum())) < 1e-6) or whole.abs().max() == 0
        small = sampled.coefficients["small"][sampled.group_index == group]
        left = kept.coefficients["small"][kept.group_index == group]
        assert float(left.max() - left.min()) == pytest.approx(float(small.max() - small.min()), abs=1e-6)


def test_rows_that_are_only_counted_stay_so():
    rounds = Rounds()
    data = tiny_data(task=EvenDigits(digits=1), completions_per_prompt=6, prompts_per_step=8)
    fit(tiny_grpo(), data, CompletionPruning(0.5, divisor="group"), DownSampling(2), rounds)
    ((_, kept),) = rounds.seen
    read = kept.read_rows()
    for group in range(8):
        mine = kept.group_index == group
        assert int((mine & read).sum()) == 2 and int((mine & ~read).sum()) == 3
        assert float(kept.coefficients["policy"][mine & read].sum()) == pytest.approx(0, abs=1e-6)


def test_keeping_all_changes_nothing(grpo_gradients):
    got = gradients_of(pair(TINY, tokens_per_microbatch=1), pair_data(), CoDistillation(), DownSampling(4, stream="small"))
    for key, gradient in grpo_gradients.items():
        torch.testing.assert_close(got[key.replace("policy.", "small.", 1)], gradient, rtol=1e-4, atol=1e-7)


# Measures


def test_the_share_outside_the_window_is_there_from_the_first_update():
    recorder = fit(pair(eps_low=0.01, eps_high=0.01), pair_data(), CoDistillation())
    update = recorder.updates[0]
    assert update["loss/small_outside_window"] == 0.0 and update["loss/small_ratio"] == pytest.approx(1.0, abs=1e-6)
    assert update["loss/large_outside_window"] > 0.3
    assert 0 < update["loss/large_clip_fraction_low"] + update["loss/large_clip_fraction_high"] < 1
    equal = fit(pair(TINY), pair_data(), CoDistillation()).updates[0]
    assert equal["loss/large_outside_window"] == 0.0


def test_both_models_are_validated_and_exported(tmp_path):
    module, data = pair(), pair_data(benchmarks=tiny_benchmarks())
    fit(module, data, CoDistillation(), ModelExport(), max_epochs=2, default_root_dir=str(tmp_path))
    measured = module.trainer.callback_metrics
    assert {"eval/easy/accuracy", "eval/easy_large/accuracy", "eval/hard/accuracy", "eval/hard_large/accuracy"} <= set(measured)
    for name in ("small", "large"):
        saved = CausalLM.load(str(tmp_path / name))
        for key, weight in module.trained[name].named_full_weights():
            assert torch.equal(dict(saved.named_full_weights())[key], weight)
        assert json.loads((tmp_path / name / "config.json").read_text())["hidden_size"] == {"small": 16, "large": 32}[name]
    assert load_tokenizer(str(tmp_path / "large")).get_vocab() == load_tokenizer(TINY).get_vocab()


def test_each_models_completions_are_its_own():
    seen = {}

    class Batches(Callback):
        def on_validation_batch_end(self, trainer, module, outputs, batch, *rest):
            seen.setdefault(batch.benchmark, []).extend(c.token_ids for c in batch.completions)

    module, data = pair(optimizer=STILL), pair_data(benchmarks=tiny_benchmarks())
    trainer = tiny_trainer(callbacks=[CoDistillation(), Batches()])
    trainer.validate(module, data, verbose=False)
    engine = TransformersEngine()
    for name, label in (("small", "easy"), ("large", "easy_large")):
        engine.bind(module.trained[name], module.tokenizer)
        loader = next(loader for loader in data.val_dataloader() if loader.shown == label)
        spec = replace(loader.benchmark.sampling, seed=address(data.seed, "evaluate", "easy"))
        want = [c.token_ids for c in engine.generate(loader.prompts, spec)]
        assert seen[label] == want
    assert seen["easy"] != seen["easy_large"]


# Hints


def test_the_large_model_begins_the_completions_of_the_first_rounds():
    rounds, module = Rounds(), pair(optimizer=STILL)
    data = pair_data(hints=Hints(tokens=2, rounds=1))
    recorder = fit(module, data, CoDistillation(), rounds, max_epochs=2)
    (first, _), (second, _) = rounds.seen
    assert not (second.segments == int(Segment.HINT)).any()
    engine = TransformersEngine()
    engine.bind(module.trained["large"], module.tokenizer)
    seed = address(address(data.seed, "train", 0, 0), "hint")
    hints = engine.generate(first.prompts, SamplingSpec(max_new_tokens=2, n=4, seed=seed))
    for row, (completion, hint) in enumerate(zip(first.completions, hints, strict=True)):
        count = len(hint.token_ids)
        assert completion.token_ids[:count] == hint.token_ids and completion.hint == count
        assert int((first.segments[row] == int(Segment.HINT)).sum()) == count
        rest = int((first.segments[row] == int(Segment.SAMPLED)).sum())
        assert rest == len(completion.token_ids) - count and len(completion.token_ids) <= 5
        assert (rest == 0) == (hint.finish_reason == "stop")
    assert len({completion.token_ids for completion in first.completions}) > 8, "each has draws of its own"
    keep = first.all_rows().keep(Segment.HINT, Segment.SAMPLED)
    assert first.columns["small"][keep].all() and first.columns["large"][keep].all()
    assert recorder.updates[0]["loss/small_outside_window"] == 0.0, (
        "the behaviour of a hint is the small model's, as the ratio's"
    )


def test_the_text_of_a_hinted_completion_is_judged_whole():
    rounds = Rounds()
    fit(pair(), pair_data(hints=Hints(tokens=2)), CoDistillation(), rounds)
    (sampled, _) = rounds.seen[0]
    tokenizer = load_tokenizer(TINY)
    for completion, verdict in zip(sampled.completions, sampled.verdicts, strict=True):
        assert completion.text == tokenizer.decode(completion.token_ids, skip_special_tokens=True)
        assert verdict.answer == completion.text


@pytest.mark.parametrize("stop", ["1#", "#1", "##"])
def test_a_stop_text_that_begins_in_the_hint_ends_the_completion(stop):
    tokenizer = load_tokenizer(TINY)

    def completion(text: str, reason: str) -> Completion:
        tokens = tuple(tokenizer(text, add_special_tokens=False).input_ids)
        return Completion(tokens, tuple(-0.1 * (i + 1) for i in range(len(tokens))), reason, text)

    made = whole(completion("2" + stop[0], "length"), completion(stop[1] + "34", "length"), tokenizer, [stop])
    assert (made.text, made.finish_reason, made.hint) == ("2", "stop", 2)
    assert tokenizer.decode(made.token_ids) == "2" + stop and made.logprobs == (-0.1, -0.2, -0.1)
    other = whole(completion("2", "length"), completion("34", "length"), tokenizer, [stop])
    assert (other.text, other.finish_reason, len(other.token_ids)) == ("234", "length", 3)


# What is refused


def padded(folder: Path, source: TinyModel, size: int) -> str:
    model = CausalLM.load(source)
    model.hf.resize_token_embeddings(size)
    model.save(folder, load_tokenizer(source))
    return str(folder)


class EvenTokens(EvenDigits):
    """A reward for padding, too, which a model without training samples most."""

    def judge(self, prompt, completion):
        reward = float(sum(completion.token_ids) % 2)
        return Verdict("wrong", {"even": reward}, reward)


def test_padded_vocabularies_work(tmp_path):
    """Padded as those of Qwen2.5 1.5B and 7B."""
    models = padded(tmp_path / "small", TINY, 151_936), padded(tmp_path / "large", LARGE, 152_064)
    module = CoDistillGRPO(*models, MOVING, MOVING, tokens_per_microbatch=64)
    recorder = fit(module, pair_data(task=EvenTokens(digits=1)), CoDistillation(), max_epochs=2)
    assert [module.trained[name].vocabulary_size for name in ("small", "large")] == [151_936, 152_064]
    assert not same(recorder, "large") and not same(recorder, "small")


def test_a_benchmark_may_not_have_the_name_of_the_other_models():
    benchmarks = tiny_benchmarks()
    with pytest.raises(ConfigError, match="the benchmark 'easy_large' has the name under which 'easy' is shown"):
        fit(pair(), pair_data(benchmarks={**benchmarks, "easy_large": benchmarks["hard"]}), CoDistillation())


def test_sampled_padding_that_the_other_model_lacks_is_refused(tmp_path):
    module = CoDistillGRPO(padded(tmp_path / "small", TINY, 128), LARGE)
    with pytest.raises(ConfigError, match="was sampled, which stands for nothing, and large has only 64"):
        fit(module, pair_data(), CoDistillation())


def test_hints_of_padding_that_the_small_model_lacks_are_refused(tmp_path):
    module = pair(padded(tmp_path / "large", LARGE, 128))
    with pytest.raises(ConfigError, match="was sampled, which stands for nothing, and the model that goes on has only 64"):
        fit(module, pair_data(hints=Hints(tokens=3), prompts_per_step=16), CoDistillation())


def test_solutions_are_no_rounds():
    data = SupervisedDataModule(EvenDigits(digits=1), prompts_per_step=3, updates_per_round=2)
    with pytest.raises(ConfigError, match="CoDistillation changes rounds of completions, and SupervisedDataModule has none"):
        fit(pair(), data, CoDistillation())
    with pytest.raises(ConfigError, match="CoDistillGRPO reads the coefficient stream 'large', which SupervisedDataModule"):
        fit(pair(), data)


def test_other_tokenizers_are_refused_with_the_first_token_that_differs(monkeypatch):
    monkeypatch.setattr(CausalLM, "load", lambda *_: pytest.fail("a model was loaded"))
    other = TinyModel(**{**vars(LARGE), "alphabet": "0123456789*=#+"})
    with pytest.raises(ConfigError, match=r"token 4 is '\+' for model.small and '\*' for model.large"):
        fit(pair(other), pair_data(), CoDistillation())


@pytest.mark.parametrize(
    ("data", "word"),
    [
        ({"advantage": Advantage()}, "the stream 'small' has two owners"),
        ({"hints": Hints(tokens=5)}, "hints.tokens is 5 and sampling.max_new_tokens 5"),
    ],
)
def test_settings_of_the_data_that_cannot_work(data, word):
    with pytest.raises(ConfigError, match=word):
        fit(pair(), pair_data(**data), CoDistillation())


def test_other_settings_that_cannot_work():
    for make, word in (
        (lambda: CoDistillation(-1.0), "alpha is -1.0"),
        (lambda: CoDistillation(math.inf), "alpha is inf"),
        (lambda: CoDistillation(const_len=0), "const_len is 0"),
        (lambda: DownSampling(0), "keep is 0"),
        (lambda: DownSampling(1), "keep is 1 with recentre: true"),
        (lambda: DownSampling(2, rule="best"), "rule is 'best'"),
        (lambda: Hints(tokens=0), "tokens 0"),
        (lambda: Hints(rounds=0), "rounds 0"),
        (lambda: pair(aggregation="seq_mean_token_sum_const"), "const_len is None"),
        (lambda: pair(aggregation="seq_mean_token_sum_const", const_len=0), "const_len is 0"),
        (lambda: pair(eps_low=-1), "eps_low is -1"),
    ):
        with pytest.raises(ConfigError, match=word):
            make()
    with pytest.raises(ConfigError, match="data.hints is given, and GRPO has no other model"):
        fit(tiny_grpo(), tiny_data(hints=Hints(tokens=2)))
    for module, data, callbacks, word in (
        (pair(), pair_data(), [], "nothing sets the coefficient stream 'large'"),
        (pair(), pair_data(), [CoDistillation(), DownSampling(2)], "DownSampling.stream is 'policy', which nothing sets"),
        (pair(), pair_data(), [CoDistillation(), CompletionPruning(0.5)], "CompletionPruning.stream is 'policy'"),
        (tiny_grpo(), tiny_data(), [CoDistillation()], "CoDistillation sets the coefficient stream 'large', and GRPO reads p"),
        (pair(), pair_data(further_engines={"larg": TransformersEngine()}), [CoDistillation()], "'larg', and beside"),
        (tiny_grpo(), tiny_data(further_engines={"x": TransformersEngine()}), [], "GRPO has none that writes"),
    ):
        with pytest.raises(ConfigError, match=word):
            fit(module, data, *callbacks)
    fit(pair(train_large=False), pair_data(further_engines={"large": TransformersEngine()}), CoDistillation())


# Optimizer


def test_an_offloaded_optimizer_takes_the_same_steps():
    modules = [pair(offload_optimizer=offload) for offload in (False, True)]
    plain, offloaded = (fit(module, pair_data(), CoDistillation(), max_epochs=3) for module in modules)
    assert isinstance(modules[1].trainer.optimizers[0], OffloadedAdamW)
    assert all(torch.equal(plain.weights[-1][k], offloaded.weights[-1][k]) for k in plain.weights[-1])
    assert [group["name"] for group in modules[1].trainer.optimizers[0].param_groups] == ["small", "large"]


def test_only_the_stepping_groups_state_is_brought_to_the_device(monkeypatch):
    moves = []
    one, two = (torch.nn.Parameter(torch.zeros(3)) for _ in range(2))
    optimizer = OffloadedAdamW([{"params": [one], "name": "one"}, {"params": [two], "name": "two"}], lr=0.1)
    monkeypatch.setattr(
        OffloadedAdamW, "_move_state", lambda self, group, offload: moves.append((group["name"], "off" if offload else "on"))
    )
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, closure=None: moves.append("step"))
    optimizer.step()
    assert moves == [("one", "on"), "step", ("one", "off"), ("two", "on"), "step", ("two", "off")]
    assert len(optimizer.param_groups) == 2


def test_rates_and_clipping_are_each_models_own():
    optimizers = OptimizerSpec(1e-2, max_grad_norm=1e-3), OptimizerSpec(3e-3, schedule="linear", max_grad_norm=0.0)
    module = CoDistillGRPO(TINY, LARGE, *optimizers, tokens_per_microbatch=64)
    recorder = fit(module, pair_data(), CoDistillation(), max_epochs=3)
    assert [update["lr/small"] for update in recorder.updates] == [1e-2] * 3
    assert [update["lr/large"] for update in recorder.updates] == pytest.approx([3e-3, 2e-3, 1e-3])
    norm = {
        name: math.sqrt(sum(float(g.square().sum()) for k, g in recorder.gradients[0].items() if k.startswith(name)))
        for name in ("small", "large")
    }
    assert norm["small"] == pytest.approx(1e-3, rel=1e-2) and recorder.updates[0]["grad_norm/small"] > 2e-3
    assert norm["large"] == pytest.approx(recorder.updates[0]["grad_norm/large"], rel=1e-4)
