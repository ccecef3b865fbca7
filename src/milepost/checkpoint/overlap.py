"""How can the copy of a state hide behind the next forward and backward pass, and never be wrong unnoticed?

What only an optimizer's step changes (:mod:`.ownership`) may be copied until the next step begins: a hook that torch
runs before each step of any optimizer waits for the copy. Everything else is copied before ``save_checkpoint`` returns.

Nobody can promise that no one writes past the optimizer, so it is tried and watched. The first two saves copy at once,
and the hook before the next step compares all of it with the copy. Afterwards each copy is judged before it is handed
over (:mod:`.tearing`). A snapshot that was changed is discarded, never copied again, and there is no overlap any more
in this run.

**Invariants**: the hook waits a bounded time, and for nothing that cannot end. Every optimizer stays as it was: the
hook hangs on none of them, so they can be copied, pickled and compiled. A forked child waits for nothing.

What remains undetected: between the call and the step, a write that torch does not count (``.data``, NumPy, C++) to a
few numbers of a large tensor, in a training that did not do so during the first two saves.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from milepost.checkpoint.arguments import TrainingObjects
from milepost.checkpoint.copying import Copying, Route, live_memory
from milepost.checkpoint.ownership import changed_only_by_steps
from milepost.checkpoint.tearing import Watched, watch
from milepost.core.errors import StorageError

__all__ = ["Overlap", "torn_error"]

_PROBATION = 2
_WORTHWHILE = 4096  # bytes
_CURE = 'save again, or set snapshot="copy"'


def torn_error(what: str) -> StorageError:
    """A snapshot that is no state the training ever had, or may be none."""
    return StorageError(f"{what}, so this snapshot was discarded", cure=_CURE, kind="torn")


class Overlap:
    """What may be copied later, and whether that went well; for one training.

    Args:
        say: Told topic and text once it is no longer done.
        patience: Seconds that a step waits for a copy.

    Attributes:
        banned: Why nothing is copied later any more; empty while it is done.
    """

    def __init__(self, say: Callable[[str, str], None], *, patience: float = 60.0) -> None:
        self.banned = ""
        self.patience = patience
        self._say = say
        self._clean = 0
        self._pending: _Pending | None = None
        self._lock = threading.Lock()
        self._hook: Any = None

    @property
    def on_probation(self) -> bool:
        """Whether everything is still copied at once, and compared before the next step."""
        return self._clean < _PROBATION

    def postponable(
        self, routes: Sequence[Route], tensors: Sequence[Tensor], objects: TrainingObjects
    ) -> Sequence[Route]:
        """Those of ``routes`` that may be copied until the next step."""
        if self.banned:
            return ()
        owned = changed_only_by_steps(objects)
        return [way for way in routes if _can_wait(way, tensors[way.piece.tensor], owned)]

    def watched(self, routes: Sequence[Route], tensors: Sequence[Tensor], names: Sequence[str]) -> Watched:
        """Remember what the memory of ``routes`` is now; ``names`` are those of ``tensors``."""
        sources = [live_memory(way.piece, tensors) for way in routes]
        return watch([names[way.piece.tensor] for way in routes], sources, [way.window for way in routes])

    def arm(self, watched: Watched, copying: Copying | None) -> None:
        """From now on a step waits for ``copying``; without one, everything is compared before the step."""
        self._pending = _Pending(watched, copying)
        if self._hook is None:
            self._hook = register_optimizer_step_pre_hook(_hook_of(weakref.ref(self)))
            weakref.finalize(self, self._hook.remove)

    def judge(self, watched: Watched) -> None:
        """For the copying thread, behind the copy.

        Raises:
            StorageError: Of kind "torn".
        """
        name = watched.torn()
        if name:
            self.ban(f"{name} was changed after a save, outside of an optimizer's step")
            raise torn_error(f"{name} was changed while it was copied")

    def settle(self) -> None:
        """Before the next save or load, from the training's thread: what happened since the last save?"""
        pending, self._pending = self._pending, None
        if pending is not None and pending.is_ours:
            name = pending.watched.moved()
            if name:
                self.ban(f"{name} was changed after a save, and no optimizer's step announced it")
        if self.banned:
            self.close()

    def close(self) -> None:
        """Take the hook away; not from inside of a step."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def ban(self, why: str) -> None:
        """Copy everything at once from now on."""
        if not self.banned:
            self.banned = why
            self._say("overlap", f"from now on save_checkpoint returns when the state is copied: {why}")

    def before_step(self) -> None:
        """What the hook does: wait for the copy, or compare with it; nothing if no save is on its way."""
        pending = self._pending
        if pending is None or not pending.is_ours:
            return
        with self._lock:  # a step in another thread must wait as well
            if self._pending is not pending:
                return
            if pending.copying is None:
                self._compare(pending.watched)
            elif not pending.copying.wait(self.patience):
                pending.copying.give_up(torn_error(f"the copy was not done within {self.patience:g} seconds"))
                self.ban(f"a step waited {self.patience:g} seconds for the copy")
            self._pending = None

    def _compare(self, watched: Watched) -> None:
        name = watched.differs()
        if name:
            self.ban(f"{name} was changed between a save and the next optimizer's step")
        else:
            self._clean += 1


class _Pending:
    """A save whose next step has not begun."""

    def __init__(self, watched: Watched, copying: Copying | None) -> None:
        self.watched = watched
        self.copying = copying
        self._owner = os.getpid()

    @property
    def is_ours(self) -> bool:
        """Not in a forked child, which has neither the copying thread nor the arena."""
        return os.getpid() == self._owner


def _can_wait(way: Route, tensor: Tensor, owned: frozenset[int]) -> bool:
    comparable = not way.window.dtype.is_floating_point and not way.window.dtype.is_complex
    return (
        way.address is not None  # dense, on the CPU, every bit
        and comparable
        and way.piece.nbytes >= _WORTHWHILE
        and not tensor.is_inference()
        and tensor.untyped_storage().data_ptr() in owned
    )


def _hook_of(reference: weakref.ref[Overlap]) -> Callable[..., None]:
    def before_step(*_: Any) -> None:
        overlap = reference()
        if overlap is not None:
            overlap.before_step()

    vars(before_step)["_torchdynamo_disable"] = True  # a compiled step calls it as it is
    return before_step
