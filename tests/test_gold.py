"""Where reasoning ends and the gold answer begins, and what is refused before a run."""

from __future__ import annotations

import pytest

from fulgurite.data.assemble import Samples, assemble
from fulgurite.data.gold import Ending, GoldAnswer, as_sampled, check_gold
from fulgurite.models.causal_lm import TinyModel, load_tokenizer
from fulgurite.rewards.names import *  # noqa: F403
from fulgurite.tasks.addition import Addition
from fulgurite.tasks.protocol import Task
from fulgurite.types import Completion, ConfigError, Prompt, Segment, Verdict

TOKENIZER = load_tokenizer(TinyModel())


def ids(text: str) -> tuple[int, ...]:
    return tuple(TOKENIZER(text, add_special_tokens=False).input_ids)
