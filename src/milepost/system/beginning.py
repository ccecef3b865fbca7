"""Which run does this process begin or go on with, and what is said about it first?

Asked on rank 0 only. What is answered is small and plain, so that the other ranks can be told.

**On crash**: a run whose folder was made but whose first record never reached the disk is shown as killed, at step 0.
"""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from milepost.core.config import ExperimentConfig
from milepost.core.errors import ConflictError, MilepostError
from milepost.core.saying import say
from milepost.environment.scheduler import job_identity
from milepost.io.durable import storage_error
from milepost.io.locks import OwnedLock, exclusive
from milepost.runs.layout import RunLayout
from milepost.runs.metadata import read_metadata, write_metadata
from milepost.runs.segment import new_log_id
from milepost.runs.starting import (
    ResumeIdentity,
    differing_keys,
    find_run,
    reserve_run,
    resume_identity,
    wait_until_idle,
)
from milepost.system.request import StartRequest, script_of_this_process

__all__ = ["Begun", "OpenLog", "begin", "companion_settings", "open_log"]

_LONGEST_CRITICAL_SECTION = 60.0


_FOR_THE_COMPANION = (
    *("wandb_project", "tensorboard_dir", "capture_code", "exit_timeout", "backup_dir"),
    *("max_checkpoints", "best_metric", "best_mode", "keep_best", "keep_every_steps", "keep_every_minutes"),
    *("max_disk", "weights_only_after", "staging", "mlflow_uri", "system_metrics_every", "wandb_artifacts"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """What rank 0 decided, as the other ranks get it."""

    experiment_id: str
    attempt: int
    stamp: str
    fresh: bool
    last_step: int | None = None
    tags: list[str] = field(default_factory=list)
    changed: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class OpenLog:
    """The log of this process and the lock that says it is being written."""

    log_id: bytes
    lock: OwnedLock


def begin(config: ExperimentConfig, request: StartRequest) -> tuple[Begun, OpenLog]:
    """Reserve a new run, or take over the one that ``request`` goes on with; what is raised says the tracker."""
    identity = resume_identity(
        request.name,
        request.hyperparameters,
        key=os.environ.get("MILEPOST_RUN_KEY") or config.resume_key,
        job=job_identity(os.environ),
        script=script_of_this_process(),
    )
    try:
        while (found := find_run(config, request.resume, identity)) is not None:
            continued = _continue(config, found, request, identity)
            if continued is not None:
                return continued
        layout = reserve_run(config, request.name)
        opened = open_log(layout)
        fields = _description(config, request, layout) | {"resume_identity": asdict(identity)}
        write_metadata(layout, fields)
    except MilepostError:
        raise
    except OSError as error:
        raise storage_error(error, "starting a run", config.experiment_dir) from error
    return Begun(experiment_id=layout.experiment_id, attempt=1, stamp=_stamp(), fresh=True, tags=request.tags), opened


def _continue(
    config: ExperimentConfig, layout: RunLayout, request: StartRequest, identity: ResumeIdentity
) -> tuple[Begun, OpenLog] | None:
    """Go on with a run that nobody works on any more; nobody else can begin to while we look.

    None if it was completed while we waited for it, and was not asked for by its id.
    """
    with exclusive(layout.starting_lock, _LONGEST_CRITICAL_SECTION):
        state = wait_until_idle(layout, say)
        if state.status == "completed" and request.resume in {"auto", "must"}:
            return None
        metadata = read_metadata(layout)
        changed = {"settings": companion_settings(config)} | _new_hyperparameters(layout, metadata, request, identity)
        opened = open_log(layout)
    tags = [str(tag) for tag in metadata.get("tags") or []]
    return (
        Begun(
            experiment_id=layout.experiment_id,
            attempt=state.attempt + 1,
            stamp=_stamp(),
            fresh=False,
            last_step=state.last_step if state.last_step >= 0 else None,
            tags=tags + [tag for tag in request.tags if tag not in tags],
            changed=changed,
        ),
        opened,
    )


def _new_hyperparameters(
    layout: RunLayout, metadata: dict[str, Any], request: StartRequest, identity: ResumeIdentity
) -> dict[str, Any]:
    """What the metadata must say instead, if the run goes on with other hyperparameters by force."""
    differing = differing_keys(metadata.get("hyperparameters") or {}, request.hyperparameters)
    if not differing or not request.hyperparameters:
        return {}
    if not request.force:
        raise ConflictError(
            f"{layout.experiment_id} was started with other hyperparameters: {', '.join(differing)}",
            cure="use the same ones, another resume_key, or force=True to go on with the new ones",
            kind="hyperparameters-differ",
        )
    return {"hyperparameters": request.hyperparameters, "resume_identity": asdict(identity)}


def _stamp() -> str:
    return datetime.now().astimezone().strftime("%Y%m%d-%H%M%S-%f")


def _description(config: ExperimentConfig, request: StartRequest, layout: RunLayout) -> dict[str, Any]:
    """The first ``metadata.json``: what the user said, and where everything of this run is."""
    return {
        "experiment_id": layout.experiment_id,
        "name": request.name,
        "description": request.description,
        "hyperparameters": request.hyperparameters,
        "model_config": request.model_config,
        "dataset_info": request.dataset_info,
        "tags": request.tags,
        "group": request.group,
        "notes": "",
        "status": "running",
        "start_time": time.time(),
        "folders": {
            "experiment_dir": config.experiment_dir,
            "checkpoint_dir": config.checkpoint_dir,
            "logs_dir": config.logs_dir,
            "metrics_dir": config.metrics_dir,
            "tensorboard_dir": config.tensorboard_dir,
        },
        "settings": companion_settings(config),
    }


def companion_settings(config: ExperimentConfig) -> dict[str, Any]:
    """What the companion, and later ``milepost doctor``, must know of the configuration."""
    names = [one for one in config.trackers if isinstance(one, str)]
    rules = [rule.to_dict() for rule in config.rules]
    return {name: getattr(config, name) for name in _FOR_THE_COMPANION} | {"trackers": names, "rules": rules}


def open_log(layout: RunLayout) -> OpenLog:
    """Name the log of this process and hold its lock; the first record makes the file."""
    layout.log.mkdir(parents=True, exist_ok=True)
    log_id = new_log_id()
    lock = OwnedLock(layout.log_lock(log_id))
    lock.acquire()
    return OpenLog(log_id, lock)
