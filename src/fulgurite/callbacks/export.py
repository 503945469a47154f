"""The trained model as a Hugging Face folder, ready for the next run or for another program."""

from __future__ import annotations

from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import Callback


class ModelExport(Callback):
    """Writes `<run folder>/<name>` with weights (safetensors), config and tokenizer when training ends; the name is that of the
    model in the module: `policy`."""

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        for name, model in module.trained.items():
            model.save(Path(trainer.default_root_dir) / name, module.tokenizer)
        trainer.strategy.barrier()
