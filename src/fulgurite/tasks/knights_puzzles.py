"""Puzzles of knights and knaves with exactly one solution: made from settings, or read from files.

Whether a generated puzzle is for training or held out is a hash of its statements, so no puzzle is ever on both sides, whatever
the seeds, the names and the words. Puzzle i of a size has random streams of its own, one for the logic and one for the words,
so it does not depend on how many are asked for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from random import Random

from ..seeding import address
from ..types import ConfigError
from .knights_logic import Roles, Statement, checked, draw, solutions
from .knights_text import NAMES, puzzle_text
from .sources import Source

COLUMNS = ("n", "quiz", "names", "solution", "statements")
TRIES = 1000
MOST_PEOPLE = 10
LONGEST = 10_000


@dataclass(frozen=True)
class Puzzle:
    """One statement per name, the one solution (true: knight), and the question in words."""

    id: str
    names: tuple[str, ...]
    statements: tuple[Statement, ...]
    solution: Roles
    text: str


@dataclass(frozen=True)
class Generator:
    """Puzzles to generate, in the splits `train` and `held_out`.

    Args:
        people: in a puzzle, 2 to 10; or a list of such numbers.
        count: puzzles for training, of each number of people.
        held_out: puzzles held out, of each number of people.
        depth: how deep statements nest; at depth 2 the parts of a statement are "X is a knight" and "X is a knave". With these
            alone no puzzle has just one solution: swapping all roles gives another.
        width: the most parts of an `and` or an `or`.
        seed: of the puzzles.
    """

    people: int | list[int] = 3
    count: int = 900
    held_out: int = 100
    depth: int = 2
    width: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.sizes or not all(2 <= n <= MOST_PEOPLE for n in self.sizes) or len({*self.sizes}) < len(self.sizes):
            raise ConfigError(f"people is {self.people}; expected different numbers from 2 to {MOST_PEOPLE}")
        if self.count < 1 or self.held_out < 1:
            raise ConfigError(f"count is {self.count} and held_out {self.held_out}; expected at least 1")
        if not 2 <= self.depth <= 4:
            raise ConfigError(f"depth is {self.depth}; expected 2 to 4")
        if not 2 <= self.width <= 2 * min(self.sizes) - 1:
            raise ConfigError(
                f"width is {self.width}; expected 2 to {2 * min(self.sizes) - 1}, as many different things as one of "
                f"{min(self.sizes)} people can say of a person: lower it, or take more people"
            )

    @property
    def sizes(self) -> list[int]:
        return [self.people] if isinstance(self.people, int) else self.people

    def puzzles(self, split: str) -> Iterator[Puzzle]:
        """The puzzles of a split, number of people by number of people.

        Raises:
            ConfigError: there is no such split, or no new puzzle in 1000 tries.
        """
        counts = {"train": self.count, "held_out": self.held_out}
        if split not in counts:
            raise ConfigError(f"no split {split!r}; expected train or held_out")
        for people in self.sizes:
            seen: set[tuple[Statement, ...]] = set()
            for index in range(counts[split]):
                place = ("knights_knaves", self.seed, split, people, index)
                statements = self._new(Random(address(*place, "logic")), people, split, seen)
                if statements is None:
                    raise ConfigError(
                        f"no new puzzle of {people} people in {TRIES} tries, after {index} of the {counts[split]} for {split}; "
                        "ask for fewer, or for more people, depth or width"
                    )
                seen.add(statements)
                words = Random(address(*place, "words"))
                names = tuple(words.sample(NAMES, people))
                text = puzzle_text(statements, names, words)
                yield Puzzle(f"{split}/{people}/{index}", names, statements, solutions(statements)[0], text)

    def _new(self, random: Random, people: int, split: str, seen: set) -> tuple[Statement, ...] | None:
        for _ in range(TRIES):
            found = draw(random, people, self.depth, self.width)
            if found not in seen and side(found) == split and len(solutions(found)) == 1:
                return found
        return None


def side(statements: tuple[Statement, ...]) -> str:
    """The split that generated puzzles with these statements are in; half of all are in each."""
    return ("train", "held_out")[address("knights_knaves", repr(statements)) % 2]


def read(source: Source, split: str) -> Iterator[Puzzle]:
    """The puzzles of a data set with the columns n, quiz, names, solution (a list of true and false) and statements (nested
    tuples, as Python or JSON writes them).

    Raises:
        ConfigError: a row is no puzzle, or its stored solution is not the only one of its statements.
    """
    for number, row in enumerate(source.rows(COLUMNS)):
        try:
            yield _puzzle(f"{split}/{number}", row)
        except ValueError as error:
            raise ConfigError(f"{source.path}, row {number + 1}: {error}; correct or drop the row") from None


def _puzzle(name: str, row: Mapping[str, str]) -> Puzzle:
    names, solution = _list("names", row["names"]), _list("solution", row["solution"])
    trees = _list("statements", row["statements"].translate(str.maketrans("()'", '[]"')))
    if not all(isinstance(n, str) and n.strip() for n in names) or len({same(n) for n in names}) < len(names):
        raise ValueError(f"names is {names}; expected different names")
    if not 2 <= len(names) <= MOST_PEOPLE or row["n"] != str(len(names)) or len(trees) != len(names):
        raise ValueError(
            f"n is {row['n']}, with {len(names)} names and {len(trees)} statements; expected n of both, 2 to {MOST_PEOPLE}"
        )
    statements = tuple(checked(tree, len(names)) for tree in trees)
    found = [list(roles) for roles in solutions(statements)]
    if found != [solution]:
        raise ValueError(f"solution is {solution}; expected the only solution of the statements, which have {found}")
    return Puzzle(name, tuple(names), statements, tuple(solution), row["quiz"])


def _list(column: str, text: str) -> list:
    try:
        value = json.loads(text) if len(text) <= LONGEST else None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, list):
        raise ValueError(f"{column} is {text[:80]!r}; expected a list of at most {LONGEST} characters")
    return value


def same(name: str) -> str:
    """A text without regard to case and to the amount of white space."""
    return " ".join(name.casefold().split())
