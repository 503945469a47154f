"""Completions and updates of every round as JSON lines; prompts with their best and worst completion in TensorBoard."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from ..types import ConfigError, Prompt, Round

PROMPTS_SHOWN = 4
CHARACTERS_SHOWN = 800


class SampleLogger(Callback):
    """Writes `rounds/` in the run folder (`trainer.default_root_dir`):

    - `000012.completions.jsonl`: a row per completion sampled in round 12; rank 1: `000012.rank1.completions.jsonl`.
    - `000012.updates.jsonl` (rank 0): row i is update i of the round, with everything in `module.last_update`.

    The files hold no times and are replaced whole, so the same run writes the same bytes, killed and resumed or not.
    A number that is not finite is written as null.

    Args:
        every_n_rounds: from round 0 on, every so many rounds, TensorBoard gets the text `samples/round` and
            `histograms/`; 0 switches that off.
        jsonl: write the files.
    """

    def __init__(self, every_n_rounds: int = 10, jsonl: bool = True) -> None:
        if every_n_rounds < 0:
            raise ConfigError(f"samples.every_n_rounds is {every_n_rounds}; expected 0 (off) or more")
        self.every_n_rounds, self.jsonl = every_n_rounds, jsonl

    def on_round(self, trainer: Trainer, module: LightningModule, sampled: Round, kept: Round) -> None:
        if self.jsonl:
            rank = f".rank{trainer.global_rank}" if trainer.global_rank else ""
            if not trainer.global_rank:
                forget_ranks(rounds_folder(trainer), sampled.number, trainer.world_size)
            write_whole(
                rounds_folder(trainer) / f"{sampled.number:06d}{rank}.completions.jsonl",
                [json_line(row) for row in completion_rows(sampled, kept)],
            )
        if self.every_n_rounds and sampled.number % self.every_n_rounds == 0 and trainer.is_global_zero:
            step = trainer.fit_loop.epoch_loop._batches_that_stepped
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    logger.experiment.add_text("samples/round", samples_table(sampled), step)
                    for name, values in histograms(sampled).items():
                        logger.experiment.add_histogram(f"histograms/{name}", values, step)

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if not (self.jsonl and trainer.is_global_zero):
            return
        path = rounds_folder(trainer) / f"{trainer.current_epoch:06d}.updates.jsonl"
        written = path.read_text().splitlines() if path.exists() else []
        before = [line for line in written if json.loads(line)["update"] < batch_idx]
        row = {"round": trainer.current_epoch, "update": batch_idx, **module.last_update}
        write_whole(path, [*before, json_line(row)])


def rounds_folder(trainer: Trainer) -> Path:
    return Path(trainer.default_root_dir) / "rounds"


def forget_ranks(folder: Path, number: int, ranks: int) -> None:
    """Removes what a run with more processes wrote of a round that is sampled again."""
    for path in folder.glob(f"{number:06d}.rank*.completions.jsonl"):
        if int(path.name.split(".")[1].removeprefix("rank")) >= ranks:
            path.unlink()


def write_whole(path: Path, lines: Iterable[str]) -> None:
    """Replaces the file by these lines; a kill leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_text("".join(line + "\n" for line in lines), encoding="ascii", newline="\n")
    os.replace(unfinished, path)


def json_line(row: Mapping[str, Any]) -> str:
    """One ASCII line; floats in their shortest exact form, null where they are not finite."""
    try:
        return json.dumps(row, allow_nan=False)
    except ValueError:
        return json.dumps(finite_or_null(row), allow_nan=False)


def finite_or_null(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: finite_or_null(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_null(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def completion_rows(sampled: Round, kept: Round) -> list[dict[str, Any]]:
    """A row per sampled completion. `kept` must hold the very completions of `sampled`, as `Round.take` does.

    Raises:
        ValueError: a kept completion was not sampled.
    """
    read = kept.read_rows().tolist()
    left = {id(completion) for completion, is_read in zip(kept.completions, read, strict=True) if is_read}
    if strangers := left - {id(completion) for completion in sampled.completions}:
        raise ValueError(
            f"{len(strangers)} of {len(kept)} kept completions of round {sampled.number} are not among the sampled; "
            "expected rows of that round, gather them with Round.take"
        )
    coefficients = {stream: values.tolist() for stream, values in sampled.coefficients.items()}
    return [
        {
            "group": group,
            "prompt_id": sampled.prompts[group].id,
            "prompt": prompt_text(sampled.prompts[group]),
            "token_ids": list(completion.token_ids),
            "text": completion.text,
            "finish_reason": completion.finish_reason,
            "outcome": verdict.outcome,
            "rewards": dict(verdict.rewards),
            "reward": verdict.reward,
            "extracted": verdict.answer,
            "failure": verdict.failure,
            "coefficients": {stream: values[i] for stream, values in coefficients.items()},
            "kept": id(completion) in left,
        }
        for i, (group, completion, verdict) in enumerate(
            zip(sampled.group_index.tolist(), sampled.completions, sampled.verdicts, strict=True)
        )
    ]


def prompt_text(prompt: Prompt) -> str:
    return prompt.text or "\n".join(message["content"] for message in prompt.messages)


def samples_table(sampled: Round) -> str:
    """Markdown: the first prompts, each with its best and its worst completion."""
    lines = ["| prompt | answer | | completion | finish | verdict | reward |", "|---|---|---|---|---|---|---|"]
    for group in sampled.group_index.unique()[:PROMPTS_SHOWN].tolist():
        rows, prompt = (sampled.group_index == group).nonzero().flatten(), sampled.prompts[group]
        rewards = sampled.rewards[rows]
        for which, row in (("best", int(rows[rewards.argmax()])), ("worst", int(rows[rewards.argmin()]))):
            completion, verdict = sampled.completions[row], sampled.verdicts[row]
            reward = f"{float(sampled.rewards[row]):.4g}"
            cells = (prompt_text(prompt), prompt.answer or "", which, completion.text)
            cells += (completion.finish_reason, verdict.outcome, reward)
            lines.append(f"| {' | '.join(map(plain, cells))} |")
    return "\n".join(lines)


def plain(text: str) -> str:
    """Text that Markdown and HTML show as it is, on one line; a long one loses its middle."""
    if len(text) > CHARACTERS_SHOWN:
        text = f"{text[: CHARACTERS_SHOWN // 2]} … {text[-CHARACTERS_SHOWN // 2 :]}"
    return "".join(map(_plain_character, text))


def _plain_character(character: str) -> str:
    if character == "\n":
        return " ↵ "
    if character == " " or character.isalnum():
        return character
    return f"&#{ord(character)};" if character.isprintable() else " "


def histograms(sampled: Round) -> dict[str, torch.Tensor]:
    """Finite values by name: rewards, lengths in tokens, coefficients of each stream; none that are empty."""
    values = {
        "reward": sampled.rewards,
        "length": torch.tensor([len(completion.token_ids) for completion in sampled.completions]),
        **{f"coefficient_{stream}": coefficients for stream, coefficients in sampled.coefficients.items()},
    }
    finite = {name: value[torch.isfinite(value)] for name, value in values.items()}
    return {name: value for name, value in finite.items() if len(value)}
