"""A small classifier with Lightning, offline, on the CPU. Kill it anywhere, run it again: it goes on in the same run.

pip install "milepost[lightning]"
python lightning_trainer.py
"""

from __future__ import annotations

from typing import Any

import lightning as L  # noqa: N812 - as everybody calls it
import torch
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

from milepost.integrations.lightning import MilepostCheckpointIO, MilepostLogger


class Classifier(L.LightningModule):
    """Says whether the sum of sixteen numbers is positive."""

    def __init__(self, learning_rate: float = 1e-2) -> None:  # noqa: ARG002 - save_hyperparameters reads it
        super().__init__()
        self.save_hyperparameters()
        self.net = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2))

    def training_step(self, batch: Any, _: int) -> Any:
        """Log and return the loss."""
        loss = torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Any, _: int) -> None:
        """Log what the best checkpoint is judged by."""
        self.log("val/loss", torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1]), sync_dist=True)

    def configure_optimizers(self) -> Any:
        """AdamW and a schedule over the whole fit."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams["learning_rate"])
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)}


def samples(count: int, seed: int) -> TensorDataset:
    inputs = torch.randn(count, 16, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(inputs, (inputs.sum(1) > 0).long())


def main() -> None:
    L.seed_everything(0)
    logger = MilepostLogger(name="lightning-classifier", resume="auto")
    best = ModelCheckpoint(dirpath="lightning-out", monitor="val/loss", save_top_k=2, save_last=True)
    trainer = L.Trainer(
        max_epochs=5,
        accelerator="cpu",
        devices=1,
        logger=logger,
        callbacks=[best, LearningRateMonitor("epoch")],
        plugins=[MilepostCheckpointIO()],
        log_every_n_steps=1,
        enable_progress_bar=False,
    )
    train, validation = DataLoader(samples(512, 1), batch_size=32), DataLoader(samples(128, 2), batch_size=64)
    trainer.fit(Classifier(), train, validation, ckpt_path="last")
    Classifier.load_from_checkpoint(best.best_model_path)
    for info in logger.run.checkpoints:
        print(f"step {info.step:3d}  {dict(info.metrics)}  {info.path.name}  {info.digest}")


if __name__ == "__main__":
    main()
