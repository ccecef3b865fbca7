"""How does a saved state come back into live objects, bit for bit?

In place: the model's tensors, the optimizer's state and the caller's objects stay the same objects. Everything is
compared first (names, shapes, dtypes, groups); if something does not fit, nothing was changed.

:func:`restore` changes what it is given and nothing else. Random numbers and data position belong to the process and
come back only through :func:`restore_training_position`, which :func:`resume_objects` calls last.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from os import PathLike
from typing import Any

from torch import Tensor, nn

from milepost.checkpoint.arguments import TrainingObjects, is_optimizer
from milepost.checkpoint.loading import LoadedState, load_state
from milepost.checkpoint.model_state import named_tensors, restore_model, write_into
from milepost.checkpoint.optimizer_state import check_optimizer, parameter_labels, restore_optimizer
from milepost.checkpoint.position import restore_position
from milepost.checkpoint.rng import restore_generator, restore_rng
from milepost.checkpoint.state import facts_of, is_generator, outside_model, parameter_names
from milepost.core.errors import InvalidInputError
from milepost.core.records import CheckpointInfo

__all__ = ["Restored", "ResumeReport", "restore", "restore_training_position", "resume_objects"]


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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Targets:
    model: nn.Module | None
    optimizer: Any
    scheduler: Any
    scaler: Any
    extra: Mapping[str, Any]
    names: Mapping[int, str]


def restore(state: Mapping[str, Any], objects: TrainingObjects, *, strict: bool = True) -> Restored:
    """Put ``state`` into the objects given.

    Args:
        state: As :func:`milepost.checkpoint.state.capture` made it, with its tensors on any device.
        objects: Tensors are written in place; the optimizer is matched by the names of the model's parameters, by
            order if no model is given. The loader is left alone.
        strict: Refuse missing and unexpected names, and parts that were not saved; else take what fits.

    Raises:
        InvalidInputError: It does not fit; nothing was changed.
        InvalidCallError: An object is of the wrong type.
    """
    objects.check(needs_model=False)
    targets = _Targets(
        **{part: getattr(objects, part) for part in ("model", "optimizer", "scheduler", "scaler")},
        extra=objects.extra or {},
        names=parameter_names(objects.model, objects.extra),
    )
    model = targets.model
    notes = _check_parts(state, targets, strict=strict)
    restored = _check_model(model, state.get("model", {}), strict=strict) if model is not None else Restored()
    notes += _check_optimizers(state, targets, strict=strict)
    _write(state, targets)
    return Restored(missing=restored.missing, unexpected=restored.unexpected, notes=(*notes, *restored.notes))


def _check_parts(state: Mapping[str, Any], targets: _Targets, *, strict: bool) -> list[str]:
    wanted = {"model": targets.model, "optimizer": targets.optimizer}
    wanted |= {"scheduler": targets.scheduler, "scaler": targets.scaler}
    absent = [part for part, target in wanted.items() if target is not None and part not in state]
    absent += [f"extra.{key}" for key in targets.extra if key not in state.get("extra", {})]
    if absent and strict:
        raise InvalidInputError(
            f"the checkpoint holds no {', no '.join(absent)}",
            cure=f"it holds {', '.join(state)}; leave the others out, or load with strict=False",
        )
    notes = [f"{part} was not saved and stays as it is" for part in absent]
    for key, value in targets.extra.items():
        if not _can_restore(value):
            raise InvalidInputError(
                f"extra {key!r} is a {type(value).__name__}, which cannot be changed in place",
                cure="read it with milepost.load(path)['extra'], or give an object with load_state_dict",
            )
    return notes


def _can_restore(value: Any) -> bool:
    if isinstance(value, (nn.Module, dict, list, Tensor)) or is_optimizer(value) or is_generator(value):
        return True
    return hasattr(value, "load_state_dict")


def _check_model(model: nn.Module, saved: Mapping[str, Any], *, strict: bool, place: str = "model") -> Restored:
    live = dict(named_tensors(model))
    values = {name for name, value in saved.items() if isinstance(value, Tensor) and not name.endswith("_extra_state")}
    missing = tuple(name for name in live if name not in saved)
    unexpected = tuple(name for name in saved if name in values and name not in live)
    if strict and (missing or unexpected):
        raise InvalidInputError(
            f"{place} and checkpoint differ: {_some('missing', missing)}{_some('unexpected', unexpected)}".rstrip("; "),
            cure="build the model as it was when it was saved, or load with strict=False",
        )
    notes = []
    for name, target in live.items():
        if name not in saved:
            continue
        source = saved[name]
        if tuple(source.shape) != tuple(target.shape):
            raise InvalidInputError(
                f"{place}.{name} has shape {tuple(target.shape)}, the checkpoint {tuple(source.shape)}",
                cure="build the model as it was when it was saved",
            )
        if source.dtype != target.dtype:
            notes.append(f"{place}.{name} was saved as {source.dtype} and became {target.dtype}")
    return Restored(missing=missing, unexpected=unexpected, notes=tuple(notes[:3] + _rest(notes)))


def _rest(notes: list[str]) -> list[str]:
    return [f"and {len(notes) - 3} more tensors changed their dtype"] if len(notes) > 3 else []


def _some(what: str, names: tuple[str, ...]) -> str:
    if not names:
        return ""
    return f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''}); "


def _check_optimizers(state: Mapping[str, Any], targets: _Targets, *, strict: bool) -> list[str]:
    notes: list[str] = []
    for place, optimizer, saved in _optimizers(state, targets):
        labels = _labels(optimizer, saved, targets, place)
        notes += check_optimizer(optimizer, saved, labels, strict=strict)
    if targets.optimizer is not None:
        for label, tensor in outside_model(targets.optimizer, targets.names).items():
            saved_tensor = state.get("parameters", {}).get(label)
            if saved_tensor is not None and saved_tensor.shape != tensor.shape:
                raise InvalidInputError(f"{label} has another shape than in the checkpoint", cure="build it as saved")
    for key, value in targets.extra.items():
        if isinstance(value, nn.Module) and key in state.get("extra", {}):
            notes += _check_model(value, state["extra"][key], strict=strict, place=f"extra.{key}").notes
    return notes


def _optimizers(state: Mapping[str, Any], targets: _Targets) -> Iterator[tuple[str, Any, Mapping[str, Any]]]:
    if targets.optimizer is not None and "optimizer" in state:
        yield "optimizer", targets.optimizer, state["optimizer"]
    for key, value in targets.extra.items():
        if is_optimizer(value) and key in state.get("extra", {}):
            yield f"extra.{key}", value, state["extra"][key]


def _labels(optimizer: Any, saved: Mapping[str, Any], targets: _Targets, place: str) -> list[list[str]]:
    """Names of the live parameters; where no model tells them, the saved names in the saved order."""
    by_order = [list(group.get("param_names", ())) for group in saved["param_groups"]]
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    if targets.model is None and [len(labels) for labels in by_order] == sizes:
        return by_order
    return parameter_labels(optimizer, targets.names, place)


def _write(state: Mapping[str, Any], targets: _Targets) -> None:
    if targets.model is not None:
        restore_model(targets.model, state.get("model", {}))
    if targets.optimizer is not None:
        for label, tensor in outside_model(targets.optimizer, targets.names).items():
            if label in state.get("parameters", {}):
                write_into(tensor, state["parameters"][label])
    for place, optimizer, saved in _optimizers(state, targets):
        restore_optimizer(optimizer, saved, _labels(optimizer, saved, targets, place))
    for part, target in (("scheduler", targets.scheduler), ("scaler", targets.scaler)):
        if target is not None and part in state:
            target.load_state_dict(_like(target.state_dict(), state[part]))
    for key, value in targets.extra.items():
        if key in state.get("extra", {}) and not is_optimizer(value):
            _restore_extra(value, state["extra"][key])


def _restore_extra(value: Any, saved: Any) -> None:
    if isinstance(value, nn.Module):
        restore_model(value, saved)
    elif is_generator(value):
        restore_generator(value, saved)
    elif isinstance(value, dict):
        value.clear()
        value.update(saved)
    elif isinstance(value, list):
        value[:] = saved
    elif isinstance(value, Tensor):
        write_into(value, saved)
    else:
        value.load_state_dict(_like(value.state_dict(), saved))


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
    source: LoadedState | str | PathLike[str],
    model: nn.Module,
    optimizer: Any = None,
    scheduler: Any = None,
    *,
    scaler: Any = None,
    loader: Any = None,
    extra: Mapping[str, Any] | None = None,
    rank: int = 0,
) -> ResumeReport:
    """Restore everything, random numbers and data position included, so that training goes on as if never stopped.

    Raises:
        InvalidInputError: It does not fit; nothing was changed.
        CorruptDataError: The file is damaged; nothing was changed.
        NotFoundError: There is no such file.
    """
    loaded = source if isinstance(source, LoadedState) else load_state(source)
    objects = TrainingObjects(model=model, optimizer=optimizer, scheduler=scheduler, scaler=scaler, extra=extra)
    restored = restore(loaded.state, objects)
    notes = [*restored.notes, *_differing_facts(loaded.state.get("facts", {}), facts_of(objects))]
    notes += restore_training_position(loaded.state, loader, rank=rank)
    return ResumeReport(info=loaded.info, notes=tuple(notes))


def _differing_facts(saved: Mapping[str, Any], present: Mapping[str, Any]) -> list[str]:
    return [
        f"not bit-exact for sure: {name} was {_short(saved[name])}, is {_short(value)}"
        for name, value in present.items()
        if name in saved and saved[name] != value
    ]


def _short(value: Any) -> str:
    return f"{len(value)} names" if isinstance(value, list) and len(value) > 3 else str(value)
