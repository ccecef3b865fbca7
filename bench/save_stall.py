"""How long does a checkpoint hold the training, and when is it durable?

    python bench/save_stall.py

A state of 273 MB (22.7 million parameters in float32 with AdamW's two moments), changed a little before every save. The
floor is a plain copy of the same tensors into memory that is there already.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measuring import machine, scratch, table

_LAYERS = 28
_WIDTH = 900


def make_training() -> tuple[Any, Any]:
    """A model of about 22.7 million parameters and its optimizer, as after some steps."""
    import torch

    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(_WIDTH, _WIDTH) for _ in range(_LAYERS)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter) * 1e-3
    for _ in range(3):
        optimizer.step()
    optimizer.zero_grad()  # gradients that no step has used yet are state, and would be saved
    return model, optimizer


def tensors_of(model: Any, optimizer: Any) -> dict[str, Any]:
    moments = {
        f"{index}.{key}": value
        for index, state in optimizer.state_dict()["state"].items()
        for key, value in state.items()
    }
    return {**model.state_dict(), **{f"optimizer.{name}": value for name, value in moments.items()}}


@dataclass(frozen=True, slots=True)
class Saver:
    """``save(step)`` gives the seconds it held the caller and the seconds until it was durable."""

    save: Callable[[int], tuple[float, float]]
    finish: Callable[[], object] = lambda: None


def copy_of_tensors(model: Any, optimizer: Any, folder: Path) -> Saver:
    import torch

    del folder
    sources = list(tensors_of(model, optimizer).values())
    targets = [torch.empty_like(source).copy_(source) for source in sources]

    def save(step: int) -> tuple[float, float]:
        del step
        begun = time.perf_counter()
        for target, source in zip(targets, sources, strict=True):
            target.copy_(source)
        return time.perf_counter() - begun, float("nan")

    return Saver(save)


def by_milepost(model: Any, optimizer: Any, folder: Path, *, compression: bool) -> Saver:
    import milepost

    run = milepost.start(
        "stall",
        root=str(folder),
        tensorboard_dir=None,
        compression=compression,
        max_checkpoints=2,
        capture_code=False,
    )

    def save(step: int) -> tuple[float, float]:
        begun = time.perf_counter()
        path = run.save_checkpoint(model, optimizer, step=step)
        stalled = time.perf_counter() - begun
        os.fspath(path)
        durable = time.perf_counter() - begun
        run.wait()
        return stalled, durable

    return Saver(save, run.end)


def synced(write: Callable[[Path], None], folder: Path) -> Saver:
    """A save that holds the training until the file is written, and is durable after a sync."""

    def save(step: int) -> tuple[float, float]:
        path = folder / f"peer-{step}"
        begun = time.perf_counter()
        write(path)
        stalled = time.perf_counter() - begun
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
        durable = time.perf_counter() - begun
        path.unlink()
        return stalled, durable

    return Saver(save)


def by_torch(model: Any, optimizer: Any, folder: Path) -> Saver:
    import torch

    def write(path: Path) -> None:
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)

    return synced(write, folder)


def by_safetensors(model: Any, optimizer: Any, folder: Path) -> Saver:
    from safetensors.torch import save_file

    return synced(lambda path: save_file(tensors_of(model, optimizer), path), folder)


CANDIDATES: dict[str, Callable[[Any, Any, Path], Saver]] = {
    "floor: copy of the tensors": copy_of_tensors,
    "milepost": lambda m, o, folder: by_milepost(m, o, folder, compression=True),
    "milepost, compression=False": lambda m, o, folder: by_milepost(m, o, folder, compression=False),
    "safetensors": by_safetensors,
    "torch.save": by_torch,
}


def measure(name: str, model: Any, optimizer: Any, saves: int) -> list[object]:
    import torch

    with scratch() as folder:
        try:
            saver = CANDIDATES[name](model, optimizer, folder)
        except ImportError as error:
            return [f"{name}: {error}", *[float("nan")] * 4]
        first = saver.save(0)[0]
        took = []
        for step in range(1, saves + 1):
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(1.0001)
            took.append(saver.save(step))
        saver.finish()
    stalls = [stalled * 1000 for stalled, _ in took]
    durable = statistics.median(seconds * 1000 for _, seconds in took)
    return [name, first * 1000, statistics.median(stalls), max(stalls), durable]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--saves", type=int, default=6)
    given = parser.parse_args()
    model, optimizer = make_training()
    size = sum(tensor.nbytes for tensor in tensors_of(model, optimizer).values()) / 1e6
    rows = [measure(name, model, optimizer, given.saves) for name in CANDIDATES]
    print(f"{machine()}\nstate: {size:.0f} MB\n")
    print(table(["saver", "first stall ms", "stall ms (median)", "stall ms (max)", "durable after ms"], rows))


if __name__ == "__main__":
    main()
