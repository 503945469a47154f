"""Vectors of an independent float64 oracle: where they lie, how they become tensors, and how near a result has to be.

`FULGURITE_GOLDEN` names another folder of vectors in the same formats; a file that is not in it has no cases.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

FOLDER = Path(os.environ.get("FULGURITE_GOLDEN") or Path(__file__).parent / "golden")
DTYPES = (torch.float64, torch.float32)


@cache
def document(name: str) -> Mapping:
    path = FOLDER / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def cases(name: str, section: str = "cases", **wanted) -> list[Mapping]:
    """The entries of a section of file `name`; `wanted` keeps those whose inputs have these values."""
    entries = document(name).get(section, [])
    return [entry for entry in entries if all(entry["inputs"][key] == value for key, value in wanted.items())]


def name_of(case: Mapping) -> str:
    return case["name"]


def tensors(inputs: Mapping, dtype: torch.dtype) -> dict:
    """Inputs with lists as tensors: `mask` bool, `group_index` int64, all else `dtype`. The rest stays."""
    kinds = {"mask": torch.bool, "group_index": torch.int64}
    return {
        key: torch.tensor(value, dtype=kinds.get(key, dtype)) if isinstance(value, list) else value
        for key, value in inputs.items()
    }


def close(got: Tensor | float, want: list | float, dtype: torch.dtype, field: str = "value") -> None:
    """Assert that a field agrees: 1e-9 relative in float64, 1e-5 in float32, both against the field's largest value.

    float64: |got - want| <= 1e-9 |want| + 1e-12 s; float32: <= 1e-5 (|want| + s); s = max(1, largest |want|).
    """
    want = torch.as_tensor(want, dtype=torch.float64)
    got = got.detach().double() if isinstance(got, Tensor) else torch.tensor(got, dtype=torch.float64)
    assert got.shape == want.shape, f"{field}: shape {tuple(got.shape)}, expected {tuple(want.shape)}"
    if not want.numel():
        return
    scale = max(1.0, want.abs().max().item())
    relative, absolute = (1e-9, 1e-12) if dtype == torch.float64 else (1e-5, 1e-5)
    allowed = relative * want.abs() + absolute * scale
    error = (got - want).abs()
    assert bool((error <= allowed).all()), (
        f"{field}: got {got.tolist()}, expected {want.tolist()}, largest error {error.max().item()}"
    )


def exact(got: Tensor | float, want: list | float, field: str = "value") -> None:
    """Assert that a field is equal, for counts and for results said to be exactly 0."""
    got, want = torch.as_tensor(got).detach().double(), torch.as_tensor(want, dtype=torch.float64)
    assert torch.equal(got, want), f"{field}: got {got.tolist()}, expected exactly {want.tolist()}"
