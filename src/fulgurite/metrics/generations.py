"""Completions of benchmarks as rows of JSON, and back: saved rows can be judged and measured again without a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from ..types import Completion, ConfigError, EvaluationBatch, Prompt, Verdict
from .benchmark import measure, table_of

Row = dict[str, Any]
CHARACTERS_SHOWN = 300


class Judge(Protocol):
    """A task, as far as it is needed here."""

    def judge_all(self, pairs: Sequence[tuple[Prompt, Completion]]) -> list[Verdict]: ...


def generation_rows(batch: EvaluationBatch, decode: Callable[[Sequence[int]], str]) -> list[Row]:
    """A row per completion: `prompt` is what the model saw, its tokens decoded, `prompt_text` what the task wrote;
    `reference` is the answer of the task, `extracted` that of the completion."""
    n = batch.correct.shape[1]
    rows = []
    for i, (completion, verdict) in enumerate(zip(batch.completions, batch.verdicts, strict=True)):
        prompt = batch.prompts[i // n]
        rows.append(
            {
                "benchmark": batch.benchmark,
                "prompt_id": prompt.id,
                "prompt": decode(prompt.token_ids),
                "prompt_text": prompt.text,
                "reference": prompt.answer,
                "source": prompt.source,
                "metadata": dict(prompt.metadata),
                "text": completion.text,
                "token_ids": list(completion.token_ids),
                "finish_reason": completion.finish_reason,
                **_judgement(verdict),
            }
        )
    return rows


def regrade(rows: Sequence[Row], task: Judge, k: Sequence[int] = ()) -> dict[str, dict[str, float]]:
    """{benchmark: its numbers} of saved rows, judged again: see `rejudge` and `measure_rows`."""
    return measure_rows(rejudge(rows, task), k)


def rejudge(rows: Iterable[Row], task: Judge) -> list[Row]:
    """The rows with the task's verdicts on them. It sees of a prompt its id, text, reference, source and metadata.

    Raises:
        ConfigError: a row lacks a key.
    """
    whole = [*map(_whole, rows)]
    verdicts = task.judge_all([(_prompt(row), _completion(row)) for row in whole])
    return [{**row, **_judgement(verdict)} for row, verdict in zip(whole, verdicts, strict=True)]


def measure_rows(rows: Iterable[Row], k: Sequence[int] = ()) -> dict[str, dict[str, float]]:
    """{benchmark: its numbers} from the verdicts in the rows, which may come in any order.

    Raises:
        ConfigError: a row lacks a key, prompts of a benchmark have different numbers of completions, or a k is above it.
    """
    benchmarks: dict[str, dict[str, list[Row]]] = {}
    for row in map(_whole, rows):
        benchmarks.setdefault(row["benchmark"], {}).setdefault(row["prompt_id"], []).append(row)
    measured = {}
    for name, prompts in benchmarks.items():
        n = max(map(len, prompts.values()))
        for prompt, group in prompts.items():
            if len(group) != n:
                raise ConfigError(
                    f"the benchmark {name} has {len(group)} completions of prompt {prompt!r} and {n} of another; "
                    "expected as many of each: some are missing, or two runs are in one file"
                )
        if not all(1 <= size <= n for size in k):
            raise ConfigError(f"k is {list(k)} and the benchmark {name} has {n} completions of a prompt; expected 1 to {n}")
        ordered = [row for group in prompts.values() for row in group]
        measured[name] = measure(table_of([*map(_completion, ordered)], [*map(_verdict, ordered)], n), k)
    return measured


def shown(row: Row) -> str:
    """A row as four lines to read."""
    verdict = f"{row['outcome']}, read {row['extracted']!r}, reference {row['reference']!r}"
    end = f"{len(row['token_ids'])} tokens, {row['finish_reason']}"
    return "\n".join(
        (
            f"{row['benchmark']} {one_line(row['prompt_id'])}",
            f"  prompt      {one_line(row['prompt'])}",
            f"  completion  {one_line(row['text'])}",
            f"  verdict     {one_line(verdict)}; {end}",
        )
    )


def one_line(text: str) -> str:
    """Text on one line that tells a terminal nothing but its letters; a long one loses its middle."""
    if len(text) > CHARACTERS_SHOWN:
        text = f"{text[: CHARACTERS_SHOWN // 2]} … {text[-CHARACTERS_SHOWN // 2 :]}"
    return "".join(c if c.isprintable() else "↵" if c == "\n" else "�" for c in text)


def _judgement(verdict: Verdict) -> Row:
    return {"extracted": verdict.answer, "outcome": verdict.outcome, "reward": verdict.reward, "failure": verdict.failure}


KEYS = frozenset(
    ("benchmark", "prompt_id", "prompt_text", "reference", "source", "metadata", "text", "token_ids", "finish_reason")
    + tuple(_judgement(Verdict("wrong", {}, 0.0)))
)


def _whole(row: Row) -> Row:
    if lacking := sorted(KEYS - row.keys()):
        raise ConfigError(
            f"a row of generations has no {', '.join(lacking)}; expected {', '.join(sorted(KEYS))}, as `predict` writes them"
        )
    return row


def _prompt(row: Mapping[str, Any]) -> Prompt:
    return Prompt(row["prompt_id"], row["prompt_text"], (), row["reference"], row["source"], row["metadata"])


def _completion(row: Mapping[str, Any]) -> Completion:
    return Completion(tuple(row["token_ids"]), (), row["finish_reason"], row["text"])


def _verdict(row: Mapping[str, Any]) -> Verdict:
    return Verdict(row["outcome"], {}, row["reward"], row["extracted"], row["failure"])
