"""How does a run reach MLflow?

Through ``mlflow.MlflowClient``, to a server or a database, kept quiet: no telemetry, hardly a retry of its own (the
follower has better ones), no address but the one that was given. The MLflow run is created with a tag that holds the id
of the experiment, in one request, so every attempt, and every retry of a request whose answer was lost, finds it.

**Invariants**: a point is told with the time of its record. MLflow's key of a point is name, value, time and step, so
what is told twice is there once. Parameters there can never be changed; what was changed stands in a tag.

**On crash**: what came after the cursor is told again and changes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib import import_module
from pathlib import Path
from typing import Any

from milepost.core.errors import InvalidCallError, InvalidInputError, MissingDependencyError
from milepost.core.events import (
    Alerted,
    BigIntegers,
    CheckpointChanged,
    Described,
    Event,
    MediaAdded,
    Metrics,
    Noticed,
    Number,
    Rewound,
    StatusChanged,
    SystemSampled,
    Text,
)
from milepost.core.names import safe_name
from milepost.runs.scan import LoggedRecord
from milepost.trackers.mlflow_words import (
    LONGEST_NAME,
    RUN_ID_TAG,
    accepted_name,
    note_of,
    params_of,
    shortened,
    status_of,
    system_metric,
    tags_of,
)
from milepost.trackers.protocol import RunDescription

__all__ = ["MlflowTracker"]

#: In one request. MLflow takes 1000 and 100, but no more than a megabyte of JSON, where a letter may take six bytes.
_MOST_METRICS = 500
_MOST_WORDS = 20  # parameters, or tags
_LONGEST_PARAM = 500  # of servers that do not say more
_NOTE = "mlflow.note.content"
_COMMIT = "mlflow.source.git.commit"
_REFUSALS = {"UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED", "PERMISSION_DENIED"}
_LOGIN = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
#: For the package, where the user has not said otherwise. One retry, because a server may have closed an idle
#: connection; the rest is for the follower.
_QUIET = {
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


@dataclass(slots=True, kw_only=True)
class _Told:
    """What the next tracker of this run must know; the cursor.

    ``samples`` counts the rows of system metrics, which have no step of their own. ``ended_ms`` is when the run ended.
    ``said`` is what a person was told.
    """

    run_id: str = ""
    last_step: int = 0
    samples: int = 0
    ended_ms: int = 0
    description: str = ""
    notes: str = ""
    said: list[str] = field(default_factory=list)


class MlflowTracker:
    """Follows a run at an MLflow server, or in a database that ``mlflow server`` can show.

    Hyperparameters, model and dataset become params; metrics the history, with the times of their records;
    ``end_experiment``'s metrics ``final/<name>``; logged files and texts artifacts. Checkpoints become tags and small
    JSON artifacts that name step, metrics and path, while the bytes stay in ``checkpoint_dir``.

    The experiment is named by ``MLFLOW_EXPERIMENT_NAME``, else by the run's group, else by its name.

    MLflow cannot take points back: after a resume at step k the points after k of the earlier attempt stay there beside
    the new ones.

    Args:
        uri: A server (``http://127.0.0.1:5000``) or a database (``sqlite:////absolute/mlflow.db``).
        notice: Told once per kind of thing that MLflow does not take as it is.
    """

    name = "mlflow"

    def __init__(self, uri: str, notice: Callable[[Noticed], None] | None = None) -> None:
        self._uri = uri
        self._notice = notice
        self._mlflow: Any = None
        self._client: Any = None
        self._told = _Told()
        self._media = Path()
        self._metrics: list[Any] = []
        self._tags: dict[str, str] = {}

    def open(self, run: RunDescription, cursor: Mapping[str, Any]) -> bool:
        """Create the MLflow run, or find it.

        Raises:
            MissingDependencyError: The package ``mlflow`` is absent, or what the database needs.
            InvalidInputError: MLflow refuses the login, or the experiment was deleted there.
        """
        self._mlflow = _import_mlflow()
        self._media = run.media
        self._told = _Told(**{f.name: cursor[f.name] for f in fields(_Told) if f.name in cursor})
        try:
            self._client = self._mlflow.MlflowClient(tracking_uri=self._uri)
            found = self._found(run)
            if found is None and cursor:
                return False
            self._begin(run, found if found is not None else self._created(run))
        except ImportError as error:
            raise MissingDependencyError(
                f"MLflow cannot open {self._uri} ({error})", cure="pip install mlflow"
            ) from error
        except self._mlflow.MlflowException as error:
            if error.error_code in _REFUSALS:
                raise InvalidInputError("MLflow refuses the login", cure=_LOGIN, kind="mlflow-login") from error
            raise
        return True

    def write(self, records: Sequence[LoggedRecord]) -> None:
        """Collect points and tags, and send them some hundreds at a time; files are sent at once."""
        self._opened()
        for record in records:
            self._take(record)
            if len(self._metrics) >= _MOST_METRICS:
                self._send()

    def flush(self) -> Mapping[str, Any]:
        """Send what is left; MLflow has it when the request returns."""
        self._send()
        return asdict(self._told)

    def close(self, end: StatusChanged | None) -> None:
        """Give the MLflow run its last state, at the time at which the run ended."""
        if end is None or not self._told.run_id:
            return
        self._tags |= {"milepost.status": end.status}
        if end.reason:
            self._tags["milepost.reason"] = shortened(end.reason)
        for name, value in end.summary.items():
            if isinstance(value, (int, float)):
                self._add(f"final/{name}", value, self._told.ended_ms, self._told.last_step)
            else:
                self._tags[accepted_name(f"final/{name}")] = shortened(str(value))
        self._send()
        self._opened().set_terminated(self._told.run_id, status_of(end.status), self._told.ended_ms or None)

    # ---------------------------------------------------------------- which run

    def _opened(self) -> Any:
        if self._client is None:
            raise InvalidCallError("this MLflow tracker is not open", cure="call open(run, cursor) first")
        return self._client

    def _found(self, run: RunDescription) -> Any:
        """The MLflow run of this experiment, None if there is none, or if it was deleted there."""
        if self._told.run_id:
            known = self._run_of_cursor()
            if known is not None:
                return known
        experiment = self._opened().get_experiment_by_name(_experiment_name(run))
        if experiment is None:
            return None
        runs = self._opened().search_runs(
            [experiment.experiment_id], f"tags.`{RUN_ID_TAG}` = '{run.id}'", max_results=1
        )
        return runs[0] if runs else None

    def _run_of_cursor(self) -> Any:
        try:
            found = self._opened().get_run(self._told.run_id)
        except self._mlflow.MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        return found if found.info.lifecycle_stage == "active" else None

    def _created(self, run: RunDescription) -> Any:
        name = _experiment_name(run)
        experiment = self._opened().get_experiment_by_name(name)
        if experiment is None:
            identity = self._new_experiment(name)
        elif experiment.lifecycle_stage != "active":
            raise InvalidInputError(
                f"the MLflow experiment {name!r} was deleted there",
                cure=f"mlflow experiments restore --experiment-id {experiment.experiment_id}, "
                "or set MLFLOW_EXPERIMENT_NAME",
            )
        else:
            identity = experiment.experiment_id
        tags = {RUN_ID_TAG: run.id}
        return self._opened().create_run(
            identity, run_name=shortened(run.name, LONGEST_NAME), start_time=int(run.started * 1000), tags=tags
        )

    def _new_experiment(self, name: str) -> str:
        """Create it; somebody else may do so at the same moment."""
        try:
            return str(self._opened().create_experiment(name, _artifact_location(self._uri, name)))
        except self._mlflow.MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return str(self._opened().get_experiment_by_name(name).experiment_id)

    # ---------------------------------------------------------------- what it is

    def _begin(self, run: RunDescription, found: Any) -> None:
        self._told.run_id = found.info.run_id
        self._told.description = self._told.description or run.description
        self._told.notes = self._told.notes or run.notes
        self._tags = {"milepost.host": run.host, "milepost.attempt": str(run.attempt)} | tags_of(run.tags)
        self._tags |= {"milepost.group": shortened(run.group)} if run.group else {}
        self._tags |= {_NOTE: note} if (note := note_of(self._told.description, self._told.notes)) else {}
        self._send_params(run, found.data.params)
        self._send()
        if found.info.status != "RUNNING":
            self._opened().update_run(self._told.run_id, status="RUNNING")

    def _send_params(self, run: RunDescription, known: Mapping[str, str]) -> None:
        params = params_of(run, self._longest_param())
        if params.cut:
            self._tags["milepost.cut_params"] = shortened(", ".join(params.cut))
            self._say("params", f"MLflow takes no parameter as long as {params.cut[0]}: it ends with … there")
        changed = {name: value for name, value in params.values.items() if known.get(name, value) != value}
        for name, value in changed.items():
            self._tags[accepted_name(f"milepost.changed.{name}")] = shortened(value)
        new = [self._mlflow.entities.Param(*pair) for pair in params.values.items() if pair[0] not in known]
        for start in range(0, len(new), _MOST_WORDS):
            self._log_batch(params=new[start : start + _MOST_WORDS])

    def _longest_param(self) -> int:
        validation = import_module("mlflow.utils.validation")
        return int(getattr(validation, "MAX_PARAM_VAL_LENGTH", _LONGEST_PARAM))

    # ---------------------------------------------------------------- what happens

    def _take(self, record: LoggedRecord) -> None:
        event, when = record.event, record.wall_ns // 1_000_000
        match event:
            case Metrics():
                self._take_values(event.values, event.epoch, when, event.step)
            case BigIntegers():
                self._take_values({name: float(text) for name, text in event.values.items()}, None, when, event.step)
            case SystemSampled():
                for name, value in event.values.items():
                    self._add(*system_metric(name, value), when, self._told.samples)
                self._told.samples += 1
            case StatusChanged():
                self._told.ended_ms = when
            case Alerted():
                self._tags["milepost.alert"] = shortened(f"{event.level}: {event.title}")
            case Rewound():
                self._tags["milepost.resumed_at"] = str(event.step + 1)
            case Described():
                self._take_edit(event.fields)
            case _:
                self._take_content(event)

    def _take_content(self, event: Event) -> None:
        match event:
            case CheckpointChanged(action="committed"):
                self._take_checkpoint(event)
            case MediaAdded():
                self._take_file(event)
            case Text():
                self._send_artifact("log_text", event.text, f"text/{_as_path(event.name)}/{event.step}.txt")
            case _:
                pass

    def _take_values(self, values: Mapping[str, Number], epoch: float | None, when: int, step: int | None) -> None:
        at = self._told.last_step = self._told.last_step if step is None else step
        for name, value in values.items():
            self._add(name, value, when, at)
        if epoch is not None and values and "epoch" not in values:
            self._add("epoch", epoch, when, at)

    def _add(self, name: str, value: Number, when: int, step: int) -> None:
        key = accepted_name(name)
        if key != name:
            self._say("names", f"MLflow takes no metric of the name {name!r}: it is {key!r} there, others likewise")
        self._metrics.append(self._mlflow.entities.Metric(key, float(value), when, step))

    def _take_edit(self, edited: Mapping[str, Any]) -> None:
        if isinstance(edited.get("tags"), list):
            self._tags |= tags_of([str(tag) for tag in edited["tags"]])
        if {"description", "notes"} & set(edited):
            self._told.description = str(edited.get("description", self._told.description) or "")
            self._told.notes = str(edited.get("notes", self._told.notes) or "")
            self._tags[_NOTE] = note_of(self._told.description, self._told.notes)
        code = edited.get("code")
        if isinstance(code, Mapping) and code.get("commit"):
            self._tags[_COMMIT] = str(code["commit"])

    def _take_checkpoint(self, event: CheckpointChanged) -> None:
        path = shortened(str(event.info.get("path") or event.filename))
        self._tags |= {"milepost.checkpoint": path, "milepost.checkpoint_step": str(event.step)}
        if event.info.get("is_best"):
            self._tags |= {"milepost.best_checkpoint": path, "milepost.best_checkpoint_step": str(event.step)}
        self._send_artifact("log_dict", dict(event.info), f"checkpoints/{event.filename}.json")

    def _take_file(self, event: MediaAdded) -> None:
        path = self._media / event.path
        if not (path.resolve().is_relative_to(self._media.resolve()) and path.is_file()):
            return  # removed since, or a record of somebody who wants a file of ours to be uploaded
        self._send_artifact("log_artifact", str(path), f"media/{Path(event.path).parent.as_posix()}".removesuffix("/."))

    # ---------------------------------------------------------------- sending

    def _send(self) -> None:
        metrics, self._metrics = self._metrics, []
        for start in range(0, len(metrics), _MOST_METRICS):
            self._log_batch(metrics=metrics[start : start + _MOST_METRICS])
        tags, self._tags = [self._mlflow.entities.RunTag(*pair) for pair in self._tags.items()], {}
        for start in range(0, len(tags), _MOST_WORDS):
            self._log_batch(tags=tags[start : start + _MOST_WORDS])

    def _log_batch(self, **entities: Any) -> None:
        self._opened().log_batch(self._told.run_id, **entities, synchronous=True)

    def _send_artifact(self, method: str, *content: Any) -> None:
        """Send a file. One that the server, or the disk that it names, refuses for good must not keep numbers back."""
        try:
            getattr(self._opened(), method)(self._told.run_id, *content)
        except (PermissionError, FileNotFoundError, NotADirectoryError, self._mlflow.MlflowException) as error:
            if isinstance(error, self._mlflow.MlflowException) and not _is_final(error):
                raise
            self._say("artifacts", f"MLflow does not take files of this run ({error}); they stay in its own folder")

    def _say(self, topic: str, message: str) -> None:
        if self._notice is not None and topic not in self._told.said:
            self._told.said.append(topic)
            self._notice(Noticed(source="mlflow", topic=topic, message=message, cured=True))


def _import_mlflow() -> Any:
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    try:
        return import_module("mlflow")
    except ImportError as error:
        raise MissingDependencyError(f"MLflow not available ({error})", cure="pip install mlflow") from error


def _experiment_name(run: RunDescription) -> str:
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or shortened(run.group or run.name, LONGEST_NAME)


def _artifact_location(uri: str, experiment: str) -> str | None:
    """Beside a database in a file, not in whatever folder this process works in; a server knows its own place."""
    if not uri.startswith("sqlite:///"):
        return None
    database = Path(uri.removeprefix("sqlite:///").partition("?")[0])
    return (database.parent / "mlartifacts" / safe_name(experiment)).as_uri()


def _is_final(error: Any) -> bool:
    """Whether asking again would get the same answer; 429 asks to be asked later."""
    status = error.get_http_status_code()
    return bool(400 <= status < 500 and status != 429)


def _as_path(name: str) -> str:
    return accepted_name(name).replace(":", "_")
