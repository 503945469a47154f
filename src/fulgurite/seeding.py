"""Addressed randomness: every draw is a function of what it is for, never of what was drawn before."""

from __future__ import annotations

import hashlib


def address(*parts: str | int) -> int:
    """A 63-bit seed from an address such as (run seed, "train", round, prompt id, sample index)."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1
