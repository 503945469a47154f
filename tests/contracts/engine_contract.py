"""What every engine must do. A test class inherits `EngineContract` and says in `make` how its engine is built."""

from dataclasses import replace

import pytest
import torch

from fulgurite.models.causal_lm import CausalLM
from fulgurite.models.sources import load_tokenizer
from fulgurite.models.tiny import TinyModel
from fulgurite.types import ConfigError, Prompt, SamplingSpec
from tiny import scored

ALPHABET = "0123456789+-*/=#abcdefghijklmnopqrstuvwxyz ,."
VOCABULARY, EOS = 64, 1
TOKENIZER = load_tokenizer(TinyModel(alphabet=ALPHABET))


def perturbed(architecture="qwen2", **shape):
    """A tiny model far from uniform, so that two contexts have two distributions."""
    model = CausalLM.load(TinyModel(architecture, alphabet=ALPHABET, seed=1, **shape))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=generator)
    return model


def tabular(logits):
    """A model whose next-token logits are row `token` of the (V, V) table, whatever came before."""
    model = CausalLM.load(TinyModel(alphabet=ALPHABET))
    model.hf.config.tie_word_embeddings = False
    hidden = model.hf.config.hidden_size
    with torch.no_grad():
        for layer in model.hf.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        one_hot = torch.eye(VOCABULARY, hidden)
        model.hf.model.norm.weight.fill_((1 / hidden + model.hf.config.rms_norm_eps) ** 0.5)  # one-hot vectors pass
        model.hf.lm_head.weight = torch.nn.Parameter(torch.nn.functional.pad(logits.t(), (0, hidden - VOCABULARY)))
        model.hf.model.embed_tokens.weight.copy_(one_hot)
    return model


def chain(*texts):
    """A model that continues each character of a text with the next one and ends after its last; no character twice."""
    logits = torch.zeros(VOCABULARY, VOCABULARY)
    for text in texts:
        ids = TOKENIZER(text).input_ids
        for token, following in zip(ids, [*ids[1:], EOS], strict=True):
            logits[token, following] = 50.0
    return tabular(logits)


def prompt(text, name=None, **fields):
    return Prompt(id=text if name is None else name, token_ids=tuple(TOKENIZER(text).input_ids), **fields)


def random_prompts(*lengths):
    generator = torch.Generator().manual_seed(5)
    ids = [torch.randint(3, 48, (length,), generator=generator).tolist() for length in lengths]
    return [Prompt(id=str(i), token_ids=tuple(row)) for i, row in enumerate(ids)]


def left_by_the_cut(row, spec):
    """(V,) probabilities of a row of logits after temperature, top-k and top-p."""
    whole = (row / spec.temperature).softmax(-1)
    order = whole.argsort(descending=True)[: spec.top_k or None]
    mass = whole[order] / whole[order].sum()
    kept = order[: int((mass.cumsum(0) < spec.top_p).sum()) + 1]
    return torch.zeros_like(whole).index_copy(0, kept, whole[kept] / whole[kept].sum())


def drawn_from(model, prompt, completion, spec):
    """Log-probabilities of the completion's tokens in the distributions that they were drawn from, token by token."""
    row = prompt.token_ids + completion.token_ids
    with torch.no_grad():
        logits = model.hf(torch.tensor([row])).logits[0, len(prompt.token_ids) - 1 : -1]
    return [float(left_by_the_cut(x, spec)[token].log()) for x, token in zip(logits, completion.token_ids, strict=True)]


def generated(model, prompt, steps):
    """Greedy continuation by transformers itself."""
    row = torch.tensor([prompt.token_ids])
    out = model.hf.generate(row, attention_mask=torch.ones_like(row), do_sample=False, max_new_tokens=steps)
    return tuple(out[0, row.shape[1] :].tolist())


def chi_square(tokens, probabilities):
    """Pearson's statistic of sampled tokens, in standard deviations above its mean; rare tokens are pooled."""
    counts = torch.bincount(torch.tensor(tokens), minlength=len(probabilities)).double()
    expected = probabilities.double() * len(tokens)
    rare = expected < 5
    counts, expected = (torch.cat([x[~rare], x[rare].sum()[None]]) for x in (counts, expected))
    statistic = ((counts - expected) ** 2 / expected.clamp(min=1)).sum().item()
    freedom = len(counts) - 1
    return (statistic - freedom) / (2 * freedom) ** 0.5


def same(left, right):
    """Equal tokens, texts and reasons, log-probabilities equal up to the rounding of another batch shape."""
    assert [(c.token_ids, c.finish_reason, c.text) for c in left] == [(c.token_ids, c.finish_reason, c.text) for c in right]
    for a, b in zip(left, right, strict=True):
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-5)


class EngineContract:
    architectures = ("qwen2", "qwen3", "llama")

    def pytest_generate_tests(self, metafunc):
        if "architecture" in metafunc.fixturenames:
            metafunc.parametrize("architecture", self.architectures)

    def make(self, model, **settings):
        """An engine bound to `model` and `TOKENIZER` with weights of version 0 loaded."""
        raise NotImplementedError

    def test_greedy_equals_generate(self, architecture):
        model, prompts = perturbed(architecture), random_prompts(5, 9, 2, 9)
        completions = self.make(model).generate(prompts, SamplingSpec(temperature=0, max_new_tokens=24))
        assert [c.token_ids for c in completions] == [generated(model, p, 24) for p in prompts]
        assert len({c.token_ids for c in completions}) == 4
        expected = scored(model, prompts, completions, 1.0)
        for completion, logprobs in zip(completions, expected, strict=True):
            assert completion.logprobs == pytest.approx(logprobs, abs=1e-4)

    @pytest.mark.parametrize("top_p, top_k", [(1.0, 0), (0.8, 20)])
    @pytest.mark.parametrize("temperature", [1.0, 0.7])
    def test_logprobs_are_those_of_the_distribution_drawn_from(self, architecture, temperature, top_p, top_k):
        model, prompts = perturbed(architecture), random_prompts(5, 9, 2)
        spec = SamplingSpec(temperature, top_p, top_k, max_new_tokens=20, n=4)
        completions = self.make(model).generate(prompts, spec)
        owners = [p for p in prompts for _ in range(4)]
        expected = [drawn_from(model, p, c, spec) for p, c in zip(owners, completions, strict=True)]
        if top_p == 1 and not top_k:
            whole = scored(model, owners, completions, spec.scoring_temperature)
            assert all(x == pytest.approx(y, abs=1e-4) for x, y in zip(expected, whole, strict=True))
        for completion, logprobs in zip(completions, expected, strict=True):
            assert completion.logprobs == pytest.approx(logprobs, abs=1e-4)
        assert sum(len(c.token_ids) for c in completions) > 100

    def test_completions_do_not_depend_on_the_batch(self):
        model, prompts = perturbed(), random_prompts(5, 9, 2, 5, 30)
        engine, spec = self.make(model), SamplingSpec(max_new_tokens=16, n=3, seed=11)
        whole = engine.generate(prompts, spec)
        alone = [c for p in prompts for c in engine.generate([p], spec)]
        reverse = engine.generate(prompts[::-1], spec)
        same(alone, whole)
        same([c for i in range(5) for c in reverse[3 * (4 - i) : 3 * (5 - i)]], whole)
        same([c for i, c in enumerate(whole) if i % 3 < 2], engine.generate(prompts, replace(spec, n=2)))

    def test_prompts_of_1_and_200_tokens_in_one_batch(self):
        model, prompts = perturbed(), random_prompts(1, 200)
        engine = self.make(model)
        greedy = engine.generate(prompts, SamplingSpec(temperature=0, max_new_tokens=12))
        assert [c.token_ids for c in greedy] == [generated(model, p, 12) for p in prompts]
        completions = engine.generate(prompts, SamplingSpec(max_new_tokens=12, n=4))
        expected = scored(model, [p for p in prompts for _ in range(4)], completions, 1.0)
        for completion, logprobs in zip(completions, expected, strict=True):
            assert completion.logprobs == pytest.approx(logprobs, abs=1e-4)

    def test_many_tokens_of_prompts_in_one_call(self):
        model, prompts = perturbed(), random_prompts(*[100] * 45)
        spec = SamplingSpec(0.7, max_new_tokens=6)
        completions = self.make(model).generate(prompts, spec)
        for completion, logprobs in zip(completions, scored(model, prompts, completions, 0.7), strict=True):
            assert completion.logprobs == pytest.approx(logprobs, abs=1e-4)

    def test_greedy_completions_of_a_prompt_are_all_the_same(self):
        model, prompts = perturbed(), random_prompts(5, 9)
        completions = self.make(model).generate(prompts, SamplingSpec(temperature=0, max_new_tokens=6, n=3))
        assert [c.token_ids for c in completions] == [generated(model, p, 6) for p in prompts for _ in range(3)]

    def test_completions_come_prompt_by_prompt(self):
        engine = self.make(chain("abc", "123456", "x"))
        completions = engine.generate([prompt("1"), prompt("x"), prompt("a")], SamplingSpec(max_new_tokens=9, n=2))
        assert [c.text for c in completions] == ["23456", "23456", "", "", "bc", "bc"]
        assert engine.generate([], SamplingSpec()) == []

    @pytest.mark.parametrize(
        "steps, ids, reason",
        [(1, "1", "length"), (2, "12", "length"), (3, "12.", "stop"), (4, "12.", "stop")],
    )
    def test_end_of_sequence_is_kept_and_ends(self, steps, ids, reason):
        """`.` stands for the end: absent, at the last allowed position, before it."""
        completion = self.make(chain("012")).generate([prompt("0")], SamplingSpec(max_new_tokens=steps))[0]
        assert completion.token_ids == tuple(EOS if x == "." else TOKENIZER(x).input_ids[0] for x in ids)
        assert (completion.finish_reason, completion.text) == (reason, ids.rstrip("."))
        assert completion.logprobs == pytest.approx([0.0] * len(ids), abs=1e-4)

    def test_end_of_sequence_first(self):
        completions = self.make(chain("0")).generate([prompt("0")], SamplingSpec(max_new_tokens=5, n=3))
        assert [(c.token_ids, c.finish_reason, c.text) for c in completions] == [((EOS,), "stop", "")] * 3

    def test_every_end_of_sequence_id_ends(self):
        model = chain("0123")
        other = TOKENIZER("2").input_ids[0]
        model.hf.generation_config.eos_token_id = [EOS, other]
        completion = self.make(model).generate([prompt("0")], SamplingSpec(max_new_tokens=9))[0]
        assert completion.token_ids[-1] == other and completion.finish_reason == "stop" and len(completion.token_ids) == 2

    @pytest.mark.parametrize("temperature, top_p, top_k", [(1, 1, 0), (0.5, 1, 0), (1, 0.6, 0), (1, 1, 5), (0.8, 0.7, 9)])
    def test_samples_follow_the_distribution(self, temperature, top_p, top_k):
        logits = torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(7))
        spec = SamplingSpec(temperature, top_p, top_k, max_new_tokens=1, n=4000, seed=3)
        completions = self.make(tabular(logits)).generate([prompt("7")], spec)
        tokens = [c.token_ids[0] for c in completions]
        row = logits[TOKENIZER("7").input_ids[0]]
        wanted = left_by_the_cut(row, spec)
        kept = wanted.nonzero().flatten()
        assert chi_square(tokens, wanted) < 4
        assert set(tokens) <= set(kept.tolist())
        for other in (temperature * 0.8, temperature * 1.25):
            assert chi_square(tokens, (row / other).softmax(-1)) > 4, "the check could not tell another temperature"
        assert [c.logprobs[0] for c in completions] == pytest.approx(wanted[tokens].log().tolist(), abs=1e-4)

    @pytest.mark.parametrize(
        "stop, kept, text",
        [
            (("cde",), "bcde", "b"),
            (("#", "d"), "bcd", "bc"),
            (("efgh", "e"), "bcde", "bcd"),
            (("b",), "b", ""),
            (("hg",), "bcdefgh.", "bcdefgh"),
        ],
    )
    def test_a_stop_text_ends_and_is_cut_from_the_text_only(self, stop, kept, text):
        completion = self.make(chain("abcdefgh")).generate([prompt("a")], SamplingSpec(max_new_tokens=20, stop=stop))[0]
        assert completion.token_ids == tuple(EOS if x == "." else TOKENIZER(x).input_ids[0] for x in kept)
        assert (completion.finish_reason, completion.text) == ("stop", text)

    def test_draws_are_addressed(self):
        question = random_prompts(6)[0]
        prompts = [question, replace(question, draw=1), question, replace(question, id="another")]
        engine, spec = self.make(perturbed()), SamplingSpec(max_new_tokens=12, n=2, seed=5)
        ids = [c.token_ids for c in engine.generate(prompts, spec)]
        assert ids[0:2] == ids[4:6] and len(set(ids)) == 6
        assert [c.token_ids for c in engine.generate(prompts, spec)] == ids
        assert not set(ids) & {c.token_ids for c in engine.generate(prompts, replace(spec, seed=6))}

    def test_version_is_the_one_loaded(self):
        model = perturbed()
        engine = self.make(model)
        assert engine.version == 0
        engine.load_weights(model.named_full_weights(), 17)
        assert engine.version == 17

    def test_impossible_prompts_are_refused(self):
        engine = self.make(perturbed(max_positions=256))
        with pytest.raises(ValueError, match="'empty' has no tokens"):
            engine.generate([Prompt(id="empty")], SamplingSpec())
        fits, long = random_prompts(250, 251)
        assert len(engine.generate([fits], SamplingSpec(max_new_tokens=6))[0].token_ids) <= 6
        with pytest.raises(ConfigError, match=r"251 tokens.*at most 256"):
            engine.generate([long], SamplingSpec(max_new_tokens=6))
