"""How far the engine's log-probabilities are from the trainer's: the `mismatch/` metrics of an update."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ..losses.importance import Importance, effective_sample_size, gap_statistics, raw_weight, weights_of_level


def mismatch_values(old: Tensor, engine: Tensor, keep: Tensor, importance: Importance | None = None) -> dict[str, Tensor]:
    """The values of a micro-batch that `mismatch_metrics` reads; all (N, L)."""
    level = importance.level if importance else "token"
    raw = raw_weight(old, engine, keep, level)
    return {"gap": (old - engine).abs()[keep], "raw_weights": weights_of_level(raw, keep, level)}


def mismatch_metrics(values: Mapping[str, Tensor], importance: Importance | None = None) -> dict[str, float]:
    """Of the values of a whole update; without a token there are none."""
    if not values or not len(values["gap"]):
        return {}
    raw = values["raw_weights"]
    metrics = {f"logprob_gap_{name}_nats": value for name, value in gap_statistics(values["gap"]).items()}
    metrics["effective_sample_size"] = effective_sample_size(raw)
    if importance:
        used = importance(raw)
        metrics |= {"weight_mean": used.double().mean(), "bounded": (used != raw).double().mean()}
    return {f"mismatch/{name}": float(value) for name, value in metrics.items()}
