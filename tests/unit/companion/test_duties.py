"""What is done beside a training: recorded, told, and finished."""

from __future__ import annotations

import json
import os
import threading
import time

import msgspec
import pytest
import torch

from milepost.checkpoint.arena import Arena
from milepost.checkpoint.job import SaveJob
from milepost.checkpoint.snapshot import Stager, outline
from milepost.companion.duties import Duties
from milepost.companion.guests import describe_run, make_followers
from milepost.companion.inline import InlineCompanion
from milepost.companion.messages import Saved, SaveFailed, SaveOver, Told
from milepost.core.errors import StorageError
from milepost.core.events import Described, Noticed, StatusChanged
from milepost.runs.store import RunReader
from tests.unit.companion.conftest import SETTINGS
from tests.unit.companion.jobs import staged


@pytest.fixture
def duties(hello, emitted):
    made = Duties(hello, emitted.append)
    made.start()
    yield made
    made.close()


def finish(duties: Duties) -> list[str]:
    return duties.finish(time.monotonic() + 30, lambda _: None)


def test_a_finished_run_has_every_file_that_a_person_opens(duties, log, layout):
    log.log({"loss": 0.5}, 3)
    log.append(Described(fields={"notes": "n"}))
    log.append(StatusChanged(status="completed", summary={"final": 1.0}))
    assert finish(duties) == []
    assert json.loads(layout.metadata.read_text())["notes"] == "n"
    assert "final" in layout.summary.read_text()
    assert "loss" in layout.metrics_json.read_text()
    assert layout.console.read_text() == ""


def test_other_ranks_keep_no_files_of_the_run(hello, log, emitted, layout):
    duties = Duties(msgspec.structs.replace(hello, rank=1), emitted.append)
    duties.start()
    log.log({"loss": 0.5}, 3)
    assert finish(duties) == []
    duties.close()
    assert not layout.summary.exists()
    assert not layout.console.exists()


def test_a_failed_save_is_a_state_since_its_step_until_a_later_one_is_committed(duties, layout, emitted, log):
    reader = RunReader(layout)
    (layout.experiment / "file").touch()
    job, arena = staged(layout.experiment / "file" / "x", 4)
    duties.save(1, job, arena.view)
    job, arena = staged(layout.experiment / "file" / "x", 5)
    duties.save(2, job, arena.view)
    until(lambda: [type(m) for m in emitted if not isinstance(m, Told)].count(SaveOver) == 2)
    (notice,) = [n for n in reader.refresh().notices if n.source == "checkpoint"]
    assert notice.since_step == 4
    assert "unprotected" in notice.message
    failed = next(m for m in emitted if isinstance(m, SaveFailed))
    assert (failed.number, bool(failed.cure)) == (1, True)
    job, arena = staged(layout.checkpoints, 6)
    duties.save(3, job, arena.view)
    until(lambda: any(isinstance(m, Saved) and m.number == 3 for m in emitted))
    assert finish(duties) == []
    assert reader.refresh().notices == []
    assert [info.step for info in reader.checkpoints] == [6]
    assert any("checkpoints are written again" in m.text for m in emitted if isinstance(m, Told))


def test_at_the_end_the_newest_checkpoint_loads_without_its_keyframe(duties, layout, emitted, log):
    arena = Arena()
    weights = torch.randn(200_000, generator=torch.Generator().manual_seed(1))
    for step in (1, 2):
        weights *= 1.00001
        snapshot = Stager().stage(outline({"model": {"weight": weights}}), arena)
        job = SaveJob(
            path=str(layout.checkpoints / f"checkpoint_s_{step}.milepost"),
            experiment_id=layout.experiment_id,
            step=step,
            timestamp=float(step),
            tree=snapshot.tree,
            tensors=snapshot.tensors,
            arena_bytes=snapshot.nbytes,
            delta=True,
        )
        duties.save(step, job, arena.view)
        until(lambda step=step: [type(m) for m in emitted].count(SaveOver) == step)
    reader = RunReader(layout)
    assert reader.checkpoints[-1].base
    assert finish(duties) == []
    newest = reader.refresh().checkpoints[-1]
    assert (newest.step, newest.base, newest.verified) == (2, "", True)
    assert reader.notices == []


def test_a_missing_second_copy_is_said_once_and_shown_until_there_is_one_again(tmp_path, hello, emitted, layout, log):
    backup = tmp_path / "second"
    backup.touch()
    duties = Duties(msgspec.structs.replace(hello, settings=SETTINGS | {"backup_dir": str(backup)}), emitted.append)
    for number in (1, 2, 3):
        if number == 3:
            backup.unlink()
        job, arena = staged(layout.checkpoints, number)
        duties.save(number, job, arena.view)
        until(lambda number=number: [type(m) for m in emitted].count(SaveOver) == number)
        shown = [notice.topic for notice in RunReader(layout).notices]
        assert shown == ([] if number == 3 else ["backup"])
    assert len([m for m in emitted if isinstance(m, Told) and "no second copy" in m.text]) == 1
    assert [path.name for path in backup.glob("*.milepost")] == ["checkpoint_s_3.milepost"]
    assert finish(duties) == []
    duties.close()


def test_what_is_noticed_is_recorded_and_told_with_its_cure(duties, layout, emitted):
    duties.notice(Noticed(source="log", topic="disk", message="no space", cure="free it"))
    assert Told(text="no space: free it") in emitted
    assert [notice.message for notice in RunReader(layout).notices] == ["no space"]


def test_the_heartbeat_of_both_processes_is_renewed(duties, layout, log):
    lock = layout.log_lock(log.log_id)
    lock.touch()
    for path in (lock, duties.own_lock.path):
        os.utime(path, (1.0, 1.0))
    duties.beat()
    assert min(os.stat(path).st_mtime for path in (lock, duties.own_lock.path)) > 1.0


def test_nothing_of_the_duties_is_left_locked(hello, emitted, layout):
    duties = Duties(hello, emitted.append)
    assert list(layout.log.glob("*.lock"))
    duties.close()
    assert not list(layout.log.glob("*.lock"))


# -------------------------------------------------------------------- guests


def test_guests_are_told_about_the_run_as_its_start_described_it(layout, hello):
    run = describe_run(layout, hello)
    assert (run.id, run.name, run.started, run.tags, run.attempt) == (layout.experiment_id, "run", 1.0, ("a",), 1)


def test_damaged_metadata_hinders_no_guest(layout, hello):
    layout.metadata.write_text("{")
    assert describe_run(layout, hello).name == layout.experiment_id


def test_the_keeper_comes_first_and_only_guests_that_were_asked_for_follow(layout, hello):
    run = describe_run(layout, hello)
    keeper, guests = make_followers(layout, SETTINGS, run, lambda _: None, lambda _: None, None)
    assert (keeper.name, guests) == ("record", [])
    settings = SETTINGS | {"tensorboard_dir": "/r", "wandb_project": "p"}
    _, guests = make_followers(layout, settings, run, lambda _: None, lambda _: None, threading.Event())
    assert [guest.name for guest in guests] == ["tensorboard", "wandb"]


# -------------------------------------------------------------------- the same in a thread


def test_the_inline_companion_saves_finishes_and_then_refuses(hello, log, layout):
    ticks = []
    companion = InlineCompanion(hello, every_tick=lambda: ticks.append(1))
    companion.start(log)
    arena = companion.writer.arena()
    job = staged_into(arena, layout)
    pending = companion.writer.submit(job, arena)
    assert pending.wait(60).step == 1
    log.append(StatusChanged(status="completed"))
    until(lambda: ticks)
    assert companion.finish(30) == []
    assert layout.summary.exists()
    with pytest.raises(StorageError, match="the run ended"):
        companion.writer.submit(job, companion.writer.arena()).wait(0)


def staged_into(arena, layout) -> SaveJob:
    snapshot = Stager().stage(outline({"model": {"weight": torch.ones(500)}}), arena)
    path = str(layout.checkpoints / "checkpoint_s_1.milepost")
    content = {"tree": snapshot.tree, "tensors": snapshot.tensors, "arena_bytes": snapshot.nbytes}
    return SaveJob(path=path, experiment_id=layout.experiment_id, step=1, **content)


def until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
