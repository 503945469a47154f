"""Guard: the engine holds other weights than it was given, so every completion comes from an old or a mixed policy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from . import GuardError

SHOWN = 3
Checksum = tuple[int, int]


def check_version(given: int, held: int | None) -> None:
    """The engine must say that it holds the version it was given: by it the next update is told from this one.

    Raises:
        GuardError: it says something else.
    """
    if held != given:
        raise GuardError(
            f"the engine was given weights of version {given} and says that it holds version {held}; expected the same: it "
            "would miss updates. Set `version` at the end of load_weights"
        )


def check_checksums(sent: Mapping[str, tuple[int, Checksum]], held: Sequence[tuple[tuple[str, ...], int, Checksum]]) -> int:
    """Compares what was sent to an engine with what it holds; returns the number of tensors that could be compared.

    Args:
        sent: {name: (elements, checksum)} of the weights that were streamed.
        held: (names of the weights that a tensor is made of, its elements, its checksum) of the engine's tensors; one that
            is not made of whole streamed weights cannot be compared.

    Raises:
        GuardError: tensors differ.
    """
    whole = [
        (names, joined(sent[name] for name in names) == joined([(elements, total)]))
        for names, elements, total in held
        if all(name in sent for name in names) and sum(sent[name][0] for name in names) == elements
    ]
    wrong = [" + ".join(names) for names, equal in whole if not equal]
    if wrong:
        raise GuardError(
            f"{len(wrong)} of {len(whole)} tensors of the engine are not the weights it was just given: "
            f"{', '.join(wrong[:SHOWN])}{' and others' if len(wrong) > SHOWN else ''}; expected equal checksums. The engine "
            "ignores weight updates or takes only a part of them: restart it, and try it with fulgurite doctor"
        )
    return len(whole)


def joined(parts: Iterable[tuple[int, Checksum]]) -> Checksum:
    """The checksum of tensors laid end to end, from the elements and the checksum of each; modulo 2^64, from 0."""
    plain = placed = offset = 0
    for elements, (bits, weighted) in parts:
        plain, placed, offset = plain + bits, placed + weighted + offset * bits, offset + elements
    return plain % 2**64, placed % 2**64


def probe_failed(gap: float, limit: float, cause: str) -> GuardError:
    """The error for a probe whose log-probabilities differ by `gap` nats in the mean; `cause` names what was found."""
    return GuardError(
        f"after a weight load the log-probabilities of the engine and the trainer differ by {gap:.2g} nats on a probe; "
        f"expected at most {limit:g}. {cause}. To allow a wider gap raise guards.max_gap_nats"
    )


def check_draws(excess: float, deviations: float, temperature: float) -> None:
    """`excess`: how much less likely the engine's draws are, in the mean and in nats, than draws from the trainer's
    distribution; `deviations`: the same in standard deviations.

    Raises:
        GuardError: more than 6.
    """
    if abs(deviations) > 6:
        raise GuardError(
            f"the engine's draws are {abs(excess):.2g} nats {'less' if excess > 0 else 'more'} likely than draws from the "
            f"trainer's distribution at temperature {temperature:g} ({abs(deviations):.0f} standard deviations), though it "
            "reports the right log-probabilities; expected the same distribution. It samples at another temperature, or with "
            "top_p, top_k or penalties of its own: check its settings"
        )
