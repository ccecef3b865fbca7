"""How far has the loop over a plain ``torch.utils.data.DataLoader`` come, and how is it brought there again?

Such a loader has no position. But its order follows from the random numbers at the start of the epoch, so these and the
number of batches handed out say where it stands: make the iterator with those numbers, throw that many batches away,
set the numbers of the save, and the loop goes on as if it had not been interrupted, inside worker processes as well.

To notice where an epoch starts, the loader gets another class: a subclass of its own, of the same name, that differs in
``__iter__`` only. Copies and pickles of the loader have the class it had before.

**Invariant**: a loop over a tracked loader sees the same batches and random numbers as over one that is not. No batch
is kept, and an iterator that the loop has dropped is not kept alive.
"""

from __future__ import annotations

import random
import weakref
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from milepost.checkpoint.rng import capture_generator, capture_rng, restore_generator, restore_rng

__all__ = [
    "Epoch",
    "Progress",
    "capture_generators",
    "generators_of",
    "has_position",
    "keeps_workers",
    "progress_of",
    "set_generators",
    "several",
    "track",
]

_PROGRESS = "_milepost_progress"
_OWNERS = ("", "sampler", "batch_sampler", "batch_sampler.sampler", "dataset", "dataset.dataset")
_GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)


def has_position(loader: Any) -> bool:
    """Whether ``loader`` can tell by itself where it stands and go on from there."""
    return callable(getattr(loader, "state_dict", None)) and callable(getattr(loader, "load_state_dict", None))


def several(loader: Any) -> list[Any] | None:
    """The loaders of a loop that walks through more than one; None for a single loader."""
    if type(loader) not in {list, tuple} or not loader:
        return None
    return list(loader) if all(isinstance(part, DataLoader) or has_position(part) for part in loader) else None


def track(loader: Any, *, begun: bool = False) -> None:
    """Make a plain ``DataLoader`` remember how each of its epochs started and count the batches it hands out.

    Does nothing to a loader that is tracked already, that has a position of its own, or that is no ``DataLoader``.

    Args:
        loader: The loader of the training loop, or a list of them.
        begun: Whether a loop over it may have begun before; its position is then unknown until the next epoch.
    """
    for part in several(loader) or ():
        track(part, begun=begun)
    if not isinstance(loader, DataLoader) or has_position(loader) or progress_of(loader) is not None:
        return
    base: Any = type(loader)
    try:
        loader.__class__ = _tracked_class(base)
    except TypeError:  # the class wants no subclass
        return
    setattr(loader, _PROGRESS, Progress(base.__iter__, known=not begun))


def progress_of(loader: Any) -> Progress | None:
    """What a tracked loader knows of its epochs; None if it is not tracked."""
    return getattr(loader, _PROGRESS, None)


@cache
def _tracked_class(base: Any) -> type:
    """A subclass that differs in ``__iter__`` only; of one base, or an object could not change to it."""

    def iterate(loader: Any) -> Iterator[Any]:
        progress: Progress = getattr(loader, _PROGRESS)
        return progress.begin(loader)

    def reduce(loader: Any, protocol: Any) -> Any:
        """A copy begins its own epochs, and another process need not know this class."""
        made, arguments, *others = base.__reduce_ex__(loader, protocol)
        if made.__name__ == "__newobj__":  # which pickle allows for the object's own class only
            made = object.__new__
        if others and isinstance(others[0], dict):
            others[0] = {name: value for name, value in others[0].items() if name != _PROGRESS}
        return made, tuple(base if part is type(loader) else part for part in arguments), *others

    names = {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__}
    return type(base.__name__, (base,), {**names, "__iter__": iterate, "__reduce_ex__": reduce})


class Epoch:
    """One pass over a loader.

    Attributes:
        start: States of all generators before its iterator was made.
        first: States of all generators before its first batch, where many samplers draw; None: it had none yet.
        batches: How many were handed out.
        ended: Whether the loop has seen that there are no more.
        again: Whether worker processes of an earlier epoch went on.
        around: The epoch in whose loop this one began and ended, if it did.
        walk: Its iterator, as long as a loop holds it.
    """

    __slots__ = ("again", "around", "batches", "ended", "first", "start", "walk")

    def __init__(self, start: dict[str, Any], *, again: bool, around: Epoch | None) -> None:
        self.start, self.again, self.around = start, again, around
        self.first: dict[str, Any] | None = None
        self.batches = 0
        self.ended = False
        self.walk: Callable[[], _Walk | None] = lambda: None


class _Walk:
    """The iterator that a loop gets: the loader's own, counted."""

    def __init__(self, loader: Any, batches: Iterator[Any], epoch: Epoch) -> None:
        self._loader, self._batches, self._epoch = loader, batches, epoch

    def __iter__(self) -> _Walk:
        return self

    def __next__(self) -> Any:
        epoch = self._epoch
        if epoch.first is None:
            epoch.first = _all_states(self._loader)
        try:
            batch = next(self._batches)
        except StopIteration:
            epoch.ended = True
            raise
        epoch.batches += 1
        return batch

    def __len__(self) -> int:
        return len(self._batches)  # type: ignore[arg-type]  # the iterators of torch have a length

    def __getattr__(self, name: str) -> Any:
        if name == "_batches":  # asked while a copy is being made
            raise AttributeError(name)
        return getattr(self._batches, name)


class Progress:
    """What a tracked loader knows of its epochs.

    Attributes:
        known: Whether every epoch that may still be running was seen from its start.
        workers_start: For workers that stay over epochs: states of all generators before they were started.
    """

    def __init__(self, iterate: Callable[[Any], Iterator[Any]], *, known: bool) -> None:
        self._iterate = iterate  # of the class that the loader had before
        self.known = known
        self.workers_start: dict[str, Any] | None = None
        self._newest: Epoch | None = None
        self._ready: _Walk | None = None

    def begin(self, loader: Any) -> Iterator[Any]:
        """The iterator for a loop that starts: the one that a resume has prepared, or a new one."""
        if self._ready is None:
            return self._begin(loader)
        walk, self._ready = self._ready, None
        return walk

    def _begin(self, loader: Any) -> _Walk:
        start = _all_states(loader)
        again = keeps_workers(loader)
        if loader.persistent_workers and not again:
            self.workers_start = start
        around = self.epoch
        while around is not None and around.walk() is None:  # that loop was left
            around = around.around
        epoch = Epoch(start, again=again, around=around)
        walk = _Walk(loader, self._iterate(loader), epoch)
        epoch.walk = weakref.ref(walk)
        self._newest, self.known = epoch, True
        return walk

    @property
    def epoch(self) -> Epoch | None:
        """The epoch that is not over; that a loop was left inside it does not end it."""
        epoch = self._newest
        while epoch is not None and epoch.ended:
            epoch = epoch.around
        return epoch

    def start_workers(self, loader: Any, start: dict[str, Any] | None) -> None:
        """Make the iterator that stays over epochs, with the random numbers of ``start`` if they are known."""
        self._newest = self._ready = loader._iterator = None  # noqa: SLF001 - the workers of before are done
        if start is not None:
            _set_all(loader, start)
        self._iterate(loader)
        self.workers_start = start
        self.known = True

    def replay(self, loader: Any, start: dict[str, Any], first: dict[str, Any] | None, batches: int) -> int:
        """Begin an epoch as it was begun and discard ``batches``; the next loop goes on behind them.

        Args:
            loader: The loader this belongs to.
            start: As :class:`Epoch` has it.
            first: As :class:`Epoch` has it.
            batches: How many the loop had been given.

        Returns:
            How many batches there were to discard.
        """
        self._newest = self._ready = None
        _set_all(loader, start)
        walk = self._begin(loader)
        if first is not None:
            _set_all(loader, first)
        for count in range(batches):
            try:
                next(walk)
            except StopIteration:
                return count
        self._ready = walk
        return batches

    def forget(self, loader: Any) -> None:
        """The next loop begins a new epoch, with new workers."""
        self._newest = self._ready = self.workers_start = loader._iterator = None  # noqa: SLF001 - torch's own way
        self.known = True


def keeps_workers(loader: Any) -> bool:
    """Whether worker processes of an earlier epoch wait for the next one."""
    return bool(getattr(loader, "persistent_workers", False)) and getattr(loader, "_iterator", None) is not None


def generators_of(loader: Any) -> dict[str, Any]:
    """Generators of the user by where they hang at loader, sampler and dataset, each once."""
    found: dict[str, Any] = {}
    for owner in _OWNERS:
        target = loader
        for attribute in filter(None, owner.split(".")):
            target = getattr(target, attribute, None)
        attributes = {"generator": getattr(target, "generator", None), **getattr(target, "__dict__", {})}
        for attribute, value in attributes.items():
            if _is_stateful(value) and not any(value is other for other in found.values()):
                found[f"{owner}.{attribute}".lstrip(".")] = value
    return found


def _is_stateful(value: Any) -> bool:
    return isinstance(value, _GENERATORS) and not isinstance(value, random.SystemRandom)


def _all_states(loader: Any) -> dict[str, Any]:
    return {"rng": capture_rng(), "generators": capture_generators(loader)}


def _set_all(loader: Any, states: dict[str, Any]) -> None:
    set_generators(loader, states["generators"])
    restore_rng(states["rng"])


def capture_generators(loader: Any) -> dict[str, Any]:
    """States of the generators of the user."""
    return {name: capture_generator(generator) for name, generator in generators_of(loader).items()}


def set_generators(loader: Any, saved: dict[str, Any]) -> tuple[str, ...]:
    """Set the generators of the user; returns the names of those that are not there."""
    present = generators_of(loader)
    for name in saved.keys() & present.keys():
        restore_generator(present[name], saved[name])
    return tuple(name for name in saved if name not in present)
