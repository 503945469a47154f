"""The tensors of a saved model (safetensors), one at a time."""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor


class SavedWeights:
    """What a transformers folder or hub name holds; nothing is read but what is asked for.

    Raises:
        OSError: there are no safetensors.
    """

    def __init__(self, source: str) -> None:
        from safetensors import safe_open
        from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
        from transformers.utils.hub import cached_file, get_checkpoint_shard_files

        index = cached_file(source, SAFE_WEIGHTS_INDEX_NAME, _raise_exceptions_for_missing_entries=False)
        if index:
            paths = get_checkpoint_shard_files(source, index)[0]
            path_of = {Path(path).name: path for path in paths}
            self.files = {name: path_of[file] for name, file in json.loads(Path(index).read_text())["weight_map"].items()}
        else:
            path = cached_file(source, SAFE_WEIGHTS_NAME)
            with safe_open(path, "pt") as file:
                self.files = dict.fromkeys(file.keys(), path)

    def __getitem__(self, name: str) -> Tensor:
        from safetensors import safe_open

        with safe_open(self.files[name], "pt") as file:
            return file.get_tensor(name)
