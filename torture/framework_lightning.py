"""A training with Lightning that can be killed at any file event of a save: what :mod:`torture.framework_kills` runs.

Dropout is off and the loader does not shuffle: Lightning keeps neither random numbers nor the place in a plain loader.
Checkpoints are taken at the end of each epoch, so that the losses after a resume are those of a training that was not
killed, bit for bit.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L  # noqa: N812 - as everybody calls it
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

from milepost.integrations import file_courier
from milepost.integrations.lightning import MilepostCheckpointIO, MilepostLogger
from milepost.io.locks import wait_until_unused

__all__ = ["WRITES_APART", "complaints", "train"]

#: Whether a process other than the training writes the files.
WRITES_APART = True
_ROOT = str(Path(__file__).parents[1])
_WATCHED = (
    f"import sys; sys.path.append({_ROOT!r}); from torture.file_events import watch_files; "
    "watch_files('.ckpt', is_trainer=False); from milepost.integrations.file_courier import main; main()"
)


class Regression(L.LightningModule):
    """One layer, so that a fit takes less than a second."""

    def __init__(self, learning_rate: float = 0.05) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = torch.nn.Linear(4, 1)

    def _loss(self, batch: Any) -> Any:
        return torch.nn.functional.mse_loss(self.net(batch[0]), batch[1])

    def training_step(self, batch: Any, _: int) -> Any:
        """Kill, or wait for a signal from outside, where the environment says so; log the loss."""
        step = str(self.trainer.global_step)
        if os.environ.get("TORTURE_KILL_STEP") == step:
            os.kill(os.getpid(), signal.SIGKILL)
        if os.environ.get("TORTURE_WAIT_STEP") == step:
            Path("waiting").touch()
            while not Path("go on").exists():
                time.sleep(0.02)
        loss = self._loss(batch)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Any, _: int) -> None:
        """Log the loss that the best checkpoint is judged by."""
        self.log("val/loss", self._loss(batch), sync_dist=True)

    def configure_optimizers(self) -> Any:
        """An optimizer with a state that must come back."""
        return torch.optim.AdamW(self.parameters(), lr=self.hparams["learning_rate"])


def train() -> None:
    """Fit in the working folder; the same call goes on after a kill."""
    warnings.simplefilter("ignore")
    file_courier._BOOTSTRAP = _WATCHED
    torch.manual_seed(0)
    torch.set_num_threads(1)
    data = TensorDataset(torch.randn(32, 4), torch.randn(32, 1))
    where = os.environ.get("TORTURE_CKPT_PATH", "last")
    processes = int(os.environ.get("TORTURE_PROCESSES", "1"))
    trainer = L.Trainer(
        accelerator="cpu",
        devices=processes,
        strategy="ddp" if processes > 1 else "auto",
        max_epochs=4,
        log_every_n_steps=1,
        logger=MilepostLogger(name="tortured", tensorboard_dir=None, capture_code=False, system_metrics_every=None),
        plugins=[MilepostCheckpointIO()],
        callbacks=[ModelCheckpoint(dirpath="out", monitor="val/loss", save_top_k=2, save_last=True)],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Regression(), DataLoader(data, batch_size=8), DataLoader(data, batch_size=16), ckpt_path=where)
    Regression.load_from_checkpoint(trainer.checkpoint_callback.best_model_path)  # type: ignore[union-attr]


def complaints(folder: Path) -> list[str]:
    """What is wrong with the files that are left: each must load by Lightning's own means."""
    wait_until_unused(folder / "out", 60)  # the writer finishes what it was given
    found = []
    for path in sorted(folder.glob("out/*.ckpt")):
        try:
            Regression.load_from_checkpoint(path, map_location="cpu")
        except Exception as error:
            found.append(f"{path.name} does not load: {error!r:.200}")
    return found


if __name__ == "__main__":
    os.chdir(sys.argv[1])
    train()
