"""What does the process do whose saves are measured?

It holds a model and its optimizer, does what each line of its input asks, and answers with one line of JSON. Either the
state is set to the checkpoints of a recorded series one after another, or a small transformer is trained for real.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from checkpoint_savers import CANDIDATES, Saver, bytes_in, distinct_tensors

_WORDS, _WIDTH, _LAYERS = 30522, 384, 6
_BATCH, _LENGTH = 8, 64


class Subject:
    """The live state and the candidate that saves it."""

    def __init__(self, candidate: str) -> None:
        self._candidate = candidate
        self._saver: Saver | None = None
        self._folder = Path()
        self._series = Path()
        self._loss: Callable[[], Tensor] | None = None
        self.model: nn.Module = nn.Module()
        self.optimizer: Any = None

    def open(self, folder: str, series: str = "") -> dict[str, Any]:
        """Begin with an empty folder; with a series its first checkpoint is the live state."""
        self._folder = Path(folder)
        self._folder.mkdir(parents=True)
        if series:
            self._series = Path(series)
            self.model, self.optimizer = live_state(_load(self._series, min(steps_of(self._series))))
        elif self._loss is None:
            self._loss = self._train()
            for _ in range(3):
                self._step(self._loss)
        gc.collect()
        size = sum(tensor.nbytes for tensor in distinct_tensors(self.model, self.optimizer).values())
        self._saver = CANDIDATES[self._candidate](self.model, self.optimizer, self._folder)
        return {"bytes": size}

    @property
    def saver(self) -> Saver:
        """The candidate at work."""
        assert self._saver is not None
        return self._saver

    def close(self) -> dict[str, Any]:
        """End the candidate; the live state stays."""
        self.saver.close()
        self._saver = None
        return {}

    # ---------------------------------------------------------------- a recorded series

    def save(self, step: int) -> dict[str, Any]:
        """Make the live state that of ``step`` and save it: seconds held, seconds until durable, bytes added."""
        with self.saver.guard():
            set_live(self.model, self.optimizer, _load(self._series, step))
        before = bytes_in(self._folder)
        os.sync()
        begun = time.perf_counter()
        self.saver.save(step)
        with self.saver.guard():
            held = time.perf_counter() - begun
        self.saver.durable()
        durable = time.perf_counter() - begun
        self.saver.settle()
        return {"held": held, "durable": durable, "bytes": bytes_in(self._folder) - before}

    def restore(self, step: int, *, cold: bool) -> dict[str, Any]:
        """Zero the live state and restore the newest save: seconds, and how many tensors are not what was saved."""
        tensors = distinct_tensors(self.model, self.optimizer)
        with torch.no_grad():
            for tensor in tensors.values():
                tensor.zero_()
        if cold:
            _forget(self._folder)
        begun = time.perf_counter()
        self.saver.restore()
        seconds = time.perf_counter() - begun
        restored = distinct_tensors(self.model, self.optimizer)
        wanted = distinct_tensors(*live_state(_load(self._series, step)))
        wrong = [n for n, t in wanted.items() if t.numel() > 1 and not torch.equal(t, restored[n])]
        return {"seconds": seconds, "wrong": len(wrong)}

    # ---------------------------------------------------------------- a real training

    def _train(self) -> Callable[[], Tensor]:
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(_WIDTH, 6, 4 * _WIDTH, dropout=0.0, batch_first=True, norm_first=True)
        body = nn.TransformerEncoder(layer, _LAYERS, enable_nested_tensor=False)
        self.model = nn.Sequential(nn.Embedding(_WORDS, _WIDTH), body, nn.Linear(_WIDTH, 64))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=2e-5)

        def loss() -> Tensor:
            words = torch.randint(0, _WORDS, (_BATCH, _LENGTH))
            return nn.functional.cross_entropy(self.model(words).flatten(0, 1), (words % 64).flatten())

        return loss

    def _step(self, loss: Callable[[], Tensor]) -> float:
        """One step; the seconds its update took, the wait for a copy included."""
        loss().backward()
        begun = time.perf_counter()
        if self._saver is None:
            self.optimizer.step()
        else:
            with self._saver.guard():
                self.optimizer.step()
        updated = time.perf_counter() - begun
        self.optimizer.zero_grad()
        return updated

    def block(self, steps: int, number: int, *, save: bool) -> dict[str, Any]:
        """``steps`` steps, with a save before the first; wall seconds until all work of the save is done, too."""
        assert self._loss is not None
        begun = time.perf_counter()
        held = 0.0
        if save:
            self.saver.save(number)
            held = time.perf_counter() - begun
        updates = [self._step(self._loss) for _ in range(steps)]
        if save:
            self.saver.settle()
        return {"seconds": time.perf_counter() - begun, "held": held, "updates": updates}

    # ---------------------------------------------------------------- a large state

    def open_large(self, folder: str, gigabytes: int) -> dict[str, Any]:
        """Weights of so many times 2**30 bytes, in pieces of 256 MiB, and nothing else."""
        self._folder = Path(folder)
        self._folder.mkdir(parents=True)
        torch.manual_seed(0)
        piece = torch.randn(64 << 20) * 0.02
        pieces = [nn.Parameter(piece.roll(number)) for number in range(4 * gigabytes)]
        self.model = nn.ParameterList(pieces)
        self._saver = CANDIDATES[self._candidate](self.model, None, self._folder)
        return {"bytes": sum(parameter.nbytes for parameter in pieces)}

    def save_large(self) -> dict[str, Any]:
        """Save once: seconds held, seconds until durable, bytes."""
        begun = time.perf_counter()
        self.saver.save(0)
        held = time.perf_counter() - begun
        self.saver.durable()
        durable = time.perf_counter() - begun
        self.saver.settle()
        return {"held": held, "durable": durable, "bytes": bytes_in(self._folder)}

    def restore_large(self) -> dict[str, Any]:
        """Zero all and restore: seconds, and how many pieces are not what was saved."""
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.zero_()
        begun = time.perf_counter()
        self.saver.restore()
        seconds = time.perf_counter() - begun
        torch.manual_seed(0)
        piece = torch.randn(64 << 20) * 0.02
        wrong = sum(not torch.equal(p, piece.roll(n)) for n, p in enumerate(self.model.parameters()))
        return {"seconds": seconds, "wrong": wrong}


def steps_of(series: Path) -> list[int]:
    """Steps of the checkpoints of a series, in order."""
    return sorted(int(file.stem) for file in series.glob("*.pt"))


def _load(series: Path, step: int) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(series / f"{step}.pt", weights_only=True, mmap=True)
    return content


def live_state(content: dict[str, Any]) -> tuple[nn.Module, Any]:
    """A module and an optimizer with the names, ties, dtypes and values of a saved state."""
    model = nn.Module()
    trained = set(content.get("trained", ()))
    made: dict[int, nn.Parameter] = {}
    for name, value in content["model"].items():
        *path, leaf = name.split(".")
        owner = model
        for part in path:
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = owner.get_submodule(part)
        if leaf.startswith("running_") or not value.is_floating_point():
            owner.register_buffer(leaf, value.clone())
            continue
        needs_gradient = name in trained or not trained
        place = value.data_ptr()
        if place not in made:
            made[place] = nn.Parameter(value.clone(), requires_grad=needs_gradient)
        owner.register_parameter(leaf, made[place])
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    saved = content["optimizer"]
    kind = torch.optim.SGD if "momentum" in saved["param_groups"][0] else torch.optim.AdamW
    optimizer = kind(parameters, lr=0.1)
    optimizer.load_state_dict(saved)
    for index, parameter in enumerate(parameters):  # load_state_dict refers to the memory of the file
        state = optimizer.state[parameter]
        saved_state = saved["state"].get(index, {})
        state.update({key: v.clone() for key, v in saved_state.items() if isinstance(v, Tensor)})
    return model, optimizer


def set_live(model: nn.Module, optimizer: Any, content: dict[str, Any]) -> None:
    """Give the live tensors the values of a saved state, where they lie."""
    live = {**model.state_dict()}
    with torch.no_grad():
        for name, value in content["model"].items():
            live[name].copy_(value)
        parameters = optimizer.param_groups[0]["params"]
        for index, saved in content["optimizer"]["state"].items():
            state = optimizer.state[parameters[index]]
            for key, value in saved.items():
                if isinstance(value, Tensor):
                    state[key].copy_(value)


def _forget(folder: Path) -> None:
    """Let the kernel drop what it holds of the files, as after a restart of the machine."""
    for file in folder.rglob("*"):
        if file.is_file():
            fd = os.open(file, os.O_RDONLY)
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


def main() -> None:
    """Answer lines until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a candidate prints is no answer
    subject = Subject(sys.argv[1])
    for line in sys.stdin:
        name, arguments = json.loads(line)
        try:
            answer = getattr(subject, name)(**arguments)
        except Exception as error:  # a candidate that fails is a row of the table, not the end of it
            answer = {"error": f"{type(error).__name__}: {error}"[:300]}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
