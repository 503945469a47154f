"""Logic of knights and knaves: drawing statements, finding every solution, and reasoning one's way to it.

A statement is a nested tuple: `("telling-truth", i)` says that person i is a knight, `("lying", i)` that i is a knave; `not`
takes one statement, `and` and `or` two or more, `->` and `<=>` two. A puzzle has one statement per person. Roles are a solution
if everyone who is a knight says something true and everyone who is a knave something false.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache, reduce
from operator import and_, or_
from random import Random
from typing import Literal, NamedTuple

KNIGHT, KNAVE = LEAVES = ("telling-truth", "lying")
PARTS = {"not": (1, 1), "and": (2, None), "or": (2, None), "->": (2, 2), "<=>": (2, 2)}
DEEPEST = 16

Statement = tuple
Roles = tuple[bool, ...]


def checked(tree: object, people: int, room: int = DEEPEST) -> Statement:
    """A statement read from elsewhere, lists or tuples, as tuples.

    Raises:
        ValueError: it is none.
    """
    kind, *parts = tree if isinstance(tree, tuple | list) and tree and isinstance(tree[0], str) else (None,)
    if kind in LEAVES and len(parts) == 1 and type(parts[0]) is int and 0 <= parts[0] < people:
        return kind, parts[0]
    if kind in PARTS and room:
        fewest, most = PARTS[kind]
        if fewest <= len(parts) <= (most or len(parts)):
            return kind, *(checked(part, people, room - 1) for part in parts)
    raise ValueError(f"{str(tree)[:80]!r} is no statement about {people} people")


def value(statement: Statement, knights: Sequence[int], every: int) -> int:
    """Truth of a statement in many worlds at once, a bit for each: `knights[i]` has the worlds where person i is a knight,
    `every` has them all. With `every` 1 there is one world, and `knights` are its roles."""
    kind, *parts = statement
    if kind == KNIGHT:
        return int(knights[parts[0]])
    if kind == KNAVE:
        return every ^ knights[parts[0]]
    values = [value(part, knights, every) for part in parts]
    if kind == "not":
        return every ^ values[0]
    if kind == "and":
        return reduce(and_, values)
    if kind == "or":
        return reduce(or_, values)
    if kind == "->":
        return (every ^ values[0]) | values[1]
    return every ^ values[0] ^ values[1]


@lru_cache
def worlds(people: int) -> tuple[tuple[int, ...], int]:
    """(`knights`, `every`) of all 2^people worlds; in world w person i is a knight where bit i of w is set."""
    knights = tuple(sum(1 << world for world in range(1 << people) if world >> i & 1) for i in range(people))
    return knights, (1 << (1 << people)) - 1


def agreement(statements: Sequence[Statement]) -> list[int]:
    """For each person the worlds in which their role fits what they say."""
    knights, every = worlds(len(statements))
    return [every ^ knight ^ value(said, knights, every) for knight, said in zip(knights, statements, strict=True)]


def solutions(statements: Sequence[Statement]) -> list[Roles]:
    """Every solution, by looking at all worlds."""
    people, found = len(statements), reduce(and_, agreement(statements))
    return [tuple(bool(w >> i & 1) for i in range(people)) for w in range(1 << people) if found >> w & 1]


def fits(statements: Sequence[Statement], roles: Roles) -> bool:
    """Whether roles are a solution, looking at this world only."""
    return all(value(said, roles, 1) == role for said, role in zip(statements, roles, strict=True))


def draw(random: Random, people: int, depth: int, width: int) -> tuple[Statement, ...]:
    """One statement per person; nobody says of themselves alone that they are a knave, which no one can say."""
    return tuple(_draw_one(random, speaker, people, depth, width) for speaker in range(people))


def _draw_one(random: Random, speaker: int, people: int, depth: int, width: int) -> Statement:
    kind = random.choice(("leaf", *PARTS)) if depth > 1 else "leaf"
    if kind == "leaf":
        leaf = (KNAVE, speaker)
        while leaf == (KNAVE, speaker):
            leaf = (random.choice(LEAVES), random.randrange(people))
        return leaf
    fewest, most = PARTS[kind]
    parts: list[Statement] = []
    wanted = random.randint(fewest, most or width)
    while len(parts) < wanted:
        part = _draw_one(random, speaker, people, depth - 1, width)
        if part not in parts:
            parts.append(part)
    return kind, *parts


class Event(NamedTuple):
    """A step of reasoning. `assume`: `person` may have this role. `conflict`: they may not, since then `other`, who has the
    role `other_knight`, says something that never fits it. `reconsider`: neither role of `person` is left, back to `other`.
    `success`: everyone has a role."""

    kind: Literal["assume", "conflict", "reconsider", "success"]
    person: int = -1
    knight: bool = True
    other: int = -1
    other_knight: bool = True


def reason(statements: Sequence[Statement]) -> tuple[list[Event], Roles | None]:
    """Depth-first: a person is a knight, else a knave; then those whom the person spoke of are next. A role stands while each
    statement of those with a role can still fit it. Returns the events and the first solution."""
    people, agrees = len(statements), agreement(statements)
    knights, every = worlds(people)
    events: list[Event] = []

    def explore(queue: list[int], left: int, roles: dict[int, bool]) -> dict[int, bool] | None:
        if not queue:
            events.append(Event("success"))
            return roles
        person, *others = queue
        others.sort(key=[*mentioned(statements[person]), *others].index)
        for knight in (True, False):
            assumed = {**roles, person: knight}
            possible = left & (knights[person] if knight else every ^ knights[person])
            clash = next((j for j in assumed if not possible & agrees[j]), None)
            if clash is not None:
                events.append(Event("conflict", person, knight, clash, assumed[clash]))
                continue
            events.append(Event("assume", person, knight))
            if found := explore(others, possible, assumed):
                return found
        if roles:
            events.append(Event("reconsider", person, other=next(reversed(roles))))
        return None

    found = explore(list(range(people)), every, {})
    return events, found and tuple(found[i] for i in range(people))


def mentioned(statement: Statement) -> Iterator[int]:
    """The people that a statement speaks of, in order."""
    kind, *parts = statement
    for part in parts:
        yield from [part] if kind in LEAVES else mentioned(part)
