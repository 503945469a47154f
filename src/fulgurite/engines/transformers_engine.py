"""The embedded engine: a batched decoding loop over the model's own forward pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..seeding import address
from ..types import Completion, ConfigError, Prompt, SamplingSpec
from .protocol import Engine
from .requests import check_requests, cut, end_tokens
from .weights import Fingerprint, checksum

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedTokenizerBase

    from ..models.causal_lm import CausalLM


class TransformersEngine(Engine):
    """Decodes with the bound model's live weights or, where that model is sharded, with a whole copy of it.

    Each prompt is run once and its key-value cache shared by its completions; a finished row leaves the batch at once.

    Args:
        max_rows: rows decoded at once. Whole prompts only: one with more completions than this is decoded alone.
    """

    def __init__(self, max_rows: int = 512) -> None:
        if max_rows < 1:
            raise ConfigError(f"max_rows is {max_rows}; expected at least 1")
        self.max_rows = max_rows

    def bind(self, model: CausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
        self.copies = model.is_sharded
        self.model = model.unsharded_like() if self.copies else model
        self.tokenizer = tokenizer
        self.end_tokens = end_tokens(model.hf.generation_config, model.hf.config, tokenizer)
        self.dtype, self.limit, self.version = model.hf.dtype, model.hf.config.max_position_embeddings, None

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Fills the copy of a sharded model. Live weights need no loading, so there `weights` is not looked at.

        Raises:
            ValueError: the streamed names are not those of the model.
        """
        if self.copies:
            missing = dict(self.model.named_full_weights())
            for name, weight in weights:
                if name not in missing:
                    raise ValueError(f"weight {name!r} was streamed twice or is unknown; expected each of the model once")
                missing.pop(name).copy_(weight)
            if missing:
                raise ValueError(f"weights {sorted(missing)} were not streamed; expected each of the model once")
        self.version = version

    def fingerprint(self) -> Fingerprint:
        return [((name,), weight.numel(), tuple(checksum(weight).tolist())) for name, weight in self.model.named_full_weights()]

    @torch.no_grad()
    def generate(self, prompts: Sequence[Prompt], spec: SamplingSpec) -> list[Completion]:
        if self.copies and self.version is None:
            raise RuntimeError("the copy of a sharded model holds no weights yet; call load_weights first")
        check_requests(prompts, spec, self.limit)
        by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i].token_ids))
        size = max(1, self.max_rows // spec.n)
        groups: dict[int, list[Completion]] = {}
        with _evaluating(self.model):
            for start in range(0, len(prompts), size):
                chosen = by_length[start : start + size]
                rows = self._decode([prompts[i] for i in chosen], spec)
                groups.update((i, rows[k * spec.n : (k + 1) * spec.n]) for k, i in enumerate(chosen))
        return [completion for i in range(len(prompts)) for completion in groups[i]]

    def _decode(self, prompts: Sequence[Prompt], spec: SamplingSpec) -> list[Completion]:
        """Completions of prompts that fit into one batch, N = Q * n rows."""
        logits, cache, mask = self._prefill(prompts)
        device, count, steps = logits.device, len(prompts) * spec.n, spec.max_new_tokens
        logits = logits.repeat_interleave(spec.n, 0)
        cache.batch_repeat_interleave(spec.n)
        mask = None if mask is None else mask.repeat_interleave(spec.n, 0)
        uniforms = _uniforms(prompts, spec).to(device)
        end_tokens = torch.tensor(self.end_tokens, device=device)
        tokens = torch.zeros(count, steps, dtype=torch.int64, device=device)
        logprobs = torch.zeros(count, steps, dtype=torch.float32, device=device)
        lengths = torch.zeros(count, dtype=torch.int64, device=device)
        finished = torch.zeros(count, dtype=torch.bool, device=device)
        rows = torch.arange(count, device=device)
        for step in range(steps):
            token, logprobs[rows, step] = draw_tokens(logits, uniforms[rows, step], spec)
            tokens[rows, step] = token
            done = torch.isin(token, end_tokens)
            if spec.stop:
                done |= self._stopped(tokens[rows, : step + 1], spec.stop)
            finished[rows], lengths[rows] = done, step + 1
            going = (~done).nonzero().flatten()
            if step + 1 == steps or not len(going):
                break
            if len(going) < len(rows):
                rows, token = rows[going], token[going]
                mask = None if mask is None else mask[going]
                cache.batch_select_indices(going)
            mask = None if mask is None else torch.cat([mask, mask.new_ones(len(rows), 1)], 1)
            logits = self._forward(token[:, None], cache, mask)
        if not logprobs.isfinite().all():
            raise RuntimeError("sampled log-probabilities are not finite; expected numbers: look for NaN in the weights")
        return self._completions(tokens, logprobs, lengths, finished, spec.stop)

    def _prefill(self, prompts: Sequence[Prompt]) -> tuple[Tensor, Cache, Tensor | None]:
        """(Q, V) logits after each prompt, the cache, and the (Q, P) bool mask of left padding, None without any."""
        from .kv_cache import roomy_cache

        width = max(len(p.token_ids) for p in prompts)
        padding = torch.tensor([width - len(p.token_ids) for p in prompts], device=self.model.hf.device)
        tokens = torch.tensor([(0,) * (width - len(p.token_ids)) + p.token_ids for p in prompts], device=padding.device)
        mask = torch.arange(width, device=padding.device) >= padding[:, None] if padding.any() else None
        cache = roomy_cache(self.model.hf.config)
        return self._forward(tokens, cache, mask), cache, mask

    def _forward(self, tokens: Tensor, cache: Cache, mask: Tensor | None) -> Tensor:
        """(R, V) logits after `tokens` (R, t), which the cache then holds too."""
        positions = None if mask is None else (mask.cumsum(1) - 1).clamp_(min=0)[:, -tokens.shape[1] :]
        output = self.model.hf(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1]

    def _stopped(self, tokens: Tensor, stop: Sequence[str]) -> Tensor:
        """(R,) bool: the newest token completes a stop text, which spans at most as many tokens as it has bytes."""
        window = max(len(text.encode()) for text in stop) + 1
        tails = self.tokenizer.batch_decode(tokens[:, -window:].tolist(), skip_special_tokens=True)
        return torch.tensor([any(text in tail for text in stop) for tail in tails], device=tokens.device)

    def _completions(self, tokens, logprobs, lengths, finished, stop: Sequence[str]) -> list[Completion]:
        tokens, logprobs, lengths = tokens.tolist(), logprobs.tolist(), lengths.tolist()
        tokens = [row[:length] for row, length in zip(tokens, lengths, strict=True)]
        logprobs = [row[:length] for row, length in zip(logprobs, lengths, strict=True)]
        texts = [cut(text, stop) for text in self.tokenizer.batch_decode(tokens, skip_special_tokens=True)]
        reasons = ["stop" if end else "length" for end in finished.tolist()]
        return [Completion(tuple(t), tuple(p), r, x) for t, p, r, x in zip(tokens, logprobs, reasons, texts, strict=True)]


def draw_tokens(logits: Tensor, uniforms: Tensor, spec: SamplingSpec) -> tuple[Tensor, Tensor]:
    """One token per row by inversion of the distribution function, and its log-probability.

    The log-probability is that of the distribution drawn from: at `spec.scoring_temperature`, renormalised over what top-k
    and top-p left. Top-p looks at what top-k left, renormalised.

    Args:
        logits: (R, V), any floating dtype. uniforms: (R,) float64 in [0, 1); not read when the temperature is 0.

    Returns:
        (R,) int64 tokens, (R,) float32 log-probabilities.
    """
    logprobs = (logits.float() / spec.scoring_temperature).log_softmax(-1)
    if spec.temperature == 0:
        tokens = logits.argmax(-1, keepdim=True)
    elif spec.top_k or spec.top_p < 1:
        probabilities, order = logprobs.exp().double().sort(dim=-1, descending=True, stable=True)
        probabilities = probabilities[:, : spec.top_k or None]
        before = probabilities.cumsum(-1) - probabilities
        inside = before < spec.top_p * probabilities.sum(-1, keepdim=True)
        kept = torch.where(inside, probabilities, 0.0)
        tokens = order.gather(1, _invert(kept, uniforms))
        logprobs -= kept.sum(-1, keepdim=True).log().float()
    else:
        tokens = _invert(logprobs.exp().double(), uniforms)
    return tokens[:, 0], logprobs.gather(1, tokens)[:, 0]


def _invert(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """(R, 1) first place where the cumulative sum of (R, V) weights exceeds the uniform's share of their total."""
    cumulative = probabilities.cumsum(-1)
    place = torch.searchsorted(cumulative, uniforms[:, None] * cumulative[:, -1:], right=True)
    return place.clamp_(max=probabilities.shape[1] - 1)


def _uniforms(prompts: Sequence[Prompt], spec: SamplingSpec) -> Tensor:
    """(N, T) float64, each row from its own address; a longer completion continues the same numbers."""
    generator, addresses = torch.Generator(), [(p.id, p.draw, i) for p in prompts for i in range(spec.n)]
    rows = torch.empty(len(addresses), spec.max_new_tokens, dtype=torch.float64)
    for row, where in zip(rows, addresses, strict=True):
        row.uniform_(generator=generator.manual_seed(address(spec.seed, *where)))
    return rows


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, every submodule's own mode again after."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
