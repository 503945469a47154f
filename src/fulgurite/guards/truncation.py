"""Guard: nearly all completions are cut by max_new_tokens, so the reward judges answers that were never finished."""

from __future__ import annotations

from ..types import Round, Segment
from . import warn_then_stop


def cut_completions(sampled: Round) -> tuple[int, int]:
    """(completions cut by max_new_tokens, completions)."""
    return sum(completion.finish_reason == "length" for completion in sampled.completions), len(sampled)


def cut_without_gold(sampled: Round) -> int:
    """As `cut_completions`, without those whose reasoning was ended by a gold answer: nothing of them was left unfinished."""
    gold = (sampled.segments == int(Segment.GOLD)).any(1).tolist()
    return sum(
        completion.finish_reason == "length" and not ended for completion, ended in zip(sampled.completions, gold, strict=True)
    )


def check_truncation(cut: int, completions: int, max_truncated: float, streak: int, patience: int) -> int:
    """The new number of rounds in a row with more than the share `max_truncated` cut; an empty round says nothing.

    Raises:
        GuardError: that number has reached `patience`.
    """
    if not completions:
        return streak
    if cut / completions <= max_truncated:
        return 0
    return warn_then_stop(
        f"{cut} of {completions} completions of this round were cut by max_new_tokens (round {streak + 1} in a row); "
        f"expected a share of at most {max_truncated}. Raise max_new_tokens, check that the model ends with the "
        "tokenizer's end-of-sequence token, or set guards.max_truncated to 1 to allow it",
        streak + 1,
        patience,
    )
