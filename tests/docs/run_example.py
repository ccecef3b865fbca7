"""What does a reader bring to the examples? A model, data and words of his own; and now and then an accident.

``python -m tests.docs.run_example BLOCK`` runs ``example_blocks/BLOCK.py`` in the working folder, as printed. What the
machine lacks for it is replaced around it, never in it: CUDA by the CPU, ``/scratch`` by the working folder.

``EXAMPLE_KILL``: a step; the training is killed with SIGKILL inside it, when the optimizer has moved and nothing was
logged. ``EXAMPLE_READY``: a file that appears in step 30, for a test that sends a signal from outside.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torchdata.stateful_dataloader as torchdata_loaders
from torch import nn

BLOCKS = Path(__file__).with_name("example_blocks")
SAMPLES, FEATURES = 480, 16


class Classifier(nn.Module):
    """Takes a batch as keywords and answers with ``.loss``, as the models of Hugging Face do."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(FEATURES, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 2))

    def forward(self, inputs: torch.Tensor, labels: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(loss=nn.functional.cross_entropy(self.layers(inputs), labels))


class Samples(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        self.inputs = torch.randn(SAMPLES, FEATURES, generator=generator)
        self.labels = (self.inputs.sum(1) > 0).long()

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"inputs": self.inputs[index], "labels": self.labels[index]}


def build() -> tuple[nn.Module, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    model = Classifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    steps = itertools.count()
    optimizer.register_step_post_hook(lambda *_: _happen_in_step(next(steps)))
    return model, optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 200)


def _happen_in_step(step: int) -> None:
    if os.environ.get("EXAMPLE_KILL") == str(step):
        os.kill(os.getpid(), signal.SIGKILL)
    if step == 30 and "EXAMPLE_READY" in os.environ:
        Path(os.environ["EXAMPLE_READY"]).touch()


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, scheduler: Any, batch: Any) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        loss: torch.Tensor = model(**batch).loss
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    scheduler.step()
    return loss.detach()


def train_epoch(hp: dict[str, Any]) -> float:
    """One of a sweep: the loss is the better, the nearer the learning rate is to 1e-4."""
    hp["epochs_done"] = hp.get("epochs_done", 0) + 1
    return abs(math.log10(hp["learning_rate"]) + 4) + 1 / hp["epochs_done"]


@torch.no_grad()
def evaluate(model: nn.Module) -> dict[str, float]:
    samples = Samples()
    model.eval()
    loss = model(inputs=samples.inputs, labels=samples.labels).loss.item()
    model.train()
    return {"val/loss": loss}


def _put_the_cpu_in_place_of_cuda() -> None:
    """The example is printed for GPUs; here its every call goes to what a CPU has for it."""
    nn.Module.cuda = lambda self, device=None: self  # type: ignore[assignment, method-assign]
    autocast, scaler = torch.autocast, torch.amp.GradScaler
    torch.autocast = lambda device, dtype: autocast("cpu", dtype)  # type: ignore[misc, assignment]
    torch.amp.GradScaler = functools.partial(scaler, "cpu")  # type: ignore[misc, assignment]
    # Keeps the wrapper, and so the prefix `_orig_mod.`, without needing a C++ compiler.
    torch.compile = functools.partial(torch.compile, backend="eager")  # type: ignore[assignment]


def _keep_inside_the_working_folder() -> None:
    import experiment_tracking_checkpointing_system as mission

    config = mission.ExperimentConfig

    def here(*, checkpoint_dir: str, save_frequency: int, **settings: Any) -> Any:
        folder = Path.cwd() / Path(checkpoint_dir).relative_to("/")
        return config(checkpoint_dir=str(folder), save_frequency=save_frequency // 25, **settings)

    mission.ExperimentConfig = here  # type: ignore[misc, assignment]


def run_example(block: str) -> None:
    torch.manual_seed(int(os.environ.get("RANK", "0")))
    torch.use_deterministic_algorithms(mode=True)
    _load_with_two_workers()
    epochs = 4
    if block == "distributed":
        _put_the_cpu_in_place_of_cuda()
        _keep_inside_the_working_folder()
        epochs = 30  # after a signal the ranks agree on a step that lies about a second ahead
    settings = {"epochs": epochs, "learning_rate": 1e-2}
    names: dict[str, Any] = {"__name__": "__main__", "build": build, "evaluate": evaluate, "train_step": train_step}
    names["train_epoch"] = train_epoch
    names |= {"train_set": Samples(), "hp": settings, "HP": settings}
    names |= {"MODEL": {"model_type": "classifier"}, "DATA": {"name": "random", "size": SAMPLES}}
    path = BLOCKS / f"{block}.py"
    exec(compile(path.read_text(encoding="utf-8"), path, "exec", dont_inherit=True), names)


def _load_with_two_workers() -> None:
    """The first example asks for none, which would be the easier case; the second for more than a test should start."""
    loader: Any = torchdata_loaders.StatefulDataLoader

    def with_two_workers(dataset: Any, **arguments: Any) -> Any:
        return loader(dataset, **arguments | {"num_workers": 2})

    torchdata_loaders.StatefulDataLoader = with_two_workers  # type: ignore[misc, assignment]


if __name__ == "__main__":
    run_example(sys.argv[1])
