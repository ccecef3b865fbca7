"""Is a checkpoint the state at the call, whatever happens to the state right behind the call?

Each round saves, changes everything at once, waits, loads into a twin, and compares every bit with a copy that was made
before the save. With ``snapshot="copy"`` anybody may change anything. With ``snapshot="overlap"`` an optimizer's step
is lawful and must never cost a snapshot; what goes around the optimizer must be noticed: then there is no checkpoint of
that step, and never a wrong one.

Not asked for: a change of a few elements behind the back of torch and of the optimizer (``.data``, NumPy) before the
next step. No guard sees that, and the documentation says so.
"""

from __future__ import annotations

import copy
import random
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

import milepost
from milepost.core.errors import MilepostError
from milepost.core.events import Noticed

__all__ = ["Equality", "Snapshot", "equal_after"]

Snapshot = Literal["copy", "overlap"]

_WIDTH, _LAYERS = 512, 3
_ROUNDS_OF_ONE_RUN = 25


@dataclass(slots=True)
class Equality:
    """What was found.

    Attributes:
        rounds: Saves that were compared, or were noticed to be torn.
        discarded: Snapshots that were given up, by what had changed the state.
        problems: Wrong checkpoints, and lawful changes that cost one.
    """

    rounds: int = 0
    discarded: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


class _Training:
    def __init__(self, *, fused: bool) -> None:
        layers = [nn.Sequential(nn.Linear(_WIDTH, _WIDTH), nn.BatchNorm1d(_WIDTH)) for _ in range(_LAYERS)]
        self.model = nn.Sequential(*layers)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1, fused=fused, foreach=not fused)

    def step(self) -> None:
        """A step of a real training: batch norm's statistics change in the forward pass, the rest in the update."""
        self.model(torch.randn(4, _WIDTH)).square().mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def tensors(self) -> dict[str, Tensor]:
        found = dict(self.model.state_dict())
        for name, parameter in self.model.named_parameters():
            found |= {f"{name}.{key}": value for key, value in self.optimizer.state[parameter].items()}
        return found


def _in_place(training: _Training) -> None:
    with torch.no_grad():
        for tensor in training.tensors().values():
            tensor.add_(1)


def _by_data(training: _Training) -> None:
    for tensor in training.tensors().values():
        tensor.data.mul_(2).sub_(1)


def _by_numpy(training: _Training) -> None:
    for tensor in training.tensors().values():
        tensor.detach().numpy()[...] += 1


def _by_threads(training: _Training) -> None:
    threads = [threading.Thread(target=change, args=(training,)) for change in (_in_place, _by_numpy, _by_data)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _steps(training: _Training) -> None:
    for _ in range(2):
        training.step()


_LAWFUL: dict[str, Callable[[_Training], None]] = {"two steps": _steps}
_ROGUE: dict[str, Callable[[_Training], None]] = {
    "in place": _in_place,
    "through .data": _by_data,
    "through NumPy": _by_numpy,
    "three threads": _by_threads,
}


def equal_after(rounds: int, snapshot: Snapshot, seed: int, folder: str | None = None) -> Equality:
    """Run ``rounds`` rounds, a new checkpointer every few of them."""
    found = Equality()
    chance = random.Random(seed)
    torch.manual_seed(seed)
    torch.set_num_threads(1)  # a lane has a core
    while found.rounds < rounds and len(found.problems) < 20:
        with tempfile.TemporaryDirectory(prefix="equality-", dir=folder) as place:
            _one_run(Path(place), snapshot, chance, min(_ROUNDS_OF_ONE_RUN, rounds - found.rounds), found)
    return found


def _one_run(folder: Path, snapshot: Snapshot, chance: random.Random, rounds: int, found: Equality) -> None:
    notices: list[Noticed] = []
    config = milepost.ExperimentConfig(
        root=str(folder), snapshot=snapshot, max_checkpoints=1, compression=chance.random() < 0.3
    )
    checkpointer = milepost.ModelCheckpointer(config, notice=notices.append)
    training, twin = _Training(fused=chance.random() < 0.5), _Training(fused=False)
    for _ in range(2):
        training.step()
        twin.step()
    for step, (name, change) in zip(range(rounds), _changes(snapshot, chance), strict=False):
        wanted = copy.deepcopy(training.tensors())
        path = checkpointer.save_checkpoint(training.model, training.optimizer, step=step)
        change(training)
        _settle(checkpointer)
        found.rounds += 1
        problem = _difference(checkpointer, path, twin, wanted)
        if problem == "no file":
            found.discarded[name] = found.discarded.get(name, 0) + 1
            if name in _LAWFUL or snapshot == "copy":
                said = "; ".join(notice.message for notice in notices[-2:])
                found.problems.append(f"{snapshot}: {name} right behind the save cost the checkpoint ({said})")
        elif problem:
            found.problems.append(f"{snapshot}: after {name}, {problem}")
        if snapshot == "overlap" and name in _ROGUE:
            return  # overlap is banned from here on: a new checkpointer is on probation again


def _changes(snapshot: Snapshot, chance: random.Random) -> Iterator[tuple[str, Callable[[_Training], None]]]:
    """What happens behind each save. With overlap a run ends with its first rogue change."""
    everything = list((_LAWFUL | _ROGUE).items())
    rogue = list(_ROGUE.items())
    for number in range(_ROUNDS_OF_ONE_RUN):
        if snapshot == "copy":
            yield chance.choice(everything)
        else:
            yield chance.choice(rogue) if number > 3 and chance.random() < 0.1 else ("two steps", _steps)


def _settle(checkpointer: Any) -> None:
    with suppress(MilepostError):  # a snapshot that was given up has no file: that is what is looked at
        checkpointer.wait()


def _difference(checkpointer: Any, path: Any, twin: _Training, wanted: dict[str, Tensor]) -> str:
    """What of a checkpoint is not ``wanted``; empty if it is bit for bit."""
    if not Path(str(path)).exists():
        return "no file"
    checkpointer.load_checkpoint(str(path), twin.model, twin.optimizer)
    loaded = twin.tensors()
    wrong = [name for name, value in wanted.items() if not _same_bits(value, loaded[name])]
    return f"{len(wrong)} of {len(wanted)} tensors differ, {wrong[0]} is the first" if wrong else ""


def _same_bits(first: Tensor, second: Tensor) -> bool:
    return first.dtype == second.dtype and bool(
        torch.equal(first.reshape(-1).view(torch.uint8), second.reshape(-1).view(torch.uint8))
    )
