"""What does a step of Hugging Face's Trainer cost more when a tracker listens?

    python bench/frameworks.py [--steps 300] [--rounds 5]

A BERT of a few thousand parameters on one core, every step logged: the worst case for a tracker. Each round trains once
with each tracker, in turns and in one process; shown are medians over the rounds. On a
shared machine look at the CPU that the training thread uses: others do not change it much.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import statistics
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from measuring import machine, scratch, table
from milepost.integrations.huggingface import MilepostCallback

TRACKERS = ("none", "milepost", "milepost + TensorBoard", "tensorboard", "wandb", "mlflow")
WARM = 20


class Clock(TrainerCallback):
    """Takes the time at the end of every step: by the wall, and what this thread used of a core."""

    def __init__(self) -> None:
        self.times: list[tuple[float, float]] = []

    def on_step_end(self, *objects: Any, **named: Any) -> None:  # noqa: ARG002 - the signature of a callback
        """A step is done, and not yet logged."""
        self.times.append((time.perf_counter(), time.thread_time()))


def tiny_model() -> BertForSequenceClassification:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return BertForSequenceClassification(BertConfig(vocab_size=64, max_position_embeddings=8, **sizes))


def samples() -> list[dict[str, torch.Tensor]]:
    return [{"input_ids": words, "labels": words.sum() % 2} for words in torch.randint(0, 64, (256, 8))]


def train(tracker: str, folder: Path, steps: int) -> tuple[float, float, float]:
    """Median wall and mean CPU milliseconds of a step, and seconds of all else that ``train()`` and its end take."""
    set_seed(1)
    ours = tracker.startswith("milepost")
    args = TrainingArguments(
        str(folder / "out"),
        max_steps=steps,
        save_strategy="no",
        logging_steps=1,
        per_device_train_batch_size=4,
        report_to="none" if ours else tracker,
        use_cpu=True,
        disable_tqdm=True,
    )
    clock = Clock()
    callbacks: list[TrainerCallback] = [clock]
    board = str(folder / "runs") if tracker != "milepost" else None
    tracking = MilepostCallback("bench", resume="never", root=str(folder), tensorboard_dir=board)
    if ours:
        callbacks.append(tracking)
    begun = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):  # Trainer prints what it logs
        Trainer(tiny_model(), args, train_dataset=samples(), callbacks=callbacks).train()
        _end(tracker, tracking)
    whole = time.perf_counter() - begun
    walls = [1e3 * (after[0] - before[0]) for before, after in pairwise(clock.times[WARM:])]
    used = 1e3 * (clock.times[-1][1] - clock.times[WARM][1]) / len(walls)
    return statistics.median(walls), used, whole - (clock.times[-1][0] - clock.times[0][0])


def _end(tracker: str, tracking: MilepostCallback) -> None:
    if tracking.run is not None:
        tracking.run.end()
    if tracker == "wandb":
        import wandb

        wandb.finish()
    elif tracker == "mlflow":
        import mlflow

        mlflow.end_run()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, list[tuple[float, float, float]]] = {tracker: [] for tracker in TRACKERS}
    described = machine()
    with scratch() as folder:
        os.environ |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "WANDB_SILENT": "true"} | {
            "TENSORBOARD_LOGGING_DIR": str(folder / "tensorboard"),
            "WANDB_DIR": str(folder),
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        }
        os.chdir(folder)
        for number in range(-1, given.rounds):  # the first round only warms up: imports, services, caches
            for tracker in TRACKERS:
                took = train(tracker, folder / f"{tracker}-{number}", given.steps)
                if number >= 0:
                    found[tracker].append(took)
                print(f"{number} {tracker}: {took[0]:.2f} ms", file=sys.stderr, flush=True)
    medians = {name: [statistics.median(column) for column in zip(*took, strict=True)] for name, took in found.items()}
    bare = medians["none"]
    rows = [[name, *row[:2], row[0] - bare[0], row[1] - bare[1], row[2]] for name, row in medians.items()]
    print(described, "\n")
    print(table(["report_to", "step ms", "CPU of a step ms", "added ms", "CPU added ms", "begin and end s"], rows))


if __name__ == "__main__":
    main()
