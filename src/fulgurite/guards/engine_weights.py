"""Guard: the engine holds other weights than it was given, so every completion comes from an old or a mixed policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from . import GuardError

SHOWN = 3


def check_checksums(sent: Mapping[str, int], sizes: Mapping[str, int], held: Sequence[tuple[tuple[str, ...], int, int]]) -> int:
    """Compares what was sent to an engine with what it holds; returns the number of tensors that could be compared.

    Args:
        sent: {name: checksum} of the weights that were streamed, and their `sizes` in elements.
        held: (names of the weights that a tensor is made of, its elements, its checksum) of the engine's tensors; one that
            is not made of whole streamed weights cannot be compared.

    Raises:
        GuardError: tensors differ.
    """
    whole = [
        (names, (total - sum(sent[name] for name in names)) % 2**64 == 0)
        for names, elements, total in held
        if all(name in sizes for name in names) and sum(sizes[name] for name in names) == elements
    ]
    wrong = [" + ".join(names) for names, equal in whole if not equal]
    if wrong:
        raise GuardError(
            f"{len(wrong)} of {len(whole)} tensors of the engine are not the weights it was just given: "
            f"{', '.join(wrong[:SHOWN])}{' and others' if len(wrong) > SHOWN else ''}; expected equal checksums. The engine "
            "ignores weight updates or takes only a part of them: restart it, and check its version with fulgurite doctor"
        )
    return len(whole)


def probe_failed(gap: float, limit: float, cause: str) -> GuardError:
    """The error for a probe whose log-probabilities differ by `gap` nats in the mean; `cause` names what was found."""
    return GuardError(
        f"after a weight load the log-probabilities of the engine and the trainer differ by {gap:.2g} nats on a probe; "
        f"expected at most {limit:g}. {cause}. To allow a wider gap raise guards.max_gap_nats"
    )
