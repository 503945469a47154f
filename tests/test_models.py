"""Tiny models, their tokenizers, the scorer against the plain computation, and the way to disk and back."""

import pytest
import torch

from fulgurite.models import scoring
from fulgurite.models.causal_lm import CausalLM
from fulgurite.models.sources import load_tokenizer
from fulgurite.models.tiny import TinyModel
from fulgurite.types import ConfigError

ALPHABET = "0123456789+-*/=#abcdefghijklmnopqrstuvwxyz ,."
ARCHITECTURES = ["qwen2", "qwen3", "llama"]


def tiny(architecture="qwen2", tied=True, dtype=torch.float32):
    """A model whose distributions are far from uniform, with every parameter away from 0 and 1."""
    shape = {"hidden_size": 32, "intermediate_size": 48, "heads": 4, "kv_heads": 4}
    model = CausalLM.load(TinyModel(architecture, **shape, alphabet=ALPHABET, seed=1), dtype)
    if not tied:
        model.hf.lm_head.weight = torch.nn.Parameter(model.hf.lm_head.weight.detach().clone())
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.2 * torch.randn(weight.shape, generator=generator)
    return model


def rows(lengths=(9, 4, 12), seed=3):
    """Right-padded tokens (N, L) and a mask that keeps some of them, never the first."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(3, 48, (len(lengths), max(lengths)), generator=generator)
    inside = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    keep = inside & (torch.rand(tokens.shape, generator=generator) < 0.7)
    keep[:, 0] = False
    return torch.where(inside, tokens, 0), keep


def plain_score(model, tokens, keep, temperature):
    """Log-probabilities and entropies from all logits at once."""
    logprobs = (model.hf(tokens).logits[:, :-1].float() / temperature).log_softmax(-1)
    sampled = logprobs.gather(-1, tokens[:, 1:, None])[..., 0]
    entropy = -(logprobs.exp() * logprobs).sum(-1)
    first = torch.zeros(len(tokens), 1)
    return tuple(torch.where(keep, torch.cat([first, x], 1), 0.0) for x in (sampled, entropy))


def gradients(model, value):
    model.zero_grad()
    value.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters()}


def largest_gap(left, right):
    return max((left[name] - right[name]).abs().max().item() for name in left)


def test_tiny_model_has_the_documented_size_and_the_same_weights_every_time():
    before = torch.manual_seed(1234).get_state()
    first, second = (CausalLM.load(TinyModel(alphabet=ALPHABET)) for _ in range(2))
    assert len(ALPHABET) + 3 == 48 and first.hf.config.vocab_size == 64
    assert sum(weight.numel() for weight in first.parameters()) == 228_384
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    other = CausalLM.load(TinyModel(alphabet=ALPHABET, seed=1))
    assert not torch.equal(first.hf.lm_head.weight, other.hf.lm_head.weight)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("settings", [{"hidden_size": 100, "heads": 8}, {"heads": 6, "kv_heads": 4}, {"alphabet": ""}])
def test_impossible_tiny_models_are_refused(settings):
    with pytest.raises(ConfigError, match="expected"):
        TinyModel(**settings)


@pytest.mark.parametrize("alphabet", [ALPHABET, None])
def test_tokenizer_is_the_identity_on_its_alphabet(alphabet):
    tokenizer = load_tokenizer(TinyModel(alphabet=alphabet))
    text = " 47+86=#133 . x" + ("" if alphabet else " Été\n\t漢字\x00  “ ”")
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text and len(ids) == len(text.encode()) and min(ids) > 2
    assert tokenizer.convert_ids_to_tokens([0, 1, 2]) == ["<pad>", "<eos>", "<unk>"]
    assert tokenizer.decode([*ids, 1, 63, 0] if alphabet else [*ids, 1, 0], skip_special_tokens=True) == text
    messages = [{"role": "system", "content": "1+1"}, {"role": "user", "content": "=2"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == "1+1=2"


def test_a_character_outside_the_alphabet_is_unknown():
    assert load_tokenizer(TinyModel(alphabet="ab"))("aXb").input_ids == [3, 2, 4]


@pytest.mark.parametrize("chunk_tokens", [1, 3, 1000])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_score_equals_the_plain_computation(architecture, tied, temperature, chunk_tokens, monkeypatch):
    monkeypatch.setitem(scoring.LOGITS_BYTES, "cpu", 4 * 64 * chunk_tokens)
    model, (tokens, keep) = tiny(architecture, tied), rows()
    coefficients = torch.randn(keep.shape, generator=torch.Generator().manual_seed(4))
    scores, (logprobs, entropy) = model.score(tokens, keep, temperature), plain_score(model, tokens, keep, temperature)
    assert scores.logprobs.dtype == scores.entropy.dtype == torch.float32 and scores.compared is None
    assert not scores.entropy.requires_grad and entropy[keep].std() > 0.05
    torch.testing.assert_close(scores.logprobs, logprobs, rtol=0, atol=1e-5)
    torch.testing.assert_close(scores.entropy, entropy, rtol=0, atol=1e-5)
    wanted = gradients(model, (coefficients * logprobs).sum())
    got = gradients(model, (coefficients * scores.logprobs).sum())
    scale = max(gradient.abs().max().item() for gradient in wanted.values())
    assert largest_gap(got, wanted) < 1e-5 * scale
    assert min(gradient.abs().max().item() for gradient in got.values()) > 0


def test_gradients_are_exact_in_float64():
    hidden, weight = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((5, 4), (7, 4)))
    targets = torch.tensor([0, 6, 3, 3, 1])
    assert torch.autograd.gradcheck(lambda h, w: scoring.token_logprobs(h, w, targets, 0.8)[0], (hidden, weight))


@pytest.mark.parametrize("tied", [True, False])
def test_autocast_runs_the_head_in_bfloat16_and_the_softmax_in_float32(tied):
    model, (tokens, keep) = tiny(tied=tied), rows()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores, (logprobs, entropy) = model.score(tokens, keep), plain_score(model, tokens, keep, 1.0)
    exact = model.score(tokens, keep).logprobs
    torch.testing.assert_close(scores.logprobs, logprobs, rtol=0, atol=1e-5)
    torch.testing.assert_close(scores.entropy, entropy, rtol=0, atol=1e-5)
    assert (scores.logprobs - exact).abs().max() > 1e-3, "bfloat16 was not used"
    got, wanted = gradients(model, scores.logprobs.sum()), gradients(model, logprobs.sum())
    scale = max(gradient.abs().max().item() for gradient in wanted.values())
    # the plain gradient rounds the head's own gradient to bfloat16 (8 bits), ours sums it in float32
    assert largest_gap(got, wanted) < 1e-2 * scale


def test_padding_and_other_tokens_do_not_matter():
    model, (tokens, keep) = tiny(), rows()
    wide = torch.cat([tokens, torch.full((3, 5), 7)], 1)
    padded = torch.where(torch.arange(12) < torch.tensor([9, 4, 12])[:, None], tokens, 11)
    wanted = model.score(tokens, keep).logprobs
    torch.testing.assert_close(model.score(padded, keep).logprobs, wanted, rtol=1e-6, atol=1e-6)
    got = model.score(wide, torch.cat([keep, torch.zeros(3, 5, dtype=torch.bool)], 1)).logprobs
    torch.testing.assert_close(got[:, :12], wanted, rtol=1e-6, atol=1e-6)
    assert not got[:, 12:].any() and not got[:, :12][~keep].any()
    torch.testing.assert_close(model.score(tokens[1:2, :4], keep[1:2, :4]).logprobs, wanted[1:2, :4], rtol=1e-6, atol=1e-6)


def test_keep_may_be_empty_but_not_mark_a_first_token():
    model, (tokens, keep) = tiny(), rows()
    scores = model.score(tokens, torch.zeros_like(keep), compare=lambda logits, rows: logits.sum(1))
    assert not any(x.any() for x in scores)
    got = gradients(model, (scores.logprobs + scores.compared).sum())
    assert len(got) == len(list(model.parameters())) and not any(gradient.any() for gradient in got.values())
    with pytest.raises(ValueError, match="first token"):
        model.score(tokens, torch.ones_like(keep))


def test_compare_sees_every_distribution_once_and_has_gradient(monkeypatch):
    """Exact KL(policy || reference) at the sampling temperature, in chunks of two tokens."""
    monkeypatch.setitem(scoring.LOGITS_BYTES, "cpu", 4 * 64 * 2)
    model, reference, (tokens, keep) = tiny(), tiny("llama").requires_grad_(False), rows()
    known = reference.hidden(tokens, keep)

    def divergence(logits, chosen):
        other = reference.head_logits(known[chosen], 0.7).log_softmax(-1)
        ours = logits.log_softmax(-1)
        return (ours.exp() * (ours - other)).sum(-1)

    scores = model.score(tokens, keep, 0.7, divergence)
    ours, other = ((m.hf(tokens).logits / 0.7).log_softmax(-1) for m in (model, reference))
    wanted = torch.zeros(keep.shape)
    wanted[:, 1:] = (ours.exp() * (ours - other)).sum(-1)[:, :-1]
    wanted = torch.where(keep, wanted, 0.0)
    assert wanted[keep].min() > 0.01
    torch.testing.assert_close(scores.compared, wanted, rtol=0, atol=1e-5)
    exact = gradients(model, wanted.sum())
    scale = max(gradient.abs().max().item() for gradient in exact.values())
    assert largest_gap(gradients(model, scores.compared.sum()), exact) < 1e-5 * scale


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_saved_and_loaded_is_the_same_model(architecture, tmp_path):
    model, tokenizer, (tokens, keep) = tiny(architecture), load_tokenizer(TinyModel(alphabet=ALPHABET)), rows()
    model.save(tmp_path, tokenizer)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors", ".jinja"}
    loaded = CausalLM.load(str(tmp_path))
    assert loaded.training and torch.equal(loaded.score(tokens, keep).logprobs, model.score(tokens, keep).logprobs)
    assert [name for name, _ in loaded.named_full_weights()] == [name for name, _ in model.named_full_weights()]
    assert load_tokenizer(str(tmp_path))("1+1=#2").input_ids == tokenizer("1+1=#2").input_ids


def test_named_full_weights_fill_an_unsharded_copy():
    model, (tokens, keep) = tiny(), rows()
    before = torch.manual_seed(1234).get_state()
    copy = model.unsharded_like()
    weights = dict(copy.named_full_weights())
    for name, weight in model.named_full_weights():
        weights[name].copy_(weight)
    assert torch.equal(copy.score(tokens, keep).logprobs, model.score(tokens, keep).logprobs)
    assert "lm_head.weight" not in weights and copy.hf.lm_head.weight is copy.hf.model.embed_tokens.weight
    assert torch.equal(before, torch.random.get_rng_state())


def test_only_safetensors_are_loaded(tmp_path):
    model = tiny()
    model.hf.config.save_pretrained(tmp_path)
    torch.save(model.hf.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="no usable model at .*model.safetensors"):
        CausalLM.load(str(tmp_path))


@pytest.mark.parametrize("source", ["./nowhere", "/nowhere/model", "runs/sft/policy", "a/b/c"])
@pytest.mark.parametrize("load", [CausalLM.load, load_tokenizer])
def test_a_folder_that_is_not_there_is_named(load, source):
    with pytest.raises(ConfigError, match="does not exist"):
        load(source)


@pytest.mark.parametrize("spoil", ["bias", "softcap"])
def test_heads_that_the_scorer_would_misread_are_refused(spoil):
    hf = tiny().hf
    if spoil == "bias":
        hf.lm_head.bias = torch.nn.Parameter(torch.zeros(64))
    else:
        hf.config.final_logit_softcapping = 30.0
    with pytest.raises(ConfigError, match="head"):
        CausalLM(hf)
