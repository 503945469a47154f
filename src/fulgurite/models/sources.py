"""Where a model comes from: a folder or hub name, as transformers takes it, or the shape of a tiny one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..types import ConfigError
from .tiny import TinyModel, tiny_config, tiny_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase


def load_tokenizer(source: str | TinyModel) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder or hub name, or the byte-level one of a tiny model.

    Raises:
        ConfigError: `source` looks like a folder and there is none.
    """
    from transformers import AutoTokenizer

    if isinstance(source, TinyModel):
        return tiny_tokenizer(source)
    with named_in_errors(source):
        return AutoTokenizer.from_pretrained(found(source))


def load_config(source: str | TinyModel) -> PreTrainedConfig:
    """The config of a model folder or hub name, or of a tiny model.

    Raises:
        ConfigError: there is none.
    """
    from transformers import AutoConfig

    if isinstance(source, TinyModel):
        return tiny_config(source)
    with named_in_errors(source):
        return AutoConfig.from_pretrained(found(source))


@contextmanager
def named_in_errors(source: str) -> Iterator[None]:
    """What transformers says of a source that it cannot load, in one sentence."""
    try:
        yield
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise ConfigError(
            f"no usable model at {source!r}: {reason}; "
            "expected a transformers folder with safetensors, or a hub name and network"
        ) from error


def found(source: str) -> str:
    """The source again.

    Raises:
        ConfigError: it looks like a folder and there is none.
    """
    local = source.startswith((".", "/", "~", "runs/")) or source.count("/") > 1
    if local and not Path(source).exists():
        raise ConfigError(f"model {source!r} looks like a folder, but {Path(source).resolve()} does not exist")
    return source
