"""In which order are the parts of a run made?

Rank 0 decides which run it is and tells the others, without a collective. Then, on every rank: the log, its companion
process, the checkpointer that hands snapshots to it, the run that holds them all. Nothing here waits for the companion:
it starts while the training goes on.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING

from milepost.checkpoint.checkpointer import ModelCheckpointer
from milepost.companion.client import CompanionProcess
from milepost.companion.messages import Hello
from milepost.core.config import ExperimentConfig
from milepost.core.events import CheckpointChanged, Described, Noticed, StatusChanged
from milepost.core.saying import keep_own_log, say
from milepost.environment.capture import trainer_facts
from milepost.environment.ranks import Ranks, StopAgreement, detect, meet
from milepost.io import memory
from milepost.io.process import can_start_python, exit_cause_is_known, this_process
from milepost.run import Run
from milepost.run.resuming import Resumption
from milepost.runs.deferred import DeviceValues
from milepost.runs.layout import RunLayout
from milepost.runs.log import ClockKeeper, DirectLog, LogWriter, begin_log
from milepost.runs.metadata import read_metadata
from milepost.system.beginning import Begun, OpenLog, begin, companion_settings, open_log
from milepost.system.inside_trackers import given_objects, refuse_names_taken
from milepost.system.insiders import Insiders
from milepost.system.request import StartRequest
from milepost.trackers.registry import guests_for

if TYPE_CHECKING:
    from milepost.companion.inline import InlineCompanion

__all__ = ["launch"]


def launch(config: ExperimentConfig, request: StartRequest) -> Run:
    """Begin or continue a run; see ``ExperimentTracker.start_experiment`` for what is raised."""
    plans = guests_for(companion_settings(config))  # a wrong name must raise here, not in another process
    refuse_names_taken(given_objects(config.trackers), [plan.name for plan in plans])
    keep_own_log(config.logs_dir, os.getpid())
    ranks = detect()
    opened: OpenLog | None = None
    if ranks.rank == 0:
        begun, opened = begin(config, request)
        if ranks.world_size > 1:
            meet(ranks, f"start-{request.name}", asdict(begun))
    else:
        begun = Begun(**meet(ranks, f"start-{request.name}", None))
    layout = RunLayout.from_config(config, begun.experiment_id)
    opened = opened or open_log(layout)
    try:
        return _assemble(config, request, ranks, begun, layout, opened)
    except BaseException:
        opened.lock.release(unlink=True)  # nobody works on a run that could not be put together
        raise


# -------------------------------------------------------------------- its parts


def _assemble(
    config: ExperimentConfig,
    request: StartRequest,
    ranks: Ranks,
    begun: Begun,
    layout: RunLayout,
    opened: OpenLog,
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
    insiders = Insiders(config, ranks.rank)
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
        _describe(layout, log, begun)

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


def _describe(layout: RunLayout, log: LogWriter | DirectLog, begun: Begun) -> None:
    """All of it at first, so that the log alone can make it again; a record holds one field of any size we take."""
    fields = read_metadata(layout) if begun.fresh else begun.changed
    for name, value in (fields | {"tags": begun.tags, "attempt": begun.attempt}).items():
        log.append(Described(fields={name: value}))
    log.append(StatusChanged(status="running"))


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


def _hello(config: ExperimentConfig, layout: RunLayout, opened: OpenLog, begun: Begun, ranks: Ranks) -> Hello:
    me = this_process()
    return Hello(
        layout=layout.to_dict(),
        settings=companion_settings(config),
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
    opened: OpenLog,
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
