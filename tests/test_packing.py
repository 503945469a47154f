"""Rows give the same numbers packed as apart, and are packed where that saves tokens."""

from types import SimpleNamespace

import pytest
import torch

from fulgurite.models import packing as packing_module
from fulgurite.models.causal_lm import CausalLM
from fulgurite.models.layers import attention
from fulgurite.models.packing import pack
from fulgurite.models.tiny import TinyModel
from fulgurite.modules.microbatches import split_by_tokens
from fulgurite.types import Minibatch, Segment


def model(architecture="qwen2") -> CausalLM:
    shape = TinyModel(architecture, hidden_size=32, intermediate_size=48, heads=4, kv_heads=2, alphabet="0123456789")
    return CausalLM.load(shape, dtype=torch.float64)


def ragged_rows(groups: int, size: int, seed: int = 0):
    """(tokens, keep) of groups with prompts of 2 to 9 tokens and completions of 1 to 8, not all of whose tokens are kept."""
    draw = torch.Generator().manual_seed(seed)
    tokens, keep = torch.zeros(groups * size, 20, dtype=torch.int64), torch.zeros(groups * size, 20, dtype=torch.bool)
    for group in range(groups):
        length = int(torch.randint(2, 10, (), generator=draw))
        prompt = torch.randint(3, 13, (length,), generator=draw)
        for row in range(group * size, (group + 1) * size):
            count = int(torch.randint(1, 9, (), generator=draw))
            tokens[row, :length] = prompt
            tokens[row, length : length + count] = torch.randint(3, 13, (count,), generator=draw)
            keep[row, length : length + count] = torch.rand(count, generator=draw) < 0.8
    order = torch.randperm(len(tokens), generator=draw)
    return tokens[order], keep[order]


def scored(lm: CausalLM, tokens, keep, packs: bool, weights):
    lm.packs = packs
    lm.zero_grad()
    scores = lm.score(tokens, keep, 0.9)
    (scores.logprobs * weights).sum().backward()
    return scores.logprobs.detach(), scores.entropy, [p.grad.clone() for p in lm.parameters()]


ways = pytest.mark.parametrize("way", [packing_module.whole, packing_module.parted, packing_module.grouped])


@ways
@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "llama"])
@pytest.mark.parametrize(("seed", "recomputes"), [(0, False), (1, False), (2, True)])
def test_packed_rows_give_the_numbers_of_rows_apart(architecture, seed, recomputes, way, monkeypatch):
    monkeypatch.setattr(packing_module, "cheapest", lambda *_: way)
    lm, (tokens, keep) = model(architecture), ragged_rows(3, 5, seed)
    assert lm.packs and pack(tokens, keep) is not None
    weights = torch.randn(keep.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    apart = scored(lm, tokens, keep, False, weights)
    if recomputes:
        lm.checkpoint_activations()
    packed = scored(lm, tokens, keep, True, weights)
    assert apart[0][keep].abs().min() > 0.1 and not packed[0][~keep].any()
    for one, other in zip(apart[:2], packed[:2], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    for one, other in zip(apart[2], packed[2], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "llama"])
def test_in_mixed_precision_packed_rows_give_what_transformers_layers_give(architecture, recwarn):
    lm, (tokens, keep) = model(architecture).float(), ragged_rows(3, 5)
    plain = type(lm.hf)(lm.hf.config)
    plain.load_state_dict(lm.hf.state_dict())
    reference = plain(tokens).logits.log_softmax(-1)[:, :-1].gather(2, tokens[:, 1:, None])[..., 0][keep[:, 1:]]
    with torch.autocast("cpu", torch.bfloat16):
        theirs = plain(tokens).logits.float().log_softmax(-1)[:, :-1].gather(2, tokens[:, 1:, None])[..., 0][keep[:, 1:]]
        ours = lm.score(tokens, keep).logprobs[keep]
    error, their_error = (ours - reference).abs().mean(), (theirs - reference).abs().mean()
    assert 0 < error < 1.5 * their_error
    assert not [str(warning.message) for warning in recwarn if "dtype" in str(warning.message)]


@ways
def test_a_completion_sees_no_other_and_no_padding(way, monkeypatch):
    monkeypatch.setattr(packing_module, "cheapest", lambda *_: way)
    lm, (tokens, keep) = model(), ragged_rows(2, 4, 1)
    before = lm.score(tokens, keep).logprobs
    changed = tokens.clone()
    first = keep.int().argmax(1)
    changed[0, first[0] :] = 3
    after = lm.score(changed, keep).logprobs
    torch.testing.assert_close(before[1:], after[1:], rtol=0, atol=1e-12)
    assert (before[0] - after[0])[keep[0]].abs().max() > 1e-3


@ways
@pytest.mark.parametrize("seed", range(4))
def test_each_token_is_laid_out_once_and_asks_what_is_before_it_in_its_row(seed, way, monkeypatch):
    monkeypatch.setattr(packing_module, "cheapest", lambda *_: way)
    tokens, keep = ragged_rows(4, 6, seed)
    packing = pack(tokens, keep)
    assert len(packing.attentions) == (2 if way is packing_module.parted else 1)
    assert torch.equal(packing.positions, packing.source % 20)
    assert len(packing.source.unique()) == len(packing.source)
    first, last = keep.int().argmax(1), 19 - keep.flip(1).int().argmax(1)
    used = keep.any(1)
    starts = {tuple(row[:begin].tolist()) for row, begin in zip(tokens[used], first[used], strict=True)}
    assert len(packing.source) == sum(map(len, starts)) + int((last - first)[used].sum())
    line = tokens.flatten()[packing.source]
    asks = [(place, asked[row], row, mask, t) for askers, asked, mask in packing.attentions
            for row, places in enumerate(askers) for t, place in enumerate(places)]  # fmt: skip
    for place, home in enumerate(packing.homes):
        asker, asked, row, mask, t = asks[home]
        seen = asked[: t + 1] if mask is None else asked[mask[row, 0, t]]
        position, number = int(packing.positions[place]), int(packing.source[place]) // 20
        assert asker == place
        assert torch.equal(packing.positions[seen], torch.arange(position + 1))
        assert torch.equal(line[seen], tokens[number, : position + 1])
    wanted = [(tokens[row, t - 1], t - 1) for row, t in keep.nonzero().tolist()]
    assert list(zip(line[packing.places], packing.positions[packing.places], strict=True)) == wanted


@pytest.mark.parametrize(
    ("prompt", "completion", "size", "shapes"),
    [
        (256, 32, 16, [(4, 256, 256), (64, 31, 287)]),  # prompts once
        (20, 128, 16, [(64, 147, 147)]),  # rows
        (10, 5, 8, [(4, 42, 42)]),  # all of a prompt in a row
    ],
)
def test_the_way_with_least_work_is_taken(prompt, completion, size, shapes):
    tokens = torch.randint(0, 99, (4, prompt), generator=torch.Generator().manual_seed(0)).repeat_interleave(size, 0)
    tokens = torch.cat([tokens, torch.zeros(4 * size, completion, dtype=torch.int64)], 1)
    keep = (torch.arange(prompt + completion) >= prompt).expand(tokens.shape)
    assert [(*asking.askers.shape, asking.asked.shape[1]) for asking in pack(tokens, keep).attentions] == shapes


def test_nothing_is_packed_where_hardly_a_token_is_saved():
    tokens = torch.arange(3, 43).reshape(4, 10)
    keep = torch.arange(10).expand(4, 10) >= 5
    assert pack(tokens, keep) is None
    same = tokens.clone()
    same[:, :5] = same[0, :5]
    assert len(pack(same, keep).source) == 5 + 4 * 4
    ends_early = keep.clone()
    ends_early[1:, 7:] = False
    assert len(pack(tokens, ends_early).source) == 9 + 3 * 6
    assert pack(same, torch.zeros_like(keep)) is None


def test_heads_that_share_a_key_answer_as_each_by_itself():
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    draw = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(3, heads, tokens, 8, generator=draw) for heads, tokens in ((6, 1), (2, 5), (2, 5)))
    module = SimpleNamespace(num_key_value_groups=3)
    for mask in (None, torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 1, 1, 1, 1]], dtype=torch.bool)[:, None, None]):
        expected = sdpa_attention_forward(module, query, key, value, mask, scaling=0.3)[0]
        torch.testing.assert_close(attention(module, query, key, value, mask, scaling=0.3)[0], expected)


def minibatch(size: int, prompt: int, longest: int) -> Minibatch:
    """48 rows of groups of one size, in any order."""
    groups = 48 // size
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, 13, (groups, prompt), generator=draw).repeat_interleave(size, 0)
    tokens = torch.cat([tokens, torch.randint(3, 13, (groups * size, longest), generator=draw)], 1)
    lengths = prompt + torch.randint(1, longest + 1, (groups * size,), generator=draw)
    segments = torch.full(tokens.shape, int(Segment.SAMPLED), dtype=torch.uint8)
    segments[:, :prompt] = int(Segment.PROMPT)
    segments[torch.arange(prompt + longest) >= lengths[:, None]] = int(Segment.PAD)
    order = torch.randperm(groups * size, generator=draw)
    return Minibatch(tokens[order], segments[order])


@pytest.mark.parametrize(("size", "prompt", "longest", "together"), [(8, 40, 6, True), (1, 3, 40, False)])
@pytest.mark.parametrize("packs", [False, True])
def test_rows_of_a_prompt_stay_together_where_the_prompt_is_what_costs(size, prompt, longest, together, packs):
    rows, budget = minibatch(size, prompt, longest), 4 * (prompt + longest) * 2
    parts, lengths = split_by_tokens(rows, budget, packs), rows.lengths()
    assert sorted(torch.cat(parts).tolist()) == list(range(48)) and len(parts) > 3
    assert all(len(part) * lengths[part].max() <= budget for part in parts)
    prompts = sum(len(rows.tokens[part][:, :prompt].unique(dim=0)) for part in parts)
    if packs and together:
        assert prompts <= 48 // size + len(parts)
    else:
        longest_first = torch.cat([lengths[part] for part in parts]).tolist()
        assert longest_first == sorted(longest_first, reverse=True) and prompts > 20
