"""How many bytes does a checkpoint of a real training take, as a share of its state, by each setting of compression?

    python bench/make_series.py bert fp32 /tmp/series/bert-fp32
    python bench/checkpoint_sizes.py /tmp/series/bert-fp32 [FOLDER ...]

The checkpoints of a series are saved one after another, all of them kept, once with each setting. The first one always
stands alone; with ``"delta"`` the others are differences to it, where that pays. Nothing is timed.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Literal

import torch

from checkpoint_savers import distinct_tensors
from checkpoint_subject import live_state, set_live, steps_of
from measuring import scratch, table
from milepost import ExperimentConfig, ModelCheckpointer

_KEPT = 20  # as many as repay a keyframe
_SETTINGS: tuple[Literal[True, "delta", "bf16-moments"], ...] = (True, "delta", "bf16-moments")


def main() -> None:
    """Print one table for all series."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("series", type=Path, nargs="+", help="a folder of <step>.pt")
    rows = [row for series in parser.parse_args().series for row in measure(series)]
    print(table(["series", "state MB", "compression", "each checkpoint, as a share"], rows))


def measure(series: Path) -> list[list[object]]:
    """A row for each setting."""
    model, optimizer = live_state(_load(series, steps_of(series)[0]))
    size = sum(tensor.nbytes for tensor in distinct_tensors(model, optimizer).values())
    rows: list[list[object]] = []
    for setting in _SETTINGS:
        with scratch() as folder:
            sizes = saved_sizes(series, model, optimizer, ExperimentConfig(
                root=str(folder), compression=setting, max_checkpoints=_KEPT
            ))  # fmt: skip
        rows.append([series.name, size / 1e6, str(setting), " ".join(f"{one / size:.3f}" for one in sizes)])
    return rows


def saved_sizes(series: Path, model: Any, optimizer: Any, config: ExperimentConfig) -> list[int]:
    """Bytes of the checkpoints of a series, saved one after another as ``config`` says."""
    checkpointer = ModelCheckpointer(config)
    for step in steps_of(series):
        set_live(model, optimizer, _load(series, step))
        checkpointer.save_checkpoint(model, optimizer, step=step)
        checkpointer.wait()
    return [info.size for info in checkpointer.list_checkpoints()]


def _load(series: Path, step: int) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(series / f"{step}.pt", weights_only=True, mmap=True)
    return content


if __name__ == "__main__":
    main()
