"""Words for knights and knaves: the puzzle, its answer, and reasoning that leads to it."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from .knights_logic import KNIGHT, LEAVES, Roles, Statement, reason

NAMES = (
    "Ada", "Albert", "Alma", "Anton", "Astrid", "Basil", "Bianca", "Boris", "Carla", "Cedric", "Clara", "Conrad", "Daphne",
    "Dora", "Edgar", "Elsa", "Emil", "Esther", "Felix", "Fiona", "Frida", "Gustav", "Hanna", "Hector", "Helena", "Hugo", "Ida",
    "Igor", "Irene", "Ivan", "Jasper", "Judith", "Karl", "Kira", "Leo", "Linda", "Lorenz", "Marta", "Milo", "Nadia", "Nils",
    "Olga", "Oscar", "Paula", "Quentin", "Rosa", "Rufus", "Selma", "Tessa", "Viktor",
)  # fmt: skip
SAYINGS = (
    "{name} says that {claim}.",
    "{name} tells you that {claim}.",
    "{name} claims that {claim}.",
    "{name} insists that {claim}.",
    "{name} is sure that {claim}.",
    "{name} lets you know that {claim}.",
    '{name} whispers: "{Claim}."',
    '{name} calls out: "{Claim}."',
    '{name} answers: "{Claim}."',
    '{name} adds: "{Claim}."',
    '{name} smiles and says: "{Claim}."',
    "You hear from {name} that {claim}.",
    "From {name} you learn this: {claim}.",
    '"{Claim}," says {name}.',
    '"{Claim}," is what {name} has to say.',
)


def role(knight: bool) -> str:
    return "knight" if knight else "knave"


def truth(fact: bool) -> str:
    return "true" if fact else "false"


def spoken(statement: Statement, names: Sequence[str]) -> str:
    """A statement in words, without a capital or a full stop; a statement of statements inside another is in brackets."""
    kind, *parts = statement
    if kind in LEAVES:
        return f"{names[parts[0]]} is a {role(kind == KNIGHT)}"
    if kind == "not" and parts[0][0] in LEAVES:
        leaf, person = parts[0]
        return f"{names[person]} is not a {role(leaf == KNIGHT)}"
    said = [spoken(part, names) if part[0] in LEAVES else f"({spoken(part, names)})" for part in parts]
    if kind == "not":
        return f"it is not true that {said[0]}"
    if kind == "->":
        return f"if {said[0]} then {said[1]}"
    return {"and": " and ", "or": " or ", "<=>": " if and only if "}[kind].join(said)


def puzzle_text(statements: Sequence[Statement], names: Sequence[str], random: Random) -> str:
    """The puzzle as a question; `random` chooses how each person is quoted."""
    told = []
    for name, statement in zip(names, statements, strict=True):
        claim = spoken(statement, names)
        told.append(random.choice(SAYINGS).format(name=name, claim=claim, Claim=claim[0].upper() + claim[1:]))
    return (
        "Everyone on a small island is either a knight or a knave. A knight never says anything false, and a knave never says "
        f"anything true. You come across {len(names)} islanders: {', '.join(names[:-1])} and {names[-1]}. {' '.join(told)} "
        "Which of them are knights, and which are knaves?"
    )


def answer_text(names: Sequence[str], roles: Roles) -> str:
    """One numbered line per person."""
    return "\n".join(f"({i}) {name} is a {role(knight)}" for i, (name, knight) in enumerate(zip(names, roles, strict=True), 1))


def chain_of_thought(statements: Sequence[Statement], names: Sequence[str]) -> str:
    """The reasoning that finds the solution, branches that fail included: one sentence, on a line of its own, per event."""
    claims = [spoken(statement, names) for statement in statements]
    lines = []
    for kind, person, knight, other, other_knight in reason(statements)[0]:
        if kind == "assume":
            lines.append(
                f"Suppose {names[person]} is a {role(knight)}: then it is {truth(knight)} that {claims[person]}, "
                "and nothing so far rules this out."
            )
        elif kind == "conflict":
            lines.append(
                f"{names[person]} cannot be a {role(knight)} here, because {names[other]}, a {role(other_knight)}, "
                f"would be saying something {truth(not other_knight)}, namely that {claims[other]}."
            )
        elif kind == "reconsider":
            lines.append(f"Neither role is left for {names[person]}, so I return to {names[other]}.")
        else:
            lines.append("Now every role fits what its owner says.")
    return "\n".join(lines)
