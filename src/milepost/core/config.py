"""Which settings are there, what do they mean, and what is refused?

``ExperimentConfig`` is the mission's dataclass: its nine fields first, in its order and with its defaults. Everything
is checked when it is made, so a wrong value raises before a training starts, and relative paths become absolute then,
so a later ``os.chdir`` moves nothing.
"""

from __future__ import annotations

import json
import math
import os
import re
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

from milepost.core.errors import InvalidCallError, InvalidInputError, NotFoundError, StorageError
from milepost.core.plugins import checked_hook, checked_tracker
from milepost.core.rules import Rule, is_rule

__all__ = ["CheckpointFormat", "Compression", "ExperimentConfig", "bytes_of", "is_disabled", "one_config"]

CheckpointFormat = Literal["milepost", "pt", "pt.gz", "safetensors"]
Compression = bool | Literal["delta", "bf16-moments"]

_FOLDERS = ("experiment_dir", "checkpoint_dir", "logs_dir", "metrics_dir", "tensorboard_dir")
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([KMGTP])(i)?)?B?", re.IGNORECASE)
_SIGNALS = ("SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP", "SIGINT")


def is_disabled() -> bool:
    """Whether ``MILEPOST_MODE=disabled`` turns every call into a typed no-op."""
    mode = os.environ.get("MILEPOST_MODE", "")
    if mode not in {"", "enabled", "disabled"}:
        raise InvalidInputError(f"MILEPOST_MODE is {mode!r}", cure="set it to 'enabled' or 'disabled', or unset it")
    return mode == "disabled"


@dataclass(frozen=True)
class ExperimentConfig:
    """Where things go and how they are kept.

    Attributes:
        experiment_dir: One folder per experiment: metadata, summary, console log, media, code.
        checkpoint_dir: Checkpoints of all experiments, and ``checkpoints.json``.
        logs_dir: milepost's own log, one file per process.
        metrics_dir: One folder per experiment: the run log.
        tensorboard_dir: TensorBoard event files; None switches TensorBoard off.
        wandb_project: Project at Weights & Biases; None switches W&B off.
        save_frequency: ``should_save`` is true this many steps after the last save.
        max_checkpoints: How many of the newest checkpoints of an experiment are kept, beside its best and pinned ones.
        compression: True: lossless (byte planes and zstd). False: raw. ``"delta"``: lossless, as differences to one
            earlier checkpoint where that is smaller; such a file needs that other one beside it. ``"bf16-moments"``:
            lossy, the optimizer's float32 moments are rounded to bfloat16.
        root: Moves all five folders: relative ones are taken from here instead of the working folder.
        group: Name that ties experiments together, for example a sweep.
        best_metric: Metric that decides which checkpoint is best when nobody passes ``is_best=True``.
        best_mode: Whether a smaller (``"min"``) or larger (``"max"``) ``best_metric`` is better.
        resume_key: Names the training for ``resume="auto"``, whatever its hyperparameters.
        save_on_signal: Signals after which ``should_save`` and ``should_stop`` turn true, for example ``("SIGTERM",)``.
        stop_before_limit: The same happens this many minutes before the time limit of a SLURM job; None: it does not.
        on_save_error: A failed save warns once, or raises at the next ``wait()`` only (``"warn"``), or raises from the
            next call of ``save_checkpoint`` (``"raise"``).
        trackers: Further guests: names that installed packages offer (entry points ``milepost.trackers``), or objects
            with the methods of :class:`milepost.trackers.protocol.Tracker`, which work in a thread of the training.
        wandb_artifacts: ``"best"``: the weights of the best, the last and pinned checkpoints go to W&B, the others by
            reference. ``"references"``: no weights. ``"none"``: nothing of checkpoints.
        mlflow_uri: Where MLflow keeps runs (``"sqlite:///mlflow.db"``, ``"http://host:5000"``); None switches it off.
        hooks: Objects with any of the methods ``run_started``, ``checkpoint_committed``, ``alerted``, ``run_ended``.
        rules: What to watch the metrics for, from :mod:`milepost.rules`.
        system_metrics_every: Seconds between two samples of what machine and processes use; None: none are taken.
        checkpoint_format: ``"milepost"``, or a foreign one: ``"pt"``, ``"pt.gz"``, ``"safetensors"``.
        snapshot: ``"copy"``: ``save_checkpoint`` returns when the state is copied. ``"overlap"``: it returns at once,
            and the next ``optimizer.step()`` waits for the rest of the copy; for what that rule can see only.
        staging: ``"memory"``: the copy lies in shared memory and survives the death of the training. ``"spool"``: in a
            file beside the checkpoints, and survives the death of every process (of the whole container, for example).
        include: ``"all"``, or ``"trainable"``: leave frozen parameters out (adapters on a frozen model).
        save_every_minutes: ``should_save`` is also true this many minutes after the last save.
        max_overhead: Save as often as costs at most this percentage of the time; stands in for ``save_frequency``.
        keep_best: How many of the best checkpoints by ``best_metric`` are kept.
        keep_every_steps: One checkpoint for each such stretch of steps is kept for good.
        keep_every_minutes: One checkpoint for each such stretch of time is kept for good.
        max_disk: Bytes, or a text like ``"50GB"``, that one experiment's checkpoints may take; the newest verified one,
            the best and the pinned ones stay in any case.
        weights_only_after: Of all but this many of the newest, only the model is kept.
        backup_dir: A second folder, better on another disk, that gets a copy of each verified checkpoint.
        strict: Raise on a metric that is not a number, instead of skipping it with one warning.
        capture_console: Keep what is printed in ``experiment.log``.
        capture_code: Record commit, difference to it, and environment.
        exit_timeout: Seconds the end of a run waits for what is still being written.
    """

    experiment_dir: str = "./experiments"
    checkpoint_dir: str = "./checkpoints"
    logs_dir: str = "./logs"
    metrics_dir: str = "./metrics"
    tensorboard_dir: str | None = "./runs"
    wandb_project: str | None = None
    save_frequency: int = 1000
    max_checkpoints: int = 5
    compression: Compression = True
    root: str | None = None
    group: str | None = None
    best_metric: str | None = None
    best_mode: Literal["min", "max"] = "min"
    resume_key: str | None = None
    save_on_signal: tuple[str, ...] = ()
    stop_before_limit: float | None = None
    on_save_error: Literal["warn", "raise"] = "warn"
    trackers: tuple[Any, ...] = ()
    wandb_artifacts: Literal["best", "references", "none"] = "best"
    mlflow_uri: str | None = None
    hooks: tuple[Any, ...] = ()
    rules: tuple[Rule, ...] = ()
    system_metrics_every: float | None = 10.0
    checkpoint_format: CheckpointFormat = "milepost"
    snapshot: Literal["copy", "overlap"] = "copy"
    staging: Literal["memory", "spool"] = "memory"
    include: Literal["all", "trainable"] = "all"
    save_every_minutes: float | None = None
    max_overhead: float | None = None
    keep_best: int = 1
    keep_every_steps: int | None = None
    keep_every_minutes: float | None = None
    max_disk: str | int | None = None
    weights_only_after: int | None = None
    backup_dir: str | None = None
    strict: bool = False
    capture_console: bool = True
    capture_code: bool = True
    exit_timeout: float = 30.0

    def __post_init__(self) -> None:
        self._check_numbers()
        for name in ("strict", "capture_console", "capture_code"):
            if not isinstance(getattr(self, name), bool):
                raise _invalid(name, getattr(self, name), "give True or False")
        for name in ("group", "best_metric", "resume_key", "wandb_project"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value.strip()):
                raise _invalid(name, value, "give a text that is not empty, or None")
        for name, choices in (
            ("best_mode", ("min", "max")),
            ("on_save_error", ("warn", "raise")),
            ("checkpoint_format", get_args(CheckpointFormat)),
            ("compression", (True, False, "delta", "bf16-moments")),
            ("snapshot", ("copy", "overlap")),
            ("staging", ("memory", "spool")),
            ("include", ("all", "trainable")),
            ("wandb_artifacts", ("best", "references", "none")),
        ):
            value = getattr(self, name)
            if type(value) not in {str, bool} or value not in choices:
                raise _invalid(name, getattr(self, name), f"give one of {', '.join(map(repr, choices))}")
        if self.compression in {"delta", "bf16-moments"} and self.checkpoint_format != "milepost":
            raise _invalid("compression", self.compression, "that needs checkpoint_format='milepost'")
        self._settle("save_on_signal", self._signals())
        self._settle("rules", self._rules())
        self._settle("trackers", tuple(map(checked_tracker, self._words("trackers"))))
        self._settle("hooks", tuple(map(checked_hook, self._words("hooks"))))
        self._make_paths_absolute()
        self._settle("mlflow_uri", _mlflow_uri(self.mlflow_uri))

    def _check_numbers(self) -> None:
        optional = ("keep_every_steps", "weights_only_after")
        for name in ("save_frequency", "max_checkpoints", "keep_best", *optional):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
            if not whole and not (value is None and name in optional):
                raise _invalid(name, value, "give a whole number of at least 1")
        seconds = ("stop_before_limit", "system_metrics_every")
        for name in ("save_every_minutes", "keep_every_minutes", "max_overhead", *seconds):
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and 0 < value < math.inf):
                raise _invalid(name, value, "give a number above 0, or None")
        if not (_is_number(self.exit_timeout) and 0 <= self.exit_timeout < math.inf):
            raise _invalid("exit_timeout", self.exit_timeout, "give seconds, 0 or more")
        if self.max_disk is not None:
            bytes_of(self.max_disk)

    def _words(self, name: str) -> tuple[Any, ...]:
        value = getattr(self, name)
        if isinstance(value, str):
            return (value,)
        if not isinstance(value, Iterable) or isinstance(value, Mapping):
            raise _invalid(name, value, "give a list")
        return tuple(value)

    def _signals(self) -> tuple[str, ...]:
        names = self._words("save_on_signal")
        for name in names:
            if name not in _SIGNALS:
                raise _invalid("save_on_signal", name, f"give names out of {', '.join(_SIGNALS)}")
        return names

    def _rules(self) -> tuple[Rule, ...]:
        rules = self._words("rules")
        for rule in rules:
            if not is_rule(rule):
                raise _invalid("rules", rule, "give rules of milepost.rules, for example [NotFinite()]")
        return rules

    def _make_paths_absolute(self) -> None:
        if self.root is not None:
            self._settle("root", str(_path("root", self.root).expanduser().absolute()))
        base = Path(self.root) if self.root is not None else Path.cwd()
        for name in (*_FOLDERS, "backup_dir"):
            value = getattr(self, name)
            if value is None and name in {"tensorboard_dir", "backup_dir"}:
                continue
            self._settle(name, os.path.normpath(base / _path(name, value).expanduser()))

    def _settle(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)  # the dataclass is frozen; this is its construction

    @classmethod
    def load(
        cls, file: str | os.PathLike[str] | None = None, *, profile: str | None = None, **arguments: Any
    ) -> ExperimentConfig:
        """Settings from a TOML or JSON file: argument > ``MILEPOST_<FIELD>`` > profile > top level > default.

        Args:
            file: Its keys are the fields of this class; tables below ``[profiles]`` are named sets. None: no file.
            profile: Which table of ``[profiles]`` to use.
            **arguments: Fields that stand above everything else.

        Raises:
            InvalidInputError: A key is no field, or a value cannot be meant.
            NotFoundError: There is no such file or profile.
            StorageError: The file cannot be read.
        """
        settings, profiles = _read_settings(file)
        if profile is not None:
            if profile not in profiles:
                known = ", ".join(profiles) or "none"
                where = f"in {os.fspath(file)!r}" if file is not None else "without a settings file"
                raise NotFoundError(f"no profile {profile!r} {where}", cure=f"profiles there: {known}")
            settings |= profiles[profile]
        settings |= _from_environment()
        settings |= arguments
        names = {field.name for field in fields(cls)}
        for key in settings:
            if key not in names:
                raise InvalidInputError(f"{key!r} is no setting", cure=f"settings are: {', '.join(sorted(names))}")
        return cls(**settings)


def one_config(caller: str, config: ExperimentConfig | None, settings: Mapping[str, Any]) -> ExperimentConfig:
    """The settings of a call that takes ``config=`` or the fields of one.

    Raises:
        InvalidCallError: ``caller`` was given both.
        InvalidInputError: A setting cannot be meant.
    """
    if config is not None and settings:
        raise InvalidCallError(
            f"{caller} got config= and also {', '.join(settings)}", cure="put them into the ExperimentConfig"
        )
    return config or ExperimentConfig.load(**settings)


def bytes_of(amount: str | int) -> int:
    """Bytes of a setting like ``"50GB"`` (powers of ten) or ``"50GiB"`` (of two).

    Raises:
        InvalidInputError: It is no amount.
    """
    if isinstance(amount, int) and not isinstance(amount, bool) and amount > 0:
        return amount
    match = _AMOUNT.fullmatch(amount.strip()) if isinstance(amount, str) else None
    if match is None or float(match[1]) <= 0:
        raise _invalid("max_disk", amount, 'give bytes, or a text like "50GB" or "1.5TiB"')
    base = 1024 if match[3] else 1000
    return int(float(match[1]) * base ** " KMGTP".index((match[2] or " ").upper()))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _invalid(name: str, value: object, cure: str) -> InvalidInputError:
    return InvalidInputError(f"{name} is {value!r}", cure=cure, kind="invalid-setting")


def _path(name: str, value: object) -> Path:
    if not isinstance(value, (str, os.PathLike)) or not str(value) or "\0" in str(value):
        raise _invalid(name, value, "give the path of a folder")
    return Path(value)


def _mlflow_uri(uri: object) -> str | None:
    """An address that no working folder changes, and that holds nothing that may not be written down."""
    if uri is None:
        return None
    examples = "http://127.0.0.1:5000 or sqlite:///mlflow.db"
    if not isinstance(uri, str) or not uri.strip():
        raise _invalid("mlflow_uri", uri, f"give an address like {examples}, or None")
    parts = urlsplit(uri)
    if parts.password is not None or (parts.username and parts.scheme in {"http", "https"}):
        cure = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (of a database: what its own client reads)"
        raise InvalidInputError("mlflow_uri holds a password", cure=cure, kind="invalid-setting")
    if parts.scheme in {"", "file"} and uri != "databricks":
        cure = f"MLflow keeps no runs in folders any more, and there a point told twice is there twice: give {examples}"
        raise _invalid("mlflow_uri", uri, cure)
    if uri.startswith("sqlite:///"):
        return f"sqlite:///{os.path.abspath(uri.removeprefix('sqlite:///'))}"
    return uri


def _read_settings(file: str | os.PathLike[str] | None) -> tuple[dict[str, Any], dict[str, Any]]:
    if file is None:
        return {}, {}
    name = os.fspath(file)
    try:
        text = Path(file).read_text(encoding="utf-8")
        content = json.loads(text) if str(file).endswith(".json") else tomllib.loads(text)
    except FileNotFoundError:
        raise NotFoundError(f"no settings file {name!r}", cure="check the path") from None
    except OSError as error:
        raise StorageError(f"the settings file {name!r} cannot be read ({error.strerror})", cure="check it") from None
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"{name!r} is no valid settings file ({error})", cure="mend it") from None
    if not isinstance(content, dict):
        raise InvalidInputError(f"{name!r} holds no table of settings", cure="write key = value lines")
    profiles = content.pop("profiles", {})
    if not isinstance(profiles, dict) or not all(isinstance(table, dict) for table in profiles.values()):
        raise InvalidInputError(f"profiles in {name!r} are no tables", cure="write [profiles.<name>] tables")
    return content, profiles


def _from_environment() -> dict[str, Any]:
    hints = typing.get_type_hints(ExperimentConfig)
    found: dict[str, Any] = {}
    for field in fields(ExperimentConfig):
        text = os.environ.get(f"MILEPOST_{field.name.upper()}")
        if text is not None:
            found[field.name] = _parse(field.name, text, hints[field.name])
    return found


def _parse(name: str, text: str, hint: Any) -> Any:
    """The value of an environment variable, by the type of its field."""
    kinds = get_args(hint) if typing.get_origin(hint) in {typing.Union, types.UnionType} else (hint,)
    if types.NoneType in kinds and text.lower() in {"", "none"}:
        return None
    if bool in kinds:
        words: Mapping[str, bool] = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
        if text.lower() not in words and name != "compression":
            raise _invalid(f"MILEPOST_{name.upper()}", text, "give true or false")
        return words.get(text.lower(), text)
    try:
        if int in kinds and str not in kinds:
            return int(text)
        if float in kinds:
            return float(text)
    except ValueError:
        raise _invalid(f"MILEPOST_{name.upper()}", text, "give a number") from None
    if name in {"save_on_signal", "trackers"}:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    return text
