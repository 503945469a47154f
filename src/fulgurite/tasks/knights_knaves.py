"""Knights and knaves: who always tells the truth, and who never does?

    <think>reasoning</think> <answer>(1) Ada is a knight
    (2) Hugo is a knave</answer>

An answer gives each person one role, once, in any order; letters may be capital or small. It is correct if these roles fit
what everyone says, which is worked out anew from the statements.

Rewards, by name: `logic_rl` (github.com/Unakar/Logic-RL): format 1 or -1, and answer 2 if correct, -1.5 if wrong, -2 if it
cannot be read. `warm_up` (arXiv 2505.13718): answer 2 if correct, -0.5 if wrong, -1 if it cannot be read, -2 if the format is
broken. `binary`: accuracy 1 if correct, else 0.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import Literal

from ..types import Completion, ConfigError, Prompt, Verdict
from .knights_logic import Roles, fits
from .knights_puzzles import Generator, Puzzle, read, same
from .knights_text import answer_text, chain_of_thought
from .prompting import PromptStyle
from .protocol import Task
from .sources import Source

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
ROLES = {"knight": True, "knave": False}
REWARDS = {
    "logic_rl": {
        "correct": {"format": 1.0, "answer": 2.0},
        "wrong": {"format": 1.0, "answer": -1.5},
        "unreadable": {"format": 1.0, "answer": -2.0},
        "misshapen": {"format": -1.0, "answer": -2.0},
    },
    "warm_up": {
        "correct": {"answer": 2.0},
        "wrong": {"answer": -0.5},
        "unreadable": {"answer": -1.0},
        "misshapen": {"answer": -2.0},
    },
    "binary": {
        "correct": {"accuracy": 1.0},
        "wrong": {"accuracy": 0.0},
        "unreadable": {"accuracy": 0.0},
        "misshapen": {"accuracy": 0.0},
    },
}
STYLE = PromptStyle(
    "{question}\nReason between <think> and </think>. Then answer between <answer> and </answer>, "
    "with one line per person, such as: (1) NAME is a knight\n"
)


class KnightsKnaves(Task):
    """Puzzles with exactly one solution; exactly one of `generate` and `splits` is given.

    Args:
        generate: the puzzles to generate, in the splits `train` and `held_out`.
        splits: {split: source}; rows have the columns n, quiz, names, solution and statements.
        style: how a puzzle becomes a prompt.
        prompt_opens_think: the prompt ends with `<think>`, and completions only close it. It is added to prompts that are text;
            with `chat` the model's chat template has to do it.
        rewards: `logic_rl`, `warm_up` or `binary`.
        chain_of_thought: of the solutions to learn from: `long` has the reasoning with the branches that failed, `short` one
            sentence that is always the same.
    """

    def __init__(
        self,
        generate: Generator | None = None,
        splits: dict[str, Source] | None = None,
        style: PromptStyle = STYLE,
        prompt_opens_think: bool = False,
        rewards: Literal["logic_rl", "warm_up", "binary"] = "logic_rl",
        chain_of_thought: Literal["long", "short"] = "long",
    ) -> None:
        if (generate is None) == (splits is None):
            raise ConfigError(
                "KnightsKnaves has " + ("neither" if splits is None else "both") + " of generate and splits; expected one: "
                "`generate: {people: 3}` makes puzzles, `splits: {train: {path: FILE}}` reads them"
            )
        for name, given, known in (("rewards", rewards, REWARDS), ("chain_of_thought", chain_of_thought, ("long", "short"))):
            if given not in known:
                raise ConfigError(f"{name} is {given!r}; expected one of {', '.join(known)}")
        self.generate, self.splits, self.opened = generate, splits, prompt_opens_think
        self.style = replace(style, template=style.template + "<think>") if self.opened and not style.chat else style
        self.rewards, self.long = REWARDS[rewards], chain_of_thought == "long"
        self.reward_names = tuple(self.rewards["correct"])

    def prompts(self, split: str) -> list[Prompt]:
        if self.generate is not None:
            return [self._prompt(puzzle, "knights_knaves") for puzzle in self.generate.puzzles(split)]
        if split not in self.splits:
            raise ConfigError(f"no split {split!r}; expected one of {', '.join(self.splits)}")
        source = self.splits[split]
        return [self._prompt(puzzle, source.path) for puzzle in read(source, split)]

    def judge(self, prompt: Prompt, completion: Completion) -> Verdict:
        names, statements = _puzzle_of(prompt)
        answer = answer_span(completion.text, self.opened)
        roles = None if answer is None else claimed(answer, names)
        if roles is not None:
            outcome = case = "correct" if fits(statements, roles) else "wrong"
        else:
            outcome, case = "ungradable", "misshapen" if answer is None else "unreadable"
        rewards = self.rewards[case]
        return Verdict(outcome, rewards, sum(rewards.values()), roles and answer_text(names, roles))

    def solution(self, prompt: Prompt) -> str:
        names, statements = _puzzle_of(prompt)
        thought = chain_of_thought(statements, names) if self.long else "These roles fit everything that is said."
        return f"{'' if self.opened else '<think>'}{thought}</think> <answer>{prompt.answer}</answer>"

    def _prompt(self, puzzle: Puzzle, source: str) -> Prompt:
        answer = answer_text(puzzle.names, puzzle.solution)
        prompt = self.style.prompt(puzzle.text, id=puzzle.id, answer=answer, source=source)
        logic = {"names": json.dumps(puzzle.names), "statements": json.dumps(puzzle.statements)}
        return replace(prompt, metadata={**prompt.metadata, **logic})


def _puzzle_of(prompt: Prompt) -> tuple[list[str], list]:
    return json.loads(prompt.metadata["names"]), json.loads(prompt.metadata["statements"])


def answer_span(text: str, opened: bool) -> str | None:
    """What stands between the answer tags; None unless every tag is there once, in order, some reasoning is between the first
    two, and nothing but white space is outside. `opened`: `<think>` is in the prompt, and may not be here."""
    expected = TAGS[1:] if opened else TAGS
    tags = list(islice(re.finditer("</?(?:think|answer)>", text), len(expected)))
    if tuple(tag[0] for tag in tags) != expected:
        return None
    *before, close, start, end = tags
    thought = text[before[0].end() if before else 0 : close.start()]
    outside = (text[: before[0].start()] if before else "", text[close.end() : start.start()], text[end.end() :])
    return text[start.end() : end.start()] if thought.strip() and not any(part.strip() for part in outside) else None


def claimed(answer: str, names: Sequence[str]) -> Roles | None:
    """The roles that an answer claims, in the order of the names; None unless it says "NAME is a knight" or "NAME is a knave"
    once of each, and has no other word "knight" or "knave"."""
    answer, people = same(answer), [same(name) for name in names]
    either = "|".join(map(re.escape, people))
    claims = re.finditer(rf"(?<!\w)({either}) is a (knight|knave)(?!\w)", answer)
    found = {name: ROLES[said] for name, said in (claim.groups() for claim in islice(claims, len(people)))}
    words = sum(1 for _ in islice(re.finditer(r"(?<!\w)(?:knight|knave)(?!\w)", answer), len(people) + 1))
    return tuple(found[name] for name in people) if words == len(people) == len(found) else None
