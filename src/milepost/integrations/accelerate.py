"""How does a training with Accelerate become a run, and how does its state come back whole after a kill?

``MilepostTracker`` is one of Accelerate's trackers. ``save_state`` and ``load_state`` stand around the accelerator's
own methods: the accelerator writes the folder and reads it, with or without milepost.

**Invariants**: a folder ``step-<n>`` is whole: written under another name by all processes, synced, described (size and
digest of every file), and renamed by the main process. An older one is removed only behind that. All processes load the
folder that the main process chose.

**On crash**: the folders of before. What was being written stays under a hidden name until the next save removes it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import xxhash

from milepost.core.config import ExperimentConfig, one_config
from milepost.core.errors import InvalidInputError, MissingDependencyError
from milepost.core.records import CheckpointInfo
from milepost.core.saying import say
from milepost.io.durable import fsync_directory, replace_file, storage_error
from milepost.run import DisabledRun, Run
from milepost.system import start

try:
    from accelerate.state import PartialState
    from accelerate.tracking import GeneralTracker, on_main_process
    from accelerate.utils import broadcast_object_list
except ModuleNotFoundError as error:
    if error.name is None or error.name.partition(".")[0] not in {"accelerate", "torch"}:
        raise
    raise MissingDependencyError(
        f"Accelerate is not available: no module {error.name!r}", cure='pip install "milepost[accelerate]"'
    ) from error

__all__ = ["MilepostTracker", "load_state", "save_state"]

_DIGESTS = "milepost-digests.json"
_NAME = re.compile(r"step-(\d{1,18})")
_PIECE = 8 << 20


class MilepostTracker(GeneralTracker):  # type: ignore[misc]  # accelerate has no types
    """Accelerate's tracker for milepost: ``Accelerator(log_with=MilepostTracker("bert"))``.

    The run begins with ``accelerator.init_trackers``, whose ``config`` are its hyperparameters, and ends with
    ``accelerator.end_training``. The main process has it.

    Args:
        run_name: Name of the run; ``init_trackers`` has a name of its own, which Accelerate gives to no tracker that
            is an object.
        tags: Short words.
        resume: ``"auto"``: go on with the unfinished run of the same name, hyperparameters and script (or job).
        group: Ties runs together.
        config: Settings; instead of ``settings``.
        **settings: Fields of :class:`milepost.ExperimentConfig`.

    Raises:
        InvalidCallError: Both ``config`` and ``settings`` are given.
        InvalidInputError: A setting cannot be meant.
    """

    name = "milepost"
    requires_logging_directory = False
    main_process_only = True

    def __init__(
        self,
        run_name: str,
        *,
        tags: Iterable[str] = (),
        resume: str = "auto",
        group: str | None = None,
        config: ExperimentConfig | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        self._config = one_config("MilepostTracker", config, settings)
        self._arguments: dict[str, Any] = {"tags": tuple(tags), "resume": resume, "group": group}
        self._run_name = run_name
        self._run: Run | DisabledRun | None = None

    @property
    def tracker(self) -> Run | DisabledRun:
        """The run; on other processes one that does nothing."""
        if not PartialState().is_main_process:
            return DisabledRun()
        return self._run if self._run is not None else self._begin({})

    def _begin(self, hyperparameters: Mapping[str, Any]) -> Run | DisabledRun:
        self._run = start(self._run_name, hyperparameters=hyperparameters, config=self._config, **self._arguments)
        return self._run

    @on_main_process  # type: ignore[untyped-decorator]  # accelerate has no types
    def store_init_configuration(self, values: Mapping[str, Any]) -> None:
        """Begin the run with these hyperparameters, or keep them with the one that has begun."""
        if self._run is None:
            self._begin(values)
        else:
            self._run.describe_hyperparameters(values)

    @on_main_process  # type: ignore[untyped-decorator]
    def log(self, values: Mapping[str, Any], step: int | None = None, **options: Any) -> None:
        """Log numbers, and texts as texts, of one step; ``epoch`` may be among the options."""
        texts = {name: value for name, value in values.items() if isinstance(value, str)}
        run = self.tracker
        numbers = {name: value for name, value in values.items() if name not in texts}
        if numbers:
            run.log(numbers, step, epoch=options.get("epoch"))
        for name, text in texts.items():
            run.log_text(name, text, step)

    @on_main_process  # type: ignore[untyped-decorator]
    def finish(self) -> None:
        """End the run."""
        if self._run is not None:
            self._run.end()


def save_state(
    accelerator: Any, directory: str | os.PathLike[str], *, step: int, keep: int = 3, **options: Any
) -> Path:
    """Let the accelerator save its state into ``<directory>/step-<step>``; every process calls it.

    The training waits until the folder is on the disk.

    Args:
        accelerator: A prepared ``accelerate.Accelerator``.
        directory: Where the folders are.
        step: The last step that is done.
        keep: How many of the newest folders stay.
        **options: For ``Accelerator.save_state``.

    Raises:
        InvalidInputError: ``step`` or ``keep`` cannot be meant, or Accelerate names its folders itself.
        StorageError: The disk refuses; the folders of before are untouched.
    """
    _check(accelerator, step, keep)
    parent = Path(directory).expanduser().absolute()
    folder, temporary = parent / f"step-{step}", parent / f".step-{step}.tmp"
    if accelerator.is_main_process:
        _clean(parent)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(temporary), **options)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        try:
            size = _publish(temporary, folder)
            run = _run_of(accelerator)
            if run is not None:
                _record(run, folder, step, size)
            _prune(parent, keep, run)
        except OSError as error:
            raise storage_error(error, "writing", folder) from error
    accelerator.wait_for_everyone()
    return folder


def load_state(accelerator: Any, directory: str | os.PathLike[str], **options: Any) -> int:
    """Let the accelerator load the newest folder that is whole; every process calls it, after ``init_trackers``.

    Newer folders that are damaged are named on standard error. What the run had logged behind the folder is hidden.

    Args:
        accelerator: A prepared ``accelerate.Accelerator``.
        directory: Where the folders are.
        **options: For ``Accelerator.load_state``.

    Returns:
        The next step to do: 0 if there is no folder.
    """
    chosen = [_newest(Path(directory).expanduser().absolute()) if accelerator.is_main_process else None]
    broadcast_object_list(chosen)
    folder = chosen[0]
    step = -1 if folder is None else _step_of(Path(folder))
    if folder is not None:
        accelerator.load_state(folder, **options)
    run = _run_of(accelerator) if accelerator.is_main_process else None
    if run is not None and (folder is not None or run.attempt > 1):
        run.goes_on_after(step)
    return step + 1


def _check(accelerator: Any, step: object, keep: object) -> None:
    for name, value, least in (("step", step, 0), ("keep", keep, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InvalidInputError(f"{name} is {value!r}", cure=f"give a whole number of at least {least}")
    if accelerator.project_configuration.automatic_checkpoint_naming:
        raise InvalidInputError(
            "automatic_checkpoint_naming is on, so Accelerate would choose the folder",
            cure="leave it out of the ProjectConfiguration",
        )


def _step_of(folder: Path) -> int:
    match = _NAME.fullmatch(folder.name)
    return int(match[1]) if match else -1


def _folders(parent: Path) -> list[Path]:
    """Folders of states, the newest step first."""
    found = [folder for folder in parent.glob("step-*") if _step_of(folder) >= 0 and folder.is_dir()]
    return sorted(found, key=_step_of, reverse=True)


def _clean(parent: Path) -> None:
    """Remove what killed processes left."""
    parent.mkdir(parents=True, exist_ok=True)
    for left in (*parent.glob(".step-*.tmp"), *parent.glob(".step-*.old")):
        shutil.rmtree(left, ignore_errors=True)


def _publish(temporary: Path, folder: Path) -> int:
    """Sync, describe and rename; returns the bytes of all files."""
    files = [path for path in sorted(temporary.rglob("*")) if path.is_file()]
    kept = {path.relative_to(temporary).as_posix(): _describe(path, sync=True) for path in files}
    replace_file(temporary / _DIGESTS, json.dumps({"format": 1, "files": kept}, indent=1).encode())
    for inner in {path.parent for path in files}:
        fsync_directory(inner)
    if folder.exists():  # the same step once more, after a resume from an older one
        folder.rename(folder.with_name(f".{folder.name}.old"))
    temporary.rename(folder)
    fsync_directory(folder.parent)
    return sum(int(one["size"]) for one in kept.values())


def _describe(path: Path, *, sync: bool = False) -> dict[str, Any]:
    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        if sync:
            os.fsync(file.fileno())
        while piece := file.read(_PIECE):
            digest.update(piece)
        return {"size": file.tell(), "xxh3_128": digest.hexdigest()}


def _prune(parent: Path, keep: int, run: Run | DisabledRun | None) -> None:
    for folder in _folders(parent)[keep:]:
        gone = folder.with_name(f".{folder.name}.old")
        folder.rename(gone)  # never half a folder under its name
        shutil.rmtree(gone, ignore_errors=True)
        if run is not None and not run.ended:
            run.record_checkpoint("removed", _info(run, folder, _step_of(folder), 0))


def _newest(parent: Path) -> str | None:
    for folder in _folders(parent):
        damage = _damage_of(folder)
        if not damage:
            return str(folder)
        say(f"{folder} is left out: {damage}", cure="training goes on from the newest whole one")
    return None


def _damage_of(folder: Path) -> str:
    """What is wrong with a folder, in words; empty if every file is what was written."""
    try:
        wanted = json.loads((folder / _DIGESTS).read_bytes())["files"]
        for name, kept in wanted.items():
            if _describe(folder / name) != kept:
                return f"{name} is not what was written"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{_DIGESTS} is damaged"
    return ""


def _run_of(accelerator: Any) -> Run | DisabledRun | None:
    """The live run of the accelerator's tracker, if it has one of milepost's."""
    for tracker in accelerator.trackers:
        if isinstance(tracker, MilepostTracker) and not tracker.tracker.ended:
            return tracker.tracker
    return None


def _record(run: Run | DisabledRun, folder: Path, step: int, size: int) -> None:
    run.record_checkpoint("committed", _info(run, folder, step, size))


def _info(run: Run | DisabledRun, folder: Path, step: int, size: int) -> CheckpointInfo:
    return CheckpointInfo(
        filename=folder.name,
        path=folder,
        experiment_id=run.id,
        step=step,
        timestamp=time.time(),
        size=size,
        format="accelerate",
    )
