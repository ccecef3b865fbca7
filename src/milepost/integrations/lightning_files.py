"""How do Lightning's checkpoints reach the disk whole, and which one does a fit go on with?

``MilepostCheckpointIO`` stands in the place of ``TorchCheckpointIO`` and writes the same bytes: ``torch.load`` and
``load_from_checkpoint`` read its files, and Lightning reads them without milepost. The training thread copies the state
into memory (:mod:`.file_courier`); when ``fit`` returns, all is on disk.

**Invariants**: a ``.ckpt`` that has its name is whole, synced, and was read back once. A file is removed only behind
the verified save that replaces it. All ranks choose the same file: nothing is chosen while one is being written.

**On crash**: the files of before, and the one that was handed over: it is finished without the training.
"""

from __future__ import annotations

import sys
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from milepost.core.errors import CorruptDataError, MilepostError, StorageError
from milepost.core.saying import say
from milepost.environment.ranks import detect, meet
from milepost.integrations.file_courier import Courier, PendingFile
from milepost.integrations.lightning_package import base_class, rank
from milepost.integrations.sound_file import damage_of, description_of
from milepost.io.locks import wait_until_unused

__all__ = ["FileListener", "MilepostCheckpointIO", "last_step_of", "listen_to_files", "poll_files", "settle_files"]

_PATIENCE = 60.0
_LONGEST_SAVE = 600.0
_EXTENSION = ".ckpt"
#: How Lightning calls what it saves before it asks SLURM to end this job and start it again.
_REQUEUE = "hpc_ckpt_"


class FileListener(Protocol):
    """Who hears what becomes of Lightning's files, in the training's own thread."""

    @property
    def run_id(self) -> str:
        """Id of the run that the files belong to."""

    def file_on_its_way(self, pending: PendingFile) -> None:
        """A file is being written, or removed."""

    def file_loaded(self, path: Path, content: dict[str, Any]) -> None:
        """Lightning goes on with this file, or evaluates it."""


_listeners: weakref.WeakSet[Any] = weakref.WeakSet()
_plugins: weakref.WeakSet[MilepostCheckpointIO] = weakref.WeakSet()

_Base: Any = base_class("{fabric}.plugins.io.torch_io", "TorchCheckpointIO")


def listen_to_files(listener: FileListener) -> None:
    """Tell ``listener`` from now on, as long as somebody else keeps it."""
    _listeners.add(listener)


def poll_files() -> None:
    """Hear of the files that were written since; costs nothing while none is on its way."""
    for plugin in tuple(_plugins):
        plugin.courier.poll()


def settle_files(timeout: float) -> None:
    """Wait until nothing is on its way, at most ``timeout`` seconds for each plugin."""
    for plugin in tuple(_plugins):
        with suppress(MilepostError):
            plugin.courier.wait(timeout)


class MilepostCheckpointIO(_Base):  # type: ignore[misc]  # which package it comes from is known when it is imported
    """Whole, verified checkpoints that the training does not wait for: ``Trainer(plugins=[MilepostCheckpointIO()])``.

    A save returns when the state is copied. The file is there a little later: at the latest when the next save of that
    path, a load, or ``fit`` itself returns. Outside of ``fit``, before a requeue, and for ``save_last="link"``, a save
    returns when the file is there. Addresses (``s3://...``) are written by Lightning's own code, while the training
    waits.

    Args:
        fallback: Whether a load of a damaged file takes the newest sound one beside it, and says so.
    """

    def __init__(self, *, fallback: bool = True) -> None:
        super().__init__()
        self.courier = Courier()
        self._fallback = fallback
        self._is_fitting = True
        _plugins.add(self)

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Copy the state; the courier writes it.

        Raises:
            TypeError: ``storage_options`` were given for a local file, as with Lightning's own plugin.
        """
        if storage_options is not None or not _is_local(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        import torch

        self.courier.poll()
        target = _absolute(path)
        about = {"step": last_step_of(checkpoint), "epoch": checkpoint.get("epoch")}
        about |= {"contents": [str(key) for key in checkpoint]} | _judged(checkpoint, path)
        about |= {"run": next((listener.run_id for listener in tuple(_listeners)), "")}
        try:
            pending = self.courier.save(target, lambda file: torch.save(checkpoint, file), about)
        except StorageError as error:  # the world's fault: training goes on with the checkpoints it has
            say(f"the checkpoint {target.name} was not saved: {error.what}", cure=error.cure)
            return
        self._follow(pending)
        if not self._is_fitting:
            self.courier.close()  # nobody tells us when the last such save was made
        elif target.name.startswith(_REQUEUE) or _has_link(target.parent):
            self.courier.wait()

    def load_checkpoint(self, path: Any, *arguments: Any, **options: Any) -> dict[str, Any]:
        """Verify the file and load it, by the rules of Lightning's own plugin for ``weights_only`` and devices.

        Raises:
            FileNotFoundError: There is no such file.
            CorruptDataError: It is damaged, and no sound one lies beside it (or ``fallback=False``).
        """
        self._is_fitting = True
        if not _is_local(path):
            content: dict[str, Any] = super().load_checkpoint(path, *arguments, **options)
            return content
        self.courier.wait()
        target = _absolute(path)
        wait_until_unused(target.parent, _PATIENCE)  # what a killed training handed over is still being written
        if target.is_dir() or not target.exists():
            return dict(super().load_checkpoint(path, *arguments, **options))
        damage = damage_of(target.resolve())
        if not damage:
            return self._loaded(target, arguments, options)
        if self._fallback:
            for other in _others(target):
                content = self._loaded(other, arguments, options, tell=False)
                if "optimizer_states" in content or _lacks_optimizer(target):
                    if rank() == 0:
                        say(f"the checkpoint {target} is left out: {damage}; {other.name} is taken instead")
                    self._tell(other, content)
                    return content
        raise CorruptDataError(
            f"{target} is damaged: {damage}, and no sound checkpoint lies beside it", cure="use a copy of it"
        )

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a file once the saves before it are verified; it stays if the last of them failed."""
        if not _is_local(path) or _absolute(path).is_dir():
            super().remove_checkpoint(path)
            return
        self._follow(self.courier.remove(_absolute(path)))
        if not self._is_fitting:
            self.courier.close()

    def teardown(self) -> None:
        """Wait until all is written; on other ranks, until rank 0 has."""
        try:
            self.courier.close()
        finally:
            self._is_fitting = False
            # A rank that failed does not wait for one that may be waiting for it.
            if rank() == 0 or sys.exc_info()[0] is None:
                with suppress(MilepostError, OSError, RuntimeError):
                    meet(detect(), "lightning-files", value=True, timeout=_LONGEST_SAVE)

    def _loaded(self, path: Path, arguments: Any, options: Any, *, tell: bool = True) -> dict[str, Any]:
        content: dict[str, Any] = super().load_checkpoint(str(path), *arguments, **options)
        if tell:
            self._tell(path, content)
        return content

    def _tell(self, path: Path, content: dict[str, Any]) -> None:
        for listener in tuple(_listeners):
            listener.file_loaded(path.resolve(), content)

    def _follow(self, pending: PendingFile) -> None:
        pending.then(_say_failure)
        for listener in tuple(_listeners):
            listener.file_on_its_way(pending)


def last_step_of(checkpoint: dict[str, Any]) -> int:
    """The last step that is done in a checkpoint of Lightning, as its loggers count; -1 if none is.

    ``global_step`` counts the steps of all optimizers, the loggers' step counts batches; the latter is ahead by one or
    not, depending on the hook that saved.
    """
    done = int(checkpoint.get("global_step", 0)) - 1
    epoch_loop = checkpoint.get("loops", {}).get("fit_loop", {}).get("epoch_loop.state_dict", {})
    return min(done, int(epoch_loop.get("_batches_that_stepped", done)))


def _judged(checkpoint: dict[str, Any], path: Any) -> dict[str, Any]:
    """What a ``ModelCheckpoint`` inside of a checkpoint says of this file: its score, and whether it is the best."""
    for state in checkpoint.get("callbacks", {}).values():
        if not isinstance(state, dict) or not state.get("monitor"):
            continue
        is_best = state.get("best_model_path") == str(path)
        score = state.get("best_k_models", {}).get(str(path))
        if score is None and state.get("last_model_path") == str(path):
            score = state.get("current_score")
        if score is not None:
            return {"metrics": {state["monitor"]: float(score)}, "is_best": is_best}
    return {}


def _say_failure(pending: PendingFile) -> None:
    if pending.error is not None:
        what = "removed" if pending.is_removal else "saved"
        say(f"the checkpoint {pending.path.name} was not {what}: {pending.error.what}", cure=pending.error.cure)


def _is_local(path: Any) -> bool:
    return "://" not in str(path)


def _absolute(path: Any) -> Path:
    return Path(path).expanduser().absolute()


def _has_link(folder: Path) -> bool:
    """Whether ``save_last="link"`` points to files here: it must not point to one that is not there yet."""
    return any(one.is_symlink() for one in folder.glob(f"last*{_EXTENSION}"))


def _others(damaged: Path) -> list[Path]:
    """The sound files beside a damaged one, the newest first."""
    beside = [one for one in damaged.parent.glob(f"*{_EXTENSION}") if one.is_file() and not one.is_symlink()]
    newest_first = sorted(beside, key=lambda one: one.stat().st_mtime_ns, reverse=True)
    return [one for one in newest_first if one != damaged.resolve() and not damage_of(one)]


def _lacks_optimizer(path: Path) -> bool:
    """Whether a file was written with ``save_weights_only=True``, so that another such one can stand in for it."""
    contents = description_of(path).get("contents")
    return contents is not None and "optimizer_states" not in contents
