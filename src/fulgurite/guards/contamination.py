"""Guard: questions of a benchmark stand in the training split, so their accuracy measures memory.

A question counts if a training question is the same after normalisation, or if runs of 13 words that it shares with training
questions cover four fifths of its words. The 13 words are those of GPT-3 (arXiv 2005.14165, appendix C). One shared run alone
says little about questions made from patterns. A run in more than ten training questions is the wording of the task.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from lightning.pytorch.utilities import rank_zero_warn

from ..types import Prompt
from . import GuardError

RUN, COVERED, WORDING = 13, 0.8, 10
SHOWN = 200
Words = tuple[str, ...]


def check_contamination(train: Sequence[str], benchmarks: Mapping[str, Sequence[str]], max_contaminated: float) -> None:
    """Warns of questions of benchmarks, {name: questions}, that stand in the training split; 1 allows all.

    Raises:
        GuardError: they are more than the share `max_contaminated` of a benchmark.
    """
    if max_contaminated >= 1:
        return
    for name, found in find_contaminated(train, benchmarks).items():
        if not found:
            continue
        questions = benchmarks[name]
        message = (
            f"{len(found)} of {len(questions)} questions of the benchmark {name!r} stand in the training split, for example "
            f"{questions[found[0]][:SHOWN]!r}; expected a share of at most {max_contaminated}. Take them out of the training "
            "split, evaluate on another benchmark, or raise guards.max_contaminated to allow it"
        )
        if len(found) > max_contaminated * len(questions):
            raise GuardError(message)
        rank_zero_warn(message)


def find_contaminated(train: Sequence[str], benchmarks: Mapping[str, Sequence[str]]) -> dict[str, list[int]]:
    """{name: indices of the questions that stand in the training split}"""
    asked = {name: [words(question) for question in questions] for name, questions in benchmarks.items()}
    watched = {run for questions in asked.values() for question in questions for run in runs(question)}
    trained, seen = set(), Counter[Words]()
    for question in map(words, train):
        trained.add(question)
        seen.update(watched.intersection(runs(question)))
    shared = {run for run, count in seen.items() if count <= WORDING}
    return {
        name: [i for i, q in enumerate(questions) if q in trained or covered(q, shared) >= COVERED]
        for name, questions in asked.items()
    }


def words(text: str) -> Words:
    """Words and numbers in lower case, and signs of arithmetic; white space and other punctuation are left out."""
    return tuple(re.findall(r"[^\W_]+|[-+*/=<>^]", text.casefold())) or (text.strip(),)


def runs(question: Words) -> list[Words]:
    """Every 13 words in a row."""
    return [question[start : start + RUN] for start in range(len(question) - RUN + 1)]


def covered(question: Words, shared: set[Words]) -> float:
    """Share of the words of a question that lie in shared runs."""
    inside = {place for start, run in enumerate(runs(question)) if run in shared for place in range(start, start + RUN)}
    return len(inside) / len(question)


def question_of(prompt: Prompt) -> str:
    """The question without the words that its task puts around it, where the prompt has it; else all of it."""
    return prompt.metadata.get("question") or prompt.text or "\n".join(message["content"] for message in prompt.messages)
