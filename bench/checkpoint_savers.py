"""How does each candidate save and restore a training, by its own documented calls?

A :class:`Saver` is one candidate at work in one folder. ``save`` is what the training loop calls; ``guard`` surrounds
whatever changes the state, for candidates whose copy goes on behind the call; ``durable`` returns when power may fail.
Imports happen inside: each candidate runs in a process, and perhaps an environment, of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

__all__ = ["CANDIDATES", "NEEDS_PEERS", "Saver", "bytes_in", "distinct_tensors"]


class Saver(Protocol):
    """One candidate in one folder."""

    def save(self, step: int) -> None:
        """Save; returns when the candidate lets the training go on."""

    def guard(self) -> AbstractContextManager[Any]:
        """Surrounds changes of the state."""

    def durable(self) -> None:
        """Return when the save survives a power cut."""

    def settle(self) -> None:
        """Return when nothing is at work any more."""

    def restore(self) -> None:
        """Put the newest save into the live model and optimizer."""

    def close(self) -> None:
        """End what was started."""


def distinct_tensors(model: Any, optimizer: Any) -> dict[str, Any]:
    """Every tensor of the state once, tied weights too."""
    found, seen = {}, set()
    moments = {
        f"optimizer.{index}.{key}": value
        for index, state in optimizer.state_dict()["state"].items()
        for key, value in state.items()
        if hasattr(value, "untyped_storage")
    }
    for name, tensor in {**model.state_dict(), **moments}.items():
        place = tensor.data_ptr()
        if place not in seen or not tensor.numel():
            seen.add(place)
            found[name] = tensor.detach()
    return found


def bytes_in(folder: Path) -> int:
    """Bytes of all files below ``folder``."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _sync(path: Path) -> None:
    for place in (path, path.parent, *(path.rglob("*") if path.is_dir() else ())):
        fd = os.open(place, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)


class _Waiting:
    """What candidates without a background have in common; files are synced by us where they do not."""

    def __init__(self, model: Any, optimizer: Any, folder: Path) -> None:
        self.model, self.optimizer, self.folder = model, optimizer, folder
        self.path = folder

    def guard(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def durable(self) -> None:
        _sync(self.path)

    def settle(self) -> None:
        self.durable()

    def close(self) -> None:
        pass


class _Copy(_Waiting):
    """The floor: a copy of the tensors into memory that is there already, durable nowhere."""

    def __init__(self, model: Any, optimizer: Any, folder: Path) -> None:
        super().__init__(model, optimizer, folder)
        self._targets: list[Any] = []

    def save(self, step: int) -> None:
        import torch

        del step
        sources = list(distinct_tensors(self.model, self.optimizer).values())
        self._targets = self._targets or [torch.empty_like(source) for source in sources]
        for target, source in zip(self._targets, sources, strict=True):
            target.copy_(source)

    def durable(self) -> None:
        pass

    def restore(self) -> None:
        tensors = distinct_tensors(self.model, self.optimizer).values()
        for target, source in zip(tensors, self._targets, strict=True):
            target.copy_(source)


class _TorchSave(_Waiting):
    def save(self, step: int) -> None:
        import torch

        self.path = self.folder / f"{step}.pt"
        torch.save({"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}, self.path)
        _sync(self.path)

    def restore(self) -> None:
        import torch

        content = torch.load(self.path, weights_only=True)
        self.model.load_state_dict(content["model"])
        self.optimizer.load_state_dict(content["optimizer"])


class _Safetensors(_Waiting):
    def save(self, step: int) -> None:
        from safetensors.torch import save_file

        self.path = self.folder / f"{step}.safetensors"
        save_file({n: t.contiguous() for n, t in distinct_tensors(self.model, self.optimizer).items()}, self.path)
        _sync(self.path)

    def restore(self) -> None:
        from safetensors import safe_open

        with safe_open(self.path, "pt") as file:
            for name, tensor in distinct_tensors(self.model, self.optimizer).items():
                tensor.copy_(file.get_tensor(name))


class _DistributedCheckpoint(_Waiting):
    """torch.distributed.checkpoint, ``async_save`` in a thread."""

    def __init__(self, model: Any, optimizer: Any, folder: Path) -> None:
        import torch.distributed

        super().__init__(model, optimizer, folder)
        self._future: Any = None
        store = torch.distributed.HashStore()
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)

    def save(self, step: int) -> None:
        import torch.distributed.checkpoint as dcp

        if self._future is not None:
            self._future.result()
        self.path = self.folder / str(step)
        writer = dcp.FileSystemWriter(self.path, single_file_per_rank=True, sync_files=True)
        self._future = dcp.async_save(distinct_tensors(self.model, self.optimizer), storage_writer=writer)

    def durable(self) -> None:
        self._future.result()
        _sync(self.path)

    def restore(self) -> None:
        import torch.distributed.checkpoint as dcp

        dcp.load(distinct_tensors(self.model, self.optimizer), checkpoint_id=self.path)

    def close(self) -> None:
        import torch.distributed

        torch.distributed.destroy_process_group()


class _TorchCheckpointing(_Waiting):
    """Its copy goes on behind ``save``; its ``lock()`` around the optimizer's step waits for it."""

    def __init__(self, model: Any, optimizer: Any, folder: Path) -> None:
        from torch_checkpointing import CheckpointManager
        from torch_checkpointing.storage.filesystem import LocalFileSystemStorageConfig

        super().__init__(model, optimizer, folder)
        config = CheckpointManager.Config.with_async_save()
        config.storage_config = LocalFileSystemStorageConfig(use_direct_io=False)  # by default ext4 answers EINVAL
        self._manager = CheckpointManager(config)
        self._future: Any = None

    def _state(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def save(self, step: int) -> None:
        self.path = self.folder / str(step)
        self._future = self._manager.save(str(self.path), self._state())

    def guard(self) -> AbstractContextManager[Any]:
        return self._manager.lock()

    def durable(self) -> None:
        self._future.result()
        _sync(self.path)

    def restore(self) -> None:
        into = self._state()
        content = self._manager.load(str(self.path), into=into)
        self.model.load_state_dict(content["model"])
        self.optimizer.load_state_dict(content["optimizer"])

    def close(self) -> None:
        self._manager.close()


class _Moonclip(_Waiting):
    def __init__(self, model: Any, optimizer: Any, folder: Path) -> None:
        from moonclip.pytorch import CheckpointManager

        super().__init__(model, optimizer, folder)
        self._manager = CheckpointManager(str(folder))

    def save(self, step: int) -> None:
        self._manager.save(step=step, model=self.model, optimizer=self.optimizer)

    def durable(self) -> None:
        self._manager.flush()

    def restore(self) -> None:
        self._manager.load_latest(model=self.model, optimizer=self.optimizer)


class _Milepost(_Waiting):
    """A run with a companion, and the default retention."""

    def __init__(self, model: Any, optimizer: Any, folder: Path, **settings: Any) -> None:
        import milepost

        super().__init__(model, optimizer, folder / "checkpoints")
        self._run = milepost.start(
            "bench", root=str(folder), tensorboard_dir=None, capture_code=False, capture_console=False, **settings
        )
        self._saved: Any = None

    def save(self, step: int) -> None:
        self._saved = self._run.save_checkpoint(self.model, self.optimizer, step=step)

    def durable(self) -> None:
        os.fspath(self._saved)

    def settle(self) -> None:
        self._run.wait()

    def restore(self) -> None:
        self._run.load_checkpoint(os.fspath(self._saved), self.model, self.optimizer)

    def close(self) -> None:
        self._run.end()


def _milepost(**settings: Any) -> Callable[[Any, Any, Path], Saver]:
    return lambda model, optimizer, folder: _Milepost(model, optimizer, folder, **settings)


CANDIDATES: dict[str, Callable[[Any, Any, Path], Saver]] = {
    "floor: a copy in memory": _Copy,
    "torch.save + fsync": _TorchSave,
    "safetensors + fsync": _Safetensors,
    "DCP async_save": _DistributedCheckpoint,
    "torch-checkpointing": _TorchCheckpointing,
    "moonclip": _Moonclip,
    "milepost, raw": _milepost(compression=False),
    "milepost": _milepost(),
    "milepost, delta": _milepost(compression="delta", max_checkpoints=20),  # as many as make a keyframe worth while
    "milepost, trainable": _milepost(include="trainable"),
    "milepost, overlap": _milepost(snapshot="overlap"),
    "milepost, spool": _milepost(staging="spool"),
}
NEEDS_PEERS = frozenset(name for name in CANDIDATES if not name.startswith("milepost"))
