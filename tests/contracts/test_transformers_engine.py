"""The embedded engine: the contract, what its batching costs, and that it leaves no trace."""

import pytest
import torch
from engine_contract import TOKENIZER, EngineContract, chain, perturbed, prompt, random_prompts, same

from fulgurite.engines.transformers_engine import TransformersEngine
from fulgurite.types import ConfigError, Prompt, SamplingSpec
from tiny import scored


def bound(model, **settings):
    engine = TransformersEngine(**settings)
    engine.bind(model, TOKENIZER)
    engine.load_weights(model.named_full_weights(), 0)
    return engine


class TestTransformersEngine(EngineContract):
    def make(self, model, **settings):
        return bound(model, **settings)


@pytest.mark.parametrize("max_rows", [1, 2, 7, 9])
def test_completions_do_not_depend_on_max_rows(max_rows):
    model, prompts, spec = perturbed(), random_prompts(5, 9, 2, 5), SamplingSpec(max_new_tokens=10, n=3)
    same(bound(model, max_rows=max_rows).generate(prompts, spec), bound(model).generate(prompts, spec))


def test_a_longer_limit_continues_the_same_completions():
    engine, prompts = bound(perturbed()), random_prompts(5, 9)
    short, long = (engine.generate(prompts, SamplingSpec(max_new_tokens=t, n=4)) for t in (6, 40))
    assert [c.token_ids for c in short] == [c.token_ids[:6] for c in long]


def test_long_rows_that_end_at_all_times_are_scored_as_by_a_fresh_pass():
    """From 30 to 230 tokens: the key-value cache grows, and loses rows, on both sides of its block of 64 tokens."""
    model, prompts, spec = perturbed(), random_prompts(30, 41), SamplingSpec(max_new_tokens=200, n=12)
    engine = bound(model)
    engine.end_tokens = [5]
    completions = engine.generate(prompts, spec)
    lengths = {len(c.token_ids) for c in completions}
    assert min(lengths) < 20 and max(lengths) > 120 and len(lengths) > 12
    owners = [p for p in prompts for _ in range(12)]
    for completion, expected in zip(completions, scored(model, owners, completions, 1.0), strict=True):
        assert max(abs(a - b) for a, b in zip(completion.logprobs, expected, strict=True)) < 1e-5


@pytest.mark.parametrize("lowered", [False, True])
def test_the_cache_is_as_wide_as_the_values(lowered):
    """In mixed precision keys come in float32, from rotary positions, and their width would be that of every later token."""
    engine = bound(perturbed())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=lowered):
        _, cache, _ = engine._prefill(random_prompts(70, 5))
    dtypes = {states.dtype for layer in cache.layers for states in (layer.keys, layer.values)}
    assert dtypes == {torch.bfloat16 if lowered else torch.float32}


@pytest.mark.parametrize("max_rows", [512, 6])
def test_prompts_are_run_once_and_finished_rows_cost_nothing(max_rows):
    """Texts of 1, 4 and 6 further tokens, n = 3: a row is forwarded once for each of its tokens but the last."""
    model, seen = chain("x", "abcd", "123456"), []
    engine = bound(model, max_rows=max_rows)
    model.hf.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    completions = engine.generate([prompt("1"), prompt("x"), prompt("a")], SamplingSpec(max_new_tokens=20, n=3))
    assert [len(c.token_ids) for c in completions] == [6, 6, 6, 1, 1, 1, 4, 4, 4]
    if max_rows == 512:
        assert seen == [(3, 1), (6, 1), (6, 1), (6, 1), (3, 1), (3, 1)]
    assert sum(rows for rows, _ in seen) == 3 + sum(len(c.token_ids) - 1 for c in completions)


def test_padded_prompts_keep_their_own_positions():
    """Prompts of 2 and 4 tokens in one batch: each counts from its own first token, in the prompt and after it."""
    model, seen = perturbed(), []
    model.hf.register_forward_pre_hook(lambda module, args, kw: seen.append(kw["position_ids"].tolist()), with_kwargs=True)
    bound(model).generate(random_prompts(2, 4), SamplingSpec(temperature=0, max_new_tokens=3))
    assert [row[-2:] for row in seen[0]] == [[0, 1], [2, 3]] and seen[0][1] == [0, 1, 2, 3]
    assert seen[1:] == [[[2], [4]], [[3], [5]]]


def test_only_the_last_logits_are_computed():
    model, widths = perturbed(), []
    model.hf.lm_head.register_forward_hook(lambda module, args, out: widths.append(out.shape[1]))
    bound(model).generate(random_prompts(30, 7), SamplingSpec(max_new_tokens=4, n=2))
    assert set(widths) == {1}


def test_stop_texts_are_found_behind_characters_of_several_bytes():
    from fulgurite.models.causal_lm import CausalLM
    from fulgurite.models.sources import load_tokenizer
    from fulgurite.models.tiny import TinyModel

    tokenizer = load_tokenizer(TinyModel())
    ids = tokenizer("é→é").input_ids
    model = CausalLM.load(TinyModel())
    engine = TransformersEngine()
    engine.bind(model, tokenizer)
    stopped = [bool(engine._stopped(torch.tensor([ids[: i + 1]]), ("→é",))) for i in range(len(ids))]
    assert stopped == [False] * 6 + [True]


def test_modes_gradients_and_the_global_generator_are_left_as_they_were():
    model = perturbed()
    engine = bound(model)
    model.train()
    model.hf.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    inside = []
    model.hf.register_forward_hook(lambda module, *_: inside.append((module.training, torch.is_grad_enabled())))
    before = torch.manual_seed(1234).get_state()
    engine.generate(random_prompts(4, 6), SamplingSpec(max_new_tokens=4, n=2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert set(inside) == {(False, False)} and torch.is_grad_enabled()
    assert [module.training for module in model.modules()] == modes
    with pytest.raises(ConfigError):
        engine.generate(random_prompts(4), SamplingSpec(max_new_tokens=4000))
    assert [module.training for module in model.modules()] == modes


def test_live_weights_are_used_without_a_copy():
    model, prompts, spec = perturbed(), random_prompts(6), SamplingSpec(temperature=0, max_new_tokens=8)
    engine = bound(model)

    def unread():
        raise AssertionError("live weights were streamed")
        yield

    engine.load_weights(unread(), 4)
    before = engine.generate(prompts, spec)
    with torch.no_grad():
        model.hf.model.embed_tokens.weight.mul_(-1)
    assert engine.version == 4 and engine.generate(prompts, spec) != before


@pytest.fixture
def copying(monkeypatch):
    """An engine that took its own copy, as it does of a sharded model, and the model."""
    model, engine = perturbed(), TransformersEngine()
    with monkeypatch.context() as patch:
        patch.setattr(model, "is_sharded", True)
        engine.bind(model, TOKENIZER)
    return engine, model


def test_a_copy_holds_the_weights_it_was_given(copying):
    engine, model = copying
    prompts, spec = random_prompts(6, 3), SamplingSpec(max_new_tokens=8, n=2)
    with pytest.raises(RuntimeError, match="load_weights first"):
        engine.generate(prompts, spec)
    stream = model.named_full_weights()
    engine.load_weights(stream, 2)
    assert next(stream, None) is None and engine.version == 2
    loaded = bound(model).generate(prompts, spec)
    same(engine.generate(prompts, spec), loaded)
    with torch.no_grad():
        model.hf.model.embed_tokens.weight.mul_(-1)
    same(engine.generate(prompts, spec), loaded)
    engine.load_weights(model.named_full_weights(), 3)
    same(engine.generate(prompts, spec), bound(model).generate(prompts, spec))


def test_a_copy_wants_every_weight_once(copying):
    engine, model = copying
    weights = list(model.named_full_weights())
    for wrong in (weights[1:], [*weights, weights[0]], [*weights, ("head.weight", weights[0][1])]):
        with pytest.raises(ValueError, match="expected each of the model once"):
            engine.load_weights(iter(wrong), 1)
    assert engine.version is None


def test_broken_weights_are_named():
    model = perturbed()
    with torch.no_grad():
        model.hf.model.norm.weight[0] = float("nan")
    with pytest.raises(RuntimeError, match="not finite.*NaN in the weights"):
        bound(model).generate([Prompt(id="a", token_ids=(5, 6))], SamplingSpec(max_new_tokens=3))


def test_max_rows_must_be_positive():
    with pytest.raises(ConfigError, match="max_rows is 0"):
        TransformersEngine(max_rows=0)
