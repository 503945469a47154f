"""How commands end: one sentence on stderr and an exit code of its own for each kind of end."""

from __future__ import annotations

import errno
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from .engines.protocol import EngineError
from .guards import GuardError
from .types import ConfigError


class ResourceError(Exception):
    """The machine cannot go on: memory or disk are full, or another process of the run is gone."""


def fail(text: str, code: int) -> None:
    print(f"error: {text}", file=sys.stderr)
    raise SystemExit(code)


@contextmanager
def short_errors() -> Iterator[None]:
    """A config that cannot work, a guard that stops a run, an engine that fails and a machine that cannot go on end in one
    sentence."""
    try:
        yield
    except Exception as error:
        if text := cause_of(error, ConfigError) or cause_of(error, MisconfigurationException):
            fail(text, code=2)
        if text := cause_of(error, GuardError):
            fail(f"stopped by a guard: {text}", code=3)
        if text := cause_of(error, EngineError):
            fail(text, code=4)
        if text := cause_of(error, ResourceError):
            fail(text, code=5)
        if "Union subtypes" in str(error):
            fail(sentence_in(str(error)), code=2)
        if str(error).startswith("Error(s) in loading state_dict"):
            first = " ".join(" ".join(str(error).splitlines()[1:3]).split())
            fail(f"the checkpoint does not fit the model of the config: {first} Expected the model it was written with", code=2)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            where = f" at {error.filename}" if error.filename else ""
            fail(
                f"the disk is full{where}; what was saved before is whole: free space, and go on with --ckpt_path last", code=5
            )
        raise


def cause_of(error: BaseException | None, kind: type[Exception]) -> str | None:
    """The text of the first error of that kind among an error and its causes."""
    while error is not None and not isinstance(error, kind):
        error = error.__cause__ or error.__context__
    return error and str(error)


def sentence_in(text: str) -> str:
    """The refusal among the lines with which jsonargparse reports that no type of a union fits; else the text."""
    refusals = re.findall(r"- (.*; expected .*)", text)
    return refusals[0] if "Union subtypes" in text and refusals else text
