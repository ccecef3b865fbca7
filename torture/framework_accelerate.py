"""A training with Accelerate that can be killed at any file event of a save; `torture.framework_kills` runs it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, TensorDataset

from milepost.integrations.accelerate import MilepostTracker, load_state, save_state
from torture.file_events import watch_files

__all__ = ["WRITES_APART", "complaints", "train"]

WRITES_APART = False
_STEPS, _SAVE_EVERY, _BATCHES = 24, 5, 8


def _prepared(**settings: Any) -> tuple[Accelerator, torch.nn.Module, Any, Any]:
    accelerator = Accelerator(cpu=True, **settings)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.2), torch.nn.Linear(8, 1))
    data = TensorDataset(torch.randn(4 * _BATCHES, 4), torch.randn(4 * _BATCHES, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    return (accelerator, *accelerator.prepare(model, optimizer, DataLoader(data, batch_size=4)))


def train() -> None:
    """Train in the working folder; the same call goes on after a kill, dropout included."""
    torch.set_num_threads(1)
    quiet: dict[str, Any] = {"tensorboard_dir": None, "capture_code": False, "system_metrics_every": None}
    accelerator, model, optimizer, loader = _prepared(log_with=MilepostTracker("tortured", **quiet))
    accelerator.init_trackers("unused", config={"learning_rate": 0.05})
    watch_files("step-", is_trainer=True)
    batches = list(loader)  # before the load: a loader draws a random number when it begins
    first = load_state(accelerator, "states")
    for step in range(first, _STEPS):
        inputs, targets = batches[step % len(batches)]
        loss = torch.nn.functional.mse_loss(model(inputs), targets)
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        accelerator.log({"train/loss": loss.item()}, step=step)
        if step % _SAVE_EVERY == _SAVE_EVERY - 1:
            save_state(accelerator, "states", step=step, keep=2)
    accelerator.end_training()


def complaints(folder: Path) -> list[str]:
    """What is wrong with the folders that are left: the accelerator itself must load each of them."""
    found = []
    accelerator, *_ = _prepared()
    for state in sorted((folder / "states").glob("step-*")):
        try:
            accelerator.load_state(os.fspath(state))
        except Exception as error:
            found.append(f"{state.name} does not load: {error!r:.200}")
    accelerator.free_memory()
    return found
