"""How does a saved state come back into live objects, bit for bit?

In place: the model's tensors, the optimizer's state and the caller's objects stay the same objects. One walk over the
parts compares everything (names, shapes, dtypes, groups) and plans what is to be read; if something does not fit,
nothing was changed. Then the tensors are read, straight into the live ones. What is no tensor (groups of the optimizer,
schedulers, counters) is set last: should a damaged block be found while reading, that is still as it was.

:func:`restore` changes what it is given and nothing else. Random numbers and data position belong to the process and
come back only through :func:`restore_training_position`, which :func:`resume_objects` calls last.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from fnmatch import fnmatchcase
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from milepost.checkpoint.arguments import TrainingObjects, is_optimizer
from milepost.checkpoint.facts import differing_facts, facts_of
from milepost.checkpoint.fit import Fit
from milepost.checkpoint.gradients import restore_gradients
from milepost.checkpoint.loading import StoredState, open_state
from milepost.checkpoint.model_state import named_modules, named_tensors
from milepost.checkpoint.naming import named_leaves
from milepost.checkpoint.optimizer_restore import check_optimizer, plan_optimizer, selected
from milepost.checkpoint.optimizer_state import parameter_labels
from milepost.checkpoint.position import restore_position
from milepost.checkpoint.read_plan import ReadPlan, TensorFile
from milepost.checkpoint.rng import restore_generator, restore_rng
from milepost.checkpoint.state import is_generator, other_parameters, outside_model, parameter_names
from milepost.checkpoint.strangers import aligned
from milepost.core.errors import CorruptDataError, InvalidInputError, NotFoundError, StorageError
from milepost.core.records import CheckpointInfo

__all__ = ["Restored", "ResumeReport", "restore", "restore_stored", "restore_training_position", "resume_objects"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What :func:`restore` found.

    Attributes:
        missing: Names that the model has and the state has not.
        unexpected: Names that the state has and the model has not.
        notes: Differences worth knowing, one sentence each.
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeReport:
    """What :func:`resume_objects` did: the checkpoint, and what is not exact, one sentence each."""

    info: CheckpointInfo
    notes: tuple[str, ...] = ()


def restore(
    state: Mapping[str, Any],
    objects: TrainingObjects,
    *,
    strict: bool = True,
    wanted: Callable[[str], bool] | None = None,
    frozen: Sequence[str] = (),
    file: TensorFile | None = None,
) -> Restored:
    """Put ``state`` into the objects given.

    Args:
        state: As :func:`milepost.checkpoint.state.capture` made it, with its tensors on any device, or with
            placeholders for tensors of ``file``.
        objects: Tensors are written in place; the optimizer is matched by the names of the model's parameters, by
            order if no model is given. The loader is left alone.
        strict: Refuse missing and unexpected names, other shapes, and parts that were not saved; else take what fits.
        wanted: Says by its name whether a value is to be restored; the rest stays as it is. None: everything.
        frozen: Names in the model that may be missing.
        file: What the placeholders are read from.

    Raises:
        InvalidInputError: It does not fit; nothing was changed.
        InvalidCallError: An object is of the wrong type.
        CorruptDataError: A tensor in ``file`` is damaged; the message says that tensors before it were written.
    """
    objects.check(needs_model=False)
    restoration = _Restoration(state, objects, Fit(strict=strict, frozen=frozen), wanted)
    restoration.plan_all()
    restoration.fit.require()
    restoration.fit.lossy += restoration.reading.lossy
    try:
        restoration.reading.carry_out(file)
    except (CorruptDataError, StorageError) as error:
        what = f"{error.what}; the objects now hold a part of it"
        raise type(error)(what, cure=error.cure, kind=error.kind) from error
    for finish in restoration.finishing:
        finish()
    fit = restoration.fit
    return Restored(missing=tuple(fit.missing), unexpected=tuple(fit.unexpected), notes=fit.sentences())


def restore_stored(
    stored: StoredState, objects: TrainingObjects, *, strict: bool = True, only: Collection[str] | None = None
) -> Restored:
    """:func:`restore` from an open checkpoint.

    Args:
        stored: The checkpoint.
        objects: What to write into.
        strict: As for :func:`restore`.
        only: Patterns of names to restore; None: everything.

    Raises:
        NotFoundError: Nothing in it matches ``only``.
    """
    wanted = None if only is None else partial(_matches, only)
    if wanted is not None and not any(wanted(name) for name, _ in named_leaves(stored.state)):
        raise NotFoundError(
            f"nothing in {stored.info.filename} is called {' or '.join(only or ())}", cure="see the names in it"
        )
    stored.require_base()
    frozen = stored.state.get("facts", {}).get("frozen", ()) if stored.info.include == "trainable" else ()
    state = stored.state
    if stored.stranger and objects.model is not None and "model" in state:
        state = state | {"model": aligned(state["model"], [name for name, _ in named_tensors(objects.model)])}
    restored = restore(state, objects, strict=strict, wanted=wanted, frozen=frozen, file=stored.file)
    return replace(restored, notes=(*restored.notes, *stored.notes))


def _matches(patterns: Collection[str], name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


class _Restoration:
    """One walk over what was saved and what is there.

    Attributes:
        fit: How they differ.
        reading: The tensors to read.
        finishing: What sets everything else, to be called in this order when they were read.
    """

    def __init__(
        self, state: Mapping[str, Any], objects: TrainingObjects, fit: Fit, wanted: Callable[[str], bool] | None
    ) -> None:
        self.fit = fit
        self.reading = ReadPlan()
        self.finishing: list[Callable[[], None]] = []
        self._state = state
        self._objects = objects
        self._extra = objects.extra or {}
        self._saved_extra: Mapping[str, Any] = state.get("extra", {})
        self._whole = wanted is None
        self._wanted = wanted or (lambda _: True)
        self._names = parameter_names(objects.model, objects.extra)

    def plan_all(self) -> None:
        """Compare and plan every part."""
        self._compare_parts()
        if self._objects.model is not None and "model" in self._state:
            self._plan_module(self._objects.model, self._state["model"], "model")
        if self._objects.optimizer is not None:
            self._plan_outside(self._state.get("parameters", {}))
            self._plan_optimizer(self._objects.optimizer, self._state.get("optimizer"), "optimizer")
            self._plan_gradients(self._state.get("gradients", {}))
        for part in ("scheduler", "scaler"):
            target = getattr(self._objects, part)
            if target is not None and part in self._state:
                self._plan_object(target, self._state[part], part)
        for key, value in self._extra.items():
            if key in self._saved_extra:
                self._plan_extra(value, self._saved_extra[key], f"extra.{key}")

    def _compare_parts(self) -> None:
        parts = ("model", "optimizer", "scheduler", "scaler")
        absent = [part for part in parts if getattr(self._objects, part) is not None and part not in self._state]
        absent += [f"extra.{key}" for key in self._extra if key not in self._saved_extra]
        if absent and self.fit.strict and self._whole:
            raise InvalidInputError(
                f"the checkpoint holds no {', no '.join(absent)}",
                cure=f"it holds {', '.join(self._state)}; leave the others out, or load with strict=False",
            )
        self.fit.notes += (f"{part} was not saved and stays as it is" for part in absent)
        for key, value in self._extra.items():
            if not _can_restore(value):
                raise InvalidInputError(
                    f"extra {key!r} is a {type(value).__name__}, which cannot be changed in place",
                    cure="read it with milepost.load(path)['extra'], or give an object with load_state_dict",
                )

    def _plan_module(self, module: nn.Module, saved: Mapping[str, Any], place: str) -> None:
        live = {name: tensor for name, tensor in named_tensors(module) if self._wanted(f"{place}.{name}")}
        states = {name: value for name, value in saved.items() if name.endswith("_extra_state")}
        tensors = {
            name: value
            for name, value in saved.items()
            if isinstance(value, Tensor) and name not in states and self._wanted(f"{place}.{name}")
        }
        shown = str if place == "model" else partial("{}.{}".format, place)
        covered = {id(target) for name, target in live.items() if name in tensors}
        tied = {name for name, target in live.items() if name not in tensors and id(target) in covered}
        self.fit.names(live.keys() - tied if tied else live, tensors, shown)
        planned: set[int] = set()
        for name, target in live.items():
            if name in tensors and id(target) not in planned:
                self._plan_tensor(f"{place}.{name}", target, tensors[name])
                planned.add(id(target))
        for path, inner in named_modules(module):
            name = f"{path}._extra_state".removeprefix(".")
            if name in states and self._wants_part(states[name], f"{place}.{name}"):
                self._finish(inner.set_extra_state, self.reading.materialise(states[name]))

    def _plan_tensor(self, name: str, target: Tensor, saved: Tensor) -> None:
        if self.fit.tensor(name, target, saved):
            self.reading.write(target, saved)

    def _plan_outside(self, saved: Mapping[str, Any]) -> None:
        for label, tensor in outside_model(self._objects.optimizer, self._names).items():
            if label in saved and self._wanted(f"parameters.{label}"):
                self._plan_tensor(label, tensor, saved[label])

    def _plan_optimizer(self, optimizer: Any, saved: Mapping[str, Any] | None, place: str) -> None:
        if saved is None or not self._wants_part(saved, place):
            return
        if not self._whole:
            saved = selected(saved, self._wanted, place)
        labels = self._labels(optimizer, saved, place)
        unfit = check_optimizer(optimizer, saved, labels, self.fit)
        self.finishing.append(plan_optimizer(optimizer, saved, labels, self.reading, unfit=unfit, whole=self._whole))

    def _plan_gradients(self, saved: Mapping[str, Any]) -> None:
        """Gradients inside of an accumulation; they mean something only to who goes on with the optimizer."""
        model = self._objects.model
        if model is None or not saved or not self._wants_part(saved, "gradients"):
            return
        others = other_parameters(self._objects, self._names)
        parameters = dict(named_tensors(model)) | others
        gradients: dict[str, Any] = {}
        for name, value in saved.items():
            parameter = parameters.get(name)
            if not isinstance(value, Tensor):
                gradients[name] = self.reading.materialise(value)
            elif parameter is not None and parameter.shape == value.shape:
                gradients[name] = self._planned_gradient(parameter, value)
        self.finishing.append(lambda: _set_gradients(parameters, gradients))
        self.finishing.append(lambda: restore_gradients(model, gradients, others))

    def _planned_gradient(self, parameter: Tensor, saved: Tensor) -> Tensor:
        live = parameter.grad
        if live is None or live.dtype != saved.dtype or live.layout != saved.layout:
            return self.reading.allocate(saved, parameter.device)
        self.reading.write(live, saved)
        return live

    def _labels(self, optimizer: Any, saved: Mapping[str, Any], place: str) -> Sequence[Sequence[str]]:
        """Names of the live parameters; where no model tells them, the saved names in the saved order."""
        by_order = [list(group.get("param_names", ())) for group in saved["param_groups"]]
        sizes = [len(group["params"]) for group in optimizer.param_groups]
        if self._objects.model is None and [len(labels) for labels in by_order] == sizes:
            return by_order
        return parameter_labels(optimizer, self._names, place)

    def _plan_extra(self, value: Any, saved: Any, place: str) -> None:
        if isinstance(value, nn.Module):
            self._plan_module(value, saved, place)
        elif is_optimizer(value):
            self._plan_optimizer(value, saved, place)
        elif isinstance(value, Tensor):
            if self._wanted(place):
                self._plan_tensor(place, value, saved)
        elif self._wants_part(saved, place):
            if is_generator(value) or isinstance(value, (dict, list)):
                self._finish(partial(_replace_content, value), self.reading.materialise(saved))
            else:
                self._plan_object(value, saved, place)

    def _plan_object(self, value: Any, saved: Any, place: str) -> None:
        if self._wants_part(saved, place):
            real = self.reading.materialise(saved)
            self.finishing.append(lambda: value.load_state_dict(_like(value.state_dict(), real)))

    def _wants_part(self, saved: Any, place: str) -> bool:
        """Whether anything in a part is wanted that comes back as a whole or not at all."""
        return self._whole or any(map(self._wanted, (place, *(name for name, _ in named_leaves(saved, place)))))

    def _finish(self, action: Callable[[Any], Any], value: Any) -> None:
        self.finishing.append(lambda: action(value))


def _can_restore(value: Any) -> bool:
    if isinstance(value, (nn.Module, dict, list, Tensor)) or is_optimizer(value) or is_generator(value):
        return True
    return hasattr(value, "load_state_dict")


def _set_gradients(parameters: Mapping[str, Tensor], gradients: Mapping[str, Any]) -> None:
    for name, gradient in gradients.items():
        if isinstance(gradient, Tensor):
            parameters[name].grad = gradient


def _replace_content(value: Any, saved: Any) -> None:
    if is_generator(value):
        restore_generator(value, saved)
    elif isinstance(value, dict):
        value.clear()
        value.update(saved)
    else:
        value[:] = saved


def _like(live: Any, saved: Any) -> Any:
    """``saved`` with the classes of ``live`` where a checkpoint keeps only the content (Counter, namedtuple, enum)."""
    if isinstance(live, dict) and isinstance(saved, dict):
        content = {key: _like(live.get(key), part) for key, part in saved.items()}
        return content if type(live) is type(saved) or hasattr(live, "default_factory") else type(live)(content)
    if isinstance(live, tuple) and hasattr(live, "_fields") and isinstance(saved, dict):
        return type(live)(**saved)
    if isinstance(live, Enum) and not isinstance(saved, Enum) and hasattr(saved, "name"):
        return type(live)[saved.name]
    if isinstance(live, Tensor) and isinstance(saved, Tensor):
        return saved.to(live.device)
    if isinstance(live, list) and isinstance(saved, list) and len(live) == len(saved):
        return [_like(one, other) for one, other in zip(live, saved, strict=True)]
    return saved


def restore_training_position(state: Mapping[str, Any], loader: Any = None, *, rank: int = 0) -> tuple[str, ...]:
    """Set data position and random number generators to where they stood at the save.

    Args:
        state: As loaded.
        loader: The loader of the loop that follows; its iterator is made here (see :mod:`.position`).
        rank: Which rank's position to take.

    Returns:
        What is not exact, one sentence each.
    """
    own: Mapping[str, Any] = state if rank == 0 else state.get("ranks", {}).get(rank, {})
    if "rng" not in own:
        return (f"random numbers and data position of rank {rank} were not saved",)
    notes: list[str] = []
    if loader is not None:
        saved = own.get("loader")
        notes += restore_position(loader, saved) if saved is not None else ["data position not saved: no loader given"]
    notes += restore_rng(own["rng"])  # last: making an iterator draws numbers
    return tuple(notes)


def resume_objects(
    path: str | PathLike[str] | CheckpointInfo,
    model: nn.Module,
    optimizer: Any = None,
    scheduler: Any = None,
    *,
    scaler: Any = None,
    loader: Any = None,
    extra: Mapping[str, Any] | None = None,
    rank: int = 0,
    copies: Sequence[Path] = (),
) -> ResumeReport:
    """Restore everything, random numbers and data position included, so that training goes on as if never stopped.

    Args:
        path: The checkpoint.
        model: Its tensors are written in place, like those of the objects after it (:class:`TrainingObjects`).
        optimizer: Matched by the names of the model's parameters.
        scheduler: Gets its state by ``load_state_dict``.
        scaler: Likewise.
        loader: The loader of the loop that follows.
        extra: Named objects, as at the save.
        rank: Whose random numbers and data position to take.
        copies: Folders with a second copy of the file, from which damaged blocks are taken.

    Raises:
        InvalidInputError: It does not fit; nothing was changed.
        CorruptDataError: The file is damaged. If the message says so, tensors were written before it was found.
        NotFoundError: There is no such file.
    """
    objects = TrainingObjects(model=model, optimizer=optimizer, scheduler=scheduler, scaler=scaler, extra=extra)
    with open_state(path, copies=copies) as stored:
        parts = {part: stored.state[part] for part in ("rng", "loader", "ranks") if part in stored.state}
        position = stored.read(parts)  # before anything is changed
        restored = restore_stored(stored, objects)
        notes = [*restored.notes, *differing_facts(stored.state.get("facts", {}), facts_of(objects))]
    notes += restore_training_position(position, loader, rank=rank)
    return ResumeReport(info=stored.info, notes=tuple(notes))
