"""In which order are the parts of a run made?

Rank 0 decides which run it is and tells the others, without a collective. Then, on every rank: the log, its companion
process, the checkpointer that hands snapshots to it, the run that holds them all. Nothing here waits for the companion:
it starts while the training goes on.

**On crash**: a run whose folder was made but whose first record never reached the disk is shown as killed, at step 0.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from milepost.checkpoint.checkpointer import ModelCheckpointer
from milepost.companion.client import CompanionProcess
from milepost.companion.messages import Hello
from milepost.core.config import ExperimentConfig
from milepost.core.errors import ConflictError, MilepostError
from milepost.core.events import CheckpointChanged, Described, Noticed, StatusChanged
from milepost.core.saying import keep_own_log, say
from milepost.environment.capture import trainer_facts
from milepost.environment.ranks import Ranks, StopAgreement, detect, meet
from milepost.environment.scheduler import job_identity
from milepost.io import memory
from milepost.io.durable import storage_error
from milepost.io.locks import OwnedLock, exclusive
from milepost.io.process import can_start_python, exit_cause_is_known, this_process
from milepost.run import Run
from milepost.run.resuming import Resumption
from milepost.runs.deferred import DeviceValues
from milepost.runs.layout import RunLayout
from milepost.runs.log import ClockKeeper, DirectLog, LogWriter, begin_log
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
from milepost.system.inside_trackers import given_objects, refuse_names_taken
from milepost.system.insiders import Insiders
from milepost.system.request import StartRequest, script_of_this_process
from milepost.trackers.registry import guests_for

if TYPE_CHECKING:
    from milepost.companion.inline import InlineCompanion

__all__ = ["launch"]

_LONGEST_CRITICAL_SECTION = 60.0


_FOR_THE_COMPANION = (
    *("wandb_project", "tensorboard_dir", "capture_code", "exit_timeout", "backup_dir"),
    *("max_checkpoints", "best_metric", "best_mode", "keep_best", "keep_every_steps", "keep_every_minutes"),
    *("max_disk", "weights_only_after", "staging", "mlflow_uri", "system_metrics_every", "wandb_artifacts"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Begun:
    """What rank 0 decided, as the other ranks get it."""

    experiment_id: str
    attempt: int
    stamp: str
    fresh: bool
    last_step: int | None = None
    tags: list[str] = field(default_factory=list)
    changed: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class _OpenLog:
    """The log of this process and the lock that says it is being written."""

    log_id: bytes
    lock: OwnedLock


def launch(config: ExperimentConfig, request: StartRequest) -> Run:
    """Begin or continue a run; see ``ExperimentTracker.start_experiment`` for what is raised."""
    plans = guests_for(_companion_settings(config))  # a wrong name must raise here, not in another process
    refuse_names_taken(given_objects(config.trackers), [plan.name for plan in plans])
    keep_own_log(config.logs_dir, os.getpid())
    ranks = detect()
    opened: _OpenLog | None = None
    if ranks.rank == 0:
        begun, opened = _begin(config, request)
        if ranks.world_size > 1:
            meet(ranks, f"start-{request.name}", asdict(begun))
    else:
        begun = _Begun(**meet(ranks, f"start-{request.name}", None))
    layout = RunLayout.from_config(config, begun.experiment_id)
    opened = opened or _open_log(layout)
    try:
        return _assemble(config, request, ranks, begun, layout, opened)
    except BaseException:
        opened.lock.release(unlink=True)  # nobody works on a run that could not be put together
        raise


# -------------------------------------------------------------------- which run


def _begin(config: ExperimentConfig, request: StartRequest) -> tuple[_Begun, _OpenLog]:
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
        opened = _open_log(layout)
        fields = _description(config, request, layout) | {"resume_identity": asdict(identity)}
        write_metadata(layout, fields)
    except MilepostError:
        raise
    except OSError as error:
        raise storage_error(error, "starting a run", config.experiment_dir) from error
    return _Begun(experiment_id=layout.experiment_id, attempt=1, stamp=_stamp(), fresh=True, tags=request.tags), opened


def _continue(
    config: ExperimentConfig, layout: RunLayout, request: StartRequest, identity: ResumeIdentity
) -> tuple[_Begun, _OpenLog] | None:
    """Go on with a run that nobody works on any more; nobody else can begin to while we look.

    None if it was completed while we waited for it, and was not asked for by its id.
    """
    with exclusive(layout.starting_lock, _LONGEST_CRITICAL_SECTION):
        state = wait_until_idle(layout, say)
        if state.status == "completed" and request.resume in {"auto", "must"}:
            return None
        metadata = read_metadata(layout)
        changed = {"settings": _companion_settings(config)} | _new_hyperparameters(layout, metadata, request, identity)
        opened = _open_log(layout)
    tags = [str(tag) for tag in metadata.get("tags") or []]
    return (
        _Begun(
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
        "settings": _companion_settings(config),
    }


def _companion_settings(config: ExperimentConfig) -> dict[str, Any]:
    """What the companion, and later ``milepost doctor``, must know of the configuration."""
    names = [one for one in config.trackers if isinstance(one, str)]
    rules = [rule.to_dict() for rule in config.rules]
    return {name: getattr(config, name) for name in _FOR_THE_COMPANION} | {"trackers": names, "rules": rules}


def _stop_without_saving(stop: StopAgreement, resumption: Resumption) -> None:
    """A rule asks to end: nobody asks for a checkpoint of what it found wrong."""
    resumption.saved_for_stop = True
    stop.request()


# -------------------------------------------------------------------- its parts


def _open_log(layout: RunLayout) -> _OpenLog:
    layout.log.mkdir(parents=True, exist_ok=True)
    log_id = new_log_id()
    lock = OwnedLock(layout.log_lock(log_id))
    lock.acquire()
    return _OpenLog(log_id, lock)


def _assemble(
    config: ExperimentConfig,
    request: StartRequest,
    ranks: Ranks,
    begun: _Begun,
    layout: RunLayout,
    opened: _OpenLog,
) -> Run:
    stop = StopAgreement(ranks, f"{begun.experiment_id}-{begun.attempt}")
    hello = _hello(config, layout, opened, begun, ranks)
    resumption = Resumption(
        experiment_id=layout.experiment_id,
        fresh=begun.fresh,
        attempt=begun.attempt,
        ranks=ranks,
        last_step=begun.last_step,
        tags=list(begun.tags),
        signals=_signals(config),
    )
    insiders = Insiders(config, ranks.rank, partial(_stop_without_saving, stop, resumption))
    log, companion, values = _log_and_companion(config, layout, opened, hello, stop, insiders)
    checkpointer = ModelCheckpointer(
        config,
        experiment_id=layout.experiment_id,
        stamp=begun.stamp,
        writer=companion.writer,
        rank=ranks.rank,
        world_size=ranks.world_size,
        attempt=begun.attempt,
        notice=partial(_tell_and_record, log),
    )
    if ranks.rank == 0:
        _finish_what_died(layout, log)
        # All of it at first, so that the log alone can make it again; a record holds one field of any size we take.
        fields = read_metadata(layout) if begun.fresh else begun.changed
        for name, value in (fields | {"tags": begun.tags, "attempt": begun.attempt}).items():
            log.append(Described(fields={name: value}))
        log.append(StatusChanged(status="running"))

    def before_end() -> None:
        values.drain()
        insiders.before_end()

    def after_end(end: StatusChanged) -> None:
        insiders.settle()
        opened.lock.release(unlink=True)
        insiders.run_ended(end)

    run = Run(
        layout=layout,
        name=request.name,
        attempt=begun.attempt,
        config=config,
        log=log,
        before_end=before_end,
        after_end=after_end,
        alerted=insiders.alerted,
        companion=companion,
        checkpointer=checkpointer,
        stop=stop,
        resumption=resumption,
    )
    insiders.run_started(run, log, layout, hello)
    return run


def _finish_what_died(layout: RunLayout, log: LogWriter | DirectLog) -> None:
    """Commit what was staged in a spool when every process died, before anybody asks for the newest checkpoint."""
    from milepost.checkpoint.spool import recover

    for one in recover(layout.checkpoints, experiment_id=layout.experiment_id):
        if one.problem:
            say(f"what was staged when every process died could not be recovered: {one.problem}")
        elif one.info is not None:
            info = one.info
            say(f"the checkpoint of step {info.step}, staged when every process died, is written: {info.filename}")
            fields = info.to_fields()
            change = CheckpointChanged(step=info.step, action="committed", filename=info.filename, info=fields)
            log.append(change, step=info.step)


def _signals(config: ExperimentConfig) -> tuple[str, ...]:
    """Signals to hear of: those to save on, and SIGTERM where the kernel will not tell what ended a process."""
    wanted = config.save_on_signal
    return wanted if exit_cause_is_known() or "SIGTERM" in wanted else (*wanted, "SIGTERM")


def _hello(config: ExperimentConfig, layout: RunLayout, opened: _OpenLog, begun: _Begun, ranks: Ranks) -> Hello:
    me = this_process()
    return Hello(
        layout=layout.to_dict(),
        settings=_companion_settings(config),
        log_id=opened.log_id,
        host=me.host,
        boot_id=me.boot_id,
        pid=me.pid,
        start_time=me.start_time,
        attempt=begun.attempt,
        rank=ranks.rank,
        world_size=ranks.world_size,
        facts=asdict(trainer_facts()),
    )


def _log_and_companion(
    config: ExperimentConfig,
    layout: RunLayout,
    opened: _OpenLog,
    hello: Hello,
    stop: StopAgreement,
    insiders: Insiders,
) -> tuple[LogWriter | DirectLog, CompanionProcess | InlineCompanion, DeviceValues]:
    """Shared memory and a process where the system has both; else one write per record and a thread."""
    ticks: list[Callable[[], None]] = []
    refusal = ""

    def every_tick() -> None:
        for tick in ticks:
            tick()

    wanted = os.environ.get("MILEPOST_COMPANION", "process") != "thread"
    if wanted and memory.available() and can_start_python():
        process = CompanionProcess(hello, every_tick=every_tick, heard=insiders.hear)
        writer = LogWriter(
            opened.log_id, hand_over=process.hand_over, on_bad_value=_tell_bad_value, strict=config.strict
        )
        values = _begin_log(writer, hello)
        ticks += [ClockKeeper(writer).tick, values.poll, stop.poll, insiders.check]
        try:
            process.start(writer)
        except OSError as error:
            refusal = str(error)
            ticks.clear()
        else:
            return writer, process, values
    from milepost.companion.inline import InlineCompanion, instead_of_a_process  # brings all duties along

    inline = InlineCompanion(hello, every_tick=every_tick, heard=insiders.hear)
    direct = DirectLog(layout, opened.log_id, on_bad_value=_tell_bad_value, strict=config.strict)
    values = _begin_log(direct, hello)
    ticks += [ClockKeeper(direct).tick, values.poll, stop.poll, insiders.check]
    inline.start(direct)
    if refusal:
        _tell_and_record(direct, instead_of_a_process(refusal))
    return direct, inline, values


def _begin_log(log: LogWriter | DirectLog, hello: Hello) -> DeviceValues:
    """Write the first records; what fetches numbers from devices."""
    values = DeviceValues(log)
    log.deferred = values.defer
    begin_log(log, role="trainer", attempt=hello.attempt, rank=hello.rank, world_size=hello.world_size)
    return values


def _tell_and_record(log: LogWriter | DirectLog, noticed: Noticed) -> None:
    say(noticed.message, cure=noticed.cure)
    log.append(noticed)


def _tell_bad_value(name: str, kind: str, value: object) -> None:
    del value
    say(f"the metric {name!r} is skipped: it is no number but {kind} (said once)")
