"""Knights and knaves for tiny models: `T0|T1,L0=T1:` is answered by `LL`.

Person after person, separated by commas, says who tells the truth (T) and who lies (L); `~` is not, `&` and, `|` or, `>` if ...
then, `=` if and only if. The answer has one letter per person, so a guess at random is right 1 time in 2^people.
"""

from __future__ import annotations

import json
from dataclasses import replace

from ..types import Completion, Prompt, Verdict
from .knights_logic import KNIGHT, LEAVES, Statement, fits
from .knights_puzzles import Generator
from .protocol import Task, binary_verdict

SIGNS = {"and": "&", "or": "|", "->": ">", "<=>": "="}


class KnightsKnavesLetters(Task):
    """Generated puzzles, in the splits `train` and `held_out`.

    Args:
        generate: the puzzles to generate.
    """

    def __init__(self, generate: Generator = Generator(people=2, count=100)) -> None:  # noqa: B008 - frozen
        self.generate = generate

    def prompts(self, split: str) -> list[Prompt]:
        return [
            Prompt(
                id=puzzle.id,
                text=",".join(map(written, puzzle.statements)) + ":",
                answer="".join("T" if knight else "L" for knight in puzzle.solution),
                source="knights_knaves",
                metadata={"statements": json.dumps(puzzle.statements)},
            )
            for puzzle in self.generate.puzzles(split)
        ]

    def judge(self, prompt: Prompt, completion: Completion) -> Verdict:
        statements, said = json.loads(prompt.metadata["statements"]), completion.text
        if completion.finish_reason != "stop" or len(said) != len(statements) or set(said) - set("TL"):
            return binary_verdict("ungradable")
        outcome = "correct" if fits(statements, tuple(letter == "T" for letter in said)) else "wrong"
        return replace(binary_verdict(outcome), answer=said)

    def solution(self, prompt: Prompt) -> str:
        return prompt.answer


def written(statement: Statement) -> str:
    """A statement in signs; a statement of statements inside another is in brackets."""
    kind, *parts = statement
    if kind in LEAVES:
        return f"{'T' if kind == KNIGHT else 'L'}{parts[0]}"
    inner = [written(part) if part[0] in LEAVES else f"({written(part)})" for part in parts]
    return f"~{inner[0]}" if kind == "not" else SIGNS[kind].join(inner)
