"""A policy that is a table, so that a test can sum over everything it may say, and a fit that keeps every gradient."""

from __future__ import annotations

from collections.abc import Sequence

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fulgurite.models.scoring import Compare, Scores
from fulgurite.modules.grpo import GRPO
from fulgurite.types import Minibatch, Segment
from tiny import tiny_trainer

PROMPT_TOKEN = 0


class TabularPolicy(nn.Module):
    """The same distribution over V tokens, in float64, at every place; scored like a `CausalLM`."""

    packs = False

    def __init__(self, logits: Sequence[float]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits, dtype=torch.float64))
        self.vocabulary_size = len(logits)

    def score(self, tokens: Tensor, keep: Tensor, temperature: float = 1.0, compare: Compare | None = None) -> Scores:
        hidden = self.hidden(tokens, keep)
        logits = self.head_logits(hidden, temperature)
        logp = logits.log_softmax(-1)
        values = [logp.gather(1, tokens[keep][:, None])[:, 0], -(logp.exp() * logp).sum(-1).detach()]
        values.append(compare(logits, slice(0, len(hidden))) if compare else None)
        return Scores(*(v if v is None else v.new_zeros(keep.shape).masked_scatter(keep, v) for v in values))

    def fingerprint(self) -> int:
        return int(self.logits.view(torch.int64).sum())

    def hidden(self, tokens: Tensor, keep: Tensor) -> Tensor:
        return self.logits.new_zeros(int(keep.sum()), 0)

    def head_logits(self, hidden: Tensor, temperature: float = 1.0) -> Tensor:
        return (self.logits / temperature).expand(len(hidden), -1)


class TabularGRPO(GRPO):
    """GRPO of a table, with a table as reference."""

    def __init__(self, logits: Sequence[float], reference_logits: Sequence[float] = (), **settings) -> None:
        super().__init__(policy="a table", **settings)
        self.tables = {"policy": logits, "reference": reference_logits or logits}

    def configure_model(self) -> None:
        self.trained["policy"] = TabularPolicy(self.tables["policy"])
        if "reference" in self.sources:
            self.frozen["reference"] = TabularPolicy(self.tables["reference"]).requires_grad_(False)


def single_tokens(
    actions: Sequence[int] | Tensor, coefficients: Sequence[float] | Tensor, temperature: float = 1.0, **columns: Tensor
) -> Minibatch:
    """N completions of one token each, with the stream `policy` and per-token columns (N,), in float64."""
    tokens = torch.as_tensor(actions)
    wide = {k: torch.as_tensor(v, dtype=torch.float64) for k, v in {**columns, "policy": coefficients}.items()}
    return Minibatch(
        tokens=torch.stack([torch.full_like(tokens, PROMPT_TOKEN), tokens], 1),
        segments=torch.tensor([[Segment.PROMPT, Segment.SAMPLED]], dtype=torch.uint8).repeat(len(tokens), 1),
        coefficients={"policy": wide.pop("policy")},
        columns={k: torch.stack([torch.zeros_like(v), v], 1) for k, v in wide.items()},
        temperature=temperature,
    )


class Recorder(Callback):
    """What each minibatch did.

    Attributes:
        gradients: [{parameter: gradient}] of each update taken, after clipping.
        weights: [{parameter: value}] before the first minibatch and after each.
        updates: `last_update` after each minibatch.
    """

    def __init__(self) -> None:
        self.gradients, self.weights, self.updates = [], [], []

    def on_train_start(self, trainer, module) -> None:
        self._keep_weights(module)

    def on_before_optimizer_step(self, trainer, module, optimizer) -> None:
        gradients = {name: p.grad for name, p in module.trained.named_parameters()}
        self.gradients.append({name: _whole(grad) for name, grad in gradients.items() if grad is not None})

    def on_train_batch_end(self, trainer, module, *_) -> None:
        self.updates.append(dict(module.last_update))
        self._keep_weights(module)

    def _keep_weights(self, module) -> None:
        self.weights.append({name: _whole(p.detach()) for name, p in module.trained.named_parameters()})


def _whole(value: Tensor) -> Tensor:
    """A copy, gathered where it is sharded."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value.clone()


class Minibatches(L.LightningDataModule):
    """The given minibatches, each epoch again."""

    def __init__(self, minibatches: Sequence[Minibatch]) -> None:
        super().__init__()
        self.minibatches = minibatches

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.minibatches, batch_size=None)


def fit(module: L.LightningModule, data: Sequence[Minibatch] | L.LightningDataModule, *callbacks, **trainer) -> Recorder:
    """Trains one epoch, or `max_epochs`, in a real Trainer."""
    recorder = Recorder()
    data = data if isinstance(data, L.LightningDataModule) else Minibatches(data)
    settings = {"max_epochs": 1, "enable_checkpointing": False, **trainer}
    tiny_trainer(callbacks=[*callbacks, recorder], **settings).fit(module, datamodule=data)
    return recorder


def whole_logprobs(hf: nn.Module, tokens: Tensor, temperature: float = 1.0) -> Tensor:
    """(N, L) log-probabilities of rows (N, L) from all logits at once; 0 at the first token."""
    logp = (hf(input_ids=tokens).logits[:, :-1] / temperature).log_softmax(-1)
    return nn.functional.pad(logp.gather(2, tokens[:, 1:, None])[..., 0], (1, 0))


def assert_same(got: dict[str, Tensor], want: dict[str, Tensor], relative: float = 1e-10) -> None:
    """Gradients agree to `relative` of the largest entry of all."""
    scale = max(float(gradient.abs().max()) for gradient in want.values())
    worst = max(float((got[name] - want[name]).abs().max()) for name in want)
    assert scale > 0 and worst <= relative * scale, f"the largest difference is {worst / scale:.1e} of the largest gradient"
