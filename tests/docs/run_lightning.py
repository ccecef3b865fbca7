"""What does a reader bring to the examples with Lightning? ``python -m tests.docs.run_lightning BLOCK``.

A small model and its data. What the machine lacks is replaced around the block, never in it: one process on the CPU
stands for eight GPUs, a checkpoint every 20 steps for one every 500, because the whole training has 90.
``EXAMPLE_KILL``: the step inside of which the training is killed.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import lightning as L  # noqa: N812 - as everybody calls it
import torch
from lightning.pytorch import callbacks
from torch.utils.data import DataLoader

from tests.docs.run_example import BLOCKS, Samples
from tests.docs.run_example import Classifier as Network


class Data(L.LightningDataModule):
    """The order does not change from epoch to epoch: Lightning keeps no random numbers."""

    def train_dataloader(self) -> Any:
        return DataLoader(Samples(), batch_size=16)

    def val_dataloader(self) -> Any:
        return DataLoader(Samples(), batch_size=48)


class Module(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = build_bert()

    def training_step(self, batch: Any, _: int) -> Any:
        loss = self.net(**batch).loss
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Any, _: int) -> None:
        self.log("val/loss", self.net(**batch).loss)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def build_bert() -> torch.nn.Module:
    network = Network()
    network.layers[2] = torch.nn.Identity()  # type: ignore[assignment]  # instead of dropout, see above
    network.layers.register_forward_hook(_die_where_asked)
    return network


_passes = 0


def _die_where_asked(layers: torch.nn.Module, *_: Any) -> None:
    global _passes
    _passes += layers.training
    if os.environ.get("EXAMPLE_KILL") == str(_passes):
        os.kill(os.getpid(), signal.SIGKILL)


def prepared_names() -> dict[str, Any]:
    trainer, checkpoint = L.Trainer, callbacks.ModelCheckpoint

    def on_this_machine(**arguments: Any) -> Any:
        wanted = {"accelerator": "cpu", "devices": 1, "strategy": "auto", "log_every_n_steps": 1}
        return trainer(**arguments | wanted, enable_progress_bar=False)

    def more_often(**arguments: Any) -> Any:
        if "every_n_train_steps" in arguments:
            arguments["every_n_train_steps"] //= 25
        return checkpoint(**arguments)

    L.Trainer = on_this_machine  # type: ignore[misc, assignment]
    callbacks.ModelCheckpoint = more_often  # type: ignore[misc, assignment]
    return {"Module": Module, "module": Module(), "data": Data(), "build_bert": build_bert}


def run_example(block: str) -> None:
    torch.manual_seed(0)
    path = BLOCKS / f"{block}.py"
    names = prepared_names() | {"__name__": "__main__"}
    exec(compile(path.read_text(encoding="utf-8"), path, "exec", dont_inherit=True), names)
    if "logger" in names:
        print(names["logger"].run.checkpoints)


if __name__ == "__main__":
    run_example(sys.argv[1])
